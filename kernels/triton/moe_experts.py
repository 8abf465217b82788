"""Mixture of experts in INT8, FP8 tiles, MXFP8 and NVFP4: grouped GEMMs over blocks of tokens that share an expert."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mmabits.isa import OperandError
from mmabits.kernels.schemes.fp8_blockwise import BLOCK
from mmabits.kernels.schemes.w8a16 import KINDS
from mmabits.kernels.triton.moe import added, block_of, launch_rows, store_rows
from mmabits.kernels.triton.operands import check_multiple, checked, group_size
from mmabits.kernels.triton.w8a16 import from_e4m3

if TYPE_CHECKING:
    import torch


@triton.jit
def moe_w8a8_kernel(  # type: ignore[no-untyped-def]
    x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, choices_ptr, experts_ptr, weights_ptr, rows_ptr, CHOICES, N, K, TOP_K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of an INT8 expert's rows: exact sums, scaled in float32."""
    choice, row, there, expert, n = block_of(choices_ptr, experts_ptr, CHOICES, TOP_K, BLOCK_M, BLOCK_N)
    codes = w_ptr + expert * N * K
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + row[:, None] * K + k[None, :], mask=there[:, None] & (k[None, :] < K), other=0)
        w = tl.load(codes + n[None, :] * K + k[:, None], mask=(n[None, :] < N) & (k[:, None] < K), other=0)
        acc = tl.dot(x, w, acc, out_dtype=tl.int32)
    rows = tl.load(x_scale_ptr + row, mask=there, other=0.0)
    columns = tl.load(w_scale_ptr + expert * N + n, mask=n < N, other=0.0)
    store_rows(rows_ptr, experts_ptr, weights_ptr, (acc.to(tl.float32) * rows[:, None]) * columns[None, :], choice, there, n, N)


@triton.jit
def moe_w8a16_kernel(  # type: ignore[no-untyped-def]
    x_ptr, words_ptr, scales_ptr, choices_ptr, experts_ptr, weights_ptr, rows_ptr, CHOICES, N, K, TOP_K,
    E4M3: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the rows of an expert with 8-bit weights; GROUP of 0: the accumulators are multiplied by the channels' scales."""
    choice, row, there, expert, n = block_of(choices_ptr, experts_ptr, CHOICES, TOP_K, BLOCK_M, BLOCK_N)
    packed = words_ptr + expert * (K // 4) * N
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + row[:, None] * K + k[None, :], mask=there[:, None] & (k[None, :] < K), other=0.0)
        inside = (k[:, None] < K) & (n[None, :] < N)
        words = tl.load(packed + (k // 4).to(tl.int64)[:, None] * N + n[None, :], mask=inside, other=0)
        if E4M3:
            w = from_e4m3((words >> ((k & 3) * 8)[:, None]) & 255).to(x_ptr.dtype.element_ty)
        else:
            w = (words << (24 - (k & 3) * 8)[:, None] >> 24).to(x_ptr.dtype.element_ty)
        if GROUP > 0:
            scales = scales_ptr + expert * (K // GROUP) * N
            scale = tl.load(scales + (k // GROUP).to(tl.int64)[:, None] * N + n[None, :], mask=inside, other=0.0)
            w = w * scale.to(x_ptr.dtype.element_ty)
        acc = tl.dot(x, w, acc)
    if GROUP == 0:
        acc *= tl.load(scales_ptr + expert * N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    store_rows(rows_ptr, experts_ptr, weights_ptr, acc, choice, there, n, N)


@triton.jit
def moe_fp8_tiles_kernel(  # type: ignore[no-untyped-def]
    x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, choices_ptr, experts_ptr, weights_ptr, rows_ptr, CHOICES, N, K, TOP_K,
    IN_TURN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile of an FP8 expert's rows; each 128 of K start from zero on the tensor cores and are scaled and added in float32."""
    choice, row, there, expert, n = block_of(choices_ptr, experts_ptr, CHOICES, TOP_K, BLOCK_M, BLOCK_N)
    elements = w_ptr + expert * N * K
    scales = w_scale_ptr + expert * tl.cdiv(N, BLOCK) * (K // BLOCK)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for block in range(0, K // BLOCK):
        k = block * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row[:, None] * K + k[None, :], mask=there[:, None], other=0.0)
        w = tl.load(elements + n[None, :] * K + k[:, None], mask=n[None, :] < N, other=0.0)
        x_scale = tl.load(x_scale_ptr + row * (K // BLOCK) + block, mask=there, other=0.0)
        w_scale = tl.load(scales + (n // BLOCK) * (K // BLOCK) + block, mask=n < N, other=0.0)
        sums = tl.dot(x, w)
        if IN_TURN:
            total = tl.fma(sums * x_scale[:, None], tl.broadcast_to(w_scale[None, :], (BLOCK_M, BLOCK_N)), total)
        else:
            total = tl.fma(sums, x_scale[:, None] * w_scale[None, :], total)
    store_rows(rows_ptr, experts_ptr, weights_ptr, total, choice, there, n, N)


@triton.jit
def moe_block_scaled_kernel(  # type: ignore[no-untyped-def]
    x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, alpha_ptr, choices_ptr, experts_ptr, weights_ptr, rows_ptr, CHOICES, N, K, TOP_K,
    FORMAT: tl.constexpr, GROUP: tl.constexpr, ALPHA: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the rows of a block-scaled expert; ALPHA: with a factor for each expert. K is a multiple of GROUP."""
    PACK: tl.constexpr = 2 if FORMAT == "e2m1" else 1
    choice, row, there, expert, n = block_of(choices_ptr, experts_ptr, CHOICES, TOP_K, BLOCK_M, BLOCK_N)
    elements = w_ptr + expert * N * (K // PACK)
    scales = w_scale_ptr + expert * N * (K // GROUP)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start // PACK + tl.arange(0, BLOCK_K // PACK)
        part = start // GROUP + tl.arange(0, BLOCK_K // GROUP)
        x = tl.load(x_ptr + row[:, None] * (K // PACK) + k[None, :], mask=there[:, None] & (k[None, :] < K // PACK), other=0.0)
        w = tl.load(elements + n[None, :] * (K // PACK) + k[:, None], mask=(n[None, :] < N) & (k[:, None] < K // PACK), other=0.0)
        inside = part[None, :] < K // GROUP
        x_scale = tl.load(x_scale_ptr + row[:, None] * (K // GROUP) + part[None, :], mask=there[:, None] & inside, other=0.0)
        w_scale = tl.load(scales + n[:, None] * (K // GROUP) + part[None, :], mask=(n[:, None] < N) & inside, other=0.0)
        acc = tl.dot_scaled(x, x_scale, FORMAT, w, w_scale, FORMAT, acc)
    if ALPHA:
        acc *= tl.load(alpha_ptr + expert)
    store_rows(rows_ptr, experts_ptr, weights_ptr, acc, choice, there, n, N)


# Launchers ------------------------------------------------------------------------------------------------------------


def rows_w8a8(
    x: torch.Tensor, x_scales: torch.Tensor, w: torch.Tensor, w_scales: torch.Tensor, weights: torch.Tensor, choices: torch.Tensor,
    block_experts: torch.Tensor, *, by_choice: bool = False, check: bool | None = None, block_m: int = 64, block_n: int = 64,
    block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """As `moe_w8a8`, up to the sum: (tokens * top_k, N). `by_choice`: x has a row for each choice, as in a layer's second product."""
    count, k = checked(x, "x", ("int8",), (None, None)).shape
    experts, n, _ = checked(w, "w", ("int8",), (None, None, k)).shape
    checked(x_scales, "x_scales", ("float32",), (count,))
    checked(w_scales, "w_scales", ("float32",), (experts, n))
    return launch_rows(
        moe_w8a8_kernel, (x, x_scales, w, w_scales), (weights, choices, block_experts), (experts, n, k), by_choice=by_choice, check=check,
        block=(block_m, block_n), BLOCK_K=block_k,
    )  # fmt: skip


def moe_w8a8(
    x: torch.Tensor, x_scales: torch.Tensor, w: torch.Tensor, w_scales: torch.Tensor, weights: torch.Tensor, choices: torch.Tensor,
    block_experts: torch.Tensor, *, check: bool | None = None, block_m: int = 64, block_n: int = 64, block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """Grouped GEMM with INT8 activations and experts: exact sums, `(f32(sum) * scale of the token) * scale of the channel`.

    Args:
        x: (tokens, K) int8, contiguous as all of them.
        x_scales: (tokens,) float32.
        w: (experts, N, K) int8.
        w_scales: (experts, N) float32.
        weights: (tokens, top_k) float32 routing weights.
        choices: (blocks * block_m,) int32, of `align`: each choice once, and the number of choices where a block is filled up.
        block_experts: (blocks,) int32, of `align`; -1: rows of +0, for choices over a capacity or of experts elsewhere.
        check: whether to look at both first; None: if they are on the CPU, since for a GPU the host would have to wait.
        block_m: rows of a block of `align`, and of a tile.
        block_n: columns of a tile.
        block_k: elements of K a step.

    Returns:
        (tokens, N) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit, experts that are not there, choices that are missing or there twice.
    """
    rows = rows_w8a8(
        x, x_scales, w, w_scales, weights, choices, block_experts, check=check, block_m=block_m, block_n=block_n, block_k=block_k
    )  # fmt: skip
    return added(rows, weights, block_n)


def rows_w8a16(
    x: torch.Tensor, words: torch.Tensor, scales: torch.Tensor, weights: torch.Tensor, choices: torch.Tensor, block_experts: torch.Tensor,
    *, kind: str = "int8", grouped: bool = False, by_choice: bool = False, check: bool | None = None, block_m: int = 64,
    block_n: int = 64, block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """As `moe_w8a16`, up to the sum: (tokens * top_k, N). `by_choice`: x has a row for each choice, as in a layer's second product."""
    if kind not in KINDS:
        raise OperandError(f"kinds of 8-bit weights are {', '.join(KINDS)}, got {kind!r}")
    k = checked(x, "x", ("float16", "bfloat16"), (None, None)).shape[1]
    check_multiple(k, 4, "K", "the codes of a word,")
    experts, _, n = checked(words, "words", ("int32",), (None, k // 4, None)).shape
    groups = checked(scales, "scales", ("float16",), (experts, None if grouped else 1, n)).shape[1]
    return launch_rows(
        moe_w8a16_kernel, (x, words, scales), (weights, choices, block_experts), (experts, n, k), by_choice=by_choice, check=check,
        block=(block_m, block_n), BLOCK_K=block_k, E4M3=kind == "e4m3", GROUP=group_size(k, groups) if grouped else 0,
    )  # fmt: skip


def moe_w8a16(
    x: torch.Tensor, words: torch.Tensor, scales: torch.Tensor, weights: torch.Tensor, choices: torch.Tensor, block_experts: torch.Tensor,
    *, kind: str = "int8", grouped: bool = False, check: bool | None = None, block_m: int = 64, block_n: int = 64, block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """Grouped GEMM with 8-bit weights, INT8 or e4m3.

    Args:
        x: (tokens, K) float16 or bfloat16, contiguous as all of them.
        words: (experts, K / 4, N) int32, as of `schemes.w8a16.Weights8.pack`.
        scales: (experts, K / group, N) float16, or (experts, 1, N).
        weights: (tokens, top_k) float32 routing weights.
        choices: (blocks * block_m,) int32, of `align`.
        block_experts: (blocks,) int32, of `align`.
        kind: what the bytes are, `"int8"` or `"e4m3"`.
        grouped: whether the scales are those of groups of K, which weights are multiplied by; else of channels, for the accumulators.
        check: as for `moe_w8a8`.
        block_m: rows of a block of `align`, and of a tile.
        block_n: columns of a tile.
        block_k: elements of K a step.

    Returns:
        (tokens, N) float32.

    Raises:
        OperandTypeError, OperandError: as `moe_w8a8`.
    """
    rows = rows_w8a16(
        x, words, scales, weights, choices, block_experts, kind=kind, grouped=grouped, check=check, block_m=block_m, block_n=block_n,
        block_k=block_k,
    )  # fmt: skip
    return added(rows, weights, block_n)


def rows_fp8_tiles(
    x: torch.Tensor, x_scales: torch.Tensor, w: torch.Tensor, w_scales: torch.Tensor, weights: torch.Tensor, choices: torch.Tensor,
    block_experts: torch.Tensor, *, in_turn: bool = False, by_choice: bool = False, check: bool | None = None, block_m: int = 64,
    block_n: int = 64,
) -> torch.Tensor:  # fmt: skip
    """As `moe_fp8_tiles`, up to the sum: (tokens * top_k, N). `by_choice`: x has a row for each choice, as in a layer's second product."""
    count, k = checked(x, "x", ("float8_e4m3fn",), (None, None)).shape
    check_multiple(k, BLOCK, "K", "the block size")
    experts, n, _ = checked(w, "w", ("float8_e4m3fn",), (None, None, k)).shape
    checked(x_scales, "x_scales", ("float32",), (count, k // BLOCK))
    checked(w_scales, "w_scales", ("float32",), (experts, triton.cdiv(n, BLOCK), k // BLOCK))
    return launch_rows(
        moe_fp8_tiles_kernel, (x, x_scales, w, w_scales), (weights, choices, block_experts), (experts, n, k), by_choice=by_choice,
        check=check, block=(block_m, block_n), BLOCK=BLOCK, IN_TURN=in_turn,
    )  # fmt: skip


def moe_fp8_tiles(
    x: torch.Tensor, x_scales: torch.Tensor, w: torch.Tensor, w_scales: torch.Tensor, weights: torch.Tensor, choices: torch.Tensor,
    block_experts: torch.Tensor, *, in_turn: bool = False, check: bool | None = None, block_m: int = 64, block_n: int = 64,
) -> torch.Tensor:  # fmt: skip
    """Grouped GEMM in FP8 tiles, as in DeepSeek-V3: each 128 of K from zero, then one float32 fused multiply-add with both scales.

    Args:
        x: (tokens, K) float8_e4m3fn, K a multiple of 128; contiguous as all of them.
        x_scales: (tokens, K / 128) float32.
        w: (experts, N, K) float8_e4m3fn.
        w_scales: (experts, ceil(N / 128), K / 128) float32.
        weights: (tokens, top_k) float32 routing weights.
        choices: (blocks * block_m,) int32, of `align`.
        block_experts: (blocks,) int32, of `align`.
        in_turn: the sum times the scale of x, rounded, and then the scale of w, as vLLM has it; else times their product.
        check: as for `moe_w8a8`.
        block_m: rows of a block of `align`, and of a tile; below 64 Hopper multiplies as f16.
        block_n: columns of a tile.

    Returns:
        (tokens, N) float32.

    Raises:
        OperandTypeError, OperandError: as `moe_w8a8`.
    """
    rows = rows_fp8_tiles(
        x, x_scales, w, w_scales, weights, choices, block_experts, in_turn=in_turn, check=check, block_m=block_m, block_n=block_n
    )  # fmt: skip
    return added(rows, weights, block_n)


def rows_mxfp8(
    x: torch.Tensor, x_scales: torch.Tensor, w: torch.Tensor, w_scales: torch.Tensor, weights: torch.Tensor, choices: torch.Tensor,
    block_experts: torch.Tensor, *, by_choice: bool = False, check: bool | None = None, block_m: int = 128, block_n: int = 64,
    block_k: int = 128,
) -> torch.Tensor:  # fmt: skip
    """As `moe_mxfp8`, up to the sum: (tokens * top_k, N). `by_choice`: x has a row for each choice, as in a layer's second product."""
    count, k = checked(x, "x", ("float8_e4m3fn",), (None, None)).shape
    check_multiple(k, 32, "K", "the block size")
    experts, n, _ = checked(w, "w", ("float8_e4m3fn",), (None, None, k)).shape
    checked(x_scales, "x_scales", ("uint8",), (count, k // 32))
    checked(w_scales, "w_scales", ("uint8",), (experts, n, k // 32))
    return launch_rows(
        moe_block_scaled_kernel, (x, x_scales, w, w_scales, x), (weights, choices, block_experts), (experts, n, k), by_choice=by_choice,
        check=check, block=(block_m, block_n), BLOCK_K=block_k, FORMAT="e4m3", GROUP=32, ALPHA=False,
    )  # fmt: skip


def moe_mxfp8(
    x: torch.Tensor, x_scales: torch.Tensor, w: torch.Tensor, w_scales: torch.Tensor, weights: torch.Tensor, choices: torch.Tensor,
    block_experts: torch.Tensor, *, check: bool | None = None, block_m: int = 128, block_n: int = 64, block_k: int = 128,
) -> torch.Tensor:  # fmt: skip
    """Grouped GEMM in MXFP8: block-scaled instructions where there are such, else bf16.

    Args:
        x: (tokens, K) float8_e4m3fn, K a multiple of 32; contiguous as all of them.
        x_scales: (tokens, K / 32) uint8, ue8m0 codes.
        w: (experts, N, K) float8_e4m3fn.
        w_scales: (experts, N, K / 32) uint8.
        weights: (tokens, top_k) float32 routing weights.
        choices: (blocks * block_m,) int32, of `align(routing, block=block_m)`.
        block_experts: (blocks,) int32, of `align`.
        check: as for `moe_w8a8`.
        block_m: rows of a block of `align`, and of a tile. Blackwell's block-scaled instructions take 128.
        block_n: columns of a tile.
        block_k: elements of K a step.

    Returns:
        (tokens, N) float32.

    Raises:
        OperandTypeError, OperandError: as `moe_w8a8`.
    """
    rows = rows_mxfp8(
        x, x_scales, w, w_scales, weights, choices, block_experts, check=check, block_m=block_m, block_n=block_n, block_k=block_k
    )  # fmt: skip
    return added(rows, weights, block_n)


def rows_nvfp4(
    x: torch.Tensor, x_scales: torch.Tensor, x_tensor_scale: torch.Tensor, w: torch.Tensor, w_scales: torch.Tensor,
    w_tensor_scales: torch.Tensor, weights: torch.Tensor, choices: torch.Tensor, block_experts: torch.Tensor, *, by_choice: bool = False,
    check: bool | None = None, block_m: int = 128, block_n: int = 64, block_k: int = 128,
) -> torch.Tensor:  # fmt: skip
    """As `moe_nvfp4`, up to the sum: (tokens * top_k, N). `by_choice`: x has a row for each choice, as in a layer's second product."""
    count, held = checked(x, "x", ("uint8",), (None, None)).shape
    k = 2 * held
    check_multiple(k, 16, "K", "the block size")
    experts, n, _ = checked(w, "w", ("uint8",), (None, None, held)).shape
    checked(x_scales, "x_scales", ("float8_e4m3fn",), (count, k // 16))
    checked(w_scales, "w_scales", ("float8_e4m3fn",), (experts, n, k // 16))
    alpha = checked(x_tensor_scale, "x_tensor_scale", ("float32",), (1,)) * checked(
        w_tensor_scales, "w_tensor_scales", ("float32",), (experts,)
    )
    return launch_rows(
        moe_block_scaled_kernel, (x, x_scales, w, w_scales, alpha), (weights, choices, block_experts), (experts, n, k),
        by_choice=by_choice, check=check, block=(block_m, block_n), BLOCK_K=block_k, FORMAT="e2m1", GROUP=16, ALPHA=True,
    )  # fmt: skip


def moe_nvfp4(
    x: torch.Tensor, x_scales: torch.Tensor, x_tensor_scale: torch.Tensor, w: torch.Tensor, w_scales: torch.Tensor,
    w_tensor_scales: torch.Tensor, weights: torch.Tensor, choices: torch.Tensor, block_experts: torch.Tensor, *,
    check: bool | None = None, block_m: int = 128, block_n: int = 64, block_k: int = 128,
) -> torch.Tensor:  # fmt: skip
    """Grouped GEMM in NVFP4: block-scaled instructions where there are such, else bf16; scales of whole matrices in float32.

    Args:
        x: (tokens, K / 2) uint8, two e2m1 to a byte, K a multiple of 16; contiguous as all of them.
        x_scales: (tokens, K / 16) float8_e4m3fn.
        x_tensor_scale: (1,) float32, of all activations.
        w: (experts, N, K / 2) uint8.
        w_scales: (experts, N, K / 16) float8_e4m3fn.
        w_tensor_scales: (experts,) float32.
        weights: (tokens, top_k) float32 routing weights.
        choices: (blocks * block_m,) int32, of `align(routing, block=block_m)`.
        block_experts: (blocks,) int32, of `align`.
        check: as for `moe_w8a8`.
        block_m: rows of a block of `align`, and of a tile. Blackwell's block-scaled instructions take 128.
        block_n: columns of a tile.
        block_k: elements of K a step.

    Returns:
        (tokens, N) float32.

    Raises:
        OperandTypeError, OperandError: as `moe_w8a8`.
    """
    rows = rows_nvfp4(
        x, x_scales, x_tensor_scale, w, w_scales, w_tensor_scales, weights, choices, block_experts, check=check, block_m=block_m,
        block_n=block_n, block_k=block_k,
    )  # fmt: skip
    return added(rows, weights, block_n)
