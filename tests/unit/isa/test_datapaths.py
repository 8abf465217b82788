"""The datapath rows against the published constants, and their evidence."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from mmabits.isa import ARCHITECTURES, DATAPATHS, FORMATS, Arithmetic, Evidence, ResultRounding, parse
from mmabits.isa.evidence import Proof, weakest

ROOT = Path(__file__).resolve().parents[3]
CITED = tomllib.loads((ROOT / "isa" / "sources.toml").read_text())
RECORDED_ON = {
    "v100": "sm_70",
    "a100": "sm_80",
    "a2": "sm_86",
    "ada": "sm_89",
    "l40s": "sm_89",
    "h100": "sm_90a",
    "h200": "sm_90a",
    "b200": "sm_100a",
}

# unit: F, bytes of one operand in a step, e_zero with an f32 and with an f16 accumulator, fraction bits of an f32 result
PUBLISHED = {
    "sm_70.hmma": (23, 8, -131, -19, 23),
    "sm_75.hmma884": (23, 8, -131, -19, 23),
    "sm_75.hmma": (24, 16, -132, -20, 23),
    "sm_80.hmma": (24, 16, -132, -20, 23),
    "sm_86.hmma": (24, 16, -132, -20, 23),
    "sm_89.hmma": (24, 16, -132, -20, 23),
    "sm_89.qmma": (13, 16, -132, -20, 13),
    "sm_90a.hmma": (25, 32, -133, -21, 23),
    "sm_90a.wgmma.f8": (13, 32, -133, -21, 13),
    "sm_90a.wgmma": (25, 32, -133, -21, 23),
    **{f"{arch}.{unit}": (25, 32, -133, -21, 23) for arch in ("sm_100a", "sm_103a", "sm_110a") for unit in ("hmma", "tcgen05")},
    **{f"{arch}.{unit}": (25, 32, -133, -21, 23) for arch in ("sm_120a", "sm_121a") for unit in ("hmma", "qmma")},
}
BYTES = {"f16": 2, "bf16": 2, "tf32": 4, "f8": 1, "f8f6f4": 1, "mxf8f6f4": 1}


@pytest.mark.parametrize("row", DATAPATHS.values(), ids=list(DATAPATHS))
def test_the_name_says_what_the_row_is(row):
    arch, unit, operands, accumulator = row.name.split(".")
    assert DATAPATHS[row.name] is row and arch in ARCHITECTURES
    assert (row.arch, row.unit, row.operands, row.result) == (arch, unit, operands, FORMATS[accumulator])
    arithmetic = {"int": Arithmetic.INTEGER, "f64": Arithmetic.FMA_CHAIN, "mxf4": Arithmetic.GROUPED}
    assert row.arithmetic is arithmetic.get(operands, Arithmetic.FUSED)


@pytest.mark.parametrize("row", [row for row in DATAPATHS.values() if row.arithmetic is Arithmetic.FUSED], ids=lambda row: row.name)
def test_fused_constants(row):
    arch, unit, operands, accumulator = row.name.split(".")
    constants = PUBLISHED.get(f"{arch}.{unit}.{operands}") or PUBLISHED[f"{arch}.{unit}"]
    fraction_bits, step_bytes, zero_f32, zero_f16, result_bits = constants
    assert (row.fraction_bits, row.step, row.group) == (fraction_bits, step_bytes // BYTES[operands], 1)
    f32 = accumulator == "f32"
    assert row.zero_exponent == (zero_f32 if f32 else zero_f16)
    assert row.result_fraction_bits == (result_bits if f32 else 10)
    assert row.result_rounding is (ResultRounding.TOWARD_ZERO if f32 else ResultRounding.NEAREST_EVEN)
    assert row.result_nan == (0x7FFFFFFF if f32 else 0x7FFF)


@pytest.mark.parametrize("row", [row for row in DATAPATHS.values() if row.arithmetic is Arithmetic.GROUPED], ids=lambda row: row.name)
def test_grouped_constants(row):
    assert (row.fraction_bits, row.step, row.group, row.zero_exponent, row.terms) == (35, 64, 16, -139, 5)
    assert (row.result_fraction_bits, row.result_rounding, row.result_nan) == (23, ResultRounding.TOWARD_ZERO, 0x7FFFFFFF)
    assert row.evidence <= Evidence.PUBLISHED and ("disputed" in row.note)


def test_exact_rows():
    for row in DATAPATHS.values():
        if row.arithmetic is Arithmetic.INTEGER:
            assert (row.result_rounding, row.result.name, row.step) == (ResultRounding.EXACT, "s32", 1)
        if row.arithmetic is Arithmetic.FMA_CHAIN:
            assert (row.result_rounding, row.result_fraction_bits, row.step) == (ResultRounding.FROM_INSTRUCTION, 52, 1)


@pytest.mark.parametrize("row", DATAPATHS.values(), ids=list(DATAPATHS))
def test_every_proof_cites_what_sources_toml_has(row):
    arch, unit, _operands, accumulator = row.name.split(".")
    for proof in (*row.proofs, *row.special_proofs):
        assert proof.sources and proof.covers
        if proof.level is not Evidence.RECORDED:
            assert set(proof.sources) <= set(CITED["sources"])
            continue
        for recording in proof.sources:
            read = CITED["recordings"][recording]
            instruction = parse(read["instruction"])
            assert read["arch"] == arch == RECORDED_ON[recording.split("-")[0]]
            assert instruction.d_type.name == accumulator
            assert instruction.family.value.startswith("wgmma") == (unit == "wgmma")


def test_formats_cite_known_sources():
    assert {row.source for row in FORMATS.values()} <= set(CITED["sources"])


def test_every_source_says_where_it_is():
    for key, source in CITED["sources"].items():
        assert source["title"] and source["where"], key
    assert len(CITED["recordings"]) == 48


def test_unmeasured_architectures_carry_their_neighbour_as_inferred():
    for arch, neighbour in (("sm_103a", "sm_100a"), ("sm_110a", "sm_100a"), ("sm_121a", "sm_120a")):
        rows = [
            row
            for row in DATAPATHS.values()
            if row.name.startswith(f"{arch}.") and row.arithmetic in (Arithmetic.FUSED, Arithmetic.GROUPED)
        ]
        assert len(rows) >= 8
        for row in rows:
            other = DATAPATHS[neighbour + row.name.removeprefix(arch)]
            skipped = ("arch", "proofs", "special_proofs")
            fields = [field.name for field in dataclasses.fields(row) if field.name not in skipped]
            assert [getattr(row, name) for name in fields] == [getattr(other, name) for name in fields]
            assert row.evidence is Evidence.INFERRED and weakest(row.special_proofs) is Evidence.INFERRED


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("sm_70.hmma.f16.f32", Evidence.RECORDED),
        ("sm_75.hmma.f16.f32", Evidence.PUBLISHED),
        ("sm_75.hmma884.f16.f16", Evidence.PUBLISHED),
        ("sm_89.qmma.f8.f16", Evidence.RECORDED),
        ("sm_90a.wgmma.f8.f32", Evidence.PUBLISHED),
        ("sm_100a.tcgen05.f8f6f4.f32", Evidence.PUBLISHED),
        ("sm_103a.hmma.f16.f32", Evidence.INFERRED),
    ],
)
def test_evidence_is_the_weakest_proof(name, level):
    assert DATAPATHS[name].evidence is level


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 0}, "does not divide"),
        ({"step": 8, "group": 3}, "a step of 8 elements does not divide into groups of 3"),
        ({"result_fraction_bits": 24}, "24 result fraction bits in f32"),
        ({"proofs": ()}, "no proof"),
    ],
)
def test_a_row_that_does_not_hang_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DATAPATHS["sm_80.hmma.f16.f32"], **changes)


def test_a_proof_reads_as_one_line():
    proof = Proof(level=Evidence.RECORDED, covers="c = 0", sources=("h100-wgmma-e4m3-f32",))
    assert str(proof) == "recorded: c = 0 [h100-wgmma-e4m3-f32]"
