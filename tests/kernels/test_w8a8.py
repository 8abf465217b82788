"""W8A8, SmoothQuant, LLM.int8() and W4A8 against plain readings of their definitions."""

from fractions import Fraction

import numpy as np
import pytest

import mmabits
from mmabits.isa.errors import OperandError, OperandTypeError
from mmabits.kernels.schemes.w4a8 import W4A8Weights, quantize_w4a8, unpack_codes, w4a8_matmul
from mmabits.kernels.schemes.w8a8 import (
    Int8Matrix,
    llm_int8_matmul,
    quantize_int8,
    smooth,
    smoothing_scales,
    split_outliers,
    w8a8_matmul,
)

SEED = 20260115


def normal(*shape: int, seed: int = SEED) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-8, 8, (shape[0], 1))).astype(np.float32)


def rows(count: int) -> Int8Matrix:
    return quantize_int8(normal(count, 4), axis=0)


def adversarial() -> np.ndarray:
    rows = [
        np.zeros(16), np.full(16, -1e-45), np.r_[127.0, np.arange(15) + 0.5], np.r_[-127.0, -np.arange(15) - 0.5],
        np.full(16, 3e38), np.r_[1e-38, np.linspace(-1e-38, 1e-38, 15)], np.linspace(-1, 1, 16),
    ]  # fmt: skip
    return np.stack(rows).astype(np.float32)


# INT8 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("values", [normal(24, 40), adversarial()], ids=["random", "adversarial"])
def test_int8_is_what_torch_makes_of_the_recipe(values: np.ndarray, axis: int) -> None:
    torch = pytest.importorskip("torch")
    got = quantize_int8(values, axis=axis)
    x = torch.from_numpy(values)
    scale = x.abs().amax(1 - axis, keepdim=True) / 127
    scale = torch.where(scale > 0, scale, 1.0)
    codes = (x / scale).round().clamp(-127, 127).to(torch.int8)
    assert np.array_equal(got.scales, scale.reshape(-1).numpy())
    assert np.array_equal(got.codes, codes.numpy())


def test_ties_go_to_even_and_the_largest_is_127() -> None:
    codes = quantize_int8(adversarial(), axis=0).codes
    assert codes[2].tolist() == [127, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14]
    assert codes[3].tolist() == (-codes[2]).tolist()
    assert np.abs(codes[4]).tolist() == [127] * 16


def test_static_scales_saturate() -> None:
    got = quantize_int8(np.array([[1.0, -5.0, 2.0]], np.float32), axis=0, amax=np.array([2.0], np.float32))
    assert got.codes.tolist() == [[64, -127, 127]] and got.scales.tolist() == [np.float32(2) / np.float32(127)]


def test_product_is_the_exact_integer_scaled_twice() -> None:
    x, w = quantize_int8(normal(9, 300), axis=0), quantize_int8(normal(300, 11, seed=1), axis=1)
    sums = x.codes.astype(np.int64) @ w.codes.astype(np.int64)
    wanted = np.empty((9, 11), np.float32)
    for i in range(9):
        for j in range(11):
            wanted[i, j] = np.float32(np.float32(np.float32(sums[i, j]) * x.scales[i]) * w.scales[j])
    for arch in ("sm_80", "sm_90a", "sm_100a"):
        assert np.array_equal(w8a8_matmul(x, w, arch=arch), wanted)


# SmoothQuant ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_smoothing_scales(alpha: float) -> None:
    w, amax = normal(12, 6), np.abs(normal(12, 1, seed=4))[:, 0]
    wanted = [max(float(amax[k]) ** alpha / max(float(np.abs(w[k]).max()), 1e-5) ** (1 - alpha), 1e-5) for k in range(12)]
    assert np.allclose(smoothing_scales(amax, w, alpha=alpha), wanted, rtol=1e-7)


def test_smoothing_balances_and_keeps_the_product() -> None:
    rng = np.random.default_rng(SEED)
    x, w = rng.standard_normal((30, 64)).astype(np.float32), rng.standard_normal((64, 16)).astype(np.float32)
    x[:, 5] *= 100
    factors = smoothing_scales(np.abs(x).max(axis=0), w)
    smoothed, scaled = smooth(x, w, factors)
    assert np.allclose(np.abs(smoothed).max(axis=0), np.abs(scaled).max(axis=1), rtol=1e-5)
    exact = x.astype(np.float64) @ w

    def error(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(w8a8_matmul(quantize_int8(a, axis=0), quantize_int8(b, axis=1), arch="sm_90a") - exact).mean())

    assert error(smoothed, scaled) < 0.3 * error(x, w)


# LLM.int8() -----------------------------------------------------------------------------------------------------------


def outliers() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(SEED)
    x = np.clip(rng.standard_normal((20, 64)), -5.9, 5.9).astype(np.float16)
    x[3, 10], x[7, 50], x[0, 50], x[9, 63] = 6.0, -30.0, 25.0, 5.996
    return x, rng.standard_normal((64, 16)).astype(np.float32)


def test_outlier_columns() -> None:
    x, _ = outliers()
    got = split_outliers(x)
    assert got.columns.tolist() == [10, 50]
    assert np.array_equal(got.outliers, x[:, [10, 50]])
    assert not got.regular.codes[:, [10, 50]].any()
    rest = np.delete(x.astype(np.float32), [10, 50], axis=1)
    assert np.array_equal(got.regular.scales, np.abs(rest).max(axis=1) / np.float32(127))
    assert split_outliers(x, threshold=40.0).columns.size == 0


def test_llm_int8_is_the_sum_of_two_products() -> None:
    x, w = outliers()
    mixed, quantized = split_outliers(x), quantize_int8(w, axis=1)
    w16 = w.astype(np.float16)
    got = llm_int8_matmul(mixed, w16, quantized, arch="sm_90a")
    f16 = mmabits.gemm(x[:, [10, 50]].copy(), w16[[10, 50]], instruction="wgmma", arch="sm_90a")
    assert np.array_equal(got, w8a8_matmul(mixed.regular, quantized, arch="sm_90a") + f16)
    exact = x.astype(np.float64) @ w
    plain = w8a8_matmul(quantize_int8(x.astype(np.float32), axis=0), quantized, arch="sm_90a")
    assert np.abs(got - exact).max() < 0.5 * np.abs(plain - exact).max()
    none = split_outliers(x, threshold=40.0)
    assert np.array_equal(llm_int8_matmul(none, w16, quantized, arch="sm_90a"), w8a8_matmul(none.regular, quantized, arch="sm_90a"))


# W4A8 -----------------------------------------------------------------------------------------------------------------


def test_w4a8_per_channel() -> None:
    w = normal(64, 8).T.copy().T
    got = quantize_w4a8(w, group=0)
    for n in range(8):
        scale = np.float32(np.abs(w[:, n]).max()) / np.float32(7)
        assert got.channel_scales[n] == scale
        assert got.codes[:, n].tolist() == [int(np.rint(value / scale)) for value in w[:, n]]
    assert np.array_equal(got.int8(), got.codes * 16)
    assert np.array_equal(got.output_scales * 16, got.channel_scales)


def test_w4a8_per_group() -> None:
    w = normal(8, 64).T.copy()
    got = quantize_w4a8(w, group=16)
    int8 = quantize_int8(w, axis=1)
    assert np.array_equal(got.channel_scales, int8.scales)
    for g in range(4):
        for n in range(8):
            block = int8.codes[16 * g : 16 * g + 16, n].astype(np.float32)
            scale = np.float16(np.abs(block).max() / np.float32(7)) if block.any() else np.float16(1)
            assert got.group_scales[g, n] == scale
            assert got.codes[16 * g : 16 * g + 16, n].tolist() == np.clip(np.rint(block / np.float32(scale)), -7, 7).tolist()


def test_int4_becomes_int8_by_one_f16_product_and_round_half_even() -> None:
    """Every code with every f16 scale a group can have, in exact fractions."""
    scales = np.arange(np.float16(18.14).view(np.uint16) + 1, dtype=np.uint16).view(np.float16)
    codes = np.repeat(np.arange(-7, 8, dtype=np.int8), 1)
    w = W4A8Weights(
        codes=np.repeat(codes[:, None], scales.size, axis=1), channel_scales=np.ones(scales.size, np.float32),
        group_scales=np.repeat(scales[None], 15, axis=0), group=1,
    )  # fmt: skip
    got = w.int8()
    rng = np.random.default_rng(SEED)
    for column in [*range(20), *rng.integers(0, scales.size, 3000).tolist(), *range(scales.size - 200, scales.size)]:
        for row, code in enumerate(range(-7, 8)):
            product = np.float16(float(code) * float(scales[column]))
            assert got[row, column] == round(Fraction(float(product))), (code, scales[column])
    assert np.abs(got).max() == 127


def test_w4a8_packing_by_hand() -> None:
    codes = np.array([[1, -1, 7, -7, 0, 2, -2, 3]], np.int8).T
    w = W4A8Weights(codes=codes, channel_scales=np.ones(1, np.float32))
    assert w.pack().view(np.uint32)[0, 0] == 0x3E2097F1
    assert np.array_equal(unpack_codes(w.pack()), codes)


@pytest.mark.parametrize("group", [0, 64])
def test_w4a8_product(group: int) -> None:
    x, w = quantize_int8(normal(6, 128), axis=0), quantize_w4a8(normal(128, 8, seed=3), group=group)
    sums = x.codes.astype(np.int64) @ w.int8().astype(np.int64)
    wanted = (sums.astype(np.float32) * x.scales[:, None]) * w.output_scales[None]
    assert np.array_equal(w4a8_matmul(x, w, arch="sm_100a"), wanted)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: quantize_int8(normal(4, 4).astype(np.float64), axis=0), OperandTypeError, "float32, got dtype float64"),
        (lambda: quantize_int8(normal(4, 4), axis=2), OperandError, r"0 \(rows\) or 1 \(columns\), got 2"),
        (lambda: quantize_int8(np.full((2, 2), np.inf, np.float32), axis=0), OperandError, "finite, got inf"),
        (lambda: quantize_int8(normal(4, 4), axis=0, amax=np.ones(3, np.float32)), OperandError, r"\(4,\) or \(1,\), got \(3,\)"),
        (lambda: smoothing_scales(np.ones(4, np.float32), normal(5, 4)), OperandError, r"\(5,\), got \(4,\)"),
        (lambda: smoothing_scales(np.ones(5, np.float32), normal(5, 4), alpha=2), OperandError, "0 to 1, got 2"),
        (lambda: w8a8_matmul(rows(4), quantize_int8(normal(5, 4), axis=1), arch="sm_80"), OperandError, "same K"),
        (lambda: w8a8_matmul(rows(4), rows(4), arch="sm_80"), OperandError, "axes 0 and 0"),
        (lambda: split_outliers(normal(4, 4)), OperandTypeError, "float16, got dtype float32"),
        (lambda: quantize_w4a8(normal(100, 4)), OperandError, "group size 128, got 100"),
        (lambda: W4A8Weights(codes=np.full((4, 1), -8, np.int8), channel_scales=np.ones(1, np.float32)), OperandError, "-7 to 7, got -8"),
        (lambda: W4A8Weights(codes=np.zeros((4, 1), np.int8), channel_scales=np.ones(1, np.float32), group=4,
                             group_scales=np.full((1, 1), 20, np.float16)), OperandError, "127 / 7"),
        (lambda: Int8Matrix(codes=np.zeros((4, 3), np.int8), scales=np.ones(3, np.float32), axis=0), OperandError, r"\(4,\), got \(3,\)"),
    ],
)  # fmt: skip
def test_wrong_operands(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()
