"""Block-scaled products of JAX under `emulate`: scaled_dot, scaled_matmul and scaled_dot_general, as instructions and multiplied out."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.isa import EmulationError

jax = pytest.importorskip("jax", reason="needs the jax extra")
if not hasattr(jax, "make_user_context"):
    pytest.skip("needs jax 0.10", allow_module_level=True)

from jax import lax  # noqa: E402
from jax import numpy as jnp  # noqa: E402

Array = np.ndarray[Any, Any]
F16, BF16, F32 = np.float16, ml_dtypes.bfloat16, np.float32
E4M3, E5M2, E2M1, E8M0 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e8m0fnu
VERSION = tuple(int(part) for part in jax.__version__.split(".")[:2])
FAMILY = {"sm_80": "mma.sync", "sm_90a": "wgmma", "sm_100a": "tcgen05.mma", "sm_120a": "mma.sync"}


def emulate(arch: str) -> Any:
    return mmabits.emulate(arch, frameworks=["jax"])


def same(got: Any, want: Array) -> bool:
    left = np.asarray(got)
    return left.dtype == want.dtype and left.shape == want.shape and left.tobytes() == np.ascontiguousarray(want).tobytes()


def draw(dtype: Any, *shape: int, seed: int) -> Array:
    rng = np.random.default_rng([seed, *shape])
    if np.dtype(dtype) == E8M0:
        return np.exp2(rng.integers(-6, 6, shape)).astype(F32).astype(E8M0)
    values = np.abs(rng.standard_normal(shape)) if seed > 2 else rng.standard_normal(shape)
    return (values * 2).astype(F32).astype(dtype)


def operands(a_type: Any, b_type: Any, scale: Any, block: int, *, batch: int = 2, k: int = 128) -> tuple[Array, Array, Array, Array]:
    """As scaled_matmul takes them: (B, M, K), (B, N, K) and their scales."""
    return (
        draw(a_type, batch, 10, k, seed=1), draw(b_type, batch, 6, k, seed=2),
        draw(scale, batch, 10, k // block, seed=3), draw(scale, batch, 6, k // block, seed=4),
    )  # fmt: skip


def reference(arch: str, a: Array, b: Array, scale_a: Array, scale_b: Array) -> Array:
    """The block-scaled instruction by `gemm`."""
    swapped = (np.ascontiguousarray(each.swapaxes(1, 2)) for each in (b, scale_b))
    b, scale_b = swapped
    block = a.shape[2] // scale_a.shape[2]
    kind = {"sm_100a": {32: "kind::mxf8f6f4.block_scale", 16: "kind::mxf4nvf4.block_scale.block16"},
            "sm_120a": {32: "kind::mxf8f6f4.block_scale", 16: "kind::mxf4nvf4.block_scale.scale_vec::4X"}}[arch][block]  # fmt: skip
    return mmabits.gemm(a, b, scale_a=scale_a, scale_b=scale_b, instruction=f"{FAMILY[arch]}.{kind}", arch=arch)


def multiplied_out(values: Array, scales: Array, dtype: Any) -> Array:
    block = values.shape[2] // scales.shape[2]
    return values.astype(dtype) * np.repeat(scales.astype(dtype), block, axis=2)


MX = [(E4M3, E4M3, E8M0, 32), (E4M3, E5M2, E8M0, 32), (E5M2, E4M3, E8M0, 32), (E2M1, E2M1, E4M3, 16)]


@pytest.mark.parametrize("arch", ["sm_100a", "sm_120a"])
@pytest.mark.parametrize(("a_type", "b_type", "scale", "block"), MX)
def test_scaled_matmul_is_the_block_scaled_instruction(arch: str, a_type: Any, b_type: Any, scale: Any, block: int) -> None:
    given = operands(a_type, b_type, scale, block)
    want = reference(arch, *given)
    with emulate(arch) as session:
        got = jax.nn.scaled_matmul(*given)
        half = jax.nn.scaled_matmul(*given, preferred_element_type=jnp.bfloat16)
        first, _ = session.report().emulated
    assert same(got, want) and same(half, want.astype(BF16))
    assert (first.shape, first.count) == ("10 x 6 x 128", 2) and first.instruction.block == block
    assert "cuDNN's block-scaled product is this instruction is assumed" in first.note


@pytest.mark.parametrize(("arch", "given", "out", "why"), [
    ("sm_90a", MX[0], F32, "sm_90a has no tensor-core instruction for e4m3 x e4m3 with ue8m0 block scales"),
    ("sm_90a", MX[0], BF16, "sm_90a has no tensor-core instruction"), ("sm_90a", MX[3], BF16, "sm_90a has no tensor-core instruction"),
    ("sm_80", MX[1], F16, "sm_80 has no tensor-core instruction"),
    ("sm_100a", (E5M2, E5M2, E8M0, 32), BF16, "cuDNN multiplies no e5m2 by e5m2"),
    ("sm_100a", (E4M3, E4M3, E8M0, 16), BF16, "cuDNN takes e4m3 with blocks of 32"),
    ("sm_100a", (E2M1, E2M1, E8M0, 32), BF16, "cuDNN has no product of such operands and scales"),
])  # fmt: skip
def test_scaled_matmul_elsewhere_is_multiplied_out(arch: str, given: Any, out: Any, why: str) -> None:
    """In the type of the result, as XLA's BlockScalingRewriter does, and then multiplied as any product of that type."""
    a, b, scale_a, scale_b = operands(*given)
    left, right = multiplied_out(a, scale_a, out), multiplied_out(b, scale_b, out).swapaxes(1, 2)
    want = mmabits.gemm(left, np.ascontiguousarray(right), instruction=FAMILY[arch], arch=arch).astype(out)
    with emulate(arch) as session:
        got = jax.nn.scaled_matmul(a, b, scale_a, scale_b, preferred_element_type=out)
        (line,) = session.report().emulated
    assert same(got, want)
    assert f"scaled_matmul multiplied out in {np.dtype(out)}, as XLA does: {why}" in line.note


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_scaled_dot(arch: str) -> None:
    """One contracted dimension with MX scales is the instruction where there is one; else values times scales in bf16."""
    a, b, scale_a, scale_b = (each[0] for each in operands(E4M3, E4M3, E8M0, 32))
    function = jax.jit(lambda a, b, scale_a, scale_b: lax.scaled_dot(
        a, b, lhs_scale=scale_a, rhs_scale=scale_b, preferred_element_type=jnp.float32))  # fmt: skip
    stock = np.asarray(function(a, b.T, scale_a, scale_b.T))
    with emulate(arch) as session:
        got = function(a, b.T, scale_a, scale_b.T)
        (line,) = session.report().emulated
    if arch == "sm_100a":
        want = reference(arch, a[None], b[None], scale_a[None], scale_b[None])[0]
    else:
        left, right = multiplied_out(a[None], scale_a[None], BF16)[0], multiplied_out(b[None], scale_b[None], BF16)[0]
        want = mmabits.gemm(left, np.ascontiguousarray(right.T), instruction="wgmma", arch=arch)
        assert "scaled_dot multiplied out in bf16, as XLA does: sm_90a has no tensor-core instruction" in line.note
    assert same(got, want) and same(function(a, b.T, scale_a, scale_b.T), stock)


def test_scaled_dot_without_scales_of_an_operand() -> None:
    """JAX puts a single 1 there: no block of 32, so the operands are multiplied out."""
    a, b, scale_a, _ = (each[0] for each in operands(E4M3, E4M3, E8M0, 32))
    with emulate("sm_100a"):
        got = lax.scaled_dot(a, b.T, lhs_scale=scale_a)
    left = multiplied_out(a[None], scale_a[None], BF16)[0]
    want = mmabits.gemm(left, np.ascontiguousarray(b.T).astype(BF16), instruction="tcgen05.mma", arch="sm_100a")
    assert same(got, want.astype(BF16))


def test_vmap_of_scaled_products() -> None:
    given = operands(E4M3, E4M3, E8M0, 32)
    want = reference("sm_100a", *given)
    with emulate("sm_100a"):
        got = jax.vmap(
            lambda a, b, left, right: lax.scaled_dot(a, b.T, lhs_scale=left, rhs_scale=right.T, preferred_element_type=jnp.float32)
        )(*given)
    assert same(got, want)


def quantized_mx(values: Array) -> tuple[Array, Array]:
    """As jax.nn.scaled_dot_general quantizes to MXFP8: the scale is the power of two above amax / 448."""
    blocks = values.reshape(*values.shape[:-1], -1, 32)
    ratio = np.abs(blocks).max(-1) / F32(448)
    scales = np.exp2(np.ceil(np.log2(ratio))).astype(F32)
    codes = np.clip(blocks / scales[..., None], -448, 448).astype(E4M3)
    return codes.reshape(values.shape), scales.astype(E8M0)


def test_scaled_dot_general_and_its_gradients() -> None:
    """Forward, and backward, where JAX quantizes the gradient and the operands along the dimensions it contracts."""
    rng = np.random.default_rng(0)
    x, w, g = (rng.standard_normal(shape).astype(F32) for shape in ((64, 128), (96, 128), (64, 96)))
    config = jax.nn.get_scaled_dot_general_config("mxfp8")

    def product(x: Any, w: Any) -> Any:
        return jax.nn.scaled_dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32, configs=[config] * 3)

    def emulated(left: Array, right: Array) -> Array:
        (a, scale_a), (b, scale_b) = quantized_mx(left), quantized_mx(right)
        return reference("sm_100a", a[None], b[None], scale_a[None], scale_b[None])[0]

    if VERSION < (0, 11):  # from then on JAX multiplies what it has dequantized where there is no GPU
        with pytest.raises(NotImplementedError, match="scaled_matmul"):
            jax.jit(product)(x, w)
    with emulate("sm_100a") as session:
        got, pull = jax.vjp(jax.jit(product), x, w)
        grad_x, grad_w = pull(g)
        assert len(session.report().emulated) == 3
    assert same(got, emulated(x, w))
    assert same(grad_x, emulated(g, np.ascontiguousarray(w.T)))
    assert same(grad_w, emulated(np.ascontiguousarray(g.T), np.ascontiguousarray(x.T)))


def test_scaled_dot_general_in_nvfp4() -> None:
    rng = np.random.default_rng(1)
    x, w = (rng.standard_normal((2, rows, 64)).astype(F32) for rows in (8, 12))
    config = jax.nn.get_scaled_dot_general_config("nvfp4", global_scale=jnp.float32(0.01))
    with emulate("sm_100a") as session:
        got = np.asarray(jax.nn.scaled_dot_general(
            x, w, (((2,), (2,)), ((0,), (0,))), preferred_element_type=jnp.float32, configs=[config] * 3))  # fmt: skip
        (line,) = session.report().emulated
    exact = np.einsum("bmk,bnk->bmn", x, w)
    assert np.abs(got - exact).mean() < 0.2 * np.abs(exact).mean()
    assert "kind::mxf4nvf4.block_scale.block16" in line.instruction.ptx and line.shape == "8 x 12 x 64"


def test_scales_that_do_not_fit() -> None:
    """JAX checks scaled_dot itself, and lets scaled_matmul pass."""
    a, b, scale_a, scale_b = operands(E4M3, E4M3, E8M0, 32)
    with emulate("sm_100a"), pytest.raises(EmulationError, match="K = 128 is not divisible into 3 blocks of one scale each"):
        jax.nn.scaled_matmul(a, b, scale_a[:, :, :3], scale_b[:, :, :3])


def test_float4_codes_reach_the_engine() -> None:
    """Every code of e2m1, against the identity."""
    codes = np.tile(np.arange(16, dtype=np.uint8), 4).view(E2M1).reshape(1, 1, 64)
    ones = np.full((1, 1, 4), 1, E4M3)
    unit = np.zeros((1, 64, 64), E2M1)
    unit[0, np.arange(64), np.arange(64)] = 1
    with emulate("sm_100a"):
        got = np.asarray(jax.nn.scaled_matmul(codes, unit, ones, np.ones((1, 64, 4), E4M3)))
    assert np.array_equal(got[0, 0], codes[0, 0].astype(F32))
