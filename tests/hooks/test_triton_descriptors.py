"""Tensor descriptors: what they load, store and combine, in bounds and out of them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.isa import EmulationError, OperandError

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: E402

VERSION = tuple(map(int, triton.__version__.split(".")[:2]))


def emulate(arch="sm_90a"):
    return mmabits.emulate(arch, frameworks=["triton"], triton="interpreted")


@triton.jit
def copy_block(source, target, row, column):
    target.store([0, 0], source.load([row, column]))


@triton.jit
def copy_made(x_ptr, y_ptr, row, column, M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, PADDING: tl.constexpr):
    source = tl.make_tensor_descriptor(x_ptr, [M, N], [N, 1], [BLOCK, BLOCK], padding_option=PADDING)
    target = tl.make_tensor_descriptor(y_ptr, [BLOCK, BLOCK], [BLOCK, 1], [BLOCK, BLOCK])
    target.store([0, 0], source.load([row, column]))


def padded(x, row, column, block, filler):
    """What a block at a place holds, by hand."""
    whole = np.full((x.shape[0] + 4 * block, x.shape[1] + 4 * block), filler, x.dtype)
    whole[2 * block : -2 * block, 2 * block : -2 * block] = x
    return whole[row + 2 * block : row + 3 * block, column + 2 * block : column + 3 * block]


@pytest.mark.parametrize("made", ["on the host", "in the kernel"])
@pytest.mark.parametrize("place", [(0, 0), (16, 16), (-3, 5), (30, -7), (31, 47), (40, 0)])
def test_blocks_in_and_out_of_bounds(made, place):
    """Offsets need not be multiples of anything, and out of bounds there are zeros."""
    x = np.random.default_rng(0).standard_normal((32, 48)).astype(np.float16)
    source, target = torch.from_numpy(x), torch.ones(16, 16, dtype=torch.float16)
    with emulate() as session:
        if made == "on the host":
            blocks = (TensorDescriptor.from_tensor(each, [16, 16]) for each in (source, target))
            copy_block[(1,)](*blocks, *place)
        else:
            copy_made[(1,)](source, target, *place, M=32, N=48, BLOCK=16, PADDING="zero")
    assert target.numpy().tobytes() == padded(x, *place, 16, 0).tobytes()
    assert not session.report().skipped


@pytest.mark.parametrize(
    ("dtype", "nan"),
    [(torch.float16, 0x7E00), (torch.bfloat16, 0x7FC0), (torch.float32, 0x7FC00000), (torch.float8_e5m2, 0x7E)],
)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_padding_with_nan(dtype, nan, arch):
    """Before sm_90 the compiler makes loads of it, with these constants; which NaN the copy unit writes is not known, and said so."""
    bits = {1: torch.uint8, 2: torch.uint16, 4: torch.int32}[dtype.itemsize]
    source, target = torch.zeros(32, 32).to(dtype), torch.zeros(16, 16).to(dtype)
    with emulate(arch) as session:
        copy_made[(1,)](source, target, 24, 0, M=32, N=32, BLOCK=16, PADDING="nan")
    codes = target.view(bits).numpy()
    assert not codes[:8].any()
    assert (codes[8:].astype(np.uint32) == nan).all()
    assert [line.operation for line in session.report().skipped] == (["padding with NaN"] if arch == "sm_90a" else [])


def test_a_store_out_of_bounds_leaves_the_neighbours_alone():
    target, ones = torch.zeros(20, 24), torch.ones(32, 32)
    with emulate():
        copy_block[(1,)](TensorDescriptor.from_tensor(ones, [32, 32]), TensorDescriptor(target, [18, 20], [24, 1], [32, 32]), 0, 0)
    want = np.zeros((20, 24), np.float32)
    want[:18, :20] = 1
    assert target.numpy().tobytes() == want.tobytes()


@triton.jit
def move_rows(x_ptr, y_ptr, from_ptr, to_ptr, M: tl.constexpr, N: tl.constexpr, column):
    source = tl.make_tensor_descriptor(x_ptr, [M, N], [N, 1], [1, 16])
    target = tl.make_tensor_descriptor(y_ptr, [M, N], [N, 1], [1, 16])
    rows = source.gather(tl.load(from_ptr + tl.arange(0, 8)), column)
    target.scatter(rows, tl.load(to_ptr + tl.arange(0, 8)), column)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gather_and_scatter(dtype):
    x, y = torch.arange(32 * 32.0).reshape(32, 32).to(dtype), torch.full((32, 32), -1.0).to(dtype)
    sources, targets = [5, 0, 31, 7, 40, 7, -1, 2], [1, 3, 5, 7, 9, 11, 13, 99]
    with emulate("sm_100a"):
        move_rows[(1,)](x, y, *(torch.tensor(rows, dtype=torch.int32) for rows in (sources, targets)), M=32, N=32, column=20)
    want = torch.full((32, 32), -1.0).to(dtype)
    for source, target in zip(sources[:-1], targets[:-1], strict=True):
        want[target, 20:] = x[source, 20:] if 0 <= source < 32 else 0
    assert torch.equal(y, want)


@triton.jit
def combine(source, target, KIND: tl.constexpr):
    x = source.load([0, 0])
    if KIND == "add":
        target.atomic_add([2, 3], x)
    if KIND == "min":
        target.atomic_min([2, 3], x)
    if KIND == "max":
        target.atomic_max([2, 3], x)
    if KIND == "and":
        target.atomic_and([2, 3], x)
    if KIND == "or":
        target.atomic_or([2, 3], x)
    if KIND == "xor":
        target.atomic_xor([2, 3], x)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("add", "float32"), ("add", "float16"), ("add", "bfloat16"), ("add", "int32"), ("min", "int32"), ("max", "int64"), ("min", "float16"),
     ("max", "bfloat16"), ("and", "int32"), ("or", "int64"), ("xor", "int32")],
)  # fmt: skip
def test_atomic_operations(kind, name):
    rng = np.random.default_rng(0)
    held = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    x, y = ((rng.standard_normal((16, 16)) * 100).astype(held) for _ in range(2))
    operation = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[
        kind
    ]
    want = y.copy()
    want[2:, 3:] = operation(x[:14, :13], y[2:, 3:])

    def tensor(array):
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16) if name == "bfloat16" else torch.from_numpy(array.copy())

    target = tensor(y)
    with emulate() as session:
        combine[(1,)](TensorDescriptor.from_tensor(tensor(x), [16, 16]), TensorDescriptor.from_tensor(target, [16, 16]), KIND=kind)
    assert target.view(torch.uint8).numpy().tobytes() == want.tobytes()
    floats = kind == "add" and "float" in name
    assert [line.operation for line in session.report().skipped] == (["atomic sum of floats"] if floats else [])


def test_atomic_sums_of_another_type_are_refused():
    source, target = torch.zeros(16, 16), torch.zeros(16, 16, dtype=torch.float16)
    with emulate(), pytest.raises(EmulationError, match=r"combine, line \d+: an atomic operation by a descriptor cannot be emulated"):
        combine[(1,)](TensorDescriptor.from_tensor(source, [16, 16]), TensorDescriptor.from_tensor(target, [16, 16]), KIND="add")


@triton.jit
def sum_at_once(x_ptr, y_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.atomic_add(y_ptr + at // 4, tl.load(x_ptr + at), mask=at < N - 1)


def test_atomic_sums_of_bf16_at_one_address_are_rounded_one_after_another():
    x = np.random.default_rng(0).standard_normal(64).astype(ml_dtypes.bfloat16)
    want = np.zeros(16, ml_dtypes.bfloat16)
    for at in range(63):
        want[at // 4] = want[at // 4] + x[at]
    y = torch.zeros(16, dtype=torch.bfloat16)
    with emulate():
        sum_at_once[(1,)](torch.from_numpy(x.view(np.uint16).copy()).view(torch.bfloat16), y, N=64)
    assert y.view(torch.uint16).numpy().tobytes() == want.tobytes()


@triton.jit
def product(a, b, c):
    c.store([0, 0], tl.dot(a.load([0, 0]), b.load([0, 0])))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a"])
def test_a_dot_of_blocks(arch):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((128, 128)).astype(np.float16) for _ in range(2))
    c = torch.zeros(128, 128)
    with emulate(arch) as session:
        product[(1,)](*(TensorDescriptor.from_tensor(each, [128, 128]) for each in (torch.from_numpy(a), torch.from_numpy(b), c)))
    family = {"sm_80": "mma.sync", "sm_90a": "wgmma", "sm_100a": "tcgen05"}[arch]
    assert c.numpy().tobytes() == mmabits.gemm(a, b, instruction=family, arch=arch).tobytes()
    assert "not known" not in session.report().emulated[0].note


@pytest.mark.skipif(VERSION < (3, 9), reason="descriptors round to tf32 from Triton 3.9 on")
def test_rounding_to_tf32():
    x = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    y = torch.zeros(16, 16)
    with emulate():
        source = TensorDescriptor.from_tensor(torch.from_numpy(x), [16, 16], round_f32_to_tf32=True)
        copy_block[(1,)](source, TensorDescriptor.from_tensor(y, [16, 16]), 0, 0)
    assert y.numpy().tobytes() == mmabits.decode(mmabits.encode(x, "tf32"), "tf32").astype(np.float32).tobytes()


def test_a_descriptor_that_leaves_its_tensor():
    x, y = torch.zeros(16, 16), torch.zeros(16, 16)
    with (
        emulate(),
        pytest.raises(OperandError, match=r"copy_block, line \d+: a load leaves its argument source: it reaches 1024 bytes past"),
    ):
        copy_block[(1,)](TensorDescriptor(x, [32, 16], [16, 1], [32, 16]), TensorDescriptor.from_tensor(y, [32, 16]), 0, 0)


def test_a_descriptor_that_is_not_aligned():
    x, y = torch.zeros(1025, dtype=torch.float16), torch.zeros(256, dtype=torch.float16)
    with emulate(), pytest.raises(OperandError, match=r"copy_made, line \d+: a tensor descriptor: .*16-byte aligned"):
        copy_made[(1,)](x[1:], y, 0, 0, M=32, N=32, BLOCK=16, PADDING="zero")


if VERSION < (3, 8):

    @triton.jit
    def copy_pointed(x_ptr, y_ptr, row, M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
        source = tl.make_block_ptr(x_ptr, (M, N), (N, 1), (row, 0), (BLOCK, BLOCK), (1, 0))
        target = tl.make_block_ptr(y_ptr, (BLOCK, BLOCK), (BLOCK, 1), (0, 0), (BLOCK, BLOCK), (1, 0))
        tl.store(target, tl.load(source, boundary_check=(0, 1), padding_option="nan"))

    def test_block_pointers():
        x, y = torch.ones(32, 16, dtype=torch.bfloat16), torch.zeros(16, 16, dtype=torch.bfloat16)
        with emulate() as session:
            copy_pointed[(1,)](x, y, 24, M=32, N=16, BLOCK=16)
        codes = y.view(torch.uint16).numpy()
        assert (codes[:8] == 0x3F80).all()
        assert (codes[8:] == 0x7FC0).all()
        assert not session.report().skipped
        with emulate(), pytest.raises(OperandError, match="a load leaves its argument x_ptr"):
            copy_pointed[(1,)](x, y, 24, M=64, N=16, BLOCK=16)
