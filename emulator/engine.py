"""Products split into tasks, and the tasks into threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from mmabits.emulator import plan
from mmabits.emulator.chains import chain_tasks, integer_tasks
from mmabits.emulator.fused import Product, fused_tasks
from mmabits.emulator.grouped import ScaledProduct, grouped_tasks
from mmabits.emulator.jit import threads_wanted
from mmabits.emulator.tiles import task_count, tiling
from mmabits.isa import Arithmetic, Lowering, UnsupportedInstruction

Array = npt.NDArray[Any]

SERIAL_PRODUCTS = 1 << 22
"""Up to this many products, handing work to a second thread costs more than it saves."""
SHARES = 8
"""Shares of the tasks a thread takes one after the other, so that none waits long for the last."""

_NO_SCALES = np.zeros((0, 0, 0), np.uint8)
_CARRIERS = {24: np.empty(0, np.float32), 53: np.empty(0, np.float64)}


def run(lowering: Lowering, a: Array, b: Array, d: Array, scale_a: Array | None, scale_b: Array | None, promote_every: int = 0) -> None:
    """Compute d = a @ b + d with the arithmetic of a lowering. Everything has been checked; arrays are contiguous.

    Args:
        lowering: what the architecture makes of the instruction.
        a: (batch, M, K) operand codes as unsigned integers; int16 values for integers, float64 for f64.
        b: (batch, K, N), like `a`.
        d: (batch, M, N) accumulators in, results out: float32 (also for f16), int32 or float64.
        scale_a: (batch, M, blocks) scale codes, or None.
        scale_b: (batch, blocks, N) scale codes, or None.
        promote_every: elements of K after which the chain is added to an f32 total; 0 for never.
    """
    tasks, arguments = _work(lowering, a, b, d, scale_a, scale_b, promote_every)
    batch, m, n = d.shape
    threads = 1 if d.size * a.shape[2] <= SERIAL_PRODUCTS else threads_wanted()
    parts = tiling(batch, m, n, threads)
    count = task_count(batch, m, n, parts)
    threads = min(threads, count)
    if threads == 1:
        tasks(0, count, parts, *arguments)
        return
    shares = min(count, threads * SHARES)
    bounds = [count * share // shares for share in range(shares + 1)]
    remaining = iter(list(pairwise(bounds)))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                share = next(remaining, None)
            if share is None:
                return
            tasks(*share, parts, *arguments)

    helpers = [_pool(threads - 1).submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():
            helper.result()


@lru_cache(maxsize=8)
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="mmabits")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has the pool, but not its threads


def _work(
    lowering: Lowering, a: Array, b: Array, d: Array, scale_a: Array | None, scale_b: Array | None, promote_every: int
) -> tuple[Callable[..., None], tuple[Any, ...]]:
    """The compiled function for a lowering's arithmetic, and its arguments after the range of tasks."""
    numbers = plan.step_numbers(lowering, promote_every)
    arithmetic = lowering.datapath.arithmetic
    if arithmetic is Arithmetic.FMA_CHAIN:
        return chain_tasks, (a, b, d, numbers)
    if arithmetic is Arithmetic.INTEGER:
        return integer_tasks, (a, b, d, numbers)
    result = plan.result_numbers(lowering)
    row = lowering.instruction
    scales = (_NO_SCALES if scale_a is None else scale_a, _NO_SCALES if scale_b is None else scale_b)
    if arithmetic is Arithmetic.GROUPED:
        if row.scale_type is None or not plan.groups_fit(lowering):
            raise UnsupportedInstruction(
                f"{lowering.datapath.name}: groups are modelled with block scales, an even number of them a step, and sums exact in 24 bits"
            )
        elements = (plan.element_values(row.a_type), plan.element_values(row.b_type))
        factors, _, powers = plan.scale_tables(row.scale_type)
        return grouped_tasks, (ScaledProduct(a, b, *scales, d, *elements, factors, powers, plan.step_powers(lowering), numbers, result),)
    bits = plan.carrier_bits(lowering)
    if bits == 0:
        path = lowering.datapath
        raise UnsupportedInstruction(
            f"{path.name}: {path.fraction_bits} fraction bits over {lowering.step} elements need more than 53 bits"
        )
    form_a, form_b = (plan.format_numbers(form, lowering.unpacked_to) for form in (row.a_type, row.b_type))
    factors, exponents, _ = plan.scale_tables(row.scale_type)
    order, carrier = plan.k_order(lowering), _CARRIERS[bits]
    return fused_tasks, (Product(a, b, *scales, d, order, carrier, form_a, form_b, factors, exponents, numbers, result),)
