"""FP8 with float32 scales: quantizers against plain readings of their recipes, products against sums that are exact."""

import math

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.emulator.engine.fma import fma
from mmabits.isa.errors import OperandError, OperandTypeError
from mmabits.isa.opcodes import opcode_table
from mmabits.kernels.quantize import quantize_fp8
from mmabits.kernels.schemes import fp8, fp8_blockwise
from mmabits.kernels.schemes.dots import Dots
from mmabits.kernels.schemes.scaling import RECIPES

SEED = 20260202
MAX = {"e4m3": np.float32(448), "e5m2": np.float32(57344)}
DTYPES = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
ONE = np.float32(1)


def normal(*shape: int, seed: int = SEED) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-9, 9, (shape[0], 1))).astype(np.float32)


def slow(block: np.ndarray, element: str, recipe: str, least: float = 0.0) -> tuple[np.ndarray, np.float32]:
    """One group of values by the recipe's sentence, in single float32 operations."""
    largest, amax = MAX[element], np.maximum(np.abs(block).max(), np.float32(least))
    if amax == 0:
        scaled, scale = block, ONE
    elif recipe == "divide":
        scale = amax / largest
        scaled = block / scale
    elif recipe == "reciprocal":
        scale = amax / largest
        scaled = block * (ONE / scale)
    elif recipe == "multiply":
        factor = largest / amax
        scaled, scale = block * factor, ONE / factor
    elif recipe.endswith("-full"):
        scale = amax * (ONE / largest)
        divided = opcode_table()["div.full.f32"].reference
        dividends = (block if recipe == "divide-full" else np.ones(1, np.float32)).view(np.uint32)
        over = [divided(int(code), int(scale.view(np.uint32))) for code in dividends.ravel()]
        quotients = np.array(over, np.uint32).view(np.float32)
        scaled = quotients.reshape(block.shape) if recipe == "divide-full" else block * quotients
    else:
        quotient = amax / largest
        exponent = math.ceil(math.log2(float(quotient)))  # float64 tells every float32 from a power of two
        scale = np.float32(2.0**exponent)
        scaled = block / scale
    return np.clip(scaled, -largest, largest).astype(DTYPES[element]), np.float32(scale)


@pytest.mark.parametrize("per", fp8.GRANULARITIES)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("element", ["e4m3", "e5m2"])
def test_quantize_is_the_recipe(element: str, recipe: str, per: str) -> None:
    values = normal(9, 21)
    values[3] = 0
    values[4] = np.float32(2.0**-20) * MAX[element]  # a quotient that is a power of two
    got = fp8.quantize(values, format=element, per=per, recipe=recipe)
    groups = {
        "tensor": [(slice(None), slice(None))],
        "row": [(slice(i, i + 1), slice(None)) for i in range(9)],
        "column": [(slice(None), slice(j, j + 1)) for j in range(21)],
    }
    assert got.scales.shape == {"tensor": (1, 1), "row": (9, 1), "column": (1, 21)}[per]
    for group, scale in zip(groups[per], got.scales.reshape(-1), strict=True):
        elements, wanted = slow(values[group], element, recipe)
        assert scale == wanted
        assert np.array_equal(got.elements[group].view(np.uint8), elements.view(np.uint8))
    assert np.array_equal(got.dequantize(), got.elements.astype(np.float32) * got.scales)


def test_quantize_per_tensor_is_quantize_fp8() -> None:
    values = normal(16, 33)
    old, new = quantize_fp8(values), fp8.quantize(values)
    assert old.tensor_scale == new.scales[0, 0]
    assert np.array_equal(old.elements.view(np.uint8), new.elements.view(np.uint8))


@pytest.mark.parametrize("recipe", RECIPES)
def test_special_values(recipe: str) -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 448.0, -1.0]], np.float32)
    got = fp8.quantize(values, recipe=recipe)
    assert got.scales.tolist() == [[1.0]]
    assert got.elements.view(np.uint8).tolist() == [[0x7F, 0x7E, 0xFE, 0x7E, 0xB8]]
    tiny = fp8.quantize(np.array([[2.0**-149, 0.0]], np.float32), recipe=recipe)
    assert np.isfinite(tiny.scales).all() and (tiny.scales > 0).all()
    assert fp8.quantize(np.zeros((2, 3), np.float32), recipe=recipe).scales.tolist() == [[1.0]]


def test_static_scales() -> None:
    values = normal(4, 6)
    scale = np.array([0.3, 0.007, 2.0, 5.0], np.float32)
    divided = fp8.quantize(values, per="row", scale=scale)
    wanted = np.clip(values / scale[:, None], -448, 448).astype(ml_dtypes.float8_e4m3fn)
    assert np.array_equal(divided.elements.view(np.uint8), wanted.view(np.uint8))
    multiplied = fp8.quantize(values, per="row", scale=scale, recipe="reciprocal")
    wanted = np.clip(values * (ONE / scale)[:, None], -448, 448).astype(ml_dtypes.float8_e4m3fn)
    assert np.array_equal(multiplied.elements.view(np.uint8), wanted.view(np.uint8))
    assert fp8.quantize(values, scale=np.float32(0.5)).scales.tolist() == [[0.5]]


def test_delayed_scaling_lags_by_one_and_remembers() -> None:
    state = fp8.DelayedScaling(length=3)
    amaxes = [2.0, 8.0, 0.0, 1.0, 1.0, 1.0, 0.0]
    wanted = [1.0, 224.0, 56.0, 56.0, 56.0, 448.0, 448.0, 448.0]
    for amax, multiplier in zip(amaxes, wanted, strict=False):
        assert state.multiplier == multiplier
        values = np.array([[amax, -amax / 3]], np.float32)
        got, state = state.step(values)
        scaled = np.clip(values * np.float32(multiplier), -448, 448).astype(ml_dtypes.float8_e4m3fn)
        assert np.array_equal(got.elements.view(np.uint8), scaled.view(np.uint8))
        assert got.scales[0, 0] == ONE / np.float32(multiplier)
    assert state.multiplier == wanted[-1]
    assert len(state.history) == 3


def test_delayed_scaling_margin_newest_and_zero() -> None:
    state = fp8.DelayedScaling(format="e5m2", margin=2, algorithm="most_recent")
    for amax in (16.0, 4.0):
        _, state = state.step(np.full((1, 1), amax, np.float32))
    assert state.multiplier == np.float32(57344 / 4 / 4)
    _, after = state.step(np.zeros((1, 1), np.float32))
    assert after.multiplier == state.multiplier
    _, tiny = state.step(np.full((1, 1), 2.0**-149, np.float32))
    assert tiny.multiplier == np.finfo(np.float32).max / 4


def small_integers(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)


@pytest.mark.parametrize("arch", ["sm_89", "sm_90a", "sm_100a"])
def test_product_of_exact_sums_is_scaled_by_rows_then_columns(arch: str) -> None:
    x, w = small_integers(5, 96, seed=1), small_integers(96, 7, seed=2)
    rows = np.array([0.1, 0.3, 7.0, 1e-3, 2.0], np.float32)
    columns = np.linspace(0.2, 3, 7).astype(np.float32)
    a = fp8.Fp8Matrix(elements=x.astype(ml_dtypes.float8_e4m3fn), scales=rows[:, None])
    b = fp8.Fp8Matrix(elements=w.astype(ml_dtypes.float8_e5m2), scales=columns[None, :])
    assert np.array_equal(fp8.fp8_matmul(a, b, arch=arch), ((x @ w) * rows[:, None]) * columns)


def test_linear_layer_forward_and_backward() -> None:
    x, w, grad = normal(24, 64), normal(64, 40, seed=3), normal(24, 40, seed=4)
    qx, qw, qg = fp8.quantize(x), fp8.quantize(w), fp8.quantize(grad, format=fp8.BACKWARD)
    dx, dw = fp8.linear_gradients(qg, qx, qw, arch="sm_90a")

    def plain(a: np.ndarray, b: np.ndarray, scales: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        sums = mmabits.gemm(np.ascontiguousarray(a), np.ascontiguousarray(b), instruction="wgmma", arch="sm_90a")
        return (sums * scales[0]) * scales[1]

    assert np.array_equal(dx, plain(qg.elements, qw.elements.T, (qg.scales, qw.scales)))
    assert np.array_equal(dw, plain(qx.elements.T, qg.elements, (qx.scales, qg.scales)))
    assert np.abs(dx - qg.dequantize() @ qw.dequantize().T).max() < 1e-2 * np.abs(dx).max()


def test_slow_accumulation_on_hopper() -> None:
    a, b = fp8.quantize(normal(24, 512), per="row"), fp8.quantize(normal(512, 24, seed=5), per="column")
    fast = fp8.fp8_matmul(a, b, arch="sm_90a")
    slow = fp8.fp8_matmul(a, b, arch=Dots(arch="sm_90a", promote_every=128))
    exact = a.dequantize().astype(np.float64) @ b.dequantize()
    assert np.abs(slow - exact).mean() < np.abs(fast - exact).mean()


# Tiles ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("tile", "shape"), [((1, 128), (5, 256)), ((128, 1), (256, 5)), ((128, 128), (200, 300))])
def test_tiles_are_quantized_one_by_one(tile: tuple[int, int], shape: tuple[int, int], recipe: str) -> None:
    values = normal(*shape)
    values[:128, :128] *= np.float32(1e-9)  # below the floor under amax
    got = fp8_blockwise.quantize(values, tile=tile, recipe=recipe)
    assert got.scales.shape == (-(-shape[0] // tile[0]), -(-shape[1] // tile[1]))
    for i, j in np.ndindex(got.scales.shape):
        where = (slice(i * tile[0], (i + 1) * tile[0]), slice(j * tile[1], (j + 1) * tile[1]))
        elements, scale = slow(values[where], "e4m3", recipe, least=1e-4)
        assert got.scales[i, j] == scale
        assert np.array_equal(got.elements[where].view(np.uint8), elements.view(np.uint8))
        assert np.array_equal(got.dequantize()[where], elements.astype(np.float32) * scale)
    flipped = fp8_blockwise.quantize(np.ascontiguousarray(values.T), tile=tile[::-1], recipe=recipe)
    assert np.array_equal(flipped.elements.view(np.uint8), got.T.elements.view(np.uint8))
    assert np.array_equal(flipped.scales, got.T.scales)


@pytest.mark.parametrize("tile", [(128, 128), (128, 1)])
def test_tiled_product_promotes_every_128_with_one_rounding(tile: tuple[int, int]) -> None:
    a = fp8_blockwise.quantize_activations(normal(9, 384))
    b = fp8_blockwise.quantize(normal(384, 150, seed=6), tile=tile)
    total, apart = np.zeros((9, 150), np.float32), np.zeros((9, 150), np.float32)
    columns = b.element_scales()
    for start in range(0, 384, 128):
        part = slice(start, start + 128)
        sums = mmabits.gemm(np.ascontiguousarray(a.elements[:, part]), b.elements[part], instruction="wgmma", arch="sm_90a")
        scale = a.scales[:, start // 128, None] * columns[start]
        total, apart = fma(sums, scale, total), sums * scale + apart
    assert np.array_equal(fp8_blockwise.fp8_blockwise_matmul(a, b, arch="sm_90a"), total)
    assert np.array_equal(fp8_blockwise.fp8_blockwise_matmul(a, b, arch="sm_90a", fused=False), apart)
    assert not np.array_equal(total, apart)
    exact = a.dequantize().astype(np.float64) @ b.dequantize()
    assert np.abs(total - exact).max() < 1e-3 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: fp8.quantize(normal(4, 4).astype(np.float64)), OperandTypeError, "array of float32, got dtype float64"),
        (lambda: fp8.quantize(normal(4, 4)[0]), OperandError, "values must have 2 dimensions"),
        (lambda: fp8.quantize(normal(4, 4), format="e2m1"), OperandError, "FP8 has no elements of e2m1; it has e4m3, e5m2"),
        (lambda: fp8.quantize(normal(4, 4), per="rows"), OperandError, "unknown granularity 'rows'; did you mean row"),
        (lambda: fp8.quantize(normal(4, 4), recipe="multiplied"), OperandError, "unknown scale recipe 'multiplied'; did you mean multiply"),
        (lambda: fp8.quantize(normal(4, 4), scale=np.float32(0)), OperandError, "scales must be positive and finite, got 0.0"),
        (lambda: fp8.quantize(normal(4, 4), per="row", scale=np.ones(3, np.float32)), OperandError, r"must have shape \(\) or \(4,\)"),
        (lambda: fp8.DelayedScaling(length=0), OperandError, "length must be at least 1"),
        (lambda: fp8.DelayedScaling(algorithm="newest"), OperandError, "'max' or 'most_recent', got 'newest'"),
        (
            lambda: fp8.fp8_matmul(fp8.quantize(normal(4, 32), per="column"), fp8.quantize(normal(32, 4)), arch="sm_90a"),
            OperandError,
            "scales along K cannot be taken out of the sum",
        ),
        (lambda: fp8.fp8_matmul(fp8.quantize(normal(4, 32)), fp8.quantize(normal(4, 32)), arch="sm_90a"), OperandError, "b has K = 4"),
        (lambda: fp8_blockwise.quantize_activations(normal(4, 130)), OperandError, "multiple of the block size 128, got 130"),
        (lambda: fp8_blockwise.quantize(normal(4, 128), tile=(1, 64)), OperandError, "tiles are 1 x 128, 128 x 1, 128 x 128"),
        (
            lambda: fp8_blockwise.fp8_blockwise_matmul(
                fp8_blockwise.quantize_activations(normal(4, 128)), fp8_blockwise.quantize_activations(normal(4, 128)), arch="sm_90a"
            ),
            OperandError,
            "tiles of b must be",
        ),
        (
            lambda: fp8_blockwise.fp8_blockwise_matmul(fp8.quantize(normal(4, 128)), fp8.quantize(normal(128, 4)), arch="sm_90a"),
            OperandTypeError,
            "a must be TiledFp8, got Fp8Matrix",
        ),
    ],
)  # fmt: skip
def test_refusals(call, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
