"""W8A8, with zero points too, LLM.int8(), W4A8 and W4A4 in JAX: `lax.dot_general` on int8, scaled in float32."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmabits.isa import OperandError, OperandTypeError
from mmabits.kernels.schemes.asymmetric import check_sums
from mmabits.kernels.schemes.checks import check_range


def check_array(array: Any, name: str, kind: str, shape: tuple[int | None, ...]) -> None:
    """Refuse another type or shape.

    Raises:
        OperandTypeError, OperandError: it has one.
    """
    found = str(getattr(array, "dtype", type(array).__name__))
    if found != kind:
        raise OperandTypeError(f"{name} must be {kind}, got {found}")
    if array.ndim != len(shape) or any(want is not None and want != got for want, got in zip(shape, array.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise OperandError(f"{name} must have shape ({wanted}), got {array.shape}")


def int8_sums(x: Any, w: Any) -> Any:
    """The int32 sums of (M, K) by (K, N) int8."""
    if 0 in (*x.shape, *w.shape):
        return jnp.zeros((x.shape[0], w.shape[1]), jnp.int32)
    return jax.lax.dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)


def scaled(total: Any, rows: Any, columns: Any) -> Any:
    """`(f32(total) * row scale) * column scale`."""
    return (total.astype(jnp.float32) * rows[:, None]) * columns[None, :]


def w8a8_matmul(x: Any, x_scales: Any, w: Any, w_scales: Any) -> Any:
    """The product of INT8 matrices with a scale for each row of x and each column of w.

    Args:
        x: (M, K) int8.
        x_scales: (M,) float32.
        w: (K, N) int8.
        w_scales: (N,) float32.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: arrays that do not fit.
    """
    check_array(x, "x", "int8", (None, None))
    check_array(w, "w", "int8", (x.shape[1], None))
    check_array(x_scales, "x_scales", "float32", (x.shape[0],))
    check_array(w_scales, "w_scales", "float32", (w.shape[1],))
    return scaled(int8_sums(x, w), x_scales, w_scales)


def llm_int8_matmul(x: Any, x_scales: Any, w: Any, w_scales: Any, outliers: Any, columns: Any, w16: Any) -> Any:
    """LLM.int8(): INT8 where the activations are ordinary, f16 in their outlier columns.

    Args:
        x: (M, K) int8, zero in the outlier columns.
        x_scales: (M,) float32.
        w: (K, N) int8.
        w_scales: (N,) float32.
        outliers: (M, O) float16.
        columns: (O,) int32, 0 to K - 1; looked at where they are no traced values.
        w16: (K, N) float16.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: arrays that do not fit, columns that are not there.
    """
    regular = w8a8_matmul(x, x_scales, w, w_scales)
    check_array(outliers, "outliers", "float16", (x.shape[0], None))
    check_array(columns, "columns", "int32", (outliers.shape[1],))
    check_array(w16, "w16", "float16", w.shape)
    if not isinstance(columns, jax.core.Tracer):
        check_range(np.asarray(columns), "columns", 0, w.shape[0] - 1)
    if 0 in (*outliers.shape, w.shape[1]):
        return regular
    return regular + jnp.dot(outliers, w16[columns], preferred_element_type=jnp.float32)


def w4a8_matmul(x: Any, x_scales: Any, words: Any, output_scales: Any, group_scales: Any = None) -> Any:
    """INT8 activations times packed INT4 weights, which become INT8 first.

    Args:
        x: (M, K) int8.
        x_scales: (M,) float32.
        words: (K / 8, N) int32, `W4A8Weights.pack`.
        output_scales: (N,) float32, `W4A8Weights.output_scales`.
        group_scales: (K / group, N) float16; None: codes are shifted by four bits.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: arrays that do not fit.
    """
    check_array(x, "x", "int8", (None, None))
    k = x.shape[1]
    if k % 8:
        raise OperandError(f"K must be a multiple of 8, the codes of a word, got {k}")
    check_array(words, "words", "int32", (k // 8, None))
    n = words.shape[1]
    check_array(x_scales, "x_scales", "float32", (x.shape[0],))
    check_array(output_scales, "output_scales", "float32", (n,))
    shift = 28 - (jnp.arange(k, dtype=jnp.int32)[:, None] & 7) * 4
    codes = (jnp.repeat(words, 8, axis=0) << shift) >> 28
    if group_scales is None:
        w = (codes << 4).astype(jnp.int8)
    else:
        check_array(group_scales, "group_scales", "float16", (None, n))
        groups = group_scales.shape[0]
        if k and (groups == 0 or k % groups):
            raise OperandError(f"K must be a multiple of the number of groups {groups}, got {k}")
        # The product must be rounded to f16 before it is rounded to an integer: rint, unlike adding 1536, cannot be fused with it.
        product = codes.astype(jnp.float16) * jnp.repeat(group_scales, k // max(groups, 1), axis=0)
        w = jnp.rint(jax.lax.reduce_precision(product, 5, 10)).astype(jnp.int8)
    return scaled(int8_sums(x, w), x_scales, output_scales)


def asymmetric_matmul(x: Any, x_scales: Any, x_zeros: Any, w: Any, w_scales: Any, w_zeros: Any = None) -> Any:
    """The product of INT8 matrices with zero points, multiplied as s8 and corrected in int32.

    Args:
        x: (M, K) uint8 or int8.
        x_scales: (M,) float32.
        x_zeros: (M,) int32.
        w: (K, N) int8.
        w_scales: (N,) float32.
        w_zeros: (N,) int32; None: the weights are symmetric.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: arrays that do not fit, a K whose sums may leave s32.
    """
    is_unsigned = str(getattr(x, "dtype", "")) == "uint8"
    check_array(x, "x", "uint8" if is_unsigned else "int8", (None, None))
    m, k = x.shape
    check_array(w, "w", "int8", (k, None))
    n = w.shape[1]
    for array, name, kind, size in (
        (x_scales, "x_scales", "float32", m), (x_zeros, "x_zeros", "int32", m), (w_scales, "w_scales", "float32", n),
        *(() if w_zeros is None else ((w_zeros, "w_zeros", "int32", n),)),
    ):  # fmt: skip
        check_array(array, name, kind, (size,))
    check_sums(k, w_zeros is not None)
    zeros = jnp.asarray(x_zeros)
    if is_unsigned:
        x, zeros = jax.lax.bitcast_convert_type(jnp.asarray(x) ^ jnp.uint8(128), jnp.int8), zeros - 128
    total = int8_sums(x, w) - zeros[:, None] * jnp.sum(jnp.asarray(w), axis=0, dtype=jnp.int32)[None, :]
    if w_zeros is not None:
        total = total - (jnp.sum(x, axis=1, dtype=jnp.int32) - k * zeros)[:, None] * jnp.asarray(w_zeros)[None, :]
    return scaled(total, x_scales, w_scales)


def w4a4_matmul(x: Any, x_scales: Any, w: Any, w_scales: Any) -> Any:
    """The product x w^T of packed INT4 matrices, which become INT8 first.

    Args:
        x: (M, K / 2) uint8, `schemes.w4a4.Int4Matrix.pack`.
        x_scales: (M,) float32.
        w: (N, K / 2) uint8, likewise.
        w_scales: (N,) float32.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: arrays that do not fit.
    """
    check_array(x, "x", "uint8", (None, None))
    check_array(w, "w", "uint8", (None, x.shape[1]))
    check_array(x_scales, "x_scales", "float32", (x.shape[0],))
    check_array(w_scales, "w_scales", "float32", (w.shape[0],))
    left, right = (_unpacked_int4(jnp.asarray(each)) for each in (x, w))
    return scaled(int8_sums(left, right.T), x_scales, w_scales)


def _unpacked_int4(packed: Any) -> Any:
    """Two codes out of each byte along rows, the low nibble first."""
    nibbles = jnp.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], 2 * packed.shape[1]).astype(jnp.int32)
    return ((nibbles << 28) >> 28).astype(jnp.int8)
