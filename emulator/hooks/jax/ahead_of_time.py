"""Programs compiled ahead of time, by `jax.jit(f).lower(...).compile()`: they are what they were lowered to, wherever they are called."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

from jax import stages

from mmabits.emulator.hooks.jax import account, flag
from mmabits.emulator.hooks.scope import NotEmulated
from mmabits.isa import EmulationError

_SITE: Final = re.compile(r'custom_call_target="mmabits".*\bsite = (\d+)')
_MADE_FOR: WeakKeyDictionary[Any, account.Key | None] = WeakKeyDictionary()
"""Programs called inside blocks so far, and the keys of the blocks that they were lowered in."""


def watch() -> Callable[[], None]:
    """Check the programs that are called, until what is returned is called. While no block is open the handler refuses them."""
    stock = stages.Compiled.__call__

    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        _check(self)
        return stock(self, *arguments, **keywords)

    stages.Compiled.__call__ = call  # type: ignore[method-assign]

    def put_back() -> None:
        if stages.Compiled.__call__ is call:
            stages.Compiled.__call__ = stock  # type: ignore[method-assign]

    return put_back


def _check(program: Any) -> None:
    """Refuse a program that was lowered in another block; say so of one that was lowered outside every block.

    Raises:
        EmulationError: it was lowered in another block.
    """
    key = flag.key()
    is_new = program not in _MADE_FOR
    if is_new:
        _MADE_FOR[program] = account.key_of_sites(int(found) for found in _SITE.findall(program.as_text() or ""))
    made_for = _MADE_FOR[program]
    if made_for == key:
        return
    if made_for is not None:
        here = f"another for {key[0]}" if key else "code outside it"
        raise EmulationError(f"a program compiled ahead of time in an emulate block for {made_for[0]} is called by {here}; lower it anew")
    session = account.open_session(key)
    if session is not None:
        frame = sys._getframe(2)
        site = f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
        reason = "compiled ahead of time outside the block, it runs as it was compiled; lower it inside"
        session.skip(site, "a program's products, if any", reason)
        if is_new:
            warnings.warn(f"not emulated: {site}: a program's products, if any: {reason}", NotEmulated, stacklevel=3)
