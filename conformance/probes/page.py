"""What `mmabits vectors score` found, as one self-contained page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mmabits.conformance.pages.charts import Bar, bars
from mmabits.conformance.pages.report import Block, Cell, ChartBlock, NoteBlock, Report, Section, TableBlock, plural, report_page
from mmabits.conformance.probes.score import Score

_CHARTED: Final = 40
"""Bars at most."""


def score_page(scores: Sequence[Score]) -> str:
    """The page: wrong models killed and left by each file, the survivors by name, and why some can never be killed.

    Args:
        scores: as `score_files` gives them; those of files that could not be scored are named as such.
    """
    good, failed = [one for one in scores if one.error is None], [one for one in scores if one.error is not None]
    survivors = [(one, survivor) for one in good for survivor in one.open]
    sections = [Section(title="Survivors", blocks=tuple(_survivors(good)))] if good else []
    if failed:
        lines = tuple((Cell(text=Path(one.path).name, is_code=True), str(one.error)) for one in failed)
        sections.append(Section(title="Not scored", blocks=(TableBlock(headings=("file", "why"), rows=lines),)))
    if good:
        sections += [
            Section(title="Files", blocks=(_files(good),)),
            Section(title="Wrong models that no operands kill", blocks=(_equivalent(good),)),
        ]
    killed, equivalent = sum(len(one.killed) for one in good), sum(len(one.equivalent) for one in good)
    differing = sum(one.differing for one in good)
    return report_page(Report(
        title="What these vectors would catch",
        lead="Wrong models of each datapath, one number or rule changed, against the results of each file: a file kills those that differ.",
        verdict=_verdict(killed, len(survivors), len(failed)), tone="good" if not (survivors or failed or differing) else "bad",
        facts=(
            ("files", f"{len(scores):,}"), ("dot products", f"{sum(one.rows for one in good):,}"), ("killed", f"{killed:,}"),
            ("survive", f"{len(survivors):,}"), ("no operands kill", f"{equivalent:,}"),
            ("rows that differ from the model", f"{differing:,}"),
        ),
        sections=tuple(sections),
    ))  # fmt: skip


def _verdict(killed: int, surviving: int, failed: int) -> str:
    left = f"{plural(surviving, 'wrong model')} would pass" if surviving else "none that operands can kill would pass"
    text = f"{plural(killed, 'wrong model')} killed, {left}"
    return f"{text}; {plural(failed, 'file')} not scored" if failed else text


def _survivors(scores: Sequence[Score]) -> list[Block]:
    counts = Counter(f"{survivor.number} {survivor.change}" for one in scores for survivor in one.open)
    if not counts:
        return [NoteBlock(text="None: whatever these vectors accept computes as the rows say, as far as operands can tell.", tone="good")]
    most = counts.most_common(_CHARTED)
    drawn = [Bar(label=name, value=count, text=f"{count:,} of {len(scores):,}", color="var(--bad)") for name, count in most]
    caption = "Changes that survive, by the number of files that accept them."
    if len(counts) > _CHARTED:
        caption += f" {len(counts) - _CHARTED:,} more stand in the table of files."
    return [ChartBlock(svg=bars(drawn, label="surviving changes"), caption=caption)]


def _files(scores: Sequence[Score]) -> TableBlock:
    rows = tuple(
        (
            Path(one.path).stem, Cell(text=one.datapath, is_code=True), one.rows, len(one.killed), len(one.equivalent),
            Cell(text=f"{len(one.open):,}", tone="bad" if one.open else "good"),
            ", ".join(f"{survivor.number} {survivor.change}" for survivor in one.open),
        )
        for one in sorted(scores, key=lambda one: -len(one.open))
    )  # fmt: skip
    headings = ("file", "datapath", "rows", "killed", "no operands kill", "survive", "survivors")
    return TableBlock(headings=headings, rows=rows, numeric=frozenset({2, 3, 4, 5}))


def _equivalent(scores: Sequence[Score]) -> Block:
    counts = Counter(str(survivor.reason) for one in scores for survivor in one.equivalent)
    if not counts:
        return NoteBlock(text="None.", tone="soft")
    return TableBlock(
        headings=("wrong models", "because"), rows=tuple((count, why) for why, count in counts.most_common()), numeric=frozenset({0})
    )


__all__ = ["score_page"]
