"""Section 6: exact integer sums, on tiles of WIDTH columns, four products of bytes at once.

The instructions that multiply bytes take one operand without a sign and one with. So a signed A enters as a + 128, an unsigned B as
b - 128, and what that changes is a sum over one operand alone: of (a + x)(b - y) with x and y 0 or 128 the sum over K is
sum(a b) + x sum(b - y) - y sum(a). All of it modulo 2^32, as the accumulator is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types

from mmabits.emulator.engine.jit import address_of, allocate, array_at, fields_at, inlined, intrinsic, jit, release
from mmabits.emulator.engine.lanes import I8, I16, I32, Emitter, Lanes
from mmabits.emulator.engine.plan import StepNumbers
from mmabits.emulator.engine.record import Call, Variant
from mmabits.emulator.engine.tasks import WIDTH
from mmabits.emulator.engine.tiles import CACHE_LINE, carve, padded, report_no_memory, stopped, task_bounds
from mmabits.emulator.engine.width import lanes

LANES = lanes()
ROWS = 8 if LANES == 16 else 2
"""Rows of A at once: as many as keep their sums in registers."""
PANEL = 512
"""Elements of K that are packed at a time."""
OFFSET = 128
_index = types.intp
_VECTORS = WIDTH // LANES


class Bytes(NamedTuple):
    """Scratch of a task."""

    left: Any
    """(rows, PANEL), flat: A, without signs."""
    left_terms: Any
    """(rows): what the offset of B takes away from every sum of a row."""
    right: Any
    """A panel of B, with signs: four elements of K of WIDTH columns after the next four."""
    right_terms: Any
    """(WIDTH): what the offset of A takes away from every sum of a column."""
    edge: Any
    """(4, WIDTH): rows of B that do not reach WIDTH columns."""
    total: Any
    """(rows, WIDTH): accumulators of a tile that does not reach WIDTH columns, flat."""


@intrinsic
def pack_four(_context: Any, codes: Any, starts: Any, flip: Any, packed: Any, place: Any) -> Any:
    """WIDTH bytes from each of four starts, xor `flip`, to packed[place:]: the four of a column together."""
    signature = types.none(codes, types.UniTuple(_index, 4), _index, packed, _index)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        source = emit.data(codes, arguments[0])
        rows = [emit.load(source, builder.extract_value(arguments[1], i), WIDTH).unsigned(I16) for i in range(4)]
        word = (rows[0] | (rows[1] << 8)).interleaved(rows[2] | (rows[3] << 8))
        flips = builder.mul(emit.narrow_index(arguments[2]), ir.Constant(I32, 0x01010101))
        emit.store((word ^ emit.splat(flips, WIDTH)).as_bytes(), emit.data(packed, arguments[3]), arguments[4])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def flip_bytes(_context: Any, codes: Any, at: Any, flip: Any, flipped: Any, place: Any) -> Any:
    """flipped[place + i] = codes[at + i] xor `flip`, for WIDTH bytes."""
    signature = types.none(codes, _index, _index, flipped, _index)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        found = emit.load(emit.data(codes, arguments[0]), arguments[1], WIDTH)
        emit.store(found ^ emit.splat(builder.trunc(arguments[2], I8), WIDTH), emit.data(flipped, arguments[3]), arguments[4])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def sum_columns(_context: Any, packed: Any, runs: Any, terms: Any) -> Any:
    """terms[j] = -OFFSET times the sum of column j's bytes, of `runs` times four elements."""
    signature = types.none(packed, _index, terms)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        source, target = emit.data(packed, arguments[0]), emit.data(terms, arguments[2])
        cells = emit.cells([emit.constant(I32, 0, LANES)] * _VECTORS)
        ones = emit.constant(I8, 1, 4 * LANES)
        with emit.loop(arguments[1]) as run:
            for v, cell in enumerate(cells):
                place = builder.add(builder.mul(run, emit.index(4 * WIDTH)), emit.index(4 * v * LANES))
                cell.set(cell.get().add_products_of_bytes(ones, emit.load(source, place, 4 * LANES)))
        for v, cell in enumerate(cells):
            emit.store(cell.get() * -OFFSET, target, emit.index(v * LANES))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def dot_bytes(_context: Any, total: Any, base: Any, step: Any, work: Any, row: Any, last: Any, runs: Any, saturate: Any) -> Any:
    """total[base + r * step + j] += the products of `runs` times four elements, for ROWS rows r from `row` to `last`, and that one again.

    `work` is Bytes.
    """
    signature = types.none(total, _index, _index, work, _index, _index, _index, _index)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder)
        total_, base_, step_, work_ = emit.data(total, arguments[0]), arguments[1], arguments[2], emit.fields(work, arguments[3])
        row_, last_, runs_, saturate_ = arguments[4:]
        rows = []
        for r in range(ROWS):
            each = builder.add(row_, emit.index(r))
            rows.append(builder.select(builder.icmp_signed("<", each, last_), each, last_))
        starts = [builder.mul(each, emit.index(PANEL)) for each in rows]
        columns = [emit.load(work_.right_terms, emit.index(v * LANES), LANES) for v in range(_VECTORS)]
        cells = [emit.cells([emit.splat(emit.scalar(work_.left_terms, each), LANES) + term for term in columns]) for each in rows]
        with emit.loop(runs_) as run:
            place = builder.mul(run, emit.index(4 * WIDTH))
            others = [emit.load(work_.right, builder.add(place, emit.index(4 * v * LANES)), 4 * LANES) for v in range(_VECTORS)]
            for start, sums in zip(starts, cells, strict=True):
                mine = emit.four_bytes(work_.left, builder.add(start, builder.mul(run, emit.index(4))), LANES)
                for cell, other in zip(sums, others, strict=True):
                    cell.set(cell.get().add_products_of_bytes(mine, other))
        places = [
            [builder.add(builder.add(base_, builder.mul(each, step_)), emit.index(v * LANES)) for v in range(_VECTORS)] for each in rows
        ]
        held = [[emit.load(total_, place, LANES) for place in each] for each in places]
        with builder.if_else(builder.icmp_signed("!=", saturate_, emit.index(0)), likely=False) as (clamped, wrapping):
            with clamped:
                _store_all(emit, total_, places, held, cells, Lanes.add_saturating)
            with wrapping:
                _store_all(emit, total_, places, held, cells, Lanes.__add__)
        return context.get_dummy_value()

    return signature, codegen


def _store_all(emit: Emitter, total: Any, places: Any, held: Any, cells: Any, add: Callable[[Lanes, Lanes], Lanes]) -> None:
    for row, before, sums in zip(places, held, cells, strict=True):
        for place, start, cell in zip(row, before, sums, strict=True):
            emit.store(add(start, cell.get()), total, place)


@inlined
def pack_left(flat: Any, first: int, k_total: int, rows: int, count: int, numbers: Any, work: Any) -> None:
    """`count` elements of K of A, and zeros up to four; with their terms. `first` is where those of the first row begin in A as one row."""
    flip = OFFSET if numbers.signed_a == 1 else 0
    for row in range(rows):
        start, place = first + row * k_total, row * PANEL
        for k in range(0, count, WIDTH):
            if start + k + WIDTH <= flat.size:
                flip_bytes(flat, start + k, flip, work.left, place + k)
            else:
                for i in range(min(WIDTH, count - k)):
                    work.left[place + k + i] = flat[start + k + i] ^ np.uint8(flip)
        for k in range(count, padded(count, 4)):
            work.left[place + k] = flip
        work.left_terms[row] = 0
        if numbers.signed_b == 0:
            total = np.int32(0)
            for k in range(count):
                total += np.int32(work.left[place + k])
            work.left_terms[row] = OFFSET * (total - np.int32(flip) * np.int32(count))


@jit
def pack_right(flat: Any, first: int, k_total: int, n_total: int, k0: int, count: int, columns: int, flip: int, work: Any) -> None:
    """`count` elements of K of WIDTH columns of B; zeros past K. Columns past the edge are whatever comes next in memory.

    `first` is where the item's column begins.
    """
    for k in range(0, count, 4):
        at = first + (k0 + k) * n_total
        place = k * WIDTH
        if k + 4 <= count and at + 3 * n_total + WIDTH <= flat.size:
            pack_four(flat, (at, at + n_total, at + 2 * n_total, at + 3 * n_total), flip, work.right, place)
            continue
        work.edge[:] = 0
        for i in range(min(4, count - k)):
            for j in range(columns):
                work.edge[i * WIDTH + j] = flat[at + i * n_total + j]
        pack_four(work.edge, (0, WIDTH, 2 * WIDTH, 3 * WIDTH), flip, work.right, place)


@jit
def integer_tasks(call: Any, flat_a: Any, flat_b: Any, flat_d: Any, numbers: Any, work: Any) -> None:
    """Tasks of d += a @ b in int32: exact, each instruction's sum added with wrap-around or, where it saturates, clamped.

    One instruction's own sum stays below 64 * 255 * 255 < 2^23, so it never wraps by itself. Sums are added to D where it lies, save in a
    tile of fewer columns, the last of a row.
    """
    k_total, n_total = call.k, call.n
    flip = 0 if numbers.signed_b == 1 else OFFSET
    panel = numbers.k_instruction if numbers.saturate == 1 else PANEL
    for task in range(call.first, call.last):
        item, row0, rows, tile0, tiles = task_bounds(task, call.m, n_total, call)
        corner, edge = (item * call.m + row0) * n_total + tile0 * WIDTH, n_total - (tile0 + tiles) * WIDTH
        partial, at_edge = WIDTH + edge if edge < 0 else 0, corner + (tiles - 1) * WIDTH
        for row in range(rows):
            for j in range(partial):
                work.total[row * WIDTH + j] = flat_d[at_edge + row * n_total + j]
        for k0 in range(0, k_total, panel):
            count = min(panel, k_total - k0)
            pack_left(flat_a, (item * call.m + row0) * k_total + k0, k_total, rows, count, numbers, work)
            for tile in range(tiles):
                if stopped(call):
                    return
                col0 = (tile0 + tile) * WIDTH
                columns = min(WIDTH, n_total - col0)
                pack_right(flat_b, item * k_total * n_total + col0, k_total, n_total, k0, count, columns, flip, work)
                runs = padded(count, 4) // 4
                work.right_terms[:] = 0
                if numbers.signed_a == 1:
                    sum_columns(work.right, runs, work.right_terms)
                total, base, step = (flat_d, corner + tile * WIDTH, n_total) if columns == WIDTH else (work.total, 0, WIDTH)
                for row in range(0, rows, ROWS):
                    dot_bytes(total, base, step, work, row, rows - 1, runs, numbers.saturate)
        for row in range(rows):
            for j in range(partial):
                flat_d[at_edge + row * n_total + j] = work.total[row * WIDTH + j]


@jit
def byte_scratch(base: int, call: Any) -> Any:
    """What a task works in, from address `base` on, and the address after it."""
    left, at = carve(base, call.rows * PANEL + WIDTH, np.uint8)
    left_terms, at = carve(at, call.rows, np.int32)
    right, at = carve(at, PANEL * WIDTH, np.int8)
    right_terms, at = carve(at, WIDTH, np.int32)
    edge, at = carve(at, 4 * WIDTH, np.uint8)
    total, at = carve(at, call.rows * WIDTH, np.int32)
    return Bytes(left, left_terms, right, right_terms, edge, total), at


def integer_entry(variant: Variant) -> Callable[[Any], None]:
    """The function of one address: integer_tasks on a record."""
    operand, accumulator = variant.operand.type, variant.accumulator.type

    def run(pointer: Any) -> None:
        call = fields_at(address_of(pointer), Call)
        numbers = fields_at(call.numbers, StepNumbers)
        base = allocate(byte_scratch(0, call)[1] + CACHE_LINE)
        if base == 0:
            report_no_memory(pointer)
            return
        flat_a = array_at(call.a, call.batch * call.m * call.k, operand)
        flat_b = array_at(call.b, call.batch * call.k * call.n, operand)
        flat_d = array_at(call.d, call.batch * call.m * call.n, accumulator)
        integer_tasks(call, flat_a, flat_b, flat_d, numbers, byte_scratch(base, call)[0])
        release(base)

    return run
