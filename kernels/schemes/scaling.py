"""How the float32 scale of an FP8 tensor, row, column or tile follows from its largest magnitude, in the forms that are in use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.emulator.codecs import encode, from_codes
from mmabits.isa import FormatSpec
from mmabits.kernels.schemes.checks import row_named

Floats = npt.NDArray[np.float32]

_SMALLEST: Final = np.float32(2.0**-149)
_LARGEST: Final = np.finfo(np.float32).max
_SMALLEST_NORMAL: Final = np.finfo(np.float32).smallest_normal
_LIFT: Final = np.float32(2.0**24)
"""Raises any subnormal float32 scale to a normal one, whose reciprocal is finite."""


@dataclass(frozen=True, kw_only=True)
class ScaleRecipe:
    """One way to scale. Every operation is a single float32 one, rounded to nearest even, or a GPU's division (`over`).

    All are right for amax from the smallest normal float32, 2^-126, up: dequantized values differ from the given ones by the rounding
    of the elements. (`reciprocal-full` is so where the scale is normal: as on the GPU, the reciprocal of a smaller one may overflow.)
    Below, a scale has the fewer bits the smaller it is, and none is below 2^-149: the largest elements may come out too large and
    saturate, at two thirds of their value at worst.
    """

    name: str
    what: str
    scale: Callable[[Floats, np.float32], Floats]
    """The dequantizing scale from amax (positive) and the format's largest number."""
    multiplier: Callable[[Floats, np.float32], Floats] | None
    """What elements are multiplied by, from amax and the largest number; None: nothing that the scale does not give."""
    reciprocal: bool = False
    """Whether elements are multiplied by the reciprocal of the scale, and not divided by it: always so of static scales where there is a
    multiplier."""
    over: Callable[[Floats, Floats], Floats] | None = None
    """Elements over their scales where that is a GPU's division, and not IEEE's."""
    source: str


def _quotient(amax: Floats, largest: np.float32) -> Floats:
    return np.asarray(np.maximum(amax / largest, _SMALLEST))


def _inverse_quotient(amax: Floats, largest: np.float32) -> Floats:
    return np.asarray(np.minimum(largest / amax, _LARGEST))


def _power_of_two(amax: Floats, largest: np.float32) -> Floats:
    fraction, exponent = np.frexp(_quotient(amax, largest))
    return np.asarray(np.ldexp(np.float32(1), np.maximum(exponent - (fraction == np.float32(0.5)), -126)))


def _by_the_constant(amax: Floats, largest: np.float32) -> Floats:
    """A GPU's division by a constant: the compiler makes it a product by the rounded reciprocal."""
    return np.asarray(np.maximum(amax * (np.float32(1) / largest), _SMALLEST))


def _divided(values: Floats, scale: Floats) -> Floats:
    """A GPU's division, `div.full.f32`: a product by the special function unit's reciprocal. It is the same on all architectures."""
    from mmabits.emulator.machine.calls import function

    return np.asarray(function("div.full.f32", *np.broadcast_arrays(values, scale), arch="sm_80"), np.float32)


def _times_divided(values: Floats, scale: Floats) -> Floats:
    return np.asarray(values * _divided(np.ones_like(scale), scale))


def _inverted(scale: Floats) -> Floats:
    return np.asarray(np.minimum(np.float32(1) / scale, _LARGEST))


def _times_reciprocal(values: Floats, scale: Floats) -> Floats:
    """Values times 1 / scale. Where the scale is subnormal both are raised by 2^24 first, exactly: its own reciprocal may overflow."""
    lift = np.where(scale < _SMALLEST_NORMAL, _LIFT, np.float32(1))
    return np.asarray((values * lift) * (np.float32(1) / (scale * lift)))


RECIPES: Final[dict[str, ScaleRecipe]] = {
    row.name: row
    for row in (
        ScaleRecipe(
            name="divide", what="scale = amax / max; x / scale", scale=_quotient, multiplier=None,
            source="DeepSeek-V3's inference code (act_quant_kernel)",
        ),
        ScaleRecipe(
            name="reciprocal", what="scale = amax / max; x * (1 / scale), a subnormal scale and x raised by 2^24 first", scale=_quotient,
            multiplier=None, reciprocal=True, source="DeepGEMM (per_token_cast_to_fp8), vLLM",
        ),
        ScaleRecipe(
            name="multiply", what="m = max / amax; x * m; scale = 1 / m", multiplier=_inverse_quotient,
            scale=lambda amax, largest: _inverted(_inverse_quotient(amax, largest)), source="Transformer Engine, torchao",
        ),
        ScaleRecipe(
            name="power-of-two", what="scale = 2^ceil(log2(amax / max)), the quotient rounded first; at least 2^-126; x / scale, exact",
            scale=_power_of_two, multiplier=None, source="DeepGEMM with use_ue8m0, DeepSeek-V3.1",
        ),
        ScaleRecipe(
            name="divide-full", what="scale = amax * (1 / max); x / scale by div.full: what compilers make of `divide` without div.rn",
            scale=_by_the_constant, multiplier=None, over=_divided, source="DeepSeek-V3's inference code, compiled by Triton",
        ),
        ScaleRecipe(
            name="reciprocal-full", what="scale = amax * (1 / max), which should be normal; x * (1 / scale), the reciprocal by div.full",
            scale=_by_the_constant, multiplier=None, over=_times_divided, source="Triton kernels that multiply by 1 / scale",
        ),
    )
}  # fmt: skip
"""The recipes. Where amax is 0 the scale is 1."""


def scale_recipe(name: str) -> ScaleRecipe:
    """A recipe by its name.

    Raises:
        OperandError: no such recipe.
    """
    return row_named(RECIPES, name, "scale recipe")


def finite_amax(values: Floats, axis: int | tuple[int, ...] | None) -> Floats:
    """The largest finite magnitude along axes, which are kept; 0 where there is none."""
    with np.errstate(invalid="ignore"):
        magnitudes = np.where(np.isfinite(values), np.abs(values), np.float32(0))
    return np.asarray(np.max(magnitudes, axis=axis, keepdims=True, initial=np.float32(0)))


def dynamic(values: Floats, amax: Floats, spec: FormatSpec, recipe: ScaleRecipe) -> tuple[npt.NDArray[Any], Floats]:
    """Elements in their ml_dtypes type and scales, from the amax that each element belongs to.

    Args:
        values: float32.
        amax: float32 that broadcasts against `values`.
        spec: format of the elements.
        recipe: how.

    Returns:
        (elements of the shape of `values`, scales of the shape of `amax`).
    """
    largest = np.float32(spec.max_finite)
    with np.errstate(all="ignore"):
        known = np.where(amax > 0, amax, largest)  # any number whose scale is 1
        scales = np.where(amax > 0, recipe.scale(known, largest), np.float32(1)).astype(np.float32)
        if recipe.multiplier is not None:
            scaled = values * np.where(amax > 0, recipe.multiplier(known, largest), np.float32(1)).astype(np.float32)
        else:
            scaled = _over(values, scales, recipe)
    return from_codes(encode(scaled, spec, satfinite=True), spec), scales


def _over(values: Floats, scales: Floats, recipe: ScaleRecipe) -> Floats:
    if recipe.over is not None:
        return recipe.over(values, scales)
    return _times_reciprocal(values, scales) if recipe.reciprocal else np.asarray(values / scales)


def static(values: Floats, scales: Floats, spec: FormatSpec, recipe: ScaleRecipe) -> npt.NDArray[Any]:
    """Elements under scales that are given, positive and finite: divided by them, or multiplied by their float32 reciprocals."""
    with np.errstate(all="ignore"):
        scaled = _times_reciprocal(values, scales) if recipe.multiplier is not None else _over(values, scales, recipe)
    return from_codes(encode(scaled, spec, satfinite=True), spec)
