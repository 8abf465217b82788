"""Compiled kernels written out in Python: the tree of sums, what is fused, and the functions of the GPU, in the order of the machine code.

Every operation is a reference of the opcode table, one number at a time in plain integers. Elements lie as Triton lays 256 of them over
four warps: two neighbours to a lane.
"""

from __future__ import annotations

from typing import Any

import numpy as np

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
