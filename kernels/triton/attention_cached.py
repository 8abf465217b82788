"""Attention over quantized KV caches; `mmabits.kernels.schemes.attention_cached` says what each operation is.

With fp fusion off and exact division every operation is a single float32 one, but exp2, which is ex2.approx on a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mmabits.isa import OperandError
from mmabits.kernels.schemes.checks import check_block, check_whole
from mmabits.kernels.schemes.kv_cache import Grouping, cache_spec
from mmabits.kernels.triton.attention import tree_sum
from mmabits.kernels.triton.operands import check_indices, check_multiple, checked, reads, zeros_like
from mmabits.kernels.triton.w8a16 import from_e4m3

if TYPE_CHECKING:
    import torch

_SCALE_TYPES = {"f32": "float32", "f16": "float16", "ue8m0": "uint8", "ue4m3": "uint8"}


@triton.jit
def code_values(words, d, ELEMENT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Elements d of words, in float32."""
    if ELEMENT == "u4":
        return (words >> ((d & 7) * 4) & 15).to(tl.float32)
    elif ELEMENT == "e2m1":
        codes = words >> ((d & 7) * 4) & 15
        # As f16 the bits are a 2^14th of the number, subnormals too.
        bits = (codes & 8) << 12 | (codes & 7) << 9
        return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 16384.0
    elif ELEMENT == "s8":
        return (words << (24 - (d & 3) * 8) >> 24).to(tl.float32)
    elif ELEMENT == "u8":
        return (words >> ((d & 3) * 8) & 255).to(tl.float32)
    else:
        return from_e4m3(words >> ((d & 3) * 8) & 255).to(tl.float32)


@triton.jit
def scale_values(scales, SCALE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scales in float32; bytes are ue8m0 or e4m3."""
    if SCALE == "ue8m0":
        codes = scales.to(tl.int32)
        bits = tl.where(codes == 0, 0x400000, tl.where(codes == 255, 0x7FC00000, codes << 23))
        return bits.to(tl.float32, bitcast=True)
    elif SCALE == "ue4m3":
        return from_e4m3(scales.to(tl.int32)).to(tl.float32)
    else:
        return scales.to(tl.float32)


@triton.jit
def elements(  # type: ignore[no-untyped-def]
    words_ptr, scales_ptr, zeros_ptr, row, group, d, mask,
    ELEMENT: tl.constexpr, SCALE: tl.constexpr, ZEROS: tl.constexpr, CHANNELS: tl.constexpr, OUTSIDE: tl.constexpr, D: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """A tile of keys or values as the tensor cores get it.

    Row is (page, place, head) of a token, group that of its scales; both and d broadcast to the tile.
    """
    PER: tl.constexpr = 8 if ELEMENT == "u4" or ELEMENT == "e2m1" else 4
    words = tl.load(words_ptr + row * (D // PER) + d // PER, mask=mask, other=0)
    values = code_values(words, d, ELEMENT)
    if not OUTSIDE:
        at = group * (D // CHANNELS) + d // CHANNELS
        values = values * scale_values(tl.load(scales_ptr + at, mask=mask, other=0), SCALE)
        if ZEROS:
            values = values + tl.load(zeros_ptr + at, mask=mask, other=0.0).to(tl.float32)
    # What lies beyond the sequence is zero, and not the scale's NaN or least number times it.
    return tl.where(mask, values, 0.0).to(DTYPE)


@triton.jit
def no_infinity(top):  # type: ignore[no-untyped-def]
    """Maxima, 0 where there is none."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def cached_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, k_scale_ptr, k_zero_ptr, v_ptr, v_scale_ptr, v_zero_ptr, tail_ptr, tables_ptr, lengths_ptr, sinks_ptr, factor_ptr,
    tops_ptr, totals_ptr, parts_ptr, HEADS, KEY_HEADS, SHARE, NEW, PAGES, SPLITS, WINDOW, PAGE,
    K_ELEMENT: tl.constexpr, K_SCALE: tl.constexpr, K_ZEROS: tl.constexpr, K_TOKENS: tl.constexpr, K_CHANNELS: tl.constexpr,
    V_ELEMENT: tl.constexpr, V_SCALE: tl.constexpr, V_ZEROS: tl.constexpr, V_TOKENS: tl.constexpr, V_CHANNELS: tl.constexpr,
    OUTSIDE: tl.constexpr, SINKS: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """Rows of queries of a key head of a sequence over a split of its keys: maximum, sum and output of each row."""
    number = tl.program_id(0)
    own = tl.program_id(1)
    sequence = tl.program_id(2) // SPLITS
    split = tl.program_id(2) % SPLITS
    length = tl.load(lengths_ptr + sequence)
    factor = tl.load(factor_ptr)
    DTYPE: tl.constexpr = q_ptr.dtype.element_ty
    i = number * BLOCK_Q + tl.arange(0, BLOCK_Q)
    token = i // SHARE
    head = own * SHARE + i % SHARE
    d = tl.arange(0, D)
    at = ((sequence.to(tl.int64) * HEADS + head) * NEW + token)[:, None] * D + d[None, :]
    q = tl.load(q_ptr + at, mask=token[:, None] < NEW, other=0.0)
    place = length - NEW + token
    top = tl.full((BLOCK_Q,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    if SINKS:
        sink = tl.load(sinks_ptr + head, mask=token < NEW, other=0.0) * 1.4426950408889634
        top = tl.where(split == 0, sink, top)
        total = tl.where(split == 0, total + 1.0, total)
    acc = tl.zeros((BLOCK_Q, D), dtype=tl.float32)
    end = tl.minimum(length, length - NEW + (number * BLOCK_Q + BLOCK_Q - 1) // SHARE + 1)
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(length - NEW + (number * BLOCK_Q) // SHARE - WINDOW + 1, 0) // BLOCK_K
    each = tl.cdiv(tl.cdiv(end, BLOCK_K) - begin, SPLITS)
    first = (begin + split * each) * BLOCK_K
    last = tl.minimum((begin + (split + 1) * each) * BLOCK_K, end)
    for start in range(first, last, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        there = j < length
        page = tl.load(tables_ptr + sequence.to(tl.int64) * PAGES + j // PAGE, mask=there, other=0).to(tl.int64)
        row = (page * PAGE + j % PAGE) * KEY_HEADS + own
        k_group = (page * (PAGE // K_TOKENS) + j % PAGE // K_TOKENS) * KEY_HEADS + own
        v_group = (page * (PAGE // V_TOKENS) + j % PAGE // V_TOKENS) * KEY_HEADS + own
        whole = length // K_TOKENS * K_TOKENS
        quantized = (j < whole)[None, :]
        k = elements(
            k_ptr, k_scale_ptr, k_zero_ptr, row[None, :], k_group[None, :], d[:, None], quantized,
            K_ELEMENT, K_SCALE, K_ZEROS, K_CHANNELS, OUTSIDE, D, DTYPE,
        )  # fmt: skip
        if K_TOKENS > 1:
            waiting = ((sequence.to(tl.int64) * K_TOKENS + j - whole) * KEY_HEADS + own)[None, :] * D + d[:, None]
            rest = tl.load(tail_ptr + waiting, mask=there[None, :] & (j >= whole)[None, :], other=0.0)
            k = tl.where(quantized, k, rest.to(DTYPE))
        sums = tl.dot(q, k)
        factors = tl.full((BLOCK_K,), 1.0, tl.float32) * factor
        if OUTSIDE:
            factors = factors * tl.load(k_scale_ptr + k_group, mask=there, other=0.0)
        scores = sums * factors[None, :]
        allowed = there[None, :] & (j[None, :] <= place[:, None])
        if WINDOW > 0:
            allowed = allowed & (j[None, :] > place[:, None] - WINDOW)
        scores = tl.where(allowed, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        safe = no_infinity(new_top)
        alpha = tl.exp2(top - safe)
        p = tl.exp2(scores - safe[:, None])
        total = total * alpha + tree_sum(p, BLOCK_Q, LEVELS)
        top = new_top
        if OUTSIDE:
            p = p * tl.load(v_scale_ptr + v_group, mask=there, other=0.0)[None, :]
        v = elements(
            v_ptr, v_scale_ptr, v_zero_ptr, row[:, None], v_group[:, None], d[None, :], there[:, None],
            V_ELEMENT, V_SCALE, V_ZEROS, V_CHANNELS, OUTSIDE, D, DTYPE,
        )  # fmt: skip
        acc = tl.dot(p.to(DTYPE), v, acc * alpha[:, None])
    out = ((sequence.to(tl.int64) * SPLITS + split) * KEY_HEADS + own) * (NEW * SHARE) + i
    tl.store(tops_ptr + out, top, mask=token < NEW)
    tl.store(totals_ptr + out, total, mask=token < NEW)
    tl.store(parts_ptr + out[:, None] * D + d[None, :], acc, mask=token[:, None] < NEW)


@triton.jit
def merge_kernel(  # type: ignore[no-untyped-def]
    tops_ptr, totals_ptr, parts_ptr, out_ptr, value_scale_ptr, HEADS, KEY_HEADS, SHARE, NEW, SPLITS, D: tl.constexpr, BLOCK_Q: tl.constexpr
):
    """The splits of some rows, added in order."""
    number = tl.program_id(0)
    own = tl.program_id(1)
    sequence = tl.program_id(2).to(tl.int64)
    i = number * BLOCK_Q + tl.arange(0, BLOCK_Q)
    token = i // SHARE
    d = tl.arange(0, D)
    mask = token < NEW
    top = tl.full((BLOCK_Q,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_Q, D), dtype=tl.float32)
    for split in range(0, SPLITS):
        at = ((sequence * SPLITS + split) * KEY_HEADS + own) * (NEW * SHARE) + i
        other = tl.load(tops_ptr + at, mask=mask, other=0.0)
        new_top = tl.maximum(top, other)
        safe = no_infinity(new_top)
        alpha = tl.exp2(top - safe)
        beta = tl.exp2(other - safe)
        total = total * alpha + tl.load(totals_ptr + at, mask=mask, other=1.0) * beta
        part = tl.load(parts_ptr + at[:, None] * D + d[None, :], mask=mask[:, None], other=0.0)
        acc = acc * alpha[:, None] + part * beta[:, None]
        top = new_top
    acc = tl.div_rn(acc, total[:, None]) * tl.load(value_scale_ptr)
    at = ((sequence * HEADS + own * SHARE + i % SHARE) * NEW + token)[:, None] * D + d[None, :]
    tl.store(out_ptr + at, acc, mask=mask[:, None])


def _check_side(
    words: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, grouping: Grouping, name: str, shape: tuple[int | None, ...],
) -> tuple[int, int, int]:  # fmt: skip
    """Pages, tokens of a page, key heads."""
    *_, width = shape
    assert width is not None
    channels = grouping.group(width)
    pages, page, heads, _ = checked(words, f"{name}_words", ("int32",), (*shape[:3], width // grouping.per_word)).shape
    check_multiple(page, grouping.tokens, "a page", "the tokens of a group,")
    wanted = (pages, page // grouping.tokens, heads, width // channels)
    checked(scales, f"{name}_scales", (_SCALE_TYPES[grouping.scale],), wanted)
    if grouping.zeros:
        checked(zeros, f"{name}_zeros", ("float16",), wanted)
    elif zeros is not None:
        raise OperandError(f"this cache has no {name}_zeros")
    return pages, page, heads


def cached_attention(
    q: torch.Tensor, key_words: torch.Tensor, key_scales: torch.Tensor, value_words: torch.Tensor, value_scales: torch.Tensor,
    tables: torch.Tensor, lengths: torch.Tensor, factor: torch.Tensor, value_scale: torch.Tensor, *,
    key_zeros: torch.Tensor | None = None, value_zeros: torch.Tensor | None = None, tail: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None, cache: str = "int8", splits: int = 1, window: int = 0, check: bool | None = None,
    block_q: int = 16, block_k: int = 64,
) -> torch.Tensor:  # fmt: skip
    """Attention of new queries over a quantized KV cache in pages.

    Args:
        q: (sequences, heads, new tokens, D) float16 or bfloat16, contiguous as all of them; D a power of two.
        key_words: (pages, page, key heads, D / elements of a word) int32, `KvCache.keys.words`.
        key_scales: `KvCache.keys.scales`.
        value_words: likewise of the values.
        value_scales: likewise.
        tables: (sequences, pages of a sequence) int32: pages that are there, as many as the length of the sequence needs.
        lengths: (sequences,) int32: tokens in the cache, the new ones included.
        factor: (1,) float32, `score_factor`.
        value_scale: (1,) float32: the scale of the whole of the values.
        key_zeros: `KvCache.keys.zeros`, where the cache has them.
        value_zeros: likewise.
        tail: (sequences, tokens of a group, key heads, D) float16 or bfloat16, `KvCache.tail`, where keys wait for their group.
        sinks: (heads,) float32: logits without values; None: none.
        cache: a name of `CACHES`.
        splits: parts of the keys, of a program each.
        window: keys that a query sees, its own the last; 0: all.
        check: whether to look at tables and lengths first; None: if they are on the CPU, since for a GPU the host would have to wait.
        block_q: rows of a program: tokens times query heads of a key head. Below 64 every architecture multiplies by `mma.sync`.
        block_k: keys at a time, a power of two.

    Returns:
        (sequences, heads, new tokens, D) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit, pages that are not there, lengths beyond the tables.
    """
    import torch

    spec = cache_spec(cache)
    sequences, heads, new, width = checked(q, "q", ("float16", "bfloat16"), (None, None, None, None)).shape
    if width < 16 or width & (width - 1):
        raise OperandError(f"D must be a power of two, 16 or more, got {width}")
    pages, page, key_heads = _check_side(key_words, key_scales, key_zeros, spec.keys, "key", (None, None, None, width))
    _check_side(value_words, value_scales, value_zeros, spec.values, "value", (pages, page, key_heads, width))
    columns = checked(tables, "tables", ("int32",), (sequences, None)).shape[1]
    checked(lengths, "lengths", ("int32",), (sequences,))
    checked(factor, "factor", ("float32",), (1,))
    checked(value_scale, "value_scale", ("float32",), (1,))
    if spec.keys.tokens > 1:
        checked(tail, "tail", ("float16", "bfloat16"), (sequences, spec.keys.tokens, key_heads, width))
    elif tail is not None:
        raise OperandError(f"keys of the cache {spec.name!r} do not wait for their group: it takes no tail")
    if sinks is not None:
        checked(sinks, "sinks", ("float32",), (heads,))
    if heads or key_heads:
        check_multiple(heads, key_heads, "the number of query heads", "the number of key heads")
    check_block(block_k, "block_k")
    check_whole(splits, "splits")
    check_whole(window, "window", 0)
    check_indices(lengths, "lengths", new, columns * page, check)
    if reads(tables, check) and reads(lengths, check):
        needed = torch.arange(columns, device=tables.device) * page < lengths[:, None]
        check_indices(tables.where(needed, 0), "pages", 0, pages - 1, check)
    if 0 in q.shape:
        return zeros_like(q, sequences, heads, new, width)
    share = heads // key_heads
    tops = torch.empty((2, sequences, splits, key_heads, new * share), dtype=torch.float32, device=q.device)
    parts = torch.empty((sequences, splits, key_heads, new * share, width), dtype=torch.float32, device=q.device)
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    tiles = triton.cdiv(new * share, block_q)
    cached_kernel[(tiles, key_heads, sequences * splits)](
        q, key_words, key_scales, key_scales if key_zeros is None else key_zeros, value_words, value_scales,
        value_scales if value_zeros is None else value_zeros, q if tail is None else tail, tables, lengths,
        factor if sinks is None else sinks, factor, tops[0], tops[1], parts, heads, key_heads, share, new, columns, splits, window, page,
        K_ELEMENT=spec.keys.element, K_SCALE=spec.keys.scale, K_ZEROS=spec.keys.zeros, K_TOKENS=spec.keys.tokens,
        K_CHANNELS=spec.keys.group(width), V_ELEMENT=spec.values.element, V_SCALE=spec.values.scale, V_ZEROS=spec.values.zeros,
        V_TOKENS=spec.values.tokens, V_CHANNELS=spec.values.group(width), OUTSIDE=spec.outside, SINKS=sinks is not None, D=width,
        BLOCK_Q=block_q, BLOCK_K=block_k, LEVELS=block_k.bit_length() - 1, enable_fp_fusion=False,
    )  # fmt: skip
    merge_kernel[(tiles, key_heads, sequences)](
        tops[0], tops[1], parts, out, value_scale, heads, key_heads, share, new, splits, D=width, BLOCK_Q=block_q, enable_fp_fusion=False
    )  # fmt: skip
    return out
