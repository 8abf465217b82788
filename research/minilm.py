"""The encoder of all-MiniLM-L6-v2 in NumPy, float32, with products that can be replaced: without PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.isa import MmabitsError
from mmabits.research.sentence import INSTALL, MODEL_PACKAGE, model_folder

Floats = npt.NDArray[np.float32]
Product = Callable[[str, Floats, Floats], Floats]
"""(name of a linear layer, rows (M, K), weights (K, N)) to (M, N) float32."""

LAYERS: Final = 6
HEADS: Final = 12
_EPSILON: Final = 1e-12
SENTENCES: Final = (
    (101, 1996, 17826, 3194, 2038, 2053, 3653, 29048, 2015, 3649, 2000, 21754, 2505, 1012, 102),
    (101, 2009, 2064, 2079, 3649, 2057, 2113, 2129, 2000, 2344, 2009, 2000, 4685, 1012, 102),
    (101, 1037, 23435, 4563, 4800, 24759, 3111, 2235, 21520, 1998, 9909, 1996, 3688, 1012, 102),
    (101, 8185, 3197, 1999, 8389, 18017, 24134, 2116, 4800, 22086, 1011, 9909, 2012, 2320, 1012, 102),
    (101, 2129, 2146, 2515, 1996, 7852, 2031, 2000, 8670, 3489, 1029, 102),
    (101, 2681, 1996, 27048, 1999, 1996, 17428, 2005, 2055, 5659, 2781, 1012, 102),
    (101, 1996, 7115, 2000, 1996, 2479, 3727, 3807, 1037, 2154, 1012, 102),
    (101, 4542, 2003, 3517, 2247, 1996, 3023, 2127, 9432, 1012, 102),
)
"""What the model's tokenizer makes of the eight sentences of `mmabits minilm`."""


def load() -> dict[str, Floats]:
    """The model's tensors by name.

    Raises:
        MmabitsError: the model's package or safetensors is not installed.
    """
    folder: Path | None = model_folder()
    try:
        from safetensors.numpy import load_file
    except ImportError:
        folder = None
    if folder is None:
        raise MmabitsError(f"this takes {MODEL_PACKAGE} and safetensors: {INSTALL}")
    return {name: array for name, array in load_file(folder / "model.safetensors").items() if array.dtype == np.float32}


def plain(name: str, rows: Floats, weights: Floats) -> Floats:
    """The product in float32, as NumPy has it."""
    return np.asarray(rows @ weights)


def embed(tensors: Mapping[str, Floats], tokens: Sequence[int], product: Product = plain) -> Floats:
    """Token numbers to a sentence's embedding, (384,): the mean of its tokens' last states, scaled to length 1."""
    kinds = ("word", "position", "token_type")
    words, positions, types = (tensors[f"embeddings.{kind}_embeddings.weight"] for kind in kinds)
    hidden = _norm(tensors, "embeddings.LayerNorm", words[list(tokens)] + positions[: len(tokens)] + types[0])
    for number in range(LAYERS):
        hidden = _layer(tensors, f"encoder.layer.{number}", hidden, product)
    mean = hidden.mean(axis=0, dtype=np.float64)
    return np.asarray(mean / np.sqrt((mean**2).sum()), np.float32)


def _layer(tensors: Mapping[str, Floats], prefix: str, hidden: Floats, product: Product) -> Floats:
    def linear(name: str, rows: Floats) -> Floats:
        whole = f"{prefix}.{name}"
        return product(whole, rows, np.ascontiguousarray(tensors[f"{whole}.weight"].T)) + tensors[f"{whole}.bias"]

    query, key, value = (_heads(linear(f"attention.self.{name}", hidden)) for name in ("query", "key", "value"))
    scores = (query @ key.transpose(0, 2, 1)).astype(np.float64) / math.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    context = ((weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32) @ value).transpose(1, 0, 2).reshape(hidden.shape)
    hidden = _norm(tensors, f"{prefix}.attention.output.LayerNorm", hidden + linear("attention.output.dense", context))
    return _norm(tensors, f"{prefix}.output.LayerNorm", hidden + linear("output.dense", _gelu(linear("intermediate.dense", hidden))))


def _heads(rows: Floats) -> Floats:
    return np.ascontiguousarray(rows.reshape(len(rows), HEADS, -1).transpose(1, 0, 2))


_erf: Final[Any] = np.vectorize(math.erf, otypes=[np.float64])


def _gelu(values: Floats) -> Floats:
    wide = values.astype(np.float64)
    return np.asarray(0.5 * wide * (1 + _erf(wide / math.sqrt(2))), np.float32)


def _norm(tensors: Mapping[str, Floats], prefix: str, values: Floats) -> Floats:
    wide = values.astype(np.float64)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + _EPSILON)
    return np.asarray(scaled * tensors[f"{prefix}.weight"] + tensors[f"{prefix}.bias"], np.float32)


__all__ = ["SENTENCES", "embed", "load", "plain"]
