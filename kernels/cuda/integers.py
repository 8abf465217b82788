"""u8 x s8 with zero points, and s4 x s4: `integers.cu`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandError
from mmabits.kernels.cuda.sources import module
from mmabits.kernels.schemes.asymmetric import AffineMatrix, check_sums
from mmabits.kernels.schemes.checks import check_multiple
from mmabits.kernels.schemes.w4a4 import Int4Matrix
from mmabits.kernels.schemes.w8a8 import Int8Matrix

_ROWS, _COLUMNS = 64, 8
"""Of a CTA."""


def asymmetric_matmul(x: AffineMatrix, w: AffineMatrix | Int8Matrix, *, arch: str) -> npt.NDArray[np.float32]:
    """u8 activations times s8 weights: the bits of `schemes.asymmetric.asymmetric_matmul`.

    Args:
        x: (M, K) uint8, by row; K a multiple of 32.
        w: (K, N) int8, by column, with zero points or without; N a multiple of 8.
        arch: architecture, or a GPU of it, from sm_80 on.

    Returns:
        (M, N) float32.

    Raises:
        OperandError: operands that do not fit, a K whose sums may leave s32.
        MmabitsError: as `mmabits.compile_cuda`, and of its kernels.
    """
    if (x.axis, w.axis) != (0, 1) or x.codes.dtype != np.uint8 or w.codes.dtype != np.int8:
        raise OperandError(
            f"the kernel takes uint8 codes by row and int8 by column, got {x.codes.dtype} (axis {x.axis}) and {w.codes.dtype} "
            f"(axis {w.axis})"
        )
    m, n, k = _sizes(x.codes.shape, w.codes.shape, 32)
    check_sums(k, isinstance(w, AffineMatrix))
    out = np.zeros((m, n), np.float32)
    if 0 in (m, n, k):
        return out
    zeros = w.zeros if isinstance(w, AffineMatrix) else np.zeros(n, np.int32)
    module("integers", arch, since=80)["asymmetric"](
        (n // _COLUMNS, -(-m // _ROWS)), 128, np.ascontiguousarray(x.codes), x.scales, x.zeros, np.ascontiguousarray(w.codes.T), w.scales,
        w.codes.sum(axis=0, dtype=np.int32), zeros, out, m, n, k,
    )  # fmt: skip
    return out


def w4a4_matmul(x: Int4Matrix, w: Int4Matrix, *, arch: str) -> npt.NDArray[np.float32]:
    """INT4 activations times INT4 weights by `mma.m16n8k64.s4`: the bits of `schemes.w4a4.w4a4_matmul`.

    Args:
        x: (M, K), by row; K a multiple of 64.
        w: (K, N), by column; N a multiple of 8.
        arch: architecture, or a GPU of it, from sm_80 on.

    Returns:
        (M, N) float32.

    Raises:
        OperandError: operands that do not fit.
        MmabitsError: as `mmabits.compile_cuda`, and of its kernels.
    """
    if (x.axis, w.axis) != (0, 1):
        raise OperandError(f"the kernel takes activations by row and weights by column, got axes {x.axis} and {w.axis}")
    m, n, k = _sizes(x.codes.shape, w.codes.shape, 64)
    out = np.zeros((m, n), np.float32)
    if 0 in (m, n, k):
        return out
    module("integers", arch, since=80)["w4a4"](
        (n // _COLUMNS, -(-m // _ROWS)), 128, x.pack(), x.scales, w.pack(), w.scales, out, m, n, k // 2
    )
    return out


def _sizes(x: tuple[int, ...], w: tuple[int, ...], step: int) -> tuple[int, int, int]:
    if x[1] != w[0]:
        raise OperandError(f"activations of shape {x} and weights of shape {w} do not have the same K")
    check_multiple(x[1], step, "K", "the instruction's")
    check_multiple(w[1], _COLUMNS, "N", "the kernel's tile")
    return x[0], w[1], x[1]
