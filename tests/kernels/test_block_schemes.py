"""MXFP8, MXFP6, MXFP4 and NVFP4 as operands of products."""

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.isa import UnsupportedInstruction, format_spec
from mmabits.isa.errors import OperandError, OperandTypeError
from mmabits.kernels.quantize import MX_RECIPES, quantize_mx, quantize_nvfp4
from mmabits.kernels.schemes import blocks, mxfp6_mxfp4, mxfp8, nvfp4

SEED = 20260203


def normal(*shape: int, seed: int = SEED) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-6, 6, (shape[0], 1))).astype(np.float32)


def bits(array: np.ndarray | None) -> np.ndarray:
    assert array is not None
    return np.ascontiguousarray(array).view(np.uint8)


# Types ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", MX_RECIPES)
def test_both_copies_come_from_the_source(recipe: str) -> None:
    values = normal(64, 96)
    both = mxfp8.quantize_both(values, recipe=recipe)
    rows, columns = quantize_mx(values, recipe=recipe), quantize_mx(values, recipe=recipe, axis=0)
    assert np.array_equal(bits(both.rows.elements), bits(rows.elements)) and np.array_equal(bits(both.rows.scales), bits(rows.scales))
    assert np.array_equal(bits(both.columns.elements), bits(columns.elements))
    assert np.array_equal(bits(both.columns.scales), bits(columns.scales))
    # Quantizing the dequantized row copy along columns is another matrix: what the types forbid.
    twice = quantize_mx(both.rows.dequantize(), recipe=recipe, axis=0)
    assert not np.array_equal(bits(twice.elements), bits(columns.elements))


def test_transpose_keeps_the_bits_and_changes_the_side() -> None:
    rows = mxfp8.quantize_rows(normal(5, 64), format="e5m2")
    flipped = rows.T
    assert isinstance(flipped, blocks.ColumnBlocks) and flipped.axis == 0 and isinstance(flipped.T, blocks.RowBlocks)
    assert np.array_equal(bits(flipped.elements), bits(rows.elements.T)) and np.array_equal(bits(flipped.scales), bits(rows.block_scales.T))
    assert np.array_equal(flipped.dequantize(), rows.dequantize().T)


@pytest.mark.parametrize("quantizer", [mxfp8, mxfp6_mxfp4, nvfp4])
def test_quantized_operands_are_not_quantized_again(quantizer) -> None:
    rows = quantizer.quantize_rows(normal(32, 64))
    for again in (rows, rows.elements):
        with pytest.raises(OperandTypeError, match="values must be a NumPy array of float32"):
            quantizer.quantize_columns(again)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda r, c: mxfp8.mxfp8_matmul(c, r, arch="sm_100a"), OperandTypeError, "a must be RowBlocks .*, got ColumnBlocks"),
        (lambda r, c: mxfp8.mxfp8_matmul(r, r, arch="sm_100a"), OperandTypeError, "b must be ColumnBlocks .*, got RowBlocks"),
        (lambda r, c: mxfp8.mxfp8_matmul(r, quantize_mx(normal(64, 5), axis=0), arch="sm_100a"), OperandTypeError, "got Quantized"),
        (lambda r, c: mxfp8.mxfp8_matmul(r, r.T, arch="sm_100a", through="f16"), OperandError, "unknown way 'f16'; did you mean bf16"),
        (lambda r, c: mxfp8.mxfp8_matmul(r, r.T, arch="sm_90a", through="block-scaled"), UnsupportedInstruction, "sm_90a has no"),
        (lambda r, c: mxfp8.mxfp8_matmul(r, mxfp8.quantize_columns(normal(32, 4)), arch="sm_100a"), OperandError, "b has K = 32"),
        (lambda r, c: nvfp4.nvfp4_matmul(nvfp4.quantize_rows(normal(4, 64)), r.T, arch="sm_100a"), OperandError, "ue4m3 scales for 16"),
        (lambda r, c: blocks.Both(rows=r, columns=c), OperandError, "must have one shape"),
        (lambda r, c: blocks.Both(rows=c, columns=r), OperandTypeError, "takes RowBlocks and ColumnBlocks"),
        (lambda r, c: blocks.RowBlocks.of(quantize_mx(normal(64, 5), axis=0)), OperandError, "blocks along axis 1"),
        (lambda r, c: blocks.RowBlocks.of(quantize_mx(np.ones((2, 3, 64), np.float32))), OperandError, r"got shape \(2, 3, 64\)"),
        (lambda r, c: mxfp8.quantize_rows(normal(4, 48)), OperandError, "multiple of the block size 32, got 48"),
        (lambda r, c: mxfp8.quantize_rows(normal(4, 64), format="e2m1"), OperandError, "MXFP8 has no elements of e2m1"),
        (lambda r, c: mxfp6_mxfp4.quantize_rows(normal(4, 64), format="e4m3"), OperandError, "have no elements of e4m3; they have e3m2"),
        (lambda r, c: nvfp4.quantize_rows(normal(4, 40)), OperandError, "multiple of the block size 16, got 40"),
        (lambda r, c: nvfp4.quantize_rows(normal(20, 32), square=True), OperandError, "axis 0 must be a multiple .* 16, got 20"),
        (lambda r, c: nvfp4.quantize_columns(normal(32, 20), square=True), OperandError, "axis 1 must be a multiple of the tile size 16"),
        (lambda r, c: nvfp4.quantize_rows(normal(4, 32), amax=0.0), OperandError, "amax must be positive and finite, got 0.0"),
        (lambda r, c: nvfp4.quantize_rows(normal(4, 32), rounding="rs"), OperandError, "needs random_bits"),
        (
            lambda r, c: nvfp4.quantize_rows(normal(4, 32), rounding="rs", random_bits=np.zeros(3, np.uint32)),
            OperandError,
            r"uint32 of shape \(4, 32\)",
        ),
        (lambda r, c: nvfp4.hadamard(normal(4, 24), nvfp4.random_signs(1)), OperandError, "size of the transform 16, got 24"),
        (lambda r, c: nvfp4.hadamard(normal(4, 32), np.zeros(16, np.float32)), OperandError, r"signs must be \+1 or -1, got 0.0"),
        (lambda r, c: mxfp6_mxfp4.pack_fp6(np.zeros((2, 6), np.uint8), "e3m2"), OperandError, "multiple of 4 elements"),
        (lambda r, c: mxfp6_mxfp4.pack_fp6(np.full((2, 8), 64, np.uint8), "e3m2"), OperandError, "code 0x40 is outside e3m2"),
        (lambda r, c: mxfp6_mxfp4.unpack_fp6(np.zeros(4, np.uint8), "e3m2"), OperandError, "multiple of 3 bytes"),
        (lambda r, c: mxfp6_mxfp4.unpack_fp6(np.zeros(3, np.int8), "e3m2"), OperandTypeError, "packed fp6 must be uint8"),
    ],
)  # fmt: skip
def test_refusals(call, error: type[Exception], text: str) -> None:
    rows, columns = mxfp8.quantize_rows(normal(4, 64)), mxfp8.quantize_columns(normal(64, 4))
    with pytest.raises(error, match=text):
        call(rows, columns)


# Products -------------------------------------------------------------------------------------------------------------


def exact_operand(form: str, shape: tuple[int, int], axis: int, seed: int):
    """Small integers under scales of 1 and 2: sums of products are exact in any order."""
    values = np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)
    values[0, :] = values[:, 0] = 6.0 if form == "e2m1" else 7.0  # so that blocks along either axis get the same scale
    return quantize_mx(values, format=form, axis=axis), values


@pytest.mark.parametrize("through", [None, "bf16"])
@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a", "sm_120a"])
@pytest.mark.parametrize(("a", "b"), [("e4m3", "e4m3"), ("e5m2", "e4m3"), ("e2m3", "e3m2"), ("e2m1", "e2m1"), ("e4m3", "e2m1")])
def test_exact_sums(a: str, b: str, arch: str, through: str | None) -> None:
    left, _ = exact_operand(a, (6, 96), 1, 1)
    right, _ = exact_operand(b, (96, 10), 0, 2)
    got = blocks.block_scaled_matmul(blocks.RowBlocks.of(left), blocks.ColumnBlocks.of(right), arch=arch, through=through)
    assert np.array_equal(got, left.dequantize().astype(np.float64) @ right.dequantize())


def test_product_is_gemm() -> None:
    a, b = mxfp8.quantize_rows(normal(9, 128)), mxfp8.quantize_columns(normal(128, 11, seed=4))
    plain = mmabits.gemm(
        a.elements, b.elements, instruction="tcgen05.mma.kind::mxf8f6f4.block_scale", arch="sm_100a", scale_a=a.scales, scale_b=b.scales
    )
    assert np.array_equal(mxfp8.mxfp8_matmul(a, b, arch="sm_100a"), plain)


def test_linear_layer_never_quantizes_twice() -> None:
    x, w, grad = (mxfp8.quantize_both(normal(*shape, seed=seed)) for shape, seed in (((64, 96), 1), ((96, 32), 2), ((64, 32), 3)))
    dx, dw = mxfp8.linear_gradients(grad, x, w, arch="sm_100a")
    assert np.abs(mxfp8.linear(x, w, arch="sm_100a") - x.rows.dequantize() @ w.columns.dequantize()).max() < 1e-3
    assert np.allclose(dx, grad.rows.dequantize() @ w.rows.dequantize().T, rtol=1e-3, atol=1e-3)
    assert np.allclose(dw, x.columns.dequantize().T @ grad.columns.dequantize(), rtol=1e-3, atol=1e-3)
    assert dx.shape == (64, 96) and dw.shape == (96, 32)


def test_fp6_through_e4m3_multiplies_the_same_numbers() -> None:
    a, b = mxfp6_mxfp4.quantize_rows(normal(9, 64), format="e2m3"), mxfp6_mxfp4.quantize_columns(normal(64, 7), format="e3m2")
    wide = mxfp6_mxfp4.mx_matmul(a, b, arch="sm_100a", through="e4m3")
    narrow = mxfp6_mxfp4.mx_matmul(a, b, arch="sm_100a")
    exact = a.dequantize().astype(np.float64) @ b.dequantize()
    assert np.allclose(wide, exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())
    assert np.allclose(narrow, exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())


def test_fp6_subnormals_align_otherwise_than_as_e4m3() -> None:
    """The difference that `mx_matmul` tells of: 2^-3 is a subnormal e2m3, of exponent 0, and a normal e4m3, of exponent -3."""
    values = np.zeros((1, 64), np.float32)
    values[0, 0], values[0, 32] = 1.0, 0.125
    scales = np.array([[127 - 26, 127]], np.uint8).view(ml_dtypes.float8_e8m0fnu)
    kinds = {"scheme": "mx", "element": format_spec("e2m3"), "tensor_scale": np.float32(1), "scale": format_spec("ue8m0"), "block": 32}
    a = blocks.RowBlocks(elements=values.astype(ml_dtypes.float6_e2m3fn), scales=scales, axis=1, **kinds)
    b = blocks.ColumnBlocks(
        elements=np.ones((64, 1), ml_dtypes.float6_e2m3fn), scales=np.ones((2, 1), ml_dtypes.float8_e8m0fnu), axis=0, **kinds
    )
    # The first instruction gives 2^-26. The second keeps what is a multiple of 2^-25 under the exponent of its largest product.
    assert mxfp6_mxfp4.mx_matmul(a, b, arch="sm_100a").tolist() == [[0.125]]
    assert mxfp6_mxfp4.mx_matmul(a, b, arch="sm_100a", through="e4m3").tolist() == [[0.125 + 2.0**-26]]


def test_fp6_packing() -> None:
    codes = np.random.default_rng(SEED).integers(0, 64, (3, 8)).astype(np.uint8)
    packed = mxfp6_mxfp4.pack_fp6(codes, "e3m2")
    for row, stored in zip(codes, packed, strict=True):
        number = sum(int(code) << (6 * i) for i, code in enumerate(row))
        assert bytes(stored) == number.to_bytes(6, "little")
    for form in ("e3m2", "e2m3"):
        assert np.array_equal(bits(mxfp6_mxfp4.unpack_fp6(packed, form)), codes)
    assert np.array_equal(mxfp6_mxfp4.pack_fp6(codes.T, "e2m3", axis=0), packed.T)


# NVFP4 ----------------------------------------------------------------------------------------------------------------


def test_nvfp4_product_is_scaled_once_by_both_tensors() -> None:
    a, b = nvfp4.quantize_rows(normal(9, 128)), nvfp4.quantize_columns(normal(128, 11, seed=4))
    plain = mmabits.gemm(
        a.elements, b.elements, instruction="tcgen05.mma.kind::mxf4nvf4.block_scale", arch="sm_100a", scale_a=a.scales, scale_b=b.scales
    )
    assert np.array_equal(nvfp4.nvfp4_matmul(a, b, arch="sm_100a"), plain * np.float32(a.tensor_scale * b.tensor_scale))
    exact = a.dequantize().astype(np.float64) @ b.dequantize()
    assert np.allclose(nvfp4.nvfp4_matmul(a, b, arch="sm_90a"), exact, rtol=1e-4, atol=1e-5 * np.abs(exact).max())


def test_square_blocks_are_the_same_both_ways() -> None:
    values = normal(48, 64)
    values[17, 20] = np.nan
    both = nvfp4.quantize_both(values, square=True)
    assert np.array_equal(bits(both.rows.elements), bits(both.columns.elements))
    assert np.array_equal(both.rows.dequantize(), both.columns.dequantize(), equal_nan=True)
    assert np.isnan(both.rows.dequantize()[16:32, 16:32]).all() and np.isfinite(both.rows.dequantize()[:16]).all()
    scales = both.rows.block_scales.astype(np.float32)
    for i, j in np.ndindex(3, 4):
        tile = values[16 * i : 16 * i + 16, 16 * j : 16 * j + 16]
        wanted = (np.abs(tile).max() / np.float32(6)) / both.rows.tensor_scale
        stored = np.float32(np.nan) if np.isnan(wanted) else wanted.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        assert np.array_equal(scales[16 * i : 16 * i + 16, j], np.full(16, stored), equal_nan=True)
    # Blocks of one row are finer, so they are closer.
    clean = normal(48, 64)
    errors = [np.abs(nvfp4.quantize_rows(clean, square=square).dequantize() - clean).mean() for square in (True, False)]
    assert errors[0] > errors[1]


def test_static_amax() -> None:
    got = quantize_nvfp4(normal(4, 32), amax=2688.0)
    assert got.tensor_scale == 1.0


def test_stochastic_rounding_is_unbiased_and_reproducible() -> None:
    values = np.zeros((1, 16), np.float32)
    values[0, :2] = 6.0, 1.2  # 1.2 lies between 1 and 1.5
    rng = np.random.default_rng(SEED)
    wide = np.tile(values, (4096, 1))
    drawn = rng.integers(0, 1 << 32, wide.shape, dtype=np.uint32)
    got = nvfp4.quantize_rows(wide, rounding="rs", random_bits=drawn)
    second = got.elements[:, 1].astype(np.float32)
    assert set(second.tolist()) == {1.0, 1.5}
    assert abs(second.mean() - 1.2) < 4 * 0.25 / 64  # four standard errors
    again = nvfp4.quantize_columns(np.ascontiguousarray(wide.T), rounding="rs", random_bits=np.ascontiguousarray(drawn.T))
    assert np.array_equal(bits(again.elements), bits(got.elements.T))
    lowest = nvfp4.quantize_rows(wide, rounding="rs", random_bits=np.zeros_like(drawn))
    assert (lowest.elements[:, 1].astype(np.float32) == 1.0).all()


def test_hadamard_is_the_matrix_and_cancels_in_the_product() -> None:
    signs = nvfp4.random_signs(3)
    matrix = np.ones((1, 1))
    for _ in range(4):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    x, w = normal(5, 48), normal(48, 7, seed=9)
    wanted = (x.reshape(5, 3, 16) * signs) @ matrix / 4
    assert np.allclose(nvfp4.hadamard(x, signs), wanted.reshape(5, 48), rtol=1e-5, atol=1e-5)
    product = nvfp4.hadamard(x, signs) @ nvfp4.hadamard(w, signs, axis=0)
    assert np.allclose(product, x @ w, rtol=1e-4, atol=1e-3)
    whole = np.random.default_rng(SEED).integers(-8, 9, (3, 32)).astype(np.float32)  # integers: exact
    assert np.array_equal(nvfp4.hadamard(whole, signs).reshape(3, 2, 16), (whole.reshape(3, 2, 16) * signs) @ matrix / 4)
