"""Which schedule of a matrix library gives a result: promotion, split K and the instruction are tried one after another."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.conformance.diff.comparing import compare
from mmabits.emulator.api import gemm, operand_type, scale_type
from mmabits.isa import Arithmetic, Instruction, OperandError, UnknownInstruction, UnsupportedInstruction, lower, resolve
from mmabits.isa.choices import NEWEST_FIRST, library_instruction, library_promotion

Array = npt.NDArray[Any]

PROMOTIONS: Final = (32, 64, 128, 256, 512)
SPLITS: Final = range(1, 17)
SAMPLE: Final = 32
"""Rows and columns on which every schedule is tried; the elements of a product do not depend on each other."""
FINALISTS: Final = 8
"""Schedules that are then counted over all elements."""


WORKSPACES: Final[dict[str, np.dtype[Any]]] = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
"""Types narrower than f32 in which sums of parts are kept: the result's own, where it is one of these."""


class Order(enum.StrEnum):
    """How the parts of a split K are added up."""

    FORWARD = "in order"
    """((0 + 1) + 2) + 3"""
    REVERSE = "in reverse"
    """((3 + 2) + 1) + 0"""
    NEIGHBOURS = "by a tree of neighbours"
    """(0 + 1) + (2 + 3); a part without a neighbour waits."""
    HALVES = "by a tree of halves"
    """(0 + 2) + (1 + 3): the second half onto the first, as reductions across threads do; of an odd number the middle one waits."""

    @property
    def is_tree(self) -> bool:
        """Whether sums of several parts are added to each other."""
        return self in (Order.NEIGHBOURS, Order.HALVES)


@dataclass(frozen=True, kw_only=True)
class TriedSchedule:
    """How a product is put together from instructions.

    Raises:
        OperandError: no parts, or a type that is no workspace.
    """

    instruction: Instruction
    promote_every: int | None = None
    split_k: int = 1
    """Parts of K, as even as whole instructions allow, each with an accumulator of its own; their sums are added in f32."""
    order: Order = Order.FORWARD
    workspace: str | None = None
    """`f16` or `bf16`: what parts are rounded to before they are added; None: they stay f32."""
    keeps_total: bool = False
    """It is the total that the workspace holds: the first part and every sum are rounded to it, the other parts are not."""
    converted: str | None = None
    """`f16` or `bf16`: what FP8 operands are converted to before they are multiplied; None: they are multiplied as they are."""

    def __post_init__(self) -> None:
        if self.split_k < 1:
            raise OperandError(f"K is split into one part or more, got {self.split_k}")
        if self.workspace is not None and self.workspace not in WORKSPACES:
            raise OperandError(f"a workspace is {' or '.join(WORKSPACES)}, got {self.workspace!r}")
        if self.converted is not None and self.converted not in WORKSPACES:
            raise OperandError(f"operands are converted to {' or '.join(WORKSPACES)}, got {self.converted!r}")
        if self.keeps_total and (self.workspace is None or self.order.is_tree):
            raise OperandError("a total is kept in a workspace, and by sums in order or in reverse")

    @property
    def reverse(self) -> bool:
        """Whether the last part comes first."""
        return self.order is Order.REVERSE

    def operand(self, array: Array) -> Array:
        """An operand as it is multiplied."""
        return array if self.converted is None else array.astype(WORKSPACES[self.converted])

    @property
    def words(self) -> str:
        """In words."""
        promotion = "no promotion" if self.promote_every is None else f"promoted every {self.promote_every} of K"
        if self.converted is not None:
            promotion = f"operands converted to {self.converted}, {promotion}"
        if self.split_k == 1:
            return promotion
        kept = "" if self.workspace is None else f", {'the total' if self.keeps_total else 'parts'} rounded to {self.workspace}"
        return f"{promotion}, K split by {self.split_k} and added {self.order.value}{kept}"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A schedule, and how many elements of the result it misses."""

    schedule: TriedSchedule
    differing: int
    elements: int

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        plan = self.schedule
        return {
            "instruction": plan.instruction.ptx, "promote_every": plan.promote_every, "split_k": plan.split_k, "reverse": plan.reverse,
            "order": plan.order.value, "workspace": plan.workspace, "keeps_total": plan.keeps_total,
            "converted": plan.converted,
            "differing": self.differing, "elements": self.elements,
        }  # fmt: skip


def assumed_schedule(
    a: Array, b: Array, *, arch: str, instruction: str | Instruction | None = None, scale_a: Array | None = None,
    fast_accum: bool | None = None,
) -> TriedSchedule:  # fmt: skip
    """What `emulate` takes a library to do: its newest instruction, promotion for FP8 without fast accumulation, no split of K.

    Raises:
        MmabitsError: no instruction for these operands.
    """
    types, scales = (operand_type(a, "a"), operand_type(b, "b")), _block_type(scale_a)
    if instruction is None:
        row = library_instruction(arch, *types, scale_type=scales)
    else:
        row = resolve(instruction, arch=arch, a_type=types[0], b_type=types[1], scale_type=scales)
    interval = library_promotion(arch) or None if fast_accum is False else None
    return TriedSchedule(instruction=row, promote_every=interval)


def recompute(
    a: Array, b: Array, *, schedule: TriedSchedule, arch: str, scale_a: Array | None = None, scale_b: Array | None = None,
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
    return _finished(add_parts(parts, schedule), scale_a, scale_b, dtype)


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
    found: list[tuple[int, int, TriedSchedule]] = []
    for group in _candidates(a, b, arch, instruction, scale_a, _workspace_of(result.dtype)):
        parts = _parts(left, right, group[0], arch, *scales)
        for plan in group:
            got = _finished(add_parts(parts, plan), *scales, result.dtype)
            found.append((_missed(sample, got), len(found), plan))
    best = sorted(found, key=lambda entry: (entry[0], _complexity(entry[2]), entry[1]))[:FINALISTS]
    fits = []
    for _, _, plan in best:
        got = recompute(a, b, schedule=plan, arch=arch, scale_a=scale_a, scale_b=scale_b, dtype=result.dtype)
        fits.append(Fit(schedule=plan, differing=compare(result, got).differing, elements=result.size))
    return sorted(fits, key=lambda fit: (fit.differing, _complexity(fit.schedule)))


def _complexity(plan: TriedSchedule) -> tuple[bool, bool, bool, bool, int, int]:
    """What is rarer comes later: converted operands, then workspaces and trees, after all that add parts one by one in f32."""
    rare = (plan.converted is not None, plan.workspace is not None, plan.order.is_tree)
    return (*rare, plan.promote_every is not None, plan.split_k, _ORDERS.index(plan.order) + len(_ORDERS) * plan.keeps_total)


_ORDERS: Final = tuple(Order)


def _workspace_of(dtype: np.dtype[Any]) -> str | None:
    return next((name for name, kind in WORKSPACES.items() if kind == dtype), None)


def _missed(left: Array, right: Array) -> int:
    """How many elements differ in a bit; `compare` would class them too."""
    bits = f"uint{8 * left.dtype.itemsize}"
    return int(np.count_nonzero(left.view(bits) != np.ascontiguousarray(right).view(bits)))


def _block_type(scale: Array | None) -> str | None:
    return None if scale is None or scale.dtype == np.float32 else scale_type(scale)


def _rows_of(scale: Array | None, chosen: npt.NDArray[Any], axis: int) -> Array | None:
    if scale is None or scale.ndim < 2 or scale.shape[axis] == 1:
        return scale
    return np.ascontiguousarray(np.take(scale, chosen, axis=axis))


def _instructions(
    a: Array, b: Array, arch: str, instruction: str | Instruction | None, scale_a: Array | None
) -> Iterator[tuple[Instruction, str | None]]:
    """Instructions that take the operands, and what they are converted to for that."""
    types, scales = (operand_type(a, "a"), operand_type(b, "b")), _block_type(scale_a)
    if instruction is not None:
        yield resolve(instruction, arch=arch, a_type=types[0], b_type=types[1], scale_type=scales), None
        return
    is_fp8 = scales is None and set(types) <= {"e4m3", "e5m2"}
    tried: list[tuple[tuple[str, str], str | None, str | None]] = [(types, accumulator, None) for accumulator in (None, "f16")]
    tried += [((name, name), None, name) for name in WORKSPACES if is_fp8]  # libraries without a product of FP8 convert first
    for (pair, accumulator, converted), family in product(tried, NEWEST_FIRST):
        try:
            row = resolve(str(family), arch=arch, a_type=pair[0], b_type=pair[1], c_type=accumulator, scale_type=scales)
            lower(row, arch)
        except (UnsupportedInstruction, UnknownInstruction):
            continue
        yield row, converted


def _candidates(
    a: Array, b: Array, arch: str, instruction: str | Instruction | None, scale_a: Array | None, workspace: str | None
) -> Iterator[tuple[TriedSchedule, ...]]:
    """Schedules in groups that share their partial sums."""
    k = a.shape[1]
    rows = tuple(_instructions(a, b, arch, instruction, scale_a))
    if all(converted is not None for _, converted in rows):
        library_instruction(arch, operand_type(a, "a"), operand_type(b, "b"), scale_type=_block_type(scale_a))  # says what is missing
    for row, converted in rows:
        is_rounded = lower(row, arch).datapath.arithmetic in (Arithmetic.FUSED, Arithmetic.GROUPED)
        promoted = [every for every in PROMOTIONS if is_rounded and converted is None and every < k and every % row.k == 0]
        for every, split in product((None, *promoted), SPLITS):
            cuts = panels(k, row, split)
            if split > 1 and (row.d_type.is_integer or len(cuts) != split or (every is not None and every >= cuts[0].stop)):
                continue
            yield tuple(
                TriedSchedule(
                    instruction=row, promote_every=every, split_k=split, order=order, workspace=kept, keeps_total=keeps_total,
                    converted=converted,
                )
                for order, kept, keeps_total in _additions(split, workspace)
            )  # fmt: skip


def _additions(split: int, workspace: str | None) -> Iterator[tuple[Order, str | None, bool]]:
    """(order, workspace, keeps_total) of sums of so many parts that need not be the same."""
    if split == 1:
        yield Order.FORWARD, None, False
        return
    # Of two parts every order gives one sum, of three neighbours are added as in order; a total that is rounded knows which came first.
    orders = [order for order, least in _LEAST_PARTS.items() if split >= least]
    for order in orders:
        yield order, None, False
        if workspace is not None:
            yield order, workspace, False
    if workspace is not None:
        yield Order.FORWARD, workspace, True
        yield Order.REVERSE, workspace, True


_LEAST_PARTS: Final = {Order.FORWARD: 2, Order.REVERSE: 3, Order.NEIGHBOURS: 4, Order.HALVES: 3}
"""Parts from which an order can give a sum that those above it do not."""


def panels(k: int, row: Instruction, split: int) -> list[slice]:
    """The parts of K; fewer than asked for where K has too few instructions.

    Args:
        k: elements of K.
        row: the instruction.
        split: how many parts.
    """
    # A part ends where a block of scales does, and an instruction's K is a whole number of blocks.
    instructions = math.ceil(k / row.k)
    size = math.ceil(instructions / split) * row.k
    return [slice(start, min(start + size, k)) for start in range(0, k, size)]


def _parts(a: Array, b: Array, plan: TriedSchedule, arch: str, scale_a: Array | None, scale_b: Array | None) -> list[Array]:
    """The sum of every part of K."""
    parts = []
    for panel in panels(a.shape[1], plan.instruction, plan.split_k):
        scales: dict[str, Any] = {}
        if scale_a is not None and scale_b is not None and plan.instruction.block:
            blocks = slice(panel.start // plan.instruction.block, -(-panel.stop // plan.instruction.block))
            scales = {"scale_a": scale_a[:, blocks], "scale_b": scale_b[blocks]}
        left, right = plan.operand(np.ascontiguousarray(a[:, panel])), plan.operand(np.ascontiguousarray(b[panel]))
        parts.append(gemm(left, right, instruction=plan.instruction, arch=arch, promote_every=plan.promote_every, **scales))
    return parts


def add_parts(parts: Sequence[Array], plan: TriedSchedule) -> Array:
    """The sum of the parts of K, as a schedule adds them.

    Args:
        parts: the sum of each part, from the first along K to the last, all of one shape and type.
        plan: says how they are added and what they are rounded to.

    Returns:
        The same shape: in f32 or the parts' wider type; of a single part, that part.
    """
    if len(parts) == 1:
        return parts[0]
    kind = np.promote_types(parts[0].dtype, np.float32) if parts[0].dtype.kind == "f" else parts[0].dtype
    kept = None if plan.workspace is None else WORKSPACES[plan.workspace]

    def rounded(value: Array) -> Array:
        return value if kept is None else value.astype(kept).astype(kind)

    with np.errstate(all="ignore"):
        held = [part.astype(kind) if plan.keeps_total else rounded(part.astype(kind)) for part in parts]
        if plan.order.is_tree:
            return _tree(held, plan.order)
        first, *others = reversed(held) if plan.reverse else held
        total = rounded(first)
        for part in others:
            total = rounded(total + part) if plan.keeps_total else total + part
    return total


def _tree(held: list[Array], order: Order) -> Array:
    while len(held) > 1:
        half = -(-len(held) // 2)
        if order is Order.HALVES:
            held = [held[at] + held[at + half] if at + half < len(held) else held[at] for at in range(half)]
        else:
            held = [held[at] + held[at + 1] if at + 1 < len(held) else held[at] for at in range(0, len(held), 2)]
    return held[0]


def _finished(product: Array, scale_a: Array | None, scale_b: Array | None, dtype: npt.DTypeLike | None) -> Array:
    """The epilogue: f32 factors as PyTorch applies them, then one rounding."""
    with np.errstate(all="ignore"):
        if scale_a is not None and scale_b is not None and scale_a.dtype == scale_b.dtype == np.float32:
            if scale_a.size == scale_b.size == 1:
                product = product * np.float32(scale_a.reshape(-1)[0] * scale_b.reshape(-1)[0])
            else:
                product = product * scale_a * scale_b
        return product if dtype is None else product.astype(dtype)
