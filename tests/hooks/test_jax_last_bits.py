"""JAX's handler and what stands around it: the last bits of `gemm` (which has those of the exact model) for every line of the table."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import special_values

import mmabits
from mmabits.emulator.codecs import from_codes
from mmabits.emulator.engine.native import native_product
from mmabits.isa import Lowering

jax = pytest.importorskip("jax", reason="needs the jax extra")
if not hasattr(jax, "make_user_context"):
    pytest.skip("needs jax 0.10", allow_module_level=True)

from jax import lax  # noqa: E402

from mmabits.emulator.hooks.jax import handler, matrices  # noqa: E402

LINES = special_values.lines()
E4M3, E5M2, BF16 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.bfloat16


def engine_operand(values: Any, lowering: Lowering, promote: int) -> Any:
    """Operands of `gemm` as the engine takes them."""
    dtype = native_product(lowering, promote).operand
    return np.ascontiguousarray(values).view(dtype)


@pytest.mark.parametrize(("arch", "text"), LINES, ids=[f"{arch}-{text}" for arch, text in LINES])
def test_the_handler_gives_the_bits_of_gemm(arch: str, text: str) -> None:
    handler.load()
    lowering = special_values.lowered(arch, text)
    row, k = lowering.instruction, 3 * lowering.instruction.k - 3
    given = special_values.product(row, k)
    a, b = from_codes(given.a, row.a_type), from_codes(given.b.T, row.b_type)
    scales: dict[str, Any] = {}
    if row.scale_type is not None and given.scale_a is not None and given.scale_b is not None:
        scales = {"scale_a": from_codes(given.scale_a, row.scale_type), "scale_b": from_codes(given.scale_b.T, row.scale_type)}
    for promote in (0, 2 * row.k) if special_values.promotes(lowering) else (0,):
        want = mmabits.gemm(a, b, instruction=row, arch=arch, promote_every=promote or None, **scales)
        product = native_product(lowering, promote)
        assert product.accumulator == want.dtype
        site = handler.product_site(product, 1, *want.shape, k)
        operands = [engine_operand(each, lowering, promote)[None] for each in (a, b)]
        operands += [np.ascontiguousarray(each).view(np.uint8)[None] for each in scales.values()]

        def multiplied(*given: Any, site: handler.Site = site, want: Any = want) -> Any:
            d = handler.call(site, list(given), (1, *want.shape), want.dtype)
            return matrices.result(d, want.shape, want.dtype)

        with jax.enable_x64(True):
            got = np.asarray(jax.jit(multiplied)(*operands))
        assert got.dtype == want.dtype and got.tobytes() == want.tobytes(), promote


CODES = {
    np.float32: [0x7FFFFFFF, 0xFF800000, 0x80000000], np.float16: [0x7FFF, 0xFC00, 0x8000], BF16: [0x7FFF, 0xFF80, 0x8000],
    E4M3: [0x7F, 0xFE, 0x80], E5M2: [0x7F, 0xFB, 0x80],
}  # fmt: skip
"""NaN, -infinity (fp8 saturates) and -0."""


@pytest.mark.parametrize("to", CODES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("source", [np.float32, np.float16, np.float64])
def test_conversions_give_the_nan_of_a_gpu(source: Any, to: Any) -> None:
    """Whatever NaN the engine gives, of either sign, and whatever XLA makes of it."""
    nan, integer = {np.float16: (0x7FFF, np.uint16), np.float32: (0x7FFFFFFF, np.uint32), np.float64: (0x7FF8 << 48, np.uint64)}[source]
    values = np.array([0, -np.inf, -0.0] * 40, source)
    values[0::3] = integer(nan).view(source)
    with jax.enable_x64(True):
        got = np.asarray(jax.jit(lambda d: matrices.result(d, (120,), np.dtype(to)))(values))
    assert got.dtype == to and got.view(f"u{got.dtype.itemsize}").tolist() == CODES[to] * 40


@pytest.mark.parametrize(("operand", "out"), [(np.float16, np.float16), (BF16, BF16), (np.float16, BF16), (E4M3, BF16), (E4M3, E4M3)])
def test_a_nan_of_a_product_has_the_code_of_its_type(operand: Any, out: Any) -> None:
    a, b = np.ones((3, 32), operand), np.ones((32, 4), operand)
    a[1, 5] = np.nan
    with mmabits.emulate("sm_90a", frameworks=["jax"]):
        got = np.asarray(jax.jit(lambda a, b: lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=out))(a, b))
    assert got.dtype == out and set(got.view(f"u{got.dtype.itemsize}")[1].tolist()) == {CODES[out][0]}
    assert got[[0, 2]].astype(np.float32).tolist() == [[32.0] * 4] * 2
