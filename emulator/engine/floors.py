"""One step of a datapath for several rows of A against WIDTH columns of B, where exponents lie near each other: one multiply-add a product.

Sums in a window round down, toward minus infinity, so a negative product that is cut comes out one unit of the window's last place too low.
How often that was is counted beside, in bytes, and added to the sum's bits. docs/how-the-engine-works.md says why that is exact.

Exponents, and places of lowest bits, are bytes here, relative to the largest or smallest of their row or column; four elements of K lie in
the four bytes of a lane. Legends as in steps.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from mmabits.emulator.engine.jit import intrinsic
from mmabits.emulator.engine.lanes import F32, F64, I8, I16, I32, I64, Emitter, Lanes
from mmabits.emulator.engine.plan import NEAR, NO_EXPONENT
from mmabits.emulator.engine.steps import (
    CARRIER_LIMIT,
    DONE,
    TOO_WIDE,
    _finite_part,
    _join,
    _magnitude,
    _nearest,
    _not_finite,
    _signed,
    _truncated,
)
from mmabits.emulator.engine.tasks import WIDTH
from mmabits.emulator.engine.width import lanes

LANES = lanes()
ROWS = 4 if LANES == 16 else 2
"""Rows of A at once: as many as keep their sums in registers."""
PASS = WIDTH if LANES == 16 else 16
"""Columns whose float64 sums are kept in registers at once."""
WORK = (3 * 4 + 2 * 8) * ROWS * WIDTH
"""Bytes of scratch of a step: for each row and column thrice four bytes, and two numbers of the carrier."""
RANGE = NEAR
"""A row or column is taken here where its exponents lie no farther apart."""
HIGHEST = 63
"""The byte of the largest exponent of a row or column; 0 stands for a zero's. So the sum of two is above HIGHEST where neither is zero."""
ALL = 85
"""Above the sum of two places of lowest bits, each at most RANGE + 11: all products have bits below it."""
ZERO_A, ZERO_B = ALL, ALL - 128
"""Keys of zeros: with any other, and with each other, they come to a number that is not below ALL - 128."""
_SIGN = -128
_index = types.intp
_VECTORS = WIDTH // LANES
assert 3 * (RANGE + 11) + 1 <= 127 and 2 * (RANGE + 11) + 1 == ALL and 2 * (HIGHEST - RANGE) > HIGHEST


def _floor_decoded(emit: Emitter, codes: Any, starts: list[Any], form: Any, negate: Any) -> tuple[Lanes, Lanes, Lanes, Any]:
    """WIDTH codes, as many from each start: signed values (float32), exponents (int16), twice the place of the lowest bit and the sign
    (int16), whether one is not finite. As steps._decoded, with the fields in lanes as narrow as they fit.
    """
    builder = emit.builder
    code = _join([emit.load(codes, start, WIDTH // len(starts)) for start in starts])
    element = I32 if code.element is I32 else I16
    code = code.unsigned(element)

    def everywhere(number: Any, kind: ir.Type = element) -> Lanes:
        return emit.splat(builder.trunc(number, kind), WIDTH)

    one = emit.index(1)
    sign = (code >> everywhere(form.sign_shift)) & 1
    if negate is not None:
        sign = sign ^ everywhere(negate)
    field = (code & everywhere(builder.sub(builder.shl(one, form.sign_shift), one))) >> everywhere(form.low_bits)
    not_finite = field >= everywhere(form.lowest_nonfinite)
    field = not_finite.choose(0, field)
    magnitude = _magnitude(emit, field.unsigned(I32), emit.narrow_index(form.fraction_bits), emit.narrow_index(form.bias))
    exponent = (magnitude.high_halves() >> 7).maximum(everywhere(builder.add(form.min_exponent, emit.index(127)), I16)) - 127
    exponent = field.equals(0).choose(NO_EXPONENT, exponent)
    hidden = everywhere(builder.shl(one, form.fraction_bits))
    place = (field >> everywhere(form.fraction_bits)).maximum(1) + (field | hidden).trailing_zeros()
    place = place - everywhere(builder.add(form.bias, form.fraction_bits))
    return _signed(magnitude, sign.unsigned(I32)), exponent, ((place << 1) | sign).narrow(I16), not_finite.any()


@intrinsic
def decode_floor_columns(_context: Any, codes: Any, starts: Any, form: Any, right: Any, k: Any) -> Any:
    """WIDTH codes, as many from each of the `starts`, to row k of `right` (fused.FloorColumns); whether all are finite."""
    signature = types.boolean(codes, types.UniTuple(_index, len(starts)), form, right, _index)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        columns = emit.fields(right, arguments[3])
        found = cgutils.unpack_tuple(builder, arguments[1])
        value, exponent, place, not_finite = _floor_decoded(
            emit, emit.data(codes, arguments[0]), found, emit.fields(form, arguments[2]), None
        )
        row = builder.mul(arguments[4], emit.index(WIDTH))
        emit.store(value.widen(F64) if columns.values.type.pointee == F64 else value, columns.values, row)
        emit.store(exponent, columns.raw_exponents, row)
        emit.store(place, columns.raw_places, row)
        return builder.not_(not_finite)

    return signature, codegen


@intrinsic
def decode_floor_elements(_context: Any, codes: Any, at: Any, form: Any, negate: Any, left: Any, place: Any, cell: Any) -> Any:
    """WIDTH codes of a row of A to `left` (fused.FloorRows) from `cell` on, which is element `place` of its panel; whether all are
    finite.
    """
    signature = types.boolean(codes, _index, form, _index, left, _index, _index)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        rows = emit.fields(left, arguments[4])
        value, exponent, lowest, not_finite = _floor_decoded(
            emit, emit.data(codes, arguments[0]), [arguments[1]], emit.fields(form, arguments[2]), arguments[3]
        )
        emit.store(value.widen(F64) if rows.values.type.pointee == F64 else value, rows.values, arguments[6])
        emit.store(exponent, rows.raw_exponents, arguments[5])
        emit.store(lowest, rows.raw_places, arguments[5])
        return builder.not_(not_finite)

    return signature, codegen


class _Bounds(NamedTuple):
    """Of exponents and places, lane by lane: variables of a loop."""

    top: Any
    bottom: Any
    low: Any

    def take(self, exponent: Lanes, place: Lanes) -> None:
        """Widen the bounds, zeros left out."""
        is_zero = exponent.equals(NO_EXPONENT)
        self.top.set(self.top.get().maximum(exponent))
        self.bottom.set(self.bottom.get().minimum(is_zero.choose(_MOST, exponent)))
        self.low.set(self.low.get().minimum(is_zero.choose(_MOST, place.arithmetic_shift(1))))


_MOST = 1 << 14


def _bounds(emit: Emitter) -> _Bounds:
    return _Bounds(*emit.cells([emit.constant(I16, number, WIDTH) for number in (NO_EXPONENT, _MOST, _MOST)]))


def _relative(exponent: Lanes, place: Lanes, top: Lanes, low: Lanes, zero_key: int) -> tuple[Lanes, Lanes]:
    """Exponents relative to the largest, and keys: the place relative to the lowest, less 128 where the sign is set (int16)."""
    is_zero = exponent.equals(NO_EXPONENT)
    key = (place.arithmetic_shift(1) - low) + ((place & 1) << 7)
    return is_zero.choose(0, exponent - top), is_zero.choose(zero_key, key)


@intrinsic
def finish_floor_columns(_context: Any, right: Any, step: Any) -> Any:
    """The bytes of a step of B from what was decoded of it, and its bounds; whether every column's exponents lie within RANGE."""
    signature = types.boolean(right, _index)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        columns = emit.fields(right, arguments[0])
        bounds = _bounds(emit)

        def raw(k: Any) -> tuple[Lanes, Lanes]:
            row = builder.mul(k, emit.index(WIDTH))
            return emit.load(columns.raw_exponents, row, WIDTH), emit.load(columns.raw_places, row, WIDTH)

        with emit.loop(arguments[1]) as k:
            bounds.take(*raw(k))
        low = bounds.low.get()
        spread = (bounds.top.get() - bounds.bottom.get()) > RANGE
        top = bounds.top.get() - HIGHEST
        with emit.loop(builder.sdiv(arguments[1], emit.index(4))) as run:
            first = builder.mul(run, emit.index(4))
            four = [_relative(*raw(builder.add(first, emit.index(i))), top, low, ZERO_B) for i in range(4)]
            place = builder.mul(run, emit.index(4 * WIDTH))
            for which, target in enumerate((columns.exponents, columns.keys)):
                rows = [each[which] for each in four]
                low_pair, high_pair = ((rows[i] & 0xFF) | (rows[i + 1] << 8) for i in (0, 2))
                emit.store(low_pair.interleaved(high_pair).as_bytes(), target, place)
        emit.store(top.widen(I32), columns.tops, emit.index(0))
        emit.store(low.widen(I32), columns.lows, emit.index(0))
        return builder.not_(spread.any())

    return signature, codegen


@intrinsic
def finish_floor_row(_context: Any, left: Any, cell: Any, count: Any, form: Any) -> Any:
    """The bytes of `count` elements of a row of A from `cell` on, from what was decoded of it.

    Returns (what the bytes of exponents are relative to, the lowest place of a bit, whether its exponents lie within RANGE): the row's own,
    or those of all numbers of a narrow format.
    """
    signature = types.UniTuple(types.int64, 3)(left, _index, _index, form)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        rows, form_ = emit.fields(left, arguments[0]), emit.fields(form, arguments[3])
        runs = builder.sdiv(builder.add(arguments[2], emit.index(WIDTH - 1)), emit.index(WIDTH))

        def raw(run: Any) -> tuple[Any, Lanes, Lanes]:
            at = builder.mul(run, emit.index(WIDTH))
            return at, emit.load(rows.raw_exponents, at, WIDTH), emit.load(rows.raw_places, at, WIDTH)

        top, low, narrow = (
            cgutils.alloca_once_value(builder, number) for number in (form_.max_exponent, form_.lowest_place, emit.index(1))
        )
        with builder.if_then(builder.icmp_signed("==", form_.narrow, emit.index(0)), likely=False):
            bounds = _bounds(emit)
            with emit.loop(runs) as run:
                bounds.take(*raw(run)[1:])
            highest, bottom, lowest = (
                builder.sext(cell.get().reduced(how), I64) for cell, how in zip(bounds, ("smax", "smin", "smin"), strict=True)
            )
            near = builder.icmp_signed("<=", builder.sub(highest, bottom), emit.index(RANGE))
            for place, number in ((top, highest), (low, lowest), (narrow, builder.zext(near, I64))):
                builder.store(number, place)
        top, low, narrow = (builder.load(place) for place in (top, low, narrow))
        top = builder.sub(top, emit.index(HIGHEST))
        top_lanes, low_lanes = (emit.splat(builder.trunc(number, I16), WIDTH) for number in (top, low))
        with emit.loop(runs) as run:
            at, exponent, place = raw(run)
            near, key = _relative(exponent, place, top_lanes, low_lanes, ZERO_A)
            target = builder.add(arguments[1], at)
            emit.store(near.narrow(I8), rows.exponents, target)
            emit.store(key.narrow(I8), rows.keys, target)
        return cgutils.pack_array(builder, [top, low, narrow])

    return signature, codegen


@intrinsic
def floor_step(
    _context: Any, chain: Any, base: Any, left: Any, row: Any, last: Any, at: Any, step_index: Any, right: Any, work: Any, numbers: Any,
    result: Any,
) -> Any:  # fmt: skip
    """Section 2 for ROWS rows of A from `row` on, or to `last` and that one again: chain[base + row * WIDTH + j] as in steps.fused_step.

    `left` is fused.FloorRows, `right` fused.FloorColumns; `at` is the step's first element in the panel. Returns DONE, or TOO_WIDE and
    nothing is done.
    """
    signature = types.int64(chain, _index, left, _index, _index, _index, _index, right, work, numbers, result)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        step = _FloorStep(
            emit, emit.data(chain, arguments[0]), arguments[1], emit.fields(left, arguments[2]), arguments[3], arguments[4], arguments[5],
            arguments[6], emit.fields(right, arguments[7]), emit.data(work, arguments[8]), emit.fields(numbers, arguments[9]),
            emit.fields(result, arguments[10]),
        )  # fmt: skip
        return step.run()

    return signature, codegen


class _FloorStep(NamedTuple):
    """The values floor_step works on."""

    emit: Emitter
    chain: Any
    base: Any
    left: Any
    row: Any
    last: Any
    at: Any
    step_index: Any
    right: Any
    work: Any
    numbers: Any
    result: Any

    @property
    def carrier(self) -> ir.Type:
        """float32 or float64."""
        found: ir.Type = self.right.values.type.pointee
        return found

    def scratch(self, first: int, kind: ir.Type) -> Any:
        """The numbers of a kind that begin so many bytes behind each row and column's in the scratch of the step."""
        builder = self.emit.builder
        return builder.bitcast(builder.gep(self.work, [self.emit.index(first * ROWS * WIDTH)]), kind.as_pointer())

    @property
    def tops(self) -> Any:
        """For every row and column the largest sums of exponents, four bytes;"""
        return self.scratch(0, I8)

    @property
    def limits(self) -> Any:
        """Below which keys count as cut, four times;"""
        return self.scratch(4, I8)

    @property
    def counts(self) -> Any:
        """How many do, four bytes;"""
        return self.scratch(8, I8)

    @property
    def windows(self) -> Any:
        """The window;"""
        return self.scratch(12, self.carrier)

    @property
    def sums(self) -> Any:
        """And the sum in it."""
        return self.scratch(20, self.carrier)

    def run(self) -> Any:
        emit, builder = self.emit, self.emit.builder
        self.largest_exponents()
        report = cgutils.alloca_once(builder, I64)
        too_wide, cuts = self.start_sums()
        with builder.if_else(too_wide, likely=False) as (wide, fits):
            with wide:
                builder.store(emit.index(TOO_WIDE), report)
            with fits:
                self.add_products()
                with builder.if_else(cuts) as (cut, whole):
                    with cut:
                        self.count_cuts()
                    with whole:
                        nothing = emit.constant(I8, 0, 4 * LANES)
                        for place in range(ROWS * _VECTORS):
                            emit.store(nothing, self.counts, emit.index(place * 4 * LANES))
                self.end_sums()
                builder.store(emit.index(DONE), report)
        return builder.load(report)

    def row_at(self, place: Any) -> Any:
        """The row of A with a place among those at once."""
        builder = self.emit.builder
        row = builder.add(self.row, place)
        return builder.select(builder.icmp_signed("<", row, self.last), row, self.last)

    def starts(self) -> list[Any]:
        """Where each row has its step, in the arrays of `left`."""
        builder = self.emit.builder
        rows = (self.row_at(self.emit.index(r)) for r in range(ROWS))
        return [builder.add(builder.mul(row, self.left.panel), self.at) for row in rows]

    def byte_runs(self, table: Any) -> Any:
        """A loop over the runs of four elements of the step: (row's place, vector, the bytes of A, the bytes of B)."""
        emit, builder = self.emit, self.emit.builder
        mine = self.left.exponents if table is self.right.exponents else self.left.keys
        starts = self.starts()
        with emit.loop(builder.sdiv(self.numbers.step, emit.index(4))) as run:
            place = builder.mul(run, emit.index(4 * WIDTH))
            others = [emit.load(table, builder.add(place, emit.index(v * 4 * LANES)), 4 * LANES) for v in range(_VECTORS)]
            for r, start in enumerate(starts):
                bytes_a = emit.four_bytes(mine, builder.add(start, builder.mul(run, emit.index(4))), LANES)
                for v, bytes_b in enumerate(others):
                    yield r * _VECTORS + v, bytes_a, bytes_b

    def largest_exponents(self) -> None:
        """tops: for every lane and each of its bytes the largest sum of exponents."""
        emit = self.emit
        cells = emit.cells([emit.constant(I8, 0, 4 * LANES)] * (ROWS * _VECTORS))
        for place, mine, other in self.byte_runs(self.right.exponents):
            cells[place].set(cells[place].get().maximum(mine + other))
        for place, cell in enumerate(cells):
            emit.store(cell.get(), self.tops, emit.index(place * 4 * LANES))

    def count_cuts(self) -> None:
        """counts: for every lane and each of its bytes how many negative products have bits below the window."""
        emit = self.emit
        one = emit.splat(emit.builder.trunc(self.numbers.floors, I8), 4 * LANES)  # no constant, which LLVM would make a longer sum of
        limits = [emit.load(self.limits, emit.index(place * 4 * LANES), 4 * LANES) for place in range(ROWS * _VECTORS)]
        cells = emit.cells([emit.constant(I8, 0, 4 * LANES)] * (ROWS * _VECTORS))
        for place, mine, other in self.byte_runs(self.right.keys):
            cells[place].set(((mine + other) < limits[place]).choose(cells[place].get() + one, cells[place].get()))
        for place, cell in enumerate(cells):
            emit.store(cell.get(), self.counts, emit.index(place * 4 * LANES))

    def add_products(self) -> None:
        """Sums + the products, each rounded down."""
        emit, builder = self.emit, self.emit.builder
        vector, columns = (LANES, WIDTH) if self.carrier is F32 else (LANES // 2, PASS)
        starts = self.starts()
        for first in range(0, WIDTH, columns):
            places = [[emit.index(r * WIDTH + j) for j in range(first, first + columns, vector)] for r in range(ROWS)]
            cells = [emit.cells([emit.load(self.sums, place, vector) for place in row]) for row in places]
            with emit.loop(self.numbers.step) as k:
                row_b = builder.add(builder.mul(k, emit.index(WIDTH)), emit.index(first))
                others = [emit.load(self.right.values, builder.add(row_b, emit.index(j)), vector) for j in range(0, columns, vector)]
                for start, sums in zip(starts, cells, strict=True):
                    factor = emit.splat(emit.scalar(self.left.values, builder.add(start, k)), vector)
                    for other, cell in zip(others, sums, strict=True):
                        cell.set(factor.fma(other, cell.get()))
            for row, sums in zip(places, cells, strict=True):
                for place, cell in zip(row, sums, strict=True):
                    emit.store(cell.get(), self.sums, place)

    def scales(self, row: Any, first: Any) -> Lanes:
        """The exponent (int32) of the scales of a row and LANES columns."""
        return self.of_row(self.left.shifts, row) + self.emit.load(self.right.shifts, first, LANES)

    def of_row(self, table: Any, row: Any) -> Lanes:
        """What a table has for the step of a row, in every lane."""
        builder = self.emit.builder
        return self.emit.splat(self.emit.scalar(table, builder.add(builder.mul(row, self.left.steps), self.step_index)), LANES)

    def parts(self) -> Any:
        """A loop over rows and vectors: (place in `work`, row, first column, cell of the chain)."""
        emit, builder = self.emit, self.emit.builder
        with emit.loop(emit.index(ROWS)) as place:
            row = self.row_at(place)
            cell = builder.add(self.base, builder.mul(row, emit.index(WIDTH)))
            for column in range(0, WIDTH, LANES):
                first = emit.index(column)
                yield builder.add(builder.mul(place, emit.index(WIDTH)), first), row, first, builder.add(cell, first)

    def is_scaled(self) -> Any:
        """Whether operands have scales, or the accumulator one (an i1)."""
        builder = self.emit.builder
        return builder.icmp_signed("!=", builder.or_(self.numbers.block, self.numbers.c_shift), self.emit.index(0))

    def start_sums(self) -> tuple[Any, Any]:
        """windows, sums: window + c cut to it; limits. Whether an exponent is too large, and whether a product is cut."""
        emit, builder, number = self.emit, self.emit.builder, self.number
        highest, deepest = emit.cells([emit.constant(I32, -(1 << 30), LANES)] * 2)
        for place, row, first, cell in self.parts():
            exponent, held = self.exponent(place, row, first, cell)
            highest.set(highest.get().maximum(exponent))
            lows = self.of_row(self.left.lows, row) + emit.load(self.right.lows, first, LANES)
            limit = (exponent - lows - number(self.numbers.fraction_bits)).maximum(0).minimum(ALL)
            deepest.set(deepest.get().maximum(limit))
            bytes_ = builder.mul(place, emit.index(4))
            emit.store((limit + _SIGN).as_bytes().spread_lowest(), self.limits, bytes_)
            if self.carrier is F32:
                window = ((exponent << 23) + self.lowest_window(127 + 23, 23)).floats()
            else:
                wide, unscaled = emit.cells([held.widen(F64), exponent])
                with builder.if_then(self.is_scaled(), likely=False):
                    scale = self.scales(row, first)
                    down = number(builder.sub(emit.index(1023), self.numbers.c_shift)) - scale
                    wide.set(wide.get() * ((down << 20).unsigned(I64) << 32).floats())
                    unscaled.set(exponent - scale)
                high = (unscaled.get() << 20) + self.lowest_window(1023 + 52, 20)
                window = (high.unsigned(I64) << 32).floats()
                held = wide.get()
            mirrored = window.with_sign_of(held)
            emit.store(window, self.windows, place)
            emit.store(window + ((mirrored + held) - mirrored), self.sums, place)
        too_wide = (highest.get() > CARRIER_LIMIT).any() if self.carrier is F32 else ir.Constant(ir.IntType(1), 0)
        return too_wide, (deepest.get() > 0).any()

    def lowest_window(self, bias: int, place: int) -> Lanes:
        """What the exponent of E, at its place in a float's upper bits, lacks to be 1.5 * 2^(E - F + p - 1)."""
        builder = self.emit.builder
        bits = builder.shl(builder.sub(self.emit.index(bias), self.numbers.fraction_bits), self.emit.index(place))
        return self.number(builder.or_(bits, self.emit.index(1 << (place - 1))))

    def number(self, value: Any) -> Lanes:
        """An index as int32 in every lane."""
        return self.emit.splat(self.emit.narrow_index(value), LANES)

    def exponent(self, place: Any, row: Any, first: Any, cell: Any) -> tuple[Lanes, Lanes]:
        """E (int32), and the accumulators, zeros for what is not finite."""
        emit, builder, number = self.emit, self.emit.builder, self.number
        tops = emit.load(self.tops, builder.mul(place, emit.index(4)), 4 * LANES).as_words()
        tops = tops.as_bytes().maximum((tops >> 16).as_bytes()).as_words()
        near = tops.as_bytes().maximum((tops >> 8).as_bytes()).as_words() & 0xFF
        zero = number(self.numbers.zero_exponent)
        highest = self.of_row(self.left.tops, row) + emit.load(self.right.tops, first, LANES)
        products = (near > HIGHEST).choose(near + highest, zero)
        held = _finite_part(emit.load(self.chain, cell, LANES))
        magnitude = held.bits() & 0x7FFFFFFF
        floor = number(builder.add(self.result.min_exponent, emit.index(127)))
        own = (magnitude >> 23).maximum(floor) - number(builder.add(self.numbers.c_shift, emit.index(127)))
        return magnitude.equals(0).choose(zero, own).maximum(products).maximum(zero), held

    def end_sums(self) -> None:
        """The chain: sums with what was counted, less their windows, rounded as the row says."""
        emit, builder = self.emit, self.emit.builder
        nearest = builder.icmp_signed("!=", self.result.mode, emit.index(0))
        for place, row, first, cell in self.parts():
            counts = emit.load(self.counts, builder.mul(place, emit.index(4)), 4 * LANES)
            counts = emit.constant(I32, 0, LANES).add_products_of_bytes(counts, emit.constant(I8, 1, 4 * LANES))
            bits = emit.load(self.sums, place, LANES).bits()
            total = (bits + (counts if self.carrier is F32 else counts.unsigned(I64))).floats()
            exact = total - emit.load(self.windows, place, LANES)
            if self.carrier is F64:
                (wide,) = emit.cells([exact])
                with builder.if_then(self.is_scaled(), likely=False):
                    up = self.scales(row, first) + 1023
                    wide.set(wide.get() * ((up << 20).unsigned(I64) << 32).floats())
                exact = wide.get()
            (rounded,) = emit.cells([emit.constant(I32, 0, LANES)])
            with builder.if_else(nearest, likely=False) as (to_nearest, toward_zero):
                with to_nearest:
                    rounded.set(_nearest(emit, exact, self.result))
                with toward_zero:
                    rounded.set(_truncated(emit, exact, self.result.cut))
            held = emit.load(self.chain, cell, LANES)
            emit.store(_not_finite(held).choose(held.bits(), rounded.get()).floats(), self.chain, cell)
