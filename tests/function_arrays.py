"""The special functions of f32 once more, fast enough for all 2^32 codes.

Written from the description of the unit's arithmetic and from ptxas's machine code, with other means than the references and the vector
code: interpolations are tables over every fraction, fixed point comes of binary64, products and sums are the processor's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from mmabits.isa.opcodes.functions import tables

Codes = npt.NDArray[np.uint32]
NAN, INFINITY, SIGN = 0x7FFFFFFF, 0x7F800000, 0x80000000
jit = numba.njit(error_model="numpy", nogil=True)


@lru_cache(maxsize=1)
def squares() -> npt.NDArray[np.int64]:
    """The truncated square of every number of 17 bits."""
    x = np.arange(1 << 17, dtype=np.int64)
    return np.sum([np.where(x >> place & 1, x >> (18 - place), 0) for place in range(17)], axis=0, dtype=np.int64) >> 1


def _quadratic(name: str, place: npt.NDArray[np.int64], low: int, a: int, b: int, c: int, constant: int) -> npt.NDArray[np.int64]:
    """a A + b B r + c C square + constant; of rcp, the square is that of 2 r."""
    rows = np.array(tables()[name], np.int64)
    row, r = place >> low, place & (1 << low) - 1
    squared = squares()[2 * r if name == "rcp" else r]
    found: npt.NDArray[np.int64] = a * rows[row, 0] + b * rows[row, 1] * r + c * rows[row, 2] * squared + constant
    return found


def rcp_significands() -> npt.NDArray[np.int32]:
    """Of every fraction, 2^23 to 2^24."""
    return (_quadratic("rcp", np.arange(1 << 23), 16, 1 << 13, 1, 1, 0x47E7) >> 15).astype(np.int32)


def rsqrt_significands() -> npt.NDArray[np.int32]:
    """Of every fraction with the exponent's last bit above it; of 0 it is 2^24."""
    found = (_quadratic("rsqrt", np.arange(1 << 24), 17, 1 << 14, 1, 4, 0x7FFF) >> 16).astype(np.int32)
    found[0] = 1 << 24
    return found


def ex2_significands() -> npt.NDArray[np.int32]:
    """Of every fraction, 2^23 to 2^24."""
    return (_quadratic("ex2", np.arange(1 << 23), 17, 1 << 13, 1, 1, 0x77E2) >> 15).astype(np.int32)


def lg2_fractions() -> npt.NDArray[np.int64]:
    """log2 of every fraction's 1.f, with 36 fraction bits."""
    found = _quadratic("lg2", np.arange(1 << 23), 17, 1 << 12, 1, 2, 0x3345) >> 2
    found[0] = 0
    return found


def sin_codes() -> Codes:
    """f32 codes of the sine of every fraction of a quarter turn."""
    return cut_to_f32(_quadratic("sin", np.arange(1 << 23), 17, 1 << 11, 1, 1, 0), 37)


def cut_to_f32(number: npt.NDArray[np.int64], fraction: int) -> Codes:
    """Codes of numbers of at most 52 bits from 0 on, cut toward zero."""
    wide = np.ldexp(number.astype(np.float64), -fraction)
    found = (wide.view(np.uint64) >> np.uint64(29)).astype(np.int64) - (896 << 23)
    return np.where(number == 0, 0, found).astype(np.uint32)


class Tables(NamedTuple):
    """The interpolations, over every fraction."""

    rcp: npt.NDArray[np.int32]
    rsqrt: npt.NDArray[np.int32]
    ex2: npt.NDArray[np.int32]
    lg2: npt.NDArray[np.int64]
    sin: Codes


@lru_cache(maxsize=1)
def all_tables() -> Tables:
    """Some 200 MB."""
    return Tables(rcp_significands(), rsqrt_significands(), ex2_significands(), lg2_fractions(), sin_codes())


@jit
def number(bits):
    return np.uint32(bits).view(np.float32)


@jit
def code(value):
    return np.int64(0x7FFFFFFF) if np.isnan(value) else np.int64(np.float32(value).view(np.uint32))


@jit
def times(bits, factor):
    return code(number(bits) * np.float32(factor))


@jit
def is_nan(bits):
    return bits & 0x7FFFFFFF > INFINITY


@jit
def is_small(bits):
    return bits & 0x7FFFFFFF < 0x00800000


@jit
def cut(magnitude, fraction):
    """The f32 code of a positive number of at most 52 bits with so many fraction bits, cut toward zero."""
    wide = np.int64(np.float64(magnitude).view(np.uint64)) - (np.int64(fraction) << 52)
    return (wide >> 29) - (np.int64(896) << 23)


@jit
def unit_rcp(bits, tables):
    field, fraction, sign = bits >> 23 & 0xFF, bits & 0x7FFFFF, bits & SIGN
    if is_nan(bits):
        return np.int64(NAN)
    if field == 255:
        return sign
    if field == 0:
        return sign | INFINITY
    found = (252 - field << 23) + np.int64(tables.rcp[fraction])  # the significand's own bit is one of the exponent
    return sign | (found if found >= 1 << 23 else 0)


@jit
def unit_rsqrt(bits, tables):
    field, fraction, sign = bits >> 23 & 0xFF, bits & 0x7FFFFF, bits & SIGN
    if is_nan(bits):
        return np.int64(NAN)
    if field == 0:
        return sign | INFINITY
    if sign:
        return np.int64(NAN)
    if field == 255:
        return np.int64(0)
    return (125 - (field - 127 >> 1) << 23) + np.int64(tables.rsqrt[fraction | (~field & 1) << 23])


@jit
def unit_ex2(bits, tables):
    if is_nan(bits):
        return np.int64(NAN)
    magnitude, negative = np.float64(number(bits & 0x7FFFFFFF)), bits >= SIGN
    if magnitude >= 128:
        return np.int64(0 if negative else INFINITY)
    place = np.int64(magnitude * 2.0**23)  # cut toward zero
    if negative:
        place = ~place if place & 0x7FFFFF else -place
    found = ((place >> 23) + 126 << 23) + np.int64(tables.ex2[place & 0x7FFFFF])
    return min(found, np.int64(INFINITY)) if found >= 1 << 23 else np.int64(0)


@jit
def unit_lg2(bits, tables):
    field, fraction = bits >> 23 & 0xFF, bits & 0x7FFFFF
    if is_nan(bits):
        return np.int64(NAN)
    if field == 0:
        return np.int64(SIGN | INFINITY)
    if bits >= SIGN:
        return np.int64(NAN)
    if field == 255:
        return np.int64(INFINITY)
    total = tables.lg2[fraction] + (field - 127 << 36)
    if total >= 0:
        return cut(total, 36) if total else np.int64(0)
    return SIGN | cut(~total if fraction else -total, 36)


@jit
def turned(bits, quarter, tables):
    if bits & 0x7FFFFFFF >= INFINITY:
        return np.int64(NAN)
    product = np.float64(number(bits & 0x7FFFFFFF)) * np.float64(np.float32(0.15915494))
    nearest = np.float32(product)
    turns = number(code(nearest) - 1) if np.float64(nearest) > product else nearest
    fixed = np.int64(np.float64(turns) * 2.0**25) & 0x1FFFFFF if turns < 2.0**24 else np.int64(0)  # from there on turns are whole
    quadrant = (fixed >> 23) + quarter
    place = (~fixed if quadrant & 1 else fixed) & 0x7FFFFF
    minus = (quadrant >> 1 & 1) << 31
    return np.int64(tables.sin[place]) | (minus if quarter else minus ^ bits & SIGN)


@jit
def tanh(bits, tables):
    magnitude = bits & 0x7FFFFFFF
    if is_nan(bits):
        return np.int64(NAN)
    if number(magnitude) < np.float32(4.997253418e-3):
        return bits
    e = unit_ex2(times(magnitude, np.float32(-2 * 1.442695041)), tables)
    r = unit_rcp(code(number(e) + np.float32(1)), tables)
    whole, product = np.float64(number(r)), np.float64(number(e)) * np.float64(number(r))
    total = whole - product
    lost = (whole - total) - product  # exact, as the product is the smaller
    odd = np.int64(np.float64(total).view(np.uint64))
    if lost != 0 and odd & 1 == 0:  # rounded to odd, then once more
        odd += 1 if lost > 0 else -1
    return code(np.float32(np.uint64(odd).view(np.float64))) | bits & SIGN


@jit
def ex2(bits, tables):
    if number(bits) < -126:
        half = unit_ex2(times(bits, 0.5), tables)
        return code(number(half) * number(half))
    return unit_ex2(bits, tables)


@jit
def rcp(bits, tables):
    factor = np.float32(16777216 if is_small(bits) else 0.25 if abs(number(bits)) > 2.0**126 else 1)
    return code(factor * number(unit_rcp(times(bits, factor), tables)))


@jit
def rsqrt(bits, tables):
    if is_small(bits):
        return times(unit_rsqrt(times(bits, 16777216), tables), 4096)
    return unit_rsqrt(bits, tables)


@jit
def lg2(bits, tables):
    if is_small(bits):
        return code(number(unit_lg2(times(bits, 16777216), tables)) - np.float32(24))
    return unit_lg2(bits, tables)


@jit
def sin(bits, tables):
    return turned(bits, 0, tables)


@jit
def cos(bits, tables):
    return turned(bits, 1, tables)


@jit
def sqrt(bits, tables):
    return code(np.sqrt(number(bits)))


@jit
def sqrt_ftz(bits, tables):
    return bits & SIGN if is_small(bits) else code(np.sqrt(number(bits)))


FORMS: dict[str, Callable[..., int]] = {
    "ex2.approx.ftz.f32": unit_ex2, "ex2.approx.f32": ex2, "rcp.approx.ftz.f32": unit_rcp, "rcp.approx.f32": rcp,
    "rsqrt.approx.ftz.f32": unit_rsqrt, "rsqrt.approx.f32": rsqrt, "lg2.approx.ftz.f32": unit_lg2, "lg2.approx.f32": lg2,
    "sin.approx.ftz.f32": sin, "sin.approx.f32": sin, "cos.approx.ftz.f32": cos, "cos.approx.f32": cos, "tanh.approx.f32": tanh,
    "sqrt.approx.ftz.f32": sqrt_ftz, "sqrt.approx.f32": sqrt,
}  # fmt: skip
"""By opcode: of a code, and the tables."""


@cache
def _compared(name: str) -> Callable[..., tuple[int, int]]:
    form = FORMS[name]

    @jit
    def compared(codes, got, tables):  # type: ignore[no-untyped-def]
        count, first = 0, -1
        for at in range(codes.size):
            if form(np.int64(codes[at]), tables) != np.int64(got[at]):
                count += 1
                first = at if first < 0 else first
        return count, first

    found: Callable[..., tuple[int, int]] = compared
    return found


def differences(name: str, codes: Codes, found: Callable[[Codes], Any]) -> tuple[int, str]:
    """How many codes another implementation gives other results of than the form here, and the first."""
    got = np.asarray(found(codes))
    count, first = _compared(name)(codes, got, all_tables())
    if not count:
        return 0, ""
    wanted = int(FORMS[name](int(codes[first]), all_tables()))
    return count, f"{name} of {codes[first]:#010x}: {got[first]:#010x}, not {wanted:#010x}"
