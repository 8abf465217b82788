"""The one place that imports Numba's decorators, and the policy: no Python objects, cached on disk, never fast-math.

Also the rounding mode of the running thread, which the whole engine works with.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils, event
from numba.extending import intrinsic as numba_intrinsic

__all__ = [
    "NEAREST_EVEN", "TOWARD_NEGATIVE", "TOWARD_POSITIVE", "TOWARD_ZERO", "WIDTH",
    "entry", "intrinsic", "jit", "set_rounding", "threads_wanted",
]  # fmt: skip

TOWARD_ZERO, NEAREST_EVEN, TOWARD_POSITIVE, TOWARD_NEGATIVE = 0, 1, 2, 3
"""Rounding modes as LLVM (and C's FLT_ROUNDS) numbers them."""

WIDTH = 32
"""Columns of a tile: four vectors of f32, two halves of four vectors of f64."""


_njit: Any = numba.njit
_POLICY = {"cache": True, "nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
"""Nopython, cached on disk, without the GIL, division by IEEE rules."""


_COMPILED = ("chains", "decode", "fused", "grouped", "jit", "lanes", "steps", "tiles")
"""Modules whose code ends up in compiled functions."""


@lru_cache(maxsize=1)
def _fingerprint() -> str:
    """Of all compiled modules: Numba's cache looks at a function's own file only, yet what it calls may have changed."""
    digest = hashlib.sha256()
    for name in _COMPILED:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()[:12]


def _cached(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under a name that its cache entry shares with no other version of the compiled modules."""
    function.__qualname__ = f"{function.__qualname__}_{_fingerprint()}"
    return function


def jit(function: Callable[..., Any]) -> Any:
    """Compile a function that compiled code calls."""
    return _njit(**_POLICY, no_cpython_wrapper=True)(_cached(function))


def entry(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls."""
    return _njit(**_POLICY)(_cached(function))


class _Announcer(event.Listener):
    """Says on a terminal that the engine is being compiled: the first call of a kind waits for it, later processes do not."""

    depth = 0

    def on_start(self, occurred: Any) -> None:
        """A compilation begins; those of the functions it calls are part of it."""
        ours = str(occurred.data["dispatcher"].py_func.__module__).startswith("mmabits.")
        if ours and self.depth == 0 and sys.stderr.isatty():
            print("mmabits: compiling the engine for these types, once on this machine (about ten seconds)", file=sys.stderr)
        self.depth += 1

    def on_end(self, _occurred: Any) -> None:
        """A compilation is done."""
        self.depth -= 1


event.register("numba:compile", _Announcer())


def intrinsic(function: Callable[..., Any]) -> Any:
    """A function that compiled code calls and that writes its own LLVM instructions."""
    return numba_intrinsic(function)


def threads_wanted() -> int:
    """Threads a product may use: what Numba was told (NUMBA_NUM_THREADS, numba.set_num_threads), else every processor."""
    return int(numba.get_num_threads())


@intrinsic
def set_rounding(_context: Any, mode: types.Integer) -> Any:
    """Set the rounding mode of this thread's floating-point unit."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        module = builder.module
        function = cgutils.get_or_insert_function(module, ir.FunctionType(ir.VoidType(), [ir.IntType(32)]), "llvm.set.rounding")
        builder.call(function, [context.cast(builder, arguments[0], signature.args[0], types.int32)])
        return context.get_dummy_value()

    return types.none(mode), codegen
