"""Tiles: where a task lies, and what every kind of task does with its accumulators."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import address_of, array_at, enter_rounding, inlined, jit, leave_rounding, shared_word
from mmabits.emulator.engine.plan import NEAREST_EVEN
from mmabits.emulator.engine.record import Call
from mmabits.emulator.engine.steps import finish_one, finish_side, nearest_add, start_one, start_side
from mmabits.emulator.engine.tasks import ITEMS, SIDE, WIDTH

_WORDS, _FAILED = len(Call._fields), Call._fields.index("failed")


@jit
def padded(count: int, unit: int) -> int:
    """`count` rounded up to whole units."""
    return (count + unit - 1) // unit * unit


@jit
def report_no_memory(pointer: Any) -> None:
    """Say in a record that nothing was computed."""
    array_at(address_of(pointer), _WORDS, np.int64)[_FAILED] = 1


@inlined
def stopped(call: Any) -> Any:
    """Whether the caller wants no more: asked between pieces of a task that take at most milliseconds."""
    return call.stop != 0 and shared_word(call.stop) != 0


@jit
def task_bounds(task: int, m: int, n: int, tiling: Any) -> Any:
    """(item of the batch, first row, rows, first tile, tiles) of a task."""
    n_tiles = (n + WIDTH - 1) // WIDTH
    row_blocks = (m + tiling.rows - 1) // tiling.rows
    tile_blocks = (n_tiles + tiling.tiles - 1) // tiling.tiles
    item = task // (row_blocks * tile_blocks)
    rest = task % (row_blocks * tile_blocks)
    row0 = rest // tile_blocks * tiling.rows
    tile0 = rest % tile_blocks * tiling.tiles
    return item, row0, min(tiling.rows, m - row0), tile0, min(tiling.tiles, n_tiles - tile0)


@inlined
def start_row(flat: Any, at: int, total: Any, cell: int, columns: int, result: Any) -> None:
    """total[cell + j] = what D, as one row, has at + j, for so many columns j."""
    whole = columns // SIDE * SIDE
    for j in range(0, whole, SIDE):
        start_side(flat, at + j, total, cell + j, result)
    for j in range(whole, columns):
        start_one(flat, at + j, total, cell + j, result)


@inlined
def finish_row(total: Any, cell: int, flat: Any, at: int, columns: int, result: Any) -> None:
    """What D, as one row, has at + j = total[cell + j] with its last bits, for so many columns j."""
    whole = columns // SIDE * SIDE
    for j in range(0, whole, SIDE):
        finish_side(total, cell + j, flat, at + j, result)
    for j in range(whole, columns):
        finish_one(total, cell + j, flat, at + j, result)


@jit
def load_tiles(d: Any, flat: Any, item: int, row0: int, rows: int, tile0: int, tiles: int, result: Any, total: Any) -> None:
    """The accumulators handed in, tile by tile; columns past the edge are zeros. `flat` is d as one row."""
    _, m, n = d.shape
    for tile in range(tiles):
        col0 = (tile0 + tile) * WIDTH
        columns = min(WIDTH, n - col0)
        for row in range(rows):
            cell = (tile * rows + row) * WIDTH
            for j in range(columns, WIDTH):
                total[cell + j] = 0.0
            start_row(flat, (item * m + row0 + row) * n + col0, total, cell, columns, result)


@jit
def store_tiles(total: Any, item: int, row0: int, rows: int, tile0: int, tiles: int, result: Any, d: Any, flat: Any) -> None:
    """The results."""
    _, m, n = d.shape
    for tile in range(tiles):
        col0 = (tile0 + tile) * WIDTH
        for row in range(rows):
            cell = (tile * rows + row) * WIDTH
            finish_row(total, cell, flat, (item * m + row0 + row) * n + col0, min(WIDTH, n - col0), result)


@jit
def item_bounds(task: int, call: Any) -> Any:
    """(first item, first row, rows) of a task whose items lie side by side."""
    row_blocks = (call.m + call.rows - 1) // call.rows
    row0 = task % row_blocks * call.rows
    return task // row_blocks * ITEMS, row0, min(call.rows, call.m - row0)


@jit
def load_items(d: Any, flat: Any, item0: int, row0: int, rows: int, result: Any, total: Any) -> None:
    """load_tiles for ITEMS items side by side; past the last item that one again."""
    batch, m, columns = d.shape
    for place in range(ITEMS):
        item = min(item0 + place, batch - 1)
        for row in range(rows):
            cell = row * WIDTH + place * SIDE
            if columns == SIDE:
                start_side(flat, (item * m + row0 + row) * SIDE, total, cell, result)
                continue
            for j in range(columns, SIDE):
                total[cell + j] = 0.0
            start_row(flat, (item * m + row0 + row) * columns, total, cell, columns, result)


@jit
def store_items(total: Any, item0: int, row0: int, rows: int, result: Any, d: Any, flat: Any) -> None:
    """store_tiles for ITEMS items side by side."""
    batch, m, columns = d.shape
    for place in range(min(ITEMS, batch - item0)):
        for row in range(rows):
            cell = row * WIDTH + place * SIDE
            if columns == SIDE:
                finish_side(total, cell, flat, ((item0 + place) * m + row0 + row) * SIDE, result)
            else:
                finish_row(total, cell, flat, ((item0 + place) * m + row0 + row) * columns, columns, result)


@inlined
def end_chain(total: Any, part: Any, chain: Any, base: int, rows: int, done: int, k: int, numbers: Any, result: Any, dead: Any) -> None:
    """Add up what `done` of k elements of K have come to, where an addition is due.

    The chain goes to the part, which is the total, unless the instruction adds C by itself and the caller promotes too.
    """
    if numbers.restart > 0 and (done % numbers.restart == 0 or done == k):
        add_chain(part, chain, base, rows, numbers.restart_f16, result, dead)
    if numbers.promote > 0 and (done % numbers.promote == 0 or done == k):
        add_chain(total, part, base, rows, np.int64(0), result, dead)  # no constant, which Numba would compile it for


@jit
def add_chain(total: Any, chain: Any, base: int, rows: int, in_f16: int, result: Any, dead: Any) -> None:
    """Add the chain to the total by an IEEE addition, to nearest even in f32 or f16; the chain starts again from +0."""
    if in_f16 == 0:
        before = enter_rounding(NEAREST_EVEN)
        for i in range(base, base + rows * WIDTH):
            total[i] += chain[i]
        leave_rounding(before)
    else:
        for cell in range(base, base + rows * WIDTH, WIDTH):
            nearest_add(total, chain, cell, result)
    for i in range(base, base + rows * WIDTH):
        chain[i] = 0.0
    for row in range(rows):
        dead[row] = 0


@jit
def kill_row(chain: Any, cell: int) -> None:
    """Make every accumulator of a row NaN."""
    for j in range(WIDTH):
        chain[cell + j] = np.nan
