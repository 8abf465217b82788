"""`mmabits.describe_kernel`: what became of a kernel when it was compiled, by its PTX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mmabits.emulator.machine.kernel import Kernel
from mmabits.emulator.machine.ptx import Immediate, Module, PtxInstruction
from mmabits.emulator.machine.summary import WeakPoint, families, schedule, weak_points
from mmabits.isa import Evidence, architecture, lower, parse
from mmabits.isa.instructions import Instruction
from mmabits.isa.opcodes import family_of

_TENSOR: Final = ("mma.", "wgmma.mma_async", "tcgen05.mma")
_SPELLED: Final = ("mma.", "wgmma.mma_async")
"""Those whose opcode says which instruction it is."""
_WIDE: Final = 78
"""Characters of a source line that are shown."""


@dataclass(frozen=True, kw_only=True)
class SourceLine:
    """A line of the source, and what it became."""

    file: str
    line: int
    text: str
    """The line itself; empty where the file is not at hand."""
    families: Counter[str]
    """PTX instructions by family."""
    tensor: Counter[str]
    """Tensor-core opcodes."""

    @property
    def count(self) -> int:
        """PTX instructions."""
        return self.families.total()


@dataclass(frozen=True, kw_only=True)
class KernelDescription:
    """A compiled kernel in numbers: str() gives them as text, to_dict() for JSON."""

    name: str
    arch: str
    threads: int
    cluster: int
    """CTAs of a cluster."""
    parameters: int
    shared: int
    """Bytes of shared memory, static and dynamic."""
    local: int
    """Bytes of local memory of a thread that the PTX declares."""
    tensor_memory: int | None
    """Columns of tensor memory that it allocates; None where a register says how many."""
    registers: int
    """32-bit words of a lane that live across branches and waits; what ptxas keeps of them is its choice."""
    opcodes: Counter[str]
    tensor: tuple[tuple[Instruction, Evidence, int], ...]
    """Tensor-core instructions of the text, their evidence, and how often each stands there; 0 where a descriptor says which it is."""
    weak: tuple[WeakPoint, ...]
    fused: int | None
    """Sums that the rule for ptxas fuses with products; None where nothing is fused."""
    order: tuple[str, ...]
    lines: tuple[SourceLine, ...]

    @property
    def families(self) -> Counter[str]:
        """Instructions by family."""
        return families(self.opcodes)

    def __str__(self) -> str:
        return "\n".join(self.text())

    def text(self, *, source: bool = True) -> list[str]:
        """As lines.

        Args:
            source: with the lines of the source.
        """
        memory = [f"{self.shared} bytes shared"] + ([f"{self.local} bytes local"] if self.local else [])
        if self.tensor_memory is None or self.tensor_memory:
            memory.append("tensor memory" if self.tensor_memory is None else f"{self.tensor_memory} columns of tensor memory")
        of_cluster = f" in clusters of {self.cluster}" if self.cluster != 1 else ""
        found = [
            f"{self.name} on {self.arch}: {self.opcodes.total()} PTX instructions, {self.threads} threads{of_cluster}, "
            f"{self.parameters} parameters",
            f"  memory: {', '.join(memory)}; {self.registers} words a lane across branches and waits",
            "  mix: " + ", ".join(f"{family} {count}" for family, count in _most(self.families)),
        ]  # fmt: skip
        for row, level, count in self.tensor:
            found.append(f"  {f'{count} x ' if count else ''}{row.ptx}: {level}")
        if self.fused is None:
            found.append("  products and sums are not fused")
        else:
            found.append(f"  {self.fused or 'no'} sums that ptxas fuses with products")
        found += [f"  {each.evidence}: {each.what} ({each.reason.removeprefix(f'{each.evidence}: ')})" for each in self.weak]
        found.append(f"  order: {'; '.join(self.order)}")
        if source and self.lines:
            found.append("  source:")
            files = {each.file for each in self.lines}
            for line in self.lines:
                where = f"{Path(line.file).name}:{line.line}" if len(files) > 1 else str(line.line)
                what = ", ".join(
                    [*(f"{n} x {name}" for name, n in line.tensor.items()), *(f"{name} {n}" for name, n in _most(line.families))]
                )
                found.append(f"  {where:>6}  {line.text.strip()[:_WIDE]}")
                found.append(f"          {line.count}: {what}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name, "arch": self.arch, "threads": self.threads, "cluster": self.cluster, "parameters": self.parameters,
            "shared": self.shared, "local": self.local, "tensor_memory_columns": self.tensor_memory, "live_words": self.registers,
            "opcodes": dict(_most(self.opcodes)), "families": dict(_most(self.families)),
            "tensor": [{"ptx": row.ptx, "evidence": str(level), "count": count} for row, level, count in self.tensor],
            "weak": [{"what": each.what, "evidence": str(each.evidence), "reason": each.reason} for each in self.weak],
            "fused": self.fused, "order": list(self.order),
            "source": [
                {"file": each.file, "line": each.line, "text": each.text, "families": dict(each.families), "tensor": dict(each.tensor)}
                for each in self.lines
            ],
        }  # fmt: skip


def describe_kernel(
    ptx: str | Module,
    name: str | None = None,
    *,
    arch: str,
    shared: int = 0,
    threads: tuple[int, int, int] | None = None,
    cluster: tuple[int, ...] | None = None,
    contracts: bool = True,
) -> KernelDescription:
    """What a kernel is made of, and what its bits rest on.

    Args:
        ptx: the text of a PTX module.
        name: of the kernel; the only one if None.
        arch: architecture, or GPU: `sm_90a`, `h100`.
        shared: bytes of dynamic shared memory of a launch.
        threads: of a CTA, where the text does not say: along x, y and z.
        cluster: CTAs of a cluster, likewise.
        contracts: whether ptxas fuses products and sums; not so with `--fmad=false`.

    Raises:
        PtxError: the text is not understood; UnknownOpcode: an instruction is not emulated.
        OperandError: no such kernel, or several and no name.
    """
    target = architecture(arch).name
    return described(Kernel(ptx, name, arch=target, shared=shared, threads=threads, cluster=cluster, contracts=contracts))


def described(kernel: Kernel) -> KernelDescription:
    """The description of a kernel that was made already."""
    in_text = {parse(name): count for name, count in kernel.text_opcodes.items() if name.startswith(_SPELLED)}
    tensor = [(row, lower(row, kernel.arch).evidence, in_text.get(row, 0)) for row in kernel.matrices]
    return KernelDescription(
        name=kernel.name, arch=kernel.arch, threads=kernel.threads, cluster=kernel.cluster_size, parameters=len(kernel.entry.parameters),
        shared=kernel.memory.shared_size, local=kernel.memory.local_size, tensor_memory=_columns(kernel),
        registers=sum(max(1, each.bits // 32) for each in kernel.program.kept), opcodes=kernel.text_opcodes, tensor=tuple(tensor),
        weak=weak_points(kernel), fused=kernel.fused if kernel.contracts else None, order=schedule(kernel),
        lines=tuple(_source_lines(kernel.text_instructions)),
    )  # fmt: skip


def _most(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda each: (-each[1], each[0]))


def _columns(kernel: Kernel) -> int | None:
    """Columns of all allocations in the text."""
    total = 0
    for each in kernel.entry.instructions:
        if each.opcode.startswith("tcgen05.alloc"):
            columns = each.operands[1]
            known = columns.number if isinstance(columns, Immediate) else kernel.program.constants.get(columns)
            if known is None:
                return None
            total += known
    return total


def _source_lines(instructions: Sequence[PtxInstruction]) -> list[SourceLine]:
    mix: dict[tuple[str, int], Counter[str]] = {}
    tensor: dict[tuple[str, int], Counter[str]] = {}
    for each in instructions:
        if each.location is None:
            continue
        place = (each.location.file, each.location.line)
        mix.setdefault(place, Counter())[family_of(each.opcode)] += 1
        if each.opcode.startswith(_TENSOR):
            tensor.setdefault(place, Counter())[each.opcode] += 1
    texts: dict[str, list[str]] = {}
    for file, _ in mix:
        if file not in texts:
            texts[file] = _lines_of(Path(file))
    return [
        SourceLine(
            file=file, line=line, text=texts[file][line - 1] if 0 < line <= len(texts[file]) else "", families=mix[file, line],
            tensor=tensor.get((file, line), Counter()),
        )
        for file, line in sorted(mix)
    ]  # fmt: skip


def _lines_of(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
