"""The one place that imports Numba's decorators, and the policy: no Python objects, cached on disk, never fast-math.

Also the rounding mode of the running thread, which the whole engine works with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["NEAREST_EVEN", "TOWARD_NEGATIVE", "TOWARD_POSITIVE", "TOWARD_ZERO", "WIDTH", "jit", "prange", "set_rounding"]

TOWARD_ZERO, NEAREST_EVEN, TOWARD_POSITIVE, TOWARD_NEGATIVE = 0, 1, 2, 3
"""Rounding modes as LLVM (and C's FLT_ROUNDS) numbers them."""

WIDTH = 32
"""Columns of a tile: four vectors of f32, two halves of four vectors of f64."""


def jit(function: Callable[..., Any] | None = None, *, parallel: bool = False, inline: bool = False) -> Any:
    """Compile a function for the engine: nopython, cached, division by IEEE rules, and bits that no flag may change."""
    decorate = numba.njit(cache=True, parallel=parallel, error_model="numpy", inline="always" if inline else "never")
    return decorate if function is None else decorate(function)


@intrinsic
def set_rounding(_context: Any, mode: types.Integer) -> Any:
    """Set the rounding mode of this thread's floating-point unit."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        module = builder.module
        function = cgutils.get_or_insert_function(module, ir.FunctionType(ir.VoidType(), [ir.IntType(32)]), "llvm.set.rounding")
        builder.call(function, [context.cast(builder, arguments[0], signature.args[0], types.int32)])
        return context.get_dummy_value()

    return types.none(mode), codegen
