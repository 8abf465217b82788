"""FP8 in tiles with wgmma, TMA and a promotion with every 128 of K, as DeepGEMM: `fp8_blockwise.cu`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmabits.emulator.cuda.maps import tensor_map
from mmabits.isa import OperandError
from mmabits.kernels.cuda.sources import module
from mmabits.kernels.schemes.checks import check_multiple
from mmabits.kernels.schemes.fp8_blockwise import BLOCK, TiledFp8

TILE = 64
STAGES = 4
_SHARED = STAGES * 2 * TILE * BLOCK


def fp8_blockwise_matmul(x: TiledFp8, w: TiledFp8, *, arch: str = "sm_90a") -> npt.NDArray[np.float32]:
    """A B: the bits of `schemes.fp8_blockwise.fp8_blockwise_matmul`.

    Args:
        x: (M, K) e4m3 in tiles of 1 x 128.
        w: (K, N) e4m3 in tiles of 128 x 128.
        arch: sm_90a, or a GPU of it.

    Returns:
        (M, N) float32.

    Raises:
        OperandError: operands that do not fit.
        MmabitsError: as `mmabits.compile_cuda`, and of its kernels.
    """
    (m, k), (k_w, n) = x.elements.shape, w.elements.shape
    if k != k_w or x.tile != (1, BLOCK) or w.tile != (BLOCK, BLOCK):
        raise OperandError(f"operands of shape {(m, k)} in tiles of {x.tile} and {(k_w, n)} in tiles of {w.tile} do not fit")
    if "e4m3" not in x.elements.dtype.name or "e4m3" not in w.elements.dtype.name:
        raise OperandError(f"the kernel takes e4m3, got {x.elements.dtype} and {w.elements.dtype}")
    check_multiple(k, BLOCK, "K", "the block size")
    out = np.zeros((m, n), np.float32)
    if 0 in (m, n, k):
        return out
    maps = [
        tensor_map(np.ascontiguousarray(each).view(np.uint8), box=(TILE, BLOCK), swizzle=128) for each in (x.elements, w.elements.T)
    ]  # fmt: skip
    kernel = module("fp8_blockwise", arch, since=90, until=90)["fp8_blockwise"]
    kernel((-(-n // TILE), -(-m // TILE)), 160, *maps, x.scales, w.scales, out, m, n, k, shared=_SHARED)
    return out
