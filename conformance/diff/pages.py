"""What `mmabits diff` found as one self-contained page: one product in full, or several cases with a table on top."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mmabits.conformance.diff.comparing import Difference, Kind
from mmabits.conformance.diff.kernel_runs import KernelDifference, attribution_text
from mmabits.conformance.diff.page import difference_map, difference_page, ulp_histogram
from mmabits.conformance.diff.run_differences import RunDifference
from mmabits.conformance.diff.steps import AlongK, error_chart, parting_chart
from mmabits.reports.pages.report import Block, Cell, ChartBlock, NoteBlock, Report, Section, TableBlock, plural, report_page

if TYPE_CHECKING:
    from mmabits.conformance.diff.running import AnyDifference
    from mmabits.research.explain import Explanation


def differences_page(found: Sequence[AnyDifference], failed: Sequence[tuple[str, str]] = ()) -> str:
    """The page.

    Args:
        found: what was compared.
        failed: names and errors of cases that could not be.
    """
    first = found[0] if len(found) == 1 and not failed else None
    if isinstance(first, RunDifference):
        return difference_page(first.run, first.schedule, first.arch, first.found, first.fits, first.explanation, along=first.along)
    different = [one for one in found if not one.is_equal]
    sections = [Section(title="Cases", blocks=(_summary(found),))] if len(found) > 1 else []
    if failed:
        lines = tuple((Cell(text=name, is_code=True), error) for name, error in failed)
        sections.append(Section(title="Not compared", blocks=(TableBlock(headings=("case", "why"), rows=lines),)))
    for one in found if len(found) == 1 else different:
        sections += _sections(one, is_alone=len(found) == 1)
    return report_page(
        Report(
            title=_title(found), lead=_lead(found), verdict=_verdict(found, failed), tone="bad" if different or failed else "good",
            facts=_facts(found), sections=tuple(sections),
        )
    )  # fmt: skip


def _title(found: Sequence[AnyDifference]) -> str:
    return f"{found[0].run.case}, recorded and emulated" if len(found) == 1 else "Kernels and products, recorded and emulated"


def _lead(found: Sequence[AnyDifference]) -> str:
    text = "The same call on the same operands, once as recorded and once emulated; every bit of the results compared."
    if any(one.run.kind != "hardware" for one in found):
        text += " What was recorded here is a stand-in that the emulator computed: it proves nothing about hardware."
    return text


def _verdict(found: Sequence[AnyDifference], failed: Sequence[tuple[str, str]]) -> str:
    if len(found) == 1 and not failed:
        return found[0].verdict
    equal = sum(one.is_equal for one in found)
    text = f"{plural(len(found), 'case')}: {equal:,} equal, {len(found) - equal:,} different"
    return f"{text}; {plural(len(failed), 'case')} not compared" if failed else text


def _facts(found: Sequence[AnyDifference]) -> tuple[tuple[str, str], ...]:
    versions = {f"{name} {version}": None for one in found for name, version in sorted(one.run.versions.items())}
    return (
        ("recorded on", ", ".join(dict.fromkeys(f"{one.run.gpu} ({one.run.arch})" for one in found)) or "nothing"),
        ("emulated", ", ".join(dict.fromkeys(one.arch for one in found)) or "nothing"),
        ("elements", f"{sum(one.elements for one in found):,}"), ("differ", f"{sum(one.differing for one in found):,}"),
        ("seeds", ", ".join(dict.fromkeys(str(one.run.seed) for one in found))), ("with", ", ".join(versions)),
    )  # fmt: skip


def _summary(found: Sequence[AnyDifference]) -> TableBlock:
    rows = tuple(
        (
            Cell(text=one.run.case, is_code=True), one.run.call, one.elements,
            Cell(text=f"{one.differing:,}", tone="good" if one.is_equal else "bad"), one.verdict,
        )
        for one in sorted(found, key=lambda one: one.is_equal)
    )  # fmt: skip
    return TableBlock(headings=("case", "call", "elements", "differ", "verdict"), rows=rows, numeric=frozenset({2, 3}))


def _sections(one: AnyDifference, *, is_alone: bool) -> Iterator[Section]:
    name = "" if is_alone else f"{one.run.case}: "
    if isinstance(one, RunDifference):
        blocks = list(_difference(one.found))
        rows = tuple((Cell(text=fit.schedule.instruction.ptx, is_code=True), fit.schedule.words, fit.differing) for fit in one.fits)
        if rows:
            blocks.append(
                TableBlock(
                    headings=("instruction", "schedule", "differ"), rows=rows, numeric=frozenset({2}),
                    caption="Schedules that were tried, the best first.",
                )
            )  # fmt: skip
        yield Section(title=f"{name}{one.verdict}", blocks=(*blocks, *_along(one.along), *_explained(one.explanation)))
        return
    yield Section(title=f"{name}emulated with", blocks=(_emulated(one),))
    for output, difference in one.outputs.items():
        if not difference.is_equal:
            title = f"{name}{output}, {difference.differing:,} of {difference.elements:,} elements differ"
            yield Section(title=title, blocks=tuple(_difference(difference)))
    if one.attribution is not None:
        note = NoteBlock(text=attribution_text(one.attribution))
        yield Section(title=f"{name}where the first comes from", blocks=(note, *_explained(one.attribution.explanation)))


def _emulated(one: KernelDifference) -> Block:
    if not one.report.emulated:
        return NoteBlock(text="No matrix product: elementwise arithmetic alone.", tone="soft")
    rows = tuple(
        (line.site, Cell(text=line.instruction.ptx, is_code=True), line.shape, line.count, str(line.evidence))
        for line in one.report.emulated
    )
    return TableBlock(headings=("where", "instruction", "M x N x K", "count", "evidence"), rows=rows, numeric=frozenset({3}))


def _difference(found: Difference) -> Iterator[Block]:
    if found.is_equal:
        yield NoteBlock(text="Every bit is equal.", tone="good")
        return
    classes = [(kind, count) for kind, count in found.counts.items() if count and kind is not Kind.EQUAL]
    yield TableBlock(headings=("class", "elements"), rows=tuple((kind.value, count) for kind, count in classes), numeric=frozenset({1}))
    yield ChartBlock(
        svg=difference_map(found),
        caption=f"Output tiles of {found.tile[0]} x {found.tile[1]} by their first row and column; the stronger, the more differs.",
    )
    if found.ulps:
        yield ChartBlock(svg=ulp_histogram(found), caption=f"Differing values by their distance in ulp of {found.dtype}.")
    rows = tuple(
        (
            one.row, one.column, one.kind.value, Cell(text=one.hardware, is_code=True), Cell(text=one.emulated, is_code=True),
            one.hardware_value, one.emulated_value, "" if one.ulp is None else f"{one.ulp:,}",
        )
        for one in found.first
    )  # fmt: skip
    yield TableBlock(
        headings=("row", "column", "class", "recorded", "emulated", "recorded", "emulated", "ulp"), rows=rows,
        numeric=frozenset({0, 1, 5, 6, 7}), caption="The first differences.",
    )  # fmt: skip


def _along(along: AlongK | None) -> Iterator[Block]:
    """Where along K the sums part."""
    if along is None:
        return
    yield NoteBlock(text=f"Along K: {' '.join(along.words)}")
    parts = parting_chart(along)
    if parts:
        yield ChartBlock(svg=parts, caption="Followed elements by where the two schedules part.")
    chart = error_chart(along)
    if chart:
        yield ChartBlock(svg=chart, caption="The first differing element: the sum so far less the exact sum of the same elements.")


def _explained(explanation: Explanation | None) -> Iterator[Block]:
    """The step of an element's chain that cut off most, drawn."""
    if explanation is None:
        return
    from mmabits.research.explain.picture import step_picture
    from mmabits.research.explain.words import exact

    chain = explanation.trace
    text = f"Element [{explanation.row}, {explanation.column}]: exactly {exact(chain.exact)}, after {len(chain.steps)} steps {chain.result}"
    yield NoteBlock(text=f"{text}, before any scale and rounding of the result.")
    if chain.steps:
        step = max(chain.steps, key=lambda one: (abs(one.lost_by_alignment), -one.number))
        yield ChartBlock(svg=step_picture(chain, step), caption=f"Step {step.number}, where alignment cut off most.")


__all__ = ["differences_page"]
