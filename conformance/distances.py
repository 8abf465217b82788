"""How far apart results lie that differ, counted part by part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mmabits.conformance.diff.comparing import Kind, UlpBin, compare
from mmabits.emulator.codecs import from_codes
from mmabits.isa import FormatSpec

Codes = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Differing results by class, and by ulp those of the class `value`. Those of two parts add up."""

    counts: Mapping[Kind, int] = field(default_factory=dict)
    """Of every class that occurs; equal results are not counted."""
    ulps: tuple[UlpBin, ...] = ()
    """Powers of ten, from 1 up to the largest difference there is."""
    largest_ulp: int = 0

    def __add__(self, other: Distances) -> Distances:
        """Of both parts together."""
        counts = {kind: self.counts.get(kind, 0) + other.counts.get(kind, 0) for kind in Kind if kind in {*self.counts, *other.counts}}
        bins: dict[tuple[int, int], int] = {}
        for part in (*self.ulps, *other.ulps):
            bins[part.low, part.high] = bins.get((part.low, part.high), 0) + part.count
        return Distances(
            counts=counts, ulps=tuple(UlpBin(low=low, high=high, count=count) for (low, high), count in sorted(bins.items())),
            largest_ulp=max(self.largest_ulp, other.largest_ulp),
        )  # fmt: skip

    def rows(self) -> Iterator[tuple[str, int]]:
        """Class and count, those that occur."""
        yield from ((kind.value, count) for kind, count in self.counts.items())

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "classes": dict(self.rows()), "ulp": [{"low": part.low, "high": part.high, "count": part.count} for part in self.ulps],
            "largest_ulp": self.largest_ulp,
        }  # fmt: skip


def distances(recorded: Codes, computed: Codes, form: FormatSpec) -> Distances:
    """Those of two results of the same dot products.

    Args:
        recorded: codes of any shape.
        computed: codes of the same shape.
        form: their format: f16, f32, f64 or s32.
    """
    differ = np.not_equal(recorded, computed)
    if not differ.any():
        return Distances()
    found = compare(*(from_codes(np.ascontiguousarray(codes[differ]), form).reshape(1, -1) for codes in (recorded, computed)))
    return Distances(counts={kind: count for kind, count in found.counts.items() if count}, ulps=found.ulps, largest_ulp=found.largest_ulp)
