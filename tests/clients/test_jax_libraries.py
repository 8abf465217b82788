"""flax, qwix and equinox, unchanged, under `emulate`. Each is skipped where its package is missing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import mmabits

jax = pytest.importorskip("jax")
from jax import numpy as jnp  # noqa: E402


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def rows() -> Any:
    return jnp.asarray(np.random.default_rng(0).standard_normal((8, 64)), jnp.bfloat16)


def types(report: Any) -> set[tuple[str, str]]:
    assert report.share == 1 and not report.skipped
    return {(line.instruction.a_type.name, line.instruction.b_type.name) for line in report.emulated}


def test_nnx_forward_and_backward() -> None:
    nnx = pytest.importorskip("flax.nnx")
    options = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    model = nnx.Sequential(nnx.Linear(64, 128, rngs=nnx.Rngs(0), **options), jax.nn.relu, nnx.Linear(128, 8, rngs=nnx.Rngs(1), **options))
    with mmabits.emulate("sm_90a", frameworks=["jax"]) as session:
        loss, _ = nnx.value_and_grad(lambda model: model(rows()).sum())(model)
    assert np.isfinite(float(loss)) and types(session.report()) == {("bf16", "bf16")}
    assert sum(line.count for line in session.report().emulated) == 5


def test_linen() -> None:
    linen = pytest.importorskip("flax.linen")
    model = linen.Dense(32, dtype=jnp.bfloat16)
    with mmabits.emulate("sm_90a", frameworks=["jax"]) as session:
        parameters = model.init(jax.random.key(0), rows())
        jax.jit(jax.grad(lambda given: model.apply(given, rows()).sum()))(parameters)
    assert types(session.report()) == {("bf16", "bf16")}


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "int8"])
def test_qwix(kind: str) -> None:
    qwix, linen = pytest.importorskip("qwix"), pytest.importorskip("flax.linen")
    dtype = getattr(jnp, kind)
    rule = qwix.QuantizationRule(module_path=".*", weight_qtype=dtype, act_qtype=dtype)
    model = qwix.quantize_model(linen.Dense(32, dtype=jnp.bfloat16), qwix.QtProvider([rule]))
    with mmabits.emulate("sm_90a", frameworks=["jax"]) as session:
        parameters = model.init(jax.random.key(0), rows())
        jax.grad(lambda given: model.apply(given, rows()).sum())(parameters)
    assert {"float8_e4m3fn": ("e4m3", "e4m3"), "int8": ("s8", "s8")}[kind] in types(session.report())


def test_equinox() -> None:
    equinox = pytest.importorskip("equinox")
    model = equinox.nn.MLP(64, 8, 32, 2, key=jax.random.key(0), dtype=jnp.bfloat16)
    with mmabits.emulate("sm_90a", frameworks=["jax"]) as session:
        jax.vmap(model)(rows())
    assert types(session.report()) == {("bf16", "bf16")}


def test_layers_of_linen_are_told_apart_forward_and_backward() -> None:
    linen = pytest.importorskip("flax.linen")

    class Net(linen.Module):  # type: ignore[misc, name-defined]
        @linen.compact
        def __call__(self, x: Any) -> Any:
            for number in range(2):
                x = linen.Dense(64, use_bias=False, dtype=jnp.bfloat16, name=f"layer_{number}")(x)
            return x

    model = Net()
    parameters = model.init(jax.random.key(0), rows())
    with mmabits.emulate("sm_90a", frameworks=["jax"]) as session:
        results = [jax.jit(jax.grad(lambda given: model.apply(given, rows()).astype(jnp.float32).sum()))(parameters)]
        # As with a cache that grows: one row of the table.
        results += [jax.jit(model.apply)(parameters, rows()[:length]) for length in (3, 4, 5, 6)]
        jax.block_until_ready(results)
    counts: dict[str, int] = {}
    for line in session.report().emulated:
        place = line.site.partition(": ")[0]
        counts[place] = counts.get(place, 0) + line.count
    assert counts == {"Net/layer_0": 2 + 4, "Net/layer_1": 2 + 4}
    assert "3..8 x 64 x 64" in str(session.report())


def test_layers_without_scopes_have_the_programs_line() -> None:
    nnx = pytest.importorskip("flax.nnx")
    layer = nnx.Linear(64, 8, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    with mmabits.emulate("sm_90a", frameworks=["jax"]) as session:
        nnx.jit(lambda layer, x: layer(x))(layer, rows())
    assert "(test_jax_libraries.py:" in session.report().emulated[0].site


@pytest.mark.parametrize(("bits", "kind"), [(8, "s8"), (4, "s8"), ("e4m3", "e4m3")])
def test_aqt(bits: Any, kind: str) -> None:
    """Products of integers are exact: forward and backward have the bits that XLA gives them, in s8."""
    linen, config = pytest.importorskip("flax.linen"), pytest.importorskip("aqt.jax.v2.config")
    aqt_flax = pytest.importorskip("aqt.jax.v2.flax.aqt_flax")
    how = (
        config.config_fwd_fp8(bits) if kind == "e4m3" else config.fully_quantized(fwd_bits=bits, bwd_bits=8, use_stochastic_rounding=False)
    )
    model = linen.Dense(32, use_bias=False, dtype=jnp.bfloat16, dot_general_cls=lambda: aqt_flax.AqtDotGeneral(how))
    parameters = model.init(jax.random.key(0), rows())

    def loss(given: Any, x: Any) -> Any:
        return jnp.square(model.apply(given, x, rngs={"params": jax.random.key(1)}).astype(jnp.float32)).sum()

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    outside = jax.tree.leaves(step(parameters, rows()))
    with mmabits.emulate("sm_90a", frameworks=["jax"]) as session:
        inside = jax.tree.leaves(step(parameters, rows()))
    backward = "bf16" if kind == "e4m3" else "s8"
    assert types(session.report()) == {(kind, kind), (backward, backward)}
    assert [line.site.partition(": ")[0].rpartition("/")[2] for line in session.report().emulated] == ["aqt_fwd", "aqt_dlhs", "aqt_drhs"]
    if kind == "s8":
        assert all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(outside, inside, strict=True))
