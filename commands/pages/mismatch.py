"""What `mmabits mismatch` found."""

from __future__ import annotations

import math
from typing import Final

from mmabits.reports.pages.report import Cell, Count, NoteBlock, Report, Section, TableBlock, plural, report_page
from mmabits.research.mismatch import Mismatch

NOTICE: Final = (
    "The model: {}. Matrix products are emulated, fused attention as PyTorch's math path; norms, activations and what else is no product "
    "are PyTorch's on the CPU, the same in both settings."
)
MEASURES: Final = {"log-probability": "log-probabilities", "output": "outputs"}


def mismatch_page(found: Mismatch, *, model: str = "") -> str:
    """The page: log-probabilities or outputs, causes one by one, layers."""
    what = MEASURES[found.measure]
    verdict = "The same bits" if found.is_same else f"{plural(found.changed, 'token')} of {found.tokens:,} get other log-probabilities"
    if found.measure == "output" and not found.is_same:
        verdict = f"{plural(found.changed, 'output')} of {found.tokens:,} differ"
    facts = [
        ("first cause", found.first_cause or "nothing differs"),
        (what, f"mean difference {found.mean:.3g}, largest {found.largest:.3g}"),
    ]
    if found.ratios is not None:
        facts += [
            ("divergence", f"{found.kl:.3g} (Kullback-Leibler, of the second from the first)"),
            ("importance ratios", f"{found.ratios[0]:.6g} to {found.ratios[1]:.6g}"),
        ]
    facts.append(("from f32", f"first {found.to_f32[0]:.3g}, second {found.to_f32[1]:.3g} (mean)"))
    if found.not_emulated:
        facts.append(("not emulated", ", ".join(found.not_emulated)))
    return report_page(
        Report(
            title="Trainer against generator",
            lead=f"{found.a.words} against {found.b.words}.",
            verdict=verdict, tone="good" if found.is_same else "bad", notice=NOTICE.format(model) if model else "",
            counts=(
                Count(value=found.changed, what=f"of {found.tokens:,} {what} change", tone="bad" if found.changed else "good"),
                Count(value=sum(bool(layer.changed) for layer in found.layers), what=f"of {len(found.layers)} layers differ"),
            ),
            facts=tuple(facts),
            sections=(*([_causes(found)] if found.causes else []), _layers(found)),
        )
    )  # fmt: skip


def _causes(found: Mismatch) -> Section:
    rows = tuple(
        (
            share.cause,
            share.setting,
            share.changed,
            share.mean,
            Cell(text="yes" if share.first else "no", tone="bad" if share.first else ""),
        )
        for share in found.causes
    )
    table = TableBlock(
        headings=(
            "cause", "the first setting with it", f"{MEASURES[found.measure]} that change", "mean difference",
            "changes the first layer that differs",
        ),
        rows=rows, numeric=frozenset({2, 3}),
    )  # fmt: skip
    return Section(title="Causes, each alone", blocks=(table, NoteBlock(text="What they do together need not be their sum.")))


def _whole(ulps: float) -> float:
    return round(ulps) if math.isfinite(ulps) else ulps


def _layers(found: Mismatch) -> Section:
    rows = tuple(
        (
            layer.name,
            layer.results,
            layer.changed,
            layer.mean_ulps,
            _whole(layer.ulps),
            layer.own_changed,
            layer.own_mean_ulps,
            _whole(layer.own_ulps),
        )
        for layer in found.layers
    )
    table = TableBlock(
        headings=(
            "layer", "results", "changed", "mean ulps", "most ulps", "changed by itself", "mean ulps by itself", "most by itself",
        ),
        rows=rows,
        numeric=frozenset(range(1, 8)), caption="By itself: with the inputs of the first setting's run in both.",
    )  # fmt: skip
    return Section(title="Layers, in their order", blocks=(table,))
