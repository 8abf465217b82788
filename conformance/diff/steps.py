"""Along K: what one element's sum is after every step of a schedule, and where two schedules part.

A result shows only the end of a sum. Where a schedule gives the result's bits, the step at which it parts from the emulated one can be
told; where none does, only that every step up to the end stays possible.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmabits.conformance.diff.schedules import Schedule, _panels
from mmabits.conformance.explain import explain
from mmabits.conformance.pages.charts import Line, Mark, lines
from mmabits.conformance.trace import Addition, Step, Trace
from mmabits.isa import OperandError

if TYPE_CHECKING:
    from mmabits.conformance.explain import Explanation

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Point:
    """The sum when `k` elements of K have been taken."""

    k: int
    value: Fraction
    """Everything added so far: totals outside the chain, and the chain."""
    exact: Fraction
    """The exact sum of the same elements."""

    @property
    def error(self) -> Fraction:
        """What has been lost so far, with its sign."""
        return self.value - self.exact


@dataclass(frozen=True, kw_only=True)
class Course:
    """One element by one schedule. Its parts of K are laid end to end, in the order in which they are added."""

    schedule: Schedule
    arch: str
    row: int
    column: int
    points: tuple[Point, ...]
    """One for each k at which a step ended, the last state there; a step with an infinity or NaN ends them."""
    steps: int
    """Fused steps, all told."""

    @property
    def is_complete(self) -> bool:
        """Whether every step had a finite sum."""
        return self.steps == 0 or (bool(self.points) and self.points[-1].k >= 0 and not self._broken)

    _broken: bool = False


@dataclass(frozen=True, kw_only=True)
class Parting:
    """Where two courses of one element first have different sums."""

    step: int
    """Of the first course, from 0."""
    k: tuple[int, int]
    """Elements of K taken before that step, and after it."""
    first: Fraction
    """The first course's sum there."""
    second: Fraction

    def __str__(self) -> str:
        return f"they part in step {self.step}, elements {self.k[0]} to {self.k[1] - 1} of K: {float(self.first):.9g}, {float(self.second):.9g}"


def course(
    a: Array, b: Array, *, schedule: Schedule, arch: str, row: int, column: int, scale_a: Array | None = None, scale_b: Array | None = None
) -> Course:
    """Follow one element through a schedule.

    Args:
        a: (M, K), dtypes as for `mmabits.gemm`.
        b: (K, N).
        schedule: the instruction and the order of additions.
        arch: `"sm_90a"` and so on, or a what-if.
        row: which row of the product.
        column: which column.
        scale_a: (M, K / block) block scales of the instruction; factors of the finished product have no place here.
        scale_b: (K / block, N).

    Raises:
        OperandError: no such row or column.
        MmabitsError: as `mmabits.gemm`.
    """
    if not (0 <= row < a.shape[0] and 0 <= column < b.shape[-1]):
        raise OperandError(f"element [{row}, {column}] of a product of {a.shape[0]} x {b.shape[-1]}")
    panels = _panels(a.shape[1], schedule.instruction, schedule.split_k)
    points: list[Point] = []
    outside, exact, taken, steps, is_broken = Fraction(0), Fraction(0), 0, 0, False
    held = np.float32(0)
    for number, panel in enumerate(reversed(panels) if schedule.reverse else panels):
        found = _panel(a, b, panel, schedule, arch, row, column, scale_a, scale_b).trace
        steps += len(found.steps)
        if is_broken:
            continue
        for k, value, part in _states(found, panel.stop - panel.start):
            points.append(Point(k=taken + k, value=outside + value, exact=exact + part))
        is_broken = found.exact is None or found.result.value is None
        if is_broken:
            continue
        with np.errstate(all="ignore"):
            held = (
                np.float32(float(found.result.value or 0)) if number == 0 else np.float32(held + np.float32(float(found.result.value or 0)))
            )
        outside, exact, taken = _fraction(held, found, is_first=number == 0), exact + (found.exact or 0), taken + panel.stop - panel.start
        if number:
            points.append(Point(k=taken, value=outside, exact=exact))
    return Course(
        schedule=schedule, arch=arch, row=row, column=column, points=tuple(_last_of_each(points)), steps=steps, _broken=is_broken
    )  # fmt: skip


def _fraction(held: np.float32, found: Trace, *, is_first: bool) -> Fraction:
    """A sum as a fraction: of a single part in its own type, which may be wider than f32."""
    if is_first and found.result.value is not None:
        return found.result.value
    return Fraction(float(held))


def _panel(
    a: Array, b: Array, panel: slice, schedule: Schedule, arch: str, row: int, column: int, scale_a: Array | None, scale_b: Array | None
) -> Explanation:
    scales: dict[str, Array] = {}
    block = schedule.instruction.block
    if block and scale_a is not None and scale_b is not None:
        blocks = slice(panel.start // block, -(-panel.stop // block))
        scales = {"scale_a": scale_a[row : row + 1, blocks], "scale_b": np.ascontiguousarray(scale_b[blocks, column : column + 1])}
    left, right = np.ascontiguousarray(a[row : row + 1, panel]), np.ascontiguousarray(b[panel, column : column + 1])
    return explain(left, right, instruction=schedule.instruction, arch=arch, promote_every=schedule.promote_every, **scales)


def _states(found: Trace, size: int) -> Iterator[tuple[int, Fraction, Fraction]]:
    """(elements taken, sum, exact sum of those) after every event; up to the first that is not finite."""
    total, exact, taken = Fraction(0), Fraction(0), 0
    for event in found.events:
        if event.result.value is None:
            return
        if isinstance(event, Addition):
            total = event.result.value
            yield taken, total, exact
            continue
        if event.special:
            return
        exact += sum((term.value for term in event.terms if term.kind != "accumulator"), Fraction(0))
        taken = min(taken + len(event.k), size)
        yield taken, _outside(found, event, total) + event.result.value, exact


def _outside(found: Trace, step: Step, total: Fraction) -> Fraction:
    """What has been added up apart from the chain."""
    return total if found.promote_every or found.lowering.separate_add else Fraction(0)


def _last_of_each(points: Sequence[Point]) -> Iterator[Point]:
    for now, then in zip(points, [*points[1:], None], strict=True):
        if then is None or then.k != now.k:
            yield now


def parting(first: Course, second: Course) -> Parting | None:
    """The first k that both courses reach with different sums; None where there is none, or where they take K in different order.

    Args:
        first: as emulated.
        second: the same element by a schedule that gives the hardware's bits.

    Raises:
        OperandError: courses of different elements.
    """
    if (first.row, first.column) != (second.row, second.column):
        raise OperandError(f"courses of different elements: [{first.row}, {first.column}] and [{second.row}, {second.column}]")
    other = {point.k: point for point in second.points}
    before = 0
    for number, point in enumerate(first.points):
        there = other.get(point.k)
        if there is None:
            continue
        if there.exact != point.exact:
            return None
        if there.value != point.value:
            return Parting(step=number, k=(before, point.k), first=point.value, second=there.value)
        before = point.k
    return None


def error_chart(courses: Sequence[Course], *, split: Parting | None = None) -> str:
    """The error against K of one element, in ulp of the largest sum's f32, as SVG; empty where no step had a finite sum.

    Args:
        courses: the same element by one schedule or more.
        split: where two of them part, to be marked.
    """
    shown = [one for one in courses if one.points]
    if not shown:
        return ""
    most = max(abs(point.exact) for one in shown for point in one.points)
    unit = Fraction(2) ** (_exponent(most) - 23)
    drawn = [
        Line(
            label=one.schedule.words, x=(0.0, *(float(point.k) for point in one.points)),
            y=(0.0, *(float(point.error / unit) for point in one.points)),
        )
        for one in shown
    ]  # fmt: skip
    marks = () if split is None else (Mark(x=float(split.k[1]), label=f"they part at K = {split.k[1]}"),)
    return lines(
        drawn,
        x_label="elements of K taken",
        y_label="error, in f32 ulp of the largest sum on the way",
        label="error against K",
        marks=marks,
    )


def _exponent(value: Fraction) -> int:
    """floor(log2); -126 for what is smaller than the smallest normal f32."""
    if not value:
        return -126
    guess = value.numerator.bit_length() - value.denominator.bit_length()
    return max(guess if Fraction(2) ** guess <= value else guess - 1, -126)
