"""What `mmabits replay` found, as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mmabits.conformance.pages.charts import Bar, bars
from mmabits.conformance.pages.report import Block, Cell, ChartBlock, NoteBlock, Report, Section, TableBlock, folded, plural, report_page
from mmabits.conformance.replay import FileReport, difference_lines
from mmabits.isa import OperandError

_CHARTED: Final = 40
"""Bars at most; of more groups those with most rows."""


def replay_page(reports: Sequence[FileReport]) -> str:
    """The page: rows by GPU, every file, the first differences step by step.

    Args:
        reports: as `replay.replay_files` gives them; those of files that could not be replayed are named as such.

    Raises:
        OperandError: no reports.
    """
    if not reports:
        raise OperandError("a page of a replay needs one report or more, got none")
    done = [report for report in reports if report.error is None]
    failed = [report for report in reports if report.error is not None]
    rows, differing = sum(report.rows for report in done), sum(report.differing for report in done)
    sections = [Section(title="Rows by GPU", blocks=_by_gpu(done))] if done else []
    if failed:
        lines = tuple((Cell(text=Path(report.path).name, is_code=True), str(report.error)) for report in failed)
        sections.append(Section(title="Not replayed", blocks=(TableBlock(headings=("file", "why"), rows=lines),)))
    if differing:
        sections.append(Section(title="First differences", blocks=tuple(_differences(done))))
    if done:
        sections.append(Section(title="Files", blocks=(_files(done),)))
    return report_page(Report(
        title="Recordings against the emulator",
        lead="Recorded operands run through the emulator, and every bit of the results compared.",
        verdict=_verdict(rows, differing, len(failed)), tone="bad" if differing or failed else "good",
        facts=(("files", f"{len(reports):,}"), ("rows", f"{rows:,}"), ("differ", f"{differing:,}"), ("made by", _kinds(done))),
        sections=tuple(sections),
    ))  # fmt: skip


def _verdict(rows: int, differing: int, failed: int) -> str:
    found = f"{differing:,} of {plural(rows, 'row')} differ" if differing else f"{plural(rows, 'row')}, every bit equal"
    return f"{found}; {plural(failed, 'file')} not replayed" if failed else found


def _kinds(reports: Sequence[FileReport]) -> str:
    kinds = {kind: sum(report.rows for report in reports if report.kind == kind) for kind in dict.fromkeys(one.kind for one in reports)}
    return ", ".join(f"{kind} ({plural(rows, 'row')})" for kind, rows in kinds.items()) or "nothing"


def _by_gpu(reports: Sequence[FileReport]) -> tuple[Block, ...]:
    gpus: dict[str, list[FileReport]] = {}
    for report in reports:
        gpus.setdefault(report.gpu if report.kind == "hardware" else f"{report.gpu} ({report.kind})", []).append(report)
    groups = sorted(gpus.items(), key=lambda group: -sum(report.rows for report in group[1]))[:_CHARTED]
    drawn = []
    for gpu, files in groups:
        rows, differing = sum(report.rows for report in files), sum(report.differing for report in files)
        text = f"{rows:,} rows, {differing:,} differ" if differing else f"{rows:,} rows, equal"
        drawn.append(Bar(label=gpu, value=rows, text=text, color="var(--bad)" if differing else "var(--good)"))
    chart = ChartBlock(svg=bars(drawn, label="rows by GPU"), caption="Rows replayed; green: every bit equal, red: some differ.")
    if any(report.kind != "hardware" for report in reports):
        note = "Files that an emulator computed are compared like the others, but prove nothing about hardware."
        return chart, NoteBlock(text=note, tone="soft")
    return (chart,)


def _files(reports: Sequence[FileReport]) -> TableBlock:
    rows = tuple(
        (
            Path(report.path).stem, report.gpu, Cell(text=report.instruction, is_code=True), report.arch, str(report.evidence), report.rows,
            Cell(text=f"{report.differing:,}", tone="bad" if report.differing else "good"),
        )
        for report in reports
    )  # fmt: skip
    headings = ("file", "GPU", "instruction", "arch", "evidence", "rows", "differ")
    return TableBlock(headings=headings, rows=rows, numeric=frozenset({5, 6}))


def _differences(reports: Sequence[FileReport]) -> list[Block]:
    """Each folded away under its first line; the first of all stands open."""
    found: list[Block] = []
    for report in reports:
        for difference in report.differences:
            title, *lines = difference_lines(report, difference)
            found.append(folded(title, lines, is_open=not found))
    if not found:
        found.append(
            NoteBlock(text="None of the differing rows can be shown step by step: chains record no result on the way.", tone="soft")
        )
    return found
