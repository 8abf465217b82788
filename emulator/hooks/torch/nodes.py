"""The nodes that autograd makes of emulated products: which module they are of, and whether they are used after the block.

A backward pass that begins when the block has ended is PyTorch's own, which is said.
"""

from __future__ import annotations

import functools
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import torch
from torch._functorch import eager_transforms

from mmabits.emulator.hooks import scope
from mmabits.emulator.hooks.torch.calls import MODULE, caller, running_function

if TYPE_CHECKING:
    from mmabits.emulator.hooks.torch.mode import EmulateMode

REASON: Final = "the block had ended, in which the forward pass was emulated"
REMEDY: Final = "call backward inside of it"
_VJP: Final = "_vjp_with_argnums"
"""What makes the pullbacks of `torch.func.vjp`."""


class WatchedNodes:
    """Watches the nodes that autograd makes of emulated products.

    Autograd has not made the node when an operator returns. So results are remembered until the next operator, and looked at then.
    """

    def __init__(self, mode: EmulateMode) -> None:
        self.mode = mode
        self.has_told = False
        self._thread = threading.get_ident()
        self.fresh: list[tuple[str, str, weakref.ref[Any]]] = []
        """Names of operators, paths of modules, and results."""
        self._used: dict[tuple[str, str], Callable[[Any], None]] = {}
        """What autograd calls, by operator and module."""

    def is_inside(self) -> bool:
        """Whether a block emulates what the running code multiplies."""
        if scope.current("torch") is not None:
            return True
        return threading.get_ident() != self._thread and scope.innermost("torch") is not None  # a thread of autograd's

    def made(self, name: str, path: str, result: Any) -> None:
        """A product was computed, with gradients enabled."""
        if isinstance(result, tuple):
            result = result[0]
        if isinstance(result, torch.Tensor):
            self.fresh.append((name, path, weakref.ref(result)))

    def made_inside(self, path: str) -> None:
        """A product was computed without gradients: perhaps in a function that has a backward pass of its own, as compiled code."""
        node = running_function()
        if isinstance(node, type):
            self._watch_next(node, path)
        elif node is not None:
            self._watch_function(node, path)

    def _watch_function(self, node: Any, path: str) -> None:
        if MODULE not in node.metadata:
            node.metadata[MODULE] = path
            node.register_prehook(_Used(self, type(node).__name__, path, is_sure=False).begins)

    def _watch_next(self, function: Any, path: str) -> None:
        """The node of a function whose forward pass runs is handed to `setup_context` when it has ended: for once to another one."""
        stock = function.setup_context
        if stock is torch.autograd.Function.setup_context or isinstance(stock, _SetUp):
            return
        function.setup_context = _SetUp(self, function, path)

    def watch(self) -> None:
        """Have the nodes of the results so far say when they are used."""
        for name, path, held in self.fresh:
            result = held()
            node = None if result is None else result.grad_fn
            if node is not None:
                node.metadata[MODULE] = path
                used = self._used.get((name, path))
                if used is None:
                    used = self._used[name, path] = _Used(self, name, path).begins
                node.register_prehook(used)
        self.fresh.clear()


class _SetUp:
    """Stands in a function's class for its `setup_context`, until that is called."""

    def __init__(self, nodes: WatchedNodes, function: Any, path: str) -> None:
        self._nodes, self._function, self._path = nodes, function, path
        self._own = vars(function).get("setup_context")
        """What the class itself held; None: a base class has it."""

    def __call__(self, node: Any, inputs: Any, output: Any) -> Any:
        if self._own is None:
            del self._function.setup_context
        else:
            self._function.setup_context = self._own
        if self._nodes.is_inside():  # else the forward pass that was watched has failed
            self._nodes._watch_function(node, self._path)
        return self._function.setup_context(node, inputs, output)


class WatchedPullbacks:
    """Has what `torch.func.vjp` returns say when it is called after the block; process-wide, as long as any block is open.

    Autograd's nodes lie inside of functorch's levels there, where nobody finds them from a result.
    """

    def __init__(self) -> None:
        self._blocks = 0
        self._stock: Any = None

    def set(self) -> None:
        """For one block more."""
        if self._blocks == 0:
            self._stock = getattr(eager_transforms, _VJP, None)
            if self._stock is not None:
                setattr(eager_transforms, _VJP, self._watched(self._stock))
        self._blocks += 1

    def put_back(self) -> None:
        """For one block fewer."""
        self._blocks -= 1
        if self._blocks == 0 and self._stock is not None:
            setattr(eager_transforms, _VJP, self._stock)

    @staticmethod
    def _watched(stock: Any) -> Any:
        @functools.wraps(stock)
        def vjp(*arguments: Any, **keywords: Any) -> Any:
            block = None if torch.compiler.is_compiling() else scope.current("torch")
            if block is None:
                return stock(*arguments, **keywords)
            session = block.session
            before = session.work
            output, pull, *others = stock(*arguments, **keywords)
            if session.work == before:
                return (output, pull, *others)
            has_told = False

            @functools.wraps(pull)
            def watched(*given: Any, **named: Any) -> Any:
                nonlocal has_told
                if scope.current("torch") is None:
                    site = caller("torch.func.vjp in backward")
                    session.skip(site, "what it multiplies, if anything", REASON)
                    if not has_told:
                        has_told = True
                        warnings.warn(
                            f"not emulated: {site}: {REASON}; call what vjp returns inside of it", scope.NotEmulated, stacklevel=2
                        )
                return pull(*given, **named)

            return (output, watched, *others)

        return vjp


watched_pullbacks: Final = WatchedPullbacks()


class _Used:
    """Called by autograd before it computes gradients of one product."""

    def __init__(self, nodes: WatchedNodes, name: str, path: str, *, is_sure: bool = True) -> None:
        self._nodes, self._name, self._path, self._is_sure = nodes, name, path, is_sure

    def begins(self, _gradients: Any) -> None:
        """The gradient of the result is there."""
        nodes = self._nodes
        if nodes.is_inside():
            return
        where = operation = f"{self._name} in backward"
        if not self._is_sure:
            where, operation = self._name, "what it multiplies, if anything"
        site = caller(f"{self._path}: {where}" if self._path else where)
        nodes.mode.session.skip(site, operation, REASON)
        if not nodes.has_told:
            nodes.has_told = True
            warnings.warn(f"not emulated: {site}: {REASON}; {REMEDY}", scope.NotEmulated, stacklevel=2)
