"""Tokens of KV caches in INT8, INT4, FP8, MXFP8 and NVFP4; `mmabits.kernels.schemes.kv_cache` says what each operation is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mmabits.isa import OperandError
from mmabits.kernels.schemes.kv_cache import cache_spec
from mmabits.kernels.triton.asymmetric import rounded
from mmabits.kernels.triton.attention_cached import _SCALE_TYPES
from mmabits.kernels.triton.operands import check_multiple, checked
from mmabits.kernels.triton.quantizing import INFINITY, e2m1_codes, magnitude_bits, mx_scale_codes, mx_scaled

if TYPE_CHECKING:
    import torch


@triton.jit
def quantize_kernel(  # type: ignore[no-untyped-def]
    x_ptr, words_ptr, scale_ptr, zero_ptr, tensor_scale_ptr, HEADS,
    ELEMENT: tl.constexpr, SCALE: tl.constexpr, LEVELS: tl.constexpr, TOKENS: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A group of tokens of a head: TOKENS x (GROUPS x CHANNELS)."""
    AXIS: tl.constexpr = 0 if TOKENS > 1 else 2
    PER: tl.constexpr = 8 if ELEMENT == "u4" or ELEMENT == "e2m1" else 4
    D: tl.constexpr = GROUPS * CHANNELS
    group = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    t = tl.arange(0, TOKENS)
    g = tl.arange(0, GROUPS)
    e = tl.arange(0, CHANNELS)
    at = ((group * TOKENS + t) * HEADS + head)[:, None, None] * D + g[None, :, None] * CHANNELS + e[None, None, :]
    x = tl.load(x_ptr + at)
    scale_at = (group * HEADS + head) * GROUPS + g[None, :, None]
    if ELEMENT == "e4m3" and SCALE == "ue8m0":
        scale = mx_scale_codes(tl.max(magnitude_bits(x), axis=AXIS, keep_dims=True), 8, 3, 448.0, "floor")
        codes = mx_scaled(x, scale).to(tl.float8e4nv).to(tl.uint8, bitcast=True).to(tl.int32)
        tl.store(scale_ptr + scale_at, scale.to(tl.uint8))
    elif ELEMENT == "e2m1":
        bits = tl.max(magnitude_bits(x), axis=AXIS, keep_dims=True)
        is_finite = bits < INFINITY
        amax = tl.where(is_finite, bits, 0).to(tl.float32, bitcast=True)
        tensor_scale = tl.full(amax.shape, 1.0, tl.float32) * tl.load(tensor_scale_ptr)
        scale8 = tl.div_rn(tl.div_rn(amax, tl.full(amax.shape, 6.0, tl.float32)), tensor_scale).to(tl.float8e4nv)
        step = scale8.to(tl.float32) * tensor_scale
        usable = is_finite & (step > 0)
        codes = e2m1_codes(tl.div_rn(tl.where(usable, x, 0.0), tl.broadcast_to(tl.where(usable, step, 1.0), x.shape))).to(tl.int32)
        tl.store(scale_ptr + scale_at, tl.where(is_finite, scale8.to(tl.uint8, bitcast=True), 0x7F).to(tl.uint8))
    elif SCALE == "f32":
        amax = tl.max(tl.abs(x), axis=AXIS, keep_dims=True)
        wanted = tl.div_rn(amax, tl.full(amax.shape, 127.0 if ELEMENT == "s8" else 448.0, tl.float32))
        scale = tl.where(wanted > 0.0, wanted, 1.0)
        steps = tl.div_rn(x, tl.broadcast_to(scale, x.shape))
        if ELEMENT == "s8":
            codes = rounded(steps, -127.0, 127.0).to(tl.int32) & 255
        else:
            codes = steps.to(tl.float8e4nv).to(tl.uint8, bitcast=True).to(tl.int32)
        tl.store(scale_ptr + scale_at, scale)
    else:
        least = tl.min(x, axis=AXIS, keep_dims=True).to(tl.float16)
        low = least.to(tl.float32)
        span = tl.max(x, axis=AXIS, keep_dims=True) - low
        smallest = tl.full(span.shape, 1, tl.int16).to(tl.float16, bitcast=True)
        step = tl.maximum(tl.div_rn(span, tl.full(span.shape, LEVELS, tl.float32)).to(tl.float16), smallest)
        scale = tl.where(span > 0.0, step, tl.full(span.shape, 1.0, tl.float16))
        codes = rounded(tl.div_rn(x - low, tl.broadcast_to(scale.to(tl.float32), x.shape)), 0.0, LEVELS).to(tl.int32)
        tl.store(scale_ptr + scale_at, scale)
        tl.store(zero_ptr + scale_at, least)
    shift = tl.arange(0, PER) * (32 // PER)
    words = tl.sum(tl.reshape(codes, (TOKENS, D // PER, PER)) << shift[None, None, :], axis=2)
    w = tl.arange(0, D // PER)
    tl.store(words_ptr + ((group * TOKENS + t) * HEADS + head)[:, None] * (D // PER) + w[None, :], words)


def quantize_tokens(
    values: torch.Tensor, tensor_scale: torch.Tensor | None = None, *, cache: str = "int8", side: str = "keys"
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Keys or values as a cache stores them: the bits of `schemes.kv_cache.quantize_tokens`.

    Args:
        values: (tokens, heads, D) float32, contiguous; tokens a multiple of those of a group, D a power of two. Finite where scales
            are f32 or f16, and within f16 where they are f16: not looked at.
        tensor_scale: (1,) float32: of NVFP4, the scale of the whole.
        cache: a name of `CACHES`.
        side: `"keys"` or `"values"`.

    Returns:
        Words, scales, and the least numbers where the cache has them, with the shapes of `QuantizedTokens`.

    Raises:
        OperandTypeError, OperandError: another tensor, cache or side.
    """
    import torch

    if side not in ("keys", "values"):
        raise OperandError(f"side must be 'keys' or 'values', got {side!r}")
    grouping = getattr(cache_spec(cache), side)
    tokens, heads, width = checked(values, "values", ("float32",), (None, None, None)).shape
    check_multiple(tokens, grouping.tokens, "the number of tokens", "the tokens of a group,")
    channels = grouping.group(width)
    if width & (width - 1):
        raise OperandError(f"D must be a power of two, got {width}")
    if grouping.element == "e2m1":
        checked(tensor_scale, "tensor_scale", ("float32",), (1,))
    elif tensor_scale is not None:
        raise OperandError(f"the cache {cache!r} has no tensor_scale")
    device, scale_type = values.device, getattr(torch, _SCALE_TYPES[grouping.scale])
    words = torch.zeros((tokens, heads, width // grouping.per_word), dtype=torch.int32, device=device)
    scales = torch.zeros((tokens // grouping.tokens, heads, width // channels), dtype=scale_type, device=device)
    zeros = torch.zeros_like(scales)
    if values.numel():
        quantize_kernel[(tokens // grouping.tokens, heads)](
            values, words, scales, zeros, values if tensor_scale is None else tensor_scale, heads, ELEMENT=grouping.element,
            SCALE=grouping.scale,
            LEVELS=float({"u8": 255, "u4": 15}.get(grouping.element, 0)), TOKENS=grouping.tokens, GROUPS=width // channels,
            CHANNELS=channels, enable_fp_fusion=False,
        )  # fmt: skip
    return (words, scales, zeros) if grouping.zeros else (words, scales)
