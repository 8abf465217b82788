"""What the sites of compiled programs are to the report, and which block their calls belong to."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from mmabits.emulator.hooks.jax.handler import Site, counting_site
from mmabits.emulator.hooks.session import Session
from mmabits.isa import Instruction

Key = tuple[str, str, str, str, int]
"""Architecture, least evidence, filling and library of a block, and a number: 0 but for blocks of one kind that run side by side.

Blocks with one key run the same compiled programs, one inside or after the other.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportedSite:
    """A site, and what its calls are to the report."""

    calls: Site
    site: str
    operation: str
    shape: tuple[int, int, int, int]
    """Batch, M, N, K; zeros where that is not how its size is known."""
    instruction: Instruction | None
    note: str
    """Without an instruction: why it is not emulated."""

    def report(self, session: Session, calls: int) -> None:
        """Enter so many calls."""
        batch, m, n, k = self.shape
        if self.instruction is None:
            session.skip(self.site, self.operation, self.note, count=calls, multiply_adds=calls * batch * m * n * k or None)
        else:
            session.count(self.site, self.instruction, m, n, k, count=calls * batch, note=self.note)


_ENTRIES: dict[Key, list[ReportedSite]] = {}
_OPEN: list[tuple[Key, Session]] = []
"""In the order of entry."""
_GATES: dict[Key, npt.NDArray[np.int64]] = {}
"""How many blocks with a key are open, where compiled programs look."""

_LINGERING: list[Key] = []
"""Of blocks that have ended and whose gates are still open."""
_MARKS: dict[Key, Site] = {}


def open_session(key: Key | None) -> Session | None:
    """The session of the block with a key that was entered last."""
    return next((session for known, session in reversed(_OPEN) if known == key), None)


def key_of(session: Session) -> Key | None:
    """The key of an open block."""
    return next((key for key, known in _OPEN if known is session), None)


def mark(key: Key) -> Site:
    """A site for what is emulated with a key otherwise than by calls of products."""
    if key not in _MARKS:
        _MARKS[key] = counting_site(gate(key))
    return _MARKS[key]


def key_of_sites(addresses: Iterable[int]) -> Key | None:
    """The key of the block that programs with these sites were lowered in; None where nothing of them is emulated."""
    known = {site.address: key for key, site in _MARKS.items()}
    known |= {entry.calls.address: key for key, entries in _ENTRIES.items() for entry in entries if entry.instruction is not None}
    return next((known[address] for address in addresses if address in known), None)


def is_open() -> bool:
    """Whether there is a block."""
    return bool(_OPEN)


def gate(key: Key) -> npt.NDArray[np.int64]:
    """A word that is 0 while no block with a key is open."""
    return _GATES.setdefault(key, np.zeros(1, np.int64))


def enter(session: Session) -> None:
    """Begin to count for a session. What ran before is the outer block's; what ran with its key outside any, nobody's."""
    _close_gates()
    key = _free_key(session)
    last = open_session(key)
    if last is not None:
        collect(last)
    for entry in _ENTRIES.get(key, ()):
        entry.calls.new_calls()
    _OPEN.append((key, session))
    gate(key)[0] += 1
    session.before_report(lambda: collect(session))


def _free_key(session: Session) -> Key:
    """The first key that no block has but those that this one lies in."""
    keys = ((session.arch, str(session.require), session.undefined, session.library.identity, number) for number in itertools.count())
    return next(key for key in keys if all(known != key or other in session.within for known, other in _OPEN))


def leave(session: Session) -> None:
    """End what `enter` began; where an exception did, without waiting for programs that run: some take minutes."""
    try:
        collect(session, wait=not session.has_failed)
    finally:
        key = key_of(session)
        assert key is not None
        _OPEN.remove((key, session))
        _LINGERING.append(key)
        _close_gates()


def _close_gates() -> None:
    """Close those of blocks that have ended, unless programs still run, as they may after an exception: then the next block does it."""
    if _LINGERING and all(map(_is_ready, jax.live_arrays())):
        while _LINGERING:
            gate(_LINGERING.pop())[0] -= 1


def _is_ready(array: Any) -> bool:
    try:
        return bool(array.is_ready())
    except RuntimeError:  # deleted meanwhile
        return True


def add(key: Key, entry: ReportedSite) -> None:
    """Take a site into the account."""
    _ENTRIES.setdefault(key, []).append(entry)


def collect(session: Session, *, wait: bool = True) -> None:
    """Enter into a session what ran with its key since the last time, if it is the innermost with it."""
    key = key_of(session)
    if key is None:
        return
    try:
        if wait:
            _await_programs()
    finally:
        if open_session(key) is session:
            for entry in _ENTRIES.get(key, ()):
                calls = entry.calls.new_calls()
                if calls:
                    entry.report(session, calls)


def _await_programs() -> None:
    """JAX returns before its programs have run: wait for those whose results somebody still holds."""
    for array in jax.live_arrays():
        if array.is_deleted():
            continue
        try:
            array.block_until_ready()
        except jax.errors.JaxRuntimeError:  # a program that failed; whoever uses its result hears of it
            continue
    jax.effects_barrier()
