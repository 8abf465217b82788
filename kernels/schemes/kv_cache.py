"""KV caches in INT8, INT4, FP8, MXFP8 and NVFP4, in pages: what tokens become when they are appended, and what a kernel reads back.

Each cache is a row of `CACHES`. Elements lie in int32 words along D, four of 8 bits or eight of 4, lowest first. Appending never changes a
scale that is there. Where a scale is that of one token, tokens are quantized as they come. Where it is that of a channel over a group of
tokens (keys as KIVI has them), the tokens of a group that is not full stay unquantized, in the type of the queries, and are quantized
together when it is. So the bytes do not depend on how many tokens were appended at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.codecs import as_codes, decode, encode, from_codes
from mmabits.isa import OperandError, OperandTypeError
from mmabits.kernels.quantize import quantize_mx, quantize_nvfp4
from mmabits.kernels.schemes.checks import (
    Array,
    check_finite,
    check_multiple,
    check_range,
    check_shape,
    check_whole,
    checked,
    positive,
    row_named,
)

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.int32]

NVFP4_LARGEST: Final = 6.0 * 448.0
"""What `amax` of a cache is divided by for the scale of the whole."""
F16_LARGEST: Final = np.float32(65504)
_ONE: Final = np.float32(1)
_F16_SMALLEST: Final = np.float16(2.0**-24)
_TYPES: Final = (np.float16, ml_dtypes.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """How the keys, or the values, of a head are quantized."""

    element: str
    """`s8`, `u8`, `u4`, `e4m3` or `e2m1`."""
    scale: str
    """`f32`, `f16`, `ue8m0` or `ue4m3`."""
    zeros: bool = False
    """Whether a group's least number is stored too, in f16, and added."""
    tokens: int = 1
    """Tokens with one scale."""
    channels: int = 0
    """Neighbouring channels with one scale; 0: all of D."""

    @property
    def per_word(self) -> int:
        """Elements of a word."""
        return 8 if self.element in ("u4", "e2m1") else 4

    @property
    def levels(self) -> int:
        """Steps between the ends of an unsigned type."""
        return {"u8": 255, "u4": 15}[self.element]

    def group(self, width: int) -> int:
        """Channels with one scale, of D.

        Raises:
            OperandError: D is no multiple of them, or of the elements of a word.
        """
        check_multiple(width, self.per_word, "D", "the elements of a word,")
        size = self.channels or max(width, 1)
        check_multiple(width, size, "D", "the channels of a group,")
        return size


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """A cache: how keys are quantized, and how values."""

    name: str
    keys: Grouping
    values: Grouping
    outside: bool = False
    """Whether the kernel multiplies scores and weights by the scales; else it multiplies the elements by them."""
    what: str
    """What the kernel multiplies, in words."""
    source: str


_BY_TOKEN: Final = Grouping(element="s8", scale="f32")
_FP8_BY_TOKEN: Final = Grouping(element="e4m3", scale="f32")
_MX: Final = Grouping(element="e4m3", scale="ue8m0", channels=32)
_NV: Final = Grouping(element="e2m1", scale="ue4m3", channels=16)

CACHES: Final = {
    row.name: row
    for row in (
        CacheSpec(
            name="int8", keys=_BY_TOKEN, values=_BY_TOKEN, outside=True,
            what="codes, exact in f16 and bf16; scores times the scale of the key, p times that of the value: a scale for each token and "
            "head can stand outside of the products",
            source="vLLM, int8_per_token_head",
        ),
        CacheSpec(
            name="fp8", keys=_FP8_BY_TOKEN, values=_FP8_BY_TOKEN, outside=True,
            what="codes, exact in f16 and bf16; scores times the scale of the key, p times that of the value",
            source="vLLM, fp8_per_token_head",
        ),
        *(
            CacheSpec(
                name=f"{element.replace('u', 'int')}-kivi", keys=Grouping(element=element, scale="f16", zeros=True, tokens=32, channels=1),
                values=Grouping(element=element, scale="f16", zeros=True, channels=32),
                what="code * scale + least, rounded to the type of the queries: a scale for each channel is inside of the sum over D",
                source="KIVI (arXiv 2402.02750)",
            )
            for element in ("u8", "u4")
        ),
        CacheSpec(
            name="mxfp8", keys=_MX, values=_MX,
            what="element * scale, exact in bf16, and in f16 between 2^-14 and 65504: Q and P are f16 or bf16, for which no instruction "
            "takes block scales",
            source="OCP Microscaling Formats v1.0",
        ),
        CacheSpec(
            name="nvfp4", keys=_NV, values=_NV,
            what="element * block scale, exact in f16 and bf16; scores and output times the scale of the whole",
            source="the cache of TensorRT-LLM and vLLM; arXiv 2509.25149 for the format",
        ),
    )
}  # fmt: skip
"""Every cache by its name."""


def cache_spec(name: str | CacheSpec) -> CacheSpec:
    """The row of a name.

    Raises:
        OperandError: there is none.
    """
    if isinstance(name, CacheSpec):
        return name
    return row_named(CACHES, name, "cache")


# Words ----------------------------------------------------------------------------------------------------------------


def pack_elements(codes: Array, per_word: int) -> Words:
    """Words of codes, which are bytes: (..., D) uint8 to (..., D / per_word) int32, lowest first.

    Raises:
        OperandTypeError, OperandError: something else, codes that do not fit, a D that is no multiple.
    """
    given = checked(codes, "codes", (np.uint8,))
    check_multiple(given.shape[-1], per_word, "D", "the elements of a word,")
    if per_word == 8:
        check_range(given, "codes of 4 bits", 0, 15)
        given = given[..., 0::2] | given[..., 1::2] << np.uint8(4)
    words: Words = np.ascontiguousarray(given).view("<i4").astype(np.int32, copy=False)
    return words


def unpack_elements(words: Words, per_word: int) -> npt.NDArray[np.uint8]:
    """The inverse of `pack_elements`."""
    given = np.ascontiguousarray(checked(words, "words", (np.int32,)))
    codes = given.astype("<i4", copy=False).view(np.uint8)
    if per_word == 4:
        return codes
    return np.stack([codes & np.uint8(15), codes >> np.uint8(4)], axis=-1).reshape(*codes.shape[:-1], 2 * codes.shape[-1])


# Quantizers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedTokens:
    """Keys or values of tokens, quantized."""

    grouping: Grouping
    words: Words
    """(tokens, heads, D / elements of a word) int32."""
    scales: Array
    """(tokens / tokens of a group, heads, D / channels of a group): float32, float16, or bytes of ue8m0 or e4m3."""
    zeros: npt.NDArray[np.float16] | None = None
    """The least numbers of the groups, in the shape of `scales`; None: none are stored."""
    tensor_scale: np.float32 = _ONE
    """The scale of the whole."""

    def codes(self) -> Array:
        """(tokens, heads, D): int8, uint8, or the elements in their ml_dtypes type."""
        plain = unpack_elements(self.words, self.grouping.per_word)
        if self.grouping.element == "s8":
            return plain.view(np.int8)
        return plain if self.grouping.element.startswith("u") else from_codes(plain, self.grouping.element)

    def wide_scales(self) -> Floats:
        """A scale for each element, float32: (tokens, heads, D)."""
        return self._wide(_scale_values(self.scales, self.grouping.scale))

    def _wide(self, each: Array) -> Array:
        width = self.words.shape[2] * self.grouping.per_word
        return np.repeat(np.repeat(each, self.grouping.tokens, axis=0), self.grouping.group(width), axis=2)

    def scaled(self) -> Floats:
        """Elements times scales, plus the least numbers, each operation rounded once to float32; without the scale of the whole."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            found = self.codes().astype(np.float32) * self.wide_scales()
            return found if self.zeros is None else found + self._wide(self.zeros.astype(np.float32))

    def dequantize(self) -> Floats:
        """What the elements stand for: `scaled` times the scale of the whole."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return np.asarray(self.scaled() * self.tensor_scale)


def _scale_values(scales: Array, kind: str) -> Floats:
    return np.asarray(decode(scales, kind).astype(np.float32)) if scales.dtype == np.uint8 else scales.astype(np.float32)


def _check_tokens(values: Any, name: str, grouping: Grouping) -> Array:
    given = checked(values, name, (np.float32,), 3)
    grouping.group(given.shape[2])
    if grouping.scale in ("f32", "f16"):
        check_finite(given, name)
    if grouping.zeros and given.size and np.abs(given).max() > F16_LARGEST:
        raise OperandError(f"{name} must lie within {F16_LARGEST:.0f} of zero: their scales are f16; got {np.abs(given).max():.6g}")
    return given


def _amax(amax: float | None, name: str) -> np.float32:
    if amax is None:
        raise OperandError(f"NVFP4 needs {name}, the largest magnitude that is to be held: its scale of the whole is known beforehand")
    return positive(amax, name)


def quantize_tokens(values: Array, grouping: Grouping, *, amax: float | None = None) -> QuantizedTokens:
    """Keys or values of tokens as a cache stores them. Float32 operations, each rounded once; codes to nearest even.

    - s8: `scale = max |x| / 127`, 1 where that is zero; `code = x / scale`, cut to -127 to 127.
    - u8, u4: `least = f16(min x)`; `scale = f16((max x - least) / levels)`, 1 where max x is at most `least`, 2^-24 where it would be zero;
      `code = (x - least) / scale`, cut to 0 to `levels`, which are 255 and 15.
    - e4m3 with f32: `scale = max |x| / 448`, 1 where that is zero; `code = x / scale`, saturating.
    - e4m3 with ue8m0: `quantize_mx`, floor. e2m1 with e4m3: `quantize_nvfp4` with a static `amax`.

    Args:
        values: (tokens, heads, D) float32, tokens a multiple of those of a group; finite where scales are f32 or f16, and within f16
            where they are f16.
        grouping: the row's `keys` or `values`.
        amax: of NVFP4, which needs it: 6 * 448 times the scale of the whole, positive and finite. Larger magnitudes become about `amax`.

    Raises:
        OperandTypeError, OperandError: something else.
    """
    given = _check_tokens(values, "values", grouping)
    tokens, heads, width = given.shape
    check_multiple(tokens, grouping.tokens, "the number of tokens", "the tokens of a group,")
    if grouping.scale in ("ue8m0", "ue4m3"):
        is_mx = grouping.element == "e4m3"
        found = quantize_mx(given, format="e4m3") if is_mx else quantize_nvfp4(given, amax=_amax(amax, "amax"))
        assert found.scales is not None
        words = pack_elements(as_codes(found.elements, grouping.element), grouping.per_word)
        return QuantizedTokens(grouping=grouping, words=words, scales=found.scales.view(np.uint8), tensor_scale=found.tensor_scale)
    size = grouping.group(width)
    grouped = given.reshape(tokens // grouping.tokens, grouping.tokens, heads, width // size, size)
    codes, scales, zeros = _with_least(grouped, grouping.levels) if grouping.zeros else _symmetric(grouped, grouping.element)
    return QuantizedTokens(
        grouping=grouping, words=pack_elements(codes.reshape(given.shape), grouping.per_word), scales=scales, zeros=zeros
    )


def _symmetric(grouped: Floats, element: str) -> tuple[Array, Array, None]:
    largest = 127 if element == "s8" else 448
    with np.errstate(under="ignore"):
        wanted = np.abs(grouped).max(axis=(1, 4), initial=np.float32(0)) / np.float32(largest)
        scales = np.where(wanted > 0, wanted, np.float32(1)).astype(np.float32)
        steps = grouped / scales[:, None, :, :, None]
    if element == "s8":
        return np.clip(np.rint(steps), -largest, largest).astype(np.int8).view(np.uint8), scales, None
    return encode(steps, element, satfinite=True), scales, None


def _with_least(grouped: Floats, levels: int) -> tuple[Array, Array, Array]:
    if not grouped.size:
        empty = np.zeros((grouped.shape[0], *grouped.shape[2:4]), np.float16)
        return np.zeros(grouped.shape, np.uint8), empty + np.float16(1), empty
    with np.errstate(under="ignore"):
        least = grouped.min(axis=(1, 4)).astype(np.float16)
        span = grouped.max(axis=(1, 4)) - least.astype(np.float32)
        rounded = np.maximum((span / np.float32(levels)).astype(np.float16), _F16_SMALLEST)
        scales = np.where(span > 0, rounded, np.float16(1)).astype(np.float16)
        above = grouped - least.astype(np.float32)[:, None, :, :, None]
        codes = np.clip(np.rint(above / scales.astype(np.float32)[:, None, :, :, None]), 0, levels)
    return codes.astype(np.uint8), scales, least


# The cache ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Pages:
    """The keys, or the values, of a cache, in pages: as `QuantizedTokens`, with pages and places in them for tokens."""

    grouping: Grouping
    words: Words
    """(pages, page, heads, D / elements of a word)."""
    scales: Array
    """(pages, page / tokens of a group, heads, D / channels of a group)."""
    zeros: npt.NDArray[np.float16] | None
    """Likewise."""
    amax: float | None
    """Of NVFP4, as for `quantize_tokens`."""

    @property
    def tensor_scale(self) -> np.float32:
        """The scale of the whole."""
        return np.float32(_amax(self.amax, "amax") / np.float32(NVFP4_LARGEST)) if self.grouping.element == "e2m1" else np.float32(1)

    def _places(self, table: Array, start: int, stop: int, tokens: int) -> tuple[Array, Array]:
        """Pages and places in them of every `tokens`-th token."""
        page = self.words.shape[1]
        at = np.arange(start, stop, tokens)
        return table[at // page], at % page // tokens

    def write(self, table: Array, start: int, found: QuantizedTokens) -> None:
        """Store whole groups from the token `start` on."""
        stop = start + found.words.shape[0]
        self.words[self._places(table, start, stop, 1)] = found.words
        places = self._places(table, start, stop, self.grouping.tokens)
        self.scales[places] = found.scales
        if self.zeros is not None and found.zeros is not None:
            self.zeros[places] = found.zeros

    def read(self, table: Array, stop: int) -> QuantizedTokens:
        """The first tokens of a sequence, whole groups."""
        places = self._places(table, 0, stop, self.grouping.tokens)
        return QuantizedTokens(
            grouping=self.grouping, words=self.words[self._places(table, 0, stop, 1)], scales=self.scales[places],
            zeros=None if self.zeros is None else self.zeros[places], tensor_scale=self.tensor_scale,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class CacheTile:
    """The keys and values of a head of a sequence as the tensor cores get them."""

    keys: Array
    """(tokens, D) float16 or bfloat16."""
    values: Array
    """Likewise."""
    key_scales: Floats | None
    """(tokens,): what scores are multiplied by; None: nothing."""
    value_scales: Floats | None
    """(tokens,): what p is multiplied by."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KvCache:
    """Keys and values of sequences in pages, appended to; from `empty_kv_cache`."""

    spec: CacheSpec
    dtype: Any
    """Of what is not yet quantized: float16 or bfloat16."""
    keys: Pages
    values: Pages
    tables: npt.NDArray[np.int32]
    """(sequences, pages of a sequence)."""
    lengths: npt.NDArray[np.int32]
    """(sequences,): tokens so far."""
    tail: Array
    """(sequences, tokens of a group, heads, D) of `dtype`: the keys of the group that is not full, from its first place on. A group of
    one token never waits: then its second size is 0."""

    @property
    def heads(self) -> int:
        """Of the keys."""
        return int(self.keys.words.shape[2])

    @property
    def width(self) -> int:
        """D."""
        return int(self.keys.words.shape[3]) * self.spec.keys.per_word

    def append(self, sequence: int, keys: Array, values: Array) -> None:
        """Quantize tokens into the pages of a sequence, after those that are there.

        Args:
            sequence: which.
            keys: (tokens, heads, D) float32, as `quantize_tokens` takes them. Where they wait for their group they are rounded to `dtype`
                first.
            values: likewise.

        Raises:
            OperandTypeError, OperandError: something else, no such sequence, no room in its pages.
        """
        if not 0 <= sequence < self.lengths.size:
            raise OperandError(f"sequences are 0 to {self.lengths.size - 1}, got {sequence}")
        group, old, page = self.spec.keys.tokens, int(self.lengths[sequence]), self.keys.words.shape[1]
        new = checked(keys, "keys", (np.float32,), 3).shape[0]
        if group > 1:
            with np.errstate(over="ignore"):
                keys = keys.astype(self.dtype).astype(np.float32)
        for name, grouping, given in (("keys", self.spec.keys, keys), ("values", self.spec.values, values)):
            check_shape(_check_tokens(given, name, grouping), name, (new, self.heads, self.width))
        table = self.tables[sequence]
        if old + new > table.size * page:
            raise OperandError(f"sequence {sequence} has {old} tokens and room for {table.size * page}; {new} more do not fit")
        self.values.write(table, old, quantize_tokens(values, self.spec.values, amax=self.values.amax))
        if group == 1:
            self.keys.write(table, old, quantize_tokens(keys, self.spec.keys, amax=self.keys.amax))
        else:
            waiting = np.concatenate([self.tail[sequence, : old % group], keys.astype(self.dtype)])
            whole = len(waiting) // group * group
            self.keys.write(table, old - old % group, quantize_tokens(waiting[:whole].astype(np.float32), self.spec.keys))
            self.tail[sequence, : len(waiting) - whole] = waiting[whole:]
        self.lengths[sequence] = old + new

    def _parts(self, sequence: int) -> tuple[QuantizedTokens, QuantizedTokens, Array]:
        length, table = int(self.lengths[sequence]), self.tables[sequence]
        group = self.spec.keys.tokens
        whole = length // group * group
        return self.keys.read(table, whole), self.values.read(table, length), self.tail[sequence, : length - whole]

    def sequence(self, sequence: int) -> tuple[Floats, Floats]:
        """Keys and values of a sequence, dequantized: (heads, tokens, D) float32 each."""
        keys, values, tail = self._parts(sequence)
        every = np.concatenate([keys.dequantize(), tail.astype(np.float32)])
        return np.ascontiguousarray(every.swapaxes(0, 1)), np.ascontiguousarray(values.dequantize().swapaxes(0, 1))

    def tile(self, sequence: int, head: int, dtype: Any) -> CacheTile:
        """What attention multiplies; the scale of the whole is left out.

        Args:
            sequence: which.
            head: of the keys.
            dtype: that of the queries.
        """
        keys, values, tail = self._parts(sequence)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            if self.spec.outside:
                k, v = (each.codes()[:, head].astype(dtype) for each in (keys, values))
                return CacheTile(keys=k, values=v, key_scales=keys.scales[:, head, 0], value_scales=values.scales[:, head, 0])
            k = np.concatenate([keys.scaled()[:, head].astype(dtype), tail[:, head].astype(dtype)])
            return CacheTile(keys=k, values=values.scaled()[:, head].astype(dtype), key_scales=None, value_scales=None)


def empty_kv_cache(
    name: str | CacheSpec, *, tables: Array, pages: int, page: int, heads: int, width: int, dtype: Any = np.float16,
    key_amax: float | None = None, value_amax: float | None = None,
) -> KvCache:  # fmt: skip
    """A cache without tokens.

    Args:
        name: of `CACHES`, or a row.
        tables: (sequences, pages of a sequence) int32: which pages each sequence may fill.
        pages: in all.
        page: tokens of a page, a multiple of those of a group.
        heads: of keys and values.
        width: D, a multiple of the channels of a group and of the elements of a word.
        dtype: float16 or bfloat16: of keys that wait for their group.
        key_amax: of NVFP4, which needs it: the largest magnitude among the keys, known beforehand: the scale of the whole is
            amax / (6 * 448). Larger keys become about `key_amax`, much smaller ones zero.
        value_amax: likewise of the values.

    Raises:
        OperandTypeError, OperandError: something else.
    """
    spec = cache_spec(name)
    given = checked(tables, "the page tables", (np.int32,), 2)
    for size, what in ((pages, "pages"), (page, "page"), (heads, "heads"), (width, "width")):
        check_whole(size, what)
    try:
        waits = np.dtype(dtype)
    except TypeError:
        waits = None
    if dtype is None or waits not in [np.dtype(each) for each in _TYPES]:
        raise OperandTypeError(f"dtype must be float16 or bfloat16, got {dtype!r}")
    check_range(given, "pages", 0, pages - 1)
    if np.unique(given).size != given.size:
        raise OperandError("a page must not be in two places of the tables: one sequence would write over another")
    sides = []
    for grouping, amax, named in ((spec.keys, key_amax, "key_amax"), (spec.values, value_amax, "value_amax")):
        largest = None if amax is None and grouping.element != "e2m1" else float(_amax(amax, named))
        check_multiple(page, grouping.tokens, "a page", "the tokens of a group,")
        scale_type = {"f32": np.float32, "f16": np.float16}.get(grouping.scale, np.uint8)
        scales = np.zeros((pages, page // grouping.tokens, heads, width // grouping.group(width)), scale_type)
        sides.append(
            Pages(
                grouping=grouping, words=np.zeros((pages, page, heads, width // grouping.per_word), np.int32), scales=scales,
                zeros=np.zeros(scales.shape, np.float16) if grouping.zeros else None, amax=largest,
            )
        )  # fmt: skip
    group = spec.keys.tokens if spec.keys.tokens > 1 else 0
    tail = np.zeros((given.shape[0], group, heads, width), waits)
    return KvCache(
        spec=spec, dtype=waits, keys=sides[0], values=sides[1], tables=given, lengths=np.zeros(given.shape[0], np.int32),
        tail=tail,
    )  # fmt: skip
