"""The arguments of a launch, typed as Triton's compiler types them, and the loop over the grid."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import GridExecutor, TensorHandle
from triton.runtime.jit import KernelParam, mangle_type

from mmabits.emulator.hooks.triton.memory import GivenMemory
from mmabits.isa import MmabitsError, OperandError

_HELD: dict[str, Any] = {
    "u1": np.bool_, "i1": np.bool_, "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64, "u8": np.uint8, "u16": np.uint16,
    "u32": np.uint32, "u64": np.uint64, "fp32": np.float32, "fp64": np.float64, "fp16": np.float16,
}  # fmt: skip


def parameters(kernel: Any, function: Callable[..., Any]) -> dict[str, KernelParam]:
    """A kernel's parameters by name, as `triton.jit` has described them, or as it would."""
    found = getattr(kernel, "params", None)
    if found is None:  # decorated with TRITON_INTERPRET=1
        found = [KernelParam(index, each, False, False) for index, each in enumerate(inspect.signature(function).parameters.values())]
    return {each.name: each for each in found}


def _scalar(name: str, value: Any, kind: str) -> Any:
    """A tensor of no dimensions."""
    dtype = tl.str_to_ty(kind, None)
    with np.errstate(over="ignore"):
        if kind == "bf16":  # cut, as the launcher does
            data = (np.array([value], np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        elif kind in _HELD:
            held = np.dtype(_HELD[kind])
            if held.kind in "iu" and not np.iinfo(held).min <= value <= np.iinfo(held).max:
                raise OperandError(f"{name}: {value} is no {kind}")
            data = np.array([value]).astype(held)
        else:
            raise OperandError(f"{name}: a number cannot be passed as {kind}")
    return tl.tensor(TensorHandle(data, dtype), dtype)


def typed(name: str, value: Any, parameter: KernelParam | None) -> Any:
    """An argument as the compiler sees it: a float is an f32, an integer an i32, i64 or u64, and 1 is a literal.

    Args:
        name: of the parameter, for errors.
        value: what was passed.
        parameter: None for an element of a tuple.

    Raises:
        OperandError: a value that Triton takes for no argument, or that its type cannot hold.
    """
    if parameter is not None and parameter.is_constexpr:
        return value
    if isinstance(value, tuple):
        parts = [typed(f"{name}[{index}]", part, None) for index, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if hasattr(value, "data_ptr"):
        tensor = interpreter._implicit_cvt(value)
        tensor.handle.attr["argument"] = frozenset((name,))
        return tensor
    annotated = "" if parameter is None else parameter.annotation_type
    try:
        kind = mangle_type(value, parameter is None or not parameter.do_not_specialize)
    except TypeError as error:
        raise OperandError(f"{name}: {error}") from error
    if isinstance(value, (int, float)):
        if annotated and not annotated.startswith("*"):
            return _scalar(name, value, annotated)
        return value if kind == "constexpr" else _scalar(name, value, kind)
    if isinstance(value, tl.constexpr):
        return value.value
    found = interpreter._implicit_cvt(value)
    if isinstance(found, tl.core.tensor_descriptor_base):
        found.handle.base.attr["argument"] = frozenset((name,))
    return found


class Grid(GridExecutor):  # type: ignore[misc]
    """Runs the programs of a launch one after another.

    Args:
        function: the kernel, rewritten.
        known: its parameters.
        grid: its size.
        hooks: called with the arguments before.
        told: called with the memory of the arguments before.
    """

    def __init__(
        self, function: Any, known: dict[str, KernelParam], grid: tuple[int, ...], hooks: Sequence[Any], told: Callable[[GivenMemory], None]
    ) -> None:
        super().__init__(function, list(known), grid, list(hooks))
        self.known, self.told = known, told

    def __call__(self, *arguments: Any, **keywords: Any) -> None:
        """Launch."""
        held, held_keywords = self._init_args_hst(arguments, keywords)
        for hook in self.pre_run_hooks:
            hook(*held, **held_keywords)
        given = inspect.getcallargs(self.fn, *held, **held_keywords)
        self.told(GivenMemory.of_arguments(given))
        values = {name: typed(name, value, self.known[name]) for name, value in given.items()}
        builder = interpreter.interpreter_builder
        if len(self.grid) > 3:
            raise OperandError(f"a grid has at most three dimensions, got {self.grid}")
        sizes = (*self.grid, 1, 1, 1)[:3]
        builder.set_grid_dim(*sizes)
        try:
            for index in np.ndindex(*sizes):
                builder.set_grid_idx(*index)
                self.fn(**values)
        except MmabitsError:
            raise
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, MmabitsError):
                cause = cause.__cause__
            if cause is not None:
                raise cause from None
            raise InterpreterError(repr(error)) from error
        self._restore_args_dev(arguments, held, keywords, held_keywords)
