"""W8A8: INT8 times INT8 with scales per token and per channel; LLM.int8() with its outlier columns in f16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mmabits.kernels.triton.operands import check_indices, checked, float32_like, zeros_like

if TYPE_CHECKING:
    import torch


@triton.jit
def int8_sums(x_ptr, w_ptr, m, n, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """The int32 sums of a tile."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0)
        w = tl.load(w_ptr + k.to(tl.int64)[:, None] * N + n[None, :], mask=(k[:, None] < K) & (n[None, :] < N), other=0)
        acc = tl.dot(x, w, acc, out_dtype=tl.int32)
    return acc


@triton.jit
def scaled(acc, x_scale_ptr, w_scale_ptr, m, n, M, N):  # type: ignore[no-untyped-def]
    """(f32(sum) * row scale) * column scale."""
    rows = tl.load(x_scale_ptr + m, mask=m < M, other=0.0)
    columns = tl.load(w_scale_ptr + n, mask=n < N, other=0.0)
    return (acc.to(tl.float32) * rows[:, None]) * columns[None, :]


@triton.jit
def w8a8_kernel(  # type: ignore[no-untyped-def]
    x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, out_ptr, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """One tile of the scaled product."""
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    acc = int8_sums(x_ptr, w_ptr, m, n, M, N, K, BLOCK_M, BLOCK_N, BLOCK_K)
    out = scaled(acc, x_scale_ptr, w_scale_ptr, m, n, M, N)
    tl.store(out_ptr + m[:, None] * N + n[None, :], out, mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def llm_int8_kernel(  # type: ignore[no-untyped-def]
    x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, outliers_ptr, columns_ptr, w16_ptr, out_ptr, M, N, K, OUTLIERS,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_OUTLIERS: tl.constexpr,
):  # fmt: skip
    """One tile of the INT8 product, scaled, plus the outlier columns' product in f16."""
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    acc = int8_sums(x_ptr, w_ptr, m, n, M, N, K, BLOCK_M, BLOCK_N, BLOCK_K)
    regular = scaled(acc, x_scale_ptr, w_scale_ptr, m, n, M, N)
    special = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, OUTLIERS, BLOCK_OUTLIERS):
        o = start + tl.arange(0, BLOCK_OUTLIERS)
        row = tl.load(columns_ptr + o, mask=o < OUTLIERS, other=0)
        x = tl.load(outliers_ptr + m[:, None] * OUTLIERS + o[None, :], mask=(m[:, None] < M) & (o[None, :] < OUTLIERS), other=0.0)
        w = tl.load(w16_ptr + row.to(tl.int64)[:, None] * N + n[None, :], mask=(o[:, None] < OUTLIERS) & (n[None, :] < N), other=0.0)
        special = tl.dot(x, w, special)
    tl.store(out_ptr + m[:, None] * N + n[None, :], regular + special, mask=(m[:, None] < M) & (n[None, :] < N))


def _checked_int8(x: torch.Tensor, x_scales: torch.Tensor, w: torch.Tensor, w_scales: torch.Tensor) -> tuple[int, int, int]:
    m, k = checked(x, "x", ("int8",), (None, None)).shape
    n = checked(w, "w", ("int8",), (k, None)).shape[1]
    checked(x_scales, "x_scales", ("float32",), (m,))
    checked(w_scales, "w_scales", ("float32",), (n,))
    return m, n, k


def w8a8_matmul(
    x: torch.Tensor, x_scales: torch.Tensor, w: torch.Tensor, w_scales: torch.Tensor, *,
    block_m: int = 64, block_n: int = 64, block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """The product of INT8 matrices with a scale for each row of x and each column of w.

    Args:
        x: (M, K) int8, contiguous as all of them.
        x_scales: (M,) float32.
        w: (K, N) int8.
        w_scales: (N,) float32.
        block_m: rows of a tile.
        block_n: columns.
        block_k: elements of K a step.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit.
    """
    m, n, k = _checked_int8(x, x_scales, w, w_scales)
    if 0 in (m, n, k):
        return zeros_like(x, m, n)
    out = float32_like(x, m, n)
    grid = (triton.cdiv(m, block_m), triton.cdiv(n, block_n))
    w8a8_kernel[grid](
        x, x_scales, w, w_scales, out, m, n, k, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, enable_fp_fusion=False
    )  # fmt: skip
    return out


def llm_int8_matmul(
    x: torch.Tensor, x_scales: torch.Tensor, w: torch.Tensor, w_scales: torch.Tensor, outliers: torch.Tensor, columns: torch.Tensor,
    w16: torch.Tensor, *, check: bool | None = None, block_m: int = 64, block_n: int = 64, block_k: int = 64, block_outliers: int = 16,
) -> torch.Tensor:  # fmt: skip
    """LLM.int8(): INT8 where the activations are ordinary, f16 in their outlier columns.

    Args:
        x: (M, K) int8, zero in the outlier columns; contiguous as all of them.
        x_scales: (M,) float32.
        w: (K, N) int8.
        w_scales: (N,) float32.
        outliers: (M, O) float16, the outlier columns.
        columns: (O,) int32, which they are.
        w16: (K, N) float16, the weights unquantized.
        check: whether to look at `columns` first; None: if they are on the CPU, since for a GPU the host would have to wait.
        block_m: rows of a tile.
        block_n: columns.
        block_k: elements of K a step.
        block_outliers: outlier columns a step.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit, columns that are not there.
    """
    m, n, k = _checked_int8(x, x_scales, w, w_scales)
    count = checked(outliers, "outliers", ("float16",), (m, None)).shape[1]
    checked(columns, "columns", ("int32",), (count,))
    checked(w16, "w16", ("float16",), (k, n))
    check_indices(columns, "columns", 0, k - 1, check)
    if count == 0:
        return w8a8_matmul(x, x_scales, w, w_scales, block_m=block_m, block_n=block_n, block_k=block_k)
    if 0 in (m, n, k):
        return zeros_like(x, m, n)
    out = float32_like(x, m, n)
    grid = (triton.cdiv(m, block_m), triton.cdiv(n, block_n))
    llm_int8_kernel[grid](
        x, x_scales, w, w_scales, outliers, columns, w16, out, m, n, k, count, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k,
        BLOCK_OUTLIERS=block_outliers, enable_fp_fusion=False,
    )  # fmt: skip
    return out
