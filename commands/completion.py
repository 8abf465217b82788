"""What a shell completes after an option: architectures, formats and recipes, studies and their sizes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable


def architectures(incomplete: str) -> list[tuple[str, str]]:
    """Targets, each with its GPUs, and the GPUs' names where one has begun: `sm_90a`, `h100` or `H100`."""
    from mmabits.isa.architectures import ARCHITECTURES

    targets = [(row.name, ", ".join(row.gpus)) for row in ARCHITECTURES.values() if row.name.startswith(incomplete)]
    spelled = str.upper if incomplete[:1].isupper() else str.lower
    models = [(spelled(model.replace(" ", "")), row.name) for row in ARCHITECTURES.values() for model in row.models if "(" not in model]
    return targets + [(name, target) for name, target in models if incomplete and name.startswith(incomplete)]


def recipes(incomplete: str) -> list[str]:
    """Recipes, then formats that an operand can have."""
    from mmabits.conformance.ways import WHOLE
    from mmabits.isa import FORMATS

    return _begun(dict.fromkeys((*WHOLE, *FORMATS)), incomplete)


def model_recipes(incomplete: str) -> list[str]:
    """Recipes of `evaluate`; none without torch, which it needs itself."""
    if importlib.util.find_spec("torch") is None:
        return []
    from mmabits.research.evaluation.recipes import RECIPES

    return _begun(RECIPES, incomplete)


def sizes(incomplete: str) -> list[str]:
    """Sizes of a study."""
    from mmabits.research.study.report import SIZES

    return _begun(SIZES, incomplete)


def studies(incomplete: str) -> list[tuple[str, str]]:
    """Studies that ship, with their titles."""
    from mmabits.research.study.shipped import STUDIES

    return [(name, row.title) for name, row in STUDIES.items() if name.startswith(incomplete)]


def _begun(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
