"""W4A8 as in QQQ: INT4 weights become INT8 in registers, and INT8 tensor cores multiply them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mmabits.kernels.triton.operands import check_multiple, checked, float32_like, group_size, zeros_like

if TYPE_CHECKING:
    import torch


@triton.jit
def w4a8_kernel(  # type: ignore[no-untyped-def]
    x_ptr, x_scale_ptr, w_ptr, group_scale_ptr, out_scale_ptr, out_ptr, M, N, K,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the scaled product; GROUP of 0: the weights have scales for channels alone."""
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0)
        inside = (k[:, None] < K) & (n[None, :] < N)
        words = tl.load(w_ptr + (k // 8).to(tl.int64)[:, None] * N + n[None, :], mask=inside, other=0)
        # The nibble is shifted to the top of the word; shifting back keeps its sign.
        codes = words << (28 - (k & 7) * 4)[:, None] >> 28
        if GROUP == 0:
            w = (codes << 4).to(tl.int8)
        else:
            scale = tl.load(group_scale_ptr + (k // GROUP).to(tl.int64)[:, None] * N + n[None, :], mask=inside, other=0.0)
            product = codes.to(tl.float16) * scale
            # An f16 of 1536 and more has no fraction bits: the sum is rounded to an integer, ties to even.
            w = ((product + 1536.0) - 1536.0).to(tl.int8)
        acc = tl.dot(x, w, acc, out_dtype=tl.int32)
    rows = tl.load(x_scale_ptr + m, mask=m < M, other=0.0)
    columns = tl.load(out_scale_ptr + n, mask=n < N, other=0.0)
    out = (acc.to(tl.float32) * rows[:, None]) * columns[None, :]
    tl.store(out_ptr + m[:, None] * N + n[None, :], out, mask=(m[:, None] < M) & (n[None, :] < N))


def w4a8_matmul(
    x: torch.Tensor, x_scales: torch.Tensor, words: torch.Tensor, output_scales: torch.Tensor, group_scales: torch.Tensor | None = None, *,
    block_m: int = 64, block_n: int = 64, block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """INT8 activations times packed INT4 weights.

    Args:
        x: (M, K) int8, contiguous as all of them.
        x_scales: (M,) float32.
        words: (K / 8, N) int32, `W4A8Weights.pack`.
        output_scales: (N,) float32, `W4A8Weights.output_scales`.
        group_scales: (K / group, N) float16; None: codes are shifted by four bits.
        block_m: rows of a tile.
        block_n: columns.
        block_k: elements of K a step.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit.
    """
    m, k = checked(x, "x", ("int8",), (None, None)).shape
    check_multiple(k, 8, "K", "the codes of a word,")
    n = checked(words, "words", ("int32",), (k // 8, None)).shape[1]
    checked(x_scales, "x_scales", ("float32",), (m,))
    checked(output_scales, "output_scales", ("float32",), (n,))
    group = 0
    if group_scales is not None:
        groups = checked(group_scales, "group_scales", ("float16",), (None, n)).shape[0]
        group = group_size(k, groups)
    if 0 in (m, n, k):
        return zeros_like(x, m, n)
    out = float32_like(x, m, n)
    grid = (triton.cdiv(m, block_m), triton.cdiv(n, block_n))
    w4a8_kernel[grid](
        x, x_scales, words, output_scales if group_scales is None else group_scales, output_scales, out, m, n, k,
        GROUP=group, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, enable_fp_fusion=False,
    )  # fmt: skip
    return out
