"""Fused dot products with truncated alignment: sections 2 and 3 of the arithmetic, on tiles of WIDTH columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.decode import decode_exponent, decode_value
from mmabits.emulator.jit import NEAREST_EVEN, TOWARD_ZERO, WIDTH, jit, set_rounding
from mmabits.emulator.steps import NOT_FINITE, TOO_WIDE, decode_columns, decode_elements, fused_step
from mmabits.emulator.tiles import ALL_NAN, FINITE, PANEL, SOME_NONFINITE, add_chain, apply_specials, load_tiles, store_tiles, task_bounds


@jit
def ordered(k: int, order: Any) -> int:
    """Where element k of the walk over K stands in the operands; an empty `order` means ascending."""
    period = order.size
    return k if period == 0 else k - k % period + order[k % period]


@jit
def decode_rows(a: Any, item: int, row0: int, rows: int, k0: int, count: int, order: Any, form: Any, scale: Any, scale_form: Any, numbers: Any,
                places: Any, codes: Any, magnitudes: Any, exponents: Any, sides: Any, bad: Any) -> None:  # fmt: skip
    """A panel of A: `count` elements of K, in the order the unit takes them, of `rows` rows.

    magnitudes, exponents, sides: (rows, panel), flat; sides is where element k of a step finds its part of B (see fused_step).
    bad[row, step]: 1 where something in that step is not finite. `codes` is scratch of a panel's length.
    """
    k_total = a.shape[2]
    panel = codes.size
    straight = order.size == 0 and k0 + panel <= k_total
    flat = a.reshape(a.size)
    codes[:] = 0
    for row in range(rows):
        finite = True
        if straight:
            first = (item * a.shape[1] + row0 + row) * k_total + k0
            for k in range(0, panel, WIDTH):
                finite &= decode_elements(flat, first + k, form, numbers.negate, places, k, magnitudes, exponents, sides, row * panel + k)
        else:
            for k in range(count):
                at = ordered(k0 + k, order)
                codes[k] = a[item, row0 + row, at] if at < k_total else 0
            for k in range(0, panel, WIDTH):
                finite &= decode_elements(codes, k, form, numbers.negate, places, k, magnitudes, exponents, sides, row * panel + k)
        for step in range(count // numbers.step):
            bad[row, step] = 0
        if not finite:
            for k in range(count):
                at = ordered(k0 + k, order)
                if at < k_total and not np.isfinite(decode_value(np.int64(a[item, row0 + row, at]), form)):
                    bad[row, k // numbers.step] = 1
        if numbers.block > 0:
            for first in range(0, min(count, k_total - k0), numbers.block):
                code = np.int64(scale[item, row0 + row, (k0 + first) // numbers.block])
                factor = decode_value(code, scale_form)
                if np.isnan(factor):
                    bad[row, first // numbers.step] = 1
                    continue
                exponent = decode_exponent(code, scale_form)
                for k in range(row * panel + first, row * panel + min(first + numbers.block, count)):
                    magnitudes[k] *= factor
                    exponents[k] += exponent


@jit
def pack_columns(b: Any, item: int, k0: int, col0: int, columns: int, order: Any, form: Any, scale: Any, scale_form: Any, numbers: Any,
                 codes: Any, planes: Any, exponents: Any, bad: Any) -> bool:  # fmt: skip
    """One step of B, WIDTH columns: planes and exponents as fused_step reads them; whether all of it is finite.

    bad[j]: 1 where something in column j is not finite. Columns past the edge are zeros. `codes` is scratch of WIDTH.
    """
    k_total, n_total = b.shape[1], b.shape[2]
    flat = b.reshape(b.size)
    all_finite = True
    bad[:] = 0
    for k in range(numbers.step):
        at = ordered(k0 + k, order)
        width = columns if at < k_total else 0
        if width == WIDTH:
            finite = decode_columns(flat, (item * k_total + at) * n_total + col0, form, planes, k * 2 * WIDTH, exponents, k * WIDTH)
        else:
            codes[:] = 0
            for j in range(width):
                codes[j] = b[item, at, col0 + j]
            finite = decode_columns(codes, 0, form, planes, k * 2 * WIDTH, exponents, k * WIDTH)
        if not finite:
            all_finite = False
            for j in range(width):
                if not np.isfinite(decode_value(np.int64(b[item, at, col0 + j]), form)):
                    bad[j] = 1
    if numbers.block > 0:
        for first in range(0, min(numbers.step, k_total - k0), numbers.block):
            last = first + min(numbers.block, numbers.step)
            for j in range(columns):
                code = np.int64(scale[item, (k0 + first) // numbers.block, col0 + j])
                factor = decode_value(code, scale_form)
                if np.isnan(factor):
                    bad[j] = 1
                    all_finite = False
                    continue
                exponent = decode_exponent(code, scale_form)
                for k in range(first, last):
                    planes[k * 2 * WIDTH + j] *= factor
                    planes[k * 2 * WIDTH + WIDTH + j] *= factor
                    exponents[k * WIDTH + j] += exponent
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
def wide_step(chain: Any, cell: int, magnitudes: Any, exponents: Any, sides: Any, at: int, planes: Any, b_exponents: Any, numbers: Any,
              result: Any) -> int:  # fmt: skip
    """fused_step in float64 from float32 operands: for the rare rows whose accumulators a float32 carrier cannot hold."""
    wide_planes = planes.astype(np.float64)
    wide_magnitudes = np.empty(numbers.step, np.float64)
    for k in range(numbers.step):
        wide_magnitudes[k] = magnitudes[at + k]
    return fused_step(chain, cell, wide_magnitudes, exponents[at : at + numbers.step], sides[at : at + numbers.step], 0, wide_planes, b_exponents,
                      numbers.step, numbers.fraction_bits, numbers.zero_exponent, 0, 1.0, result.mode, result.fraction_bits,
                      result.min_exponent, result.max_exponent, result.cut)  # fmt: skip


@jit
def step_rows(rows: int, panel: int, start: int, row0: int, k0: int, col0: int, columns: int, item: int, a: Any, b: Any, scale_a: Any, scale_b: Any,
              order: Any, form_a: Any, form_b: Any, scale_form: Any, numbers: Any, result: Any, magnitudes: Any, exponents: Any, sides: Any,
              bad_rows: Any, planes: Any, b_exponents: Any, bad_columns: Any, columns_finite: bool, chain: Any, base: int,
              state: Any) -> None:  # fmt: skip
    """One step of the datapath for every row of a task against WIDTH columns: accumulators in chain[base + row * WIDTH:]."""
    special = np.empty(WIDTH, np.float32)
    unshift = 2.0**-numbers.c_shift
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
        done = fused_step(chain, cell, magnitudes, exponents, sides, at, planes, b_exponents, numbers.step,
                          numbers.fraction_bits, numbers.zero_exponent, numbers.c_shift, unshift, result.mode, result.fraction_bits,
                          result.min_exponent, result.max_exponent, result.cut)  # fmt: skip
        if done == TOO_WIDE:
            done = wide_step(chain, cell, magnitudes, exponents, sides, at, planes, b_exponents, numbers, result)
        if flagged:
            state[row] = apply_specials(special, chain, cell)
        elif done == NOT_FINITE:
            state[row] = SOME_NONFINITE


@jit
def fused_tasks(first: int, last: int, carrier: Any, a: Any, b: Any, scale_a: Any, scale_b: Any, d: Any, order: Any, form_a: Any, form_b: Any,
                scale_form: Any, numbers: Any, result: Any) -> None:  # fmt: skip
    """Tasks first .. last - 1 of d (float32) = a @ b + d; the dtype of `carrier` is that of the truncated sums."""
    set_rounding(TOWARD_ZERO)
    step = numbers.step
    k_padded = (a.shape[2] + numbers.k_instruction - 1) // numbers.k_instruction * numbers.k_instruction
    elements = min((PANEL + step - 1) // step * step, k_padded)
    _, _, rows, _, tiles = task_bounds(first - first, d.shape[1], d.shape[2])
    panel = (elements + WIDTH - 1) // WIDTH * WIDTH
    magnitudes = np.empty(rows * panel, carrier.dtype)
    exponents = np.empty(rows * panel, np.int16)
    sides = np.empty(rows * panel, np.int32)
    places = np.empty(panel, np.int32)
    for k in range(panel):
        places[k] = k % step * 2 * WIDTH
    row_codes = np.empty(panel, a.dtype)
    column_codes = np.empty(WIDTH, a.dtype)
    bad_rows = np.empty((rows, panel // step), np.uint8)
    planes = np.empty(step * 2 * WIDTH, carrier.dtype)
    b_exponents = np.empty(step * WIDTH, np.int16)
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
        for panel0 in range(0, k_padded, elements):
            count = min(elements, k_padded - panel0)
            decode_rows(a, item, row0, rows, panel0, count, order, form_a, scale_a, scale_form, numbers, places, row_codes, magnitudes,
                        exponents, sides, bad_rows)  # fmt: skip
            for tile in range(tiles):
                base = tile * rows * WIDTH
                col0 = (tile0 + tile) * WIDTH
                columns = min(WIDTH, b.shape[2] - col0)
                for start in range(0, count, step):
                    k0 = panel0 + start
                    finite = pack_columns(b, item, k0, col0, columns, order, form_b, scale_b, scale_form, numbers, column_codes, planes,
                                          b_exponents, bad_columns)  # fmt: skip
                    step_rows(rows, panel, start, row0, k0, col0, columns, item, a, b, scale_a, scale_b, order, form_a, form_b, scale_form, numbers,
                              result, magnitudes, exponents, sides, bad_rows, planes, b_exponents, bad_columns, finite, chain, base,
                              state[tile])  # fmt: skip
                    done = k0 + step
                    if numbers.restart > 0 and (done % numbers.restart == 0 or done == k_padded):
                        add_chain(total, chain, base, rows, numbers, result, state[tile])
        store_tiles(total, item, row0, rows, tile0, tiles, result, d)
    set_rounding(NEAREST_EVEN)
