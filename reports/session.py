"""The report of an `emulate` block as a page: what of the program's arithmetic was emulated, on which evidence, and what was not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from mmabits.emulator.hooks.condensed import rows
from mmabits.reports.pages.charts import COLORS, Stack, stacks
from mmabits.reports.pages.report import CHARTED, Cell, ChartBlock, Count, Report, Section, TableBlock, plural, report_page

if TYPE_CHECKING:
    from mmabits.emulator.hooks.session import SessionReport

LEVELS: Final = ("recorded", "published", "inferred")
"""Evidence, the best first."""
PARTS: Final = (*LEVELS, "not emulated")
_TONES: Final = {"recorded": "good", "published": "", "inferred": "soft"}
_PARTS: Final = ("var(--good)", COLORS[0], "var(--cut)", "var(--bad)")
"""Colours of PARTS."""


def session_page(report: SessionReport) -> str:
    """The page: shares by evidence, whole and by module; every row of the report.

    Args:
        report: of `session.report()`.

    Raises:
        MmabitsError: jinja2 is not installed.
    """
    missed = sum(line.multiply_adds or 0 for line in report.skipped)
    unknown = sum(line.multiply_adds is None for line in report.skipped)
    share = report.share
    verdict = "Nothing was multiplied" if share is None else f"{100 * share:.4g}% of the multiply-adds that can be counted were emulated"
    facts = [("architecture", report.arch)]
    if report.emulated:
        facts.append(("weakest evidence", str(min(line.evidence for line in report.emulated))))
    if unknown:
        facts.append(("of unknown size", f"{plural(unknown, 'line')} under Not emulated"))
    return report_page(
        Report(
            title=f"Emulated with the tensor cores of {report.arch}",
            lead="What one block of emulate multiplied, on which evidence that rests, and what ran as the CPU computes it.",
            verdict=verdict,
            tone="" if share is None else "good" if share == 1 and not report.skipped else "bad" if share < 1 else "",
            counts=(
                Count(value=report.multiply_adds, what="multiply-adds emulated"),
                Count(value=missed, what="counted and not emulated", tone="bad" if missed else ""),
                Count(value=len({line.instruction for line in report.emulated}), what="instructions"),
            ),
            facts=tuple(facts), sections=tuple(_sections(report)),
        )
    )  # fmt: skip


def _sections(report: SessionReport) -> Iterator[Section]:
    whole = report.multiply_adds + sum(line.multiply_adds or 0 for line in report.skipped)
    if whole:
        yield Section(title="Arithmetic by evidence", blocks=tuple(_charts(report, whole)))
    if report.emulated:
        yield Section(title="Products", blocks=(_products(report, whole),))
    if report.skipped:
        yield Section(title="Not emulated", blocks=(_skipped(report, whole),))
    if report.kernels:
        yield Section(title="Kernels that ran whole, as compiled", blocks=(_kernels(report),))
    if report.chosen:
        told = tuple((Cell(text=each.site, is_code=True), each.configuration, each.count, each.why) for each in report.chosen)
        table = TableBlock(headings=("kernel", "configuration", "launches", "why"), rows=told, numeric=frozenset({2}))
        yield Section(title="Autotuned: nothing is measured", blocks=(table,))
    if report.undefined:
        gaps = tuple((Cell(text=each.site, is_code=True), each.operation, each.count, each.what, each.here) for each in report.undefined)
        table = TableBlock(headings=("where", "operation", "calls", "what", "here"), rows=gaps, numeric=frozenset({2}))
        yield Section(title="Undefined on a GPU", blocks=(table,))


def place_of(site: str) -> str:
    """The module of a site, or what stands for it: `layers.0.q_proj: addmm at model.py:3` is of `layers.0.q_proj`."""
    return site.partition(": ")[0]


def _charts(report: SessionReport, whole: int) -> Iterator[ChartBlock]:
    total, by_place = [0] * len(PARTS), defaultdict[str, list[int]](lambda: [0] * len(PARTS))
    for line in report.emulated:
        for counts in (total, by_place[place_of(line.site)]):
            counts[PARTS.index(str(line.evidence))] += line.multiply_adds
    for missed in report.skipped:
        for counts in (total, by_place[place_of(missed.site)]):
            counts[-1] += missed.multiply_adds or 0
    names = f"{', '.join(PARTS[:-1])} evidence of the instructions, and what is not emulated"
    yield ChartBlock(
        svg=stacks([_stack("all that can be counted", total, whole)], names=PARTS, colors=_PARTS, label="Multiply-adds by evidence"),
        caption=f"Multiply-adds: {names}.",
    )
    placed = {place: counts for place, counts in by_place.items() if sum(counts)}
    if len(placed) > 1:
        most = set(sorted(placed, key=lambda place: -sum(placed[place]))[:CHARTED])
        shown = [_stack(place, counts, whole) for place, counts in placed.items() if place in most]
        left = f" The {len(shown)} largest of {len(placed)}." if len(shown) < len(placed) else ""
        yield ChartBlock(
            svg=stacks(shown, names=PARTS, colors=_PARTS, label="Multiply-adds by module"),
            caption=f"The same by module, or by line of code where no module ran, in order of first appearance.{left}",
        )


def _stack(label: str, counts: list[int], whole: int) -> Stack:
    return Stack(label=label, values=tuple(map(float, counts)), text=_part(sum(counts), whole))


def _part(size: int, whole: int) -> str:
    return f"{100 * size / whole:.3g}%" if whole else ""


def _products(report: SessionReport, whole: int) -> TableBlock:
    found = tuple(
        (
            Cell(text=line.site, is_code=True), Cell(text=line.instruction, is_code=True), line.shape, line.count, line.multiply_adds,
            _part(line.multiply_adds, whole), Cell(text=line.evidence, tone=_TONES[line.evidence]), line.note,
        )
        for line in rows(report.emulated)
    )  # fmt: skip
    return TableBlock(
        headings=("where", "instruction", "M x N x K", "count", "multiply-adds", "share", "evidence", "note"), rows=found,
        numeric=frozenset({3, 4, 5}), caption="Products that differ in one length alone are one row.",
    )  # fmt: skip


def _skipped(report: SessionReport, whole: int) -> TableBlock:
    found = tuple(
        (
            Cell(text=line.site, is_code=True), Cell(text=line.operation, is_code=True), line.count,
            "not known" if line.multiply_adds is None else line.multiply_adds, _part(line.multiply_adds or 0, whole), line.reason,
        )
        for line in report.skipped
    )  # fmt: skip
    return TableBlock(headings=("where", "operation", "count", "multiply-adds", "share", "why"), rows=found, numeric=frozenset({2, 3, 4}))


def _kernels(report: SessionReport) -> TableBlock:
    found = tuple(
        (Cell(text="" if place else kernel.name, is_code=True), heading, words)
        for kernel in report.kernels
        for place, (heading, words) in enumerate(kernel.lines)
    )
    return TableBlock(headings=("kernel", "", ""), rows=found)
