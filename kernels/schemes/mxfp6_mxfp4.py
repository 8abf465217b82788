"""MXFP6 (e3m2, e2m3) and MXFP4 (e2m1): blocks of 32 with a ue8m0 scale each; and how 6-bit elements lie in memory."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.emulator.codecs import as_codes, from_codes
from mmabits.isa import FormatSpec, OperandError, OperandTypeError, format_spec
from mmabits.kernels.quantize import quantize_mx
from mmabits.kernels.schemes.blocks import ColumnBlocks, RowBlocks, block_scaled_matmul
from mmabits.kernels.schemes.checks import checked
from mmabits.kernels.schemes.dots import Dots

Floats = npt.NDArray[np.float32]

FP6_FORMATS: Final = ("e3m2", "e2m3")
FP4_FORMATS: Final = ("e2m1",)
FORMATS: Final = (*FP6_FORMATS, *FP4_FORMATS)


def _matrix(values: npt.NDArray[Any], format: str | FormatSpec) -> npt.NDArray[Any]:
    spec = format_spec(format)
    if spec.name not in FORMATS:
        raise OperandError(f"MXFP6 and MXFP4 have no elements of {spec.name}; they have {', '.join(FORMATS)}")
    return checked(values, "values", (np.float32,), 2)


def quantize_rows(values: npt.NDArray[Any], *, format: str | FormatSpec = "e2m1", recipe: str = "floor") -> RowBlocks:
    """A left operand.

    Args:
        values: (M, K) float32, K a multiple of 32.
        format: `"e3m2"`, `"e2m3"` or `"e2m1"`.
        recipe: as for `quantize_mx`.

    Raises:
        OperandTypeError, OperandError: as `quantize_mx`.
    """
    return RowBlocks.of(quantize_mx(_matrix(values, format), format=format, recipe=recipe, axis=1))


def quantize_columns(values: npt.NDArray[Any], *, format: str | FormatSpec = "e2m1", recipe: str = "floor") -> ColumnBlocks:
    """A right operand, (K, N) with K a multiple of 32; otherwise as `quantize_rows`."""
    return ColumnBlocks.of(quantize_mx(_matrix(values, format), format=format, recipe=recipe, axis=0))


def mx_matmul(a: RowBlocks, b: ColumnBlocks, *, arch: str | Dots, through: str | None = None) -> Floats:
    """A B; arguments and errors as `blocks.block_scaled_matmul`. Operands may be of different formats, MXFP8 too.

    `through="e4m3"` is what the Triton kernel of MXFP6 computes, since `tl.dot_scaled` has no 6-bit formats. The numbers multiplied are the
    same, but a subnormal 6-bit element is a normal e4m3 one, and tensor cores align a product by the exponents of its factors as
    they are written: where all products of a block are tiny, low bits of the accumulator can differ from the 6-bit instruction's.
    """
    return block_scaled_matmul(a, b, arch=arch, through=through)


def pack_fp6(array: npt.ArrayLike, format: str | FormatSpec, axis: int = -1) -> npt.NDArray[np.uint8]:
    """Four 6-bit elements to three bytes: a stream of bits, the lower index in the lower bits.

    Args:
        array: at least one dimension, length along `axis` a multiple of 4; the format's dtype, or uint8 codes 0 to 63.
        format: `"e3m2"` or `"e2m3"`.
        axis: along which neighbours share bytes.

    Returns:
        uint8, three quarters as long along `axis`.

    Raises:
        OperandTypeError: another dtype.
        OperandError: another length, axis or format, a code above 63.
    """
    codes = as_codes(array, _fp6(format))
    place = _axis(axis, codes.ndim)
    if codes.shape[place] % 4:
        raise OperandError(f"pack_fp6 needs a multiple of 4 elements along axis {axis}, got shape {codes.shape}")
    last = np.moveaxis(codes, place, -1)
    fours = last.reshape(*last.shape[:-1], last.shape[-1] // 4, 4).astype(np.uint32)
    words = fours[..., 0] | fours[..., 1] << np.uint32(6) | fours[..., 2] << np.uint32(12) | fours[..., 3] << np.uint32(18)
    packed = np.stack([words, words >> np.uint32(8), words >> np.uint32(16)], axis=-1).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(packed.reshape(*last.shape[:-1], last.shape[-1] // 4 * 3), -1, place))


def unpack_fp6(packed: npt.ArrayLike, format: str | FormatSpec, axis: int = -1) -> npt.NDArray[Any]:
    """The elements of bytes that `pack_fp6` made.

    Args:
        packed: uint8, length along `axis` a multiple of 3.
        format: `"e3m2"` or `"e2m3"`.
        axis: along which neighbours share bytes.

    Returns:
        The format's dtype, four thirds as long along `axis`.

    Raises:
        OperandTypeError: another dtype.
        OperandError: another length, axis or format.
    """
    given, spec = np.asarray(packed), _fp6(format)
    if given.dtype != np.uint8:
        raise OperandTypeError(f"packed fp6 must be uint8, got {given.dtype}")
    place = _axis(axis, given.ndim)
    if given.shape[place] % 3:
        raise OperandError(f"packed fp6 has a multiple of 3 bytes along axis {axis}, got shape {given.shape}")
    last = np.moveaxis(given, place, -1)
    triples = last.reshape(*last.shape[:-1], last.shape[-1] // 3, 3).astype(np.uint32)
    words = triples[..., 0] | triples[..., 1] << np.uint32(8) | triples[..., 2] << np.uint32(16)
    codes = np.stack([(words >> np.uint32(shift)) & np.uint32(63) for shift in (0, 6, 12, 18)], axis=-1).astype(np.uint8)
    flat = codes.reshape(*last.shape[:-1], last.shape[-1] // 3 * 4)
    return from_codes(np.ascontiguousarray(np.moveaxis(flat, -1, place)), spec)


def _fp6(format: str | FormatSpec) -> FormatSpec:
    spec = format_spec(format)
    if spec.name not in FP6_FORMATS:
        raise OperandError(f"6-bit formats are {', '.join(FP6_FORMATS)}, got {spec.name}")
    return spec


def _axis(axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise OperandError(f"axis {axis} is outside an array of {ndim} dimensions, which has {-ndim} to {ndim - 1}")
    return axis % ndim
