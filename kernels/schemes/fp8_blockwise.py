"""FP8 in tiles, as in DeepSeek-V3: activations 1 x 128, weights 128 x 128, float32 scales, and a promotion with every 128 of K."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.engine.fma import fma
from mmabits.isa import FormatSpec, OperandError, OperandTypeError
from mmabits.kernels.schemes.checks import check_finite, check_multiple, check_shape, checked
from mmabits.kernels.schemes.dots import Dots, as_dots
from mmabits.kernels.schemes.fp8 import FORWARD, checked_least_amax, fp8_format
from mmabits.kernels.schemes.scaling import Floats, dynamic, finite_amax, scale_recipe

BLOCK: Final = 128
TILES: Final = ((1, BLOCK), (BLOCK, 1), (BLOCK, BLOCK))
"""Rows and columns that share a scale: activations and gradients by row, by column, and weights."""
LEAST_AMAX: Final = 1e-4
"""DeepSeek's floor under the largest magnitude of a tile."""
_DTYPES: Final = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)


@dataclass(frozen=True, kw_only=True, eq=False)
class TiledFp8:
    """An FP8 matrix with a float32 scale for each tile.

    Raises:
        OperandTypeError, OperandError: dtypes and shapes, scales that are not finite.
    """

    elements: npt.NDArray[Any]
    """(R, C), float8_e4m3fn or float8_e5m2."""
    scales: Floats
    """(ceil(R / rows of a tile), ceil(C / columns of a tile)), finite."""
    tile: tuple[int, int]
    """One of `TILES`."""

    def __post_init__(self) -> None:
        """Check."""
        checked(self.elements, "elements", _DTYPES, 2)
        checked(self.scales, "scales", (np.float32,), 2)
        _check_tile(self.tile)
        rows, columns = self.elements.shape
        check_shape(self.scales, "scales", (-(-rows // self.tile[0]), -(-columns // self.tile[1])))
        check_finite(self.scales, "scales")

    @property
    def T(self) -> TiledFp8:  # noqa: N802 - as NumPy calls it
        """The transpose; its bits are those of the matrix."""
        return TiledFp8(
            elements=np.ascontiguousarray(self.elements.T), scales=np.ascontiguousarray(self.scales.T), tile=(self.tile[1], self.tile[0])
        )

    def element_scales(self) -> Floats:
        """The scale of each element, (R, C)."""
        rows, columns = self.elements.shape
        return np.repeat(np.repeat(self.scales, self.tile[0], axis=0)[:rows], self.tile[1], axis=1)[:, :columns]

    def dequantize(self) -> Floats:
        """The values, (R, C), each rounded once to float32."""
        with np.errstate(over="ignore", under="ignore"):
            return self.elements.astype(np.float32) * self.element_scales()


def _check_tile(tile: tuple[int, int]) -> None:
    if tile not in TILES:
        raise OperandError(f"tiles are {', '.join(f'{rows} x {columns}' for rows, columns in TILES)}, got {tile!r}")


def quantize(
    values: npt.NDArray[Any],
    *,
    tile: tuple[int, int] = (1, BLOCK),
    format: str | FormatSpec = FORWARD,
    recipe: str = "divide",
    least_amax: float = LEAST_AMAX,
) -> TiledFp8:
    """A matrix in FP8 with a scale for each tile.

    Args:
        values: (R, C) float32.
        tile: `(1, 128)` for activations (M, K), `(128, 128)` for weights (K, N), `(128, 1)` for a right operand that is scaled as finely
            as activations (weight gradients).
        format: `"e4m3"` or `"e5m2"`.
        recipe: one of `scaling.RECIPES`: `"divide"`, `"reciprocal"` and `"power-of-two"` are DeepSeek's and DeepGEMM's.
        least_amax: largest magnitudes are taken to be at least this: finite, 0 or more.

    Raises:
        OperandTypeError: another dtype.
        OperandError: a tile of one row or column along which 128 is no divisor; another tile, format, recipe or floor. A 128 x 128 tile
            may stick out of the matrix.
    """
    given, spec, how = checked(values, "values", (np.float32,), 2), fp8_format(format), scale_recipe(recipe)
    _check_tile(tile)
    (rows, columns), (down, across) = given.shape, tile
    if tile != (BLOCK, BLOCK):
        check_multiple(given.shape[0 if down > 1 else 1], BLOCK, "the length along which tiles lie", "the block size")
    padded = np.zeros((-(-rows // down) * down, -(-columns // across) * across), np.float32)
    padded[:rows, :columns] = given
    tiles = padded.reshape(padded.shape[0] // down, down, padded.shape[1] // across, across)
    amax = np.maximum(finite_amax(tiles, (1, 3)), checked_least_amax(least_amax))
    elements, scales = dynamic(tiles, amax, spec, how)
    return TiledFp8(
        elements=np.ascontiguousarray(elements.reshape(padded.shape)[:rows, :columns]), scales=scales[:, 0, :, 0].copy(), tile=tile
    )


def quantize_activations(values: npt.NDArray[Any], *, recipe: str = "divide") -> TiledFp8:
    """Activations (M, K), e4m3 in tiles of 1 x 128; errors as `quantize`."""
    return quantize(values, tile=(1, BLOCK), recipe=recipe)


def quantize_weights(values: npt.NDArray[Any], *, recipe: str = "divide") -> TiledFp8:
    """Weights (K, N), e4m3 in tiles of 128 x 128; errors as `quantize`."""
    return quantize(values, tile=(BLOCK, BLOCK), recipe=recipe)


def fp8_blockwise_matmul(a: TiledFp8, b: TiledFp8, *, arch: str | Dots, fused: bool = True, in_turn: bool = False) -> Floats:
    """A B: 128 of K on the tensor cores from zero, then `total = fma(scale of A * scale of B, sum, total)` in float32.

    DeepGEMM writes `total += (scale_a * scale_b) * sum`, which nvcc compiles to a fused multiply-add.

    Args:
        a: (M, K) in tiles of 1 x 128.
        b: (K, N) in tiles of 128 x 128 or 128 x 1.
        arch: architecture, or its FP8 dots.
        fused: False: product and sum are rounded each, as without contraction.
        in_turn: the sum times the scale of A, rounded, and then the scale of B, as vLLM's kernel of experts has it.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: operands that do not fit, a K that 128 does not divide.
        MmabitsError: as `mmabits.gemm`.
    """
    for operand, name, tiles in ((a, "a", TILES[:1]), (b, "b", TILES[1:])):
        if not isinstance(operand, TiledFp8):
            raise OperandTypeError(f"{name} must be TiledFp8, got {type(operand).__name__}; fp8_blockwise.quantize makes it")
        if operand.tile not in tiles:
            raise OperandError(f"tiles of {name} must be {' or '.join(map(str, tiles))}, got {operand.tile}")
    (m, k), (k_b, n) = a.elements.shape, b.elements.shape
    if k != k_b:
        raise OperandError(f"a has K = {k} and b has K = {k_b}; they must agree")
    check_multiple(k, BLOCK, "K", "the block size")
    dots = as_dots(arch)
    columns = np.repeat(b.scales, b.tile[1], axis=1)[:, :n]
    total = np.zeros((m, n), np.float32)
    for block, start in enumerate(range(0, k, BLOCK)):
        part = slice(start, start + BLOCK)
        sums = dots(np.ascontiguousarray(a.elements[:, part]), b.elements[part])
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            if in_turn:
                sums, scale = sums * a.scales[:, block, None], columns[block]
            else:
                scale = a.scales[:, block, None] * columns[block]
            total = fma(sums, scale, total) if fused else sums * scale + total
    return total
