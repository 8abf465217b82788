"""The benchmarks: ratios are what they are said to be, wrong bits are noticed, tables, JSON and plot are made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slow_reference

from mmabits.emulator.codecs import as_codes, decode, from_codes
from mmabits.isa import MmabitsError, lower

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import measure, paths, peers, report, scaling, worker  # noqa: E402
from benchmarks.check import check, sample_of  # noqa: E402
from benchmarks.data import HARD, Data, Operands, draw, gemm_call, kinds_of, matmul_operands, tiled  # noqa: E402

IDS = [path.id for path in paths.PATHS]


class FakeClock:
    """A clock that calls move on by themselves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, seconds: list[float], log: list[str], name: str) -> Callable[[], None]:
        """A call that takes the given times in turn, the last for ever."""

        def call() -> None:
            log.append(name)
            self.now += seconds.pop(0) if len(seconds) > 1 else seconds[0]

        return call


# ------------------------------------------------------------------------------------------------------------------- time


def test_calls_are_interleaved_and_the_ratio_is_the_median_of_the_pairs() -> None:
    clock, log = FakeClock(), []
    ours = clock.taking([9.0, 10.0, 20.0, 40.0], log, "A")
    theirs = clock.taking([9.0, 1.0, 8.0, 2.0], log, "B")
    pairs = measure.interleave(ours, theirs, repeats=3, pause=0, side_seconds=0, clock=clock)
    assert "".join(log) == "ABABABAB"  # the first two warm up
    assert [(pair.ours, pair.theirs) for pair in pairs] == [(10, 1), (20, 8), (40, 2)]
    summary = measure.summarize(pairs)
    assert (summary.ratio, summary.ratio_min, summary.ratio_max) == (0.1, 0.05, 0.4)  # 2 / 20 would be the ratio of the medians too,
    assert summary.theirs / summary.ours == 0.1
    skewed = [measure.Pair(ours=1, theirs=1), measure.Pair(ours=2, theirs=3), measure.Pair(ours=9, theirs=9)]
    assert measure.summarize(skewed).ratio == 1.0  # ... but here that is 3 / 2


def test_hard_data_is_timed_in_the_same_rounds_as_plain_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy, which slows down from round to round, has no influence on the part of the plain rate."""
    path, shape = paths.by_id("sm_80.mma.s8.s32"), (4, 4, 32)
    rows = {Data.PLAIN: [(2.0, 1.0)] * 3, Data.RAW: [(4.0, 1.0, 1.0), (4.0, 8.0, 2.0), (4.0, 9.0, 3.0)], Data.ZEROS: [(1.0, 1.0, 1.0)] * 3}
    todo = iter(rows.values())

    def timed(calls: Any, *, repeats: int) -> list[tuple[float, ...]]:
        calls[0]()
        return next(todo)

    monkeypatch.setattr(measure, "rounds", timed)
    made = {row.data: row for row in measure.path_rates(path, shape, threads=1, repeats=3, sample=12)}
    assert {data: row.ratio for data, row in made.items()} == {"plain": 0.5, "raw bits": 2.0, "90 % zeros": 1.0}
    assert {data: row.relative for data, row in made.items()} == {"plain": 1.0, "raw bits": 0.5, "90 % zeros": 1.0}
    assert [(row.compared, row.different) for row in made.values()] == [(4, 0)] * 3


def test_short_calls_are_repeated_until_the_clock_can_tell() -> None:
    clock, log = FakeClock(), []
    pairs = measure.interleave(
        clock.taking([0.25], log, "A"), clock.taking([2.0], log, "B"), repeats=1, pause=0, side_seconds=1.0, clock=clock
    )
    assert "".join(log) == "AAB" + "AAAA" + "B"
    assert pairs == [measure.Pair(ours=0.25, theirs=2.0)]


def test_rates_are_products_over_seconds() -> None:
    row = rate_row(seconds=0.5, numpy_seconds=0.25, shape=(1000, 1000, 500))
    assert (row.gmacs, row.numpy_gmacs) == (1.0, 2.0)
    assert scaling.SizeRow(path="x", threads=1, size=1000, seconds=0.5).gmacs == 2.0


# ------------------------------------------------------------------------------------------------------------------ paths


def test_every_path_has_its_own_name_and_is_modelled() -> None:
    assert len(set(IDS)) == len(IDS) == 26
    for path in paths.PATHS:
        assert lower(path.instruction, path.arch).arch == path.arch
        assert (path.instruction.a_type.name, path.instruction.d_type.name) == (path.operands, path.accumulator)
        assert 0 < path.target.avx512 <= path.target.avx2 < path.target.aim <= 2
        assert path.target.minimum in (path.target.avx512, path.target.avx2)
    assert {*scaling.CALL_IDS, *paths.MORE_SCALING_IDS} <= set(IDS)
    assert all(paths.by_id(identifier).instruction.shape == "m16n8k32" for identifier in scaling.CALL_IDS)


def test_the_minima_are_those_of_the_table() -> None:
    targets = {path.id: (path.target.avx512, path.target.avx2, path.target.aim) for path in paths.PATHS}
    assert targets["sm_90a.wgmma.e4m3.f32"] == targets["sm_90a.wgmma.e4m3.f32.promote128"] == (0.2, 0.28, 0.33)
    assert targets["sm_100a.tcgen05.f8f6f4.e4m3.f32"] == targets["sm_100a.tcgen05.mxf8f6f4.e4m3.f32"] == (0.14, 0.2, 0.4)
    assert targets["sm_100a.tcgen05.mxf4.e2m1.f32"] == targets["sm_100a.tcgen05.mxf4nvf4.e2m1.f32"] == (0.5, 0.5, 1.0)
    assert {targets[name] for name in IDS if ".f16.f32" in name or ".bf16.f32" in name} == {(0.1, 0.12, 0.25)}
    assert {targets[name] for name in IDS if name.endswith("s32")} == {(0.8, 0.8, 2.0)}
    assert {targets[name] for name in IDS if name.endswith((".f16", "f64")) or "tf32" in name} == {(0.05, 0.06, 0.15)}


def test_patterns_select_paths() -> None:
    assert [path.id for path in paths.select("sm_90a.wgmma.e4m3.f32")] == ["sm_90a.wgmma.e4m3.f32", "sm_90a.wgmma.e4m3.f32.promote128"]
    assert [path.id for path in paths.select("*.s32,mxf4nvf4")] == [
        "sm_100a.tcgen05.mxf4nvf4.e2m1.f32",
        "sm_80.mma.s8.s32",
        "sm_90a.wgmma.s8.s32",
    ]
    assert paths.select(None) == list(paths.PATHS)
    with pytest.raises(MmabitsError, match=r"no path matches 'wgma'.*paths are sm_90a"):
        paths.select("wgma")
    with pytest.raises(MmabitsError, match=r"unknown path 'sm_90a.wgmma.e4m3.f31'; did you mean sm_90a.wgmma.e4m3.f32"):
        paths.by_id("sm_90a.wgmma.e4m3.f31")


# ------------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("identifier", IDS)
def test_operands_are_what_the_call_takes_and_the_same_every_time(identifier: str) -> None:
    path = paths.by_id(identifier)
    for kind in kinds_of(path):
        first, second = draw(path, kind, 6, 5, 128), draw(path, kind, 6, 5, 128)
        assert first.shape == (6, 5, 128) and first.products == 3840
        np.testing.assert_array_equal(first.a.view(np.uint8), second.a.view(np.uint8))
        assert len(np.unique(as_bits(first.b))) > 2
        if path.scale is not None and first.scale_a is not None and first.scale_b is not None:
            assert (first.scale_a.shape, first.scale_b.shape) == (
                (6, 128 // int(path.instruction.block or 0)),
                (128 // int(path.instruction.block or 0), 5),
            )


def as_bits(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.view(f"uint{8 * array.dtype.itemsize}")


def test_hard_data_is_hard() -> None:
    path = paths.by_id("sm_80.mma.bf16.f32")
    values = {kind: decode(draw(path, kind, 64, 64, 1024).a, "bf16") for kind in Data}
    assert np.isfinite(values[Data.PLAIN]).all() and 0.95 < values[Data.PLAIN].std() < 1.05
    exponents = np.frexp(values[Data.WIDE])[1]
    assert np.isfinite(values[Data.WIDE]).all() and exponents.max() - exponents.min() > 150 and exponents.std() > 40
    assert 0.001 < np.isnan(values[Data.RAW]).mean() < 0.02 and np.isinf(values[Data.RAW]).any()
    rare = ~np.isfinite(values[Data.RARE])
    assert 0.3 < rare.any(axis=1).mean() < 0.5
    assert 0.89 < (values[Data.ZEROS] == 0).mean() < 0.91 and np.signbit(values[Data.ZEROS][values[Data.ZEROS] == 0]).any()
    assert set(HARD) == set(Data) - {Data.PLAIN}


def test_integers_have_no_wide_exponents_and_small_floats_no_specials() -> None:
    assert kinds_of(paths.by_id("sm_80.mma.s8.s32")) == (Data.PLAIN, Data.RAW, Data.ZEROS)
    assert kinds_of(paths.by_id("sm_100a.tcgen05.mxf4.e2m1.f32")) == tuple(Data)  # its scales have NaN


def test_tiled_operands_repeat_64_lines() -> None:
    path = paths.by_id("sm_100a.tcgen05.mxf4nvf4.e2m1.f32")
    whole = tiled(path, 128)
    assert whole.shape == (128, 128, 128) and whole.scale_a is not None and whole.scale_a.shape == (128, 8)
    np.testing.assert_array_equal(as_bits(whole.a[:64]), as_bits(whole.a[64:]))
    np.testing.assert_array_equal(as_bits(whole.b[:, :64]), as_bits(whole.b[:, 64:]))


# ------------------------------------------------------------------------------------------------------------------- bits


def exact_product(path: paths.BenchPath, operands: Operands) -> np.ndarray[Any, Any]:
    """D of a path without block scales, from the exact model."""
    m, n, _ = operands.shape
    row = path.instruction
    a, b = (
        as_bits(part) if form.is_integer else as_codes(part, form) for part, form in ((operands.a, row.a_type), (operands.b, row.b_type))
    )
    family = {"wgmma": "wgmma", "mma.sync": "mma"}[path.name]
    codes = [
        [
            slow_reference.dot(
                path.arch, family, path.operands, path.operands, path.accumulator, a[i].tolist(), b[:, j].tolist(), 0,
                k_instruction=row.k, promote_every=path.promote_every,
            )
            for j in range(n)
        ]
        for i in range(m)
    ]  # fmt: skip
    bits = np.array(codes, f"uint{row.d_type.container_bits}")
    return bits.view(np.int32) if row.d_type.is_integer else from_codes(bits, row.d_type)


@pytest.mark.parametrize(
    "identifier", ["sm_90a.wgmma.e4m3.f32.promote128", "sm_90a.wgmma.e4m3.f16", "sm_80.mma.s8.s32", "sm_80.mma.f64.f64"]
)
@pytest.mark.parametrize("kind", [Data.PLAIN, Data.RAW])
def test_one_flipped_bit_fails_the_check(identifier: str, kind: Data) -> None:
    path = paths.by_id(identifier)
    operands = draw(path, kind, 3, 4, 160)
    d = exact_product(path, operands)
    right = check(path, operands, d, 12)
    assert (right.compared, right.different, right.first) == (12, 0, "")
    bits, one = as_bits(d).copy(), as_bits(d).dtype.type(1)
    bits[1, 2] ^= one
    wrong = check(path, operands, bits.view(d.dtype), 12)
    nan_payload = path.accumulator == "f64" and bool(np.isnan(d[1, 2]))  # which NaN is not known for f64
    assert wrong.different == (0 if nan_payload else 1)
    assert nan_payload or wrong.first == f"[1, 2]: got {int(bits[1, 2]):#x}, exact {int(as_bits(d)[1, 2]):#x}"


def test_finite_outputs_are_counted() -> None:
    path = paths.by_id("sm_90a.wgmma.e4m3.f16")
    operands = draw(path, Data.PLAIN, 2, 2, 32)
    operands.a.view(np.uint8)[0, 0] = 0x7F
    assert check(path, operands, exact_product(path, operands), 4).finite == 2


def test_samples_are_different_outputs_with_the_last_corner() -> None:
    sample = sample_of(40, 50, 64)
    assert len(set(sample)) == 64 and (39, 49) in sample
    assert all(0 <= i < 40 and 0 <= j < 50 for i, j in sample)
    assert set(sample_of(2, 3, 64)) == {(i, j) for i in range(2) for j in range(3)}


def test_the_engine_passes_the_check_that_a_wrong_path_fails() -> None:
    """The call that is timed, on a product with several instructions; then the same result against another path's arithmetic."""
    path = paths.by_id("sm_90a.wgmma.e4m3.f32")
    operands = draw(path, Data.PLAIN, 8, 8, 256)
    d = gemm_call(path, operands)()
    assert check(path, operands, d).different == 0
    assert check(paths.by_id("sm_90a.wgmma.e4m3.f32.promote128"), operands, d).different > 32


# ---------------------------------------------------------------------------------------------------------------- results


def rate_row(**changed: Any) -> measure.RateRow:
    values: dict[str, Any] = {
        "path": "sm_90a.wgmma.e4m3.f32", "instruction": "wgmma", "arch": "sm_90a", "data": "plain", "threads": 2, "shape": (64, 64, 64),
        "seconds": 0.5, "numpy_seconds": 0.1, "ratio": 0.2, "ratio_min": 0.19, "ratio_max": 0.21, "minimum": 0.12, "aim": 0.3,
        "relative": 1.0, "first_call_seconds": 3.0, "compared": 64, "finite": 64, "different": 0, "first_difference": "",
    }  # fmt: skip
    return measure.RateRow(**(values | changed))


def results(**lists: Any) -> report.Results:
    machine = report.Machine(
        date="2026-01-02T03:04:05+00:00",
        cpu="A CPU",
        vectors="16 lanes, vnni",
        cores=2,
        system="Linux x86_64",
        versions={"numpy": "2.0"},
        commit="abc",
        command="make bench",
    )
    return report.Results(machine=machine, size="tiny", **lists)


def full_results() -> report.Results:
    name = "sm_90a.wgmma.e4m3.f32"
    return results(
        rates=[rate_row(), rate_row(data="raw bits", relative=0.75, finite=3)],
        sizes=[
            scaling.SizeRow(path=path, threads=2, size=size, seconds=size**3 / rate)
            for path, rate in ((name, 4e9), ("numpy", 9e10)) for size in (128, 256)
        ],
        threads=[scaling.ThreadRow(path=name, size=256, threads=count, seconds=1 / count, speedup=count) for count in (1, 2)],
        memory=[scaling.MemoryRow(path=name, size=256, operands_mib=1, result_mib=2, peak_mib=170, beyond_mib=3.25)],
        start=[scaling.StartRow(path=name, seconds=1.2, import_seconds=1, ratio=1.2)],
        cold=[scaling.ColdRow(path=name, seconds=9, compiled=12)],
        calls=[scaling.CallRow(path=name, instruction="x", microseconds=20, tiles=10, batch_gmacs=3, gemm_gmacs=3, batch_ratio=1)],
        tiles=[scaling.TileRow(path=name, shape=(64, 256, 32), microseconds=2.0, large_gmacs=300.0, ratio=0.87)],
        peers=[
            peers.PeerRow(peer="P", version="1", path=name, data="plain", shape=(8, 8, 8), threads=2, seconds=1, peer_seconds=10,
                          speedup=10, outputs=64)
        ],
    )  # fmt: skip


def test_files_are_written_and_read_back(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the dev extra")
    made = full_results()
    files = report.write(made, tmp_path / "out")
    names = sorted(path.name for path in files)
    assert names == ["a-cpu-16-lanes-vnni.json", "rates.png", "results.json", "results.md"]
    assert names == sorted(path.name for path in (tmp_path / "out").rglob("*.*"))
    of_processor = tmp_path / "out" / "processors" / names[0]
    assert of_processor.read_bytes() == (tmp_path / "out" / "results.json").read_bytes()
    assert (tmp_path / "out" / "rates.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    read = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert read["schema"] == report.SCHEMA and read["missed"] == []
    assert read["rates"][1]["relative"] == 0.75 and read["sizes"][0]["gmacs"] == pytest.approx(4.0)
    assert read["machine"]["cpu"] == "A CPU"


def test_the_markdown_says_when_where_and_how() -> None:
    text = report.markdown(full_results())
    assert "2026-01-02T03:04:05+00:00, A CPU (16 lanes, vnni), 2 cores, Linux x86_64. numpy 2.0." in text
    assert "Commit abc, `make bench`." in text
    assert "| sm_90a.wgmma.e4m3.f32 | 2 | 0.00 | 0 | 0.200 | 0.190 | 0.210 | 0.12 | 0.3 | reached | 64 equal |" in text
    assert "| sm_90a.wgmma.e4m3.f32 | 2 |  | 0.75 |  |  | reached | 64 equal | 3 |" in text
    assert "| sm_90a.wgmma.e4m3.f32 | 64 x 256 x 32 | 2.00 | 262.14 | 300.00 | 0.87 |" in text
    assert "| P 1 | sm_90a.wgmma.e4m3.f32 | plain | 0.00 | 0.0000 | 10 | 64 equal |" in text
    for title in ("Threads", "Peak resident memory", "Start of a process", "First call", "Small calls", "GMAC/s by size"):
        assert f"## {title}" in text
    assert "Missed" not in text


def test_what_is_missed_is_named() -> None:
    made = results(
        rates=[
            rate_row(ratio=0.1), rate_row(data="raw bits", relative=0.4),
            rate_row(different=1, first_difference="[0, 1]: got 0x1, exact 0x0"),
        ],
        sizes=[scaling.SizeRow(path=path, threads=2, size=size, seconds=size) for path in ("p", "numpy") for size in (10, 100)],
        threads=[scaling.ThreadRow(path="p", size=8, threads=2, seconds=1, speedup=1.5)],
        memory=[scaling.MemoryRow(path="p", size=8, operands_mib=1, result_mib=1, peak_mib=200, beyond_mib=65)],
        start=[scaling.StartRow(path="p", seconds=2, import_seconds=1, ratio=2)],
        cold=[scaling.ColdRow(path="p", seconds=11, compiled=1)],
        calls=[scaling.CallRow(path="p", instruction="x", microseconds=31, tiles=1, batch_gmacs=1, gemm_gmacs=2, batch_ratio=0.5)],
        tiles=[
            scaling.TileRow(path="p", shape=shape, microseconds=2.5, large_gmacs=1.0, ratio=0.75)
            for shape in ((16, 8, 32), (32, 32, 32), (64, 256, 32))
        ],
    )  # fmt: skip
    assert made.different == 1
    assert made.missed == [
        "sm_90a.wgmma.e4m3.f32, 2 threads: ratio 0.1, at least 0.12",
        "sm_90a.wgmma.e4m3.f32, 2 threads, raw bits: part of the plain rate 0.4, at least 0.5",
        "sm_90a.wgmma.e4m3.f32, plain: outputs with other bits, the first [0, 1]: got 0x1, exact 0x0: 1, at most 0",
        "p: slowest / fastest size 0.01, at least 0.8",
        "p: two threads / one 1.5, at least 1.8",
        "p: MiB of memory at 8^3 65, at most 64",
        "p: start / imports 2, at most 1.5",
        "p: seconds with a cold cache 11, at most 10",
        "p: microseconds of one mma 31, at most 30",
        "p: batch / GEMM rate 0.5, at least 0.8",
        "p, tile of 16 x 8 x 32: microseconds 2.5, at most 2",
        "p, tile of 64 x 256 x 32: rate / that of a large product 0.75, at least 0.8",
    ]
    assert "1 of 64 DIFFER" in report.markdown(made)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "results.json"
    report.write_atomically(target, b"old")
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="refused"):
        report.write_atomically(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"] and target.read_bytes() == b"old"


def refuse(self: Path, target: Path) -> None:
    raise OSError("refused")


@pytest.mark.parametrize("identifier", ["sm_80.mma.s8.s32", "sm_90a.wgmma.e4m3.f32"])
def test_the_call_that_is_timed_for_tiles_computes_the_product(identifier: str) -> None:
    """From a record at hand: the bits of gemm."""
    path = paths.by_id(identifier)
    shape = (16, 8, 32)
    call = scaling.engine_call(path, shape)
    call()
    ((arrays, _, _),) = call.__defaults__  # type: ignore[attr-defined]
    want = gemm_call(path, draw(path, Data.PLAIN, *shape))()
    np.testing.assert_array_equal(as_bits(arrays[2]), as_bits(want))
    assert {*scaling.TILE_IDS} <= set(IDS)


def test_the_program_of_a_first_result_is_complete() -> None:
    text = scaling.program(paths.by_id("sm_100a.tcgen05.mxf4nvf4.e2m1.f32"), 64)
    compile(text, "program", "exec")
    assert "scale_a=np.ones((64, 4), np.dtype('float8_e4m3fn'))" in text and "arch='sm_100a'" in text
    assert "promote_every=128" in scaling.program(paths.by_id("sm_90a.wgmma.e4m3.f32.promote128"), 64)


def test_peers_are_asked_only_for_what_they_have() -> None:
    covered = {peer: {path.id for path in paths.PATHS if peers.covers(peer, path)} for peer in peers.PEERS}
    assert covered["mmaemu"] == {"sm_90a.wgmma.e4m3.f32", "sm_90a.wgmma.e4m3.f32.promote128", "sm_89.mma.e4m3.f32"}
    assert set(IDS) - covered["mmasim"] == {
        "sm_90a.wgmma.e4m3.f32.promote128", "sm_90a.mma.e4m3.f32", "sm_80.mma.s8.s32", "sm_90a.wgmma.s8.s32"
    }  # fmt: skip


def test_matmul_operands_have_the_shape() -> None:
    a, b = matmul_operands(3, 4, 5)
    assert (a.shape, b.shape, a.dtype, b.dtype) == ((3, 5), (5, 4), np.float32, np.float32)


# ------------------------------------------------------------------------------------------------------------------- runs


def test_a_measuring_process_gets_its_threads_and_libraries_that_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_THREAD_TIMEOUT", raising=False)
    made = worker.environment(2, {"NUMBA_CACHE_DIR": "here"})
    assert {made[name] for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")} == {"2"}
    assert (made["OPENBLAS_THREAD_TIMEOUT"], made["NUMBA_CACHE_DIR"], made["PATH"]) == ("22", "here", os.environ["PATH"])
    monkeypatch.setenv("OPENBLAS_THREAD_TIMEOUT", "26")
    assert worker.environment(2)["OPENBLAS_THREAD_TIMEOUT"] == "26"


def test_a_failing_job_tells_how_it_ended() -> None:
    with pytest.raises(MmabitsError, match=r"(?s)task 'memory' exited 1: .*unknown path 'nowhere'"):
        list(worker.run_job({"task": "memory", "path": "nowhere", "size": 64}, threads=1))


def run_benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--paths", "wgma"), "error: no path matches 'wgma'"),
        (("--threads", "two"), "error: --threads takes positive numbers with commas between, got 'two'"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = run_benchmarks(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_whole_run(tmp_path: Path) -> None:
    done = run_benchmarks(
        "--size", "tiny", "--paths", "sm_89.mma.e4m3.f32,sm_90a.wgmma.e4m3.f32", "--threads", "1,2", "--out", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    read = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {(row["path"], row["threads"]) for row in read["rates"]} == {
        (path, threads)
        for path in ("sm_89.mma.e4m3.f32", "sm_90a.wgmma.e4m3.f32", "sm_90a.wgmma.e4m3.f32.promote128") for threads in (1, 2)
    }  # fmt: skip
    assert {row["data"] for row in read["rates"]} == {kind.value for kind in Data}
    assert all(row["different"] == 0 and row["compared"] == 2 and row["gmacs"] > 0 and row["ratio"] > 0 for row in read["rates"])
    assert [row["size"] for row in read["sizes"] if row["path"] == "numpy"] == [64, 128]
    assert [row["threads"] for row in read["threads"]] == [1, 2]
    assert read["memory"][0]["peak_mib"] > read["memory"][0]["result_mib"] > 0
    assert read["start"][0]["ratio"] > 0 and read["calls"][0]["microseconds"] > 0
    assert [row["shape"] for row in read["tiles"]] == [[16, 8, 32], [32, 32, 32], [64, 256, 32]]
    assert all(row["different"] == 0 or row["reason"] for row in read["peers"])
    assert "wrote" in done.stdout
