"""Every number of every datapath row and lowering equals its twin in `slow_reference.py`: a second transcription of the same page.

Comparing results cannot do this alone: some numbers never show in any result (tests/mutation/README.md lists them), and a wrong one
would be published with the rows all the same. Rows without a twin (f64, integers) are pinned here.
"""

from __future__ import annotations

import dataclasses

import pytest
import slow_reference

from mmabits.isa import (
    DATAPATHS,
    LOWERINGS,
    Arithmetic,
    DatapathSpec,
    Instruction,
    KOrder,
    ResultRounding,
    Support,
    instructions,
    lower,
    parse,
)

FAMILIES = {"hmma": "mma", "hmma884": "mma", "qmma": "mma", "omma": "mma", "wgmma": "wgmma", "tcgen05": "tcgen05"}
FAMILY_WORDS = {"mma.sync": "mma", "wgmma.mma_async": "wgmma", "tcgen05.mma": "tcgen05"}
OUTPUTS = {
    "f32 rz 23": (23, ResultRounding.TOWARD_ZERO),
    "f32 rz 13": (13, ResultRounding.TOWARD_ZERO),
    "f16 rne": (10, ResultRounding.NEAREST_EVEN),
}
"""The reference's outputs: fraction bits and rounding."""
HMMA_PAIR_ARCHS = ("sm_90a", "sm_100a", "sm_103a", "sm_110a")
"""Where fp8 `mma.sync` runs on the f16 row (NUMERICS 2)."""
DMMA_ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_110a", "sm_120a", "sm_121a")
IMMA = tuple(f"{arch}.imma" for arch in ("sm_75", *DMMA_ARCHS))

FLOATING = [row for row in DATAPATHS.values() if row.arithmetic in (Arithmetic.FUSED, Arithmetic.GROUPED)]
MODELLED = [line for line in instructions() if line.modelled]


def classes(row: DatapathSpec) -> list[str]:
    """The reference's operand classes that the row serves."""
    arch, unit, operands, _ = row.name.split(".")
    served = {"f8": ["fp8"], "f8f6f4": ["fp8", "f8f6f4"]}.get(operands, [operands])
    if unit == "hmma884":
        return ["f16_k4"]
    return [*served, "fp8"] if (unit, operands) == ("hmma", "f16") and arch in HMMA_PAIR_ARCHS else served


def keys(row: DatapathSpec) -> list[tuple[str, str, str, str]]:
    """The reference's rows of a datapath row."""
    arch, unit, _, accumulator = row.name.split(".")
    return [(arch, FAMILIES[unit], kind, accumulator) for kind in classes(row)]


def numbers(row: DatapathSpec) -> dict[str, object]:
    """Every field of a row that enters the arithmetic."""
    names = ("arithmetic", "step", "fraction_bits", "zero_exponent", "group", "result_fraction_bits", "result_rounding", "result_nan")
    return {name: getattr(row, name) for name in names} | {"result": row.result.name}


@pytest.mark.parametrize("row", FLOATING, ids=lambda row: row.name)
def test_a_row_has_the_numbers_of_the_reference(row: DatapathSpec) -> None:
    for key in keys(row):
        unit = slow_reference.UNITS[key]
        grouped = unit.form == "grouped"
        fraction_bits, rounding = OUTPUTS[unit.out]
        assert numbers(row) == {
            "arithmetic": Arithmetic.GROUPED if grouped else Arithmetic.FUSED,
            "step": unit.L,
            "fraction_bits": unit.F,
            "zero_exponent": unit.e_zero,
            "group": slow_reference.GROUP if grouped else 1,
            "result": unit.accumulator,
            "result_fraction_bits": fraction_bits,
            "result_rounding": rounding,
            "result_nan": slow_reference.NAN[unit.accumulator],
        }, key


def test_every_row_of_the_reference_has_its_row() -> None:
    assert {key for row in FLOATING for key in keys(row)} == set(slow_reference.UNITS)


def test_no_field_of_a_row_is_left_out() -> None:
    row = FLOATING[0]
    assert {field.name for field in dataclasses.fields(row)} - set(numbers(row)) == {
        "arch",
        "unit",
        "operands",
        "proofs",
        "special_proofs",
        "note",
    }


def test_rows_without_a_twin() -> None:
    """f64 and integers; a step of one element says that nothing is aligned, and 0 that the field means nothing."""
    unused = {"step": 1, "fraction_bits": 0, "zero_exponent": 0, "group": 1}
    f64 = {"arithmetic": Arithmetic.FMA_CHAIN, "result": "f64", "result_fraction_bits": 52}
    f64 |= {"result_rounding": ResultRounding.FROM_INSTRUCTION, "result_nan": 0x7FF8000000000000}
    integer = {"arithmetic": Arithmetic.INTEGER, "result": "s32", "result_fraction_bits": 31}
    integer |= {"result_rounding": ResultRounding.EXACT, "result_nan": 0}
    want = {f"{arch}.dmma.f64.f64": f64 | unused for arch in DMMA_ARCHS}
    want |= {f"{unit}.int.s32": integer | unused for unit in (*IMMA, "sm_90a.wgmma", "sm_100a.tcgen05", "sm_110a.tcgen05")}
    assert {name: numbers(row) for name, row in DATAPATHS.items() if row not in FLOATING} == want


def every_pair(line: Support) -> list[Instruction]:
    """The line's example with every pair of operand types of its row."""
    assert line.example is not None
    spec = line.example.on(line.arch)
    assert spec is not None
    types = f".{line.example.a_type.name}.{line.example.b_type.name}"
    return [parse(str(line.example).replace(types, f".{a}.{b}")) for a, b in spec.pairs]


@pytest.mark.parametrize("line", MODELLED, ids=lambda line: f"{line.arch}-{line.pattern}")
def test_a_lowering_has_the_numbers_of_the_reference(line: Support) -> None:
    """Which unit, how many elements a step, in what order, what is converted first and what is added afterwards."""
    for row in every_pair(line):
        unit = slow_reference.unit_for(
            line.arch, FAMILY_WORDS[row.family.value], row.a_type.name, row.b_type.name, row.d_type.name,
            k_instruction=row.k, scaled=row.scale_type is not None,
        )  # fmt: skip
        lowering = lower(row, line.arch)
        got = (lowering.step, lowering.k_order, lowering.separate_add, lowering.unpacked_to and lowering.unpacked_to.name)
        if unit is None:
            assert lowering.datapath not in FLOATING and got == (1, None, False, None)
        elif unit.form == "hmma pair":
            low_pairs_first = tuple(k for residues in ((0, 1), (2, 3)) for k in range(row.k) if k % 4 in residues)
            assert got == (row.k // 2, low_pairs_first, True, "f16") and row.k // 2 <= unit.L
        else:
            assert got == (min(unit.L, row.k), None, False, None)
            assert row.k % lowering.step == 0
        if unit is not None:
            here = (line.arch, FAMILY_WORDS[row.family.value])
            assert {key for key in keys(lowering.datapath) if key[:2] == here and slow_reference.UNITS[key] is unit}


def test_numbers_of_the_lowering_rows() -> None:
    """One row alone splits, reorders, converts and adds."""
    got = {
        name: (row.parts, row.k_order, row.separate_add, row.unpacked_to)
        for name, row in LOWERINGS.items()
        if (row.parts, row.k_order, row.separate_add, row.unpacked_to) != (1, KOrder.ASCENDING, False, "")
    }
    assert got == {"f2fp.hmma": (2, KOrder.LOW_PAIRS_FIRST, True, "f16")}
