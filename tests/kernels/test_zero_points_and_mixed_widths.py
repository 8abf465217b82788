"""Asymmetric INT8, W8A16, W4A8 with FP8 activations, W4A4 and MXFP8 x MXFP4 against plain readings of their definitions."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from mmabits.emulator.engine.fma import fma
from mmabits.isa import UnsupportedInstruction
from mmabits.isa.errors import OperandError, OperandTypeError
from mmabits.kernels.quantize import quantize_mx
from mmabits.kernels.schemes import fp8, mxfp6_mxfp4, mxfp8, w4a4, w4a8_fp8, w8a8, w8a16
from mmabits.kernels.schemes.asymmetric import (
    AffineMatrix,
    affine_parameters,
    asymmetric_matmul,
    largest_k,
    quantize_affine,
)
from mmabits.kernels.schemes.dots import Dots

SEED = 20260301
F32 = np.float32
ARCHES = ("sm_80", "sm_90a", "sm_100a", "sm_120a")


def normal(*shape: int, seed: int = SEED, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-8, 8, (shape[0], 1)) + offset).astype(F32)


def hard_rows() -> np.ndarray:
    """Zeros, subnormals, ties, one sign alone, an outlier, the largest numbers that have a range."""
    outlier = np.linspace(-1, 1, 16)
    outlier[7] = 1e30
    rows = [
        np.zeros(16), np.full(16, -0.0), np.full(16, -1e-45), np.full(16, 1e-45), np.r_[127.5, np.arange(15) - 127.5], np.arange(16) + 3.0,
        -np.arange(16) - 3.0, np.r_[-1.5e38, 1.5e38, np.zeros(14)], np.r_[1e-38, np.linspace(-1e-38, 1e-38, 15)], outlier,
    ]  # fmt: skip
    return np.stack(rows).astype(F32)


# Asymmetric INT8 ------------------------------------------------------------------------------------------------------


def by_hand(values: list[float], least: int) -> tuple[np.float32, int, list[int]]:
    """One row, by Python's numbers and one rounding after another."""
    low, high = min(min(values), 0.0), max(max(values), 0.0)
    with np.errstate(all="ignore"):
        scale = F32(F32(high) - F32(low)) / F32(255)
    scale = scale if scale > 0 else F32(1)

    def steps(x: float) -> int:
        with np.errstate(all="ignore"):
            return round(Fraction(float(F32(x) / scale)))  # ties to even

    zero = min(max(least - steps(low), least), least + 255)
    return scale, zero, [min(max(steps(x) + zero, least), least + 255) for x in values]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("values", [normal(12, 40, offset=3), hard_rows()], ids=["random", "hard"])
def test_codes_and_zero_points_by_hand(values: np.ndarray, dtype: type) -> None:
    for axis, given in ((0, values), (1, values.T.copy())):
        found = quantize_affine(given, axis=axis, dtype=dtype)
        for row, line in enumerate(values.tolist()):
            scale, zero, codes = by_hand(line, np.iinfo(dtype).min)
            assert (found.scales[row], found.zeros[row]) == (scale, zero)
            assert (found.codes[row] if axis == 0 else found.codes[:, row]).tolist() == codes


def test_parameters_are_those_of_torchs_observers() -> None:
    """Where their least scale, 2^-23, does not come in between."""
    pytest.importorskip("torch")
    import torch
    from torch.ao.quantization.observer import PerChannelMinMaxObserver

    values = normal(64, 50, offset=1)
    observer = PerChannelMinMaxObserver(ch_axis=0, dtype=torch.quint8, qscheme=torch.per_channel_affine)
    observer(torch.from_numpy(values))
    scales, zeros = observer.calculate_qparams()
    found = quantize_affine(values, axis=0)
    assert np.array_equal(found.scales, scales.numpy()) and np.array_equal(found.zeros, zeros.numpy())
    there = torch.fake_quantize_per_channel_affine(torch.from_numpy(values), scales, zeros, 0, 0, 255).numpy()
    steps = np.abs(there - found.dequantize()) / found.scales[:, None]
    assert steps.max() < 1.001 and np.mean(steps > 0.5) < 1e-3  # it multiplies by 1 / scale


@pytest.mark.parametrize("signed", [False, True], ids=["u8", "s8"])
@pytest.mark.parametrize("zeros_of_weights", [False, True])
def test_product_is_the_exact_integer_of_the_differences(signed: bool, zeros_of_weights: bool) -> None:
    x = quantize_affine(normal(9, 300, offset=2), axis=0, dtype=np.int8 if signed else np.uint8)
    plain = normal(300, 11, seed=1, offset=-0.5)
    w = quantize_affine(plain, axis=1, dtype=np.int8) if zeros_of_weights else w8a8.quantize_int8(plain, axis=1)
    right = w.codes.astype(np.int64) - (w.zeros if isinstance(w, AffineMatrix) else 0)
    sums = (x.codes.astype(np.int64) - x.zeros[:, None]) @ right
    wanted = (sums.astype(F32) * x.scales[:, None]) * w.scales
    for arch in ARCHES:
        assert np.array_equal(asymmetric_matmul(x, w, arch=arch), wanted)
    assert np.array_equal(asymmetric_matmul(x.as_signed(), w, arch="sm_90a"), wanted)


def test_the_largest_sums_are_exact_and_larger_ones_refused() -> None:
    """Every product 255 * 255: the uncorrected sums wrap, the corrected one does not."""
    k = largest_k(True)
    assert (k, largest_k(False)) == (33025, 65793)
    one = np.ones(1, F32)

    def pair(size: int) -> tuple[AffineMatrix, AffineMatrix]:
        x = AffineMatrix(codes=np.full((1, size), 255, np.uint8), scales=one, zeros=np.zeros(1, np.int32), axis=0)
        return x, AffineMatrix(codes=np.full((size, 1), 127, np.int8), scales=one, zeros=np.full(1, -128, np.int32), axis=1)

    assert asymmetric_matmul(*pair(k), arch="sm_80")[0, 0] == F32(255 * 255 * k)
    with pytest.raises(OperandError, match="K must be at most 33025 for weights with zero points, or sums may leave s32; got 33026"):
        asymmetric_matmul(*pair(k + 1), arch="sm_80")


def test_one_sided_activations_lose_less_than_symmetric_ones() -> None:
    x = np.abs(normal(30, 64)) + F32(0.1)
    low, high = np.zeros(1, F32), np.full(1, x.max(), F32)
    for affine, symmetric in (
        (quantize_affine(x, axis=0), w8a8.quantize_int8(x, axis=0)),
        (quantize_affine(x, axis=0, low=low, high=high), w8a8.quantize_int8(x, axis=0, amax=high)),
    ):
        errors = [np.square(each.dequantize() - x).mean() for each in (affine, symmetric)]
        assert errors[0] < 0.4 * errors[1]
    assert (quantize_affine(x, axis=0, low=low, high=high).zeros == 0).all()


# W8A16 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int8", "e4m3"])
@pytest.mark.parametrize("group", [0, 32])
def test_eight_bit_weights_by_hand(kind: str, group: int) -> None:
    w = normal(64, 10, seed=5)
    w[:, 3], w[:32, 4] = 0, 1e-9
    found = w8a16.quantize_w8(w, kind=kind, group=group)
    largest = F32(127 if kind == "int8" else 448)
    for n in range(10):
        for start in range(0, 64, group or 64):
            part = w[start : start + (group or 64), n]
            scale = np.float16(max(np.abs(part).max() / largest, F32(2**-24))) if part.any() else np.float16(1)
            assert found.scales[start // group if group else 0, n] == scale
            quotients = part / F32(scale)
            codes = np.clip(np.rint(quotients), -127, 127) if kind == "int8" else np.clip(quotients, -448, 448)
            assert np.array_equal(found.codes[start : start + len(part), n], codes.astype(w8a16.KINDS[kind]))
    assert np.array_equal(w8a16.unpack_codes(found.pack(), kind).view(np.uint8), found.codes.view(np.uint8))
    assert np.abs(found.dequantize() - w).max() <= 0.04 * np.abs(w).max()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_eight_bit_code_is_exact_in_sixteen_bits(dtype: type) -> None:
    codes = np.arange(256, dtype=np.uint8)
    finite = codes[np.isfinite(codes.view(ml_dtypes.float8_e4m3fn).astype(F32))]
    for given in (codes.view(np.int8), finite.view(ml_dtypes.float8_e4m3fn)):
        w = w8a16.Weights8(codes=given[:, None], scales=np.ones((1, 1), np.float16))
        assert np.array_equal(w.operand(dtype).astype(F32), given.astype(F32)[:, None])


def test_triton_unpacks_every_e4m3_code() -> None:
    """NaN too, which the launcher does not look for."""
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("triton")
    from mmabits import emulate
    from mmabits.kernels.triton.w8a16 import w8a16_matmul

    codes = np.arange(256, dtype=np.uint8)
    words = torch.from_numpy(codes.reshape(64, 4).copy().view(np.int32))  # (64, 1): K is all codes
    with emulate("sm_80", frameworks=["triton"], triton="interpreted"):
        got = w8a16_matmul(torch.eye(256, dtype=torch.float16), words, torch.ones(1, 1, dtype=torch.float16), kind="e4m3").numpy()[:, 0]
    wanted = codes.view(ml_dtypes.float8_e4m3fn).astype(F32)
    finite = np.isfinite(wanted)
    assert np.isnan(got).all()  # each row holds zero times NaN
    words[31, 0], words[63, 0] = 0, 0  # codes 124 to 127 and 252 to 255
    with emulate("sm_80", frameworks=["triton"], triton="interpreted"):
        got = w8a16_matmul(torch.eye(256, dtype=torch.float16), words, torch.ones(1, 1, dtype=torch.float16), kind="e4m3").numpy()[:, 0]
    kept = finite & (codes % 128 < 124)
    assert np.array_equal(got[kept], wanted[kept])


# W4A8 with FP8 activations --------------------------------------------------------------------------------------------


def test_int4_codes_are_e4m3_bits() -> None:
    codes = np.arange(-8, 8, dtype=np.int8)[:, None]
    w = w4a8_fp8.W4A8Fp8Weights(codes=codes, scales=np.ones((1, 1), np.float16), group=0)
    assert np.array_equal(w.e4m3().astype(F32) * 512, codes.astype(F32))
    assert w.e4m3().view(np.uint8)[0, 0] == 0x88 and w.kernel_scales[0, 0] == 512
    words = np.concatenate([codes, codes])
    assert np.array_equal(w4a8_fp8.unpack_codes(w4a8_fp8.W4A8Fp8Weights(codes=words, scales=w.scales, group=0).pack()), words)


@pytest.mark.parametrize("arch", ["sm_89", "sm_100a"])
def test_groups_are_added_by_fused_multiply_adds(arch: str) -> None:
    x = fp8.quantize(normal(6, 128), per="row")
    w = w4a8_fp8.quantize_w4a8_fp8(normal(8, 128, seed=3).T.copy(), group=64)
    parts = [Dots(arch=arch)(x.elements[:, k : k + 64].copy(), w.e4m3()[k : k + 64]) for k in (0, 64)]
    first = parts[0] * w.kernel_scales[0].astype(F32)
    scales = np.broadcast_to(w.kernel_scales[1].astype(F32), first.shape)
    assert np.array_equal(w4a8_fp8.w4a8_fp8_matmul(x, w, arch=arch), fma(parts[1], scales, first) * x.scales)
    error = np.abs(w4a8_fp8.w4a8_fp8_matmul(x, w, arch=arch) - x.dequantize() @ w.dequantize()).max()
    assert error <= 1e-2 * np.abs(x.dequantize() @ w.dequantize()).max()


# W4A4 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHES)
def test_w4a4_is_the_exact_integer_by_s4_and_by_s8(arch: str) -> None:
    x, w = w4a4.quantize_int4_symmetric(normal(9, 128), axis=0, clip=0.9), w4a4.quantize_int4_symmetric(normal(128, 11, seed=1), axis=1)
    wanted = ((x.codes.astype(np.int64) @ w.codes).astype(F32) * x.scales[:, None]) * w.scales
    for through in (None, "s4", "s8"):
        assert np.array_equal(w4a4.w4a4_matmul(x, w, arch=arch, through=through), wanted)


def test_int4_codes_by_hand() -> None:
    values = np.array([[7.0, 0.5, 1.5, -2.5, -7.0, 6.4], [0, 0, 0, 0, 0, 0]], F32)
    found = w4a4.quantize_int4_symmetric(values, axis=0)
    assert found.codes.tolist() == [[7, 0, 2, -2, -7, 6], [0] * 6] and found.scales.tolist() == [1, 1]
    assert w4a4.quantize_int4_symmetric(values, axis=0, clip=0.5).codes[0].tolist() == [7, 1, 3, -5, -7, 7]
    assert found.pack()[0].tolist() == [0x07, 0xE2, 0x69]
    every = np.stack([np.arange(-8, 8), np.arange(7, -9, -1)]).astype(np.int8)
    for axis, codes in ((0, every), (1, every.T.copy())):
        held = w4a4.Int4Matrix(codes=codes, scales=np.ones(2, F32), axis=axis)
        assert np.array_equal(w4a4.unpack_codes(held.pack(), axis=axis), codes)


# MXFP8 x MXFP4 --------------------------------------------------------------------------------------------------------


def test_mixed_block_scales() -> None:
    x, w = normal(20, 96), normal(96, 16, seed=8)
    x[2, 5], w[40, 3] = np.nan, np.inf
    a, b = mxfp8.quantize_rows(x), mxfp6_mxfp4.quantize_columns(w)
    exact = quantize_mx(x).dequantize().astype(np.float64) @ quantize_mx(w, format="e2m1", axis=0).dequantize().astype(np.float64)
    for arch in ("sm_90a", "sm_100a", "sm_120a"):
        found = mxfp6_mxfp4.mx_matmul(a, b, arch=arch)
        assert np.isnan(found[2]).all() and np.isnan(found[:, 3]).all() and np.array_equal(np.isnan(found), np.isnan(exact))
        kept = np.isfinite(exact)
        assert np.abs(found - exact)[kept].max() <= 1e-3 * np.abs(exact[kept]).max()
    with pytest.raises(UnsupportedInstruction):
        mxfp6_mxfp4.mx_matmul(a, b, arch="sm_90a", through="block-scaled")


# Refusals -------------------------------------------------------------------------------------------------------------


def eight(**changes: object) -> w8a16.Weights8:
    return w8a16.Weights8(**{"codes": np.zeros((4, 2), np.int8), "scales": np.ones((1, 2), np.float16), **changes})  # type: ignore[arg-type]


ONE = np.ones(1, F32)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: quantize_affine(normal(4, 4).astype(np.float64), axis=0), OperandTypeError, "float32, got dtype float64"),
        (lambda: quantize_affine(normal(4, 4), axis=2), OperandError, r"0 \(rows\) or 1 \(columns\), got 2"),
        (lambda: quantize_affine(normal(4, 4), axis=0, dtype=np.int16), OperandError, "uint8 or int8, got int16"),
        (lambda: quantize_affine(np.full((2, 2), np.nan, F32), axis=0), OperandError, "finite, got nan"),
        (lambda: quantize_affine(np.array([[-3e38, 3e38]], F32), axis=0), OperandError, r"\(high - low\) / 255 must be finite"),
        (lambda: quantize_affine(normal(4, 4), axis=0, low=ONE), OperandError, "low and high are given together"),
        (lambda: quantize_affine(normal(4, 4), axis=0, low=ONE, high=np.ones(3, F32)), OperandError, r"high must .* \(4,\) or \(1,\)"),
        (lambda: affine_parameters(ONE, -ONE), OperandError, "low must not be above high"),
        (lambda: AffineMatrix(codes=np.zeros((1, 2), np.uint8), scales=ONE, zeros=np.full(1, -1, np.int32), axis=0), OperandError,
         "zero points of uint8 codes are 0 to 255, got -1"),
        (lambda: asymmetric_matmul(quantize_affine(normal(4, 4), axis=0), quantize_affine(normal(4, 4), axis=0), arch="sm_80"),
         OperandError, "axes 0 and 0"),
        (lambda: w8a16.quantize_w8(normal(4, 4), kind="e5m2"), OperandError, "unknown kind of 8-bit weights 'e5m2'"),
        (lambda: w8a16.quantize_w8(np.full((4, 4), 3e38, F32)), OperandError, "for which there is no f16 scale"),
        (lambda: w8a16.quantize_w8(normal(4, 4), group=3), OperandError, "group size 3, got 4"),
        (lambda: w8a16.quantize_w8(normal(4, 4), group=-4), OperandError, "group sizes are 0 to"),
        (lambda: eight(scales=np.full((1, 2), np.inf, np.float16)), OperandError, "scales must be finite"),
        (lambda: eight(codes=np.full((4, 2), 127, np.uint8).view(ml_dtypes.float8_e4m3fn)), OperandError, "codes must be finite"),
        (lambda: eight().operand(np.float32), OperandError, "float16 or bfloat16, got float32"),
        (lambda: w8a16.w8a16_matmul(np.zeros((2, 5), np.float16), eight(), arch="sm_80"), OperandError, "K = 5, the weights have K = 4"),
        (lambda: w4a8_fp8.quantize_w4a8_fp8(np.full((128, 1), 1e4, F32)), OperandError, "scales times 512 must be finite"),
        (lambda: w4a8_fp8.w4a8_fp8_matmul(fp8.quantize(normal(2, 64)), w4a8_fp8.quantize_w4a8_fp8(normal(128, 2)), arch="sm_89"),
         OperandError, r"\(M, 128\) of float8_e4m3fn, got \(2, 64\)"),
        (lambda: w4a8_fp8.w4a8_fp8_matmul(fp8.quantize(normal(2, 128), per="column"), w4a8_fp8.quantize_w4a8_fp8(normal(128, 2)),
                                          arch="sm_89"), OperandError, r"\(2, 1\) or \(1, 1\), got \(1, 128\)"),
        (lambda: w4a4.quantize_int4_symmetric(normal(2, 4), axis=0, clip=0), OperandError, "clip must be a number above 0"),
        (lambda: w4a4.Int4Matrix(codes=np.full((2, 4), 8, np.int8), scales=np.ones(2, F32), axis=0), OperandError, "-8 to 7, got 8"),
        (lambda: w4a4.quantize_int4_symmetric(normal(2, 5), axis=0).pack(), OperandError, "K must be a multiple of the codes of a byte, 2"),
        (lambda: w4a4.w4a4_matmul(w4a4.quantize_int4_symmetric(normal(2, 4), axis=0), w4a4.quantize_int4_symmetric(normal(4, 2), axis=1),
                                  arch="sm_80", through="s2"), OperandError, "unknown way 's2'"),
    ],
)  # fmt: skip
def test_wrong_operands(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize("size", [(0, 16, 128), (8, 0, 128), (8, 16, 0), (0, 0, 0)], ids=lambda size: "x".join(map(str, size)))
def test_products_of_nothing(size: tuple[int, int, int]) -> None:
    m, n, k = size
    x, w = normal(max(m, 1), k)[:m], normal(max(k, 1), n)[:k]
    affine = quantize_affine(x, axis=0), quantize_affine(w, axis=1, dtype=np.int8)
    four = w4a4.quantize_int4_symmetric(x, axis=0), w4a4.quantize_int4_symmetric(w, axis=1)
    found = [asymmetric_matmul(*affine, arch="sm_90a"), w4a4.w4a4_matmul(*four, arch="sm_90a")]
    for group in (0, 64):
        found += [w8a16.w8a16_matmul(x.astype(np.float16), w8a16.quantize_w8(w, group=group), arch="sm_90a")]
        weights = w4a8_fp8.quantize_w4a8_fp8(w, group=group)
        found += [w4a8_fp8.w4a8_fp8_matmul(fp8.quantize(x, per="row"), weights, arch="sm_90a")]
    for result in found:
        assert result.shape == (m, n) and result.dtype == F32 and not result.any()
