"""Which schedule of a matrix library gives a result: promotion, split K and the instruction are tried one after another."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.conformance.diff.comparing import compare
from mmabits.emulator.api import gemm, operand_type, scale_type
from mmabits.isa import Arithmetic, Instruction, OperandError, UnknownInstruction, UnsupportedInstruction, architecture, lower, resolve
from mmabits.isa.choices import NEWEST_FIRST, library_instruction

Array = npt.NDArray[Any]

PROMOTIONS: Final = (32, 64, 128, 256, 512)
SPLITS: Final = range(1, 17)
SAMPLE: Final = 32
"""Rows and columns on which every schedule is tried; the elements of a product do not depend on each other."""
FINALISTS: Final = 8
"""Schedules that are then counted over all elements."""
ASSUMED_PROMOTION: Final = {(8, 9): 128, (9, 0): 128}
"""Elements of K after which FP8 products without fast accumulation are taken to promote, as CUTLASS does; by compute capability."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a product is put together from instructions."""

    instruction: Instruction
    promote_every: int | None = None
    split_k: int = 1
    """Parts of K, as even as whole instructions allow, each with an accumulator of its own; their sums are added in f32."""
    reverse: bool = False
    """The last part first."""

    @property
    def words(self) -> str:
        """In words."""
        promotion = "no promotion" if self.promote_every is None else f"promoted every {self.promote_every} of K"
        if self.split_k == 1:
            return promotion
        return f"{promotion}, K split by {self.split_k} and added {'in reverse' if self.reverse else 'in order'}"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A schedule, and how many elements of the result it misses."""

    schedule: Schedule
    differing: int
    elements: int

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        plan = self.schedule
        return {
            "instruction": plan.instruction.ptx, "promote_every": plan.promote_every, "split_k": plan.split_k, "reverse": plan.reverse,
            "differing": self.differing, "elements": self.elements,
        }  # fmt: skip


def assumed_schedule(
    a: Array, b: Array, *, arch: str, instruction: str | Instruction | None = None, scale_a: Array | None = None,
    fast_accum: bool | None = None,
) -> Schedule:  # fmt: skip
    """What `emulate` takes a library to do: its newest instruction, promotion for FP8 without fast accumulation, no split of K.

    Raises:
        MmabitsError: no instruction for these operands.
    """
    types, scales = (operand_type(a, "a"), operand_type(b, "b")), _block_type(scale_a)
    if instruction is None:
        row = library_instruction(arch, *types, scale_type=scales)
    else:
        row = resolve(instruction, arch=arch, a_type=types[0], b_type=types[1], scale_type=scales)
    digits = re.findall(r"\d+", architecture(arch).target)[0]
    interval = ASSUMED_PROMOTION.get((int(digits[:-1]), int(digits[-1]))) if fast_accum is False else None
    return Schedule(instruction=row, promote_every=interval)


def recompute(
    a: Array, b: Array, *, schedule: Schedule, arch: str, scale_a: Array | None = None, scale_b: Array | None = None,
    dtype: npt.DTypeLike | None = None,
) -> Array:  # fmt: skip
    """A product by a schedule, scaled and rounded as PyTorch does.

    Args:
        a: (M, K), dtypes as for `mmabits.gemm`.
        b: (K, N).
        schedule: the instruction and the order of additions.
        arch: `"sm_90a"` and so on.
        scale_a: block scales of the instruction, (M, K / block); or f32 factors of the finished product, one or (M, 1).
        scale_b: likewise, (K / block, N); or one or (1, N).
        dtype: what the result is rounded to, once, after scaling; None: the accumulator's.

    Returns:
        (M, N).

    Raises:
        MmabitsError: as `mmabits.gemm`.
    """
    parts = _parts(a, b, schedule, arch, scale_a, scale_b)
    return _finished(_added(parts, schedule), scale_a, scale_b, dtype)


def fitting_schedules(
    a: Array, b: Array, result: Array, *, arch: str, instruction: str | Instruction | None = None, scale_a: Array | None = None,
    scale_b: Array | None = None,
) -> list[Fit]:  # fmt: skip
    """Try schedules on a product, and count what each misses.

    All are tried on a sample of rows and columns; the best few are counted over all elements. Where K holds no more than a few
    instructions, or numbers cancel nowhere, several may fit: then the simplest comes first and the result does not tell which it was.

    Args:
        a: (M, K), dtypes as for `mmabits.gemm`.
        b: (K, N).
        result: (M, N) as a GPU or a framework gave it.
        arch: whose arithmetic.
        instruction: only this one; None: every family of the architecture that takes the operands.
        scale_a: as for `recompute`.
        scale_b: as for `recompute`.

    Returns:
        The best schedules, the one that misses fewest elements first, among equals the simplest.

    Raises:
        MmabitsError: as `mmabits.gemm`; OperandError for a result of another shape.
    """
    if result.shape != (a.shape[0], b.shape[-1]):
        raise OperandError(f"the product of {a.shape} and {b.shape} has shape {(a.shape[0], b.shape[-1])}, got a result {result.shape}")
    rows, columns = (np.unique(np.linspace(0, size - 1, min(size, SAMPLE)).astype(int)) for size in result.shape)
    left, right, sample = a[rows], np.ascontiguousarray(b[:, columns]), np.ascontiguousarray(result[np.ix_(rows, columns)])
    scales = _rows_of(scale_a, rows, 0), _rows_of(scale_b, columns, 1)
    found: list[tuple[int, int, Schedule]] = []
    for group in _candidates(a, b, arch, instruction, scale_a):
        parts = _parts(left, right, group[0], arch, *scales)
        for plan in group:
            got = _finished(_added(parts, plan), *scales, result.dtype)
            found.append((compare(sample, got).differing, len(found), plan))
    best = sorted(found, key=lambda entry: (entry[0], _complexity(entry[2]), entry[1]))[:FINALISTS]
    fits = []
    for _, _, plan in best:
        got = recompute(a, b, schedule=plan, arch=arch, scale_a=scale_a, scale_b=scale_b, dtype=result.dtype)
        fits.append(Fit(schedule=plan, differing=compare(result, got).differing, elements=result.size))
    return sorted(fits, key=lambda fit: (fit.differing, _complexity(fit.schedule)))


def _complexity(plan: Schedule) -> tuple[bool, int, bool]:
    return (plan.promote_every is not None, plan.split_k, plan.reverse)


def _block_type(scale: Array | None) -> str | None:
    return None if scale is None or scale.dtype == np.float32 else scale_type(scale)


def _rows_of(scale: Array | None, chosen: npt.NDArray[Any], axis: int) -> Array | None:
    if scale is None or scale.ndim < 2 or scale.shape[axis] == 1:
        return scale
    return np.ascontiguousarray(np.take(scale, chosen, axis=axis))


def _instructions(a: Array, b: Array, arch: str, instruction: str | Instruction | None, scale_a: Array | None) -> Iterator[Instruction]:
    types, scales = (operand_type(a, "a"), operand_type(b, "b")), _block_type(scale_a)
    if instruction is not None:
        yield resolve(instruction, arch=arch, a_type=types[0], b_type=types[1], scale_type=scales)
        return
    for family, accumulator in product(NEWEST_FIRST, (None, "f16")):
        try:
            row = resolve(str(family), arch=arch, a_type=types[0], b_type=types[1], c_type=accumulator, scale_type=scales)
            lower(row, arch)
        except (UnsupportedInstruction, UnknownInstruction):
            continue
        yield row


def _candidates(
    a: Array, b: Array, arch: str, instruction: str | Instruction | None, scale_a: Array | None
) -> Iterator[tuple[Schedule, ...]]:
    """Schedules in groups that share their partial sums."""
    k = a.shape[1]
    rows = tuple(_instructions(a, b, arch, instruction, scale_a))
    if not rows:
        library_instruction(arch, operand_type(a, "a"), operand_type(b, "b"), scale_type=_block_type(scale_a))  # says what is missing
    for row in rows:
        is_rounded = lower(row, arch).datapath.arithmetic in (Arithmetic.FUSED, Arithmetic.GROUPED)
        intervals = (None, *(every for every in PROMOTIONS if is_rounded and every < k and every % row.k == 0))
        for every, split in product(intervals, SPLITS):
            panels = _panels(k, row, split)
            if split > 1 and (row.d_type.is_integer or len(panels) != split or (every is not None and every >= panels[0].stop)):
                continue
            # Two parts give the same sum in either order.
            orders = (False, True) if split > 2 else (False,)
            yield tuple(Schedule(instruction=row, promote_every=every, split_k=split, reverse=reverse) for reverse in orders)


def _panels(k: int, row: Instruction, split: int) -> list[slice]:
    # A part ends where a block of scales does, and an instruction's K is a whole number of blocks.
    instructions = math.ceil(k / row.k)
    size = math.ceil(instructions / split) * row.k
    return [slice(start, min(start + size, k)) for start in range(0, k, size)]


def _parts(a: Array, b: Array, plan: Schedule, arch: str, scale_a: Array | None, scale_b: Array | None) -> list[Array]:
    """The sum of every part of K."""
    parts = []
    for panel in _panels(a.shape[1], plan.instruction, plan.split_k):
        scales: dict[str, Any] = {}
        if scale_a is not None and scale_b is not None and plan.instruction.block:
            blocks = slice(panel.start // plan.instruction.block, -(-panel.stop // plan.instruction.block))
            scales = {"scale_a": scale_a[:, blocks], "scale_b": scale_b[blocks]}
        left, right = np.ascontiguousarray(a[:, panel]), np.ascontiguousarray(b[panel])
        parts.append(gemm(left, right, instruction=plan.instruction, arch=arch, promote_every=plan.promote_every, **scales))
    return parts


def _added(parts: list[Array], plan: Schedule) -> Array:
    if len(parts) == 1:
        return parts[0]
    kind = np.promote_types(parts[0].dtype, np.float32) if parts[0].dtype.kind == "f" else parts[0].dtype
    total = np.zeros_like(parts[0], dtype=kind)
    with np.errstate(all="ignore"):
        for number, part in enumerate(reversed(parts) if plan.reverse else parts):
            total = part.astype(kind) if number == 0 else total + part.astype(kind)
    return total


def _finished(product: Array, scale_a: Array | None, scale_b: Array | None, dtype: npt.DTypeLike | None) -> Array:
    """The epilogue: f32 factors as PyTorch applies them, then one rounding."""
    with np.errstate(all="ignore"):
        if scale_a is not None and scale_b is not None and scale_a.dtype == scale_b.dtype == np.float32:
            if scale_a.size == scale_b.size == 1:
                product = product * np.float32(scale_a.reshape(-1)[0] * scale_b.reshape(-1)[0])
            else:
                product = product * scale_a * scale_b
        return product if dtype is None else product.astype(dtype)
