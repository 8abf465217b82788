"""What an architecture has from others is said in its row, wherever the row stands."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from mmabits.isa import ARCHITECTURES, DATAPATHS, LOWERINGS, UnsupportedInstruction, architectures, lowering
from mmabits.isa.architectures import since, target_of

CHAIN = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a")


def test_every_row_names_rows_and_no_row_follows_itself():
    for name, row in ARCHITECTURES.items():
        assert row.after in ARCHITECTURES or (row.after, name) == ("", "sm_70")
        assert row.like == "" or (row.like in ARCHITECTURES and not ARCHITECTURES[row.like].like)
        assert name in since("sm_70") and name in since(name)


def test_the_branches_of_blackwell():
    assert since("sm_100a") == ("sm_100a", "sm_103a", "sm_110a", "sm_120a", "sm_121a")
    assert since("sm_120a") == ("sm_120a", "sm_121a")
    assert since("sm_103a") == ("sm_103a",)
    assert all(set(since(later)) < set(since(first)) for first, later in itertools.pairwise(CHAIN))


def test_the_place_of_a_row_has_no_say(monkeypatch):
    before = {name: set(since(name)) for name in ARCHITECTURES}
    new = dataclasses.replace(ARCHITECTURES["sm_121a"], name="sm_87", after="sm_86", like="")
    turned = {"sm_87": new, **dict(reversed(ARCHITECTURES.items()))}
    monkeypatch.setattr(architectures, "ARCHITECTURES", turned)
    for name in before:
        added = {"sm_87"} if name in ("sm_70", "sm_75", "sm_80", "sm_86") else set()
        assert set(since(name)) == before[name] | added


def test_a_unit_without_a_row_is_an_error_that_says_so(monkeypatch):
    monkeypatch.delitem(DATAPATHS, "sm_86.hmma.f16.f32")
    with pytest.raises(UnsupportedInstruction, match=r"sm_86 is known, but no row says how its hmma\.f16 computes into f32"):
        lowering._datapath(LOWERINGS["hmma.f16"], "sm_86", "f32")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_capability_and_its_target_are_one_fact(name):
    row = ARCHITECTURES[name]
    major, minor = row.capability
    assert name.rstrip("a") == f"sm_{major}{minor}" and row.capability_number == 10 * major + minor
    assert target_of(major, minor) is row
