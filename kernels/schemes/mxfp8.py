"""MXFP8: e4m3 or e5m2 in blocks of 32 with a ue8m0 scale each."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.isa import FormatSpec, OperandError, format_spec
from mmabits.kernels.quantize import quantize_mx
from mmabits.kernels.schemes.blocks import Both, ColumnBlocks, RowBlocks, block_scaled_matmul
from mmabits.kernels.schemes.checks import checked
from mmabits.kernels.schemes.dots import Dots

Floats = npt.NDArray[np.float32]

FORMATS: Final = ("e4m3", "e5m2")


def _matrix(values: npt.NDArray[Any], format: str | FormatSpec) -> npt.NDArray[Any]:
    spec = format_spec(format)
    if spec.name not in FORMATS:
        raise OperandError(f"MXFP8 has no elements of {spec.name}; it has {', '.join(FORMATS)}")
    return checked(values, "values", (np.float32,), 2)


def quantize_rows(values: npt.NDArray[Any], *, format: str | FormatSpec = "e4m3", recipe: str = "floor") -> RowBlocks:
    """A left operand.

    Args:
        values: (M, K) float32, K a multiple of 32; nothing that is quantized already.
        format: `"e4m3"` or `"e5m2"`.
        recipe: as for `quantize_mx`: `"floor"`, `"ceil"`, `"even"` or `"rceil"`.

    Raises:
        OperandTypeError, OperandError: as `quantize_mx`.
    """
    return RowBlocks.of(quantize_mx(_matrix(values, format), format=format, recipe=recipe, axis=1))


def quantize_columns(values: npt.NDArray[Any], *, format: str | FormatSpec = "e4m3", recipe: str = "floor") -> ColumnBlocks:
    """A right operand, (K, N) with K a multiple of 32; otherwise as `quantize_rows`."""
    return ColumnBlocks.of(quantize_mx(_matrix(values, format), format=format, recipe=recipe, axis=0))


def quantize_both(values: npt.NDArray[Any], *, format: str | FormatSpec = "e4m3", recipe: str = "floor") -> Both:
    """A matrix that is used in products both ways: two copies, both quantized from `values`.

    Args:
        values: (R, C) float32, both multiples of 32.
        format: `"e4m3"` or `"e5m2"`.
        recipe: as for `quantize_mx`.

    Raises:
        OperandTypeError, OperandError: as `quantize_mx`.
    """
    return Both(rows=quantize_rows(values, format=format, recipe=recipe), columns=quantize_columns(values, format=format, recipe=recipe))


def mxfp8_matmul(a: RowBlocks, b: ColumnBlocks, *, arch: str | Dots, through: str | None = None) -> Floats:
    """A B; arguments and errors as `blocks.block_scaled_matmul`."""
    return block_scaled_matmul(a, b, arch=arch, through=through)


def linear(x: Both, w: Both, *, arch: str | Dots) -> Floats:
    """The product x w: rows of x (M, K), columns of w (K, N); blocks along K."""
    return mxfp8_matmul(x.rows, w.columns, arch=arch)


def linear_gradients(grad: Both, x: Both, w: Both, *, arch: str | Dots) -> tuple[Floats, Floats]:
    """The gradients of x and w from that of y = x w, without quantizing anything twice.

    The first sums over N, so it takes the rows of the gradient and those of w; the second over M, so it takes columns of both.

    Args:
        grad: (M, N).
        x: (M, K).
        w: (K, N).
        arch: architecture, or its dots.

    Returns:
        (M, K) and (K, N) float32.

    Raises:
        MmabitsError: as `blocks.block_scaled_matmul`.
    """
    return mxfp8_matmul(grad.rows, w.rows.T, arch=arch), mxfp8_matmul(x.columns.T, grad.columns, arch=arch)
