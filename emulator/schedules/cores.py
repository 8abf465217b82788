"""Sums on CUDA cores: chains of multiply-adds in f32, and the trees that add lanes, parts and blocks; docs/library-choices.md has them.

Every step does one element of K for all lanes and all elements of the result at once, so the order within a chain is that of the steps.
`left` is (K, ..., M, 1) and `right` (K, ..., 1, N), float32; sums are (lanes, ..., M, N).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.emulator.engine.fma import fma
from mmabits.emulator.schedules.sums import BlockSums, LaneSums, PartSums, RangeSums

Floats = npt.NDArray[np.float32]

_AT_ONCE: Final = 1 << 23
"""Elements of an operand that are widened to f32 at a time."""
_NARROW: Final = 512
"""Sums side by side below which all products are formed first and then added up by NumPy, whose calls would cost more than the work."""
_LOWEST: Final = -149 + 17
_HIGHEST: Final = 126
"""Exponents between which a product of two numbers of 8 or 11 bits is exact in f32, and its sum with another f32 rounds once."""


def product(sums: PartSums | LaneSums | RangeSums | BlockSums, a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Floats:
    """A B by a schedule of CUDA cores.

    Args:
        sums: the schedule.
        a: (..., M, K) float16 or bfloat16, leading dimensions as those of b.
        b: (..., K, N).

    Returns:
        (..., M, N), float32; NaN as the CPU has it.
    """
    k, n, m = b.shape[-2], b.shape[-1], a.shape[-2]
    d = np.empty((*a.shape[:-2], m, n), np.float32)
    is_exact = _is_exact(a, b)
    columns, rows = (max(1, _AT_ONCE // max(k * _items(array), 1)) for array in (b, a))
    with np.errstate(all="ignore"):
        for top in range(0, m, rows):
            left = np.ascontiguousarray(np.moveaxis(a[..., top : top + rows, :], -1, 0)[..., None], dtype=np.float32)
            for first in range(0, n, columns):
                right = np.ascontiguousarray(np.moveaxis(b[..., first : first + columns], -2, 0)[..., None, :], dtype=np.float32)
                d[..., top : top + rows, first : first + columns] = _Sums(left, right, is_exact).of(sums)
    return d


def _items(array: npt.NDArray[Any]) -> int:
    return int(np.prod(array.shape[:-2], dtype=np.int64))


def _is_exact(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Whether products are exact in f32, so that a multiplication and an addition are what a fused one is."""
    if a.dtype == b.dtype == np.float16:
        return True
    lowest = highest = 0
    for array in (a, b):
        magnitudes = np.abs(array.astype(np.float32))
        counted = magnitudes[np.isfinite(magnitudes) & (magnitudes > 0)]
        if counted.size:
            lowest += int(np.frexp(counted.min())[1]) - 1
            highest += int(np.frexp(counted.max())[1])
    return lowest > _LOWEST and highest < _HIGHEST


class _Sums:
    """Sums over K of one pair of operands."""

    def __init__(self, left: Floats, right: Floats, is_exact: bool) -> None:
        self.left, self.right, self.is_exact = left, right, is_exact
        self.k = left.shape[0]
        self.shape = np.broadcast_shapes(left.shape[1:], right.shape[1:])
        self._scratch = np.empty((0, *self.shape), np.float32)

    def of(self, sums: PartSums | LaneSums | RangeSums | BlockSums) -> Floats:
        """The sum of all K."""
        match sums:
            case PartSums():
                return self._parts(sums)
            case LaneSums():
                return self._lanes(sums)
            case RangeSums():
                return self._ranges(sums)
            case BlockSums():
                return self._blocks(sums)

    def _zeros(self, lanes: int) -> Floats:
        return np.zeros((lanes, *self.shape), np.float32)

    def _step(self, chains: Floats, elements: slice) -> None:
        """One element of K more in each of the first chains: chain i takes the i-th of the elements."""
        left, right = self.left[elements], self.right[elements]
        lanes = left.shape[0]
        if not self.is_exact:
            chains[:lanes] = fma(left, right, chains[:lanes])
            return
        if self._scratch.shape[0] < lanes:
            self._scratch = np.empty((lanes, *self.shape), np.float32)
        scratch = np.multiply(left, right, out=self._scratch[:lanes])
        np.add(chains[:lanes], scratch, out=chains[:lanes])

    def _chains(self, lanes: int, steps: list[slice]) -> Floats:
        """Chains from +0, the steps one after another; late ones may have elements for the first lanes only."""
        chains = self._zeros(lanes)
        if self.is_exact and chains.size < _NARROW and steps:
            elements = np.arange(self.k)
            rows = [elements[step] for step in steps]
            count = next((at for at, row in enumerate(rows) if len(row) < lanes), len(rows))
            if count:
                taken = np.stack(rows[:count])
                products = np.multiply(self.left[taken], self.right[taken])
                products[0] += 0.0  # a chain begins at +0: -0 becomes +0
                chains = np.add.accumulate(products, axis=0, out=products)[-1].copy()  # strictly in order
                steps = steps[count:]
        for step in steps:
            self._step(chains, step)
        return chains

    def _chain(self, start: int, stop: int) -> Floats:
        """One chain over contiguous elements; without the axis of lanes."""
        total: Floats = self._chains(1, [slice(element, element + 1) for element in range(start, stop)])[0]
        return total

    def _parts(self, sums: PartSums) -> Floats:
        size = -(-self.k // sums.parts)
        block = sums.block or size
        parts = []
        for start in range(0, self.k, size):
            stop = min(start + size, self.k)
            parts.append(_in_order([self._chain(first, min(first + block, stop)) for first in range(start, stop, block)]))
        return _in_order(parts)

    def _lanes(self, sums: LaneSums) -> Floats:
        tile, vector = sums.vector * sums.lanes, sums.vector
        every = (sums.close_every or max(-(-self.k // tile), 1)) * tile
        totals = self._zeros(sums.lanes)
        for first in range(0, self.k, every):
            stop = min(first + every, self.k)
            chains = self._chains(
                sums.lanes,
                [
                    slice(element, min(start + tile, stop), vector)
                    for start in range(first, stop, tile)
                    for element in range(start, min(start + vector, stop))
                ],
            )
            active = min(-(-(stop - first) // vector), sums.lanes)
            totals = chains if first == 0 else _added(totals, chains, active)
        return _halved(totals)[0] if sums.halves else _in_order(list(totals))

    def _ranges(self, sums: RangeSums) -> Floats:
        size = -(-self.k // sums.lanes)
        totals = self._zeros(sums.lanes)
        for first in range(0, size, sums.close_every):
            last = min(first + sums.close_every, size)
            chains = self._chains(sums.lanes, [slice(element, None, size) for element in range(first, last)])
            totals = chains if first == 0 else _added(totals, chains, -(-(self.k - first) // size))
        return _in_order(list(totals))

    def _blocks(self, sums: BlockSums) -> Floats:
        width = sums.threads * sums.vector
        partial = self._zeros(max(sums.blocks, sums.threads))
        for block in range(min(sums.blocks, -(-self.k // width))):
            steps = [slice(start, start + width) for start in range(block * width, self.k, sums.blocks * width)]
            chains = self._chains(width, steps)
            by_thread = chains.reshape(sums.threads, sums.vector, *self.shape)
            partial[block] = _halved(_in_order([by_thread[:, each] for each in range(sums.vector)]))[0]
        threads = _in_order([partial[start : start + sums.threads] for start in range(0, len(partial), sums.threads)])
        return _last_kernel(threads)


def _added(totals: Floats, chains: Floats, lanes: int) -> Floats:
    """Totals with the chains of the first lanes; the others have no elements left."""
    totals[:lanes] += chains[:lanes]
    return totals


def _in_order(terms: list[Floats]) -> Floats:
    """((t0 + t1) + t2) + ...; lists of threads may end short."""
    total = terms[0].copy()
    for term in terms[1:]:
        total[: len(term)] += term
    return total


def _halved(lanes: Floats, least: int = 1) -> Floats:
    """x[i] += x[i + half], until so many are left."""
    while len(lanes) > least:
        half = len(lanes) // 2
        lanes = lanes[:half] + lanes[half:]
    return lanes


def _last_kernel(threads: Floats) -> Floats:
    """How the second kernel of a dot adds its 128 threads: by halves to 32, every fourth of those in order, the last four in order."""
    quarter = _halved(threads, 32)
    fours = _in_order([quarter[start : start + 4] for start in range(0, 32, 4)])
    return _in_order(list(fours))
