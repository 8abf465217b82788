"""Fused multiply-add on NumPy arrays: x y + z with one rounding, as the instruction `fma.rn`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mmabits.emulator.engine.plan import F32_NAN

Array = npt.NDArray[Any]


def fma(x: Array, y: Array, z: Array) -> npt.NDArray[np.float32]:
    """A product and a sum, x y + z, rounded once to the nearest float32, ties to even; NaN is the GPU's.

    Args:
        x: float32, or narrower floats; the three broadcast.
        y: likewise.
        z: likewise.

    Returns:
        float32.
    """
    with np.errstate(all="ignore"):
        product = np.asarray(np.float64(1) * x) * y  # exact: 48 bits of 53
        return canonical(np.array(sum_rounded_to_odd(product, np.asarray(z).astype(np.float64)), dtype=np.float32))


def canonical(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Float32 results of ordinary operations, in place, with the NaN that a GPU's have: the CPU's keeps an operand's bits."""
    values.view(np.uint32)[np.isnan(values)] = F32_NAN
    return values


def sum_rounded_to_odd(x: Array, y: Array) -> Array:
    """The sum in float64; where it is not exact, the neighbour with an odd last place.

    A later rounding to a type of at most 51 bits of significand then gives what rounding the exact sum would.

    Args:
        x: float64.
        y: float64, of a shape that broadcasts.
    """
    total = np.asarray(x + y)
    back = total - x
    error = (x - (total - back)) + (y - back)
    bits = total.view(np.int64)
    inexact = np.isfinite(total) & (error != 0) & (bits & 1 == 0)
    # Toward the error: away from zero if it has the sign of the total, else toward zero.
    step = np.where((error > 0) == (total > 0), 1, -1)
    return np.asarray(np.where(inexact, bits + step, bits)).view(np.float64)
