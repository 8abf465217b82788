"""Block scaling with several scales in a step: section 4 of the arithmetic, on tiles of WIDTH columns.

Groups of products are summed exactly in float32 (a group's sum is a small multiple of the smallest product: plan.py
refuses operands for which 24 bits would not do), then scaled exactly and truncated in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mmabits.emulator.jit import address_of, allocate, array_at, enter_rounding, fields_at, jit, leave_rounding, release
from mmabits.emulator.native import Call, Variant
from mmabits.emulator.plan import TOWARD_ZERO, ResultNumbers, StepNumbers, StepPowers
from mmabits.emulator.steps import grouped_step
from mmabits.emulator.tasks import PANEL, WIDTH
from mmabits.emulator.tiles import (
    CACHE_LINE,
    add_chain,
    carve,
    kill_row,
    load_tiles,
    padded,
    report_no_memory,
    store_tiles,
    task_bounds,
)

LARGEST, SMALLEST = 0, 1
"""Places of a step's bounds on the powers of its scales."""


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
    d: Any
    """(batch, M, N) float32: accumulators in, results out."""
    elements_a: Any
    elements_b: Any
    """The value of every element code."""
    scales: Any
    scale_powers: Any
    """Value and power of two (0 for zero and NaN) of every scale code."""
    powers: Any
    """plan.step_powers."""
    numbers: Any
    """plan.StepNumbers."""
    result: Any
    """plan.ResultNumbers."""


class GroupRows(NamedTuple):
    """A panel of A, flat, as grouped_step reads it."""

    panel_groups: int
    """Groups of a row."""
    values: Any
    """Signed elements."""
    factors: Any
    powers: Any
    """A group's scale and its power of two."""
    masks: Any
    """Which elements of a group are not zero."""
    bounds: Any
    """For each row and step the largest and the smallest nonzero power."""
    bad: Any
    """(rows, steps): 1 where a scale is NaN."""


class GroupColumns(NamedTuple):
    """One step of B, like GroupRows, with WIDTH columns to each k, group and bound; flat."""

    values: Any
    factors: Any
    powers: Any
    masks: Any
    bounds: Any
    bad: Any
    odd: Any
    """Scratch: the columns with a NaN scale."""


class Scratch(NamedTuple):
    """What a task works in."""

    left: Any
    right: Any
    total: Any
    chain: Any
    """Accumulators, (tiles, rows, WIDTH), flat; the same array where no chain is added to a total."""
    dead: Any
    """(tiles, rows): 1 where every accumulator of the row is NaN until its chain starts anew."""


@jit
def decode_group_rows(product: Any, item: int, row0: int, rows: int, k0: int, count: int, left: Any) -> None:
    """Fill a panel of A."""
    a, numbers, elements = product.a, product.numbers, product.elements_a
    k_total = a.shape[2]
    groups, size = numbers.step // numbers.group, numbers.group
    sign = np.float32(-1.0) if numbers.negate == 1 else np.float32(1.0)
    for row in range(rows):
        row_group = row * left.panel_groups
        for step in range(count // numbers.step):
            left.bad[row, step] = 0
            at = 2 * (row_group // groups + step)
            left.bounds[at + LARGEST] = 0.0
            left.bounds[at + SMALLEST] = np.inf
        for group in range(count // size):
            first = group * size
            mask = np.int64(0)
            for k in range(size):
                value = elements[a[item, row0 + row, k0 + first + k]] if k0 + first + k < k_total else np.float32(0.0)
                left.values[row_group * size + first + k] = sign * value
                mask |= np.int64(value != 0.0) << k
            left.masks[row_group + group] = mask
            code = product.scale_a[item, row0 + row, (k0 + first) // numbers.block] if k0 + first < k_total else numbers.unit_scale
            factor, power = product.scales[code], product.scale_powers[code]
            left.factors[row_group + group] = factor
            left.powers[row_group + group] = power
            step = group // groups
            at = 2 * (row_group // groups + step)
            if np.isnan(factor):
                left.bad[row, step] = 1
            if power > 0.0:
                left.bounds[at + LARGEST] = max(left.bounds[at + LARGEST], power)
                left.bounds[at + SMALLEST] = min(left.bounds[at + SMALLEST], power)


@jit
def pack_group_columns(product: Any, item: int, k0: int, col0: int, columns: int, right: Any) -> None:
    """Fill one step of B. Columns and elements past the edges are zeros."""
    b, numbers, elements = product.b, product.numbers, product.elements_b
    k_total = b.shape[1]
    right.masks[:] = 0
    for k in range(numbers.step):
        group = k // numbers.group * WIDTH
        place = k % numbers.group
        width = columns if k0 + k < k_total else 0
        for j in range(width):
            value = elements[b[item, k0 + k, col0 + j]]
            right.values[k * WIDTH + j] = value
            right.masks[group + j] |= np.int64(value != 0.0) << place
        for j in range(width, WIDTH):
            right.values[k * WIDTH + j] = 0.0
    pack_group_scales(product, item, k0, col0, columns, right)


@jit
def pack_group_scales(product: Any, item: int, k0: int, col0: int, columns: int, right: Any) -> None:
    """The scales of one step of B, and what bounds them."""
    numbers = product.numbers
    k_total = product.b.shape[1]
    right.bad[:] = 0
    right.bounds[LARGEST * WIDTH : (LARGEST + 1) * WIDTH] = 0.0
    right.bounds[SMALLEST * WIDTH : (SMALLEST + 1) * WIDTH] = np.inf
    for group in range(numbers.step // numbers.group):
        k = k0 + group * numbers.group
        for j in range(WIDTH):
            code = product.scale_b[item, k // numbers.block, col0 + j] if k < k_total and j < columns else numbers.unit_scale
            factor, power = product.scales[code], product.scale_powers[code]
            right.factors[group * WIDTH + j] = factor
            right.powers[group * WIDTH + j] = power
            if np.isnan(factor):
                right.bad[j] = 1
            if power > 0.0:
                right.bounds[LARGEST * WIDTH + j] = max(right.bounds[LARGEST * WIDTH + j], power)
                right.bounds[SMALLEST * WIDTH + j] = min(right.bounds[SMALLEST * WIDTH + j], power)


@jit
def grouped_rows(product: Any, rows: int, left: Any, start: int, right: Any, chain: Any, base: int, dead: Any) -> None:
    """One step for every row of a task against WIDTH columns, two rows at a time: accumulators in chain[base + row * WIDTH:]."""
    step = start // product.numbers.step
    bad_count = 0
    for j in range(WIDTH):
        if right.bad[j] != 0:
            right.odd[bad_count] = j
            bad_count += 1
    for row in range(rows):
        if dead[row] == 0 and left.bad[row, step] != 0:
            kill_row(chain, base + row * WIDTH)
            dead[row] = 1
    for upper in range(0, rows, 2):
        pair = (upper, min(upper + 1, rows - 1))
        if dead[pair[0]] == 1 and dead[pair[1]] == 1:
            continue
        cells = (base + pair[0] * WIDTH, base + pair[1] * WIDTH)
        grouped_step(chain, cells, left, pair, step, right, product.powers, product.numbers, product.result)
        for i in range(bad_count):
            chain[cells[0] + right.odd[i]] = np.nan
            chain[cells[1] + right.odd[i]] = np.nan


@jit
def grouped_scratch(base: int, call: Any, numbers: Any) -> Any:
    """What a task works in, from address `base` on, and the address after it."""
    step, rows = numbers.step, call.rows
    groups = step // numbers.group
    panel = min(padded(PANEL, step), padded(call.k, numbers.k_instruction))
    panel_groups, steps = panel // numbers.group, panel // step
    values, at = carve(base, rows * panel, np.float32)
    factors, at = carve(at, rows * panel_groups, np.float64)
    powers, at = carve(at, rows * panel_groups, np.float64)
    masks, at = carve(at, rows * panel_groups, np.int64)
    bounds, at = carve(at, rows * steps * 2, np.float64)
    bad, at = carve(at, (rows, steps), np.uint8)
    left = GroupRows(panel_groups, values, factors, powers, masks, bounds, bad)
    values, at = carve(at, step * WIDTH, np.float32)
    factors, at = carve(at, groups * WIDTH, np.float64)
    powers, at = carve(at, groups * WIDTH, np.float64)
    masks, at = carve(at, groups * WIDTH, np.int64)
    bounds, at = carve(at, 2 * WIDTH, np.float64)
    bad_columns, at = carve(at, WIDTH, np.uint8)
    odd, at = carve(at, WIDTH, np.int64)
    right = GroupColumns(values, factors, powers, masks, bounds, bad_columns, odd)
    total, at = carve(at, call.tiles * rows * WIDTH, np.float32)
    chain = total
    if numbers.restart > 0:
        chain, at = carve(at, call.tiles * rows * WIDTH, np.float32)
    dead, at = carve(at, (call.tiles, rows), np.uint8)
    return Scratch(left, right, total, chain, dead), at


@jit
def grouped_tasks(call: Any, product: Any, scratch: Any) -> None:
    """Tasks of d = a @ b + d."""
    before = enter_rounding(TOWARD_ZERO)
    a, b, d, numbers, result = product.a, product.b, product.d, product.numbers, product.result
    left, right, total, chain, dead = scratch
    step = numbers.step
    k_padded = padded(a.shape[2], numbers.k_instruction)
    panel = min(padded(PANEL, step), k_padded)
    for task in range(call.first, call.last):
        item, row0, rows, tile0, tiles = task_bounds(task, d.shape[1], d.shape[2], call)
        load_tiles(d, item, row0, rows, tile0, tiles, total)
        dead[:] = 0
        if numbers.restart > 0:
            chain[:] = 0.0
        for panel0 in range(0, k_padded, panel):
            count = min(panel, k_padded - panel0)
            decode_group_rows(product, item, row0, rows, panel0, count, left)
            for tile in range(tiles):
                base, col0 = tile * rows * WIDTH, (tile0 + tile) * WIDTH
                columns = min(WIDTH, b.shape[2] - col0)
                for start in range(0, count, step):
                    pack_group_columns(product, item, panel0 + start, col0, columns, right)
                    grouped_rows(product, rows, left, start, right, chain, base, dead[tile])
                    done = panel0 + start + step
                    if numbers.restart > 0 and (done % numbers.restart == 0 or done == k_padded):
                        add_chain(total, chain, base, rows, numbers, result, dead[tile])
        store_tiles(total, item, row0, rows, tile0, tiles, result, d)
    leave_rounding(before)


def grouped_entry(variant: Variant) -> Callable[[Any], None]:
    """The function of one address: grouped_tasks on a record."""
    codes = variant.operand.type

    def run(pointer: Any) -> None:
        call = fields_at(address_of(pointer), Call)
        numbers = fields_at(call.numbers, StepNumbers)
        base = allocate(grouped_scratch(0, call, numbers)[1] + CACHE_LINE)
        if base == 0:
            report_no_memory(pointer)
            return
        product = ScaledProduct(
            array_at(call.a, (call.batch, call.m, call.k), codes),
            array_at(call.b, (call.batch, call.k, call.n), codes),
            array_at(call.scale_a, (call.batch, call.m, call.blocks), np.uint8),
            array_at(call.scale_b, (call.batch, call.blocks, call.n), np.uint8),
            array_at(call.d, (call.batch, call.m, call.n), np.float32),
            array_at(call.elements_a, 256, np.float32),
            array_at(call.elements_b, 256, np.float32),
            array_at(call.factors, 256, np.float64),
            array_at(call.scale_powers, 256, np.float64),
            fields_at(call.powers, StepPowers),
            numbers,
            fields_at(call.result, ResultNumbers),
        )
        grouped_tasks(call, product, grouped_scratch(base, call, numbers)[0])
        release(base)

    return run
