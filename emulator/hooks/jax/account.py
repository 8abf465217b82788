"""What the sites of compiled programs are to the report, and which block their calls belong to."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from mmabits.emulator.hooks.jax.handler import Site
from mmabits.emulator.session import Session
from mmabits.isa import Instruction

Key = tuple[str, str, str]
"""Architecture, least evidence and filling of a block: blocks with one key run the same compiled programs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """A site, and what its calls are to the report."""

    calls: Site
    site: str
    operation: str
    shape: tuple[int, int, int, int]
    """Batch, M, N, K."""
    instruction: Instruction | None
    note: str
    """Without an instruction: why it is not emulated."""

    def report(self, session: Session, calls: int) -> None:
        """Enter so many calls."""
        batch, m, n, k = self.shape
        if self.instruction is None:
            session.skip(self.site, self.operation, self.note, count=calls)
        else:
            session.count(self.site, self.instruction, m, n, k, count=calls * batch, note=self.note)


_ENTRIES: dict[Key, list[Entry]] = {}
_OPEN: list[tuple[Key, Session]] = []
"""From the outermost block to the innermost."""


def open_session(key: Key | None) -> Session | None:
    """The session of the innermost block with a key."""
    return next((session for known, session in reversed(_OPEN) if known == key), None)


def is_open() -> bool:
    """Whether there is a block."""
    return bool(_OPEN)


def enter(key: Key, session: Session) -> None:
    """Begin to count for a session. What ran before is the outer block's; what ran with this key outside any, nobody's."""
    collect()
    for entry in _ENTRIES.get(key, ()):
        entry.calls.new_calls()
    _OPEN.append((key, session))
    session.before_report(lambda: collect() if _OPEN and _OPEN[-1][1] is session else None)


def leave(*, interrupted: bool = False) -> None:
    """End what `enter` began last; where an exception did, without waiting for programs that run: some take minutes."""
    try:
        collect(wait=not interrupted)
    finally:
        _OPEN.pop()


def add(key: Key, entry: Entry) -> None:
    """Take a site into the account."""
    _ENTRIES.setdefault(key, []).append(entry)


def collect(*, wait: bool = True) -> None:
    """Enter into the innermost session what ran since the last time."""
    if not _OPEN:
        return
    try:
        if wait:
            _await_programs()
    finally:
        key, session = _OPEN[-1]
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
