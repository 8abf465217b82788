"""C = A B with K split among programs, whose parts are summed in one of two ways.

- `atomic`: every program adds its part to C with atomic additions. On a GPU they come in whatever order the programs finish, so the last
  bits vary from run to run. Under emulation programs run in ascending order: C = ((0 + part 0) + part 1) + ..., one of the results
  that a GPU may give.
- `ordered`: parts are written apart, and a second kernel adds them in ascending order: the same sum, and on a GPU always that one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mmabits.isa import OperandError
from mmabits.kernels.triton.matmul import checked_shapes, grouped_tile, tile_product

if TYPE_CHECKING:
    import torch

REDUCTIONS = ("atomic", "ordered")


@triton.jit
def split_k_kernel(  # type: ignore[no-untyped-def]
    a_ptr, b_ptr, c_ptr, M, N, K, part_k, stride_am, stride_ak, stride_bk, stride_bn, stride_part, stride_cm, stride_cn,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    """One tile over one part of K a program."""
    row, column = grouped_tile(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    part = tl.program_id(1)
    first = part * part_k
    last = min(first + part_k, K)
    acc = tile_product(
        a_ptr, b_ptr, row, column, M, N, first, last, stride_am, stride_ak, stride_bk, stride_bn, BLOCK_M, BLOCK_N, BLOCK_K
    )  # fmt: skip
    i = (row * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    j = (column * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    at = c_ptr + part.to(tl.int64) * stride_part + i[:, None] * stride_cm + j[None, :] * stride_cn
    inside = (i[:, None] < M) & (j[None, :] < N)
    if ATOMIC:
        tl.atomic_add(at, acc, mask=inside)
    else:
        tl.store(at, acc, mask=inside)


@triton.jit
def sum_parts_kernel(parts_ptr, c_ptr, SIZE, stride_part, PARTS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The parts added one after the other, from +0."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for part in range(PARTS):
        total += tl.load(parts_ptr + tl.cast(part, tl.int64) * stride_part + at, mask=at < SIZE, other=0.0)
    tl.store(c_ptr + at, total, mask=at < SIZE)


def split_k_matmul(
    a: torch.Tensor, b: torch.Tensor, *, parts: int, reduction: str = "ordered", block: tuple[int, int, int] = (64, 64, 64),
    num_warps: int = 4,
) -> torch.Tensor:  # fmt: skip
    """The product of two matrices by `split_k_kernel`.

    Args:
        a: (M, K), float16, bfloat16, float32 (multiplied as tf32) or an fp8 type.
        b: (K, N), the same type; fp8 types may differ.
        parts: into how many K is split; each is a whole number of blocks, the last may be shorter.
        reduction: `"ordered"` or `"atomic"`.
        block: M, N and K of a tile.
        num_warps: of a program.

    Returns:
        (M, N), float32.

    Raises:
        OperandError: shapes that do not meet, an unknown reduction, fewer blocks of K than parts.
    """
    import torch

    m, n, k = checked_shapes(a, b)
    if reduction not in REDUCTIONS:
        raise OperandError(f"unknown reduction {reduction!r}; there are {', '.join(REDUCTIONS)}")
    blocks = triton.cdiv(k, block[2])
    if 0 in (m, n, k) and parts >= 1:
        return torch.zeros((m, n), dtype=torch.float32, device=a.device)
    if not 1 <= parts <= blocks:
        raise OperandError(f"K = {k} has {blocks} blocks of {block[2]}, which do not make {parts} parts")
    part_k = triton.cdiv(blocks, parts) * block[2]
    atomic = reduction == "atomic"
    sums = torch.zeros((1 if atomic else parts, m, n), dtype=torch.float32, device=a.device)
    tiles = triton.cdiv(m, block[0]) * triton.cdiv(n, block[1])
    split_k_kernel[(tiles, parts)](
        a, b, sums, m, n, k, part_k, *a.stride(), *b.stride(), 0 if atomic else sums.stride(0), *sums.stride()[1:],
        BLOCK_M=block[0], BLOCK_N=block[1], BLOCK_K=block[2], GROUP_M=8, ATOMIC=atomic, num_warps=num_warps,
    )  # fmt: skip
    if atomic:
        return sums[0]
    c = torch.empty((m, n), dtype=torch.float32, device=a.device)
    sum_parts_kernel[(triton.cdiv(m * n, 1024),)](sums, c, m * n, sums.stride(0), PARTS=parts, BLOCK=1024)
    return c
