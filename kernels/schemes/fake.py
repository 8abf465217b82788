"""Fake quantization: what a matrix is after it was quantized and dequantized, and which of its values were beyond what the codes reach.

A straight-through estimator takes the gradient of the first as if it were the identity; clipped, it is zero where values saturated.
`mmabits.kernels.training.in_torch` and `mmabits.kernels.training.in_jax` have it as functions with gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.codecs import decode
from mmabits.isa import FormatSpec, OperandError, format_spec
from mmabits.kernels.quantize import Quantized, quantize_mx, quantize_nvfp4
from mmabits.kernels.schemes import asymmetric, fp8, fp8_blockwise, w4a4, w4a8, w4a8_fp8, w4a16, w8a8, w8a16
from mmabits.kernels.schemes.checks import check_multiple, checked, row_named

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Dequantized = tuple[Floats, Doubles, Doubles]
"""(R, K) values, and the ends between which elements are rounded and not saturated, broadcastable."""
_HALF: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class FakeScheme:
    """One way to quantize a matrix (R, K) along K, and back."""

    name: str
    what: str
    quantize: Callable[..., Dequantized]
    """(matrix, options of the scheme's quantizer by name)."""
    options: tuple[str, ...] = ()
    """Names of options."""
    block: int = 1
    """K is a multiple of it."""


def _both(largest: Any) -> tuple[Doubles, Doubles]:
    return -np.asarray(largest, np.float64), np.asarray(largest, np.float64)


def reach(format: str | FormatSpec) -> float:
    """The magnitude up to which numbers are rounded to a format and not saturated: half a step above the largest, 464 for e4m3."""
    spec = format_spec(format)
    return float(spec.max_finite) + 2.0 ** (spec.max_exponent - spec.fraction_bits - 1)


def _plain(dtype: Any, spec: FormatSpec) -> Callable[..., Dequantized]:
    def quantize(values: Floats) -> Dequantized:
        with np.errstate(over="ignore"):
            return values.astype(dtype).astype(np.float32), *_both(reach(spec))

    return quantize


def _blocks(found: Quantized) -> Dequantized:
    scales: Any = 1.0
    if found.scales is not None and found.scale is not None and found.block is not None:
        scales = np.repeat(decode(found.scales, found.scale), found.block, axis=-1)
    return found.dequantize(), *_both(reach(found.element) * scales * np.float64(found.tensor_scale))


def _fp8(**fixed: Any) -> Callable[..., Dequantized]:
    def quantize(values: Floats, **options: Any) -> Dequantized:
        found = fp8.quantize(values, **{**fixed, **options})
        return found.dequantize(), *_both(reach(fixed["format"]) * found.scales.astype(np.float64))

    return quantize


def _tiles(tile: tuple[int, int]) -> Callable[..., Dequantized]:
    def quantize(values: Floats, **options: Any) -> Dequantized:
        found = fp8_blockwise.quantize(values, tile=tile, **options)
        return found.dequantize(), *_both(reach(options.get("format", fp8.FORWARD)) * found.element_scales().astype(np.float64))

    return quantize


def _mx(form: str) -> Callable[..., Dequantized]:
    return lambda values, **options: _blocks(quantize_mx(values, format=form, **options))


def _nvfp4(square: bool) -> Callable[..., Dequantized]:
    return lambda values, **options: _blocks(quantize_nvfp4(values, square=square, **options))


def _int8(values: Floats, **options: Any) -> Dequantized:
    found = w8a8.quantize_int8(values, axis=0, **options)
    return found.dequantize(), *_both((w8a8.LARGEST + _HALF) * found.scales.astype(np.float64)[:, None])


def _int8_affine(values: Floats, **options: Any) -> Dequantized:
    found = asymmetric.quantize_affine(values, axis=0, **options)
    ends = np.iinfo(found.codes.dtype)
    scales, zeros = found.scales.astype(np.float64)[:, None], found.zeros[:, None]
    return found.dequantize(), (ends.min - _HALF - zeros) * scales, (ends.max + _HALF - zeros) * scales


def _int4(values: Floats, **options: Any) -> Dequantized:
    found = w4a4.quantize_int4_symmetric(values, axis=0, **options)
    return found.dequantize(), *_both((w4a4.LARGEST + _HALF) * found.scales.astype(np.float64)[:, None])


# Weights of a linear layer, which their quantizers take as (K, N).


def _int4_weights(symmetric: bool) -> Callable[..., Dequantized]:
    def quantize(values: Floats, **options: Any) -> Dequantized:
        found = w4a16.quantize_int4(np.ascontiguousarray(values.T), symmetric=symmetric, **options)
        scales, zeros = (each[found.groups].T.astype(np.float64) for each in (found.scales, found.zeros))
        return found.dequantize().T.astype(np.float32), (-_HALF - zeros) * scales, (w4a16.MAX_CODE + _HALF - zeros) * scales

    return quantize


def _weights8(kind: str, largest: float) -> Callable[..., Dequantized]:
    def quantize(values: Floats, **options: Any) -> Dequantized:
        found = w8a16.quantize_w8(np.ascontiguousarray(values.T), kind=kind, **options)
        scales = found.scales.astype(np.float64)
        return found.dequantize().T, *_both(largest * (np.repeat(scales, found.group, axis=0) if found.group else scales).T)

    return quantize


def _w4a8(values: Floats, **options: Any) -> Dequantized:
    found = w4a8.quantize_w4a8(np.ascontiguousarray(values.T), **options)
    steps = found.channel_scales.astype(np.float64)[None, :]
    if found.group_scales is not None:
        steps = steps * np.repeat(found.group_scales.astype(np.float64), found.group, axis=0)
    return found.dequantize().T, *_both((w4a8.LARGEST + _HALF) * steps.T)


def _w4a8_fp8(values: Floats, **options: Any) -> Dequantized:
    found = w4a8_fp8.quantize_w4a8_fp8(np.ascontiguousarray(values.T), **options)
    scales = found.scales.astype(np.float64)
    spread = (np.repeat(scales, found.group, axis=0) if found.group else scales).T
    return found.dequantize().T, (-8 - _HALF) * spread, (7 + _HALF) * spread


def _rows() -> Iterator[FakeScheme]:
    for name, dtype in (("f16", np.float16), ("bf16", ml_dtypes.bfloat16)):
        yield FakeScheme(name=name, what=f"{name}, as it is", quantize=_plain(dtype, format_spec(name)))
    floats = ("recipe", "scale", "least_amax")
    for form, ending in (("e4m3", ""), ("e5m2", "-e5m2")):
        for per, kind in (("tensor", ""), ("row", "-rowwise")):
            yield FakeScheme(
                name=f"fp8{kind}{ending}",
                what=f"{form}, a float32 scale for each {per}",
                quantize=_fp8(format=form, per=per),
                options=floats,
            )
    tiles = ("format", "recipe", "least_amax")
    yield FakeScheme(name="fp8-tiles", what="e4m3, float32 scales for 1 x 128", quantize=_tiles((1, 128)), options=tiles, block=128)
    yield FakeScheme(name="fp8-tiles-square", what="e4m3, float32 scales for 128 x 128", quantize=_tiles((128, 128)), options=tiles)
    forms = {"mxfp8": "e4m3", "mxfp8-e5m2": "e5m2", "mxfp6-e3m2": "e3m2", "mxfp6-e2m3": "e2m3", "mxfp4": "e2m1"}
    for name, form in forms.items():
        yield FakeScheme(name=name, what=f"{form} in blocks of 32, ue8m0 scales", quantize=_mx(form), options=("recipe",), block=32)
    drawn = ("amax", "rounding", "random_bits")
    yield FakeScheme(name="nvfp4", what="e2m1 in blocks of 16, e4m3 scales", quantize=_nvfp4(False), options=drawn, block=16)
    yield FakeScheme(name="nvfp4-square", what="e2m1 in blocks of 16 x 16, e4m3 scales", quantize=_nvfp4(True), options=drawn, block=16)
    yield FakeScheme(name="int8", what="INT8, a scale for each row", quantize=_int8, options=("amax",))
    affine = ("dtype", "low", "high")
    yield FakeScheme(name="int8-asymmetric", what="INT8, a scale and a zero point for each row", quantize=_int8_affine, options=affine)
    yield FakeScheme(name="int4", what="INT4, a scale for each row (W4A4)", quantize=_int4, options=("clip", "amax"))
    grouped = ("group",)
    for name, symmetric in (("w4a16", False), ("w4a16-symmetric", True)):
        about = f"INT4 weights, f16 scales for groups of 128{', no zero points' if symmetric else ''}"
        yield FakeScheme(name=name, what=about, quantize=_int4_weights(symmetric), options=grouped)
    for kind, largest in (("int8", w8a8.LARGEST + _HALF), ("e4m3", reach("e4m3"))):
        about = f"{kind} weights, an f16 scale for each channel, or for groups"
        yield FakeScheme(name=f"w8a16-{kind}", what=about, quantize=_weights8(kind, largest), options=grouped)
    yield FakeScheme(name="w4a8", what="INT4 weights that become INT8 (QQQ)", quantize=_w4a8, options=grouped)
    yield FakeScheme(name="w4a8-fp8", what="INT4 weights that become e4m3 (Marlin)", quantize=_w4a8_fp8, options=grouped)


FAKE_SCHEMES: Final = {row.name: row for row in _rows()}
"""Every scheme by its name. Mixtures of experts take MXFP4's and W4A16's; attention's quantizers are not here."""


def fake_scheme(name: str | FakeScheme) -> FakeScheme:
    """The scheme of that name.

    Raises:
        OperandError: there is none.
    """
    if isinstance(name, FakeScheme):
        return name
    return row_named(FAKE_SCHEMES, name, "scheme")


def check_fake(row: FakeScheme, shape: tuple[int, ...], axis: Any, options: Iterable[str]) -> None:
    """Refuse what is wrong whatever the values are.

    Args:
        row: a scheme.
        shape: of the values.
        axis: along which blocks lie.
        options: their names.

    Raises:
        OperandError: no such axis or option, or a length along the axis that is no multiple of the scheme's block.
    """
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        raise OperandError(f"axis must be an integer, got {axis!r}")
    if not -len(shape) <= axis < len(shape):
        raise OperandError(f"axis {axis} of an array of {len(shape)} dimensions; allowed is {-len(shape)} to {len(shape) - 1}")
    unknown = [name for name in options if name not in row.options]
    if unknown:
        known = f"it has {', '.join(row.options)}" if row.options else "it has none"
        raise OperandError(f"{row.name} has no option {unknown[0]!r}; {known}")
    check_multiple(shape[axis], row.block, f"the length along axis {axis}", "the block size")


def fake_quantized(values: npt.NDArray[Any], scheme: str | FakeScheme, *, axis: int = -1, **options: Any) -> tuple[Floats, Bools]:
    """Values quantized and dequantized, and which of them lie within the reach of their codes.

    An element is within reach unless it lies beyond its least or largest code by more than half a step, both with its scale (exact
    comparisons): then it was saturated, and not rounded. NaN and infinities are not within, and nothing is whose scale is NaN.

    Args:
        values: float32, at least one dimension. All axes but `axis` together are rows.
        scheme: a name of `FAKE_SCHEMES`, or a row of one's own.
        axis: K, the axis along which blocks lie.
        options: of the scheme's quantizer: static scales, `recipe`, `random_bits` and so on, in the form it takes for a matrix (R, K).

    Returns:
        float32 and bool, both of the shape of `values`.

    Raises:
        OperandTypeError: another dtype.
        OperandError: another scheme, axis or option; as the quantizer.
    """
    row, given = fake_scheme(scheme), checked(values, "values", (np.float32,))
    check_fake(row, given.shape, axis, options)
    last = np.moveaxis(given, axis, -1)
    rows = int(np.prod(last.shape[:-1]))
    matrix = np.ascontiguousarray(last).reshape(rows, last.shape[-1])
    dequantized, low, high = row.quantize(matrix, **options)
    within = (matrix >= low) & (matrix <= high)
    return tuple(np.ascontiguousarray(np.moveaxis(each.reshape(last.shape), -1, axis)) for each in (dequantized, within))  # type: ignore[return-value]
