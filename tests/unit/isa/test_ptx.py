"""Reading and printing PTX spellings, whole and short."""

from __future__ import annotations

import itertools
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmabits.isa import (
    FORMATS,
    INSTRUCTION_SPECS,
    Family,
    Instruction,
    MmabitsError,
    UnknownInstruction,
    UnsupportedInstruction,
    complete,
    parse,
    resolve,
)

ROOT = Path(__file__).resolve().parents[3]
RECORDINGS = tomllib.loads((ROOT / "isa" / "sources.toml").read_text())["recordings"]

CANONICAL = [
    "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32",
    "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16",
    "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e5m2.f32",
    "mma.sync.aligned.m16n8k32.row.col.kind::f8f6f4.f32.e3m2.e2m1.f32",
    "mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.block_scale.scale_vec::1X.f32.e5m2.e2m3.f32.ue8m0",
    "mma.sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0",
    "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3",
    "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue8m0",
    "mma.sync.aligned.m8n8k4.row.col.rn.f64.f64.f64.f64",
    "mma.sync.aligned.m16n8k16.row.col.rp.f64.f64.f64.f64",
    "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32",
    "mma.sync.aligned.m8n8k32.row.col.s32.u4.s4.s32",
    "wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3",
    "wgmma.mma_async.sync.aligned.m64n24k32.s32.s8.u8.satfinite",
    "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32.negA.negB.scale_d::0",
    "tcgen05.mma.cta_group::1.kind::f8f6f4.m128n256k32.f32.e4m3.e4m3",
    "tcgen05.mma.cta_group::2.kind::f16.m256n16k16.f16.f16.f16.negB.scale_input_d::15",
    "tcgen05.mma.cta_group::1.kind::i8.m64n24k32.s32.u8.s8.satfinite",
    "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n256k64.f32.e2m1.e2m1.ue4m3",
    "tcgen05.mma.cta_group::1.kind::mxf4.block_scale.block32.m128n8k64.f32.e2m1.e2m1.ue8m0",
]


def samples() -> list[Instruction]:
    """An instruction of every row, tile, accumulator and scale mode; the operand pairs take turns."""
    found = []
    for spec in INSTRUCTION_SPECS:
        pairs = itertools.cycle(spec.pairs)
        for tile, d, scale in itertools.product(spec.tiles, spec.accumulators, spec.scales or (None,)):
            for m, n in itertools.product(tile.m, (tile.n[0], tile.n[len(tile.n) // 2], tile.n[-1])):
                a, b = next(pairs)
                found.append(Instruction(
                    family=spec.family, m=m, n=n, k=tile.k, kind=spec.kind, cta_group=tile.cta_group, a_type=FORMATS[a], b_type=FORMATS[b],
                    d_type=FORMATS[d], c_type=FORMATS[spec.c_type or d], scale_type=FORMATS[scale.scale_type] if scale else None,
                    block=scale.block if scale else None, rounding=spec.roundings[-1] if spec.roundings else None,
                    satfinite=spec.satfinite, negate_b=spec.negate, scale_d=not spec.skip_c,
                    scale_input_d=7 if spec.scale_input_d else 0,
                ))  # fmt: skip
    return found


SAMPLES = samples()


@pytest.mark.parametrize("text", CANONICAL)
def test_canonical_spellings_are_printed_as_they_are_read(text):
    assert str(parse(text)) == parse(text).ptx == text


def test_every_row_reads_back_what_it_prints():
    assert {spec for instruction in SAMPLES for spec in instruction.specs} == set(INSTRUCTION_SPECS)
    for instruction in SAMPLES:
        assert parse(str(instruction)) == instruction


def test_the_fields_of_a_spelling():
    got = parse("tcgen05.mma.cta_group::2.kind::mxf8f6f4.block_scale.block32.m256n64k32.f32.e3m2.e2m1.ue8m0.negA")
    assert (got.family, got.kind, got.m, got.n, got.k, got.cta_group, got.block) == (Family.TCGEN05, "mxf8f6f4", 256, 64, 32, 2, 32)
    assert (got.d_type, got.a_type, got.b_type, got.c_type) == tuple(FORMATS[name] for name in ("f32", "e3m2", "e2m1", "f32"))
    assert (got.scale_type, got.negate_a, got.negate_b, got.scale_d) == (FORMATS["ue8m0"], True, False, True)
    assert got.rounding is None and not got.satfinite and got.scale_input_d == 0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(SAMPLES), st.randoms(use_true_random=False))
def test_qualifiers_may_stand_in_any_order(instruction, random):
    words = str(instruction).split(".")
    types = [word for word in words if word in FORMATS]
    layouts = [word for word in words if word in ("row", "col")]
    random.shuffle(words)
    for ordered in (types, layouts):  # put these back into their own order
        places = [place for place, word in enumerate(words) if word in ordered]
        for place, word in zip(places, ordered, strict=True):
            words[place] = word
    assert parse(".".join(words)) == instruction


@pytest.mark.parametrize(
    ("other", "canonical"),
    [
        (
            "mma.sync.aligned.kind::f8f6f4.m16n8k32.row.col.f32.e3m2.e2m1.f32",  # the order of CUTLASS
            "mma.sync.aligned.m16n8k32.row.col.kind::f8f6f4.f32.e3m2.e2m1.f32",
        ),
        (
            "mma.sync.aligned.kind::mxf4.block_scale.m16n8k64.row.col.f32.e2m1.e2m1.f32.ue8m0",  # the default block size
            "mma.sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0",
        ),
        (
            "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.scale_vec::4X.m128n64k64.f32.e2m1.e2m1.ue8m0",
            "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n64k64.f32.e2m1.e2m1.ue8m0",
        ),
        ("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64", "mma.sync.aligned.m8n8k4.row.col.rn.f64.f64.f64.f64"),
        ("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16.scale_d::1", "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16"),
        (" wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16\n", "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16"),
    ],
)
def test_other_spellings_of_the_same(other, canonical):
    assert str(parse(other)) == canonical


@pytest.mark.parametrize("name", sorted(RECORDINGS))
def test_the_recorded_instructions_are_canonical(name):
    assert str(parse(RECORDINGS[name]["instruction"])) == RECORDINGS[name]["instruction"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"unknown instruction ''"),
        ("hello", r"unknown instruction 'hello'; families: mma\.sync, wgmma\.mma_async, tcgen05\.mma$"),
        ("wgma.m64n8", r"unknown instruction .*did you mean wgmma"),
        ("wgmma", r"not a whole spelling: it lacks shape, operand types; resolve\(\)"),
        ("mma.sync.aligned.m16n8k16.row.col", r"lacks operand types"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16", r"lacks type of C"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16", r"2 operand types; write D\.A\.B\.C"),
        ("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16.f32", r"4 operand types; write D\.A\.B, D alone"),
        ("tcgen05.mma.kind::f16.m128n64k16.f32.f16.f16", r"lacks cta_group"),
        ("mma.sync.aligned.m16n8k16.row.row.f32.f16.f16.f32", r"layouts \.row\.row; A is \.row and B is \.col"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f61.f16.f32", r"unknown qualifier 'f61'; did you mean"),
        ("mma.sync.aligned.m16n8k17.row.col.f32.f16.f16.f32", r"no shape m16n8k17; allowed: m8n8k4, m16n8k8, m16n8k16$"),
        ("mma.sync.aligned.m16n8k16.m16n8k16.row.col.f32.f16.f16.f32", r"given twice"),
        ("mma.sync.aligned.m16n8k16.row.col.wgmma.f32.f16.f16.f32", r"wgmma\.mma_async has no \.mma"),
        ("wgmma.tcgen05", r"mixes tcgen05\.mma and wgmma\.mma_async"),
        ("mma.sync.aligned.m16n8k16.row.col.cta_group::1.f32.f16.f16.f32", r"mma\.sync has no \.cta_group::1"),
        ("mma.sync.aligned.m16n8k16.row.col.rn.f32.f16.f16.f32", r"no rn; allowed: no modifiers"),
        ("mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.block16.f32.e2m1.e2m1.f32.ue4m3", r"no \.block16; .*scale_vec::1X"),
        ("mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.f32.e2m1.e2m1.f32.ue8m0",
         r"leaves the block scales open: ue8m0 with block32"),
        ("mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue4m3",
         r"no block scales ue4m3 scale_vec::2X"),
        ("mma.sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue8m0",
         r"no block scales ue8m0 scale_vec::4X"),
        ("mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.f32.e2m1.e2m1.f32",
         r"no instruction without block scales; allowed: ue8m0 block32$"),
        ("mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.block_scale.f16.e2m1.e2m1.f16.ue8m0",
         r"no D f16 and C f16; allowed: D f32 with C f32$"),
        ("tcgen05.mma.cta_group::1.kind::i8.m128n64k32.s32.s8.s8.negA", r"no negA; allowed: satfinite, scale_d::0$"),
        ("tcgen05.mma.cta_group::1.kind::f8f6f4.m128n64k32.f32.e4m3.e4m3.scale_input_d::1", r"no scale_input_d::1"),
        ("tcgen05.mma.cta_group::2.kind::f16.m64n64k16.f32.f16.f16", r"no shape m64n64k16 cta_group::2"),
        ("tcgen05.mma.cta_group::1.kind::f16.m128n64k16.f32.f16.bf16", r"no operands f16 x bf16; allowed: f16, bf16$"),
    ],
)  # fmt: skip
def test_parse_refuses(text, message):
    with pytest.raises(UnknownInstruction, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32", "2:4 sparse"),
        ("mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.f32.e4m3.e4m3.f32", "2:4 sparse"),
        ("wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.f16.f16", "2:4 sparse"),
        ("tcgen05.mma.sp.cta_group::1.kind::f16.m128n64k32.f32.f16.f16", "2:4 sparse"),
        ("tcgen05.mma.ws.cta_group::1.kind::f16.m32n64k16.f32.f16.f16", "weight-stationary"),
        ("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc", "one-bit"),
    ],
)
def test_known_forms_are_refused_by_name(text, reason):
    with pytest.raises(UnsupportedInstruction, match=f"known but not modelled: {reason}"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "arch", "types", "expected"),
    [
        ("wgmma", "sm_90a", "e4m3 e5m2", "wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e5m2"),
        ("wgmma", "sm_90a", "f16 f16 f16", "wgmma.mma_async.sync.aligned.m64n256k16.f16.f16.f16"),
        ("wgmma.m64n128", "sm_90a", "f16 f16", None),
        ("wgmma.negA.scale_d::0", "sm_90a", "tf32 tf32", "wgmma.mma_async.sync.aligned.m64n256k8.f32.tf32.tf32.negA.scale_d::0"),
        ("wgmma.satfinite", "sm_90a", "u8 s8", "wgmma.mma_async.sync.aligned.m64n256k32.s32.u8.s8.satfinite"),
        ("mma.sync", "sm_70", "f16 f16", "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32"),
        ("mma.sync", "sm_75", "f16 f16", "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32"),
        ("mma.sync", "sm_80", "f16 f16 f16", "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16"),
        ("mma.sync.f16", "sm_80", "f16 f16", "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16"),
        ("mma.sync.m16n8k8", "sm_80", "bf16 bf16", "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32"),
        ("mma.sync", "sm_80", "tf32 tf32", "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"),
        ("mma.sync", "sm_80", "f64 f64", "mma.sync.aligned.m8n8k4.row.col.rn.f64.f64.f64.f64"),
        ("mma.sync.rz", "sm_90a", "f64 f64", "mma.sync.aligned.m16n8k16.row.col.rz.f64.f64.f64.f64"),
        ("mma.sync", "sm_75", "s8 u8", "mma.sync.aligned.m8n8k16.row.col.s32.s8.u8.s32"),
        ("mma.sync", "sm_80", "s4 s4", "mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32"),
        ("mma.sync", "sm_89", "e4m3 e4m3", "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32"),
        ("mma.sync", "sm_100a", "e4m3 e4m3", "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32"),
        ("mma.sync", "sm_120a", "e4m3 e4m3", "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32"),
        ("mma.sync.kind::f8f6f4", "sm_120a", "e4m3 e4m3", "mma.sync.aligned.m16n8k32.row.col.kind::f8f6f4.f32.e4m3.e4m3.f32"),
        ("mma.sync", "sm_120a", "e4m3 e2m1", "mma.sync.aligned.m16n8k32.row.col.kind::f8f6f4.f32.e4m3.e2m1.f32"),
        ("mma.sync", "sm_120a", "e4m3 e2m1 - ue8m0",
         "mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.block_scale.scale_vec::1X.f32.e4m3.e2m1.f32.ue8m0"),
        ("mma.sync", "sm_120a", "e2m1 e2m1 f32 ue8m0",
         "mma.sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0"),
        ("mma.sync", "sm_121a", "e2m1 e2m1 f32 ue4m3",
         "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3"),
        ("tcgen05.mma", "sm_100a", "f16 f16", "tcgen05.mma.cta_group::1.kind::f16.m128n256k16.f32.f16.f16"),
        ("tcgen05.mma", "sm_100a", "tf32 tf32", "tcgen05.mma.cta_group::1.kind::tf32.m128n256k8.f32.tf32.tf32"),
        ("tcgen05.mma", "sm_100a", "s8 s8", "tcgen05.mma.cta_group::1.kind::i8.m128n256k32.s32.s8.s8"),
        ("tcgen05.mma", "sm_103a", "e2m3 e5m2", "tcgen05.mma.cta_group::1.kind::f8f6f4.m128n256k32.f32.e2m3.e5m2"),
        ("tcgen05.mma.cta_group::2", "sm_100a", "f16 f16", "tcgen05.mma.cta_group::2.kind::f16.m256n256k16.f32.f16.f16"),
        ("tcgen05.mma.kind::f8f6f4", "sm_100a", "e4m3 e4m3 f16", "tcgen05.mma.cta_group::1.kind::f8f6f4.m128n256k32.f16.e4m3.e4m3"),
        ("tcgen05.mma", "sm_100a", "e4m3 e4m3 - ue8m0",
         "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n256k32.f32.e4m3.e4m3.ue8m0"),
        ("tcgen05.mma.kind::mxf8f6f4.block_scale", "sm_110a", "e2m1 e3m2",
         "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n256k32.f32.e2m1.e3m2.ue8m0"),
        ("tcgen05.mma", "sm_103a", "e2m1 e2m1 - ue8m0",
         "tcgen05.mma.cta_group::1.kind::mxf4.block_scale.block32.m128n256k64.f32.e2m1.e2m1.ue8m0"),
        ("tcgen05.mma", "sm_103a", "e2m1 e2m1 - ue4m3",
         "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n256k64.f32.e2m1.e2m1.ue4m3"),
        ("tcgen05.mma.kind::mxf4nvf4.block_scale.block16", "sm_100a", "e2m1 e2m1",
         "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n256k64.f32.e2m1.e2m1.ue4m3"),
        ("tcgen05.mma.kind::mxf4nvf4", "sm_100a", "e2m1 e2m1",
         "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n256k64.f32.e2m1.e2m1.ue4m3"),
        ("tcgen05.mma.block16", "sm_100a", "e2m1 e2m1 - ue8m0",
         "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n256k64.f32.e2m1.e2m1.ue8m0"),
    ],
)  # fmt: skip
def test_short_spellings(text, arch, types, expected):
    a, b, c, scale = [*(None if name == "-" else name for name in types.split()), None, None][:4]
    if expected is None:
        with pytest.raises(UnknownInstruction, match="unknown qualifier 'm64n128'"):
            resolve(text, arch=arch, a_type=a, b_type=b)
        return
    got = resolve(text, arch=arch, a_type=a, b_type=b, c_type=c, scale_type=scale)
    assert str(got) == expected
    assert resolve(text, arch=arch, a_type=FORMATS[a], b_type=FORMATS[b], c_type=c, scale_type=scale) is got
    assert resolve(expected, arch=arch, a_type=a, b_type=b) == got
    assert resolve(got, arch=arch, a_type=a, b_type=b, c_type=c, scale_type=scale) is got


@pytest.mark.parametrize(
    ("text", "arch", "types", "error", "message"),
    [
        ("wgmma", "sm_100a", "e4m3 e4m3", UnsupportedInstruction,
         r"sm_100a has no wgmma; .*it has tcgen05\.mma, mma\.sync; targets with it: sm_90a$"),
        ("tcgen05.mma", "sm_90a", "e2m1 e2m1", UnsupportedInstruction, r"no tensor-core instruction there takes e2m1 x e2m1; .*sm_100a"),
        ("tcgen05.mma", "sm_103a", "s8 s8", UnsupportedInstruction, r"for s8 x s8 it has mma\.sync; targets with it: sm_100a, sm_110a$"),
        ("mma.sync.m16n8k16", "sm_75", "f16 f16", UnsupportedInstruction, r"it has mma\.sync m8n8k4, m16n8k8; targets with it: sm_80, "),
        ("mma.sync", "sm_100a", "e2m1 e4m3", UnsupportedInstruction,
         r"sm_100a has no mma\.sync; .*it has tcgen05\.mma; .*sm_120a, sm_121a$"),
        ("tcgen05.mma.scale_input_d::2", "sm_110a", "f16 f16", UnsupportedInstruction, r"targets with it: sm_100a, sm_103a$"),
        ("wgmma.sp", "sm_90a", "f16 f16", UnsupportedInstruction, r"known but not modelled"),
        ("wgmma", "sm_90a", "e2m1 e4m3", UnknownInstruction,
         r"no operands e2m1 x e4m3; allowed: f16, bf16, tf32, \{e4m3,e5m2\}, \{s8,u8\}$"),
        ("wgmma", "sm_90a", "f16 f16 s32", UnknownInstruction, r"no C s32; allowed: D f32 with C f32 or D f16 with C f16$"),
        ("wgmma", "sm_90a", "f16 f16 - ue8m0", UnknownInstruction, r"no block scales ue8m0; allowed: no block scales$"),
        ("mma.sync.kind::f8f6f4", "sm_120a", "e4m3 e4m3 - ue8m0", UnknownInstruction, r"kind::f8f6f4 has no block scales ue8m0"),
        ("tcgen05.mma.kind::mxf4", "sm_100a", "e2m1 e2m1 - ue4m3", UnknownInstruction, r"no block scales ue4m3; allowed: ue8m0 block32"),
        ("wgmma.f32.e4m3.e4m3", "sm_90a", "e5m2 e4m3", UnknownInstruction, r"a is e4m3 in the text and e5m2 among the operands$"),
        ("wgmma.f32.e4m3.e4m3", "sm_90a", "e4m3 e4m3 f16", UnknownInstruction, r"no D f32 and C f16"),
        ("wgma", "sm_90a", "f16 f16", UnknownInstruction, r"did you mean wgmma"),
        ("mma.sync.m16n8k12", "sm_80", "f16 f16", UnknownInstruction, r"mma\.sync has no shape m16n8k12; allowed: "),
    ],
)  # fmt: skip
def test_resolve_refuses(text, arch, types, error, message):
    a, b, c, scale = [*(None if name == "-" else name for name in types.split()), None, None][:4]
    with pytest.raises(error, match=message) as caught:
        resolve(text, arch=arch, a_type=a, b_type=b, c_type=c, scale_type=scale)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_resolve_checks_an_instruction_it_is_given():
    instruction = parse("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e5m2")
    with pytest.raises(UnknownInstruction, match=r"b_type is e5m2, the operand is e4m3$"):
        resolve(instruction, arch="sm_90a", a_type="e4m3", b_type="e4m3")
    with pytest.raises(UnknownInstruction, match=r"scale_type is none, the operand is ue8m0$"):
        resolve(instruction, arch="sm_90a", a_type="e4m3", b_type="e5m2", scale_type="ue8m0")
    with pytest.raises(UnsupportedInstruction, match=r"sm_120a has no wgmma.*it has mma\.sync; targets with it: sm_90a$"):
        resolve(instruction, arch="sm_120a", a_type="e4m3", b_type="e5m2")


def test_resolve_names_an_unknown_architecture_or_type():
    with pytest.raises(MmabitsError, match="write 'sm_90a'"):
        resolve("wgmma", arch="sm_90", a_type="f16", b_type="f16")
    with pytest.raises(MmabitsError, match="unknown format 'fp8'"):
        resolve("wgmma", arch="sm_90a", a_type="fp8", b_type="f16")


@pytest.mark.parametrize(
    ("text", "arch", "k", "types", "expected"),
    [
        ("tcgen05.mma.cta_group::1.kind::f8f6f4", "sm_100a", 32, "f32 e4m3 e5m2 f32",
         "tcgen05.mma.cta_group::1.kind::f8f6f4.m128n256k32.f32.e4m3.e5m2"),
        ("tcgen05.mma.cta_group::2.kind::f16", "sm_100a", 16, "f16 f16 f16 f16",
         "tcgen05.mma.cta_group::2.kind::f16.m256n256k16.f16.f16.f16"),
        ("tcgen05.mma.cta_group::1.kind::f8f6f4.negA", "b200", 5, "f32 e2m1 e3m2 f32",
         "tcgen05.mma.cta_group::1.kind::f8f6f4.m128n256k32.f32.e2m1.e3m2.negA"),
        ("tcgen05.mma.cta_group::1.kind::i8.satfinite", "sm_100a", 32, "s32 u8 s8 s32",
         "tcgen05.mma.cta_group::1.kind::i8.m128n256k32.s32.u8.s8.satfinite"),
        ("tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.scale_vec::4X", "sm_103a", 64, "f32 e2m1 e2m1 f32 ue4m3 16",
         "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n256k64.f32.e2m1.e2m1.ue4m3"),
        ("tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.scale_vec::4X", "sm_100a", 48, "f32 e2m1 e2m1 f32 ue8m0 16",
         "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n256k64.f32.e2m1.e2m1.ue8m0"),
        ("tcgen05.mma.cta_group::1.kind::mxf4.block_scale", "sm_100a", 32, "f32 e2m1 e2m1 f32 ue8m0 32",
         "tcgen05.mma.cta_group::1.kind::mxf4.block_scale.block32.m128n256k64.f32.e2m1.e2m1.ue8m0"),
        ("tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.m128n64k32", "sm_100a", 32, "f32 e4m3 e4m3 f32 ue8m0 32",
         "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n64k32.f32.e4m3.e4m3.ue8m0"),
    ],
)  # fmt: skip
def test_a_spelling_is_completed_by_what_stands_beside_it(text, arch, k, types, expected):
    d, a, b, c, scale, block = [*types.split(), None, None][:6]
    got = complete(text, arch=arch, a_type=a, b_type=b, c_type=c, d_type=d, k=k, scale_type=scale, block=int(block) if block else None)
    assert str(got) == expected
    small = complete(
        text, arch=arch, a_type=a, b_type=b, c_type=c, d_type=d, k=k, m=128, n=64, scale_type=scale, block=int(block or 0) or None
    )
    assert (small.m, small.n, small.k, small.a_type) == (128, 64, got.k, got.a_type)


@pytest.mark.parametrize(
    ("text", "arch", "k", "types", "error", "message"),
    [
        ("tcgen05.mma.cta_group::1.kind::mxf4.block_scale", "sm_103a", 32, "f32 e2m1 e2m1 f32 ue8m0 32", UnknownInstruction,
         "with k = 32 does not tell the shape; sm_103a has K = 64 and 96$"),
        ("tcgen05.mma.cta_group::1.kind::f8f6f4", "sm_100a", 33, "f32 e4m3 e4m3 f32", UnknownInstruction,
         "with k = 33 does not tell the shape; sm_100a has K = 32$"),
        ("tcgen05.mma.cta_group::1.kind::f8f6f4", "sm_90a", 32, "f32 e4m3 e4m3 f32", UnsupportedInstruction, "sm_90a has no tcgen05"),
        ("tcgen05.mma.cta_group::1.kind::f8f6f4", "sm_100a", 32, "f32 f16 f16 f32", UnknownInstruction, "no operands f16 x f16"),
        ("tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.scale_vec::4X", "sm_100a", 64, "f32 e2m1 e2m1 f32 ue8m0 32",
         UnknownInstruction, "no block scales ue8m0 block32 scale_vec::4X"),
        ("tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16", "sm_100a", 64, "f32 e2m1 e2m1 f32 ue8m0 32", UnknownInstruction,
         "block16 in the text, and a block of 32 beside it"),
        ("tcgen05.mma.cta_group::1.kind::f8f6f4.f32.e4m3.e4m3", "sm_100a", 32, "f32 e5m2 e4m3 f32", UnknownInstruction,
         "a is e4m3 in the text and e5m2 among the operands"),
        ("tcgen05.mma.kind::f8f6f4", "sm_100a", 32, "f32 e4m3 e4m3 f32", UnknownInstruction, "lacks shape, operand types, cta_group"),
        ("wgmma", "sm_90a", 32, "f32 e4m3 e4m3 f32", UnknownInstruction, "is not a whole spelling: it lacks shape, operand types"),
        ("mma.sync.aligned.m16n8k32.row.col", "sm_90a", 32, "f32 e4m3 e4m3 f32", UnknownInstruction, "lacks operand types"),
    ],
)  # fmt: skip
def test_what_ptx_spells_itself_is_not_completed_nor_guessed(text, arch, k, types, error, message):
    d, a, b, c, scale, block = [*types.split(), None, None][:6]
    with pytest.raises(error, match=message):
        complete(text, arch=arch, a_type=a, b_type=b, c_type=c, d_type=d, k=k, scale_type=scale, block=int(block) if block else None)


@pytest.mark.parametrize("shape", ["m" + "9" * 5000 + "n8k16", "m16n8k99999", "m١٦n8k16", "m016n8k16"])
def test_numbers_that_no_shape_has_are_refused(shape):
    with pytest.raises(UnknownInstruction, match=r"m.*n.*k"):
        parse(f"mma.sync.aligned.{shape}.row.col.f32.f16.f16.f32")


def test_only_text_and_instructions_are_read():
    with pytest.raises(UnknownInstruction, match="given as text, not as int"):
        parse(3)
