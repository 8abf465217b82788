"""The process that measures: `python -m benchmarks.worker` reads a job (JSON) and writes events (JSON lines).

A process of its own because the threads of NumPy's matmul are counted when NumPy is imported.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from mmabits.isa import MmabitsError

ROOT = Path(__file__).resolve().parents[1]
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS")
_SLEEP_SOON = {"OPENBLAS_THREAD_TIMEOUT": "22"}
"""Idle threads of OpenBLAS spin for 2^22 cycles, not 2^28: about 0.1 s, in which they take a core from what is timed next."""
_END_OF_LOG = 2000

Event = dict[str, Any]


def environment(threads: int, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process whose libraries take `threads` threads each."""
    return {**_SLEEP_SOON, **os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads)), **(more or {})}


def run_job(job: Mapping[str, Any], *, threads: int) -> Iterator[Event]:
    """Run a job in a fresh process and yield its events as they come.

    Args:
        job: `task` and its arguments, see `TASKS`.
        threads: of NumPy's matmul and of the emulator.

    Raises:
        MmabitsError: the process failed; the message ends with the end of what it wrote.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        command = [sys.executable, "-m", "benchmarks.worker"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, env=environment(threads), text=True
        ) as process:  # fmt: skip
            if process.stdin is None or process.stdout is None:
                raise MmabitsError("the measuring process has no pipes")
            process.stdin.write(json.dumps({**job, "threads": threads}))
            process.stdin.close()
            for line in process.stdout:
                yield json.loads(line)
        if process.returncode:
            log.seek(0)
            raise MmabitsError(f"task {job['task']!r} exited {process.returncode}: {log.read()[-_END_OF_LOG:].strip()}")


def _rates(job: Event) -> Iterator[Any]:
    from benchmarks import measure
    from benchmarks.paths import by_id

    measure.set_threads(job["threads"])
    for identifier in job["paths"]:
        yield from measure.path_rates(
            by_id(identifier), tuple(job["shape"]), threads=job["threads"], repeats=job["repeats"], hard=job["hard"], sample=job["sample"]
        )  # fmt: skip


def _sizes(job: Event) -> Iterator[Any]:
    from benchmarks import scaling

    yield from scaling.size_rows(job["paths"], job["sizes"], threads=job["threads"], repeats=job["repeats"])


def _threads(job: Event) -> Iterator[Any]:
    from benchmarks import scaling

    yield from scaling.thread_rows(job["paths"], job["size"], threads=job["threads"], repeats=job["repeats"])


def _memory(job: Event) -> Iterator[Any]:
    from benchmarks import scaling

    yield scaling.memory_row(job["path"], job["size"])


def _calls(job: Event) -> Iterator[Any]:
    from benchmarks import measure, scaling

    measure.set_threads(job["threads"])
    yield from scaling.call_rows(job["paths"], tiles=job["tiles"], shape=tuple(job["shape"]), repeats=job["repeats"])


def _tiles(job: Event) -> Iterator[Any]:
    from benchmarks import scaling

    yield from scaling.tile_rows(job["paths"], repeats=job["repeats"])


def _peers(job: Event) -> Iterator[Any]:
    from benchmarks import peers
    from benchmarks.data import Data

    kinds = [Data(name) for name in job["data"]]
    yield from peers.rows(job["peer"], job["paths"], tuple(job["shape"]), kinds, threads=job["threads"], repeats=job["repeats"])


TASKS = {"rates": _rates, "sizes": _sizes, "threads": _threads, "memory": _memory, "calls": _calls, "tiles": _tiles, "peers": _peers}
"""What a job can ask for."""


def _write(rows: Iterable[Any], out: TextIO) -> None:
    for row in rows:
        out.write(json.dumps(row if isinstance(row, dict) else dataclasses.asdict(row)) + "\n")
        out.flush()


def main() -> None:
    """Do the job on standard input. Whatever libraries print goes to standard error, events to standard output."""
    job = json.load(sys.stdin)
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _write(TASKS[job["task"]](job), events)


if __name__ == "__main__":
    main()
