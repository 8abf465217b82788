"""Section 6: float64 chains of fused multiply-adds, on tiles of WIDTH columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import address_of, allocate, array_at, carve, enter_rounding, fields_at, jit, leave_rounding, release
from mmabits.emulator.engine.plan import ResultNumbers, StepNumbers
from mmabits.emulator.engine.record import Call, Variant
from mmabits.emulator.engine.steps import dot_step
from mmabits.emulator.engine.tasks import WIDTH
from mmabits.emulator.engine.tiles import finish_row, padded, report_no_memory, stopped, task_bounds

CHAIN_PANEL = 64
"""Elements of K of float64 B packed at a time: 16 KiB, half of a first-level cache."""
CHAIN_BYTES = (CHAIN_PANEL + 2) * (WIDTH + 1) * 8
"""Scratch of a task."""


@jit
def chain_tasks(call: Any, a: Any, b: Any, d: Any, numbers: Any, scratch: Any) -> None:
    """Tasks of d += a @ b in float64: a chain of fused multiply-adds an element, k ascending, rounded as the instruction says.

    The zeros that fill the last instruction are multiplied like all else: they turn -0 to +0, save where it rounds down.
    """
    before = enter_rounding(numbers.rounding)
    k_total, k_padded = a.shape[2], padded(a.shape[2], numbers.k_instruction)
    flat, result = array_at(call.d, d.size, np.float64), fields_at(call.result, ResultNumbers)
    packed, rest = carve(scratch, CHAIN_PANEL * WIDTH, np.float64)
    left, rest = carve(rest, CHAIN_PANEL, np.float64)
    sums, _ = carve(rest, WIDTH, np.float64)
    for task in range(call.first, call.last):
        item, row0, rows, tile0, tiles = task_bounds(task, d.shape[1], d.shape[2], call)
        for tile in range(tile0, tile0 + tiles):
            col0 = tile * WIDTH
            columns = min(WIDTH, d.shape[2] - col0)
            for k0 in range(0, k_padded, CHAIN_PANEL):
                if stopped(call):
                    leave_rounding(before)
                    return
                count = min(CHAIN_PANEL, k_padded - k0)
                given = min(count, k_total - k0)
                for k in range(count):
                    width = columns if k < given else 0
                    for j in range(width):
                        packed[k * WIDTH + j] = b[item, k0 + k, col0 + j]
                    for j in range(width, WIDTH):
                        packed[k * WIDTH + j] = 0.0
                for row in range(row0, row0 + rows):
                    for k in range(given):
                        left[k] = -a[item, row, k0 + k] if numbers.negate == 1 else a[item, row, k0 + k]
                    for k in range(given, count):
                        left[k] = 0.0
                    for j in range(columns):
                        sums[j] = d[item, row, col0 + j]
                    for j in range(columns, WIDTH):
                        sums[j] = 0.0
                    dot_step(sums, 0, left, 0, packed, count)
                    for j in range(columns):
                        d[item, row, col0 + j] = sums[j]
            for row in range(row0, row0 + rows):
                at = (item * d.shape[1] + row) * d.shape[2] + col0
                finish_row(flat, at, flat, at, columns, result)
    leave_rounding(before)


def chain_entry(variant: Variant) -> Callable[[Any], None]:
    """The function of one address: chain_tasks on a record."""
    operand, accumulator = variant.operand.type, variant.accumulator.type

    def run(pointer: Any) -> None:
        call = fields_at(address_of(pointer), Call)
        scratch = allocate(CHAIN_BYTES)
        if scratch == 0:
            report_no_memory(pointer)
            return
        a = array_at(call.a, (call.batch, call.m, call.k), operand)
        b = array_at(call.b, (call.batch, call.k, call.n), operand)
        d = array_at(call.d, (call.batch, call.m, call.n), accumulator)
        chain_tasks(call, a, b, d, fields_at(call.numbers, StepNumbers), scratch)
        release(scratch)

    return run
