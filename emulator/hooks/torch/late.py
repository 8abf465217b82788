"""Backward passes that begin when the block has ended: their products are PyTorch's own, which is said."""

from __future__ import annotations

import threading
import warnings
import weakref
from typing import Any, Final

import torch

from mmabits.emulator.hooks import scope
from mmabits.emulator.hooks.session import Session
from mmabits.emulator.hooks.torch.calls import caller

REASON: Final = "the block had ended, in which the forward pass was emulated"
REMEDY: Final = "call backward inside of it"


class LateBackward:
    """Watches the nodes that autograd makes of emulated products.

    Autograd has not made the node when an operator returns. So results are remembered until the next operator, and looked at then.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.has_told = False
        self._thread = threading.get_ident()
        self.fresh: list[tuple[str, weakref.ref[Any]]] = []
        """Names of operators, and their results."""

    def is_inside(self) -> bool:
        """Whether a block emulates what the running code multiplies."""
        if scope.current("torch") is not None:
            return True
        return threading.get_ident() != self._thread and scope.innermost("torch") is not None  # a thread of autograd's

    def made(self, name: str, result: Any) -> None:
        """A product was computed, with gradients enabled."""
        if isinstance(result, tuple):
            result = result[0]
        if isinstance(result, torch.Tensor):
            self.fresh.append((name, weakref.ref(result)))

    def watch(self) -> None:
        """Have the nodes of the results so far say when they are used too late."""
        for name, held in self.fresh:
            result = held()
            node = None if result is None else result.grad_fn
            if node is not None:
                node.register_prehook(_Told(self, name))
        self.fresh.clear()


class _Told:
    """Called by autograd before it computes gradients of one product."""

    def __init__(self, watched: LateBackward, name: str) -> None:
        self._watched, self._name = watched, name

    def __call__(self, _gradients: Any) -> None:
        if self._watched.is_inside():
            return
        site = caller(f"{self._name} in backward")
        self._watched.session.skip(site, f"{self._name} in backward", REASON)
        if not self._watched.has_told:
            self._watched.has_told = True
            warnings.warn(f"not emulated: {site}: {REASON}; {REMEDY}", scope.NotEmulated, stacklevel=2)
