"""Whose `emulate` block holds: for a task, a generator, a thread.

A context variable says which blocks the running code lies in. It is right for tasks, each of which has a context of its own, and for
blocks that are left in another order than they were entered: a block that has ended no longer counts. A generator has no context of
its own: what it sets, whoever iterates over it sees too. So a block that a generator entered holds only while that generator runs.
"""

from __future__ import annotations

import concurrent.futures
import contextvars
import dis
import functools
import importlib
import inspect
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from mmabits.isa import EmulationError

if TYPE_CHECKING:
    from mmabits.emulator.hooks.session import Session


class NotEmulated(UserWarning):
    """Something inside an `emulate` block ran without emulation."""


@dataclass(eq=False, kw_only=True)
class Block:
    """An `emulate` block that was entered."""

    session: Session
    outer: Block | None
    """The one that was entered before it in its context, and may have ended."""
    thread: threading.Thread
    task: object | None
    """Of asyncio or trio."""
    generator: int | None
    """The frame that entered it, by its `id`, where that may be suspended while code outside the block runs. The frame itself would
    keep the generator alive that it belongs to."""
    place: str
    """Who entered it, for messages."""
    asleep: frozenset[Block]
    """Blocks of generators that were suspended when this one was entered."""
    hooks: ExitStack = field(default_factory=ExitStack)
    is_open: bool = True
    has_told: bool = False


_LOCK = threading.Lock()
_OPEN: list[Block] = []
"""In the order of entry; all of one thread."""
_CURRENT: ContextVar[Block | None] = ContextVar("block", default=None)
"""The block entered last. Those that have ended stay in the chain until another is entered."""


# ------------------------------------------------------------------------------------------------------------ which one holds


def current(framework: str | None = None) -> Block | None:
    """The innermost block that the running code lies in.

    Args:
        framework: of those that emulate this framework; None: of all.
    """
    block = _CURRENT.get()
    if block is not None and block.generator is None and not block.asleep and _serves(block, framework):
        return block
    generators = []
    while block is not None and not (_serves(block, framework) and block.generator is None):
        if _serves(block, framework):
            generators.append(block)
        block = block.outer
    if block is not None and block.asleep:  # who runs again since then is inside this one
        generators.extend(other for other in block.asleep if _serves(other, framework))
    if not generators:
        return block
    return next((found for frame in _stack() for found in generators if found.generator == id(frame)), block)


def _missed(framework: str) -> tuple[Block, str] | None:
    """A block that does not hold here though its program may think so, and why."""
    for block in _chain():
        if _serves(block, framework) and block.generator is not None:
            return block, "holds while that generator runs, not for the code that iterates over it"
        started = block.session.threads and framework in block.session.frameworks and threading.current_thread() is not block.thread
        if started and not block.is_open:
            return block, "had ended when a thread that it started still multiplied"
    for block in reversed(_OPEN):
        if _serves(block, framework) and getattr(block.task, "done", bool)():
            return block, "held for a task that has ended"
    return None


def innermost(framework: str) -> Block | None:
    """The block inside all others: for threads of a framework's own, which have no context.

    Raises:
        EmulationError: blocks of several tasks are open.
    """
    blocks = [block for block in _OPEN if _serves(block, framework)]
    if not blocks:
        return None
    around = set(_chain(blocks[-1]))
    if not around.issuperset(blocks):
        raise EmulationError("several tasks are inside emulate blocks, and this thread of a framework's own may belong to any of them")
    return blocks[-1]


def tell_of_missed(framework: str, site: str, operation: str) -> None:
    """Say that a product outside every block is not emulated, where it may seem to lie in one; a warning for each block.

    Such are the blocks of suspended generators, and of tasks that have ended without leaving them.
    """
    missed = _missed(framework)
    if missed is None:
        return
    block, why = missed
    reason = f"the emulate block entered by {block.place} {why}"
    block.session.skip(site, operation, reason)
    if not block.has_told:
        block.has_told = True
        remedy = "enter a block around this code, or make a generator a context manager with contextlib.contextmanager"
        warnings.warn(f"not emulated: {site}: {reason}; {remedy}", NotEmulated, stacklevel=2)


def _serves(block: Block, framework: str | None) -> bool:
    return block.is_open and (framework is None or framework in block.session.frameworks)


def _chain(block: Block | None = None) -> Iterator[Block]:
    """From a block, or the last of this context, outwards."""
    block = block or _CURRENT.get()
    while block is not None:
        yield block
        block = block.outer


def _stack() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _place(frame: FrameType) -> str:
    decorated = frame.f_locals.get("function") if frame.f_code.co_filename.startswith(_HERE) else None  # by emulate itself
    code = getattr(decorated, "__code__", frame.f_code)
    line = frame.f_lineno if code is frame.f_code else code.co_firstlineno
    return f"{code.co_name} ({os.path.basename(code.co_filename)}:{line})"


# ----------------------------------------------------------------------------------------------------------- entering, leaving


def enter(session: Session, frame: FrameType) -> Block:
    """A block that begins. It holds once `hold` was called.

    Args:
        session: whose `within` is set.
        frame: the code that enters.

    Raises:
        EmulationError: another thread is inside a block.
    """
    thread, task = threading.current_thread(), _running_task()
    holder = _suspendable(frame, task)
    running = {id(frame) for frame in _stack()}
    blocks = [block for block in _chain() if block.is_open]
    for block, around in zip(blocks, (*blocks[1:], None), strict=False):
        block.outer = around  # past those that have ended
    asleep = frozenset(block for block in blocks if block.generator is not None and block.generator not in running)
    if holder is None:
        session.within = tuple(block.session for block in blocks if block not in asleep and block.task is task)
    block = Block(
        session=session, outer=blocks[0] if blocks else None, thread=thread, task=task, asleep=asleep,
        generator=None if holder is None else id(holder), place=_place(holder or frame),
    )  # fmt: skip
    for left in [other for other in _OPEN if not other.thread.is_alive()]:
        leave(left)
    with _LOCK:
        if any(other.thread is not thread for other in _OPEN):
            raise EmulationError("another thread is inside an emulate block; one thread at a time may be")
        _OPEN.append(block)
        _watch_threads()
    return block


def hold(block: Block) -> None:
    """Let a block hold from now on, in this context."""
    _CURRENT.set(block)


def leave(block: Block) -> None:
    """End a block, from wherever."""
    if not block.is_open:
        return
    try:
        block.hooks.close()
    finally:
        with _LOCK:
            block.is_open = False
            _OPEN.remove(block)
            if not _OPEN:
                _leave_threads_alone()
        if _CURRENT.get() is block:
            _CURRENT.set(block.outer)


# ------------------------------------------------------------------------------------------------------------------ generators

_GENERATOR: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_COROUTINE: Final = inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE
_FIXTURES: Final = frozenset(("_pytest", "pluggy", "pytest_asyncio", "pytest_trio", "anyio", "behave"))
"""Packages that run a generator up to its `yield` to set something up for code that is then inside."""
_HELPERS: Final = frozenset(("contextlib", "unittest.case"))
"""Modules whose functions enter a context manager for their caller."""
_SEND: Final = dis.opmap["SEND"]
_CACHE: Final = dis.opmap["CACHE"]


def _suspendable(frame: FrameType | None, task: object | None) -> FrameType | None:
    """The generator that a block belongs to; None where the code that runs while it is suspended is inside the block.

    A generator that is a context manager or a fixture passes the block on to who enters it. So does a coroutine whose task has a
    context of its own; one that is driven by hand is like a generator. A function that enters a block for its caller and returns
    (a context manager, a helper with an ExitStack) does it for the generator that called it.
    """
    is_direct = True
    while frame is not None:
        flags = frame.f_code.co_flags
        if flags & _COROUTINE:
            return frame if task is None and is_direct else None
        if flags & _GENERATOR:
            resumed_by = frame.f_back
            while resumed_by is not None and _delegates(resumed_by):
                resumed_by = resumed_by.f_back
            if resumed_by is None or not _enters(resumed_by):
                is_fixture = resumed_by is not None and _module(resumed_by).partition(".")[0] in _FIXTURES
                return None if is_fixture else frame
            frame = resumed_by
        is_direct = is_direct and _enters(frame)
        frame = frame.f_back
    return None


def _enters(frame: FrameType) -> bool:
    """Whether a function enters a context manager for its caller."""
    return frame.f_code.co_name in ("__enter__", "__aenter__") or _module(frame) in _HELPERS


def _delegates(frame: FrameType) -> bool:
    """Whether a generator is at `yield from`."""
    if not frame.f_code.co_flags & inspect.CO_GENERATOR:
        return False
    code, place = frame.f_code.co_code, frame.f_lasti
    while place > 0 and code[place] == _CACHE:  # of the instruction before: from 3.12 on a repeated SEND leaves the place there
        place -= 2
    return code[place] == _SEND


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _running_task() -> object | None:
    """The task of asyncio or trio that runs."""
    asyncio, trio = sys.modules.get("asyncio"), sys.modules.get("trio")
    for ask in (getattr(asyncio, "current_task", None), getattr(getattr(trio, "lowlevel", None), "current_task", None)):
        try:
            task: object | None = ask() if ask else None
        except RuntimeError:  # no loop runs
            continue
        if task is not None:
            return task
    return None


# --------------------------------------------------------------------------------------------------------------------- threads

_PASSING_ON: Final = frozenset(("threading", "concurrent", "asyncio", "multiprocessing"))
_COMPILERS: Final = ("mmabits.emulator.", "torch._inductor.", "tqdm.")
"""Modules whose threads multiply nothing: the hooks' own, that in which the engine compiles, torch.compile's, progress bars."""
_HERE: Final = str(Path(__file__).parent) + os.sep
_STARTS: Final = ((threading.Thread, "start"), (concurrent.futures.ThreadPoolExecutor, "submit"))
_stock: dict[tuple[type, str], tuple[Any, Any]] = {}
"""What stood in these places, and what stands there now."""


def _watch_threads() -> None:
    """Have the report say where a block hands work to another thread, in which it does not hold."""
    for owner, name in _STARTS:
        if (owner, name) not in _stock:
            stock = getattr(owner, name)
            watched = _watched(stock, name)
            _stock[owner, name] = stock, watched
            setattr(owner, name, watched)


def _leave_threads_alone() -> None:
    for (owner, name), (stock, watched) in list(_stock.items()):
        if getattr(owner, name) is watched:  # else somebody has wrapped it; without a block it does nothing
            setattr(owner, name, stock)
            del _stock[owner, name]


def _inside(block: Block, arguments: tuple[Any, ...], *, handed_over: bool) -> tuple[Any, ...]:
    """The arguments of `Thread.start` or, where work is handed over, `submit`: what runs there lies in the block."""
    context = contextvars.copy_context()

    def entered(work: Callable[..., Any], *given: Any, **named: Any) -> Any:
        with ExitStack() as left:
            for framework in block.session.frameworks:
                enter = getattr(importlib.import_module(f"mmabits.emulator.hooks.{framework}"), "enter_thread", None)
                if enter is not None:
                    left.callback(enter(block.session))
            return work(*given, **named)

    if handed_over:
        return arguments[0], functools.partial(context.run, entered, *arguments[1:2]), *arguments[2:]
    thread = arguments[0]
    thread.run = functools.partial(context.run, entered, thread.run)
    return arguments


def _watched(stock: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(stock)
    def start(*arguments: Any, **keywords: Any) -> Any:
        block, frame = current(), sys._getframe(1)
        pool = name == "start" and _module(frame) == "concurrent.futures.thread"  # what is submitted to it comes here by itself
        if block is not None and block.session.frameworks and not pool and _module(frame) != "multiprocessing.queues":  # only passes on
            while frame.f_back is not None and _module(frame).partition(".")[0] in _PASSING_ON:
                frame = frame.f_back
            own = _module(frame).startswith(_COMPILERS)
            if not own and block.session.threads:
                arguments = _inside(block, arguments, handed_over=name == "submit")
            elif not own:
                site, reason = f"a thread for {_place(frame)}", "an emulate block holds for the thread that entered it"
                block.session.skip(site, "what it multiplies, if anything", reason)
        return stock(*arguments, **keywords)

    return start
