"""`mmabits diff`: a product that a GPU or a framework gave, against the same product emulated, bit by bit."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmabits.conformance.diff.comparing import Difference, Differing, Kind, UlpBin, compare
    from mmabits.conformance.diff.runs import Run, read_run, write_run
    from mmabits.conformance.diff.schedules import Fit, Schedule, fitting_schedules, recompute

__all__ = [
    "Difference",
    "Differing",
    "Fit",
    "Kind",
    "Run",
    "Schedule",
    "UlpBin",
    "compare",
    "fitting_schedules",
    "read_run",
    "recompute",
    "write_run",
]

_HOMES = {
    "Difference": "mmabits.conformance.diff.comparing",
    "Differing": "mmabits.conformance.diff.comparing",
    "Kind": "mmabits.conformance.diff.comparing",
    "UlpBin": "mmabits.conformance.diff.comparing",
    "compare": "mmabits.conformance.diff.comparing",
    "Run": "mmabits.conformance.diff.runs",
    "read_run": "mmabits.conformance.diff.runs",
    "write_run": "mmabits.conformance.diff.runs",
    "Fit": "mmabits.conformance.diff.schedules",
    "Schedule": "mmabits.conformance.diff.schedules",
    "fitting_schedules": "mmabits.conformance.diff.schedules",
    "recompute": "mmabits.conformance.diff.schedules",
}


def __getattr__(name: str) -> Any:
    """What is imported at its first use: the command line loads this package for its options alone."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
