"""Magnitudes down to the smallest float32 in every recipe, and what quantizers, packers and matrices refuse to carry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mmabits.isa import MmabitsError, OperandError, OperandTypeError
from mmabits.kernels.quantize import quantize_nvfp4
from mmabits.kernels.schemes import attention, awq, fp8, fp8_blockwise, moe, mxfp6_mxfp4, packing_awq_gptq, w4a8, w4a16, w8a8
from mmabits.kernels.schemes.scaling import RECIPES

F32 = np.float32
E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
FORMATS = {"e4m3": (E4M3, 448.0, 3, -6), "e5m2": (E5M2, 57344.0, 2, -14)}
"""ml_dtypes type, largest number, fraction bits, exponent of the smallest normal number."""
AMAX = [2.0**-126, 1.2e-38, 3e-38, 3e-37, 2.6e-36, 2.0**-119, 1e-30, 1.0, 3e38]


def rows(amax: float, seed: int = 0) -> np.ndarray:
    """Values of all sizes up to amax, which is there with both signs."""
    rng = np.random.default_rng(seed)
    values = (rng.uniform(-1, 1, (4, 256)) * 2.0 ** rng.integers(-12, 1, (4, 256)) * amax).astype(F32)
    values[:, 0], values[:, 1] = amax, -amax
    return values


@pytest.mark.parametrize("amax", AMAX)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_right_down_to_the_smallest_normal_float32(recipe: str, form: str, amax: float) -> None:
    """The error is half a unit of the element's, and a little for the roundings before."""
    _, _, fraction_bits, lowest = FORMATS[form]
    if recipe == "reciprocal-full" and amax < 2.0**-109:
        pytest.skip("the reciprocal of a subnormal scale overflows, as on the GPU")
    values = rows(amax)
    found = fp8.quantize(values, format=form, per="row", recipe=recipe)
    restored, scales = found.dequantize().astype(np.float64), found.scales.astype(np.float64)
    half_unit = np.exp2(np.maximum(np.floor(np.log2(np.maximum(np.abs(values.astype(np.float64)) / scales, 2.0**-40))), lowest)) * 2.0 ** -(
        fraction_bits + 1
    )
    assert (np.abs(restored - values) <= half_unit * scales * (1 + 2.0**-6) + 2.0**-149).all()
    if recipe != "power-of-two":
        given = fp8.quantize(values, format=form, per="row", recipe=recipe, scale=found.scales[:, 0])
        assert (np.abs(given.dequantize().astype(np.float64) - values) <= half_unit * scales * (1 + 2.0**-6) + 2.0**-149).all()


def to_24_bits(values: np.ndarray) -> np.ndarray:
    """Float64 rounded to 24 bits to nearest even, whatever the exponent."""
    fraction, exponent = np.frexp(values)
    return np.ldexp(np.rint(fraction * 2.0**24), exponent - 24)


@pytest.mark.parametrize("amax", [2.0**-149, 2.0**-140, 1e-39, *AMAX])
@pytest.mark.parametrize("form", FORMATS)
def test_the_reciprocal_is_that_of_float32_with_exponents_without_end(form: str, amax: float) -> None:
    dtype, largest, _, _ = FORMATS[form]
    values = np.concatenate([rows(amax * (1 - i / 64), seed=i) for i in range(32)])
    scale = np.maximum(np.abs(values).max(axis=1, keepdims=True) / F32(largest), F32(2.0**-149))
    values[:, 2:18] = scale * np.arange(17, 33, dtype=F32)  # in the middle between two elements, or nearly so
    found = fp8.quantize(values, format=form, per="row", recipe="reciprocal")
    product = (values.astype(np.float64) * to_24_bits(1 / scale.astype(np.float64))).astype(F32)
    assert np.array_equal(found.scales, scale)
    wanted = np.clip(product, -largest, largest).astype(dtype).view(np.uint8)
    assert np.array_equal(found.elements.view(np.uint8), wanted)
    for recipe in ("reciprocal", "multiply"):
        static = fp8.quantize(values, format=form, per="row", recipe=recipe, scale=scale[:, 0])
        assert np.array_equal(static.elements.view(np.uint8), wanted)
    divided = fp8.quantize(values, format=form, per="row", scale=scale[:, 0])
    assert amax < 2.0**-126 or not np.array_equal(divided.elements.view(np.uint8), wanted)


def test_delayed_scaling_keeps_its_reciprocals_finite() -> None:
    state = fp8.DelayedScaling(margin=100).record(F32(3e38))
    assert state.multiplier == F32(2.0**-126)
    matrix, _ = state.step(np.full((1, 1), 3e38, F32))
    assert np.isfinite(matrix.scales).all()
    assert fp8.DelayedScaling(margin=-100).record(F32(1e-30)).multiplier == np.finfo(F32).max


def int4(**changes: Any) -> w4a16.Int4Weights:
    parts = {"codes": np.zeros((16, 8), np.uint8), "scales": np.ones((2, 8), np.float16), "zeros": np.zeros((2, 8), np.uint8), "group": 8}
    return w4a16.Int4Weights(**parts | changes)


def gptq(**changes: Any) -> packing_awq_gptq.GptqTensors:
    parts = {
        "qweight": np.zeros((2, 8), np.int32), "qzeros": np.zeros((2, 1), np.int32), "scales": np.ones((2, 8), np.float16),
        "g_idx": np.repeat(np.arange(2, dtype=np.int32), 8),
    }  # fmt: skip
    return packing_awq_gptq.GptqTensors(**parts | changes)


def cache(**changes: Any) -> attention.PagedCache:
    parts = {"keys": np.zeros((1, 2, 1, 4), E4M3), "values": np.zeros((1, 2, 1, 4), E4M3), "key_scale": F32(1), "value_scale": F32(1)}
    return attention.PagedCache(**parts | changes)


def floats(*values: float) -> np.ndarray:
    return np.array(values, F32)


NAN, INF = float("nan"), float("inf")
ONES, EYE = np.ones((2, 2), F32), np.eye(2, dtype=F32)
NUMBERS = {
    "0": 0.0, "NaN": NAN, "infinity": INF, "minus 1": -1.0, "below float32": 1e-46, "above float32": 1e39, "text": "1", "nothing": None,
    "an integer without end": 10**400,
}  # fmt: skip
DIVIDED_BY: dict[str, tuple[Callable[[Any], Any], tuple[str, ...]]] = {
    "key_scale": (lambda scale: attention.empty_cache(1, 2, 1, 4, key_scale=scale, value_scale=1.0), ()),
    "value_scale": (lambda scale: attention.empty_cache(1, 2, 1, 4, key_scale=1.0, value_scale=scale), ()),
    "queries": (lambda scale: attention.quantize_fp8_queries(np.ones((1, 1, 4), F32), scale=scale), ()),
    "factor": (lambda scale: attention.quantize_blocks(np.ones((1, 1, 4), F32), block=1, factor=scale), ()),
    "scores of queries": (lambda scale: attention.fp8_score_factor(4, scale, F32(1)), ()),
    "scores of keys": (lambda scale: attention.fp8_score_factor(4, 1.0, scale), ()),
    "multiplier": (lambda scale: fp8.DelayedScaling(multiplier=scale), ()),
    "amax": (lambda scale: quantize_nvfp4(np.ones((1, 16), F32), amax=scale), ("nothing",)),
    "least_amax": (lambda scale: fp8.quantize(ONES, least_amax=scale), ("0",)),
    "least_amax of tiles": (lambda scale: fp8_blockwise.quantize(np.ones((1, 128), F32), least_amax=scale), ("0",)),
}
"""What takes a number that values are divided by, and which of NUMBERS mean something to it."""


@pytest.mark.parametrize(("use", "wrong"), [(use, name) for use, (_, fine) in DIVIDED_BY.items() for name in NUMBERS if name not in fine])
def test_a_number_to_divide_by_is_positive_and_finite_in_float32(use: str, wrong: str) -> None:
    with pytest.raises(OperandError, match=r"must be positive and finite, got|must be a number, got"):
        DIVIDED_BY[use][0](NUMBERS[wrong])


@pytest.mark.parametrize("wrong", [0.0, NAN, INF, -1.0])
def test_arrays_to_divide_by_are_positive_and_finite(wrong: float) -> None:
    for use in (
        lambda: fp8.quantize(ONES, per="row", scale=floats(1, wrong)),
        lambda: w8a8.smooth(ONES, ONES, floats(1, wrong)),
        lambda: cache(key_scale=F32(wrong)),
        lambda: cache(value_scale=F32(wrong)),
    ):
        with pytest.raises(OperandError, match="must be positive and finite, got"):
            use()


def test_subnormal_scales_are_carried() -> None:
    small = F32(1e-40)
    assert cache(key_scale=small).key_scale == small
    assert fp8.quantize(np.full((1, 1), 448 * small, F32), scale=small).elements[0, 0] == 448
    assert attention.quantize_fp8_queries(np.full((1, 1, 1), 448 * small, F32), scale=float(small))[0, 0, 0] == 448


@pytest.mark.parametrize("wrong", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "use",
    [
        lambda scale: fp8.Fp8Matrix(elements=np.zeros((2, 2), E4M3), scales=np.array([[1], [scale]], F32)),
        lambda scale: fp8_blockwise.TiledFp8(elements=np.zeros((2, 128), E4M3), scales=np.array([[1], [scale]], F32), tile=(1, 128)),
        lambda scale: w8a8.Int8Matrix(codes=np.zeros((2, 2), np.int8), scales=floats(1, scale), axis=0),
        lambda scale: w4a8.W4A8Weights(codes=np.zeros((2, 2), np.int8), channel_scales=floats(1, scale)),
        lambda scale: int4(scales=np.full((2, 8), scale, np.float16)),
        lambda scale: gptq(scales=np.full((2, 8), scale, np.float16)),
        lambda scale: PACKING.AwqTensors(
            qweight=np.zeros((2, 1), np.int32), qzeros=np.zeros((1, 1), np.int32), scales=np.full((1, 8), scale, np.float16)
        ),
        lambda scale: blocks(scales=np.full((1, 1), scale, F32)),
        lambda scale: attention.E4M3Columns(codes=np.zeros((1, 2, 4), E4M3), scales=np.full((1, 4), scale, F32)),
        lambda scale: w4a16.round_to_codes(np.full((1, 1), scale, F32), np.ones((1, 1), np.float16), np.zeros((1, 1), np.uint8)),
        lambda scale: w4a16.round_to_codes(ONES[:1, :1], np.full((1, 1), scale, np.float16), np.zeros((1, 1), np.uint8)),
        lambda scale: awq.channel_scales(floats(1, scale), 0.5),
        lambda scale: w8a8.quantize_int8(ONES, axis=0, amax=floats(1, scale)),
    ],
)  # fmt: skip
def test_scales_of_matrices_are_finite(use: Any, wrong: float) -> None:
    with pytest.raises(OperandError, match="must be finite, got"):
        use(wrong)


WORDS = np.zeros((1, 8), np.int8)
ZEROS, HALVES = np.zeros((1, 1), np.uint8), np.ones((1, 1), np.float16)
PACKING = packing_awq_gptq


def blocks(**changes: Any) -> attention.Int8Blocks:
    return attention.Int8Blocks(**{"codes": np.zeros((1, 2, 4), np.int8), "scales": np.ones((1, 1), F32), "block": 2} | changes)


def alignment(choices: int, *experts: int) -> moe.Alignment:
    return moe.Alignment(choices=np.zeros(choices, np.int32), experts=np.array(experts, np.int32), block=2)


def w4a8_codes(code: int) -> w4a8.W4A8Weights:
    return w4a8.W4A8Weights(codes=np.full((2, 2), code, np.int8), channel_scales=floats(1, 1))


@pytest.mark.parametrize(
    ("use", "error", "text"),
    [
        (lambda: PACKING.pack_words(WORDS - np.int8(1), axis=1), OperandError, r"codes of four bits are 0 to 15, got -1 at index \(0, 0\)"),
        (lambda: PACKING.pack_words(WORDS + np.int8(16), axis=1), OperandError, "codes of four bits are 0 to 15, got 16"),
        (lambda: PACKING.pack_words(WORDS.astype(np.int64) + 2**32, axis=1), OperandError, "got 4294967296"),
        (lambda: PACKING.pack_words(WORDS.astype(F32), axis=1), OperandTypeError, "array of integers, got float32"),
        (lambda: PACKING.pack_words(WORDS.tolist(), axis=1), OperandTypeError, "array of integers, got list"),
        (lambda: PACKING.pack_words(WORDS, axis=2), OperandError, "axis 2 is outside an array of 2 dimensions"),
        (lambda: PACKING.pack_words(WORDS, axis=1, order=(0,) * 8), OperandError, "order must be a permutation of 0 to 7"),
        (lambda: PACKING.unpack_words(WORDS, axis=1), OperandTypeError, "words must be a NumPy array of int32, got dtype int8"),
        (lambda: PACKING.unpack_words(WORDS.astype(np.int32), axis=-3), OperandError, "axis -3 is outside"),
        (lambda: mxfp6_mxfp4.pack_fp6(WORDS, "e3m2"), OperandTypeError, "unsigned integers, got int8"),
        (lambda: w4a8_codes(-128), OperandError, "codes of W4A8 weights are -7 to 7, got -128"),
        (lambda: w4a8_codes(8), OperandError, "codes of W4A8 weights are -7 to 7, got 8"),
        (lambda: w4a16.round_to_codes(ONES[:1, :1], 0 * HALVES, ZEROS), OperandError, "must not be 0"),
        (lambda: w4a16.group_parameters(np.full((1, 2, 2), NAN, F32)), OperandError, "no f16 scale"),
        (lambda: w8a8.quantize_int8(ONES, axis=0, amax=floats(1, -1)), OperandError, "must not be negative, got -1"),
        (lambda: w8a8.smooth(ONES, ONES, floats(1, 1e-40)), OperandError, "activations over their factors must be finite, got inf"),
        (lambda: w8a8.smooth(ONES, 2 * ONES, floats(1, 3e38)), OperandError, "weights times their factors must be finite, got inf"),
        (lambda: awq.channel_scales(floats(1, -1), 0.5), OperandError, "must not be negative"),
        (lambda: awq.channel_scales(floats(1, 1), 2.0), OperandError, "alpha 0 to 1, got 1.0 and 2.0"),
        (lambda: blocks(block=0), OperandError, "positive, got 0"),
        (lambda: attention.E4M3Columns(codes=np.zeros((1, 2, 4), E4M3), scales=np.ones((1, 3), F32)), OperandError, r"shape \(1, 4\)"),
        (lambda: attention.fp8_score_factor(4, 1e-30, F32(1e-30)), OperandError, "of the scores must be positive and finite, got 0.0"),
        (lambda: attention.quantize_blocks(np.full((1, 1, 1), 3e38, F32), block=1, factor=3.0), OperandError, "factor must be finite"),
        (lambda: cache(key_scale=1.0), OperandTypeError, "key_scale must be a NumPy float32, got float"),
        (lambda: fp8.DelayedScaling(multiplier=F32(1e-40)), OperandError, r"at least 2\^-126"),
        (lambda: fp8.DelayedScaling(history=(F32(NAN),)), OperandError, "history must be finite magnitudes"),
        (lambda: fp8.DelayedScaling().record(F32(INF)), OperandError, "history must be finite magnitudes"),
        (lambda: alignment(4, -2, 0), OperandError, "experts are -1 to"),
        (lambda: alignment(3, 0, 0), OperandError, r"shape \(4,\)"),
        (lambda: gptq(g_idx=np.full(16, 2, np.int32)), OperandError, "groups of g_idx are 0 to 1, got 2"),
        (lambda: gptq(g_idx=np.full(16, -1, np.int32)), OperandError, "groups of g_idx are 0 to 1, got -1"),
        (lambda: int4(g_idx=np.full(16, 2, np.int32)), OperandError, "groups of g_idx are 0 to 1, got 2"),
    ],
)  # fmt: skip
def test_what_is_refused(use: Any, error: type[MmabitsError], text: str) -> None:
    with pytest.raises(error, match=text):
        use()


def test_outlier_columns_are_there_and_ascend() -> None:
    split = w8a8.split_outliers(np.array([[8, 1, 7]], np.float16))
    assert split.columns.tolist() == [0, 2]
    for columns, text in (
        ([0, 3], "columns are 0 to 2, got 3"),
        ([-1, 2], "columns are 0 to 2, got -1"),
        ([2, 0], "ascend"),
        ([0, 0], "ascend"),
    ):
        with pytest.raises(OperandError, match=text):
            w8a8.MixedActivations(regular=split.regular, columns=np.array(columns, np.int32), outliers=split.outliers)


def test_a_layer_that_cannot_be_carried_is_named(tmp_path: Any) -> None:
    """A checkpoint's group index may name any group."""
    pytest.importorskip("safetensors")
    from safetensors.numpy import save_file

    good = gptq()
    tensors = {f"model.q_proj.{field}": getattr(good, field) for field in good.FIELDS}
    tensors["model.q_proj.g_idx"] = np.full(16, 1_000_000_000, np.int32)
    save_file(tensors, str(tmp_path / "model.safetensors"))
    with pytest.raises(OperandError, match=r"model.safetensors: model\.q_proj: groups of g_idx are 0 to 1, got 1000000000 at index \(0,\)"):
        packing_awq_gptq.read_checkpoint(tmp_path / "model.safetensors")
