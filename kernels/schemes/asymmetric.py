"""Asymmetric INT8: codes with zero points, value = (code - zero) * scale, of activations, weights or both.

The product of codes that are not centred is corrected in integers, exactly:
`sum((x - zx) (w - zw)) = sum(x w) - zx sum(w) - zw sum(x) + K zx zw`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandError
from mmabits.kernels.schemes.checks import Array, check_finite, check_range, check_shape, checked
from mmabits.kernels.schemes.dots import Dots, as_dots
from mmabits.kernels.schemes.w8a8 import Floats, Int8Matrix, scaled

TYPES: Final = (np.uint8, np.int8)
STEPS: Final = 255
"""Codes reach from the least of their type to the largest: all 256 are used."""

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, eq=False)
class AffineMatrix:
    """A u8 or s8 matrix with a scale and a zero point for each row (activations) or each column (weights).

    Raises:
        OperandTypeError, OperandError: dtypes and shapes, scales that are not finite, zero points that the codes' type does not hold.
    """

    codes: npt.NDArray[Any]
    """(M, K) or (K, N), uint8 or int8."""
    scales: Floats
    """(M,) or (N,), finite."""
    zeros: Ints
    """(M,) or (N,): the code that stands for 0."""
    axis: int
    """The axis that has a scale and a zero point for each index: 0 for activations, 1 for weights."""

    def __post_init__(self) -> None:
        """Check."""
        checked(self.codes, "codes", TYPES, 2)
        checked(self.scales, "scales", (np.float32,), 1)
        checked(self.zeros, "zeros", (np.int32,), 1)
        if self.axis not in (0, 1):
            raise OperandError(f"axis must be 0 (rows) or 1 (columns), got {self.axis}")
        for array, name in ((self.scales, "scales"), (self.zeros, "zeros")):
            check_shape(array, name, (self.codes.shape[self.axis],))
        check_finite(self.scales, "scales")
        ends = np.iinfo(self.codes.dtype)
        check_range(self.zeros, f"zero points of {self.codes.dtype} codes", ends.min, ends.max)

    def sums(self) -> Ints:
        """The sums of the codes over K, which corrections take: (M,) or (N,)."""
        return np.asarray(self.codes.sum(axis=1 - self.axis, dtype=np.int32))

    def dequantize(self) -> Floats:
        """(code - zero) times scale, rounded once to float32."""
        zeros, scales = (each[:, None] if self.axis == 0 else each[None, :] for each in (self.zeros, self.scales))
        with np.errstate(over="ignore", under="ignore"):
            values: Floats = (self.codes.astype(np.int32) - zeros).astype(np.float32) * scales
        return values

    def as_signed(self) -> AffineMatrix:
        """The same numbers with s8 codes: u8 codes and their zero points less 128."""
        if self.codes.dtype == np.int8:
            return self
        codes = (self.codes ^ np.uint8(128)).view(np.int8)
        return AffineMatrix(codes=codes, scales=self.scales, zeros=self.zeros - np.int32(128), axis=self.axis)


def affine_parameters(low: Array, high: Array, *, dtype: Any = np.uint8) -> tuple[Floats, Ints]:
    """Scales and zero points from the least and the largest values.

    `scale = (high - low) / 255` with low at most and high at least 0, `zero = least code - rint(low / scale)` within the codes' type.
    Single float32 operations, rounded to nearest even. A scale that would be zero is 1.

    Args:
        low: float32, finite.
        high: float32, finite, not below `low`.
        dtype: uint8 or int8.

    Returns:
        Scales, float32, and zero points, int32, of the shape of `low`.

    Raises:
        OperandTypeError, OperandError: something else; ends further apart than float32 reaches.
    """
    least, largest = (checked(each, name, (np.float32,)) for each, name in ((low, "low"), (high, "high")))
    check_shape(largest, "high", least.shape)
    check_finite(least, "low")
    check_finite(largest, "high")
    if (least > largest).any():
        raise OperandError("low must not be above high")
    ends = _ends(dtype)
    least, largest = np.minimum(least, np.float32(0)), np.maximum(largest, np.float32(0))
    with np.errstate(over="ignore", under="ignore"):
        wanted = (largest - least) / np.float32(STEPS)
        check_finite(wanted, "(high - low) / 255")
        scales = np.where(wanted > 0, wanted, np.float32(1)).astype(np.float32)
        zeros = np.clip(np.float32(ends.min) - np.rint(least / scales), ends.min, ends.max).astype(np.int32)
    return scales, zeros


def affine_codes(values: Array, scales: Array, zeros: Array, *, dtype: Any = np.uint8) -> npt.NDArray[Any]:
    """`rint(x / scale) + zero` within the codes' type; the quotient is rounded to float32 first. Arguments broadcast."""
    ends = _ends(dtype)
    with np.errstate(over="ignore", under="ignore"):
        steps = np.rint(values / scales)
        codes: npt.NDArray[Any] = np.clip(steps + zeros.astype(np.float32), ends.min, ends.max).astype(ends.dtype)
    return codes


def _ends(dtype: Any) -> np.iinfo[Any]:
    kind = np.dtype(dtype)
    if kind not in [np.dtype(each) for each in TYPES]:
        raise OperandError(f"codes are uint8 or int8, got {kind}")
    return np.iinfo(kind)


def quantize_affine(
    values: Array, *, axis: int, dtype: Any = np.uint8, low: Array | None = None, high: Array | None = None
) -> AffineMatrix:
    """INT8 with a scale and a zero point for each row (`axis=0`: a token) or column (`axis=1`: an output channel).

    Args:
        values: (M, K) or (K, N) float32, finite.
        axis: which index has a scale of its own.
        dtype: uint8 (as activations are for `u8 x s8` instructions) or int8 (weights; vLLM's activations).
        low: float32 values that stand for the least code, in place of the least of each row or column (static quantization): one for
            each, or a single one for all. Values beyond saturate.
        high: likewise the largest; given together with `low`.

    Raises:
        OperandTypeError, OperandError: something else.

    Source: Jacob et al. (arXiv 1712.05877), equation 1; parameters as in PyTorch's observers, without their least scale.
    """
    given = checked(values, "values", (np.float32,), 2)
    check_finite(given, "values")
    if axis not in (0, 1):
        raise OperandError(f"axis must be 0 (rows) or 1 (columns), got {axis}")
    if (low is None) != (high is None):
        raise OperandError("low and high are given together")
    size = given.shape[axis]
    if low is None or high is None:
        ends = (given.min(axis=1 - axis, initial=np.float32(0)), given.max(axis=1 - axis, initial=np.float32(0)))
    else:
        ends = (_static(low, "low", size), _static(high, "high", size))
    scales, zeros = affine_parameters(*ends, dtype=dtype)
    shape = (-1, 1) if axis == 0 else (1, -1)
    codes = affine_codes(given, scales.reshape(shape), zeros.reshape(shape), dtype=dtype)
    return AffineMatrix(codes=codes, scales=scales, zeros=zeros, axis=axis)


def _static(end: Array, name: str, size: int) -> Array:
    given = checked(end, name, (np.float32,))
    if given.shape not in ((), (1,), (size,)):
        raise OperandError(f"{name} must have shape ({size},) or (1,), got {given.shape}")
    return np.broadcast_to(given.reshape(-1), (size,))


def largest_k(zeros_of_weights: bool) -> int:
    """The largest K for which no sum can leave s32: products of 255 times 255 or, for weights without zero points, of 255 times 128."""
    return (2**31 - 1) // (STEPS * (STEPS if zeros_of_weights else 128))


def check_sums(k: int, zeros_of_weights: bool) -> None:
    """Refuse a K whose corrected sums may leave s32.

    Raises:
        OperandError: it is too large.
    """
    if k > largest_k(zeros_of_weights):
        kind = "with" if zeros_of_weights else "without"
        raise OperandError(
            f"K must be at most {largest_k(zeros_of_weights)} for weights {kind} zero points, or sums may leave s32; got {k}"
        )


def corrected(sums: Array, x: AffineMatrix, w: AffineMatrix | Int8Matrix) -> Ints:
    """`sums - zx sum(w) - zw sum(x) + K zx zw` in int32, which wraps: the last result is exact where it fits."""
    over_k = w.sums() if isinstance(w, AffineMatrix) else w.codes.sum(axis=0, dtype=np.int32)
    total = sums - x.zeros[:, None] * over_k[None, :]
    if isinstance(w, AffineMatrix):
        total = total - (x.sums() - np.int32(x.codes.shape[1]) * x.zeros)[:, None] * w.zeros[None, :]
    return np.asarray(total, dtype=np.int32)


def asymmetric_matmul(x: AffineMatrix, w: AffineMatrix | Int8Matrix, *, arch: str | Dots) -> Floats:
    """The product of INT8 matrices with zero points: the bits of `mmabits.kernels.triton.asymmetric`.

    Args:
        x: (M, K), by row. uint8 codes go into u8 x s8 instructions, int8 into s8 x s8; the sums are the same integers.
        w: (K, N), by column: with zero points, or symmetric.
        arch: architecture, or its dots.

    Returns:
        (M, N) float32: `(f32(corrected sum) * row scale) * column scale`.

    Raises:
        MmabitsError: operands that do not fit, a K whose sums may leave s32; as `mmabits.gemm`.

    Source: vLLM's int8 kernels with `azp`, and gemmlowp, for the correction in integers.
    """
    if (x.axis, w.axis) != (0, 1):
        raise OperandError(f"activations have scales for rows (axis 0) and weights for columns (axis 1), got axes {x.axis} and {w.axis}")
    if x.codes.shape[1] != w.codes.shape[0]:
        raise OperandError(f"activations of shape {x.codes.shape} and weights of shape {w.codes.shape} do not have the same K")
    check_sums(x.codes.shape[1], isinstance(w, AffineMatrix))
    return scaled(corrected(as_dots(arch)(x.codes, w.codes), x, w), x.scales, w.scales)
