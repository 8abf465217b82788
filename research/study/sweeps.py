"""Many points of a study: one after the other or on a cluster, interrupted and taken up again, with the same table either way."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from mmabits.isa import MmabitsError, OperandError
from mmabits.reports.pages import write
from mmabits.reports.written import written_whole

Point = Mapping[str, Any]
Row = dict[str, Any]

_JOURNAL: Final = "points.jsonl"


class JournalMismatch(MmabitsError, ValueError):
    """A folder holds the results of another sweep."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of a sweep, in the order of its points."""

    rows: tuple[Row, ...]

    def csv(self, path: str | Path) -> Path:
        """Write as CSV."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return write(path, text.getvalue())

    def parquet(self, path: str | Path) -> Path:
        """Write as Parquet.

        Raises:
            MmabitsError: pyarrow is not installed, or the file cannot be written.
        """
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise MmabitsError("Parquet needs pyarrow: pip install 'mmabits[study]'") from None
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(target) as partial:
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(self.rows)), partial)
        except OSError as error:
            raise MmabitsError(f"{path} cannot be written ({error.strerror or error})") from error
        return target


def points(**axes: Sequence[Any]) -> list[Row]:
    """Every combination of the values of the axes, the last axis the fastest.

    Args:
        axes: a sequence of values for each name.

    Raises:
        OperandError: an axis without values.
    """
    found: list[Row] = [{}]
    for name, values in axes.items():
        listed = [] if isinstance(values, str) or not isinstance(values, Iterable) else list(values)
        if not listed:
            raise OperandError(f"axis {name!r} needs a sequence of values, got {values!r}")
        plain = [value.item() if isinstance(value, np.generic) else value for value in listed]
        found = [{**point, name: value} for point in found for value in plain]
    return found


def sweep(
    function: Callable[..., Iterable[Row]],
    at: Sequence[Point],
    *,
    out: str | Path | None = None,
    client: Any = None,
    progress: bool = True,
    what: str = "points",
) -> Table:
    """Call a function at every point and gather its rows.

    Args:
        function: called as `function(**point)`; gives rows of plain values. With a `client` it must be importable by name there.
        at: the points: mappings of plain values (numbers, strings, None).
        out: a folder for the results of each point as it is done; a sweep that was interrupted goes on where it stopped.
            None: nothing is kept.
        client: a `distributed.Client`; points are then computed on its workers.
        progress: show a bar on a terminal.
        what: what the bar counts.

    Returns:
        The table: the rows of every point, in the order of `at`, whatever the order in which they were computed.

    Raises:
        JournalMismatch: `out` holds results of another function or other points, or another sweep writes into it.
    """
    keys = [_key(point) for point in at]
    with closing(_Journal(out, function, keys)) as journal:
        todo = [(key, point) for key, point in zip(keys, at, strict=True) if key not in journal.done]
        with _bar(len(keys), len(keys) - len(todo), what, progress) as advance:
            for key, rows in _results(function, todo, client):
                journal.add(key, rows)
                advance()
    return Table(rows=tuple(row for key in keys for row in journal.done[key]))


def _key(point: Point) -> str:
    try:
        return json.dumps(dict(point), sort_keys=True)
    except TypeError as error:
        raise OperandError(f"a point holds plain values (numbers, strings, None), got {dict(point)!r}: {error}") from None


def _plain(rows: Iterable[Row]) -> list[Row]:
    """Rows as JSON holds them, so that a row read back is the row that was computed."""
    found: list[Row] = json.loads(json.dumps([dict(row) for row in rows], default=_plain_value))
    return found


def _plain_value(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)) and value.size == 1:
        return value.item()
    raise OperandError(f"a row holds plain values (numbers, strings, None), got {value!r} ({type(value).__name__})")


def _results(function: Callable[..., Iterable[Row]], todo: Sequence[tuple[str, Point]], client: Any) -> Iterable[tuple[str, list[Row]]]:
    if client is None:
        for key, point in todo:
            yield key, _plain(function(**point))
        return
    from distributed import as_completed

    futures = {client.submit(_at, function, dict(point), pure=False): key for key, point in todo}
    with client.as_current():  # as_completed looks for it there
        completed = as_completed(futures)  # type: ignore[no-untyped-call]
    for future in completed:
        yield futures[future], future.result()


def _at(function: Callable[..., Iterable[Row]], point: Row) -> list[Row]:
    return _plain(function(**point))


class _Journal:
    """Results as they are done: a line each, so that what was written stays readable if the process dies."""

    def __init__(self, out: str | Path | None, function: Callable[..., Any], keys: Sequence[str]) -> None:
        self.done: dict[str, list[Row]] = {}
        self.path: Path | None = None
        self._held: int | None = None
        if out is None:
            return
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        if not hasattr(function, "__qualname__"):
            raise OperandError(f"results are kept under a function's name, and {function!r} has none; pass a function made with def")
        self._held = _held(folder)
        self.path = folder / _JOURNAL
        name = f"{function.__module__}.{function.__qualname__}"
        digest = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:16]
        heading = {"sweep": name, "points": digest}
        try:
            if self.path.exists():
                self._read(self.path, heading)
            else:
                write(self.path, json.dumps(heading) + "\n")
        except BaseException:
            self.close()
            raise

    def _read(self, path: Path, heading: Mapping[str, str]) -> None:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        found = _parsed(lines[0]) if lines else {}
        if found != heading:
            there, here = (f"{one.get('sweep')} at points {one.get('points')}" for one in (found, heading))
            raise JournalMismatch(f"{path} holds results of {there}, not of {here}; choose another folder")
        kept = [lines[0]]
        for line in lines[1:]:
            entry = _parsed(line)
            if line.endswith("\n") and entry.keys() == {"point", "rows"}:  # else the process died while writing it
                self.done[entry["point"]] = entry["rows"]
                kept.append(line)
        if len(kept) < len(lines):
            write(path, "".join(kept))

    def close(self) -> None:
        """Let others have the folder."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def add(self, key: str, rows: list[Row]) -> None:
        """Keep a point's rows."""
        self.done[key] = rows
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"point": key, "rows": rows}) + "\n")
                file.flush()
                os.fsync(file.fileno())


def _held(folder: Path) -> int | None:
    """A descriptor that keeps other processes from sweeping into a folder until it is closed; None where there are no such locks.

    Raises:
        JournalMismatch: another sweep has it.
    """
    try:
        import fcntl
    except ImportError:  # as on Windows
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise JournalMismatch(f"another sweep writes into {folder}; wait for it, or choose another folder") from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def _parsed(line: str) -> dict[str, Any]:
    """A line of a journal; empty where it is damaged, so that its point is computed again."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class _bar:  # noqa: N801  a context manager, used as a function
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, total: int, done: int, what: str, wanted: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
            disable=not (wanted and console.is_terminal), transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task(what, total=total, completed=done)

    def __enter__(self) -> Callable[[], None]:
        self.bar.start()
        return lambda: self.bar.advance(self.task)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
