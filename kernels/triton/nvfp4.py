"""NVFP4: a quantizer with blocks of 16 or 16 x 16, and the product with the scales of both tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mmabits.isa import OperandError
from mmabits.kernels.schemes.checks import positive
from mmabits.kernels.triton.block_scaled import block_scaled_matmul
from mmabits.kernels.triton.operands import check_multiple, checked, reads
from mmabits.kernels.triton.quantizing import INFINITY, e2m1_codes, magnitude_bits

if TYPE_CHECKING:
    import torch

BLOCK = 16
_LARGEST = 6.0 * 448.0


@triton.jit
def in_steps(low, high, tensor_scale_ptr, SQUARE: tl.constexpr, BLOCK_R: tl.constexpr):  # type: ignore[no-untyped-def]
    """Halves of blocks of 16 in units of their scales, zeros where these are none; the scales' codes. Square, all rows share one."""
    bits = tl.max(tl.maximum(magnitude_bits(low), magnitude_bits(high)), axis=1, keep_dims=True)
    if SQUARE:
        bits = tl.broadcast_to(tl.max(bits, axis=0, keep_dims=True), (BLOCK_R, 1))
    is_finite = bits < INFINITY
    amax = tl.where(is_finite, bits, 0).to(tl.float32, bitcast=True)
    tensor_scale = tl.full((BLOCK_R, 1), 1.0, tl.float32) * tl.load(tensor_scale_ptr)
    scale = tl.div_rn(tl.div_rn(amax, tl.full((BLOCK_R, 1), 6.0, tl.float32)), tensor_scale).to(tl.float8e4nv)
    step = scale.to(tl.float32) * tensor_scale
    usable = is_finite & (step > 0)
    divisor = tl.broadcast_to(tl.where(usable, step, 1.0), (BLOCK_R, 8))
    low = tl.div_rn(tl.where(usable, low, 0.0), divisor)
    high = tl.div_rn(tl.where(usable, high, 0.0), divisor)
    return low, high, tl.where(is_finite, scale.to(tl.uint8, bitcast=True), 0x7F).to(tl.uint8)


@triton.jit
def nvfp4_kernel(  # type: ignore[no-untyped-def]
    x_ptr, out_ptr, scale_ptr, tensor_scale_ptr, R, K, x_row, x_k, SQUARE: tl.constexpr, BLOCK_R: tl.constexpr
):
    """NVFP4 of a matrix, 16 of K by BLOCK_R rows a program; square, all 16 rows share a scale."""
    r = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    block = tl.program_id(1)
    pair = (block * 8 + tl.arange(0, 8)).to(tl.int64)
    mask = r[:, None] < R
    at = x_ptr + r[:, None] * x_row + 2 * pair[None, :] * x_k
    low = tl.load(at, mask=mask, other=0.0)
    high = tl.load(at + x_k, mask=mask, other=0.0)
    low, high, codes = in_steps(low, high, tensor_scale_ptr, SQUARE, BLOCK_R)
    tl.store(out_ptr + r[:, None] * (K // 2) + pair[None, :], e2m1_codes(low) | (e2m1_codes(high) << 4), mask=mask)
    tl.store(scale_ptr + r[:, None] * (K // 16) + block, codes, mask=mask)


def tensor_scale(values: torch.Tensor) -> torch.Tensor:
    """The scale of a tensor, (1,) float32: its largest finite magnitude over 6 * 448; 1 where that is zero or the tensor empty."""
    import torch

    if values.numel() == 0:
        return torch.ones(1, dtype=torch.float32, device=values.device)
    amax = torch.where(values.isfinite(), values.abs(), 0.0).amax().reshape(1)
    # A division by a Python number may become a multiplication by its reciprocal on a GPU.
    quotient = torch.div(amax, torch.full_like(amax, _LARGEST))
    return torch.where(amax > 0, quotient.clamp(min=2.0**-149), torch.ones_like(amax))


def quantize(
    values: torch.Tensor, *, columns: bool = False, square: bool = False, scale: torch.Tensor | None = None, check: bool | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A matrix, or its transpose, in NVFP4; the bits of `schemes.nvfp4.quantize_rows` and, transposed, `quantize_columns`.

    Args:
        values: (R, K) float32, or (K, R) with `columns`; contiguous, K a multiple of 16.
        columns: blocks lie along columns, and what comes out is transposed.
        square: 16 x 16 elements share a scale; R is a multiple of 16, too.
        scale: (1,) float32, static, positive and finite; None: `tensor_scale(values)`.
        check: whether to look at `scale` first; None: if it is on the CPU, since for a GPU the host would have to wait.

    Returns:
        Elements (R, K / 2) uint8, the lower K in the low nibble; scales (R, K / 16) float8_e4m3fn; the scale of the tensor, (1,) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit, a scale that is not positive and finite.
    """
    import torch

    shape = checked(values, "values", ("float32",), (None, None)).shape
    rows, k = (shape[1], shape[0]) if columns else (shape[0], shape[1])
    check_multiple(k, BLOCK, "K", "the block size")
    if square:
        check_multiple(rows, BLOCK, "the number of rows", "the tile size")
    whole = tensor_scale(values) if scale is None else checked(scale, "scale", ("float32",), (1,))
    if scale is not None and reads(scale, check):
        positive(float(scale), "scale")
    out = torch.empty((rows, k // 2), dtype=torch.uint8, device=values.device)
    codes = torch.empty((rows, k // BLOCK), dtype=torch.uint8, device=values.device)
    step = BLOCK if square else 32
    nvfp4_kernel[(triton.cdiv(rows, step), k // BLOCK)](
        values, out, codes, whole, rows, k, *((1, rows) if columns else (k, 1)), SQUARE=square, BLOCK_R=step, enable_fp_fusion=False
    )  # fmt: skip
    return out, codes.view(torch.float8_e4m3fn), whole


def nvfp4_matmul(
    a: torch.Tensor, a_scales: torch.Tensor, a_scale: torch.Tensor, b: torch.Tensor, b_scales: torch.Tensor, b_scale: torch.Tensor, *,
    swizzled: bool = False, block: tuple[int, int, int] = (128, 64, 128),
) -> torch.Tensor:  # fmt: skip
    """The product a b^T times the scales of both tensors.

    Args:
        a: (M, K / 2) uint8, two e2m1 a byte; contiguous as all.
        a_scales: (M, K / 16) float8_e4m3fn, or swizzled.
        a_scale: (1,) float32.
        b: (N, K / 2) uint8.
        b_scales: (N, K / 16) float8_e4m3fn, or swizzled.
        b_scale: (1,) float32.
        swizzled: block scales are in the 128x4 layout of cuBLAS.
        block: M, N and K of a tile.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit, operands without scales.
    """
    if a_scale is None or b_scale is None:
        raise OperandError("NVFP4 operands need the scale of their tensor, got None")
    alpha = checked(a_scale, "a_scale", ("float32",), (1,)) * checked(b_scale, "b_scale", ("float32",), (1,))
    return block_scaled_matmul(a, a_scales, "e2m1", b, b_scales, "e2m1", alpha=alpha, swizzled=swizzled, group=BLOCK, block=block)
