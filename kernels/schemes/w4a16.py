"""W4A16: INT4 weights in groups with f16 scales and zero points, dequantized in registers and multiplied as f16 or bf16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandError
from mmabits.kernels.schemes.checks import Array, check_finite, check_multiple, check_range, check_shape, checked
from mmabits.kernels.schemes.dots import Dots, as_dots

GROUP: Final = 128
"""Elements of K that share a scale and a zero point, in nearly every checkpoint."""
MAX_CODE: Final = 15
SYMMETRIC_ZERO: Final = 8
ACTIVATIONS: Final = (np.float16, ml_dtypes.bfloat16)

_SMALLEST_SCALE: Final = np.float32(2.0**-24)  # the smallest f16


@dataclass(frozen=True, kw_only=True, eq=False)
class Int4Weights:
    """INT4 weights of a linear layer: weight[k, n] = (code[k, n] - zero[g, n]) * scale[g, n] with g = groups[k].

    Raises:
        OperandTypeError, OperandError: dtypes, shapes, codes above 15, zeros above 16, groups that are not there, scales that are not
            finite.
    """

    codes: npt.NDArray[np.uint8]
    """(K, N), 0 to 15."""
    scales: npt.NDArray[np.float16]
    """(K / group, N), finite."""
    zeros: npt.NDArray[np.uint8]
    """(K / group, N), 0 to 16; 16 is what the GPTQ format can hold and AWQ's cannot."""
    group: int = GROUP
    """Elements of K that share a scale."""
    g_idx: npt.NDArray[np.int32] | None = None
    """(K,) group of each element of K; None: k // group. GPTQ's act-order makes another."""

    def __post_init__(self) -> None:
        """Check."""
        checked(self.codes, "codes", (np.uint8,), 2)
        checked(self.scales, "scales", (np.float16,), 2)
        checked(self.zeros, "zeros", (np.uint8,), 2)
        k, n = self.codes.shape
        check_multiple(k, self.group, "K of the weights", "the group size")
        check_shape(self.scales, "scales", (k // self.group, n))
        check_shape(self.zeros, "zeros", (k // self.group, n))
        check_finite(self.scales, "scales")
        if self.codes.max(initial=0) > MAX_CODE:
            raise OperandError(f"codes of INT4 weights are 0 to {MAX_CODE}, got {self.codes.max()}")
        if self.zeros.max(initial=0) > MAX_CODE + 1:
            raise OperandError(f"zero points of INT4 weights are 0 to {MAX_CODE + 1}, got {self.zeros.max()}")
        if self.g_idx is not None:
            checked(self.g_idx, "g_idx", (np.int32,), 1)
            check_shape(self.g_idx, "g_idx", (k,))
            check_range(self.g_idx, "groups of g_idx", 0, k // self.group - 1)

    @property
    def shape(self) -> tuple[int, int]:
        """K, N."""
        k, n = self.codes.shape
        return k, n

    @property
    def groups(self) -> npt.NDArray[np.int32]:
        """(K,) the group of each element of K."""
        if self.g_idx is not None:
            return self.g_idx
        return (np.arange(self.codes.shape[0], dtype=np.int32) // np.int32(self.group)).astype(np.int32)

    def dequantize(self, dtype: Any = np.float16) -> Array:
        """The weights as a kernel has them in registers: (K, N).

        code - zero is an integer from -16 to 15, exact in either type. The product with the scale is rounded once, to nearest
        even, to `dtype`; for bfloat16 the scale has been rounded to bfloat16 first. That is the arithmetic of the Marlin kernel.

        Args:
            dtype: float16 or bfloat16.

        Raises:
            OperandError: another one.
        """
        kind = np.dtype(dtype)
        if kind not in [np.dtype(each) for each in ACTIVATIONS]:
            raise OperandError(f"INT4 weights are dequantized to float16 or bfloat16, got {kind}")
        groups = self.groups
        steps = self.codes.astype(np.float32) - self.zeros.astype(np.float32)[groups]
        scales = self.scales.astype(np.float32).astype(kind).astype(np.float32)[groups]
        with np.errstate(over="ignore", under="ignore"):
            # At most 5 and 11 significand bits: the float32 product is exact, the conversion rounds it once.
            result: Array = (steps * scales).astype(kind)
        return result


def _group_parameters(low: Array, high: Array, symmetric: bool) -> tuple[Array, Array]:
    """Scales (float16) and zero points (uint8) from the least and the largest value of each group."""
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    with np.errstate(over="ignore", under="ignore"):
        wanted = np.maximum(-low, high) / np.float32(MAX_CODE / 2) if symmetric else (high - low) / np.float32(MAX_CODE)
        scales = np.where(wanted > 0, np.maximum(wanted, _SMALLEST_SCALE), np.float32(1)).astype(np.float16)
    if not np.isfinite(scales).all() or np.isnan(low).any() or np.isnan(high).any():
        raise OperandError(f"a group reaches from {low.min()} to {high.max()}, for which there is no f16 scale")
    if symmetric:
        return scales, np.full(scales.shape, SYMMETRIC_ZERO, np.uint8)
    zeros = np.clip(np.rint(-low / scales.astype(np.float32)), 0, MAX_CODE).astype(np.uint8)
    return scales, zeros


def group_parameters(values: Array, *, symmetric: bool = False) -> tuple[Array, Array]:
    """Scales and zero points of whole groups.

    Asymmetric: `scale = f16((max - min) / 15)` with max >= 0 >= min, `zero = rint(-min / scale)` kept within 0 to 15.
    Symmetric: `scale = f16(max |w| / 7.5)`, `zero = 8`. Every operation is a single float32 one rounded to nearest even; the
    rounded scale is what is used from there on. A group of zeros has the scale 1, and no scale is below the smallest f16.

    Args:
        values: (..., group, N), float32.
        symmetric: as above.

    Returns:
        scales (..., N) float16 and zeros (..., N) uint8.

    Raises:
        OperandError: values so large that the scale overflows, or NaN.
    """
    return _group_parameters(values.min(axis=-2), values.max(axis=-2), symmetric)


def round_to_codes(values: Array, scales: Array, zeros: Array) -> npt.NDArray[np.uint8]:
    """`rint(w / scale) + zero` within 0 to 15; float32 operations, the quotient rounded before `rint`.

    Args:
        values: float32, finite, broadcastable with the others.
        scales: float16, finite, none 0.
        zeros: uint8.

    Raises:
        OperandError: something else.
    """
    check_finite(values, "values")
    check_finite(scales, "scales")
    if not scales.all():
        raise OperandError("scales must not be 0")
    with np.errstate(over="ignore", under="ignore"):
        steps = np.rint(values / scales.astype(np.float32))
    codes: npt.NDArray[np.uint8] = np.clip(steps + zeros.astype(np.float32), 0, MAX_CODE).astype(np.uint8)
    return codes


def quantize_int4(weights: Array, *, group: int = GROUP, symmetric: bool = False) -> Int4Weights:
    """Round to nearest in groups: the recipe of `group_parameters`, then `round_to_codes`.

    Args:
        weights: (K, N) float32, finite: the transpose of a torch Linear's weight.
        group: elements of K with one scale; K must be a multiple.
        symmetric: whether zero points are all 8.

    Raises:
        OperandTypeError: another dtype.
        OperandError: another shape, infinities or NaN, values beyond what f16 scales reach.
    """
    given = checked(weights, "weights", (np.float32,), 2)
    k, n = given.shape
    check_multiple(k, group, "K of the weights", "the group size")
    check_finite(given, "weights")
    grouped = given.reshape(k // group, group, n)
    scales, zeros = group_parameters(grouped, symmetric=symmetric)
    codes = round_to_codes(grouped, scales[:, None], zeros[:, None]).reshape(k, n)
    return Int4Weights(codes=codes, scales=scales, zeros=zeros, group=group)


def check_activations(x: Array, k: int) -> Array:
    """float16 or bfloat16 activations (M, K).

    Raises:
        OperandTypeError, OperandError: they are something else.
    """
    given = checked(x, "activations", ACTIVATIONS, 2)
    if given.shape[1] != k:
        raise OperandError(f"activations of shape {given.shape} have K = {given.shape[1]}, the weights have K = {k}")
    return given


def w4a16_matmul(x: Array, weights: Int4Weights, *, arch: str | Dots) -> Array:
    """Activations times INT4 weights, dequantized to the type of the activations: the bits of `mmabits.kernels.triton.w4a16`.

    Args:
        x: (M, K) float16 or bfloat16.
        weights: (K, N).
        arch: architecture, or its dots where they are not what a library is taken to use.

    Returns:
        (M, N) float32: the accumulators.

    Raises:
        MmabitsError: operands that do not fit; as `mmabits.gemm`.
    """
    given = check_activations(x, weights.shape[0])
    return as_dots(arch)(given, weights.dequantize(given.dtype))
