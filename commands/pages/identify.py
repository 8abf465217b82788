"""What `mmabits identify` found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from mmabits.conformance.diff.counting import describe_code
from mmabits.conformance.identify.identification import Identification, Match
from mmabits.conformance.probes.score import operands_of
from mmabits.conformance.recorded.base import Provenance
from mmabits.conformance.recorded.dots import DotVectors
from mmabits.isa import DATAPATHS, Arithmetic, Rounding
from mmabits.reports.pages.charts import Bar, bars
from mmabits.reports.pages.report import (
    Block,
    Cell,
    ChartBlock,
    Count,
    NoteBlock,
    Report,
    Section,
    TableBlock,
    TextBlock,
    plural,
    report_page,
)
from mmabits.research.exact import evaluate
from mmabits.research.model import Model
from mmabits.research.probes.mutants import orders

_SHOWN: Final = 24
"""Contradicting rows of a recording at most."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked, in words."""

    device: str
    """A file, or an instruction and where it ran."""
    kind: str
    """Who answered: `hardware`, or another name of a program's answers."""
    facts: tuple[tuple[str, str], ...] = ()
    """What else is known of it."""
    recording: DotVectors | None = None
    """Where the answers are those of a file."""


def identification_page(found: Identification, *, asked: Asked) -> str:
    """The page: the row, what each number rests on, what contradicts it, the known datapaths that agree, and what stays undecided.

    Args:
        found: the result.
        asked: what was asked.
    """
    sections = [Section(title="The numbers", blocks=(TextBlock(lines=(found.what_if,)), _numbers(found.model)))]
    if not found.survived:
        sections.append(Section(title="What contradicts it", blocks=tuple(_contradictions(found, asked.recording))))
    sections += [
        Section(title="What each number rests on", blocks=tuple(_findings(found))),
        Section(title="Undecided", blocks=tuple(_undecided(found))),
        Section(title="Known datapaths that agree", blocks=(_matches(found),)),
    ]
    return report_page(Report(
        title="A datapath, identified", lead=f"Asked: {asked.device}.", notice=_notice(asked),
        verdict=_verdict(found), tone="good" if found.survived else "bad",
        counts=(
            Count(value=found.probes, what="dot products"),
            Count(value=found.contradictions, what="contradict the row", tone="good" if found.survived else "bad"),
            Count(value=len(found.names), what="known datapaths agree"),
            *([Count(value=len({part.what for part in found.undecided}), what="numbers or rules undecided")] if found.survived else []),
        ),
        facts=(("operands", _operands(found.model)), *asked.facts), sections=tuple(sections),
    ))  # fmt: skip


def _verdict(found: Identification) -> str:
    if not found.survived:
        return f"Nothing that is modelled fits: {found.contradictions:,} of {plural(found.probes, 'answer')} contradict the nearest row"
    if not found.names:
        return f"A row gives all {plural(found.probes, 'answer')}; it is none of the known datapaths"
    agree = f"{plural(len(found.names), 'known datapath')} {'gives' if len(found.names) == 1 else 'give'}"
    return f"{agree} every answer to {plural(found.probes, 'dot product')}"


def _notice(asked: Asked) -> str:
    if asked.kind == Provenance.HARDWARE:
        return ""
    return f"A program answered, no GPU (kind {asked.kind}): the page says what that program computes, and proves nothing about hardware."


def _operands(model: Model) -> str:
    scales = f", {model.scale_type.name} scales for {model.block}" if model.scale_type else ""
    return f"{model.a_type.name} x {model.b_type.name} into {model.d_type.name}, K = {model.k}{scales}"


# The row -------------------------------------------------------------------------------------------------------------


def _numbers(model: Model) -> TableBlock:
    """The model's fields in words, those that its arithmetic has."""
    aligned = model.arithmetic in (Arithmetic.FUSED, Arithmetic.GROUPED)
    rows: list[tuple[str, str]] = [("arithmetic", model.arithmetic.value)]
    if aligned:
        rows += [
            ("L, elements of a step", f"{model.step:,}, in {plural(len(model.steps), 'step')}"),
            ("order of K", next((name for name, order in orders(model.k).items() if order == model.order), "one of its own")),
            ("F, fraction bits kept", "all: the sum is exact" if model.fraction_bits is None else str(model.fraction_bits)),
            ("e_zero, exponent of a zero", "none" if model.zero_exponent is None else str(model.zero_exponent)),
            ("rounding of the alignment", _rounding(model.alignment)),
            ("place of c", "added afterwards" if model.c_added else "in the first step"),
        ]  # fmt: skip
    if model.group > 1:
        rows.append(("products of a group", str(model.group)))
    if not model.is_integer:
        rows += [
            ("rounding of the result", f"{_rounding(model.rounding)}, to {plural(model.result_fraction_bits, 'fraction bit')}"),
            ("code of NaN", describe_code(model.nan, model.d_type).split("  ")[0]),
        ]
    rows.append(("overflow", model.overflow.value))
    if model.operand_format is not None:
        rows.append(("operands are converted to", model.operand_format.name))
    return TableBlock(headings=("number or rule", "value"), rows=tuple(rows))


def _rounding(rounding: Rounding) -> str:
    return f"{rounding.name.lower().replace('_', ' ')} ({rounding.value})"


def _contradictions(found: Identification, recording: DotVectors | None) -> Iterator[Block]:
    if recording is None:
        yield NoteBlock(text=f"{plural(found.contradictions, 'answer')} of the device; ask it again through a recording to see which.")
        return
    computed = evaluate(found.model, operands_of(recording, found.model.k))
    wrong = np.flatnonzero(computed != recording.d)
    rows = []
    for row in wrong[:_SHOWN].tolist():
        there, here = (describe_code(int(codes[row]), recording.d_type).split("  ") for codes in (recording.d, computed))
        rows.append((row, *(Cell(text=code, is_code=True) for code in (there[0], here[0])), there[-1], here[-1]))
    text = f"Rows of the file that the nearest row computes otherwise: {len(wrong):,} of {recording.rows:,}."
    if len(wrong) > _SHOWN:
        text += f" The first {_SHOWN} are shown, {len(wrong) - _SHOWN:,} are left out."
    yield TableBlock(
        headings=("row", "recorded", "nearest row", "recorded", "nearest row"), rows=tuple(rows), numeric=frozenset({0, 3, 4}),
        caption=text,
    )  # fmt: skip


# Evidence ------------------------------------------------------------------------------------------------------------


def _findings(found: Identification) -> Iterator[Block]:
    if not found.findings:
        text = (
            "A recording answers no questions: the known datapaths for its types, and neighbours of the nearest, were held against "
            "all that it holds."
        )
        yield NoteBlock(text=text)
        return
    asked = [part for part in found.findings if part.probes]
    if asked:
        rest = found.probes - sum(part.probes for part in asked)
        parts = [Bar(label=part.what, value=part.probes) for part in asked]
        if rest > 0:
            parts.append(Bar(label="attacks on the row", value=rest, color="var(--soft)"))
        yield ChartBlock(svg=bars(parts, label="dot products by question"), caption="Dot products that each question took, in order.")
    rows = tuple((part.what, part.value, part.probes, part.evidence) for part in found.findings)
    yield TableBlock(headings=("what", "found", "dot products", "evidence"), rows=rows, numeric=frozenset({2}))


def _undecided(found: Identification) -> Iterator[Block]:
    if not found.survived:
        yield NoteBlock(text="Not to be told: the row itself does not give every answer.", tone="soft")
        return
    if not found.undecided:
        yield NoteBlock(text="Nothing: every neighbour that was tried gives another answer somewhere.", tone="good")
        return
    yield NoteBlock(text="Neighbours of the row that give every answer too, and the argument where no operands could tell them apart.")
    rows = tuple((part.what, ", ".join(part.alternatives), part.reason) for part in found.undecided)
    yield TableBlock(headings=("what", "would do as well", "why"), rows=rows)


def _matches(found: Identification) -> Block:
    if not found.matches:
        return NoteBlock(text="None gives every answer.", tone="soft")
    rows = []
    for name in found.names:
        of_name: Sequence[Match] = [match for match in found.matches if match.datapath == name]
        archs = ", ".join(dict.fromkeys(match.arch for match in of_name))
        evidence = str(DATAPATHS[name].evidence) if name in DATAPATHS else "what-if"
        rows.append((Cell(text=name, is_code=True), evidence, archs, Cell(text=of_name[0].instruction, is_code=True)))
    return TableBlock(headings=("row", "evidence", "architectures", "for example"), rows=tuple(rows))


__all__ = ["Asked", "identification_page"]
