"""How time grows with size and threads, what memory a product takes, how long the first result takes, and what small calls cost."""

from __future__ import annotations

import ctypes
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import Call, Data, draw, gemm_call, tiled
from benchmarks.measure import PAUSE, Pair, interleave, matmul_call, set_threads, summarize
from benchmarks.paths import BenchPath, by_id
from benchmarks.worker import ROOT, environment
from mmabits.emulator.codecs import as_codes, numpy_dtype
from mmabits.emulator.engine.native import native_product
from mmabits.isa import lower

MIB = 1 << 20
SIZE_SPREAD = 0.8
"""Slowest size / fastest size, at least."""
SPEEDUP = 1.8
"""Two threads against one, at least."""
MEMORY_MIB = 64.0
"""Peak resident memory beyond operands and result, at most."""
START = 1.5
"""First result against importing Numba and NumPy, at most."""
COLD_SECONDS = 10.0
"""First call without anything compiled before, at most."""
CALL_MICROSECONDS = 30.0
"""One m16n8k32 after warm-up, at most."""
BATCH = 0.8
"""Rate of a batch of small tiles / rate of a GEMM, at least."""
TILE = 0.7
"""Rate of a tile of 16 x 8 to 32 x 32, one call of the engine's machine code, / rate of a large product, at least;"""
WIDE_TILE = 0.8
"""and of a tile of 64 x 256."""
TILE_MICROSECONDS = 2.0
"""One tile of 16 x 8, at most; a call by ctypes, some tenths of a microsecond, is in it."""
WARM_SIZE = 256
"""A product that takes the loops of a large one: it is split into tasks."""


@dataclass(frozen=True, kw_only=True)
class SizeRow:
    """size x size x size; `path` is `numpy` for NumPy's f32 matmul."""

    path: str
    threads: int
    size: int
    seconds: float

    @property
    def gmacs(self) -> float:
        """10^9 products a second."""
        return self.size**3 / self.seconds / 1e9


@dataclass(frozen=True, kw_only=True)
class ThreadRow:
    """The same product on some number of threads; the speed-up is the median over calls made in turn with one thread."""

    path: str
    size: int
    threads: int
    seconds: float
    speedup: float

    @property
    def gmacs(self) -> float:
        """10^9 products a second."""
        return self.size**3 / self.seconds / 1e9


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """Peak resident memory of a process that computes one product."""

    path: str
    size: int
    operands_mib: float
    result_mib: float
    peak_mib: float
    beyond_mib: float
    """Peak, less what was resident before the call, less the result."""


@dataclass(frozen=True, kw_only=True)
class StartRow:
    """A fresh process from start to end, with a warm cache: imports and a first result beside imports alone."""

    path: str
    seconds: float
    import_seconds: float
    ratio: float


@dataclass(frozen=True, kw_only=True)
class ColdRow:
    """The first call of a process with an empty cache."""

    path: str
    seconds: float
    compiled: int
    """Functions that it left in the cache."""


@dataclass(frozen=True, kw_only=True)
class CallRow:
    """One small instruction, and a batch of it beside a GEMM."""

    path: str
    instruction: str
    microseconds: float
    tiles: int
    batch_gmacs: float
    gemm_gmacs: float
    batch_ratio: float


@dataclass(frozen=True, kw_only=True)
class TileRow:
    """One call of the engine's machine code for a tile, as compiled kernels make it, beside a large product by the same function."""

    path: str
    shape: tuple[int, int, int]
    microseconds: float
    large_gmacs: float
    ratio: float

    @property
    def gmacs(self) -> float:
        """10^9 products a second."""
        return math.prod(self.shape) / self.microseconds / 1e3

    @property
    def minimum(self) -> float:
        """The ratio at least."""
        return WIDE_TILE if self.shape[:2] == WIDE else TILE


def warm(identifier: str, size: int = WARM_SIZE) -> None:
    """Compile, or load, what a path needs, and start its threads."""
    gemm_call(by_id(identifier), tiled(by_id(identifier), size))()


def size_rows(identifiers: Sequence[str], sizes: Sequence[int], *, threads: int, repeats: int) -> Iterator[SizeRow]:
    """Time against size, NumPy's matmul with the rest."""
    set_threads(threads)
    for identifier in identifiers:
        warm(identifier)
    for size in sizes:
        calls = {"numpy": matmul_call(size, size, size)}
        calls |= {identifier: gemm_call(by_id(identifier), tiled(by_id(identifier), size)) for identifier in identifiers}
        for identifier, call in calls.items():
            yield SizeRow(path=identifier, threads=threads, size=size, seconds=_median_seconds(call, repeats))


def _median_seconds(call: Call, repeats: int, enough: float = 0.1) -> float:
    """Median over rounds that each take `enough` seconds or one call; a call of more than a second is timed twice."""
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    count = max(1, math.ceil(enough / max(once, 1e-9)))
    times = [once] if once > 1 else []
    time.sleep(PAUSE)
    for _ in range(1 if times else repeats):
        start = time.perf_counter()
        for _ in range(count):
            call()
        times.append((time.perf_counter() - start) / count)
    return min(times) if once > 1 else statistics.median(times)


def thread_rows(identifiers: Sequence[str], size: int, *, threads: int, repeats: int) -> Iterator[ThreadRow]:
    """One product on 1 to `threads` threads, in turn with one thread."""
    for identifier in identifiers:
        call = gemm_call(by_id(identifier), tiled(by_id(identifier), size))
        for count in range(1, threads + 1):
            pairs = _in_turn(call, count, repeats)
            summary = summarize(pairs)
            speedup = 1.0 if count == 1 else summary.ratio
            yield ThreadRow(path=identifier, size=size, threads=count, seconds=summary.ours, speedup=speedup)


def _in_turn(call: Call, threads: int, repeats: int) -> list[Pair]:
    def on(count: int) -> Call:
        def threaded() -> None:
            set_threads(count)
            call()

        return threaded

    return interleave(on(threads), on(1), repeats=repeats)


def memory_row(identifier: str, size: int) -> MemoryRow:
    """Peak resident memory of this process, which must be fresh. Never too low: peaks from before the call count as well."""
    warm(identifier)
    operands = tiled(by_id(identifier), size)
    call = gemm_call(by_id(identifier), operands)
    before = _resident()
    result = call()
    peak = _peak()
    parts = [part.nbytes for part in (operands.a, operands.b, operands.scale_a, operands.scale_b) if part is not None]
    return MemoryRow(
        path=identifier, size=size, operands_mib=sum(parts) / MIB, result_mib=result.nbytes / MIB, peak_mib=peak / MIB,
        beyond_mib=(peak - before - result.nbytes) / MIB,
    )  # fmt: skip


def _peak() -> int:
    """Highest resident size so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _resident() -> int:
    """Resident size now, in bytes; the highest so far where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else _peak()


def program(path: BenchPath, size: int = WARM_SIZE) -> str:
    """What a user would write to get a first result; it prints how long the call took."""
    row = path.instruction
    scales = ""
    if row.scale_type is not None and row.block is not None:
        one = f"np.ones(({{}}), np.dtype({row.scale_type.numpy_name!r}))"
        blocks = -(-size // row.block)
        scales = f", scale_a={one.format(f'{size}, {blocks}')}, scale_b={one.format(f'{blocks}, {size}')}"
    promoted = f", promote_every={path.promote_every}" if path.promote_every else ""
    return "\n".join(
        (
            "import time, ml_dtypes, numpy as np, mmabits",
            f"a = np.ones(({size}, {size}), np.dtype({row.a_type.numpy_name!r}))",
            "start = time.perf_counter()",
            f"d = mmabits.gemm(a, a, instruction={row.ptx!r}, arch={path.arch!r}{promoted}{scales})",
            "print(time.perf_counter() - start)",
        )
    )


def _fresh(code: str, *, threads: int, cache: str | None = None) -> tuple[float, str]:
    """Seconds of a fresh process, and what it printed."""
    more = None if cache is None else {"NUMBA_CACHE_DIR": cache}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(threads, more), cwd=ROOT, check=True, capture_output=True, text=True
    )  # fmt: skip
    return time.perf_counter() - start, done.stdout


def start_row(identifier: str, *, threads: int, repeats: int) -> StartRow:
    """First result in a fresh process with a warm cache, in turn with the imports alone."""
    code = program(by_id(identifier))
    _fresh(code, threads=threads)
    pairs = [
        Pair(ours=_fresh(code, threads=threads)[0], theirs=_fresh("import numba, numpy", threads=threads)[0]) for _ in range(repeats)
    ]  # fmt: skip
    summary = summarize(pairs)
    return StartRow(
        path=identifier, seconds=summary.ours, import_seconds=summary.theirs, ratio=statistics.median(1 / pair.ratio for pair in pairs)
    )  # fmt: skip


def cold_row(identifier: str, *, threads: int) -> ColdRow:
    """First call of a process with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        printed = _fresh(program(by_id(identifier)), threads=threads, cache=cache)[1]
        return ColdRow(path=identifier, seconds=float(printed), compiled=len(list(Path(cache).rglob("*.mmabits"))))


CALL_IDS = ("sm_89.mma.e4m3.f32", "sm_90a.mma.e4m3.f32", "sm_80.mma.s8.s32")
"""Paths with an m16n8k32."""


def call_rows(identifiers: Sequence[str], *, tiles: int, shape: tuple[int, int, int], repeats: int) -> Iterator[CallRow]:
    """Small calls: latency of one `mma`, and the rate of a batch in turn with a GEMM of the same instruction.

    Args:
        identifiers: paths, of `CALL_IDS`.
        tiles: of the batch.
        shape: M, N, K of the GEMM.
        repeats: pairs.
    """
    for identifier in identifiers:
        path = by_id(identifier)
        row = path.instruction
        one, many = mma_call(path, ()), mma_call(path, (tiles,))
        gemm = gemm_call(path, draw(path, Data.PLAIN, *shape))
        summary = summarize(interleave(many, gemm, repeats=repeats))
        batch, products = tiles * row.m * row.n * row.k, math.prod(shape)
        yield CallRow(
            path=identifier, instruction=row.ptx, microseconds=_median_seconds(one, max(repeats, 3)) * 1e6, tiles=tiles,
            batch_gmacs=batch / summary.ours / 1e9, gemm_gmacs=products / summary.theirs / 1e9,
            batch_ratio=summary.ratio * batch / products,
        )  # fmt: skip


def mma_call(path: BenchPath, batch: tuple[int, ...]) -> Call:
    """`mmabits.mma` of the path's instruction on plain operands with leading dimensions `batch`."""
    import mmabits

    row = path.instruction
    lines = math.prod(batch)
    drawn = draw(path, Data.PLAIN, lines * row.m, row.n, row.k)
    a = drawn.a.reshape(*batch, row.m, row.k)
    b = np.ascontiguousarray(np.broadcast_to(drawn.b, (*batch, row.k, row.n)))
    c = np.zeros((*batch, row.m, row.n), numpy_dtype(row.c_type))
    return lambda: mmabits.mma(row.ptx, a, b, c, arch=path.arch)


TILE_IDS = (
    "sm_80.mma.f16.f32", "sm_90a.wgmma.f16.f32", "sm_80.mma.f16.f16", "sm_90a.wgmma.e4m3.f32", "sm_100a.tcgen05.f8f6f4.e4m3.f32",
    "sm_100a.tcgen05.mxf8f6f4.e4m3.f32", "sm_100a.tcgen05.mxf4nvf4.e2m1.f32", "sm_80.mma.s8.s32",
)  # fmt: skip
"""A path of each kind of inner loop that compiled kernels use."""
WIDE = (64, 256)
TILES = ((16, 8), (32, 32), WIDE)
"""Rows and columns of tiles, of one instruction's K (32 where that is less)."""
LARGE = (256, 256, 1024)


def tile_rows(identifiers: Sequence[str], *, repeats: int) -> Iterator[TileRow]:
    """Tiles beside a large product, in turn, on one thread: times are of the engine's function alone, from a record at hand."""
    for identifier in identifiers:
        path = by_id(identifier)
        large = engine_call(path, LARGE)
        for m, n in TILES:
            shape = (m, n, max(32, path.instruction.k))
            summary = summarize(interleave(engine_call(path, shape), large, repeats=repeats))
            yield TileRow(
                path=identifier, shape=shape, microseconds=summary.ours * 1e6, large_gmacs=math.prod(LARGE) / summary.theirs / 1e9,
                ratio=summary.ratio * math.prod(shape) / math.prod(LARGE),
            )  # fmt: skip


def engine_call(path: BenchPath, shape: tuple[int, int, int]) -> Call:
    """A product of plain operands by the engine's function; the caller's record, operands and accumulators are the same each time."""
    row = path.instruction
    product = native_product(lower(row, path.arch))
    drawn, (m, n, k) = draw(path, Data.PLAIN, *shape), shape
    operands = [
        (part.view(np.uint8) if form.is_integer else as_codes(part, form)).astype(product.operand)
        for part, form in ((drawn.a, row.a_type), (drawn.b, row.b_type))
    ]
    scales = [np.zeros(0, np.uint8) if part is None else part.view(np.uint8).copy() for part in (drawn.scale_a, drawn.scale_b)]
    arrays = (*operands, np.zeros((m, n), product.accumulator), *scales)
    record = product.record(1, m, n, k)
    for name, array in zip(("a", "b", "d", "scale_a", "scale_b"), arrays, strict=True):
        record[name] = array.ctypes.data
    function, address = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(product.address), record.ctypes.data

    def call(_kept: Any = (arrays, record, product)) -> None:
        function(address)

    return call
