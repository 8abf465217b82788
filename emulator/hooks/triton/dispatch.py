"""Which way a launch goes inside a block: as Triton's compiler makes the kernel, whole, or through Triton's interpreter."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from triton import knobs
from triton.runtime.autotuner import Autotuner
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from mmabits.emulator.hooks import scope
from mmabits.emulator.hooks.launched import Duration
from mmabits.emulator.hooks.session import Session
from mmabits.emulator.hooks.triton import compiled, launches, tuning
from mmabits.emulator.hooks.triton.patches import Patches
from mmabits.isa import EmulationError, MmabitsError

_PATCHES: Final = Patches()
"""In place while there are sessions."""
_open = 0
"""How many there are."""


def install() -> Callable[[], None]:
    """Have launches go the way of the session around them; what is returned ends that, in whichever order."""
    global _open
    if not _open:
        _install(_PATCHES)
    _open += 1

    def end() -> None:
        global _open
        _open -= 1
        if not _open:
            _PATCHES.undo()

    return end


def _session(name: str) -> Session | None:
    """That of the block around what the program launches or calls now; None for Triton."""
    launches.check_thread(name)
    block = scope.current("triton")
    if block is None:
        scope.tell_of_missed("triton", name, "a launch")
        return None
    found: Session = block.session
    return found


class _Listener:
    """Told by Triton what it has compiled, in the place of the program's own listener, which is told then."""

    def __init__(self, stock: Any) -> None:
        self.stock, self.began = stock, time.perf_counter()

    def __call__(self, *, metadata: Any, cache_hit: bool, **rest: Any) -> None:
        """Compilation of one kernel has ended."""
        compiled.TRANSLATIONS[metadata["hash"]] = Duration(seconds=time.perf_counter() - self.began, was_cached=cache_hit)
        if self.stock is not None:
            self.stock(metadata=metadata, cache_hit=cache_hit, **rest)


def _timed(run: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Triton's own launch, with an eye on the clock."""
    patches = Patches()
    patches.set(knobs.compilation, "listener", _Listener(knobs.compilation.listener))
    try:
        return run(*arguments, **keywords)
    finally:
        patches.undo()


def _install(patches: Patches) -> None:
    stock_run, stock_call, stock_autotuned = JITFunction.run, JITFunction.__call__, Autotuner.run
    stock_run_interpreted, stock_call_interpreted = InterpretedFunction.run, InterpretedFunction.__call__

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> Any:
        name = self.fn.__name__
        session = _session(name)
        if session is None:
            return stock_run(self, *arguments, grid=grid, warmup=warmup, **keywords)
        if session.triton == "interpreted":
            if self.is_gluon():
                reason = session.not_compiled or "its kernels run compiled alone"
                session.refuse(name, "a Gluon kernel", f"Triton cannot interpret Gluon, and {reason}")
            launches.interpret(session, self, list(self.pre_run_hooks), arguments, grid, warmup, keywords)
            return None
        try:
            return _timed(stock_run, self, *arguments, grid=grid, warmup=warmup, **keywords)
        except MmabitsError as error:
            if session.triton != "fallback" or not compiled.is_refusal(error):
                raise
            if self.is_gluon():
                error.add_note(f"{name} cannot be interpreted instead: it is a Gluon kernel")
                raise
            session.skip(name, "the compiled way", f"interpreted instead: {error}")
        launches.interpret(session, self, [], arguments, grid, warmup, keywords)  # its hooks were called before it was compiled
        return None

    def run_interpreted(self: Any, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> Any:
        name = self.fn.__name__
        session = _session(name)
        if session is None:
            return stock_run_interpreted(self, *arguments, grid=grid, warmup=warmup, **keywords)
        reason = "it was decorated while TRITON_INTERPRET was set"
        if session.triton == "compiled":
            raise EmulationError(f"{name} cannot be compiled: {reason}; triton='interpreted' runs it")
        if session.triton == "fallback":
            session.skip(name, "the compiled way", f"interpreted instead: {reason}")
        launches.interpret(session, self, list(getattr(self, "pre_run_hooks", ())), arguments, grid, warmup, keywords)
        return None

    def calling(stock: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
            session = _session(self.fn.__name__)
            if session is None or not launches.interprets(session):
                return stock(self, *arguments, **keywords)
            return launches.call(session, self, arguments, keywords)

        return call

    def run_autotuned(self: Any, *arguments: Any, **keywords: Any) -> Any:
        session = _session(self.base_fn.__name__)
        if session is None:
            return stock_autotuned(self, *arguments, **keywords)
        return tuning.run(session, self, arguments, keywords)

    patches.set(JITFunction, "run", run)
    patches.set(JITFunction, "__call__", calling(stock_call))
    patches.set(InterpretedFunction, "run", run_interpreted)
    patches.set(InterpretedFunction, "__call__", calling(stock_call_interpreted))
    patches.set(Autotuner, "run", run_autotuned)
    patches.set(Autotuner, "best_config", tuning.BestConfiguration())
