"""The run of CTAs, compiled by Numba: warps take turns, each until it ends or must wait; barriers, ends, deadlocks.

Warps go in ascending order, CTAs one after another, or, of a cluster and where CTAs wait for each other, in turns as well. A warp gives
up its turn at a barrier, where a wait on an mbarrier fails, where it goes back in a loop that looks at memory which others may change,
and after many steps of any other loop. Where nothing happens any more but waiting, failed waits first may say so (that is the time limit
of mbarrier.try_wait), then CTAs that have not begun are asked for (STUCK), and at last it is a deadlock. Barriers inside a loop that looks
at memory are waiting too, but for longer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import array_at, call_at, jit, shared_word
from mmabits.emulator.machine.cells import begin_tensor, end_tensor
from mmabits.emulator.machine.context import (
    AT_BARRIER,
    BACKWARDS,
    BAD_BARRIER,
    BLOCKED,
    CTA_WORDS,
    DEADLOCK,
    DIVERGED,
    DONE,
    ENDED,
    ERROR,
    FAILED,
    FINE,
    IN_ORDER,
    MET,
    PARTED,
    READY,
    STOPPED,
    STUCK,
    TIRED,
    Context,
    Cta,
    Launch,
)
from mmabits.emulator.machine.hasten import chance
from mmabits.emulator.machine.helpers import _fail
from mmabits.emulator.machine.pending import carry_out_of
from mmabits.emulator.machine.warpgrouprecords import HEAD
from mmabits.isa.memories import CTA

_C, _L, _T = Context._fields, Launch._fields, Cta._fields
_WORDS, _LAUNCH_WORDS = len(_C), len(_L)
_SEGMENT, _CTAID_X, _CTAID_Y, _CTAID_Z = (_C.index(name) for name in ("segment", "ctaid_x", "ctaid_y", "ctaid_z"))
_ALIVE, _STATE, _BARRIER, _EXPECTED, _PCS, _QUEUED, _GROUP = (
    _C.index(name) for name in ("alive", "state", "barrier", "expected", "pcs", "queued", "group")
)
_ERROR, _ERROR_INSTRUCTION, _ARRIVES, _HELD, _PARKED, _HURRY, _EVENTS, _BULK_GROUPS, _CLUSTER_PHASE = (
    _C.index(name)
    for name in ("error", "error_instruction", "arrives", "held", "parked", "hurry", "events", "bulk_groups", "cluster_phase")
)
_OWN, _WARPGROUP = _C.index("own"), _C.index("warpgroup")
_COUNTED, _REDUCED, _RETURNS, _CLOCK = (_C.index(name) for name in ("counted", "reduced", "returns", "clock"))
_REGISTERS, _LOCAL, _LOCAL_SIZE = (_C.index(name) for name in ("registers", "local", "local_size"))
_UNIFORM, _PARTED, _WARPS, _THREADS, _NEXT, _LAST, _GRID_X, _GRID_Y = (
    _L.index(name) for name in ("uniform", "diverged", "warps", "threads", "next", "last", "grid_x", "grid_y")
)
_CLUSTER_X, _CLUSTER_Y = _L.index("cluster_x"), _L.index("cluster_y")
_CTAS, _ROOM, _CLUSTER_SIZE, _SHARED_SIZE, _CLEARED, _GROWS, _STOP, _IDLE, _RESULT, _FAILED, _FAILED_CTA = (
    _L.index(name)
    for name in ("ctas", "room", "cluster", "shared_size", "cleared", "grows", "stop", "idle", "result", "failed", "failed_cta")
)  # fmt: skip
_ORDER, _CLUSTERS, _MULTIPLIER, _OFFSET = (_L.index(name) for name in ("order", "clusters", "multiplier", "offset"))
_NUMBER, _CONTEXTS, _SHARED, _BARRIERS, _CLUSTER, _RANK, _ARRIVED, _PHASE, _CIRCLES = range(len(_T))
_BARRIER_COUNT = CTA.barriers
_HURRY_AFTER = 2
"""Rounds without an event after which waits that fail say so,"""
_GROW_AFTER = 8
"""after which CTAs begin that have not begun,"""
_PATIENCE = 1 << 14
"""and after which it is a deadlock."""
_CIRCLE = 64
"""Barriers and branches of a warp that may belong to one round of a loop that looks at memory: a CTA that went back in such a loop and
has done no more than that moves, but does not come on. Triton hands what one thread saw to the others by barriers."""
_GROW_AFTER_CIRCLES = 256
"""Rounds in which no CTA came on, after which others begin,"""
_CIRCLES_PATIENCE = 1 << 20
"""and, times the CTAs that run, after which it is a deadlock."""
_STILL, _MOVED, _CAME_ON = range(3)
"""What a turn was good for."""


@jit
def _live_threads(launch: Any, cta: Any) -> int:
    count = 0
    for warp in range(launch[_WARPS]):
        alive = array_at(cta[_CONTEXTS] + 8 * _WORDS * warp, _WORDS, np.int64)[_ALIVE]
        for lane in range(32):
            count += alive >> lane & 1
    return count


@jit
def live_threads_of_cluster(launch: Any, first: int) -> int:
    """Threads that have not ended, of a cluster."""
    count = 0
    for rank in range(launch[_CLUSTER_SIZE]):
        count += _live_threads(launch, array_at(first + 8 * CTA_WORDS * rank, CTA_WORDS, np.int64))
    return count


@jit
def _begin(launch: Any, cta: Any, number: int, cluster: int, rank: int) -> None:
    """A CTA's contexts, barriers, registers and memory as they are at its start."""
    shared = array_at(cta[_SHARED], launch[_SHARED_SIZE] // 8, np.int64)
    for word in range(launch[_SHARED_SIZE] // 8):
        shared[word] = 0
    barriers = array_at(cta[_BARRIERS], 3 * _BARRIER_COUNT, np.int64)
    for word in range(3 * _BARRIER_COUNT):
        barriers[word] = 0
    begin_tensor(array_at(cta[_CONTEXTS], _WORDS, np.int64))
    cta[_CLUSTER], cta[_RANK], cta[_ARRIVED], cta[_PHASE], cta[_CIRCLES] = cluster, rank, 0, 0, 0
    wide, high = launch[_CLUSTER_X], launch[_CLUSTER_Y]
    columns, lines = launch[_GRID_X] // wide, launch[_GRID_Y] // high
    group = number // launch[_CLUSTER_SIZE]
    if launch[_CLUSTERS] != 0:
        group = (group * launch[_MULTIPLIER] + launch[_OFFSET]) % launch[_CLUSTERS]
    deep = launch[_CLUSTER_SIZE] // wide // high
    x = group % columns * wide + rank % wide
    y = group // columns % lines * high + rank // wide % high
    z = group // columns // lines * deep + rank // wide // high
    cta[_NUMBER] = (z * launch[_GRID_Y] + y) * launch[_GRID_X] + x
    for warp in range(launch[_WARPS]):
        context = array_at(cta[_CONTEXTS] + 8 * _WORDS * warp, _WORDS, np.int64)
        if context[_WARPGROUP] != 0 and warp % 4 == 0:
            queue = array_at(context[_WARPGROUP], HEAD, np.int64)
            for word in range(HEAD):
                queue[word] = 0
        context[_SEGMENT] = 0
        context[_CTAID_X], context[_CTAID_Y], context[_CTAID_Z] = x, y, z
        lanes = min(32, launch[_THREADS] - 32 * warp)
        context[_ALIVE] = (1 << lanes) - 1
        context[_STATE] = READY
        context[_QUEUED] = 0
        context[_GROUP] = 0
        context[_ARRIVES], context[_HURRY], context[_CLUSTER_PHASE], context[_RETURNS], context[_CLOCK] = 0, 0, 0, 0, 0
        registers = array_at(context[_REGISTERS], launch[_CLEARED] // 8, np.int64)
        for word in range(launch[_CLEARED] // 8):
            registers[word] = 0
        local = array_at(context[_LOCAL], 4 * context[_LOCAL_SIZE], np.int64)
        for word in range(4 * context[_LOCAL_SIZE]):
            local[word] = 0
        groups = array_at(context[_BULK_GROUPS], 32, np.int64)
        for lane in range(32):
            groups[lane] = 0
        if lanes < 32:
            context[_STATE] = DIVERGED
            pcs = array_at(context[_PCS], 32, np.int32)
            for lane in range(32):
                pcs[lane] = 0 if lane < lanes else -1


@jit
def _arrive(cta: Any, context: Any) -> bool:
    """A warp comes to a barrier. False where the barrier is misused."""
    barriers = array_at(cta[_BARRIERS], 3 * _BARRIER_COUNT, np.int64)
    number, expected = context[_BARRIER], context[_EXPECTED]
    if number < 0 or number >= _BARRIER_COUNT or expected % 32 != 0:
        return False
    if barriers[2 * number] > 0 and barriers[2 * number + 1] != expected:
        return False
    barriers[2 * number + 1] = expected
    barriers[2 * number] += 32
    barriers[2 * _BARRIER_COUNT + number] += context[_COUNTED]
    return True


@jit
def _release(launch: Any, cta: Any) -> bool:
    """Let go the warps of every barrier that is complete."""
    barriers = array_at(cta[_BARRIERS], 3 * _BARRIER_COUNT, np.int64)
    found = False
    for number in range(_BARRIER_COUNT):
        come, expected = barriers[2 * number], barriers[2 * number + 1]
        if come == 0:
            continue
        if expected == 0:
            expected = (_live_threads(launch, cta) + 31) // 32 * 32
        if come < expected:
            continue
        counted = barriers[2 * _BARRIER_COUNT + number]
        barriers[2 * number], barriers[2 * _BARRIER_COUNT + number] = 0, 0
        found = True
        for warp in range(launch[_WARPS]):
            context = array_at(cta[_CONTEXTS] + 8 * _WORDS * warp, _WORDS, np.int64)
            if context[_STATE] & 3 == BLOCKED and context[_BARRIER] == number:
                context[_STATE] = context[_STATE] >> 2
                context[_REDUCED] = counted
    return found


@jit
def _places(context: Any) -> Any:
    """Where a warp's lanes stand, as a number."""
    if context[_STATE] == READY:
        return context[_SEGMENT]
    pcs, found = array_at(context[_PCS], 32, np.int32), np.int64(1)
    for lane in range(32):
        found = found * 31 + pcs[lane]
    return found


@jit
def _turn(launch: Any, cta: Any, context: Any, hurries: bool) -> Any:
    """A warp until it ends or waits: _STILL where nothing happened but waiting, _MOVED where it may have gone round a loop that looks at
    memory, else _CAME_ON. An error stands in the launch's record.
    """
    at = context[_OWN]
    context[_HELD], context[_PARKED] = 0, 0
    context[_HURRY] = 1 if hurries else 0
    before, places = context[_EVENTS], _places(context)
    while True:
        diverged = context[_STATE] == DIVERGED
        found = call_at(launch[_PARTED] if diverged else launch[_UNIFORM], at)
        if found == FAILED:
            _fail(context, context[_ERROR], context[_ERROR_INSTRUCTION], 0, 0)
            if launch[_FAILED] == 0:
                launch[_FAILED] = at
        if launch[_FAILED] != 0:
            return _CAME_ON
        if found == PARTED:
            context[_STATE] = DIVERGED
        elif found == MET:
            context[_STATE] = READY
        else:
            break
    if found == ENDED:
        context[_STATE] = DONE
        context[_ALIVE] = 0
        return _came_on(cta)
    if found == AT_BARRIER:
        if not _arrive(cta, context):
            _fail(context, BAD_BARRIER, context[_ERROR_INSTRUCTION], 0, context[_BARRIER])
        elif context[_ARRIVES] == 0:
            context[_STATE] = context[_STATE] << 2 | BLOCKED
    if found == TIRED or context[_EVENTS] != before:
        return _came_on(cta)
    if found != AT_BARRIER:
        cta[_CIRCLES] = _CIRCLE * launch[_WARPS]
        return _STILL if _places(context) == places else _MOVED
    if cta[_CIRCLES] == 0:
        return _CAME_ON
    cta[_CIRCLES] -= 1
    return _MOVED


@jit
def _came_on(cta: Any) -> Any:
    """Of a CTA that did more than to go round."""
    cta[_CIRCLES] = 0
    return _CAME_ON


@jit
def _starts(launch: Any, place: int) -> bool:
    """Begin the next cluster in an empty room."""
    size = launch[_CLUSTER_SIZE]
    if place % size != 0 or launch[_NEXT] >= launch[_LAST]:
        return False
    first = launch[_CTAS] + 8 * CTA_WORDS * place
    for rank in range(size):
        _begin(launch, array_at(launch[_CTAS] + 8 * CTA_WORDS * (place + rank), CTA_WORDS, np.int64), launch[_NEXT] + rank, first, rank)
    launch[_NEXT] += size
    return True


@jit
def _ends(launch: Any, place: int) -> bool:
    """Empty the room of a cluster whose warps have all ended; what its asynchronous work has not written yet is written."""
    size = launch[_CLUSTER_SIZE]
    if place % size != 0:
        return False
    for rank in range(size):
        cta = array_at(launch[_CTAS] + 8 * CTA_WORDS * (place + rank), CTA_WORDS, np.int64)
        for warp in range(launch[_WARPS]):
            if array_at(cta[_CONTEXTS] + 8 * _WORDS * warp, _WORDS, np.int64)[_STATE] != DONE:
                return False
    for rank in range(size):
        cta = array_at(launch[_CTAS] + 8 * CTA_WORDS * (place + rank), CTA_WORDS, np.int64)
        carry_out_of(launch, cta[_CONTEXTS], cta[_CONTEXTS] + 8 * _WORDS * launch[_WARPS])
        end_tensor(array_at(cta[_CONTEXTS], _WORDS, np.int64))
        cta[_NUMBER] = -1
    return True


@jit
def _first_warp(launch: Any) -> Any:
    """Which warp of a CTA has the first turn, and how far on the next one is."""
    warps = launch[_WARPS]
    if launch[_ORDER] == IN_ORDER:
        return np.int64(0), np.int64(1)
    if launch[_ORDER] == BACKWARDS:
        return warps - 1, warps - 1
    first, backwards = chance(launch, warps), chance(launch, 2)
    return first, warps - 1 if backwards else np.int64(1)


@jit
def run(launch: Any) -> None:
    """CTAs next .. last - 1, and those that run already. What it ends with is the record's result."""
    circles = 0
    while True:
        live, moved, waiting, came_on = 0, False, False, False
        hurries = launch[_IDLE] >= _HURRY_AFTER
        for place in range(launch[_ROOM]):
            cta = array_at(launch[_CTAS] + 8 * CTA_WORDS * place, CTA_WORDS, np.int64)
            if cta[_NUMBER] < 0:
                if not _starts(launch, place):
                    continue
                moved, came_on = True, True
            live += 1
            first, step = _first_warp(launch)
            for turn in range(launch[_WARPS]):
                warp = (first + step * turn) % launch[_WARPS]
                context = array_at(cta[_CONTEXTS] + 8 * _WORDS * warp, _WORDS, np.int64)
                if context[_STATE] == DONE or context[_STATE] & 3 == BLOCKED:
                    continue
                waiting = True
                good = _turn(launch, cta, context, hurries)
                moved = moved or good != _STILL
                came_on = came_on or good == _CAME_ON
                if launch[_FAILED] != 0:
                    launch[_RESULT], launch[_FAILED_CTA] = ERROR, cta[_NUMBER]
                    return
            if _release(launch, cta):
                moved = True
            if _ends(launch, place):
                moved, came_on = True, True
                if launch[_FAILED] != 0:
                    launch[_RESULT], launch[_FAILED_CTA] = ERROR, cta[_NUMBER]
                    return
            if shared_word(launch[_STOP]) != 0:
                launch[_RESULT] = STOPPED
                return
        if live == 0:
            launch[_RESULT] = FINE
            return
        launch[_IDLE] = 0 if moved else launch[_IDLE] + 1
        circles = 0 if came_on else circles + 1
        if (launch[_IDLE] >= _GROW_AFTER or circles >= _GROW_AFTER_CIRCLES) and launch[_GROWS] != 0 and launch[_NEXT] < launch[_LAST]:
            launch[_RESULT] = STUCK
            return
        if (not moved and (not waiting or launch[_IDLE] > _PATIENCE)) or circles * live > _CIRCLES_PATIENCE:
            launch[_RESULT], launch[_FAILED_CTA] = DEADLOCK, _stuck(launch)
            return


@jit
def _stuck(launch: Any) -> Any:
    """The first CTA of which a warp waits."""
    for place in range(launch[_ROOM]):
        cta = array_at(launch[_CTAS] + 8 * CTA_WORDS * place, CTA_WORDS, np.int64)
        if cta[_NUMBER] >= 0:
            return cta[_NUMBER]
    return -1
