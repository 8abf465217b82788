"""What `mmabits evaluate` found."""

from __future__ import annotations

import math
from typing import Final

from mmabits.reports.pages.charts import Bar, bars
from mmabits.reports.pages.report import Block, Cell, ChartBlock, Count, NoteBlock, Report, Section, TableBlock, plural, report_page
from mmabits.research.evaluation.account import END_HEADINGS, EvaluatedDifference, Evaluation, setting_cells, shown_number

NOTICE: Final = (
    "Matrix products are emulated, fused attention as PyTorch's math path; norms, activations and what else is no product are PyTorch's "
    "on the CPU, on one thread, the same in every setting."
)
IN_RUNS: Final = "As they come in the two runs: what differs in one layer goes into the next."
WORDS: Final = (
    "differ: results that differ in any bit, where both have one type. largest: the largest difference. error: root mean square of the "
    "differences, relative to that of the other's results. top-1: positions with the same most likely token. KL: mean Kullback-Leibler "
    "divergence of the setting's distribution from the other's, in natural logarithms.",
    "Each setting is held against the model in f32, as PyTorch computes it on the CPU, and against the setting that has the first "
    "architecture, recipe, library or accumulator of those named, and is the same otherwise.",
)


def evaluation_page(found: Evaluation) -> str:
    """The page: settings, ends, layers of each difference."""
    ends = found.ends
    beside = [end for end in ends if end.against != "f32"]
    same = sum(end.changed == 0 for end in beside)
    refused = sum(bool(each.refusal) for each in found.settings)
    verdict = f"{plural(len(found.settings) - refused, 'setting')} run"
    if beside:
        verdict += f"; {same} of {len(beside)} comparisons between settings show the same bits"
    missed = dict.fromkeys(text for each in found.settings for text in each.not_emulated)
    facts = [("model", found.model), ("text", f"{plural(found.pieces, 'piece')} of {found.length} tokens at most")]
    facts += [("left out, without effect", text) for text in found.without_effect]
    sections = [Section(title="Settings", blocks=(_settings(found),))]
    if ends:
        sections.append(Section(title="What differs at the end", blocks=(*_chart(ends), _ends(found))))
        layers = tuple(block for end in ends if end.changed != 0 and found.layers(end) for block in _layers(found, end))
        sections += [Section(title="Linear layers, in their order", blocks=(NoteBlock(text=IN_RUNS), *layers))] if layers else []
    if missed:
        sections.append(Section(title="Not emulated", blocks=tuple(NoteBlock(text=text) for text in missed)))
    sections.append(Section(title="What the words mean", blocks=tuple(NoteBlock(text=text) for text in WORDS)))
    return report_page(
        Report(
            title="A model in many settings", lead=f"{found.model}, on text.", verdict=verdict, tone="bad" if refused else "",
            notice=NOTICE,
            counts=(
                Count(value=len(found.settings), what="settings"),
                Count(value=refused, what="cannot be run", tone="bad" if refused else ""),
                Count(value=sum(each.tokens for each in found.settings[:1]), what="tokens"),
            ),
            facts=tuple(facts), sections=tuple(sections),
        )
    )  # fmt: skip


def _settings(found: Evaluation) -> TableBlock:
    rows: list[tuple[Cell | str | int | float, ...]] = []
    for each in found.settings:
        *cells, products = setting_cells(each)
        evidence = ", ".join(f"{100 * part:.3g}% {level}" for level, part in each.evidence)
        rows.append((*cells, Cell(text=products, tone="bad" if each.refusal else ""), evidence))
    return TableBlock(
        headings=("setting", "perplexity", "in f32", "emulated", "products", "evidence"), rows=tuple(rows), numeric=frozenset({1, 2, 3})
    )


def _ends(found: Evaluation) -> TableBlock:
    rows = tuple(
        tuple(Cell(text=cell, tone="good" if end.changed == 0 and place == 2 else "") for place, cell in enumerate(found.end_cells(end)))
        for end in found.ends
    )
    return TableBlock(headings=END_HEADINGS, rows=rows, numeric=frozenset(range(2, 7)))


def _chart(ends: tuple[EvaluatedDifference, ...]) -> tuple[Block, ...]:
    """How far each setting is from f32."""
    of_f32 = [(end, end.error if end.kl is None else end.kl) for end in ends if end.against == "f32"]
    shown = [(end, value) for end, value in of_f32 if value is not None and math.isfinite(value)]
    if not shown:
        return ()
    what = "Relative error" if any(end.kl is None for end, _ in shown) else "Kullback-Leibler divergence from the model in f32"
    drawn = bars([Bar(label=end.words, value=max(value, 0.0), text=shown_number(value)) for end, value in shown], label=what)
    return (ChartBlock(svg=drawn, caption=f"{what}, mean over positions."),)


def _layers(found: Evaluation, end: EvaluatedDifference) -> tuple[Block, ...]:
    rows = tuple(
        (
            each.layer, each.results, "other rows" if each.changed is None else each.changed, shown_number(each.largest),
            shown_number(each.error),
        )
        for each in found.layers(end)
    )  # fmt: skip
    table = TableBlock(headings=("layer", "results", "differ", "largest", "error"), rows=rows, numeric=frozenset(range(1, 5)))
    return NoteBlock(text=f"{end.words} against {end.other}:"), table
