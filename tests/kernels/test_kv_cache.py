"""KV caches: quantizers against plain loops, packing there and back, appending token by token, hard inputs, wrong operands."""

import ml_dtypes
import numpy as np
import pytest
from kv_caches import SEED, cache_of, tokens

from mmabits.isa.errors import OperandError, OperandTypeError
from mmabits.kernels.schemes.kv_cache import (
    CACHES,
    KvCache,
    QuantizedTokens,
    empty_kv_cache,
    pack_elements,
    quantize_tokens,
    unpack_elements,
)

F32, F16 = np.float32, np.float16
INTEGERS = ("int8", "int8-kivi", "int4-kivi")
BLOCKS = ("mxfp8", "nvfp4")
"""With a NaN among their scales."""
SIDES = [(name, side) for name in CACHES for side in ("keys", "values")]


def everything(cache: KvCache) -> list[bytes]:
    arrays = [cache.tail, cache.lengths]
    for side in (cache.keys, cache.values):
        arrays += [side.words, side.scales, *([] if side.zeros is None else [side.zeros])]
    return [array.tobytes() for array in arrays]


# Quantizers -----------------------------------------------------------------------------------------------------------


def by_hand(group: np.ndarray, element: str) -> tuple[np.ndarray, float, float]:
    """Codes, scale and least number of the numbers that share them, one after another."""
    if element == "e4m3":
        scale = F32(abs(group).max() / F32(448)) or F32(1)
        return np.clip(group / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn), float(scale), 0.0
    if element == "s8":
        scale = F32(abs(group).max()) / F32(127) or F32(1)
        return np.array([max(-127, min(127, round(float(F32(x / scale))))) for x in group]), float(scale), 0.0
    levels = 255 if element == "u8" else 15
    least = F16(group.min())
    span = F32(group.max() - F32(least))
    scale = max(F16(span / F32(levels)), F16(2.0**-24)) if span > 0 else F16(1)
    codes = [max(0, min(levels, round(float(F32(F32(x - F32(least)) / F32(scale)))))) for x in group]
    return np.array(codes), float(scale), float(least)


@pytest.mark.parametrize("name", [*INTEGERS, "fp8"])
@pytest.mark.parametrize("side", ["keys", "values"])
def test_numbers_by_hand(name: str, side: str) -> None:
    x, grouping = tokens(32, 1, 32), getattr(CACHES[name], side)
    x[5], x[:, 0, 3], x[7, 0, :4] = 0, 1.25, [2.0**-140, -(2.0**-140), 2.0**-30, 100.0]
    found = quantize_tokens(x, grouping)
    codes = found.codes()
    for index in range(32):
        group = x[:, 0, index] if grouping.tokens > 1 else x[index, 0]
        got = codes[:, 0, index] if grouping.tokens > 1 else codes[index, 0]
        where = (0, 0, index) if grouping.tokens > 1 else (index, 0, 0)
        wanted, scale, least = by_hand(group, grouping.element)
        assert got.astype(float).tolist() == wanted.astype(float).tolist()
        assert float(found.scales[where]) == scale
        assert found.zeros is None or float(found.zeros[where]) == least


@pytest.mark.parametrize(("name", "side"), SIDES)
def test_dequantized_numbers_are_near(name: str, side: str) -> None:
    x = tokens(64)
    found = quantize_tokens(x, getattr(CACHES[name], side), amax=64.0)
    steps = found.wide_scales() * found.tensor_scale
    most = {"s8": 0.5001, "u8": 0.6, "u4": 0.6, "e4m3": 64.01, "e2m1": 1.2}[found.grouping.element]
    assert (np.abs(found.dequantize() - x) <= most * steps).all()
    assert found.dequantize().dtype == F32


@pytest.mark.parametrize("per_word", [4, 8])
def test_words_there_and_back(per_word: int) -> None:
    codes = np.random.default_rng(SEED).integers(0, 256 if per_word == 4 else 16, (3, 5, 32)).astype(np.uint8)
    words = pack_elements(codes, per_word)
    assert words.shape == (3, 5, 32 // per_word) and words.dtype == np.int32
    bits = 32 // per_word
    assert int(words[1, 2, 0]) & 0xFFFFFFFF == sum(int(code) << bits * place for place, code in enumerate(codes[1, 2, :per_word]))
    assert np.array_equal(unpack_elements(words, per_word), codes)


@pytest.mark.parametrize(("name", "side"), SIDES)
def test_quantizing_again_changes_nothing(name: str, side: str) -> None:
    """Dequantized numbers have codes and scales of their own; where these are the same numbers, they stay."""
    grouping = getattr(CACHES[name], side)
    found = quantize_tokens(tokens(32), grouping, amax=64.0)
    again = quantize_tokens(found.dequantize(), grouping, amax=64.0)
    if grouping.scale == "ue8m0":
        assert np.array_equal(again.words, found.words) and np.array_equal(again.scales, found.scales)
    change = np.abs(again.dequantize() - found.dequantize())
    assert (change <= 0.51 * found.wide_scales() * found.tensor_scale * (1 if name in INTEGERS else 2)).all()


@pytest.mark.parametrize(("name", "side"), SIDES)
@pytest.mark.parametrize("kind", ["zeros", "subnormals", "one outlier", "equal"])
def test_hard_inputs_stay_finite(name: str, side: str, kind: str) -> None:
    x = np.zeros((32, 1, 64), F32)
    if kind == "subnormals":
        x += np.float32(2.0**-140)
    elif kind == "one outlier":
        x = tokens(32, 1)
        x[4, 0, 40] = 60000
    elif kind == "equal":
        x += np.float32(-1.2345)
    found = quantize_tokens(x, getattr(CACHES[name], side), amax=65504.0)
    got = found.dequantize()
    assert np.isfinite(got).all()
    if kind == "zeros":
        assert not got.any()
    if kind == "one outlier":
        assert abs(got[4, 0, 40] - 60000) <= 60000 / 16
    if kind == "equal" and name in INTEGERS:
        assert np.abs(got + np.float32(1.2345)).max() < 0.01


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_block_without_a_number_is_nan(name: str, bad: float) -> None:
    x, grouping = tokens(2), CACHES[name].keys
    x[1, 0, 5] = bad
    got = quantize_tokens(x, grouping, amax=64.0).dequantize()
    assert np.isnan(got[1, 0, : grouping.channels]).all() and np.isnan(got).sum() == grouping.channels


@pytest.mark.parametrize(("name", "side"), SIDES)
@pytest.mark.parametrize("shape", [(0, 2, 64), (32, 0, 64), (32, 2, 0)])
def test_nothing(name: str, side: str, shape: tuple[int, ...]) -> None:
    found = quantize_tokens(np.zeros(shape, F32), getattr(CACHES[name], side), amax=64.0)
    assert found.dequantize().shape == shape and found.words.shape[:2] == shape[:2]


def test_beside_kivis_own_arithmetic() -> None:
    """Its quantizer in f16: the same least numbers, scales within a last bit of f16, codes within one, and few of them."""
    torch = pytest.importorskip("torch")
    for name, levels in (("int8-kivi", 255), ("int4-kivi", 15)):
        half = tokens(256).astype(F16)
        found = quantize_tokens(half.astype(F32), CACHES[name].keys)
        data = torch.from_numpy(half).reshape(8, 32, 2, 64)
        least, most = data.amin(dim=1, keepdim=True), data.amax(dim=1, keepdim=True)
        scale = (most - least) / levels
        codes = ((data - least) / scale).clamp(0, levels).round().to(torch.int32).reshape(256, 2, 64).numpy()
        assert np.array_equal(found.zeros, least[:, 0].numpy())
        apart = np.abs(found.scales.view(np.int16).astype(int) - scale[:, 0].numpy().view(np.int16))
        assert apart.max() <= 1
        change = np.abs(found.codes().astype(int) - codes)
        assert change.max() <= 1 and 0 < (change > 0).mean() < (0.1 if levels == 255 else 0.02)


QUANTIZERS = [
    pytest.param(name, side, marks=pytest.mark.slow if name == "int8-kivi" else ())
    for name, side in SIDES
    if side == "keys" or CACHES[name].keys != CACHES[name].values
]


@pytest.mark.parametrize(("name", "side"), QUANTIZERS)
def test_the_kernel_over_hard_numbers(name: str, side: str) -> None:
    """Zeros of both signs, subnormals, outliers, equal numbers, ties; for formats with a NaN in their scales infinities and NaN."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    import mmabits
    from mmabits.kernels.triton import kv_cache as in_triton

    x, grouping = tokens(64), getattr(CACHES[name], side)
    x[0], x[1], x[2], x[3, 0, 5], x[4] = 0, -0.0, x[2] * F32(2.0**-130), 60000, -1.2345
    x[32:, 1, 9], x[32:, 1, 10], x[33, 0] = 0, 7.7, np.arange(64) / F32(2) - 16
    if name in BLOCKS:
        x[5, 0, 3], x[6, 1, 40], x[7, 0, 60] = np.nan, np.inf, -np.inf
    wanted = quantize_tokens(x, grouping, amax=64.0)
    scale = torch.from_numpy(np.full(1, wanted.tensor_scale)) if grouping.element == "e2m1" else None
    with mmabits.emulate("sm_90a", frameworks=["triton"], triton="interpreted"):
        got = in_triton.quantize_tokens(torch.from_numpy(x), scale, cache=name, side=side)
        empty = in_triton.quantize_tokens(torch.zeros(0, 2, 64), scale, cache=name, side=side)
    for array, one in zip(got, (wanted.words, wanted.scales, wanted.zeros), strict=False):
        assert np.array_equal(array.numpy().view(np.uint8), one.view(np.uint8))
    assert [len(each) for each in empty] == [0] * len(got)


# The cache ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_token_by_token_or_at_once(name: str, dtype: object) -> None:
    """The same bytes, however many tokens come at a time."""
    whole, single = cache_of(name, dtype=dtype), cache_of(name, dtype=dtype)
    keys, values = tokens(75), tokens(75, seed=4)
    whole.append(1, keys, values)
    for start, stop in ((0, 1), (1, 31), (31, 33), (33, 64), (64, 64), (64, 75)):
        single.append(1, keys[start:stop], values[start:stop])
    held = [QuantizedTokens.dequantize(each.read(whole.tables[1], 64)) for each in (whole.keys, single.keys)]
    assert np.array_equal(*held)
    assert everything(whole)[1:] == everything(single)[1:]
    group = whole.spec.keys.tokens
    if group > 1:
        assert np.array_equal(whole.tail[1, : 75 % group], single.tail[1, : 75 % group])


@pytest.mark.parametrize("name", CACHES)
def test_appending_leaves_scales_alone(name: str) -> None:
    cache = cache_of(name, lengths=(64, 40))
    before = cache.keys.read(cache.tables[0], 64), cache.values.read(cache.tables[0], 64)
    cache.append(0, 1000 * tokens(9), 1000 * tokens(9))
    after = cache.keys.read(cache.tables[0], 64), cache.values.read(cache.tables[0], 64)
    for old, new in zip(before, after, strict=True):
        assert np.array_equal(old.words, new.words) and np.array_equal(old.scales, new.scales)


@pytest.mark.parametrize("name", CACHES)
def test_a_sequence_is_what_was_appended(name: str) -> None:
    cache = cache_of(name, lengths=(75, 33))
    for sequence, length in enumerate((75, 33)):
        k, v = cache.sequence(sequence)
        assert k.shape == v.shape == (2, length, 64)
        group = cache.spec.keys.tokens
        whole = length // group * group
        keys, values = tokens(length, seed=sequence), tokens(length, seed=sequence + 9)
        source = keys.astype(F16).astype(F32) if group > 1 else keys
        wanted = quantize_tokens(source[:whole], cache.spec.keys, amax=64.0).dequantize()
        assert np.array_equal(k[:, :whole].swapaxes(0, 1), wanted)
        assert np.array_equal(k[:, whole:].swapaxes(0, 1), source[whole:])
        assert np.array_equal(v.swapaxes(0, 1), quantize_tokens(values, cache.spec.values, amax=64.0).dequantize())


def test_a_tile_is_in_the_type_of_the_queries() -> None:
    for name, spec in CACHES.items():
        cache = cache_of(name, lengths=(40,))
        tile, (k, v) = cache.tile(0, 1, np.float16), cache.sequence(0)
        assert tile.keys.dtype == tile.values.dtype == np.float16 and (tile.key_scales is not None) == spec.outside
        if not spec.outside:
            assert np.array_equal(tile.keys, (k[1] / cache.keys.tensor_scale).astype(F16))
            assert np.array_equal(tile.values, (v[1] / cache.values.tensor_scale).astype(F16))
        else:
            assert np.array_equal(tile.keys.astype(F32) * tile.key_scales[:, None], k[1])


def of_table(table: list[list[int]], name: str = "int8", page: int = 32, **fields: float) -> KvCache:
    return empty_kv_cache(name, tables=np.array(table, np.int32), pages=2, page=page, heads=1, width=64, **fields)


FULL = "room for 128"


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: cache_of("int7"), OperandError, "unknown cache 'int7'"),
        (lambda: cache_of("int8").append(2, tokens(1), tokens(1)), OperandError, "sequences are 0 to 1, got 2"),
        (lambda: cache_of("int8").append(0, tokens(1), tokens(2)), OperandError, "values must have shape"),
        (lambda: cache_of("int8", lengths=(120,)).append(0, tokens(9), tokens(9)), OperandError, FULL),
        (lambda: cache_of("int8").append(0, np.full((1, 2, 64), np.nan, F32), tokens(1)), OperandError, "finite"),
        (lambda: cache_of("fp8").append(0, tokens(1), np.full((1, 2, 64), np.inf, F32)), OperandError, "finite"),
        (lambda: cache_of("int4-kivi").append(0, tokens(1), np.full((1, 2, 64), 7e4, F32)), OperandError, "within 65504"),
        (lambda: cache_of("int4-kivi", dtype=ml_dtypes.bfloat16).append(0, np.full((1, 2, 64), 65504, F32), tokens(1)), OperandError,
         "within 65504"),
        (lambda: cache_of("mxfp8").append(0, tokens(1).astype(F16), tokens(1)), OperandTypeError, "float32"),
        (lambda: cache_of("mxfp8", dtype=np.float32), OperandTypeError, "float16 or bfloat16"),
        (lambda: cache_of("mxfp8", dtype="bf16"), OperandTypeError, "float16 or bfloat16, got 'bf16'"),
        (lambda: cache_of("mxfp8", dtype=None), OperandTypeError, "float16 or bfloat16, got None"),
        (lambda: of_table([[0]], page=32.0), OperandError, "page must be a whole number from 1 on, got 32.0"),
        (lambda: of_table([[0]], name="nvfp4"), OperandError, "NVFP4 needs key_amax"),
        (lambda: of_table([[0]], name="nvfp4", key_amax=4.0), OperandError, "NVFP4 needs value_amax"),
        (lambda: quantize_tokens(tokens(1), CACHES["nvfp4"].keys), OperandError, "NVFP4 needs amax"),
        (lambda: quantize_tokens(tokens(31), CACHES["int4-kivi"].keys), OperandError, "multiple of the tokens of a group, 32, got 31"),
        (lambda: quantize_tokens(tokens(1, width=40), CACHES["mxfp8"].keys), OperandError, "channels of a group, 32, got 40"),
        (lambda: quantize_tokens(tokens(1), CACHES["nvfp4"].keys, amax=0.0), OperandError, "amax must be positive"),
        (lambda: of_table([[0, 0]]), OperandError, "two places"),
        (lambda: of_table([[2]]), OperandError, "pages are 0 to 1"),
        (lambda: of_table([[0]], name="int4-kivi", page=16), OperandError, "a page must"),
        (lambda: pack_elements(np.full((1, 8), 16, np.uint8), 8), OperandError, "0 to 15, got 16"),
    ],
)  # fmt: skip
def test_wrong_operands(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()
