"""A product by a schedule: slices of K, each summed as the schedule says, and merged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.codecs import canonical_nan
from mmabits.emulator.engine.fma import canonical
from mmabits.emulator.schedules.schedule import Schedule
from mmabits.emulator.schedules.sums import Chains, Merge
from mmabits.isa import OperandError, format_spec

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

NARROW: Final[dict[str, np.dtype[Any]]] = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
"""What sums and results are rounded to."""


def sums(schedule: Schedule, a: Array, b: Array, part: Callable[[Array, Array], Floats], *, bugs: bool) -> Floats:
    """A B in f32, before the result is scaled and rounded.

    Args:
        schedule: says how slices are cut and merged.
        a: (..., M, K), K at least 1.
        b: (..., K, N).
        part: the sum of one slice.
        bugs: whether K's lost tail is lost.
    """
    first, *others = schedule.panels(a.shape[-1], bugs=bugs)
    total = merged(schedule, None, part(a[..., first], b[..., first, :]))
    for panel in others:
        total = merged(schedule, total, part(a[..., panel], b[..., panel, :]))
    return canonical(total)


def merged(schedule: Schedule, total: Floats | None, part: Floats) -> Floats:
    """The total with one slice more."""
    kept = None if schedule.merge_type is None else NARROW[schedule.merge_type]
    with np.errstate(all="ignore"):
        if schedule.merge is Merge.PARTS:
            part = part.astype(kept).astype(np.float32)
        found = part if total is None else total + part
        return found.astype(kept).astype(np.float32) if schedule.merge is Merge.TOTAL else found


def packed(sums: Chains, a: Array, b: Array, group_of: int) -> tuple[Array, Array]:
    """Operands with zeros between the groups, so that each instruction of a chain gets what the schedule gives it.

    Raises:
        OperandError: groups longer than the instruction.
    """
    group = sums.group or group_of
    if group > group_of:
        raise OperandError(f"the schedule gives an instruction {group} elements of K, and this one takes {group_of}")
    k = a.shape[-1]
    lead = k % sums.lead_block if sums.lead_block else 0
    if group == group_of and lead % group == 0:
        return a, b
    starts = [*range(0, lead, group), *range(lead, k, group)] if group < group_of else [0, lead]
    ends = [*starts[1:], k]
    return _spread(a, starts, ends, group_of, a.ndim - 1), _spread(b, starts, ends, group_of, b.ndim - 2)


def _spread(array: Array, starts: list[int], ends: list[int], group_of: int, axis: int) -> Array:
    """Pieces of an axis one after another, each filled up with zeros to a multiple of `group_of`."""
    sizes = [-(-(end - start) // group_of) * group_of for start, end in zip(starts, ends, strict=True)]
    shape = list(array.shape)
    shape[axis] = sum(sizes)
    spread, at = np.zeros(shape, array.dtype), 0
    along = [slice(None)] * array.ndim
    for start, end, size in zip(starts, ends, sizes, strict=True):
        to, of = along.copy(), along.copy()
        to[axis], of[axis] = slice(at, at + end - start), slice(start, end)
        spread[tuple(to)] = array[tuple(of)]
        at += size
    return spread


def rounded(values: Floats, output: str | None) -> Array:
    """A result in its type, NaN as GPUs store it."""
    if output is None:
        return values
    with np.errstate(all="ignore"):
        result = values.astype(NARROW[output])
    result.view(np.uint16)[np.isnan(values)] = canonical_nan(format_spec(output))
    return result
