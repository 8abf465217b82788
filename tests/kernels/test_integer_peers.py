"""The quantizers of INT8 and INT4 beside those of libraries, where these are installed; and Transformer Engine's formulas.

Where they differ, the difference is stated here and in docs/quantizers.md.
"""

from __future__ import annotations

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mmabits.emulator.codecs import as_codes, encode
from mmabits.isa import OperandError, format_spec
from mmabits.kernels.quantize import quantize_nvfp4
from mmabits.kernels.schemes import fp8, w4a16, w8a8
from mmabits.kernels.schemes.asymmetric import quantize_affine

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own
SEED = 20260403
F32 = np.float32
Array = np.ndarray[Any, Any]


def normal(*shape: int, spread: int = 6) -> Array:
    rng = np.random.default_rng(SEED)
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-spread, spread, (shape[0], 1))).astype(F32)


# torchao --------------------------------------------------------------------------------------------------------------


def torchao(values: Array, mapping: str, low: int, high: int, *, per: int = 0) -> tuple[Array, Array, Array]:
    """Codes, scales and zero points, one for each row or for `per` of it."""
    pytest.importorskip("torchao")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine
        from torchao.quantization.quant_primitives import quantize_affine as theirs

    block, given = (1, per or values.shape[1]), torch.from_numpy(values)
    scale, zero = choose_qparams_affine(given, MappingType[mapping], block, torch.int8 if low < 0 else torch.uint8, low, high)
    codes = theirs(given, block, scale, zero, torch.int8 if low < 0 else torch.uint8, low, high)
    return codes.numpy(), scale.numpy(), zero.numpy()


def test_torchao_int8_by_rows() -> None:
    """Its scale is amax / 127.5, its codes reach -128, and it multiplies by the reciprocal; without clipping it is amax / 127 or / 128."""
    values = normal(64, 256)
    codes, scales, _ = torchao(values, "SYMMETRIC", -128, 127)
    ours = w8a8.quantize_int8(values, axis=0)
    assert np.array_equal(scales, np.abs(values).max(1) / F32(127.5))
    steps = np.abs(codes.astype(np.int64) - ours.codes)
    assert steps.max() <= 1 and 0.1 < np.mean(steps) < 0.3
    static = w8a8.quantize_int8(values, axis=0, amax=np.nextafter(scales * F32(127), F32(0)))
    assert np.abs(codes.astype(np.int64) - static.codes).max() <= 1
    _, scales, _ = torchao(values, "SYMMETRIC_NO_CLIPPING_ERR", -127, 127)
    assert np.array_equal(scales, ours.scales)


def test_torchao_asymmetric_int8() -> None:
    values = normal(64, 256) + F32(1)
    codes, scales, zeros = torchao(values, "ASYMMETRIC", 0, 255)
    ours = quantize_affine(values, axis=0)
    assert np.array_equal(scales, ours.scales) and np.array_equal(zeros.astype(np.int32), ours.zeros)
    steps = np.abs(codes.astype(np.int64) - ours.codes)
    assert steps.max() <= 1 and np.mean(steps) < 1e-3  # x (1 / scale)


# compressed-tensors ---------------------------------------------------------------------------------------------------


def compressed(values: Array, **options: Any) -> tuple[Array, Array, Array]:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils.helpers import calculate_qparams

    args = QuantizationArgs(**options)
    size = options.get("group_size") or values.shape[1]
    grouped = values.reshape(len(values), values.shape[1] // size, size)
    low, high = (torch.from_numpy(getattr(grouped, end)(-1)) for end in ("min", "max"))
    scale, zero = calculate_qparams(low, high, args)
    found = quantize(torch.from_numpy(values), scale, zero, args)
    return found.numpy(), scale.numpy(), zero.numpy()


def test_compressed_tensors_int8() -> None:
    """amax / 127.5 and codes from -128, divided; zero points between -128 and 127 for the asymmetric."""
    values = normal(64, 256)
    codes, scales, _ = compressed(values, num_bits=8, strategy="channel", symmetric=True)
    assert np.array_equal(scales[:, 0], np.abs(values).max(1) / F32(127.5)) and codes.min() == -128
    assert np.array_equal(codes, np.clip(np.rint(values / scales), -128, 127))
    moved = values + F32(1)
    codes, scales, zeros = compressed(moved, num_bits=8, strategy="channel", symmetric=False)
    ours = quantize_affine(moved, axis=0, dtype=np.int8)
    assert np.array_equal(scales[:, 0], ours.scales) and np.abs(zeros[:, 0].astype(np.int64) - ours.zeros).max() <= 1
    same = zeros[:, 0] == ours.zeros
    assert same.mean() > 0.9
    off = np.abs(codes[same].astype(np.int64) - ours.codes[same])
    assert off.max() <= 1 and off.mean() < 1e-2  # ties: it adds the zero point before it rounds


def test_compressed_tensors_int4_groups() -> None:
    """Its scales are float32 of amax / 7.5; here they are float16, and codes are of the rounded scale."""
    values = normal(24, 256)
    codes, scales, _ = compressed(values, num_bits=4, strategy="group", group_size=128, symmetric=True)
    ours = w4a16.quantize_int4(np.ascontiguousarray(values.T), group=128, symmetric=True)
    assert np.array_equal(scales.astype(np.float16), ours.scales.T)
    steps = np.abs(codes.astype(np.int64) - (ours.codes.T.astype(np.int64) - 8))
    assert steps.max() <= 1 and np.mean(steps) < 1e-2


# bitsandbytes ---------------------------------------------------------------------------------------------------------


def test_bitsandbytes_int8_rows() -> None:
    """x (127 / amax); where the row has no ties the codes are ours. Its statistics are amax, not the scale."""
    bnb = pytest.importorskip("bitsandbytes")
    values = normal(64, 256).astype(np.float16).astype(F32)
    codes, amax, _ = bnb.functional.int8_vectorwise_quant(torch.from_numpy(values))
    ours = w8a8.quantize_int8(values, axis=0)
    assert np.array_equal(amax.numpy(), np.abs(values).max(1))
    steps = np.abs(codes.numpy().astype(np.int64) - ours.codes)
    assert steps.max() <= 1 and np.mean(steps) < 1e-3


def test_bitsandbytes_outliers() -> None:
    """A column is an outlier where a magnitude reaches the threshold, as here; amax leaves out the outliers alone, here their columns."""
    bnb = pytest.importorskip("bitsandbytes")
    values = np.random.default_rng(SEED).standard_normal((16, 64)).astype(np.float16)
    values[3, 7], values[5, 9] = 8, -6
    codes, amax, columns = bnb.functional.int8_vectorwise_quant(torch.from_numpy(values), threshold=6.0)
    ours = w8a8.split_outliers(values)
    assert columns.tolist() == ours.columns.tolist() == [7, 9]
    assert not codes.numpy()[:, [7, 9]].any() and not ours.regular.codes[:, [7, 9]].any()
    with_columns, without = (np.where(np.abs(each) < 6, np.abs(each), 0).max(1) for each in (values, np.delete(values, [7, 9], 1)))
    assert np.array_equal(amax.numpy(), with_columns.astype(F32))
    assert np.array_equal(ours.regular.scales, without.astype(F32) / F32(127))


def test_bitsandbytes_scales_sums_by_a_rounded_constant() -> None:
    """sum * (row * column) * 6.200124e-05 in place of both scales one after another."""
    bnb = pytest.importorskip("bitsandbytes")
    rng = np.random.default_rng(SEED)
    sums = rng.integers(-(2**20), 2**20, (16, 24)).astype(np.int32)
    rows, columns = rng.random(16).astype(F32), rng.random(24).astype(F32)
    there = bnb.functional.int8_mm_dequant(torch.from_numpy(sums), torch.from_numpy(rows), torch.from_numpy(columns))
    ours = w8a8.scaled(sums, rows / F32(127), columns / F32(127))
    assert np.abs(there.float().numpy() / ours - 1).max() < 2**-10  # its result is f16


# Hard rows ------------------------------------------------------------------------------------------------------------

LINE = np.linspace(-1, 1, 16).astype(F32)
HARD = {
    "zeros": np.zeros(16, F32), "subnormal": (LINE * 1e-39).astype(F32), "NaN": np.append(LINE[:15], F32(np.nan)),
    "infinity": np.append(LINE[:15], F32(np.inf)), "outlier": np.append(LINE[:15], F32(1e30)),
}  # fmt: skip


def bitsandbytes(values: Array) -> tuple[Array, Array]:
    codes, amax, _ = pytest.importorskip("bitsandbytes").functional.int8_vectorwise_quant(torch.from_numpy(values))
    return codes.numpy(), amax.numpy()


@pytest.mark.parametrize("name", HARD)
def test_hard_rows_in_int8(name: str) -> None:
    """What docs/quantizers.md says of them."""
    row = HARD[name][None]
    ao, _, _ = torchao(row, "SYMMETRIC_NO_CLIPPING_ERR", -127, 127)
    ct, ct_scale, _ = compressed(row, num_bits=8, strategy="channel", symmetric=True)
    bnb, _ = bitsandbytes(row)
    if name in ("NaN", "infinity"):
        with pytest.raises(OperandError, match="values must be finite"):
            w8a8.quantize_int8(row, axis=0)
        assert not ao.any() and not bnb.any()  # codes of nothing, without a word
        assert np.isnan(ct[0, 15]) and np.isnan(ct[0, 0]) == (name == "NaN")
        return
    ours = w8a8.quantize_int8(row, axis=0)
    if name == "zeros":
        assert not any(codes.any() for codes in (ours.codes, ao, ct, bnb))
        assert ours.scales[0] == 1 and ct_scale[0, 0] == F32(2) ** -23
    elif name == "subnormal":
        assert ours.codes[0, [0, 15]].tolist() == [-127, 127] and ct[0, [0, 15]].tolist() == [-128, 127]
        assert not ao.any() and not bnb.any()
    else:
        for codes in (ours.codes, ao, ct, bnb):
            assert codes[0, 15] == 127 and not codes[0, :15].any()


def test_no_rows_in_int8() -> None:
    nothing = np.zeros((0, 16), F32)
    assert w8a8.quantize_int8(nothing, axis=0).codes.shape == quantize_affine(nothing, axis=0).codes.shape == (0, 16)
    assert compressed(nothing, num_bits=8, strategy="channel", symmetric=True)[0].shape == bitsandbytes(nothing)[0].shape == (0, 16)
    with pytest.raises(TypeError):
        torchao(nothing, "ASYMMETRIC", 0, 255)


# Transformer Engine, by its formulas -----------------------------------------------------------------------------------


@pytest.mark.parametrize("power_of_two", [False, True])
def test_transformer_engines_current_scaling(power_of_two: bool) -> None:
    """`compute_scale_from_amax`: max / amax, its fraction cut off for powers of two; x times that, and its reciprocal kept."""
    values = normal(64, 256)
    amax = np.abs(values).max(1, keepdims=True)
    multiplier = F32(448) / amax
    if power_of_two:
        multiplier = (multiplier.view(np.uint32) & np.uint32(0xFF800000)).view(F32)
    codes = encode(values * multiplier, "e4m3", satfinite=True)
    ours = fp8.quantize(values, per="row", recipe="power-of-two" if power_of_two else "multiply")
    assert np.array_equal(as_codes(ours.elements, format_spec("e4m3")), codes) and np.array_equal(ours.scales, F32(1) / multiplier)


def test_transformer_engines_nvfp4() -> None:
    """Its block scale is e4m3(amax (S / 6)) with S = 2688 / amax of the tensor, and elements are multiplied by 1 / (scale (1 / S))."""
    values = np.random.default_rng(SEED).standard_normal((256, 1024)).astype(F32)
    whole = F32(2688) / np.abs(values).max()
    blocks = values.reshape(256, 64, 16)
    scales = (np.abs(blocks).max(-1) * (whole * (F32(1) / F32(6)))).astype(ml_dtypes.float8_e4m3fn)
    by = F32(1) / (scales.astype(F32) * (F32(1) / whole))
    codes = encode((blocks * by[..., None]).reshape(values.shape), "e2m1", satfinite=True)
    ours = quantize_nvfp4(values, axis=-1)
    assert ours.scales is not None
    assert abs(float(ours.tensor_scale) * float(whole) - 1) <= 2**-23
    differ = np.asarray(ours.scales).astype(ml_dtypes.float8_e4m3fn).view(np.uint8) != scales.view(np.uint8)
    assert differ.mean() < 1e-3
    other = as_codes(ours.elements, format_spec("e2m1")) != codes
    assert other[~np.repeat(differ, 16, axis=1)].mean() < 1e-3
