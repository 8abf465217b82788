"""What instructions become on each architecture, with which evidence, and the table of what there is."""

from __future__ import annotations

import json
import struct
import tomllib
from pathlib import Path

import pytest

from mmabits.isa import (
    ARCHITECTURES,
    DATAPATHS,
    INSTRUCTION_SPECS,
    KNOWN_FORMS,
    LOWERINGS,
    Evidence,
    Family,
    MmabitsError,
    UnknownInstruction,
    UnsupportedInstruction,
    instructions,
    lower,
    parse,
    weakest,
)
from mmabits.isa.ptx import resolve

ROOT = Path(__file__).resolve().parents[3]
HARDWARE = ROOT.parent / "shared" / "hardware"
CITED = tomllib.loads((ROOT / "isa" / "sources.toml").read_text())
RECORDED, PUBLISHED, INFERRED = Evidence.RECORDED, Evidence.PUBLISHED, Evidence.INFERRED


def mma(rest: str) -> str:
    return f"mma.sync.aligned.{rest}"


F16 = mma("m16n8k16.row.col.f32.f16.f16.f32")
F16_K8 = mma("m16n8k8.row.col.f32.f16.f16.f32")
FP8 = mma("m16n8k32.row.col.f32.e4m3.e4m3.f32")
FP8_K16 = mma("m16n8k16.row.col.f32.e5m2.e5m2.f32")
FP8_MIXED = mma("m16n8k32.row.col.f32.e4m3.e5m2.f32")
FP8_F16 = mma("m16n8k32.row.col.f16.e4m3.e4m3.f16")
FP8_KIND = mma("m16n8k32.row.col.kind::f8f6f4.f32.e4m3.e4m3.f32")
VOLTA = mma("m8n8k4.row.col.f32.f16.f16.f32")
NVFP4 = mma("m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3")
NVFP4_TC = "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n256k64.f32.e2m1.e2m1.ue4m3"

ROWS = [
    # instruction, architecture, datapath, step, last machine instruction, evidence
    (VOLTA, "sm_70", "sm_70.hmma.f16.f32", 4, "HMMA.884.F32", RECORDED),
    (VOLTA, "sm_75", "sm_75.hmma884.f16.f32", 4, "HMMA.884.F32", PUBLISHED),
    (F16_K8, "sm_75", "sm_75.hmma.f16.f32", 8, "HMMA.1688.F32", PUBLISHED),
    (F16, "sm_80", "sm_80.hmma.f16.f32", 8, "HMMA.16816.F32", RECORDED),
    (F16_K8, "sm_80", "sm_80.hmma.f16.f32", 8, "HMMA.1688.F32", PUBLISHED),
    (F16, "sm_90a", "sm_90a.hmma.f16.f32", 16, "HMMA.16816.F32", RECORDED),
    (F16_K8, "sm_90a", "sm_90a.hmma.f16.f32", 8, "HMMA.1688.F32", PUBLISHED),
    (mma("m16n8k4.row.col.f32.tf32.tf32.f32"), "sm_90a", "sm_90a.hmma.tf32.f32", 4, "HMMA.1684.F32.TF32", PUBLISHED),
    (mma("m16n8k8.row.col.f32.tf32.tf32.f32"), "sm_86", "sm_86.hmma.tf32.f32", 4, "HMMA.1688.F32.TF32", RECORDED),
    (mma("m16n8k16.row.col.f32.bf16.bf16.f32"), "sm_103a", "sm_103a.hmma.bf16.f32", 16, "HMMA.16816.F32.BF16", INFERRED),
    (FP8, "sm_89", "sm_89.qmma.f8.f32", 16, "QMMA.16832.F32.E4M3.E4M3", RECORDED),
    (FP8_MIXED, "sm_89", "sm_89.qmma.f8.f32", 16, "QMMA.16832.F32.E4M3.E5M2", PUBLISHED),
    (FP8_K16, "sm_89", "sm_89.qmma.f8.f32", 16, "QMMA.16816.F32.E5M2.E5M2", PUBLISHED),
    (FP8, "sm_120a", "sm_120a.qmma.f8f6f4.f32", 32, "QMMA.16832.F32.E4M3.E4M3", PUBLISHED),
    (FP8_K16, "sm_120a", "sm_120a.qmma.f8f6f4.f32", 16, "QMMA.16816.F32.E5M2.E5M2", PUBLISHED),
    (FP8_KIND, "sm_120a", "sm_120a.qmma.f8f6f4.f32", 32, "QMMA.16832.F32.E4M3.E4M3", PUBLISHED),
    (FP8, "sm_90a", "sm_90a.hmma.f16.f32", 16, "FADD D, C, P", INFERRED),
    (FP8_F16, "sm_90a", "sm_90a.hmma.f16.f16", 16, "HADD2 D, C, P", RECORDED),
    (FP8, "sm_100a", "sm_100a.hmma.f16.f32", 16, "FADD D, C, P", RECORDED),
    (FP8_F16, "sm_100a", "sm_100a.hmma.f16.f16", 16, "HADD2 D, C, P", RECORDED),
    (FP8_MIXED, "sm_100a", "sm_100a.hmma.f16.f32", 16, "FADD D, C, P", INFERRED),
    (FP8_K16, "sm_100a", "sm_100a.hmma.f16.f32", 8, "FADD D, C, P", INFERRED),
    (FP8_KIND, "sm_100a", "sm_100a.hmma.f16.f32", 16, "FADD D, C, P", RECORDED),
    (FP8, "sm_110a", "sm_110a.hmma.f16.f32", 16, "FADD D, C, P", INFERRED),
    (NVFP4, "sm_120a", "sm_120a.omma.mxf4.f32", 64, "OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X", PUBLISHED),
    (NVFP4.replace("ue4m3", "ue8m0"), "sm_121a", "sm_121a.omma.mxf4.f32", 64, "OMMA.SF.16864.F32.E2M1.E2M1.E8.4X", INFERRED),
    (NVFP4_TC, "sm_100a", "sm_100a.tcgen05.mxf4.f32", 64, "UTCOMMA.4X", PUBLISHED),
    (NVFP4_TC, "sm_103a", "sm_103a.tcgen05.mxf4.f32", 64, "UTCOMMA.BLOCK16", INFERRED),
    (NVFP4_TC.replace("::1", "::2"), "sm_100a", "sm_100a.tcgen05.mxf4.f32", 64, "UTCOMMA.2CTA.4X", INFERRED),
    ("tcgen05.mma.cta_group::1.kind::f16.m64n8k16.f16.f16.f16", "sm_100a", "sm_100a.tcgen05.f16.f16", 16, "UTCHMMA", PUBLISHED),
    ("tcgen05.mma.cta_group::1.kind::f16.m64n8k16.f32.f16.f16.scale_input_d::4", "sm_100a", "sm_100a.tcgen05.f16.f32",
     16, "UTCHMMA", INFERRED),
    ("tcgen05.mma.cta_group::1.kind::i8.m64n8k32.s32.s8.s8", "sm_110a", "sm_110a.tcgen05.int.s32", 1, "UTCIMMA", PUBLISHED),
    ("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16", "sm_90a", "sm_90a.wgmma.bf16.f32", 16, "HGMMA.64x8x16.F32.BF16", PUBLISHED),
    ("wgmma.mma_async.sync.aligned.m64n8k32.f16.e5m2.e4m3", "sm_90a", "sm_90a.wgmma.f8.f16", 32, "QGMMA.64x8x32.F16.E5M2.E4M3", PUBLISHED),
    ("wgmma.mma_async.sync.aligned.m64n8k32.s32.u8.s8.satfinite", "sm_90a", "sm_90a.wgmma.int.s32",
     1, "IGMMA.64x8x32.U8.S8.SAT", PUBLISHED),
    (mma("m8n8k4.row.col.rm.f64.f64.f64.f64"), "sm_80", "sm_80.dmma.f64.f64", 1, "DMMA.884", PUBLISHED),
    (mma("m16n8k16.row.col.rn.f64.f64.f64.f64"), "sm_90a", "sm_90a.dmma.f64.f64", 1, "DMMA.16x8x16", PUBLISHED),
    (mma("m16n8k16.row.col.rn.f64.f64.f64.f64"), "sm_100a", "sm_100a.dmma.f64.f64", 1, "DMMA.8x8x4 x8", PUBLISHED),
    (mma("m16n8k4.row.col.rn.f64.f64.f64.f64"), "sm_120a", "sm_120a.dmma.f64.f64", 1, "DMMA.8x8x4 x2", PUBLISHED),
    (mma("m16n8k32.row.col.s32.s8.u8.s32"), "sm_80", "sm_80.imma.int.s32", 1, "IMMA.16832.S8.U8", PUBLISHED),
    (mma("m8n8k32.row.col.s32.s4.u4.s32"), "sm_90a", "sm_90a.imma.int.s32", 1, "IADD3 D, P, P, C", PUBLISHED),
]  # fmt: skip


@pytest.mark.parametrize(("text", "arch", "datapath", "step", "machine", "evidence"), ROWS)
def test_lowering(text, arch, datapath, step, machine, evidence):
    got = lower(parse(text), arch)
    assert (got.arch, str(got.instruction), got.datapath.name, got.step) == (arch, text, datapath, step)
    assert (got.machine[-1], got.evidence) == (machine, evidence)
    assert got.separate_add is (machine.split()[0] in ("FADD", "HADD2"))
    assert (got.k_order is not None) is got.separate_add


def test_8_bit_mma_sync_is_two_hmma_and_an_add_on_hopper():
    got = lower(parse(FP8_MIXED), "sm_90a")
    assert got.machine == (
        "F2FP.F16.E4M3.UNPACK_B x4", "F2FP.F16.E5M2.UNPACK_B x2", "HMMA.16816.F32 P, A, B, RZ",
        "F2FP.F16.E4M3.UNPACK_B .H1 x4", "F2FP.F16.E5M2.UNPACK_B .H1 x2", "HMMA.16816.F32 P, A, B, P", "FADD D, C, P",
    )  # fmt: skip
    assert got.k_order == (
        0,
        1,
        4,
        5,
        8,
        9,
        12,
        13,
        16,
        17,
        20,
        21,
        24,
        25,
        28,
        29,
        2,
        3,
        6,
        7,
        10,
        11,
        14,
        15,
        18,
        19,
        22,
        23,
        26,
        27,
        30,
        31,
    )
    short = lower(parse(FP8_K16), "sm_90a")
    assert short.k_order == (0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15)
    assert short.machine[2] == "HMMA.1688.F32 P, A, B, RZ" and short.machine[0] == "F2FP.F16.E5M2.UNPACK_B x2"


def test_m8n8k4_of_f16_is_software_from_sm_80_on():
    for arch in list(ARCHITECTURES)[2:]:
        with pytest.raises(UnsupportedInstruction, match=r"known but not modelled: a software routine from sm_80 on$"):
            lower(parse(VOLTA), arch)
    lines = [line for line in instructions(arch="sm_90a", family="mma.sync") if line.pattern == VOLTA]
    assert [(line.machine, line.modelled, line.datapath) for line in lines] == [(("CALL software routine",), False, None)]


@pytest.mark.parametrize(
    ("text", "arch", "message"),
    [
        (
            "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16",
            "sm_100a",
            r"for f16 x f16 it has tcgen05\.mma, mma\.sync; targets with it: sm_90a$",
        ),
        (F16, "sm_75", r"it has mma\.sync m8n8k4, m16n8k8; targets with it: sm_80"),
        (mma("m16n8k32.row.col.kind::f8f6f4.f32.e3m2.e2m1.f32"), "sm_100a", r"it has tcgen05\.mma; targets with it: sm_120a, sm_121a$"),
        (FP8_KIND, "sm_90a", r"it has wgmma\.mma_async, mma\.sync m16n8k16, m16n8k32; targets with it: sm_100a"),
        ("tcgen05.mma.cta_group::1.kind::i8.m64n8k32.s32.s8.s8", "sm_103a", r"targets with it: sm_100a, sm_110a$"),
        ("tcgen05.mma.cta_group::1.kind::tf32.m64n8k8.f32.tf32.tf32.scale_input_d::4", "sm_110a", r"targets with it: sm_100a, sm_103a$"),
        ("tcgen05.mma.cta_group::1.kind::mxf4.block_scale.block32.m128n16k96.f32.e2m1.e2m1.ue8m0", "sm_103a", "not modelled: K = 96"),
        (mma("m8n8k4.row.col.f32.f16.f16.f16"), "sm_70", "not modelled: D f32 with C f16"),
    ],
)
def test_what_an_architecture_lacks(text, arch, message):
    with pytest.raises(UnsupportedInstruction, match=message) as caught:
        lower(parse(text), arch)
    assert "\n" not in str(caught.value)


def test_a_modifier_adds_its_proof():
    plain = "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16"
    assert lower(parse(plain), "sm_90a").proofs == ()
    (negated,) = lower(parse(f"{plain}.negA"), "sm_90a").proofs
    assert (negated.level, negated.sources) == (PUBLISHED, ("ptx",))
    (pair,) = lower(parse("tcgen05.mma.cta_group::2.kind::f16.m256n64k16.f32.f16.f16"), "sm_100a").proofs
    assert pair.level is INFERRED and "cta_group::2" in pair.covers


def test_the_lowering_may_weaken_what_the_datapath_proves():
    got = lower(parse(FP8), "sm_90a")
    assert got.datapath.evidence is RECORDED and got.evidence is INFERRED
    assert got.evidence is weakest((*got.proofs, *got.datapath.proofs))


def test_every_lowering_row_is_used_and_every_datapath_reached():
    assert {name for spec in INSTRUCTION_SPECS for name in spec.lowerings.values()} == set(LOWERINGS)
    assert {line.datapath for line in instructions() if line.modelled} == set(DATAPATHS)
    assert all(bool(row.datapath) is not bool(row.unmodelled) for row in LOWERINGS.values())


def test_every_claim_cites_what_sources_toml_has():
    for row in LOWERINGS.values():
        for claim in row.claims:
            assert set(claim.archs) <= set(ARCHITECTURES)
            cited = CITED["recordings" if claim.proof.level is RECORDED else "sources"]
            assert set(claim.proof.sources) <= set(cited)
            if claim.proof.level is RECORDED:
                read = [CITED["recordings"][name] for name in claim.proof.sources]
                assert {recording["arch"] for recording in read} == set(claim.archs)
                types = {parse(recording["instruction"]).d_type.name for recording in read}
                assert types == set(claim.accumulators)
    for spec in INSTRUCTION_SPECS:
        assert spec.source in CITED["sources"]


@pytest.mark.parametrize("name", sorted(CITED["recordings"]))
def test_every_recording_proves_the_row_that_its_instruction_reaches(name):
    read = CITED["recordings"][name]
    got = lower(parse(read["instruction"]), read["arch"])
    cited = {source for proof in (*got.proofs, *got.datapath.proofs) if proof.level is RECORDED for source in proof.sources}
    assert name in cited


@pytest.mark.skipif(not HARDWARE.is_dir(), reason="the recordings are not at hand")
def test_sources_toml_lists_the_recordings_at_hand():
    files = sorted(HARDWARE.glob("*.safetensors"))
    assert [path.stem for path in files] == sorted(CITED["recordings"])
    for path in files:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            metadata = json.loads(file.read(length))["__metadata__"]
        assert CITED["recordings"][path.stem] == {key: metadata[key] for key in ("gpu", "arch", "instruction")}


# The table ---------------------------------------------------------------------------------------------------------------


def test_the_table_has_every_row_on_every_architecture():
    rows = {(spec.name, arch) for spec in INSTRUCTION_SPECS for arch in spec.lowerings}
    lines = instructions()
    assert {(line.example.on(line.arch).name, line.arch) for line in lines if line.example} == rows
    known = [line for line in lines if line.example is None]
    assert len(known) == sum(len(form.archs) for form in KNOWN_FORMS)
    assert not any(line.modelled for line in known)


def test_the_lines_say_what_lower_says():
    for line in instructions():
        if line.modelled:
            got = lower(line.example, line.arch)
            assert (got.datapath.name, got.machine, got.evidence, got.note) == (line.datapath, line.machine, line.evidence, line.note)
        else:
            assert line.evidence is None and line.datapath is None and "known but not modelled" in line.note
            if line.example:
                with pytest.raises(UnsupportedInstruction, match="known but not modelled"):
                    lower(line.example, line.arch)


def test_lines_are_unique_and_patterns_show_their_sets():
    lines = instructions()
    assert len({(line.pattern, line.arch) for line in lines}) == len(lines)
    hopper = {line.pattern: line for line in instructions(arch="sm_90a")}
    assert hopper["wgmma.mma_async.sync.aligned.m64n{8..256}k32.f32.{e4m3,e5m2}.{e4m3,e5m2}"].evidence is PUBLISHED
    assert hopper[mma("m16n8k32.row.col.f16.{e4m3.e4m3,e5m2.e5m2}.f16")].evidence is RECORDED
    assert hopper[mma("m16n8k32.row.col.f16.{e4m3.e5m2,e5m2.e4m3}.f16")].evidence is INFERRED
    assert mma("m8n8k4.row.col.{rn,rz,rm,rp}.f64.f64.f64.f64") in hopper


def test_the_table_can_be_narrowed():
    everything = instructions()
    assert sum(len(instructions(arch=arch)) for arch in ARCHITECTURES) == len(everything)
    assert sum(len(instructions(family=family)) for family in Family) == len(everything)
    assert instructions(family="wgmma") == instructions(family=Family.WGMMA) == instructions(family="wgmma.mma_async")
    assert {line.arch for line in instructions(family="wgmma")} == {"sm_90a"}
    recorded, published = instructions(evidence="recorded"), instructions(evidence="published")
    assert 0 < len(recorded) < len(published) < len(instructions(evidence=INFERRED)) < len(everything)
    assert {line.evidence for line in recorded} == {RECORDED}
    assert {line.evidence for line in published} == {RECORDED, PUBLISHED}
    assert {line.arch for line in recorded} == {"sm_70", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a"}


def test_the_table_refuses_unknown_words():
    with pytest.raises(UnknownInstruction, match=r"unknown instruction family 'wmma'; known: mma.sync, wgmma.mma_async, tcgen05.mma$"):
        instructions(family="wmma")
    with pytest.raises(MmabitsError, match="unknown evidence level 'proven'"):
        instructions(evidence="proven")
    with pytest.raises(MmabitsError, match="unknown architecture"):
        instructions(arch="hopper")
    with pytest.raises(MmabitsError, match="unknown architecture"):
        lower(parse(F16), "hopper")


def test_whatever_resolve_chooses_is_modelled_where_anything_is():
    for spec in INSTRUCTION_SPECS:
        if spec.scales or spec.c_type:
            continue
        for arch in spec.lowerings:
            a, b = spec.pairs[0]
            got = lower(resolve(spec.family.value, arch=arch, a_type=a, b_type=b), arch)
            assert got.instruction.a_type.name == a
