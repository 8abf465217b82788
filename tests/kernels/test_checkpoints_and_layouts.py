"""Layouts of scales, zeros of GPTQ's versions, FP8 and NVFP4 checkpoints: read, written, converted; beside the libraries' own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mmabits.isa.errors import OperandError, OperandTypeError
from mmabits.kernels.quantize import quantize_nvfp4
from mmabits.kernels.schemes import fp8, nvfp4, w4a16
from mmabits.kernels.schemes.packing_awq_gptq import AwqTensors, GptqTensors, read_checkpoint, write_checkpoint
from mmabits.kernels.schemes.packing_fp8_nvfp4 import FLAVOURS, Fp8Tensors, Nvfp4Tensors, read_fp_checkpoint, write_fp_checkpoint
from mmabits.kernels.schemes.scale_layouts import LAYOUTS, load_scales, pack_scales_of_float32, store_scales

SEED = 20260303
E4M3, E8M0, BF16 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu, ml_dtypes.bfloat16
F32 = np.float32


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(SEED).standard_normal(shape).astype(F32)


def codes(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(SEED).integers(0, 127, (rows, columns)).astype(np.uint8)


# Layouts of scales ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(1, 1), (8, 4), (37, 11), (128, 4), (130, 9), (0, 4), (4, 0)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_scales_come_back(layout: str, size: tuple[int, int]) -> None:
    for given in (codes(*size), codes(*size).view(E8M0), codes(*size).view(E4M3)):
        if layout == "deepgemm" and given.dtype == E4M3:
            continue
        back = load_scales(store_scales(given, layout), *size, layout)
        assert np.array_equal(back.view(np.uint8), given.view(np.uint8)) and back.shape == size


def test_8x4_puts_each_scale_where_the_formula_says() -> None:
    rows, columns = 37, 11
    held = store_scales(codes(rows, columns), "8x4")
    assert held.shape == (40 * 12,)
    for m in range(rows):
        for k in range(columns):
            assert held[m // 8 * (3 * 32) + k // 4 * 32 + m % 8 * 4 + k % 4] == codes(rows, columns)[m, k]


def test_deepgemm_packs_four_of_k_to_a_word() -> None:
    """As its own test packs them in torch: exponents, padded, four bytes a word, transposed."""
    torch = pytest.importorskip("torch")
    scales = (2.0 ** np.random.default_rng(SEED).integers(-126, 127, (37, 11))).astype(F32)
    x = torch.from_numpy(scales)
    padded = torch.zeros((40, 12), dtype=torch.uint8)
    padded[:37, :11] = (x.view(torch.int) >> 23).to(torch.uint8)
    wanted = padded.view(torch.int).mT.contiguous()
    held = store_scales(pack_scales_of_float32(scales), "deepgemm")
    assert np.array_equal(held, wanted.numpy())
    assert np.array_equal(load_scales(held, 37, 11, "deepgemm").view(E8M0).astype(F32), scales)


# GPTQ's versions ------------------------------------------------------------------------------------------------------


def test_versions_of_gptq_are_made_of_each_other(tmp_path: Path) -> None:
    weights = w4a16.quantize_int4(normal(64, 16), group=32, symmetric=True)
    first = GptqTensors.pack(weights)
    second = first.as_version(zeros_minus_one=False)
    assert np.array_equal(second.unpack().dequantize(), first.unpack().dequantize())
    assert not np.array_equal(second.qzeros, first.qzeros) and np.array_equal(second.qweight, first.qweight)
    assert np.array_equal(second.as_version(zeros_minus_one=True).qzeros, first.qzeros)
    assert not first.doubt and not second.doubt
    for layer, minus_one, zeros in ((first, False, 7), (second, True, 9)):
        write_checkpoint(tmp_path / "file", {"layer": layer})
        with pytest.warns(UserWarning, match=f"layer: all zero points are {zeros}; symmetric weights have 8"):
            read_checkpoint(tmp_path / "file", zeros_minus_one=minus_one)
        found = read_checkpoint(tmp_path / "file", zeros_minus_one=not minus_one)["layer"]
        assert np.array_equal(found.unpack().dequantize(), weights.dequantize())
    asymmetric = w4a16.quantize_int4(normal(64, 16), group=32)
    assert not GptqTensors.pack(asymmetric, zeros_minus_one=False).doubt
    with pytest.raises(OperandError, match="holds zero points 1 to 16, got 0"):
        zero = w4a16.Int4Weights(
            codes=weights.codes, scales=weights.scales, zeros=np.zeros_like(weights.zeros), group=32
        )  # fmt: skip
        GptqTensors.pack(zero, zeros_minus_one=False).as_version(zeros_minus_one=True)


def test_awq_becomes_gptq_and_back() -> None:
    weights = w4a16.quantize_int4(normal(64, 16), group=32, symmetric=True)
    awq = AwqTensors.pack(weights)
    back = AwqTensors.pack(
        w4a16.Int4Weights(**{**vars(GptqTensors.pack(awq.unpack()).unpack()), "g_idx": None})
    )  # fmt: skip
    assert all(np.array_equal(getattr(back, name), getattr(awq, name)) for name in AwqTensors.FIELDS)


# FP8 and NVFP4 --------------------------------------------------------------------------------------------------------


def layers() -> dict[str, Nvfp4Tensors | Fp8Tensors]:
    w = normal(64, 24)
    blocks = nvfp4.quantize_columns(w)
    return {
        "a.q": Nvfp4Tensors.of(blocks, flavour="compressed-tensors"),
        "a.k": Nvfp4Tensors.of(blocks, flavour="modelopt"),
        "b.channels": Fp8Tensors.of(fp8.quantize(w, per="column")),
        "b.tensor": Fp8Tensors.of(fp8.quantize(w)),
        "b.static": Fp8Tensors(
            weight=fp8.quantize(w).elements.T.copy(), weight_scale=np.ones((), BF16), input_scale=np.full(1, 0.5, F32)
        ),
    }  # fmt: skip


def parts(layer: Nvfp4Tensors | Fp8Tensors) -> dict[str, bytes]:
    return {name: part.tobytes() if isinstance(part, np.ndarray) else str(part).encode() for name, part in vars(layer).items()}


def test_layers_come_back_with_the_same_bytes(tmp_path: Path) -> None:
    write_fp_checkpoint(tmp_path / "model.safetensors", layers())
    found = read_fp_checkpoint(tmp_path / "model.safetensors")
    assert list(found) == sorted(layers())
    assert all(parts(found[name]) == parts(layer) and type(found[name]) is type(layer) for name, layer in layers().items())
    write_fp_checkpoint(tmp_path / "again.safetensors", {name: found[name] for name in layers()})
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_other_readers_take_the_files(tmp_path: Path) -> None:
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("safetensors")
    from safetensors.torch import load_file

    write_fp_checkpoint(tmp_path / "model.safetensors", layers())
    there = load_file(tmp_path / "model.safetensors")
    assert there["a.q.weight_packed"].dtype == torch.uint8 and there["a.k.weight_scale"].dtype == torch.float8_e4m3fn
    assert there["b.static.weight_scale"].dtype == torch.bfloat16 and there["b.channels.weight_scale"].shape == (24, 1)
    assert set(there) >= {"a.q.weight_global_scale", "a.k.weight", "a.k.weight_scale_2", "b.static.input_scale"}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_an_operand_is_what_was_stored(flavour: str) -> None:
    blocks = nvfp4.quantize_columns(normal(64, 24))
    layer = Nvfp4Tensors.of(blocks, flavour=flavour)
    operand = layer.operand()
    for name in ("elements", "scales"):
        assert np.array_equal(getattr(operand, name).view(np.uint8), getattr(blocks, name).view(np.uint8))
    assert abs(float(operand.tensor_scale) / float(blocks.tensor_scale) - 1) <= 2**-23
    assert np.abs(layer.dequantize() - blocks.dequantize().T).max() <= 2**-20
    other = layer.converted("modelopt" if flavour != "modelopt" else "compressed-tensors")
    assert np.array_equal(other.packed, layer.packed) and other.whole[0] == F32(1) / layer.whole[0]
    channels = fp8.quantize(normal(64, 24), per="column")
    assert np.array_equal(Fp8Tensors.of(channels).operand().dequantize(), channels.dequantize())


def test_compressed_tensors_reads_ours_and_we_read_its(tmp_path: Path) -> None:
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.quant_scheme import NVFP4
    from safetensors.torch import save_file

    scheme = QuantizationScheme(targets=["Linear"], **NVFP4)
    w = normal(24, 64)
    mine = quantize_nvfp4(w)
    ours = Nvfp4Tensors.of(nvfp4.quantize_columns(w.T.copy()), flavour="compressed-tensors")
    state = {
        "weight": torch.from_numpy(w), "weight_global_scale": torch.from_numpy(ours.whole),
        "weight_scale": torch.from_numpy(np.asarray(mine.scales).astype(F32)),
    }  # fmt: skip
    theirs = NVFP4PackedCompressor.compress(state, scheme)
    save_file({f"layer.{name}": tensor.contiguous() for name, tensor in theirs.items()}, tmp_path / "theirs.safetensors")
    found = read_fp_checkpoint(tmp_path / "theirs.safetensors")["layer"]
    assert isinstance(found, Nvfp4Tensors) and found.flavour == "compressed-tensors"
    assert np.array_equal(found.scales.view(np.uint8), ours.scales.view(np.uint8)) and np.array_equal(found.whole, ours.whole)
    zero_codes = (found.packed ^ ours.packed) & 0x77  # the sign of zero is theirs
    assert np.mean(zero_codes != 0) < 1e-2
    back = NVFP4PackedCompressor.decompress(dict(theirs), scheme)["weight"].float().numpy()
    assert np.array_equal(found.dequantize(), back) or np.abs(found.dequantize() - back).max() <= 2**-7 * np.abs(back).max()


@pytest.mark.filterwarnings("ignore")  # its imports use what PyTorch deprecates
def test_modelopt_stores_what_we_store_and_reads_it_alike(tmp_path: Path) -> None:
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("modelopt")
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor
    from safetensors.torch import save_file

    w = normal(24, 64)
    theirs, scale, whole = NVFP4QTensor.quantize(torch.from_numpy(w), 16)
    save_file({"l.weight": theirs._quantized_data, "l.weight_scale": scale, "l.weight_scale_2": whole.float()}, tmp_path / "theirs")
    found = read_fp_checkpoint(tmp_path / "theirs")["l"]
    assert isinstance(found, Nvfp4Tensors) and found.flavour == "modelopt"
    ours = Nvfp4Tensors.of(nvfp4.quantize_columns(w.T.copy()), flavour="modelopt")
    assert np.array_equal(found.packed, ours.packed) and np.array_equal(found.scales.view(np.uint8), ours.scales.view(np.uint8))
    assert found.whole.reshape(-1)[0] == ours.whole[0]
    back = theirs.dequantize(torch.float32, scale=scale, double_scale=whole, block_sizes={-1: 16}).numpy()
    assert np.array_equal(found.dequantize(), back)


# Refusals -------------------------------------------------------------------------------------------------------------


def file_of(folder: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> object:
    header, data = {}, b""
    for name, (kind, shape, held) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(held)]}
        data += held
    text = json.dumps(header).encode()
    (folder / "file").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return read_fp_checkpoint(folder / "file")


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda _: store_scales(codes(4, 4), "4x8"), OperandError, "unknown scale layout '4x8'"),
        (lambda _: store_scales(normal(4, 4), "8x4"), OperandTypeError, "uint8 or float8_e8m0fnu or float8_e4m3fn, got dtype float32"),
        (lambda _: store_scales(codes(4, 4).view(E4M3), "deepgemm"), OperandError, "DeepGEMM packs ue8m0 scales"),
        (lambda _: load_scales(np.zeros(31, np.uint8), 8, 4, "8x4"), OperandError, r"shape \(32,\), got \(31,\)"),
        (lambda _: load_scales(np.zeros((2, 4), np.int32), 4, 4, "deepgemm"), OperandError, r"shape \(1, 4\), got \(2, 4\)"),
        (lambda _: load_scales(codes(4, 4), -1, 4, "rows"), OperandError, "rows must be an integer from 0 on, got -1"),
        (lambda _: pack_scales_of_float32(np.array([1.5], F32)), OperandError, "powers of two from 2.-126 on, got 1.5"),
        (lambda _: pack_scales_of_float32(np.array([-2.0], F32)), OperandError, "powers of two"),
        (lambda _: Nvfp4Tensors.of(nvfp4.quantize_columns(normal(32, 2)), flavour="trt"), OperandError, "unknown flavour of checkpoints"),
        (lambda _: Nvfp4Tensors.of(nvfp4.quantize_rows(normal(2, 32)), flavour="modelopt"), OperandTypeError, "must be ColumnBlocks"),
        (lambda _: Fp8Tensors.of(fp8.quantize(normal(4, 4), per="row")), OperandTypeError, "scales for columns or one for all"),
        (lambda _: Fp8Tensors(weight=np.zeros((2, 4), E4M3), weight_scale=np.ones((3, 1), F32)), OperandError, r"\(2, 1\), got \(3, 1\)"),
        (lambda folder: read_fp_checkpoint(folder / "nowhere"), OperandError, "nowhere cannot be read"),
        (lambda folder: write_fp_checkpoint(folder / "no" / "where", {}), OperandError, "cannot be written"),
        (lambda folder: write_fp_checkpoint(folder / "file", {"a": normal(2, 2)}), OperandTypeError,  # type: ignore[dict-item]
         "layer 'a' must be Nvfp4Tensors or Fp8Tensors or BlockFp8Tensors, got ndarray"),
        (lambda folder: write_fp_checkpoint(folder / "file", {}, caches={"a": 1}), OperandTypeError,  # type: ignore[dict-item]
         "cache 'a' must be CacheScales, got int"),
        (lambda folder: write_fp_checkpoint(folder / "file", [1]), OperandTypeError, "layers must be a mapping"),  # type: ignore[arg-type]
        (lambda _: load_scales(np.zeros(64, np.int32), 5, 7, "8x4"), OperandTypeError, "float8_e4m3fn, got dtype int32"),
        (lambda _: load_scales(np.zeros((5, 7), np.int32), 5, 7, "rows"), OperandTypeError, "float8_e4m3fn, got dtype int32"),
        (lambda _: load_scales(codes(2, 4), 4, 4, "deepgemm"), OperandTypeError, "array of int32, got dtype uint8"),
        (lambda folder: file_of(folder, {"x.weight_scale": ("F16", [1], b"\0<"), "x.weight": ("F8_E4M3", [1, 1], b"\0")}),
         OperandTypeError, "x: weight_scale must be float32 or bfloat16, got F16"),
        (lambda folder: file_of(folder, {"x.weight_scale": ("F32", [1], b"\0\0\x80?")}),
         OperandError, "x: there is a weight_scale without weight"),
        (lambda folder: file_of(folder, {"x.weight_scale": ("F32", [1], b"\0\0\xc0\x7f"), "x.weight": ("F8_E4M3", [1, 1], b"\0")}),
         OperandError, "x: weight_scale must be finite"),
        (lambda folder: file_of(folder, {"x.weight_scale": ("F8_E4M3", [1, 1], b"8"), "x.weight_scale_2": ("F32", [], b"\0\0\x80?"),
                                         "x.weight": ("U8", [1, 7], b"1234567")}),
         OperandError, "K must be a multiple of the block size 16"),
    ],
)  # fmt: skip
def test_wrong_use(tmp_path: Path, make: Callable[[Path], object], error: type[Exception], text: str) -> None:
    pytest.importorskip("safetensors")
    with pytest.raises(error, match=text):
        make(tmp_path)


def test_layers_of_other_kinds_are_left_alone(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    one = ("F32", [1], b"\0\0\x80?")
    found = file_of(tmp_path, {
        "int8.weight": ("I8", [1, 4], b"1234"), "int8.weight_scale": one,
        "mxfp4.weight_packed": ("U8", [1, 16], bytes(16)), "mxfp4.weight_scale": ("U8", [1, 1], b"\x7f"),
        "mxfp8.weight": ("F8_E4M3", [1, 32], bytes(32)), "mxfp8.weight_scale": ("U8", [1, 1], b"\x7f"),
        "awq.weight": ("U8", [1, 8], bytes(8)), "awq.weight_scale": ("F32", [1, 1], one[2]), "awq.weight_scale_2": one,
        "fp8.weight": ("F8_E4M3", [1, 32], bytes(32)), "fp8.weight_scale": one,
    })  # fmt: skip
    assert isinstance(found, dict) and list(found) == ["fp8"]


def test_a_file_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    (tmp_path / "file").write_bytes(b"nonsense" * 4)
    with pytest.raises(OperandError, match="is no safetensors file"):
        read_fp_checkpoint(tmp_path / "file")
