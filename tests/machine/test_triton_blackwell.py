"""Triton kernels on data-centre Blackwell, compiled: tensor memory, block scales, tensor descriptors, warp specialisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from machine_values import numbers, tensor

import mmabits
from mmabits.emulator.codecs import as_codes
from mmabits.emulator.layouts import pack_fp4, swizzle_scales
from mmabits.isa import InsufficientEvidence
from mmabits.isa.formats import FORMATS

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

ARCHITECTURES = ("sm_100a", "sm_103a")


def emulate(arch: str, **options: Any) -> Any:
    return mmabits.emulate(arch, frameworks=["triton"], triton="compiled", **options)


@triton.jit
def product(a, b, c, K, M: tl.constexpr, N: tl.constexpr, BK: tl.constexpr, A_IS_TURNED: tl.constexpr, B_IS_TURNED: tl.constexpr):
    """One tile: A (M, K) and B (K, N), each row by row or column by column."""
    i, j, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, BK)
    acc = tl.zeros((M, N), dtype=c.dtype.element_ty)
    for start in range(0, K, BK):
        if A_IS_TURNED:
            x = tl.trans(tl.load(a + (start + k)[:, None] * M + i[None, :]))
        else:
            x = tl.load(a + i[:, None] * K + (start + k)[None, :])
        if B_IS_TURNED:
            y = tl.trans(tl.load(b + j[:, None] * K + (start + k)[None, :]))
        else:
            y = tl.load(b + (start + k)[:, None] * N + j[None, :])
        acc = tl.dot(x, y, acc, out_dtype=c.dtype.element_ty)
    tl.store(c + i[:, None] * N + j[None, :], acc)


@triton.jit
def twice(a, b, c, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """(A B) C with the first product rounded to f16: it goes to the second through tensor memory."""
    i, j, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    x = tl.dot(tl.load(a + i[:, None] * K + k[None, :]), tl.load(b + k[:, None] * N + j[None, :]))
    y = tl.dot(x.to(tl.float16), tl.load(c + j[:, None] * K + k[None, :]))
    tl.store(out + i[:, None] * K + k[None, :], y)


@triton.jit
def by_descriptors(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PROGRAMS: tl.constexpr, WS: tl.constexpr):
    """A persistent product of A (M, K) and the transpose of B (N, K), by tensor descriptors of the host."""
    across = tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), tl.cdiv(M, BM) * across, PROGRAMS, flatten=True, warp_specialize=WS):
        row, column = tile // across * BM, tile % across * BN
        acc = tl.zeros((BM, BN), dtype=tl.float32)
        for k in range(tl.cdiv(K, BK)):
            acc = tl.dot(a.load([row, k * BK]), b.load([column, k * BK]).T, acc)
        c.store([row, column], acc)


@triton.jit
def scaled_by_descriptors(
    a, scales_a, b, scales_b, c, M, K, FORM_A: tl.constexpr, FORM_B: tl.constexpr, PACKED_A: tl.constexpr, PACKED_B: tl.constexpr,
    VECTOR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Block-scaled products whose scales lie in the 128x4 layout: Triton copies them into tensor memory as they are."""
    program = tl.program_id(0)
    row, column = program % tl.cdiv(M, BM), program // tl.cdiv(M, BM)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for k in tl.range(0, tl.cdiv(K, BK)):
        x, y = a.load([row * BM, k * (BK // PACKED_A)]), b.load([column * BN, k * (BK // PACKED_B)])
        sx = scales_a.load([0, row * (BM // 128), k * (BK // VECTOR // 4), 0, 0])
        sy = scales_b.load([0, column * (BN // 128), k * (BK // VECTOR // 4), 0, 0])
        sx = sx.reshape(BM // 128, BK // VECTOR // 4, 32, 4, 4).trans(0, 3, 2, 1, 4).reshape(BM, BK // VECTOR)
        sy = sy.reshape(BN // 128, BK // VECTOR // 4, 32, 4, 4).trans(0, 3, 2, 1, 4).reshape(BN, BK // VECTOR)
        acc = tl.dot_scaled(x, sx, FORM_A, y.T, sy, FORM_B, acc)
    c.store([row * BM, column * BN], acc)


FORMS = [("f16", "f16", "f32"), ("f16", "f16", "f16"), ("bf16", "bf16", "f32"), ("tf32", "tf32", "f32"), ("e4m3", "e4m3", "f32"),
         ("e5m2", "e4m3", "f32"), ("e4m3", "e4m3", "f16"), ("s8", "s8", "s32")]  # fmt: skip
TILES = [(64, 64, 64), (128, 64, 64), (128, 128, 32), (128, 256, 64), (64, 32, 64)]
OUT = {"f32": torch.float32, "f16": torch.float16, "s32": torch.int32}


def products() -> list[object]:
    found = []
    for form in FORMS:
        for tile in TILES:
            for turned in ((False, False), (True, False), (False, True), (True, True)):
                quick = (tile == (128, 64, 64) and turned == (False, True)) or (form[0] == "f16" == form[2] and turned == (True, False))
                marks = () if quick else pytest.mark.slow
                found.append(pytest.param(form, tile, turned, marks=marks, id="-".join(map(str, (*form, *tile, *turned)))))
    return found


@pytest.mark.parametrize(("form", "tile", "turned"), products())
def test_products_of_every_type(form: tuple[str, str, str], tile: tuple[int, int, int], turned: tuple[bool, bool]) -> None:
    m, n, block = tile
    k = 3 * block
    a, b = numbers(form[0], (m, k), *tile), numbers(form[1], (k, n), *tile)
    if form[0] == "tf32":  # the kernel's numbers are f32; tensor cores leave out what tf32 has not
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    c = torch.empty(m, n, dtype=OUT[form[2]])
    given = tensor(a.T) if turned[0] else tensor(a), tensor(b.T) if turned[1] else tensor(b)
    with emulate("sm_100a") as session:
        product[(1,)](*given, c, k, M=m, N=n, BK=block, A_IS_TURNED=turned[0], B_IS_TURNED=turned[1], num_warps=4, num_stages=2)
    (line,) = session.report().emulated
    assert line.instruction.ptx.startswith("tcgen05.mma.cta_group::1")
    wanted = mmabits.gemm(a, b, instruction=line.instruction, arch="sm_100a")
    assert np.array_equal(c.numpy().view(f"u{c.element_size()}"), as_codes(wanted, FORMATS[form[2]]))


def test_a_product_by_a_cluster_of_two() -> None:
    """Each CTA of num_ctas=2 has half of the tile, and tensor memory of its own."""
    m, n, k = 256, 128, 128
    a, b, c = numbers("f16", (m, k), 20), numbers("f16", (k, n), 21), torch.empty(m, n)
    with emulate("sm_100a") as session:
        product[(1,)](tensor(a), tensor(b), c, k, M=m, N=n, BK=64, A_IS_TURNED=False, B_IS_TURNED=False, num_warps=4, num_ctas=2)
    assert [line.count for line in session.report().emulated] == [2 * k // 16]
    assert np.array_equal(c.numpy(), mmabits.gemm(a, b, instruction="tcgen05.mma", arch="sm_100a"))


@pytest.mark.parametrize("m", [64, 128])
def test_a_product_of_a_product_goes_through_tensor_memory(m: int) -> None:
    n = k = 64
    a, b, c = (numbers("f16", shape, m) for shape in ((m, k), (k, n), (n, k)))
    out = torch.empty(m, k)
    with emulate("sm_100a"):
        twice[(1,)](tensor(a), tensor(b), tensor(c), out, M=m, N=n, K=k, num_warps=4)
    first = mmabits.gemm(a, b, instruction="tcgen05.mma", arch="sm_100a")
    wanted = mmabits.gemm(np.asarray(first, np.float32).astype(np.float16), c, instruction="tcgen05.mma", arch="sm_100a")
    assert np.array_equal(out.numpy(), wanted)


@pytest.mark.parametrize(("block", "warps", "specialised"), [
    ((128, 128, 64), 4, False), ((128, 128, 64), 4, True), pytest.param((128, 256, 64), 8, False, marks=pytest.mark.slow),
    pytest.param((128, 64, 128), 4, True, marks=pytest.mark.slow),
])  # fmt: skip
def test_persistent_products_by_tensor_descriptors(block: tuple[int, int, int], warps: int, specialised: bool) -> None:
    m, n, k = 320, 384, 192
    a, b = numbers("f16", (m, k)), numbers("f16", (n, k), 1)
    c = torch.empty(m, n)
    maps = [TensorDescriptor.from_tensor(each, shape) for each, shape in
            ((tensor(a), [block[0], block[2]]), (tensor(b), [block[1], block[2]]), (c, [block[0], block[1]]))]  # fmt: skip
    with emulate("sm_100a"):
        by_descriptors[(4,)](
            *maps, m, n, k, BM=block[0], BN=block[1], BK=block[2], PROGRAMS=4, WS=specialised, num_warps=warps,
            num_stages=2 if block[1] == 256 else 3,
        )  # fmt: skip
    assert np.array_equal(c.numpy(), mmabits.gemm(a, b.T, instruction="tcgen05.mma", arch="sm_100a"))


SCALED = [("e4m3", "e4m3", "ue8m0", 32), ("e5m2", "e4m3", "ue8m0", 32), ("e2m1", "e2m1", "ue8m0", 32), ("e2m1", "e2m1", "ue4m3", 16),
          ("e4m3", "e2m1", "ue8m0", 32), ("e2m1", "e5m2", "ue8m0", 32)]  # fmt: skip


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("form", SCALED, ids=["-".join(map(str, each)) for each in SCALED])
def test_block_scaled_products_by_tensor_descriptors(arch: str, form: tuple[str, str, str, int]) -> None:
    """Every pair of formats that Triton has: scales go to tensor memory by tcgen05.cp."""
    kind_a, kind_b, kind_s, vector = form
    m, n, k, bn, bk = 256, 256, 512, 128, 256 if kind_a == kind_b == "e2m1" else 128
    a, b = numbers(kind_a, (m, k), *form), numbers(kind_b, (n, k), 1, *form)
    sa, sb = numbers(kind_s, (m, k // vector), 2, *form), numbers(kind_s, (n, k // vector), 3, *form)

    def stored(array: Any, kind: str) -> tuple[Any, int]:
        return (torch.from_numpy(pack_fp4(array)), 2) if kind == "e2m1" else (tensor(array), 1)

    def scales(array: Any) -> Any:
        flat = swizzle_scales(array).reshape(1, array.shape[0] // 128, k // vector // 4, 2, 256)
        return tensor(flat) if kind_s == "ue4m3" else torch.from_numpy(flat.view(np.uint8))

    (ta, pack_a), (tb, pack_b) = stored(a, kind_a), stored(b, kind_b)
    c = torch.empty(m, n)
    describe = TensorDescriptor.from_tensor
    maps = [describe(ta, [128, bk // pack_a]), describe(scales(sa), [1, 1, bk // vector // 4, 2, 256]), describe(tb, [bn, bk // pack_b]),
            describe(scales(sb), [1, bn // 128, bk // vector // 4, 2, 256]), describe(c, [128, bn])]  # fmt: skip
    with emulate(arch) as session:
        scaled_by_descriptors[(4,)](
            *maps, m, k, FORM_A=kind_a, FORM_B=kind_b, PACKED_A=pack_a, PACKED_B=pack_b, VECTOR=vector, BM=128, BN=bn, BK=bk, num_warps=4,
            num_stages=3,
        )  # fmt: skip
    (line,) = session.report().emulated
    wanted = mmabits.gemm(a, b.T, instruction=line.instruction, arch=arch, scale_a=sa, scale_b=sb.T)
    assert np.array_equal(c.numpy(), wanted)


def test_evidence_is_asked_for_before_the_launch() -> None:
    a, c = torch.zeros(128, 64, dtype=torch.float16), torch.full((128, 64), 3.0)
    b = torch.zeros(64, 64, dtype=torch.float16)
    with pytest.raises(InsufficientEvidence), emulate("sm_110a", require="recorded"):
        product[(1,)](a, b, c, 64, M=128, N=64, BK=64, A_IS_TURNED=False, B_IS_TURNED=False, num_warps=4)
    assert (c == 3).all()
