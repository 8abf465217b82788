"""The one place that imports Numba's decorators, and the policy: no Python objects, cached on disk, never fast-math.

Also the rounding mode of the running thread, which the whole engine works with.
"""

from __future__ import annotations

import hashlib
import platform
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
    "enter_rounding", "entry", "intrinsic", "jit", "leave_rounding", "threads_wanted",
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


_IS_X86 = platform.machine() in ("x86_64", "AMD64")
_X86_DEFAULT = 0x1F80
"""MXCSR with every exception masked and nothing flushed: programs that flush subnormals must not change bits here."""
_X86_MODES = 0b01_10_00_11
"""Two bits of MXCSR for each mode, in LLVM's order of modes."""


def _x86_state(builder: Any) -> tuple[Any, Callable[[str], None]]:
    """A place for MXCSR, and what stores it there (`stmxcsr`) and loads it from there (`ldmxcsr`)."""
    place = cgutils.alloca_once(builder, ir.IntType(32))
    address = builder.bitcast(place, ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [address.type])
    return place, lambda name: builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.sse.{name}"), [address])


@intrinsic
def enter_rounding(_context: Any, mode: types.Integer) -> Any:
    """Set this thread's rounding mode, subnormals kept; returns what leave_rounding needs to put back what was."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        wanted = context.cast(builder, arguments[0], signature.args[0], types.int32)
        if not _IS_X86:
            getter = cgutils.get_or_insert_function(builder.module, ir.FunctionType(word, []), "llvm.get.rounding")
            setter = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [word]), "llvm.set.rounding")
            before = builder.call(getter, [])
            builder.call(setter, [wanted])
            return before
        place, move = _x86_state(builder)
        move("stmxcsr")
        before = builder.load(place)
        bits = builder.lshr(ir.Constant(word, _X86_MODES), builder.shl(wanted, ir.Constant(word, 1)))
        bits = builder.shl(builder.and_(bits, ir.Constant(word, 3)), ir.Constant(word, 13))
        builder.store(builder.or_(bits, ir.Constant(word, _X86_DEFAULT)), place)
        move("ldmxcsr")
        return before

    return types.int32(mode), codegen


@intrinsic
def leave_rounding(_context: Any, before: types.Integer) -> Any:
    """Put back what enter_rounding found."""

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        if _IS_X86:
            place, move = _x86_state(builder)
            builder.store(arguments[0], place)
            move("ldmxcsr")
        else:
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.set.rounding"), arguments)
        return context.get_dummy_value()

    return types.none(types.int32), codegen
