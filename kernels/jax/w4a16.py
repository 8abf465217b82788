"""W4A16 in Pallas: INT4 words of AWQ checkpoints, dequantized in the kernel and multiplied as f16 or bf16."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from mmabits.isa import OperandError, OperandTypeError
from mmabits.kernels.schemes.packing_awq_gptq import WORD


def unpacked(words: Any, columns: int) -> Any:
    """(rows, columns) codes 0 to 15 of AWQ words (rows, columns / 8)."""
    n = jax.lax.broadcasted_iota(jnp.int32, (words.shape[0], columns), 1)
    shift = ((n & 1) * 4 + ((n & 7) >> 1)) * 4
    return (jnp.repeat(words, WORD, axis=1) >> shift) & 15


def awq_kernel(x_ref: Any, qweight_ref: Any, qzeros_ref: Any, scales_ref: Any, out_ref: Any, *, group: int, block_k: int) -> None:
    """One tile: for every block of K the weights of its groups are dequantized and multiplied, and the product is added in f32."""
    n = out_ref.shape[1]
    total = jnp.zeros(out_ref.shape, jnp.float32)
    for start in range(0, x_ref.shape[1], block_k):
        k = slice(start, start + block_k)
        g = slice(start // group, -(-(start + block_k) // group))
        share = min(group, block_k)
        zeros = jnp.repeat(unpacked(qzeros_ref[g, :], n), share, axis=0)
        scales = jnp.repeat(scales_ref[g, :].astype(x_ref.dtype), share, axis=0)
        w = (unpacked(qweight_ref[k, :], n) - zeros).astype(x_ref.dtype) * scales
        total = total + jnp.dot(x_ref[:, k], w, preferred_element_type=jnp.float32)
    out_ref[...] = total


def awq_matmul(
    x: Any, qweight: Any, qzeros: Any, scales: Any, *, block_m: int = 64, block_n: int = 64, block_k: int = 128, interpret: bool = False
) -> Any:
    """Activations times the weights of a layer of an AWQ checkpoint.

    Every product of `block_k` elements starts from zero and is added in float32: the composition is `w4a16_matmul` with
    `Dots(promote_every=block_k)`.

    Args:
        x: (M, K) float16 or bfloat16.
        qweight: (K, N / 8) int32.
        qzeros: (K / group, N / 8) int32.
        scales: (K / group, N) float16.
        block_m: rows of a tile; M must be a multiple.
        block_n: columns of a tile, a multiple of 8; N must be a multiple.
        block_k: elements of K a step; K must be a multiple, and it and the group size one of the other.
        interpret: run in Pallas's interpreter, as on a CPU.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: arrays that do not fit.
    """
    kinds = {"x": (x, "float16", "bfloat16"), "qweight": (qweight, "int32"), "qzeros": (qzeros, "int32"), "scales": (scales, "float16")}
    for name, (given, *allowed) in kinds.items():
        array: Any = given
        found = str(getattr(array, "dtype", type(array).__name__))
        if found not in allowed:
            raise OperandTypeError(f"{name} must be {' or '.join(allowed)}, got {found}")
        if array.ndim != 2:
            raise OperandError(f"{name} must have 2 dimensions, got shape {array.shape}")
    (m, k), (groups, n) = x.shape, scales.shape
    if qweight.shape != (k, n // WORD) or qzeros.shape != (groups, n // WORD) or n % WORD or (k and (groups == 0 or k % groups)):
        shapes = f"x {x.shape}, qweight {qweight.shape}, qzeros {qzeros.shape}, scales {scales.shape}"
        raise OperandError(f"the shapes must be (M, K), (K, N / 8), (K / group, N / 8), (K / group, N), got {shapes}")
    group = k // max(groups, 1)
    for size, block, name in ((m, block_m, "M"), (n, block_n, "N"), (k, block_k, "K"), (block_n, WORD, "block_n")):
        if block < 1 or size % block:
            raise OperandError(f"{name} must be a multiple of its block {block}, got {size}")
    if 0 in (m, n, k):
        return jnp.zeros((m, n), jnp.float32)
    if max(group, block_k) % min(group, block_k):
        raise OperandError(f"block_k and the group size must be multiples one of the other, got {block_k} and {group}")
    call = pl.pallas_call(
        functools.partial(awq_kernel, group=group, block_k=block_k),
        out_shape=jax.ShapeDtypeStruct((m, n), jnp.float32),  # type: ignore[no-untyped-call]
        grid=(m // block_m, n // block_n),
        in_specs=[
            pl.BlockSpec((block_m, k), lambda i, j: (i, 0)),
            pl.BlockSpec((k, block_n // WORD), lambda i, j: (0, j)),
            pl.BlockSpec((groups, block_n // WORD), lambda i, j: (0, j)),
            pl.BlockSpec((groups, block_n), lambda i, j: (0, j)),
        ],
        out_specs=pl.BlockSpec((block_m, block_n), lambda i, j: (i, j)),
        interpret=interpret,
    )
    return call(x, qweight, qzeros, scales)
