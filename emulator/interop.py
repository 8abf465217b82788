"""Arrays of other libraries to NumPy arrays of the same bits, and back. Nothing is imported that the caller has not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.isa.errors import OperandTypeError

Array = npt.NDArray[Any]
_TORCH_VIEWS: Final = {
    "bfloat16": ("int16", ml_dtypes.bfloat16),
    "float8_e4m3fn": ("uint8", ml_dtypes.float8_e4m3fn),
    "float8_e5m2": ("uint8", ml_dtypes.float8_e5m2),
    "float8_e8m0fnu": ("uint8", ml_dtypes.float8_e8m0fnu),
}
"""torch types that NumPy lacks: the torch integer type of their bits, and the ml_dtypes type."""
_PACKED: Final = "float4_e2m1fn_x2"
"""The torch type that holds two elements to a byte."""


def to_numpy(operand: Any, name: str, *, packed_along: int = -1) -> tuple[Array, Callable[[Array], Any]]:
    """(NumPy array, how to turn a result into the operand's kind of array).

    Args:
        operand: NumPy array, torch tensor or JAX array. A torch tensor may lie on a GPU, require gradients, be conjugated or negated
            by view; packed FP4 (`float4_e2m1fn_x2`) becomes float4_e2m1fn, twice as long.
        name: what error messages call it.
        packed_along: the axis along which packed FP4 shares bytes.

    Raises:
        OperandTypeError: anything else, arrays that hold no numbers or not these alone (traced, meta, fake, sparse, nested, quantized,
            masked), or a torch type without a NumPy counterpart.
    """
    if type(operand) is np.ndarray:
        return operand, _same
    if isinstance(operand, np.ma.MaskedArray):
        raise OperandTypeError(
            f"{name} must be a plain array, got numpy.ma.MaskedArray, whose mask would be lost; pass what filled(value) makes of it"
        )
    if isinstance(operand, np.ndarray):
        return np.asarray(operand), _same
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and isinstance(operand, torch.Tensor):
        return torch_to_numpy(operand, name, packed_along=packed_along), _torch_like(operand)
    if jax is not None and isinstance(operand, jax.Array):
        return _jax_to_numpy(operand, name), _jax_like
    raise OperandTypeError(f"{name} must be a NumPy, torch or JAX array, got {type(operand).__module__}.{type(operand).__qualname__}")


def as_array(operand: Any, name: str) -> Array:
    """A NumPy array of whatever `to_numpy` takes, and of numbers and sequences of numbers.

    Raises:
        OperandTypeError: as `to_numpy`, or what NumPy makes no array of.
    """
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    is_array = isinstance(operand, np.ndarray) or (torch is not None and isinstance(operand, torch.Tensor))
    if is_array or (jax is not None and isinstance(operand, jax.Array)):
        return to_numpy(operand, name)[0]
    try:
        return np.asarray(operand)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OperandTypeError(f"{name} must be an array of numbers: {_line(error)}") from None


def as_doubles(operand: Any, name: str) -> npt.NDArray[np.float64]:
    """The float64 of an array of real numbers of any type: rounded only where it is of more than 64 bits.

    Raises:
        OperandTypeError: as `to_numpy`, or numbers that are not real.
    """
    given = to_numpy(operand, name)[0]
    if given.dtype.kind not in "biuf" and given.dtype.type.__module__ != ml_dtypes.bfloat16.__module__:
        raise OperandTypeError(f"{name} must be of real numbers, got dtype {given.dtype}")
    return given.astype(np.float64)


def as_bytes(operand: Any, name: str) -> Array:
    """As `as_array`, but packed FP4 as the bytes that it lies in, uint8."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(operand, torch.Tensor) and operand.dtype == getattr(torch, _PACKED, None):
        return torch_to_numpy(operand.view(torch.uint8), name)
    return as_array(operand, name)


def nibbles(packed: Array, axis: int) -> Array:
    """The 4-bit codes of bytes that hold two each, the lower nibble first: twice as long along an axis, counted from 0."""
    pairs = np.stack([packed & np.uint8(0xF), packed >> np.uint8(4)], axis=axis + 1)
    return pairs.reshape(*packed.shape[:axis], 2 * packed.shape[axis], *packed.shape[axis + 1 :])


def _same(result: Array) -> Array:
    return result


def _line(error: Exception) -> str:
    """An error of another library in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# torch ---------------------------------------------------------------------------------------------------------------


def torch_to_numpy(tensor: Any, name: str, *, packed_along: int = -1) -> Array:
    """A tensor's bits, sharing its memory where possible.

    Raises:
        OperandTypeError: as `to_numpy`.
    """
    torch = sys.modules["torch"]
    reason = without_numbers(tensor)
    if reason:
        raise OperandTypeError(f"{name} must be a plain array, got {reason}")
    held = _plain(tensor)
    if held is not None:
        return held
    kind = str(tensor.dtype).removeprefix("torch.")
    bits, dtype = _TORCH_VIEWS.get(kind, ("uint8" if kind == _PACKED else "", None))
    try:
        tensor = tensor.detach().cpu()
        held = _in_place(tensor.view(getattr(torch, bits)) if bits else tensor.resolve_conj().resolve_neg())
    except TypeError:
        raise OperandTypeError(f"{name}: torch type {kind} has no NumPy counterpart") from None
    except (RuntimeError, ValueError) as error:  # tensors of other libraries, and those inside torch.func's transformations
        raise OperandTypeError(
            f"{name} must be a plain array, got a {type(tensor).__name__} that torch makes none of: {_line(error)}"
        ) from None
    if kind == _PACKED:
        if not -held.ndim <= packed_along < held.ndim:
            raise OperandTypeError(f"{name} must have a dimension to be packed FP4 (torch.{_PACKED}), got none")
        return nibbles(held, packed_along % held.ndim).view(ml_dtypes.float4_e2m1fn)
    return held if dtype is None else held.view(dtype)


class _InPlace:
    """A tensor's memory, by NumPy's protocol. `Tensor.numpy` would make its storage one that can never be resized again."""

    __slots__ = ("__array_interface__", "tensor")

    def __init__(self, tensor: Any, typestr: str, size: int) -> None:
        strides = None if tensor.is_contiguous() else tuple([size * stride for stride in tensor.stride()])
        self.tensor = tensor
        self.__array_interface__ = {
            "version": 3, "typestr": typestr, "shape": tuple(tensor.shape), "data": (tensor.data_ptr(), False), "strides": strides,
        }  # fmt: skip


class _PlainType(NamedTuple):
    """How NumPy has the elements of a torch type."""

    typestr: str
    size: int
    dtype: np.dtype[Any] | None
    """The type that they are read as, where NumPy's protocol has no word for it."""


@lru_cache(maxsize=1)
def _plain_types(torch: Any) -> tuple[frozenset[type], dict[Any, _PlainType]]:
    """The classes of tensors that are nothing but an array, and the real types that they may be of."""
    types = {}
    for name in ("float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64"):
        dtype = np.dtype(name)
        types[getattr(torch, name)] = _PlainType(dtype.str, dtype.itemsize, None)
    for name, (bits, form) in _TORCH_VIEWS.items():
        if hasattr(torch, name):
            dtype = np.dtype(bits)
            types[getattr(torch, name)] = _PlainType(dtype.str, dtype.itemsize, np.dtype(form))
    return frozenset((torch.Tensor, torch.nn.Parameter)), types


def _is_plain(tensor: Any) -> bool:
    """Whether a tensor is nothing but an array in this machine's memory, of a type that NumPy or ml_dtypes has."""
    torch = sys.modules["torch"]
    classes, types = _plain_types(torch)
    return (
        type(tensor) in classes and tensor.dtype in types and tensor.is_cpu and tensor.layout is torch.strided
        and not tensor.is_nested and not tensor.is_neg()
    )  # fmt: skip


def _plain(tensor: Any) -> Array | None:
    """The array that a tensor is, by the shortest way; None where that is not for it."""
    if not _is_plain(tensor) or tensor.numel() == 0:
        return None
    typestr, size, dtype = _plain_types(sys.modules["torch"])[1][tensor.dtype]
    try:
        held = np.asarray(_InPlace(tensor, typestr, size))
    except RuntimeError:  # without memory of its own
        return None
    return held if dtype is None else held.view(dtype)


def _in_place(tensor: Any) -> Array:
    """A tensor of the CPU as an array on its memory.

    Raises:
        TypeError: a type that NumPy lacks.
        RuntimeError: a tensor without memory of its own.
    """
    dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
    if dtype.isbuiltin != 1:
        raise TypeError(dtype)
    if tensor.numel() == 0:
        return np.empty(tuple(tensor.shape), dtype)
    return np.asarray(_InPlace(tensor, dtype.str, dtype.itemsize))


def without_numbers(tensor: Any) -> str:
    """What a tensor is instead of a plain array, and what to do about it; empty where it is one."""
    if _is_plain(tensor):
        return ""
    torch = sys.modules["torch"]
    fakes = sys.modules.get("torch._subclasses.fake_tensor")
    if fakes is not None and isinstance(tensor, fakes.FakeTensor):
        return "a FakeTensor, a shape without numbers that torch.compile traces with"
    if tensor.is_meta:
        return "a tensor on the meta device, which has a shape and no numbers"
    if tensor.is_nested:
        return "a nested tensor; pass its parts one by one, or what to_padded_tensor makes of it"
    if tensor.layout != torch.strided:
        return f"a tensor of layout {tensor.layout}; pass what to_dense() makes of it"
    if tensor.is_quantized:
        return f"a quantized tensor ({tensor.dtype}); pass what int_repr() or dequantize() makes of it"
    return ""


def _torch_like(tensor: Any) -> Callable[[Array], Any]:
    torch = sys.modules["torch"]
    device = tensor.untyped_storage().device  # its own, also where tensors pose as those of a GPU

    def restore(result: Array) -> Any:
        if result.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(result.view(np.int16)).view(torch.bfloat16).to(device)
        return torch.from_numpy(result).to(device)

    return restore


# JAX -----------------------------------------------------------------------------------------------------------------


def _jax_to_numpy(array: Any, name: str) -> Array:
    jax = sys.modules["jax"]
    if isinstance(array, jax.core.Tracer):
        raise OperandTypeError(f"{name} is traced by JAX, which has no numbers yet: use mmabits.emulate, or jax.pure_callback")
    try:
        return np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as error:  # deleted, on other hosts' devices, or keys of random numbers
        raise OperandTypeError(f"{name} must be a plain array, got one that JAX makes no NumPy array of: {_line(error)}") from None


def _jax_like(result: Array) -> Any:
    jax = sys.modules["jax"]
    if result.dtype.itemsize == 8 and not jax.config.jax_enable_x64:  # JAX would round it to 32 bits
        raise OperandTypeError(f"the result is {result.dtype}, which JAX holds with jax_enable_x64 only")
    return jax.numpy.asarray(result)
