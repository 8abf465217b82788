"""Block scaling with several scales in a step: section 4 of the arithmetic, on tiles of WIDTH columns.

Groups of products are summed exactly in float32 (a group's sum is a small multiple of the smallest product: plan.py
refuses operands for which 24 bits would not do), then scaled exactly and truncated in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mmabits.emulator.engine.jit import (  # fmt: skip
    CACHE_LINE,
    address_of,
    allocate,
    array_at,
    carve,
    enter_rounding,
    fields_at,
    inlined,
    jit,
    leave_rounding,
    release,
)
from mmabits.emulator.engine.plan import NO_EXPONENT, TOWARD_ZERO, FormatNumbers, ResultNumbers, StepNumbers, StepPowers
from mmabits.emulator.engine.record import Call, Variant
from mmabits.emulator.engine.steps import (
    bound_group_columns,
    decode_group_columns,
    decode_group_elements,
    finish_group_columns,
    grouped_side_by_side_step,
    grouped_step,
)
from mmabits.emulator.engine.tasks import ITEMS, PANEL, SIDE, WIDTH
from mmabits.emulator.engine.tiles import (
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

LARGEST, SMALLEST = 0, 1
"""Places of a step's bounds on the powers of its scales."""
assert ITEMS == 4, "pack_group_items writes out the four items of a tile"


class ScaledProduct(NamedTuple):
    """What is multiplied, and how. Arrays are contiguous."""

    a: Any
    """(batch, M, K) codes of at most 8 bits."""
    b: Any
    """(batch, K, N) codes of at most 8 bits."""
    scale_a: Any
    """(batch, M, blocks) codes."""
    scale_b: Any
    """(batch, blocks, N) codes."""
    flat_a: Any
    flat_b: Any
    """The elements' codes as one row each."""
    d: Any
    """(batch, M, N) accumulators in, results out. Its shape: the elements, which may be float16, are got by steps.py from `flat_d`."""
    flat_d: Any
    form_a: Any
    form_b: Any
    """plan.FormatNumbers."""
    scales: Any
    scale_powers: Any
    scale_exponents: Any
    """Value, power of two (0 for zero and NaN) and exponent of every scale code."""
    powers: Any
    """plan.step_powers."""
    unit: Any
    """What products of elements are multiples of, where they are bytes; 1."""
    numbers: Any
    """plan.StepNumbers."""
    result: Any
    """plan.ResultNumbers."""


class GroupRows(NamedTuple):
    """A panel of A, flat, as grouped_step reads it."""

    panel_groups: int
    """Groups of a row,"""
    steps: int
    """and steps."""
    stride: int
    """Rows of one item."""
    codes: Any
    """Scratch: WIDTH codes."""
    nonzero: Any
    """Scratch: for every WIDTH elements of a row, which are not zero."""
    blocks: Any
    """Scratch: the block of scales of every group."""
    values: Any
    """Signed elements: float32, or bytes, which are multiples of the format's smallest number and have steps.OFFSET added."""
    factors: Any
    powers: Any
    """A group's scale and its power of two."""
    masks: Any
    """Which elements of a group are not zero."""
    bounds: Any
    """For each row and step the largest and the smallest exponent of scales that are not zero."""
    bad: Any
    """(rows, steps): 1 where a scale is NaN."""


class GroupColumns(NamedTuple):
    """One step of B, like GroupRows, with WIDTH columns to each k, group and bound; flat."""

    codes: Any
    values: Any
    factors: Any
    powers: Any
    masks: Any
    exponents: Any
    bounds: Any
    bad: Any
    odd: Any
    """Scratch: the columns with a NaN scale."""
    raw: Any
    """Scratch: bytes, row after row; in `values` four of a column stand together, and no offset is added."""
    offsets: Any
    """What the offset of A adds to the sums of a group of bytes, taken away."""


class GroupScratch(NamedTuple):
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


@jit
def decode_group_rows(product: Any, item: int, row0: int, rows: int, k0: int, count: int, left: Any, slot0: int) -> None:
    """Fill a panel of A, from row `slot0` of it on."""
    a, numbers = product.a, product.numbers
    k_total = a.shape[2]
    size = numbers.group
    steps, groups, whole = count // numbers.step, numbers.step // size, WIDTH % size == 0
    steps_of_panel = left.panel_groups // groups
    for group in range(count // size):
        k = k0 + group * size
        left.blocks[group] = k // numbers.block if k < k_total else -1
    for row in range(rows):
        slot = slot0 + row
        first, row_group = (item * a.shape[1] + row0 + row) * k_total + k0, slot * left.panel_groups
        for k in range(0, count, WIDTH):
            codes, at = product.flat_a, first + k
            if k0 + k + WIDTH > k_total:
                codes, at = left.codes, 0
                codes[:] = 0
                for i in range(k_total - k0 - k):
                    codes[i] = product.flat_a[first + k + i]
            left.nonzero[k // WIDTH] = decode_group_elements(codes, at, product.form_a, numbers.negate, left.values, row_group * size + k)
        for step_index in range(steps):
            left.bad[slot, step_index] = 0
            largest, smallest = np.int64(NO_EXPONENT), np.int64(-NO_EXPONENT)
            for group in range(step_index * groups, (step_index + 1) * groups):
                block = left.blocks[group]
                code = product.scale_a[item, row0 + row, block] if block >= 0 else numbers.unit_scale
                factor, power = product.scales[code], product.scale_powers[code]
                left.masks[row_group + group] = mask_of(left.nonzero, group * size, size, whole)
                left.factors[row_group + group] = factor * product.unit
                left.powers[row_group + group] = power
                if np.isnan(factor):
                    left.bad[slot, step_index] = 1
                if power > 0.0:
                    exponent = np.int64(product.scale_exponents[code])
                    largest, smallest = max(largest, exponent), min(smallest, exponent)
            at = 2 * (slot * steps_of_panel + step_index)
            left.bounds[at + LARGEST] = largest
            left.bounds[at + SMALLEST] = smallest


@inlined
def mask_of(nonzero: Any, first: int, size: int, whole: bool) -> Any:
    """`size` bits of a row of bits, WIDTH of them a number; `whole` where none of such parts lie in two numbers."""
    if whole:
        return (nonzero[first // WIDTH] >> (first % WIDTH)) & ((1 << size) - 1)
    mask = np.int64(0)
    for k in range(size):
        mask |= ((nonzero[(first + k) // WIDTH] >> ((first + k) % WIDTH)) & 1) << k
    return mask


@jit
def pack_group_columns(product: Any, item: int, k0: int, col0: int, columns: int, right: Any) -> None:
    """Fill one step of B. Columns and elements past the edges are zeros."""
    b, numbers = product.b, product.numbers
    k_total, n_total = b.shape[1], b.shape[2]
    right.masks[:] = 0
    group = place = 0
    for k in range(numbers.step):
        codes, first = product.flat_b, (item * k_total + k0 + k) * n_total + col0
        width = columns if k0 + k < k_total else 0
        if width < WIDTH:
            codes = right.codes
            codes[:] = 0
            for j in range(width):
                codes[j] = product.flat_b[first + j]
            first = 0
        decode_group_columns(codes, (first,), product.form_b, right, k, group, place)
        group, place = (group, place + 1) if place + 1 < numbers.group else (group + 1, 0)
    finish_group_columns(right, numbers.step, numbers.group)
    pack_group_scales(product, item, k0, col0, columns, right)


@jit
def pack_group_items(product: Any, item0: int, k0: int, right: Any) -> None:
    """pack_group_columns for ITEMS items side by side, SIDE columns each; past the last item that one again."""
    b, numbers = product.b, product.numbers
    batch, k_total, columns = b.shape
    items = (
        min(item0, batch - 1) * k_total, min(item0 + 1, batch - 1) * k_total, min(item0 + 2, batch - 1) * k_total,
        min(item0 + 3, batch - 1) * k_total,
    )  # fmt: skip
    right.masks[:] = 0
    group = element = 0
    for k in range(numbers.step):
        at = k0 + k
        codes, starts = product.flat_b, ((items[0] + at) * SIDE, (items[1] + at) * SIDE, (items[2] + at) * SIDE, (items[3] + at) * SIDE)
        if at >= k_total or columns < SIDE:
            codes, starts = right.codes, (0, SIDE, 2 * SIDE, 3 * SIDE)
            codes[:] = 0
            for place in range(ITEMS if at < k_total else 0):
                for j in range(columns):
                    codes[place * SIDE + j] = b[min(item0 + place, batch - 1), at, j]
        decode_group_columns(codes, starts, product.form_b, right, k, group, element)
        group, element = (group, element + 1) if element + 1 < numbers.group else (group + 1, 0)
    finish_group_columns(right, numbers.step, numbers.group)
    for group in range(numbers.step // numbers.group):
        k = k0 + group * numbers.group
        block = k // numbers.block
        for place in range(ITEMS):
            for j in range(SIDE):
                code = numbers.unit_scale
                if k < k_total and j < columns:
                    code = product.scale_b[min(item0 + place, batch - 1), block, j]
                right.factors[group * WIDTH + place * SIDE + j] = product.scales[code]
                right.powers[group * WIDTH + place * SIDE + j] = product.scale_powers[code]
                right.exponents[group * WIDTH + place * SIDE + j] = product.scale_exponents[code]
    bound_group_columns(right, numbers.step // numbers.group)


@jit
def pack_group_scales(product: Any, item: int, k0: int, col0: int, columns: int, right: Any) -> None:
    """The scales of one step of B, and what bounds them."""
    numbers = product.numbers
    k_total = product.b.shape[1]
    for group in range(numbers.step // numbers.group):
        k, first = k0 + group * numbers.group, group * WIDTH
        width = columns if k < k_total else 0
        for j in range(width):
            code = product.scale_b[item, k // numbers.block, col0 + j]
            right.factors[first + j] = product.scales[code]
            right.powers[first + j] = product.scale_powers[code]
            right.exponents[first + j] = product.scale_exponents[code]
        for j in range(width, WIDTH):
            right.factors[first + j] = product.scales[numbers.unit_scale]
            right.powers[first + j] = product.scale_powers[numbers.unit_scale]
            right.exponents[first + j] = product.scale_exponents[numbers.unit_scale]
    bound_group_columns(right, numbers.step // numbers.group)


@jit
def grouped_rows(product: Any, rows: int, left: Any, start: int, right: Any, chain: Any, base: int, dead: Any) -> None:
    """One step for every row of a task against WIDTH columns, two rows at a time: accumulators in chain[base + row * WIDTH:]."""
    step_index = start // product.numbers.step
    bad_count = 0
    for j in range(WIDTH):
        if right.bad[j] != 0:
            right.odd[bad_count] = j
            bad_count += 1
    for row in range(rows):
        if dead[row] == 0 and left.bad[row, step_index] != 0:
            kill_row(chain, base + row * WIDTH)
            dead[row] = 1
    for upper in range(0, rows, 2):
        pair = (upper, min(upper + 1, rows - 1))
        if dead[pair[0]] == 1 and dead[pair[1]] == 1:
            continue
        cells = (base + pair[0] * WIDTH, base + pair[1] * WIDTH)
        grouped_step(chain, cells, left, pair, step_index, right, product.powers, product.numbers, product.result)
        for i in range(bad_count):
            chain[cells[0] + right.odd[i]] = np.nan
            chain[cells[1] + right.odd[i]] = np.nan


@jit
def grouped_items(product: Any, rows: int, left: Any, start: int, right: Any, chain: Any) -> None:
    """grouped_rows for ITEMS items side by side."""
    step_index = start // product.numbers.step
    bad_columns = 0
    for lane in range(WIDTH):
        bad_columns += right.bad[lane]
    for upper in range(0, rows, 2):
        pair = (upper, min(upper + 1, rows - 1))
        grouped_side_by_side_step(
            chain, (pair[0] * WIDTH, pair[1] * WIDTH), left, pair, step_index, right, product.powers, product.numbers, product.result
        )
        for row in pair:
            for place in range(ITEMS):
                bad_row = left.bad[row + place * left.stride, step_index]
                if bad_row != 0 or bad_columns > 0:
                    for lane in range(place * SIDE, (place + 1) * SIDE):
                        if bad_row != 0 or right.bad[lane] != 0:
                            chain[row * WIDTH + lane] = np.nan


@jit
def grouped_scratch(base: int, call: Any, numbers: Any, items: int, codes: Any, elements: Any) -> Any:
    """What a task works in, from address `base` on, and the address after it."""
    step, rows = numbers.step, call.rows * items
    groups = step // numbers.group
    panel = min(padded(PANEL, step), padded(call.k, numbers.k_instruction))
    panel_groups, steps = panel // numbers.group, panel // step
    row_codes, at = carve(base, WIDTH, codes)
    nonzero, at = carve(at, panel // WIDTH + 1, np.int64)
    blocks, at = carve(at, panel_groups, np.int64)
    values, at = carve(at, rows * panel + WIDTH, elements)
    factors, at = carve(at, rows * panel_groups, np.float64)
    powers, at = carve(at, rows * panel_groups, np.float64)
    masks, at = carve(at, rows * panel_groups, np.int64)
    bounds, at = carve(at, rows * steps * 2, np.int32)
    bad, at = carve(at, (rows, steps), np.uint8)
    left = GroupRows(panel_groups, steps, call.rows, row_codes, nonzero, blocks, values, factors, powers, masks, bounds, bad)
    column_codes, at = carve(at, WIDTH, codes)
    values, at = carve(at, step * WIDTH, elements)
    factors, at = carve(at, groups * WIDTH, np.float64)
    powers, at = carve(at, groups * WIDTH, np.float64)
    masks, at = carve(at, groups * WIDTH, np.int64)
    exponents, at = carve(at, groups * WIDTH, np.int16)
    bounds, at = carve(at, 2 * WIDTH, np.int32)
    bad_columns, at = carve(at, WIDTH, np.uint8)
    odd, at = carve(at, WIDTH, np.int64)
    raw, at = carve(at, step * WIDTH, np.int8)
    offsets, at = carve(at, groups * WIDTH, np.int32)
    right = GroupColumns(column_codes, values, factors, powers, masks, exponents, bounds, bad_columns, odd, raw, offsets)
    total, at = carve(at, call.tiles * call.rows * WIDTH, np.float32)
    chain = total
    if numbers.restart > 0:
        chain, at = carve(at, call.tiles * call.rows * WIDTH, np.float32)
    part = total
    if numbers.promote > 0:
        part, at = carve(at, call.tiles * call.rows * WIDTH, np.float32)
    dead, at = carve(at, (call.tiles, call.rows), np.uint8)
    return GroupScratch(left, right, total, chain, part, dead), at


@jit
def grouped_tasks(call: Any, product: Any, scratch: Any) -> None:
    """Tasks of d = a @ b + d."""
    before = enter_rounding(TOWARD_ZERO)
    a, b, d, numbers, result = product.a, product.b, product.d, product.numbers, product.result
    left, right, total, chain, part, dead = scratch
    step = numbers.step
    k_padded = padded(a.shape[2], numbers.k_instruction)
    panel = min(padded(PANEL, step), k_padded)
    for task in range(call.first, call.last):
        item, row0, rows, tile0, tiles = task_bounds(task, d.shape[1], d.shape[2], call)
        load_tiles(d, product.flat_d, item, row0, rows, tile0, tiles, result, total)
        dead[:] = 0
        if numbers.restart > 0:
            chain[:] = 0.0
        if numbers.promote > 0:
            part[:] = 0.0
        for panel0 in range(0, k_padded, panel):
            count = min(panel, k_padded - panel0)
            decode_group_rows(product, item, row0, rows, panel0, count, left, 0)
            for tile in range(tiles):
                if stopped(call):
                    leave_rounding(before)
                    return
                base, col0 = tile * rows * WIDTH, (tile0 + tile) * WIDTH
                columns = min(WIDTH, b.shape[2] - col0)
                for start in range(0, count, step):
                    pack_group_columns(product, item, panel0 + start, col0, columns, right)
                    grouped_rows(product, rows, left, start, right, chain, base, dead[tile])
                    end_chain(total, part, chain, base, rows, panel0 + start + step, k_padded, numbers, result, dead[tile])
        store_tiles(total, item, row0, rows, tile0, tiles, result, d, product.flat_d)
    leave_rounding(before)


@jit
def grouped_side_by_side_tasks(call: Any, product: Any, scratch: Any) -> None:
    """Tasks of a batch whose items have at most SIDE columns, ITEMS of them in a tile."""
    before = enter_rounding(TOWARD_ZERO)
    d, numbers, result = product.d, product.numbers, product.result
    left, right, total, chain, part, dead = scratch
    step = numbers.step
    k_padded = padded(call.k, numbers.k_instruction)
    panel = min(padded(PANEL, step), k_padded)
    for task in range(call.first, call.last):
        item0, row0, rows = item_bounds(task, call)
        load_items(d, product.flat_d, item0, row0, rows, result, total)
        if numbers.restart > 0:
            chain[:] = 0.0
        if numbers.promote > 0:
            part[:] = 0.0
        for panel0 in range(0, k_padded, panel):
            if stopped(call):
                leave_rounding(before)
                return
            count = min(panel, k_padded - panel0)
            for place in range(ITEMS):
                decode_group_rows(product, min(item0 + place, call.batch - 1), row0, rows, panel0, count, left, place * call.rows)
            for start in range(0, count, step):
                pack_group_items(product, item0, panel0 + start, right)
                grouped_items(product, rows, left, start, right, chain)
                end_chain(total, part, chain, 0, rows, panel0 + start + step, k_padded, numbers, result, dead[0])
        store_items(total, item0, row0, rows, result, d, product.flat_d)
    leave_rounding(before)


def grouped_entry(variant: Variant) -> Callable[[Any], None]:
    """The function of one address: grouped_tasks on a record."""
    return _entry(variant, grouped_tasks, 1, np.float32)


def grouped_side_by_side_entry(variant: Variant) -> Callable[[Any], None]:
    """The function of one address: grouped_side_by_side_tasks on a record."""
    return _entry(variant, grouped_side_by_side_tasks, ITEMS, np.float32)


def bytes_entry(variant: Variant) -> Callable[[Any], None]:
    """grouped_entry for elements that are held in bytes."""
    return _entry(variant, grouped_tasks, 1, np.int8)


def bytes_side_by_side_entry(variant: Variant) -> Callable[[Any], None]:
    """grouped_side_by_side_entry for elements that are held in bytes."""
    return _entry(variant, grouped_side_by_side_tasks, ITEMS, np.int8)


def _entry(variant: Variant, tasks: Callable[..., None], items: int, elements: Any) -> Callable[[Any], None]:
    codes, in_bytes = variant.operand.type, elements == np.int8

    def run(pointer: Any) -> None:
        call = fields_at(address_of(pointer), Call)
        numbers = fields_at(call.numbers, StepNumbers)
        powers = fields_at(call.powers, StepPowers)
        base = allocate(grouped_scratch(np.int64(0), call, numbers, items, codes, elements)[1] + CACHE_LINE)
        if base == 0:
            report_no_memory(pointer)
            return
        product = ScaledProduct(
            array_at(call.a, (call.batch, call.m, call.k), codes),
            array_at(call.b, (call.batch, call.k, call.n), codes),
            array_at(call.scale_a, (call.batch, call.m, call.blocks), np.uint8),
            array_at(call.scale_b, (call.batch, call.blocks, call.n), np.uint8),
            array_at(call.a, call.batch * call.m * call.k, codes),
            array_at(call.b, call.batch * call.k * call.n, codes),
            array_at(call.d, (call.batch, call.m, call.n), np.float32),
            array_at(call.d, call.batch * call.m * call.n, np.float32),
            fields_at(call.form_a, FormatNumbers),
            fields_at(call.form_b, FormatNumbers),
            array_at(call.factors, 256, np.float64),
            array_at(call.scale_powers, 256, np.float64),
            array_at(call.exponents, 256, np.int16),
            powers,
            powers.byte_unit if in_bytes else 1.0,
            numbers,
            fields_at(call.result, ResultNumbers),
        )
        tasks(call, product, grouped_scratch(base, call, numbers, items, codes, elements)[0])
        release(base)

    return run
