"""Single codes, inside compiled code."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import jit


@jit
def code_class(code: Any, form: Any) -> Any:
    """0 for a zero, 1 or -1 for a finite number by its sign, else the infinity or NaN.

    Products and sums of classes come to the infinities and NaN that those of the numbers come to.
    """
    field = (code >> form.low_bits) & ((1 << (form.sign_shift - form.low_bits)) - 1)
    value = 0.0 if field == 0 else 1.0
    if field >= form.lowest_nonfinite:
        value = np.inf if field == form.infinity else np.nan
    return -value if (code >> form.sign_shift) & 1 == 1 else value
