"""Tiles: where a task lies, and what every kind of task does with its accumulators."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.jit import address_of, array_at, enter_rounding, inlined, jit, leave_rounding, shared_word
from mmabits.emulator.native import Call
from mmabits.emulator.plan import NEAREST_EVEN
from mmabits.emulator.steps import load_side, nearest_add, store_side
from mmabits.emulator.tasks import ITEMS, SIDE, WIDTH

CACHE_LINE = 64
"""Bytes: scratch arrays begin at multiples."""
_WORDS, _FAILED = len(Call._fields), Call._fields.index("failed")


@jit
def carve(base: int, shape: Any, dtype: Any) -> Any:
    """An array in scratch from address `base` on, and the address after it."""
    start = (base + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
    found = array_at(start, shape, dtype)
    return found, start + found.size * found.itemsize


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


@jit
def load_tiles(d: Any, item: int, row0: int, rows: int, tile0: int, tiles: int, total: Any) -> None:
    """The accumulators handed in, tile by tile; columns past the edge are zeros."""
    for tile in range(tiles):
        col0 = (tile0 + tile) * WIDTH
        columns = min(WIDTH, d.shape[2] - col0)
        for row in range(rows):
            cell = (tile * rows + row) * WIDTH
            for j in range(columns, WIDTH):
                total[cell + j] = 0.0
            for j in range(columns):
                total[cell + j] = d[item, row0 + row, col0 + j]


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


@jit
def item_bounds(task: int, call: Any) -> Any:
    """(first item, first row, rows) of a task whose items lie side by side."""
    row_blocks = (call.m + call.rows - 1) // call.rows
    row0 = task % row_blocks * call.rows
    return task // row_blocks * ITEMS, row0, min(call.rows, call.m - row0)


@jit
def load_items(d: Any, flat: Any, item0: int, row0: int, rows: int, total: Any) -> None:
    """load_tiles for ITEMS items side by side; past the last item that one again. `flat` is d as one row."""
    batch, m, columns = d.shape
    for place in range(ITEMS):
        item = min(item0 + place, batch - 1)
        for row in range(rows):
            cell = row * WIDTH + place * SIDE
            if columns == SIDE:
                load_side(flat, (item * m + row0 + row) * SIDE, total, cell)
                continue
            for j in range(columns, SIDE):
                total[cell + j] = 0.0
            for j in range(columns):
                total[cell + j] = d[item, row0 + row, j]


@jit
def store_items(total: Any, item0: int, row0: int, rows: int, result: Any, d: Any, flat: Any) -> None:
    """store_tiles for ITEMS items side by side."""
    d_bits = d.view(np.int32)
    batch, m, columns = d.shape
    for place in range(min(ITEMS, batch - item0)):
        for row in range(rows):
            cell = row * WIDTH + place * SIDE
            if columns == SIDE:
                store_side(total, cell, flat, ((item0 + place) * m + row0 + row) * SIDE, result.nan)
                continue
            for j in range(columns):
                value = total[cell + j]
                d[item0 + place, row0 + row, j] = value
                if np.isnan(value):
                    d_bits[item0 + place, row0 + row, j] = result.nan


@jit
def add_chain(total: Any, chain: Any, base: int, rows: int, numbers: Any, result: Any, dead: Any) -> None:
    """Add the chain to the total by an IEEE addition, to nearest even in f32 or f16; the chain starts again from +0."""
    if numbers.restart_f16 == 0:
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
