"""What training in NVFP4 has beside the product: the random Hadamard transform, and a quantizer that rounds stochastically."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mmabits.kernels.schemes.checks import positive
from mmabits.kernels.triton.nvfp4 import BLOCK, in_steps, tensor_scale
from mmabits.kernels.triton.operands import check_multiple, checked, reads

if TYPE_CHECKING:
    import torch

HADAMARD = 16


@triton.jit
def butterfly(x, ROWS: tl.constexpr, DISTANCE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums and differences of the elements of runs of 16 that lie DISTANCE apart."""
    halves = tl.permute(tl.reshape(x, (ROWS, 8 // DISTANCE, 2, DISTANCE)), (0, 1, 3, 2))
    low, high = tl.split(halves)
    return tl.reshape(tl.permute(tl.join(low + high, low - high), (0, 1, 3, 2)), (ROWS, 16))


@triton.jit
def hadamard_kernel(x_ptr, signs_ptr, out_ptr, R, K, x_row, x_k, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Runs of 16 of K in ROWS rows: H (signs * x) / 4."""
    r = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    lane = tl.arange(0, 16)
    k = (tl.program_id(1) * 16 + lane).to(tl.int64)
    mask = r[:, None] < R
    x = tl.load(x_ptr + r[:, None] * x_row + k[None, :] * x_k, mask=mask, other=0.0)
    x = x * tl.load(signs_ptr + lane)[None, :]
    x = butterfly(x, ROWS, 1)
    x = butterfly(x, ROWS, 2)
    x = butterfly(x, ROWS, 4)
    x = butterfly(x, ROWS, 8)
    tl.store(out_ptr + r[:, None] * K + k[None, :], x * 0.25, mask=mask)


@triton.jit
def drawn_e2m1_codes(x, random):  # type: ignore[no-untyped-def]
    """Codes of e2m1, uint8: away from zero where the first 16 bits of the remainder and 16 random bits carry; saturating."""
    size = tl.minimum(tl.abs(x), 6.0)
    above = tl.where(size >= 4.0, 2, tl.where(size >= 2.0, 1, 0))
    steps = size * tl.where(above == 2, 0.5, tl.where(above == 1, 1.0, 2.0))
    whole = steps.to(tl.int32)
    rest = ((steps - whole.to(tl.float32)) * 65536.0).to(tl.int32)
    code = whole + 2 * above + ((rest + (random & 0xFFFF).to(tl.int32)) >> 16)
    return tl.minimum(code, 7).to(tl.uint8) | tl.where(x.to(tl.int32, bitcast=True) < 0, 8, 0).to(tl.uint8)


@triton.jit
def nvfp4_drawn_kernel(  # type: ignore[no-untyped-def]
    x_ptr, random_ptr, out_ptr, scale_ptr, tensor_scale_ptr, R, K, x_row, x_k, BLOCK_R: tl.constexpr
):
    """NVFP4 of a matrix, 16 of K by BLOCK_R rows a program; random bits lie as the matrix does."""
    r = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    block = tl.program_id(1)
    pair = (block * 8 + tl.arange(0, 8)).to(tl.int64)
    mask = r[:, None] < R
    at = r[:, None] * x_row + 2 * pair[None, :] * x_k
    low = tl.load(x_ptr + at, mask=mask, other=0.0)
    high = tl.load(x_ptr + at + x_k, mask=mask, other=0.0)
    low, high, codes = in_steps(low, high, tensor_scale_ptr, False, BLOCK_R)
    first = drawn_e2m1_codes(low, tl.load(random_ptr + at, mask=mask, other=0))
    second = drawn_e2m1_codes(high, tl.load(random_ptr + at + x_k, mask=mask, other=0))
    tl.store(out_ptr + r[:, None] * (K // 2) + pair[None, :], first | (second << 4), mask=mask)
    tl.store(scale_ptr + r[:, None] * (K // 16) + block, codes, mask=mask)


def hadamard(values: torch.Tensor, signs: torch.Tensor, *, columns: bool = False) -> torch.Tensor:
    """The random Hadamard transform along K; the bits of `schemes.nvfp4.hadamard`.

    Args:
        values: (R, K) float32, or (K, R) with `columns`; contiguous, K a multiple of 16.
        signs: (16,) float32, +1 or -1.
        columns: K is the first axis, and what comes out is transposed.

    Returns:
        (R, K) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit.
    """
    import torch

    shape = checked(values, "values", ("float32",), (None, None)).shape
    rows, k = (shape[1], shape[0]) if columns else (shape[0], shape[1])
    check_multiple(k, HADAMARD, "K", "the size of the transform")
    checked(signs, "signs", ("float32",), (HADAMARD,))
    out = torch.empty((rows, k), dtype=torch.float32, device=values.device)
    strides = (1, rows) if columns else (k, 1)
    hadamard_kernel[(triton.cdiv(rows, 32), k // HADAMARD)](values, signs, out, rows, k, *strides, ROWS=32, enable_fp_fusion=False)
    return out


def quantize_nvfp4_stochastic(
    values: torch.Tensor, random_bits: torch.Tensor, *, columns: bool = False, scale: torch.Tensor | None = None, check: bool | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A matrix, or its transpose, in NVFP4, elements rounded stochastically; the bits of `schemes.nvfp4` with `rounding="rs"`.

    Args:
        values: (R, K) float32, or (K, R) with `columns`; contiguous, K a multiple of 16.
        random_bits: uint32, or the same bits as int32, of the shape of `values`; the 16 low bits are used.
        columns: blocks lie along columns, and what comes out is transposed.
        scale: (1,) float32, static, positive and finite; None: `nvfp4.tensor_scale(values)`.
        check: whether to look at `scale` first; None: if it is on the CPU.

    Returns:
        Elements (R, K / 2) uint8, the lower K in the low nibble; scales (R, K / 16) float8_e4m3fn; the scale of the tensor, (1,) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit, a scale that is not positive and finite.
    """
    import torch

    shape = checked(values, "values", ("float32",), (None, None)).shape
    rows, k = (shape[1], shape[0]) if columns else (shape[0], shape[1])
    check_multiple(k, BLOCK, "K", "the block size")
    checked(random_bits, "random_bits", ("uint32", "int32"), tuple(shape))
    whole = tensor_scale(values) if scale is None else checked(scale, "scale", ("float32",), (1,))
    if scale is not None and reads(scale, check):
        positive(float(scale), "scale")
    out = torch.empty((rows, k // 2), dtype=torch.uint8, device=values.device)
    codes = torch.empty((rows, k // BLOCK), dtype=torch.uint8, device=values.device)
    strides = (1, rows) if columns else (k, 1)
    nvfp4_drawn_kernel[(triton.cdiv(rows, 32), k // BLOCK)](
        values, random_bits, out, codes, whole, rows, k, *strides, BLOCK_R=32, enable_fp_fusion=False
    )  # fmt: skip
    return out, codes.view(torch.float8_e4m3fn), whole
