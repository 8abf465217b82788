"""`mmabits.explain_result`: a result of a compiled kernel, followed back."""

from __future__ import annotations

from typing import Any

import numpy as np
import operands
import pytest

import mmabits
from mmabits.isa import EmulationError, OperandError

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

descriptor = pytest.importorskip("triton.tools.tensor_descriptor")

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")


@triton.jit
def multiply(a, b, c, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    i, j, k = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN), tl.arange(0, BK)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, K, BK):
        x = tl.load(a + i[:, None] * K + (start + k)[None, :])
        total = tl.dot(x, tl.load(b + (start + k)[:, None] * N + j[None, :]), total)
    tl.store(c + i[:, None] * N + j[None, :], total.to(c.dtype.element_ty))


@triton.jit
def by_descriptors(a, b, c, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    i, j = tl.program_id(0) * BM, tl.program_id(1) * BN
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, K, BK):
        total = tl.dot(a.load([i, k]), b.load([j, k]).T, total)
    c.store([i, j], total.to(tl.float16))


@triton.jit
def total(x, y, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(y + tl.program_id(0), tl.sum(tl.load(x + i), 0) * 0.5)


@triton.jit
def twice(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    s = tl.dot(tl.load(x + i[:, None] * N + i[None, :]), tl.load(y + i[:, None] * N + i[None, :]))
    tl.store(y + i[:, None] * N + i[None, :], tl.dot(s.to(tl.float16), tl.load(x + i[:, None] * N + i[None, :])).to(tl.float16))


def random(*shape: int, dtype: Any = None) -> Any:
    return torch.from_numpy(operands.generator("follow", *shape).standard_normal(shape).astype(np.float32)).to(dtype or torch.float16)


@pytest.mark.parametrize(
    ("arch", "instruction"), [("sm_80", "mma.sync.aligned.m16n8k16"), ("sm_90a", "wgmma.mma_async.sync.aligned.m64n64k16")]
)
def test_a_product_has_its_row_and_column(arch: str, instruction: str) -> None:
    a, b, c = random(128, 96), random(96, 64), torch.empty(128, 64)
    found = mmabits.explain_result(lambda: multiply[(2, 1)](a, b, c, 64, 96, BM=64, BN=64, BK=32), c, (67, 5), arch=arch)
    assert (found.element, found.program, found.arch, found.left_out) == ("c[67, 5]", 1, arch, 0)
    (product,) = found.products
    assert product.instruction.ptx.startswith(instruction) and product.count == 6 and product is found.root
    assert np.array_equal(product.a, a[67].numpy()) and np.array_equal(product.b, b[:, 5].numpy())
    assert product.computed == product.code == int(c.view(torch.int32)[67, 5]) & 0xFFFFFFFF
    assert {"first of A: a[67, 0]", "first of B: b[0, 5]"} <= {each.text for each in found.root.children}
    assert "computed again: equal" in str(found) and str(found).startswith(f"c[67, 5] = {c[67, 5].item():.9g}, written by program 1")
    assert product.explain() is not None


def test_eight_bits_and_a_rounded_result() -> None:
    a, b, c = random(64, 64, dtype=torch.float8_e4m3fn), random(64, 64, dtype=torch.float8_e4m3fn), torch.empty(64, 64, dtype=torch.float16)
    found = mmabits.explain_result(lambda: multiply[(1, 1)](a, b, c, 64, 64, BM=64, BN=64, BK=64), c, (9, -1), arch="sm_89")
    (product,) = found.products
    assert np.array_equal(product.a.view(np.uint8), a.view(torch.uint8)[9].numpy()) and product.computed == product.code
    assert np.array_equal(product.b.view(np.uint8), b.view(torch.uint8)[:, 63].numpy())
    assert found.element == "c[9, 63]" and found.value.number == f"{c[9, 63].item():.9g}" and "cvt.rn.f16" in found.root.text


def test_boxes_of_tma_are_followed_both_ways() -> None:
    a, b, c = random(128, 128), random(64, 128), torch.empty(128, 64, dtype=torch.float16)

    def launch() -> None:
        maps = [
            descriptor.TensorDescriptor(each, each.shape, each.stride(), box) for each, box in ((a, [64, 64]), (b, [64, 64]), (c, [64, 64]))
        ]
        by_descriptors[(2, 1)](*maps, 128, BM=64, BN=64, BK=64, num_warps=4)

    found = mmabits.explain_result(launch, c, (100, 33), arch="h100")
    (product,) = found.products
    assert product.count == 8 and product.computed == product.code
    assert np.array_equal(product.a, a[100].numpy()) and np.array_equal(product.b, b[33].numpy())


def test_a_sum_is_the_tree_that_the_kernel_forms() -> None:
    x, y = random(2, 256, dtype=torch.float32), torch.empty(2)
    found = mmabits.explain_result(lambda: total[(2,)](x, y, N=256), y, 1, arch="sm_90a")
    assert sorted(found.elements) == sorted(f"x[1, {each}]" for each in range(256)) and not found.products

    def value(step: Any) -> np.float32:
        step = step.origin
        if step.is_element:
            return x[1, int(step.text.split(", ")[1][:-1])].numpy()[()]
        parts = [value(each) for each in step.children]
        return parts[0] + parts[1] if len(parts) == 2 else parts[0] * np.float32(0.5)

    assert value(found.root) == y[1].item()


def test_a_product_of_products_and_a_tensor_that_is_overwritten() -> None:
    x, y = random(32, 32), random(32, 32)
    before = y.clone()
    found = mmabits.explain_result(lambda: twice[(1,)](x, y, N=32), y, (3, 4), arch="sm_80")
    first, *inner = found.products
    assert np.array_equal(first.b, x[:, 4].numpy()) and first.computed == first.code
    row = mmabits.gemm(x[3:4].numpy(), before.numpy(), instruction="mma.sync", arch="sm_80").astype(np.float16)
    assert np.array_equal(first.a, row[0])
    assert inner and all(each.computed == each.code and np.array_equal(each.a, x[3].numpy()) for each in inner)


def test_depth_and_what_was_shown_before() -> None:
    x, y = random(1, 64, dtype=torch.float32), torch.empty(1)
    found = mmabits.explain_result(lambda: total[(1,)](x, y, N=64, num_warps=1), y, 0, arch="sm_80")
    assert any(line.strip() == "..." for line in found.lines(3)) and len(found.lines(3)) < len(found.lines(20))


def test_what_cannot_be_followed_says_so() -> None:
    a, b, c = random(64, 64), random(64, 64), torch.empty(64, 64)
    found = mmabits.explain_result(lambda: multiply[(1, 1)](a, b, c, 64, 64, BM=64, BN=64, BK=64), c, (0, 0), arch="sm_100a")
    assert not found.products and any("tcgen05.ld" in each.text and "not followed further" in each.text for each in found.steps())


def test_errors() -> None:
    y = torch.empty(4)
    with pytest.raises(OperandError, match=r"no element \(4,\)"):
        mmabits.explain_result(lambda: None, y, 4, arch="sm_80")
    for launch, tensor, index, why in [
        (lambda: None, y, "a", "an element is named by whole numbers"), (lambda: None, y, (1.5,), "an element is named by whole numbers"),
        (lambda: None, [1.0], 0, "must be a PyTorch tensor or a NumPy array, not list"),
        (3, y, 0, "must be a function without arguments, not int"),
    ]:  # fmt: skip
        with pytest.raises(OperandError, match=why):
            mmabits.explain_result(launch, tensor, index, arch="sm_80")  # type: ignore[arg-type]
    with pytest.raises(OperandError, match="no element"):
        mmabits.explain_result(lambda: None, y, (1, 1), arch="sm_80")
    with pytest.raises(EmulationError, match="no compiled kernel wrote"):
        mmabits.explain_result(lambda: None, y, 1, arch="sm_80")
