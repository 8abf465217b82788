"""tcgen05's asynchronous work, compiled: products and copies into tensor memory, in the order in which they were asked for.

Work waits in the CTA's queue until somebody wants what was asked for after it. Products one after another that go on along K in the same
accumulators are one call of the engine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import array_at, call_at, jit
from mmabits.emulator.engine.record import Call
from mmabits.emulator.machine.cells import COLUMNS, LANES, cells_of, is_allocated
from mmabits.emulator.machine.context import CONTEXT_WORDS, CTA_WORDS, Context, Cta, Launch
from mmabits.emulator.machine.helpers import _fail
from mmabits.emulator.machine.operands import READ, TCGEN05, UNKNOWN_DESCRIPTOR, put_code, read_matrix
from mmabits.emulator.machine.tensorrecords import (
    BAD_DESCRIPTOR,
    COPY,
    FIRST_COUNTER,
    KNOWN,
    NO_PAIR,
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
    _, _, _, _QUEUE, _QUEUE_SIZE, _FIRST, _LAST, _KNOWN, _KNOWN_COUNT, _RESOLVE, _ROOM_A, _ROOM_B, _ROOM_D, _ROOM_SA, _ROOM_SB,
    _CALL,
) = range(len(TensorMemory._fields))  # fmt: skip
_RECORD, _TASK_WORDS, _TABLE_WORDS = len(TensorMemory._fields), len(TensorTask._fields), len(Multiply._fields)
(
    _IS_COPY, _CONTEXT, _LANE, _INSTRUCTION, _TABLE, _D, _A, _A_IS_CELLS, _B, _SCALE_A, _SCALE_B, _BYTES, _ADDS, _MASK0, _MASK1, _MASK2,
    _MASK3,
) = range(_TASK_WORDS)  # fmt: skip
(
    _M, _N, _K, _D_HELD, _BLOCK_COUNT, _SLOT_BITS, _SLOT_SHIFT, _A_BITS, _A_ELEMENTS, _A_HELD, _A_MN, _B_BITS, _B_ELEMENTS, _B_HELD, _B_MN,
    _ENGINE, _ENGINE_RECORD, _ENGINE_WORDS, _NUMBER, _CHAINS, _GROUP,
) = range(len(Multiply._fields))  # fmt: skip
_OWN, _CTA, _LAUNCH = (_C.index(name) for name in ("own", "cta", "launch"))
_CLUSTER, _RANK, _CONTEXTS = (Cta._fields.index(name) for name in ("cluster", "rank", "contexts"))
_LAUNCH_WORDS, _CLUSTER_SIZE = len(Launch._fields), Launch._fields.index("cluster")
_CALL_K, _CALL_BLOCKS = Call._fields.index("k"), Call._fields.index("blocks")
MOST_STEPS = 16
"""Instructions of a chain."""


@jit
def row_lane(table: Any, row: int) -> Any:
    """The lane of tensor memory, from the address's on, that has a row of a CTA's A or D."""
    return 32 * (row // 16) + row % 16 if table[_M] == 64 else row


@jit
def _lanes_fit(table: Any, address: int) -> bool:
    lane = address >> 16
    return lane == 0 or (table[_M] == 64 and lane == 16)


@jit
def _width(table: Any) -> Any:
    """Columns of tensor memory that D takes: half of N where two CTAs have 64 rows each, and the right half lies in the upper lanes."""
    return table[_N] // 2 if table[_GROUP] == 2 and table[_M] == 128 else table[_N]


@jit
def _member(context: Any, group: int, half: int) -> Any:
    """The address of the first context of the CTA that has a half: of a pair the CTA of that parity, else the warp's own."""
    if group == 1:
        return context[_OWN]
    cta = array_at(context[_CTA], CTA_WORDS, np.int64)
    return array_at(cta[_CLUSTER] + 8 * CTA_WORDS * ((cta[_RANK] & ~1) + half), CTA_WORDS, np.int64)[_CONTEXTS]


@jit
def has_pair(context: Any) -> Any:
    """Whether there are both CTAs of a pair."""
    launch = array_at(context[_LAUNCH], _LAUNCH_WORDS, np.int64)
    return (array_at(context[_CTA], CTA_WORDS, np.int64)[_RANK] | 1) < launch[_CLUSTER_SIZE]


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
    return a < d + _width(table) and d < a + table[_K] * table[_SLOT_BITS] // 32


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
    """Products `number` .. `number + count - 1` of the queue, which are one along K. CTAs of a pair have half of A and of B each."""
    first = array_at(_place(memory, number), _TASK_WORDS, np.int64)
    context = array_at(first[_CONTEXT], CONTEXT_WORDS, np.int64)
    m, n, k, group = table[_M], table[_N], table[_K], table[_GROUP]
    whole_k, blocks = k * count, table[_BLOCK_COUNT]
    rows, columns = m // group, n // group
    d = first[_D]
    instruction, lane = first[_INSTRUCTION], first[_LANE]
    if context[_ERROR] != 0:
        return
    if not _lanes_fit(table, d):
        _fail(context, TENSOR_ADDRESS, instruction, lane, d)
        return
    for half in range(group):
        member = array_at(_member(context, group, half), CONTEXT_WORDS, np.int64)
        if not is_allocated(member, d & 0xFFFF, _width(table)):
            _fail(context, NOT_ALLOCATED, instruction, lane, d)
            return
        for step in range(count):
            task = array_at(_place(memory, number + step), _TASK_WORDS, np.int64)
            found = READ
            room_a = memory[_ROOM_A] + (half * rows * whole_k + step * k) * _bytes(table[_A_HELD])
            if task[_A_IS_CELLS] != 0:
                if not _read_cells(context, member, table, task, room_a, whole_k):
                    return
            else:
                found = read_matrix(
                    member[_SHARED], member[_SHARED_SIZE], task[_A], TCGEN05, table[_A_MN] != 0, rows, k, table[_A_BITS],
                    table[_A_ELEMENTS], room_a, whole_k, 1, table[_A_HELD], 0,
                )  # fmt: skip
            wrong = task[_A]
            if found == READ:
                wrong = task[_B]
                found = read_matrix(
                    member[_SHARED], member[_SHARED_SIZE], task[_B], TCGEN05, table[_B_MN] != 0, columns, k, table[_B_BITS],
                    table[_B_ELEMENTS], memory[_ROOM_B] + (step * k * n + half * columns) * _bytes(table[_B_HELD]), 1, n, table[_B_HELD], 0,
                )  # fmt: skip
            if found != READ:
                kind = BAD_DESCRIPTOR if found == UNKNOWN_DESCRIPTOR else OUTSIDE_SHARED
                _fail(context, kind, task[_INSTRUCTION], task[_LANE], wrong)
                return
            if blocks != 0 and not _scales(memory, context, member, table, task, half, step, count):
                return
        _accumulators(memory, member, table, first, half, False)
    call = array_at(memory[_CALL], table[_ENGINE_WORDS], np.int64)
    record = array_at(table[_ENGINE_RECORD], table[_ENGINE_WORDS], np.int64)
    for word in range(table[_ENGINE_WORDS]):
        call[word] = record[word]
    call[0], call[1], call[2], call[3], call[4] = memory[_ROOM_A], memory[_ROOM_B], memory[_ROOM_D], memory[_ROOM_SA], memory[_ROOM_SB]
    call[_CALL_K], call[_CALL_BLOCKS] = whole_k, blocks * count
    call_at(table[_ENGINE], memory[_CALL])
    for half in range(group):
        _accumulators(memory, array_at(_member(context, group, half), CONTEXT_WORDS, np.int64), table, first, half, True)
    array_at(context[_COUNTS], 2 * FIRST_COUNTER, np.int64)[table[_NUMBER]] += count


@jit
def _scales(memory: Any, context: Any, member: Any, table: Any, task: Any, half: int, step: int, count: int) -> bool:
    """Scales of a CTA's rows of A, and of all columns of B: both CTAs of a pair have those."""
    n, group, blocks, width = table[_N], table[_GROUP], table[_BLOCK_COUNT], _width(table)
    rows = table[_M] // group
    first_a, first_b = task[_BYTES] & 3, task[_BYTES] >> 2
    room_a = memory[_ROOM_SA] + (half * rows * count + step) * blocks
    if not _read_scales(context, member, task, task[_SCALE_A], rows, blocks, first_a, 0, 4, room_a, blocks * count, 1, False):
        return False
    room_b, parts = memory[_ROOM_SB] + step * blocks * n, n // width
    for part in range(parts):
        quarters = 4 // parts
        at = room_b + part * width
        if not _read_scales(
            context, member, task, task[_SCALE_B], width, blocks, first_b, part * quarters, quarters, at, 1, n, half != 0
        ):  # fmt: skip
            return False
    return True


@jit
def _bytes(held: int) -> int:
    return 4 if held == 32 else 2 if held == 16 else 1


@jit
def _read_cells(context: Any, member: Any, table: Any, task: Any, out: int, row_step: int) -> bool:
    """A CTA's rows of A from its tensor memory to an array of codes."""
    k, slot, bits, held = table[_K], table[_SLOT_BITS], table[_A_BITS], table[_A_HELD]
    address = task[_A]
    if not _lanes_fit(table, address):
        _fail(context, TENSOR_ADDRESS, task[_INSTRUCTION], task[_LANE], address)
        return False
    column = address & 0xFFFF
    if not is_allocated(member, column, k * slot // 32):
        _fail(context, NOT_ALLOCATED, task[_INSTRUCTION], task[_LANE], address)
        return False
    cells = array_at(cells_of(member), LANES * COLUMNS, np.uint32)
    mask = np.uint64((1 << bits) - 1)
    for row in range(table[_M] // table[_GROUP]):
        base = ((address >> 16) + row_lane(table, row)) * COLUMNS + column
        for place in range(k):
            start = place * slot
            code = np.uint64(cells[base + (start >> 5)] >> np.uint32((start & 31) + table[_SLOT_SHIFT]))
            put_code(out, row * row_step + place, code & mask, bits, held)
    return True


@jit
def _read_scales(
    context: Any, member: Any, task: Any, address: int, rows: int, blocks: int, first_byte: int, first_quarter: int, quarters: int,
    out: int, row_step: int, block_step: int, again: bool,
) -> bool:  # fmt: skip
    """Scales from tensor memory: 32 rows a column, a byte for each block along K; quarters that share them must have the same.

    Where they were read before, from the other CTA of a pair, they must be the same (`again`).
    """
    column = address & 0xFFFF
    if first_byte % blocks != 0 or first_byte + blocks > 4:
        _fail(context, BAD_DESCRIPTOR, task[_INSTRUCTION], task[_LANE], first_byte)
        return False
    if address >> 16 != 0:
        _fail(context, TENSOR_ADDRESS, task[_INSTRUCTION], task[_LANE], address)
        return False
    if not is_allocated(member, column, (rows + 31) // 32):
        _fail(context, NOT_ALLOCATED, task[_INSTRUCTION], task[_LANE], address)
        return False
    cells = array_at(cells_of(member), LANES * COLUMNS, np.uint32)
    codes = array_at(out, 1 << 40, np.uint8)
    mask = np.uint32(0xFFFFFFFF) if blocks == 4 else np.uint32((1 << 8 * blocks) - 1)
    for row in range(rows):
        at = (32 * first_quarter + row % 32) * COLUMNS + column + row // 32
        word = cells[at] >> np.uint32(8 * first_byte)
        differ = np.uint32(0)
        for quarter in range(1, quarters):
            differ |= (word ^ cells[at + 32 * quarter * COLUMNS] >> np.uint32(8 * first_byte)) & mask
        for block in range(blocks):
            place, code = row * row_step + block * block_step, np.uint8(word >> np.uint32(8 * block))
            if again and codes[place] != code:
                differ = mask
            codes[place] = code
        if differ != 0:
            _fail(context, SCALES_DIFFER, task[_INSTRUCTION], task[_LANE], address)
            return False
    return True


@jit
def _accumulators(memory: Any, member: Any, table: Any, first: Any, half: int, back: bool) -> None:
    """A CTA's C from tensor memory into the engine's matrix, zeros where it is not read; or D back, but to lanes that are masked out."""
    n, held, width, adds = table[_N], table[_D_HELD], _width(table), first[_ADDS] != 0
    rows, address = table[_M] // table[_GROUP], first[_D]
    cells = array_at(cells_of(member), LANES * COLUMNS, np.uint32)
    words, halves = array_at(memory[_ROOM_D], table[_M] * n, np.uint32), array_at(memory[_ROOM_D], table[_M] * n, np.uint16)
    for row in range(rows):
        for part in range(n // width):
            lane = (address >> 16) + row_lane(table, row) + 64 * part
            base = lane * COLUMNS + (address & 0xFFFF)
            at = (half * rows + row) * n + part * width
            if back and first[_MASK0 + lane // 32] >> (lane & 31) & 1 != 0:
                continue
            for column in range(width):
                if back:
                    cells[base + column] = words[at + column] if held == 32 else np.uint32(halves[at + column])
                elif held == 32:
                    words[at + column] = cells[base + column] if adds else np.uint32(0)
                else:
                    halves[at + column] = np.uint16(cells[base + column] & np.uint32(0xFFFF)) if adds else np.uint16(0)


@jit
def _copy(memory: Any, task: Any) -> None:
    """tcgen05.cp: each CTA's rows of shared memory into lanes of its tensor memory."""
    context = array_at(task[_CONTEXT], CONTEXT_WORDS, np.int64)
    for half in range(task[_SCALE_A]):
        if context[_ERROR] == 0:
            _copy_in(memory, context, array_at(_member(context, task[_SCALE_A], half), CONTEXT_WORDS, np.int64), task)


@jit
def _copy_in(memory: Any, context: Any, member: Any, task: Any) -> None:
    shape, packed = task[_B], task[_BYTES]
    rows = 128 if shape <= 1 else 4 if shape == 2 else 64 if shape <= 4 else 32
    chunks = 2 if shape == 0 or shape == 2 else 1
    address = task[_D]
    column, lane0 = address & 0xFFFF, address >> 16
    if not is_allocated(member, column, 4 * chunks):
        _fail(context, NOT_ALLOCATED, task[_INSTRUCTION], task[_LANE], address)
        return
    highest = 96 if shape == 2 else 0
    if lane0 + highest >= LANES or (shape != 2 and lane0 != 0):
        _fail(context, TENSOR_ADDRESS, task[_INSTRUCTION], task[_LANE], address)
        return
    found = read_matrix(
        member[_SHARED], member[_SHARED_SIZE], task[_A], TCGEN05, False, rows, 16 * chunks, 8, 16, memory[_ROOM_A], 16 * chunks, 1, 8, 0
    )
    if found != READ:
        kind = BAD_DESCRIPTOR if found == UNKNOWN_DESCRIPTOR else OUTSIDE_SHARED
        _fail(context, kind, task[_INSTRUCTION], task[_LANE], task[_A])
        return
    if packed != 0:
        _unpack(memory[_ROOM_A], rows * chunks, packed)
    words = array_at(memory[_ROOM_A], rows * 4 * chunks, np.uint32)
    cells = array_at(cells_of(member), LANES * COLUMNS, np.uint32)
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
    form of the product, or 0, 4 or 6 bits of packed elements; of a copy B is the shape, the descriptors the CTAs.
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
        pair = words[8] if is_copy else array_at(table, _TABLE_WORDS, np.int64)[_GROUP]
        if pair == 2 and not has_pair(context):
            _fail(context, NO_PAIR, instruction, lane, 0)
            return
        task = array_at(new_task(context), _TASK_WORDS, np.int64)
        for word in range(_TASK_WORDS):
            task[word] = 0
        task[_CONTEXT], task[_LANE], task[_INSTRUCTION], task[_TABLE] = words[2], lane, instruction, table
        task[_D] = array_at(words[5], 32, np.int64)[lane]
        task[_A] = array_at(words[6], 32, np.int64)[lane]
        if is_copy:
            task[_IS_COPY], task[_B], task[_BYTES], task[_SCALE_A] = 1, words[7], words[14], words[8]
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
