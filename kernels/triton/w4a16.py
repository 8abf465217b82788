"""W4A16: INT4 words of AWQ and GPTQ checkpoints, dequantized in registers and multiplied as f16 or bf16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mmabits.kernels.triton.operands import check_indices, check_multiple, checked, float32_like, group_size, zeros_like

if TYPE_CHECKING:
    import torch


@triton.jit
def awq_shift(n):  # type: ignore[no-untyped-def]
    """Where column n lies in its word: the nibbles hold columns 0, 2, 4, 6, 1, 3, 5, 7."""
    return ((n & 1) * 4 + ((n & 7) >> 1)) * 4


@triton.jit
def dequantized(codes, zeros, scales, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """(code - zero) * scale: an exact integer, then one rounding to DTYPE."""
    return (codes - zeros).to(DTYPE) * scales.to(DTYPE)


@triton.jit
def awq_tile(qweight_ptr, qzeros_ptr, scales_ptr, k, n, K, N, GROUP: tl.constexpr, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows k and columns n of the weights, zero outside."""
    inside = (k[:, None] < K) & (n[None, :] < N)
    shift = awq_shift(n)[None, :]
    word = (n // 8)[None, :]
    group = (k // GROUP).to(tl.int64)[:, None]
    codes = tl.load(qweight_ptr + k.to(tl.int64)[:, None] * (N // 8) + word, mask=inside, other=0) >> shift & 15
    zeros = tl.load(qzeros_ptr + group * (N // 8) + word, mask=inside, other=0) >> shift & 15
    scales = tl.load(scales_ptr + group * N + n[None, :], mask=inside, other=0.0)
    return dequantized(codes, zeros, scales, DTYPE)


@triton.jit
def awq_kernel(  # type: ignore[no-untyped-def]
    x_ptr, qweight_ptr, qzeros_ptr, scales_ptr, out_ptr, M, N, K,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the product with weights in AWQ's packing."""
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
        w = awq_tile(qweight_ptr, qzeros_ptr, scales_ptr, k, n, K, N, GROUP, x_ptr.dtype.element_ty)
        acc = tl.dot(x, w, acc)
    tl.store(out_ptr + m[:, None] * N + n[None, :], acc, mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def gptq_kernel(  # type: ignore[no-untyped-def]
    x_ptr, qweight_ptr, qzeros_ptr, scales_ptr, g_idx_ptr, out_ptr, M, N, K,
    ADD_TO_ZERO: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the product with weights in GPTQ's packing."""
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
        inside = (k[:, None] < K) & (n[None, :] < N)
        group = tl.load(g_idx_ptr + k, mask=k < K, other=0).to(tl.int64)[:, None]
        words = tl.load(qweight_ptr + (k // 8).to(tl.int64)[:, None] * N + n[None, :], mask=inside, other=0)
        codes = words >> ((k & 7) * 4)[:, None] & 15
        zeros = tl.load(qzeros_ptr + group * (N // 8) + (n // 8)[None, :], mask=inside, other=0) >> ((n & 7) * 4)[None, :] & 15
        scales = tl.load(scales_ptr + group * N + n[None, :], mask=inside, other=0.0)
        w = dequantized(codes, zeros + ADD_TO_ZERO, scales, x_ptr.dtype.element_ty)
        acc = tl.dot(x, w, acc)
    tl.store(out_ptr + m[:, None] * N + n[None, :], acc, mask=(m[:, None] < M) & (n[None, :] < N))


def awq_matmul(
    x: torch.Tensor, qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, *,
    block_m: int = 64, block_n: int = 64, block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """Activations times the weights of a layer of an AWQ checkpoint.

    Args:
        x: (M, K) float16 or bfloat16, contiguous as all of them.
        qweight: (K, N / 8) int32.
        qzeros: (K / group, N / 8) int32.
        scales: (K / group, N) float16.
        block_m: rows of a tile.
        block_n: columns.
        block_k: elements of K a step.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit.
    """
    m, k = checked(x, "x", ("float16", "bfloat16"), (None, None)).shape
    n = 8 * checked(qweight, "qweight", ("int32",), (k, None)).shape[1]
    groups = checked(scales, "scales", ("float16",), (None, n)).shape[0]
    checked(qzeros, "qzeros", ("int32",), (groups, n // 8))
    group = group_size(k, groups)
    if 0 in (m, n, k):
        return zeros_like(x, m, n)
    out = float32_like(x, m, n)
    grid = (triton.cdiv(m, block_m), triton.cdiv(n, block_n))
    awq_kernel[grid](
        x, qweight, qzeros, scales, out, m, n, k, GROUP=group, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k,
        enable_fp_fusion=False,
    )  # fmt: skip
    return out


def gptq_matmul(
    x: torch.Tensor, qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, g_idx: torch.Tensor, *,
    zeros_minus_one: bool = True, check: bool | None = None, block_m: int = 64, block_n: int = 64, block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """Activations times the weights of a layer of a GPTQ checkpoint.

    Args:
        x: (M, K) float16 or bfloat16, contiguous as all of them.
        qweight: (K / 8, N) int32.
        qzeros: (K / group, N / 8) int32.
        scales: (K / group, N) float16.
        g_idx: (K,) int32, groups that are there.
        zeros_minus_one: False for checkpoints of `gptq_v2`.
        check: whether to look at `g_idx` first; None: if it is on the CPU, since for a GPU the host would have to wait.
        block_m: rows of a tile.
        block_n: columns.
        block_k: elements of K a step.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit, groups that are not there.
    """
    m, k = checked(x, "x", ("float16", "bfloat16"), (None, None)).shape
    check_multiple(k, 8, "K", "the codes of a word,")
    n = checked(qweight, "qweight", ("int32",), (k // 8, None)).shape[1]
    check_multiple(n, 8, "N", "the codes of a word,")
    groups = checked(scales, "scales", ("float16",), (None, n)).shape[0]
    checked(qzeros, "qzeros", ("int32",), (groups, n // 8))
    checked(g_idx, "g_idx", ("int32",), (k,))
    group_size(k, groups)
    check_indices(g_idx, "groups of g_idx", 0, groups - 1, check)
    if 0 in (m, n, k):
        return zeros_like(x, m, n)
    out = float32_like(x, m, n)
    grid = (triton.cdiv(m, block_m), triton.cdiv(n, block_n))
    gptq_kernel[grid](
        x, qweight, qzeros, scales, g_idx, out, m, n, k, ADD_TO_ZERO=int(zeros_minus_one),
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, enable_fp_fusion=False,
    )  # fmt: skip
    return out
