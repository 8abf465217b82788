"""The operand generators: codes mean what they say, draws are reproducible, and edge draws show off-by-one constants."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import operands
import pytest
import slow_reference
from slow_reference import FORMATS, INTEGERS, UNITS, Unit

NUMPY_TYPES = {
    "f64": np.float64, "f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16, "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2, "e3m2": ml_dtypes.float6_e3m2fn, "e2m3": ml_dtypes.float6_e2m3fn, "e2m1": ml_dtypes.float4_e2m1fn,
    "ue8m0": ml_dtypes.float8_e8m0fnu,
}  # fmt: skip


def exact(name: str, code: int) -> float:
    """The value of a code as the slow reference reads it."""
    number = slow_reference.decode(name, code)
    special = {"nan": np.nan, "infinity": np.inf * number.sign}
    return special.get(number.kind, np.ldexp(float(number.sign * number.significand), number.lsb))


def all_or_some_codes(name: str) -> np.ndarray[Any, Any]:
    bits = FORMATS[name].code_bits
    if bits <= 16:
        return np.arange(1 << bits).astype(operands.dtype_of(name))
    drawn = operands.draw("raw", name, (5000,), operands.generator("codes", name))
    return np.concatenate([drawn, np.array(list(operands.edge_codes(name).values()), drawn.dtype)])


@pytest.mark.parametrize("name", NUMPY_TYPES)
def test_the_slow_reference_decodes_as_ml_dtypes_does(name: str) -> None:
    codes = all_or_some_codes(name)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        want = codes.view(NUMPY_TYPES[name]).astype(np.float64)
    got = np.array([exact(name, int(code)) for code in codes])
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", FORMATS)
def test_operands_decode_agrees_with_the_slow_reference(name: str) -> None:
    codes = all_or_some_codes(name)
    np.testing.assert_array_equal(operands.decode(codes, name), np.array([exact(name, int(code)) for code in codes]))


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "ue4m3"])
def test_encode_inverts_decode_for_finite_codes(name: str) -> None:
    codes = all_or_some_codes(name)
    finite = codes[~operands.is_special(codes, name)]
    unread = finite.dtype.type((1 << FORMATS[name].unread_low_bits) - 1)
    np.testing.assert_array_equal(operands.encode(operands.decode(finite, name), name), finite & ~unread)


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "e4m3", "e5m2", "e3m2", "e2m3", "e2m1"])
def test_encode_rounds_as_ml_dtypes_does(name: str) -> None:
    rng = operands.generator("encode", name)
    values = np.ldexp(rng.standard_normal(5000), rng.integers(-30, 20, 5000))
    largest = float(operands.decode(np.array(operands.fields(name).max_finite), name))
    values = np.clip(values, -largest, largest)
    want = values.astype(np.float32).astype(NUMPY_TYPES[name]) if name == "f32" else values.astype(NUMPY_TYPES[name])
    np.testing.assert_array_equal(operands.encode(values, name), want.view(operands.dtype_of(name)))


def test_edge_codes_hold_the_annotated_values() -> None:
    f16, e4m3, tf32 = (operands.edge_codes(name) for name in ("f16", "e4m3", "tf32"))
    assert (f16["min subnormal"], f16["min normal"], f16["one"], f16["-infinity"]) == (0x0001, 0x0400, 0x3C00, 0xFC00)
    assert (e4m3["max finite"], e4m3["-all-ones nan"], "infinity" in e4m3) == (0x7E, 0xFF, False)
    assert (tf32["above one"], tf32["-zero"]) == (0x3F802000, 0x80000000)
    assert operands.edge_codes("e2m1")["-max finite"] == 0xF
    assert operands.edge_codes("ue8m0")["one"] == 127 and "zero" not in operands.edge_codes("ue8m0")
    assert operands.edge_codes("s4") == {"zero": 0, "one": 1, "max": 7, "minus one": 15, "min": 8}


@pytest.mark.parametrize("name", [*FORMATS, *INTEGERS])
@pytest.mark.parametrize("kind", operands.KINDS)
def test_draws_are_codes_of_the_format_and_reproducible(kind: str, name: str) -> None:
    first, second = (operands.draw(kind, name, (50, 32), operands.generator(kind, name)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    bits = INTEGERS[name][0] if name in INTEGERS else FORMATS[name].code_bits
    assert first.dtype == operands.dtype_of(name)
    assert int(first.max()) < 1 << bits
    assert len(np.unique(first)) > 2
    if name in FORMATS and kind not in ("raw", "raw_finite"):
        assert not operands.is_special(first, name).any()


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "tf32", "e4m3", "e5m2"])
def test_raw_finite_has_one_special_in_500(name: str) -> None:
    codes = operands.draw("raw_finite", name, (4000, 16), operands.generator(name))
    assert 0.001 < operands.is_special(codes, name).mean() < 0.003


def test_cancelling_pairs_nearly_cancel() -> None:
    pair = operands.draw_pair("cancelling", "f16", "f16", 200, 16, operands.generator("cancelling"))
    products = operands.decode(pair.a, "f16") * operands.decode(pair.b, "f16")
    ratio = np.abs(products.sum(axis=1)) / np.abs(products).sum(axis=1)
    assert np.median(ratio) < 0.01
    assert np.count_nonzero(ratio) > 100


def test_c_takes_zero_minus_zero_and_both_edges_of_the_window() -> None:
    pair = operands.draw_pair("plain", "f16", "f16", 2000, 8, operands.generator("c"))
    assert np.count_nonzero(pair.c == 0) > 100 and np.count_nonzero(pair.c == 0x80000000) > 20
    products = np.abs(operands.decode(pair.a, "f16") * operands.decode(pair.b, "f16")).max(axis=1)
    exponents = np.frexp(operands.decode(pair.c, "f32"))[1] - np.frexp(products)[1]
    for distance in (12, 13, 14, 22, 23, 24, 25, 26, 34, 35, 36):
        assert np.count_nonzero(exponents == distance) > 5, distance
    for distance in (13, 23, 24, 25):
        assert np.count_nonzero(exponents == -distance) > 5, distance


# Every constant of a unit that can show in a result. Left out, because no operands can show it: e_zero of the unscaled fp8, fp6 and
# fp4 rows, and of f16 operands with an f32 accumulator (neither their products nor c have a bit below 2^(e_zero - F)).
MUTATIONS = [
    pytest.param(key, field, delta, id="-".join((*key, field, f"{delta:+d}")))
    for key in [
        ("sm_70", "mma", "f16", "f32"), ("sm_70", "mma", "f16", "f16"), ("sm_80", "mma", "bf16", "f32"), ("sm_80", "mma", "tf32", "f32"),
        ("sm_80", "mma", "f16", "f16"), ("sm_89", "mma", "fp8", "f32"), ("sm_89", "mma", "fp8", "f16"), ("sm_90a", "wgmma", "bf16", "f32"),
        ("sm_90a", "wgmma", "f16", "f16"), ("sm_90a", "wgmma", "fp8", "f32"), ("sm_100a", "tcgen05", "tf32", "f32"),
        ("sm_120a", "mma", "f8f6f4", "f32"),
    ]
    for field, delta in [("F", -1), ("F", 1), ("L", 1), ("e_zero", -1), ("e_zero", 1)]
    if field != "e_zero" or key[2] in ("bf16", "tf32") or (key[2:] == ("f16", "f16"))
]  # fmt: skip
A_FORMATS = {"fp8": "e5m2", "f8f6f4": "e5m2"}


def results(unit: Unit, name: str, pair: operands.Operands) -> Iterator[int]:
    rows = zip(pair.a.tolist(), pair.b.tolist(), pair.c.tolist(), strict=True)
    return (slow_reference.fused_dot(a, b, c, a_format=name, b_format=name, unit=unit) for a, b, c in rows)


def differ(first: Iterable[int], second: Iterable[int]) -> bool:
    """Whether some row differs; stops there."""
    return any(x != y for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize(("key", "field", "delta"), MUTATIONS)
def test_edge_pairs_show_an_off_by_one_constant(key: tuple[str, str, str, str], field: str, delta: int) -> None:
    """600 rows of two steps: changing the constant changes some result."""
    unit = UNITS[key]
    wrong = unit.L * 2 if field == "L" else getattr(unit, field) + delta
    name = A_FORMATS.get(key[2], key[2])
    pair = operands.draw_pair("edge", name, name, 600, 2 * unit.L, operands.generator(*key), c_format=unit.accumulator)
    assert differ(results(unit, name, pair), results(dataclasses.replace(unit, **{field: wrong}), name, pair))


def scaled_results(unit: Unit, name: str, scale_format: str, block: int, pair: operands.Operands) -> Iterator[int]:
    codes = (pair.a, pair.b, pair.c, pair.scale_a, pair.scale_b)
    rows = zip(*(array.tolist() for array in codes if array is not None), strict=True)
    if unit.form == "grouped":
        return (slow_reference.grouped_dot(*row, scale_format=scale_format, block=block, unit=unit) for row in rows)
    return (slow_reference.scaled_dot(*row, a_format=name, b_format=name, unit=unit) for row in rows)


@pytest.mark.parametrize(("field", "delta"), [("F", -1), ("F", 1), ("e_zero", -1), ("e_zero", 1)])
@pytest.mark.parametrize(
    ("kind", "name", "scale_format", "block"),
    [
        ("mxf8f6f4", "e4m3", "ue8m0", 32),
        ("mxf8f6f4", "e2m1", "ue8m0", 32),
        ("mxf4", "e2m1", "ue8m0", 32),
        ("mxf4", "e2m1", "ue8m0", 16),
        ("mxf4", "e2m1", "ue4m3", 16),
    ],
)
def test_edge_scales_show_an_off_by_one_constant(kind: str, name: str, scale_format: str, block: int, field: str, delta: int) -> None:
    """Changing F or e_zero of a block-scaled unit changes some result (ue4m3 scales are too large to reach e_zero)."""
    unit = UNITS["sm_120a", "mma", kind, "f32"]
    k = 64 if kind == "mxf4" else 32
    rng = operands.generator(kind, scale_format, block)
    pair = operands.draw_scaled("edge", name, name, 1500, k, rng, scale_format=scale_format, block=block)
    right = scaled_results(unit, name, scale_format, block, pair)
    wrong = scaled_results(dataclasses.replace(unit, **{field: getattr(unit, field) + delta}), name, scale_format, block, pair)
    assert differ(right, wrong) == (not (field == "e_zero" and scale_format == "ue4m3"))


@pytest.mark.parametrize("group", [8, 32])
@pytest.mark.parametrize(("scale_format", "block"), [("ue8m0", 32), ("ue8m0", 16), ("ue4m3", 16)])
def test_edge_scales_show_a_wrong_group_size(scale_format: str, block: int, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of 8 or 32 instead of 16 change some result."""
    unit = UNITS["sm_100a", "tcgen05", "mxf4", "f32"]
    rng = operands.generator("group", scale_format, block)
    pair = operands.draw_scaled("edge", "e2m1", "e2m1", 1500, 64, rng, scale_format=scale_format, block=block)
    right = list(scaled_results(unit, "e2m1", scale_format, block, pair))
    monkeypatch.setattr(slow_reference, "GROUP", group)
    assert differ(right, scaled_results(unit, "e2m1", scale_format, block, pair))


@pytest.mark.parametrize(("arch", "family"), [("sm_89", "mma"), ("sm_90a", "mma")])
def test_the_output_width_shows_on_plain_operands(arch: str, family: str) -> None:
    unit = UNITS[arch, family, "f16", "f32"]
    pair = operands.draw_pair("plain", "f16", "f16", 20, 16, operands.generator("output"))
    assert differ(results(unit, "f16", pair), results(dataclasses.replace(unit, out="f32 rz 13"), "f16", pair))


# ------------------------------------------------------------------------------------ corners of the slow reference itself


@pytest.mark.parametrize("name", ["f16", "f32"])
def test_ieee_add_agrees_with_numpy_on_every_pair_of_edge_codes(name: str) -> None:
    codes = np.array([*operands.edge_codes(name).values(), *operands.draw("raw", name, (60,), operands.generator("add", name))])
    codes = codes.astype(operands.dtype_of(name))
    x, y = (codes[index.ravel()] for index in np.indices((codes.size, codes.size)))
    with np.errstate(all="ignore"):
        want = (x.view(NUMPY_TYPES[name]) + y.view(NUMPY_TYPES[name])).view(codes.dtype)
    want = np.where(operands.is_special(want, name) & np.isnan(operands.decode(want, name)), slow_reference.NAN[name], want)
    got = [slow_reference.ieee_add(name, int(i), int(j)) for i, j in zip(x, y, strict=True)]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("rounding", "positive", "negative"),
    [
        ("rn", 0x3FF0000000000000, 0xBFF0000000000000),
        ("rz", 0x3FF0000000000000, 0xBFF0000000000000),
        ("rp", 0x3FF0000000000001, 0xBFF0000000000000),
        ("rm", 0x3FF0000000000000, 0xBFF0000000000001),
    ],
)
def test_f64_fma_rounds_one_plus_a_tiny_product(rounding: str, positive: int, negative: int) -> None:
    """1 + 2^-30 x 2^-30 and its negative."""
    tiny, one = 0x3E10000000000000, 0x3FF0000000000000
    sign = 1 << 63
    assert slow_reference.f64_dot([tiny], [tiny], one, rounding=rounding) == positive
    assert slow_reference.f64_dot([tiny | sign], [tiny], one | sign, rounding=rounding) == negative


def test_f64_fma_signs_zeros_and_overflows_as_ieee_754_says() -> None:
    one, minus_one, minus_zero, largest = 0x3FF0000000000000, 0xBFF0000000000000, 1 << 63, 0x7FEFFFFFFFFFFFFF
    assert slow_reference.ieee_fma("f64", minus_zero, one, minus_zero) == minus_zero
    assert slow_reference.ieee_fma("f64", one, one, minus_one) == 0
    assert slow_reference.ieee_fma("f64", one, one, minus_one, "rm") == minus_zero
    overflows = {"rn": 0x7FF0000000000000, "rz": largest, "rp": 0x7FF0000000000000, "rm": largest}
    assert {mode: slow_reference.ieee_fma("f64", largest, largest, 0, mode) for mode in overflows} == overflows


def test_integer_dots_wrap_or_saturate_at_the_end_of_an_instruction() -> None:
    """127 x 1 - 128 x 1 from c = 2^31 - 1 ends in range, so only the final sum may be clamped."""
    arguments = {"a_format": "s8", "b_format": "u8"}
    assert slow_reference.integer_dot([127, 128], [1, 1], 0x7FFFFFFF, **arguments, satfinite=True) == 0x7FFFFFFE
    assert slow_reference.integer_dot([127], [255], 0x7FFFFFFF, **arguments, satfinite=True) == 0x7FFFFFFF
    assert slow_reference.integer_dot([127], [255], 0x7FFFFFFF, **arguments, satfinite=False) == (0x7FFFFFFF + 127 * 255) & 0xFFFFFFFF
    assert slow_reference.integer_dot([128], [255], 0x80000000, **arguments, satfinite=True) == 0x80000000
    assert slow_reference.integer_dot([8, 7], [8, 15], 0, a_format="s4", b_format="u4", satfinite=False) == (-64 + 105) & 0xFFFFFFFF


def test_promotion_adds_every_part_to_an_f32_accumulator() -> None:
    pair = operands.draw_pair("plain", "e4m3", "e4m3", 20, 320, operands.generator("promotion"))
    row = ("sm_90a", "wgmma", "e4m3", "e4m3", "f32")
    for a, b, c in zip(pair.a.tolist(), pair.b.tolist(), pair.c.tolist(), strict=True):
        want = c
        for start in (0, 128, 256):
            part = slow_reference.dot(*row, a[start : start + 128], b[start : start + 128], 0, k_instruction=32)
            want = slow_reference.ieee_add("f32", want, part)
        assert slow_reference.dot(*row, a, b, c, k_instruction=32, promote_every=128) == want
    with pytest.raises(ValueError, match="promotion needs"):
        slow_reference.dot(*row, [0] * 64, [0] * 64, 0, k_instruction=32, promote_every=48)


def test_scale_input_d_lowers_c_exactly() -> None:
    """1 x 1 + c x 2^-s: c = 3 halved twice is 0.75; a subnormal c keeps its bits; the floor of E is e_zero."""
    row = ("sm_100a", "tcgen05", "bf16", "bf16", "f32")
    one, three = 0x3F80, 0x40400000
    assert slow_reference.dot(*row, [one], [one], three, k_instruction=16, scale_input_d=2) == 0x3FE00000
    assert slow_reference.dot(*row, [0], [0], 0x00000006, k_instruction=16, scale_input_d=1) == 0x00000003
    assert slow_reference.dot(*row, [0], [0], 0x00000003, k_instruction=16, scale_input_d=1) == 0x00000001
    with pytest.raises(ValueError, match="scale-input-d belongs"):
        slow_reference.dot("sm_90a", "wgmma", "bf16", "bf16", "f32", [0], [0], 0, k_instruction=16, scale_input_d=1)


def test_special_values_and_zeros_follow_section_5() -> None:
    infinity, minus_infinity, zero, minus_one = 0x7C00, 0xFC00, 0, 0xBC00
    unit = UNITS["sm_90a", "mma", "f16", "f32"]

    def fused(a: list[int], b: list[int], c: int) -> int:
        return slow_reference.fused_dot(a, b, c, a_format="f16", b_format="f16", unit=unit)

    assert fused([infinity, minus_one], [zero, minus_one], 0) == 0x7FFFFFFF
    assert fused([infinity, minus_infinity], [minus_one, minus_one], 0) == 0x7FFFFFFF
    assert fused([infinity], [minus_one], 0x7F7FFFFF) == 0xFF800000
    assert fused([infinity], [minus_one], 0x7F800000) == 0x7FFFFFFF
    assert fused([0x8000], [0x3C00], 0x80000000) == 0
    pair = {"a_format": "e5m2", "b_format": "e5m2", "unit": UNITS["sm_90a", "mma", "fp8", "f32"]}
    assert slow_reference.hmma_pair_dot([0x80] * 32, [0x3C] * 32, 0x80000000, **pair) == 0  # +0 + -0
    assert slow_reference.hmma_pair_dot([0x7C] + [0] * 31, [0xBC] * 32, 0, **pair) == 0xFF800000


def test_rows_that_no_tensor_core_has_are_refused() -> None:
    for arch, k in (("sm_80", 4), ("sm_90a", 4), ("sm_70", 16)):
        with pytest.raises(KeyError):
            slow_reference.dot(arch, "mma", "f16", "f16", "f32", [0] * 4, [0] * 4, 0, k_instruction=k)
    with pytest.raises(KeyError):
        slow_reference.dot("sm_90a", "mma", "e2m1", "e2m1", "f32", [0] * 4, [0] * 4, 0, k_instruction=32)
