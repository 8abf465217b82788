"""Block scaling with several scales in a step: section 4 of the arithmetic, on tiles of WIDTH columns.

Groups of products are summed exactly in float32 (a group's sum is a small multiple of the smallest product: plan.py
refuses operands for which 24 bits would not do), then scaled exactly and truncated in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.jit import NEAREST_EVEN, TOWARD_ZERO, WIDTH, jit, set_rounding
from mmabits.emulator.steps import NOT_FINITE, grouped_step
from mmabits.emulator.tiles import ALL_NAN, FINITE, PANEL, SOME_NONFINITE, add_chain, apply_specials, load_tiles, store_tiles, task_bounds

LARGEST, SMALLEST = 0, 1
"""Places of a step's bounds on the powers of its scales."""


@jit
def decode_group_rows(a: Any, item: int, row0: int, rows: int, k0: int, count: int, elements: Any, scale: Any, scales: Any, numbers: Any,
                      values: Any, factors: Any, powers: Any, masks: Any, bounds: Any, bad: Any) -> None:  # fmt: skip
    """A panel of A: signed values (rows, panel); for each group a scale's value and power, and the mask of nonzero elements.

    `elements` are the values of all element codes; `scales` those of all scale codes, then their powers of two. bounds[row,
    step]: the largest and the smallest nonzero power; bad[row, step] is 1 where a scale of that step is NaN.
    """
    k_total = a.shape[2]
    groups = numbers.step // numbers.group
    sign = np.float32(-1.0) if numbers.negate == 1 else np.float32(1.0)
    for row in range(rows):
        for step in range(count // numbers.step):
            bad[row, step] = 0
            bounds[row, step, LARGEST] = 0.0
            bounds[row, step, SMALLEST] = np.inf
        for group in range(count // numbers.group):
            first = group * numbers.group
            mask = 0
            for k in range(numbers.group):
                value = elements[a[item, row0 + row, k0 + first + k]] if k0 + first + k < k_total else np.float32(0.0)
                values[row, first + k] = sign * value
                mask |= np.int64(value != 0.0) << k
            masks[row, group] = mask
            code = scale[item, row0 + row, (k0 + first) // numbers.block] if k0 + first < k_total else numbers.unit_scale
            factors[row, group] = scales[code]
            power = scales[256 + code]
            powers[row, group] = power
            step = group // groups
            if np.isnan(scales[code]):
                bad[row, step] = 1
            if power > 0.0:
                bounds[row, step, LARGEST] = max(bounds[row, step, LARGEST], power)
                bounds[row, step, SMALLEST] = min(bounds[row, step, SMALLEST], power)


@jit
def pack_group_columns(b: Any, item: int, k0: int, col0: int, columns: int, elements: Any, scale: Any, scales: Any, numbers: Any, values: Any,
                       factors: Any, powers: Any, masks: Any, bounds: Any, bad: Any) -> bool:  # fmt: skip
    """One step of B as decode_group_rows makes A, WIDTH columns to each k, group and bound; whether no scale is NaN."""
    k_total = b.shape[1]
    fine = True
    bad[:] = 0
    masks[:] = 0
    bounds[LARGEST * WIDTH : (LARGEST + 1) * WIDTH] = 0.0
    bounds[SMALLEST * WIDTH : (SMALLEST + 1) * WIDTH] = np.inf
    for k in range(numbers.step):
        group = k // numbers.group * WIDTH
        place = k % numbers.group
        width = columns if k0 + k < k_total else 0
        for j in range(width):
            value = elements[b[item, k0 + k, col0 + j]]
            values[k * WIDTH + j] = value
            masks[group + j] |= np.int64(value != 0.0) << place
        for j in range(width, WIDTH):
            values[k * WIDTH + j] = 0.0
    for group in range(numbers.step // numbers.group):
        k = k0 + group * numbers.group
        for j in range(WIDTH):
            code = scale[item, k // numbers.block, col0 + j] if k < k_total and j < columns else numbers.unit_scale
            factors[group * WIDTH + j] = scales[code]
            power = scales[256 + code]
            powers[group * WIDTH + j] = power
            if np.isnan(scales[code]):
                bad[j] = 1
                fine = False
            if power > 0.0:
                bounds[LARGEST * WIDTH + j] = max(bounds[LARGEST * WIDTH + j], power)
                bounds[SMALLEST * WIDTH + j] = min(bounds[SMALLEST * WIDTH + j], power)
    return fine


@jit
def group_specials(chain: Any, cell: int, row_bad: int, bad: Any, special: Any) -> None:
    """special[j]: the infinity or NaN that column j's step comes to, 0 where its result is an ordinary number."""
    for j in range(WIDTH):
        value = chain[cell + j]
        nan = np.isnan(value) or row_bad != 0 or bad[j] != 0
        special[j] = np.float32(np.nan) if nan else (value if np.isinf(value) else np.float32(0.0))


@jit
def grouped_rows(rows: int, start: int, values: Any, factors: Any, powers: Any, masks: Any, bounds: Any, bad_rows: Any, b_values: Any,
                 b_factors: Any, b_powers: Any, b_masks: Any, b_bounds: Any, bad_columns: Any, columns_fine: bool, numbers: Any,
                 step_powers: Any, result: Any, chain: Any, base: int, state: Any) -> None:  # fmt: skip
    """One step for every row of a task against WIDTH columns, two rows at a time: accumulators in chain[base + row * WIDTH:]."""
    groups = numbers.step // numbers.group
    step = start // numbers.step
    panel = values.shape[1]
    panel_groups = factors.shape[1]
    flat_values, flat_factors = values.reshape(values.size), factors.reshape(factors.size)
    flat_powers, flat_masks, flat_bounds = powers.reshape(powers.size), masks.reshape(masks.size), bounds.reshape(bounds.size)
    special = np.empty((2, WIDTH), np.float32)
    pair = np.empty(2, np.int64)
    flagged = np.empty(2, np.bool_)
    for row0 in range(0, rows, 2):
        pair[0], pair[1] = row0, min(row0 + 1, rows - 1)
        if state[pair[0]] == ALL_NAN and state[pair[1]] == ALL_NAN:
            continue
        for i in range(2):
            row = pair[i]
            flagged[i] = bad_rows[row, step] != 0 or state[row] != FINITE or not columns_fine
            if flagged[i]:
                group_specials(chain, base + row * WIDTH, bad_rows[row, step], bad_columns, special[i])
        upper, lower = pair[0], pair[1]
        done = grouped_step(
            chain, (base + upper * WIDTH, base + lower * WIDTH), (upper * panel + start, lower * panel + start),
            (upper * panel_groups + step * groups, lower * panel_groups + step * groups), flat_values, flat_factors, flat_powers, flat_masks,
            flat_bounds, ((upper * bounds.shape[1] + step) * 2, (lower * bounds.shape[1] + step) * 2), b_values, b_factors, b_powers, b_masks,
            b_bounds, numbers.group, groups, step_powers, result.mode, result.fraction_bits, result.min_exponent, result.max_exponent,
            result.cut,
        )  # fmt: skip
        for i in range(2):
            if flagged[i]:
                state[pair[i]] = apply_specials(special[i], chain, base + pair[i] * WIDTH)
            elif done[i] == NOT_FINITE:
                state[pair[i]] = SOME_NONFINITE


@jit
def grouped_tasks(first: int, last: int, a: Any, b: Any, scale_a: Any, scale_b: Any, d: Any, elements_a: Any, elements_b: Any, scales: Any,
                  numbers: Any, step_powers: Any, result: Any) -> None:  # fmt: skip
    """Tasks first .. last - 1 of d (float32) = a @ b + d."""
    set_rounding(TOWARD_ZERO)
    step = numbers.step
    groups = step // numbers.group
    k_padded = (a.shape[2] + numbers.k_instruction - 1) // numbers.k_instruction * numbers.k_instruction
    panel = min((PANEL + step - 1) // step * step, k_padded)
    _, _, rows, _, tiles = task_bounds(first - first, d.shape[1], d.shape[2])
    values = np.empty((rows, panel), np.float32)
    factors = np.empty((rows, panel // numbers.group), np.float64)
    powers = np.empty((rows, panel // numbers.group), np.float64)
    masks = np.empty((rows, panel // numbers.group), np.int64)
    bounds = np.empty((rows, panel // step, 2), np.float64)
    bad_rows = np.empty((rows, panel // step), np.uint8)
    b_values = np.empty(step * WIDTH, np.float32)
    b_factors = np.empty(groups * WIDTH, np.float64)
    b_powers = np.empty(groups * WIDTH, np.float64)
    b_masks = np.empty(groups * WIDTH, np.int64)
    b_bounds = np.empty(2 * WIDTH, np.float64)
    bad_columns = np.empty(WIDTH, np.uint8)
    total = np.empty(tiles * rows * WIDTH, np.float32)
    chain = np.empty(total.size, np.float32) if numbers.restart > 0 else total
    state = np.empty((tiles, rows), np.uint8)
    for task in range(first, last):
        item, row0, rows, tile0, tiles = task_bounds(task, d.shape[1], d.shape[2])
        load_tiles(d, item, row0, rows, tile0, tiles, total, state)
        if numbers.restart > 0:
            chain[:] = 0.0
            state[:] = FINITE
        for panel0 in range(0, k_padded, panel):
            count = min(panel, k_padded - panel0)
            decode_group_rows(a, item, row0, rows, panel0, count, elements_a, scale_a, scales, numbers, values, factors, powers, masks, bounds,
                              bad_rows)  # fmt: skip
            for tile in range(tiles):
                base = tile * rows * WIDTH
                col0 = (tile0 + tile) * WIDTH
                columns = min(WIDTH, b.shape[2] - col0)
                for start in range(0, count, step):
                    fine = pack_group_columns(b, item, panel0 + start, col0, columns, elements_b, scale_b, scales, numbers, b_values,
                                              b_factors, b_powers, b_masks, b_bounds, bad_columns)  # fmt: skip
                    grouped_rows(rows, start, values, factors, powers, masks, bounds, bad_rows, b_values, b_factors, b_powers, b_masks, b_bounds,
                                 bad_columns, fine, numbers, step_powers, result, chain, base, state[tile])  # fmt: skip
                    done = panel0 + start + step
                    if numbers.restart > 0 and (done % numbers.restart == 0 or done == k_padded):
                        add_chain(total, chain, base, rows, numbers, result, state[tile])
        store_tiles(total, item, row0, rows, tile0, tiles, result, d)
    set_rounding(NEAREST_EVEN)
