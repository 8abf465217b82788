"""One call of the engine as a record of words, and what its machine code is made for."""

from typing import Any, NamedTuple

import numpy as np


class Call(NamedTuple):
    """One call of the engine: signed 64-bit words in this order. Arrays are contiguous, row by row, and aligned to their elements."""

    a: int
    """Address of A, (batch, M, K). `native.NativeProduct.operand` is its dtype, and that of B."""
    b: int
    """Address of B, (batch, K, N)."""
    d: int
    """Address of D, (batch, M, N): accumulators in, results out. `NativeProduct.accumulator` is its dtype."""
    scale_a: int
    """Address of (batch, M, blocks) scale codes, uint8; anything where the instruction has no block scales."""
    scale_b: int
    """Address of (batch, blocks, N) scale codes, uint8."""
    batch: int
    m: int
    n: int
    k: int
    blocks: int
    """Block scales along K: ceil(K / block), 0 without."""
    first: int
    last: int
    """Tasks to do: first .. last - 1. Every task writes its own part of D, so tasks may run at the same time."""
    rows: int
    tiles: int
    """tasks.Tiling: how the product is divided into tasks."""
    stop: int
    """Address of a word that another thread may set: where it is not 0, the engine returns within milliseconds and leaves D
    unfinished. 0 for none."""
    failed: int
    """Written by the engine: 1 where there was no memory for scratch and nothing was computed."""
    numbers: int
    """Addresses of constants, which the NativeProduct keeps: plan.StepNumbers,"""
    result: int
    """plan.ResultNumbers,"""
    form_a: int
    form_b: int
    """plan.FormatNumbers,"""
    powers: int
    """plan.StepPowers,"""
    order: int
    """`order_size` int64: in which order an instruction's elements of K enter the steps,"""
    order_size: int
    factors: int
    """256 float64: the value of every scale code,"""
    exponents: int
    """256 int16: its exponent,"""
    scale_powers: int
    """256 float64: its power of two."""


CALL = np.dtype([(name, np.int64) for name in Call._fields])
"""The record that the engine's functions take the address of."""
CALLED = Call._fields.index("numbers")
"""Words of a record that differ from call to call; the others are the product's constants."""


class Variant(NamedTuple):
    """What machine code is made for: one function each."""

    kind: str
    """Which of machine_code.ENTRIES."""
    operand: np.dtype[Any]
    accumulator: np.dtype[Any]
    """What the sums are kept in from step to step."""
    carrier: np.dtype[Any]
    """Of the sums of a step."""

    @property
    def symbol(self) -> str:
        """The C function's name."""
        return f"mmabits_{self.kind}_{self.operand}_{self.carrier}"
