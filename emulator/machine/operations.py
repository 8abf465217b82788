"""What a warp's code calls, compiled by Numba into one function: an operation for each record."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.jit import address_of, array_at
from mmabits.emulator.machine.cells import tensor
from mmabits.emulator.machine.context import ASYNC, ATOMIC, MATRIX, MOVE, PRODUCT, RUN, SHUFFLE, TENSOR, MULTIPLY, COMMIT, CONTEXT_WORDS
from mmabits.emulator.machine.tensorwork import ask, carry_out_tensor
from mmabits.emulator.machine.helpers import _asynchronous, _atomic, _matrix, _move, _product, _run, _shuffle


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
    elif operation == SHUFFLE:
        _shuffle(words)
    elif operation == ATOMIC:
        _atomic(words)
    elif operation == RUN:
        _run(words)
    elif operation == TENSOR:
        if words[1] < MULTIPLY:
            tensor(words)
        elif words[1] < COMMIT:
            ask(words)
        else:
            ct = array_at(words[2], CONTEXT_WORDS, np.int64)
            carry_out_tensor(ct[CONTEXT_WORDS - 1], array_at(ct[CONTEXT_WORDS - 1], 16, np.int64)[6])
    return 0
