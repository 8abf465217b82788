"""Bulk copies and TMA, compiled by Numba: boxes of tensors to shared memory and back, and runs of bytes.

A copy is put off (pending.py): those to shared memory until a wait on their mbarrier, those to global memory until their group is
waited for. Only then memory is read and written.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import array_at, jit
from mmabits.emulator.machine.context import BAD_MAP, NO_MAP, Work
from mmabits.emulator.machine.halves import sum_of_halves
from mmabits.emulator.machine.helpers import _fail, _within
from mmabits.emulator.machine.operands import swizzled
from mmabits.emulator.machine.tensormaps import ATOMS, BYTES, ELEMENT_TABLE, MAGIC, SWIZZLES, TensorMap

OWN = len(Work._fields)
MAP, SHARED, OFFSET, COORDINATES, OPERATION = OWN, OWN + 1, OWN + 2, OWN + 3, OWN + 8
"""Words of a box's record: addresses in this process of the map and of shared memory, the offset in it, five coordinates, and how it is
combined with global memory: 0 to replace it."""
TARGET, SOURCE, SIZE, ELEMENT, COMBINED = OWN, OWN + 1, OWN + 2, OWN + 3, OWN + 4
"""Words of a record of bytes: type of an element, and how they are combined with what is there: 0 to replace it."""
DATA = OWN + 3
"""Of st.async: two words that are written, after TARGET and SIZE."""
_ADDRESS, _RANK, _ELEMENT, _SWIZZLE, _FILL, _SIZES, _STRIDES, _BOX, _STEPS, _ATOM = (
    TensorMap._fields.index(name)
    for name in ("address", "rank", "element", "swizzle", "fill", "sizes_01", "stride_1", "box", "steps", "atom")
)
_SPANS = np.array([SWIZZLES[mode] for mode in range(4)], np.int64)
_ATOMS = np.array([ATOMS.get(code, 0) for code in range(4)], np.int64)
STEPS_MASK = 0x77770
"""Of strides of elements, less one, 4 bits each: 1 along the first dimension, up to 8 along the others."""
BOX_ALIGNMENT = 128
"""Of a box in shared memory."""


@jit
def map_at(context: Any, address: int, lane: int, instruction: int) -> Any:
    """The place in this process of a map, or 0 and an error."""
    place = _within(context, address, BYTES, lane, instruction)
    if place == 0:
        return 0
    words = array_at(place, 16, np.int64)
    if words[0] != MAGIC:
        _fail(context, NO_MAP, instruction, lane, address)
        return 0
    unit = ELEMENT_TABLE[4 * (words[_ELEMENT] & 15)]
    inner = (words[_BOX] & 0xFFF) // max(1, unit) * ELEMENT_TABLE[4 * (words[_ELEMENT] & 15) + 2]
    if (
        not 1 <= words[_RANK] <= 5 or unit == 0 or not 0 <= words[_SWIZZLE] <= 3 or _ATOMS[words[_ATOM] & 3] == 0
        or words[_STEPS] & ~STEPS_MASK != 0 or inner == 0 or inner & 15 != 0 or words[_ADDRESS] & 15 != 0
        or (words[_SWIZZLE] != 0 and inner > _SPANS[words[_SWIZZLE]])
    ):  # fmt: skip
        _fail(context, BAD_MAP, instruction, lane, address)
        return 0
    return place


@jit
def _size(words: Any, dimension: int) -> Any:
    return np.int64(array_at(words, 32, np.uint32)[2 * _SIZES + dimension])


@jit
def _length(words: Any, dimension: int) -> Any:
    """Elements that are copied along a dimension: a box goes over so many, in steps."""
    stride = (words[_STEPS] >> 4 * dimension & 15) + 1
    return ((words[_BOX] >> 12 * dimension & 0xFFF) + stride - 1) // stride


@jit
def box_bytes(place: int) -> Any:
    """Bytes of a map's box in shared memory."""
    return _bytes_of_box(place, 2)


@jit
def counted_bytes(place: int) -> Any:
    """Bytes of a map's box that its mbarrier counts: those of packed elements, without what pads them in shared memory.

    Triton announces so many for padded FP4, and so does DeepGEMM (sm100, SMEM_B / 2 of .b4x16_p64).
    """
    return _bytes_of_box(place, 1)


@jit
def _bytes_of_box(place: int, column: int) -> Any:
    words = array_at(place, 16, np.int64)
    element = words[_ELEMENT]
    count = (words[_BOX] & 0xFFF) // ELEMENT_TABLE[4 * element] * ELEMENT_TABLE[4 * element + column]
    for dimension in range(1, words[_RANK]):
        count *= _length(words, dimension)
    return count


@jit
def _row(
    context: Any, work: Any, words: Any, row: int, inside: bool, where: int, first: int, count: int, loads: bool
) -> None:  # fmt: skip
    """One row of a box: `first` .. `first + count` of its units lie inside the tensor, at `where`."""
    element = words[_ELEMENT]
    unit, wide, held, nan = (
        ELEMENT_TABLE[4 * element], ELEMENT_TABLE[4 * element + 1], ELEMENT_TABLE[4 * element + 2], ELEMENT_TABLE[4 * element + 3],
    )  # fmt: skip
    units = (words[_BOX] & 0xFFF) // unit
    start = work[OFFSET] + row * units * held
    base = work[SHARED] - work[OFFSET]
    span, atom = _SPANS[words[_SWIZZLE]], _ATOMS[words[_ATOM]]
    last = first + count if inside else first
    if held == wide:  # bytes in chunks of 16
        for chunk in range(units * held // 16):
            address = start + 16 * chunk
            place = base + (swizzled(address, span, atom) if span > 16 else address)
            low, high = max(first * wide, 16 * chunk), min(last * wide, 16 * chunk + 16)
            if loads:
                cells = array_at(place, 2, np.int64)
                if high - low < 16:
                    _fill(place, held, nan if words[_FILL] else np.int64(0))
                if high - low == 16:
                    source = array_at(where + 16 * chunk, 2, np.int64)
                    cells[0], cells[1] = source[0], source[1]
                else:
                    for byte in range(low, high):
                        array_at(place, 16, np.uint8)[byte - 16 * chunk] = array_at(where, high, np.uint8)[byte]
            elif work[OPERATION] != 0:
                for at in range(low, high, wide):
                    _combine(work[OPERATION], element, where + at, place + at - 16 * chunk)
            else:
                for byte in range(low, high):
                    array_at(where, high, np.uint8)[byte] = array_at(place, 16, np.uint8)[byte - 16 * chunk]
    else:  # units of 16 elements, padded to 16 bytes
        for number in range(units):
            address = start + held * number
            place = base + (swizzled(address, span, atom) if span > 16 else address)
            cells = array_at(place, 2, np.int64)
            cells[0], cells[1] = 0, 0
            if first <= number < last:
                for byte in range(wide):
                    array_at(place, 16, np.uint8)[byte] = array_at(where + wide * number, wide, np.uint8)[byte]


@jit
def _fill(place: int, size: int, code: Any) -> None:
    """16 bytes of elements."""
    for byte in range(16):
        array_at(place, 16, np.uint8)[byte] = code >> 8 * (byte % size) & 255


@jit
def _combine(operation: int, element: int, target: int, source: int) -> None:
    """A reduction of one element in global memory: 1 add, 2 min, 3 max, 4 and, 5 or, 6 xor."""
    if element == 6 or element == 10:
        half = array_at(target, 1, np.uint16)
        half[0] = _combined_halves(operation, np.int64(half[0]), np.int64(array_at(source, 1, np.uint16)[0]), 10 if element == 6 else 7)
    elif element == 9:
        total64 = array_at(target, 1, np.float64)[0] + array_at(source, 1, np.float64)[0]
        array_at(target, 1, np.float64)[0] = total64
        if total64 != total64:
            array_at(target, 1, np.int64)[0] = np.int64(0x7FF8000000000000)
    elif element == 4 or element == 5:
        cell, value = array_at(target, 1, np.int64), array_at(source, 1, np.int64)[0]
        signed = element == 5
        less = value < cell[0] if signed else np.uint64(value) < np.uint64(cell[0])
        cell[0] = _combined(operation, cell[0], value, less)
    elif element == 2 or element == 3:
        small = array_at(target, 1, np.uint32)
        old, new = np.int64(small[0]), np.int64(array_at(source, 1, np.uint32)[0])
        less = np.int32(new) < np.int32(old) if element == 3 else new < old
        small[0] = np.uint32(_combined(operation, old, new, less) & 0xFFFFFFFF)
    elif element == 7:
        numbers, codes = array_at(target, 1, np.float32), array_at(target, 1, np.uint32)
        if codes[0] & np.uint32(0x7F800000) == 0:  # as atomics in global memory do
            codes[0] &= np.uint32(0x80000000)
        term_code = array_at(source, 1, np.uint32)[0]
        term = array_at(source, 1, np.float32)[0]
        if term_code & np.uint32(0x7F800000) == 0:
            term = np.float32(0) if term_code >> 31 == 0 else -np.float32(0)
        total = numbers[0] + term
        numbers[0] = total
        if total != total:
            codes[0] = np.uint32(0x7FFFFFFF)
        elif codes[0] & np.uint32(0x7F800000) == 0:
            codes[0] &= np.uint32(0x80000000)


@jit
def _combined_halves(operation: int, old: int, new: int, fraction_bits: int) -> Any:
    """Of f16 or bf16: the sum, or the less or greater one: -0 is less than +0, NaN gives way to a number."""
    if operation == 1:
        return sum_of_halves(old, new, fraction_bits)
    infinity = ((1 << (15 - fraction_bits)) - 1) << fraction_bits
    old_is_nan, new_is_nan = old & 0x7FFF > infinity, new & 0x7FFF > infinity
    if old_is_nan or new_is_nan:
        return (np.int64(0x7FFF) if new_is_nan else new) if old_is_nan else old
    key_old, key_new = (-1 - (old & 0x7FFF) if old >> 15 else old), (-1 - (new & 0x7FFF) if new >> 15 else new)
    return new if (key_new < key_old) == (operation == 2) else old


@jit
def _combined(operation: int, old: Any, new: Any, less: bool) -> Any:
    if operation == 1:
        return old + new
    if operation == 2:
        return new if less else old
    if operation == 3:
        return old if less else new
    if operation == 4:
        return old & new
    if operation == 5:
        return old | new
    return old ^ new


@jit
def carry_out_box(context: Any, work: Any, loads: bool) -> None:
    """Copy a box."""
    words = array_at(work[MAP], 16, np.int64)
    rank, element, box = words[_RANK], words[_ELEMENT], words[_BOX]
    unit, wide = ELEMENT_TABLE[4 * element], ELEMENT_TABLE[4 * element + 1]
    rows = np.int64(1)
    for dimension in range(1, rank):
        rows *= _length(words, dimension)
    units = (box & 0xFFF) // unit
    start = work[COORDINATES] // unit
    total = (_size(work[MAP], 0) + unit - 1) // unit
    first = max(np.int64(0), -start)
    count = max(np.int64(0), min(units, total - start) - first)
    for row in range(rows):
        where, inside, left = words[_ADDRESS] + start * wide, count > 0, row
        for dimension in range(1, rank):
            length = _length(words, dimension)
            at = work[COORDINATES + dimension] + left % length * ((words[_STEPS] >> 4 * dimension & 15) + 1)
            left //= length
            inside = inside and 0 <= at < _size(work[MAP], dimension)
            where += at * words[_STRIDES + dimension - 1]
        if inside:
            size = count * wide
            if _within(context, where + first * wide, size, work[3], work[5]) == 0:
                return
        _row(context, work, words, row, inside, where, first, count, loads)


@jit
def carry_out_bytes(work: Any) -> None:
    """Copy a run of bytes, 16 at a time, or combine it element by element with what is there."""
    if work[COMBINED] != 0:
        wide = ELEMENT_TABLE[4 * work[ELEMENT] + 1]
        for at in range(0, work[SIZE], wide):
            _combine(work[COMBINED], work[ELEMENT], work[TARGET] + at, work[SOURCE] + at)
        return
    target, source = array_at(work[TARGET], work[SIZE] // 8, np.int64), array_at(work[SOURCE], work[SIZE] // 8, np.int64)
    for word in range(work[SIZE] // 8):
        target[word] = source[word]


@jit
def carry_out_store(work: Any) -> None:
    """Write up to 16 bytes."""
    target = array_at(work[TARGET], work[SIZE], np.uint8)
    for byte in range(work[SIZE]):
        target[byte] = work[DATA + byte // 8] >> 8 * (byte % 8) & 255
