"""Checks of mbarriers and bulk copies, compiled by Numba.

What completes an mbarrier works for an agent of that mbarrier, whose clock is the phase: a wait for the phase makes it known, with what
those knew that arrived. What a group is waited for works for an agent of the lane.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import array_at, jit
from mmabits.emulator.machine import checkrecords as check
from mmabits.emulator.machine import clocks as clock
from mmabits.emulator.machine import context as words_of
from mmabits.emulator.machine.checkrecords import CheckState
from mmabits.emulator.machine.context import Context
from mmabits.emulator.machine.transfers import box_bytes, map_at

_C = Context._fields
_SHARED_SIZE, _GROUP, _BULK_GROUPS, _ERROR = (_C.index(name) for name in ("shared_size", "group", "bulk_groups", "error"))
_ASKED = CheckState._fields.index("checks")


@jit
def mbarrier_at(group: Any, context: Any, address: int) -> Any:
    """The number of the mbarrier at a generic address; -1 outside shared memory."""
    place, rank = address & clock.PLACE_BITS, clock.rank_of(context, address)
    if address >> words_of.TAG_SHIFT != words_of.SHARED_TAG or rank < 0 or place + 8 > context[_SHARED_SIZE]:
        return np.int64(-1)
    return clock.mbarrier_number(group, clock.shared_of(context, rank) + place)


@jit
def _is_known(state: Any, group: Any, context: Any, number: int, warp: int, lane: int, address: int, instruction: int) -> None:
    """A finding where a thread uses an mbarrier whose initialisation did not happen before."""
    table = array_at(group[clock.MBARRIER_TABLE], check.MBARRIERS * check.MBARRIER_WORDS, np.int64)
    at = check.MBARRIER_WORDS * number
    if table[at + 3] == 0 or not state[_ASKED] & check.RACES:
        return
    thread = table[at + 3] - 1
    agent = clock.agent_of(group, check.THREAD, thread // 32)
    if clock.not_before(group, check.PLAIN, 32 * warp + lane, agent, table[at + 4], 1 << thread % 32) >= 0:
        clock.find(
            state, check.NOT_INITIALISED, check.SHARED, address & clock.PLACE_BITS, context, lane, instruction, agent, thread % 32,
            table[at + 5], 0,
        )  # fmt: skip


@jit
def mbarriers_before(state: Any, group: Any, context: Any, words: Any) -> None:
    """An operation on mbarriers (operations.MBARRIER), before it is carried out."""
    what, mask, instruction = words[1], words[2], words[8]
    addresses = array_at(words[4], 32, np.int64)
    warp, size = clock.warp_of(context, group), clock.row_size(group)
    table = array_at(group[clock.MBARRIER_TABLE], check.MBARRIERS * check.MBARRIER_WORDS, np.int64)
    releases = False
    for lane in range(32):
        if mask >> lane & 1 == 0:
            continue
        number = mbarrier_at(group, context, addresses[lane])
        if number < 0:
            continue
        at, thread = check.MBARRIER_WORDS * number, 32 * warp + lane
        now = clock.mbarrier_row(group, number, 0)
        if what == words_of.INIT:
            place, rank = addresses[lane] & clock.PLACE_BITS, clock.rank_of(context, addresses[lane])
            ticks = np.int64(array_at(group[clock.CLOCKS], warp + 1, np.int32)[warp])
            clock.touch(
                state, group, context, rank, place, 8, thread, clock.agent_of(group, check.THREAD, warp), ticks, 1 << lane, False, True,
                False, instruction, 0, 0, 1, 1,
            )  # fmt: skip
            table[at + 1], table[at + 3], table[at + 4], table[at + 5] = 0, thread + 1, ticks, instruction
            clock.clear(group[clock.WAITED] + 4 * group[clock.THREADS] * number, group[clock.THREADS])
            continue
        clock.look(group, number)
        _is_known(state, group, context, number, warp, lane, addresses[lane], instruction)
        if what == words_of.ARRIVE or what == words_of.ARRIVE_EXPECT:
            clock.join(now, clock.row_of(group, thread), size)
            releases = True
        elif what == words_of.ARRIVE_AFTER_COPIES:
            row = array_at(now, size, np.int32)
            column = clock.column(group, clock.agent_of(group, check.COPY, warp), lane)
            row[column] = max(np.int64(row[column]), context[_GROUP] + 1)
    if releases:
        clock.tick(group, warp)


@jit
def mbarriers_after(state: Any, group: Any, context: Any, words: Any) -> None:
    """The same when it was carried out: phases that ended, and waits that did."""
    what, mask, instruction = words[1], words[2], words[8]
    addresses, numbers, results = array_at(words[4], 32, np.int64), array_at(words[5], 32, np.int64), array_at(words[7], 32, np.int64)
    warp = clock.warp_of(context, group)
    if context[_ERROR] != 0:
        return
    for lane in range(32):
        if mask >> lane & 1 == 0:
            continue
        number = mbarrier_at(group, context, addresses[lane])
        if number < 0 or what == words_of.INVALIDATE:
            continue
        clock.look(group, number)
        if (what == words_of.TRY or what == words_of.TEST) and results[lane] == 1:
            _waited(state, group, context, number, 32 * warp + lane, numbers[lane] & 1, addresses[lane], instruction)


@jit
def _waited(
    state: Any, group: Any, context: Any, number: int, thread: int, parity: int, address: int, instruction: int
) -> None:  # fmt: skip
    """A thread saw that a phase has ended."""
    clock.join(clock.row_of(group, thread), clock.mbarrier_row(group, number, 1), clock.row_size(group))
    table = array_at(group[clock.MBARRIER_TABLE], check.MBARRIERS * check.MBARRIER_WORDS, np.int64)
    at = check.MBARRIER_WORDS * number
    ended = table[at + 2]
    waited = array_at(group[clock.WAITED] + 4 * (group[clock.THREADS] * number + thread), 1, np.int32)
    last = np.int64(waited[0])
    if last > 0 and (table[at + 1] ^ (ended - last + 1)) & 1 != parity and ended > last + 1 and state[_ASKED] & check.SYNC:
        clock.find(
            state, check.MISSED_PHASE, check.SHARED, address & clock.PLACE_BITS, context, thread % 32, instruction, 0, 0, -1,
            ended - last - 1,
        )  # fmt: skip
    waited[0] = ended


@jit
def _completes(
    state: Any, group: Any, context: Any, target: int, size: int, barrier: int, thread: int, instruction: int, writes: bool
) -> None:  # fmt: skip
    """What a copy that completes an mbarrier does to shared memory."""
    number = mbarrier_at(group, context, barrier)
    rank = clock.rank_of(context, target)
    if number < 0 or rank < 0 or target >> words_of.TAG_SHIFT != words_of.SHARED_TAG:
        return
    clock.look(group, number)
    _is_known(state, group, context, number, thread // 32, thread % 32, barrier, instruction)
    table = array_at(group[clock.MBARRIER_TABLE], check.MBARRIERS * check.MBARRIER_WORDS, np.int64)
    phase = table[check.MBARRIER_WORDS * number + 2] + 1
    clock.touch(
        state, group, context, rank, target & clock.PLACE_BITS, size, thread, clock.agent_of(group, check.MBARRIER_AGENT, number), phase, 1,
        True, writes, not writes, instruction, 0, 0, 1, 1,
    )  # fmt: skip


@jit
def _in_cta(address: int, rank: int) -> Any:
    return address & ~(0xFF << words_of.WINDOW_SHIFT) | (rank + 1) << words_of.WINDOW_SHIFT


@jit
def bulk_copies(state: Any, group: Any, context: Any, words: Any) -> None:
    """A request of bulk copies (requests.bulk) that was taken."""
    what, mask, instruction = words[1], words[2], words[4]
    if context[_ERROR] != 0 or what == words_of.CLOSE_GROUP:
        return
    groups = array_at(context[_BULK_GROUPS], 32, np.int64)
    warp = clock.warp_of(context, group)
    for lane in range(32):
        if mask >> lane & 1 == 0:
            continue
        thread = 32 * warp + lane
        agent = clock.agent_of(group, check.BULK_GROUP, warp)
        if what == words_of.WAIT_GROUP:
            row = array_at(clock.row_of(group, thread), group[clock.COLUMNS], np.int32)
            column = clock.column(group, agent, lane)
            row[column] = max(np.int64(row[column]), groups[lane] - words[5])
            continue
        target, size, barrier, source = array_at(words[5], 32, np.int64)[lane], np.int64(0), np.int64(0), np.int64(0)
        if what == words_of.ASK_BOX:
            place = map_at(context, target, lane, instruction)
            if place == 0:
                return
            target, size = array_at(words[6], 32, np.int64)[lane], np.int64(box_bytes(place))
            if words[7] == 0:
                source, target = target, np.int64(0)
        elif what == words_of.ASK_BYTES:
            source, size = array_at(words[6], 32, np.int64)[lane], np.int64(array_at(words[8], 32, np.uint32)[lane])
        else:
            size = words[8] * words[9]
        if words[7] != 0:
            barrier = array_at(words[7], 32, np.int64)[lane]
        if what != words_of.ASK_STORE and words[11] != 0:
            for rank in range(16):
                if array_at(words[11], 32, np.int32)[lane] >> rank & 1:
                    _completes(
                        state, group, context, _in_cta(target, rank), size, _in_cta(barrier, rank), thread, instruction, True
                    )  # fmt: skip
            continue
        if barrier != 0:
            _completes(state, group, context, target, size, barrier, thread, instruction, True)
            if source >> words_of.TAG_SHIFT == words_of.SHARED_TAG:
                _completes(state, group, context, source, size, barrier, thread, instruction, False)
        elif source >> words_of.TAG_SHIFT == words_of.SHARED_TAG:
            clock.touch(
                state, group, context, clock.rank_of(context, source), source & clock.PLACE_BITS, size, thread, agent, groups[lane] + 1,
                1 << lane, True, False, True, instruction, 0, 0, 1, 1,
            )  # fmt: skip
