"""Batches of small tiles, which the engine computes several at once: item by item the bits that each has alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import operands
import pytest

from mmabits.emulator.engine import native, products
from mmabits.isa import Lowering, lower, parse

Array = np.ndarray[Any, Any]

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


class Batch:
    """Operands of a batch, drawn."""

    def __init__(self, lowering: Lowering, kind: str, shape: tuple[int, int, int, int], promote: int) -> None:
        row = lowering.instruction
        items, m, n, k = shape
        rng = operands.generator(str(row), kind, *shape)
        types = (row.a_type.name, row.b_type.name)
        if row.scale_type is None:
            left, right = (operands.draw_pair(kind, *types, items * lines, k, rng, c_format=row.c_type.name) for lines in (m, n))
            self.scales: tuple[Array | None, Array | None] = (None, None)
        else:
            left, right = (
                operands.draw_scaled(kind, *types, items * lines, k, rng, scale_format=row.scale_type.name, block=row.block)
                for lines in (m, n)
            )
            assert left.scale_a is not None and right.scale_b is not None
            turned = right.scale_b.reshape(items, n, -1).transpose(0, 2, 1)
            self.scales = (left.scale_a.reshape(items, m, -1).copy(), turned.copy())
        product = native.native_product(lowering, promote)
        self.a = self._held(left.a, types[0], product.operand).reshape(items, m, k)
        self.b = self._held(right.b, types[1], product.operand).reshape(items, n, k).transpose(0, 2, 1).copy()
        c = operands.draw_pair(kind, *types, items * m * n, row.k, rng, c_format=row.c_type.name).c
        self.c = self._held(c, row.c_type.name, product.accumulator).reshape(items, m, n)

    @staticmethod
    def _held(codes: Array, name: str, dtype: np.dtype[Any]) -> Array:
        """Codes as the engine takes them: as they are, or as the numbers they stand for."""
        if dtype.kind == "u":
            return codes.astype(dtype)
        return codes.view(dtype) if name == "f32" else operands.decode(codes, name).astype(dtype)

    def run(self, lowering: Lowering, promote: int, *, side_by_side: bool) -> Array:
        d = self.c.copy()
        product = native.native_product(lowering, promote, side_by_side=side_by_side)
        assert product.side_by_side is side_by_side
        products.multiply(product, self.a, self.b, d, *self.scales)
        return d


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
