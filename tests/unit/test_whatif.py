"""What-if architectures: any numbers a unit could have, at full speed, everywhere an architecture's name goes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import operands
import pytest
import slow_reference

import mmabits
from mmabits.isa import Evidence, OperandError, UnknownArchitecture, UnsupportedInstruction, architecture, lower, parse, resolve

_FUSED = [
    # (F, L, e_zero, result fraction bits, rounding)
    (13, 32, -133, 13, "rz"), (14, 32, -133, 14, "rz"), (20, 16, -133, 23, "rz"), (9, 8, -132, 12, "rz"), (3, 4, -131, 5, "rz"),
    (26, 32, -134, 23, "rz"), (40, 32, -140, 23, "rz"), (25, 32, -133, 23, "rn"), (13, 16, -133, 13, "rn"), (31, 1, -130, 20, "rn"),
]  # fmt: skip


def _reference(a, b, c, unit):
    return [
        slow_reference.fused_dot(left.tolist(), right.tolist(), int(start), a_format="e4m3", b_format="e5m2", unit=unit)
        for left, right, start in zip(a, b, c, strict=True)
    ]


@pytest.mark.parametrize(("fraction_bits", "step", "zero", "kept", "rounding"), _FUSED)
def test_a_fused_row_with_numbers_of_its_own_equals_the_exact_model(fraction_bits, step, zero, kept, rounding):
    name = f"fused-{fraction_bits}-{step}-{kept}-{rounding}"
    change = {
        "fraction_bits": fraction_bits, "step": step, "zero_exponent": zero, "result_fraction_bits": kept, "result_rounding": rounding,
    }  # fmt: skip
    mmabits.what_if(name, base="sm_90a", rows={"wgmma.f8.f32": change})
    instruction = resolve("wgmma", arch=name, a_type="e4m3", b_type="e5m2")
    unit = slow_reference.Unit(F=fraction_bits, L=step, e_zero=zero, out=f"f32 {'rne' if rounding == 'rn' else rounding} {kept}")
    different = 0
    for kind in ("plain", "wide", "cancelling", "raw"):
        drawn = operands.draw_pair(kind, "e4m3", "e5m2", 60, 64, operands.generator("whatif", name, kind))
        got = mmabits.emulator.api.dot_rows(instruction, name, drawn.a, drawn.b, drawn.c)
        expected = _reference(drawn.a, drawn.b, drawn.c, unit)
        assert [hex(code) for code in got.tolist()] == [hex(code) for code in expected]
        different += int((got != mmabits.emulator.api.dot_rows(instruction, "sm_90a", drawn.a, drawn.b, drawn.c)).sum())
    assert (different > 0) == ((fraction_bits, step, zero, kept, rounding) != (13, 32, -133, 13, "rz"))


def test_a_grouped_row_with_another_width_equals_the_exact_model():
    mmabits.what_if("groups-20", base="sm_100a", rows={"tcgen05.mxf4.f32": {"fraction_bits": 20, "zero_exponent": -136}})
    instruction = resolve("tcgen05.mma.kind::mxf4", arch="groups-20", a_type="e2m1", b_type="e2m1", scale_type="ue8m0")
    unit = slow_reference.Unit(F=20, L=64, e_zero=-136, out="f32 rz 23", form="grouped")
    rng = operands.generator("whatif groups")
    a, b = rng.integers(0, 16, (200, 64)).astype(np.uint8), rng.integers(0, 16, (200, 64)).astype(np.uint8)
    c = (rng.standard_normal(200) * 100).astype(np.float32).view(np.uint32)
    scales = [rng.integers(110, 140, (200, 2)).astype(np.uint8) for _ in range(2)]
    got = mmabits.emulator.api.dot_rows(instruction, "groups-20", a, b, c, scale_a=scales[0], scale_b=scales[1])
    expected = [
        slow_reference.grouped_dot(*(part[i].tolist() for part in (a, b)), int(c[i]), *(part[i].tolist() for part in scales),
                                   scale_format="ue8m0", block=32, unit=unit)
        for i in range(200)
    ]  # fmt: skip
    assert got.tolist() == expected
    assert (got != mmabits.emulator.api.dot_rows(instruction, "sm_100a", a, b, c, scale_a=scales[0], scale_b=scales[1])).any()


def test_promotion_belongs_to_the_architecture_and_the_caller_overrides_it():
    mmabits.what_if("hopper-128", base="sm_90a", rows={}, promote_every=128)
    rng = operands.generator("whatif promotion")
    a, b = (rng.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn) for shape in ((8, 1024), (1024, 8)))
    own = mmabits.gemm(a, b, instruction="wgmma", arch="hopper-128")
    np.testing.assert_array_equal(own, mmabits.gemm(a, b, instruction="wgmma", arch="sm_90a", promote_every=128))
    assert (own != mmabits.gemm(a, b, instruction="wgmma", arch="sm_90a")).any()
    np.testing.assert_array_equal(
        mmabits.gemm(a, b, instruction="wgmma", arch="hopper-128", promote_every=256),
        mmabits.gemm(a, b, instruction="wgmma", arch="sm_90a", promote_every=256),
    )


def test_rows_that_are_not_changed_stay_and_no_row_claims_evidence_it_has_not():
    mmabits.what_if("only-fp8", base="sm_90a", rows={"wgmma.f8.*": {"fraction_bits": 20}})
    same = resolve("mma.sync", arch="only-fp8", a_type="f16", b_type="f16")
    assert lower(same, "only-fp8").datapath is lower(same, "sm_90a").datapath
    changed = lower(resolve("wgmma", arch="only-fp8", a_type="e4m3", b_type="e4m3"), "only-fp8")
    assert changed.evidence is Evidence.INFERRED
    assert changed.datapath.name == "only-fp8.wgmma.f8.f32"
    assert architecture("only-fp8").target == "sm_90a"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": "sm_90a", "rows": {"wgmma.f9.f32": {}}}, "sm_90a has no datapath 'wgmma.f9.f32'; did you mean"),
        ({"base": "sm_90a", "rows": {"wgmma.f8.f32": {"fraction_bit": 3}}}, "cannot change 'fraction_bit'; did you mean fraction_bits"),
        ({"base": "sm_90a", "rows": {"wgmma.f8.f32": {"fraction_bits": 2.5}}}, "fraction_bits must be an integer, got 2.5"),
        ({"base": "sm_90a", "rows": {"wgmma.f8.f32": {"result_rounding": "up"}}}, "result_rounding must be one of rz, rn, got 'up'"),
        ({"base": "sm_90a", "rows": {"wgmma.f8.f32": {"step": 0}}}, "a step of 0 elements"),
        ({"base": "sm_90a", "rows": {"wgmma.int.s32": {"step": 2}}}, "it has no numbers to change"),
        ({"base": "sm_90a", "rows": {}, "promote_every": 0}, "promote_every must be a positive number"),
        ({"base": "only-fp8-too", "rows": {}}, "departs from a real architecture"),
    ],
)
def test_wrong_rows_are_refused(arguments, message):
    mmabits.what_if("only-fp8-too", base="sm_90a", rows={})
    with pytest.raises(OperandError) as caught:
        mmabits.what_if("wrong", **arguments)
    assert message in str(caught.value)
    with pytest.raises(UnknownArchitecture):
        architecture("wrong")


def test_a_name_means_one_thing():
    first = mmabits.what_if("one-thing", base="sm_90a", rows={"wgmma.f8.f32": {"fraction_bits": 20}})
    assert mmabits.what_if("one-thing", base="sm_90a", rows={"wgmma.f8.f32": {"fraction_bits": 20}}) is first
    with pytest.raises(OperandError, match="with other numbers was made before"):
        mmabits.what_if("one-thing", base="sm_90a", rows={"wgmma.f8.f32": {"fraction_bits": 21}})
    with pytest.raises(OperandError, match="needs a name of its own"):
        mmabits.what_if("sm_90a", base="sm_90a", rows={})


def test_a_width_no_carrier_holds_is_refused_before_any_work():
    mmabits.what_if("too-wide", base="sm_90a", rows={"wgmma.f8.f32": {"fraction_bits": 60}})
    a = np.ones((4, 32), ml_dtypes.float8_e4m3fn)
    with pytest.raises(mmabits.MmabitsError, match="too-wide"):
        mmabits.gemm(a, a.T.copy(), instruction="wgmma", arch="too-wide")
    mmabits.what_if("odd-steps", base="sm_90a", rows={"wgmma.f8.f32": {"step": 24}})
    with pytest.raises(mmabits.MmabitsError, match="no whole number of the 24 elements"):
        mmabits.gemm(a, a.T.copy(), instruction="wgmma", arch="odd-steps")


@pytest.mark.parametrize(
    ("base", "row", "change", "message"),
    [
        ("sm_90a", "wgmma.f8.f32", {"fraction_bits": -3}, "fraction_bits of sm_90a.wgmma.f8.f32 must lie between 0 and 1000, got -3"),
        ("sm_90a", "wgmma.f8.f32", {"zero_exponent": 10**12}, "must lie between -150 and 100"),
        ("sm_100a", "tcgen05.mxf4.f32", {"zero_exponent": 0}, "must lie between -150 and -126, got 0"),
        ("sm_90a", "wgmma.f8.f32", {"group": 4}, "it has no group to change"),
        ("sm_90a", "wgmma.f8.f32", 5, "rows must map names of datapaths to mappings"),
    ],
)
def test_numbers_that_no_unit_can_have_are_refused(base, row, change, message):
    with pytest.raises(OperandError) as caught:
        mmabits.what_if("no-unit", base=base, rows={row: change})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("fraction_bits", "zero", "step", "kept"), [(18, -133, 1, 23), (13, -138, 32, 13), (15, -136, 4, 23), (13, -150, 32, 13)]
)
def test_a_step_of_zeros_whose_unit_no_float32_holds(fraction_bits, zero, step, kept):
    """The unit of a step of zeros, 2^(e_zero - F), may lie below every float32: then float64 carries."""
    name = f"zeros-{fraction_bits}-{zero}-{step}"
    change = {"fraction_bits": fraction_bits, "zero_exponent": zero, "step": step, "result_fraction_bits": kept}
    mmabits.what_if(name, base="sm_90a", rows={"wgmma.f8.f32": change})
    unit = slow_reference.Unit(F=fraction_bits, L=step, e_zero=zero, out=f"f32 rz {kept}")
    a = b = np.zeros((5, 32), np.uint8)
    a = a.copy()
    a[4, 3] = 1
    c = np.array([0, 0x80000000, 1, 0x007FFFFF, 0], np.uint32)
    got = mmabits.emulator.api.dot_rows(resolve("wgmma", arch=name, a_type="e4m3", b_type="e5m2"), name, a, b, c)
    assert [hex(code) for code in got.tolist()] == [hex(code) for code in _reference(a, b, c, unit)]


def test_an_accumulator_that_is_divided_once_an_instruction_takes_one_step():
    mmabits.what_if("divided", base="sm_100a", rows={"tcgen05.f16.f32": {"step": 8}})
    plain = resolve("tcgen05.mma.kind::f16", arch="divided", a_type="f16", b_type="f16")
    assert lower(plain, "divided").step == 8
    with pytest.raises(UnsupportedInstruction, match="takes 8 of 16 elements"):
        lower(parse(f"{plain.ptx}.scale_input_d::1"), "divided")


def test_a_pattern_leaves_rows_without_numbers_alone_and_a_name_does_not():
    found = mmabits.what_if("all-f20", base="sm_90a", rows={"*": {"fraction_bits": 20}})
    for a_type, wanted in (("e4m3", 20), ("f16", 20)):
        assert lower(resolve("wgmma", arch=found.name, a_type=a_type, b_type=a_type), found.name).datapath.fraction_bits == wanted
    whole = resolve("wgmma", arch=found.name, a_type="s8", b_type="s8")
    assert lower(whole, found.name).datapath is lower(whole, "sm_90a").datapath
    with pytest.raises(OperandError, match="it has no numbers to change"):
        mmabits.what_if("no-numbers", base="sm_90a", rows={"wgmma.int.*": {"fraction_bits": 20}})
