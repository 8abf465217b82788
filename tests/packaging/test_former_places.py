"""Where names of 0.1.0 were documented, they can still be imported."""

import importlib

import pytest

import mmabits

FORMER = {
    "mmabits.conformance.explain": ("mmabits.research.explain", ("Explanation", "explain")),
    "mmabits.conformance.study": ("mmabits.research.study", ("study", "sweep", "Table", "RECIPES")),
    "mmabits.conformance.testing": ("mmabits.research.testing", ("assert_within_tolerance", "ToleranceExceeded")),
    "mmabits.emulator.fma": ("mmabits.emulator.engine.fma", ("fma",)),
    "mmabits.emulator.native": ("mmabits.emulator.engine.native", ("native_product", "NativeProduct")),
    "mmabits.emulator.session": ("mmabits.emulator.hooks.session", ("Session", "emulate")),
    "mmabits.emulator.tolerance": ("mmabits.research.tolerance", ("Tolerance", "tolerance", "tolerance_of_shape")),
}


@pytest.mark.parametrize("place", FORMER)
def test_a_former_place_gives_the_same_objects(place: str) -> None:
    now, names = FORMER[place]
    for name in names:
        assert getattr(importlib.import_module(place), name) is getattr(importlib.import_module(now), name)


def test_what_a_former_place_does_not_have() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        importlib.import_module("mmabits.emulator.tolerance").nothing  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        mmabits.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_every_public_name_is_there() -> None:
    assert all(getattr(mmabits, name) is not None for name in mmabits.__all__)
