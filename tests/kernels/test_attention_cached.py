"""Attention over quantized caches: near to exact softmax, a block by hand, splits, windows, sinks; the kernel bit for bit, compiled."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from kv_caches import SEED, cache_of, tokens

import mmabits
from mmabits.conformance.diff.kernel_cases import KERNEL_CASES, cached_dots
from mmabits.isa.errors import OperandError, OperandTypeError, UnknownArchitecture
from mmabits.kernels.schemes.attention import query_factor, tree_sum
from mmabits.kernels.schemes.attention_cached import RowTile, cached_attention, score_factor
from mmabits.kernels.schemes.dots import Dots, as_dots
from mmabits.kernels.schemes.kv_cache import CACHES, KvCache

F16, F32 = np.float16, np.float32
LENGTHS = (100, 71)


def queries(new: int = 1, heads: int = 4, dtype: Any = F16) -> np.ndarray:
    return np.random.default_rng(SEED).standard_normal((2, heads, new, 64)).astype(dtype)


def mma(arch: str = "sm_90a") -> Dots:
    return Dots(arch=arch, instruction="mma.sync")


def compiled_dots(name: str, arch: str, rows: int = 16) -> Dots:
    return cached_dots(name, arch, rows, lambda **fields: Dots(arch=arch, **fields))


def exact(q: np.ndarray, cache: KvCache, window: int = 0, sinks: np.ndarray | None = None) -> np.ndarray:
    """Softmax in float64 over the dequantized cache."""
    found = np.zeros(q.shape)
    new = q.shape[2]
    for sequence, head in np.ndindex(q.shape[:2]):
        k, v = (each[head // (q.shape[1] // cache.heads)].astype(np.float64) for each in cache.sequence(sequence))
        scores = q[sequence, head].astype(np.float64) @ k.T / math.sqrt(q.shape[3])
        key, place = np.arange(len(k))[None, :], len(k) - new + np.arange(new)[:, None]
        seen = (key <= place) & ((key > place - window) if window else True)
        powers = np.where(seen, np.exp(scores), 0)
        found[sequence, head] = powers @ v / (powers.sum(1) + (0 if sinks is None else math.exp(sinks[head])))[:, None]
    return found


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("window", [0, 40])
def test_near_to_exact_softmax_of_what_the_cache_holds(name: str, window: int) -> None:
    cache, sinks = cache_of(name, lengths=LENGTHS), np.array([1.5, -2, 0, 3], F32)
    for given in (None, sinks):
        got = cached_attention(queries(3), cache, arch=mma(), window=window, sinks=given, splits=2)
        assert np.abs(got - exact(queries(3), cache, window, given)).max() < 0.05


@pytest.mark.parametrize("dtype", [F16, ml_dtypes.bfloat16])
def test_a_block_by_hand(dtype: Any) -> None:
    """One block of keys, written out."""
    for name in ("int8", "mxfp8"):
        cache, q = cache_of(name, lengths=(50, 50)), queries(16, 2, dtype)
        tile = cache.tile(0, 0, np.dtype(dtype))
        k, v = np.zeros((64, 64), dtype), np.zeros((64, 64), dtype)
        k[:50], v[:50] = tile.keys, tile.values
        sums = mmabits.gemm(q[0, 0], np.ascontiguousarray(k.T), instruction="mma.sync", arch="sm_90a")
        factor = query_factor(64) * np.ones(64, F32)
        if tile.key_scales is not None:
            factor = query_factor(64) * np.append(tile.key_scales, np.zeros(14, F32))
        s = np.where(np.arange(64) <= 34 + np.arange(16)[:, None], sums * factor, F32(-np.inf))
        p = np.exp2(s - s.max(axis=1)[:, None])
        total = tree_sum(p)
        if tile.value_scales is not None:
            p = p * np.append(tile.value_scales, np.zeros(14, F32))
        out = mmabits.gemm(p.astype(dtype), v, instruction="mma.sync", arch="sm_90a")
        got = cached_attention(q, cache, arch=mma())
        assert np.array_equal(got[0, 0], out / total[:, None])


def test_the_number_of_splits_changes_bits() -> None:
    """The order of splits is fixed, so each number of them has one result; more splits than blocks are empty, and change nothing."""
    cache, q = cache_of("nvfp4", lengths=LENGTHS), queries()
    one, two, many = (cached_attention(q, cache, arch=mma(), splits=splits, block=16) for splits in (1, 2, 7))
    assert not np.array_equal(one, two) and np.abs(one - two).max() < 1e-2
    assert np.array_equal(many, cached_attention(q, cache, arch=mma(), splits=100, block=16))
    assert np.array_equal(two, cached_attention(q, cache, arch=mma(), splits=2, block=16))


@pytest.mark.parametrize("name", ["int8", "int4-kivi"])
def test_rows_do_not_depend_on_their_tile(name: str) -> None:
    """Decoding a token gives what prefill gave it, as long as splits and instructions are the same."""
    cache, q = cache_of(name, lengths=LENGTHS), queries(20)
    whole = cached_attention(q, cache, arch=mma(), rows=64)
    assert np.array_equal(whole, cached_attention(q, cache, arch=mma()))
    assert np.array_equal(whole[:, :, 19:], cached_attention(q[:, :, 19:], cache, arch=mma()))
    assert np.array_equal(whole[:, 2:3, 5:20], cached_attention(q[:, [0, 2], 5:20], cache, arch=mma())[:, 1:])


def test_a_window_as_long_as_the_sequence_is_none() -> None:
    cache, q = cache_of("mxfp8", lengths=LENGTHS), queries(5)
    assert np.array_equal(cached_attention(q, cache, arch=mma()), cached_attention(q, cache, arch=mma(), window=100))
    one = cached_attention(q, cache, arch=mma(), window=1)
    own = cache.sequence(0)[1][:, 95:]
    assert np.array_equal(one[0], np.repeat(own.astype(F16).astype(F32), 2, axis=0))


def test_a_sink_without_weight_is_none() -> None:
    cache, q = cache_of("int8-kivi", lengths=LENGTHS), queries(3)
    plain = cached_attention(q, cache, arch=mma(), splits=3)
    assert np.array_equal(plain, cached_attention(q, cache, arch=mma(), splits=3, sinks=np.full(4, -np.inf, F32)))
    drained = cached_attention(q, cache, arch=mma(), splits=3, sinks=np.full(4, 100, F32))
    assert np.abs(drained).max() < 1e-6


def test_splits_share_the_blocks_out() -> None:
    tile = RowTile(first=0, rows=16, share=4, new=4, length=1000, window=300, block=64)
    parts = [list(tile.split(number, 3)) for number in range(3)]
    assert [start for part in parts for start in part] == list(range(64 * (697 // 64), 1000, 64))
    assert [len(part) for part in parts] == [2, 2, 2]
    assert tile.allowed(960)[0].sum() == 997 - 960 and tile.allowed(640)[0, :57].sum() == 0


def test_a_nan_stays_in_its_row() -> None:
    for name in ("mxfp8", "nvfp4"):
        cache, bad = cache_of(name, lengths=(0, 71)), tokens(100)
        bad[10, 1, 3] = np.nan
        cache.append(0, bad, tokens(100, seed=1))
        got = cached_attention(queries(), cache, arch=mma())
        assert np.isnan(got[0, 2:]).all() and np.isfinite(got[0, :2]).all() and np.isfinite(got[1]).all()


def test_over_nothing() -> None:
    cache = cache_of("int4-kivi", lengths=LENGTHS)
    for shape in ((2, 0, 1, 64), (2, 4, 0, 64)):
        assert cached_attention(np.zeros(shape, F16), cache, arch="sm_80").shape == shape


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"queries": queries().astype(F32)}, OperandTypeError, "queries must be"),
        ({"queries": queries()[:1]}, OperandError, "lengths of the cache"),
        ({"queries": queries(heads=3)}, OperandError, "number of key heads 2, got 3"),
        ({"queries": queries(72)}, OperandError, "at least 72 tokens long, as many as are new, got 71"),
        ({"queries": queries()[..., :32]}, OperandError, "D = 32 and the cache has 64"),
        ({"splits": 0}, OperandError, "splits must be a whole number from 1 on, got 0"),
        ({"splits": 1.5}, OperandError, "splits must be a whole number from 1 on, got 1.5"),
        ({"window": 2.5}, OperandError, "window must be a whole number from 0 on, got 2.5"),
        ({"rows": None}, OperandError, "rows must be a whole number"),
        ({"block": 48}, OperandError, "block must be a power of two, got 48"),
        ({"block": 64.0}, OperandError, "block must be a whole number from 1 on, got 64.0"),
        ({"cache": None}, OperandTypeError, "cache must be a KvCache, got NoneType"),
        ({"pv": "sm_9x"}, UnknownArchitecture, "sm_9x"),
        ({"sinks": np.zeros(3, F32)}, OperandError, "sinks must have shape"),
        ({"sinks": np.full(4, np.nan, F32)}, OperandError, "minus infinity"),
    ],
)
def test_wrong_operands(fields: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        cached_attention(**{"queries": queries(), "cache": cache_of("int8", lengths=LENGTHS), "arch": mma(), **fields})


def test_the_second_product_by_the_name_of_an_architecture() -> None:
    cache = cache_of("int8", lengths=LENGTHS)
    found = (cached_attention(queries(), cache, arch="sm_80", pv=pv) for pv in ("sm_90a", as_dots("sm_90a")))
    assert np.array_equal(*(each.view(np.uint32) for each in found))


def test_values_beyond_f16_are_infinite_beside_f16_queries() -> None:
    for dtype, is_finite in ((np.float16, False), (ml_dtypes.bfloat16, True)):
        cache, large = cache_of("mxfp8", lengths=(0, 71)), tokens(100)
        large[10, 1, 3] = 1e5
        cache.append(0, tokens(100, seed=1), large)
        assert np.isfinite(cached_attention(queries(dtype=dtype), cache, arch=mma())).all() == is_finite


# The kernel -----------------------------------------------------------------------------------------------------------


def launched(cache: KvCache, q: np.ndarray, sinks: np.ndarray | None = None, **options: Any) -> np.ndarray:
    from arrays import tensor

    from mmabits.kernels.triton import attention_cached as in_triton

    optional = {"key_zeros": cache.keys.zeros, "value_zeros": cache.values.zeros, "sinks": sinks}
    given = {name: tensor(array) for name, array in optional.items() if array is not None}
    if cache.spec.keys.tokens > 1:
        given["tail"] = tensor(cache.tail)
    found = in_triton.cached_attention(
        *(tensor(each) for each in (q, cache.keys.words, cache.keys.scales, cache.values.words, cache.values.scales, cache.tables)),
        tensor(cache.lengths), tensor(np.full(1, score_factor(cache))), tensor(np.full(1, cache.values.tensor_scale)),
        cache=cache.spec.name, **given, **options,
    )  # fmt: skip
    return np.asarray(found.numpy())


def ex2(arch: str) -> Any:
    def of(x: np.ndarray) -> np.ndarray:
        found: np.ndarray = mmabits.function("ex2.approx.ftz.f32", np.ascontiguousarray(x), arch=arch)
        return found

    return of


COMPILED = [
    pytest.param(name, arch, marks=() if (name, arch) == ("int4-kivi", "sm_90a") else pytest.mark.slow, id=f"{name}-{arch}")
    for name in CACHES
    for arch in ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a")
]


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(("name", "arch"), COMPILED)
def test_compiled_kernel_is_the_composition(name: str, arch: str) -> None:
    """With the GPU's exp2: decode in three splits with sinks, prefill with a window."""
    pytest.importorskip("triton")
    cache, sinks = cache_of(name, lengths=LENGTHS), np.array([1.5, -2, 0, 3], F32)
    with mmabits.emulate(arch, frameworks=["triton"], triton="compiled"):
        decoded = launched(cache, queries(), sinks, splits=3)
        filled = launched(cache, queries(40), window=30, block_q=64)
    few, many = (compiled_dots(name, arch, rows) for rows in (16, 64))
    assert np.array_equal(decoded, cached_attention(queries(), cache, arch=few, splits=3, sinks=sinks, exp2=ex2(arch)))
    assert np.array_equal(filled, cached_attention(queries(40), cache, arch=many, window=30, rows=64, exp2=ex2(arch)))


SHAPES = {
    "bf16, D of 128": (128, ml_dtypes.bfloat16, 1, 16, 64, "sm_80", {"splits": 2}),
    "six heads a key head": (128, ml_dtypes.bfloat16, 1, 16, 32, "sm_90a", {"splits": 2, "heads": 12}),
    "prefill, D of 128": (128, F16, 20, 64, 64, "sm_90a", {}), "D of 32": (32, F16, 20, 32, 32, "sm_80", {"window": 33}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CACHES)
def test_other_shapes_have_the_same_order_of_sums(name: str, shape: str) -> None:
    pytest.importorskip("triton")
    width, dtype, new, rows, block, arch, options = SHAPES[shape]
    fields = {each: value for each, value in options.items() if each != "heads"}
    cache = cache_of(name, lengths=LENGTHS, width=width, dtype=dtype)
    q = np.random.default_rng(SEED).standard_normal((2, options.get("heads", 4), new, width)).astype(dtype)
    with mmabits.emulate(arch, frameworks=["triton"], triton="compiled"):
        got = launched(cache, q, block_q=rows, block_k=block, **fields)
    wanted = cached_attention(q, cache, arch=compiled_dots(name, arch, rows), rows=rows, block=block, exp2=ex2(arch), **fields)
    assert np.array_equal(got, wanted)


def test_the_kernel_over_hard_numbers() -> None:
    """bf16, zeros, subnormals, an outlier, NaN, a token of zeros: as the composition, NaN where it has them."""
    pytest.importorskip("triton")
    for name in CACHES:
        cache = cache_of(name, lengths=(0, 71), dtype=ml_dtypes.bfloat16)
        keys, values = tokens(100), tokens(100, seed=1)
        keys[3], keys[4], values[5], keys[6, 0, 1] = 0, 2.0**-135, 2.0**-140, 30000
        if name in ("mxfp8", "nvfp4"):
            keys[40, 1, 3] = np.nan
        cache.append(0, keys, values)
        q = queries(2, dtype=ml_dtypes.bfloat16)
        with mmabits.emulate("sm_90a", frameworks=["triton"], triton="interpreted"):
            got = launched(cache, q, splits=2)
        wanted = cached_attention(q, cache, arch=compiled_dots(name, "sm_90a"), splits=2)
        same = (got.view(np.uint32) == wanted.view(np.uint32)) | (np.isnan(got) & np.isnan(wanted))
        assert same.all() and np.isnan(wanted).any() == (name in ("mxfp8", "nvfp4"))


def test_the_launcher_of_nothing_and_of_wrong_tensors() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    cache = cache_of("int4-kivi", lengths=LENGTHS)
    assert launched(cache, np.zeros((2, 4, 0, 64), F16)).shape == (2, 4, 0, 64)
    with pytest.raises(OperandError, match="splits must be a whole number from 1 on, got 0"):
        launched(cache, queries(), splits=0)
    with pytest.raises(OperandError, match="lengths are 90 to 128, got 71"):
        launched(cache, queries(90))
    with pytest.raises(OperandError, match="sinks must have shape"):
        launched(cache, queries(), np.zeros(3, F32))
    case = KERNEL_CASES["triton-cached-int8"]
    given = {name: torch.from_numpy(array) for name, array in case.draw(0).inputs.items()}
    with pytest.raises(OperandError, match="no key_zeros"):
        case.function(**given, key_zeros=given["key_scales"])
    with pytest.raises(OperandError, match="takes no tail"):
        case.function(**given, tail=given["q"])
    with pytest.raises(OperandError, match="pages are 0 to 9, got 11"):
        case.function(**{**given, "tables": given["tables"] + 11 - given["tables"][0, 0]})
