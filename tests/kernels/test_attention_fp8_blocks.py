"""FlashAttention-3's FP8 scheme: the Hadamard matrix against a product, quantizers by hand, a block by hand, outliers, hard inputs."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.isa.errors import OperandError, OperandTypeError, UnsupportedInstruction
from mmabits.kernels.schemes.attention import (
    Fp8Blocks,
    fp8_block_attention,
    incoherent,
    quantize_fp8_blocks,
    query_factor,
    random_signs,
    tree_sum,
)

SEED = 20261130
E4M3, F32 = ml_dtypes.float8_e4m3fn, np.float32
SIGNS = random_signs(64, 1)


def heads(*shape: int, seed: int = SEED) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool = False) -> np.ndarray:
    outputs = []
    for head in range(len(q)):
        own = head // (len(q) // len(k))
        scores = q[head].astype(np.float64) @ k[own].T / math.sqrt(q.shape[2])
        if causal:
            scores = np.where(np.tril(np.ones(scores.shape, bool)), scores, -np.inf)
        powers = np.exp(scores - scores.max(1, keepdims=True))
        outputs.append(powers / powers.sum(1, keepdims=True) @ v[own])
    return np.stack(outputs)


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, signs: Any = SIGNS, arch: str = "sm_90a", **fields: Any) -> np.ndarray:
    parts = [quantize_fp8_blocks(each, block=64, signs=turn) for each, turn in ((q, signs), (k, signs), (v, None))]
    return fp8_block_attention(*parts, arch=arch, **fields)


def test_turning_is_a_product_with_a_hadamard_matrix() -> None:
    matrix = np.array([[(-1) ** bin(row & column).count("1") for column in range(64)] for row in range(64)])
    x = heads(2, 5, 64)
    got = incoherent(x, SIGNS)
    wanted = (x * SIGNS).astype(np.float64) @ matrix / 8
    assert np.abs(got - wanted).max() < 1e-6 and got.dtype == F32
    ones = np.zeros((1, 64, 64), F32) + np.eye(64, dtype=F32)
    assert np.array_equal(incoherent(ones, SIGNS)[0], (SIGNS[:, None] * matrix / 8).astype(F32))
    first = incoherent(x[:, :, :2], SIGNS[:2])
    low, high = x[..., 0] * SIGNS[0], x[..., 1] * SIGNS[1]
    assert np.array_equal(first[..., 0], (low + high) * F32(1 / np.sqrt(2)))


def test_turning_both_sides_leaves_scores_and_spreads_outliers() -> None:
    q, k = heads(1, 8, 64), heads(1, 8, 64, seed=2)
    k[..., 5] *= 50
    turned = [incoherent(each, SIGNS)[0].astype(np.float64) for each in (q, k)]
    assert np.abs(turned[0] @ turned[1].T - q[0].astype(np.float64) @ k[0].T).max() < 1e-4
    assert np.abs(turned[1]).max() < 0.3 * np.abs(k).max()


def test_blocks_have_a_scale() -> None:
    x = heads(2, 100, 32)
    x[0, :64] = 0
    found = quantize_fp8_blocks(x, block=64)
    for head, block in np.ndindex(2, 2):
        rows = x[head, 64 * block : 64 * block + 64]
        scale = F32(np.abs(rows).max() / F32(448)) if rows.any() else F32(1)
        assert found.scales[head, block] == scale
        want = np.clip(rows / scale, -448, 448).astype(E4M3)
        assert np.array_equal(found.codes[head, 64 * block : 64 * block + 64].view(np.uint8), want.view(np.uint8))
    assert np.abs(found.dequantize() - x).max() <= np.abs(x).max() / 16


@pytest.mark.parametrize("causal", [False, True])
def test_near_to_exact_softmax(causal: bool) -> None:
    q, k, v = heads(4, 80, 64), heads(2, 80, 64, seed=1), heads(2, 80, 64, seed=2)
    error = np.abs(attended(q, k, v, causal=causal) - exact(q, k, v, causal))
    assert error.max() < 0.25 and error.mean() < 0.02


def test_a_block_by_hand() -> None:
    q, k, v = (quantize_fp8_blocks(heads(1, 64, 64, seed=seed), block=64) for seed in range(3))
    sums = mmabits.gemm(q.codes[0], np.ascontiguousarray(k.codes[0].T), instruction="wgmma", arch="sm_90a")
    s = sums * ((query_factor(64) * q.scales[0, 0]) * k.scales[0, 0])
    p = np.exp2((s - s.max(1)[:, None]) + F32(8))
    part = mmabits.gemm(p.astype(E4M3), v.codes[0], instruction="wgmma", arch="sm_90a")
    assert np.array_equal(fp8_block_attention(q, k, v, arch="sm_90a")[0], part * v.scales[0, 0] / tree_sum(p)[:, None])


def test_turning_helps_where_channels_stand_out() -> None:
    """Outliers in some entries, as the paper draws them: the error of the output falls by more than a third."""
    rng = np.random.default_rng(SEED)
    q, k, v = (heads(2, 192, 64, seed=seed) for seed in (1, 2, 3))
    for each in (q, k):
        each += (10 * rng.standard_normal(each.shape) * (rng.random(each.shape) < 0.001)).astype(F32)
    wanted = exact(q, k, v)
    errors = [np.sqrt(((attended(q, k, v, signs) - wanted) ** 2).mean()) for signs in (None, SIGNS)]
    assert errors[1] < errors[0]


def test_hard_inputs() -> None:
    """Zeros, subnormals, one outlier, a single key, blocks of very different magnitude."""
    q, k, v = heads(1, 70, 64), heads(1, 70, 64, seed=1), heads(1, 70, 64, seed=2)
    zero = np.zeros_like(q)
    assert not attended(q, k, zero).any()
    assert np.abs(attended(zero, k, v) - v.mean(axis=1, keepdims=True)).max() < 0.02
    assert np.isfinite(attended(q * F32(2.0**-135), k, v)).all()
    v[0, 3, 3] = 1e4
    assert np.abs(attended(q, k, v) - exact(q, k, v)).max() < 1e4 / 8
    one = attended(q, k[:, :1], v[:, :1])
    assert np.array_equal(one, np.broadcast_to(quantize_fp8_blocks(v[:, :1], block=64).dequantize(), one.shape))
    v[0, 64:] *= F32(2.0**20)
    assert np.isfinite(attended(q, k, v)).all()


@pytest.mark.parametrize(("queries", "keys", "many"), [(0, 4, 2), (4, 0, 2), (4, 4, 0)])
def test_over_nothing(queries: int, keys: int, many: int) -> None:
    found = attended(np.zeros((many, queries, 64), F32), np.zeros((many, keys, 64), F32), np.zeros((many, keys, 64), F32))
    assert found.shape == (many, queries, 64) and not found.any()


def test_the_launchers_of_nothing_and_of_wrong_tensors() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from mmabits.kernels.triton import attention as in_triton

    codes, scales = in_triton.quantize_fp8_blocks(torch.zeros(2, 0, 64), torch.from_numpy(SIGNS))
    assert codes.shape == (2, 0, 64) and scales.shape == (2, 0)
    empty = codes, scales
    keys = torch.zeros(1, 4, 64, dtype=torch.uint8).view(torch.float8_e4m3fn), torch.ones(1, 1)
    assert in_triton.fp8_block_attention(*empty, *keys, *keys).shape == (2, 0, 64)
    with pytest.raises(OperandError, match="v_scales must have shape"):
        in_triton.fp8_block_attention(*empty, *keys, keys[0], torch.ones(1, 2))
    with pytest.raises(OperandError, match="as many queries as keys, got 0 and 4"):
        in_triton.fp8_block_attention(*empty, *keys, *keys, causal=True)
    with pytest.raises(OperandError, match="power of two"):
        in_triton.quantize_fp8_blocks(torch.zeros(2, 3, 48))


def ex2(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = mmabits.function("ex2.approx.ftz.f32", np.ascontiguousarray(x), arch="sm_90a")
    return found


ARCHITECTURES = [pytest.param(arch, marks=pytest.mark.slow) for arch in ("sm_89", "sm_90a", "sm_100a", "sm_120a")]


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiled_kernels_are_the_composition(arch: str) -> None:
    """Quantizer and attention, with the GPU's exp2."""
    triton = pytest.importorskip("triton")
    from arrays import tensor

    from mmabits.kernels.triton import attention as in_triton

    if arch == "sm_89" and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
        pytest.skip("Triton before 3.9 casts to e4m3 through f16 on Ada")
    rows = [heads(2 - bool(seed), 100, 64, seed=seed) for seed in range(3)]
    wanted = [quantize_fp8_blocks(each, block=64, signs=SIGNS if place < 2 else None) for place, each in enumerate(rows)]
    with mmabits.emulate(arch, frameworks=["triton"], triton="compiled"):
        made = [in_triton.quantize_fp8_blocks(tensor(each), tensor(SIGNS) if place < 2 else None) for place, each in enumerate(rows)]
        got = in_triton.fp8_block_attention(*made[0], *made[1], *made[2], causal=True)
    for (codes, scales), each in zip(made, wanted, strict=True):
        assert codes.view(uint8()).numpy().tobytes() == each.codes.tobytes() and scales.numpy().tobytes() == each.scales.tobytes()
    assert np.array_equal(got.numpy(), fp8_block_attention(*wanted, arch=arch, causal=True, exp2=ex2))


def uint8() -> Any:
    import torch

    return torch.uint8


def blocks(*shape: int, block: int = 64) -> Fp8Blocks:
    return quantize_fp8_blocks(heads(*shape), block=block)


K = blocks(1, 3, 64)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: quantize_fp8_blocks(heads(2, 3), block=4), OperandError, "3 dimensions"),
        (lambda: quantize_fp8_blocks(heads(1, 3, 64).astype(np.float16), block=4), OperandTypeError, "float32"),
        (lambda: quantize_fp8_blocks(np.full((1, 2, 64), np.nan, F32), block=4), OperandError, "finite"),
        (lambda: quantize_fp8_blocks(heads(1, 3, 64), block=0), OperandError, "positive, got 0"),
        (lambda: quantize_fp8_blocks(heads(1, 3, 48), block=4, signs=random_signs(48, 1)), OperandError, "power of two"),
        (lambda: quantize_fp8_blocks(heads(1, 3, 64), block=4, signs=2 * SIGNS), OperandError, "signs 1 or -1"),
        (lambda: quantize_fp8_blocks(np.full((1, 2, 64), 3e38, F32), block=4, signs=np.ones(64, F32)), OperandError, "rows must be finite"),
        (lambda: fp8_block_attention(K, *[blocks(1, 3, 64, block=48)] * 2, arch="sm_90a"), OperandError, "power of two"),
        (lambda: fp8_block_attention(K, K, blocks(1, 3, 64, block=32), arch="sm_90a"), OperandError, "64 and 32"),
        (lambda: fp8_block_attention(K, K, K, arch="sm_80"), UnsupportedInstruction, "sm_80"),
        (lambda: Fp8Blocks(codes=np.zeros((1, 3, 4), E4M3), scales=np.ones((1, 2), F32), block=4), OperandError, "scales must have shape"),
    ],
)  # fmt: skip
def test_wrong_operands(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()
