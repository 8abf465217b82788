"""`python -m benchmarks`: measure, print the tables, and write JSON, Markdown and a plot."""

from __future__ import annotations

import enum
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import machine, peers, report, scaling
from benchmarks.data import Data, kinds_of
from benchmarks.measure import RateRow
from benchmarks.paths import MORE_SCALING_IDS, SCALING_IDS, BenchPath, select
from benchmarks.worker import run_job
from mmabits.isa import MmabitsError

EXIT_DIFFERENT: Final = 1
EXIT_ERROR: Final = 2
_PIPE_WIDTH: Final = 200
_CALL_TILES: Final = 100_000


class Size(enum.StrEnum):
    """How much is measured."""

    TINY = "tiny"
    SMALL = "small"
    ISSUE = "issue"
    FULL = "full"


@dataclass(frozen=True, kw_only=True)
class Extent:
    """What a size means."""

    shape: tuple[int, int, int]
    """M, N, K of the rates."""
    repeats: int
    sample: int
    """Outputs of each path whose bits are checked, over all kinds of data."""
    sizes: tuple[int, ...]
    thread_size: int
    memory_size: int
    scaling_ids: tuple[str, ...]
    cold_ids: tuple[str, ...] | None
    """None: every path."""
    tiles: int
    peer_shape: tuple[int, int, int] = peers.SHAPE
    peer_data: tuple[Data, ...] = peers.DATA
    peer_repeats: int = 3


# fmt: off
EXTENTS = {
    Size.TINY: Extent(
        shape=(32, 32, 128), repeats=2, sample=10, sizes=(64, 128), thread_size=128, memory_size=256, scaling_ids=SCALING_IDS[:1],
        cold_ids=(), tiles=100, peer_shape=(16, 16, 64)),
    Size.SMALL: Extent(
        shape=(512, 512, 1024), repeats=3, sample=64, sizes=(128, 256, 512, 1024, 2048), thread_size=1024, memory_size=2048,
        scaling_ids=SCALING_IDS, cold_ids=SCALING_IDS[:1], tiles=_CALL_TILES, peer_data=(Data.PLAIN,),
        peer_repeats=1),
    Size.ISSUE: Extent(
        shape=(1024, 1024, 4096), repeats=7, sample=320, sizes=(128, 256, 512, 1024, 2048), thread_size=2048, memory_size=2048,
        scaling_ids=MORE_SCALING_IDS, cold_ids=MORE_SCALING_IDS, tiles=_CALL_TILES),
    Size.FULL: Extent(
        shape=(1024, 1024, 4096), repeats=11, sample=1280, sizes=(128, 256, 512, 1024, 2048, 4096), thread_size=2048, memory_size=4096,
        scaling_ids=MORE_SCALING_IDS, cold_ids=None, tiles=_CALL_TILES),
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the command line chose."""

    paths: list[BenchPath]
    threads: list[int]
    repeats: int
    hard: bool
    scaling: bool
    peers: bool

    def among(self, identifiers: Collection[str] | None) -> list[str]:
        """The chosen paths that are among the given ones (None: all), for the measurements of scaling."""
        return [path.id for path in self.paths if identifiers is None or path.id in identifiers] if self.scaling else []


@dataclass(frozen=True, kw_only=True)
class Step:
    """A job for a measuring process, and where its rows go."""

    label: str
    rows: str
    """Attribute of report.Results."""
    make: type
    job: dict[str, Any]
    expected: int
    threads: int


def steps(extent: Extent, chosen: Choice) -> list[Step]:
    """The jobs of a run; start and cold start, which time whole processes, are none (see `collect`)."""
    expected = sum(len(kinds_of(path)) if chosen.hard else 1 for path in chosen.paths)
    job = {"task": "rates", "paths": [path.id for path in chosen.paths], "shape": extent.shape, "repeats": chosen.repeats,
           "hard": chosen.hard, "sample": extent.sample}  # fmt: skip
    made = [Step(label="rates", rows="rates", make=RateRow, expected=expected, threads=count, job=job) for count in chosen.threads]
    return made + _scaling_steps(extent, chosen) + _peer_steps(extent, chosen)


def _scaling_steps(extent: Extent, chosen: Choice) -> list[Step]:
    scaled, small, most = chosen.among(extent.scaling_ids), chosen.among(scaling.CALL_IDS), max(chosen.threads)
    made = []
    if scaled:
        common = {"paths": scaled, "repeats": chosen.repeats}
        made.append(Step(label="sizes", rows="sizes", make=scaling.SizeRow, expected=len(extent.sizes) * (len(scaled) + 1), threads=most,
                         job={"task": "sizes", "sizes": extent.sizes, **common}))  # fmt: skip
        made.append(Step(label="threads", rows="threads", make=scaling.ThreadRow, expected=most * len(scaled), threads=most,
                         job={"task": "threads", "size": extent.thread_size, **common}))  # fmt: skip
    for identifier in scaled:
        job = {"task": "memory", "path": identifier, "size": extent.memory_size}
        made.append(Step(label=f"memory of {identifier}", rows="memory", make=scaling.MemoryRow, expected=1, threads=most, job=job))
    if small:
        job = {"task": "calls", "paths": small, "tiles": extent.tiles, "shape": extent.shape, "repeats": chosen.repeats}
        made.append(Step(label="small calls", rows="calls", make=scaling.CallRow, expected=len(small), threads=most, job=job))
    tiles = chosen.among(scaling.TILE_IDS)
    if tiles:
        job = {"task": "tiles", "paths": tiles, "repeats": chosen.repeats}
        expected = len(scaling.TILES) * len(tiles)
        made.append(Step(label="tiles", rows="tiles", make=scaling.TileRow, expected=expected, threads=1, job=job))
    return made


def _peer_steps(extent: Extent, chosen: Choice) -> list[Step]:
    made = []
    for peer, name in peers.PEERS.items() if chosen.peers else ():
        covered = [path.id for path in chosen.paths if peers.covers(peer, path)]
        if covered and peers.version(peer):
            job = {"task": "peers", "peer": peer, "paths": covered, "shape": extent.peer_shape, "repeats": extent.peer_repeats,
                   "data": [kind.value for kind in extent.peer_data]}  # fmt: skip
            expected = len(covered) * len(extent.peer_data)
            made.append(Step(label=name, rows="peers", make=peers.PeerRow, expected=expected, threads=max(chosen.threads), job=job))
    return made


class Watcher:
    """Shows how far a run is: a bar on a terminal, nothing in a pipe."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total) if progress is not None else None

    def say(self, label: str) -> None:
        """Name what is measured now."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=label)

    def advance(self) -> None:
        """One row more is done."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task)


@contextmanager
def watching(console: Console, total: int) -> Iterator[Watcher]:
    """A watcher of `total` rows."""
    if not console.is_terminal:
        yield Watcher(None, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield Watcher(progress, total)


def _row(make: type, event: Mapping[str, Any]) -> Any:
    """A row that came as JSON, whose tuples became lists."""
    return make(**{name: tuple(value) if isinstance(value, list) else value for name, value in event.items()})


def collect(results: report.Results, extent: Extent, chosen: Choice, console: Console) -> None:
    """Measure everything and put the rows into `results`."""
    todo, most = steps(extent, chosen), max(chosen.threads)
    starts, colds = chosen.among(extent.scaling_ids), chosen.among(extent.cold_ids)
    with watching(console, sum(step.expected for step in todo) + len(starts) + len(colds)) as watcher:
        for step in todo:
            watcher.say(step.label)
            for event in run_job(step.job, threads=step.threads):
                row = _row(step.make, event)
                getattr(results, step.rows).append(row)
                watcher.advance()
                watcher.say(f"{step.label}, after {row.path}")
        for identifier in starts:
            watcher.say(f"start of {identifier}")
            results.start.append(scaling.start_row(identifier, threads=most, repeats=chosen.repeats))
            watcher.advance()
        for identifier in colds:
            watcher.say(f"cold start of {identifier}")
            results.cold.append(scaling.cold_row(identifier, threads=most))
            watcher.advance()


def _thread_counts(text: str | None) -> list[int]:
    if text is None:
        return [machine.cores()]
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise MmabitsError(f"--threads takes positive numbers with commas between, got {text!r}")
    return counts


def run(
    size: Annotated[
        Size, typer.Option(help="small takes minutes, issue is 1024 x 1024 x 4096, full adds 4096^3; tiny is for tests.")
    ] = Size.SMALL,
    paths: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Only paths with this in their names; shell patterns, commas.")
    ] = None,
    threads: Annotated[str | None, typer.Option(help="Numbers of threads, with commas; all cores if left out.")] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Pairs of calls for each ratio.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where results.json, results.md and rates.png go.")] = Path("bench-output"),
    hard: Annotated[bool, typer.Option(help="Measure on hard data as well.")] = True,
    with_scaling: Annotated[
        bool, typer.Option("--scaling/--no-scaling", help="Sizes, threads, memory, start, small calls and tiles.")
    ] = True,
    with_peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Other emulators, where installed.")] = True,
    enforce: Annotated[bool, typer.Option("--enforce", help="Exit 1 where a minimum is missed.")] = False,
) -> None:
    """Measure the emulator beside NumPy's f32 matmul and beside other emulators; check the bits of what was measured."""
    extent = EXTENTS[size]
    chosen = Choice(
        paths=select(paths),
        threads=_thread_counts(threads),
        repeats=repeats or extent.repeats,
        hard=hard,
        scaling=with_scaling,
        peers=with_peers,
    )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    results = report.Results(machine=machine.describe(sys.argv[1:]), size=size.value)
    if with_peers:
        results.notes += [f"{name} is not installed" for peer, name in peers.PEERS.items() if peers.version(peer) is None]
    collect(results, extent, chosen, console)
    files = report.write(results, out)
    show(results, console)
    print(f"wrote {', '.join(map(str, files))}")
    if results.different or (enforce and results.missed):
        raise typer.Exit(EXIT_DIFFERENT)


def show(results: report.Results, console: Console) -> None:
    """Print the tables, and what was missed."""
    for sheet in report.sheets(results):
        console.print(sheet.title, style="bold")
        console.print(report.rich_table(sheet), "")
    for title, lines in (("missed", results.missed), ("note", results.notes)):
        for line in lines:
            print(f"{title}: {line}")


def main() -> None:
    """Run the command line and exit."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(context_settings={"help_option_names": ["-h", "--help"]})(run)
    try:
        app(prog_name="python -m benchmarks")
    except MmabitsError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_ERROR) from None


if __name__ == "__main__":
    main()
