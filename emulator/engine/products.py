"""Products split into tasks, and the tasks into threads."""

from __future__ import annotations

import ctypes
import os
import sys
from array import array
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy.typing as npt

from mmabits.emulator.engine.native import NativeProduct, native_product
from mmabits.emulator.engine.record import Call
from mmabits.emulator.engine.shares import SharedWork
from mmabits.emulator.engine.tasks import lie_side_by_side
from mmabits.isa import Lowering, OperandTypeError

Array = npt.NDArray[Any]

SERIAL_PRODUCTS = 1 << 22
"""Up to this many products, which take milliseconds, handing work to a second thread costs more than it saves."""
SHARES = 8
"""Shares of the tasks a thread takes one after the other, so that none waits long for the last."""

_FAILED = Call._fields.index("failed")
_function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_byte_of: Callable[[Any], ctypes.c_char] = ctypes.c_char.from_buffer


def run(lowering: Lowering, a: Array, b: Array, d: Array, scale_a: Array | None, scale_b: Array | None, promote_every: int = 0) -> None:
    """Compute d = a @ b + d with the arithmetic of a lowering. Everything has been checked; arrays are contiguous.

    Args:
        lowering: what the architecture makes of the instruction.
        a: (batch, M, K) operand codes as unsigned integers; bytes for integers, float64 for f64.
        b: (batch, K, N), like `a`.
        d: (batch, M, N) accumulators in, results out, to their last bits: float32, float16 (unless promoted), int32 or float64.
        scale_a: (batch, M, blocks) scale codes, or None.
        scale_b: (batch, blocks, N) scale codes, or None.
        promote_every: elements of K after which the chain is added to an f32 total; 0 for never.

    Raises:
        UnsupportedInstruction: a datapath whose sums the engine could not keep exact.
        MemoryError: there was no memory for the tiles a thread works on.
    """
    side_by_side = lie_side_by_side(d.shape[0], d.shape[2])
    multiply(native_product(lowering, promote_every, side_by_side=side_by_side), a, b, d, scale_a, scale_b)


def multiply(product: NativeProduct, a: Array, b: Array, d: Array, scale_a: Array | None, scale_b: Array | None) -> None:
    """`run` with the engine's function for a lowering at hand.

    However it ends, by an exception out of a signal's handler too, nobody looks at the arrays any more.
    """
    if d.dtype != product.accumulator:
        raise OperandTypeError(f"D has dtype {d.dtype}; the engine writes {product.accumulator} here")
    batch, m, n = d.shape
    k = a.shape[2]
    small = batch * m * n * k <= SERIAL_PRODUCTS
    threads = 1 if small else threads_wanted()
    parts, count = product.tasks(batch, m, n, threads)
    operands = (_address(a), _address(b), _address(d), _address(scale_a), _address(scale_b))
    blocks = 0 if scale_b is None else scale_b.shape[1]
    function = _function(product.address)
    stop = array("q", (0,))

    def tasks(first: int, last: int) -> None:
        words = (*operands, batch, m, n, k, blocks, first, last, *parts, stop.buffer_info()[0], 0, *product.constants)
        record = array("q", words)
        function(record.buffer_info()[0])
        if record[_FAILED]:
            raise MemoryError(f"no memory for the tiles of a product of {batch} x {m} x {n} x {k}")

    if small:
        tasks(0, count)
        return
    threads = min(threads, count)
    shares = min(count, threads * SHARES)
    bounds = pairwise(count * share // shares for share in range(shares + 1))
    SharedWork(tasks, list(bounds), stop, kept=(a, b, d, scale_a, scale_b)).run(threads)


def threads_wanted() -> int:
    """Threads a product may use: what Numba was told (NUMBA_NUM_THREADS, numba.set_num_threads), else every processor."""
    ask = getattr(sys.modules.get("numba"), "get_num_threads", None)
    if ask is not None:
        return int(ask())
    told = os.environ.get("NUMBA_NUM_THREADS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # as on macOS and Windows
        return os.cpu_count() or 1


def _address(operand: Array | None) -> int:
    if operand is None:
        return 0
    try:
        return ctypes.addressof(_byte_of(operand))  # a third of the time that the line below takes
    except (TypeError, ValueError):  # read-only, or empty
        return int(operand.ctypes.data)
