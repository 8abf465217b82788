"""Block scaling with several scales in a step: section 4 of the arithmetic, on tiles of WIDTH columns.

Groups of products are summed exactly in float32 (a group's sum is a small multiple of the smallest product: plan.py
refuses operands for which 24 bits would not do), then scaled exactly and truncated in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.decode import decode_exponent, decode_run, decode_value
from mmabits.emulator.fused import ALL_NAN, FINITE, PANEL, SOME_NONFINITE, add_chain, apply_specials, load_tiles, store_tiles
from mmabits.emulator.jit import NEAREST_EVEN, TOWARD_ZERO, WIDTH, jit, set_rounding
from mmabits.emulator.steps import NOT_FINITE, grouped_step


@jit
def decode_group_rows(a: Any, item: int, row0: int, rows: int, k0: int, count: int, form: Any, scale: Any, scale_form: Any, numbers: Any,
                      values: Any, factors: Any, powers: Any, masks: Any, bad: Any) -> None:  # fmt: skip
    """A panel of A: signed values (rows, panel); for each group a scale's value and power of two, and the mask of nonzero elements.

    A scale that is zero has power 0; bad[row, step] is 1 where a scale of that step is NaN.
    """
    codes = np.empty(count, np.int64)
    power_bits = np.empty(count, np.int64)
    element_powers = power_bits.view(np.float64)
    magnitudes = np.empty(count, np.float64)
    signs = np.empty(count, np.uint8)
    exponents = np.empty(count, np.int16)
    k_total = a.shape[2]
    for row in range(rows):
        for k in range(count):
            codes[k] = a[item, row0 + row, k0 + k] if k0 + k < k_total else 0
        decode_run(codes, 0, count, form, power_bits, element_powers, magnitudes, exponents, signs)
        for k in range(count):
            values[row, k] = -magnitudes[k] if (signs[k] ^ numbers.negate) == 1 else magnitudes[k]
        for step in range(count // numbers.step):
            bad[row, step] = 0
        for group in range(count // numbers.group):
            first = group * numbers.group
            mask = 0
            for k in range(numbers.group):
                mask |= np.int64(magnitudes[first + k] != 0.0) << k
            masks[row, group] = mask
            factor, power = scale_of(scale[item, row0 + row], k0 + first, k_total, numbers.block, scale_form)
            factors[row, group] = factor
            powers[row, group] = power
            if np.isnan(factor):
                bad[row, first // numbers.step] = 1


@jit
def scale_of(scales: Any, k: int, k_total: int, block: int, form: Any) -> Any:
    """(value, power of two) of the block scale that element k has; past the edge 1."""
    if k >= k_total:
        return 1.0, 1.0
    code = np.int64(scales[k // block])
    value = decode_value(code, form)
    if value == 0.0 or np.isnan(value):
        return value, 0.0
    return value, 2.0 ** decode_exponent(code, form)


@jit
def pack_group_columns(b: Any, item: int, k0: int, col0: int, columns: int, form: Any, scale: Any, scale_form: Any, numbers: Any, values: Any,
                       factors: Any, powers: Any, masks: Any, bad: Any, power_bits: Any, element_powers: Any, magnitudes: Any,
                       exponents: Any, signs: Any) -> bool:  # fmt: skip
    """One step of B: signed values (step, WIDTH), and a group's scales and masks (groups, WIDTH); whether no scale is NaN."""
    k_total, n_total = b.shape[1], b.shape[2]
    flat = b.reshape(b.size)
    values[:] = 0.0
    masks[:] = 0
    bad[:] = 0
    for k in range(min(numbers.step, k_total - k0)):
        base = (item * k_total + k0 + k) * n_total + col0
        decode_run(flat, base, columns, form, power_bits, element_powers, magnitudes, exponents, signs)
        group = k // numbers.group
        place = k % numbers.group
        for j in range(columns):
            values[k * WIDTH + j] = -magnitudes[j] if signs[j] == 1 else magnitudes[j]
            masks[group * WIDTH + j] |= np.int32(magnitudes[j] != 0.0) << np.int32(place)
    fine = True
    for group in range(numbers.step // numbers.group):
        for j in range(WIDTH):
            factors[group * WIDTH + j] = 1.0
            powers[group * WIDTH + j] = 1.0
        if k0 + group * numbers.group < k_total:
            for j in range(columns):
                factor, power = scale_of(scale[item, :, col0 + j], k0 + group * numbers.group, k_total, numbers.block, scale_form)
                factors[group * WIDTH + j] = factor
                powers[group * WIDTH + j] = power
                if np.isnan(factor):
                    bad[j] = 1
                    fine = False
    return fine


@jit
def grouped_rows(rows: int, start: int, values: Any, factors: Any, powers: Any, masks: Any, bad_rows: Any, b_values: Any, b_factors: Any,
                 b_powers: Any, b_masks: Any, bad_columns: Any, columns_fine: bool, numbers: Any, result: Any, chain: Any, base: int,
                 state: Any) -> None:  # fmt: skip
    """One step for every row of a task against WIDTH columns: accumulators in chain[base + row * WIDTH:]."""
    groups = numbers.step // numbers.group
    special = np.empty(WIDTH, np.float32)
    panel = values.shape[1]
    flat_values, flat_factors = values.reshape(values.size), factors.reshape(factors.size)
    flat_powers, flat_masks = powers.reshape(powers.size), masks.reshape(masks.size)
    zero_power, floor_power = 2.0**numbers.zero_exponent, 2.0**result.min_exponent
    window_power = 2.0 ** (52 - numbers.fraction_bits)
    for row in range(rows):
        if state[row] == ALL_NAN:
            continue
        cell = base + row * WIDTH
        at = row * panel + start
        row_bad = bad_rows[row, start // numbers.step]
        flagged = row_bad != 0 or state[row] != FINITE or not columns_fine
        if flagged:
            for j in range(WIDTH):
                value = chain[cell + j]
                nan = np.isnan(value) or row_bad != 0 or bad_columns[j] != 0
                special[j] = np.float32(np.nan) if nan else (value if np.isinf(value) else np.float32(0.0))
        done = grouped_step(chain, cell, flat_values, at, flat_factors, flat_powers, flat_masks, at // numbers.group, b_values, b_factors,
                            b_powers, b_masks, numbers.group, groups, window_power, zero_power, floor_power, result.mode, result.fraction_bits,
                            result.min_exponent, result.max_exponent, result.cut)  # fmt: skip
        if flagged:
            state[row] = apply_specials(special, chain, cell)
        elif done == NOT_FINITE:
            state[row] = SOME_NONFINITE


@jit
def grouped_task(item: int, row0: int, rows: int, tile0: int, tiles: int, a: Any, b: Any, scale_a: Any, scale_b: Any, d: Any, form_a: Any,
                 form_b: Any, scale_form: Any, numbers: Any, result: Any) -> None:  # fmt: skip
    """The product of `rows` rows of A and `tiles` tiles of WIDTH columns of B, added to and stored in d (float32)."""
    set_rounding(TOWARD_ZERO)
    step = numbers.step
    groups = step // numbers.group
    k_padded = (a.shape[2] + numbers.k_instruction - 1) // numbers.k_instruction * numbers.k_instruction
    panel = min((PANEL + step - 1) // step * step, k_padded)
    values = np.empty((rows, panel), np.float32)
    factors = np.empty((rows, panel // numbers.group), np.float64)
    powers = np.empty((rows, panel // numbers.group), np.float64)
    masks = np.empty((rows, panel // numbers.group), np.int32)
    bad_rows = np.empty((rows, panel // step), np.uint8)
    b_values = np.empty(step * WIDTH, np.float32)
    b_factors = np.empty(groups * WIDTH, np.float64)
    b_powers = np.empty(groups * WIDTH, np.float64)
    b_masks = np.empty(groups * WIDTH, np.int32)
    bad_columns = np.empty(WIDTH, np.uint8)
    power_bits = np.empty(WIDTH, np.int64)
    element_powers = power_bits.view(np.float64)
    magnitudes = np.empty(WIDTH, np.float64)
    exponents = np.empty(WIDTH, np.int16)
    signs = np.empty(WIDTH, np.uint8)
    total = np.zeros(tiles * rows * WIDTH, np.float32)
    state = np.zeros((tiles, rows), np.uint8)
    load_tiles(d, item, row0, rows, tile0, tiles, total, state)
    chain = total
    if numbers.restart > 0:
        chain = np.zeros(total.size, np.float32)
        state[:] = FINITE
    for panel0 in range(0, k_padded, panel):
        count = min(panel, k_padded - panel0)
        decode_group_rows(a, item, row0, rows, panel0, count, form_a, scale_a, scale_form, numbers, values, factors, powers, masks, bad_rows)
        for tile in range(tiles):
            base = tile * rows * WIDTH
            col0 = (tile0 + tile) * WIDTH
            columns = min(WIDTH, b.shape[2] - col0)
            for start in range(0, count, step):
                fine = pack_group_columns(b, item, panel0 + start, col0, columns, form_b, scale_b, scale_form, numbers, b_values, b_factors,
                                          b_powers, b_masks, bad_columns, power_bits, element_powers, magnitudes, exponents, signs)  # fmt: skip
                grouped_rows(rows, start, values, factors, powers, masks, bad_rows, b_values, b_factors, b_powers, b_masks, bad_columns, fine,
                             numbers, result, chain, base, state[tile])  # fmt: skip
                done = panel0 + start + step
                if numbers.restart > 0 and (done % numbers.restart == 0 or done == k_padded):
                    add_chain(total, chain, base, rows, numbers, result, state[tile])
    store_tiles(total, item, row0, rows, tile0, tiles, result, d)
    set_rounding(NEAREST_EVEN)
