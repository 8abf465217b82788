"""Operands on which datapaths that differ in one number differ in the result.

A recipe makes dot products for one question and names what they tell apart. It knows of the datapath only what it is told: how K is
divided into steps, the fraction bits of the result, and at which distances below the largest term to look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.isa import Arithmetic, FormatSpec
from mmabits.research.exact import Operands, join
from mmabits.research.model import Model
from mmabits.research.probes.sketch import Encoder, Sketch, SketchedProduct, exact_code, factors, smallest_exponent

SEED: Final = 20251121


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Dot products made for one question."""

    name: str
    tells: str
    """What they tell apart."""
    operands: Operands

    def __len__(self) -> int:
        return len(self.operands.c)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What recipes are told."""

    model: Model
    distances: tuple[int, ...]
    """How far below the largest exponent to place what may be cut."""
    floors: tuple[int, ...]
    """Where the last place kept beside zero terms may lie."""
    seed: int = 0
    high_only: bool = False
    """Only largest exponents from 0 on, where no exponent of a zero term interferes."""

    @property
    def encoder(self) -> Encoder:
        """For the model's formats."""
        return Encoder(self.model)

    @property
    def rng(self) -> np.random.Generator:
        """A generator that depends on the seed and the shape of the instruction alone."""
        names = (self.model.a_type.name, self.model.b_type.name, self.model.d_type.name)
        return np.random.default_rng([SEED, self.seed, self.model.k, *(ord(letter) for name in names for letter in name)])


def setting_of(model: Model, *, seed: int = 0) -> Setting:
    """What a model's own numbers suggest: the edges of its window, and one to three to either side."""
    kept = model.result_fraction_bits + 1 if model.fraction_bits is None else model.fraction_bits
    result = model.result_fraction_bits
    near = {*range(kept - 2, kept + 4), *range(result - 1, result + 4)}
    floor = None if model.zero_exponent is None or model.fraction_bits is None else model.zero_exponent - model.fraction_bits
    floors = () if floor is None else tuple(range(floor - 3, floor + 4))
    return Setting(model=model, distances=tuple(sorted(d for d in near if d >= 0)), floors=floors, seed=seed)


# Where to put what -----------------------------------------------------------------------------------------------------------


def _slots(model: Model, step: Sequence[int]) -> list[int]:
    """Elements of a step, one of each block first, so that several terms get scales of their own."""
    if not model.block:
        return list(step)
    seen: dict[int, list[int]] = {}
    for element in step:
        seen.setdefault(element // model.block, []).append(element)
    depth = max(map(len, seen.values()))
    return [elements[i] for i in range(depth) for elements in seen.values() if i < len(elements)]


def _steps(model: Model) -> list[list[int]]:
    """First, second and last step."""
    steps = [_slots(model, step) for step in model.steps]
    return steps if len(steps) < 4 else [steps[0], steps[1], steps[-1]]


def _levels(setting: Setting, below: int) -> list[int]:
    """Exponents for a largest term such that `below` places under it there is still a product: near 2^0, and at the two ends."""
    encoder, form = setting.encoder, setting.model.d_type
    low = max(encoder.lowest + below, smallest_exponent(form))
    high = min(encoder.highest, form.max_exponent - 1)
    if low > high:
        return []
    return _allowed(setting, {min(max(0, low), high), low, high})


def _allowed(setting: Setting, levels: set[int]) -> list[int]:
    return sorted(level for level in levels if level >= 0 or not setting.high_only)


def _c_levels(setting: Setting, below: int) -> list[int]:
    """The same where the largest term is c, whose exponent no operand limits."""
    encoder, form = setting.encoder, setting.model.d_type
    low = max(encoder.lowest + below, form.min_exponent)
    high = min(encoder.highest + below, form.max_exponent - 1)
    return _allowed(setting, {min(max(below, low), high), low, high}) if low <= high else []


def _term(at: int, exponent: int, negative: bool = False, **more: Any) -> SketchedProduct:
    return SketchedProduct(at=at, exponent=exponent, negative=negative, **more)


_SIGNS: Final = (False, True)


# Recipes ---------------------------------------------------------------------------------------------------------------------


def window_of_c(setting: Setting) -> Iterator[Sketch]:
    """A large c, one product far below it."""
    step = _steps(setting.model)[0]
    for distance in setting.distances:
        for level, c_negative, negative in product(_c_levels(setting, distance), _SIGNS, _SIGNS):
            yield Sketch(products=(_term(step[0], level - distance, negative),), c_bits=-1 if c_negative else 1, c_last=level)


def tie_on_c(setting: Setting) -> Iterator[Sketch]:
    """C and half its last place: a tie, which a product far below tips, or not."""
    bits = setting.model.result_fraction_bits
    for step in _steps(setting.model):
        if len(step) < 2:
            continue
        for distance, odd, negative in product(setting.distances, (0, 1), _SIGNS):
            for level in _c_levels(setting, max(distance, bits + 1))[:2]:
                c = (1 << bits) + odd
                half, tip = _term(step[0], level - bits - 1), _term(step[1], level - distance, negative)
                yield Sketch(products=(half, tip), c_bits=c, c_last=level - bits)
                yield Sketch(products=(replace(half, negative=True), replace(tip, negative=not negative)), c_bits=-c, c_last=level - bits)


def long_products(setting: Setting) -> Iterator[Sketch]:
    """C and one product of many bits, which end above, at and below what is kept."""
    model = setting.model
    longest = [(1 << (form.fraction_bits + 1)) - 1 for form in (model.a_type, model.b_type)]
    for step in _steps(model)[:1]:
        for distance, negative in product(setting.distances, _SIGNS):
            for bits in ((longest[0], longest[1]), (3, 3), (longest[0], 1), (5, 1)):
                for level in _c_levels(setting, distance)[:2]:
                    for up in (0, 4, 8):
                        term = _term(step[0], level - distance + up, negative, bits_a=bits[0], bits_b=bits[1])
                        yield Sketch(products=(term,), c_bits=1, c_last=level)
                        yield Sketch(products=(term,), c_bits=-1, c_last=level)


def long_sums(setting: Setting) -> Iterator[Sketch]:
    """Two products without c whose bits end around the last place of the result."""
    bits = setting.model.result_fraction_bits
    longest = (1 << (setting.model.a_type.fraction_bits + 1)) - 1
    for step in _steps(setting.model):
        for distance in (bits - 1, bits, bits + 1, bits + 2, *setting.distances):
            for level, negative, long in product(_levels(setting, distance)[:2], _SIGNS, (1, longest)):
                if len(step) > 1:
                    yield Sketch(products=(_term(step[0], level), _term(step[1], level - distance, negative, bits_a=long)))
                if len(step) > 2:
                    more = _term(step[2], level - bits - 1)
                    yield Sketch(products=(_term(step[0], level), _term(step[1], level - distance, negative, bits_a=long), more))


def window_of_products(setting: Setting) -> Iterator[Sketch]:
    """A product and its negative, and what the alignment leaves of a third far below."""
    model = setting.model
    longest = (1 << (model.a_type.fraction_bits + 1)) - 1
    for step in _steps(model):
        if len(step) < 3:
            continue
        for distance, negative in product(setting.distances, _SIGNS):
            for level, bits in product(_levels(setting, distance), (1, longest)):
                small = _term(step[2], level - distance, negative, bits_a=bits)
                yield Sketch(products=(_term(step[0], level), _term(step[1], level, True), small))
                yield Sketch(products=(_term(step[0], level, True), small), c_bits=1, c_last=level)


def c_below_products(setting: Setting) -> Iterator[Sketch]:
    """A product and its negative, and what the alignment leaves of a c far below; also beside one product, and under a tie."""
    model, encoder, form = setting.model, setting.encoder, setting.model.d_type
    bits = model.result_fraction_bits
    step = _steps(model)[0]
    for distance in setting.distances:
        low = max(encoder.lowest, smallest_exponent(form) + distance)
        high = min(encoder.highest, form.max_exponent - 1)
        for level, c in product(_allowed(setting, {low, high, min(max(0, low), high)}) if low <= high else (), (1, -1, 3, -3)):
            c_last = level - distance
            if len(step) > 1:
                yield Sketch(products=(_term(step[0], level), _term(step[1], level, True)), c_bits=c, c_last=c_last)
            yield Sketch(products=(_term(step[0], level),), c_bits=c, c_last=c_last)
            if len(step) > 1:
                yield Sketch(products=(_term(step[0], level), _term(step[1], level - bits - 1)), c_bits=c, c_last=c_last)


def many_small(setting: Setting) -> Iterator[Sketch]:
    """c, and a whole step of products below its last place: they count together, or each is cut."""
    for step in _steps(setting.model):
        for distance, negative in product(setting.distances, _SIGNS):
            for level in _c_levels(setting, distance)[:2]:
                terms = tuple(_term(at, level - distance, negative) for at in step)
                yield Sketch(products=terms, c_bits=1, c_last=level)
                yield Sketch(products=terms[: len(terms) // 2 + 1], c_bits=-1, c_last=level)


def carries(setting: Setting) -> Iterator[Sketch]:
    """Whole steps of large products of one sign: sums with so many bits above the largest exponent that the result must round."""
    model, rng = setting.model, setting.rng
    if model.is_integer:
        return
    for step in _steps(model)[:2]:
        for round_, negative in product(range(12), _SIGNS):
            codes = {}
            for at in step:
                a, b = (_large_code(form, rng) for form in (model.a_type, model.b_type))
                codes[at] = (a | (model.a_type.sign_mask if negative else 0), b)
            one = exact_code(model.scale_type, 1, 0) or 0 if model.scale_type else 0
            scales = {block: (one + (round_ > 5 and block % 2), one) for block in range(model.blocks)}
            yield Sketch(codes=codes, scales=scales)
            at = step[-1]
            yield Sketch(codes={**codes, at: (codes[at][0] ^ model.a_type.sign_mask, codes[at][1])}, scales=scales)
            top = min(2, model.a_type.max_exponent) + min(2, model.b_type.max_exponent)
            for distance in setting.distances[round_ % 3 :: 3]:
                bits = 3 if model.a_type.fraction_bits else 1
                low = factors(model.a_type, model.b_type, top - distance, -bits if negative else bits, 1, None)
                if low is not None:
                    yield Sketch(codes={**codes, at: low}, scales=scales)


def carries_of_groups(setting: Setting) -> Iterator[Sketch]:
    """Blocks of the largest products beside one product at the last place kept: the sum has more bits than the result."""
    model, encoder = setting.model, setting.encoder
    if model.block is None or model.blocks < 2:
        return
    ones = exact_code(model.a_type, 1, 0) or 0, exact_code(model.b_type, 1, 0) or 0
    largest = model.a_type.max_finite_magnitude, model.b_type.max_finite_magnitude
    other = (model.order[0] // model.block + 1) % model.blocks
    for distance, negative in product(setting.distances, _SIGNS):
        low = encoder.scale_codes(-distance)
        if low is None:
            continue
        for count in (1, 4, model.block // 2 + 1, model.block):
            here = [at for at in model.order if at // model.block == model.order[0] // model.block][:count]
            sign = model.a_type.sign_mask if negative else 0
            small = {other * model.block: (ones[0], ones[1])}
            yield Sketch(codes={**{at: (largest[0] | sign, largest[1]) for at in here}, **small}, scales={other: low})
            yield Sketch(
                codes={**{at: (largest[0] | sign, largest[1]) for at in here}, **small}, scales={other: low}, c_bits=3, c_last=-distance
            )


def _large_code(form: FormatSpec, rng: np.random.Generator) -> int:
    """A positive number in the middle binades, or the top ones of a narrow format, of random fraction."""
    exponent = min(2, form.max_exponent)
    bits = (1 << form.fraction_bits) + int(rng.integers(1 << form.fraction_bits))
    code = exact_code(form, bits, exponent - form.fraction_bits)
    return code if code is not None else exact_code(form, 1, exponent) or 0


def order_pair(model: Model, bits: int, first: int, second: int) -> Sketch:
    """Not c, if and only if element `first` enters a step before `second` does.

    c is the largest number below 2^(bits + 1) that a step keeps, the products are +2 and -2: 2^(bits + 1) + 1 is not kept.
    """
    del model
    return Sketch(products=(_term(first, 1), _term(second, 1, True)), c_bits=(1 << (bits + 1)) - 1, c_last=0)


def _kept(model: Model) -> int:
    return model.result_fraction_bits if model.fraction_bits is None else min(model.fraction_bits, model.result_fraction_bits)


def order_of_steps(setting: Setting) -> Iterator[Sketch]:
    """Pairs of elements in neighbouring places, in both orders."""
    model = setting.model
    order = model.order
    pairs = [*pairwise(order), *pairwise(range(model.k))]
    pairs += [(first, second) for first in (0, model.k // 2, model.k - 1) for second in range(model.k) if second != first]
    for first, second in dict.fromkeys(pairs):
        yield order_pair(model, _kept(model), first, second)
        yield order_pair(model, _kept(model), second, first)


def cancelled_before(setting: Setting) -> Iterator[Sketch]:
    """A product and its negative, and a small one: it survives if it enters a later step."""
    model, encoder = setting.model, setting.encoder
    high = min(encoder.highest, model.d_type.max_exponent - 1)
    low = max(encoder.lowest, smallest_exponent(model.d_type), high - max(setting.distances, default=0) - 3)
    rng = setting.rng
    for large, opposite in (*pairwise(model.order), *pairwise(range(model.k))):
        for small in rng.choice(model.k, min(model.k, 4), replace=False).tolist():
            if small not in (large, opposite):
                yield Sketch(products=(_term(large, high), _term(opposite, high, True), _term(small, low)))
                yield Sketch(products=(_term(large, high), _term(small, low)), c_bits=-1, c_last=high)


def added_c(setting: Setting) -> Iterator[Sketch]:
    """Products whose sum does not fit the result, and a c that cancels what fits."""
    bits = setting.model.result_fraction_bits
    for step in _steps(setting.model):
        for distance in (bits + 1, bits + 2, *setting.distances):
            for level, negative in product(_levels(setting, distance), _SIGNS):
                if len(step) < 2:
                    continue
                terms = (_term(step[0], level), _term(step[1], level - distance, negative))
                yield Sketch(products=terms, c_bits=-1, c_last=level)
                yield Sketch(products=terms, c_bits=1, c_last=level + 2)
                yield Sketch(products=terms[1:], c_bits=(1 << (bits + 1)) - 1, c_last=level - bits)


def zero_terms(setting: Setting) -> Iterator[Sketch]:
    """Nothing but small products and zeros: the exponent of a zero decides what the products keep."""
    model, encoder = setting.model, setting.encoder
    bits = model.result_fraction_bits
    lowest = smallest_exponent(model.d_type)
    for step in _steps(model)[:2]:
        for floor in setting.floors:
            for above in (1, 2, 3, bits, bits + 1, bits + 2):
                level = floor + above
                if not encoder.lowest <= floor <= encoder.highest:
                    continue
                base = _term(step[0], level)
                yield Sketch(products=(base,))
                if len(step) < 2:
                    continue
                for negative in _SIGNS:
                    small = _term(step[1], floor, negative)
                    yield Sketch(products=(base, small))
                    yield Sketch(products=(base, small), c_code=model.d_type.sign_mask)
                    if len(step) > 2:
                        yield Sketch(products=(base, small, _term(step[2], level - bits - 1)))
                        yield Sketch(products=(base, small, _term(step[2], lowest - 1)))
                        yield Sketch(products=(_term(step[0], lowest), small, _term(step[2], lowest - 1)))
                for last in (lowest, lowest + 1):
                    yield Sketch(products=(_term(step[1], floor, True),), c_bits=1, c_last=last)
                    yield Sketch(products=(_term(step[0], last), _term(step[1], floor, True)))
                    yield Sketch(products=(_term(step[0], last), _term(step[1], floor, False)))
            for count in (2, 3, len(step)):
                yield Sketch(products=tuple(_term(at, floor) for at in step[:count]))
            yield Sketch(c_bits=3, c_last=floor)
            longest = (1 << (model.a_type.fraction_bits + 1)) - 1
            for negative in _SIGNS:
                yield Sketch(products=(_term(step[0], floor + 3, negative, bits_a=longest, bits_b=3),))


def zero_terms_of_many(setting: Setting) -> Iterator[Sketch]:
    """The same for narrow formats under block scales: many products make a result, one tiny one is cut at the floor, or not."""
    model, encoder = setting.model, setting.encoder
    if model.scale_type is None or model.scale_type.has_subnormals:
        return
    a, b = model.a_type, model.b_type
    steps = [step for step in _steps(model)[:1] if len(step) > 2]
    finest = smallest_exponent(model.d_type)
    values = sorted({(x * y, x, y) for x in _small_integers(a) for y in _small_integers(b)}, reverse=True)
    for step, floor, multiple in product(steps, setting.floors, (1, 2)):
        # in units of the smallest product, which lies at `floor`
        blocks = [step] if model.arithmetic is Arithmetic.FUSED else [[at for at in model.order if at // (model.block or 1) == 0]]
        target, places = multiple << (finest - floor) if finest > floor else 0, blocks[0]
        scales = encoder.scale_codes(floor - encoder.low)
        chosen = _greedy(target, values, len(places) - 1)
        if scales is None or chosen is None:
            continue
        codes = {at: _codes_of(model, pair) for at, pair in zip(places[1:], chosen, strict=False)}
        block = places[0] // (model.block or 1)
        for sign in (0, a.sign_mask):
            small = _codes_of(model, (1, 1))
            yield Sketch(codes={**codes, places[0]: (small[0] | sign, small[1])}, scales={block: scales})


def _small_integers(form: FormatSpec) -> list[int]:
    """Positive finite numbers in units of the smallest, up to 2^12."""
    unit = smallest_exponent(form)
    return [bits for bits in range(1, 1 << 12) if exact_code(form, bits, unit) is not None]


def _codes_of(model: Model, pair: tuple[int, int]) -> tuple[int, int]:
    a, b = model.a_type, model.b_type
    return exact_code(a, pair[0], smallest_exponent(a)) or 0, exact_code(b, pair[1], smallest_exponent(b)) or 0


def _greedy(target: int, values: list[tuple[int, int, int]], most: int) -> list[tuple[int, int]] | None:
    """Factors of at most `most` products that add up to the target."""
    chosen: list[tuple[int, int]] = []
    for value, x, y in values:
        while value <= target and len(chosen) < most:
            chosen.append((x, y))
            target -= value
    return chosen if chosen and target == 0 else None


def subnormal_results(setting: Setting) -> Iterator[Sketch]:
    """C and products around the subnormals of the result."""
    model, encoder = setting.model, setting.encoder
    form = model.d_type
    lowest = smallest_exponent(form)
    codes = (1, 2, (1 << form.fraction_bits) - 1, 1 << form.fraction_bits, (1 << form.fraction_bits) + 1)
    step = _steps(model)[0]
    for code, sign in product(codes, (0, form.sign_mask)):
        yield Sketch(c_code=code | sign)
        for exponent, negative in product((lowest - 2, lowest - 1, lowest, form.min_exponent - 1, form.min_exponent), _SIGNS):
            level = max(exponent, encoder.lowest)
            if level <= form.min_exponent + 1:
                yield Sketch(products=(_term(step[0], level, negative),), c_code=code | sign)
    for exponent in range(max(lowest - 2, encoder.lowest), form.min_exponent + 2):
        for negative in _SIGNS:
            yield Sketch(products=(_term(step[0], exponent, negative),))
            if len(step) > 1:
                yield Sketch(products=(_term(step[0], exponent, negative, bits_a=3), _term(step[1], max(lowest - 1, encoder.lowest))))
                yield Sketch(products=(_term(step[0], exponent, negative), _term(step[1], max(exponent - 1, encoder.lowest), negative)))


def overflow(setting: Setting) -> Iterator[Sketch]:
    """C at the largest finite number, and products around half its last place; products that pass it together."""
    model, encoder = setting.model, setting.encoder
    form = model.d_type
    bits, top = model.result_fraction_bits, form.max_exponent
    largest = (1 << (bits + 1)) - 1
    step = _steps(model)[0]
    for exponent, c_negative, negative in product(range(top - bits - 3, top - bits + 2), _SIGNS, _SIGNS):
        if encoder.lowest <= exponent <= encoder.highest:
            c = -largest if c_negative else largest
            yield Sketch(products=(_term(step[0], exponent, negative),), c_bits=c, c_last=top - bits)
            if len(step) > 1:
                both = (_term(step[0], exponent, negative), _term(step[1], exponent - 1, negative))
                yield Sketch(products=both, c_bits=c, c_last=top - bits)
    for step in _steps(model):
        high = min(encoder.highest, top)
        for c_negative, negative in product(_SIGNS, _SIGNS):
            terms = tuple(_term(at, high, negative) for at in step[:4])
            yield Sketch(products=terms)
            yield Sketch(products=terms, c_bits=-largest if c_negative else largest, c_last=top - bits)
            if len(step) > 3:
                mixed = (*terms[:2], replace(terms[2], negative=not negative), replace(terms[3], negative=not negative))
                yield Sketch(products=mixed, c_bits=-1 if c_negative else 1, c_last=top)


def products_from_two(setting: Setting) -> Iterator[Sketch]:
    """Products of 1.5 and 1.5, in [2, 4): whether that counts as one more in the exponent decides what the others keep."""
    for step in _steps(setting.model):
        for distance, negative in product(setting.distances, _SIGNS):
            for level in _levels(setting, distance + 1):
                large = _term(step[0], level, bits_a=3, bits_b=3)
                if len(step) > 2:
                    opposite = _term(step[1], level, True, bits_a=3, bits_b=3)
                    yield Sketch(products=(large, opposite, _term(step[2], level - distance, negative)))
                if len(step) > 1:
                    yield Sketch(products=(large, _term(step[1], level - distance, negative)), c_bits=-9, c_last=level - 2)


def c_below_products_from_two(setting: Setting) -> Iterator[Sketch]:
    """The same, where only c reaches so far down."""
    encoder, form = setting.encoder, setting.model.d_type
    step = _steps(setting.model)[0]
    for distance in setting.distances if len(step) > 1 else ():
        low, high = max(encoder.lowest, smallest_exponent(form) + distance), min(encoder.highest, form.max_exponent - 2)
        for level in sorted({low, high, min(max(0, low), high)}) if low <= high else ():
            pair = (_term(step[0], level, bits_a=3, bits_b=3), _term(step[1], level, True, bits_a=3, bits_b=3))
            yield Sketch(products=pair, c_bits=1, c_last=level - distance)


def subnormal_operands(setting: Setting) -> Iterator[Sketch]:
    """A subnormal of A or B times a large number, and its negative: how such a product is aligned decides what a third keeps."""
    model, encoder = setting.model, setting.encoder
    a, b = model.a_type, model.b_type
    for step in _steps(model):
        for is_a, depth in product((True, False), (1, 2, 3, 10)):
            form, other = (a, b) if is_a else (b, a)
            if depth > form.fraction_bits:
                continue
            for partner in (other.max_exponent, other.max_exponent - 1, 0, other.min_exponent):
                exponent = form.min_exponent - depth + partner
                first = form.min_exponent - depth if is_a else partner
                one = _term(step[0], exponent, exponent_a=first)
                yield Sketch(products=(one,))
                yield Sketch(products=(replace(one, negative=True),), c_bits=1, c_last=exponent)
                tie = _term(step[1 % len(step)], exponent - model.result_fraction_bits - 1)
                for distance, c in product(setting.distances, (1, -1)):
                    for low in (exponent - distance, exponent + depth - distance):
                        yield Sketch(products=(one,), c_bits=c, c_last=low)
                        yield Sketch(products=(one, tie), c_bits=c, c_last=low)
                if len(step) < 3:
                    continue
                for distance, negative in product(setting.distances, _SIGNS):
                    for above in (0, depth):
                        low = exponent + above - distance
                        pair = (_term(step[0], exponent, exponent_a=first), _term(step[1], exponent, True, exponent_a=first))
                        yield Sketch(products=(*pair, _term(step[2], low, negative)))
                        yield Sketch(products=(*pair, _term(step[2], low, negative, bits_a=3)))
                        yield Sketch(products=pair, c_bits=-1 if negative else 1, c_last=low)
                        if low < encoder.low:
                            longest = [(1 << (each.fraction_bits + 1)) - 1 for each in (a, b)]
                            floor = max(encoder.low, a.min_exponent + b.min_exponent)
                            yield Sketch(products=(*pair, _term(step[2], floor, negative, bits_a=longest[0], bits_b=longest[1])))
                            yield Sketch(products=(*pair, _term(step[2], encoder.low, negative)))


def one_hot(setting: Setting) -> Iterator[Sketch]:
    """One product at a time, with a value of its own for each element."""
    model = setting.model
    for at in range(model.k):
        top = min(3, 1 << model.b_type.fraction_bits)
        bits = min(2 * (at % 2) + 1, (1 << (model.a_type.fraction_bits + 1)) - 1)
        scales = {block: _distinct_scales(model, block) for block in range(model.blocks)}
        term = _term(at, 0, at % 3 == 1, bits_a=bits, bits_b=1 + 2 * (top > 1 and at % 5 > 2))
        yield Sketch(products=(term,), scales=scales)
        yield Sketch(products=(term,), scales=scales, c_bits=1, c_last=at % 7)


def _distinct_scales(model: Model, block: int) -> tuple[int, int]:
    scale = model.scale_type
    if scale is None:
        return 0, 0
    one = scale.bias << scale.fraction_bits
    return one + 1 + block, one + 2 * block


def _special_codes(spec: FormatSpec) -> list[int]:
    """Infinities, NaN (quiet, signalling, all ones) and both zeros, as far as the format has them."""
    codes = [0, spec.sign_mask]
    if spec.infinity is not None:
        codes += [spec.infinity, spec.infinity | spec.sign_mask]
        quiet = 1 << (spec.fraction_bits + spec.ignored_low_bits - 1)
        codes += [spec.infinity | quiet, spec.infinity | 1 << spec.ignored_low_bits]
    if spec.nan is not None:
        codes += [spec.nan, spec.nan | spec.sign_mask]
    return list(dict.fromkeys(codes))


def special_values(setting: Setting) -> Iterator[Sketch]:
    """Each infinity, NaN and zero of each operand against each of the other and of c."""
    model = setting.model
    if model.is_integer:
        return
    steps = _steps(model)
    first, last = steps[0][0], steps[-1][-1]
    ones = [exact_code(form, 1, 0) or 0 for form in (model.a_type, model.b_type)]
    ordinary = [ones[0], ones[0] | model.a_type.sign_mask], [ones[1]]
    c_codes = [exact_code(model.d_type, 1, 0) or 0, *_special_codes(model.d_type)]
    for a, b in product([*_special_codes(model.a_type), *ordinary[0]], [*_special_codes(model.b_type), *ordinary[1]]):
        for c in c_codes[:2]:
            yield Sketch(codes={first: (a, b)}, c_code=c)
            yield Sketch(codes={last: (a, b)}, c_code=c)
        yield Sketch(codes={first: (a, b)}, fill=(ones[0], ones[1]))
    for c in c_codes:
        yield Sketch(c_code=c)
        for a in [*_special_codes(model.a_type), *ordinary[0]]:
            yield Sketch(codes={first: (a, ones[1])}, c_code=c)
            yield Sketch(codes={last: (a, ones[1])}, c_code=c)
    middle = steps[0][-1]
    for form, is_a in ((model.a_type, True), (model.b_type, False)):
        if form.infinity is not None:
            for one, two in product((form.infinity, form.infinity | form.sign_mask), repeat=2):
                pairs = [(code, ones[1]) if is_a else (ones[0], code) for code in (one, two)]
                yield Sketch(codes={first: pairs[0], last: pairs[1]})
                yield Sketch(codes={first: pairs[0], middle: pairs[1]})


def signed_zeros(setting: Setting) -> Iterator[Sketch]:
    """Zeros of every sign, and sums that are zero."""
    model = setting.model
    if model.is_integer:
        return
    minus = [form.sign_mask for form in (model.a_type, model.b_type, model.d_type)]
    for a, b, c in product((0, minus[0]), (0, minus[1]), (0, minus[2])):
        yield Sketch(fill=(a, b), c_code=c)
        yield Sketch(codes={0: (a, b)}, c_code=c)
    one = exact_code(model.d_type, 1, 0) or 0
    for sign, negative in ((0, True), (minus[2], False)):
        yield Sketch(products=(_term(0, 0, negative),), c_code=one | sign)
    yield Sketch(products=(_term(0, 0), _term(1 % model.k, 0, True)), c_code=minus[2])
    tiny = max(setting.encoder.lowest, smallest_exponent(model.d_type) - 2)
    yield Sketch(products=(_term(0, tiny, True),), c_code=minus[2])
    yield Sketch(products=(_term(0, tiny, True),))
    last = model.order[-1]
    yield Sketch(products=(_term(last, tiny, True),), c_code=minus[2])


def unread_bits(setting: Setting) -> Iterator[Sketch]:
    """Bits of the containers that the hardware is said not to read."""
    model = setting.model
    unread = (1 << model.a_type.ignored_low_bits) - 1
    if unread:
        for at in range(model.k):
            a, b = exact_code(model.a_type, 1, 0) or 0, exact_code(model.b_type, 3, -1) or 0
            yield Sketch(codes={at: (a | unread, b)})
            yield Sketch(codes={at: (a, b | unread)})
            yield Sketch(codes={at: ((model.a_type.infinity or 0) | unread, b)})
    if model.scale_type is not None and model.scale_type.ignored_sign:
        one = exact_code(model.scale_type, 1, 0) or 0
        for block in range(model.blocks):
            at = block * (model.block or 0)
            yield Sketch(products=(_term(at, 0),), scales={block: (one | 0x80, one)})
            yield Sketch(products=(_term(at, 0),), scales={block: (one, one | 0x80)})


def scale_codes(setting: Setting) -> Iterator[Sketch]:
    """The scale codes at the ends: 0x00, 0x01, the largest, NaN, subnormals, and both signs where there is one."""
    model = setting.model
    scale = model.scale_type
    if scale is None or model.block is None:
        return
    one = exact_code(scale, 1, 0) or 0
    ends = {0, 1, 2, 3, 5, 7, 8, 9, 0x7D, 0x7E, 0x7F, 0x80, 0x81, 0xFD, 0xFE, 0xFF, one, one + 1}
    for code, block in product(sorted(ends), range(model.blocks)):
        at = block * model.block
        for pair in ((code, one), (one, code), (code, code), (code, 255 - code)):
            yield Sketch(products=(_term(at, 0),), scales={block: pair})
        yield Sketch(products=(_term(at, 0, True),), c_bits=1, c_last=0, scales={block: (code, one)})
        yield Sketch(scales={block: (code, one)})
        yield Sketch(scales={block: (code, one)}, c_bits=1, c_last=0)
        if scale.has_subnormals and code == 0:  # a zero scale: does its term keep an exponent?
            other = (block + 1) % model.blocks
            for distance in setting.distances:
                terms = (_term(at, 0), _term(other * model.block, -distance))
                for partner in (one, 0x7E):
                    yield Sketch(products=terms, scales={block: (code, partner)})
                    exponent = scale.min_exponent + (scale.max_exponent if partner == 0x7E else 0)
                    for c in (1, -1):
                        yield Sketch(products=(_term(at, 0),), scales={block: (code, partner)}, c_bits=c, c_last=exponent - distance)
                for level in range(distance - 18, distance - 8):
                    yield Sketch(products=(_term(at, 0), _term(other * model.block, level - distance)), scales={block: (code, 0x7E)})


def groups(setting: Setting) -> Iterator[Sketch]:
    """Elements of one block that are cut one by one, or not, and products whose size enters the exponent, or not."""
    model, rng = setting.model, setting.rng
    if model.block is None:
        return
    order, block = model.order, model.block
    encoder = setting.encoder
    low = encoder.low
    here = [at for at in order if at // block == order[0] // block]
    ends = [(code_a, code_b) for code_a, code_b in ((1, 1), (3, 3), (7, 7), (5, 7))]
    for distance in setting.distances:
        for level in (distance // 2, distance // 2 - 3, 0):
            for count in (2, 4, 8, 16, 32):
                for at in (0, 1, count // 2, count):
                    chosen = here[at : at + count]
                    if len(chosen) < count:
                        continue
                    scales = encoder.scale_codes(level - distance - low)
                    if scales is None:
                        continue
                    codes = dict.fromkeys(chosen, (exact_code(model.a_type, 1, smallest_exponent(model.a_type)) or 0,
                                                   exact_code(model.b_type, 1, smallest_exponent(model.b_type)) or 0))  # fmt: skip
                    for negative in _SIGNS:
                        c = -1 if negative else 1
                        yield Sketch(codes=codes, scales={order[0] // block: scales}, c_bits=c, c_last=level)
                        below = encoder.scale_codes(level - distance - low - count.bit_length() + 1)
                        if below is not None:
                            yield Sketch(codes=codes, scales={order[0] // block: below}, c_bits=c, c_last=level)
            if model.blocks < 2:
                continue
            second = (order[0] // block + 1) % model.blocks
            high, tiny = encoder.scale_codes(level), encoder.scale_codes(level - distance)
            if high is None or tiny is None:
                continue
            for pair in ends:
                pair = (pair[0] & (model.a_type.codes - 1), pair[1] & (model.b_type.codes - 1))
                minus = (pair[0] | model.a_type.sign_mask, pair[1])
                for other in here[1 : block // 2 : 3] + here[-1:]:
                    picked = rng.integers(1, 8, 2)
                    small = {second * block + int(rng.integers(block)): (int(picked[0]), int(picked[1])) for _ in range(3)}
                    yield Sketch(codes={here[0]: pair, other: minus, **small}, scales={here[0] // block: high, second: tiny})


# Random ----------------------------------------------------------------------------------------------------------------------


def _random_codes(spec: FormatSpec, shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[Any]:
    bits = spec.code_bits
    low = rng.integers(0, 1 << min(bits, 32), shape, dtype=np.uint64)
    high = rng.integers(0, 1 << (bits - 32), shape, dtype=np.uint64) << np.uint64(32) if bits > 32 else np.uint64(0)
    codes: npt.NDArray[Any] = (low | high).astype(f"u{spec.container_bits // 8}")
    return codes


def _finite(codes: npt.NDArray[Any], spec: FormatSpec) -> npt.NDArray[Any]:
    """Codes with what is not finite halved into what is."""
    if not spec.has_nan:
        return codes
    magnitude = codes & codes.dtype.type(spec.magnitude_mask)
    top = codes.dtype.type(1 << (spec.code_bits - 2 if spec.sign_bits or spec.ignored_sign else spec.code_bits - 1))
    return np.where(magnitude > codes.dtype.type(spec.max_finite_magnitude), codes & ~top, codes)


def _near_one(spec: FormatSpec, shape: tuple[int, ...], rng: np.random.Generator, spread: int) -> npt.NDArray[Any]:
    """Exponents within `spread` of the middle, any fraction and sign."""
    dtype = f"u{spec.container_bits // 8}"
    if spec.is_integer:
        return _random_codes(spec, shape, rng)
    exponent = np.clip(rng.integers(-spread, spread + 1, shape), spec.min_exponent, spec.max_exponent - 1)
    field = exponent + spec.bias
    fraction = rng.integers(0, 1 << spec.fraction_bits, shape, dtype=np.int64)
    sign = rng.integers(0, 2, shape) * spec.sign_bits
    code = (field.astype(np.uint64) << np.uint64(spec.fraction_bits)) | fraction.astype(np.uint64)
    code <<= np.uint64(spec.ignored_low_bits)
    return (code | (sign.astype(np.uint64) << np.uint64(spec.code_bits - 1))).astype(dtype)


def random_bits(model: Model, n: int, rng: np.random.Generator, *, finite: bool) -> Operands:
    """Uniform codes of everything."""
    draw: Callable[..., Any] = _random_codes
    forms = (model.a_type, model.b_type, model.d_type)
    arrays = [draw(form, shape, rng) for form, shape in zip(forms, ((n, model.k), (n, model.k), (n,)), strict=True)]
    if finite:
        arrays = [_finite(codes, form) for codes, form in zip(arrays, forms, strict=True)]
    if model.scale_type is None:
        return Operands(*arrays)
    scales = [_random_codes(model.scale_type, (n, model.blocks), rng) for _ in range(2)]
    return Operands(*arrays, *([_finite(codes, model.scale_type) for codes in scales] if finite else scales))


def plain(model: Model, n: int, rng: np.random.Generator, *, spread: int, cancelling: bool) -> Operands:
    """Exponents near each other; with `cancelling`, the second half of K is nearly the negative of the first, in random places."""
    a, b = (_near_one(form, (n, model.k), rng, spread) for form in (model.a_type, model.b_type))
    c = _near_one(model.d_type, (n,), rng, 2 * spread)
    half = model.k // 2
    if cancelling and half:
        a[:, half : 2 * half] = a[:, :half] ^ a.dtype.type(model.a_type.sign_mask)
        nudge = (rng.random((n, half)) < 0.2) << (model.b_type.ignored_low_bits)
        b[:, half : 2 * half] = b[:, :half] ^ nudge.astype(b.dtype)
        order = rng.permuted(np.tile(np.arange(model.k), (n, 1)), axis=1)
        a, b = np.take_along_axis(a, order, 1), np.take_along_axis(b, order, 1)
        c = np.where(rng.random(n) < 0.5, c.dtype.type(0), c)
    a = np.where(rng.random(a.shape) < 0.1, a.dtype.type(0), a)
    if model.scale_type is None:
        return Operands(a, b, c)
    scales = [_near_one(model.scale_type, (n, model.blocks), rng, 3 if i % 2 else 18) for i in range(2)]
    return Operands(a, b, c, *scales)


# All of them -----------------------------------------------------------------------------------------------------------------

_Recipe = Callable[[Setting], Iterator[Sketch]]

RECIPES: Final[tuple[tuple[str, str, _Recipe], ...]] = (
    ("window of c", "F, whether c is aligned with the products, cutting toward zero from rounding down", window_of_c),
    ("ties", "rounding of the result, F under a tie", tie_on_c),
    ("long products", "F and the fraction bits of the result, at products of many bits", long_products),
    ("long sums", "fraction bits and rounding of the result without c", long_sums),
    ("window of products", "F, and the exponents of products", window_of_products),
    ("c below products", "F, where only c reaches so far down", c_below_products),
    ("many small", "F, steps: products cut one by one or counted together", many_small),
    ("carries", "fraction bits and rounding of the result, where sums carry far", carries),
    ("carries of groups", "the same, with groups whose sums lie far above their exponent", carries_of_groups),
    ("order", "which elements share a step, and in which order the steps come", order_of_steps),
    ("cancelled before", "which elements share a step, with and without c", cancelled_before),
    ("c inside or added", "C as a term of the first step, or an addition of its own", added_c),
    ("zero terms", "e_zero", zero_terms),
    ("zero terms of many", "e_zero, where single products reach less far", zero_terms_of_many),
    ("subnormal results", "subnormal accumulators and results", subnormal_results),
    ("overflow", "overflow to infinity, and only at the end of a step", overflow),
    ("products from 2 on", "exponents of products, normalised or not", products_from_two),
    ("c below products from 2 on", "exponents of products, where only c reaches so far down", c_below_products_from_two),
    ("subnormal operands", "subnormals of A and B: kept, normalised first, or flushed", subnormal_operands),
    ("one-hot", "the scale that each element reads, and that each element counts", one_hot),
    ("special values", "infinities and NaN, and the code of the NaN that comes out", special_values),
    ("signed zeros", "the sign of a zero", signed_zeros),
    ("unread bits", "low bits of tf32, the sign bit of ue4m3", unread_bits),
    ("scale codes", "0x00, subnormals, 0xFF and 0x7F among the scales", scale_codes),
    ("groups", "products summed before the alignment, and exponents of groups", groups),
)
"""Name, what it tells apart, and recipe."""

_RANDOM: Final = "everything, by chance"


def _thinned(found: Operands, most: int | None, rng: np.random.Generator) -> Operands:
    if most is None or len(found.c) <= most:
        return found
    return found.take(np.sort(rng.choice(len(found.c), most, replace=False)))


def random_probes(model: Model, n: int, rng: np.random.Generator) -> list[Probes]:
    """Uniform bits, uniform finite bits, values near each other, and sums that nearly cancel: n dot products of each."""
    return [
        Probes(name="random bits", tells=_RANDOM, operands=random_bits(model, n, rng, finite=False)),
        Probes(name="random finite bits", tells=_RANDOM, operands=random_bits(model, n, rng, finite=True)),
        Probes(name="random near one", tells=_RANDOM, operands=plain(model, n, rng, spread=3, cancelling=False)),
        Probes(name="random cancelling", tells=_RANDOM, operands=plain(model, n, rng, spread=8, cancelling=True)),
    ]


def _integer_probes(model: Model, rng: np.random.Generator) -> Operands:
    """Sums around the ends of the s32 range, and random codes."""
    high = 1 << model.d_type.fraction_bits
    found = random_bits(model, 24, rng, finite=True)
    edges = np.array([high - 1, high - 2, high, high + 1, 0, 2 * high - 1], dtype=np.uint64)
    codes = []
    for row in range(48):
        parts = random_bits(model, 1, rng, finite=True)
        near = int(edges[row % len(edges)]) + int(rng.integers(-200, 200))
        codes.append(parts._replace(c=np.array([near & (2 * high - 1)], np.uint32)))
    return join([found, *codes])


def probes_for(model: Model, *, setting: Setting | None = None, most: int | None = None, random: int = 40, seed: int = 0) -> list[Probes]:
    """Everything that tells a model from its neighbours.

    Args:
        model: the datapath.
        setting: what the recipes are told; the model's own edges if None.
        most: dot products of a recipe at most (drawn from all it makes), None for all.
        random: random dot products of each of four distributions.
        seed: of all that is drawn.
    """
    told = setting or setting_of(model, seed=seed)
    rng = np.random.default_rng([SEED, seed, model.k, model.step])
    if model.is_integer:
        return [Probes(name="ends of the range", tells="wrap-around and saturation", operands=_integer_probes(model, rng)),
                *random_probes(model, random, rng)[:1]]  # fmt: skip
    found = []
    for name, tells, recipe in RECIPES:
        operands = told.encoder.encode(recipe(told))
        if len(operands.c):
            found.append(Probes(name=name, tells=tells, operands=_thinned(unique(operands), most, rng)))
    return [*found, *(random_probes(model, random, rng) if random else [])]


def unique(operands: Operands) -> Operands:
    """Each dot product once."""
    seen: dict[bytes, int] = {}
    for i in range(len(operands.c)):
        seen.setdefault(row_bytes(operands, i), i)
    return operands.take(np.array(list(seen.values()), dtype=np.int64))


def row_bytes(operands: Operands, i: int) -> bytes:
    """One dot product as a key."""
    return b"".join(codes[i].tobytes() for codes in operands if codes is not None)


def all_operands(probes: Iterable[Probes]) -> Operands:
    """The dot products of all, one below the other."""
    return join([each.operands for each in probes])


__all__ = [
    "RECIPES",
    "Arithmetic",
    "Probes",
    "Setting",
    "all_operands",
    "order_pair",
    "probes_for",
    "random_probes",
    "setting_of",
    "unique",
]
