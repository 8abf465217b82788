"""Training through quantization: the rows' products beside the same written out with mmabits.gemm, and the gradients of torch and JAX."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from operands import generator

import mmabits
from mmabits.emulator.engine.fma import fma
from mmabits.isa import OperandError, OperandTypeError, UnknownArchitecture, library_instruction
from mmabits.kernels.quantize import quantize_mx, quantize_nvfp4
from mmabits.kernels.schemes import fp8_blockwise, nvfp4
from mmabits.kernels.schemes.dots import Dots
from mmabits.kernels.schemes.training import (
    TRAINING_RECIPES,
    LayerState,
    TrainingOperand,
    linear,
    linear_forward,
    linear_gradients,
    training_recipe,
    training_table,
)

Array = np.ndarray[Any, Any]
Three = tuple[Array, Array, Array]
BF16, E4M3, E5M2 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
M, N, K = 128, 256, 128
SEED, STEP = 7, 3
F32 = np.float32


def tensors(*names: object, shape: tuple[int, int, int] = (M, N, K)) -> Three:
    """x, w and grad: normal numbers, channels of many magnitudes, one outlier each."""
    rng, (m, n, k) = generator("training", *names), shape
    found = []
    for rows, columns in ((m, k), (k, n), (m, n)):
        values = rng.standard_normal((rows, columns)) * 2.0 ** rng.integers(-6, 3, (1, columns))
        values[rows // 2, columns // 3] *= 300
        found.append(values.astype(np.float32))
    return found[0], found[1], found[2]


def same(found: Array, wanted: Array) -> None:
    assert found.shape == wanted.shape and found.dtype == wanted.dtype == np.float32
    assert np.array_equal(found.view(np.uint32), np.ascontiguousarray(wanted).view(np.uint32))


# The same, written out ---------------------------------------------------------------------------------------------------


def bf16(values: Array) -> Array:
    return np.ascontiguousarray(values).astype(BF16)


def rounded(values: Array) -> Array:
    return values.astype(BF16).astype(np.float32)


def product(a: Array, b: Array, arch: str, **more: Any) -> Array:
    """One call of mmabits.gemm with a library's instruction."""
    kinds = [{BF16: "bf16", E4M3: "e4m3", E5M2: "e5m2", ml_dtypes.float4_e2m1fn: "e2m1"}[each.dtype.type] for each in (a, b)]
    scale = None if "scale_a" not in more else "ue4m3" if more["scale_a"].dtype == E4M3 else "ue8m0"
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    found: Array = mmabits.gemm(a, b, instruction=library_instruction(arch, *kinds, scale_type=scale), arch=arch, **more)
    return found


def in_bf16(x: Array, w: Array, grad: Array, arch: str) -> Three:
    return (
        rounded(product(bf16(x), bf16(w), arch)), rounded(product(bf16(grad), bf16(w.T), arch)), product(bf16(x.T), bf16(grad), arch)
    )  # fmt: skip


def whole_fp8(values: Array, largest: float, dtype: Any, amax: Array | None = None) -> tuple[Array, Array]:
    """Elements and scale by x * (max / amax)."""
    amax = np.abs(values).max() if amax is None else amax
    factor = F32(largest) / amax
    return np.clip(values * factor, -largest, largest).astype(dtype), F32(1) / factor


def scaled_fp8(a: tuple[Array, Array], b: tuple[Array, Array], arch: str, promote: int | None = None) -> Array:
    return (product(a[0], b[0], arch, promote_every=promote) * a[1]) * b[1]


def turned(matrix: tuple[Array, Array]) -> tuple[Array, Array]:
    return matrix[0].T, matrix[1].T


def of_whole_tensors(qx: Any, qw: Any, qg: Any, arch: str) -> Three:
    promote = 128 if arch == "sm_90a" else None
    return (
        rounded(scaled_fp8(qx, qw, arch)), rounded(scaled_fp8(qg, turned(qw), arch, promote)), scaled_fp8(turned(qx), qg, arch, promote)
    )  # fmt: skip


def current(x: Array, w: Array, grad: Array, arch: str) -> Three:
    return of_whole_tensors(whole_fp8(x, 448, E4M3), whole_fp8(w, 448, E4M3), whole_fp8(grad, 57344, E5M2), arch)


def rowwise(x: Array, w: Array, grad: Array, arch: str) -> Three:
    def by(axis: int, values: Array) -> tuple[Array, Array]:
        return whole_fp8(values, 448, E4M3, np.abs(values).max(axis=axis, keepdims=True))

    forward, back = scaled_fp8(by(1, x), by(0, w), arch), scaled_fp8(by(1, grad), whole_fp8(w.T, 448, E4M3), arch)
    return rounded(forward), rounded(back), in_bf16(x, w, grad, arch)[2]


def tiles(x: Array, w: Array, grad: Array, arch: str) -> Three:
    def quantized(values: Array, down: int, across: int) -> tuple[Array, Array]:
        elements, scales = np.empty(values.shape, E4M3), np.empty(values.shape, np.float32)
        for row in range(0, values.shape[0], down):
            for column in range(0, values.shape[1], across):
                at = np.s_[row : row + down, column : column + across]
                scale = np.abs(values[at]).max() / F32(448)
                elements[at], scales[at] = np.clip(values[at] * (F32(1) / scale), -448, 448).astype(E4M3), scale
        return elements, scales

    def multiplied(a: tuple[Array, Array], b: tuple[Array, Array]) -> Array:
        total = np.zeros((a[0].shape[0], b[0].shape[1]), np.float32)
        for start in range(0, a[0].shape[1], 128):
            sums = product(a[0][:, start : start + 128], b[0][start : start + 128], arch)
            total = fma(sums, a[1][:, start, None] * b[1][start], total)
        return total

    y = multiplied(quantized(x, 1, 128), quantized(w, 128, 128))
    d_x = multiplied(quantized(grad, 1, 128), quantized(w.T, 128, 128))
    return rounded(y), rounded(d_x), multiplied(quantized(x.T, 1, 128), quantized(grad, 128, 1))


def block_scaled(a: Any, b: Any, arch: str) -> Array:
    sums = product(a.elements, b.elements, arch, scale_a=a.scales, scale_b=b.scales)
    return sums * F32(a.tensor_scale * b.tensor_scale)


def mxfp8(x: Array, w: Array, grad: Array, arch: str) -> Three:
    def multiplied(a: Array, b: Array) -> Array:
        left, right = quantize_mx(a, recipe="rceil", axis=1), quantize_mx(np.ascontiguousarray(b), recipe="rceil", axis=0)
        return block_scaled(left, right, arch)

    return rounded(multiplied(x, w)), rounded(multiplied(grad, w.T)), multiplied(np.ascontiguousarray(x.T), grad)


def plain_nvfp4(x: Array, w: Array, grad: Array, arch: str) -> Three:
    def multiplied(a: Array, b: Array) -> Array:
        left, right = (quantize_nvfp4(np.ascontiguousarray(each), axis=axis) for axis, each in ((1, a), (0, b)))
        return block_scaled(left, right, arch)

    return rounded(multiplied(x, w)), rounded(multiplied(grad, w.T)), multiplied(x.T, grad)


def transformed(rows: Array) -> Array:
    """The Hadamard transform of 16 with signs, along the last axis: each stage adds and subtracts pairs further apart."""
    found = rows * np.tile(nvfp4.random_signs(0), rows.shape[-1] // 16)
    for distance in (1, 2, 4, 8):
        before = found.copy()
        for lane in range(rows.shape[-1]):
            other = lane ^ distance
            found[..., lane] = before[..., lane] + before[..., other] if other > lane else before[..., other] - before[..., lane]
    return found * F32(0.25)


def drawn_bits(key: int, shape: tuple[int, ...]) -> Array:
    bits = np.random.Philox(key=SEED | key << 64, counter=STEP << 128).random_raw(int(np.prod(shape)))
    return (bits >> np.uint64(32)).reshape(shape)


def rounded_by_chance(values: Array, bits: Array, axis: int) -> Any:
    """NVFP4 of a matrix whose elements go up where 16 bits of what is left and 16 random bits make 2^16."""
    found = quantize_nvfp4(values, axis=axis)
    steps = np.repeat(found.scales.astype(np.float32), 16, axis=axis) * found.tensor_scale
    scaled = np.where(steps > 0, values / np.where(steps > 0, steps, 1), 0).astype(np.float64)
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 8.0])
    place = np.minimum(np.searchsorted(grid, np.abs(scaled), side="right") - 1, 7)
    rest = (np.abs(scaled) - grid[place]) / (grid[place + 1] - grid[place])
    goes_up = np.floor(rest * 65536) + (bits & np.uint64(0xFFFF)).astype(np.float64) >= 65536
    sizes = np.minimum(grid[place + goes_up], 6)
    return replace(found, elements=np.copysign(sizes, scaled).astype(ml_dtypes.float4_e2m1fn))


def whole_nvfp4(x: Array, w: Array, grad: Array, arch: str) -> Three:
    y = block_scaled(quantize_nvfp4(x, axis=1), quantize_nvfp4(w, axis=0, square=True), arch)
    turned_w = np.ascontiguousarray(w.T)
    d_x = block_scaled(rounded_by_chance(grad, drawn_bits(1, grad.shape), 1), quantize_nvfp4(turned_w, axis=0, square=True), arch)
    left = quantize_nvfp4(transformed(np.ascontiguousarray(x.T)), axis=1)
    right = np.ascontiguousarray(transformed(np.ascontiguousarray(grad.T)).T)
    d_w = block_scaled(left, rounded_by_chance(right, drawn_bits(2, grad.shape), 0), arch)
    return rounded(y), rounded(d_x), d_w


WRITTEN_OUT: dict[str, Callable[[Array, Array, Array, str], Three]] = {
    "bf16": in_bf16, "fp8-current": current, "fp8-rowwise": rowwise, "fp8-tiles": tiles, "mxfp8": mxfp8, "nvfp4": whole_nvfp4,
    "nvfp4-plain": plain_nvfp4,
}  # fmt: skip


def layer(x: Array, w: Array, grad: Array, recipe: Any, arch: Any, state: LayerState | None = None) -> Three:
    y, saved = linear(x, w, recipe=recipe, arch=arch, state=LayerState(seed=SEED, step=STEP) if state is None else state)
    return (y, *linear_gradients(grad, saved))


def test_every_recipe_is_written_out() -> None:
    assert WRITTEN_OUT.keys() | {"fp8-delayed"} == TRAINING_RECIPES.keys()


CASES = [
    pytest.param(name, arch, id=f"{name}-{arch}")
    for name in WRITTEN_OUT
    for arch in ("sm_90a", "sm_100a")
    if arch == "sm_100a" or not name.startswith(("mxfp8", "nvfp4"))
]


@pytest.mark.parametrize(("name", "arch"), CASES)
def test_products_are_those_written_out(name: str, arch: str) -> None:
    x, w, grad = tensors(name)
    for found, wanted in zip(layer(x, w, grad, name, arch), WRITTEN_OUT[name](*map(rounded, (x, w, grad)), arch), strict=True):
        same(found, wanted)


def test_hopper_has_no_block_scales_and_multiplies_in_bf16() -> None:
    x, w, grad = tensors("hopper", shape=(32, 32, 64))
    for name in ("mxfp8", "nvfp4"):
        y, d_x, d_w = layer(x, w, grad, name, "sm_90a")
        other = layer(x, w, grad, name, "sm_100a")
        assert all(np.abs(a - b).max() <= 0.02 * np.abs(b).max() for a, b in zip((y, d_x, d_w), other, strict=True))


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_delayed_scaling_takes_the_scales_of_earlier_steps(arch: str) -> None:
    state, largest = LayerState(), {"x": 448.0, "w": 448.0, "grad": 57344.0}
    history: dict[str, list[Array]] = {name: [] for name in largest}
    for number in range(4):
        values = dict(zip(largest, (each * F32(2.0**-number) for each in map(rounded, tensors("delayed", number))), strict=True))
        matrices = {}
        for name, each in values.items():
            factor = F32(largest[name]) / max(history[name]) if history[name] else F32(1)
            dtype = E5M2 if name == "grad" else E4M3
            matrices[name] = (np.clip(each * factor, -largest[name], largest[name]).astype(dtype), np.full((1, 1), F32(1) / factor))
            history[name].append(np.abs(each).max())
        wanted = of_whole_tensors(matrices["x"], matrices["w"], matrices["grad"], arch)
        for found, want in zip(layer(values["x"], values["w"], values["grad"], "fp8-delayed", arch, state), wanted, strict=True):
            same(found, want)
    assert state.step == 4 and {name: len(each.history) for name, each in state.scalings.items()} == dict.fromkeys(largest, 4)


def test_a_history_is_as_long_as_the_row_says() -> None:
    x, w, grad = tensors("history", shape=(16, 16, 16))
    state, row = LayerState(), replace(TRAINING_RECIPES["fp8-delayed"], history=2)
    for factor in (64, 1, 1):
        layer(x * F32(factor), w, grad, row, "sm_100a", state)
    kept = state.scalings["x"]
    assert len(kept.history) == 2 and kept.multiplier == F32(448) / np.abs(rounded(x)).max()


# Properties --------------------------------------------------------------------------------------------------------------


def test_random_bits_change_with_seed_step_and_product_alone() -> None:
    first = LayerState(seed=1, step=2).random_bits("dgrad", (64, 32))
    assert first.dtype == np.uint32 and np.array_equal(first, LayerState(seed=1, step=2).random_bits("dgrad", (64, 32)))
    others = [
        LayerState(seed=2, step=2).random_bits("dgrad", (64, 32)), LayerState(seed=1, step=3).random_bits("dgrad", (64, 32)),
        LayerState(seed=1, step=2).random_bits("wgrad", (64, 32)),
    ]  # fmt: skip
    assert all((first == other).mean() < 0.01 for other in others)
    assert abs((first >> 16).mean() / 65535 - 0.5) < 0.02 and abs((first & 0xFFFF).mean() / 65535 - 0.5) < 0.02


def test_stochastic_gradients_are_right_in_the_mean() -> None:
    x, w, grad = tensors("mean", shape=(32, 32, 32))
    row = TRAINING_RECIPES["nvfp4"]
    exact = rounded(grad).astype(np.float64) @ quantize_nvfp4(np.ascontiguousarray(rounded(w).T), axis=0, square=True).dequantize()
    state, total = LayerState(seed=5), np.zeros_like(exact)
    for _ in range(200):
        total += layer(x, w, grad, row, "sm_100a", state)[1]
    nearest = replace(row, dgrad=replace(row.dgrad, left=TrainingOperand(quantizer="nvfp4-rows")))
    drawn = np.abs(total / 200 - exact).mean()
    assert drawn < 0.35 * np.abs(layer(x, w, grad, nearest, "sm_100a")[1] - exact).mean()


def test_square_weights_are_the_same_numbers_forward_and_backward() -> None:
    _, w, _ = tensors("square", shape=(16, 48, 32))
    forward = quantize_nvfp4(w, axis=0, square=True).dequantize()
    backward = quantize_nvfp4(np.ascontiguousarray(w.T), axis=0, square=True).dequantize()
    same(forward, np.ascontiguousarray(backward.T))


@pytest.mark.parametrize("name", TRAINING_RECIPES)
def test_hard_inputs(name: str) -> None:
    """Zeros give zeros; what is subnormal gives numbers; a NaN or an infinity stays where its row and column are."""
    shape = (128, 128, 128)
    x, w, grad = tensors("hard", shape=shape)
    zeros = [np.zeros_like(each) for each in (x, w, grad)]
    assert all(not found.any() for found in layer(*zeros, name, "sm_100a"))
    tiny = [each * F32(2.0**-130) for each in (x, w, grad)]
    assert all(np.isfinite(found).all() for found in layer(tiny[0], w, tiny[2], name, "sm_100a"))
    for value in (np.nan, np.inf):
        wrong = x.copy()
        wrong[3, 5] = value
        y, d_x, d_w = layer(wrong, w, grad, name, "sm_100a")
        assert np.isfinite(d_x).all()
        if value is np.nan or name in ("bf16", "mxfp8"):
            assert not np.isfinite(y[3]).any()
        assert np.isfinite(np.delete(y, 3, axis=0)).all()
        # Of x^T the row 5 has it; blocks and transforms are along M.
        assert np.isfinite(np.delete(d_w, 5, axis=0)).all()


@pytest.mark.parametrize("name", TRAINING_RECIPES)
def test_empty(name: str) -> None:
    x, w, grad = (np.zeros(shape, np.float32) for shape in ((0, 128), (128, 256), (0, 256)))
    y, d_x, d_w = layer(x, w, grad, name, "sm_100a")
    assert y.shape == (0, 256) and d_x.shape == (0, 128) and d_w.shape == (128, 256) and not d_w.any()


# Refusals ----------------------------------------------------------------------------------------------------------------


def test_what_is_refused() -> None:
    x, w, grad = tensors("refused", shape=(32, 32, 32))
    with pytest.raises(OperandError, match="unknown training recipe 'nvfp5'; did you mean nvfp4"):
        linear(x, w, recipe="nvfp5", arch="sm_100a")
    with pytest.raises(OperandError, match="M must be a multiple of 128 for fp8-tiles, whose products sum over M, N and K; got 32"):
        linear(x, w, recipe="fp8-tiles", arch="sm_100a")
    with pytest.raises(OperandError, match="x has K = 16 and w has K = 32"):
        linear(np.ascontiguousarray(x[:, :16]), w, recipe="bf16", arch="sm_100a")
    with pytest.raises(OperandTypeError, match="x must be a NumPy array of float32, got dtype float64"):
        linear(x.astype(np.float64), w, recipe="bf16", arch="sm_100a")
    for wrong in (-1, 1.5, True, 1 << 64):
        with pytest.raises(OperandError, match=r"step must be an integer from 0 to 2\^64 - 1, got"):
            LayerState(step=wrong)  # type: ignore[arg-type, unused-ignore]
    with pytest.raises(OperandError, match="K must be a multiple of 128 for fp8-tiles"):
        linear_forward(x, np.ascontiguousarray(w[:, :0]), recipe="fp8-tiles", arch="sm_100a")
    with pytest.raises(UnknownArchitecture, match="unknown architecture 'sm_9'"):
        linear(x, w, recipe="bf16", arch="sm_9")
    with pytest.raises(OperandTypeError, match="state must be a LayerState, got dict"):
        linear(x, w, recipe="bf16", arch="sm_100a", state={})  # type: ignore[arg-type, unused-ignore]
    _, saved = linear(x, w, recipe="bf16", arch="sm_100a")
    with pytest.raises(OperandError, match=r"grad must have the shape \(32, 32\) of the result, got \(16, 32\)"):
        linear_gradients(np.ascontiguousarray(grad[:16]), saved)


def test_rows_of_ones_own_are_looked_through() -> None:
    row = TRAINING_RECIPES["nvfp4"]
    assert training_recipe(row) is row
    plain = TrainingOperand(quantizer="nvfp4-rows")
    for changed, text in (
        (replace(row, before="f16"), "tensors are bf16 or f32 before they are quantized, got 'f16'"),
        (replace(row, fprop=replace(row.fprop, multiply="nvfp5")), "nvfp4, fprop: unknown product 'nvfp5'"),
        (replace(row, fprop=replace(row.fprop, output="e4m3")), "nvfp4, fprop: results are bf16 or f32, got 'e4m3'"),
        (replace(row, wgrad=replace(row.wgrad, left=plain)), "nvfp4, wgrad: both operands are transformed, or none"),
        (replace(row, fprop=replace(row.fprop, left=TrainingOperand(quantizer="nvfp4-row"))), "unknown quantizer 'nvfp4-row'"),
        (
            replace(row, fprop=replace(row.fprop, left=TrainingOperand(quantizer="mxfp8-rows", stochastic=True))),
            "mxfp8-rows does not round stochastically; nvfp4-rows, nvfp4-columns do",
        ),
        (replace(TRAINING_RECIPES["fp8-delayed"], history=0), "delayed scaling needs a history of at least 1, got 0"),
    ):
        with pytest.raises(OperandError, match=text):
            linear(*tensors("own", shape=(16, 16, 16))[:2], recipe=changed, arch="sm_100a")


def test_dots_stand_for_an_architecture() -> None:
    x, w, grad = tensors("dots", shape=(128, 128, 256))
    split = Dots(arch="sm_90a", promote_every=32)
    assert not np.array_equal(layer(x, w, grad, "fp8-current", split)[0], layer(x, w, grad, "fp8-current", "sm_90a")[0])


@pytest.mark.parametrize("name", ["fp8-current", "fp8-delayed"])
def test_a_gpus_name_is_its_target_with_the_recipes_promotion(name: str) -> None:
    x, w, grad = tensors("names", shape=(256, 256, 256))
    wanted = layer(x, w, grad, name, "sm_90a")
    for arch in ("h100", "NVIDIA H100 PCIe"):
        for found, want in zip(layer(x, w, grad, name, arch), wanted, strict=True):
            same(found, want)
    without = layer(x, w, grad, name, Dots(arch="sm_90a"))
    assert np.array_equal(without[0], wanted[0])
    assert not np.array_equal(without[1], wanted[1]) and not np.array_equal(without[2], wanted[2])


def test_a_what_if_is_promoted_as_its_base_unless_it_says_otherwise() -> None:
    x, w, grad = tensors("what if", shape=(256, 256, 256))
    like = mmabits.what_if("training-like", base="sm_90a", rows={}).name
    own = mmabits.what_if("training-own", base="sm_90a", rows={}, promote_every=32).name
    for arch, wanted in ((like, "sm_90a"), (own, Dots(arch="sm_90a", promote_every=32))):
        for found, want in zip(layer(x, w, grad, "fp8-current", arch), layer(x, w, grad, "fp8-current", wanted), strict=True):
            same(found, want)


@pytest.mark.parametrize("name", TRAINING_RECIPES)
def test_without_gradients_m_may_be_any(name: str) -> None:
    x, w, _ = tensors("forward", shape=(128, 128, 128))
    states = LayerState(), LayerState()
    whole = linear(x, w, recipe=name, arch="sm_100a", state=states[0])[0]
    same(linear_forward(x, w, recipe=name, arch="sm_100a", state=states[1]), whole)
    assert states[0].as_numbers() == states[1].as_numbers()
    one = linear_forward(x[:1], w, recipe=name, arch="sm_100a")
    if name in ("bf16", "fp8-rowwise", "fp8-tiles", "mxfp8"):  # no scale of the whole tensor
        same(one, whole[:1])
    assert one.shape == (1, 128)


def test_the_table_has_a_line_for_each() -> None:
    lines = training_table().splitlines()
    assert len(lines) == 2 + len(TRAINING_RECIPES) and len({line.count("|") for line in lines}) == 1
    assert "nvfp4-rows (Hadamard) x nvfp4-columns (Hadamard, stochastic)" in training_table()
    assert all(row.source and row.what for row in TRAINING_RECIPES.values())
    assert TRAINING_RECIPES["fp8-tiles"].multiple == fp8_blockwise.BLOCK


def test_the_table_of_the_page_is_the_generated_one() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- training -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert found is not None and found[1] == training_table()
