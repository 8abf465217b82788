"""`mmabits mismatch`: two settings of one model, trainer against generator."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mmabits.isa.errors import EmulationError, OperandError

if TYPE_CHECKING:
    from mmabits.research.mismatch import Mismatch

EXIT_DIFFERS: Final = 1


def mismatch(
    a: Annotated[
        str, typer.Argument(help="ARCH:FORMAT, then library=VERSION and rows=N: h100:bf16, b200:fp8:library=cublaslt-13.1:rows=1.")
    ],
    b: Annotated[str, typer.Argument(help="The other setting; formats are bf16, f16 and fp8.")],
    model: Annotated[
        str,
        typer.Option(
            help="small; minilm; a folder of weights that transformers reads; or package.module:function, which returns a module."
        ),
    ] = "small",
    text: Annotated[str | None, typer.Option(help="What a model with a tokenizer reads.")] = None,
    train: Annotated[int, typer.Option(min=0, max=10000, help="Steps in which the small model learns a sentence.")] = 0,
    layers: Annotated[int, typer.Option(min=1, max=64, help="Blocks of the small model.")] = 2,
    width: Annotated[int, typer.Option(min=16, max=4096, help="Its width, a multiple of 16.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Seed of its weights.")] = 0,
    report: Annotated[Path | None, typer.Option(help="Write a page (.html).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run a model in two settings: ulps by layer, log-probabilities, the first cause. Exit status: 0 the same bits, 1 not."""
    from mmabits.reports.output import say_json
    from mmabits.reports.pages import check_page, write
    from mmabits.reports.progress import working

    check_page(report)
    if importlib.util.find_spec("torch") is None:
        raise EmulationError("torch is not installed: pip install 'mmabits[torch]'")
    if width % 16:
        raise OperandError(f"width must be a multiple of 16, got {width}")
    from mmabits.research.mismatch import ModelSetting
    from mmabits.research.mismatch import mismatch as run
    from mmabits.research.models import find_model
    from mmabits.research.sentence import SENTENCE

    settings = ModelSetting.of(a), ModelSetting.of(b)
    with working("loading the model"):
        loaded = find_model(model, layers=layers, width=width, steps=train, seed=seed, text=SENTENCE if text is None else text)
    with working("running it both ways"):
        found = run(*settings, model=loaded.model, tokens=loaded.tokens)
    if report is not None:
        from mmabits.commands.pages.mismatch import mismatch_page

        write(report, mismatch_page(found, model=loaded.words))
    if as_json:
        say_json(found.as_json)
    else:
        _show(found, loaded.words)
    raise typer.Exit(0 if found.is_same else EXIT_DIFFERS)


def _show(found: Mismatch, model: str) -> None:
    from mmabits.commands.pages.mismatch import MEASURES
    from mmabits.reports.output import say

    what = MEASURES[found.measure]
    say(f"{found.a.words} against {found.b.words}: {model}")
    if found.is_same:
        say(f"The same bits in all {len(found.layers)} linear layers and {found.tokens} {what}.")
    else:
        differing = sum(bool(layer.changed) for layer in found.layers)
        more = ""
        if found.ratios is not None:
            more = f"; divergence {found.kl:.3g}; ratios {found.ratios[0]:.6g} to {found.ratios[1]:.6g}"
        say(
            f"{differing} of {len(found.layers)} linear layers differ; first {found.first_cause}",
            f"{found.changed} of {found.tokens} {what} differ: mean {found.mean:.3g}, largest {found.largest:.3g}{more}",
            f"mean distance from f32: {found.to_f32[0]:.3g} and {found.to_f32[1]:.3g}",
        )
    for share in found.causes:
        say(f"- {share.cause} alone ({share.setting}): {share.changed} {what}, mean {share.mean:.3g}")
    for operation in found.not_emulated:
        say(f"Not emulated: {operation}")
