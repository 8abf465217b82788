"""The exact trace against the engine (which `trace` itself compares) and against the slow reference, over every kind of unit."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import operands
import pytest
import slow_reference

import mmabits
from mmabits.isa import format_spec, instructions, lower, parse
from mmabits.research.trace import Addition, trace

_LINES = [line for line in instructions() if line.modelled and line.example is not None]
_BY_DATAPATH = {(line.datapath, line.machine, line.scale): line for line in _LINES}.values()


def _family(instruction):
    return {"mma.sync": "mma", "wgmma.mma_async": "wgmma", "tcgen05.mma": "tcgen05"}[instruction.family.value]


@pytest.mark.parametrize("line", _BY_DATAPATH, ids=lambda line: f"{line.arch}-{line.example.ptx}")
def test_the_trace_of_every_unit_ends_in_the_exact_models_result(line):
    row = line.example
    types = row.a_type.name, row.b_type.name
    rng = operands.generator("trace", line.arch, row.ptx)
    for kind in ("plain", "wide", "cancelling", "raw"):
        for length in (row.k, 2 * row.k, row.k + 3):
            drawn = operands.draw_pair(kind, *types, 1, length, rng, c_format=row.c_type.name)
            scales = {}
            if row.scale_type is not None:
                blocks = -(-length // row.block)
                scales = {name: operands.draw_scales(kind, row.scale_type.name, (blocks,), rng) for name in ("scale_a", "scale_b")}
            found = trace(row, line.arch, drawn.a[0], drawn.b[0], int(drawn.c[0]), **scales)
            expected = slow_reference.dot(
                line.arch, _family(row), *types, row.d_type.name, drawn.a[0].tolist(), drawn.b[0].tolist(), int(drawn.c[0]),
                k_instruction=row.k, block=row.block, scale_type=row.scale_type.name if row.scale_type else None,
                rounding=row.rounding or "rn", **{name: codes.tolist() for name, codes in scales.items()},
            )  # fmt: skip
            if row.d_type.name == "f64" and slow_reference.is_nan("f64", expected):
                assert found.result.kind == "nan"
            elif row.d_type.name != "f64" or length % row.k == 0:
                assert hex(found.result.code) == hex(expected)


def _fp8(values):
    return mmabits.encode(np.array(values, np.float64), "e4m3")


def test_the_account_of_a_step_adds_up():
    rng = np.random.default_rng(7)
    a, b = (_fp8(rng.standard_normal(96) * 3) for _ in range(2))
    c = int(np.float32(0.3).view(np.uint32))
    codes = [np.asarray(part).view(np.uint8) for part in (a, b)]
    found = trace(parse("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3"), "sm_90a", *codes, c)
    assert len(found.steps) == 3
    lost = Fraction(0)
    for step in found.steps:
        assert step.last_place == step.largest - 13
        assert step.total == sum(term.kept for term in step.terms)
        assert step.exact == step.total * Fraction(2) ** step.last_place + step.lost_by_alignment
        assert all(abs(term.lost) < Fraction(2) ** step.last_place for term in step.terms)
        lost += step.lost_by_alignment + step.lost_by_rounding
    assert found.exact - found.result.value == lost
    assert found.error == -lost
    assert lost != 0


def test_hopper_fp8_drops_what_lies_thirteen_bits_below_the_largest_product():
    """1 x 1 + 2^-9 x 2^-5: the second product lies 14 places below the first, one place too low."""
    wgmma = parse("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3")
    for exponent, kept in ((-4, 1), (-5, 0)):
        a = mmabits.encode(np.array([1.0, 2.0**-9] + [0.0] * 30), "e4m3").view(np.uint8)
        b = mmabits.encode(np.array([1.0, 2.0**exponent] + [0.0] * 30), "e4m3").view(np.uint8)
        (step,) = trace(wgmma, "sm_90a", a, b).steps
        assert step.terms[1].kept == kept
        assert step.terms[1].lost == (0 if kept else Fraction(1, 2**14))


def test_promotion_and_a_last_addition_are_events_of_their_own():
    rng = np.random.default_rng(8)
    a, b = (_fp8(rng.standard_normal(256)).view(np.uint8) for _ in range(2))
    found = trace(parse("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3"), "sm_90a", a, b, promote_every=128)
    additions = [event for event in found.events if isinstance(event, Addition)]
    assert [event.why for event in additions] == ["promotion after 128 elements of K"] * 2
    assert additions[0].total.value == 0
    assert found.result == additions[-1].result
    hmma = trace(parse("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32"), "sm_90a", a[:32], b[:32], int(np.float32(2).view(np.uint32)))
    assert [type(event).__name__ for event in hmma.events] == ["Step", "Step", "Addition"]
    assert hmma.steps[0].k == tuple(k for k in range(32) if k % 4 < 2)
    assert hmma.events[-1].total.value == 2


def test_a_what_if_architecture_is_traced_with_its_own_numbers():
    mmabits.what_if("trace-f20", base="sm_90a", rows={"wgmma.f8.f32": {"fraction_bits": 20, "result_fraction_bits": 20}}, promote_every=64)
    rng = np.random.default_rng(9)
    a, b = (_fp8(rng.standard_normal(128)).view(np.uint8) for _ in range(2))
    found = trace(parse("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3"), "trace-f20", a, b)
    assert found.promote_every == 64
    assert all(step.last_place == step.largest - 20 for step in found.steps)
    assert lower(found.instruction, "trace-f20").datapath is found.datapath


def test_why_a_result_is_not_finite_is_said():
    wgmma = parse("wgmma.mma_async.sync.aligned.m64n8k32.f32.e5m2.e5m2")
    infinity, nan, zero, one = (int(mmabits.encode(np.array(value), "e5m2").view(np.uint8)) for value in (np.inf, np.nan, 0.0, 1.0))
    cases = {
        "a NaN among the operands": ([nan], [one]), "0 x infinity": ([infinity], [zero]),
        "infinities of both signs": ([infinity, infinity | 128], [one, one]), "an infinity among the operands": ([infinity], [one]),
    }  # fmt: skip
    for why, (a, b) in cases.items():
        found = trace(wgmma, "sm_90a", np.array(a, np.uint8), np.array(b, np.uint8))
        assert found.steps[0].special == why
        assert found.exact is None
    assert str(found.result) == "inf"
    assert format_spec("f32").exponent_mask == found.result.code


def test_padding_that_cuts_the_accumulator_of_a_what_if_row_is_traced():
    mmabits.what_if("trace-f2", base="sm_90a", rows={"wgmma.f8.f32": {"fraction_bits": 2, "step": 16}})
    wgmma = parse("wgmma.mma_async.sync.aligned.m64n8k32.f32.e5m2.e4m3")
    a, b = (mmabits.encode(np.array([value]), form).view(np.uint8) for value, form in ((57344.0, "e5m2"), (0.04296875, "e4m3")))
    found = trace(wgmma, "trace-f2", a, b)
    assert [step.result.value for step in found.steps] == [2304, 2048]
    assert found.exact == 2464


def test_zeros_have_no_say_in_the_places_of_an_exact_sum():
    a, b = (np.array([value]).view(np.uint64) for value in (1.5, 3.0))
    step = trace(parse("mma.sync.aligned.m16n8k8.row.col.rn.f64.f64.f64.f64"), "sm_90a", a, b).steps[0]
    assert (step.largest, step.last_place) == (1, 1 - 104)


def test_an_integer_instruction_saturates_once_after_all_its_products():
    """2^31 - 1 + 1 - 1: saturated in between it would end one lower."""
    a, b = np.zeros(64, np.uint8), np.zeros(64, np.uint8)
    a[:2], b[:2] = 1, (1, 255)
    for modifier in ("", ".satfinite"):
        found = trace(parse(f"mma.sync.aligned.m16n8k32.row.col{modifier}.s32.s8.s8.s32"), "sm_80", a, b, 0x7FFFFFFF)
        assert [step.result.code for step in found.steps] == [0x7FFFFFFF, 0x7FFFFFFF]
        assert [len(step.k) for step in found.steps] == [32, 32]
