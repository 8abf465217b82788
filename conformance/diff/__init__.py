"""`mmabits diff`: what a GPU or a framework gave, against the same emulated, bit by bit."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmabits.conformance.diff.comparing import Difference, Differing, Kind, UlpBin, compare
    from mmabits.conformance.diff.schedules import Fit, TriedSchedule, fitting_schedules, recompute
    from mmabits.conformance.recorded.calls import Run, read_run, write_run

__all__ = [
    "Difference", "Differing", "Fit", "Kind", "Run", "TriedSchedule", "UlpBin", "compare", "fitting_schedules", "read_run", "recompute",
    "write_run",
]  # fmt: skip

_HOMES = {
    "mmabits.conformance.diff.comparing": ("Difference", "Differing", "Kind", "UlpBin", "compare"),
    "mmabits.conformance.diff.schedules": ("Fit", "TriedSchedule", "fitting_schedules", "recompute"),
    "mmabits.conformance.recorded.calls": ("Run", "read_run", "write_run"),
}


def __getattr__(name: str) -> Any:
    """What is imported at its first use: the command line loads this package for its options alone."""
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(home), name)
