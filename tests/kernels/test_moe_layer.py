"""A gated layer of experts: by its steps, against float64, its kernels compiled with the GPU's exponential; refusals."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from arrays import tensor

from mmabits import emulate
from mmabits.isa import OperandError, OperandTypeError
from mmabits.kernels.schemes import moe, moe_experts, w8a8
from mmabits.kernels.schemes.moe_layer import GatedExperts, moe_layer, quantize_layer, swiglu
from mmabits.kernels.schemes.routing import LOG2_E, gpu_exp2

F32, BF16 = np.float32, ml_dtypes.bfloat16
TOKENS, HIDDEN, INNER = 6, 256, 128


def weights(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = ((4, HIDDEN, 2 * INNER), (4, INNER, HIDDEN))
    gate_up, down = ((rng.standard_normal(shape) / math.sqrt(shape[1])).astype(F32) for shape in shapes)
    return gate_up, down


def tokens(dtype: Any = BF16) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((TOKENS, HIDDEN)).astype(dtype)


def routing() -> moe.Routing:
    return moe.route(np.random.default_rng(2).standard_normal((TOKENS, 4)).astype(F32), top_k=2)


@pytest.mark.parametrize("dtype", [BF16, np.float16])
def test_swiglu_number_by_number(dtype: Any) -> None:
    rows = np.random.default_rng(3).standard_normal((5, 8)).astype(F32) * F32(9)
    rows[0, 0], rows[1, 0], rows[2, 4] = -200, 60, np.inf
    got = swiglu(rows, np.dtype(dtype))
    with np.errstate(all="ignore"):
        for row in range(5):
            for n in range(4):
                gate, up = (F32(dtype(value)) for value in (rows[row, n], rows[row, n + 4]))
                silu = F32(dtype(gate / (F32(1) + np.exp2(-gate * LOG2_E))))
                want = F32(dtype(silu * up))
                assert got[row, n] == want or (np.isnan(got[row, n]) and np.isnan(want))


def test_the_layer_by_its_steps() -> None:
    """INT8, token by token and choice by choice."""
    gate_up, down = weights()
    experts = quantize_layer(gate_up, down, "w8a8")
    got = moe_layer(tokens(), experts, routing(), arch="sm_90a")
    for token in range(TOKENS):
        x = w8a8.quantize_int8(tokens()[token : token + 1].astype(F32), axis=0)
        total = np.zeros(HIDDEN, BF16)
        for place in range(2):
            expert = routing().experts[token, place]
            first = w8a8.w8a8_matmul(x, w8a8.quantize_int8(gate_up[expert], axis=1), arch="sm_90a")
            inner = w8a8.quantize_int8(swiglu(first, np.dtype(BF16)), axis=0)
            second = w8a8.w8a8_matmul(inner, w8a8.quantize_int8(down[expert], axis=1), arch="sm_90a")[0]
            total = (total.astype(np.float64) + (second * routing().weights[token, place]).astype(BF16).astype(np.float64)).astype(BF16)
        assert np.array_equal(got[token], total)


@pytest.mark.parametrize("name", moe_experts.EXPERTS)
def test_the_layer_is_near_that_of_float64(name: str) -> None:
    """Within what each format's rounding explains."""
    gate_up, down = (each.astype(np.float64) for each in weights())
    wanted = np.zeros((TOKENS, HIDDEN))
    for token in range(TOKENS):
        for place, expert in enumerate(routing().experts[token]):
            gate, up = np.split(tokens()[token].astype(np.float64) @ gate_up[expert], 2)
            wanted[token] += (gate / (1 + np.exp(-gate)) * up) @ down[expert] * routing().weights[token, place]
    experts = quantize_layer(*weights(), name)
    got = moe_layer(tokens(), experts, routing(), arch="sm_100a").astype(np.float64)
    error = float(np.sqrt(((got - wanted) ** 2).mean() / (wanted**2).mean()))
    bounds = {"nvfp4": 0.25, "mxfp4": 0.25, "w4a16": 0.2, "w8a8": 0.03, "w8a16-int8": 0.02, "w8a16-int8-groups": 0.02}
    assert 1e-3 < error < bounds.get(name, 0.08)


def test_every_scheme_has_kernels() -> None:
    pytest.importorskip("triton")
    from mmabits.kernels.triton.moe_layer import SCHEMES

    assert SCHEMES.keys() == moe_experts.EXPERTS.keys()


def compiled(name: str, arch: str, dtype: Any = BF16) -> np.ndarray:
    from mmabits.kernels.triton import moe_layer as in_triton

    experts = quantize_layer(*weights(), name)
    aligned = moe.align(routing(), block=in_triton.SCHEMES[name].block_m)
    sides = [{key: tensor(array) for key, array in side.pack().items()} for side in (experts.gate_up, experts.down)]
    tables = [tensor(each) for each in (routing().weights, aligned.choices, aligned.experts)]
    with emulate(arch, frameworks=["triton"], triton="compiled"):
        found = in_triton.moe_layer(tensor(tokens(dtype)), *sides, *tables, scheme=name)
    return np.asarray(found.float().numpy(), F32)


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(
    ("name", "arch"),
    [
        pytest.param("fp8-tiles-in-turn", "sm_90a"), pytest.param("fp8-tiles", "sm_90a", marks=pytest.mark.slow),
        pytest.param("fp8-tiles-power-of-two", "sm_100a", marks=pytest.mark.slow),
        *(pytest.param(name, arch, marks=pytest.mark.slow) for name in ("w8a8", "w8a16-int8", "w8a16-e4m3-groups")
          for arch in ("sm_80", "sm_90a", "sm_100a")),
        *(pytest.param(name, "sm_100a", marks=pytest.mark.slow) for name in ("mxfp8", "nvfp4", "fp8-tiles", "w4a16", "mxfp4")),
    ],
)  # fmt: skip
def test_the_kernels_compiled_have_the_bits_of_the_composition(name: str, arch: str) -> None:
    pytest.importorskip("triton")
    wanted = moe_layer(tokens(), quantize_layer(*weights(), name), routing(), arch=arch, exp2=gpu_exp2(arch))
    assert np.array_equal(compiled(name, arch), wanted.astype(F32))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: quantize_layer(weights()[0], weights()[0], "w8a8"), OperandError, r"got 4 of \(256, 256\) and 4 of \(256, 256\)"),
        (lambda: quantize_layer(weights()[0], weights()[1][:3], "w8a8"), OperandError, r"got 4 of \(256, 256\) and 3 of \(128, 256\)"),
        (
            lambda: GatedExperts(
                gate_up=moe_experts.quantize_experts(weights()[0], "w8a8"), down=moe_experts.quantize_experts(weights()[1], "mxfp8")
            ),
            OperandError, "one scheme, got w8a8 and mxfp8",
        ),
        (lambda: GatedExperts(gate_up=1, down=2), OperandTypeError, "Experts, got int"),
        (
            lambda: moe_layer(tokens(F32), quantize_layer(*weights(), "w8a8"), routing(), arch="sm_90a"), OperandTypeError,
            "x must be a NumPy array of bfloat16 or float16",
        ),
    ],
)  # fmt: skip
def test_wrong_layers(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


def test_the_launcher_refuses() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from mmabits.kernels.triton import moe_layer as in_triton

    x, tables = torch.zeros(2, 64, dtype=torch.bfloat16), [torch.zeros(2, 2), torch.zeros(64, dtype=torch.int32), torch.zeros(1).int()]
    with pytest.raises(OperandError, match="unknown scheme of experts 'w8a9'; did you mean w8a8"):
        in_triton.moe_layer(x, {}, {}, *tables, scheme="w8a9")
    with pytest.raises(OperandError, match="gate_up in w8a8 has w, w_scales, got nothing"):
        in_triton.moe_layer(x, {}, {}, *tables, scheme="w8a8")
    with pytest.raises(OperandTypeError, match="x must be a torch tensor of bfloat16 or float16, got float32"):
        in_triton.moe_layer(x.float(), {}, {}, *tables, scheme="w8a8")
    with pytest.raises(OperandError, match="got 3 columns"):
        in_triton.swiglu(torch.zeros(2, 3), "bfloat16")
    with pytest.raises(OperandError, match="bfloat16 or float16, got 'float32'"):
        in_triton.swiglu(torch.zeros(2, 4), "float32")
