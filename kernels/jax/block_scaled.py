"""MXFP8 and NVFP4 in JAX, by `jax.nn.scaled_matmul`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mmabits.isa import OperandError, OperandTypeError


def _check(a: Any, a_scales: Any, b: Any, b_scales: Any, kinds: tuple[str, ...], scale: str, block: int) -> None:
    for operand, scales, name in ((a, a_scales, "a"), (b, b_scales, "b")):
        kind = str(getattr(operand, "dtype", type(operand).__name__))
        if kind not in kinds:
            raise OperandTypeError(f"{name} must be {' or '.join(kinds)}, got {kind}")
        if operand.ndim != 2 or operand.shape[1] % block:
            raise OperandError(f"{name} must be a matrix whose K is a multiple of the block size {block}, got shape {operand.shape}")
        found = str(getattr(scales, "dtype", type(scales).__name__))
        if found != scale:
            raise OperandTypeError(f"{name}_scales must be {scale}, got {found}")
        if tuple(scales.shape) != (operand.shape[0], operand.shape[1] // block):
            raise OperandError(f"{name}_scales must have shape {(operand.shape[0], operand.shape[1] // block)}, got {tuple(scales.shape)}")
    if a.shape[1] != b.shape[1]:
        raise OperandError(f"a has K = {a.shape[1]} and b has K = {b.shape[1]}; they must agree")


def _product(a: Any, a_scales: Any, b: Any, b_scales: Any) -> Any:
    if 0 in (*a.shape, *b.shape):
        return jnp.zeros((a.shape[0], b.shape[0]), jnp.float32)
    return jax.nn.scaled_matmul(a[None], b[None], a_scales[None], b_scales[None])[0]


def mxfp8_matmul(a: Any, a_scales: Any, b: Any, b_scales: Any) -> Any:
    """The product a b^T.

    Args:
        a: (M, K) float8_e4m3fn or float8_e5m2, K a multiple of 32.
        a_scales: (M, K / 32) float8_e8m0fnu.
        b: (N, K), likewise; XLA has no product of e5m2 by e5m2.
        b_scales: (N, K / 32).

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: arrays that do not fit.
    """
    _check(a, a_scales, b, b_scales, ("float8_e4m3fn", "float8_e5m2"), "float8_e8m0fnu", 32)
    return _product(a, a_scales, b, b_scales)


def nvfp4_matmul(a: Any, a_scales: Any, a_scale: Any, b: Any, b_scales: Any, b_scale: Any) -> Any:
    """The product a b^T times the scales of both tensors.

    Args:
        a: (M, K) float4_e2m1fn, K a multiple of 16.
        a_scales: (M, K / 16) float8_e4m3fn.
        a_scale: float32, of shape () or (1, 1).
        b: (N, K).
        b_scales: (N, K / 16).
        b_scale: as `a_scale`.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: arrays that do not fit.
    """
    _check(a, a_scales, b, b_scales, ("float4_e2m1fn",), "float8_e4m3fn", 16)
    return _product(a, a_scales, b, b_scales) * (a_scale * b_scale)
