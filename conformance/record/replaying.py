"""Recordings of tiles, run through the emulator and compared bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.conformance.distances import Distances, distances
from mmabits.conformance.record.device import EMULATOR
from mmabits.conformance.record.recording import Recording, is_recording, read_recording
from mmabits.conformance.record.tiles import Codes, emulate_tiles
from mmabits.conformance.replay import Difference, FileReport
from mmabits.conformance.replay import replay as replay_rows
from mmabits.conformance.vectors import DotVectors, read_vectors
from mmabits.isa import lower
from mmabits.isa.errors import VectorFileError

_BATCH_RESULTS: Final = 1 << 20
_ROWS_KIND: Final = {EMULATOR: "peer"}
"""What dot-vectors/1 calls a kind."""


def replay_recording(path: str | Path, *, limit: int = 3) -> FileReport:
    """Replay a file of tiles; the report is that of `mmabits replay`, its rows being the elements of D one after another.

    Args:
        path: a recording.
        limit: how many differing elements to describe.

    Raises:
        VectorFileError: the file cannot be read.
        UnsupportedInstruction: the architecture lacks the instruction.
    """
    return report_of(read_recording(path), path=str(path), limit=limit)


def report_of(recording: Recording, *, path: str = "", limit: int = 3) -> FileReport:
    """Run a recording's tiles through the emulator and count the elements of D that differ.

    The first differing elements are explained step by step, as rows of dot products; not those of chains, whose intermediate
    results are not recorded.
    """
    instruction = recording.instruction
    places: list[tuple[int, int, int]] = []
    apart = Distances()
    for part, far in _differing(recording):
        places.extend(part)
        apart += far
    describable = [] if recording.chain > 1 else places[:limit]
    return FileReport(
        path=path, kind=recording.kind, gpu=recording.gpu, arch=recording.arch, instruction=instruction.ptx,
        a_type=instruction.a_type.name, b_type=instruction.b_type.name, c_type=instruction.c_type.name, d_type=instruction.d_type.name,
        evidence=lower(instruction, recording.arch).evidence, rows=int(recording.d.size), differing=len(places),
        differences=tuple(_described(recording, describable)), distances=apart,
    )  # fmt: skip


def _differing(recording: Recording) -> Iterator[tuple[list[tuple[int, int, int]], Distances]]:
    """Tile, row and column of every element that differs, and how far they are apart, in batches of tiles."""
    tiles = recording.operands.tiles
    batch = max(1, _BATCH_RESULTS // (recording.instruction.m * recording.instruction.n))
    for start in range(0, tiles, batch):
        stop = min(start + batch, tiles)
        computed = emulate_tiles(recording.instruction, recording.arch, recording.operands.part(start, stop))
        kept = recording.d[start:stop]
        wrong: Any = np.argwhere(computed != kept) + np.array([start, 0, 0])
        places = [(int(tile), int(row), int(column)) for tile, row, column in wrong]
        yield places, distances(kept, computed, recording.instruction.d_type)


def _described(recording: Recording, places: list[tuple[int, int, int]]) -> Iterator[Difference]:
    """The elements as dot products, which `replay` explains; a row's number is the element's place in D."""
    if not places:
        return
    rows = dot_rows_of(recording, places)
    numbers = [int(np.ravel_multi_index(place, recording.d.shape)) for place in places]
    for difference in replay_rows(rows, limit=len(places)).differences:
        yield replace(difference, row=numbers[difference.row])


def read_dots(path: str | Path) -> DotVectors:
    """The dot products of a file of either format: of tiles, every element of D is one.

    Args:
        path: dot-vectors/1 or tile-vectors/1.

    Raises:
        VectorFileError: the file cannot be read, or holds chains of instructions, whose intermediate results nobody recorded.
    """
    if not is_recording(path):
        return read_vectors(path)
    recording = read_recording(path)
    if recording.chain > 1:
        raise VectorFileError(f"{path}: holds chains of {recording.chain} instructions; single dot products are needed (--chain 1)")
    places = np.stack(np.unravel_index(np.arange(recording.d.size), recording.d.shape), axis=1)
    return dot_rows_of(recording, places)


def dot_rows_of(recording: Recording, places: list[tuple[int, int, int]] | npt.NDArray[np.intp]) -> DotVectors:
    """Elements of D as dot products of one instruction.

    Args:
        recording: one without a chain.
        places: tile, row and column of each.
    """
    instruction, operands = recording.instruction, recording.operands
    tile, row, column = np.asarray(places).T

    def rows_of(codes: Codes | None) -> Codes | None:
        return None if codes is None else np.ascontiguousarray(codes[tile, row])

    def columns_of(codes: Codes | None) -> Codes | None:
        return None if codes is None else np.ascontiguousarray(codes[tile, :, column])

    return DotVectors(
        instruction=instruction.ptx, arch=recording.arch, a_type=instruction.a_type, b_type=instruction.b_type, c_type=instruction.c_type,
        d_type=instruction.d_type, k=instruction.k, a=np.ascontiguousarray(operands.a[tile, row]),
        b=np.ascontiguousarray(operands.b[tile, :, column]), c=operands.c[tile, row, column], d=recording.d[tile, row, column],
        scale_type=instruction.scale_type, block=instruction.block, scale_a=rows_of(operands.scale_a), scale_b=columns_of(operands.scale_b),
        kind=_ROWS_KIND.get(recording.kind, recording.kind), gpu=recording.gpu,
    )  # fmt: skip
