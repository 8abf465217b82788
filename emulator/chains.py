"""Section 6: float64 chains of fused multiply-adds, and exact integer sums, on tiles of WIDTH columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.jit import WIDTH, enter_rounding, entry, leave_rounding
from mmabits.emulator.steps import dot_step
from mmabits.emulator.tiles import task_bounds

INT32_MAX = 2**31 - 1
CHAIN_PANEL = 64
"""Elements of K of float64 B packed at a time: 16 KiB, half of a first-level cache."""


@entry
def chain_tasks(first: int, last: int, tiling: Any, a: Any, b: Any, d: Any, numbers: Any) -> None:
    """Tasks of d += a @ b in float64: a chain of fused multiply-adds an element, k ascending, rounded as the instruction says."""
    before = enter_rounding(numbers.rounding)
    k_total = a.shape[2]
    packed = np.empty(CHAIN_PANEL * WIDTH, np.float64)
    left = np.empty(CHAIN_PANEL, np.float64)
    sums = np.empty(WIDTH, np.float64)
    for task in range(first, last):
        item, row0, rows, tile0, tiles = task_bounds(task, d.shape[1], d.shape[2], tiling)
        for tile in range(tile0, tile0 + tiles):
            col0 = tile * WIDTH
            columns = min(WIDTH, d.shape[2] - col0)
            for k0 in range(0, k_total, CHAIN_PANEL):
                count = min(CHAIN_PANEL, k_total - k0)
                for k in range(count):
                    for j in range(columns):
                        packed[k * WIDTH + j] = b[item, k0 + k, col0 + j]
                    for j in range(columns, WIDTH):
                        packed[k * WIDTH + j] = 0.0
                for row in range(row0, row0 + rows):
                    for k in range(count):
                        left[k] = -a[item, row, k0 + k] if numbers.negate == 1 else a[item, row, k0 + k]
                    for j in range(columns):
                        sums[j] = d[item, row, col0 + j]
                    for j in range(columns, WIDTH):
                        sums[j] = 0.0
                    dot_step(sums, 0, left, 0, packed, count)
                    for j in range(columns):
                        d[item, row, col0 + j] = sums[j]
    leave_rounding(before)


@entry
def integer_tasks(first: int, last: int, tiling: Any, a: Any, b: Any, d: Any, numbers: Any) -> None:
    """Tasks of d += a @ b in int32: exact, each instruction's sum added with wrap-around or, where it saturates, clamped.

    One instruction's own sum stays below 64 * 255 * 255 < 2^23, so it never wraps by itself.
    """
    k_total, k_instruction = a.shape[2], numbers.k_instruction
    packed = np.empty(k_instruction * WIDTH, np.int32)
    left = np.empty(k_instruction, np.int32)
    sums = np.empty(WIDTH, np.int32)
    for task in range(first, last):
        item, row0, rows, tile0, tiles = task_bounds(task, d.shape[1], d.shape[2], tiling)
        for tile in range(tile0, tile0 + tiles):
            col0 = tile * WIDTH
            columns = min(WIDTH, d.shape[2] - col0)
            for k0 in range(0, k_total, k_instruction):
                count = min(k_instruction, k_total - k0)
                for k in range(count):
                    for j in range(columns):
                        packed[k * WIDTH + j] = b[item, k0 + k, col0 + j]
                    for j in range(columns, WIDTH):
                        packed[k * WIDTH + j] = 0
                for row in range(row0, row0 + rows):
                    for k in range(count):
                        left[k] = a[item, row, k0 + k]
                    sums[:] = 0
                    dot_step(sums, 0, left, 0, packed, count)
                    for j in range(columns):
                        total = np.int64(d[item, row, col0 + j]) + np.int64(sums[j])
                        if numbers.saturate == 1:
                            total = min(max(total, np.int64(-INT32_MAX - 1)), np.int64(INT32_MAX))
                        d[item, row, col0 + j] = np.int32(total & 0xFFFFFFFF)
