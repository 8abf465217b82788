"""What machine instructions a compiled kernel holds, where a disassembler is installed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Final

from mmabits.conformance.record.kernels import InstructionKernel
from mmabits.isa import lower
from mmabits.isa.errors import DeviceUnavailable, MmabitsError

_NAME: Final = "nvdisasm"
_OPCODE: Final = r"(?:[HQOIDB]MMA|[HQIB]GMMA|UTC[HQOI]MMA)\b[.\w]*"
"""Opcodes that multiply matrices."""
_MATRIX: Final = re.compile(rf"\b{_OPCODE}")
_EXPECTED: Final = re.compile(rf"^(?P<opcode>{_OPCODE})(?:.* x(?P<count>\d+))?")
_TIMEOUT_S: Final = 60


class Disassembled(Counter[str]):
    """How often each opcode that multiplies matrices occurs."""

    def __str__(self) -> str:
        return ", ".join(name if count == 1 else f"{name} x{count}" for name, count in sorted(self.items()))


@lru_cache(maxsize=1)
def disassembler() -> Path | None:
    """`nvdisasm` on the PATH, or the one that an installed Triton brings; None without either."""
    found = shutil.which(_NAME)
    if found is not None:
        return Path(found)
    spec = importlib.util.find_spec("triton")
    folders = () if spec is None else spec.submodule_search_locations or ()
    bundled = (Path(folder, "backends", "nvidia", "bin", _NAME) for folder in folders)
    return next((path for path in bundled if path.is_file()), None)


def matrix_opcodes(cubin: bytes) -> Disassembled:
    """The opcodes in a cubin that multiply matrices.

    Raises:
        DeviceUnavailable: no disassembler is installed.
        MmabitsError: it does not take the cubin.
    """
    tool = disassembler()
    if tool is None:
        raise DeviceUnavailable(f"no {_NAME}: it comes with the CUDA toolkit and with Triton")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tile.cubin")
        path.write_bytes(cubin)
        done = subprocess.run([str(tool), "-c", str(path)], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode:
        raise MmabitsError(f"{tool} does not take the cubin: {' '.join(done.stderr.split())[:300]}")
    return Disassembled(_MATRIX.findall(done.stdout))


def expected_opcodes(kernel: InstructionKernel) -> Disassembled:
    """What the lowering row says of the opcodes that multiply matrices."""
    found = Disassembled()
    for text in lower(kernel.instruction, kernel.arch).machine:
        match = _EXPECTED.match(text)
        if match is not None:
            found[match["opcode"]] += int(match["count"] or 1)
    return found


def _is(found: str, wanted: str) -> bool:
    """Whether an opcode is the one that a row names; a row may leave out the types at its end."""
    return found == wanted or found.startswith(f"{wanted}.")


def unexpected(kernel: InstructionKernel, opcodes: Counter[str]) -> tuple[str, ...]:
    """What is wrong with the opcodes of a kernel, as text: missing ones, others, other counts. Empty where they are as the row says.

    The loop over a chain is not unrolled for counting: only a kernel with `chain` 1 is held to the counts.
    """
    wanted = expected_opcodes(kernel)
    found = {name: sum(count for opcode, count in opcodes.items() if _is(opcode, name)) for name in wanted}
    wrong = [f"{name} is missing" for name, count in found.items() if not count]
    if kernel.chain == 1:
        wrong += [f"{name} occurs {count} times, not {wanted[name]}" for name, count in found.items() if count not in (0, wanted[name])]
    return (*wrong, *(f"{opcode} is not expected" for opcode in sorted(opcodes) if not any(_is(opcode, name) for name in wanted)))
