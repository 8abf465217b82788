"""The products of a session as a table shows them: those that differ in one length alone are one row, the largest are kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mmabits.isa import Evidence

if TYPE_CHECKING:
    from mmabits.emulator.hooks.session import Emulated

MOST: Final = 60
"""Rows that a table shows."""
_FROM: Final = 3
"""So many lengths make a range."""


@dataclass(frozen=True, kw_only=True)
class ProductRow:
    """Products of one site and instruction."""

    site: str
    instruction: str
    shape: str
    """`M x N x K`; one of them may be a range, `16..31`."""
    count: int
    multiply_adds: int
    evidence: str
    note: str


def rows(lines: Iterable[Emulated]) -> list[ProductRow]:
    """Rows in order of first appearance; a growing cache, which makes a shape for every token, is one of them."""
    groups: dict[tuple[str, str, str], list[Emulated]] = defaultdict(list)
    for line in lines:
        groups[line.site, line.instruction.ptx, str(line.evidence)].append(line)
    found = []
    for (site, instruction, evidence), members in groups.items():
        for shape, part in _ranges(members):
            note = _note(part)
            count, size = sum(line.count for line in part), sum(line.multiply_adds for line in part)
            found.append(
                ProductRow(site=site, instruction=instruction, shape=shape, count=count, multiply_adds=size, evidence=evidence, note=note)
            )
    return found


def _note(part: Sequence[Emulated]) -> str:
    notes = list(dict.fromkeys(line.note for line in part))
    return notes[0] if len(notes) == 1 else f"{notes[0]}; other shapes have {len(notes) - 1} other notes (report.emulated)"


def _ranges(members: Sequence[Emulated]) -> list[tuple[str, list[Emulated]]]:
    """Shapes, and the products of each: those that agree in two lengths and have at least `_FROM` of the third are together."""
    left = list(members)
    found: list[tuple[str, list[Emulated]]] = []
    for free in (2, 1, 0):
        groups: dict[tuple[int, ...], list[Emulated]] = defaultdict(list)
        for line in left:
            lengths = [line.m, line.n, line.k]
            del lengths[free]
            groups[tuple(lengths)].append(line)
        for fixed, part in groups.items():
            lengths = sorted({(line.m, line.n, line.k)[free] for line in part})
            if len(lengths) >= _FROM:
                words = list(map(str, fixed))
                words.insert(free, f"{lengths[0]}..{lengths[-1]}")
                found.append((" x ".join(words), part))
                left = [line for line in left if line not in part]
    return found + [(line.shape, [line]) for line in left]


def largest(found: Sequence[ProductRow], most: int = MOST) -> tuple[list[ProductRow], str]:
    """Those rows that multiply most, in the order that they have, and a line on the others; all where there are no more."""
    if len(found) <= most:
        return list(found), ""
    kept = set(sorted(range(len(found)), key=lambda place: -found[place].multiply_adds)[:most])
    others = [row for place, row in enumerate(found) if place not in kept]
    total = sum(row.multiply_adds for row in found)
    part = sum(row.multiply_adds for row in others) / total if total else 0
    return [row for place, row in enumerate(found) if place in kept], f"{len(others)} rows more with {100 * part:.2g}% of the multiply-adds"


def by_evidence(lines: Iterable[Emulated]) -> Mapping[str, float]:
    """The part of the multiply-adds that rests on each level of evidence, the best known first."""
    totals: dict[Evidence, int] = defaultdict(int)
    for line in lines:
        totals[line.evidence] += line.multiply_adds
    whole = sum(totals.values())
    return {str(level): totals[level] / whole for level in sorted(totals, reverse=True)} if whole else {}
