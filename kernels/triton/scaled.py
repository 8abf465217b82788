"""C = A B of block-scaled operands: MXFP8, MXFP4, mixtures of them, NVFP4."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mmabits.isa import OperandError, nearest

if TYPE_CHECKING:
    import torch

FORMATS = ("e4m3", "e5m2", "e2m1")


@triton.jit
def scaled_kernel(  # type: ignore[no-untyped-def]
    a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, c_ptr, M, N, K, A_FORMAT: tl.constexpr, B_FORMAT: tl.constexpr, BLOCK_SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of C a program; K is a multiple of BLOCK_K. Two e2m1 elements share a byte, neighbours in K."""
    A_PACK: tl.constexpr = 2 if A_FORMAT == "e2m1" else 1
    B_PACK: tl.constexpr = 2 if B_FORMAT == "e2m1" else 1
    i = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    j = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    a_k = tl.arange(0, BLOCK_K // A_PACK)
    b_k = tl.arange(0, BLOCK_K // B_PACK)
    s_k = tl.arange(0, BLOCK_K // BLOCK_SCALE)
    a_at = a_ptr + i[:, None] * (K // A_PACK) + a_k[None, :]
    b_at = b_ptr + b_k[:, None] * N + j[None, :]
    a_scale_at = a_scale_ptr + i[:, None] * (K // BLOCK_SCALE) + s_k[None, :]
    b_scale_at = b_scale_ptr + j[:, None] * (K // BLOCK_SCALE) + s_k[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for _ in range(0, tl.cdiv(K, BLOCK_K)):
        a = tl.load(a_at, mask=i[:, None] < M, other=0.0)
        b = tl.load(b_at, mask=j[None, :] < N, other=0.0)
        a_scale = tl.load(a_scale_at, mask=i[:, None] < M, other=0.0)
        b_scale = tl.load(b_scale_at, mask=j[:, None] < N, other=0.0)
        acc = tl.dot_scaled(a, a_scale, A_FORMAT, b, b_scale, B_FORMAT, acc=acc)
        a_at += BLOCK_K // A_PACK
        b_at += (BLOCK_K // B_PACK) * N
        a_scale_at += BLOCK_K // BLOCK_SCALE
        b_scale_at += BLOCK_K // BLOCK_SCALE
    tl.store(c_ptr + i[:, None] * N + j[None, :], acc, mask=(i[:, None] < M) & (j[None, :] < N))


def scaled_matmul(
    a: torch.Tensor, a_scale: torch.Tensor | None, a_format: str, b: torch.Tensor, b_scale: torch.Tensor | None, b_format: str, *,
    block: tuple[int, int, int] = (128, 128, 128), num_warps: int = 4,
) -> torch.Tensor:  # fmt: skip
    """The product of two block-scaled matrices by `scaled_kernel`.

    Args:
        a: (M, K) of float8_e4m3fn or float8_e5m2, or (M, K / 2) uint8 of two e2m1 a byte, the lower K in the low nibble; contiguous.
        a_scale: (M, K / 32) uint8 of ue8m0 codes, or (M, K / 16) float8_e4m3fn.
        a_format: `"e4m3"`, `"e5m2"` or `"e2m1"`.
        b: (K, N), or (K / 2, N) packed along K; contiguous.
        b_scale: (N, K / 32) or (N, K / 16), of the type of `a_scale`.
        b_format: likewise.
        block: M, N and K of a tile.
        num_warps: of a program.

    Returns:
        (M, N), float32.

    Raises:
        OperandError: an unknown format, operands without scales, shapes that do not meet, a K that is no multiple of the block's.
    """
    import torch

    for form in (a_format, b_format):
        if form not in FORMATS:
            raise OperandError(f"unknown format {form!r}{nearest(form, FORMATS)}; there are {', '.join(FORMATS)}")
    if a_scale is None or b_scale is None:
        raise OperandError("block-scaled operands need a_scale and b_scale, got None")
    m, k = a.shape[0], a.shape[1] * (2 if a_format == "e2m1" else 1)
    n, k_b = b.shape[1], b.shape[0] * (2 if b_format == "e2m1" else 1)
    if k != k_b:
        raise OperandError(f"a has K = {k} and b has K = {k_b}")
    if k == 0 and a_scale.shape == (m, 0) and b_scale.shape == (n, 0):
        return torch.zeros((m, n), dtype=torch.float32, device=a.device)
    group = k // max(a_scale.shape[1], 1)
    if group not in (16, 32) or a_scale.shape != (m, k // group) or b_scale.shape != (n, k // group):
        raise OperandError(
            f"scales must be ({m}, {k} / 32) and ({n}, {k} / 32), or / 16, got {tuple(a_scale.shape)} and {tuple(b_scale.shape)}"
        )
    if k % block[2]:
        raise OperandError(f"K = {k} is no multiple of the block's {block[2]}")
    c = torch.empty((m, n), dtype=torch.float32, device=a.device)
    scaled_kernel[(triton.cdiv(m, block[0]), triton.cdiv(n, block[1]))](
        a.contiguous(), a_scale.contiguous(), b.contiguous(), b_scale.contiguous(), c, m, n, k, A_FORMAT=a_format, B_FORMAT=b_format,
        BLOCK_SCALE=group, BLOCK_M=block[0], BLOCK_N=block[1], BLOCK_K=block[2], num_warps=num_warps,
    )  # fmt: skip
    return c
