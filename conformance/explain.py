"""The former place of `mmabits.research.explain`, kept for programs that import from here."""

from mmabits.research.explain import Explanation, explain

__all__ = ["Explanation", "explain"]
