"""`mmabits evaluate`: a whole model on text, in every combination of settings."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mmabits.commands.completion import architectures, model_recipes
from mmabits.isa.errors import EmulationError, OperandError

if TYPE_CHECKING:
    from mmabits.research.evaluation import Evaluation

EXIT_REFUSED: Final = 1
_SECONDS: Final = 20
"""For a scheduler to answer."""
_STARTING: Final = 120
"""Seconds for the first worker to come."""


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="A folder that transformers reads; package.module:function, a function of tokens or what makes one; small; minilm."
        ),
    ],
    arch: Annotated[
        list[str],
        typer.Option(
            autocompletion=architectures, help="Architecture, or GPU; again for others. The first is what others are held against."
        ),
    ],
    quantize: Annotated[
        list[str] | None,
        typer.Option(autocompletion=model_recipes, help="Recipe, as none, fp8, mxfp8, nvfp4; again for others. none if left out."),
    ] = None,
    library: Annotated[
        list[str] | None, typer.Option(help="Order of sums: cublaslt-13.1, chain, a file of choices; best: the best known choice.")
    ] = None,
    accumulator: Annotated[list[str] | None, typer.Option(help="default; fast, of FP8; f16.")] = None,
    text: Annotated[Path | None, typer.Option(help="File of text that the model reads; a paragraph of English if left out.")] = None,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a piece; pieces know nothing of each other.")] = 256,
    pieces: Annotated[int | None, typer.Option(min=1, help="Pieces at most.")] = None,
    dtype: Annotated[str, typer.Option(help="What the model is cast to first: own, bf16, f16, f32.")] = "own",
    keep: Annotated[
        list[str] | None, typer.Option(help="Name or pattern of layers that recipes leave alone, instead of lm_head; again for others.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results of each run; an interrupted evaluation goes on there.")] = None,
    dask: Annotated[str | None, typer.Option(help="Address of a dask.distributed scheduler, whose workers compute the runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write settings, ends and layers as CSV.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page (.html).")] = None,
) -> None:
    """Run a model on text by every architecture and recipe: what differs, by layer and at the end.

    Exit status: 0 every setting was run, 1 some cannot be.
    """
    from mmabits.reports.output import say_json
    from mmabits.reports.pages import check_folder, check_page, write

    check_page(report)
    check_page(csv, suffixes=(".csv",))
    if out is not None:
        check_folder(out)
    if importlib.util.find_spec("torch") is None:
        raise EmulationError("torch is not installed: pip install 'mmabits[torch]'")
    from mmabits.research.evaluation.whole import KEPT
    from mmabits.research.evaluation.whole import evaluate as run

    with _client(dask) as client:
        found = run(
            model, archs=arch, recipes=quantize or ["none"], libraries=[None if each == "best" else each for each in library or ["best"]],
            accumulators=accumulator or ["default"], text=None if text is None else _text(text), length=length, most=pieces, dtype=dtype,
            keep=KEPT if keep is None else keep, out=out, client=client,
        )  # fmt: skip
    if csv is not None:
        found.csv(csv)
    if report is not None:
        from mmabits.commands.pages.evaluate import evaluation_page

        write(report, evaluation_page(found))
    if as_json:
        say_json(found.as_json)
    else:
        _show(found)
    raise typer.Exit(0 if found.is_whole else EXIT_REFUSED)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OperandError(f"{path} is no text in UTF-8: {error}") from error


@contextmanager
def _client(address: str | None) -> Iterator[Any]:
    """A client of a scheduler, None without an address."""
    if address is None:
        yield None
        return
    if importlib.util.find_spec("distributed") is None:
        raise EmulationError("dask.distributed is not installed: pip install 'mmabits[study]'")
    distributed: Any = importlib.import_module("distributed")
    try:
        client = distributed.Client(address, timeout=_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise EmulationError(f"no scheduler of dask.distributed answers at {address}: {' '.join(str(error).split())}") from error
    try:
        try:
            client.wait_for_workers(1, timeout=_STARTING)
        except TimeoutError as error:
            raise EmulationError(f"the scheduler at {address} has no workers") from error
        yield client
    except (ImportError, distributed.scheduler.KilledWorker) as error:
        raise EmulationError(f"a worker of {address} failed: {type(error).__name__}: {' '.join(str(error).split())}") from error
    finally:
        client.close()


def _show(found: Evaluation) -> None:
    from mmabits.reports.output import draw, say

    for titles, table in enumerate(found.tables(), 1):
        draw(table, titles=titles, between=" against ")  # of the second both settings
    for text in found.without_effect:
        say(f"Left out, since it changes nothing: {text}")
    missed = dict.fromkeys(text for each in found.settings for text in each.not_emulated)
    for text in missed:
        say(f"Not emulated: {text}")
