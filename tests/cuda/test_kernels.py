"""The kernels of kernels/cuda against their plain compositions, bit for bit; and that they compile for their GPUs as they stand."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import operands
import pytest

import mmabits
from mmabits.emulator.cuda.nvrtc import compile_program
from mmabits.isa import MmabitsError, OperandError, UnsupportedInstruction
from mmabits.kernels.cuda import integers, narrow_weights
from mmabits.kernels.cuda.block_scaled import block_scaled_matmul
from mmabits.kernels.cuda.fp8_blockwise import fp8_blockwise_matmul
from mmabits.kernels.cuda.sage2 import EXPONENTIAL, ORDER, sage2_attention
from mmabits.kernels.cuda.sources import source
from mmabits.kernels.cuda.w4a16 import pack, w4a16_matmul
from mmabits.kernels.schemes import asymmetric, attention, fp8, fp8_blockwise, mxfp6_mxfp4, mxfp8, nvfp4, w4a4, w4a8_fp8, w4a16, w8a8, w8a16
from mmabits.kernels.schemes.dots import Dots

pytestmark = pytest.mark.usefixtures("nvrtc")

MMA_S8 = "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32"
MMA_E4M3 = "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32"
MMA = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"


def wide(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-9, 9, shape)).astype(np.float32)


def same(found: npt.NDArray[np.float32], wanted: npt.NDArray[Any]) -> None:
    assert found.shape == wanted.shape
    assert np.array_equal(found.view(np.uint32), wanted.view(np.uint32)), f"{(found != wanted).sum()} of {found.size} differ"


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a"])
def test_w4a16(arch: str) -> None:
    rng = operands.generator("cuda w4a16", arch)
    x = rng.standard_normal((100, 384)).astype(np.float16)
    for group, symmetric in ((128, False), (64, True)):
        weights = w4a16.quantize_int4(wide(rng, 384, 128), group=group, symmetric=symmetric)
        same(w4a16_matmul(x, weights, arch=arch), w4a16.w4a16_matmul(x, weights, arch=Dots(arch=arch, instruction=MMA)))


def test_w4a16_every_code_and_zero_point() -> None:
    """All 16 codes with all 17 zero points, one column each, and scales from the smallest to those with which no weight overflows."""
    codes = np.tile((np.arange(64, dtype=np.uint8) % 16)[:, None], (1, 64))
    zeros = (np.arange(64, dtype=np.uint8) % 17)[None]
    scales = np.float16(2.0) ** np.linspace(-24, 11, 64).astype(int)
    weights = w4a16.Int4Weights(codes=codes, scales=scales[None].astype(np.float16), zeros=zeros, group=64)
    same(w4a16_matmul(np.eye(64, dtype=np.float16), weights, arch="sm_80"), weights.dequantize().astype(np.float32))


def test_integers() -> None:
    rng = operands.generator("cuda integers", "")
    x, plain = wide(rng, 70, 128) + np.float32(1), wide(rng, 128, 24) + np.float32(0.3)
    with_zeros = asymmetric.quantize_affine(x, axis=0)
    for w in (asymmetric.quantize_affine(plain, axis=1, dtype=np.int8), w8a8.quantize_int8(plain, axis=1)):
        same(integers.asymmetric_matmul(with_zeros, w, arch="sm_89"), asymmetric.asymmetric_matmul(with_zeros, w, arch="sm_89"))
    four = w4a4.quantize_int4_symmetric(x, axis=0), w4a4.quantize_int4_symmetric(plain, axis=1)
    same(integers.w4a4_matmul(*four, arch="sm_90a"), w4a4.w4a4_matmul(*four, arch="sm_90a"))
    with pytest.raises(OperandError, match="uint8 codes by row and int8 by column, got int8"):
        integers.asymmetric_matmul(with_zeros.as_signed(), w8a8.quantize_int8(plain, axis=1), arch="sm_89")
    with pytest.raises(OperandError, match="K must be a multiple of the instruction's 64, got 32"):
        integers.w4a4_matmul(*(w4a4.Int4Matrix(codes=np.zeros(size, np.int8), scales=np.ones(8, np.float32), axis=axis)
                       for axis, size in enumerate([(8, 32), (32, 8)])), arch="sm_89")  # fmt: skip


@pytest.mark.parametrize("arch", ["sm_80", "sm_100a"])
def test_w8a16(arch: str) -> None:
    """Groups and channels, both kinds of weights, both types of activations; the last rows of a tile are not there."""
    rng = operands.generator("cuda w8a16", arch)
    for kind, dtype, group in (
        ("int8", np.float16, 32),
        ("e4m3", ml_dtypes.bfloat16, 64),
        ("int8", ml_dtypes.bfloat16, 0),
        ("e4m3", np.float16, 0),
    ):
        weights = w8a16.quantize_w8(wide(rng, 192, 24), kind=kind, group=group)
        x = rng.standard_normal((70, 192)).astype(dtype)
        name = "f16" if dtype == np.float16 else "bf16"
        wanted = w8a16.w8a16_matmul(x, weights, arch=Dots(arch=arch, instruction=MMA.replace(".f16.f16", f".{name}.{name}")))
        same(narrow_weights.w8a16_matmul(x, weights, arch=arch), wanted)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_w8a16_dequantizes_every_code(dtype: type) -> None:
    """By scales from the smallest to those with which no weight overflows; subnormal products too."""
    every = np.arange(256, dtype=np.uint8)
    finite = np.where(every % 128 == 127, 0, every).astype(np.uint8).view(ml_dtypes.float8_e4m3fn)
    scales = (np.float16(1.37) * np.float16(2.0) ** np.array([-24, -16, -15, -14, -9, -1, 0, 6])).astype(np.float16)
    for codes in (every.view(np.int8), finite):
        weights = w8a16.Weights8(codes=np.repeat(codes[:, None], 8, 1), scales=np.repeat(scales[None], 2, 0), group=128)
        found = narrow_weights.w8a16_matmul(np.eye(256, dtype=dtype), weights, arch="sm_90a")
        assert np.array_equal(found, weights.operand(dtype).astype(np.float32))


@pytest.mark.parametrize("arch", ["sm_89", "sm_120a"])
def test_w4a8_fp8(arch: str) -> None:
    rng = operands.generator("cuda w4a8 fp8", arch)
    for group, per in ((0, "row"), (32, "tensor"), (96, "row")):
        x, w = fp8.quantize(wide(rng, 70, 192), per=per), w4a8_fp8.quantize_w4a8_fp8(wide(rng, 192, 24), group=group)
        wanted = w4a8_fp8.w4a8_fp8_matmul(x, w, arch=Dots(arch=arch, instruction=MMA_E4M3))
        same(narrow_weights.w4a8_fp8_matmul(x, w, arch=arch), wanted)
    codes = np.tile(np.arange(-8, 8, dtype=np.int8)[:, None], (2, 8))
    every = w4a8_fp8.W4A8Fp8Weights(codes=codes, scales=np.ones((1, 8), np.float16), group=0)
    one = fp8.Fp8Matrix(elements=np.eye(32).astype(ml_dtypes.float8_e4m3fn), scales=np.ones((1, 1), np.float32))
    same(narrow_weights.w4a8_fp8_matmul(one, every, arch=arch), codes.astype(np.float32))


@pytest.mark.parametrize("group", [0, 32])
def test_narrow_weights_with_hard_activations(group: int) -> None:
    """Zeros, subnormals, infinities of both signs in a row, NaN, one outlier; NaN in the same places, everything else bit for bit."""
    rng = operands.generator("cuda narrow hard", str(group))
    x, w = rng.standard_normal((6, 64)).astype(np.float32), wide(rng, 64, 8)
    w[:, 3] = 0
    x[0], x[1, 3], x[2, 5], x[2, 40], x[3, 9] = 0, np.nan, np.inf, -np.inf, 6e4
    x[4] = rng.integers(-9, 10, 64) * 2.0**-24
    weights = w8a16.quantize_w8(w, group=group)
    found = narrow_weights.w8a16_matmul(x.astype(np.float16), weights, arch="sm_90a")
    alike(found, w8a16.w8a16_matmul(x.astype(np.float16), weights, arch=Dots(arch="sm_90a", instruction=MMA)))
    given, four = fp8.quantize(x, per="row"), w4a8_fp8.quantize_w4a8_fp8(w, group=group)
    wanted = w4a8_fp8.w4a8_fp8_matmul(given, four, arch=Dots(arch="sm_90a", instruction=MMA_E4M3))
    alike(narrow_weights.w4a8_fp8_matmul(given, four, arch="sm_90a"), wanted)
    assert np.isnan(found[[1, 2]]).all() and not found[0].any() and np.isfinite(found[[0, 3, 4, 5]]).all()


def alike(found: npt.NDArray[np.float32], wanted: npt.NDArray[Any]) -> None:
    assert np.array_equal(np.isnan(found), np.isnan(wanted))
    same(np.where(np.isnan(found), np.float32(0), found), np.where(np.isnan(wanted), np.float32(0), wanted))


def test_what_narrow_weights_refuse() -> None:
    weights = w8a16.quantize_w8(np.ones((32, 8), np.float32), group=8)
    with pytest.raises(OperandError, match="the group size must be a multiple of the instruction's K 16, got 8"):
        narrow_weights.w8a16_matmul(np.zeros((4, 32), np.float16), weights, arch="sm_80")
    with pytest.raises(OperandError, match="N must be a multiple of the kernel's tile 8, got 7"):
        narrow_weights.w8a16_matmul(np.zeros((4, 32), np.float16), w8a16.quantize_w8(np.ones((32, 7), np.float32)), arch="sm_80")
    four = w4a8_fp8.quantize_w4a8_fp8(np.ones((32, 8), np.float32), group=0)
    x = fp8.quantize(np.ones((4, 32), np.float32))
    with pytest.raises(UnsupportedInstruction, match=r"for compute capability 8\.9, which sm_80 is not"):
        narrow_weights.w4a8_fp8_matmul(x, four, arch="sm_80")
    with pytest.raises(OperandError, match=r"\(M, 32\) of float8_e4m3fn, got \(4, 32\) of float8_e5m2"):
        narrow_weights.w4a8_fp8_matmul(fp8.quantize(np.ones((4, 32), np.float32), format="e5m2"), four, arch="sm_89")
    assert narrow_weights.w4a8_fp8_matmul(fp8.quantize(np.ones((0, 32), np.float32)), four, arch="sm_89").shape == (0, 8)


def test_w4a16_words_hold_every_code_once() -> None:
    codes = np.zeros((16, 16), np.uint8)
    codes[3, 9] = 15
    words = pack(codes)
    assert words.shape == (1, 1, 32) and sum(int(each).bit_count() for each in words.ravel()) == 4
    with pytest.raises(MmabitsError, match="K must be a multiple"):
        pack(codes[:8])


def test_fp8_blockwise() -> None:
    rng = operands.generator("cuda fp8 blockwise")
    for m, n, k in ((100, 200, 1024), (64, 64, 128)):
        x, w = fp8_blockwise.quantize_activations(wide(rng, m, k)), fp8_blockwise.quantize_weights(wide(rng, k, n))
        same(fp8_blockwise_matmul(x, w), fp8_blockwise.fp8_blockwise_matmul(x, w, arch="sm_90a"))


@pytest.mark.parametrize("arch", ["sm_100a", "sm_103a"])
@pytest.mark.parametrize("group", [1, 2])
def test_mxfp8_and_nvfp4(group: int, arch: str) -> None:
    rng = operands.generator("cuda block scaled", arch, str(group))
    x, w = mxfp8.quantize_rows(wide(rng, 300, 512)), mxfp8.quantize_columns(wide(rng, 512, 200), format="e5m2")
    same(block_scaled_matmul(x, w, arch=arch, group=group), mxfp8.mxfp8_matmul(x, w, arch=arch))
    left, right = nvfp4.quantize_rows(wide(rng, 300, 1024)), nvfp4.quantize_columns(wide(rng, 1024, 200))
    same(block_scaled_matmul(left, right, arch=arch, group=group), nvfp4.nvfp4_matmul(left, right, arch=arch))


@pytest.mark.parametrize(("arch", "width", "causal"), [
    ("sm_89", 64, True),
    pytest.param("sm_120a", 64, False, marks=pytest.mark.slow), pytest.param("sm_89", 128, True, marks=pytest.mark.slow),
])  # fmt: skip
def test_attention(arch: str, width: int, causal: bool) -> None:
    """With the GPU's ex2, and keys in the order in which scores lie in registers; the last blocks are not full, two heads share keys."""
    rng = operands.generator("cuda sage2", arch, str(width))
    q = attention.quantize_queries(rng.standard_normal((4, 130, width)).astype(np.float32))
    k = attention.quantize_keys(rng.standard_normal((2, 130, width)).astype(np.float32))
    v = attention.quantize_values(rng.standard_normal((2, 130, width)).astype(np.float32))
    wanted = attention.sage2_attention(
        q, k, v, arch=Dots(arch=arch, instruction=MMA_S8), pv=Dots(arch=arch, instruction=MMA_E4M3, k_order=ORDER), causal=causal,
        exp2=lambda x: mmabits.function(EXPONENTIAL, x, arch=arch),
    )  # fmt: skip
    same(sage2_attention(q, k, v, arch=arch, causal=causal), wanted)


def test_what_the_kernels_do_not_take() -> None:
    rng = operands.generator("cuda refused")
    weights = w4a16.quantize_int4(wide(rng, 128, 64))
    x = np.zeros((4, 128), np.float16)
    with pytest.raises(UnsupportedInstruction, match=r"the kernel w4a16 is for compute capability 8.0, which sm_75 is not"):
        w4a16_matmul(x, weights, arch="sm_75")
    with pytest.raises(MmabitsError, match="takes float16 activations"):
        w4a16_matmul(x.astype(ml_dtypes.bfloat16), weights, arch="sm_80")
    tiles = fp8_blockwise.quantize_activations(wide(rng, 4, 128)), fp8_blockwise.quantize_weights(wide(rng, 128, 64))
    with pytest.raises(UnsupportedInstruction, match=r"for compute capability 9.0 to 9.0, which sm_100a is not"):
        fp8_blockwise_matmul(*tiles, arch="sm_100a")
    with pytest.raises(MmabitsError, match="do not fit"):
        fp8_blockwise_matmul(tiles[0], fp8_blockwise.quantize_weights(wide(rng, 256, 64)))
    mxfp4 = mxfp6_mxfp4.quantize_rows(wide(rng, 4, 128)), mxfp6_mxfp4.quantize_columns(wide(rng, 128, 8))
    with pytest.raises(MmabitsError, match=r"takes MXFP8 \(e4m3, e5m2\) and NVFP4, got e2m1 and e2m1 in blocks of 32"):
        block_scaled_matmul(*mxfp4)
    with pytest.raises(MmabitsError, match="group must be 1 or 2"):
        block_scaled_matmul(mxfp8.quantize_rows(wide(rng, 4, 128)), mxfp8.quantize_columns(wide(rng, 128, 8)), group=3)
    empty = w4a16_matmul(np.zeros((0, 128), np.float16), weights, arch="sm_80")
    assert empty.shape == (0, 64)


@pytest.mark.parametrize(("name", "arch", "options"), [
    ("w4a16", "sm_80", []), ("w4a16", "sm_120a", []), ("narrow_weights", "sm_80", []), ("narrow_weights", "sm_100a", []),
    ("fp8_blockwise", "sm_90a", []), ("sage2", "sm_89", ["-DWIDTH=128"]),
    ("block_scaled", "sm_100a", ["-DGROUP=1", "-DNVFP4"]),
    ("block_scaled", "sm_103a", ["-DGROUP=2", "-DA_TYPE=0", "-DB_TYPE=1"]), ("block_scaled", "sm_100a", ["-DGROUP=2", "-DNVFP4"]),
])  # fmt: skip
def test_they_compile_to_machine_code(name: str, arch: str, options: list[str]) -> None:
    made = compile_program(source(name), f"{name}.cu", arch, options, wants=("CUBIN",))
    assert made.outputs["CUBIN"][:4] == b"\x7fELF"
