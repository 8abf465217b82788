"""The special functions of f32 once more, on whole NumPy arrays of codes: fast enough for all 2^32.

Written from isa/tables/README of the unit's arithmetic and ptxas's machine code, with other means than the references and the vector
code: interpolations are tables over every fraction, fixed point comes of binary64, products and sums are NumPy's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from mmabits.isa.opcodes.functions import tables

Codes = npt.NDArray[np.uint32]
NAN, INFINITY, SIGN = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000), np.uint32(0x80000000)


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


@lru_cache(maxsize=1)
def rcp_significands() -> npt.NDArray[np.int32]:
    """Of every fraction, 2^23 to 2^24."""
    return (_quadratic("rcp", np.arange(1 << 23), 16, 1 << 13, 1, 1, 0x47E7) >> 15).astype(np.int32)


@lru_cache(maxsize=1)
def rsqrt_significands() -> npt.NDArray[np.int32]:
    """Of every fraction with the exponent's last bit above it; of 0 it is 2^24."""
    found = (_quadratic("rsqrt", np.arange(1 << 24), 17, 1 << 14, 1, 4, 0x7FFF) >> 16).astype(np.int32)
    found[0] = 1 << 24
    return found


@lru_cache(maxsize=1)
def ex2_significands() -> npt.NDArray[np.int32]:
    """Of every fraction, 2^23 to 2^24."""
    return (_quadratic("ex2", np.arange(1 << 23), 17, 1 << 13, 1, 1, 0x77E2) >> 15).astype(np.int32)


@lru_cache(maxsize=1)
def lg2_fractions() -> npt.NDArray[np.int64]:
    """log2 of every fraction's 1.f, with 36 fraction bits."""
    found = _quadratic("lg2", np.arange(1 << 23), 17, 1 << 12, 1, 2, 0x3345) >> 2
    found[0] = 0
    return found


@lru_cache(maxsize=1)
def sin_codes() -> Codes:
    """f32 codes of the sine of every fraction of a quarter turn."""
    return cut_to_f32(_quadratic("sin", np.arange(1 << 23), 17, 1 << 11, 1, 1, 0), 37)


def cut_to_f32(number: npt.NDArray[np.int64], fraction: int) -> Codes:
    """Codes of numbers of at most 52 bits from 0 on, cut toward zero."""
    wide = np.ldexp(number.astype(np.float64), -fraction)
    found = (wide.view(np.uint64) >> np.uint64(29)).astype(np.int64) - (896 << 23)
    return np.where(number == 0, 0, found).astype(np.uint32)


def floats(codes: Codes) -> npt.NDArray[np.float32]:
    return codes.view(np.float32)


def one_nan(numbers: npt.NDArray[np.float32]) -> Codes:
    codes = numbers.view(np.uint32).copy()
    codes[np.isnan(numbers)] = NAN
    return codes


def times(codes: Codes, factor: float) -> Codes:
    return one_nan(floats(codes) * np.float32(factor))


def _fields(codes: Codes) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Exponent fields and fractions."""
    return (codes >> np.uint32(23)).astype(np.int32) & 0xFF, (codes & np.uint32(0x7FFFFF)).astype(np.int32)


def unit_rcp(codes: Codes) -> Codes:
    field, fraction = _fields(codes)
    found = ((253 - 1 - field) << 23) + rcp_significands()[fraction]  # the significand's own bit is one of the exponent
    found = np.where(found < 1 << 23, 0, found).astype(np.uint32)
    found[field == 0] = INFINITY
    found[field == 255] = 0
    found |= codes & SIGN
    found[(field == 255) & (fraction != 0)] = NAN
    return found


def unit_rsqrt(codes: Codes) -> Codes:
    field, fraction = _fields(codes)
    odd = (field & 1) ^ 1
    found = ((126 - 1 - (field - 127 >> 1)) << 23) + rsqrt_significands()[fraction | odd << 23]
    found = found.astype(np.uint32)
    found[field == 255] = 0
    found[codes >= SIGN] = NAN
    found[field == 0] = (INFINITY | codes & SIGN)[field == 0]
    found[(field == 255) & (fraction != 0)] = NAN
    return found


def unit_ex2(codes: Codes) -> Codes:
    magnitude = floats(codes & ~SIGN)
    fixed = (np.where(magnitude < 128, magnitude, 0).astype(np.float64) * 2**23).astype(np.int32)  # cut toward zero
    below = (codes >= SIGN) & (fixed & 0x7FFFFF != 0)
    negative = codes >= SIGN
    place = np.where(below, ~fixed, np.where(negative, -fixed, fixed))  # the complement, where it is no whole number
    found = ((place >> 23) + 126 << 23) + ex2_significands()[place & 0x7FFFFF]
    found = np.where(found < 1 << 23, 0, np.minimum(found, int(INFINITY))).astype(np.uint32)
    far = ~(magnitude < 128)
    found[far] = np.where(negative, np.uint32(0), INFINITY)[far]
    found[np.isnan(magnitude)] = NAN
    return found


def unit_lg2(codes: Codes) -> Codes:
    field, fraction = _fields(codes)
    total = lg2_fractions()[fraction] + ((field.astype(np.int64) - 127) << 36)
    minus = total < 0
    magnitude = np.where(minus, np.where(fraction == 0, -total, ~total), total)
    found = cut_to_f32(magnitude, 36) | np.where(minus, SIGN, np.uint32(0))
    found[field == 255] = INFINITY
    found[codes >= SIGN] = NAN
    found[field == 0] = SIGN | INFINITY
    found[(field == 255) & (fraction != 0)] = NAN
    return found


def _turned(codes: Codes, quarter: int) -> Codes:
    numbers = floats(codes)
    product = numbers.astype(np.float64) * np.float64(np.float32(0.15915494))
    nearest = product.astype(np.float32)
    toward_zero = nearest.view(np.uint32) - (np.abs(nearest.astype(np.float64)) > np.abs(product))
    turns = np.abs(floats(toward_zero.astype(np.uint32)))
    small = np.where(turns < 2**24, turns, 0)  # from there on they are whole
    small[(turns < np.float32(2.0**-126))] = 0
    fixed = (small.astype(np.float64) * 2**25).astype(np.int64).astype(np.uint64).astype(np.uint32) & np.uint32(0x1FFFFFF)
    quadrant = (fixed >> np.uint32(23)) + np.uint32(quarter)
    place = np.where(quadrant & 1, ~fixed, fixed) & np.uint32(0x7FFFFF)
    minus = (quadrant << np.uint32(30)) & SIGN
    if not quarter:
        minus ^= codes & SIGN
    found = sin_codes()[place] | minus
    found[~np.isfinite(numbers)] = NAN
    return found


def _tanh(codes: Codes) -> Codes:
    magnitude = codes & ~SIGN
    e = unit_ex2(times(magnitude, np.float32(-2 * 1.442695041)))
    r = unit_rcp(one_nan(floats(e) + np.float32(1)))
    product, whole = floats(e).astype(np.float64) * floats(r), floats(r).astype(np.float64)
    total = whole - product
    back = whole - total
    lost = back - product  # exact, as |product| <= |whole|
    odd = total.view(np.int64)
    odd += np.where((odd & 1 == 0) & (lost != 0), np.sign(lost), 0).astype(np.int64)  # rounded to odd, then once more
    found = odd.view(np.float64).astype(np.float32).view(np.uint32) | (codes & SIGN)
    found = np.where(magnitude < np.float32(4.997253418e-3).view(np.uint32), codes, found)
    found[magnitude > INFINITY] = NAN
    return found


def _small(codes: Codes) -> npt.NDArray[np.bool_]:
    return codes & ~SIGN < np.uint32(0x00800000)


def _flushed(codes: Codes) -> Codes:
    return np.where(_small(codes), codes & SIGN, codes)


def _ex2(codes: Codes) -> Codes:
    low = floats(codes) < -126
    found = unit_ex2(np.where(low, times(codes, 0.5), codes))
    return np.where(low, one_nan(floats(found) * floats(found)), found)


def _rcp(codes: Codes) -> Codes:
    factor = np.where(_small(codes), np.float32(2**24), np.where(np.abs(floats(codes)) > 2.0**126, np.float32(0.25), np.float32(1)))
    return one_nan(factor * floats(unit_rcp(one_nan(factor * floats(codes)))))


def _rsqrt(codes: Codes) -> Codes:
    found = unit_rsqrt(np.where(_small(codes), times(codes, 2**24), codes))
    return np.where(_small(codes), times(found, 2**12), found)


def _lg2(codes: Codes) -> Codes:
    found = unit_lg2(np.where(_small(codes), times(codes, 2**24), codes))
    return np.where(_small(codes), one_nan(floats(found) - np.float32(24)), found)


def _sqrt(codes: Codes) -> Codes:
    return one_nan(np.sqrt(floats(codes)))


FORMS: dict[str, Callable[[Codes], Codes]] = {
    "ex2.approx.ftz.f32": unit_ex2, "ex2.approx.f32": _ex2, "rcp.approx.ftz.f32": unit_rcp, "rcp.approx.f32": _rcp,
    "rsqrt.approx.ftz.f32": unit_rsqrt, "rsqrt.approx.f32": _rsqrt, "lg2.approx.ftz.f32": unit_lg2, "lg2.approx.f32": _lg2,
    "sin.approx.ftz.f32": lambda codes: _turned(codes, 0), "sin.approx.f32": lambda codes: _turned(codes, 0),
    "cos.approx.ftz.f32": lambda codes: _turned(codes, 1), "cos.approx.f32": lambda codes: _turned(codes, 1),
    "tanh.approx.f32": _tanh, "sqrt.approx.ftz.f32": lambda codes: _sqrt(_flushed(codes)), "sqrt.approx.f32": _sqrt,
}  # fmt: skip
"""By opcode."""


def differences(name: str, start: int, stop: int, found: Callable[[Codes], Any], block: int = 1 << 20) -> tuple[int, str]:
    """How many of the codes start .. stop - 1 another implementation gives other results of, and the first."""
    count, first = 0, ""
    with np.errstate(all="ignore"):
        for at in range(start, stop, block):
            codes = np.arange(at, min(at + block, stop), dtype=np.uint64).astype(np.uint32)
            wanted, got = FORMS[name](codes), np.asarray(found(codes))
            wrong = np.flatnonzero(wanted != got)
            if wrong.size:
                at_first = wrong[0]
                first = first or f"{name} of {codes[at_first]:#010x}: {got[at_first]:#010x}, not {wanted[at_first]:#010x}"
                count += int(wrong.size)
    return count, first
