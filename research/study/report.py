"""A shipped study, run: table, page, and what was published beside what was measured."""

from __future__ import annotations

import importlib
import io
import re
import textwrap
import time
from pathlib import Path
from typing import Any, Final

from mmabits.isa import MmabitsError, OperandError
from mmabits.reports.failures import one_line
from mmabits.reports.pages import check_folder, render, write
from mmabits.reports.pages.charts import coinciding, series_colors, told_in_legend
from mmabits.research.study.shipped.row import Chart, Rows, Shipped, pick
from mmabits.research.study.sweeps import Table, sweep

SIZES: Final = ("quick", "full")
_INK: Final = "#010203"
"""A colour that stands for the page's own, light or dark."""
_COLORS: Final = ("#2f5fd0", "#c2571a", "#1f8a5b", "#8b5cc7", "#b3263f", "#5f8f00", "#0f8a9d", "#9a6b00")
_MARKERS: Final = "osD^vPX*"
_STYLES: Final = ("-", "--", ":", "-.")
"""Of lines of one colour, in turn."""


def run(study: Shipped, *, out: Path, size: str = "full", client: Any = None, progress: bool = True) -> Table:
    """Compute a study, or what is left of it, and write `table.csv`, `table.parquet` (with pyarrow) and `index.html` into a folder.

    Args:
        study: which.
        out: the folder; a run that was interrupted goes on there.
        size: `"quick"` or `"full"`.
        client: a `distributed.Client`.
        progress: show a bar on a terminal.

    Raises:
        OperandError: another size, or a folder that cannot be written. JournalMismatch: the folder holds another study's results.
        MmabitsError: matplotlib or jinja2, which the page needs, is not installed; nothing is computed then.
    """
    if size not in SIZES:
        raise OperandError(f"a study's size is one of {', '.join(SIZES)}, got {size!r}")
    check_folder(out)
    check_charts()
    has_parquet = can_write_parquet()
    start = time.monotonic()
    table = sweep(study.at, study.points(size), out=out, client=client, progress=progress, what=study.name)
    table.csv(out / "table.csv")
    if has_parquet:  # the CSV has the rows too
        table.parquet(out / "table.parquet")
    write(out / "index.html", page(study, table.rows, size, time.monotonic() - start))
    return table


def page(study: Shipped, rows: Rows, size: str, seconds: float) -> str:
    """The study's page, self-contained."""
    return render(
        "study.html.j2", package="mmabits.research.study", study=study, rows=rows, size=size, seconds=f"{seconds:.0f}",
        columns=list(dict.fromkeys(name for row in rows for name in row)), claims=study.claims(rows), findings=study.findings(rows),
        charts=[{"svg": draw(chart, rows), "title": chart.title, "caption": chart.caption} for chart in study.charts],
    )  # fmt: skip


def check_charts() -> None:
    """Whether what a page is made with is there.

    Raises:
        MmabitsError: matplotlib or jinja2 is not installed, or cannot be loaded.
    """
    for name, what in (("matplotlib.figure", "charts need matplotlib"), ("jinja2", "pages need jinja2")):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MmabitsError(f"{what} ({one_line(error)}): pip install 'mmabits[study]'") from None


def can_write_parquet() -> bool:
    """Whether pyarrow is installed."""
    try:
        importlib.import_module("pyarrow.parquet")
    except ImportError:
        return False
    return True


def draw(chart: Chart, rows: Rows) -> str:
    """A chart as SVG in the page's colours.

    Raises:
        MmabitsError: matplotlib is not installed.
    """
    check_charts()
    import matplotlib
    from matplotlib.figure import Figure

    shown = pick(rows, **(chart.where or {}))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mmabits", "font.family": "sans-serif", "font.size": 10.5}):
        figure = Figure(figsize=(5.6, 4.4), layout="constrained")  # on a telephone letters are still read
        axes = figure.add_subplot()
        (_bars if chart.bars else _lines)(axes, chart, shown)
        axes.set_xlabel(chart.x_label)
        axes.set_ylabel(chart.y_label)
        axes.grid(True, axis="y", color=_INK, alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        legend = figure.legend(frameon=False, fontsize=9, loc="outside lower left", ncols=_columns(axes))
        text = io.StringIO()
        _ink(axes, legend)
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return re.sub(rf"{_INK}", "currentColor", svg[svg.index("<svg") :])


def _columns(axes: Any) -> int:
    """Of a legend below the chart: two where names are short."""
    return 2 if all(len(name) <= 30 for name in axes.get_legend_handles_labels()[1]) else 1


def _ink(axes: Any, legend: Any) -> None:
    for part in (*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label, *legend.get_texts()):
        part.set_color(_INK)
    axes.tick_params(colors=_INK, which="both")
    for spine in axes.spines.values():
        spine.set_color(_INK)


def _series(chart: Chart, rows: Rows) -> list[str]:
    return list(dict.fromkeys(row[chart.series] for row in rows))


def _lines(axes: Any, chart: Chart, rows: Rows) -> None:
    values = [row[chart.y] for row in rows]
    names = list(map(str, _series(chart, rows)))
    lines = [pick(rows, **{chart.series: name}) for name in _series(chart, rows)]
    drawn = [([row[chart.x] for row in line], [row[chart.y] for row in line]) for line in lines]
    is_log = not chart.linear and all(value > 0 for value in values)
    colors, same = series_colors(names, _COLORS), coinciding(drawn, is_log=is_log)
    for number, (told, line, (x, y)) in enumerate(zip(told_in_legend(names, same), lines, drawn, strict=True)):
        color, style = colors[number], _STYLES[colors[:number].count(colors[number]) % len(_STYLES)]
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(x, y, marker=marker, markersize=4.5, linewidth=1.6, linestyle=style, color=color, label=told)
        if chart.low and chart.high:
            axes.fill_between(x, [row[chart.low] for row in line], [row[chart.high] for row in line], color=color, alpha=0.15, linewidth=0)
    if not chart.linear:
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if is_log:
        axes.set_yscale("log")


_LETTERS: Final = 56
"""That have room beside each other below a chart."""


def _bars(axes: Any, chart: Chart, rows: Rows) -> None:
    groups, series = list(dict.fromkeys(row[chart.x] for row in rows)), _series(chart, rows)
    width = 0.82 / len(series)
    colors = series_colors(list(map(str, series)), _COLORS)
    for number, name in enumerate(series):
        found = {row[chart.x]: row[chart.y] for row in pick(rows, **{chart.series: name})}
        at = [place - 0.41 + width * (number + 0.5) for place, group in enumerate(groups) if group in found]
        heights = [found[group] for group in groups if group in found]
        axes.bar(at, heights, width * 0.92, color=colors[number], label=str(name))
    room = max(6, _LETTERS // len(groups))
    axes.set_xticks(range(len(groups)), [textwrap.fill(str(group), room, break_long_words=False) for group in groups])
    if min(row[chart.y] for row in rows) > 0 and max(row[chart.y] for row in rows) > 50 * min(row[chart.y] for row in rows):
        axes.set_yscale("log")
