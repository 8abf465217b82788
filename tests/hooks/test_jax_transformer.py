"""A transformer block with fp8 dots under `emulate`: forward, gradient and scan against a composition of `mmabits.gemm`.

The composition walks the same jaxpr one operation at a time: every dot by `mmabits.gemm`, everything else by JAX, op by op.
"""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="needs the jax extra")

from jax import lax  # noqa: E402
from jax import numpy as jnp  # noqa: E402
from jax.extend.core import ClosedJaxpr, Literal  # noqa: E402

from mmabits import gemm  # noqa: E402
from mmabits.emulator.session import emulate  # noqa: E402

E4M3, E5M2 = jnp.float8_e4m3fn, jnp.float8_e5m2
TOKENS, WIDTH, HEADS, LAYERS = 16, 32, 2, 3
FAMILY = {"sm_89": "mma.sync", "sm_90a": "wgmma", "sm_100a": "tcgen05.mma.kind::f8f6f4", "sm_120a": "mma.sync"}
TF32 = {"sm_89": "mma.sync", "sm_90a": "wgmma", "sm_100a": "tcgen05.mma.kind::tf32", "sm_120a": "mma.sync"}


# The block -------------------------------------------------------------------------------------------------------------


def quantized(x, dtype):
    """Dynamic scaling by a power of two, so that no rounding but fp8's own enters."""
    amax = jnp.maximum(jnp.max(jnp.abs(x)), 2.0**-100)
    scale = jnp.exp2(jnp.floor(jnp.log2(float(jnp.finfo(dtype).max)) - jnp.log2(amax)))
    return (x * scale).astype(dtype), scale


@jax.custom_vjp
def fp8_dot(x, w):
    return _forward(x, w)[0]


def _forward(x, w):
    (qx, sx), (qw, sw) = quantized(x, E4M3), quantized(w, E4M3)
    y = lax.dot_general(qx, qw, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return y / (sx * sw), (qx, sx, qw, sw)


def _backward(saved, g):
    qx, sx, qw, sw = saved
    qg, sg = quantized(g, E5M2)
    dx = lax.dot_general(qg, qw, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32) / (sg * sw)
    dw = lax.dot_general(qx, qg, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32) / (sx * sg)
    return dx, dw


fp8_dot.defvjp(_forward, _backward)


def norm(x):
    return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)


def attention(x, weights):
    q, k, v = (fp8_dot(x, weights[name]).reshape(TOKENS, HEADS, WIDTH // HEADS) for name in ("q", "k", "v"))
    scores = jnp.einsum("qhd,khd->hqk", q.astype(jnp.bfloat16), k.astype(jnp.bfloat16), preferred_element_type=jnp.float32)
    shares = jax.nn.softmax(scores / np.float32(np.sqrt(WIDTH // HEADS)), axis=-1)
    mixed = jnp.einsum("hqk,khd->qhd", shares.astype(jnp.bfloat16), v.astype(jnp.bfloat16), preferred_element_type=jnp.float32)
    return fp8_dot(mixed.reshape(TOKENS, WIDTH), weights["o"])


def block(x, weights):
    x = x + attention(norm(x), weights)
    hidden = jax.nn.gelu(fp8_dot(norm(x), weights["up"]))
    return x + fp8_dot(hidden, weights["down"])


def stack(x, layers):
    return lax.scan(lambda x, weights: (block(x, weights), None), x, layers)[0]


def loss(layers, x):
    return jnp.sum(jnp.square(stack(x, layers)))


def parameters(seed=0, layers=LAYERS):
    shapes = {"q": (WIDTH, WIDTH), "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "o": (WIDTH, WIDTH), "up": (WIDTH, 64), "down": (64, WIDTH)}
    random = np.random.default_rng(seed)
    return {name: jnp.asarray(random.normal(size=(layers, *shape)), jnp.float32) / 4 for name, shape in shapes.items()}


def tokens(seed=9):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(TOKENS, WIDTH)), jnp.float32)


# The composition -------------------------------------------------------------------------------------------------------


class Composition:
    """A jaxpr, one operation at a time; counts its dots."""

    def __init__(self, arch):
        self.arch, self.dots = arch, 0

    def run(self, closed, *args):
        jaxpr, values = closed.jaxpr, {}

        def read(atom):
            return atom.val if isinstance(atom, Literal) else values[atom]

        values.update(zip(jaxpr.constvars, closed.consts, strict=True))
        values.update(zip(jaxpr.invars, args, strict=True))
        for equation in jaxpr.eqns:
            results = self.step(equation, [read(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def step(self, equation, args):
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            return [self.dot(*args, **parameters)]
        if name == "scan":
            return self.scan(args, **parameters)
        inner = parameters.get("jaxpr") or parameters.get("call_jaxpr")
        if inner is not None:
            closed = inner if hasattr(inner, "consts") else ClosedJaxpr(inner, ())
            return self.run(closed, *args)
        results = equation.primitive.bind(*args, **parameters)
        return results if equation.primitive.multiple_results else [results]

    def scan(self, args, *, jaxpr, length, reverse, num_consts, num_carry, **_options):
        consts, carry, stacked = args[:num_consts], list(args[num_consts : num_consts + num_carry]), args[num_consts + num_carry :]
        rows = []
        for step in reversed(range(length)) if reverse else range(length):
            results = self.run(jaxpr, *consts, *carry, *(array[step] for array in stacked))
            carry = results[:num_carry]
            rows.append(results[num_carry:])
        if reverse:
            rows.reverse()
        return [*carry, *(jnp.stack(column) for column in zip(*rows, strict=True))]

    def dot(self, a, b, *, dimension_numbers, preferred_element_type, **_options):
        self.dots += 1
        (contract_a, contract_b), (batch_a, batch_b) = dimension_numbers
        a, b = np.asarray(a), np.asarray(b)
        out = np.dtype(preferred_element_type or a.dtype)
        if a.dtype != b.dtype and not {str(a.dtype), str(b.dtype)} <= {"float8_e4m3fn", "float8_e5m2"}:
            a, b = a.astype(out), b.astype(out)  # as JAX converts operands of different types
        free_a = [i for i in range(a.ndim) if i not in (*contract_a, *batch_a)]
        free_b = [i for i in range(b.ndim) if i not in (*contract_b, *batch_b)]

        def size(array, dimensions):
            return int(np.prod([array.shape[i] for i in dimensions], dtype=int))

        left = a.transpose(*batch_a, *free_a, *contract_a).reshape(size(a, batch_a), size(a, free_a), size(a, contract_a))
        right = b.transpose(*batch_b, *contract_b, *free_b).reshape(size(b, batch_b), size(b, contract_b), size(b, free_b))
        fp8 = a.dtype.itemsize == 1
        instruction = FAMILY[self.arch] if fp8 else (TF32[self.arch] if a.dtype == np.float32 else FAMILY[self.arch].split(".kind")[0])
        d = gemm(left, right, instruction=instruction, arch=self.arch)
        return jnp.asarray(d.astype(out).reshape(*[a.shape[i] for i in (*batch_a, *free_a)], *[b.shape[i] for i in free_b]))


def composed(arch, function, *args):
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    composition = Composition(arch)
    results = composition.run(closed, *jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shape), results), composition.dots


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        left, right = np.asarray(left), np.asarray(right)
        assert left.dtype == right.dtype and left.shape == right.shape
        assert np.array_equal(left.view(np.uint32), right.view(np.uint32))


def executed(session):
    return sum(line.count for line in session.report().emulated)


# Tests -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_forward_eagerly(arch):
    x, weights = tokens(), jax.tree.map(lambda stacked: stacked[0], parameters())
    want, dots = composed(arch, block, x, weights)
    with emulate(arch, frameworks=["jax"]) as session, jax.disable_jit():
        got = block(x, weights)
    assert_same(got, want)
    assert executed(session) > dots >= 8  # heads are counted singly


def show(name, got, want):
    for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        left, right = np.asarray(left), np.asarray(right)
        print(name, left.shape, (left.view(np.uint32) != right.view(np.uint32)).mean(), np.abs(left - right).max())


def test_explore():
    x, layers = tokens(), parameters()
    weights = jax.tree.map(lambda stacked: stacked[0], layers)
    for arch in ("sm_90a",):
        want, dots = composed(arch, block, x, weights)
        wantg, dotsg = composed(arch, jax.grad(loss), layers, x)
        wants, dotss = composed(arch, stack, x, layers)
        with emulate(arch, frameworks=["jax"]) as session:
            show("fwd", jax.jit(block)(x, weights), want)
            show("stack", jax.jit(stack)(x, layers), wants)
            show("grad", jax.jit(jax.grad(loss))(layers, x), wantg)
        print(session.report(), dots, dotsg, dotss)
    assert 0
