"""Charts as SVG in the colours of the page around them, light or dark; plain text, no library, no network.

Every function returns an `<svg>` element whose texts are escaped. Bars take the width of the page; what is wider than it scrolls.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from mmabits.isa import OperandError

COLORS: Final = ("var(--accent)", "var(--accent-2)", "var(--held)", "var(--good)", "var(--bad)", "var(--soft)")
"""Of series, in turn."""
ARCH_COLORS: Final = {
    "sm_70": "#8a7560", "sm_75": "#a87900", "sm_80": "#1f8a5b", "sm_86": "#6a9a00", "sm_89": "#8b5cc7", "sm_90a": "#4477e0",
    "sm_100a": "#d0632a", "sm_103a": "#e0982f", "sm_110a": "#c8455a", "sm_120a": "#0f93a6", "sm_121a": "#4aa8b0",
}  # fmt: skip
"""An architecture has one colour on every page, which shows on light and dark paper."""
_GENERATIONS: Final = {
    "Volta": "sm_70", "Turing": "sm_75", "Ampere": "sm_80", "Ada": "sm_89", "Hopper": "sm_90a", "Blackwell": "sm_100a",
}  # fmt: skip
"""What a name of a generation stands for where no architecture is named."""
_NAMED: Final = re.compile(rf"\b({'|'.join([*ARCH_COLORS, *_GENERATIONS])})\b")
WIDTH: Final = 720
_BAR: Final = 38
"""Height of a bar with its label above it."""
_LEGEND: Final = 26
"""Height of a row of a legend."""
_GAP: Final = 16
"""Between its entries."""
_PHONE: Final = 340.0
"""What a chart can be wide on a telephone."""
_CHARACTER: Final = 7.6
"""Width of one at 13 px, about."""
_LONGEST: Final = 48
"""Characters of a label; of longer ones the middle is left out."""
_ALL_DRAWN: Final = 4096
"""Tiles of a heat map up to which those without a count are drawn one by one too."""


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
class Stack:
    """A bar of parts, one after the other."""

    label: str
    values: tuple[float, ...]
    """One for each part, at least 0."""
    text: str = ""
    """At its end; empty: the sum."""


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


def arch_color(text: str) -> str:
    """The colour of the one architecture that a text names; empty where it names none, or several."""
    named = {_GENERATIONS.get(name, name) for name in _NAMED.findall(text)}
    return ARCH_COLORS[named.pop()] if len(named) == 1 else ""


def series_colors(names: Sequence[str], palette: Sequence[str] = COLORS) -> list[str]:
    """A colour for each series: an architecture's own where its name tells one, else one of the palette, in turn."""
    free = [color for color in palette if color not in set(map(arch_color, names))] or list(palette)
    others = iter(range(len(names)))
    return [arch_color(name) or free[next(others) % len(free)] for name in names]


def coinciding(series: Sequence[tuple[Sequence[float], Sequence[float]]], *, is_log: bool = False) -> list[int | None]:
    """For each line the first one before it that it is drawn upon: the same x, and y within the width of a line.

    Args:
        series: x and y of each.
        is_log: whether y is drawn by its logarithm.
    """
    every = [value for _, y in series for value in y]
    width = 0.004 * (max(every) - min(every)) if every else 0.0

    def is_upon(one: tuple[Sequence[float], Sequence[float]], other: tuple[Sequence[float], Sequence[float]]) -> bool:
        if tuple(one[0]) != tuple(other[0]):
            return False
        return all(abs(a - b) <= (0.04 * abs(b) if is_log else width) for a, b in zip(one[1], other[1], strict=True))

    return [next((at for at in range(number) if is_upon(line, series[at])), None) for number, line in enumerate(series)]


def told_in_legend(names: Sequence[str], same: Sequence[int | None]) -> list[str]:
    """Names for a legend; of a line that is drawn upon another it is said."""
    return [name if at is None else f"{name} (upon {names[at]})" for name, at in zip(names, same, strict=True)]


def bars(parts: Sequence[Bar], *, label: str) -> str:
    """Horizontal bars as wide as the page, one below the other, each under its label.

    Args:
        parts: from top to bottom.
        label: what the chart shows, for those who cannot see it.

    Raises:
        OperandError: no bars, or a value below 0 or not finite.
    """
    if not parts or not all(math.isfinite(part.value) and part.value >= 0 for part in parts):
        raise OperandError("a bar chart takes one bar or more, of finite values from 0 upward")
    most = max(part.value for part in parts) or 1.0
    texts = [part.text or _number(part.value) for part in parts]
    drawn = [
        _bar(number * _BAR, part.label, text, [(part.value / most, part.color, "")])
        for number, (part, text) in enumerate(zip(parts, texts, strict=True))
    ]
    return _wide_svg(_BAR * len(parts), [part.label for part in parts], texts, label, drawn)


def stacks(parts: Sequence[Stack], *, names: Sequence[str], colors: Sequence[str] = COLORS, label: str) -> str:
    """Horizontal bars of several parts each, with a legend.

    Args:
        parts: from top to bottom.
        names: of the parts, as many as each bar has values.
        colors: theirs.
        label: what the chart shows, for those who cannot see it.

    Raises:
        OperandError: no bars, values below 0 or not finite, or another number of values, names or colours.
    """
    if not parts or not all(math.isfinite(value) and value >= 0 for part in parts for value in part.values):
        raise OperandError("a chart of stacked bars takes one bar or more, of finite values from 0 upward")
    if any(len(part.values) != len(names) for part in parts) or len(names) > len(colors):
        raise OperandError(f"stacked bars of {len(names)} names take as many values each, and colours for them")
    sums = [sum(part.values) for part in parts]
    texts = [part.text or _number(total) for part, total in zip(parts, sums, strict=True)]
    labels = [part.label for part in parts]
    width = max(_PHONE, _narrowest(labels, texts))
    drawn = _legend([(name, color, False) for name, color in zip(names, colors, strict=False)], start=0, y=9, width=width)
    top = _LEGEND * _legend_rows(names, 0, width)
    most = max(sums) or 1.0
    for number, (part, text) in enumerate(zip(parts, texts, strict=True)):
        segments = [
            (value / most, color, f"{_number(value)} {name}") for value, color, name in zip(part.values, colors, names, strict=False)
        ]
        drawn.append(_bar(top + number * _BAR, part.label, text, segments))
    return _wide_svg(top + _BAR * len(parts), labels, texts, label, drawn)


def _bar(y: int, label: str, text: str, segments: Sequence[tuple[float, str, str]]) -> str:
    """A label, the text at the other end, and below them the bar on its track. Segments are shares of the width, colours and titles."""
    short = shortened(label)
    title = f"<title>{escape(label)}</title>" if short != label else ""
    drawn = [
        f'<text x="0" y="{y + 14}">{escape(short)}{title}</text>'
        f'<text x="100%" y="{y + 14}" text-anchor="end" fill="var(--soft)">{escape(text)}</text>'
        f'<rect x="0" y="{y + 20}" width="100%" height="9" rx="2" fill="var(--line)" fill-opacity="0.55"/>'
    ]
    start = 0.0
    for share, color, name in segments:
        if share:
            told = f"<title>{escape(name)}</title>" if name else ""
            drawn.append(
                f'<rect x="{100 * start:.3f}%" y="{y + 20}" width="{100 * share:.3f}%" height="9" rx="2" fill="{escape(color)}" '
                f'style="width:max(2px,{100 * share:.3f}%)">{told}</rect>'
            )
        start += share
    return "".join(drawn)


def shortened(text: str, most: int = _LONGEST) -> str:
    """A text without its middle where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (most - 1 - head) :]}"


def _narrowest(labels: Sequence[str], texts: Sequence[str]) -> float:
    """The width at which no label runs into the text at the other end."""
    longest = max((len(shortened(label)) for label in labels), default=0) + max((len(text) for text in texts), default=0)
    return max(300.0, 16 + _CHARACTER * longest)


def _wide_svg(height: int, labels: Sequence[str], texts: Sequence[str], label: str, parts: Sequence[str]) -> str:
    """As wide as the place it stands in, but never so narrow that texts would meet."""
    return (
        f'<svg role="img" aria-label="{escape(label)}" font-size="13" fill="currentColor" '
        f'style="display:block;width:100%;max-width:52rem;min-width:{_narrowest(labels, texts):.0f}px;height:{height}px">'
        f"{''.join(parts)}</svg>"
    )


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
    drawn: list[str] = []
    if rows * columns > _ALL_DRAWN:
        drawn.append(
            f'<rect x="{left:.1f}" y="22" width="{columns * size:.1f}" height="{rows * size:.1f}" fill="var(--line)" fill-opacity="0.55"/>'
        )
    for i, (line, whole) in enumerate(zip(counts, sizes, strict=True)):
        for j, (count, elements) in enumerate(zip(line, whole, strict=True)):
            if not count and rows * columns > _ALL_DRAWN:
                continue
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
    names = told_in_legend([line.label for line in series], coinciding([(line.x, line.y) for line in series]))
    colors = series_colors([line.label for line in series])
    legend = [(name, color, bool(number % 2)) for number, (name, color) in enumerate(zip(names, colors, strict=True))]
    rows = _legend_rows(names, 64, WIDTH) if len(series) > 1 else 0
    top, bottom = 32.0 + _LEGEND * rows, 256.0 + _LEGEND * rows
    across, up = _Axis.over([*x, *(mark.x for mark in marks)], 64.0, WIDTH - 16.0), _Axis.over([*y, 0.0], bottom, top)
    drawn = [_grid_line(up, tick, WIDTH) for tick in up.ticks()]
    drawn += [
        f'<text x="{across.at(tick):.1f}" y="{bottom + 20:.0f}" text-anchor="middle">{_number(tick)}</text>' for tick in across.ticks()
    ]
    drawn += [
        f'<text x="{(64 + WIDTH - 16) / 2:.0f}" y="{bottom + 42:.0f}" text-anchor="middle" fill="var(--soft)">{escape(x_label)}</text>',
        f'<text x="0" y="14" fill="var(--soft)">{escape(y_label)}</text>',
    ]
    for number, (line, color) in enumerate(zip(series, colors, strict=True)):
        points = " ".join(f"{across.at(px):.1f},{up.at(py):.1f}" for px, py in zip(line.x, line.y, strict=True))
        dash = ' stroke-dasharray="6 3"' if number % 2 else ""
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.8" stroke-linejoin="round"{dash}/>')
        if len(line.x) <= 64:
            drawn += [
                f'<circle cx="{across.at(px):.1f}" cy="{up.at(py):.1f}" r="2.6" fill="{color}">'
                f"<title>{_number(px)}: {_number(py)}</title></circle>"
                for px, py in zip(line.x, line.y, strict=True)
            ]
    drawn += [_mark(mark, across, top, bottom, number) for number, mark in enumerate(sorted(marks, key=lambda mark: mark.x))]
    return _svg(WIDTH, bottom + 50, label, drawn + (_legend(legend, start=64, y=30, width=WIDTH) if rows else []))


def _grid_line(up: _Axis, tick: float, width: int) -> str:
    y, strong = up.at(tick), ' stroke-width="1.4" stroke="var(--soft)"' if tick == 0 else ' stroke="var(--line)"'
    return (
        f'<line x1="64" x2="{width - 16}" y1="{y:.1f}" y2="{y:.1f}"{strong}/>'
        f'<text x="58" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>'
    )


def _mark(mark: Mark, across: _Axis, top: float, bottom: float, number: int) -> str:
    """Its name stands beside it; names of neighbours stand on three heights."""
    x = across.at(mark.x)
    is_right = x > WIDTH / 2
    anchor, shift = ("end", -6) if is_right else ("start", 6)
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.0f}" y2="{bottom:.0f}" stroke="var(--bad)" stroke-dasharray="3 3"/>'
        f'<text x="{x + shift:.1f}" y="{top + 12 + 16 * (number % 3):.0f}" text-anchor="{anchor}" fill="var(--bad)" '
        'paint-order="stroke" stroke="var(--paper)" stroke-width="4" stroke-linejoin="round">'
        f"{escape(shortened(mark.label))}</text>"
    )


def _legend_places(names: Sequence[str], start: float, width: float) -> list[tuple[int, float]]:
    """(row, x) of each entry of a legend; what does not fit goes into the next row."""
    places, row, x = [], 0, start
    for name in names:
        size = 28 + _CHARACTER * len(shortened(name)) + _GAP
        if x > start and x + size - _GAP > width:
            row, x = row + 1, start
        places.append((row, x))
        x += size
    return places


def _legend_rows(names: Sequence[str], start: float, width: float) -> int:
    return 1 + max((row for row, _ in _legend_places(names, start, width)), default=-1)


def _legend(entries: Sequence[tuple[str, str, bool]], *, start: float, y: float, width: float) -> list[str]:
    """Name, colour, and whether the line is broken, of each entry."""
    drawn = []
    for (name, color, is_broken), (row, x) in zip(entries, _legend_places([name for name, _, _ in entries], start, width), strict=True):
        at = y + _LEGEND * row
        dash = ' stroke-dasharray="6 3"' if is_broken else ""
        drawn.append(
            f'<line x1="{x:.0f}" x2="{x + 22:.0f}" y1="{at:.0f}" y2="{at:.0f}" stroke="{escape(color)}" stroke-width="4"{dash}/>'
            f'<text x="{x + 28:.0f}" y="{at + 4:.0f}">{escape(shortened(name))}</text>'
        )
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
        """Three to eight round numbers inside, zero exactly zero."""
        rough = (self.high - self.low) / 6
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
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
