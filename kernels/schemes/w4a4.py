"""W4A4: INT4 activations and weights, multiplied as s4 where tensor cores have that, and as s8 elsewhere: the same integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandError, architecture, nearest
from mmabits.kernels.schemes.checks import Array, check_finite, check_multiple, check_range, check_shape, checked
from mmabits.kernels.schemes.dots import Dots, as_dots
from mmabits.kernels.schemes.w8a8 import Floats, scaled, static_amax

LARGEST: Final = 7
"""Codes are -7 to 7 as they are made here; -8 may be in other people's."""
WAYS: Final = ("s4", "s8")
LAST_S4: Final = 89
"""The last compute capability whose tensor cores multiply s4. ptxas makes `IMMA.16864.S4.S4` of `mma.m16n8k64.s4` up to sm_89, and from
sm_90 on two `IMMA.16832.S8.S8`, their operands unpacked."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Int4Matrix:
    """An INT4 matrix with a scale for each row (activations, per token) or each column (weights, per output channel).

    Raises:
        OperandTypeError, OperandError: dtypes and shapes, codes outside -8 to 7, scales that are not finite.
    """

    codes: npt.NDArray[np.int8]
    """(M, K) or (K, N), -8 to 7."""
    scales: Floats
    """(M,) or (N,), finite."""
    axis: int
    """The axis that has a scale for each index: 0 for activations, 1 for weights."""

    def __post_init__(self) -> None:
        """Check."""
        checked(self.codes, "codes", (np.int8,), 2)
        check_range(self.codes, "INT4 codes", -8, 7)
        checked(self.scales, "scales", (np.float32,), 1)
        if self.axis not in (0, 1):
            raise OperandError(f"axis must be 0 (rows) or 1 (columns), got {self.axis}")
        check_shape(self.scales, "scales", (self.codes.shape[self.axis],))
        check_finite(self.scales, "scales")

    def dequantize(self) -> Floats:
        """Code times scale, rounded once to float32."""
        scales = self.scales[:, None] if self.axis == 0 else self.scales[None, :]
        with np.errstate(under="ignore"):
            return np.asarray(self.codes.astype(np.float32) * scales)

    def pack(self) -> npt.NDArray[np.uint8]:
        """Two codes of neighbours in K to a byte, the lower K in the low nibble: (M, K / 2), or (N, K / 2), as libraries store weights.

        Raises:
            OperandError: an odd K.
        """
        rows = self.codes if self.axis == 0 else self.codes.T
        check_multiple(rows.shape[1], 2, "K", "the codes of a byte,")
        nibbles = np.ascontiguousarray(rows).view(np.uint8) & np.uint8(15)
        return np.ascontiguousarray(nibbles[:, ::2] | nibbles[:, 1::2] << np.uint8(4))


def unpack_codes(packed: npt.NDArray[np.uint8], *, axis: int) -> npt.NDArray[np.int8]:
    """The codes of bytes that `Int4Matrix.pack` made.

    Args:
        packed: (M, K / 2) or (N, K / 2) uint8.
        axis: of the matrix.

    Raises:
        OperandTypeError, OperandError: something else.
    """
    given = checked(packed, "packed", (np.uint8,), 2)
    if axis not in (0, 1):
        raise OperandError(f"axis must be 0 (rows) or 1 (columns), got {axis}")
    nibbles = np.stack([given & np.uint8(15), given >> np.uint8(4)], axis=-1).reshape(given.shape[0], -1).view(np.int8)
    codes = np.where(nibbles > 7, nibbles - np.int8(16), nibbles).astype(np.int8)
    return np.ascontiguousarray(codes if axis == 0 else codes.T)


def quantize_int4_symmetric(values: Array, *, axis: int, clip: float = 1.0, amax: Array | None = None) -> Int4Matrix:
    """INT4 with a scale for each row (`axis=0`: a token) or column (`axis=1`: an output channel) of a matrix.

    `scale = (amax * clip) / 7`, 1 where that is zero; code = `rint(x / scale)` within -7 to 7. Single float32 operations.

    Args:
        values: (M, K) or (K, N) float32, finite.
        axis: which index has a scale of its own.
        clip: the part of the largest magnitude that stands for 7, above 0 to 1: QuaRot has 0.9 for activations.
        amax: float32 magnitudes in place of the largest of each row or column (static scaling): one for each, or a single one for all,
            finite, 0 or more. Larger values saturate.

    Raises:
        OperandTypeError, OperandError: something else.

    Source: Ashkboos et al., QuaRot (arXiv 2404.00456), without its rotations, which `nvfp4.hadamard` does.
    """
    given = checked(values, "values", (np.float32,), 2)
    check_finite(given, "values")
    if axis not in (0, 1):
        raise OperandError(f"axis must be 0 (rows) or 1 (columns), got {axis}")
    if isinstance(clip, bool) or not isinstance(clip, (int, float, np.floating)) or not 0 < clip <= 1:
        raise OperandError(f"clip must be a number above 0 and at most 1, got {clip!r}")
    amax = np.abs(given).max(axis=1 - axis, initial=np.float32(0)) if amax is None else static_amax(amax, given.shape[axis])
    with np.errstate(under="ignore", over="ignore"):
        wanted = (amax * np.float32(clip)) / np.float32(LARGEST)
        scales = np.where(wanted > 0, wanted, np.float32(1)).astype(np.float32)
        steps = np.rint(given / (scales[:, None] if axis == 0 else scales[None, :]))
    return Int4Matrix(codes=np.clip(steps, -LARGEST, LARGEST).astype(np.int8), scales=scales, axis=axis)


def w4a4_matmul(x: Int4Matrix, w: Int4Matrix, *, arch: str | Dots, through: str | None = None) -> Floats:
    """The product of INT4 matrices, scaled: the bits of `mmabits.kernels.triton.w4a4`.

    Args:
        x: (M, K), scales per row.
        w: (K, N), scales per column.
        arch: architecture, or its dots.
        through: `"s4"` or `"s8"` instructions; None: s4 up to compute capability 8.9, s8 from 9.0 on. Sums are exact either way.

    Returns:
        (M, N) float32: `(f32(sum) * row scale) * column scale`.

    Raises:
        MmabitsError: operands that do not fit; as `mmabits.gemm`.
    """
    if (x.axis, w.axis) != (0, 1):
        raise OperandError(f"activations have scales for rows (axis 0) and weights for columns (axis 1), got axes {x.axis} and {w.axis}")
    if x.codes.shape[1] != w.codes.shape[0]:
        raise OperandError(f"activations of shape {x.codes.shape} and weights of shape {w.codes.shape} do not have the same K")
    if through is not None and through not in WAYS:
        raise OperandError(f"unknown way {through!r}{nearest(str(through), WAYS)}; known: {', '.join(WAYS)}")
    dots = as_dots(arch)
    if through is None:
        through = "s4" if architecture(dots.arch).capability_number <= LAST_S4 else "s8"
    kind: Any = ml_dtypes.int4 if through == "s4" else np.int8
    return scaled(dots(x.codes.astype(kind), w.codes.astype(kind)), x.scales, w.scales)
