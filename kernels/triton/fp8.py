"""FP8 with float32 scales per tensor, row or column: the product, and a quantizer per row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mmabits.isa import OperandError
from mmabits.kernels.schemes.fp8 import fp8_format
from mmabits.kernels.schemes.scaling import scale_recipe
from mmabits.kernels.triton.operands import check_multiple, checked, float32_like, zeros_like
from mmabits.kernels.triton.quantizing import finite_bits, scaled_by

if TYPE_CHECKING:
    import torch

FP8 = ("float8_e4m3fn", "float8_e5m2")
PROMOTION = 128


@triton.jit
def fp8_kernel(  # type: ignore[no-untyped-def]
    x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, out_ptr, M, N, K, PER_ROW: tl.constexpr, PER_COLUMN: tl.constexpr, IMPRECISE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of x w^T, scaled."""
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
        w = tl.load(w_ptr + n[None, :] * K + k[:, None], mask=(n[None, :] < N) & (k[:, None] < K), other=0.0)
        acc = tl.dot(x, w, acc, max_num_imprecise_acc=IMPRECISE)
    if PER_ROW:
        acc *= tl.load(x_scale_ptr + m, mask=m < M, other=0.0)[:, None]
    else:
        acc *= tl.load(x_scale_ptr)
    if PER_COLUMN:
        acc *= tl.load(w_scale_ptr + n, mask=n < N, other=0.0)[None, :]
    else:
        acc *= tl.load(w_scale_ptr)
    tl.store(out_ptr + m[:, None] * N + n[None, :], acc, mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def fp8_rows_kernel(x_ptr, out_ptr, scale_ptr, K, MAX: tl.constexpr, RECIPE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row, quantized with a scale of its own."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * K + k, mask=k < K, other=0.0)
    amax = tl.max(finite_bits(x), axis=0, keep_dims=True).to(tl.float32, bitcast=True)
    scaled, scale = scaled_by(x, amax, MAX, RECIPE)
    tl.store(out_ptr + row * K + k, scaled.to(out_ptr.dtype.element_ty), mask=k < K)
    tl.store(scale_ptr + row + tl.arange(0, 1), scale)


def quantize_rows(values: torch.Tensor, *, format: str = "e4m3", recipe: str = "divide") -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 with a scale for each row; the bits of `schemes.fp8.quantize(per="row")`.

    Args:
        values: (R, C) float32, contiguous.
        format: `"e4m3"` or `"e5m2"`.
        recipe: one of `scaling.RECIPES`.

    Returns:
        Elements (R, C) and scales (R,) float32.

    Raises:
        OperandTypeError, OperandError: a tensor, format or recipe that does not fit.
    """
    import torch

    spec, how = fp8_format(format), scale_recipe(recipe)
    rows, columns = checked(values, "values", ("float32",), (None, None)).shape
    out = torch.empty_like(values, dtype=getattr(torch, spec.numpy_name))
    scales = float32_like(values, rows)
    if columns == 0:
        return out, scales.fill_(1)
    fp8_rows_kernel[(rows,)](
        values, out, scales, columns, MAX=spec.max_finite, RECIPE=how.name, BLOCK=triton.next_power_of_2(columns), enable_fp_fusion=False
    )
    return out, scales


def fp8_matmul(
    x: torch.Tensor, x_scales: torch.Tensor, w: torch.Tensor, w_scales: torch.Tensor, *, fast_accumulation: bool = True,
    block_m: int = 64, block_n: int = 64, block_k: int = 128,
) -> torch.Tensor:  # fmt: skip
    """The product x w^T: `(f32 sum * scale of x) * scale of w`.

    Args:
        x: (M, K) float8_e4m3fn or float8_e5m2, contiguous as all of them.
        x_scales: (1,) or (M,) float32.
        w: (N, K), as libraries store weights.
        w_scales: (1,) or (N,) float32.
        fast_accumulation: False: on Hopper the sum is promoted to float32 every 128 elements of K; elsewhere no compiler does so.
        block_m: rows of a tile; below 64 Hopper multiplies as f16.
        block_n: columns.
        block_k: elements of K a step.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit.
    """
    m, k = checked(x, "x", FP8, (None, None)).shape
    n = checked(w, "w", FP8, (None, k)).shape[0]
    for scales, name, count in ((x_scales, "x_scales", m), (w_scales, "w_scales", n)):
        if checked(scales, name, ("float32",), (None,)).shape[0] not in (1, count):
            raise OperandError(f"{name} must have shape (1,) or ({count},), got {tuple(scales.shape)}")
    if not fast_accumulation:
        check_multiple(block_k, PROMOTION, "block_k without fast accumulation", "the promotion's")
    if 0 in (m, n, k):
        return zeros_like(x, m, n)
    out = float32_like(x, m, n)
    fp8_kernel[(triton.cdiv(m, block_m), triton.cdiv(n, block_n))](
        x, x_scales, w, w_scales, out, m, n, k, PER_ROW=x_scales.shape[0] > 1, PER_COLUMN=w_scales.shape[0] > 1,
        IMPRECISE=None if fast_accumulation else PROMOTION, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, enable_fp_fusion=False,
    )  # fmt: skip
    return out
