"""AWQ: per-channel scales that keep the weights of strong activations, found by a grid search over alpha."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandError
from mmabits.kernels.schemes.checks import Array, check_finite, check_multiple, checked
from mmabits.kernels.schemes.w4a16 import GROUP, Int4Weights, quantize_int4

GRID: Final = 20
_LEAST: Final = 1e-4


@dataclass(frozen=True, kw_only=True, eq=False)
class AwqResult:
    """What the search found: x w is computed as (x / channel_scales) times `weights`."""

    weights: Int4Weights
    """Quantized, of w * channel_scales[:, None]."""
    channel_scales: npt.NDArray[np.float32]
    """(K,). A model folds their reciprocals into what makes x."""
    alpha: float
    """The exponent that won."""
    loss: float
    """Mean squared error of the layer's output with it."""
    losses: tuple[float, ...]
    """Likewise of every alpha of the grid; the first is that of plain rounding."""


def channel_scales(magnitudes: Array, alpha: float) -> npt.NDArray[np.float32]:
    """`s = max(magnitude^alpha, 1e-4)`, divided by the geometric mean of its largest and smallest; (K,) float32.

    Args:
        magnitudes: (K,) mean magnitude of each channel of the activations, finite, 0 or more.
        alpha: 0 (all ones) to 1.

    Raises:
        OperandError: something else.
    """
    check_finite(magnitudes, "magnitudes")
    if (magnitudes < 0).any() or not 0 <= alpha <= 1:
        raise OperandError(f"magnitudes must not be negative and alpha 0 to 1, got {magnitudes.min()} and {alpha}")
    powers = np.maximum(magnitudes.astype(np.float64) ** alpha, _LEAST)
    return np.asarray(powers / np.sqrt(powers.max() * powers.min()), dtype=np.float32)


def awq_quantize(weights: Array, activations: Array, *, group: int = GROUP, symmetric: bool = False, grid: int = GRID) -> AwqResult:
    """Quantize weights with the channel scales, among `grid` values of alpha, that change the layer's output least.

    For alpha = i / grid, i from 0 to grid - 1: s = `channel_scales`; w' = dequantized(quantize_int4(w * s)) / s; the loss is the
    mean of (x w - x w')^2. The first least loss wins. The products are NumPy's in float64: calibration is no part of what the
    tensor cores compute.

    Args:
        weights: (K, N) float32.
        activations: (T, K) float32, a sample of what the layer gets.
        group: as for `quantize_int4`.
        symmetric: likewise.
        grid: how many values of alpha.

    Raises:
        OperandTypeError: another dtype.
        OperandError: shapes that do not fit, infinities or NaN, a grid below 1.

    Source: Lin et al., AWQ (arXiv 2306.00978), section 3.2, equation 5, without its search for clipping.
    """
    w, x = checked(weights, "weights", (np.float32,), 2), checked(activations, "activations", (np.float32,), 2)
    if x.shape[1] != w.shape[0] or x.shape[0] == 0:
        raise OperandError(f"activations must have shape (T, {w.shape[0]}) for weights of shape {w.shape}, got {x.shape}")
    if grid < 1:
        raise OperandError(f"grid must be at least 1, got {grid}")
    check_multiple(w.shape[0], group, "K of the weights", "the group size")
    check_finite(w, "weights")
    check_finite(x, "activations")
    if w.size == 0:  # nothing to lose, whatever the scales
        plain = quantize_int4(w, group=group, symmetric=symmetric)
        return AwqResult(weights=plain, channel_scales=np.ones(w.shape[0], np.float32), alpha=0.0, loss=0.0, losses=(0.0,) * grid)
    exact_x = x.astype(np.float64)
    wanted = exact_x @ w.astype(np.float64)
    magnitudes = np.abs(exact_x).mean(axis=0)
    losses: list[float] = []
    best: tuple[Int4Weights, npt.NDArray[np.float32], float] | None = None
    for alpha in np.arange(grid) / grid:
        scales = channel_scales(magnitudes, float(alpha))
        quantized = quantize_int4(w * scales[:, None], group=group, symmetric=symmetric)
        restored = quantized.dequantize().astype(np.float64) / scales.astype(np.float64)[:, None]
        losses.append(float(np.mean((exact_x @ restored - wanted) ** 2)))
        if best is None or losses[-1] < min(losses[:-1]):
            best = quantized, scales, float(alpha)
    assert best is not None
    return AwqResult(weights=best[0], channel_scales=best[1], alpha=best[2], loss=min(losses), losses=tuple(losses))
