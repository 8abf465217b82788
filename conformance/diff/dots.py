"""Recorded tiles and dot products against the emulator: where in the file and in a tile they differ, and where along K."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from mmabits.conformance.diff.comparing import Differing, compare
from mmabits.conformance.diff.comparison import Comparison, Detail, Told
from mmabits.conformance.diff.steps import FOLLOWED, SAMPLED, Parting, binned, bounds, first_seen, latest_step, parting, traced_course
from mmabits.conformance.recorded.base import Codes, RecordedDots
from mmabits.conformance.recorded.dots import DotVectors
from mmabits.emulator.codecs import from_codes
from mmabits.isa import Lowering, UnsupportedInstruction, architecture
from mmabits.reports.pages.charts import Bar, bars, heat_map
from mmabits.reports.pages.report import Block, ChartBlock, NoteBlock, Section, TableBlock
from mmabits.research.explain import Explanation
from mmabits.research.explain.words import place
from mmabits.research.trace import Trace, read

CELLS: Final = 32
"""Rows and columns of cells at most into which a tile is divided for counting."""
_ACROSS: Final = 32
"""Tiles, or groups of rows, beside each other in the map of a file."""
_MAPPED: Final = 1024
"""Of that map, at most."""


def compare_dots(recorded: RecordedDots, *, path: str | os.PathLike[str], arch: str | None = None) -> Comparison:
    """Emulate what tiles or dot products recorded, and compare the results bit by bit.

    Args:
        recorded: tiles or dot products.
        path: their file.
        arch: whose arithmetic; that of the recording if None. It must have the instruction.

    Raises:
        UnsupportedInstruction: the architecture lacks the instruction.
    """
    target = architecture(arch or recorded.arch).name
    lowering = recorded.lowering(target)
    results, computed = recorded.results, recorded.emulated(target)
    found = compare(from_codes(results, recorded.row.d_type), from_codes(computed, recorded.row.d_type), tile=recorded.tile)
    places = np.argwhere(results != computed)
    in_file = InFile(recorded=recorded, by_tile=tuple(row[0] for row in found.tiles), **_cells(places, recorded))
    along, explanation = _followed(places, recorded, target, computed)

    def stands(one: Differing) -> str:
        tile, row = divmod(one.row, recorded.row.m)
        return f"tile {tile} [{row}, {one.column}]" if recorded.tiles else f"row {one.row}"

    told = Told(
        **_told(os.fspath(path), recorded, target, lowering), unit="results", is_tiled=False, before="", ends_blank=False, place=stands
    )  # fmt: skip
    return Comparison(
        name=Path(path).stem, recorded=recorded, arch=target, outputs={"d": found}, details=(in_file, along), explanation=explanation,
        told=told,
    )  # fmt: skip


def _told(path: str, recorded: RecordedDots, arch: str, lowering: Lowering) -> dict[str, Any]:
    """Where it comes from, and what it is held against."""
    row, k, evidence = recorded.row, recorded.k_of_result, lowering.evidence
    stand_in = () if recorded.is_hardware else (f"computed by: {recorded.kind}; proves nothing about hardware",)
    tiles = f"{recorded.tiles:,} tiles of {row.m} x {row.n}"
    chain = f", chains of {recorded.chained} instructions" if recorded.chained > 1 else ""
    scaled = "" if row.scale_type is None else f", scales {row.scale_type.name}"
    notice = "" if recorded.is_hardware else f"Not computed by hardware ({recorded.kind}): it proves nothing about hardware."
    return {
        "head": (
            f"{path}: {row.ptx} of {recorded.gpu or 'an unnamed GPU'} ({recorded.arch})", *stand_in, f"against {arch} emulated, {evidence}"
        ),
        "size": f" ({tiles if recorded.tiles else 'dot products'}, K = {k})",
        "lead": f"Recorded operands run through the emulator of {arch}, and every bit of the results compared.",
        "notice": notice,
        "facts": (
            ("instruction", row.ptx), ("recorded on", f"{recorded.gpu or 'not said'} ({recorded.arch})"),
            ("emulated", f"{arch}, {evidence}"), ("file", f"{path} ({recorded.FORMAT})"),
            ("holds", f"{tiles if recorded.tiles else f'{recorded.results.size:,} dot products'}, K = {k}{chain}"),
            ("types", f"{row.a_type.name} x {row.b_type.name}{scaled}, from {row.c_type.name} into {row.d_type.name}"),
        ),
        "plain": {
            "path": path, "format": recorded.FORMAT, "kind": recorded.kind, "gpu": recorded.gpu, "recorded_arch": recorded.arch,
            "arch": arch, "k": k, "chain": recorded.chained, "tiles": recorded.tiles, "verdict": "", "instruction": row.ptx,
            "evidence": str(evidence),
        },
    }  # fmt: skip


# Where in the file and in a tile -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class InFile(Detail):
    """Where the differing results stand."""

    comes_first: ClassVar[bool] = True
    recorded: RecordedDots
    by_tile: tuple[int, ...]
    """Differing elements of every tile; of dot products 0 or 1 each."""
    cell: tuple[int, int]
    """Rows and columns of a cell of the tile."""
    by_cell: tuple[tuple[int, ...], ...]
    """Differing elements of every cell of the tile, over all tiles; of dot products none."""

    def lines(self) -> Iterator[str]:
        """Of tiles: in how many, and in how many parts of one."""
        if not self.recorded.tiles:
            return
        counts = [count for row in self.by_cell for count in row]
        yield f"  in {sum(count > 0 for count in self.by_tile)} of {self.recorded.tiles} tiles"
        where = "elements" if self.cell == (1, 1) else f"parts of {self.cell[0]} x {self.cell[1]}"
        yield f"  in {sum(count > 0 for count in counts)} of {len(counts)} {where} of the tile"

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        touched = sum(count > 0 for count in self.by_tile) if self.recorded.tiles else None
        return {"differing_tiles": touched, "cell": list(self.cell), "by_cell": [list(row) for row in self.by_cell]}

    def sections(self) -> Iterator[Section]:
        """Maps of the file and of the tile."""
        if any(self.by_tile):
            yield Section(title="Where they differ", blocks=tuple(self._blocks()))

    def _blocks(self) -> Iterator[Block]:
        yield self._file_map()
        if self.by_cell:
            (height, width), (m, n) = self.cell, self.recorded.tile
            sizes = [
                [self.recorded.tiles * min(height, m - i * height) * min(width, n - j * width) for j in range(len(line))]
                for i, line in enumerate(self.by_cell)
            ]
            yield ChartBlock(
                svg=heat_map(self.by_cell, sizes, tile=self.cell, label="differing elements by place in the tile"),
                caption=f"All tiles laid over each other, {m} x {n}, by row and column: a fragment that is laid out wrongly shows here.",
            )

    def _file_map(self) -> Block:
        """The file in reading order: a cell for each tile, or for so many rows."""
        size, counts = -(-len(self.by_tile) // _MAPPED), self.by_tile
        groups = [counts[start : start + size] for start in range(0, len(counts), size)]
        rows = [groups[start : start + _ACROSS] for start in range(0, len(groups), _ACROSS)]
        drawn = _padded([[sum(group) for group in row] for row in rows], 0)
        whole = self.recorded.tile[0] * self.recorded.tile[1]
        sizes = _padded([[whole * len(group) for group in row] for row in rows], 1)
        what = "tile" if self.recorded.tiles else "dot product"
        unit = f"one {what}" if size == 1 else f"{size} {what}s"
        return ChartBlock(
            svg=heat_map(drawn, sizes, tile=(_ACROSS * size, size), label="differing results along the file"),
            caption=f"The file in reading order, {unit} to a square; a square's number is that of its row plus that of its column.",
        )


def _padded(rows: list[list[int]], value: int) -> list[list[int]]:
    width = max(map(len, rows))
    return [row + [value] * (width - len(row)) for row in rows]


def _cells(places: npt.NDArray[np.intp], recorded: RecordedDots) -> dict[str, Any]:
    """Differing elements by where in the tile they stand."""
    m, n = recorded.tile
    cell = -(-m // CELLS), -(-n // CELLS)
    if not recorded.tiles:
        return {"cell": cell, "by_cell": ()}
    counts = np.zeros((-(-m // cell[0]), -(-n // cell[1])), dtype=np.int64)
    np.add.at(counts, (places[:, 0] % m // cell[0], places[:, 1] // cell[1]), 1)
    return {"cell": cell, "by_cell": tuple(map(tuple, counts.tolist()))}


# Along K -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class InChain:
    """Rows at one place of chains, each row's C being the D recorded before it: an instruction by itself."""

    place: int
    """Instructions before it, from 0."""
    rows: int
    differing: int


@dataclass(frozen=True, kw_only=True, eq=False)
class AlongSteps(Detail):
    """Where along K the differences come from."""

    recorded: RecordedDots
    differing: int
    followed: int
    """Differing results that were followed along K: a sample, evenly over all of them, the first included."""
    latest: tuple[int | None, ...] = ()
    """For each followed: the last step, from 0, at which it can have parted; as `steps.latest_step`."""
    partings: tuple[Parting | None, ...] = ()
    """For each followed: where the recorded architecture's emulation and this one's part; empty unless the former gives all their bits."""
    steps: tuple[tuple[int, ...], ...] = ()
    """Elements of K of every step; of the first differing result."""
    in_chain: tuple[InChain, ...] = ()
    """Of dot products that a recorder fed into each other, by their place; else none."""

    @property
    def by_step(self) -> tuple[tuple[str, int], ...]:
        """Followed results by the step in which they part, or, where that is not known, the last in which they can have; along K."""
        told = [at.step for at in self.partings if at is not None] if self.partings else self.latest
        inside = [step for step in told if step is not None and step >= 0]
        return tuple(binned(inside, size=len(self.steps), unit=1, name="step ")) if inside and len(self.steps) > 1 else ()

    @property
    def words(self) -> tuple[str, ...]:
        """Sentences."""
        return tuple(self._words()) if self.differing else ()

    def lines(self) -> Iterator[str]:
        """The sentences and the counts."""
        yield from ("", "along K:", *(f"  {text}" for text in self.words))
        late = "" if self.partings else " at the latest"
        yield from (f"  {label:>16}{late}: {count}" for label, count in self.by_step)
        yield from (f"  place {one.place}: {one.differing} of {one.rows}" for one in self.in_chain)

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "followed": self.followed, "latest_step": list(self.latest),
            "parts_in_step": [None if at is None else at.step for at in self.partings], "steps": [list(step) for step in self.steps],
            "in_chain": [vars(one) for one in self.in_chain], "words": list(self.words),
        }  # fmt: skip

    def sections(self) -> Iterator[Section]:
        """The sentences and the counts, drawn."""
        yield Section(title="Along K", blocks=tuple(self._blocks()))

    def _blocks(self) -> Iterator[Block]:
        yield from (NoteBlock(text=text) for text in self.words)
        if self.by_step:
            drawn = bars([Bar(label=label, value=count) for label, count in self.by_step], label="results by step")
            where = "the step in which their sums first differ" if self.partings else "the last step in which they can have parted"
            yield ChartBlock(svg=drawn, caption=f"Results that were followed, by {where}.")
            rows = tuple((number, place(k)) for number, k in enumerate(self.steps))
            yield TableBlock(headings=("step", "elements of K"), rows=rows, numeric=frozenset({0}))
        if self.in_chain:
            drawn = bars(
                [Bar(label=f"place {one.place}", value=one.differing, text=f"{one.differing:,} of {one.rows:,}") for one in self.in_chain],
                label="differing rows by place in the chain",
            )
            yield ChartBlock(svg=drawn, caption="Differing rows by how many instructions of the chain came before.")

    def _words(self) -> Iterator[str]:
        if self.in_chain:
            worst = max(self.in_chain, key=lambda one: one.differing / one.rows)
            yield "Rows are chains: each C is the D recorded before it, so that every instruction is compared by itself."
            yield f"Most differ at place {worst.place} of the chain: {worst.differing:,} of {worst.rows:,}."
        elif self.recorded.chained > 1 and not self.partings:
            chain = f"Every result is a chain of {self.recorded.chained} instructions."
            yield f"{chain} The file holds its end alone, so it does not tell which one differs."
        if not self.steps:
            yield "Not followed along K: the trace of this architecture (a promotion of its own) is not what was compared."
            return
        if len(self.steps) == 1:
            yield f"One step takes all {self.recorded.k_of_result} products at once."
        many = "" if self.followed == self.differing else f"{self.followed:,} of "
        yield f"Followed exactly, as emulated: {many}{self.differing:,} differing."
        if self.partings:
            yield f"The emulator of {self.recorded.arch} gives every recorded bit of these; its steps stand for the recorded ones."
            yield from self._parted()
            return
        yield from bounds(self.latest, len(self.steps))

    def _parted(self) -> Iterator[str]:
        inside = [at.k[1] for at in self.partings if at is not None and not at.is_after_k]
        yield from first_seen(inside)
        hidden = len(self.partings) - len(inside)
        if hidden:
            yield f"Not seen apart before the result: {hidden:,}."


def _followed(
    places: npt.NDArray[np.intp], recorded: RecordedDots, arch: str, computed: Codes
) -> tuple[AlongSteps, Explanation | None]:  # fmt: skip
    """A sample of the differing results, each traced; none is told where traces are something else (a what-if's own promotion)."""
    count = max(1, min(SAMPLED, FOLLOWED // recorded.k_of_result, len(places))) if len(places) else 0
    given: dict[str, Any] = {
        "recorded": recorded, "differing": len(places), "followed": count, "in_chain": tuple(_in_chain(recorded, computed))
    }  # fmt: skip
    nothing = AlongSteps(**given, latest=(None,) * count), None
    if not count:
        return nothing
    sample = places[np.linspace(0, len(places) - 1, count).astype(int)].tolist()
    traces = [recorded.traced(row, column, arch) for row, column in sample]
    if not _end_in(traces, computed, sample):
        return nothing
    ended = [read(int(recorded.results[row, column]), recorded.row.d_type).value for row, column in sample]
    latest = tuple(None if value is None else latest_step(found, value) for found, value in zip(traces, ended, strict=True))
    along = AlongSteps(
        **given, latest=latest, steps=tuple(step.k for step in traces[0].steps), partings=tuple(_partings(sample, traces, recorded, arch))
    )  # fmt: skip
    row, column = sample[0]
    return along, Explanation(traces=(traces[0],), row=row % recorded.tile[0] if recorded.tiles else row, column=column)


def _end_in(traces: Sequence[Trace], results: Codes, sample: Sequence[Sequence[int]]) -> bool:
    return all(found.result.code == int(results[row, column]) for found, (row, column) in zip(traces, sample, strict=True))


def _partings(sample: Sequence[Sequence[int]], traces: list[Trace], recorded: RecordedDots, arch: str) -> Iterator[Parting | None]:
    """Where both sums are known: another architecture is emulated, and the recorded one's gives what was recorded."""
    if arch == recorded.arch:
        return
    try:
        known = [recorded.traced(row, column, recorded.arch) for row, column in sample]
    except UnsupportedInstruction:  # recorded, but not modelled there
        return
    if not _end_in(known, recorded.results, sample):
        return
    for here, there in zip(traces, known, strict=True):
        yield parting(traced_course(here, k=recorded.k_of_result), traced_course(there, k=recorded.k_of_result))


def _in_chain(dots: RecordedDots, computed: Codes) -> Iterator[InChain]:
    """By place, where at least half of the rows take as C what the row before gave: such a file holds chains, step by step."""
    if not isinstance(dots, DotVectors) or dots.c_type != dots.d_type:
        return
    is_fed = np.concatenate([[False], (dots.c[1:] == dots.d[:-1]) & (dots.c[1:] != 0)])
    if 2 * int(is_fed.sum()) < dots.rows or dots.rows < 2:
        return
    starts = np.maximum.accumulate(np.where(is_fed, 0, np.arange(dots.rows)))
    places, differs = np.arange(dots.rows) - starts, computed[:, 0] != dots.d
    for at in range(int(places.max()) + 1):
        there = places == at
        yield InChain(place=at, rows=int(there.sum()), differing=int((there & differs).sum()))


__all__ = ["AlongSteps", "InChain", "InFile", "compare_dots"]
