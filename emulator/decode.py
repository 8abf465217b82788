"""Single codes to values, inside compiled code: the slow way, for scales and for the few codes that are not finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mmabits.emulator.jit import jit
from mmabits.emulator.steps import NO_EXPONENT


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
