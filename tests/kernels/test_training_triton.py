"""Recipes of training in Triton's kernels under emulation: the bits of the NumPy rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from arrays import tensor  # noqa: E402
from operands import generator  # noqa: E402

from mmabits.emulator.hooks.session import emulate  # noqa: E402
from mmabits.isa import OperandError, OperandTypeError  # noqa: E402
from mmabits.kernels.schemes import nvfp4  # noqa: E402
from mmabits.kernels.schemes.training import LayerState, linear, linear_gradients  # noqa: E402
from mmabits.kernels.triton import mxfp8 as triton_mxfp8  # noqa: E402
from mmabits.kernels.triton import nvfp4 as triton_nvfp4  # noqa: E402
from mmabits.kernels.triton.training import hadamard, quantize_nvfp4_stochastic  # noqa: E402

Array = np.ndarray[Any, Any]
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")


def drawn(kind: str) -> tuple[Array, Array]:
    """Values (48, 64) and random bits."""
    rng = generator("training in triton", kind)
    values = rng.standard_normal((48, 64)).astype(np.float32)
    if kind == "wide":
        values = np.ldexp(values, rng.integers(-40, 40, values.shape)).astype(np.float32)
    elif kind == "codes":  # every boundary of e2m1, and its neighbours
        grid = np.array([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6], np.float32)
        values = np.nextafter(rng.choice(grid, values.shape), rng.choice([-9, 9], values.shape).astype(np.float32)) * rng.choice(
            [-1, 1], values.shape
        )
        values[:, ::16] = 6
        values = values.astype(np.float32)
    elif kind == "hard":
        values[1], values[2, :16], values[3, 5], values[4, 40], values[5] = 0, values[2, :16] * np.float32(2.0**-122), np.nan, -np.inf, -0.0
        values[6] = 1e-45
    return values, rng.integers(0, 1 << 32, values.shape, dtype=np.uint32)


@pytest.mark.parametrize("kind", ["normal", "wide", "codes", "hard"])
def test_stochastic_quantizers(kind: str) -> None:
    values, bits = drawn(kind)
    with emulate("sm_100a", frameworks=["triton"], triton="interpreted"):
        by_rows = quantize_nvfp4_stochastic(tensor(values), tensor(bits))
        by_columns = quantize_nvfp4_stochastic(tensor(values), tensor(bits), columns=True)
    rows = nvfp4.quantize_rows(values, rounding="rs", random_bits=bits)
    columns = nvfp4.quantize_columns(values, rounding="rs", random_bits=bits).T
    for found, wanted in ((by_rows, rows), (by_columns, columns)):
        assert torch.equal(found[0], tensor(wanted.elements))
        assert torch.equal(found[1].view(torch.uint8), tensor(wanted.block_scales).view(torch.uint8))
        assert found[2].item() == wanted.tensor_scale


@pytest.mark.parametrize("kind", ["normal", "wide"])
def test_hadamard_transforms(kind: str) -> None:
    values, _ = drawn(kind)
    signs = nvfp4.random_signs(4)
    with emulate("sm_100a", frameworks=["triton"], triton="interpreted"):
        by_rows, by_columns = (hadamard(tensor(values), tensor(signs), columns=columns) for columns in (False, True))
    for found, wanted in ((by_rows, nvfp4.hadamard(values, signs)), (by_columns, nvfp4.hadamard(values, signs, axis=0).T)):
        assert np.array_equal(found.numpy().view(np.uint32), np.ascontiguousarray(wanted).view(np.uint32))


def given() -> tuple[Array, Array, Array]:
    rng = generator("recipes in triton")
    found = [rng.standard_normal(shape).astype(np.float32) for shape in ((64, 96), (96, 128), (64, 128))]
    found[0][5, 7] *= 100
    return found[0], found[1], found[2]


def in_bf16(values: Array) -> Any:
    return tensor(values).bfloat16().float().contiguous()


def test_the_nvfp4_recipe() -> None:
    x, w, grad = given()
    state = LayerState(seed=11, step=2)
    bits = [state.random_bits(name, grad.shape) for name in ("dgrad", "wgrad")]
    y, saved = linear(x, w, recipe="nvfp4", arch="sm_100a", state=state)
    d_x, d_w = linear_gradients(grad, saved)
    signs, (left, right, back) = tensor(nvfp4.random_signs(0)), map(in_bf16, (x, w, grad))
    with emulate("sm_100a", frameworks=["triton"], triton="interpreted"):
        forward = triton_nvfp4.nvfp4_matmul(*triton_nvfp4.quantize(left), *triton_nvfp4.quantize(right, columns=True, square=True))
        first = quantize_nvfp4_stochastic(back, tensor(bits[0]))
        of_x = triton_nvfp4.nvfp4_matmul(*first, *triton_nvfp4.quantize(right, square=True))
        second = quantize_nvfp4_stochastic(hadamard(back, signs, columns=True), tensor(np.ascontiguousarray(bits[1].T)))
        of_w = triton_nvfp4.nvfp4_matmul(*triton_nvfp4.quantize(hadamard(left, signs, columns=True)), *second)
    assert torch.equal(forward.bfloat16().float(), tensor(y))
    assert torch.equal(of_x.bfloat16().float(), tensor(d_x))
    assert torch.equal(of_w, tensor(d_w))


def test_the_mxfp8_recipe() -> None:
    x, w, grad = given()
    y, saved = linear(x, w, recipe="mxfp8", arch="sm_100a")
    d_x, d_w = linear_gradients(grad, saved)
    left, right, back = map(in_bf16, (x, w, grad))
    rows, columns = triton_mxfp8.quantize_rows, triton_mxfp8.quantize_columns
    with emulate("sm_100a", frameworks=["triton"], triton="interpreted"):
        forward = triton_mxfp8.mxfp8_matmul(*rows(left, recipe="rceil"), *columns(right, recipe="rceil"))
        of_x = triton_mxfp8.mxfp8_matmul(*rows(back, recipe="rceil"), *rows(right, recipe="rceil"))
        of_w = triton_mxfp8.mxfp8_matmul(*columns(left, recipe="rceil"), *columns(back, recipe="rceil"))
    assert torch.equal(forward.bfloat16().float(), tensor(y))
    assert torch.equal(of_x.bfloat16().float(), tensor(d_x))
    assert torch.equal(of_w, tensor(d_w))


@pytest.mark.parametrize("shape", [(0, 64), (64, 0), (0, 0)])
def test_of_nothing(shape: tuple[int, int]) -> None:
    values, bits, signs = torch.zeros(shape), torch.zeros(shape, dtype=torch.int32), torch.ones(16)
    with emulate("sm_100a", frameworks=["triton"], triton="interpreted"):
        for columns in (False, True):
            rows, k = shape[::-1] if columns else shape
            assert hadamard(values, signs, columns=columns).shape == (rows, k)
            elements, scales, whole = quantize_nvfp4_stochastic(values, bits, columns=columns)
            assert (elements.shape, scales.shape, whole.item()) == ((rows, k // 2), (rows, k // 16), 1)


def test_refusals() -> None:
    values, bits = (tensor(each) for each in drawn("normal"))
    with pytest.raises(OperandTypeError, match="random_bits must be a torch tensor of uint32 or int32, got float32"):
        quantize_nvfp4_stochastic(values, bits.view(torch.float32))
    with pytest.raises(OperandError, match=r"random_bits must have shape \(48, 64\), got \(64, 48\)"):
        quantize_nvfp4_stochastic(values, torch.zeros((64, 48), dtype=torch.uint32))
    with pytest.raises(OperandError, match="K must be a multiple of the block size 16, got 8"):
        quantize_nvfp4_stochastic(values[:, :8].contiguous(), bits[:, :8].contiguous())
    with pytest.raises(OperandError, match="K must be a multiple of the size of the transform 16, got 8"):
        hadamard(values[:, :8].contiguous(), torch.ones(16))
    with pytest.raises(OperandError, match=r"signs must have shape \(16\), got \(8,\)"):
        hadamard(values, torch.ones(8))
    with pytest.raises(OperandError, match="scale must be positive and finite"):
        quantize_nvfp4_stochastic(values, bits, scale=torch.zeros(1))
