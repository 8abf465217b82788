"""A comparison of ways as a terminal and a page show it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from mmabits.reports.output import Fitting
from mmabits.reports.pages.charts import Bar, bars
from mmabits.reports.pages.report import Block, Cell, ChartBlock, NoteBlock, Report, Section, TableBlock, plural, report_page

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mmabits.conformance.ways import Way, WaysCompared, Worst

_PICTURES = 3
"""Elements that the page draws."""
_BAR = 24


def title(found: WaysCompared) -> str:
    """The product in a line."""
    m, n, k = found.shape
    promoted = f", promoted every {found.promote_every}" if found.promote_every else ""
    return f"{m} x {n} x {k}, {found.format}{promoted}; against {found.base.name}"


def shown(found: WaysCompared) -> Iterator[RenderableType]:
    """For a terminal."""
    yield title(found)
    yield from found.operands.notes
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("way", "evidence", "differ", "largest", "relative", "most ulp", "error"):
        table.add_column(name, justify="left" if name in ("way", "evidence") else "right", no_wrap=True)
    for way in found.ways:
        table.add_row(escape(way.name), way.evidence, *_apart(way), f"{way.error:.1e}")
    yield Fitting(table)
    yield "differ, largest, relative, ulp: from the first way; error: from the matrices as given"
    yield from (f"{way.name}: {way.instruction.ptx}" for way in found.ways if way.instruction is not None)
    for way in found.ways:
        yield from _histogram(way)
    if found.worst:
        yield "the elements that differ most:"
        values = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("element", "ulp", *(way.name for way in found.ways)):
            values.add_column(escape(name), justify="left" if name == "element" else "right", no_wrap=True)
        for one in found.worst:
            values.add_row(f"\\[{one.row}, {one.column}]", "" if one.ulp is None else f"{one.ulp:,}", *map(escape, one.values))
        yield Fitting(values)


def verdict(found: WaysCompared) -> str:
    """What came out, in a sentence."""
    if found.is_equal:
        return f"{len(found.ways)} ways, the same bits"
    parts = [
        f"{way.difference.differing:,} on {way.name}" for way in found.ways if way.difference is not None and not way.difference.is_equal
    ]
    return f"{', '.join(parts)} of {found.base.result.size:,} elements differ from {found.base.name}"


def _apart(way: Way) -> tuple[str, str, str, str]:
    """Elements that differ, the largest difference, in proportion, in ulp."""
    apart = way.difference
    if apart is None:
        return "base", "", "", ""
    share = f" ({100 * apart.differing / apart.elements:.3g} %)" if apart.differing else ""
    return f"{apart.differing:,}{share}", f"{way.largest:.2g}", f"{way.relative:.1e}", f"{apart.largest_ulp:,}"


def _histogram(way: Way) -> Iterator[str]:
    if way.difference is None or way.difference.is_equal:
        return
    yield f"{way.name}, elements by how far they are from the base:"
    most = max((part.count for part in way.difference.ulps), default=1)
    for part in way.difference.ulps:
        if part.count:
            yield f"  {part.label:>22} ulp  {'#' * max(1, round(_BAR * part.count / most)):{_BAR}}  {part.count:,}"
    for kind, count in way.difference.counts.items():
        if count and kind.value not in ("equal", "value"):
            yield f"  {kind.value:>26}  {'':{_BAR}}  {count:,}"


# A page --------------------------------------------------------------------------------------------------------------


def ways_page(found: WaysCompared, *, names: tuple[str, str] = ("a", "b")) -> str:
    """The page.

    Args:
        found: the comparison.
        names: of the two matrices.
    """
    m, n, k = found.shape
    facts = [("matrices", f"{names[0]} ({m} x {k}) times {names[1]} ({k} x {n})"), ("format", found.format)]
    facts += [("quantized", note) for note in found.operands.notes]
    if found.operands.factor != 1.0:
        facts.append(("factor", f"{found.operands.factor:.9g}, multiplied afterwards, in float32; the drawings below are before it"))
    return report_page(
        Report(
            title="One product, several ways",
            lead=f"{m:,} x {n:,} results of {k:,} products each, compared bit by bit with {found.base.name}.",
            verdict=verdict(found), tone="good" if found.is_equal else "bad", facts=tuple(facts),
            sections=(
                Section(title="Ways", blocks=(_ways(found),)), *_charts(found), *([_worst(found)] if found.worst else []),
                *_explained(found),
            ),
        )
    )  # fmt: skip


def _ways(found: WaysCompared) -> Block:
    rows = tuple(
        (
            way.name, way.evidence, *_apart(way), f"{way.error:.3g}",
            Cell(text="" if way.instruction is None else way.instruction.ptx, is_code=True),
        )
        for way in found.ways
    )  # fmt: skip
    return TableBlock(
        headings=("way", "evidence", "differ", "largest", "relative", "most ulp", "error", "instruction"), rows=rows,
        numeric=frozenset(range(2, 7)),
        caption="Error: root mean square of what lies between the result and the product of the matrices as given, relative to it.",
    )  # fmt: skip


def _charts(found: WaysCompared) -> Iterator[Section]:
    for way in found.ways:
        if way.difference is not None and way.difference.ulps:
            chart = bars(
                [Bar(label=f"{part.label} ulp", value=part.count) for part in way.difference.ulps], label="differing elements by ulp"
            )
            yield Section(
                title=f"{way.name}: how far", blocks=(ChartBlock(svg=chart, caption=f"Elements by their distance from {found.base.name}."),)
            )


def _worst(found: WaysCompared) -> Section:
    rows = tuple((f"[{one.row}, {one.column}]", "" if one.ulp is None else one.ulp, *one.values) for one in found.worst)
    headings = ("element", "ulp", *(way.name for way in found.ways))
    return Section(
        title="The elements that differ most",
        blocks=(TableBlock(headings=headings, rows=rows, numeric=frozenset(range(1, len(headings)))),),
    )


def _explained(found: WaysCompared) -> Iterator[Section]:
    for one in found.worst[:_PICTURES]:
        yield Section(title=f"Element [{one.row}, {one.column}]", blocks=tuple(_element(found, one)))


def _element(found: WaysCompared, place: Worst) -> Iterator[Block]:
    from mmabits.research.explain.page import drawn_step
    from mmabits.research.explain.words import exact

    for explanation in found.explain(place):
        chain = explanation.trace
        error = "" if chain.error is None else f" Result minus exact: {exact(chain.error)}."
        steps = plural(len(chain.steps), "step")
        text = f"{chain.arch}, {chain.instruction.ptx}: exactly {exact(chain.exact)}; after {steps} {chain.result}.{error}"
        yield NoteBlock(text=text)
        yield from drawn_step(chain)


__all__ = ["shown", "title", "verdict", "ways_page"]
