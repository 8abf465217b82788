"""Recorded tiles and dot products against the emulator: classes, where in a tile, where along K, and the first difference explained.

`mmabits replay` counts what differs in many files; this looks at one file closely, also with another architecture's arithmetic.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.conformance import vectors
from mmabits.conformance.diff.comparing import Difference, Differing, Kind, compare
from mmabits.conformance.diff.steps import FOLLOWED, SAMPLED, Parting, binned, bounds, latest_step, parting, traced_course
from mmabits.conformance.record import recording as tiles_file
from mmabits.conformance.record.device import HARDWARE
from mmabits.conformance.record.recording import Recording, is_recording, read_recording
from mmabits.conformance.record.tiles import emulate_tiles
from mmabits.conformance.vectors import DotVectors, read_vectors
from mmabits.emulator.api import dot_rows
from mmabits.emulator.codecs import from_codes
from mmabits.isa import Evidence, Instruction, Lowering, UnsupportedInstruction, architecture, lower, parse
from mmabits.research.explain import Explanation
from mmabits.research.trace import Trace, read, trace

Codes = npt.NDArray[Any]

CELLS: Final = 32
"""Rows and columns of cells at most into which a tile is divided for counting."""
_BATCH: Final = 1 << 20
"""Results that are computed at a time."""


@dataclass(frozen=True, kw_only=True)
class InChain:
    """Rows at one place of chains, each row's C being the D recorded before it: an instruction by itself."""

    place: int
    """Instructions before it, from 0."""
    rows: int
    differing: int


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorDifference:
    """What a comparison of a file of tiles or dot products found."""

    path: str
    format: str
    """`tile-vectors/1` or `dot-vectors/1`."""
    kind: str
    """Who computed it, in the file's own words; only `hardware` says anything of hardware."""
    gpu: str
    recorded_arch: str
    arch: str
    """Emulated."""
    instruction: Instruction
    evidence: Evidence
    """Of the emulated rows."""
    k: int
    """Products in a result."""
    chain: int
    """Instructions along K of each result."""
    tiles: int
    """How many; 0 of dot products."""
    found: Difference
    """Of D as one matrix: tile below tile, or one row for each dot product."""
    cell: tuple[int, int]
    """Rows and columns of a cell of the tile."""
    by_cell: tuple[tuple[int, ...], ...]
    """Differing elements of every cell of the tile, over all tiles; of dot products none."""
    followed: int
    """Differing results that were followed along K: a sample, evenly over all of them, the first included."""
    latest: tuple[int | None, ...]
    """For each followed: the last step, from 0, at which it can have parted; as `steps.latest_step`."""
    partings: tuple[Parting | None, ...]
    """For each followed: where the recorded architecture's emulation and this one's part; empty unless the former gives all their bits."""
    steps: tuple[tuple[int, ...], ...]
    """Elements of K of every step; of the first differing result."""
    in_chain: tuple[InChain, ...]
    """Of dot products that a recorder fed into each other, by their place; else none."""
    explanation: Explanation | None
    """Of the first differing result, as emulated; None where nothing differs, or where the trace is not what was compared."""

    @property
    def is_equal(self) -> bool:
        """Whether every bit is the same."""
        return self.found.is_equal

    @property
    def elements(self) -> int:
        """How many were compared."""
        return self.found.elements

    @property
    def differing(self) -> int:
        """How many have different bits."""
        return self.found.differing

    @property
    def is_hardware(self) -> bool:
        """Whether the recording is of hardware."""
        return self.kind == HARDWARE

    @property
    def verdict(self) -> str:
        """The result in a few words."""
        return "every bit equal" if self.is_equal else f"{self.differing:,} of {self.elements:,} results differ"

    @property
    def by_tile(self) -> tuple[int, ...]:
        """Differing elements of every tile; of dot products 0 or 1 each."""
        return tuple(row[0] for row in self.found.tiles)

    @property
    def by_step(self) -> tuple[tuple[str, int], ...]:
        """Followed results by the step in which they part, or, where that is not known, the last in which they can have; along K."""
        told = [at.step for at in self.partings if at is not None] if self.partings else self.latest
        inside = [step for step in told if step is not None and step >= 0]
        return tuple(binned(inside, size=len(self.steps), unit=1, name="step ")) if inside and len(self.steps) > 1 else ()

    def place(self, one: Differing) -> str:
        """Where a differing result stands: `tile 3 [5, 6]` or `row 17`."""
        if not self.tiles:
            return f"row {one.row}"
        tile, row = divmod(one.row, self.instruction.m)
        return f"tile {tile} [{row}, {one.column}]"

    @property
    def words(self) -> tuple[str, ...]:
        """Sentences on where along K the differences come from."""
        return tuple(_words(self))

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        names = ("path", "format", "kind", "gpu", "recorded_arch", "arch", "k", "chain", "tiles", "verdict")
        counted = {name: value for name, value in self.found.as_json.items() if name not in ("tile", "tiles")}
        return {
            **{name: getattr(self, name) for name in names}, "instruction": self.instruction.ptx, "evidence": str(self.evidence), **counted,
            "differing_tiles": sum(count > 0 for count in self.by_tile) if self.tiles else None, "cell": list(self.cell),
            "by_cell": [list(row) for row in self.by_cell], "followed": self.followed, "latest_step": list(self.latest),
            "parts_in_step": [None if at is None else at.step for at in self.partings],
            "steps": [list(step) for step in self.steps], "in_chain": [vars(one) for one in self.in_chain], "words": list(self.words),
        }  # fmt: skip


def compare_vectors(path: str | os.PathLike[str], *, arch: str | None = None) -> VectorDifference:
    """Emulate what a file of tiles or dot products recorded, and compare its results bit by bit.

    Args:
        path: tile-vectors/1 or dot-vectors/1.
        arch: whose arithmetic; that of the recording if None. It must have the instruction.

    Raises:
        VectorFileError: the file cannot be read, or is of neither format.
        UnsupportedInstruction: the architecture lacks the instruction.
    """
    source = _Tiles(read_recording(path), arch) if is_recording(path) else _Dots(read_vectors(path), arch)
    recorded, computed = source.recorded, source.computed
    form = source.lowering.instruction.d_type
    found = compare(from_codes(recorded, form), from_codes(computed, form), tile=source.tile)
    places = np.argwhere(recorded != computed)
    return VectorDifference(
        path=os.fspath(path), found=found, arch=source.arch, instruction=source.lowering.instruction, evidence=source.lowering.evidence,
        **source.facts, **_cells(places, source), **_followed(places, source, recorded, computed),
    )  # fmt: skip


class _Tiles:
    """A recording of tiles."""

    def __init__(self, recording: Recording, arch: str | None) -> None:
        self.recording, self.recorded_arch, self.arch = recording, recording.arch, architecture(arch or recording.arch).name
        self.lowering: Lowering = lower(recording.instruction, self.arch)
        self.tile = recording.instruction.m, recording.instruction.n
        self.k = recording.operands.a.shape[-1]

    @property
    def facts(self) -> dict[str, Any]:
        """Where it comes from."""
        one = self.recording
        return {
            "format": tiles_file.FORMAT, "kind": one.kind, "gpu": one.gpu, "recorded_arch": one.arch, "k": self.k, "chain": one.chain,
            "tiles": one.operands.tiles, "in_chain": (),
        }  # fmt: skip

    @property
    def recorded(self) -> Codes:
        """Tile below tile."""
        return self.recording.d.reshape(-1, self.tile[1])

    @cached_property
    def computed(self) -> Codes:
        """Likewise, as emulated."""
        one, batch = self.recording, max(1, _BATCH // (self.tile[0] * self.tile[1]))
        starts = range(0, one.operands.tiles, batch)
        parts = [emulate_tiles(one.instruction, self.arch, one.operands.part(start, start + batch)) for start in starts]
        return np.concatenate(parts).reshape(-1, self.tile[1])

    def traced(self, row: int, column: int, arch: str) -> Trace:
        """One result, step by step."""
        operands = self.recording.operands
        tile, inside = divmod(row, self.tile[0])
        scales = {} if operands.scale_a is None or operands.scale_b is None else {
            "scale_a": operands.scale_a[tile, inside], "scale_b": np.ascontiguousarray(operands.scale_b[tile, :, column]),
        }  # fmt: skip
        left, right = operands.a[tile, inside], np.ascontiguousarray(operands.b[tile, :, column])
        return trace(self.lowering.instruction, arch, left, right, int(operands.c[tile, inside, column]), **scales)


class _Dots:
    """A file of dot products."""

    def __init__(self, dots: DotVectors, arch: str | None) -> None:
        self.dots, self.recorded_arch, self.arch = dots, dots.arch, architecture(arch or dots.arch).name
        self.lowering: Lowering = lower(parse(dots.instruction), self.arch)
        self.tile = 1, 1
        self.k = dots.k

    @property
    def facts(self) -> dict[str, Any]:
        """Where it comes from."""
        one = self.dots
        return {
            "format": vectors.FORMAT, "kind": one.kind, "gpu": one.gpu, "recorded_arch": one.arch, "k": one.k, "chain": 1, "tiles": 0,
            "in_chain": tuple(_in_chain(one, self.computed[:, 0])),
        }  # fmt: skip

    @property
    def recorded(self) -> Codes:
        """One row for each dot product."""
        return self.dots.d[:, None]

    @cached_property
    def computed(self) -> Codes:
        """Likewise, as emulated."""
        one = self.dots
        parts = []
        for start in range(0, one.rows, _BATCH):
            part = slice(start, start + _BATCH)
            scales = {} if one.scale_a is None or one.scale_b is None else {"scale_a": one.scale_a[part], "scale_b": one.scale_b[part]}
            parts.append(dot_rows(self.lowering.instruction, self.arch, one.a[part], one.b[part], one.c[part], **scales))
        return np.concatenate(parts)[:, None]

    def traced(self, row: int, column: int, arch: str) -> Trace:
        """One result, step by step."""
        one = self.dots
        scales = {} if one.scale_a is None or one.scale_b is None else {"scale_a": one.scale_a[row], "scale_b": one.scale_b[row]}
        return trace(self.lowering.instruction, arch, one.a[row], one.b[row], int(one.c[row]), **scales)


def _in_chain(dots: DotVectors, computed: Codes) -> Iterator[InChain]:
    """By place, where at least half of the rows take as C what the row before gave: such a file holds chains, step by step."""
    if dots.c_type != dots.d_type:
        return
    is_fed = np.concatenate([[False], (dots.c[1:] == dots.d[:-1]) & (dots.c[1:] != 0)])
    if 2 * int(is_fed.sum()) < dots.rows or dots.rows < 2:
        return
    starts = np.maximum.accumulate(np.where(is_fed, 0, np.arange(dots.rows)))
    places, differs = np.arange(dots.rows) - starts, computed != dots.d
    for place in range(int(places.max()) + 1):
        there = places == place
        yield InChain(place=place, rows=int(there.sum()), differing=int((there & differs).sum()))


def _cells(places: npt.NDArray[np.intp], source: _Tiles | _Dots) -> dict[str, Any]:
    """Differing elements by where in the tile they stand."""
    m, n = source.tile
    cell = -(-m // CELLS), -(-n // CELLS)
    if isinstance(source, _Dots):
        return {"cell": cell, "by_cell": ()}
    counts = np.zeros((-(-m // cell[0]), -(-n // cell[1])), dtype=np.int64)
    np.add.at(counts, (places[:, 0] % m // cell[0], places[:, 1] // cell[1]), 1)
    return {"cell": cell, "by_cell": tuple(map(tuple, counts.tolist()))}


def _followed(places: npt.NDArray[np.intp], source: _Tiles | _Dots, recorded: Codes, computed: Codes) -> dict[str, Any]:
    """A sample of the differing results, each traced; none is told where traces are something else (a what-if's own promotion)."""
    count = max(1, min(SAMPLED, FOLLOWED // source.k, len(places))) if len(places) else 0
    nothing = {"followed": count, "latest": (None,) * count, "partings": (), "steps": (), "explanation": None}
    if not count:
        return nothing
    sample = places[np.linspace(0, len(places) - 1, count).astype(int)].tolist()
    traces = [source.traced(row, column, source.arch) for row, column in sample]
    if not _end_in(traces, computed, sample):
        return nothing
    ended = [read(int(recorded[row, column]), source.lowering.instruction.d_type).value for row, column in sample]
    row, column = sample[0]
    inside = row % source.tile[0] if isinstance(source, _Tiles) else row
    return {
        "followed": count, "steps": tuple(step.k for step in traces[0].steps), "partings": tuple(_partings(sample, traces, source)),
        "latest": tuple(None if value is None else latest_step(found, value) for found, value in zip(traces, ended, strict=True)),
        "explanation": Explanation(traces=(traces[0],), row=inside, column=column),
    }  # fmt: skip


def _end_in(traces: list[Trace], results: Codes, sample: list[list[int]]) -> bool:
    return all(found.result.code == int(results[row, column]) for found, (row, column) in zip(traces, sample, strict=True))


def _partings(sample: list[list[int]], traces: list[Trace], source: _Tiles | _Dots) -> Iterator[Parting | None]:
    """Where both sums are known: another architecture is emulated, and the recorded one's gives what was recorded."""
    if source.arch == source.recorded_arch:
        return
    try:
        known = [source.traced(row, column, source.recorded_arch) for row, column in sample]
    except UnsupportedInstruction:  # recorded, but not modelled there
        return
    if not _end_in(known, source.recorded, sample):
        return
    for here, there in zip(traces, known, strict=True):
        yield parting(traced_course(here, k=source.k), traced_course(there, k=source.k))


def _words(done: VectorDifference) -> Iterator[str]:
    if done.is_equal:
        return
    if done.in_chain:
        worst = max(done.in_chain, key=lambda one: one.differing / one.rows)
        yield "Rows are chains: each C is the D recorded before it, so that every instruction is compared by itself."
        yield f"Most differ at place {worst.place} of the chain: {worst.differing:,} of {worst.rows:,}."
    elif done.chain > 1 and not done.partings:
        yield f"Every result is a chain of {done.chain} instructions. The file holds its end alone, so it does not tell which one differs."
    if not done.steps:
        yield "Not followed along K: the trace of this architecture (a promotion of its own) is not what was compared."
        return
    if len(done.steps) == 1:
        yield f"One step takes all {done.k} products at once."
    many = "" if done.followed == done.differing else f"{done.followed:,} of "
    yield f"Followed exactly, as emulated: {many}{done.differing:,} differing."
    if done.partings:
        yield f"The emulator of {done.recorded_arch} gives every recorded bit of these; its steps stand for the recorded ones."
        yield from _parted(done)
        return
    yield from bounds(done.latest, len(done.steps))


def _parted(done: VectorDifference) -> Iterator[str]:
    inside = [at for at in done.partings if at is not None and not at.is_after_k]
    if inside:
        first, last = min(at.k[1] for at in inside) - 1, max(at.k[1] for at in inside) - 1
        span = f"the step that ends at k = {first}" if first == last else f"steps that end at k = {first} to {last}"
        yield f"Sums first seen to differ in {span}: {len(inside):,}."
    hidden = len(done.partings) - len(inside)
    if hidden:
        yield f"Not seen apart before the result: {hidden:,}."


def vector_lines(done: VectorDifference) -> Iterator[str]:
    """The comparison for people to read, without its explanation."""
    yield f"{done.path}: {done.instruction.ptx} of {done.gpu or 'an unnamed GPU'} ({done.recorded_arch})"
    if not done.is_hardware:
        yield f"computed by: {done.kind}; proves nothing about hardware"
    yield f"against {done.arch} emulated, {done.evidence}"
    unit = f"{done.tiles:,} tiles of {done.instruction.m} x {done.instruction.n}" if done.tiles else "dot products"
    yield f"{done.elements} results, {done.differing} differ ({unit}, K = {done.k})"
    if done.is_equal:
        return
    yield from (f"  {kind.value:22} {count}" for kind, count in done.found.counts.items() if count and kind is not Kind.EQUAL)
    yield from (f"  {part.label:>22} ulp {part.count}" for part in done.found.ulps)
    if done.tiles:
        counts = [count for row in done.by_cell for count in row]
        yield f"  in {sum(count > 0 for count in done.by_tile)} of {done.tiles} tiles"
        where = "elements" if done.cell == (1, 1) else f"parts of {done.cell[0]} x {done.cell[1]}"
        yield f"  in {sum(count > 0 for count in counts)} of {len(counts)} {where} of the tile"
    yield ""
    yield "along K:"
    yield from (f"  {text}" for text in done.words)
    late = "" if done.partings else " at the latest"
    yield from (f"  {label:>16}{late}: {count}" for label, count in done.by_step)
    yield from (f"  place {one.place}: {one.differing} of {one.rows}" for one in done.in_chain)
    yield ""
    yield "first differences (recorded, emulated):"
    for one in done.found.first:
        apart = "" if one.ulp is None else f", {one.ulp} ulp"
        yield f"  {done.place(one)} {one.hardware} {one.emulated}  {one.hardware_value}, {one.emulated_value}: {one.kind.value}{apart}"


__all__ = ["InChain", "VectorDifference", "compare_vectors", "vector_lines"]
