"""Symmetric and asymmetric INT8 side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from mmabits.research.study.budget import study
from mmabits.research.study.shipped.outliers import operands
from mmabits.research.study.shipped.row import Chart, PublishedNumber, Row, Rows, Shipped, pick
from mmabits.research.study.sweeps import points

_RECIPES: Final = ("int8", "int8-asymmetric-a", "int8-asymmetric")
_DATA: Final = {
    "quick": ("normal", "after ReLU"),
    "full": ("MiniLM", "normal", "after ReLU", "after GELU", "after SiLU", "normal + 2"),
}


def _points(size: str) -> list[Row]:
    return points(data=list(_DATA[size]), recipe=list(_RECIPES))


def _activated(x: Any, data: str) -> Any:
    """What activations look like behind a nonlinearity; GELU in its form with tanh."""
    if data == "after ReLU":
        return np.maximum(x, 0)
    if data == "after GELU":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    if data == "after SiLU":
        return x / (1 + np.exp(-x))
    return x + 2


def _at(data: str, recipe: str) -> Iterable[Row]:
    plain = data in ("MiniLM", "normal")
    a, b, real = operands(data if plain else "normal")
    if not plain:
        a = np.asarray(_activated(a.astype(np.float64), data), np.float32)
    for row in study(a, b, recipe=recipe, arch="sm_90a").rows():
        if row["kind"] != "switched":
            yield {**row, "data": data, "real": real}


def _claims(rows: Rows) -> list[PublishedNumber]:
    return []


def _findings(rows: Rows) -> list[str]:
    found = []
    for data in dict.fromkeys(row["data"] for row in rows):
        errors = {row["recipe"]: row["error"] for row in pick(rows, data=data, cause="quantization of A")}
        gain = errors["int8"] / errors["int8-asymmetric-a"]
        found.append(f"{data}: with zero points the activations' part of the error is {1 / gain:.2f} times that of symmetric codes.")
    return found


STUDY: Final = Shipped(
    name="zero-points",
    title="Symmetric and asymmetric INT8",
    question="When are zero points worth their correction terms?",
    measured="Token embeddings times the query weights of layer 0 of all-MiniLM-L6-v2, and normal matrices of that shape, as they are, moved by "
    "2, and behind the nonlinearities of common models. INT8 with a scale for each row of activations and each column of weights, without "
    "zero points, with those of activations, and with both. Products by wgmma of sm_90a (u8 x s8), corrected in integers: exact, so that all "
    "error is quantization's; it is against the float32 matrices' product.",
    points=_points,
    at=_at,
    charts=(
        Chart(
            title="Error of the product", x="data", y="error", series="recipe", x_label="", y_label="error, rms, relative", bars=True,
            where={"kind": "total"}, caption="int8: symmetric; -a: zero points of activations alone.",
        ),
        Chart(
            title="The activations' part", x="data", y="error", series="recipe", x_label="", y_label="error, rms, relative", bars=True,
            where={"cause": "quantization of A"},
            caption="One-sided activations leave half of the symmetric codes unused; those of both signs gain what their ends differ by.",
        ),
    ),
    claims=_claims,
    findings=_findings,
    limits="Errors of products, not of a model's answers; ranges by row and column from the matrices themselves, not calibrated ones.",
)  # fmt: skip
