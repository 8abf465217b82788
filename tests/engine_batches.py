"""Products as the engine takes them, drawn; run as a program, digests of what it makes of them with the settings of this process."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import numpy as np
import operands

from mmabits.emulator.engine import native, products
from mmabits.isa import Lowering, lower, parse

Array = np.ndarray[Any, Any]


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
        if dtype.kind == "u" or name in operands.INTEGERS:
            return codes.astype(dtype)
        return codes.view(dtype) if name == "f32" else operands.decode(codes, name).astype(dtype)

    def run(self, lowering: Lowering, promote: int, *, side_by_side: bool = False, general: bool | None = None) -> Array:
        """D."""
        d = self.c.copy()
        product = native.native_product(lowering, promote, side_by_side=side_by_side, general=general)
        assert product.side_by_side is side_by_side
        products.multiply(product, self.a, self.b, d, *self.scales)
        return d


SPELLINGS = {
    "fp8": ("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e5m2", "sm_90a"),
    "fp8 f16": ("wgmma.mma_async.sync.aligned.m64n8k32.f16.e5m2.e4m3", "sm_90a"),
    "fp8 ada": ("mma.sync.aligned.m16n8k32.row.col.f32.e5m2.e5m2.f32", "sm_89"),
    "fp8 in f16": ("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e5m2.f32", "sm_90a"),
    "f8f6f4": ("tcgen05.mma.cta_group::1.kind::f8f6f4.m128n8k32.f32.e5m2.e3m2", "sm_100a"),
    "f8f6f4 f16": ("tcgen05.mma.cta_group::1.kind::f8f6f4.m128n8k32.f16.e4m3.e4m3", "sm_100a"),
    "mxf8f6f4": ("tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n8k32.f32.e4m3.e5m2.ue8m0", "sm_100a"),
    "mxf4": ("tcgen05.mma.cta_group::1.kind::mxf4.block_scale.block32.m128n8k64.f32.e2m1.e2m1.ue8m0", "sm_100a"),
    "nvfp4": ("tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n8k64.f32.e2m1.e2m1.ue4m3.negB", "sm_100a"),
    "f16": ("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16.negA", "sm_90a"),
    "f16 f16": ("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16", "sm_80"),
    "scaled c": ("tcgen05.mma.cta_group::1.kind::f16.m128n8k16.f32.bf16.bf16.scale_input_d::5", "sm_100a"),
    "bf16": ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "sm_80"),
    "tf32": ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", "sm_80"),
    "tf32 hopper": ("wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32", "sm_90a"),
    "s8": ("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", "sm_80"),
    "s8 u8": ("mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.u8.s32", "sm_80"),
    "u8 s8": ("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32", "sm_80"),
    "u8": ("mma.sync.aligned.m16n8k32.row.col.satfinite.s32.u8.u8.s32", "sm_80"),
    "s4 u4": ("mma.sync.aligned.m16n8k64.row.col.s32.s4.u4.s32", "sm_80"),
    "f64": ("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64", "sm_80"),
}
"""One instruction for each kind of the engine's steps."""
SHAPES = ((1, 9, 70, 2.5, 0), (2, 5, 8, 3, 1), (1, 3, 33, 20, 4))
"""Items, rows, columns, K and promotion in instructions."""


def drawn(name: str, kind: str, shape: tuple[float, ...]) -> tuple[Lowering, Batch, int]:
    """A lowering, operands, and elements of K between promotions."""
    text, arch = SPELLINGS[name]
    lowering = lower(parse(text), arch)
    row = lowering.instruction
    items, m, n = map(int, shape[:3])
    unit = row.block or 1
    promote = int(shape[4]) * row.k if row.d_type.name == "f32" else 0
    if row.d_type.is_integer and row.a_type.name in ("s4", "u4"):
        unit = 1
    return lowering, Batch(lowering, kind, (items, m, n, -(-int(shape[3] * row.k) // unit) * unit), promote), promote


def digests(names: list[str]) -> dict[str, str]:
    """For each kind of step a digest of all results."""
    found = {}
    for name in names:
        sums = hashlib.sha256()
        for kind in operands.KINDS:
            for shape in SHAPES:
                lowering, batch, promote = drawn(name, kind, shape)
                for side_by_side in (False, True) if native.native_product(lowering, promote, side_by_side=True).side_by_side else (False,):
                    if not side_by_side or (shape[2] <= 8 and shape[0] > 1):
                        sums.update(batch.run(lowering, promote, side_by_side=side_by_side).tobytes())
        found[name] = sums.hexdigest()
    return found


if __name__ == "__main__":
    print(json.dumps(digests(sys.argv[1:])))
