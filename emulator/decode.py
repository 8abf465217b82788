"""Codes to magnitudes and exponents, inside compiled code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mmabits.emulator.jit import jit

NO_EXPONENT = -8192
"""Stands for the exponent of a zero: added to itself or to any exponent, it stays below every e_zero."""


@jit
def decode_value(code: Any, form: Any) -> Any:
    """One code as float64, infinities and NaN included. The slow way, for the few codes that are not finite and for scales."""
    field = (code >> form.low_bits) & ((1 << (form.fraction_bits + form.exponent_bits)) - 1)
    negative = (code >> form.sign_shift) & 1
    if field >= form.lowest_nonfinite:
        value = np.inf if field == form.infinity else np.nan
    else:
        exponent_field = field >> form.fraction_bits
        significand = field & ((1 << form.fraction_bits) - 1)
        if exponent_field == 0 and form.subnormals == 1:
            exponent_field = 1
        else:
            significand |= 1 << form.fraction_bits
        value = math.ldexp(float(significand), exponent_field - form.bias - form.fraction_bits)
    return -value if negative == 1 else value


@jit
def decode_exponent(code: Any, form: Any) -> Any:
    """Exponent of one finite code (subnormals keep the smallest normal's), NO_EXPONENT for zero."""
    field = (code >> form.low_bits) & ((1 << (form.fraction_bits + form.exponent_bits)) - 1)
    if form.subnormals == 1:
        if field == 0:
            return NO_EXPONENT
        return max(field >> form.fraction_bits, 1) - form.bias
    return (field >> form.fraction_bits) - form.bias


@jit
def decode_run(codes: Any, form: Any, power_bits: Any, powers: Any, magnitudes: Any, exponents: Any, signs: Any) -> bool:
    """Decode int64 codes into magnitudes, exponents (int16) and signs (0 or 1); whether all are finite.

    `power_bits` and `powers` are one scratch array seen as int64 and as float64. What is not finite becomes a zero here.
    """
    mask = (1 << (form.fraction_bits + form.exponent_bits)) - 1
    fraction_mask = (1 << form.fraction_bits) - 1
    unbias = 1023 - form.bias - form.fraction_bits
    not_finite = 0
    for i in range(codes.size):
        code = codes[i]
        field = (code >> form.low_bits) & mask
        not_finite |= np.int64(field >= form.lowest_nonfinite)
        field = field if field < form.lowest_nonfinite else 0
        exponent_field = field >> form.fraction_bits
        normal = np.int64(exponent_field != 0)
        exponent_field += 1 - normal
        signs[i] = (code >> form.sign_shift) & 1
        magnitudes[i] = np.int32((field & fraction_mask) | (normal << form.fraction_bits))
        power_bits[i] = (exponent_field + unbias) << 52
    for i in range(codes.size):
        magnitudes[i] *= powers[i]
    for i in range(codes.size):
        powers[i] = magnitudes[i]
        exponent = (power_bits[i] >> 52) - 1023
        exponents[i] = max(exponent, form.min_exponent) if exponent > -1023 else NO_EXPONENT
    return not_finite == 0
