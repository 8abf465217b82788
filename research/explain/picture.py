"""The alignment of one step as SVG: every bit a cell, the window to scale, what is cut off hatched."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Final

from mmabits.research.explain.layout import Window, bits, hidden, window
from mmabits.research.explain.words import binary, exact, label, place
from mmabits.research.trace import Step, Term, Trace

CELL: Final = 15
"""Width and height of a bit."""


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """Where the parts of a picture lie: labels stand beside their bits, or on a telephone above them."""

    cell: float = CELL
    row: int = 21
    left: int = 250
    right: int = 230
    top: int = 92
    is_narrow: bool = False

    def x(self, exponent: int, shown: Window) -> float:
        return self.left + shown.column(exponent) * self.cell

    @property
    def above(self) -> int:
        """How far the bits lie below the top of their row."""
        return 15 if self.is_narrow else 0


_WIDE: Final = _Sizes()
_PHONE: Final = 312
"""What a picture can be wide on a telephone of 390 pixels, beside the page's margins."""
_LETTER: Final = 7.6
"""Width of a letter."""
_SMALLEST: Final = 4.5
"""Width of a bit there, at least: f64's hundreds of places scroll."""

_CUT: Final = " fill=?"
"""Stands for the picture's own hatching."""

STYLE: Final = """
.mb { font: 12.5px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; fill: var(--ink, #1c1d21); }
.mb .soft { fill: var(--soft, #5d6069); } .mb .big { font-size: 15px; font-weight: 600; } .mb .end { text-anchor: end; }
.mb .mid { text-anchor: middle; } .mb .win { fill: var(--window, #eaf0fd); }
.mb .edge { stroke: var(--accent, #2f5fd0); stroke-width: 1.5; }
.mb .ground { fill: var(--card, #fff); }
.mb .line { stroke: var(--line, #dedcd4); } .mb .one { stroke: none; } .mb .plus { fill: var(--plus, #2f5fd0); }
.mb .minus { fill: var(--minus, #c2571a); } .mb .held { fill: var(--held, #6c4bb6); } .mb .good { fill: var(--good, #1f7a4d); }
.mb .sum { fill: var(--ink, #1c1d21); } .mb .nil { fill-opacity: .16; } .mb .lost { stroke: var(--cut, #b9b6ad); }
.mb .hatch { stroke: var(--bad, #b3261e); } .mb .cutword { fill: var(--bad, #b3261e); }
.mb .bit { fill: var(--paper, #fff); font-size: 10px; }
.mb .dark { fill: var(--ink, #1c1d21); font-size: 10px; }
"""


def step_picture(found: Trace, step: Step, *, narrow: bool = False) -> str:
    """The alignment of one step as a complete SVG.

    Args:
        found: the trace it belongs to.
        step: which step.
        narrow: for a telephone: labels above the bits, bits as wide as there is room.
    """
    shown = window(step)
    sizes = _narrow(shown) if narrow else _WIDE
    rows = len(step.terms)
    width = f"{max(sizes.left + shown.columns * sizes.cell + sizes.right, _PHONE if narrow else 0):g}"
    height = sizes.top + (rows + 3) * sizes.row + (58 if narrow else 24)
    body = [*_heading(found, step, sizes), *_frame(step, shown, rows, sizes)]
    for number, term in enumerate(step.terms):
        body += _term(term, shown, sizes.top + number * sizes.row, sizes)
    body += _sums(step, shown, sizes.top + rows * sizes.row + 10, sizes)
    hatch = _hatch(step, found, sizes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="mb" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(f"alignment of step {step.number}")}"><style>{STYLE}</style>'
        f'<defs><pattern id="{hatch}" width="4" height="4" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<line class="hatch" y2="4" stroke-width="1.4"/></pattern></defs>'
        '<rect class="ground" width="100%" height="100%"/>' + "".join(body).replace(_CUT, f' fill="url(#{hatch})"') + "</svg>"
    )


def _narrow(shown: Window) -> _Sizes:
    cell = min(float(CELL), max(_SMALLEST, (_PHONE - 6) / shown.columns))
    return _Sizes(cell=round(cell, 2), row=38, left=2, right=4, top=64, is_narrow=True)


def _hatch(step: Step, found: Trace, sizes: _Sizes) -> str:
    """The name of the picture's hatching: a page holds many pictures, and what is hidden lends no pattern to others."""
    name = "".join(char if char.isalnum() else "-" for char in found.arch)
    return f"cut-{name}-{step.number}{'-narrow' if sizes.is_narrow else ''}"


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{escape(words)}</text>'


def _heading(found: Trace, step: Step, sizes: _Sizes) -> list[str]:
    path = found.datapath
    what = f"step {step.number} of {len(found.steps)}, {place(step.k)}"
    numbers = f"largest exponent {step.largest}, F = {path.fraction_bits}: the window ends at 2^{step.last_place}"
    if sizes.is_narrow:
        return [
            _text(0, 16, what, "big"),
            _text(0, 35, f"exponent {step.largest} down to {step.last_place}, F = {path.fraction_bits}", "soft"),
        ]
    return [_text(0, 16, what, "big"), _text(0, 35, f"{found.instruction.ptx} on {found.arch}", "soft"), _text(0, 52, numbers, "soft")]


def _frame(step: Step, shown: Window, rows: int, sizes: _Sizes) -> list[str]:
    """The window behind the bits, its right edge, and the weights above."""
    bottom = sizes.top + (rows + 3) * sizes.row
    start, end = sizes.x(max(shown.largest, shown.bottom), shown), sizes.x(max(shown.last_place, shown.bottom), shown) + sizes.cell
    parts = [f'<rect class="win" x="{start:g}" y="{sizes.top - 8}" width="{end - start:g}" height="{bottom - sizes.top + 12}" rx="3"/>']
    if shown.bottom < shown.last_place:
        parts.append(f'<line class="edge" x1="{end:g}" x2="{end:g}" y1="{sizes.top - 12}" y2="{bottom + 4}"/>')
    for exponent in sorted({shown.largest, shown.last_place, *range(shown.bottom + (-shown.bottom) % 8, shown.top + 1, 8)}):
        if exponent < shown.bottom:
            continue
        apart = 3 if not sizes.is_narrow else 3 * CELL / sizes.cell
        near = any(0 < abs(exponent - fixed) < apart for fixed in (shown.largest, shown.last_place))
        if not near or exponent in (shown.largest, shown.last_place):
            at = max(sizes.x(exponent, shown) + sizes.cell / 2, 10)
            parts.append(_text(at, sizes.top - 14, str(exponent), "soft mid"))
    return parts


def _cells(significand: int, lsb: int, shown: Window, y: float, kind: str, sizes: _Sizes) -> list[str]:
    parts = []
    cell, has_digits = sizes.cell, sizes.cell >= 8
    for exponent, bit in bits(significand, lsb, shown):
        x, kept = sizes.x(exponent, shown), exponent >= shown.last_place
        classes = f"one {kind}{'' if bit else ' nil'}" if kept else "lost"
        drawn = (
            f'<rect class="{classes}"{"" if kept else _CUT} x="{x + 0.5:g}" y="{y + 0.5:g}" '
            f'width="{cell - 1:g}" height="{CELL - 1}" rx="2"/>'
        )
        if has_digits:
            drawn += f'<text class="{"bit" if bit and kept else "dark"} mid" x="{x + cell / 2:g}" y="{y + 11:g}">{bit}</text>'
        told = f"{bit} x 2^{exponent}{'' if kept else ', cut off'}"
        parts.append(drawn if sizes.is_narrow else f"<g><title>{told}</title>{drawn}</g>")  # a telephone has no pointer to hover with
    return parts


def _fits(left: str, right: str) -> bool:
    """Whether two texts have room beside each other on a telephone."""
    return (len(left) + len(right) + 1) * _LETTER <= _PHONE


def _term(term: Term, shown: Window, y: float, sizes: _Sizes) -> list[str]:
    kind = "held" if term.kind == "accumulator" else "minus" if term.significand < 0 else "plus"
    told = f"{binary(term.significand, term.lsb)} at exponent {term.exponent}"
    more = f" (+{hidden(term, shown)} places)" if term.lost and hidden(term, shown) else ""
    bits_ = _cells(term.significand, term.lsb, shown, y + sizes.above, kind, sizes)
    if sizes.is_narrow:
        named = f"{label(term)}, 2^{term.exponent}"
        parts = [f"<g><title>{escape(told)}</title>{_text(sizes.left, y + 11, named)}</g>", *bits_]
        if term.lost:
            cut = next((each for each in (f"cut {exact(term.lost)}", f"cut {float(term.lost):.2g}") if _fits(named, each)), "cut")
            parts.append(_text(_PHONE, y + 11, cut, "cutword end"))
        return parts
    parts = [
        f"<g><title>{escape(told)}</title>{_text(sizes.left - 60, y + 12, label(term), 'end')}</g>",
        _text(sizes.left - 16, y + 12, str(term.exponent), "soft end"),
        *bits_,
    ]
    if term.lost:
        parts.append(_text(sizes.x(shown.bottom, shown) + sizes.cell + 8, y + 12, f"{exact(term.lost)}{more}", "cutword"))
    return parts


def _sums(step: Step, shown: Window, y: float, sizes: _Sizes) -> list[str]:
    width = sizes.left + shown.columns * sizes.cell

    def named(number: int, words: str) -> str:
        at = y + number * sizes.row
        return _text(sizes.left, at + 11, words) if sizes.is_narrow else _text(sizes.left - 60, at + 12, words, "end")

    parts = [
        f'<line class="line" x1="0" x2="{width:g}" y1="{y - 6:g}" y2="{y - 6:g}"/>', named(0, "sum of what is kept"),
        *_cells(step.total, step.last_place, shown, y + sizes.above, "sum", sizes),
        named(1, "rounded: accumulator"),
    ]  # fmt: skip
    result, below = step.result, y + sizes.row + sizes.above
    if step.special or result.value is None:
        parts.append(_text(sizes.x(shown.top, shown), below + 12, f"{result}: {step.special or 'overflow'}", "cutword"))
        return parts
    parts += _cells(result.sign * result.significand, result.lsb, shown, below, "good", sizes)
    cut = f"alignment cut {exact(step.lost_by_alignment)}", f"rounding {exact(step.lost_by_rounding)}"
    if sizes.is_narrow:
        return parts + [
            _text(sizes.left, below + 36 + 17 * number, words) for number, words in enumerate((f"= {exact(result.value)}", *cut))
        ]
    parts.append(_text(sizes.left, y + 2 * sizes.row + 14, f"= {exact(result.value)}; {cut[0]}, {cut[1]}"))
    return parts
