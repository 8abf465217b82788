"""A comparison as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from mmabits.conformance.diff.comparing import Difference, Kind
from mmabits.conformance.pages import render

if TYPE_CHECKING:
    from mmabits.conformance.diff.runs import Run
    from mmabits.conformance.diff.schedules import Fit, Schedule
    from mmabits.conformance.explain import Explanation

_BAR: Final = 26
_WIDEST: Final = 640


def difference_page(
    run: Run, schedule: Schedule, arch: str, found: Difference, fits: Sequence[Fit] = (), explanation: Explanation | None = None
) -> str:
    """The page: classes, ulp, map of the output, schedules, the first differences, and one of them explained."""
    return render(
        "diff.html.j2", package="mmabits.conformance.diff", run=run, schedule=schedule, arch=arch, found=found, fits=fits,
        fitting=sum(fit.differing == 0 for fit in fits), classes=[(kind.value, found.counts[kind]) for kind in Kind],
        histogram=ulp_histogram(found), map=difference_map(found), explained=_explained(explanation), versions=sorted(run.versions.items()),
    )  # fmt: skip


def ulp_histogram(found: Difference) -> str:
    """Bars, one for each power of ten, as SVG; empty where no value differs."""
    if not found.ulps:
        return ""
    most = max(part.count for part in found.ulps)
    height = _BAR * len(found.ulps) + 8
    rows = []
    for number, part in enumerate(found.ulps):
        y = number * _BAR + 4
        width = max(380 * part.count / most, 2 if part.count else 0)
        rows.append(
            f'<text x="150" y="{y + 16}" text-anchor="end">{part.label}</text>'
            f'<rect x="160" y="{y + 3}" width="{width:.1f}" height="{_BAR - 8}" rx="2" fill="var(--accent)"/>'
            f'<text x="{166 + width:.1f}" y="{y + 16}">{part.count:,}</text>'
        )
    return _svg(_WIDEST, height, "differing values by ulp", rows)


def difference_map(found: Difference) -> str:
    """The output matrix by tiles, the darker the more elements of a tile differ, as SVG."""
    rows, columns = len(found.tiles), len(found.tiles[0])
    size = max(4.0, min(44.0, (_WIDEST - 70) / columns, 420 / rows))
    cells = []
    for i, line in enumerate(found.tiles):
        for j, count in enumerate(line):
            first, left = i * found.tile[0], j * found.tile[1]
            height, width = min(found.tile[0], found.shape[0] - first), min(found.tile[1], found.shape[1] - left)
            share = count / (height * width)
            shade = f'fill="var(--bad)" fill-opacity="{0.15 + 0.85 * share:.3f}"' if count else 'fill="var(--line)" fill-opacity="0.6"'
            title = f"rows {first} to {first + height - 1}, columns {left} to {left + width - 1}: {count} of {height * width} differ"
            cells.append(
                f'<rect x="{60 + j * size:.1f}" y="{22 + i * size:.1f}" width="{size - 1:.1f}" height="{size - 1:.1f}" {shade}>'
                f"<title>{title}</title></rect>"
            )
    for i in range(0, rows, max(1, round(22 / size))):
        cells.append(f'<text x="54" y="{22 + i * size + min(size, 16) - 3:.1f}" text-anchor="end">{i * found.tile[0]}</text>')
    for j in range(0, columns, max(1, round(44 / size))):
        cells.append(f'<text x="{60 + j * size:.1f}" y="14">{j * found.tile[1]}</text>')
    return _svg(round(64 + columns * size), round(26 + rows * size), "differing elements by output tile", cells)


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{label}" '
        f'font-size="13" fill="currentColor">{"".join(parts)}</svg>'
    )


def _explained(explanation: Explanation | None) -> dict[str, Any] | None:
    """The step that cut off most, drawn."""
    if explanation is None:
        return None
    from mmabits.conformance.explain.picture import step_picture
    from mmabits.conformance.explain.words import exact

    chain = explanation.trace
    step = max(chain.steps, key=lambda one: (abs(one.lost_by_alignment), -one.number)) if chain.steps else None
    return {
        "row": explanation.row, "column": explanation.column, "arch": chain.arch, "steps": len(chain.steps), "exact": exact(chain.exact),
        "result": str(chain.result), "error": exact(chain.error),
        "step": None if step is None else step.number, "picture": "" if step is None else step_picture(chain, step),
    }  # fmt: skip
