"""How much memory there is, so that work too large for it is refused before it begins."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from mmabits.isa import OperandError


def available_memory() -> int | None:
    """Bytes that can be had now; None where the system does not tell."""
    with suppress(OSError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def check_memory(needed: int, what: str) -> None:
    """Refuse work that memory does not suffice for.

    Args:
        needed: bytes, about.
        what: what needs them.

    Raises:
        OperandError: there are not so many; the message has both numbers.
    """
    there = available_memory()
    if there is not None and needed > there:
        raise OperandError(f"{what} needs about {in_words(needed)} of memory; {in_words(there)} are free")


def in_words(count: int) -> str:
    """`512 MiB`, `1.5 GiB`."""
    size, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:,.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"


__all__ = ["available_memory", "check_memory", "in_words"]
