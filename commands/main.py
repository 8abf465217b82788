"""The command `mmabits`. Every command imports what it needs when it runs, so that `--help` stays quick."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mmabits.commands.cache import cache
from mmabits.commands.campaign import campaign
from mmabits.commands.compare import compare, multiply
from mmabits.commands.completion import architectures
from mmabits.commands.diff import diff
from mmabits.commands.evaluate import evaluate
from mmabits.commands.examples import epilog
from mmabits.commands.explain import explain
from mmabits.commands.function import function
from mmabits.commands.identify import identify
from mmabits.commands.invariance import invariance
from mmabits.commands.kernel import kernel
from mmabits.commands.learn import learn
from mmabits.commands.minilm import minilm
from mmabits.commands.mismatch import mismatch
from mmabits.commands.record import record
from mmabits.commands.study import study
from mmabits.commands.vectors import vectors_convert, vectors_pack, vectors_score
from mmabits.isa.errors import MmabitsError
from mmabits.reports.failures import is_foreseen, told
from mmabits.reports.output import ReaderGone, complain, console, draw, finish_errors, finish_output, say, say_csv, say_json, settle_output

if TYPE_CHECKING:
    from mmabits.isa import Instruction

EXIT_ERROR: Final = 2
EXIT_INTERRUPTED: Final = 130
EXIT_INTERNAL: Final = 70
"""A mistake in mmabits; what sysexits.h has for it."""

app = typer.Typer(
    name="mmabits",
    help="Bit-exact emulation of NVIDIA tensor-core matrix instructions on the CPU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print a row for each line of the table.")]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit: an error is one line and status 2, whatever it is.

    Of an error that nobody foresaw the status is 70, and with MMABITS_TRACEBACK=1 it is raised. Where the reader of the output has gone
    away, as in `mmabits list | head`, nothing is said.

    Args:
        argv: arguments without the program's name; None takes those of the process.
    """
    output = sys.stdout
    settle_output()
    problem, status = _run(argv)
    if sys.stdout is not output:  # what click leaves behind where the reader has gone
        status = EXIT_ERROR
    try:
        finish_output(output)
    except ReaderGone:
        problem, status = None, EXIT_ERROR
    except MmabitsError as error:
        problem, status = str(error), EXIT_ERROR
    if problem is not None:
        complain(problem)
    finish_errors()
    raise SystemExit(status)


def _run(argv: Sequence[str] | None) -> tuple[str | None, int]:
    """The command's error, if there is one to tell, and its exit status."""
    try:
        app(args=None if argv is None else list(argv), prog_name="mmabits")
    except SystemExit as left:
        return None, left.code if isinstance(left.code, int) else EXIT_ERROR if left.code else 0
    except ReaderGone:
        return None, EXIT_ERROR
    except KeyboardInterrupt:
        return None, EXIT_INTERRUPTED
    except Exception as error:
        return told(error), EXIT_ERROR if is_foreseen(error) else EXIT_INTERNAL
    return None, 0


def _print_version(wanted: bool) -> None:
    if wanted:
        from mmabits import __version__

        say(f"mmabits {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)] = False,
) -> None:
    pass


@app.command(name="list")
def list_(
    arch: Annotated[str | None, typer.Option(autocompletion=architectures, help="Only this architecture, or GPU: sm_90a, h100.")] = None,
    evidence: Annotated[str | None, typer.Option(help="At least this evidence: recorded, published or inferred.")] = None,
    family: Annotated[str | None, typer.Option(help="Only this family: mma.sync, wgmma or tcgen05.")] = None,
    as_json: Json = False,
    as_csv: Csv = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the compact table of docs/support.md.")] = False,
) -> None:
    """List the instructions, and how well each is known."""
    from mmabits.commands import tables
    from mmabits.isa import instructions

    rows = instructions(arch=arch, evidence=evidence, family=family)
    if as_csv:
        say_csv(tables.support_json(rows))
    elif as_json:
        say_json(tables.support_json(rows))
    elif markdown:
        say(*tables.support_markdown(rows).split("\n"))
    else:
        draw(tables.support_table(rows), titles=2)
        say(f"{len(rows)} forms: {tables.counts_text(rows) or 'none'}")


def _instruction(text: str, arch: str, a_type: str | None, b_type: str | None, c_type: str | None, scale_type: str | None) -> Instruction:
    """The instruction of a full spelling, or of a short one with the types of its operands."""
    from mmabits.isa import parse, resolve
    from mmabits.isa.errors import OperandError, UnknownInstruction

    if a_type is not None:
        return resolve(text, arch=arch, a_type=a_type, b_type=b_type or a_type, c_type=c_type, scale_type=scale_type)
    if any(given is not None for given in (b_type, c_type, scale_type)):
        raise OperandError("--b-type, --c-type and --scale-type go with --a-type, which is missing")
    try:
        return parse(text)
    except UnknownInstruction as error:
        raise UnknownInstruction(f"{error} (a short spelling needs --a-type)") from error


@app.command(short_help="Show what is known of an instruction.")
def show(
    instruction: Annotated[str, typer.Argument(help="PTX in full, or short with --a-type: 'wgmma', 'tcgen05.mma.kind::mxf4.block_scale'.")],
    arch: Annotated[str, typer.Option(autocompletion=architectures, help="Architecture, or GPU: sm_90a, h100.")],
    a_type: Annotated[str | None, typer.Option(help="Type of A, for a short spelling.")] = None,
    b_type: Annotated[str | None, typer.Option(help="Type of B; that of A if left out.")] = None,
    c_type: Annotated[str | None, typer.Option(help="Type of C.")] = None,
    scale_type: Annotated[str | None, typer.Option(help="Type of the block scales: ue8m0 or ue4m3.")] = None,
    as_json: Json = False,
) -> None:
    """Show shape, types, lowering, arithmetic and evidence of an instruction."""
    from mmabits.commands import tables

    found = _instruction(instruction, arch, a_type, b_type, c_type, scale_type)
    if as_json:
        say_json(tables.instruction_json(found, arch))
    else:
        say(*tables.instruction_lines(found, arch))


def replay_paths(paths: Sequence[Path], limit: int, as_json: bool, page: Path | None = None, *, as_csv: bool = False) -> int:
    """Replay, print, and return the exit status."""
    from mmabits.conformance.campaign.archive import is_archive
    from mmabits.conformance.diff import counting
    from mmabits.conformance.recorded.reading import find_files
    from mmabits.reports.pages import check_page, write
    from mmabits.reports.progress import progress

    check_page(page)
    archives = [path for path in paths if is_archive(path)]
    files = [] if archives == list(paths) and paths else find_files([path for path in paths if path not in archives])
    reports: list[counting.FileReport] = []
    for archive in archives:
        from mmabits.conformance.campaign.learn import read_learned

        reports += read_learned(archive).reports
    with progress(len(files), "replaying") as advance:
        for report in counting.count_files(files, limit=limit):
            reports.append(report)
            advance()
    for report in reports:
        if report.error is not None:
            complain(report.error)
    if page is not None:
        from mmabits.commands.pages.replay import counts_page

        write(page, counts_page(reports))
    if as_csv:
        say_csv([counting.report_row(report) for report in reports])
    elif as_json:
        say_json(counting.reports_json(reports))
    else:
        counted = [report for report in reports if report.error is None]
        if counted:
            draw(counting.reports_table(counted))
        for report in counted:
            for difference in report.differences:
                say("", *counting.described_lines(report, difference))
        say(counting.summary(reports))
        if page is not None:
            say(f"wrote {page}")
    return counting.exit_status(reports)


@app.command(name="replay")
def replay_(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Files or folders; without any, $MMABITS_RECORDINGS, ../shared/hardware, or the pack that ships."),
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
    limit: Annotated[int, typer.Option(min=0, help="How many differing rows of each file to describe.")] = 3,
    report: Annotated[Path | None, typer.Option(help="Write a page (.html).")] = None,
) -> None:
    """Run recorded dot products through the engine. Exit status: 0 all equal, 1 some differ, 2 unreadable input."""
    from mmabits.conformance.recorded.reading import FOLDER_VARIABLE, recordings_folder

    folder = None if paths else recordings_folder()
    if not paths and folder is None:
        from mmabits.conformance.probes.pack import FOLDER
        from mmabits.reports.output import note

        note(
            f"No recordings of GPUs here (name files or folders, or set {FOLDER_VARIABLE}): this is the pack that ships, whose results an "
            "exact model computed. It tests this machine's engine, and proves nothing about hardware."
        )
        folder = FOLDER
    raise typer.Exit(replay_paths(paths or [Path(str(folder))], limit, as_json, report, as_csv=as_csv))


@app.command(short_help="Multiply real weights as several GPUs would, and compare.")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the picture; made if missing.")] = Path("demo-output"),
    size: Annotated[str, typer.Option(help="small or full.")] = "full",
    recordings: Annotated[Path | None, typer.Option(help="Recordings to replay at the end.")] = None,
) -> None:
    """Multiply real weights in FP8, MXFP8, MXFP4 and NVFP4 with the arithmetic of several GPUs, and compare."""
    from mmabits.commands.demo import run_demo
    from mmabits.conformance.recorded.reading import recordings_folder

    run_demo(out=out, size=size, console=console(), progress=console(stderr=True))
    folder = recordings or recordings_folder()
    if folder is None:
        say("No recordings here: the replay is left out (name them with --recordings).")
        return
    say("", f"Recordings of real GPUs in {folder}:")
    raise typer.Exit(replay_paths([folder], 3, False))


app.command(name="campaign", short_help="A few minutes with a GPU: what is most worth knowing, in one archive.")(campaign)
app.command(name="compare", short_help="Multiply own matrices as several GPUs would, and compare.")(compare)
app.command(name="gemm", short_help="Multiply own matrices as a GPU would; a .npy file comes out.")(multiply)
app.command(name="explain", short_help="Explain one element of a product, step by step.")(explain)
app.command(name="function", short_help="Explain one result of a PTX function.")(function)
app.command(name="diff", short_help="Compare a GPU, or a recording, with the emulator, bit by bit.")(diff)
app.command(name="evaluate", short_help="A whole model on text, by many architectures and recipes.")(evaluate)
app.command(name="identify", short_help="Find the datapath that fits a recording or a GPU.")(identify)
app.command(name="kernel", short_help="Show what became of a Triton kernel, or of PTX.")(kernel)
app.command(name="invariance", short_help="Which settings change the bits of linear layers, and why.")(invariance)
app.command(name="learn", short_help="What an archive of a campaign teaches; a patch for isa/.")(learn)
app.command(name="minilm", short_help="Run a sentence-embedding model as several GPUs would.")(minilm)
app.command(name="mismatch", short_help="Two settings of one model: what differs, and why.")(mismatch)
app.command(name="record")(record)
app.command(name="study", short_help="Run a study that ships, and write its page.")(study)
vectors = typer.Typer(
    help="Vector files: which wrong models they would catch, the pack that ships, and files made of arrays.",
    short_help="Vector files: what they catch; made of arrays; the pack.",
    no_args_is_help=True,
)
vectors.command(name="score")(vectors_score)
vectors.command(name="pack")(vectors_pack)
vectors.command(name="convert")(vectors_convert)
app.add_typer(vectors, name="vectors")
app.add_typer(cache, name="cache", short_help="Where the engine's machine code is kept; fill and empty it.")
app.info.epilog = epilog("mmabits")
for prefix, group in (("mmabits", app), ("mmabits vectors", vectors), ("mmabits cache", cache)):
    for registered in group.registered_commands:
        registered.epilog = epilog(f"{prefix} {registered.name or getattr(registered.callback, '__name__', '')}")
    group.info.epilog = epilog(prefix)


if __name__ == "__main__":
    main()
