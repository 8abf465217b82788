"""Ways to bring float32 matrices to a tensor core, as rows: what is stored, and what the product is scaled by afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.codecs import decode
from mmabits.isa import OperandError, nearest
from mmabits.kernels.quantize import Quantized, quantize_fp8, quantize_mx, quantize_nvfp4
from mmabits.kernels.schemes import asymmetric, fp8, fp8_blockwise, w4a4, w4a8, w4a8_fp8, w4a16, w8a8, w8a16

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """A matrix as it is stored for the product."""

    elements: npt.NDArray[Any]
    """What the instruction reads."""
    scales: npt.NDArray[Any] | None
    """Its block scales."""
    factor: float | Doubles
    """What the product is multiplied by afterwards: one number, (M, 1) of A's rows or (1, N) of B's columns."""
    values: Doubles
    """What the stored matrix stands for, exactly, `factor`, `parts` and `zeros` included."""
    parts: Floats | None = None
    """Scales that kernels apply to partial sums: (M, K / block) of A or (K / block, N) of B. Each block then starts from zero on the tensor
    cores, and `total = fma(sum, scale of A * scale of B, total)` in float32."""
    zeros: npt.NDArray[np.int64] | None = None
    """Zero points of integer elements, (M, 1) or (1, N): sums are corrected for them, exactly."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way."""

    name: str
    what: str
    quantize: Callable[[Floats, int], Stored]
    """(matrix, axis of K) to what is stored."""
    block: int = 1
    """Elements of K that share a scale; K is a multiple of it."""
    whole: bool = True
    """The product is multiplied by one number; others have a number for each row or column, scale partial sums, or correct for zeros."""


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


def _scaled(elements: npt.NDArray[Any], scales: Floats, axis: int, zeros: npt.NDArray[np.int32] | None = None) -> Stored:
    """Elements with a scale for each row of A, or each column of B, or one for all."""
    shape = (-1, 1) if axis == -1 else (1, -1)
    factor = scales.astype(np.float64).reshape(shape)
    points = None if zeros is None else zeros.astype(np.int64).reshape(shape)
    plain = elements.astype(np.float64) if points is None else elements.astype(np.float64) - points
    return Stored(elements=elements, scales=None, factor=factor, values=plain * factor, zeros=points)


def _fp8_rows(values: Floats, axis: int) -> Stored:
    found = fp8.quantize(values, per="row" if axis == -1 else "column")
    return _scaled(found.elements, found.scales, axis)


def _fp8_tiles(recipe: str) -> Callable[[Floats, int], Stored]:
    def quantize(values: Floats, axis: int) -> Stored:
        found = (fp8_blockwise.quantize_activations if axis == -1 else fp8_blockwise.quantize_weights)(values, recipe=recipe)
        parts = found.scales if axis == -1 else np.repeat(found.scales, fp8_blockwise.BLOCK, axis=1)[:, : values.shape[1]]
        exact = found.elements.astype(np.float64) * found.element_scales()
        return Stored(elements=found.elements, scales=None, factor=1.0, values=exact, parts=np.ascontiguousarray(parts))

    return quantize


def _int8(values: Floats, axis: int) -> Stored:
    found = w8a8.quantize_int8(values, axis=0 if axis == -1 else 1)
    return _scaled(found.codes, found.scales, axis)


def _int8_affine(values: Floats, axis: int) -> Stored:
    is_left = axis == -1
    found = asymmetric.quantize_affine(values, axis=0 if is_left else 1, dtype=np.uint8 if is_left else np.int8)
    return _scaled(found.codes, found.scales, axis, found.zeros)


def _int8_affine_activations(values: Floats, axis: int) -> Stored:
    return (_int8_affine if axis == -1 else _int8)(values, axis)


def _int4(values: Floats, axis: int) -> Stored:
    found = w4a4.quantize_int4_symmetric(values, axis=0 if axis == -1 else 1)
    return _scaled(found.codes, found.scales, axis)


def _w4a8(values: Floats, axis: int) -> Stored:
    if axis == -1:
        return _int8(values, axis)
    found = w4a8.quantize_w4a8(values)
    return _scaled(found.int8(), found.output_scales, axis)


def _w4a8_fp8(values: Floats, axis: int) -> Stored:
    if axis == -1:
        return _fp8_rows(values, axis)
    found = w4a8_fp8.quantize_w4a8_fp8(values)
    exact = found.codes.astype(np.float64) * np.repeat(found.scales.astype(np.float64), found.group, axis=0)
    return Stored(elements=found.e4m3(), scales=None, factor=1.0, values=exact, parts=found.kernel_scales.astype(np.float32))


def _weights_only(dtype: Any, dequantized: Callable[[Floats, Any], npt.NDArray[Any]]) -> Callable[[Floats, int], Stored]:
    """A in f16 or bf16; B narrow, dequantized to the same type in registers."""
    plain = _plain(dtype)

    def quantize(values: Floats, axis: int) -> Stored:
        if axis == -1:
            return plain(values, axis)
        elements = dequantized(values, dtype)
        return Stored(elements=elements, scales=None, factor=1.0, values=elements.astype(np.float64))

    return quantize


def _int4_weights(symmetric: bool) -> Callable[[Floats, Any], npt.NDArray[Any]]:
    def dequantized(values: Floats, to: Any) -> npt.NDArray[Any]:
        return w4a16.quantize_int4(values, symmetric=symmetric).dequantize(to)

    return dequantized


def _grouped_weights(kind: str) -> Callable[[Floats, Any], npt.NDArray[Any]]:
    def dequantized(values: Floats, to: Any) -> npt.NDArray[Any]:
        return w8a16.quantize_w8(values, kind=kind, group=w8a16.GROUP).operand(to)

    return dequantized


def _w8_channels(kind: str, dtype: Any) -> Callable[[Floats, int], Stored]:
    """A in f16 or bf16; B's codes in it, exactly, and the channels' scales on the sums."""
    plain = _plain(dtype)

    def quantize(values: Floats, axis: int) -> Stored:
        if axis == -1:
            return plain(values, axis)
        found = w8a16.quantize_w8(values, kind=kind)
        return _scaled(found.operand(dtype), found.scales.astype(np.float32), axis)

    return quantize


def _mxfp8_by_mxfp4(values: Floats, axis: int) -> Stored:
    return _mx("e4m3" if axis == -1 else "e2m1", "floor")(values, axis)


def _schemes() -> Iterator[Recipe]:
    """Those of mmabits.kernels.schemes in which A and B, or rows and columns, are not alike."""
    yield Recipe(name="fp8-rowwise", what="e4m3, a float32 scale for each row of A and column of B", quantize=_fp8_rows, whole=False)
    tiles = "e4m3, float32 scales for 1 x 128 of A and 128 x 128 of B, promoted every 128"
    yield Recipe(name="fp8-tiles", what=tiles, quantize=_fp8_tiles("divide"), block=128, whole=False)
    yield Recipe(
        name="fp8-tiles-power-of-two", what=f"{tiles}; powers of two", quantize=_fp8_tiles("power-of-two"), block=128, whole=False
    )  # fmt: skip
    yield Recipe(name="mxfp8-mxfp4", what="A in MXFP8, B in MXFP4", quantize=_mxfp8_by_mxfp4, block=32)
    yield Recipe(name="int8", what="int8, a float32 scale for each row of A and column of B", quantize=_int8, whole=False)
    yield Recipe(
        name="int8-asymmetric",
        what="u8 x s8, a scale and a zero point for each row of A and column of B",
        quantize=_int8_affine,
        whole=False,
    )
    yield Recipe(name="int8-asymmetric-a", what="u8 x s8, zero points of A alone", quantize=_int8_affine_activations, whole=False)
    yield Recipe(name="w4a8", what="A in int8, B in INT4 with f16 scales for 128 of K, made INT8", quantize=_w4a8, block=128, whole=False)
    yield Recipe(
        name="w4a8-fp8", what="A in e4m3 by row, B in INT4 with f16 scales for 128 of K, made e4m3",
        quantize=_w4a8_fp8, block=128, whole=False,
    )  # fmt: skip
    yield Recipe(name="w4a4", what="INT4, a float32 scale for each row of A and column of B", quantize=_int4, whole=False)
    for name, dtype in (("f16", np.float16), ("bf16", ml_dtypes.bfloat16)):
        ending, kind = "" if name == "f16" else "-bf16", f"A in {name}, B"
        for way, symmetric in (("w4a16", False), ("w4a16-symmetric", True)):
            yield Recipe(
                name=f"{way}{ending}", what=f"{kind} in INT4 with f16 scales for 128 of K{', no zero points' if symmetric else ''}",
                quantize=_weights_only(dtype, _int4_weights(symmetric)),
                block=128,
            )  # fmt: skip
        for form in w8a16.KINDS:
            yield Recipe(
                name=f"w8a16-{form}{ending}",
                what=f"{kind} in {form}, f16 scales for channels",
                quantize=_w8_channels(form, dtype),
                whole=False,
            )
            yield Recipe(
                name=f"w8a16-{form}-groups{ending}", what=f"{kind} in {form}, f16 scales for 128 of K",
                quantize=_weights_only(dtype, _grouped_weights(form)),
                block=128,
            )  # fmt: skip


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
    return (*plain, *scaled, nvfp4, *_schemes())


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
