"""JAX: lowering rules that hand matrix products to the engine through XLA's foreign function interface.

`rules` stands in for JAX's lowering rules, `choices` says what XLA would make of a product on a GPU, `matrices` brings operands
into the engine's layout, `handler` is what XLA calls, `account` counts for the report; `mosaic` computes the tensor-core
instructions of interpreted Mosaic GPU kernels. They import jax when they are imported, which is when a block is entered.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from mmabits.emulator.session import NotEmulated, Session
from mmabits.isa import EmulationError


@contextmanager
def hook(session: Session) -> Iterator[None]:
    """Emulate the matrix products of the running thread's JAX programs on the CPU, those compiled before the block included.

    Raises:
        EmulationError: JAX is not installed, or is a version that this cannot work with.
    """
    if importlib.util.find_spec("jax") is None:
        raise EmulationError("jax is not installed: pip install 'mmabits[jax]'")
    import jax

    if not hasattr(jax, "make_user_context"):
        raise EmulationError(f"emulate needs jax 0.10 or newer, got jax {jax.__version__}")
    _tell_of_other_devices(session)
    from mmabits.emulator.hooks.jax.mosaic import interpreted_kernels
    from mmabits.emulator.hooks.jax.rules import active

    with ExitStack() as entered:
        entered.enter_context(interpreted_kernels(session))
        entered.enter_context(active(session))  # left first: it waits for the programs that run
        yield


def _tell_of_other_devices(session: Session) -> None:
    """Only programs for the CPU are emulated; say so where JAX compiles for something else unless told."""
    import jax

    configuration: Any = jax.config
    chosen = configuration.jax_default_device
    platform = jax.default_backend() if chosen is None else getattr(chosen, "platform", chosen)
    if platform != "cpu":
        reason = f"JAX's default device is a {platform}: open the block inside jax.default_device(jax.devices('cpu')[0])"
        session.skip("programs on the default device", "jax", reason)
        warnings.warn(f"not emulated: {reason}", NotEmulated, stacklevel=5)
