"""Float32 matrices to FP8, MXFP8, MXFP6, MXFP4 and NVFP4, as quantizing kernels do it.

Rounding of elements and of e4m3 scales is to nearest even with saturation, as PTX `cvt.rn.satfinite`. Nothing is left to the platform:
the scales come from integers of the float32 bits or from single IEEE operations, so every bit of the output is determined.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.emulator.codecs import decode, encode, from_codes
from mmabits.isa.errors import OperandError, OperandTypeError, nearest
from mmabits.isa.formats import FormatSpec, format_spec
from mmabits.kernels.schemes.checks import positive

Floats = npt.NDArray[np.float32]

FP8_FORMATS: Final = ("e4m3", "e5m2")
MX_FORMATS: Final = ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1")
MX_BLOCK: Final = 32
NVFP4_BLOCK: Final = 16

_F32_FRACTION: Final = 23
_F32_BIAS: Final = 127
_SMALLEST: Final = np.float32(2.0**-149)


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """A quantized array: value = element * block scale * tensor scale."""

    scheme: str
    """`fp8-e4m3`, `mx-e2m1-floor`, `nvfp4`, ..."""
    element: FormatSpec
    """Format of the elements."""
    elements: npt.NDArray[Any]
    """The elements in their ml_dtypes type; shape of the array that was quantized."""
    tensor_scale: np.float32
    """The scale of the whole array, which software applies to the product; 1 where the scheme has none."""
    scale: FormatSpec | None = None
    """Format of the block scales; None: there are none."""
    scales: npt.NDArray[Any] | None = None
    """Block scales: float8_e8m0fnu, or float8_e4m3fn for ue4m3; the shape of `elements` with `axis` divided by `block`."""
    block: int | None = None
    """Elements of a block."""
    axis: int = -1
    """The axis along which blocks lie: K."""

    def dequantize(self) -> Floats:
        """The values the codes stand for, each rounded once to float32; NaN throughout a block whose scale is NaN."""
        values = decode(self.elements, self.element)
        if self.scales is not None and self.scale is not None and self.block is not None:
            values = values * np.repeat(decode(self.scales, self.scale), self.block, axis=self.axis)
        with np.errstate(over="ignore"):
            # element and scale have at most 8 significand bits together, so the float64 product with an f32 is exact.
            return (values * np.float64(self.tensor_scale)).astype(np.float32)


def _checked_array(values: npt.NDArray[Any]) -> Floats:
    if not isinstance(values, np.ndarray) or values.dtype != np.float32:
        arrived = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        raise OperandTypeError(f"values to quantize must be a NumPy array of float32, got {arrived}")
    return values


def _checked_format(name: str | FormatSpec, allowed: tuple[str, ...], scheme: str) -> FormatSpec:
    spec = format_spec(name)
    if spec.name not in allowed:
        raise OperandError(f"{scheme} has no elements of {spec.name}; it has {', '.join(allowed)}")
    return spec


def _blocks(values: npt.NDArray[Any], block: int, axis: int) -> npt.NDArray[Any]:
    """The array as (..., blocks, block) with `axis` last.

    Raises:
        OperandError: no such axis, or a length along it that is no multiple of `block`.
    """
    if not -values.ndim <= axis < values.ndim:
        raise OperandError(f"axis {axis} of an array of {values.ndim} dimensions; allowed is {-values.ndim} to {values.ndim - 1}")
    length = values.shape[axis]
    if length % block:
        raise OperandError(
            f"the length along axis {axis} must be a multiple of the block size {block}, got {length} (shape {values.shape})"
        )
    last = np.moveaxis(values, axis, -1)
    return np.ascontiguousarray(last).reshape(*last.shape[:-1], length // block, block)


def _back(blocks: npt.NDArray[Any], shape: tuple[int, ...], axis: int) -> npt.NDArray[Any]:
    """The inverse of `_blocks`."""
    moved = list(shape)
    moved.append(moved.pop(axis))
    return np.ascontiguousarray(np.moveaxis(blocks.reshape(moved), -1, axis))


def _finite_amax(values: Floats) -> np.float32:
    """The largest finite magnitude, 0 where there is none."""
    magnitudes = np.abs(values)
    return np.float32(np.max(magnitudes, initial=np.float32(0), where=np.isfinite(values)))


def _tensor_scale(amax: np.float32, largest: float) -> np.float32:
    """`amax / largest` in one float32 division; 1 for an array of zeros, 2^-149 where the quotient would be zero."""
    if amax == 0:
        return np.float32(1)
    return np.float32(max(amax / np.float32(largest), _SMALLEST))


def quantize_fp8(values: npt.NDArray[Any], *, format: str | FormatSpec = "e4m3") -> Quantized:
    """FP8 with one scale for the whole array, taken from its largest magnitude.

    Recipe: `scale = amax / max` (one float32 division; max = 448 for e4m3, 57344 for e5m2), element = round(x / scale).
    amax is that of the finite values; NaN stays NaN and infinities saturate, as in `cvt.rn.satfinite`. An array without a
    finite nonzero value has the scale 1.

    Args:
        values: float32, any shape.
        format: `"e4m3"` or `"e5m2"`.

    Raises:
        OperandTypeError: not float32.
        OperandError: another format.

    Source: per-tensor current scaling as in NVIDIA Transformer Engine, in its form with the dequantizing scale stored.
    """
    given = _checked_array(values)
    spec = _checked_format(format, FP8_FORMATS, "per-tensor FP8")
    scale = _tensor_scale(_finite_amax(given), spec.max_finite)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        scaled = given / scale
    codes = encode(scaled, spec, satfinite=True)
    return Quantized(scheme=f"fp8-{spec.name}", element=spec, elements=from_codes(codes, spec), tensor_scale=scale)


def _floor_log2(amax: Floats) -> npt.NDArray[np.int32]:
    """floor(log2(amax)) of finite magnitudes, subnormals too; far below every scale for zero."""
    exponent = np.frexp(amax)[1].astype(np.int32) - 1
    return np.where(amax > 0, exponent, np.int32(-10_000))


def _exponent_floor(amax: Floats, element: FormatSpec) -> npt.NDArray[np.int32]:
    return _floor_log2(amax) - np.int32(element.max_exponent)


def _exponent_ceil(amax: Floats, element: FormatSpec) -> npt.NDArray[np.int32]:
    is_power = np.frexp(amax)[0] == np.float32(0.5)
    return _exponent_floor(amax, element) + np.where(is_power, np.int32(0), np.int32(1))


def _exponent_even(amax: Floats, element: FormatSpec) -> npt.NDArray[np.int32]:
    half_unit = np.uint32(1 << (_F32_FRACTION - element.fraction_bits - 1))
    field = ((amax.view(np.uint32) + half_unit) >> np.uint32(_F32_FRACTION)).astype(np.int32)
    return field - np.int32(_F32_BIAS + element.max_exponent)


def _exponent_rceil(amax: Floats, element: FormatSpec) -> npt.NDArray[np.int32]:
    with np.errstate(under="ignore"):
        quotient = amax / np.float32(element.max_finite)
    is_power = np.frexp(quotient)[0] == np.float32(0.5)
    return _floor_log2(quotient) + np.where(is_power, np.int32(0), np.int32(1))


_MX_RECIPES: Final[dict[str, Callable[[Floats, FormatSpec], npt.NDArray[np.int32]]]] = {
    "floor": _exponent_floor,
    "ceil": _exponent_ceil,
    "even": _exponent_even,
    "rceil": _exponent_rceil,
}

MX_RECIPES: Final = tuple(_MX_RECIPES)


def quantize_mx(values: npt.NDArray[Any], *, format: str | FormatSpec = "e4m3", recipe: str = "floor", axis: int = -1) -> Quantized:
    """MXFP8, MXFP6 or MXFP4: blocks of 32 with a ue8m0 scale each.

    The exponent of a block's scale from its largest magnitude amax, kept within -127 to 127:

    - `floor`: floor(log2(amax)) - emax, emax being that of the element format: 8, 15, 4, 2, 2 for e4m3, e5m2, e3m2, e2m3, e2m1.
      Elements above the largest number saturate. OCP Microscaling Formats v1.0, section 6.3.
    - `ceil`: ceil(log2(amax)) - emax. torchao `ScaleCalculationMode.CEIL`.
    - `even`: as `floor`, of amax rounded to the fraction bits of the element format (half a unit is added, so ties go up).
      torchao `ScaleCalculationMode.EVEN`.
    - `rceil`: ceil(log2(amax / max)), the quotient rounded to float32 first; nothing saturates by more than that rounding.
      cuBLAS block scaling and torchao `ScaleCalculationMode.RCEIL`.

    Elements are x / scale, which is exact, rounded to nearest even with saturation. A block of zeros, like every block too small
    for its scale, has scale code 0, which is 2^-127. A block that holds a NaN or an infinity has scale code 0xFF (NaN) and
    elements +0; the standard leaves that case to the implementation.

    Args:
        values: float32, any shape whose length along `axis` is a multiple of 32.
        format: `"e4m3"`, `"e5m2"`, `"e3m2"`, `"e2m3"` or `"e2m1"`.
        recipe: one of `MX_RECIPES`.
        axis: along which blocks lie: the last of A (M x K), the first of B (K x N).

    Raises:
        OperandTypeError: not float32.
        OperandError: another format, recipe or axis, or a length that is no multiple of 32.
    """
    given = _checked_array(values)
    spec = _checked_format(format, MX_FORMATS, "MX")
    if recipe not in _MX_RECIPES:
        raise OperandError(f"unknown MX recipe {recipe!r}{nearest(str(recipe), _MX_RECIPES)}; known: {', '.join(_MX_RECIPES)}")
    blocks = _blocks(given, MX_BLOCK, axis)
    is_finite = np.asarray(np.isfinite(blocks).all(axis=-1))
    safe = np.where(is_finite[..., None], blocks, np.float32(0))
    exponent = np.clip(_MX_RECIPES[recipe](np.abs(safe).max(axis=-1), spec), -127, 127)
    # Dividing by a power of two is exact but below 2^-126, where every element becomes zero: the rounding of encode is the only one.
    with np.errstate(under="ignore"):
        codes = encode(np.ldexp(safe, -exponent[..., None]), spec, satfinite=True)
    scale_codes = np.where(is_finite, exponent + 127, 0xFF).astype(np.uint8)
    scale = format_spec("ue8m0")
    return Quantized(
        scheme=f"mx-{spec.name}-{recipe}",
        element=spec,
        elements=from_codes(_back(codes, given.shape, axis), spec),
        scale=scale,
        scales=from_codes(np.ascontiguousarray(np.moveaxis(scale_codes, -1, axis)), scale),
        block=MX_BLOCK,
        axis=axis,
        tensor_scale=np.float32(1),
    )


def _square_amax(amax: Floats, axis: int, ndim: int) -> Floats:
    """Of the largest magnitudes of 1 x 16 blocks (..., rows, blocks), for each that of its 16 x 16 tile."""
    if ndim != 2:
        raise OperandError(f"16 x 16 tiles are those of a matrix, got {ndim} dimensions")
    rows, count = amax.shape
    if rows % NVFP4_BLOCK:
        other = 0 if axis in (1, -1) else 1
        raise OperandError(f"the length along axis {other} must be a multiple of the tile size {NVFP4_BLOCK}, got {rows}")
    tiles = amax.reshape(rows // NVFP4_BLOCK, NVFP4_BLOCK, count).max(axis=1, keepdims=True)
    return np.broadcast_to(tiles, (rows // NVFP4_BLOCK, NVFP4_BLOCK, count)).reshape(rows, count)


def quantize_nvfp4(
    values: npt.NDArray[Any],
    *,
    axis: int = -1,
    square: bool = False,
    amax: float | np.float32 | None = None,
    rounding: str = "rn",
    random_bits: npt.NDArray[np.uint32] | None = None,
) -> Quantized:
    """NVFP4: e2m1 in blocks of 16 with an e4m3 scale each, and one float32 scale for the whole array.

    Recipe, each operation a single float32 one rounded to nearest even:

    1. `tensor_scale = amax / (6 * 448)`, amax the largest finite magnitude of the array; 1 where that is zero;
    2. `block scale = e4m3((block amax / 6) / tensor_scale)`, saturating;
    3. `element = e2m1(x / (block scale * tensor_scale))`, saturating; +0 where the block scale is zero.

    A block that holds a NaN or an infinity has scale code 0x7F (NaN) and elements +0.

    Args:
        values: float32, any shape whose length along `axis` is a multiple of 16.
        axis: along which blocks lie: the last of A (M x K), the first of B (K x N).
        square: blocks of 16 x 16 elements share a scale, which is stored for each of their rows; for a matrix of weights, whose copies
            along either axis then hold the same numbers.
        amax: the largest magnitude of step 1, known beforehand (static scaling): positive and finite.
        rounding: of the elements: `"rn"`, or `"rs"`, stochastic, as NVIDIA's recipe has it for gradients.
        random_bits: uint32 of the shape of `values`, for `"rs"`; see `encode`.

    Raises:
        OperandTypeError: not float32.
        OperandError: another axis or rounding, a length that is no multiple of 16, an amax that is not positive and finite.

    Source: NVIDIA, "Introducing NVFP4 for Efficient and Accurate Low-Precision Inference" (2025), and the recipe in the
    appendix of "Pretraining Large Language Models with NVFP4" (arXiv 2509.25149).
    """
    given = _checked_array(values)
    element, scale = format_spec("e2m1"), format_spec("ue4m3")
    largest = np.float32(element.max_finite)
    blocks = _blocks(given, NVFP4_BLOCK, axis)
    bits = None if random_bits is None else _random_blocks(random_bits, given.shape, axis)
    magnitudes = np.abs(blocks).max(axis=-1)  # infinity or NaN where the block holds one
    if square:
        magnitudes = _square_amax(magnitudes, axis, given.ndim)
    is_finite = np.isfinite(magnitudes)
    safe = np.where(is_finite[..., None], blocks, np.float32(0))
    tensor_scale = _tensor_scale(_finite_amax(given) if amax is None else positive(amax, "amax"), element.max_finite * scale.max_finite)
    with np.errstate(under="ignore", over="ignore"):
        wanted = (np.where(is_finite, magnitudes, np.float32(0)) / largest) / tensor_scale
        scale_codes = encode(wanted, scale, satfinite=True)
        step = decode(scale_codes, scale).astype(np.float32) * tensor_scale
        divisor = np.where(step > 0, step, np.float32(1))[..., None]
        scaled = np.where(step[..., None] > 0, safe / divisor, np.float32(0))
    codes = encode(scaled, element, satfinite=True, rounding=rounding, random_bits=bits)
    scale_codes = np.where(is_finite, scale_codes, np.uint8(0x7F)).astype(np.uint8)
    return Quantized(
        scheme="nvfp4",
        element=element,
        elements=from_codes(_back(codes, given.shape, axis), element),
        scale=scale,
        scales=from_codes(np.ascontiguousarray(np.moveaxis(scale_codes, -1, axis)), scale),
        block=NVFP4_BLOCK,
        axis=axis,
        tensor_scale=tensor_scale,
    )


def _random_blocks(random_bits: npt.NDArray[np.uint32], shape: tuple[int, ...], axis: int) -> npt.NDArray[Any]:
    if not isinstance(random_bits, np.ndarray) or random_bits.dtype != np.uint32 or random_bits.shape != shape:
        arrived = f"{random_bits.dtype} {random_bits.shape}" if isinstance(random_bits, np.ndarray) else type(random_bits).__name__
        raise OperandError(f"random_bits must be uint32 of shape {shape}, got {arrived}")
    return _blocks(random_bits, NVFP4_BLOCK, axis)
