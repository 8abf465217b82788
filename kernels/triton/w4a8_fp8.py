"""W4A8 with FP8 activations: INT4 weights become e4m3 in registers by their bits, as in Marlin's variant for Ada."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mmabits.kernels.triton.operands import check_multiple, checked, float32_like, group_size, zeros_like

if TYPE_CHECKING:
    import torch


@triton.jit
def int4_as_e4m3(words_ptr, k, n, K, N):  # type: ignore[no-untyped-def]
    """Rows k and columns n of the weights: sign and magnitude of a code are the bits of an e4m3, which is a 512th of it."""
    inside = (k[:, None] < K) & (n[None, :] < N)
    words = tl.load(words_ptr + (k // 8).to(tl.int64)[:, None] * N + n[None, :], mask=inside, other=0)
    # The nibble is shifted to the top of the word; shifting back keeps its sign.
    codes = words << (28 - (k & 7) * 4)[:, None] >> 28
    bits = tl.where(codes < 0, 128 - codes, codes)
    return bits.to(tl.uint8).to(tl.float8e4nv, bitcast=True)


@triton.jit
def w4a8_fp8_kernel(  # type: ignore[no-untyped-def]
    x_ptr, x_scale_ptr, words_ptr, scale_ptr, out_ptr, M, N, K,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile; GROUP of 0: scales are those of channels. Else it is a multiple of BLOCK_K."""
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    rows = tl.load(x_scale_ptr + m, mask=m < M, other=0.0)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if GROUP == 0:
        for start in range(0, K, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            x = tl.load(x_ptr + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
            total = tl.dot(x, int4_as_e4m3(words_ptr, k, n, K, N), total)
        columns = tl.load(scale_ptr + n, mask=n < N, other=0.0).to(tl.float32)
        total = (total * rows[:, None]) * columns[None, :]
    else:
        for group in range(0, K // GROUP):
            sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
            for start in range(0, GROUP, BLOCK_K):
                k = group * GROUP + start + tl.arange(0, BLOCK_K)
                x = tl.load(x_ptr + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
                sums = tl.dot(x, int4_as_e4m3(words_ptr, k, n, K, N), sums)
            scales = tl.load(scale_ptr + (tl.zeros_like(n) + group) * N + n, mask=n < N, other=0.0).to(tl.float32)
            total = tl.fma(sums, tl.broadcast_to(scales[None, :], (BLOCK_M, BLOCK_N)), total)
        total = total * rows[:, None]
    tl.store(out_ptr + m[:, None] * N + n[None, :], total, mask=(m[:, None] < M) & (n[None, :] < N))


def w4a8_fp8_matmul(
    x: torch.Tensor, x_scales: torch.Tensor, words: torch.Tensor, scales: torch.Tensor, *, grouped: bool = True,
    block_m: int = 64, block_n: int = 64, block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """e4m3 activations times packed INT4 weights.

    Args:
        x: (M, K) float8_e4m3fn, contiguous as all of them.
        x_scales: (M,) float32.
        words: (K / 8, N) int32, `W4A8Fp8Weights.pack`.
        scales: (K / group, N) or (1, N) float16, `W4A8Fp8Weights.kernel_scales`.
        grouped: whether the scales are those of groups of K.
        block_m: rows of a tile; below 64 Hopper multiplies as f16.
        block_n: columns.
        block_k: elements of K a step; with groups at most a group, which it must divide.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit.
    """
    m, k = checked(x, "x", ("float8_e4m3fn",), (None, None)).shape
    check_multiple(k, 8, "K", "the codes of a word,")
    n = checked(words, "words", ("int32",), (k // 8, None)).shape[1]
    checked(x_scales, "x_scales", ("float32",), (m,))
    groups = checked(scales, "scales", ("float16",), (None if grouped else 1, n)).shape[0]
    group = group_size(k, groups) if grouped else 0
    if 0 in (m, n, k):
        return zeros_like(x, m, n)
    if grouped:
        block_k = min(block_k, group)
        check_multiple(group, block_k, "the group", "block_k")
        check_multiple(group, 32, "the group", "the K of FP8 instructions,")
    out = float32_like(x, m, n)
    w4a8_fp8_kernel[(triton.cdiv(m, block_m), triton.cdiv(n, block_n))](
        x, x_scales, words, scales, out, m, n, k, GROUP=group, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, enable_fp_fusion=False
    )  # fmt: skip
    return out
