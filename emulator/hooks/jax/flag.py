"""Which block JAX compiles and runs for.

JAX's caches have a value of our own in their keys, so that programs compiled inside a block and outside never mix. JAX keeps that value
for each thread, while it is for a context variable to say which block the running code lies in: several tasks share a thread. So the
value is one that decides when JAX first compares it, and then stays what it is.
"""

from __future__ import annotations

from typing import Any, Final

import jax

from mmabits.emulator.hooks import scope
from mmabits.emulator.hooks.jax import account

_UNDECIDED: Final = object()


class _FlagValue:
    """The account.Key of the block that the running code lies in when this is first compared; None outside.

    JAX reads the value at each call of a program, and keeps it with what it compiles. From the moment that it has decided another one
    stands in its place, for the next call.
    """

    __slots__ = ("_key",)

    def __init__(self) -> None:
        self._key: Any = _UNDECIDED

    def key(self) -> account.Key | None:
        """What it is."""
        if self._key is _UNDECIDED:
            self._key = _current_key()
            if _VALUE.value is self:
                _set(_FlagValue() if account.is_open() else None)
        found: account.Key | None = self._key
        return found

    def __eq__(self, other: object) -> bool:
        return self.key() == (other.key() if isinstance(other, _FlagValue) else other)

    def __hash__(self) -> int:
        return hash(self.key())


_VALUE: Final = jax.make_user_context(None)


def _set(value: _FlagValue | None) -> None:
    _VALUE(value).__enter__()  # for good: values of JAX's contexts are put back in the order of a stack otherwise


def _current_key() -> account.Key | None:
    block = scope.current("jax")
    return None if block is None else account.key_of(block.session)


def key() -> account.Key | None:
    """The key of the block for which the running thread compiles, None where for none."""
    value = _VALUE.value
    return value.key() if isinstance(value, _FlagValue) else None


def begin() -> None:
    """Let blocks decide in the running thread."""
    _set(_FlagValue())


def end() -> None:
    """The last block has ended: the running thread's context is as it was. Another thread's is when it is next looked at."""
    if isinstance(_VALUE.value, _FlagValue):
        _set(None)
