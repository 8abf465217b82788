"""Quantized attention: SageAttention, its FP8 successor with two-level accumulation, FP8 attention over an FP8 KV cache, and in blocks.

All walk the keys in blocks with an online softmax in base 2. For the block of scores s (float32) of a block of queries, with running
maximum m, sum l and output o, all float32 and each operation rounded once to nearest even:

    m' = max(m, max over the block of s);  alpha = exp2(m - m');  p = exp2(s - m') (FP8 cache, FP8 blocks: exp2((s - m') + 8))
    l = l * alpha + tree(p);  o = o * alpha + P V  (FP8 cache: o * alpha is the accumulator of P V)

and at the end o / l. `tree` adds neighbours, then neighbours of those sums, and so on, so its order is the same everywhere. `exp2` is
NumPy's on float32, in the kernels under emulation as here; a GPU's ex2.approx differs in the last bits and is not modelled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.codecs import encode, from_codes
from mmabits.isa import OperandError, OperandTypeError
from mmabits.kernels.schemes.checks import (
    Array,
    check_block,
    check_finite,
    check_lengths,
    check_multiple,
    check_range,
    check_shape,
    check_whole,
    checked,
    positive,
)  # fmt: skip
from mmabits.kernels.schemes.dots import Dots, as_dots

BLOCK_QUERIES: Final = 64
BLOCK_KEYS: Final = 64
LOG2_E: Final = np.float32(1.4426950408889634)
E4M3_LARGEST: Final = np.float32(448)
P_OFFSET: Final = np.float32(8)
"""FP8 attention raises p by 2^8, so that e4m3 holds it down to 2^-17 of the largest."""

Floats = npt.NDArray[np.float32]
Exp2 = Callable[[Floats], Floats]
_E4M3: Final = ml_dtypes.float8_e4m3fn


# Quantizers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Int8Blocks:
    """Rows of heads in INT8, with a scale for each block of rows of a head."""

    codes: npt.NDArray[np.int8]
    """(heads, rows, D)."""
    scales: Floats
    """(heads, ceil(rows / block)), finite."""
    block: int
    """Rows with one scale."""

    def __post_init__(self) -> None:
        """Check dtypes, shapes and scales."""
        if self.block < 1:
            raise OperandError(f"block must be positive, got {self.block}")
        heads, rows, _ = checked(self.codes, "codes", (np.int8,), 3).shape
        check_shape(checked(self.scales, "scales", (np.float32,), 2), "scales", (heads, -(-rows // self.block)))
        check_finite(self.scales, "scales")


@dataclass(frozen=True, kw_only=True, eq=False)
class E4M3Columns:
    """Values of heads in e4m3, with a scale for each column of a head."""

    codes: Array
    """(heads, rows, D) float8_e4m3fn."""
    scales: Floats
    """(heads, D), finite."""

    def __post_init__(self) -> None:
        """Check dtypes, shapes and scales."""
        heads, _, width = checked(self.codes, "codes", (_E4M3,), 3).shape
        check_shape(checked(self.scales, "scales", (np.float32,), 2), "scales", (heads, width))
        check_finite(self.scales, "scales")


def _heads(array: Any, name: str, dtypes: tuple[Any, ...] = (np.float32,)) -> Array:
    given = checked(array, name, dtypes, 3)
    check_finite(given.astype(np.float32, copy=False), name)
    return given


def smooth_keys(keys: Array) -> Floats:
    """Keys without their mean over the tokens of a head, which moves all scores of a query alike: (heads, tokens, D) float32.

    The mean is summed in float64 and rounded once; the subtraction is float32.

    Raises:
        OperandTypeError, OperandError: something else than finite float32 of three dimensions.

    Source: Zhang et al., SageAttention (arXiv 2410.02367), section 4.2.
    """
    k = _heads(keys, "keys")
    if k.size == 0:
        return k.copy()
    return np.asarray(k - k.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32))


def quantize_blocks(rows: Array, *, block: int, factor: float = 1.0) -> Int8Blocks:
    """INT8 with a scale for each block of rows: `scale = max |x| / 127`; code = x / scale, half a unit added away from zero, cut.

    Float32 throughout, as in SageAttention's own Triton kernel.

    Args:
        rows: (heads, rows, D) float32, finite.
        block: rows with one scale; the last block may be shorter.
        factor: multiplied into `rows` first, positive and finite: 1 / sqrt(D) * log2(e) for queries.

    Raises:
        OperandTypeError, OperandError: something else, products with `factor` that are not finite.
    """
    given = _heads(rows, "rows")
    if block < 1:
        raise OperandError(f"block must be positive, got {block}")
    heads, count, width = given.shape
    blocks = -(-count // block)
    x = np.zeros((heads, blocks * block, width), np.float32)
    with np.errstate(over="ignore", under="ignore"):
        x[:, :count] = given * positive(factor, "factor")
    check_finite(x, "rows times the factor")
    grouped = x.reshape(heads, blocks, block * width)
    with np.errstate(under="ignore"):
        wanted = np.abs(grouped).max(axis=2, initial=np.float32(0)) / np.float32(127)
        scales = np.where(wanted > 0, wanted, np.float32(1)).astype(np.float32)
        steps = grouped / scales[..., None]
    codes = np.clip(np.trunc(steps + np.copysign(np.float32(0.5), steps)), -127, 127).astype(np.int8)
    return Int8Blocks(codes=np.ascontiguousarray(codes.reshape(x.shape)[:, :count]), scales=scales, block=block)


def query_factor(width: int) -> np.float32:
    """What scores are multiplied by for exp2: float32(1 / sqrt(D)) * log2(e); that of D = 1 where D is 0 and there are none."""
    return np.float32(np.float32(1 / np.sqrt(max(width, 1))) * LOG2_E)


def quantize_queries(queries: Array, *, block: int = BLOCK_QUERIES) -> Int8Blocks:
    """Queries for SageAttention: scaled by `query_factor`, then `quantize_blocks`."""
    given = _heads(queries, "queries")
    return quantize_blocks(given, block=block, factor=float(query_factor(given.shape[2])))


def quantize_keys(keys: Array, *, block: int = BLOCK_KEYS) -> Int8Blocks:
    """Keys for SageAttention: smoothed, then `quantize_blocks`."""
    return quantize_blocks(smooth_keys(keys), block=block)


def _to_e4m3(values: Array) -> Array:
    return from_codes(encode(values, "e4m3", satfinite=True), "e4m3")


def _p_to_e4m3(p: Array, through_f16: bool) -> Array:
    """P in e4m3, rounded once, or cut to f16 first."""
    return _to_e4m3(from_codes(encode(p, "f16", rounding="rz"), "f16") if through_f16 else p)


def quantize_values(values: Array) -> E4M3Columns:
    """Values in e4m3 with a scale for each column of a head: `scale = max |v| / 448`, code = e4m3(v / scale).

    Args:
        values: (heads, tokens, D) float32, finite.

    Raises:
        OperandTypeError, OperandError: something else.

    Source: Zhang et al., SageAttention2 (arXiv 2411.10958), section 3.
    """
    v = _heads(values, "values")
    with np.errstate(under="ignore"):
        wanted = np.abs(v).max(axis=1, initial=np.float32(0)) / E4M3_LARGEST
        scales = np.where(wanted > 0, wanted, np.float32(1)).astype(np.float32)
        return E4M3Columns(codes=_to_e4m3(v / scales[:, None]), scales=scales)


@dataclass(frozen=True, kw_only=True, eq=False)
class Fp8Blocks:
    """Rows of heads in e4m3, with a scale for each block of rows of a head: FlashAttention-3's queries, keys and values."""

    codes: Array
    """(heads, rows, D) float8_e4m3fn."""
    scales: Floats
    """(heads, ceil(rows / block)), finite."""
    block: int
    """Rows with one scale."""

    def __post_init__(self) -> None:
        """Check dtypes, shapes and scales."""
        if self.block < 1:
            raise OperandError(f"block must be positive, got {self.block}")
        heads, rows, _ = checked(self.codes, "codes", (_E4M3,), 3).shape
        check_shape(checked(self.scales, "scales", (np.float32,), 2), "scales", (heads, -(-rows // self.block)))
        check_finite(self.scales, "scales")

    def dequantize(self) -> Floats:
        """Code times scale, rounded once to float32."""
        of_rows = np.repeat(self.scales, self.block, axis=1)[:, : self.codes.shape[1], None]
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(self.codes.astype(np.float32) * of_rows)


def random_signs(width: int, seed: int) -> Floats:
    """D random signs for `incoherent`: float32 +1 or -1."""
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), width)


def incoherent(rows: Array, signs: Floats) -> Floats:
    """Rows times random signs times a Hadamard matrix over sqrt(D): spreads outliers over all channels, and leaves products as they are.

    Queries and keys are turned alike, so that Q K^T stays. Float32 sums and differences of neighbours, then of those at distance 2, 4, and
    so on; at the end a product with float32(1 / sqrt(D)).

    Args:
        rows: (heads, rows, D) float32, finite, D a power of two.
        signs: (D,) float32, 1 or -1.

    Raises:
        OperandTypeError, OperandError: something else, results that are not finite.

    Source: Shah et al., FlashAttention-3 (arXiv 2407.08608), section 3.3.
    """
    given = _heads(rows, "rows")
    width = given.shape[2]
    check_shape(checked(signs, "signs", (np.float32,), 1), "signs", (width,))
    if width & (width - 1) or not (np.abs(signs) == 1).all():
        raise OperandError(f"D must be a power of two and signs 1 or -1, got D = {width}")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        turned = given * signs
        for stride in (1 << level for level in range(max(width, 1).bit_length() - 1)):
            pairs = turned.reshape(*given.shape[:2], width // (2 * stride), 2, stride)
            first, second = pairs[..., 0, :], pairs[..., 1, :]
            turned = np.stack([first + second, first - second], axis=-2).reshape(given.shape)
        turned = np.asarray(turned * np.float32(1 / np.sqrt(max(width, 1))))
    check_finite(turned, "turned rows")
    return turned


def quantize_fp8_blocks(rows: Array, *, block: int, signs: Floats | None = None) -> Fp8Blocks:
    """e4m3 with a scale for each block of rows: `scale = max |x| / 448`, 1 where that is zero; code = e4m3(x / scale), saturating.

    Args:
        rows: (heads, rows, D) float32, finite.
        block: rows with one scale; the last block may be shorter.
        signs: of `incoherent`, for queries and keys; None: rows as they are.

    Raises:
        OperandTypeError, OperandError: something else.

    Source: Shah et al., FlashAttention-3 (arXiv 2407.08608), section 3.3.
    """
    given = _heads(rows, "rows") if signs is None else incoherent(rows, signs)
    if block < 1:
        raise OperandError(f"block must be positive, got {block}")
    heads, count, width = given.shape
    x = np.zeros((heads, -(-count // block) * block, width), np.float32)
    x[:, :count] = given
    grouped = x.reshape(heads, -1, block * width) if x.size else np.zeros((heads, -(-count // block), 0), np.float32)
    with np.errstate(under="ignore"):
        wanted = np.abs(grouped).max(axis=2, initial=np.float32(0)) / E4M3_LARGEST
        scales = np.where(wanted > 0, wanted, np.float32(1)).astype(np.float32)
        codes = _to_e4m3(grouped / scales[..., None]).reshape(x.shape)
    return Fp8Blocks(codes=np.ascontiguousarray(codes[:, :count]), scales=scales, block=block)


@dataclass(frozen=True, kw_only=True, eq=False)
class PagedCache:
    """Keys and values in e4m3, in pages; a sequence's tokens lie in the pages that a table names."""

    keys: Array
    """(pages, page, heads, D) float8_e4m3fn."""
    values: Array
    """Likewise."""
    key_scale: np.float32
    """One for the whole cache, positive and finite: key = code * scale."""
    value_scale: np.float32
    """Likewise."""

    def __post_init__(self) -> None:
        """Check dtypes, shapes and scales."""
        checked(self.keys, "keys", (_E4M3,), 4)
        check_shape(checked(self.values, "values", (_E4M3,), 4), "values", self.keys.shape)
        for name in ("key_scale", "value_scale"):
            if not isinstance(scale := getattr(self, name), np.float32):
                raise OperandTypeError(f"{name} must be a NumPy float32, got {type(scale).__name__}")
            positive(scale, name)

    def write(self, slots: Array, keys: Array, values: Array) -> None:
        """Quantize tokens into the cache: code = e4m3(x / scale), saturating.

        Args:
            slots: (tokens,) int64: page * tokens of a page + place in it.
            keys: (tokens, heads, D) float32.
            values: likewise.

        Raises:
            OperandTypeError, OperandError: something else, or a slot that is not there.
        """
        pages, page, heads, width = self.keys.shape
        places = checked(slots, "slots", (np.int64,), 1)
        for array, name in ((keys, "keys"), (values, "values")):
            check_shape(_heads(array, name), name, (places.size, heads, width))
        check_range(places, "slots", 0, pages * page - 1)
        with np.errstate(over="ignore", under="ignore"):
            self.keys[places // page, places % page] = _to_e4m3(keys / self.key_scale)
            self.values[places // page, places % page] = _to_e4m3(values / self.value_scale)

    def sequence(self, table: Array, length: int) -> tuple[Array, Array]:
        """Keys and values of one sequence, (heads, length, D) each.

        Raises:
            OperandTypeError, OperandError: a table of another dtype, too short, or with pages that are not there.
        """
        pages, page = self.keys.shape[:2]
        row = checked(table, "the page table", (np.int32,), 1)
        needed = -(-length // page)
        if length < 1 or needed > row.size:
            raise OperandError(f"a sequence of {length} tokens needs {needed} pages of {page}, the table has {row.size}")
        check_range(row[:needed], "pages", 0, pages - 1)

        def rows(cache: Array) -> Array:
            return np.ascontiguousarray(cache[row[:needed]].reshape(needed * page, *cache.shape[2:])[:length].swapaxes(0, 1))

        return rows(self.keys), rows(self.values)


def empty_cache(pages: int, page: int, heads: int, width: int, *, key_scale: float, value_scale: float) -> PagedCache:
    """A cache of zeros.

    Raises:
        OperandError: sizes that are not positive, scales that are not positive and finite as float32.
    """
    if min(pages, page, heads, width) < 1:
        raise OperandError(f"sizes must be positive, got {(pages, page, heads, width)}")
    scales = positive(key_scale, "key_scale"), positive(value_scale, "value_scale")
    zeros = np.zeros((2, pages, page, heads, width), _E4M3)
    return PagedCache(keys=zeros[0], values=zeros[1], key_scale=scales[0], value_scale=scales[1])


def quantize_fp8_queries(queries: Array, *, scale: float) -> Array:
    """Queries in e4m3 with one static scale: e4m3(q / scale), saturating; (heads, queries, D).

    Raises:
        OperandTypeError, OperandError: something else than finite float32 of three dimensions, a scale that is not positive and finite
            as float32.
    """
    with np.errstate(over="ignore", under="ignore"):
        return _to_e4m3(_heads(queries, "queries") / positive(scale, "scale"))


# Compositions ---------------------------------------------------------------------------------------------------------


def tree_sum(rows: Floats) -> Floats:
    """The sum of each row as a tree of neighbours: (M, N) to (M,), N a power of two."""
    while rows.shape[1] > 1:
        rows = rows[:, 0::2] + rows[:, 1::2]
    return rows[:, 0]


@dataclass(frozen=True, kw_only=True)
class _Walk:
    """The keys that a block of queries meets."""

    first_query: int
    queries: int
    keys: int
    block: int
    causal: bool

    @property
    def starts(self) -> range:
        """First keys of the blocks; of causal attention none past the last query."""
        end = min(self.keys, self.first_query + self.queries) if self.causal else self.keys
        return range(0, end, self.block)

    def masked(self, scores: Floats, start: int) -> Floats:
        """Minus infinity for keys that are not there, or come after the query."""
        key = start + np.arange(self.block)[None, :]
        allowed = np.broadcast_to(key < self.keys, scores.shape)
        if self.causal:
            allowed = allowed & (key <= self.first_query + np.arange(scores.shape[0])[:, None])
        return np.where(allowed, scores, np.float32(-np.inf)).astype(np.float32)


def _online_softmax(
    walk: _Walk,
    rows: int,
    width: int,
    scores: Callable[[int], Floats],
    weighted: Callable[[int, Floats, Floats], Floats],
    offset: np.float32,
    exp2: Exp2 = np.exp2,
) -> Floats:
    """The output of a block of queries before the scales of the values: (rows, D).

    Args:
        walk: keys.
        rows: of the block, padding included.
        width: D.
        scores: the scores with the block of keys at a place.
        weighted: the next output, from the place, p and the output times alpha.
        offset: added to the exponent of p.
        exp2: of float32, to float32.
    """
    top = np.full(rows, -np.inf, np.float32)
    total = np.zeros(rows, np.float32)
    output = np.zeros((rows, width), np.float32)
    with np.errstate(under="ignore"):
        for start in walk.starts:
            s = walk.masked(scores(start), start)
            new_top = np.maximum(top, s.max(axis=1))
            alpha = exp2(top - new_top)
            shifted = s - new_top[:, None]
            p = exp2(shifted + offset if offset else shifted)
            total = total * alpha + tree_sum(p)
            output = weighted(start, p, output * alpha[:, None])
            top = new_top
        return np.asarray(output / total[:, None])


def _padded(rows: Array, start: int, count: int) -> Array:
    """`count` rows from `start` on, zeros after the last."""
    part = rows[start : start + count]
    if part.shape[0] == count:
        return part
    return np.concatenate([part, np.zeros((count - part.shape[0], *part.shape[1:]), part.dtype)])


def _check_heads(queries: int, keys: int, causal: bool, q_heads: int, k_heads: int) -> None:
    if q_heads or k_heads:
        check_multiple(q_heads, k_heads, "the number of query heads", "the number of key heads")
    if causal and queries != keys:
        raise OperandError(f"causal attention needs as many queries as keys, got {queries} and {keys}")


def _check_sage(q: Int8Blocks, k: Int8Blocks, v: Array, causal: bool) -> None:
    check_shape(v, "values", k.codes.shape)
    _check_heads(q.codes.shape[1], k.codes.shape[1], causal, q.codes.shape[0], k.codes.shape[0])
    if q.codes.shape[2] != k.codes.shape[2]:
        raise OperandError(f"queries have D = {q.codes.shape[2]} and keys {k.codes.shape[2]}")
    if k.block & (k.block - 1):
        raise OperandError(f"blocks of keys must be a power of two, got {k.block}")


def _sage(
    q: Int8Blocks, k: Int8Blocks, v: Array, causal: bool, qk: Dots, weighted: Callable[[Floats, Array, Floats], Floats],
    exp2: Exp2 = np.exp2,
) -> Floats:  # fmt: skip
    """SageAttention with any product of p and values: (heads, queries, D) float32, zeros where there are no keys."""
    heads, queries, width = q.codes.shape
    keys = k.codes.shape[1]
    result = np.zeros(q.codes.shape, np.float32)
    if keys == 0 or result.size == 0:
        return result
    share = heads // k.codes.shape[0]
    for head in range(heads):
        own = head // share
        for number in range(q.scales.shape[1]):
            first = number * q.block
            walk = _Walk(first_query=first, queries=q.block, keys=keys, block=k.block, causal=causal)
            tile = _padded(q.codes[head], first, q.block)

            def scores(start: int, tile: Array = tile, head: int = head, own: int = own, number: int = number) -> Floats:
                sums = qk(tile, np.ascontiguousarray(_padded(k.codes[own], start, k.block).T))
                scale = q.scales[head, number] * k.scales[own, start // k.block]
                return np.asarray(sums.astype(np.float32) * scale)

            def onward(start: int, p: Floats, output: Floats, own: int = own) -> Floats:
                return weighted(p, _padded(v[own], start, k.block), output)

            done = _online_softmax(walk, q.block, width, scores, onward, np.float32(0), exp2)
            result[head, first : first + q.block] = done[: queries - first]
    return result


def sage_attention(
    q: Int8Blocks, k: Int8Blocks, values: Array, *, arch: str | Dots, pv: Dots | None = None, causal: bool = False
) -> Floats:
    """SageAttention: INT8 scores, P and V in f16 with f16 accumulators. The bits of `mmabits.kernels.triton.attention`.

    A score is f32(sum of INT8 products) * (scale of the queries * scale of the keys). p is rounded to f16; P V of a block runs in
    an f16 accumulator from zero, is widened and added to the float32 output.

    Args:
        q: from `quantize_queries`; heads a multiple of those of the keys.
        k: from `quantize_keys`.
        values: (heads of k, keys, D) float16.
        arch: architecture, or the dots of Q and K.
        pv: the dots of P and V, where they are not those of `arch`.
        causal: whether a query sees no later keys.

    Returns:
        (heads, queries, D) float32.

    Raises:
        MmabitsError: operands that do not fit; as `mmabits.gemm`.
    """
    v = checked(values, "values", (np.float16,), 3)
    _check_sage(q, k, v, causal)
    qk = as_dots(arch)
    dots = Dots(arch=qk.arch, require=qk.require) if pv is None else pv

    def weighted(p: Floats, block: Array, output: Floats) -> Floats:
        part = dots(p.astype(np.float16), block, accumulator="f16")
        return np.asarray(output + part.astype(np.float32))

    return _sage(q, k, v, causal, qk, weighted)


def sage2_attention(
    q: Int8Blocks, k: Int8Blocks, v: E4M3Columns, *, arch: str | Dots, pv: Dots | None = None, causal: bool = False,
    through_f16: bool = False, exp2: Exp2 = np.exp2,
) -> Floats:  # fmt: skip
    """SageAttention's FP8 successor: INT8 scores, P and V in e4m3, accumulated at two levels.

    448 p is rounded to e4m3; P V of a block starts from zero in the tensor core's accumulator and is added to a float32 output by
    an IEEE addition. At the end the output is multiplied by f32(scale of the column / 448).

    Args:
        q: from `quantize_queries`.
        k: from `quantize_keys`.
        v: from `quantize_values`.
        arch: architecture, or the dots of Q and K.
        pv: the dots of P and V, where they are not those of `arch`.
        causal: whether a query sees no later keys.
        through_f16: cut p to f16 before it is rounded to e4m3, as Triton 3.6 to 3.8 do for sm_89.
        exp2: another one than NumPy's, of float32 to float32: a GPU's is `mmabits.function("ex2.approx.ftz.f32", x, arch=...)`.

    Returns:
        (heads, queries, D) float32.

    Raises:
        MmabitsError: operands that do not fit; as `mmabits.gemm`.
    """
    codes = check_sage2(q, k, v, causal)
    qk = as_dots(arch)
    dots = Dots(arch=qk.arch, require=qk.require) if pv is None else pv

    def weighted(p: Floats, block: Array, output: Floats) -> Floats:
        return np.asarray(output + dots(_p_to_e4m3(p * E4M3_LARGEST, through_f16), block))

    share = q.codes.shape[0] // max(codes.shape[0], 1)
    return np.asarray(_sage(q, k, codes, causal, qk, weighted, exp2) * np.repeat(sage2_output_scales(v), share, axis=0)[:, None])


def check_sage2(q: Int8Blocks, k: Int8Blocks, v: E4M3Columns, causal: bool) -> Array:
    """The codes of the values.

    Raises:
        OperandTypeError, OperandError: operands that do not fit each other.
    """
    codes = checked(v.codes, "values", (_E4M3,), 3)
    check_shape(v.scales, "scales of the values", (codes.shape[0], codes.shape[2]))
    _check_sage(q, k, codes, causal)
    return codes


def sage2_output_scales(v: E4M3Columns) -> Floats:
    """What the output's columns are multiplied by: scale / 448, (heads, D)."""
    with np.errstate(under="ignore"):
        return np.asarray(v.scales / E4M3_LARGEST)


def fp8_block_attention(
    q: Fp8Blocks, k: Fp8Blocks, v: Fp8Blocks, *, arch: str | Dots, pv: Dots | None = None, causal: bool = False, through_f16: bool = False,
    exp2: Exp2 = np.exp2,
) -> Floats:  # fmt: skip
    """FlashAttention-3's FP8 scheme: Q, K, P and V in e4m3, with a scale for each block. The bits of `mmabits.kernels.triton.attention`.

    A score is the f32 sum times ((`query_factor` * scale of the queries) * scale of the keys). p is raised by 2^8 and rounded to e4m3. P V
    of a block starts from zero, since its scale is the block's own: the output is o * alpha + (P V) * scale. (The library's own kernel has
    one scale of the values for a head, and lets o * alpha be the accumulator.)

    Args:
        q: from `quantize_fp8_blocks`, with the signs of the keys; heads a multiple of those of the keys.
        k: from `quantize_fp8_blocks`; its blocks, a power of two, are the kernel's.
        v: from `quantize_fp8_blocks`, with the same blocks.
        arch: architecture, or the dots of Q and K.
        pv: the dots of P and V, where they are not those of `arch`.
        causal: whether a query sees no later keys.
        through_f16: cut p to f16 before it is rounded to e4m3, as Triton 3.6 to 3.8 do for sm_89.
        exp2: another one than NumPy's, of float32 to float32.

    Returns:
        (heads, queries, D) float32, zeros where there are no keys.

    Raises:
        MmabitsError: operands that do not fit; as `mmabits.gemm`.
    """
    check_shape(v.codes, "values", k.codes.shape)
    heads, queries, width = q.codes.shape
    keys = k.codes.shape[1]
    _check_heads(queries, keys, causal, heads, k.codes.shape[0])
    if width != k.codes.shape[2] or k.block != v.block or k.block & (k.block - 1):
        raise OperandError(
            f"D and the blocks of keys and values must be equal, those a power of two; got D of {width} and {k.codes.shape[2]}, blocks of "
            f"{k.block} and {v.block}"
        )
    qk = as_dots(arch)
    weigh = Dots(arch=qk.arch, require=qk.require) if pv is None else pv
    result = np.zeros(q.codes.shape, np.float32)
    if keys == 0 or result.size == 0:
        return result
    for head, number in np.ndindex(heads, q.scales.shape[1]):
        own, first = head // (heads // k.codes.shape[0]), number * q.block
        walk = _Walk(first_query=first, queries=q.block, keys=keys, block=k.block, causal=causal)
        tile, factor = _padded(q.codes[head], first, q.block), np.float32(query_factor(width) * q.scales[head, number])

        def scores(start: int, tile: Array = tile, own: int = own, factor: np.float32 = factor) -> Floats:
            sums = qk(tile, np.ascontiguousarray(_padded(k.codes[own], start, k.block).T))
            return np.asarray(sums * (factor * k.scales[own, start // k.block]))

        def weighted(start: int, p: Floats, output: Floats, own: int = own) -> Floats:
            part = weigh(_p_to_e4m3(p, through_f16), _padded(v.codes[own], start, k.block))
            return np.asarray(output + part * v.scales[own, start // k.block])

        done = _online_softmax(walk, q.block, width, scores, weighted, P_OFFSET, exp2)
        result[head, first : first + q.block] = done[: queries - first]
    return result


def fp8_score_factor(width: int, query_scale: float, key_scale: np.float32) -> np.float32:
    """What FP8 scores are multiplied by: (`query_factor` * scale of the queries) * scale of the keys.

    Raises:
        OperandError: scales, or a product of them, that are not positive and finite in float32.
    """
    with np.errstate(over="ignore", under="ignore"):
        factor = np.float32((query_factor(width) * positive(query_scale, "query_scale")) * positive(key_scale, "key_scale"))
    return positive(factor, "the factor of the scores")


def fp8_attention(
    queries: Array, cache: PagedCache, tables: Array, lengths: Array, *, query_scale: float, arch: str | Dots, pv: Dots | None = None,
    block: int = BLOCK_KEYS, rows: int = BLOCK_QUERIES, through_f16: bool = False,
) -> Floats:  # fmt: skip
    """Attention of new queries over an FP8 KV cache, everything multiplied in e4m3 with f32 accumulators.

    The queries of a sequence are its last tokens, whose keys are in the cache already; each sees its own key and those before.
    p is raised by 2^8 and rounded to e4m3; the output times alpha is the accumulator of P V, as FlashAttention-3 has it.
    At the end it is multiplied by the scale of the values.

    Args:
        queries: (sequences, heads, new tokens, D) float8_e4m3fn.
        cache: keys and values.
        tables: (sequences, pages) int32.
        lengths: (sequences,) int32: tokens in the cache.
        query_scale: of the queries.
        arch: architecture, or the dots of Q and K.
        pv: the dots of P and V, where they are not those of `arch`.
        block: keys at a time, a power of two.
        rows: queries at a time.
        through_f16: cut p to f16 before it is rounded to e4m3, as Triton 3.6 to 3.8 do for sm_89.

    Returns:
        (sequences, heads, new tokens, D) float32.

    Raises:
        MmabitsError: operands that do not fit; as `mmabits.gemm`.
    """
    q = checked(queries, "queries", (_E4M3,), 4)
    sequences, heads, new, width = q.shape
    check_shape(checked(lengths, "lengths", (np.int32,), 1), "lengths", (sequences,))
    if checked(tables, "the page tables", (np.int32,), 2).shape[0] != sequences:
        raise OperandError(f"{sequences} sequences need as many page tables, got shape {tables.shape}")
    _check_heads(new, new, True, heads, cache.keys.shape[2])
    if width != cache.keys.shape[3]:
        raise OperandError(f"queries have D = {width} and the cache has {cache.keys.shape[3]}")
    check_block(block, "block")
    check_whole(rows, "rows")
    check_lengths(lengths, new)
    qk = as_dots(arch)
    weigh = Dots(arch=qk.arch, require=qk.require) if pv is None else pv
    factor = fp8_score_factor(width, query_scale, cache.key_scale)
    result = np.zeros(q.shape, np.float32)
    if result.size == 0:
        return result
    for sequence, head in np.ndindex(sequences, heads):
        length = int(lengths[sequence])
        keys, values = (each[head // (heads // cache.keys.shape[2])] for each in cache.sequence(tables[sequence], length))
        for first in range(0, new, rows):
            tile = _padded(q[sequence, head], first, rows)
            walk = _Walk(first_query=length - new + first, queries=rows, keys=length, block=block, causal=True)

            def scores(start: int, tile: Array = tile, keys: Array = keys) -> Floats:
                return np.asarray(qk(tile, np.ascontiguousarray(_padded(keys, start, block).T)) * factor)

            def weighted(start: int, p: Floats, output: Floats, values: Array = values) -> Floats:
                return weigh(_p_to_e4m3(p, through_f16), _padded(values, start, block), output)

            done = _online_softmax(walk, rows, width, scores, weighted, P_OFFSET)
            result[sequence, head, first : first + rows] = done[: new - first] * cache.value_scale
    return result
