"""The engine against the exact model, bit for bit: every modelled line of the support table, every kind of input.

`MMABITS_DRAWS` sets how many dot products each line and kind gets; the slow variant draws 1,000,000 in all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import operands
import pytest
import slow_reference

from mmabits.emulator.api import dot_rows, gemm
from mmabits.emulator.codecs import as_codes, from_codes
from mmabits.isa import Instruction, Support, instructions, lower, parse

DRAWS = int(os.environ.get("MMABITS_DRAWS", "12"))
MILLION = 1_000_000
FAMILIES = {"mma.sync": "mma", "wgmma.mma_async": "wgmma", "tcgen05.mma": "tcgen05"}


def modelled() -> list[Support]:
    """Every line of the support table that claims to be modelled."""
    return [line for line in instructions() if line.modelled]


def by_datapath() -> dict[str, list[Support]]:
    """The lines of each datapath row."""
    found: dict[str, list[Support]] = {}
    for line in modelled():
        found.setdefault(str(line.datapath), []).append(line)
    return found


def reference(row: Instruction, arch: str, drawn: operands.Operands, *, promote_every: int | None = None) -> list[int]:
    """The exact model's results."""
    block = row.block or 32
    results = []
    for i in range(len(drawn.c)):
        scales = (None, None) if drawn.scale_a is None or drawn.scale_b is None else (drawn.scale_a[i], drawn.scale_b[i])
        a = operands.negate(drawn.a[i], row.a_type.name) if row.negate_a else drawn.a[i]
        b = operands.negate(drawn.b[i], row.b_type.name) if row.negate_b else drawn.b[i]
        results.append(
            slow_reference.dot(
                arch, FAMILIES[row.family.value], row.a_type.name, row.b_type.name, row.d_type.name, a, b,
                int(drawn.c[i]) if row.scale_d else 0, k_instruction=row.k, scale_a=scales[0], scale_b=scales[1],
                scale_type=row.scale_type.name if row.scale_type else None, block=block, promote_every=promote_every,
                rounding=row.rounding or "rn", satfinite=row.satfinite, scale_input_d=row.scale_input_d,
            )
        )  # fmt: skip
    return results


def draw(row: Instruction, kind: str, n: int, *seed: object, k: int | None = None) -> operands.Operands:
    """n dot products of an instruction's types."""
    rng = operands.generator(str(row), kind, *seed)
    types = (row.a_type.name, row.b_type.name)
    if row.scale_type is None or row.block is None:
        return operands.draw_pair(kind, *types, n, k or row.k, rng, c_format=row.c_type.name)
    return operands.draw_scaled(kind, *types, n, k or row.k, rng, scale_format=row.scale_type.name, block=row.block)


def differences(row: Instruction, arch: str, kind: str, drawn: operands.Operands) -> Iterator[str]:
    """One line for each dot product on which engine and exact model part."""
    got = dot_rows(row, arch, drawn.a, drawn.b, drawn.c, scale_a=drawn.scale_a, scale_b=drawn.scale_b)
    for i, (mine, want) in enumerate(zip(got.tolist(), reference(row, arch, drawn), strict=True)):
        if mine != want:
            scales = "" if drawn.scale_a is None or drawn.scale_b is None else f" scales {drawn.scale_a[i]} {drawn.scale_b[i]}"
            yield f"{row} {arch} {kind} {i}: engine {mine:#x}, exact {want:#x}; a {drawn.a[i]} b {drawn.b[i]} c {drawn.c[i]:#x}{scales}"


def every_pair(line: Support) -> list[Instruction]:
    """The line's example with each pair of operand types it stands for."""
    assert line.example is not None
    row = line.example
    text = line.operands
    if text.startswith("{") and text.count("{") == 1 and text.endswith("}"):
        pairs = [tuple(pair.split(".")) for pair in text.strip("{}").split(",")]
    else:
        left, right = (group.strip("{}").split(",") for group in text.split("."))
        pairs = [(a, b) for a in left for b in right]
    old = f".{row.a_type.name}.{row.b_type.name}"
    assert (row.a_type.name, row.b_type.name) in pairs
    return [parse(str(row).replace(old, f".{a}.{b}")) for a, b in pairs]


@pytest.mark.parametrize("line", modelled(), ids=lambda line: f"{line.arch}-{line.pattern}")
def test_the_engine_equals_the_exact_model(line: Support) -> None:
    """Each kind of input, with the operand pairs of the line taken in turn."""
    rows = every_pair(line)
    found: list[str] = []
    for i, kind in enumerate(operands.KINDS):
        row = rows[i % len(rows)]
        found += differences(row, line.arch, kind, draw(row, kind, DRAWS, line.arch))
    assert found == []


@pytest.mark.slow
@pytest.mark.parametrize("datapath", by_datapath())
def test_a_million_dot_products(datapath: str) -> None:
    """1,000,000 over all datapath rows, shared evenly among a row's instructions, pairs and kinds."""
    work = [(line, row, kind) for line in by_datapath()[datapath] for row in every_pair(line) for kind in operands.KINDS]
    each = -(-MILLION // (len(by_datapath()) * len(work)))
    found: list[str] = []
    for line, row, kind in work:
        found += differences(row, line.arch, kind, draw(row, kind, each, line.arch, "million"))
    assert found == []


MODIFIED = (
    ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e5m2.negA"),
    ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16.negA.negB"),
    ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16.negB"),
    ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3.scale_d::0"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::f8f6f4.m128n8k32.f32.e3m2.e2m1.negB"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n8k32.f32.e2m3.e4m3.ue8m0.negA"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n8k64.f32.e2m1.e2m1.ue4m3.negB"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::f16.m128n8k16.f32.bf16.bf16.scale_input_d::5"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::f16.m128n8k16.f16.f16.f16.scale_input_d::15"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::tf32.m128n8k8.f32.tf32.tf32.scale_input_d::1"),
    ("sm_80", "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.u8.s32"),
    ("sm_80", "mma.sync.aligned.m8n8k4.row.col.rz.f64.f64.f64.f64"),
    ("sm_80", "mma.sync.aligned.m8n8k4.row.col.rm.f64.f64.f64.f64"),
    ("sm_80", "mma.sync.aligned.m8n8k4.row.col.rp.f64.f64.f64.f64"),
)


@pytest.mark.parametrize(("arch", "text"), MODIFIED, ids=[text for _, text in MODIFIED])
@pytest.mark.parametrize("kind", operands.KINDS)
def test_modifiers(arch: str, text: str, kind: str) -> None:
    """Negation, scale-d, scale-input-d, satfinite and the roundings of f64."""
    row = parse(text)
    assert list(differences(row, arch, kind, draw(row, kind, 40))) == []


CHAINS = (
    ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3", 384, 128),
    ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3", 384, None),
    ("sm_90a", "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e5m2.f32", 320, 64),
    ("sm_90a", "mma.sync.aligned.m16n8k16.row.col.f16.e4m3.e4m3.f16", 80, None),
    ("sm_80", "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", 300, 32),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n8k32.f32.e4m3.e2m1.ue8m0", 320, 96),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n8k64.f32.e2m1.e2m1.ue4m3", 640, 128),
    ("sm_120a", "mma.sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0", 576, None),
)


@pytest.mark.parametrize(("arch", "text", "k", "promote"), CHAINS, ids=[f"{text}-{k}-{promote}" for _, text, k, promote in CHAINS])
@pytest.mark.parametrize("kind", ["plain", "wide", "cancelling", "sparse", "raw_finite"])
def test_chains_over_k(arch: str, text: str, k: int, promote: int | None, kind: str) -> None:
    """Many instructions, with and without promotion, as a product of matrices: 3 rows against 5 columns."""
    row = parse(text)
    left, right = draw(row, kind, 3, "left", k=k), draw(row, kind, 5, "right", k=k)
    c = operands.draw_pair(
        kind, row.a_type.name, row.b_type.name, 15, k, operands.generator("c", text, kind), c_format=row.c_type.name
    ).c.reshape(3, 5)
    scales = {}
    if row.scale_type is not None and left.scale_a is not None and right.scale_b is not None:
        scales = {"scale_a": from_codes(left.scale_a, row.scale_type), "scale_b": from_codes(right.scale_b.T, row.scale_type)}
    a, b = from_codes(left.a, row.a_type), from_codes(right.b.T, row.b_type)
    d = gemm(a, b, from_codes(c, row.c_type), instruction=row, arch=arch, promote_every=promote, **scales)
    for i in range(3):
        for j in range(5):
            one = operands.Operands(
                left.a[i : i + 1], right.b[j : j + 1], c[i : i + 1, j],
                None if left.scale_a is None else left.scale_a[i : i + 1], None if right.scale_b is None else right.scale_b[j : j + 1],
            )  # fmt: skip
            assert int(as_codes(d, row.d_type)[i, j]) == reference(row, arch, one, promote_every=promote)[0], (i, j)


@pytest.mark.parametrize(
    "line", [line for line in modelled() if line.scale.startswith("ue8m0")], ids=lambda line: f"{line.arch}-{line.pattern}"
)
def test_scaled_products_at_the_ends_of_f32(line: Support) -> None:
    """Subnormal accumulators align at the smallest normal's exponent, scaled products far below it; overflow is infinity."""
    assert line.example is not None
    drawn = operands.at_the_ends_of_f32(draw(line.example, "wide", 600), operands.generator("ends of f32", str(line.example)))
    assert list(differences(line.example, line.arch, "ends", drawn)) == []


def test_a_subnormal_accumulator_aligns_at_the_smallest_normal_exponent() -> None:
    """2^-149 - 2^-166 + c of 2^-149: the small term lies below 2^(-126 - 35) and is cut."""
    row = parse("tcgen05.mma.cta_group::1.kind::mxf4.block_scale.block32.m128n8k64.f32.e2m1.e2m1.ue8m0")
    a, b = np.zeros((1, 64), np.uint8), np.zeros((1, 64), np.uint8)
    a[0, 0], b[0, 0], a[0, 32], b[0, 32] = 2, 2, 10, 2
    scales = {"scale_a": np.array([[52, 52]], np.uint8), "scale_b": np.array([[53, 36]], np.uint8)}
    assert dot_rows(row, "sm_100a", a, b, np.array([1], np.uint32), **scales).tolist() == [2]


def test_every_datapath_row_is_reached() -> None:
    """The support table's modelled lines use every datapath row there is."""
    from mmabits.isa import DATAPATHS

    assert set(by_datapath()) == set(DATAPATHS)
    assert all(lower(line.example, line.arch).datapath.name == line.datapath for line in modelled() if line.example)
