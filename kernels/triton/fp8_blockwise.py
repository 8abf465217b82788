"""FP8 in tiles as in DeepSeek-V3: the product with its promotion every 128 of K, and quantizers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mmabits.kernels.schemes.fp8 import checked_least_amax
from mmabits.kernels.schemes.fp8_blockwise import BLOCK, LEAST_AMAX
from mmabits.kernels.schemes.scaling import scale_recipe
from mmabits.kernels.triton.operands import check_multiple, checked, float32_like, zeros_like
from mmabits.kernels.triton.quantizing import finite_bits, scaled_by

if TYPE_CHECKING:
    import torch

_E4M3_MAX = 448.0


@triton.jit
def fp8_blockwise_kernel(  # type: ignore[no-untyped-def]
    x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, out_ptr, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr
):
    """One tile of x w^T; each 128 of K start from zero on the tensor cores and are scaled and added in float32."""
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for block in range(0, K // BLOCK):
        k = block * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + m[:, None] * K + k[None, :], mask=m[:, None] < M, other=0.0)
        w = tl.load(w_ptr + n[None, :] * K + k[:, None], mask=n[None, :] < N, other=0.0)
        x_scale = tl.load(x_scale_ptr + m * (K // BLOCK) + block, mask=m < M, other=0.0)
        w_scale = tl.load(w_scale_ptr + (n // BLOCK) * (K // BLOCK) + block, mask=n < N, other=0.0)
        sums = tl.dot(x, w)
        total = tl.fma(sums, x_scale[:, None] * w_scale[None, :], total)
    tl.store(out_ptr + m[:, None] * N + n[None, :], total, mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def tiles_kernel(  # type: ignore[no-untyped-def]
    x_ptr, out_ptr, scale_ptr, R, C, least, MAX: tl.constexpr, RECIPE: tl.constexpr, SQUARE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS by 128 elements, with a scale for each row or, square, for all of them."""
    r = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    block = tl.program_id(1)
    c = block * BLOCK + tl.arange(0, BLOCK)
    mask = (r[:, None] < R) & (c[None, :] < C)
    x = tl.load(x_ptr + r[:, None] * C + c[None, :], mask=mask, other=0.0)
    bits = tl.max(finite_bits(x), axis=1, keep_dims=True)
    if SQUARE:
        bits = tl.max(bits, axis=0, keep_dims=True)
    scaled, scale = scaled_by(x, tl.maximum(bits.to(tl.float32, bitcast=True), least), MAX, RECIPE)
    tl.store(out_ptr + r[:, None] * C + c[None, :], scaled.to(tl.float8e4nv), mask=mask)
    across = tl.cdiv(C, BLOCK)
    if SQUARE:
        tl.store(scale_ptr + tl.program_id(0) * across + block + tl.zeros((1, 1), tl.int32), scale)
    else:
        tl.store(scale_ptr + r[:, None] * across + block, scale, mask=r[:, None] < R)


def _quantize(values: torch.Tensor, recipe: str, least_amax: float, *, square: bool) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    how, least = scale_recipe(recipe), checked_least_amax(least_amax)
    rows, columns = checked(values, "values", ("float32",), (None, None)).shape
    if not square:
        check_multiple(columns, BLOCK, "K", "the block size")
    step = BLOCK if square else 32
    out = torch.empty_like(values, dtype=torch.float8_e4m3fn)
    scales = float32_like(values, triton.cdiv(rows, BLOCK) if square else rows, triton.cdiv(columns, BLOCK))
    tiles_kernel[(triton.cdiv(rows, step), triton.cdiv(columns, BLOCK))](
        values, out, scales, rows, columns, float(least), MAX=_E4M3_MAX, RECIPE=how.name, SQUARE=square, ROWS=step, BLOCK=BLOCK,
        enable_fp_fusion=False,
    )  # fmt: skip
    return out, scales


def quantize_activations(
    values: torch.Tensor, *, recipe: str = "divide", least_amax: float = LEAST_AMAX
) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations in e4m3, 1 x 128; the bits of `schemes.fp8_blockwise.quantize`.

    Args:
        values: (M, K) float32, contiguous, K a multiple of 128.
        recipe: one of `scaling.RECIPES`.
        least_amax: largest magnitudes are taken to be at least this: finite, 0 or more.

    Returns:
        Elements (M, K) and scales (M, K / 128) float32.

    Raises:
        OperandTypeError, OperandError: a tensor, recipe or floor that does not fit.
    """
    return _quantize(values, recipe, least_amax, square=False)


def quantize_weights(values: torch.Tensor, *, recipe: str = "divide", least_amax: float = LEAST_AMAX) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights in e4m3, 128 x 128; tiles may stick out of the matrix.

    Args:
        values: (N, K) float32, contiguous.
        recipe: one of `scaling.RECIPES`.
        least_amax: largest magnitudes are taken to be at least this: finite, 0 or more.

    Returns:
        Elements (N, K) and scales (ceil(N / 128), ceil(K / 128)) float32.

    Raises:
        OperandTypeError, OperandError: a tensor, recipe or floor that does not fit.
    """
    return _quantize(values, recipe, least_amax, square=True)


def fp8_blockwise_matmul(
    x: torch.Tensor, x_scales: torch.Tensor, w: torch.Tensor, w_scales: torch.Tensor, *, block_m: int = 64, block_n: int = 64
) -> torch.Tensor:
    """The product x w^T of matrices in tiles.

    Args:
        x: (M, K) float8_e4m3fn, contiguous as all of them; K a multiple of 128.
        x_scales: (M, K / 128) float32.
        w: (N, K) float8_e4m3fn.
        w_scales: (ceil(N / 128), K / 128) float32.
        block_m: rows of a tile of the product; below 64 Hopper multiplies as f16.
        block_n: columns.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit.
    """
    m, k = checked(x, "x", ("float8_e4m3fn",), (None, None)).shape
    n = checked(w, "w", ("float8_e4m3fn",), (None, k)).shape[0]
    check_multiple(k, BLOCK, "K", "the block size")
    checked(x_scales, "x_scales", ("float32",), (m, k // BLOCK))
    checked(w_scales, "w_scales", ("float32",), (triton.cdiv(n, BLOCK), k // BLOCK))
    if 0 in (m, n, k):
        return zeros_like(x, m, n)
    out = float32_like(x, m, n)
    fp8_blockwise_kernel[(triton.cdiv(m, block_m), triton.cdiv(n, block_n))](
        x, x_scales, w, w_scales, out, m, n, k, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK=BLOCK, enable_fp_fusion=False
    )  # fmt: skip
    return out
