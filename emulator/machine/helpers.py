"""What a warp's code calls, compiled by Numba: memory, asynchronous copies, matrices, products.

Every operation takes a record of 64-bit words; the first says which operation it is (operations.py). Nothing here knows an opcode.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import array_at, call_at, jit
from mmabits.emulator.machine.context import (
    CONSTANT_TAG,
    CTA_WORDS,
    LOCAL_TAG,
    MISALIGNED,
    OUTSIDE,
    SHARED_TAG,
    TAG_SHIFT,
    WINDOW_SHIFT,
    Context,
    Cta,
    Launch,
)
from mmabits.emulator.machine.halves import sum_of_halves
from mmabits.emulator.machine.tensorrecords import SIGNED

# Places of words.
_C = Context._fields
(
    _SEGMENT, _WARP, _REGISTERS, _PARAMETERS, _SHARED, _SHARED_SIZE, _LOCAL, _LOCAL_SIZE, _CONSTANTS, _CONSTANTS_SIZE,
    _CTAID_X, _CTAID_Y, _CTAID_Z, _NCTAID_X,
    _NCTAID_Y, _NCTAID_Z, _NTID_X, _NTID_Y, _NTID_Z, _ALIVE, _STATE, _BARRIER, _EXPECTED, _PCS, _QUEUE, _QUEUE_SIZE, _QUEUED,
    _GROUP, _RANGES,
    _RANGE_COUNT, _LAST_RANGE, _ERROR, _ERROR_INSTRUCTION, _ERROR_LANE, _ERROR_ADDRESS, _HELPER,
    _TABLES, _COUNTS, _LAUNCH, _CTA, _ARRIVES, _HELD, _PARKED, _WAITED, _HURRY, _EVENTS, _BULK_GROUPS, _CLUSTER_PHASE,
    _OWN, _TENSOR, _WARPGROUP, _WORK_ROOM, _WARPGROUP_TABLES, _COUNTED, _REDUCED, _RETURNS, _TRACE, _CHECKS, _DEFINED, _HOST, _CLOCK,
) = range(len(_C))  # fmt: skip
_WORDS = len(_C)
_LAUNCH_WORDS = len(Launch._fields)
_FAILED = Launch._fields.index("failed")
_CLUSTER_SIZE = Launch._fields.index("cluster")
_CLUSTER, _CTA_SHARED = Cta._fields.index("cluster"), Cta._fields.index("shared")


@jit
def _fail(context: Any, kind: int, instruction: int, lane: int, address: int) -> None:
    if context[_ERROR] == 0:
        context[_ERROR] = kind
        context[_ERROR_INSTRUCTION] = instruction
        context[_ERROR_LANE] = lane
        context[_ERROR_ADDRESS] = address
        launch = array_at(context[_LAUNCH], _LAUNCH_WORDS, np.int64)
        if launch[_FAILED] == 0:
            launch[_FAILED] = context[_OWN]


@jit
def _resolved(context: Any, address: int, size: int, lane: int, instruction: int) -> Any:
    """The place in this process that a generic address means, if all of `size` bytes may be touched; else 0 and an error."""
    if size & (size - 1) == 0 and address & (size - 1) != 0:
        _fail(context, MISALIGNED, instruction, lane, address)
        return 0
    return _within(context, address, size, lane, instruction)


@jit
def _within(context: Any, address: int, size: int, lane: int, instruction: int) -> Any:
    """The same at any alignment."""
    tag = address >> TAG_SHIFT
    low = address & ((1 << TAG_SHIFT) - 1)
    if tag == SHARED_TAG:
        window, place = low >> WINDOW_SHIFT, low & ((1 << WINDOW_SHIFT) - 1)
        if place + size <= context[_SHARED_SIZE]:
            if window == 0:
                return context[_SHARED] + place
            launch = array_at(context[_LAUNCH], _LAUNCH_WORDS, np.int64)
            if window <= launch[_CLUSTER_SIZE]:
                first = array_at(context[_CTA], CTA_WORDS, np.int64)[_CLUSTER]
                return array_at(first + 8 * CTA_WORDS * (window - 1), CTA_WORDS, np.int64)[_CTA_SHARED] + place
    elif tag == LOCAL_TAG:
        if low + size <= context[_LOCAL_SIZE]:
            return context[_LOCAL] + lane * context[_LOCAL_SIZE] + low
    elif tag == CONSTANT_TAG:
        if low + size <= context[_CONSTANTS_SIZE]:
            return context[_CONSTANTS] + low
    elif tag == 0:
        ranges = array_at(context[_RANGES], 2 * context[_RANGE_COUNT], np.int64)
        last = context[_LAST_RANGE]
        if ranges[2 * last] <= address and address + size <= ranges[2 * last + 1]:
            return address
        for place in range(context[_RANGE_COUNT]):
            if ranges[2 * place] <= address and address + size <= ranges[2 * place + 1]:
                context[_LAST_RANGE] = place
                return address
    _fail(context, OUTSIDE, instruction, lane, address)
    return 0


@jit
def _copy(to: int, of: int, size: int) -> None:
    if size == 4:
        array_at(to, 1, np.uint32)[0] = array_at(of, 1, np.uint32)[0]
    elif size == 16 or size == 8:
        for place in range(size // 8):
            array_at(to, 2, np.uint64)[place] = array_at(of, 2, np.uint64)[place]
    elif size == 2:
        array_at(to, 1, np.uint16)[0] = array_at(of, 1, np.uint16)[0]
    else:
        target, source = array_at(to, size, np.uint8), array_at(of, size, np.uint8)
        for place in range(size):
            target[place] = source[place]


@jit
def _move(words: Any) -> None:
    """Loads and stores: mask, context, addresses, data, bytes of a lane, bytes of an element and of its register, store, instruction.

    Data lie register after register: element e of lane l at data + (32 e + l) * register.
    """
    mask, size, unit, register = words[1], words[5], words[6], words[7]
    context = array_at(words[2], _WORDS, np.int64)
    addresses = array_at(words[3], 32, np.int64)
    data, store, instruction = words[4], words[8], words[9]
    for lane in range(32):
        if mask >> lane & 1 == 0:
            continue
        place = _resolved(context, addresses[lane], size, lane, instruction)
        if place == 0:
            continue
        at = data + lane * register
        for _ in range(size // unit):
            if store:
                _copy(place, at, unit)
            else:
                _copy(at, place, unit)
            place += unit
            at += 32 * register


_ADD, _MIN, _MAX, _AND, _OR, _XOR, _EXCH, _CAS, _INC, _DEC = range(10)


@jit
def _combined(operation: int, kind: int, old: Any, value: Any, other: Any, bits: int) -> Any:
    """The new bits of an atomic operation on integers; `kind` is 1 of signed ones."""
    if operation == _ADD:
        return old + value
    if operation == _AND:
        return old & value
    if operation == _OR:
        return old | value
    if operation == _XOR:
        return old ^ value
    if operation == _EXCH:
        return value
    if operation == _CAS:
        return other if old == value else old
    if bits == 32 and kind == 1:
        old, value = np.int64(np.int32(old)), np.int64(np.int32(value))
    smaller = np.uint64(old) < np.uint64(value) if bits == 64 and kind == 0 else old < value
    if operation == _MIN:
        return old if smaller else value
    if operation == _MAX:
        return value if smaller else old
    if operation == _INC:
        return 0 if not smaller else old + 1
    return value if old == 0 or not (smaller or old == value) else old - 1


@jit
def _flushed(code: Any, flushes: bool) -> Any:
    """An f32 code; where it is to be flushed, a subnormal number's as a zero of its sign."""
    if flushes and code & np.uint32(0x7F800000) == 0:
        return code & np.uint32(0x80000000)
    return code


@jit
def _atomic(words: Any) -> None:
    """Atomic operations, lanes in ascending order: mask, context, addresses, values, others, results, bits, operation, kind, instruction.

    Of kind 3 the sums are of f16, of kind 4 of bf16, of kind 2 of f32 or f64. Those of f32 in global memory take subnormal numbers, and
    give them, as zeros of their sign, whatever the modifiers say; in shared memory they keep them (PTX, atom).
    """
    mask, bits, operation, kind, instruction = words[1], words[7], words[8], words[9], words[10]
    context = array_at(words[2], _WORDS, np.int64)
    addresses = array_at(words[3], 32, np.int64)
    size = bits // 8
    for lane in range(32):
        if mask >> lane & 1 == 0:
            continue
        place = _resolved(context, addresses[lane], size, lane, instruction)
        if place == 0:
            continue
        if bits == 16:
            half = array_at(place, 1, np.uint16)
            old16, value16 = np.int64(half[0]), np.int64(array_at(words[4], 32, np.uint16)[lane])
            array_at(words[6], 32, np.uint16)[lane] = old16
            if kind >= 3:
                half[0] = sum_of_halves(old16, value16, 10 if kind == 3 else 7)
            else:
                other16 = np.int64(array_at(words[5], 32, np.uint16)[lane])
                half[0] = _combined(operation, kind, old16, value16, other16, 16) & 0xFFFF
            context[_EVENTS] += 1 if half[0] != old16 else 0
        elif bits == 32:
            cell = array_at(place, 1, np.uint32)
            old = np.uint32(cell[0])
            array_at(words[6], 32, np.uint32)[lane] = old
            value = array_at(words[4], 32, np.uint32)[lane]
            if kind == 2:
                flushes = addresses[lane] >> TAG_SHIFT != SHARED_TAG
                terms = array_at(words[5], 32, np.float32)
                words_of_terms = array_at(words[5], 32, np.uint32)
                words_of_terms[0], words_of_terms[1] = _flushed(old, flushes), _flushed(value, flushes)
                terms[2] = terms[0] + terms[1]
                cell[0] = np.uint32(0x7FFFFFFF) if terms[2] != terms[2] else _flushed(words_of_terms[2], flushes)
            else:
                other = array_at(words[5], 32, np.uint32)[lane]
                cell[0] = np.uint32(_combined(operation, kind, np.int64(old), np.int64(value), np.int64(other), 32) & 0xFFFFFFFF)
            context[_EVENTS] += 1 if cell[0] != old else 0
        else:
            wide = array_at(place, 1, np.int64)
            old64 = wide[0]
            array_at(words[6], 32, np.int64)[lane] = old64
            if kind == 2:
                number = array_at(place, 1, np.float64)
                sum64 = number[0] + array_at(words[4], 32, np.float64)[lane]
                number[0] = sum64
                if sum64 != sum64:
                    wide[0] = np.int64(0x7FF8000000000000)
            else:
                wide[0] = _combined(
                    operation, kind, old64, array_at(words[4], 32, np.int64)[lane], array_at(words[5], 32, np.int64)[lane], 64
                )  # fmt: skip
            context[_EVENTS] += 1 if wide[0] != old64 else 0


_QUEUE_COPY, _QUEUE_COMMIT, _QUEUE_WAIT = range(3)


@jit
def _asynchronous(words: Any) -> None:
    """cp.async: what (copy, commit, wait), mask, context, targets, sources, bytes, bytes read of each lane, instruction, groups left.

    A copy is put off until a wait wants its group; what was read is then what lies at the source. An entry is four words: target,
    source, bytes and bytes read, group.
    """
    what, mask = words[1], words[2]
    context = array_at(words[3], _WORDS, np.int64)
    queue = array_at(context[_QUEUE], 4 * context[_QUEUE_SIZE], np.int64)
    if what == _QUEUE_COMMIT:
        context[_GROUP] += 1
        return
    if what == _QUEUE_COPY:
        targets, sources = array_at(words[4], 32, np.int64), array_at(words[5], 32, np.int64)
        taken = array_at(words[7], 32, np.int32)
        size, instruction = words[6], words[8]
        for lane in range(32):
            if mask >> lane & 1 == 0:
                continue
            target = _resolved(context, targets[lane], size, lane, instruction)
            have = min(np.int64(taken[lane]), size)
            source = np.int64(0)
            if have > 0:
                source = _resolved(context, sources[lane], have, lane, instruction)
                if source == 0:
                    continue
            if target == 0:
                continue
            place = context[_QUEUED]
            if place == context[_QUEUE_SIZE]:  # the oldest may be carried out at any time
                _carry_out(context, queue, context[_GROUP] + 1)
                place = context[_QUEUED]
            queue[4 * place] = target
            queue[4 * place + 1] = source
            queue[4 * place + 2] = size << 32 | have
            queue[4 * place + 3] = context[_GROUP]
            context[_QUEUED] = place + 1
        return
    _carry_out(context, queue, context[_GROUP] - words[9])


@jit
def _asynchronous_wait(context: Any, groups: int) -> None:
    """Carry out the warp's copies of the groups before one."""
    _carry_out(context, array_at(context[_QUEUE], 4 * context[_QUEUE_SIZE], np.int64), groups)


@jit
def _carry_out(context: Any, queue: Any, groups: int) -> None:
    """The copies of the groups before one, in the order in which they were asked for."""
    left = 0
    for place in range(context[_QUEUED]):
        target, source, sizes, group = queue[4 * place], queue[4 * place + 1], queue[4 * place + 2], queue[4 * place + 3]
        if group < groups:
            size, have = sizes >> 32, sizes & 0xFFFFFFFF
            if have == size:
                _copy(target, source, size)
            else:
                cells = array_at(target, size, np.uint8)
                for byte in range(size):
                    cells[byte] = 0
                if have > 0:
                    _copy(target, source, have)
        else:
            for word in range(4):
                queue[4 * left + word] = queue[4 * place + word]
            left += 1
    context[_QUEUED] = left


@jit
def _matrix(words: Any) -> None:
    """ldmatrix, stmatrix of 8 x 8 elements of 16 bits: store, context, addresses, data, matrices, transposed, instruction.

    Lane 8 i + r has the address of row r of matrix i. Register i of lane 4 r + c holds columns 2 c and 2 c + 1 of row r.
    """
    store, count, transposed, instruction = words[1], words[5], words[6], words[7]
    context = array_at(words[2], _WORDS, np.int64)
    addresses = array_at(words[3], 32, np.int64)
    data = array_at(words[4], 32 * 2 * count, np.uint16)
    for matrix in range(count):
        for row in range(8):
            lane = 8 * matrix + row
            place = _resolved(context, addresses[lane], 16, lane, instruction)
            if place == 0:
                continue
            cells = array_at(place, 8, np.uint16)
            for column in range(8):
                if transposed:
                    at = 2 * (32 * matrix + 4 * column + row // 2) + (row & 1)
                else:
                    at = 2 * (32 * matrix + 4 * row + column // 2) + (column & 1)
                if store:
                    cells[column] = data[at]
                else:
                    data[at] = cells[column]


@jit
def _shuffle(words: Any) -> None:
    """shfl: mode (up, down, bfly, idx), mask, values, lanes, clamps, results, whether in range: a word each of every lane."""
    mode = words[1]
    values, wanted, clamps = array_at(words[3], 32, np.uint32), array_at(words[4], 32, np.uint32), array_at(words[5], 32, np.uint32)
    results, inside = array_at(words[6], 32, np.uint32), array_at(words[7], 32, np.uint32)
    for lane in range(32):
        by: Any = np.int64(wanted[lane] & 31)
        clamp = np.int64(clamps[lane])
        other: Any = np.int64(lane)
        segment = clamp >> 8 & 31
        bound = (lane & segment) | (clamp & 31 & ~segment)
        least = lane & segment
        if mode == 0:
            other = lane - by
            ok = other >= bound
        elif mode == 1:
            other = lane + by
            ok = other <= bound
        elif mode == 2:
            other = lane ^ by
            ok = other <= bound
        else:
            other = least | by & ~segment & 31
            ok = other <= bound
        if not ok:
            other = np.int64(lane)
        results[lane] = values[other]
        inside[lane] = 1 if ok else 0


@jit
def _unpacked(
    starts: Any, fragment: int, codes: int, row0: int, column0: int, rows: int, columns: int, stride: int, bits: int, held: int
) -> None:
    """Elements of a fragment's words, into a matrix of codes of 8, 16 or 32 bits (`held`), row by row."""
    words = array_at(fragment, 1 << 20, np.uint32)
    mask = np.uint32((1 << bits) - 1)
    for row in range(rows):
        base = (row0 + row) * stride + column0
        for column in range(columns):
            start = starts[row * columns + column]
            code = words[start >> 5] >> np.uint32(start & 31) & mask
            if held == 8:
                array_at(codes, 1 << 40, np.uint8)[base + column] = code
            elif held == 16:
                array_at(codes, 1 << 40, np.uint16)[base + column] = code
            elif held == 32:
                array_at(codes, 1 << 40, np.uint32)[base + column] = code
            elif held == 64:
                array_at(codes, 1 << 40, np.uint64)[base + column] = array_at(fragment, 1 << 20, np.uint64)[start >> 6]
            elif held == SIGNED:
                shift = 32 - bits
                array_at(codes, 1 << 40, np.int8)[base + column] = np.int8(np.int32(code << np.uint32(shift)) >> shift)


@jit
def _product(words: Any) -> None:
    """Products of mma.sync, `rows` x `columns` tiles of `steps` along K, through the engine.

    Words: rows, columns, steps; addresses of the fragments of A [row][step], of B [column][step], of C and D [row][column], of the
    scales of A and B (or 0); of a Shape; of room for A, B, D and the scales; of the engine's record and function.
    """
    rows, columns, steps = words[1], words[2], words[3]
    shape = array_at(words[9], 40, np.int64)
    m, n, k, a_words, b_words, d_words = shape[0], shape[1], shape[2], shape[3], shape[4], shape[5]
    a_bits, b_bits, a_held, b_held, d_held, blocks = shape[6], shape[7], shape[8], shape[9], shape[10], shape[11]
    a_starts, b_starts = array_at(shape[12], m * k, np.int32), array_at(shape[13], k * n, np.int32)
    d_starts = array_at(shape[14], m * n, np.int32)
    whole_n, whole_k = n * columns, k * steps
    room_a, room_b, room_d = words[10], words[11], words[12]
    context = array_at(words[20], _WORDS, np.int64)
    array_at(context[_COUNTS], 256, np.int64)[words[19]] += rows * columns * steps
    for row in range(rows):
        for step in range(steps):
            at = words[4] + 4 * a_words * (row * steps + step)
            _unpacked(a_starts, at, room_a, row * m, step * k, m, k, whole_k, a_bits, a_held)
    for column in range(columns):
        for step in range(steps):
            at = words[5] + 4 * b_words * (column * steps + step)
            _unpacked(b_starts, at, room_b, step * k, column * n, k, n, whole_n, b_bits, b_held)
    if blocks:
        sa_starts, sb_starts = array_at(shape[15], m * blocks, np.int32), array_at(shape[16], blocks * n, np.int32)
        for row in range(rows):
            for step in range(steps):
                _unpacked(
                    sa_starts, words[7] + 128 * (row * steps + step), words[13], row * m, step * blocks, m, blocks, blocks * steps, 8, 8
                )
        for column in range(columns):
            for step in range(steps):
                _unpacked(
                    sb_starts, words[8] + 128 * (column * steps + step), words[14], step * blocks, column * n, blocks, n, whole_n, 8, 8
                )
    for row in range(rows):
        for column in range(columns):
            fragment = words[6] + 4 * d_words * (row * columns + column)
            _accumulators(d_starts, fragment, room_d, row * m, column * n, m, n, whole_n, d_held, False)
    record = array_at(words[15], 64, np.int64)
    call = array_at(words[17], 64, np.int64)
    for word in range(words[18]):
        call[word] = record[word]
    call[0], call[1], call[2] = room_a, room_b, room_d
    if blocks:
        call[3], call[4] = words[13], words[14]
    call_at(words[16], words[17])
    for row in range(rows):
        for column in range(columns):
            fragment = words[6] + 4 * d_words * (row * columns + column)
            _accumulators(d_starts, fragment, room_d, row * m, column * n, m, n, whole_n, d_held, True)


@jit
def _accumulators(
    starts: Any, fragment: int, matrix: int, row0: int, column0: int, rows: int, columns: int, stride: int, held: int, back: bool
) -> None:
    """C from its fragment into the engine's matrix, or D back: of 32, 16 or 64 bits (`held`)."""
    words = array_at(fragment, 1 << 20, np.uint32)
    halves = array_at(fragment, 1 << 20, np.uint16)
    wide = array_at(fragment, 1 << 20, np.uint64)
    cells = array_at(matrix, 1 << 40, np.uint32)
    small = array_at(matrix, 1 << 40, np.uint16)
    for row in range(rows):
        base = (row0 + row) * stride + column0
        for column in range(columns):
            start = starts[row * columns + column]
            if held == 32:
                if back:
                    words[start >> 5] = cells[base + column]
                else:
                    cells[base + column] = words[start >> 5]
            elif held == 16:
                if back:
                    halves[start >> 4] = small[base + column]
                else:
                    small[base + column] = halves[start >> 4]
            elif back:
                wide[start >> 6] = array_at(matrix, 1 << 40, np.uint64)[base + column]
            else:
                array_at(matrix, 1 << 40, np.uint64)[base + column] = wide[start >> 6]
