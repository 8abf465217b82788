"""What ptxas contracts: products whose every use is a sum become fused multiply-adds.

The rule was found by disassembling what ptxas 12.8 to 13.x makes of such sequences on sm_80, sm_90a and sm_100a; it predicts the number
of FFMA in the machine code of every kernel that could be compared. Nothing with a rounding of its own (`.rn`) takes part.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Final

import numpy as np

from mmabits.emulator.machine.program import Dominators, written
from mmabits.emulator.machine.ptx import Entry, Negative, PtxInstruction, Register, registers_of
from mmabits.isa.opcodes import opcode_table

_SUMS: Final = ("add", "sub")


def _is_fusible(instruction: PtxInstruction, bases: tuple[str, ...]) -> bool:
    row = opcode_table().get(instruction.opcode)
    return row is not None and row.fusible and row.base in bases and instruction.guard is None and row.parts[-2:-1] != ("f32",)


def _rest(opcode: str) -> str:
    """All but the base: type and `.ftz`."""
    return opcode.partition(".")[2]


def contracted(entry: Entry) -> tuple[Entry, int]:
    """A kernel as ptxas contracts it by default, and how many sums became fused multiply-adds."""
    defined: dict[Register, list[int]] = defaultdict(list)
    used: dict[Register, list[int]] = defaultdict(list)
    for place, instruction in enumerate(entry.instructions):
        targets = set(written(instruction))
        for register in targets:
            defined[register].append(place)
        for operand in instruction.operands[1 if targets else 0 :]:
            for register in registers_of(operand):
                used[register].append(place)
        if instruction.guard is not None:
            used[instruction.guard._replace(negated=False)].append(place)
            for register in targets:
                used[register].append(place)
    dominators = Dominators(entry)
    once = {register for register, places in defined.items() if len(places) == 1}

    def product_of(operand: object, rest: str) -> int | None:
        """The place of the product that a register holds, if it may be fused."""
        if not isinstance(operand, Register) or operand not in once:
            return None
        (place,) = defined[operand]
        made = entry.instructions[place]
        if not _is_fusible(made, ("mul",)) or _rest(made.opcode) != rest:
            return None
        if any(isinstance(each, Register) and len(defined[each]) > 1 for each in made.operands[1:]):
            return None
        sums = [entry.instructions[use] for use in used[operand]]
        if all(_is_fusible(each, _SUMS) and _rest(each.opcode) == rest for each in sums) and is_settled(place, used[operand]):
            return place
        return None

    def is_settled(place: int, uses: list[int]) -> bool:
        """Whether a product, with its factors, is made before every use of it: not by the loop's last round."""
        factors = [defined[each][0] for each in made_of(place) if defined[each]]
        return all(dominators.passes(each, place) for each in factors) and all(dominators.passes(place, use) for use in uses)

    def made_of(place: int) -> list[Register]:
        return [each for operand in entry.instructions[place].operands[1:] for each in registers_of(operand)]

    instructions = list(entry.instructions)
    fused: dict[Register, set[int]] = defaultdict(set)
    count = 0
    for place, instruction in enumerate(entry.instructions):
        if not _is_fusible(instruction, _SUMS):
            continue
        target, first, second = instruction.operands
        rest = _rest(instruction.opcode)
        left = product_of(first, rest)
        at = left if left is not None else product_of(second, rest)
        if at is None:
            continue
        a, b = entry.instructions[at].operands[1:]
        is_left = left is not None
        other, taken = (second, first) if is_left else (first, second)
        minus = instruction.opcode.startswith("sub")
        if minus and is_left:
            other = Negative(other)
        elif minus:
            a = Negative(a)
        instructions[place] = replace(instruction, opcode=f"fma.rn.{rest}", operands=(target, a, b, other))
        assert isinstance(taken, Register)
        fused[taken].add(place)
        count += 1
    gone = {defined[register][0] for register, places in fused.items() if places == set(used[register])}
    kept = [each for place, each in enumerate(instructions) if place not in gone]
    before = np.concatenate([[0], np.cumsum([place in gone for place in range(len(instructions))])])
    labels = {name: place - int(before[place]) for name, place in entry.labels.items()}
    found = Entry(
        entry.name, entry.is_kernel, entry.parameters, entry.returns, entry.attributes, kept, labels, entry.tables, entry.variables
    )
    return found, count
