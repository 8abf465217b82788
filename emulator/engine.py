"""Products split into tasks, and the tasks into threads."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from mmabits.emulator import plan
from mmabits.emulator.chains import chain_task, integer_task
from mmabits.emulator.fused import fused_task
from mmabits.emulator.grouped import grouped_task
from mmabits.emulator.jit import WIDTH, jit, prange
from mmabits.isa import Arithmetic, Lowering, UnsupportedInstruction

ROWS = 128
"""Rows of a task: enough that decoding B for them costs little beside the sums."""
TILES = 8
"""Tiles of WIDTH columns of a task: enough that decoding A for them costs little."""
SERIAL_PRODUCTS = 1 << 17
"""Below this many products a task queue costs more than a second thread saves."""

_parallel_lock = threading.Lock()
"""Numba's default thread pool serves one caller at a time."""


@jit(inline=True)
def task_bounds(task: int, m: int, n_tiles: int, row_blocks: int, tile_blocks: int) -> Any:
    """(item, first row, rows, first tile, tiles) of a task."""
    item = task // (row_blocks * tile_blocks)
    rest = task % (row_blocks * tile_blocks)
    row0 = rest // tile_blocks * ROWS
    tile0 = rest % tile_blocks * TILES
    return item, row0, min(ROWS, m - row0), tile0, min(TILES, n_tiles - tile0)


@jit
def fused_serial(carrier: Any, a: Any, b: Any, scale_a: Any, scale_b: Any, d: Any, order: Any, form_a: Any, form_b: Any,
                 scale_form: Any, numbers: Any, result: Any, row_blocks: int, tile_blocks: int) -> None:  # fmt: skip
    """Every task, one after the other."""
    n_tiles = (d.shape[2] + WIDTH - 1) // WIDTH
    for task in range(d.shape[0] * row_blocks * tile_blocks):
        item, row0, rows, tile0, tiles = task_bounds(task, d.shape[1], n_tiles, row_blocks, tile_blocks)
        fused_task(carrier, item, row0, rows, tile0, tiles, a, b, scale_a, scale_b, d, order, form_a, form_b, scale_form, numbers, result)


@jit(parallel=True)
def fused_parallel(carrier: Any, a: Any, b: Any, scale_a: Any, scale_b: Any, d: Any, order: Any, form_a: Any, form_b: Any,
                   scale_form: Any, numbers: Any, result: Any, row_blocks: int, tile_blocks: int) -> None:  # fmt: skip
    """Every task, in parallel."""
    n_tiles = (d.shape[2] + WIDTH - 1) // WIDTH
    for task in prange(d.shape[0] * row_blocks * tile_blocks):
        item, row0, rows, tile0, tiles = task_bounds(task, d.shape[1], n_tiles, row_blocks, tile_blocks)
        fused_task(carrier, item, row0, rows, tile0, tiles, a, b, scale_a, scale_b, d, order, form_a, form_b, scale_form, numbers, result)


@jit
def grouped_serial(a: Any, b: Any, scale_a: Any, scale_b: Any, d: Any, form_a: Any, form_b: Any, scale_form: Any, numbers: Any, result: Any,
                   row_blocks: int, tile_blocks: int) -> None:  # fmt: skip
    """Every task, one after the other."""
    n_tiles = (d.shape[2] + WIDTH - 1) // WIDTH
    for task in range(d.shape[0] * row_blocks * tile_blocks):
        item, row0, rows, tile0, tiles = task_bounds(task, d.shape[1], n_tiles, row_blocks, tile_blocks)
        grouped_task(item, row0, rows, tile0, tiles, a, b, scale_a, scale_b, d, form_a, form_b, scale_form, numbers, result)


@jit(parallel=True)
def grouped_parallel(a: Any, b: Any, scale_a: Any, scale_b: Any, d: Any, form_a: Any, form_b: Any, scale_form: Any, numbers: Any, result: Any,
                     row_blocks: int, tile_blocks: int) -> None:  # fmt: skip
    """Every task, in parallel."""
    n_tiles = (d.shape[2] + WIDTH - 1) // WIDTH
    for task in prange(d.shape[0] * row_blocks * tile_blocks):
        item, row0, rows, tile0, tiles = task_bounds(task, d.shape[1], n_tiles, row_blocks, tile_blocks)
        grouped_task(item, row0, rows, tile0, tiles, a, b, scale_a, scale_b, d, form_a, form_b, scale_form, numbers, result)


@jit(parallel=True)
def chain_parallel(a: Any, b: Any, d: Any, numbers: Any, row_blocks: int, tile_blocks: int) -> None:
    """Every task, in parallel."""
    n_tiles = (d.shape[2] + WIDTH - 1) // WIDTH
    for task in prange(d.shape[0] * row_blocks * tile_blocks):
        item, row0, rows, tile0, tiles = task_bounds(task, d.shape[1], n_tiles, row_blocks, tile_blocks)
        chain_task(item, row0, rows, tile0, tiles, a, b, d, numbers)


@jit(parallel=True)
def integer_parallel(a: Any, b: Any, d: Any, numbers: Any, row_blocks: int, tile_blocks: int) -> None:
    """Every task, in parallel."""
    n_tiles = (d.shape[2] + WIDTH - 1) // WIDTH
    for task in prange(d.shape[0] * row_blocks * tile_blocks):
        item, row0, rows, tile0, tiles = task_bounds(task, d.shape[1], n_tiles, row_blocks, tile_blocks)
        integer_task(item, row0, rows, tile0, tiles, a, b, d, numbers)


Array = npt.NDArray[Any]
_NO_SCALES = np.zeros((0, 0, 0), np.uint8)
_CARRIERS = {24: np.empty(0, np.float32), 53: np.empty(0, np.float64)}


def run(lowering: Lowering, a: Array, b: Array, d: Array, scale_a: Array | None, scale_b: Array | None, promote_every: int = 0) -> None:
    """d = a @ b + d with the arithmetic of a lowering. Everything has been checked; arrays are contiguous.

    Args:
        lowering: what the architecture makes of the instruction.
        a: (batch, M, K) operand codes as unsigned integers; int8 or uint8 values for integers, float64 for f64.
        b: (batch, K, N), like `a`.
        d: (batch, M, N) accumulators in, results out: float32 (also for f16), int32 or float64.
        scale_a: (batch, M, blocks) scale codes, or None.
        scale_b: (batch, blocks, N) scale codes, or None.
        promote_every: elements of K after which the chain is added to an f32 total; 0 for never.
    """
    numbers = plan.step_numbers(lowering, promote_every=promote_every)
    batch, m, n = d.shape
    row_blocks, tile_blocks = -(-m // ROWS), -(-n // (TILES * WIDTH))
    serial = batch * row_blocks * tile_blocks == 1 or batch * m * n * a.shape[2] < SERIAL_PRODUCTS
    blocks = (row_blocks, tile_blocks)
    arithmetic = lowering.datapath.arithmetic
    if arithmetic is Arithmetic.FMA_CHAIN:
        _threaded(chain_parallel, a, b, d, numbers, *blocks)
        return
    if arithmetic is Arithmetic.INTEGER:
        _threaded(integer_parallel, a, b, d, numbers, *blocks)
        return
    result = plan.result_numbers(lowering)
    instruction = lowering.instruction
    form_a, form_b = (plan.format_numbers(form, lowering.unpacked_to) for form in (instruction.a_type, instruction.b_type))
    scale_form = plan.format_numbers(instruction.scale_type or instruction.a_type)
    scales = (_NO_SCALES if scale_a is None else scale_a, _NO_SCALES if scale_b is None else scale_b)
    if arithmetic is Arithmetic.GROUPED:
        arguments = (a, b, *scales, d, form_a, form_b, scale_form, numbers, result, *blocks)
        if serial:
            grouped_serial(*arguments)
        else:
            _threaded(grouped_parallel, *arguments)
        return
    bits = plan.carrier_bits(lowering)
    if bits == 0:
        path = lowering.datapath
        raise UnsupportedInstruction(f"{path.name}: {path.fraction_bits} fraction bits over {lowering.step} elements need more than 53 bits")
    order = np.array(lowering.k_order or (), np.int64)
    fused = (_CARRIERS[bits], a, b, *scales, d, order, form_a, form_b, scale_form, numbers, result, *blocks)
    if serial:
        fused_serial(*fused)
    else:
        _threaded(fused_parallel, *fused)


def _threaded(function: Any, *arguments: Any) -> None:
    with _parallel_lock:
        function(*arguments)
