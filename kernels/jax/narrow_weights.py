"""W8A16, and W4A8 with FP8 activations, in JAX: weights are unpacked and dequantized, `lax.dot_general` multiplies."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mmabits.isa import OperandError, OperandTypeError
from mmabits.kernels.jax.fused import fma
from mmabits.kernels.jax.w8a8 import check_array
from mmabits.kernels.schemes.w8a16 import KINDS


def _product(x: Any, w: Any) -> Any:
    return jax.lax.dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _unpacked(words: Any, bits: int) -> Any:
    """Codes of `bits` bits along rows, the lowest first, in the upper bits of int32."""
    share = 32 // bits
    place = jnp.arange(words.shape[0] * share, dtype=jnp.int32)[:, None] % share
    return jnp.repeat(words, share, axis=0) << (32 - bits - bits * place)


def _group(k: int, groups: int, grouped: bool) -> int:
    """Elements of K with a scale; 0: all."""
    if not grouped:
        return 0
    if groups == 0 or k % groups:
        raise OperandError(f"K must be a multiple of the number of groups {groups}, got {k}")
    return k // groups


def w8a16_matmul(x: Any, words: Any, scales: Any, *, kind: str = "int8", grouped: bool = False) -> Any:
    """Activations times 8-bit weights: the bits of `schemes.w8a16.w8a16_matmul`.

    Args:
        x: (M, K) float16 or bfloat16.
        words: (K / 4, N) int32, `schemes.w8a16.Weights8.pack`.
        scales: (K / group, N) float16, or (1, N).
        kind: what the bytes are, `"int8"` or `"e4m3"`.
        grouped: whether the scales are those of groups of K, which weights are multiplied by; else of channels, for the sums.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: arrays that do not fit.
    """
    if kind not in KINDS:
        raise OperandError(f"kinds of 8-bit weights are {', '.join(KINDS)}, got {kind!r}")
    found = str(getattr(x, "dtype", type(x).__name__))
    if found not in ("float16", "bfloat16"):
        raise OperandTypeError(f"x must be float16 or bfloat16, got {found}")
    check_array(x, "x", found, (None, None))
    m, k = x.shape
    if k % 4:
        raise OperandError(f"K must be a multiple of 4, the codes of a word, got {k}")
    check_array(words, "words", "int32", (k // 4, None))
    n = words.shape[1]
    check_array(scales, "scales", "float16", (None if grouped else 1, n))
    if 0 in (m, n, k):
        return jnp.zeros((m, n), jnp.float32)
    group = _group(k, scales.shape[0], grouped)
    upper = _unpacked(jnp.asarray(words), 8)
    if kind == "int8":
        codes = (upper >> 24).astype(jnp.float32)
    else:
        codes = jax.lax.bitcast_convert_type((upper >> 24).astype(jnp.uint8), jnp.float8_e4m3fn).astype(jnp.float32)
    if not group:
        return _product(x, codes.astype(x.dtype)) * jnp.asarray(scales).astype(jnp.float32)
    # The product is exact in float32, and rounded once.
    by = jnp.repeat(jnp.asarray(scales).astype(x.dtype).astype(jnp.float32), group, axis=0)
    return _product(x, (codes * by).astype(x.dtype))


def w4a8_fp8_matmul(x: Any, x_scales: Any, words: Any, scales: Any, *, grouped: bool = True) -> Any:
    """e4m3 activations times packed INT4 weights: the bits of `schemes.w4a8_fp8.w4a8_fp8_matmul`.

    Args:
        x: (M, K) float8_e4m3fn.
        x_scales: (M,) float32.
        words: (K / 8, N) int32, `W4A8Fp8Weights.pack`.
        scales: (K / group, N) or (1, N) float16, `W4A8Fp8Weights.kernel_scales`.
        grouped: whether the scales are those of groups of K.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: arrays that do not fit.
    """
    check_array(x, "x", "float8_e4m3fn", (None, None))
    m, k = x.shape
    if k % 8:
        raise OperandError(f"K must be a multiple of 8, the codes of a word, got {k}")
    check_array(words, "words", "int32", (k // 8, None))
    n = words.shape[1]
    check_array(x_scales, "x_scales", "float32", (m,))
    check_array(scales, "scales", "float16", (None if grouped else 1, n))
    if 0 in (m, n, k):
        return jnp.zeros((m, n), jnp.float32)
    group = _group(k, scales.shape[0], grouped)
    codes = _unpacked(jnp.asarray(words), 4) >> 28
    # Sign and magnitude of a code are the bits of an e4m3, which is a 512th of it.
    w = jax.lax.bitcast_convert_type(jnp.where(codes < 0, 128 - codes, codes).astype(jnp.uint8), jnp.float8_e4m3fn)
    rows, wide = jnp.asarray(x_scales)[:, None], jnp.asarray(scales).astype(jnp.float32)
    if not group:
        return (_product(x, w) * rows) * wide
    total = jnp.zeros((m, n), jnp.float32)
    for block, start in enumerate(range(0, k, group)):
        sums = _product(x[:, start : start + group], w[start : start + group])
        total = fma(sums, wide[block][None, :], total)
    return total * rows
