"""Gradients through quantization in torch and JAX: the numbers of the NumPy rows, and straight-through estimators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from operands import generator

from mmabits.isa import EmulationError, OperandError, OperandTypeError, UnknownArchitecture, UnsupportedInstruction
from mmabits.kernels.quantize import quantize_mx, quantize_nvfp4
from mmabits.kernels.schemes import asymmetric, fp8, fp8_blockwise, w4a4, w4a8, w4a8_fp8, w4a16, w8a8, w8a16
from mmabits.kernels.schemes.dots import Dots
from mmabits.kernels.schemes.fake import FAKE_SCHEMES, fake_quantized, reach
from mmabits.kernels.schemes.training import TRAINING_RECIPES, LayerState, linear, linear_gradients

Array = np.ndarray[Any, Any]
F32 = np.float32
FLOATING = [name for name in FAKE_SCHEMES if not name.startswith(("int", "w4", "w8"))]


def normal(*shape: int, seed: str = "") -> Array:
    rng = generator("gradients", seed, shape)
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-6, 3, shape[-1])).astype(np.float32)


def same(found: Any, wanted: Array) -> None:
    found = np.asarray(found)
    assert found.shape == wanted.shape and np.array_equal(
        found.astype(np.float32).view(np.uint32), wanted.astype(np.float32).view(np.uint32)
    )


# Fake quantization -------------------------------------------------------------------------------------------------------


def by_the_schemes(name: str, values: Array) -> Array:
    """Dequantized by the schemes' own quantizers, weights turned to (K, N) and back."""
    kinds = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}
    forms = {"mxfp8": "e4m3", "mxfp8-e5m2": "e5m2", "mxfp6-e3m2": "e3m2", "mxfp6-e2m3": "e2m3", "mxfp4": "e2m1"}
    turned = np.ascontiguousarray(values.T)
    if name in kinds:
        return values.astype(kinds[name]).astype(np.float32)
    if name in forms:
        return quantize_mx(values, format=forms[name]).dequantize()
    if name.startswith("fp8-tiles"):
        return fp8_blockwise.quantize(values, tile=(128, 128) if "square" in name else (1, 128)).dequantize()
    if name.startswith("fp8"):
        return fp8.quantize(values, format="e5m2" if "e5m2" in name else "e4m3", per="row" if "row" in name else "tensor").dequantize()
    weights = {
        "w4a16": lambda: w4a16.quantize_int4(turned).dequantize(),
        "w4a16-symmetric": lambda: w4a16.quantize_int4(turned, symmetric=True).dequantize(),
        "w8a16-int8": lambda: w8a16.quantize_w8(turned).dequantize(),
        "w8a16-e4m3": lambda: w8a16.quantize_w8(turned, kind="e4m3").dequantize(),
        "w4a8": lambda: w4a8.quantize_w4a8(turned).dequantize(), "w4a8-fp8": lambda: w4a8_fp8.quantize_w4a8_fp8(turned).dequantize(),
    }  # fmt: skip
    if name in weights:
        return np.ascontiguousarray(weights[name]().T).astype(np.float32)
    return {
        "nvfp4": lambda: quantize_nvfp4(values).dequantize(), "nvfp4-square": lambda: quantize_nvfp4(values, square=True).dequantize(),
        "int8": lambda: w8a8.quantize_int8(values, axis=0).dequantize(),
        "int8-asymmetric": lambda: asymmetric.quantize_affine(values, axis=0).dequantize(),
        "int4": lambda: w4a4.quantize_int4_symmetric(values, axis=0).dequantize(),
    }[name]()  # fmt: skip


@pytest.mark.parametrize("name", FAKE_SCHEMES)
def test_values_and_gradients_of_every_scheme(name: str) -> None:
    torch = pytest.importorskip("torch")
    from mmabits.kernels.training.in_torch import fake_quantize

    values, grad = normal(32, 256, seed=name), normal(32, 256, seed="grad")
    wanted = by_the_schemes(name, values)
    for clipped in (False, True):
        x = torch.tensor(values, requires_grad=True)
        y = fake_quantize(x, name, clipped=clipped)
        same(y.detach(), wanted)
        y.backward(torch.tensor(grad))
        within = fake_quantized(values, name)[1]
        same(x.grad, np.where(within, grad, F32(0)) if clipped else grad)
        # Scales are taken from the values: next to nothing saturates, but where MX rounds a block's scale down.
        assert within.mean() > (0.95 if name.startswith("mx") else 0.99 if name.startswith("w4") else 0.9999)


def test_gradients_are_clipped_where_values_saturate() -> None:
    torch = pytest.importorskip("torch")
    from mmabits.kernels.training.in_torch import fake_quantize

    edge = np.array([[0.0, 448.0, 463.9, 464.0, 464.1, -464.1, -464.0, 1e30, np.inf, -np.inf, np.nan, 1e-45]], np.float32)
    x = torch.tensor(edge, requires_grad=True)
    y = fake_quantize(x, "fp8", clipped=True, scale=F32(1))
    same(y.detach(), np.array([[0, 448, 448, 448, 448, -448, -448, 448, 448, -448, np.nan, 0]], np.float32))
    y.backward(torch.ones_like(y))
    assert x.grad.tolist() == [[1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 1]]
    x.grad = None
    fake_quantize(x, "fp8", scale=F32(1)).backward(torch.ones_like(x))
    assert x.grad.tolist() == [[1] * 12]
    _, within = fake_quantized(np.array([[126.9, 127.5, 127.6, -127.6]], np.float32), "int8", amax=np.array([127], np.float32))
    assert within.tolist() == [[True, True, False, False]]
    ends = {"low": np.array([0], np.float32), "high": np.array([255], np.float32)}
    _, within = fake_quantized(np.array([[-0.6, -0.5, 0, 255.5, 255.6]], np.float32), "int8-asymmetric", **ends)
    assert within.tolist() == [[False, True, True, True, False]]
    assert [reach(name) for name in ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "f16")] == [464, 61440, 30, 7.75, 7, 65520]


def test_an_axis_is_brought_to_the_end() -> None:
    values = normal(3, 64, 5)
    for name in ("mxfp8", "int8"):
        found, within = fake_quantized(values, name, axis=1)
        wanted, there = fake_quantized(np.ascontiguousarray(values.transpose(0, 2, 1)).reshape(15, 64), name)
        same(found, np.ascontiguousarray(wanted.reshape(3, 5, 64).transpose(0, 2, 1)))
        assert np.array_equal(within, there.reshape(3, 5, 64).transpose(0, 2, 1))


@pytest.mark.parametrize("name", FAKE_SCHEMES)
def test_fake_quantization_of_hard_inputs(name: str) -> None:
    zeros = np.zeros((16, 256), np.float32)
    values, within = fake_quantized(zeros, name)
    assert not values.any() and within.all()
    tiny = np.full((16, 256), 1e-41, np.float32)
    assert np.isfinite(fake_quantized(tiny, name)[0]).all()
    outlier = normal(16, 256, seed="outlier")
    outlier[3, 40] = 500
    values, within = fake_quantized(outlier, name)
    assert np.isfinite(values).all() and abs(values[3, 40] / 500 - 1) < 0.34
    empty = np.zeros((0, 256), np.float32)
    assert fake_quantized(empty, name)[0].shape == (0, 256)
    for wrong in (np.nan, np.inf):
        outlier[3, 40] = wrong
        if name in FLOATING:
            values, within = fake_quantized(outlier, name)
            assert not within[3, 40] and within[np.arange(16) >= 4].mean() > 0.93
        else:
            with pytest.raises(OperandError, match="must be finite"):
                fake_quantized(outlier, name)


def test_refusals_of_fake_quantization() -> None:
    values = normal(16, 256)
    with pytest.raises(OperandError, match="unknown scheme 'mxfp9'; did you mean mxfp"):
        fake_quantized(values, "mxfp9")
    with pytest.raises(OperandError, match="int8 has no option 'scale'; it has amax"):
        fake_quantized(values, "int8", scale=F32(1))
    with pytest.raises(OperandError, match="bf16 has no option 'scale'; it has none"):
        fake_quantized(values, "bf16", scale=F32(1))
    with pytest.raises(OperandError, match="axis 2 of an array of 2 dimensions"):
        fake_quantized(values, "mxfp8", axis=2)
    for axis in (None, 1.0, True):
        with pytest.raises(OperandError, match=f"axis must be an integer, got {axis}"):
            fake_quantized(values, "mxfp8", axis=axis)  # type: ignore[arg-type, unused-ignore]
    with pytest.raises(OperandError, match="multiple of the block size 32, got 16"):
        fake_quantized(values, "mxfp8", axis=0)
    with pytest.raises(OperandTypeError, match="values must be a NumPy array of float32"):
        fake_quantized(values.astype(np.float64), "mxfp8")


# Linear layers in torch --------------------------------------------------------------------------------------------------


def in_numpy(x: Array, w: Array, grad: Array, name: str, state: LayerState, arch: Any = "sm_100a") -> tuple[Array, Array, Array]:
    y, saved = linear(x, w, recipe=name, arch=arch, state=state)
    return (y, *linear_gradients(grad, saved))


@pytest.mark.parametrize("name", TRAINING_RECIPES)
def test_torch_has_the_bits_of_numpy(name: str) -> None:
    torch = pytest.importorskip("torch")
    from mmabits.kernels.training.in_torch import quantized_linear

    x, weight, grad = normal(2, 64, 128), normal(256, 128), normal(2, 64, 256)
    left, right = torch.tensor(x, requires_grad=True), torch.tensor(weight, requires_grad=True)
    bias = torch.zeros(256, requires_grad=True)
    ours, theirs = LayerState(seed=3), LayerState(seed=3)
    for step in range(2):  # delayed scaling and random bits go on
        left.grad = right.grad = bias.grad = None
        y = quantized_linear(left, right, bias, recipe=name, arch="sm_100a", state=theirs)
        y.backward(torch.tensor(grad))
        wanted = in_numpy(x.reshape(128, 128), np.ascontiguousarray(weight.T), grad.reshape(128, 256), name, ours)
        same(y.detach(), wanted[0].reshape(2, 64, 256))
        same(left.grad, wanted[1].reshape(2, 64, 128))
        same(right.grad, np.ascontiguousarray(wanted[2].T))
        assert theirs.step == step + 1 and theirs.scalings == ours.scalings
        assert bias.grad is not None and bias.grad.shape == (256,)


def test_a_module_keeps_its_state_and_rests_in_eval_mode() -> None:
    torch = pytest.importorskip("torch")
    from mmabits.kernels.training.in_torch import QuantizedLinear

    layer = QuantizedLinear(32, 64, recipe="fp8-delayed", arch="sm_100a", seed=9)
    assert {name: tuple(each.shape) for name, each in layer.named_parameters()} == {"weight": (64, 32), "bias": (64,)}
    x = torch.tensor(normal(16, 32))
    layer(x).sum().backward()
    assert layer.state.step == 1 and layer.state.scalings.keys() == {"x", "w", "grad"}
    before = layer.state.copy()
    layer.eval()
    first, second = layer(x), layer(x)
    assert torch.equal(first, second) and layer.state.scalings == before.scalings and layer.state.step == 1


def test_types_of_tensors_are_kept() -> None:
    torch = pytest.importorskip("torch")
    from mmabits.kernels.training.in_torch import bf16_matmul, fake_quantize, quantized_linear

    for dtype in (torch.bfloat16, torch.float16):
        x = torch.tensor(normal(32, 32)).to(dtype).requires_grad_()
        weight = torch.tensor(normal(32, 32)).to(dtype).requires_grad_()
        y = quantized_linear(x, weight, recipe="mxfp8", arch="sm_100a")
        y.sum().backward()
        assert y.dtype == x.grad.dtype == weight.grad.dtype == dtype
        wanted = linear(
            x.detach().float().numpy(), np.ascontiguousarray(weight.detach().float().numpy().T), recipe="mxfp8", arch="sm_100a"
        )[0]
        assert torch.equal(y.detach(), torch.tensor(wanted).to(dtype))
        assert fake_quantize(x, "nvfp4").dtype == dtype and bf16_matmul(x, weight, arch="sm_90a").dtype == dtype


def test_a_bias_changes_no_type() -> None:
    torch = pytest.importorskip("torch")
    from mmabits.kernels.training.in_torch import QuantizedLinear, quantized_linear

    x = torch.tensor(normal(4, 32)).bfloat16()
    layer = QuantizedLinear(32, 16, recipe="fp8-current", arch="sm_90a")
    y = layer(x)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and layer.bias.grad.tolist() == [4] * 16
    wide = quantized_linear(x, layer.weight, recipe="fp8-current", arch="sm_90a").float() + layer.bias
    assert torch.equal(y, wide.bfloat16())


def test_one_token_goes_where_there_are_no_gradients() -> None:
    torch = pytest.importorskip("torch")
    from mmabits.kernels.training.in_torch import QuantizedLinear

    layer, x = QuantizedLinear(32, 64, recipe="nvfp4", arch="sm_100a").eval(), torch.tensor(normal(1, 32))
    with torch.no_grad():
        y = layer(x)
    assert y.shape == (1, 64)
    with pytest.raises(OperandError, match=r"M must be a multiple of 16 for nvfp4, .*; got 1 \(without gradients M may be any\)"):
        layer(x)
    with torch.no_grad():
        many = layer(x.expand(16, 32))
    assert torch.equal(many[:1], y)  # the same largest magnitude, so the same scale of the tensor


def test_seeds_of_layers_are_torchs() -> None:
    torch = pytest.importorskip("torch")
    from mmabits.kernels.training.in_torch import QuantizedLinear

    found = []
    for _ in range(2):
        torch.manual_seed(7)
        found.append([QuantizedLinear(16, 16, recipe="nvfp4", arch="sm_100a") for _ in range(2)])
    seeds = [[layer.state.seed for layer in layers] for layers in found]
    assert seeds[0] == seeds[1] and seeds[0][0] != seeds[0][1]
    torch.manual_seed(7)
    other = [QuantizedLinear(16, 16, recipe="bf16", arch="sm_100a") for _ in range(2)]
    assert torch.equal(other[1].weight, found[0][1].weight)  # whatever the recipe
    assert repr(QuantizedLinear(16, 32, recipe="nvfp4", arch="h100", seed=3)) == (
        "QuantizedLinear(16, 32, bias=True, recipe='nvfp4', arch='h100', seed=3)"
    )


def test_a_layer_refuses_what_is_wrong_when_it_is_made() -> None:
    pytest.importorskip("torch")
    from mmabits.kernels.training.in_torch import QuantizedLinear

    for more, error, text in (
        ({"arch": "sm_9"}, UnknownArchitecture, "unknown architecture 'sm_9'"),
        ({"seed": "a"}, OperandError, "seed must be an integer from 0"),
        ({"in_features": 24}, OperandError, "K must be a multiple of 16 for nvfp4"),
        ({"out_features": 24}, OperandError, "N must be a multiple of 16 for nvfp4"),
    ):
        with pytest.raises(error, match=text):
            QuantizedLinear(**{"in_features": 32, "out_features": 16, "recipe": "nvfp4", "arch": "sm_100a", **more})


def test_batches_of_bf16_products() -> None:
    torch = pytest.importorskip("torch")
    from mmabits.kernels.training.in_torch import bf16_matmul

    a, b, grad = normal(2, 3, 16, 32), normal(2, 3, 32, 24), normal(2, 3, 16, 24)
    left, right = torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True)
    y = bf16_matmul(left, right, arch="sm_90a")
    y.backward(torch.tensor(grad))
    for at in np.ndindex(2, 3):
        pairs = ((a[at], b[at], y.detach()[at]), (grad[at], b[at].T, left.grad[at]), (a[at].T, grad[at], right.grad[at]))
        for one, other, found in pairs:
            exact = Dots(arch="sm_90a")(*(np.ascontiguousarray(each).astype(ml_dtypes.bfloat16) for each in (one, other)))
            same(found, exact.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_what_torch_refuses() -> None:
    torch = pytest.importorskip("torch")
    from mmabits.kernels.training.in_torch import bf16_matmul, fake_quantize, quantized_linear

    x = torch.ones(32, 32)
    with pytest.raises(OperandTypeError, match=r"x must be a torch tensor of torch\.float32, .*, got torch\.float64"):
        quantized_linear(x.double(), x, recipe="bf16", arch="sm_100a")
    with pytest.raises(OperandError, match=r"x of shape \(32, 32\) and weight of shape \(32, 16\) do not have the same K"):
        quantized_linear(x, x[:, :16], recipe="bf16", arch="sm_100a")
    with pytest.raises(OperandError, match="weight must have 2 dimensions"):
        quantized_linear(x, torch.ones(32), recipe="bf16", arch="sm_100a")
    with pytest.raises(OperandError, match="x must be on the CPU, where products are emulated, got meta"):
        fake_quantize(torch.ones(2, 2, device="meta"), "int8")
    with pytest.raises(OperandTypeError, match=r"x must be a torch tensor of .*, got list"):
        fake_quantize([1.0], "int8")
    with pytest.raises(OperandError, match=r"x must be a dense tensor, got torch\.sparse_coo"):
        fake_quantize(x.to_sparse(), "int8")
    for wrong, text in (
        (torch.ones(2, 1, 32), "bias must have 1 dimensions"), (torch.ones(1), r"bias must have shape \(32,\), got \(1,\)"),
    ):  # fmt: skip
        with pytest.raises(OperandError, match=text):
            quantized_linear(x, x, wrong, recipe="bf16", arch="sm_100a")
    with pytest.raises(OperandTypeError, match="state must be a LayerState, got dict"):
        quantized_linear(x, x, recipe="bf16", arch="sm_100a", state={})
    with pytest.raises(OperandError, match="a and b must be"):
        bf16_matmul(x, torch.ones(16, 32), arch="sm_90a")


# JAX ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, row in TRAINING_RECIPES.items() if not row.history])
def test_jax_has_the_bits_of_numpy(name: str) -> None:
    jax = pytest.importorskip("jax")
    from mmabits.kernels.training.in_jax import quantized_linear

    x, w, grad = normal(2, 64, 128), normal(128, 256), normal(2, 64, 256)

    @jax.jit
    def both(x: Any, w: Any, grad: Any, step: Any) -> Any:
        y, back = jax.vjp(lambda x, w: quantized_linear(x, w, recipe=name, arch="sm_100a", seed=3, step=step), x, w)
        return (y, *back(grad))

    found = both(x, w, grad, 5)
    wanted = in_numpy(x.reshape(128, 128), w, grad.reshape(128, 256), name, LayerState(seed=3, step=5))
    same(found[0], wanted[0].reshape(2, 64, 256))
    same(found[1], wanted[1].reshape(2, 64, 128))
    same(found[2], wanted[2])
    other = both(x, w, grad, 6)
    assert np.array_equal(found[0], other[0])
    assert np.array_equal(found[1], other[1]) is not TRAINING_RECIPES[name].is_stochastic


def test_fake_quantization_in_jax() -> None:
    jax = pytest.importorskip("jax")
    import jax.numpy as jnp

    from mmabits.kernels.training.in_jax import fake_quantize

    values, grad = normal(16, 256), normal(16, 256, seed="grad")
    for name in ("mxfp4", "int8", "w4a16"):
        wanted, within = fake_quantized(values, name)
        for clipped in (False, True):
            y, back = jax.vjp(jax.jit(lambda x, name=name, clipped=clipped: fake_quantize(x, name, clipped=clipped)), values)
            same(y, wanted)
            same(back(grad)[0], np.where(within, grad, F32(0)) if clipped else grad)
    assert fake_quantize(jnp.ones((2, 32), jnp.bfloat16), "mxfp8").dtype == jnp.bfloat16
    rows = jax.vmap(lambda x: fake_quantize(x, "mxfp8"))(values)
    same(rows, fake_quantized(values, "mxfp8")[0])


def test_what_jax_refuses() -> None:
    pytest.importorskip("jax")
    from mmabits.kernels.training.in_jax import fake_quantize, quantized_linear

    x = normal(32, 32)
    with pytest.raises(OperandError, match="fp8-delayed keeps a history, which a function of JAX cannot"):
        quantized_linear(x, x, recipe="fp8-delayed", arch="sm_100a")
    with pytest.raises(OperandError, match=r"x and w must be \(\.\.\., K\) and \(K, N\), got \(32, 32\) and \(16, 32\)"):
        quantized_linear(x, x[:16], recipe="bf16", arch="sm_100a")
    with pytest.raises(OperandTypeError, match="x must be float32, bfloat16, float16, got int32"):
        fake_quantize(np.ones((2, 32), np.int32), "mxfp8")
    for step in (-1, 1.7, True, 1 << 32, np.array([1, 2])):
        with pytest.raises(OperandError, match=r"step must be an integer from 0 to 2\^32 - 1, got"):
            quantized_linear(x, x, recipe="bf16", arch="sm_100a", step=step)
    with pytest.raises(OperandError, match="seed must be an integer from 0"):
        quantized_linear(x, x, recipe="bf16", arch="sm_100a", seed=0.5)


@pytest.mark.parametrize("around", ["nothing", "jit", "grad", "both"])
def test_jax_refuses_before_anything_runs(around: str) -> None:
    jax = pytest.importorskip("jax")
    from mmabits.kernels.training.in_jax import fake_quantize, quantized_linear

    def called(function: Any) -> Any:
        told = function if around in ("nothing", "jit") else jax.grad(lambda x: function(x).sum())
        return jax.jit(told) if around in ("jit", "both") else told

    x = normal(32, 32)
    for more, error, text in (
        ({"axis": 7}, OperandError, "axis 7 of an array of 2 dimensions"),
        ({"axis": None}, OperandError, "axis must be an integer, got None"),
        ({"foo": 1}, OperandError, "mxfp4 has no option 'foo'; it has recipe"),
    ):
        with pytest.raises(error, match=text):
            called(lambda x, more=more: fake_quantize(x, "mxfp4", **more))(x)
    with pytest.raises(OperandError, match="multiple of the block size 32, got 30"):
        called(lambda x: fake_quantize(x, "mxfp4"))(x[:, :30])
    for recipe, arch, other, error, text in (
        ("bf16", "foo", x, UnknownArchitecture, "unknown architecture 'foo'"),
        ("fp8-current", "sm_80", x, UnsupportedInstruction, "sm_80 has no tensor-core instruction for e4m3 x e4m3"),
        ("nvfp4", "sm_100a", x[:, :24], OperandError, "N must be a multiple of 16 for nvfp4"),
    ):
        with pytest.raises(error, match=text):
            called(lambda x, recipe=recipe, arch=arch, w=other: quantized_linear(x, w, recipe=recipe, arch=arch))(x)
    token = called(lambda x: quantized_linear(x, normal(32, 32), recipe="nvfp4", arch="sm_100a"))
    if around in ("nothing", "jit"):
        assert token(x[:1]).shape == (1, 32)
    else:
        with pytest.raises(OperandError, match="M must be a multiple of 16 for nvfp4"):
            token(x[:1])


def test_a_traced_step_is_one_integer() -> None:
    jax = pytest.importorskip("jax")
    from mmabits.kernels.training.in_jax import quantized_linear

    x = normal(32, 32)
    traced = jax.jit(lambda step: quantized_linear(x, x, recipe="bf16", arch="sm_100a", step=step))
    same(traced(3), traced(4))
    for wrong in (1.7, True, np.array([1, 2])):
        with pytest.raises(OperandError, match="step must be one integer, got"):
            traced(wrong)
    with pytest.raises(Exception, match=r"step must be an integer from 0 to 2\^64 - 1, got -1"):
        np.asarray(traced(-1))


@pytest.mark.parametrize("recipe", ["fp8-delayed", "nvfp4"])
def test_training_goes_on_from_a_state_dict(recipe: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from mmabits.kernels.training.in_torch import QuantizedLinear

    def step(layer: Any, seed: int) -> Any:
        x = torch.from_numpy(np.random.default_rng(seed).standard_normal((32, 32), np.float32))
        layer.weight.grad = None
        layer(x).square().sum().backward()
        assert layer.weight.grad is not None
        return layer.weight.grad

    layer, other = (QuantizedLinear(32, 64, recipe=recipe, arch="sm_100a", seed=seed) for seed in (9, 1))
    for seed in range(2):
        step(layer, seed)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    assert other.state.as_numbers() == layer.state.as_numbers() and other.state.step == 2
    assert torch.equal(step(layer, 2), step(other, 2))
    with pytest.raises(OperandTypeError, match="no state of a layer"):
        other.set_extra_state({"seed": 1})


def test_jax_with_one_thread_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback would wait for its operands for ever."""
    jax = pytest.importorskip("jax")
    from mmabits.kernels.training.in_jax import fake_quantize, quantized_linear

    x = jax.numpy.ones((16, 32))
    for name in ("NPROC", "PJRT_NPROC"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "1")
        with pytest.raises(EmulationError, match="set NPROC=2"):
            jax.jit(lambda x: fake_quantize(x, "mxfp4"))(x)
        with pytest.raises(EmulationError, match="set NPROC=2"):
            jax.grad(lambda x: quantized_linear(x, jax.numpy.ones((32, 16)), recipe="bf16", arch="sm_100a").sum())(x)
