"""How numbers are written in explanations."""

from __future__ import annotations

import sys
from decimal import MAX_EMAX, MIN_EMIN, Decimal, localcontext
from fractions import Fraction

from mmabits.research.trace import DecodedNumber, Term


def exact(value: Fraction | None) -> str:
    """A value in decimal: all its digits where they are at most seventeen, else nine and dots."""
    if value is None:
        return "not finite"
    for digits in (9, 17):
        text = decimal(value, digits)
        if Fraction(text) == value:
            return text
    return f"{decimal(value)}..."


def decimal(value: Fraction, digits: int = 9) -> str:
    """A value rounded to so many digits, also where float64 does not reach."""
    try:
        near = float(value)
    except OverflowError:
        near = 0.0
    if (near == 0) == (value == 0) and abs(near) != float("inf") and (near == 0 or abs(near) >= sys.float_info.min):
        return f"{near:.{digits}g}"
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = 40, MAX_EMAX, MIN_EMIN
        return f"{Decimal(value.numerator) / Decimal(value.denominator):.{digits}g}"


def code(number: DecodedNumber) -> str:
    """A code in hexadecimal, in the width of its container."""
    return f"{number.code:#0{2 + max(1, number.form.container_bits // 4)}x}"


def binary(significand: int, lsb: int) -> str:
    """A significand as a sum of powers: `1.011 x 2^-3`."""
    magnitude = abs(significand)
    if magnitude == 0:
        return "0"
    digits = f"{magnitude:b}".rstrip("0") or "0"
    exponent = magnitude.bit_length() - 1 + lsb
    point = f"{digits[0]}.{digits[1:]}" if len(digits) > 1 else digits
    return f"{'-' if significand < 0 else ''}{point} x 2^{exponent}"


def place(k: tuple[int, ...]) -> str:
    """Where along K."""
    if not k:
        return ""
    return f"k = {k[0]}" if len(k) == 1 else f"k = {k[0]}..{k[-1]}"


def label(term: Term) -> str:
    """What a term is, in a few characters."""
    if term.kind == "accumulator":
        return "accumulator"
    if term.kind == "group":
        return place(term.k)
    ((a, b),) = term.factors
    return f"{a} x {b}"
