"""Every recording of a real GPU, reproduced bit for bit. Data beside the checkout, or where MMABITS_RECORDINGS says; else skipped."""

import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mmabits.isa
from mmabits.conformance.diff.counting import count
from mmabits.conformance.recorded.dots import read_vectors
from mmabits.conformance.recorded.reading import FOLDER_VARIABLE, find_files, recordings_folder
from mmabits.isa import Evidence, Lowering, instructions, lower, parse

FOLDER = recordings_folder()
FILES = [] if FOLDER is None else find_files([FOLDER])
needs_recordings = pytest.mark.skipif(not FILES, reason=f"no recordings: neither {FOLDER_VARIABLE} nor ../shared/hardware is there")


def modelled() -> Iterator[Lowering]:
    for row in instructions():
        if row.modelled and row.example is not None:
            yield lower(row.example, row.arch)


@needs_recordings
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recording_is_reproduced(path: Path) -> None:
    report = count(read_vectors(path), path=str(path))
    assert report.rows > 0
    assert (report.differing, report.differences) == (0, ())


@needs_recordings
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_changed_result_is_noticed(path: Path) -> None:
    """Each result with its lowest bit flipped is reported: the replay compares every row and every bit of it."""
    vectors = read_vectors(path)
    flipped = vectors.d ^ vectors.d.dtype.type(1)
    assert count(replace(vectors, d=flipped), limit=0).differing == vectors.rows
    one = vectors.d.copy()
    one[-1] ^= one.dtype.type(1 << (8 * one.dtype.itemsize - 1))
    report = count(replace(vectors, d=one))
    assert [difference.row for difference in report.differences] == [vectors.rows - 1]
    (difference,) = report.differences
    if not difference.separate_add:
        assert difference.steps[-1].accumulator == difference.computed


@needs_recordings
def test_recordings_hold_varied_results() -> None:
    """A recording of one result over and over would prove little."""
    for path in FILES:
        vectors = read_vectors(path)
        assert len(np.unique(vectors.d)) > vectors.rows // 10, path.name


def recordings_table() -> dict[str, dict[str, str]]:
    path = Path(mmabits.isa.__file__).with_name("sources.toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))["recordings"]


@needs_recordings
def test_files_are_those_that_the_sources_list() -> None:
    listed = recordings_table()
    found = {path.stem: read_vectors(path) for path in FILES}
    assert set(listed) <= set(found)
    for name, entry in listed.items():
        assert (found[name].gpu, found[name].arch, found[name].instruction) == (entry["gpu"], entry["arch"], entry["instruction"])


def test_every_claim_of_a_recording_names_one_that_fits() -> None:
    listed = recordings_table()
    for lowering in modelled():
        for proof in (*lowering.proofs, *lowering.datapath.proofs):
            if proof.level is Evidence.RECORDED:
                assert proof.sources, lowering
                for name in proof.sources:
                    recorded = parse(listed[name]["instruction"])
                    assert recorded.d_type is lowering.instruction.d_type, name
            else:
                assert not set(proof.sources) & set(listed)
