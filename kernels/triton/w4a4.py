"""W4A4: INT4 times INT4. Triton's dots take no s4, so that codes are unpacked to s8, which is what Hopper and later do in any case."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mmabits.kernels.triton.operands import checked, float32_like, zeros_like

if TYPE_CHECKING:
    import torch


@triton.jit
def int4_codes(packed_ptr, row, k, ROWS, K):  # type: ignore[no-untyped-def]
    """Codes at (row, k), whose shapes broadcast, out of bytes of two, as s8; zero outside."""
    at = packed_ptr + row.to(tl.int64) * (K // 2) + k // 2
    nibble = tl.load(at, mask=(row < ROWS) & (k < K), other=0).to(tl.int32) >> ((k & 1) * 4)
    return (nibble << 28 >> 28).to(tl.int8)


@triton.jit
def w4a4_kernel(  # type: ignore[no-untyped-def]
    x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, out_ptr, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """One tile of the scaled product x w^T."""
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = int4_codes(x_ptr, m[:, None], k[None, :], M, K)
        w = int4_codes(w_ptr, n[None, :], k[:, None], N, K)
        acc = tl.dot(x, w, acc, out_dtype=tl.int32)
    rows = tl.load(x_scale_ptr + m, mask=m < M, other=0.0)
    columns = tl.load(w_scale_ptr + n, mask=n < N, other=0.0)
    out = (acc.to(tl.float32) * rows[:, None]) * columns[None, :]
    tl.store(out_ptr + m[:, None] * N + n[None, :], out, mask=(m[:, None] < M) & (n[None, :] < N))


def w4a4_matmul(
    x: torch.Tensor, x_scales: torch.Tensor, w: torch.Tensor, w_scales: torch.Tensor, *,
    block_m: int = 64, block_n: int = 64, block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """The product x w^T of INT4 matrices with a scale for each row of either.

    Args:
        x: (M, K / 2) uint8, `schemes.w4a4.Int4Matrix.pack`; contiguous as all of them.
        x_scales: (M,) float32.
        w: (N, K / 2) uint8, likewise.
        w_scales: (N,) float32.
        block_m: rows of a tile.
        block_n: columns.
        block_k: elements of K a step.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit.
    """
    m, half = checked(x, "x", ("uint8",), (None, None)).shape
    n = checked(w, "w", ("uint8",), (None, half)).shape[0]
    checked(x_scales, "x_scales", ("float32",), (m,))
    checked(w_scales, "w_scales", ("float32",), (n,))
    if 0 in (m, n, half):
        return zeros_like(x, m, n)
    out = float32_like(x, m, n)
    w4a4_kernel[(triton.cdiv(m, block_m), triton.cdiv(n, block_n))](
        x, x_scales, w, w_scales, out, m, n, 2 * half, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, enable_fp_fusion=False
    )  # fmt: skip
    return out
