"""wgmma, compiled by Numba: products that four warps ask for one after another, and that are done when a wait wants them.

A product waits in its warpgroup's queue until all four warps have asked for it. The first wait after that carries it out, M = 64 at once,
and those behind it that go on in the same accumulators with it: a chain along K is one call of the engine. Accumulators are read from the
warps' registers, and written to them, where those lie in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import array_at, call_at, jit
from mmabits.emulator.machine.context import Context, Cta
from mmabits.emulator.machine.helpers import _fail
from mmabits.emulator.machine.operands import WGMMA, put_code, read_matrix
from mmabits.emulator.machine.warpgrouprecords import (
    BAD_DESCRIPTOR,
    COMMIT,
    ENTRIES,
    ENTRY,
    FRAGMENT,
    FRAGMENTS,
    GROUPS,
    HEAD,
    ISSUE,
    MOST_STEPS,
    OTHER_PRODUCT,
    QUEUE,
    QUEUE_WORDS,
    ROOM_B,
    ROOM_CALL,
    ROOM_D,
    TOO_MANY,
    Queue,
    WarpgroupProduct,
)

_DONE, _COMMITTED = Queue._fields.index("done"), Queue._fields.index("committed")
_P = WarpgroupProduct._fields
(
    _N, _K, _A_BITS, _B_BITS, _A_HELD, _B_HELD, _D_BITS, _A_IN_REGISTERS, _A_MN, _B_MN, _ENGINE, _RECORDS, _RECORD_WORDS, _COUNTER,
    _REGISTER_COUNT, _SLOTS,
) = range(len(_P))  # fmt: skip
_WORDS, _CTA_WORDS = len(Context._fields), len(Cta._fields)
_WARP, _REGISTERS, _SHARED, _SHARED_SIZE, _CTA, _COUNTS, _WARPGROUP, _WORK_ROOM, _EVENTS, _ERROR, _ERROR_INSTRUCTION, _TABLES = (
    Context._fields.index(name)
    for name in (
        "warp", "registers", "shared", "shared_size", "cta", "counts", "warpgroup", "work_room", "events", "error", "error_instruction",
        "warpgroup_tables",
    )
)  # fmt: skip
_CONTEXTS = Cta._fields.index("contexts")


@jit
def warpgroup(words: Any) -> None:
    """What, context, instruction; of a product: its table's number, descriptors, whether C counts, A's fragment; of a wait: groups, or -1.

    A wait writes whether the warp must wait behind them.
    """
    context = array_at(words[2], _WORDS, np.int64)
    queue = array_at(context[_WARPGROUP], QUEUE_WORDS, np.int64)
    warp = context[_WARP] & 3
    if words[1] == ISSUE:
        _issue(context, queue, warp, words)
        return
    if words[1] == COMMIT:
        queue[HEAD + GROUPS * warp + queue[_COMMITTED + warp] % GROUPS] = queue[warp]
        queue[_COMMITTED + warp] += 1
        return
    wanted = queue[warp]
    if words[4] >= 0:
        group = queue[_COMMITTED + warp] - words[4] - 1
        wanted = queue[HEAD + GROUPS * warp + group % GROUPS] if group >= 0 else np.int64(0)
    words[5] = 0
    if queue[_DONE] >= wanted:
        return
    if context[_ERROR] == 0:
        context[_ERROR_INSTRUCTION] = words[3]
    if min(min(queue[0], queue[1]), min(queue[2], queue[3])) < wanted:
        words[5] = 1
        return
    context[_EVENTS] += 1
    while queue[_DONE] < wanted:
        steps = _chain(queue, wanted)
        _multiply(context, queue, queue[_DONE], steps, words[3])
        queue[_DONE] += steps


@jit
def carry_out_products(address: int) -> None:
    """Products that all four warps of the warpgroup of a context have asked for."""
    context = array_at(address, _WORDS, np.int64)
    queue = array_at(context[_WARPGROUP], QUEUE_WORDS, np.int64)
    wanted = min(min(queue[0], queue[1]), min(queue[2], queue[3]))
    while queue[_DONE] < wanted:
        steps = _chain(queue, wanted)
        _multiply(context, queue, queue[_DONE], steps, context[_ERROR_INSTRUCTION])
        queue[_DONE] += steps


@jit
def _issue(context: Any, queue: Any, warp: int, words: Any) -> None:
    number = queue[warp]
    if number - queue[_DONE] >= QUEUE:
        _fail(context, TOO_MANY, words[3], 0, 0)
        return
    entry = ENTRIES + ENTRY * (number % QUEUE)
    others = max(max(queue[0], queue[1]), max(queue[2], queue[3]))
    if others > number:
        if queue[entry] != words[4] or queue[entry + 1] != words[5] or queue[entry + 2] != words[6] or queue[entry + 3] != words[7]:
            _fail(context, OTHER_PRODUCT, words[3], 0, 0)
            return
    else:
        for word in range(ENTRY):
            queue[entry + word] = words[4 + word]
    if words[8] != 0:
        fragment = array_at(words[8], FRAGMENT // 8, np.int64)
        for word in range(FRAGMENT // 8):
            queue[FRAGMENTS + (number % QUEUE * 4 + warp) * (FRAGMENT // 8) + word] = fragment[word]
    queue[warp] += 1
    context[_EVENTS] += 1


@jit
def _chain(queue: Any, wanted: int) -> int:
    """Products from the first that is not done that add to the same accumulators."""
    first = queue[_DONE]
    steps = 1
    while steps < MOST_STEPS and first + steps < wanted:
        entry = ENTRIES + ENTRY * ((first + steps) % QUEUE)
        if queue[entry] != queue[ENTRIES + ENTRY * (first % QUEUE)] or queue[entry + 3] == 0:
            break
        steps += 1
    return steps


@jit
def _multiply(context: Any, queue: Any, first: int, steps: int, instruction: int) -> None:
    """Products first .. first + steps - 1."""
    entry = ENTRIES + ENTRY * (first % QUEUE)
    table = array_at(array_at(context[_TABLES], queue[entry] + 1, np.int64)[queue[entry]], len(_P), np.int64)
    n, k = table[_N], table[_K]
    whole, room = k * steps, context[_WORK_ROOM]
    a_size = 4 if table[_A_HELD] == 32 else 1 if table[_A_HELD] == 8 else 2
    b_size = 4 if table[_B_HELD] == 32 else 1 if table[_B_HELD] == 8 else 2
    error = 0
    for step in range(steps):
        number = (first + step) % QUEUE
        entry = ENTRIES + ENTRY * number
        if table[_A_IN_REGISTERS]:
            for warp in range(4):
                fragment = context[_WARPGROUP] + 8 * (FRAGMENTS + (number * 4 + warp) * (FRAGMENT // 8))
                _from_registers(fragment, room + a_size * step * k, 16 * warp, whole, table[_A_BITS], table[_A_HELD])
        else:
            error |= read_matrix(
                context[_SHARED], context[_SHARED_SIZE], queue[entry + 1], WGMMA, table[_A_MN] != 0, 64, k, table[_A_BITS],
                128 // table[_A_BITS], room + a_size * step * k, whole, 1, table[_A_HELD], 0,
            )  # fmt: skip
        error |= read_matrix(
            context[_SHARED], context[_SHARED_SIZE], queue[entry + 2], WGMMA, table[_B_MN] != 0, n, k, table[_B_BITS],
            128 // table[_B_BITS], room + ROOM_B + b_size * step * k * n, 1, n, table[_B_HELD], 0,
        )  # fmt: skip
    entry = ENTRIES + ENTRY * (first % QUEUE)
    if error != 0:
        _fail(context, BAD_DESCRIPTOR, instruction, 0, queue[entry + 2])
        return
    cta = array_at(context[_CTA], _CTA_WORDS, np.int64)
    base = cta[_CONTEXTS] + 8 * _WORDS * (context[_WARP] // 4 * 4)
    adds = queue[entry + 3] != 0
    if not adds:
        cells = array_at(room + ROOM_D, 64 * n * table[_D_BITS] // 64, np.int64)
        for word in range(64 * n * table[_D_BITS] // 64):
            cells[word] = 0
    else:
        for warp in range(4):
            registers = array_at(base + 8 * _WORDS * warp, _WORDS, np.int64)[_REGISTERS]
            _accumulate(registers, table, room + ROOM_D, 16 * warp, False)
    words = table[_RECORD_WORDS]
    record = array_at(table[_RECORDS] + 8 * words * (steps - 1), words, np.int64)
    call = array_at(room + ROOM_CALL, words, np.int64)
    for word in range(words):
        call[word] = record[word]
    call[0], call[1], call[2] = room, room + ROOM_B, room + ROOM_D
    call_at(table[_ENGINE], room + ROOM_CALL)
    array_at(context[_COUNTS], 1 << 20, np.int64)[table[_COUNTER]] += steps
    for warp in range(4):
        registers = array_at(base + 8 * _WORDS * warp, _WORDS, np.int64)[_REGISTERS]
        _accumulate(registers, table, room + ROOM_D, 16 * warp, True)


@jit
def _from_registers(fragment: int, out: int, row0: int, stride: int, bits: int, held: int) -> None:
    """A fragment of A: four registers, rows g and g + 8, neighbours along K."""
    words = array_at(fragment, 4 * 32, np.uint32)
    count = 32 // bits
    mask = np.uint64((1 << bits) - 1)
    for register in range(4):
        for lane in range(32):
            row = row0 + lane // 4 + 8 * (register & 1)
            along = (lane % 4 + 4 * (register >> 1)) * count
            word = np.uint64(words[32 * register + lane])
            for place in range(count):
                put_code(out, row * stride + along + place, word >> np.uint64(bits * place) & mask, bits, held)


@jit
def _accumulate(registers: int, table: Any, matrix: int, row0: int, back: bool) -> None:
    """C from a warp's registers to the engine's matrix, or D back."""
    n, slots = table[_N], array_at(table[_SLOTS], table[_REGISTER_COUNT], np.int32)
    wide = table[_D_BITS] == 32
    for place in range(table[_REGISTER_COUNT]):
        cells = array_at(registers + slots[place], 32, np.uint32)
        if wide:
            row, column = row0 + 8 * (place >> 1 & 1), 8 * (place >> 2) + (place & 1)
            values = array_at(matrix + 4 * (row * n + column), 8 * n, np.uint32)
            for group in range(8):
                for lane in range(4):
                    if back:
                        cells[4 * group + lane] = values[group * n + 2 * lane]
                    else:
                        values[group * n + 2 * lane] = cells[4 * group + lane]
        else:
            row, column = row0 + 8 * (place & 1), 8 * (place >> 1)
            pairs = array_at(matrix + 2 * (row * n + column), 4 * n, np.uint32)
            for group in range(8):
                for lane in range(4):
                    if back:
                        cells[4 * group + lane] = pairs[group * n // 2 + lane]
                    else:
                        pairs[group * n // 2 + lane] = cells[4 * group + lane]
