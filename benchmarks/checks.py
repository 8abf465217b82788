"""`python -m benchmarks.checks`: what each check of compiled kernels costs, as a factor of the processor time of a plain launch."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from rich.table import Table

import mmabits
from benchmarks.compiled import attention, multiply
from mmabits.emulator.machine.checkrecords import CHECKS
from mmabits.reports.output import console

LAUNCHES = 5


def _matmul() -> Callable[[], None]:
    a, b, c = torch.randn(256, 256).half(), torch.randn(256, 256).half(), torch.empty(256, 256)
    return lambda: multiply[(4, 4)](a, b, c, 256, 256, BM=64, BN=64, BK=64)


def _attention() -> Callable[[], None]:
    q, k, v = (torch.randn(2, 256, 64).half() for _ in range(3))
    o = torch.empty(2, 256, 64)
    return lambda: attention[(4, 2)](q, k, v, o, 0.125, 256, D=64, BM=64, BN=64)


def _seconds(arch: str, launch: Callable[[], None], checks: tuple[str, ...]) -> float:
    times = []
    with mmabits.emulate(arch, frameworks=["triton"], check=checks):
        launch()
        for _ in range(LAUNCHES):
            began = time.process_time()
            launch()
            times.append(time.process_time() - began)
    return statistics.median(times)


def main() -> None:
    """Measure, and print a table."""
    table = Table("kernel", "arch", "plain", *CHECKS, "all")
    for name, make in (("matmul f16 256^3", _matmul), ("attention 2 x 256 x 64", _attention)):
        for arch in sys.argv[1:] or ("sm_80", "sm_90a", "sm_100a"):
            launch = make()
            plain = _seconds(arch, launch, ())
            factors = [_seconds(arch, launch, checks) / plain for checks in (*((each,) for each in CHECKS), CHECKS)]
            table.add_row(name, arch, f"{plain:.3f} s", *(f"{each:.1f}" for each in factors))
    console().print(table)


if __name__ == "__main__":
    main()
