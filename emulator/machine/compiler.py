"""LLVM text to machine code of this processor, without a change to what it computes: nothing is reassociated or contracted."""

from __future__ import annotations

from typing import Any

import llvmlite
from llvmlite import binding as llvm

from mmabits.isa import CompilerError


def compiled(text: str, name: str, *, opt: int = 0) -> tuple[int, Any]:
    """The address of a function of an LLVM module, and what must be kept as long as it is called.

    Args:
        text: of the module.
        name: of the function.
        opt: how much time LLVM takes for registers and order of instructions, 0 to 3.

    Raises:
        CompilerError: an LLVM that is too old for pointers without types.
    """
    if not getattr(llvmlite, "opaque_pointers_enabled", True):
        raise CompilerError(f"compiled kernels need llvmlite 0.45 (Numba 0.62) or newer; this is {llvmlite.__version__}")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=opt, jit=True
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(text), machine)
    engine.finalize_object()
    return int(engine.get_function_address(name)), engine
