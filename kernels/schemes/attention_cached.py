"""Attention over quantized KV caches: prefill and decode, causal, with a window, with sinks, queries of a group together, keys split.

The queries of a sequence are its last tokens. Rows of a tile are the query heads of one key head, token by token. Its keys are walked in
blocks, with an online softmax in base 2; blocks are shared out among `splits`, in order. A split has, of each row, a maximum m, a sum l and
an output o, all float32 and each operation rounded once to nearest even (`safe(m)` is m, or 0 where that is minus infinity):

    s = (q k) * factor, masked;  m' = max(m, max s);  alpha = exp2(m - safe(m'));  p = exp2(s - safe(m'))
    l = l * alpha + tree(p);  o = o * alpha + P V, where o * alpha is the accumulator of P V

and splits are added in order, from m = -inf, l = 0, o = 0 on, those without keys too:

    m' = max(m, m_i);  alpha = exp2(m - safe(m'));  beta = exp2(m_i - safe(m'));  l = l * alpha + l_i * beta;  o = o * alpha + o_i * beta

At the end o / l, times the scale of the whole of the values. So the number of splits changes bits: each walks with a maximum of its own.
A sink is a score without a value: the first split begins with m = sink * log2(e) and l = 1.

Keys and values are what `mmabits.kernels.schemes.kv_cache.CACHES` says. As in vLLM's kernels, a scale for each token and head stands
outside of the products: s = (q k) * (factor * scale), and P is p * scale of the value, rounded; other scales are multiplied in registers.
Keys that are masked still stand in a block, with p = 0: a NaN among their values is a NaN in the result, as it would be on the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandError, OperandTypeError
from mmabits.kernels.schemes.attention import LOG2_E, Exp2, query_factor, tree_sum
from mmabits.kernels.schemes.checks import Array, check_block, check_lengths, check_multiple, check_shape, check_whole, checked
from mmabits.kernels.schemes.dots import Dots, as_dots
from mmabits.kernels.schemes.kv_cache import CacheTile, KvCache

Floats = npt.NDArray[np.float32]

BLOCK_ROWS: Final = 16
BLOCK_KEYS: Final = 64
_MINUS: Final = np.float32(-np.inf)


@dataclass(frozen=True, kw_only=True)
class RowTile:
    """Rows of queries that share a key head, and the keys that they meet."""

    first: int
    """First row; a row is token * heads of a key head + head."""
    rows: int
    share: int
    """Query heads of a key head."""
    new: int
    """Tokens with queries."""
    length: int
    """Tokens in the cache."""
    window: int
    """Keys that a query sees, its own the last; 0: all."""
    block: int

    @property
    def places(self) -> Array:
        """Of each row, the place of its token."""
        return self.length - self.new + (self.first + np.arange(self.rows)) // self.share

    def split(self, number: int, splits: int) -> range:
        """First keys of the blocks of a split."""
        end = min(self.length, int(self.places[-1]) + 1)
        begin = max(0, int(self.places[0]) - self.window + 1) // self.block if self.window else 0
        blocks = -(-end // self.block) - begin
        each = -(-blocks // splits)
        return range((begin + number * each) * self.block, min((begin + (number + 1) * each) * self.block, end), self.block)

    def allowed(self, start: int) -> Array:
        """Which keys of a block which rows see."""
        key, place = start + np.arange(self.block)[None, :], self.places[:, None]
        seen = (key < self.length) & (key <= place)
        return seen & (key > place - self.window) if self.window else seen


@dataclass(kw_only=True)
class _Softmax:
    """The online softmax of a tile's rows."""

    top: Floats
    total: Floats
    output: Floats
    exp2: Exp2

    @classmethod
    def start(cls, rows: int, width: int, exp2: Exp2, sinks: Floats | None = None) -> _Softmax:
        top, total = np.full(rows, _MINUS), np.zeros(rows, np.float32)
        if sinks is not None:
            top, total = np.asarray(sinks * LOG2_E), total + np.float32(1)
        return cls(top=top, total=total, output=np.zeros((rows, width), np.float32), exp2=exp2)

    def weights(self, scores: Floats) -> Floats:
        """P of a block; moves the maximum, the sum and the output."""
        # A GPU's maximum takes the number where the other is NaN.
        new_top = np.fmax(self.top, np.fmax.reduce(scores, axis=1))
        safe = _finite(new_top)
        alpha = self.exp2(self.top - safe)
        p = self.exp2(scores - safe[:, None])
        self.total = self.total * alpha + tree_sum(p)
        self.output = self.output * alpha[:, None]
        self.top = new_top
        return p

    def add(self, other: _Softmax) -> None:
        """The keys of another split."""
        new_top = np.fmax(self.top, other.top)
        safe = _finite(new_top)
        alpha, beta = self.exp2(self.top - safe), self.exp2(other.top - safe)
        self.total = self.total * alpha + other.total * beta
        self.output = self.output * alpha[:, None] + other.output * beta[:, None]
        self.top = new_top


def _finite(top: Floats) -> Floats:
    return np.where(top == _MINUS, np.float32(0), top)


def score_factor(cache: KvCache) -> np.float32:
    """What scores are multiplied by: `query_factor` of D, times the scale of the whole of the keys."""
    return np.float32(query_factor(cache.width) * cache.keys.tensor_scale)


def cached_attention(
    queries: Array, cache: KvCache, *, arch: str | Dots, pv: str | Dots | None = None, splits: int = 1, window: int = 0,
    sinks: Array | None = None, rows: int = BLOCK_ROWS, block: int = BLOCK_KEYS, exp2: Exp2 = np.exp2,
) -> Floats:  # fmt: skip
    """Attention of new queries over a quantized cache. The bits of `mmabits.kernels.triton.attention_cached`.

    Args:
        queries: (sequences, heads, new tokens, D) float16 or bfloat16; heads a multiple of those of the keys.
        cache: the keys and values, those of the new tokens included. What leaves the range of the queries' type is infinite there, as in a
            kernel: beside float16 queries a number of an MXFP8 cache beyond 65504.
        arch: architecture, or the dots of Q and K. A Triton kernel with fewer than 64 rows multiplies by `mma.sync` everywhere, and where
            scales are bytes (MXFP8, NVFP4) its `mma.sync` take K four neighbours to a thread.
        pv: likewise of P and V, where they are not `arch` too.
        splits: parts of the keys that are walked apart and added in order.
        window: keys that a query sees, its own the last; 0: all.
        sinks: (heads,) float32, finite or minus infinity: logits that take part in the softmax without a value. None: none.
        rows: of a tile: tokens times query heads of a key head.
        block: keys at a time, a power of two.
        exp2: another one than NumPy's, of float32 to float32: a GPU's is `mmabits.function("ex2.approx.ftz.f32", x, arch=...)`.

    Returns:
        (sequences, heads, new tokens, D) float32.

    Raises:
        MmabitsError: operands that do not fit; as `mmabits.gemm`.
    """
    q = checked(queries, "queries", (np.float16, ml_dtypes.bfloat16), 4)
    _check(q, cache, splits, window, sinks, rows, block)
    sequences, heads, new, width = q.shape
    result = np.zeros(q.shape, np.float32)
    if result.size == 0:
        return result
    qk = as_dots(arch)
    weigh = qk if pv is None else as_dots(pv)
    share = heads // cache.heads
    for sequence, own in np.ndindex(sequences, cache.heads):
        tile, mine = cache.tile(sequence, own, q.dtype), slice(own * share, (own + 1) * share)
        by_row = q[sequence, mine].swapaxes(0, 1).reshape(new * share, width)
        sink = None if sinks is None else np.tile(sinks[mine], new)
        found = np.empty(by_row.shape, np.float32)
        for first in range(0, new * share, rows):
            place = RowTile(first=first, rows=rows, share=share, new=new, length=int(cache.lengths[sequence]), window=window, block=block)
            part = slice(first, min(first + rows, new * share))
            merged = _Softmax.start(rows, width, exp2)
            with np.errstate(all="ignore"):
                for number in range(splits):
                    begin = None if sink is None or number else _padded(sink[part], rows)
                    walked = _Softmax.start(rows, width, exp2, begin)
                    for start in place.split(number, splits):
                        _step(walked, _padded(by_row[part], rows), tile, place, start, score_factor(cache), qk, weigh)
                    merged.add(walked)
                done = (merged.output / merged.total[:, None]) * cache.values.tensor_scale
            found[part] = done[: part.stop - first]
        result[sequence, mine] = found.reshape(new, share, width).swapaxes(0, 1)
    return result


def _check(q: Array, cache: KvCache, splits: int, window: int, sinks: Array | None, rows: int, block: int) -> None:
    sequences, heads, new, width = q.shape
    if not isinstance(cache, KvCache):
        raise OperandTypeError(f"cache must be a KvCache, got {type(cache).__name__}")
    check_shape(cache.lengths, "lengths of the cache", (sequences,))
    if heads or cache.heads:
        check_multiple(heads, cache.heads, "the number of query heads", "the number of key heads")
    if width != cache.width:
        raise OperandError(f"queries have D = {width} and the cache has {cache.width}")
    for value, name, least in ((splits, "splits", 1), (rows, "rows", 1), (window, "window", 0)):
        check_whole(value, name, least)
    check_block(block, "block")
    check_lengths(cache.lengths, new)
    if sinks is not None:
        check_shape(checked(sinks, "sinks", (np.float32,), 1), "sinks", (heads,))
        if not (sinks < np.inf).all():
            raise OperandError("sinks must be finite or minus infinity")


def _padded(part: Any, rows: int, start: int = 0) -> Any:
    """`rows` of them from `start` on, zeros after the last."""
    found = np.zeros((rows, *part.shape[1:]), part.dtype)
    there = part[start : start + rows]
    found[: len(there)] = there
    return found


def _step(
    softmax: _Softmax, q: Array, tile: CacheTile, place: RowTile, start: int, factor: np.float32, qk: Dots, pv: Dots
) -> None:  # fmt: skip
    """A block of keys."""
    sums = qk(q, np.ascontiguousarray(_padded(tile.keys, place.block, start).T))
    factors = factor if tile.key_scales is None else factor * _padded(tile.key_scales, place.block, start)
    scores = np.where(place.allowed(start), sums * factors, _MINUS).astype(np.float32)
    p = softmax.weights(scores)
    if tile.value_scales is not None:
        p = p * _padded(tile.value_scales, place.block, start)
    softmax.output = pv(p.astype(q.dtype), _padded(tile.values, place.block, start), softmax.output)
