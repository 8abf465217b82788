"""What `mmabits invariance` found."""

from __future__ import annotations

from typing import Final

from mmabits.reports.pages.report import Cell, Count, NoteBlock, Report, Section, TableBlock, plural, report_page
from mmabits.research.invariance import CHANGES, OPEN, SAME, InvarianceFinding, InvarianceReport

TONES: Final = {SAME: "good", OPEN: "soft", CHANGES: "bad"}
KNOWN: Final = (
    "No GPU was asked. Which algorithm the library takes for a shape is a rule, and most rules are prose of others without a count: "
    "same means the same sums by every candidate that the rules name."
)


def invariance_page(report: InvarianceReport) -> str:
    """The page: counts, every setting of every layer, the plans."""
    changed = report.count(CHANGES)
    verdict = "No bit changes" if report.is_settled else "Open" if report.is_invariant else f"{plural(changed, 'setting')} change bits"
    kinds = list(dict.fromkeys(found.kind for found in report.findings))
    sections = [
        Section(title=kind.capitalize(), blocks=(_table([found for found in report.findings if found.kind == kind]),)) for kind in kinds
    ]
    if report.plans:
        rows = tuple((Cell(text=layer), Cell(text=plan)) for layer, plan in report.plans.items())
        sections.append(Section(title="The reference's plans", blocks=(TableBlock(headings=("layer", "plan"), rows=rows),)))
    if report.without_effect:
        sections.append(Section(title="Not compared", blocks=tuple(NoteBlock(text=f"{text}.") for text in report.without_effect)))
    facts = [("held against", report.reference)]
    if report.types[0]:
        facts.append(("A, B and D", " x ".join(report.types[:2]) + f" into {report.types[2]}"))
    return report_page(
        Report(
            title="Do the bits depend on the batch?",
            lead="Rows of linear layers in other batches and settings, bit by bit, and what the changes come from.",
            verdict=verdict, tone="good" if report.is_settled else "soft" if report.is_invariant else "bad",
            notice=KNOWN if report.library else "",
            counts=(
                Count(value=report.count(SAME), what="the same", tone="good"), Count(value=report.count(OPEN), what="open", tone="soft"),
                Count(value=changed, what="change", tone="bad" if changed else ""),
            ),
            facts=tuple(facts),
            sections=(*sections, Section(title="What the words mean", blocks=tuple(NoteBlock(text=text) for text in WORDS))),
        )
    )  # fmt: skip


WORDS: Final = (
    "changes: some results of the sample differ with the best known choices. same: the same sums by the same arithmetic, whichever "
    "candidate the library takes. open: neither; other candidates, or other operands, may change bits.",
    "schedule: another order or cut of K. instruction: another arithmetic, of another tensor-core instruction or of CUDA "
    "cores. reduction: sums over ranks, each rounded to the result's type. function: the function itself gives other bits.",
)


def _table(findings: list[InvarianceFinding]) -> TableBlock:
    rows = tuple(
        (
            found.layer, found.setting, Cell(text=found.status, tone=TONES[found.status]), found.changed, found.most, found.results,
            found.cause, found.candidates, found.plan,
        )
        for found in findings
    )  # fmt: skip
    return TableBlock(
        headings=("layer", "setting", "", "changed", "at most", "of", "cause", "candidates", "plan"),
        rows=rows,
        numeric=frozenset({3, 4, 5, 7}),
    )
