"""Dot products drawn as a few products at wanted exponents, and turned into codes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from mmabits.isa import Arithmetic, FormatSpec
from mmabits.research.exact import Operands
from mmabits.research.model import Model


@dataclass(frozen=True, kw_only=True)
class SketchedProduct:
    """One product, (-1)^negative x 2^exponent x (bits_a scaled into [1, 2)) x (bits_b scaled into [1, 2))."""

    at: int
    """Element of K."""
    exponent: int
    """Block scales included."""
    negative: bool = False
    bits_a: int = 1
    bits_b: int = 1
    exponent_a: int | None = None
    """Exponent of the factor a, where it matters; scales not included."""


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """One dot product: products, everything else zero; c = c_bits x 2^c_last, or the code `c_code`."""

    products: tuple[SketchedProduct, ...] = ()
    c_bits: int = 0
    c_last: int = 0
    c_code: int | None = None
    codes: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Codes of a and b at elements of K, set last."""
    scales: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Scale codes of blocks, set last."""
    fill: tuple[int, int] = (0, 0)
    """Codes of all other elements."""


def exact_code(spec: FormatSpec, bits: int, last: int) -> int | None:
    """The code of bits x 2^last, None where the format does not have it."""
    if spec.is_integer:
        value = bits << last if last >= 0 else -1 if bits % (1 << -last) else bits >> -last
        low, high = (-(1 << spec.fraction_bits) if spec.sign_bits else 0), (1 << spec.fraction_bits) - 1
        return value & (spec.codes - 1) if low <= value <= high else None
    magnitude, negative = abs(bits), bits < 0
    if magnitude == 0:
        return 0 if spec.has_zero else None
    exponent = max(magnitude.bit_length() - 1 + last, spec.min_exponent)
    shift = last - (exponent - spec.fraction_bits)
    if shift < 0 and magnitude & ((1 << -shift) - 1):
        return None
    kept = magnitude << shift if shift >= 0 else magnitude >> -shift
    if spec.has_subnormals:
        code = ((exponent - spec.min_exponent) << spec.fraction_bits) + kept
    else:
        code = exponent + spec.bias if magnitude.bit_length() - 1 + last >= spec.min_exponent else -1
    code <<= spec.ignored_low_bits
    if not 0 <= code <= spec.max_finite_magnitude or (negative and not spec.sign_bits):
        return None
    return code | (spec.sign_mask if negative else 0)


def smallest_exponent(spec: FormatSpec) -> int:
    """Exponent of the smallest power of two."""
    return spec.min_exponent - (spec.fraction_bits if spec.has_subnormals else 0)


def _power(spec: FormatSpec, bits: int, exponent: int) -> int | None:
    return exact_code(spec, bits, exponent - (abs(bits).bit_length() - 1))


@lru_cache(maxsize=1 << 14)
def factors(a: FormatSpec, b: FormatSpec, exponent: int, bits_a: int, bits_b: int, wanted: int | None) -> tuple[int, int] | None:
    """Codes whose product is as wanted: normal factors where there are such, as even as can be."""
    low_a, low_b = smallest_exponent(a), smallest_exponent(b)
    candidates = range(max(low_a, exponent - b.max_exponent), min(a.max_exponent, exponent - low_b) + 1)
    middle = exponent // 2

    def badness(first: int) -> tuple[bool, int]:
        return (first < a.min_exponent or exponent - first < b.min_exponent, abs(first - middle))

    for first in sorted(candidates, key=badness) if wanted is None else (wanted,):
        codes = _power(a, bits_a, first), _power(b, bits_b, exponent - first)
        if codes[0] is not None and codes[1] is not None:
            return codes[0], codes[1]
    return None


class Encoder:
    """Turns the sketches of one instruction into codes."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.a, self.b, self.d = model.a_type, model.b_type, model.d_type
        self.low = smallest_exponent(self.a) + smallest_exponent(self.b)
        self.high = self.a.max_exponent + self.b.max_exponent
        self.scale_low = self.scale_high = 0
        if model.scale_type is not None:
            self.scale_low, self.scale_high = 2 * smallest_exponent(model.scale_type), 2 * model.scale_type.max_exponent

    @property
    def lowest(self) -> int:
        """Exponent of the smallest product there is."""
        return self.low + self.scale_low

    @property
    def highest(self) -> int:
        """Exponent of the largest power of two among the products."""
        return self.high + self.scale_high

    def _raise(self, products: list[SketchedProduct]) -> int | None:
        """Exponent that the scales of a block give to its products."""
        exponents = [product.exponent for product in products]
        top, bottom = max(exponents), min(exponents)
        if self.model.scale_type is None or any(product.exponent_a is not None for product in products):
            return 0
        as_scales = self.model.arithmetic is Arithmetic.GROUPED or bottom - top >= self.low
        choices = [top] if as_scales else [top - self.high, bottom - self.low]
        fits = (c for c in choices if self.scale_low <= c <= self.scale_high and self.low <= bottom - c and top - c <= self.high)
        return next(fits, None)

    def scale_codes(self, exponent: int) -> tuple[int, int] | None:
        """Codes of two scales whose product is a power of two; zeros where there are no scales."""
        scale = self.model.scale_type
        if scale is None:
            return 0, 0
        first = min(max(exponent // 2, exponent - scale.max_exponent), scale.max_exponent)
        codes = _power(scale, 1, first), _power(scale, 1, exponent - first)
        return None if codes[0] is None or codes[1] is None else (codes[0], codes[1])

    def _row(self, sketch: Sketch) -> tuple[list[int], list[int], int, list[int], list[int]] | None:
        model = self.model
        a, b = [sketch.fill[0]] * model.k, [sketch.fill[1]] * model.k
        one = self.scale_codes(0) or (0, 0)
        scale_a, scale_b = [one[0]] * model.blocks, [one[1]] * model.blocks
        by_block: dict[int, list[SketchedProduct]] = {}
        for product in sketch.products:
            by_block.setdefault(product.at // model.block if model.block else 0, []).append(product)
        for block, products in by_block.items():
            raised = self._raise(products)
            scales = None if raised is None else self.scale_codes(raised)
            if raised is None or scales is None:
                return None
            if model.blocks:
                scale_a[block], scale_b[block] = scales
            for product in products:
                bits = -product.bits_a if product.negative and self.a.sign_bits else product.bits_a
                codes = factors(self.a, self.b, product.exponent - raised, bits, product.bits_b, product.exponent_a)
                if codes is None:
                    return None
                a[product.at], b[product.at] = codes
        for block, pair in sketch.scales.items():
            scale_a[block], scale_b[block] = pair
        for at, pair in sketch.codes.items():
            a[at], b[at] = pair
        c = exact_code(self.d, sketch.c_bits, sketch.c_last) if sketch.c_code is None else sketch.c_code
        return None if c is None else (a, b, c, scale_a, scale_b)

    def encode(self, sketches: Iterable[Sketch]) -> Operands:
        """The sketches that the formats can hold, as codes; the others are left out."""
        rows = [row for row in map(self._row, sketches) if row is not None]
        return self._operands(rows)

    def _operands(self, rows: list[Any]) -> Operands:
        model, n = self.model, len(rows)
        a = _array([row[0] for row in rows], model.a_type, (n, model.k))
        b = _array([row[1] for row in rows], model.b_type, (n, model.k))
        c = _array([row[2] for row in rows], model.d_type, (n,))
        if model.scale_type is None:
            return Operands(a, b, c)
        scales = [_array([row[i] for row in rows], model.scale_type, (n, model.blocks)) for i in (3, 4)]
        return Operands(a, b, c, *scales)


def _array(codes: list[Any], spec: FormatSpec, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return np.array(codes, dtype=f"u{spec.container_bits // 8}").reshape(shape)
