"""W4A16 with Marlin's arithmetic: `w4a16.cu`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandError
from mmabits.kernels.cuda.sources import module
from mmabits.kernels.schemes.checks import Array, check_multiple
from mmabits.kernels.schemes.w4a16 import Int4Weights, check_activations

TILE = 64
STAGES = 4
_SHARED = STAGES * (TILE * TILE * 2 + TILE // 16 * (TILE // 16) * 128)
_NIBBLES = ((0, 0), (4, 1), (1, 8), (5, 9))
"""Where the codes of 8 columns lie in a word, and which of K they are, from the lane's first: two that go into one register, and two that
go into the next."""


def pack(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Codes (K, N) as words [K / 16][N / 16][32]: what each lane multiplies.

    Raises:
        OperandError: a K or N that 16 does not divide.
    """
    k, n = codes.shape
    check_multiple(k, 16, "K", "a fragment")
    check_multiple(n, 16, "N", "two fragments")
    tiles = codes.reshape(k // 16, 16, n // 16, 16).transpose(0, 2, 1, 3).astype(np.uint32)
    lane = np.arange(32)
    words = np.zeros((k // 16, n // 16, 32), np.uint32)
    for half in range(2):
        for nibble, row in _NIBBLES:
            words |= tiles[:, :, lane % 4 * 2 + row, 8 * half + lane // 4] << np.uint32(4 * (nibble + 2 * half))
    return words


def w4a16_matmul(x: Array, weights: Int4Weights, *, arch: str) -> npt.NDArray[np.float32]:
    """Activations times INT4 weights: the bits of `schemes.w4a16.w4a16_matmul` with the dots of `mma.sync.m16n8k16`.

    Args:
        x: (M, K) float16.
        weights: (K, N), both multiples of 64, and the group too; without `g_idx`.
        arch: architecture, or a GPU of it, from sm_80 on.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: operands that do not fit.
        MmabitsError: as `mmabits.compile_cuda`, and of its kernels.
    """
    given = check_activations(x, weights.shape[0])
    if given.dtype != np.float16:
        raise OperandError(f"the kernel takes float16 activations, got {given.dtype}")
    if weights.g_idx is not None:
        raise OperandError("the kernel takes groups in order, without g_idx")
    (m, k), n = given.shape, weights.shape[1]
    for size, name in ((k, "K"), (n, "N"), (weights.group, "the group size")):
        check_multiple(size, TILE, name, "the kernel's tile")
    out = np.zeros((m, n), np.float32)
    if 0 in (m, n, k):
        return out
    kernel = module("w4a16", arch, since=80)["w4a16"]
    kernel(
        (n // TILE, -(-m // TILE)), 128, np.ascontiguousarray(given), pack(weights.codes), weights.scales, weights.zeros, out, m, n, k,
        weights.group, shared=_SHARED,
    )  # fmt: skip
    return out
