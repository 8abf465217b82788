"""Where libraries keep block scales: by rows, in blocks of 128x4 or 8x4, and four to an int32 with K last, as DeepGEMM has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.layouts import swizzle_scales, unswizzle_scales
from mmabits.isa import OperandError
from mmabits.kernels.schemes.checks import Array, check_shape, checked, row_named

_TYPES: Final = (np.uint8, ml_dtypes.float8_e8m0fnu, ml_dtypes.float8_e4m3fn)
_ALIGNED: Final = 4
"""int32 words of a column that a tensor map's 16 bytes hold."""


@dataclass(frozen=True, kw_only=True)
class ScaleLayout:
    """One way to keep a matrix of scales, (rows, columns): columns are blocks of K."""

    name: str
    what: str
    store: Callable[[Array], Array]
    load: Callable[[Array, int, int], Array]
    held: tuple[Any, ...] = _TYPES
    """What its scales are held as."""
    source: str


def _up(size: int, block: int) -> int:
    return -(-size // block) * block


def _as_they_are(scales: Array) -> Array:
    return np.ascontiguousarray(scales)


def _by_rows(held: Array, rows: int, columns: int) -> Array:
    check_shape(held, "scales by rows", (rows, columns))
    return np.ascontiguousarray(held)


def _to_8x4(scales: Array) -> Array:
    rows, columns = scales.shape
    padded = np.zeros((_up(rows, 8), _up(columns, 4)), np.uint8)
    padded[:rows, :columns] = scales.view(np.uint8)
    blocks = padded.reshape(padded.shape[0] // 8, 8, padded.shape[1] // 4, 4).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(blocks).reshape(-1).view(scales.dtype)


def _from_8x4(held: Array, rows: int, columns: int) -> Array:
    down, across = _up(rows, 8), _up(columns, 4)
    check_shape(held, "scales in the 8x4 layout", (down * across,))
    blocks = held.view(np.uint8).reshape(down // 8, across // 4, 8, 4).transpose(0, 2, 1, 3).reshape(down, across)
    return np.ascontiguousarray(blocks[:rows, :columns]).view(held.dtype)


def _to_words(scales: Array) -> Array:
    """(ceil(columns / 4), rows padded to 4) int32: DeepGEMM's tensor is its transpose, of which it shows the first rows."""
    rows, columns = scales.shape
    padded = np.zeros((_up(rows, _ALIGNED), _up(columns, 4)), np.uint8)
    padded[:rows, :columns] = scales.view(np.uint8)
    return np.ascontiguousarray(padded.view("<i4").T)


def _from_words(held: Array, rows: int, columns: int) -> Array:
    checked(held, "packed scales", (np.int32,), 2)
    check_shape(held, "packed scales", (_up(columns, 4) // 4, _up(rows, _ALIGNED)))
    return np.ascontiguousarray(np.ascontiguousarray(held.T).view(np.uint8)[:rows, :columns])


LAYOUTS: Final[dict[str, ScaleLayout]] = {
    row.name: row
    for row in (
        ScaleLayout(
            name="rows", what="(rows, columns)", store=_as_they_are, load=_by_rows, source="checkpoints; TensorRT-LLM, LINEAR"
        ),
        ScaleLayout(
            name="128x4", what="one line, `mmabits.layouts.swizzle_scales`", store=swizzle_scales, load=unswizzle_scales,
            source="cuBLAS, CUTLASS; TensorRT-LLM, SWIZZLED",
        ),
        ScaleLayout(
            name="8x4", what="one line of blocks of 8 rows by 4 columns, a block by its rows, blocks along columns first", store=_to_8x4,
            load=_from_8x4, source="TensorRT-LLM, R8C4 (get_sf_out_offset_8x4): its generated kernels for few tokens; FlashInfer, 8x4",
        ),
        ScaleLayout(
            name="deepgemm", what="(ceil(columns / 4), rows padded to 4) int32: four ue8m0 along K to a word, the lowest K lowest",
            store=_to_words, load=_from_words, held=(np.int32,), source="DeepGEMM, get_mn_major_tma_aligned_packed_ue8m0_tensor",
        ),
    )
}  # fmt: skip
"""The layouts. Padding is code 0, which multiplies nothing but zeros."""


def scale_layout(name: str) -> ScaleLayout:
    """A layout by its name.

    Raises:
        OperandError: no such layout.
    """
    return row_named(LAYOUTS, name, "scale layout")


def store_scales(scales: Array, layout: str) -> npt.NDArray[Any]:
    """A matrix of scales as a library keeps it.

    Args:
        scales: (rows, columns) uint8 codes, float8_e8m0fnu or float8_e4m3fn; for `"deepgemm"` ue8m0.
        layout: one of `LAYOUTS`.

    Raises:
        OperandTypeError, OperandError: something else.
    """
    how = scale_layout(layout)
    given = checked(scales, "scales", _TYPES, 2)
    if layout == "deepgemm" and given.dtype == np.dtype(ml_dtypes.float8_e4m3fn):
        raise OperandError("DeepGEMM packs ue8m0 scales, got float8_e4m3fn")
    return how.store(given)


def load_scales(held: Array, rows: int, columns: int, layout: str) -> npt.NDArray[Any]:
    """The matrix of scales again, (rows, columns); of `"deepgemm"` uint8 codes, else of the type of `held`.

    Args:
        held: as `store_scales` made it, or a library.
        rows: of the matrix.
        columns: likewise.
        layout: one of `LAYOUTS`.

    Raises:
        OperandTypeError, OperandError: something else; an array of another size.
    """
    how = scale_layout(layout)
    for size, name in ((rows, "rows"), (columns, "columns")):
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 0:
            raise OperandError(f"{name} must be an integer from 0 on, got {size!r}")
    return how.load(checked(held, "scales", how.held), int(rows), int(columns))


def pack_scales_of_float32(scales: Array) -> npt.NDArray[np.uint8]:
    """ue8m0 codes of float32 scales that are powers of two, as DeepGEMM's are: the exponent's bits.

    Raises:
        OperandTypeError, OperandError: another type; scales that are no powers of two from 2^-126 to 2^127, whose bits would be lost.
    """
    given = checked(scales, "scales", (np.float32,))
    bits = np.ascontiguousarray(given).view(np.uint32)
    exponents = bits >> np.uint32(23)
    wrong = (bits & np.uint32(0x7FFFFF) != 0) | (exponents == 0) | (exponents > 254)
    if wrong.any():
        where = tuple(np.argwhere(wrong)[0].tolist())
        raise OperandError(f"scales must be powers of two from 2^-126 on, got {given[where]} at index {where}")
    return exponents.astype(np.uint8)
