"""JAX arrays in, JAX arrays out, with the bits of the NumPy path."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import operands
import pytest
from arrays import same_bits

import mmabits
from mmabits.emulator.codecs import from_codes
from mmabits.isa import OperandTypeError, parse

jax = pytest.importorskip("jax", reason="needs the jax extra")

Array = np.ndarray[Any, Any]
PRODUCTS = (
    ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e5m2"),
    ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16"),
    ("sm_80", "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"),
    ("sm_80", "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"),
    ("sm_80", "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32"),
    ("sm_80", "mma.sync.aligned.m16n8k64.row.col.s32.s4.u4.s32"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n128k32.f32.e5m2.e4m3.ue8m0"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n128k64.f32.e2m1.e2m1.ue4m3"),
)
IDS = [text for _, text in PRODUCTS]


def draw(text: str, *, kind: str = "raw_finite") -> dict[str, Array]:
    """Operands of a product of 20 x 12, K = 64, by argument name."""
    row = parse(text)
    rng = operands.generator("interop", text)
    types = {"a": row.a_type.name, "b": row.b_type.name, "c": row.c_type.name}
    shapes = {"a": (20, 64), "b": (64, 12), "c": (20, 12)}
    if row.scale_type is not None:
        types |= {"scale_a": row.scale_type.name, "scale_b": row.scale_type.name}
        shapes |= {"scale_a": (20, 64 // (row.block or 1)), "scale_b": (64 // (row.block or 1), 12)}
    return {name: from_codes(operands.draw(kind, types[name], shapes[name], rng), types[name]) for name in types}


@pytest.mark.parametrize(("arch", "text"), PRODUCTS, ids=IDS)
def test_jax_arrays_give_the_bits_of_arrays(arch: str, text: str) -> None:
    arrays = draw(text)
    want = mmabits.gemm(**arrays, instruction=text, arch=arch)
    got = mmabits.gemm(**{name: jax.numpy.asarray(array) for name, array in arrays.items()}, instruction=text, arch=arch)
    assert isinstance(got, jax.Array) and same_bits(got, want)


def test_f64_with_x64() -> None:
    text = "mma.sync.aligned.m8n8k4.row.col.rn.f64.f64.f64.f64"
    arrays = draw(text, kind="plain")
    want = mmabits.gemm(**arrays, instruction=text, arch="sm_80")
    with jax.enable_x64(True):
        got = mmabits.gemm(**{name: jax.numpy.asarray(array) for name, array in arrays.items()}, instruction=text, arch="sm_80")
    assert isinstance(got, jax.Array) and same_bits(got, want)


def test_mixed_kinds_give_the_kind_of_a() -> None:
    arch, text = PRODUCTS[6]
    arrays = draw(text)
    want = mmabits.gemm(**arrays, instruction=text, arch=arch)
    given = {name: jax.numpy.asarray(array) for name, array in arrays.items()}
    for from_jax in (("a",), ("a", "c", "scale_b"), ("b",), ("c", "scale_a"), ("b", "scale_a", "scale_b")):
        got = mmabits.gemm(**(arrays | {name: given[name] for name in from_jax}), instruction=text, arch=arch)
        assert isinstance(got, jax.Array) == ("a" in from_jax), from_jax
        assert np.asarray(got).tobytes() == want.tobytes(), from_jax


def test_transposed_arrays_and_batches() -> None:
    arch, text = PRODUCTS[0]
    arrays = draw(text)
    want = mmabits.gemm(np.stack([arrays["a"], arrays["a"][::-1]]), arrays["b"], instruction=text, arch=arch)
    a = jax.numpy.asarray(np.stack([arrays["a"], arrays["a"][::-1]]))
    b = jax.numpy.asarray(np.ascontiguousarray(arrays["b"].T)).T
    assert same_bits(mmabits.gemm(a, b, instruction=text, arch=arch), want)


def test_one_instruction() -> None:
    text = "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32"
    rng = operands.generator("interop mma")
    a, b = (from_codes(operands.draw("plain", "e4m3", shape, rng), "e4m3") for shape in ((3, 16, 32), (32, 8)))
    assert same_bits(mmabits.mma(text, jax.numpy.asarray(a), jax.numpy.asarray(b), arch="sm_89"), mmabits.mma(text, a, b, arch="sm_89"))


def test_arrays_are_left_alone() -> None:
    arch, text = PRODUCTS[0]
    arrays = draw(text)
    given = {name: jax.numpy.asarray(array) for name, array in arrays.items()}
    mmabits.gemm(**given, instruction=text, arch=arch)
    assert all(same_bits(array, arrays[name]) for name, array in given.items())


def test_traced_arrays_are_refused_with_the_way_out() -> None:
    a, b = np.zeros((16, 32), ml_dtypes.float8_e4m3fn), np.zeros((32, 8), ml_dtypes.float8_e4m3fn)
    for trace in (jax.jit, jax.vmap):
        with pytest.raises(OperandTypeError, match=r"^a is traced by JAX, .*: use mmabits\.emulate, or jax\.pure_callback"):
            trace(lambda a: mmabits.gemm(a, b, instruction="mma.sync", arch="sm_89"))(np.stack([a, a]) if trace is jax.vmap else a)


def test_other_types_are_refused() -> None:
    a = jax.numpy.zeros((16, 32), ml_dtypes.float8_e4m3fn)
    with pytest.raises(OperandTypeError, match="b has dtype bool; allowed are"):
        mmabits.gemm(a, jax.numpy.zeros((32, 8), bool), instruction="mma.sync", arch="sm_89")


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e2m1", "ue8m0", "bf16"])
def test_codecs_take_arrays_of_the_formats_own_type(name: str) -> None:
    codes = operands.draw("raw", name, (64,), operands.generator("jax codecs", name))
    given = jax.numpy.asarray(from_codes(codes, name))
    np.testing.assert_array_equal(mmabits.decode(given, name), np.asarray(given).astype(np.float64))
    if name == "ue8m0":
        assert mmabits.layouts.swizzle_scales(given.reshape(16, 4)).view(np.uint8)[16] == codes.view(np.uint8)[4]


def test_arrays_that_are_gone_are_refused() -> None:
    a, b = jax.numpy.ones((16, 32), np.float32), np.ones((32, 8), np.float32)
    a.delete()
    for call in (lambda: mmabits.gemm(a, b, instruction="mma.sync", arch="sm_80"), lambda: mmabits.encode(a, "e4m3")):
        with pytest.raises(
            OperandTypeError, match="must be a plain array, got one that JAX makes no NumPy array of: Array has been deleted"
        ):
            call()
    with pytest.raises(OperandTypeError, match="got one that JAX makes no NumPy array of: JAX array with PRNGKey"):
        mmabits.decode(jax.random.key(0), "f32")


def test_f64_results_are_not_rounded_to_f32_in_silence() -> None:
    text = "mma.sync.aligned.m8n8k4.row.col.rn.f64.f64.f64.f64"
    arrays = draw(text, kind="plain")
    with jax.enable_x64(True):
        a = jax.numpy.asarray(arrays["a"])
    with pytest.raises(OperandTypeError, match="the result is float64, which JAX holds with jax_enable_x64 only"):
        mmabits.gemm(a, arrays["b"], instruction=text, arch="sm_80")
