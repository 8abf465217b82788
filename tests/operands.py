"""Operands for tests: annotated edge codes, seeded distributions, and inputs that make off-by-one constants visible.

The single home of seeds. Codes are unsigned NumPy arrays in the smallest container (fp8, fp6 and fp4 one code a byte, low bits).
Distributions: `plain` normal values; `wide` exponents uniform over the format; `cancelling` products that nearly cancel; `sparse`
mostly zeros; `raw` uniform bits, specials as they come (`raw_finite`: one special in 500); `edge` built for the places where
models of tensor cores differ: the truncation edge, the floor of zero terms, step boundaries, group scales, overflow, subnormals.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from slow_reference import FORMATS, INTEGERS

Codes = np.ndarray[Any, Any]

SEED = 20251121
KINDS = ("plain", "wide", "cancelling", "sparse", "raw", "raw_finite", "edge")


def generator(*names: object, seed: int = SEED) -> np.random.Generator:
    """A generator that depends only on the seed and the names (a test's parameters), printed by a failing test's id."""
    return np.random.default_rng([seed, *(zlib.crc32(str(name).encode()) for name in names)])


# ---------------------------------------------------------------------------------------------------------- codes, values


def dtype_of(name: str) -> type[np.unsignedinteger[Any]]:
    """The container of a format's codes."""
    bits = INTEGERS[name][0] if name in INTEGERS else FORMATS[name].code_bits
    return np.uint8 if bits <= 8 else np.uint16 if bits == 16 else np.uint32 if bits == 32 else np.uint64


class Fields(NamedTuple):
    """Where the fields of a floating-point code sit."""

    bits: int
    """Without the unread low bits (tf32: 19)."""
    fraction_bits: int
    sign: int
    infinity: int
    """Code of the top exponent with fraction 0, whether it is an infinity or not."""
    max_finite: int
    lowest: int
    """Exponent of the smallest normal number."""
    unread: int


@cache
def fields(name: str) -> Fields:
    """Fields of a floating-point format."""
    form = FORMATS[name]
    top = ((1 << form.exponent_bits) - 1) << form.fraction_bits
    all_ones = (1 << (form.exponent_bits + form.fraction_bits)) - 1
    max_finite = {"ieee": top - 1, "nan only": all_ones - 1, "none": all_ones}[form.special]
    sign = 0 if name in ("ue8m0", "ue4m3") else 1 << (form.exponent_bits + form.fraction_bits)
    lowest = (0 if name == "ue8m0" else 1) - form.bias
    return Fields(form.code_bits - form.unread_low_bits, form.fraction_bits, sign, top, max_finite, lowest, form.unread_low_bits)


def max_exponent(name: str) -> int:
    """Exponent of the largest finite value."""
    field = fields(name)
    return (field.max_finite >> field.fraction_bits) - FORMATS[name].bias


def min_exponent(name: str) -> int:
    """Exponent of the smallest positive value (a subnormal where the format has them)."""
    return fields(name).lowest - fields(name).fraction_bits


def encode(values: Any, name: str) -> Codes:
    """Codes of float64 values, rounded to nearest even, clipped to the largest finite value; unread low bits are zero."""
    values = np.asarray(values, dtype=np.float64)
    if name == "f64":
        return values.view(np.uint64)
    field = fields(name)
    magnitude = np.abs(values)
    exponent = np.maximum(np.frexp(magnitude)[1] - 1, field.lowest)
    exponent = np.where(magnitude == 0, field.lowest, exponent)
    kept = np.rint(np.ldexp(magnitude, field.fraction_bits - exponent))
    hidden_only = name == "ue8m0"  # no subnormals: the hidden bit does not add 1 to the exponent field
    code = (exponent - field.lowest) * (1 << field.fraction_bits) + kept.astype(np.int64) - hidden_only
    code = np.clip(code, 0, field.max_finite) | np.where(np.signbit(values), field.sign, 0)
    return (code << field.unread).astype(dtype_of(name))


def decode(codes: Any, name: str) -> np.ndarray[Any, Any]:
    """float64 values of codes; infinities and NaN as such."""
    if name == "f64":
        return np.asarray(codes, np.uint64).view(np.float64)
    field = fields(name)
    code = np.asarray(codes).astype(np.int64) >> field.unread
    magnitude = code & ((1 << (FORMATS[name].exponent_bits + field.fraction_bits)) - 1)
    raw_exponent = magnitude >> field.fraction_bits
    normal = (raw_exponent > 0) | (name == "ue8m0")
    significand = (magnitude & ((1 << field.fraction_bits) - 1)) + np.where(normal, 1 << field.fraction_bits, 0)
    exponent = np.where(normal, raw_exponent, 1) - FORMATS[name].bias - field.fraction_bits
    value = np.ldexp(significand.astype(np.float64), exponent)
    if FORMATS[name].special == "ieee":
        value = np.where(magnitude == field.infinity, np.inf, value)
    value = np.where(magnitude > max(field.max_finite, field.infinity * (FORMATS[name].special == "ieee")), np.nan, value)
    return np.where(code & field.sign, -value, value)


def negate(codes: Codes, name: str) -> Codes:
    """Codes with the sign bit flipped."""
    return codes ^ codes.dtype.type(fields(name).sign << fields(name).unread)


def is_special(codes: Codes, name: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where codes are infinite or NaN."""
    field = fields(name)
    magnitudes = (1 << (FORMATS[name].exponent_bits + field.fraction_bits)) - 1
    return ((codes.astype(np.uint64) >> np.uint64(field.unread)) & np.uint64(magnitudes)) > np.uint64(field.max_finite)


def edge_codes(name: str) -> dict[str, int]:
    """Named codes at the edges of a format; negative twins are `-name`. What a format lacks is left out."""
    if name in INTEGERS:
        bits, signed = INTEGERS[name]
        top = (1 << (bits - 1)) - 1 if signed else (1 << bits) - 1
        named = {"zero": 0, "one": 1, "max": top}
        return named | ({"minus one": (1 << bits) - 1, "min": 1 << (bits - 1)} if signed else {})
    field, form = fields(name), FORMATS[name]
    one_fraction = 1 << field.fraction_bits
    named = {} if name == "ue8m0" else {
        "zero": 0, "min subnormal": 1, "max subnormal": one_fraction - 1, "min normal": one_fraction,
    }  # fmt: skip
    named |= {"min normal": 0} if name == "ue8m0" else {}
    named |= {"one": form.bias * one_fraction, "below one": form.bias * one_fraction - 1, "above one": form.bias * one_fraction + 1}
    named |= {"two": (form.bias + 1) * one_fraction, "max finite": field.max_finite}
    if form.special == "ieee":
        named |= {"infinity": field.infinity, "quiet nan": field.infinity | one_fraction >> 1, "signalling nan": field.infinity | 1}
    if form.special != "none":
        named["all-ones nan"] = (1 << (form.exponent_bits + form.fraction_bits)) - 1
    if field.sign:
        named |= {f"-{key}": code | field.sign for key, code in named.items()}
    return {key: code << field.unread for key, code in named.items()}


# -------------------------------------------------------------------------------------------- distributions of single codes


def draw(kind: str, name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Codes:
    """Codes of one distribution; `cancelling` and `edge` mean something for pairs only and are drawn as `wide` here.

    Integer formats are uniform for every kind but `sparse`.
    """
    if name in INTEGERS:
        codes = rng.integers(0, 1 << INTEGERS[name][0], shape, dtype=np.uint64).astype(dtype_of(name))
        return np.where(rng.random(shape) < 0.85, codes.dtype.type(0), codes) if kind == "sparse" else codes
    return _DRAWS[kind](name, shape, rng)


def _plain(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Codes:
    """Normal values, of standard deviation 1, or a third of the range where that is less than 100."""
    largest = float(decode(fields(name).max_finite << fields(name).unread, name))
    values = rng.standard_normal(shape) * (largest / 3 if largest < 100 else 1.0)
    return encode(np.abs(values) if not fields(name).sign else values, name)


def _wide(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Codes:
    """Exponent field and fraction uniform over the finite codes, random sign, random unread bits."""
    field = fields(name)
    magnitude = rng.integers(0, field.max_finite, shape, dtype=np.uint64, endpoint=True)
    code = magnitude | (rng.integers(0, 2, shape, dtype=np.uint64) * np.uint64(field.sign))
    unread = rng.integers(0, 1 << field.unread, shape, dtype=np.uint64)
    return ((code << np.uint64(field.unread)) | unread).astype(dtype_of(name))


def _sparse(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Codes:
    """85 % zeros of both signs among `wide` codes."""
    field, codes = fields(name), _wide(name, shape, rng)
    zeros = (rng.integers(0, 2, shape, dtype=np.uint64) * np.uint64(field.sign << field.unread)).astype(codes.dtype)
    return np.where(rng.random(shape) < 0.85, zeros, codes)


def _raw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Codes:
    """Uniform bits of the whole code."""
    bits = FORMATS[name].code_bits
    high = rng.integers(0, 1 << (bits - bits // 2), shape, dtype=np.uint64)
    low = rng.integers(0, 1 << (bits // 2), shape, dtype=np.uint64)
    return ((high << np.uint64(bits // 2)) | low).astype(dtype_of(name))


def _raw_finite(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Codes:
    """Uniform bits with specials replaced by finite codes but for one in 500, so that finite sums are common at large K."""
    codes = _raw(name, shape, rng)
    codes = np.where(is_special(codes, name), _wide(name, shape, rng), codes)
    named = np.array([*edge_codes(name).values()], dtype=codes.dtype)
    specials = named[is_special(named, name)]
    return np.where(rng.random(shape) < 0.002, rng.choice(specials, shape), codes) if specials.size else codes


_DRAWS: dict[str, Callable[[str, tuple[int, ...], np.random.Generator], Codes]] = {
    "plain": _plain, "wide": _wide, "cancelling": _wide, "sparse": _sparse, "raw": _raw, "raw_finite": _raw_finite, "edge": _wide,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------- a, b and c together


class Operands(NamedTuple):
    """n dot products: a and b of shape (n, k), c of shape (n,); scales (n, blocks) or None."""

    a: Codes
    b: Codes
    c: Codes
    scale_a: Codes | None = None
    scale_b: Codes | None = None


def draw_pair(kind: str, a_format: str, b_format: str, n: int, k: int, rng: np.random.Generator, *, c_format: str = "f32") -> Operands:
    """n dot products of length k of one distribution; c is drawn to matter (see `draw_c`)."""
    if kind == "edge" and a_format not in INTEGERS:
        return _edge_pair(a_format, b_format, n, k, rng, c_format)
    a, b = draw(kind, a_format, (n, k), rng), draw(kind, b_format, (n, k), rng)
    if kind == "cancelling" and a_format not in INTEGERS:
        a, b = _cancel(a, b, a_format, b_format, rng)
    return Operands(a, b, draw_c(kind, a, b, a_format, b_format, c_format, rng))


def _cancel(a: Codes, b: Codes, a_format: str, b_format: str, rng: np.random.Generator) -> tuple[Codes, Codes]:
    """Make the second half of k the negated first half, some products one ulp off, and shuffle the elements."""
    half = a.shape[1] // 2
    a[:, half : 2 * half] = negate(a[:, :half], a_format)
    b[:, half : 2 * half] = b[:, :half]
    ulp = b.dtype.type(1 << fields(b_format).unread)
    nudged = np.where(rng.random(b[:, :half].shape) < 0.2, b[:, :half] ^ ulp, b[:, :half])
    b[:, half : 2 * half] = np.where(is_special(nudged, b_format), b[:, :half], nudged)
    order = rng.permuted(np.tile(np.arange(a.shape[1]), (a.shape[0], 1)), axis=1)
    return np.take_along_axis(a, order, 1), np.take_along_axis(b, order, 1)


F_VALUES = (13, 23, 24, 25, 35)
"""Alignment fraction bits of the units (NUMERICS 2 to 4); the edges are drawn at them and one or two bits to either side."""
E_ZEROS = {"f16": (-19, -20, -21), "f32": (-131, -132, -133, -139)}
"""Exponents of zero terms, by accumulator."""


def draw_c(kind: str, a: Codes, b: Codes, a_format: str, b_format: str, c_format: str, rng: np.random.Generator) -> Codes:
    """C for given a and b: zero, -0, at either edge of the alignment window, huge, subnormal, or drawn like the operands."""
    n = a.shape[0]
    if c_format in INTEGERS:
        near = rng.integers(-(1 << 12), 1 << 12, n) + rng.choice(np.array([-(1 << 31), 0, (1 << 31) - 1]), n)
        return np.where(rng.random(n) < 0.5, near & 0xFFFFFFFF, rng.integers(0, 1 << 32, n)).astype(np.uint32)
    field = fields(c_format)
    largest = _largest_exponents(a, b, a_format, b_format)
    offset = rng.choice(np.array(F_VALUES), n) + rng.integers(-1, 2, n)
    exponent = largest + np.where(rng.random(n) < 0.5, offset, -offset + rng.integers(-1, 6, n))
    window = _at_exponent(exponent, c_format, rng)
    subnormal = rng.integers(0, 1 << field.fraction_bits, n, dtype=np.uint64).astype(window.dtype)
    huge = (field.max_finite - rng.integers(0, 1 << (field.fraction_bits - 1), n)).astype(window.dtype)
    sign = (rng.integers(0, 2, n, dtype=np.uint64) * np.uint64(field.sign)).astype(window.dtype)
    alike = draw(kind, c_format, (n,), rng)
    choice = rng.choice(6, n, p=[0.15, 0.05, 0.4, 0.1, 0.05, 0.25])
    zero, minus_zero = np.zeros_like(window), np.full_like(window, field.sign)
    return np.choose(choice, [zero, minus_zero, window, subnormal | sign, huge | sign, alike])


def _largest_exponents(a: Codes, b: Codes, a_format: str, b_format: str) -> Any:
    """Exponent of each row's largest finite product; 0 where there is none."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        products = np.abs(decode(a, a_format) * decode(b, b_format))
    largest = np.where(np.isfinite(products), products, 0).max(axis=1)
    return np.where(largest > 0, np.frexp(largest)[1] - 1, 0)


def _at_exponent(exponent: Any, name: str, rng: np.random.Generator) -> Codes:
    """Random significands and signs at the given exponents, clipped to what the format holds."""
    exponent = np.clip(exponent, min_exponent(name), max_exponent(name))
    values = np.ldexp(1 + rng.random(exponent.shape), exponent) * rng.choice(np.array([-1.0, 1.0]), exponent.shape)
    return encode(values, name)


# ----------------------------------------------------------------------------------------------------------- the edge kind


class _Row:
    """One dot product under construction: products are placed at random free positions at a wanted exponent.

    The positions are all of k, or an aligned run of 4 or 8 (one step of the narrower units), so that both one step and several meet.
    """

    def __init__(self, a_format: str, b_format: str, k: int, rng: np.random.Generator) -> None:
        self.formats, self.rng = (a_format, b_format), rng
        run = min(k, int(rng.choice((4, 8, k))))
        self.free = (rng.permutation(run) + run * int(rng.integers(k // run))).tolist()
        self.values = np.where(rng.random((2, k)) < 0.5, 0.0, -0.0)
        self.low = min_exponent(a_format) + min_exponent(b_format)
        self.high = max_exponent(a_format) + max_exponent(b_format)

    def place(self, exponent: int, sign: float, *, power: bool = False) -> float:
        """Put a product of about 2^exponent (exactly that with `power`) and return it; 0 where no position is left."""
        if not self.free:
            return 0.0
        return self.repeat(self._factors(exponent, power), sign)

    def repeat(self, factors: tuple[float, float], sign: float) -> float:
        """Put the product of two given values."""
        if not self.free:
            return 0.0
        position = self.free.pop()
        self.values[:, position] = factors[0] * sign, factors[1]
        return float(factors[0] * factors[1] * sign)

    def opposites(self, exponent: int, *, power: bool = False) -> None:
        """Put x and -x."""
        factors = self._factors(exponent, power)
        for sign in (1.0, -1.0):
            self.repeat(factors, sign)

    def _factors(self, exponent: int, power: bool) -> tuple[float, float]:
        """Two values of the formats whose exponents add up to `exponent` (clipped to the range).

        Mostly normal ones where there are such: products of subnormals are not renormalised, so they align higher up.
        """
        exponent = min(max(exponent, self.low), self.high)
        ranges = [self._a_exponents(exponent, [f(name) for name in self.formats]) for f in (_lowest_normal, min_exponent)]
        first, last = ranges[0] if ranges[0][0] <= ranges[0][1] and self.rng.random() < 0.8 else ranges[1]
        a_exponent = int(self.rng.integers(first, last + 1))
        return self._value(a_exponent, self.formats[0], power), self._value(exponent - a_exponent, self.formats[1], power)

    def _a_exponents(self, exponent: int, lowest: list[int]) -> tuple[int, int]:
        """First and last exponent of a such that neither factor leaves [lowest, largest]."""
        highest = [max_exponent(name) for name in self.formats]
        return max(lowest[0], exponent - highest[1]), min(highest[0], exponent - lowest[1])

    def _value(self, exponent: int, name: str, power: bool) -> float:
        bits = fields(name).fraction_bits - max(0, fields(name).lowest - exponent)
        fraction = 0 if power else int(self.rng.integers(0, 1 << bits))
        return math.ldexp((1 << bits) + fraction, exponent - bits)


def _lowest_normal(name: str) -> int:
    return fields(name).lowest


def _sign(rng: np.random.Generator) -> float:
    return float(rng.choice((-1.0, 1.0)))


def _window(row: _Row, c_format: str, rng: np.random.Generator) -> float:
    """X, -X and small products whose last bits lie at the truncation edge: the result is the truncated small ones (F, L, order)."""
    exponent = _pick_exponent(row, c_format, rng)
    row.opposites(exponent)
    distance = int(rng.choice(F_VALUES)) if rng.random() < 0.8 else int(rng.integers(1, 40))
    for _ in range(int(rng.integers(1, 5))):
        row.place(exponent - distance + int(rng.integers(-3, 7)), _sign(rng), power=bool(rng.random() < 0.3))
    return 0.0 if rng.random() < 0.7 else float(np.ldexp(_sign(rng), exponent - distance + int(rng.integers(-2, 3))))


def _window_c(row: _Row, c_format: str, rng: np.random.Generator) -> float:
    """As `_window`, but X is c: what the unit does with c's exponent shows."""
    exponent = min(max(_pick_exponent(row, c_format, rng), min_exponent(c_format)), max_exponent(c_format) - 1)
    large = row.place(exponent, _sign(rng), power=True)
    distance = int(rng.choice(F_VALUES))
    for _ in range(int(rng.integers(1, 4))):
        row.place(exponent - distance + int(rng.integers(-2, 4)), _sign(rng))
    return -large


def _tip(row: _Row, c_format: str, rng: np.random.Generator) -> float:
    """A value on a rounding edge of the output and one tiny product that tips it over, or is truncated away (F)."""
    exponent = _pick_exponent(row, c_format, rng)
    sign = _sign(rng)
    row.place(exponent, sign, power=True)
    if c_format == "f16":
        row.place(exponent - 11, sign, power=True)
    distance = int(rng.choice(F_VALUES)) + int(rng.integers(-2, 3))
    row.place(exponent - distance, _sign(rng), power=True)
    return 0.0


def _floor(row: _Row, c_format: str, rng: np.random.Generator) -> float:
    """Only products below e_zero beside zeros: e_zero, not they, sets the edge.

    X is exact in the output (f32, rounded toward zero) or a tie (f16, to nearest even); whether a tiny product at the truncation edge
    survives decides the last bit. Its sign is the one that tells.
    """
    unit = int(rng.integers(3))
    edge, sign = E_ZEROS[c_format][unit] - (23, 24, 25)[unit], _sign(rng)
    above_last = int(rng.integers(0, 3))
    row.place(min_exponent(c_format) + above_last, sign, power=True)
    if c_format == "f16":
        row.place(min_exponent(c_format) - 1, sign, power=True)
    tips = sign if c_format == "f16" and above_last else -sign
    row.place(edge - int(rng.integers(0, 2)), tips, power=True)
    if rng.random() < 0.3:
        row.place(edge + int(rng.integers(-3, 3)), _sign(rng))
    return 0.0 if rng.random() < 0.8 else -0.0


def _overflow(row: _Row, c_format: str, rng: np.random.Generator) -> float:
    """c at the largest finite value and products around its half ulp: only the final rounding may overflow."""
    field = fields(c_format)
    sign = _sign(rng)
    top = max_exponent(c_format) - field.fraction_bits
    for _ in range(int(rng.integers(1, 4))):
        row.place(top + int(rng.integers(-3, 2)), sign if rng.random() < 0.8 else -sign, power=bool(rng.random() < 0.7))
    if rng.random() < 0.3:
        row.opposites(max_exponent(c_format) - 1)
    return sign * float(decode(field.max_finite, c_format))


def _tiny(row: _Row, c_format: str, rng: np.random.Generator) -> float:
    """Everything near the accumulator's subnormal range."""
    base = fields(c_format).lowest
    for _ in range(int(rng.integers(1, 7))):
        row.place(base + int(rng.integers(-fields(c_format).fraction_bits - 12, 3)), _sign(rng))
    lowest = min_exponent(c_format)
    return 0.0 if rng.random() < 0.4 else float(np.ldexp(float(rng.integers(-(1 << 12), 1 << 12)), lowest))


def _pick_exponent(row: _Row, c_format: str, rng: np.random.Generator) -> int:
    """An exponent for a large product: anywhere, often at the top, and below the accumulator's overflow."""
    high = min(row.high, max_exponent(c_format) - 2)
    low = max(row.low, fields(c_format).lowest - 10)
    return high if rng.random() < 0.4 else int(rng.integers(min(low, high), high + 1))


_RECIPES = (_window, _window_c, _tip, _floor, _overflow, _tiny)
_RECIPE_ODDS = (0.25, 0.15, 0.15, 0.25, 0.1, 0.1)


def _edge_pair(a_format: str, b_format: str, n: int, k: int, rng: np.random.Generator, c_format: str) -> Operands:
    """One recipe a row, at random; a quarter of the rows get `wide` or subnormal values in what places are left."""
    values, c_values = np.empty((2, n, k)), np.empty(n)
    odds = _RECIPE_ODDS if c_format in E_ZEROS else (0.4, 0.2, 0.2, 0.0, 0.1, 0.1)
    for i, recipe in enumerate(rng.choice(len(_RECIPES), n, p=odds)):
        row = _Row(a_format, b_format, k, rng)
        c_values[i] = _RECIPES[recipe](row, c_format, rng)
        values[:, i] = row.values
    return Operands(encode(values[0], a_format), encode(values[1], b_format), encode(c_values, c_format))


# ---------------------------------------------------------------------------------------------------------------- scales


def draw_scales(kind: str, scale_format: str, shape: tuple[int, ...], rng: np.random.Generator) -> Codes:
    """Scale codes: `plain` near 1, `raw` and `raw_finite` uniform (NaN as it comes, or rarely), else over the range.

    `edge` puts sums of two scales' exponents about 35 binades apart.
    """
    if scale_format == "ue8m0":
        spread = {"plain": 3, "sparse": 3, "cancelling": 8, "edge": 19}.get(kind)
        codes = rng.integers(0, 256, shape) if spread is None else 127 + rng.integers(-spread, spread + 1, shape)
    else:
        codes = rng.integers(0x28, 0x48, shape) if kind == "plain" else rng.integers(0, 256, shape)
        extremes = rng.choice(np.array([0x01, 0x03, 0x07, 0x08, 0x78, 0x7E]), shape)
        codes = np.where(rng.random(shape) < 0.7, extremes, codes) if kind == "edge" else codes
    nan = 0xFF if scale_format == "ue8m0" else 0x7F
    is_nan = codes == 0xFF if scale_format == "ue8m0" else codes & 0x7F == nan
    replace = is_nan & (rng.random(shape) > 0.02) & (kind != "raw")
    return np.where(replace, 0x38 if scale_format == "ue4m3" else 127, codes).astype(np.uint8)


def draw_scaled(
    kind: str, a_format: str, b_format: str, n: int, k: int, rng: np.random.Generator,
    *, scale_format: str, block: int, c_format: str = "f32",
) -> Operands:  # fmt: skip
    """n block-scaled dot products: `draw_pair` and `draw_scales`, with c moved to the scaled products' window.

    `edge`, ue8m0: by row, scales that multiply to 1 (the unscaled edges); c = 0 and products around e_zero; groups 33 to 38 binades
    apart. For e2m1 with K = 64 groups cancel, or are zero, at one scale beside groups at another.
    """
    a, b, c = draw_pair(kind, a_format, b_format, n, k, rng, c_format=c_format)[:3]
    scale_a, scale_b = (draw_scales(kind, scale_format, (n, -(-k // block)), rng) for _ in range(2))
    grouped = k % 64 == 0 and a_format == b_format == "e2m1"
    if kind == "edge" and grouped:
        a, b = _edge_groups(a.shape, rng)
    c = _scaled_c(a, b, c, scale_a, scale_b, (a_format, b_format, scale_format, c_format), rng)
    if kind != "edge" or scale_format != "ue8m0":
        return Operands(a, b, c, scale_a, scale_b)
    row_kind = rng.integers(0, 3, n)
    product = _FLOOR_PRODUCT + rng.integers(0, 4, n)
    at_floor = row_kind == 1
    if grouped:
        first_half = np.arange(scale_a.shape[1]) % (64 // block) < 32 // block
        floor = np.where(first_half, product[:, None] + 2, _GROUP_FLOOR + rng.integers(-6, 4, scale_a.shape))
        a, b = _cancel_first_groups(a, b, row_kind == 2)
    else:
        floor = np.broadcast_to(_floor_pairs(a, b, a_format, b_format, at_floor, product, rng)[:, None], scale_a.shape)
    without_c = at_floor | ((row_kind == 2) & (rng.random(n) < 0.5))
    return Operands(a, b, np.where(without_c, c.dtype.type(0), c), *_edge_e8m0(scale_a, floor, row_kind, rng))


_FLOOR_PRODUCT = -149
"""Exponent of the smallest f32: a scaled product there is below every e_zero."""
_STEP_FLOOR = -133 - 25
"""e_zero - F of section 3: the last bit a product keeps beside a zero c."""
_GROUP_FLOOR = -139 - 35
"""e_zero - F of section 4: the last bit a group keeps beside a zero c."""


def _floor_pairs(a: Codes, b: Codes, a_format: str, b_format: str, rows: Codes, product: Codes, rng: np.random.Generator) -> Codes:
    """Give `rows` of a and b (in place) a power of two and, around the last bit that e_zero lets it keep, a product of the other sign.

    Returns the sum of the scales' exponents that puts the power of two at exponent `product`.
    """
    sums = np.zeros(a.shape[0], dtype=np.int64)
    for i in np.flatnonzero(rows):
        row = _Row(a_format, b_format, a.shape[1], rng)
        if row.high - row.low < 14:
            sums[i] = _floor_of_many(row, rng)
        else:
            exponent, sign = int(rng.integers(row.low + 12, row.high + 1)), _sign(rng)
            row.place(exponent, sign, power=True)
            row.place(exponent + _STEP_FLOOR - _FLOOR_PRODUCT + int(rng.integers(-5, 3)), -sign, power=True)
            sums[i] = product[i] - exponent
        a[i], b[i] = encode(row.values[0], a_format), encode(row.values[1], b_format)
    return sums


def _floor_of_many(row: _Row, rng: np.random.Generator) -> int:
    """The same for fp6 and fp4, whose single products reach less far: 7 x 36 + 4 = 2^8 and the smallest product, negative."""
    positions, sign = rng.permutation(row.values.shape[1])[:9], _sign(rng)
    smallest = [math.ldexp(1.0, min_exponent(name)) for name in row.formats]
    factors = [(6.0, 6.0)] * 7 + [(2.0, 2.0), (-smallest[0], smallest[1])]
    for position, (first, second) in zip(positions, factors, strict=False):
        row.values[:, position] = first * sign, second
    return _STEP_FLOOR - row.low - int(rng.integers(0, 2))


def _edge_e8m0(scale_a: Codes, floor: Any, row_kind: Codes, rng: np.random.Generator) -> tuple[Codes, Codes]:
    """By row kind: scales that multiply to 1; scales whose exponents add up to `floor`; scales 33 to 38 binades apart."""
    n, blocks = scale_a.shape
    a = scale_a.astype(np.int64)
    distances = rng.choice(np.array([-33, -34, -35, -36, -37, -38]), (n, blocks))
    far = np.where(rng.random((n, 1)) < 0.7, np.arange(blocks) % 4 >= (min(blocks, 4) + 1) // 2, rng.random((n, blocks)) < 0.7)
    apart = rng.integers(-60, 60, (n, 1)) + np.where(far, distances, 0)
    b = 254 - a + np.choose(row_kind[:, None], [np.zeros_like(a), floor, apart])
    a = np.where(b < 0, a + b, a)  # what scale b cannot hold goes to scale a
    return np.clip(a, 0, 254).astype(np.uint8), np.clip(b, 0, 254).astype(np.uint8)


def _edge_groups(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Codes, Codes]:
    """e2m1 in groups of 16: for some rows a group sums to zero, is all zero, or is the negative of the group before."""
    a, b = (draw("wide", "e2m1", shape, rng) for _ in range(2))
    for start in range(0, a.shape[1], 16):
        here, choice = slice(start, start + 16), rng.choice(5, (a.shape[0], 1), p=[0.2, 0.1, 0.35, 0.15, 0.2])
        swapped = np.concatenate([a[:, start : start + 8], a[:, start : start + 8] ^ 8], axis=1)
        a[:, here] = np.where(choice == 0, swapped, np.where(choice == 1, a[:, here] & 8, a[:, here]))
        b[:, here] = np.where(choice == 0, np.tile(b[:, start : start + 8], 2), b[:, here])
        if start % 32:
            before = slice(start - 16, start)
            a[:, here] = np.where(choice == 2, a[:, before] ^ 8, a[:, here])
            b[:, here] = np.where(choice == 2, b[:, before], b[:, here])
        few = (choice == 3) & (rng.random((a.shape[0], 16)) < 0.9)
        a[:, here] = np.where(few, 0, a[:, here])
    return a, b


def _cancel_first_groups(a: Codes, b: Codes, rows: Codes) -> tuple[Codes, Codes]:
    """In `rows`, make the second group of 16 of every 64 elements the negative of the first: only what lies far below remains."""
    for start in range(0, a.shape[1], 64):
        first, second = slice(start, start + 16), slice(start + 16, start + 32)
        a[:, second] = np.where(rows[:, None], a[:, first] ^ 8, a[:, second])
        b[:, second] = np.where(rows[:, None], b[:, first], b[:, second])
    return a, b


def _scaled_c(
    a: Codes, b: Codes, c: Codes, scale_a: Codes, scale_b: Codes, formats: tuple[str, str, str, str], rng: np.random.Generator
) -> Codes:
    """Keep c in half the rows; else zero, or one value about 25 or 35 binades from the largest scaled product."""
    a_format, b_format, scale_format, c_format = formats
    scales = [np.frexp(np.nan_to_num(decode(codes, scale_format)))[1].max(axis=1) - 1 for codes in (scale_a, scale_b)]
    exponent = _largest_exponents(a, b, a_format, b_format) + scales[0] + scales[1]
    n = c.shape[0]
    distance = rng.choice(np.array([0, 23, 25, 35]), n) + rng.integers(-2, 3, n)
    window = _at_exponent(exponent + np.where(rng.random(n) < 0.5, distance, -distance), c_format, rng)
    return np.choose(rng.choice(3, n, p=[0.4, 0.3, 0.3]), [c, np.zeros_like(c), window])


def at_the_ends_of_f32(drawn: Operands, rng: np.random.Generator) -> Operands:
    """ue8m0 scales that put the products around f32's subnormals, or its largest numbers, beside accumulators of that size."""
    if drawn.scale_a is None:
        raise ValueError("at_the_ends_of_f32 replaces block scales, and there are none")
    n = len(drawn.c)
    sums = rng.choice(np.array([-165, -150, -135, -120, 115]), (n, 1)) + rng.integers(-18, 19, drawn.scale_a.shape)
    first = sums // 2 + rng.integers(-3, 4, sums.shape)
    scales = [np.clip(127 + part, 0, 254).astype(np.uint8) for part in (first, sums - first)]
    subnormal = rng.integers(0, 1 << 23, n) >> rng.integers(0, 23, n)
    small = rng.integers(0, 40, n) << 23 | rng.integers(0, 1 << 23, n)
    c = np.where(rng.random(n) < 0.6, subnormal, small)
    c = np.where(sums[:, 0] > 0, rng.integers(200, 255, n) << 23 | subnormal, c) | rng.integers(0, 2, n) << 31
    return Operands(drawn.a, drawn.b, c.astype(np.uint32), *scales)
