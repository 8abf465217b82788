"""The errors of mmabits: one base class, and subclasses that also derive from the built-in a caller would expect."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable
from typing import Final

_LONGEST: Final = 2000
"""Characters of a message; of a longer one the beginning and the end are shown."""
_NOT_ASCII: Final = re.compile("[^ -~]")


class MmabitsError(Exception):
    """Base of every error that mmabits raises on purpose. Its text is one line: what arrived, what is allowed."""

    def __str__(self) -> str:
        """The message alone (KeyError would print its repr), as one line that can be shown: texts of files stand in it."""
        text = visible(str(self.args[0])) if self.args else ""
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 4 :]} ({len(text):,} characters)"


class UnknownInstruction(MmabitsError, KeyError):
    """The text is no tensor-core instruction, or none that fits the operands."""


class UnknownArchitecture(MmabitsError, KeyError):
    """No row for that architecture."""


class UnknownFormat(MmabitsError, KeyError):
    """No row for that number format."""


class UnsupportedInstruction(MmabitsError, NotImplementedError):
    """The architecture lacks the instruction, or the instruction is known but not modelled."""


class InsufficientEvidence(MmabitsError, RuntimeError):
    """A row's evidence is below the level the caller asked for."""


class DeviceUnavailable(MmabitsError, RuntimeError):
    """There is no such device here, or what it takes to use it is not installed."""


class CompilerError(MmabitsError, RuntimeError):
    """The installed Numba cannot compile the engine."""


class OperandTypeError(MmabitsError, TypeError):
    """An operand has the wrong dtype or is no array."""


class OperandError(MmabitsError, ValueError):
    """An operand or option has the wrong shape, size or value."""


class NotEnoughMemory(MemoryError, MmabitsError):  # in this order tblib, which Dask uses, can bring it back from a worker
    """A product's arrays are larger than the memory that is free, or that this process may take."""


class EmulationError(MmabitsError, RuntimeError):
    """`emulate` cannot do what the program inside it asks for, or is itself used where it must not be."""


class VectorFileError(MmabitsError, ValueError):
    """A vector file is damaged, incomplete or of another format."""


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """`did you mean X, Y?`, the known words most like `word`; empty where nothing is like it."""
    found = difflib.get_close_matches(word, sorted(known), n=count, cutoff=0.4)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def visible(text: str, *, keep: str = "") -> str:
    r"""A text that can be shown anywhere as it is: what would steer a terminal or hide from the eye is spelled out, as Python does.

    That is control characters, so escape sequences and ends of lines, marks of writing direction and other invisible ones, unassigned
    characters and halves of surrogate pairs. Done twice it changes nothing more.

    Args:
        text: from anywhere.
        keep: characters that may stay.

    Examples:
        >>> print(visible("\x1b[31mred\u202e"))
        \x1b[31mred\u202e
    """
    if text.isprintable():
        return text
    return _NOT_ASCII.sub(lambda found: found[0] if found[0] in keep or _shows(found[0]) else _spelled(found[0]), text)


def _shows(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"  # spaces of every width, as some languages use them


def _spelled(char: str) -> str:
    return char.encode("unicode_escape").decode()
