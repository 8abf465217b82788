"""Static ranges of activations on a whole model, by the ways in which they are calibrated."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.kernels.calibration import CalibrationOptions, Calibrator, Ranges
from mmabits.kernels.schemes import asymmetric, fp8, w8a8
from mmabits.research import minilm
from mmabits.research.study.shipped.row import Chart, PublishedNumber, Row, Rows, Shipped, pick
from mmabits.research.study.sweeps import points

Floats = npt.NDArray[np.float32]

_ARCH: Final = "sm_90a"
_METHODS: Final = {
    "quick": ("dynamic", "min-max", "mean-square"),
    "full": ("dynamic", "min-max", "moving-average", "percentile", "mean-square", "entropy"),
}
_TARGETS: Final = {"quick": ("int8",), "full": ("int8", "int8-asymmetric", "e4m3")}
_SEEN: Final = 4
"""Sentences that ranges are calibrated on; the others are measured."""
_OPTIONS: Final = CalibrationOptions(bins=2048, candidates=128, averaging=0.25)


def _points(size: str) -> list[Row]:
    found = points(target=list(_TARGETS[size]), method=list(_METHODS[size]))
    return [point for point in found if (point["target"], point["method"]) != ("int8-asymmetric", "entropy")]


@cache
def _model() -> dict[str, Floats]:
    return minilm.load()


def calibrated(method: str, target: str) -> dict[str, Ranges]:
    """The range of each linear layer's input, a sentence a part."""
    found: dict[str, Calibrator] = {}

    def seen(name: str, rows: Floats, weights: Floats) -> Floats:
        found.setdefault(name, Calibrator(method, target=target, options=_OPTIONS)).update(rows)
        return minilm.plain(name, rows, weights)

    for tokens in minilm.SENTENCES[:_SEEN]:
        minilm.embed(_model(), tokens, seen)
    return {name: each.ranges() for name, each in found.items()}


def _multiplied(target: str, rows: Floats, weights: Floats, ranges: Ranges | None) -> Floats:
    """One product: static ranges, or dynamic ones for each token where there are none; weights by output channel."""
    if target == "e4m3":
        w = fp8.quantize(weights, per="column")
        x = fp8.quantize(rows, per="row") if ranges is None else fp8.quantize(rows, scale=ranges.scales(448.0)[0])
        return fp8.fp8_matmul(x, w, arch=_ARCH)
    channels = w8a8.quantize_int8(weights, axis=1)
    if target == "int8":
        return w8a8.w8a8_matmul(w8a8.quantize_int8(rows, axis=0, amax=None if ranges is None else ranges.amax), channels, arch=_ARCH)
    ends: dict[str, Any] = {} if ranges is None else {"low": ranges.low, "high": ranges.high}
    return asymmetric.asymmetric_matmul(asymmetric.quantize_affine(rows, axis=0, **ends), channels, arch=_ARCH)


def _at(target: str, method: str) -> Iterable[Row]:
    ranges = None if method == "dynamic" else calibrated(method, target)
    clipped = [0, 0]

    def product(name: str, rows: Floats, weights: Floats) -> Floats:
        if ranges is not None:
            clipped[0] += int(((rows < ranges[name].low) | (rows > ranges[name].high)).sum())
            clipped[1] += rows.size
        return _multiplied(target, rows, weights, None if ranges is None else ranges[name])

    pairs = [(minilm.embed(_model(), tokens), minilm.embed(_model(), tokens, product)) for tokens in minilm.SENTENCES[_SEEN:]]
    exact, found = (np.stack([pair[which] for pair in pairs]).astype(np.float64) for which in (0, 1))
    yield {
        "target": target, "method": method, "cosine": float((exact * found).sum(axis=1).min()),
        "error": float(np.sqrt(((found - exact) ** 2).sum(axis=1).mean())),
        "similarity": float(np.abs(found @ found.T - exact @ exact.T).max()), "clipped": clipped[0] / max(clipped[1], 1),
    }  # fmt: skip


def _claims(rows: Rows) -> list[PublishedNumber]:
    return []


def _findings(rows: Rows) -> list[str]:
    found = []
    for target in dict.fromkeys(row["target"] for row in rows):
        errors = {row["method"]: row["error"] for row in pick(rows, target=target)}
        static = {name: error for name, error in errors.items() if name != "dynamic"}
        best, worst = min(static, key=lambda name: static[name]), max(static, key=lambda name: static[name])
        found.append(
            f"{target}: of the static ranges {best} moves embeddings least, by {100 * static[best]:.2g} %, {worst} most, by "
            f"{100 * static[worst]:.2g} %; ranges of each token, found when it is there, by {100 * errors['dynamic']:.2g} %."
        )
    return found


STUDY: Final = Shipped(
    name="calibration",
    title="Static ranges on all-MiniLM-L6-v2",
    question="How should static ranges of activations be calibrated?",
    measured="All 36 linear layers of all-MiniLM-L6-v2, their inputs in INT8 (symmetric, or u8 with a zero point) or e4m3 with one static range "
    "a layer, calibrated on four sentences and measured on four others, weights by output channel; products by wgmma of sm_90a. Beside them "
    "dynamic ranges of each token. Errors are distances between embeddings, which have length 1, and those in float32.",
    points=_points,
    at=_at,
    charts=(
        Chart(
            title="How far embeddings move", x="target", y="error", series="method", x_label="", y_label="distance, rms", bars=True,
            caption="One range a layer; dynamic: one a token, which costs a pass over the data.",
        ),
    ),
    claims=_claims,
    findings=_findings,
    limits="Eight sentences, one small model: which method is best differs from model to model. Attention and everything between the layers is "
    "float32. No published number with known inputs was found to reproduce.",
)  # fmt: skip
