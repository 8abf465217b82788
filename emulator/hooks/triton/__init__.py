"""The hook for Triton: kernels run as its compiler makes them, or in its interpreter with the instructions that the compiler emits.

Kernels are decorated and launched as for a GPU, on CPU tensors. What the interpreter needs otherwise than Triton has it is set for the
time of each launch only, so that `triton.compile` keeps working beside it.
"""

from __future__ import annotations

import importlib
import re
from contextlib import ExitStack

from mmabits.emulator.hooks.session import Session
from mmabits.isa import EmulationError

VERSIONS = ((3, 6), (3, 9))
"""First and last version of Triton that the hook is made for."""


def hook(session: Session) -> ExitStack:
    """Emulate what Triton kernels multiply, until what is returned is closed.

    Raises:
        EmulationError: a version of Triton that the hook is not made for.
    """
    import triton

    _check_version(triton.__version__)
    # Before anything is patched: it keeps the functions of the language as it finds them at its import.
    import triton.compiler.code_generator

    from mmabits.emulator.hooks.triton import compiled, dispatch, launches

    with ExitStack() as undo:
        undo.callback(compiled.install(session))
        if session.triton != "compiled":
            undo.callback(launches.install(session, triton.__version__))
        undo.callback(dispatch.install())
        return undo.pop_all()


def why_not_compiled() -> str:
    """What keeps Triton's kernels from being compiled here; empty: nothing."""
    import triton

    from mmabits.emulator.machine.compiler import why_unusable

    if triton.knobs.runtime.interpret:
        return "TRITON_INTERPRET is set, and kernels are decorated for the interpreter"
    try:
        importlib.import_module("triton.backends.nvidia.compiler")
    except ImportError as error:
        return f"Triton {triton.__version__} has no compiler for NVIDIA's GPUs ({error})"
    return why_unusable()


def _check_version(version: str) -> None:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    found = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if not VERSIONS[0] <= found <= VERSIONS[1]:
        first, last = (".".join(map(str, each)) for each in VERSIONS)
        raise EmulationError(f"Triton {version} is not emulated; the versions are {first} to {last}")
