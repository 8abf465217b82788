"""What Triton's compiler takes and computes, and its interpreter does not: constants, tuples, methods, questions for the target, types."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.isa import EmulationError

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton.language.extra import libdevice  # noqa: E402
from triton.language.target_info import cuda_capability_geq, is_cuda  # noqa: E402

BLOCK = tl.constexpr(32)


def emulate(arch="sm_90a"):
    return mmabits.emulate(arch, frameworks=["triton"], triton="interpreted")


# Constants, tuples, the target -------------------------------------------------------------------------------------------


@triton.jit
def constants(o_ptr, N: tl.constexpr):
    tl.static_assert(N % BLOCK == 0)
    tl.store(o_ptr, N % (BLOCK - 2) + N.value)
    M: tl.constexpr = N // 2
    tl.store(o_ptr + 1, M.value if False else M // BLOCK)
    tl.store(o_ptr + 2, (N & BLOCK) + (N | BLOCK) + (1 << BLOCK // 16))


def test_declared_constants_on_the_right_and_their_values():
    out = torch.zeros(3, dtype=torch.int32)
    with emulate():
        constants[(1,)](out, N=64)
    assert out.tolist() == [64 % 30 + 64, 1, (64 & 32) + (64 | 32) + 4]
    with pytest.raises(TypeError):
        64 % BLOCK


@triton.jit
def beside_zero(a):
    return a, 0


@triton.jit
def tuples(o_ptr):
    first, zero = beside_zero(tl.program_id(0))
    five, six = 5, 6
    tl.store(o_ptr, first.to(tl.int64) + zero.to(tl.int64) + five.to(tl.int64) * six.to(tl.int64))


def test_numbers_taken_out_of_tuples_are_tensors():
    out = torch.zeros(1, dtype=torch.int64)
    with emulate():
        tuples[(1,)](out)
    assert out.item() == 30


@triton.jit
def target(o_ptr):
    tl.store(o_ptr, 1 if is_cuda() else 0)
    tl.store(o_ptr + 1, 1 if cuda_capability_geq(9, 0) else 0)
    tl.store(o_ptr + 2, 1 if cuda_capability_geq(10, 0) else 0)


@pytest.mark.parametrize(("arch", "want"), [("sm_80", [1, 0, 0]), ("sm_90a", [1, 1, 0]), ("sm_103a", [1, 1, 1])])
def test_the_target_is_the_architecture(arch, want):
    out = torch.zeros(3, dtype=torch.int32)
    outside = is_cuda(), cuda_capability_geq(9, 0)
    with emulate(arch):
        target[(1,)](out)
        assert (is_cuda(), cuda_capability_geq(9, 0)) == (True, bool(want[1]))
    assert out.tolist() == want
    assert (is_cuda(), cuda_capability_geq(9, 0)) == outside


@triton.jit
def methods(x_ptr, o_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    x = tl.load(x_ptr + at)
    i = x.to(tl.int32)
    tl.store(o_ptr, x.sum(0))
    tl.store(o_ptr + 1, x.max(0))
    tl.store(o_ptr + 2, x.min(0))
    tl.store(o_ptr + 3, x.argmax(0))
    tl.store(o_ptr + 4, i.xor_sum(0))
    tl.store(o_ptr + 5, i.cdiv(2).sum(0))
    tl.store(o_ptr + 6 + at, x.cumsum(0))
    tl.store(o_ptr + 6 + N + at, x.exp())
    tl.store(o_ptr + 6 + 2 * N + at, x[:, None].T.reshape(N))
    tl.store(o_ptr + 6 + 3 * N + at, x.sigmoid())
    tl.store(o_ptr + 6 + 4 * N + at, x.flip(0))


def test_methods_of_tensors():
    x, out = torch.tensor([3.0, 1.0, 7.0, 5.0]), torch.zeros(26)
    with emulate():
        methods[(1,)](x, out, N=4)
    assert out[:6].tolist() == [16, 7, 1, 2, 3 ^ 1 ^ 7 ^ 5, 2 + 1 + 4 + 3]
    assert out[6:10].tolist() == [3, 4, 11, 16]
    assert torch.allclose(out[10:14], x.exp())
    assert torch.equal(out[14:18], x)
    assert torch.allclose(out[18:22], x.sigmoid())
    assert torch.equal(out[22:], x.flip(0))


# Types -------------------------------------------------------------------------------------------------------------------


@triton.jit
def cast(x_ptr, o_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(o_ptr + at, tl.load(x_ptr + at).to(o_ptr.dtype.element_ty))


def bf16_of(value):
    """The nearest bf16 to a rational number, ties to even: from its two neighbours."""
    exponent = math.floor(math.log2(abs(value))) - 7
    low = math.floor(value / 2**exponent) if isinstance(value, float) else value // 2**exponent
    rest = value - low * 2**exponent
    low += 2 * rest > 2**exponent or (2 * rest == 2**exponent and low % 2 == 1)
    return float(low) * 2.0**exponent


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_integers_to_bf16(arch):
    """One rounding from sm_90 on (cvt.rn.bf16.s32), two before, by way of f32, where 2^24 + 2^16 + 1 loses what breaks the tie."""
    values = [2**24 + 2**16 + 1, -(2**24) - 2**16 - 1, 257, 255, 2**31 - 1, 2**24 + 3 * 2**16 - 1, 12345678]
    for dtype, more in ((torch.int32, []), (torch.int64, [2**55 + 2**47 + 1, -(2**55) - 2**47 - 1, 2**63 - 1, 2**62 + 2**54 + 1])):
        x = torch.tensor([*values, *more, *[0] * (16 - len(values) - len(more))], dtype=dtype)
        out = torch.zeros(16, dtype=torch.bfloat16)
        with emulate(arch):
            cast[(1,)](x, out, N=16)
        for got, value in zip(out.tolist(), x.tolist(), strict=True):
            once = bf16_of(value) if value else 0.0
            twice = bf16_of(float(np.float32(value))) if value else 0.0
            assert got == (twice if arch == "sm_80" else once), (value, got)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_f64_to_bf16_is_rounded_once(arch):
    """In one instruction, or by way of an f32 that keeps a sign of what it lost."""
    values = [1 + 2**-8 + 2**-40, 1 + 2**-8, 1 + 3 * 2**-8 - 2**-40, -(1 + 2**-8 + 2**-40), 3.0, 1e300, -1e300, 2.0**-133 * (0.5 + 2**-40)]
    out = torch.zeros(8, dtype=torch.bfloat16)
    with emulate(arch):
        cast[(1,)](torch.tensor(values, dtype=torch.float64), out, N=8)
    assert out.tolist() == [1 + 2**-7, 1.0, 1 + 2**-7, -(1 + 2**-7), 3.0, math.inf, -math.inf, 2.0**-133]


@triton.jit
def elementwise(x_ptr, y_ptr, z_ptr, o_ptr, N: tl.constexpr, MODE: tl.constexpr):
    at = tl.arange(0, N)
    x = tl.load(x_ptr + at)
    y = tl.load(y_ptr + at)
    z = tl.load(z_ptr + at)
    r = x
    if MODE == "fma":
        r = tl.fma(x, y, z)
    if MODE == "floor":
        r = tl.floor(x)
    if MODE == "ceil":
        r = tl.ceil(x)
    if MODE == "maximum":
        r = tl.maximum(x, y)
    if MODE == "minimum":
        r = tl.minimum(x, y)
    if MODE == "clamp":
        r = tl.clamp(x, y, z)
    if MODE == "half":
        r = x * 0.5
    if MODE == "tanh":
        r = libdevice.tanh(x)
    if MODE == "round":
        r = libdevice.round(x)
    if MODE == "divide":
        r = libdevice.div_rn(x, y)
    if MODE == "unknown":
        r = libdevice.tgamma(x)
    if MODE == "assembly":
        r = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)
    tl.store(o_ptr + at, r)


def elements(mode, *arrays):
    def tensor(array):
        bf16 = array.dtype.name == "bfloat16"
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16) if bf16 else torch.from_numpy(array.copy())

    arrays = [np.asarray(array) for array in arrays]
    x, y, z = (tensor(arrays[min(index, len(arrays) - 1)]) for index in range(3))
    out = torch.zeros_like(x)
    with emulate() as session:
        elementwise[(1,)](x, y, z, out, N=x.numel(), MODE=mode)
    return out, session.report().skipped


@pytest.mark.parametrize("held", [np.float16, ml_dtypes.bfloat16])
def test_multiply_adds_of_16_bits_round_once(held):
    rng = np.random.default_rng(0)
    x, y, z = (rng.standard_normal(1024).astype(np.float32).astype(held) for _ in range(3))
    x[0], y[0], z[0] = 1 + 2**-7, 2**-9 + 2**-12, -(2.0**12)  # a product far below the sum's last place
    got, lines = elements("fma", x, y, z)
    wide = [array.astype(np.longdouble) for array in (x, y, z)]  # 64 bits hold each sum here
    want = np.array([np.float64(a * b + c) for a, b, c in zip(*wide, strict=True)]).astype(held)
    assert got.view(torch.uint16).numpy().tobytes() == want.tobytes()
    assert not lines


def test_rounding_to_integers_takes_subnormal_numbers_for_zeros():
    """cvt.rmi.ftz and cvt.rpi.ftz, in the PTX of every version."""
    x = np.array([-1e-40, 1e-40, -0.0, -1.5, 2.5, np.float32(2**-126), -np.float32(2**-126), np.inf], np.float32)
    assert elements("floor", x)[0].numpy().tobytes() == np.array([-0.0, 0, -0.0, -2, 2, 0, -1, np.inf], np.float32).tobytes()
    assert elements("ceil", x)[0].numpy().tobytes() == np.array([-0.0, 0, -0.0, -1, 3, 1, -0.0, np.inf], np.float32).tobytes()


def test_extrema_pass_a_nan_over():
    x, y = np.array([np.nan, 1.0, 3.0, np.nan], np.float32), np.array([2.0, np.nan, 1.0, np.nan], np.float32)
    assert elements("maximum", x, y)[0].tolist()[:3] == [2.0, 1.0, 3.0]
    assert elements("minimum", x, y)[0].tolist()[:3] == [2.0, 1.0, 1.0]
    low, high = np.zeros(4, np.float32), np.full(4, 2, np.float32)
    assert elements("clamp", x, low, high)[0].tolist() == [0.0, 1.0, 2.0, 0.0]


def test_constants_beside_bf16():
    x = np.array([1.0, 3.0, 255.0, -0.0], np.float32).astype(ml_dtypes.bfloat16)
    assert elements("half", x)[0].tolist() == [0.5, 1.5, 127.5, 0.0]


def test_libdevice():
    x = np.array([0.5, -2.5, 1.5, 0.49999997, -1e-40, 3e38, 2.0, -0.0], np.float32)
    got, lines = elements("tanh", x)
    assert np.allclose(got.numpy(), np.tanh(x))
    assert [line.operation for line in lines] == ["libdevice.tanh"]
    got, lines = elements("round", x)
    assert got.numpy().tobytes() == np.array([1, -3, 2, 0, -0.0, 3e38, 2, -0.0], np.float32).tobytes()
    assert not lines
    got, lines = elements("divide", x, np.array([3, 3, 1e30, 1, 1, np.inf, 1e-39, 1], np.float32))
    want = np.array(
        [np.float32(0.5) / 3, np.float32(-2.5) / 3, np.float32(1.5) / np.float32(1e30), 0.49999997, -0.0, 0, np.inf, -0.0], np.float32
    )
    assert got.numpy().tobytes() == want.tobytes()  # div.rn.ftz: 1e-40 and 1e-39 are zeros
    assert not lines


@pytest.mark.parametrize(
    ("mode", "message"), [("unknown", "libdevice function __nv_tgammaf cannot be emulated"), ("assembly", "inline assembly")]
)
def test_what_the_interpreter_cannot_do_is_refused(mode, message):
    with pytest.raises(EmulationError, match=rf"elementwise, line \d+: {message}"):
        elements(mode, np.ones(4, np.float32))


# Names that are bound again ----------------------------------------------------------------------------------------------


@triton.jit
def straight(a_ptr, b_ptr, o_ptr):
    i = tl.arange(0, 64)
    at = i[:, None] * 64 + i[None, :]
    s = tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at))
    s = 1 + s + 0.5 * s * s
    tl.store(o_ptr + at, s)


@triton.jit
def straight_once(a_ptr, b_ptr, o_ptr):
    i = tl.arange(0, 64)
    at = i[:, None] * 64 + i[None, :]
    s = tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at))
    s = tl.load(o_ptr + at) + s
    s = s * s
    tl.store(o_ptr + at, s)


def test_a_dot_whose_name_is_bound_again():
    """The compiler makes `1` no accumulator of the first, whose dot has three uses, and the loaded term one of the second."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((64, 64)).astype(np.float16) for _ in range(2))
    c = (10 * rng.standard_normal((64, 64))).astype(np.float32)
    dot = mmabits.gemm(a, b, instruction="wgmma", arch="sm_90a")
    folded = mmabits.gemm(a, b, c, instruction="wgmma", arch="sm_90a")
    assert folded.tobytes() != (dot + c).tobytes()
    out = torch.zeros(64, 64)
    with emulate() as session:
        straight[(1,)](torch.from_numpy(a), torch.from_numpy(b), out)
        half = np.float32(0.5)
        assert out.numpy().tobytes() == ((np.float32(1) + dot) + half * dot * dot).tobytes()
        out.copy_(torch.from_numpy(c))
        straight_once[(1,)](torch.from_numpy(a), torch.from_numpy(b), out)
        assert out.numpy().tobytes() == (folded * folded).tobytes()
    assert not any("no other use" in line.note for line in session.report().emulated)
