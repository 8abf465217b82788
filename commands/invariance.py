"""`mmabits invariance`: which settings change the bits of a model's linear layers, and why."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mmabits.commands.completion import architectures
from mmabits.isa.errors import OperandError

if TYPE_CHECKING:
    from mmabits.research.invariance import InvarianceReport, LinearShape

EXIT_CHANGES: Final = 1
_LAYER: Final = re.compile(r"(?:([\w., -]+)=)?(\d{1,9})x(\d{1,9})")


def invariance(
    layers: Annotated[
        list[str], typer.Argument(help="A model (minilm, llama-8b, llama-70b), or layers as NxK or NAME=NxK: N outputs, K inputs.")
    ],
    arch: Annotated[str, typer.Option(autocompletion=architectures, help="Architecture, or GPU: sm_90a, h100.")] = "sm_90a",
    types: Annotated[str, typer.Option(help="f16, bf16 or e4m3; or A,B,D.")] = "bf16",
    library: Annotated[str, typer.Option(help="cublaslt-13.1 or cublaslt-12.8.")] = "cublaslt-13.1",
    choices: Annotated[Path | None, typer.Option(help="Answers recorded on a GPU (mmabits record --choices).")] = None,
    reference: Annotated[int | None, typer.Option(min=1, help="Rows that all is held against; the largest batch if left out.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Rows; may be repeated. 1 to 4096 if left out.")] = None,
    chunk: Annotated[list[int] | None, typer.Option(min=1, help="Chunks of the prefill; may be repeated.")] = None,
    pad: Annotated[list[int] | None, typer.Option(min=1, help="K filled to a multiple; may be repeated.")] = None,
    ranks: Annotated[list[int] | None, typer.Option(min=1, help="Ranks of tensor parallelism; may be repeated.")] = None,
    reduction: Annotated[str, typer.Option(help="How ranks are added: order, ring or tree.")] = "ring",
    against: Annotated[list[str] | None, typer.Option(help="Another architecture; may be repeated.")] = None,
    other_library: Annotated[list[str] | None, typer.Option(help="Another version; may be repeated.")] = None,
    split: Annotated[list[int] | None, typer.Option(min=1, help="A kernel that cuts K into so many slices; may be repeated.")] = None,
    instruction: Annotated[
        list[str] | None, typer.Option(help="A kernel with another instruction, such as mma.sync (tiles of 16 rows); may be repeated.")
    ] = None,
    fast_accum: Annotated[bool, typer.Option("--fast-accum", help="FP8 accumulated fast.")] = False,
    workspace: Annotated[int, typer.Option(min=0, help="Bytes that the library may use.")] = 32 << 20,
    strict: Annotated[bool, typer.Option("--strict", help="Exit status 1 for open settings too.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write a page (.html).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Which settings change the bits of linear layers, as far as the library's choices are known. Exit status: 0 none, 1 some change."""
    from mmabits.reports.output import say_json
    from mmabits.reports.pages import check_page, write
    from mmabits.reports.progress import working
    from mmabits.research.invariance import BATCHES
    from mmabits.research.invariance import invariance as run

    check_page(report)
    with working("comparing settings"):
        found = run(
            _layers(layers), types=types.split(","), arch=arch, library=library, file=choices, reference=reference,
            batches=batch or BATCHES, chunks=chunk or (), pads=pad or (), ranks=ranks or (), reduction=reduction,
            archs=against or (), libraries=other_library or (),
            splits=split or (), instructions=instruction or (), workspace=workspace, fast_accum=fast_accum,
        )  # fmt: skip
    if report is not None:
        from mmabits.commands.pages.invariance import invariance_page

        write(report, invariance_page(found))
    if as_json:
        say_json(found.as_json)
    else:
        _show(found)
    raise typer.Exit(0 if (found.is_settled if strict else found.is_invariant) else EXIT_CHANGES)


def _layers(given: list[str]) -> str | list[LinearShape]:
    from mmabits.research.invariance import MODELS, LinearShape

    if len(given) == 1 and given[0] in MODELS:
        return given[0]
    shapes: list[LinearShape] = []
    for text in given:
        match = _LAYER.fullmatch(text)
        if match is None:
            raise OperandError(f"a layer is NxK or NAME=NxK, and a model one of {', '.join(MODELS)}; got {text!r}")
        shapes.append(LinearShape(name=match[1] or f"layer {len(shapes) + 1}", n=int(match[2]), k=int(match[3])))
    return shapes


def _show(found: InvarianceReport) -> None:
    from rich.table import Table
    from rich.text import Text

    from mmabits.commands.pages.invariance import KNOWN
    from mmabits.reports.output import draw, say
    from mmabits.research.invariance import CHANGES, OPEN, SAME

    table = Table(title=f"Against {found.reference}", title_justify="left")
    for heading in ("layer", "setting", "status", "changed", "at most", "cause"):
        table.add_column(heading, overflow="fold", justify="right" if heading in ("changed", "at most") else "left")
    for row in found.findings:
        if row.status != SAME:
            cells = (row.layer, row.setting, row.status, f"{row.changed} of {row.results}", str(row.most), row.cause)
            table.add_row(*map(Text, cells))
    if table.row_count:
        draw(table)
    for words in found.without_effect:
        say(f"Not compared: {words}.")
    say(f"{found.count(SAME)} settings the same, {found.count(OPEN)} open, {found.count(CHANGES)} change bits.", KNOWN)
