"""Registers that asynchronous instructions use without the fence or the wait that the PTX manual asks for, by the text of a kernel."""

from __future__ import annotations

from collections.abc import Callable

from mmabits.emulator.machine.program import Program, read, written
from mmabits.emulator.machine.ptx import PtxInstruction, Register, registers_of

_START = Register("", 0)
"""Stands for the beginning of the kernel, before any fence."""
Pending = dict[Register, int]
"""Registers, and the instruction that wrote each."""
Found = tuple[int, int, Register | None]
"""An instruction, the one before, and the register between them."""


def _solve(
    program: Program, start: Pending, step: Callable[[int, PtxInstruction, Pending], tuple[Pending, Register | None]]
) -> list[Found]:
    """What an analysis finds on any way through a program."""
    entering: list[Pending | None] = [None for _ in program.segments]
    entering[0] = start
    found: dict[int, Found] = {}
    again = {0}
    while again:
        place = min(again)
        again.discard(place)
        segment, pending = program.segments[place], dict(entering[place] or {})
        for index in range(segment.first, segment.last):
            before = pending
            pending, register = step(index, program.entry.instructions[index], pending)
            if register is not None:
                found[index] = index, before[register], None if register == _START else register
        for target in segment.targets:
            known = entering[target]
            joined = {**pending, **(known or {})}
            if known is None or joined.keys() != known.keys():
                entering[target] = joined
                again.add(target)
    return [found[index] for index in sorted(found)]


def waits_behind(program: Program, index: int, opcode: str) -> bool:
    """Whether every way on from an instruction comes to one of an opcode.

    Compilers move what reads a register to before the wait for it, and ptxas waits where it is read.
    """
    instructions = program.entry.instructions
    first = next(place for place, each in enumerate(program.segments) if each.first <= index < each.last)
    seen, ways = {first}, [(first, index)]
    while ways:
        place, start = ways.pop()
        segment = program.segments[place]
        if any(instructions[each].opcode.startswith(opcode) for each in range(start, segment.last)):
            continue
        if not segment.targets:
            return False
        ways += [(target, program.segments[target].first) for target in segment.targets if target not in seen]
        seen.update(segment.targets)
    return True


def missing_fences(program: Program) -> list[Found]:
    """Products of wgmma whose registers were written since the last wgmma.fence; the first of a kernel needs one in any case."""
    instructions = program.entry.instructions
    if not program.segments or not any(each.opcode.startswith("wgmma.mma_async") for each in instructions):
        return []
    used = {
        register for each in instructions if each.opcode.startswith("wgmma.mma_async")
        for operand in each.operands[:2] for register in registers_of(operand)
    }  # fmt: skip

    def step(index: int, instruction: PtxInstruction, pending: Pending) -> tuple[Pending, Register | None]:
        if instruction.opcode.startswith("wgmma.fence"):
            return {}, None
        if instruction.opcode.startswith("wgmma.mma_async"):
            named = [register for operand in instruction.operands[:2] for register in registers_of(operand)]
            is_descriptor = not hasattr(instruction.operands[1], "items")
            taken = [each for each in named if not (is_descriptor and each in {*registers_of(instruction.operands[1])})]
            return pending, next((each for each in (_START, *taken) if each in pending), None)
        more = {each: index for each in written(instruction) if each in used}
        return ({**pending, **more} if more else pending), None

    return _solve(program, {_START: -1}, step)


def unawaited_loads(program: Program) -> list[Found]:
    """Instructions that name a register which tcgen05.ld may still write."""
    if not program.segments or not any(each.opcode.startswith("tcgen05.ld") for each in program.entry.instructions):
        return []

    def step(index: int, instruction: PtxInstruction, pending: Pending) -> tuple[Pending, Register | None]:
        if instruction.opcode.startswith("tcgen05.wait::ld"):
            return {}, None
        names = {*read(instruction), *written(instruction)} if pending else set()
        bad = next((each for each in pending if each in names), None)
        if instruction.opcode.startswith("tcgen05.ld"):
            pending = {**pending, **dict.fromkeys(written(instruction), index)}
        return pending, bad

    return [each for each in _solve(program, {}, step) if not waits_behind(program, each[0], "tcgen05.wait::ld")]
