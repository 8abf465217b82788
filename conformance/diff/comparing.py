"""Two results of one product, compared bit by bit."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.isa.errors import OperandError, OperandTypeError

Array = npt.NDArray[Any]

FIRST: Final = 16
"""Differing elements that are described one by one."""


class Kind(enum.StrEnum):
    """How two elements relate."""

    EQUAL = "equal"
    VALUE = "value"
    ZERO_SIGN = "zero sign"
    NAN_PAYLOAD = "NaN payload"
    NAN = "NaN against number"
    INFINITY = "infinity against finite"


class _Codes(NamedTuple):
    """Magnitudes of a floating-point type that are no numbers."""

    first_nan: int
    infinity: int
    """-1 where there is none."""


_FLOATS: Final[dict[np.dtype[Any], _Codes]] = {
    np.dtype(np.float64): _Codes(0x7FF0_0000_0000_0001, 0x7FF0_0000_0000_0000),
    np.dtype(np.float32): _Codes(0x7F80_0001, 0x7F80_0000),
    np.dtype(np.float16): _Codes(0x7C01, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): _Codes(0x7F81, 0x7F80),
    np.dtype(ml_dtypes.float8_e5m2): _Codes(0x7D, 0x7C),
    np.dtype(ml_dtypes.float8_e4m3fn): _Codes(0x7F, -1),
}
_INTEGERS: Final = tuple(np.dtype(kind) for kind in (np.int32, np.int16, np.int8, np.uint8))
"""What can be compared."""

_KINDS: Final = tuple(Kind)
"""Elements are classed by their place in here."""


@dataclass(frozen=True, kw_only=True)
class UlpBin:
    """Elements of the class `value` that differ by `low` to `high` ulp (of an integer: units), both included."""

    low: int
    high: int
    count: int

    @property
    def label(self) -> str:
        """`1`, `2 to 9`, `10 to 99`."""
        return str(self.low) if self.low == self.high else f"{_count(self.low)} to {_count(self.high)}"


@dataclass(frozen=True, kw_only=True)
class Differing:
    """One element with different bits."""

    row: int
    column: int
    kind: Kind
    hardware: str
    """Its bits, hexadecimal."""
    emulated: str
    hardware_value: str
    emulated_value: str
    ulp: int | None
    """How many numbers apart; None outside the class `value`."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What a comparison found."""

    shape: tuple[int, int]
    dtype: str
    counts: dict[Kind, int]
    """Elements of every class, also of those that have none."""
    ulps: tuple[UlpBin, ...]
    """Powers of ten, from 1 up to the largest difference there is."""
    largest_ulp: int
    tile: tuple[int, int]
    tiles: tuple[tuple[int, ...], ...]
    """Differing elements of every output tile, row of tiles by row."""
    first: tuple[Differing, ...]
    """The first of them, row by row."""

    @property
    def elements(self) -> int:
        """How many were compared."""
        return self.shape[0] * self.shape[1]

    @property
    def differing(self) -> int:
        """How many have different bits."""
        return self.elements - self.counts[Kind.EQUAL]

    @property
    def is_equal(self) -> bool:
        """Whether every bit is the same."""
        return self.differing == 0

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "shape": list(self.shape), "dtype": self.dtype, "elements": self.elements, "differing": self.differing,
            "classes": {kind.value: count for kind, count in self.counts.items()},
            "ulp": [{"low": part.low, "high": part.high, "count": part.count} for part in self.ulps],
            "largest_ulp": self.largest_ulp, "tile": list(self.tile), "tiles": [list(row) for row in self.tiles],
            "first": [{**vars(found), "kind": found.kind.value} for found in self.first],
        }  # fmt: skip


def compare(hardware: Array, emulated: Array, *, tile: tuple[int, int] = (64, 64)) -> Difference:
    """Compare two results of a product bit by bit.

    Args:
        hardware: (M, N) of a floating-point type of 8 to 64 bits, or of integers of 8 to 32.
        emulated: the same shape and dtype.
        tile: rows and columns of the output tiles by which differences are counted.

    Raises:
        OperandError: shapes that differ, are not two-dimensional or empty, or a tile without elements.
        OperandTypeError: dtypes that differ or cannot be compared.
    """
    _check(hardware, emulated, tile)
    classes, ulp = _classes(hardware, emulated)
    found = np.bincount(classes.reshape(-1), minlength=len(_KINDS))
    return Difference(
        shape=(hardware.shape[0], hardware.shape[1]), dtype=str(hardware.dtype),
        counts={kind: int(count) for kind, count in zip(_KINDS, found, strict=True)},
        ulps=_bins(ulp[classes == _KINDS.index(Kind.VALUE)]), largest_ulp=int(ulp.max()),
        tile=tile, tiles=_tiles(classes != 0, tile), first=_first(hardware, emulated, classes, ulp),
    )  # fmt: skip


def distances(left: Array, right: Array) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.uint64]]:
    """Of every pair of elements: whether their bits differ, whether both are numbers of the class `value`, and how many numbers apart.

    Raises:
        OperandTypeError, OperandError: as `compare`.
    """
    _check(left, right, (1, 1))
    classes, ulp = _classes(left, right)
    return classes != _KINDS.index(Kind.EQUAL), classes == _KINDS.index(Kind.VALUE), ulp


def _classes(left: Array, right: Array) -> tuple[Array, npt.NDArray[np.uint64]]:
    special = _FLOATS.get(left.dtype)
    if special is None:
        return _whole_numbers(left, right)
    return _numbers(_codes(left), _codes(right), 8 * left.dtype.itemsize, special)


def _check(hardware: Array, emulated: Array, tile: tuple[int, int]) -> None:
    if hardware.dtype != emulated.dtype:
        raise OperandTypeError(f"results of one product have one dtype, got {hardware.dtype} and {emulated.dtype}")
    if hardware.dtype not in (*_FLOATS, *_INTEGERS):
        raise OperandTypeError(f"results are {', '.join(str(dtype) for dtype in (*_FLOATS, *_INTEGERS))}, got {hardware.dtype}")
    if hardware.shape != emulated.shape or hardware.ndim != 2 or not hardware.size:
        raise OperandError(f"results must be two matrices (M, N) of one shape, got {hardware.shape} and {emulated.shape}")
    if len(tile) != 2 or min(tile) < 1:
        raise OperandError(f"tile must be two positive numbers, got {tile!r}")


def _codes(array: Array) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(array).view(f"uint{8 * array.dtype.itemsize}").astype(np.uint64)


def _whole_numbers(left: Array, right: Array) -> tuple[Array, npt.NDArray[np.uint64]]:
    apart = np.abs(left.astype(np.int64) - right.astype(np.int64)).astype(np.uint64)
    return np.where(apart > 0, _KINDS.index(Kind.VALUE), 0), apart


def _numbers(
    left: npt.NDArray[np.uint64], right: npt.NDArray[np.uint64], bits: int, special: _Codes
) -> tuple[Array, npt.NDArray[np.uint64]]:
    """(place in _KINDS, ulp) of every element; numbers are counted through zero, so that -1 ulp and +1 ulp are 2 apart."""
    sign = np.uint64(1 << (bits - 1))
    sizes = left & (sign - np.uint64(1)), right & (sign - np.uint64(1))
    nan_left, nan_right = (size >= np.uint64(special.first_nan) for size in sizes)
    if special.infinity < 0:
        is_infinite = np.zeros(left.shape, np.bool_)
    else:
        is_infinite = (sizes[0] == np.uint64(special.infinity)) != (sizes[1] == np.uint64(special.infinity))
    kinds = np.select(
        [left == right, nan_left & nan_right, nan_left | nan_right, is_infinite, (sizes[0] | sizes[1]) == 0],
        [_KINDS.index(kind) for kind in (Kind.EQUAL, Kind.NAN_PAYLOAD, Kind.NAN, Kind.INFINITY, Kind.ZERO_SIGN)],
        default=_KINDS.index(Kind.VALUE),
    )
    has_same_sign = (left & sign) == (right & sign)
    apart = np.where(has_same_sign, np.maximum(*sizes) - np.minimum(*sizes), sizes[0] + sizes[1])
    return kinds, np.where(kinds == _KINDS.index(Kind.VALUE), apart, np.uint64(0))


def _bins(ulp: npt.NDArray[np.uint64]) -> tuple[UlpBin, ...]:
    if not ulp.size:
        return ()
    edges = [1, 2]
    while edges[-1] <= int(ulp.max()):
        edges.append(10 if edges[-1] == 2 else 10 * edges[-1])
    bins = []
    for low, after in pairwise(edges):
        inside = (ulp >= np.uint64(low)) & (ulp <= np.uint64(min(after - 1, 2**64 - 1)))
        bins.append(UlpBin(low=low, high=after - 1, count=int(inside.sum())))
    return tuple(bins)


def _tiles(differs: npt.NDArray[np.bool_], tile: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
    columns = np.add.reduceat(differs.astype(np.int64), np.arange(0, differs.shape[1], tile[1]), axis=1)
    return tuple(map(tuple, np.add.reduceat(columns, np.arange(0, differs.shape[0], tile[0]), axis=0).tolist()))


def _first(hardware: Array, emulated: Array, classes: Array, ulp: npt.NDArray[np.uint64]) -> tuple[Differing, ...]:
    digits = 2 * hardware.dtype.itemsize
    left, right = _codes(hardware), _codes(emulated)
    places = np.stack(np.unravel_index(np.flatnonzero(classes)[:FIRST], classes.shape), axis=1).tolist()
    return tuple(
        Differing(
            row=row, column=column, kind=(kind := _KINDS[classes[row, column]]),
            hardware=f"0x{int(left[row, column]):0{digits}x}", emulated=f"0x{int(right[row, column]):0{digits}x}",
            hardware_value=_value(hardware[row, column]), emulated_value=_value(emulated[row, column]),
            ulp=int(ulp[row, column]) if kind is Kind.VALUE else None,
        )
        for row, column in places
    )  # fmt: skip


def _value(element: Any) -> str:
    return (
        str(int(element)) if isinstance(element, np.integer) else f"{float(element):.9g}" if element.itemsize < 8 else repr(float(element))
    )


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**6 else f"{number:.0e}".replace("e+0", "e").replace("e+", "e")
