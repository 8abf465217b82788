"""Asks Triton's compiler what it makes of a dot, and remembers the answers."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmabits.emulator.engine import cache

PROBE = Path(__file__).with_name("probe.py")

Facts = dict[str, Any]
"""`probe.answer`: the opcodes of the PTX with their counts, K widths of operands, or an `error`."""


class CannotAsk(Exception):
    """Triton's compiler cannot be asked here: no second process, or a Triton without its NVIDIA backend."""


class Compiler:
    """A process that compiles dots for GPUs that need not be there; started at the first question."""

    def __init__(self, version: str) -> None:
        self.version = version
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._known: dict[str, Facts] = {}
        self._folder = cache.user_folder()
        self._name = _file_name(version)
        self._read()

    def ask(self, question: dict[str, Any]) -> Facts:
        """What the compiler does with the dot that `question` describes (see `probe.answer`).

        Raises:
            CannotAsk: it cannot be asked.
        """
        key = json.dumps(question, sort_keys=True)
        with self._lock:
            if key not in self._known:
                facts = self._exchange(key)
                self._known[key] = facts
                self._write(key, facts)
            return self._known[key]

    def _exchange(self, key: str) -> Facts:
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(key + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError as error:
            raise CannotAsk(f"Triton's compiler process ended: {error}") from error
        if not line:  # the compiler took the process down with it, as a failed assertion in it does
            return {"error": "the compiler crashed"}
        answer: Facts = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONWARNINGS": "ignore"}
        environment.pop("TRITON_INTERPRET", None)
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", str(PROBE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, env=environment,
            )  # fmt: skip
        except OSError as error:
            raise CannotAsk(f"Triton's compiler cannot be started: {error}") from error
        atexit.register(process.kill)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line or json.loads(line)["triton"] != self.version:
            process.kill()
            raise CannotAsk(f"Triton {self.version}'s compiler cannot be loaded in a second process")
        return process

    def _read(self) -> None:
        if self._folder is None:
            return
        try:
            text = cache.read(self._folder, self._name).decode(errors="replace")
        except cache.Distrusted as reason:
            cache.warn_passed_over(self._folder / self._name, reason)
            return
        except OSError:
            return
        for line in text.splitlines():
            try:
                key, facts = json.loads(line)
            except (TypeError, ValueError):  # a line that another process was writing
                continue
            self._known[key] = facts

    def _write(self, key: str, facts: Facts) -> None:
        if self._folder is None:
            return
        with suppress(OSError):  # without a cache each process asks anew
            cache.append(self._folder, self._name, f"{json.dumps([key, facts])}\n".encode())


def _file_name(version: str) -> str:
    """One file per version of Triton and of the questions."""
    return f"triton-{version}-{hashlib.sha256(PROBE.read_bytes()).hexdigest()[:12]}.jsonl"


@lru_cache(maxsize=4)
def compiler(version: str) -> Compiler:
    """The compiler of the installed Triton; one process for all sessions."""
    return Compiler(version)
