"""W4A16: quantizer, packings, AWQ and GPTQ against plain readings of their definitions; no framework but torch's integers."""

import json

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.isa.errors import OperandError, OperandTypeError
from mmabits.kernels.schemes.awq import awq_quantize, channel_scales
from mmabits.kernels.schemes.dots import Dots
from mmabits.kernels.schemes.gptq import gptq_quantize, hessian
from mmabits.kernels.schemes.packing_awq_gptq import (
    AWQ_ORDER,
    AwqTensors,
    GptqTensors,
    pack_words,
    quantization_config,
    read_checkpoint,
    unpack_words,
    write_checkpoint,
)
from mmabits.kernels.schemes.w4a16 import Int4Weights, group_parameters, quantize_int4, round_to_codes, w4a16_matmul

SEED = 20260114


def weights(k: int = 256, n: int = 24, seed: int = SEED) -> np.ndarray:
    """Columns of different sizes and offsets."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((k, n)) * 2.0 ** rng.integers(-6, 6, n) + rng.standard_normal(n)).astype(np.float32)


def adversarial(k: int = 32) -> np.ndarray:
    """Groups of zeros, constants, one sign, subnormals of f16, ties between codes."""
    columns = [
        np.zeros(k), np.full(k, 3.0), np.full(k, -3.0), np.linspace(0, 1, k), -np.linspace(0, 1, k), np.full(k, 2.0**-30),
        np.r_[np.full(k - 1, 1e-7), -1e-7], np.arange(k) / 2 - 4, np.r_[0.0, 15.0, np.arange(k - 2) % 15 + 0.5], np.full(k, 6e4),
    ]  # fmt: skip
    return np.stack(columns, axis=1).astype(np.float32)


def random_int4(k: int, n: int, group: int, seed: int = SEED, zero_from: int = 0) -> Int4Weights:
    rng = np.random.default_rng(seed)
    return Int4Weights(
        codes=rng.integers(0, 16, (k, n)).astype(np.uint8), group=group,
        zeros=rng.integers(zero_from, zero_from + 16, (k // group, n)).astype(np.uint8),
        scales=(rng.standard_normal((k // group, n)) * 2.0 ** rng.integers(-10, 10, (k // group, n))).astype(np.float16),
    )  # fmt: skip


def of_one_group(code: int, zero: int) -> Int4Weights:
    codes, zeros = np.full((8, 8), code, np.uint8), np.full((1, 8), zero, np.uint8)
    return Int4Weights(codes=codes, scales=np.ones((1, 8), np.float16), zeros=zeros, group=8)


# Round to nearest -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("values", [weights(), adversarial()], ids=["random", "adversarial"])
def test_round_to_nearest_is_what_torch_makes_of_the_recipe(values: np.ndarray, symmetric: bool) -> None:
    torch = pytest.importorskip("torch")
    group = 32
    got = quantize_int4(values, group=group, symmetric=symmetric)
    w = torch.from_numpy(values).reshape(-1, group, values.shape[1])
    low, high = w.amin(1).clamp(max=0), w.amax(1).clamp(min=0)
    scale = torch.maximum(-low, high) / 7.5 if symmetric else (high - low) / 15
    scale = torch.where(scale > 0, scale.clamp(min=2.0**-24), 1.0).half()
    zero = torch.full_like(scale, 8).float() if symmetric else (-low / scale.float()).round().clamp(0, 15)
    codes = ((w / scale.float()[:, None]).round() + zero[:, None]).clamp(0, 15)
    assert np.array_equal(got.scales, scale.numpy())
    assert np.array_equal(got.zeros, zero.numpy().astype(np.uint8))
    assert np.array_equal(got.codes, codes.reshape(values.shape).numpy().astype(np.uint8))


def test_a_worked_group() -> None:
    """15 steps of 0.5 from -2 to 5.5: scale 0.5, zero 4, ties to even."""
    column = np.array([-2.0, 5.5, 0.25, 0.75, 0.0, -0.25, 1.0, 5.4], np.float32)[:, None]
    got = quantize_int4(column, group=8)
    assert (got.scales[0, 0], got.zeros[0, 0]) == (0.5, 4)
    assert got.codes[:, 0].tolist() == [0, 15, 4, 6, 4, 4, 6, 15]
    assert got.dequantize()[:, 0].tolist() == [-2.0, 5.5, 0.0, 1.0, 0.0, 0.0, 1.0, 5.5]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_dequantized_values_are_rounded_once(dtype: type) -> None:
    """(code - zero) exactly, times the scale in the type, one rounding: from exact float64 products."""
    w = random_int4(512, 16, 64, zero_from=1)
    scales = w.scales.astype(np.float32).astype(dtype).astype(np.float64)
    steps = w.codes.astype(np.int64) - np.repeat(w.zeros.astype(np.int64), 64, axis=0)
    exact = steps * np.repeat(scales, 64, axis=0)
    got = w.dequantize(dtype)
    assert got.dtype == dtype
    above = np.nextafter(got, np.asarray(np.inf, dtype)).astype(np.float64)
    below = np.nextafter(got, np.asarray(-np.inf, dtype)).astype(np.float64)
    error = np.abs(got.astype(np.float64) - exact)
    assert (error <= np.abs(above - exact)).all() and (error <= np.abs(below - exact)).all()
    assert (error > 0).mean() > 0.2  # rounding does happen
    ties = (error == np.abs(above - exact)) | (error == np.abs(below - exact))
    assert (got.view(np.uint16)[ties & (error > 0)] % 2 == 0).all()


def test_dequantized_as_torch_does_it() -> None:
    torch = pytest.importorskip("torch")
    w = random_int4(256, 16, 128)
    codes, zeros = torch.from_numpy(w.codes).half(), torch.from_numpy(np.repeat(w.zeros, 128, axis=0)).half()
    wanted = (codes - zeros) * torch.from_numpy(np.repeat(w.scales, 128, axis=0))
    assert np.array_equal(w.dequantize().view(np.uint16), wanted.numpy().view(np.uint16))


def test_composition_is_gemm_of_the_dequantized_weights() -> None:
    w = quantize_int4(weights(), group=128)
    x = np.random.default_rng(SEED).standard_normal((5, 256)).astype(np.float16)
    wanted = mmabits.gemm(x, w.dequantize(), instruction="wgmma", arch="sm_90a")
    assert np.array_equal(w4a16_matmul(x, w, arch="sm_90a"), wanted)
    chained = mmabits.gemm(x, w.dequantize(), instruction="mma.sync", arch="sm_80")
    assert np.array_equal(w4a16_matmul(x, w, arch=Dots(arch="sm_80")), chained)


def test_k_order_permutes_both_operands_within_a_tile() -> None:
    rng = np.random.default_rng(SEED)
    a, b = rng.standard_normal((4, 40)).astype(np.float16), rng.standard_normal((40, 8)).astype(np.float16)
    order = tuple(rng.permutation(16).tolist())
    got = Dots(arch="sm_80", k_order=order)(a, b)
    padded_a, padded_b = np.zeros((4, 48), np.float16), np.zeros((48, 8), np.float16)
    padded_a[:, :40], padded_b[:40] = a, b
    places = [16 * tile + k for tile in range(3) for k in order]
    assert np.array_equal(got, mmabits.gemm(padded_a[:, places], padded_b[places], instruction="mma.sync", arch="sm_80"))
    assert not np.array_equal(got, mmabits.gemm(a, b, instruction="mma.sync", arch="sm_80"))
    with pytest.raises(OperandError, match="permutation of 0 to 1"):
        Dots(arch="sm_80", k_order=(0, 0))(a, b)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: quantize_int4(weights(200)), OperandError, "multiple of the group size 128, got 200"),
        (lambda: quantize_int4(weights().astype(np.float16)), OperandTypeError, "float32, got dtype float16"),
        (lambda: quantize_int4(np.full((128, 1), np.nan, np.float32)), OperandError, "must be finite, got nan"),
        (lambda: quantize_int4(np.full((128, 1), 2e6, np.float32)), OperandError, "no f16 scale"),
        (lambda: quantize_int4(weights(), group=0), OperandError, "group size 0"),
        (lambda: random_int4(256, 8, 128).dequantize(np.float32), OperandError, "float16 or bfloat16, got float32"),
        (lambda: w4a16_matmul(np.zeros((2, 128), np.float16), random_int4(256, 8, 128), arch="sm_80"), OperandError, "K = 128"),
        (lambda: w4a16_matmul(np.zeros((2, 256), np.float32), random_int4(256, 8, 128), arch="sm_80"), OperandTypeError, "bfloat16"),
        (lambda: of_one_group(16, 0), OperandError, "0 to 15, got 16"),
        (lambda: of_one_group(0, 17), OperandError, "0 to 16, got 17"),
    ],
)  # fmt: skip
def test_wrong_operands(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()


# Packing --------------------------------------------------------------------------------------------------------------


def test_words_made_by_hand() -> None:
    eight = np.arange(8, dtype=np.uint8)[None, :]
    assert pack_words(eight, axis=1).view(np.uint32)[0, 0] == 0x76543210
    # Nibbles from the lowest: columns 0, 2, 4, 6, 1, 3, 5, 7.
    assert pack_words(eight, axis=1, order=AWQ_ORDER).view(np.uint32)[0, 0] == 0x75316420
    last = np.array([[0, 0, 0, 0, 0, 0, 0, 15]], np.uint8)
    assert pack_words(last, axis=1, order=AWQ_ORDER)[0, 0] == np.int32(-(1 << 28))
    assert unpack_words(np.array([[0x75316420]], np.int32), axis=1, order=AWQ_ORDER).tolist() == [list(range(8))]


def test_awq_packing_against_the_loop_of_autoawq() -> None:
    w = random_int4(64, 32, 32)
    packed = AwqTensors.pack(w)
    for codes, words in ((w.codes, packed.qweight), (w.zeros, packed.qzeros)):
        for row in range(words.shape[0]):
            for column in range(words.shape[1]):
                word = 0
                for nibble, place in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                    word |= int(codes[row, column * 8 + place]) << (nibble * 4)
                assert int(words[row, column]) & 0xFFFFFFFF == word
    back = packed.unpack()
    assert np.array_equal(back.codes, w.codes) and np.array_equal(back.zeros, w.zeros) and back.group == 32


@pytest.mark.parametrize("minus_one", [True, False])
def test_gptq_packing_against_the_loop_of_autogptq(minus_one: bool) -> None:
    w = random_int4(64, 16, 16, zero_from=int(minus_one))
    packed = GptqTensors.pack(w, zeros_minus_one=minus_one)
    for row in range(8):
        for column in range(16):
            word = sum(int(w.codes[row * 8 + i, column]) << (4 * i) for i in range(8))
            assert int(packed.qweight[row, column]) & 0xFFFFFFFF == word
    for row in range(4):
        for column in range(2):
            word = sum((int(w.zeros[row, column * 8 + i]) - minus_one) << (4 * i) for i in range(8))
            assert int(packed.qzeros[row, column]) & 0xFFFFFFFF == word
    assert packed.g_idx.tolist() == [k // 16 for k in range(64)]
    back = packed.unpack()
    assert np.array_equal(back.codes, w.codes) and np.array_equal(back.zeros, w.zeros)
    assert np.array_equal(back.dequantize(), w.dequantize())


def test_symmetric_zeros_are_stored_as_seven() -> None:
    packed = GptqTensors.pack(quantize_int4(weights(n=8), symmetric=True))
    assert (packed.qzeros.view(np.uint32) == 0x77777777).all()


def test_groups_out_of_order() -> None:
    """act-order: each element of K names its group."""
    plain = random_int4(64, 8, 16, zero_from=1)
    g_idx = np.random.default_rng(SEED).permutation(np.repeat(np.arange(4), 16)).astype(np.int32)
    w = Int4Weights(codes=plain.codes, scales=plain.scales, zeros=plain.zeros, group=16, g_idx=g_idx)
    got = GptqTensors.pack(w).unpack().dequantize()
    for k in range(64):
        for n in range(8):
            step = int(w.codes[k, n]) - int(w.zeros[g_idx[k], n])
            assert got[k, n] == np.float16(step * float(w.scales[g_idx[k], n]))
    held = Int4Weights(codes=w.codes, scales=w.scales, zeros=w.zeros - np.uint8(1), group=16, g_idx=g_idx)
    with pytest.raises(OperandError, match="groups of neighbours only"):
        AwqTensors.pack(held)


def test_checkpoints_are_written_and_read(tmp_path) -> None:
    from safetensors import safe_open

    layers = {
        "model.layers.0.self_attn.q_proj": AwqTensors.pack(random_int4(64, 32, 32)),
        "model.layers.0.mlp.down_proj": GptqTensors.pack(random_int4(64, 32, 32, zero_from=1)),
    }
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, layers)
    with safe_open(str(path), framework="numpy") as file:
        assert "model.layers.0.self_attn.q_proj.qweight" in file.keys()  # noqa: SIM118
        assert file.get_tensor("model.layers.0.mlp.down_proj.g_idx").dtype == np.int32
        assert file.metadata() == {"format": "pt"}
    back = read_checkpoint(path)
    assert back.keys() == layers.keys()
    for name, layer in layers.items():
        assert type(back[name]) is type(layer)
        for field in layer.FIELDS:
            assert np.array_equal(getattr(back[name], field), getattr(layer, field))


def test_a_checkpoint_that_torch_wrote(tmp_path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    packed = AwqTensors.pack(random_int4(64, 32, 32))
    tensors = {f"lin.{field}": torch.from_numpy(getattr(packed, field)) for field in packed.FIELDS}
    save_file({**tensors, "norm.weight": torch.ones(4, dtype=torch.bfloat16)}, str(tmp_path / "a.safetensors"))
    (layer,) = read_checkpoint(tmp_path / "a.safetensors").values()
    assert np.array_equal(layer.qweight, packed.qweight)
    save_file({"lin.qweight": tensors["lin.qweight"]}, str(tmp_path / "b.safetensors"))
    with pytest.raises(OperandError, match=r"without lin.qzeros, lin.scales"):
        read_checkpoint(tmp_path / "b.safetensors")


def test_the_config_says_how_a_layer_is_packed() -> None:
    awq = quantization_config(AwqTensors.pack(random_int4(64, 32, 32)))
    gptq = quantization_config(GptqTensors.pack(random_int4(64, 32, 16), zeros_minus_one=False))
    assert (awq["quant_method"], awq["group_size"], awq["version"]) == ("awq", 32, "gemm")
    assert (gptq["quant_method"], gptq["group_size"], gptq["checkpoint_format"], gptq["desc_act"]) == ("gptq", 16, "gptq_v2", False)
    json.dumps([awq, gptq])


def test_what_the_formats_cannot_hold() -> None:
    with pytest.raises(OperandError, match="zero points 1 to 16, got 0"):
        GptqTensors.pack(of_one_group(0, 0))
    sixteen = of_one_group(0, 16)
    assert GptqTensors.pack(sixteen).unpack().dequantize()[0, 0] == -16
    with pytest.raises(OperandError, match="0 to 15, got 16"):
        AwqTensors.pack(sixteen)
    with pytest.raises(OperandError, match="multiple of the codes of a word, 8, got 12"):
        AwqTensors.pack(random_int4(32, 12, 32))


# AWQ ------------------------------------------------------------------------------------------------------------------


def strong_channels() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(SEED)
    w = rng.standard_normal((64, 16)).astype(np.float32)
    x = rng.standard_normal((40, 64)).astype(np.float32)
    x[:, [3, 40]] *= 40
    return w, x


def test_awq_search_against_a_plain_loop() -> None:
    w, x = strong_channels()
    got = awq_quantize(w, x, group=32, grid=10)
    losses = []
    for step in range(10):
        alpha = step / 10
        magnitude = [sum(abs(float(x[t, k])) for t in range(40)) / 40 for k in range(64)]
        powers = [max(m**alpha, 1e-4) for m in magnitude]
        middle = (max(powers) * min(powers)) ** 0.5
        scales = np.array([p / middle for p in powers]).astype(np.float32)
        restored = quantize_int4(w * scales[:, None], group=32).dequantize().astype(np.float64) / scales.astype(np.float64)[:, None]
        losses.append(float(((x.astype(np.float64) @ (restored - w)) ** 2).mean()))
    assert np.allclose(got.losses, losses, rtol=1e-9)
    assert got.alpha == int(np.argmin(losses)) / 10 and got.loss == min(got.losses)
    assert got.loss < 0.5 * got.losses[0]
    again = quantize_int4(w * got.channel_scales[:, None], group=32)
    assert np.array_equal(again.codes, got.weights.codes)


def test_channel_scales_of_alpha_zero_are_ones_and_centred() -> None:
    magnitudes = np.array([1.0, 4.0, 16.0])
    assert channel_scales(magnitudes, 0.0).tolist() == [1, 1, 1]
    assert channel_scales(magnitudes, 0.5).tolist() == [0.5, 1, 2]


def test_awq_wrong_operands() -> None:
    w, x = strong_channels()
    with pytest.raises(OperandError, match=r"\(T, 64\)"):
        awq_quantize(w, x[:, :32], group=32)
    with pytest.raises(OperandError, match="group size 48"):
        awq_quantize(w, x, group=48)
    with pytest.raises(OperandTypeError, match="activations"):
        awq_quantize(w, x.astype(np.float64), group=32)


# GPTQ -----------------------------------------------------------------------------------------------------------------


def plain_gptq(w: np.ndarray, h: np.ndarray, group: int, symmetric: bool, damping: float) -> tuple[np.ndarray, np.ndarray]:
    """Element by element: the inverse of the Hessian of what is left, one Gaussian elimination after each step."""
    k = len(w)
    left = w.astype(np.float64)
    h = h.copy()
    for i in range(k):
        if h[i, i] == 0:
            h[i, i], left[i] = 1, 0
    h += np.eye(k) * damping * np.mean(np.diag(h))
    inverse = np.linalg.inv(h)
    codes, values = np.zeros(w.shape, np.uint8), np.zeros(w.shape)
    for i in range(k):
        if i % group == 0:
            scales, zeros = group_parameters(left[i : i + group].astype(np.float32), symmetric=symmetric)
        codes[i] = round_to_codes(left[i].astype(np.float32), scales, zeros)
        values[i] = (codes[i].astype(float) - zeros) * scales.astype(float)
        error = (left[i] - values[i]) / inverse[i, i]
        for j in range(i + 1, k):
            left[j] -= error * inverse[i, j]
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return codes, values


@pytest.mark.parametrize("block", [8, 24, 128])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gptq_against_a_plain_loop(symmetric: bool, block: int) -> None:
    rng = np.random.default_rng(SEED)
    w = rng.standard_normal((48, 12)).astype(np.float32)
    x = (rng.standard_normal((96, 48)) @ rng.standard_normal((48, 48))).astype(np.float32)
    x[:, 7] = 0
    h = hessian(x)
    got = gptq_quantize(w, h, group=16, symmetric=symmetric, block=block)
    codes, values = plain_gptq(w, h, 16, symmetric, 0.01)
    assert np.array_equal(got.codes, codes)
    assert np.array_equal(got.dequantize(), values.astype(np.float16))


def test_gptq_loses_less_than_rounding() -> None:
    rng = np.random.default_rng(SEED)
    w = rng.standard_normal((64, 16)).astype(np.float32)
    x = (rng.standard_normal((128, 64)) @ rng.standard_normal((64, 64))).astype(np.float32)

    def loss(quantized: Int4Weights) -> float:
        return float(((x.astype(np.float64) @ (quantized.dequantize().astype(np.float64) - w)) ** 2).mean())

    plain = loss(quantize_int4(w, group=32))
    assert loss(gptq_quantize(w, hessian(x), group=32)) < 0.6 * plain
    assert loss(gptq_quantize(w, hessian(x), group=32, act_order=True)) < 0.6 * plain


def test_act_order_is_gptq_of_the_rows_in_that_order() -> None:
    rng = np.random.default_rng(SEED)
    w = rng.standard_normal((48, 8)).astype(np.float32)
    h = hessian((rng.standard_normal((96, 48)) * np.linspace(1, 3, 48)).astype(np.float32))
    order = np.argsort(-np.diag(h), kind="stable")
    got = gptq_quantize(w, h, group=16, act_order=True)
    wanted = gptq_quantize(w[order], h[np.ix_(order, order)], group=16)
    assert np.array_equal(got.dequantize()[order], wanted.dequantize())
    assert got.g_idx is not None and np.bincount(got.g_idx).tolist() == [16, 16, 16]


def test_gptq_with_a_diagonal_hessian_is_plain_rounding() -> None:
    w = weights(64, 8)
    got = gptq_quantize(w, np.diag(np.arange(1.0, 65.0)), group=32)
    assert np.array_equal(got.codes, quantize_int4(w, group=32).codes)


def test_gptq_wrong_operands() -> None:
    w, h = weights(64, 8), np.eye(64)
    with pytest.raises(OperandError, match=r"must have shape \(64, 64\), got \(32, 32\)"):
        gptq_quantize(w, np.eye(32), group=32)
    with pytest.raises(OperandError, match="group size 48"):
        gptq_quantize(w, h, group=48)
    with pytest.raises(OperandTypeError, match="float64, got dtype float32"):
        gptq_quantize(w, h.astype(np.float32), group=32)
    with pytest.raises(OperandError, match="not positive definite"):
        gptq_quantize(w, h - 2 * np.ones((64, 64)), group=32)
