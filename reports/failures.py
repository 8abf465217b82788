"""What went wrong, as one line: the errors of mmabits, those of the machine (disk, memory), and what nobody foresaw."""

from __future__ import annotations

import os
from typing import Final

from mmabits.isa import MmabitsError, visible

VARIABLE: Final = "MMABITS_TRACEBACK"
"""Set to anything but nothing or 0, an error that nobody foresaw is raised with its traceback, not told in a line."""
_FORESEEN: Final = (MmabitsError, OSError, MemoryError, RecursionError)


def one_line(error: BaseException) -> str:
    """The text of an error from anywhere, fit to be shown in a line."""
    return visible(" ".join(str(error).split()))


def is_foreseen(error: BaseException) -> bool:
    """Whether an error is ours or the machine's, and no mistake in this program."""
    return isinstance(error, _FORESEEN)


def wants_traceback() -> bool:
    """Whether unforeseen errors shall be raised as they are."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


def told(error: Exception) -> str:
    """What to say of an error, without `error: ` before it.

    Raises:
        Exception: the error itself, where it is unforeseen and `wants_traceback`.
    """
    return str(error if isinstance(error, MmabitsError) else MmabitsError(_foreign(error)))


def _foreign(error: Exception) -> str:
    match error:
        case MemoryError():
            said = one_line(error)
            return f"not enough memory{f' ({said})' if said else ''}"
        case RecursionError():
            return "nested too deeply"
        case OSError():
            reason = visible(error.strerror) if error.strerror else one_line(error)
            return f"{visible(os.fsdecode(error.filename))}: {reason}" if isinstance(error.filename, str | bytes) else reason
        case _ if wants_traceback():
            raise error
        case _:
            return f"internal error, {type(error).__name__}: {one_line(error)} (a mistake in mmabits; {VARIABLE}=1 shows where)"


def of_file(path: str | os.PathLike[str], error: Exception) -> str:
    """What to say of a file that could not be dealt with; it is named once.

    Raises:
        Exception: as `told`.
    """
    name, text = visible(os.fspath(path)), told(error)
    return text if text.startswith(name) else f"{name}: {text}"


__all__ = ["VARIABLE", "is_foreseen", "of_file", "one_line", "told", "wants_traceback"]
