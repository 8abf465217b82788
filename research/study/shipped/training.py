"""A small language model trained by each recipe, beside bf16."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from mmabits.isa import MmabitsError
from mmabits.research.study.shipped.row import Chart, PublishedNumber, Row, Rows, Shipped, pick

_RUNS: Final = {
    "quick": ((0, "sm_100a", ("bf16", "mxfp8", "nvfp4")),),
    "full": (
        (0, "sm_100a", ("bf16", "fp8-current", "fp8-delayed", "fp8-rowwise", "fp8-tiles", "mxfp8", "nvfp4", "nvfp4-plain")),
        (1, "sm_100a", ("bf16", "fp8-current", "nvfp4", "nvfp4-plain")),
        (0, "sm_90a", ("bf16", "fp8-current", "fp8-tiles")),
    ),
}
"""Seed, architecture and recipes."""
_STEPS: Final = {"quick": 20, "full": 200}
_EVERY: Final = {"quick": 4, "full": 10}
"""Steps of a row."""


def _points(size: str) -> list[Row]:
    return [{"arch": arch, "recipe": recipe, "seed": seed, "size": size} for seed, arch, recipes in _RUNS[size] for recipe in recipes]


def _at(arch: str, recipe: str, seed: int, size: str) -> Iterable[Row]:
    try:
        from mmabits.research.transformer import TransformerSize, train
    except ModuleNotFoundError as error:
        raise MmabitsError(f"the model is one of torch, and {error.name} is not installed: pip install 'mmabits[torch]'") from None
    tiny = TransformerSize(width=64, heads=2, blocks=2, length=32)
    shape = tiny if size == "quick" else TransformerSize()
    for row in train(recipe, arch=arch, steps=_STEPS[size], size=shape, seed=seed, every=_EVERY[size]):
        yield {"arch": arch, "recipe": recipe, "seed": seed, **row, "last": row["step"] == _STEPS[size]}


def _claims(rows: Rows) -> list[PublishedNumber]:
    return []


def _findings(rows: Rows) -> list[str]:
    found, ends = [], pick(rows, last=True)
    for arch in dict.fromkeys(row["arch"] for row in ends):
        there = pick(ends, arch=arch)
        plain = {row["seed"]: row["held_out"] for row in pick(there, recipe="bf16")}
        found.append(f"{arch}, bf16: held-out loss {_listed(list(plain.values()))} nats a byte after {there[0]['step']} steps.")
        for recipe in dict.fromkeys(row["recipe"] for row in there):
            more = [row["held_out"] - plain[row["seed"]] for row in pick(there, recipe=recipe)]
            if recipe != "bf16":
                found.append(f"{arch}, {recipe}: {_listed(more, '+')} beside bf16.")
    return found


def _listed(values: list[float], sign: str = "") -> str:
    return " and ".join(f"{value:{sign}.3f}" for value in values) + (f" (mean {np.mean(values):{sign}.3f})" if len(values) > 1 else "")


STUDY: Final = Shipped(
    name="training",
    title="A small language model, trained through quantization",
    question="What do FP8, MXFP8 and NVFP4 recipes of training do to the loss, beside bf16?",
    measured="A transformer of three blocks, 128 wide (quick: two, 64 wide), 200 steps of AdamW (quick: 20) on 256 bytes each of a made-up language. The linear layers of "
    "its blocks train by the recipe in all three products, with the instructions of the architecture; attention and the output layer are bf16, by its "
    "bf16 instruction; NVFP4's recipe keeps the last block in bf16. Weights begin alike and data are the same for all recipes of a seed.",
    points=_points,
    at=_at,
    charts=(
        Chart(
            title="sm_100a: loss of the batches, means of ten steps", x="step", y="loss", series="recipe", x_label="step", y_label="nats a byte",
            caption="One seed. In the quick size a point is the mean of four.", where={"arch": "sm_100a", "seed": 0}, linear=True,
        ),
        Chart(
            title="Held-out loss at the end", x="recipe", y="held_out", series="arch", x_label="", y_label="nats a byte", bars=True,
            caption="One seed, the same as above.", where={"last": True, "seed": 0},
        ),
    ),
    claims=_claims,
    findings=_findings,
    limits="Minutes of training of a model of under a million weights: differences below the spread between seeds say nothing, and what shows only "
    "after many tokens does not show here. Embeddings, norms, softmax and the optimizer are float32 by torch, whose last bits differ between "
    "processors; a loss is therefore not the same to the last digit everywhere, though each product is. Published runs are far larger; none can be reproduced.",
)  # fmt: skip
