"""One call of a PyTorch operator: its arguments by name, where it stands in the program, and how its result is handed back."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch

from mmabits.emulator.hooks.session import Session
from mmabits.emulator.hooks.torch.sizes import multiply_adds
from mmabits.emulator.interop import torch_to_numpy
from mmabits.isa import OperandError, OperandTypeError

if TYPE_CHECKING:
    from mmabits.emulator.hooks.torch.mode import EmulateMode

Array = npt.NDArray[Any]

_EMULATOR = str(Path(__file__).parent.parent.parent) + os.sep
_TORCH = str(Path(torch.__file__).parent) + os.sep
_is_internal: dict[str, bool] = {}


def to_numpy(tensor: torch.Tensor) -> Array:
    """A tensor's bits as a NumPy array, on the CPU; shared memory where possible.

    Raises:
        OperandTypeError: a type without a NumPy counterpart, or a tensor that is no plain array.
    """
    return torch_to_numpy(tensor, "an operand")


def caller(operation: str) -> str:
    """`mm at model.py:12`: the innermost frame that is neither torch's nor the emulator's."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        internal = _is_internal.get(name)
        if internal is None:
            internal = _is_internal[name] = name.startswith((_TORCH, _EMULATOR, "<frozen"))
        if not internal:
            return f"{operation} at {os.path.basename(name)}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return operation


_CALLED: Final = torch.nn.Module._call_impl.__code__
_ENGINE: Final = torch.autograd.graph._engine_run_backward.__code__
_APPLY: Final = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined,unused-ignore]
_PATHS: Final[dict[int, tuple[weakref.ref[Any], dict[int, str]]]] = {}
"""Of models that were called, by their `id`, since they need not be hashable: the paths of the modules in them, by their `id`."""
MODULE: Final = "mmabits.module"
"""Under this name a node of autograd keeps the path of the module that made it."""


def module_path(*, in_backward: bool = False) -> str:
    """Which module of the outermost one that is running calls now: `layers.3.self_attn.q_proj`; its class where it is that itself.

    Empty where no module runs, as in backward passes and compiled code.

    Args:
        in_backward: modules only that a backward pass calls, as where a checkpoint computes anew.
    """
    frame, running = sys._getframe(1).f_back, []
    while frame is not None:
        if frame.f_code is _CALLED:
            running.append(frame.f_locals["self"])
        elif in_backward and frame.f_code is _ENGINE:
            break
        frame = frame.f_back
    if not running:
        return ""
    outermost, innermost = running[-1], running[0]
    known = _PATHS.get(id(outermost))
    paths = known[1] if known is not None and known[0]() is outermost else None
    if paths is None or id(innermost) not in paths:
        unlisted = (*(paths or ()), id(innermost))
        paths = _paths(outermost)
        for each in unlisted:  # in no list of modules: not looked for at every call
            paths.setdefault(each, "")
    path = paths[id(innermost)]
    if in_backward:  # what a checkpoint calls is a part of a model
        whole = next((others[id(outermost)] for _, others in list(_PATHS.values()) if others.get(id(outermost))), "")
        path = ".".join(filter(None, (whole, path)))
    return path or type(innermost).__name__


def running_function() -> Any:
    """The node of the `torch.autograd.Function` whose forward pass runs, or its class, where the node comes later; None where none runs."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_back.f_code is _APPLY:
            node = frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_argcount else None
            return node if isinstance(node, torch.autograd.function.BackwardCFunction) else frame.f_back.f_locals.get("cls")
        frame = frame.f_back
    return None


def _paths(model: Any) -> dict[int, str]:
    """The paths of a model's modules, kept as long as the model."""
    paths, key = {id(module): path for path, module in _named_modules(model)}, id(model)
    _PATHS[key] = weakref.ref(model, lambda gone: _forget(key, gone)), paths
    return paths


def _forget(key: int, gone: Any) -> None:
    if key in _PATHS and _PATHS[key][0] is gone:
        del _PATHS[key]


def _named_modules(module: Any, path: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """As `torch.nn.Module.named_modules`, for modules that are not hashable too."""
    seen = set() if seen is None else seen
    if id(module) in seen:
        return
    seen.add(id(module))
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _named_modules(child, f"{path}.{name}" if path else name, seen)


@dataclass(frozen=True, kw_only=True, eq=False)
class Signature:
    """What an operator's schema says."""

    name: str
    """`mm`, without namespace and overload."""
    arguments: tuple[str, ...]
    defaults: Mapping[str, Any]
    written: str | None
    """The argument that an in-place or `out=` form writes its result to."""

    @classmethod
    def of(cls, func: torch._ops.OpOverload) -> Signature:
        """The signature of one overload."""
        rows = func._schema.arguments
        written = [row.name for row in rows if row.alias_info is not None and row.alias_info.is_write]
        return cls(
            name=func._schema.name.split("::")[-1],
            arguments=tuple(row.name for row in rows),
            defaults={row.name: row.default_value for row in rows if row.has_default_value()},
            written=written[0] if written else None,
        )


class OperatorCall:
    """One call of an operator inside an `emulate` block."""

    def __init__(self, mode: EmulateMode, func: torch._ops.OpOverload, signature: Signature, args: Any, kwargs: Any) -> None:
        self.mode, self.func, self.signature, self.args, self.kwargs = mode, func, signature, args, kwargs
        self.session: Session = mode.session
        """The session whose tensor cores multiply."""
        self.values = {**signature.defaults, **dict(zip(signature.arguments, args, strict=False)), **kwargs}
        """The arguments by name, defaults filled in."""
        self._site = ""
        self._path: str | None = None
        self._node: Any = torch._C._current_autograd_node()
        """Whose gradients are computed."""

    @property
    def operation(self) -> str:
        """For the report: `mm`, `bmm of scaled_dot_product_attention`, `mm in backward`."""
        within = f" of {self.mode.within}" if self.mode.within else ""
        backward = " in backward" if self._node is not None else ""
        return f"{self.signature.name}{within}{backward}"

    @property
    def path(self) -> str:
        """Of the module that runs, or whose product's gradients are computed."""
        if self._path is None:
            node = self._node
            recomputed = "" if node is None else module_path(in_backward=True)
            self._path = recomputed or ("" if node is None else node.metadata.get(MODULE, "")) or module_path()
        return self._path

    @property
    def site(self) -> str:
        """The module that runs, the operation and the line that called it."""
        if not self._site:
            self._site = caller(f"{self.path}: {self.operation}" if self.path else self.operation)
        return self._site

    def stock(self) -> Any:
        """The operator as PyTorch computes it."""
        return self.func(*self.args, **self.kwargs)

    def skip(self, reason: str) -> Any:
        """Run the operator un-emulated and say so in the report."""
        result = self.stock()
        size = multiply_adds(self.func, self.values, self.args, self.kwargs, result)
        self.session.skip(self.site, self.signature.name, reason, multiply_adds=size)
        return result

    def give(self, result: torch.Tensor) -> torch.Tensor:
        """Hand the result back as this overload does: new, in place, or in `out`.

        Raises:
            OperandTypeError: `out` has another type.
        """
        place = self.signature.written
        if place is None:
            return result
        target: torch.Tensor = self.values[place]
        if target.dtype != result.dtype:
            raise OperandTypeError(f"{self.site}: {place} must be {result.dtype}, got {target.dtype}")
        if target.shape != result.shape:
            if target.numel() or place != "out":
                raise OperandError(f"{self.site}: {place} must have shape {tuple(result.shape)}, got {tuple(target.shape)}")
            target.resize_(result.shape)
        target.copy_(result)
        return target


def tensor_of(array: Array, like: torch.Tensor) -> torch.Tensor:
    """A NumPy array of f32, f16, f64 or integers as a tensor on the device of another."""
    result = torch.from_numpy(np.ascontiguousarray(array))
    return result if like.device.type == "cpu" else result.to(like.device)
