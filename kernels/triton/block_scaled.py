"""The product of block-scaled operands, with their scales in rows or in the 128x4 layout of cuBLAS, and a factor at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mmabits.isa import OperandError
from mmabits.kernels.triton.operands import checked, float32_like, zeros_like

if TYPE_CHECKING:
    import torch

STORED = {"e4m3": ("float8_e4m3fn",), "e5m2": ("float8_e5m2",), "e2m1": ("uint8",)}
"""Formats and the dtypes that hold them; two e2m1 to a byte."""


@triton.jit
def scales_of(scale_ptr, rows, block, ROWS, BLOCKS, SWIZZLED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scales of some rows and some blocks of K, as codes: 0, which multiplies nothing but zeros, outside the matrix."""
    i, k = rows.to(tl.int64)[:, None], block[None, :]
    if SWIZZLED:  # noqa: SIM108 - one expression would be long
        at = ((i // 128) * tl.cdiv(BLOCKS, 4) + k // 4) * 512 + (i % 32) * 16 + (i // 32 % 4) * 4 + k % 4
    else:
        at = i * BLOCKS + k
    return tl.load(scale_ptr + at, mask=(i < ROWS) & (k < BLOCKS), other=0.0)


@triton.jit
def block_scaled_kernel(  # type: ignore[no-untyped-def]
    a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, out_ptr, alpha_ptr, M, N, K, A_FORMAT: tl.constexpr, B_FORMAT: tl.constexpr,
    GROUP: tl.constexpr, SWIZZLED: tl.constexpr, ALPHA: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of alpha a b^T; K is a multiple of GROUP."""
    A_PACK: tl.constexpr = 2 if A_FORMAT == "e2m1" else 1
    B_PACK: tl.constexpr = 2 if B_FORMAT == "e2m1" else 1
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        a_k = start // A_PACK + tl.arange(0, BLOCK_K // A_PACK)
        b_k = start // B_PACK + tl.arange(0, BLOCK_K // B_PACK)
        block = start // GROUP + tl.arange(0, BLOCK_K // GROUP)
        a = tl.load(a_ptr + m[:, None] * (K // A_PACK) + a_k[None, :], mask=(m[:, None] < M) & (a_k[None, :] < K // A_PACK), other=0.0)
        b = tl.load(b_ptr + n[None, :] * (K // B_PACK) + b_k[:, None], mask=(n[None, :] < N) & (b_k[:, None] < K // B_PACK), other=0.0)
        a_scale = scales_of(a_scale_ptr, m, block, M, K // GROUP, SWIZZLED)
        b_scale = scales_of(b_scale_ptr, n, block, N, K // GROUP, SWIZZLED)
        acc = tl.dot_scaled(a, a_scale, A_FORMAT, b, b_scale, B_FORMAT, acc)
    if ALPHA:
        acc *= tl.load(alpha_ptr)
    tl.store(out_ptr + m[:, None] * N + n[None, :], acc, mask=(m[:, None] < M) & (n[None, :] < N))


def block_scaled_matmul(
    a: torch.Tensor, a_scales: torch.Tensor, a_format: str, b: torch.Tensor, b_scales: torch.Tensor, b_format: str, *,
    alpha: torch.Tensor | None = None, swizzled: bool = False, group: int = 32, block: tuple[int, int, int] = (128, 64, 128),
) -> torch.Tensor:  # fmt: skip
    """The product alpha a b^T, each operand with a scale for `group` elements of K.

    Args:
        a: (M, K) float8_e4m3fn or float8_e5m2, or (M, K / 2) uint8 of two e2m1, the lower K in the low nibble; contiguous as all.
        a_scales: (M, K / group), uint8 of ue8m0 codes, or float8_e4m3fn; swizzled, one line as `mmabits.layouts.swizzle_scales` makes.
        a_format: `"e4m3"`, `"e5m2"` or `"e2m1"`.
        b: (N, K) or (N, K / 2), as libraries store weights.
        b_scales: (N, K / group), of the type of `a_scales`; swizzled likewise.
        b_format: as `a_format`.
        alpha: (1,) float32; None: 1.
        swizzled: scales are in the 128x4 layout.
        group: 32 or 16.
        block: M, N and K of a tile. Blackwell's block-scaled instructions take M = 128.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit, e2m1 without scales.
    """
    for form in (a_format, b_format):
        if form not in STORED:
            raise OperandError(f"formats are {', '.join(STORED)}, got {form!r}")
    if a_scales is None or b_scales is None:
        raise OperandError("block-scaled operands need scales, got None")
    m, held_a = checked(a, "a", STORED[a_format], (None, None)).shape
    n, held_b = checked(b, "b", STORED[b_format], (None, None)).shape
    k, k_b = held_a * (2 if a_format == "e2m1" else 1), held_b * (2 if b_format == "e2m1" else 1)
    if k != k_b or k % group:
        raise OperandError(f"K of both must be one multiple of the block size {group}, got {k} and {k_b}")
    kinds = ("uint8",) if group == 32 else ("float8_e4m3fn",)
    for scales, name, rows in ((a_scales, "a_scales", m), (b_scales, "b_scales", n)):
        size = triton.cdiv(rows, 128) * triton.cdiv(k // group, 4) * 512
        checked(scales, name, kinds, (size,) if swizzled else (rows, k // group))
    if alpha is not None:
        checked(alpha, "alpha", ("float32",), (1,))
    if 0 in (m, n, k):
        return zeros_like(a, m, n)
    out = float32_like(a, m, n)
    block_scaled_kernel[(triton.cdiv(m, block[0]), triton.cdiv(n, block[1]))](
        a, a_scales, b, b_scales, out, out if alpha is None else alpha, m, n, k, A_FORMAT=a_format, B_FORMAT=b_format, GROUP=group,
        SWIZZLED=swizzled, ALPHA=alpha is not None, BLOCK_M=block[0], BLOCK_N=block[1], BLOCK_K=block[2], enable_fp_fusion=False,
    )  # fmt: skip
    return out
