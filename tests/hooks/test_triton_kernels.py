"""The kernels of kernels/triton under `emulate`: bit for bit what gemm gives with the instruction that Triton emits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from arrays import tensor

import mmabits
from mmabits.emulator.layouts import pack_fp4, unpack_fp4

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from mmabits.kernels.triton.matmul import matmul, matmul_kernel  # noqa: E402
from mmabits.kernels.triton.persistent import persistent_matmul  # noqa: E402
from mmabits.kernels.triton.scaled import scaled_matmul  # noqa: E402
from mmabits.kernels.triton.split_k import split_k_matmul  # noqa: E402

VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
ARCHS = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a")
M, N, K = 100, 72, 200
WARP_F16 = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
F16 = {
    "sm_80": WARP_F16,
    "sm_89": WARP_F16,
    "sm_90a": "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16",
    "sm_100a": "tcgen05.mma.cta_group::1.kind::f16.m64n64k16.f32.f16.f16",
    "sm_120a": WARP_F16,
}
FP8 = {
    "sm_89": "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32",
    "sm_90a": "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3",
    "sm_100a": "tcgen05.mma.cta_group::1.kind::f8f6f4.m64n64k32.f32.e4m3.e4m3",
    "sm_120a": "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32",
}


def emulate(arch):
    return mmabits.emulate(arch, frameworks=["triton"], triton="interpreted")


def operands(dtype, seed=0):
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal(shape).astype(np.float32).astype(dtype) for shape in ((M, K), (K, N)))
    return a, b


def assert_bits(got, want):
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype
    differ = np.argwhere(got.view(np.uint8 if got.itemsize == 1 else f"u{got.itemsize}") != want.view(f"u{want.itemsize}"))
    assert not len(differ), f"{len(differ)} of {got.size} differ, first at {differ[0]}: {got[tuple(differ[0])]} {want[tuple(differ[0])]}"


@pytest.mark.parametrize("arch", ARCHS)
def test_autotuned_matmul_with_ragged_edges(arch):
    a, b = operands(np.float16)
    with emulate(arch) as session:
        got = matmul(tensor(a), tensor(b), activation="leaky_relu", out_dtype=torch.float16)
    (line,) = session.report().emulated
    assert line.instruction.ptx == F16[arch]
    assert (line.m, line.n, line.k, line.count) == (64, 64, 64, 16)
    sums = mmabits.gemm(a, b, instruction=F16[arch], arch=arch)
    want = np.where(sums >= 0, sums, np.float32(0.01) * sums).astype(np.float16)
    assert_bits(got.numpy(), want)


def test_the_tuned_configuration_is_emulated():
    a, b = operands(np.float16)
    tuned = matmul_kernel.configs[3]
    matmul_kernel.best_config = tuned
    try:
        with emulate("sm_90a") as session:
            got = matmul(tensor(a), tensor(b))
        assert matmul_kernel.best_config is tuned
    finally:
        del matmul_kernel.best_config
    (line,) = session.report().emulated
    assert (line.m, line.n, line.k) == (64, 128, 32)
    assert_bits(got.numpy(), mmabits.gemm(a, b, instruction="wgmma", arch="sm_90a"))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_bf16_which_the_stock_interpreter_gets_wrong(arch):
    a, b = operands(ml_dtypes.bfloat16)
    with emulate(arch):
        got = matmul(tensor(a), tensor(b), out_dtype=torch.bfloat16)
    want = mmabits.gemm(a, b, instruction="mma.sync" if arch == "sm_80" else "wgmma", arch=arch).astype(ml_dtypes.bfloat16)
    assert_bits(got.view(torch.uint16).numpy(), want.view(np.uint16))


def test_tf32():
    a, b = operands(np.float32)
    with emulate("sm_90a"):
        got = matmul(tensor(a), tensor(b))
    assert_bits(got.numpy(), mmabits.gemm(a, b, instruction="wgmma", arch="sm_90a"))


@pytest.mark.parametrize("arch", FP8)
def test_fp8(arch):
    a, b = operands(ml_dtypes.float8_e4m3fn)
    with emulate(arch) as session:
        got = matmul(tensor(a), tensor(b))
    assert session.report().emulated[0].instruction.ptx == FP8[arch]
    assert_bits(got.numpy(), mmabits.gemm(a, b, instruction=FP8[arch], arch=arch))


def test_fp8_on_sm_80_is_converted_to_f16_and_takes_k_in_another_order():
    """A thread holds four neighbours in K; the first instruction of 32 takes the first two of each four, the second the others."""
    a, b = operands(ml_dtypes.float8_e5m2)
    with emulate("sm_80") as session:
        got = matmul(tensor(a), tensor(b))
    wide_a = np.zeros((M, 256), np.float16)
    wide_b = np.zeros((256, N), np.float16)
    wide_a[:, :K], wide_b[:K] = a.astype(np.float16), b.astype(np.float16)
    order = sorted(range(256), key=lambda k: (k // 32, k % 4 >= 2, k))
    want = mmabits.gemm(wide_a[:, order], wide_b[order], instruction=WARP_F16, arch="sm_80")
    assert_bits(got.numpy(), want)
    assert not np.array_equal(want, mmabits.gemm(wide_a, wide_b, instruction=WARP_F16, arch="sm_80"))
    assert "converted to f16" in session.report().emulated[0].note


def test_e4m3_on_sm_80_is_refused_as_by_the_compiler():
    a, b = operands(ml_dtypes.float8_e4m3fn)
    with emulate("sm_80"), pytest.raises(mmabits.MmabitsError, match=r"fp8e4nv.*fp8e4b15, fp8e5"):
        matmul(tensor(a), tensor(b))


@pytest.mark.parametrize("arch", ["sm_90a", "sm_120a"])
def test_persistent(arch):
    a, b = operands(np.float16)
    with emulate(arch) as session:
        got = persistent_matmul(tensor(a), tensor(b), programs=3)
    assert_bits(got.numpy(), mmabits.gemm(a, b, instruction=F16[arch], arch=arch))
    assert session.report().emulated[0].count == 16


@pytest.mark.parametrize("reduction", ["ordered", "atomic"])
def test_split_k_adds_parts_in_ascending_order(reduction):
    a, b = operands(np.float16)
    with emulate("sm_90a"):
        got = split_k_matmul(tensor(a), tensor(b), parts=3, reduction=reduction, block=(64, 64, 32))
    want = np.zeros((M, N), np.float32)
    for first in range(0, K, 96):
        want = want + mmabits.gemm(a[:, first : first + 96], b[first : first + 96], instruction="wgmma", arch="sm_90a")
    assert_bits(got.numpy(), want)
    assert not np.array_equal(want, mmabits.gemm(a, b, instruction="wgmma", arch="sm_90a"))


# Block scales -------------------------------------------------------------------------------------------------------------

PAIRS = (
    ("e4m3", "e4m3", "ue8m0"),
    ("e5m2", "e5m2", "ue8m0"),
    ("e4m3", "e2m1", "ue8m0"),
    ("e2m1", "e2m1", "ue8m0"),
    ("e2m1", "e2m1", "ue4m3"),
)
TYPES = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2, "e2m1": ml_dtypes.float4_e2m1fn}
OMMA = "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::{}X.f32.e2m1.e2m1.f32.{}"
QMMA = "mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.block_scale.scale_vec::1X.f32.{0}.{0}.f32.ue8m0"
NATIVE = {
    ("sm_100a", "e4m3", "e4m3", "ue8m0"): "tcgen05.mma.kind::mxf8f6f4.block_scale",
    ("sm_100a", "e5m2", "e5m2", "ue8m0"): "tcgen05.mma.kind::mxf8f6f4.block_scale",
    ("sm_100a", "e4m3", "e2m1", "ue8m0"): "tcgen05.mma.kind::mxf8f6f4.block_scale",
    ("sm_100a", "e2m1", "e2m1", "ue8m0"): "tcgen05.mma.kind::mxf4.block_scale",
    ("sm_100a", "e2m1", "e2m1", "ue4m3"): "tcgen05.mma.kind::mxf4nvf4.block_scale.block16",
    ("sm_120a", "e4m3", "e4m3", "ue8m0"): QMMA.format("e4m3"),
    ("sm_120a", "e5m2", "e5m2", "ue8m0"): QMMA.format("e5m2"),
    ("sm_120a", "e2m1", "e2m1", "ue8m0"): OMMA.format(2, "ue8m0"),
    ("sm_120a", "e2m1", "e2m1", "ue4m3"): OMMA.format(4, "ue4m3"),
}
DECOMPOSED = {"sm_80": "mma.sync", "sm_89": "mma.sync", "sm_90a": "wgmma", "sm_100a": "tcgen05", "sm_120a": "mma.sync"}
SCALED_M, SCALED_N, SCALED_K = 130, 40, 256


def scaled_operands(a_format, b_format, scale, seed=0):
    rng = np.random.default_rng(seed)
    block = 32 if scale == "ue8m0" else 16
    shapes = ((SCALED_M, SCALED_K), (SCALED_K, SCALED_N))
    a, b = (
        rng.integers(0, 16, shape, dtype=np.uint8).view(TYPES[form]) if form == "e2m1" else rng.standard_normal(shape).astype(TYPES[form])
        for form, shape in zip((a_format, b_format), shapes, strict=True)
    )
    scales = []
    for rows in (SCALED_M, SCALED_N):
        shape = (rows, SCALED_K // block)
        if scale == "ue8m0":
            scales.append(rng.integers(119, 136, shape, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu))
        else:
            scales.append(rng.uniform(0.1, 3, shape).astype(ml_dtypes.float8_e4m3fn))
    return a, b, *scales


def scaled_tensor(array, axis):
    if array.dtype == TYPES["e2m1"]:
        packed = pack_fp4(array, axis=axis)
        assert np.array_equal(unpack_fp4(packed, axis=axis).view(np.uint8), array.view(np.uint8))
        return torch.from_numpy(packed)
    if array.dtype == ml_dtypes.float8_e8m0fnu:
        return torch.from_numpy(array.view(np.uint8).copy())
    return tensor(array)


def natural_order_of_k(elements_a, elements_b):
    """Threads hold 8 neighbours in K where an operand has 4-bit elements, else 4; instruction i takes the i-th pair of each run."""
    run = 8 if "e2m1" in (elements_a, elements_b) else 4
    return sorted(range(SCALED_K), key=lambda k: (k // (8 * run), k % run // 2, k))


# The compiler takes seconds for the decomposed forms on mma.sync, so of those only one runs by default.
WARP_DECOMPOSED = [(arch, *pair) for arch in ("sm_80", "sm_89", "sm_120a") for pair in PAIRS if (arch, *pair) not in NATIVE]
ALL_SCALED = [
    pytest.param(arch, *pair, marks=pytest.mark.slow if (arch, *pair) in WARP_DECOMPOSED and (arch, pair) != ("sm_89", PAIRS[0]) else ())
    for arch in ARCHS
    for pair in PAIRS
]


@pytest.mark.parametrize(("arch", "a_format", "b_format", "scale"), ALL_SCALED)
def test_dot_scaled(arch, a_format, b_format, scale):
    a, b, scale_a, scale_b = scaled_operands(a_format, b_format, scale)
    arguments = (
        scaled_tensor(a, 1), scaled_tensor(scale_a, 1), a_format, scaled_tensor(b, 0), scaled_tensor(scale_b, 1), b_format
    )  # fmt: skip
    if arch == "sm_80" and "e4m3" in f"{a_format} {b_format} {scale}":
        with emulate(arch), pytest.raises(mmabits.MmabitsError, match="fp8e4nv"):
            scaled_matmul(*arguments)
        return
    if scale == "ue4m3" and VERSION < (3, 8) and arch not in ("sm_100a", "sm_120a"):  # a failed assertion in the compiler
        with emulate(arch), pytest.raises(mmabits.MmabitsError, match="compiler rejects it"):
            scaled_matmul(*arguments)
        return
    with emulate(arch) as session:
        got = scaled_matmul(*arguments)
    native = NATIVE.get((arch, a_format, b_format, scale))
    if native is not None:
        want = mmabits.gemm(a, b, instruction=native, arch=arch, scale_a=scale_a, scale_b=np.ascontiguousarray(scale_b.T))
    else:
        block = SCALED_K // scale_a.shape[1]
        wide_a = (a.astype(np.float32) * np.repeat(scale_a.astype(np.float32), block, axis=1)).astype(ml_dtypes.bfloat16)
        wide_b = (b.astype(np.float32) * np.repeat(scale_b.astype(np.float32).T, block, axis=0)).astype(ml_dtypes.bfloat16)
        order = natural_order_of_k(a_format, b_format) if DECOMPOSED[arch] == "mma.sync" else list(range(SCALED_K))
        want = mmabits.gemm(wide_a[:, order], wide_b[order], instruction=DECOMPOSED[arch], arch=arch)
        assert "converted to bf16" in session.report().emulated[0].note
    assert_bits(got.numpy(), want)


def test_wrong_use_of_scaled_matmul():
    a, b, scale_a, scale_b = scaled_operands("e2m1", "e2m1", "ue8m0")
    left, right = scaled_tensor(a, 1), scaled_tensor(b, 0)
    scales = scaled_tensor(scale_a, 1), scaled_tensor(scale_b, 1)
    with pytest.raises(mmabits.MmabitsError, match="need a_scale and b_scale"):
        scaled_matmul(left, None, "e2m1", right, scales[1], "e2m1")
    with pytest.raises(mmabits.MmabitsError, match="K = 256 is no multiple of the block's 96"):
        scaled_matmul(left, scales[0], "e2m1", right, scales[1], "e2m1", block=(128, 64, 96))
    with pytest.raises(mmabits.MmabitsError, match=r"unknown format 'e2m2'; did you mean .*e2m1"):
        scaled_matmul(left, scales[0], "e2m2", right, scales[1], "e2m1")
