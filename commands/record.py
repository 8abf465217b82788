"""The command `mmabits record`; commands/main.py registers it: `app.command(name="record")(record)`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mmabits.commands.completion import architectures
from mmabits.isa import MmabitsError, OperandError, architecture
from mmabits.reports.output import complain, note, say

if TYPE_CHECKING:
    from mmabits.conformance.record.device import DeviceInfo
    from mmabits.conformance.record.session import Job, Outcome
    from mmabits.isa import Instruction

AUTO: Final = "auto"
EXIT_FAILED: Final = 2


def _chosen(arch: str, only: str | None, spelled: Sequence[str], *, every_n: bool) -> list[Instruction]:
    from mmabits.conformance.record.session import recordable
    from mmabits.isa import parse

    if spelled and only is not None:
        raise OperandError("--instruction and --only exclude each other")
    return [parse(text) for text in spelled] if spelled else recordable(arch, only=only, every_n=every_n)


def _list_kernels(arch: str, only: str | None, spelled: Sequence[str], report: Path | None, *, every_n: bool, every: bool) -> int:
    """Compile and print the table; the exit status."""
    from mmabits.conformance.record.listing import kernel_rows, kernels_markdown
    from mmabits.conformance.record.session import TARGETS, representatives
    from mmabits.reports.progress import progress

    def of(target: str) -> list[Instruction]:
        if every or spelled:
            return _chosen(target, only, spelled, every_n=every_n)
        return [instruction for instruction in representatives(target) if only is None or only in instruction.ptx]

    archs = TARGETS if arch == AUTO else (architecture(arch).name,)
    with progress(sum(len(of(target)) for target in archs), "compiling") as advance:
        rows = kernel_rows(of, archs, advance=advance)
    if report is not None:
        from mmabits.commands.pages.record import kernels_page
        from mmabits.conformance.record.nvrtc import compiler_version
        from mmabits.reports.pages import write

        write(report, kernels_page(rows, compiler=compiler_version()))
    say(*kernels_markdown(rows).split("\n"))
    wrong = sum(bool(row.problems) for row in rows)
    say("", f"{len(rows)} kernels, {wrong} with problems")
    if report is not None:
        say(f"wrote {report}")
    return EXIT_FAILED if wrong or not rows else 0


def _print_outcomes(outcomes: Sequence[Outcome], jobs: Sequence[Job], out: Path) -> int:
    for outcome in outcomes:
        if outcome.error:
            where = "" if str(outcome.path) in outcome.error else f"{outcome.path}: "
            complain(f"{where}{outcome.error}")
    counts = {state: sum(outcome.state == state for outcome in outcomes) for state in ("recorded", "kept", "failed")}
    say(f"{len(jobs)} recordings in {out}: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    return EXIT_FAILED if counts["failed"] else 0


def record(
    out: Annotated[Path | None, typer.Option(help="Folder for the recordings; made if missing.")] = None,
    arch: Annotated[
        str, typer.Option(autocompletion=architectures, help="Architecture, or GPU: sm_90a, h100; auto: that of the GPU.")
    ] = AUTO,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the operands.")] = 0,
    tiles: Annotated[int | None, typer.Option(min=1, help="Tiles of each recording; left out: 16384 results, or 1024 probes.")] = None,
    only: Annotated[str | None, typer.Option(help="Only a family (mma.sync, wgmma, tcgen05) or any part of the spelling.")] = None,
    instruction: Annotated[list[str] | None, typer.Option(help="Exactly this instruction, PTX in full; repeatable.")] = None,
    generator: Annotated[
        list[str] | None, typer.Option(help="normal, random-bits, special, probes or package.module:function; repeatable; all if left out.")
    ] = None,
    chain: Annotated[int, typer.Option(min=1, help="Instructions along K, each adding to the one before.")] = 1,
    every_n: Annotated[bool, typer.Option("--every-n", help="Every N of wgmma and tcgen05.mma, not three of them.")] = False,
    device: Annotated[int, typer.Option(min=0, help="Which GPU.")] = 0,
    report: Annotated[Path | None, typer.Option(help="Write a page (.html).")] = None,
    emulated: Annotated[bool, typer.Option("--emulated", help="The emulator instead of a GPU; the files say so.")] = False,
    choices: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead: ask cuBLASLt which algorithm it takes, for MxNxK:TYPES or files of such lines; --out is a file (.json)."
        ),
    ] = None,
    workspace: Annotated[int, typer.Option(min=0, help="With --choices: bytes that the library may use.")] = 32 << 20,
    layout: Annotated[str, typer.Option(help="With --choices: source, as the plans were compared, or torch.")] = "source",
    library: Annotated[Path | None, typer.Option(help="With --choices: the file of cuBLASLt; that of PyTorch if left out.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="With --choices: run the products, too, and compare their bits with the answers' schedules.")
    ] = False,
    list_kernels: Annotated[bool, typer.Option("--list-kernels", help="Compile one kernel of each form and list them; no GPU.")] = False,
    compile_only: Annotated[bool, typer.Option("--compile-only", help="Compile and list every kernel that would run; no GPU.")] = False,
    functions: Annotated[bool, typer.Option("--functions", help="The functions (ex2, rcp, ...) over all operands instead.")] = False,
    blocks: Annotated[
        int | None, typer.Option(min=0, help="With --functions: so many of the 4,096 blocks of 2^20 operands are summed; all if left out.")
    ] = None,
) -> None:
    """Run instructions on a GPU and record operands and results. Interrupted, the same call goes on. Exit status: 0 all recorded, 2 not."""
    from mmabits.reports.pages import check_page

    check_page(report)
    spelled = instruction or []
    if list_kernels or compile_only:
        raise typer.Exit(_list_kernels(arch, only, spelled, report, every_n=every_n, every=compile_only))
    if out is None:
        raise OperandError("--out is missing: the folder for the recordings")
    if functions:
        if spelled or generator or report is not None or tiles is not None or chain != 1 or every_n:
            raise OperandError("--functions goes with --out, --arch, --device, --only, --blocks and --emulated")
        raise typer.Exit(_record_functions(out, arch, only, device, blocks, emulated=emulated))
    if blocks is not None:
        raise OperandError("--blocks goes with --functions")
    if choices:
        raise typer.Exit(_record_choices(out, arch, choices, workspace, layout, library, device, emulated=emulated, compare=compare))
    if compare:
        raise OperandError("--compare goes with --choices")
    raise typer.Exit(_record(out, arch, only, spelled, generator, seed, tiles, chain, device, report, every_n=every_n, emulated=emulated))


def _record_functions(out: Path, arch: str, only: str | None, index: int, blocks: int | None, *, emulated: bool) -> int:
    """Record functions; the exit status."""
    from mmabits.conformance.record.driver import CudaDevice
    from mmabits.conformance.record.functions import CudaFunctions, EmulatedFunctions, FunctionOutcome, plans_for, record_functions
    from mmabits.reports.pages import check_folder
    from mmabits.reports.progress import progress

    if emulated and arch == AUTO:
        raise OperandError("--emulated has no GPU to ask for its architecture: name it with --arch")
    device = EmulatedFunctions(arch) if emulated else CudaFunctions(CudaDevice(index))
    if arch != AUTO and architecture(arch).name != device.info.arch:
        raise OperandError(f"--arch {arch} asks for another architecture than that of {device.info.name}, {device.info.arch}")
    check_folder(out)
    plans = [plan for plan in plans_for(device.info.arch) if only is None or only in plan.opcode]
    if not plans:
        raise OperandError(f"--only {only}: no function has that in its name; there are {', '.join(p.opcode for p in plans_for(arch))}")
    note(f"{device.info.name}, {device.info.arch}: {len(plans)} functions")
    outcomes: list[FunctionOutcome] = []
    with progress(len(plans), "recording") as advance:

        def ended(outcome: FunctionOutcome) -> None:
            outcomes.append(outcome)
            advance()

        record_functions(device, plans, out, blocks=blocks, command=shlex.join(["mmabits", *sys.argv[1:]]), advance=ended)
    for outcome in outcomes:
        if outcome.error:
            complain(outcome.error if str(outcome.path) in outcome.error else f"{outcome.path}: {outcome.error}")
    counts = {state: sum(outcome.state == state for outcome in outcomes) for state in ("recorded", "kept", "failed")}
    say(f"{len(plans)} functions in {out}: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    return EXIT_FAILED if counts["failed"] else 0


def _record(
    out: Path, arch: str, only: str | None, spelled: Sequence[str], generators: Sequence[str] | None, seed: int, tiles: int | None,
    chain: int, index: int, report: Path | None, *, every_n: bool, emulated: bool,
) -> int:  # fmt: skip
    """Record; the exit status."""
    from mmabits.conformance.record.device import Device, EmulatedDevice
    from mmabits.conformance.record.driver import CudaDevice
    from mmabits.conformance.record.generators import GENERATORS
    from mmabits.conformance.record.session import make_jobs
    from mmabits.conformance.record.session import record as record_jobs
    from mmabits.reports.pages import check_folder
    from mmabits.reports.progress import progress

    if emulated and arch == AUTO:
        raise OperandError("--emulated has no GPU to ask for its architecture: name it with --arch")
    device: Device = EmulatedDevice(arch) if emulated else CudaDevice(index)
    if arch != AUTO and architecture(arch).name != device.info.arch:
        raise OperandError(f"--arch {arch} asks for another architecture than that of {device.info.name}, {device.info.arch}")
    check_folder(out)
    chosen = _chosen(device.info.arch, only, spelled, every_n=every_n)
    jobs = make_jobs(chosen, arch=device.info.arch, generators=generators or tuple(GENERATORS), seed=seed, tiles=tiles, chain=chain)
    note(f"{device.info.name}, {device.info.arch}: {len(jobs)} recordings")
    outcomes: list[Outcome] = []
    try:
        with progress(len(jobs), "recording") as advance:

            def ended(outcome: Outcome) -> None:
                outcomes.append(outcome)
                advance()

            record_jobs(device, jobs, out, command=shlex.join(["mmabits", *sys.argv[1:]]), advance=ended)
    except MmabitsError as error:
        if report is not None:
            with suppress(MmabitsError):  # the disk may be full; why the run broke off matters more
                _write_page(report, device.info, outcomes, out, len(jobs), str(error))
                say(f"wrote {report}")
        raise
    if report is not None:
        _write_page(report, device.info, outcomes, out, len(jobs))
    status = _print_outcomes(outcomes, jobs, out)
    if report is not None:
        say(f"wrote {report}")
    return status


def _record_choices(
    out: Path, arch: str, shapes: Sequence[str], workspace: int, layout: str, library: Path | None, index: int, *, emulated: bool,
    compare: bool,
) -> int:  # fmt: skip
    """Ask for algorithms; the exit status."""
    from mmabits.conformance.record.choices import CublasLtLibrary, RulesLibrary, questions, record_choices
    from mmabits.conformance.record.compared import GpuMemory, HostMemory
    from mmabits.conformance.record.device import EmulatedDevice
    from mmabits.conformance.record.driver import CudaDevice
    from mmabits.reports.pages import check_page
    from mmabits.reports.progress import progress

    check_page(out, suffixes=(".json",))
    asked = questions(shapes)
    if emulated and arch == AUTO:
        raise OperandError("--emulated has no GPU to ask for its architecture: name it with --arch")
    device: EmulatedDevice | CudaDevice = EmulatedDevice(arch) if emulated else CudaDevice(index)
    if arch != AUTO and architecture(arch).name != device.info.arch:
        raise OperandError(f"--arch {arch} asks for another architecture than that of {device.info.name}, {device.info.arch}")
    memory = None if not compare else GpuMemory(device) if isinstance(device, CudaDevice) else HostMemory()
    found = RulesLibrary(device.info.arch) if emulated else CublasLtLibrary(library)
    note(f"{device.info.name}, {device.info.arch}: {found.path}, cuBLASLt {found.version_words}, {len(asked)} shapes")
    with progress(len(asked), "asking") as advance:
        answers = record_choices(
            found, device.info, asked, out, workspace=workspace, layout=layout, command=shlex.join(["mmabits", *sys.argv[1:]]),
            advance=advance, memory=memory,
        )  # fmt: skip
    silent = [answer for answer in answers if answer.config is None]
    for answer in silent:
        row = answer.question
        complain(f"{row.m}x{row.n}x{row.k} {' x '.join(row.types[:2])}: {answer.status}")
    compared = [answer for answer in answers if answer.compared is not None]
    other = [answer for answer in compared if answer.compared is not None and not answer.compared.is_equal]
    for answer in other:
        row = answer.question
        complain(f"{row.m}x{row.n}x{row.k} {' x '.join(row.types[:2])}: {answer.compared.words if answer.compared else ''}")
    told = f"; {len(compared)} products compared, {len(other)} not as the schedule says" if compare else ""
    say(f"{len(answers) - len(silent)} of {len(answers)} shapes answered{told}; wrote {out}")
    return EXIT_FAILED if silent or other else 0


def _write_page(report: Path, info: DeviceInfo, outcomes: Sequence[Outcome], out: Path, planned: int, broken: str = "") -> None:
    from mmabits.commands.pages.record import record_page
    from mmabits.reports.pages import write

    write(report, record_page(info, outcomes, out, planned=planned, broken=broken))
