"""Quantized attention: quantizers and compositions against plain readings, exact cases and float64 softmax."""

import math

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.isa.errors import OperandError, OperandTypeError, UnsupportedInstruction
from mmabits.kernels.schemes.attention import (
    PagedCache,
    empty_cache,
    fp8_attention,
    quantize_blocks,
    quantize_fp8_queries,
    quantize_keys,
    quantize_queries,
    quantize_values,
    query_factor,
    sage2_attention,
    sage_attention,
    smooth_keys,
    tree_sum,
)

SEED = 20260116
E4M3 = ml_dtypes.float8_e4m3fn


def heads(*shape: int, seed: int = SEED) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def softmax_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
    share = len(q) // len(k)
    outputs = []
    for head in range(len(q)):
        scores = q[head].astype(np.float64) @ k[head // share].T / math.sqrt(q.shape[2])
        if causal:
            offset = scores.shape[1] - scores.shape[0]
            scores = np.where(np.tril(np.ones(scores.shape, bool), offset), scores, -np.inf)
        powers = np.exp(scores - scores.max(1, keepdims=True))
        outputs.append(powers / powers.sum(1, keepdims=True) @ v[head // share])
    return np.stack(outputs)


# Quantizers -----------------------------------------------------------------------------------------------------------


def test_blocks_as_the_triton_kernel_of_sageattention_rounds() -> None:
    torch = pytest.importorskip("torch")
    x = heads(3, 100, 16) * np.exp2(np.random.default_rng(1).integers(-20, 20, (3, 100, 1))).astype(np.float32)
    x[0, :32] = 0
    x[1, 0] = np.arange(16) + 0.5  # ties
    got = quantize_blocks(x, block=32)
    for head in range(3):
        for block in range(4):
            rows = torch.from_numpy(x[head, 32 * block : 32 * block + 32])
            scale = rows.abs().max() / 127
            scale = scale if scale > 0 else torch.tensor(1.0)
            steps = rows / scale
            steps = steps + 0.5 * torch.where(steps >= 0, 1.0, -1.0)
            assert got.scales[head, block] == scale.item()
            assert np.array_equal(got.codes[head, 32 * block : 32 * block + 32], steps.to(torch.int8).clamp(-127, 127).numpy())


def test_smoothed_keys_move_all_scores_of_a_query_alike() -> None:
    k = heads(2, 50, 16) + 8 * heads(2, 1, 16, seed=3)
    smooth = smooth_keys(k)
    assert np.abs(smooth.mean(axis=1)).max() < 1e-5
    q = heads(2, 4, 16, seed=5)
    moved = q.astype(np.float64) @ (k - smooth).astype(np.float64).swapaxes(1, 2)
    assert np.abs(moved - moved[..., :1]).max() < 1e-4
    assert quantize_keys(k, block=64).scales.max() < 0.5 * quantize_blocks(k, block=64).scales.max()


def test_query_factor_is_two_float32_products() -> None:
    assert query_factor(64) == np.float32(np.float32(0.125) * np.float32(1 / math.log(2)))
    q = heads(1, 64, 64)
    assert np.array_equal(quantize_queries(q).codes, quantize_blocks(q * query_factor(64), block=64).codes)


def test_values_have_a_scale_for_each_column() -> None:
    v = heads(2, 30, 8)
    v[0, :, 3] = 0
    got = quantize_values(v)
    scales = np.where(np.abs(v).max(axis=1) > 0, np.abs(v).max(axis=1) / np.float32(448), np.float32(1))
    assert np.array_equal(got.scales, scales)
    wanted = np.clip(v / scales[:, None], -448, 448).astype(E4M3)
    assert np.array_equal(got.codes.view(np.uint8), wanted.view(np.uint8))
    assert np.abs(got.codes.astype(np.float32)).max(axis=1)[0, 0] == 448


def test_tree_sum_adds_neighbours() -> None:
    x = heads(3, 8)
    for row, total in zip(x, tree_sum(x), strict=True):
        pairs = [row[2 * i] + row[2 * i + 1] for i in range(4)]
        assert total == (pairs[0] + pairs[1]) + (pairs[2] + pairs[3])


# The cache ------------------------------------------------------------------------------------------------------------


def filled(lengths: tuple[int, ...], page: int = 8, width: int = 32) -> tuple[PagedCache, np.ndarray, np.ndarray, np.ndarray]:
    """A cache whose pages lie in no order, and the keys and values that went in."""
    rng = np.random.default_rng(SEED)
    columns = -(-max(lengths) // page)
    cache = empty_cache(len(lengths) * columns + 3, page, 2, width, key_scale=1 / 64, value_scale=1 / 32)
    tables = rng.permutation(len(lengths) * columns + 3)[: len(lengths) * columns].reshape(len(lengths), columns).astype(np.int32)
    keys, values = (rng.standard_normal((len(lengths), max(lengths), 2, width)).astype(np.float32) for _ in range(2))
    for row, length in enumerate(lengths):
        token = np.arange(length)
        cache.write(tables[row][token // page].astype(np.int64) * page + token % page, keys[row, :length], values[row, :length])
    return cache, tables, keys, values


def two_tokens() -> PagedCache:
    return empty_cache(1, 2, 1, 4, key_scale=1, value_scale=1)


def test_tokens_are_found_where_they_were_written() -> None:
    cache, tables, keys, values = filled((21, 9))
    for row, length in enumerate((21, 9)):
        k, v = cache.sequence(tables[row], length)
        assert np.array_equal(k.view(np.uint8), (keys[row, :length] * 64).astype(E4M3).swapaxes(0, 1).view(np.uint8))
        assert np.array_equal(v.view(np.uint8), (values[row, :length] * 32).astype(E4M3).swapaxes(0, 1).view(np.uint8))


def test_writing_saturates() -> None:
    cache = empty_cache(1, 2, 1, 4, key_scale=1.0, value_scale=1.0)
    cache.write(np.array([1]), np.full((1, 1, 4), 1e6, np.float32), np.full((1, 1, 4), -1e6, np.float32))
    assert cache.keys[0, 1, 0].astype(np.float32).tolist() == [448] * 4
    assert cache.values[0, 1, 0].astype(np.float32).tolist() == [-448] * 4
    assert not cache.keys[0, 0].astype(np.float32).any()


# Attention ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_near_to_exact_softmax(causal: bool) -> None:
    """80 queries and keys: a last block that is not full, two query heads a key head."""
    q, k, v = heads(4, 80, 64), heads(2, 80, 64, seed=1), heads(2, 80, 64, seed=2)
    wanted = softmax_attention(q, k, v, causal)
    sage = sage_attention(quantize_queries(q), quantize_keys(k), v.astype(np.float16), arch="sm_80", causal=causal)
    sage2 = sage2_attention(quantize_queries(q), quantize_keys(k), quantize_values(v), arch="sm_90a", causal=causal)
    assert np.abs(sage - wanted).max() < 0.05
    assert np.abs(sage2 - wanted).max() < 0.2
    assert np.abs(sage - wanted).mean() < 0.005 and np.abs(sage2 - wanted).mean() < 0.01


def test_fp8_cache_near_to_exact_softmax() -> None:
    cache, tables, keys, values = filled((40, 23))
    q = heads(2, 4, 3, 32)
    got = fp8_attention(
        quantize_fp8_queries(q.reshape(8, 3, 32), scale=1 / 64).reshape(q.shape), cache, tables, np.array([40, 23], np.int32),
        query_scale=1 / 64, arch="sm_90a",
    )  # fmt: skip
    for row, length in enumerate((40, 23)):
        wanted = softmax_attention(q[row], keys[row, :length].swapaxes(0, 1), values[row, :length].swapaxes(0, 1), True)
        assert np.abs(got[row] - wanted).max() < 0.2
        assert np.abs(got[row] - wanted).mean() < 0.03


def test_one_key_gives_its_value() -> None:
    q, k, v = heads(2, 5, 32), heads(2, 1, 32, seed=1), heads(2, 1, 32, seed=2)
    got = sage_attention(quantize_queries(q), quantize_keys(k), v.astype(np.float16), arch="sm_89")
    assert np.array_equal(got, np.broadcast_to(v.astype(np.float16).astype(np.float32), got.shape))


def test_a_block_by_hand() -> None:
    """One block of keys, written out: scores, p, both products, in the order that the module states."""
    q, k, v = heads(1, 16, 32), heads(1, 16, 32, seed=1), heads(1, 16, 32, seed=2)
    qq, kk, vv = quantize_queries(q, block=16), quantize_keys(k, block=16), quantize_values(v)
    sums = qq.codes[0].astype(np.int64) @ kk.codes[0].T.astype(np.int64)
    s = sums.astype(np.float32) * (qq.scales[0, 0] * kk.scales[0, 0])
    p = np.exp2(s - s.max(axis=1)[:, None])
    total = tree_sum(p)
    v16 = v[0].astype(np.float16)
    part = mmabits.gemm(p.astype(np.float16), v16, np.zeros((16, 32), np.float16), instruction="mma.sync", arch="sm_80")
    assert part.dtype == np.float16
    got = sage_attention(qq, kk, v.astype(np.float16), arch="sm_80")
    assert np.array_equal(got[0], part.astype(np.float32) / total[:, None])
    part8 = mmabits.gemm((p * np.float32(448)).astype(E4M3), vv.codes[0], instruction="wgmma", arch="sm_90a")
    got8 = sage2_attention(qq, kk, vv, arch="sm_90a")
    assert np.array_equal(got8[0], part8 / total[:, None] * (vv.scales[0] / np.float32(448)))


def test_f16_accumulators_overflow_as_on_the_gpu() -> None:
    """16 equal keys: the f16 sum of 16 values of 60000 is infinite; the FP8 successor's f32 accumulator is not."""
    q, k = np.ones((1, 16, 32), np.float32), np.ones((1, 16, 32), np.float32)
    v = np.full((1, 16, 32), 60000, np.float32)
    sage = sage_attention(quantize_queries(q), quantize_keys(k), v.astype(np.float16), arch="sm_80")
    sage2 = sage2_attention(quantize_queries(q), quantize_keys(k), quantize_values(v), arch="sm_89")
    assert np.isinf(sage).all()
    assert np.allclose(sage2, 60000, rtol=1e-6)


def test_two_levels_keep_what_hoppers_accumulator_loses() -> None:
    """2048 equal keys. One chain through Hopper's accumulator of 13 fraction bits drifts; block by block, added in f32, hardly."""
    keys = 2048
    cache = empty_cache(keys // 64, 64, 1, 32, key_scale=1.0, value_scale=1.0)
    values = (np.abs(heads(keys, 1, 32)) + np.float32(0.5)).astype(E4M3).astype(np.float32)
    cache.write(np.arange(keys), np.zeros((keys, 1, 32), np.float32), values)
    tables = np.arange(keys // 64, dtype=np.int32)[None]
    exact = values.astype(np.float64).mean(axis=0)[0]

    def one_chain(arch: str) -> np.ndarray:
        return fp8_attention(np.zeros((1, 1, 1, 32), E4M3), cache, tables, np.array([keys], np.int32), query_scale=1.0, arch=arch)[0, 0, 0]

    zeros = quantize_blocks(np.zeros((1, keys, 32), np.float32), block=64)
    query = quantize_blocks(np.zeros((1, 1, 32), np.float32), block=64)
    v = quantize_values(values.swapaxes(0, 1).copy())

    def two_levels(arch: str) -> np.ndarray:
        return sage2_attention(query, zeros, v, arch=arch)[0, 0]

    assert np.abs(one_chain("sm_100a") - exact).max() < 1e-5
    drift = np.abs(one_chain("sm_90a") - one_chain("sm_100a"))
    kept = np.abs(two_levels("sm_90a") - two_levels("sm_100a"))
    assert drift.min() > 0.01
    assert kept.max() < 0.2 * drift.min()


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: quantize_blocks(heads(2, 3), block=4), OperandError, r"3 dimensions, got shape \(2, 3\)"),
        (lambda: quantize_queries(heads(1, 3, 4).astype(np.float16)), OperandTypeError, "float32, got dtype float16"),
        (lambda: quantize_values(np.full((1, 2, 3), np.nan, np.float32)), OperandError, "finite"),
        (lambda: quantize_blocks(heads(1, 3, 4), block=0), OperandError, "positive, got 0"),
        (lambda: sage_attention(quantize_queries(heads(1, 3, 32)), quantize_keys(heads(1, 4, 32)), heads(1, 4, 32), arch="sm_80"),
         OperandTypeError, "float16, got dtype float32"),
        (lambda: sage_attention(quantize_queries(heads(1, 3, 32)), quantize_keys(heads(1, 4, 32)), heads(1, 4, 32).astype(np.float16),
                                arch="sm_80", causal=True), OperandError, "as many queries as keys, got 3 and 4"),
        (lambda: sage_attention(quantize_queries(heads(3, 4, 32)), quantize_keys(heads(2, 4, 32)), heads(2, 4, 32).astype(np.float16),
                                arch="sm_80"), OperandError, "number of key heads 2, got 3"),
        (lambda: sage_attention(quantize_queries(heads(1, 4, 32)), quantize_keys(heads(1, 4, 32), block=48),
                                heads(1, 4, 32).astype(np.float16), arch="sm_80"), OperandError, "power of two, got 48"),
        (lambda: sage2_attention(quantize_queries(heads(1, 4, 32)), quantize_keys(heads(1, 4, 32)), quantize_values(heads(1, 4, 32)),
                                 arch="sm_80"), UnsupportedInstruction, "sm_80"),
        (lambda: quantize_fp8_queries(heads(1, 4, 32), scale=0), OperandError, "scale must be positive"),
        (lambda: two_tokens().write(np.array([2]), heads(1, 1, 4), heads(1, 1, 4)),
         OperandError, "slots are 0 to 1, got 2"),
        (lambda: two_tokens().sequence(np.array([1], np.int32), 1), OperandError, "pages are 0 to 0"),
        (lambda: two_tokens().sequence(np.array([0], np.int32), 3), OperandError, "needs 2 pages of 2"),
    ],
)  # fmt: skip
def test_wrong_operands(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()
