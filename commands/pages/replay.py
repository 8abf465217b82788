"""What `mmabits replay` found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import dropwhile
from pathlib import Path
from typing import Final

from mmabits.conformance.diff.comparing import Difference, UlpBin
from mmabits.conformance.diff.counting import Described, FileReport, describe_code, described_lines
from mmabits.conformance.recorded.base import Provenance
from mmabits.isa import OperandError, format_spec
from mmabits.reports.pages.charts import Bar, Stack, bars, stacks
from mmabits.reports.pages.report import (
    CHARTED,
    Block,
    Cell,
    ChartBlock,
    Count,
    NoteBlock,
    Report,
    Section,
    TableBlock,
    folded,
    not_done,
    plural,
    report_page,
)

_DESCRIBED: Final = 60
"""Differences step by step at most, the first of each file before the second of any."""


def counts_page(reports: Sequence[FileReport]) -> str:
    """The page: rows by GPU, how far differing results are apart, the first of them step by step, every file.

    Args:
        reports: as `count_files` gives them; those of files that could not be replayed are named as such.

    Raises:
        OperandError: no reports.
    """
    if not reports:
        raise OperandError("a page of a replay needs one report or more, got none")
    done = [report for report in reports if report.error is None]
    failed = [report for report in reports if report.error is not None]
    differing = sum(report.differing for report in done)
    sections = [not_done("Not replayed", "file", [(Path(one.path).name, str(one.error)) for one in failed])] if failed else []
    if differing:
        sections += _different([report for report in done if report.differing])
    if done:
        sections += [Section(title="Rows by GPU", blocks=tuple(_by_gpu(done))), Section(title="Files", blocks=(_files(done),))]
    return report_page(Report(
        title="Recordings against the emulator",
        lead="Recorded operands run through the emulator, and every bit of the results compared.",
        notice=_notice(done), verdict=_verdict(done, len(failed)), tone="bad" if differing or failed else "good",
        counts=(
            Count(value=len(done), what="files replayed"), Count(value=sum(report.rows for report in done), what="rows"),
            Count(value=differing, what="rows differ", tone="bad" if differing else "good" if done else ""),
            *([Count(value=len(failed), what="files not replayed", tone="bad")] if failed else []),
        ),
        facts=tuple(_facts(done)), sections=tuple(sections),
    ))  # fmt: skip


def _verdict(done: Sequence[FileReport], failed: int) -> str:
    rows, differing = sum(report.rows for report in done), sum(report.differing for report in done)
    files = sum(report.differing > 0 for report in done)
    if not done:
        return f"Nothing replayed: {plural(failed, 'file')} could not be"
    found = f"{differing:,} of {plural(rows, 'row')} differ, in {plural(files, 'file')}"
    text = found if differing else f"{plural(rows, 'row')}, every bit equal"
    return f"{text}; {plural(failed, 'file')} not replayed" if failed else text


def _notice(done: Sequence[FileReport]) -> str:
    others = [report for report in done if report.kind != Provenance.HARDWARE]
    if not others:
        return ""
    kinds = ", ".join(sorted({report.kind for report in others}))
    which = "All files" if len(others) == len(done) else f"{len(others):,} of {len(done):,} files"
    return f"{which} hold results that a program computed (kind {kinds}), no GPU: they are compared, but prove nothing about hardware."


def _facts(done: Sequence[FileReport]) -> Iterator[tuple[str, str]]:
    if not done:
        return
    rows: dict[str, int] = {}
    evidence: dict[str, int] = {}
    for report in done:
        rows[report.kind] = rows.get(report.kind, 0) + report.rows
        evidence[str(report.evidence)] = evidence.get(str(report.evidence), 0) + report.rows
    yield "results made by", ", ".join(f"{kind} ({plural(count, 'row')})" for kind, count in rows.items())
    yield "how well the datapaths are known", ", ".join(f"{level} ({plural(count, 'row')})" for level, count in evidence.items())
    yield "architectures", ", ".join(dict.fromkeys(report.arch for report in done))


# By GPU --------------------------------------------------------------------------------------------------------------


def _by_gpu(reports: Sequence[FileReport]) -> Iterator[Block]:
    gpus: dict[str, list[FileReport]] = {}
    for report in reports:
        gpus.setdefault(report.by, []).append(report)
    parts = []
    for gpu, files in sorted(gpus.items(), key=lambda group: -sum(report.rows for report in group[1]))[:CHARTED]:
        rows, differing = sum(report.rows for report in files), sum(report.differing for report in files)
        told = f"{differing:,} of {plural(rows, 'row')} differ" if differing else f"{plural(rows, 'row')}, equal"
        parts.append(Stack(label=gpu, values=(rows - differing, differing), text=told))
    chart = stacks(parts, names=("equal", "differ"), colors=("var(--accent)", "var(--bad)"), label="rows by GPU")
    left = f" {len(gpus) - CHARTED:,} GPUs with fewer rows are left out here." if len(gpus) > CHARTED else ""
    yield ChartBlock(svg=chart, caption=f"Rows replayed, of {plural(len(gpus), 'GPU or program', 'GPUs or programs')}.{left}")


def _files(reports: Sequence[FileReport]) -> TableBlock:
    rows = tuple(
        (
            Path(report.path).stem, Cell(text=f"{report.differing:,}", tone="bad" if report.differing else "good"), report.rows,
            report.by, report.arch, Cell(text=report.instruction, is_code=True), str(report.evidence),
        )
        for report in sorted(reports, key=lambda report: not report.differing)
    )  # fmt: skip
    caption = "Files that differ come first." if any(report.differing for report in reports) else ""
    headings = ("file", "differ", "rows", "GPU", "architecture", "instruction", "evidence")
    return TableBlock(headings=headings, rows=rows, numeric=frozenset({1, 2}), caption=caption)


# What differs --------------------------------------------------------------------------------------------------------


def _different(reports: Sequence[FileReport]) -> Iterator[Section]:
    """How far apart, by the type of D, whose ulp it is; then the first differences."""
    blocks: list[Block] = []
    for form in dict.fromkeys(report.d_type for report in reports):
        blocks += _apart([report.apart for report in reports if report.d_type == form and report.apart is not None], form)
    yield Section(title="How far apart", blocks=tuple(blocks))
    yield Section(title="First differences", blocks=tuple(_first(reports)))


def _apart(found: Sequence[Difference], form: str) -> Iterator[Block]:
    """Those of several files, added up."""
    classes: dict[str, int] = {}
    ulps: dict[UlpBin, int] = {}
    for one in found:
        for kind, count in one.counts.items():
            classes[kind.value] = classes.get(kind.value, 0) + count
        for part in one.ulps:
            whole = UlpBin(low=part.low, high=part.high, count=0)
            ulps[whole] = ulps.get(whole, 0) + part.count
    largest = max((one.largest_ulp for one in found), default=0)
    yield TableBlock(
        headings=(f"class of {form} results", "rows"), rows=tuple((name, count) for name, count in classes.items() if count),
        numeric=frozenset({1}), caption=f"The largest difference of two values is {largest:,} ulp of {form}." if ulps else "",
    )  # fmt: skip
    parts = [Bar(label=f"{part.label} ulp", value=count) for part, count in sorted(ulps.items(), key=lambda one: one[0].low)]
    parts = list(dropwhile(lambda part: not part.value, parts))
    if len(parts) > 1:
        chart = bars(parts, label=f"differing {form} values by ulp")
        yield ChartBlock(svg=chart, caption=f'Rows of the class "value" by the distance of both results, in ulp of {form}.')


def _first(reports: Sequence[FileReport]) -> Iterator[Block]:
    """Each folded away under its results; the first of all stands open."""
    every = [(number, report, difference) for report in reports for number, difference in enumerate(report.differences)]
    every.sort(key=lambda one: one[0])
    for number, (_, report, difference) in enumerate(every[:_DESCRIBED]):
        yield folded(_title(report, difference), described_lines(report, difference), is_open=number == 0)
    silent = sum(not report.differences for report in reports)
    notes = []
    if len(every) > _DESCRIBED:
        notes.append(f"{len(every) - _DESCRIBED:,} more of {len(every):,} described differences are left out here; --json has all.")
    if silent:
        notes.append(
            f"Of {plural(silent, 'file')} that {'differs' if silent == 1 else 'differ'} no row is described: "
            "none was asked for (--limit 0), or the file holds chains, which record no result on the way."
        )
    if notes:
        yield NoteBlock(text=" ".join(notes), tone="soft")


def _title(report: FileReport, difference: Described) -> str:
    form = format_spec(report.d_type)
    place = f"{Path(report.path).stem}, row {difference.row:,}"
    recorded, computed = (_result(describe_code(code, form)) for code in (difference.recorded, difference.computed))
    return f"{place}: recorded {recorded}, computed {computed}"


def _result(described: str) -> str:
    """Value and code, without the fields."""
    code, _, value = described.split("  ")
    return f"{value} ({code})"


__all__ = ["counts_page"]
