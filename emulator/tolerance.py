"""The former place of `mmabits.research.tolerance`, kept for programs that import from here."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmabits.research.tolerance import Tolerance, tolerance, tolerance_of_shape

__all__ = ["Tolerance", "tolerance", "tolerance_of_shape"]


def __getattr__(name: str) -> Any:
    """From where it is now: reasoning stands above the emulator, which therefore does not import it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("mmabits.research.tolerance"), name)
