"""Asynchronous work that mbarriers and groups wait for, compiled by Numba: put off until a wait wants it.

A run has one queue, oldest first, whose records are context.Work. Work that completes an mbarrier is carried out when a wait on that
mbarrier would fail; bulk copies of a group when the group is waited for; what nobody waited for when its CTA ends. So everything is as
late as its waits allow, in the order in which it was asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import array_at, jit
from mmabits.emulator.machine.context import (
    BOX_TO_GLOBAL,
    BOX_TO_SHARED,
    BYTES_COPY,
    COPIES_ARRIVE,
    NOTHING,
    STORE,
    WORK_WORDS,
    Context,
    Launch,
    Work,
)
from mmabits.emulator.machine.helpers import _asynchronous_wait, _fail
from mmabits.emulator.machine.phases import change, phase_of
from mmabits.emulator.machine.tensorrecords import TENSOR_COMMIT
from mmabits.emulator.machine.tensorwork import carry_out_tensor
from mmabits.emulator.machine.transfers import MAP, SIZE, carry_out_box, carry_out_bytes, carry_out_store, counted_bytes

_WORDS, _LAUNCH_WORDS = len(Context._fields), len(Launch._fields)
_EVENTS, _LAUNCH = Context._fields.index("events"), Context._fields.index("launch")
_OWN, _TENSOR = Context._fields.index("own"), Context._fields.index("tensor")
_PENDING, _SIZE, _FIRST, _LAST = (
    Launch._fields.index(name) for name in ("pending", "pending_size", "pending_first", "pending_last")
)  # fmt: skip
_KIND, _BARRIER, _CONTEXT, _LANE, _GROUP, _INSTRUCTION = range(len(Work._fields))
OWN = len(Work._fields)
"""Where a kind's own words begin."""


@jit
def _address(launch: Any, number: int) -> Any:
    return launch[_PENDING] + 8 * WORK_WORDS * (number % launch[_SIZE])


@jit
def _kind(launch: Any, number: int) -> Any:
    return array_at(_address(launch, number), WORK_WORDS, np.int64)[_KIND]


@jit
def put_off(context: Any, kind: int, barrier: int, lane: int, group: int, instruction: int) -> Any:
    """The address of the record of new work: its own words are the caller's to write."""
    launch = array_at(context[_LAUNCH], _LAUNCH_WORDS, np.int64)
    if launch[_LAST] - launch[_FIRST] == launch[_SIZE]:  # the oldest may be carried out at any time
        carry_out(launch, launch[_FIRST])
    address = _address(launch, launch[_LAST])
    work = array_at(address, WORK_WORDS, np.int64)
    launch[_LAST] += 1
    work[_KIND], work[_BARRIER], work[_CONTEXT], work[_LANE] = kind, barrier, context[_OWN], lane
    work[_GROUP], work[_INSTRUCTION] = group, instruction
    return address


@jit
def _commit_before(launch: Any, number: int, tensor: int) -> None:
    """Tell the mbarriers of commits that came before one: products are done in the order in which they were asked for."""
    for before in range(launch[_FIRST], number):
        work = array_at(_address(launch, before), WORK_WORDS, np.int64)
        if work[_KIND] != TENSOR_COMMIT:
            continue
        context = array_at(work[_CONTEXT], _WORDS, np.int64)
        if context[_TENSOR] == tensor:
            work[_KIND] = NOTHING
            carry_out_tensor(tensor, work[OWN])
            context[_EVENTS] += 1
            error = change(work[_BARRIER], 1, 0, 0, True)
            if error != 0:
                _fail(context, error, work[_INSTRUCTION], work[_LANE], work[_BARRIER])


@jit
def carry_out(launch: Any, number: int) -> None:
    """Do a piece of work, and tell its mbarrier."""
    work = array_at(_address(launch, number), WORK_WORDS, np.int64)
    kind, context = work[_KIND], array_at(work[_CONTEXT], _WORDS, np.int64)
    work[_KIND] = NOTHING
    error = 0
    if kind == COPIES_ARRIVE:
        _asynchronous_wait(context, work[OWN])
        error = change(work[_BARRIER], work[OWN + 1], 0, 0, True)
    elif kind == TENSOR_COMMIT:
        _commit_before(launch, number, context[_TENSOR])
        carry_out_tensor(context[_TENSOR], work[OWN])
        error = change(work[_BARRIER], 1, 0, 0, True)
    elif kind == BOX_TO_SHARED:
        carry_out_box(context, work, True)
        error = change(work[_BARRIER], 0, -counted_bytes(work[MAP]), 0, True)
    elif kind == BOX_TO_GLOBAL:
        carry_out_box(context, work, False)
    elif kind == BYTES_COPY:
        carry_out_bytes(work)
        if work[_BARRIER] != 0:
            error = change(work[_BARRIER], 0, -work[SIZE], 0, True)
    elif kind == STORE:
        carry_out_store(work)
        error = change(work[_BARRIER], 0, -work[SIZE], 0, True)
    if kind != NOTHING:
        context[_EVENTS] += 1
    if error != 0:
        _fail(context, error, work[_INSTRUCTION], work[_LANE], work[_BARRIER])
    while launch[_FIRST] < launch[_LAST] and _kind(launch, launch[_FIRST]) == NOTHING:
        launch[_FIRST] += 1


@jit
def carry_out_for(launch: Any, barrier: int) -> None:
    """Work that completes an mbarrier, until its phase ends."""
    cell = array_at(barrier, 1, np.int64)
    phase = phase_of(cell[0])
    for number in range(launch[_FIRST], launch[_LAST]):
        work = array_at(_address(launch, number), WORK_WORDS, np.int64)
        if work[_KIND] != NOTHING and work[_BARRIER] == barrier:
            carry_out(launch, number)
            if phase_of(cell[0]) != phase:
                return


@jit
def carry_out_of(launch: Any, first: int, last: int) -> None:
    """All work of the warps whose contexts lie at first .. last."""
    for number in range(launch[_FIRST], launch[_LAST]):
        work = array_at(_address(launch, number), WORK_WORDS, np.int64)
        if work[_KIND] != NOTHING and first <= work[_CONTEXT] < last:
            carry_out(launch, number)


@jit
def carry_out_groups(launch: Any, owner: int, lane: int, group: int) -> None:
    """Bulk copies that a lane asked for before it closed a group."""
    for number in range(launch[_FIRST], launch[_LAST]):
        work = array_at(_address(launch, number), WORK_WORDS, np.int64)
        if (
            work[_KIND] != NOTHING and work[_BARRIER] == 0 and work[_CONTEXT] == owner and work[_LANE] == lane and work[_GROUP] < group
        ):  # fmt: skip
            carry_out(launch, number)
