"""An explanation as one self-contained page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from mmabits.reports.pages import render
from mmabits.reports.pages.charts import arch_color
from mmabits.reports.pages.report import ChartBlock
from mmabits.research.explain.picture import step_picture
from mmabits.research.explain.words import code, exact, place
from mmabits.research.trace import Addition, Step, Trace

if TYPE_CHECKING:
    from mmabits.research.explain import Explanation

DRAWN: Final = 24
"""Steps drawn for each architecture; the rest of a longer chain is in the table alone."""


def explanation_page(explanation: Explanation) -> str:
    """The page: results, steps to walk through, the account."""
    chains = [_chain(found) for found in explanation.traces]
    return render(
        "explain.html.j2", package="mmabits.research.explain", element=f"D[{explanation.row}, {explanation.column}]",
        first=chains[0], chains=chains, exact=exact(explanation.trace.exact), drawn=DRAWN,
    )  # fmt: skip


def drawn_step(found: Trace) -> Iterator[ChartBlock]:
    """The step that cuts off most, as a page draws it; none where none cuts anything off."""
    if any(step.lost_by_alignment for step in found.steps):
        step = found.costliest()
        yield ChartBlock(svg=step_picture(found, step), caption=f"Step {step.number}, where alignment cut off most.")


def _chain(found: Trace) -> dict[str, Any]:
    path = found.datapath
    start = found.costliest(DRAWN)
    return {
        "arch": found.arch,
        "ptx": found.instruction.ptx,
        "machine": ", ".join(found.lowering.machine),
        "datapath": path.name,
        "evidence": str(found.lowering.evidence),
        "numbers": (
            f"{path.arithmetic.value}; F = {path.fraction_bits}, steps of {found.lowering.step}, rounding {path.result_rounding.value}"
        ),
        "result": str(found.result),
        "exactly": exact(found.result.value) if found.result.value is not None else str(found.result),
        "code": code(found.result),
        "error": exact(found.error),
        "relative": _relative(found),
        "pictures": [(step_picture(found, step), step_picture(found, step, narrow=True)) for step in found.steps[:DRAWN]],
        "opened": _opened(found, start),
        "color": arch_color(found.arch),
        "events": [_event(event) for event in found.events],
        "steps": len(found.steps),
        "start": start.number,
    }


def _opened(found: Trace, start: Step) -> str:
    """Why the page shows this step first."""
    if start.lost_by_alignment:
        cut = sum(1 for step in found.steps if step.lost_by_alignment)
        many = "the only step that cuts anything off" if cut == 1 else f"the step that cuts most off, of {cut} that do"
        return f"Opened at step {start.number}: {many}."
    if start.lost_by_rounding:
        return f"No step cuts anything off. Opened at step {start.number}, whose rounding takes most."
    if found.result.value is None:
        return f"No step cuts anything off; the result is {found.result}."
    return "No step cuts or rounds anything off: the result is exact." if not found.error else "No step cuts anything off."


def _relative(found: Trace) -> str:
    if found.error is None or not found.exact:
        return ""
    return f"{float(abs(found.error / found.exact)):.2g}"


def _event(event: Step | Addition) -> dict[str, Any]:
    if isinstance(event, Addition):
        return {
            "step": None,
            "k": event.why,
            "largest": "",
            "last": "",
            "alignment": "",
            "rounding": exact(event.lost),
            "result": str(event.result),
        }
    rounding = event.special or exact(event.lost_by_rounding)
    return {
        "step": event.number, "k": place(event.k), "largest": event.largest, "last": event.last_place,
        "alignment": exact(event.lost_by_alignment), "rounding": rounding, "result": str(event.result),
    }  # fmt: skip
