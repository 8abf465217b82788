"""Error budgets, sweeps and the studies that ship."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmabits.research.study.budget import Budget, Part, study
    from mmabits.research.study.recipes import RECIPES, Recipe, Stored
    from mmabits.research.study.sweeps import JournalMismatch, Table, points, sweep

__all__ = ["RECIPES", "Budget", "JournalMismatch", "Part", "Recipe", "Stored", "Table", "points", "study", "sweep"]

_HOMES = {
    "Budget": "budget", "Part": "budget", "study": "budget", "RECIPES": "recipes", "Recipe": "recipes", "Stored": "recipes",
    "JournalMismatch": "sweeps", "Table": "sweeps", "points": "sweeps", "sweep": "sweeps",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """What is imported at its first use: the command line loads this package for its options alone."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
