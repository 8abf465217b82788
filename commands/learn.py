"""The command `mmabits learn`; commands/main.py registers it: `app.command(name="learn")(learn)`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

EXIT_DIFFER: Final = 1
EXIT_ERROR: Final = 2


def learn(
    archive: Annotated[Path, typer.Argument(help="An archive of `mmabits campaign`, or its folder.")],
    patch: Annotated[Path | None, typer.Option(help="Write the change to isa/ as a patch, for review.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the recordings, whole: for replay, identify, diff and vectors score.")
    ] = None,
    blocks: Annotated[int | None, typer.Option(min=0, help="Blocks of 2^20 operands of each function to compare; all 4,096 if 4096.")] = 4,
) -> None:
    """Say what an archive teaches: rows whose evidence rises, questions it settles. Exit status: 1 differences, 2 errors."""
    from mmabits.conformance.campaign.learn import lines, patch_of, read_learned
    from mmabits.conformance.recorded.files import write_new
    from mmabits.conformance.recorded.tiles import write_recording
    from mmabits.reports.output import complain, say
    from mmabits.reports.pages import check_folder, write
    from mmabits.reports.progress import working

    if out is not None:
        check_folder(out)
    with working("reading and replaying"):
        found = read_learned(archive, most_blocks=blocks)
    for report in found.reports:
        if report.error is not None:
            complain(report.error)
    say(*lines(found))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for name, recording in found.recordings:
            write_recording(out / f"{name}.safetensors", recording)
        for name, data in found.others:
            write_new(out / name.replace("/", "-"), data)
        say(f"{len(found.recordings)} recordings and {len(found.others)} other files in {out}")
    text, left = patch_of(found)
    say(*(f"not in the patch: {line}" for line in left))
    if patch is not None:
        write(patch, text)
        say(f"wrote {patch}: {text.count(chr(10) + '@@')} places" if text else f"wrote {patch}: nothing to change")
    if any(report.error is not None for report in found.reports):
        raise typer.Exit(EXIT_ERROR)
    raise typer.Exit(EXIT_DIFFER if any(report.differing for report in found.reports) else 0)
