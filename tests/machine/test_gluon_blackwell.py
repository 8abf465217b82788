"""Gluon kernels on data-centre Blackwell: the layouts that Triton's compiler gives to registers are those of tcgen05.ld and tcgen05.st."""

from __future__ import annotations

import numpy as np
import pytest
from machine_values import numbers, tensor

import mmabits

pytest.importorskip("torch")
pytest.importorskip("triton.experimental.gluon.language.nvidia.blackwell")

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import blackwell
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")


@gluon.jit
def through_a_layout(a, b, c, M: gl.constexpr, N: gl.constexpr, K: gl.constexpr, VARIANT: gl.constexpr):
    """One product whose accumulator is filled and read in the layout of one shape of tcgen05.ld, in Gluon."""
    rows: gl.constexpr = gl.BlockedLayout([1, 8], [8, 4], [4, 1], [1, 0])
    i, j, k = gl.arange(0, M, gl.SliceLayout(1, rows)), gl.arange(0, N, gl.SliceLayout(1, rows)), gl.arange(0, K, gl.SliceLayout(0, rows))
    shared: gl.constexpr = gl.NVMMASharedLayout.get_default_for([M, K], gl.float16)
    x = gl.allocate_shared_memory(gl.float16, [M, K], shared, gl.load(a + i[:, None] * K + k[None, :]))
    y = gl.allocate_shared_memory(gl.float16, [N, K], shared, gl.load(b + j[:, None] * K + k[None, :]))
    layout: gl.constexpr = blackwell.TensorMemoryLayout([M, N], col_stride=1)
    acc = blackwell.allocate_tensor_memory(gl.float32, [M, N], layout)
    held: gl.constexpr = acc.get_reg_layout(num_warps=4, instr_variant=VARIANT)
    p, q = gl.arange(0, M, gl.SliceLayout(1, held)), gl.arange(0, N, gl.SliceLayout(0, held))
    places = c + p[:, None] * N + q[None, :]
    acc.store(gl.load(places))
    bar = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(bar, count=1)
    fence_async_shared()
    blackwell.tcgen05_mma(x, y.permute((1, 0)), acc, use_acc=True)
    blackwell.tcgen05_commit(bar)
    mbarrier.wait(bar, 0)
    mbarrier.invalidate(bar)
    gl.store(places, acc.load(held))


@pytest.mark.parametrize("m", [64, 128])
@pytest.mark.parametrize("variant", ["32x32b", "32x32b_splitn", "16x64b", "16x128b", "16x256b"])
def test_layouts_of_registers_are_those_of_tritons_compiler(variant: str, m: int) -> None:
    """Gluon says which register of which thread holds which element; the shapes of tcgen05.ld and tcgen05.st must agree with it."""
    n, k = 64, 64
    a, b, c = numbers("f16", (m, k), variant), numbers("f16", (n, k), 1, variant), numbers("f32", (m, n), 2, variant)
    out = tensor(c).clone()
    with mmabits.emulate("sm_100a", frameworks=["triton"], triton="compiled"):
        compiled = through_a_layout[(1,)](tensor(a), tensor(b), out, M=m, N=n, K=k, VARIANT=variant, num_warps=4)
    assert f"tcgen05.ld.sync.aligned.{'32x32b' if variant.startswith('32') and m == 128 else '16x'}" in compiled.asm["ptx"]
    assert np.array_equal(out.numpy(), mmabits.gemm(a, b.T, c, instruction="tcgen05.mma", arch="sm_100a"))


@gluon.jit
def by_two_ctas(a, b, c, M: gl.constexpr, N: gl.constexpr, K: gl.constexpr):
    """A product of a pair of CTAs: each has half of the rows of A, of B and of C."""
    halves: gl.constexpr = ((1, 0),)
    rows: gl.constexpr = gl.BlockedLayout([1, 8], [8, 4], [4, 1], [1, 0], cga_layout=halves)
    i, j, k = gl.arange(0, M, gl.SliceLayout(1, rows)), gl.arange(0, N, gl.SliceLayout(1, rows)), gl.arange(0, K, gl.SliceLayout(0, rows))
    shared_a: gl.constexpr = gl.NVMMASharedLayout.get_default_for([M, K], gl.float16, cga_layout=halves)
    shared_b: gl.constexpr = gl.NVMMASharedLayout.get_default_for([N, K], gl.float16, cga_layout=halves)
    x = gl.allocate_shared_memory(gl.float16, [M, K], shared_a, gl.load(a + i[:, None] * K + k[None, :]))
    y = gl.allocate_shared_memory(gl.float16, [N, K], shared_b, gl.load(b + j[:, None] * K + k[None, :]))
    layout: gl.constexpr = blackwell.TensorMemoryLayout([M // 2, N], col_stride=1, cga_layout=halves, two_ctas=True)
    acc = blackwell.allocate_tensor_memory(gl.float32, [M, N], layout)
    held: gl.constexpr = acc.get_reg_layout(num_warps=4)
    p, q = gl.arange(0, M, gl.SliceLayout(1, held)), gl.arange(0, N, gl.SliceLayout(0, held))
    places = c + p[:, None] * N + q[None, :]
    acc.store(gl.load(places))
    bar = mbarrier.allocate_mbarrier()
    mbarrier.init(bar, count=1)
    fence_async_shared(cluster=True)
    blackwell.tcgen05_mma(x, y.permute((1, 0)), acc, use_acc=True, mbarriers=[bar])
    mbarrier.wait(bar, 0)
    mbarrier.invalidate(bar)
    gl.store(places, acc.load(held))


@pytest.mark.parametrize(("m", "n"), [(256, 64), (128, 64)])
def test_products_of_two_ctas(m: int, n: int) -> None:
    k = 64
    a, b, c = numbers("f16", (m, k), 7), numbers("f16", (n, k), 8), numbers("f32", (m, n), 9)
    out = tensor(c).clone()
    with mmabits.emulate("sm_100a", frameworks=["triton"], triton="compiled"):
        compiled = by_two_ctas[(1,)](tensor(a), tensor(b), out, M=m, N=n, K=k, num_warps=4, num_ctas=2)
    assert "tcgen05.mma.cta_group::2.kind::f16" in compiled.asm["ptx"]
    assert np.array_equal(out.numpy(), mmabits.gemm(a, b.T, c, instruction="tcgen05.mma", arch="sm_100a"))
