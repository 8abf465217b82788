"""How much memory there is to be had. Linux promises more than it has, and ends the process that takes it at its word."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from mmabits.isa import NotEnoughMemory

_SMALL: Final = 1 << 26
"""Bytes below which nobody asks: asking takes a tenth of a millisecond."""
_ROOT: Final = Path("/")


class _Files(NamedTuple):
    """Where a version of Linux's control groups says what a group may take."""

    mount: str
    limit: str
    used: str
    cached: str
    """Word of `memory.stat`: used bytes that can be had back."""


_GROUPS: Final = {
    "": _Files("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": _Files("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""By the controllers of a line of /proc/self/cgroup; version 2 names none."""


def require(size: int, what: str) -> None:
    """Refuse arrays that cannot fit, before they are made.

    Args:
        size: their bytes together.
        what: what they are, for the message.

    Raises:
        NotEnoughMemory: less is free.
    """
    if size < _SMALL:
        return
    free = available()
    if free is not None and size > free:
        raise NotEnoughMemory(f"{what} takes {_shown(size)} of memory, and {_shown(free)} can be had")


def _shown(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 1 << 30 else f"{size / 2**20:,.0f} MiB"


def available(root: Path = _ROOT) -> int | None:
    """Bytes that this process may still take: the least that the machine, its control groups and its own limit leave.

    Args:
        root: of the file system that says so.

    Returns:
        None where nothing says.
    """
    return min((max(left, 0) for left in (*_machine(root), *_groups(root), *_own(root))), default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def _words(text: str) -> dict[str, int]:
    """Lines of a name and a number."""
    lines = (line.replace(":", " ").split() for line in text.splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}


def _machine(root: Path) -> Iterator[int]:
    found = _words(_read(root / "proc/meminfo"))
    if "MemAvailable" in found:
        yield 1024 * (found["MemAvailable"] + found.get("SwapFree", 0))
    elif root == _ROOT and "SC_PHYS_PAGES" in os.sysconf_names:  # not Linux: what is built in
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _groups(root: Path) -> Iterator[int]:
    """What each group that the process is in, and each one around it, has left."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        for name in controllers.split(","):
            if name not in _GROUPS:
                continue
            files = _GROUPS[name]
            place = Path(group.lstrip("/"))
            for folder in (place, *place.parents):
                yield from _left(root / files.mount / folder, files)


def _left(folder: Path, files: _Files) -> Iterator[int]:
    limit, used = _read(folder / files.limit).strip(), _read(folder / files.used).strip()
    if limit.isdigit() and used.isdigit():
        yield int(limit) - int(used) + _words(_read(folder / "memory.stat")).get(files.cached, 0)


def _own(root: Path) -> Iterator[int]:
    """What `ulimit -v` leaves."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    pages = _read(root / "proc/self/statm").split()
    if limit != resource.RLIM_INFINITY and pages:
        yield limit - int(pages[0]) * os.sysconf("SC_PAGE_SIZE")
