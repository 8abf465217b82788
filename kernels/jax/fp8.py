"""FP8 in JAX: the scaled product, and a linear layer with e4m3 forward and e5m2 gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmabits.isa import OperandError, OperandTypeError
from mmabits.kernels.schemes.checks import check_positive
from mmabits.kernels.schemes.fp8 import BACKWARD, FORWARD, fp8_format

FP8 = ("float8_e4m3fn", "float8_e5m2")


def fp8_matmul(x: Any, x_scales: Any, w: Any, w_scales: Any) -> Any:
    """The product x w: `(f32 sum * scale of x) * scale of w`.

    Args:
        x: (M, K) float8_e4m3fn or float8_e5m2.
        x_scales: float32 of shape (1, 1) or (M, 1).
        w: (K, N), likewise.
        w_scales: float32 of shape (1, 1) or (1, N).

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: arrays that do not fit.
    """
    for operand, name in ((x, "x"), (w, "w")):
        kind = str(getattr(operand, "dtype", type(operand).__name__))
        if kind not in FP8:
            raise OperandTypeError(f"{name} must be {' or '.join(FP8)}, got {kind}")
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[0]:
        raise OperandError(f"shapes must be (M, K) and (K, N), got {x.shape} and {w.shape}")
    for scales, name, allowed in (
        (x_scales, "x_scales", ((1, 1), (x.shape[0], 1))),
        (w_scales, "w_scales", ((1, 1), (1, w.shape[1]))),
    ):
        if str(scales.dtype) != "float32":
            raise OperandTypeError(f"{name} must be float32, got {scales.dtype}")
        if tuple(scales.shape) not in allowed:
            raise OperandError(f"{name} must have shape {' or '.join(map(str, allowed))}, got {tuple(scales.shape)}")
    if 0 in (*x.shape, *w.shape):
        return jnp.zeros((x.shape[0], w.shape[1]), jnp.float32)
    sums = jax.lax.dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return (sums * x_scales) * w_scales


def quantize(values: Any, scale: Any, *, format: str = FORWARD) -> Any:
    """FP8 elements under a given scale: `round(clip(x / scale))`; the bits of `schemes.fp8.quantize(scale=...)`.

    XLA may compute x / scale otherwise where the scale is a constant of the program that is no power of two.

    Args:
        values: float32.
        scale: float32 that broadcasts, positive and finite; looked at where it is no traced value.
        format: `"e4m3"` or `"e5m2"`.

    Raises:
        OperandTypeError: another dtype.
        OperandError: another format, a scale that is not positive and finite.
    """
    if str(getattr(values, "dtype", type(values).__name__)) != "float32":
        raise OperandTypeError(f"values must be float32, got {getattr(values, 'dtype', type(values).__name__)}")
    spec = fp8_format(format)
    if not isinstance(scale, jax.core.Tracer):
        check_positive(np.asarray(scale), "scale")
    return jnp.clip(values / scale, -spec.max_finite, spec.max_finite).astype(spec.numpy_name)


@jax.custom_vjp
def fp8_linear(x: Any, w: Any, x_scale: Any, w_scale: Any, grad_scale: Any) -> Any:
    """The product x w in FP8 with static scales for each tensor: x and w in e4m3; their gradients from one in e5m2.

    Args:
        x: (M, K) float32.
        w: (K, N) float32.
        x_scale: (1, 1) float32, as all scales.
        w_scale: of w.
        grad_scale: of the gradient of the product.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: arrays that do not fit.
    """
    return fp8_matmul(quantize(x, x_scale), x_scale, quantize(w, w_scale), w_scale)


def _forward(x: Any, w: Any, x_scale: Any, w_scale: Any, grad_scale: Any) -> Any:
    left, right = quantize(x, x_scale), quantize(w, w_scale)
    return fp8_matmul(left, x_scale, right, w_scale), (left, right, x_scale, w_scale, grad_scale)


def _backward(kept: Any, grad: Any) -> Any:
    x, w, x_scale, w_scale, grad_scale = kept
    narrow = quantize(grad, grad_scale, format=BACKWARD)
    zero = jnp.zeros_like(x_scale)
    return fp8_matmul(narrow, grad_scale, w.T, w_scale), fp8_matmul(x.T, x_scale, narrow, grad_scale), zero, zero, zero


fp8_linear.defvjp(_forward, _backward)
