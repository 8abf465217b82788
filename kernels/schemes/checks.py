"""What the schemes check of their arguments, in one place."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandError, OperandTypeError

Array = npt.NDArray[Any]


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


def check_finite(array: Array, name: str) -> None:
    """Refuse infinities and NaN.

    Raises:
        OperandError: there are some.
    """
    if not np.isfinite(array).all():
        first = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
        raise OperandError(f"{name} must be finite, got {array[first]} at index {first}")
