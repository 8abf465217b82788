"""What the commands print: lines and tables that nothing in a file can steer a terminal with, whole in eighty columns and in a pipe.

Every command prints with these and with nothing else. rich is imported when a table is printed, so that `--help` stays quick.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TextIO

from mmabits.isa import MmabitsError, visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table
    from rich.text import Text

_PIPE_WIDTH: Final = 10_000
"""Columns where the output is no terminal, so that no line is cut or folded."""


class ReaderGone(Exception):
    """Whoever read the output has stopped, as `head` does: nothing is wrong, and nobody is there to be told."""


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGone from error
    except OSError as error:
        raise MmabitsError(f"standard output cannot be written ({error.strerror or error})") from error


def say(*lines: str, folds: bool = True) -> None:
    """Print lines; what would steer a terminal or break a line is spelled out.

    Args:
        lines: without ends.
        folds: on a terminal, lines longer than it is wide go on below, between words, under their second column if they have one. Lines of
            Python (`mmabits....`) and of tables in Markdown stay whole.
    """
    with _writing():
        width = shutil.get_terminal_size().columns if folds and sys.stdout is not None and sys.stdout.isatty() else 0
        for line in lines:
            print(folded(visible(line), width))


_CODE: Final = ("mmabits.", "|", "import ", "from ")
_COLUMN: Final = re.compile(r"\s*\S.*?\s{2,}(?=\S)")
_FURTHEST: Final = 36
"""Where a second column begins at the latest."""


def folded(line: str, width: int) -> str:
    """A line in parts no longer than `width` where words allow; 0: as it is."""
    if not width or len(line) <= width or line.startswith(_CODE):
        return line
    column = _COLUMN.match(line)
    indent = column.end() if column and column.end() <= min(_FURTHEST, width // 2) else len(line) - len(line.lstrip()) + 2
    return "\n".join(
        textwrap.wrap(line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False, replace_whitespace=False)
    )


def flush() -> None:
    """Let what was said so far out of the buffer, where a reader follows a run that takes minutes."""
    with _writing():
        if sys.stdout is not None:
            sys.stdout.flush()


def say_json(value: Any) -> None:
    """Print JSON, in ASCII."""
    with _writing():
        print(json.dumps(value, indent=2, allow_nan=False))


def say_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of one shape as CSV with a line of headings; nothing where there are none.

    Lists become texts with blanks between their parts.
    """
    import csv

    text = io.StringIO()
    if rows:
        table = csv.writer(text, lineterminator="\n")
        table.writerow(rows[0])
        table.writerows([" ".join(map(str, cell)) if isinstance(cell, list | tuple) else cell for cell in row.values()] for row in rows)
    say(*text.getvalue().splitlines())


def note(text: str) -> None:
    """Print a line on standard error, if there is any."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(visible(text), file=sys.stderr, flush=True)


def complain(text: str) -> None:
    """Print an error's line on standard error."""
    note(f"error: {text}")


@cache
def _console_class() -> type[Console]:
    from rich.console import Console
    from rich.segment import Segment

    class SafeConsole(Console):
        """Spells out what would steer a terminal, and leaves it to the caller what a reader that went away means."""

        never_crops: Final = True

        def render_str(self, text: str, **options: Any) -> Text:
            """As rich does; spelled out first, so that there is room for it."""
            return super().render_str(visible(text, keep="\n"), **options)

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            """As rich does."""
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(visible(segment.text, keep="\n"), segment.style)

        def on_broken_pipe(self) -> None:
            """Rich would leave the process with status 1."""
            raise  # the BrokenPipeError that rich is handling

    return SafeConsole


def console(*, stderr: bool = False) -> Console:
    """Where tables are printed: as wide as the terminal, or as wide as it takes."""
    made = _console_class()(stderr=stderr, highlight=False, soft_wrap=False)
    if not made.is_terminal:
        made.width = _PIPE_WIDTH
    return made


def draw(renderable: RenderableType, *, titles: int = 1, between: str = "  ") -> None:
    """Print a table, an explanation or another thing of rich; nothing is cut at the edge of the terminal.

    In a pipe lines are as long as they take, without blanks at the end.

    Args:
        renderable: what; a table as `Fitting` does.
        titles: see there.
        between: likewise.
    """
    from rich.table import Table

    with _writing():
        shown, printed = console(), Fitting(renderable, titles, between) if isinstance(renderable, Table) else renderable
        if shown.is_terminal:
            shown.print(printed, crop=False)
            return
        with shown.capture() as text:
            shown.print(printed, crop=False)
        print("\n".join(line.rstrip(" ") for line in text.get().split("\n")), end="")


@dataclass(frozen=True)
class Whole:
    """A line that is not folded, so that the names in it stay whole; on a console that would crop it, it is."""

    text: Text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        line = self.text.copy()
        if getattr(console, "never_crops", False):
            line.no_wrap, line.overflow = True, "ignore"
        yield line


@dataclass(frozen=True)
class Fitting:
    """A table that stays whole: where it is wider than the terminal, each row becomes lines of heading and value."""

    table: Table
    titles: int = 1
    """How many of its columns make the line above a row's other values."""
    between: str = "  "
    """What stands between these there."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.measure import Measurement

        if Measurement.get(console, options.update(width=_PIPE_WIDTH), self.table).maximum <= options.max_width:
            yield self.table
        else:
            yield from self._stacked(console, options.max_width)

    def _stacked(self, console: Console, most: int) -> Iterator[RenderableType]:
        from rich.text import Text

        def text(part: RenderableType) -> Text:
            return console.render_str(part) if isinstance(part, str) else part if isinstance(part, Text) else Text(str(part))

        def spaced(cells: list[Text]) -> Iterator[str | Text]:
            for number, cell in enumerate(cells):
                yield from ((self.between, cell) if number else (cell,))

        columns = self.table.columns
        headings = [text(column.header).plain.replace("\n", " ") for column in columns]
        width = max(map(len, headings[self.titles :]), default=0)
        if self.table.title:
            yield text(self.table.title)
        for row in zip(*(list(column.cells) for column in columns), strict=True):
            cells = [text(part) for part in row]
            named = [Text(f"{headings[0]} ", "bold")] if self.titles == 1 and headings[0] and cells[0].plain else []
            yield Whole(Text.assemble(*named, *spaced(cells[: self.titles])))
            for heading, value in zip(headings[self.titles :], cells[self.titles :], strict=True):
                if not value.plain:
                    continue
                parts = [value]
                if " " in value.plain and len(value.plain) > most - width - 4:  # between words alone
                    found = textwrap.wrap(value.plain, max(20, most - width - 4), break_long_words=False, break_on_hyphens=False)
                    parts = [Text(each, value.style) for each in found]
                for place, part in enumerate(parts):
                    yield Whole(Text.assemble("  ", (("" if place else heading).ljust(width), "dim"), "  ", part))


def settle_output() -> None:
    """Let characters that standard output's encoding lacks be spelled out, before anything is printed."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def finish_output(stream: TextIO | None) -> None:
    """Write out what is buffered; where that fails, nothing is left that Python would try to write at the end.

    Args:
        stream: what standard output was at the beginning.

    Raises:
        ReaderGone: whoever read it has stopped.
        MmabitsError: it cannot be written, as on a full disk.
    """
    if stream is None:
        return
    try:
        with _writing():
            stream.flush()
    except (ReaderGone, MmabitsError):
        _discard(stream)
        raise


def _discard(stream: TextIO) -> None:
    """Let what a stream still holds go nowhere: at its end Python would try once more, and leave with a status of its own."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def finish_errors() -> None:
    """Write out what standard error still holds; where that fails there is nobody to be told."""
    if sys.stderr is not None:
        try:
            sys.stderr.flush()
        except OSError:
            _discard(sys.stderr)


__all__ = [
    "Fitting",
    "ReaderGone",
    "Whole",
    "complain",
    "console",
    "draw",
    "finish_errors",
    "finish_output",
    "note",
    "say",
    "say_csv",
    "say_json",
    "settle_output",
]
