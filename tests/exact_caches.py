"""Operands and exact results of the kernels over KV caches and of attention in blocks.

Attention's weights are 0 or 1 here: a query looks at one channel, where a key is 0 or very low.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Generator = np.random.Generator
Made = tuple[Arrays, Arrays]
E4M3 = ml_dtypes.float8_e4m3fn
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def turned_blocks(rng: Generator, given: Arrays) -> Made:
    """What a Hadamard matrix over 8 turns into integers times a power of two for each block; it turns them back."""
    heads, count, width = given["rows"].shape
    matrix = np.ones((1, 1))
    while len(matrix) < width:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    codes = rng.integers(-2, 3, given["rows"].shape).astype(np.float64)
    codes[:, ::64, 0] = 448
    exponents = rng.integers(-2, 3, (heads, -(-count // 64)))
    wanted = codes * np.repeat(2.0**exponents, 64, 1)[:, :count, None]
    rows = (wanted @ matrix / 8) * given["signs"]
    return {"rows": rows.astype(np.float32), "signs": given["signs"]}, {"elements": codes.astype(E4M3), "scales": 2.0**exponents}


def kv_words(codes: Array, bits: int) -> Array:
    """Codes in words along the last axis, lowest first."""
    parts = codes.reshape(*codes.shape[:-1], -1, 32 // bits).astype(np.uint64) & np.uint64(2**bits - 1)
    return (parts << (np.arange(32 // bits, dtype=np.uint64) * np.uint64(bits))).sum(-1).astype(np.uint32).view(np.int32)


def kv_quantizer(element: str, group: tuple[int, int]) -> Callable[[Generator, Arrays], Made]:
    """Tokens whose groups hold the ends of the type, times powers of two; `group` is tokens and channels."""

    def made(rng: Generator, given: Arrays) -> Made:
        tokens, heads, width = given["values"].shape
        count, size = group
        high, low = {"s8": (127, -127), "u8": (255, 0), "u4": (15, 0), "e4m3": (256, -4), "e4m3 with f32": (448, -4), "e2m1": (6, -2)}[
            element
        ]
        least = -2 if element.startswith("e") else low
        numbers = rng.integers(least, (2 if element.startswith("e") else high) + 1, (tokens, heads, width))
        numbers[::count, :, ::size] = high
        numbers[count // 2 :: count, :, size // 2 :: size] = low if count > 1 or size > 1 else high
        exponents = rng.integers(-2, 3, (tokens // count, heads, width // size))
        of_all = np.repeat(np.repeat(2.0**exponents, count, 0), size, 2)
        zeros = rng.integers(-3, 4, exponents.shape) * 2.0**exponents if element in ("u8", "u4") else np.zeros(exponents.shape)
        values, new = numbers * of_all + np.repeat(np.repeat(zeros, count, 0), size, 2), {}
        codes, scales = numbers, 2.0**exponents
        if element == "e4m3":
            codes, scales = numbers.astype(E4M3).view(np.uint8), exponents + 127
        elif element == "e4m3 with f32":
            codes = numbers.astype(E4M3).view(np.uint8)
        elif element == "e2m1":
            codes, scales = np.argmax(numbers[..., None] == E2M1, -1), scales.astype(E4M3).view(np.uint8)
            new["tensor_scale"] = np.full(1, 4, np.float32)
            values = values * 4
        kind = {"s8": np.float32, "e4m3 with f32": np.float32, "u8": np.float16, "u4": np.float16}.get(element, np.uint8)
        found: Arrays = {"words": kv_words(codes, 4 if element in ("u4", "e2m1") else 8), "scales": scales.astype(kind)}
        if element in ("u8", "u4"):
            found["zeros"] = zeros.astype(np.float16)
        return {"values": values.astype(np.float32), **new}, found

    return made


def kv_side(rng: Generator, given: Arrays, side: str, element: str, most: int) -> tuple[Arrays, Array, Array]:
    """Pages, and their numbers and codes: codes of no more than `most` steps."""
    words, scales = given[f"{side}_words"], given[f"{side}_scales"]
    per = 8 if element in ("u4", "e2m1") else 4
    numbers = rng.integers(-most, 1, (*words.shape[:-1], words.shape[-1] * per))  # 0 and below
    steps = [numbers.shape[1] // scales.shape[1], numbers.shape[3] // scales.shape[3]]
    exponents = rng.integers(-1, 2, scales.shape)
    wide_scales = np.repeat(np.repeat(2.0**exponents, steps[0], 1), steps[1], 3)
    codes, stored, new = numbers, 2.0**exponents, {}
    if element.startswith("u"):
        codes = numbers + most
        new[f"{side}_zeros"] = (-most * 2.0**exponents).astype(np.float16)
    elif element == "e4m3":
        codes, stored = numbers.astype(E4M3).view(np.uint8), exponents + 127 if scales.dtype == np.uint8 else stored
    elif element == "e2m1":
        codes, stored = np.argmax(numbers[..., None] == E2M1, -1), stored.astype(E4M3).view(np.uint8)
    new |= {f"{side}_words": kv_words(codes, 32 // per), f"{side}_scales": stored.astype(scales.dtype)}
    return new, numbers * wide_scales, codes


def kv_attention(element: str, *, window: int = 0) -> Callable[[Generator, Arrays], Made]:
    """A query looks at one channel; a key is 0 there, which gives it a weight of 1, or so low that it gets none."""

    def made(rng: Generator, given: Arrays) -> Made:
        sequences, heads, fresh, width = given["q"].shape
        new, keys, _ = kv_side(rng, given, "key", element, 1)
        more, values, _ = kv_side(rng, given, "value", element, 4 if element.startswith("e") else 15)
        new |= more
        channel = rng.integers(0, width, (sequences, heads, fresh))
        new |= {"q": (2048.0 * (np.arange(width) == channel[..., None])).astype(np.float16), "factor": np.full(1, 0.25, np.float32)}
        new |= {"value_scale": np.full(1, 2, np.float32), "tables": given["tables"], "lengths": given["lengths"]}
        if "sinks" in given:
            new["sinks"] = np.zeros(heads, np.float32)
        if "tail" in given:
            new["tail"] = -rng.integers(0, 2, given["tail"].shape).astype(given["tail"].dtype)
        out, page = np.zeros(given["q"].shape, np.float32), keys.shape[1]
        for sequence, length in enumerate(given["lengths"]):
            at = np.arange(length)
            k, v = (each[given["tables"][sequence][at // page], at % page] for each in (keys, values))
            if "tail" in given:
                k[length // 32 * 32 :] = new["tail"][sequence, : length % 32]
            for head, token in np.ndindex(heads, fresh):
                place, own = length - fresh + token, head // (heads // keys.shape[2])
                seen = (at <= place) & ((at > place - window) if window else True)
                scores = np.where(seen, k[:, own, channel[sequence, head, token]], -np.inf)
                least = max(scores.max(), 0.0 if "sinks" in given else -np.inf)
                weight = scores == least
                total = np.float32(weight.sum() + ("sinks" in given))
                out[sequence, head, token] = np.float32(2) * (v[weight, own].sum(0).astype(np.float32) / total)
        return new, {"out": out}

    return made


CACHE_MAKERS: dict[str, Callable[[Generator, Arrays], Made]] = {
    "triton-quantize-fp8-blocks": turned_blocks,
    "triton-quantize-kv-int8": kv_quantizer("s8", (1, 64)), "triton-quantize-kv-int8-kivi": kv_quantizer("u8", (1, 32)),
    "triton-quantize-kv-int4-kivi": kv_quantizer("u4", (32, 1)),
    "triton-quantize-kv-fp8": kv_quantizer("e4m3 with f32", (1, 64)), "triton-quantize-kv-mxfp8": kv_quantizer("e4m3", (1, 32)),
    "triton-quantize-kv-nvfp4": kv_quantizer("e2m1", (1, 16)),
    "triton-cached-int8": kv_attention("s8"), "triton-cached-int8-kivi": kv_attention("u8"), "triton-cached-int4-kivi": kv_attention("u4"),
    "triton-cached-fp8": kv_attention("e4m3"), "triton-cached-mxfp8": kv_attention("e4m3", window=50),
    "triton-cached-nvfp4": kv_attention("e2m1"),
    "triton-cached-int4-prefill": kv_attention("u4", window=40),
}  # fmt: skip
"""Operands and results, by the row's name."""
