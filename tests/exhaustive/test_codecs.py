"""Every code of every format of at most 16 bits, every gap between neighbours, every rounding.

The oracles here are plain comparisons, Fractions, NumPy and ml_dtypes; none shares code with the codecs.
"""

from __future__ import annotations

import bisect
import functools
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmabits.emulator.codecs import CVT_ROUNDINGS, RANDOM_BITS, ROUNDINGS, _encode, as_codes, decode, encode, from_codes, numpy_dtype
from mmabits.isa.errors import OperandError, OperandTypeError, UnknownFormat
from mmabits.isa.formats import FORMATS, FormatSpec, NonFinite

SEED = 20261121
NARROW = [row for row in FORMATS.values() if row.code_bits <= 16]
NARROW_FLOATS = [row for row in NARROW if not row.is_integer]
WITH_SUBNORMALS = [row for row in NARROW_FLOATS if row.has_subnormals]
INTEGERS = [row for row in FORMATS.values() if row.is_integer]
# ml_dtypes has no type for ue4m3 (e4m3 with the sign ignored) and rounds to e8m0 otherwise than PTX, see below.
IN_ML_DTYPES = [row for row in NARROW_FLOATS if not row.scale_only]
DETERMINISTIC = tuple(mode for mode in ROUNDINGS if mode != "rs")


def by_name(row: FormatSpec) -> str:
    return row.name


def every_code(row: FormatSpec) -> np.ndarray:
    return np.arange(row.codes, dtype=f"uint{row.container_bits}")


def any_rounding(values, row: FormatSpec, rounding: str, *, satfinite: bool = False, random_bits=None) -> np.ndarray:
    """The engine below `encode`, which has every rounding for every format."""
    return _encode(np.asarray(values), row, rounding, satfinite, random_bits)


@functools.cache
def ladder(row: FormatSpec) -> tuple[np.ndarray, np.ndarray]:
    """The finite values from the smallest that is not negative up, and their codes."""
    codes = every_code(row)[: (row.sign_mask or row.codes)]
    values = decode(codes, row)
    if row.ignored_sign:
        codes, values = codes[: row.codes // 2], values[: row.codes // 2]
    is_finite = np.isfinite(values)
    assert np.all(np.diff(values[is_finite]) > 0)
    return values[is_finite], codes[is_finite]


def expected_nan(row: FormatSpec) -> int:
    return {
        "f16": 0x7FFF,
        "bf16": 0x7FFF,
        "e4m3": 0x7F,
        "e5m2": 0x7F,
        "ue4m3": 0x7F,
        "ue8m0": 0xFF,
        "e3m2": 0x1F,
        "e2m3": 0x1F,
        "e2m1": 0x07,
    }[row.name]


# Decoding ------------------------------------------------------------------------------------------------------------


def value_of_code(code: int, row: FormatSpec) -> Fraction | float:
    """One code by the definition of the format, from its fields."""
    if row.is_integer:
        return Fraction(code - row.codes if code & row.sign_mask else code)
    sign = -1 if row.sign_bits and code >> (row.code_bits - 1) else 1
    fields = code >> row.ignored_low_bits
    fraction = fields & ((1 << row.fraction_bits) - 1)
    exponent = fields >> row.fraction_bits & ((1 << row.exponent_bits) - 1)
    all_ones = exponent == (1 << row.exponent_bits) - 1
    if all_ones and row.non_finite is NonFinite.IEEE:
        return math.nan if fraction else sign * math.inf
    if all_ones and row.non_finite is NonFinite.NAN_ONLY and fraction == (1 << row.fraction_bits) - 1:
        return math.nan
    if exponent == 0 and row.has_subnormals:
        return sign * Fraction(fraction, 1 << row.fraction_bits) * Fraction(2) ** (1 - row.bias)
    return sign * (1 + Fraction(fraction, 1 << row.fraction_bits)) * Fraction(2) ** (exponent - row.bias)


@pytest.mark.parametrize("row", NARROW, ids=by_name)
def test_every_code_decodes_to_its_definition(row):
    for code, got in enumerate(decode(every_code(row), row).tolist()):
        want = value_of_code(code, row)
        if isinstance(want, float):
            assert (math.isnan(want) and math.isnan(got)) or want == got, hex(code)
        else:
            assert Fraction(got) == want, hex(code)


@pytest.mark.parametrize("row", [row for row in NARROW if row.name != "ue4m3"], ids=by_name)
def test_every_code_decodes_as_the_array_type_says(row):
    codes = every_code(row)
    with np.errstate(invalid="ignore"):
        want = codes.view(numpy_dtype(row)).astype(np.float64)
    got = decode(codes, row)
    assert np.array_equal(np.isnan(got), np.isnan(want))
    is_number = ~np.isnan(want)
    assert np.array_equal(got[is_number].view(np.uint64), want[is_number].view(np.uint64))


@pytest.mark.parametrize("name", ["f32", "f64", "tf32", "s32"])
def test_wide_codes_decode_to_their_definition(name):
    row = FORMATS[name]
    rng = np.random.default_rng(SEED)
    edges = [0, 1, row.sign_mask, row.sign_mask | 1, row.max_finite_magnitude, row.codes - 1, row.sign_mask - 1]
    edges += [
        row.exponent_mask,
        row.exponent_mask | row.sign_mask,
        row.exponent_mask | 1,
        row.fraction_mask,
        row.fraction_mask | row.sign_mask,
    ]
    codes = np.concatenate([np.array(edges, dtype=np.uint64), rng.integers(0, row.codes, 20_000, dtype=np.uint64)])
    for code, got in zip(codes.tolist(), decode(codes, row).tolist(), strict=True):
        want = value_of_code(code, row)
        assert (isinstance(want, float) and math.isnan(want) and math.isnan(got)) or want == got, hex(code)


def test_tf32_ignores_the_low_bits_before_it_knows_nan_from_infinity():
    codes = np.array([0x3F801FFF, 0x7F801FFF, 0xFF801FFF, 0x7F802000, 0x00001FFF], dtype=np.uint32)
    assert np.array_equal(decode(codes, "tf32"), [1.0, np.inf, -np.inf, np.nan, 0.0], equal_nan=True)


def test_scale_formats_decode():
    assert np.array_equal(decode(np.array([0x00, 0x7F, 0xFE, 0xFF], np.uint8), "ue8m0"), [2.0**-127, 1.0, 2.0**127, np.nan], equal_nan=True)
    assert np.array_equal(
        decode(np.array([0x38, 0xB8, 0x80, 0x7F, 0xFF], np.uint8), "ue4m3"), [1.0, 1.0, 0.0, np.nan, np.nan], equal_nan=True
    )


def test_negative_zero_is_kept_both_ways():
    for row in WITH_SUBNORMALS:
        if row.sign_bits:
            zero = decode(np.array([row.sign_mask], dtype=f"uint{row.container_bits}"), row)
            assert zero[0] == 0.0 and np.signbit(zero[0])
            assert encode(np.float32(-0.0), row) == row.sign_mask


# Round trip ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", NARROW, ids=by_name)
def test_every_code_encodes_back_to_itself(row):
    codes = every_code(row)
    values = decode(codes, row)
    want = codes & ~np.uint8(0x80) if row.ignored_sign else codes.copy()
    if not row.is_integer:
        want[np.isnan(values)] = expected_nan(row)
    for mode in CVT_ROUNDINGS[row.name]:
        random_bits = np.full(codes.shape, 0xFFFFFFFF, dtype=np.uint32) if mode == "rs" else None
        assert np.array_equal(encode(values, row, rounding=mode, random_bits=random_bits), want), mode


@pytest.mark.parametrize("name", ["f32", "f64", "tf32", "s32"])
def test_wide_codes_encode_back_to_themselves(name):
    row = FORMATS[name]
    codes = np.random.default_rng(SEED).integers(0, row.codes, 100_000, dtype=np.uint64).astype(f"uint{row.container_bits}")
    values = decode(codes, row)
    kept = codes >> row.ignored_low_bits << row.ignored_low_bits
    canonical = {"f32": 0x7FFFFFFF, "tf32": 0x7FFFFFFF, "f64": 0x7FFFFFFFFFFFFFFF, "s32": 0}[name]
    want = np.where(np.isnan(values), codes.dtype.type(canonical), kept)
    for mode in CVT_ROUNDINGS[name]:
        assert np.array_equal(encode(values, row, rounding=mode), want), mode


# Between neighbours --------------------------------------------------------------------------------------------------


def gaps(row: FormatSpec):
    """Points of every gap (below, above): (value, position), positions 1 to 7 with the middle at 4."""
    values, codes = ladder(row)
    low, high = values[:-1], values[1:]
    middle = low + (high - low) / 2
    points = [np.nextafter(low, np.inf), low + (high - low) / 4, np.nextafter(middle, 0), middle, np.nextafter(middle, np.inf)]
    points += [low + 3 * (high - low) / 4, np.nextafter(high, 0)]
    for position, point in enumerate(points, start=1):
        assert np.all((low < point) & (point < high))
        yield point, position, codes[:-1].astype(np.int64), codes[1:].astype(np.int64)


@pytest.mark.parametrize("mode", DETERMINISTIC)
@pytest.mark.parametrize("row", NARROW_FLOATS, ids=by_name)
def test_points_between_neighbours_round_as_the_mode_says(row, mode):
    signs = (1, -1) if row.sign_bits else (1,)
    for sign in signs:
        for point, position, below, above in gaps(row):
            # With one significand bit, as in ue8m0, every significand is 1: odd, so a tie goes up.
            even = np.where(below % 2 == 0, below, above) if row.fraction_bits else above
            nearest = below if position < 4 else above
            want = {
                "rz": below,
                "rp": above if sign > 0 else below,
                "rm": below if sign > 0 else above,
                "rn": even if position == 4 else nearest,
                "rna": above if position == 4 else nearest,
            }[mode]
            got = any_rounding(sign * point, row, mode)
            assert np.array_equal(got, want + (row.sign_mask if sign < 0 else 0)), (position, sign)


@pytest.mark.parametrize("row", [row for row in NARROW_FLOATS if not row.sign_bits], ids=by_name)
def test_unsigned_formats_round_the_magnitude(row):
    for mode in CVT_ROUNDINGS[row.name]:
        for point, *_ in gaps(row):
            random_bits = np.full(point.shape, 0x5A5A, dtype=np.uint32) if mode == "rs" else None
            got = encode(-point, row, rounding=mode, random_bits=random_bits)
            assert np.array_equal(got, encode(point, row, rounding=mode, random_bits=random_bits))


@functools.cache
def fraction_ladder(row: FormatSpec) -> list[Fraction]:
    return [Fraction(value) for value in ladder(row)[0].tolist()]


def oracle(value: float, row: FormatSpec, mode: str, satfinite: bool) -> int:
    """Any float64 to any narrow float format with subnormals, by comparing Fractions with the list of all values."""
    if math.isnan(value):
        return expected_nan(row)
    negative = math.copysign(1.0, value) < 0
    sign = row.sign_mask if negative else 0
    negative = negative and bool(row.sign_bits)
    steps = fraction_ladder(row)
    largest = int(ladder(row)[1][-1])
    stays = satfinite or row.non_finite is NonFinite.NONE
    beyond = sign | (largest if stays else {NonFinite.IEEE: largest + 1, NonFinite.NAN_ONLY: expected_nan(row)}[row.non_finite])
    if math.isinf(value):
        return beyond
    magnitude = abs(Fraction(value))
    below = bisect.bisect_right(steps, magnitude) - 1
    low = steps[below]
    high = steps[below + 1] if below + 1 < len(steps) else 2 * low - steps[below - 1]
    is_even = below % 2 == 0
    middle = (low + high) / 2
    up = {
        "rz": False,
        "rp": magnitude > low and not negative,
        "rm": magnitude > low and negative,
        "rna": magnitude >= middle,
        "rn": magnitude > middle or (magnitude == middle and not is_even),
    }[mode]
    if below + 1 < len(steps) or not up:
        return sign | (below + up)
    return beyond


float64_bits = st.one_of(
    st.floats(width=64),
    st.floats(width=32),
    st.floats(width=16),
    st.integers(0, 2**64 - 1).map(lambda bits: float(np.uint64(bits).view(np.float64))),
)
in_range = st.floats(-70000, 70000, allow_nan=False)


@pytest.mark.parametrize("row", [row for row in WITH_SUBNORMALS if row.code_bits <= 8], ids=by_name)
@given(value=st.one_of(float64_bits, in_range), mode=st.sampled_from(DETERMINISTIC), satfinite=st.booleans())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_float64_rounds_as_the_oracle_says(row, value, mode, satfinite):
    assert int(any_rounding(np.float64(value), row, mode, satfinite=satfinite)) == oracle(value, row, mode, satfinite)


@pytest.mark.parametrize("name", ["f16", "bf16"])
@given(value=st.one_of(float64_bits, in_range), mode=st.sampled_from(DETERMINISTIC), satfinite=st.booleans())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_float64_rounds_to_16_bits_as_the_oracle_says(name, value, mode, satfinite):
    row = FORMATS[name]
    assert int(any_rounding(np.float64(value), row, mode, satfinite=satfinite)) == oracle(value, row, mode, satfinite)


# Range and special values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", WITH_SUBNORMALS, ids=by_name)
@pytest.mark.parametrize("mode", DETERMINISTIC)
@pytest.mark.parametrize("satfinite", [False, True])
def test_past_the_largest_number(row, mode, satfinite):
    values, _ = ladder(row)
    top, step = values[-1], values[-1] - values[-2]
    points = [top + step / 4, top + step / 2, top + 3 * step / 4, top + step, 1e30 * top, 1e300, np.inf, np.nan, 5e-324]
    for value in [*points, *(-point for point in points)]:
        assert int(any_rounding(np.float64(value), row, mode, satfinite=satfinite)) == oracle(value, row, mode, satfinite), value


# What PTX says of .satfinite: NaN to NaN, or to the largest number where there is none; the rest to the largest number.
SATFINITE = {"f16": (0x7FFF, 0x7BFF, 0xFBFF), "bf16": (0x7FFF, 0x7F7F, 0xFF7F), "e4m3": (0x7F, 0x7E, 0xFE), "e5m2": (0x7F, 0x7B, 0xFB)}
SATFINITE |= {"e3m2": (0x1F, 0x1F, 0x3F), "e2m3": (0x1F, 0x1F, 0x3F), "e2m1": (0x07, 0x07, 0x0F), "ue4m3": (0x7F, 0x7E, 0x7E)}
SATFINITE |= {"ue8m0": (0xFF, 0xFE, 0xFE), "f32": (0x7FFFFFFF, 0x7F7FFFFF, 0xFF7FFFFF), "tf32": (0x7FFFFFFF, 0x7F7FE000, 0xFF7FE000)}


@pytest.mark.parametrize("name", SATFINITE)
def test_satfinite_codes_are_those_of_ptx(name):
    values = np.array([np.nan, np.inf, -np.inf])
    for mode in CVT_ROUNDINGS[name]:
        random_bits = np.zeros(3, np.uint32) if mode == "rs" else None
        got = encode(values, name, rounding=mode, satfinite=True, random_bits=random_bits)
        assert tuple(got.tolist()) == SATFINITE[name], mode
    assert encode(-np.float32(np.nan), name, rounding=CVT_ROUNDINGS[name][0], satfinite=True) == SATFINITE[name][0]


# Value, rz, rz.satfinite, rp, rp.satfinite, as printed by the host conversions of cuda_fp8.h of CUDA 13.0.
UE8M0 = [
    (0.0, 0x00, 0x00, 0x00, 0x00),
    (-0.0, 0x00, 0x00, 0x00, 0x00),
    (-1.0, 0x7F, 0x7F, 0x7F, 0x7F),
    (-3.0, 0x80, 0x80, 0x81, 0x81),
    (3.0, 0x80, 0x80, 0x81, 0x81),
    (1e-45, 0x00, 0x00, 0x00, 0x00),
    (5.877e-39, 0x00, 0x00, 0x00, 0x00),
    (6e-39, 0x00, 0x00, 0x01, 0x01),
    (1.1e-38, 0x00, 0x00, 0x01, 0x01),
    (2e-38, 0x01, 0x01, 0x02, 0x02),
    (1.7e38, 0xFD, 0xFD, 0xFE, 0xFE),
    (1.8e38, 0xFE, 0xFE, 0xFF, 0xFE),
    (3.4e38, 0xFE, 0xFE, 0xFF, 0xFE),
    (np.inf, 0xFF, 0xFE, 0xFF, 0xFE),
    (-np.inf, 0xFF, 0xFE, 0xFF, 0xFE),
    (1.0000001, 0x7F, 0x7F, 0x80, 0x80),
]


@pytest.mark.parametrize(("value", "rz", "rz_sat", "rp", "rp_sat"), UE8M0)
def test_ue8m0_as_cuda_converts(value, rz, rz_sat, rp, rp_sat):
    got = [int(encode(np.float32(value), "ue8m0", rounding=mode, satfinite=sat)) for mode in ("rz", "rp") for sat in (False, True)]
    assert got == [rz, rz_sat, rp, rp_sat]


# Against ml_dtypes and NumPy -----------------------------------------------------------------------------------------


def hard_points(row: FormatSpec) -> np.ndarray:
    parts = [point for point, *_ in gaps(row)]
    values, _ = ladder(row)
    step = values[-1] - values[-2]
    past = np.array([values[-1] + step / 4, values[-1] + step / 2, values[-1] + step, np.inf, 1e38])
    points = np.concatenate([values, *parts, past])
    return np.concatenate([points, -points])


def random_points(row: FormatSpec) -> np.ndarray:
    """A million floats over the exponents of the format and a little beyond."""
    rng = np.random.default_rng(SEED)
    exponents = rng.uniform(row.min_exponent - row.fraction_bits - 3, row.max_exponent + 1.5, 1_000_000)
    with np.errstate(over="ignore"):
        return (np.exp2(exponents) * rng.choice([-1.0, 1.0], exponents.shape)).astype(np.float64)


@pytest.mark.parametrize("source", [np.float32, np.float64])
@pytest.mark.parametrize("row", IN_ML_DTYPES, ids=by_name)
def test_nearest_even_equals_ml_dtypes(row, source):
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        values = np.concatenate([hard_points(row), random_points(row)]).astype(source)
        if row.name != "f16" and source is np.float64:
            # ml_dtypes goes from float64 to its types by way of float32 and so rounds twice; the test below shows it.
            values = values.astype(np.float32).astype(np.float64)
        want = values.astype(numpy_dtype(row))
    assert np.array_equal(encode(values, row), as_codes(want, row))


@pytest.mark.parametrize("row", [row for row in IN_ML_DTYPES if row.name != "f16"], ids=by_name)
def test_float64_is_rounded_once_where_ml_dtypes_rounds_twice(row):
    value = np.float64(1 + 2.0 ** -(row.fraction_bits + 1) + 2.0**-40)  # just above a tie, but a tie after float32
    above_one = 1 + 2.0**-row.fraction_bits
    assert decode(encode(value, row), row) == above_one
    assert decode(encode(np.float32(value), row), row) == 1.0
    assert value.astype(numpy_dtype(row)) == 1.0


def test_ml_dtypes_rounds_e8m0_to_nearest_which_ptx_has_not():
    row = FORMATS["ue8m0"]
    values = np.exp2(np.random.default_rng(SEED).uniform(-126, 127, 100_000)).astype(np.float32)
    want = values.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8)
    assert np.array_equal(any_rounding(values, row, "rn"), want)
    assert np.array_equal(any_rounding(np.float32([1.5, 3.0]), row, "rn"), [0x80, 0x81])


def test_ml_dtypes_keeps_the_sign_of_nan_where_ptx_has_one_nan():
    for name, codes in {"f16": (0x7E00, 0xFE00), "bf16": (0x7FC0, 0xFFC0), "e4m3": (0x7F, 0xFF), "e5m2": (0x7E, 0xFE)}.items():
        nans = np.array([np.nan, -np.nan], np.float32)
        assert tuple(as_codes(nans.astype(numpy_dtype(name)), name).tolist()) == codes
        assert np.all(encode(nans, name) == expected_nan(FORMATS[name]))


def test_ml_dtypes_turns_nan_into_negative_zero_where_ptx_saturates():
    for name, code in {"e3m2": 0x20, "e2m3": 0x20, "e2m1": 0x08}.items():
        assert np.float32(np.nan).astype(numpy_dtype(name)).view(np.uint8) == code
        assert encode(np.float32(np.nan), name) == FORMATS[name].max_finite_magnitude


@pytest.mark.parametrize("source", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("row", IN_ML_DTYPES, ids=by_name)
def test_every_16_bit_float_encodes_like_its_float64(row, source):
    values = np.arange(1 << 16, dtype=np.uint16).view(source)
    with np.errstate(invalid="ignore"):
        wide = values.astype(np.float64)
    for mode in DETERMINISTIC:
        assert np.array_equal(any_rounding(values, row, mode), any_rounding(wide, row, mode))


def test_f32_from_float64_equals_numpy():
    rng = np.random.default_rng(SEED)
    singles = np.arange(0, 1 << 32, 20_011, dtype=np.uint64).astype(np.uint32).view(np.float32)
    singles = singles[np.isfinite(singles)]
    with np.errstate(all="ignore"):
        above = np.nextafter(singles, np.float32(np.inf)).astype(np.float64)
        middles = (singles.astype(np.float64) + above) / 2
        values = np.concatenate([singles.astype(np.float64), middles, np.nextafter(middles, np.inf), np.nextafter(middles, -np.inf)])
        values = np.concatenate(
            [values, rng.integers(0, 1 << 64, 200_000, dtype=np.uint64).view(np.float64), [1e-320, -5e-324, 3.4028236e38]]
        )
        values = values[~np.isnan(values)]
        nearest = values.astype(np.float32)
    assert np.array_equal(encode(values, "f32"), nearest.view(np.uint32))
    with np.errstate(all="ignore"):
        down = np.where(nearest > values, np.nextafter(nearest, np.float32(-np.inf)), nearest)
        up = np.where(nearest < values, np.nextafter(nearest, np.float32(np.inf)), nearest)
    negative = np.signbit(values)
    for mode, want in {"rm": down, "rp": up, "rz": np.where(negative, up, down)}.items():
        want = np.copysign(want, np.where(negative, np.float32(-1), np.float32(1)))
        assert np.array_equal(encode(values, "f32", rounding=mode), want.view(np.uint32)), mode


def test_tf32_equals_the_integer_form():
    bits = np.arange(0, 1 << 32, 4_099, dtype=np.uint64).astype(np.uint32)
    ties = (bits & np.uint32(0xFFFFE000)) | np.uint32(0x1000)
    bits = np.concatenate([bits, ties, ties - np.uint32(1), ties + np.uint32(1)])
    values = bits.view(np.float32)
    bits, values = bits[~np.isnan(values)], values[~np.isnan(values)]
    mask = np.uint32(0xFFFFE000)
    is_infinite = np.isinf(values)
    want = {
        "rz": bits & mask,
        "rna": (bits + np.uint32(0x1000)) & mask,
        "rn": (bits + np.uint32(0xFFF) + ((bits >> 13) & 1)) & mask,
    }
    for mode, codes in want.items():
        assert np.array_equal(encode(values, "tf32", rounding=mode), np.where(is_infinite, bits, codes)), mode


@given(st.integers(-(2**63), 2**64 - 1))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_integers_to_f64_round_once(value):
    array = np.array(value, dtype=np.int64 if value < 2**63 else np.uint64)
    assert encode(array, "f64") == np.float64(value).view(np.uint64)
    with np.errstate(over="ignore"):
        in_steps = Fraction(float(decode(encode(array, "f32", rounding="rz"), "f32")))
    assert abs(in_steps) <= abs(value) and abs(value) - abs(in_steps) < max(1, Fraction(abs(value), 2**23))


# Integer formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", INTEGERS, ids=by_name)
def test_floats_round_and_clamp_to_integers(row):
    low, high = -row.sign_bits << row.fraction_bits, (1 << row.fraction_bits) - 1
    whole = np.unique(
        np.clip(np.array([-129, -128, -9, -8, -2, -1, 0, 1, 2, 7, 8, 15, 16, 127, 128, 255, 256, low, high]), -(2**31), 2**31 - 1)
    )
    values = np.concatenate(
        [whole + part for part in (0, 0.25, 0.5, 0.75)] + [np.array([1e300, -1e300, np.inf, -np.inf, 2.0**63, 2.0**64, -0.0])]
    )
    rounded = {"rn": np.rint(values), "rz": np.trunc(values), "rp": np.ceil(values), "rm": np.floor(values)}
    for mode, want in rounded.items():
        want = np.clip(want, low, high).astype(np.int64) & (row.codes - 1)
        assert np.array_equal(encode(values, row, rounding=mode), want), mode
    assert encode(np.float32(np.nan), row) == 0
    assert encode(np.float64(np.nan), row) == 1 << (row.code_bits - 1)


@pytest.mark.parametrize("row", INTEGERS, ids=by_name)
def test_integers_are_kept_or_saturate_or_are_refused(row):
    low, high = -row.sign_bits << row.fraction_bits, (1 << row.fraction_bits) - 1
    inside = np.array([low, low + 1, 0, 1, high])
    assert np.array_equal(decode(encode(inside, row), row), inside)
    outside = np.array([low - 1, high + 1, -(2**63), 2**63 - 1])
    assert np.array_equal(decode(encode(outside, row, satfinite=True), row), [low, high, low, high])
    with pytest.raises(OperandError, match=rf"integer {high + 1} is outside {row.name}, {low} to {high}; satfinite=True"):
        encode(np.array([high + 1]), row)


def test_int4_high_bits_are_ignored_and_come_out_zero():
    array = np.array([0xFD, 0x0D, 0x07], dtype=np.uint8).view(ml_dtypes.int4)
    assert np.array_equal(as_codes(array, "s4"), [0x0D, 0x0D, 0x07])
    assert np.array_equal(decode(array, "s4"), [-3, -3, 7])
    assert np.array_equal(encode(array, "s4"), [0x0D, 0x0D, 0x07])
    every = np.arange(-8, 8).astype(ml_dtypes.int4)
    assert np.array_equal(decode(every, "s4"), np.arange(-8, 8))
    assert np.array_equal(from_codes(as_codes(every, "s4"), "s4"), every)


# Stochastic rounding -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RANDOM_BITS)
def test_stochastic_rounding_goes_up_in_exact_proportion(name):
    row = FORMATS[name]
    width = RANDOM_BITS[name]
    draws = np.arange(1 << width, dtype=np.uint32)
    values, codes = ladder(row)
    rng = np.random.default_rng(SEED)
    for index in [0, 1, *rng.integers(0, len(values) - 1, 4).tolist(), len(values) - 2]:
        low, high = values[index], values[index + 1]
        for numerator in [0, 1, 1 << (width - 1), 12345 % (1 << width), (1 << width) - 1]:
            # An eighth of a random unit more must change nothing.
            value = low + (high - low) * (numerator + 0.125) / (1 << width)
            got = encode(np.full(draws.shape, value), row, rounding="rs", random_bits=draws)
            assert np.array_equal(got, np.where(draws + numerator >= 1 << width, codes[index + 1], codes[index])), (index, numerator)
            assert np.count_nonzero(got == codes[index + 1]) == numerator
            if row.sign_bits:
                negative = encode(np.full(draws.shape, -value), row, rounding="rs", random_bits=draws)
                assert np.array_equal(negative, got | row.sign_mask)


@pytest.mark.parametrize(("name", "width"), [("f16", 13), ("bf16", 16)])
def test_stochastic_rounding_of_float32_is_an_integer_sum(name, width):
    """PTX: the carry of the random bits plus the discarded bits, which for a float32 in the normal range are as many."""
    row = FORMATS[name]
    rng = np.random.default_rng(SEED)
    bits = rng.integers(0, 1 << 32, 200_000, dtype=np.uint64).astype(np.uint32)
    draws = rng.integers(0, 1 << 32, 200_000, dtype=np.uint64).astype(np.uint32)
    bits = np.where(rng.random(bits.shape) < 0.5, bits, bits & 0x0FFFFFFF | 0x38000000)
    values = bits.view(np.float32)
    is_normal = (np.abs(values) >= 2.0**row.min_exponent) & (np.abs(values) <= row.max_finite)
    bits, draws, values = bits[is_normal], draws[is_normal], values[is_normal]
    assert values.size > 10_000
    want = ((bits + (draws & ((1 << width) - 1))) >> width << width).view(np.float32)
    got = decode(encode(values, name, rounding="rs", random_bits=draws), name)
    assert np.array_equal(got, np.where(np.abs(want) <= row.max_finite, want, np.copysign(np.inf, want)))


def test_random_bits_above_the_width_are_ignored_and_broadcast():
    values = np.float32([[1.0001, 1.5], [2.3, -7.7]])
    one = encode(values, "f16", rounding="rs", random_bits=np.uint32(0x1ABC))
    assert np.array_equal(one, encode(values, "f16", rounding="rs", random_bits=np.full((2, 2), 0xFFFFFABC, np.uint32)))
    assert np.array_equal(encode(values, "f16", rounding="rs", random_bits=np.uint32(0)), encode(values, "f16", rounding="rz"))


# Properties ----------------------------------------------------------------------------------------------------------

numbers = st.lists(st.floats(allow_nan=False, width=32), min_size=2, max_size=40)


@pytest.mark.parametrize("row", [row for row in NARROW_FLOATS if row.sign_bits], ids=by_name)
@given(values=numbers, mode=st.sampled_from(DETERMINISTIC))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_rounding_is_monotone(row, values, mode):
    rounded = decode(any_rounding(np.sort(np.float64(values)), row, mode, satfinite=True), row)
    assert np.all(rounded[:-1] <= rounded[1:])


@pytest.mark.parametrize("row", [row for row in NARROW_FLOATS if row.sign_bits], ids=by_name)
@given(values=numbers, mode=st.sampled_from(DETERMINISTIC), satfinite=st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_sign_goes_through(row, values, mode, satfinite):
    array = np.float64(values)
    mirrored = {"rp": "rm", "rm": "rp"}.get(mode, mode)
    got, flipped = any_rounding(array, row, mode, satfinite=satfinite), any_rounding(-array, row, mirrored, satfinite=satfinite)
    assert np.all(got ^ flipped == row.sign_mask)


def test_long_arrays_equal_their_parts_and_keep_their_shape():
    values = np.random.default_rng(SEED).standard_normal((3, 1 << 15, 2)).astype(np.float32)
    got = encode(values, "e4m3")
    assert got.shape == values.shape and got.dtype == np.uint8
    assert np.array_equal(got[1, 777], encode(values[1, 777], "e4m3"))
    assert np.array_equal(encode(values[:, ::-3], "e4m3"), got[:, ::-3])
    assert encode(np.float32(1), "f16").shape == () and encode(np.zeros((0, 4)), "f16").shape == (0, 4)
    assert decode(np.uint32(0x3F800000), "f32").shape == () and decode(np.zeros((0, 4), np.uint8), "e4m3").shape == (0, 4)


# Views ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", FORMATS.values(), ids=by_name)
def test_codes_and_arrays_share_memory(row):
    codes = np.arange(16, dtype=f"uint{row.container_bits}")
    array = from_codes(codes, row)
    assert array.dtype == numpy_dtype(row)
    assert np.shares_memory(array, codes)
    back = as_codes(array, row)
    assert back.dtype == codes.dtype and np.shares_memory(back, codes) and np.array_equal(back, codes)


def test_numpy_dtypes_are_those_of_the_rows():
    assert numpy_dtype("f16") == np.float16
    assert numpy_dtype("tf32") == np.float32
    assert numpy_dtype("e4m3") == numpy_dtype("ue4m3") == ml_dtypes.float8_e4m3fn
    assert numpy_dtype("s4") == ml_dtypes.int4
    assert numpy_dtype("s32") == np.int32


def test_python_integers_are_codes():
    assert np.array_equal(decode([0x38, 0x7E], "e4m3"), [1.0, 448.0])
    assert decode(0x3C00, "f16") == 1.0


# Errors --------------------------------------------------------------------------------------------------------------


def test_the_tables_cover_the_formats():
    assert list(CVT_ROUNDINGS) == list(FORMATS)
    assert all(set(modes) <= set(ROUNDINGS) for modes in CVT_ROUNDINGS.values())
    assert set(RANDOM_BITS) == {name for name, modes in CVT_ROUNDINGS.items() if "rs" in modes}


@pytest.mark.parametrize("row", FORMATS.values(), ids=by_name)
def test_a_rounding_that_ptx_lacks_is_refused(row):
    for mode in set(ROUNDINGS) - set(CVT_ROUNDINGS[row.name]):
        allowed = ", ".join(CVT_ROUNDINGS[row.name])
        with pytest.raises(OperandError, match=rf"^PTX cvt to {row.name} has no rounding '{mode}'; it has {allowed}$"):
            encode(np.float32(1), row, rounding=mode)


def test_an_unknown_rounding_names_the_nearest():
    with pytest.raises(OperandError, match=r"unknown rounding 'rne'; did you mean rn.*; cvt to f16 has rn, rz, rp, rm, rs"):
        encode(np.float32(1), "f16", rounding="rne")


def test_random_bits_are_checked():
    one = np.ones(3, np.float32)
    with pytest.raises(OperandError, match="'rs' to bf16 needs random_bits"):
        encode(one, "bf16", rounding="rs")
    with pytest.raises(OperandError, match="random_bits belong to rounding 'rs', got them with 'rn'"):
        encode(one, "bf16", random_bits=np.zeros(3, np.uint32))
    with pytest.raises(OperandTypeError, match="random_bits must be uint32, got int64"):
        encode(one, "bf16", rounding="rs", random_bits=np.zeros(3, np.int64))
    with pytest.raises(OperandError, match=r"must broadcast to the shape \(3,\) of the values, got \(4,\)"):
        encode(one, "bf16", rounding="rs", random_bits=np.zeros(4, np.uint32))


@pytest.mark.parametrize("values", [np.array([True]), np.array([1j]), np.array(["1"]), np.array([1], np.longdouble), np.array([None])])
def test_values_of_another_type_are_refused(values):
    with pytest.raises(
        OperandTypeError, match=f"values to encode as e4m3 must be floats of at most 64 bits.* or integers, got {values.dtype}"
    ):
        encode(values, "e4m3")


def test_codes_of_another_type_or_range_are_refused():
    with pytest.raises(OperandTypeError, match="codes of e4m3 must be float8_e4m3fn or unsigned integers, got float32"):
        decode(np.float32([1.0]), "e4m3")
    with pytest.raises(OperandTypeError, match="codes of e4m3 must be float8_e4m3fn or unsigned integers, got int64"):
        as_codes(np.array([1], np.int64), "e4m3")
    with pytest.raises(OperandError, match="code 0x10 is outside e2m1, whose codes are 0x0 to 0xf"):
        decode(np.array([3, 16], np.uint8), "e2m1")
    with pytest.raises(OperandError, match="code -0x1 is outside f16"):
        decode([-1], "f16")
    with pytest.raises(UnknownFormat, match="unknown format 'e4m4'; did you mean"):
        decode(np.uint8([1]), "e4m4")


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "ue8m0", "ue4m3"])
def test_tables_of_float32_are_the_roundings_of_float64(name: str) -> None:
    """Every upper half of a float32 with lower halves at which a table could err, beside the same numbers in float64, without a table."""
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    values = ((np.arange(1 << 16, dtype=np.uint32) << np.uint32(16))[:, None] | low).view(np.float32)
    with np.errstate(invalid="ignore"):
        wide = values.astype(np.float64)
    for rounding in set(CVT_ROUNDINGS[name]) - {"rs"}:
        for satfinite in (False, True):
            found = encode(values, name, rounding=rounding, satfinite=satfinite)
            assert found.dtype == np.uint8 and np.array_equal(found, encode(wide, name, rounding=rounding, satfinite=satfinite))
