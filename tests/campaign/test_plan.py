"""What a campaign would run, and in which order."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

from mmabits.conformance.campaign.plan import CHOICE_SHAPES, KINDS, NO_STEP, QUESTIONS, CampaignStep, plan_for, questions_of
from mmabits.conformance.record.choices import questions
from mmabits.conformance.record.session import recordable
from mmabits.isa import lower, parse
from mmabits.isa.architectures import ARCHITECTURES
from mmabits.isa.datapaths import DATAPATHS

DOCS = Path(__file__).parents[2] / "docs"
ARCHS = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_120a", "sm_121a")


@lru_cache
def planned(arch: str) -> list[CampaignStep]:
    return plan_for(arch)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_instruction_and_every_row_is_in_the_plan(arch: str) -> None:
    steps = planned(arch)
    keys = [step.key for step in steps]
    assert len(set(keys)) == len(keys) and {step.kind for step in steps} <= set(KINDS)
    asked = [step.name for step in steps if step.kind == "instruction" and not parse(step.name).scale_input_d]
    assert set(asked) == {instruction.ptx for instruction in recordable(arch)}
    rows = [lower(parse(name), arch).datapath.name for name in asked]
    first = {name: rows.index(name) for name in set(rows)}
    assert set(rows) == {row.name for row in DATAPATHS.values() if row.arch == arch and not row.name.startswith("sm_75.hmma884")}
    assert max(first.values()) < 2 * len(first)  # one instruction of each datapath before the others


@pytest.mark.parametrize("arch", ARCHS)
def test_what_is_not_known_comes_before_what_is(arch: str) -> None:
    """No step of known facts alone stands before one that settles a question nothing before it settles."""
    shown: set[str] = set()
    rates = []
    for step in planned(arch):
        rates.append(step.worth(shown) / step.estimate)
        shown.update(fact for fact, _ in step.facts)
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_every_question_has_a_step(question) -> None:
    open_on = question.archs or ARCHS
    settled = [arch for arch in open_on if any(question.is_settled_by(step.kind, step.name, arch) for step in planned(arch))]
    assert settled, question.words
    assert set(settled) == set(open_on) or not question.archs


def test_each_open_question_has_a_step_or_a_reason() -> None:
    """docs/unknown.md and docs/campaign.md know the same questions."""
    unknown, campaign = ((DOCS / name).read_text(encoding="utf-8").replace("`", "") for name in ("unknown.md", "campaign.md"))
    open_part = unknown.split("## ", 1)[0]
    begins = {line.removeprefix("- **").split("**")[0].rstrip(":") for line in open_part.splitlines() if line.startswith("- **")}
    known = {question.about for question in QUESTIONS} | set(NO_STEP)
    assert {next((about for about in known if each.startswith(about)), each) for each in begins} == known
    assert [question.words for question in QUESTIONS if question.words not in campaign] == []
    assert [reason for reason in NO_STEP.values() if reason not in " ".join(campaign.split())] == []


def test_the_open_questions_of_hopper_come_first() -> None:
    first = [step.key for step in plan_for("sm_90a")][:13]
    assert "instruction wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3" in first[:2]
    assert "instruction mma.sync.aligned.m16n8k16.row.col.f32.e4m3.e4m3.f32" in first[:2]
    assert sum("wgmma" in key for key in first) == 7
    (asked,) = questions_of("identify", "wgmma.mma_async.sync.aligned.m64n64k32.f16.e4m3.e4m3", "sm_90a")
    assert asked.name == "wgmma-f16-zero"


def test_only_some() -> None:
    assert {step.kind for step in plan_for("sm_90a", only="function")} == {"function"}
    assert all("e4m3" in step.name for step in plan_for("sm_90a", only="e4m3"))
    assert plan_for("h100", only="choices") and not plan_for("sm_90a", only="nothing has this")
    assert len(questions(CHOICE_SHAPES)) == len(CHOICE_SHAPES)
    assert set(ARCHS) < set(ARCHITECTURES)
