"""tcgen05's asynchronous work, compiled: products and copies into tensor memory, in the order in which they were asked for.

Work waits in the CTA's queue until somebody wants what was asked for after it. Products one after another that go on along K in the same
accumulators are one call of the engine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import array_at, call_at, jit
from mmabits.emulator.engine.record import Call
from mmabits.emulator.machine.cells import COLUMNS, LANES, is_allocated
from mmabits.emulator.machine.context import CONTEXT_WORDS, Context
from mmabits.emulator.machine.helpers import _fail
from mmabits.emulator.machine.operands import READ, TCGEN05, UNKNOWN_DESCRIPTOR, put_code, read_matrix
from mmabits.emulator.machine.tensorrecords import (
    BAD_DESCRIPTOR,
    COPY,
    FIRST_COUNTER,
    KNOWN,
    NOT_ALLOCATED,
    OUTSIDE_SHARED,
    REFUSED,
    SCALES_DIFFER,
    TENSOR_ADDRESS,
    Multiply,
    TensorMemory,
    TensorTask,
)

_C = Context._fields
_TENSOR, _SHARED, _SHARED_SIZE, _COUNTS, _ERROR = (_C.index(name) for name in ("tensor", "shared", "shared_size", "counts", "error"))
(
    _CELLS, _, _, _QUEUE, _QUEUE_SIZE, _FIRST, _LAST, _KNOWN, _KNOWN_COUNT, _RESOLVE, _ROOM_A, _ROOM_B, _ROOM_D, _ROOM_SA, _ROOM_SB,
    _CALL,
) = range(len(TensorMemory._fields))  # fmt: skip
_RECORD, _TASK_WORDS, _TABLE_WORDS = len(TensorMemory._fields), len(TensorTask._fields), len(Multiply._fields)
(
    _IS_COPY, _CONTEXT, _LANE, _INSTRUCTION, _TABLE, _D, _A, _A_IS_CELLS, _B, _SCALE_A, _SCALE_B, _BYTES, _ADDS, _MASK0, _MASK1, _MASK2,
    _MASK3,
) = range(_TASK_WORDS)  # fmt: skip
(
    _M, _N, _K, _D_HELD, _BLOCK_COUNT, _SLOT_BITS, _SLOT_SHIFT, _A_BITS, _A_ELEMENTS, _A_HELD, _A_MN, _B_BITS, _B_ELEMENTS, _B_HELD, _B_MN,
    _ENGINE, _ENGINE_RECORD, _ENGINE_WORDS, _NUMBER, _CHAINS,
) = range(len(Multiply._fields))  # fmt: skip
_CALL_K, _CALL_BLOCKS = Call._fields.index("k"), Call._fields.index("blocks")
MOST_STEPS = 16
"""Instructions of a chain."""


@jit
def row_lane(rows: int, row: int) -> Any:
    """The lane of tensor memory, from the address's on, that has a row of A or D."""
    return row if rows > 64 else 32 * (row // 16) + row % 16


@jit
def _lanes_fit(rows: int, address: int) -> bool:
    lane = address >> 16
    return lane == 0 or (rows == 64 and lane == 16)


@jit
def table_of(context: Any, kind: int, code: int, instruction: int) -> Any:
    """The address of the Multiply of an instruction descriptor; 0, and an error, where there is none."""
    memory = array_at(context[_TENSOR], _RECORD, np.int64)
    known = array_at(memory[_KNOWN], 3 * KNOWN, np.int64)
    for place in range(memory[_KNOWN_COUNT]):
        if known[3 * place] == kind and known[3 * place + 1] == code:
            return known[3 * place + 2]
    place = memory[_KNOWN_COUNT] if memory[_KNOWN_COUNT] < KNOWN else 0
    known[3 * place], known[3 * place + 1], known[3 * place + 2] = kind, code, 0
    call_at(memory[_RESOLVE], memory[_KNOWN] + 24 * place)
    if known[3 * place + 2] == 0:
        _fail(context, REFUSED, instruction, 0, code)
        return np.int64(0)
    memory[_KNOWN_COUNT] = max(memory[_KNOWN_COUNT], place + 1)
    return known[3 * place + 2]


@jit
def new_task(context: Any) -> Any:
    """The address of a record for new work, the last of the queue."""
    memory = array_at(context[_TENSOR], _RECORD, np.int64)
    if memory[_LAST] - memory[_FIRST] == memory[_QUEUE_SIZE]:  # the oldest may be carried out at any time
        carry_out_tensor(context[_TENSOR], memory[_LAST])
    address = _place(memory, memory[_LAST])
    memory[_LAST] += 1
    return address


@jit
def _place(memory: Any, number: int) -> Any:
    """The address of a task of the queue."""
    return memory[_QUEUE] + 8 * _TASK_WORDS * (number % memory[_QUEUE_SIZE])


@jit
def _overlap(table: Any, task: Any) -> Any:
    """Whether A lies in tensor memory where D does: such a product must see what the one before it wrote."""
    if task[_A_IS_CELLS] == 0:
        return False
    a, d = task[_A] & 0xFFFF, task[_D] & 0xFFFF
    return a < d + table[_N] and d < a + table[_K] * table[_SLOT_BITS] // 32


@jit
def _goes_on(table: Any, first: Any, after: Any) -> Any:
    """Whether a product goes on along K where an earlier one stops."""
    return (
        not _overlap(table, after) and after[_IS_COPY] == 0 and after[_ADDS] != 0 and after[_TABLE] == first[_TABLE]
        and after[_D] == first[_D] and after[_A_IS_CELLS] == first[_A_IS_CELLS] and after[_CONTEXT] == first[_CONTEXT]
        and after[_MASK0] == first[_MASK0] and after[_MASK1] == first[_MASK1] and after[_MASK2] == first[_MASK2]
        and after[_MASK3] == first[_MASK3]
    )  # fmt: skip


@jit
def carry_out_tensor(tensor: int, mark: int) -> None:
    """The work of the queue of a TensorMemory before a mark."""
    memory = array_at(tensor, _RECORD, np.int64)
    while memory[_FIRST] < mark:
        first = array_at(_place(memory, memory[_FIRST]), _TASK_WORDS, np.int64)
        count = 1
        if first[_IS_COPY] != 0:
            _copy(memory, first)
        else:
            table = array_at(first[_TABLE], _TABLE_WORDS, np.int64)
            most = min(MOST_STEPS, mark - memory[_FIRST]) if table[_CHAINS] != 0 else 1
            while count < most and _goes_on(table, first, array_at(_place(memory, memory[_FIRST] + count), _TASK_WORDS, np.int64)):
                count += 1
            _multiply(memory, table, memory[_FIRST], count)
        memory[_FIRST] += count


@jit
def _multiply(memory: Any, table: Any, number: int, count: int) -> None:
    """Products `number` .. `number + count - 1` of the queue, which are one along K."""
    first = array_at(_place(memory, number), _TASK_WORDS, np.int64)
    context = array_at(first[_CONTEXT], CONTEXT_WORDS, np.int64)
    m, n, k = table[_M], table[_N], table[_K]
    whole_k, blocks = k * count, table[_BLOCK_COUNT]
    d = first[_D]
    instruction, lane = first[_INSTRUCTION], first[_LANE]
    if context[_ERROR] != 0:
        return
    if not _lanes_fit(m, d):
        _fail(context, TENSOR_ADDRESS, instruction, lane, d)
        return
    if not is_allocated(context, d & 0xFFFF, n):
        _fail(context, NOT_ALLOCATED, instruction, lane, d)
        return
    for step in range(count):
        task = array_at(_place(memory, number + step), _TASK_WORDS, np.int64)
        if task[_A_IS_CELLS] != 0:
            found = _read_cells(memory, context, table, task, step * k, whole_k)
        else:
            found = read_matrix(
                context[_SHARED], context[_SHARED_SIZE], task[_A], TCGEN05, table[_A_MN] != 0, m, k, table[_A_BITS], table[_A_ELEMENTS],
                memory[_ROOM_A] + step * k * _bytes(table[_A_HELD]), whole_k, 1, table[_A_HELD], 0,
            )  # fmt: skip
        if found == READ:
            found = read_matrix(
                context[_SHARED], context[_SHARED_SIZE], task[_B], TCGEN05, table[_B_MN] != 0, n, k, table[_B_BITS], table[_B_ELEMENTS],
                memory[_ROOM_B] + step * k * n * _bytes(table[_B_HELD]), 1, n, table[_B_HELD], 0,
            )  # fmt: skip
        if found != READ:
            if context[_ERROR] == 0:
                kind = BAD_DESCRIPTOR if found == UNKNOWN_DESCRIPTOR else OUTSIDE_SHARED
                _fail(context, kind, task[_INSTRUCTION], task[_LANE], task[_A])
            return
        if blocks != 0:
            room_a, room_b = memory[_ROOM_SA] + step * blocks, memory[_ROOM_SB] + step * blocks * n
            if not _read_scales(memory, context, task, task[_SCALE_A], m, blocks, task[_BYTES] & 3, room_a, blocks * count, 1):
                return
            if not _read_scales(memory, context, task, task[_SCALE_B], n, blocks, task[_BYTES] >> 2, room_b, 1, n):
                return
    _accumulators(memory, table, first, False)
    call = array_at(memory[_CALL], table[_ENGINE_WORDS], np.int64)
    record = array_at(table[_ENGINE_RECORD], table[_ENGINE_WORDS], np.int64)
    for word in range(table[_ENGINE_WORDS]):
        call[word] = record[word]
    call[0], call[1], call[2], call[3], call[4] = memory[_ROOM_A], memory[_ROOM_B], memory[_ROOM_D], memory[_ROOM_SA], memory[_ROOM_SB]
    call[_CALL_K], call[_CALL_BLOCKS] = whole_k, blocks * count
    call_at(table[_ENGINE], memory[_CALL])
    _accumulators(memory, table, first, True)
    array_at(context[_COUNTS], 2 * FIRST_COUNTER, np.int64)[table[_NUMBER]] += count


@jit
def _bytes(held: int) -> int:
    return 4 if held == 32 else 1 if held == 8 else 2


@jit
def _read_cells(memory: Any, context: Any, table: Any, task: Any, k0: int, whole_k: int) -> int:
    """A from tensor memory into its place in the array of codes."""
    m, k, slot, bits, held = table[_M], table[_K], table[_SLOT_BITS], table[_A_BITS], table[_A_HELD]
    address = task[_A]
    if not _lanes_fit(m, address):
        _fail(context, TENSOR_ADDRESS, task[_INSTRUCTION], task[_LANE], address)
        return UNKNOWN_DESCRIPTOR
    column = address & 0xFFFF
    if not is_allocated(context, column, k * slot // 32):
        _fail(context, NOT_ALLOCATED, task[_INSTRUCTION], task[_LANE], address)
        return UNKNOWN_DESCRIPTOR
    cells = array_at(memory[_CELLS], LANES * COLUMNS, np.uint32)
    mask = np.uint64((1 << bits) - 1)
    for row in range(m):
        base = ((address >> 16) + row_lane(m, row)) * COLUMNS + column
        for place in range(k):
            start = place * slot
            code = np.uint64(cells[base + (start >> 5)] >> np.uint32((start & 31) + table[_SLOT_SHIFT]))
            put_code(memory[_ROOM_A], row * whole_k + k0 + place, code & mask, bits, held)
    return READ


@jit
def _read_scales(
    memory: Any, context: Any, task: Any, address: int, rows: int, blocks: int, first_byte: int, out: int, row_step: int, block_step: int
) -> bool:
    """Scales from tensor memory: 32 rows a column, a byte for each block along K; all four quarters must have the same."""
    column = address & 0xFFFF
    if first_byte % blocks != 0 or first_byte + blocks > 4:
        _fail(context, BAD_DESCRIPTOR, task[_INSTRUCTION], task[_LANE], first_byte)
        return False
    if address >> 16 != 0:
        _fail(context, TENSOR_ADDRESS, task[_INSTRUCTION], task[_LANE], address)
        return False
    if not is_allocated(context, column, (rows + 31) // 32):
        _fail(context, NOT_ALLOCATED, task[_INSTRUCTION], task[_LANE], address)
        return False
    cells = array_at(memory[_CELLS], LANES * COLUMNS, np.uint32)
    codes = array_at(out, 1 << 40, np.uint8)
    mask = np.uint32(0xFFFFFFFF) if blocks == 4 else np.uint32((1 << 8 * blocks) - 1)
    for row in range(rows):
        at = row % 32 * COLUMNS + column + row // 32
        word = cells[at] >> np.uint32(8 * first_byte)
        for quarter in range(1, 4):
            other = cells[at + 32 * quarter * COLUMNS] >> np.uint32(8 * first_byte)
            if (word ^ other) & mask != 0:
                _fail(context, SCALES_DIFFER, task[_INSTRUCTION], task[_LANE], address)
                return False
        for block in range(blocks):
            codes[row * row_step + block * block_step] = np.uint8(word >> np.uint32(8 * block))
    return True


@jit
def _accumulators(memory: Any, table: Any, first: Any, back: bool) -> None:
    """C from tensor memory into the engine's matrix, zeros where it is not read; or D back, but to lanes that are masked out."""
    m, n, held = table[_M], table[_N], table[_D_HELD]
    address = first[_D]
    cells = array_at(memory[_CELLS], LANES * COLUMNS, np.uint32)
    words, halves = array_at(memory[_ROOM_D], m * n, np.uint32), array_at(memory[_ROOM_D], m * n, np.uint16)
    for row in range(m):
        lane = (address >> 16) + row_lane(m, row)
        base = lane * COLUMNS + (address & 0xFFFF)
        if back and first[_MASK0 + lane // 32] >> (lane & 31) & 1 != 0:
            continue
        for column in range(n):
            if back:
                cells[base + column] = words[row * n + column] if held == 32 else np.uint32(halves[row * n + column])
            elif held == 32:
                words[row * n + column] = cells[base + column] if first[_ADDS] != 0 else np.uint32(0)
            else:
                halves[row * n + column] = np.uint16(cells[base + column] & np.uint32(0xFFFF)) if first[_ADDS] != 0 else np.uint16(0)


@jit
def _copy(memory: Any, task: Any) -> None:
    """tcgen05.cp: rows of shared memory into lanes. B holds rows, bits of a row and of a packed element; A is the descriptor."""
    context = array_at(task[_CONTEXT], CONTEXT_WORDS, np.int64)
    if context[_ERROR] != 0:
        return
    shape, packed = task[_B], task[_BYTES]
    rows = 128 if shape <= 1 else 4 if shape == 2 else 64 if shape <= 4 else 32
    chunks = 2 if shape == 0 or shape == 2 else 1
    address = task[_D]
    column, lane0 = address & 0xFFFF, address >> 16
    if not is_allocated(context, column, 4 * chunks):
        _fail(context, NOT_ALLOCATED, task[_INSTRUCTION], task[_LANE], address)
        return
    highest = 96 if shape == 2 else 0
    if lane0 + highest >= LANES or (shape != 2 and lane0 != 0):
        _fail(context, TENSOR_ADDRESS, task[_INSTRUCTION], task[_LANE], address)
        return
    found = read_matrix(
        context[_SHARED], context[_SHARED_SIZE], task[_A], TCGEN05, False, rows, 16 * chunks, 8, 16, memory[_ROOM_A], 16 * chunks, 1, 8, 0
    )
    if found != READ:
        kind = BAD_DESCRIPTOR if found == UNKNOWN_DESCRIPTOR else OUTSIDE_SHARED
        _fail(context, kind, task[_INSTRUCTION], task[_LANE], task[_A])
        return
    if packed != 0:
        _unpack(memory[_ROOM_A], rows * chunks, packed)
    words = array_at(memory[_ROOM_A], rows * 4 * chunks, np.uint32)
    cells = array_at(memory[_CELLS], LANES * COLUMNS, np.uint32)
    copies = 4 if shape == 5 else 2 if shape == 3 or shape == 4 else 1
    for row in range(rows):
        for copy in range(copies):
            if shape == 2:
                lane = lane0 + 32 * row
            elif shape == 3:
                lane = row + 64 * copy
            elif shape == 4:
                lane = 64 * (row // 32) + row % 32 + 32 * copy
            else:
                lane = row + 32 * copy
            for word in range(4 * chunks):
                cells[lane * COLUMNS + column + word] = words[row * 4 * chunks + word]


@jit
def _unpack(codes: int, chunks: int, bits: int) -> None:
    """16 codes of 4 or 6 bits at the beginning of 16 bytes become a byte each: of 4 bits in bits 2 to 5, where products look for them."""
    for chunk in range(chunks):
        words = array_at(codes + 16 * chunk, 2, np.uint64)
        low, high = words[0], words[1]
        octets = array_at(codes + 16 * chunk, 16, np.uint8)
        for place in range(16):
            bit = place * bits
            if bit >= 64:
                code = high >> np.uint64(bit - 64)
            else:
                code = low >> np.uint64(bit)
                if bit + bits > 64:
                    code |= high << np.uint64(64 - bit)
            octets[place] = np.uint8((code & np.uint64((1 << bits) - 1)) << np.uint64(2 if bits == 4 else 0))


@jit
def ask(words: Any) -> None:
    """Products and copies of the lanes of a mask, in ascending order.

    Words: TENSOR, MULTIPLY or COPY, context, instruction, mask; then addresses of 32 words of 64 bits each: D, A, B, descriptors,
    scales of A, of B, whether it adds, and of four masks of lanes one after the other; whether A is in tensor memory; and a number: the
    form of the product, or 0, 4 or 6 bits of packed elements; of a copy B is the shape.
    """
    mask, instruction, is_copy = words[4], words[3], words[1] == COPY
    context = array_at(words[2], CONTEXT_WORDS, np.int64)
    for lane in range(32):
        if mask >> lane & 1 == 0:
            continue
        table, code = np.int64(0), np.int64(0)
        if not is_copy:
            code = array_at(words[8], 32, np.int64)[lane] & 0xFFFFFFFF
            scaled = words[9] != 0
            key = code & ~np.int64(3 << 4 | 3 << 29) if scaled else code
            table = table_of(context, words[14], key, instruction)
            if table == 0:
                return
        task = array_at(new_task(context), _TASK_WORDS, np.int64)
        for word in range(_TASK_WORDS):
            task[word] = 0
        task[_CONTEXT], task[_LANE], task[_INSTRUCTION], task[_TABLE] = words[2], lane, instruction, table
        task[_D] = array_at(words[5], 32, np.int64)[lane]
        task[_A] = array_at(words[6], 32, np.int64)[lane]
        if is_copy:
            task[_IS_COPY], task[_B], task[_BYTES] = 1, words[7], words[14]
            continue
        task[_B] = array_at(words[7], 32, np.int64)[lane]
        task[_A_IS_CELLS] = words[13]
        if words[9] != 0:
            task[_SCALE_A], task[_SCALE_B] = array_at(words[9], 32, np.int64)[lane], array_at(words[10], 32, np.int64)[lane]
            task[_BYTES] = (code >> 29 & 3) | (code >> 4 & 3) << 2
        task[_ADDS] = array_at(words[11], 32, np.int64)[lane]
        if words[12] != 0:
            for part in range(4):
                task[_MASK0 + part] = array_at(words[12], 4 * 32, np.int64)[32 * part + lane] & 0xFFFFFFFF


@jit
def asked(context: Any) -> Any:
    """How much work the CTA of a warp has asked for so far."""
    return array_at(context[_TENSOR], _RECORD, np.int64)[_LAST]
