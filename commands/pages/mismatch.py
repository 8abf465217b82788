"""What `mmabits mismatch` found."""

from __future__ import annotations

from typing import Final

from mmabits.reports.pages.report import Cell, Count, NoteBlock, Report, Section, TableBlock, plural, report_page
from mmabits.research.mismatch import Mismatch

NOTICE: Final = (
    "A small model with random weights: it has learned nothing, and says how bits part, not how much a real model loses. Only the "
    "linear layers are emulated; attention, norms and activations are PyTorch's on the CPU, the same in both settings."
)


def mismatch_page(found: Mismatch, *, is_small: bool = True) -> str:
    """The page: log-probabilities, causes one by one, layers."""
    verdict = "The same bits" if found.is_same else f"{plural(found.changed, 'token')} of {found.tokens} get other log-probabilities"
    return report_page(
        Report(
            title="Trainer against generator",
            lead=f"{found.a.words} against {found.b.words}.",
            verdict=verdict, tone="good" if found.is_same else "bad", notice=NOTICE if is_small else "",
            counts=(
                Count(value=found.changed, what=f"of {found.tokens} tokens change", tone="bad" if found.changed else "good"),
                Count(value=sum(bool(layer.changed) for layer in found.layers), what=f"of {len(found.layers)} layers differ"),
            ),
            facts=(
                ("first cause", found.first_cause or "nothing differs"),
                ("log-probabilities", f"mean difference {found.mean:.3g}, largest {found.largest:.3g}"),
                ("divergence", f"{found.kl:.3g} (Kullback-Leibler, of the second from the first)"),
                ("importance ratios", f"{found.ratios[0]:.6g} to {found.ratios[1]:.6g}"),
                ("from f32", f"first {found.to_f32[0]:.3g}, second {found.to_f32[1]:.3g} (mean)"),
            ),
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
        headings=("cause", "the first setting with it", "tokens that change", "mean difference", "changes the first layer that differs"),
        rows=rows, numeric=frozenset({2, 3}),
    )  # fmt: skip
    return Section(title="Causes, each alone", blocks=(table, NoteBlock(text="What they do together need not be their sum.")))


def _layers(found: Mismatch) -> Section:
    rows = tuple(
        (layer.name, layer.results, layer.changed, layer.mean_ulps, layer.ulps, layer.own_changed, layer.own_mean_ulps, layer.own_ulps)
        for layer in found.layers
    )
    table = TableBlock(
        headings=("layer", "results", "changed", "mean ulps", "most ulps", "changed by itself", "mean ulps", "most ulps"), rows=rows,
        numeric=frozenset(range(1, 8)), caption="By itself: with the inputs of the first setting's run in both.",
    )  # fmt: skip
    return Section(title="Layers, in their order", blocks=(table,))
