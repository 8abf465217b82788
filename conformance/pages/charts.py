"""Charts as SVG in the colours of the page around them, light or dark; plain text, no library, no network.

Every function returns an `<svg>` element whose texts are escaped. Widths are those of a desktop page; the page lets wide ones scroll.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from mmabits.isa import OperandError

COLORS: Final = ("var(--accent)", "var(--accent-2)", "var(--held)", "var(--good)", "var(--bad)", "var(--soft)")
"""Of series, in turn."""
WIDTH: Final = 720
_BAR: Final = 24
_CHARACTER: Final = 8.0
"""Width of one at 13 px, about."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar of a bar chart."""

    label: str
    value: float
    """At least 0."""
    text: str = ""
    """At its end; empty: the value."""
    color: str = COLORS[0]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a line chart."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    """As many as x, finite."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical line in a line chart, with its name."""

    x: float
    label: str


def bars(parts: Sequence[Bar], *, label: str) -> str:
    """Horizontal bars, one below the other.

    Args:
        parts: from top to bottom.
        label: what the chart shows, for those who cannot see it.

    Raises:
        OperandError: no bars, or a value below 0 or not finite.
    """
    if not parts or not all(math.isfinite(part.value) and part.value >= 0 for part in parts):
        raise OperandError("a bar chart takes one bar or more, of finite values from 0 upward")
    most = max(part.value for part in parts) or 1.0
    left = min(320.0, 12 + _CHARACTER * max(len(part.label) for part in parts))
    room = WIDTH - left - 14 - _CHARACTER * max(len(_bar_text(part)) for part in parts)
    drawn = []
    for number, part in enumerate(parts):
        y = number * _BAR
        width = max(room * part.value / most, 2.0 if part.value else 0.0)
        drawn.append(
            f'<text x="{left - 8:.1f}" y="{y + 16}" text-anchor="end">{escape(part.label)}</text>'
            f'<rect x="{left:.1f}" y="{y + 4}" width="{width:.1f}" height="{_BAR - 8}" rx="2" fill="{escape(part.color)}"/>'
            f'<text x="{left + width + 6:.1f}" y="{y + 16}">{escape(_bar_text(part))}</text>'
        )
    return _svg(WIDTH, _BAR * len(parts) + 4, label, drawn)


def _bar_text(part: Bar) -> str:
    return part.text or _number(part.value)


def heat_map(
    counts: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]], *, tile: tuple[int, int] = (1, 1), label: str, what: str = "differ"
) -> str:
    """A matrix of tiles, the stronger the colour the larger the share of a tile.

    Args:
        counts: (rows, columns) of tiles: how many of a tile's elements.
        sizes: likewise: how many elements a tile has, at least 1.
        tile: rows and columns of a tile, by which the edges are labelled.
        label: what the chart shows.
        what: what is counted, for the text under the pointer.

    Raises:
        OperandError: no tiles, or shapes that do not agree.
    """
    if not counts or not counts[0] or [len(row) for row in counts] != [len(row) for row in sizes]:
        raise OperandError("a heat map takes counts and sizes of the same rows and columns, at least one")
    rows, columns = len(counts), len(counts[0])
    left = 12 + _CHARACTER * len(str((rows - 1) * tile[0]))
    size = max(3.0, min(44.0, (WIDTH - left - 8) / columns, 480 / rows))
    gap = 1.0 if size > 6 else 0.0
    drawn = []
    for i, (line, whole) in enumerate(zip(counts, sizes, strict=True)):
        for j, (count, elements) in enumerate(zip(line, whole, strict=True)):
            shade = f'"var(--bad)" fill-opacity="{0.18 + 0.82 * count / elements:.3f}"' if count else '"var(--line)" fill-opacity="0.55"'
            at = f"rows from {i * tile[0]}, columns from {j * tile[1]}"
            drawn.append(
                f'<rect x="{left + j * size:.1f}" y="{22 + i * size:.1f}" width="{size - gap:.1f}" height="{size - gap:.1f}" fill={shade}>'
                f"<title>{at}: {count:,} of {elements:,} {escape(what)}</title></rect>"
            )
    for i in range(0, rows, max(1, round(22 / size))):
        drawn.append(f'<text x="{left - 6:.1f}" y="{22 + i * size + min(size, 17) - 4:.1f}" text-anchor="end">{i * tile[0]}</text>')
    for j in range(0, columns, max(1, math.ceil((_CHARACTER * len(str(columns * tile[1])) + 8) / size))):
        drawn.append(f'<text x="{left + j * size:.1f}" y="14">{j * tile[1]}</text>')
    return _svg(math.ceil(left + columns * size + 4), math.ceil(26 + rows * size), label, drawn)


def lines(series: Sequence[Line], *, x_label: str, y_label: str, label: str, marks: Sequence[Mark] = ()) -> str:
    """Lines over a common x, with a legend where there is more than one; both axes are linear, zero is drawn where it is inside.

    Args:
        series: the lines, one or more, each of one point or more.
        x_label: what x is.
        y_label: what y is, with its unit.
        label: what the chart shows.
        marks: vertical lines with a name.

    Raises:
        OperandError: no points, x and y of different lengths, or values that are not finite.
    """
    if not series or not all(line.x and len(line.x) == len(line.y) for line in series):
        raise OperandError("a line chart takes lines with as many x as y, at least one")
    x, y = ([value for line in series for value in getattr(line, axis)] for axis in "xy")
    if not all(map(math.isfinite, (*x, *y, *(mark.x for mark in marks)))):
        raise OperandError("a line chart takes finite values")
    across, up = _Axis.over(x, 64.0, WIDTH - 16.0), _Axis.over([*y, 0.0], 268.0, 44.0)
    drawn = [_grid_line(up, tick, WIDTH) for tick in up.ticks()]
    drawn += [f'<text x="{across.at(tick):.1f}" y="288" text-anchor="middle">{_number(tick)}</text>' for tick in across.ticks()]
    drawn += [
        f'<text x="{(64 + WIDTH - 16) / 2:.0f}" y="310" text-anchor="middle" fill="var(--soft)">{escape(x_label)}</text>',
        f'<text x="0" y="14" fill="var(--soft)">{escape(y_label)}</text>',
    ]
    drawn += [_mark(mark, across) for mark in marks]
    for number, line in enumerate(series):
        color = COLORS[number % len(COLORS)]
        points = " ".join(f"{across.at(px):.1f},{up.at(py):.1f}" for px, py in zip(line.x, line.y, strict=True))
        dash = ' stroke-dasharray="6 3"' if number % 2 else ""
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.8" stroke-linejoin="round"{dash}/>')
        if len(line.x) <= 64:
            drawn += [
                f'<circle cx="{across.at(px):.1f}" cy="{up.at(py):.1f}" r="2.6" fill="{color}">'
                f"<title>{_number(px)}: {_number(py)}</title></circle>"
                for px, py in zip(line.x, line.y, strict=True)
            ]
    return _svg(WIDTH, 318, label, drawn + (_legend(series) if len(series) > 1 else []))


def _grid_line(up: _Axis, tick: float, width: int) -> str:
    y, strong = up.at(tick), ' stroke-width="1.4" stroke="var(--soft)"' if tick == 0 else ' stroke="var(--line)"'
    return (
        f'<line x1="64" x2="{width - 16}" y1="{y:.1f}" y2="{y:.1f}"{strong}/>'
        f'<text x="58" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>'
    )


def _mark(mark: Mark, across: _Axis) -> str:
    x = across.at(mark.x)
    is_right = x > WIDTH / 2
    anchor, shift = ("end", -6) if is_right else ("start", 6)
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="44" y2="268" stroke="var(--bad)" stroke-dasharray="3 3"/>'
        f'<text x="{x + shift:.1f}" y="56" text-anchor="{anchor}" fill="var(--bad)">{escape(mark.label)}</text>'
    )


def _legend(series: Sequence[Line]) -> list[str]:
    drawn, x = [], 64.0
    for number, line in enumerate(series):
        color = COLORS[number % len(COLORS)]
        dash = ' stroke-dasharray="6 3"' if number % 2 else ""
        drawn.append(
            f'<line x1="{x:.0f}" x2="{x + 22:.0f}" y1="30" y2="30" stroke="{color}" stroke-width="2.4"{dash}/>'
            f'<text x="{x + 28:.0f}" y="34">{escape(line.label)}</text>'
        )
        x += 44 + _CHARACTER * len(line.label)
    return drawn


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    stop: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, stop: float) -> _Axis:
        low, high = min(values), max(values)
        return cls(low, high if high > low else low + 1.0, start, stop)

    def at(self, value: float) -> float:
        """Where a value is drawn."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Four to ten round numbers inside, zero exactly zero."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        return [number * step for number in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    return f"{value:.4g}"


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(label)}" font-size="13" fill="currentColor">{"".join(parts)}</svg>'
    )
