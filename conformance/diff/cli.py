"""The command `mmabits diff`; conformance/cli.py registers it: `app.command(name="diff")(diff)`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmabits.isa.errors import OperandError

if TYPE_CHECKING:
    from rich.console import Console

    from mmabits.conformance.diff.comparing import Difference
    from mmabits.conformance.diff.runs import Run
    from mmabits.conformance.diff.schedules import Fit, Schedule
    from mmabits.conformance.explain import Explanation


def diff(
    against: Annotated[Path | None, typer.Option(help="A recording: a run (gemm-run/1), or tiles or dot products.")] = None,
    arch: Annotated[str | None, typer.Option(help="Architecture to emulate; that of the recording if left out.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page (.html) about a run.")] = None,
    record: Annotated[Path | None, typer.Option(help="Folder to record runs into, on a machine with a GPU.")] = None,
    case: Annotated[list[str] | None, typer.Option(help="Which case to record; may be repeated. All if left out.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the operands that are recorded.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare a recorded product with the emulated one, bit by bit. Exit status: 0 equal, 1 different, 2 unreadable input."""
    if (against is None) == (record is None):
        raise OperandError("mmabits diff takes either --against FILE or --record FOLDER")
    if record is not None:
        if arch is not None or report is not None or as_json:
            raise OperandError("--arch, --report and --json go with --against, not with --record")
        _record(record, case or [], seed)
        return
    if case:
        raise OperandError("--case goes with --record, not with --against")
    from mmabits.conformance.diff.runs import is_run, read_run

    if not is_run(Path(str(against))):
        raise typer.Exit(_replayed(Path(str(against)), arch, report, as_json=as_json))
    raise typer.Exit(_against(read_run(Path(str(against))), arch, report, as_json=as_json))


def _record(out: Path, names: list[str], seed: int) -> None:
    from mmabits.conformance.diff.cases import CASES, case_named, record_case
    from mmabits.conformance.diff.runs import write_run

    cases = [case_named(name) for name in names] or list(CASES.values())
    for case in cases:
        run = record_case(case, seed=seed)
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{case.name}-seed{seed}.safetensors"
        write_run(path, run)
        print(f"wrote {path}")


def _against(run: Run, arch: str | None, report: Path | None, *, as_json: bool) -> int:
    from mmabits.conformance.diff.comparing import compare
    from mmabits.conformance.diff.schedules import assumed_schedule, fitting_schedules, recompute

    target = arch or run.arch
    schedule = assumed_schedule(
        run.a, run.b, arch=target, instruction=run.instruction, scale_a=run.scale_a, fast_accum=run.fast_accum
    )  # fmt: skip
    emulated = recompute(
        run.a, run.b, schedule=schedule, arch=target, scale_a=run.scale_a, scale_b=run.scale_b, dtype=run.result.dtype
    )  # fmt: skip
    found = compare(run.result, emulated)
    fits: list[Fit] = []
    explanation = None
    if not found.is_equal:
        fits = fitting_schedules(
            run.a, run.b, run.result, arch=target, instruction=run.instruction, scale_a=run.scale_a, scale_b=run.scale_b
        )  # fmt: skip
        explanation = _explained(run, schedule, target, found)
    if report is not None:
        from mmabits.conformance.diff.page import difference_page
        from mmabits.conformance.pages import write

        write(report, difference_page(run, schedule, target, found, fits, explanation))
    if as_json:
        print(json.dumps(_json(run, schedule, target, found, fits), indent=2, allow_nan=False))
    else:
        _print(run, schedule, target, found, fits, explanation)
        if report is not None:
            print(f"wrote {report}")
    return 0 if found.is_equal else 1


def _explained(run: Run, schedule: Schedule, arch: str, found: Difference) -> Explanation:
    """The first element that differs, up to the accumulator that the schedule ends with."""
    from mmabits.conformance.explain import explain

    first = found.first[0]
    scales: dict[str, Any] = {} if schedule.instruction.block is None else {"scale_a": run.scale_a, "scale_b": run.scale_b}
    return explain(
        run.a, run.b, instruction=schedule.instruction, arch=arch, promote_every=schedule.promote_every, row=first.row,
        column=first.column, **scales,
    )  # fmt: skip


def _json(run: Run, schedule: Schedule, arch: str, found: Difference, fits: list[Fit]) -> dict[str, Any]:
    return {
        "run": run.manifest, "arch": arch, "instruction": schedule.instruction.ptx, "promote_every": schedule.promote_every,
        **found.as_json, "fits": [fit.as_json for fit in fits],
    }  # fmt: skip


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    return console


def _print(run: Run, schedule: Schedule, arch: str, found: Difference, fits: list[Fit], explanation: Explanation | None) -> None:
    print(f"{run.case}: {run.call}, {run.gpu}")
    if run.kind != "hardware":
        print("recorded by the emulator standing in for a GPU: proves nothing about hardware")
    print(f"against {schedule.instruction.ptx} on {arch}, {schedule.words}")
    print(f"{found.elements} elements, {found.differing} differ")
    if found.is_equal:
        return
    for kind, count in found.counts.items():
        if count:
            print(f"  {kind.value:22} {count}")
    for part in found.ulps:
        print(f"  {part.label:>22} ulp {part.count}")
    touched = sum(count > 0 for line in found.tiles for count in line)
    print(f"  in {touched} of {len(found.tiles) * len(found.tiles[0])} output tiles of {found.tile[0]} x {found.tile[1]}")
    print("\nschedules, the best first:")
    for fit in fits:
        print(f"  {fit.differing:>9} differ  {fit.schedule.instruction.ptx}, {fit.schedule.words}")
    if sum(fit.differing == 0 for fit in fits) > 1:
        print("  several give every bit; this result does not tell them apart")
    print("\nfirst differences (recorded, emulated):")
    for one in found.first:
        apart = "" if one.ulp is None else f", {one.ulp} ulp"
        values = f"{one.hardware_value}, {one.emulated_value}"
        print(f"  [{one.row}, {one.column}] {one.hardware} {one.emulated}  {values}: {one.kind.value}{apart}")
    if explanation is not None:
        print("\nthe first of them, as emulated, before scales and rounding of the result:")
        _console().print(explanation)


def _replayed(path: Path, arch: str | None, report: Path | None, *, as_json: bool) -> int:
    """Tiles and dot products: their own replay and its reports."""
    from mmabits.conformance import replay

    reports = list(replay.replay_files(replay.find_files([path])))
    for one in reports:
        if one.error is not None:
            print(f"error: {one.error}", file=sys.stderr)
    done = [one for one in reports if one.error is None]
    if done and (arch is not None or report is not None):
        raise OperandError("--arch and --report are for runs (gemm-run/1); tiles and dot products are replayed as they were recorded")
    if as_json:
        print(json.dumps(replay.reports_json(reports), indent=2, allow_nan=False))
        return replay.exit_status(reports)
    if done:
        _console().print(replay.reports_table(done))
    for one in done:
        for difference in one.differences:
            print("", *replay.difference_lines(one, difference), sep="\n")
    print(replay.summary(reports))
    return replay.exit_status(reports)
