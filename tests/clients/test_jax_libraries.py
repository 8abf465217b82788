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
