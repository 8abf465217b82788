"""Interpreted Mosaic GPU kernels: their tensor-core instructions, which JAX's interpreter computes by `acc + np.matmul(a, b)`.

The interpreter's module looks NumPy up by the name `np` whenever a kernel runs; for the time of a block that name is ours.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import jax
import numpy as np
import numpy.typing as npt

from mmabits.emulator.api import operand_type
from mmabits.emulator.session import Session
from mmabits.isa import Family, UnsupportedInstruction, resolve

Array = npt.NDArray[Any]

MOSAIC: Final = "jax.experimental.pallas.mosaic_gpu"
CALLBACKS: Final = "jax._src.pallas.mosaic_gpu.interpret.gpu_callbacks"
KERNELS: Final = "interpreted Mosaic GPU kernels"
INSTRUCTIONS: Final = {"wgmma": Family.WGMMA, "tcgen05_mma": Family.TCGEN05}
"""By the interpreter's function that computes it."""
_ACCUMULATORS: Final = {np.dtype(np.float32): "f32", np.dtype(np.float16): "f16", np.dtype(np.int32): "s32"}


@contextmanager
def interpreted_kernels(session: Session) -> Iterator[None]:
    """Compute the tensor-core instructions of kernels that run with `InterpretGPUParams`, if the program has imported Mosaic GPU."""
    if MOSAIC not in sys.modules:
        yield
        if MOSAIC in sys.modules:
            session.skip("the whole block", KERNELS, "Mosaic GPU was imported inside the block; import it before")
        return
    try:
        callbacks = importlib.import_module(CALLBACKS)
        before = callbacks.np
    except (ImportError, AttributeError):
        session.skip("the whole block", KERNELS, f"jax {jax.__version__} interprets none, or not by NumPy")
        yield
        return
    callbacks.np = _Numpy(session)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        callbacks.np = before  # type: ignore[attr-defined]


class _Numpy:
    """NumPy, but for `matmul`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()  # the interpreter has threads of its own

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def matmul(self, a: Array, b: Array, dtype: Any = None) -> _Product:
        """A product that waits for what it is added to: the instruction adds it inside."""
        return _Product(self._session, self._lock, sys._getframe(1).f_code.co_name, a, b, np.dtype(dtype))


class _Product(np.lib.mixins.NDArrayOperatorsMixin):
    """A times B, computed when the accumulator is known: added to it, or by itself where anything else is done with it."""

    def __init__(self, session: Session, lock: threading.Lock, name: str, a: Array, b: Array, dtype: np.dtype[Any]) -> None:
        self._session, self._lock, self._name, self._a, self._b = session, lock, name, a, b
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
        with self._lock:
            return session.dot(site, self._a, self._b, accumulator, instruction=row)
