"""Whole models in many settings, on text: what architectures, recipes, libraries and accumulators change, by layer and at the end."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmabits.research.evaluation.account import EvaluatedDifference, EvaluatedSetting, Evaluation
    from mmabits.research.evaluation.whole import evaluate

__all__ = ["EvaluatedDifference", "EvaluatedSetting", "Evaluation", "evaluate"]

_HOMES = {"evaluate": "whole", "EvaluatedDifference": "account", "EvaluatedSetting": "account", "Evaluation": "account"}


def __getattr__(name: str) -> Any:
    """What is imported at its first use, since it imports torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
