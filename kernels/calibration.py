"""Static calibration: ranges of activations from data that come in parts, for quantizers that do not look at what they quantize.

What is kept of the data does not depend on how they were cut into parts, but for the moving average, which is about that: least and largest
values, and counts in bins whose width is a power of two. When larger values come, pairs of bins become one, and no count is guessed.
"""

from __future__ import annotations

import io
import json
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.emulator.codecs import decode, encode
from mmabits.isa import OperandError, OperandTypeError, format_spec, nearest
from mmabits.kernels.schemes.asymmetric import affine_codes, affine_parameters
from mmabits.kernels.schemes.checks import Array, check_finite, checked, positive
from mmabits.kernels.schemes.w8a8 import Floats, int8_codes, int8_scales
from mmabits.reports.written import written_whole

Doubles = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_LEAST_EXPONENT: Final = -149  # of float32
_DAMAGE: Final = (
    ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, tokenize.TokenError, SyntaxError, RuntimeError, MemoryError
)  # fmt: skip
"""What reading an archive that is none, or is damaged, raises; a method of compression that is not known is a RuntimeError."""


# What ranges are for --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CalibrationTarget:
    """What values are stored as, once there is a range."""

    name: str
    what: str
    is_symmetric: bool
    levels: int
    """Magnitudes that the entropy method quantizes to."""
    stored: Callable[[Floats, np.float32, np.float32], Floats]
    """(values, low, high) to what the quantizer makes of them, dequantized. Symmetric: `high` is the largest magnitude."""


def _as_int8(values: Floats, low: np.float32, high: np.float32) -> Floats:
    scale = int8_scales(np.asarray([high], np.float32))
    return int8_codes(values, scale).astype(np.float32) * scale


def _as_affine(values: Floats, low: np.float32, high: np.float32) -> Floats:
    scale, zero = affine_parameters(np.asarray([low], np.float32), np.asarray([high], np.float32))
    codes = affine_codes(values, scale, zero).astype(np.int32)
    return np.asarray((codes - zero).astype(np.float32) * scale)


def _as_int4(values: Floats, low: np.float32, high: np.float32) -> Floats:
    wanted = np.float32(high) / np.float32(7)
    scale = wanted if wanted > 0 else np.float32(1)
    return np.asarray(np.clip(np.rint(values / scale), -7, 7).astype(np.float32) * scale)


def _as_fp8(form: str) -> Callable[[Floats, np.float32, np.float32], Floats]:
    def stored(values: Floats, low: np.float32, high: np.float32) -> Floats:
        spec = format_spec(form)
        wanted = np.float32(high) / np.float32(spec.max_finite)
        scale = wanted if wanted > 0 else np.float32(1)
        return np.asarray(decode(encode(values / scale, spec, satfinite=True), spec).astype(np.float32) * scale)

    return stored


TARGETS: Final[dict[str, CalibrationTarget]] = {
    row.name: row
    for row in (
        CalibrationTarget(name="int8", what="-127 to 127, `quantize_int8`", is_symmetric=True, levels=128, stored=_as_int8),
        CalibrationTarget(
            name="int8-asymmetric", what="256 codes and a zero point, `quantize_affine`", is_symmetric=False, levels=256, stored=_as_affine
        ),
        CalibrationTarget(name="int4", what="-7 to 7, `quantize_int4_symmetric(amax=...)`", is_symmetric=True, levels=8, stored=_as_int4),
        CalibrationTarget(name="e4m3", what="`fp8.quantize` with a static scale", is_symmetric=True, levels=128, stored=_as_fp8("e4m3")),
        CalibrationTarget(name="e5m2", what="`fp8.quantize` with a static scale", is_symmetric=True, levels=128, stored=_as_fp8("e5m2")),
    )
}
"""What a range can be sought for."""


# What is kept of the data ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Histogram:
    """Counts of one granule's values in bins of width 2^exponent: `counts[bins + j]` of those from j to j + 1 widths."""

    counts: Counts
    """(2 bins,)."""
    exponent: int
    low: np.float32
    """The least value of all, 0 at most."""
    high: np.float32
    """The largest value of all, 0 at least."""

    @property
    def width(self) -> float:
        """Of a bin."""
        return float(np.ldexp(1.0, self.exponent))

    @property
    def bins(self) -> int:
        """On each side of zero."""
        return self.counts.size // 2

    def magnitudes(self) -> Counts:
        """(used,) counts of magnitudes by bin, up to the last that is not empty; at least one."""
        folded = self.counts[self.bins :] + self.counts[self.bins - 1 :: -1]
        used = np.flatnonzero(folded)
        return np.asarray(folded[: used[-1] + 1 if used.size else 1])

    @property
    def amax(self) -> np.float32:
        """The largest magnitude of all."""
        return np.float32(max(-self.low, self.high))


Range = tuple[np.float32, np.float32]


def _min_max(found: Histogram, target: CalibrationTarget, options: CalibrationOptions) -> Range:
    return found.low, found.high


def _percentile(found: Histogram, target: CalibrationTarget, options: CalibrationOptions) -> Range:
    """The least edge of a bin below which the share of magnitudes lies; for asymmetric codes of each tail half as much is cut off.

    How many values the share is, is exact: in floating point 20,000 times half of 1 - 0.9999 is less than 1.
    """
    size, share = int(found.counts.sum()), Fraction(repr(options.share))
    if target.is_symmetric:
        edge = np.searchsorted(np.cumsum(found.magnitudes()), ceil(share * size)) + 1
        amax = np.float32(min(edge * found.width, float(found.amax)))
        return -amax, amax
    total, cut = np.cumsum(found.counts), floor((1 - share) / 2 * size)
    first = np.searchsorted(total, cut, side="right")
    last = np.searchsorted(total, size - cut) + 1
    low, high = ((int(edge) - found.bins) * found.width for edge in (first, last))
    return np.float32(max(min(low, 0.0), float(found.low))), np.float32(min(max(high, 0.0), float(found.high)))


def _mean_square(found: Histogram, target: CalibrationTarget, options: CalibrationOptions) -> Range:
    """The range whose mean square error over the bins' middles is least, among `candidates` equal steps; ties go to the larger one."""
    at = np.flatnonzero(found.counts)
    middles = ((at - found.bins + 0.5) * found.width).astype(np.float32)
    weights = found.counts[at].astype(np.float64)
    steps = np.arange(options.candidates, 0, -1) / options.candidates

    def error(low: np.float32, high: np.float32) -> float:
        with np.errstate(over="ignore", under="ignore"):
            stored = target.stored(middles, low, high)
        return float((weights * (stored.astype(np.float64) - middles) ** 2).sum())

    if target.is_symmetric:
        ends = [np.float32(found.amax * np.float32(step)) for step in steps]
        best = min(range(len(ends)), key=lambda number: (error(-ends[number], ends[number]), number))
        return -ends[best], ends[best]
    low, high = found.low, found.high
    lows, highs = ([np.float32(end * np.float32(step)) for step in steps] for end in (found.low, found.high))
    for _ in range(8):  # one end after the other, until none moves
        before = low, high
        if found.high > 0:
            high = min(highs, key=lambda end: (error(low, end), -end))
        if found.low < 0:
            low = min(lows, key=lambda end: (error(end, high), end))
        if (low, high) == before:
            break
    return low, high


def _entropy(found: Histogram, target: CalibrationTarget, options: CalibrationOptions) -> Range:
    """TensorRT's published search: what is clipped goes into the last bin, the rest into `levels` that are spread over their bins again.

    Of the cuts after `levels` bins and more, the one whose two distributions have the least Kullback-Leibler divergence; its range ends in
    the middle of its last bin. The bin next to zero counts as the one after it: zeros, of which ReLU makes many, cost nothing.
    """
    if not target.is_symmetric:
        raise OperandError(f"entropy is defined for symmetric codes; {target.name} takes min-max, percentile or mean-square")
    counts = found.magnitudes()
    if counts.size <= target.levels:
        return -found.amax, found.amax
    counts[0] = counts[1]
    best, least = counts.size, np.inf
    beyond = counts.sum() - np.cumsum(counts)
    for cut in range(target.levels, counts.size + 1):
        divergence = _divergence(counts[:cut], int(beyond[cut - 1]), target.levels)
        if divergence <= least:  # of equal ones the last
            best, least = cut, divergence
    amax = found.amax if best == counts.size else np.float32((best - 0.5) * found.width)
    return -amax, amax


def _divergence(kept: Counts, clipped: int, levels: int) -> float:
    """D(P | Q) of the counts with what was clipped in the last, and of these without, quantized; infinite where Q has nothing for P."""
    reference = kept.astype(np.float64)
    reference[-1] += clipped
    level = np.arange(kept.size) * levels // kept.size
    is_full = kept > 0
    sums = np.bincount(level, weights=kept, minlength=levels)
    full = np.bincount(level, weights=is_full, minlength=levels)
    spread = np.where(is_full, (sums / np.maximum(full, 1))[level], 0.0)
    there = reference > 0
    if (spread[there] == 0).any():
        return float("inf")
    p, q = reference[there] / reference.sum(), spread[there] / spread.sum()
    return float((p * np.log(p / q)).sum())


@dataclass(frozen=True, kw_only=True)
class CalibrationMethod:
    """How a range follows from what was kept."""

    name: str
    what: str
    range_of: Callable[[Histogram, CalibrationTarget, CalibrationOptions], Range]
    counts: bool = True
    """Whether it needs the histogram."""
    source: str


METHODS: Final[dict[str, CalibrationMethod]] = {
    row.name: row
    for row in (
        CalibrationMethod(
            name="min-max", what="least and largest value", range_of=_min_max, counts=False,
            source="PyTorch, MinMaxObserver; TensorRT, minmax",
        ),
        CalibrationMethod(
            name="moving-average", what="least and largest value of each part, averaged with those before", range_of=_min_max, counts=False,
            source="PyTorch, MovingAverageMinMaxObserver",
        ),
        CalibrationMethod(
            name="percentile", what="what holds a share of the values, 99.99 % if not told otherwise", range_of=_percentile,
            source="pytorch-quantization, percentile",
        ),
        CalibrationMethod(
            name="mean-square", what="least mean square error of what the quantizer stores", range_of=_mean_square,
            source="pytorch-quantization, mse",
        ),
        CalibrationMethod(
            name="entropy", what="least Kullback-Leibler divergence of the quantized distribution", range_of=_entropy,
            source="Migacz, 8-bit Inference with TensorRT (GTC 2017, S7310); the first bin as in NVIDIA's pytorch-quantization",
        ),
    )
}  # fmt: skip
"""The methods."""


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """What the methods can be told.

    Raises:
        OperandError: numbers outside what is said.
    """

    share: float = 0.9999
    """Of the values that the range of `percentile` holds: above 0 to 1."""
    averaging: float = 0.01
    """What a new part weighs in a moving average: above 0 to 1."""
    bins: int = 4096
    """On each side of zero, a power of two from 256 on; more than half of them are used. They reach to the largest value of all:
    1e6 makes each of 4096 256 wide, and 256 is then the least that `percentile` finds, whatever the others are."""
    candidates: int = 256
    """Ranges that `mean-square` tries, at least 2."""

    def __post_init__(self) -> None:
        """Check."""
        for name in ("share", "averaging"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)) or not 0 < value <= 1:
                raise OperandError(f"{name} must be a number above 0 and at most 1, got {value!r}")
            object.__setattr__(self, name, float(str(value)))  # the number that it shows: 0.9 of float32 is 0.9
        for name, least in (("bins", 256), ("candidates", 2)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise OperandError(f"{name} must be an integer from {least} on, got {value!r}")
            object.__setattr__(self, name, int(value))
        if self.bins & (self.bins - 1):
            raise OperandError(f"bins must be a power of two, got {self.bins}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranges:
    """Calibrated ranges, one for each granule."""

    low: Floats
    """(granules,), 0 at most."""
    high: Floats
    """(granules,), 0 at least."""
    group: int
    """Neighbours of the axis that share a range."""

    @property
    def amax(self) -> Floats:
        """Largest magnitudes, for symmetric quantizers (`quantize_int8(amax=...)`)."""
        return np.maximum(-self.low, self.high)

    def scales(self, largest: float) -> Floats:
        """`amax / largest` in float32, 1 where that is zero: 448 for `fp8.quantize(scale=...)` of e4m3.

        Raises:
            OperandError: `largest` is no positive, finite number, or so small that a scale would be infinite.
        """
        with np.errstate(under="ignore", over="ignore"):
            wanted = self.amax / positive(largest, "largest")
        check_finite(wanted, "scales")
        return np.where(wanted > 0, wanted, np.float32(1)).astype(np.float32)

    def spread(self, size: int) -> Ranges:
        """A range for each of `size` indices of the axis; of one for all, for any size.

        Raises:
            OperandError: there are not so many groups.
        """
        if self.low.size == 1:
            return Ranges(low=np.repeat(self.low, size), high=np.repeat(self.high, size), group=1)
        if -(-size // self.group) != self.low.size:
            raise OperandError(f"{self.low.size} ranges of {self.group} each do not make up {size}")
        return Ranges(low=np.repeat(self.low, self.group)[:size], high=np.repeat(self.high, self.group)[:size], group=1)


class Calibrator:
    """Sees data in parts and gives ranges; can be stored in between and taken up again."""

    def __init__(
        self, method: str = "min-max", *, target: str = "int8", axis: int | None = None, group: int = 1,
        options: CalibrationOptions | None = None,
    ) -> None:  # fmt: skip
        """Start without data.

        Args:
            method: one of `METHODS`.
            target: one of `TARGETS`.
            axis: whose indices have ranges of their own: the last for channels, the one before it for tokens; None: one range for all.
            group: neighbours of the axis that share a range: 128 channels, 16 tokens. The last group may be smaller.
            options: what the method can be told.

        Raises:
            OperandError: something else; entropy for asymmetric codes.
            OperandTypeError: options of another type.
        """
        for name, rows, what in ((method, METHODS, "calibration method"), (target, TARGETS, "target of calibration")):
            if not isinstance(name, str) or name not in rows:
                raise OperandError(f"unknown {what} {name!r}{nearest(str(name), rows)}; known: {', '.join(rows)}")
        for value, name in ((axis, "axis"), (group, "group")):
            if (value is not None or name == "group") and (isinstance(value, bool) or not isinstance(value, (int, np.integer))):
                raise OperandError(f"{name} must be an integer, got {value!r}")
        if options is not None and not isinstance(options, CalibrationOptions):
            raise OperandTypeError(f"options must be CalibrationOptions, got {type(options).__name__}")
        if group < 1:
            raise OperandError(f"group must be at least 1, got {group}")
        if method == "entropy" and not TARGETS[target].is_symmetric:
            raise OperandError(f"entropy is defined for symmetric codes; {target} takes min-max, percentile or mean-square")
        self.method, self.target = METHODS[method], TARGETS[target]
        self.axis, self.group = None if axis is None else int(axis), int(group)
        self.options = options or CalibrationOptions()
        self.parts = 0
        self._low: Floats | None = None
        self._high: Floats | None = None
        self._exponents = np.zeros(0, np.int64)
        self._counts = np.zeros((0, 0), np.int64)

    def update(self, values: Array) -> None:
        """See one more part.

        Args:
            values: float32 of any shape, finite. Of an axis with ranges, every part has the same length. Parts without elements count for
                nothing.

        Raises:
            OperandTypeError, OperandError: something else.
        """
        given = checked(values, "values", (np.float32,))
        check_finite(given, "values")
        if not given.size:
            return
        granules = self._granules(given)
        low, high = (np.array([pick(one) for one in granules], np.float32) for pick in (_least, _largest))
        if self._low is None or self._high is None:
            self._low, self._high = low, high
            self._exponents = np.full(low.size, _LEAST_EXPONENT, np.int64)
            if self.method.counts:
                self._counts = np.zeros((low.size, 2 * self.options.bins), np.int64)
        elif low.size != self._low.size:
            raise OperandError(f"this part has {low.size} ranges along axis {self.axis}, those before had {self._low.size}")
        elif self.method.name == "moving-average":
            share = np.float32(self.options.averaging)
            self._low, self._high = _moved(self._low, low, share), _moved(self._high, high, share)
        else:
            self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        self.parts += 1
        if self.method.counts:
            self._count(granules, np.maximum(-low, high))

    def _granules(self, values: Array) -> list[Array]:
        if self.axis is None:
            return [values.reshape(-1)]
        if not -values.ndim <= self.axis < values.ndim:
            raise OperandError(f"axis {self.axis} of an array of {values.ndim} dimensions; allowed is {-values.ndim} to {values.ndim - 1}")
        lines = np.moveaxis(values, self.axis, 0)
        return [lines[start : start + self.group].reshape(-1) for start in range(0, len(lines), self.group)]

    def _count(self, granules: list[Array], amax: Floats) -> None:
        bins = self.options.bins
        # 2^exponent is the least width with which `bins` of it lie above the largest magnitude.
        wanted = np.where(amax > 0, np.frexp(amax)[1].astype(np.int64) - (bins.bit_length() - 1), _LEAST_EXPONENT)
        wanted = np.maximum(wanted, _LEAST_EXPONENT)
        places = np.arange(-bins, bins)
        for number, values in enumerate(granules):
            shift = int(wanted[number] - self._exponents[number])
            if shift > 0:
                merged = places >> min(shift, 62)
                self._counts[number] = _binned(merged + bins, 2 * bins, self._counts[number])
                self._exponents[number] = wanted[number]
            at = np.floor(np.ldexp(values.astype(np.float64), -self._exponents[number])).astype(np.int64)
            self._counts[number] += np.bincount(at + bins, minlength=2 * bins)

    def merge(self, other: Calibrator) -> None:
        """See what another calibrator of the same kind has seen: parts of the data that were done elsewhere.

        Raises:
            OperandError: it is of another kind; moving averages, which cannot be merged.
        """
        if self._settings() != other._settings():
            raise OperandError(f"calibrators of {other._settings()} cannot be merged into {self._settings()}")
        if self.method.name == "moving-average":
            raise OperandError("moving averages cannot be merged: their parts have an order")
        if other._low is None or other._high is None:
            return
        if self._low is None or self._high is None:
            self._low, self._high = other._low.copy(), other._high.copy()
            self._exponents, self._counts = other._exponents.copy(), other._counts.copy()
        else:
            if self._low.size != other._low.size:
                raise OperandError(f"calibrators of {other._low.size} and {self._low.size} ranges cannot be merged")
            self._low, self._high = np.minimum(self._low, other._low), np.maximum(self._high, other._high)
            if self.method.counts:
                bins = self.options.bins
                exponents = np.maximum(self._exponents, other._exponents)
                for number, exponent in enumerate(exponents):
                    total = np.zeros(2 * bins, np.int64)
                    for counts, was in ((self._counts, self._exponents), (other._counts, other._exponents)):
                        merged = np.arange(-bins, bins) >> min(int(exponent - was[number]), 62)
                        total += _binned(merged + bins, 2 * bins, counts[number])
                    self._counts[number] = total
                self._exponents = exponents
        self.parts += other.parts

    def histogram(self, granule: int = 0) -> Histogram:
        """What was kept of one granule.

        Raises:
            OperandError: nothing was seen, no such granule, or a method that counts nothing.
        """
        low, high = self._seen()
        if not self.method.counts:
            raise OperandError(f"{self.method.name} keeps no histogram")
        if not 0 <= granule < low.size:
            raise OperandError(f"granules are 0 to {low.size - 1}, got {granule}")
        return Histogram(counts=self._counts[granule], exponent=int(self._exponents[granule]), low=low[granule], high=high[granule])

    def ranges(self) -> Ranges:
        """The ranges of what was seen so far.

        Raises:
            OperandError: nothing was seen.
        """
        low, high = self._seen()
        if not self.method.counts:
            return Ranges(low=low, high=high, group=self.group)
        found = [self.method.range_of(self.histogram(number), self.target, self.options) for number in range(low.size)]
        return Ranges(
            low=np.array([one[0] for one in found], np.float32), high=np.array([one[1] for one in found], np.float32), group=self.group
        )

    def _seen(self) -> tuple[Floats, Floats]:
        if self._low is None or self._high is None:
            raise OperandError("no values were seen yet, so there are no ranges")
        return np.minimum(self._low, np.float32(0)), np.maximum(self._high, np.float32(0))

    def _settings(self) -> dict[str, Any]:
        return {
            "method": self.method.name, "target": self.target.name, "axis": self.axis, "group": self.group,
            **{name: getattr(self.options, name) for name in CalibrationOptions.__dataclass_fields__},
        }  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Keep what was seen in a file, to go on later; written whole or not at all.

        Raises:
            OperandError: the file cannot be written.
        """
        target = Path(path)
        low, high = (np.zeros(0, np.float32) if end is None else end for end in (self._low, self._high))
        told = np.frombuffer(json.dumps({**self._settings(), "parts": self.parts}).encode(), np.uint8)
        try:
            with written_whole(target) as partial, partial.open("wb") as file:
                np.savez_compressed(file, told=told, low=low, high=high, exponents=self._exponents, counts=self._counts)
        except OSError as error:
            raise OperandError(f"{target} cannot be written ({error.strerror or error})") from error
        return target

    @classmethod
    def load(cls, path: str | Path) -> Calibrator:
        """A calibrator that goes on where a stored one was.

        Raises:
            OperandError: no such file, or no such content.
        """
        try:
            with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as file:
                told = json.loads(bytes(file["told"]))
                low, high, exponents, counts = (file[name] for name in ("low", "high", "exponents", "counts"))
        except OSError as error:
            raise OperandError(f"{path} cannot be read ({error.strerror or error})") from error
        except _DAMAGE as error:
            raise OperandError(f"{path} is no calibration: {error}") from error
        try:
            options = CalibrationOptions(**{name: told[name] for name in CalibrationOptions.__dataclass_fields__})
            found = cls(told["method"], target=told["target"], axis=told["axis"], group=told["group"], options=options)
            found.parts = int(told["parts"])
        except (KeyError, TypeError, ValueError) as error:
            raise OperandError(f"{path} is no calibration: {error}") from error
        shape = (low.size, 2 * options.bins) if low.size and found.method.counts else (0, 0)
        kinds = (low.dtype, high.dtype, exponents.dtype, counts.dtype) == (np.float32, np.float32, np.int64, np.int64)
        if not kinds or low.ndim != 1 or high.shape != low.shape or exponents.shape != low.shape or counts.shape != shape:
            raise OperandError(f"{path} is no calibration: its arrays do not fit each other")
        if low.size:
            found._low, found._high, found._exponents, found._counts = low, high, exponents, counts
        return found


def _binned(places: Counts, size: int, counts: Counts) -> Counts:
    total = np.zeros(size, np.int64)
    np.add.at(total, places, counts)  # exact, which weights of bincount, float64, are not
    return total


def _moved(before: Floats, now: Floats, share: np.float32) -> Floats:
    """`before + share * (now - before)`, each operation rounded; by halves, exact there, where the difference is beyond float32."""
    with np.errstate(over="ignore", under="ignore"):
        difference = now - before
        found = before + share * difference
        half, to = before / np.float32(2), now / np.float32(2)
        halves = np.clip(half + share * (to - half), np.minimum(half, to), np.maximum(half, to)) * np.float32(2)
    return np.where(np.isfinite(difference), found, halves)


def _least(values: Array) -> np.float32:
    return np.float32(values.min())


def _largest(values: Array) -> np.float32:
    return np.float32(values.max())


__all__ = ["METHODS", "TARGETS", "CalibrationMethod", "CalibrationOptions", "CalibrationTarget", "Calibrator", "Histogram", "Ranges"]
