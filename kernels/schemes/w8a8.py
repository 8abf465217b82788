"""W8A8: INT8 activations and weights, SmoothQuant, and LLM.int8() with its outlier columns in f16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandError
from mmabits.kernels.schemes.checks import Array, check_finite, check_positive, check_range, check_shape, checked
from mmabits.kernels.schemes.dots import Dots, as_dots

LARGEST: Final = 127
"""Codes are -127 to 127; -128 is not used."""
OUTLIER: Final = 6.0
"""Magnitude from which LLM.int8() takes a column of the activations for an outlier."""
_LEAST_SMOOTHING: Final = 1e-5

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Int8Matrix:
    """An INT8 matrix with a scale for each row (activations, per token) or each column (weights, per output channel).

    Raises:
        OperandTypeError, OperandError: dtypes and shapes, scales that are not finite.
    """

    codes: npt.NDArray[np.int8]
    """(M, K) or (K, N)."""
    scales: Floats
    """(M,) or (N,), finite."""
    axis: int
    """The axis that has a scale for each index: 0 for activations, 1 for weights."""

    def __post_init__(self) -> None:
        """Check."""
        checked(self.codes, "codes", (np.int8,), 2)
        checked(self.scales, "scales", (np.float32,), 1)
        if self.axis not in (0, 1):
            raise OperandError(f"axis must be 0 (rows) or 1 (columns), got {self.axis}")
        check_shape(self.scales, "scales", (self.codes.shape[self.axis],))
        check_finite(self.scales, "scales")

    def dequantize(self) -> Floats:
        """Code times scale, rounded once to float32."""
        scales = self.scales[:, None] if self.axis == 0 else self.scales[None, :]
        return self.codes.astype(np.float32) * scales


def int8_scales(amax: Floats) -> Floats:
    """`amax / 127` in one float32 division; 1 where amax is zero or the quotient would be."""
    with np.errstate(under="ignore"):
        wanted = amax / np.float32(LARGEST)
    return np.where(wanted > 0, wanted, np.float32(1)).astype(np.float32)


def int8_codes(values: Floats, scales: Floats) -> npt.NDArray[np.int8]:
    """`rint(x / scale)` within -127 to 127; the quotient is rounded to float32 first."""
    with np.errstate(over="ignore", under="ignore"):
        steps = np.rint(values / scales)
    codes: npt.NDArray[np.int8] = np.clip(steps, -LARGEST, LARGEST).astype(np.int8)
    return codes


def static_amax(amax: Array, size: int) -> Floats:
    """Largest magnitudes that are given: one for each of `size` rows or columns.

    Raises:
        OperandTypeError, OperandError: something else than float32 of shape (), (1,) or (size,), finite, 0 or more.
    """
    given = checked(amax, "amax", (np.float32,))
    if given.shape not in ((), (1,), (size,)):
        raise OperandError(f"amax must have shape ({size},) or (1,), got {given.shape}")
    check_finite(given, "amax")
    if (given < 0).any():
        raise OperandError(f"amax must not be negative, got {given.min()}")
    return np.broadcast_to(given.reshape(-1), (size,))


def quantize_int8(values: Array, *, axis: int, amax: Array | None = None) -> Int8Matrix:
    """INT8 with a scale for each row (`axis=0`: a token) or column (`axis=1`: an output channel) of a matrix.

    Args:
        values: (M, K) or (K, N) float32, finite.
        axis: which index has a scale of its own.
        amax: float32 magnitudes that stand for 127, in place of the largest of each row or column (static scaling): one for
            each, or a single one for all, finite, 0 or more. Larger values saturate.

    Raises:
        OperandTypeError, OperandError: something else.
    """
    given = checked(values, "values", (np.float32,), 2)
    check_finite(given, "values")
    if axis not in (0, 1):
        raise OperandError(f"axis must be 0 (rows) or 1 (columns), got {axis}")
    amax = np.abs(given).max(axis=1 - axis, initial=np.float32(0)) if amax is None else static_amax(amax, given.shape[axis])
    scales = int8_scales(amax)
    codes = int8_codes(given, scales[:, None] if axis == 0 else scales[None, :])
    return Int8Matrix(codes=codes, scales=scales, axis=axis)


# SmoothQuant ----------------------------------------------------------------------------------------------------------


def smoothing_scales(activation_amax: Array, weights: Array, *, alpha: float = 0.5) -> Floats:
    """SmoothQuant's factors: `s[k] = amax_x[k]^alpha / amax_w[k]^(1 - alpha)`, at least 1e-5; (K,) float32.

    Powers and quotient are float64, rounded once; the power is the platform's, so the last bit may be, too.

    Args:
        activation_amax: (K,) float32, the largest magnitude of each channel of a sample of activations.
        weights: (K, N) float32.
        alpha: how much of the difficulty moves to the weights, 0 to 1.

    Raises:
        OperandTypeError, OperandError: something else.

    Source: Xiao et al., SmoothQuant (arXiv 2211.10438), equation 4.
    """
    w = checked(weights, "weights", (np.float32,), 2)
    amax = checked(activation_amax, "activation_amax", (np.float32,), 1)
    check_shape(amax, "activation_amax", (w.shape[0],))
    check_finite(w, "weights")
    check_finite(amax, "activation_amax")
    if not 0 <= alpha <= 1:
        raise OperandError(f"alpha must be 0 to 1, got {alpha}")
    weight_amax = np.maximum(np.abs(w).max(axis=1, initial=np.float32(0)).astype(np.float64), _LEAST_SMOOTHING)
    factors = np.maximum(np.abs(amax).astype(np.float64) ** alpha / weight_amax ** (1 - alpha), _LEAST_SMOOTHING)
    return np.asarray(factors, dtype=np.float32)


def smooth(activations: Array, weights: Array, factors: Array) -> tuple[Floats, Floats]:
    """`x / s` and `w * s`: the same product, with the activations' outliers moved to the weights.

    Args:
        activations: (M, K) float32.
        weights: (K, N) float32.
        factors: (K,) float32, positive and finite.

    Raises:
        OperandTypeError, OperandError: something else; quotients or products that are not finite in float32.
    """
    x, w = checked(activations, "activations", (np.float32,), 2), checked(weights, "weights", (np.float32,), 2)
    s = checked(factors, "factors", (np.float32,), 1)
    check_shape(s, "factors", (w.shape[0],))
    if x.shape[1] != w.shape[0]:
        raise OperandError(f"activations of shape {x.shape} and weights of shape {w.shape} do not have the same K")
    check_positive(s, "factors")
    with np.errstate(over="ignore", under="ignore"):
        smoothed = np.asarray(x / s, dtype=np.float32), np.asarray(w * s[:, None], dtype=np.float32)
    check_finite(smoothed[0], "activations over their factors")
    check_finite(smoothed[1], "weights times their factors")
    return smoothed


# Products -------------------------------------------------------------------------------------------------------------


def check_pair(x: Int8Matrix, w: Int8Matrix) -> None:
    """Refuse operands that do not fit each other.

    Raises:
        OperandError: they do not.
    """
    if (x.axis, w.axis) != (0, 1):
        raise OperandError(f"activations have scales for rows (axis 0) and weights for columns (axis 1), got axes {x.axis} and {w.axis}")
    if x.codes.shape[1] != w.codes.shape[0]:
        raise OperandError(f"activations of shape {x.codes.shape} and weights of shape {w.codes.shape} do not have the same K")


def scaled(total: npt.NDArray[np.int32], rows: Floats, columns: Floats) -> Floats:
    """`(f32(total) * row scale) * column scale`: a conversion and two products, each rounded to nearest even."""
    with np.errstate(over="ignore", under="ignore"):
        result: Floats = (total.astype(np.float32) * rows[:, None]) * columns[None, :]
    return result


def w8a8_matmul(x: Int8Matrix, w: Int8Matrix, *, arch: str | Dots) -> Floats:
    """The product of INT8 matrices, scaled: the bits of `mmabits.kernels.triton.w8a8`.

    Args:
        x: (M, K), scales per row.
        w: (K, N), scales per column.
        arch: architecture, or its dots.

    Returns:
        (M, N) float32, as `scaled`.

    Raises:
        MmabitsError: operands that do not fit; as `mmabits.gemm`.
    """
    check_pair(x, w)
    return scaled(as_dots(arch)(x.codes, w.codes), x.scales, w.scales)


# LLM.int8() -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class MixedActivations:
    """Activations of LLM.int8(): outlier columns apart in f16, the rest in INT8.

    Raises:
        OperandTypeError, OperandError: dtypes and shapes, columns that are not there or not in ascending order.
    """

    regular: Int8Matrix
    """(M, K), zero in the outlier columns; scales from the rest of each row."""
    columns: npt.NDArray[np.int32]
    """The outlier columns, ascending."""
    outliers: npt.NDArray[np.float16]
    """(M, number of outlier columns)."""

    def __post_init__(self) -> None:
        """Check."""
        m, k = self.regular.codes.shape
        check_range(checked(self.columns, "columns", (np.int32,), 1), "columns", 0, k - 1)
        if (np.diff(self.columns) <= 0).any():
            raise OperandError(f"columns must ascend, got {self.columns.tolist()}")
        check_shape(checked(self.outliers, "outliers", (np.float16,), 2), "outliers", (m, self.columns.size))


def split_outliers(activations: Array, *, threshold: float = OUTLIER) -> MixedActivations:
    """Take the columns that hold a magnitude of at least `threshold` out of the activations, and quantize the rest by row.

    Args:
        activations: (M, K) float16, finite.
        threshold: positive.

    Raises:
        OperandTypeError, OperandError: something else.

    Source: Dettmers et al., LLM.int8() (arXiv 2208.07339), section 3.
    """
    x = checked(activations, "activations", (np.float16,), 2)
    check_finite(x, "activations")
    if not threshold > 0:
        raise OperandError(f"threshold must be positive, got {threshold}")
    is_outlier = (np.abs(x.astype(np.float32)) >= np.float32(threshold)).any(axis=0)
    columns = np.flatnonzero(is_outlier).astype(np.int32)
    rest = np.where(is_outlier, np.float16(0), x).astype(np.float32)
    return MixedActivations(regular=quantize_int8(rest, axis=0), columns=columns, outliers=np.ascontiguousarray(x[:, columns]))


def llm_int8_matmul(
    x: MixedActivations, weights: Array, quantized: Int8Matrix, *, arch: str | Dots, f16: str | Dots | None = None
) -> Floats:
    """The product of LLM.int8(): the bits of `mmabits.kernels.triton.w8a8.llm_int8_matmul`.

    The INT8 product is scaled as in `w8a8_matmul`; the outlier columns are multiplied as f16 with the rows of the unquantized
    weights into f32 accumulators that start at zero; one float32 addition joins the two.

    Args:
        x: from `split_outliers`.
        weights: (K, N) float16.
        quantized: the same weights, INT8 by column.
        arch: architecture, or its INT8 dots.
        f16: the f16 dots, where they are not those of `arch`.

    Returns:
        (M, N) float32.

    Raises:
        MmabitsError: operands that do not fit; as `mmabits.gemm`.
    """
    check_pair(x.regular, quantized)
    w = checked(weights, "weights", (np.float16,), 2)
    check_shape(w, "weights", quantized.codes.shape)
    dots = as_dots(arch)
    regular = w8a8_matmul(x.regular, quantized, arch=dots)
    if x.columns.size == 0:
        return regular
    dots16 = Dots(arch=dots.arch, require=dots.require) if f16 is None else as_dots(f16)
    with np.errstate(over="ignore", invalid="ignore"):
        result: Floats = regular + dots16(x.outliers, np.ascontiguousarray(w[x.columns]))
    return result
