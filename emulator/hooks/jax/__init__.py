"""JAX: lowering rules that hand matrix products to the engine through XLA's foreign function interface.

`rules` stands in for JAX's lowering rules, `flag` says which block a program is compiled for, `choices` says what XLA would make of a
product on a GPU, `schedules` sums slices of K as a library does, `matrices` brings operands into the engine's layout, `handler` is what
XLA calls, `account` counts for the report, `ahead_of_time` looks after programs that are compiled before they are called; `mosaic`
computes the tensor-core instructions of interpreted Mosaic GPU kernels, `pallas` runs compiled Pallas kernels, `dequantized` knows
products that XLA would rewrite. They import jax when they are imported, which is when a block
is entered.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from mmabits.emulator.hooks.session import NotEmulated, Session
from mmabits.isa import EmulationError


def hook(session: Session) -> ExitStack:
    """Emulate the matrix products of the running thread's JAX programs on the CPU, those compiled before the block included.

    Until what is returned is closed, which waits for the programs that run.

    Raises:
        EmulationError: JAX is not installed, or is a version that this cannot work with; the block is entered in a function being traced.
    """
    if importlib.util.find_spec("jax") is None:
        raise EmulationError("jax is not installed: pip install 'mmabits[jax]'")
    import jax

    if not hasattr(jax, "make_user_context"):
        raise EmulationError(f"emulate needs jax 0.10 or newer, got jax {jax.__version__}")
    _tell_of_other_devices(session)
    from mmabits.emulator.hooks.jax import mosaic, rules

    with ExitStack() as undo:  # no generators: nothing may happen when a block that was never left is collected
        undo.callback(mosaic.begin(session))
        undo.callback(rules.begin(session))  # left first: it waits for the programs that run
        return undo.pop_all()


def _tell_of_other_devices(session: Session) -> None:
    """Only programs for the CPU are emulated; say so where JAX compiles for something else unless told."""
    import jax

    configuration: Any = jax.config
    chosen = configuration.jax_default_device
    platform = jax.default_backend() if chosen is None else getattr(chosen, "platform", chosen)
    if platform != "cpu":
        reason = f"JAX's default device is a {platform}: open the block inside jax.default_device(jax.devices('cpu')[0])"
        session.skip("programs on the default device", "jax", reason)
        warnings.warn(f"not emulated: {reason}", NotEmulated, stacklevel=4)


def enter_thread(_session: Session) -> Callable[[], None]:
    """Let a thread that was started inside a session's block be inside; what is returned ends it."""
    from mmabits.emulator.hooks.jax import flag

    flag.begin()
    return flag.end
