"""One step of a datapath for one row of A against WIDTH columns of B: the engine's innermost code.

Written with lanes (lanes.py), so it reads like the arithmetic and leaves vector instructions. All of it runs with the
thread rounding toward zero. Legends: E largest exponent of a step's terms, F fraction bits kept below it, p significand
bits of the carrier (24 for float32, 53 for float64).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from mmabits.emulator.jit import WIDTH, intrinsic
from mmabits.emulator.lanes import F32, F64, I16, I32, I64, Emitter, Lanes

DONE, NOT_FINITE, TOO_WIDE = 0, 1, 2
"""What a step reports: all results finite; some not; nothing done, since a float32 carrier would overflow."""
CARRIER_LIMIT = 100
"""Exponents up to which a float32 carrier holds the window and every sum."""
GROUPS_AT_ONCE = 2
"""Groups whose sums run side by side, for two rows and two vectors, to hide the latency of a multiply-add."""

NO_EXPONENT = -8192
"""Stands for the exponent of a zero: added to itself or to any exponent, it stays below every e_zero."""

_index = types.intp


def _largest_exponents(emit: Emitter, a: Any, at: Any, b: Any, first: int, count: Any, lanes: int) -> Lanes:
    """Per column, the largest sum of an exponent of A and one of B over the step, as int32."""
    (largest,) = emit.cells([emit.constant(I16, -(1 << 15), lanes)])
    with emit.loop(count) as k:
        row = emit.builder.add(emit.builder.mul(k, emit.index(WIDTH)), emit.index(first))
        exponent = emit.splat(emit.scalar(a, emit.builder.add(at, k)), lanes)
        largest.set(largest.get().maximum(exponent + emit.load(b, row, lanes)))
    return largest.get().widen(I32)


def _with_accumulator(emit: Emitter, largest: Lanes, held: Lanes, zero_exponent: Any, min_exponent: Any, shift: Any) -> Lanes:
    """E: the products' largest exponent and the accumulator's, which is e_zero where it is zero."""
    lanes = held.count
    field = (held.bits() & 0x7FFFFFFF) >> 23
    floor = emit.splat(emit.builder.add(emit.narrow_index(min_exponent), ir.Constant(I32, 127)), lanes)
    exponent = field.maximum(floor) - emit.splat(emit.builder.add(emit.narrow_index(shift), ir.Constant(I32, 127)), lanes)
    zero = emit.splat(emit.narrow_index(zero_exponent), lanes)
    exponent = (held.bits() & 0x7FFFFFFF).equals(0).choose(zero, exponent)
    return exponent.maximum(largest).maximum(zero)


def _signed_sums(emit: Emitter, window: Lanes, held: Lanes, a: Any, sides: Any, at: Any, b: Any, first: int, count: Any) -> Lanes:
    """The exact sum of the truncated terms: window + positive ones, less window + negative ones.

    The window lies in [1.5, 2) * 2^(E - F + p - 1), so window + |a| * |b| keeps exactly the multiples of 2^(E - F).
    `sides[k]` is where the part of B with a[k]'s sign lies, the other part WIDTH away.
    """
    lanes, builder = held.count, emit.builder
    zero = emit.constant(held.element, 0.0, lanes)
    vector = 8 if held.element is F32 else 4
    starts = (window + held.maximum(zero), window + (-held).maximum(zero))
    parts = [emit.cells(_split(start, vector)) for start in starts]
    with emit.loop(count) as k:
        factor = emit.splat(emit.scalar(a, builder.add(at, k)), vector)
        side = builder.sext(emit.scalar(sides, builder.add(at, k)), I64)
        for cells, base in zip(parts, (side, builder.xor(side, emit.index(WIDTH))), strict=True):
            for i, cell in enumerate(cells):
                place = builder.add(base, emit.index(first + i * vector))
                cell.set(factor.fma(emit.load(b, place, vector), cell.get()))
    positive, negative = (_join([cell.get() for cell in cells]) for cells in parts)
    return (positive - window) - (negative - window)


def _split(lanes: Lanes, size: int) -> list[Lanes]:
    builder = lanes.builder
    undefined = ir.Constant(lanes.value.type, ir.Undefined)
    picks = (ir.Constant(ir.VectorType(I32, size), list(range(i, i + size))) for i in range(0, lanes.count, size))
    return [Lanes(builder, builder.shuffle_vector(lanes.value, undefined, pick)) for pick in picks]


def _join(parts: list[Lanes]) -> Lanes:
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [
            Lanes(
                left.builder,
                left.builder.shuffle_vector(
                    left.value, right.value, ir.Constant(ir.VectorType(I32, 2 * left.count), list(range(2 * left.count)))
                ),
            )
            for left, right in pairs
        ]
    return parts[0]


def _truncated(emit: Emitter, exact: Lanes, cut: Any) -> Lanes:
    """Exact sums toward zero to float32 codes, low `cut` bits zero; too large is infinity; a zero is +0."""
    bits = exact.to_float32().bits() if exact.element is F64 else exact.bits()
    if exact.element is F64:
        infinity = (bits & -(1 << 31)) | 0x7F800000
        bits = (exact.magnitude() >= 2.0**128).choose(infinity, bits)
    keep = emit.builder.shl(ir.Constant(I32, -1), emit.narrow_index(cut))
    bits = bits & emit.splat(keep, exact.count)
    return (bits & 0x7FFFFFFF).equals(0).choose(0, bits)


def _nearest(emit: Emitter, exact: Lanes, fraction_bits: Any, min_exponent: Any, max_exponent: Any) -> Lanes:
    """Exact sums to nearest even in the result format, as float32 codes; too large is infinity; a zero is +0."""
    builder, lanes = emit.builder, exact.count
    exact = exact if exact.element is F64 else exact.widen(F64)
    field = (exact.magnitude().bits() >> 52) - 1023
    floor = emit.splat(min_exponent, lanes)
    ulp = (field > floor).choose(field, floor) - emit.splat(fraction_bits, lanes)
    units = exact.magnitude() * ((-(ulp - 1023)) << 52).floats()
    whole = (units + 2.0**52) - 2.0**52
    half = whole * 0.5
    odd = whole - ((half + 2.0**52) - 2.0**52) * 2.0
    rest = units - whole
    up = (rest > 0.5) | (rest.equals(0.5) & odd.equals(1.0))
    rounded = up.choose(whole + 1.0, whole) * ((ulp + 1023) << 52).floats()
    limit = emit.splat(builder.shl(builder.add(max_exponent, emit.index(1024)), emit.index(52)), lanes).floats()
    rounded = (rounded >= limit).choose(float("inf"), rounded).with_sign_of(exact)
    bits = rounded.to_float32().bits()
    return (bits & 0x7FFFFFFF).equals(0).choose(0, bits)


def _round_and_store(emit: Emitter, exact: Lanes, result: Any, chain: Any, cell: Any) -> Any:
    """Round as the result row says and store; whether a result is not finite (an i1)."""
    mode, fraction_bits, min_exponent, max_exponent, cut = result
    builder = emit.builder
    (rounded,) = emit.cells([emit.constant(I32, 0, exact.count)])
    with builder.if_else(builder.icmp_signed("==", mode, emit.index(0))) as (toward_zero, nearest):
        with toward_zero:
            rounded.set(_truncated(emit, exact, cut))
        with nearest:
            rounded.set(_nearest(emit, exact, fraction_bits, min_exponent, max_exponent))
    emit.store(rounded.get().floats(), chain, cell)
    return ((rounded.get() & 0x7FFFFFFF) >= 0x7F800000).any()


def _decoded(emit: Emitter, codes: Any, at: Any, form: Any) -> tuple[Lanes, Lanes, Lanes, Any]:
    """WIDTH codes: magnitudes (float32), exponents (int16), sign bits (int32), and whether one is not finite (an i1).

    A code's exponent and fraction, put where a float32 has them, times 2^(127 - bias) is its magnitude, subnormals
    included. What is not finite becomes a zero here.
    """
    fraction_bits, bias, low_bits, sign_shift, lowest_nonfinite, _, min_exponent = (emit.narrow_index(number) for number in form)
    builder = emit.builder

    def everywhere(number: Any) -> Lanes:
        return emit.splat(number, WIDTH)

    code = emit.load(codes, at, WIDTH).unsigned(I32)
    sign = (code >> everywhere(sign_shift)) & 1
    fields = builder.sub(builder.shl(ir.Constant(I32, 1), sign_shift), ir.Constant(I32, 1))
    field = (code & everywhere(fields)) >> everywhere(low_bits)
    not_finite = field >= everywhere(lowest_nonfinite)
    field = not_finite.choose(0, field)
    up = builder.sub(ir.Constant(I32, 23), fraction_bits)
    rescale = builder.shl(builder.sub(ir.Constant(I32, 254), bias), ir.Constant(I32, 23))
    magnitude = (field << everywhere(up)).floats() * everywhere(rescale).floats()
    exponent = ((magnitude.bits() >> 23) - 127).maximum(everywhere(min_exponent))
    exponent = field.equals(0).choose(NO_EXPONENT, exponent)
    return magnitude, exponent.narrow(I16), sign, not_finite.any()


@intrinsic
def decode_columns(_context: Any, codes: Any, at: Any, form: Any, planes: Any, plane: Any, exponents: Any, cell: Any) -> Any:
    """WIDTH codes of a row of B: positive parts to planes[plane:], negative ones WIDTH further, exponents; whether all are finite."""
    signature = types.boolean(codes, _index, form, planes, _index, exponents, _index)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        codes_, planes_, exponents_ = (emit.data(kind, arguments[i]) for kind, i in ((codes, 0), (planes, 3), (exponents, 5)))
        magnitude, exponent, sign, not_finite = _decoded(emit, codes_, arguments[1], cgutils.unpack_tuple(builder, arguments[2], len(form)))
        emit.store(exponent, exponents_, arguments[6])
        if planes.dtype == types.float64:
            magnitude = magnitude.widen(F64)
        zero = emit.constant(magnitude.element, 0.0, WIDTH)
        positive = sign.equals(0)
        emit.store(positive.choose(magnitude, zero), planes_, arguments[4])
        emit.store(positive.choose(zero, magnitude), planes_, builder.add(arguments[4], emit.index(WIDTH)))
        return builder.not_(not_finite)

    return signature, codegen


@intrinsic
def decode_elements(
    _context: Any,
    codes: Any,
    at: Any,
    form: Any,
    negate: Any,
    places: Any,
    place: Any,
    magnitudes: Any,
    exponents: Any,
    sides: Any,
    cell: Any,
) -> Any:
    """WIDTH codes of a row of A: magnitudes, exponents, and sides = places[place:], WIDTH more where negative; whether all are finite."""
    signature = types.boolean(codes, _index, form, _index, places, _index, magnitudes, exponents, sides, _index)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        arrays = {0: codes, 4: places, 6: magnitudes, 7: exponents, 8: sides}
        data = {i: emit.data(kind, arguments[i]) for i, kind in arrays.items()}
        magnitude, exponent, sign, not_finite = _decoded(
            emit, data[0], arguments[1], cgutils.unpack_tuple(builder, arguments[2], len(form))
        )
        flip = emit.splat(emit.narrow_index(arguments[3]), WIDTH)
        side = emit.load(data[4], arguments[5], WIDTH) + ((sign + flip) & 1) * WIDTH
        emit.store(magnitude.widen(F64) if magnitudes.dtype == types.float64 else magnitude, data[6], arguments[9])
        emit.store(exponent, data[7], arguments[9])
        emit.store(side, data[8], arguments[9])
        return builder.not_(not_finite)

    return signature, codegen


@intrinsic
def fused_step(
    _context: Any, chain: Any, cell: Any, a: Any, a_exponents: Any, sides: Any, at: Any, b: Any, b_exponents: Any, count: Any,
    fraction_bits: Any, zero_exponent: Any, shift: Any, unshift: Any, mode: Any, result_fraction_bits: Any, min_exponent: Any,
    max_exponent: Any, cut: Any,
) -> Any:  # fmt: skip
    """Section 2: chain[cell + j] = round(sum of a[at + k] * b[k, j], truncated at E - F, and chain[cell + j]).

    The carrier is the type of `a` and `b`; returns DONE, NOT_FINITE or TOO_WIDE.
    """
    signature = types.int64(
        chain, _index, a, a_exponents, sides, _index, b, b_exponents, _index, _index, _index, _index, types.float64, *[_index] * 5
    )

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        place, at_, count_, fraction, zero, shift_, unshift_ = (arguments[i] for i in (1, 5, 8, 9, 10, 11, 12))
        result = arguments[13:18]
        chain_, a_, a_exponents_, sides_, b_, b_exponents_ = (
            emit.data(kind, arguments[i]) for kind, i in ((chain, 0), (a, 2), (a_exponents, 3), (sides, 4), (b, 6), (b_exponents, 7))
        )
        operands = (a_, sides_, at_, b_)
        if a.dtype == types.float32:
            return _narrow_step(emit, chain_, place, operands, (a_exponents_, b_exponents_), count_, fraction, zero, result)
        flags = []
        for first in range(0, WIDTH, 16):
            cell_ = builder.add(place, emit.index(first))
            held = emit.load(chain_, cell_, 16)
            largest = _largest_exponents(emit, a_exponents_, at_, b_exponents_, first, count_, 16)
            exponent = _with_accumulator(emit, largest, held, zero, result[2], shift_).widen(I64)
            window = ((exponent + emit.splat(builder.sub(emit.index(1023 + 52), fraction), 16)) << 52) | (1 << 51)
            wide = held.widen(F64) * emit.splat(unshift_, 16)
            exact = _signed_sums(emit, window.floats(), wide, *operands, first, count_)
            flags.append(_round_and_store(emit, exact, result, chain_, cell_))
        return builder.zext(builder.or_(*flags), I64)

    return signature, codegen


def _narrow_step(
    emit: Emitter, chain: Any, cell: Any, operands: Any, exponents: Any, count: Any, fraction: Any, zero: Any, result: Any
) -> Any:
    """fused_step with a float32 carrier."""
    builder = emit.builder
    held = emit.load(chain, cell, WIDTH)
    a_exponents, b_exponents = exponents
    largest = _largest_exponents(emit, a_exponents, operands[2], b_exponents, 0, count, WIDTH)
    exponent = _with_accumulator(emit, largest, held, zero, result[2], emit.index(0))
    shift = emit.splat(builder.sub(ir.Constant(I32, 127 + 23), emit.narrow_index(fraction)), WIDTH)
    window = ((exponent + shift) << 23) | (1 << 22)
    report = cgutils.alloca_once(builder, I64)
    with builder.if_else((exponent > CARRIER_LIMIT).any()) as (too_wide, fits):
        with too_wide:
            builder.store(emit.index(TOO_WIDE), report)
        with fits:
            exact = _signed_sums(emit, window.floats(), held, *operands, 0, count)
            builder.store(builder.zext(_round_and_store(emit, exact, result, chain, cell), I64), report)
    return builder.load(report)


@intrinsic
def grouped_step(_context: Any, chain: Any, cells: Any, ats: Any, group_ats: Any, a: Any, a_factors: Any, a_powers: Any, a_masks: Any,
                 a_bounds: Any, bound_ats: Any, b: Any, b_factors: Any, b_powers: Any, b_masks: Any, b_bounds: Any, group: Any, groups: Any,
                 powers: Any, mode: Any, result_fraction_bits: Any, min_exponent: Any, max_exponent: Any, cut: Any) -> Any:  # fmt: skip
    """Section 4, for two rows of A: chain[cells[r] + j] = round(scaled sums of the groups, truncated at E - F, and the accumulator).

    `powers` of A and B are 2^exponent of the scales (0 for a zero scale), `masks` say which elements of a group are not
    zero, `bounds` are the largest and the smallest nonzero power of a step. The last argument before the result's numbers
    is (2^(52 - F), 2^e_zero, 2^min_exponent, 2^-F / unit, 2^(F - 23)), `unit` the last place a scaled sum can have: |v| + M - M
    with M = 2^(E - F + 52) keeps the multiples of 2^(E - F), since |v| < 2^(E + 14) < M. Where no term has bits to lose,
    plain sums do. Returns a flag a row: DONE or NOT_FINITE.
    """
    pair = types.UniTuple(_index, 2)
    signature = types.UniTuple(types.int64, 2)(
        chain, pair, pair, pair, a, a_factors, a_powers, a_masks, a_bounds, pair, b, b_factors, b_powers, b_masks, b_bounds, _index, _index,
        types.UniTuple(types.float64, 5), *[_index] * 5,
    )  # fmt: skip

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        arrays = {
            0: chain,
            4: a,
            5: a_factors,
            6: a_powers,
            7: a_masks,
            8: a_bounds,
            10: b,
            11: b_factors,
            12: b_powers,
            13: b_masks,
            14: b_bounds,
        }
        data = {i: emit.data(kind, arguments[i]) for i, kind in arrays.items()}
        places, starts, group_starts, bound_starts = (cgutils.unpack_tuple(builder, arguments[i], 2) for i in (1, 2, 3, 9))
        size, number = arguments[15], arguments[16]
        powers_ = cgutils.unpack_tuple(builder, arguments[17], 5)
        result = arguments[18:23]
        flags: list[Any] = [None, None]
        for first in range(0, WIDTH, 16):
            held = [emit.load(data[0], builder.add(place, emit.index(first)), 16).widen(F64) for place in places]
            fits = builder.and_(
                *(
                    _loses_nothing(emit, row, first, start, data[8], data[14], powers_)
                    for row, start in zip(held, bound_starts, strict=True)
                )
            )
            windows = emit.cells([emit.constant(F64, 0.0, 16)] * 2)
            exact = emit.cells(held)
            with builder.if_then(builder.not_(fits), likely=False):
                for row in range(2):
                    tables = (data[6], data[7], data[12], data[13])
                    top = _largest_power(emit, held[row], first, group_starts[row], number, tables, powers_)
                    windows[row].set(top * emit.splat(powers_[0], 16))
                    exact[row].set(_cut(held[row], windows[row].get()))
            with emit.loop(builder.sdiv(number, emit.index(GROUPS_AT_ONCE))) as run:
                number_first = builder.mul(run, emit.index(GROUPS_AT_ONCE))
                terms = _group_terms(emit, first, number_first, size, starts, group_starts, (data[4], data[10]), (data[5], data[11]))
                with builder.if_else(fits, likely=True) as (plain, truncating):
                    with plain:
                        for row in range(2):
                            for term in terms[row]:
                                exact[row].set(exact[row].get() + term)
                    with truncating:
                        for row in range(2):
                            for term in terms[row]:
                                exact[row].set(exact[row].get() + _cut(term, windows[row].get()))
            for row in range(2):
                flag = _round_and_store(emit, exact[row].get(), result, data[0], builder.add(places[row], emit.index(first)))
                flags[row] = flag if flags[row] is None else builder.or_(flags[row], flag)
        return context.make_tuple(builder, signature.return_type, [builder.zext(flag, I64) for flag in flags])

    return signature, codegen


def _cut(value: Lanes, window: Lanes) -> Lanes:
    """A term truncated toward zero to the window's last place."""
    return ((value.magnitude() + window) - window).with_sign_of(value)


def _power_of(held: Lanes) -> Lanes:
    """The power of two of each accumulator, 0 for zero."""
    return (held.bits() & (0x7FF << 52)).floats()


def _loses_nothing(emit: Emitter, held: Lanes, first: int, bound_at: Any, a_bounds: Any, b_bounds: Any, powers: Any) -> Any:
    """Whether no term of the step has bits below 2^(E - F), judged by a bound on E: an i1 for all lanes."""
    builder, lanes = emit.builder, held.count
    largest, smallest = (emit.splat(emit.scalar(a_bounds, builder.add(bound_at, emit.index(i))), lanes) for i in range(2))
    largest = largest * emit.load(b_bounds, emit.index(first), lanes)
    smallest = smallest * emit.load(b_bounds, emit.index(WIDTH + first), lanes)
    _, zero_power, _, last_place, above_accumulator = (emit.splat(power, lanes) for power in powers)
    power = _power_of(held)
    top = largest.maximum(power).maximum(zero_power)
    keeps_groups = smallest >= top * last_place
    keeps_held = held.equals(0.0) | (power * above_accumulator >= top)
    return (keeps_groups & keeps_held).all()


def _largest_power(emit: Emitter, held: Lanes, first: int, group_at: Any, groups: Any, tables: Any, powers: Any) -> Lanes:
    """2^E: the largest of the accumulator's power of two and of those groups that have a nonzero product."""
    builder, lanes = emit.builder, held.count
    a_powers, a_masks, b_powers, b_masks = tables
    power = _power_of(held).maximum(emit.splat(powers[2], lanes))
    (top,) = emit.cells([held.equals(0.0).choose(emit.splat(powers[1], lanes), power)])
    with emit.loop(groups) as group:
        mine = builder.add(group_at, group)
        others = builder.add(builder.mul(group, emit.index(WIDTH)), emit.index(first))
        candidate = emit.splat(emit.scalar(a_powers, mine), lanes) * emit.load(b_powers, others, lanes)
        common = emit.splat(emit.scalar(a_masks, mine), lanes) & emit.load(b_masks, others, lanes)
        top.set(top.get().maximum(common.equals(0).choose(0.0, candidate)))
    return top.get()


def _group_terms(
    emit: Emitter, first: int, number: Any, size: Any, starts: Any, group_starts: Any, values: Any, factors: Any
) -> list[list[Lanes]]:
    """For each of two rows, the exact scaled sums of GROUPS_AT_ONCE groups from group `number` on, 16 columns each."""
    builder = emit.builder
    elements = [builder.mul(builder.add(number, emit.index(i)), size) for i in range(GROUPS_AT_ONCE)]
    parts = [[emit.cells([emit.constant(F32, 0.0, 8)] * 2) for _ in elements] for _ in starts]
    with emit.loop(size) as k:
        for i, start_element in enumerate(elements):
            element = builder.add(start_element, k)
            row = builder.add(builder.mul(element, emit.index(WIDTH)), emit.index(first))
            others = [emit.load(values[1], builder.add(row, emit.index(8 * j)), 8) for j in range(2)]
            for start, cells in zip(starts, parts, strict=True):
                factor = emit.splat(emit.scalar(values[0], builder.add(start, element)), 8)
                for cell, other in zip(cells[i], others, strict=True):
                    cell.set(factor.fma(other, cell.get()))
    terms: list[list[Lanes]] = []
    for start, cells in zip(group_starts, parts, strict=True):
        terms.append([])
        for i, pair in enumerate(cells):
            group = builder.add(number, emit.index(i))
            mine = emit.splat(emit.scalar(factors[0], builder.add(start, group)), 16)
            others_factor = emit.load(factors[1], builder.add(builder.mul(group, emit.index(WIDTH)), emit.index(first)), 16)
            terms[-1].append(_join([cell.get() for cell in pair]).widen(F64) * (mine * others_factor))
    return terms


@intrinsic
def dot_step(_context: Any, sums: Any, cell: Any, a: Any, at: Any, b: Any, count: Any) -> Any:
    """sums[cell + j] = a[at + k] * b[k, j] + sums[cell + j], k ascending: fused multiply-adds, or integers that wrap."""
    signature = types.none(sums, _index, a, _index, b, _index)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        sums_, a_, b_ = (emit.data(kind, arguments[i]) for kind, i in ((sums, 0), (a, 2), (b, 4)))
        vector = 4 if b.dtype == types.float64 else 8
        places = [builder.add(arguments[1], emit.index(i)) for i in range(0, WIDTH, vector)]
        cells = emit.cells([emit.load(sums_, place, vector) for place in places])
        with emit.loop(arguments[5]) as k:
            factor = emit.splat(emit.scalar(a_, builder.add(arguments[3], k)), vector)
            row = builder.mul(k, emit.index(WIDTH))
            for i, cell_ in enumerate(cells):
                other = emit.load(b_, builder.add(row, emit.index(i * vector)), vector)
                cell_.set(factor.fma(other, cell_.get()) if factor.is_float else factor * other + cell_.get())
        for place, cell_ in zip(places, cells, strict=True):
            emit.store(cell_.get(), sums_, place)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def nearest_add(_context: Any, total: Any, chain: Any, cell: Any, fraction_bits: Any, min_exponent: Any, max_exponent: Any) -> Any:
    """total[cell + j] += chain[cell + j], to nearest even in a format whose sums float64 holds exactly; IEEE specials."""
    signature = types.none(total, chain, _index, *[_index] * 3)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        total_, chain_ = emit.data(total, arguments[0]), emit.data(chain, arguments[1])
        for first in range(0, WIDTH, 16):
            place = builder.add(arguments[2], emit.index(first))
            exact = emit.load(total_, place, 16).widen(F64) + emit.load(chain_, place, 16).widen(F64)
            rounded = _nearest(emit, exact, *arguments[3:6]).floats()
            ordinary = exact.magnitude() < float("inf")
            emit.store(ordinary.choose(rounded, exact.to_float32()), total_, place)
        return context.get_dummy_value()

    return signature, codegen
