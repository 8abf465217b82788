"""What a launch is given, as the bytes of a kernel's parameters, and the memory that the kernel may touch."""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from mmabits.emulator.interop import to_numpy, without_numbers
from mmabits.isa.errors import OperandError, OperandTypeError
from mmabits.isa.opcodes import width

_POINTER: Final = 8
_FLOATS: Final = {"f16": "<e", "f32": "<f", "f64": "<d"}


class KernelParameter(NamedTuple):
    """A parameter, as far as PTX knows it."""

    name: str
    kind: str
    """`u64` (pointers are such), `f32`, `b8[16]` of a structure."""
    size: int
    """Bytes."""
    align: int

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, eq=False)
class PassedArray:
    """An array: where it lies."""

    address: int
    """Of its first element."""
    first: int
    """Of its first byte,"""
    last: int
    """and of the one behind its last."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Bytes."""
    itemsize: int
    dtype: str
    kept: Any
    """What owns the memory."""
    unchanged: Callable[[], bool] | None = None
    """Of an array that must not change: whether the kernel left it as it was."""
    what: str = ""

    @property
    def own(self) -> Any:
        """The caller's array."""
        return self.kept[1] if isinstance(self.kept, tuple) else self.kept


def given(value: Any, name: str) -> PassedArray:
    """Where an array lies. Of one that must not change a copy does.

    Raises:
        OperandTypeError: no array; OperandError: one that is not in this machine's memory.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _tensor(value, name)
    array, _ = to_numpy(value, name)
    if array.dtype.hasobject:
        raise OperandTypeError(f"{name} must be an array of numbers, got dtype {array.dtype}")
    what = "a JAX array" if not isinstance(value, np.ndarray) else "a read-only array" if not array.flags.writeable else ""
    if not what:
        first, last = _bounds(array)
        return PassedArray(array.ctypes.data, first, last, array.shape, array.strides, array.itemsize, array.dtype.name, array)
    first, last = _bounds(array)
    held = np.empty(last - first + _ALIGNED, np.uint8)
    start = -(held.ctypes.data - first) % _ALIGNED
    held = held[start : start + last - first]
    held[:] = np.frombuffer(ctypes.string_at(first, last - first), np.uint8)

    def unchanged() -> bool:
        return held.tobytes() == ctypes.string_at(first, last - first)

    address = held.ctypes.data
    where = address + array.ctypes.data - first
    kept = (held, array)
    return PassedArray(
        where, address, address + held.size, array.shape, array.strides, array.itemsize, array.dtype.name, kept, unchanged, what
    )


_ALIGNED: Final = 256
"""What CUDA's memory is aligned to."""


def _bounds(array: Any) -> tuple[int, int]:
    """Its first byte, and the one behind its last."""
    address = array.ctypes.data
    return np.lib.array_utils.byte_bounds(array) if array.size else (address, address)


def _tensor(value: Any, name: str) -> PassedArray:
    reason = without_numbers(value)
    if reason:
        raise OperandTypeError(f"{name} must be a plain array, got {reason}")
    try:
        storage = value.untyped_storage()
        device, address = str(storage.device), int(value.data_ptr())
    except (RuntimeError, NotImplementedError) as error:  # tensors of torch.func's transformations
        raise OperandTypeError(f"{name} must be a plain array: {error!s:.100}") from None
    if device != "cpu":
        raise OperandError(f"{name} is a tensor on {device}; kernels run on the CPU's memory here")
    if value.is_conj() or value.is_neg():
        raise OperandTypeError(f"{name} is a view that conjugates or negates; pass what .resolve_conj().resolve_neg() makes of it")
    size = value.element_size()
    strides = tuple(size * each for each in value.stride())
    last = address + size + sum((count - 1) * step for count, step in zip(value.shape, strides, strict=True)) if value.numel() else address
    return PassedArray(address, address, last, tuple(value.shape), strides, size, str(value.dtype).removeprefix("torch."), value)


def is_array(value: Any) -> bool:
    """Whether a value is an array of one of the libraries, which is passed by its address."""
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor)):
        return True
    return jax is not None and isinstance(value, jax.Array)


def scalar_bytes(value: Any, parameter: KernelParameter, name: str) -> bytes:
    """The bytes of a number or structure.

    Raises:
        OperandTypeError, OperandError: what the parameter cannot hold.
    """
    size, kind = parameter.size, parameter.kind
    if value is None:
        if size != _POINTER or kind in _FLOATS:
            raise OperandTypeError(f"{name} got None, which is a null pointer, of 8 bytes")
        return bytes(size)
    if isinstance(value, np.void) or (not isinstance(value, np.generic) and not isinstance(value, int | float) and _is_buffer(value)):
        data = bytes(value) if not isinstance(value, np.void) else value.tobytes()
        if len(data) != size:
            raise OperandError(f"{name} has {size} bytes, got {len(data)}")
        return data
    if not isinstance(value, bool | int | float | np.generic):
        raise OperandTypeError(f"{name} must be an array, a number, bytes or a numpy.void, got {type(value).__name__}")
    is_whole = isinstance(value, bool | int | np.integer | np.bool_)
    if kind in _FLOATS:
        if isinstance(value, np.complexfloating):
            raise OperandTypeError(f"{name} is a real number, got {type(value).__name__}")
        try:
            number = float(value)
        except OverflowError:  # a Python integer beyond all of float64
            raise OperandError(f"{name} must fit in {kind}, got an integer of {int(value).bit_length():,} bits") from None
        try:
            return struct.pack(_FLOATS[kind], number)
        except OverflowError:  # too large for the type: infinity, as a conversion rounds
            return struct.pack(_FLOATS[kind], float("inf") if number > 0 else float("-inf"))
    if isinstance(value, np.generic) and (not is_whole or "[" in kind):
        if value.itemsize != size or (kind[0] in "us" and size != value.itemsize):
            raise OperandTypeError(f"{name} is one of {size} bytes, got {type(value).__name__}, of {value.itemsize}")
        if kind[0] in "us" and size > 2:
            raise OperandTypeError(f"{name} is an integer, got {type(value).__name__}")
        return value.tobytes()
    if not is_whole or "[" in kind:
        hint = "give numpy.float16(x) or ml_dtypes.bfloat16(x), or bytes" if size == 2 else "give bytes, or a numpy.void"
        what = f"got the {type(value).__name__} {value!r:.40}"
        raise OperandTypeError(f"{name} {what}: {hint}" if "[" in kind else f"{name} is an integer, {what}")
    number = int(value)
    bits = 8 * size
    if not -(1 << bits - 1) <= number < 1 << bits:
        raise OperandError(f"{name} must fit in {bits} bits, got {number}")
    return (number & (1 << bits) - 1).to_bytes(size, "little")


def _is_buffer(value: Any) -> bool:
    try:
        memoryview(value)
    except TypeError:
        return False
    return True


def described(variable: Any) -> KernelParameter:
    """A parameter of the PTX."""
    unit = max(1, width(variable.kind) // 8)
    kind = variable.kind if unit == variable.size else f"{variable.kind}[{variable.size // unit}]"
    return KernelParameter(variable.name, kind, variable.size, variable.align)
