"""Quantized attention; `mmabits.kernels.schemes.attention` says what each operation is.

With fp fusion off and exact division every operation is a single float32 one. On a GPU exp2 is ex2.approx, whose last bits differ from
what the emulation takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import triton
import triton.language as tl

from mmabits.isa import OperandError
from mmabits.kernels.schemes.attention import query_factor
from mmabits.kernels.triton.operands import check_indices, check_multiple, checked, float32_like, reads, zeros_like

if TYPE_CHECKING:
    import torch


@triton.jit
def tree_sum(rows, ROWS: tl.constexpr, LEVELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of each row of 2^LEVELS: neighbours, then neighbours of those sums, and so on."""
    for level in tl.static_range(LEVELS):
        left, right = tl.split(tl.reshape(rows, (ROWS, 2 ** (LEVELS - 1 - level), 2)))
        rows = left + right
    return tl.reshape(rows, (ROWS,))


@triton.jit
def softmax_step(scores, top, total, OFFSET: tl.constexpr, ROWS: tl.constexpr, LEVELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """p, alpha, and the new maximum and sum of each row."""
    new_top = tl.maximum(top, tl.max(scores, 1))
    alpha = tl.exp2(top - new_top)
    shifted = scores - new_top[:, None]
    if OFFSET != 0:
        shifted = shifted + OFFSET
    p = tl.exp2(shifted)
    return p, alpha, new_top, total * alpha + tree_sum(p, ROWS, LEVELS)


@triton.jit
def sage_kernel(  # type: ignore[no-untyped-def]
    q_ptr, q_scale_ptr, k_ptr, k_scale_ptr, v_ptr, v_scale_ptr, out_ptr, QUERIES, KEYS, SHARE,
    CAUSAL: tl.constexpr, FP8: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """A block of queries of a head: SageAttention with values in f16, or in e4m3 with two levels of accumulation."""
    number = tl.program_id(0)
    head = tl.program_id(1)
    own = (head // SHARE).to(tl.int64)
    i = number * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, D)
    at = (head.to(tl.int64) * QUERIES + i)[:, None] * D + d[None, :]
    q = tl.load(q_ptr + at, mask=i[:, None] < QUERIES, other=0)
    q_scale = tl.load(q_scale_ptr + head * tl.cdiv(QUERIES, BLOCK_Q) + number)
    top = tl.full((BLOCK_Q,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_Q, D), dtype=tl.float32)
    end = KEYS
    if CAUSAL:
        end = tl.minimum(KEYS, (number + 1) * BLOCK_Q)
    for start in range(0, end, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        k = tl.load(k_ptr + (own * KEYS + j)[None, :] * D + d[:, None], mask=j[None, :] < KEYS, other=0)
        k_scale = tl.load(k_scale_ptr + own * tl.cdiv(KEYS, BLOCK_K) + start // BLOCK_K)
        scores = tl.dot(q, k, out_dtype=tl.int32).to(tl.float32) * (q_scale * k_scale)
        allowed = (j < KEYS)[None, :]
        if CAUSAL:
            allowed = allowed & (j[None, :] <= i[:, None])
        scores = tl.where(allowed, scores, float("-inf"))
        p, alpha, top, total = softmax_step(scores, top, total, 0, BLOCK_Q, LEVELS)
        v = tl.load(v_ptr + (own * KEYS + j)[:, None] * D + d[None, :], mask=j[:, None] < KEYS, other=0.0)
        acc = acc * alpha[:, None]
        if FP8:
            # A dot of its own for each block: with max_num_imprecise_acc set, no version adds acc inside the tensor core.
            part = tl.dot((p * 448.0).to(tl.float8e4nv), v, max_num_imprecise_acc=BLOCK_K)
        else:
            part = tl.dot(p.to(tl.float16), v, out_dtype=tl.float16).to(tl.float32)
        acc = acc + part
    acc = tl.div_rn(acc, total[:, None])
    if FP8:
        acc = acc * tl.load(v_scale_ptr + own * D + d)[None, :]
    tl.store(out_ptr + at, acc, mask=i[:, None] < QUERIES)


@triton.jit
def fp8_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, tables_ptr, lengths_ptr, out_ptr, factor_ptr, v_scale_ptr, HEADS, KEY_HEADS, NEW, PAGES,
    PAGE: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """A block of new queries of a head of a sequence over its pages of an FP8 cache."""
    number = tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    own = (head // (HEADS // KEY_HEADS)).to(tl.int64)
    length = tl.load(lengths_ptr + sequence)
    factor = tl.load(factor_ptr)
    v_scale = tl.load(v_scale_ptr)
    i = number * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, D)
    at = ((sequence.to(tl.int64) * HEADS + head) * NEW + i)[:, None] * D + d[None, :]
    q = tl.load(q_ptr + at, mask=i[:, None] < NEW, other=0.0)
    place = length - NEW + i
    top = tl.full((BLOCK_Q,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_Q, D), dtype=tl.float32)
    end = tl.minimum(length, length - NEW + (number + 1) * BLOCK_Q)
    for start in range(0, end, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        page = tl.load(tables_ptr + sequence.to(tl.int64) * PAGES + j // PAGE, mask=j < length, other=0).to(tl.int64)
        row = ((page * PAGE + j % PAGE) * KEY_HEADS + own) * D
        k = tl.load(k_ptr + row[None, :] + d[:, None], mask=j[None, :] < length, other=0.0)
        scores = tl.dot(q, k) * factor
        scores = tl.where((j < length)[None, :] & (j[None, :] <= place[:, None]), scores, float("-inf"))
        p, alpha, top, total = softmax_step(scores, top, total, 8.0, BLOCK_Q, LEVELS)
        v = tl.load(v_ptr + row[:, None] + d[None, :], mask=j[:, None] < length, other=0.0)
        acc = tl.dot(p.to(tl.float8e4nv), v, acc * alpha[:, None])
    acc = tl.div_rn(acc, total[:, None]) * v_scale
    tl.store(out_ptr + at, acc, mask=i[:, None] < NEW)


@triton.jit
def fp8_block_kernel(  # type: ignore[no-untyped-def]
    q_ptr, q_scale_ptr, k_ptr, k_scale_ptr, v_ptr, v_scale_ptr, out_ptr, factor, QUERIES, KEYS, SHARE,
    CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """A block of queries of a head: FlashAttention-3's scheme, everything in e4m3 with a scale for each block."""
    number = tl.program_id(0)
    head = tl.program_id(1)
    own = (head // SHARE).to(tl.int64)
    i = number * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, D)
    at = (head.to(tl.int64) * QUERIES + i)[:, None] * D + d[None, :]
    q = tl.load(q_ptr + at, mask=i[:, None] < QUERIES, other=0.0)
    q_scale = factor * tl.load(q_scale_ptr + head * tl.cdiv(QUERIES, BLOCK_Q) + number)
    top = tl.full((BLOCK_Q,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_Q, D), dtype=tl.float32)
    end = KEYS
    if CAUSAL:
        end = tl.minimum(KEYS, (number + 1) * BLOCK_Q)
    for start in range(0, end, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        block = own * tl.cdiv(KEYS, BLOCK_K) + start // BLOCK_K
        k = tl.load(k_ptr + (own * KEYS + j)[None, :] * D + d[:, None], mask=j[None, :] < KEYS, other=0.0)
        scores = tl.dot(q, k) * (q_scale * tl.load(k_scale_ptr + block))
        allowed = (j < KEYS)[None, :]
        if CAUSAL:
            allowed = allowed & (j[None, :] <= i[:, None])
        scores = tl.where(allowed, scores, float("-inf"))
        p, alpha, top, total = softmax_step(scores, top, total, 8.0, BLOCK_Q, LEVELS)
        v = tl.load(v_ptr + (own * KEYS + j)[:, None] * D + d[None, :], mask=j[:, None] < KEYS, other=0.0)
        part = tl.dot(p.to(tl.float8e4nv), v, max_num_imprecise_acc=BLOCK_K)
        acc = acc * alpha[:, None] + part * tl.load(v_scale_ptr + block)
    tl.store(out_ptr + at, tl.div_rn(acc, total[:, None]), mask=i[:, None] < QUERIES)


@triton.jit
def hadamard(rows, ROWS: tl.constexpr, D: tl.constexpr, LEVELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows times a Hadamard matrix: sums and differences of neighbours, then of those at distance 2, 4, ..."""
    for level in tl.static_range(LEVELS):
        pairs = tl.permute(tl.reshape(rows, (ROWS, D // 2 ** (level + 1), 2, 2**level)), (0, 1, 3, 2))
        first, second = tl.split(pairs)
        rows = tl.reshape(tl.permute(tl.join(first + second, first - second), (0, 1, 3, 2)), (ROWS, D))
    return rows


@triton.jit
def quantize_blocks_kernel(  # type: ignore[no-untyped-def]
    x_ptr, signs_ptr, out_ptr, scale_ptr, COUNT, ROOT,
    TURN: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """A block of rows of a head in e4m3 with one scale; TURN: after random signs and a Hadamard matrix over the root of D."""
    number = tl.program_id(0)
    head = tl.program_id(1)
    i = number * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, D)
    at = (head.to(tl.int64) * COUNT + i)[:, None] * D + d[None, :]
    mask = i[:, None] < COUNT
    x = tl.load(x_ptr + at, mask=mask, other=0.0)
    if TURN:
        x = hadamard(x * tl.load(signs_ptr + d)[None, :], BLOCK, D, LEVELS) * ROOT
    wanted = tl.div_rn(tl.max(tl.max(tl.abs(x), axis=1), axis=0), 448.0)
    scale = tl.where(wanted > 0.0, wanted, 1.0)
    codes = tl.div_rn(x, tl.zeros((BLOCK, D), dtype=tl.float32) + scale).to(tl.float8e4nv)
    tl.store(out_ptr + at, codes, mask=mask)
    tl.store(scale_ptr + head * tl.cdiv(COUNT, BLOCK) + number, scale)


def _levels(block: int) -> int:
    """The logarithm of a power of two."""
    if block < 1 or block & (block - 1):
        raise OperandError(f"blocks of keys must be a power of two, got {block}")
    return block.bit_length() - 1


def _check_heads(heads: int, key_heads: int) -> None:
    if heads or key_heads:
        check_multiple(heads, key_heads, "the number of query heads", "the number of key heads")


def _check_pages(tables: torch.Tensor, lengths: torch.Tensor, new: int, pages: int, page: int, check: bool | None) -> None:
    """Refuse lengths that the new tokens or the tables do not fit, and pages that are not there where a sequence needs them."""
    import torch

    check_indices(lengths, "lengths", new, tables.shape[1] * page, check)
    if reads(tables, check) and reads(lengths, check):
        needed = torch.arange(tables.shape[1], device=tables.device) * page < lengths[:, None]
        check_indices(tables.where(needed, 0), "pages", 0, pages - 1, check)


def _launch_sage(
    q: torch.Tensor, q_scales: torch.Tensor, k: torch.Tensor, k_scales: torch.Tensor, v: torch.Tensor, v_scales: torch.Tensor, *,
    causal: bool, fp8: bool, block_q: int, block_k: int,
) -> torch.Tensor:  # fmt: skip
    heads, queries, width = checked(q, "q", ("int8",), (None, None, None)).shape
    key_heads, keys, _ = checked(k, "k", ("int8",), (None, None, width)).shape
    checked(q_scales, "q_scales", ("float32",), (heads, triton.cdiv(queries, block_q)))
    checked(k_scales, "k_scales", ("float32",), (key_heads, triton.cdiv(keys, block_k)))
    checked(v, "v", ("float8_e4m3fn",) if fp8 else ("float16",), (key_heads, keys, width))
    _check_heads(heads, key_heads)
    if causal and queries != keys:
        raise OperandError(f"causal attention needs as many queries as keys, got {queries} and {keys}")
    if width & (width - 1):
        raise OperandError(f"D must be a power of two, got {width}")
    levels = _levels(block_k)
    if 0 in (heads, queries, keys, width):
        return zeros_like(q, heads, queries, width)
    out = float32_like(q, heads, queries, width)
    sage_kernel[(triton.cdiv(queries, block_q), heads)](
        q, q_scales, k, k_scales, v, v_scales, out, queries, keys, heads // key_heads,
        CAUSAL=causal, FP8=fp8, D=width, BLOCK_Q=block_q, BLOCK_K=block_k, LEVELS=levels, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def sage_attention(
    q: torch.Tensor, q_scales: torch.Tensor, k: torch.Tensor, k_scales: torch.Tensor, v: torch.Tensor, *,
    causal: bool = False, block_q: int = 64, block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """SageAttention.

    Args:
        q: (heads, queries, D) int8, contiguous as all of them.
        q_scales: (heads, ceil(queries / block_q)) float32.
        k: (key heads, keys, D) int8.
        k_scales: (key heads, ceil(keys / block_k)) float32.
        v: (key heads, keys, D) float16.
        causal: whether a query sees no later keys.
        block_q: queries with one scale, and of a program.
        block_k: keys with one scale, and at a time.

    Returns:
        (heads, queries, D) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit.
    """
    return _launch_sage(q, q_scales, k, k_scales, v, q_scales, causal=causal, fp8=False, block_q=block_q, block_k=block_k)


def sage2_attention(
    q: torch.Tensor, q_scales: torch.Tensor, k: torch.Tensor, k_scales: torch.Tensor, v: torch.Tensor, output_scales: torch.Tensor, *,
    causal: bool = False, block_q: int = 64, block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """SageAttention's FP8 successor, with two levels of accumulation.

    Args:
        q: (heads, queries, D) int8, contiguous as all of them.
        q_scales: (heads, ceil(queries / block_q)) float32.
        k: (key heads, keys, D) int8.
        k_scales: (key heads, ceil(keys / block_k)) float32.
        v: (key heads, keys, D) float8_e4m3fn.
        output_scales: (key heads, D) float32, `sage2_output_scales`.
        causal: whether a query sees no later keys.
        block_q: queries with one scale, and of a program.
        block_k: keys with one scale, and at a time.

    Returns:
        (heads, queries, D) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit.
    """
    checked(output_scales, "output_scales", ("float32",), (None, None))
    if output_scales.shape != (v.shape[0], v.shape[-1]):
        raise OperandError(f"output_scales must have shape {(v.shape[0], v.shape[-1])}, got {tuple(output_scales.shape)}")
    return _launch_sage(q, q_scales, k, k_scales, v, output_scales, causal=causal, fp8=True, block_q=block_q, block_k=block_k)


def fp8_attention(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, tables: torch.Tensor, lengths: torch.Tensor, factor: torch.Tensor,
    value_scale: torch.Tensor, *, check: bool | None = None, block_q: int = 64, block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """Attention of new queries over an FP8 KV cache in pages.

    Args:
        q: (sequences, heads, new tokens, D) float8_e4m3fn, contiguous as all of them.
        k_cache: (pages, page, key heads, D) float8_e4m3fn.
        v_cache: likewise.
        tables: (sequences, pages of a sequence) int32: pages that are there, as many as the length of the sequence needs.
        lengths: (sequences,) int32: tokens in the cache, the new ones included.
        factor: (1,) float32, `fp8_score_factor`.
        value_scale: (1,) float32.
        check: whether to look at tables and lengths first; None: if they are on the CPU, since for a GPU the host would have to wait.
        block_q: queries of a program.
        block_k: keys at a time.

    Returns:
        (sequences, heads, new tokens, D) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit, pages that are not there, lengths beyond the tables.
    """
    sequences, heads, new, width = checked(q, "q", ("float8_e4m3fn",), (None, None, None, None)).shape
    pages, page, key_heads, _ = checked(k_cache, "k_cache", ("float8_e4m3fn",), (None, None, None, width)).shape
    checked(v_cache, "v_cache", ("float8_e4m3fn",), (pages, page, key_heads, width))
    columns = checked(tables, "tables", ("int32",), (sequences, None)).shape[1]
    checked(lengths, "lengths", ("int32",), (sequences,))
    checked(factor, "factor", ("float32",), (1,))
    checked(value_scale, "value_scale", ("float32",), (1,))
    _check_heads(heads, key_heads)
    if width & (width - 1):
        raise OperandError(f"D must be a power of two, got {width}")
    levels = _levels(block_k)
    _check_pages(tables, lengths, new, pages, page, check)
    if 0 in q.shape:
        return zeros_like(q, sequences, heads, new, width)
    out = float32_like(q, sequences, heads, new, width)
    fp8_kernel[(triton.cdiv(new, block_q), heads, sequences)](
        q, k_cache, v_cache, tables, lengths, out, factor, value_scale, heads, key_heads, new, columns,
        PAGE=page, D=width, BLOCK_Q=block_q, BLOCK_K=block_k, LEVELS=levels, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def fp8_block_attention(
    q: torch.Tensor, q_scales: torch.Tensor, k: torch.Tensor, k_scales: torch.Tensor, v: torch.Tensor, v_scales: torch.Tensor, *,
    causal: bool = False, block_q: int = 64, block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """FlashAttention-3's FP8 scheme, with a scale for each block.

    Args:
        q: (heads, queries, D) float8_e4m3fn, contiguous as all of them; D a power of two.
        q_scales: (heads, ceil(queries / block_q)) float32.
        k: (key heads, keys, D) float8_e4m3fn.
        k_scales: (key heads, ceil(keys / block_k)) float32.
        v: (key heads, keys, D) float8_e4m3fn.
        v_scales: (key heads, ceil(keys / block_k)) float32.
        causal: whether a query sees no later keys.
        block_q: queries with one scale, and of a program.
        block_k: keys with one scale, and at a time.

    Returns:
        (heads, queries, D) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit.
    """
    heads, queries, width = checked(q, "q", ("float8_e4m3fn",), (None, None, None)).shape
    key_heads, keys, _ = checked(k, "k", ("float8_e4m3fn",), (None, None, width)).shape
    checked(v, "v", ("float8_e4m3fn",), (key_heads, keys, width))
    levels = _levels(block_k)
    checked(q_scales, "q_scales", ("float32",), (heads, triton.cdiv(queries, block_q)))
    for scales, name in ((k_scales, "k_scales"), (v_scales, "v_scales")):
        checked(scales, name, ("float32",), (key_heads, triton.cdiv(keys, block_k)))
    _check_heads(heads, key_heads)
    if causal and queries != keys:
        raise OperandError(f"causal attention needs as many queries as keys, got {queries} and {keys}")
    if width & (width - 1):
        raise OperandError(f"D must be a power of two, got {width}")
    if 0 in (heads, queries, keys, width):
        return zeros_like(q, heads, queries, width)
    out = float32_like(q, heads, queries, width)
    fp8_block_kernel[(triton.cdiv(queries, block_q), heads)](
        q, q_scales, k, k_scales, v, v_scales, out, float(query_factor(width)), queries, keys, heads // key_heads,
        CAUSAL=causal, D=width, BLOCK_Q=block_q, BLOCK_K=block_k, LEVELS=levels, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def quantize_fp8_blocks(rows: torch.Tensor, signs: torch.Tensor | None = None, *, block: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3 with a scale for each block of rows, after `incoherent` with signs: the bits of `schemes.attention.quantize_fp8_blocks`.

    Args:
        rows: (heads, rows, D) float32, contiguous, finite (not looked at); D a power of two.
        signs: (D,) float32, 1 or -1; None: rows as they are.
        block: rows with one scale, a power of two.

    Returns:
        Codes (heads, rows, D) float8_e4m3fn, scales (heads, ceil(rows / block)) float32.

    Raises:
        OperandTypeError, OperandError: other tensors.
    """
    import torch

    heads, count, width = checked(rows, "rows", ("float32",), (None, None, None)).shape
    if width & (width - 1):
        raise OperandError(f"D must be a power of two, got {width}")
    _levels(block)
    if signs is not None:
        checked(signs, "signs", ("float32",), (width,))
    codes = torch.zeros(rows.shape, dtype=torch.uint8, device=rows.device).view(torch.float8_e4m3fn)
    scales = torch.ones((heads, triton.cdiv(count, block)), dtype=torch.float32, device=rows.device)
    if rows.numel():
        quantize_blocks_kernel[(triton.cdiv(count, block), heads)](
            rows, rows if signs is None else signs, codes, scales, count, float(np.float32(1 / np.sqrt(width))),
            TURN=signs is not None, D=width, BLOCK=block, LEVELS=_levels(width), enable_fp_fusion=False,
        )  # fmt: skip
    return codes, scales
