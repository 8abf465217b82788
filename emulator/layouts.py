"""How fp4 operands and block scales lie in memory: two codes to a byte, and the 128x4 scale layout.

Arrays are NumPy, torch or JAX; results are NumPy.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.emulator.codecs import as_codes, from_codes, numpy_dtype
from mmabits.emulator.interop import as_array, as_bytes, nibbles
from mmabits.isa.errors import OperandError, OperandTypeError
from mmabits.isa.formats import FORMATS

_FP4: Final = FORMATS["e2m1"]

BLOCK_ROWS: Final = 128
"""Rows of a block of the scale layout; rows are padded to a multiple."""
BLOCK_COLUMNS: Final = 4
"""Scales of one row in a block of the scale layout; columns are padded to a multiple."""
BLOCK_BYTES: Final = BLOCK_ROWS * BLOCK_COLUMNS
_QUARTER_ROWS: Final = 32


def _checked_axis(axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise OperandError(f"axis {axis} is outside an array of {ndim} dimensions, which has {-ndim} to {ndim - 1}")
    return axis % ndim


def pack_fp4(array: npt.ArrayLike, axis: int = -1) -> npt.NDArray[np.uint8]:
    """Two e2m1 elements to a byte, the lower index in the low nibble.

    Args:
        array: at least one dimension, even length along `axis`; float4_e2m1fn, or uint8 codes 0 to 15.
        axis: the axis along which neighbours share a byte.

    Returns:
        uint8, half as long along `axis`.

    Raises:
        OperandTypeError: another dtype.
        OperandError: odd length, no such axis, a code above 15.
    """
    codes = as_codes(array, _FP4)
    place = _checked_axis(axis, codes.ndim)
    if codes.shape[place] % 2:
        raise OperandError(f"pack_fp4 needs an even length along axis {axis}, got shape {codes.shape}")
    pairs = np.moveaxis(codes, place, -1)
    packed: npt.NDArray[np.uint8] = pairs[..., 0::2] | (pairs[..., 1::2] << np.uint8(4))
    return np.ascontiguousarray(np.moveaxis(packed, -1, place))


def unpack_fp4(packed: npt.ArrayLike, axis: int = -1) -> npt.NDArray[Any]:
    """The e2m1 elements of bytes that hold two each; the inverse of `pack_fp4`.

    Args:
        packed: uint8, or torch's float4_e2m1fn_x2; at least one dimension.
        axis: the axis along which neighbours share a byte.

    Returns:
        float4_e2m1fn, twice as long along `axis`.

    Raises:
        OperandTypeError: another dtype.
        OperandError: no such axis.
    """
    given = as_bytes(packed, "packed fp4")
    if given.dtype != np.uint8:
        raise OperandTypeError(f"packed fp4 must be uint8, got {given.dtype}")
    return from_codes(nibbles(given, _checked_axis(axis, given.ndim)), _FP4)


_SCALE_DTYPES: Final = tuple(
    dict.fromkeys([np.dtype(np.uint8), *(numpy_dtype(row) for row in FORMATS.values() if row.scale_only and row.container_bits == 8)])
)


def _checked_scales(array: npt.ArrayLike) -> npt.NDArray[Any]:
    given = as_array(array, "block scales")
    if given.dtype not in _SCALE_DTYPES:
        raise OperandTypeError(f"block scales must be {', '.join(map(str, _SCALE_DTYPES))}, got {given.dtype}")
    return given


def _blocks(count: int, size: int) -> int:
    return -(-count // size)


def swizzle_scales(scales: npt.ArrayLike, *, pad: int = 0) -> npt.NDArray[Any]:
    """Block scales in the 128x4 layout that tensor cores, cuBLAS and CUTLASS read.

    Scale k of row m lies in block (m // 128) * ceil(columns / 4) + k // 4 of 512 bytes, there at byte
    (m % 32) * 16 + (m // 32 % 4) * 4 + k % 4. Rows are padded to 128 and columns to 4.

    Args:
        scales: shape (..., rows, columns); uint8 codes, float8_e8m0fnu or float8_e4m3fn.
        pad: the code of the padding, 0 to 255. The padding multiplies zeros, where it is read at all, so it must not be NaN (0xFF in
            ue8m0, 0x7F in ue4m3); 0 is 2^-127 in ue8m0 and 0 in ue4m3.

    Returns:
        Shape (..., size): one line of bytes for each leading index, the dtype of `scales`.

    Raises:
        OperandTypeError: another dtype.
        OperandError: fewer than two dimensions, a pad that is no byte.

    Source: the scale layout of CUTLASS for sm_100 and sm_120 (Sm1xxBlockScaledConfig), the same as cuBLAS's 128x4.
    """
    given = _checked_scales(scales)
    if given.ndim < 2:
        raise OperandError(f"scales must have shape (..., rows, columns), got {given.shape}")
    if not 0 <= pad <= 255:
        raise OperandError(f"pad must be a code from 0 to 255, got {pad}")
    *batch, rows, columns = given.shape
    down, across = _blocks(rows, BLOCK_ROWS), _blocks(columns, BLOCK_COLUMNS)
    padded = np.full((*batch, down * BLOCK_ROWS, across * BLOCK_COLUMNS), pad, dtype=np.uint8)
    padded[..., :rows, :columns] = given.view(np.uint8)
    quarters = padded.reshape(*batch, down, BLOCK_ROWS // _QUARTER_ROWS, _QUARTER_ROWS, across, BLOCK_COLUMNS)
    # (.., M block, quarter, row, K block, k) to (.., M block, K block, row, quarter, k).
    ordered = np.moveaxis(quarters, (-2, -3, -4), (-4, -3, -2))
    return ordered.reshape(*batch, down * across * BLOCK_BYTES).view(given.dtype)


def unswizzle_scales(flat: npt.ArrayLike, rows: int, columns: int) -> npt.NDArray[Any]:
    """The scales of a 128x4 layout as a matrix; the inverse of `swizzle_scales`.

    Args:
        flat: shape (..., size) with size = ceil(rows / 128) * ceil(columns / 4) * 512; uint8, float8_e8m0fnu or float8_e4m3fn.
        rows: rows without the padding.
        columns: scales of each row without the padding.

    Returns:
        Shape (..., rows, columns), the dtype of `flat`.

    Raises:
        OperandTypeError: another dtype.
        OperandError: a size that does not fit rows and columns, negative rows or columns.
    """
    given = _checked_scales(flat)
    if rows < 0 or columns < 0:
        raise OperandError(f"rows and columns must not be negative, got {rows} and {columns}")
    down, across = _blocks(rows, BLOCK_ROWS), _blocks(columns, BLOCK_COLUMNS)
    size = down * across * BLOCK_BYTES
    if given.ndim < 1 or given.shape[-1] != size:
        raise OperandError(f"scales of {rows} rows and {columns} columns take {size} bytes in the 128x4 layout, got shape {given.shape}")
    batch = given.shape[:-1]
    blocks = given.view(np.uint8).reshape(*batch, down, across, _QUARTER_ROWS, BLOCK_ROWS // _QUARTER_ROWS, BLOCK_COLUMNS)
    ordered = np.moveaxis(blocks, (-4, -3, -2), (-2, -3, -4))
    padded = ordered.reshape(*batch, down * BLOCK_ROWS, across * BLOCK_COLUMNS)
    return np.ascontiguousarray(padded[..., :rows, :columns]).view(given.dtype)
