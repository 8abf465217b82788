"""What `mmabits vectors score` found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from mmabits.conformance.probes.score import Score, Survivor
from mmabits.conformance.recorded.base import Provenance
from mmabits.isa import OperandError
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
    not_done,
    plural,
    report_page,
)

_PARTS: Final = ("killed", "no operands kill", "survive")
_COLORS: Final = ("var(--accent)", "var(--cut)", "var(--bad)")


def score_page(scores: Sequence[Score]) -> str:
    """The page: wrong models killed and left by each file, the survivors by name, and why some can never be killed.

    Args:
        scores: as `score_files` gives them; those of files that could not be scored are named as such.

    Raises:
        OperandError: no scores.
    """
    if not scores:
        raise OperandError("a page of scores needs one score or more, got none")
    good, failed = [one for one in scores if one.error is None], [one for one in scores if one.error is not None]
    sections = [not_done("Not scored", "file", [(Path(one.path).name, str(one.error)) for one in failed])] if failed else []
    if good:
        sections += [
            Section(title="Survivors", blocks=tuple(_survivors(good))), Section(title="Killed and left", blocks=(_chart(good),)),
            Section(title="Files", blocks=(_files(good),)),
            Section(title="Wrong models that no operands kill", blocks=tuple(_equivalent(good))),
        ]  # fmt: skip
    differing, surviving = sum(one.differing for one in good), sum(len(one.open) for one in good)
    return report_page(Report(
        title="What these vectors would catch",
        lead="Wrong models of each datapath, one number or rule changed, against the results of each file: a file kills those that differ.",
        notice=_notice(good), verdict=_verdict(good, len(failed)),
        tone="good" if good and not (surviving or failed or differing) else "bad",
        counts=(
            Count(value=len(good), what="files scored"), Count(value=sum(one.rows for one in good), what="dot products"),
            Count(value=sum(len(one.killed) for one in good), what="wrong models killed"),
            Count(value=surviving, what="survive", tone="bad" if surviving else "good"),
            Count(value=sum(len(one.equivalent) for one in good), what="that no operands kill"),
            *([Count(value=differing, what="rows differ from the right model", tone="bad")] if differing else []),
            *([Count(value=len(failed), what="files not scored", tone="bad")] if failed else []),
        ),
        facts=(("results made by", _kinds(good)),) if good else (), sections=tuple(sections),
    ))  # fmt: skip


def _verdict(good: Sequence[Score], failed: int) -> str:
    if not good:
        return f"Nothing scored: {plural(failed, 'file')} could not be"
    killed, surviving = sum(len(one.killed) for one in good), sum(len(one.open) for one in good)
    left = f"{plural(surviving, 'wrong model')} would pass" if surviving else "none that operands can kill would pass"
    text = f"{plural(killed, 'wrong model')} killed, {left}"
    return f"{text}; {plural(failed, 'file')} not scored" if failed else text


def _kinds(good: Sequence[Score]) -> str:
    rows: Counter[str] = Counter()
    for one in good:
        rows[one.kind] += one.rows
    return ", ".join(f"{kind} ({plural(count, 'dot product')})" for kind, count in rows.items())


def _notice(good: Sequence[Score]) -> str:
    differing = [one for one in good if one.differing]
    if differing:
        return (
            f"In {plural(len(differing), 'file')} the right model itself differs from the results: a wrong model may count as killed by "
            "results that are wrong too."
        )
    others = sum(one.kind != Provenance.HARDWARE for one in good)
    if not others:
        return ""
    which = "All results" if others == len(good) else f"The results of {others:,} of {len(good):,} files"
    return f"{which} were computed by a program: the score says what the operands tell apart, and proves nothing about hardware."


# Survivors -----------------------------------------------------------------------------------------------------------


def _survivors(scores: Sequence[Score]) -> Iterator[Block]:
    counts = Counter(_name(survivor) for one in scores for survivor in one.open)
    if not counts:
        yield NoteBlock(text="None: whatever these vectors accept computes as the rows say, as far as operands can tell.", tone="good")
        return
    parts = [Bar(label=name, value=count, text=plural(count, "file"), color="var(--bad)") for name, count in counts.most_common(CHARTED)]
    caption = f"Changes that survive, by the number of files that accept them, of {len(scores):,}."
    if len(counts) > CHARTED:
        caption += f" {len(counts) - CHARTED:,} more stand in the table."
    yield ChartBlock(svg=bars(parts, label="surviving changes"), caption=caption)
    rows = tuple(
        (Path(one.path).stem, number, ", ".join(changes))
        for one in scores
        for number, changes in _by_number(one.open).items()
    )  # fmt: skip
    yield TableBlock(headings=("file", "number or rule", "changes that survive"), rows=rows)


def _name(survivor: Survivor) -> str:
    return f"{survivor.number} {survivor.change}"


def _by_number(survivors: Sequence[Survivor]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for survivor in survivors:
        found.setdefault(survivor.number, []).append(survivor.change)
    return found


# Files ---------------------------------------------------------------------------------------------------------------


def _worst_first(scores: Sequence[Score]) -> list[Score]:
    return sorted(scores, key=lambda one: -len(one.open))


def _chart(scores: Sequence[Score]) -> ChartBlock:
    shown = _worst_first(scores)[:CHARTED]
    parts = [
        Stack(
            label=Path(one.path).stem, values=(len(one.killed), len(one.equivalent), len(one.open)),
            text=f"{len(one.killed):,} of {one.mutants - len(one.equivalent):,} killed",
        )
        for one in shown
    ]  # fmt: skip
    caption = "Wrong models of each file."
    if len(scores) > len(shown):
        caption += f" {len(shown)} of {len(scores):,} files, those with most survivors; {len(scores) - len(shown):,} are left out here."
    return ChartBlock(svg=stacks(parts, names=_PARTS, colors=_COLORS, label="wrong models by file"), caption=caption)


def _files(scores: Sequence[Score]) -> TableBlock:
    rows = tuple(
        (
            Path(one.path).stem, len(one.killed), Cell(text=f"{len(one.open):,}", tone="bad" if one.open else "good"), len(one.equivalent),
            one.rows, Cell(text=f"{one.differing:,}", tone="bad" if one.differing else ""), one.arch, Cell(text=one.datapath, is_code=True),
        )
        for one in _worst_first(scores)
    )  # fmt: skip
    headings = ("file", "killed", "survive", "no operands kill", "rows", "differ", "architecture", "datapath")
    caption = '"differ": rows whose results the right model does not give.'
    return TableBlock(headings=headings, rows=rows, numeric=frozenset({1, 2, 3, 4, 5}), caption=caption)


def _equivalent(scores: Sequence[Score]) -> Iterator[Block]:
    every = [survivor for one in scores for survivor in one.equivalent]
    if not every:
        yield NoteBlock(text="None.", tone="soft")
        return
    yield NoteBlock(text="Changes that make no difference for any operands, each with the argument; they count neither way.")
    counts = Counter(str(survivor.reason) for survivor in every)
    rows = tuple(
        (count, why, ", ".join(sorted({survivor.number for survivor in every if survivor.reason == why})))
        for why, count in counts.most_common()
    )
    yield TableBlock(headings=("wrong models", "because", "numbers and rules"), rows=rows, numeric=frozenset({0}))


__all__ = ["score_page"]
