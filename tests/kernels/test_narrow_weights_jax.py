"""W8A16, W4A8 with FP8 activations and FP8 in tiles in JAX against their compositions, and the fused multiply-add they are built on."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from arrays import same_bits

jax = pytest.importorskip("jax")

from mmabits.emulator.engine.fma import fma as exact_fma  # noqa: E402
from mmabits.emulator.hooks.session import emulate  # noqa: E402
from mmabits.isa.errors import OperandError, OperandTypeError  # noqa: E402
from mmabits.kernels.jax import narrow_weights  # noqa: E402
from mmabits.kernels.jax.fp8_blockwise import fp8_blockwise_matmul  # noqa: E402
from mmabits.kernels.jax.fused import fma  # noqa: E402
from mmabits.kernels.schemes import fp8, fp8_blockwise, w4a8_fp8, w8a16  # noqa: E402

SEED = 20260401
M, N, K = 24, 40, 128
F32, E4M3 = np.float32, ml_dtypes.float8_e4m3fn


def normal(*shape: int, seed: int = SEED) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-6, 6, shape)).astype(F32)


@pytest.mark.parametrize("jit", [pytest.param(False, marks=pytest.mark.slow), True])
def test_fma_is_rounded_once(jit: bool) -> None:
    """Random bits, and sums that nearly cancel or lie beside ties."""
    rng = np.random.default_rng(SEED)
    size = 50_000
    a = (rng.standard_normal(size) * 2.0 ** rng.integers(-20, 20, size)).astype(F32)
    b = (rng.standard_normal(size) * 2.0 ** rng.integers(-12, 12, size)).astype(F32)
    b[::2] = b[::2].astype(np.float16).astype(F32)
    c = (rng.standard_normal(size) * 2.0 ** rng.integers(-30, 30, size)).astype(F32)
    near = (-(a.astype(np.float64) * b)).astype(F32)
    step = np.where(near == 0, F32(0), np.spacing(np.abs(near)) * rng.integers(-2, 3, size).astype(F32))  # XLA may flush subnormals
    halves = (2.0 ** rng.integers(-3, 4, size)).astype(F32)
    tied = (rng.integers(2**22, 2**23, size) * 2 + 1).astype(F32) * halves
    small, wide = np.full(size, F32(1) + F32(2) ** -23), (rng.integers(2**23, 2**24, size) | 1).astype(F32)
    tiny = np.where(rng.integers(0, 2, size) == 1, F32(2) ** -12, -(F32(2) ** -12)).astype(F32)
    zeros = np.zeros(size, F32)
    run = jax.jit(fma) if jit else fma
    for x, y, z in (
        (a, b, c),
        (a, b, near),
        (a, b, near + step),
        (small, halves / 2, tied),
        (small, tiny, tied),
        (wide, wide[::-1].copy(), -(wide.astype(np.float64) * wide[::-1]).astype(F32)),
        (wide, wide[::-1].copy(), tied),
        (wide, small, tied),
        (wide * F32(2) ** -30, small * F32(2) ** -9, tied),
        (a, b, zeros),
        (zeros, b, c),
    ):
        assert same_bits(run(x, y, z), exact_fma(x, y, z))
    assert np.isnan(np.asarray(run(np.array([np.nan], F32), F32(2), F32(1)))).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("kind", ["int8", "e4m3"])
@pytest.mark.parametrize("group", [0, 32])
def test_w8a16(kind: str, group: int, dtype: type) -> None:
    x, plain = normal(M, K).astype(dtype), normal(K, N, seed=1)
    plain[:, 3], plain[:32, 4] = 0, plain[:32, 4] * F32(2.0**-20)  # scales below the normal numbers of f16
    w = w8a16.quantize_w8(plain, kind=kind, group=group)
    run = jax.jit(lambda *operands: narrow_weights.w8a16_matmul(*operands, kind=kind, grouped=bool(group)))
    for arch in ("sm_80", "sm_100a"):
        with emulate(arch, frameworks=["jax"]):
            assert same_bits(run(x, w.pack(), w.scales), w8a16.w8a16_matmul(x, w, arch=arch))


@pytest.mark.parametrize("group", [0, 32])
def test_w4a8_fp8(group: int) -> None:
    x, w = fp8.quantize(normal(M, K), per="row"), w4a8_fp8.quantize_w4a8_fp8(normal(K, N, seed=1), group=group)
    run = jax.jit(lambda *operands: narrow_weights.w4a8_fp8_matmul(*operands, grouped=bool(group)))
    for arch in ("sm_89", "sm_100a"):
        with emulate(arch, frameworks=["jax"]):
            got = run(x.elements, x.scales.ravel(), w.pack(), w.kernel_scales)
        assert same_bits(got, w4a8_fp8.w4a8_fp8_matmul(x, w, arch=arch))


@pytest.mark.parametrize("recipe", ["divide", "power-of-two"])
def test_fp8_tiles(recipe: str) -> None:
    x = fp8_blockwise.quantize_activations(normal(M, 384), recipe=recipe)
    w = fp8_blockwise.quantize_weights(normal(384, 150, seed=1), recipe=recipe)
    run = jax.jit(fp8_blockwise_matmul)
    for arch in ("sm_90a", "sm_100a"):
        with emulate(arch, frameworks=["jax"]):
            got = run(x.elements, x.scales, np.ascontiguousarray(w.elements.T), np.ascontiguousarray(w.scales.T))
        assert same_bits(got, fp8_blockwise.fp8_blockwise_matmul(x, w, arch=arch))
    nothing = fp8_blockwise_matmul(np.zeros((0, 128), E4M3), np.zeros((0, 1), F32), np.zeros((8, 128), E4M3), np.ones((1, 1), F32))
    assert nothing.shape == (0, 8)


def test_every_code() -> None:
    every = np.arange(256, dtype=np.uint8)
    for codes in (every.view(np.int8), np.where(every % 128 == 127, 0, every).astype(np.uint8).view(E4M3)):
        w = w8a16.Weights8(codes=np.repeat(codes[:, None], 2, 1), scales=np.ones((1, 2), np.float16))
        with emulate("sm_90a", frameworks=["jax"]):
            got = narrow_weights.w8a16_matmul(np.eye(256, dtype=np.float16), w.pack(), w.scales, kind=w.kind)
        assert np.array_equal(np.asarray(got), np.repeat(codes.astype(F32)[:, None], 2, 1))


@pytest.mark.parametrize("group", [0, 32])
def test_hard_activations(group: int) -> None:
    """Zeros, subnormals, infinities, NaN, one outlier."""
    x, w = normal(6, 64), normal(64, 8, seed=1)
    w[:, 3], x[0], x[1, 3], x[2, 5], x[2, 40], x[3, 9] = 0, 0, np.nan, np.inf, -np.inf, 6e4
    x[4] = np.arange(64) * 2.0**-24
    half, eight, given = x.astype(np.float16), w8a16.quantize_w8(w, group=group), fp8.quantize(x, per="row")
    four = w4a8_fp8.quantize_w4a8_fp8(w, group=group)
    with emulate("sm_90a", frameworks=["jax"]):
        pairs = (
            (narrow_weights.w8a16_matmul(half, eight.pack(), eight.scales, grouped=bool(group)),
             w8a16.w8a16_matmul(half, eight, arch="sm_90a")),
            (narrow_weights.w4a8_fp8_matmul(given.elements, given.scales.ravel(), four.pack(), four.kernel_scales, grouped=bool(group)),
             w4a8_fp8.w4a8_fp8_matmul(given, four, arch="sm_90a")),
        )  # fmt: skip
    for got, wanted in pairs:
        found = np.asarray(got)
        assert np.array_equal(np.isnan(found), np.isnan(wanted)) and np.isnan(found[1]).all() and not found[0].any()
        finite = np.isfinite(wanted)
        assert np.array_equal(found[finite], wanted[finite])


def test_nothing_and_nan() -> None:
    words = np.zeros((32, N), np.int32)
    for m, k, n in ((0, 128, 8), (8, 128, 0), (8, 0, 8)):
        got = narrow_weights.w8a16_matmul(np.zeros((m, k), np.float16), np.zeros((k // 4, n), np.int32), np.ones((1, n), np.float16))
        assert got.shape == (m, n) and not np.asarray(got).any()
        got = narrow_weights.w4a8_fp8_matmul(np.zeros((m, k), E4M3), np.ones(m, F32), np.zeros((k // 8, n), np.int32),
                                             np.ones((1, n), np.float16), grouped=False)  # fmt: skip
        assert got.shape == (m, n) and not np.asarray(got).any()
    x = np.zeros((2, 128), E4M3)
    x[1, 5] = np.nan
    with emulate("sm_89", frameworks=["jax"]):
        got = np.asarray(narrow_weights.w4a8_fp8_matmul(x, np.ones(2, F32), words[:16], np.ones((4, N), np.float16)))
    assert not got[0].any() and np.isnan(got[1]).all()


HALF, WORDS, ONE = np.zeros((2, 8), np.float16), np.zeros((2, 4), np.int32), np.ones((1, 4), np.float16)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: narrow_weights.w8a16_matmul(HALF, WORDS, ONE, kind="e5m2"), OperandError, "int8, e4m3, got 'e5m2'"),
        (lambda: narrow_weights.w8a16_matmul(HALF.astype(F32), WORDS, ONE), OperandTypeError, "float16 or bfloat16, got float32"),
        (lambda: narrow_weights.w8a16_matmul(HALF[:, :6], WORDS, ONE), OperandError, "K must be a multiple of 4"),
        (lambda: narrow_weights.w8a16_matmul(HALF, WORDS[:1], ONE), OperandError, r"words must have shape \(2, any\), got \(1, 4\)"),
        (lambda: narrow_weights.w8a16_matmul(HALF, WORDS, np.ones((3, 4), np.float16), grouped=True), OperandError, "number of groups 3"),
        (lambda: fp8_blockwise_matmul(HALF.astype(E4M3), ONE, HALF.astype(E4M3), ONE), OperandError, "block size 128, got 8"),
        (lambda: fp8_blockwise_matmul(*2 * (np.ones((1, 128), E4M3), np.full((1, 1), 2.0**-41, F32))), OperandError, "at least 2\\^-40"),
        (lambda: narrow_weights.w4a8_fp8_matmul(HALF, np.ones(2, F32), WORDS[:1], ONE), OperandTypeError, "float8_e4m3fn, got float16"),
        (lambda: narrow_weights.w4a8_fp8_matmul(HALF.astype(E4M3), np.ones(3, F32), WORDS[:1], ONE), OperandError, "x_scales must have"),
    ],
)  # fmt: skip
def test_wrong_operands(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
