"""Triton kernels compiled for sm_90a: TMA, mbarriers, wgmma, descriptors of host and device, warp specialisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import operands
import pytest

import mmabits
from mmabits.isa import EmulationError

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
descriptor = pytest.importorskip("triton.tools.tensor_descriptor")

import triton.language as tl  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")


def emulate(arch: str = "sm_90a", **options: Any) -> Any:
    return mmabits.emulate(arch, frameworks=["triton"], triton="compiled", **options)


@triton.jit
def multiply(a, b, c, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TRANSPOSED: tl.constexpr):
    i, j = tl.program_id(0) * BM, tl.program_id(1) * BN
    total = tl.zeros((BM, BN), dtype=c.dtype if c.dtype == tl.int32 else tl.float32)
    for k in range(0, K, BK):
        y = b.load([j, k]).T if TRANSPOSED else b.load([k, j])
        total = tl.dot(a.load([i, k]), y, total)
    c.store([i, j], total.to(c.dtype))


@triton.jit
def persistent(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PROGRAMS: tl.constexpr, WS: tl.constexpr):
    rows, columns = tl.cdiv(M, BM), tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), rows * columns, PROGRAMS, flatten=True, warp_specialize=WS):
        i, j = tile // columns * BM, tile % columns * BN
        total = tl.zeros((BM, BN), dtype=tl.float32)
        for k in range(tl.cdiv(K, BK)):
            total = tl.dot(a.load([i, k * BK]), b.load([j, k * BK]).T, total)
        c.store([i, j], total.to(tl.float16))


@triton.jit
def on_device(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    x = tl.make_tensor_descriptor(a, [M, K], [K, 1], [BM, BK])
    y = tl.make_tensor_descriptor(b, [N, K], [K, 1], [BN, BK])
    z = tl.make_tensor_descriptor(c, [M, N], [N, 1], [BM, BN])
    i, j = tl.program_id(0) * BM, tl.program_id(1) * BN
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, K, BK):
        total = tl.dot(x.load([i, k]), y.load([j, k]).T, total)
    z.store([i, j], total.to(tl.float16))


@triton.jit
def attention(q, k, v, o, scale, rows, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, WS: tl.constexpr):
    head, i = tl.program_id(1) * rows, tl.program_id(0) * BM
    whole = tl.num_programs(1) * rows
    dq = tl.make_tensor_descriptor(q, [whole, D], [D, 1], [BM, D])
    dk = tl.make_tensor_descriptor(k, [whole, D], [D, 1], [BN, D])
    dv = tl.make_tensor_descriptor(v, [whole, D], [D, 1], [BN, D])
    do = tl.make_tensor_descriptor(o, [whole, D], [D, 1], [BM, D])
    most = tl.full([BM], -float("inf"), tl.float32)
    weight = tl.zeros([BM], tl.float32) + 1.0
    total = tl.zeros([BM, D], tl.float32)
    x = dq.load([head + i, 0])
    for n in tl.range(0, rows, BN, warp_specialize=WS):
        scores = tl.dot(x, dk.load([head + n, 0]).T) * scale
        new = tl.maximum(most, tl.max(scores, 1))
        p = tl.math.exp2(scores - new[:, None])
        before = tl.math.exp2(most - new)
        weight = weight * before + tl.sum(p, 1)
        total = tl.dot(p.to(tl.float16), dv.load([head + n, 0]), total * before[:, None])
        most = new
    do.store([head + i, 0], (total / weight[:, None]).to(tl.float16))


def described(tensor: Any, box: list[int], **options: Any) -> Any:
    return descriptor.TensorDescriptor(tensor, tensor.shape, tensor.stride(), box, **options)


def random(*shape: int, dtype: Any = None, seed: str = "") -> Any:
    numbers = operands.generator("hopper", *shape, seed).standard_normal(shape).astype(np.float32)
    if dtype == torch.int8:
        return torch.from_numpy((numbers * 40).clip(-128, 127).astype(np.int8))
    return torch.from_numpy(numbers).to(dtype or torch.float16)


def as_numpy(tensor: Any) -> npt.NDArray[Any]:
    import ml_dtypes

    names = {torch.bfloat16: ml_dtypes.bfloat16, torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn, torch.float8_e5m2: ml_dtypes.float8_e5m2}
    if tensor.dtype in names:
        held: npt.NDArray[Any] = tensor.view(torch.uint8 if tensor.itemsize == 1 else torch.uint16).numpy().view(names[tensor.dtype])
        return held
    found: npt.NDArray[Any] = tensor.numpy()
    return found


def wanted(a: Any, b: Any) -> npt.NDArray[Any]:
    """A times the transpose of B, as wgmma has it."""
    return mmabits.gemm(as_numpy(a), np.ascontiguousarray(as_numpy(b).T), instruction="wgmma", arch="sm_90a")


TYPES = [
    ("float16", 64), ("bfloat16", 64), ("float8_e4m3fn", 128), ("float8_e5m2", 64), ("int8", 128), ("float32", 32), ("float16", 16),
    ("bfloat16", 32),
]  # fmt: skip


@pytest.mark.parametrize(("name", "block"), TYPES, ids=lambda each: str(each))
def test_products_by_descriptors(name: str, block: int) -> None:
    """Blocks of 128, 64 and 32 bytes along K: each its swizzle; rows, columns and K that no block divides."""
    dtype = getattr(torch, name)
    m, n, k = 120, 104, 2 * block + 16
    a, b = random(m, k, dtype=dtype), random(n, k, dtype=dtype, seed="b")
    c = torch.zeros(m, n, dtype=torch.int32 if name == "int8" else torch.float32)
    with emulate() as session:
        boxes = described(a, [64, block]), described(b, [64, block]), described(c, [64, 64])
        multiply[(2, 2)](*boxes, k, BM=64, BN=64, BK=block, TRANSPOSED=True)
    assert c.numpy().tobytes() == wanted(a, b).tobytes()
    assert any("wgmma" in str(line.instruction) for line in session.report().emulated)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_products_of_what_is_stored_along_n(name: str) -> None:
    """B is MN-major in shared memory."""
    dtype = getattr(torch, name)
    a, b, c = random(128, 96, dtype=dtype), random(96, 128, dtype=dtype, seed="b"), torch.zeros(128, 128)
    with emulate():
        boxes = described(a, [64, 32]), described(b, [32, 128]), described(c, [64, 128])
        multiply[(2, 1)](*boxes, 96, BM=64, BN=128, BK=32, TRANSPOSED=False)
    assert c.numpy().tobytes() == wanted(a, b.T).tobytes()


@pytest.mark.parametrize(("warps", "specialized"), [(4, False), (8, False), (4, True), (8, True)])
def test_persistent_products(warps: int, specialized: bool) -> None:
    m, n, k = 256, 384, 192
    a, b, c = random(m, k), random(n, k, seed="b"), torch.zeros(m, n, dtype=torch.float16)
    with emulate():
        boxes = described(a, [128, 64]), described(b, [128, 64]), described(c, [128, 128])
        persistent[(2,)](*boxes, m, n, k, BM=128, BN=128, BK=64, PROGRAMS=2, WS=specialized, num_warps=warps, num_stages=3)
    assert c.numpy().tobytes() == wanted(a, b).astype(np.float16).tobytes()


def allocator(size: int, _align: int, _stream: Any) -> Any:
    return torch.zeros(size, dtype=torch.int8)


def test_descriptors_that_the_kernel_makes() -> None:
    m, n, k = 200, 136, 160
    a, b, c = random(m, k), random(n, k, seed="b"), torch.zeros(m, n, dtype=torch.float16)
    triton.set_allocator(allocator)
    with emulate():
        on_device[(2, 3)](a, b, c, m, n, k, BM=128, BN=64, BK=64)
    assert c.numpy().tobytes() == wanted(a, b).astype(np.float16).tobytes()


@pytest.mark.slow
def test_attention_with_and_without_specialized_warps_has_the_same_bits() -> None:
    q, k, v = (random(2, 256, 64, seed=name) for name in "qkv")
    triton.set_allocator(allocator)
    found = []
    for specialized in (False, True):
        o = torch.zeros_like(q)
        with emulate():
            attention[(2, 2)](q, k, v, o, 0.18, 256, D=64, BM=128, BN=64, WS=specialized, num_warps=4 if specialized else 8)
        found.append(o)
    exact = torch.softmax(q.double() @ k.double().transpose(-1, -2) * 0.18 * np.log(2), -1) @ v.double()
    assert torch.equal(*found) and (found[0].double() - exact).abs().max() < 2e-3


@triton.jit
def tiles(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rows, columns, along = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN), tl.arange(0, BK)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, K, BK):
        x = tl.load(a + rows[:, None] * K + k + along[None, :])
        total = tl.dot(x, tl.load(b + columns[None, :] * K + k + along[:, None]), total)
    tl.store(c + rows[:, None] * N + columns[None, :], total.to(tl.float16))


@triton.jit
def sums(x, y, N: tl.constexpr):
    row = tl.program_id(0)
    tl.store(y + row, tl.sum(tl.load(x + row * N + tl.arange(0, N)).to(tl.float32), 0))


def test_clusters_of_two() -> None:
    """A product whose rows two CTAs share, and a sum across both through the other's shared memory."""
    a, b = random(512, 128), random(256, 128, seed="b")
    c, found, alone = torch.zeros(512, 256, dtype=torch.float16), torch.zeros(512), torch.zeros(512)
    with emulate():
        tiles[(2, 2)](a, b, c, 512, 256, 128, BM=256, BN=128, BK=64, num_ctas=2)
        sums[(512,)](c, found, N=256, num_ctas=2)
        sums[(512,)](c, alone, N=256)
    assert c.numpy().tobytes() == wanted(a, b).astype(np.float16).tobytes()
    assert torch.allclose(found, c.float().sum(1), atol=1e-2) and torch.allclose(found, alone, atol=1e-3)


def test_a_gluon_kernel() -> None:
    """Written down to its barriers: a ring of two buffers, B MN-major, a product under way while the next copies are asked for."""
    layouts = pytest.importorskip("triton.experimental.gluon.nvidia.hopper")
    from gluon_kernels import ring
    from triton.experimental.gluon import language as gl

    a, b, c = random(256, 192), random(192, 256, seed="b"), torch.zeros(256, 256, dtype=torch.float16)

    def boxed(tensor: Any, box: list[int]) -> Any:
        return layouts.TensorDescriptor.from_tensor(tensor, box, gl.NVMMASharedLayout.get_default_for(box, gl.float16))

    with emulate():
        ring[(2, 2)](boxed(a, [128, 64]), boxed(b, [64, 128]), boxed(c, [128, 128]), 192, num_warps=4)
    assert c.numpy().tobytes() == wanted(a, b.T).astype(np.float16).tobytes()


def test_descriptors_where_there_is_no_tma() -> None:
    """sm_80 takes their parts."""
    a, b, c = random(64, 64), random(64, 64, seed="b"), torch.zeros(64, 64)
    with emulate("sm_80"):
        multiply[(1, 1)](described(a, [64, 64]), described(b, [64, 64]), described(c, [64, 64]), 64, BM=64, BN=64, BK=64, TRANSPOSED=True)
    assert c.numpy().tobytes() == mmabits.gemm(a.numpy(), b.T.contiguous().numpy(), instruction="mma.sync", arch="sm_80").tobytes()


def test_a_descriptor_that_rounds_is_refused() -> None:
    a, c = random(64, 64, dtype=torch.float32), torch.zeros(64, 64)
    with emulate(), pytest.raises(EmulationError, match="multiply: a tensor descriptor that rounds to tf32 is not emulated"):
        rounding = described(a, [64, 32], round_f32_to_tf32=True)
        multiply[(1, 1)](rounding, rounding, described(c, [64, 64]), 64, BM=64, BN=64, BK=32, TRANSPOSED=True)
    assert not c.any()
