"""The one function that a warp's code calls, compiled by Numba: it carries out the operation of a record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import address_of, array_at, jit
from mmabits.emulator.machine.cells import tensor
from mmabits.emulator.machine.context import (
    ARRIVE,
    ARRIVE_AFTER_COPIES,
    ARRIVE_EXPECT,
    ASYNC,
    ATOMIC,
    BULK,
    CLUSTER_BARRIER,
    COMPLETE,
    COPIES_ARRIVE,
    EXPECT,
    INIT,
    INVALIDATE,
    MAP_FIELD,
    MATRIX,
    MBARRIER,
    MBARRIER_COUNT,
    MOVE,
    NO_MBARRIER,
    PRODUCT,
    RUN,
    SHUFFLE,
    TEST,
    TRY,
    WORK_WORDS,
    Context,
    Cta,
    Launch,
)
from mmabits.emulator.machine.hasten import hasten
from mmabits.emulator.machine.helpers import _asynchronous, _atomic, _fail, _matrix, _move, _product, _resolved, _shuffle
from mmabits.emulator.machine.pending import OWN, carry_out_for, put_off
from mmabits.emulator.machine.phases import begin, change, is_mbarrier, phase_of
from mmabits.emulator.machine.requests import bulk, in_cta, map_field
from mmabits.emulator.machine.tensorrecords import COMMIT, MULTIPLY, TENSOR, TENSOR_COMMIT
from mmabits.emulator.machine.tensorwork import ask, asked
from mmabits.emulator.machine.turns import live_threads_of_cluster, run
from mmabits.emulator.machine.warpgrouprecords import WGMMA_OPERATION
from mmabits.emulator.machine.warpgroups import warpgroup

_WORDS, _LAUNCH_WORDS, _CTA_WORDS = len(Context._fields), len(Launch._fields), len(Cta._fields)
_LAUNCH, _CTA, _WAITED, _HURRY, _EVENTS, _GROUP, _CLUSTER_PHASE, _ERROR_INSTRUCTION, _ERROR = (
    Context._fields.index(name)
    for name in ("launch", "cta", "waited", "hurry", "events", "group", "cluster_phase", "error_instruction", "error")
)  # fmt: skip
_CLUSTER, _ARRIVED, _PHASE = (Cta._fields.index(name) for name in ("cluster", "arrived", "phase"))


@jit
def _mbarrier(words: Any) -> None:
    """An operation on mbarriers, lanes in ascending order.

    Words: which, mask, context, addresses, numbers (counts, bytes, parities or states), other numbers, results, instruction, flags; the
    last is written: whether the warp must wait. Flags: 1 the number is a state and no parity, 2 the phase must not end, 4 arrivals are
    dropped from later phases, 8 they were not counted before (cp.async.mbarrier.arrive without .noinc).
    """
    what, mask, instruction, flags = words[1], words[2], words[8], words[9]
    context = array_at(words[3], _WORDS, np.int64)
    launch = array_at(context[_LAUNCH], _LAUNCH_WORDS, np.int64)
    addresses, numbers, others = array_at(words[4], 32, np.int64), array_at(words[5], 32, np.int64), array_at(words[6], 32, np.int64)
    results = array_at(words[7], 32, np.int64)
    words[10] = 0
    for lane in range(32):
        results[lane] = 0
        if mask >> lane & 1 == 0:
            continue
        place = _resolved(context, addresses[lane], 8, lane, instruction)
        if place == 0:
            continue
        cell = array_at(place, 1, np.int64)
        word, number, error = cell[0], numbers[lane], 0
        results[lane] = word
        if what == INIT:
            cell[0] = begin(number)
            error = MBARRIER_COUNT if cell[0] == 0 else 0
        elif not is_mbarrier(word):
            error = NO_MBARRIER
        elif what == INVALIDATE:
            cell[0] = 0
        elif what == EXPECT:
            error = change(place, 0, number, 0, True)
        elif what == COMPLETE:
            error = change(place, 0, -number, 0, True)
        elif what == ARRIVE:
            error = change(place, number, 0, number if flags & 4 else 0, flags & 2 == 0)
        elif what == ARRIVE_EXPECT:
            error = change(place, 0, number, 0, True)
            if error == 0:
                error = change(place, others[lane], 0, others[lane] if flags & 4 else 0, True)
        elif what == ARRIVE_AFTER_COPIES:
            if flags & 8:
                error = change(place, -1, 0, 0, True)
            work = array_at(put_off(context, COPIES_ARRIVE, place, lane, 0, instruction), WORK_WORDS, np.int64)
            work[OWN], work[OWN + 1] = context[_GROUP] + 1, 1
        else:
            phase = phase_of(number)
            if phase_of(word) == phase:
                carry_out_for(launch, place)
            ended = phase_of(cell[0]) != phase
            results[lane] = 1 if ended else 0
            if not ended and what == TRY:
                context[_WAITED], words[10] = addresses[lane], 1
        if error != 0:
            _fail(context, error, instruction, lane, addresses[lane])
    if what in (TRY, TEST):
        if words[10] != 0 and context[_HURRY] != 0:
            context[_HURRY], words[10] = 0, 0
        elif words[10] == 0 and what == TRY:
            context[_HURRY] = 0
            context[_EVENTS] += 1
        if context[_ERROR] == 0:
            context[_ERROR_INSTRUCTION] = instruction
    else:
        context[_EVENTS] += 1


@jit
def _cluster_barrier(words: Any) -> None:
    """barrier.cluster: whether it waits (else it arrives), context, lanes, instruction; then written: whether the warp must wait."""
    context = array_at(words[2], _WORDS, np.int64)
    cta = array_at(context[_CTA], _CTA_WORDS, np.int64)
    first = array_at(cta[_CLUSTER], _CTA_WORDS, np.int64)
    if words[1] == 0:
        context[_CLUSTER_PHASE] = first[_PHASE]
        for lane in range(32):
            first[_ARRIVED] += words[3] >> lane & 1
        context[_EVENTS] += 1
        return
    launch = array_at(context[_LAUNCH], _LAUNCH_WORDS, np.int64)
    if first[_PHASE] == context[_CLUSTER_PHASE] and first[_ARRIVED] >= live_threads_of_cluster(launch, cta[_CLUSTER]):
        first[_PHASE] += 1
        first[_ARRIVED] = 0
    words[5] = 1 if first[_PHASE] == context[_CLUSTER_PHASE] else 0
    if context[_ERROR] == 0:
        context[_ERROR_INSTRUCTION] = words[4]
    if words[5] == 0:
        context[_EVENTS] += 1


@jit
def _commit(context: Any, address: int, lane: int, instruction: int) -> None:
    place = _resolved(context, address, 8, lane, instruction)
    if place != 0:
        work = array_at(put_off(context, TENSOR_COMMIT, place, lane, 0, instruction), WORK_WORDS, np.int64)
        work[OWN] = asked(context)


@jit
def _tensor(words: Any) -> None:
    """tcgen05: what, context, instruction, mask of lanes, then what it takes."""
    if words[1] < MULTIPLY:
        tensor(words)
    elif words[1] < COMMIT:
        ask(words)
    else:
        context = array_at(words[2], _WORDS, np.int64)
        addresses = array_at(words[5], 32, np.int64)
        for lane in range(32):
            if words[4] >> lane & 1 == 0:
                continue
            if words[6] == 0:
                _commit(context, addresses[lane], lane, words[3])
                continue
            for rank in range(16):
                if array_at(words[6], 32, np.int64)[lane] >> rank & 1:
                    _commit(context, in_cta(addresses[lane], rank), lane, words[3])
        context[_EVENTS] += 1


def helper(pointer: Any) -> int:
    """Carry out the operation of a record."""
    words = array_at(address_of(pointer), 64, np.int64)
    operation = words[0]
    if operation == MOVE:
        _move(words)
    elif operation == MATRIX:
        _matrix(words)
    elif operation == PRODUCT:
        _product(words)
    elif operation == ASYNC:
        _asynchronous(words)
        hasten(words[3])
    elif operation == SHUFFLE:
        _shuffle(words)
    elif operation == ATOMIC:
        _atomic(words)
    elif operation == MBARRIER:
        _mbarrier(words)
    elif operation == CLUSTER_BARRIER:
        _cluster_barrier(words)
    elif operation == TENSOR:
        _tensor(words)
        hasten(words[2])
    elif operation == BULK:
        bulk(words)
        hasten(words[3])
    elif operation == MAP_FIELD:
        map_field(words)
    elif operation == WGMMA_OPERATION:
        warpgroup(words)
        hasten(words[2])
    elif operation == RUN:
        run(words)
    return 0


def entry(_variant: Any) -> Callable[[Any], int]:
    """What the code of compiled kernels calls, for machine_code.ENTRIES."""
    return helper
