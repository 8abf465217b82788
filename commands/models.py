"""Models for `mmabits mismatch`: the small one, all-MiniLM-L6-v2, a folder of weights, or a function that makes one.

Imports torch when it is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from mmabits.isa.errors import EmulationError, OperandError
from mmabits.research.mismatch import SmallModel
from mmabits.research.sentence import INSTALL, SENTENCE, model_folder

SMALL: Final = "small"
MINILM: Final = "minilm"
LENGTH: Final = 48
"""Tokens of a sequence, where the model has no tokenizer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundModel:
    """A model, and what it is asked."""

    model: nn.Module
    tokens: torch.Tensor | None
    """(batch, length); None: those of the small model."""
    words: str
    """What it is, for the page."""


def find_model(name: str, *, layers: int, width: int, steps: int, seed: int, text: str = SENTENCE) -> FoundModel:
    """A model by name.

    Args:
        name: `small`, `minilm`, a folder that transformers reads, or `package.module:function`, which returns a torch.nn.Module, or
            one and its tokens.
        layers: blocks of the small model.
        width: its width.
        steps: of its training.
        seed: of its weights.
        text: what a model with a tokenizer reads.

    Raises:
        OperandError: no such model, or none of torch.nn.Linear layers.
        EmulationError: a package is missing.
    """
    if name == SMALL:
        small = SmallModel(layers=layers, width=width, inner=width * 11 // 4 // 16 * 16, seed=seed)
        if not steps:
            return FoundModel(model=small, tokens=None, words="a small model with random weights, which has learned nothing")
        loss = small.learn(steps, seed=seed)
        return FoundModel(model=small, tokens=None, words=f"a small model that learned one sentence in {steps} steps, loss {loss:.3g}")
    if steps:
        raise OperandError("only the small model is trained here")
    if name == MINILM:
        folder = model_folder()
        if folder is None:
            raise EmulationError(f"minilm needs the model's package: {INSTALL}")
        return replace(_of_folder(folder, text), words="all-MiniLM-L6-v2, an encoder of sentences")
    if ":" in name:
        return _of_function(name)
    if Path(name).is_dir():
        return _of_folder(Path(name), text)
    raise OperandError(f"no model {name!r}: there are small, minilm, folders with config.json and weights, and package.module:function")


def _of_folder(folder: Path, text: str) -> FoundModel:
    """What transformers makes of a folder, without a network: the class that its configuration names."""
    if importlib.util.find_spec("transformers") is None:
        raise EmulationError("models in folders are read by transformers, which is not installed: pip install transformers")
    transformers: Any = importlib.import_module("transformers")
    if not (folder / "config.json").is_file():
        raise OperandError(f"{folder} holds no model: config.json is missing")
    quiet, bar = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        configuration = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        kind = getattr(transformers, (configuration.architectures or ["AutoModelForCausalLM"])[0])
        model: nn.Module = kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, AttributeError, KeyError, ImportError) as error:
        raise OperandError(f"{folder} holds no model that transformers reads: {' '.join(str(error).split())[:300]}") from error
    finally:
        transformers.logging.set_verbosity(quiet)
        if bar:
            transformers.logging.enable_progress_bar()
    words = f"{type(model).__name__} of {folder.absolute().name}"
    return FoundModel(model=model, tokens=_tokens(folder, text, int(configuration.vocab_size)), words=words)


def _tokens(folder: Path, text: str, vocabulary: int) -> torch.Tensor:
    """The text by the model's tokenizer; without one its bytes, which such a model has not learned to read."""
    if (folder / "tokenizer.json").is_file() and importlib.util.find_spec("tokenizers") is not None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return torch.tensor([tokenizer.encode(text).ids])
    return torch.tensor(list(text.encode()[:LENGTH]))[None] % vocabulary


def _of_function(name: str) -> FoundModel:
    module, _, function = name.partition(":")
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise OperandError(f"no model {name!r}: {module} is a module of Python itself")
    try:
        found: Any = getattr(importlib.import_module(module), function)()
    except (Exception, SystemExit) as error:  # a module may do anything when it is imported
        raise OperandError(f"no model {name!r}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    model, tokens = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(model, nn.Module) or not (tokens is None or isinstance(tokens, torch.Tensor)):
        raise OperandError(f"{name!r} must return a torch.nn.Module, or one and its tokens, got {type(found).__name__}")
    return FoundModel(model=model, tokens=tokens, words=f"{type(model).__name__} of {name}")
