"""Products without rounding errors, rounded once."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.emulator.codecs import encode, from_codes
from mmabits.isa import format_spec

Doubles = npt.NDArray[np.float64]

_UNIT: Final = 2.0**-53
_AT_ONCE: Final = 1 << 22
"""Elements of a result that are looked at together."""


def round_to_odd(exact: Fraction) -> float:
    """A float64 that rounds to any shorter format as the fraction does, which the nearest float64 may not."""
    value = float(exact)
    rest = exact - Fraction(value)
    if rest and math.frexp(value)[0] * 2**53 % 2 == 0:
        return math.nextafter(value, math.inf if rest > 0 else -math.inf)
    return value


def rounded_product(a: Doubles, b: Doubles, form: str) -> npt.NDArray[Any]:
    """A * B, each sum rounded once to a format, to nearest even.

    Most elements are decided by a float64 product and the bound of its error, the others by fractions.

    Args:
        a: (M, K), values whose products with those of `b` a float64 holds (26 significant bits each); integers below 2^31 for s32.
        b: (K, N).
        form: f32, f16, bf16, s32 and the like.
    """
    spec = format_spec(form)
    if spec.is_integer:
        return np.asarray((a.astype(np.int64) @ b.astype(np.int64)).astype(spec.numpy_name))
    with np.errstate(over="ignore", invalid="ignore"):
        sums = a @ b
        bound = (np.abs(a) @ np.abs(b)) * (_UNIT * (a.shape[1] + 2) * 1.01)
    result: npt.NDArray[Any] = from_codes(encode(sums, spec), spec)
    rows = max(1, _AT_ONCE // sums.shape[1])
    for start in range(0, len(sums), rows):
        part = slice(start, start + rows)
        with np.errstate(invalid="ignore", over="ignore"):
            low, high = encode(sums[part] - bound[part], spec), encode(sums[part] + bound[part], spec)
        for row, column in np.argwhere((low != high) & (bound[part] > 0) & np.isfinite(sums[part])):
            terms = (Fraction(x) * Fraction(y) for x, y in zip(a[start + row].tolist(), b[:, column].tolist(), strict=True))
            whole = round_to_odd(sum(terms, Fraction(0)))
            result[start + row, column] = from_codes(encode(np.array([whole]), spec), spec)[0]
    return result


__all__ = ["round_to_odd", "rounded_product"]
