"""Whole kernels as compiled, beside Python models of them written out by hand (tests/kernel_models.py)."""

from __future__ import annotations

from typing import Any

import kernel_models as models
import numpy as np
import pytest

import mmabits

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

FIVE = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a")
ROWS, N = 3, 256


@triton.jit
def softmax(x, y, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    v = tl.load(x + i)
    e = tl.exp(v - tl.max(v, 0))
    tl.store(y + i, e / tl.sum(e, 0))


@triton.jit
def layer_norm(x, w, b, y, n, eps, N: tl.constexpr):
    i = tl.arange(0, N)
    row = tl.program_id(0) * N
    v = tl.load(x + row + i)
    mean = tl.sum(v, 0) / n
    centred = v - mean
    variance = tl.sum(centred * centred, 0) / n
    tl.store(y + row + i, centred * (1 / tl.sqrt(variance + eps)) * tl.load(w + i) + tl.load(b + i))


@triton.jit
def rms_norm(x, w, y, eps, N: tl.constexpr):
    i = tl.arange(0, N)
    row = tl.program_id(0) * N
    v = tl.load(x + row + i)
    tl.store(y + row + i, v * tl.rsqrt(tl.sum(v * v, 0) / N + eps) * tl.load(w + i))


@triton.jit
def fp8_rows(x, q, y, s, N: tl.constexpr, TO_E4M3: tl.constexpr):
    i = tl.arange(0, N)
    row = tl.program_id(0) * N
    v = tl.load(x + row + i)
    scale = tl.max(tl.abs(v), 0) / 448.0
    scaled = v / scale
    tl.store(y + row + i, scaled)
    tl.store(s + tl.program_id(0), scale)
    if TO_E4M3:
        tl.store(q + row + i, tl.clamp(scaled, -448.0, 448.0).to(tl.float8e4nv))


@triton.jit
def nvfp4(x, codes, scales, whole, N: tl.constexpr):
    i = tl.arange(0, N // 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    row = tl.program_id(0) * N
    v = tl.load(x + row + i)
    t = tl.load(whole)
    scale = tl.max(tl.abs(v), 1) / 6.0 / t
    stored = tl.minimum(scale, 448.0).to(tl.float8e4nv)
    step = stored.to(tl.float32) * t
    u = v / step[:, None]
    size = tl.abs(u)
    code = (size > 0.25).to(tl.uint8) + (size >= 0.75).to(tl.uint8) + (size > 1.25).to(tl.uint8) + (size >= 1.75).to(tl.uint8)
    code += (size > 2.5).to(tl.uint8) + (size >= 3.5).to(tl.uint8) + (size > 5.0).to(tl.uint8)
    tl.store(codes + row + i, code | tl.where(u < 0, 8, 0).to(tl.uint8))
    tl.store(scales + tl.program_id(0) * (N // 16) + tl.arange(0, N // 16), stored)


@triton.jit
def attention(q_ptr, k_ptr, v_ptr, o_ptr, scale, N_CTX, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    rows, columns, d = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, D)
    most = tl.zeros([BM], dtype=tl.float32) - float("inf")
    total = tl.zeros([BM], dtype=tl.float32)
    acc = tl.zeros([BM, D], dtype=tl.float32)
    q = tl.load(q_ptr + rows[:, None] * D + d[None, :])
    for n in range(0, N_CTX, BN):
        k = tl.load(k_ptr + (n + columns)[None, :] * D + d[:, None])
        s = tl.dot(q, k) * scale
        new = tl.maximum(most, tl.max(s, 1))
        p = tl.exp2(s - new[:, None])
        alpha = tl.exp2(most - new)
        total = total * alpha + tl.sum(p, 1)
        v = tl.load(v_ptr + (n + columns)[:, None] * D + d[None, :])
        acc = tl.dot(p.to(tl.float16), v, acc * alpha[:, None])
        most = new
    tl.store(o_ptr + rows[:, None] * D + d[None, :], acc / total[:, None])


def run(arch: str, kernel: Any, *arguments: Any, **constants: Any) -> None:
    with mmabits.emulate(arch, frameworks=["triton"], triton="compiled"):
        kernel[(ROWS,)](*arguments, **constants, enable_fp_fusion=True)


def drawn(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def same(found: Any, wanted: Any) -> None:
    found, wanted = (np.ascontiguousarray(each).view(np.uint8) for each in (found, wanted))
    assert found.tobytes() == wanted.tobytes(), f"{int((found != wanted).sum())} of {wanted.size} bytes differ"


@pytest.mark.parametrize("arch", FIVE)
def test_softmax(arch: str) -> None:
    x, y = 3 * drawn(1, ROWS, N), torch.empty(ROWS, N)
    run(arch, softmax, torch.from_numpy(x), y, N=N)
    same(y.numpy(), models.softmax(x))


@pytest.mark.parametrize("arch", FIVE)
def test_layer_norm(arch: str) -> None:
    x, w, b, y = drawn(2, ROWS, N), drawn(3, N), drawn(4, N), torch.empty(ROWS, N)
    run(arch, layer_norm, *map(torch.from_numpy, (x, w, b)), y, N, 1e-5, N=N)
    same(y.numpy(), models.layer_norm(x, w, b, 1e-5))


@pytest.mark.parametrize("arch", FIVE)
def test_rms_norm(arch: str) -> None:
    x, w, y = drawn(5, ROWS, N), drawn(6, N), torch.empty(ROWS, N)
    run(arch, rms_norm, *map(torch.from_numpy, (x, w)), y, 1e-5, N=N)
    same(y.numpy(), models.rms_norm(x, w, 1e-5))


@pytest.mark.parametrize("arch", FIVE)
def test_rows_in_fp8(arch: str) -> None:
    """sm_80 has no e4m3: there the scaled numbers alone."""
    import ml_dtypes

    has = arch != "sm_80"
    x, y, s = drawn(7, ROWS, N), torch.empty(ROWS, N), torch.empty(ROWS)
    q = torch.empty(ROWS, N, dtype=torch.float8_e4m3fn if has else torch.float32)
    run(arch, fp8_rows, torch.from_numpy(x), q, y, s, N=N, TO_E4M3=has)
    scaled, scale = models.scaled_rows(x, 448.0)
    same(s.numpy(), scale)
    same(y.numpy(), scaled)
    if has:
        same(q.view(torch.uint8).numpy(), np.clip(scaled, -448, 448).astype(ml_dtypes.float8_e4m3fn))


@pytest.mark.parametrize("arch", FIVE[1:])
def test_blocks_in_nvfp4(arch: str) -> None:
    x, whole = drawn(8, ROWS, N), np.array([0.0011], np.float32)
    codes = torch.empty(ROWS, N, dtype=torch.uint8)
    scales = torch.empty(ROWS, N // 16, dtype=torch.float8_e4m3fn)
    run(arch, nvfp4, torch.from_numpy(x), codes, scales, torch.from_numpy(whole), N=N)
    wanted, stored = models.nvfp4(x, float(whole[0]))
    same(scales.view(torch.uint8).numpy(), stored)
    same(codes.numpy(), wanted)


@pytest.mark.parametrize("arch", FIVE)
def test_attention(arch: str) -> None:
    q, k, v = (drawn(9 + seed, size, 32).astype(np.float16) for seed, size in enumerate((64, 128, 128)))
    out = torch.empty(64, 32)
    with mmabits.emulate(arch, frameworks=["triton"], triton="compiled"):
        tensors = map(torch.from_numpy, (q, k, v))
        attention[(1,)](*tensors, out, 0.29, 128, D=32, BM=64, BN=32, enable_fp_fusion=True)
    same(out.numpy(), models.attention(q, k, v, 0.29, arch))


def test_the_models_differ_from_ieee_arithmetic() -> None:
    """Where they did not, nothing would be shown."""
    x = 3 * drawn(1, ROWS, N)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    assert (models.softmax(x) != e / e.sum(axis=1, keepdims=True)).mean() > 0.3
    assert (models.scaled_rows(x, 448.0)[0] != x / (np.abs(x).max(axis=1) / np.float32(448))[:, None]).mean() > 0.05
