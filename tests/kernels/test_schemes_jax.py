"""The JAX forms of schemes 1, 3 and 5 under emulation, bit for bit against the compositions."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from arrays import same_bits

jax = pytest.importorskip("jax")

from mmabits.emulator.hooks.session import emulate  # noqa: E402
from mmabits.isa.errors import OperandError, OperandTypeError  # noqa: E402
from mmabits.kernels.jax import block_scaled as jax_blocks  # noqa: E402
from mmabits.kernels.jax import fp8 as jax_fp8  # noqa: E402
from mmabits.kernels.schemes import fp8, mxfp8, nvfp4  # noqa: E402

SEED = 20260205
M, N, K = 24, 40, 128


def normal(*shape: int, seed: int = SEED) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-6, 6, shape)).astype(np.float32)


@pytest.mark.parametrize("arch", ["sm_89", "sm_90a", "sm_100a"])
def test_linear_layer_forward_and_backward(arch: str) -> None:
    x, w, grad = normal(M, K), normal(K, N, seed=1), normal(M, N, seed=2)
    operands = [(x, "e4m3"), (w, "e4m3"), (grad, "e5m2")]
    static = [fp8.quantize(values, format=form).scales for values, form in operands]
    qx, qw, qg = (fp8.quantize(values, format=form, scale=scale[0, 0]) for (values, form), scale in zip(operands, static, strict=True))
    with emulate(arch, frameworks=["jax"]) as session:
        y, pull = jax.vjp(jax.jit(jax_fp8.fp8_linear), x, w, *static)
        dx, dw, *_ = pull(grad)
        assert same_bits(y, fp8.fp8_matmul(qx, qw, arch=arch))
        wanted = fp8.linear_gradients(qg, qx, qw, arch=arch)
        assert same_bits(dx, wanted[0])
        assert same_bits(dw, wanted[1])
    report = session.report()
    kinds = {(row.instruction.a_type.name, row.instruction.b_type.name) for row in report.emulated}
    assert kinds == {("e4m3", "e4m3"), ("e5m2", "e4m3"), ("e4m3", "e5m2")} and not report.skipped


@pytest.mark.parametrize("form", ["e4m3", "e5m2"])
def test_quantize(form: str) -> None:
    values = np.concatenate([normal(8, 64), np.array([[np.inf, -np.inf, 0.0, -0.0] * 16], np.float32)])
    scale = np.array([[0.37]], np.float32)
    got = np.asarray(jax.jit(lambda v, s: jax_fp8.quantize(v, s, format=form))(values, scale))
    assert np.array_equal(got.view(np.uint8), fp8.quantize(values, format=form, scale=scale[0, 0]).elements.view(np.uint8))


@pytest.mark.parametrize("arch", ["sm_100a", pytest.param("sm_120a", marks=pytest.mark.slow)])
def test_mxfp8(arch: str) -> None:
    a, b = mxfp8.quantize_rows(normal(M, K)), mxfp8.quantize_columns(normal(K, N, seed=1), format="e5m2").T
    with emulate(arch, frameworks=["jax"]) as session:
        got = jax.jit(jax_blocks.mxfp8_matmul)(a.elements, a.scales, b.elements, b.scales)
        assert same_bits(got, mxfp8.mxfp8_matmul(a, b.T, arch=arch))
    assert [row.instruction.scale_type.name for row in session.report().emulated if row.instruction.scale_type] == ["ue8m0"]


@pytest.mark.parametrize("arch", ["sm_100a", pytest.param("sm_120a", marks=pytest.mark.slow)])
def test_nvfp4(arch: str) -> None:
    a, b = nvfp4.quantize_rows(normal(M, K)), nvfp4.quantize_columns(normal(K, N, seed=1)).T
    with emulate(arch, frameworks=["jax"]) as session:
        got = jax.jit(jax_blocks.nvfp4_matmul)(a.elements, a.scales, a.tensor_scale, b.elements, b.scales, b.tensor_scale)
        assert same_bits(got, nvfp4.nvfp4_matmul(a, b.T, arch=arch))
    assert [row.instruction.scale_type.name for row in session.report().emulated if row.instruction.scale_type] == ["ue4m3"]


E4M3, E8M0 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu
ONE = np.ones((1, 1), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: jax_fp8.fp8_matmul(normal(4, 32), ONE, normal(32, 4), ONE), OperandTypeError, "x must be float8_e4m3fn or float8_e5m2"),
        (lambda: jax_fp8.fp8_matmul(np.ones((4, 32), E4M3), ONE, np.ones((4, 32), E4M3), ONE), OperandError, "shapes must be"),
        (
            lambda: jax_fp8.fp8_matmul(np.ones((4, 32), E4M3), np.ones((1, 32), np.float32), np.ones((32, 4), E4M3), ONE),
            OperandError,
            r"x_scales must have shape \(1, 1\) or \(4, 1\)",
        ),
        (lambda: jax_fp8.quantize(np.ones(4), ONE), OperandTypeError, "values must be float32, got float64"),
        (
            lambda: jax_blocks.mxfp8_matmul(*[np.ones((4, 40), E4M3), np.ones((4, 1), E8M0)] * 2),
            OperandError,
            "K is a multiple of the block size 32",
        ),
        (
            lambda: jax_blocks.mxfp8_matmul(*[np.ones((4, 32), E4M3), np.ones((4, 1), E4M3)] * 2),
            OperandTypeError,
            "a_scales must be float8_e8m0fnu, got float8_e4m3fn",
        ),
        (
            lambda: jax_blocks.nvfp4_matmul(*[np.ones((4, 32), ml_dtypes.float4_e2m1fn), None, ONE] * 2),
            OperandTypeError,
            "a_scales must be float8_e4m3fn, got NoneType",
        ),
    ],
)
def test_refusals(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
