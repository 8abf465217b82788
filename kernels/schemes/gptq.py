"""GPTQ: weights quantized one element of K after the other, the error of each made up for in those still to come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandError
from mmabits.kernels.schemes.checks import Array, check_finite, check_multiple, check_shape, checked
from mmabits.kernels.schemes.w4a16 import GROUP, Int4Weights, group_parameters, round_to_codes

BLOCK: Final = 128
DAMPING: Final = 0.01


def hessian(activations: Array) -> npt.NDArray[np.float64]:
    """2 / T * X^T X of a sample of activations: (K, K).

    Args:
        activations: (T, K) float32, finite.

    Raises:
        OperandTypeError, OperandError: something else.
    """
    x = checked(activations, "activations", (np.float32,), 2)
    check_finite(x, "activations")
    if x.shape[0] == 0:
        raise OperandError("activations must have at least one row, got none")
    exact = x.astype(np.float64)
    return np.asarray(exact.T @ exact * (2.0 / x.shape[0]))


@dataclass(kw_only=True, eq=False)
class _GptqState:
    """The weights that are left, and what was decided."""

    left: npt.NDArray[np.float64]
    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float16]
    zeros: npt.NDArray[np.uint8]


def inverse_factor(h: npt.NDArray[np.float64], damping: float) -> npt.NDArray[np.float64]:
    """The upper Cholesky factor U of the inverse, U^T U = (h + damping * mean(diag h) * 1)^-1, after damping.

    Raises:
        OperandError: the damped Hessian is not positive definite.
    """
    damped = h + np.eye(len(h)) * (damping * np.mean(np.diag(h)))
    try:
        np.linalg.cholesky(damped)
        factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    except np.linalg.LinAlgError:
        raise OperandError(f"the Hessian is not positive definite with a damping of {damping}; give more damping") from None
    return np.asarray(factor)


def gptq_quantize(
    weights: Array, h: Array, *, group: int = GROUP, symmetric: bool = False, act_order: bool = False, damping: float = DAMPING,
    block: int = BLOCK,
) -> Int4Weights:  # fmt: skip
    """Quantize weights by GPTQ.

    Elements of K that no activation reaches (zero on the diagonal of the Hessian) have their weights set to zero and their
    diagonal to 1. With U = `inverse_factor`, for each k in order: at the first of a group its scale and zero point are taken
    from the weights as they are by then (`group_parameters`); q = the nearest code's value; then for every j > k,
    w[j] -= (w[k] - q) / U[k, k] * U[k, j]. Within `block` elements this is done at once, for the rest block by block, which is
    faster and the same but for rounding. All of it is float64, save that the values of codes are (code - zero) * scale exactly
    and that `group_parameters` and `round_to_codes` see the weights rounded to float32.

    Args:
        weights: (K, N) float32, finite.
        h: (K, K) float64, symmetric: `hessian`.
        group: elements of K with one scale; K must be a multiple.
        symmetric: whether zero points are all 8.
        act_order: quantize in descending order of the Hessian's diagonal, groups being formed in that order (`desc_act`).
        damping: of the mean of the diagonal, added to it.
        block: how many elements of K are finished before the rest is updated.

    Returns:
        Weights, with a `g_idx` where `act_order` is set.

    Raises:
        OperandTypeError, OperandError: operands that do not fit; a Hessian that is not positive definite.

    Source: Frantar et al., GPTQ (arXiv 2210.17323), algorithm 1.
    """
    w = checked(weights, "weights", (np.float32,), 2)
    k = w.shape[0]
    curvature = checked(h, "the Hessian", (np.float64,), 2)
    check_shape(curvature, "the Hessian", (k, k))
    check_multiple(k, group, "K of the weights", "the group size")
    check_finite(w, "weights")
    check_finite(curvature, "the Hessian")
    if block < 1 or damping < 0:
        raise OperandError(f"block must be positive and damping not negative, got {block} and {damping}")
    order = np.argsort(-np.diag(curvature), kind="stable") if act_order else np.arange(k)
    curvature = curvature[np.ix_(order, order)]
    left = w.astype(np.float64)[order]
    dead = np.diag(curvature) == 0
    curvature[dead, dead] = 1.0
    left[dead] = 0.0
    factor = inverse_factor(curvature, damping) if k else curvature
    groups = k // group
    state = _GptqState(
        left=left, codes=np.zeros(w.shape, np.uint8), scales=np.ones((groups, w.shape[1]), np.float16),
        zeros=np.zeros((groups, w.shape[1]), np.uint8),
    )  # fmt: skip
    for start in range(0, k, block):
        _quantize_block(state, factor, start, min(start + block, k), group, symmetric)
    codes = np.empty_like(state.codes)
    codes[order] = state.codes
    g_idx = None
    if act_order:
        g_idx = np.empty(k, np.int32)
        g_idx[order] = np.arange(k, dtype=np.int32) // np.int32(group)
    return Int4Weights(codes=codes, scales=state.scales, zeros=state.zeros, group=group, g_idx=g_idx)


def _quantize_block(state: _GptqState, factor: npt.NDArray[np.float64], start: int, end: int, group: int, symmetric: bool) -> None:
    errors = np.zeros((end - start, state.left.shape[1]))
    for k in range(start, end):
        g = k // group
        if k % group == 0:
            # What errors of this block do to the rest of a group that goes past its end is not in `left` yet.
            values = state.left[k : k + group].copy()
            beyond = max(0, k + group - end)
            if beyond:
                values[end - k :] -= factor[start:k, end : end + beyond].T @ errors[: k - start]
            state.scales[g], state.zeros[g] = group_parameters(values.astype(np.float32), symmetric=symmetric)
        state.codes[k] = round_to_codes(state.left[k].astype(np.float32), state.scales[g], state.zeros[g])
        steps = state.codes[k].astype(np.float64) - state.zeros[g].astype(np.float64)
        errors[k - start] = (state.left[k] - steps * state.scales[g].astype(np.float64)) / factor[k, k]
        state.left[k + 1 : end] -= factor[k, k + 1 : end, None] * errors[k - start]
    state.left[end:] -= factor[start:end, end:].T @ errors
