"""Arguments of kernels, typed as Triton's compiler types them, and the memory that a kernel may touch."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.isa import OperandError

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402


def emulate(arch="sm_90a"):
    return mmabits.emulate(arch, frameworks=["triton"], triton="interpreted")


# Numbers -----------------------------------------------------------------------------------------------------------------


@triton.jit
def scaled(x_ptr, y_ptr, factor, FACTOR: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)
    x = tl.load(x_ptr + at)
    tl.store(y_ptr + at, x * factor)
    tl.store(y_ptr + N + at, x * FACTOR)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_float_argument_is_f32_and_a_constant_has_the_type_of_the_block(name):
    """The compiler widens the block to f32 for an argument, and gives a constant the block's type."""
    held = np.dtype(getattr(ml_dtypes, name, np.float16))
    x = np.random.default_rng(0).standard_normal(64).astype(np.float32).astype(held)
    y, factor = torch.zeros(128), 0.1803368801
    with emulate():
        scaled[(1,)](torch.from_numpy(x.view(np.uint16).copy()).view(getattr(torch, name)), y, factor, FACTOR=factor, N=64)
    wide = x.astype(np.float32) * np.float32(factor)
    narrow = (x.astype(np.float32) * np.float32(held.type(factor))).astype(held).astype(np.float32)
    assert y[:64].numpy().tobytes() == wide.tobytes()
    assert y[64:].numpy().tobytes() == narrow.tobytes()
    assert (wide != narrow).any()


@triton.jit
def types(o_ptr, n, many: tl.constexpr):
    tl.store(o_ptr, n.dtype.primitive_bitwidth)
    tl.store(o_ptr + 1, n.dtype.is_int_unsigned())
    tl.store(o_ptr + 2, n.dtype.is_floating())
    tl.store(o_ptr + 3, n.to(tl.int64) if many else 0)


@pytest.mark.parametrize(
    ("value", "bits", "unsigned"),
    [(0, 32, 0), (2, 32, 0), (-(2**31), 32, 0), (2**31 - 1, 32, 0), (2**31, 64, 0), (2**32 - 1, 64, 0), (-(2**31) - 1, 64, 0),
     (2**63 - 1, 64, 0), (2**63, 64, 1), (2**64 - 1, 64, 1)],
)  # fmt: skip
def test_types_of_integers(value, bits, unsigned):
    out = torch.zeros(4, dtype=torch.int64)
    with emulate():
        types[(1,)](out, value, many=True)
    assert out.tolist() == [bits, unsigned, 0, (value + 2**63) % 2**64 - 2**63]


def test_types_of_bools_and_floats():
    out = torch.zeros(4, dtype=torch.int64)
    with emulate():
        types[(1,)](out, True, many=False)
        assert out.tolist()[0] == 1
        types[(1,)](out, 1.0, many=False)
        assert out.tolist()[:3] == [32, 0, 1]


@triton.jit
def added(x_ptr, y_ptr, n, N: tl.constexpr):
    at = tl.arange(0, N)
    x = tl.load(x_ptr + at)
    tl.store(y_ptr + at, x * n + x)


@triton.jit(do_not_specialize=["n"])
def added_unspecialized(x_ptr, y_ptr, n, N: tl.constexpr):
    at = tl.arange(0, N)
    x = tl.load(x_ptr + at)
    tl.store(y_ptr + at, x * n + x)


@pytest.mark.parametrize(("kernel", "n", "want"), [(added, 1, -56), (added, 2, 300), (added, True, -56), (added_unspecialized, 1, 200)])
def test_one_is_a_literal(kernel, n, want):
    """A literal takes the type of the block, here int8; any other integer is an i32, and the sum one, too."""
    out = torch.zeros(16, dtype=torch.int32)
    with emulate():
        kernel[(1,)](torch.full((16,), 100, dtype=torch.int8), out, n, N=16)
    assert out.tolist() == [want] * 16


@triton.jit
def annotated(y_ptr, half: fp16, brain: bf16, double: tl.float64, small: i8):  # noqa: F821 - names of Triton's
    tl.store(y_ptr, half)
    tl.store(y_ptr + 1, brain)
    tl.store(y_ptr + 2, double)
    tl.store(y_ptr + 3, small)


def test_annotations_count():
    """f16 is rounded by Python, bf16 cut: both as Triton's launcher does it."""
    out = torch.zeros(4, dtype=torch.float64)
    with emulate():
        annotated[(1,)](out, 1 + 2**-11 + 2**-20, 1 + 2**-7 - 2**-20, 0.1, -7)
        assert out.tolist() == [1 + 2**-10, 1.0, 0.1, -7.0]
        with pytest.raises(OperandError, match="small: 128 is no i8"):
            annotated[(1,)](out, 1.0, 1.0, 1.0, 128)


@triton.jit
def of_a_tuple(x_ptr, y_ptr, pair, N: tl.constexpr):
    at = tl.arange(0, N)
    x = tl.load(x_ptr + at)
    tl.store(y_ptr + at, x * pair[0] * pair[1])


def test_numbers_in_tuples():
    x, y = torch.full((16,), 1 + 2**-10, dtype=torch.float16), torch.zeros(16)
    with emulate():
        of_a_tuple[(1,)](x, y, (1, 1.1), N=16)
    assert y[0].item() == np.float32(1 + 2**-10) * np.float32(1.1)


def test_what_triton_takes_for_no_argument():
    with emulate(), pytest.raises(OperandError, match=r"n: failed to specialize argument of type: .*int32"):
        added[(1,)](torch.zeros(16), torch.zeros(16), np.int32(3), N=16)


# Memory ------------------------------------------------------------------------------------------------------------------


@triton.jit
def copy(x_ptr, y_ptr, offset, bound, N: tl.constexpr):
    at = tl.arange(0, N) + offset
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < bound), mask=at < bound)


@pytest.mark.parametrize(
    ("sizes", "offset", "message"),
    [((16, 64), 0, r"copy, line \d+: a load leaves its argument x_ptr: it reaches 192 bytes past the last of its 64"),
     ((64, 16), 0, r"copy, line \d+: a store leaves its argument y_ptr: it reaches 192 bytes past the last of its 64"),
     ((64, 64), -4, r"copy, line \d+: a load leaves its argument x_ptr: it reaches 16 bytes before the first of its 256")],
)  # fmt: skip
def test_leaving_an_argument(sizes, offset, message):
    x, y = (torch.ones(size) for size in sizes)
    with emulate(), pytest.raises(OperandError, match=message):
        copy[(1,)](x, y, offset, 64, N=64)


def test_far_out_of_an_argument_the_process_goes_on():
    with emulate(), pytest.raises(OperandError, match="reaches 4194240 bytes past"):
        copy[(1,)](torch.ones(16), torch.ones(16), 0, 1 << 20, N=1 << 20)


def test_what_a_mask_leaves_out_may_lie_anywhere():
    x, y = torch.arange(16.0), torch.zeros(16)
    with emulate():
        copy[(1,)](x, y, 0, 16, N=1 << 16)
        copy[(1,)](x, y, 1 << 40, 16, N=64)
    assert torch.equal(x, y)


def test_a_view_reaches_as_far_as_its_storage():
    x, y = torch.arange(64.0), torch.zeros(64)
    with emulate():
        copy[(1,)](x[32:48], y[32:], -32, 16, N=64)
    assert torch.equal(y[:48], x[:48])
    assert not y[48:].any()


@triton.jit
def through_a_table(table_ptr, y_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    x_ptr = tl.load(table_ptr).to(tl.pointer_type(tl.float32))
    tl.store(y_ptr + at, tl.load(x_ptr + at))


@triton.jit
def chosen(x_ptr, y_ptr, o_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(o_ptr + at, tl.load(tl.where(at % 2 == 0, x_ptr + at, y_ptr + at)))


def test_pointers_that_a_program_reads_or_chooses():
    x, y, out = torch.arange(16.0), -torch.arange(16.0), torch.zeros(16)
    with emulate():
        through_a_table[(1,)](torch.tensor([x.data_ptr()]), out, N=16)
        assert torch.equal(out, x)
        chosen[(1,)](x, y, out, N=16)
        assert out.tolist() == [float(i if i % 2 == 0 else -i) for i in range(16)]
        with pytest.raises(OperandError, match="a load leaves its argument x_ptr or y_ptr: it lies outside all tensor arguments"):
            chosen[(1,)](x, y, torch.zeros(1 << 20), N=1 << 20)


@triton.jit
def counted(x_ptr, N: tl.constexpr):
    tl.atomic_add(x_ptr + tl.arange(0, N), 1)


@triton.jit
def first_of_a_pair(pair, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(pair[0] + at, tl.load(pair[1] + at))


def test_atomic_operations_and_tuples_are_checked():
    with emulate():
        with pytest.raises(OperandError, match="an atomic operation leaves its argument x_ptr"):
            counted[(1,)](torch.zeros(16, dtype=torch.int32), N=64)
        with pytest.raises(OperandError, match=r"a load leaves its argument pair\[1\]: it reaches 128 bytes past"):
            first_of_a_pair[(1,)]((torch.zeros(64), torch.zeros(32)), N=64)


def test_a_grid_of_four_dimensions():
    with emulate(), pytest.raises(OperandError, match="at most three dimensions"):
        counted[(1, 1, 1, 1)](torch.zeros(16, dtype=torch.int32), N=16)
