"""How a product is divided into tasks. Nothing here needs a compiler."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

WIDTH = 32
"""Columns of a tile: four vectors of f32, two halves of four vectors of f64."""
SIDE = 8
"""Columns of an item of a batch of small products that lies in a tile side by side with others: a vector of f32."""
ITEMS = WIDTH // SIDE
"""Items side by side in a tile."""
ROWS = 256
"""Rows of a task: enough that decoding B for them costs little beside the sums."""
TILES = 8
"""Tiles of WIDTH columns of a task: enough that decoding A for them costs little."""
FEWEST_ROWS = 32
"""Rows of a task below which it is not divided further for the sake of another thread."""
PANEL = 256
"""Elements of K whose codes of A are decoded at a time."""


class Tiling(NamedTuple):
    """How a product is divided into tasks."""

    rows: int
    tiles: int


@lru_cache(maxsize=4096)
def tiling(batch: int, m: int, n: int, threads: int, in_bytes: bool = False) -> Tiling:
    """Large tasks, but enough of them for every thread; none where there are no rows or columns.

    Those whose elements are bytes have twice the columns: their products take less time, and their operands less room.
    """
    rows, tiles = max(1, min(ROWS, m)), max(1, min(2 * TILES if in_bytes else TILES, -(-n // WIDTH)))
    while task_count(batch, m, n, Tiling(rows, tiles)) < 2 * threads and (tiles > 1 or rows > FEWEST_ROWS):
        rows, tiles = (rows, -(-tiles // 2)) if tiles > 1 else (-(-rows // 2), tiles)
    return Tiling(rows, tiles)


def task_count(batch: int, m: int, n: int, tiling: Tiling) -> int:
    """Number of tasks of a product."""
    return batch * -(-m // tiling.rows) * -(-n // (tiling.tiles * WIDTH))


def lie_side_by_side(batch: int, n: int) -> bool:
    """Whether a batch has items that fill the columns they have in a tile side by side, or most of them."""
    return SIDE // 2 < n <= SIDE and batch > 1


def side_by_side_tiling(m: int) -> Tiling:
    """Tasks of ITEMS items, of rows that take no more scratch than those of a large product."""
    return Tiling(max(1, min(ROWS // ITEMS, m)), 1)


def side_by_side_count(batch: int, m: int, tiling: Tiling) -> int:
    """Number of tasks of a batch whose items lie side by side."""
    return -(-batch // ITEMS) * -(-m // tiling.rows)
