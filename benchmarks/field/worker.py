"""A process that runs field cases on one architecture: a line of JSON asks, a line of JSON answers.

Packages print, log, register operators once and decide by the GPU while they are imported: so each architecture has its own process.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]


class Worker:
    """The asking side."""

    def __init__(self, arch: str, *, triton: str = "compiled", environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "benchmarks.field.worker", arch, triton]
        paths = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
        )  # fmt: skip

    def ask(self, case: str, *, exact: bool = False, patience: float | None = None) -> dict[str, Any]:
        """Run a case.

        Raises:
            RuntimeError: the process has ended.
            TimeoutError: it took more than `patience` seconds, and was ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"case": case, "exact": exact}) + "\n")
        self._process.stdin.flush()
        if patience is not None and not select.select([self._process.stdout], [], [], patience)[0]:
            self._process.kill()
            raise TimeoutError(f"{case}: more than {patience:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{case}: the process ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def answer(arch: str, triton: str, name: str, exact: bool) -> dict[str, Any]:
    """Run a case and compare: differences by result, whether all have the reference's bits, seconds."""
    import torch

    from benchmarks.field.cases import Numbers, compared, emulated, field_cases

    case = field_cases()[name]
    operands = case.draw(Numbers(exact=exact))
    with emulated(arch, triton=triton) as session:
        case.prepare()
        start = time.perf_counter()
        got = case.run(operands)
        seconds = time.perf_counter() - start
    want = case.wanted(operands)
    equal = all(torch.equal(got[each].double(), want[each].to(got[each].dtype).double()) for each in want)
    return {"differences": compared(got, want), "equal": equal, "seconds": seconds, "emulated": len(session.report().emulated)}


def main(arch: str, triton: str) -> None:
    """Answer until the input ends; what packages print goes to the standard error."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            found = answer(arch, triton, asked["case"], asked["exact"])
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        channel.write(json.dumps(found) + "\n")
        channel.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
