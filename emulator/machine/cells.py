"""Tensor memory, compiled: allocation, and what moves between it and registers.

A lane's 512 columns of 32 bits lie side by side. `blocks` has a word for every 32 columns: 0 where they are free, else one more than the
first column of the allocation that they belong to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import array_at, jit
from mmabits.emulator.machine.context import CONTEXT_WORDS, PARTIAL, Context
from mmabits.emulator.machine.helpers import _fail, _resolved
from mmabits.emulator.machine.tensorrecords import (
    ALLOCATE,
    CLOSE,
    FREE,
    NOT_ALLOCATED,
    NOT_FREED,
    NOT_LEFT,
    STORE,
    TENSOR_ADDRESS,
    TENSOR_COLUMNS,
    TensorMemory,
)
from mmabits.isa.memories import TENSOR_MEMORY

_TENSOR, _WARP, _ERROR_INSTRUCTION = (Context._fields.index(name) for name in ("tensor", "warp", "error_instruction"))
_CELLS, _BLOCKS, _CLOSED, _FIRST, _LAST = (TensorMemory._fields.index(name) for name in ("cells", "blocks", "closed", "first", "last"))
_RECORD = len(TensorMemory._fields)
LANES, COLUMNS, BLOCK = TENSOR_MEMORY.lanes, TENSOR_MEMORY.columns, TENSOR_MEMORY.block


@jit
def cells_of(context: Any) -> Any:
    """Address of the cells of a warp's CTA."""
    return array_at(context[_TENSOR], _RECORD, np.int64)[_CELLS]


@jit
def is_allocated(context: Any, column: int, columns: int) -> bool:
    """Whether a warp's CTA has some columns."""
    if column < 0 or column + columns > COLUMNS:
        return False
    blocks = array_at(array_at(context[_TENSOR], _RECORD, np.int64)[_BLOCKS], COLUMNS // BLOCK, np.int64)
    has = True
    for block in range(column // BLOCK, (column + columns + BLOCK - 1) // BLOCK):
        has = has and blocks[block] != 0
    return has


@jit
def begin_tensor(context: Any) -> None:
    """Tensor memory as it is at the start of a warp's CTA: nothing is allocated."""
    if context[_TENSOR] == 0:
        return
    memory = array_at(context[_TENSOR], _RECORD, np.int64)
    blocks = array_at(memory[_BLOCKS], COLUMNS // BLOCK, np.int64)
    for block in range(COLUMNS // BLOCK):
        blocks[block] = 0
    memory[_CLOSED], memory[_FIRST], memory[_LAST] = 0, 0, 0


@jit
def end_tensor(context: Any) -> None:
    """An error where a CTA ends and has not given back what it allocated."""
    if context[_TENSOR] == 0:
        return
    blocks = array_at(array_at(context[_TENSOR], _RECORD, np.int64)[_BLOCKS], COLUMNS // BLOCK, np.int64)
    for block in range(COLUMNS // BLOCK):
        if blocks[block] != 0:
            _fail(context, NOT_FREED, context[_ERROR_INSTRUCTION], 0, block * BLOCK)
            return


@jit
def _allocate(context: Any, columns: int, target: int, instruction: int) -> None:
    """The first columns that are free together, zeroed; their address goes to shared memory."""
    memory = array_at(context[_TENSOR], _RECORD, np.int64)
    blocks = array_at(memory[_BLOCKS], COLUMNS // BLOCK, np.int64)
    if columns < BLOCK or columns > COLUMNS or columns & (columns - 1) != 0:
        _fail(context, TENSOR_COLUMNS, instruction, 0, columns)
        return
    wanted = columns // BLOCK
    run, found = 0, -1
    for block in range(COLUMNS // BLOCK):
        run = run + 1 if blocks[block] == 0 else 0
        if run == wanted:
            found = block + 1 - wanted
            break
    if found < 0 or memory[_CLOSED] != 0:
        _fail(context, NOT_LEFT, instruction, 0, columns)
        return
    place = _resolved(context, target, 4, 0, instruction)
    if place == 0:
        return
    for block in range(found, found + wanted):
        blocks[block] = found * BLOCK + 1
    cells = array_at(memory[_CELLS], LANES * COLUMNS, np.uint32)
    for lane in range(LANES):
        for column in range(found * BLOCK, found * BLOCK + columns):
            cells[lane * COLUMNS + column] = 0
    array_at(place, 1, np.uint32)[0] = found * BLOCK


@jit
def _free(context: Any, address: int, columns: int, instruction: int) -> None:
    """Give columns back: exactly those of one allocation."""
    blocks = array_at(array_at(context[_TENSOR], _RECORD, np.int64)[_BLOCKS], COLUMNS // BLOCK, np.int64)
    first = address // BLOCK
    fits = address & (BLOCK - 1) == 0 and columns & (BLOCK - 1) == 0 and columns > 0 and address + columns <= COLUMNS
    if fits:
        for block in range(first, first + columns // BLOCK):
            fits = fits and blocks[block] == address + 1
        after = first + columns // BLOCK
        fits = fits and (after == COLUMNS // BLOCK or blocks[after] != address + 1)
    if not fits:
        _fail(context, NOT_ALLOCATED, instruction, 0, address)
        return
    for block in range(first, first + columns // BLOCK):
        blocks[block] = 0


@jit
def transfer_place(shape: int, thread: int, register: int) -> Any:
    """Lane and column of a register: 32x32b, 16x64b, 16x128b, 16x256b and 16x32bx2 in this order."""
    if shape == 0:
        return thread, register
    if shape == 1:
        return thread // 4 + 8 * (thread % 2), thread // 2 % 2 + 2 * register
    if shape == 2:
        return thread // 4 + 8 * (register % 2), thread % 4 + 4 * (register // 2)
    if shape == 3:
        return thread // 4 + 8 * (register // 2 % 2), register % 2 + 2 * (thread % 4) + 8 * (register // 4)
    return thread % 16, register


@jit
def _transfer(words: Any, store: bool) -> None:
    """tcgen05.ld, tcgen05.st: what, context, instruction, mask, addresses, data, shape, registers, split, packed.

    Data lie register after register, a word for each thread.
    """
    context = array_at(words[2], CONTEXT_WORDS, np.int64)
    instruction, shape, registers, split, packed = words[3], words[7], words[8], words[9], words[10]
    addresses = array_at(words[5], 32, np.uint32)
    data = array_at(words[6], 32 * registers, np.uint32)
    address = np.int64(addresses[0])
    for thread in range(32):
        if np.int64(addresses[thread]) != address:
            _fail(context, TENSOR_ADDRESS, instruction, thread, np.int64(addresses[thread]))
            return
    first_lane, first_column = address >> 16, address & 0xFFFF
    rows = 32 if shape == 0 else 16
    quarter = context[_WARP] % 4 * 32
    if shape == 0 and first_lane == 0:  # DeepGEMM's kernels name no lane: each warp gets its own quarter. Inferred from them
        first_lane = quarter
    if first_lane != quarter and not (rows == 16 and first_lane == quarter + 16):
        _fail(context, TENSOR_ADDRESS, instruction, 0, address)
        return
    parts = 2 if packed != 0 else 1
    per_register = 2 if shape == 1 or shape == 2 or shape == 3 else 1
    span = registers * per_register * parts
    if not is_allocated(context, first_column, span) or (shape == 4 and not is_allocated(context, first_column + split, span)):
        _fail(context, NOT_ALLOCATED, instruction, 0, address)
        return
    cells = array_at(cells_of(context), LANES * COLUMNS, np.uint32)
    for register in range(registers):
        for thread in range(32):
            lane, word = transfer_place(shape, thread, register)
            column = first_column + word * parts
            if shape == 4 and thread >= 16:
                column += split
            cell = (first_lane + lane) * COLUMNS + column
            at = 32 * register + thread
            if parts == 1:
                if store:
                    cells[cell] = data[at]
                else:
                    data[at] = cells[cell]
            elif store:
                cells[cell] = data[at] & np.uint32(0xFFFF)
                cells[cell + 1] = data[at] >> np.uint32(16)
            else:
                data[at] = (cells[cell] & np.uint32(0xFFFF)) | cells[cell + 1] << np.uint32(16)


@jit
def tensor(words: Any) -> None:
    """An operation of the whole warp: TENSOR, what, context, instruction, mask of lanes, then what it takes."""
    what, mask = words[1], words[4]
    if mask == 0:
        return
    context = array_at(words[2], CONTEXT_WORDS, np.int64)
    if mask != 0xFFFFFFFF:
        _fail(context, PARTIAL, words[3], 0, 0)
        return
    if what == ALLOCATE:
        _allocate(context, words[5], words[6], words[3])
    elif what == FREE:
        _free(context, words[5], words[6], words[3])
    elif what == CLOSE:
        array_at(context[_TENSOR], _RECORD, np.int64)[_CLOSED] = 1
    else:
        _transfer(words, what == STORE)
