"""The special function unit by table and quadratic interpolation, and what ptxas builds around it.

The tables are those of an older chip, in isa/tables/sfu.json with their licence. They give every public measurement of GPUs of today
that was found: 1,371,270 of 2^23 significands with a / a other than 1 (an RTX 3090), ten values of ex2 of a GB200, 13.2 % of
reciprocals that are not the nearest (A100), the worst error of rsqrt. All sums and products below are exact integers.

Of sqrt, tanh and the forms of 16 bits no table is known. A model within the manual's bound stands in, and the row says which.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from mmabits.isa.evidence import Evidence
from mmabits.isa.opcodes.exact import add, decode, encode, multiply, square_root
from mmabits.isa.opcodes.spec import Bound, ErrorMeasure, Opcode

Reference = Callable[..., Any]

NAN: Final = 0x7FFF_FFFF
INFINITY: Final = 0x7F80_0000
SIGN: Final = 0x8000_0000
_SECTION: Final = "floating-point-instructions-"
_HALF_SECTION: Final = "half-precision-floating-point-instructions-"
_NOTE: Final = "tables of an older unit, which give every public measurement that was found; no recording of this architecture"


@lru_cache(maxsize=1)
def tables() -> dict[str, tuple[tuple[int, int, int], ...]]:
    """Rows of three integers for each function: value, first and second derivative."""
    text = (Path(__file__).parents[1] / "tables" / "sfu.json").read_text(encoding="utf-8")
    return {name: tuple((a, b, c) for a, b, c in rows) for name, rows in json.loads(text).items()}


def square(x: int) -> int:
    """The truncated square of a number of 17 bits."""
    return sum(x >> (18 - place) for place in range(17) if x >> place & 1) >> 1


class Interpolated(NamedTuple):
    """One interpolation, as it was computed."""

    form: Quadratic
    row: int
    """Of the table."""
    r: int
    terms: tuple[int, int, int]
    """A, B and C."""
    square: int
    """Of r 2^s, truncated."""
    total: int
    """Before the cut."""
    result: int


_seen: ContextVar[list[Interpolated] | None] = ContextVar("interpolations", default=None)


@contextmanager
def interpolations() -> Iterator[list[Interpolated]]:
    """The interpolations that references carry out inside the block."""
    seen: list[Interpolated] = []
    before = _seen.set(seen)
    try:
        yield seen
    finally:
        _seen.reset(before)


@dataclass(frozen=True, kw_only=True)
class Quadratic:
    """An interpolation: (A 2^a + B r + C 2^c square(r 2^s) + constant) >> cut, with A, B, C the row of a table.

    The row is that of the operand's high bits, r are its `low` bits.
    """

    table: str
    low: int
    a: int
    c: int = 0
    s: int = 0
    constant: int = 0
    cut: int = 0

    def __call__(self, place: int) -> int:
        """The result in integers."""
        row, r = place >> self.low, place & (1 << self.low) - 1
        a, b, c = tables()[self.table][row]
        squared = square(r << self.s)
        total = (a << self.a) + b * r + (c * squared << self.c) + self.constant
        seen = _seen.get()
        if seen is not None:
            seen.append(Interpolated(self, row, r, (a, b, c), squared, total, total >> self.cut))
        return total >> self.cut


QUADRATICS: Final = {
    "rcp": Quadratic(table="rcp", low=16, a=13, s=1, constant=0x47E7, cut=15),
    "rsqrt": Quadratic(table="rsqrt", low=17, a=14, c=2, constant=0x7FFF, cut=16),
    "ex2": Quadratic(table="ex2", low=17, a=13, constant=0x77E2, cut=15),
    "lg2": Quadratic(table="lg2", low=17, a=12, c=1, constant=0x3345, cut=2),
    "sin": Quadratic(table="sin", low=17, a=11),
}
"""The unit's functions."""


def reciprocal(bits: int) -> int:
    """MUFU.RCP."""
    sign, field, fraction = bits & SIGN, bits >> 23 & 0xFF, bits & 0x7F_FFFF
    if field == 0xFF:
        return NAN if fraction else sign
    if field == 0:
        return sign | INFINITY
    m = QUADRATICS["rcp"](fraction)
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
    m = QUADRATICS["rsqrt"](g)
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
    m = QUADRATICS["ex2"](rest)
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
    s = QUADRATICS["lg2"](fraction) if fraction else 0
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


def _turned(bits: int, quarter: int) -> int:
    """MUFU.SIN and, a quarter further, MUFU.COS of a number of turns, which is cut to 25 fraction bits."""
    sign, field, fraction = bits >> 31, bits >> 23 & 0xFF, bits & 0x7F_FFFF
    if field == 0xFF:
        return NAN
    significand, shift = fraction | 0x80_0000 if field else 0, field - 125
    fixed = (significand << shift if shift >= 0 else significand >> -shift) & 0x1FF_FFFF
    quadrant, rest = (fixed >> 23) + quarter, fixed & 0x7F_FFFF
    if quadrant & 1:
        rest = 0x7F_FFFF - rest
    minus = ((0 if quarter else sign) ^ (quadrant >> 1 & 1)) << 31
    total = QUADRATICS["sin"](rest)
    if total == 0:
        return minus
    top = total.bit_length() - 1
    cut = total >> (top - 23) if top >= 23 else total << (23 - top)
    return minus | ((top - 37 + 127) << 23) + cut - 2**23


def sine(bits: int) -> int:
    """MUFU.SIN, of turns."""
    return _turned(bits, 0)


def cosine(bits: int) -> int:
    """MUFU.COS, of turns."""
    return _turned(bits, 1)


# ------------------------------------------------------------------------------------------------------------ around the unit


def _times(a: int, b: int, mode: str = "rn", *, ftz: bool = False) -> int:
    return encode(multiply(decode(a, "f32", ftz=ftz), decode(b, "f32", ftz=ftz)), "f32", mode, ftz=ftz)


_SMALLEST, _LARGE = 0x0080_0000, 0x7E80_0000
"""2^-126 and 2^126."""
_UP, _DOWN, _HALF = 0x4B80_0000, 0x3E80_0000, 0x3F00_0000
"""2^24, 1/4 and 1/2."""
TURN: Final = 0x3E22_F983
"""1 / (2 pi) in f32."""


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


def _of_radians(unit: Reference) -> Reference:
    return lambda a: unit(_times(a, TURN, "rz"))


TANH_SLOPE: Final = 0xC038_AA3B
"""-2 log2(e) in f32."""
TANH_PASSED: Final = 0x3BA3_C000
"""0.004997: what is smaller is its own tanh."""
ONE: Final = 0x3F80_0000


def hyperbolic_tangent(bits: int) -> int:
    """What stands in for MUFU.TANH: r - e r with e = ex2(-2 log2(e) |a|) and r = rcp(1 + e), all of the unit, sums and products rounded.

    N. Juffa gave it for chips without MUFU.TANH, and measured 108.83 ulp of it and 133.95 of MUFU.TANH on Turing.
    """
    magnitude = bits & 0x7FFF_FFFF
    if magnitude > INFINITY:
        return NAN
    if magnitude < TANH_PASSED:
        return bits
    e = exponential(_times(TANH_SLOPE, magnitude))
    r = reciprocal(encode(add(decode(e, "f32"), decode(ONE, "f32")), "f32"))
    rest = add(multiply(decode(e, "f32"), decode(r | SIGN, "f32")), decode(r, "f32"))
    return bits & SIGN | encode(rest, "f32")


def _narrowed(unit: Reference, form: str, *, ftz: bool = False) -> Reference:
    """A function of f32 on 16 bits: the operand widened, the result rounded to nearest."""

    def reference(a: int) -> int:
        wide = encode(decode(a, form, ftz=ftz), "f32")
        return encode(decode(unit(wide), "f32"), form, ftz=ftz)

    return reference


def _pair(reference: Reference) -> Reference:
    return lambda a: reference(a & 0xFFFF) | reference(a >> 16) << 16


# ----------------------------------------------------------------------------------------------------------------------- rows


def _absolute(power: float, low: float = 0.0, high: float = math.inf) -> Bound:
    return Bound(most=2.0**power, measure=ErrorMeasure.ABSOLUTE, magnitudes=(low, high))


def _relative(power: float, low: float = 0.0, high: float = math.inf) -> Bound:
    return Bound(most=2.0**power, measure=ErrorMeasure.RELATIVE, magnitudes=(low, high))


def _ulps(most: int, low: float = 0.0, high: float = math.inf) -> Bound:
    return Bound(most=most, measure=ErrorMeasure.ULP, magnitudes=(low, high))


_TURNING: Final = (_absolute(-20.5, 0, 2 * math.pi), _absolute(-14.7, 0, 100 * math.pi))
BOUNDS: Final[dict[str, tuple[Bound, ...]]] = {
    "ex2.f32": (_ulps(2),),
    "ex2.f16": (_relative(-9.9),),
    "ex2.bf16": (_relative(-7),),
    "rcp.f32": (_ulps(1),),
    "rsqrt.f32": (_relative(-22.9),),
    "lg2.f32": (_absolute(-22, 0.5, 2), _relative(-22, 0, 0.5), _relative(-22, 2, math.inf)),
    "sqrt.f32": (_relative(-23),),
    "sin.f32": _TURNING,
    "cos.f32": _TURNING,
    "tanh.f32": (_relative(-11),),
    "tanh.f16": (_absolute(-10.987),),
    "tanh.bf16": (_absolute(-8),),
    "div.approx": (_ulps(2, 2.0**-126, 2.0**126),),
    "div.full": (_ulps(2),),
}
"""The PTX manual's bounds, by function and type."""

_LIFTED = "where |a| < 2^-126: a 2^24 first, the result {}"
MACHINE_CODE: Final = {
    "ex2.approx.ftz.f32": "MUFU.EX2",
    "ex2.approx.f32": "MUFU.EX2; where a < -126 of a / 2, and the result squared",
    "rcp.approx.ftz.f32": "MUFU.RCP",
    "rcp.approx.f32": "MUFU.RCP; a and the result times 2^24 where |a| < 2^-126, times 1/4 where |a| > 2^126",
    "rsqrt.approx.ftz.f32": "MUFU.RSQ",
    "rsqrt.approx.f32": "MUFU.RSQ; " + _LIFTED.format("times 2^12"),
    "lg2.approx.ftz.f32": "MUFU.LG2",
    "lg2.approx.f32": "MUFU.LG2; " + _LIFTED.format("less 24"),
    "sqrt.approx.ftz.f32": "MUFU.SQRT",
    "sqrt.approx.f32": "MUFU.SQRT; " + _LIFTED.format("times 2^-12"),
    "sin.approx.ftz.f32": "FMUL.RZ by 1/(2 pi), MUFU.SIN",
    "sin.approx.f32": "FMUL.RZ by 1/(2 pi), MUFU.SIN",
    "cos.approx.ftz.f32": "FMUL.RZ by 1/(2 pi), MUFU.COS",
    "cos.approx.f32": "FMUL.RZ by 1/(2 pi), MUFU.COS",
    "tanh.approx.f32": "MUFU.TANH",
    "tanh.approx.f16": "MUFU.TANH.F16",
    "tanh.approx.f16x2": "MUFU.TANH.F16 of each half",
    "tanh.approx.bf16": "MUFU.TANH.BF16",
    "tanh.approx.bf16x2": "MUFU.TANH.BF16 of each half",
    "ex2.approx.f16": "MUFU.EX2.F16",
    "ex2.approx.f16x2": "MUFU.EX2.F16 of each half",
    "ex2.approx.ftz.bf16": "MUFU.EX2.BF16",
    "ex2.approx.ftz.bf16x2": "MUFU.EX2.BF16 of each half",
    "div.full.f32": "a MUFU.RCP(b); both times 1/4 where |b| > 2^126, times 2^24 where |b| < 2^-126",
    "div.full.ftz.f32": "a MUFU.RCP(b); both times 1/4 where |b| > 2^126",
    "div.approx.f32": "a MUFU.RCP(b); both times 2^24 where |b| < 2^-126",
    "div.approx.ftz.f32": "a MUFU.RCP(b)",
}
"""What ptxas 13.0 makes of each, on sm_80, sm_90a, sm_100a and sm_120a alike."""

REFUSED: Final = {
    "rcp.approx.ftz.f64": "the machine code is MUFU.RCP64H, of which only the format is public: 20 fraction bits in, the lower word zero",
    "rsqrt.approx.ftz.f64": "the machine code is MUFU.RSQ64H, of which only the format is public: 20 fraction bits in, the lower word zero",
    "rsqrt.approx.f64": "the machine code begins with MUFU.RSQ64H, of which only the format is public",
}
"""Functions without a row, and why."""

_TURNS: Final = (
    "tables of an older unit; that turns are cut toward zero to 25 fraction bits is guessed from the CUDA guide's bounds; no recording"
)
_TURNS_OF_COS: Final = _TURNS + "; beyond pi its error reaches 2^-20.43, more than the manual allows"
_ROOT: Final = "the unit's bits are not public: the correctly rounded root stands in"
_TANH: Final = "the unit's bits are not public: N. Juffa's tanh for chips without it stands in, by the models of ex2 and rcp"
_SMALL: Final = "the unit's bits are not public: the model of f32, rounded to nearest, stands in"


def _row(name: str, reference: Reference, note: str, kind: str = "f32", **more: Any) -> Opcode:
    base = name.partition(".")[0]
    section = _SECTION if kind == "f32" else _HALF_SECTION
    bounds = BOUNDS[f"{base}.{kind.removesuffix('x2')}"]
    return Opcode(
        name=f"{name}.{kind}", section=section + base, sources=(kind,), results=(kind,), reference=reference, evidence=Evidence.INFERRED,
        note=note, bounds=bounds, **more,
    )  # fmt: skip


def rows() -> Iterator[Opcode]:
    """Every row of this file."""
    turning = _of_radians(sine), _of_radians(cosine)
    for name, note, unit, around in (
        ("ex2", _NOTE, exponential, _exponential_ieee), ("rcp", _NOTE, reciprocal, _reciprocal_ieee),
        ("rsqrt", _NOTE, reciprocal_root, _root_ieee), ("lg2", _NOTE, logarithm, _logarithm_ieee),
        ("sqrt", _ROOT, _square_root(ftz=True), _square_root(ftz=False)),
        ("sin", _TURNS, turning[0], turning[0]), ("cos", _TURNS_OF_COS, turning[1], turning[1]),
    ):  # fmt: skip
        yield _row(f"{name}.approx.ftz", unit, note)
        yield _row(f"{name}.approx", around, note)
    yield _row("tanh.approx", hyperbolic_tangent, _TANH, since=75)
    for form, since, ftz in (("f16", 75, ""), ("bf16", 90, ".ftz")):
        for name, one in (
            (f"ex2.approx{ftz}", _narrowed(exponential, form, ftz=bool(ftz))),
            ("tanh.approx", _narrowed(hyperbolic_tangent, form)),
        ):
            yield _row(name, one, _SMALL, form, since=since)
            yield _row(name, _pair(one), _SMALL, f"{form}x2", since=since)
    for kind in ("full", "approx"):
        for ftz in ("", "ftz."):
            yield Opcode(
                name=f"div.{kind}.{ftz}f32", section=_SECTION + "div", sources=("f32", "f32"), results=("f32",),
                reference=_quotient(full=kind == "full", ftz=bool(ftz)), evidence=Evidence.INFERRED, note=_NOTE,
                bounds=BOUNDS[f"div.{kind}"],
            )  # fmt: skip
