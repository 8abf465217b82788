"""Writes what shipped.py reads, when a wheel is built: `python -m mmabits.emulator.engine.ship FOLDER [SYMBOL ...]`.

Every number of lanes takes a process of its own, since the engine's code is laid out for it where it is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
from llvmlite import binding as llvm

from mmabits.emulator.engine import machine_code, shipped
from mmabits.emulator.engine.native import variants
from mmabits.emulator.engine.objects import machine
from mmabits.emulator.engine.record import Variant
from mmabits.emulator.engine.width import LANES, SETTING, lanes
from mmabits.isa.lowering import lowerings

_ONE: Final = "--these-lanes"


def usual() -> dict[str, Variant]:
    """All functions that products take on any architecture, and those that compiled kernels call, by their symbols."""
    nothing = np.dtype(np.uint8)
    helpers = (Variant(kind, nothing, nothing, nothing) for kind in ("machine", "checks"))
    products = (variant for lowering in lowerings() for variant in variants(lowering))
    return {variant.symbol: variant for variant in (*helpers, *products)}


def write(folder: Path, wanted: dict[str, Variant]) -> None:
    """One file for each function, for the lanes of this process."""
    from mmabits.emulator.engine.jit import intermediate_code

    folder.mkdir(parents=True, exist_ok=True)
    for symbol, variant in wanted.items():
        if shipped.lanes_of(symbol) == 0 and lanes() != LANES[0]:
            continue  # another process writes it
        code = _trimmed(intermediate_code(machine_code.entry(variant), symbol), symbol)
        (folder / shipped.file_name(symbol)).write_bytes(shipped.packed(symbol, machine_code.sources_of(symbol), code))


def _trimmed(bitcode: bytes, symbol: str) -> bytes:
    """Without functions and names that nobody needs: a third is left."""
    module = llvm.parse_bitcode(bitcode)
    for each in module.functions:
        if not each.is_declaration and each.name != symbol:
            each.linkage = "linkonce_odr"  # with "internal" names go too, and what is left takes LLVM twice as long
    for each in module.global_variables:
        if not each.is_declaration:
            each.linkage = "internal"
    options = llvm.create_pipeline_tuning_options(0)
    builder: Any = llvm.create_pass_builder(machine(), options)
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.add_strip_symbols_pass()
    passes.run(module, builder)
    return bytes(module.as_bitcode())


def main(arguments: list[str]) -> None:
    """Write the named functions, or all, for all lanes; with _ONE for those of this process."""
    one = _ONE in arguments
    folder, *names = (each for each in arguments if each != _ONE)
    if one:
        wanted = usual()
        unknown = sorted(set(names) - set(wanted))
        if unknown:
            raise SystemExit(f"no function {', '.join(unknown)}; there are {', '.join(wanted)}")
        write(Path(folder), {name: wanted[name] for name in names or wanted})
        return
    command = [sys.executable, "-m", "mmabits.emulator.engine.ship", _ONE, *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "MMABITS_"))}
    processes = [subprocess.Popen(command, env={**environment, SETTING: str(count)}) for count in LANES]
    if any([process.wait() for process in processes]):
        raise SystemExit("the engine could not be compiled")


if __name__ == "__main__":
    main(sys.argv[1:])
