"""`python -m benchmarks.compiled`: Triton kernels as compiled, beside the interpreter and `mmabits.gemm`, in one process each.

Every row runs in two new processes, whose files of machine code begin with what all kernels share: the first compiles (cold), the second
loads (cached) and times the launches, in turns with the other ways. The bits of products are compared with gemm's.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from rich.table import Table
from triton.tools.tensor_descriptor import TensorDescriptor

import mmabits
from benchmarks import machine
from mmabits.emulator.hooks.triton import compiled
from mmabits.reports.output import console

ENOUGH = 2.0
"""Seconds of one launch from which on it is timed once."""
LAUNCHES = 5


@triton.jit
def multiply(a, b, c, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """A tile of A (M, K) times B (K, N)."""
    i, j, k = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN), tl.arange(0, BK)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, K, BK):
        x = tl.load(a + i[:, None] * K + (start + k)[None, :])
        total = tl.dot(x, tl.load(b + (start + k)[:, None] * N + j[None, :]), total)
    tl.store(c + i[:, None] * N + j[None, :], total)


@triton.jit
def persistent(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PROGRAMS: tl.constexpr):
    """Tiles of A (M, K) times the transpose of B (N, K), by tensor descriptors."""
    rows, columns = tl.cdiv(M, BM), tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), rows * columns, PROGRAMS, flatten=True):
        i, j = tile // columns * BM, tile % columns * BN
        total = tl.zeros((BM, BN), dtype=tl.float32)
        for k in range(tl.cdiv(K, BK)):
            total = tl.dot(a.load([i, k * BK]), b.load([j, k * BK]).T, total)
        c.store([i, j], total)


@triton.jit
def attention(q, k, v, o, scale, N, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """One head's rows."""
    base = tl.program_id(1) * N * D
    i, j, d = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, D)
    x = tl.load(q + base + i[:, None] * D + d[None, :])
    most, weight = tl.full([BM], -float("inf"), tl.float32), tl.zeros([BM], tl.float32)
    total = tl.zeros([BM, D], tl.float32)
    for n in range(0, N, BN):
        scores = tl.dot(x, tl.load(k + base + (n + j)[None, :] * D + d[:, None])) * scale
        new = tl.maximum(most, tl.max(scores, 1))
        p, before = tl.math.exp2(scores - new[:, None]), tl.math.exp2(most - new)
        weight = weight * before + tl.sum(p, 1)
        total = tl.dot(p.to(tl.float16), tl.load(v + base + (n + j)[:, None] * D + d[None, :]), total * before[:, None])
        most = new
    tl.store(o + base + i[:, None] * D + d[None, :], (total / weight[:, None]).to(tl.float16))


@triton.jit
def softmax(x, y, N: tl.constexpr):
    """One row."""
    i = tl.program_id(0) * N + tl.arange(0, N)
    v = tl.load(x + i)
    e = tl.exp(v - tl.max(v, 0))
    tl.store(y + i, e / tl.sum(e, 0))


@triton.jit
def quantize(x, y, scales, N: tl.constexpr):
    """One group to e4m3 with its scale."""
    i = tl.program_id(0) * N + tl.arange(0, N)
    v = tl.load(x + i).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(v), 0), 1e-10) / 448.0
    tl.store(y + i, (v / scale).to(tl.float8e4nv))
    tl.store(scales + tl.program_id(0), scale)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A kernel on an architecture."""

    name: str
    arch: str
    make: Callable[[], tuple[Callable[[], Any], Callable[[], Any] | None]]
    """Gives the launch, whose result is compared, and what gemm gives."""
    aim: str
    interpreted: bool = True


def _product(size: int, tile: tuple[int, int, int]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    a, b = (torch.randn(size, size).half() for _ in range(2))
    c = torch.empty(size, size)

    def launch() -> Any:
        multiply[(size // tile[0], size // tile[1])](a, b, c, size, size, BM=tile[0], BN=tile[1], BK=tile[2])
        return c.numpy()

    return launch, lambda: mmabits.gemm(a.numpy(), b.numpy(), instruction="mma.sync", arch="sm_80")


def _persistent(size: int, tile: tuple[int, int, int], instruction: str, arch: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    a, b = (torch.randn(size, size).half() for _ in range(2))
    c = torch.empty(size, size)
    bm, bn, bk = tile

    def launch() -> Any:
        maps = [TensorDescriptor(t, t.shape, t.stride(), list(box)) for t, box in ((a, (bm, bk)), (b, (bn, bk)), (c, (bm, bn)))]
        persistent[(8,)](*maps, size, size, size, BM=bm, BN=bn, BK=bk, PROGRAMS=8, num_warps=8 if bn > 128 else 4, num_stages=2)
        return c.numpy()

    turned = np.ascontiguousarray(b.numpy().T)
    return launch, lambda: mmabits.gemm(a.numpy(), turned, instruction=instruction, arch=arch)


def _attention() -> tuple[Callable[[], Any], None]:
    q, k, v = (torch.randn(8, 512, 64).half() for _ in range(3))
    o = torch.empty_like(q)

    def launch() -> Any:
        attention[(512 // 64, 8)](q, k, v, o, 0.125 * 1.4427, 512, D=64, BM=64, BN=64)
        return o.numpy()

    return launch, None


def _softmax() -> tuple[Callable[[], Any], None]:
    x, y = torch.randn(4096, 4096), torch.empty(4096, 4096)

    def launch() -> Any:
        softmax[(4096,)](x, y, N=4096)
        return y.numpy()

    return launch, None


def _quantize() -> tuple[Callable[[], Any], None]:
    x = torch.randn(16384, 128)
    y, scales = torch.empty(16384, 128, dtype=torch.float8_e4m3fn), torch.empty(16384)

    def launch() -> Any:
        quantize[(16384,)](x, y, scales, N=128, num_warps=1)
        return scales.numpy()

    return launch, None


BENCHES = [
    Bench(name="matmul f16 512^3, 64 x 64", arch="sm_80", make=lambda: _product(512, (64, 64, 32)), aim="gemm x 3"),
    Bench(
        name="persistent TMA f16 1024^3, 128 x 256", arch="sm_90a", aim="gemm x 2", interpreted=False,
        make=lambda: _persistent(1024, (128, 256, 64), "wgmma", "sm_90a"),
    ),
    Bench(
        name="persistent TMA f16 1024^3, 128 x 128", arch="sm_100a", aim="gemm x 2", interpreted=False,
        make=lambda: _persistent(1024, (128, 128, 64), "tcgen05.mma", "sm_100a"),
    ),
    *(Bench(name="attention 8 x 512 x 64", arch=arch, make=_attention, aim="interpreter / 8") for arch in ("sm_80", "sm_90a", "sm_100a")),
    Bench(name="softmax 4096 x 4096", arch="sm_90a", make=_softmax, aim="interpreter / 8"),
    Bench(name="quantizer, 16,384 programs", arch="sm_90a", make=_quantize, aim="interpreter / 20"),
]  # fmt: skip


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(place: int, *, cold: bool) -> dict[str, Any]:
    """One row, in this process: compile times, and unless cold the times of launches in turns."""
    bench = BENCHES[place]
    torch.manual_seed(0)
    launch, gemm = bench.make()
    if gemm is not None:
        gemm()
    ours: list[float] = []
    instructions: list[int] = []

    class Timed(compiled.Kernel):
        """Says how long it took to make."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            start = time.perf_counter()
            super().__init__(*arguments, **options)
            ours.append(time.perf_counter() - start)
            instructions.append(len(self.entry.instructions))

    compiled.Kernel = Timed  # type: ignore[misc]
    with mmabits.emulate(bench.arch, frameworks=["triton"], triton="compiled"):
        first = _timed(launch)
        again = _timed(launch)
    row = {"compile": sum(ours), "instructions": sum(instructions), "triton": max(0.0, first - again - sum(ours))}
    if cold:
        return row
    ways: dict[str, Callable[[], float]] = {}

    def way(triton_: Any) -> Callable[[], float]:
        def run() -> float:
            with mmabits.emulate(bench.arch, frameworks=["triton"], triton=triton_):
                return _timed(launch)

        return run

    ways["compiled"] = way("compiled")
    if gemm is not None:
        ways["gemm"] = lambda: _timed(gemm)
    if bench.interpreted:
        ways["interpreted"] = way("interpreted")
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(LAUNCHES):
        for name, run in ways.items():
            if not (times[name] and times[name][0] > ENOUGH):
                times[name].append(run())
    row |= {name: statistics.median(each) for name, each in times.items()}
    if gemm is not None:
        with mmabits.emulate(bench.arch, frameworks=["triton"], triton="compiled"):
            got = np.ascontiguousarray(launch())
        row["different"] = int((got.view(np.uint32) != np.ascontiguousarray(gemm()).view(np.uint32)).sum())
    return row


def _in_new_process(place: int, how: str, environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.compiled", how, str(place)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(chosen: list[str]) -> None:
    """Measure the rows whose names hold one of the words, all without any, and draw a table."""
    table = Table(title=f"Compiled kernels, {machine.describe(sys.argv[1:]).cpu}")
    for name in ("kernel", "arch", "PTX", "Triton", "cold", "cached", "launch", "gemm", "interpreted", "aim", "is", "differ"):
        table.add_column(name, justify="left" if name in ("kernel", "arch", "aim") else "right")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(Path(folder) / "code"), "TRITON_CACHE_DIR": str(Path(folder) / "triton")}
        warm = BENCHES.index(next(each for each in BENCHES if each.name.startswith("quantizer")))
        _in_new_process(warm, "cold", environment)
        for place, bench in enumerate(BENCHES):
            if chosen and not any(word in f"{bench.name} {bench.arch}" for word in chosen):
                continue
            if place == warm:
                environment["TRITON_CACHE_DIR"] = str(Path(folder) / "again")
            cold = _in_new_process(place, "cold", environment)
            row = _in_new_process(place, "rates", environment)
            reference = row.get("gemm") if "gemm" in bench.aim else row.get("interpreted")
            ratio = row["compiled"] / reference if reference and "gemm" in bench.aim else (reference or 0) / row["compiled"]
            rows.append({"kernel": bench.name, "arch": bench.arch, "cold": cold, **row})
            told = [f"{row[key]:.3f} s" if key in row else "" for key in ("compiled", "gemm", "interpreted")]
            table.add_row(
                bench.name, bench.arch, str(cold["instructions"]), f"{cold['triton']:.2f} s", f"{cold['compile']:.2f} s",
                f"{row['compile']:.2f} s", *told, bench.aim, f"{ratio:.2f}", str(row.get("different", "")),
            )  # fmt: skip
    console().print(table)
    console().print_json(json.dumps(rows))


if __name__ == "__main__":
    if sys.argv[1:2] in (["cold"], ["rates"]):
        print(json.dumps(measure(int(sys.argv[2]), cold=sys.argv[1] == "cold")))
    else:
        main(sys.argv[1:])
