"""What `mmabits diff` found: one comparison in full, or several cases with a table on top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmabits.conformance.diff.comparison import CALLS_LEAD, Comparison
from mmabits.conformance.recorded.calls import RecordedCall
from mmabits.reports.pages.report import Cell, Report, Section, TableBlock, not_done, plural, report_page


def differences_page(found: Sequence[Comparison], failed: Sequence[tuple[str, str]] = ()) -> str:
    """The page.

    Args:
        found: what was compared.
        failed: names and errors of cases that could not be.
    """
    different = [one for one in found if not one.is_equal]
    sections = [not_done("Not compared", "case", failed)] if failed else []
    if len(found) == 1:
        only, sections = found[0], [*sections, *found[0].sections()]
        title, lead, verdict = f"{only.name}, recorded and emulated", only.told.lead, only.verdict
    else:
        title, lead = "Kernels and products, recorded and emulated", CALLS_LEAD
        verdict = f"{plural(len(found), 'case')}: {len(found) - len(different):,} equal, {len(different):,} different"
        sections = [*([Section(title="Cases", blocks=(_summary(found),))] if found else []), *sections]
        sections += [replace(section, title=f"{one.name}: {section.title}") for one in different for section in one.sections()]
    if failed:
        verdict += f"; {plural(len(failed), 'case')} not compared"
    notice, tone = next((one.told.notice for one in found if one.told.notice), ""), "bad" if different or failed else "good"
    return report_page(
        Report(title=title, lead=lead, notice=notice, verdict=verdict, tone=tone, facts=_facts(found), sections=tuple(sections))
    )


def _facts(found: Sequence[Comparison]) -> tuple[tuple[str, str], ...]:
    """Those of a file of tiles or dot products are its own; calls have some in common."""
    own = found[0].told.facts if len(found) == 1 else ()
    results = found[0].told.unit if len(found) == 1 else "elements"
    counts = (results, f"{sum(one.elements for one in found):,}"), ("differ", f"{sum(one.differing for one in found):,}")
    calls = [one.recorded for one in found if isinstance(one.recorded, RecordedCall)]
    if found and not calls:
        return (*own, *counts)
    versions = {f"{name} {version}": None for call in calls for name, version in sorted(call.versions.items())}
    return (
        *own, ("recorded on", ", ".join(dict.fromkeys(f"{call.gpu} ({call.arch})" for call in calls)) or "nothing"),
        ("emulated", ", ".join(dict.fromkeys(one.arch for one in found)) or "nothing"), *counts,
        ("seeds", ", ".join(dict.fromkeys(str(call.seed) for call in calls))), ("with", ", ".join(versions)),
    )  # fmt: skip


def _summary(found: Sequence[Comparison]) -> TableBlock:
    rows = tuple(
        (
            Cell(text=one.name, is_code=True), one.recorded.call if isinstance(one.recorded, RecordedCall) else "", one.elements,
            Cell(text=f"{one.differing:,}", tone="good" if one.is_equal else "bad"), one.verdict,
        )
        for one in sorted(found, key=lambda one: one.is_equal)
    )  # fmt: skip
    return TableBlock(headings=("case", "call", "elements", "differ", "verdict"), rows=rows, numeric=frozenset({2, 3}))


__all__ = ["differences_page"]
