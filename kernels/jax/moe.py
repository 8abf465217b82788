"""A mixture of INT8 experts in JAX: `lax.ragged_dot` over rows sorted by expert."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmabits.kernels.jax.w8a8 import check_array
from mmabits.kernels.schemes.checks import check_range


def moe_w8a8(x: Any, x_scales: Any, w: Any, w_scales: Any, weights: Any, experts: Any) -> Any:
    """Each token's rows, `(f32(sum) * scale of the token) * scale of the channel`, weighted and added in the order of its choices.

    Args:
        x: (tokens, K) int8.
        x_scales: (tokens,) float32.
        w: (experts, K, N) int8.
        w_scales: (experts, N) float32.
        weights: (tokens, top_k) float32 routing weights.
        experts: (tokens, top_k) int32, 0 to the number of experts less one; -1: a choice that no expert takes, which gives +0. Looked at
            where they are no traced values.

    Returns:
        (tokens, N) float32.

    Raises:
        OperandTypeError, OperandError: arrays that do not fit, experts that are not there.
    """
    check_array(x, "x", "int8", (None, None))
    check_array(w, "w", "int8", (None, x.shape[1], None))
    check_array(x_scales, "x_scales", "float32", (x.shape[0],))
    check_array(w_scales, "w_scales", "float32", (w.shape[0], w.shape[2]))
    check_array(experts, "experts", "int32", (x.shape[0], None))
    check_array(weights, "weights", "float32", experts.shape)
    (tokens, top_k), n = experts.shape, w.shape[2]
    if not isinstance(experts, jax.core.Tracer):
        check_range(np.asarray(experts), "experts", -1, w.shape[0] - 1)
    if 0 in (tokens, top_k, n, x.shape[1]):
        return jnp.zeros((tokens, n), jnp.float32)
    chosen = jnp.maximum(experts.reshape(-1), 0)
    order = jnp.argsort(chosen, stable=True)
    sizes = jnp.bincount(chosen, length=w.shape[0]).astype(jnp.int32)
    sums = jax.lax.ragged_dot(x[order // top_k], w, sizes, preferred_element_type=jnp.int32)
    rows = (sums.astype(jnp.float32) * x_scales[order // top_k][:, None]) * w_scales[chosen[order]]
    back = jnp.zeros_like(rows).at[order].set(rows)
    # XLA fuses products and sums, which would round once in place of twice: between them is a sum of integers, with a zero unknown to it.
    zero = jnp.minimum(order[0], 0)
    bits = jax.lax.bitcast_convert_type(back.reshape(tokens, top_k, n) * weights[:, :, None], jnp.int32) + zero
    weighted = jnp.where((experts >= 0)[:, :, None], jax.lax.bitcast_convert_type(bits, jnp.float32), jnp.float32(0))
    total = weighted[:, 0]
    for place in range(1, top_k):
        total = total + weighted[:, place]
    return total
