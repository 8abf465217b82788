"""A file of tiles or dot products against the emulator, as one self-contained page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from mmabits.conformance.diff.comparing import Kind
from mmabits.conformance.diff.replayed import VectorDifference
from mmabits.reports.pages.charts import Bar, bars, heat_map
from mmabits.reports.pages.report import Block, Cell, ChartBlock, NoteBlock, Report, Section, TableBlock, report_page
from mmabits.research.explain.picture import step_picture
from mmabits.research.explain.words import exact, place

_ACROSS: Final = 32
"""Tiles, or groups of rows, beside each other in the map of a file."""
_CELLS: Final = 1024
"""Of that map, at most."""


def vectors_page(found: VectorDifference) -> str:
    """The page: classes, where in the file and in the tile, ulp, the steps along K, the first differences and one explained.

    Raises:
        MmabitsError: jinja2 is not installed.
    """
    return report_page(Report(
        title=f"{Path(found.path).stem}, recorded and emulated", lead=_lead(found), verdict=found.verdict,
        tone="good" if found.is_equal else "bad", facts=_facts(found), sections=() if found.is_equal else tuple(_sections(found)),
    ))  # fmt: skip


def _lead(found: VectorDifference) -> str:
    text = f"Recorded operands run through the emulator of {found.arch}, and every bit of the results compared."
    return text if found.is_hardware else f"{text} Not computed by hardware ({found.kind}): it proves nothing about hardware."


def _facts(found: VectorDifference) -> tuple[tuple[str, str], ...]:
    row = found.instruction
    what = f"{found.tiles:,} tiles of {row.m} x {row.n}" if found.tiles else f"{found.elements:,} dot products"
    chain = f", chains of {found.chain} instructions" if found.chain > 1 else ""
    scaled = "" if row.scale_type is None else f", scales {row.scale_type.name}"
    return (
        ("instruction", row.ptx), ("recorded on", f"{found.gpu or 'not said'} ({found.recorded_arch})"),
        ("emulated", f"{found.arch}, {found.evidence}"),
        ("file", f"{found.path} ({found.format})"), ("holds", f"{what}, K = {found.k}{chain}"),
        ("types", f"{row.a_type.name} x {row.b_type.name}{scaled}, from {row.c_type.name} into {row.d_type.name}"),
        ("results", f"{found.elements:,}"), ("differ", f"{found.differing:,}"),
    )  # fmt: skip


def _sections(found: VectorDifference) -> Iterator[Section]:
    yield Section(title="Where they differ", blocks=tuple(_where(found)))
    yield Section(title="By how much", blocks=tuple(_how_much(found)))
    yield Section(title="Along K", blocks=tuple(_along(found)))
    yield Section(title="First differences", blocks=(_first(found),))
    if found.explanation is not None:
        first = found.place(found.found.first[0])
        yield Section(title=f"{first[0].upper()}{first[1:]}, as emulated", blocks=tuple(_explained(found)))


def _where(found: VectorDifference) -> Iterator[Block]:
    whole = found.instruction.m * found.instruction.n if found.tiles else 1
    yield ChartBlock(svg=_file_map(found, whole), caption=_file_caption(found))
    if found.by_cell:
        (height, width), (m, n) = found.cell, (found.instruction.m, found.instruction.n)
        sizes = [
            [found.tiles * min(height, m - i * height) * min(width, n - j * width) for j in range(len(line))]
            for i, line in enumerate(found.by_cell)
        ]
        yield ChartBlock(
            svg=heat_map(found.by_cell, sizes, tile=found.cell, label="differing elements by place in the tile"),
            caption=f"All tiles laid over each other, {m} x {n}, by row and column: a fragment that is laid out wrongly shows here.",
        )


def _per_group(found: VectorDifference) -> int:
    """Tiles, or rows, in a cell of the map."""
    return -(-len(found.by_tile) // _CELLS)


def _file_map(found: VectorDifference, whole: int) -> str:
    """The file in reading order: a cell for each tile, or for so many rows."""
    size, counts = _per_group(found), found.by_tile
    groups = [counts[start : start + size] for start in range(0, len(counts), size)]
    rows = [groups[start : start + _ACROSS] for start in range(0, len(groups), _ACROSS)]
    drawn = _padded([[sum(group) for group in row] for row in rows], 0)
    sizes = _padded([[whole * len(group) for group in row] for row in rows], 1)
    return heat_map(drawn, sizes, tile=(_ACROSS * size, size), label="differing results along the file")


def _padded(rows: list[list[int]], value: int) -> list[list[int]]:
    width = max(map(len, rows))
    return [row + [value] * (width - len(row)) for row in rows]


def _file_caption(found: VectorDifference) -> str:
    size, what = _per_group(found), "tile" if found.tiles else "dot product"
    unit = f"one {what}" if size == 1 else f"{size} {what}s"
    return f"The file in reading order, {unit} to a square; a square's number is that of its row plus that of its column."


def _how_much(found: VectorDifference) -> Iterator[Block]:
    classes = [(kind.value, count) for kind, count in found.found.counts.items() if count and kind is not Kind.EQUAL]
    yield TableBlock(headings=("class", "results"), rows=tuple(classes), numeric=frozenset({1}))
    if found.found.ulps:
        parts = [Bar(label=part.label, value=part.count) for part in found.found.ulps]
        caption = f"Differing values by their distance in ulp of {found.found.dtype}."
        yield ChartBlock(svg=bars(parts, label="differing values by ulp"), caption=caption)


def _along(found: VectorDifference) -> Iterator[Block]:
    yield from (NoteBlock(text=text) for text in found.words)
    if found.by_step:
        drawn = bars([Bar(label=label, value=count) for label, count in found.by_step], label="results by step")
        where = "the step in which their sums first differ" if found.partings else "the last step in which they can have parted"
        yield ChartBlock(svg=drawn, caption=f"Results that were followed, by {where}.")
        yield _steps(found.steps)
    if found.in_chain:
        drawn = bars(
            [Bar(label=f"place {one.place}", value=one.differing, text=f"{one.differing:,} of {one.rows:,}") for one in found.in_chain],
            label="differing rows by place in the chain",
        )
        yield ChartBlock(svg=drawn, caption="Differing rows by how many instructions of the chain came before.")


def _steps(steps: Sequence[tuple[int, ...]]) -> Block:
    rows = tuple((number, place(k)) for number, k in enumerate(steps))
    return TableBlock(headings=("step", "elements of K"), rows=rows, numeric=frozenset({0}))


def _first(found: VectorDifference) -> Block:
    rows = tuple(
        (
            found.place(one), one.kind.value, Cell(text=one.hardware, is_code=True), Cell(text=one.emulated, is_code=True),
            one.hardware_value, one.emulated_value, "" if one.ulp is None else f"{one.ulp:,}",
        )
        for one in found.found.first
    )  # fmt: skip
    headings = ("where", "class", "recorded", "emulated", "recorded", "emulated", "ulp")
    return TableBlock(headings=headings, rows=rows, numeric=frozenset({4, 5, 6}))


def _explained(found: VectorDifference) -> Iterator[Block]:
    if found.explanation is None:
        return
    chain = found.explanation.trace
    error = "" if chain.error is None else f" Result minus exact: {exact(chain.error)}."
    recorded = found.found.first[0].hardware_value
    yield NoteBlock(
        text=f"Exactly {exact(chain.exact)}; after {len(chain.steps)} steps on {chain.arch} {chain.result}, recorded {recorded}.{error}"
    )
    if chain.steps:
        step = max(chain.steps, key=lambda one: (abs(one.lost_by_alignment), -one.number))
        yield ChartBlock(svg=step_picture(chain, step), caption=f"Step {step.number}, where alignment cut off most.")


__all__ = ["vectors_page"]
