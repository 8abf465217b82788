"""FP8 recipes with the GPU's division: composition, compiled kernel, and how many scales and codes they change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mmabits
from mmabits.kernels.schemes import fp8, fp8_blockwise
from mmabits.kernels.schemes.scaling import RECIPES

RECIPES_OF_GPUS = ("divide-full", "reciprocal-full")


def drawn(rows: int, columns: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("recipe", RECIPES_OF_GPUS)
@pytest.mark.parametrize("arch", ["sm_89", "sm_90a", "sm_100a"])
def test_the_compiled_kernel_has_the_bits_of_the_composition(arch: str, recipe: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from mmabits.kernels.triton import fp8 as kernels
    from mmabits.kernels.triton import fp8_blockwise as tiles

    values = drawn(33, 256) * np.exp2(np.random.default_rng(1).integers(-9, 9, (33, 1)).astype(np.float32))
    values[3] = 0
    with mmabits.emulate(arch, frameworks=["triton"], triton="compiled"):
        elements, scales = kernels.quantize_rows(torch.from_numpy(values), recipe=recipe)
        tiled, tile_scales = tiles.quantize_activations(torch.from_numpy(values), recipe=recipe)
    wanted, of_tiles = fp8.quantize(values, per="row", recipe=recipe), fp8_blockwise.quantize_activations(values, recipe=recipe)
    assert scales.numpy().tobytes() == wanted.scales.tobytes()
    assert elements.view(torch.uint8).numpy().tobytes() == wanted.elements.tobytes()
    assert tile_scales.numpy().tobytes() == of_tiles.scales.tobytes()
    assert tiled.view(torch.uint8).numpy().tobytes() == of_tiles.elements.tobytes()


def changed(recipe: str, instead: str) -> tuple[float, float]:
    """The shares of scales and of codes that differ: 4,096 rows of 256 normal numbers."""
    values = drawn(4096, 256)
    one, other = (fp8.quantize(values, per="row", recipe=each) for each in (recipe, instead))
    codes = np.mean(one.elements.view(np.uint8) != other.elements.view(np.uint8))
    return float(np.mean(one.scales != other.scales)), float(codes)


def test_how_many_scales_and_codes_change() -> None:
    """Of 65,536 rows docs/quantizers.md counts 40,067 scales and nine codes of 16,777,216; here is a sixteenth of them."""
    for one, other in (("divide", "divide-full"), ("reciprocal", "reciprocal-full")):
        scales, codes = changed(one, other)
        assert scales == 2511 / 4096 and codes < 1e-5


def test_static_scales_are_divided_by_likewise() -> None:
    values, scale = drawn(64, 64), np.float32(0.0037)
    found = fp8.quantize(values, per="tensor", scale=scale, recipe="divide-full")
    exact = mmabits.function("div.full.f32", values, np.full_like(values, scale), arch="h100")
    assert (found.elements == mmabits.encode(exact, "e4m3", satfinite=True).view(found.elements.dtype)).all()


def test_they_say_what_they_are() -> None:
    for name in RECIPES_OF_GPUS:
        assert RECIPES[name].over is not None and "div.full" in RECIPES[name].what
