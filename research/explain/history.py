"""The history of a result of a compiled kernel as one self-contained page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mmabits.isa import MmabitsError
from mmabits.reports.pages import render
from mmabits.research.explain.picture import step_picture

if TYPE_CHECKING:
    from mmabits.research.follow import ProductStep, ResultExplanation, ResultStep

DRAWN: Final = 12
"""Products that are drawn,"""
PICTURES: Final = 8
"""and steps of each."""


def history_page(explanation: ResultExplanation) -> str:
    """The page: the result, what it was made of step by step, and its tensor products drawn."""
    numbers: dict[int, int] = {}
    steps: list[ResultStep] = []
    waiting = [explanation.root.origin]
    while waiting:
        step = waiting.pop(0)
        if id(step) not in numbers:
            numbers[id(step)] = len(numbers) + 1
            steps.append(step)
            waiting += [child.origin for child in step.children]
    products = [step for step in explanation.products if id(step) in numbers]
    drawn = [_product(step, numbers[id(step)]) for step in products[:DRAWN]]
    shown = {each["number"] for each in drawn}
    return render(
        "history.html.j2", package="mmabits.research.explain", element=explanation.element, value=explanation.value,
        kernel=explanation.kernel, arch=explanation.arch, program=explanation.program, left_out=explanation.left_out,
        root_way=_way(explanation.stored or explanation.root), rows=[_row(step, numbers, shown) for step in steps], products=drawn,
        more=len(products) - len(drawn), elements=sum(step.is_element for step in steps),
    )  # fmt: skip


def _row(step: ResultStep, numbers: dict[int, int], drawn: set[int]) -> dict[str, Any]:
    number = numbers[id(step)]
    return {
        "number": number, "value": step.number, "code": f"{step.code:#x}", "form": step.form, "text": step.text, "where": step.where,
        "is_element": step.is_element, "is_drawn": number in drawn,
        "parts": [{"number": numbers[id(child.origin)], "way": _way(child)} for child in step.children],
    }  # fmt: skip


def _way(step: ResultStep) -> list[dict[str, str]]:
    """Moves of the bits, from the later to the earlier: registers, shuffles, memory, copies."""
    found = []
    while step.is_copy and step.children:
        found.append({"text": step.text, "where": step.where})
        step = step.children[0]
    return found


def _product(step: ProductStep, number: int) -> dict[str, Any]:
    pictures: list[str] = []
    count, reason = 0, ""
    try:
        trace = step.explain().trace
        count = len(trace.steps)
        pictures = [step_picture(trace, each) for each in trace.steps[:PICTURES]]
    except MmabitsError as error:
        reason = str(error)
    return {
        "number": number, "ptx": step.instruction.ptx, "text": step.text, "value": step.number, "k": len(step.a), "where": step.where,
        "is_equal": step.computed == step.code, "pictures": pictures, "steps": count, "reason": reason,
    }  # fmt: skip
