"""Kernels through Triton's interpreter: their launches, and calls from kernel to kernel."""

from __future__ import annotations

import dataclasses
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import interpreter

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


_RUNNERS: dict[int, Runner] = {}
"""Of the open blocks whose kernels are interpreted, or may be, by the `id` of their sessions."""


def install(session: Session, version: str) -> Callable[[], None]:
    """Get the interpreter ready for a session's launches; what is returned ends that, in whichever order."""
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
    _RUNNERS[id(session)] = Runner(
        session=session, operations=operations, options=options, changes=changes, thread=threading.get_ident()
    )  # fmt: skip

    def end() -> None:
        del _RUNNERS[id(session)]

    return end


def check_thread(name: str) -> None:
    """Of the code that launches a kernel or calls one.

    Raises:
        EmulationError: another thread than the one whose kernels are interpreted: what a running one needs is set for the whole process.
    """
    if any(runner.thread != threading.get_ident() for runner in _RUNNERS.values()):
        raise EmulationError(f"{name}: launched from another thread than the one inside the emulate block")


def interprets(session: Session) -> bool:
    """Whether a session's kernels are interpreted, or one of them just now."""
    runner = _RUNNERS.get(id(session))
    return runner is not None and (session.triton == "interpreted" or runner.operations.launch is not None)


def interpret(
    session: Session, kernel: Any, hooks: list[Any], arguments: tuple[Any, ...], grid: Any, warmup: bool, keywords: dict[str, Any]
) -> None:  # fmt: skip
    """Launch a kernel."""
    if session.not_compiled and not warmup:
        session.skip(kernel.fn.__name__, "the compiled way", f"interpreted instead: {session.not_compiled}")
    _RUNNERS[id(session)].run(kernel, hooks, arguments, grid, warmup, keywords)


def call(session: Session, kernel: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """What a kernel that is interpreted calls.

    Raises:
        EmulationError: none is.
    """
    name = kernel.fn.__name__
    if _RUNNERS[id(session)].operations.launch is None:
        raise EmulationError(f"{name} is called outside a kernel; launch it with a grid: {name}[grid](...)")
    keywords.pop("_semantic", None)
    return KERNELS.kernel(kernel.fn).run(*arguments, **keywords)


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
