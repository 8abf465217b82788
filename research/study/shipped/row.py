"""A study that ships, as a row: what is asked, which points are computed, what is drawn, and what was published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Rows = Sequence[Row]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A line for each series: y against x."""

    title: str
    x: str
    """Column."""
    y: str
    series: str
    """Column whose values are the lines."""
    x_label: str
    y_label: str
    caption: str
    where: Mapping[str, Any] | None = None
    """Only rows with these values."""
    bars: bool = False
    """Bars in groups instead of lines, where x is no number."""
    low: str = ""
    """Column with the lower end of an interval, drawn as a band; empty: none."""
    high: str = ""
    linear: bool = False
    """Lines on axes that are not logarithmic."""


@dataclass(frozen=True, kw_only=True)
class PublishedNumber:
    """A number that somebody published, beside the one measured here."""

    what: str
    published: str
    measured: str
    agrees: bool
    source: str


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """One study."""

    name: str
    title: str
    question: str
    measured: str
    """What was measured, on what."""
    points: Callable[[str], list[Row]]
    """Size (`"quick"` or `"full"`) to points."""
    at: Callable[..., Iterable[Row]]
    """The rows of one point."""
    charts: tuple[Chart, ...]
    claims: Callable[[Rows], list[PublishedNumber]]
    findings: Callable[[Rows], list[str]]
    """Sentences that the rows bear out, numbers taken from them."""
    limits: str
    """What the study does not show."""


def pick(rows: Rows, **wanted: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def one(rows: Rows, column: str, **wanted: Any) -> Any:
    """A value of the only row with these values."""
    (row,) = pick(rows, **wanted)
    return row[column]
