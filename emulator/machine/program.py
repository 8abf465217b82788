"""A kernel's instructions cut into segments, and which registers live from one to the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from mmabits.emulator.machine.ptx import Address, Entry, Immediate, Operand, PtxError, PtxInstruction, Register, Symbol, registers_of

_NO_RESULT = (
    "st", "bra", "brx", "bar", "barrier", "ret", "exit", "trap", "red", "membar", "fence", "cp", "stmatrix", "nanosleep", "prefetch",
    "prefetchu", "discard", "griddepcontrol", "setmaxnreg", "brkpt", "pmevent", "call",
)  # fmt: skip
"""Base opcodes whose first operand is read like the others."""
_ENDS = ("bra", "brx", "ret", "exit", "trap")
CARRY: Final = Register("%cc", 1)
"""The carry of `add.cc` and its like, which no operand names."""
_TAKES_CARRY = ("addc", "subc", "madc")
_WAITS = ("bar", "barrier", "mbarrier.try_wait", "wgmma.wait_group")
"""What a warp may stop at, to come back to it."""
_LOOKS = ("atom", "mbarrier.test_wait", "nanosleep")
"""What looks at memory that others change: loads do where they say so."""
_LOOKING = (".volatile", ".acquire", ".relaxed", ".mmio")


_MEETS = ("shfl.sync", "vote.sync", "match.", "redux.sync", "elect.sync", "bar.warp.sync", "mma.sync", "ldmatrix.sync", "stmatrix.sync")
"""What the lanes of a warp do together."""


def base_of(opcode: str) -> str:
    """The first word of an opcode."""
    return opcode.partition(".")[0]


def waits(opcode: str) -> bool:
    """Whether a warp may stop before this instruction and come back to it."""
    return opcode.startswith(_WAITS)


def meets(opcode: str) -> bool:
    """Whether lanes of a warp do this together."""
    return opcode.startswith(_MEETS)


def looks(opcode: str) -> bool:
    """Whether a loop with this instruction may wait for what others write."""
    return opcode.startswith(_LOOKS) or (base_of(opcode) == "ld" and any(word in opcode for word in _LOOKING))


def results_of(instruction: PtxInstruction) -> tuple[Operand, ...]:
    """Operands that are written."""
    if instruction.opcode.startswith("tcgen05.") and not instruction.opcode.startswith("tcgen05.ld."):
        return ()
    if base_of(instruction.opcode) in ("bar", "barrier") and ".red." in instruction.opcode:
        return instruction.operands[:1]
    if base_of(instruction.opcode) in _NO_RESULT or not instruction.operands or isinstance(instruction.operands[0], Address):
        return ()
    return instruction.operands[:1]


def written(instruction: PtxInstruction) -> Iterator[Register]:
    """Registers that an instruction writes."""
    for operand in results_of(instruction):
        yield from registers_of(operand)
    if ".cc." in instruction.opcode:
        yield CARRY


def read(instruction: PtxInstruction) -> Iterator[Register]:
    """Registers that an instruction reads; under a guard also what it may leave as it was."""
    for operand in instruction.operands[len(results_of(instruction)) :]:
        yield from registers_of(operand)
    if base_of(instruction.opcode) in _TAKES_CARRY:
        yield CARRY
    if instruction.guard is not None:
        yield instruction.guard._replace(negated=False)
    if instruction.guard is not None or instruction.opcode.startswith("wgmma.mma_async"):  # which adds to what it writes
        yield from written(instruction)


@dataclass(frozen=True)
class Segment:
    """Instructions that run one after another, in one go."""

    first: int
    last: int
    """One past the last instruction."""
    targets: tuple[int, ...]
    """Segments that may follow."""


@dataclass(frozen=True, eq=False)
class Program:
    """The control flow of a kernel."""

    entry: Entry
    segments: tuple[Segment, ...]
    live_in: tuple[frozenset[Register], ...]
    """Registers that a segment may read before it writes them, or that a later one may."""
    live_out: tuple[frozenset[Register], ...]
    gathers: bool = False
    """Whether lanes of a parted warp wait for each other at whatever they do together."""

    def segment_of(self, label: str) -> int:
        """The segment that begins at a label."""
        return self._starts[self.entry.labels[label]]

    @cached_property
    def _starts(self) -> dict[int, int]:
        return {segment.first: place for place, segment in enumerate(self.segments)}

    @cached_property
    def readers(self) -> Counter[Register]:
        """How many instructions read a register."""
        return Counter(register for each in self.entry.instructions for register in {*read(each)})

    @cached_property
    def spins(self) -> frozenset[int]:
        """Segments that end a loop which looks at memory that others may change."""
        looking = [any(looks(each.opcode) for each in self.entry.instructions[one.first : one.last]) for one in self.segments]
        return frozenset(
            place
            for place, segment in enumerate(self.segments)
            if any(target <= place and any(looking[target : place + 1]) for target in segment.targets)
        )

    @cached_property
    def doomed(self) -> tuple[int, ...]:
        """Segments from which every way leads to a trap."""
        instructions = self.entry.instructions
        found: set[int] = set()
        more = True
        while more:
            before = len(found)
            for place, segment in enumerate(self.segments):
                last = instructions[segment.last - 1]
                traps = base_of(last.opcode) == "trap" and last.guard is None
                if traps or (segment.targets and found.issuperset(segment.targets)):
                    found.add(place)
            more = len(found) != before
        return tuple(sorted(found))

    @cached_property
    def meetings(self) -> frozenset[int]:
        """Instructions at which lanes of a parted warp wait for each other: where loops give up the turn, some may come before others.

        So they may where one lane waits for an mbarrier: in front of products of a warpgroup all come together again.
        """
        instructions = self.entry.instructions
        names = _MEETS if self.spins or self.gathers else ()
        if any(each.opcode.startswith("mbarrier.try_wait") for each in instructions):
            names = (*names, "wgmma.fence")
        return frozenset(place for place, each in enumerate(instructions) if each.opcode.startswith(names))

    @cached_property
    def constants(self) -> dict[Operand, int]:
        """Registers that one `mov` of a number writes, and nothing else."""
        found: dict[Operand, int] = {}
        several: set[Operand] = set()
        for instruction in self.entry.instructions:
            for register in written(instruction):
                if register in found or register in several:
                    several.add(register)
                    found.pop(register, None)
                    continue
                source = instruction.operands[1] if base_of(instruction.opcode) == "mov" and instruction.guard is None else None
                if isinstance(source, Immediate):
                    found[register] = source.number
                else:
                    several.add(register)
        return found

    @cached_property
    def cleared(self) -> frozenset[Register]:
        """Registers kept across segments that may be read where they were never written: all where lanes read those of others."""
        if any(each.opcode.startswith("shfl") for each in self.entry.instructions):
            return frozenset(self._kept)
        return self.live_in[0] if self.live_in else frozenset()

    @cached_property
    def kept(self) -> tuple[Register, ...]:
        """Registers that live across segments, and accumulators of wgmma: those that are cleared first, the widest first."""
        return tuple(sorted(self._kept, key=lambda each: (each not in self.cleared, -each.bits, each.name)))

    @cached_property
    def _kept(self) -> set[Register]:
        names = set().union(*self.live_in) if self.live_in else set()
        for instruction in self.entry.instructions:
            if instruction.opcode.startswith("wgmma.mma_async"):
                names.update(written(instruction))
        return names


def program(entry: Entry, stops: frozenset[int] = frozenset(), *, gathers: bool = False) -> Program:
    """The control flow of a kernel.

    Args:
        entry: the kernel.
        stops: instructions that begin a segment besides those that must.
        gathers: see Program.

    Raises:
        PtxError: a branch to nowhere.
    """
    segments = _segments(entry, stops)
    live_in, live_out = _lives(entry.instructions, segments)
    return Program(entry, tuple(segments), live_in, live_out, gathers)


def _segments(entry: Entry, stops: frozenset[int]) -> list[Segment]:
    instructions = entry.instructions
    count = len(instructions)
    leaders = {0} | stops | {place for place in entry.labels.values() if place < count}
    for place, instruction in enumerate(instructions):
        base = base_of(instruction.opcode)
        if waits(instruction.opcode):
            leaders.add(place)
        if base in _ENDS or base in ("bar", "barrier"):
            leaders.add(place + 1)
    starts = sorted(place for place in leaders if place < count)
    number = {start: place for place, start in enumerate(starts)}
    segments = []
    for place, start in enumerate(starts):
        end = starts[place + 1] if place + 1 < len(starts) else count
        segments.append(Segment(start, end, tuple(_targets(entry, instructions[end - 1], place, len(starts), number))))
    return segments


def _targets(entry: Entry, last: PtxInstruction, place: int, count: int, number: dict[int, int]) -> Iterator[int]:
    base = base_of(last.opcode)
    if base == "bra":
        yield number[_label(entry, last, last.operands[0] if last.operands else None)]
    elif base == "brx":
        for label in _table(entry, last):
            yield number[_label(entry, last, Symbol(label))]
    if (base not in _ENDS or (last.guard is not None and base != "brx")) and place + 1 < count:
        yield place + 1


def _table(entry: Entry, instruction: PtxInstruction) -> tuple[str, ...]:
    """Labels of an indirect branch."""
    name = instruction.operands[1] if len(instruction.operands) == 2 else None
    found = entry.tables.get(name.name, ()) if isinstance(name, Symbol) else ()
    if not found:
        raise PtxError(f"{entry.name}: no table of targets in {instruction}")
    return found


def _label(entry: Entry, instruction: PtxInstruction, operand: Operand | None) -> int:
    found = entry.labels.get(operand.name) if isinstance(operand, Symbol) else None
    if found is None or found >= len(entry.instructions):
        raise PtxError(f"{entry.name}: no place to branch to in {instruction}")
    return found


def _lives(
    instructions: list[PtxInstruction], segments: list[Segment]
) -> tuple[tuple[frozenset[Register], ...], tuple[frozenset[Register], ...]]:
    uses, defines = [], []
    for segment in segments:
        used: set[Register] = set()
        defined: set[Register] = set()
        for instruction in instructions[segment.first : segment.last]:
            used.update(each for each in read(instruction) if each not in defined)
            if instruction.guard is None:
                defined.update(written(instruction))
        uses.append(used)
        defines.append(defined)
    live_in: list[set[Register]] = [set() for _ in segments]
    changed = True
    while changed:
        changed = False
        for place in reversed(range(len(segments))):
            after = set().union(*(live_in[target] for target in segments[place].targets))
            before = uses[place] | (after - defines[place])
            if before != live_in[place]:
                live_in[place] = before
                changed = True
    live_out = [set().union(*(live_in[target] for target in segment.targets)) for segment in segments]
    return tuple(map(frozenset, live_in)), tuple(map(frozenset, live_out))
