"""MXFP4: a quantizer and the product. MXFP6: the product, of elements that are unpacked to e4m3, which holds them, in registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mmabits.isa import OperandError, format_spec
from mmabits.kernels.triton.block_scaled import block_scaled_matmul, scales_of
from mmabits.kernels.triton.mxfp8 import BLOCK, quantize_mx
from mmabits.kernels.triton.operands import checked, float32_like, zeros_like

if TYPE_CHECKING:
    import torch

FP6_FORMATS = ("e3m2", "e2m3")


@triton.jit
def e4m3_of_fp6(bytes_ptr, rows, k, ROWS, K, EXPONENT_BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Elements at (rows, k), whose shapes broadcast, out of a stream of 6 bits each, as e4m3."""
    FRACTION_BITS: tl.constexpr = 5 - EXPONENT_BITS
    BIAS: tl.constexpr = 2 ** (EXPONENT_BITS - 1) - 1
    # A subnormal is its fraction times this.
    UNIT: tl.constexpr = 2.0 ** (1 - BIAS - FRACTION_BITS)
    shift = (k * 6) % 8
    at = bytes_ptr + rows.to(tl.int64) * (K // 4 * 3) + (k * 6) // 8
    inside = (rows < ROWS) & (k < K)
    low = tl.load(at, mask=inside, other=0).to(tl.int32)
    high = tl.load(at + 1, mask=inside & (shift > 2), other=0).to(tl.int32)
    code = ((low | (high << 8)) >> shift) & 63
    exponent = (code >> FRACTION_BITS) & (2**EXPONENT_BITS - 1)
    fraction = code & (2**FRACTION_BITS - 1)
    normal = ((exponent + (127 - BIAS)) << 23 | fraction << (23 - FRACTION_BITS)).to(tl.float32, bitcast=True)
    magnitude = tl.where(exponent == 0, fraction.to(tl.float32) * UNIT, normal)
    signed = magnitude.to(tl.int32, bitcast=True) | ((code & 32) << 26)
    return signed.to(tl.float32, bitcast=True).to(tl.float8e4nv)


@triton.jit
def mxfp6_kernel(  # type: ignore[no-untyped-def]
    a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, out_ptr, M, N, K, A_EXPONENT: tl.constexpr, B_EXPONENT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of a b^T."""
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        block = start // 32 + tl.arange(0, BLOCK_K // 32)
        a = e4m3_of_fp6(a_ptr, m[:, None], k[None, :], M, K, A_EXPONENT)
        b = e4m3_of_fp6(b_ptr, n[None, :], k[:, None], N, K, B_EXPONENT)
        a_scale = scales_of(a_scale_ptr, m, block, M, K // 32, False)
        b_scale = scales_of(b_scale_ptr, n, block, N, K // 32, False)
        acc = tl.dot_scaled(a, a_scale, "e4m3", b, b_scale, "e4m3", acc)
    tl.store(out_ptr + m[:, None] * N + n[None, :], acc, mask=(m[:, None] < M) & (n[None, :] < N))


def mxfp6_matmul(
    a: torch.Tensor, a_scales: torch.Tensor, a_format: str, b: torch.Tensor, b_scales: torch.Tensor, b_format: str, *,
    block: tuple[int, int, int] = (128, 64, 128),
) -> torch.Tensor:  # fmt: skip
    """The product a b^T of 6-bit operands, multiplied as e4m3.

    Args:
        a: (M, K * 3 / 4) uint8, `schemes.mxfp6_mxfp4.pack_fp6` along K; contiguous as all.
        a_scales: (M, K / 32) uint8 of ue8m0 codes.
        a_format: `"e3m2"` or `"e2m3"`.
        b: (N, K * 3 / 4) uint8.
        b_scales: (N, K / 32) uint8.
        b_format: as `a_format`; the formats may differ.
        block: M, N and K of a tile.

    Returns:
        (M, N) float32; the bits of `schemes.mxfp6_mxfp4.mx_matmul(through="e4m3")`, or `"bf16"` where there are no block-scaled
        instructions.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit.
    """
    for form in (a_format, b_format):
        if form not in FP6_FORMATS:
            raise OperandError(f"6-bit formats are {', '.join(FP6_FORMATS)}, got {form!r}")
    m, held = checked(a, "a", ("uint8",), (None, None)).shape
    n = checked(b, "b", ("uint8",), (None, held)).shape[0]
    k = held * 4 // 3
    if held % 24:
        raise OperandError(f"K must be a multiple of the block size {BLOCK}, that is of 24 bytes, got {held} bytes")
    checked(a_scales, "a_scales", ("uint8",), (m, k // BLOCK))
    checked(b_scales, "b_scales", ("uint8",), (n, k // BLOCK))
    if 0 in (m, n, k):
        return zeros_like(a, m, n)
    out = float32_like(a, m, n)
    mxfp6_kernel[(triton.cdiv(m, block[0]), triton.cdiv(n, block[1]))](
        a, a_scales, b, b_scales, out, m, n, k, A_EXPONENT=int(a_format[1]), B_EXPONENT=int(b_format[1]), BLOCK_M=block[0],
        BLOCK_N=block[1], BLOCK_K=block[2], enable_fp_fusion=False,
    )  # fmt: skip
    return out


def quantize_mxfp4_rows(values: torch.Tensor, *, recipe: str = "floor") -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix in MXFP4, blocks along rows; the bits of `schemes.mxfp6_mxfp4.quantize_rows`.

    Args:
        values: (R, K) float32, contiguous, K a multiple of 32.
        recipe: one of `MX_RECIPES`.

    Returns:
        Elements (R, K / 2) uint8, the lower K in the low nibble, and ue8m0 codes (R, K / 32) uint8.

    Raises:
        OperandTypeError, OperandError: a tensor or recipe that does not fit.
    """
    return quantize_mx(values, format_spec("e2m1"), recipe, columns=False)


def quantize_mxfp4_columns(values: torch.Tensor, *, recipe: str = "floor") -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix (K, N) in MXFP4, blocks along columns, stored transposed: (N, K / 2) and (N, K / 32); else as `quantize_mxfp4_rows`."""
    return quantize_mx(values, format_spec("e2m1"), recipe, columns=True)


def mxfp4_matmul(
    a: torch.Tensor, a_scales: torch.Tensor, b: torch.Tensor, b_scales: torch.Tensor, *, swizzled: bool = False,
    block: tuple[int, int, int] = (128, 64, 128),
) -> torch.Tensor:  # fmt: skip
    """The product a b^T.

    Args:
        a: (M, K / 2) uint8, two e2m1 a byte.
        a_scales: (M, K / 32) uint8 of ue8m0 codes, or swizzled.
        b: (N, K / 2) uint8.
        b_scales: (N, K / 32) uint8, or swizzled.
        swizzled: scales are in the 128x4 layout of cuBLAS.
        block: M, N and K of a tile.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit, operands without scales.
    """
    return block_scaled_matmul(a, a_scales, "e2m1", b, b_scales, "e2m1", swizzled=swizzled, block=block)
