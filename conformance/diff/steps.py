"""Along K: what the sum of an element is after every step of a schedule, where two schedules part, and what a result tells of it.

A result shows only the end of a sum. Where another schedule gives every bit, the step at which it parts from the emulated one can be
told, element by element; where none does, only which steps come too late to make the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.conformance.diff.comparison import Detail
from mmabits.conformance.diff.schedules import Fit, TriedSchedule, add_parts, panels, recompute
from mmabits.emulator.codecs import from_codes
from mmabits.isa import Arithmetic, DatapathSpec, FormatSpec, OperandError
from mmabits.reports.pages.charts import Bar, Line, Mark, bars, lines
from mmabits.reports.pages.report import Block, ChartBlock, NoteBlock, Section
from mmabits.research.explain import explain
from mmabits.research.trace import Addition, DecodedNumber, Step, Trace

Array = npt.NDArray[Any]

SAMPLED: Final = 32
"""Differing elements that are followed along K, at most."""
FOLLOWED: Final = 1 << 16
"""Elements of K that are followed for all of them together, at most: exact arithmetic takes its time."""
BARS: Final = 16
"""Of a histogram along K, at most."""
_ALLOWANCE: Final = 4
"""Both sums lose, and the other one's largest exponent may be one higher."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """The sum when `k` elements of K have been taken."""

    k: int
    step: int
    """Fused steps before it, all told."""
    value: Fraction
    """Everything summed so far: finished parts of K, totals outside the chain, and the chain."""
    exact: Fraction
    """The exact sum of the same elements."""

    @property
    def error(self) -> Fraction:
        """What has been lost so far: the sum less the exact one."""
        return self.value - self.exact


@dataclass(frozen=True, kw_only=True)
class Course:
    """One element by one schedule: K from its first element to its last, then the sum of the parts where K is split."""

    schedule: TriedSchedule
    arch: str
    row: int
    column: int
    k: int
    """Elements of K."""
    points: tuple[Point, ...]
    """One for each k at which a step ended, as long as sums are finite; after a promotion at that k, the state behind it."""
    stops: int | None
    """Elements taken when a sum was first infinite or NaN; None: never."""
    end: Fraction | None
    """After the parts are added, before factors and the rounding of the result; None where that is not finite."""
    traces: tuple[Trace, ...]
    """Of each part of K."""

    @property
    def steps(self) -> int:
        """Fused steps, all told."""
        return sum(len(part.steps) for part in self.traces)

    @property
    def exact(self) -> Fraction | None:
        """The exact sum over all of K; None where some operand is infinite or NaN."""
        parts = [part.exact for part in self.traces]
        return None if None in parts else sum((part for part in parts if part is not None), Fraction(0))


@dataclass(frozen=True, kw_only=True)
class Parting:
    """Where two courses of one element first have different sums."""

    k: tuple[int, int]
    """Elements of K taken where the sums were last seen equal, and where they differ; of a sum of parts: all, twice."""
    step: int | None
    """The step of the first course that ends there, from 0; None: after the last."""
    first: Fraction | None
    """The first course's sum there; None: infinite or NaN."""
    second: Fraction | None

    @property
    def is_after_k(self) -> bool:
        """Whether all steps agree and the additions of the parts do not."""
        return self.step is None

    def __str__(self) -> str:
        sums = ", ".join("not finite" if value is None else f"{float(value):.9g}" for value in (self.first, self.second))
        if self.is_after_k:
            return f"they part when the parts of K are added: {sums}"
        return f"they part in step {self.step}, which ends at k = {self.k[1] - 1}: {sums}"


def course(
    a: Array,
    b: Array,
    *,
    schedule: TriedSchedule,
    arch: str,
    row: int,
    column: int,
    scale_a: Array | None = None,
    scale_b: Array | None = None,
) -> Course:
    """Follow one element through a schedule, exactly.

    Args:
        a: (M, K), dtypes as for `mmabits.gemm`.
        b: (K, N).
        schedule: the instruction and the order of additions.
        arch: `"sm_90a"` and so on, or a what-if.
        row: which row of the product.
        column: which column.
        scale_a: (M, K / block) block scales of the instruction; of another instruction's product they are not looked at.
        scale_b: (K / block, N).

    Raises:
        OperandError: no such row or column.
        MmabitsError: as `mmabits.gemm`.
    """
    if not (0 <= row < a.shape[0] and 0 <= column < b.shape[-1]):
        raise OperandError(f"element [{row}, {column}] of a product of {a.shape[0]} x {b.shape[-1]}")
    parts = panels(a.shape[1], schedule.instruction, schedule.split_k)
    scales = (scale_a, scale_b)
    traces = tuple(_part(a, b, part, schedule, arch, row, column, scales) for part in parts)
    return _course(traces, parts, schedule, arch, row, column)


def traced_course(found: Trace, *, k: int, row: int = 0, column: int = 0) -> Course:
    """The course of a chain that has been traced already, its C included.

    Args:
        found: the chain.
        k: elements of K; a trace may have been filled up with zeros.
        row: the element's, for `parting`.
        column: likewise.
    """
    return _course((found,), [slice(0, k)], TriedSchedule(instruction=found.instruction), found.arch, row, column)


def _course(traces: tuple[Trace, ...], parts: Sequence[slice], schedule: TriedSchedule, arch: str, row: int, column: int) -> Course:
    points, stops = _walk(traces, parts)
    return Course(
        schedule=schedule, arch=arch, row=row, column=column, k=parts[-1].stop, points=tuple(_last_at_each_k(points)), stops=stops,
        end=_end(traces, schedule), traces=traces,
    )  # fmt: skip


def _part(
    a: Array, b: Array, part: slice, schedule: TriedSchedule, arch: str, row: int, column: int, scales: tuple[Array | None, Array | None]
) -> Trace:
    given: dict[str, Any] = {}
    block = schedule.instruction.block
    if block and scales[0] is not None and scales[1] is not None:
        blocks = slice(part.start // block, -(-part.stop // block))
        given = {"scale_a": scales[0][row : row + 1, blocks], "scale_b": np.ascontiguousarray(scales[1][blocks, column : column + 1])}
    left, right = np.ascontiguousarray(a[row : row + 1, part]), np.ascontiguousarray(b[part, column : column + 1])
    left, right = schedule.operand(left), schedule.operand(right)
    return explain(left, right, instruction=schedule.instruction, arch=arch, promote_every=schedule.promote_every, **given).trace


def _walk(traces: Sequence[Trace], parts: Sequence[slice]) -> tuple[list[Point], int | None]:
    """Every state along K, and where sums stop being finite."""
    points: list[Point] = []
    done, exact, steps = Fraction(0), Fraction(0), 0
    for found, part in zip(traces, parts, strict=True):
        for state in _states(found, part.stop - part.start):
            if state.value is None:
                return points, part.start + state.k
            points.append(Point(k=part.start + state.k, step=steps + state.step, value=done + state.value, exact=exact + state.exact))
        done, exact, steps = points[-1].value, points[-1].exact, steps + len(found.steps)
    return points, None


@dataclass(frozen=True, kw_only=True)
class _State:
    k: int
    step: int
    value: Fraction | None
    exact: Fraction


def _states(found: Trace, size: int) -> Iterator[_State]:
    """The state after every event of one part of K, up to the first that is not finite."""
    held = found.c.value or Fraction(0)  # of an infinite C no sum is finite
    total = held if found.promote_every else Fraction(0)
    outer = held if found.lowering.separate_add and not found.promote_every else Fraction(0)
    exact, taken, number = held, 0, 0
    is_after_step = False
    for event in found.events:
        value = event.result.value
        if isinstance(event, Step):
            taken, number = min(taken + len(event.k), size), event.number
            if found.c.value is None:
                value = None
            if value is not None and not event.special:
                exact += sum((term.value for term in event.terms if term.kind != "accumulator"), Fraction(0))
                value = total + outer + value
        elif value is not None and found.lowering.separate_add and is_after_step:
            # The instruction adds what the others before it gave; a promotion may follow.
            outer = value
            value = total + outer
        elif value is not None:
            total, outer = value, Fraction(0)
        is_after_step = isinstance(event, Step)
        yield _State(k=taken, step=number, value=value, exact=exact)
        if value is None:
            return


def _last_at_each_k(points: Sequence[Point]) -> Iterator[Point]:
    for now, then in zip(points, [*points[1:], *([None] if points else [])], strict=True):
        if then is None or then.k != now.k:
            yield now


def _end(traces: Sequence[Trace], schedule: TriedSchedule) -> Fraction | None:
    """The sum of the parts."""
    if len(traces) == 1:
        return traces[0].result.value
    with np.errstate(all="ignore"):
        total = float(add_parts([_element(part.result) for part in traces], schedule)[0, 0])
    return Fraction(total) if np.isfinite(total) else None


def _element(number: DecodedNumber) -> Array:
    return from_codes(np.array([[number.code]], dtype=f"uint{number.form.container_bits}"), number.form)


def parting(first: Course, second: Course) -> Parting | None:
    """Where two courses first have different sums; None where they never do.

    Sums are compared where both have taken the same elements of K: at the ends of steps, or of instructions where their steps differ.

    Args:
        first: as emulated.
        second: the same element by another schedule.

    Raises:
        OperandError: courses of different elements.
    """
    if (first.row, first.column, first.k) != (second.row, second.column, second.k):
        raise OperandError(f"courses of different elements: [{first.row}, {first.column}] and [{second.row}, {second.column}]")
    other = {point.k: point for point in second.points}
    before = 0
    for point in first.points:
        there = other.get(point.k)
        if there is None:
            if second.stops is not None and point.k >= second.stops:
                return Parting(k=(before, point.k), step=point.step, first=point.value, second=None)
            continue
        if there.exact != point.exact:  # other elements of K: the two take those of an instruction in different order
            continue
        if there.value != point.value:
            return Parting(k=(before, point.k), step=point.step, first=point.value, second=there.value)
        before = point.k
    late = next((point for point in second.points if first.stops is not None and point.k >= first.stops), None)
    if late is not None:
        return Parting(k=(before, late.k), step=first.points[-1].step + 1 if first.points else 0, first=None, second=late.value)
    if first.end != second.end:
        return Parting(k=(first.k, first.k), step=None, first=first.end, second=second.end)
    return None


def latest_step(found: Trace, recorded: Fraction) -> int | None:
    """The last step at which a sum that ends in `recorded` can have parted from a traced one; None where nothing can be said.

    Taken for granted is that the other sum has the same steps and loses no more in each than this datapath can: all that alignment
    and rounding cut off, for both, and their largest exponents at most one apart.

    Args:
        found: one chain over all of K, as emulated.
        recorded: what the other sum ended in, in the accumulator's type.

    Returns:
        The number of the step; -1 where not even all of them together make the difference.
    """
    if found.result.value is None or not found.steps:
        return None
    missing = abs(recorded - found.result.value)
    for event in reversed(found.events):
        missing -= _ALLOWANCE * _loss_of(event, found.datapath)
        if isinstance(event, Step) and missing <= 0:
            return event.number
    return -1


def _loss_of(event: Step | Addition, path: DatapathSpec) -> Fraction:
    """What an event can cut off, at most."""
    form = event.result.form
    if form.is_integer:
        return Fraction(0)
    if isinstance(event, Addition) or path.arithmetic is Arithmetic.FMA_CHAIN:
        return Fraction(2) ** (event.result.exponent - form.fraction_bits)
    kept = form.fraction_bits if path.result_fraction_bits is None else path.result_fraction_bits
    last_place = Fraction(2) ** event.last_place
    return len(event.terms) * last_place + max(last_place, Fraction(2) ** (event.result.exponent - kept))


# A whole result ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Followed:
    """One differing element."""

    row: int
    column: int
    parting: Parting | None = None
    """From the schedule that fits; None where there is none, or where the two never have different sums."""
    latest: int | None = None
    """Where none fits: `latest_step`."""

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        at = self.parting
        return {
            "row": self.row, "column": self.column, "equal_until_k": None if at is None else at.k[0],
            "parts_by_k": None if at is None else at.k[1], "step": None if at is None else at.step, "latest_step": self.latest,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AlongK(Detail):
    """What a differing result tells of the steps along K."""

    arch: str
    k: int
    differing: int
    """Elements of the result."""
    schedule: TriedSchedule
    """As emulated."""
    fitting: TriedSchedule | None
    """The simplest that gives every bit; None: none of those tried."""
    followed: tuple[Followed, ...]
    """A sample of the differing elements, evenly over all of them, the first included."""
    courses: tuple[Course, ...]
    """Of the first differing element: as emulated, and by the schedule that fits."""
    recorded: Fraction | None
    """What that element is in the recording; None where it is not the accumulator itself (factors, a narrower type) or not finite."""

    @property
    def split(self) -> Parting | None:
        """Where the two courses of the first element part."""
        return self.followed[0].parting if self.followed else None

    @property
    def histogram(self) -> tuple[tuple[str, int], ...]:
        """Followed elements by where the schedules part, in the order of K; empty where none fits."""
        if self.fitting is None:
            return ()
        partings = [one.parting for one in self.followed]
        inside = [at.k[1] - 1 for at in partings if at is not None and not at.is_after_k]
        found = list(binned(inside, size=self.k, unit=self._unit))
        after, never = sum(at is not None and at.is_after_k for at in partings), sum(at is None for at in partings)
        if self.schedule.split_k > 1 or self.fitting.split_k > 1 or after:
            found.append(("sum of the parts", after))
        return (*found, ("never seen apart", never)) if never else tuple(found)

    @property
    def _unit(self) -> int:
        """Elements of K in an instruction."""
        return max(self.schedule.instruction.k, 0 if self.fitting is None else self.fitting.instruction.k)

    @property
    def words(self) -> tuple[str, ...]:
        """Sentences: what was followed, and what came of it."""
        return tuple(_words(self))

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        found = {
            "differing": self.differing, "followed": [one.as_json for one in self.followed],
            "fitting": None if self.fitting is None else self.fitting.words,
            "histogram": [{"where": where, "elements": count} for where, count in self.histogram], "words": list(self.words),
        }  # fmt: skip
        return {"along_k": found}

    def lines(self) -> Iterator[str]:
        """The sentences."""
        yield from ("", "along K:", *(f"  {sentence}" for sentence in self.words))

    def sections(self) -> Iterator[Section]:
        """The sentences, the error of the first element against K, and where the elements part."""
        blocks: list[Block] = [NoteBlock(text=line) for line in self.words]
        chart, first = error_chart(self), self.followed[0]
        if chart:
            text = f"Element [{first.row}, {first.column}], before factors and the rounding of the result: the sum so far less the exact"
            text += f" sum of the same elements. Emulated: {self.schedule.words}."
            if self.fitting is not None:
                text += f" The schedule that fits: {self.fitting.words}; parts of K stand end to end."
            elif self.recorded is not None:
                text += " The dot at the end is what was recorded."
            blocks.append(ChartBlock(svg=chart, caption=text))
        parts = parting_chart(self)
        if parts:
            caption = "The elements that were followed, by the elements of K in which the two schedules first have different sums."
            blocks.append(ChartBlock(svg=parts, caption=caption))
        yield Section(title="Along K", blocks=tuple(blocks))


def binned(places: Sequence[int], *, size: int, unit: int, name: str = "k = ") -> Iterator[tuple[str, int]]:
    """Places along K counted in bins of whole units, `BARS` at most; neighbouring bins without any become one.

    Args:
        places: from 0 to `size` - 1.
        size: elements of K.
        unit: elements of K that stay together.
        name: begins each label.
    """
    width = unit * max(1, -(-size // (unit * BARS)))
    start = 0
    for first in range(0, size, width):
        count, after = (sum(low <= place < low + width for place in places) for low in (first, first + width))
        is_last = first + width >= size
        if count or after or is_last:
            last = min(first + width, size) - 1
            yield (f"{name}{start} to {last}" if start < last else f"{name}{start}"), count
            start = first + width


def along_k(
    a: Array, b: Array, result: Array, *, schedule: TriedSchedule, arch: str, fits: Sequence[Fit] = (), scale_a: Array | None = None,
    scale_b: Array | None = None,
) -> AlongK | None:  # fmt: skip
    """Where along K a result parts from the emulated one, as far as it can be told.

    Args:
        a: (M, K), dtypes as for `mmabits.gemm`.
        b: (K, N).
        result: (M, N) as a GPU or a framework gave it.
        schedule: as emulated.
        arch: whose arithmetic.
        fits: of `fitting_schedules`, the best first.
        scale_a: as for `recompute`.
        scale_b: as for `recompute`.

    Returns:
        What can be told; None where every bit is equal.

    Raises:
        MmabitsError: as `mmabits.gemm`; OperandError for a result of another shape.
    """
    if result.shape != (a.shape[0], b.shape[-1]):
        raise OperandError(f"the product of {a.shape} and {b.shape} has shape {(a.shape[0], b.shape[-1])}, got a result {result.shape}")
    emulated = recompute(a, b, schedule=schedule, arch=arch, scale_a=scale_a, scale_b=scale_b, dtype=result.dtype)
    bits = f"uint{8 * result.dtype.itemsize}"
    places = np.argwhere(np.ascontiguousarray(result).view(bits) != np.ascontiguousarray(emulated).view(bits))
    if not len(places):
        return None
    fitting = fits[0].schedule if fits and fits[0].differing == 0 else None
    plans = (schedule,) if fitting is None else (schedule, fitting)
    held = _accumulators(result, schedule, scale_a)
    followed: list[Followed] = []
    shown: tuple[Course, ...] = ()
    count = max(1, min(SAMPLED, FOLLOWED // a.shape[1], len(places)))
    for row, column in places[np.linspace(0, len(places) - 1, count).astype(int)].tolist():
        at: dict[str, Any] = {"arch": arch, "row": row, "column": column, "scale_a": scale_a, "scale_b": scale_b}
        courses = tuple(course(a, b, schedule=plan, **at) for plan in plans)
        shown = shown or courses
        if fitting is not None:
            followed.append(Followed(row=row, column=column, parting=parting(*courses)))
        else:
            followed.append(Followed(row=row, column=column, latest=_latest(courses[0], _exact_value(held, row, column))))
    return AlongK(
        arch=arch, k=a.shape[1], differing=len(places), schedule=schedule, fitting=fitting, followed=tuple(followed), courses=shown,
        recorded=_exact_value(held, followed[0].row, followed[0].column),
    )  # fmt: skip


def _accumulators(result: Array, schedule: TriedSchedule, scale_a: Array | None) -> Array | None:
    """The result where its elements are accumulators as the instruction left them."""
    form = schedule.instruction.d_type
    is_scaled = scale_a is not None and schedule.instruction.block is None
    return None if is_scaled or 8 * result.dtype.itemsize != form.container_bits else result


def _exact_value(held: Array | None, row: int, column: int) -> Fraction | None:
    return None if held is None or not np.isfinite(held[row, column]) else Fraction(held[row, column].item())


def _latest(emulated: Course, recorded: Fraction | None) -> int | None:
    return None if recorded is None or len(emulated.traces) > 1 else latest_step(emulated.traces[0], recorded)


def _words(along: AlongK) -> Iterator[str]:
    count = len(along.followed)
    sample = f"{count:,} of {along.differing:,} differing elements" if count < along.differing else f"all differing elements, {count:,}"
    if along.fitting is not None:
        yield f"Followed exactly, as emulated and by the schedule that gives every bit ({along.fitting.words}): {sample}."
        yield from _where(along)
        return
    yield "No schedule that was tried gives every bit. A result shows only the end of a sum, so it does not tell which step differs."
    if all(one.latest is None for one in along.followed):
        yield "Nor is the step bounded: the result is not the accumulator itself, or a sum is not finite."
        return
    yield f"Followed exactly, as emulated: {sample}."
    yield from bounds([one.latest for one in along.followed], along.courses[0].steps)


def _where(along: AlongK) -> Iterator[str]:
    seen = [one.parting for one in along.followed if one.parting is not None]
    inside = [at.k[1] for at in seen if not at.is_after_k]
    yield from first_seen(inside)
    after = len(seen) - len(inside)
    if after:
        yield f"The same sum after every step, and another once the parts of K are added up: {after:,}."
    if len(seen) < len(along.followed):
        hidden = len(along.followed) - len(seen)
        yield f"Not seen apart, since the two take K in different order within an instruction or both end in no number: {hidden:,}."


def first_seen(ends: Sequence[int]) -> Iterator[str]:
    """In which steps sums differ first, in a sentence.

    Args:
        ends: elements of K taken where each is seen to.
    """
    if ends:
        first, last = min(ends) - 1, max(ends) - 1
        span = f"the step that ends at k = {first}" if first == last else f"steps that end at k = {first} to {last}"
        yield f"Sums first seen to differ in {span}: {len(ends):,}."


def bounds(latest: Sequence[int | None], steps: int) -> Iterator[str]:
    """What the size of the differences tells, in sentences.

    Args:
        latest: `latest_step` of each element; None where it could not be told.
        steps: how many there are.
    """
    told = [step for step in latest if step is not None]
    late, sooner = told.count(steps - 1), [step for step in told if 0 <= step < steps - 1]
    if late:
        yield f"So small a difference that the last step alone could make it: {late:,}."
    if sooner:
        yield (
            f"Parted before the last step, if the hardware loses no more in a step than this datapath can: {len(sooner):,}, "
            f"the first of them in step {min(sooner)} of 0 to {steps - 1} at the latest."
        )
    if -1 in told:
        yield f"Differing by more than all steps together can lose, so by other operands or another arithmetic: {told.count(-1):,}."
    if len(told) < len(latest):
        yield f"Not bounded, since a sum is not finite: {len(latest) - len(told):,}."


# Charts --------------------------------------------------------------------------------------------------------------------


def error_chart(along: AlongK) -> str:
    """The error of the first differing element against K, as SVG; empty where no sum was finite.

    Errors are in ulp of the accumulator's type at the largest sum on the way; the last point is what the sum of the parts gives.
    """
    names = ("emulated", "the schedule that fits")
    shown = [(name, one) for name, one in zip(names, along.courses, strict=False) if one.points]
    if not shown:
        return ""
    form = along.schedule.instruction.d_type
    most = max(abs(point.exact) for _, one in shown for point in one.points)
    unit = Fraction(1) if form.is_integer else ulp_at(most, form)
    drawn = [_line(name, one, unit) for name, one in shown]
    exact = along.courses[0].exact
    if along.fitting is None and along.recorded is not None and exact is not None:
        drawn.append(Line(label="recorded", x=(float(along.k),), y=(float((along.recorded - exact) / unit),)))
    return lines(
        drawn, x_label="elements of K taken", y_label=f"error, in ulp of {form.name} at the largest sum on the way",
        label="error against K", marks=[] if along.split is None else [_mark(along.split)],
    )  # fmt: skip


def _mark(at: Parting) -> Mark:
    return Mark(x=float(at.k[1]), label="they part in the sum of the parts" if at.is_after_k else f"they part by K = {at.k[1]}")


def _line(name: str, one: Course, unit: Fraction) -> Line:
    x, y = [0.0], [0.0]
    for point in one.points:
        x.append(float(point.k))
        y.append(float(point.error / unit))
    if one.end is not None and one.exact is not None and len(one.traces) > 1:
        x.append(float(one.k))
        y.append(float((one.end - one.exact) / unit))
    return Line(label=name, x=tuple(x), y=tuple(y))


def ulp_at(value: Fraction, form: FormatSpec) -> Fraction:
    """The distance of a floating-point type's numbers at a value."""
    exponent = form.min_exponent
    if value:
        guess = abs(value).numerator.bit_length() - value.denominator.bit_length()
        exponent = max(guess if Fraction(2) ** guess <= abs(value) else guess - 1, exponent)
    return Fraction(2) ** (exponent - form.fraction_bits)


def parting_chart(along: AlongK) -> str:
    """Followed elements by where the schedules part, as SVG; empty where no schedule fits."""
    parts = [Bar(label=where, value=count) for where, count in along.histogram]
    return bars(parts, label="elements by where along K the schedules part") if parts else ""


__all__ = [
    "AlongK", "Course", "Followed", "Parting", "Point", "along_k", "binned", "bounds", "course", "error_chart", "first_seen",
    "latest_step", "parting", "parting_chart", "traced_course", "ulp_at",
]  # fmt: skip
