"""What a product costs in a compiled JAX program beside the engine's own time."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.emulator.engine.native import native_product
from mmabits.isa import library_instruction, lower

jax = pytest.importorskip("jax", reason="needs the jax extra")
if not hasattr(jax, "make_user_context"):
    pytest.skip("needs jax 0.10", allow_module_level=True)

from jax import lax  # noqa: E402
from jax import numpy as jnp  # noqa: E402

M, N, K, STEPS = 16, 32, 32, 2000
LARGEST = 5e-6
"""Seconds a product may cost beside the engine's."""


def best(work: Callable[[], Any]) -> float:
    """Seconds a step, of the quickest of several runs: others use the machine too."""
    times = []
    for _ in range(15):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times) / STEPS


@pytest.mark.slow
def test_a_product_in_a_scan_costs_less_than_five_microseconds_beside_the_engine() -> None:
    rng = np.random.default_rng(0)
    rows, b = (rng.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn) for shape in ((STEPS, M, K), (K, N)))

    def step(total: Any, a: Any) -> Any:
        return total + lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32), None

    program = jax.jit(lambda rows: lax.scan(step, jnp.zeros((M, N)), rows)[0])
    given = jnp.asarray(rows)
    with mmabits.emulate("sm_90a", frameworks=["jax"]) as session:
        program(given).block_until_ready()
        in_scan = best(lambda: program(given).block_until_ready())
        (line,) = session.report().emulated
    assert line.count == 16 * STEPS

    product = native_product(lower(library_instruction("sm_90a", "e4m3", "e4m3"), "sm_90a"))
    a_codes, b_codes, d = rows[0].view(np.uint8), b.view(np.uint8), np.zeros((M, N), np.float32)
    record = product.record(1, M, N, K)
    record["a"], record["b"], record["d"] = a_codes.ctypes.data, b_codes.ctypes.data, d.ctypes.data
    engine, address = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(product.address), record.ctypes.data
    nothing = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(ctypes.CDLL(None).abs)
    alone = best(lambda: [engine(address) for _ in range(STEPS)]) - best(lambda: [nothing(1) for _ in range(STEPS)])
    assert in_scan - alone < LARGEST, f"{in_scan * 1e6:.2f} us a step, of which the engine takes {alone * 1e6:.2f}"
