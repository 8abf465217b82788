"""An explanation on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from mmabits.reports.output import Fitting, Whole
from mmabits.research.explain.layout import Window, bits, hidden, window
from mmabits.research.explain.words import code, exact, label, place
from mmabits.research.trace import Addition, Step, Term, Trace

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mmabits.research.explain import Explanation

_EVENTS: Final = 24
"""Steps listed; of longer chains the first and the last half of as many."""


def explanation_lines(explanation: Explanation) -> Iterator[RenderableType]:
    """Everything to print, from top to bottom."""
    found = explanation.trace
    path = found.datapath
    place_of_d = f"[{explanation.row}, {explanation.column}] of "
    yield Whole(Text.assemble(("D", "bold"), place_of_d, (found.instruction.ptx, "bold"), f" on {found.arch}"))
    kept = f"F = {path.fraction_bits}, " if path.fraction_bits else ""
    yield Text(f"{path.name}: {kept}steps of {found.lowering.step}, {path.result_rounding.value} ({found.lowering.evidence})", "dim")
    yield ""
    yield _results(explanation)
    yield ""
    yield _steps(found)
    worst = found.costliest()
    yield ""
    yield from _alignment(found, worst)


def _results(explanation: Explanation) -> Fitting:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "result", "code", "result - exact"):
        table.add_column(heading)
    table.add_row("exact", exact(explanation.trace.exact), "", "")
    for found in explanation.traces:
        table.add_row(
            Text(found.arch),
            exact(found.result.value) if found.result.value is not None else str(found.result),
            code(found.result),
            exact(found.error),
        )
    return Fitting(table)


def _steps(found: Trace) -> Fitting:
    table = Table(title=f"{len(found.steps)} steps", title_justify="left")
    for heading in ("step", "elements", "largest exponent", "last place", "cut by alignment", "cut by rounding", "accumulator"):
        table.add_column(heading, justify="right" if heading != "elements" else "left")
    events = list(found.events)
    shown = events if len(events) <= _EVENTS else [*events[: _EVENTS // 2], None, *events[-_EVENTS // 2 :]]
    for event in shown:
        if event is None:
            table.add_row("...", f"{len(events) - _EVENTS} more")
        elif isinstance(event, Addition):
            table.add_row("+", event.why, "", "", "", exact(event.lost), str(event.result))
        else:
            special = event.special or exact(event.lost_by_rounding)
            table.add_row(
                str(event.number), place(event.k), str(event.largest), f"2^{event.last_place}", exact(event.lost_by_alignment), special,
                str(event.result),
            )  # fmt: skip
    return Fitting(table)


def _alignment(found: Trace, step: Step) -> Iterator[RenderableType]:
    shown = window(step)
    yield Text.assemble(
        (f"step {step.number}", "bold"), f", {place(step.k)}: bits from 2^{shown.top} down; the window ends at 2^{step.last_place}"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("term")
    table.add_column("exponent", justify="right")
    table.add_column("bits", no_wrap=True)
    table.add_column("cut off", justify="right")
    for term in step.terms:
        table.add_row(label(term), str(term.exponent), _bits(term, shown), exact(term.lost) if term.lost else "")
    table.add_row("sum", "", _total(step, shown), "")
    table.add_row(
        "accumulator",
        "",
        str(step.result) if step.special else _result(step, shown),
        exact(step.lost_by_rounding) if step.lost_by_rounding else "",
    )
    yield Fitting(table)


def _bits(term: Term, shown: Window) -> Text:
    text = Text()
    there = dict(bits(term.significand, term.lsb, shown))
    sign = "-" if term.significand < 0 else "+" if term.significand else " "
    text.append(sign, "cyan" if sign == "+" else "yellow")
    for exponent in range(shown.top, shown.bottom - 1, -1):
        kept = exponent >= shown.last_place
        if exponent == shown.last_place - 1:
            text.append("|", "dim")
        digit = str(there[exponent]) if exponent in there else ("." if kept else " ")
        text.append(digit, ("bold" if exponent in there else "dim") if kept else "red")
    if hidden(term, shown):
        text.append(f" ... {hidden(term, shown)} more places", "red")
    return text


def _total(step: Step, shown: Window) -> Text:
    return _plain(step.total, step.last_place, shown, "bold")


def _result(step: Step, shown: Window) -> Text:
    result = step.result
    return _plain(result.sign * result.significand, result.lsb, shown, "bold green")


def _plain(significand: int, lsb: int, shown: Window, style: str) -> Text:
    there = dict(bits(significand, lsb, shown))
    text = Text("-" if significand < 0 else "+" if significand else " ")
    for exponent in range(shown.top, max(shown.last_place, shown.bottom) - 1, -1):
        text.append(str(there[exponent]) if exponent in there else ".", style if exponent in there else "dim")
    return text
