"""W8A16, and W4A8 with FP8 activations: `narrow_weights.cu`."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandError
from mmabits.kernels.cuda.sources import module
from mmabits.kernels.schemes.checks import Array, check_multiple
from mmabits.kernels.schemes.fp8 import Fp8Matrix
from mmabits.kernels.schemes.w4a8_fp8 import W4A8Fp8Weights
from mmabits.kernels.schemes.w4a16 import check_activations
from mmabits.kernels.schemes.w8a16 import Weights8

_ROWS, _COLUMNS = 64, 8
"""Of a CTA."""


def _check(k: int, n: int, group: int, step: int) -> None:
    check_multiple(k, step, "K", "the instruction's")
    check_multiple(n, _COLUMNS, "N", "the kernel's tile")
    if group:
        check_multiple(group, step, "the group size", "the instruction's K")


def w8a16_matmul(x: Array, weights: Weights8, *, arch: str) -> npt.NDArray[np.float32]:
    """Activations times 8-bit weights: the bits of `schemes.w8a16.w8a16_matmul` with the dots of `mma.sync.m16n8k16`.

    Args:
        x: (M, K) float16 or bfloat16; K a multiple of 16.
        weights: (K, N), N a multiple of 8, groups of 16; or without groups.
        arch: architecture, or a GPU of it, from sm_80 on.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: operands that do not fit.
        MmabitsError: as `mmabits.compile_cuda`, and of its kernels.
    """
    given = check_activations(x, weights.codes.shape[0])
    (m, k), n = given.shape, weights.codes.shape[1]
    _check(k, n, weights.group, 16)
    out = np.zeros((m, n), np.float32)
    if 0 in (m, n, k):
        return out
    kernel = module("narrow_weights", arch, since=80)[f"w8a16_{given.dtype.name}_{weights.kind}"]
    kernel(
        (n // _COLUMNS, -(-m // _ROWS)), 128, np.ascontiguousarray(given).view(np.uint16), weights.pack(),
        np.ascontiguousarray(weights.scales), out, m, n, k, weights.group,
    )  # fmt: skip
    return out


def w4a8_fp8_matmul(x: Fp8Matrix, weights: W4A8Fp8Weights, *, arch: str) -> npt.NDArray[np.float32]:
    """e4m3 activations times INT4 weights: the bits of `schemes.w4a8_fp8.w4a8_fp8_matmul` with the dots of `mma.sync.m16n8k32`.

    Args:
        x: (M, K) e4m3 with a scale for each row or one for all; K a multiple of 32.
        weights: (K, N), N a multiple of 8, groups of 32; or without groups.
        arch: architecture, or a GPU of it, from sm_89 on.

    Returns:
        (M, N) float32.

    Raises:
        OperandError: operands that do not fit.
        MmabitsError: as `mmabits.compile_cuda`, and of its kernels.
    """
    (m, k), n = x.elements.shape, weights.codes.shape[1]
    if x.elements.dtype != ml_dtypes.float8_e4m3fn or k != weights.codes.shape[0]:
        raise OperandError(f"activations must be (M, {weights.codes.shape[0]}) of float8_e4m3fn, got {(m, k)} of {x.elements.dtype}")
    if x.scales.shape not in ((m, 1), (1, 1)):
        raise OperandError(f"scales of the activations must be ({m}, 1) or (1, 1), got {x.scales.shape}")
    _check(k, n, weights.group, 32)
    out = np.zeros((m, n), np.float32)
    if 0 in (m, n, k):
        return out
    rows = np.ascontiguousarray(np.broadcast_to(x.scales.reshape(-1), (m,)))
    module("narrow_weights", arch, since=89)["w4a8_fp8"](
        (n // _COLUMNS, -(-m // _ROWS)), 128, np.ascontiguousarray(x.elements).view(np.uint8), rows, weights.pack(),
        np.ascontiguousarray(weights.kernel_scales), out, m, n, k, weights.group,
    )  # fmt: skip
    return out
