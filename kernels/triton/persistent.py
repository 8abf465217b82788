"""C = A B by a fixed number of programs, each of which walks over tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mmabits.isa import OperandError
from mmabits.kernels.triton.matmul import checked_shapes, grouped_tile, store_tile, tile_product

if TYPE_CHECKING:
    import torch


@triton.jit
def persistent_kernel(  # type: ignore[no-untyped-def]
    a_ptr, b_ptr, c_ptr, M, N, K, stride_am, stride_ak, stride_bk, stride_bn, stride_cm, stride_cn,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Tiles `program_id`, `program_id + PROGRAMS`, and so on."""
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in range(tl.program_id(0), tiles, PROGRAMS):
        row, column = grouped_tile(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        acc = tile_product(
            a_ptr, b_ptr, row, column, M, N, 0, K, stride_am, stride_ak, stride_bk, stride_bn, BLOCK_M, BLOCK_N, BLOCK_K
        )  # fmt: skip
        store_tile(c_ptr, acc, row, column, M, N, stride_cm, stride_cn, BLOCK_M, BLOCK_N)


def persistent_matmul(
    a: torch.Tensor, b: torch.Tensor, *, programs: int, block: tuple[int, int, int] = (64, 64, 64), num_warps: int = 4
) -> torch.Tensor:
    """The product of two matrices by `persistent_kernel`.

    Args:
        a: (M, K), float16, bfloat16, float32 (multiplied as tf32) or an fp8 type.
        b: (K, N), the same type; fp8 types may differ.
        programs: how many; on a GPU the number of its multiprocessors.
        block: M, N and K of a tile.
        num_warps: of a program.

    Returns:
        (M, N), float32.

    Raises:
        OperandError: shapes that do not meet, no programs.
    """
    import torch

    m, n, k = checked_shapes(a, b)
    c = torch.empty((m, n), dtype=torch.float32, device=a.device)
    if programs < 1:
        raise OperandError(f"programs must be positive, got {programs}")
    if 0 in (m, n, k):
        return c.zero_()
    tiles = triton.cdiv(m, block[0]) * triton.cdiv(n, block[1])
    persistent_kernel[(min(programs, tiles),)](
        a, b, c, m, n, k, *a.stride(), *b.stride(), *c.stride(), BLOCK_M=block[0], BLOCK_N=block[1], BLOCK_K=block[2], GROUP_M=8,
        PROGRAMS=min(programs, tiles), num_warps=num_warps,
    )  # fmt: skip
    return c
