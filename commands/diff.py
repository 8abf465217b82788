"""The command `mmabits diff`; commands/main.py registers it: `app.command(name="diff")(diff)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mmabits.commands.completion import architectures
from mmabits.isa.errors import OperandError, visible
from mmabits.reports.failures import told
from mmabits.reports.output import complain, draw, say, say_csv, say_json

if TYPE_CHECKING:
    from mmabits.conformance.diff.comparison import Comparison
    from mmabits.conformance.diff.recorder import ChosenCases

EXIT_DIFFER: Final = 1
EXIT_ERROR: Final = 2


def diff(
    against: Annotated[Path | None, typer.Option(help="A recording: a run, or tiles or dot products.")] = None,
    run: Annotated[
        list[Path] | None, typer.Option(help="A kernel run (`mmabits kernel --keep`), run again from its PTX. May be repeated.")
    ] = None,
    on_gpu: Annotated[
        bool, typer.Option("--on-gpu", help="Compare --run with this machine's GPU, and find the first instruction.")
    ] = False,
    arch: Annotated[
        str | None,
        typer.Option(
            autocompletion=architectures,
            help="Architecture to emulate, or GPU: sm_90a, h100; that of the recording or of the GPU if left out.",
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page (.html).")] = None,
    record: Annotated[Path | None, typer.Option(help="Folder to record runs into; nothing is compared.")] = None,
    case: Annotated[list[str] | None, typer.Option(help="Which case to run; may be repeated. All if left out.")] = None,
    list_cases: Annotated[bool, typer.Option("--list", help="List the cases.")] = False,
    emulated: Annotated[
        bool, typer.Option("--emulated", help="The emulator of --arch in the GPU's place; files and reports say so.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the operands.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a row for each case, or with --list for each there is.")] = False,
) -> None:
    """Run products and kernels on the GPU and emulated, or compare a recording, bit by bit. Exit status: 0 equal, 1 different, 2 error."""
    if list_cases:
        _list(as_json=as_json, as_csv=as_csv)
        return
    from mmabits.reports.pages import check_page

    check_page(report)
    if run or on_gpu:
        if not run or against is not None or record is not None or case or emulated or report is not None or as_csv:
            raise OperandError("--run goes with --on-gpu, --arch and --json alone, and --on-gpu with --run")
        raise typer.Exit(_runs(run, arch, on_gpu=on_gpu, as_json=as_json))
    if against is not None:
        if record is not None or case or emulated:
            raise OperandError("--against takes what a file holds: --record, --case and --emulated do not go with it")
        from mmabits.conformance.diff.against import compare_file

        raise typer.Exit(_told([compare_file(against, arch=arch)], {}, report, as_json=as_json, as_csv=as_csv))
    if emulated and arch is None:
        raise OperandError("--emulated has no GPU to ask for its architecture: name it with --arch")
    if record is not None:
        if report is not None or as_json or as_csv or (arch is not None and not emulated):
            raise OperandError("--record only records: --arch, --report and --json go with a comparison")
        raise typer.Exit(_record(record, case or [], seed, arch if emulated else None))
    raise typer.Exit(_live(case or [], seed, arch, report, stand_in=arch if emulated else None, as_json=as_json, as_csv=as_csv))


def _runs(paths: Sequence[Path], arch: str | None, *, on_gpu: bool, as_json: bool) -> int:
    """Kernel runs: the emulator beside what the file holds, or beside a GPU."""
    from mmabits.conformance.diff.runs import compare_run

    device = None
    if on_gpu:
        from mmabits.conformance.record.driver import CudaDevice
        from mmabits.conformance.record.runs import RunDevice

        device = RunDevice(CudaDevice())
    found = [compare_run(each, arch=arch, other=device) for each in paths]
    if as_json:
        say_json([each.to_dict() for each in found])
    else:
        for each in found:
            say(*each.lines())
    return EXIT_DIFFER if any(each.differences for each in found) else 0


def _list(*, as_json: bool, as_csv: bool) -> None:
    from rich.table import Table

    from mmabits.conformance.diff.recorder import ALL_CASES, case_row

    rows = [case_row(case) for case in ALL_CASES.values()]
    if as_csv:
        say_csv(rows)
        return
    if as_json:
        say_json(rows)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("case", "call", "on"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(row["name"], row["call"], " ".join(row["architectures"]))
    draw(table)


def _record(folder: Path, names: list[str], seed: int, stand_in: str | None) -> int:
    from mmabits.conformance.diff.recorder import choose, record_into
    from mmabits.reports.pages import check_folder
    from mmabits.reports.progress import progress

    check_folder(folder)
    chosen = choose(names, stand_in=stand_in)
    failed = _say_left_out(chosen)
    with progress(len(chosen.cases), "recording") as advance:
        for case in chosen.cases:
            try:
                done = record_into(case, folder, seed=seed, stand_in=stand_in)
                say(f"{done.state} {done.path}")
            except Exception as error:  # of whatever kind: the other cases are run
                failed[case.name] = told(error)
                _complain(case.name, failed[case.name])
            advance()
    return EXIT_ERROR if failed else 0


def _live(names: list[str], seed: int, arch: str | None, report: Path | None, *, stand_in: str | None, as_json: bool, as_csv: bool) -> int:
    """Every case on the GPU, or its stand-in, and emulated."""
    from mmabits.conformance.diff.against import compare_recorded
    from mmabits.conformance.diff.recorder import choose, record_any
    from mmabits.reports.progress import progress

    chosen = choose(names, stand_in=stand_in)
    found: list[Comparison] = []
    failed = _say_left_out(chosen)
    with progress(len(chosen.cases), "comparing") as advance:
        for case in chosen.cases:
            try:
                found.append(compare_recorded(record_any(case, seed=seed, stand_in=stand_in), arch=arch))
            except Exception as error:  # of whatever kind: the other cases are compared
                failed[case.name] = told(error)
                _complain(case.name, failed[case.name])
            advance()
    return _told(found, failed, report, as_json=as_json, as_csv=as_csv)


def _told(found: Sequence[Comparison], failed: Mapping[str, str], report: Path | None, *, as_json: bool, as_csv: bool) -> int:
    """Print, write the page, and give the exit status."""
    if report is not None:
        from mmabits.commands.pages.diff import differences_page
        from mmabits.reports.pages import write

        write(report, differences_page(found, tuple(failed.items())))
    if as_csv:
        rows = [{"case": one.name, "elements": one.elements, "differing": one.differing, "verdict": one.verdict} for one in found]
        say_csv(rows + [{"case": name, "elements": "", "differing": "", "verdict": f"failed: {why}"} for name, why in failed.items()])
    elif as_json:
        parts: Any = [one.as_json for one in found]
        say_json(parts[0] if len(parts) == 1 and not failed else {"runs": parts, "failed": dict(failed)})
    else:
        _print(found)
        if report is not None:
            say(f"wrote {report}")
    if failed or not found:
        return EXIT_ERROR
    return 0 if all(one.is_equal for one in found) else EXIT_DIFFER


def _print(found: Sequence[Comparison]) -> None:
    for one in found:
        if len(found) > 1 and one.is_equal:
            continue
        say(*one.lines())
        if one.explanation is not None:
            say("", f"the first of them, as emulated{one.told.before}:")
            draw(one.explanation)
        if one.told.ends_blank:
            say("")
    if len(found) > 1:
        _summary(found)


def _summary(found: Sequence[Comparison]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("case", "elements", "differ", "verdict"):
        table.add_column(heading, overflow="fold", justify="right" if heading in ("elements", "differ") else "left")
    for one in found:
        style = "" if one.is_equal else "red"
        table.add_row(*(Text(visible(text), style) for text in (one.name, f"{one.elements:,}", f"{one.differing:,}", one.verdict)))
    draw(table)
    equal = sum(one.is_equal for one in found)
    say(f"{len(found)} cases: {equal} equal, {len(found) - equal} different")


def _say_left_out(chosen: ChosenCases) -> dict[str, str]:
    """The frameworks that are left out, named."""
    for name, why in chosen.left_out.items():
        _complain(name, why)
    return dict(chosen.left_out)


def _complain(name: str, error: str) -> None:
    complain(f"{name}: {error}")
