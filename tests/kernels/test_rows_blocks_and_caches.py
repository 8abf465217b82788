"""Orders of rows, AWQ's gemv versions, blockwise FP8 checkpoints and scales of KV caches: by hand, back again, and beside the libraries."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mmabits.isa.errors import OperandError, OperandTypeError
from mmabits.kernels.schemes import attention, fp8, fp8_blockwise, mxfp6_mxfp4, packing_awq_gemv, row_orders, w4a16
from mmabits.kernels.schemes.packing_awq_gemv import AwqGemvFastTensors, AwqGemvTensors, gemv_config, read_gemv_checkpoint
from mmabits.kernels.schemes.packing_awq_gptq import read_checkpoint, write_checkpoint
from mmabits.kernels.schemes.packing_fp8_blocks import BLOCK_FLAVOURS, CACHE_FLAVOURS, BlockFp8Tensors, CacheScales
from mmabits.kernels.schemes.packing_fp8_nvfp4 import Fp8Tensors, read_cache_scales, read_fp_checkpoint, write_fp_checkpoint
from mmabits.kernels.schemes.scale_layouts import load_scales

SEED = 20260402
E4M3, E8M0, BF16 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu, ml_dtypes.bfloat16
F32 = np.float32


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(SEED).standard_normal(shape).astype(F32)


# Orders of rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tile", "block", "first"), [(128, 32, [0, 4, 8, 12, 16, 20, 24, 28, 1]), (64, 16, [0, 2, 4, 6, 8, 10, 12, 14, 1])]
)
def test_rows_go_where_the_maps_say(tile: int, block: int, first: list[int]) -> None:
    """The maps as they are published: of 32 rows the first four go to 0, 8, 16, 24, of 16 the first two to 0, 8."""
    assert row_orders.shuffled_indices(2 * block, epilogue_tile=tile)[:9].tolist() == first
    weights = np.arange(2 * block)[:, None]
    shuffled = row_orders.shuffle_rows(weights, epilogue_tile=tile)
    share = block // 8
    for row in range(2 * block):
        assert shuffled[row // block * block + row % share * 8 + row % block // share, 0] == row
    assert np.array_equal(row_orders.unshuffle_rows(shuffled, epilogue_tile=tile), weights)


def test_halves_are_interleaved_before_rows_are_shuffled() -> None:
    weights = np.random.default_rng(SEED).integers(0, 256, (256, 7)).astype(np.uint8)
    apart = np.empty_like(weights)
    apart[::2], apart[1::2] = weights[:128], weights[128:]
    shuffled = row_orders.shuffle_rows(weights, gated=True)
    assert np.array_equal(shuffled, row_orders.shuffle_rows(apart))
    assert np.array_equal(row_orders.unshuffle_rows(shuffled, gated=True), weights)


@pytest.mark.parametrize("gated", [False, True])
def test_scales_go_with_their_rows(gated: bool) -> None:
    """Dequantized, shuffled weights are the shuffled dequantized weights."""
    found = mxfp6_mxfp4.quantize_columns(normal(128, 256))
    codes, scales = np.ascontiguousarray(found.elements.T), np.ascontiguousarray(found.block_scales.T)
    held = row_orders.shuffle_scales(scales, gated=gated)
    assert held.shape == (256 * 4,)
    values = row_orders.shuffle_rows(codes, gated=gated).astype(F32)
    values = values * np.repeat(load_scales(held, 256, 4, "128x4").astype(F32), 32, axis=1)
    assert np.array_equal(row_orders.unshuffle_rows(values, gated=gated), found.dequantize().T)
    assert np.array_equal(row_orders.unshuffle_scales(held, 256, 4, gated=gated).view(np.uint8), scales.view(np.uint8))


def test_blocks_of_k_outermost() -> None:
    weights = np.arange(6 * 8).reshape(6, 8)
    held = row_orders.to_block_major(weights, block=4)
    assert held.shape == (2, 6, 4) and all(held[k // 4, n, k % 4] == weights[n, k] for n in range(6) for k in range(8))
    assert np.array_equal(row_orders.from_block_major(held), weights)
    assert row_orders.shuffle_rows(np.zeros((0, 4), E4M3)).shape == (0, 4)


def test_flashinfer_shuffles_alike() -> None:
    torch, flashinfer = pytest.importorskip("torch"), pytest.importorskip("flashinfer")
    weights = np.random.default_rng(SEED).integers(0, 256, (256, 16)).astype(np.uint8)
    for tile in (64, 128):
        assert np.array_equal(
            flashinfer.shuffle_matrix_a(torch.from_numpy(weights), tile).numpy(), row_orders.shuffle_rows(weights, epilogue_tile=tile)
        )


# AWQ, gemv ------------------------------------------------------------------------------------------------------------


def four_bits(k: int, n: int, group: int) -> w4a16.Int4Weights:
    return w4a16.quantize_int4(normal(k, n) * F32(0.1), group=group)


@pytest.mark.parametrize(
    ("k", "group", "words"), [(1152, 128, 2), (256, 128, 1), (320, 64, 2), (64, 32, 4), (1088, 64, 4), (256, 256, 1), (0, 128, 0)]
)
def test_words_of_zeros_are_rounded_up(k: int, group: int, words: int) -> None:
    assert packing_awq_gemv.words_of_zeros(k, group) == words


@pytest.mark.parametrize("kind", [AwqGemvTensors, AwqGemvFastTensors])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_gemv_versions_come_back(kind: type[AwqGemvTensors] | type[AwqGemvFastTensors], group: int, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    weights = four_bits(384, 24, group)
    packed = kind.pack(weights)
    write_checkpoint(tmp_path / "file", {"a.b": packed})
    found = read_gemv_checkpoint(tmp_path / "file", version=kind.VERSION, group=group)["a.b"]
    assert all(getattr(found, field).tobytes() == getattr(packed, field).tobytes() for field in kind.FIELDS)
    back = found.unpack()
    for name in ("codes", "zeros", "scales"):
        assert np.array_equal(getattr(back, name), getattr(weights, name)), name
    assert gemv_config(found)["version"] == kind.VERSION
    if kind is AwqGemvTensors:
        with pytest.raises((OperandError, OperandTypeError), match=r"a\.b: scales must have shape"):
            read_checkpoint(tmp_path / "file")


def test_every_code_of_the_gemv_versions_lies_where_it_is_said_to() -> None:
    weights = four_bits(128, 8, 64)
    plain = AwqGemvTensors.pack(weights)
    for n, k in np.ndindex(8, 128):
        assert int(plain.qweight[n, k // 8]) >> (4 * (k % 8)) & 15 == weights.codes[k, n]
    assert plain.qzeros.shape == (8, 2) and plain.scales.shape == (8, 16) and not plain.scales[:, 2:].any()
    fast = AwqGemvFastTensors.pack(weights)
    for n, k in np.ndindex(8, 128):
        lot, pair, one = k % 32 // 2 % 4, k % 32 // 8, k % 2  # which lot of eight, the pair's place in it, even or odd
        place = k // 32 * 32 + lot * 8 + one * 4 + pair
        at = (k // 64 * 4 + n % 4) * 64 + place % 64  # among the codes of four channels
        assert int(fast.qweight[n // 4, at // 4]) >> (4 * (at % 4)) & 15 == weights.codes[k, n]
    exact = -(weights.scales.astype(F32) * weights.zeros.astype(F32))
    assert np.array_equal(fast.qzeros[:2], exact.astype(np.float16)) and not fast.qzeros[2:].any()


# FP8 blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(256, 128), (200, 130), (128, 384), (1, 1), (0, 128)], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("flavour", BLOCK_FLAVOURS)
def test_blocks_come_back(size: tuple[int, int], flavour: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    k, n = size
    weights = fp8_blockwise.quantize_weights(normal(k, n))
    layer = BlockFp8Tensors.of(weights, flavour=flavour)
    assert layer.weight.shape == (n, k) and layer.scales.shape == (-(-n // 128), -(-k // 128))
    write_fp_checkpoint(tmp_path / "file", {"x": layer})
    found = read_fp_checkpoint(tmp_path / "file")["x"]
    if isinstance(found, Fp8Tensors):  # one scale for all, however it is called
        assert flavour == "compressed-tensors" and layer.scales.shape == (1, 1) and np.array_equal(found.weight_scale, layer.scales)
        return
    assert isinstance(found, BlockFp8Tensors) and found.flavour == flavour
    back = found.operand()
    assert np.array_equal(back.elements.view(np.uint8), weights.elements.view(np.uint8)) and np.array_equal(back.scales, weights.scales)
    other = found.converted("deepseek" if flavour != "deepseek" else "compressed-tensors")
    assert np.array_equal(other.dequantize(), layer.dequantize())


def test_blocks_by_hand_and_in_other_types() -> None:
    weights = fp8_blockwise.quantize_weights(normal(200, 130), recipe="power-of-two")
    layer = BlockFp8Tensors.of(weights)
    for kind in (BF16, E8M0):  # powers of two are exact there
        same = BlockFp8Tensors(weight=layer.weight, scales=layer.scales.astype(kind))
        assert np.array_equal(same.operand().scales, weights.scales) and np.array_equal(same.dequantize(), layer.dequantize())
    for n, k in ((0, 0), (129, 199), (127, 128)):
        assert layer.dequantize()[n, k] == F32(layer.weight[n, k]) * layer.scales[n // 128, k // 128]


def test_compressed_tensors_makes_the_same_blocks(tmp_path: Path) -> None:
    """Its compressor given the scales here; its reader of DeepSeek's files; both beside our numbers."""
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.naive_quantized.base import FloatQuantizationCompressor
    from compressed_tensors.entrypoints.convert.converters.fp8block_dequantizer import FP8BlockDequantizer
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.quant_scheme import FP8_BLOCK
    from safetensors.torch import load_file, save_file

    w = normal(256, 384)
    ours = BlockFp8Tensors.of(fp8_blockwise.quantize_weights(w.T.copy()), flavour="compressed-tensors")
    state = {"weight": torch.from_numpy(w), "weight_scale": torch.from_numpy(ours.scales)}
    theirs = FloatQuantizationCompressor.compress(state, QuantizationScheme(targets=["Linear"], **FP8_BLOCK))
    save_file({f"layer.{name}": tensor.contiguous() for name, tensor in theirs.items()}, tmp_path / "theirs")
    found = read_fp_checkpoint(tmp_path / "theirs")["layer"]
    assert isinstance(found, BlockFp8Tensors) and found.flavour == "compressed-tensors"
    assert np.array_equal(found.weight.view(np.uint8), ours.weight.view(np.uint8)) and np.array_equal(found.scales, ours.scales)
    write_fp_checkpoint(tmp_path / "ours", {"layer": ours.converted("deepseek")})
    made = FP8BlockDequantizer(dtype=torch.float32).process(load_file(tmp_path / "ours"))
    assert np.array_equal(made["layer.weight"].numpy(), ours.dequantize())


# KV caches ------------------------------------------------------------------------------------------------------------


def one(value: float, kind: type = np.float32) -> np.ndarray:
    return np.full(1, value, kind)


@pytest.mark.parametrize("flavour", CACHE_FLAVOURS)
def test_cache_scales_come_back(flavour: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    values = one(0.125 if flavour == "kv-scale" else 0.75)
    caches = {f"model.layers.{layer}.self_attn": CacheScales(keys=one(0.125), values=values, flavour=flavour) for layer in (0, 11)}
    weights = {"model.layers.0.self_attn.k_proj": Fp8Tensors.of(fp8.quantize(normal(32, 16)))}
    write_fp_checkpoint(tmp_path / "file", weights, caches=caches)
    found = read_cache_scales(tmp_path / "file")
    assert list(found) == list(caches) and list(read_fp_checkpoint(tmp_path / "file")) == list(weights)
    for name, each in found.items():
        assert each.flavour == flavour and each.whole() == (F32(0.125), caches[name].values[0])
        converted = each.converted("modelopt").converted("compressed-tensors")
        assert np.array_equal(converted.keys, each.keys) and set(converted.tensors()) == {"k_scale", "v_scale"}
    key_scale, value_scale = found["model.layers.0.self_attn"].whole()
    assert attention.empty_cache(1, 16, 2, 64, key_scale=float(key_scale), value_scale=float(value_scale)).key_scale == F32(0.125)


def test_scales_of_heads_and_of_other_types(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    scales = CacheScales(keys=np.array([0.5, 0.25], BF16), values=np.array(3, BF16))
    write_fp_checkpoint(tmp_path / "file", {}, caches={"attention": scales})
    found = read_cache_scales(tmp_path / "file")["attention"]
    assert found.keys.dtype == BF16 and found.keys.tolist() == [0.5, 0.25] and found.values.shape == ()
    with pytest.raises(OperandError, match="of 2 heads, not of a whole cache"):
        found.whole()


def test_vllm_maps_the_same_names() -> None:
    names = pytest.importorskip("vllm.model_executor.model_loader.weight_utils")
    for flavour, row in CACHE_FLAVOURS.items():
        for part, letter in ((row.keys, "k"), (row.values, "v" if flavour != "kv-scale" else "k")):
            wanted = f"model.layers.0.self_attn.attn.{letter}_scale"
            assert names.maybe_remap_kv_scale_name(f"model.layers.0.self_attn.{part}", {wanted: 0}) == wanted


# Refusals -------------------------------------------------------------------------------------------------------------


def cache_file(folder: Path, **tensors: np.ndarray) -> Path:
    from safetensors.numpy import save_file

    save_file({name.replace("__", "."): each for name, each in tensors.items()}, folder / "file")
    return folder / "file"


def junk(folder: Path) -> Path:
    (folder / "junk").write_bytes(b"nonsense" * 4)
    return folder / "junk"


FOUR = w4a16.quantize_int4(np.ones((128, 8), F32))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda _: row_orders.shuffle_rows(normal(48, 2)), OperandError, "multiple of a block of rows, 32, got 48"),
        (lambda _: row_orders.shuffle_rows(normal(48, 2), epilogue_tile=0), OperandError, "epilogue_tile must be a positive integer"),
        (lambda _: row_orders.shuffle_rows([1]), OperandTypeError, "NumPy array, got list"),  # type: ignore[arg-type]
        (lambda _: row_orders.shuffle_rows(normal(32)), OperandError, "2 dimensions, got shape"),
        (lambda _: row_orders.shuffle_scales(np.zeros((128, 6), np.uint8)), OperandError, "in a row must be a multiple of the layout's 4"),
        (lambda _: row_orders.interleaved_indices(3), OperandError, "two halves, 2, got 3"),
        (lambda _: row_orders.to_block_major(normal(4, 6), block=4), OperandError, "the block 4, got 6"),
        (lambda _: row_orders.from_block_major(normal(4, 6)), OperandError, "3 dimensions"),
        (lambda _: packing_awq_gemv.words_of_zeros(96, 48), OperandError, "groups of 32, 64, 128 and more, got 48"),
        (lambda _: AwqGemvTensors.pack(w4a16.quantize_int4(np.ones((128, 4), F32))), OperandError, "N must be a multiple"),
        (lambda _: AwqGemvTensors(**{**vars(AwqGemvTensors.pack(FOUR)), "group": 32}), OperandError, r"shape \(8, 32\), got \(8, 8\)"),
        (lambda _: AwqGemvFastTensors(**{**vars(AwqGemvFastTensors.pack(FOUR)), "qzeros": np.full((8, 8), 0.3, np.float16)}), OperandError,
         "qzeros must be -scale"),
        (lambda folder: read_gemv_checkpoint(folder / "x", version="gemm", group=128), OperandError, "unknown version of AWQ checkpoints"),
        (lambda folder: read_gemv_checkpoint(cache_file(folder, a__qweight=one(1)), version="gemv", group=128), OperandError,
         "a.qweight without a.qzeros, a.scales"),
        (lambda folder: read_gemv_checkpoint(folder / "nowhere", version="gemv", group=128), OperandError, "nowhere cannot be read"),
        (lambda folder: read_checkpoint(folder / "nowhere"), OperandError, "nowhere cannot be read"),
        (lambda folder: read_checkpoint(folder), OperandError, "cannot be read"),
        (lambda folder: read_checkpoint(junk(folder)), OperandError, "is no safetensors file"),
        (lambda folder: read_gemv_checkpoint(junk(folder), version="gemv", group=128), OperandError, "is no safetensors file"),
        (lambda folder: write_checkpoint(folder / "no" / "where", {}), OperandError, "cannot be written"),
        (lambda folder: write_checkpoint(folder / "file", {"a": one(1)}), OperandTypeError,  # type: ignore[dict-item]
         "layer 'a' must be AwqTensors, GptqTensors or those of packing_awq_gemv, got ndarray"),
        (lambda _: BlockFp8Tensors(weight=np.zeros((130, 4), E4M3), scales=np.ones((1, 1), F32)), OperandError, r"\(2, 1\), got \(1, 1\)"),
        (lambda _: BlockFp8Tensors(weight=np.zeros((1, 1), E4M3), scales=np.full((1, 1), np.nan, F32)), OperandError, "must be finite"),
        (lambda _: BlockFp8Tensors.of(fp8.quantize(normal(4, 4))), OperandTypeError, "TiledFp8 of e4m3"),  # type: ignore[arg-type]
        (lambda _: BlockFp8Tensors.of(fp8_blockwise.quantize_weights(normal(4, 4)), flavour="x"), OperandError, "unknown flavour of block"),
        (lambda _: CacheScales(keys=one(0), values=one(1)), OperandError, "the scale of keys must be positive"),
        (lambda _: CacheScales(keys=one(1), values=one(2), flavour="kv-scale"), OperandError, "one scale for keys and values"),
        (lambda _: CacheScales(keys=one(1), values=one(2)).converted("kv-scale"), OperandError, "one scale for keys and values"),
        (lambda _: CacheScales(keys=one(1), values=np.ones((1, 1), F32)), OperandError, r"\(\), \(1,\) or \(heads,\), got \(1, 1\)"),
        (lambda _: CacheScales(keys=one(1), values=one(1, np.float64)), OperandTypeError, "float32 or bfloat16"),
        (lambda folder: read_cache_scales(cache_file(folder, a__k_scale=one(1))), OperandError, "there is a.k_scale without a.v_scale"),
        (lambda folder: read_cache_scales(cache_file(folder, a__k_proj__k_scale=one(1), a__v_scale=one(1))), OperandError,
         "a.k_proj.k_scale without a.v_proj.v_scale"),
        (lambda folder: read_cache_scales(cache_file(folder, a__k_zero_point=one(1))), OperandError, "with zero points are not read"),
        (lambda folder: read_cache_scales(cache_file(folder, a__kv_scale=one(1), a__k_scale=one(1), a__v_scale=one(1))), OperandError,
         "under two names"),
    ],
)  # fmt: skip
def test_wrong_use(tmp_path: Path, make: Callable[[Path], object], error: type[Exception], text: str) -> None:
    pytest.importorskip("safetensors")
    with pytest.raises(error, match=text):
        make(tmp_path)


def test_a_block_layer_with_a_static_input_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    layer = BlockFp8Tensors.of(fp8_blockwise.quantize_weights(normal(4, 4)))
    write_fp_checkpoint(tmp_path / "file", {"x": layer})
    held = (tmp_path / "file").read_bytes()
    size = int.from_bytes(held[:8], "little")
    header = json.loads(held[8 : 8 + size])
    header["x.input_scale"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(held) - 8 - size, len(held) - 4 - size]}
    text = json.dumps(header).encode()
    (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text + held[8 + size :] + one(1).tobytes())
    with pytest.raises(OperandError, match="activations scaled dynamically, got an input_scale"):
        read_fp_checkpoint(tmp_path / "file")
