"""A recorded product against the emulated one, and where they differ: schedules that would explain it, and where along K they part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmabits.conformance.diff.comparing import Difference, compare
from mmabits.conformance.diff.comparison import Comparison, Detail, Told, stand_in_line, stand_in_notice
from mmabits.conformance.diff.schedules import Fit, TriedSchedule, assumed_schedule, fitting_schedules, recompute
from mmabits.conformance.diff.steps import along_k
from mmabits.conformance.recorded.calls import Run
from mmabits.isa import architecture
from mmabits.reports.pages.report import Cell, NoteBlock, Section, TableBlock
from mmabits.research.explain import explain


def compare_product(run: Run, *, arch: str | None = None) -> Comparison:
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
    found = compare(run.result, recompute(run.a, run.b, schedule=schedule, arch=target, **run.scales, dtype=run.result.dtype))
    given: dict[str, Any] = {"name": run.case, "recorded": run, "arch": target, "outputs": {"result": found}}
    told = _told(run, schedule, target, found)
    if found.is_equal:
        return Comparison(**given, told=told, details=(Fits(found=found),))
    fits = tuple(fitting_schedules(run.a, run.b, run.result, arch=target, instruction=run.instruction, **run.scales))
    along = along_k(run.a, run.b, run.result, schedule=schedule, arch=target, fits=fits, **run.scales)
    first = found.first[0]
    return Comparison(
        **given, told=told, details=(Fits(found=found, fits=fits), *([] if along is None else [along])),
        beside=f"{fits[0].schedule.words} gives every bit" if fits and not fits[0].differing else "no schedule tried gives every bit",
        explanation=explain(
            run.a, run.b, instruction=schedule.instruction, arch=target, promote_every=schedule.promote_every, row=first.row,
            column=first.column, **({} if schedule.instruction.block is None else run.scales),
        ),
    )  # fmt: skip


def _told(run: Run, schedule: TriedSchedule, arch: str, found: Difference) -> Told:
    ptx, (m, k), n = schedule.instruction.ptx, run.a.shape, run.b.shape[1]
    return Told(
        head=(f"{run.case}: {run.call}, {run.gpu}", *stand_in_line(run), f"against {ptx} on {arch}, {schedule.words}"),
        lead=f"{run.call} of {run.gpu}, against {arch} emulated: {ptx}, {schedule.words}.",
        notice=stand_in_notice(run),
        facts=(
            ("product", f"{m} x {n} x {k} (M x N x K), {run.a.dtype} x {run.b.dtype} into {found.dtype}"),
            ("largest difference", f"{found.largest_ulp:,} ulp"),
        ),
        plain={"run": run.manifest, "arch": arch, "instruction": ptx, "promote_every": schedule.promote_every, "verdict": ""},
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Fits(Detail):
    """Schedules by how few elements they miss; none where every bit is equal."""

    found: Difference
    fits: tuple[Fit, ...] = ()

    @property
    def fitting(self) -> int:
        """How many give every bit."""
        return sum(fit.differing == 0 for fit in self.fits)

    def lines(self) -> Iterator[str]:
        """Output tiles that differ, then the schedules."""
        tiles = self.found.tiles
        touched = sum(count > 0 for line in tiles for count in line)
        yield f"  in {touched} of {len(tiles) * len(tiles[0])} output tiles of {self.found.tile[0]} x {self.found.tile[1]}"
        yield from ("", "schedules, the best first:")
        yield from (f"  {fit.differing:>9} differ  {fit.schedule.instruction.ptx}, {fit.schedule.words}" for fit in self.fits)
        if self.fitting > 1:
            yield "  several give every bit; this result does not tell them apart"

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values; `along_k` keeps the place for what may be found there."""
        return {"fits": [fit.as_json for fit in self.fits], "along_k": None}

    def sections(self) -> Iterator[Section]:
        """A table."""
        if not self.fits:
            return
        few = ("None gives every bit; the best come first.", "One of them gives every bit of the recording.")
        many = f"{self.fitting} of those below give every bit of the recording; this result does not tell them apart."
        said = few[self.fitting] if self.fitting < len(few) else many
        rows = tuple(
            (
                Cell(text=fit.schedule.instruction.ptx, is_code=True), fit.schedule.words,
                Cell(text=f"{fit.differing:,}", tone="" if fit.differing else "good"),
            )
            for fit in self.fits
        )  # fmt: skip
        table = TableBlock(headings=("instruction", "schedule", "differ"), rows=rows, numeric=frozenset({2}))
        yield Section(title="Schedules that were tried", blocks=(NoteBlock(text=said), table))


__all__ = ["Fits", "compare_product"]
