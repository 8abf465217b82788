"""NVFP4: e2m1 in blocks of 16 with an e4m3 scale each, and a float32 scale for the tensor; with NVIDIA's recipe for training."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandError
from mmabits.kernels.quantize import quantize_nvfp4
from mmabits.kernels.schemes.blocks import Both, ColumnBlocks, RowBlocks, block_scaled_matmul
from mmabits.kernels.schemes.checks import check_multiple, check_shape, checked
from mmabits.kernels.schemes.dots import Dots

Floats = npt.NDArray[np.float32]
Bits = npt.NDArray[np.uint32]

HADAMARD: Final = 16
"""Size of the random Hadamard transform in NVIDIA's recipe."""


def quantize_rows(
    values: npt.NDArray[Any], *, square: bool = False, amax: float | None = None, rounding: str = "rn", random_bits: Bits | None = None
) -> RowBlocks:
    """A left operand, (M, K) with K a multiple of 16; arguments and errors as `quantize_nvfp4`."""
    given = checked(values, "values", (np.float32,), 2)
    return RowBlocks.of(quantize_nvfp4(given, axis=1, square=square, amax=amax, rounding=rounding, random_bits=random_bits))


def quantize_columns(
    values: npt.NDArray[Any], *, square: bool = False, amax: float | None = None, rounding: str = "rn", random_bits: Bits | None = None
) -> ColumnBlocks:
    """A right operand, (K, N) with K a multiple of 16; arguments and errors as `quantize_nvfp4`."""
    given = checked(values, "values", (np.float32,), 2)
    return ColumnBlocks.of(quantize_nvfp4(given, axis=0, square=square, amax=amax, rounding=rounding, random_bits=random_bits))


def quantize_both(values: npt.NDArray[Any], *, square: bool = False, amax: float | None = None) -> Both:
    """A matrix that is used in products both ways, quantized both ways from `values`; weights with `square=True`.

    With square blocks both copies stand for the same numbers, as the recipe wants of weights in forward and backward pass.

    Args:
        values: (R, C) float32, both multiples of 16.
        square: blocks of 16 x 16.
        amax: as for `quantize_nvfp4`.

    Raises:
        OperandTypeError, OperandError: as `quantize_nvfp4`.
    """
    return Both(rows=quantize_rows(values, square=square, amax=amax), columns=quantize_columns(values, square=square, amax=amax))


def nvfp4_matmul(a: RowBlocks, b: ColumnBlocks, *, arch: str | Dots, through: str | None = None) -> Floats:
    """A B: the block-scaled product, times `scale of A * scale of B` (the alpha of cuBLASLt), both in float32.

    Args:
        a: (M, K).
        b: (K, N).
        arch: architecture, or its dots.
        through: as for `blocks.block_scaled_matmul`.

    Returns:
        (M, N) float32.

    Raises:
        MmabitsError: as `blocks.block_scaled_matmul`.
    """
    sums = block_scaled_matmul(a, b, arch=arch, through=through)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        result: Floats = sums * np.float32(a.tensor_scale * b.tensor_scale)
    return result


def random_signs(seed: int) -> Floats:
    """16 random signs for `hadamard`: float32 +1 or -1."""
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), HADAMARD)


def hadamard(values: npt.NDArray[Any], signs: Floats, *, axis: int = -1) -> Floats:
    """The random Hadamard transform of runs of 16: x -> H (signs * x) / 4, which spreads outliers.

    Both operands of a product, transformed along K with the same signs, give the product of the untransformed, but for rounding.
    The sums are float32 butterflies: pairs at distance 1, then 2, 4 and 8. (Transformer Engine rounds to bf16 and multiplies by H on
    tensor cores; its bits differ.)

    Args:
        values: float32, any shape whose length along `axis` is a multiple of 16.
        signs: (16,) float32, +1 or -1.
        axis: K.

    Returns:
        float32 of the shape of `values`.

    Raises:
        OperandTypeError: another dtype.
        OperandError: another shape or axis, signs that are none.

    Source: arXiv 2509.25149, section on random Hadamard transforms; there the operands of the weight gradient.
    """
    given, flips = checked(values, "values", (np.float32,)), checked(signs, "signs", (np.float32,))
    check_shape(flips, "signs", (HADAMARD,))
    if not (np.abs(flips) == 1).all():
        raise OperandError(f"signs must be +1 or -1, got {flips[np.abs(flips) != 1][0]}")
    if not -given.ndim <= axis < given.ndim:
        raise OperandError(f"axis {axis} of an array of {given.ndim} dimensions; allowed is {-given.ndim} to {given.ndim - 1}")
    check_multiple(given.shape[axis], HADAMARD, "the length along which runs lie", "the size of the transform")
    last = np.moveaxis(given, axis, -1)
    runs = np.ascontiguousarray(last).reshape(-1, HADAMARD) * flips
    with np.errstate(over="ignore", invalid="ignore"):
        for distance in (1, 2, 4, 8):
            pairs = runs.reshape(-1, HADAMARD // (2 * distance), 2, distance)
            runs = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2).reshape(-1, HADAMARD)
    return np.ascontiguousarray(np.moveaxis((runs * np.float32(0.25)).reshape(last.shape), -1, axis))
