"""FP8 in tiles in JAX, as in DeepSeek-V3: 128 of K by `lax.dot_general`, added in float32 by fused multiply-adds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmabits.isa import OperandError
from mmabits.kernels.jax.fused import fma
from mmabits.kernels.jax.w8a8 import check_array
from mmabits.kernels.schemes.fp8_blockwise import BLOCK

LEAST = 2.0**-40
"""The smallest scale."""


def fp8_blockwise_matmul(x: Any, x_scales: Any, w: Any, w_scales: Any) -> Any:
    """The product x w^T of matrices in tiles: the bits of `schemes.fp8_blockwise.fp8_blockwise_matmul`.

    Args:
        x: (M, K) float8_e4m3fn, K a multiple of 128.
        x_scales: (M, K / 128) float32, at least 2^-40 as those of w, or 0: what is smaller `fused.fma` does not take. Under `jit` nobody
            looks.
        w: (N, K) float8_e4m3fn.
        w_scales: (ceil(N / 128), K / 128) float32.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: arrays that do not fit.
    """
    check_array(x, "x", "float8_e4m3fn", (None, None))
    m, k = x.shape
    check_array(w, "w", "float8_e4m3fn", (None, k))
    n = w.shape[0]
    if k % BLOCK:
        raise OperandError(f"K must be a multiple of the block size {BLOCK}, got {k}")
    check_array(x_scales, "x_scales", "float32", (m, k // BLOCK))
    check_array(w_scales, "w_scales", "float32", (-(-n // BLOCK), k // BLOCK))
    for name, scales in (("x_scales", x_scales), ("w_scales", w_scales)):
        _check_scales(scales, name)
    total = jnp.zeros((m, n), jnp.float32)
    if 0 in (m, n, k):
        return total
    columns = jnp.repeat(jnp.asarray(w_scales), BLOCK, axis=0)[:n]
    for block, start in enumerate(range(0, k, BLOCK)):
        part = slice(start, start + BLOCK)
        sums = jax.lax.dot_general(x[:, part], w[:, part], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        scale = jnp.asarray(x_scales)[:, block, None] * columns[None, :, block]
        total = fma(sums, scale, total)
    return total


def _check_scales(scales: Any, name: str) -> None:
    if isinstance(scales, jax.core.Tracer):
        return
    size = np.abs(np.asarray(scales))
    if ((size > 0) & (size < LEAST)).any():
        raise OperandError(f"{name} must be 0 or at least 2^-40, got {float(size[size > 0].min())}")
