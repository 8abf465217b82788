"""Functions of libdevice, which the interpreter lacks: those that a GPU computes exactly, and NumPy's in the place of polynomials."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from triton.language import core as tl
from triton.language.extra import libdevice as generic
from triton.language.extra.cuda import libdevice as cuda
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from mmabits.emulator.engine.fma import fma
from mmabits.emulator.hooks.triton.patches import Patches

if TYPE_CHECKING:
    from mmabits.emulator.hooks.triton.builder import Operations

Array = npt.NDArray[Any]


def _away(x: Array) -> Array:
    wide = x.astype(np.float64)
    return np.copysign(np.floor(np.abs(wide) + 0.5), wide).astype(x.dtype)


_EXACT: Final[dict[str, Callable[..., Array]]] = {
    "fadd_rn": np.add, "fsub_rn": np.subtract, "fmul_rn": np.multiply, "fdiv_rn": np.divide, "fsqrt_rn": np.sqrt,
    "frcp_rn": np.reciprocal, "fmaf_rn": fma, "dadd_rn": np.add, "dsub_rn": np.subtract, "dmul_rn": np.multiply, "ddiv_rn": np.divide,
    "dsqrt_rn": np.sqrt, "drcp_rn": np.reciprocal, "fabs": np.abs, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc, "rint": np.rint,
    "nearbyint": np.rint, "round": _away, "copysign": np.copysign, "isnan": np.isnan, "isinf": np.isinf, "finite": np.isfinite,
    "isfinite": np.isfinite, "signbit": np.signbit,
}  # fmt: skip
"""What one instruction does, or several without rounding. In f32 subnormal numbers count as zeros, before and after."""

_POLYNOMIALS: Final[dict[str, Callable[..., Array]]] = {
    **{name: getattr(np, name) for name in ("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "sinh", "cosh",
                                            "tanh", "hypot", "cbrt", "sqrt")},
    **{name: getattr(np, name.replace("a", "arc", 1)) for name in ("asin", "acos", "atan", "atan2", "asinh", "acosh", "atanh")},
    "pow": np.power, "exp10": lambda x: np.power(x.dtype.type(10), x), "rsqrt": lambda x: 1 / np.sqrt(x),
    "erf": lambda x: interpreter.np_erf_fp32(x) if x.dtype == np.float32 else interpreter.np_erf_fp64(x),
    "fdivide": np.divide,
}  # fmt: skip


def _base(symbol: str) -> str:
    """`tanh` of `__nv_tanhf`, `isnan` of `__nv_isnand`."""
    name = symbol.removeprefix("__nv_").removeprefix("fast_")
    for short in (name, name[:-1]):
        if short in _EXACT or short in _POLYNOMIALS:
            return short
    return "fdivide" if name == "fdividef" else name


def flushed(data: Array) -> Array:
    """f32 with zeros of their sign for subnormal numbers; other types as they are."""
    if data.dtype != np.float32:
        return data
    return np.where(np.abs(data) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), data), data)


def call(operations: Operations, symbol: str, handles: list[Any], to: Any) -> TensorHandle:
    """`create_extern_elementwise`.

    Raises:
        EmulationError: a function that is not known here.
    """
    name = _base(symbol)
    if name in _EXACT:
        result = flushed(np.asarray(_EXACT[name](*(flushed(handle.data) for handle in handles))))
    elif name in _POLYNOMIALS:
        operations.account.tell(f"libdevice.{name}", "a GPU computes an approximation of libdevice; here it is NumPy's")
        result = _POLYNOMIALS[name](*(handle.data for handle in handles))
    else:
        operations.session.refuse(operations.place(), f"libdevice function {symbol}", "it is not known here")
    operations.account.roundings += 1
    return TensorHandle(np.asarray(result).astype(interpreter._get_np_dtype(to)), to.scalar)


def install(patches: Patches, operations: Operations) -> None:
    """Have kernels call libdevice, by the name for all GPUs and by that for CUDA."""

    def extern(self: Any, library: str, path: str, symbol: str, handles: list[Any], to: Any, pure: bool) -> TensorHandle:
        return call(operations, symbol, handles, to)

    patches.set(InterpreterBuilder, "create_extern_elementwise", extern)
    for name, function in vars(cuda).items():
        if tl.is_builtin(function) and function.__module__ == cuda.__name__:
            bound = _bound(function)
            patches.set(cuda, name, bound)
            if hasattr(generic, name):
                patches.set(generic, name, bound)


@functools.cache
def _bound(function: Callable[..., Any]) -> Callable[..., Any]:
    """Called in a kernel that is interpreted, it gets the interpreter; Triton's compiler passes its own."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, _semantic: Any = None, **keywords: Any) -> Any:
        return function(*arguments, _semantic=_semantic or interpreter.interpreter_semantic, **keywords)

    return wrapper
