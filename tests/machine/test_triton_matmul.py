"""A matrix product in every way that Triton has, on every architecture, in every type: each equals `mmabits.gemm` bit for bit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from machine_values import numbers, tensor

import mmabits
from mmabits.emulator.codecs import as_codes, from_codes
from mmabits.emulator.layouts import pack_fp4

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
descriptor = pytest.importorskip("triton.tools.tensor_descriptor")

import triton.language as tl  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

ARCHITECTURES = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a")
M, N, K = 128, 128, 256
TILE = (64, 64, 64)


@triton.jit
def by_pointers(a, b, c, K, N, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    i, j, k = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN), tl.arange(0, BK)
    total = tl.zeros((BM, BN), dtype=c.dtype.element_ty)
    for start in range(0, K, BK):
        x = tl.load(a + i[:, None] * K + (start + k)[None, :])
        total = tl.dot(x, tl.load(b + j[None, :] * K + (start + k)[:, None]), total, out_dtype=c.dtype.element_ty)
    tl.store(c + i[:, None] * N + j[None, :], total)


@triton.jit
def by_host_descriptors(a, b, c, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    i, j = tl.program_id(0) * BM, tl.program_id(1) * BN
    total = tl.zeros((BM, BN), dtype=c.dtype)
    for k in range(0, K, BK):
        total = tl.dot(a.load([i, k]), b.load([j, k]).T, total, out_dtype=c.dtype)
    c.store([i, j], total)


@triton.jit
def by_own_descriptors(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    x = tl.make_tensor_descriptor(a, [M, K], [K, 1], [BM, BK])
    y = tl.make_tensor_descriptor(b, [N, K], [K, 1], [BN, BK])
    z = tl.make_tensor_descriptor(c, [M, N], [N, 1], [BM, BN])
    i, j = tl.program_id(0) * BM, tl.program_id(1) * BN
    total = tl.zeros((BM, BN), dtype=c.dtype.element_ty)
    for k in range(0, K, BK):
        total = tl.dot(x.load([i, k]), y.load([j, k]).T, total, out_dtype=c.dtype.element_ty)
    z.store([i, j], total)


@triton.jit
def persistent(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PROGRAMS: tl.constexpr, WS: tl.constexpr):
    across = tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), tl.cdiv(M, BM) * across, PROGRAMS, flatten=True, warp_specialize=WS):
        i, j = tile // across * BM, tile % across * BN
        total = tl.zeros((BM, BN), dtype=c.dtype)
        for k in range(tl.cdiv(K, BK)):
            total = tl.dot(a.load([i, k * BK]), b.load([j, k * BK]).T, total, out_dtype=c.dtype)
        c.store([i, j], total)


@triton.jit
def split_k(a, b, parts, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr):
    i, j, k = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN), tl.arange(0, BK)
    part = tl.program_id(2)
    total = tl.zeros((BM, BN), dtype=parts.dtype.element_ty)
    for start in range(part * (K // PARTS), (part + 1) * (K // PARTS), BK):
        x = tl.load(a + i[:, None] * K + (start + k)[None, :])
        total = tl.dot(x, tl.load(b + j[None, :] * K + (start + k)[:, None]), total, out_dtype=parts.dtype.element_ty)
    tl.store(parts + part * M * N + i[:, None] * N + j[None, :], total)


@triton.jit
def scaled(
    a, sa, b, sb, c, K, N, FA: tl.constexpr, FB: tl.constexpr, PA: tl.constexpr, PB: tl.constexpr, VECTOR: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    i, j = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    ka, kb, ks = tl.arange(0, BK // PA), tl.arange(0, BK // PB), tl.arange(0, BK // VECTOR)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, K // BK):
        x = tl.load(a + i[:, None] * (K // PA) + (start * (BK // PA) + ka)[None, :])
        y = tl.load(b + j[None, :] * (K // PB) + (start * (BK // PB) + kb)[:, None])
        sx = tl.load(sa + i[:, None] * (K // VECTOR) + (start * (BK // VECTOR) + ks)[None, :])
        sy = tl.load(sb + j[:, None] * (K // VECTOR) + (start * (BK // VECTOR) + ks)[None, :])
        total = tl.dot_scaled(x, sx, FA, y, sy, FB, total)
    tl.store(c + i[:, None] * N + j[None, :], total)


TYPES = ("f16", "bf16", "tf32", "e4m3", "e5m2", "s8")
WAYS = ("pointers", "host descriptors", "own descriptors", "persistent", "specialized", "split K")
SCALED = [
    ("e4m3", "e4m3", 32), ("e5m2", "e4m3", 32), ("e4m3", "e2m1", 32), ("e2m1", "e5m2", 32), ("e2m1", "e2m1", 32), ("e2m1", "e2m1", 16),
]  # fmt: skip


def has(arch: str, form: str) -> bool:
    return arch != "sm_80" or form not in ("e4m3", "e5m2")


def chosen() -> list[object]:
    quick = {
        ("sm_80", "s8", "split K"),
        ("sm_89", "e4m3", "pointers"),
        ("sm_120a", "bf16", "specialized"),
        ("sm_120a", "tf32", "own descriptors"),
    }
    found = []
    for each in itertools.product(ARCHITECTURES, TYPES, WAYS):
        if has(*each[:2]):
            found.append(pytest.param(*each, marks=() if each in quick else pytest.mark.slow, id="-".join(each).replace(" ", "-")))
    return found


def allocate(size: int, _alignment: int, _stream: object) -> Any:
    return torch.empty(size, dtype=torch.int8)


@pytest.mark.parametrize(("arch", "form", "way"), chosen())
def test_products(arch: str, form: str, way: str) -> None:
    a, b = numbers(form, (M, K), arch, way), numbers(form, (N, K), arch, way, "b")
    if form == "tf32":  # the kernel's numbers are f32; tensor cores leave out what tf32 has not
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    x, y, dtype = tensor(a), tensor(b), torch.int32 if form == "s8" else torch.float32
    c, (bm, bn, bk) = torch.empty(M, N, dtype=dtype), TILE
    if (arch, form, way) == ("sm_120a", "tf32", "specialized"):  # whose shared memory has no room for more
        bk = 32
    grid, sizes = (M // bm, N // bn), {"BM": bm, "BN": bn, "BK": bk}
    maps = [descriptor.TensorDescriptor(t, t.shape, t.stride(), list(box)) for t, box in ((x, (bm, bk)), (y, (bn, bk)), (c, (bm, bn)))]
    with mmabits.emulate(arch, frameworks=["triton"], triton="compiled") as session:
        if way == "pointers":
            by_pointers[grid](x, y, c, K, N, **sizes)
        elif way == "host descriptors":
            by_host_descriptors[grid](*maps, K, **sizes)
        elif way == "own descriptors":
            triton.set_allocator(allocate)
            by_own_descriptors[grid](x, y, c, M, N, K, **sizes)
        elif way == "split K":
            parts = torch.empty(2, M, N, dtype=dtype)
            split_k[(*grid, 2)](x, y, parts, M, N, K, **sizes, PARTS=2)
        else:
            persistent[(3,)](*maps, M, N, K, **sizes, PROGRAMS=3, WS=way == "specialized")
    (instruction,) = {line.instruction for line in session.report().emulated}

    def gemm(rows: slice) -> Any:
        return mmabits.gemm(np.ascontiguousarray(a[:, rows]), np.ascontiguousarray(b[:, rows].T), instruction=instruction, arch=arch)

    if way == "split K":
        for part in range(2):
            wanted = gemm(slice(part * K // 2, (part + 1) * K // 2))
            assert np.array_equal(parts[part].numpy().view(np.uint32), wanted.view(np.uint32))
    else:
        assert np.array_equal(c.numpy().view(np.uint32), gemm(slice(None)).view(np.uint32))


def scaled_cases() -> list[object]:
    found = []
    for arch, form in itertools.product(("sm_100a", "sm_120a"), SCALED):
        quick = arch == "sm_120a" and form in (("e4m3", "e4m3", 32), ("e2m1", "e2m1", 16))
        found.append(pytest.param(arch, *form, marks=() if quick else pytest.mark.slow, id="-".join(map(str, (arch, *form)))))
    return found


@pytest.mark.parametrize(("arch", "left", "right", "vector"), scaled_cases())
def test_block_scaled_products(arch: str, left: str, right: str, vector: int) -> None:
    rows, columns, k = 128, 128, 256
    kind = "ue4m3" if vector == 16 else "ue8m0"
    a, b = numbers(left, (rows, k), arch, left), numbers(right, (columns, k), arch, right, "b")
    sa, sb = numbers(kind, (rows, k // vector), arch, "sa"), numbers(kind, (columns, k // vector), arch, "sb")
    c, is_mixed = torch.empty(rows, columns), arch == "sm_120a" and left != right and "e2m1" in (left, right)
    if is_mixed:
        a, b = (
            mmabits.encode(np.round(mmabits.decode(each, form)), form, rounding="rn", satfinite=True)
            for each, form in ((a, left), (b, right))
        )
        a, b = from_codes(as_codes(a, left), left), from_codes(as_codes(b, right), right)
        sa, sb = (from_codes(np.clip(as_codes(each, kind), 126, 128), kind) for each in (sa, sb))

    def given(values: Any, form: str) -> Any:
        return torch.from_numpy(pack_fp4(values)) if form == "e2m1" else tensor(values)

    scales = [torch.from_numpy(np.ascontiguousarray(each).view(np.uint8)) for each in (sa, sb)]
    if kind == "ue4m3":
        scales = [each.view(torch.float8_e4m3fn) for each in scales]
    packed = [2 if form == "e2m1" else 1 for form in (left, right)]
    with mmabits.emulate(arch, frameworks=["triton"], triton="compiled") as session:
        scaled[(1, 1)](
            given(a, left), scales[0], given(b, right), scales[1], c, k, columns, FA=left, FB=right, PA=packed[0], PB=packed[1],
            VECTOR=vector, BM=128, BN=128, BK=128, num_warps=4,
        )  # fmt: skip
    (instruction,) = {line.instruction for line in session.report().emulated}
    if is_mixed:  # Triton multiplies the scales in, in bf16, and takes K in an order of its own: on this data every order gives one result
        assert instruction.scale_type is None
        x, y = (
            mmabits.decode(each, form).astype(np.float64) * np.repeat(mmabits.decode(scale, kind).astype(np.float64), vector, axis=1)
            for each, form, scale in ((a, left, sa), (b, right, sb))
        )
        wanted = (x @ y.T).astype(np.float32)
    else:
        wanted = mmabits.gemm(
            a, np.ascontiguousarray(b.T), instruction=instruction, arch=arch, scale_a=sa, scale_b=np.ascontiguousarray(sb.T)
        )
    assert np.array_equal(c.numpy().view(np.uint32), wanted.view(np.uint32))
