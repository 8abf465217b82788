"""The former place of `mmabits.research.study`, kept for programs that import from here."""

from mmabits.research.study import RECIPES, Budget, JournalMismatch, Part, Recipe, Stored, Table, points, study, sweep

__all__ = ["RECIPES", "Budget", "JournalMismatch", "Part", "Recipe", "Stored", "Table", "points", "study", "sweep"]
