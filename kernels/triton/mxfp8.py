"""MXFP8: quantizers along rows and along columns, both from the float32 source, and the product."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton

from mmabits.isa import FormatSpec, OperandError, format_spec, nearest
from mmabits.kernels.quantize import MX_RECIPES
from mmabits.kernels.triton.block_scaled import block_scaled_matmul
from mmabits.kernels.triton.operands import check_multiple, checked
from mmabits.kernels.triton.quantizing import mx_kernel

if TYPE_CHECKING:
    import torch

BLOCK = 32
FORMATS = ("e4m3", "e5m2")


def quantize_mx(values: torch.Tensor, spec: FormatSpec, recipe: str, *, columns: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """MX elements and ue8m0 codes of a matrix, or of its transpose, by `mx_kernel`; for the modules of the formats.

    Raises:
        OperandTypeError, OperandError: a tensor or recipe that does not fit.
    """
    import torch

    if recipe not in MX_RECIPES:
        raise OperandError(f"unknown MX recipe {recipe!r}{nearest(str(recipe), MX_RECIPES)}; known: {', '.join(MX_RECIPES)}")
    shape = checked(values, "values", ("float32",), (None, None)).shape
    rows, k = (shape[1], shape[0]) if columns else (shape[0], shape[1])
    check_multiple(k, BLOCK, "K", "the block size")
    pack = 2 if spec.name == "e2m1" else 1
    kind: Any = torch.uint8 if pack == 2 else getattr(torch, spec.numpy_name)
    out = torch.empty((rows, k // pack), dtype=kind, device=values.device)
    scales = torch.empty((rows, k // BLOCK), dtype=torch.uint8, device=values.device)
    strides = (1, rows) if columns else (k, 1)
    step = 32
    mx_kernel[(triton.cdiv(rows, step), k // BLOCK)](
        values, out, scales, rows, k, *strides, EMAX=spec.max_exponent, FRACTION_BITS=spec.fraction_bits, MAX=spec.max_finite,
        RECIPE=recipe, PACK=pack, BLOCK_R=step, enable_fp_fusion=False,
    )  # fmt: skip
    return out, scales


def _mxfp8(format: str) -> FormatSpec:
    spec = format_spec(format)
    if spec.name not in FORMATS:
        raise OperandError(f"MXFP8 has no elements of {spec.name}; it has {', '.join(FORMATS)}")
    return spec


def quantize_rows(values: torch.Tensor, *, format: str = "e4m3", recipe: str = "floor") -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix with blocks along rows; the bits of `schemes.mxfp8.quantize_rows`.

    Args:
        values: (R, K) float32, contiguous, K a multiple of 32.
        format: `"e4m3"` or `"e5m2"`.
        recipe: one of `MX_RECIPES`.

    Returns:
        Elements (R, K) and ue8m0 codes (R, K / 32) uint8.

    Raises:
        OperandTypeError, OperandError: a tensor, format or recipe that does not fit.
    """
    return quantize_mx(values, _mxfp8(format), recipe, columns=False)


def quantize_columns(values: torch.Tensor, *, format: str = "e4m3", recipe: str = "floor") -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix with blocks along columns, stored transposed; the bits of `schemes.mxfp8.quantize_columns`, transposed.

    Args:
        values: (K, N) float32, contiguous, K a multiple of 32.
        format: `"e4m3"` or `"e5m2"`.
        recipe: one of `MX_RECIPES`.

    Returns:
        Elements (N, K) and ue8m0 codes (N, K / 32) uint8.

    Raises:
        OperandTypeError, OperandError: a tensor, format or recipe that does not fit.
    """
    return quantize_mx(values, _mxfp8(format), recipe, columns=True)


def mxfp8_matmul(
    a: torch.Tensor, a_scales: torch.Tensor, b: torch.Tensor, b_scales: torch.Tensor, *, swizzled: bool = False,
    block: tuple[int, int, int] = (128, 64, 128),
) -> torch.Tensor:  # fmt: skip
    """The product a b^T.

    Args:
        a: (M, K) float8_e4m3fn or float8_e5m2.
        a_scales: (M, K / 32) uint8, or swizzled.
        b: (N, K), likewise: what `quantize_columns` gives.
        b_scales: (N, K / 32) uint8, or swizzled.
        swizzled: scales are in the 128x4 layout of cuBLAS.
        block: M, N and K of a tile.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit.
    """
    return block_scaled_matmul(
        a, a_scales, _format_of(a, "a"), b, b_scales, _format_of(b, "b"), swizzled=swizzled, block=block
    )  # fmt: skip


def _format_of(tensor: torch.Tensor, name: str) -> str:
    checked(tensor, name, ("float8_e4m3fn", "float8_e5m2"), (None, None))
    return "e5m2" if str(tensor.dtype).endswith("e5m2") else "e4m3"
