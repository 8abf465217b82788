"""The engine as C functions: what a product is, packed into one record, and the machine code that computes it.

A program without Python calls it like this (C, one thread; several threads take parts of `first` .. `last`, each with a
record of its own):

    struct call record = /* the bytes of NativeProduct.record(batch, m, n, k) */;
    record.a = (int64_t)a; record.b = (int64_t)b; record.d = (int64_t)d;
    ((void (*)(void *))address)(&record);
    if (record.failed) /* there was no memory for scratch */;

A call that another thread should be able to end early has the address of a word in `record.stop`: the function returns soon
after that word is no longer 0, and D is then unfinished. Operands must stay where they are until it has returned.

Neither this module nor a call imports Numba, save when machine code must be made first (see machine_code.py).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.emulator.engine import plan
from mmabits.emulator.engine.machine_code import function_address
from mmabits.emulator.engine.record import CALL, CALLED, Call, Variant
from mmabits.emulator.engine.tasks import Tiling, side_by_side_count, side_by_side_tiling, task_count, tiling
from mmabits.isa import Arithmetic, FormatSpec, Lowering, OperandError, UnsupportedInstruction

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class NativeProduct:
    """The engine's function for one instruction, and the constants it works with, which live as long as this object.

    Attributes:
        address: of the C function `void (void *)`, which takes a record of CALL. It holds no Python object, may run in
            several threads at once, and leaves the floating-point unit of its thread as it found it.
        operand: dtype of A and B: uint8, uint16 or uint32 codes in a format's own container (one code an element: FP4 and
            FP6 too), for integers a byte each, of 4-bit types too, negative ones as their two's complement, float64 values for f64.
        accumulator: dtype of C and D: float32, float16 where the instruction's accumulator is f16 and nothing is promoted, int32 or
            float64.
        block: elements of K per block scale, 0 without.
        side_by_side: whether the function is the one for batches of narrow items.
        in_bytes: whether it multiplies bytes, in larger tasks.
        constants: the last words of a record.
        kept: the arrays that they are addresses of.
    """

    address: int
    operand: np.dtype[Any]
    accumulator: np.dtype[Any]
    block: int
    side_by_side: bool
    in_bytes: bool
    constants: tuple[int, ...]
    kept: tuple[Array, ...] = field(repr=False)

    def record(self, batch: int, m: int, n: int, k: int, *, threads: int = 1) -> npt.NDArray[np.void]:
        """A record with everything but the addresses of the operands, for all tasks of a product.

        Args:
            batch: items; 1 for a plain product. A product whose items share B is one item with batch * M rows.
            m: rows of A and D of an item.
            n: columns of B and D.
            k: elements of K, any number: the engine adds zeros up to whole instructions.
            threads: for how many threads there should be tasks.

        Returns:
            Shape (1,), dtype CALL. A caller of its own that divides the work copies it, and sets `first` and `last` to
            parts of what they are here.
        """
        parts, count = self.tasks(batch, m, n, threads)
        if k == 0:  # D stays what it is: there is nothing to do
            count = 0
        blocks = -(-k // self.block) if self.block else 0
        words = (0, 0, 0, 0, 0, batch, m, n, k, blocks, 0, count, *parts, 0, 0, *self.constants)
        return np.array(words, np.int64).view(CALL)

    def tasks(self, batch: int, m: int, n: int, threads: int) -> tuple[Tiling, int]:
        """How a product is divided, and into how many tasks."""
        if self.side_by_side:
            parts = side_by_side_tiling(m)
            return parts, side_by_side_count(batch, m, parts)
        parts = tiling(batch, m, n, threads, self.in_bytes)
        return parts, task_count(batch, m, n, parts)


_FLOAT16, _FLOAT32, _FLOAT64 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)
_CARRIERS: dict[int, np.dtype[Any]] = {24: _FLOAT32, 53: _FLOAT64}
_CODES: dict[int, np.dtype[Any]] = {8: np.dtype(np.uint8), 16: np.dtype(np.uint16), 32: np.dtype(np.uint32)}
_NONE = np.zeros(0)
SETTING: Final = "MMABITS_STEPS"
"""Environment variable that has the engine take its general path everywhere."""
_IN_BYTES = ("integer", "grouped_bytes", "grouped_bytes_side_by_side")
_SIDE_BY_SIDE = {"fused": "fused_side_by_side", "grouped": "grouped_side_by_side", "grouped_bytes": "grouped_bytes_side_by_side"}
"""Functions for batches of narrow items, by the function for every product."""


@lru_cache(maxsize=1024)
def native_product(lowering: Lowering, promote_every: int = 0, *, side_by_side: bool = False, general: bool | None = None) -> NativeProduct:
    """The engine's function for a lowering; made now if it never was on this machine, which takes about ten seconds.

    Args:
        lowering: what the architecture makes of the instruction (`mmabits.isa.lower`).
        promote_every: elements of K, a multiple of the instruction's, after which the chain is added to an f32 total; 0 for never.
        general: whether to take the path that is right for everything, also where a faster one has the same bits; as the environment
            variable MMABITS_STEPS says (`general`) where it is None.
        side_by_side: the function for batches whose items have at most tasks.SIDE columns, which computes several of them at once;
            the other is right for them too, and slower. Where there is only the other, it is that.

    Raises:
        UnsupportedInstruction: a datapath whose sums the engine could not keep exact.
    """
    general = _general() if general is None else general
    variant = _variant(lowering, general)
    side_by_side = side_by_side and variant.kind in _SIDE_BY_SIDE
    if side_by_side:
        variant = variant._replace(kind=_SIDE_BY_SIDE[variant.kind])
    row = lowering.instruction
    grouped = lowering.datapath.arithmetic is Arithmetic.GROUPED
    aligned = grouped or lowering.datapath.arithmetic is Arithmetic.FUSED
    result = plan.result_numbers(lowering, promote_every)
    factors, exponents, scale_powers = plan.scale_tables(row.scale_type)
    order = plan.k_order(lowering)
    kept = (
        _words(plan.step_numbers(lowering, promote_every, general)),
        _words(result),
        _words(plan.format_numbers(row.a_type, lowering.unpacked_to)) if aligned else _NONE,
        _words(plan.format_numbers(row.b_type, lowering.unpacked_to)) if aligned else _NONE,
        np.array(plan.step_powers(lowering), np.float64) if grouped else _NONE,
        order,
        factors,
        exponents,
        scale_powers,
    )
    addresses = [array.ctypes.data for array in kept]
    place = Call._fields.index("order_size") - CALLED
    return NativeProduct(
        address=function_address(variant), operand=variant.operand, accumulator=_FLOAT16 if result.half else variant.accumulator,
        block=row.block or 0, side_by_side=side_by_side, in_bytes=variant.kind in _IN_BYTES,
        constants=(*addresses[:place], order.size, *addresses[place:]), kept=kept,
    )  # fmt: skip


def _general() -> bool:
    told = os.environ.get(SETTING, "")
    if told not in ("", "general"):
        raise OperandError(f"{SETTING} must be 'general' or nothing, got {told!r}")
    return told == "general"


def variants(lowering: Lowering) -> tuple[Variant, ...]:
    """The functions that products of a lowering take: the one for every product, and that for batches of narrow items where it has one.

    Raises:
        UnsupportedInstruction: a datapath whose sums the engine could not keep exact.
    """
    found = _variant(lowering, _general())
    return (found, *(found._replace(kind=kind) for kind in [_SIDE_BY_SIDE.get(found.kind)] if kind))


def _words(numbers: tuple[int, ...]) -> Array:
    return np.array(numbers, np.int64)


def _variant(lowering: Lowering, general: bool) -> Variant:
    """The function that a lowering's arithmetic takes; with `general` the one that takes any."""
    arithmetic, path, row = lowering.datapath.arithmetic, lowering.datapath, lowering.instruction
    if arithmetic is Arithmetic.FMA_CHAIN:
        return Variant("chain", _FLOAT64, _FLOAT64, _FLOAT64)
    if arithmetic is Arithmetic.INTEGER:
        return Variant("integer", np.dtype(np.uint8), np.dtype(np.int32), np.dtype(np.int32))
    codes = _codes(row.a_type)
    if arithmetic is Arithmetic.GROUPED:
        if row.scale_type is None or not plan.groups_fit(lowering):
            raise UnsupportedInstruction(
                f"{path.name}: groups are modelled with block scales, an even number of them a step, and sums exact in 24 bits"
            )
        return Variant("grouped" if general or not plan.bytes_fit(lowering) else "grouped_bytes", codes, _FLOAT32, _FLOAT64)
    bits = plan.carrier_bits(lowering)
    if bits == 0:
        raise UnsupportedInstruction(
            f"{path.name}: {path.fraction_bits} fraction bits over {lowering.step} elements need more than 53 bits"
        )
    if _codes(row.b_type) != codes:
        raise UnsupportedInstruction(f"{row}: codes of A and B of {codes} and {_codes(row.b_type)}; the engine takes one width")
    return Variant("fused", codes, _FLOAT32, _CARRIERS[bits])


def _codes(form: FormatSpec) -> np.dtype[Any]:
    return _CODES[form.container_bits]
