"""Arrays of other libraries to NumPy arrays of the same bits, and back. Nothing is imported that the caller has not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandTypeError

Array = npt.NDArray[Any]
_TORCH_VIEWS = {
    "bfloat16": ("int16", ml_dtypes.bfloat16),
    "float8_e4m3fn": ("uint8", ml_dtypes.float8_e4m3fn),
    "float8_e5m2": ("uint8", ml_dtypes.float8_e5m2),
    "float8_e8m0fnu": ("uint8", ml_dtypes.float8_e8m0fnu),
}
"""torch types that NumPy lacks: the torch integer type of their bits, and the ml_dtypes type."""


def to_numpy(operand: Any, name: str) -> tuple[Array, Callable[[Array], Any]]:
    """(NumPy array, how to turn a result into the operand's kind of array).

    Args:
        operand: NumPy array, torch tensor or JAX array.
        name: what error messages call it.

    Raises:
        OperandTypeError: anything else, a JAX array that is being traced, or a torch type without a NumPy counterpart.
    """
    if type(operand) is np.ndarray:
        return operand, _same
    if isinstance(operand, np.ndarray) and not isinstance(operand, np.ma.MaskedArray):
        return np.asarray(operand), _same
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and isinstance(operand, torch.Tensor):
        return _torch_to_numpy(operand, name), _torch_like(operand)
    if jax is not None and isinstance(operand, jax.Array):
        if isinstance(operand, jax.core.Tracer):
            raise OperandTypeError(f"{name} is traced by JAX, which has no numbers yet: use mmabits.emulate, or jax.pure_callback")
        return np.asarray(operand), lambda result: jax.numpy.asarray(result)
    raise OperandTypeError(f"{name} must be a NumPy, torch or JAX array, got {type(operand).__module__}.{type(operand).__qualname__}")


def _same(result: Array) -> Array:
    return result


def _torch_to_numpy(tensor: Any, name: str) -> Array:
    torch = sys.modules["torch"]
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind == "float4_e2m1fn_x2":
        raise OperandTypeError(
            f"{name} is packed FP4 (torch.float4_e2m1fn_x2): pass mmabits.layouts.unpack_fp4({name}.view(torch.uint8).numpy())"
        )
    tensor = tensor.detach().cpu()
    if kind in _TORCH_VIEWS:
        bits, dtype = _TORCH_VIEWS[kind]
        view: Array = tensor.contiguous().view(getattr(torch, bits)).numpy()
        return view.view(dtype)
    try:
        array: Array = tensor.numpy()
    except TypeError:
        raise OperandTypeError(f"{name} has torch type {kind}, which has no NumPy counterpart") from None
    return array


def _torch_like(tensor: Any) -> Callable[[Array], Any]:
    torch = sys.modules["torch"]
    device = tensor.device
    return lambda result: torch.from_numpy(result).to(device)
