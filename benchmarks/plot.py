"""Rate against size and rate against threads, as a picture."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.report import Results


def plot(results: Results) -> bytes | None:
    """The picture as PNG; None where there is nothing to plot, or no Matplotlib."""
    if not results.sizes and not results.threads:
        return None
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(11, 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    by_size, by_threads = figure.subplots(1, 2)
    paths = dict.fromkeys([row.path for row in results.sizes] + [row.path for row in results.threads])
    paths.pop("numpy", None)
    colours = {path: f"C{i}" for i, path in enumerate(paths)} | {"numpy": "0.4"}
    _sizes(by_size, results, colours)
    _threads(by_threads, results, colours)
    handles = {label: handle for axes in (by_size, by_threads) for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    machine = results.machine
    figure.suptitle(f"{machine.cpu}, {machine.cores} cores, {machine.date[:10]}", fontsize=9, color="0.3")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _lines(rows: Iterable[Any], x: str) -> dict[str, list[tuple[int, float]]]:
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        lines.setdefault(row.path, []).append((getattr(row, x), row.gmacs))
    return {path: sorted(points) for path, points in lines.items()}


def _sizes(axes: Any, results: Results, colours: dict[str, str]) -> None:
    from matplotlib.ticker import LogLocator

    for path, points in _lines(results.sizes, "size").items():
        label = "NumPy f32 matmul" if path == "numpy" else path
        axes.plot(*zip(*points, strict=True), "--" if path == "numpy" else "o-", color=colours[path], label=label, markersize=4)
    sizes = sorted({row.size for row in results.sizes})
    threads = next((row.threads for row in results.sizes), 1)
    axes.set(title=f"Rate against size, {threads} threads", xlabel="M = N = K", ylabel="GMAC/s", yscale="log")
    if sizes:
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    axes.grid(alpha=0.3)


def _threads(axes: Any, results: Results, colours: dict[str, str]) -> None:
    for path, points in _lines(results.threads, "threads").items():
        counts = [count for count, _ in points]
        axes.plot(*zip(*points, strict=True), "o-", color=colours[path], label=path, markersize=4)
        axes.plot(counts, [points[0][1] * count / counts[0] for count in counts], ":", color=colours[path], linewidth=1)
    counts = sorted({row.threads for row in results.threads})
    size = next((row.size for row in results.threads), 0)
    axes.set(title=f"Rate against threads, {size}$^3$ (dotted: proportional)", xlabel="threads", ylabel="GMAC/s", ylim=(0, None))
    axes.set_xticks(counts)
    axes.grid(alpha=0.3)
