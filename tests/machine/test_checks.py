"""Checks of compiled kernels: planted faults and their twins, random programs against a plain account of what happens before what."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import operands
import pytest
from check_cases import CASES, CheckCase

from mmabits.emulator.machine.checkrecords import CHECKS
from mmabits.emulator.machine.kernel import Kernel, KernelCheckError, KernelError, aligned
from mmabits.emulator.machine.workorder import WorkSchedule
from mmabits.isa import OperandError


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_planted_fault_is_found_and_its_twin_is_not_reported(case: CheckCase) -> None:
    found = case.findings(0)
    assert any(each.check == case.check and re.search(case.match, each.text) for each in found), [str(each) for each in found]
    assert not [str(each) for each in case.findings(1)]


def test_there_are_cases_of_every_check_and_each_has_its_name() -> None:
    assert {case.check for case in CASES} == set(CHECKS)
    assert len({case.name for case in CASES}) == len(CASES) >= 60


def test_a_check_that_was_not_asked_for_finds_nothing() -> None:
    case = next(each for each in CASES if each.name == "write then read of another warp")
    assert {each.check for each in case.findings(0, ("init",))} == {"init"}
    assert {each.check for each in case.findings(0, ("races",))} == {"races"}
    assert not case.findings(0, ("sync",)) and not case.findings(0, ("memory",))


def test_findings_are_raised_with_both_places() -> None:
    case = next(each for each in CASES if each.name == "read then write of another warp")
    made = case.kernel(0, checks=("races",))
    array = np.zeros(4096, np.uint32)
    with pytest.raises(KernelCheckError, match=r"2 findings of the checks[^$]*races: k: `st.shared") as caught:
        made.launch((1,), [array.ctypes.data], [(array.ctypes.data, array.ctypes.data + array.nbytes)])
    found = next(each for each in caught.value.findings if each.instruction is not None and each.instruction.opcode.startswith("st."))
    assert found.before is not None and found.before.opcode == "ld.shared.b32" and found.instruction is not None
    assert (found.program, found.warp, found.lane, found.space) == ((0, 0, 0), 1, 0, "shared memory")
    assert found.missing == "a barrier (bar.sync, or an mbarrier)" and found.times == 32


def test_an_error_that_ends_a_kernel_comes_with_what_was_found_before() -> None:
    case = next(each for each in CASES if each.name == "a store behind the array")
    with pytest.raises(KernelCheckError, match="memory: k: an access at") as caught:
        made = case.kernel(0, checks=("memory", "races"))
        array = np.zeros(4096, np.uint32)
        made.launch((1,), [array.ctypes.data], [(array.ctypes.data, array.ctypes.data + array.nbytes)])
    assert isinstance(caught.value, KernelError) and isinstance(caught.value.__cause__, KernelError)


def test_an_unknown_check_is_refused() -> None:
    with pytest.raises(OperandError, match="no check is called 'race'"):
        CASES[0].kernel(0, checks=("race",))


_SYNCHRONISED = [case for case in CASES if case.name in (
    "a loop with two buffers and a barrier too few", "cp.async: a buffer of a pipeline too few", "a bulk copy refills what others read",
    "a refill by a bulk copy before wgmma is done", "what the product reads is written before it is done", "wgmma without a barrier",
    "a store to the other CTA, read without a wait",
)]  # fmt: skip


@pytest.mark.parametrize("case", _SYNCHRONISED, ids=lambda case: case.name)
def test_twins_compute_the_same_by_every_order(case: CheckCase) -> None:
    made = case.kernel(1)
    results = []
    for schedule in (None, "latest", "earliest", 0, 1, 2):
        held = aligned(4 * 4096).view(np.uint32)
        held[...] = np.arange(4096)
        made.launch(
            (case.grid,), [held.ctypes.data], [(held.ctypes.data, held.ctypes.data + held.nbytes)], schedule=WorkSchedule.of(schedule)
        )
        results.append(held)
    for each in results[1:]:
        assert np.array_equal(each, results[0])


def test_another_order_shows_a_race() -> None:
    case = next(each for each in CASES if each.name == "two CTAs write one word")
    found = set()
    for schedule in (None, "latest"):
        array = np.zeros(4096, np.uint32)
        case.kernel(0).launch(
            (2,), [array.ctypes.data], [(array.ctypes.data, array.ctypes.data + array.nbytes)], schedule=WorkSchedule.of(schedule)
        )
        found.add(int(array[0]))
    assert found == {1, 65}


# ---------------------------------------------------------------------------------------------------------------- random programs


class Step(NamedTuple):
    """Something that the threads of a block do: a store, a load or an atomic on a word, or a barrier."""

    what: str
    where: str = "own"
    who: str = "all"


_WHERE = {"own": lambda thread: thread, "other": lambda thread: thread ^ 32, "beside": lambda thread: thread ^ 1, "one": lambda _: 0}
_WHO = {"all": lambda _: True, "warp": lambda thread: thread < 32, "lane": lambda thread: thread % 32 == 0}
_TEXT = {
    "own": "[%r9]", "other": "[%r10]", "beside": "[%r11]", "one": "[%r8]", "all": "", "warp": "@%p2 ", "lane": "@%p3 ",
}  # fmt: skip
THREADS = 64


def text_of(steps: list[Step]) -> str:
    lines = ["st.shared.b32 [%r9], %r1;", "bar.sync 0;"]
    for number, step in enumerate(steps):
        at, guard = _TEXT[step.where], _TEXT[step.who]
        lines.append({
            "store": f"add.s32 %r20, %r1, {1000 * (number + 1)};\n{guard}st.shared.b32 {at}, %r20;",
            "load": f"{guard}ld.shared.b32 %r21, {at};",
            "atomic": f"{guard}red.shared.add.u32 {at}, 1;", "barrier": "bar.sync 0;", "warp barrier": "bar.warp.sync -1;",
            "named": "bar.sync 3, 64;",
        }[step.what])  # fmt: skip
    return "\n".join(lines)


def races(steps: list[Step]) -> set[tuple[int, int]]:
    """Pairs of steps that race, by the ancestors of every event: what a thread did before, and what all did before a barrier."""
    before = [0] * THREADS
    """Of each thread the events that happened before what it does next, a bit each."""
    events: list[tuple[int, int, int]] = []
    ancestors: list[int] = []
    for number, step in enumerate(steps):
        if step.what in ("barrier", "named", "warp barrier"):
            size = 32 if step.what == "warp barrier" else THREADS
            for first in range(0, THREADS, size):
                joined = 0
                for thread in range(first, first + size):
                    joined |= before[thread]
                before[first : first + size] = [joined] * size
            continue
        for thread in range(THREADS):
            if _WHO[step.who](thread):
                events.append((number, thread, _WHERE[step.where](thread)))
                ancestors.append(before[thread])
                before[thread] |= 1 << (len(events) - 1)
    found = set()
    for later, (number, _, word) in enumerate(events):
        for earlier in range(later):
            other = events[earlier]
            kinds = {steps[number].what, steps[other[0]].what}
            if other[2] == word and kinds not in ({"load"}, {"atomic"}) and not ancestors[later] >> earlier & 1:
                found.add((other[0], number))
    return found


def random_steps(rng: np.random.Generator) -> list[Step]:
    steps = []
    for _ in range(int(rng.integers(3, 9))):
        what = str(rng.choice(["store", "load", "load", "atomic", "barrier", "barrier", "warp barrier", "named"]))
        steps.append(Step(what, str(rng.choice(list(_WHERE))), str(rng.choice(list(_WHO)))))
    return steps


def found_pairs(steps: list[Step]) -> set[tuple[int, int]]:
    """The pairs of steps that the checks name."""
    case = CheckCase(name="", check="races", match="", body=text_of(steps), threads=THREADS)
    made: Kernel = case.kernel(0, checks=("races",))
    accesses = [each for each in made.entry.instructions if each.opcode.split(".")[0] in ("st", "ld", "red") and "shared" in each.opcode]
    numbers = [number for number, step in enumerate(steps) if step.what in ("store", "load", "atomic")]
    by_text = {id(each): number for each, number in zip(accesses[1:], numbers, strict=True)}
    found: list[Any] = []
    array = np.zeros(4096, np.uint32)
    made.launch((1,), [array.ctypes.data], [(array.ctypes.data, array.ctypes.data + array.nbytes)], findings=found)
    pairs = {tuple(sorted((by_text[id(each.instruction)], by_text[id(each.before)]))) for each in found}
    return {(first, last) for first, last in pairs}


@pytest.mark.parametrize("number", [*range(12), *(pytest.param(each, marks=pytest.mark.slow) for each in range(12, 300))])
def test_random_programs_race_where_a_plain_account_says_so(number: int) -> None:
    steps = random_steps(operands.generator("checks", str(number)))
    found, expected = found_pairs(steps), races(steps)
    assert found <= expected, (steps, found - expected)
    assert bool(found) == bool(expected), (steps, expected)
