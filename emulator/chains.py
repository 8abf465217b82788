"""Section 6: float64 chains of fused multiply-adds, and exact integer sums, on tiles of WIDTH columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.jit import NEAREST_EVEN, WIDTH, jit, set_rounding
from mmabits.emulator.steps import dot_step

INT32_MAX = 2**31 - 1


@jit
def chain_task(item: int, row0: int, rows: int, tile0: int, tiles: int, a: Any, b: Any, d: Any, numbers: Any) -> None:
    """d += a @ b in float64: one chain of fused multiply-adds an element, k ascending, in the instruction's rounding."""
    set_rounding(numbers.rounding)
    k_total, n_total = a.shape[2], b.shape[2]
    packed = np.empty(k_total * WIDTH, np.float64)
    left = np.empty(k_total, np.float64)
    sums = np.empty(WIDTH, np.float64)
    for tile in range(tile0, tile0 + tiles):
        col0 = tile * WIDTH
        columns = min(WIDTH, n_total - col0)
        packed[:] = 0.0
        for k in range(k_total):
            for j in range(columns):
                packed[k * WIDTH + j] = b[item, k, col0 + j]
        for row in range(row0, row0 + rows):
            for k in range(k_total):
                left[k] = -a[item, row, k] if numbers.negate == 1 else a[item, row, k]
            sums[:] = 0.0
            for j in range(columns):
                sums[j] = d[item, row, col0 + j]
            dot_step(sums, 0, left, 0, packed, k_total)
            for j in range(columns):
                d[item, row, col0 + j] = sums[j]
    set_rounding(NEAREST_EVEN)


@jit
def integer_task(item: int, row0: int, rows: int, tile0: int, tiles: int, a: Any, b: Any, d: Any, numbers: Any) -> None:
    """d += a @ b in int32: exact, each instruction's sum added with wrap-around or, where it saturates, clamped.

    One instruction's own sum stays below 64 * 255 * 255 < 2^23, so it never wraps by itself.
    """
    k_total, n_total = a.shape[2], b.shape[2]
    k_instruction = numbers.k_instruction
    packed = np.empty(k_instruction * WIDTH, np.int32)
    left = np.empty((rows, k_instruction), np.int32)
    flat_left = left.reshape(left.size)
    sums = np.empty(WIDTH, np.int32)
    held = np.empty((rows, WIDTH), np.int32)
    for tile in range(tile0, tile0 + tiles):
        col0 = tile * WIDTH
        columns = min(WIDTH, n_total - col0)
        held[:] = 0
        for row in range(rows):
            for j in range(columns):
                held[row, j] = d[item, row0 + row, col0 + j]
        for k0 in range(0, k_total, k_instruction):
            count = min(k_instruction, k_total - k0)
            packed[:] = 0
            for k in range(count):
                for j in range(columns):
                    packed[k * WIDTH + j] = b[item, k0 + k, col0 + j]
            for row in range(rows):
                for k in range(count):
                    left[row, k] = a[item, row0 + row, k0 + k]
                sums[:] = 0
                dot_step(sums, 0, flat_left, row * k_instruction, packed, count)
                for j in range(WIDTH):
                    total = np.int64(held[row, j]) + np.int64(sums[j])
                    if numbers.saturate == 1:
                        total = min(max(total, -INT32_MAX - 1), INT32_MAX)
                    held[row, j] = np.int32(total & 0xFFFFFFFF)
        for row in range(rows):
            for j in range(columns):
                d[item, row0 + row, col0 + j] = held[row, j]
