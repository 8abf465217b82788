"""Sums of f16 and bf16 as atomics have them, compiled by Numba: rounded to nearest even, subnormal numbers kept."""

from __future__ import annotations

from typing import Any

from mmabits.emulator.engine.jit import jit

_GUARD = 40
"""Bits below the significand, the last of which stands for all that were lost: 11 + 40 + 1 bits fit in int64."""


@jit
def _aligned(code: int, exponent: int, fraction_bits: int, greatest: int) -> Any:
    """A significand with guard bits, in units of the greater exponent."""
    significand = code & ((1 << fraction_bits) - 1)
    if exponent > 0:
        significand |= 1 << fraction_bits
    held = significand << _GUARD
    distance = greatest - max(exponent, 1)
    if distance >= 60:
        held = 1 if held != 0 else 0
    elif distance > 0:
        lost = held & ((1 << distance) - 1)
        held = held >> distance | (1 if lost != 0 else 0)
    return -held if code >> 15 != 0 else held


@jit
def sum_of_halves(a: int, b: int, fraction_bits: int) -> Any:
    """The code of a + b; of f16 with 10 fraction bits, of bf16 with 7. NaN is 0x7FFF."""
    top = (1 << (15 - fraction_bits)) - 1
    exponent_a, exponent_b = a >> fraction_bits & top, b >> fraction_bits & top
    infinity = top << fraction_bits
    if exponent_a == top or exponent_b == top:
        if a & 0x7FFF > infinity or b & 0x7FFF > infinity or (exponent_a == top and exponent_b == top and a != b):
            return 0x7FFF
        return a if exponent_a == top else b
    greatest = max(exponent_a, exponent_b, 1)
    total = _aligned(a, exponent_a, fraction_bits, greatest) + _aligned(b, exponent_b, fraction_bits, greatest)
    if total == 0:
        return a & b & 0x8000
    sign, left = (0x8000, -total) if total < 0 else (0, total)
    length, exponent = left, greatest - _GUARD - fraction_bits - 1
    while length != 0:
        length >>= 1
        exponent += 1
    exponent = max(exponent, 1)
    shift = _GUARD + exponent - greatest
    if shift <= 0:
        code = left << -shift
    else:
        code, rest, half = left >> shift, left & ((1 << shift) - 1), 1 << (shift - 1)
        if rest > half or (rest == half and code & 1 != 0):
            code += 1
    code += (exponent - 1) << fraction_bits
    return sign | min(code, infinity)
