"""How well a fact is known, and from what. Every datapath and every lowering carries its proofs."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from mmabits.isa.errors import OperandError, nearest


class Evidence(enum.IntEnum):
    """Levels, weakest first, so that `min` of several is what may be claimed."""

    INFERRED = 1
    """Carried over from a neighbouring unit; nobody has shown it."""
    PUBLISHED = 2
    """Validated on hardware or documented by others; no recording is at hand."""
    RECORDED = 3
    """Outputs of a real GPU exist as files and are reproduced bit for bit."""

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One piece of evidence."""

    level: Evidence
    covers: str
    """What it speaks of: `finite operands, any c`, `c = 0`, ..."""
    sources: tuple[str, ...]
    """Keys of isa/sources.toml, or names of recordings for level RECORDED."""

    def __str__(self) -> str:
        return f"{self.level}: {self.covers} [{', '.join(self.sources)}]"


def weakest(proofs: Iterable[Proof]) -> Evidence:
    """What a set of proofs, each covering a part, allows to claim of the whole."""
    return min((proof.level for proof in proofs), default=Evidence.INFERRED)


def evidence_level(name: str | Evidence) -> Evidence:
    """The level of that name.

    Raises:
        OperandError: no such level.
    """
    if isinstance(name, Evidence):
        return name
    by_name = {str(level): level for level in Evidence}
    if not isinstance(name, str) or name not in by_name:
        raise OperandError(f"unknown evidence level {name!r}{nearest(str(name), by_name)}; known: {', '.join(by_name)}")
    return by_name[name]
