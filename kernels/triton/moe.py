"""Mixture of experts: a grouped GEMM over blocks of tokens that share an expert, and the sum over a token's experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from mmabits.isa import OperandError
from mmabits.kernels.triton.operands import check_indices, check_multiple, checked, float32_like, group_size, reads, zeros_like
from mmabits.kernels.triton.w4a16 import awq_tile

if TYPE_CHECKING:
    import torch


Tables = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]


@triton.jit
def block_of(choices_ptr, experts_ptr, CHOICES, TOP_K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Choices of a block, their rows of x, which are there, the block's expert (the first one's weights for -1), and columns."""
    block = tl.program_id(0)
    choice = tl.load(choices_ptr + block * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    expert = tl.maximum(tl.load(experts_ptr + block), 0).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    return choice, choice // TOP_K, choice < CHOICES, expert, n


@triton.jit
def store_rows(rows_ptr, experts_ptr, weights_ptr, acc, choice, there, n, N):  # type: ignore[no-untyped-def]
    """Rows times their routing weights; +0 in blocks that no expert takes."""
    weight = tl.load(weights_ptr + choice, mask=there, other=0.0)
    rows = tl.where(tl.load(experts_ptr + tl.program_id(0)) < 0, 0.0, acc * weight[:, None])
    tl.store(rows_ptr + choice[:, None] * N + n[None, :], rows, mask=there[:, None] & (n[None, :] < N))


@triton.jit
def moe_w4a16_kernel(  # type: ignore[no-untyped-def]
    x_ptr, qweight_ptr, qzeros_ptr, scales_ptr, choices_ptr, experts_ptr, weights_ptr, rows_ptr, CHOICES, N, K, TOP_K,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the rows of an expert with INT4 weights, times their routing weights."""
    choice, token, there, expert, n = block_of(choices_ptr, experts_ptr, CHOICES, TOP_K, BLOCK_M, BLOCK_N)
    qweight = qweight_ptr + expert * K * (N // 8)
    qzeros = qzeros_ptr + expert * (K // GROUP) * (N // 8)
    scales = scales_ptr + expert * (K // GROUP) * N
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + token[:, None] * K + k[None, :], mask=there[:, None] & (k[None, :] < K), other=0.0)
        w = awq_tile(qweight, qzeros, scales, k, n, K, N, GROUP, x_ptr.dtype.element_ty)
        acc = tl.dot(x, w, acc)
    store_rows(rows_ptr, experts_ptr, weights_ptr, acc, choice, there, n, N)


@triton.jit
def moe_mxfp4_kernel(  # type: ignore[no-untyped-def]
    x_ptr, codes_ptr, scales_ptr, choices_ptr, experts_ptr, weights_ptr, rows_ptr, CHOICES, N, K, TOP_K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the rows of an expert with MXFP4 weights, times their routing weights."""
    choice, token, there, expert, n = block_of(choices_ptr, experts_ptr, CHOICES, TOP_K, BLOCK_M, BLOCK_N)
    codes = codes_ptr + expert * N * (K // 2)
    scales = scales_ptr + expert * N * (K // 32)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        pair = start // 2 + tl.arange(0, BLOCK_K // 2)
        group = start // 32 + tl.arange(0, BLOCK_K // 32)
        x = tl.load(x_ptr + token[:, None] * K + k[None, :], mask=there[:, None] & (k[None, :] < K), other=0.0)
        w = tl.load(codes + n[None, :] * (K // 2) + pair[:, None], mask=(pair[:, None] < K // 2) & (n[None, :] < N), other=0)
        scale = tl.load(scales + n[:, None] * (K // 32) + group[None, :], mask=(group[None, :] < K // 32) & (n[:, None] < N), other=127)
        acc = tl.dot_scaled(x, None, "bf16", w, scale, "e2m1", acc)
    store_rows(rows_ptr, experts_ptr, weights_ptr, acc, choice, there, n, N)


@triton.jit
def moe_sum_kernel(rows_ptr, out_ptr, N, TOP_K: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """The rows of a token, added in the order of its choices."""
    token = tl.program_id(0).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    total = tl.load(rows_ptr + token * TOP_K * N + n, mask=n < N, other=0.0)
    for choice in tl.static_range(1, TOP_K):
        total = total + tl.load(rows_ptr + (token * TOP_K + choice) * N + n, mask=n < N, other=0.0)
    tl.store(out_ptr + token * N + n, total, mask=n < N)


def checked_routing(
    tokens: int,
    experts: int,
    weights: torch.Tensor,
    choices: torch.Tensor,
    block_experts: torch.Tensor,
    block_m: int,
    check: bool | None,
    *,
    least: int = 0,
) -> tuple[int, int]:
    """Choices of a token, and blocks.

    Raises:
        OperandTypeError, OperandError: tables that do not fit.
    """
    top_k = checked(weights, "weights", ("float32",), (tokens, None)).shape[1]
    blocks = checked(block_experts, "block_experts", ("int32",), (None,)).shape[0]
    checked(choices, "choices", ("int32",), (blocks * block_m,))
    if top_k == 0 or (blocks == 0 and tokens):
        raise OperandError(f"every token needs an expert, got top_k = {top_k} and {blocks} blocks")
    check_indices(block_experts, "experts of blocks", -1, experts - 1, check)
    check_indices(choices, "choices", 0, tokens * top_k, check)
    if reads(choices, check):
        # What no block has would stay unwritten, and what two blocks have would be that of either.
        times = choices.bincount(minlength=tokens * top_k + 1)[: tokens * top_k]
        if (times != 1).any():
            wrong = int((times != 1).nonzero()[0])
            raise OperandError(f"choices must hold each of 0 to {tokens * top_k - 1} once, got {wrong} {int(times[wrong])} times")
    return top_k, blocks


def tokens_of(count: int, weights: torch.Tensor, by_choice: bool) -> int:
    """How many tokens there are, of which `count` rows of x are choices, or tokens themselves.

    Raises:
        OperandTypeError, OperandError: routing weights for others.
    """
    tokens, top_k = checked(weights, "weights", ("float32",), (None, None)).shape
    wanted = tokens * top_k if by_choice else tokens
    if count != wanted:
        raise OperandError(f"x must have {wanted} rows for weights of shape {tuple(weights.shape)}, got {count}")
    return tokens


def added(rows: torch.Tensor, weights: torch.Tensor, block_n: int) -> torch.Tensor:
    """The rows of each token added in the order of its choices, (tokens, N)."""
    (tokens, top_k), n = weights.shape, rows.shape[1]
    if not rows.numel():
        return zeros_like(rows, tokens, n)
    out = float32_like(rows, tokens, n)
    moe_sum_kernel[(tokens, triton.cdiv(n, block_n))](rows, out, n, TOP_K=top_k, BLOCK_N=block_n, enable_fp_fusion=False)
    return out


def launch_rows(
    kernel: Any, parts: tuple[Any, ...], tables: Tables, sizes: tuple[int, int, int], *, by_choice: bool, check: bool | None,
    block: tuple[int, int], **constants: Any,
) -> torch.Tensor:  # fmt: skip
    """Launch a kernel of experts; (choices, N) float32.

    Args:
        kernel: a kernel of this module or of `moe_experts`.
        parts: its operands, x first.
        tables: routing weights, and what `align` made of the choices.
        sizes: of the experts: how many, N and K.
        by_choice: x has a row for each choice.
        check: as for `checked_routing`.
        block: rows and columns of a tile.
        constants: of the kernel.

    Raises:
        OperandTypeError, OperandError: tables that do not fit.
    """
    (weights, choices, block_experts), (experts, n, k), x = tables, sizes, parts[0]
    tokens = tokens_of(x.shape[0], weights, by_choice)
    top_k, blocks = checked_routing(tokens, experts, weights, choices, block_experts, block[0], check)
    count = tokens * top_k
    if 0 in (count, n, k):
        return zeros_like(x, count, n)
    rows = float32_like(x, count, n)
    kernel[(blocks, triton.cdiv(n, block[1]))](
        *parts, choices, block_experts, weights, rows, count, n, k, 1 if by_choice else top_k, **constants, BLOCK_M=block[0],
        BLOCK_N=block[1], enable_fp_fusion=False,
    )  # fmt: skip
    return rows


def rows_w4a16(
    x: torch.Tensor, qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, weights: torch.Tensor, choices: torch.Tensor,
    block_experts: torch.Tensor, *, by_choice: bool = False, check: bool | None = None, block_m: int = 64, block_n: int = 64,
    block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """As `moe_w4a16`, up to the sum: (tokens * top_k, N). `by_choice`: x has a row for each choice, as in a layer's second product."""
    k = checked(x, "x", ("float16", "bfloat16"), (None, None)).shape[1]
    experts, _, words = checked(qweight, "qweight", ("int32",), (None, k, None)).shape
    n = 8 * words
    groups = checked(scales, "scales", ("float16",), (experts, None, n)).shape[1]
    checked(qzeros, "qzeros", ("int32",), (experts, groups, words))
    return launch_rows(
        moe_w4a16_kernel, (x, qweight, qzeros, scales), (weights, choices, block_experts), (experts, n, k), by_choice=by_choice,
        check=check, block=(block_m, block_n), BLOCK_K=block_k, GROUP=group_size(k, groups),
    )  # fmt: skip


def moe_w4a16(
    x: torch.Tensor, qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, weights: torch.Tensor, choices: torch.Tensor,
    block_experts: torch.Tensor, *, check: bool | None = None, block_m: int = 64, block_n: int = 64, block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """Grouped GEMM with INT4 experts.

    Args:
        x: (tokens, K) float16 or bfloat16, contiguous as all of them.
        qweight: (experts, K, N / 8) int32 in AWQ's packing.
        qzeros: (experts, K / group, N / 8) int32.
        scales: (experts, K / group, N) float16.
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
    rows = rows_w4a16(
        x, qweight, qzeros, scales, weights, choices, block_experts, check=check, block_m=block_m, block_n=block_n, block_k=block_k
    )  # fmt: skip
    return added(rows, weights, block_n)


def rows_mxfp4(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, weights: torch.Tensor, choices: torch.Tensor, block_experts: torch.Tensor,
    *, by_choice: bool = False, check: bool | None = None, block_m: int = 64, block_n: int = 64, block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """As `moe_mxfp4`, up to the sum: (tokens * top_k, N). `by_choice`: x has a row for each choice, as in a layer's second product."""
    k = checked(x, "x", ("bfloat16",), (None, None)).shape[1]
    check_multiple(k, 32, "K", "the block size")
    experts, n, _ = checked(codes, "codes", ("uint8",), (None, None, k // 2)).shape
    checked(scales, "scales", ("uint8",), (experts, n, k // 32))
    return launch_rows(
        moe_mxfp4_kernel, (x, codes, scales), (weights, choices, block_experts), (experts, n, k), by_choice=by_choice, check=check,
        block=(block_m, block_n), BLOCK_K=block_k,
    )  # fmt: skip


def moe_mxfp4(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, weights: torch.Tensor, choices: torch.Tensor, block_experts: torch.Tensor,
    *, check: bool | None = None, block_m: int = 64, block_n: int = 64, block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """Grouped GEMM with MXFP4 experts, which `tl.dot_scaled` converts to bfloat16.

    Args:
        x: (tokens, K) bfloat16, K a multiple of 32; contiguous as all of them.
        codes: (experts, N, K / 2) uint8.
        scales: (experts, N, K / 32) uint8.
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
    rows = rows_mxfp4(x, codes, scales, weights, choices, block_experts, check=check, block_m=block_m, block_n=block_n, block_k=block_k)
    return added(rows, weights, block_n)
