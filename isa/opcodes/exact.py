"""Floating-point numbers taken apart and put together exactly, in Python integers: what the references of the opcodes are written in."""

from __future__ import annotations

import enum
import math
from typing import Final, NamedTuple

from mmabits.isa.formats import FORMATS, FormatSpec, NonFinite

NAN: Final = {"f64": 0x7FF8_0000_0000_0000, "f32": 0x7FFF_FFFF, "f16": 0x7FFF, "bf16": 0x7FFF, "tf32": 0x7FFF_FFFF}
"""The one NaN of a format's results."""


class Special(enum.Enum):
    """What is not finite."""

    NAN = "NaN"
    INFINITY = "infinity"


class Number(NamedTuple):
    """(-1)^sign * significand * 2^exponent, or an infinity or NaN."""

    sign: int
    significand: int
    exponent: int
    special: Special | None = None

    @property
    def is_nan(self) -> bool:
        """Whether it is NaN."""
        return self.special is Special.NAN

    @property
    def is_infinite(self) -> bool:
        """Whether it is an infinity."""
        return self.special is Special.INFINITY

    @property
    def is_zero(self) -> bool:
        """Whether it is a zero."""
        return self.special is None and self.significand == 0

    @property
    def signed(self) -> int:
        """The significand with its sign."""
        return -self.significand if self.sign else self.significand


def decode(bits: int, form: str | FormatSpec, *, ftz: bool = False) -> Number:
    """The number a code stands for; with `ftz` a subnormal is a zero of its sign."""
    spec = FORMATS[form] if isinstance(form, str) else form
    bits >>= spec.ignored_low_bits
    fraction = bits & (1 << spec.fraction_bits) - 1
    field = bits >> spec.fraction_bits & (1 << spec.exponent_bits) - 1
    sign = bits >> (spec.fraction_bits + spec.exponent_bits) & 1 if spec.sign_bits else 0
    top = (1 << spec.exponent_bits) - 1
    if field == top and spec.non_finite is NonFinite.IEEE:
        return Number(sign, 0, 0, Special.NAN if fraction else Special.INFINITY)
    if field == top and spec.non_finite is NonFinite.NAN_ONLY and fraction == (1 << spec.fraction_bits) - 1:
        return Number(sign, 0, 0, Special.NAN)
    if field == 0 and spec.has_subnormals:
        return Number(sign, 0 if ftz else fraction, spec.min_exponent - spec.fraction_bits)
    return Number(sign, fraction | 1 << spec.fraction_bits, field - spec.bias - spec.fraction_bits)


def _rounds_up(sign: int, odd: int, above: int, mode: str) -> bool:
    """Whether the magnitude goes up; `above` compares what is cut off with half a unit: 0 nothing, 1 less, 2 half, 3 more."""
    if mode == "rn":
        return above == 3 or (above == 2 and odd == 1)
    if mode == "rna":
        return above >= 2
    if mode == "rm":
        return above > 0 and sign == 1
    if mode == "rp":
        return above > 0 and sign == 0
    return False  # rz


def round_integer(sign: int, significand: int, exponent: int, mode: str, *, sticky: bool = False) -> int:
    """The magnitude of a number as an integer; `sticky` says that a little more than the significand is there."""
    if exponent >= 0:
        return (significand << exponent) + (1 if sticky and _rounds_up(sign, 0, 1, mode) else 0)
    whole, rest = significand >> -exponent, significand & (1 << -exponent) - 1
    half = 1 << (-exponent - 1)
    above = 0 if rest == 0 and not sticky else 1 if rest < half else 2 if rest == half and not sticky else 3
    return whole + _rounds_up(sign, whole & 1, above, mode)


def encode(number: Number, form: str, mode: str = "rn", *, ftz: bool = False, sticky: bool = False, saturating: bool = False) -> int:
    """The code of a number rounded to a format.

    Args:
        number: what to round.
        form: name of a format with infinities, NaN codes and subnormals.
        mode: `rn`, `rna`, `rz`, `rm` or `rp`.
        ftz: a subnormal result becomes a zero of its sign.
        sticky: the magnitude is a little more than the number's.
        saturating: the largest finite number takes the place of what is beyond it.
    """
    spec = FORMATS[form]
    top = (1 << spec.exponent_bits) - 1
    sign_bit = number.sign << (spec.exponent_bits + spec.fraction_bits)
    largest = spec.max_finite_magnitude >> spec.ignored_low_bits
    if number.is_nan:
        nan = NAN.get(form)
        return nan if nan is not None else spec.magnitude_mask
    if number.is_infinite:
        if saturating:
            return (sign_bit | largest) << spec.ignored_low_bits
        return (sign_bit | (top << spec.fraction_bits)) << spec.ignored_low_bits
    if number.significand == 0 and not sticky:
        return sign_bit << spec.ignored_low_bits
    significand, exponent = number.significand, number.exponent
    highest = significand.bit_length() - 1 + exponent if significand else -(10**9)
    unit = max(highest, spec.min_exponent) - spec.fraction_bits
    shifted = round_integer(number.sign, significand, exponent - unit, mode, sticky=sticky)
    code = (
        shifted
        if unit == spec.min_exponent - spec.fraction_bits
        else shifted + ((unit + spec.fraction_bits + spec.bias - 1) << spec.fraction_bits)
    )
    if code > largest:
        toward_zero = mode == "rz" or (mode == "rm" and not number.sign) or (mode == "rp" and number.sign)
        infinite = (top << spec.fraction_bits) if spec.non_finite is NonFinite.IEEE else spec.magnitude_mask
        code = largest if toward_zero or saturating else infinite
    if ftz and code < 1 << spec.fraction_bits:
        code = 0
    return (sign_bit | code) << spec.ignored_low_bits


def add(a: Number, b: Number, mode: str = "rn") -> Number:
    """The exact sum; the mode tells the sign of a zero that comes of cancelling."""
    if a.is_nan or b.is_nan or (a.is_infinite and b.is_infinite and a.sign != b.sign):
        return Number(0, 0, 0, Special.NAN)
    if a.is_infinite or b.is_infinite:
        return a if a.is_infinite else b
    exponent = min(a.exponent, b.exponent)
    total = (a.signed << (a.exponent - exponent)) + (b.signed << (b.exponent - exponent))
    if total == 0:
        both = a.sign & b.sign if a.is_zero and b.is_zero and a.sign == b.sign else int(mode == "rm")
        return Number(both, 0, exponent)
    return Number(int(total < 0), abs(total), exponent)


def multiply(a: Number, b: Number) -> Number:
    """The exact product."""
    sign = a.sign ^ b.sign
    if a.is_nan or b.is_nan or (a.is_infinite and b.is_zero) or (a.is_zero and b.is_infinite):
        return Number(0, 0, 0, Special.NAN)
    if a.is_infinite or b.is_infinite:
        return Number(sign, 0, 0, Special.INFINITY)
    return Number(sign, a.significand * b.significand, a.exponent + b.exponent)


def divide(a: Number, b: Number, bits: int) -> tuple[Number, bool]:
    """The quotient to at least `bits` bits, and whether there is more."""
    sign = a.sign ^ b.sign
    if a.is_nan or b.is_nan or (a.is_infinite and b.is_infinite) or (a.is_zero and b.is_zero):
        return Number(0, 0, 0, Special.NAN), False
    if a.is_infinite or b.is_zero:
        return Number(sign, 0, 0, Special.INFINITY), False
    if b.is_infinite or a.is_zero:
        return Number(sign, 0, 0), False
    shift = max(0, bits + b.significand.bit_length() - a.significand.bit_length() + 1)
    quotient, rest = divmod(a.significand << shift, b.significand)
    return Number(sign, quotient, a.exponent - b.exponent - shift), rest != 0


def square_root(a: Number, bits: int) -> tuple[Number, bool]:
    """The square root to at least `bits` bits, and whether there is more."""
    if a.is_nan or (a.sign and not a.is_zero):
        return Number(0, 0, 0, Special.NAN), False
    if a.is_infinite or a.is_zero:
        return a, False
    shift = max(0, 2 * bits - a.significand.bit_length() + 2)
    shift += (a.exponent - shift) % 2
    wide = a.significand << shift
    root = math.isqrt(wide)
    return Number(0, root, (a.exponent - shift) // 2), root * root != wide


def compare(a: Number, b: Number) -> int | None:
    """-1, 0 or 1; None where one is NaN."""
    if a.is_nan or b.is_nan:
        return None

    def place(x: Number) -> tuple[int, int, int]:
        if x.is_infinite:
            return (-1 if x.sign else 1, 0, 0)
        return (0, x.signed, x.exponent)

    left, right = place(a), place(b)
    if left[0] or right[0]:
        return (left[0] > right[0]) - (left[0] < right[0])
    exponent = min(left[2], right[2])
    one, other = left[1] << (left[2] - exponent), right[1] << (right[2] - exponent)
    return (one > other) - (one < other)
