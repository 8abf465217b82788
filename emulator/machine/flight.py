"""Where a kernel names registers that a wgmma under way reads or writes: it must be done there, as ptxas sees to it.

By the manual that is undefined. ptxas waits there, and tells that it serialises; so does the machine.
"""

from __future__ import annotations

from mmabits.emulator.machine.program import Program, read, written
from mmabits.emulator.machine.ptx import Immediate, PtxInstruction, Register, registers_of

_PRODUCT, _COMMIT, _WAIT = "wgmma.mma_async", "wgmma.commit_group", "wgmma.wait_group"
_MOST = 16
"""Groups that are told apart."""

Flight = dict[Register, int]
"""Accumulators of products under way, and how many groups were closed since, that of the product included."""


def multiplies(instruction: PtxInstruction) -> bool:
    """Whether an instruction is a product of a warpgroup."""
    return instruction.opcode.startswith(_PRODUCT)


def accumulators(instruction: PtxInstruction) -> tuple[Register, ...]:
    """Registers of C and D."""
    return tuple(registers_of(instruction.operands[0]))


def _touched(instruction: PtxInstruction) -> set[Register]:
    """Registers whose use needs the products that write them; an accumulator may go on in the next product."""
    touched = {*read(instruction), *written(instruction)}
    return touched - set(accumulators(instruction)) if multiplies(instruction) else touched


def _after(instruction: PtxInstruction, flight: Flight) -> Flight:
    if multiplies(instruction):
        return {**flight, **dict.fromkeys(accumulators(instruction), 0)}
    if instruction.opcode.startswith(_COMMIT):
        return {register: min(age + 1, _MOST) for register, age in flight.items()}
    if instruction.opcode.startswith(_WAIT):
        left = instruction.operands[0].number if isinstance(instruction.operands[0], Immediate) else 0
        return {register: age for register, age in flight.items() if age <= left}
    return flight


def early_uses(program: Program) -> frozenset[int]:
    """Instructions before which all products must be done, although no wait says so."""
    instructions = program.entry.instructions
    if not any(map(multiplies, instructions)):
        return frozenset()
    entering: list[Flight] = [{} for _ in program.segments]
    found: set[int] = set()
    again = set(range(len(program.segments)))
    while again:
        place = min(again)
        again.discard(place)
        segment, flight = program.segments[place], entering[place]
        for index in range(segment.first, segment.last):
            if any(register in flight for register in _touched(instructions[index])):
                found.add(index)
                flight = {}
            flight = _after(instructions[index], flight)
        for target in segment.targets:
            known = entering[target]
            joined = {**known, **{each: min(age, known.get(each, age)) for each, age in flight.items()}}
            if joined != known:
                entering[target] = joined
                again.add(target)
    return frozenset(found)
