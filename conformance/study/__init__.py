"""Error budgets, sweeps and the studies that ship."""

from mmabits.conformance.study.budget import Budget, Part, study
from mmabits.conformance.study.recipes import RECIPES, Recipe, Stored
from mmabits.conformance.study.sweep import JournalMismatch, Table, points, sweep

__all__ = ["RECIPES", "Budget", "JournalMismatch", "Part", "Recipe", "Stored", "Table", "points", "study", "sweep"]
