"""A small language model in torch whose linear layers train by a recipe, and the language it learns.

Products in the blocks are those of the recipe, but for blocks that it keeps in bf16; attention and the output layer are bf16, by the
instruction of the architecture. Embeddings, norms, softmax, the loss and AdamW are float32, by torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from mmabits.kernels.schemes.training import TrainingRecipe, training_recipe
from mmabits.kernels.training.in_torch import QuantizedLinear, bf16_matmul

SYMBOLS: Final = 128
"""ASCII."""
_RATE: Final = 2e-3
_WARMUP: Final = 20


@dataclass(frozen=True, kw_only=True)
class TransformerSize:
    """A model and its batches."""

    width: int = 128
    heads: int = 4
    blocks: int = 3
    length: int = 64
    """Bytes of a sample."""
    batch: int = 4
    kept: int = 1
    """Blocks at the end that stay in bf16 where a recipe keeps some."""


# The language ---------------------------------------------------------------------------------------------------------

_WORDS: Final = {
    "noun": ("ant", "boat", "cloud", "drum", "engine", "forest", "garden", "hill", "island", "jar", "kettle", "lamp", "mountain", "needle"),
    "kind": ("bright", "calm", "dark", "early", "fresh", "great", "heavy", "narrow", "old", "quiet", "round", "small", "tall", "warm"),
    "verb": ("builds", "carries", "draws", "finds", "guards", "holds", "keeps", "lifts", "moves", "opens", "sees", "turns"),
}


def language(seed: int, length: int) -> bytes:
    """Text of a made-up language: sentences of four kinds, some of which can be foretold (sums, copies, words backwards)."""
    rng = np.random.default_rng(seed)

    def word(kind: str) -> str:
        return _WORDS[kind][int(rng.integers(len(_WORDS[kind])))]

    def scene() -> str:
        return f"the {word('kind')} {word('noun')} {word('verb')} the {word('kind')} {word('noun')}. "

    def total() -> str:
        a, b = (int(each) for each in rng.integers(0, 10, 2))
        return f"{a} and {b} make {a + b}. "

    def copies() -> str:
        noun = word("noun")
        return f"say {' '.join([noun] * int(rng.integers(2, 5)))}. "

    def backwards() -> str:
        noun = word("noun")
        return f"{noun} backwards is {noun[::-1]}. "

    kinds: tuple[Callable[[], str], ...] = (scene, scene, total, copies, backwards)
    parts: list[str] = []
    size = 0
    while size < length:
        parts.append(kinds[int(rng.integers(len(kinds)))]())
        size += len(parts[-1])
    return "".join(parts)[:length].encode("ascii")


def batches(seed: int, size: TransformerSize) -> Iterator[torch.Tensor]:
    """Samples of the language without end, (batch, length + 1) int64: all but the last byte go in, all but the first come out."""
    number = 0
    while True:
        rows = [language((seed << 32) + number * size.batch + each, size.length + 1) for each in range(size.batch)]
        yield torch.from_numpy(np.stack([np.frombuffer(row, np.uint8) for row in rows]).astype(np.int64))
        number += 1


# The model ------------------------------------------------------------------------------------------------------------


class RootMeanSquare(nn.Module):
    """The norm: x over its root mean square, times a weight for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32."""
        scaled: torch.Tensor = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight
        return scaled


class TransformerBlock(nn.Module):
    """Causal attention and a layer of four times the width, each behind a norm."""

    def __init__(self, size: TransformerSize, recipe: TrainingRecipe, arch: str, seed: int) -> None:
        super().__init__()
        width, self.heads, self.arch = size.width, size.heads, arch
        shapes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
        self.into, self.out, self.up, self.down = (
            QuantizedLinear(k, n, bias=False, recipe=recipe, arch=arch, seed=seed * len(shapes) + number)
            for number, (k, n) in enumerate(shapes)
        )
        self.first, self.second = RootMeanSquare(width), RootMeanSquare(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, length, width) float32."""
        x = x + self.out(self._attention(self.into(self.first(x))))
        wider: torch.Tensor = torch.relu(self.up(self.second(x))).square()
        x = x + self.down(wider)
        return x

    def _attention(self, mixed: torch.Tensor) -> torch.Tensor:
        count, length, width = mixed.shape[0], mixed.shape[1], mixed.shape[2] // 3
        q, k, v = (each.reshape(count, length, self.heads, -1).transpose(1, 2) for each in torch.split(mixed, width, dim=-1))
        scores = bf16_matmul(q, k.transpose(-1, -2), arch=self.arch) * (width // self.heads) ** -0.5
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
        return bf16_matmul(weights, v, arch=self.arch).transpose(1, 2).reshape(count, length, width)


class RecipeTransformer(nn.Module):
    """The language model."""

    def __init__(self, size: TransformerSize, *, recipe: str | TrainingRecipe, arch: str, seed: int = 0) -> None:
        super().__init__()
        row, plain = training_recipe(recipe), training_recipe("bf16")
        quantized = size.blocks - (size.kept if row.keep else 0)
        self.symbols, self.places = nn.Embedding(SYMBOLS, size.width), nn.Embedding(size.length, size.width)
        self.blocks = nn.ModuleList(
            TransformerBlock(size, row if number < quantized else plain, arch, seed * size.blocks + number) for number in range(size.blocks)
        )
        self.norm = RootMeanSquare(size.width)
        self.last = QuantizedLinear(size.width, SYMBOLS, bias=False, recipe=plain, arch=arch, seed=0)
        for name, weights in self.named_parameters():
            if weights.dim() == 2:
                spread = 0.02 if name.startswith(("symbols", "places")) else weights.shape[1] ** -0.5
                nn.init.normal_(weights, std=spread)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Bytes (batch, length) int64 to logits (batch, length, 128) float32."""
        x = self.symbols(text) + self.places(torch.arange(text.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.last(self.norm(x))
        return logits


def loss_of(model: nn.Module, samples: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next byte, in nats."""
    logits = model(samples[:, :-1])
    return nn.functional.cross_entropy(logits.reshape(-1, SYMBOLS), samples[:, 1:].reshape(-1))


def train(
    recipe: str | TrainingRecipe, *, arch: str, steps: int, size: TransformerSize | None = None, seed: int = 0, every: int = 10
) -> Iterator[dict[str, Any]]:
    """Train a model, and tell its losses as it goes; torch computes with one thread meanwhile, so that its sums have one order.

    Args:
        recipe: a name of `schemes.training.TRAINING_RECIPES`, or a row.
        arch: architecture.
        steps: of AdamW, a batch each.
        size: of the model.
        seed: of weights, data and stochastic rounding. Models of one seed begin alike and see the same data, whatever the recipe.
        every: steps a row stands for.

    Yields:
        `step`, `loss` (mean of the steps since the last row) and `held_out` (of two batches that are not trained on; in nats).

    Raises:
        MmabitsError: as `schemes.training.linear`.
    """
    chosen = TransformerSize() if size is None else size
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = RecipeTransformer(chosen, recipe=recipe, arch=arch, seed=seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.95), weight_decay=0.1)
        seen, held = batches(2 * seed, chosen), batches(2 * seed + 1, chosen)
        tests, losses = [next(held) for _ in range(2)], []
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = _RATE * min(1.0, step / _WARMUP)
            optimizer.zero_grad()
            loss = loss_of(model, next(seen))
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            if step % every == 0 or step == steps:
                model.eval()
                with torch.no_grad():
                    held_out = float(np.mean([float(loss_of(model, each)) for each in tests]))
                model.train()
                yield {"step": step, "loss": float(np.mean(losses)), "held_out": held_out}
                losses = []
    finally:
        torch.set_num_threads(threads)
