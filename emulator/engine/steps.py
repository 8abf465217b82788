"""One step of a datapath for one row of A against WIDTH columns of B: the engine's innermost code.

Written with lanes (lanes.py), so it reads like the arithmetic and leaves vector instructions. All of it runs with the
thread rounding toward zero. Legends: E largest exponent of a step's terms, F fraction bits kept below it, p significand
bits of the carrier (24 for float32, 53 for float64).
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from mmabits.emulator.engine.jit import intrinsic
from mmabits.emulator.engine.lanes import F32, F64, I8, I16, I32, I64, Emitter, Lanes, LoopVariable
from mmabits.emulator.engine.plan import GROUPS_AT_ONCE, NO_EXPONENT
from mmabits.emulator.engine.tasks import ITEMS, SIDE, WIDTH
from mmabits.emulator.engine.width import lanes as width

DONE, TOO_WIDE = 0, 1
"""What a step reports: done, or nothing done, since a float32 carrier would overflow."""
OFFSET = 128
"""Added to bytes of A, so that they have no sign."""
_LARGEST = 0x7F7FFFFF
"""The largest finite float32."""
CARRIER_LIMIT = 100
"""Exponents up to which a float32 carrier holds the window and every sum."""
_index = types.intp
assert SIDE == 8 and WIDTH % 16 == 0, "scaled groups are summed for 16 columns at a time, in two vectors that belong to one item each"


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
        (found,) = emit.cells([bits])
        with emit.builder.if_then((bits & 0x7FFFFFFF).equals(_LARGEST).any(), likely=False):  # what is too large comes to that too
            infinity = (bits & -(1 << 31)) | 0x7F800000
            found.set((exact.magnitude() >= 2.0**128).choose(infinity, bits))
        bits = found.get()
    keep = emit.builder.shl(ir.Constant(I32, -1), emit.narrow_index(cut))
    bits = bits & emit.splat(keep, exact.count)
    return (bits & 0x7FFFFFFF).equals(0).choose(0, bits)


def _nearest(emit: Emitter, exact: Lanes, result: Any) -> Lanes:
    """Exact sums to nearest even in the result format, as float32 codes; too large is infinity; a zero is +0."""
    builder, lanes = emit.builder, exact.count
    exact = exact if exact.element is F64 else exact.widen(F64)
    field = (exact.magnitude().bits() >> 52) - 1023
    floor = emit.splat(result.min_exponent, lanes)
    ulp = (field > floor).choose(field, floor) - emit.splat(result.fraction_bits, lanes)
    units = exact.magnitude() * ((-(ulp - 1023)) << 52).floats()
    whole = (units + 2.0**52) - 2.0**52
    half = whole * 0.5
    odd = whole - ((half + 2.0**52) - 2.0**52) * 2.0
    rest = units - whole
    up = (rest > 0.5) | (rest.equals(0.5) & odd.equals(1.0))
    rounded = up.choose(whole + 1.0, whole) * ((ulp + 1023) << 52).floats()
    limit = emit.splat(builder.shl(builder.add(result.max_exponent, emit.index(1024)), emit.index(52)), lanes).floats()
    rounded = (rounded >= limit).choose(float("inf"), rounded).with_sign_of(exact)
    bits = rounded.to_float32().bits()
    return (bits & 0x7FFFFFFF).equals(0).choose(0, bits)


def _round_and_store(emit: Emitter, exact: Lanes, held: Lanes, result: Any, chain: Any, cell: Any) -> None:
    """Round as the result row says and store; where the accumulator was infinite or NaN, it stays."""
    builder = emit.builder
    (rounded,) = emit.cells([emit.constant(I32, 0, exact.count)])
    with builder.if_else(builder.icmp_signed("==", result.mode, emit.index(0))) as (toward_zero, nearest):
        with toward_zero:
            rounded.set(_truncated(emit, exact, result.cut))
        with nearest:
            rounded.set(_nearest(emit, exact, result))
    emit.store(_not_finite(held).choose(held.bits(), rounded.get()).floats(), chain, cell)


def _not_finite(held: Lanes) -> Lanes:
    """Which float32 lanes are infinite or NaN."""
    return (held.bits() & 0x7FFFFFFF) >= 0x7F800000


def _finite_part(held: Lanes) -> Lanes:
    """Float32 lanes with zeros for what is not finite: an infinity or NaN takes no part in the sums."""
    return _not_finite(held).choose(0, held.bits()).floats()


def _decoded(emit: Emitter, codes: Any, starts: list[Any], form: Any) -> tuple[Lanes, Lanes, Lanes, Any]:
    """WIDTH codes, as many from each start: magnitudes (float32), exponents (int16), signs (int32), and whether one is not finite (an i1).

    What is not finite becomes a zero here.
    """
    builder = emit.builder
    form = SimpleNamespace(**{name: emit.narrow_index(number) for name, number in vars(form).items()})

    def everywhere(number: Any) -> Lanes:
        return emit.splat(number, WIDTH)

    code = _join([emit.load(codes, start, WIDTH // len(starts)) for start in starts]).unsigned(I32)
    sign = (code >> everywhere(form.sign_shift)) & 1
    fields = builder.sub(builder.shl(ir.Constant(I32, 1), form.sign_shift), ir.Constant(I32, 1))
    field = (code & everywhere(fields)) >> everywhere(form.low_bits)
    not_finite = field >= everywhere(form.lowest_nonfinite)
    field = not_finite.choose(0, field)
    magnitude = _magnitude(emit, field, form.fraction_bits, form.bias)
    exponent = ((magnitude.bits() >> 23) - 127).maximum(everywhere(form.min_exponent))
    exponent = field.equals(0).choose(NO_EXPONENT, exponent)
    return magnitude, exponent.narrow(I16), sign, not_finite.any()


def _magnitude(emit: Emitter, field: Lanes, fraction_bits: Any, bias: Any) -> Lanes:
    """Codes' exponents and fractions (int32, no infinity or NaN) as float32; fraction bits and bias are int32 too.

    Put where a float32 has them, with 127 - bias more in the exponent, they are the magnitude. A subnormal is the fraction of the number
    whose exponent is one more, less that number: nothing is ever subnormal in float32 that is not in the format, since processors take
    hundreds of cycles for such a number.
    """
    builder, one = emit.builder, ir.Constant(I32, 1)

    def everywhere(number: Any) -> Lanes:
        return emit.splat(number, field.count)

    def power(more: int) -> Lanes:
        return everywhere(builder.shl(builder.sub(ir.Constant(I32, 127 + more), bias), ir.Constant(I32, 23)))

    moved = field << everywhere(builder.sub(ir.Constant(I32, 23), fraction_bits))
    subnormal = (moved + power(1)).floats() - power(1).floats()
    return (field < everywhere(builder.shl(one, fraction_bits))).choose(subnormal, (moved + power(0)).floats())


@intrinsic
def decode_columns(_context: Any, codes: Any, starts: Any, form: Any, right: Any, k: Any) -> Any:
    """WIDTH codes, as many from each of the `starts`, to row k of `right` (fused.Columns); whether all are finite."""
    signature = types.boolean(codes, types.UniTuple(_index, len(starts)), form, right, _index)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        columns = emit.fields(right, arguments[3])
        magnitude, exponent, sign, not_finite = _decoded(
            emit, emit.data(codes, arguments[0]), cgutils.unpack_tuple(builder, arguments[1]), emit.fields(form, arguments[2])
        )
        row = builder.mul(arguments[4], emit.index(WIDTH))
        emit.store(exponent, columns.exponents, row)
        if columns.planes.type.pointee == F64:
            magnitude = magnitude.widen(F64)
        zero = emit.constant(magnitude.element, 0.0, WIDTH)
        positive = sign.equals(0)
        plane = builder.mul(row, emit.index(2))
        emit.store(positive.choose(magnitude, zero), columns.planes, plane)
        emit.store(positive.choose(zero, magnitude), columns.planes, builder.add(plane, emit.index(WIDTH)))
        return builder.not_(not_finite)

    return signature, codegen


@intrinsic
def decode_elements(_context: Any, codes: Any, at: Any, form: Any, negate: Any, left: Any, place: Any, cell: Any) -> Any:
    """WIDTH codes of a row of A to `left` (fused.Rows) from `cell` on, which is element `place` of its panel; whether all are finite."""
    signature = types.boolean(codes, _index, form, _index, left, _index, _index)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        rows, cell_ = emit.fields(left, arguments[4]), arguments[6]
        magnitude, exponent, sign, not_finite = _decoded(
            emit, emit.data(codes, arguments[0]), [arguments[1]], emit.fields(form, arguments[2])
        )
        flip = emit.splat(emit.narrow_index(arguments[3]), WIDTH)
        side = emit.load(rows.places, arguments[5], WIDTH) + ((sign + flip) & 1) * WIDTH
        emit.store(magnitude.widen(F64) if rows.magnitudes.type.pointee == F64 else magnitude, rows.magnitudes, cell_)
        emit.store(exponent, rows.exponents, cell_)
        emit.store(side, rows.sides, cell_)
        return builder.not_(not_finite)

    return signature, codegen


def _signed(magnitude: Lanes, sign: Lanes) -> Lanes:
    """Float32 magnitudes with sign bits from the lowest bit of each lane."""
    return (magnitude.bits() | (sign << 31)).floats()


def _as_bytes(emit: Emitter, codes: Any, starts: list[Any], form: Any, negate: Any) -> Lanes:
    """WIDTH codes, as many from each start, as multiples of the smallest number of their format, in bytes. Codes have at most 8 bits."""
    form = SimpleNamespace(**{name: emit.splat(emit.builder.trunc(number, I16), WIDTH) for name, number in vars(form).items()})
    code = _join([emit.load(codes, start, WIDTH // len(starts)) for start in starts]).unsigned(I16)
    one = emit.constant(I16, 1, WIDTH)
    field = (code >> form.low_bits) & ((one << (form.sign_shift - form.low_bits)) - 1)
    hidden = one << form.fraction_bits
    exponent, fraction = field >> form.fraction_bits, field & (hidden - 1)
    significand = exponent.equals(0).choose(fraction, fraction | hidden)
    magnitude = significand << (exponent.maximum(1) - 1)
    sign = ((code >> form.sign_shift) ^ emit.splat(emit.builder.trunc(negate, I16), WIDTH)) & 1
    signed: Lanes = ((magnitude ^ -sign) + sign).narrow(I8)
    return signed


@intrinsic
def finish_group_columns(_context: Any, right: Any, step: Any, group: Any) -> Any:
    """Of bytes: the four of a column together, masks, and what the offset of A adds to each group's sums. Of float32 nothing."""
    signature = types.none(right, _index, _index)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        columns = emit.fields(right, arguments[0])
        if columns.values.type.pointee != I8:
            return context.get_dummy_value()
        with emit.loop(builder.sdiv(arguments[1], arguments[2])) as number:
            start = builder.mul(number, arguments[2])
            sums, masks = emit.cells([emit.constant(I32, 0, WIDTH)] * 2)
            with emit.loop(builder.sdiv(arguments[2], emit.index(4))) as run:
                first = builder.add(start, builder.mul(run, emit.index(4)))
                places = [builder.mul(builder.add(first, emit.index(i)), emit.index(WIDTH)) for i in range(4)]
                rows = [emit.load(columns.raw, place, WIDTH) for place in places]
                halves = [row.unsigned(I16) for row in rows]
                together = (halves[0] | (halves[1] << 8)).interleaved(halves[2] | (halves[3] << 8))
                emit.store(together.as_bytes(), columns.values, places[0])
                for i, row in enumerate(rows):
                    sums.set(sums.get() + row.widen(I32))
                    place = builder.add(builder.mul(run, emit.index(4)), emit.index(i))
                    bit = builder.shl(ir.Constant(I32, 1), emit.narrow_index(place))
                    masks.set(row.equals(0).choose(masks.get(), masks.get() | emit.splat(bit, WIDTH)))
            emit.store(sums.get() * -OFFSET, columns.offsets, builder.mul(number, emit.index(WIDTH)))
            emit.store(masks.get().unsigned(I64), columns.masks, builder.mul(number, emit.index(WIDTH)))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def bound_group_columns(_context: Any, right: Any, groups: Any) -> Any:
    """right.bounds and right.bad of the scales of a step; whether one is NaN."""
    signature = types.boolean(right, _index)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        columns = emit.fields(right, arguments[0])
        largest, smallest = emit.cells([emit.constant(I32, NO_EXPONENT, WIDTH), emit.constant(I32, -NO_EXPONENT, WIDTH)])
        (bad,) = emit.cells([emit.constant(I8, 0, WIDTH)])
        with emit.loop(arguments[1]) as group:
            place = builder.mul(group, emit.index(WIDTH))
            exponent, factor = emit.load(columns.exponents, place, WIDTH).widen(I32), emit.load(columns.factors, place, WIDTH)
            largest.set(largest.get().maximum(exponent))
            smallest.set(smallest.get().minimum(exponent.equals(NO_EXPONENT).choose(-NO_EXPONENT, exponent)))
            bad.set(factor.unordered(factor).choose(1, bad.get()))
        emit.store(largest.get(), columns.bounds, emit.index(0))
        emit.store(smallest.get(), columns.bounds, emit.index(WIDTH))
        emit.store(bad.get(), columns.bad, emit.index(0))
        return bad.get().equals(0).complement().any()

    return signature, codegen


@intrinsic
def decode_group_elements(_context: Any, codes: Any, at: Any, form: Any, negate: Any, values: Any, cell: Any) -> Any:
    """WIDTH codes of a row of A to values[cell:]; which of them are not zero, a bit each."""
    signature = types.int64(codes, _index, form, _index, values, _index)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        form_, source, target = emit.fields(form, arguments[2]), emit.data(codes, arguments[0]), emit.data(values, arguments[4])
        if target.type.pointee == I8:
            value = _as_bytes(emit, source, [arguments[1]], form_, arguments[3])
            emit.store(value ^ emit.constant(I8, -OFFSET, WIDTH), target, arguments[5])
            return builder.zext(builder.bitcast(value.equals(0).complement().value, I32), I64)
        magnitude, _, sign, _ = _decoded(emit, source, [arguments[1]], form_)
        emit.store(_signed(magnitude, sign + emit.splat(emit.narrow_index(arguments[3]), WIDTH)), target, arguments[5])
        return builder.zext((magnitude > 0.0).as_bits(), I64)

    return signature, codegen


@intrinsic
def decode_group_columns(_context: Any, codes: Any, starts: Any, form: Any, right: Any, k: Any, group: Any, place: Any) -> Any:
    """WIDTH codes, as many from each of the `starts`, to row k of `right` (grouped.GroupColumns), element `place` of its group."""
    signature = types.none(codes, types.UniTuple(_index, len(starts)), form, right, _index, _index, _index)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        columns = emit.fields(right, arguments[3])
        form_, row = emit.fields(form, arguments[2]), builder.mul(arguments[4], emit.index(WIDTH))
        source, places = emit.data(codes, arguments[0]), cgutils.unpack_tuple(builder, arguments[1])
        if columns.values.type.pointee == I8:
            emit.store(_as_bytes(emit, source, places, form_, emit.index(0)), columns.raw, row)
            return context.get_dummy_value()
        magnitude, _, sign, _ = _decoded(emit, source, places, form_)
        emit.store(_signed(magnitude, sign), columns.values, row)
        masks = builder.mul(arguments[5], emit.index(WIDTH))
        bit = (magnitude > 0.0).unsigned(I64) << emit.splat(arguments[6], WIDTH)
        emit.store(emit.load(columns.masks, masks, WIDTH) | bit, columns.masks, masks)
        return context.get_dummy_value()

    return signature, codegen


def _fused_step(items: int) -> Any:
    """The step for a row of A, or for ITEMS rows side by side, each against its SIDE columns."""

    def step_of_rows(_context: Any, chain: Any, cell: Any, left: Any, at: Any, right: Any, numbers: Any, result: Any) -> Any:
        signature = types.int64(chain, _index, left, _index, right, numbers, result)

        def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            emit = Emitter(context, builder)
            work = _FusedStep(
                emit, emit.data(chain, arguments[0]), arguments[1], emit.fields(left, arguments[2]), arguments[3],
                emit.fields(right, arguments[4]), emit.fields(numbers, arguments[5]), emit.fields(result, arguments[6]), items,
            )  # fmt: skip
            return work.narrow() if work.right.planes.type.pointee == F32 else work.wide()

        return signature, codegen

    return intrinsic(step_of_rows)


fused_step = _fused_step(1)
"""fused_step(chain, cell, left, at, right, numbers, result)

Section 2: chain[cell + j] = round(sum over the step of a[at + k] * b[k, j], truncated at E - F, and chain[cell + j]).

`left` is fused.Rows and `right` fused.Columns, whose dtype is the carrier. An accumulator that is infinite or NaN stays
as it is, and operands are taken to be finite. Returns DONE or TOO_WIDE.
"""
side_by_side_step = _fused_step(ITEMS)
"""fused_step for ITEMS rows of A, each left.stride elements after the one before it and against the next SIDE columns."""


class _FusedStep(NamedTuple):
    """The values fused_step works on."""

    emit: Emitter
    chain: Any
    cell: Any
    left: Any
    at: Any
    right: Any
    numbers: Any
    result: Any
    items: int
    """Rows of A that the lanes belong to: 1 or ITEMS."""

    def at_lane(self, first: Any, lane: int) -> Any:
        """Where the row of A that a lane behind `first` belongs to has its step."""
        builder = self.emit.builder
        if self.items == 1:
            return self.at
        item = builder.udiv(builder.add(first, self.emit.index(lane)), self.emit.index(SIDE))
        return builder.add(self.at, builder.mul(item, self.left.stride))

    def wide(self) -> Any:
        """With a float64 carrier, in two halves of the columns."""
        emit, builder = self.emit, self.emit.builder
        shift = builder.shl(builder.sub(emit.index(1023), self.numbers.c_shift), emit.index(52))
        with emit.loop(emit.index(WIDTH // 16)) as half:
            first = builder.mul(half, emit.index(16))
            cell = builder.add(self.cell, first)
            held = emit.load(self.chain, cell, 16)
            finite = _finite_part(held)
            exponent = self.exponents(finite, first, self.numbers.c_shift).widen(I64)
            window = ((exponent + emit.splat(builder.sub(emit.index(1023 + 52), self.numbers.fraction_bits), 16)) << 52) | (1 << 51)
            exact = self.signed_sums(window.floats(), finite.widen(F64) * emit.splat(shift, 16).floats(), first)
            _round_and_store(emit, exact, held, self.result, self.chain, cell)
        return emit.index(DONE)

    def narrow(self) -> Any:
        """With a float32 carrier."""
        emit, builder = self.emit, self.emit.builder
        held = emit.load(self.chain, self.cell, WIDTH)
        finite = _finite_part(held)
        exponent = self.exponents(finite, emit.index(0), emit.index(0))
        shift = emit.splat(builder.sub(ir.Constant(I32, 127 + 23), emit.narrow_index(self.numbers.fraction_bits)), WIDTH)
        window = ((exponent + shift) << 23) | (1 << 22)
        report = cgutils.alloca_once(builder, I64)
        with builder.if_else((exponent > CARRIER_LIMIT).any(), likely=False) as (too_wide, fits):
            with too_wide:
                builder.store(emit.index(TOO_WIDE), report)
            with fits:
                exact = self.signed_sums(window.floats(), finite, emit.index(0))
                _round_and_store(emit, exact, held, self.result, self.chain, self.cell)
                builder.store(emit.index(DONE), report)
        return builder.load(report)

    def exponents(self, held: Lanes, first: Any, shift: Any) -> Lanes:
        """E (int32): the largest exponent of the step's products and of the accumulator, which has e_zero where it is zero."""
        emit, builder, lanes = self.emit, self.emit.builder, held.count
        together = lanes if self.items == 1 else SIDE
        starts = range(0, lanes, together)
        cells = emit.cells([emit.constant(I16, -(1 << 15), together) for _ in starts])
        places = [self.at_lane(first, start) for start in starts]
        with emit.loop(self.numbers.step) as k:
            for start, place, cell in zip(starts, places, cells, strict=True):
                row = builder.add(builder.add(builder.mul(k, emit.index(WIDTH)), first), emit.index(start))
                exponent = emit.splat(emit.scalar(self.left.exponents, builder.add(place, k)), together)
                cell.set(cell.get().maximum(exponent + emit.load(self.right.exponents, row, together)))
        largest = _join([cell.get() for cell in cells])
        magnitude = held.bits() & 0x7FFFFFFF
        floor = emit.splat(builder.add(emit.narrow_index(self.result.min_exponent), ir.Constant(I32, 127)), lanes)
        unbias = emit.splat(builder.add(emit.narrow_index(shift), ir.Constant(I32, 127)), lanes)
        zero = emit.splat(emit.narrow_index(self.numbers.zero_exponent), lanes)
        own = magnitude.equals(0).choose(zero, (magnitude >> 23).maximum(floor) - unbias)
        return own.maximum(largest.widen(I32)).maximum(zero)

    def signed_sums(self, window: Lanes, held: Lanes, first: Any) -> Lanes:
        """The exact sum of the truncated terms: window + positive ones, less window + negative ones.

        The window lies in [1.5, 2) * 2^(E - F + p - 1), so window + |a| * |b| keeps exactly the multiples of 2^(E - F).
        `sides[k]` is where the part of B with a[k]'s sign lies, the other part WIDTH away.
        """
        emit, builder, lanes = self.emit, self.emit.builder, held.count
        together = lanes if self.items == 1 else SIDE
        vector = min(width() if held.element is F32 else width() // 2, together)
        zero = emit.constant(held.element, 0.0, lanes)
        parts = [emit.cells(_split(start, vector)) for start in (window + held.maximum(zero), window + (-held).maximum(zero))]
        starts = range(0, lanes, together)
        places = [self.at_lane(first, start) for start in starts]
        with emit.loop(self.numbers.step) as k:
            for start, place in zip(starts, places, strict=True):
                at = builder.add(place, k)
                factor = emit.splat(emit.scalar(self.left.magnitudes, at), vector)
                side = builder.sext(emit.scalar(self.left.sides, at), I64)
                for cells, base in zip(parts, (side, builder.xor(side, emit.index(WIDTH))), strict=True):
                    for lane in range(start, start + together, vector):
                        cell, column = cells[lane // vector], builder.add(builder.add(base, first), emit.index(lane))
                        cell.set(factor.fma(emit.load(self.right.planes, column, vector), cell.get()))
        positive, negative = (_join([cell.get() for cell in cells]) for cells in parts)
        return (positive - window) - (negative - window)


def _grouped_step(items: int) -> Any:
    """The step for two rows of A, or for two times ITEMS rows side by side, each against its SIDE columns."""

    def step_of_rows(
        _context: Any, chain: Any, cells: Any, left: Any, rows: Any, step_index: Any, right: Any, powers: Any, numbers: Any, result: Any
    ) -> Any:
        pair = types.UniTuple(_index, 2)
        signature = types.none(chain, pair, left, pair, _index, right, powers, numbers, result)

        def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            emit = Emitter(context, builder)
            work = _GroupedStep(
                emit, emit.fields(left, arguments[2]), cgutils.unpack_tuple(builder, arguments[3], 2), arguments[4],
                emit.fields(right, arguments[5]), emit.fields(powers, arguments[6]), emit.fields(numbers, arguments[7]), items,
            )  # fmt: skip
            chain_, result_ = emit.data(chain, arguments[0]), emit.fields(result, arguments[8])
            for first in range(0, WIDTH, 16):
                places = [builder.add(cell, emit.index(first)) for cell in cgutils.unpack_tuple(builder, arguments[1], 2)]
                held = [emit.load(chain_, place, 16) for place in places]
                exact = work.sums([_finite_part(row) for row in held], first)
                for row in range(2):
                    _round_and_store(emit, exact[row], held[row], result_, chain_, places[row])
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(step_of_rows)


grouped_step = _grouped_step(1)
"""grouped_step(chain, cells, left, rows, step_index, right, powers, numbers, result)

Section 4, for two rows of A: chain[cells[r] + j] = round(scaled sums of the groups, truncated at E - F, and the accumulator).

`left` is grouped.GroupRows, `right` grouped.GroupColumns. `powers` is plan.StepPowers. |v| + M - M with M = 2^(E - F + 52)
keeps the multiples of 2^(E - F), since |v| < 2^(E + 14) < M. Where no term has bits to lose, plain sums do. An
accumulator that is infinite or NaN stays as it is, and scales are taken to be finite.
"""
grouped_side_by_side_step = _grouped_step(ITEMS)
"""grouped_step for two times ITEMS rows of A, each left.stride rows after the one before it and against the next SIDE columns."""


class _GroupedStep(NamedTuple):
    """The values grouped_step works on."""

    emit: Emitter
    left: Any
    rows: Any
    step_index: Any
    right: Any
    powers: Any
    numbers: Any
    items: int
    """Rows of A that the lanes of each of the two belong to: 1 or ITEMS."""

    def by_item(self, row: Any, first: int, lanes: int, read: Callable[[Any], Any]) -> Lanes:
        """What `read` finds for a row of A, in every lane from column `first` on that belongs to the row."""
        emit = self.emit
        if self.items == 1:
            return emit.splat(read(row), lanes)
        strides = (emit.builder.mul(self.left.stride, emit.index(lane // SIDE)) for lane in range(first, first + lanes, SIDE))
        return _join([emit.splat(read(emit.builder.add(row, stride)), SIDE) for stride in strides])

    def sums(self, held: list[Lanes], first: int) -> list[Lanes]:
        """For each of two rows the exact sum of the truncated terms, 16 columns from `first` on."""
        emit, builder = self.emit, self.emit.builder
        fits = (self.loses_nothing(held[0], first, self.rows[0]) & self.loses_nothing(held[1], first, self.rows[1])).all()
        windows = emit.cells([emit.constant(F64, 0.0, 16)] * 2)
        held = [row.widen(F64) for row in held]
        exact = emit.cells(held)
        with builder.if_then(builder.not_(fits), likely=False):
            for row in range(2):
                windows[row].set(self.largest_power(held[row], first, self.rows[row]) * emit.splat(self.powers.window, 16))
                exact[row].set(_cut(held[row], windows[row].get()))
        with emit.loop(builder.sdiv(self.groups(), emit.index(GROUPS_AT_ONCE))) as run:
            terms = self.terms(first, builder.mul(run, emit.index(GROUPS_AT_ONCE)))
            with builder.if_else(fits, likely=True) as (plain, truncating):
                with plain:
                    for row in range(2):
                        for term in terms[row]:
                            exact[row].set(exact[row].get() + term)
                with truncating:
                    for row in range(2):
                        for term in terms[row]:
                            exact[row].set(exact[row].get() + _cut(term, windows[row].get()))
        return [cell.get() for cell in exact]

    def groups(self) -> Any:
        """Groups of a step."""
        return self.emit.builder.sdiv(self.numbers.step, self.numbers.group)

    def group_at(self, row: Any) -> Any:
        """Place of the step's first group in the tables of A."""
        builder = self.emit.builder
        return builder.add(builder.mul(row, self.left.panel_groups), builder.mul(self.step_index, self.groups()))

    def loses_nothing(self, held: Lanes, first: int, row: Any) -> Lanes:
        """Where no term of the step has bits below 2^(E - F), judged by a bound on E: a mask."""
        emit, builder, lanes = self.emit, self.emit.builder, held.count
        steps = self.left.steps

        def bound(which: int) -> Callable[[Any], Any]:
            def read(row: Any) -> Any:
                at = builder.mul(builder.add(builder.mul(row, steps), self.step_index), emit.index(2))
                return emit.scalar(self.left.bounds, builder.add(at, emit.index(which)))

            return read

        largest, smallest = (self.by_item(row, first, lanes, bound(which)) for which in range(2))
        largest = largest + emit.load(self.right.bounds, emit.index(first), lanes)
        smallest = smallest + emit.load(self.right.bounds, emit.index(WIDTH + first), lanes)
        magnitude = held.bits() & 0x7FFFFFFF
        is_zero, own = magnitude.equals(0), (magnitude >> 23).maximum(1) - 127
        top = largest.maximum(is_zero.choose(emit.splat(emit.narrow_index(self.numbers.zero_exponent), lanes), own))
        keeps_groups = smallest >= top - emit.splat(emit.narrow_index(self.numbers.room_of_groups), lanes)
        keeps_held = is_zero | (own >= top - emit.splat(emit.narrow_index(self.numbers.room_of_held), lanes))
        return keeps_groups & keeps_held

    def own_power(self, held: Lanes) -> Lanes:
        """2^exponent of the accumulators: a subnormal has the smallest normal's exponent, a zero e_zero."""
        emit, lanes = self.emit, held.count
        power = _power_of(held).maximum(emit.splat(self.powers.floor, lanes))
        return held.equals(0.0).choose(emit.splat(self.powers.zero, lanes), power)

    def largest_power(self, held: Lanes, first: int, row: Any) -> Lanes:
        """2^E: the largest of the accumulator's power of two and of those groups that have a nonzero product."""
        emit, builder, lanes = self.emit, self.emit.builder, held.count
        (top,) = emit.cells([self.own_power(held)])
        with emit.loop(self.groups()) as group:
            others = builder.add(builder.mul(group, emit.index(WIDTH)), emit.index(first))
            powers, masks = (self.by_item(row, first, lanes, self.of_group(table, group)) for table in (self.left.powers, self.left.masks))
            candidate = powers * emit.load(self.right.powers, others, lanes)
            common = masks & emit.load(self.right.masks, others, lanes)
            top.set(top.get().maximum(common.equals(0).choose(0.0, candidate)))
        return top.get()

    def of_group(self, table: Any, group: Any) -> Callable[[Any], Any]:
        """What a table of A has for a group of the step, by row."""
        return lambda row: self.emit.scalar(table, self.emit.builder.add(self.group_at(row), group))

    def terms(self, first: int, number: Any) -> list[list[Lanes]]:
        """For each of two rows, the exact scaled sums of GROUPS_AT_ONCE groups from group `number` on."""
        if self.left.values.type.pointee == I8:
            return self.terms_of_bytes(first, number)
        emit, builder = self.emit, self.emit.builder
        size = self.numbers.group
        panel, before = builder.mul(self.left.panel_groups, size), builder.mul(self.step_index, self.numbers.step)
        strides = [builder.mul(self.left.stride, emit.index(lane // SIDE if self.items > 1 else 0)) for lane in (first, first + 8)]
        starts = [[builder.add(builder.mul(builder.add(row, stride), panel), before) for stride in strides] for row in self.rows]
        elements = [builder.mul(builder.add(number, emit.index(i)), size) for i in range(GROUPS_AT_ONCE)]
        parts = [[emit.cells([emit.constant(F32, 0.0, 8)] * 2) for _ in elements] for _ in starts]
        with emit.loop(size) as k:
            for i, start_element in enumerate(elements):
                element = builder.add(start_element, k)
                place = builder.add(builder.mul(element, emit.index(WIDTH)), emit.index(first))
                others = [emit.load(self.right.values, builder.add(place, emit.index(8 * j)), 8) for j in range(2)]
                for by_vector, cells in zip(starts, parts, strict=True):
                    for start, cell, other in zip(by_vector, cells[i], others, strict=True):
                        factor = emit.splat(emit.scalar(self.left.values, builder.add(start, element)), 8)
                        cell.set(factor.fma(other, cell.get()))
        return [[self.scaled(pair, row, builder.add(number, emit.index(i)), first) for i, pair in enumerate(cells)]
                for row, cells in zip(self.rows, parts, strict=True)]  # fmt: skip

    def terms_of_bytes(self, first: int, number: Any) -> list[list[Lanes]]:
        """`terms` of elements that are whole multiples of their format's smallest number, four products at once."""
        emit, builder = self.emit, self.emit.builder
        size, vector = self.numbers.group, width()
        panel, before = builder.mul(self.left.panel_groups, size), builder.mul(self.step_index, self.numbers.step)
        vectors = range(first, first + 16, vector)
        together = min(vector, SIDE) if self.items > 1 else vector

        def starts_of(row: Any) -> list[list[Any]]:
            """For each vector where each `together` of its lanes have their row of A."""
            strides = [
                [
                    builder.mul(self.left.stride, emit.index(lane // SIDE if self.items > 1 else 0))
                    for lane in range(v, v + vector, together)
                ]
                for v in vectors
            ]
            return [[builder.add(builder.mul(builder.add(row, each), panel), before) for each in of_vector] for of_vector in strides]

        starts = [starts_of(row) for row in self.rows]
        groups = [builder.add(number, emit.index(i)) for i in range(GROUPS_AT_ONCE)]
        elements = [builder.mul(group, size) for group in groups]
        parts = [
            [emit.cells([emit.load(self.right.offsets, builder.add(builder.mul(group, emit.index(WIDTH)), emit.index(v)), vector)
                         for v in vectors]) for group in groups]
            for _ in starts
        ]  # fmt: skip
        with emit.loop(builder.sdiv(size, emit.index(4))) as run:
            for i, start_element in enumerate(elements):
                element = builder.add(start_element, builder.mul(run, emit.index(4)))
                place = builder.mul(element, emit.index(WIDTH))
                others = [emit.load(self.right.values, builder.add(place, emit.index(4 * v)), 4 * vector) for v in vectors]
                for by_vector, cells in zip(starts, parts, strict=True):
                    for at, cell, other in zip(by_vector, cells[i], others, strict=True):
                        mine = _join([emit.four_bytes(self.left.values, builder.add(start, element), together) for start in at])
                        cell.set(cell.get().add_products_of_bytes(mine, other))
        return [[self.times_scales(_join([cell.get() for cell in of_group]).to_float64(), row, group, first)
                 for group, of_group in zip(groups, cells, strict=True)]
                for row, cells in zip(self.rows, parts, strict=True)]  # fmt: skip

    def scaled(self, sums: list[LoopVariable], row: Any, group: Any, first: int) -> Lanes:
        """A group's sums times its scales."""
        return self.times_scales(_join([cell.get() for cell in sums]).widen(F64), row, group, first)

    def times_scales(self, sums: Lanes, row: Any, group: Any, first: int) -> Lanes:
        """Float64 sums of a group times its scales."""
        emit, builder = self.emit, self.emit.builder
        mine = self.by_item(row, first, 16, self.of_group(self.left.factors, group))
        others = emit.load(self.right.factors, builder.add(builder.mul(group, emit.index(WIDTH)), emit.index(first)), 16)
        return sums * (mine * others)


def _cut(value: Lanes, window: Lanes) -> Lanes:
    """A term truncated toward zero to the window's last place."""
    return ((value.magnitude() + window) - window).with_sign_of(value)


def _power_of(held: Lanes) -> Lanes:
    """The power of two of each accumulator, 0 for zero."""
    return (held.bits() & (0x7FF << 52)).floats()


def _half_as_single(codes: Lanes) -> Lanes:
    """F16 codes (int32) as float32 codes: the fields moved, the bias by a multiplication, which is exact of subnormals too."""
    magnitude = codes & 0x7FFF
    moved = magnitude << 13
    bits = (moved.floats() * 2.0**112).bits()
    return (magnitude >= 0x7C00).choose(moved | 0x7F800000, bits) | ((codes & 0x8000) << 16)


def _single_as_half(bits: Lanes) -> Lanes:
    """Float32 codes of f16's values (but NaN) as f16 codes (int32); a subnormal's is the multiple of 2^-24, the last place of 0.5."""
    magnitude = bits & 0x7FFFFFFF
    normal = (magnitude + -0x38000000) >> 13
    subnormal = (magnitude.floats() + 0.5).bits() & 0x7FFFFF
    codes = (magnitude >= 0x38800000).choose(normal, subnormal)
    return (magnitude >= 0x7F800000).choose(0x7C00, codes) | ((bits >> 16) & 0x8000)


def _start(lanes: int) -> Any:
    """What a chain starts with, for as many columns."""

    def start_of_lanes(_context: Any, d: Any, at: Any, total: Any, cell: Any, result: Any) -> Any:
        signature = types.none(d, _index, total, _index, result)

        def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            emit = Emitter(context, builder)
            source, at_, total_, cell_ = emit.data(d, arguments[0]), arguments[1], emit.data(total, arguments[2]), arguments[3]
            half = emit.fields(result, arguments[4]).half
            with builder.if_else(builder.icmp_signed("==", half, emit.index(0)), likely=True) as (as_it_is, halves):
                with as_it_is:
                    emit.store(emit.load(source, at_, lanes), total_, cell_)
                with halves:
                    codes = emit.load(builder.bitcast(source, I16.as_pointer()), at_, lanes).unsigned(I32)
                    emit.store(_half_as_single(codes).floats(), total_, cell_)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(start_of_lanes)


start_one, start_side = _start(1), _start(SIDE)
"""start_side(d, at, total, cell, result)

total[cell + j] = element at + j of D, for SIDE columns j; start_one for one. Elements are float16 where result.half says so.
"""


def _finish(lanes: int) -> Any:
    """The last bits of a result, for as many columns. Nothing else writes them."""

    def finish_of_lanes(_context: Any, total: Any, cell: Any, d: Any, at: Any, result: Any) -> Any:
        signature = types.none(total, _index, d, _index, result)

        def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            emit = Emitter(context, builder)
            target, at_, result_ = emit.data(d, arguments[2]), arguments[3], emit.fields(result, arguments[4])
            held = emit.load(emit.data(total, arguments[0]), arguments[1], lanes)
            is_nan, bits = held.unordered(held), held.bits()

            def put(codes: Lanes) -> None:
                nan = result_.nan if codes.element is I64 else builder.trunc(result_.nan, codes.element)
                found = is_nan.choose(emit.splat(nan, lanes), codes)
                emit.store(found, builder.bitcast(target, codes.element.as_pointer()), at_)

            if held.element is F64:
                put(bits)
                return context.get_dummy_value()
            with builder.if_else(builder.icmp_signed("==", result_.half, emit.index(0)), likely=True) as (as_it_is, halves):
                with as_it_is:
                    put(bits)
                with halves:
                    put(_single_as_half(bits).narrow(I16))
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(finish_of_lanes)


finish_one, finish_side = _finish(1), _finish(SIDE)
"""finish_side(total, cell, d, at, result)

Element at + j of D = total[cell + j], for SIDE columns j, with the code result.nan for every NaN; finish_one for one column.
Elements are float16 where result.half says so. An accumulator is then one of f16's values.
"""


@intrinsic
def dot_step(_context: Any, sums: Any, cell: Any, a: Any, at: Any, b: Any, count: Any) -> Any:
    """sums[cell + j] = a[at + k] * b[k, j] + sums[cell + j], k ascending: fused multiply-adds."""
    signature = types.none(sums, _index, a, _index, b, _index)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        sums_, a_, b_ = (emit.data(kind, arguments[i]) for kind, i in ((sums, 0), (a, 2), (b, 4)))
        vector = width() // 2
        places = [builder.add(arguments[1], emit.index(i)) for i in range(0, WIDTH, vector)]
        cells = emit.cells([emit.load(sums_, place, vector) for place in places])
        with emit.loop(arguments[5]) as k:
            factor = emit.splat(emit.scalar(a_, builder.add(arguments[3], k)), vector)
            row = builder.mul(k, emit.index(WIDTH))
            for i, cell_ in enumerate(cells):
                other = emit.load(b_, builder.add(row, emit.index(i * vector)), vector)
                cell_.set(factor.fma(other, cell_.get()))
        for place, cell_ in zip(places, cells, strict=True):
            emit.store(cell_.get(), sums_, place)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def nearest_add(_context: Any, total: Any, chain: Any, cell: Any, result: Any) -> Any:
    """total[cell + j] += chain[cell + j], to nearest even in a format whose sums float64 holds exactly; IEEE specials."""
    signature = types.none(total, chain, _index, result)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        total_, chain_ = emit.data(total, arguments[0]), emit.data(chain, arguments[1])
        for first in range(0, WIDTH, 16):
            place = builder.add(arguments[2], emit.index(first))
            exact = emit.load(total_, place, 16).widen(F64) + emit.load(chain_, place, 16).widen(F64)
            rounded = _nearest(emit, exact, emit.fields(result, arguments[3])).floats()
            ordinary = exact.magnitude() < float("inf")
            emit.store(ordinary.choose(rounded, exact.to_float32()), total_, place)
        return context.get_dummy_value()

    return signature, codegen
