"""A recorded product against the emulated one: classes, schedules that would explain it, one element explained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmabits.conformance.diff.comparing import Difference, compare
from mmabits.conformance.diff.runs import Run
from mmabits.conformance.diff.schedules import Fit, Schedule, assumed_schedule, fitting_schedules, recompute
from mmabits.conformance.diff.steps import AlongK, along_k
from mmabits.isa import architecture

if TYPE_CHECKING:
    from mmabits.research.explain import Explanation


@dataclass(frozen=True, kw_only=True, eq=False)
class RunDifference:
    """What a comparison found."""

    run: Run
    arch: str
    """Emulated."""
    schedule: Schedule
    """What `emulate` takes the library to do."""
    found: Difference
    fits: tuple[Fit, ...]
    """Schedules by how few elements they miss; empty where every bit is equal."""
    explanation: Explanation | None
    along: AlongK | None = None
    """Where along K the sums part, as far as it can be told."""

    @property
    def is_equal(self) -> bool:
        """Whether every bit is the same."""
        return self.found.is_equal

    @property
    def elements(self) -> int:
        """How many were compared."""
        return self.found.elements

    @property
    def differing(self) -> int:
        """How many have different bits."""
        return self.found.differing

    @property
    def verdict(self) -> str:
        """The result in a few words."""
        if self.is_equal:
            return "every bit equal"
        best = self.fits[0] if self.fits else None
        fitting = (
            f"{best.schedule.words} gives every bit" if best is not None and not best.differing else "no schedule tried gives every bit"
        )
        return f"{self.differing:,} of {self.elements:,} elements differ; {fitting}"

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "run": self.run.manifest, "arch": self.arch, "instruction": self.schedule.instruction.ptx,
            "promote_every": self.schedule.promote_every, "verdict": self.verdict, **self.found.as_json,
            "fits": [fit.as_json for fit in self.fits], "along_k": None if self.along is None else self.along.as_json,
        }  # fmt: skip


def compare_run(run: Run, *, arch: str | None = None) -> RunDifference:
    """Emulate a run's product and compare it; where it differs, try schedules.

    Args:
        run: of a GPU, or of a stand-in.
        arch: what to emulate; that of the run if None.

    Raises:
        MmabitsError: the architecture lacks the product.
    """
    target = architecture(arch or run.arch).name
    schedule = assumed_schedule(
        run.a, run.b, arch=target, instruction=run.instruction, scale_a=run.scale_a, fast_accum=run.fast_accum
    )  # fmt: skip
    result = recompute(
        run.a, run.b, schedule=schedule, arch=target, scale_a=run.scale_a, scale_b=run.scale_b, dtype=run.result.dtype
    )  # fmt: skip
    found = compare(run.result, result)
    if found.is_equal:
        return RunDifference(run=run, arch=target, schedule=schedule, found=found, fits=(), explanation=None)
    fits = fitting_schedules(
        run.a, run.b, run.result, arch=target, instruction=run.instruction, scale_a=run.scale_a, scale_b=run.scale_b
    )  # fmt: skip
    along = along_k(
        run.a, run.b, run.result, schedule=schedule, arch=target, fits=fits, scale_a=run.scale_a, scale_b=run.scale_b
    )  # fmt: skip
    return RunDifference(
        run=run, arch=target, schedule=schedule, found=found, fits=tuple(fits),
        explanation=_explained(run, schedule, target, found), along=along,
    )  # fmt: skip


def _explained(run: Run, schedule: Schedule, arch: str, found: Difference) -> Explanation:
    """The first element that differs, up to the accumulator that the schedule ends with."""
    from mmabits.research.explain import explain

    first = found.first[0]
    scales: dict[str, Any] = {} if schedule.instruction.block is None else {"scale_a": run.scale_a, "scale_b": run.scale_b}
    return explain(
        run.a, run.b, instruction=schedule.instruction, arch=arch, promote_every=schedule.promote_every, row=first.row,
        column=first.column, **scales,
    )  # fmt: skip


def run_lines(done: RunDifference) -> Iterator[str]:
    """The comparison for people to read, without its explanation."""
    run, found = done.run, done.found
    yield f"{run.case}: {run.call}, {run.gpu}"
    if run.kind != "hardware":
        yield "recorded by the emulator standing in for a GPU: proves nothing about hardware"
    yield f"against {done.schedule.instruction.ptx} on {done.arch}, {done.schedule.words}"
    yield f"{found.elements} elements, {found.differing} differ"
    if found.is_equal:
        return
    yield from (f"  {kind.value:22} {count}" for kind, count in found.counts.items() if count)
    yield from (f"  {part.label:>22} ulp {part.count}" for part in found.ulps)
    touched = sum(count > 0 for line in found.tiles for count in line)
    yield f"  in {touched} of {len(found.tiles) * len(found.tiles[0])} output tiles of {found.tile[0]} x {found.tile[1]}"
    yield ""
    yield "schedules, the best first:"
    yield from (f"  {fit.differing:>9} differ  {fit.schedule.instruction.ptx}, {fit.schedule.words}" for fit in done.fits)
    if sum(fit.differing == 0 for fit in done.fits) > 1:
        yield "  several give every bit; this result does not tell them apart"
    if done.along is not None:
        yield ""
        yield "along K:"
        yield from (f"  {sentence}" for sentence in done.along.words)
    yield ""
    yield "first differences (recorded, emulated):"
    for one in found.first:
        apart = "" if one.ulp is None else f", {one.ulp} ulp"
        values = f"{one.hardware_value}, {one.emulated_value}"
        yield f"  [{one.row}, {one.column}] {one.hardware} {one.emulated}  {values}: {one.kind.value}{apart}"


__all__ = ["RunDifference", "compare_run", "run_lines"]
