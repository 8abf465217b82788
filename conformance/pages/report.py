"""A report as one self-contained page: a verdict, facts, and sections of tables, charts, texts and notes.

Every command that writes a page of results builds a `Report` of these rows and calls `report_page`; nothing here knows any command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mmabits.conformance.pages import render
from mmabits.isa import OperandError

TONES: Final = ("", "good", "bad", "soft")
"""How a text is coloured."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table that is not plain."""

    text: str
    tone: str = ""
    """One of TONES."""
    is_code: bool = False
    """In the type of code."""

    def __post_init__(self) -> None:
        _check_tone(self.tone)


@dataclass(frozen=True, kw_only=True)
class TableBlock:
    """A table. Columns of numbers are set to the right.

    Raises:
        OperandError: a row of another length than the headings, or numeric columns that are not there.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[Cell | str | int | float, ...], ...]
    numeric: frozenset[int] = frozenset()
    """Which columns hold numbers, from 0."""
    caption: str = ""

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.headings)]
        if wrong:
            raise OperandError(f"a table of {len(self.headings)} columns has a row of {len(wrong[0])}")
        if not self.numeric <= set(range(len(self.headings))):
            raise OperandError(f"numeric columns are {sorted(self.numeric)}; the table has {len(self.headings)}")


@dataclass(frozen=True, kw_only=True)
class ChartBlock:
    """A picture with what it shows. The SVG goes into the page as it is: it must come from `charts` or escape its texts itself."""

    svg: str
    caption: str

    def __post_init__(self) -> None:
        if not self.svg.startswith("<svg"):
            raise OperandError(f"a chart is an <svg> element, got {self.svg[:20]!r}")


@dataclass(frozen=True, kw_only=True)
class TextBlock:
    """Lines as a terminal shows them, in a fixed pitch."""

    lines: tuple[str, ...]
    title: str = ""
    """Where there is one, the lines are folded away under it."""
    is_open: bool = False
    """Not folded at first."""


@dataclass(frozen=True, kw_only=True)
class NoteBlock:
    """A paragraph."""

    text: str
    tone: str = ""

    def __post_init__(self) -> None:
        _check_tone(self.tone)


Block = TableBlock | ChartBlock | TextBlock | NoteBlock


@dataclass(frozen=True, kw_only=True)
class Section:
    """Blocks under a heading."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a page says."""

    title: str
    lead: str
    """One or two sentences below the title."""
    verdict: str = ""
    """The result in a few words."""
    tone: str = ""
    """Of the verdict."""
    facts: tuple[tuple[str, str], ...] = ()
    """Names and values: what ran, where, with which versions."""
    sections: tuple[Section, ...] = ()

    def __post_init__(self) -> None:
        _check_tone(self.tone)


def report_page(report: Report) -> str:
    """The page.

    Raises:
        MmabitsError: jinja2 is not installed.
    """
    sections = [{"title": section.title, "blocks": [_block(block) for block in section.blocks]} for section in report.sections]
    return render("report.html.j2", report=report, sections=sections)


def _block(block: Block) -> dict[str, object]:
    match block:
        case TableBlock():
            return {"kind": "table", "block": block, "rows": [[_cell(cell) for cell in row] for row in block.rows]}
        case ChartBlock():
            return {"kind": "chart", "block": block}
        case TextBlock():
            return {"kind": "text", "block": block, "text": "\n".join(block.lines)}
        case NoteBlock():
            return {"kind": "note", "block": block}


def _cell(value: Cell | str | int | float) -> Cell:
    if isinstance(value, Cell):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(text=str(value))
    return Cell(text=f"{value:,}" if isinstance(value, int) else f"{value:.6g}")


def _check_tone(tone: str) -> None:
    if tone not in TONES:
        raise OperandError(f"a tone is one of {', '.join(map(repr, TONES))}, got {tone!r}")


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 file`, `2 files`, `1,000 files`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def folded(title: str, lines: Sequence[str], *, is_open: bool = False) -> TextBlock:
    """Lines under a title that opens them."""
    return TextBlock(lines=tuple(lines), title=title, is_open=is_open)


__all__ = [
    "Block", "Cell", "ChartBlock", "NoteBlock", "Report", "Section", "TableBlock", "TextBlock", "folded", "plural", "report_page",
]  # fmt: skip
