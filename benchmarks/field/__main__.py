"""`python -m benchmarks.field ARCH ... [--only WORD ...]`: the table of kernels that others wrote, as Markdown.

For each architecture three processes run the cases one after another, after one of Liger's that is not counted: the first with no files of
machine code (cold: Triton's compilation, ours, the run), the second with those of the first (cached, and once more: again), the third in
Triton's interpreter with emulated dots. The difference is that of the worst result to float64, in parts of its greatest element.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.field.cases import FieldCase, field_cases, version
from benchmarks.field.worker import Worker

PATIENCE = 120.0
"""Seconds for a call."""


class Asking:
    """A worker that is made anew where a call took too long or ended it."""

    def __init__(self, arch: str, triton: str, environment: dict[str, str]) -> None:
        self._make = lambda: Worker(arch, triton=triton, environment=environment)
        self._worker = self._make()

    def ask(self, case: FieldCase) -> dict[str, Any]:
        """As the worker; `error` where there is no answer."""
        try:
            return self._worker.ask(case.name, patience=PATIENCE)
        except (RuntimeError, TimeoutError) as error:
            self._worker.close()
            self._worker = self._make()
            return {"error": f"{type(error).__name__}: {error}"}

    def close(self) -> None:
        """End it."""
        self._worker.close()


def _told(found: dict[str, Any]) -> str:
    if "error" in found:
        name = found["error"].partition(":")[0]
        return f"over {PATIENCE:.0f} s" if name == "TimeoutError" else name
    return f"{found['seconds']:.2f} s" if found["seconds"] < 10 else f"{found['seconds']:.0f} s"


def _difference(found: dict[str, Any], bound: float) -> str:
    return "" if "error" in found else f"{max(found['differences'].values()):.1e}" + ("" if _within(found, bound) else " (beyond)")


def _within(found: dict[str, Any], bound: float) -> bool:
    return "error" not in found and max(found["differences"].values()) <= bound


def rows(arch: str, cases: list[FieldCase], folder: str) -> list[list[str]]:
    """Of one architecture."""
    environment = {"NUMBA_CACHE_DIR": str(Path(folder) / "code"), "TRITON_CACHE_DIR": str(Path(folder) / arch)}
    ways = []
    for triton in ("compiled", "compiled", "interpreted"):
        asking = Asking(arch, triton, environment)
        asking.ask(field_cases()["liger-rope"])  # what all kernels share
        found = []
        for case in cases:
            found.append([asking.ask(case)])
            if len(ways) or "error" in found[-1][0]:
                found[-1].append(found[-1][0] if found[-1][0].get("seconds", PATIENCE) > 10 else asking.ask(case))
            print(arch, triton, case.name, *map(_told, found[-1]), found[-1][0].get("error", "")[:200], file=sys.stderr, flush=True)
        asking.close()
        ways.append(found)
    made = []
    for case, cold, cached, interpreted in zip(cases, *ways, strict=True):
        made.append([
            f"`{case.name}`", case.kernel, arch, _told(cold[0]), _told(cached[0]), _told(cached[1]), _told(interpreted[-1]),
            _difference(cached[-1], case.bound), _difference(interpreted[-1], case.bound), f"{case.bound:.1e}",
        ])  # fmt: skip
    return made


def main(arguments: list[str]) -> None:
    """Measure and print."""
    words = arguments[arguments.index("--only") + 1 :] if "--only" in arguments else []
    archs = arguments[: arguments.index("--only")] if words else arguments
    found = [case for case in field_cases().values() if version(case.package) and (not words or any(each in case.name for each in words))]
    heads = ("case", "kernel", "arch", "cold", "cached", "again", "interpreted", "difference", "interpreted's", "bound")
    about = machine.describe([])
    packages = sorted({case.package for case in found} | {"torch", "triton"})
    print(f"{about.date[:10]}, {about.cpu}, {about.cores} cores; {', '.join(f'{name} {version(name)}' for name in packages)}\n")
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    with tempfile.TemporaryDirectory() as folder:
        for arch in archs:
            for row in rows(arch, [case for case in found if arch in case.architectures], folder):
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
