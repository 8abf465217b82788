"""Models by name: the small one, all-MiniLM-L6-v2, a folder of weights, or a function that makes one.

Imports torch when it is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
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
    reads: Callable[[str], list[int]] | None = None
    """Its tokenizer; None: it has none, and is given bytes."""
    vocabulary: int | None = None
    """Tokens that it knows; None: not known."""
    longest: int | None = None
    """Tokens of a sequence at most; None: not known."""
    is_causal: bool = True
    """Whether its logits tell of the next token, if it has any."""

    def encode(self, text: str) -> list[int]:
        """A text as the model's tokens; without a tokenizer its bytes, which a model may not have learned to read."""
        if self.reads is not None:
            return self.reads(text)
        return [byte if self.vocabulary is None else byte % self.vocabulary for byte in text.encode()]


def find_model(
    name: str, *, layers: int = 2, width: int = 128, steps: int = 0, seed: int = 0, text: str = SENTENCE,
    dtype: torch.dtype | None = torch.float32,
) -> FoundModel:  # fmt: skip
    """A model by name.

    Args:
        name: `small`, `minilm`, a folder that transformers reads, or `package.module:function`, which returns a torch.nn.Module, or
            one and its tokens.
        layers: blocks of the small model.
        width: its width.
        steps: of its training.
        seed: of its weights.
        text: what a model of a folder reads.
        dtype: of the weights of a folder; None: as they are.

    Raises:
        OperandError: no such model.
        EmulationError: a package is missing.
    """
    if name == SMALL:
        small = SmallModel(layers=layers, width=width, inner=width * 11 // 4 // 16 * 16, seed=seed)
        if not steps:
            return _small(small, "a small model with random weights, which has learned nothing")
        loss = small.learn(steps, seed=seed)
        return _small(small, f"a small model that learned one sentence in {steps} steps, loss {loss:.3g}")
    if steps:
        raise OperandError("only the small model is trained here")
    if name == MINILM:
        folder = model_folder()
        if folder is None:
            raise EmulationError(f"minilm needs the model's package: {INSTALL}")
        return replace(_of_folder(folder, text, dtype), words="all-MiniLM-L6-v2, an encoder of sentences")
    if ":" in name:
        return _of_function(name)
    if Path(name).is_dir():
        return _of_folder(Path(name), text, dtype)
    raise OperandError(f"no model {name!r}: there are small, minilm, folders with config.json and weights, and package.module:function")


def _small(model: SmallModel, words: str) -> FoundModel:
    return FoundModel(model=model, tokens=None, words=words, vocabulary=256, longest=model.positions.num_embeddings)


def _of_folder(folder: Path, text: str, dtype: torch.dtype | None) -> FoundModel:
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
        model: nn.Module = kind.from_pretrained(folder, local_files_only=True, dtype="auto" if dtype is None else dtype)
        vocabulary = int(configuration.get_text_config().vocab_size)
    except (OSError, ValueError, AttributeError, KeyError, ImportError) as error:
        raise OperandError(f"{folder} holds no model that transformers reads: {' '.join(str(error).split())[:300]}") from error
    finally:
        transformers.logging.set_verbosity(quiet)
        if bar:
            transformers.logging.enable_progress_bar()
    if getattr(configuration, "is_encoder_decoder", False):
        raise OperandError(f"{folder} holds an encoder with a decoder, which reads two texts; name a function that makes a model of one")
    found = FoundModel(
        model=model, tokens=None, words=f"{type(model).__name__} of {folder.absolute().name}", reads=_tokenizer(folder),
        vocabulary=vocabulary, longest=getattr(configuration, "max_position_embeddings", None),
        is_causal=not type(model).__name__.endswith("ForMaskedLM"),
    )  # fmt: skip
    tokens = found.encode(text)
    return replace(found, tokens=torch.tensor(tokens if found.reads is not None else tokens[:LENGTH])[None])


def _tokenizer(folder: Path) -> Callable[[str], list[int]] | None:
    """That of `tokenizer.json`, whole texts at a time; None where the file or the package is missing."""
    if not (folder / "tokenizer.json").is_file() or importlib.util.find_spec("tokenizers") is None:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: list(tokenizer.encode(text).ids)


class FunctionModel(nn.Module):
    """A function of tokens as a module, which has no layers that are known."""

    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, tokens: torch.Tensor) -> Any:
        """What the function gives."""
        return self.function(tokens)


def _of_function(name: str) -> FoundModel:
    module, _, function = name.partition(":")
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise OperandError(f"no model {name!r}: {module} is a module of Python itself")
    try:
        found: Any = getattr(importlib.import_module(module), function)
        found = found if _takes_tokens(found) else found()
    except (Exception, SystemExit) as error:  # a module may do anything when it is imported
        raise OperandError(f"no model {name!r}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    model, given = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(model, nn.Module) and callable(model):
        model = FunctionModel(model)
    if not isinstance(model, nn.Module) or not (given is None or isinstance(given, torch.Tensor) or callable(given)):
        raise OperandError(
            f"{name!r} must return a torch.nn.Module or a function of tokens, or one of them and its tokens or tokenizer, "
            f"got {type(found).__name__}"
        )
    tokens = given if isinstance(given, torch.Tensor) else None
    kind = "a function" if isinstance(model, FunctionModel) else type(model).__name__
    return FoundModel(model=model, tokens=tokens, words=f"{kind} of {name}", reads=None if tokens is not None else given)


def _takes_tokens(function: Any) -> bool:
    """Whether a function is a model itself, and does not make one: it cannot be called without an argument."""
    if isinstance(function, nn.Module):
        return True
    try:
        inspect.signature(function).bind()
    except TypeError:
        return True
    except ValueError:  # no signature
        return False
    return False
