"""Finding the arithmetic of a device by asking it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmabits.conformance.identify.identification import Identification, Match, Undecided, identify

__all__ = ["Identification", "Match", "Undecided", "identify"]


def __getattr__(name: str) -> Any:
    """What is imported at its first use: the command line loads this package for its options alone."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mmabits.conformance.identify import identification

    return getattr(identification, name)
