"""Work that threads share, and that ends before its caller goes on: however the caller leaves.

A signal's handler runs in the main thread, between two steps of Python, and what it raises can come at any of them: so the
caller computes nothing itself, but waits for helpers. CPython looks for signals where a function starts, where a loop goes
back, after a call, and in a lock that waits: never between two assignments. What must not be torn apart is made of those.
"""

from __future__ import annotations

import atexit
import os
import time
from _thread import allocate_lock, start_new_thread
from array import array
from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

from mmabits.isa import EmulationError

TICK = 0.1
"""Seconds after which one who waits looks again: not everywhere does a signal end the wait for a lock, nor reach the main thread."""
LAST_WAIT = 1.0
"""Seconds that the interpreter's end waits for helpers."""

_running: set[ref[SharedWork]] = set()
"""Work that may have helpers. References without a callback: one that is raised in is forgotten, and Ctrl-C with it."""


class SharedWork:
    """Shares of some work on memory, done by helper threads while the caller waits.

    Attributes:
        stop: a word that `do` looks at every few milliseconds: where it is not 0, it returns.
    """

    def __init__(self, do: Callable[[int, int], None], shares: Sequence[tuple[int, int]], stop: array[int], kept: tuple[Any, ...]) -> None:
        """Nothing runs yet.

        Args:
            do: does a share, without Python's global lock.
            shares: its arguments.
            stop: one word, 0.
            kept: what owns the memory. It is referenced as long as a helper is at work.
        """
        self.stop = stop
        self._do = do
        self._left = iter(shares)
        self._undone = len(shares)
        self._kept = kept
        self._failure: BaseException | None = None
        self._closed = False
        """Whether helpers that come now go away again."""
        self._inside = 0
        """Helpers that are at work, or look whether they may."""
        self._lock = allocate_lock()
        """Of the helpers: who only waits never takes it, as an exception could keep it from giving it back."""
        self._news = allocate_lock()
        """Free when the last helper has left; a hint that may be lost, what counts are the numbers."""
        self._news.acquire()

    def run(self, threads: int) -> None:
        """Do all shares with so many threads, or fewer where the system gives no more.

        Raises:
            BaseException: what a signal's handler or a share has raised. No helper is at work any more.
        """
        me = ref(self)
        try:
            _running.add(me)
            if not self._start(threads):
                self._take_shares()
            while self._inside or (self._undone and not self.stop[0]):
                self._news.acquire(True, TICK)
        finally:
            self._closed, self.stop[0] = True, 1
            try:
                self._await()
            finally:
                self._await()  # again, where an exception came just as the first began
                self._kept = ()
                _running.discard(me)
        if self._failure is not None:
            try:
                raise self._failure
            finally:
                self._failure = None  # it refers to this frame

    def abandon(self, reason: BaseException) -> None:
        """Have helpers stop, and the caller raise `reason`."""
        self._failure = reason
        self._closed, self.stop[0] = True, 1

    def abandon_in_child(self) -> None:
        """`abandon` in a forked process, which has none of the helpers."""
        self._lock = allocate_lock()
        self._inside = 0
        self.abandon(EmulationError("the process was forked while it computed a product"))

    @property
    def runs(self) -> bool:
        """Whether a helper is at work."""
        return self._inside > 0

    def _start(self, threads: int) -> int:
        """Start helpers; how many there are."""
        for started in range(threads):
            try:
                start_new_thread(self._help, ())
            except RuntimeError as error:
                if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                    raise  # by a signal's handler
                return started
        return threads

    def _help(self) -> None:
        """What a helper does."""
        with self._lock:
            self._inside += 1
        try:
            self._take_shares()
        except BaseException as error:
            self.abandon(error)
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._news.locked():
                self._news.release()

    def _take_shares(self) -> None:
        while not self._closed:
            with self._lock:
                share = next(self._left, None)
            if share is None:
                return
            self._do(*share)
            with self._lock:
                self._undone -= 1

    def _await(self) -> None:
        """Wait until no helper is at work; exceptions that come meanwhile wait too."""
        try:
            while self._inside:
                self._news.acquire(True, TICK)
        except BaseException:
            self._await()
            raise


def running() -> list[SharedWork]:
    """Work that goes on."""
    return [work for each in list(_running) if (work := each()) is not None]


@atexit.register
def _end_all() -> None:
    """Nothing computes while the interpreter is taken apart: neither for daemon threads, nor for those that nobody waited for."""
    works = running()
    for work in works:
        work.abandon(SystemExit())
    end = time.monotonic() + LAST_WAIT
    while any(work.runs for work in works) and time.monotonic() < end:
        time.sleep(0.001)


def _end_all_in_child() -> None:
    for work in running():
        work.abandon_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_end_all_in_child)
