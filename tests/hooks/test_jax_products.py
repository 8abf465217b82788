"""Which instruction a JAX product becomes under `emulate`, and that it has that instruction's bits: types, precision, results."""

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

from mmabits.emulator.hooks.jax import choices  # noqa: E402

Array = np.ndarray[Any, Any]
F16, BF16, F32, F64 = np.float16, ml_dtypes.bfloat16, np.float32, np.float64
E4M3, E5M2, E2M1 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float4_e2m1fn
FAMILY = {"sm_75": "mma.sync", "sm_80": "mma.sync", "sm_89": "mma.sync", "sm_90a": "wgmma", "sm_100a": "tcgen05.mma", "sm_120a": "mma.sync"}
PRESET = lax.DotAlgorithmPreset


def emulate(arch: str, **options: Any) -> Any:
    return mmabits.emulate(arch, frameworks=["jax"], **options)


def draw(*shape: int, seed: int, dtype: Any) -> Array:
    """Normal numbers with a few large ones; small integers for integer types."""
    rng = np.random.default_rng([seed, *shape])
    if np.dtype(dtype).kind in "iu":
        return rng.integers(-100 if np.dtype(dtype).kind == "i" else 0, 100, shape).astype(dtype)
    values = rng.standard_normal(shape) * np.where(rng.random(shape) < 0.05, 40.0, 1.0)
    return values.astype(np.float32).astype(dtype)


def special(*shape: int, seed: int, dtype: Any) -> Array:
    """The same with infinities and NaN where the type has them, and the largest values."""
    values = draw(*shape, seed=seed, dtype=dtype).astype(np.float32)
    rng = np.random.default_rng(seed)
    for each in (np.nan, np.inf, -np.inf, float(ml_dtypes.finfo(dtype).max)):
        values[rng.integers(shape[0]), rng.integers(shape[1])] = each
    with np.errstate(all="ignore"):
        return values.astype(dtype)


def gemm(arch: str, a: Array, b: Array, **options: Any) -> Array:
    found: Array = mmabits.gemm(a, b, instruction=FAMILY[arch], arch=arch, **options)
    return found


def same(got: Any, want: Array) -> bool:
    left = np.asarray(got)
    return left.dtype == want.dtype and left.shape == want.shape and left.tobytes() == np.ascontiguousarray(want).tobytes()


def dot(a: Any, b: Any, **options: Any) -> Any:
    return lax.dot_general(a, b, (((1,), (0,)), ((), ())), **options)


def run(arch: str, a: Array, b: Array, **options: Any) -> tuple[Any, Any]:
    """The product inside a block, jitted, and the report."""
    with emulate(arch) as session:
        return np.asarray(jax.jit(lambda a, b: dot(a, b, **options))(a, b)), session.report()


CASES = [
    ("sm_80", F16, F16, {}), ("sm_80", BF16, BF16, {}), ("sm_80", F32, F32, {}), ("sm_80", np.int8, np.int8, {}),
    ("sm_89", E4M3, E4M3, {}), ("sm_89", E4M3, E5M2, {}),
    ("sm_90a", F16, F16, {}), ("sm_90a", BF16, BF16, {}), ("sm_90a", F32, F32, {}), ("sm_90a", np.int8, np.int8, {}),
    ("sm_90a", E4M3, E4M3, {}), ("sm_90a", E5M2, E4M3, {}),
    ("sm_100a", F16, F16, {}), ("sm_100a", F32, F32, {}), ("sm_100a", E4M3, E5M2, {}),
    ("sm_120a", BF16, BF16, {}), ("sm_120a", E4M3, E4M3, {}),
    ("sm_75", F16, F16, {}),
]  # fmt: skip


@pytest.mark.parametrize("kind", [draw, special])
@pytest.mark.parametrize(("arch", "a_type", "b_type", "options"), CASES)
def test_bits_are_those_of_gemm(kind: Any, arch: str, a_type: Any, b_type: Any, options: dict[str, Any]) -> None:
    if kind is special and np.dtype(a_type).kind == "i":
        kind = draw
    a, b = kind(18, 100, seed=1, dtype=a_type), kind(100, 37, seed=2, dtype=b_type)
    want = gemm(arch, a, b)
    got, report = run(arch, a, b, preferred_element_type=want.dtype, **options)
    (line,) = report.emulated
    assert same(got, want) and not report.skipped
    assert line.shape == "18 x 37 x 100" and line.instruction.family.value.startswith(FAMILY[arch].split(".")[0])


def test_f64() -> None:
    """A chain of fused multiply-adds; K is filled up with zeros to whole instructions, which turn -0 to +0."""
    a, b = draw(9, 11, seed=1, dtype=F32).astype(F64), draw(11, 10, seed=2, dtype=F32).astype(F64) / 3
    a[0], b[:, 0], a[1, 3] = -0.0, 1.0, np.nan
    with jax.enable_x64(True):
        got, report = run("sm_80", a, b)
        assert same(got, gemm("sm_80", a, b)) and report.emulated[0].instruction.ptx.endswith("f64.f64.f64.f64")
        _, report = run("sm_75", a, b)
    assert [line.reason for line in report.skipped] == ["sm_75 has no f64 tensor cores; such products run on CUDA cores"]


# ---------------------------------------------------------------------------------------------------- results and accumulators


@pytest.mark.parametrize("out", [F32, F16, BF16])
@pytest.mark.parametrize("operand", [F16, BF16, E4M3])
def test_results_are_rounded_once_from_an_f32_accumulator(operand: Any, out: Any) -> None:
    """f16 results do not mean f16 accumulators. The result is rounded even where the program widens it again at once."""
    a, b = draw(16, 96, seed=3, dtype=operand), draw(96, 24, seed=4, dtype=operand)
    with np.errstate(over="ignore"):
        want = gemm("sm_90a", a, b).astype(out)
    with emulate("sm_90a"):
        got = jax.jit(lambda a, b: dot(a, b, preferred_element_type=out))(a, b)
        widened = jax.jit(lambda a, b: dot(a, b, preferred_element_type=out).astype(F32) * 1)(a, b)
    assert same(got, want) and same(widened, want.astype(F32))


@pytest.mark.parametrize("operand", [F16, BF16])
def test_without_a_preferred_type_results_have_the_operands(operand: Any) -> None:
    a, b = draw(16, 96, seed=3, dtype=operand), draw(96, 24, seed=4, dtype=operand)
    got, _ = run("sm_80", a, b)
    assert same(got, gemm("sm_80", a, b).astype(operand))


def test_fp8_results_saturate() -> None:
    """As cuBLASLt's do: infinity and what is too large become the largest value, NaN stays."""
    a, b = np.full((2, 64), 100, E4M3), np.full((64, 3), 100, E4M3)
    b[0, 1] = np.nan
    got, _ = run("sm_90a", a, b, preferred_element_type=E4M3)
    assert got.view(np.uint8).tolist() == [[0x7E, 0x7F, 0x7E]] * 2
    got, _ = run("sm_90a", a, b, preferred_element_type=E5M2)
    assert got.view(np.uint8).tolist()[0][::2] == [0x7B, 0x7B]
    assert np.isnan(got[0, 1].astype(F32))


def test_int8() -> None:
    """Exact, the low bits kept: into int32, and into int8 where JAX is asked for nothing else."""
    a, b = draw(16, 200, seed=1, dtype=np.int8), draw(200, 8, seed=2, dtype=np.int8)
    exact = a.astype(np.int32) @ b.astype(np.int32)
    got, report = run("sm_90a", a, b, preferred_element_type=np.int32)
    assert same(got, exact) and report.emulated[0].instruction.ptx.endswith(".s32.s8.s8")
    assert same(run("sm_90a", a, b)[0], exact.astype(np.int8))


# ----------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(("precision", "instruction"), [(None, "tf32"), ("default", "tf32"), ("high", "tf32"), ("tensorfloat32", "tf32"),
                                                        ("highest", ""), ("float32", ""), (("default", "highest"), "")])  # fmt: skip
def test_f32_is_tf32_unless_the_precision_is_highest(precision: Any, instruction: str) -> None:
    """JAX documents TF32 as the default on recent GPUs; XLA takes it for DEFAULT and HIGH."""
    a, b = draw(16, 40, seed=5, dtype=F32), draw(40, 8, seed=6, dtype=F32)
    got, report = run("sm_80", a, b, precision=precision)
    if instruction:
        assert same(got, gemm("sm_80", a, b)) and "tf32" in report.emulated[0].note
    else:
        assert np.allclose(got, a @ b, rtol=1e-6, atol=1e-4) and not same(got, gemm("sm_80", a, b))
        assert [(line.reason, line.count) for line in report.skipped] == [("f32 at precision HIGHEST runs on CUDA cores", 1)]


def test_default_matmul_precision() -> None:
    a, b = draw(16, 40, seed=5, dtype=F32), draw(40, 8, seed=6, dtype=F32)
    function = jax.jit(jnp.dot)
    with emulate("sm_80") as session:
        assert same(function(a, b), gemm("sm_80", a, b))
        with jax.default_matmul_precision("highest"):
            function(a, b).block_until_ready()
        with jax.default_matmul_precision("BF16_BF16_F32"):
            assert same(function(a, b), gemm("sm_80", a.astype(BF16), b.astype(BF16)))
        assert len(session.report().emulated) == 2 and len(session.report().skipped) == 1


PROMOTED = [None, "high", "highest", PRESET.ANY_F8_ANY_F8_F32, PRESET.ANY_F8_ANY_F8_F32_FAST_ACCUM,
            lax.DotAlgorithm(E4M3, E4M3, F32), lax.DotAlgorithm(E4M3, E4M3, F32, allow_imprecise_accumulation=True)]  # fmt: skip


@pytest.mark.parametrize("arch", ["sm_89", "sm_90a", "sm_100a", "sm_120a"])
@pytest.mark.parametrize("precision", PROMOTED, ids=str)
def test_fp8_is_promoted_unless_accumulated_fast(arch: str, precision: Any) -> None:
    """XLA asks for fast accumulation at precision DEFAULT; after Hopper there is none to ask for."""
    if not isinstance(precision, (PRESET, lax.DotAlgorithm)) and arch in ("sm_89", "sm_120a"):
        precision = precision or "default"
    a, b = draw(16, 320, seed=7, dtype=E4M3), draw(320, 8, seed=8, dtype=E4M3)
    is_fast = precision in (None, "default", PRESET.ANY_F8_ANY_F8_F32_FAST_ACCUM) or getattr(
        precision, "allow_imprecise_accumulation", False
    )
    promotes = not is_fast and arch in ("sm_89", "sm_90a")
    got, report = run(arch, a, b, precision=precision, preferred_element_type=F32)
    assert same(got, gemm(arch, a, b, promote_every=128 if promotes else None))
    assert ("promotion every 128 elements of K is assumed" in report.emulated[0].note) == promotes
    if promotes:
        assert not same(got, gemm(arch, a, b))
    a[3, 200], a[4, 5], b[130, 2] = np.nan, 448, 448
    assert same(
        run(arch, a, b, precision=precision, preferred_element_type=F32)[0], gemm(arch, a, b, promote_every=128 if promotes else None)
    )


@pytest.mark.parametrize(("preset", "operand", "options"), [
    ("F16_F16_F16", F16, {"c": np.zeros((16, 8), F16)}), ("F16_F16_F32", F16, {}), ("BF16_BF16_F32", BF16, {}), ("TF32_TF32_F32", F32, {}),
])  # fmt: skip
@pytest.mark.parametrize("given", [F16, F32])
def test_algorithms(preset: str, operand: Any, options: dict[str, Any], given: Any) -> None:
    """Operands are converted to the algorithm's type; f16 accumulators where it asks for them, and nowhere else."""
    a, b = draw(16, 64, seed=9, dtype=given), draw(64, 8, seed=10, dtype=given)
    got, report = run("sm_90a", a, b, precision=preset, preferred_element_type=F32)
    want = gemm("sm_90a", a.astype(operand), b.astype(operand), **options)
    assert same(got, want.astype(F32)) and report.emulated[0].instruction.d_type.name == ("f16" if options else "f32")


def test_an_algorithm_by_its_parts() -> None:
    a, b = draw(16, 64, seed=9, dtype=F16), draw(64, 8, seed=10, dtype=F16)
    got, report = run("sm_90a", a, b, precision=lax.DotAlgorithm(F16, F16, F16))
    assert same(got, gemm("sm_90a", a, b, c=np.zeros((16, 8), F16))) and report.emulated[0].instruction.d_type.name == "f16"


@pytest.mark.parametrize("preset", ["BF16_BF16_F32_X3", "BF16_BF16_F32_X6", "BF16_BF16_F32_X9", "TF32_TF32_F32_X3", "BF16_BF16_BF16"])
def test_algorithms_that_cannot_be_emulated_are_refused(preset: str) -> None:
    a, b = draw(16, 16, seed=9, dtype=F32), draw(16, 8, seed=10, dtype=F32)
    with pytest.raises(EmulationError, match=rf"dot_general of f32\[16,16\] and f32\[16,8\] cannot be emulated for sm_90a: {preset}: "):
        run("sm_90a", a, b, precision=preset)


def test_an_algorithm_on_cuda_cores_is_reported() -> None:
    a, b = draw(16, 16, seed=9, dtype=F32), draw(16, 8, seed=10, dtype=F32)
    assert [line.reason for line in run("sm_90a", a, b, precision="F32_F32_F32")[1].skipped] == ["F32_F32_F32 runs on CUDA cores"]


def test_fp8_algorithms_take_fp8() -> None:
    a, b = draw(16, 16, seed=9, dtype=F32), draw(16, 8, seed=10, dtype=F32)
    with pytest.raises(EmulationError, match="ANY_F8_ANY_F8_F32 takes float8_e4m3fn and float8_e5m2, got float32 and float32"):
        run("sm_90a", a, b, precision="ANY_F8_ANY_F8_F32")


# ------------------------------------------------------------------------------------------------- what falls to another type


@pytest.mark.parametrize(("arch", "a_type", "b_type", "reason"), [("sm_90a", E5M2, E5M2, "where both operands are e5m2"),
                                                                  ("sm_80", E4M3, E4M3, "before sm_89")])  # fmt: skip
def test_fp8_that_cublaslt_does_not_take_is_multiplied_as_f16(arch: str, a_type: Any, b_type: Any, reason: str) -> None:
    a, b = draw(16, 64, seed=11, dtype=a_type), draw(64, 8, seed=12, dtype=b_type)
    got, report = run(arch, a, b, preferred_element_type=F32)
    assert same(got, gemm(arch, a.astype(F16), b.astype(F16)))
    assert reason in report.emulated[0].note and report.emulated[0].instruction.a_type.name == "f16"


def test_operands_of_two_types_are_converted_to_the_result() -> None:
    """But for fp8: JAX converts them before XLA sees them."""
    a, b = draw(16, 40, seed=13, dtype=BF16), draw(40, 8, seed=14, dtype=F32)
    got, report = run("sm_80", a, b, preferred_element_type=F32)
    assert same(got, gemm("sm_80", a.astype(F32), b)) and report.emulated[0].instruction.a_type.name == "tf32"


@pytest.mark.parametrize(("arch", "dtype", "out", "reason"), [
    ("sm_75", F32, F32, "sm_75 has no tf32 tensor cores"), ("sm_75", BF16, F32, "sm_75 has no bf16 tensor cores"),
    ("sm_90a", np.uint8, np.int32, "XLA gives cuBLASLt no products of uint8; integer sums are exact"),
    ("sm_90a", np.int32, np.int32, "XLA gives cuBLASLt no products of int32"),
    ("sm_90a", np.int8, F32, "int8 into float32 runs on CUDA cores"),
    ("sm_90a", np.complex64, np.complex64, "complex products are not emulated"),
])  # fmt: skip
def test_what_runs_without_tensor_cores_is_reported(arch: str, dtype: Any, out: Any, reason: str) -> None:
    a, b = draw(4, 8, seed=15, dtype=dtype), draw(8, 4, seed=16, dtype=dtype)
    got, report = run(arch, a, b, preferred_element_type=out)
    assert np.allclose(got.astype(np.complex64), a.astype(np.complex64) @ b.astype(np.complex64), rtol=1e-4)
    assert not report.emulated and [line.reason.startswith(reason) for line in report.skipped] == [True]


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2fnuz, ml_dtypes.float8_e4m3b11fnuz])
def test_types_without_tensor_cores_are_refused(dtype: Any) -> None:
    a = draw(4, 4, seed=17, dtype=F32).astype(dtype)
    with pytest.raises(EmulationError, match=f"how XLA multiplies {np.dtype(dtype)} on a GPU is not modelled"):
        run("sm_90a", a, a, preferred_element_type=F32)


def test_empty_products() -> None:
    for a, b in (((0, 8), (8, 4)), ((4, 0), (0, 4)), ((4, 8), (8, 0))):
        got, report = run("sm_90a", np.zeros(a, E4M3), np.zeros(b, E4M3), preferred_element_type=F32)
        assert got.shape == (a[0], b[1]) and not got.any() and not report.emulated


def test_shapes_that_are_not_known_are_those_of_exported_programs() -> None:
    from jax import export

    (rows,) = export.symbolic_shape("rows")
    with emulate("sm_90a"), pytest.raises(EmulationError, match=r"jax.export makes programs for other processes"):
        export.export(jax.jit(lambda a, b: dot(a, b)))(jax.ShapeDtypeStruct((rows, 8), F16), jax.ShapeDtypeStruct((8, 4), F16))


def test_what_if_architectures_promote_by_themselves() -> None:
    mmabits.what_if("jax-hopper-64", base="sm_90a", rows={"wgmma.f8.f32": {"fraction_bits": 20}}, promote_every=64)
    a, b = draw(16, 320, seed=7, dtype=E4M3), draw(320, 8, seed=8, dtype=E4M3)
    got, _ = run("jax-hopper-64", a, b, preferred_element_type=F32)
    assert same(got, mmabits.gemm(a, b, instruction="wgmma", arch="jax-hopper-64")) and not same(got, gemm("sm_90a", a, b))


def test_every_preset_has_a_row() -> None:
    """A preset that JAX adds must be looked at."""
    assert set(choices.ALGORITHMS) == {preset.name for preset in PRESET} - {"DEFAULT"}
