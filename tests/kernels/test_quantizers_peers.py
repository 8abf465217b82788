"""The quantizers of schemes 1 to 5 against other people's: casts of ml_dtypes and torch, and torchao where it is installed.

Where they differ, the difference is stated here and in docs/quantizers.md.
"""

import importlib
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from mmabits.emulator.codecs import as_codes, encode, numpy_dtype
from mmabits.emulator.layouts import unpack_fp4
from mmabits.kernels.quantize import MX_FORMATS, MX_RECIPES, quantize_mx, quantize_nvfp4
from mmabits.kernels.schemes import fp8, fp8_blockwise

SEED = 20260120
NORMAL, WIDE, POWERS, TIES, HUGE = "normal", "wide", "powers of two", "ties", "huge"
ORDINARY = (NORMAL, WIDE, POWERS, TIES, HUGE)
Array = np.ndarray[Any, Any]


def drawn(kind: str, shape: tuple[int, int] = (64, 256)) -> Array:
    rng = np.random.default_rng(SEED)
    values = rng.standard_normal(shape).astype(np.float32)
    if kind == WIDE:
        values = np.ldexp(values, rng.integers(-40, 40, shape)).astype(np.float32)
    elif kind == POWERS:
        values = np.ldexp(np.float32(1), rng.integers(-20, 20, shape)).astype(np.float32)
    elif kind == TIES:
        values = (np.round(values * 16) / 16).astype(np.float32)
    elif kind == HUGE:
        values = (values * np.float32(2.0**125)).astype(np.float32)
    elif kind == "subnormal":
        values = np.ldexp(rng.integers(1, 1 << 22, shape).astype(np.float64), -149).astype(np.float32)
    return values


def floats_at_the_edges() -> Array:
    """Every float32 whose low 12 bits are 0, and its two neighbours: all ties and boundaries of the narrow formats are among them."""
    whole = np.arange(0, 1 << 32, 1 << 12, dtype=np.uint64)
    return np.concatenate([whole, (whole + 1) & 0xFFFFFFFF, (whole - 1) & 0xFFFFFFFF]).astype(np.uint32).view(np.float32)


# Casts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", MX_FORMATS)
def test_casts_of_ml_dtypes(format: str) -> None:
    """FP8 there does not saturate; e3m2, e2m3 and e2m1 have no NaN, and make zeros of it."""
    values = floats_at_the_edges()
    with np.errstate(all="ignore"):
        theirs = values.astype(numpy_dtype(format)).view(np.uint8)
    ours = encode(values, format, satfinite=True)
    overflow = {"e4m3": np.abs(values) > 464, "e5m2": np.abs(values) >= 61440}.get(format, np.zeros(values.shape, bool))
    is_nan = np.isnan(values)
    assert np.array_equal(ours[~overflow & ~is_nan], theirs[~overflow & ~is_nan])
    if overflow.any():
        beyond = overflow & (values > 0)
        assert (set(ours[beyond]), set(theirs[beyond])) == {"e4m3": ({0x7E}, {0x7F}), "e5m2": ({0x7B}, {0x7C})}[format]
    # PTX: FP8 gives the NaN 0x7F, the others their largest number.
    assert set(ours[is_nan]) == {{"e4m3": 0x7F, "e5m2": 0x7F, "e3m2": 0x1F, "e2m3": 0x1F, "e2m1": 0x07}[format]}


@pytest.mark.parametrize(("format", "name"), [("e4m3", "float8_e4m3fn"), ("e5m2", "float8_e5m2")])
def test_casts_of_torch(format: str, name: str) -> None:
    torch = pytest.importorskip("torch")
    values = floats_at_the_edges()
    limit = np.float32({"e4m3": 448, "e5m2": 57344}[format])
    ordinary = np.abs(values) <= limit
    theirs = torch.from_numpy(values[ordinary]).to(getattr(torch, name)).view(torch.uint8).numpy()
    assert ordinary.sum() > 1_600_000
    assert np.array_equal(encode(values[ordinary], format, satfinite=True), theirs)
    special = np.array([-np.nan, 1e6, -np.inf], np.float32)
    assert encode(special, format, satfinite=True).tolist() == {"e4m3": [0x7F, 0x7E, 0xFE], "e5m2": [0x7F, 0x7B, 0xFB]}[format]
    theirs = torch.from_numpy(special).to(getattr(torch, name)).view(torch.uint8).numpy()
    # e4m3 saturates in newer versions only.
    assert theirs[0] == 0xFF and theirs[1] in {"e4m3": (0x7E, 0x7F), "e5m2": (0x7C,)}[format]


# torchao --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torchao() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("torchao", reason="torchao is not installed")
        for name in ("mx_tensor", "nvfp4_tensor"):
            importlib.import_module(f"torchao.prototype.mx_formats.{name}")
    return module


def their_mx(torchao: Any, values: Array, format: str, recipe: str) -> tuple[Array, Array]:
    """Codes of elements and scales as torchao's `to_mx` has them."""
    import torch

    mx = torchao.prototype.mx_formats.mx_tensor
    kinds = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "e3m2": mx.DTYPE_FP6_E3M2, "e2m3": mx.DTYPE_FP6_E2M3}
    kind = kinds.get(format, torch.float4_e2m1fn_x2)
    scales, elements = mx.to_mx(torch.from_numpy(values.copy()), kind, 32, mx.ScaleCalculationMode(recipe))
    codes = elements.view(torch.uint8).numpy()
    return (as_codes(unpack_fp4(codes), "e2m1") if format == "e2m1" else codes), scales.view(torch.uint8).numpy()


@pytest.mark.parametrize("recipe", MX_RECIPES)
@pytest.mark.parametrize("format", MX_FORMATS)
def test_mx_is_torchaos(torchao: Any, format: str, recipe: str) -> None:
    for kind in ORDINARY:
        values = drawn(kind)
        elements, scales = their_mx(torchao, values, format, recipe)
        ours = quantize_mx(values, format=format, recipe=recipe)
        assert np.array_equal(ours.scales.view(np.uint8), scales), kind
        assert np.array_equal(as_codes(ours.elements, format), elements), kind
    zeros = np.array([[0.0, -0.0] * 16], np.float32)
    elements, scales = their_mx(torchao, zeros, format, recipe)
    ours = quantize_mx(zeros, format=format, recipe=recipe)
    assert np.array_equal(as_codes(ours.elements, format), elements) and scales.tolist() == [[0]] == ours.scales.view(np.uint8).tolist()


@pytest.mark.parametrize("recipe", MX_RECIPES)
def test_scale_code_0_is_another_number_in_torchao(torchao: Any, recipe: str) -> None:
    """Scale code 0 stands for 2^-127. torchao divides by 2^-126, or, in rceil, by 1."""
    values = drawn("subnormal", (8, 32))
    elements, scales = their_mx(torchao, values, "e4m3", recipe)
    ours = quantize_mx(values, recipe=recipe)
    assert not scales.any() and not ours.scales.view(np.uint8).any()
    divisor = -126 if recipe != "rceil" else 0
    assert np.array_equal(encode(np.ldexp(values.astype(np.float64), -divisor), "e4m3", satfinite=True), elements)
    assert np.array_equal(encode(np.ldexp(values.astype(np.float64), 127), "e4m3", satfinite=True), as_codes(ours.elements, "e4m3"))


@pytest.mark.parametrize("recipe", MX_RECIPES)
def test_blocks_that_are_not_finite(torchao: Any, recipe: str) -> None:
    """NaN gives scale code 0xFF in both. Of an infinity torchao makes a finite scale, 2^128 / 2^emax or 2^127, and saturates."""
    values = drawn(NORMAL, (4, 32))
    values[0, 5], values[1, 7], values[2, 9] = np.nan, np.inf, -np.inf
    _, scales = their_mx(torchao, values, "e4m3", recipe)
    ours = quantize_mx(values, recipe=recipe)
    codes = ours.scales.view(np.uint8).reshape(-1)
    assert codes[:3].tolist() == [0xFF] * 3 and not as_codes(ours.elements, "e4m3")[:3].any()
    infinity = 254 if recipe == "rceil" else 255 - 8
    assert scales.reshape(-1).tolist() == [0xFF, infinity, infinity, codes[3]]


def test_rceil_goes_up_where_torchao_misses_it(torchao: Any) -> None:
    """torchao takes the ceiling of a float32 log2, which is -7 for the float after 2^-7 too: its scale is half of what it should be."""
    values = np.zeros((1, 32), np.float32)
    values[0, 0] = np.nextafter(np.float32(448), np.float32(np.inf))
    assert Fraction(float(values[0, 0])) / 57344 > Fraction(1, 128)
    _, scales = their_mx(torchao, values, "e5m2", "rceil")
    ours = quantize_mx(values, format="e5m2", recipe="rceil")
    assert (scales.item(), ours.scales.view(np.uint8).item()) == (127 - 7, 127 - 6)


@pytest.mark.parametrize("kind", [NORMAL, POWERS, TIES, HUGE])
def test_nvfp4_is_torchaos(torchao: Any, kind: str) -> None:
    import torch

    values = drawn(kind)
    nv = torchao.prototype.mx_formats.nvfp4_tensor
    scale = nv.per_tensor_amax_to_scale(torch.from_numpy(np.abs(values)).amax())
    scales, elements = nv.nvfp4_quantize(torch.from_numpy(values.copy()), 16, scale)
    ours = quantize_nvfp4(values)
    assert np.float32(scale) == ours.tensor_scale
    floor = (ours.scales.astype(np.float32) > 2.0**-6).repeat(16, axis=1)  # torchao has no smaller scale
    assert floor.mean() > 0.1
    their_scales = scales.view(torch.uint8).numpy().reshape(ours.scales.shape)
    their_codes, codes = as_codes(unpack_fp4(elements.numpy()), "e2m1").reshape(values.shape), as_codes(ours.elements, "e2m1")
    assert np.array_equal(their_scales[floor[:, ::16]], as_codes(ours.scales, "ue4m3")[floor[:, ::16]])
    # x * ((1 / tensor scale) / block scale) there, x / (block scale * tensor scale) here: only a tie can fall otherwise.
    differ = (their_codes != codes) & floor
    assert differ.mean() < 1e-3
    ratio = np.abs(values.astype(np.float64)) / (ours.scales.astype(np.float64).repeat(16, axis=1) * np.float64(ours.tensor_scale))
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert (np.abs(ratio[differ][:, None] / ties - 1).min(axis=1, initial=0 if not differ.any() else np.inf) < 1e-6).all()


def test_small_nvfp4_scales_are_larger_in_torchao(torchao: Any) -> None:
    """No block scale below 2^-6 there: blocks of small numbers lose bits, and a tensor of zeros divides 0 by 0."""
    import torch

    nv = torchao.prototype.mx_formats.nvfp4_tensor
    values = np.ones((1, 32), np.float32)
    values[0, 16:] = 2.0**-15
    ours = quantize_nvfp4(values)
    scales, _ = nv.nvfp4_quantize(torch.from_numpy(values), 16, torch.tensor(ours.tensor_scale))
    assert scales.float().reshape(-1).tolist() == [448, 2.0**-6]
    assert ours.scales.astype(np.float32).reshape(-1).tolist()[1] == 7 * 2.0**-9
    zeros = torch.zeros(1, 16)
    scales, _ = nv.nvfp4_quantize(zeros, 16, nv.per_tensor_amax_to_scale(zeros.amax()))
    assert scales.float().isnan().all() and not quantize_nvfp4(np.zeros((1, 16), np.float32)).scales.view(np.uint8).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_bad_number_spoils_a_block_here_and_a_tensor_in_torchao(torchao: Any, bad: float) -> None:
    import torch

    nv = torchao.prototype.mx_formats.nvfp4_tensor
    values = drawn(NORMAL, (2, 64))
    clean = quantize_nvfp4(values)
    values[0, 3] = bad if abs(values[0, 3]) < np.abs(values).max() else 0
    ours = quantize_nvfp4(values)
    assert ours.scales.view(np.uint8)[0, 0] == 0x7F and not as_codes(ours.elements, "e2m1")[0, :16].any()
    assert np.array_equal(ours.dequantize()[1], clean.dequantize()[1])
    given = torch.from_numpy(values)
    scales, elements = nv.nvfp4_quantize(given, 16, nv.per_tensor_amax_to_scale(given.abs().amax()))
    codes = as_codes(unpack_fp4(elements.numpy()), "e2m1").reshape(values.shape)
    if np.isnan(bad):
        assert scales.float().isnan().all()
    else:
        assert scales.float().isnan().flatten().tolist() == [True] + [False] * 7 and not (codes.reshape(8, 16)[1:] & 7).any()


def rowwise(values: Array, utils: Any) -> tuple[Array, Array, fp8.Fp8Matrix]:
    import torch

    given = torch.from_numpy(values)
    multiplier = utils.amax_to_scale(given.abs().amax(dim=1, keepdim=True), torch.float8_e4m3fn)
    elements = utils.to_fp8_saturated(given * multiplier, torch.float8_e4m3fn)
    return elements.view(torch.uint8).numpy(), (1 / multiplier).numpy(), fp8.quantize(values, per="row", recipe="multiply")


def tensorwise(values: Array, utils: Any) -> tuple[Array, Array, fp8.Fp8Matrix]:
    import torch

    given = torch.from_numpy(values)
    multiplier = utils.amax_to_scale(given.abs().amax(), torch.float8_e4m3fn)
    elements = utils.to_fp8_saturated(given * multiplier, torch.float8_e4m3fn)
    return elements.view(torch.uint8).numpy(), (1 / multiplier).reshape(1, 1).numpy(), fp8.quantize(values, recipe="multiply")


@pytest.mark.parametrize("way", [rowwise, tensorwise])
@pytest.mark.parametrize("kind", [NORMAL, POWERS, TIES])
def test_fp8_is_torchaos(torchao: Any, way: Callable[..., Any], kind: str) -> None:
    """torchao divides in float64 and rounds to float32, which gives the float32 quotient; amax is at least 1e-12 there."""
    from torchao.float8 import float8_utils

    elements, scales, ours = way(drawn(kind), float8_utils)
    assert np.array_equal(elements, ours.elements.view(np.uint8)) and np.array_equal(scales, ours.scales)


@pytest.mark.parametrize("kind", [NORMAL, POWERS, TIES])
def test_tiles_are_torchaos(torchao: Any, kind: str) -> None:
    import torch

    kernels = pytest.importorskip("torchao.prototype.blockwise_fp8_training.kernels")
    values = drawn(kind)
    elements, scales = kernels.torch_blockwise_scale_act_quant_lhs(torch.from_numpy(values))
    ours = fp8_blockwise.quantize(values, recipe="multiply", least_amax=1e-12)
    assert np.array_equal(elements.view(torch.uint8).numpy(), ours.elements.view(np.uint8)) and np.array_equal(scales.numpy(), ours.scales)
