"""Pallas kernels without `interpret`: compiled by way of Triton, against `mmabits.gemm` and NumPy, and what is refused."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("triton")
pallas = pytest.importorskip("jax.experimental.pallas")
pallas_triton = pytest.importorskip("jax.experimental.pallas.triton")

from jax import numpy as jnp  # noqa: E402

import mmabits  # noqa: E402
from mmabits.emulator.hooks.jax import pallas as hook  # noqa: E402
from mmabits.emulator.machine.compiler import why_unusable  # noqa: E402
from mmabits.isa import EmulationError  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
compiles = pytest.mark.skipif(bool(why_unusable()), reason=why_unusable() or "kernels are compiled here")

FAMILY = {"sm_80": "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "sm_90a": "wgmma", "sm_100a": "tcgen05.mma"}


def emulated(arch: str = "sm_90a", **options: Any) -> Any:
    return mmabits.emulate(arch, frameworks=["jax"], **options)


def multiply(a: Any, b: Any, o: Any) -> None:
    def step(place: Any, total: Any) -> Any:
        panel = pallas.ds(place * 32, 32)
        return total + jnp.dot(a[:, panel], b[panel, :], preferred_element_type=jnp.float32)

    o[...] = jax.lax.fori_loop(0, a.shape[1] // 32, step, jnp.zeros(o.shape, jnp.float32))


def product(a: Any, b: Any, **options: Any) -> Any:
    (m, k), n = a.shape, b.shape[1]
    return pallas.pallas_call(
        multiply, out_shape=jax.ShapeDtypeStruct((m, n), jnp.float32), grid=(m // 64,),
        in_specs=[pallas.BlockSpec((64, k), lambda i: (i, 0)), pallas.BlockSpec((k, n), lambda i: (0, 0))],
        out_specs=pallas.BlockSpec((64, n), lambda i: (i, 0)), **options,
    )(a, b)  # fmt: skip


def operands(k: int = 128) -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    return tuple(jnp.asarray(rng.standard_normal(shape), jnp.float16) for shape in ((128, k), (k, 64)))


def compiled(a: Any, b: Any) -> Any:
    return product(a, b, compiler_params=pallas_triton.CompilerParams(num_warps=4, num_stages=2))


@compiles
@pytest.mark.parametrize("arch", ["sm_90a", *(pytest.param(each, marks=pytest.mark.slow) for each in ("sm_80", "sm_100a"))])
def test_acc_plus_dot_is_one_chain_when_compiled(arch: str) -> None:
    a, b = operands()
    want = mmabits.gemm(np.asarray(a), np.asarray(b), instruction=FAMILY[arch], arch=arch)
    with emulated(arch) as session:
        got = np.asarray(jax.jit(lambda a, b: compiled(a, b) * 1)(a, b))
        interpreted = np.asarray(product(a, b, interpret=True))
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))
    assert np.count_nonzero(interpreted != got) > 1000  # adds each product to the total
    assert any(line.site == "multiply" for line in session.report().emulated)
    with pytest.raises(Exception, match="Only interpret mode"):
        compiled(a, b)


@compiles
def test_results_may_lie_in_the_memory_of_operands() -> None:
    def add(x: Any, _held: Any, o: Any) -> None:
        o[...] = o[...] + 2 * x[...]

    x, y = (jnp.arange(256, dtype=jnp.float32) * scale for scale in (1, 10))
    with emulated():
        got = pallas.pallas_call(
            add, out_shape=jax.ShapeDtypeStruct((256,), jnp.float32), input_output_aliases={1: 0},
            compiler_params=pallas_triton.CompilerParams(num_warps=1),
        )(x, y)  # fmt: skip
    assert np.array_equal(got, np.arange(256) * 12) and np.array_equal(y, np.arange(256) * 10)


@compiles
def test_what_is_not_for_triton_names_the_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = operands()
    with emulated(), pytest.raises(EmulationError, match=r"CompilerParams.* by way of Triton; .*interpret=True"):
        product(a, b)
    with emulated(), pytest.raises(EmulationError, match="XLA rounds f32 operands to TF32"):
        compiled(a.astype(jnp.float32), b.astype(jnp.float32))
    with emulated(), pytest.raises(EmulationError, match=r"Triton is not installed.*interpret=True"):
        monkeypatch.setattr(hook.importlib.util, "find_spec", lambda name: None)
        compiled(a[:64], b)
