"""`mmabits compare` and `mmabits gemm`: matrices of one's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer

from mmabits.commands.completion import architectures, recipes
from mmabits.isa.errors import OperandError, nearest

EXIT_DIFFERS: Final = 1

Matrix = Annotated[str, typer.Argument(help="FILE or FILE:TENSOR; .npy, .npz, .safetensors, .pt; - is .npy on standard input.")]
Stored = Annotated[str | None, typer.Option("--stored", help="What raw bytes in the files are codes of: e4m3, e2m1, ...")]
Transposed = Annotated[bool, typer.Option("--transpose-b", help="B lies as (N, K), as weights of linear layers do.")]
Promoted = Annotated[int | None, typer.Option(help="Elements of K between promotions.")]


def compare(
    a: Matrix,
    b: Matrix,
    arch: Annotated[
        list[str] | None, typer.Option(autocompletion=architectures, help="Architecture, or GPU: sm_90a, b200. May be repeated.")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format", "-f", autocompletion=recipes, help="Format or recipe to bring both to: e4m3, fp8, mxfp8, nvfp4, bf16, ..."
        ),
    ] = None,
    format_b: Annotated[str | None, typer.Option(autocompletion=recipes, help="Another one for B.")] = None,
    instruction: Annotated[list[str] | None, typer.Option(help="wgmma, mma.sync, or PTX in full. May be repeated.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="What all are compared with: exact, float32, or a file. The first way if left out.")
    ] = None,
    promote_every: Promoted = None,
    transpose_b: Transposed = False,
    stored: Stored = None,
    worst: Annotated[int, typer.Option(min=0, max=1000, help="How many of the elements that differ most to show.")] = 5,
    explain: Annotated[bool, typer.Option("--explain", help="Explain the worst of them, step by step.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write a page (.html).")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a row for each way.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Multiply two matrices as several GPUs would, and compare bit by bit. Exit status: 0 the same bits, 1 not."""
    from mmabits.conformance.ways import REFERENCES
    from mmabits.conformance.ways import compare as run
    from mmabits.conformance.ways_shown import ways_page
    from mmabits.reports.output import draw, say, say_csv, say_json
    from mmabits.reports.pages import check_page, write
    from mmabits.reports.progress import working

    check_page(report)
    if as_csv and as_json:
        raise OperandError("--csv and --json are two ways to print one thing: name one")
    if not arch:
        raise OperandError("--arch is missing: name one or more, as in --arch sm_90a --arch sm_100a")
    left, right = _matrices(a, b, transpose_b, stored)
    given: Any = reference
    if reference is not None and reference not in REFERENCES:
        from mmabits.reports.matrices import STANDARD, MatrixSource, read_matrix

        path = MatrixSource.of(reference).path
        if path != STANDARD and not Path(path).suffix:
            raise OperandError(
                f"unknown reference {reference!r}{nearest(reference, REFERENCES)}; known: {', '.join(REFERENCES)}, or a file"
            )
        given = read_matrix(reference)
    with working("multiplying"):
        found = run(
            left, right, arch=arch, instruction=instruction or None, format=format, format_b=format_b, reference=given,
            promote_every=promote_every, worst=worst,
        )  # fmt: skip
    if report is not None:
        write(report, ways_page(found, names=(a, b)))
    if as_csv:
        say_csv(found.rows())
    elif as_json:
        say_json(found.as_json)
    else:
        draw(found)
        if explain and found.worst:
            with working("explaining"):
                explanations = found.explain(found.worst[0])
            for explanation in explanations:
                say("")
                draw(explanation)
        if report is not None:
            say(f"wrote {report}")
    raise typer.Exit(0 if found.is_equal else EXIT_DIFFERS)


def multiply(
    a: Matrix,
    b: Matrix,
    out: Annotated[str, typer.Option("--out", "-o", help="Where to write D (.npy); - is standard output.")],
    arch: Annotated[list[str], typer.Option(autocompletion=architectures, help="Architecture, or GPU: sm_90a, h100.")],
    format: Annotated[
        str | None, typer.Option("--format", "-f", autocompletion=recipes, help="Format or recipe to bring both to first.")
    ] = None,
    format_b: Annotated[str | None, typer.Option(autocompletion=recipes, help="Another one for B.")] = None,
    instruction: Annotated[str | None, typer.Option(help="wgmma, mma.sync, or PTX in full; the newest if left out.")] = None,
    promote_every: Promoted = None,
    transpose_b: Transposed = False,
    stored: Stored = None,
) -> None:
    """Multiply two matrices as a GPU would, and write the product.

    A recipe's scales of the whole matrices multiply the product at the end, in float32.
    """
    from mmabits.conformance.ways import quantized, scaled
    from mmabits.emulator.api import gemm, operand_type, scale_type
    from mmabits.isa import library_instruction
    from mmabits.reports.output import note
    from mmabits.reports.progress import working

    if len(arch) > 1:
        raise OperandError(f"a product is one GPU's: name one --arch, got {', '.join(arch)} (mmabits compare takes several)")
    (one,) = arch
    if out == "-" and sys.stdout.isatty():
        raise OperandError("standard output is a terminal, where a .npy file is no text: name a file, or a pipe")
    if out != "-" and Path(out).suffix != ".npy":
        raise OperandError(f"the product is written as .npy, got {out!r}")
    if out != "-" and not Path(out).absolute().parent.is_dir():
        raise OperandError(f"there is no folder {Path(out).absolute().parent}")
    left, right = _matrices(a, b, transpose_b, stored)
    pair = quantized(left, right, format, format_b)
    scale = None if pair.scale_a is None else scale_type(pair.scale_a)
    row: Any = instruction or library_instruction(one, operand_type(pair.a, "a"), operand_type(pair.b, "b"), scale_type=scale)
    with working("multiplying"):
        d = gemm(pair.a, pair.b, instruction=row, arch=one, promote_every=promote_every, scale_a=pair.scale_a, scale_b=pair.scale_b)
    for line in pair.notes:
        note(line)
    _write(out, scaled(d, pair))


def _matrices(a: str, b: str, transpose_b: bool, stored: str | None) -> tuple[Any, Any]:
    from mmabits.reports.matrices import STANDARD, read_matrix

    if a == b == STANDARD:
        raise OperandError("standard input holds one matrix: name a file for the other")
    left, right = read_matrix(a, stored=stored), read_matrix(b, stored=stored)
    if transpose_b:
        right = np.ascontiguousarray(np.swapaxes(right, -1, -2)) if right.ndim > 1 else right
    return left, right


def _write(out: str, d: Any) -> None:
    from mmabits.isa import MmabitsError
    from mmabits.reports.output import ReaderGone
    from mmabits.reports.written import written_whole

    if out == "-":
        try:
            np.lib.format.write_array(sys.stdout.buffer, d, allow_pickle=False)
        except BrokenPipeError as error:
            raise ReaderGone from error
        return
    try:
        with written_whole(Path(out)) as partial, partial.open("wb") as file:
            np.lib.format.write_array(file, d, allow_pickle=False)
    except OSError as error:
        raise MmabitsError(f"{out} cannot be written ({error.strerror or error})") from error
