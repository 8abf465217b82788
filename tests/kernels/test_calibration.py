"""Static calibration: what is kept does not depend on the parts, methods against plain readings, and beside PyTorch's observers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmabits.isa.errors import OperandError, OperandTypeError
from mmabits.kernels.calibration import METHODS, TARGETS, CalibrationOptions, Calibrator, Ranges
from mmabits.kernels.schemes import fp8
from mmabits.kernels.schemes.asymmetric import quantize_affine
from mmabits.kernels.schemes.fake import fake_quantized
from mmabits.kernels.schemes.w4a4 import quantize_int4_symmetric
from mmabits.kernels.schemes.w8a8 import quantize_int8

SEED = 20260302
F32 = np.float32
SMALL = CalibrationOptions(bins=512, candidates=64)


def parts(seed: int = SEED) -> list[np.ndarray]:
    """Of five sizes, the third with an outlier; the second of one sign."""
    rng = np.random.default_rng(seed)
    found = [(rng.standard_normal((24, 40)) * scale).astype(F32) for scale in (1, 0.5, 3, 0.01, 2)]
    found[1], found[2][3, 4] = np.abs(found[1]), 40
    return found


def calibrated(method: str, data: list[np.ndarray], **options: object) -> Calibrator:
    found = Calibrator(method, **{"options": SMALL, **options})  # type: ignore[arg-type]
    for each in data:
        found.update(each)
    return found


def same(a: Calibrator, b: Calibrator) -> bool:
    left, right = a.ranges(), b.ranges()
    return np.array_equal(left.low, right.low) and np.array_equal(left.high, right.high)


KINDS = [
    (method, target) for method in METHODS for target in TARGETS if method != "entropy" or TARGETS[target].is_symmetric
]  # fmt: skip
PARTED = [kind for kind in KINDS if kind[0] != "moving-average"]


# Parts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "target"), PARTED)
def test_ranges_do_not_depend_on_the_parts(method: str, target: str) -> None:
    data = parts()
    whole = calibrated(method, [np.concatenate(data)], target=target)
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        assert same(whole, calibrated(method, [data[number] for number in order], target=target))
    first, second = calibrated(method, data[:2], target=target), calibrated(method, data[2:], target=target)
    first.merge(second)
    assert same(whole, first) and first.parts == 5


@pytest.mark.parametrize(("axis", "group"), [(None, 1), (1, 1), (-1, 16), (0, 8)])
@pytest.mark.parametrize("method", ["min-max", "percentile"])
def test_granules_are_ranges_of_their_own(method: str, axis: int | None, group: int) -> None:
    found = calibrated(method, parts(), axis=axis, group=group).ranges()
    blocks: list[list[np.ndarray]]
    if axis is None:
        blocks = [parts()]
    elif axis == 0:
        blocks = [[each[start : start + group] for each in parts()] for start in range(0, 24, group)]
    else:
        blocks = [[each[:, start : start + group] for each in parts()] for start in range(0, 40, group)]
    for number, block in enumerate(blocks):
        one = calibrated(method, block).ranges()
        assert (found.low[number], found.high[number]) == (one.low[0], one.high[0])
    assert found.low.size == len(blocks)


@pytest.mark.parametrize(("method", "target"), KINDS)
def test_a_stored_calibrator_goes_on_where_it_was(tmp_path: Path, method: str, target: str) -> None:
    data, path = parts(), tmp_path / "state.npz"
    calibrated(method, data[:3], target=target, axis=1, group=20).save(path)
    again = Calibrator.load(path)
    assert again.parts == 3
    for each in data[3:]:
        again.update(each)
    assert same(again, calibrated(method, data, target=target, axis=1, group=20))
    Calibrator(method, target=target).save(path)
    with pytest.raises(OperandError, match="no values were seen yet"):
        Calibrator.load(path).ranges()


def test_counts_are_those_of_the_values() -> None:
    found = calibrated("percentile", parts()).histogram()
    values = np.concatenate([each.ravel() for each in parts()]).astype(np.float64)
    assert (found.exponent, found.bins, found.amax) == (-3, 512, 40)
    assert np.array_equal(found.counts, np.bincount(np.floor(values / 0.125).astype(int) + 512, minlength=1024))


@pytest.mark.parametrize("values", [
    np.zeros(5), np.full(3, -0.0), np.full(4, 1e-45), np.full(4, -1e-45), np.array([3.4e38, -3.4e38, 1.0]), np.array([1e-45, 3e38]),
    np.full(2, 7.0), np.full(2, -7.0), np.r_[np.full(10000, 0.5), 1e30],
], ids=["zeros", "negative zeros", "subnormal", "negative subnormal", "largest", "wide", "equal", "equal negative", "outlier"])  # fmt: skip
@pytest.mark.parametrize(("method", "target"), PARTED)
def test_hard_values(method: str, target: str, values: np.ndarray) -> None:
    given = values.astype(F32)
    if target == "int8-asymmetric" and np.ptp(given.astype(np.float64)) > 3.4e38:
        given /= F32(2)  # ends further apart than float32 reaches are refused by the quantizer
    found = calibrated(method, [given, given[:0], given], target=target).ranges()
    low, high = min(given.min(), 0), max(given.max(), 0)
    amax = max(-low, high)
    assert np.isfinite(found.amax).all() and found.low[0] <= 0 <= found.high[0]
    assert -amax <= found.low[0] and found.high[0] <= amax
    if method == "min-max":
        assert (found.low[0], found.high[0]) == (low, high)


# Methods --------------------------------------------------------------------------------------------------------------


def entropy_by_hand(counts: list[int], levels: int) -> int:
    """TensorRT's algorithm as its slides have it, one bin after another: the number of bins kept."""
    counts = [counts[1], *counts[1:]]
    best, least = len(counts), math.inf
    for cut in range(levels, len(counts) + 1):
        p = [float(count) for count in counts[:cut]]
        p[-1] += sum(counts[cut:])
        q = [0.0] * cut
        for level in range(levels):
            mine = [place for place in range(cut) if place * levels // cut == level]
            full = [place for place in mine if counts[place]]
            for place in full:
                q[place] = sum(counts[each] for each in mine) / len(full)
        total_p, total_q, divergence = sum(p), sum(q), 0.0
        for a, b in zip(p, q, strict=True):
            if a:
                divergence += math.inf if not b else a / total_p * math.log(a / total_p / (b / total_q))
        if divergence <= least * (1 + 1e-12):
            best, least = cut, min(divergence, least)
    return best


@pytest.mark.parametrize("seed", range(4))
def test_entropy_is_the_published_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = [(rng.standard_t(3, 4000) * 2.0 ** rng.integers(-3, 3)).astype(F32)]
    options = CalibrationOptions(bins=256)
    found = calibrated("entropy", data, target="int4", options=options)
    histogram = found.histogram()
    best = entropy_by_hand(histogram.magnitudes().tolist(), 8)
    wanted = histogram.amax if best == histogram.magnitudes().size else F32((best - 0.5) * histogram.width)
    assert found.ranges().high[0] == wanted


def test_zeros_do_not_move_the_entropy_range() -> None:
    values = np.abs(np.random.default_rng(SEED).standard_normal(20_000)).astype(F32)
    with_zeros = np.concatenate([values, np.zeros(20_000, F32)])
    assert same(calibrated("entropy", [values]), calibrated("entropy", [with_zeros]))


@pytest.mark.parametrize("target", ["int8", "int4", "e4m3"])
def test_mean_square_is_the_least_error_of_its_candidates(target: str) -> None:
    found = calibrated("mean-square", parts(), target=target)
    histogram = found.histogram()
    at = np.flatnonzero(histogram.counts)
    middles = ((at - 512 + 0.5) * histogram.width).astype(F32)
    errors = {}
    for step in range(1, 65):
        amax = np.float32(40) * F32(step / 64)
        if target == "e4m3":
            stored = fp8.quantize(middles[None], scale=F32(amax / F32(448))).dequantize()[0]
        elif target == "int8":
            stored = quantize_int8(middles[None], axis=0, amax=np.array([amax])).dequantize()[0]
        else:
            stored = np.clip(np.rint(middles / (amax / F32(7))), -7, 7) * (amax / F32(7))
        errors[amax] = float((histogram.counts[at] * (stored.astype(np.float64) - middles) ** 2).sum())
    assert found.ranges().high[0] == min(errors, key=lambda amax: (errors[amax], -amax))


def test_percentile_holds_its_share() -> None:
    values = np.random.default_rng(SEED).standard_normal(100_000).astype(F32)
    for share in (0.9, 0.99, 0.9999, 1.0):
        options = CalibrationOptions(share=share)
        amax = calibrated("percentile", [values], options=options).ranges().high[0]
        assert share <= np.mean(np.abs(values) <= amax) <= share + 0.001
        both = calibrated("percentile", [values + F32(1)], target="int8-asymmetric", options=options).ranges()
        inside = np.mean((values + F32(1) >= both.low) & (values + F32(1) <= both.high))
        assert share - 1e-9 <= inside <= share + 0.001
    assert amax == np.abs(values).max()


def test_percentiles_cut_off_whole_numbers_of_values_at_both_ends() -> None:
    """Half of 1 - 0.9999 times 20,000 is 0.99999999 in floating point."""
    for times in (1, 3, 7):
        values = np.linspace(-1, 1, 20_000 * times, dtype=F32)
        values[:times], values[-times:] = -100, 100
        for target in ("int8-asymmetric", "int8"):
            found = calibrated("percentile", [values], target=target, options=CalibrationOptions()).ranges()
            assert (found.low[0], found.high[0]) == (-1, 1), (times, target)


def test_one_large_value_makes_bins_wide() -> None:
    """The numbers of docs/quantizers.md."""
    values = np.random.default_rng(SEED).standard_normal(20_000).astype(F32)
    values[7] = 1e6
    assert calibrated("percentile", [values], options=CalibrationOptions()).ranges().amax[0] == 256
    assert 3.5 < np.sort(np.abs(values))[19_997] < 4.5


def test_moving_averages_of_numbers_far_apart() -> None:
    found = calibrated("moving-average", [np.array(ends, F32) for ends in ([-3e38, 3e38], [3e38, 3e38])], options=CalibrationOptions())
    assert found.ranges().low[0] == F32(-2.94e38) and found.ranges().high[0] == F32(3e38)
    whole = CalibrationOptions(averaging=1)
    ends = [np.array([sign * np.finfo(F32).max], F32) for sign in (1, -1)]
    assert calibrated("moving-average", ends, options=whole).ranges().low[0] == ends[1][0]


def test_a_clipped_range_loses_less_where_there_is_an_outlier() -> None:
    values = np.random.default_rng(SEED).standard_normal((64, 256)).astype(F32)
    values[0, 0] = 40

    def error(method: str) -> float:
        amax = calibrated(method, [values], options=CalibrationOptions()).ranges().amax
        return float(np.square(quantize_int8(values, axis=0, amax=amax).dequantize() - values).mean())

    assert error("mean-square") <= min(error("min-max"), error("percentile"), error("entropy")) * 1.01


# Beside PyTorch's observers -------------------------------------------------------------------------------------------


def observed(observer: object, data: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    import torch

    for each in data:
        observer(torch.from_numpy(each))  # type: ignore[operator]
    scales, zeros = observer.calculate_qparams()  # type: ignore[attr-defined]
    return scales.numpy(), zeros.numpy()


def test_min_max_and_moving_averages_are_torchs() -> None:
    torch = pytest.importorskip("torch")
    from torch.ao.quantization import observer as there

    for method, kind in (("min-max", there.MinMaxObserver), ("moving-average", there.MovingAverageMinMaxObserver)):
        scales, zeros = observed(kind(dtype=torch.quint8, qscheme=torch.per_tensor_affine), parts())
        ranges = calibrated(method, parts(), target="int8-asymmetric").ranges()
        affine = quantize_affine(parts()[0], axis=0, low=ranges.low, high=ranges.high)
        assert (affine.scales[0], affine.zeros[0]) == (scales[0], zeros[0])
    scales, _ = observed(there.PerChannelMinMaxObserver(ch_axis=1, dtype=torch.quint8, qscheme=torch.per_channel_affine), parts())
    ranges = calibrated("min-max", parts(), axis=1).ranges()
    wide = quantize_affine(parts()[0], axis=1, dtype=np.int8, low=ranges.low, high=ranges.high)
    assert np.array_equal(wide.scales, scales)


def test_where_torchs_observers_differ() -> None:
    """The list of docs/quantizers.md."""
    torch = pytest.importorskip("torch")
    from torch.ao.quantization import observer as there

    zeros = [np.zeros((2, 2), F32)]
    scales, _ = observed(there.MinMaxObserver(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric), zeros)
    assert scales[0] == F32(2**-23) and calibrated("min-max", zeros).ranges().scales(127)[0] == 1
    scales, _ = observed(there.MinMaxObserver(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric), parts())
    assert scales[0] == F32(40 / 127.5) and calibrated("min-max", parts()).ranges().scales(127)[0] == F32(40) / F32(127)
    observers = [there.HistogramObserver(), there.HistogramObserver()]
    found = [observed(one, order) for one, order in zip(observers, (parts(), [np.concatenate(parts())]), strict=True)]
    assert not torch.equal(observers[0].histogram, observers[1].histogram)  # it depends on the parts
    mine = calibrated("mean-square", parts(), target="int8-asymmetric", options=CalibrationOptions()).ranges()
    affine = quantize_affine(parts()[0], axis=0, low=mine.low, high=mine.high)

    def error(scale: float, zero: int) -> float:
        values = np.concatenate(parts()).astype(np.float64)
        codes = np.clip(np.rint(values / scale) + zero, 0, 255)
        return float((((codes - zero) * scale - values) ** 2).mean())

    assert error(float(affine.scales[0]), int(affine.zeros[0])) <= error(float(found[1][0][0]), int(found[1][1][0]))


# Use and refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # its imports use what PyTorch deprecates
def test_where_modelopts_histograms_differ() -> None:
    """Its percentile is a bin too far where a share is a whole number of values; its mean square is called with shifted arguments."""
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("modelopt")
    from modelopt.torch.quantization.calib.histogram import HistogramCalibrator

    rng = np.random.default_rng(0)
    values = rng.standard_t(3, 20_000).astype(F32)
    there = HistogramCalibrator()
    for part in np.split(values, 4):
        there.collect(torch.from_numpy(part))
    edges, ranked = there._calib_bin_edges.numpy(), np.sort(np.abs(values))
    counts, _ = np.histogram(ranked, bins=edges)
    assert np.abs(there._calib_hist.numpy() - counts[: len(there._calib_hist)]).sum() <= 20  # values beside the edges of bins
    found = float(there.compute_amax("percentile", percentile=99.99))
    assert ranked[19_997] < found <= ranked[19_998]  # the lower edge of the bin of the next value
    ours = calibrated("percentile", list(np.split(values, 4)), options=CalibrationOptions(share=0.9999)).ranges().high[0]
    assert ranked[19_997] <= ours < ranked[19_998]
    normal = HistogramCalibrator(num_bins=512)
    normal.collect(torch.from_numpy(rng.standard_normal(20_000).astype(F32)))
    width = float(normal._calib_bin_edges[1])
    assert float(normal.compute_amax("mse")) == pytest.approx(128.5 * width, rel=1e-5)  # the first of its candidates
    with pytest.raises(TypeError, match="'M'"):
        fp8 = HistogramCalibrator(num_bits=(4, 3), num_bins=512)
        fp8.collect(torch.from_numpy(values))
        fp8.compute_amax("mse")


def test_ranges_of_token_groups_are_static_scales_of_rows() -> None:
    ranges = calibrated("min-max", parts(), axis=0, group=10).ranges().spread(24)
    x = parts()[2]
    assert quantize_int8(x, axis=0, amax=ranges.amax).scales.tolist() == (ranges.amax / F32(127)).tolist()
    assert fp8.quantize(x, per="row", scale=ranges.scales(448)).scales[:, 0].tolist() == (ranges.amax / F32(448)).tolist()
    assert quantize_affine(x, axis=0, low=ranges.low, high=ranges.high).zeros.size == 24
    four = quantize_int4_symmetric(x, axis=0, amax=ranges.amax)
    assert four.scales.tolist() == (ranges.amax / F32(7)).tolist()
    row = TARGETS["int4"].stored(x[2], ranges.low[2], ranges.high[2])
    assert np.array_equal(four.dequantize()[2], row)
    assert np.array_equal(fake_quantized(x, "int4", amax=ranges.amax)[0], four.dequantize())
    one = calibrated("min-max", parts()).ranges().spread(3)
    assert one.high.tolist() == [40] * 3
    with pytest.raises(OperandError, match="3 ranges of 10 each do not make up 31"):
        calibrated("min-max", parts(), axis=0, group=10).ranges().spread(31)


def loaded(folder: Path, content: bytes) -> Calibrator:
    (folder / "state").write_bytes(content)
    return Calibrator.load(folder / "state")


def tampered(folder: Path, name: str, array: np.ndarray) -> Calibrator:
    calibrated("percentile", parts()).save(folder / "state")
    with np.load(folder / "state") as file:
        held = {**{each: file[each] for each in file.files}, name: array}
    with (folder / "state").open("wb") as target:
        np.savez(target, **held)
    return Calibrator.load(folder / "state")


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda _: Calibrator("minmax"), OperandError, "unknown calibration method 'minmax'; did you mean min-max"),
        (lambda _: Calibrator(target="int16"), OperandError, "unknown target of calibration 'int16'"),
        (lambda _: Calibrator("entropy", target="int8-asymmetric"), OperandError, "entropy is defined for symmetric codes"),
        (lambda _: Calibrator(group=0), OperandError, "group must be at least 1, got 0"),
        (lambda _: Calibrator(axis="1"), OperandError, "axis must be an integer, got '1'"),
        (lambda _: Calibrator(group=None), OperandError, "group must be an integer, got None"),  # type: ignore[arg-type]
        (lambda _: Calibrator(options={"share": 0.9}), OperandTypeError, "must be CalibrationOptions, got dict"),  # type: ignore[arg-type]
        (lambda _: calibrated("min-max", parts()).ranges().scales(math.nan), OperandError, "largest must be positive and finite, got nan"),
        (lambda _: calibrated("min-max", parts()).ranges().scales(-448), OperandError, "largest must be positive and finite, got -448"),
        (lambda _: calibrated("min-max", parts()).ranges().scales(0), OperandError, "largest must be positive and finite, got 0"),
        (lambda _: calibrated("min-max", parts()).ranges().scales(1e-38), OperandError, "scales must be finite, got inf"),
        (lambda _: quantize_int4_symmetric(parts()[0], axis=0, amax=np.array([-1], F32)), OperandError, "amax must not be negative"),
        (lambda _: CalibrationOptions(share=0), OperandError, "share must be a number above 0 and at most 1, got 0"),
        (lambda _: CalibrationOptions(bins=1000), OperandError, "bins must be a power of two, got 1000"),
        (lambda _: CalibrationOptions(candidates=1), OperandError, "candidates must be an integer from 2 on, got 1"),
        (lambda _: Calibrator().ranges(), OperandError, "no values were seen yet"),
        (lambda _: Calibrator().update(np.zeros(3)), OperandTypeError, "float32, got dtype float64"),
        (lambda _: Calibrator().update(np.array([1, np.nan], F32)), OperandError, r"finite, got nan at index \(1,\)"),
        (lambda _: Calibrator(axis=2).update(parts()[0]), OperandError, "axis 2 of an array of 2 dimensions; allowed is -2 to 1"),
        (lambda _: calibrated("min-max", [parts()[0], parts()[0][:, :5]], axis=1), OperandError, "5 ranges along axis 1, those before"),
        (lambda _: calibrated("min-max", parts()).histogram(), OperandError, "min-max keeps no histogram"),
        (lambda _: calibrated("percentile", parts()).histogram(1), OperandError, "granules are 0 to 0, got 1"),
        (lambda _: calibrated("min-max", parts()).merge(calibrated("min-max", parts(), axis=0)), OperandError, "cannot be merged"),
        (lambda _: calibrated("moving-average", parts()).merge(calibrated("moving-average", parts())), OperandError, "parts have an order"),
        (lambda folder: Calibrator.load(folder / "nowhere"), OperandError, "nowhere cannot be read"),
        (lambda folder: Calibrator().save(folder / "no" / "folder"), OperandError, "cannot be written"),
        (lambda folder: loaded(folder, b"nonsense"), OperandError, "state is no calibration"),
        (lambda folder: tampered(folder, "counts", np.zeros((1, 4), np.int64)), OperandError, "arrays do not fit each other"),
        (lambda folder: tampered(folder, "told", np.zeros(2, np.uint8)), OperandError, "state is no calibration"),
    ],
)  # fmt: skip
def test_wrong_use(tmp_path: Path, make: Callable[[Path], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make(tmp_path)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    options = CalibrationOptions(share=F32(0.9), bins=np.int64(512), candidates=np.int32(64))  # type: ignore[arg-type]
    assert options == CalibrationOptions(share=0.9, bins=512, candidates=64)
    found = calibrated("percentile", parts(), axis=np.int64(1), group=np.int8(8), options=options)
    assert same(found, Calibrator.load(found.save(tmp_path / "state")))


def test_a_damaged_file_is_one_error_of_ours(tmp_path: Path) -> None:
    """The members' checksums tell most damage; the rest changes names that nothing depends on."""
    found = calibrated("percentile", parts())
    held = found.save(tmp_path / "state").read_bytes()
    kinds = [(place, change) for place in range(0, len(held), 13) for change in (1, 255)]
    kinds += [(place, change) for place in range(len(held) - 1) if held[place : place + 2] == b"\x08\0" for change in (4, 6, 9)]
    refused = 0
    for place, change in kinds:  # the second: ways of compression
        try:
            again = loaded(tmp_path, held[:place] + bytes([held[place] ^ change]) + held[place + 1 :])
        except OperandError:
            refused += 1
        else:
            assert same(found, again) and again.parts == found.parts
    assert refused > len(kinds) / 2
    for size in range(0, len(held), 100):
        with pytest.raises(OperandError):
            loaded(tmp_path, held[:size])


def test_a_refused_part_changes_nothing() -> None:
    found = calibrated("percentile", parts(), axis=1)
    before = found.ranges()
    with pytest.raises(OperandError):
        found.update(parts()[0][:, :7].copy() * F32(1000))
    after: Ranges = found.ranges()
    assert np.array_equal(before.high, after.high) and found.parts == 5
