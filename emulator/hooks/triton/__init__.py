"""The hook for Triton: kernels run in Triton's interpreter, and their dots with the instructions that its compiler emits.

Kernels are decorated and launched as for a GPU, on CPU tensors. While a session lasts, launches go to the interpreter; what it needs
otherwise than Triton has it is set for the time of each launch only, so that `triton.compile` keeps working beside it.
"""

from __future__ import annotations

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

    undo = ExitStack()
    if session.triton == "compiled":
        from mmabits.emulator.hooks.triton import compiled

        undo.callback(compiled.install(session))
        return undo
    from mmabits.emulator.hooks.triton.launches import install

    undo.callback(install(session, triton.__version__))
    return undo


def _check_version(version: str) -> None:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    found = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if not VERSIONS[0] <= found <= VERSIONS[1]:
        first, last = (".".join(map(str, each)) for each in VERSIONS)
        raise EmulationError(f"Triton {version} is not emulated; the versions are {first} to {last}")
