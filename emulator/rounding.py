"""Exact sums to accumulators, on runs of WIDTH lanes. The thread must round toward zero."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.jit import TOWARD_ZERO, WIDTH, jit

FLOAT32_LIMIT = 2.0**128
TO_WHOLE = 2.0**52
"""Added to a float64 below it and taken away again, it leaves the whole number toward zero."""


@jit
def round_sums(exact: Any, exact_bits: Any, result: Any, out: Any, out_bits: Any, base: int) -> bool:
    """Round WIDTH exact float64 sums as `result` says into float32 out[base:]; whether all came out finite.

    A zero result is +0. `exact_bits` and `out_bits` are the same arrays seen as integers.
    """
    if result.mode == TOWARD_ZERO:
        return truncate_sums(exact, result.cut, out, out_bits, base)
    return nearest_sums(exact, exact_bits, result, out, out_bits, base)


@jit
def truncate_sums(exact: Any, cut: int, out: Any, out_bits: Any, base: int) -> bool:
    """Toward zero to float32, the low `cut` fraction bits zero; too large is infinity."""
    keep = np.int32(-1) << np.int32(cut)
    for j in range(WIDTH):
        value = np.float32(exact[j])
        value = np.float32(np.inf) if exact[j] >= FLOAT32_LIMIT else value
        value = np.float32(-np.inf) if exact[j] <= -FLOAT32_LIMIT else value
        out[base + j] = value
    largest = np.int32(0)
    for j in range(WIDTH):
        bits = out_bits[base + j] & keep
        magnitude = bits & np.int32(0x7FFFFFFF)
        largest = max(largest, magnitude)
        out_bits[base + j] = bits if magnitude != 0 else np.int32(0)
    return largest < 0x7F800000


@jit
def nearest_sums(exact: Any, exact_bits: Any, result: Any, out: Any, out_bits: Any, base: int) -> bool:
    """To nearest even in the result format, held in float32; too large is infinity."""
    sign_free = np.int64(0x7FFFFFFFFFFFFFFF)
    powers_bits = np.empty(2 * WIDTH, np.int64)
    powers = powers_bits.view(np.float64)
    for j in range(WIDTH):
        exponent = ((exact_bits[j] & sign_free) >> 52) - 1023
        ulp = max(exponent, result.min_exponent) - result.fraction_bits
        powers_bits[j] = (1023 - ulp) << 52
        powers_bits[WIDTH + j] = (1023 + ulp) << 52
    limit_bits = np.int64(result.max_exponent + 1 + 1023) << 52
    powers_limit = np.empty(1, np.int64)
    powers_limit[0] = limit_bits
    limit = powers_limit.view(np.float64)[0]
    for j in range(WIDTH):
        units = abs(exact[j]) * powers[j]
        whole = (units + TO_WHOLE) - TO_WHOLE
        half = whole * 0.5
        odd = whole - 2.0 * ((half + TO_WHOLE) - TO_WHOLE)
        rest = units - whole
        up = 1.0 if (rest > 0.5 or (rest == 0.5 and odd == 1.0)) else 0.0
        rounded = (whole + up) * powers[WIDTH + j]
        rounded = np.inf if rounded >= limit else rounded
        out[base + j] = np.float32(-rounded if exact[j] < 0.0 else rounded)
    largest = np.int32(0)
    for j in range(WIDTH):
        bits = out_bits[base + j]
        magnitude = bits & np.int32(0x7FFFFFFF)
        largest = max(largest, magnitude)
        out_bits[base + j] = bits if magnitude != 0 else np.int32(0)
    return largest < 0x7F800000
