"""Launches of kernels, the choice of an autotuner, and calls from kernel to kernel."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import interpreter
from triton.runtime.autotuner import Autotuner
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from mmabits.emulator.hooks import scope
from mmabits.emulator.hooks.session import Session
from mmabits.emulator.hooks.triton import builder
from mmabits.emulator.hooks.triton.arguments import Grid, parameters
from mmabits.emulator.hooks.triton.builder import InterpretedLaunch, Operations
from mmabits.emulator.hooks.triton.casts import Casts
from mmabits.emulator.hooks.triton.compiler import compiler
from mmabits.emulator.hooks.triton.patches import Change, NoScope, Patches, language_changes
from mmabits.emulator.hooks.triton.plans import planner
from mmabits.emulator.hooks.triton.source import Kernels
from mmabits.isa import EmulationError, OperandError

FOLDS_SCALED_DOTS = (3, 8)
"""First version of Triton whose combine pass treats tl.dot_scaled as tl.dot."""

LOOKS_AT_JOINS = (3, 8)
"""First version to which the elements of a tl.join matter."""

KERNELS = Kernels()
"""Rewritten kernels, of all sessions."""


@dataclass
class Runner:
    """Runs kernels for one session."""

    session: Session
    operations: Operations
    options: Any
    """What Triton's backend for the architecture has set."""
    changes: tuple[Change, ...]
    """What is set in the interpreter while a kernel runs."""
    thread: int

    def run(self, jitted: Any, hooks: list[Any], arguments: tuple[Any, ...], grid: Any, warmup: bool, keywords: dict[str, Any]) -> None:
        """Launch a kernel."""
        function = jitted.fn
        name = function.__name__
        if warmup:
            return
        kernel = KERNELS.kernel(function)
        names = list(inspect.signature(function).parameters)
        self._check_keywords(name, names, keywords)
        given = {key: value for key, value in keywords.items() if key in names}
        bound = inspect.signature(function).bind(*arguments, **given)
        bound.apply_defaults()
        if callable(grid):
            grid = grid(dict(bound.arguments))
        self._check_types(name, tuple(bound.arguments.values()))
        known = parameters(jitted, function)
        launch = InterpretedLaunch(
            kernel=kernel, warps=int(keywords.get("num_warps") or self.options.num_warps), ctas=int(keywords.get("num_ctas") or 1),
            constants=_constants(known, bound.arguments), fuses=_fuses(keywords.get("enable_fp_fusion")),
        )  # fmt: skip
        executor = Grid(kernel.run, known, tuple(int(size) for size in grid), hooks, partial(setattr, launch, "memory"))
        self._execute(launch, executor, arguments, given)

    def _execute(self, launch: InterpretedLaunch, executor: Grid, arguments: tuple[Any, ...], given: dict[str, Any]) -> None:
        operations = self.operations
        outer, operations.launch = operations.launch, launch
        patches = Patches()
        # Past the knob itself, which would also set TRITON_INTERPRET for this process and all that it starts.
        patches.put(vars(knobs.runtime), "interpret", True)
        try:
            for owner, name, value in (*language_changes(), *(self.changes if outer is None else ())):
                patches.set(owner, name, value)
            with np.errstate(all="ignore"):  # a GPU overflows silently
                executor(*arguments, **given)
        finally:
            patches.undo()
            operations.launch = outer

    def _check_keywords(self, name: str, names: list[str], keywords: dict[str, Any]) -> None:
        for key in keywords:
            if key not in names and not hasattr(self.options, key):
                raise OperandError(f"{name} takes no argument {key!r}, and it is no option of Triton's compiler")

    def _check_types(self, name: str, arguments: tuple[Any, ...]) -> None:
        allowed = self.options.supported_fp8_dtypes
        for argument in arguments:
            if str(getattr(argument, "dtype", "")) == "torch.float8_e4m3fn" and "fp8e4nv" not in allowed:
                self.session.refuse(name, "a tensor of fp8e4nv", f"Triton's compiler has {', '.join(allowed)} for it")

    def pick(self, tuner: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """The configuration of an autotuned kernel: the one tuned on a GPU, else the first. Nothing is measured."""
        if len(tuner.configs) == 1:
            return tuner.configs[0]
        tuned = tuner.cache.get(_tuning_key(tuner, arguments, keywords)) or getattr(tuner, "best_config", None)
        return tuned or tuner.prune_configs(keywords)[0]


def _constants(known: dict[str, Any], arguments: dict[str, Any]) -> frozenset[str]:
    """Parameters that the compiler knows the value of: those declared so, and integers that are 1."""
    declared = {name for name, each in known.items() if each.is_constexpr}
    ones = {name for name, value in arguments.items() if type(value) is int and value == 1 and not known[name].do_not_specialize}
    return frozenset(declared | ones)


def _fuses(requested: bool | None) -> bool:
    """Whether the compiler fuses products and sums, as asked or by its default."""
    if getattr(knobs.language, "force_disable_fp_fusion", False):
        return False
    return bool(knobs.language.default_fp_fusion if requested is None else requested)


def _tuning_key(tuner: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, ...]:
    given = {**dict(zip(tuner.arg_names, arguments, strict=False)), **keywords}
    known = {name: value for name, value in given.items() if name in tuner.arg_names}
    return (
        *(known[name] for name in tuner.keys if name in known),
        *(str(value.dtype) for value in known.values() if hasattr(value, "dtype")),
    )


_RUNNERS: dict[int, Runner] = {}
"""Of the open blocks, by the `id` of their sessions."""
_LAUNCHES: Final = Patches()
"""In place while there are any."""


def install(session: Session, version: str) -> Callable[[], None]:
    """Take a session's launches to the interpreter; what is returned ends that, in whichever order."""
    plans = planner(session.arch, version, compiler(version))
    numbers = tuple(map(int, version.split(".")[:2]))
    operations = Operations(
        session=session, planner=plans, casts=Casts(version, plans.capability), kernels=KERNELS,
        folds_scaled=numbers >= FOLDS_SCALED_DOTS, halves_always=numbers < LOOKS_AT_JOINS,
    )  # fmt: skip
    language_changes()  # while the interpreter is as it was
    backend = make_backend(GPUTarget("cuda", plans.capability, 32))
    options = backend.parse_options({"enable_fp_fusion": True})
    changes = _interpreter_changes(operations, backend, options)
    if not _RUNNERS:
        _install_launches(_LAUNCHES)
        _install_target(_LAUNCHES)
    _RUNNERS[id(session)] = Runner(
        session=session, operations=operations, options=options, changes=changes, thread=threading.get_ident()
    )  # fmt: skip

    def end() -> None:
        del _RUNNERS[id(session)]
        if not _RUNNERS:
            _LAUNCHES.undo()

    return end


def _runner(name: str) -> Runner | None:
    """Who runs what the program launches or calls now; None for Triton.

    Raises:
        EmulationError: on another thread: what a running kernel needs is set for the whole process.
    """
    if any(runner.thread != threading.get_ident() for runner in _RUNNERS.values()):
        raise EmulationError(f"{name}: launched from another thread than the one inside the emulate block")
    block = scope.current("triton")
    if block is None:
        scope.tell_of_missed("triton", name, "a launch")
        return None
    return _RUNNERS.get(id(block.session))  # none in a block whose kernels are compiled


def _interpreter_changes(operations: Operations, backend: Any, options: Any) -> tuple[Change, ...]:
    """What is set in the interpreter for a session's launches, found by setting it for a moment."""
    patches = Patches()
    try:
        _install_builder(patches, operations, backend, options)
        patches.set(interpreter, "_patch_lang", lambda function: NoScope())
        return tuple(patches.changes)
    finally:
        patches.undo()


def _install_builder(patches: Patches, operations: Operations, backend: Any, options: Any) -> None:
    builder.install(patches, operations)
    the_builder = interpreter.interpreter_builder
    stock = the_builder.options
    shared = {field.name for field in dataclasses.fields(stock)} & {
        "arch", "supported_fp8_dtypes", "deprecated_fp8_dot_operand_dtypes", "default_dot_input_precision", "allowed_dot_input_precisions",
        "max_num_imprecise_acc_default",
    }  # fmt: skip
    # On a GPU overflowing integers are caught in debug mode only; looking for them takes half of the interpreter's time.
    changed = {name: getattr(options, name) for name in shared} | {"sanitize_overflow": False}
    patches.set(the_builder, "options", dataclasses.replace(stock, **changed))
    least = backend.get_codegen_implementation(options)["min_dot_size"]

    def min_dot_size(lhs: Any, rhs: Any) -> tuple[int, int, int]:
        m, n, k = least(lhs, rhs)
        got = (int(lhs.shape[-2]), int(rhs.shape[-1]), int(lhs.shape[-1]))
        if any(size < bound for size, bound in zip(got, (m, n, k), strict=True)):
            site = operations.site(operations.frame())
            shape = " x ".join(map(str, got))
            operations.session.refuse(site, f"tl.dot {shape}", f"Triton's compiler wants at least {m} x {n} x {k} (M x N x K)")
        return m, n, k

    patches.set(the_builder, "codegen_fns", {**the_builder.codegen_fns, "min_dot_size": min_dot_size})
    if "fp8e4nv" not in options.supported_fp8_dtypes:

        def refused(self: Any) -> None:
            site = operations.site(operations.frame())
            operations.session.refuse(site, "the type fp8e4nv", f"Triton's compiler has {', '.join(options.supported_fp8_dtypes)} for it")

        patches.set(interpreter.InterpreterBuilder, "get_fp8e4nv_ty", refused)


class _Targets:
    """Triton's `driver` as its language sees it: questions for the target are answered with the architecture of the block around them."""

    def __init__(self, stock: Any) -> None:
        self.stock = stock

    @property
    def active(self) -> Any:
        """The driver."""
        block = scope.current("triton")
        runner = None if block is None else _RUNNERS.get(id(block.session))
        if runner is None:
            return self.stock.active
        target = GPUTarget("cuda", runner.operations.planner.capability, 32)
        return SimpleNamespace(get_current_target=lambda: target)


def _install_target(patches: Patches) -> None:
    for name in ("triton.language.target_info", "triton.language.semantic"):
        module = sys.modules.get(name)
        if hasattr(module, "driver"):
            patches.set(module, "driver", _Targets(vars(module)["driver"]))


def _install_launches(patches: Patches) -> None:
    stock_run, stock_call, stock_autotuned = JITFunction.run, JITFunction.__call__, Autotuner.run
    stock_run_interpreted, stock_call_interpreted = InterpretedFunction.run, InterpretedFunction.__call__

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> Any:
        runner = _runner(self.fn.__name__)
        if runner is None:
            return stock_run(self, *arguments, grid=grid, warmup=warmup, **keywords)
        if self.is_gluon():
            runner.session.refuse(self.fn.__name__, "a Gluon kernel", "Triton cannot interpret Gluon")
        return runner.run(self, list(self.pre_run_hooks), arguments, grid, warmup, keywords)

    def run_interpreted(self: Any, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> Any:
        runner = _runner(self.fn.__name__)
        if runner is None:
            return stock_run_interpreted(self, *arguments, grid=grid, warmup=warmup, **keywords)
        return runner.run(self, list(getattr(self, "pre_run_hooks", ())), arguments, grid, warmup, keywords)

    def calling(stock: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
            runner = _runner(self.fn.__name__)
            if runner is None:
                return stock(self, *arguments, **keywords)
            if runner.operations.launch is None:
                raise EmulationError(f"{self.fn.__name__} is called outside a kernel; launch it with a grid: {self.fn.__name__}[grid](...)")
            keywords.pop("_semantic", None)
            return KERNELS.kernel(self.fn).run(*arguments, **keywords)

        return call

    def run_autotuned(self: Any, *arguments: Any, **keywords: Any) -> Any:
        runner = _runner(self.base_fn.__name__)
        if runner is None:
            return stock_autotuned(self, *arguments, **keywords)
        self.nargs = dict(zip(self.arg_names, arguments, strict=False))
        config = runner.pick(self, arguments, keywords)
        values = config.all_kwargs()
        clash = sorted(keywords.keys() & config.kwargs.keys())
        if clash:
            raise OperandError(f"{self.base_fn.__name__}: {', '.join(clash)} is chosen by its autotuner and cannot be given")
        if config.pre_hook is not None:
            config.pre_hook({**self.nargs, **keywords, **values})
        result = self.fn.run(*arguments, **keywords, **values)
        self.nargs = None
        return result

    patches.set(JITFunction, "run", run)
    patches.set(JITFunction, "__call__", calling(stock_call))
    patches.set(InterpretedFunction, "run", run_interpreted)
    patches.set(InterpretedFunction, "__call__", calling(stock_call_interpreted))
    patches.set(Autotuner, "run", run_autotuned)
