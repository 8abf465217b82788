"""What kernels ask of the bulk copies, compiled by Numba: copies that are put off, groups, and the fields of tensor maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import array_at, jit
from mmabits.emulator.machine.context import (
    ASK_BOX,
    ASK_BYTES,
    ASK_STORE,
    BAD_REDUCTION,
    BOX_TO_GLOBAL,
    BOX_TO_SHARED,
    BYTES_COPY,
    CLOSE_GROUP,
    MISALIGNED,
    STORE,
    WINDOW_SHIFT,
    WORK_WORDS,
    Context,
    Launch,
)
from mmabits.emulator.machine.helpers import _fail, _resolved, _within
from mmabits.emulator.machine.pending import carry_out_groups, put_off
from mmabits.emulator.machine.tensormaps import BYTES, COPY_MAP, ELEMENTS, FIELDS, MAGIC, TensorMap
from mmabits.emulator.machine.transfers import (
    BOX_ALIGNMENT,
    COMBINED,
    COORDINATES,
    DATA,
    ELEMENT,
    MAP,
    OFFSET,
    OPERATION,
    SHARED,
    SIZE,
    SOURCE,
    TARGET,
    box_bytes,
    map_at,
)

_WORDS, _LAUNCH_WORDS = len(Context._fields), len(Launch._fields)
_LAUNCH, _BULK_GROUPS, _OWN = (Context._fields.index(name) for name in ("launch", "bulk_groups", "own"))
_ELEMENT = TensorMap._fields.index("element")
_F32, _F16, _BF16 = (next(code for code, row in ELEMENTS.items() if row.name == name) for name in ("f32", "f16", "bf16"))


@jit
def bulk(words: Any) -> None:
    """A request of the lanes of a mask, in ascending order.

    Words: which, mask, context, instruction, then of a box: addresses of the maps, of shared memory, of mbarriers (0 of copies to global
    memory), coordinates (32 words for each dimension), dimensions, operation; of bytes: addresses of targets, sources, mbarriers (or 0),
    sizes, element, operation; of both, at 11, addresses of masks of CTAs that get a copy each, or 0; of a wait: how many groups may be
    left; of a store: addresses of targets, data (register after register), mbarriers, bytes of a register, registers.
    """
    what, mask, instruction = words[1], words[2], words[4]
    context = array_at(words[3], _WORDS, np.int64)
    groups = array_at(context[_BULK_GROUPS], 32, np.int64)
    for lane in range(32):
        if mask >> lane & 1 == 0:
            continue
        if what == ASK_BOX:
            _ask_box(context, words, lane, groups[lane], instruction)
        elif what == ASK_BYTES:
            _ask_bytes(context, words, lane, groups[lane], instruction)
        elif what == ASK_STORE:
            _ask_store(context, words, lane, groups[lane], instruction)
        elif what == CLOSE_GROUP:
            groups[lane] += 1
        else:
            launch = array_at(context[_LAUNCH], _LAUNCH_WORDS, np.int64)
            carry_out_groups(launch, context[_OWN], lane, groups[lane] - words[5])


@jit
def _ask_box(context: Any, words: Any, lane: int, group: int, instruction: int) -> None:
    place = map_at(context, array_at(words[5], 32, np.int64)[lane], lane, instruction)
    if place == 0:
        return
    address = array_at(words[6], 32, np.int64)[lane]
    if address & (BOX_ALIGNMENT - 1) != 0:
        _fail(context, MISALIGNED, instruction, lane, address)
        return
    if words[10] != 0:
        element = array_at(place, 16, np.int64)[_ELEMENT]
        is_integer, is_half = 2 <= element <= 5, element in (_F16, _BF16)
        if not (is_integer or (element == _F32 and words[10] == 1) or (is_half and words[10] <= 3)):
            _fail(context, BAD_REDUCTION, instruction, lane, element)
            return
    if words[11] == 0:
        barrier = np.int64(0) if words[7] == 0 else array_at(words[7], 32, np.int64)[lane]
        _put_box(context, words, place, address, barrier, lane, group, instruction)
        return
    for rank in range(16):
        if array_at(words[11], 32, np.int32)[lane] >> rank & 1:
            barrier = in_cta(array_at(words[7], 32, np.int64)[lane], rank)
            _put_box(context, words, place, in_cta(address, rank), barrier, lane, group, instruction)


@jit
def in_cta(address: int, rank: int) -> Any:
    """The same place of shared memory in a CTA of the cluster."""
    return address & ~(0xFF << WINDOW_SHIFT) | (rank + 1) << WINDOW_SHIFT


@jit
def _put_box(
    context: Any, words: Any, place: int, address: int, barrier_address: int, lane: int, group: int, instruction: int
) -> None:  # fmt: skip
    shared, barrier = _within(context, address, box_bytes(place), lane, instruction), np.int64(0)
    if barrier_address != 0:
        barrier = _resolved(context, barrier_address, 8, lane, instruction)
        if barrier == 0:
            return
    if shared == 0:
        return
    kind = BOX_TO_SHARED if words[7] != 0 else BOX_TO_GLOBAL
    work = array_at(put_off(context, kind, barrier, lane, group, instruction), WORK_WORDS, np.int64)
    work[MAP], work[SHARED], work[OFFSET], work[OPERATION] = place, shared, address & ((1 << WINDOW_SHIFT) - 1), words[10]
    for dimension in range(5):
        at = np.int64(0)
        if dimension < words[9]:
            at = np.int64(array_at(words[8] + 128 * dimension, 32, np.int32)[lane])
        work[COORDINATES + dimension] = at


@jit
def _ask_bytes(context: Any, words: Any, lane: int, group: int, instruction: int) -> None:
    size = np.int64(array_at(words[8], 32, np.uint32)[lane])
    target, source = array_at(words[5], 32, np.int64)[lane], array_at(words[6], 32, np.int64)[lane]
    if (target | source | size) & 15 != 0:
        _fail(context, MISALIGNED, instruction, lane, target if target & 15 != 0 else source)
        return
    if size == 0:
        return
    if words[11] == 0:
        barrier = np.int64(0) if words[7] == 0 else array_at(words[7], 32, np.int64)[lane]
        _put_bytes(context, words, target, source, size, barrier, lane, group, instruction)
        return
    for rank in range(16):
        if array_at(words[11], 32, np.int32)[lane] >> rank & 1:
            barrier = in_cta(array_at(words[7], 32, np.int64)[lane], rank)
            _put_bytes(context, words, in_cta(target, rank), source, size, barrier, lane, group, instruction)


@jit
def _put_bytes(
    context: Any, words: Any, target: int, source: int, size: int, barrier_address: int, lane: int, group: int, instruction: int
) -> None:  # fmt: skip
    to, of, barrier = _within(context, target, size, lane, instruction), _within(context, source, size, lane, instruction), np.int64(0)
    if barrier_address != 0:
        barrier = _resolved(context, barrier_address, 8, lane, instruction)
        if barrier == 0:
            return
    if to == 0 or of == 0:
        return
    work = array_at(put_off(context, BYTES_COPY, barrier, lane, group, instruction), WORK_WORDS, np.int64)
    work[TARGET], work[SOURCE], work[SIZE], work[ELEMENT], work[COMBINED] = to, of, size, words[9], words[10]


@jit
def _ask_store(context: Any, words: Any, lane: int, group: int, instruction: int) -> None:
    unit, count = words[8], words[9]
    to = _resolved(context, array_at(words[5], 32, np.int64)[lane], unit * count, lane, instruction)
    barrier = _resolved(context, array_at(words[7], 32, np.int64)[lane], 8, lane, instruction)
    if to == 0 or barrier == 0:
        return
    work = array_at(put_off(context, STORE, barrier, lane, group, instruction), WORK_WORDS, np.int64)
    work[TARGET], work[SIZE], work[DATA], work[DATA + 1] = to, unit * count, 0, 0
    for number in range(count):
        at = words[6] + (32 * number + lane) * unit
        for byte in range(unit):
            place = number * unit + byte
            work[DATA + place // 8] |= np.int64(array_at(at, unit, np.uint8)[byte]) << 8 * (place % 8)


_ADDRESS, _RANK, _, _SWIZZLE, _FILL, _SIZES, _STRIDES, _BOX, _STEPS, _ATOM = (
    TensorMap._fields.index(name)
    for name in ("address", "rank", "element", "swizzle", "fill", "sizes_01", "stride_1", "box", "steps", "atom")
)
(
    _ADDRESS_FIELD, _RANK_FIELD, _BOX_FIELD, _SIZE_FIELD, _STRIDE_FIELD, _STEP_FIELD, _ELEMENT_FIELD, _, _SWIZZLE_FIELD, _ATOM_FIELD,
    _FILL_FIELD,
) = range(len(FIELDS))  # fmt: skip


@jit
def map_field(words: Any) -> None:
    """tensormap.replace: field, mask, context, instruction, addresses, ordinal, new values; or a copy: addresses of targets, sources."""
    field, mask, instruction, ordinal = words[1], words[2], words[4], words[6]
    context = array_at(words[3], _WORDS, np.int64)
    for lane in range(32):
        if mask >> lane & 1 == 0:
            continue
        place = _resolved(context, array_at(words[5], 32, np.int64)[lane], BYTES, lane, instruction)
        if place == 0:
            continue
        cells = array_at(place, 16, np.int64)
        value = array_at(words[7], 32, np.int64)[lane]
        if field == COPY_MAP:
            source = _resolved(context, value, BYTES, lane, instruction)
            if source != 0:
                for word in range(16):
                    cells[word] = array_at(source, 16, np.int64)[word]
            continue
        cells[0] = MAGIC
        if field == _ADDRESS_FIELD:
            cells[_ADDRESS] = value
        elif field == _RANK_FIELD:
            cells[_RANK] = value + 1
        elif field == _BOX_FIELD:
            cells[_BOX] = cells[_BOX] & ~(0xFFF << 12 * ordinal) | (value & 0xFFF) << 12 * ordinal
        elif field == _SIZE_FIELD:
            array_at(place, 32, np.uint32)[2 * _SIZES + ordinal] = value
        elif field == _STRIDE_FIELD:
            cells[_STRIDES + ordinal] = value
        elif field == _STEP_FIELD:
            cells[_STEPS] = cells[_STEPS] & ~(15 << 4 * ordinal) | (value - 1 & 15) << 4 * ordinal
        elif field == _ELEMENT_FIELD:
            cells[_ELEMENT] = value
        elif field == _SWIZZLE_FIELD:
            cells[_SWIZZLE] = value
        elif field == _ATOM_FIELD:
            cells[_ATOM] = value
        elif field == _FILL_FIELD:
            cells[_FILL] = value
