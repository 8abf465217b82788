"""Laws that the arithmetic implies, on codes that Hypothesis draws; and the exact model, on any bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import operands
import pytest
import slow_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmabits.emulator.api import dot_rows
from mmabits.isa import FormatSpec, Instruction, parse

Codes = np.ndarray[Any, Any]
DOTS = 3
"""Dot products an example; the engine takes them as a batch."""

KINDS = {
    "fp8 wgmma, float32 carrier": ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e5m2"),
    "fp8 wgmma, f16 accumulator": ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k32.f16.e5m2.e5m2"),
    "fp8 of Ada, two steps": ("sm_89", "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32"),
    "bf16, float64 carrier": ("sm_90a", "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"),
    "tf32, two steps": ("sm_80", "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"),
    "f16 accumulator": ("sm_90a", "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16"),
    "fp6 x fp4": ("sm_100a", "tcgen05.mma.cta_group::1.kind::f8f6f4.m128n8k32.f32.e2m3.e2m1"),
    "mxf8f6f4": ("sm_100a", "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n8k32.f32.e4m3.e5m2.ue8m0"),
    "mxf4": ("sm_120a", "mma.sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0"),
    "nvf4": ("sm_120a", "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3"),
    "fp8 by way of f16": ("sm_90a", "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e5m2.f32"),
    "fp8 by way of f16, f16": ("sm_90a", "mma.sync.aligned.m16n8k32.row.col.f16.e5m2.e4m3.f16"),
    "f64": ("sm_90a", "mma.sync.aligned.m16n8k16.row.col.rn.f64.f64.f64.f64"),
    "int8": ("sm_80", "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32"),
    "int4 satfinite": ("sm_80", "mma.sync.aligned.m16n8k64.row.col.satfinite.s32.u4.s4.s32"),
}  # fmt: skip
INTEGERS = ("int8", "int4 satfinite")
UNORDERED = {
    "fp8 wgmma, float32 carrier": [range(32)],
    "fp8 wgmma, f16 accumulator": [range(32)],
    "fp8 of Ada, two steps": [range(16), range(16, 32)],
    "bf16, float64 carrier": [range(16)],
    "tf32, two steps": [range(4), range(4, 8)],
    "f16 accumulator": [range(16)],
    "fp6 x fp4": [range(32)],
    "mxf8f6f4": [range(32)],
    "mxf4": [range(0, 16), range(16, 32), range(32, 48), range(48, 64)],
    "nvf4": [range(0, 16), range(16, 32), range(32, 48), range(48, 64)],
    "fp8 by way of f16": [[k for k in range(32) if k % 4 < 2], [k for k in range(32) if k % 4 >= 2]],
    "fp8 by way of f16, f16": [[k for k in range(32) if k % 4 < 2], [k for k in range(32) if k % 4 >= 2]],
    "int8": [range(32)],
    "int4 satfinite": [range(64)],
}
"""Elements of K that may change places: one step, one group, or one half of the split. f64 is a chain, so nothing may."""


def rules(examples: int) -> Any:
    """The same examples on every run; the first includes compiling."""
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None)


def codes_of(form: FormatSpec, shape: tuple[int, ...]) -> st.SearchStrategy[Codes]:
    """Codes: any bits, or mostly one value with some named edges and some others."""
    top = form.codes - 1
    edges = sorted(operands.edge_codes(form.name).values())
    dtype = operands.dtype_of(form.name)
    size = int(np.prod(shape)) * dtype().itemsize
    any_bits = st.binary(min_size=size, max_size=size).map(lambda raw: (np.frombuffer(raw, dtype) & dtype(top)).reshape(shape))
    return any_bits | arrays(dtype, shape, elements=st.sampled_from(edges) | st.integers(0, top))


def drawn(data: st.DataObject, row: Instruction) -> operands.Operands:
    """a, b, c and scales of one instruction."""
    a, b = (data.draw(codes_of(form, (DOTS, row.k))) for form in (row.a_type, row.b_type))
    c = data.draw(codes_of(row.c_type, (DOTS,)))
    if row.scale_type is None or row.block is None:
        return operands.Operands(a, b, c)
    scales = [data.draw(codes_of(row.scale_type, (DOTS, row.k // row.block))) for _ in "ab"]
    return operands.Operands(a, b, c, *scales)


def engine(name: str, given_: operands.Operands) -> Codes:
    arch, text = KINDS[name]
    return dot_rows(text, arch, given_.a, given_.b, given_.c, scale_a=given_.scale_a, scale_b=given_.scale_b)


def exact(name: str, given_: operands.Operands) -> list[int]:
    """The model's results."""
    arch, text = KINDS[name]
    row = parse(text)
    family = {"mma.sync": "mma", "wgmma.mma_async": "wgmma", "tcgen05.mma": "tcgen05"}[row.family.value]
    scales: Any = [(None, None)] * DOTS
    if given_.scale_a is not None and given_.scale_b is not None:
        scales = list(zip(given_.scale_a, given_.scale_b, strict=True))
    return [
        slow_reference.dot(
            arch, family, row.a_type.name, row.b_type.name, row.d_type.name, a, b, int(c), k_instruction=row.k, scale_a=scale_a,
            scale_b=scale_b, scale_type=row.scale_type.name if row.scale_type else None, block=row.block, satfinite=row.satfinite,
        )
        for a, b, c, (scale_a, scale_b) in zip(given_.a, given_.b, given_.c, scales, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
@rules(60)
@given(data=st.data())
def test_the_engine_equals_the_exact_model(name: str, data: st.DataObject) -> None:
    some = drawn(data, parse(KINDS[name][1]))
    assert engine(name, some).tolist() == exact(name, some)


def moved(some: operands.Operands, order: Any) -> operands.Operands:
    return some._replace(a=some.a[:, order], b=some.b[:, order])


@pytest.mark.parametrize("name", UNORDERED)
@rules(25)
@given(data=st.data())
def test_elements_of_one_step_may_change_places(name: str, data: st.DataObject) -> None:
    some = drawn(data, parse(KINDS[name][1]))
    order = np.arange(some.a.shape[1])
    for places in UNORDERED[name]:
        order[list(places)] = data.draw(st.permutations(list(places)))
    assert engine(name, moved(some, order)).tolist() == engine(name, some).tolist()


@pytest.mark.parametrize(("name", "block"), [("mxf4", 32), ("nvf4", 16)])
@rules(25)
@given(data=st.data())
def test_blocks_may_change_places_with_their_scales(name: str, block: int, data: st.DataObject) -> None:
    some = drawn(data, parse(KINDS[name][1]))
    assert some.scale_a is not None and some.scale_b is not None
    order = data.draw(st.permutations(range(64 // block)))
    elements = np.concatenate([np.arange(i * block, (i + 1) * block) for i in order])
    other = moved(some, elements)._replace(scale_a=some.scale_a[:, order], scale_b=some.scale_b[:, order])
    assert engine(name, other).tolist() == engine(name, some).tolist()


@pytest.mark.parametrize(("name", "other_step", "fraction_bits"), [("fp8 of Ada, two steps", 16, 13), ("fp8 by way of f16", 2, 25),
                                                                   ("tf32, two steps", 4, 24)])  # fmt: skip
def test_elements_of_two_steps_may_not_change_places(name: str, other_step: int, fraction_bits: int) -> None:
    """The negative control: 256 cuts off what lies 2^-(F + 2) below it where it stands in the same step, -256 or not."""
    row = parse(KINDS[name][1])
    small = 8 - fraction_bits - 2
    a, b = np.zeros((1, row.k)), np.zeros((1, row.k))
    for k, left, right in ((0, 16.0, 16.0), (1, 2.0 ** -(-small // 2), 2.0 ** (small + -small // 2)), (other_step, -16.0, 16.0)):
        a[0, k], b[0, k] = left, right
    apart = operands.Operands(operands.encode(a, row.a_type.name), operands.encode(b, row.b_type.name), np.zeros(1, np.uint32))
    order = np.arange(row.k)
    order[[1, other_step]] = order[[other_step, 1]]
    results = [operands.decode(engine(name, some), "f32")[0] for some in (apart, moved(apart, order))]
    assert results == [0.0, 2.0**small]


def values(form: FormatSpec, shape: tuple[int, ...], lowest: int, highest: int) -> st.SearchStrategy[Codes]:
    """Codes of zeros and of normal numbers with exponents in a range, both signs, every fraction."""
    field = operands.fields(form.name)
    exponents = st.integers(lowest, highest)

    def code(exponent: int, fraction: int, sign: int) -> int:
        return ((exponent + form.bias) << field.fraction_bits | fraction) << field.unread | sign << (form.code_bits - 1)

    numbers = st.builds(code, exponents, st.integers(0, (1 << field.fraction_bits) - 1), st.integers(0, 1))
    return arrays(operands.dtype_of(form.name), shape, elements=numbers | st.just(0), fill=numbers)


def times_power(codes: Codes, name: str, power: int) -> Codes:
    """Codes of the values times 2^power; zeros stay."""
    return operands.encode(np.ldexp(operands.decode(codes, name), power), name)


@pytest.mark.parametrize("name", ["fp8 wgmma, float32 carrier", "fp8 of Ada, two steps", "bf16, float64 carrier", "tf32, two steps",
                                  "mxf8f6f4", "fp8 by way of f16", "f64"])  # fmt: skip
@rules(40)
@given(data=st.data())
def test_powers_of_two_factor_out(name: str, data: st.DataObject) -> None:
    """A and C times 2^n give D times 2^n: alignment is relative, and nothing here comes near e_zero, overflow or subnormals."""
    row = parse(KINDS[name][1])
    power = data.draw(st.integers(-2, 2))
    a, b = (data.draw(values(form, (DOTS, row.k), -3, 3)) for form in (row.a_type, row.b_type))
    c = data.draw(values(row.c_type, (DOTS,), -20, 20))
    ones = None if row.scale_type is None else np.full((DOTS, 1), row.scale_type.bias, np.uint8)
    plain = operands.Operands(a, b, c, ones, ones)
    scaled = plain._replace(a=times_power(a, row.a_type.name, power), c=times_power(c, row.c_type.name, power))
    d = engine(name, plain)
    assert engine(name, scaled).tolist() == times_power(d, row.d_type.name, power).tolist()


@pytest.mark.parametrize(("name", "one", "step"), [("mxf8f6f4", 127, 1), ("mxf4", 127, 1), ("nvf4", 0x38, 8)])
@rules(30)
@given(data=st.data())
def test_a_larger_scale_is_a_power_of_two(name: str, one: int, step: int, data: st.DataObject) -> None:
    """The exponent of every scale of A up by n, C times 2^n: D times 2^n."""
    row = parse(KINDS[name][1])
    assert row.block is not None
    power = data.draw(st.integers(-3, 3))
    lowest, highest = (-3, 3) if name == "mxf8f6f4" else (0, 2)
    a, b = (data.draw(values(form, (DOTS, row.k), lowest, highest)) for form in (row.a_type, row.b_type))
    c = data.draw(values(row.c_type, (DOTS,), -20, 20))
    blocks = (DOTS, row.k // row.block)
    scale_a, scale_b = (data.draw(arrays(np.uint8, blocks, elements=st.integers(one - 2 * step, one + 2 * step))) for _ in "ab")
    plain = operands.Operands(a, b, c, scale_a, scale_b)
    scaled = plain._replace(scale_a=(scale_a.astype(int) + power * step).astype(np.uint8), c=times_power(c, row.c_type.name, power))
    d = engine(name, plain)
    assert engine(name, scaled).tolist() == times_power(d, row.d_type.name, power).tolist()


@pytest.mark.parametrize("name", [name for name in KINDS if name not in INTEGERS])
@rules(30)
@given(data=st.data())
def test_negation_goes_through(name: str, data: st.DataObject) -> None:
    """-A and -C, or -B and -C, give -D; a zero stays +0 where the unit makes only that, and a NaN stays the NaN."""
    row = parse(KINDS[name][1])
    some = drawn(data, row)
    negated_c = operands.negate(some.c, row.c_type.name)
    d = engine(name, some)
    kept = operands.is_special(d, row.d_type.name) & np.isnan(operands.decode(d, row.d_type.name))
    want = np.where(kept, d, operands.negate(d, row.d_type.name))
    zero = operands.decode(d, row.d_type.name) == 0
    for other in (some._replace(a=operands.negate(some.a, row.a_type.name)), some._replace(b=operands.negate(some.b, row.b_type.name))):
        got = engine(name, other._replace(c=negated_c))
        assert np.array_equal(got[~zero], want[~zero])
        assert (operands.decode(got[zero], row.d_type.name) == 0).all()
        assert name == "f64" or (got[zero] == 0).all()


NANS = {"f16": 0x7FFF, "f32": 0x7FFFFFFF, "f64": 0x7FF8000000000000}


@pytest.mark.parametrize("name", [name for name in KINDS if name not in INTEGERS and name != "f64"])
@rules(50)
@given(data=st.data())
def test_infinities_and_nan_are_those_of_real_arithmetic(name: str, data: st.DataObject) -> None:
    """What float64 says of the sum (which no finite operand overflows) is what comes out; no NaN from finite operands.

    The one exception is a finite sum too large for D: an infinity, of some sign.
    """
    row = parse(KINDS[name][1])
    some = drawn(data, row)
    a, b, c = (operands.decode(codes, form.name) for codes, form in ((some.a, row.a_type), (some.b, row.b_type), (some.c, row.c_type)))
    with np.errstate(invalid="ignore"):
        if row.scale_type is not None and row.block is not None and some.scale_a is not None and some.scale_b is not None:
            a = a * np.repeat(operands.decode(some.scale_a & (0x7F if name == "nvf4" else 0xFF), row.scale_type.name), row.block, axis=1)
            b = b * np.repeat(operands.decode(some.scale_b & (0x7F if name == "nvf4" else 0xFF), row.scale_type.name), row.block, axis=1)
        total = (a * b).sum(axis=1) + c
    d = engine(name, some)
    result = operands.decode(d, row.d_type.name)
    overflow = np.isfinite(total) & np.isinf(result)
    if not name.endswith("f16"):  # an HADD2 after an overflow in one half may meet an infinity of the other sign
        assert np.array_equal(np.isnan(result), np.isnan(total))
    assert set(d[np.isnan(result)].tolist()) <= {NANS[row.d_type.name]}
    infinite = np.isinf(total) & ~np.isnan(result)
    assert np.array_equal(result[infinite], total[infinite])
    assert (np.isfinite(result) | ~np.isfinite(total) | overflow | np.isnan(result)).all()


@pytest.mark.parametrize("name", INTEGERS)
@rules(40)
@given(data=st.data())
def test_integers_are_exact(name: str, data: st.DataObject) -> None:
    """Modulo 2^32, or clamped: the sum of Python's integers."""
    row = parse(KINDS[name][1])
    some = drawn(data, row)
    for i, got in enumerate(engine(name, some).tolist()):
        pairs = zip(some.a[i], some.b[i], strict=True)
        total = sum(slow_reference.decode_integer(row.a_type.name, x) * slow_reference.decode_integer(row.b_type.name, y) for x, y in pairs)
        total += slow_reference.decode_integer("s32", int(some.c[i]))
        assert got == (max(-(2**31), min(2**31 - 1, total)) if row.satfinite else total) % 2**32
