"""How TensorRT-LLM's generated kernels want the rows of weights: shuffled in blocks, halves interleaved, K in blocks outermost.

FlashInfer does this to weights before it hands them over. Nothing is computed: rows of a matrix of any type, packed or not, change places.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandError, OperandTypeError
from mmabits.kernels.schemes.checks import Array, check_multiple
from mmabits.kernels.schemes.scale_layouts import load_scales, store_scales

_LANES: Final = 8
"""Neighbours in the shuffled matrix: a block's rows lie in so many columns of the original's."""
_ATOM_ROWS, _ATOM_COLUMNS = 128, 4
"""Of the scales' layout."""

Indices = npt.NDArray[np.int64]


def block_rows(epilogue_tile: int) -> int:
    """Rows of a block: 32 where the rows of the kernel's epilogue tile are a multiple of 128, else 16.

    Raises:
        OperandError: no positive integer.
    """
    if isinstance(epilogue_tile, bool) or not isinstance(epilogue_tile, (int, np.integer)) or epilogue_tile < 1:
        raise OperandError(f"epilogue_tile must be a positive integer, got {epilogue_tile!r}")
    return 32 if epilogue_tile % 128 == 0 else 16


def shuffled_indices(rows: int, *, epilogue_tile: int = 128) -> Indices:
    """Which row of the original each row of the shuffled matrix is.

    Row r of a block of B rows goes to r mod (B / 8) * 8 + r div (B / 8): of 32 rows, 0, 4, 8, ... come first, then 1, 5, 9, ...

    Args:
        rows: of the matrix, a multiple of `block_rows`.
        epilogue_tile: rows of the kernel's epilogue tile.

    Raises:
        OperandError: something else.

    Source: FlashInfer, get_shuffle_matrix_a_row_indices (TensorRT-LLM, shuffleMatrixA).
    """
    block = block_rows(epilogue_tile)
    check_multiple(rows, block, "the number of rows", "a block of rows,")
    order = np.arange(rows, dtype=np.int64).reshape(-1, _LANES, block // _LANES)
    return np.ascontiguousarray(order.swapaxes(1, 2)).reshape(-1)


def interleaved_indices(rows: int) -> Indices:
    """Which row of the original each row is once the halves of a gated layer are interleaved: 0, R/2, 1, R/2 + 1, ...

    Args:
        rows: of both halves, even.

    Raises:
        OperandError: an odd number.

    Source: FlashInfer, reorder_rows_for_gated_act_gemm.
    """
    check_multiple(rows, 2, "the number of rows", "two halves,")
    return np.ascontiguousarray(np.arange(rows, dtype=np.int64).reshape(2, -1).T).reshape(-1)


def shuffle_rows(weights: Array, *, epilogue_tile: int = 128, gated: bool = False) -> npt.NDArray[Any]:
    """Weights (N, K) with rows as the kernels want them.

    Args:
        weights: of any type, N a multiple of `block_rows`; packed along K or not.
        epilogue_tile: rows of the kernel's epilogue tile.
        gated: whether two halves, of a gate and of what it multiplies, are interleaved first.

    Raises:
        OperandTypeError, OperandError: something else.
    """
    return np.ascontiguousarray(_matrix(weights)[_indices(len(weights), epilogue_tile, gated)])


def unshuffle_rows(shuffled: Array, *, epilogue_tile: int = 128, gated: bool = False) -> npt.NDArray[Any]:
    """The inverse of `shuffle_rows`; arguments and errors as there."""
    back = np.empty_like(_matrix(shuffled))
    back[_indices(len(shuffled), epilogue_tile, gated)] = shuffled
    return back


def shuffle_scales(scales: Array, *, epilogue_tile: int = 128, gated: bool = False) -> npt.NDArray[Any]:
    """Block scales whose rows go with shuffled weights, in the 128x4 layout: one line.

    Args:
        scales: (N, K / block) uint8 codes, float8_e8m0fnu or float8_e4m3fn, N a multiple of 128, K / block of 4, by rows.
        epilogue_tile: as for the weights.
        gated: likewise.

    Raises:
        OperandTypeError, OperandError: something else.

    Source: FlashInfer, shuffle_matrix_sf_a.
    """
    rows, columns = _matrix(scales).shape
    check_multiple(rows, _ATOM_ROWS, "the number of rows", "the layout's")
    check_multiple(columns, _ATOM_COLUMNS, "the number of scales in a row", "the layout's")
    return store_scales(shuffle_rows(scales, epilogue_tile=epilogue_tile, gated=gated), "128x4")


def unshuffle_scales(held: Array, rows: int, columns: int, *, epilogue_tile: int = 128, gated: bool = False) -> npt.NDArray[Any]:
    """The inverse of `shuffle_scales`: (rows, columns), by rows.

    Raises:
        OperandTypeError, OperandError: as there; an array of another size.
    """
    return unshuffle_rows(load_scales(held, rows, columns, "128x4"), epilogue_tile=epilogue_tile, gated=gated)


def to_block_major(weights: Array, *, block: int) -> npt.NDArray[Any]:
    """(N, K) as (K / block, N, block): blocks of K outermost.

    Args:
        weights: of any type.
        block: elements of a row, bytes where it is packed; FlashInfer has 128 bytes.

    Raises:
        OperandTypeError, OperandError: something else.

    Source: FlashInfer, convert_to_block_layout (WeightLayout.BlockMajorK).
    """
    rows, k = _matrix(weights).shape
    check_multiple(k, block, "the length of a row", "the block")
    return np.ascontiguousarray(weights.reshape(rows, k // block, block).swapaxes(0, 1))


def from_block_major(held: Array) -> npt.NDArray[Any]:
    """The inverse of `to_block_major`.

    Raises:
        OperandTypeError, OperandError: no array of three dimensions.
    """
    if not isinstance(held, np.ndarray):
        raise OperandTypeError(f"weights must be a NumPy array, got {type(held).__name__}")
    if held.ndim != 3:
        raise OperandError(f"weights in blocks of K must have 3 dimensions, got shape {held.shape}")
    return np.ascontiguousarray(held.swapaxes(0, 1)).reshape(held.shape[1], -1)


def _matrix(weights: Any) -> Array:
    if not isinstance(weights, np.ndarray):
        raise OperandTypeError(f"weights must be a NumPy array, got {type(weights).__name__}")
    if weights.ndim != 2:
        raise OperandError(f"weights must have 2 dimensions, got shape {weights.shape}")
    return weights


def _indices(rows: int, epilogue_tile: int, gated: bool) -> Indices:
    found = shuffled_indices(rows, epilogue_tile=epilogue_tile)
    return interleaved_indices(rows)[found] if gated else found
