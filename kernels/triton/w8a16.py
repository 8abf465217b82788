"""W8A16: INT8 or e4m3 words, dequantized in registers and multiplied as f16 or bf16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mmabits.isa import OperandError
from mmabits.kernels.schemes.w8a16 import KINDS
from mmabits.kernels.triton.operands import check_multiple, checked, float32_like, group_size, zeros_like

if TYPE_CHECKING:
    import torch


@triton.jit
def from_e4m3(codes):  # type: ignore[no-untyped-def]
    """Bytes of e4m3 in f16, by their bits: a 256th of the value, subnormals too, and times 256, both exact. NaN stays NaN."""
    bits = (codes & 128) << 8 | (codes & 127) << 7
    value = bits.to(tl.int16).to(tl.float16, bitcast=True) * 256.0
    return tl.where((codes & 127) == 127, float("nan"), value)


@triton.jit
def w8a16_kernel(  # type: ignore[no-untyped-def]
    x_ptr, words_ptr, scales_ptr, out_ptr, M, N, K,
    E4M3: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile; GROUP of 0: the accumulators are multiplied by the channels' scales."""
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
        inside = (k[:, None] < K) & (n[None, :] < N)
        words = tl.load(words_ptr + (k // 4).to(tl.int64)[:, None] * N + n[None, :], mask=inside, other=0)
        if E4M3:
            w = from_e4m3((words >> ((k & 3) * 8)[:, None]) & 255).to(x_ptr.dtype.element_ty)
        else:
            w = (words << (24 - (k & 3) * 8)[:, None] >> 24).to(x_ptr.dtype.element_ty)
        if GROUP > 0:
            scale = tl.load(scales_ptr + (k // GROUP).to(tl.int64)[:, None] * N + n[None, :], mask=inside, other=0.0)
            w = w * scale.to(x_ptr.dtype.element_ty)
        acc = tl.dot(x, w, acc)
    if GROUP == 0:
        acc *= tl.load(scales_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    tl.store(out_ptr + m[:, None] * N + n[None, :], acc, mask=(m[:, None] < M) & (n[None, :] < N))


def w8a16_matmul(
    x: torch.Tensor, words: torch.Tensor, scales: torch.Tensor, *, kind: str = "int8", grouped: bool = False,
    block_m: int = 64, block_n: int = 64, block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """Activations times 8-bit weights.

    Args:
        x: (M, K) float16 or bfloat16, contiguous as all of them.
        words: (K / 4, N) int32, `schemes.w8a16.Weights8.pack`.
        scales: (K / group, N) float16, or (1, N).
        kind: what the bytes are, `"int8"` or `"e4m3"`.
        grouped: whether the scales are those of groups of K, which weights are multiplied by; else of channels, for the accumulators.
        block_m: rows of a tile.
        block_n: columns.
        block_k: elements of K a step.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit.
    """
    if kind not in KINDS:
        raise OperandError(f"kinds of 8-bit weights are {', '.join(KINDS)}, got {kind!r}")
    m, k = checked(x, "x", ("float16", "bfloat16"), (None, None)).shape
    check_multiple(k, 4, "K", "the codes of a word,")
    n = checked(words, "words", ("int32",), (k // 4, None)).shape[1]
    groups = checked(scales, "scales", ("float16",), (None if grouped else 1, n)).shape[0]
    group = group_size(k, groups) if grouped else 0
    if 0 in (m, n, k):
        return zeros_like(x, m, n)
    out = float32_like(x, m, n)
    w8a16_kernel[(triton.cdiv(m, block_m), triton.cdiv(n, block_n))](
        x, words, scales, out, m, n, k, E4M3=kind == "e4m3", GROUP=group, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k,
        enable_fp_fusion=False,
    )  # fmt: skip
    return out
