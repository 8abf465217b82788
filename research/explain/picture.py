"""The alignment of one step as SVG: every bit a cell, the window to scale, what is cut off hatched."""

from __future__ import annotations

from html import escape
from typing import Final

from mmabits.research.explain.layout import Window, bits, hidden, window
from mmabits.research.explain.words import binary, exact, label, place
from mmabits.research.trace import Step, Term, Trace

CELL: Final = 15
"""Width and height of a bit."""
_ROW: Final = 21
_LEFT: Final = 250
_RIGHT: Final = 230
_TOP: Final = 92

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


def step_picture(found: Trace, step: Step) -> str:
    """The alignment of one step as a complete SVG.

    Args:
        found: the trace it belongs to.
        step: which step.
    """
    shown = window(step)
    rows = len(step.terms)
    width = _LEFT + shown.columns * CELL + _RIGHT
    height = _TOP + (rows + 3) * _ROW + 24
    body = [*_heading(found, step), *_frame(step, shown, rows)]
    for number, term in enumerate(step.terms):
        body += _term(term, shown, _TOP + number * _ROW)
    body += _sums(step, shown, _TOP + rows * _ROW + 10)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="mb" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(f"alignment of step {step.number}")}"><style>{STYLE}</style>'
        f'<defs><pattern id="{_hatch(step, found)}" width="4" height="4" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<line class="hatch" y2="4" stroke-width="1.4"/></pattern></defs>'
        '<rect class="ground" width="100%" height="100%"/>' + "".join(body).replace(_CUT, f' fill="url(#{_hatch(step, found)})"') + "</svg>"
    )


def _hatch(step: Step, found: Trace) -> str:
    """The name of the picture's hatching: a page holds many pictures, and what is hidden lends no pattern to others."""
    return f"cut-{''.join(char if char.isalnum() else '-' for char in found.arch)}-{step.number}"


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{escape(words)}</text>'


def _heading(found: Trace, step: Step) -> list[str]:
    path = found.datapath
    what = f"step {step.number} of {len(found.steps)}, {place(step.k)}"
    numbers = f"largest exponent {step.largest}, F = {path.fraction_bits}: the window ends at 2^{step.last_place}"
    return [_text(0, 16, what, "big"), _text(0, 35, f"{found.instruction.ptx} on {found.arch}", "soft"), _text(0, 52, numbers, "soft")]


def _x(exponent: int, shown: Window) -> float:
    return _LEFT + shown.column(exponent) * CELL


def _frame(step: Step, shown: Window, rows: int) -> list[str]:
    """The window behind the bits, its right edge, and the weights above."""
    bottom = _TOP + (rows + 3) * _ROW
    start, end = _x(max(shown.largest, shown.bottom), shown), _x(max(shown.last_place, shown.bottom), shown) + CELL
    parts = [f'<rect class="win" x="{start:g}" y="{_TOP - 8}" width="{end - start:g}" height="{bottom - _TOP + 12}" rx="3"/>']
    if shown.bottom < shown.last_place:
        parts.append(f'<line class="edge" x1="{end:g}" x2="{end:g}" y1="{_TOP - 12}" y2="{bottom + 4}"/>')
    for exponent in sorted({shown.largest, shown.last_place, *range(shown.bottom + (-shown.bottom) % 8, shown.top + 1, 8)}):
        if exponent < shown.bottom:
            continue
        near = any(0 < abs(exponent - fixed) < 3 for fixed in (shown.largest, shown.last_place))
        if not near or exponent in (shown.largest, shown.last_place):
            parts.append(_text(_x(exponent, shown) + CELL / 2, _TOP - 14, str(exponent), "soft mid"))
    return parts


def _cells(significand: int, lsb: int, shown: Window, y: float, kind: str) -> list[str]:
    parts = []
    for exponent, bit in bits(significand, lsb, shown):
        x, kept = _x(exponent, shown), exponent >= shown.last_place
        classes = f"one {kind}{'' if bit else ' nil'}" if kept else "lost"
        told = f"{bit} x 2^{exponent}{'' if kept else ', cut off'}"
        parts.append(
            f"<g><title>{told}</title>"
            f'<rect class="{classes}"{"" if kept else _CUT} x="{x + 0.5:g}" y="{y + 0.5:g}" width="{CELL - 1}" height="{CELL - 1}" rx="2"/>'
            f'<text class="{"bit" if bit and kept else "dark"} mid" x="{x + CELL / 2:g}" y="{y + 11:g}">{bit}</text></g>'
        )
    return parts


def _term(term: Term, shown: Window, y: float) -> list[str]:
    kind = "held" if term.kind == "accumulator" else "minus" if term.significand < 0 else "plus"
    told = f"{binary(term.significand, term.lsb)} at exponent {term.exponent}"
    parts = [
        f"<g><title>{escape(told)}</title>{_text(_LEFT - 60, y + 12, label(term), 'end')}</g>",
        _text(_LEFT - 16, y + 12, str(term.exponent), "soft end"),
        *_cells(term.significand, term.lsb, shown, y, kind),
    ]
    if term.lost:
        more = f" (+{hidden(term, shown)} places)" if hidden(term, shown) else ""
        parts.append(_text(_x(shown.bottom, shown) + CELL + 8, y + 12, f"{exact(term.lost)}{more}", "cutword"))
    return parts


def _sums(step: Step, shown: Window, y: float) -> list[str]:
    width = _LEFT + shown.columns * CELL
    parts = [
        f'<line class="line" x1="0" x2="{width}" y1="{y - 6:g}" y2="{y - 6:g}"/>', _text(_LEFT - 60, y + 12, "sum of what is kept", "end"),
        *_cells(step.total, step.last_place, shown, y, "sum"),
        _text(_LEFT - 60, y + _ROW + 12, "rounded: accumulator", "end"),
    ]  # fmt: skip
    result = step.result
    if step.special or result.value is None:
        parts.append(_text(_x(shown.top, shown), y + _ROW + 12, f"{result}: {step.special or 'overflow'}", "cutword"))
        return parts
    parts += _cells(result.sign * result.significand, result.lsb, shown, y + _ROW, "good")
    lost = step.lost_by_alignment
    words = f"= {exact(result.value)}; alignment cut {exact(lost)}, rounding {exact(step.lost_by_rounding)}"
    parts.append(_text(_LEFT, y + 2 * _ROW + 14, words))
    return parts
