"""FP16 accumulators in attention."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

import mmabits
from mmabits.research.study.shipped.row import Chart, PublishedNumber, Row, Rows, Shipped, one, pick
from mmabits.research.study.sweeps import points

_LENGTHS: Final = {"quick": (256, 2048, 8192), "full": (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)}
_WAYS: Final = ("f32", "f16", "f16, f32 sum every 64")
_BLOCK: Final = 64


def _points(size: str) -> list[Row]:
    return points(arch=["sm_80", "sm_90a"], way=list(_WAYS), values=["around 0", "around 1"], keys=list(_LENGTHS[size]))


def _at(arch: str, way: str, values: str, keys: int) -> Iterable[Row]:
    rng = np.random.default_rng(keys)
    scores = rng.standard_normal((64, keys))
    p = np.exp(scores - scores.max(axis=1, keepdims=True)).astype(np.float16)  # unnormalised, as flash attention keeps it
    v = (rng.standard_normal((keys, 64)) + (values == "around 1")).astype(np.float16)
    half = np.zeros((64, 64), np.float16)
    if way == "f32":
        d = mmabits.gemm(p, v, instruction="mma.sync", arch=arch).astype(np.float64)
    elif way == "f16":
        d = mmabits.gemm(p, v, half, instruction="mma.sync", arch=arch).astype(np.float64)
    else:
        total = np.zeros((64, 64), np.float32)
        for start in range(0, keys, _BLOCK):
            total += mmabits.gemm(
                p[:, start : start + _BLOCK].copy(), v[start : start + _BLOCK], half, instruction="mma.sync", arch=arch
            ).astype(np.float32)
        d = total.astype(np.float64)
    exact = p.astype(np.float64) @ v.astype(np.float64)
    finite = np.isfinite(d)
    size = float(np.sqrt((exact**2).mean()))
    error = np.where(finite, d - exact, 0.0)
    yield {
        "arch": arch, "way": way, "values": values, "keys": keys, "line": f"{arch}, {way}",
        "rms": float(np.sqrt((error[finite] ** 2).mean())) / size if finite.any() else float("nan"), "overflowed": float((~finite).mean()),
    }  # fmt: skip


def _claims(rows: Rows) -> list[PublishedNumber]:
    return []


def _findings(rows: Rows) -> list[str]:
    longest = max(row["keys"] for row in rows)
    found = []
    for values in ("around 0", "around 1"):
        full, half, mended = (one(rows, "rms", arch="sm_80", way=way, values=values, keys=longest) for way in _WAYS)
        found.append(
            f"Values {values}, {longest} keys, sm_80: {100 * full:.2g} % with f32 accumulators, {100 * half:.2g} % with f16, "
            f"{100 * mended:.2g} % with f16 inside blocks of {_BLOCK} keys and an f32 sum of those."
        )
    overflowed = [row for row in pick(rows, way="f16") if row["overflowed"]]
    found.append(f"Results that overflowed f16: in {len(overflowed)} of {len(pick(rows, way='f16'))} cases.")
    return found


STUDY: Final = Shipped(
    name="attention",
    title="FP16 accumulators in attention",
    question="When may the product of probabilities and values accumulate in FP16, at twice the speed on many GPUs?",
    measured="exp(scores - max) of normal scores in f16, 64 rows, times values in f16, normal around 0 or around 1. Errors are against the exact "
    "product of the f16 operands.",
    points=_points,
    at=_at,
    charts=(
        Chart(
            title="Values around 0", x="keys", y="rms", series="line", x_label="keys", y_label="error, rms, relative", where={"values": "around 0"},
            caption="The accumulator rounds to nearest at every instruction: the error grows with the number of instructions.",
        ),
        Chart(
            title="Values around 1", x="keys", y="rms", series="line", x_label="keys", y_label="error, rms, relative", where={"values": "around 1"},
            caption="Sums that grow leave small addends below half a unit of the accumulator. An f32 sum of short f16 chains, as "
            "SageAttention keeps it, mends this.",
        ),
    ),
    claims=_claims,
    findings=_findings,
    limits="Synthetic scores without masks; the exponential is NumPy's. No published number with known inputs was found to reproduce.",
)  # fmt: skip
