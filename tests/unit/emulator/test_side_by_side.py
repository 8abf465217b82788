"""Batches of small tiles, which the engine computes several at once: item by item the bits that each has alone."""

from __future__ import annotations

import operands
import pytest
from engine_batches import Batch

from mmabits.isa import lower, parse

SPELLINGS = [
    ("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32", "sm_89"),
    ("mma.sync.aligned.m16n8k32.row.col.f32.e5m2.e4m3.f32", "sm_89"),
    ("mma.sync.aligned.m16n8k32.row.col.f32.e5m2.e5m2.f32", "sm_90a"),
    ("mma.sync.aligned.m16n8k32.row.col.f16.e4m3.e4m3.f16", "sm_89"),
    ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "sm_80"),
    ("mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16", "sm_80"),
    ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "sm_90a"),
    ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", "sm_80"),
    ("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32", "sm_80"),
    ("mma.sync.aligned.kind::f8f6f4.m16n8k32.row.col.f32.e3m2.e2m1.f32", "sm_120a"),
    ("mma.sync.aligned.kind::mxf8f6f4.block_scale.scale_vec::1X.m16n8k32.row.col.f32.e4m3.e5m2.f32.ue8m0", "sm_120a"),
    ("mma.sync.aligned.kind::mxf4.block_scale.scale_vec::2X.m16n8k64.row.col.f32.e2m1.e2m1.f32.ue8m0", "sm_120a"),
    ("mma.sync.aligned.kind::mxf4nvf4.block_scale.scale_vec::4X.m16n8k64.row.col.f32.e2m1.e2m1.f32.ue4m3", "sm_120a"),
]
SHAPES = [
    # items, rows, columns, K in instructions, promote after so many
    pytest.param(7, None, 8, 1, 0, id="tiles"),
    pytest.param(8, None, 8, 3, 1, id="promoted"),
    pytest.param(2, 5, 5, 2.5, 0, id="odd"),
    pytest.param(3, 70, 7, 12.25, 4, id="tall"),
]


@pytest.mark.parametrize(("items", "m", "n", "instructions", "promoted"), SHAPES)
@pytest.mark.parametrize(("text", "arch"), SPELLINGS, ids=lambda each: each.removeprefix("mma.sync.aligned."))
def test_side_by_side_has_the_bits_of_one_by_one(
    text: str, arch: str, items: int, m: int | None, n: int, instructions: float, promoted: int
) -> None:
    """Every kind of data, specials among them; a last group that is not full; edges; several panels of K."""
    lowering = lower(parse(text), arch)
    row = lowering.instruction
    unit = row.block or 1
    k = -(-int(instructions * row.k) // unit) * unit
    promote = promoted * row.k
    for kind in operands.KINDS:
        batch = Batch(lowering, kind, (items, m or row.m, n, k), promote)
        got, want = (batch.run(lowering, promote, side_by_side=each) for each in (True, False))
        assert got.tobytes() == want.tobytes(), kind
