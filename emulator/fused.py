"""Fused dot products with truncated alignment: sections 2 and 3 of the arithmetic, on tiles of WIDTH columns.

Truncation costs nothing of its own. With the thread's rounding toward zero and a sum S held in [1.5, 2) * 2^(E - F + p - 1),
p the significand bits of the carrier (24 for float32, 53 for float64), the fused multiply-add S + |a| * |b| keeps exactly
the multiples of 2^(E - F) and cuts the rest toward zero. One sum takes the positive products, another the negative ones,
so every product is cut by magnitude. Bound: the step's products and c stay below (4 * step + 2) * 2^F units, which
plan.carrier_bits keeps below 2^(p - 2), so S never leaves its binade.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.decode import decode_exponent, decode_run, decode_value
from mmabits.emulator.jit import NEAREST_EVEN, TOWARD_ZERO, WIDTH, exponent_maxima, fma_signed, jit, set_rounding
from mmabits.emulator.rounding import nearest_sums, round_sums

FINITE, SOME_NONFINITE, ALL_NAN = 0, 1, 2
"""What is known of a row of WIDTH accumulators."""
CARRIER_LIMIT = 100
"""Above this exponent a float32 carrier could overflow; such rows go through float64."""



ROWS = 128
"""Rows of a task."""
PANEL = 256
"""Elements of K whose codes of A are decoded at a time."""


@jit
def ordered(k: int, order: Any) -> int:
    """Where element k of the walk over K stands in the operands; an empty `order` means ascending."""
    period = order.size
    return k if period == 0 else k - k % period + order[k % period]


@jit
def decode_rows(a: Any, item: int, row0: int, rows: int, k0: int, count: int, order: Any, form: Any, scale: Any, scale_form: Any, numbers: Any,
                magnitudes: Any, exponents: Any, sides: Any, bad: Any) -> None:  # fmt: skip
    """A panel of A: `count` elements of K, in the order the unit takes them, of `rows` rows.

    magnitudes, exponents, sides: (rows, panel); sides is where element k of a step finds its part of B (see fma_signed).
    bad[row, step]: 1 where something in that step is not finite.
    """
    codes = np.empty(count, np.int64)
    power_bits = np.empty(count, np.int64)
    powers = power_bits.view(np.float64)
    values = np.empty(count, np.float64)
    signs = np.empty(count, np.uint8)
    row_exponents = np.empty(count, np.int16)
    k_total = a.shape[2]
    for row in range(rows):
        for k in range(count):
            at = ordered(k0 + k, order)
            codes[k] = a[item, row0 + row, at] if at < k_total else 0
        finite = decode_run(codes, 0, count, form, power_bits, powers, values, row_exponents, signs)
        for k in range(count):
            magnitudes[row, k] = values[k]
            exponents[row, k] = row_exponents[k]
            sides[row, k] = (k % numbers.step) * 2 * WIDTH + (signs[k] ^ numbers.negate) * WIDTH
        for step in range(count // numbers.step):
            bad[row, step] = 0
        if not finite:
            for k in range(count):
                if not np.isfinite(decode_value(codes[k], form)):
                    bad[row, k // numbers.step] = 1
        if numbers.block > 0:
            for block in range((count + numbers.block - 1) // numbers.block):
                first = block * numbers.block
                if k0 + first >= k_total:
                    break
                code = np.int64(scale[item, row0 + row, (k0 + first) // numbers.block])
                factor = decode_value(code, scale_form)
                if np.isnan(factor):
                    bad[row, first // numbers.step] = 1
                    continue
                exponent = decode_exponent(code, scale_form)
                for k in range(first, min(first + numbers.block, count)):
                    magnitudes[row, k] *= factor
                    exponents[row, k] += exponent


@jit
def pack_columns(b: Any, item: int, k0: int, col0: int, columns: int, order: Any, form: Any, scale: Any, scale_form: Any, numbers: Any,
                 planes: Any, exponents: Any, bad: Any, power_bits: Any, powers: Any, values: Any, signs: Any) -> bool:  # fmt: skip
    """One step of B, WIDTH columns: planes and exponents as fma_signed and exponent_maxima read them; whether all are finite.

    bad[j]: 1 where something in column j is not finite. Columns past the edge are zeros.
    """
    k_total, n_total = b.shape[1], b.shape[2]
    flat = b.reshape(b.size)
    all_finite = True
    for j in range(WIDTH):
        bad[j] = 0
    for k in range(numbers.step):
        at = ordered(k0 + k, order)
        plane = k * 2 * WIDTH
        if at >= k_total:
            planes[plane : plane + 2 * WIDTH] = 0.0
            exponents[k, :] = -8192
            continue
        base = (item * k_total + at) * n_total + col0
        finite = decode_run(flat, base, columns, form, power_bits, powers, values, exponents[k], signs)
        for j in range(columns):
            planes[plane + j] = values[j] if signs[j] == 0 else 0.0
            planes[plane + WIDTH + j] = values[j] if signs[j] == 1 else 0.0
        for j in range(columns, WIDTH):
            planes[plane + j] = 0.0
            planes[plane + WIDTH + j] = 0.0
            exponents[k, j] = -8192
        if not finite:
            all_finite = False
            for j in range(columns):
                if not np.isfinite(decode_value(np.int64(flat[base + j]), form)):
                    bad[j] = 1
    if numbers.block > 0:
        for j in range(columns):
            for first in range(0, min(numbers.step, k_total - k0), numbers.block):
                code = np.int64(scale[item, (k0 + first) // numbers.block, col0 + j])
                factor = decode_value(code, scale_form)
                if np.isnan(factor):
                    bad[j] = 1
                    all_finite = False
                    continue
                exponent = decode_exponent(code, scale_form)
                for k in range(first, first + min(numbers.block, numbers.step)):
                    planes[k * 2 * WIDTH + j] *= factor
                    planes[k * 2 * WIDTH + WIDTH + j] *= factor
                    exponents[k, j] += exponent
    return all_finite


@jit
def resolve_specials(a: Any, b: Any, scale_a: Any, scale_b: Any, item: int, row: int, k0: int, col0: int, columns: int, order: Any,
                     form_a: Any, form_b: Any, scale_form: Any, numbers: Any, row_bad: int, bad: Any, chain: Any, base: int,
                     special: Any) -> None:  # fmt: skip
    """special[j]: the infinity or NaN that column j's step comes to, 0 where its result is an ordinary number.

    Section 5: a NaN anywhere, 0 x infinity, or infinities of both signs give NaN, any other infinity stays. Float64 sums
    say just that, since no finite product or sum here leaves float64's range.
    """
    k_total = a.shape[2]
    for j in range(WIDTH):
        special[j] = 0.0
        held = np.float64(chain[base + j])
        if np.isnan(held):
            special[j] = np.nan
        elif j < columns and (row_bad != 0 or bad[j] != 0):
            total = held
            for k in range(numbers.step):
                at = ordered(k0 + k, order)
                if at >= k_total:
                    continue
                left = decode_value(np.int64(a[item, row, at]), form_a)
                right = decode_value(np.int64(b[item, at, col0 + j]), form_b)
                if numbers.negate == 1:
                    left = -left
                if numbers.block > 0:
                    left *= decode_value(np.int64(scale_a[item, row, at // numbers.block]), scale_form)
                    right *= decode_value(np.int64(scale_b[item, at // numbers.block, col0 + j]), scale_form)
                total += left * right
            special[j] = total
        elif np.isinf(held):
            special[j] = held


@jit
def apply_specials(special: Any, chain: Any, base: int) -> int:
    """Put infinities and NaN into the accumulators; what is now known of the row."""
    not_finite = 0
    nans = 0
    for j in range(WIDTH):
        if not np.isfinite(special[j]):
            chain[base + j] = special[j]
        value = chain[base + j]
        not_finite += not np.isfinite(value)
        nans += np.isnan(value)
    return ALL_NAN if nans == WIDTH else (SOME_NONFINITE if not_finite > 0 else FINITE)


@jit
def window_narrow(chain_bits: Any, base: int, largest: Any, numbers: Any, result: Any, window_bits: Any) -> bool:
    """window[j] = 1.5 * 2^(E - F + 23) in float32, E the largest exponent of the terms; whether float32 can hold it."""
    highest = np.int32(-1000)
    floor = np.int32(result.min_exponent + 127)
    zero = np.int32(numbers.zero_exponent)
    shift = np.int32(150 - numbers.fraction_bits)
    for j in range(WIDTH):
        bits = chain_bits[base + j] & np.int32(0x7FFFFFFF)
        exponent = max(bits >> np.int32(23), floor) - np.int32(127)
        exponent = zero if bits == 0 else exponent
        exponent = max(exponent, np.int32(largest[j]))
        highest = max(highest, exponent)
        window_bits[j] = ((exponent + shift) << np.int32(23)) | np.int32(0x400000)
    return highest <= CARRIER_LIMIT


@jit
def window_wide(held_bits: Any, largest: Any, numbers: Any, result: Any, window_bits: Any) -> None:
    """window[j] = 1.5 * 2^(E - F + 52) in float64, E the largest exponent of the terms."""
    floor = result.min_exponent - numbers.c_shift
    shift = 1023 + 52 - numbers.fraction_bits
    for j in range(WIDTH):
        bits = held_bits[j] & np.int64(0x7FFFFFFFFFFFFFFF)
        exponent = max((bits >> 52) - 1023, floor)
        exponent = numbers.zero_exponent if bits == 0 else exponent
        exponent = max(max(exponent, np.int64(largest[j])), numbers.zero_exponent)
        window_bits[j] = ((exponent + shift) << 52) | (np.int64(1) << 51)


@jit
def split_accumulators(window: Any, held: Any, first: int, sums: Any) -> None:
    """Start both sums: the window, and the accumulator in the sum of its sign, truncated like every term."""
    for j in range(WIDTH):
        value = held[first + j]
        sums[j] = window[j] + (value if value > 0 else np.float32(0))
        sums[WIDTH + j] = window[j] + (-value if value < 0 else np.float32(0))


@jit
def wide_sums(magnitudes: Any, sides: Any, row: int, start: int, step: int, planes: Any, window: Any, sums: Any) -> None:
    """fma_signed by float64 additions from float32 planes: for the rare rows that a float32 carrier cannot hold."""
    for j in range(WIDTH):
        for k in range(step):
            side = sides[row, start + k]
            sums[j] += np.float64(magnitudes[row, start + k]) * np.float64(planes[side + j])
            sums[WIDTH + j] += np.float64(magnitudes[row, start + k]) * np.float64(planes[(side ^ WIDTH) + j])


@jit
def step_rows(narrow: bool, rows: int, start: int, row0: int, k0: int, col0: int, columns: int, item: int, a: Any, b: Any, scale_a: Any,
              scale_b: Any, order: Any, form_a: Any, form_b: Any, scale_form: Any, numbers: Any, result: Any, magnitudes: Any, exponents: Any,
              sides: Any, bad_rows: Any, planes: Any, b_exponents: Any, bad_columns: Any, columns_finite: bool, chain: Any, chain_bits: Any,
              base: int, state: Any) -> None:  # fmt: skip
    """One step of the datapath for every row of a task against WIDTH columns: accumulators in chain[base + row * WIDTH:]."""
    largest = np.empty(WIDTH, np.int16)
    special = np.empty(WIDTH, np.float32)
    sums = np.empty(2 * WIDTH, planes.dtype)
    window_bits_narrow = np.empty(WIDTH, np.int32)
    window_narrow_values = window_bits_narrow.view(np.float32)
    wide = np.empty(2 * WIDTH, np.float64)
    window_bits = np.empty(WIDTH, np.int64)
    window = window_bits.view(np.float64)
    held = np.empty(WIDTH, np.float64)
    held_bits = held.view(np.int64)
    exact = np.empty(WIDTH, np.float64)
    exact_bits = exact.view(np.int64)
    unshift = 2.0**-numbers.c_shift
    flat_magnitudes = magnitudes.reshape(magnitudes.size)
    flat_exponents = exponents.reshape(exponents.size)
    flat_sides = sides.reshape(sides.size)
    flat_b_exponents = b_exponents.reshape(b_exponents.size)
    panel = magnitudes.shape[1]
    keep = np.int32(-1) << np.int32(result.cut)
    for row in range(rows):
        if state[row] == ALL_NAN:
            continue
        cell = base + row * WIDTH
        at = row * panel + start
        row_bad = bad_rows[row, start // numbers.step]
        flagged = row_bad != 0 or state[row] != FINITE or not columns_finite
        if flagged:
            resolve_specials(a, b, scale_a, scale_b, item, row0 + row, k0, col0, columns, order, form_a, form_b, scale_form, numbers,
                             row_bad, bad_columns, chain, cell, special)  # fmt: skip
        exponent_maxima(largest, flat_exponents, at, flat_b_exponents, 0, numbers.step)
        finite = True
        if narrow and window_narrow(chain_bits, cell, largest, numbers, result, window_bits_narrow):
            split_accumulators(window_narrow_values, chain, cell, sums)
            fma_signed(sums, flat_magnitudes, at, flat_sides, planes, 0, numbers.step)
            if result.mode == TOWARD_ZERO:
                for j in range(WIDTH):
                    held_narrow = (sums[j] - window_narrow_values[j]) - (sums[WIDTH + j] - window_narrow_values[j])
                    chain[cell + j] = np.float32(held_narrow)
                for j in range(WIDTH):
                    bits = chain_bits[cell + j] & keep
                    chain_bits[cell + j] = bits if (bits & np.int32(0x7FFFFFFF)) != 0 else np.int32(0)
            else:
                for j in range(WIDTH):
                    exact[j] = (sums[j] - window_narrow_values[j]) - (sums[WIDTH + j] - window_narrow_values[j])
                finite = nearest_sums(exact, exact_bits, result, chain, chain_bits, cell)
        else:
            for j in range(WIDTH):
                held[j] = np.float64(chain[cell + j]) * unshift
            window_wide(held_bits, largest, numbers, result, window_bits)
            split_accumulators(window, held, 0, wide)
            if narrow:
                wide_sums(magnitudes, sides, row, start, numbers.step, planes, window, wide)
            else:
                for j in range(2 * WIDTH):
                    sums[j] = wide[j]
                fma_signed(sums, flat_magnitudes, at, flat_sides, planes, 0, numbers.step)
                for j in range(2 * WIDTH):
                    wide[j] = sums[j]
            for j in range(WIDTH):
                exact[j] = (wide[j] - window[j]) - (wide[WIDTH + j] - window[j])
            finite = round_sums(exact, exact_bits, result, chain, chain_bits, cell)
        if flagged:
            state[row] = apply_specials(special, chain, cell)
        elif not finite:
            state[row] = SOME_NONFINITE


@jit
def add_chain(total: Any, total_bits: Any, chain: Any, base: int, rows: int, numbers: Any, result: Any, state: Any) -> None:
    """total += chain by an IEEE addition, to nearest even in f32 or f16; the chain starts again from +0."""
    exact = np.empty(WIDTH, np.float64)
    exact_bits = exact.view(np.int64)
    special = np.empty(WIDTH, np.float32)
    if numbers.restart_f16 == 0:
        set_rounding(NEAREST_EVEN)
        for i in range(base, base + rows * WIDTH):
            total[i] += chain[i]
            chain[i] = 0.0
        set_rounding(TOWARD_ZERO)
    else:
        for row in range(rows):
            cell = base + row * WIDTH
            for j in range(WIDTH):
                exact[j] = np.float64(total[cell + j]) + np.float64(chain[cell + j])
                special[j] = np.float32(exact[j])
            nearest_sums(exact, exact_bits, result, total, total_bits, cell)
            apply_specials(special, total, cell)
            for j in range(WIDTH):
                chain[cell + j] = 0.0
    for row in range(rows):
        state[row] = FINITE


@jit
def fused_task(narrow: bool, carrier: Any, item: int, row0: int, rows: int, tile0: int, tiles: int, a: Any, b: Any, scale_a: Any, scale_b: Any,
               d: Any, order: Any, form_a: Any, form_b: Any, scale_form: Any, numbers: Any, result: Any) -> None:  # fmt: skip
    """The product of `rows` rows of A and `tiles` tiles of WIDTH columns of B, added to and stored in d (float32)."""
    set_rounding(TOWARD_ZERO)
    step = numbers.step
    k_padded = (a.shape[2] + numbers.k_instruction - 1) // numbers.k_instruction * numbers.k_instruction
    panel = min((PANEL + step - 1) // step * step, k_padded)
    magnitudes = np.empty((rows, panel), carrier.dtype)
    exponents = np.empty((rows, panel), np.int16)
    sides = np.empty((rows, panel), np.int32)
    bad_rows = np.empty((rows, panel // step), np.uint8)
    planes = np.empty(step * 2 * WIDTH, carrier.dtype)
    b_exponents = np.empty((step, WIDTH), np.int16)
    bad_columns = np.empty(WIDTH, np.uint8)
    power_bits = np.empty(WIDTH, np.int64)
    powers = power_bits.view(np.float64)
    values = np.empty(WIDTH, np.float64)
    signs = np.empty(WIDTH, np.uint8)
    total = np.zeros(tiles * rows * WIDTH, np.float32)
    total_bits = total.view(np.int32)
    state = np.zeros((tiles, rows), np.uint8)
    load_tiles(d, item, row0, rows, tile0, tiles, total, state)
    chain = total
    if numbers.restart > 0:
        chain = np.zeros(total.size, np.float32)
        state[:] = FINITE
    chain_bits = chain.view(np.int32)
    for panel0 in range(0, k_padded, panel):
        count = min(panel, k_padded - panel0)
        decode_rows(a, item, row0, rows, panel0, count, order, form_a, scale_a, scale_form, numbers, magnitudes, exponents, sides, bad_rows)
        for tile in range(tiles):
            base = tile * rows * WIDTH
            col0 = (tile0 + tile) * WIDTH
            columns = min(WIDTH, b.shape[2] - col0)
            for start in range(0, count, step):
                k0 = panel0 + start
                finite = pack_columns(b, item, k0, col0, columns, order, form_b, scale_b, scale_form, numbers, planes, b_exponents,
                                      bad_columns, power_bits, powers, values, signs)  # fmt: skip
                step_rows(narrow, rows, start, row0, k0, col0, columns, item, a, b, scale_a, scale_b, order, form_a, form_b, scale_form,
                          numbers, result, magnitudes, exponents, sides, bad_rows, planes, b_exponents, bad_columns, finite, chain,
                          chain_bits, base, state[tile])  # fmt: skip
                done = k0 + step
                if numbers.restart > 0 and (done % numbers.restart == 0 or done == k_padded):
                    add_chain(total, total_bits, chain, base, rows, numbers, result, state[tile])
    store_tiles(total, item, row0, rows, tile0, tiles, result, d)
    set_rounding(NEAREST_EVEN)


@jit
def load_tiles(d: Any, item: int, row0: int, rows: int, tile0: int, tiles: int, total: Any, state: Any) -> None:
    """The accumulators handed in, tile by tile."""
    for tile in range(tiles):
        col0 = (tile0 + tile) * WIDTH
        for row in range(rows):
            cell = (tile * rows + row) * WIDTH
            for j in range(min(WIDTH, d.shape[2] - col0)):
                value = d[item, row0 + row, col0 + j]
                total[cell + j] = value
                if not np.isfinite(value):
                    state[tile, row] = SOME_NONFINITE


@jit
def store_tiles(total: Any, item: int, row0: int, rows: int, tile0: int, tiles: int, result: Any, d: Any) -> None:
    """The results; every NaN becomes the unit's one NaN."""
    d_bits = d.view(np.int32)
    for tile in range(tiles):
        col0 = (tile0 + tile) * WIDTH
        for row in range(rows):
            cell = (tile * rows + row) * WIDTH
            for j in range(min(WIDTH, d.shape[2] - col0)):
                value = total[cell + j]
                d[item, row0 + row, col0 + j] = value
                if np.isnan(value):
                    d_bits[item, row0 + row, col0 + j] = result.nan
