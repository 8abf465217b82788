"""The helper of checked runs, compiled by Numba: it looks at the record of an operation, and has the plain helper carry it out.

Nothing is looked at when asynchronous work is carried out: its accesses stand where the kernel asked for them, by an agent of their own
whose clock a wait makes known. So what is found does not hang on when the machine does the work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import address_of, array_at, call_at, jit
from mmabits.emulator.machine import checkrecords as check
from mmabits.emulator.machine import clocks as clock
from mmabits.emulator.machine import context as words_of
from mmabits.emulator.machine.checkcopies import bulk_copies, mbarriers_after, mbarriers_before
from mmabits.emulator.machine.checkglobal import touch_global
from mmabits.emulator.machine.checkproducts import tensor_after, tensor_before, warpgroup_after, warpgroup_before, warpgroup_in_flight
from mmabits.emulator.machine.checkrecords import CheckState
from mmabits.emulator.machine.context import CTA_WORDS, Context, Cta, Launch
from mmabits.emulator.machine.tensorrecords import TENSOR
from mmabits.emulator.machine.warpgrouprecords import WGMMA_OPERATION

_C, _S = Context._fields, CheckState._fields
_WARP, _CTA, _CHECKS, _SHARED_SIZE, _GROUP, _LAUNCH = (
    _C.index(name) for name in ("warp", "cta", "checks", "shared_size", "group", "launch")
)
_RANK, _CLUSTER, _PHASE = (Cta._fields.index(name) for name in ("rank", "cluster", "phase"))
_LAUNCH_THREADS = Launch._fields.index("threads")
_HELPER, _ASKED, _RUNNING, _MEETS, _FLAGS, _GLOBAL = (
    _S.index(name) for name in ("helper", "checks", "running", "meets", "flags", "global_words")
)
_STATE_CONTEXT, _SCRATCH = _S.index("context"), _S.index("scratch")


@jit
def _flags_of(state: Any, instruction: int) -> Any:
    return np.int64(array_at(state[_FLAGS], instruction + 1, np.int32)[instruction])


@jit
def _meeting(state: Any, group: Any, context: Any, thread: int, place: int, flags: int, writes: bool, reads: bool) -> None:
    """What is released and acquired by an atomic or strong access to shared memory."""
    number = clock.mbarrier_number(group, place)
    row, own, size = clock.mbarrier_row(group, number, 0), clock.row_of(group, thread), clock.row_size(group)
    fenced = array_at(group[clock.FENCED], thread + 1, np.int32)[thread] != 0
    if reads:
        clock.join(own, row, size)
    if writes and (fenced or flags & check.RELEASES):
        clock.join(row, own, size)
        clock.tick(group, thread // 32)


@jit
def _move(state: Any, group: Any, context: Any, words: Any) -> None:
    """Loads and stores of lanes."""
    mask, size, unit, register, store, instruction = words[1], words[5], words[6], words[7], words[8] != 0, words[9]
    addresses = array_at(words[3], 32, np.int64)
    flags = _flags_of(state, instruction)
    for lane in range(32):
        if mask >> lane & 1:
            data = words[4] + lane * register if store else np.int64(0)
            _lane(state, group, context, lane, addresses[lane], size, store, not store, flags, instruction, data, unit, 32 * register)


@jit
def _atomic(state: Any, group: Any, context: Any, words: Any) -> None:
    mask, instruction = words[1], words[10]
    addresses = array_at(words[3], 32, np.int64)
    flags = _flags_of(state, instruction) | check.STRONG
    for lane in range(32):
        if mask >> lane & 1:
            _lane(state, group, context, lane, addresses[lane], words[7] // 8, True, True, flags, instruction, np.int64(0), 1, 1)


@jit
def _lane(
    state: Any, group: Any, context: Any, lane: int, address: int, size: int, writes: bool, reads: bool, flags: int, instruction: int,
    data: int, unit: int, step: int,
) -> None:  # fmt: skip
    """An access of a lane, in whichever space."""
    tag = address >> words_of.TAG_SHIFT
    warp = clock.warp_of(context, group)
    if tag == words_of.SHARED_TAG:
        place, rank = address & clock.PLACE_BITS, clock.rank_of(context, address)
        if rank < 0 or place + size > context[_SHARED_SIZE]:
            return
        agent = clock.agent_of(group, check.THREAD, warp)
        strong = flags & check.STRONG != 0
        now = np.int64(array_at(group[clock.CLOCKS], warp + 1, np.int32)[warp])
        where = clock.shared_of(context, rank) + place
        if strong:
            agent |= check.ATOMIC
            if not (writes and not reads):
                _meeting(state, group, context, 32 * warp + lane, where, flags, False, True)
        clock.touch(
            state, group, context, rank, place, size, 32 * warp + lane, agent, now, 1 << lane, False, writes, reads, instruction, where,
            data, unit, step,
        )  # fmt: skip
        if strong and writes:
            _meeting(state, group, context, 32 * warp + lane, where, flags, True, False)
    elif tag == words_of.LOCAL_TAG:
        _local(state, group, context, warp, lane, address & ((1 << words_of.TAG_SHIFT) - 1), size, writes, instruction)
    elif tag == 0 and state[_GLOBAL] != 0:
        touch_global(state, group, context, warp, lane, address, size, writes, reads, flags, instruction, data, unit, step)


@jit
def _local(state: Any, group: Any, context: Any, warp: int, lane: int, place: int, size: int, writes: bool, instruction: int) -> None:
    whole = group[clock.LOCAL_SIZE]
    if place + size > whole:
        return
    written = array_at(group[clock.LOCAL_SHADOW] + whole * (32 * warp + lane), whole, np.uint8)
    for byte in range(place, place + size):
        if writes:
            written[byte] = 1
        elif written[byte] == 0 and state[_ASKED] & check.INIT:
            clock.find(state, check.UNWRITTEN, check.LOCAL, byte, context, lane, instruction, 0, 0, -1, 0)
            return


@jit
def _matrix(state: Any, group: Any, context: Any, words: Any) -> None:
    """Ldmatrix and stmatrix: rows of 16 bytes, which stmatrix takes from four lanes (helpers._matrix)."""
    store, transposed, instruction = words[1] != 0, words[6] != 0, words[7]
    addresses, row_of = array_at(words[3], 32, np.int64), array_at(state[_SCRATCH], 8, np.uint16)
    data = array_at(words[4], 64 * words[5], np.uint16)
    for lane in range(8 * words[5]):
        matrix, row = lane // 8, lane % 8
        if store:
            for column in range(8):
                if transposed:
                    row_of[column] = data[2 * (32 * matrix + 4 * column + row // 2) + (row & 1)]
                else:
                    row_of[column] = data[2 * (32 * matrix + 4 * row + column // 2) + (column & 1)]
        written = state[_SCRATCH] if store else np.int64(0)
        _lane(state, group, context, lane, addresses[lane], 16, store, not store, 0, instruction, written, 16, 16)


@jit
def _copies(state: Any, group: Any, context: Any, words: Any) -> None:
    """cp.async: a copy writes by an agent of its lane, whose clock is one more than the groups that the warp has closed."""
    what, warp = words[1], clock.warp_of(context, group)
    agent = clock.agent_of(group, check.COPY, warp)
    if what == 0:
        targets, sources, taken = array_at(words[4], 32, np.int64), array_at(words[5], 32, np.int64), array_at(words[7], 32, np.int32)
        for lane in range(32):
            if words[2] >> lane & 1 == 0:
                continue
            place, rank = targets[lane] & clock.PLACE_BITS, clock.rank_of(context, targets[lane])
            if rank >= 0 and place + words[6] <= context[_SHARED_SIZE]:
                clock.touch(
                    state, group, context, rank, place, words[6], 32 * warp + lane, agent, context[_GROUP] + 1, 1 << lane, False, True,
                    False, words[8], 0, 0, 1, 1,
                )  # fmt: skip
            if taken[lane] > 0 and sources[lane] >> words_of.TAG_SHIFT == 0 and state[_GLOBAL] != 0:
                touch_global(
                    state, group, context, warp, lane, sources[lane], np.int64(taken[lane]), False, True, 0, words[8], np.int64(0), 1, 1
                )
    elif what == 2:
        done = context[_GROUP] - words[9]
        for lane in range(32):
            row = array_at(clock.row_of(group, 32 * warp + lane), group[clock.COLUMNS], np.int32)
            at = clock.column(group, agent, lane)
            row[at] = max(np.int64(row[at]), done)


@jit
def _cluster_arrives(group: Any, context: Any, words: Any) -> None:
    warp, size = clock.warp_of(context, group), clock.row_size(group)
    for lane in range(32):
        if words[3] >> lane & 1:
            clock.join(group[clock.CLUSTER_ROW], clock.row_of(group, 32 * warp + lane), size)
    clock.tick(group, warp)


@jit
def _cluster_leaves(group: Any, context: Any) -> None:
    """A warp that the barrier of the cluster let go; the first takes what arrived over to where all find it."""
    cta = array_at(context[_CTA], CTA_WORDS, np.int64)
    phase = array_at(cta[_CLUSTER], CTA_WORDS, np.int64)[_PHASE]
    count = check.ARRIVAL_WORDS * group[clock.GROUP_CTAS] * 16
    seen = array_at(group[clock.ARRIVALS] + 8 * count, 1, np.int64)
    warp, size = clock.warp_of(context, group), clock.row_size(group)
    left = group[clock.CLUSTER_ROW] + 4 * size
    if seen[0] != phase:
        seen[0] = phase
        clock.join(left, group[clock.CLUSTER_ROW], size)
        clock.clear(group[clock.CLUSTER_ROW], size)
    for lane in range(32):
        clock.join(clock.row_of(group, 32 * warp + lane), left, size)


@jit
def _at_barrier(state: Any, group: Any, context: Any, words: Any) -> None:
    """bar: what, context, lanes, instruction, number, threads that are expected, whether it only arrives."""
    number, expected, instruction = words[5], words[6], words[4]
    if number < 0 or number >= 16:
        return
    cta = array_at(context[_CTA], CTA_WORDS, np.int64)
    warp, rank, size = clock.warp_of(context, group), cta[_RANK], clock.row_size(group)
    threads = array_at(context[_LAUNCH], clock.LAUNCH_WORDS, np.int64)[_LAUNCH_THREADS]
    whole = (1 << min(32, threads - 32 * context[_WARP])) - 1
    if words[3] & whole != whole and expected == 0 and state[_ASKED] & check.SYNC:
        clock.find(state, check.PART_OF_BLOCK, check.NO_SPACE, number, context, 0, instruction, 0, 0, -1, whole & ~words[3])
    place = rank * 16 + number
    arrivals = array_at(group[clock.ARRIVALS] + 8 * check.ARRIVAL_WORDS * place, check.ARRIVAL_WORDS, np.int64)
    if arrivals[0] == 0:
        arrivals[2], arrivals[3] = instruction, expected
    clock.arrive(group, warp, group[clock.BARRIERS] + 4 * size * place)
    clock.tick(group, warp)
    arrivals[0] += 32
    if words[7] == 0:
        arrivals[1] |= 1 << context[_WARP]
        array_at(group[clock.BLOCKED], warp + 1, np.int32)[warp] = number + 1
    if expected != 0 and arrivals[0] >= expected:
        clock.complete(group, rank, number)


@jit
def _let_go(state: Any, group: Any, context: Any) -> None:
    """A warp that waited at a barrier and runs: the barrier was complete."""
    warp = clock.warp_of(context, group)
    number = np.int64(array_at(group[clock.BLOCKED], warp + 1, np.int32)[warp]) - 1
    if number < 0:
        return
    rank = array_at(context[_CTA], CTA_WORDS, np.int64)[_RANK]
    place = rank * 16 + number
    arrivals = array_at(group[clock.ARRIVALS] + 8 * check.ARRIVAL_WORDS * place, check.ARRIVAL_WORDS, np.int64)
    if arrivals[3] == 0 and arrivals[0] < 32 * group[clock.WARPS] and state[_ASKED] & check.SYNC:
        missing = group[clock.WARPS] - arrivals[0] // 32
        clock.find(state, check.PART_OF_BLOCK, check.NO_SPACE, number, context, 0, arrivals[2], 0, 0, -1, missing << 32)
    clock.complete(group, rank, number)


@jit
def _met(state: Any, context: Any, words: Any) -> None:
    """Lanes that do something together: those that each of them names must be there, and each must name itself."""
    running, instruction = words[3], words[4]
    state[_STATE_CONTEXT], state[_RUNNING], state[_MEETS] = words[2], running, instruction
    if words[5] == 0 or not state[_ASKED] & check.SYNC:
        return
    named = array_at(words[5], 32, np.uint32)
    for lane in range(32):
        if running >> lane & 1 == 0:
            continue
        mask = np.int64(named[lane])
        if mask & ~running:
            clock.find(state, check.ABSENT_LANES, check.NO_SPACE, mask, context, lane, instruction, 0, 0, -1, mask & ~running)
            return
        if mask >> lane & 1 == 0:
            clock.find(state, check.NOT_NAMED, check.NO_SPACE, mask, context, lane, instruction, 0, 0, -1, 0)
            return


@jit
def _shuffled(state: Any, words: Any) -> None:
    """shfl: the lanes that are read must run. Words: mode, mask, values, lanes, clamps, results, whether in range, context."""
    if words[8] != state[_STATE_CONTEXT] or not state[_ASKED] & check.SYNC:
        return
    context = array_at(words[8], clock.CONTEXT_WORDS, np.int64)
    wanted, clamps, inside = array_at(words[4], 32, np.uint32), array_at(words[5], 32, np.uint32), array_at(words[7], 32, np.uint32)
    running = state[_RUNNING]
    for lane in range(32):
        if running >> lane & 1 == 0 or inside[lane] == 0:
            continue
        by, segment = np.int64(wanted[lane] & 31), np.int64(clamps[lane]) >> 8 & 31
        other = np.int64(lane)
        if words[1] == 0:
            other -= by
        elif words[1] == 1:
            other += by
        elif words[1] == 2:
            other ^= by
        else:
            other = (lane & segment) | by & ~segment & 31
        if running >> other & 1 == 0:
            clock.find(state, check.ABSENT_SOURCE, check.NO_SPACE, other, context, lane, state[_MEETS], 0, 0, -1, running)
            return


@jit
def _told(state: Any, group: Any, context: Any, words: Any) -> None:
    """What a warp tells of itself: what, context, lanes, instruction, and more."""
    what, lanes, warp = words[1], words[3], clock.warp_of(context, group)
    if what == check.AT_BARRIER:
        _at_barrier(state, group, context, words)
    elif what == check.WARP_BARRIER:
        named, left = array_at(words[5], 32, np.uint32), lanes
        for lane in range(32):
            if left >> lane & 1:  # with those that came with the same mask
                together = np.int64(0)
                for other in range(lane, 32):
                    if left >> other & 1 and named[other] == named[lane]:
                        together |= 1 << other
                clock.join_lanes(group, warp, together & (np.int64(named[lane]) | 1 << lane))
                left &= ~together
    elif what == check.MEETS:
        _met(state, context, words)
    elif what == check.READS:
        lane = 0
        while lanes >> lane & 1 == 0:
            lane += 1
        clock.find(state, check.UNWRITTEN_REGISTER, check.REGISTERS, words[5], context, lane, words[4], 0, 0, -1, lanes)
    elif what == check.IN_FLIGHT:
        warpgroup_in_flight(state, context, words[4])
    elif what == check.WAIT_LOADS or what == check.WAIT_STORES:
        kind = check.TENSOR_LOAD if what == check.WAIT_LOADS else check.TENSOR_STORE
        count = group[clock.GROUP_CTAS] * group[clock.WARPS]
        waits = array_at(group[clock.CLOCKS], 3 * count, np.int32)
        at = count * (1 if what == check.WAIT_LOADS else 2) + warp
        waits[at] += 1
        column = clock.column(group, clock.agent_of(group, kind, warp), 0)
        for lane in range(32):
            array_at(clock.row_of(group, 32 * warp + lane), group[clock.COLUMNS], np.int32)[column] = waits[at]
    elif what in (check.PROXY_FENCE, check.FENCE, check.TENSOR_BEFORE, check.TENSOR_AFTER):
        for lane in range(32):
            if lanes >> lane & 1 == 0:
                continue
            thread = 32 * warp + lane
            if what == check.PROXY_FENCE:
                clock.fence(group, thread, check.PLAIN, check.PROXY)
            elif what == check.TENSOR_BEFORE:
                clock.fence(group, thread, check.PLAIN, check.BEFORE)
            elif what == check.TENSOR_AFTER:
                clock.fence(group, thread, check.BEFORE, check.AFTER)
            else:
                array_at(group[clock.FENCED], thread + 1, np.int32)[thread] = 1
        clock.tick(group, warp)


@jit
def _context_of(words: Any) -> Any:
    """The address of the context of the warp whose operation a record is."""
    operation = words[0]
    if operation == words_of.MOVE or operation == words_of.MATRIX or operation == words_of.ATOMIC:
        return words[2]
    if operation == words_of.ASYNC or operation == words_of.MBARRIER or operation == words_of.BULK or operation == words_of.MAP_FIELD:
        return words[3]
    if operation == words_of.PRODUCT:
        return words[20]
    return words[8] if operation == words_of.SHUFFLE else words[2]


def checked_helper(pointer: Any) -> int:
    """Look at the operation of a record, and have it carried out."""
    address = address_of(pointer)
    words = array_at(address, 64, np.int64)
    context = array_at(_context_of(words), clock.CONTEXT_WORDS, np.int64)
    state = array_at(context[_CHECKS], clock.STATE_WORDS, np.int64)
    group = array_at(clock.group_of(state, context), clock.GROUP_WORDS, np.int64)
    operation = words[0]
    _let_go(state, group, context)
    if operation == check.CHECK:
        _told(state, group, context, words)
        return 0
    if operation == words_of.MOVE:
        _move(state, group, context, words)
    elif operation == words_of.ATOMIC:
        _atomic(state, group, context, words)
    elif operation == words_of.MATRIX:
        _matrix(state, group, context, words)
    elif operation == words_of.ASYNC:
        _copies(state, group, context, words)
    elif operation == words_of.MBARRIER:
        mbarriers_before(state, group, context, words)
    elif operation == words_of.CLUSTER_BARRIER and words[1] == 0:
        _cluster_arrives(group, context, words)
    elif operation == TENSOR:
        tensor_before(state, group, context, words)
    elif operation == WGMMA_OPERATION:
        warpgroup_before(state, group, context, words)
    call_at(state[_HELPER], address)
    if operation == words_of.MBARRIER:
        mbarriers_after(state, group, context, words)
    elif operation == words_of.BULK:
        bulk_copies(state, group, context, words)
    elif operation == words_of.CLUSTER_BARRIER and words[1] != 0 and words[5] == 0:
        _cluster_leaves(group, context)
    elif operation == TENSOR:
        tensor_after(state, group, context, words)
    elif operation == WGMMA_OPERATION:
        warpgroup_after(state, group, context, words)
    elif operation == words_of.SHUFFLE:
        _shuffled(state, words)
    return 0


def entry(_variant: Any) -> Callable[[Any], int]:
    """The same, for machine_code.ENTRIES."""
    return checked_helper
