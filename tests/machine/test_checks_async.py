"""Random programs of asynchronous work: the checks name what a plain account of what happens before what calls a race, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import operands
import pytest
from async_account import FAMILIES, SHARED, Account, AsyncStep, Family, random_program, text_of

from mmabits.emulator.machine.kernel import Kernel

_BY_NAME = {family.name: family for family in FAMILIES}
Pairs = dict[tuple[int, int], set[str]]


def found_pairs(steps: list[AsyncStep], family: Family) -> Pairs:
    """The pairs of steps that the checks name, and what they say is missing."""
    text, first = text_of(steps, family)
    made = Kernel(text, arch=family.arch, shared=SHARED, checks=("races",))
    array = np.arange(4096 + 64, dtype=np.uint32) + np.uint32(0x4000_0000)
    start = array.ctypes.data + -array.ctypes.data % 256
    found: list[Any] = []
    made.launch((1,), [start], [(start, start + 4 * 4096)], findings=found)
    pairs: Pairs = {}
    for each in found:
        assert each.instruction is not None and each.before is not None, str(each)
        one, other = (instruction.line - first for instruction in (each.instruction, each.before))
        assert 0 <= one < len(steps) and 0 <= other < len(steps), str(each)
        pairs.setdefault((min(one, other), max(one, other)), set()).add("fence" if "fence" in each.missing else "order")
    return pairs


def disagreement(steps: list[AsyncStep], family: Family) -> str:
    """What the checks and the account see otherwise; nothing where they agree."""
    found = found_pairs(steps, family)
    allowed, wanted = Account(steps, family, generous=False).races(), Account(steps, family, generous=True).races()
    for pair, missing in found.items():
        known = allowed.get(pair, set())
        for each in missing:
            if each not in known and not (each == "fence" and "order" in known):
                return f"steps {pair} are named, for {each}: {known or 'nothing'} is missing"
    return "" if bool(found) >= bool(wanted) else f"nothing is named, and {wanted} race"


@pytest.mark.parametrize("number", [*range(20), *(pytest.param(each, marks=pytest.mark.slow) for each in range(20, 300))])
@pytest.mark.parametrize("name", list(_BY_NAME))
def test_random_programs_race_where_a_plain_account_says_so(name: str, number: int) -> None:
    family = _BY_NAME[name]
    steps = random_program(operands.generator("async", name, number), family)
    wrong = disagreement(steps, family)
    assert not wrong, "\n".join([wrong, *(f"{place}: {step}" for place, step in enumerate(steps))])
