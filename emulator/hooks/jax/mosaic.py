"""Interpreted Mosaic GPU kernels: their tensor-core instructions, which JAX's interpreter computes by `acc + np.matmul(a, b)`.

The interpreter's module looks NumPy up by the name `np` whenever a kernel runs; for the time of a block that name is ours. What a kernel
computes then goes by the block that it was traced in: its callbacks carry the block's key, and may run on any thread.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

import jax
import numpy as np
import numpy.typing as npt

from mmabits.emulator.api import operand_type
from mmabits.emulator.hooks.jax import account, flag, handler
from mmabits.emulator.hooks.session import Session
from mmabits.isa import EmulationError, Family, UnsupportedInstruction, resolve

Array = npt.NDArray[Any]

MOSAIC: Final = "jax.experimental.pallas.mosaic_gpu"
CALLBACKS: Final = "jax._src.pallas.mosaic_gpu.interpret.gpu_callbacks"
INTERPRETER: Final = "jax._src.pallas.mosaic_gpu.interpret.jaxpr_interpret"
KERNELS: Final = "interpreted Mosaic GPU kernels"
INSTRUCTIONS: Final = {"wgmma": Family.WGMMA, "tcgen05_mma": Family.TCGEN05}
"""By the interpreter's function that computes it."""
_ACCUMULATORS: Final = {np.dtype(np.float32): "f32", np.dtype(np.float16): "f16", np.dtype(np.int32): "s32"}


_PUT_BACK: Final = ExitStack()
"""What the last block that is left undoes."""
_sessions: list[Session] = []
_RUNNING: Final = threading.local()
"""`key`: the account.Key of the program whose callback runs, where it was compiled inside a block."""
_ONE_AT_A_TIME: Final = threading.Lock()
"""The interpreter has threads of its own."""


def begin(session: Session) -> Callable[[], None]:
    """Compute the tensor-core instructions of kernels that run with `InterpretGPUParams`, if the program has imported Mosaic GPU.

    Until what is returned is called, in whichever order.
    """
    if MOSAIC not in sys.modules:

        def tell() -> None:
            if MOSAIC in sys.modules:
                session.skip("the whole block", KERNELS, "Mosaic GPU was imported inside the block; import it before")

        return tell
    try:
        modules = [importlib.import_module(name) for name in (CALLBACKS, INTERPRETER)]
        stocks = [(modules[0], "np", _Numpy()), *((module, "callback", _Callbacks(module.callback)) for module in modules)]
        found = [(module, name, getattr(module, name), ours) for module, name, ours in stocks]
    except (ImportError, AttributeError):
        session.skip("the whole block", KERNELS, f"jax {jax.__version__} interprets none, or not by NumPy")
        return lambda: None
    if not _sessions:
        for module, name, stock, ours in found:
            setattr(module, name, ours)
            _PUT_BACK.callback(setattr, module, name, stock)
    _sessions.append(session)

    def end() -> None:
        _sessions.remove(session)
        if not _sessions:
            _PUT_BACK.close()

    return end


class _Callbacks:
    """JAX's module of callbacks: those of programs that are traced inside a block know which block."""

    def __init__(self, stock: Any) -> None:
        self._stock = stock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)

    def io_callback(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """A callback to the interpreter."""
        key = flag.key()
        if key is None:
            return self._stock.io_callback(function, *arguments, **keywords)
        handler.count(account.mark(key))  # a program compiled ahead of time is known by it, and refused after the block
        return self._stock.io_callback(partial(_called, key, function), *arguments, **keywords)


def _called(key: account.Key, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Run a callback for a block.

    Raises:
        EmulationError: an exception has ended the block, which then waits for nothing.
    """
    if account.open_session(key) is None:
        raise EmulationError(f"an interpreted kernel of an emulate block for {key[0]} still ran when an exception ended the block")
    _RUNNING.key = key
    try:
        return function(*arguments, **keywords)
    finally:
        _RUNNING.key = None


class _Numpy:
    """NumPy, but for `matmul` in programs that were compiled inside a block."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def matmul(self, a: Array, b: Array, dtype: Any = None) -> Any:
        """A product that waits for what it is added to: the instruction adds it inside."""
        session = account.open_session(getattr(_RUNNING, "key", None))
        if session is None:
            return np.matmul(a, b, dtype=dtype)
        return _PendingProduct(session, sys._getframe(1).f_code.co_name, a, b, np.dtype(dtype))


class _PendingProduct(np.lib.mixins.NDArrayOperatorsMixin):
    """A times B, computed when the accumulator is known: added to it, or by itself where anything else is done with it."""

    def __init__(self, session: Session, name: str, a: Array, b: Array, dtype: np.dtype[Any]) -> None:
        self._session, self._name, self._a, self._b = session, name, a, b
        self.dtype, self.shape = dtype, (a.shape[0], b.shape[1])

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if ufunc is np.add and method == "__call__" and not options and len(inputs) == 2:
            (accumulator,) = (each for each in inputs if each is not self)
            return self._computed(np.asarray(accumulator))
        return getattr(ufunc, method)(*(np.asarray(each) if each is self else each for each in inputs), **options)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self._computed(None), dtype)

    def __getitem__(self, place: Any) -> Any:
        return self._computed(None)[place]

    def _computed(self, accumulator: Array | None) -> Array:
        """The instruction's result.

        Raises:
            EmulationError: the architecture lacks the instruction, or the interpreter's function is not known.
        """
        session, site = self._session, f"{self._name} of an interpreted Mosaic GPU kernel"
        family = INSTRUCTIONS.get(self._name)
        if family is None:
            session.refuse(site, "a product", f"the instructions known here are {', '.join(INSTRUCTIONS)}")
        types = (operand_type(self._a, "a"), operand_type(self._b, "b"))
        try:
            row = resolve(str(family), arch=session.arch, a_type=types[0], b_type=types[1], c_type=_ACCUMULATORS.get(self.dtype))
        except UnsupportedInstruction as error:
            session.refuse(site, f"{types[0]} x {types[1]}", str(error))
        with _ONE_AT_A_TIME:
            return session.dot(site, self._a, self._b, accumulator, instruction=row)
