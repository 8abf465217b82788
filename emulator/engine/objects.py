"""LLVM's part of the engine's machine code: from what Numba made, now or when the package was built, to object code. No Numba here."""

from __future__ import annotations

from typing import Any

from llvmlite import binding as llvm

from mmabits.emulator.engine import primitives


def object_code(bitcode: bytes, symbol: str) -> tuple[bytes, tuple[str, ...]]:
    """Optimize a module as a whole, for this processor.

    Args:
        bitcode: of any processor with 64-bit addresses and the lanes that it was written for; of this LLVM or an older one.
        symbol: its one function that others call.

    Returns:
        The object code, and the names that it expects of the process (`malloc` and the like).
    """
    processor = machine()
    module = llvm.parse_bitcode(bitcode)
    module.triple, module.data_layout = llvm.get_process_triple(), str(processor.target_data)
    missing = [each.name for each in module.functions if each.is_declaration]
    bodies = llvm.parse_assembly(primitives.bodies(missing))
    bodies.triple, bodies.data_layout = module.triple, module.data_layout
    module.link_in(bodies)
    for each in module.functions:
        if not each.is_declaration and each.name != symbol:
            each.linkage = "linkonce_odr"  # it goes where it is called; "internal" ones LLVM would work on twice as long
    module.verify()
    _optimize(module, processor)
    expected = [each.name for each in module.functions if each.is_declaration and not each.name.startswith("llvm.")]
    expected += [each.name for each in module.global_variables if each.is_declaration]
    return processor.emit_object(module), tuple(expected)


def machine() -> Any:
    """This processor, as code that is loaded into a process is made for it."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    triple = llvm.get_process_triple()
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True, codemodel="jitdefault",
        reloc="static" if triple.startswith(("x86", "amd64")) else "default",
    )  # fmt: skip


def _optimize(module: Any, processor: Any) -> None:
    """All of LLVM's passes, but for its own vectorizers: what counts is written in vectors, and the rest pays for none."""
    options = llvm.create_pipeline_tuning_options(3)
    options.loop_vectorization = options.slp_vectorization = False
    builder = llvm.create_pass_builder(processor, options)
    builder.getModulePassManager().run(module, builder)
