"""Compiled JAX programs under `emulate` against their own jaxprs, walked one operation at a time with every dot a call of `mmabits.gemm`.

XLA's compiler changes bits of its own: it fuses multiplications with additions and rewrites divisions, and one bit decides how the
next fp8 quantization rounds. With those passes off, a compiled scan over transformer blocks has the bits of the walk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mmabits

jax = pytest.importorskip("jax", reason="needs the jax extra")
if not hasattr(jax, "make_user_context"):
    pytest.skip("needs jax 0.10", allow_module_level=True)

from jax import lax  # noqa: E402
from jax import numpy as jnp  # noqa: E402
from jax.extend.core import ClosedJaxpr, Literal  # noqa: E402

UNFUSED = {"xla_disable_hlo_passes": "cpu-instruction-fusion,fusion,algsimp,fusion-wrapper"}
TOKENS, WIDTH, HEADS, LAYERS = 16, 32, 2, 3


# The program -----------------------------------------------------------------------------------------------------------


def quantized(x: Any) -> tuple[Any, Any]:
    scale = jnp.exp2(jnp.floor(8.0 - jnp.log2(jnp.max(jnp.abs(x)))))
    return (x * scale).astype(jnp.float8_e4m3fn), scale


def fp8_dot(x: Any, w: Any) -> Any:
    (x_codes, x_scale), (w_codes, w_scale) = quantized(x), quantized(w)
    return jnp.matmul(x_codes, w_codes, preferred_element_type=jnp.float32) / (x_scale * w_scale)


def attention(x: Any, weights: dict[str, Any]) -> Any:
    q, k, v = (fp8_dot(x, weights[name]).reshape(TOKENS, HEADS, -1).astype(jnp.bfloat16) for name in "qkv")
    scores = jnp.einsum("qhd,khd->hqk", q, k, preferred_element_type=jnp.float32)
    shares = jax.nn.softmax(scores / np.float32(np.sqrt(WIDTH // HEADS))).astype(jnp.bfloat16)
    mixed = jnp.einsum("hqk,khd->qhd", shares, v, preferred_element_type=jnp.float32)
    return fp8_dot(mixed.reshape(TOKENS, WIDTH), weights["o"])


def block(x: Any, weights: dict[str, Any]) -> Any:
    normed = x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)
    x = x + attention(normed, weights)
    return x + fp8_dot(jax.nn.gelu(fp8_dot(x, weights["up"])), weights["down"])


def stack(x: Any, layers: dict[str, Any]) -> Any:
    return lax.scan(lambda x, weights: (block(x, weights), None), x, layers)[0]


def drawn() -> tuple[Any, dict[str, Any]]:
    rng = np.random.default_rng(3)
    shapes = {name: (WIDTH, WIDTH) for name in "qkvo"} | {"up": (WIDTH, 64), "down": (64, WIDTH)}
    layers = {name: jnp.asarray(rng.normal(size=(LAYERS, *shape)) / 4, jnp.float32) for name, shape in shapes.items()}
    return jnp.asarray(rng.normal(size=(TOKENS, WIDTH)), jnp.float32), layers


# The walk --------------------------------------------------------------------------------------------------------------


class Walk:
    """A jaxpr, one operation at a time; counts the products, batches singly."""

    def __init__(self) -> None:
        self.products = 0

    def run(self, closed: Any, *args: Any) -> list[Any]:
        values = dict(zip((*closed.jaxpr.constvars, *closed.jaxpr.invars), (*closed.consts, *args), strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else values[atom]

        for equation in closed.jaxpr.eqns:
            results = self.step(equation, [read(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in closed.jaxpr.outvars]

    def step(self, equation: Any, args: list[Any]) -> list[Any]:
        parameters = equation.params
        if equation.primitive.name == "dot_general":
            return [self.dot(*(np.asarray(each) for each in args), parameters["dimension_numbers"])]
        if equation.primitive.name == "scan":
            return self.scan(args, parameters)
        inner = parameters.get("jaxpr") or parameters.get("call_jaxpr")
        if inner is not None:
            return self.run(inner if hasattr(inner, "consts") else ClosedJaxpr(inner, ()), *args)
        results = equation.primitive.bind(*args, **parameters)
        return list(results) if equation.primitive.multiple_results else [results]

    def scan(self, args: list[Any], parameters: dict[str, Any]) -> list[Any]:
        fixed, carried = parameters["num_consts"], parameters["num_consts"] + parameters["num_carry"]
        state = args[fixed:carried]
        for step in range(parameters["length"]):
            state = self.run(parameters["jaxpr"], *args[:fixed], *state, *(each[step] for each in args[carried:]))
        assert len(state) == parameters["num_carry"]
        return state

    def dot(self, a: Any, b: Any, numbers: Any) -> Any:
        """Products into f32, of operands of any layout."""
        (contracted_a, contracted_b), (batch_a, batch_b) = numbers
        free_a = [each for each in range(a.ndim) if each not in (*contracted_a, *batch_a)]
        free_b = [each for each in range(b.ndim) if each not in (*contracted_b, *batch_b)]
        batch, rows, columns = ([array.shape[each] for each in which] for array, which in ((a, batch_a), (a, free_a), (b, free_b)))
        k = int(np.prod([a.shape[each] for each in contracted_a]))
        left = a.transpose(*batch_a, *free_a, *contracted_a).reshape(-1, int(np.prod(rows)), k)
        right = b.transpose(*batch_b, *contracted_b, *free_b).reshape(-1, k, int(np.prod(columns)))
        self.products += len(left)
        d = mmabits.gemm(left, right, instruction="wgmma", arch="sm_90a")
        return jnp.asarray(d.reshape(*batch, *rows, *columns))


@pytest.mark.slow
def test_a_compiled_scan_has_the_bits_of_its_operations() -> None:
    x, layers = drawn()
    walk = Walk()
    (want,) = walk.run(jax.make_jaxpr(stack)(x, layers), *jax.tree.leaves((x, layers)))
    with mmabits.emulate("sm_90a", frameworks=["jax"]) as session:
        got = jax.jit(stack, compiler_options=UNFUSED)(x, layers)
        report = session.report()
    assert np.array_equal(np.asarray(got).view(np.uint32), np.asarray(want).view(np.uint32))
    assert sum(line.count for line in report.emulated) == walk.products and not report.skipped
