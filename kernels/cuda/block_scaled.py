"""MXFP8 and NVFP4 on tcgen05, scales in tensor memory, one CTA or two: `block_scaled.cu`."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.emulator.cuda.maps import ArrayMap, tensor_map
from mmabits.emulator.layouts import pack_fp4, swizzle_scales
from mmabits.isa import OperandError
from mmabits.kernels.cuda.sources import module
from mmabits.kernels.schemes.blocks import ColumnBlocks, RowBlocks, check_operands
from mmabits.kernels.schemes.checks import check_multiple

TILE: Final = 128
WIDTH: Final = 128
"""Bytes of K that a step takes."""
STAGES: Final = 3
_TYPES: Final = {"e4m3": 0, "e5m2": 1}


def _bytes(elements: npt.NDArray[Any], narrow: bool) -> npt.NDArray[np.uint8]:
    held = np.asarray(pack_fp4(np.ascontiguousarray(elements))) if narrow else np.ascontiguousarray(elements)
    return held.view(np.uint8)


def _scales(scales: npt.NDArray[Any], blocks: int) -> ArrayMap:
    """Blocks of 512 bytes as rows of a matrix."""
    held = np.ascontiguousarray(swizzle_scales(np.ascontiguousarray(scales))).view(np.uint32).reshape(-1, 128)
    return tensor_map(held, box=(blocks, 128))


def block_scaled_matmul(a: RowBlocks, b: ColumnBlocks, *, arch: str = "sm_100a", group: int = 1) -> npt.NDArray[np.float32]:
    """A B of MXFP8 or NVFP4: the bits of `schemes.mxfp8.mxfp8_matmul` and `schemes.nvfp4.nvfp4_matmul`.

    Args:
        a: (M, K), e4m3 or e5m2 with ue8m0 scales, or e2m1 with ue4m3.
        b: (K, N), likewise; K a multiple of 128, of NVFP4 256.
        arch: sm_100a, sm_103a, sm_110a, or a GPU of them.
        group: CTAs that multiply together, 1 or 2.

    Returns:
        (M, N) float32, of NVFP4 times both scales of the tensors.

    Raises:
        OperandTypeError, OperandError: operands that do not fit.
        MmabitsError: as `mmabits.compile_cuda`, and of its kernels.
    """
    check_operands(a, b)
    if group not in (1, 2):
        raise OperandError(f"group must be 1 or 2 CTAs, got {group!r}")
    narrow = a.element.name == "e2m1"
    kinds = (a.element.name, b.element.name)
    if (kinds != ("e2m1", "e2m1") and not set(kinds) <= set(_TYPES)) or (narrow and a.block != 16):
        raise OperandError(f"the kernel takes MXFP8 (e4m3, e5m2) and NVFP4, got {kinds[0]} and {kinds[1]} in blocks of {a.block}")
    (m, k), n = a.elements.shape, b.elements.shape[1]
    per_step = 2 * WIDTH if narrow else WIDTH
    check_multiple(k, per_step, "K", "the kernel's step")
    out = np.zeros((m, n), np.float32)
    if 0 in (m, n, k):
        return out
    options = ["-DNVFP4"] if narrow else [f"-DA_TYPE={_TYPES[kinds[0]]}", f"-DB_TYPE={_TYPES[kinds[1]]}"]
    kernel = module("block_scaled", arch, f"-DGROUP={group}", *options, since=100, until=110)["block_scaled"]
    blocks = 4 if narrow else 1
    rows = TILE * group
    pad = -(-m // rows) * rows
    a_scales = np.zeros((pad, a.block_scales.shape[1]), a.block_scales.dtype)
    a_scales[:m] = a.block_scales
    maps = [
        tensor_map(_bytes(a.elements, narrow), box=(TILE, WIDTH), swizzle=128),
        tensor_map(_bytes(b.elements.T, narrow), box=(TILE // group, WIDTH), swizzle=128),
        _scales(a_scales, blocks), _scales(b.block_scales.T, blocks),
    ]  # fmt: skip
    alpha = np.float32(a.tensor_scale * b.tensor_scale) if narrow else np.float32(1)
    shared = STAGES * (TILE * WIDTH + TILE // group * WIDTH + 4096)
    kernel((pad // TILE, -(-n // TILE)), 128, *maps, out, m, n, k // per_step, alpha, shared=shared, cluster=(group, 1, 1))
    return out
