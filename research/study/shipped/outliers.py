"""MXFP8 against per-tensor FP8, as outliers grow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from mmabits.research.sentence import SIZES, load_operands
from mmabits.research.study.budget import study
from mmabits.research.study.shipped.row import Chart, PublishedNumber, Row, Rows, Shipped, one, pick
from mmabits.research.study.sweeps import points

_FACTORS: Final = {"quick": (1, 64, 4096), "full": (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)}
_RECIPES: Final = ("fp8", "mxfp8", "mxfp8-rceil")
_CHANNELS: Final = 4
"""Columns of the activations that are multiplied."""


def _points(size: str) -> list[Row]:
    return points(data=["MiniLM", "normal"], recipe=list(_RECIPES), factor=list(_FACTORS[size]))


def operands(data: str) -> tuple[Any, Any, bool]:
    """(activations, weights, whether they are a model's)."""
    if data == "MiniLM":
        found = load_operands(SIZES["full"])
        return found.activations, np.ascontiguousarray(found.weights[:, :384]), found.is_real
    rng = np.random.default_rng(0)
    return rng.standard_normal((64, 384)).astype(np.float32), (rng.standard_normal((384, 384)) * 0.05).astype(np.float32), False


def _at(data: str, recipe: str, factor: int) -> Iterable[Row]:
    a, b, real = operands(data)
    a = a.copy()
    a[:, :: a.shape[1] // _CHANNELS] *= np.float32(factor)
    b = b.copy()
    b[:: a.shape[1] // _CHANNELS] /= np.float32(factor)  # the product stays what it was: only its parts grow apart
    found = study(a, b, recipe=recipe, arch="sm_100a")
    for row in found.rows():
        if row["kind"] == "total" or row["cause"].startswith("quantization"):
            yield {**row, "data": data, "real": real, "factor": factor, "line": f"{data}, {recipe}"}


def _claims(rows: Rows) -> list[PublishedNumber]:
    return []


def _findings(rows: Rows) -> list[str]:
    largest = max(row["factor"] for row in rows)
    found = []
    for data in ("MiniLM", "normal"):
        total = {name: [one(rows, "error", data=data, recipe=name, factor=at, kind="total") for at in (1, largest)] for name in _RECIPES}
        synthetic = "" if data == "normal" or pick(rows, data=data)[0]["real"] else " (SYNTHETIC stand-in: the model is not installed)"
        found.append(
            f"{data}{synthetic}: per-tensor FP8 goes from {100 * total['fp8'][0]:.2g} % to {100 * total['fp8'][1]:.2g} % as {_CHANNELS} channels grow "
            f"{largest}-fold; MXFP8 from {100 * total['mxfp8'][0]:.2g} % to {100 * total['mxfp8'][1]:.2g} %."
        )
    return found


STUDY: Final = Shipped(
    name="outliers",
    title="MXFP8 against per-tensor FP8, with outliers",
    question="From what size of outliers on do block scales pay?",
    measured="Token embeddings of a sentence times the query weights of layer 0 of all-MiniLM-L6-v2, and normal matrices of that shape. "
    "Four channels of the activations are multiplied by a factor, and the same rows of the weights divided by it, so that the exact product "
    "stays. Computed with tcgen05.mma of sm_100a; errors are against the float32 matrices' product.",
    points=_points,
    at=_at,
    charts=(
        Chart(
            title="Error of the product", x="factor", y="error", series="line", x_label="factor of four channels", y_label="error, rms, relative",
            where={"kind": "total"}, low="low", high="high",
            caption="One scale for a matrix must cover its outliers, and the rest falls among e4m3's subnormals, then to zero. "
            "Bands: 95 % intervals over tokens.",
        ),
    ),
    claims=_claims,
    findings=_findings,
    limits="One layer of one small model, and outliers in whole channels only. No published number with known inputs was found to reproduce.",
)  # fmt: skip
