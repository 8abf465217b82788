"""Asynchronous work that is carried out before a wait wants it, compiled by Numba: other orders than the machine's own.

The hardware may carry it out as soon as it is asked for. A launch says whether it is, or by chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import array_at, jit
from mmabits.emulator.machine.context import BY_CHANCE, NOTHING, WORK_WORDS, Context, Launch
from mmabits.emulator.machine.helpers import _asynchronous_wait
from mmabits.emulator.machine.pending import carry_out
from mmabits.emulator.machine.tensorrecords import TensorMemory
from mmabits.emulator.machine.tensorwork import carry_out_tensor
from mmabits.emulator.machine.warpgroups import carry_out_products

_WORDS, _LAUNCH_WORDS = len(Context._fields), len(Launch._fields)
_LAUNCH, _GROUP, _QUEUED, _TENSOR, _WARPGROUP, _ERROR = (
    Context._fields.index(name) for name in ("launch", "group", "queued", "tensor", "warpgroup", "error")
)
_HASTENS, _CHANCE, _PENDING, _SIZE, _FIRST, _LAST = (
    Launch._fields.index(name) for name in ("hastens", "chance", "pending", "pending_size", "pending_first", "pending_last")
)
_TENSOR_WORDS, _TENSOR_LAST = len(TensorMemory._fields), TensorMemory._fields.index("last")


@jit
def chance(launch: Any, count: int) -> Any:
    """A number below another, by chance (Knuth's MMIX generator)."""
    launch[_CHANCE] = launch[_CHANCE] * np.int64(6364136223846793005) + np.int64(1442695040888963407)
    return (launch[_CHANCE] >> 33 & 0x7FFFFFFF) % count


@jit
def hasten(address: int) -> None:
    """Carry out what the warp of a context, and everybody else, has asked for, where the launch wants it so."""
    context = array_at(address, _WORDS, np.int64)
    launch = array_at(context[_LAUNCH], _LAUNCH_WORDS, np.int64)
    if launch[_HASTENS] == 0 or context[_ERROR] != 0:
        return
    by_chance = launch[_HASTENS] == BY_CHANCE
    if by_chance and chance(launch, 2) == 0:
        return
    if context[_QUEUED] != 0:
        _asynchronous_wait(context, context[_GROUP] + 1)
    if context[_WARPGROUP] != 0:
        carry_out_products(address)
    if context[_TENSOR] != 0:
        carry_out_tensor(context[_TENSOR], array_at(context[_TENSOR], _TENSOR_WORDS, np.int64)[_TENSOR_LAST])
    for number in range(launch[_FIRST], launch[_LAST]):
        work = array_at(launch[_PENDING] + 8 * WORK_WORDS * (number % launch[_SIZE]), WORK_WORDS, np.int64)
        if work[0] != NOTHING and not (by_chance and chance(launch, 2)):
            carry_out(launch, number)
