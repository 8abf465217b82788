"""Products whose last bits matter, for any instruction: zeros of both signs, infinities, NaN codes, overflow and underflow."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import operands
import slow_reference

from mmabits.isa import Arithmetic, Instruction, Lowering, instructions, lower, parse

Codes = np.ndarray[Any, Any]

ROWS, COLUMNS = 8, 9
"""One vector of the engine, and one vector and a rest."""
FAMILIES = {"mma.sync": "mma", "wgmma.mma_async": "wgmma", "tcgen05.mma": "tcgen05"}

MODIFIED = (
    ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e5m2.negA"),
    ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16.negB"),
    ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k32.f16.e5m2.e5m2"),
    ("sm_90a", "mma.sync.aligned.m16n8k32.row.col.f32.e5m2.e5m2.f32"),
    ("sm_90a", "mma.sync.aligned.m16n8k16.row.col.f16.e5m2.e4m3.f16"),
    ("sm_100a", "mma.sync.aligned.m16n8k32.row.col.f16.e5m2.e5m2.f16"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::f16.m128n8k16.f16.f16.f16.scale_input_d::15"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n8k32.f32.e2m3.e5m2.ue8m0.negA"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n8k64.f32.e2m1.e2m1.ue4m3.negB"),
    ("sm_80", "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.u8.s32"),
    ("sm_80", "mma.sync.aligned.m8n8k4.row.col.rz.f64.f64.f64.f64"),
    ("sm_80", "mma.sync.aligned.m8n8k4.row.col.rm.f64.f64.f64.f64"),
    ("sm_80", "mma.sync.aligned.m8n8k4.row.col.rp.f64.f64.f64.f64"),
    ("sm_90a", "mma.sync.aligned.m16n8k8.row.col.rm.f64.f64.f64.f64"),
)
"""Beside the examples of the support table: modifiers, types with infinities, every rounding of f64."""


class Product(NamedTuple):
    """A product of ROWS by COLUMNS, as codes."""

    a: Codes
    """(ROWS, K)"""
    b: Codes
    """(COLUMNS, K)"""
    c: Codes
    """(ROWS, COLUMNS)"""
    scale_a: Codes | None
    """(ROWS, blocks)"""
    scale_b: Codes | None
    """(COLUMNS, blocks)"""


def lines() -> list[tuple[str, str]]:
    """Architecture and spelling of an instruction of every modelled line of the support table, and of those above."""
    found = [(line.arch, str(line.example)) for line in instructions() if line.modelled and line.example is not None]
    return [*dict.fromkeys([*found, *MODIFIED])]


def promotes(lowering: Lowering) -> bool:
    """Whether a caller may promote."""
    fused = lowering.datapath.arithmetic in (Arithmetic.FUSED, Arithmetic.GROUPED)
    return fused and lowering.instruction.scale_input_d == 0


def _code(name: str, edge: str) -> int:
    """A named code; where a format lacks it, its positive twin, its largest number or one."""
    known = operands.edge_codes(name)
    for each in (edge, edge.removeprefix("-"), {"minus one": "one", "min": "zero"}.get(edge, "max finite"), "max", "one"):
        if each in known:
            return known[each]
    raise KeyError(edge)


def _vectors(name: str, k: int, patterns: tuple[tuple[str, dict[int, str]], ...]) -> Codes:
    """Lines of k codes: one code everywhere, others in their places (negative ones from the end)."""
    found = np.zeros((len(patterns), k), operands.dtype_of(name))
    for line, (everywhere, places) in zip(found, patterns, strict=True):
        line[:] = _code(name, everywhere)
        for place, edge in places.items():
            line[place] = _code(name, edge)
    return found


_LEFT = (
    ("zero", {}), ("-zero", {}), ("one", {0: "infinity"}), ("zero", {-1: "quiet nan"}), ("max finite", {}), ("-one", {}),
    ("one", {-1: "-infinity"}), ("min subnormal", {}),
)  # fmt: skip
_RIGHT = (
    ("zero", {}), ("-zero", {}), ("one", {}), ("-one", {}), ("one", {0: "infinity"}), ("zero", {-1: "-infinity"}),
    ("one", {2: "-signalling nan"}), ("max finite", {}), ("-min subnormal", {}),
)  # fmt: skip
_HELD = (
    "infinity", "one", "-quiet nan", "max finite", "-infinity", "signalling nan", "-max finite", "-min subnormal", "all-ones nan", "zero",
    "-zero",
)  # fmt: skip


def product(row: Instruction, k: int, *, c_format: str | None = None) -> Product:
    """The operands, over any K of at least four. Rows of zeros meet zeros of both signs in C."""
    a, b = _vectors(row.a_type.name, k, _LEFT), _vectors(row.b_type.name, k, _RIGHT)
    held = c_format or row.c_type.name
    c = np.zeros((ROWS, COLUMNS), operands.dtype_of(held))
    for i in range(ROWS):
        for j in range(COLUMNS):
            zeros = "-zero" if (i + j) % 2 else "zero"
            c[i, j] = _code(held, zeros if i in (0, 1, 7) and j < 8 else "-zero" if i == 7 else _HELD[(i * COLUMNS + j) * 7 % len(_HELD)])
    if row.scale_type is None or row.block is None:
        return Product(a, b, c, None, None)
    shape = (-(-k // row.block),)
    scales = [np.full((count, *shape), _code(row.scale_type.name, "one"), np.uint8) for count in (ROWS, COLUMNS)]
    scales[0][3, -1] = scales[1][6, 0] = _code(row.scale_type.name, "all-ones nan")
    scales[0][7], scales[1][8] = (_code(row.scale_type.name, edge) for edge in ("min normal", "min subnormal"))
    return Product(a, b, c, *scales)


def some_columns(given: Product) -> Product:
    """The columns with most of the special results: for what is slow."""
    few = [2, 4, 6, 7, 8]
    return Product(given.a, given.b[few], given.c[:, few], given.scale_a, None if given.scale_b is None else given.scale_b[few])


def exact(row: Instruction, arch: str, given: Product, promote_every: int | None = None) -> Codes:
    """The exact model's result codes, as many as there are in C."""
    block = row.block or 32
    found = np.zeros(given.c.shape, np.uint64)
    for i in range(len(given.a)):
        a = operands.negate(given.a[i], row.a_type.name) if row.negate_a != row.negate_b else given.a[i]
        for j in range(len(given.b)):
            scales = (None, None) if given.scale_a is None or given.scale_b is None else (given.scale_a[i], given.scale_b[j])
            found[i, j] = slow_reference.dot(
                arch, FAMILIES[row.family.value], row.a_type.name, row.b_type.name, row.d_type.name, a.tolist(), given.b[j].tolist(),
                int(given.c[i, j]), k_instruction=row.k, scale_a=scales[0], scale_b=scales[1],
                scale_type=row.scale_type.name if row.scale_type else None, block=block, promote_every=promote_every,
                rounding=row.rounding or "rn", satfinite=row.satfinite, scale_input_d=row.scale_input_d,
            )  # fmt: skip
    return found


def lowered(arch: str, text: str) -> Lowering:
    """The lowering of a line."""
    return lower(parse(text), arch)
