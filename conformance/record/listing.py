"""The list of kernels: what each instruction compiles to, without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mmabits.conformance.record.disassembly import Disassembled, disassembler, matrix_opcodes, unexpected
from mmabits.conformance.record.kernels import InstructionKernel
from mmabits.conformance.record.nvrtc import CompiledProgram, CompilerRefused, compile_source, compiler_version
from mmabits.conformance.record.session import TARGETS
from mmabits.isa import architecture
from mmabits.isa.instructions import Instruction


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """One kernel."""

    instruction: Instruction
    arch: str
    cubin_bytes: int | None
    """None: the compiler refused it."""
    opcodes: str
    """Machine instructions that multiply matrices; empty without a disassembler."""
    problems: tuple[str, ...]
    """A refusal, missing or unexpected machine instructions."""


@lru_cache(maxsize=1024)
def _opcodes(cubin: bytes) -> Disassembled:
    return matrix_opcodes(cubin)


def kernel_row(instruction: Instruction, arch: str, *, disassemble: bool | None = None) -> KernelRow:
    """Compile one kernel and, where there is a disassembler, look at what is in it.

    Args:
        instruction: the instruction.
        arch: architecture.
        disassemble: whether to; None: if there is a disassembler.

    Raises:
        DeviceUnavailable: NVRTC is not installed; with `disassemble`, or the disassembler is not.
    """
    kernel = InstructionKernel(instruction=instruction, arch=architecture(arch).name)
    try:
        program: CompiledProgram = compile_source(kernel.source, kernel.arch)
    except CompilerRefused as error:
        return KernelRow(instruction=instruction, arch=kernel.arch, cubin_bytes=None, opcodes="", problems=(str(error),))
    if not (disassembler() is not None if disassemble is None else disassemble):
        return KernelRow(instruction=instruction, arch=kernel.arch, cubin_bytes=len(program.cubin), opcodes="", problems=())
    found = _opcodes(program.cubin)
    return KernelRow(
        instruction=instruction, arch=arch, cubin_bytes=len(program.cubin), opcodes=str(found), problems=unexpected(kernel, found),
    )  # fmt: skip


def kernel_rows(
    instructions: Callable[[str], Iterable[Instruction]], archs: Sequence[str] = TARGETS, *, disassemble: bool | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[KernelRow]:  # fmt: skip
    """A row for each instruction of each architecture.

    Args:
        instructions: of an architecture: `representatives` or `recordable` of session.py.
        archs: architectures.
        disassemble: see `kernel_row`.
        advance: called after each.
    """
    rows = []
    for arch in archs:
        for instruction in instructions(arch):
            rows.append(kernel_row(instruction, arch, disassemble=disassemble))
            advance()
    return rows


def kernels_markdown(rows: Sequence[KernelRow]) -> str:
    """The table of docs/record-kernels.md."""
    lines = [f"NVRTC {compiler_version()}.", "", "| Target | Instruction | Cubin, bytes | Machine instructions |", "|---|---|--:|---|"]
    for row in rows:
        size = "refused" if row.cubin_bytes is None else str(row.cubin_bytes)
        wrong = "".join(f" **{problem}**" for problem in row.problems)
        lines.append(f"| {row.arch} | `{row.instruction.ptx}` | {size} | {row.opcodes}{wrong} |")
    return "\n".join(lines)
