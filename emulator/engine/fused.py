"""Fused dot products with truncated alignment: sections 2 and 3 of the arithmetic, on tiles of WIDTH columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mmabits.emulator.engine.decode import code_class
from mmabits.emulator.engine.floors import (
    ROWS,
    WORK,
    decode_floor_columns,
    decode_floor_elements,
    finish_floor_columns,
    finish_floor_row,
    floor_step,
)
from mmabits.emulator.engine.jit import address_of, allocate, array_at, enter_rounding, fields_at, inlined, jit, leave_rounding, release
from mmabits.emulator.engine.plan import TOWARD_ZERO, FormatNumbers, ResultNumbers, StepNumbers
from mmabits.emulator.engine.record import Call, Variant
from mmabits.emulator.engine.steps import TOO_WIDE, decode_columns, decode_elements, fused_step, side_by_side_step
from mmabits.emulator.engine.tasks import ITEMS, PANEL, SIDE, WIDTH
from mmabits.emulator.engine.tiles import (  # fmt: skip
    CACHE_LINE,
    carve,
    end_chain,
    item_bounds,
    kill_row,
    load_items,
    load_tiles,
    padded,
    report_no_memory,
    stopped,
    store_items,
    store_tiles,
    task_bounds,
)

FINITE, INFINITE, NAN = 0, 1, 2
"""The worst that stands in a step of a row of A or a column of B."""
assert ITEMS == 4, "pack_items writes out the four items of a tile"


class Product(NamedTuple):
    """What is multiplied, and how. Arrays are contiguous."""

    a: Any
    """(batch, M, K) codes."""
    b: Any
    """(batch, K, N) codes."""
    flat_a: Any
    flat_b: Any
    """The same codes as one row each."""
    scale_a: Any
    """(batch, M, blocks) codes, or empty."""
    scale_b: Any
    """(batch, blocks, N) codes, or empty."""
    d: Any
    """(batch, M, N) accumulators in, results out. Its shape: the elements, which may be float16, are got by steps.py from `flat_d`."""
    flat_d: Any
    order: Any
    """Order in which an instruction's elements of K enter the steps; empty: ascending."""
    form_a: Any
    form_b: Any
    """plan.FormatNumbers."""
    scales: Any
    scale_exponents: Any
    """Value and exponent of every scale code."""
    numbers: Any
    """plan.StepNumbers."""
    result: Any
    """plan.ResultNumbers."""


class Rows(NamedTuple):
    """A panel of A: `rows` rows of `panel` elements, flat, as fused_step reads them; of several items one after the other."""

    panel: int
    stride: int
    """Elements of one item."""
    codes: Any
    """Scratch: the codes of one row."""
    places: Any
    """Where element k of a step finds the positive part of its row of B."""
    magnitudes: Any
    exponents: Any
    sides: Any
    """`places`, and WIDTH more where the element is negative."""
    bad: Any
    """(rows, steps): the worst that stands in that step."""
    wide: Any
    wide_exponents: Any
    wide_sides: Any
    """Scratch: a step, with its magnitudes in float64."""


class Columns(NamedTuple):
    """One step of B against WIDTH columns, as fused_step reads it."""

    codes: Any
    """Scratch: the codes of one row."""
    planes: Any
    """For each k, WIDTH positive parts and WIDTH negative ones."""
    exponents: Any
    bad: Any
    """(WIDTH): the worst that stands in that column."""
    odd: Any
    every: Any
    """(WIDTH): columns with something not finite, and all columns."""
    special: Any
    """Scratch: what such columns come to."""
    factors: Any
    powers: Any
    """Scratch: value and exponent of every column's scale; of a column past the edge anything."""
    wide: Any
    """Scratch: the planes in float64."""


class FloorRows(NamedTuple):
    """A panel of A as floor_step reads it: `panel` elements and `steps` steps of each row, flat."""

    panel: int
    steps: int
    values: Any
    """Signed."""
    exponents: Any
    """Bytes: relative to the largest of the row's panel."""
    keys: Any
    """Bytes: the place of the lowest bit that is set, relative to the lowest of the row's panel, and the sign."""
    tops: Any
    lows: Any
    """(rows, steps): what they are relative to, with the exponents of scales."""
    shifts: Any
    """(rows, steps): the exponent of the scale."""
    narrow: Any
    """(rows): 1 where the exponents lie near each other."""
    raw_exponents: Any
    raw_places: Any
    """Scratch: a row's, as decoded."""


class FloorColumns(NamedTuple):
    """One step of B, like FloorRows, with WIDTH columns to each k, and to each bound; bytes of four k stand together."""

    values: Any
    exponents: Any
    keys: Any
    tops: Any
    lows: Any
    shifts: Any
    raw_exponents: Any
    raw_places: Any


class Floors(NamedTuple):
    """What a task works in where one multiply-add a product does."""

    left: Any
    right: Any
    work: Any
    """Scratch of floor_step: WORK bytes."""
    ready: Any
    """Whether the panel of A, and the step of B, are decoded for the general path too."""


class Scratch(NamedTuple):
    """What a task works in."""

    left: Any
    right: Any
    total: Any
    chain: Any
    """Accumulators, (tiles, rows, WIDTH), flat; the same array where no chain is added to a total."""
    part: Any
    """Likewise, of an instruction that adds C by itself and is promoted; else the same array as total."""
    dead: Any
    """(tiles, rows): 1 where every accumulator of the row is NaN until its chain starts anew."""
    floors: Any


@inlined
def ordered(k: int, order: Any) -> Any:
    """Where element k of the walk over K stands in the operands; an empty `order` means ascending."""
    period = order.size
    return k if period == 0 else k - k % period + order[k % period]


@inlined
def badness(value: Any) -> Any:
    """FINITE, INFINITE or NAN."""
    return NAN if np.isnan(value) else (INFINITE if np.isinf(value) else FINITE)


@jit
def decode_rows(product: Any, item: int, row0: int, rows: int, k0: int, count: int, left: Any, slot0: int) -> None:
    """Fill a panel of A: `count` elements of K, in the order the unit takes them, of `rows` rows, to slots from `slot0` on."""
    a, form, numbers, panel = product.a, product.form_a, product.numbers, left.panel
    k_total = a.shape[2]
    straight = product.order.size == 0 and k0 + panel <= k_total
    flat = product.flat_a
    steps = count // numbers.step
    left.codes[:] = 0
    for row in range(rows):
        codes, first, finite, slot = left.codes, 0, True, slot0 + row
        if straight:
            codes, first = flat, (item * a.shape[1] + row0 + row) * k_total + k0
        else:
            for k in range(count):
                at = ordered(k0 + k, product.order)
                codes[k] = a[item, row0 + row, at] if at < k_total else 0
        for k in range(0, panel, WIDTH):
            finite &= decode_elements(codes, first + k, form, numbers.negate, left, k, slot * panel + k)
        for step_index in range(steps):
            left.bad[slot, step_index] = FINITE
        if not finite:
            for k in range(count):
                step_index = k // numbers.step
                left.bad[slot, step_index] = max(left.bad[slot, step_index], badness(code_class(np.int64(codes[first + k]), form)))
        if numbers.block > 0:
            scale_row(product, item, row0 + row, slot, k0, count, left)


@jit
def decode_run(product: Any, item: int, row0: int, rows: int, left: Any, slot0: int) -> None:
    """decode_rows where a panel is all of K and one row follows the other: WIDTH codes at a time across the rows."""
    a, form, numbers, panel = product.a, product.form_a, product.numbers, left.panel
    first, last = (item * a.shape[1] + row0) * panel, rows * panel
    for slot in range(slot0, slot0 + rows):
        for step_index in range(left.bad.shape[1]):
            left.bad[slot, step_index] = FINITE
    for run in range(0, last, WIDTH):
        codes, start = product.flat_a, first + run
        if last - run < WIDTH:
            codes, start = left.codes, 0
            for i in range(last - run):
                codes[i] = product.flat_a[first + run + i]
        if not decode_elements(codes, start, form, numbers.negate, left, run, slot0 * panel + run):
            for i in range(min(WIDTH, last - run)):
                slot, step_index = slot0 + (run + i) // panel, (run + i) % panel // numbers.step
                left.bad[slot, step_index] = max(left.bad[slot, step_index], badness(code_class(np.int64(codes[start + i]), form)))
    if numbers.block > 0:
        for row in range(rows):
            scale_row(product, item, row0 + row, slot0 + row, 0, panel, left)


@inlined
def scale_row(product: Any, item: int, source: int, slot: int, k0: int, count: int, left: Any) -> None:
    """Multiply a row of a panel of A by its block scales."""
    block = product.numbers.block
    for first in range(0, min(count, product.a.shape[2] - k0), block):
        code = product.scale_a[item, source, (k0 + first) // block]
        factor, exponent = product.scales[code], product.scale_exponents[code]
        if np.isnan(factor):
            left.bad[slot, first // product.numbers.step] = NAN
        start = slot * left.panel
        for k in range(start + first, start + min(first + block, count)):
            left.magnitudes[k] *= factor
            left.exponents[k] += exponent


@jit
def decode_floor_rows(product: Any, item: int, row0: int, rows: int, k0: int, count: int, left: Any, floors: Any, slot0: int) -> None:
    """decode_rows for floor_step. Rows of a narrow format that follow each other are decoded as one, WIDTH codes at a time."""
    a, form, numbers, panel = product.a, product.form_a, product.numbers, floors.panel
    k_total = a.shape[2]
    straight = product.order.size == 0 and k0 + panel <= k_total
    together = straight and form.narrow == 1 and panel == k_total
    lines, length = (1, rows * panel) if together else (rows, panel)
    piece = WIDTH if form.narrow == 1 else panel
    steps = count // numbers.step
    for slot in range(slot0, slot0 + rows):
        for step_index in range(steps):
            left.bad[slot, step_index] = FINITE
    for line in range(lines):
        first, base = (item * a.shape[1] + row0 + line) * k_total + k0, (slot0 + line) * panel
        if not straight:
            left.codes[:] = 0
            for k in range(count):
                at = ordered(k0 + k, product.order)
                left.codes[k] = a[item, row0 + line, at] if at < k_total else 0
        for begin in range(0, length, piece):
            for k in range(begin, min(begin + piece, length), WIDTH):
                codes, start = (product.flat_a, first + k) if straight else (left.codes, k)
                if straight and start + WIDTH > product.flat_a.size:
                    left.codes[:] = 0
                    for i in range(product.flat_a.size - start):
                        left.codes[i] = product.flat_a[start + i]
                    codes, start = left.codes, 0
                if not decode_floor_elements(codes, start, form, numbers.negate, floors, k - begin, base + k):
                    for i in range(min(WIDTH, length - k)):
                        slot, step_index = (base + k + i) // panel, (base + k + i) % panel // numbers.step
                        worst = badness(code_class(np.int64(codes[start + i]), form))
                        left.bad[slot, step_index] = max(left.bad[slot, step_index], worst)
            top, low, narrow = finish_floor_row(floors, base + begin, min(piece, length - begin), form)
        for slot in range(slot0 + line, slot0 + (rows if together else line + 1)):
            floors.narrow[slot] = narrow
            for step_index in range(steps):
                exponent = 0
                if numbers.block > 0:
                    at = min(k0 + step_index * numbers.step, k_total - 1)
                    code = product.scale_a[item, row0 + slot - slot0, at // numbers.block]
                    if np.isnan(product.scales[code]):
                        left.bad[slot, step_index] = NAN
                    else:
                        exponent = product.scale_exponents[code]
                floors.tops[slot * floors.steps + step_index] = top + exponent
                floors.lows[slot * floors.steps + step_index] = low + exponent
                floors.shifts[slot * floors.steps + step_index] = exponent


@jit
def pack_floor_columns(product: Any, item: int, k0: int, col0: int, columns: int, right: Any, floors: Any) -> Any:
    """pack_columns for floor_step; whether every column's exponents lie near each other.

    Columns past the edge are whatever comes next in memory: nobody reads what they come to.
    """
    b, form, numbers = product.b, product.form_b, product.numbers
    k_total, n_total = b.shape[1], b.shape[2]
    flat = product.flat_b
    right.bad[:] = FINITE
    for k in range(numbers.step):
        at = ordered(k0 + k, product.order)
        width = columns if at < k_total else 0
        codes, first = flat, (item * k_total + at) * n_total + col0
        if width == 0 or (width < WIDTH and first + WIDTH > flat.size):
            codes, first = right.codes, 0
            codes[:] = 0
            for j in range(width):
                codes[j] = b[item, at, col0 + j]
        if not decode_floor_columns(codes, (first,), form, floors, k):
            for j in range(width):
                right.bad[j] = max(right.bad[j], badness(code_class(np.int64(codes[first + j]), form)))
    narrow = finish_floor_columns(floors, numbers.step)
    if numbers.block > 0 and k0 < k_total:
        for j in range(columns):
            code = product.scale_b[item, k0 // numbers.block, col0 + j]
            exponent = product.scale_exponents[code]
            if np.isnan(product.scales[code]):
                right.bad[j] = NAN
                exponent = 0
            floors.tops[j] += exponent
            floors.lows[j] += exponent
            floors.shifts[j] = exponent
    return narrow


@jit
def pack_columns(product: Any, item: int, k0: int, col0: int, columns: int, right: Any) -> None:
    """Fill one step of B. Columns and elements past the edges are zeros."""
    b, form, numbers = product.b, product.form_b, product.numbers
    k_total, n_total = b.shape[1], b.shape[2]
    flat = product.flat_b
    right.bad[:] = FINITE
    for k in range(numbers.step):
        at = ordered(k0 + k, product.order)
        width = columns if at < k_total else 0
        codes, first = flat, (item * k_total + at) * n_total + col0
        if width < WIDTH:
            codes, first = right.codes, 0
            codes[:] = 0
            for j in range(width):
                codes[j] = b[item, at, col0 + j]
        if not decode_columns(codes, (first,), form, right, k):
            for j in range(width):
                right.bad[j] = max(right.bad[j], badness(code_class(np.int64(codes[first + j]), form)))
    if numbers.block > 0:
        scale_columns(product, item, k0, col0, columns, right)


@jit
def scale_columns(product: Any, item: int, k0: int, col0: int, columns: int, right: Any) -> None:
    """Multiply one step of B by its block scales."""
    block, step = product.numbers.block, product.numbers.step
    for first in range(0, min(step, product.b.shape[1] - k0), block):
        for j in range(columns):
            look_up_scale(product, product.scale_b[item, (k0 + first) // block, col0 + j], right, j)
        apply_scales(first, first + min(block, step), right)


@inlined
def look_up_scale(product: Any, code: int, right: Any, lane: int) -> None:
    """The scale of a column for apply_scales."""
    factor = product.scales[code]
    right.factors[lane] = factor
    right.powers[lane] = product.scale_exponents[code]
    if np.isnan(factor):
        right.bad[lane] = NAN


@inlined
def apply_scales(first: int, last: int, right: Any) -> None:
    """Multiply elements first .. last - 1 of every column by its scale."""
    for k in range(first, last):
        for j in range(WIDTH):
            right.planes[k * 2 * WIDTH + j] *= right.factors[j]
            right.planes[k * 2 * WIDTH + WIDTH + j] *= right.factors[j]
            right.exponents[k * WIDTH + j] += right.powers[j]


@jit
def resolve_specials(
    product: Any, item: int, row: int, k0: int, col0: int, columns: Any, count: int, right: Any, chain: Any, cell: int
) -> None:
    """right.special[i]: the infinity or NaN that a step with something not finite comes to in column columns[i].

    Section 5: a NaN anywhere, 0 x infinity, or infinities of both signs give NaN, any other infinity stays.
    """
    for i in range(count):
        held = np.float64(chain[cell + columns[i]])
        dead = np.isnan(held) or right.bad[columns[i]] == NAN
        right.special[i] = np.nan if dead else ieee_sum(product, item, row, k0, col0 + columns[i], held)


@jit
def ieee_sum(product: Any, item: int, row: int, k0: int, column: int, held: float) -> Any:
    """The sum of one step's products by class, and the accumulator: right in its infinities and NaN alone."""
    a, b, numbers = product.a, product.b, product.numbers
    total = held
    for k in range(numbers.step):
        at = ordered(k0 + k, product.order)
        if at < a.shape[2]:
            left = code_class(np.int64(a[item, row, at]), product.form_a)
            right = code_class(np.int64(b[item, at, column]), product.form_b)
            total += -left * right if numbers.negate == 1 else left * right
            if numbers.block > 0:
                scale = product.scales[product.scale_a[item, row, at // numbers.block]]
                total += (scale * 0.0) + (product.scales[product.scale_b[item, at // numbers.block, column]] * 0.0)
    return total


@jit
def wide_copies(left: Any, at: int, step: int, items: int, right: Any) -> Any:
    """A step of A and B for a float64 carrier: for the rare rows whose accumulators a float32 carrier cannot hold."""
    for item in range(items):
        for k in range(step):
            source, target = at + item * left.stride + k, item * step + k
            left.wide[target] = left.magnitudes[source]
            left.wide_exponents[target] = left.exponents[source]
            left.wide_sides[target] = left.sides[source]
    for i in range(right.planes.size):
        right.wide[i] = right.planes[i]
    return Rows(
        step, step, left.codes, left.places, left.wide, left.wide_exponents, left.wide_sides, left.bad, left.wide, left.wide_exponents,
        left.wide_sides,
    ), Columns(
        right.codes, right.wide, right.exponents, right.bad, right.odd, right.every, right.special, right.factors, right.powers, right.wide
    )  # fmt: skip


@jit
def step_rows(
    product: Any, item: int, row0: int, first: int, last: int, k0: int, col0: int, columns: int, left: Any, start: int, right: Any,
    chain: Any, base: int, dead: Any,
) -> None:  # fmt: skip
    """One step of the datapath for rows first .. last - 1 of a task against WIDTH columns: accumulators in chain[base + row * WIDTH:]."""
    numbers = product.numbers
    step_index = start // numbers.step
    bad_count = 0
    for j in range(columns):
        if right.bad[j] != FINITE:
            right.odd[bad_count] = j
            bad_count += 1
    for row in range(first, last):
        if dead[row] == 1:
            continue
        cell, at, worst = base + row * WIDTH, row * left.panel + start, left.bad[row, step_index]
        if worst == NAN:
            kill_row(chain, cell)
            dead[row] = 1
            continue
        odd, count = (right.every, columns) if worst == INFINITE else (right.odd, bad_count)
        if count > 0:
            resolve_specials(product, item, row0 + row, k0, col0, odd, count, right, chain, cell)
        if fused_step(chain, cell, left, at, right, numbers, product.result) == TOO_WIDE:
            wide_left, wide_right = wide_copies(left, at, numbers.step, 1, right)
            fused_step(chain, cell, wide_left, 0, wide_right, numbers, product.result)
        for i in range(count):
            chain[cell + odd[i]] = right.special[i]


@jit
def floor_rows(
    product: Any, item: int, row0: int, rows: int, k0: int, col0: int, columns: int, scratch: Any, panel0: int, start: int, count: int,
    narrow: Any, base: int, dead: Any,
) -> None:  # fmt: skip
    """step_rows for all rows of a task, ROWS at a time, by one multiply-add a product wherever that does, else by the general path.

    `narrow` says whether the step of B is packed for the former, and A decoded. What is not finite takes the latter.
    """
    left, right, floors, numbers, chain = scratch.left, scratch.right, scratch.floors, product.numbers, scratch.chain
    step_index = start // numbers.step
    for j in range(columns if narrow else 0):
        narrow &= right.bad[j] == FINITE
    for upper in range(0, rows, ROWS):
        last, fits = min(upper + ROWS, rows), narrow
        if narrow:
            for row in range(upper, last):
                fits &= (floors.left.narrow[row] != 0) & (left.bad[row, step_index] == FINITE)
        if fits:
            done = floor_step(
                chain, base, floors.left, upper, last - 1, start, step_index, floors.right, floors.work, numbers, product.result
            )
            if done != TOO_WIDE:
                continue
        if floors.ready[0] == 0:
            decode_rows(product, item, row0, rows, panel0, count, left, 0)
        if floors.ready[1] == 0:
            pack_columns(product, item, k0, col0, columns, right)
        floors.ready[:] = 1
        step_rows(product, item, row0, upper, last, k0, col0, columns, left, start, right, chain, base, dead)


@jit
def floor_scratch(at: int, rows: int, panel: int, step: int, carrier: Any) -> Any:
    """Floors from an address on, and the address after it."""
    steps = panel // step
    values, at = carve(at, rows * panel + WIDTH, carrier)
    exponents, at = carve(at, rows * panel + WIDTH, np.int8)
    keys, at = carve(at, rows * panel + WIDTH, np.int8)
    tops, at = carve(at, rows * steps, np.int32)
    lows, at = carve(at, rows * steps, np.int32)
    shifts, at = carve(at, rows * steps, np.int32)
    narrow, at = carve(at, rows, np.uint8)
    raw_exponents, at = carve(at, panel + WIDTH, np.int16)
    raw_places, at = carve(at, panel + WIDTH, np.int16)
    left = FloorRows(panel, steps, values, exponents, keys, tops, lows, shifts, narrow, raw_exponents, raw_places)
    values, at = carve(at, step * WIDTH, carrier)
    exponents, at = carve(at, step * WIDTH, np.int8)
    keys, at = carve(at, step * WIDTH, np.int8)
    tops, at = carve(at, WIDTH, np.int32)
    lows, at = carve(at, WIDTH, np.int32)
    shifts, at = carve(at, WIDTH, np.int32)
    raw_exponents, at = carve(at, step * WIDTH, np.int16)
    raw_places, at = carve(at, step * WIDTH, np.int16)
    right = FloorColumns(values, exponents, keys, tops, lows, shifts, raw_exponents, raw_places)
    work, at = carve(at, WORK, np.int8)
    ready, at = carve(at, 2, np.uint8)
    return Floors(left, right, work, ready), at


@jit
def fused_scratch(base: int, call: Any, numbers: Any, items: int, codes: Any, carrier: Any) -> Any:
    """What a task works in, from address `base` on, and the address after it."""
    step, rows = numbers.step, call.rows * items
    elements = min(padded(PANEL, step), padded(call.k, numbers.k_instruction))
    panel = elements if items > 1 else padded(elements, WIDTH)
    row_codes, at = carve(base, padded(panel, WIDTH), codes)
    places, at = carve(at, call.rows * panel + WIDTH, np.int32)
    magnitudes, at = carve(at, rows * panel + WIDTH, carrier)
    exponents, at = carve(at, rows * panel + WIDTH, np.int16)
    sides, at = carve(at, rows * panel + WIDTH, np.int32)
    bad, at = carve(at, (rows, elements // step), np.uint8)
    wide, at = carve(at, items * step, np.float64)
    wide_exponents, at = carve(at, items * step, np.int16)
    wide_sides, at = carve(at, items * step, np.int32)
    left = Rows(
        panel, call.rows * panel, row_codes, places, magnitudes, exponents, sides, bad, wide, wide_exponents, wide_sides,
    )  # fmt: skip
    column_codes, at = carve(at, WIDTH, codes)
    planes, at = carve(at, step * 2 * WIDTH, carrier)
    column_exponents, at = carve(at, step * WIDTH, np.int16)
    bad_columns, at = carve(at, WIDTH, np.uint8)
    odd, at = carve(at, WIDTH, np.int64)
    every, at = carve(at, WIDTH, np.int64)
    special, at = carve(at, WIDTH, np.float32)
    factors, at = carve(at, WIDTH, carrier)
    powers, at = carve(at, WIDTH, np.int16)
    wide_planes, at = carve(at, step * 2 * WIDTH, np.float64)
    right = Columns(column_codes, planes, column_exponents, bad_columns, odd, every, special, factors, powers, wide_planes)
    total, at = carve(at, call.tiles * call.rows * WIDTH, np.float32)
    chain = total
    if numbers.restart > 0:
        chain, at = carve(at, call.tiles * call.rows * WIDTH, np.float32)
    part = total
    if numbers.promote > 0:
        part, at = carve(at, call.tiles * call.rows * WIDTH, np.float32)
    dead, at = carve(at, (call.tiles, call.rows), np.uint8)
    floors, at = floor_scratch(at, rows if items == 1 and numbers.floors == 1 else 0, elements, step, carrier)
    return Scratch(left, right, total, chain, part, dead, floors), at


@jit
def fused_tasks(call: Any, product: Any, scratch: Any) -> None:
    """Tasks of d = a @ b + d."""
    before = enter_rounding(TOWARD_ZERO)
    a, b, d, numbers, result = product.a, product.b, product.d, product.numbers, product.result
    left, right, total, chain, part, dead, floors = scratch
    step = numbers.step
    k_padded = padded(a.shape[2], numbers.k_instruction)
    elements = min(padded(PANEL, step), k_padded)
    for k in range(left.panel):
        left.places[k] = k % step * 2 * WIDTH
    for j in range(WIDTH):
        right.every[j] = j
        floors.right.shifts[j] = 0
    for task in range(call.first, call.last):
        item, row0, rows, tile0, tiles = task_bounds(task, d.shape[1], d.shape[2], call)
        load_tiles(d, product.flat_d, item, row0, rows, tile0, tiles, result, total)
        dead[:] = 0
        if numbers.restart > 0:
            chain[:] = 0.0
        if numbers.promote > 0:
            part[:] = 0.0
        for panel0 in range(0, k_padded, elements):
            count = min(elements, k_padded - panel0)
            floors.ready[0] = 0
            if numbers.floors == 1:
                decode_floor_rows(product, item, row0, rows, panel0, count, left, floors.left, 0)
            for tile in range(tiles):
                if stopped(call):
                    leave_rounding(before)
                    return
                base, col0 = tile * rows * WIDTH, (tile0 + tile) * WIDTH
                columns = min(WIDTH, b.shape[2] - col0)
                for start in range(0, count, step):
                    k0 = panel0 + start
                    floors.ready[1] = 0
                    narrow = False
                    if numbers.floors == 1:
                        narrow = pack_floor_columns(product, item, k0, col0, columns, right, floors.right)
                    floor_rows(product, item, row0, rows, k0, col0, columns, scratch, panel0, start, count, narrow, base, dead[tile])
                    end_chain(total, part, chain, base, rows, k0 + step, k_padded, numbers, result, dead[tile])
        store_tiles(total, item, row0, rows, tile0, tiles, result, d, product.flat_d)
    leave_rounding(before)


@jit
def pack_items(product: Any, item0: int, k0: int, right: Any) -> None:
    """pack_columns for ITEMS items side by side, SIDE columns each; past the last item that one again."""
    b, form, numbers = product.b, product.form_b, product.numbers
    batch, k_total, columns = b.shape
    items = (
        min(item0, batch - 1) * k_total, min(item0 + 1, batch - 1) * k_total, min(item0 + 2, batch - 1) * k_total,
        min(item0 + 3, batch - 1) * k_total,
    )  # fmt: skip
    right.bad[:] = FINITE
    for k in range(numbers.step):
        at = ordered(k0 + k, product.order)
        codes, starts = product.flat_b, ((items[0] + at) * SIDE, (items[1] + at) * SIDE, (items[2] + at) * SIDE, (items[3] + at) * SIDE)
        if at >= k_total or columns < SIDE:
            codes, starts = right.codes, (0, SIDE, 2 * SIDE, 3 * SIDE)
            codes[:] = 0
            for place in range(ITEMS if at < k_total else 0):
                for j in range(columns):
                    codes[place * SIDE + j] = b[min(item0 + place, batch - 1), at, j]
        if not decode_columns(codes, starts, form, right, k):
            for place in range(ITEMS):
                for j in range(SIDE):
                    lane, code = place * SIDE + j, np.int64(codes[starts[place] + j])
                    right.bad[lane] = max(right.bad[lane], badness(code_class(code, form)))
    if numbers.block > 0:
        scale_items(product, item0, k0, right)


@jit
def scale_items(product: Any, item0: int, k0: int, right: Any) -> None:
    """scale_columns for ITEMS items side by side."""
    block, step = product.numbers.block, product.numbers.step
    batch, k_total, columns = product.b.shape
    for first in range(0, min(step, k_total - k0), block):
        for place in range(ITEMS):
            for j in range(columns):
                code = product.scale_b[min(item0 + place, batch - 1), (k0 + first) // block, j]
                look_up_scale(product, code, right, place * SIDE + j)
        apply_scales(first, first + min(block, step), right)


@jit
def resolve_items(
    product: Any, item0: int, row: int, slot: int, slots: int, step_index: int, k0: int, left: Any, right: Any, chain: Any, cell: int
) -> int:
    """The lanes of a row in which a step has something not finite: how many, which (right.odd), and what they come to."""
    count = 0
    for place in range(ITEMS):
        worst = left.bad[slot + place * slots, step_index]
        item = min(item0 + place, product.b.shape[0] - 1)
        for j in range(product.b.shape[2]):
            lane = place * SIDE + j
            if worst == FINITE and right.bad[lane] == FINITE:
                continue
            held = np.float64(chain[cell + lane])
            dead = np.isnan(held) or worst == NAN or right.bad[lane] == NAN
            right.special[count] = np.nan if dead else ieee_sum(product, item, row, k0, j, held)
            right.odd[count] = lane
            count += 1
    return count


@jit
def step_items(product: Any, item0: int, row0: int, rows: int, k0: int, left: Any, start: int, right: Any, chain: Any) -> None:
    """step_rows for ITEMS items side by side."""
    numbers = product.numbers
    step_index = start // numbers.step
    slots = left.bad.shape[0] // ITEMS
    worst = FINITE
    for lane in range(WIDTH):
        worst = max(worst, right.bad[lane])
    for row in range(rows):
        cell, at = row * WIDTH, row * left.panel + start
        count, bad = 0, worst
        for place in range(ITEMS):
            bad = max(bad, left.bad[row + place * slots, step_index])
        if bad != FINITE:
            count = resolve_items(product, item0, row0 + row, row, slots, step_index, k0, left, right, chain, cell)
        if side_by_side_step(chain, cell, left, at, right, numbers, product.result) == TOO_WIDE:
            wide_left, wide_right = wide_copies(left, at, numbers.step, ITEMS, right)
            side_by_side_step(chain, cell, wide_left, 0, wide_right, numbers, product.result)
        for i in range(count):
            chain[cell + right.odd[i]] = right.special[i]


@jit
def side_by_side_tasks(call: Any, product: Any, scratch: Any) -> None:
    """Tasks of a batch whose items have at most SIDE columns, ITEMS of them in a tile."""
    before = enter_rounding(TOWARD_ZERO)
    d, numbers, result = product.d, product.numbers, product.result
    left, right, total, chain, part, dead, _ = scratch
    step = numbers.step
    k_padded = padded(call.k, numbers.k_instruction)
    elements = min(padded(PANEL, step), k_padded)
    for k in range(left.places.size):
        left.places[k] = k % left.panel % step * 2 * WIDTH
    runs = product.order.size == 0 and left.panel == call.k
    for task in range(call.first, call.last):
        item0, row0, rows = item_bounds(task, call)
        load_items(d, product.flat_d, item0, row0, rows, result, total)
        if numbers.restart > 0:
            chain[:] = 0.0
        if numbers.promote > 0:
            part[:] = 0.0
        for panel0 in range(0, k_padded, elements):
            if stopped(call):
                leave_rounding(before)
                return
            count = min(elements, k_padded - panel0)
            for place in range(ITEMS):
                item, slot0 = min(item0 + place, call.batch - 1), place * call.rows
                if runs:
                    decode_run(product, item, row0, rows, left, slot0)
                else:
                    decode_rows(product, item, row0, rows, panel0, count, left, slot0)
            for start in range(0, count, step):
                k0 = panel0 + start
                pack_items(product, item0, k0, right)
                step_items(product, item0, row0, rows, k0, left, start, right, chain)
                end_chain(total, part, chain, 0, rows, k0 + step, k_padded, numbers, result, dead[0])
        store_items(total, item0, row0, rows, result, d, product.flat_d)
    leave_rounding(before)


def fused_entry(variant: Variant) -> Callable[[Any], None]:
    """The function of one address: fused_tasks on a record."""
    return _entry(variant, fused_tasks, 1)


def side_by_side_entry(variant: Variant) -> Callable[[Any], None]:
    """The function of one address: side_by_side_tasks on a record."""
    return _entry(variant, side_by_side_tasks, ITEMS)


def _entry(variant: Variant, tasks: Callable[..., None], items: int) -> Callable[[Any], None]:
    codes, carrier = variant.operand.type, variant.carrier.type

    def run(pointer: Any) -> None:
        call = fields_at(address_of(pointer), Call)
        numbers = fields_at(call.numbers, StepNumbers)
        base = allocate(fused_scratch(0, call, numbers, items, codes, carrier)[1] + CACHE_LINE)
        if base == 0:
            report_no_memory(pointer)
            return
        product = Product(
            array_at(call.a, (call.batch, call.m, call.k), codes),
            array_at(call.b, (call.batch, call.k, call.n), codes),
            array_at(call.a, call.batch * call.m * call.k, codes),
            array_at(call.b, call.batch * call.k * call.n, codes),
            array_at(call.scale_a, (call.batch, call.m, call.blocks), np.uint8),
            array_at(call.scale_b, (call.batch, call.blocks, call.n), np.uint8),
            array_at(call.d, (call.batch, call.m, call.n), np.float32),
            array_at(call.d, call.batch * call.m * call.n, np.float32),
            array_at(call.order, call.order_size, np.int64),
            fields_at(call.form_a, FormatNumbers),
            fields_at(call.form_b, FormatNumbers),
            array_at(call.factors, 256, np.float64),
            array_at(call.exponents, 256, np.int16),
            numbers,
            fields_at(call.result, ResultNumbers),
        )
        tasks(call, product, fused_scratch(base, call, numbers, items, codes, carrier)[0])
        release(base)

    return run
