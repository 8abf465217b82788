"""The special function unit: ex2, rcp, rsqrt and lg2 by table and quadratic interpolation, and what ptxas builds around them.

The tables are those of an older chip, in isa/tables/sfu.json with their licence. They give every public measurement of GPUs of today
that was found: 1,371,270 of 2^23 significands with a / a other than 1 (an RTX 3090), ten values of ex2 of a GB200, 13.2 % of
reciprocals that are not the nearest (A100), the worst error of rsqrt. All sums and products below are exact integers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from mmabits.isa.evidence import Evidence
from mmabits.isa.opcodes.exact import add, decode, encode, multiply, square_root
from mmabits.isa.opcodes.spec import Opcode

Reference = Callable[..., Any]

NAN: Final = 0x7FFF_FFFF
INFINITY: Final = 0x7F80_0000
SIGN: Final = 0x8000_0000
_SECTION: Final = "floating-point-instructions-"
_NOTE: Final = "tables of an older unit, which give every public measurement that was found; no recording of this architecture"


@lru_cache(maxsize=1)
def tables() -> dict[str, tuple[tuple[int, int, int], ...]]:
    """Rows of three integers for each function: value, first and second derivative."""
    text = (Path(__file__).parents[1] / "tables" / "sfu.json").read_text(encoding="utf-8")
    return {name: tuple((a, b, c) for a, b, c in rows) for name, rows in json.loads(text).items()}


def square(x: int) -> int:
    """The truncated square of a number of 17 bits."""
    return sum(x >> (18 - place) for place in range(17) if x >> place & 1) >> 1


def reciprocal(bits: int) -> int:
    """MUFU.RCP."""
    sign, field, fraction = bits & SIGN, bits >> 23 & 0xFF, bits & 0x7F_FFFF
    if field == 0xFF:
        return NAN if fraction else sign
    if field == 0:
        return sign | INFINITY
    a, b, c = tables()["rcp"][fraction >> 16]
    r = fraction & 0xFFFF
    m = (a * 2**13 + b * r + c * square(2 * r) + 0x47E7) >> 15
    exponent = 253 - field + (m >> 24)
    return sign | (exponent << 23 | (0 if m >> 24 else m & 0x7F_FFFF) if exponent > 0 else 0)


def reciprocal_root(bits: int) -> int:
    """MUFU.RSQ."""
    sign, field, fraction = bits & SIGN, bits >> 23 & 0xFF, bits & 0x7F_FFFF
    if field == 0xFF and fraction:
        return NAN
    if field == 0:
        return sign | INFINITY
    if sign:
        return NAN
    if field == 0xFF:
        return 0
    u = field - 127
    g = fraction + 2**23 * (u & 1)
    if g == 0:
        return (127 - (u >> 1)) << 23
    a, b, c = tables()["rsqrt"][g >> 17]
    r = g & 0x1_FFFF
    m = (a * 2**14 + b * r + 4 * c * square(r) + 0x7FFF) >> 16
    return ((126 - (u >> 1)) << 23) + m - 2**23


def exponential(bits: int) -> int:
    """MUFU.EX2."""
    sign, field, fraction = bits & SIGN, bits >> 23 & 0xFF, bits & 0x7F_FFFF
    if field == 0xFF and fraction:
        return NAN
    if field >= 134:  # 128 and more
        return 0 if sign else INFINITY
    significand = fraction | 0x80_0000 if field else 0
    shift = 127 - field
    fixed = significand >> shift if shift >= 0 else significand << -shift
    whole, rest = fixed >> 23, fixed & 0x7F_FFFF
    if sign:
        whole, rest = (-whole, 0) if rest == 0 else (-whole - 1, 0x7F_FFFF - rest)
    a, b, c = tables()["ex2"][rest >> 17]
    r = rest & 0x1_FFFF
    m = (a * 2**13 + b * r + c * square(r) + 0x77E2) >> 15
    exponent = whole + 127 + (m >> 24)
    if exponent >= 255:
        return INFINITY
    return exponent << 23 | (0 if m >> 24 else m & 0x7F_FFFF) if exponent > 0 else 0


def logarithm(bits: int) -> int:
    """MUFU.LG2."""
    sign, field, fraction = bits & SIGN, bits >> 23 & 0xFF, bits & 0x7F_FFFF
    if field == 0xFF and fraction:
        return NAN
    if field == 0:
        return SIGN | INFINITY
    if sign:
        return NAN
    if field == 0xFF:
        return INFINITY
    if field == 127 and fraction == 0:
        return 0
    a, b, c = tables()["lg2"][fraction >> 17]
    r = fraction & 0x1_FFFF
    s = (a * 2**12 + b * r + 2 * c * square(r) + 0x3345) >> 2 if fraction else 0
    total = s + (field - 127) * 2**36
    minus = SIGN if total < 0 else 0
    magnitude = ~total if total < 0 else total
    if fraction == 0:
        magnitude = abs(total)
    if magnitude == 0:
        return 0
    top = magnitude.bit_length() - 1
    cut = magnitude >> (top - 23) if top >= 23 else magnitude << (23 - top)
    return minus | ((top - 36 + 127) << 23) + cut - 2**23


# ------------------------------------------------------------------------------------------------------------ around the unit


def _times(a: int, b: int, *, ftz: bool = False) -> int:
    return encode(multiply(decode(a, "f32", ftz=ftz), decode(b, "f32", ftz=ftz)), "f32", ftz=ftz)


_SMALLEST, _LARGE = 0x0080_0000, 0x7E80_0000
"""2^-126 and 2^126."""
_UP, _DOWN, _HALF = 0x4B80_0000, 0x3E80_0000, 0x3F00_0000
"""2^24, 1/4 and 1/2."""


def _is_small(bits: int) -> bool:
    return bits & 0x7FFF_FFFF < _SMALLEST


def _is_large(bits: int) -> bool:
    return _LARGE < bits & 0x7FFF_FFFF <= INFINITY


def _exponential_ieee(a: int) -> int:
    if SIGN | 0x42FC_0000 < a <= SIGN | INFINITY:  # below -126
        half = exponential(_times(a, _HALF))
        return _times(half, half)
    return exponential(a)


def _reciprocal_ieee(a: int) -> int:
    factor = _DOWN if _is_large(a) else _UP if _is_small(a) else 0x3F80_0000
    return _times(factor, reciprocal(_times(factor, a)))


def _root_ieee(a: int) -> int:
    return _times(reciprocal_root(_times(a, _UP)), 0x4580_0000) if _is_small(a) else reciprocal_root(a)


def _logarithm_ieee(a: int) -> int:
    if not _is_small(a):
        return logarithm(a)
    return encode(add(decode(logarithm(_times(a, _UP)), "f32"), decode(0xC1C0_0000, "f32")), "f32")


def _quotient(*, full: bool, ftz: bool) -> Reference:
    def reference(a: int, b: int) -> int:
        if full and _is_large(b):
            a, b = _times(a, _DOWN, ftz=ftz), _times(b, _DOWN, ftz=ftz)
        if not ftz and _is_small(b):
            a, b = _times(a, _UP), _times(b, _UP)
        return _times(reciprocal(b), a, ftz=ftz)

    return reference


def _square_root(*, ftz: bool) -> Reference:
    def reference(a: int) -> int:
        number, more = square_root(decode(a, "f32", ftz=ftz), 26)
        return encode(number, "f32", ftz=ftz, sticky=more)

    return reference


def rows() -> Iterator[Opcode]:
    """Every row of this file."""
    shared: dict[str, Any] = {"results": ("f32",), "evidence": Evidence.INFERRED, "note": _NOTE}
    for name, unit, around in (
        ("ex2", exponential, _exponential_ieee), ("rcp", reciprocal, _reciprocal_ieee), ("rsqrt", reciprocal_root, _root_ieee),
        ("lg2", logarithm, _logarithm_ieee),
    ):  # fmt: skip
        yield Opcode(name=f"{name}.approx.ftz.f32", section=_SECTION + name, sources=("f32",), reference=unit, **shared)
        yield Opcode(name=f"{name}.approx.f32", section=_SECTION + name, sources=("f32",), reference=around, **shared)
    for kind in ("full", "approx"):
        for ftz in ("", "ftz."):
            yield Opcode(
                name=f"div.{kind}.{ftz}f32", section=_SECTION + "div", sources=("f32", "f32"),
                reference=_quotient(full=kind == "full", ftz=bool(ftz)), **shared,
            )  # fmt: skip
    shared["note"] = "the unit's bits are not known: the correctly rounded root stands in"
    for ftz in ("", "ftz."):
        yield Opcode(
            name=f"sqrt.approx.{ftz}f32", section=_SECTION + "sqrt", sources=("f32",), reference=_square_root(ftz=bool(ftz)), **shared,
        )  # fmt: skip
