"""What was measured as tables for the terminal and for the README, as JSON and as a plot."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import scaling
from benchmarks.data import Data
from benchmarks.measure import RateRow
from benchmarks.paths import HARD_DATA_MINIMUM
from benchmarks.peers import PeerRow

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and with what it was measured."""

    date: str
    """UTC, ISO 8601."""
    cpu: str
    vectors: str
    """What the engine was compiled for."""
    cores: int
    """That the process may use."""
    system: str
    versions: dict[str, str]
    commit: str
    """With `+` where the working tree differs from it."""
    command: str


@dataclass(kw_only=True)
class Results:
    """Everything one run measured; `add` collects it as it comes."""

    machine: Machine
    size: str
    rates: list[RateRow] = field(default_factory=list)
    sizes: list[scaling.SizeRow] = field(default_factory=list)
    threads: list[scaling.ThreadRow] = field(default_factory=list)
    memory: list[scaling.MemoryRow] = field(default_factory=list)
    start: list[scaling.StartRow] = field(default_factory=list)
    cold: list[scaling.ColdRow] = field(default_factory=list)
    calls: list[scaling.CallRow] = field(default_factory=list)
    tiles: list[scaling.TileRow] = field(default_factory=list)
    peers: list[PeerRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""

    @property
    def different(self) -> int:
        """Outputs that differ from the exact model."""
        return sum(row.different for row in self.rates)

    @property
    def missed(self) -> list[str]:
        """Everything below its minimum, one line each."""
        return [line.what for line in targets(self) if not line.reached]

    def to_json(self) -> str:
        """All of it, with the derived rates."""
        lists = ("rates", "sizes", "threads", "memory", "start", "cold", "calls", "tiles", "peers")
        return json.dumps(
            {"schema": SCHEMA, "machine": dataclasses.asdict(self.machine), "size": self.size}
            | {name: [_record(row) for row in getattr(self, name)] for name in lists} | {"missed": self.missed, "notes": self.notes},
            indent=1, allow_nan=False,
        )  # fmt: skip


def _record(row: Any) -> dict[str, Any]:
    derived = {name: getattr(row, name) for name in ("gmacs", "numpy_gmacs", "peer_gmacs") if hasattr(row, name)}
    return dataclasses.asdict(row) | derived


# ---------------------------------------------------------------------------------------------------------------- targets


@dataclass(frozen=True, kw_only=True)
class TargetLine:
    """One demand and whether it was met."""

    what: str
    reached: bool


def _at_least(what: str, value: float, limit: float) -> TargetLine:
    return TargetLine(what=f"{what} {value:.3g}, at least {limit:g}", reached=value >= limit)


def _at_most(what: str, value: float, limit: float) -> TargetLine:
    return TargetLine(what=f"{what} {value:.3g}, at most {limit:g}", reached=value <= limit)


def targets(results: Results) -> list[TargetLine]:
    """Every demand that this run can tell about."""
    lines = []
    for row in results.rates:
        if row.data == Data.PLAIN.value:
            lines.append(_at_least(f"{row.path}, {row.threads} threads: ratio", row.ratio, row.minimum))
        else:
            lines.append(
                _at_least(f"{row.path}, {row.threads} threads, {row.data}: part of the plain rate", row.relative, HARD_DATA_MINIMUM)
            )
        if row.different:
            lines.append(_at_most(f"{row.path}, {row.data}: outputs with other bits, the first {row.first_difference}:", row.different, 0))
    spreads = size_spreads(results.sizes)
    lines += [_at_least(f"{path}: slowest / fastest size", spread, scaling.SIZE_SPREAD) for path, spread in spreads.items()]
    lines += [_at_least(f"{row.path}: two threads / one", row.speedup, scaling.SPEEDUP) for row in results.threads if row.threads == 2]
    lines += [_at_most(f"{row.path}: MiB of memory at {row.size}^3", row.beyond_mib, scaling.MEMORY_MIB) for row in results.memory]
    lines += [_at_most(f"{row.path}: start / imports", row.ratio, scaling.START) for row in results.start]
    lines += [_at_most(f"{row.path}: seconds with a cold cache", row.seconds, scaling.COLD_SECONDS) for row in results.cold]
    lines += [_at_most(f"{row.path}: microseconds of one mma", row.microseconds, scaling.CALL_MICROSECONDS) for row in results.calls]
    lines += [_at_least(f"{row.path}: batch / GEMM rate", row.batch_ratio, scaling.BATCH) for row in results.calls]
    for row in results.tiles:
        tile = f"{row.path}, tile of {' x '.join(map(str, row.shape))}"
        if row.shape[:2] == scaling.TILES[0]:
            lines.append(_at_most(f"{tile}: microseconds", row.microseconds, scaling.TILE_MICROSECONDS))
        else:
            lines.append(_at_least(f"{tile}: rate / that of a large product", row.ratio, row.minimum))
    return lines


def size_spreads(rows: Iterable[scaling.SizeRow]) -> dict[str, float]:
    """Slowest / fastest rate over the sizes of each path, NumPy left out."""
    rates: dict[str, list[float]] = {}
    for row in rows:
        if row.path != "numpy":
            rates.setdefault(row.path, []).append(row.gmacs)
    return {path: min(each) / max(each) for path, each in rates.items() if len(each) > 1}


# ----------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table, ready for either form."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    text_columns: int = 1
    """Columns from the left that hold text."""


def sheets(results: Results) -> list[Sheet]:
    """The tables that have rows."""
    made = [
        _rate_sheet(results.rates), _hard_sheet(results.rates), _peer_sheet(results.peers), _size_sheet(results.sizes),
        _thread_sheet(results.threads), _memory_sheet(results.memory), _start_sheet(results.start), _cold_sheet(results.cold),
        _call_sheet(results.calls), _tile_sheet(results.tiles),
    ]  # fmt: skip
    return [sheet for sheet in made if sheet.rows]


def _verdict(ratio: float, minimum: float, aim: float) -> str:
    return "aim" if ratio >= aim else "reached" if ratio >= minimum else "MISSED"


def _rate_sheet(rates: Sequence[RateRow]) -> Sheet:
    plain = [row for row in rates if row.data == Data.PLAIN.value]
    shapes = {row.shape for row in plain}
    title = "Rate beside NumPy's f32 matmul" + (", M x N x K = {} x {} x {}".format(*shapes.pop()) if len(shapes) == 1 else "")
    return Sheet(
        title=title,
        columns=("path", "threads", "GMAC/s", "NumPy", "ratio", "min", "max", "at least", "aim", "", "bits"),
        rows=[
            (row.path, str(row.threads), f"{row.gmacs:.2f}", f"{row.numpy_gmacs:.0f}", f"{row.ratio:.3f}", f"{row.ratio_min:.3f}",
             f"{row.ratio_max:.3f}", f"{row.minimum:g}", f"{row.aim:g}", _verdict(row.ratio, row.minimum, row.aim), _bits([row]))
            for row in plain
        ],
    )  # fmt: skip


def _bits(rows: Sequence[RateRow]) -> str:
    compared, different = sum(row.compared for row in rows), sum(row.different for row in rows)
    return f"{different} of {compared} DIFFER" if different else f"{compared} equal"


def _hard_sheet(rates: Sequence[RateRow]) -> Sheet:
    kinds = [kind.value for kind in Data if kind is not Data.PLAIN]
    rows: dict[tuple[str, int], dict[str, RateRow]] = {}
    for row in rates:
        if row.data != Data.PLAIN.value:
            rows.setdefault((row.path, row.threads), {})[row.data] = row
    return Sheet(
        title=f"Hard data: rate as a part of the rate on plain data (at least {HARD_DATA_MINIMUM:g})",
        columns=("path", "threads", *kinds, "", "bits", "finite"),
        rows=[
            (path, str(threads), *(f"{found[kind].relative:.2f}" if kind in found else "" for kind in kinds),
             "reached" if all(row.relative >= HARD_DATA_MINIMUM for row in found.values()) else "MISSED", _bits(list(found.values())),
             str(sum(row.finite for row in found.values())))
            for (path, threads), found in rows.items()
        ],
    )  # fmt: skip


def _peer_sheet(rows: Sequence[PeerRow]) -> Sheet:
    return Sheet(
        title="Other emulators on the same operands" + (", M x N x K = {} x {} x {}".format(*rows[0].shape) if rows else ""),
        columns=("peer", "path", "data", "GMAC/s", "peer", "times as fast", "bits"),
        rows=[
            (f"{row.peer} {row.version}", row.path, row.data, *(("", "", "", row.reason) if row.reason else (
                f"{row.gmacs:.2f}", f"{row.peer_gmacs:.4f}", f"{row.speedup:.0f}",
                f"{row.different} of {row.outputs} differ" if row.different else f"{row.outputs} equal")))
            for row in rows
        ],
        text_columns=3,
    )  # fmt: skip


def _size_sheet(rows: Sequence[scaling.SizeRow]) -> Sheet:
    sizes = sorted({row.size for row in rows})
    rates: dict[str, dict[int, float]] = {}
    for row in rows:
        rates.setdefault(row.path, {})[row.size] = row.gmacs
    spreads = size_spreads(rows)
    return Sheet(
        title=f"GMAC/s by size, M = N = K (slowest / fastest at least {scaling.SIZE_SPREAD:g})",
        columns=("path", *map(str, sizes), "slowest / fastest"),
        rows=[
            (path, *(f"{found[size]:.2f}" if size in found else "" for size in sizes), f"{spreads[path]:.2f}" if path in spreads else "")
            for path, found in rates.items()
        ],
    )  # fmt: skip


def _thread_sheet(rows: Sequence[scaling.ThreadRow]) -> Sheet:
    return Sheet(
        title=f"Threads (two at least {scaling.SPEEDUP:g} times one)",
        columns=("path", "size", "threads", "GMAC/s", "times one thread"),
        rows=[(row.path, f"{row.size}^3", str(row.threads), f"{row.gmacs:.2f}", f"{row.speedup:.2f}") for row in rows],
    )


def _memory_sheet(rows: Sequence[scaling.MemoryRow]) -> Sheet:
    return Sheet(
        title=f"Peak resident memory, MiB (at most {scaling.MEMORY_MIB:.0f} beyond operands and result)",
        columns=("path", "size", "operands", "result", "peak", "beyond"),
        rows=[
            (row.path, f"{row.size}^3", *(f"{mib:.1f}" for mib in (row.operands_mib, row.result_mib, row.peak_mib, row.beyond_mib)))
            for row in rows
        ],
    )


def _start_sheet(rows: Sequence[scaling.StartRow]) -> Sheet:
    return Sheet(
        title=f"Start of a process with a warm cache, seconds (at most {scaling.START:g} times the imports)",
        columns=("path", "to the first result", "import numba, numpy", "ratio"),
        rows=[(row.path, f"{row.seconds:.2f}", f"{row.import_seconds:.2f}", f"{row.ratio:.2f}") for row in rows],
    )


def _cold_sheet(rows: Sequence[scaling.ColdRow]) -> Sheet:
    return Sheet(
        title=f"First call with a cold cache (at most {scaling.COLD_SECONDS:.0f} s)",
        columns=("path", "seconds", "functions compiled"),
        rows=[(row.path, f"{row.seconds:.1f}", str(row.compiled)) for row in rows],
    )


def _call_sheet(rows: Sequence[scaling.CallRow]) -> Sheet:
    return Sheet(
        title=f"Small calls (one mma at most {scaling.CALL_MICROSECONDS:.0f} us; a batch at least {scaling.BATCH:g} of the GEMM rate)",
        columns=("path", "one mma, us", "tiles", "batch GMAC/s", "GEMM GMAC/s", "ratio"),
        rows=[
            (row.path, f"{row.microseconds:.1f}", str(row.tiles), *(f"{x:.2f}" for x in (row.batch_gmacs, row.gemm_gmacs, row.batch_ratio)))
            for row in rows
        ],
    )


def _tile_sheet(rows: Sequence[scaling.TileRow]) -> Sheet:
    return Sheet(
        title=(
            "One call of the engine's machine code, as compiled kernels make it (16 x 8 in at most "
            f"{scaling.TILE_MICROSECONDS:g} us; others at least {scaling.TILE:g}, 64 x 256 at least {scaling.WIDE_TILE:g}, of the rate of "
            + "{} x {} x {})".format(*scaling.LARGE)
        ),
        columns=("path", "tile", "us", "GMAC/s", "large", "ratio"),
        rows=[
            (row.path, " x ".join(map(str, row.shape)), f"{row.microseconds:.2f}", f"{row.gmacs:.2f}", f"{row.large_gmacs:.2f}",
             f"{row.ratio:.2f}")
            for row in rows
        ],
        text_columns=2,
    )  # fmt: skip


def rich_table(sheet: Sheet) -> Table:
    """For the terminal, without the title."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for i, column in enumerate(sheet.columns):
        table.add_column(column, justify="left" if i < sheet.text_columns else "right", no_wrap=True)
    for row in sheet.rows:
        table.add_row(*row, style="red" if any(cell == "MISSED" or cell.endswith("DIFFER") for cell in row) else None)
    return table


def markdown(results: Results) -> str:
    """For the README: the tables, and when, where and how they were made."""
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    parts = [
        "# Speed\n",
        f"{machine.date}, {machine.cpu} ({machine.vectors}), {machine.cores} cores, {machine.system}. {versions}.",
        f"Commit {machine.commit}, `{machine.command}`.\n",
        *(_markdown_table(sheet) for sheet in sheets(results)),
        _list("Missed", results.missed), _list("Notes", results.notes),
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def _markdown_table(sheet: Sheet) -> str:
    rule = [("---" if i < sheet.text_columns else "---:") for i in range(len(sheet.columns))]
    lines = ["| " + " | ".join(cells) + " |" for cells in (sheet.columns, tuple(rule), *sheet.rows)]
    return f"## {sheet.title}\n\n" + "\n".join(lines) + "\n"


def _list(title: str, lines: Sequence[str]) -> str:
    return f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines) + "\n" if lines else ""


# ------------------------------------------------------------------------------------------------------------------ files


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write(results: Results, folder: Path) -> list[Path]:
    """Write `results.json`, `results.md` and, where there is something to plot and Matplotlib is installed, `rates.png`.

    The first also goes into the folder `processors`, by a name of its own for each processor, where later runs on others leave it.
    """
    from benchmarks.plot import plot

    picture = plot(results)
    if picture is None and (results.sizes or results.threads):
        results.notes.append("no plot: Matplotlib is not installed")
    files = {"results.json": (results.to_json() + "\n").encode(), "results.md": (markdown(results) + "\n").encode()}
    processor = re.sub("[^a-z0-9]+", "-", f"{results.machine.cpu} {results.machine.vectors}".lower()).strip("-")
    files[f"processors/{processor}.json"] = files["results.json"]
    files |= {"rates.png": picture} if picture is not None else {}
    for name, content in files.items():
        write_atomically(folder / name, content)
    return [folder / name for name in files]
