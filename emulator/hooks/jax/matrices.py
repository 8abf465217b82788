"""Operands of any layout as the engine's matrices, and its result as JAX's: ordinary JAX operations around the call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from jax import lax
from jax import numpy as jnp

from mmabits.emulator.hooks.jax.choices import Emulated
from mmabits.isa import FormatSpec

_CODES: dict[int, np.dtype[Any]] = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32)}
_SATURATES = (np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2))
_NAN_F32 = np.uint32(0x7FFFFFFF)


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
    if array.dtype == np.int8:
        return array.astype(np.int16)
    if array.dtype == ml_dtypes.float4_e2m1fn:
        return lax.bitcast_convert_type(array, jnp.uint4).astype(np.uint8)
    return lax.bitcast_convert_type(array, _CODES[array.dtype.itemsize])


def held_k(choice: Emulated, k: int) -> int:
    """Elements of K that the engine is given. It adds zeros up to whole instructions, but for chains of f64."""
    whole = choice.instruction.k
    return -(-k // whole) * whole if choice.instruction.d_type.name == "f64" else k


def with_held_k(array: Any, axis: int, choice: Emulated) -> Any:
    """An operand with zeros added along K up to `held_k`."""
    missing = held_k(choice, array.shape[axis]) - array.shape[axis]
    if not missing:
        return array
    widths = [(0, missing if each == axis else 0, 0) for each in range(array.ndim)]
    return lax.pad(array, np.zeros((), array.dtype), widths)


def result(d: Any, choice: Emulated, shape: Sequence[int], dtype: np.dtype[Any]) -> Any:
    """The engine's result in the shape and type that JAX expects: rounded once, to nearest even; fp8 saturates as cuBLASLt's does."""
    form: FormatSpec = choice.instruction.d_type
    if choice.promote_every:  # the NaN of the f32 addition
        d = lax.select(lax.ne(d, d), lax.full_like(d, _NAN_F32.view(np.float32)), d)
    if form.name == "f64":
        nan = np.uint64(choice.lowering.datapath.result_nan).view(np.float64)
        d = lax.select(lax.ne(d, d), lax.full_like(d, nan), d)
    if dtype in _SATURATES:
        largest = np.float32(ml_dtypes.finfo(dtype).max)
        d = lax.select(lax.ne(d, d), d, lax.clamp(-largest, d, largest))
    return d.astype(dtype).reshape(shape)
