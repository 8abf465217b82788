"""Checks of global memory, compiled by Numba: threads of one cluster by their clocks, clusters by what they release and acquire.

Of each granule the last write is kept and one read. Two clusters are in order where the first released something after its access, by an
atomic or a strong store, and the other acquired something that another cluster had written like that: where those lie is not looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import array_at, jit
from mmabits.emulator.machine import checkrecords as check
from mmabits.emulator.machine import clocks as clock
from mmabits.emulator.machine.checkrecords import CheckState

_S = CheckState._fields
_ASKED, _RANGES, _RANGE_COUNT, _WORDS, _GRANULE, _RELEASED, _ACQUIRED, _MOMENT = (
    _S.index(name)
    for name in ("checks", "ranges", "range_count", "global_words", "global_granule", "released", "acquired", "moment")
)  # fmt: skip


@jit
def touch_global(
    state: Any, group: Any, context: Any, warp: int, lane: int, address: int, size: int, writes: bool, reads: bool, flags: int,
    instruction: int, data: int, unit: int, step: int,
) -> None:  # fmt: skip
    """An access of a lane to global memory."""
    ranges = array_at(state[_RANGES], 3 * state[_RANGE_COUNT], np.int64)
    granule, first = state[_GRANULE], np.int64(-1)
    for number in range(state[_RANGE_COUNT]):
        if ranges[3 * number] <= address and address + size <= ranges[3 * number + 1]:
            first = ranges[3 * number + 2] + address // granule - ranges[3 * number] // granule
    if first < 0:
        return
    state[_MOMENT] += 1
    cluster, thread = group[clock.GROUP_NUMBER], 32 * warp + lane
    now = np.int64(array_at(group[clock.CLOCKS], warp + 1, np.int32)[warp])
    count = (address + size + granule - 1) // granule - address // granule
    strong = flags & check.STRONG != 0
    for number in range(count):
        record = array_at(state[_WORDS] + 4 * check.GLOBAL_WORDS * (first + number), check.GLOBAL_WORDS, np.int32)
        if strong and reads and record[0] != 0 and record[0] != cluster + 1 and record[5] != 0:
            array_at(state[_ACQUIRED], cluster + 1, np.int64)[cluster] = state[_MOMENT]
        start = (address // granule + number) * granule
        low, high = max(address, start) - address, min(address + size, start + granule) - address
        changes = not writes or not clock.same_bytes(address, data, unit, step, low, high)
        if changes:
            kind = check.WRITE_WRITE if writes else check.WRITE_READ
            _conflict(state, group, context, record, 0, kind, start, cluster, thread, lane, instruction, strong)
            if writes:
                _conflict(state, group, context, record, 6, check.READ_WRITE, start, cluster, thread, lane, instruction, strong)
        at = 0 if writes else 6
        if not writes and record[6] != 0 and not _is_before(state, group, record, 6, cluster, thread):
            continue
        record[at], record[at + 1], record[at + 2], record[at + 3] = cluster + 1, thread, now, instruction
        record[at + 4], record[at + 5] = state[_MOMENT], 1 if strong else 0
    if data != 0 and address & (size - 1) == 0:  # what the next lanes write is compared with it; the helper writes it again
        for byte in range(size):
            array_at(address, size, np.uint8)[byte] = array_at(data + byte // unit * step, unit, np.uint8)[byte % unit]
    if strong and writes:
        fenced = array_at(group[clock.FENCED], thread + 1, np.int32)[thread] != 0
        if fenced or flags & check.RELEASES:
            array_at(state[_RELEASED], cluster + 1, np.int64)[cluster] = state[_MOMENT]


@jit
def _is_before(state: Any, group: Any, record: Any, at: int, cluster: int, thread: int) -> bool:
    """Whether an access of a record happened before what a thread does now."""
    other = np.int64(record[at]) - 1
    if other == cluster:
        agent = clock.agent_of(group, check.THREAD, record[at + 1] // 32)
        lost: int = clock.not_before(group, check.PLAIN, thread, agent, np.int64(record[at + 2]), 1 << np.int64(record[at + 1] % 32))
        return lost < 0
    released = array_at(state[_RELEASED], other + 1, np.int64)[other]
    acquired = array_at(state[_ACQUIRED], cluster + 1, np.int64)[cluster]
    return bool(released >= record[at + 4]) and bool(acquired > record[at + 4])


@jit
def _conflict(
    state: Any, group: Any, context: Any, record: Any, at: int, kind: int, address: int, cluster: int, thread: int, lane: int,
    instruction: int, strong: bool,
) -> None:  # fmt: skip
    if record[at] == 0 or (strong and record[at + 5] != 0) or not state[_ASKED] & check.RACES:
        return
    if _is_before(state, group, record, at, cluster, thread):
        return
    agent = clock.agent_of(group, check.THREAD, record[at + 1] // 32)
    other = np.int64(record[at]) << 32
    clock.find(
        state, kind, check.GLOBAL, address, context, lane, instruction, agent, np.int64(record[at + 1] % 32), np.int64(record[at + 3]),
        other,
    )  # fmt: skip
