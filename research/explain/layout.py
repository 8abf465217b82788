"""Where the bits of a step lie: columns from the highest weight to the lowest, shared by the terminal and the picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mmabits.research.trace import Step, Term

BELOW: Final = 14
"""Columns drawn below the last place kept; what lies lower is only counted."""
WIDEST: Final = 192
"""Columns drawn at most: f64 keeps every place of an exact sum, which may span thousands."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """The columns of one step."""

    top: int
    """Exponent of the leftmost column."""
    largest: int
    """The largest exponent: where alignment is measured from."""
    last_place: int
    """Exponent of the last place that is kept; below `bottom` where not all of them are drawn."""
    bottom: int
    """Exponent of the rightmost column."""

    @property
    def columns(self) -> int:
        """How many there are."""
        return self.top - self.bottom + 1

    def column(self, exponent: int) -> int:
        """The column of a weight, 0 the leftmost."""
        return self.top - exponent


def window(step: Step) -> Window:
    """The columns that show every kept bit of a step, and what lies just below them."""
    heights = [abs(term.significand).bit_length() - 1 + term.lsb for term in step.terms if term.significand]
    total = abs(step.total).bit_length() - 1 + step.last_place if step.total else step.largest
    top = max([step.largest, total, *heights])
    lowest = min((lowest_bit(term.significand, term.lsb) for term in step.terms if term.significand), default=step.last_place)
    bottom = max(min(lowest, step.last_place), step.last_place - BELOW, top - WIDEST + 1)
    return Window(top=top, largest=step.largest, last_place=step.last_place, bottom=bottom)


def lowest_bit(significand: int, lsb: int) -> int:
    """Exponent of the lowest bit that is 1."""
    magnitude = abs(significand)
    return (magnitude & -magnitude).bit_length() - 1 + lsb


def bits(significand: int, lsb: int, shown: Window) -> Iterator[tuple[int, int]]:
    """(exponent, 0 or 1) of each bit of a significand from its highest to its lowest 1, as far as the window reaches."""
    magnitude = abs(significand)
    if not magnitude:
        return
    high, low = magnitude.bit_length() - 1 + lsb, lowest_bit(significand, lsb)
    for exponent in range(high, max(low, shown.bottom) - 1, -1):
        yield exponent, magnitude >> (exponent - lsb) & 1


def hidden(term: Term, shown: Window) -> int:
    """How many places a term reaches below the window."""
    return max(0, shown.bottom - lowest_bit(term.significand, term.lsb)) if term.significand else 0
