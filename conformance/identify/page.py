"""What `mmabits identify` found, as one self-contained page."""

from __future__ import annotations

from mmabits.conformance.identify.identification import Identification
from mmabits.conformance.pages.charts import Bar, bars
from mmabits.conformance.pages.report import Block, Cell, ChartBlock, NoteBlock, Report, Section, TableBlock, TextBlock, plural, report_page
from mmabits.isa import DATAPATHS


def identification_page(found: Identification, *, asked: str) -> str:
    """The page: the row, what each number rests on, the rows of isa/ that agree, and what stays undecided.

    Args:
        found: the result.
        asked: what was asked: a file, or an instruction and its device.
    """
    sections = [Section(title="The row", blocks=(TextBlock(lines=(found.row,)),))]
    if found.findings:
        sections.append(Section(title="What each number rests on", blocks=tuple(_findings(found))))
    sections += [Section(title="Rows that agree", blocks=(_matches(found),)), Section(title="Undecided", blocks=(_undecided(found),))]
    return report_page(Report(
        title="A datapath, identified", lead=f"Asked: {asked}.", verdict=_verdict(found), tone="good" if found.survived else "bad",
        facts=(
            ("operands", f"{found.model.a_type.name} x {found.model.b_type.name} into {found.model.d_type.name}, K = {found.model.k}"),
            ("dot products", f"{found.probes:,}"), ("contradict the row", f"{found.contradictions:,}"),
        ),
        sections=tuple(sections),
    ))  # fmt: skip


def _verdict(found: Identification) -> str:
    if not found.survived:
        return f"nothing that is modelled fits: {found.contradictions:,} of {plural(found.probes, 'answer')} contradict the nearest row"
    return f"one row gives all {plural(found.probes, 'answer')}" + (
        f"; {plural(len(found.names), 'row')} of isa/ {'agrees' if len(found.names) == 1 else 'agree'}"
        if found.names
        else "; no row of isa/ does"
    )


def _findings(found: Identification) -> list[Block]:
    rows = tuple((part.what, Cell(text=part.value, is_code=True), part.evidence, part.probes) for part in found.findings)
    table = TableBlock(headings=("what", "value", "evidence", "dot products"), rows=rows, numeric=frozenset({3}))
    drawn = [Bar(label=part.what, value=part.probes) for part in found.findings if part.probes]
    if not drawn:
        return [table]
    return [table, ChartBlock(svg=bars(drawn, label="dot products by question"), caption="Dot products that each question took.")]


def _matches(found: Identification) -> Block:
    if not found.matches:
        return NoteBlock(text="No row of isa/ gives every answer.", tone="soft")
    first = {match.datapath: match for match in reversed(found.matches)}
    rows = tuple(
        (name, first[name].arch, Cell(text=first[name].instruction, is_code=True), str(DATAPATHS[name].evidence)) for name in found.names
    )
    return TableBlock(headings=("row", "architecture", "for example", "evidence"), rows=rows)


def _undecided(found: Identification) -> Block:
    if not found.undecided:
        return NoteBlock(text="Nothing: every neighbour that was tried gives another answer somewhere.", tone="good")
    rows = tuple((part.what, ", ".join(part.alternatives), part.reason) for part in found.undecided)
    return TableBlock(
        headings=("what", "would do as well", "why"), rows=rows,
        caption="Neighbours of the row that give every answer too, and the argument where no operands could tell.",
    )  # fmt: skip


__all__ = ["identification_page"]
