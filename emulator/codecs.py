"""Codes to values and values to codes, for every format row, in vectorised NumPy.

Nothing here knows a format by its name: the arithmetic reads the fields of the row, and what PTX allows is a table.
Encoding works on integers from the bits of the value it is given, so a value is rounded exactly once.
"""

from __future__ import annotations

import functools
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.interop import as_array
from mmabits.isa.errors import OperandError, OperandTypeError, nearest
from mmabits.isa.formats import FormatSpec, NonFinite, format_spec

Codes = npt.NDArray[Any]
"""An array of unsigned integers, as wide as the container of its format."""

_U64 = npt.NDArray[np.uint64]
_I64 = npt.NDArray[np.int64]
_Bool = npt.NDArray[np.bool_]

ROUNDINGS: Final = ("rn", "rz", "rna", "rs", "rp", "rm")
"""Every rounding that the engine knows: nearest even, toward zero, nearest away, stochastic, up, down."""

_FULL: Final = ("rn", "rz", "rp", "rm")
_NARROW: Final = ("rn", "rs")

CVT_ROUNDINGS: Final[dict[str, tuple[str, ...]]] = {
    "f64": _FULL,
    "f32": _FULL,
    "tf32": ("rn", "rz", "rna"),
    "f16": (*_FULL, "rs"),
    "bf16": (*_FULL, "rs"),
    "e4m3": _NARROW,
    "e5m2": _NARROW,
    "e3m2": _NARROW,
    "e2m3": _NARROW,
    "e2m1": _NARROW,
    "ue8m0": ("rz", "rp"),
    "ue4m3": _NARROW,
    "s8": _FULL,
    "u8": _FULL,
    "s4": _FULL,
    "u4": _FULL,
    "s32": _FULL,
}
"""The roundings of PTX `cvt` to each format, as ptxas 13.0 accepts them for sm_100a.

`ue4m3`, `s4` and `u4` have no `cvt` of their own: they take the row of `e4m3`, with which such scales are made, and of `s8`.
For integers `rn` stands for `.rni`, `rz` for `.rzi` and so on.
"""

RANDOM_BITS: Final[dict[str, int]] = {"f16": 13, "bf16": 16, "e4m3": 16, "e5m2": 16, "e3m2": 16, "e2m3": 16, "e2m1": 16, "ue4m3": 16}
"""How many random bits `rs` adds. PTX states 13 for f16 and 16 for bf16.

For the formats of at most 8 bits it gives one 16-bit field to two elements and leaves open in its text how they share it.
A field of which hardware reads only the top 8 bits is covered: pass those 8 bits shifted left by 8.
"""

_CHUNK: Final = 1 << 15
_MANY: Final = 1 << 12
"""Float32 numbers from which on a table of narrow codes is made."""
_TABLE_BITS: Final = 16
_TOP: Final = np.uint64(1 << 63)
_BELOW_ALL: Final = np.int64(-(1 << 14))


class _Unpacked(NamedTuple):
    """Values as sign, exponent, significand: (-1)^sign * significand * 2^exponent, 0 <= significand < 2^64."""

    sign: _Bool
    exponent: _I64
    significand: _U64
    is_infinite: _Bool
    is_nan: _Bool


class _Rounded(NamedTuple):
    """Magnitudes as codes of a format without an upper end of the exponent, and the signs they were rounded with."""

    sign: _Bool
    magnitude: _U64
    is_infinite: _Bool
    is_nan: _Bool


# Array views ---------------------------------------------------------------------------------------------------------


@functools.cache
def _dtype(spec: FormatSpec) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, spec.numpy_name, spec.numpy_name))


def _code_dtype(spec: FormatSpec) -> np.dtype[Any]:
    return np.dtype(f"uint{spec.container_bits}")


def numpy_dtype(format: str | FormatSpec) -> np.dtype[Any]:
    """The dtype of arrays that hold a format: NumPy's own or one of ml_dtypes.

    `tf32` shares float32 and `ue4m3` shares float8_e4m3fn, so a dtype does not name a format.

    Raises:
        UnknownFormat: no such format.
    """
    return _dtype(format_spec(format))


def _checked_codes(codes: npt.NDArray[Any], spec: FormatSpec) -> Codes:
    """Integers as codes; whatever does not fit the code is an error."""
    if codes.size and (int(codes.max()) >= spec.codes or int(codes.min()) < 0):
        bad = int(codes.max()) if int(codes.max()) >= spec.codes else int(codes.min())
        raise OperandError(f"code {bad:#x} is outside {spec.name}, whose codes are 0x0 to {spec.codes - 1:#x}")
    return codes.astype(_code_dtype(spec), copy=False)


def as_codes(array: npt.ArrayLike, format: str | FormatSpec) -> Codes:
    """The codes of an array, sharing its memory where the dtype and the bits allow.

    Args:
        array: any shape; of the format's own dtype (`numpy_dtype`), or unsigned integers that are codes already,
            or Python integers that are. The bits above a sub-byte code are cleared in arrays of the format's own dtype
            (ml_dtypes may leave the sign there) and are an error in unsigned integers.
        format: name or row.

    Returns:
        Unsigned integers of the container's width, same shape.

    Raises:
        OperandTypeError: another dtype.
        OperandError: an integer that is no code of the format.
        UnknownFormat: no such format.
    """
    spec = format_spec(format)
    given = as_array(array, "codes")
    own = _dtype(spec)
    if given.dtype == own and own != _code_dtype(spec):
        codes = given.view(_code_dtype(spec))
        if spec.code_bits < spec.container_bits and codes.size and int(codes.max()) >= spec.codes:
            codes = codes & codes.dtype.type(spec.codes - 1)
        return codes
    python_integers = not isinstance(array, (np.ndarray, np.generic)) and (given.dtype.kind == "i" or given.size == 0)
    if given.dtype.kind == "u" or python_integers:
        return _checked_codes(given, spec)
    raise OperandTypeError(f"codes of {spec.name} must be {own} or unsigned integers, got {given.dtype}")


def from_codes(codes: npt.ArrayLike, format: str | FormatSpec) -> npt.NDArray[Any]:
    """Codes as an array of the format's own dtype, sharing memory where the codes have the container's width.

    Args:
        codes: as for `as_codes`, any shape.
        format: name or row.

    Returns:
        `numpy_dtype(format)`, same shape. The bits are kept as they are, ignored ones too: code 0xB8 of ue4m3 becomes the
        float8_e4m3fn that prints as -1.

    Raises:
        OperandTypeError: neither unsigned integers nor the format's dtype.
        OperandError: an integer that is no code of the format.
        UnknownFormat: no such format.
    """
    spec = format_spec(format)
    return as_codes(codes, spec).view(_dtype(spec))


# Decoding ------------------------------------------------------------------------------------------------------------


def _decode_integers(codes: Codes, spec: FormatSpec) -> npt.NDArray[np.float64]:
    signed = codes.astype(np.int64)
    return np.where(signed & spec.sign_mask, signed - spec.codes, signed).astype(np.float64)


def _decode_floats(codes: Codes, spec: FormatSpec) -> npt.NDArray[np.float64]:
    wide = codes.astype(np.uint64)
    magnitude = (wide & np.uint64(spec.magnitude_mask)) >> np.uint64(spec.ignored_low_bits)
    field = (magnitude >> np.uint64(spec.fraction_bits)).astype(np.int64)
    significand = magnitude & np.uint64((1 << spec.fraction_bits) - 1)
    lowest_field = 0
    if spec.has_subnormals:
        lowest_field = 1
        significand = np.where(field > 0, significand | np.uint64(1 << spec.fraction_bits), significand)
    else:
        significand = significand | np.uint64(1 << spec.fraction_bits)
    exponent = np.maximum(field, lowest_field) - (spec.bias + spec.fraction_bits)
    # The significand has at most 53 bits and the result is in range, so both steps are exact.
    values = np.ldexp(significand.astype(np.float64), np.where(significand > 0, exponent, 0).astype(np.int32))
    largest = np.uint64(spec.max_finite_magnitude >> spec.ignored_low_bits)
    values[magnitude > largest] = np.nan
    if spec.infinity is not None:
        values[magnitude == np.uint64(spec.infinity >> spec.ignored_low_bits)] = np.inf
    return np.where(wide & np.uint64(spec.sign_mask), -values, values)


@functools.cache
def _decode_table(spec: FormatSpec) -> npt.NDArray[np.float64]:
    """The value of every code of a narrow format."""
    every = np.arange(spec.codes, dtype=_code_dtype(spec))
    table = _decode_integers(every, spec) if spec.is_integer else _decode_floats(every, spec)
    table.flags.writeable = False
    return table


def decode(codes: npt.ArrayLike, format: str | FormatSpec) -> npt.NDArray[np.float64]:
    """The values of codes, exactly.

    Bits that the format ignores (the low 13 of tf32, the sign of ue4m3) have no influence. A code of infinity gives that
    infinity, every code of a NaN gives NaN, and a zero keeps its sign.

    Args:
        codes: any shape; unsigned integers, or an array of the format's own dtype (see `as_codes`); NumPy, torch or JAX. Packed FP4 of
            torch is unpacked along the last axis.
        format: name or row.

    Returns:
        float64, NumPy, same shape.

    Raises:
        OperandTypeError: neither unsigned integers nor the format's dtype.
        OperandError: an integer that is no code of the format.
        UnknownFormat: no such format.
    """
    spec = format_spec(format)
    bits = as_codes(codes, spec)
    if spec.code_bits <= _TABLE_BITS:
        return np.asarray(_decode_table(spec)[bits])
    flat = np.atleast_1d(bits)
    # Narrowing a signalling NaN or scaling past the end of float64 is no fault of the caller.
    with np.errstate(all="ignore"):
        values = _decode_integers(flat, spec) if spec.is_integer else _decode_floats(flat, spec)
    return values.reshape(bits.shape)


# Encoding: unpack ----------------------------------------------------------------------------------------------------


def _unpack_integers(values: npt.NDArray[Any]) -> _Unpacked:
    sign = values < 0
    wide = values.astype(np.int64 if values.dtype.kind == "i" else np.uint64).view(np.uint64)
    # Two's complement in uint64: correct for the most negative int64 too.
    significand = np.where(sign, ~wide + np.uint64(1), wide)
    nowhere = np.zeros(values.shape, dtype=np.bool_)
    return _Unpacked(sign, np.zeros(values.shape, dtype=np.int64), significand, nowhere, nowhere)


def _unpack_floats(values: npt.NDArray[np.float64]) -> _Unpacked:
    bits = values.view(np.uint64)
    field = ((bits >> np.uint64(52)) & np.uint64(0x7FF)).astype(np.int64)
    fraction = bits & np.uint64((1 << 52) - 1)
    significand = np.where(field > 0, fraction | np.uint64(1 << 52), fraction)
    return _Unpacked(
        sign=(bits >> np.uint64(63)).astype(np.bool_),
        exponent=np.maximum(field, 1) - 1075,
        significand=significand,
        is_infinite=(field == 0x7FF) & (fraction == 0),
        is_nan=(field == 0x7FF) & (fraction != 0),
    )


def _normalise(significand: _U64, exponent: _I64) -> tuple[_U64, _I64]:
    """The significand with its leading one in bit 63, and the exponent of that bit, below every format's for a zero."""
    top = exponent + 63
    for step in (32, 16, 8, 4, 2, 1):
        is_low = significand < np.uint64(1 << (64 - step))
        significand = np.where(is_low, significand << np.uint64(step), significand)
        top = np.where(is_low, top - step, top)
    return significand, np.where(significand == 0, _BELOW_ALL, top)


# Encoding: round -----------------------------------------------------------------------------------------------------


def _split(significand: _U64, shift: _I64) -> tuple[_U64, _U64]:
    """`significand / 2^shift`: the integer part, and the first 64 bits after the point.

    With shift 0 to 127 and the leading one in bit 63 those 64 bits hold that one or everything: bits lost below them can
    neither make a zero rest, nor a tie (bit 63 of the rest is then clear), nor a carry of random bits.
    """
    # NumPy, like C, leaves shifts of 64 undefined.
    kept = np.where(shift < 64, significand >> np.minimum(shift, 63).astype(np.uint64), np.uint64(0))
    right = np.clip(shift - 64, 0, 63).astype(np.uint64)
    left = np.clip(64 - shift, 0, 63).astype(np.uint64)
    rest = np.where(shift > 0, (significand >> right) << left, np.uint64(0))
    return kept, rest


def _away(rounding: str, sign: _Bool, kept: _U64, rest: _U64, random_bits: _U64 | None, width: int) -> _Bool:
    """Whether the magnitude grows by one unit of the last kept place."""
    inexact: _Bool = rest != 0
    is_odd: _Bool = (kept & np.uint64(1)) != 0
    match rounding:
        case "rn":
            return np.asarray((rest > _TOP) | ((rest == _TOP) & is_odd))
        case "rna":
            return np.asarray(rest >= _TOP)
        case "rz":
            return np.zeros_like(inexact)
        case "rp":
            return inexact & ~sign
        case "rm":
            return inexact & sign
        case "rs" if random_bits is not None:
            # What lies below the compared bits is less than one of their units, so it cannot make the carry.
            return np.asarray((rest >> np.uint64(64 - width)) + random_bits >= np.uint64(1 << width))
        case _:
            raise OperandError(f"unknown rounding {rounding!r}{nearest(rounding, ROUNDINGS)}")


def _round_to_codes(values: _Unpacked, spec: FormatSpec, rounding: str, random_bits: _U64 | None, width: int) -> _Rounded:
    """Magnitudes rounded to the precision of the format, its upper end left aside.

    Unpacked before; here normalise, split at the last place, round. `_pack_floats` and `_pack_integers` see to the upper end.
    The magnitude code of a float is (exponent above the smallest) * 2^fraction + significand: a carry moves to the next exponent by itself.
    """
    # A float format without a sign takes the magnitude, as cvt to ue8m0 does, so that rp rounds a negative scale up in magnitude.
    sign = values.sign if spec.sign_bits or spec.is_integer else np.zeros_like(values.sign)
    significand, top = _normalise(values.significand, values.exponent)
    fraction = spec.fraction_bits
    if spec.is_integer:
        # A value of 2^64 or more is kept as 2^63 or more: out of every integer format's range either way.
        shift = np.clip(63 - top, 0, 127)
        base = np.zeros_like(significand)
    else:
        scale = np.maximum(top, spec.min_exponent)
        shift = np.clip(63 - top + scale - fraction, 0, 127)
        base = (scale - spec.min_exponent).astype(np.uint64) << np.uint64(fraction)
    kept, rest = _split(significand, shift)
    magnitude = base + kept + _away(rounding, sign, kept, rest, random_bits, width)
    if not spec.has_zero:
        # Every exponent is that of a normal number; what is smaller than the smallest, zero too, becomes the smallest.
        magnitude = np.where(top < spec.min_exponent, np.uint64(0), magnitude - np.uint64(1 << fraction))
    return _Rounded(sign, magnitude, values.is_infinite, values.is_nan)


# Encoding: range, pack -----------------------------------------------------------------------------------------------


def _overflows_away(rounding: str, sign: _Bool) -> _Bool:
    """Whether a finite magnitude past the largest goes on to infinity rather than back to the largest."""
    match rounding:
        case "rn" | "rna" | "rs":
            return np.ones_like(sign)
        case "rz":
            return np.zeros_like(sign)
        case "rp":
            return ~sign
        case "rm":
            return sign
        case _:
            raise OperandError(f"unknown rounding {rounding!r}{nearest(rounding, ROUNDINGS)}")


def canonical_nan(spec: FormatSpec) -> int:
    """What a NaN encodes to: every magnitude bit and ignored low bit set; without NaN codes the largest number."""
    if spec.nan is None:
        return spec.max_finite_magnitude
    return spec.nan | ((1 << spec.ignored_low_bits) - 1)


def _pack_floats(rounded: _Rounded, spec: FormatSpec, rounding: str, satfinite: bool) -> _U64:
    low = np.uint64(spec.ignored_low_bits)
    largest = np.uint64(spec.max_finite_magnitude >> spec.ignored_low_bits)
    sign_bit = np.where(rounded.sign, np.uint64(spec.sign_mask), np.uint64(0))
    code = sign_bit | (np.minimum(rounded.magnitude, largest) << low)
    saturated = sign_bit | np.uint64(spec.max_finite_magnitude)
    nan = np.uint64(canonical_nan(spec))
    if satfinite or spec.non_finite is NonFinite.NONE:
        code = np.where(rounded.is_infinite, saturated, code)
    else:
        lost = rounded.is_infinite | ((rounded.magnitude > largest) & _overflows_away(rounding, rounded.sign))
        code = np.where(lost, sign_bit | (nan if spec.infinity is None else np.uint64(spec.infinity)), code)
    return np.where(rounded.is_nan, nan, code)


def _pack_integers(rounded: _Rounded, spec: FormatSpec, nan_code: int) -> _U64:
    largest = np.uint64((1 << spec.fraction_bits) - 1)
    limit = np.where(rounded.sign, np.uint64(spec.sign_bits << spec.fraction_bits), largest)
    magnitude = np.where(rounded.is_infinite, limit, np.minimum(rounded.magnitude, limit))
    code = np.where(rounded.sign, ~magnitude + np.uint64(1), magnitude) & np.uint64(spec.codes - 1)
    return np.where(rounded.is_nan, np.uint64(nan_code), code)


# Encoding: the public edge -------------------------------------------------------------------------------------------


def _encode(values: npt.NDArray[Any], spec: FormatSpec, rounding: str, satfinite: bool, random_bits: npt.NDArray[Any] | None) -> Codes:
    """`encode` without its checks, and with every rounding for every format. `random_bits` has the shape of `values`."""
    if values.dtype == np.float32 and values.size >= _MANY and rounding in _FULL and _fits_table(spec):
        # The upper half of the bits, and whether the lower half has any: no boundary of rounding lies between.
        bits = np.ascontiguousarray(values).view(np.uint32)
        return np.asarray(_encode_table(spec, rounding, satfinite)[(bits >> np.uint32(16)) | ((bits & np.uint32(0xFFFF)) != 0)])
    width = RANDOM_BITS.get(spec.name, 16)
    # PTX: a NaN becomes integer 0, but the bit of the sign where the source is f64.
    nan_code = 1 << (spec.code_bits - 1) if values.dtype == np.float64 else 0
    out = np.empty(values.size, dtype=_code_dtype(spec))
    flat = np.ascontiguousarray(values).reshape(-1)
    random = None if random_bits is None else np.ascontiguousarray(random_bits).reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        drawn = None if random is None else random[part].astype(np.uint64) & np.uint64((1 << width) - 1)
        if values.dtype.kind in "iu":
            unpacked = _unpack_integers(flat[part])
        else:
            with np.errstate(invalid="ignore"):
                unpacked = _unpack_floats(flat[part].astype(np.float64))
        rounded = _round_to_codes(unpacked, spec, rounding, drawn, width)
        packed = _pack_integers(rounded, spec, nan_code) if spec.is_integer else _pack_floats(rounded, spec, rounding, satfinite)
        out[part] = packed.astype(out.dtype)
    return out.reshape(values.shape)


def _fits_table(spec: FormatSpec) -> bool:
    """Whether every number at which rounding of float32 to a format changes has a float32 whose 17 low bits are zero."""
    return not spec.is_integer and spec.code_bits <= 8 and spec.fraction_bits <= 5 and spec.bias + spec.fraction_bits <= 132


@functools.cache
def _encode_table(spec: FormatSpec, rounding: str, satfinite: bool) -> Codes:
    """The code of every float32 whose low 16 bits are zero; odd ones stand for all with the same upper bits but the last, and more."""
    every = (np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):
        table = _encode(every.astype(np.float64), spec, rounding, satfinite, None)
    table.flags.writeable = False
    return table


_ML_FLOATS: Final = frozenset(
    np.dtype(member) for name, member in vars(ml_dtypes).items() if name.startswith(("bfloat", "float")) and isinstance(member, type)
)
_ML_INTEGERS: Final = frozenset(np.dtype(getattr(ml_dtypes, name)) for name in ("int2", "int4", "uint2", "uint4"))


def _checked_values(values: npt.ArrayLike, spec: FormatSpec) -> npt.NDArray[Any]:
    array = as_array(values, "values")
    if array.dtype in _ML_INTEGERS:
        return array.astype(np.int8)
    is_real = array.dtype.kind in "iu" or (array.dtype.kind == "f" and array.dtype.itemsize <= 8) or array.dtype in _ML_FLOATS
    if not is_real:
        raise OperandTypeError(
            f"values to encode as {spec.name} must be floats of at most 64 bits (NumPy or ml_dtypes) or integers, got {array.dtype}"
        )
    return array


def _check_rounding(rounding: str, spec: FormatSpec) -> None:
    allowed = CVT_ROUNDINGS.get(spec.name, ROUNDINGS)  # a row of the caller's own: PTX says nothing of it
    if rounding not in ROUNDINGS:
        raise OperandError(f"unknown rounding {rounding!r}{nearest(str(rounding), ROUNDINGS)}; cvt to {spec.name} has {', '.join(allowed)}")
    if rounding not in allowed:
        raise OperandError(f"PTX cvt to {spec.name} has no rounding {rounding!r}; it has {', '.join(allowed)}")


def _checked_random_bits(
    random_bits: npt.ArrayLike | None, rounding: str, spec: FormatSpec, shape: tuple[int, ...]
) -> npt.NDArray[Any] | None:
    if rounding != "rs":
        if random_bits is not None:
            raise OperandError(f"random_bits belong to rounding 'rs', got them with {rounding!r}")
        return None
    if random_bits is None:
        raise OperandError(f"rounding 'rs' to {spec.name} needs random_bits, a uint32 for every value, got none")
    bits = as_array(random_bits, "random_bits")
    if bits.dtype != np.uint32:
        raise OperandTypeError(f"random_bits must be uint32, got {bits.dtype}")
    try:
        return np.broadcast_to(bits, shape)
    except ValueError as error:
        raise OperandError(f"random_bits must broadcast to the shape {shape} of the values, got {bits.shape}") from error


def _check_integer_range(values: npt.NDArray[Any], spec: FormatSpec) -> None:
    low, high = -spec.sign_bits << spec.fraction_bits, (1 << spec.fraction_bits) - 1
    if values.size and (int(values.min()) < low or int(values.max()) > high):
        bad = int(values.min()) if int(values.min()) < low else int(values.max())
        raise OperandError(f"integer {bad} is outside {spec.name}, {low} to {high}; satfinite=True takes the nearest end")


def encode(
    values: npt.ArrayLike,
    format: str | FormatSpec,
    *,
    rounding: str = "rn",
    satfinite: bool = False,
    random_bits: npt.ArrayLike | None = None,
) -> Codes:
    """Round values to a format, as PTX `cvt` does, and return the codes.

    Each value is rounded once, from its own bits; float64 goes to any format directly. Subnormals are kept on both sides.

    Special values. NaN becomes the canonical NaN (no sign, every magnitude bit set: 0x7F, 0x7FFF, 0x7FFFFFFF, 0xFF), in the
    formats without NaN the largest number. A value whose rounding is past the largest number: with `satfinite`, and always
    in the formats without infinity and NaN, the largest number of that sign, and so for infinity; else infinity, or in the
    formats without infinity NaN, of that sign (PTX has no such `cvt`; CUDA's host conversions and ml_dtypes do it so), save
    where the direction (`rz`; `rp` below zero; `rm` above) leads back to the largest number.
    A zero keeps its sign. The unsigned formats ue8m0 and ue4m3 drop the sign and round the magnitude, as `cvt` to ue8m0 does;
    ue8m0 has no zero: zero and what is below 2^-127 become code 0x00, which is 2^-127. The low 13 bits of tf32 come out zero,
    save in NaN.

    Integer formats. Floats are rounded to an integer and clamped to the range; NaN gives 0, from float64 the code with only the
    top bit set (both as in PTX). Integers must be in range, or `satfinite` must be set, which takes the nearest end.

    `rs` (stochastic). Let R be `RANDOM_BITS[format]` and D the R most significant bits that rounding the magnitude toward zero
    discards (zeros appended where the value has fewer). The magnitude is rounded away from zero where D plus the R low bits of
    `random_bits` carries out of R bits, else toward zero. With uniform bits the chance of rounding away is D / 2^R.

    Args:
        values: any shape; float16, bfloat16, float32, float64 or another ml_dtypes float, or integers of at most 64 bits;
            NumPy, torch or JAX.
        format: name or row.
        rounding: one of `CVT_ROUNDINGS[format]`.
        satfinite: the qualifier `.satfinite` (PTX demands it for the formats of at most 8 bits; without it here, see above).
        random_bits: uint32, broadcastable to the shape of `values`; for `rs` and only for it.

    Returns:
        Unsigned integers of the container's width, NumPy, same shape as `values`.

    Raises:
        OperandTypeError: values or random bits of another dtype.
        OperandError: a rounding that PTX does not have for the format; random bits missing, of another shape, or not
            wanted; an integer out of the range of an integer format.
        UnknownFormat: no such format.

    Source: PTX ISA, section cvt; for the sign and the ends of ue8m0 the conversions of cuda_fp8.hpp, CUDA 13.0.
    """
    spec = format_spec(format)
    _check_rounding(rounding, spec)
    array = _checked_values(values, spec)
    drawn = _checked_random_bits(random_bits, rounding, spec, array.shape)
    if spec.is_integer and array.dtype.kind in "iu" and not satfinite:
        _check_integer_range(array, spec)
    return _encode(array, spec, rounding, satfinite, drawn)
