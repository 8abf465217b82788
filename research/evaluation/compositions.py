"""Linear layers that `evaluate` multiplies by the compositions of mmabits.kernels.schemes, as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.kernels.schemes import asymmetric, fp8, fp8_blockwise, mxfp6_mxfp4, mxfp8, w4a4, w4a8, w4a8_fp8, w4a16, w8a8, w8a16
from mmabits.kernels.schemes.dots import Dots

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Composition:
    """How a layer's weights are stored, and what its rows are multiplied by."""

    name: str
    what: str
    store: Callable[[Floats], Any]
    """Weights (K, N) as the scheme stores them."""
    multiply: Callable[[Array, Any, Dots], Array]
    """(M, K) activations, stored weights and dots to (M, N) float32."""
    is_half: bool = False
    """Whether activations come as they are, in float16 or bfloat16 (float32 as bfloat16); else in float32, to be quantized."""
    is_finite: bool = False
    """Whether activations that are infinite or NaN have no codes."""
    k: int = 1
    """What divides K."""
    largest_k: int | None = None
    """Beyond which sums might not be exact."""


def _fp8_e5m2(x: Array, w: Any, dots: Dots) -> Array:
    return fp8.fp8_matmul(fp8.quantize(x, format="e5m2"), w, arch=dots)


def _fp8_tiles(x: Array, w: Any, dots: Dots) -> Array:
    given = fp8_blockwise.quantize_activations(x, recipe="power-of-two")
    return fp8_blockwise.fp8_blockwise_matmul(given, w, arch=dots)


def _mixed(x: Array, w: Any, dots: Dots) -> Array:
    return mxfp6_mxfp4.mx_matmul(mxfp8.quantize_rows(x), w, arch=dots)


def _int8_affine(x: Array, w: Any, dots: Dots) -> Array:
    return asymmetric.asymmetric_matmul(asymmetric.quantize_affine(x, axis=0), w, arch=dots)


def _w4a8(x: Array, w: Any, dots: Dots) -> Array:
    return w4a8.w4a8_matmul(w8a8.quantize_int8(x, axis=0), w, arch=dots)


def _w4a8_fp8(x: Array, w: Any, dots: Dots) -> Array:
    return w4a8_fp8.w4a8_fp8_matmul(fp8.quantize(x, per="row"), w, arch=dots)


def _w4a4(x: Array, w: Any, dots: Dots) -> Array:
    return w4a4.w4a4_matmul(w4a4.quantize_int4_symmetric(x, axis=0), w, arch=dots)


def _w4a16(x: Array, w: Any, dots: Dots) -> Array:
    return w4a16.w4a16_matmul(x, w, arch=dots)


def _w8a16(x: Array, w: Any, dots: Dots) -> Array:
    return w8a16.w8a16_matmul(x, w, arch=dots)


def _quantize_w8(kind: str, group: int) -> Callable[[Floats], Any]:
    return lambda weights: w8a16.quantize_w8(weights, kind=kind, group=group)


def _rows() -> Iterator[Composition]:
    yield Composition(
        name="fp8-e5m2", what="e5m2, a scale for each operand", store=lambda weights: fp8.quantize(weights, format="e5m2"),
        multiply=_fp8_e5m2,
    )  # fmt: skip
    yield Composition(
        name="fp8-tiles-power-of-two", what="e4m3 in tiles of 1 x 128 and 128 x 128, scales powers of two",
        store=lambda weights: fp8_blockwise.quantize_weights(weights, recipe="power-of-two"), multiply=_fp8_tiles, k=128,
    )  # fmt: skip
    yield Composition(
        name="mxfp8-mxfp4", what="activations in MXFP8, weights in MXFP4", store=mxfp6_mxfp4.quantize_columns, multiply=_mixed, k=32
    )
    yield Composition(
        name="int8-asymmetric", what="u8 x s8, a scale and a zero point for each row and output channel",
        store=lambda weights: asymmetric.quantize_affine(weights, axis=1, dtype=np.int8), multiply=_int8_affine, is_finite=True,
        largest_k=asymmetric.largest_k(True),
    )  # fmt: skip
    yield Composition(
        name="int8-asymmetric-a", what="u8 x s8, zero points of activations alone",
        store=lambda weights: w8a8.quantize_int8(weights, axis=1), multiply=_int8_affine, is_finite=True,
        largest_k=asymmetric.largest_k(False),
    )  # fmt: skip
    yield Composition(
        name="w4a8", what="activations in int8, weights in INT4 with f16 scales for 128 of K, made INT8", store=w4a8.quantize_w4a8,
        multiply=_w4a8, is_finite=True, k=w4a16.GROUP,
    )  # fmt: skip
    yield Composition(
        name="w4a8-fp8", what="activations in e4m3 by row, weights in INT4 with f16 scales for 128 of K, made e4m3",
        store=w4a8_fp8.quantize_w4a8_fp8, multiply=_w4a8_fp8, k=w4a16.GROUP,
    )  # fmt: skip
    yield Composition(
        name="w4a4", what="INT4, a scale for each row and output channel",
        store=lambda weights: w4a4.quantize_int4_symmetric(weights, axis=1), multiply=_w4a4, is_finite=True,
    )  # fmt: skip
    yield Composition(
        name="w4a16-symmetric", what="INT4 weights in groups of 128 without zero points, dequantized",
        store=lambda weights: w4a16.quantize_int4(weights, symmetric=True), multiply=_w4a16, is_half=True, k=w4a16.GROUP,
    )  # fmt: skip
    for kind in w8a16.KINDS:
        yield Composition(
            name=f"w8a16-{kind}", what=f"{kind} weights, f16 scales for output channels", store=_quantize_w8(kind, 0), multiply=_w8a16,
            is_half=True,
        )  # fmt: skip
        yield Composition(
            name=f"w8a16-{kind}-groups", what=f"{kind} weights in groups of 128, dequantized", store=_quantize_w8(kind, w8a16.GROUP),
            multiply=_w8a16, is_half=True, k=w8a16.GROUP,
        )  # fmt: skip


COMPOSITIONS: Final = tuple(_rows())
"""One row a recipe."""
