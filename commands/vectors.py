"""`mmabits vectors score` and `mmabits vectors pack`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from mmabits.conformance.probes.score import Score

EXIT_ERROR: Final = 2
EXIT_OPEN: Final = 1


def _table(scores: Sequence[Score]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from mmabits.isa import visible

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("file", "datapath", "rows", "mutants", "killed", "equivalent", "survivors"):
        table.add_column(name, justify="right" if name in ("rows", "mutants", "killed", "equivalent") else "left", overflow="fold")
    for score in scores:
        names = ", ".join(f"{survivor.number} {survivor.change}" for survivor in score.open) or "none"
        table.add_row(
            escape(visible(Path(score.path).stem)), score.datapath, str(score.rows), str(score.mutants), str(len(score.killed)),
            str(len(score.equivalent)), escape(names),
        )  # fmt: skip
    return table


def vectors_score(
    paths: Annotated[list[Path] | None, typer.Argument(help="Files or folders; without any, the pack that ships.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page (.html).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit status 1 where a mutant survives that some operands could kill.")] = False,
) -> None:
    """Say which wrong models a set of dot products kills, and which survive. Exit status: 0, or 2 for unreadable input."""
    from mmabits.conformance.probes.pack import FOLDER
    from mmabits.conformance.probes.score import score_files
    from mmabits.conformance.recorded.reading import find_files
    from mmabits.reports.output import complain, draw, say, say_json
    from mmabits.reports.pages import check_page, write
    from mmabits.reports.progress import progress

    check_page(report)
    files, scores = find_files(paths or [FOLDER]), []
    with progress(len(files), "scoring") as advance:
        for score in score_files(files):
            scores.append(score)
            advance()
    if report is not None:
        from mmabits.commands.pages.vectors import score_page

        write(report, score_page(scores))
    failed = [score for score in scores if score.error is not None]
    for score in failed:
        complain(str(score.error))
    good = [score for score in scores if score.error is None]
    if as_json:
        say_json([score.as_json for score in scores])
    elif good:
        draw(_table(good))
        reasons = dict.fromkeys(survivor.reason for score in good for survivor in score.equivalent)
        for reason in reasons:
            count = sum(survivor.reason == reason for score in good for survivor in score.equivalent)
            say(f"no operands kill {count}: {reason}")
        wrong = sum(score.differing for score in good)
        say(f"{sum(len(score.killed) for score in good)} killed, {sum(len(score.open) for score in good)} survive, "
            f"{sum(len(score.equivalent) for score in good)} that no operands kill; {wrong} rows differ from the model")  # fmt: skip
    if report is not None and not as_json:
        say(f"wrote {report}")
    if failed:
        raise typer.Exit(EXIT_ERROR)
    raise typer.Exit(EXIT_OPEN if strict and any(score.open for score in good) else 0)


def vectors_pack(
    out: Annotated[Path, typer.Option(help="Folder for the files; made if missing.")] = Path("vectors-pack"),
) -> None:
    """Write the discriminating pack: for each datapath the few dot products that kill every mutant, with computed results."""
    from mmabits.conformance.probes.pack import write_pack
    from mmabits.reports.output import say
    from mmabits.reports.pages import check_folder
    from mmabits.reports.progress import working

    check_folder(out)
    with working("searching for dot products"):
        paths = write_pack(out)
    say(f"{len(paths)} files, {sum(path.stat().st_size for path in paths)} bytes in {out}")


def vectors_convert(
    description: Annotated[Path, typer.Argument(help="What the data are (.toml): instruction, arch, kind, gpu, and the files.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write (.safetensors).")],
) -> None:
    """Make a vector file of arrays in .npz, .csv or raw files."""
    from mmabits.conformance.recorded.converted import convert
    from mmabits.conformance.recorded.dots import DotVectors, write_vectors
    from mmabits.conformance.recorded.tiles import write_recording
    from mmabits.isa.errors import OperandError
    from mmabits.reports.output import say
    from mmabits.reports.pages import check_page

    if out.suffix != ".safetensors":
        raise OperandError(f"a vector file is written as .safetensors, got {str(out)!r}")
    check_page(out, suffixes=(".safetensors",))
    found = convert(description)
    if isinstance(found, DotVectors):
        write_vectors(out, found)
        what = f"{found.rows} dot products"
    else:
        write_recording(out, found)
        what = f"{found.tiles} tiles"
    say(f"{what} of {found.row.ptx} on {found.gpu or found.arch} ({found.kind}); replay them with: mmabits replay {out}")
