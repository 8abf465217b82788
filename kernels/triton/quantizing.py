"""What quantizing kernels share: magnitudes, scales by the recipes of `mmabits.kernels.schemes.scaling` and MX, and e2m1 codes.

Divisions are `tl.div_rn`, since `/` is approximate on a GPU; the recipes with `-full` in their names want that.
"""

from __future__ import annotations

import triton
import triton.language as tl

INFINITY = tl.constexpr(0x7F800000)
FRACTION = tl.constexpr(0x7FFFFF)
LARGEST = tl.constexpr(3.4028234663852886e38)
SMALLEST_NORMAL = tl.constexpr(1.1754943508222875e-38)
LIFT = tl.constexpr(16777216.0)


@triton.jit
def magnitude_bits(x):  # type: ignore[no-untyped-def]
    """Float32 magnitudes as int32, which compare as the numbers do; infinities and NaN are the largest."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def finite_bits(x):  # type: ignore[no-untyped-def]
    """The same with 0 for infinities and NaN."""
    bits = magnitude_bits(x)
    return tl.where(bits < INFINITY, bits, 0)


@triton.jit
def scaled_by(x, amax, MAX: tl.constexpr, RECIPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Values over their scales, and the scales, which are 1 where amax is 0.

    Amax has the shape of x, or one that broadcasts; so have the scales.
    """
    known = tl.where(amax > 0, amax, MAX)
    largest = tl.full(known.shape, MAX, tl.float32)
    one = tl.full(known.shape, 1.0, tl.float32)
    if RECIPE == "multiply":
        factor = tl.minimum(tl.div_rn(largest, known), LARGEST)
        scale = tl.minimum(tl.div_rn(one, factor), LARGEST)
        scaled = x * tl.where(amax > 0, factor, 1.0)
    elif RECIPE == "divide-full" or RECIPE == "reciprocal-full":
        least = tl.full(known.shape, 1, tl.int32).to(tl.float32, bitcast=True)
        scale = tl.maximum(known / MAX, least)
        divisor = tl.where(amax > 0, scale, 1.0)
        scaled = x / divisor if RECIPE == "divide-full" else x * (1.0 / divisor)
    else:
        # 2^-149, the smallest float32: as a literal it would be taken for a float64.
        smallest = tl.full(known.shape, 1, tl.int32).to(tl.float32, bitcast=True)
        scale = tl.maximum(tl.div_rn(known, largest), smallest)
        if RECIPE == "power-of-two":
            bits = scale.to(tl.int32, bitcast=True)
            field = (bits >> 23) + tl.where((bits & FRACTION) != 0, 1, 0)
            scale = (tl.maximum(field, 1) << 23).to(tl.float32, bitcast=True)
        if RECIPE == "reciprocal":
            lift = tl.where(scale < SMALLEST_NORMAL, LIFT, 1.0)
            scaled = (x * lift) * tl.where(amax > 0, tl.div_rn(one, scale * lift), 1.0)
        else:
            scaled = tl.div_rn(x, tl.broadcast_to(tl.where(amax > 0, scale, 1.0), x.shape))
    return scaled, tl.where(amax > 0, scale, 1.0)


@triton.jit
def mx_scale_codes(amax_bits, EMAX: tl.constexpr, FRACTION_BITS: tl.constexpr, MAX: tl.constexpr, RECIPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """ue8m0 codes of blocks from the bits of their largest magnitudes: 0xFF for a block with an infinity or NaN."""
    if RECIPE == "rceil":
        amax = tl.where(amax_bits < INFINITY, amax_bits, 0).to(tl.float32, bitcast=True)
        bits = tl.div_rn(amax, tl.full(amax.shape, MAX, tl.float32)).to(tl.int32, bitcast=True)
        field = bits >> 23
        subnormal = tl.where(bits > 0x400000, 1, 0)
        codes = tl.where(field == 0, subnormal, field + tl.where((bits & FRACTION) != 0, 1, 0))
    elif RECIPE == "even":
        codes = ((amax_bits + (1 << (22 - FRACTION_BITS))) >> 23) - EMAX
    elif RECIPE == "ceil":
        codes = (amax_bits >> 23) + tl.where((amax_bits & FRACTION) != 0, 1, 0) - EMAX
    else:
        codes = (amax_bits >> 23) - EMAX
    codes = tl.minimum(tl.maximum(codes, 0), 253)
    return tl.where(amax_bits < INFINITY, codes, 255)


@triton.jit
def mx_scaled(x, codes):  # type: ignore[no-untyped-def]
    """Values over the powers of two of their scale codes, which is exact where it matters; +0 where the code is 0xFF."""
    factor = ((254 - tl.minimum(codes, 253)) << 23).to(tl.float32, bitcast=True)
    return tl.where(codes == 255, 0.0, x * factor)


@triton.jit
def e2m1_codes(x):  # type: ignore[no-untyped-def]
    """Codes of e2m1, uint8: to nearest even, saturating."""
    size = tl.abs(x)
    code = (size > 0.25).to(tl.uint8) + (size >= 0.75).to(tl.uint8) + (size > 1.25).to(tl.uint8) + (size >= 1.75).to(tl.uint8)
    code += (size > 2.5).to(tl.uint8) + (size >= 3.5).to(tl.uint8) + (size > 5.0).to(tl.uint8)
    return code | tl.where(x.to(tl.int32, bitcast=True) < 0, 8, 0).to(tl.uint8)


@triton.jit
def mx_kernel(  # type: ignore[no-untyped-def]
    x_ptr, out_ptr, scale_ptr, R, K, x_row, x_k, EMAX: tl.constexpr, FRACTION_BITS: tl.constexpr, MAX: tl.constexpr, RECIPE: tl.constexpr,
    PACK: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """MX of a matrix, 32 of K by BLOCK_R rows a program: elements (R, K), two e2m1 to a byte, and scales (R, K / 32)."""
    r = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    block = tl.program_id(1)
    mask = r[:, None] < R
    if PACK == 1:
        k = (block * 32 + tl.arange(0, 32)).to(tl.int64)
        x = tl.load(x_ptr + r[:, None] * x_row + k[None, :] * x_k, mask=mask, other=0.0)
        codes = mx_scale_codes(tl.max(magnitude_bits(x), axis=1), EMAX, FRACTION_BITS, MAX, RECIPE)
        elements = mx_scaled(x, codes[:, None]).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + r[:, None] * K + k[None, :], elements, mask=mask)
    else:
        pair = (block * 16 + tl.arange(0, 16)).to(tl.int64)
        at = x_ptr + r[:, None] * x_row + 2 * pair[None, :] * x_k
        low = tl.load(at, mask=mask, other=0.0)
        high = tl.load(at + x_k, mask=mask, other=0.0)
        largest = tl.max(tl.maximum(magnitude_bits(low), magnitude_bits(high)), axis=1)
        codes = mx_scale_codes(largest, EMAX, FRACTION_BITS, MAX, RECIPE)
        byte = e2m1_codes(mx_scaled(low, codes[:, None])) | (e2m1_codes(mx_scaled(high, codes[:, None])) << 4)
        tl.store(out_ptr + r[:, None] * (K // 2) + pair[None, :], byte, mask=mask)
    tl.store(scale_ptr + r * (K // 32) + block, codes.to(tl.uint8), mask=r < R)
