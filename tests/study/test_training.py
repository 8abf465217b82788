"""The language model of the study of training: data that can be repeated, a model that learns, recipes that matter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mmabits.kernels.schemes.training import TRAINING_RECIPES  # noqa: E402
from mmabits.research.transformer import RecipeTransformer, TransformerSize, batches, language, loss_of, train  # noqa: E402

TINY = TransformerSize(width=32, heads=2, blocks=2, length=16, batch=2)


def test_the_language_is_ascii_and_depends_on_its_seed():
    text = language(3, 4000)
    assert len(text) == 4000 and text == language(3, 4000) != language(4, 4000)
    assert set(text) <= set(b"abcdefghijklmnopqrstuvwxyz0123456789 .")
    sums = [sentence.split() for sentence in text.decode().split(". ") if " make " in sentence and sentence[0].isdigit()]
    assert len(sums) > 10 and all(int(a) + int(b) == int(c) for a, _, b, _, c in sums[:-1])
    first, second = itertools.islice(batches(0, TINY), 2)
    assert first.shape == (2, 17) and not torch.equal(first, second)


def test_a_model_begins_alike_and_keeps_its_last_block():
    torch.manual_seed(0)
    plain = RecipeTransformer(TINY, recipe="bf16", arch="sm_100a")
    torch.manual_seed(0)
    narrow = RecipeTransformer(TINY, recipe="nvfp4", arch="sm_100a")
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), narrow.parameters(), strict=True))
    names = [(block.into.recipe.name, block.down.recipe.name) for block in narrow.blocks]
    assert names == [("nvfp4", "nvfp4"), ("bf16", "bf16")] and narrow.last.recipe.name == "bf16"
    seeds = [layer.state.seed for block in narrow.blocks for layer in (block.into, block.out, block.up, block.down)]
    assert len(set(seeds)) == 8
    samples = next(batches(0, TINY))
    changed = samples.clone()
    changed[:, 9:] = 65
    with torch.no_grad():
        one, other = narrow(samples[:, :-1]), narrow(changed[:, :-1])
    assert torch.equal(one[:, :9], other[:, :9]) is False  # scales of whole tensors see the future; of bf16 nothing does
    with torch.no_grad():
        one, other = plain(samples[:, :-1]), plain(changed[:, :-1])
    assert torch.equal(one[:, :9], other[:, :9]) and not torch.equal(one, other)
    assert abs(loss_of(plain, samples).item() - np.log(128)) < 0.8


def test_training_is_repeated_bit_for_bit_and_learns():
    threads = torch.get_num_threads()
    first, second = (list(train("nvfp4", arch="sm_100a", steps=8, size=TINY, every=4)) for _ in range(2))
    assert first == second and [row["step"] for row in first] == [4, 8] and torch.get_num_threads() == threads
    assert first[-1]["loss"] < first[0]["loss"] < 5.5
    other = list(train("bf16", arch="sm_100a", steps=4, size=TINY, every=4))
    assert 0 < abs(other[0]["loss"] - first[0]["loss"]) < 0.1
    assert next(train("bf16", arch="sm_100a", steps=4, size=TINY, every=4, seed=1))["loss"] != other[0]["loss"]


def test_the_study_has_every_recipe():
    from mmabits.research.study.shipped import STUDIES

    points = STUDIES["training"].points("full")
    assert {point["recipe"] for point in points} == set(TRAINING_RECIPES)
    assert {point["arch"] for point in points} == {"sm_90a", "sm_100a"} and len(points) == 15
