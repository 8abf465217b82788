"""Conversions between number formats as Triton's compiler emits them for NVIDIA GPUs.

The stock interpreter truncates f32 to bf16, misrounds casts to fp8 and wraps where the GPU saturates. Arrays here are as the interpreter
holds them: bf16 and fp8 as unsigned integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.codecs import decode
from mmabits.isa import EmulationError

Array = npt.NDArray[Any]

NAMES: Final = {
    "fp16": "f16", "bf16": "bf16", "fp32": "f32", "fp64": "f64", "fp8e4nv": "e4m3", "fp8e5": "e5m2", "int8": "s8", "uint8": "u8",
}  # fmt: skip
"""Triton's names of the types that dots and conversions have, and those of mmabits.isa."""

_ML: Final[dict[str, Any]] = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2, "bf16": ml_dtypes.bfloat16}
_LARGEST: Final[dict[str, Any]] = {"e4m3": np.float32(448), "e5m2": np.float32(57344)}
_NAN: Final[dict[str, Any]] = {"bf16": np.uint16(0x7FFF), "f16": np.uint16(0x7FFF), "e4m3": np.uint8(0x7F), "e5m2": np.uint8(0x7F)}
_HELD: Final[dict[str, Any]] = {
    "f16": np.float16,
    "f32": np.float32,
    "f64": np.float64,
    "bf16": np.uint16,
    "e4m3": np.uint8,
    "e5m2": np.uint8,
}


@dataclass(frozen=True, kw_only=True)
class NarrowingRow:
    """How a version of Triton converts to fp8 on some architectures, where it is not one rounding with saturation."""

    source: str
    to: str
    first: str
    """First version of Triton."""
    last: str
    capabilities: tuple[int, int]
    """From, to."""
    how: str
    """`add-half`: cut to f16, last bit dropped, half a place added, cut: ties away from zero, overflow goes on to infinity and NaN.
    `through-f16`: cut to f16, then rounded to nearest even with saturation.
    `clamp`: held between 2^-15 and the largest with e5m2's exponents continued, half a place added, cut: no subnormals, NaN saturates.
    `nan-ff`: to nearest even with saturation; NaN becomes 0xFF."""


# fmt: off
NARROWING: Final = (
    NarrowingRow(source="f32", to="e5m2", first="3.6", last="3.6", capabilities=(0, 89),   how="add-half"),
    NarrowingRow(source="f32", to="e5m2", first="3.7", last="3.8", capabilities=(0, 86),   how="add-half"),
    NarrowingRow(source="f32", to="e5m2", first="3.7", last="3.8", capabilities=(89, 89),  how="through-f16"),
    NarrowingRow(source="f16", to="e5m2", first="3.6", last="3.6", capabilities=(0, 999),  how="add-half"),
    NarrowingRow(source="f16", to="e5m2", first="3.7", last="3.8", capabilities=(0, 86),   how="add-half"),
    NarrowingRow(source="bf16", to="e5m2", first="3.6", last="3.6", capabilities=(0, 999), how="clamp"),
    NarrowingRow(source="bf16", to="e5m2", first="3.7", last="3.8", capabilities=(0, 86),  how="clamp"),
    NarrowingRow(source="f32", to="e4m3", first="3.6", last="3.8", capabilities=(89, 89),  how="through-f16"),
    NarrowingRow(source="f32", to="e5m2", first="3.9", last="3.9", capabilities=(0, 86),   how="nan-ff"),
    NarrowingRow(source="f16", to="e5m2", first="3.9", last="3.9", capabilities=(0, 86),   how="nan-ff"),
    NarrowingRow(source="bf16", to="e5m2", first="3.9", last="3.9", capabilities=(0, 86),  how="nan-ff"),
)
# fmt: on
"""Read from the PTX that Triton emits; what no row covers is `cvt.rn.satfinite`."""


class Casts:
    """The conversions of one version of Triton on one architecture.

    Args:
        version: of Triton, `"3.9.0"`.
        capability: 90 for sm_90a.
    """

    def __init__(self, version: str, capability: int) -> None:
        self._short = ".".join(version.split(".")[:2])
        self._capability = capability

    def float_to_float(self, data: Array, source: str, to: str, rounding: str = "rn") -> Array:
        """Floats to floats.

        Args:
            data: as the interpreter holds the type.
            source: name of the type, as in mmabits.isa.
            to: likewise.
            rounding: `"rn"`, or `"rz"` where the program asks for it.

        Raises:
            EmulationError: Triton has no such conversion.
        """
        if to in _ML and source in ("e4m3", "e5m2") and to != "bf16":
            raise EmulationError(f"Triton does not convert {source} to {to}")
        values = self._wide(data, source, to)
        if to in ("e4m3", "e5m2"):
            return self._to_fp8(values, source, to, rounding)
        if to in ("f16", "bf16") and rounding == "rz":
            return _toward_zero(values, to)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            if to != "bf16":
                return values.astype(_HELD[to])
            if source == "f64":
                values = _to_odd_f32(values)
            rounded: Array = values.astype(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
        return _with_nan(values, rounded, _NAN["bf16"])

    def integer_to_bf16(self, data: Array) -> Array:
        """Integers to bf16: rounded once from sm_90 on, by way of f32 before.

        Args:
            data: of an integer dtype, or bool.
        """
        if self._capability < 90:
            return self.float_to_float(data.astype(np.float32), "f32", "bf16")
        if data.dtype.itemsize == 8:  # the low bits, which float64 cannot hold, as one
            low = (data & data.dtype.type(0x7FF)) != 0
            large = (data >= data.dtype.type(1 << 53)) | (data.astype(np.float64) <= -(2.0**53))
            data = np.where(large, data >> data.dtype.type(11) << data.dtype.type(11) | low.astype(data.dtype) << data.dtype.type(11), data)
        return self.float_to_float(data.astype(np.float64), "f64", "bf16")

    def _wide(self, data: Array, source: str, to: str) -> Array:
        """The values as floats that hold them all."""
        if source in ("e4m3", "e5m2"):
            table = bf16_of_e5m2() if source == "e5m2" and to == "bf16" else _values(source)
            values: Array = table[data.view(np.uint8)]
            return values
        if source == "bf16":
            return (data.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
        return data

    def _to_fp8(self, values: Array, source: str, to: str, rounding: str) -> Array:
        if rounding == "rz":
            if (source, to) != ("f32", "e5m2"):
                raise EmulationError(f"Triton does not convert {source} to {to} with rounding toward zero")
            return np.asarray(_toward_zero(values, "f16").view(np.uint16) >> np.uint16(8)).astype(np.uint8)
        if source == "f64":
            raise EmulationError(f"Triton does not convert f64 to {to}")
        how = self._how(source, to)
        if how == "clamp":
            return _clamped(values)
        if how == "add-half":
            half = values.astype(np.float16) if source == "bf16" else values if source == "f16" else _toward_zero(values, "f16")
            bits = half.view(np.uint16) & np.uint16(0xFFFE)
            return np.asarray((bits + np.uint16(0x80)) >> np.uint16(8)).astype(np.uint8)
        if how == "through-f16":
            values = _toward_zero(values, "f16")
        nan = np.uint8(0xFF) if how == "nan-ff" else _NAN[to]
        return _saturated(values, to, nan)

    @lru_cache(maxsize=32)  # noqa: B019 - as many as there are pairs of types
    def _how(self, source: str, to: str) -> str:
        for row in NARROWING:
            first, last = row.capabilities
            if (row.source, row.to) == (source, to) and row.first <= self._short <= row.last and first <= self._capability <= last:
                return row.how
        return ""


def float_to_integer(values: Array, to: np.dtype[Any]) -> Array:
    """Floats to integers as `cvt.rzi`: cut toward zero; NaN becomes 0.

    It saturates at 16, 32 or 64 bits; 8-bit results are the low byte of a 16-bit one.

    Args:
        values: float16, float32 or float64.
        to: an integer dtype.
    """
    wide = np.dtype(f"{to.kind}2") if to.itemsize == 1 else to
    bounds = np.iinfo(wide)
    exact = np.trunc(values.astype(np.float64))
    kept = np.where(np.isnan(exact), 0.0, exact)
    low, high = kept <= float(bounds.min), kept >= float(bounds.max)
    result = np.where(low | high, 0.0, kept).astype(wide)
    result = np.where(high, wide.type(bounds.max), np.where(low, wide.type(bounds.min), result))
    if wide.itemsize == 8:
        result = np.where(np.isnan(exact), wide.type(1 << 63) if wide.kind == "u" else bounds.min, result)
    return result.astype(to)


def _with_nan(values: Array, codes: Array, nan: Any) -> Array:
    """The codes, but for one where the value is a NaN."""
    result: Array = np.where(np.isnan(values), nan, codes)
    return result


def _clamped(values: Array) -> Array:
    codes = values.view(np.uint32) >> np.uint32(16)
    magnitude = np.clip(codes & np.uint32(0x7FFF), np.uint32(0x3800), np.uint32(0x57E0))
    result: Array = ((magnitude + np.uint32(0x10 - 0x3800)) >> np.uint32(5)) & np.uint32(0x7F) | (codes >> np.uint32(8) & np.uint32(0x80))
    return result.astype(np.uint8)


def _saturated(values: Array, to: str, nan: Any) -> Array:
    largest = _LARGEST[to]
    narrow = np.clip(values.astype(np.float32), -largest, largest).astype(_ML[to]).view(np.uint8)
    return _with_nan(values, narrow, nan)


def _to_odd_f32(values: Array) -> Array:
    """f64 cut to f32, the last bit set where something was lost: what is rounded further down is then rounded once."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        near = values.astype(np.float32)
    codes = near.view(np.uint32) - (np.abs(near.astype(np.float64)) > np.abs(values)).astype(np.uint32)
    lost = (codes.view(np.float32).astype(np.float64) != values) & ~np.isnan(values)
    return np.asarray(codes | lost.astype(np.uint32)).view(np.float32)


def _toward_zero(values: Array, to: str) -> Array:
    """f32 cut to f16 or bf16; too large a number becomes the largest."""
    bits = values.astype(np.float32).view(np.uint32)
    if to == "bf16":
        return _with_nan(values, (bits >> np.uint32(16)).astype(np.uint16), _NAN["bf16"])
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        near = values.astype(np.float16)
        beyond = np.abs(near.astype(np.float32)) > np.abs(values)
    codes = near.view(np.uint16)
    return _with_nan(values, np.where(beyond, codes - np.uint16(1), codes), _NAN["f16"]).astype(np.uint16).view(np.float16)


@lru_cache(maxsize=8)
def _values(source: str) -> Array:
    return decode(np.arange(256, dtype=np.uint8), source).astype(np.float32)


@lru_cache(maxsize=1)
def bf16_of_e5m2() -> Array:
    """e5m2 to bf16: the compiler shifts the bits and multiplies by 2^112, so that infinity and NaN become 2^16 and up."""
    codes = np.arange(256, dtype=np.uint8)
    exponent, fraction = (codes >> 2 & 31).astype(np.float32), (codes & 3).astype(np.float32)
    magnitude = np.where(exponent == 0, fraction / 4 * 2.0**-14, (1 + fraction / 4) * 2.0 ** (exponent - 15))
    return np.where(codes & 128, -magnitude, magnitude).astype(np.float32)
