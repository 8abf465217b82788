"""The Triton hook: what dots, sums and casts become, and everything that launching kernels on a CPU can trip over."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import ml_dtypes
import numpy as np
import operands
import pytest
import slow_reference
from arrays import same_bits, tensor

import mmabits
from mmabits.isa import EmulationError

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from mmabits.emulator.hooks.triton import _check_version  # noqa: E402
from mmabits.emulator.hooks.triton.casts import Casts, float_to_integer  # noqa: E402
from mmabits.emulator.hooks.triton.compiler import CannotAsk, Compiler  # noqa: E402
from mmabits.emulator.hooks.triton.dots import Dot, ScaledDot  # noqa: E402
from mmabits.emulator.hooks.triton.plans import Planner, k_order, read_plan  # noqa: E402
from mmabits.emulator.hooks.triton.table import facts_of  # noqa: E402

WARP_F16 = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
VERSION = tuple(map(int, triton.__version__.split(".")[:2]))


def emulate(arch, **options):
    return mmabits.emulate(arch, frameworks=["triton"], **{"triton": "interpreted", **options})


def random(shape, dtype=np.float16, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32).astype(dtype)


@pytest.fixture
def asked():
    """Tests that have it ask Triton's compiler."""


@pytest.fixture(autouse=True)
def not_asked(request, monkeypatch):
    """The others take the table, which the slow tests hold against the compiler: asking takes a second for each kind of dot."""

    def cannot(self, question):
        raise CannotAsk

    if "asked" not in request.fixturenames and "slow" not in request.keywords:
        monkeypatch.setattr(Compiler, "ask", cannot)


# One tile ----------------------------------------------------------------------------------------------------------------


@triton.jit
def one_tile(
    a_ptr, b_ptr, c_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, OUT: tl.constexpr, PRECISION: tl.constexpr,
    IMPRECISE: tl.constexpr, TO: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, M)[:, None]
    j = tl.arange(0, N)[None, :]
    k = tl.arange(0, K)
    a = tl.load(a_ptr + i * K + k[None, :])
    b = tl.load(b_ptr + k[:, None] * N + j)
    if TO is not None:
        a = a.to(TO)
        b = b.to(TO)
    c = tl.load(c_ptr + i * N + j)
    d = tl.dot(a, b, c, out_dtype=OUT, input_precision=PRECISION, max_num_imprecise_acc=IMPRECISE)
    tl.store(c_ptr + i * N + j, d)


OUT = {np.dtype(np.float32): tl.float32, np.dtype(np.float16): tl.float16, np.dtype(np.int32): tl.int32}


def run_tile(arch, a, b, c, *, precision=None, imprecise=None, to=None, **options):
    result = tensor(c)
    (m, k), n = a.shape, b.shape[1]
    with emulate(arch) as session:
        one_tile[(1,)](
            tensor(a), tensor(b), result, M=m, N=n, K=k, OUT=OUT[c.dtype], PRECISION=precision, IMPRECISE=imprecise, TO=to, **options
        )
    return result.numpy(), session.report()


def test_f16_accumulators():
    a, b, c = random((64, 64)), random((64, 64), seed=1), random((64, 64), seed=2)
    got, report = run_tile("sm_90a", a, b, c)
    assert str(report.emulated[0].instruction) == "wgmma.mma_async.sync.aligned.m64n64k16.f16.f16.f16"
    assert same_bits(got, mmabits.gemm(a, b, c, instruction="wgmma", arch="sm_90a"))


@pytest.mark.parametrize(("arch", "instruction"), [("sm_80", "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32"),
                                                   ("sm_90a", "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8"),
                                                   ("sm_103a", "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32")])  # fmt: skip
def test_int8(arch, instruction):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, (64, 64), dtype=np.int8) for _ in range(2))
    c = rng.integers(-(2**31), 2**31, (64, 64), dtype=np.int32)
    c[0, 0] = 2**31 - 1
    got, report = run_tile(arch, a, b, c)
    assert str(report.emulated[0].instruction) == instruction
    assert same_bits(got, mmabits.gemm(a, b, c, instruction=instruction, arch=arch))


@pytest.mark.parametrize(("imprecise", "every"), [(None, None), (128, 128), (64, 64), (48, 64), (96, 96), (32, 32)])
def test_promotion_on_hopper(asked, imprecise, every):
    a, b, c = random((64, 128), ml_dtypes.float8_e4m3fn), random((128, 64), ml_dtypes.float8_e4m3fn, 1), random((64, 64), np.float32, 2)
    got, report = run_tile("sm_90a", a, b, c, imprecise=imprecise)
    assert same_bits(got, mmabits.gemm(a, b, c, instruction="wgmma", arch="sm_90a", promote_every=every))
    assert (f"f32 addition every {every} of K" in report.emulated[0].note) == (every is not None)


@pytest.mark.parametrize("shape", ["M = 16", "max_num_imprecise_acc = 0"])
def test_fp8_on_hopper_that_is_converted_to_f16(asked, shape):
    m, imprecise = (16, None) if shape == "M = 16" else (64, 0)
    a, b, c = random((m, 128), ml_dtypes.float8_e4m3fn), random((128, 64), ml_dtypes.float8_e4m3fn, 1), random((m, 64), np.float32, 2)
    got, report = run_tile("sm_90a", a, b, c, imprecise=imprecise)
    assert str(report.emulated[0].instruction) == WARP_F16
    order = sorted(range(128), key=lambda k: (k // 32, k % 4 >= 2, k))
    wide = a.astype(np.float16)[:, order], b.astype(np.float16)[order]
    assert same_bits(got, mmabits.gemm(*wide, c, instruction=WARP_F16, arch="sm_90a"))
    natural = mmabits.gemm(a.astype(np.float16), b.astype(np.float16), c, instruction=WARP_F16, arch="sm_90a")
    assert not same_bits(got, natural)


def test_mixed_fp8_into_f16_on_ada():
    a, b, c = random((64, 64), ml_dtypes.float8_e4m3fn), random((64, 64), ml_dtypes.float8_e5m2, 1), random((64, 64), np.float16, 2)
    got, report = run_tile("sm_89", a, b, c)
    assert str(report.emulated[0].instruction) == "mma.sync.aligned.m16n8k32.row.col.f16.e4m3.e5m2.f16"
    assert same_bits(got, mmabits.gemm(a, b, c, instruction="mma.sync", arch="sm_89"))


def test_elements_loaded_as_int8_are_laid_out_four_to_a_thread(asked):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 8, (64, 64), dtype=np.int8) for _ in range(2))
    c = random((64, 64), np.float32, 2, scale=1e4)
    got, report = run_tile("sm_80", a, b, c, to=tl.float16)
    order = sorted(range(64), key=lambda k: (k // 32, k % 4 >= 2, k))
    wide_a, wide_b = a.astype(np.float16), b.astype(np.float16)
    assert same_bits(got, mmabits.gemm(wide_a[:, order], wide_b[order], c, instruction=WARP_F16, arch="sm_80"))
    assert not same_bits(got, mmabits.gemm(wide_a, wide_b, c, instruction=WARP_F16, arch="sm_80"))
    assert "K permuted" in report.emulated[0].note


def test_f32_by_three_tf32_products():
    a, b, c = random((64, 32), np.float32), random((32, 64), np.float32, 1), random((64, 64), np.float32, 2)
    got, report = run_tile("sm_90a", a, b, c, precision="tf32x3")

    def dot(x, y, z):
        return mmabits.gemm(x, y, z, instruction="wgmma", arch="sm_90a")

    def large(x):
        return mmabits.decode(mmabits.encode(x, "tf32", rounding="rna"), "tf32").astype(np.float32)

    zero = np.zeros_like(c)
    small = dot(large(a), b - large(b), dot(a - large(a), large(b), zero))
    want = dot(large(a), large(b), small) + c
    assert same_bits(got, want)
    exact = a.astype(np.float64) @ b.astype(np.float64) + c
    assert np.abs(got - exact).max() < 1e-5 < np.abs(dot(a, b, c) - exact).max()
    assert "three tf32 products" in report.emulated[0].note


@pytest.mark.parametrize(("precision", "bound"), [("bf16x3", 1e-3), ("bf16x6", 2e-5)])
def test_f32_by_bf16_products(precision, bound):
    a, b, c = random((64, 32), np.float32), random((32, 64), np.float32, 1), random((64, 64), np.float32, 2)
    got, _ = run_tile("sm_80", a, b, c, precision=precision)
    exact = a.astype(np.float64) @ b.astype(np.float64) + c
    parts = []
    for x in (a, b):
        row = []
        for _ in range(3):
            row.append(x.astype(ml_dtypes.bfloat16))
            x = x - row[-1].astype(np.float32)
        parts.append(row)
    total = np.zeros_like(c)
    terms = {"bf16x3": [(1, 0), (0, 1), (0, 0)], "bf16x6": [(1, 1), (2, 0), (0, 2), (1, 0), (0, 1), (0, 0)]}[precision]
    for i, j in terms:
        total = mmabits.gemm(parts[0][i], parts[1][j], total, instruction="mma.sync", arch="sm_80")
    assert same_bits(got, total + c)
    assert np.abs(got - exact).max() < bound


def test_ieee_f32_is_a_chain_of_fma_and_reported_as_no_tensor_core():
    a, b, c = random((16, 16), np.float32), random((16, 16), np.float32, 1), random((16, 16), np.float32, 2)
    got, report = run_tile("sm_80", a, b, c, precision="ieee")
    total = c.astype(np.longdouble)
    for k in range(16):  # products have 48 bits, so with 64 the sum is wrong only in rare ties
        total = (a[:, k, None].astype(np.longdouble) * b[None, k, :] + total).astype(np.float32).astype(np.longdouble)
    assert same_bits(got, total.astype(np.float32))
    assert not report.emulated
    assert report.skipped[0].operation == "tl.dot 16 x 16 x 16"
    assert "without tensor cores" in report.skipped[0].reason


def test_ieee_f32_has_the_zeros_and_nan_of_fma():
    codes = np.array([*operands.edge_codes("f32").values()], np.uint32)
    rng = operands.generator("triton fma")
    a, b, c = (rng.choice(codes, (16, 16)) for _ in range(3))
    a[:, 2:], b[2:] = a[:, 2:] & (1 << 31), 0x3F800000  # zeros, so that infinities and NaN come of two products and of C
    got, _ = run_tile("sm_80", *(each.view(np.float32) for each in (a, b, c)), precision="ieee")
    want = c.tolist()
    for i, j, k in np.ndindex(16, 16, 16):
        want[i][j] = slow_reference.ieee_fma("f32", int(a[i, k]), int(b[k, j]), want[i][j])
    assert np.asarray(got).view(np.uint32).tolist() == want
    assert {0x7FFFFFFF, 0x7F800000, 0xFF800000} <= {code for row in want for code in row}


def test_sm_75_has_no_tensor_cores_for_triton():
    a, b, c = random((16, 16)), random((16, 16), seed=1), random((16, 16), np.float32, 2)
    _, report = run_tile("sm_75", a, b, c)
    assert not report.emulated
    assert len(report.skipped) == 1


def test_evidence_can_be_required():
    a, b = random((128, 64)), random((64, 64), seed=1)
    with emulate("sm_100a", require="recorded"), pytest.raises(mmabits.MmabitsError, match="recorded is required"):
        one_tile[(1,)](
            tensor(a), tensor(b), torch.zeros(128, 64), M=128, N=64, K=64, OUT=tl.float32, PRECISION=None, IMPRECISE=None, TO=None
        )


# A dot and an addition ---------------------------------------------------------------------------------------------------


@triton.jit
def inner_dot(a, b):
    return tl.dot(a, b)


@triton.jit
def sums(a_ptr, b_ptr, c_ptr, MODE: tl.constexpr, STEPS, CONSTANT_STEPS: tl.constexpr):
    i = tl.arange(0, 64)
    at = i[:, None] * 64 + i[None, :]
    a = tl.load(a_ptr + at)
    b = tl.load(b_ptr + at)
    c = tl.load(c_ptr + at)
    if MODE == "augmented":
        c += tl.dot(a, b)
    if MODE == "reversed":
        c = tl.dot(a, b) + c
    if MODE == "called":
        c += inner_dot(a, b)
    if MODE == "read twice":
        d = tl.dot(a, b)
        c = c + d
        c = c * d
    if MODE == "named":
        once = tl.dot(a, b)
        c = c + once
    if MODE == "loop":
        acc = tl.zeros((64, 64), tl.float32)
        for _ in range(0, STEPS):
            acc = tl.dot(a, b, acc)
        c = acc + c
    if MODE == "constant loop":
        acc = tl.zeros((64, 64), tl.float32)
        for _ in range(0, CONSTANT_STEPS):
            acc = tl.dot(a, b, acc)
        c = acc + c
    if MODE == "augmented loop":
        total = tl.zeros((64, 64), tl.float32)
        for _ in range(0, STEPS):
            total += tl.dot(a, b)
        c = total + c
    if MODE == "two dots":
        c = tl.dot(a, b) + tl.dot(b, a)
    if MODE == "difference":
        c = c - tl.dot(a, b)
    tl.store(c_ptr + at, c)


def run_sums(mode, a, b, c, steps=2, constant=2, arch="sm_90a"):
    result = tensor(c)
    with emulate(arch) as session:
        sums[(1,)](tensor(a), tensor(b), result, MODE=mode, STEPS=steps, CONSTANT_STEPS=constant)
    return result.numpy(), session.report()


@pytest.mark.parametrize("mode", ["augmented", "reversed", "called", "named", "read twice", "two dots", "difference"])
def test_a_dot_and_an_addition(mode):
    a, b, c = random((64, 64)), random((64, 64), seed=1), random((64, 64), np.float32, 2, scale=10)

    def dot(x, y, z=None):
        return mmabits.gemm(x, y, z, instruction="wgmma", arch="sm_90a")

    folded = dot(a, b, c)
    assert not same_bits(folded, dot(a, b) + c)
    want = {"read twice": (c + dot(a, b)) * dot(a, b), "two dots": dot(b, a, dot(a, b)), "difference": c - dot(a, b)}.get(mode, folded)
    got, report = run_sums(mode, a, b, c)
    assert same_bits(got, want)
    assert not any("no other use" in line.note for line in report.emulated)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_sums_after_loops(steps):
    a, b, c = random((64, 64)), random((64, 64), seed=1), random((64, 64), np.float32, 2, scale=10)

    def chain(start):
        for _ in range(steps):
            start = mmabits.gemm(a, b, start, instruction="wgmma", arch="sm_90a")
        return start

    zero = np.zeros_like(c)
    # A loop with one pass that the compiler knows of is no loop; an integer argument of 1 is such a constant.
    want = chain(c) if steps == 1 else chain(zero) + c
    assert same_bits(run_sums("constant loop", a, b, c, constant=steps)[0], want)
    assert same_bits(run_sums("loop", a, b, c, steps=steps)[0], want)
    assert same_bits(run_sums("augmented loop", a, b, c, steps=steps)[0], want)


def test_the_compiler_does_not_fold_a_dot_with_imprecise_sums():
    a, b = random((64, 64), ml_dtypes.float8_e4m3fn), random((64, 64), ml_dtypes.float8_e4m3fn, 1)
    c = random((64, 64), np.float32, 2)
    want = mmabits.gemm(a, b, instruction="wgmma", arch="sm_90a") + c
    assert same_bits(run_sums("augmented", a, b, c)[0], want)
    folded = mmabits.gemm(a, b, c, instruction="tcgen05", arch="sm_100a")
    assert same_bits(run_sums("augmented", a, b, c, arch="sm_100a")[0], folded)


@triton.jit
def unsettled(a_ptr, b_ptr, c_ptr, flag):
    i = tl.arange(0, 64)
    at = i[:, None] * 64 + i[None, :]
    d = tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at))
    c = tl.load(c_ptr + at) + d
    if flag > 0:
        c = c * d
    tl.store(c_ptr + at, c)


def test_uses_that_the_source_does_not_settle():
    a, b, c = random((64, 64)), random((64, 64), seed=1), random((64, 64), np.float32, 2, scale=10)
    with emulate("sm_90a") as session:
        unsettled[(1,)](tensor(a), tensor(b), tensor(c), 0)
    assert "as if the dot had no other use" in session.report().emulated[0].note
    with emulate("sm_90a"), pytest.raises(EmulationError, match=r"uses that depend on the course of the program; write tl.dot"):
        unsettled[(1,)](tensor(a), tensor(b), tensor(c), 1)


# Casts and arithmetic ----------------------------------------------------------------------------------------------------


@triton.jit
def cast_kernel(x_ptr, y_ptr, SIZE: tl.constexpr, TO: tl.constexpr, ROUNDING: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(y_ptr + at, tl.load(x_ptr + at).to(TO, fp_downcast_rounding=ROUNDING))


def cast(x, to, torch_type, rounding=None, arch="sm_90a"):
    result = torch.zeros(x.size, dtype=torch_type)
    with emulate(arch):
        cast_kernel[(1,)](tensor(x), result, SIZE=x.size, TO=to, ROUNDING=rounding)
    return result


EDGES = np.array(
    [0.0, -0.0, 448, 464, 465, 1e9, -1e9, np.inf, -np.inf, np.nan, 2**-9, 2**-10, 1.5 * 2**-10, 57344, 61440, 65536, 1.0625, 1.1875,
        -1.0625,
     3e-8, 1e-40, 240, 0.0625, 17.0], np.float32,
)  # fmt: skip
VALUES = np.concatenate([EDGES, random(1000, np.float32, 3, scale=30)]).astype(np.float32)


@pytest.mark.parametrize(
    ("form", "to", "torch_type"), [("e4m3", tl.float8e4nv, torch.float8_e4m3fn), ("e5m2", tl.float8e5, torch.float8_e5m2)]
)
def test_casts_to_fp8_round_once_and_saturate(form, to, torch_type):
    got = cast(VALUES, to, torch_type).view(torch.uint8).numpy()
    assert same_bits(got, mmabits.encode(VALUES, form, satfinite=True))
    if form == "e4m3" or VERSION > (3, 6):  # how 3.6 rounds f16 to e5m2 is tested below
        with np.errstate(over="ignore"):
            half = VALUES.astype(np.float16)
        got = cast(half, to, torch_type).view(torch.uint8).numpy()
        assert same_bits(got, mmabits.encode(half, form, satfinite=True))


def test_casts_to_16_bits():
    assert same_bits(cast(VALUES, tl.bfloat16, torch.bfloat16).view(torch.uint16).numpy(), mmabits.encode(VALUES, "bf16"))
    assert same_bits(
        cast(VALUES, tl.bfloat16, torch.bfloat16, "rtz").view(torch.uint16).numpy(), mmabits.encode(VALUES, "bf16", rounding="rz")
    )
    assert same_bits(
        cast(VALUES, tl.float16, torch.float16, "rtz").view(torch.uint16).numpy(), mmabits.encode(VALUES, "f16", rounding="rz")
    )


def test_casts_to_integers_cut_and_saturate():
    x = np.array([1.9, -1.9, 127.6, 130.0, 300.0, 40000.0, np.nan, np.inf, -np.inf, 3e9], np.float32)
    assert float_to_integer(x, np.dtype(np.int32)).tolist() == [1, -1, 127, 130, 300, 40000, 0, 2**31 - 1, -(2**31), 2**31 - 1]
    assert float_to_integer(x, np.dtype(np.int8)).tolist() == [1, -1, 127, -126, 44, -1, 0, -1, 0, -1]
    assert float_to_integer(x, np.dtype(np.uint8)).tolist() == [1, 0, 127, 130, 44, 64, 0, 255, 0, 255]
    padded = np.resize(x, 16)
    assert same_bits(cast(padded, tl.int8, torch.int8).numpy(), float_to_integer(padded, np.dtype(np.int8)))


def test_rounding_to_fp8_in_other_versions_and_architectures():
    x = np.array([1.0625, 1.1875, 1e9, 17.0, np.nan, 1.125 + 2**-20], np.float32)
    newest, old = Casts("3.9.0", 90), Casts("3.6.0", 80)
    assert newest.float_to_float(x, "f32", "e5m2").tolist() == mmabits.encode(x, "e5m2", satfinite=True).tolist()
    # Ties go away from zero: 1.125 lies between 1 and 1.25; too large becomes infinity; what is lost below f16 does not count.
    assert old.float_to_float(np.array([1.125, 65536.0], np.float32), "f32", "e5m2").tolist() == [0x3D, 0x7C]
    assert Casts("3.9.0", 80).float_to_float(np.array([np.nan], np.float32), "f32", "e5m2").tolist() == [0xFF]
    just_above_a_tie = np.array([1.0625 + 2**-20], np.float32)
    assert Casts("3.8.0", 89).float_to_float(just_above_a_tie, "f32", "e4m3").tolist() == [0x38]
    assert newest.float_to_float(just_above_a_tie, "f32", "e4m3").tolist() == [0x39]
    # No infinity in e5m2 to bf16.
    assert newest.float_to_float(np.array([0x7C, 0xFC], np.uint8), "e5m2", "bf16").tolist() == [0x4780, 0xC780]
    with pytest.raises(EmulationError, match="does not convert"):
        newest.float_to_float(x, "f32", "e4m3", "rz")


@triton.jit
def bf16_kernel(x_ptr, y_ptr, z_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    x = tl.load(x_ptr + at)
    y = tl.load(y_ptr + at)
    z = tl.where(x > y, x * y + x, -y)
    tl.store(z_ptr + at, z)


def test_arithmetic_on_bf16():
    x, y = random(256, ml_dtypes.bfloat16), random(256, ml_dtypes.bfloat16, 1)
    result = torch.zeros(256, dtype=torch.bfloat16)
    with emulate("sm_90a"):
        bf16_kernel[(1,)](tensor(x), tensor(y), result, SIZE=256)
    product = (x.astype(np.float32) * y.astype(np.float32)).astype(ml_dtypes.bfloat16)
    want = np.where(x > y, (product.astype(np.float32) + x.astype(np.float32)).astype(ml_dtypes.bfloat16), -y)
    assert same_bits(result.view(torch.uint16).numpy(), want.astype(ml_dtypes.bfloat16).view(np.uint16))


@triton.jit
def product_and_sum_kernel(x_ptr, y_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    x = tl.load(x_ptr + at)
    tl.store(y_ptr + at, x * x + 1.0)


@pytest.mark.parametrize("fused", [True, False])
def test_what_the_compiler_would_fuse_is_reported(fused):
    x, y = random(16, np.float32), torch.zeros(16)
    with emulate("sm_90a") as session:
        product_and_sum_kernel[(1,)](tensor(x), y, SIZE=16, **({} if fused else {"enable_fp_fusion": False}))
    assert same_bits(y.numpy(), x * x + np.float32(1))
    assert [line.operation for line in session.report().skipped] == (["a product and a sum"] if fused else [])


@triton.jit
def fp8_sum_kernel(x_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    x = tl.load(x_ptr + at)
    tl.store(x_ptr + at, x + x)


def test_arithmetic_on_fp8_is_refused():
    with emulate("sm_90a"), pytest.raises(EmulationError, match="arithmetic on fp8"):
        fp8_sum_kernel[(1,)](tensor(random(16, ml_dtypes.float8_e4m3fn)), SIZE=16)


# Launches ----------------------------------------------------------------------------------------------------------------


@triton.jit
def helper(x, BLOCK: tl.constexpr):
    return tl.softmax(x.to(tl.float32)) * tl.cdiv(BLOCK, 2)


@triton.jit
def nested_kernel(x_ptr, y_ptr, COUNT, BLOCK: tl.constexpr):
    for row in range(0, COUNT):
        at = row * BLOCK + tl.arange(0, BLOCK)
        tl.store(y_ptr + at, helper(tl.load(x_ptr + at), BLOCK) + tl.minimum(row, 0))


def run_nested(x):
    y = torch.zeros(x.shape, dtype=torch.float32)
    nested_kernel[(1,)](x, y, x.shape[0], BLOCK=x.shape[1])
    return y


def language():
    import triton.runtime.interpreter as interpreter
    from triton import knobs
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    owners = (tl, tl.core, tl.math, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base, interpreter, interpreter.InterpreterBuilder,
              interpreter.TritonSemantic, interpreter.interpreter_builder, JITFunction, Autotuner, interpreter.InterpretedFunction,
              knobs.runtime)  # fmt: skip
    return [dict(vars(owner)) for owner in owners]


def test_device_functions_and_the_standard_library():
    x = torch.from_numpy(random((3, 16), np.float32))
    with emulate("sm_90a"):
        got = run_nested(x)
    assert torch.allclose(got, torch.softmax(x, -1) * 8, atol=1e-6)


def test_everything_is_put_back():
    before, names, environment = language(), dict(globals()), dict(os.environ)
    x = torch.from_numpy(random((3, 16), np.float32))
    with emulate("sm_90a"):
        run_nested(x)
        with emulate("sm_80"):
            run_nested(x)
        run_nested(x)
    assert language() == before
    with pytest.raises(RuntimeError, match="the program's own"), emulate("sm_90a"):
        run_nested(x)
        raise RuntimeError("the program's own")
    with pytest.raises(EmulationError), emulate("sm_80"):
        fp8_sum_kernel[(1,)](tensor(random(16, ml_dtypes.float8_e5m2)), SIZE=16)
    assert language() == before
    assert dict(globals()) == names
    assert dict(os.environ) == environment


def test_the_innermost_session_counts():
    a, b = tensor(random((64, 64))), tensor(random((64, 64), seed=1))
    with emulate("sm_90a") as outer:
        with emulate("sm_80") as inner:
            sums[(1,)](a, b, torch.zeros(64, 64), MODE="augmented", STEPS=1, CONSTANT_STEPS=1)
        assert not outer.report().emulated
        sums[(1,)](a, b, torch.zeros(64, 64), MODE="augmented", STEPS=1, CONSTANT_STEPS=1)
    assert [str(line.instruction.family) for line in inner.report().emulated] == ["mma.sync"]
    assert [str(line.instruction.family) for line in outer.report().emulated] == ["wgmma.mma_async"]


def test_the_report_names_kernel_and_line():
    got = run_sums("called", random((64, 64)), random((64, 64)), random((64, 64), np.float32))[1].emulated[0]
    line = inner_dot.fn.__code__.co_firstlineno + 2
    assert got.site == f"sums in inner_dot, line {line}"
    assert (got.shape, got.count) == ("64 x 64 x 64", 1)


def test_the_language_is_patched_once_a_launch(monkeypatch):
    from mmabits.emulator.hooks.triton import launches

    applied = []
    real = launches.language_changes
    monkeypatch.setattr(launches, "language_changes", lambda: applied.append(1) or real())
    x = torch.from_numpy(random((3, 16), np.float32))
    with emulate("sm_90a"):
        applied.clear()
        run_nested(x)
    assert applied == [1]


def test_no_kernel_is_hashed(monkeypatch):
    """The hash of a JITFunction reads the sources of everything it calls, which fails while the language is patched."""
    from triton.runtime.jit import JITFunction

    def fails(self):
        raise AssertionError("a JITFunction was hashed")

    monkeypatch.setattr(JITFunction, "__hash__", fails)
    with emulate("sm_90a"):
        run_nested(torch.from_numpy(random((3, 16), np.float32)))


def compiled():
    signature = {"x_ptr": "*fp32", "y_ptr": "*fp32", "COUNT": "i32", "BLOCK": "constexpr"}
    return triton.compile(ASTSource(nested_kernel, signature, {(3,): 16}), target=GPUTarget("cuda", 90, 32)).asm["ptx"]


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")
def test_kernels_still_compile_beside_and_after_a_session():
    with emulate("sm_90a"):
        run_nested(torch.from_numpy(random((3, 16), np.float32)))
        assert "ex2.approx" in compiled()
    assert "ex2.approx" in compiled()


@pytest.mark.slow
def test_the_compiler_is_imported_before_anything_is_patched(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        import torch, triton, triton.language as tl
        import mmabits

        @triton.jit
        def kernel(x_ptr, N: tl.constexpr):
            at = tl.arange(0, N)
            x = tl.load(x_ptr + at)
            for i in range(min(N, 2)):
                x = tl.minimum(x, max(i, 1))
            tl.store(x_ptr + at, x)

        with mmabits.emulate("sm_90a", triton="interpreted"):
            x = torch.full((16,), 5.0)
            kernel[(1,)](x, N=16)
            assert x.tolist() == [1.0] * 16, x
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        source = ASTSource(kernel, {"x_ptr": "*fp32", "N": "constexpr"}, {(1,): 16})
        assert "min.f32" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
        """)
    )
    subprocess.run([sys.executable, str(program)], check=True, timeout=120)


def test_outside_a_session_a_kernel_has_tritons_own_error():
    with pytest.raises(RuntimeError, match="active drivers"):
        run_nested(torch.zeros(3, 16))


def test_launches_from_another_thread_are_refused():
    raised = []

    def launch():
        try:
            run_nested(torch.zeros(3, 16))
        except EmulationError as error:
            raised.append(str(error))

    with emulate("sm_90a"):
        thread = threading.Thread(target=launch)
        thread.start()
        thread.join()
    assert raised == ["nested_kernel: launched from another thread than the one inside the emulate block"]


def test_a_device_function_cannot_be_called_on_its_own():
    with emulate("sm_90a"), pytest.raises(EmulationError, match=r"launch it with a grid: helper\[grid\]"):
        helper(torch.zeros(16), 16)


def test_gluon_kernels_are_refused():
    gluon = pytest.importorskip("triton.experimental.gluon")

    @gluon.jit
    def gluon_kernel(x_ptr):
        pass

    with emulate("sm_90a"), pytest.raises(EmulationError, match="gluon_kernel: a Gluon kernel cannot be emulated"):
        gluon_kernel[(1,)](torch.zeros(16))


def test_dots_too_small_for_the_compiler():
    a, b, c = random((16, 8)), random((8, 16)), random((16, 16), np.float32)
    with pytest.raises(
        EmulationError, match=r"one_tile, line \d+: tl.dot 16 x 16 x 8 cannot be emulated for sm_80: .* at least 1 x 1 x 16"
    ):
        run_tile("sm_80", a, b, c)


def test_unknown_arguments_and_architectures():
    with emulate("sm_90a"), pytest.raises(mmabits.MmabitsError, match="takes no argument 'BLOK'"):
        nested_kernel[(1,)](torch.zeros(3, 16), torch.zeros(3, 16), 3, BLOCK=16, BLOK=16)
    with pytest.raises(mmabits.MmabitsError, match=r"unknown architecture 'sm_91'"), emulate("sm_91"):
        pass


def test_launch_options_and_warmup_are_taken():
    x, y = torch.from_numpy(random((3, 16), np.float32)), torch.zeros(3, 16)
    with emulate("sm_90a"):
        assert nested_kernel.warmup(x, y, 3, BLOCK=16, grid=(1,)) is None
        assert not y.any()
        nested_kernel[lambda meta: (meta["BLOCK"] // 16,)](x, y, COUNT=3, BLOCK=16, num_warps=8, num_stages=2)
    assert y.any()


def test_a_kernel_sees_what_it_closes_over():
    factor = tl.constexpr(3)

    @triton.jit
    def closing_kernel(x_ptr, N: tl.constexpr):
        at = tl.arange(0, N)
        tl.store(x_ptr + at, tl.load(x_ptr + at) * factor)

    x = torch.ones(16)
    with emulate("sm_90a"):
        closing_kernel[(1,)](x, N=16)
        assert x.tolist() == [3.0] * 16
        factor = tl.constexpr(5)
        closing_kernel[(1,)](x, N=16)
    assert x.tolist() == [15.0] * 16


def test_an_autotuner_never_measures():
    def measured(kernel_call, quantiles):
        raise AssertionError("measured")

    seen = []
    configs = [triton.Config({"BLOCK": size}, pre_hook=lambda arguments: seen.append(arguments["BLOCK"])) for size in (32, 16)]
    tuned = triton.autotune(configs, key=["COUNT"], do_bench=measured)(nested_kernel)
    with emulate("sm_90a"):
        y = torch.zeros(2, 32)
        tuned[(1,)](torch.zeros(2, 32), y, 2)
        assert y[0, 0] == 16 / 32
        tuned.best_config = configs[1]
        tuned[(1,)](torch.zeros(2, 32), y, 2)
        with pytest.raises(mmabits.MmabitsError, match="BLOCK is chosen by its autotuner"):
            tuned[(1,)](torch.zeros(2, 32), y, 2, BLOCK=16)
    assert seen == [32, 16]


@pytest.mark.parametrize("version", ["3.5.1", "3.10.0", "4.0.0", "unknown"])
def test_other_versions_of_triton_are_refused(version):
    with pytest.raises(EmulationError, match=f"Triton {version} is not emulated; the versions are 3.6 to 3.9"):
        _check_version(version)


# Scaled dots ---------------------------------------------------------------------------------------------------------------


@triton.jit
def scaled_tile(a_ptr, sa_ptr, b_ptr, sb_ptr, c_ptr, K: tl.constexpr, A: tl.constexpr, B: tl.constexpr, SCALES: tl.constexpr):
    """M = N = 128; `sa_ptr` or `sb_ptr` None: no scales."""
    i = tl.arange(0, 128)
    a_k: tl.constexpr = K // 2 if A == "e2m1" else K
    b_k: tl.constexpr = K // 2 if B == "e2m1" else K
    a = tl.load(a_ptr + i[:, None] * a_k + tl.arange(0, a_k)[None, :])
    b = tl.load(b_ptr + tl.arange(0, b_k)[:, None] * 128 + i[None, :])
    at = i[:, None] * SCALES + tl.arange(0, SCALES)[None, :]
    sa = None
    sb = None
    if sa_ptr is not None:
        sa = tl.load(sa_ptr + at)
    if sb_ptr is not None:
        sb = tl.load(sb_ptr + at)
    d = tl.dot_scaled(a, sa, A, b, sb, B)
    tl.store(c_ptr + i[:, None] * 128 + i[None, :], d)


def fp4(shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@triton.jit
def scaled_sum(a_ptr, scale_ptr, b_ptr, c_ptr):
    i = tl.arange(0, 128)
    at = i[:, None] * 128 + i[None, :]
    scale = tl.load(scale_ptr + i[:, None] * 4 + tl.arange(0, 4)[None, :])
    c = tl.load(c_ptr + at)
    c += tl.dot_scaled(tl.load(a_ptr + at), scale, "e4m3", tl.load(b_ptr + at), scale, "e4m3")
    tl.store(c_ptr + at, c)


def test_a_scaled_dot_and_an_addition():
    """Triton makes the other term the accumulator from 3.8 on."""
    a, b = random((128, 128), ml_dtypes.float8_e4m3fn), random((128, 128), ml_dtypes.float8_e4m3fn, 1)
    c, scale = random((128, 128), np.float32, 2, scale=100), np.random.default_rng(0).integers(120, 130, (128, 4), dtype=np.uint8)
    result = tensor(c)
    with emulate("sm_100a"):
        scaled_sum[(1,)](tensor(a), tensor(scale), tensor(b), result)
    scales = scale.view(ml_dtypes.float8_e8m0fnu), np.ascontiguousarray(scale.T).view(ml_dtypes.float8_e8m0fnu)
    folded, apart = (
        mmabits.gemm(
            a, b, start, instruction="tcgen05.mma.kind::mxf8f6f4.block_scale", arch="sm_100a", scale_a=scales[0], scale_b=scales[1]
        )
        for start in (c, None)
    )
    assert not same_bits(folded, apart + c)
    assert same_bits(result.numpy(), folded if VERSION >= (3, 8) else apart + c)


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_scales_of_no_and_all_ones(arch):
    """Codes 0x00 and 0xFF mean 2^-127 and NaN to the instruction; what the decomposition makes of 0x00 depends on the version."""
    k, scales = 128, np.full((128, 4), 127, np.uint8)
    scales[0] = 0xFF
    scales[1] = 0
    result = torch.zeros(128, 128)
    one = torch.full((128, k), 0x38, dtype=torch.uint8).view(torch.float8_e4m3fn)
    up = torch.from_numpy(np.full((128, 4), 254, np.uint8))
    with emulate(arch):
        scaled_tile[(1,)](one, torch.from_numpy(scales), one, up, result, K=k, A="e4m3", B="e4m3", SCALES=4)
    assert torch.isnan(result[0]).all()
    assert not torch.isnan(result[1:]).any()
    smallest = 1.0 if arch == "sm_100a" or VERSION >= (3, 9) else 0.0  # 2^-127 * 2^127 * 128
    assert result[1, 0] == smallest * k


def test_plain_bf16_beside_fp4():
    k = 64
    a = random((128, k), ml_dtypes.bfloat16)
    packed = fp4((k // 2, 128))
    scales = np.random.default_rng(1).integers(120, 130, (128, 2), dtype=np.uint8)
    result = torch.zeros(128, 128)
    with emulate("sm_90a"):
        scaled_tile[(1,)](tensor(a), None, packed, torch.from_numpy(scales), result, K=k, A="bf16", B="e2m1", SCALES=2)
    b = mmabits.layouts.unpack_fp4(packed.numpy(), axis=0).astype(np.float32)
    wide = (b * np.repeat(np.exp2(scales.T.astype(np.float32) - 127), 32, axis=0)).astype(ml_dtypes.bfloat16)
    assert same_bits(result.numpy(), mmabits.gemm(a, wide, instruction="wgmma", arch="sm_90a"))


@pytest.mark.parametrize(("with_a", "scales", "message"), [(False, 4, "an operand of e2m1 has no lhs_scale"),
                                                           (True, 2, r"lhs_scale must have shape \(128, 128 / 32\)")])  # fmt: skip
def test_wrong_scales(with_a, scales, message):
    some = torch.full((128, scales), 127, dtype=torch.uint8)
    with emulate("sm_100a"), pytest.raises(EmulationError, match=message):
        scaled_tile[(1,)](
            fp4((128, 64)), some if with_a else None, fp4((64, 128)), some, torch.zeros(128, 128), K=128, A="e2m1", B="e2m1", SCALES=scales
        )


def test_wrong_formats():
    some = torch.full((128, 4), 127, dtype=torch.uint8)
    with (
        emulate("sm_100a"),
        pytest.raises(EmulationError, match=r"format 'e3m2' cannot be emulated.* allowed: e2m1, e4m3, e5m2, bf16, fp16"),
    ):
        scaled_tile[(1,)](fp4((128, 128)), some, fp4((128, 128)), some, torch.zeros(128, 128), K=128, A="e3m2", B="e3m2", SCALES=4)


def test_blocks_that_the_instruction_does_not_have():
    """Scales for 16 elements each in ue8m0 on sm_120: the compiler emits an instruction that reads them as for 32.

    That of Triton 3.6 and 3.7 does not take such scales.
    """
    some = torch.full((128, 8), 127, dtype=torch.uint8)
    with emulate("sm_120a"), pytest.raises(EmulationError, match=r"for scales of 16 elements each|lhs_scale must be"):
        scaled_tile[(1,)](fp4((128, 64)), some, fp4((64, 128)), some, torch.zeros(128, 128), K=128, A="e2m1", B="e2m1", SCALES=8)


# Plans -------------------------------------------------------------------------------------------------------------------


def test_orders_of_k():
    assert k_order(2, 16, 64, 16) == ()
    # Four neighbours a thread, two a register: 32 elements make two instructions.
    low, high = [0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]
    assert list(k_order(4, 16, 32, 16)) == [*low, *(k + 16 for k in low), *high, *(k + 16 for k in high)]
    # A tile of one instruction: both registers come from the same run.
    assert list(k_order(4, 16, 16, 16)) == [*low, *high]
    assert sorted(k_order(8, 16, 128, 16)) == list(range(128))
    assert k_order(8, 16, 64, 16)[:4] == (0, 1, 8, 9)
    with pytest.raises(EmulationError, match="not emulated"):
        k_order(8, 16, 16, 16)


def test_the_table_serves_where_the_compiler_cannot_be_asked(asked, not_asked, monkeypatch):
    def cannot(self, question):
        raise CannotAsk

    a, b, c = random((64, 128), ml_dtypes.float8_e4m3fn), random((128, 64), ml_dtypes.float8_e4m3fn, 1), random((64, 64), np.float32, 2)
    by_compiler, report = run_tile("sm_90a", a, b, c, imprecise=64)
    assert f"as Triton {triton.__version__} compiles it" in report.emulated[0].note
    monkeypatch.setattr(Compiler, "ask", cannot)
    by_table, report = run_tile("sm_90a", a, b, c, imprecise=64)
    assert same_bits(by_table, by_compiler)
    assert "by the table" in report.emulated[0].note


def test_a_compiler_that_cannot_be_started(asked):
    compiler = Compiler("0.0.0")
    compiler._folder = None
    with pytest.raises(CannotAsk, match="cannot be loaded"):
        compiler.ask({"scaled": False})


def test_what_the_compiler_emits_must_be_understood():
    dot = Dot(capability=90, a="f16", b="f16", acc="f32", m=64, n=64, k=64)
    words = {"words": {}, "widths": []}
    for opcodes, message in (
        ({WARP_F16: 1, "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16": 1}, "mixes"),
        ({"fma.rn.f64": 1}, "no tensor core but fma.rn.f64"),
        ({"mma.sync.aligned.m16n8k17.row.col.f32.f16.f16.f32": 1}, "which is not emulated"),
        ({"wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16": 4, "add.f32": 7}, "emits 7 additions"),
    ):
        with pytest.raises(EmulationError, match=message):
            read_plan("sm_90a", dot, {"opcodes": opcodes, **words}, "")
    with pytest.raises(EmulationError, match="rejects it: no"):
        read_plan("sm_90a", dot, {"error": "no"}, "")


ARCH = {80: "sm_80", 89: "sm_89", 90: "sm_90a", 100: "sm_100a", 103: "sm_103a", 120: "sm_120a"}


def plain_grid(capability):
    default = 2**30 if capability == 90 else 0
    for a, acc, m, k, extra in (
        ("f16", "f32", 64, 64, {}), ("f16", "f16", 128, 32, {"warps": 8}), ("f16", "f32", 16, 64, {}), ("f16", "f32", 64, 64, {"warps": 2}),
        ("f16", "f32", 32, 32, {"batch": 2}), ("f16", "f32", 16, 64, {"b_loaded": "s8"}), ("f16", "f32", 16, 16, {"b_loaded": "s8"}),
        *(("f16", "f32", 16, 64, {"b_loaded": "s8", "b_joined": bits}) for bits in (8, 16, 32, 64)),
        *(("f16", "f32", 16, 64, {"a_joined": bits}) for bits in (8, 16, 32, 64)),
        *(("f16", "f32", 16, k, {"b_loaded": "s8", "b_joined": 16}) for k in (16, 32, 128)), ("f16", "f32", 16, 16, {"b_joined": 32}),
        ("f32", "f32", 16, 64, {"b_loaded": "f16", "b_joined": 32}),
        ("f32", "f32", 16, 64, {"b_loaded": "f16"}), ("bf16", "f32", 128, 32, {}), ("f32", "f32", 64, 32, {}),
        ("f32", "f32", 64, 32, {"precision": "tf32x3"}), ("f32", "f32", 64, 32, {"precision": "bf16x6"}),
        ("f32", "f32", 64, 32, {"precision": "ieee"}), ("e5m2", "f32", 64, 64, {"imprecise": default}),
        ("e5m2", "f32", 16, 64, {"imprecise": default}), ("e5m2", "f16", 64, 64, {}), ("e5m2", "f32", 64, 128, {"imprecise": 96}),
        ("e5m2", "f32", 64, 128, {"imprecise": 0}), ("e4m3", "f32", 128, 64, {"imprecise": default}), ("s8", "s32", 64, 64, {}),
        ("s8", "s32", 16, 64, {}), ("f64", "f64", 64, 16, {}),
    ):  # fmt: skip
        yield Dot(capability=capability, a=a, b=a, acc=acc, m=m, n=64, k=k, **extra)


def scaled_grid(capability):
    for a, b, scale, block, m, fast in (
        ("e4m3", "e4m3", "ue8m0", 32, 128, False), ("e5m2", "e2m1", "ue8m0", 32, 128, False), ("e2m1", "e2m1", "ue8m0", 32, 128, False),
        ("e2m1", "e2m1", "ue4m3", 16, 128, False), ("e2m1", "e2m1", "ue8m0", 16, 128, False), ("e5m2", "e5m2", "ue8m0", 32, 16, False),
        ("e2m1", "e2m1", "ue8m0", 32, 16, True),
    ):  # fmt: skip
        yield ScaledDot(
            capability=capability, a=a, b=b, m=m, n=64, k=128, a_scale=scale, b_scale=scale, a_block=block, b_block=block, fast=fast
        )
    yield ScaledDot(capability=capability, a="bf16", b="e2m1", m=128, n=64, k=64, a_scale="", b_scale="ue8m0", a_block=0, b_block=32)


def plan_or_error(capability, dot, facts):
    try:
        return read_plan(ARCH[capability], dot, facts, "")
    except EmulationError:
        return None


def assert_table_is_the_compiler(capability, dots):
    compiler = Compiler(triton.__version__)
    for dot in dots:
        by_table = plan_or_error(capability, dot, facts_of(dot, triton.__version__))
        assert by_table == plan_or_error(capability, dot, compiler.ask(dot.question)), dot


@pytest.mark.parametrize("capability", [90, 100])
def test_the_table_agrees_with_the_compiler_on_a_few(asked, capability):
    assert_table_is_the_compiler(capability, list(plain_grid(capability))[:4])


@pytest.mark.slow
@pytest.mark.parametrize("capability", ARCH)
def test_the_table_agrees_with_the_compiler(capability):
    assert_table_is_the_compiler(capability, (*plain_grid(capability), *scaled_grid(capability)))


def test_a_planner_asks_once_for_each_kind_of_dot():
    asked = []

    def ask(question):
        asked.append(question)
        return facts_of(dot, "3.9.0")

    dot = Dot(capability=90, a="f16", b="f16", acc="f32", m=64, n=64, k=64)
    planner = Planner("sm_90a", ask, "3.9.0")
    assert planner.plan(dot) is planner.plan(dot)
    assert len(asked) == 1


@triton.jit
def counted_down(x, n: tl.constexpr):
    if n == 0:
        return x
    return counted_down(x + 1, n - 1)


@triton.jit
def counting(p, n: tl.constexpr):
    at = tl.arange(0, 16)
    tl.store(p + at, counted_down(tl.load(p + at), n))


def test_a_function_that_calls_itself_runs():
    x = torch.zeros(16)
    with mmabits.emulate("sm_90a", triton="interpreted"):
        counting[(1,)](x, 3)
    assert x.tolist() == [3.0] * 16
