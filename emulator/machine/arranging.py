"""Blocks of a kernel in an order in which lanes that part meet again: what leads to a block stands before it, loops in one piece.

A parted warp runs the lanes that are furthest behind first. Compilers put rare code at the end of a kernel, from where it branches back:
lanes in it would be ahead of those that they must meet. Kernels that have no such branch stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from mmabits.emulator.machine.program import base_of
from mmabits.emulator.machine.ptx import Entry, PtxInstruction, Symbol

_LEAVES = ("ret", "exit", "trap")


def arranged(entry: Entry) -> Entry:
    """The same kernel, its blocks in another order where that is needed."""
    blocks = _BasicBlocks(entry)
    if blocks.backward <= blocks.loops or not blocks.is_reducible:
        return entry
    return blocks.written(blocks.order())


class _BasicBlocks:
    """Blocks, what follows each, and which branches close loops."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        instructions, count = entry.instructions, len(entry.instructions)
        leaders = {0} | {place for place in entry.labels.values() if place < count}
        leaders |= {place + 1 for place, each in enumerate(instructions) if base_of(each.opcode) in ("bra", "brx", *_LEAVES)}
        starts = sorted(place for place in leaders if place < count)
        self.spans = [(first, last) for first, last in zip(starts, [*starts[1:], count], strict=True)]
        self.number = {first: place for place, first in enumerate(starts)}
        self.falls: list[int | None] = []
        self.following: list[tuple[int, ...]] = []
        for place, (_, last) in enumerate(self.spans):
            targets = self._targets(instructions[last - 1])
            is_end = base_of(instructions[last - 1].opcode) in ("bra", "brx", *_LEAVES) and instructions[last - 1].guard is None
            fall = None if is_end or place + 1 == len(self.spans) else place + 1
            self.falls.append(fall)
            self.following.append(tuple(dict.fromkeys([*targets, *([fall] if fall is not None else [])])))
        self.dominators = self._dominators()
        edges = [(one, other) for one, targets in enumerate(self.following) for other in targets if one in self.dominators]
        self.backward = {(one, other) for one, other in edges if other <= one}
        """Branches back in the text,"""
        self.loops = {(one, other) for one, other in edges if other in self.dominators[one]}
        """and those that close a loop."""
        self.edges = edges

    def _targets(self, last: PtxInstruction) -> list[int]:
        base, entry = base_of(last.opcode), self.entry
        names: Iterable[str] = ()
        if base == "bra":
            names = [each.name for each in last.operands if isinstance(each, Symbol)]
        elif base == "brx":
            names = [name for each in last.operands if isinstance(each, Symbol) for name in entry.tables.get(each.name, ())]
        places = [entry.labels.get(name, -1) for name in names]
        return [self.number[place] for place in places if place in self.number]

    def _dominators(self) -> dict[int, frozenset[int]]:
        """Of every block that can be reached, those that every way to it goes through."""
        reached = [0]
        for place in reached:
            reached += [each for each in dict.fromkeys(self.following[place]) if each not in reached]
        before: dict[int, list[int]] = {place: [] for place in reached}
        for place in reached:
            for each in self.following[place]:
                before[each].append(place)
        everything = frozenset(reached)
        found = dict.fromkeys(reached, everything) | {0: frozenset([0])}
        changed = True
        while changed:
            changed = False
            for place in reached[1:]:
                now = frozenset.intersection(*(found[each] for each in before[place])) | {place}
                if now != found[place]:
                    found[place], changed = now, True
        return found

    @property
    def is_reducible(self) -> bool:
        """Whether there is an order in which only loops go back."""
        return len(self.order()) == len(self.dominators)

    def order(self) -> list[int]:
        """Blocks in an order in which only loops go back: inner loops are finished first, else as in the text."""
        members = self._members()
        waits: dict[int, int] = dict.fromkeys(self.dominators, 0)
        for edge in self.edges:
            if edge not in self.loops:
                waits[edge[1]] += 1
        ready = [0]
        found: list[int] = []
        while ready:
            inside = [loop for loop in members if found and found[-1] in loop]
            place = max(ready, key=lambda each: (sum(each in loop for loop in inside), -each))
            ready.remove(place)
            found.append(place)
            for each in self.following[place]:
                if (place, each) not in self.loops:
                    waits[each] -= 1
                    if waits[each] == 0:
                        ready.append(each)
        return found

    def _members(self) -> list[frozenset[int]]:
        """The blocks of each loop."""
        before: dict[int, list[int]] = {}
        for one, other in self.edges:
            before.setdefault(other, []).append(one)
        loops: dict[int, set[int]] = {}
        for last, head in self.loops:
            inside = loops.setdefault(head, {head})
            rest = [last]
            while rest:
                place = rest.pop()
                if place not in inside:
                    inside.add(place)
                    rest += before.get(place, [])
        return [frozenset(each) for each in loops.values()]

    def written(self, order: Sequence[int]) -> Entry:
        """The kernel with its blocks in this order; what can never be reached stands behind."""
        entry = self.entry
        order = [*order, *(place for place in range(len(self.spans)) if place not in self.dominators)]
        names = {place: name for name, place in entry.labels.items()}
        instructions: list[PtxInstruction] = []
        starts: dict[int, int] = {}
        more: dict[str, int] = {}
        for position, place in enumerate(order):
            first, last = self.spans[place]
            starts[first] = len(instructions)
            instructions += entry.instructions[first:last]
            fall = self.falls[place]
            if fall is not None and (position + 1 == len(order) or order[position + 1] != fall):
                target = self.spans[fall][0]
                name = names.get(target)
                if name is None:
                    name = names[target] = f"@@block{fall}"
                    more[name] = target
                instructions.append(replace(instructions[-1], opcode="bra", operands=(Symbol(name),), guard=None))
        labels = {name: starts.get(place, len(instructions)) for name, place in (*entry.labels.items(), *more.items())}
        return replace(entry, instructions=instructions, labels=labels)
