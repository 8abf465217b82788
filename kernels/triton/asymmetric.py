"""Asymmetric INT8: codes with zero points, multiplied as s8 and corrected in integers; and a quantizer by row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mmabits.kernels.schemes.asymmetric import check_sums
from mmabits.kernels.triton.operands import checked, float32_like, zeros_like

if TYPE_CHECKING:
    import torch


@triton.jit
def asymmetric_kernel(  # type: ignore[no-untyped-def]
    x_ptr, x_scale_ptr, x_zero_ptr, w_ptr, w_scale_ptr, w_sum_ptr, w_zero_ptr, out_ptr, M, N, K,
    UNSIGNED: tl.constexpr, W_ZEROS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the corrected and scaled product. UNSIGNED: x has u8 codes, which become s8 less 128, as dots take two of a kind."""
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    x_sums = tl.zeros((BLOCK_M,), dtype=tl.int32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = (m[:, None] < M) & (k[None, :] < K)
        if UNSIGNED:
            # Outside the matrix 128, which becomes 0.
            x = (tl.load(x_ptr + m[:, None] * K + k[None, :], mask=inside, other=128) ^ 128).to(tl.int8, bitcast=True)
        else:
            x = tl.load(x_ptr + m[:, None] * K + k[None, :], mask=inside, other=0)
        w = tl.load(w_ptr + k.to(tl.int64)[:, None] * N + n[None, :], mask=(k[:, None] < K) & (n[None, :] < N), other=0)
        acc = tl.dot(x, w, acc, out_dtype=tl.int32)
        if W_ZEROS:
            x_sums += tl.sum(x.to(tl.int32), axis=1)
    x_zeros = tl.load(x_zero_ptr + m, mask=m < M, other=0)
    if UNSIGNED:
        x_zeros -= 128
    acc -= x_zeros[:, None] * tl.load(w_sum_ptr + n, mask=n < N, other=0)[None, :]
    if W_ZEROS:
        acc -= (x_sums - K * x_zeros)[:, None] * tl.load(w_zero_ptr + n, mask=n < N, other=0)[None, :]
    rows = tl.load(x_scale_ptr + m, mask=m < M, other=0.0)
    columns = tl.load(w_scale_ptr + n, mask=n < N, other=0.0)
    out = (acc.to(tl.float32) * rows[:, None]) * columns[None, :]
    tl.store(out_ptr + m[:, None] * N + n[None, :], out, mask=(m[:, None] < M) & (n[None, :] < N))


def asymmetric_matmul(
    x: torch.Tensor, x_scales: torch.Tensor, x_zeros: torch.Tensor, w: torch.Tensor, w_scales: torch.Tensor, w_sums: torch.Tensor,
    w_zeros: torch.Tensor | None = None, *, block_m: int = 64, block_n: int = 64, block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """The product of INT8 matrices with zero points, each row of x and each column of w with a scale.

    Args:
        x: (M, K) uint8 or int8, contiguous as all of them.
        x_scales: (M,) float32.
        x_zeros: (M,) int32.
        w: (K, N) int8.
        w_scales: (N,) float32.
        w_sums: (N,) int32, the sums of the columns of w, `AffineMatrix.sums`: weights are known beforehand.
        w_zeros: (N,) int32; None: the weights are symmetric.
        block_m: rows of a tile.
        block_n: columns.
        block_k: elements of K a step.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit, a K whose sums may leave s32.
    """
    m, k = checked(x, "x", ("uint8", "int8"), (None, None)).shape
    n = checked(w, "w", ("int8",), (k, None)).shape[1]
    checked(x_scales, "x_scales", ("float32",), (m,))
    checked(x_zeros, "x_zeros", ("int32",), (m,))
    checked(w_scales, "w_scales", ("float32",), (n,))
    checked(w_sums, "w_sums", ("int32",), (n,))
    if w_zeros is not None:
        checked(w_zeros, "w_zeros", ("int32",), (n,))
    check_sums(k, w_zeros is not None)
    if 0 in (m, n, k):
        return zeros_like(x, m, n)
    out = float32_like(x, m, n)
    asymmetric_kernel[(triton.cdiv(m, block_m), triton.cdiv(n, block_n))](
        x, x_scales, x_zeros, w, w_scales, w_sums, w_sums if w_zeros is None else w_zeros, out, m, n, k,
        UNSIGNED=str(x.dtype) == "torch.uint8", W_ZEROS=w_zeros is not None, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k,
        enable_fp_fusion=False,
    )  # fmt: skip
    return out


@triton.jit
def rounded(x, LOW: tl.constexpr, HIGH: tl.constexpr):  # type: ignore[no-untyped-def]
    """To integers LOW to HIGH, ties to even: sums with 1.5 * 2^23 have no fraction bits."""
    return (tl.minimum(tl.maximum(x, LOW), HIGH) + 12582912.0) - 12582912.0


@triton.jit
def quantize_rows_kernel(x_ptr, out_ptr, scale_ptr, zero_ptr, K, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    low = tl.zeros((BLOCK_K,), dtype=tl.float32)
    high = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + row * K + k, mask=k < K, other=0.0)
        low, high = tl.minimum(low, x), tl.maximum(high, x)
    least, largest = tl.min(low, axis=0), tl.max(high, axis=0)
    wanted = tl.div_rn(largest - least, 255.0)
    scale = tl.where(wanted > 0.0, wanted, 1.0)
    zero = -rounded(tl.div_rn(least, scale), -255.0, 0.0)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + row * K + k, mask=k < K, other=0.0)
        steps = rounded(tl.div_rn(x, scale), -1024.0, 1024.0) + zero
        codes = tl.minimum(tl.maximum(steps, 0.0), 255.0).to(tl.int32).to(tl.uint8)
        tl.store(out_ptr + row * K + k, codes, mask=k < K)
    tl.store(scale_ptr + row, scale)
    tl.store(zero_ptr + row, zero.to(tl.int32))


def quantize_rows(values: torch.Tensor, *, block_k: int = 128) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations in u8 with a scale and a zero point for each row: the bits of `schemes.asymmetric.quantize_affine(axis=0)`.

    Args:
        values: (M, K) float32, contiguous, finite, each row's ends no further apart than float32 reaches: not looked at.
        block_k: elements a step.

    Returns:
        Codes (M, K) uint8, scales (M,) float32, zero points (M,) int32.

    Raises:
        OperandTypeError, OperandError: another tensor.
    """
    import torch

    m, k = checked(values, "values", ("float32",), (None, None)).shape
    out = torch.empty_like(values, dtype=torch.uint8)
    scales, zeros = torch.ones(m, device=values.device), torch.zeros(m, dtype=torch.int32, device=values.device)
    if m and k:
        quantize_rows_kernel[(m,)](values, out, scales, zeros, k, BLOCK_K=block_k, enable_fp_fusion=False)
    return out, scales, zeros
