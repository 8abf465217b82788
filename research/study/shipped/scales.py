"""Scale recipes for MXFP4 and NVFP4."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from mmabits.research.study.budget import study
from mmabits.research.study.shipped.outliers import operands
from mmabits.research.study.shipped.row import Chart, PublishedNumber, Row, Rows, Shipped, pick
from mmabits.research.study.sweeps import points

_RECIPES: Final = ("mxfp4", "mxfp4-ceil", "mxfp4-even", "mxfp4-rceil", "nvfp4", "mxfp6-e2m3", "mxfp8")
_DATA: Final = {"quick": ("MiniLM", "normal"), "full": ("MiniLM", "normal", "laplace", "student-t, 3")}


def _points(size: str) -> list[Row]:
    return points(data=list(_DATA[size]), recipe=list(_RECIPES))


def _matrices(data: str) -> tuple[Any, Any, bool]:
    if data in ("MiniLM", "normal"):
        return operands(data)
    rng = np.random.default_rng(1)
    a, b = (rng.laplace(size=size) if data == "laplace" else rng.standard_t(3, size=size) for size in ((64, 384), (384, 384)))
    return np.asarray(a).astype(np.float32), np.asarray(b * 0.05).astype(np.float32), False


def _at(data: str, recipe: str) -> Iterable[Row]:
    a, b, real = _matrices(data)
    for row in study(a, b, recipe=recipe, arch="sm_100a").rows():
        if row["kind"] != "switched":
            yield {**row, "data": data, "real": real}


def _claims(rows: Rows) -> list[PublishedNumber]:
    return []


def _findings(rows: Rows) -> list[str]:
    found = []
    for data in dict.fromkeys(row["data"] for row in rows):
        errors = {row["recipe"]: row["error"] for row in pick(rows, data=data, kind="total")}
        four = {name: error for name, error in errors.items() if name.startswith("mxfp4")}
        best, worst = min(four, key=lambda name: four[name]), max(four, key=lambda name: four[name])
        found.append(
            f"{data}: of the MXFP4 recipes {best} has the least error, {100 * four[best]:.2g} %, {worst} the most, {100 * four[worst]:.2g} %; "
            f"NVFP4 {100 * errors['nvfp4']:.2g} %."
        )
    return found


STUDY: Final = Shipped(
    name="scales",
    title="Scale recipes for MXFP4 and NVFP4",
    question="How should the scale of a block be chosen?",
    measured="Token embeddings times the query weights of layer 0 of all-MiniLM-L6-v2, and matrices of that shape drawn from three "
    "distributions, both operands quantized. Computed with tcgen05.mma of sm_100a; errors are against the float32 matrices' product.",
    points=_points,
    at=_at,
    charts=(
        Chart(
            title="Error of the product", x="data", y="error", series="recipe", x_label="", y_label="error, rms, relative", bars=True,
            where={"kind": "total"},
            caption="floor lets the largest element of a block saturate, ceil leaves a binade unused; even and rceil lie between. NVFP4's "
            "e4m3 scales and blocks of 16 fit closer than any power of two.",
        ),
    ),
    claims=_claims,
    findings=_findings,
    limits="Errors of products, not of a model's answers. No published number with known inputs was found to reproduce.",
)  # fmt: skip
