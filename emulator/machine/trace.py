"""What a traced kernel writes down as it runs: after each instruction the lanes that ran it and the registers that it wrote.

A traced kernel computes the same bits, more slowly. Products that are put off are carried out where they stand; what wgmma writes is
noted by the waits for it. research/follow.py reads the notes backwards.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mmabits.emulator.machine.program import written
from mmabits.emulator.machine.ptx import PtxInstruction, Register
from mmabits.emulator.machine.vectors import LANES

HEADER: Final = 32
"""Bytes before the registers: number of the instruction, address of the warp's context, lanes, number of the CTA."""
ROOM: Final = 1 << 30
"""Bytes that the notes of CTAs which run together may take."""


class Noted(NamedTuple):
    """Where a register's value lies in a note."""

    register: Register
    unit: int
    """Bytes of a lane."""
    offset: int


def accumulators(instructions: Iterable[PtxInstruction]) -> tuple[Register, ...]:
    """Registers that wgmma writes."""
    found = (register for each in instructions if each.opcode.startswith("wgmma.mma_async") for register in written(each))
    return tuple(dict.fromkeys(found))


def noted(instruction: PtxInstruction, late: Sequence[Register]) -> tuple[tuple[Noted, ...], int]:
    """What an instruction's note holds, and its size.

    Args:
        instruction: a wait for wgmma notes all accumulators.
        late: the kernel's accumulators.
    """
    found, at = [], HEADER
    is_late = instruction.opcode.startswith("wgmma.")
    waits = instruction.opcode.startswith("wgmma.wait_group")
    for register in late if waits else () if is_late else dict.fromkeys(written(instruction)):
        unit = max(8, register.bits) // 8
        found.append(Noted(register._replace(negated=False), unit, at))
        at += LANES * unit
    return tuple(found), at


class Traced(NamedTuple):
    """An instruction that a warp carried out."""

    at: int
    """Place of the note."""
    instruction: int
    warp: int
    """Address of the warp's context: a name for it."""
    lanes: int
    cta: int


@dataclass(eq=False)
class Log:
    """The notes of CTAs that ran together, in the order in which it happened."""

    instructions: list[PtxInstruction]
    notes: npt.NDArray[np.uint8]
    events: list[Traced] = field(init=False)

    def __post_init__(self) -> None:
        late = accumulators(self.instructions)
        layouts = [noted(each, late) for each in self.instructions]
        self._layouts = layouts
        words = self.notes.view(np.int64)
        events, at, end = [], 0, len(words)
        while at < end:
            instruction, warp, lanes, cta = words[at : at + 4].tolist()
            events.append(Traced(8 * at, instruction, warp, lanes, cta))
            at += layouts[instruction][1] // 8
        self.events = events

    def __len__(self) -> int:
        return len(self.events)

    def instruction(self, event: int) -> PtxInstruction:
        """What was carried out."""
        return self.instructions[self.events[event].instruction]

    def value(self, event: int, register: Register) -> npt.NDArray[np.unsignedinteger]:
        """A register of all lanes after an event that wrote it."""
        found = self.events[event]
        place = next(each for each in self._layouts[found.instruction][0] if each.register == register)
        return np.frombuffer(self.notes, f"<u{place.unit}", LANES, found.at + place.offset)

    @cached_property
    def _writers(self) -> dict[tuple[int, Register], list[int]]:
        table: dict[tuple[int, Register], list[int]] = {}
        for number, event in enumerate(self.events):
            for place in self._layouts[event.instruction][0]:
                table.setdefault((event.warp, place.register), []).append(number)
        return table

    def writer(self, warp: int, register: Register, lane: int, before: int) -> int | None:
        """The last event before another in which a lane wrote a register."""
        numbers = self._writers.get((warp, register._replace(negated=False)), [])
        for place in reversed(range(bisect_left(numbers, before))):
            if self.events[numbers[place]].lanes >> lane & 1:
                return numbers[place]
        return None

    def backwards(self, before: int) -> Iterator[int]:
        """Events before another, the last first."""
        return iter(range(before - 1, -1, -1))
