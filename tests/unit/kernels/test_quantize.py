"""Quantizers against worked examples and against slow, independent readings of their recipes."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from mmabits.isa.errors import OperandError, OperandTypeError
from mmabits.kernels.quantize import MX_FORMATS, MX_RECIPES, Quantized, quantize_fp8, quantize_mx, quantize_nvfp4

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
EMAX = {"e4m3": 8, "e5m2": 15, "e3m2": 4, "e2m3": 2, "e2m1": 2}
MAX = {"e4m3": 448.0, "e5m2": 57344.0, "e3m2": 28.0, "e2m3": 7.5, "e2m1": 6.0}
FRACTION_BITS = {"e4m3": 3, "e5m2": 2, "e3m2": 2, "e2m3": 3, "e2m1": 1}
DTYPES = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}


def normal(shape: tuple[int, ...], seed: int = 20240601) -> np.ndarray:
    """Normal values whose blocks differ in size by many powers of two."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-20, 20, (*shape[:-1], 1))).astype(np.float32)


def padded(*values: float, length: int = 32) -> np.ndarray:
    out = np.zeros((1, length), dtype=np.float32)
    out[0, : len(values)] = values
    return out


def scale_codes(quantized: Quantized) -> np.ndarray:
    assert quantized.scales is not None
    return quantized.scales.view(np.uint8)


def slow_exponent(amax: float, element: str, recipe: str) -> int:
    """The scale's exponent from exact fractions, the docstring's sentences one by one."""
    if amax == 0:
        return -127
    exact = Fraction(amax)
    if recipe == "rceil":
        exact = Fraction(float(np.float32(amax) / np.float32(MAX[element])))
    if recipe == "even":
        unit = Fraction(2) ** (math.frexp(amax)[1] - 1 - FRACTION_BITS[element])
        exact = math.floor(exact / unit + Fraction(1, 2)) * unit
    floor = next(e for e in range(130, -300, -1) if Fraction(2) ** e <= exact)
    ceil = floor if Fraction(2) ** floor == exact else floor + 1
    exponent = {"floor": floor - EMAX[element], "even": floor - EMAX[element], "ceil": ceil - EMAX[element], "rceil": ceil}[recipe]
    return max(-127, min(127, exponent))


@pytest.mark.parametrize("recipe", MX_RECIPES)
@pytest.mark.parametrize("element", MX_FORMATS)
def test_mx_matches_the_slow_reading(element: str, recipe: str) -> None:
    values = normal((24, 64))
    got = quantize_mx(values, format=element, recipe=recipe)
    for row, block in np.ndindex(24, 2):
        part = values[row, 32 * block : 32 * block + 32].astype(np.float64)
        exponent = slow_exponent(float(np.abs(part).max()), element, recipe)
        assert scale_codes(got)[row, block] == exponent + 127
        want = np.clip(part * 2.0**-exponent, -MAX[element], MAX[element]).astype(DTYPES[element])
        stored = got.elements[row, 32 * block : 32 * block + 32]
        assert stored.dtype == DTYPES[element]
        np.testing.assert_array_equal(stored.astype(np.float64), want.astype(np.float64))


@pytest.mark.parametrize(
    ("amax", "recipe", "code"),
    [
        pytest.param(6.0, "floor", 127, id="floor-6"),
        pytest.param(7.99, "floor", 127, id="floor-saturates"),
        pytest.param(8.0, "floor", 128, id="floor-8"),
        pytest.param(4.0, "ceil", 127, id="ceil-power"),
        pytest.param(4.000001, "ceil", 128, id="ceil-above"),
        pytest.param(6.99, "even", 127, id="even-below-tie"),
        pytest.param(7.0, "even", 128, id="even-tie-up"),
        pytest.param(6.0, "rceil", 127, id="rceil-max"),
        pytest.param(6.000001, "rceil", 128, id="rceil-above"),
        pytest.param(3.0, "rceil", 126, id="rceil-half"),
    ],
)
def test_mxfp4_scale_recipes(amax: float, recipe: str, code: int) -> None:
    assert scale_codes(quantize_mx(padded(amax, -0.5), format="e2m1", recipe=recipe)).tolist() == [[code]]


def test_mxfp4_floor_worked_example() -> None:
    got = quantize_mx(padded(7.9, -3.4, 2.5, 0.2, -0.25, 0.75, 5.0), format="e2m1")
    assert scale_codes(got).tolist() == [[127]]
    # 2.5 and 5.0 are ties to even, 0.25 is a tie to zero, 7.9 saturates.
    assert got.dequantize()[0, :7].tolist() == [6.0, -3.0, 2.0, 0.0, -0.0, 1.0, 4.0]
    assert np.signbit(got.dequantize()[0, 4])


@pytest.mark.parametrize("recipe", MX_RECIPES)
def test_mx_zero_tiny_and_huge_blocks(recipe: str) -> None:
    values = np.zeros((3, 32), dtype=np.float32)
    values[1, 5] = 2.0**-149
    values[2, :] = np.finfo(np.float32).max
    got = quantize_mx(values, format="e4m3", recipe=recipe)
    assert scale_codes(got)[:2].tolist() == [[0], [0]]
    assert not got.elements[:2].view(np.uint8).any()
    largest = {"floor": 246, "ceil": 247, "even": 247, "rceil": 247}[recipe]
    assert scale_codes(got)[2].tolist() == [largest]
    assert np.isfinite(got.dequantize()[:2]).all()


def test_mx_smallest_scale_still_holds_what_fits() -> None:
    got = quantize_mx(padded(2.0**-127, 2.0**-136, 2.0**-137, 3 * 2.0**-138), format="e4m3")
    assert scale_codes(got).tolist() == [[0]]
    # In units of 2^-127: 1, the smallest e4m3, half of it (a tie to zero), three quarters (rounds up).
    assert got.elements.view(np.uint8)[0, :4].tolist() == [0x38, 0x01, 0x00, 0x01]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_mx_block_with_a_special_value_is_nan_and_no_other(bad: float) -> None:
    values = np.ones((2, 64), dtype=np.float32)
    values[1, 40] = bad
    got = quantize_mx(values, format="e4m3")
    assert scale_codes(got).tolist() == [[119, 119], [119, 255]]
    assert not got.elements[1, 32:].view(np.uint8).any()
    restored = got.dequantize()
    assert np.isnan(restored[1, 32:]).all()
    assert (restored[1, :32] == 1).all()


@pytest.mark.parametrize("quantize", [quantize_mx, quantize_nvfp4])
def test_blocks_along_the_first_axis_are_those_of_the_transpose(quantize) -> None:
    values = normal((5, 96))
    along_last = quantize(values)
    along_first = quantize(np.ascontiguousarray(values.T), axis=0)
    np.testing.assert_array_equal(along_first.elements.view(np.uint8), along_last.elements.view(np.uint8).T)
    np.testing.assert_array_equal(scale_codes(along_first), scale_codes(along_last).T)
    np.testing.assert_array_equal(along_first.dequantize(), along_last.dequantize().T)


def test_mx_keeps_batch_dimensions() -> None:
    values = normal((2, 3, 64))
    got = quantize_mx(values, format="e2m3", axis=2)
    assert got.elements.shape == (2, 3, 64)
    assert scale_codes(got).shape == (2, 3, 2)
    np.testing.assert_array_equal(got.elements[1].view(np.uint8), quantize_mx(values[1], format="e2m3").elements.view(np.uint8))


@pytest.mark.parametrize("element", ["e4m3", "e5m2"])
def test_fp8_scale_and_elements(element: str) -> None:
    values = normal((16, 33))
    got = quantize_fp8(values, format=element)
    scale = np.abs(values).max() / np.float32(MAX[element])
    assert got.tensor_scale == scale
    assert got.scales is None
    want = np.clip(values / scale, -MAX[element], MAX[element]).astype(DTYPES[element])
    np.testing.assert_array_equal(got.elements.view(np.uint8), want.view(np.uint8))
    exact = want.astype(np.float64) * np.float64(scale)
    np.testing.assert_array_equal(got.dequantize(), exact.astype(np.float32))


def test_fp8_edges() -> None:
    zeros = quantize_fp8(np.zeros(3, dtype=np.float32))
    assert (float(zeros.tensor_scale), zeros.elements.view(np.uint8).tolist()) == (1.0, [0, 0, 0])
    special = quantize_fp8(np.array([np.nan, np.inf, -np.inf, 448.0, -1.0], dtype=np.float32))
    assert float(special.tensor_scale) == 1.0
    assert special.elements.view(np.uint8).tolist() == [0x7F, 0x7E, 0xFE, 0x7E, 0xB8]
    tiny = quantize_fp8(np.array([2.0**-149, -(2.0**-148)], dtype=np.float32))
    assert float(tiny.tensor_scale) == 2.0**-149
    assert tiny.dequantize().tolist() == [2.0**-149, -(2.0**-148)]
    assert quantize_fp8(np.zeros((0, 4), dtype=np.float32)).elements.shape == (0, 4)


def test_nvfp4_worked_example() -> None:
    values = padded(2688.0, -448.0, 224.0, 100.0, length=32)
    values[0, 16:20] = [12.0, -6.0, 1.0, 3.0]
    got = quantize_nvfp4(values)
    assert float(got.tensor_scale) == 1.0
    # Block maxima 2688 / 6 = 448 (0x7E) and 12 / 6 = 2 (0x40).
    assert scale_codes(got).tolist() == [[0x7E, 0x40]]
    # 224 / 448 = 0.5; 100 / 448 = 0.22 rounds to zero; 1 / 2 = 0.5; 3 / 2 = 1.5.
    assert got.dequantize()[0, :4].tolist() == [2688.0, -448.0, 224.0, 0.0]
    assert got.dequantize()[0, 16:20].tolist() == [12.0, -6.0, 1.0, 3.0]


def test_nvfp4_matches_the_slow_reading() -> None:
    rng = np.random.default_rng(7)
    values = (rng.standard_normal((24, 48)) * 2.0 ** rng.integers(-12, 1, (24, 1))).astype(np.float32)
    got = quantize_nvfp4(values)
    scale = np.abs(values).max() / np.float32(2688)
    assert got.tensor_scale == scale
    for row, block in np.ndindex(24, 3):
        part = values[row, 16 * block : 16 * block + 16]
        block_scale = min((np.abs(part).max() / np.float32(6)) / scale, np.float32(448)).astype(ml_dtypes.float8_e4m3fn)
        assert scale_codes(got)[row, block] == block_scale.view(np.uint8)
        step = block_scale.astype(np.float32) * scale
        for k, value in enumerate(part):
            wanted = 0.0 if step == 0 else min(abs(float(value / step)), 6.0)
            # Nearest, and of two equally near the one with an even code.
            nearest = min(range(8), key=lambda code: (abs(E2M1[code] - wanted), code % 2))
            stored = got.elements[row, 16 * block + k]
            assert abs(float(stored)) == E2M1[nearest]


def test_nvfp4_edges() -> None:
    zeros = quantize_nvfp4(np.zeros((1, 16), dtype=np.float32))
    assert (float(zeros.tensor_scale), scale_codes(zeros).tolist()) == (1.0, [[0]])
    values = np.zeros((3, 16), dtype=np.float32)
    values[0, :] = 2688.0
    values[1, 0] = 2.0**-20  # its scale rounds to zero
    values[2, 3] = np.inf
    got = quantize_nvfp4(values)
    assert scale_codes(got).tolist() == [[0x7E], [0x00], [0x7F]]
    assert not got.elements[1:].view(np.uint8).any()
    restored = got.dequantize()
    assert (restored[1] == 0).all()
    assert np.isnan(restored[2]).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda: quantize_fp8(np.zeros(4)), OperandTypeError, "array of float32, got float64", id="dtype"),
        pytest.param(lambda: quantize_fp8([1.0]), OperandTypeError, "array of float32, got list", id="list"),
        pytest.param(
            lambda: quantize_fp8(padded(1.0), format="e2m1"), OperandError, "no elements of e2m1; it has e4m3, e5m2", id="fp8-format"
        ),
        pytest.param(
            lambda: quantize_mx(padded(1.0), format="f16"), OperandError, "MX has no elements of f16; it has e4m3", id="mx-format"
        ),
        pytest.param(
            lambda: quantize_mx(padded(1.0), recipe="flor"), OperandError, "unknown MX recipe 'flor'; did you mean floor", id="recipe"
        ),
        pytest.param(lambda: quantize_mx(padded(1.0, length=48)), OperandError, r"multiple of the block size 32, got 48", id="mx-k"),
        pytest.param(lambda: quantize_nvfp4(padded(1.0, length=40)), OperandError, r"multiple of the block size 16, got 40", id="nvfp4-k"),
        pytest.param(lambda: quantize_mx(padded(1.0), axis=2), OperandError, "axis 2 of an array of 2 dimensions", id="axis"),
    ],
)
def test_refusals_say_what_arrived_and_what_is_allowed(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
