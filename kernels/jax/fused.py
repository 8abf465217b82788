"""A fused multiply-add, which `jax.numpy` does not have, out of float32 operations that are exact or rounded where they ought to be.

XLA may or may not fuse a product with the sum that follows. Here every product is exact, so that it does not matter.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

_UPPER = -(1 << 12)
"""Of the bits of a float32: its sign, exponent and 11 bits of the fraction."""


def _two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """The rounded sum and what is missing from it, exactly (Knuth)."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _to_odd(a: Any, b: Any) -> Any:
    """The sum rounded to odd: towards zero, and to an odd fraction where something is cut off."""
    total, rest = _two_sum(a, b)
    bits = jax.lax.bitcast_convert_type(total, jnp.int32)
    outwards = (rest > 0) == (total > 0)
    moved = jnp.where(outwards, bits + 1, bits - 1)
    is_cut = (rest != 0) & ((bits & 1) == 0) & jnp.isfinite(total)
    return jax.lax.bitcast_convert_type(jnp.where(is_cut, moved, bits), jnp.float32)


def _halves(a: Any) -> tuple[Any, Any]:
    """Two numbers of 12 significand bits each, whose sum it is."""
    upper = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(a, jnp.int32) & _UPPER, jnp.float32)
    return upper, a - upper


def _product(a: Any, b: Any) -> tuple[Any, Any]:
    """The rounded product and what is missing from it, exactly, out of four products that are exact.

    In units of the last place of the product of the lower halves, errors of the first two sums are multiples of 2^12 up to 2^24, that of
    the third is up to 2^23: what is added without a check below has at most 24 bits.
    """
    (a_upper, a_lower), (b_upper, b_lower) = _halves(a), _halves(b)
    total, first = _two_sum(a_upper * b_upper, a_upper * b_lower)
    total, second = _two_sum(total, a_lower * b_upper)
    total, third = _two_sum(total, a_lower * b_lower)
    total, rest = _two_sum(total, first + second)
    return _two_sum(total, rest + third)


def fma(a: Any, b: Any, c: Any) -> Any:
    """The sum a b + c, rounded once.

    Args:
        a: float32, finite or NaN. The product of the last places of a and b must be no subnormal, nor overflow.
        b: likewise.
        c: likewise, and its last place no subnormal.

    Returns:
        float32.

    Source: Boldo and Melquiond, Emulation of FMA and correctly rounded sums (2008): the last sum is of a part rounded to odd.
    """
    high, low = _product(a, b)
    middle, last = _two_sum(c, low)
    first, rest = _two_sum(high, middle)
    return first + _to_odd(last, rest)
