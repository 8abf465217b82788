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
    [("mxf8f6f4", "e4m3", "ue8m0", 32), ("mxf4", "e2m1", "ue8m0", 32), ("mxf4", "e2m1", "ue8m0", 16), ("mxf4", "e2m1", "ue4m3", 16)],
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
