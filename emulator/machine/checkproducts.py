"""Checks of wgmma and tcgen05, compiled by Numba: what their products and copies read and write, in shared and in tensor memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import array_at, jit
from mmabits.emulator.machine import checkrecords as check
from mmabits.emulator.machine import clocks as clock
from mmabits.emulator.machine import tensorrecords, warpgrouprecords
from mmabits.emulator.machine.cells import COLUMNS, LANES, transfer_place
from mmabits.emulator.machine.checkcopies import mbarrier_at
from mmabits.emulator.machine.checkrecords import CheckState
from mmabits.emulator.machine.context import CTA_WORDS, Context, Cta
from mmabits.emulator.machine.operands import TCGEN05, WGMMA, swizzle_span, swizzled
from mmabits.emulator.machine.requests import in_cta
from mmabits.emulator.machine.tensorrecords import Multiply
from mmabits.emulator.machine.tensorwork import row_lane, table_of
from mmabits.emulator.machine.warpgrouprecords import Queue, WarpgroupProduct

_C, _P, _M = Context._fields, WarpgroupProduct._fields, Multiply._fields
_CTA, _SHARED_SIZE, _ERROR, _WARPGROUP, _TABLES, _WARP = (
    _C.index(name) for name in ("cta", "shared_size", "error", "warpgroup", "warpgroup_tables", "warp")
)
_RANK = Cta._fields.index("rank")
_ASKED = CheckState._fields.index("checks")
_DONE, _COMMITTED = Queue._fields.index("done"), Queue._fields.index("committed")
_N, _K, _A_BITS, _B_BITS, _IN_REGISTERS, _A_MN, _B_MN = (
    _P.index(name) for name in ("n", "k", "a_bits", "b_bits", "a_in_registers", "a_mn_major", "b_mn_major")
)
(
    _TM, _TN, _TK, _BLOCKS, _SLOT_BITS, _TA_BITS, _TA_ELEMENTS, _TA_MN, _TB_BITS, _TB_ELEMENTS, _TB_MN, _TGROUP,
) = (
    _M.index(name)
    for name in (
        "m", "n", "k", "blocks", "slot_bits", "a_bits", "a_elements", "a_mn_major", "b_bits", "b_elements", "b_mn_major", "group",
    )
)  # fmt: skip


@jit
def _read_matrix(
    state: Any, group: Any, context: Any, rank: int, code: int, kind: int, mn_major: bool, rows: int, ks: int, bits: int, elements: int,
    thread: int, agent: int, now: int, bit: int, instruction: int,
) -> None:  # fmt: skip
    """The 16 bytes at a time that operands.read_matrix reads."""
    start, leading, stride = (code & 0x3FFF) << 4, (code >> 16 & 0x3FFF) << 4, (code >> 32 & 0x3FFF) << 4
    span, unit, lines = swizzle_span(code, kind), 16, 8
    if span == 0:
        return
    if span == 129:
        span, unit, lines = 128, 32, 4
    across_count, along_count = (ks, rows) if mn_major else (rows, ks)
    for across in range(across_count):
        atom, within_atom = across // lines, across % lines
        for chunk in range((along_count + elements - 1) // elements):
            if span == 16:
                offset = within_atom * 16
                offset += atom * leading + chunk * stride if mn_major else atom * stride + chunk * leading
            else:
                offset = atom * stride + within_atom * span + chunk % (span // 16) * 16 + chunk // (span // 16) * leading
            address = swizzled(start + offset, span, unit)
            if address + 16 <= context[_SHARED_SIZE]:
                clock.touch(
                    state, group, context, rank, address, 16, thread, agent, now, bit, True, False, True, instruction, 0, 0, 1, 1
                )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------- wgmma


@jit
def warpgroup_before(state: Any, group: Any, context: Any, words: Any) -> None:
    """A product that a warp asks for: it reads shared memory for an agent of the warp, whose clock counts groups."""
    if words[1] != warpgrouprecords.ISSUE:
        return
    queue = array_at(context[_WARPGROUP], warpgrouprecords.HEAD, np.int64)
    table = array_at(array_at(context[_TABLES], words[4] + 1, np.int64)[words[4]], len(_P), np.int64)
    warp, rank = clock.warp_of(context, group), array_at(context[_CTA], CTA_WORDS, np.int64)[_RANK]
    agent = clock.agent_of(group, check.WARPGROUP, warp)
    now = queue[_COMMITTED + (context[_WARP] & 3)] + 1
    if table[_IN_REGISTERS] == 0:
        _read_matrix(
            state, group, context, rank, words[5], WGMMA, table[_A_MN] != 0, 64, table[_K], table[_A_BITS], 128 // table[_A_BITS],
            32 * warp, agent, now, 1, words[3],
        )  # fmt: skip
    _read_matrix(
        state, group, context, rank, words[6], WGMMA, table[_B_MN] != 0, table[_N], table[_K], table[_B_BITS], 128 // table[_B_BITS],
        32 * warp, agent, now, 1, words[3],
    )  # fmt: skip


@jit
def warpgroup_after(state: Any, group: Any, context: Any, words: Any) -> None:
    """A wait that ended."""
    if words[1] != warpgrouprecords.AWAIT or words[5] != 0:
        return
    queue = array_at(context[_WARPGROUP], warpgrouprecords.HEAD, np.int64)
    warp = clock.warp_of(context, group)
    done = queue[_COMMITTED + (context[_WARP] & 3)] - words[4]
    column = clock.column(group, clock.agent_of(group, check.WARPGROUP, warp), 0)
    for lane in range(32):
        row = array_at(clock.row_of(group, 32 * warp + lane), group[clock.COLUMNS], np.int32)
        row[column] = max(np.int64(row[column]), done)


@jit
def warpgroup_in_flight(state: Any, context: Any, instruction: int) -> None:
    """An instruction that names registers of products which may be under way: a finding where some are."""
    queue = array_at(context[_WARPGROUP], warpgrouprecords.HEAD, np.int64)
    if queue[_DONE] < queue[context[_WARP] & 3] and state[_ASKED] & check.RACES:
        clock.find(state, check.REGISTERS_IN_FLIGHT, check.REGISTERS, 0, context, 0, instruction, 0, 0, -1, 0)


# ------------------------------------------------------------------------------------------------------------------- tcgen05


@jit
def _cell(
    state: Any, group: Any, context: Any, rank: int, lane: int, column: int, thread: int, agent: int, now: int, bit: int, writes: bool,
    reads: bool, instruction: int, is_async: bool = True,
) -> None:  # fmt: skip
    if not 0 <= lane < LANES or not 0 <= column < COLUMNS:
        return
    place = group[clock.GRANULES] + lane * COLUMNS + column
    clock.touch_place(
        state, group, context, rank, place, check.TENSOR, lane << 16 | column, thread, agent, now, bit, is_async, writes, reads,
        instruction, True,
    )  # fmt: skip


@jit
def _transfer(state: Any, group: Any, context: Any, words: Any, store: bool) -> None:
    """tcgen05.ld, tcgen05.st: by agents of the warp, whose clocks count its waits."""
    instruction, shape, registers, split, parts = words[3], words[7], words[8], words[9], 2 if words[10] != 0 else 1
    address = np.int64(array_at(words[5], 32, np.uint32)[0])
    warp, rank = clock.warp_of(context, group), array_at(context[_CTA], CTA_WORDS, np.int64)[_RANK]
    count = group[clock.GROUP_CTAS] * group[clock.WARPS]
    agent = clock.agent_of(group, check.TENSOR_STORE if store else check.TENSOR_LOAD, warp)
    now = np.int64(array_at(group[clock.CLOCKS], 3 * count, np.int32)[count * (2 if store else 1) + warp]) + 1
    for register in range(registers):
        for thread in range(32):
            lane, word = transfer_place(shape, thread, register)
            column = (address & 0xFFFF) + word * parts
            if shape == 4 and thread >= 16:
                column += split
            for part in range(parts):
                _cell(
                    state, group, context, rank, (address >> 16) + lane, column + part, 32 * warp, agent, now, 1, store, not store,
                    instruction,
                )  # fmt: skip


@jit
def tensor_before(state: Any, group: Any, context: Any, words: Any) -> None:
    """tcgen05 (operations.TENSOR), before it is carried out."""
    what = words[1]
    warp = clock.warp_of(context, group)
    if words[4] == 0:
        return
    if what == tensorrecords.LOAD or what == tensorrecords.STORE:
        _transfer(state, group, context, words, what == tensorrecords.STORE)
    elif what == tensorrecords.FREE:
        rank = array_at(context[_CTA], CTA_WORDS, np.int64)[_RANK]
        count = group[clock.GROUP_CTAS] * group[clock.WARPS]
        now = np.int64(array_at(group[clock.CLOCKS], 3 * count, np.int32)[2 * count + warp]) + 1
        agent = clock.agent_of(group, check.TENSOR_STORE, warp)
        _each_cell(state, group, context, rank, words[5] & 0xFFFF, words[6], 32 * warp, agent, now, words[3], True)
    elif what == tensorrecords.COMMIT:
        _commits(state, group, context, words)


@jit
def _each_cell(
    state: Any, group: Any, context: Any, rank: int, first: int, columns: int, thread: int, agent: int, now: int, instruction: int,
    looks: bool,
) -> None:  # fmt: skip
    """Cells of columns that are allocated or given back: nothing is written in them then; who uses them still must have waited."""
    for lane in range(LANES):
        for column in range(first, min(first + columns, COLUMNS)):
            at = rank * group[clock.PLACES] + group[clock.GRANULES] + lane * COLUMNS + column
            record = array_at(group[clock.SHADOW] + 4 * check.RECORD_WORDS * at, check.RECORD_WORDS, np.int32)
            if looks and (record[1] != 0 or array_at(group[clock.HEADS] + 4 * at, 1, np.int32)[0] != 0):
                _cell(state, group, context, rank, lane, column, thread, agent, now, 1, True, False, instruction, False)
            record[0], record[1] = 0, 0


@jit
def _commits(state: Any, group: Any, context: Any, words: Any) -> None:
    """tcgen05.commit: who waits for the mbarrier knows what the thread has asked for so far.

    What came before that is over when it is: the products read what other threads wrote and released to the one that asks. What threads did
    since then is not.
    """
    warp = clock.warp_of(context, group)
    addresses = array_at(words[5], 32, np.int64)
    for lane in range(32):
        if words[4] >> lane & 1 == 0:
            continue
        for rank in range(16):
            if words[6] == 0 and rank != 0:
                break
            address = addresses[lane]
            if words[6] != 0:
                if array_at(words[6], 32, np.int64)[lane] >> rank & 1 == 0:
                    continue
                address = np.int64(in_cta(address, rank))
            number = mbarrier_at(group, context, address)
            if number < 0:
                continue
            clock.look(group, number)
            thread = 32 * warp + lane
            asked = array_at(group[clock.TENSOR_CLOCKS], thread + 1, np.int32)[thread]
            column = clock.column(group, clock.agent_of(group, check.TENSOR_CORE, warp), lane)
            for layer in range(group[clock.LAYERS]):
                start = 4 * layer * group[clock.COLUMNS]
                row = clock.mbarrier_row(group, number, 0) + start
                first = group[clock.BASES + check.COPY]
                clock.join(row + 4 * first, clock.row_of(group, thread) + start + 4 * first, group[clock.COLUMNS] - first)
                clock.join(row, clock.tensor_known(group, warp, layer), group[clock.THREADS])
                if layer == check.PLAIN or layer == check.BEFORE:
                    clocks = array_at(row, group[clock.COLUMNS], np.int32)
                    clocks[column] = max(clocks[column], asked)


@jit
def _knows(group: Any, warp: int, thread: int) -> None:
    """A thread asks tcgen05 for something: what it knows of threads now, a commit hands on."""
    for layer in range(group[clock.LAYERS]):
        row = clock.row_of(group, thread) + 4 * layer * group[clock.COLUMNS]
        clock.join(clock.tensor_known(group, warp, layer), row, group[clock.THREADS])
    clock.tick(group, warp)


@jit
def tensor_after(state: Any, group: Any, context: Any, words: Any) -> None:
    """The same when it was carried out, or taken."""
    what, instruction = words[1], words[3]
    if context[_ERROR] != 0 or words[4] == 0:
        return
    warp, own = clock.warp_of(context, group), array_at(context[_CTA], CTA_WORDS, np.int64)[_RANK]
    if what == tensorrecords.ALLOCATE:
        place = words[6] & clock.PLACE_BITS
        now = np.int64(array_at(group[clock.CLOCKS], warp + 1, np.int32)[warp])
        clock.touch(
            state, group, context, own, place, 4, 32 * warp, clock.agent_of(group, check.THREAD, warp) | check.ANY_PROXY, now, 1, False,
            True, False, instruction, 0, 0, 1, 1,
        )  # fmt: skip
        first = np.int64(array_at(clock.shared_of(context, own) + place, 1, np.uint32)[0])
        _each_cell(state, group, context, own, first, words[5], 32 * warp, 0, 0, instruction, False)
    elif what == tensorrecords.MULTIPLY or what == tensorrecords.COPY:
        agent = clock.agent_of(group, check.TENSOR_CORE, warp)
        for lane in range(32):
            if words[4] >> lane & 1:
                thread = 32 * warp + lane
                clocks = array_at(group[clock.TENSOR_CLOCKS], thread + 1, np.int32)
                clocks[thread] += 1
                _knows(group, warp, thread)
                if what == tensorrecords.MULTIPLY:
                    _multiply(state, group, context, words, lane, thread, agent, np.int64(clocks[thread]), own)
                else:
                    _copy(state, group, context, words, lane, thread, agent, np.int64(clocks[thread]), own)


@jit
def _multiply(
    state: Any, group: Any, context: Any, words: Any, lane: int, thread: int, agent: int, now: int, own: int
) -> None:  # fmt: skip
    scaled, instruction, bit = words[9] != 0, words[3], 1 << lane
    code = array_at(words[8], 32, np.int64)[lane] & 0xFFFFFFFF
    place = table_of(context, words[14], code & ~np.int64(3 << 4 | 3 << 29) if scaled else code, instruction)
    if place == 0:
        return
    table = array_at(place, len(_M), np.int64)
    pair = table[_TGROUP]
    d, a, b = array_at(words[5], 32, np.int64)[lane], array_at(words[6], 32, np.int64)[lane], array_at(words[7], 32, np.int64)[lane]
    adds = array_at(words[11], 32, np.int64)[lane] != 0
    rows, columns = table[_TM] // pair, table[_TN] // pair
    width = table[_TN] // 2 if pair == 2 and table[_TM] == 128 else table[_TN]
    for half in range(pair):
        rank = own if pair == 1 else (own & ~1) + half
        if words[13] == 0:
            _read_matrix(
                state, group, context, rank, a, TCGEN05, table[_TA_MN] != 0, rows, table[_TK], table[_TA_BITS], table[_TA_ELEMENTS],
                thread, agent, now, bit, instruction,
            )  # fmt: skip
        else:
            for row in range(rows):
                for column in range(table[_TK] * table[_SLOT_BITS] // 32):
                    at = (a >> 16 & 0x7F) + row_lane(table, row)
                    _cell(
                        state, group, context, rank, at, (a & 0xFFFF) + column, thread, agent, now, bit, False, True, instruction
                    )  # fmt: skip
        _read_matrix(
            state, group, context, rank, b, TCGEN05, table[_TB_MN] != 0, columns, table[_TK], table[_TB_BITS], table[_TB_ELEMENTS],
            thread, agent, now, bit, instruction,
        )  # fmt: skip
        if scaled:
            _scales(state, group, context, rank, array_at(words[9], 32, np.int64)[lane], rows, thread, agent, now, bit, instruction)
            _scales(state, group, context, rank, array_at(words[10], 32, np.int64)[lane], width, thread, agent, now, bit, instruction)
        for row in range(rows):
            for part in range(table[_TN] // width):
                for column in range(width):
                    _cell(
                        state, group, context, rank, (d >> 16 & 0x7F) + row_lane(table, row) + 64 * part, (d & 0xFFFF) + column, thread,
                        agent, now, bit, True, adds, instruction,
                    )  # fmt: skip


@jit
def _scales(
    state: Any, group: Any, context: Any, rank: int, address: int, rows: int, thread: int, agent: int, now: int, bit: int, instruction: int
) -> None:  # fmt: skip
    for lane in range(LANES):
        for column in range((rows + 31) // 32):
            _cell(
                state, group, context, rank, lane, (address & 0xFFFF) + column, thread, agent, now, bit, False, True, instruction
            )  # fmt: skip


@jit
def _copy(
    state: Any, group: Any, context: Any, words: Any, lane: int, thread: int, agent: int, now: int, own: int
) -> None:  # fmt: skip
    """tcgen05.cp (tensorwork._copy_in)."""
    shape, pair, instruction, bit = words[7], words[8], words[3], 1 << lane
    address, source = array_at(words[5], 32, np.int64)[lane], array_at(words[6], 32, np.int64)[lane]
    rows = 128 if shape <= 1 else 4 if shape == 2 else 64 if shape <= 4 else 32
    chunks = 2 if shape == 0 or shape == 2 else 1
    copies = 4 if shape == 5 else 2 if shape == 3 or shape == 4 else 1
    for half in range(pair):
        rank = own if pair == 1 else (own & ~1) + half
        _read_matrix(
            state, group, context, rank, source, TCGEN05, False, rows, 16 * chunks, 8, 16, thread, agent, now, bit, instruction
        )  # fmt: skip
        for row in range(rows):
            for copy in range(copies):
                if shape == 2:
                    to = (address >> 16) + 32 * row
                elif shape == 3:
                    to = np.int64(row + 64 * copy)
                elif shape == 4:
                    to = np.int64(64 * (row // 32) + row % 32 + 32 * copy)
                else:
                    to = np.int64(row + 32 * copy)
                for word in range(4 * chunks):
                    _cell(
                        state, group, context, rank, to, (address & 0xFFFF) + word, thread, agent, now, bit, True, False, instruction
                    )  # fmt: skip
