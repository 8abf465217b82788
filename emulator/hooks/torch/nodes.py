"""The nodes that autograd makes of emulated products: which module they are of, and whether they are used after the block.

A backward pass that begins when the block has ended is PyTorch's own, which is said.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import torch

from mmabits.emulator.hooks import scope
from mmabits.emulator.hooks.torch.calls import MODULE, caller, running_function

if TYPE_CHECKING:
    from mmabits.emulator.hooks.torch.mode import EmulateMode

REASON: Final = "the block had ended, in which the forward pass was emulated"
REMEDY: Final = "call backward inside of it"


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
        if node is not None and MODULE not in node.metadata:
            node.metadata[MODULE] = path
            node.register_prehook(_Used(self, type(node).__name__, path, is_sure=False).begins)

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
