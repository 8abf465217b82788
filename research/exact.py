"""The exact model: what a `Model` makes of operands, step by step, in integers, for any numbers that a model can have.

Independent of the engine, which is compiled for the rows there are. Sums that 64 bits hold are computed in NumPy integers, wider ones in
Python's; the code is the same, and nothing is ever rounded but where the model says so. `evaluate` gives results, `steps` everything on the
way to them; `mmabits.research.trace` tells of one element what `steps` gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mmabits.isa import Arithmetic, FormatSpec, NonFinite, Rounding
from mmabits.research.model import Model, Overflow

Codes = npt.NDArray[Any]
Integers = npt.NDArray[Any]
"""int64, or Python integers where 64 bits are too few."""
Flags = npt.NDArray[np.bool_]

FINITE, INFINITE, NAN = 0, 1, 2
NEVER: Final = -(1 << 40)
"""Exponent of a term that does not take part in the alignment."""
_TABLE_BITS: Final = 16
_NARROW_FRACTION_BITS: Final = 40
"""Up to here 64 bits hold every sum: 2^(F + 11) for the largest group term, times 65 terms."""
_LONGEST_SHIFT: Final = 62


class Operands(NamedTuple):
    """n dot products as codes: a and b (n, k), c (n,), scales (n, k / block) or None. Unsigned, in the format's container."""

    a: Codes
    b: Codes
    c: Codes
    scale_a: Codes | None = None
    scale_b: Codes | None = None

    def take(self, rows: Any) -> Operands:
        """Some of the rows, by index or mask."""
        scales = (None if codes is None else codes[rows] for codes in (self.scale_a, self.scale_b))
        return Operands(self.a[rows], self.b[rows], self.c[rows], *scales)


class Numbers(NamedTuple):
    """Decoded codes: value = significand x 2^lsb, with the exponent that the alignment sees. Fields have the shape of the codes."""

    kind: Integers
    significand: Integers
    """With the sign."""
    lsb: Integers
    exponent: Integers
    negative: Flags
    """The sign bit, also of zeros and of what is not finite."""


def join(parts: list[Operands]) -> Operands:
    """Operands one below the other."""
    a, b, c = (np.concatenate([part[i] for part in parts]) for i in range(3))
    scales: list[list[Any]] = [[part[i] for part in parts if part[i] is not None] for i in (3, 4)]
    return Operands(a, b, c, *(np.concatenate(each) if each else None for each in scales))


# Decoding --------------------------------------------------------------------------------------------------------------------


def _decode(codes: Codes, spec: FormatSpec, flush: bool, lowest: int) -> Numbers:
    wide = codes.astype(np.uint64)
    magnitude = (wide & np.uint64(spec.magnitude_mask)) >> np.uint64(spec.ignored_low_bits)
    field = (magnitude >> np.uint64(spec.fraction_bits)).astype(np.int64)
    fraction = (magnitude & np.uint64((1 << spec.fraction_bits) - 1)).astype(np.int64)
    negative = (wide & np.uint64(spec.sign_mask)) != 0
    if spec.is_integer:
        value = wide.astype(np.int64)
        value = np.where(negative, value - spec.codes, value)
        zeros = np.zeros_like(value)
        return Numbers(zeros, value, zeros, zeros, negative)
    subnormal = (field == 0) & spec.has_subnormals
    significand = np.where(subnormal, 0 if flush else fraction, fraction + (1 << spec.fraction_bits))
    exponent = np.where(subnormal, 1, field) - spec.bias
    lsb = exponent - spec.fraction_bits
    if lowest < spec.min_exponent:
        exponent = np.where(significand > 0, np.maximum(_bit_length(significand) - 1 + lsb, lowest), exponent)
    kind = np.zeros(codes.shape, np.int64)
    top = spec.exponent_mask >> spec.ignored_low_bits
    wide_magnitude = magnitude.astype(np.int64)
    if spec.non_finite is NonFinite.IEEE:
        kind = np.where(wide_magnitude == top, INFINITE, np.where(wide_magnitude > top, NAN, FINITE))
    elif spec.non_finite is NonFinite.NAN_ONLY:
        kind = np.where(wide_magnitude == spec.magnitude_mask >> spec.ignored_low_bits, NAN, FINITE)
    significand = np.where(kind == FINITE, np.where(negative, -significand, significand), 0)
    return Numbers(kind, significand, lsb, exponent, negative)


@lru_cache(maxsize=256)
def _table(spec: FormatSpec, flush: bool, lowest: int) -> Numbers:
    return _decode(np.arange(1 << spec.container_bits, dtype=np.uint64) & np.uint64(spec.codes - 1), spec, flush, lowest)


def decode(
    codes: Codes, spec: FormatSpec, *, flush: bool = False, unpacked_to: FormatSpec | None = None, negate: bool = False
) -> Numbers:  # fmt: skip
    """Take codes apart.

    Args:
        codes: of the format, any shape.
        spec: the format.
        flush: subnormals count as zero.
        unpacked_to: the format whose smallest normal exponent decides up to where subnormals have exponents of their own.
        negate: the other sign, of every code.
    """
    lowest = min((unpacked_to or spec).min_exponent, spec.min_exponent) if not spec.is_integer else 0
    if spec.container_bits <= _TABLE_BITS:
        found = Numbers(*(field[codes] for field in _table(spec, flush, lowest)))
    else:
        found = _decode(codes, spec, flush, lowest)
    return found._replace(significand=-found.significand, negative=~found.negative) if negate else found


def decode_operands(model: Model, a: Codes, b: Codes) -> tuple[Numbers, Numbers]:
    """Codes of A and of B as the unit reads them."""
    first, second = (
        decode(codes, form, flush=model.flushes_operands, unpacked_to=model.operand_format, negate=negate)
        for codes, form, negate in ((a, model.a_type, model.negate_a), (b, model.b_type, model.negate_b))
    )
    return first, second


_python_bit_length: Any = np.frompyfunc(int.bit_length, 1, 1)


def _bit_length(magnitude: Integers) -> Integers:
    """Of integers that are not negative."""
    if magnitude.dtype == object:
        lengths: Integers = _python_bit_length(magnitude).astype(np.int64)
        return lengths
    guess: Integers = np.frexp(magnitude.astype(np.float64))[1].astype(np.int64)
    too_long = (guess > 0) & ((magnitude >> np.maximum(guess - 1, 0)) == 0)  # float64 rounded up to a power of two
    shorter: Integers = guess - too_long
    return shorter


# Rounding --------------------------------------------------------------------------------------------------------------------


def _shifted(values: Integers, left: Integers, right: Integers, rounding: Rounding) -> Integers:
    """Values x 2^(left - right), rounded to integers."""
    if values.dtype == object:
        left, right = left.astype(object), right.astype(object)
    moved: Integers
    match rounding:
        case Rounding.DOWN:
            moved = (values << left) >> right
        case Rounding.UP:
            moved = -((-values << left) >> right)
        case Rounding.TOWARD_ZERO:
            magnitude = (np.abs(values) << left) >> right
            moved = np.where(values < 0, -magnitude, magnitude)
        case Rounding.NEAREST_EVEN:
            exact = values << left
            kept = exact >> right
            doubled_rest = (exact - (kept << right)) << 1
            unit = (kept - kept + 1) << right
            moved = kept + ((doubled_rest > unit) | ((doubled_rest == unit) & ((kept & 1) == 1)))
    return moved


def _limited(shift: Integers, wide: bool) -> tuple[Integers, Integers]:
    """A shift as one to the left and one to the right; both short enough for 64 bits, where values have at most 62."""
    left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
    return (left, right) if wide else (np.minimum(left, _LONGEST_SHIFT), np.minimum(right, _LONGEST_SHIFT))


def round_to_codes(total: Integers, quantum: Integers, zero_negative: Flags, model: Model) -> Codes:
    """The codes of total x 2^quantum, rounded once as a model rounds.

    Args:
        total: the exact sums, integers.
        quantum: the exponent of their last place.
        zero_negative: sign of a result that is exactly zero, if the model has signed zeros.
        model: says how; `d_type` is the format.
    """
    form, bits = model.d_type, model.result_fraction_bits
    wide = total.dtype == object
    negative = total < 0
    magnitude = np.abs(total)
    exponent = np.maximum(_bit_length(magnitude) - 1 + quantum, form.min_exponent)
    exponent = np.where(magnitude == 0, form.min_exponent, exponent)
    left, right = _limited(quantum - (exponent - bits), wide)
    left = np.where(magnitude == 0, 0, left)
    kept = np.abs(_shifted(np.where(negative, -magnitude, magnitude), left, right, model.rounding)).astype(np.int64)
    infinity = form.exponent_mask
    field = np.minimum(exponent, form.max_exponent + 1) - form.min_exponent  # one past the largest is past all: no wider shift is needed
    code = np.where(exponent > form.max_exponent, infinity, (field << form.fraction_bits) + (kept << (form.fraction_bits - bits)))
    if model.flushes_results:
        code = np.where(code < 1 << form.fraction_bits, 0, code)
    code = np.where(code >= infinity, np.where(_keeps_finite(negative, model), form.max_finite_magnitude, infinity), code)
    sign = np.where(total == 0, zero_negative, negative) if model.signed_zeros else negative & (code != 0)
    return (code.astype(np.uint64) | (sign.astype(np.uint64) << np.uint64(form.code_bits - 1))).astype(f"u{form.container_bits // 8}")


def _keeps_finite(negative: Flags, model: Model) -> Flags:
    """Where an overflow is the largest finite number."""
    match model.overflow:
        case Overflow.INFINITY:
            return np.zeros_like(negative)
        case Overflow.SATURATES:
            return np.ones_like(negative)
        case Overflow.IEEE:
            toward = {Rounding.UP: negative, Rounding.DOWN: ~negative, Rounding.TOWARD_ZERO: np.ones_like(negative)}
            return toward.get(model.rounding, np.zeros_like(negative))


# Terms -----------------------------------------------------------------------------------------------------------------------


class _OrderedProducts(NamedTuple):
    """All products of some dot products, (n, k), in the order in which they enter the steps, block scales included or beside them."""

    numbers: Numbers
    signs: Flags
    """Negative products, zeros included."""
    infinite: Flags
    invalid: Flags
    """NaN, or zero times infinity."""


def _needs_python(model: Model) -> bool:
    """Whether some sum or product may pass 62 bits."""
    if model.is_integer:
        return False
    bits = model.a_type.fraction_bits + model.b_type.fraction_bits
    spread = 0
    if model.arithmetic is Arithmetic.GROUPED:
        spread = sum(form.max_exponent - form.min_exponent for form in (model.a_type, model.b_type))
        bits += spread + model.group.bit_length() + 8
    return model.fraction_bits is None or model.fraction_bits > _NARROW_FRACTION_BITS or bits > 50


def _products(model: Model, x: Operands, wide: bool) -> _OrderedProducts:
    order = list(model.order)
    ascending = order == list(range(model.k))
    codes = (x.a, x.b) if ascending else (x.a[:, order], x.b[:, order])
    a, b = decode_operands(model, *codes)
    left, right = (a.significand.astype(object), b.significand.astype(object)) if wide else (a.significand, b.significand)
    significand, lsb, exponent = left * right, a.lsb + b.lsb, a.exponent + b.exponent
    if model.normalised_products:
        exponent = exponent + (_bit_length(np.abs(significand)) - 1 + lsb > exponent)
    infinite = (a.kind == INFINITE) | (b.kind == INFINITE)
    zero = ((a.kind == FINITE) & (a.significand == 0)) | ((b.kind == FINITE) & (b.significand == 0))
    invalid = (a.kind == NAN) | (b.kind == NAN)
    if model.zero_times_infinity:
        invalid = invalid | (infinite & zero)
    signs = a.negative ^ b.negative
    return _OrderedProducts(Numbers(np.where(invalid, NAN, 0), significand, lsb, exponent, signs), signs, infinite & ~invalid, invalid)


def _scales(model: Model, x: Operands) -> tuple[Numbers, Numbers] | None:
    """The scales of each element, (n, k), in the order of the steps."""
    if model.scale_type is None or model.block is None or x.scale_a is None or x.scale_b is None:
        return None
    index = (np.array(model.order) // model.block + model.scale_rotation) % model.blocks
    return decode(x.scale_a[:, index], model.scale_type), decode(x.scale_b[:, index], model.scale_type)


def _scaled(products: _OrderedProducts, scales: tuple[Numbers, Numbers], model: Model) -> _OrderedProducts:
    """Fused steps: a product times its scales."""
    numbers, (first, second) = products.numbers, scales
    factor = first.significand * second.significand
    invalid = products.invalid | (first.kind == NAN) | (second.kind == NAN)
    if model.zero_times_infinity:
        invalid = invalid | (products.infinite & (factor == 0))
    scaled = Numbers(
        np.where(invalid, NAN, 0), numbers.significand * factor, numbers.lsb + first.lsb + second.lsb,
        numbers.exponent + first.exponent + second.exponent, numbers.negative ^ first.negative ^ second.negative,
    )  # fmt: skip
    return products._replace(numbers=scaled, signs=scaled.negative, invalid=invalid, infinite=products.infinite & ~invalid)


def _grouped_terms(numbers: Numbers, scales: tuple[Numbers, Numbers] | None, model: Model) -> tuple[Integers, Integers, Integers]:
    """Significand, last place and exponent of each group, (n, groups); elements past a last short group do not exist."""
    n, elements = numbers.significand.shape
    short = -elements % model.group
    lowest = sum(form.min_exponent - form.fraction_bits for form in (model.a_type, model.b_type))
    shift = numbers.lsb - lowest
    aligned = numbers.significand << (shift.astype(object) if numbers.significand.dtype == object else shift)
    sums = np.pad(aligned, ((0, 0), (0, short))).reshape(n, -1, model.group)
    absent = np.all(sums == 0, axis=2)
    total = sums.sum(axis=2)
    lsb = np.full(total.shape, lowest, np.int64)
    exponent = np.zeros(total.shape, np.int64)
    if scales is not None:
        first, second = (Numbers(*(field[:, :: model.group] for field in scale)) for scale in scales)
        factor = first.significand * second.significand
        total = total * np.where(first.negative != second.negative, -np.abs(factor), np.abs(factor))
        lsb, exponent = lsb + first.lsb + second.lsb, first.exponent + second.exponent
        absent = absent | (factor == 0) if model.zero_scale_absent else absent
    return total, lsb, np.where(absent, NEVER if model.zero_exponent is None else model.zero_exponent, exponent)


def _fused_terms(numbers: Numbers, model: Model) -> tuple[Integers, Integers, Integers]:
    absent = NEVER if model.zero_exponent is None else model.zero_exponent
    return numbers.significand, numbers.lsb, np.where(numbers.significand == 0, absent, numbers.exponent)


# Steps -----------------------------------------------------------------------------------------------------------------------


class StepArrays(NamedTuple):
    """One step of n dot products: (n, terms) of its products or groups and, last, its accumulator, and (n,) of the whole."""

    elements: tuple[int, ...]
    """Of K, in the order in which they enter."""
    significand: Integers
    """A term is significand x 2^lsb."""
    lsb: Integers
    exponent: Integers
    """What takes part in the search for the largest exponent; NEVER: nothing."""
    kept: Integers
    """What is left of a term after alignment, in units of the last place."""
    last_place: Integers
    """Exponent of the last place that is kept."""
    total: Integers
    """The exact sum of what is kept."""
    is_special: Flags
    """An infinity or NaN comes out, whatever the sum."""
    codes: Codes
    """The accumulator handed on."""


def _aligned(significand: Integers, lsb: Integers, exponent: Integers, model: Model) -> tuple[Integers, Integers]:
    """Terms of shape (n, terms) cut to the last place that is kept, and its exponent."""
    wide = significand.dtype == object
    if model.fraction_bits is None:
        present = np.where(significand == 0, np.int64(-NEVER), lsb)
        quantum = present.min(axis=1)
        quantum = np.where(quantum == -NEVER, 0, quantum)
    else:
        largest = exponent.max(axis=1)
        if model.floor is not None:
            largest = np.maximum(largest, model.floor)
        quantum = np.where(largest == NEVER, 0, largest) - model.fraction_bits
    left, right = _limited(lsb - quantum[:, None], wide)
    left = np.where(significand == 0, 0, left)
    return _shifted(significand, left, right, model.alignment), quantum


def _special(invalid: Flags, positive: Flags, negative: Flags, first_negative: Flags, model: Model) -> tuple[Flags, Codes]:
    """Where a NaN or an infinity comes out of a step, and its code."""
    both = positive & negative
    nan = invalid | both if model.opposite_infinities else invalid
    form = model.d_type
    sign = np.where(both, first_negative, negative).astype(np.uint64)
    code = np.uint64(form.exponent_mask) | (sign << np.uint64(form.code_bits - 1))
    return nan | positive | negative, np.where(nan, np.uint64(model.nan), code).astype(f"u{form.container_bits // 8}")


def _step(
    elements: tuple[int, ...], held: Codes, products: _OrderedProducts, scales: tuple[Numbers, Numbers] | None, model: Model, halvings: int
) -> StepArrays:  # fmt: skip
    wide = products.numbers.significand.dtype == object
    c = decode(held, model.d_type, flush=model.flushes_c)
    grouped = model.arithmetic is Arithmetic.GROUPED
    terms = _grouped_terms(products.numbers, scales, model) if grouped else _fused_terms(products.numbers, model)
    c_significand = c.significand.astype(object) if wide else c.significand
    absent = NEVER if model.zero_exponent is None else model.zero_exponent
    significand = np.concatenate([terms[0], c_significand[:, None]], axis=1)
    lsb = np.concatenate([terms[1], c.lsb[:, None] - halvings], axis=1)
    exponent = np.concatenate([terms[2], np.where(c.significand == 0, absent, c.exponent - halvings)[:, None]], axis=1)
    kept, quantum = _aligned(significand, lsb, exponent, model)
    total = kept.sum(axis=1)
    if model.is_integer:
        codes = _integer_codes(total, model)
        return StepArrays(elements, significand, lsb, exponent, kept, quantum, total, np.zeros(len(held), np.bool_), codes)
    all_negative = products.signs.all(axis=1) & c.negative
    any_negative = products.signs.any(axis=1) | c.negative
    all_zero = (products.numbers.significand == 0).all(axis=1) & (c.significand == 0)
    zero_negative = np.where(all_zero, all_negative, False) | (any_negative & ~all_negative & (model.rounding is Rounding.DOWN))
    codes = round_to_codes(total, quantum, zero_negative, model)
    invalid = products.invalid.any(axis=1) | (c.kind == NAN)
    if scales is not None:
        invalid = invalid | ((scales[0].kind == NAN) | (scales[1].kind == NAN)).any(axis=1)
    c_infinite = c.kind == INFINITE
    positive = (products.infinite & ~products.signs).any(axis=1) | (c_infinite & ~c.negative)
    negative = (products.infinite & products.signs).any(axis=1) | (c_infinite & c.negative)
    first = np.argmax(products.infinite, axis=1)
    first_negative = np.where(c_infinite, c.negative, products.signs[np.arange(len(held)), first])
    special, special_codes = _special(invalid, positive, negative, first_negative, model)
    return StepArrays(elements, significand, lsb, exponent, kept, quantum, total, special, np.where(special, special_codes, codes))


def _integer_codes(total: Integers, model: Model) -> Codes:
    """An exact sum as an accumulator: saturated, or its low bits."""
    form = model.d_type
    if model.overflow is Overflow.SATURATES:
        total = np.clip(total, -(1 << form.fraction_bits), (1 << form.fraction_bits) - 1)
    return (total & (form.codes - 1)).astype(np.uint32)


def ieee_sum(c: Codes, partial: Codes, form: FormatSpec, nan: int) -> Codes:
    """C + partial in one format, rounded to nearest even. Exact also for float16, where NumPy goes through float32.

    Args:
        c: codes.
        partial: codes, of the same shape.
        form: f16, f32 or f64.
        nan: code of the NaN that comes out.
    """
    dtype = {16: np.float16, 32: np.float32, 64: np.float64}[form.container_bits]
    with np.errstate(all="ignore"):
        total = c.view(dtype) + partial.view(dtype)
    codes: Codes = total.view(c.dtype).copy()
    codes[np.isnan(total)] = nan
    return codes


def _c_added(c: Codes, partial: Codes, model: Model) -> Codes:
    codes = ieee_sum(_flushed(c, model.d_type) if model.flushes_c else c, partial, model.d_type, model.nan)
    return _flushed(codes, model.d_type) if model.flushes_results else codes


def _flushed(codes: Codes, spec: FormatSpec) -> Codes:
    """Subnormals as zeros of their sign."""
    magnitude = codes & codes.dtype.type(spec.magnitude_mask)
    return np.where(magnitude < 1 << spec.fraction_bits, codes & codes.dtype.type(spec.sign_mask), codes)


def steps(model: Model, x: Operands, *, skips_idle: bool = False) -> Iterator[StepArrays]:
    """Every step of an instruction, from the accumulator that is given.

    An addition of C by itself, after the steps, is no step: a model that has one starts from whatever accumulator is given here.

    Args:
        model: any.
        x: operands of the model's types and K.
        skips_idle: leave out steps of nothing but zeros that change no accumulator.
    """
    products, scales = _products(model, x, _needs_python(model)), _scales(model, x)
    if scales is not None and model.arithmetic is not Arithmetic.GROUPED:
        products, scales = _scaled(products, scales, model), None
    codes, idle = np.ascontiguousarray(x.c), False
    for first in range(0, model.k, model.step):
        part = slice(first, first + model.step)
        taken = _OrderedProducts(
            Numbers(*(field[:, part] for field in products.numbers)), products.signs[:, part], products.infinite[:, part],
            products.invalid[:, part],
        )  # fmt: skip
        nothing = skips_idle and not (taken.numbers.significand.any() or taken.infinite.any() or taken.invalid.any())
        if nothing and idle and scales is None and not model.signed_zeros:
            continue  # a second step of zeros changes nothing that the first has left
        here = (
            None if scales is None else (Numbers(*(each[:, part] for each in scales[0])), Numbers(*(each[:, part] for each in scales[1])))
        )
        found = _step(model.order[part], codes, taken, here, model, model.c_halvings if first == 0 else 0)
        yield found
        codes, idle = found.codes, nothing


def evaluate(model: Model, x: Operands) -> Codes:
    """The results of dot products under a model.

    Args:
        model: any.
        x: operands of the model's types and K.

    Returns:
        (n,) codes of `model.d_type`.
    """
    start = x._replace(c=np.zeros_like(x.c)) if model.c_added else x
    codes = start.c
    for step in steps(model, start, skips_idle=True):
        codes = step.codes
    return _c_added(np.ascontiguousarray(x.c), codes, model) if model.c_added else codes
