"""Recordings of tiles through the emulator: equal, or every difference counted and the first explained."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mmabits.conformance.diff.counting import count, described_lines
from mmabits.conformance.record.generators import normal_values
from mmabits.conformance.record.tiles import emulate_tiles, join_chain
from mmabits.conformance.recorded.tiles import Recording
from mmabits.isa import parse

CASES = [
    ("sm_80", "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"),
    ("sm_90a", "mma.sync.aligned.m16n8k32.row.col.f16.e4m3.e5m2.f16"),
    ("sm_90a", "mma.sync.aligned.m16n8k4.row.col.rz.f64.f64.f64.f64"),
    ("sm_80", "mma.sync.aligned.m16n8k64.row.col.satfinite.s32.s4.u4.s32"),
    ("sm_120a", "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3"),
    ("sm_100a", "tcgen05.mma.cta_group::2.kind::f8f6f4.m256n16k32.f16.e2m3.e3m2"),
]


def made(arch: str, ptx: str, chain: int = 1, tiles: int = 3) -> Recording:
    row = parse(ptx)
    operands = join_chain(normal_values(row, arch, tiles * chain, 11), chain)
    return Recording(
        instruction=row, arch=arch, kind="hardware", gpu="G", chain=chain, operands=operands, d=emulate_tiles(row, arch, operands)
    )


@pytest.mark.parametrize(("arch", "ptx"), CASES)
def test_every_difference_is_counted_and_explained(arch: str, ptx: str) -> None:
    recording = made(arch, ptx)
    assert count(recording).differing == 0
    places = [(0, 0, 1), (1, 3, 2), (2, 7, 7)]
    d = recording.d.copy()
    for place in places:
        d[place] ^= 1
    report = count(replace(recording, d=d), limit=2)
    assert (report.differing, report.rows, report.kind, report.gpu) == (3, d.size, "hardware", "G")
    assert [np.unravel_index(difference.row, d.shape) for difference in report.differences] == places[:2]
    for difference, (tile, row, column) in zip(report.differences, places, strict=False):
        assert difference.a == tuple(recording.operands.a[tile, row]) and difference.b == tuple(recording.operands.b[tile, :, column])
        assert (difference.c, difference.recorded) == (recording.operands.c[tile, row, column], d[tile, row, column])
        assert difference.computed == recording.d[tile, row, column]
        assert len(described_lines(report, difference)) > 6


def test_chains_are_counted_without_explanation() -> None:
    recording = made(*CASES[0], chain=4)
    d = recording.d.copy()
    d[0, 0, 0] ^= 1
    report = count(replace(recording, d=d))
    assert (report.differing, report.differences) == (1, ())


def test_a_chain_is_not_one_long_sum() -> None:
    """The result of each instruction is rounded and becomes the C of the next."""
    arch, ptx = CASES[0]
    recording = made(arch, ptx, chain=3)
    row, c = recording.instruction, recording.operands.c
    for step in range(3):
        part = slice(step * row.k, (step + 1) * row.k)
        operands = replace(recording.operands, a=recording.operands.a[:, :, part], b=recording.operands.b[:, part], c=c)
        c = emulate_tiles(row, arch, operands)
    assert (c == recording.d).all()


def test_large_recordings_go_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmabits.conformance.recorded import tiles as module

    recording = made(*CASES[1], tiles=5)
    d = recording.d.copy()
    d[4, 15, 7] ^= 1
    seen: list[int] = []
    original: Any = module.emulate_tiles
    monkeypatch.setattr(module, "_BATCH_RESULTS", 256)
    monkeypatch.setattr(module, "emulate_tiles", lambda row, arch, part: seen.append(part.tiles) or original(row, arch, part))
    report = count(replace(recording, d=d))
    assert seen == [2, 2, 1]
    assert [np.unravel_index(difference.row, d.shape) for difference in report.differences] == [(4, 15, 7)]
