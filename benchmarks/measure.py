"""Wall time of the emulator beside NumPy's f32 matmul of the same shape: A B A B, in one process on the same threads."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.check import SAMPLE, check
from benchmarks.data import Call, Data, draw, gemm_call, kinds_of, matmul_operands
from benchmarks.paths import BenchPath

PAUSE = 0.04
"""Seconds before each side of a pair, in which the idle threads of the other library go to sleep (see benchmarks/worker.py)."""
SIDE_SECONDS = 0.03
"""Each side of a pair repeats its call for about as long, so that the clock and the start of threads do not count."""

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Seconds of one call of either side, measured one after the other."""

    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        """Our rate as a part of theirs."""
        return self.theirs / self.ours


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Pairs in a few numbers; the ratio is the median of the pairs' ratios, not the ratio of the medians."""

    ours: float
    theirs: float
    ratio: float
    ratio_min: float
    ratio_max: float


@dataclass(frozen=True, kw_only=True)
class RateRow:
    """One path on one kind of data."""

    path: str
    instruction: str
    arch: str
    data: str
    threads: int
    shape: tuple[int, int, int]
    """M, N, K."""
    seconds: float
    numpy_seconds: float
    ratio: float
    ratio_min: float
    ratio_max: float
    minimum: float
    aim: float
    relative: float
    """The rate as a part of that on plain data, timed in the same rounds."""
    first_call_seconds: float
    """With compilation, or with loading what was compiled before."""
    compared: int
    finite: int
    different: int
    first_difference: str

    @property
    def gmacs(self) -> float:
        """10^9 products a second."""
        return math.prod(self.shape) / self.seconds / 1e9

    @property
    def numpy_gmacs(self) -> float:
        """That of NumPy's matmul."""
        return math.prod(self.shape) / self.numpy_seconds / 1e9


def rounds(
    calls: Sequence[Call], *, repeats: int, pause: float = PAUSE, side_seconds: float = SIDE_SECONDS, clock: Clock = time.perf_counter
) -> list[tuple[float, ...]]:
    """Time calls in turn: seconds of one call of each, for every round.

    Each is called before, to warm up and to find how often it must be repeated in its turn.
    """
    loops = [_loops(call, side_seconds, clock) for call in calls]
    measured = []
    for _ in range(repeats):
        times = []
        for call, count in zip(calls, loops, strict=True):
            time.sleep(pause)
            times.append(_seconds(call, count, clock))
        measured.append(tuple(times))
    return measured


def interleave(
    ours: Call, theirs: Call, *, repeats: int, pause: float = PAUSE, side_seconds: float = SIDE_SECONDS, clock: Clock = time.perf_counter
) -> list[Pair]:
    """Time two calls in turn; see `rounds`."""
    times = rounds((ours, theirs), repeats=repeats, pause=pause, side_seconds=side_seconds, clock=clock)
    return [Pair(ours=first, theirs=second) for first, second in times]


def _loops(call: Call, side_seconds: float, clock: Clock) -> int:
    once = _seconds(call, 1, clock)
    if once < side_seconds:  # a first call is longer than those that follow
        once = _seconds(call, 1, clock)
    return max(1, math.ceil(side_seconds / max(once, 1e-9)))


def _seconds(call: Call, count: int, clock: Clock) -> float:
    start = clock()
    for _ in range(count):
        call()
    return (clock() - start) / count


def summarize(pairs: Sequence[Pair]) -> Summary:
    """The medians, and the range of the ratios."""
    ratios = [pair.ratio for pair in pairs]
    return Summary(
        ours=statistics.median(pair.ours for pair in pairs), theirs=statistics.median(pair.theirs for pair in pairs),
        ratio=statistics.median(ratios), ratio_min=min(ratios), ratio_max=max(ratios),
    )  # fmt: skip


def matmul_call(m: int, n: int, k: int) -> Call:
    """NumPy's f32 matmul of the shape."""
    a, b = matmul_operands(m, n, k)
    return lambda: a @ b


class _Kept:
    """A call that keeps its last result, so that what is checked is what was timed."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.result: Any = None

    def __call__(self) -> None:
        self.result = self._call()


def path_rates(
    path: BenchPath, shape: tuple[int, int, int], *, threads: int, repeats: int, hard: bool = True, sample: int = SAMPLE
) -> Iterator[RateRow]:
    """The rates of one path, plain data first, with the bits of `sample` outputs checked, spread over the kinds of data."""
    matmul = matmul_call(*shape)
    plain = _Kept(gemm_call(path, draw(path, Data.PLAIN, *shape)))
    first_call = _seconds(plain, 1, time.perf_counter)
    kinds = kinds_of(path) if hard else (Data.PLAIN,)
    for kind in kinds:
        operands = draw(path, kind, *shape)
        call = plain if kind is Data.PLAIN else _Kept(gemm_call(path, operands))
        times = rounds((call, matmul) if kind is Data.PLAIN else (call, matmul, plain), repeats=repeats)
        summary = summarize([Pair(ours=each[0], theirs=each[1]) for each in times])
        relative = 1.0 if kind is Data.PLAIN else statistics.median(each[2] / each[0] for each in times)
        bits = check(path, operands, call.result, -(-sample // len(kinds)))
        yield RateRow(
            path=path.id, instruction=path.instruction.ptx, arch=path.arch, data=kind.value, threads=threads, shape=operands.shape,
            seconds=summary.ours, numpy_seconds=summary.theirs, ratio=summary.ratio, ratio_min=summary.ratio_min,
            ratio_max=summary.ratio_max, minimum=path.target.minimum, aim=path.target.aim, relative=relative, first_call_seconds=first_call,
            compared=bits.compared, finite=bits.finite, different=bits.different, first_difference=bits.first,
        )  # fmt: skip


def set_threads(threads: int) -> None:
    """Threads of the emulator; those of NumPy are set by the environment before it is imported (see benchmarks/worker.py)."""
    import numba

    numba.set_num_threads(threads)
