"""Vector clocks and shadow memory of checked runs, compiled by Numba.

A row has a clock for every agent: lanes, and what works for them (copies, products), by the kinds of checkrecords.py. An access is
known by its agent, the clock of that and the lanes; it happened before what a thread does now where the thread's row has reached that
clock. Whoever releases (a barrier, an mbarrier, an atomic) leaves its row there; whoever acquires takes the greater of both.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import array_at, jit
from mmabits.emulator.machine.checkrecords import (
    AFTER,
    AGENT_SHIFT,
    ANY_PROXY,
    ARRIVAL_WORDS,
    ATOMIC,
    BEFORE,
    COPY,
    FINDING_WORDS,
    FINDINGS,
    INIT,
    MBARRIER_AGENT,
    MBARRIER_WORDS,
    MBARRIERS,
    NODE_WORDS,
    PLAIN,
    PROXY,
    RACES,
    READ_WRITE,
    RECORD_WORDS,
    SHARED,
    TENSOR,
    TENSOR_CORE,
    TENSOR_LOAD,
    THREAD,
    UNWRITTEN,
    WRITE_READ,
    WRITE_WRITE,
    WROTE,
    CheckGroup,
    CheckState,
)
from mmabits.emulator.machine.context import CTA_WORDS, WINDOW_SHIFT, Context, Cta, Launch
from mmabits.isa.memories import CTA

_C, _L, _T, _S, _G = Context._fields, Launch._fields, Cta._fields, CheckState._fields, CheckGroup._fields
CONTEXT_WORDS, LAUNCH_WORDS, STATE_WORDS, GROUP_WORDS = len(_C), len(_L), len(_S), len(_G)
_WARP, _CTA, _LAUNCH = (_C.index(name) for name in ("warp", "cta", "launch"))
_NUMBER, _RANK, _CLUSTER, _CTA_SHARED = (_T.index(name) for name in ("number", "rank", "cluster", "shared"))
_CTAS, _CLUSTER_SIZE = (_L.index(name) for name in ("ctas", "cluster"))
_CHECKS, _GROUPS, _FINDINGS, _FOUND, _MORE, _STRICT = (
    _S.index(name) for name in ("checks", "groups", "findings", "found", "more", "strict_tensor")
)
(
    GROUP_NUMBER, GROUP_CTAS, WARPS, THREADS, COLUMNS, LAYERS, ROWS, BARRIERS, ARRIVALS, CLUSTER_ROW, CLOCKS, BLOCKED, FENCED,
    TENSOR_CLOCKS, BASES, _, _, _, _, _, _, _, MBARRIER_TABLE, MBARRIER_COUNT, MBARRIER_ROWS, WAITED, SHADOW, HEADS, GRANULES, PLACES,
    GRANULE, NODES, NODE_COUNT, NEXT_NODE, FREE_NODE, LOCAL_SHADOW, LOCAL_SIZE, DEFINED, DEFINED_COUNT, TENSOR_KNOWN,
) = range(GROUP_WORDS)  # fmt: skip
_AGENT_MASK = ATOMIC - 1
_BARRIER_COUNT = CTA.barriers
PLACE_BITS = (1 << WINDOW_SHIFT) - 1
"""Of an address of shared memory: the place in its CTA."""


# -------------------------------------------------------------------------------------------------------------------- places


@jit
def warp_of(context: Any, group: Any) -> Any:
    """A warp's number in its cluster."""
    return array_at(context[_CTA], CTA_WORDS, np.int64)[_RANK] * group[WARPS] + context[_WARP]


@jit
def rank_of(context: Any, address: int) -> Any:
    """The CTA of the cluster that has an address of shared memory; -1 of none."""
    window = address >> WINDOW_SHIFT & 0xFF
    if window == 0:
        return array_at(context[_CTA], CTA_WORDS, np.int64)[_RANK]
    launch = array_at(context[_LAUNCH], LAUNCH_WORDS, np.int64)
    return window - 1 if window <= launch[_CLUSTER_SIZE] else np.int64(-1)


@jit
def shared_of(context: Any, rank: int) -> Any:
    """The address in this process of the shared memory of a CTA of the cluster."""
    first = array_at(context[_CTA], CTA_WORDS, np.int64)[_CLUSTER]
    return array_at(first + 8 * CTA_WORDS * rank, CTA_WORDS, np.int64)[_CTA_SHARED]


# ------------------------------------------------------------------------------------------------------------------ findings


@jit
def find(
    state: Any, kind: int, space: int, address: int, context: Any, lane: int, instruction: int, agent: int, before_lane: int, before: int,
    other: int,
) -> None:  # fmt: skip
    """Write down a finding, or that it came again: one of the same kind at the same two instructions."""
    findings = array_at(state[_FINDINGS], FINDINGS * FINDING_WORDS, np.int64)
    for number in range(state[_FOUND]):
        at = FINDING_WORDS * number
        if findings[at] == kind and findings[at + 6] == instruction and findings[at + 9] == before and findings[at + 1] == space:
            findings[at + 11] += 1
            return
    if state[_FOUND] == FINDINGS:
        state[_MORE] += 1
        return
    at = FINDING_WORDS * state[_FOUND]
    state[_FOUND] += 1
    cta = array_at(context[_CTA], CTA_WORDS, np.int64)
    findings[at], findings[at + 1], findings[at + 2], findings[at + 3] = kind, space, address, cta[_NUMBER]
    findings[at + 4], findings[at + 5], findings[at + 6] = context[_WARP], lane, instruction
    findings[at + 7], findings[at + 8], findings[at + 9], findings[at + 10] = agent, before_lane, before, other
    findings[at + 11] = 1


# -------------------------------------------------------------------------------------------------------------------- clocks


@jit
def row_of(group: Any, thread: int) -> Any:
    """The address of a thread's row."""
    return group[ROWS] + 4 * group[LAYERS] * group[COLUMNS] * thread


@jit
def join(target: int, source: int, count: int) -> None:
    """Take the greater of two rows."""
    to, of = array_at(target, count, np.int32), array_at(source, count, np.int32)
    for place in range(count):
        to[place] = max(to[place], of[place])


@jit
def clear(target: int, count: int) -> None:
    """Zeros, of 32 bits."""
    to = array_at(target, count, np.int32)
    for place in range(count):
        to[place] = 0


@jit
def row_size(group: Any) -> Any:
    """Clocks of a row."""
    return group[LAYERS] * group[COLUMNS]


@jit
def tick(group: Any, warp: int) -> None:
    """What a warp does from here on was not released."""
    clocks = array_at(group[CLOCKS], warp + 1, np.int32)
    clocks[warp] += 1
    for lane in range(32):
        thread = 32 * warp + lane
        array_at(row_of(group, thread), group[COLUMNS], np.int32)[thread] = clocks[warp]


@jit
def tensor_known(group: Any, warp: int, layer: int) -> Any:
    """The address of what a warp's lanes knew of threads, in a layer, when they last asked tcgen05 for something."""
    return group[TENSOR_KNOWN] + 4 * group[THREADS] * (group[LAYERS] * warp + layer)


@jit
def agent_of(group: Any, kind: int, number: int) -> Any:
    """An agent: of a warp of the cluster, or an mbarrier."""
    return kind << AGENT_SHIFT | number


@jit
def column(group: Any, agent: int, lane: int) -> Any:
    """Its column."""
    kind, number = (agent & _AGENT_MASK) >> AGENT_SHIFT, agent & (1 << AGENT_SHIFT) - 1
    if kind < TENSOR_LOAD:
        return group[BASES + kind] + 32 * number + lane
    return group[BASES + kind] + number


@jit
def not_before(group: Any, layer: int, thread: int, agent: int, clock: int, lanes: int) -> int:
    """A lane of an access that did not happen before what a thread does now; -1 where all did."""
    row = array_at(row_of(group, thread) + 4 * layer * group[COLUMNS], group[COLUMNS], np.int32)
    first = column(group, agent, 0)
    for lane in range(32):
        if lanes >> lane & 1 and row[first + lane] < clock:
            return lane
        if lanes >> lane <= 1:
            break
    return -1


# -------------------------------------------------------------------------------------------------------------------- shadow


@jit
def _layer(state: Any, group: Any, warp: int, space: int, is_async: bool, before: int, wrote: bool) -> int:
    """Which order is needed between an access and one before it."""
    kind = (before & _AGENT_MASK) >> AGENT_SHIFT
    if space == TENSOR:
        is_own = kind >= TENSOR_LOAD and before & (1 << AGENT_SHIFT) - 1 == warp
        if state[_STRICT] == 0 or is_own:
            return PLAIN
        return AFTER if is_async else BEFORE  # ::after_thread_sync holds back asynchronous instructions alone
    return PROXY if is_async and wrote and kind in (THREAD, COPY) and before & ANY_PROXY == 0 else PLAIN


@jit
def _conflicts(
    state: Any, group: Any, context: Any, space: int, place: int, address: int, thread: int, agent: int, is_async: bool, lane: int,
    instruction: int, record: Any, at: int, kind: int,
) -> None:  # fmt: skip
    """A finding where an access of a record did not happen before this one."""
    before, clock, lanes = np.int64(record[at]), record[at + 1], np.int64(record[at + 2]) & 0xFFFFFFFF
    if before & ATOMIC and agent & ATOMIC:
        return
    if before == agent and agent >> AGENT_SHIFT == TENSOR_CORE:
        return  # in the order in which it was asked for
    layer = _layer(state, group, thread // 32, space, is_async, before, kind != READ_WRITE)
    lost = not_before(group, layer, thread, before, clock, lanes)
    if lost >= 0:
        plain = 1 if layer != PLAIN and not_before(group, PLAIN, thread, before, clock, lanes) < 0 else 0
        other = plain | (2 if is_async else 0) | (agent & _AGENT_MASK) << 8
        find(state, kind, space, address, context, lane, instruction, before, lost, np.int64(record[at + 3]), other)


@jit
def same_bytes(target: int, data: int, unit: int, step: int, first: int, last: int) -> bool:
    """Whether a store writes bytes first .. last - 1 of an access that have that value: those of a lane lie unit by unit."""
    if data == 0:
        return False
    for byte in range(first, last):
        if array_at(target, last, np.uint8)[byte] != array_at(data + byte // unit * step, unit, np.uint8)[byte % unit]:
            return False
    return True


@jit
def touch(
    state: Any, group: Any, context: Any, rank: int, first: int, size: int, thread: int, agent: int, clock: int, bit: int, is_async: bool,
    writes: bool, reads: bool, instruction: int, place: int, data: int, unit: int, step: int,
) -> None:  # fmt: skip
    """An access to `size` bytes of shared memory of a CTA from `first` on.

    It stands in the order of a thread; an agent makes it, at a clock and in lanes (`bit`), through the async proxy or not. `place` is the
    address in this process, and `data` what is written and how it lies (`unit`, `step`), so that writes are seen that change nothing.
    """
    granule = group[GRANULE]
    last = min((first + size + granule - 1) // granule, group[GRANULES])
    for number in range(first // granule, last):
        start = number * granule
        low, high = max(first, start) - first, min(first + size, start + granule) - first
        changes = not writes or not same_bytes(place, data, unit, step, low, high)
        touch_place(
            state, group, context, rank, number, SHARED, start, thread, agent, clock, bit, is_async, writes, reads, instruction, changes
        )
    if data != 0 and place & (size - 1) == 0:  # what the next lanes write is compared with it; the helper writes it again
        for byte in range(size):
            array_at(place, size, np.uint8)[byte] = array_at(data + byte // unit * step, unit, np.uint8)[byte % unit]


@jit
def touch_place(
    state: Any, group: Any, context: Any, rank: int, number: int, space: int, address: int, thread: int, agent: int, clock: int, bit: int,
    is_async: bool, writes: bool, reads: bool, instruction: int, changes: bool,
) -> None:  # fmt: skip
    """The same of one granule or cell."""
    at = rank * group[PLACES] + number
    record = array_at(group[SHADOW] + 4 * RECORD_WORDS * at, RECORD_WORDS, np.int32)
    checks, lane = state[_CHECKS], thread % 32
    if record[1] == 0:
        if reads and checks & INIT:
            find(state, UNWRITTEN, space, address, context, lane, instruction, 0, 0, -1, (agent & _AGENT_MASK) << 8)
    elif checks & RACES and changes:
        _conflicts(
            state, group, context, space, number, address, thread, agent, is_async, lane, instruction, record, 0,
            WRITE_WRITE if writes else WRITE_READ,
        )  # fmt: skip
    heads = array_at(group[HEADS] + 4 * at, 1, np.int32)
    atomic = agent & ATOMIC != 0
    if checks & RACES:
        node = heads[0]
        while node != 0:
            words = array_at(group[NODES] + 4 * NODE_WORDS * node, NODE_WORDS, np.int32)
            if changes and (writes or words[1] & WROTE):
                kind = WRITE_READ if not writes else WRITE_WRITE if words[1] & WROTE else READ_WRITE
                _conflicts(state, group, context, space, number, address, thread, agent, is_async, lane, instruction, words, 1, kind)
            node = words[0]
        if not writes or atomic:
            _reads(group, heads, agent | WROTE if writes else agent, clock, bit, instruction, thread)
    if not writes or (atomic and record[1] != 0):
        return
    if not atomic:
        while heads[0] != 0:
            node = heads[0]
            words = array_at(group[NODES] + 4 * NODE_WORDS * node, NODE_WORDS, np.int32)
            heads[0], words[0] = words[0], group[FREE_NODE]
            group[FREE_NODE] = node
    record[0], record[1], record[2], record[3] = agent, clock, np.int32(bit), instruction


@jit
def _reads(group: Any, heads: Any, agent: int, clock: int, bit: int, instruction: int, thread: int) -> None:
    """Note a read: in the node of its agent where that has the same clock or what it has is known to be over, else in a new one."""
    node = heads[0]
    while node != 0:
        words = array_at(group[NODES] + 4 * NODE_WORDS * node, NODE_WORDS, np.int32)
        if words[1] == agent:
            if words[2] == clock and words[4] == instruction:
                words[3] |= np.int32(bit)
                return
            if (words[2] != clock or words[3] == np.int32(bit)) and not_before(
                group, PLAIN, thread, agent, words[2], np.int64(words[3]) & 0xFFFFFFFF
            ) < 0:
                words[2], words[3], words[4] = clock, np.int32(bit), instruction
                return
        node = words[0]
    node = group[FREE_NODE]
    if node != 0:
        group[FREE_NODE] = array_at(group[NODES] + 4 * NODE_WORDS * node, NODE_WORDS, np.int32)[0]
    elif group[NEXT_NODE] < group[NODE_COUNT]:
        node = group[NEXT_NODE]
        group[NEXT_NODE] += 1
    else:
        return  # no room: this read is not looked at
    words = array_at(group[NODES] + 4 * NODE_WORDS * node, NODE_WORDS, np.int32)
    words[0], words[1], words[2], words[3], words[4] = heads[0], agent, clock, np.int32(bit), instruction
    heads[0] = node


# ------------------------------------------------------------------------------------------------------------------- barriers


@jit
def arrive(group: Any, warp: int, row: int) -> None:
    """A warp leaves the rows of its lanes at a barrier."""
    size = row_size(group)
    for lane in range(32):
        join(row, row_of(group, 32 * warp + lane), size)


@jit
def complete(group: Any, rank: int, number: int) -> None:
    """A barrier lets its warps go."""
    size, place = row_size(group), rank * _BARRIER_COUNT + number
    row = group[BARRIERS] + 4 * size * place
    arrivals = array_at(group[ARRIVALS] + 8 * ARRIVAL_WORDS * place, ARRIVAL_WORDS, np.int64)
    blocked = array_at(group[BLOCKED], group[GROUP_CTAS] * group[WARPS], np.int32)
    for warp in range(group[WARPS]):
        if arrivals[1] >> warp & 1:
            blocked[rank * group[WARPS] + warp] = 0
            for lane in range(32):
                join(row_of(group, 32 * (rank * group[WARPS] + warp) + lane), row, size)
    arrivals[0], arrivals[1] = 0, 0
    clear(row, size)


@jit
def join_lanes(group: Any, warp: int, lanes: int) -> None:
    """Lanes of a warp that met know what each of them knows."""
    size, first = row_size(group), -1
    for lane in range(32):
        if lanes >> lane & 1:
            if first < 0:
                first = lane
            else:
                join(row_of(group, 32 * warp + first), row_of(group, 32 * warp + lane), size)
    for lane in range(first + 1, 32):
        if lanes >> lane & 1:
            join(row_of(group, 32 * warp + lane), row_of(group, 32 * warp + first), size)
    tick(group, warp)


@jit
def fence(group: Any, thread: int, source: int, target: int) -> None:
    """What a layer of a thread's row knows, another knows, too."""
    row = row_of(group, thread)
    join(row + 4 * target * group[COLUMNS], row + 4 * source * group[COLUMNS], group[COLUMNS])


@jit
def mbarrier_number(group: Any, place: int) -> Any:
    """The number of the mbarrier at an address; a new one where there is none yet."""
    table = array_at(group[MBARRIER_TABLE], MBARRIERS * MBARRIER_WORDS, np.int64)
    for number in range(group[MBARRIER_COUNT]):
        if table[MBARRIER_WORDS * number] == place:
            return number
    number = min(group[MBARRIER_COUNT], MBARRIERS - 1)
    group[MBARRIER_COUNT] = number + 1
    at = MBARRIER_WORDS * number
    table[at], table[at + 1], table[at + 2], table[at + 3], table[at + 4], table[at + 5] = place, 0, 0, 0, 0, -1
    return number


@jit
def mbarrier_row(group: Any, number: int, ended: int) -> Any:
    """The address of what arrived at an mbarrier in its phase (0), or in those that ended (1)."""
    return group[MBARRIER_ROWS] + 4 * row_size(group) * (2 * number + ended)


@jit
def look(group: Any, number: int) -> None:
    """See whether the phase of an mbarrier has ended."""
    table = array_at(group[MBARRIER_TABLE], MBARRIERS * MBARRIER_WORDS, np.int64)
    at = MBARRIER_WORDS * number
    parity = array_at(table[at], 1, np.int64)[0] & 1
    if parity == table[at + 1]:
        return
    size = row_size(group)
    now, ended = mbarrier_row(group, number, 0), mbarrier_row(group, number, 1)
    join(ended, now, size)
    clear(now, size)
    table[at + 1] = parity
    table[at + 2] += 1
    column_of = group[BASES + MBARRIER_AGENT] + number
    for layer in range(group[LAYERS]):
        array_at(ended + 4 * layer * group[COLUMNS], group[COLUMNS], np.int32)[column_of] = table[at + 2]


# -------------------------------------------------------------------------------------------------------------------- begin


@jit
def group_of(state: Any, context: Any) -> Any:
    """The address of the CheckGroup of a warp's cluster; it is cleared where another cluster runs there now."""
    launch = array_at(context[_LAUNCH], LAUNCH_WORDS, np.int64)
    cta = array_at(context[_CTA], CTA_WORDS, np.int64)
    slot = (cta[_CLUSTER] - launch[_CTAS]) // (8 * CTA_WORDS) // launch[_CLUSTER_SIZE]
    address = state[_GROUPS] + 8 * GROUP_WORDS * slot
    group = array_at(address, GROUP_WORDS, np.int64)
    number = array_at(cta[_CLUSTER], CTA_WORDS, np.int64)[_NUMBER]
    if group[GROUP_NUMBER] != number:
        _begin(group)
        group[GROUP_NUMBER] = number
    return address


@jit
def _begin(group: Any) -> None:
    size, ctas, warps = row_size(group), group[GROUP_CTAS], group[GROUP_CTAS] * group[WARPS]
    clear(group[ROWS], size * group[THREADS])
    clear(group[BARRIERS], size * ctas * _BARRIER_COUNT)
    clear(group[ARRIVALS], 2 * (ARRIVAL_WORDS * ctas * _BARRIER_COUNT + 1))
    clear(group[CLUSTER_ROW], 2 * size)
    clear(group[CLOCKS], 3 * warps)
    clear(group[BLOCKED], warps)
    clear(group[FENCED], group[THREADS])
    clear(group[TENSOR_CLOCKS], group[THREADS])
    clear(group[MBARRIER_ROWS], 2 * size * group[MBARRIER_COUNT])
    clear(group[WAITED], group[THREADS] * group[MBARRIER_COUNT])
    clear(group[SHADOW], RECORD_WORDS * ctas * group[PLACES])
    clear(group[HEADS], ctas * group[PLACES])
    clear(group[LOCAL_SHADOW], group[THREADS] * group[LOCAL_SIZE] // 4)
    clear(group[DEFINED], warps * group[DEFINED_COUNT])
    if group[TENSOR_KNOWN] != 0:
        clear(group[TENSOR_KNOWN], warps * group[LAYERS] * group[THREADS])
    group[MBARRIER_COUNT], group[NEXT_NODE], group[FREE_NODE] = 0, 1, 0
    for warp in range(warps):
        tick(group, warp)
