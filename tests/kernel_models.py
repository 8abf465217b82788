"""Compiled kernels written out in Python: the tree of sums, what is fused, and the functions of the GPU, in the order of the machine code.

Every operation is a reference of the opcode table, one number at a time in plain integers. Elements lie as Triton lays 256 of them over
four warps: two neighbours to a lane.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import mmabits
from mmabits.isa.opcodes import opcode_table

WARP = 32
F32 = np.float32


def op(name: str, *operands: Any) -> Any:
    """An opcode of the PTX, element by element: f32 in and out."""
    row = opcode_table()[name]
    assert row.reference is not None
    codes = np.broadcast_arrays(*(np.asarray(each, F32).view(np.uint32) for each in operands))
    flat = [int(row.reference(*map(int, each))) for each in zip(*(each.ravel() for each in codes), strict=True)]
    return np.array(flat, np.uint32).view(F32).reshape(codes[0].shape)


def add(a: Any, b: Any) -> Any:
    return op("add.rn.f32", a, b)


def sub(a: Any, b: Any) -> Any:
    return op("sub.rn.f32", a, b)


def mul(a: Any, b: Any) -> Any:
    return op("mul.rn.f32", a, b)


def fma(a: Any, b: Any, c: Any) -> Any:
    return op("fma.rn.f32", a, b, c)


def quotient(a: Any, b: Any) -> Any:
    """`/`."""
    return op("div.full.f32", a, b)


def by_constant(a: Any, b: float) -> Any:
    """`/` by a constant: a product by the correctly rounded reciprocal."""
    return mul(a, F32(1) / F32(b))


def quotient_plus(a: Any, b: Any, c: Any) -> Any:
    """`a / b + c`, b neither tiny nor huge: the last product of the division is fused with the sum."""
    return fma(op("rcp.approx.ftz.f32", b), a, c)


def exponential(x: Any) -> Any:
    """`tl.exp`."""
    return op("ex2.approx.f32", mul(x, F32(1.4426950408889634)))


# -------------------------------------------------------------------------------------------------------------- trees of sums


def in_lanes(values: Any) -> Any:
    """(rows, 256) as (rows, warps, lanes, 2)."""
    return values.reshape(len(values), -1, WARP, 2)


def butterfly(values: Any) -> Any:
    """The sum over the last axis, by halves that are exchanged: 16 away first."""
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        values = add(values[..., :half], values[..., half:])
    return values[..., 0]


def total(of_lanes: Any) -> Any:
    """Sums of a row, from one number of each lane: the lanes of a warp first, then the warps, through shared memory."""
    return butterfly(butterfly(of_lanes))


def neighbours(values: Any) -> Any:
    """The sum over the last axis, each with the one beside it first."""
    while values.shape[-1] > 1:
        values = add(values[..., 0::2], values[..., 1::2])
    return values[..., 0]


def sum_of_mma_rows(p: Any) -> Any:
    """Rows of 32 columns as mma.sync and wgmma lay them: four lanes, in each of four tiles two neighbours, which are added first."""
    lanes = p.reshape(len(p), 4, 4, 2)
    pairs = add(lanes[..., 0], lanes[..., 1])
    return butterfly(neighbours(pairs.transpose(0, 2, 1)))


def sum_of_mma_rows_in_pairs(p: Any) -> Any:
    """The same where neighbours are added as pairs, tile by tile, and to each other last."""
    tiles = neighbours(p.reshape(len(p), 4, 4, 2).transpose(0, 2, 3, 1))
    return butterfly(add(tiles[..., 0], tiles[..., 1]))


def sum_of_tensor_memory_rows(p: Any) -> Any:
    """Rows of 32 columns that two lanes have from tensor memory, 16 each: in pairs too."""
    halves = neighbours(p.reshape(len(p), 2, 8, 2).transpose(0, 1, 3, 2))
    return butterfly(add(halves[..., 0], halves[..., 1]))


# ------------------------------------------------------------------------------------------------------------------- kernels


def softmax(x: Any) -> Any:
    e = exponential(sub(x, x.max(axis=1, keepdims=True)))
    pairs = in_lanes(e)
    return quotient(e, total(add(pairs[..., 0], pairs[..., 1]))[:, None])


def sum_of_squares(x: Any) -> Any:
    """The second square of a lane is rounded, the first one fused with it."""
    pairs = in_lanes(x)
    return total(fma(pairs[..., 0], pairs[..., 0], mul(pairs[..., 1], pairs[..., 1])))


def layer_norm(x: Any, w: Any, b: Any, eps: float) -> Any:
    """n is an argument of the kernel: division by it is the GPU's, and fused with eps."""
    n = F32(x.shape[1])
    pairs = in_lanes(x)
    mean = quotient(total(add(pairs[..., 0], pairs[..., 1])), n)
    centred = sub(x, mean[:, None])
    root = op("sqrt.approx.ftz.f32", quotient_plus(sum_of_squares(centred), n, F32(eps)))
    return fma(mul(centred, quotient(F32(1), root)[:, None]), w, b)


def rms_norm(x: Any, w: Any, eps: float) -> Any:
    """n is a constant: a factor, fused with eps."""
    r = op("rsqrt.approx.ftz.f32", fma(F32(1) / F32(x.shape[1]), sum_of_squares(x), F32(eps)))
    return mul(mul(r[:, None], x), w)


def scaled_rows(x: Any, largest: float) -> tuple[Any, Any]:
    """Rows over their largest magnitudes, which become `largest`: numbers to be rounded, and scales."""
    scale = by_constant(np.abs(x).max(axis=1), largest)
    return quotient(x, scale[:, None]), scale


def nvfp4(x: Any, whole: float) -> tuple[Any, Any]:
    """Blocks of 16 over their scales, which are rounded to e4m3 (from f32, to nearest): codes of e2m1, two to a byte, and scales."""
    import ml_dtypes

    blocks = x.reshape(-1, 16)
    scale = quotient(by_constant(np.abs(blocks).max(axis=1), 6.0), F32(whole))
    stored = np.minimum(scale, F32(448)).astype(ml_dtypes.float8_e4m3fn)
    step = mul(stored.astype(F32), F32(whole))
    codes = np.ascontiguousarray(quotient(blocks, step[:, None]).astype(ml_dtypes.float4_e2m1fn)).view(np.uint8)
    return codes, stored


ATTENTION = {
    "sm_80": ("mma.sync", sum_of_mma_rows, True), "sm_89": ("mma.sync", sum_of_mma_rows, True),
    "sm_90a": ("wgmma", sum_of_mma_rows, True), "sm_100a": ("tcgen05", sum_of_tensor_memory_rows, False),
    "sm_120a": ("mma.sync", sum_of_mma_rows_in_pairs, True),
}  # fmt: skip
"""Instruction, sum of a row, and whether scores are fused with their largest in every block: with tensor memory in the first alone, since
the others multiply pairs, whose products the largest is taken of."""


def attention(q: Any, k: Any, v: Any, scale: float, arch: str, block: int = 32) -> Any:
    """One head, online softmax in powers of two over blocks of keys."""
    family, sum_of_rows, fuses = ATTENTION[arch]
    most = np.full(len(q), -np.inf, F32)
    weights, out = np.zeros(len(q), F32), np.zeros((len(q), v.shape[1]), F32)
    for start in range(0, len(k), block):
        keys = slice(start, start + block)
        scores = mmabits.gemm(q, np.ascontiguousarray(k[keys].T), instruction=family, arch=arch)
        scaled = mul(scores, F32(scale))
        new = np.maximum(most, scaled.max(axis=1))
        less = fma(F32(scale), scores, -new[:, None]) if fuses or start == 0 else sub(scaled, new[:, None])
        p = op("ex2.approx.ftz.f32", less)
        shrunk = op("ex2.approx.ftz.f32", sub(most, new))
        weights = fma(weights, shrunk, sum_of_rows(p))
        out = mmabits.gemm(p.astype(np.float16), v[keys], mul(out, shrunk[:, None]), instruction=family, arch=arch)
        most = new
    return quotient(out, weights[:, None])
