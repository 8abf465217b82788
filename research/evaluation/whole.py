"""`evaluate`: a model on text in every combination of architectures, recipes, libraries and accumulators.

Imports torch when it is imported.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from mmabits.emulator.hooks.library import Library
from mmabits.emulator.hooks.session import current_session
from mmabits.isa import EmulationError, OperandError, architecture, nearest
from mmabits.research.evaluation.account import FIELDS, Evaluation, differences_of, settings_of, words_of
from mmabits.research.evaluation.points import (
    ACCUMULATORS,
    DTYPES,
    EXACT,
    GIVEN,
    EvaluationSetting,
    cast,
    digest_of,
    evaluate_point,
    is_kept,
    linear_layers,
)  # fmt: skip
from mmabits.research.evaluation.recipes import ModelRecipe, model_recipe
from mmabits.research.models import FoundModel, FunctionModel, find_model
from mmabits.research.sentence import SENTENCE
from mmabits.research.study.sweeps import sweep

KEPT: Final = ("lm_head",)
"""Layers that stay in the model's type unless it is said otherwise, as in checkpoints: the last one, which gives the logits."""


def evaluate(
    model: str | Path | nn.Module,
    *,
    archs: Sequence[str],
    recipes: Sequence[str] = ("none",),
    libraries: Sequence[str | None] = (None,),
    accumulators: Sequence[str] = ("default",),
    text: str | None = None,
    tokens: Sequence[int] | None = None,
    length: int = 256,
    most: int | None = None,
    dtype: str = "own",
    keep: Sequence[str] = KEPT,
    out: str | Path | None = None,
    client: Any = None,
    progress: bool = True,
) -> Evaluation:
    """Run a model on text in every combination of settings, and compare: by linear layer, and at the end.

    Every setting is held against the model in f32, as PyTorch computes it on the CPU, and, for each of architecture, recipe, library and
    accumulator in which it is not the first, against the setting that has the first of that alone.

    Args:
        model: `"small"`, `"minilm"`, a folder that transformers reads, `"package.module:function"` (it makes a torch.nn.Module, or a
            function of tokens, or is one itself; beside it may stand tokens or a tokenizer), or a torch.nn.Module.
        archs: architectures, or names that `what_if` was given.
        recipes: names in `research.evaluation.recipes.RECIPES`: `"none"`, `"fp8"`, `"mxfp8"`, `"nvfp4"` and so on.
        libraries: as `library` of `emulate`; None: the best known choice.
        accumulators: out of `"default"`, `"fast"` (FP8 accumulated fast) and `"f16"`.
        text: what it reads; None: a paragraph of English, unless there are tokens.
        tokens: instead of text.
        length: tokens of a piece; the text is cut into pieces that know nothing of each other.
        most: pieces at most; None: all.
        dtype: what the model is cast to first: `"own"`, `"bf16"`, `"f16"` or `"f32"`.
        keep: patterns of names, or of last parts of names, of layers that recipes leave in the model's type; a pattern that no layer fits
            is an error, but for those of `KEPT`. They replace these: name `"lm_head"` too, where it is to stay.
        out: a folder for the results of each run as it is done; an evaluation that was interrupted goes on there.
        client: a `distributed.Client`: the runs are computed on its workers, which find the model by its name.
        progress: show a bar on a terminal.

    Returns:
        The evaluation: settings, differences. The same wherever it was computed, on one kind of processor.

    Raises:
        OperandError: no such model, recipe, library, accumulator or type; a layer whose shape a recipe does not take; no text.
        UnknownArchitecture: no such architecture.
        EmulationError: inside a block of `emulate`, or a package is missing.
        JournalMismatch: `out` holds another evaluation.
    """
    _check_words(archs, recipes, libraries, accumulators, dtype, length, most)
    if client is not None:
        _check_for_workers(model, archs)
    found, name = _found(model, dtype)
    digest = digest_of(found.model)
    if isinstance(model, nn.Module):
        GIVEN[digest] = found.model
    try:
        settings, without_effect = _settings(found.model, archs, recipes, libraries, accumulators)
        _check_layers(found.model, recipes, keep)
        pieces = _pieces(found, text, tokens, length, most)
        against = {setting: list(_against(setting, settings)) for setting in settings}
        points = [
            _point(name, dtype, digest, number, piece, setting, against[setting], keep, found.is_causal)
            for number, piece in enumerate(pieces)
            for setting in settings
        ]
        rows = sweep(evaluate_point, points, out=out, client=client, progress=progress, what="runs").rows
    finally:
        GIVEN.pop(digest, None)
    exact = "PyTorch on the CPU" if isinstance(found.model, FunctionModel) else "f32"
    others = {
        (*(getattr(setting, field) for field in FIELDS), kind): exact if other is None else words_of(asdict(other))
        for setting, each in against.items()
        for kind, other in each
    }
    logits = [row["logits"] for row in rows if row["kind"] == "run"]
    return Evaluation(
        model=found.words, measure="" if not logits else "logits" if all(logits) else "outputs", pieces=len(pieces), length=length,
        settings=settings_of(rows, map(asdict, settings)), differences=differences_of(rows, others), without_effect=without_effect,
    )  # fmt: skip


def _check_words(
    archs: Sequence[str], recipes: Sequence[str], libraries: Sequence[str | None], accumulators: Sequence[str], dtype: str, length: int,
    most: int | None,
) -> None:  # fmt: skip
    if current_session() is not None:
        raise EmulationError("evaluate opens blocks of its own; call it outside of emulate")
    for what, names in (("archs", archs), ("recipes", recipes), ("libraries", libraries), ("accumulators", accumulators)):
        if isinstance(names, str) or not names:
            raise OperandError(f"{what} must be a sequence of names, got {names!r}")
    for arch in archs:
        architecture(arch)
    for recipe in recipes:
        model_recipe(recipe)
    for library in libraries:
        Library.of(library, bugs=False)
    for accumulator in accumulators:
        if accumulator not in ACCUMULATORS:
            raise OperandError(
                f"unknown accumulator {accumulator!r}{nearest(str(accumulator), ACCUMULATORS)}; known: {', '.join(ACCUMULATORS)}"
            )
    if dtype not in DTYPES:
        raise OperandError(f"unknown type {dtype!r}{nearest(str(dtype), DTYPES)}; known: {', '.join(DTYPES)}")
    for what, value in (("length", length), ("most", most)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1 + (what == "length")):
            raise OperandError(f"{what} must be a whole number from {1 + (what == 'length')} on, got {value!r}")


def _check_for_workers(model: str | Path | nn.Module, archs: Sequence[str]) -> None:
    if isinstance(model, nn.Module):
        raise OperandError("workers of a cluster find a model by its name: pass a folder or 'package.module:function', not a module")
    for arch in archs:
        if architecture(arch).base:
            raise OperandError(f"workers of a cluster do not know {arch!r}, which what_if made in this process")


def _found(model: str | Path | nn.Module, dtype: str) -> tuple[FoundModel, str]:
    if isinstance(model, nn.Module):
        words = type(model).__name__
        return FoundModel(model=cast(model, dtype), tokens=None, words=words, vocabulary=_vocabulary(model)), words
    name = str(model)
    if Path(name).is_dir():
        name = str(Path(name).absolute())
    found = find_model(name, dtype=None)
    return replace(found, model=cast(found.model, dtype), vocabulary=found.vocabulary or _vocabulary(found.model)), name


def _vocabulary(model: nn.Module) -> int | None:
    """Rows of its first embedding."""
    return next((module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)), None)


def _settings(
    model: nn.Module, archs: Sequence[str], recipes: Sequence[str], libraries: Sequence[str | None], accumulators: Sequence[str]
) -> tuple[list[EvaluationSetting], tuple[str, ...]]:
    """Every combination once, but for those whose accumulator has no effect; and these in words."""
    names = dict.fromkeys(architecture(arch).name for arch in archs)
    found: dict[EvaluationSetting, None] = {}
    without_effect: dict[str, None] = {}
    for arch, recipe, library, accumulator in itertools.product(names, recipes, libraries, accumulators):
        if accumulator == "default" or _applies(accumulator, model_recipe(recipe), model):
            found[EvaluationSetting(arch=arch, recipe=recipe, library=library or "", accumulator=accumulator)] = None
        else:
            without_effect[f"accumulator {accumulator} with recipe {recipe}"] = None
    if not found:
        raise OperandError(f"nothing to run: {', '.join(without_effect)} would change nothing; add accumulator 'default'")
    return list(found), tuple(without_effect)


def _applies(accumulator: str, recipe: ModelRecipe, model: nn.Module) -> bool:
    if accumulator == "fast":
        return recipe.has_fast
    kinds = {value.dtype for value in model.parameters()} if recipe.dtype is None else {recipe.dtype}
    return torch.float16 in kinds or isinstance(model, FunctionModel)


def _check_layers(model: nn.Module, recipes: Sequence[str], keep: Sequence[str]) -> None:
    """Refuse patterns that no layer fits, and recipes that a layer does not fit, before any work."""
    every = linear_layers(model)
    if isinstance(keep, str) or not all(isinstance(pattern, str) for pattern in keep):
        raise OperandError(f"keep must be a sequence of patterns, got {keep!r}")
    for pattern in keep:
        if every and pattern not in KEPT and not any(is_kept(name, [pattern]) for name in every):
            near = nearest(pattern, {part for name in every for part in (name, name.rpartition(".")[2])})
            raise OperandError(f"no linear layer fits {pattern!r} of keep{near or f'; there are {len(every)} layers'}")
    layers = {name: layer for name, layer in every.items() if not is_kept(name, keep)}
    for recipe in map(model_recipe, recipes):
        if recipe.layer is None:
            if recipe.dtype is not None and isinstance(model, FunctionModel):
                raise OperandError(f"recipe {recipe.name} casts a model, and this is a function")
            continue
        if not layers:
            raise OperandError(f"recipe {recipe.name} is for linear layers, and the model has none to be quantized")
        for name, layer in layers.items():
            n, k = layer.weight.shape
            if k % recipe.k or n % recipe.n:
                raise OperandError(
                    f"recipe {recipe.name} takes K in multiples of {recipe.k} and N of {recipe.n}; {name} has K = {k} and N = {n} "
                    "(keep leaves layers as they are)"
                )
            if recipe.largest_k is not None and k > recipe.largest_k:
                raise OperandError(
                    f"recipe {recipe.name} takes K up to {recipe.largest_k}, beyond which sums may leave s32; {name} has K = {k} "
                    "(keep leaves layers as they are)"
                )


def _pieces(found: FoundModel, text: str | None, tokens: Sequence[int] | None, length: int, most: int | None) -> list[list[int]]:
    """The text in pieces of at least two tokens."""
    if text is not None and tokens is not None:
        raise OperandError("evaluate takes text or tokens, not both")
    if tokens is not None:
        ids = [int(token) for token in tokens]
    elif text is None and found.tokens is not None and found.reads is None and found.vocabulary is None:
        ids = found.tokens.reshape(-1).tolist()  # of the function that made the model
    else:
        ids = found.encode(SENTENCE if text is None else text)
    pieces = [ids[start : start + length] for start in range(0, len(ids), length)]
    pieces = [piece for piece in pieces if len(piece) > 1][:most]
    if not pieces:
        raise OperandError("the text has fewer than two tokens")
    longest = max(map(len, pieces))
    if found.longest is not None and longest > found.longest:
        raise OperandError(f"the model reads {found.longest} tokens at most; length must not be {longest}")
    largest = max(max(piece) for piece in pieces)
    if found.vocabulary is not None and largest >= found.vocabulary:
        raise OperandError(f"the model has {found.vocabulary} tokens, and the text has number {largest}")
    return pieces


def _against(setting: EvaluationSetting, settings: Sequence[EvaluationSetting]) -> Iterator[tuple[str, EvaluationSetting | None]]:
    """What a setting is held against."""
    yield EXACT, None
    for field in FIELDS:
        other = replace(setting, **{field: getattr(settings[0], field)})
        if other != setting and other in settings:
            yield field, other


def _point(
    model: str, dtype: str, digest: str, number: int, piece: Sequence[int], setting: EvaluationSetting,
    against: Sequence[tuple[str, EvaluationSetting | None]], keep: Sequence[str], causal: bool,
) -> dict[str, Any]:  # fmt: skip
    from mmabits import __version__

    return {
        "model": model, "dtype": dtype, "digest": digest, "version": __version__, "piece": number, "tokens": list(piece),
        "setting": asdict(setting), "against": [[name, None if other is None else asdict(other)] for name, other in against],
        "keep": list(keep), "causal": causal,
    }  # fmt: skip
