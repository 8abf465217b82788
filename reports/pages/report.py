"""A report as one self-contained page: a verdict, facts, and sections of tables, charts, texts and notes.

Every command that writes a page of results builds a `Report` of these rows and calls `report_page`; nothing here knows any command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mmabits.isa import OperandError
from mmabits.reports.pages import render
from mmabits.reports.pages.charts import ARCH_COLORS

TONES: Final = ("", "good", "bad", "soft")
"""How a text is coloured."""
CHARTED: Final = 40
"""Bars of a chart at most; those of the largest values."""
_TALL: Final = 24
"""Rows of a table beyond which it scrolls in a box of its own."""
_LONG: Final = 44
"""Characters of a cell beyond which its text is folded into lines."""
_LISTED: Final = 4
"""Sections from which on the page begins with a list of them."""


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
    """A table. Columns of numbers are set to the right. A long one scrolls in a box of its own.

    Raises:
        OperandError: a row of another length than the headings, numeric columns that are not there, or a limit below 1.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[Cell | str | int | float, ...], ...]
    numeric: frozenset[int] = frozenset()
    """Which columns hold numbers, from 0."""
    caption: str = ""
    most: int = 1000
    """Rows that the page shows; how many it leaves out is said below the table."""

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.headings)]
        if wrong:
            raise OperandError(f"a table of {len(self.headings)} columns has a row of {len(wrong[0])}")
        if not self.numeric <= set(range(len(self.headings))):
            raise OperandError(f"numeric columns are {sorted(self.numeric)}; the table has {len(self.headings)}")
        if self.most < 1:
            raise OperandError(f"a table shows at least one row, got {self.most}")

    @property
    def is_tall(self) -> bool:
        """Whether it scrolls in a box."""
        return len(self.rows) > _TALL

    @property
    def below(self) -> str:
        """The caption, and what else must be said of a long table: how many rows it has, and how many the page leaves out."""
        shown = min(len(self.rows), self.most)
        left = f"; {len(self.rows) - shown:,} more of {len(self.rows):,} are left out of this page" if shown < len(self.rows) else ""
        return " ".join(
            filter(
                None,
                (self.caption, f"{shown:,} rows{'; the table scrolls' if self.is_tall else ''}{left}." if self.is_tall or left else ""),
            )
        )


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
    """Under a title, but not folded away at first."""


@dataclass(frozen=True, kw_only=True)
class NoteBlock:
    """A paragraph."""

    text: str
    tone: str = ""

    def __post_init__(self) -> None:
        _check_tone(self.tone)


Block = TableBlock | ChartBlock | TextBlock | NoteBlock


@dataclass(frozen=True, kw_only=True)
class Count:
    """A number that matters, and what it counts."""

    value: int | str
    what: str
    tone: str = ""

    def __post_init__(self) -> None:
        _check_tone(self.tone)


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
    notice: str = ""
    """What a reader must know before believing any of it."""
    counts: tuple[Count, ...] = ()
    """The numbers, large."""
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
    counts = [{"value": _cell(count.value).text, "what": count.what, "tone": count.tone} for count in report.counts]
    return render("report.html.j2", report=report, counts=counts, sections=sections, is_listed=len(sections) >= _LISTED)


def _block(block: Block) -> dict[str, object]:
    match block:
        case TableBlock():
            return {
                "kind": "table",
                "block": block,
                "below": block.below,
                "rows": [[_cell(cell) for cell in row] for row in block.rows[: block.most]],
            }
        case ChartBlock():
            return {"kind": "chart", "block": block}
        case TextBlock():
            return {"kind": "text", "block": block, "text": "\n".join(block.lines)}
        case NoteBlock():
            return {"kind": "note", "block": block}


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A cell as the template takes it."""

    text: str
    style: str
    is_code: bool
    color: str
    """Of the architecture whose name it is, if it is one; else empty."""


def _cell(value: Cell | str | int | float) -> _Shown:
    cell = value if isinstance(value, Cell) else Cell(text=_text(value))
    is_long = len(cell.text) > _LONG and not cell.is_code
    style = " ".join(filter(None, (cell.tone, "long" if is_long else "")))
    return _Shown(text=cell.text, style=style, is_code=cell.is_code, color=ARCH_COLORS.get(cell.text, ""))


def _text(value: str | int | float) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _check_tone(tone: str) -> None:
    if tone not in TONES:
        raise OperandError(f"a tone is one of {', '.join(map(repr, TONES))}, got {tone!r}")


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 file`, `2 files`, `1,000 files`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def folded(title: str, lines: Sequence[str], *, is_open: bool = False) -> TextBlock:
    """Lines under a title that opens them."""
    return TextBlock(lines=tuple(lines), title=title, is_open=is_open)


def not_done(title: str, what: str, errors: Sequence[tuple[str, str]]) -> Section:
    """A section of what failed, each with its whole error.

    Args:
        title: of the section.
        what: each is.
        errors: names and texts.
    """
    rows = tuple((Cell(text=name, is_code=True), Cell(text=error, tone="bad")) for name, error in errors)
    return Section(title=title, blocks=(TableBlock(headings=(what, "why"), rows=rows),))


__all__ = [
    "CHARTED", "Block", "Cell", "ChartBlock", "Count", "NoteBlock", "Report", "Section", "TableBlock", "TextBlock", "folded", "not_done",
    "plural", "report_page",
]  # fmt: skip
