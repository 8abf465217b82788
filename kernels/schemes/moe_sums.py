"""Sums over a token's experts: in which order, in which type, rounded when. What atomic additions give in an order of arrival.

Kernels store weighted rows in float32, bfloat16 or float16 and add them by place (a token's choices one after the other), by expert, or by
atomic additions in the order in which programs finish. The first two are one result; the last is any of `all_orders`.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.engine.fma import canonical
from mmabits.isa import OperandError
from mmabits.kernels.schemes.checks import Array, check_range, check_shape, checked
from mmabits.kernels.schemes.moe import Routing

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]

SUM_TYPES: Final = {"f32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16), "f16": np.dtype(np.float16)}
"""Types that rows are stored in."""


def places_by_expert(routing: Routing) -> Places:
    """(tokens, top_k): the places of each token's choices in ascending order of experts."""
    return np.argsort(routing.experts, axis=1, kind="stable")


def random_places(tokens: int, top_k: int, seed: int) -> Places:
    """(tokens, top_k): an order by chance for each token."""
    return np.argsort(np.random.default_rng(seed).random((tokens, top_k)), axis=1)


def all_orders(top_k: int) -> list[tuple[int, ...]]:
    """Every order of `top_k` places: what atomic additions can give an element is the sum by one of these."""
    return list(permutations(range(top_k)))


def add_rows(rows: Array, *, order: Places | None = None, dtype: str = "f32", round_each: bool = True) -> Array:
    """The rows of each token, rounded to a type and added from +0 on.

    Args:
        rows: (tokens, top_k, N) float32, weighted.
        order: (tokens, top_k) places, a permutation for each token; None: ascending.
        dtype: one of `SUM_TYPES`, in which rows are stored and the result is.
        round_each: whether every sum is rounded to `dtype`, as vLLM's `moe_sum` for up to four experts and atomic additions have it; False:
            sums in float32, rounded at the end.

    Returns:
        (tokens, N) of `dtype`.

    Raises:
        OperandTypeError, OperandError: something else.
    """
    given = checked(rows, "rows", (np.float32,), 3)
    if not isinstance(dtype, str) or dtype not in SUM_TYPES:
        raise OperandError(f"rows are added in {', '.join(SUM_TYPES)}, got {dtype!r}")
    kind, (tokens, top_k, n) = SUM_TYPES[dtype], given.shape
    if order is not None:
        check_shape(checked(order, "order", (np.int64,), 2), "order", (tokens, top_k))
        check_range(np.sort(order, axis=1) - np.arange(top_k), "an order's places, sorted, less their index,", 0, 0)
        given = np.take_along_axis(given, order[:, :, None], axis=1)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        stored: Any = given.astype(kind).astype(np.float32)
        total = np.zeros((tokens, n), np.float32)
        for place in range(top_k):
            # Of two numbers of at most 11 significand bits: rounding to float32 first changes nothing.
            total = total + stored[:, place]
            if round_each:
                total = total.astype(kind).astype(np.float32)
        return np.asarray(canonical(total).astype(kind))


__all__ = ["SUM_TYPES", "add_rows", "all_orders", "places_by_expert", "random_places"]
