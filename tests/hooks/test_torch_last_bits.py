"""The NaN codes and zeros that PyTorch's products leave in memory under `emulate`, by hand: those that a GPU stores.

A CPU keeps the sign and the fraction of an operand's NaN, makes a negative one itself, and PyTorch's conversion to bfloat16 sets every bit.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from mmabits.emulator.hooks.session import emulate  # noqa: E402

INTEGERS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}
NAN = {torch.float16: 0x7FFF, torch.bfloat16: 0x7FFF, torch.float32: 0x7FFFFFFF, torch.float64: 0x7FF8 << 48}
PAYLOAD = {torch.float16: -0x03FE, torch.bfloat16: -0x007E, torch.float32: -0x003FFFFE, torch.float64: -0x0007FFFFFFFFFFFE}
"""Codes of a NaN with the sign set, quiet, with a low bit."""
TYPES = list(NAN)


@pytest.fixture(autouse=True)
def tf32():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def emulated(arch="sm_90a"):
    return emulate(arch, frameworks=["torch"])


def codes(tensor):
    return tensor.view(INTEGERS[tensor.dtype]).tolist()


def with_nan(shape, dtype, at):
    """Ones, and one NaN of an unusual code."""
    found = torch.ones(shape, dtype=dtype)
    found.view(INTEGERS[dtype])[at] = PAYLOAD[dtype]
    assert found[at].isnan()
    return found


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_products_and_what_is_added_to_them(dtype):
    a, b, c = with_nan((3, 16), dtype, (1, 5)), torch.ones(16, 8, dtype=dtype), with_nan((3, 8), dtype, (2, 7))
    one = codes(torch.full((8,), 16.0, dtype=dtype))
    nan = [NAN[dtype]] * 8
    with emulated():
        assert codes(a @ b) == [one, nan, one]
        assert codes(torch.bmm(a[None], b[None])[0]) == [one, nan, one]
        assert codes(torch.addmm(c, a, b))[1:] == [nan, [*codes(torch.full((7,), 17.0, dtype=dtype)), NAN[dtype]]]
        assert codes(torch.baddbmm(c[None], a[None], b[None]))[0][2][7] == NAN[dtype]
        assert codes(torch.addbmm(c, a[None], b[None]))[2][7] == NAN[dtype]
        assert codes(torch.addmm(c, a, b, out=torch.empty(3, 8, dtype=dtype)))[2][7] == NAN[dtype]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_what_the_cpu_would_make_negative(dtype):
    """Infinity minus infinity, in the epilogue: x86 gives it a sign."""
    a, b, c = torch.full((2, 16), float("inf"), dtype=dtype), torch.ones(16, 8, dtype=dtype), torch.full((2, 8), float("-inf"), dtype=dtype)
    with emulated():
        assert codes(torch.addmm(c, a, b)) == [[NAN[dtype]] * 8] * 2
        assert codes(a @ b) == codes(torch.full((2, 8), float("inf"), dtype=dtype))


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fast", [False, True])
def test_scaled_products(out_dtype, fast):
    """Per tensor, by rows, and in blocks, whose sums a fused multiply-add scales and adds."""
    a, b = torch.ones(16, 256).to(torch.float8_e4m3fn), torch.ones(32, 256).to(torch.float8_e4m3fn).t()
    a.view(torch.uint8)[3, 200] = 0xFF
    one, row = torch.tensor(1.0), torch.ones(16, 1)
    row[5], wanted = float("nan"), {3, 5}
    with emulated():
        tensorwise = torch._scaled_mm(a, b, one, one, out_dtype=out_dtype, use_fast_accum=fast)
        rowwise = torch._scaled_mm(a, b, row, torch.ones(1, 32), out_dtype=out_dtype, use_fast_accum=fast)
    for got, rows in ((tensorwise, {3}), (rowwise, wanted)):
        assert {i for i, line in enumerate(codes(got)) if set(line) == {NAN[out_dtype]}} == rows
        assert {i for i, line in enumerate(got.isnan().tolist()) if any(line)} == rows


def test_blocks_of_128():
    a, b = torch.ones(16, 256).to(torch.float8_e4m3fn), torch.ones(32, 256).to(torch.float8_e4m3fn).t()
    left, right = torch.ones(2, 16).t(), torch.ones(2, 32)
    left.view(torch.int32)[4, 1] = PAYLOAD[torch.float32]
    left[6, 0], left[6, 1] = float("inf"), float("-inf")
    with emulated():
        got = torch._scaled_mm(a, b, left, right, out_dtype=torch.float32)
    assert {i for i, line in enumerate(codes(got)) if line == [0x7FFFFFFF] * 32} == {4, 6}
    assert got[[0, 5]].tolist() == [[256.0] * 32] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_groups(dtype):
    x, w = with_nan((16, 64), dtype, (9, 3)), torch.ones(2, 64, 32, dtype=dtype)
    with emulated():
        got = torch._grouped_mm(x, w, offs=torch.tensor([8, 16], dtype=torch.int32))
    assert codes(got)[9] == [NAN[dtype]] * 32 and not got[:9].isnan().any() and not got[10:].isnan().any()


@pytest.mark.parametrize(("k", "code"), [(8, -1 << 63), (7, 0)])
def test_zeros_of_f64(k, code):
    """The zeros that fill the last instruction are added too: -0 comes out where K is whole instructions, else +0."""
    a, b = torch.full((1, k), -1e-200, dtype=torch.float64), torch.full((k, 1), 1e-200, dtype=torch.float64)
    with emulated("sm_80"):
        assert codes(a @ b) == [[code]]
