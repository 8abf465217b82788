"""Hopper against Blackwell on the same model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mmabits.research.study.budget import study
from mmabits.research.study.shipped.outliers import operands
from mmabits.research.study.shipped.row import Chart, PublishedNumber, Row, Rows, Shipped, one
from mmabits.research.study.sweeps import points

_ARCHS: Final = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a")
_RECIPES: Final = ("f16", "bf16", "fp8", "mxfp8", "nvfp4")
_LACKS: Final = {("sm_80", "fp8"), *((arch, recipe) for arch in ("sm_80", "sm_89", "sm_90a") for recipe in ("mxfp8", "nvfp4"))}
"""Architectures without an instruction for what the recipe stores."""


def _points(size: str) -> list[Row]:
    archs = _ARCHS if size == "full" else ("sm_90a", "sm_100a")
    return [point for point in points(arch=list(archs), recipe=list(_RECIPES)) if (point["arch"], point["recipe"]) not in _LACKS]


def _at(arch: str, recipe: str) -> Iterable[Row]:
    a, b, real = operands("MiniLM")
    found = study(a, b, recipe=recipe, arch=arch).rows()
    hardware = {"accumulator's rounding", "alignment's truncation"}
    for row in found:
        yield {**row, "real": real, "hardware": row["cause"] in hardware}


def _claims(rows: Rows) -> list[PublishedNumber]:
    return []


def _findings(rows: Rows) -> list[str]:
    truncation = {arch: one(rows, "error", arch=arch, recipe="fp8", cause="alignment's truncation") for arch in ("sm_90a", "sm_100a")}
    total = {arch: one(rows, "error", arch=arch, recipe="fp8", kind="total") for arch in ("sm_90a", "sm_100a")}
    real = "" if rows[0]["real"] else "SYNTHETIC operands, because the model is not installed. "
    return [
        f"{real}FP8: alignment costs {100 * truncation['sm_90a']:.2g} % on Hopper and {100 * truncation['sm_100a']:.2g} % on Blackwell, of a "
        f"total of {100 * total['sm_90a']:.3g} % and {100 * total['sm_100a']:.3g} %: at K = 384, quantization is nearly all of it.",
        "With f16 and bf16 operands the architectures differ in the last bits alone.",
    ]


STUDY: Final = Shipped(
    name="generations",
    title="Hopper against Blackwell, the same weights and activations",
    question="What of a model's error is the GPU's, and what is quantization's?",
    measured="Token embeddings of a sentence times the query weights of layer 0 of all-MiniLM-L6-v2 (K = 384), in the formats that each architecture "
    "takes, with the instruction its matrix libraries are taken to use. The whole model: mmabits minilm.",
    points=_points,
    at=_at,
    charts=(
        Chart(
            title="All of the error", x="recipe", y="error", series="arch", x_label="", y_label="error, rms, relative", bars=True,
            where={"kind": "total"}, caption="Quantization and arithmetic together, against the float32 matrices' product.",
        ),
        Chart(
            title="What alignment cuts off", x="recipe", y="error", series="arch", x_label="", y_label="error, rms, relative", bars=True,
            where={"cause": "alignment's truncation"}, caption="The part that differs between the architectures.",
        ),
    ),
    claims=_claims,
    findings=_findings,
    limits="One product of one layer; errors of a whole model do not simply add. No published number with known inputs was found to reproduce.",
)  # fmt: skip
