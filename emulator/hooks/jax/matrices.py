"""Operands of any layout as the engine's matrices, and its result as JAX's: ordinary JAX operations around the call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np
from jax import lax
from jax import numpy as jnp

from mmabits.emulator.codecs import numpy_dtype
from mmabits.emulator.hooks.stored import SATURATING, STORED_NANS

_CODES: dict[int, np.dtype[Any]] = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32)}
_SATURATES: Final = tuple(map(numpy_dtype, SATURATING))
_NANS: Final = {numpy_dtype(name): code for name, code in STORED_NANS.items() if name != "f64"}


class Dimensions(NamedTuple):
    """A dot_general's dimensions: which are contracted, which are a batch."""

    contracted_a: tuple[int, ...]
    contracted_b: tuple[int, ...]
    batch_a: tuple[int, ...]
    batch_b: tuple[int, ...]

    @classmethod
    def of(cls, numbers: Any) -> Dimensions:
        """From JAX's `((contracted, contracted), (batch, batch))`."""
        (contracted_a, contracted_b), (batch_a, batch_b) = numbers
        return cls(tuple(contracted_a), tuple(contracted_b), tuple(batch_a), tuple(batch_b))

    def free_a(self, rank: int) -> tuple[int, ...]:
        """Dimensions of A that only the result has too."""
        return _others(rank, self.contracted_a + self.batch_a)

    def free_b(self, rank: int) -> tuple[int, ...]:
        """Dimensions of B that only the result has too."""
        return _others(rank, self.contracted_b + self.batch_b)

    def shape(self, a: Sequence[int], b: Sequence[int]) -> tuple[int, int, int, int]:
        """Batch, M, N, K."""
        return (
            _size(a, self.batch_a), _size(a, self.free_a(len(a))), _size(b, self.free_b(len(b))), _size(a, self.contracted_a),
        )  # fmt: skip


def _others(rank: int, taken: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(each for each in range(rank) if each not in taken)


def _size(shape: Sequence[int], dimensions: tuple[int, ...]) -> int:
    return math.prod(shape[each] for each in dimensions)


def left_matrix(a: Any, dimensions: Dimensions) -> Any:
    """A as (batch, M, K)."""
    free = dimensions.free_a(a.ndim)
    return lax.transpose(a, (*dimensions.batch_a, *free, *dimensions.contracted_a)).reshape(
        _size(a.shape, dimensions.batch_a), _size(a.shape, free), _size(a.shape, dimensions.contracted_a)
    )


def right_matrix(b: Any, dimensions: Dimensions) -> Any:
    """B as (batch, K, N)."""
    free = dimensions.free_b(b.ndim)
    return lax.transpose(b, (*dimensions.batch_b, *dimensions.contracted_b, *free)).reshape(
        _size(b.shape, dimensions.batch_b), _size(b.shape, dimensions.contracted_b), _size(b.shape, free)
    )


def codes(array: Any) -> Any:
    """Elements as the engine takes them (see native.NativeProduct.operand)."""
    if array.dtype == np.float64:
        return array
    if array.dtype == ml_dtypes.float4_e2m1fn:
        return lax.bitcast_convert_type(array, jnp.uint4).astype(np.uint8)
    return lax.bitcast_convert_type(array, _CODES[array.dtype.itemsize])


def result(d: Any, shape: Sequence[int], dtype: np.dtype[Any]) -> Any:
    """The engine's result in the shape and type that JAX expects: rounded once, to nearest even; fp8 saturates as cuBLASLt's does."""
    if d.dtype == dtype:
        return d.reshape(shape)
    is_nan, nan = lax.ne(d, d), _NANS.get(dtype)
    if dtype in _SATURATES:
        largest = np.asarray(ml_dtypes.finfo(dtype).max).astype(d.dtype)
        d = lax.select(is_nan, d, lax.clamp(-largest, d, largest))
    d = d.astype(dtype)
    if nan is not None:
        integers = _CODES[dtype.itemsize]
        stored = lax.bitcast_convert_type(d, integers)
        d = lax.bitcast_convert_type(lax.select(is_nan, lax.full_like(stored, integers.type(nan)), stored), dtype)
    return d.reshape(shape)
