"""Ways to bring float32 matrices to a tensor core, as rows: what is stored, and what the product is scaled by afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.codecs import decode
from mmabits.isa import OperandError, nearest
from mmabits.kernels.quantize import Quantized, quantize_fp8, quantize_mx, quantize_nvfp4

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """A matrix as it is stored for the product."""

    elements: npt.NDArray[Any]
    """What the instruction reads."""
    scales: npt.NDArray[Any] | None
    """Its block scales."""
    factor: float
    """What the product is multiplied by afterwards."""
    values: Doubles
    """What the stored matrix stands for, exactly, `factor` included."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way."""

    name: str
    what: str
    quantize: Callable[[Floats, int], Stored]
    """(matrix, axis of K) to what is stored."""
    block: int = 1
    """Elements of K that share a scale; K is a multiple of it."""


def _plain(dtype: Any) -> Callable[[Floats, int], Stored]:
    def quantize(values: Floats, axis: int) -> Stored:
        with np.errstate(over="ignore"):
            elements = values.astype(dtype)
        return Stored(elements=elements, scales=None, factor=1.0, values=elements.astype(np.float64))

    return quantize


def _stored(found: Quantized, axis: int) -> Stored:
    values = decode(found.elements, found.element)
    if found.scales is not None and found.scale is not None and found.block is not None:
        values = values * np.repeat(decode(found.scales, found.scale), found.block, axis=axis)
    factor = float(found.tensor_scale)
    return Stored(elements=found.elements, scales=found.scales, factor=factor, values=values * factor)


def _fp8(form: str) -> Callable[[Floats, int], Stored]:
    return lambda values, axis: _stored(quantize_fp8(values, format=form), axis)


def _mx(form: str, recipe: str) -> Callable[[Floats, int], Stored]:
    return lambda values, axis: _stored(quantize_mx(values, format=form, recipe=recipe, axis=axis), axis)


def _nvfp4(values: Floats, axis: int) -> Stored:
    return _stored(quantize_nvfp4(values, axis=axis), axis)


def _rows() -> tuple[Recipe, ...]:
    plain = (
        Recipe(name="f16", what="float16", quantize=_plain(np.float16)),
        Recipe(name="bf16", what="bfloat16", quantize=_plain(ml_dtypes.bfloat16)),
        Recipe(name="fp8", what="e4m3, one float32 scale a matrix", quantize=_fp8("e4m3")),
        Recipe(name="fp8-e5m2", what="e5m2, one float32 scale a matrix", quantize=_fp8("e5m2")),
    )
    forms = {"mxfp8": "e4m3", "mxfp8-e5m2": "e5m2", "mxfp6-e3m2": "e3m2", "mxfp6-e2m3": "e2m3", "mxfp4": "e2m1"}
    scaled = tuple(
        Recipe(
            name=name if recipe == "floor" else f"{name}-{recipe}",
            what=f"{form} in blocks of 32, ue8m0 scales ({recipe})",
            quantize=_mx(form, recipe),
            block=32,
        )
        for name, form in forms.items()
        for recipe in ("floor", "ceil", "even", "rceil")
    )
    nvfp4 = Recipe(name="nvfp4", what="e2m1 in blocks of 16, e4m3 scales and a float32 scale a matrix", quantize=_nvfp4, block=16)
    return (*plain, *scaled, nvfp4)


RECIPES: Final = {row.name: row for row in _rows()}
"""Every recipe by its name."""


def recipe_named(name: str | Recipe) -> Recipe:
    """The recipe of that name.

    Raises:
        OperandError: there is none.
    """
    if isinstance(name, Recipe):
        return name
    if name not in RECIPES:
        raise OperandError(f"unknown recipe {name!r}{nearest(str(name), RECIPES)}; known: {', '.join(RECIPES)}")
    return RECIPES[name]
