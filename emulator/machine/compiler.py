"""LLVM text to machine code of this processor, without a change to what it computes: nothing is reassociated or contracted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, NamedTuple

import llvmlite
from llvmlite import binding as llvm

from mmabits.emulator.engine import machine_code
from mmabits.isa import CompilerError

KEPT_FROM: Final = 100_000
"""Characters of text from which on machine code is kept in files: less is compiled in no time."""
_LONG: Final = 3_000_000
"""Characters that take LLVM more than about two seconds."""
_CAREFUL: Final = 2
"""How much time LLVM takes for functions that many kernels call."""
_EXPECTED: Final = ("memcpy", "memmove", "memset", "fma", "fmaf")
"""What LLVM may call where the processor has no instruction for it."""


class MachineCode(NamedTuple):
    """A function of this processor."""

    address: int
    owner: Any
    """What must be kept as long as the function is called."""
    was_kept: bool
    """Whether it came from a file."""


def why_unusable() -> str:
    """What keeps kernels from being compiled here; empty: nothing."""
    if getattr(llvmlite, "opaque_pointers_enabled", True):
        return ""
    return f"compiled kernels need llvmlite 0.45 (Numba 0.62) or newer; this is {llvmlite.__version__}"


def compiled(text: str, name: str, *, opt: int = 0, what: str = "a kernel", beside: Mapping[str, str] | None = None) -> MachineCode:
    """A function of an LLVM module as machine code.

    Long texts are compiled once on a machine: their machine code lies in files beside the engine's, by the text.

    Args:
        text: of the module.
        name: of the function.
        opt: how much time LLVM takes for registers and order of instructions, 0 to 3.
        what: the program, for the notice that compiling takes a while.
        beside: functions that the text calls and does not have: modules, by the symbol. Their machine code is made with more care, once.

    Raises:
        CompilerError: an LLVM that is too old for pointers without types.
    """
    reason = why_unusable()
    if reason:
        raise CompilerError(reason)
    symbol = symbol_of(text, opt)
    keep = len(text) >= KEPT_FROM
    code = machine_code.kept_code(symbol) if keep else None
    was_kept = code is not None
    if code is None:
        if len(text) >= _LONG:
            machine_code.notify(f"mmabits: compiling {what}, once on this machine")
        code = _object_code(text, opt)
        if keep:
            machine_code.keep_code(symbol, code, _EXPECTED)
    loader = machine_code.loaded(code, *(_part(symbol, part) for symbol, part in (beside or {}).items()))
    return MachineCode(int(loader.get_function_address(name)), loader, was_kept)


def symbol_of(text: str, opt: int) -> str:
    """What the kept machine code of a text is called."""
    return f"mmabits_kernel_{hashlib.sha256(f'{opt} {text}'.encode()).hexdigest()[:40]}"


@cache
def _part(symbol: str, text: str) -> bytes:
    """Machine code of a function that kernels call."""
    code = machine_code.kept_code(symbol)
    if code is None:
        code = _object_code(text, _CAREFUL)
        machine_code.keep_code(symbol, code, _EXPECTED)
    return code


def _object_code(text: str, opt: int) -> bytes:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=opt, jit=True
    )
    code: bytes = machine.emit_object(llvm.parse_assembly(text))
    return code
