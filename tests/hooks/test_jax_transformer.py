"""A transformer in JAX whose products are fp8, forward and backward: under `emulate` it has the bits of its composition with gemm.

The composition is the same program, but that each of its products is a call of `mmabits.gemm`: step by step for a program that
runs step by step, by a callback for a compiled one. Everything between the products is JAX's in both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mmabits

jax = pytest.importorskip("jax", reason="needs the jax extra")
if not hasattr(jax, "make_user_context"):
    pytest.skip("needs jax 0.10", allow_module_level=True)

from jax import lax  # noqa: E402
from jax import numpy as jnp  # noqa: E402

E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
FAMILY = {"sm_89": "mma.sync", "sm_90a": "wgmma", "sm_100a": "tcgen05.mma"}
TOKENS, WIDTH, HEADS, HIDDEN, LAYERS = 12, 32, 2, 64, 2
Product = Callable[[Any, Any], Any]


def by_jax(a: Any, b: Any) -> Any:
    """(..., M, K) by (..., K, N)."""
    batch = tuple(range(a.ndim - 2))
    return lax.dot_general(a, b, (((a.ndim - 1,), (b.ndim - 2,)), (batch, batch)), preferred_element_type=jnp.float32)


def by_gemm(arch: str) -> Product:
    """The product as a call of gemm, for concrete arrays."""

    def product(a: Any, b: Any) -> Any:
        return jnp.asarray(mmabits.gemm(np.asarray(a), np.asarray(b), instruction=FAMILY[arch], arch=arch))

    return product


def by_callback(arch: str) -> Product:
    """The product as a call of gemm, in a compiled program. The callback is NumPy alone."""

    def product(a: Any, b: Any) -> Any:
        result = jax.ShapeDtypeStruct((*a.shape[:-1], b.shape[-1]), np.float32)
        return jax.pure_callback(lambda a, b: mmabits.gemm(np.asarray(a), np.asarray(b), instruction=FAMILY[arch], arch=arch), result, a, b)

    return product


def quantized(values: Any, dtype: Any) -> tuple[Any, Any]:
    """Codes and the one scale of a tensor."""
    scale = jnp.maximum(jnp.abs(values).max(), 1e-12) / float(ml_dtypes.finfo(dtype).max)
    return (values / scale).astype(dtype), scale


def fp8_product(bare: Product) -> Product:
    """E4M3 forward, E5M2 for the gradient, each tensor with one scale.

    Barriers stand around each product, so that XLA fuses what lies between them, and contracts it into fused multiply-adds,
    in the same way whatever the product is made of.
    """

    def product(a: Any, b: Any) -> Any:
        return lax.optimization_barrier(bare(*lax.optimization_barrier((a, b))))

    @jax.custom_vjp
    def multiply(a: Any, b: Any) -> Any:
        return forward(a, b)[0]

    def forward(a: Any, b: Any) -> Any:
        (a_codes, a_scale), (b_codes, b_scale) = quantized(a, E4M3), quantized(b, E4M3)
        return product(a_codes, b_codes) * (a_scale * b_scale), (a_codes, a_scale, b_codes, b_scale)

    def backward(kept: Any, gradient: Any) -> Any:
        a_codes, a_scale, b_codes, b_scale = kept
        codes, scale = quantized(gradient, E5M2)
        return (
            product(codes, jnp.swapaxes(b_codes, -1, -2)) * (scale * b_scale),
            product(jnp.swapaxes(a_codes, -1, -2), codes) * (a_scale * scale),
        )

    multiply.defvjp(forward, backward)
    return multiply


def normed(x: Any) -> Any:
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def block(multiply: Product, x: Any, weights: dict[str, Any]) -> Any:
    """Attention and a feed-forward layer, each behind a norm and beside a shortcut."""
    y = normed(x)
    q, k, v = (multiply(y, weights[name]).reshape(TOKENS, HEADS, -1).transpose(1, 0, 2) for name in "qkv")
    scores = multiply(q, k.transpose(0, 2, 1)) / np.float32(np.sqrt(WIDTH / HEADS))
    scores = jnp.where(np.tril(np.ones((TOKENS, TOKENS), bool)), scores, -1e9)
    mixed = multiply(jax.nn.softmax(scores), v).transpose(1, 0, 2).reshape(TOKENS, WIDTH)
    x = x + multiply(mixed, weights["o"])
    return x + multiply(jax.nn.gelu(multiply(normed(x), weights["up"])), weights["down"])


def drawn() -> tuple[Any, dict[str, Any]]:
    rng = np.random.default_rng(0)
    shapes = {name: (WIDTH, WIDTH) for name in "qkvo"} | {"up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
    weights = {name: (rng.standard_normal((LAYERS, *shape)) / np.sqrt(shape[0])).astype(np.float32) for name, shape in shapes.items()}
    return jnp.asarray(rng.standard_normal((TOKENS, WIDTH)).astype(np.float32)), jax.tree.map(jnp.asarray, weights)


def looped(product: Product, x: Any, weights: dict[str, Any]) -> Any:
    for layer in range(LAYERS):
        x = block(fp8_product(product), x, {name: each[layer] for name, each in weights.items()})
    return x


def scanned(product: Product, x: Any, weights: dict[str, Any]) -> Any:
    return lax.scan(lambda x, layer: (block(fp8_product(product), x, layer), None), x, weights)[0]


def rematerialized(product: Product, x: Any, weights: dict[str, Any]) -> Any:
    step = jax.checkpoint(lambda x, layer: block(fp8_product(product), x, layer))
    return lax.scan(lambda x, layer: (step(x, layer), None), x, weights)[0]


def value_and_gradients(run: Any, product: Product, x: Any, weights: Any) -> Any:
    def loss(x: Any, weights: Any) -> Any:
        y = run(product, x, weights)
        return (y * y).sum(), y

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(x, weights)


def equal(left: Any, right: Any) -> bool:
    pairs = list(zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))
    return len(pairs) == 9 and all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


PRODUCTS = 6 + 2 * HEADS
"""Of a block: q, k, v, o, up, down, and two of attention for each head."""


@pytest.mark.slow
@pytest.mark.parametrize("arch", FAMILY)
def test_step_by_step(arch: str) -> None:
    """Forward and gradients, an operation at a time."""
    x, weights = drawn()
    want = value_and_gradients(looped, by_gemm(arch), x, weights)
    stock = value_and_gradients(looped, by_jax, x, weights)
    with mmabits.emulate(arch, frameworks=["jax"]) as session:
        got = value_and_gradients(looped, by_jax, x, weights)
        report = session.report()
    assert equal(got, want) and not equal(got, stock)
    assert sum(line.count for line in report.emulated) == 3 * LAYERS * PRODUCTS and not report.skipped


@pytest.mark.parametrize(("run", "products"), [
    (scanned, 3 * LAYERS * PRODUCTS),
    pytest.param(looped, 3 * LAYERS * PRODUCTS, marks=pytest.mark.slow),
    # the last product of a block need not be made again
    pytest.param(rematerialized, 3 * LAYERS * PRODUCTS + LAYERS * (PRODUCTS - 1), marks=pytest.mark.slow),
])  # fmt: skip
def test_compiled(run: Any, products: int) -> None:
    """Forward and gradients as one program."""
    x, weights = drawn()
    want = jax.jit(lambda x, weights: value_and_gradients(run, by_callback("sm_90a"), x, weights))(x, weights)
    with mmabits.emulate("sm_90a", frameworks=["jax"]) as session:
        got = jax.jit(lambda x, weights: value_and_gradients(run, by_jax, x, weights))(x, weights)
        report = session.report()
    assert equal(got, want)
    assert sum(line.count for line in report.emulated) == products and not report.skipped
