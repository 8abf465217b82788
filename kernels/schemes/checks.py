"""What the schemes check of their arguments, in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandError, OperandTypeError, nearest

Array = npt.NDArray[Any]
Row = TypeVar("Row")


def checked(array: Any, name: str, dtypes: tuple[Any, ...], ndim: int | None = None) -> Array:
    """A NumPy array of one of `dtypes`.

    Raises:
        OperandTypeError: no NumPy array, or another dtype.
        OperandError: another number of dimensions.
    """
    allowed = [np.dtype(dtype) for dtype in dtypes]
    if not isinstance(array, np.ndarray) or array.dtype not in allowed:
        arrived = f"dtype {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise OperandTypeError(f"{name} must be a NumPy array of {' or '.join(map(str, allowed))}, got {arrived}")
    if ndim is not None and array.ndim != ndim:
        raise OperandError(f"{name} must have {ndim} dimensions, got shape {array.shape}")
    return array


def row_named(rows: Mapping[str, Row], name: Any, what: str) -> Row:
    """A row of a table.

    Raises:
        OperandError: there is none of that name.
    """
    if not isinstance(name, str) or name not in rows:
        raise OperandError(f"unknown {what} {name!r}{nearest(str(name), rows)}; known: {', '.join(rows)}")
    return rows[name]


def check_shape(array: Array, name: str, shape: tuple[int, ...]) -> None:
    """Refuse another shape.

    Raises:
        OperandError: it has one.
    """
    if array.shape != shape:
        raise OperandError(f"{name} must have shape {shape}, got {array.shape}")


def check_multiple(size: int, block: int, what: str, of: str) -> None:
    """Refuse a size that is no multiple of a block.

    Raises:
        OperandError: it is none, or the block is not positive.
    """
    if block < 1 or size % block:
        raise OperandError(f"{what} must be a multiple of {of} {block}, got {size}")


def check_range(array: Array, name: str, first: int, last: int) -> None:
    """Refuse integers outside `first` to `last`, both included.

    Raises:
        OperandError: there are some.
    """
    if array.size and (array.min() < first or array.max() > last):
        wrong = (array < first) | (array > last)
        where = tuple(np.argwhere(wrong)[0].tolist())
        raise OperandError(f"{name} are {first} to {last}, got {array[where]} at index {where}")


def check_whole(value: Any, name: str, least: int = 1) -> int:
    """A whole number as Python's own.

    Raises:
        OperandError: no whole number, or one below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise OperandError(f"{name} must be a whole number from {least} on, got {value!r}")
    return int(value)


def check_block(value: Any, name: str) -> int:
    """A power of two as Python's own number.

    Raises:
        OperandError: something else.
    """
    found = check_whole(value, name)
    if found & (found - 1):
        raise OperandError(f"{name} must be a power of two, got {found}")
    return found


def positive(value: Any, name: str) -> np.float32:
    """A number as the float32 that values are divided by: a scale, a largest magnitude.

    Raises:
        OperandError: no number, or one that is not positive and finite as float32: below 2^-150 it is zero there.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise OperandError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    with np.errstate(over="ignore", under="ignore"):
        known = np.float32(number)
    if not (np.isfinite(known) and known > 0):
        rounded = "" if float(known) == number else f" ({known} as float32)"
        raise OperandError(f"{name} must be positive and finite, got {number}{rounded}")
    return known


def check_positive(array: Array, name: str) -> None:
    """Refuse what nothing can be divided by: zeros, negative numbers, infinities and NaN.

    Raises:
        OperandError: there are some.
    """
    wrong = ~(np.isfinite(array) & (array > 0))
    if wrong.any():
        where = tuple(np.argwhere(wrong)[0].tolist())
        raise OperandError(f"{name} must be positive and finite, got {array[where]} at index {where}")


def check_lengths(lengths: Array, new: int) -> None:
    """Refuse sequences shorter than their new tokens, which are their last.

    Raises:
        OperandError: there are some.
    """
    if lengths.min(initial=new) < new:
        raise OperandError(f"sequences must be at least {new} tokens long, as many as are new, got {lengths.min()}")


def check_finite(array: Array, name: str) -> None:
    """Refuse infinities and NaN.

    Raises:
        OperandError: there are some.
    """
    if not np.isfinite(array).all():
        first = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
        raise OperandError(f"{name} must be finite, got {array[first]} at index {first}")
