"""The JAX forms of schemes 6 and 7: exact on operands whose sums are exact, and bit for bit under emulation."""

import importlib.util
from typing import Any

import ml_dtypes
import numpy as np
import pytest

jax = pytest.importorskip("jax")

from mmabits.emulator.hooks.session import emulate  # noqa: E402
from mmabits.isa.errors import OperandError, OperandTypeError  # noqa: E402
from mmabits.kernels.jax import w4a16 as jax_w4a16  # noqa: E402
from mmabits.kernels.jax import w8a8 as jax_w8a8  # noqa: E402
from mmabits.kernels.schemes import w4a8, w4a16, w8a8  # noqa: E402
from mmabits.kernels.schemes.dots import Dots  # noqa: E402
from mmabits.kernels.schemes.packing_awq_gptq import AwqTensors  # noqa: E402

SEED = 20260119
HOOK = importlib.util.find_spec("mmabits.emulator.hooks.jax") is not None
needs_hook = pytest.mark.skipif(not HOOK, reason="the hook for JAX is not there")


def exact_int4() -> w4a16.Int4Weights:
    """Scales that are powers of two: sums of small integers times such weights are exact in any order."""
    rng = np.random.default_rng(SEED)
    return w4a16.Int4Weights(
        codes=rng.integers(0, 16, (256, 64)).astype(np.uint8), zeros=rng.integers(0, 16, (2, 64)).astype(np.uint8),
        scales=(2.0 ** rng.integers(-3, 3, (2, 64))).astype(np.float16),
    )  # fmt: skip


def packed(weights: w4a16.Int4Weights) -> tuple[Any, ...]:
    tensors = AwqTensors.pack(weights)
    return tensors.qweight, tensors.qzeros, tensors.scales


@pytest.mark.parametrize(("dtype", "block_k"), [(np.float16, 64), (ml_dtypes.bfloat16, 256)])
def test_pallas_w4a16_on_exact_sums(dtype: Any, block_k: int) -> None:
    x = np.random.default_rng(SEED).integers(-8, 9, (64, 256)).astype(np.float32).astype(dtype)
    got = jax_w4a16.awq_matmul(x, *packed(exact_int4()), block_n=32, block_k=block_k, interpret=True)
    wanted = x.astype(np.float64) @ exact_int4().dequantize().astype(np.float64)
    assert np.array_equal(np.asarray(got), wanted)


def int8_operands() -> tuple[w8a8.Int8Matrix, w8a8.Int8Matrix, np.ndarray]:
    rng = np.random.default_rng(SEED)
    x, w = rng.standard_normal((24, 128)).astype(np.float32), rng.standard_normal((128, 40)).astype(np.float32)
    return w8a8.quantize_int8(x, axis=0), w8a8.quantize_int8(w, axis=1), w


def test_int8_products_are_exact_anyway() -> None:
    x, w, _ = int8_operands()
    got = jax.jit(jax_w8a8.w8a8_matmul)(x.codes, x.scales, w.codes, w.scales)
    assert np.array_equal(np.asarray(got), w8a8.w8a8_matmul(x, w, arch="sm_90a"))


@pytest.mark.parametrize("group", [0, 32])
def test_w4a8(group: int) -> None:
    x, _, plain = int8_operands()
    w = w4a8.quantize_w4a8(plain, group=group)
    got = jax.jit(jax_w8a8.w4a8_matmul)(x.codes, x.scales, w.pack(), w.output_scales, w.group_scales)
    assert np.array_equal(np.asarray(got), w4a8.w4a8_matmul(x, w, arch="sm_90a"))


@needs_hook
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a"])
def test_pallas_w4a16_under_emulation(arch: str) -> None:
    rng = np.random.default_rng(SEED)
    weights = w4a16.quantize_int4(rng.standard_normal((256, 64)).astype(np.float32))
    x = rng.standard_normal((64, 256)).astype(np.float16)
    with emulate(arch, frameworks=["jax"]) as session:
        got = np.asarray(jax_w4a16.awq_matmul(x, *packed(weights), block_k=128, interpret=True))
    wanted = w4a16.w4a16_matmul(x, weights, arch=Dots(arch=arch, promote_every=128))
    assert np.array_equal(got.view(np.uint32), wanted.view(np.uint32))
    assert session.report().emulated


@needs_hook
def test_llm_int8_under_emulation() -> None:
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((24, 128)).astype(np.float16)
    x[2, 7] = 20
    _, quantized, w = int8_operands()
    mixed, w16 = w8a8.split_outliers(x), w.astype(np.float16)
    with emulate("sm_90a", frameworks=["jax"]) as session, jax.disable_jit():  # compiled, XLA fuses the last multiply and add
        got = np.asarray(
            jax_w8a8.llm_int8_matmul(
                mixed.regular.codes, mixed.regular.scales, quantized.codes, quantized.scales, mixed.outliers, mixed.columns, w16
            )
        )
    wanted = w8a8.llm_int8_matmul(mixed, w16, quantized, arch="sm_90a")
    assert np.array_equal(got.view(np.uint32), wanted.view(np.uint32))
    assert len(session.report().emulated) == 2


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x, p: jax_w4a16.awq_matmul(x.astype(np.float32), *p), OperandTypeError, "float16 or bfloat16, got float32"),
        (lambda x, p: jax_w4a16.awq_matmul(x[:, :128], *p), OperandError, "the shapes must be"),
        (lambda x, p: jax_w4a16.awq_matmul(x[:40], *p), OperandError, "M must be a multiple of its block 64, got 40"),
        (lambda x, p: jax_w4a16.awq_matmul(x, *p, block_n=4), OperandError, "block_n must be a multiple of its block 8, got 4"),
        (lambda x, p: jax_w8a8.w8a8_matmul(x, p[2], p[0], p[2]), OperandTypeError, "x must be int8, got float16"),
        (lambda x, p: jax_w8a8.w4a8_matmul(np.zeros((2, 12), np.int8), p[2], p[0], p[2]), OperandError, "multiple of 8"),
    ],
)
def test_wrong_operands(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(np.zeros((64, 256), np.float16), packed(exact_int4()))
