"""`emulate(..., library=...)`: JAX's products by a library's schedule."""

import json
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

jax = pytest.importorskip("jax")

from jax import numpy as jnp  # noqa: E402

import mmabits  # noqa: E402
from mmabits.emulator.schedules import Chains, Merge, PartSums, Schedule  # noqa: E402
from mmabits.isa import EmulationError, InsufficientEvidence, OperandError  # noqa: E402

TYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "e4m3": ml_dtypes.float8_e4m3fn}
SPLIT = Schedule(sums=Chains(), slices=3, slice_k=32)


def operands(m, n, k, form="f16", size=1.0):
    rng = np.random.default_rng([m, n, k])
    return (rng.standard_normal((m, k)) * size).astype(TYPES[form]), (rng.standard_normal((k, n)) * size).astype(TYPES[form])


def product(a, b, out=None):
    numbers = (((1,), (0,)), ((), ()))
    return jax.jit(lambda x, y: jax.lax.dot_general(x, y, numbers, preferred_element_type=out or x.dtype))(a, b).block_until_ready()


def same(got, want):
    return np.array_equal(np.asarray(got).view(f"u{want.itemsize}"), want.view(f"u{want.itemsize}"))


def note(session):
    (line,) = session.report().emulated
    return line.note


@pytest.mark.parametrize("form", ["f16", "bf16"])
@pytest.mark.parametrize("size", [1.0, "subnormal"])
@pytest.mark.parametrize(
    "schedule",
    [
        SPLIT,
        Schedule(sums=Chains(group=8, lead_block=32)),
        Schedule(sums=Chains(group=8, lead_block=32), slices=2, slice_k=56),
        Schedule(sums=Chains(promote_every=32)),
        Schedule(sums=Chains(group=16, lead_block=64, instruction="mma.sync.m16n8k16")),
        replace(SPLIT, merge=Merge.PARTS, merge_type="f16"),
        replace(SPLIT, merge=Merge.TOTAL, merge_type="bf16"),
    ],
    ids=lambda schedule: schedule.words,
)
def test_a_schedule_of_the_user_is_followed(form, size, schedule):
    """XLA's own sums on the CPU take subnormal numbers for zero; those of slices do not."""
    a, b = operands(5, 8, 101, form, 1.0 if size == 1.0 else {"f16": 2.0**-12, "bf16": 2.0**-70}[form])
    for out in (form, "f32"):
        want = mmabits.gemm(a, b, arch="sm_90a", schedule=replace(schedule, output=None if out == "f32" else out))
        with mmabits.emulate("sm_90a", frameworks=["jax"], library=schedule) as session:
            got = product(a, b, np.float32 if out == "f32" else None)
        assert same(got, want)
    assert note(session).startswith("plan given: ") and session.report().emulated[0].shape == "5 x 8 x 101"


def test_signs_of_zero_and_infinities_of_slices():
    a = np.array([[0.0] * 96, [np.inf] + [0.0] * 95, [1.0] + [0.0] * 31 + [-1.0] + [0.0] * 63], np.float16)
    b = np.full((96, 8), -1.0, np.float16)
    b[0, 0], b[32, 1] = np.inf, -np.inf
    for schedule in (SPLIT, replace(SPLIT, merge=Merge.PARTS, merge_type="f16")):
        want = mmabits.gemm(a, b, arch="sm_100a", schedule=schedule)
        with mmabits.emulate("sm_100a", frameworks=["jax"], library=schedule):
            assert same(product(a, b, np.float32), want)


def test_the_default_says_that_xla_chooses_and_fills_with_zeros():
    """XLA fills up to multiples of 8 first: what is left of K comes last, not first."""
    a, b = operands(5, 7, 301)
    want = mmabits.gemm(a, b, arch="sm_90a", schedule=Schedule(sums=Chains(), output="f16"))
    with mmabits.emulate("sm_90a", frameworks=["jax"]) as session:
        assert same(product(a, b), want)
    text = note(session)
    assert "which it takes is not known" in text and "as 8 x 8 x 304" in text and "choice inferred" in text
    with mmabits.emulate("sm_90a", frameworks=["jax"], library="chain") as session:
        assert same(product(a, b), want)
    assert "as library='chain' asks" in note(session)
    with mmabits.emulate("sm_80", frameworks=["jax"]) as session:
        product(a, b)
    assert "was not measured" in note(session)


def test_programs_of_one_library_are_no_others():
    a, b = operands(32, 32, 96)
    function = jax.jit(lambda x, y: jax.lax.dot(x, y, preferred_element_type=np.float32))
    results = []
    for library in (None, SPLIT, "chain", replace(SPLIT, slice_k=48, slices=2)):
        with mmabits.emulate("sm_90a", frameworks=["jax"], library=library):
            results.append(np.asarray(function(a, b)).tobytes())
    assert results[0] == results[2] and len(set(results)) == 3


def test_recorded_choices_and_required_evidence(tmp_path):
    path = tmp_path / "choices.json"
    head = {"format": "mmabits-choices-1", "arch": "sm_90a", "library": "cublaslt-13.1", "gpu": "H100", "workspace": 33554432}
    config = [66, None, 3, 0, None, 0, 35, None, None]
    path.write_text(json.dumps({**head, "answers": [{"m": 8, "n": 8, "k": 1000, "types": "bf16", "config": config}]}))
    a, b = operands(5, 8, 999, "bf16")
    wide = np.pad(a, ((0, 3), (0, 1))), np.pad(b, ((0, 1), (0, 0)))
    want = mmabits.gemm(*wide, arch="sm_90a", schedule=Schedule.cublaslt(config, 8, 8, 1000, "bf16", arch="sm_90a"))[:5]
    with mmabits.emulate("sm_90a", frameworks=["jax"], library=path) as session:
        assert same(product(a, b), want)
    assert "asked on H100" in note(session)
    with mmabits.emulate("sm_90a", frameworks=["jax"], library=path, require="published"), pytest.raises(InsufficientEvidence):
        product(a, b)  # that XLA takes cuBLASLt at all is inferred


def test_the_lost_tail_is_lost_when_asked(tmp_path):
    """One row is one of eight to cuBLASLt: XLA fills it up."""
    path = tmp_path / "choices.json"
    head = {"format": "mmabits-choices-1", "arch": "sm_90a", "library": "cublaslt-13.1", "gpu": "H100", "workspace": 33554432}
    config = [66, None, 9, 0, None, 0, 35, None, None]
    path.write_text(json.dumps({**head, "answers": [{"m": 8, "n": 8, "k": 11528, "types": ["f16", "f16", "f32"], "config": config}]}))
    a, b = np.ones((1, 11528), np.float16), np.ones((11528, 8), np.float16)
    for bugs, total, words in ((False, 11528.0, "summed here: bugs=True"), (True, 11520.0, "left out here too")):
        with mmabits.emulate("sm_90a", frameworks=["jax"], library=path, bugs=bugs) as session:
            assert np.asarray(product(a, b, np.float32)).tolist() == [[total] * 8]
        assert words in note(session)


def test_fp8_is_promoted_as_before():
    a, b = operands(16, 16, 384, "e4m3", 8.0)
    for fast, every in ((True, None), (False, 128)):
        want = mmabits.gemm(a, b, instruction="wgmma", arch="sm_90a", promote_every=every)
        precision = "default" if fast else "highest"
        with mmabits.emulate("sm_90a", frameworks=["jax"]):
            got = jax.jit(lambda x, y, p=precision: jax.lax.dot(x, y, precision=p, preferred_element_type=np.float32))(a, b)
            assert same(got, want)


def test_grouped_products_are_one_chain():
    """Of JAX's own expansion: K becomes pairs of an element and a group."""
    a, b = operands(6, 8, 45)
    wide = np.zeros((6, 45, 2), np.float16)
    wide[:4, :, 0], wide[4:, :, 1] = a[:4], a[4:]
    want = mmabits.gemm(wide.reshape(6, 90), np.stack([b, -b], 1).reshape(90, 8), instruction="wgmma", arch="sm_90a")
    for library in (None, SPLIT, "chain"):
        with mmabits.emulate("sm_90a", frameworks=["jax"], library=library) as session:
            got = jax.lax.ragged_dot(a, np.stack([b, -b]), np.array([4, 2], np.int32), preferred_element_type=np.float32)
            assert same(got, want)
        text = note(session)
        assert ("no schedule is known" in text) == (library != "chain") and "pairs of an element and a group" in text


def test_what_is_not_followed():
    a, b = operands(4, 8, 64)
    cores = Schedule(sums=PartSums(parts=2))
    with mmabits.emulate("sm_90a", frameworks=["jax"], library=cores), pytest.raises(EmulationError, match="CUDA cores are not followed"):
        product(a, b)
    planned = Schedule.cublaslt([66, None, 1, 0, None, 0, 35, None, None], 4, 8, 72, "f16", arch="sm_90a")
    with mmabits.emulate("sm_90a", frameworks=["jax"], library=planned), pytest.raises(OperandError, match="planned for M, N and K"):
        product(a, b)
    wide = Schedule(sums=Chains(group=32, lead_block=64))
    with mmabits.emulate("sm_90a", frameworks=["jax"], library=wide), pytest.raises(OperandError, match="32 elements of K"):
        product(a, b)
    with mmabits.emulate("sm_90a", frameworks=["jax"], library="cublaslt-13.1") as session:
        product(a.astype(np.float32), b.astype(np.float32))
    assert "library= is not followed here" in note(session)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_products_that_xla_makes_fp8_of_are_named(arch: str) -> None:
    """Both operands widened from FP8, scaled by one number or not, and rearranged; not what XLA's rewriter leaves alone."""
    f8, bf16 = jnp.float8_e4m3fn, jnp.bfloat16
    a, b, scale, row = jnp.ones((16, 32), f8), jnp.ones((16, 32), f8), jnp.float32(2), jnp.ones((1, 32), bf16)

    def scaled(a: Any, b: Any, scale: Any) -> Any:
        left = a.astype(bf16) * scale.astype(bf16)
        return jnp.dot(left, (b.astype(bf16) / scale.astype(bf16)).T)

    rewritten = jax.jit(scaled), jax.jit(lambda a, b, _: a.astype(jnp.float16) @ b.T.astype(jnp.float16))
    left = (
        jax.jit(lambda a, b, _: a.astype(bf16) @ (b.astype(bf16) * row).T),
        jax.jit(lambda a, b, _: a.astype(bf16) @ (b.astype(bf16) + 1).T),
        jax.jit(lambda a, b, _: a.astype(jnp.float8_e5m2).astype(bf16) @ b.astype(jnp.float8_e5m2).astype(bf16).T),
        jax.jit(lambda a, b, _: jnp.dot(a, b.T, preferred_element_type=jnp.float32)),
    )
    for functions, is_named in ((rewritten, arch == "sm_90a"), (left, False)):
        for function in functions:
            with mmabits.emulate(arch, frameworks=["jax"]) as session:
                jax.block_until_ready(function(a, b, scale))
            (line,) = session.report().emulated
            assert ("XLA makes an FP8 product" in line.note) == is_named
