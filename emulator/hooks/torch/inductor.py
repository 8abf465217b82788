"""What torch.compile's inductor would multiply in code of its own, handed to PyTorch's operators where a block is compiled in.

For the CPU inductor turns products of one row, one column or one element of K into sums of its own, which nobody sees. Inside a block
it leaves them to the operators that it calls for all others, and code that it compiled before, or keeps to itself, is a line of the report.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any, Final

import torch

from mmabits.emulator.hooks import scope
from mmabits.emulator.hooks.torch.calls import caller
from mmabits.emulator.hooks.triton.patches import Patches

OPERATORS: Final = ("mm", "bmm", "addmm", "baddbmm")
"""Operators that inductor takes apart or lowers by itself."""
ATTENTION: Final = ("flex_attention", "flex_attention_backward")
TAG: Final = "mmabits 1"
"""In the keys of torch.compile's caches, which outlive the process: code of a block is no other's. To be counted up."""
BEFORE: Final = "compiled before the block: inductor keeps products of one row or column in code of its own; compile it inside the block"
KEPT: Final = "torch.compile makes one kernel of it, whose products are not seen; call it uncompiled"
AHEAD: Final = "compiled ahead of time by AOTInductor: what it multiplies past PyTorch's dispatcher is not seen"
UNKNOWN: Final = "what it multiplies, if anything"


def _stands() -> bool:
    return scope.current("torch") is not None


def _not_apart(stock: Callable[..., Any]) -> Callable[..., Any]:
    """A decomposition that leaves the operator as it is inside a block."""

    @wraps(stock)
    def decomposition(*arguments: Any, **keywords: Any) -> Any:
        return NotImplemented if _stands() else stock(*arguments, **keywords)

    return decomposition


def _called(stock: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """A lowering that calls the operator inside a block."""

    @wraps(stock)
    def lowering(*arguments: Any, **keywords: Any) -> Any:
        return call(*arguments, **keywords) if _stands() else stock(*arguments, **keywords)

    return lowering


class _InductorInBlocks:
    """The patches of inductor, made when a block first compiles with it; process-wide, and without effect outside of blocks."""

    def __init__(self) -> None:
        self._blocks = 0
        self._patches = Patches()
        self._is_in_place = False

    def set(self) -> None:
        """For one block more."""
        self._blocks += 1
        if self._blocks > 1:
            return
        wrapper: Any = getattr(torch, "_TorchCompileInductorWrapper", None)
        if wrapper is not None:
            self._patches.set(wrapper, "__call__", self._compiling(wrapper.__call__))
        if "torch._inductor.compile_fx" in sys.modules:
            self._put_in_place()

    def put_back(self) -> None:
        """For one block fewer."""
        self._blocks -= 1
        if self._blocks == 0:
            self._patches.undo()
            self._is_in_place = False

    def _compiling(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        """The backend `inductor` of torch.compile."""

        @wraps(stock)
        def compiling(*arguments: Any, **keywords: Any) -> Any:
            if not _stands():
                return stock(*arguments, **keywords)
            self._put_in_place()
            return stock(*arguments, **keywords)

        return compiling

    def _put_in_place(self) -> None:
        if self._is_in_place:
            return
        self._is_in_place = True
        compile_fx, lowering, output = (import_module(f"torch._inductor.{name}") for name in ("compile_fx", "lowering", "output_code"))
        decomposition: Any = import_module("torch._inductor.decomposition")
        tables = decomposition.decompositions, decomposition.fast_random_decomps()  # the second is a copy that is kept
        for name in OPERATORS:
            operator = getattr(torch.ops.aten, name)
            for table in tables:
                if operator.default in table:
                    self._patches.put(table, operator.default, _not_apart(table[operator.default]))
            call = lowering.fallback_handler(operator.default, add_to_fallback_set=False)
            for key in (operator, operator.default):
                if key in lowering.lowerings:
                    self._patches.put(lowering.lowerings, key, _called(lowering.lowerings[key], call))
        self._patches.set(compile_fx, "compile_fx", _tagged(compile_fx.compile_fx))
        graph = output.CompiledFxGraph
        self._patches.set(graph, "post_compile", _marked(graph.post_compile))
        self._patches.set(graph, "__call__", _watched(graph.__call__, lambda graph: hasattr(graph, _MARK), "compiled code", BEFORE))
        ahead = getattr(sys.modules.get("torch._inductor.package.package"), "AOTICompiledModel", None)
        if ahead is not None:
            self._patches.set(ahead, "__call__", _watched(ahead.__call__, lambda _: False, "AOTInductor's code", AHEAD))


inductor_in_blocks: Final = _InductorInBlocks()
_MARK: Final = "_mmabits_in_block"


def _tagged(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Compilation of a graph: inside a block under a key of its own in the caches, and in Python, whose calls of operators are seen."""

    @wraps(stock)
    def compile_fx(*arguments: Any, **keywords: Any) -> Any:
        if not _stands():
            return stock(*arguments, **keywords)
        caches: Any = torch.compiler.config
        settings: Any = import_module("torch._inductor.config")
        with caches.patch(cache_key_tag=f"{caches.cache_key_tag} {TAG}"), settings.patch(cpp_wrapper=False):
            compiled = stock(*arguments, **keywords)
        name = _whole(arguments[0]) if arguments else ""
        if not name:
            return compiled

        @wraps(compiled)
        def running(*given: Any, **named: Any) -> Any:
            block = scope.current("torch")
            if block is not None:
                block.session.skip(caller(f"{name} in compiled code"), name, KEPT)
            return compiled(*given, **named)

        return running

    return compile_fx


def _whole(graph: Any) -> str:
    """An operator in a graph that inductor makes one kernel of, with its products; empty where there is none."""
    nodes = graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else ()
    return next((str(node.target) for node in nodes if str(node.target) in ATTENTION), "")


def _marked(stock: Callable[..., Any]) -> Callable[..., Any]:
    """What is done last with a compiled graph."""

    @wraps(stock)
    def post_compile(graph: Any, *arguments: Any, **keywords: Any) -> Any:
        if _stands():
            setattr(graph, _MARK, True)
        return stock(graph, *arguments, **keywords)

    return post_compile


def _watched(stock: Callable[..., Any], is_seen: Callable[[Any], bool], name: str, reason: str) -> Callable[..., Any]:
    """Compiled code that runs: a line of the report where products may be hidden in it."""

    @wraps(stock)
    def running(code: Any, *arguments: Any, **keywords: Any) -> Any:
        block = scope.current("torch")
        if block is not None and not is_seen(code):
            block.session.skip(caller(name), UNKNOWN, reason)
        return stock(code, *arguments, **keywords)

    return running
