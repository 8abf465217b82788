"""A comparison as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmabits.conformance.diff.comparing import Difference, Kind
from mmabits.reports.pages import render
from mmabits.reports.pages.charts import Bar, bars, heat_map

if TYPE_CHECKING:
    from mmabits.conformance.diff.runs import Run
    from mmabits.conformance.diff.schedules import Fit, Schedule
    from mmabits.conformance.diff.steps import AlongK
    from mmabits.research.explain import Explanation


def difference_page(
    run: Run, schedule: Schedule, arch: str, found: Difference, fits: Sequence[Fit] = (), explanation: Explanation | None = None, *,
    along: AlongK | None = None,
) -> str:  # fmt: skip
    """The page: classes, ulp, map of the output, schedules, the course along K, the first differences, and one of them explained.

    Args:
        run: what was recorded.
        schedule: as emulated.
        arch: emulated.
        found: the comparison.
        fits: schedules that were tried, the best first.
        explanation: of an element that differs.
        along: where along K the sums part, of `along_k`; None: the page does not say.

    Raises:
        MmabitsError: jinja2 is not installed.
    """
    return render(
        "diff.html.j2", package="mmabits.conformance.diff", run=run, schedule=schedule, arch=arch, found=found, fits=fits,
        fitting=sum(fit.differing == 0 for fit in fits), classes=[(kind.value, found.counts[kind]) for kind in Kind],
        histogram=ulp_histogram(found), map=difference_map(found), along=_along(along), explained=_explained(explanation),
        versions=sorted(run.versions.items()),
    )  # fmt: skip


def ulp_histogram(found: Difference) -> str:
    """Bars, one for each power of ten, as SVG; empty where no value differs."""
    parts = [Bar(label=part.label, value=part.count) for part in found.ulps]
    return bars(parts, label="differing values by ulp") if parts else ""


def difference_map(found: Difference) -> str:
    """The output matrix by tiles, the stronger the colour the more elements of a tile differ, as SVG."""
    heights = [min(found.tile[0], found.shape[0] - row * found.tile[0]) for row in range(len(found.tiles))]
    widths = [min(found.tile[1], found.shape[1] - column * found.tile[1]) for column in range(len(found.tiles[0]))]
    sizes = [[height * width for width in widths] for height in heights]
    return heat_map(found.tiles, sizes, tile=found.tile, label="differing elements by output tile")


def _along(along: AlongK | None) -> dict[str, Any] | None:
    """The section along K."""
    if along is None:
        return None
    from mmabits.conformance.diff.steps import error_chart, parting_chart

    first = along.followed[0]
    return {
        "words": along.words, "chart": error_chart(along), "histogram": parting_chart(along), "row": first.row, "column": first.column,
        "fitting": None if along.fitting is None else along.fitting.words, "emulated": along.schedule.words,
        "is_recorded": along.fitting is None and along.recorded is not None,
    }  # fmt: skip


def _explained(explanation: Explanation | None) -> dict[str, Any] | None:
    """The step that cut off most, drawn."""
    if explanation is None:
        return None
    from mmabits.research.explain.picture import step_picture
    from mmabits.research.explain.words import exact

    chain = explanation.trace
    step = max(chain.steps, key=lambda one: (abs(one.lost_by_alignment), -one.number)) if chain.steps else None
    return {
        "row": explanation.row, "column": explanation.column, "arch": chain.arch, "steps": len(chain.steps), "exact": exact(chain.exact),
        "result": str(chain.result), "error": exact(chain.error),
        "step": None if step is None else step.number, "picture": "" if step is None else step_picture(chain, step),
    }  # fmt: skip
