"""Whole runs on devices that are not there: resumed, refused, found out."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmabits.conformance.diff.counting import count
from mmabits.conformance.record import session as session_module
from mmabits.conformance.record.device import EmulatedDevice, Images
from mmabits.conformance.record.driver import CudaDevice, DeviceFailed
from mmabits.conformance.record.generators import GENERATORS, find_generator, special_codes
from mmabits.conformance.record.kernels import InstructionKernel
from mmabits.conformance.record.nvrtc import CompilerRefused
from mmabits.conformance.record.session import (
    TARGETS,
    Job,
    LayoutCheckFailed,
    check_layout,
    make_jobs,
    record,
    recordable,
    representatives,
    usual_tiles,
)
from mmabits.conformance.record.tiles import TileOperands, check_operands, emulate_tiles, exact_operands, exact_result
from mmabits.conformance.recorded import tiles as recording_module
from mmabits.conformance.recorded.tiles import NotWritten, manifest_path, read_recording
from mmabits.isa import format_spec, parse
from mmabits.isa.errors import DeviceUnavailable, OperandError, VectorFileError

WGMMA = "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e5m2"
HMMA = "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16"
CHOSEN = (parse(WGMMA), parse(HMMA))


def jobs(**kwargs: Any) -> list[Job]:
    return make_jobs(CHOSEN, arch="sm_90a", generators=("normal", "special"), seed=5, tiles=2, **kwargs)


def contents(folder: Path) -> dict[str, Any]:
    """Tensors and what the manifests say of the data, without the time."""
    return {path.name: (read_recording(path).data_sha256, manifest_path(path).exists()) for path in sorted(folder.glob("*.safetensors"))}


@pytest.mark.parametrize("chain", [1, 3])
def test_recorded_and_replayed(tmp_path: Path, chain: int) -> None:
    outcomes = record(EmulatedDevice("sm_90a"), jobs(chain=chain), tmp_path, command="mmabits record")
    assert [outcome.state for outcome in outcomes] == ["recorded"] * 4
    for outcome in outcomes:
        report = count(read_recording(outcome.path))
        assert (report.differing, report.rows, report.error) == (0, 2 * outcome.job.instruction.m * 8, None)
    manifest = json.loads(manifest_path(outcomes[0].path).read_text())
    wanted = {"generator": "normal", "seed": 5, "tiles": 2, "results": 1024, "command": "mmabits record", "chain": str(chain)}
    assert {key: manifest[key] for key in wanted} == wanted
    assert {"compute_capability", "driver", "cuda", "nvrtc", "ptx_sha256", "sass_sha256", "commit", "recorded_at"} <= manifest.keys()
    assert manifest["kind"] == "emulator"


def test_a_gpu_end_to_end(tmp_path: Path, fake_driver: Any) -> None:
    """Through the driver's calls; the recording says which GPU and what was compiled."""
    outcomes = record(CudaDevice(driver=fake_driver()), jobs(), tmp_path)
    assert [outcome.state for outcome in outcomes] == ["recorded"] * 4
    found = read_recording(outcomes[0].path)
    assert (found.kind, found.gpu, found.manifest["compute_capability"], found.manifest["cuda"]) == ("hardware", "Fake GPU", "9.0", "13.1")
    assert len(found.manifest["sass_sha256"]) == len(found.manifest["ptx_sha256"]) == 64
    assert found.manifest["compiler_options"] == ["--gpu-architecture=sm_90a"]
    assert count(read_recording(outcomes[0].path)).differing == 0


def test_a_device_that_computes_otherwise_is_found_out_by_the_replay(tmp_path: Path, fake_driver: Any) -> None:
    """One ulp in one result of every launch beyond the layout check's."""
    fake = fake_driver()
    device = CudaDevice(driver=fake)

    def spoil(words: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if len(words) == 2:  # the layout check has four tiles
            words = words.copy()
            words[1, 77] ^= 1
        return words

    fake.spoil = spoil
    (job,) = make_jobs([CHOSEN[0]], arch="sm_90a", generators=("normal",), seed=5, tiles=2)
    (outcome,) = record(device, [job], tmp_path)
    report = count(read_recording(outcome.path))
    assert (outcome.state, report.differing, report.rows) == ("recorded", 1, 1024)
    (difference,) = report.differences
    assert difference.recorded ^ difference.computed == 1
    # word 77 of the second tile: register 0 of thread 77, which is row 16 * 2 + 3 and column 2 * 1
    assert np.unravel_index(difference.row, (2, 64, 8)) == (1, 35, 2)
    assert len(difference.a) == 32


def test_a_layout_that_is_wrong_is_found_before_anything_is_recorded(tmp_path: Path, fake_driver: Any) -> None:
    fake = fake_driver()
    device = CudaDevice(driver=fake)
    fake.spoil = lambda words: np.roll(words, 1, axis=1)
    (outcome,) = record(device, jobs()[:1], tmp_path)
    assert outcome.state == "failed"
    assert "exact small sums are wrong (tile 0, row 0, column 0:" in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_operand_layout_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that takes B for another: two columns exchanged."""

    class Exchanged(EmulatedDevice):
        def run(self, kernel: InstructionKernel, images: Images) -> Any:
            codes = kernel.b.unpack(images.b)
            return super().run(kernel, images._replace(b=kernel.b.pack(np.roll(codes, 1, axis=2))))

    with pytest.raises(LayoutCheckFailed, match="exact small sums are wrong"):
        check_layout(Exchanged("sm_90a"), InstructionKernel(instruction=CHOSEN[0], arch="sm_90a"))


class KilledError(BaseException):
    """Stands for a signal that ends the process."""


KILLED_AT: dict[str, tuple[Any, str]] = {
    "before the launch": (session_module, "run_tiles"),
    "before the file": (session_module, "write_recording"),
    "while the file is flushed": (os, "fsync"),
    "before the file has its name": (os, "link"),
    "before the manifest": (recording_module, "write_manifest"),
}


@pytest.mark.parametrize("call", range(4))
@pytest.mark.parametrize("step", KILLED_AT)
def test_a_run_killed_anywhere_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, call: int) -> None:
    device = EmulatedDevice("sm_90a")
    record(device, jobs(), tmp_path / "whole")
    module, name = KILLED_AT[step]
    original: Callable[..., Any] = getattr(module, name)
    calls = 0

    def killed(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > call:
            raise KilledError
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed)
        with pytest.raises(KilledError):
            record(device, jobs(), tmp_path / "resumed")
    half = contents(tmp_path / "resumed")
    assert len(half) < 4 or not all(manifest for _, manifest in half.values())
    outcomes = record(device, jobs(), tmp_path / "resumed")
    assert sum(outcome.state == "kept" for outcome in outcomes) == len(half)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")
    assert not list((tmp_path / "resumed").glob(".*"))


def test_finished_files_are_kept_byte_for_byte(tmp_path: Path) -> None:
    device = EmulatedDevice("sm_90a")
    record(device, jobs(), tmp_path)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert [outcome.state for outcome in record(device, jobs(), tmp_path)] == ["kept"] * 4
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before


def test_a_finished_file_of_another_run_is_neither_kept_nor_replaced(tmp_path: Path) -> None:
    device = EmulatedDevice("sm_90a")
    record(device, jobs()[:1], tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    (other,) = make_jobs(CHOSEN[:1], arch="sm_90a", generators=("normal",), seed=6, tiles=2)
    (outcome,) = record(device, [other], tmp_path)
    assert outcome.state == "failed" and "with seed 5 (asked: 6); a finished recording never changes" in outcome.error
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_damaged_file_is_told_and_left_alone(tmp_path: Path) -> None:
    device = EmulatedDevice("sm_90a")
    outcomes = record(device, jobs(), tmp_path)
    data = bytearray(outcomes[1].path.read_bytes())
    data[-1] ^= 0x80
    outcomes[1].path.write_bytes(data)
    again = record(device, jobs(), tmp_path)
    assert [outcome.state for outcome in again] == ["kept", "failed", "kept", "kept"]
    assert "data_sha256" in again[1].error
    assert outcomes[1].path.read_bytes() == data


def test_a_full_disk_ends_the_run_and_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device, original, calls = EmulatedDevice("sm_90a"), os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(NotWritten, match="No space left on device"):
            record(device, jobs(), tmp_path)
    assert len(contents(tmp_path)) == 1 and calls == 3
    assert [outcome.state for outcome in record(device, jobs(), tmp_path)] == ["kept", "recorded", "recorded", "recorded"]


def test_a_refused_kernel_spoils_its_own_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(EmulatedDevice):
        def prepare(self, kernel: InstructionKernel) -> Any:
            if kernel.instruction.ptx == WGMMA:
                raise CompilerRefused("NVRTC 0.0 does not compile it for sm_90a: no")
            return super().prepare(kernel)

    outcomes = record(Refusing("sm_90a"), jobs(), tmp_path)
    assert [outcome.state for outcome in outcomes] == ["failed", "failed", "recorded", "recorded"]
    assert outcomes[0].error == "NVRTC 0.0 does not compile it for sm_90a: no"


@pytest.mark.parametrize("error", [DeviceFailed("cuCtxSynchronize fails: CUDA_ERROR_LAUNCH_FAILED"), DeviceUnavailable("no NVRTC")])
def test_a_gpu_that_breaks_off_ends_the_run(tmp_path: Path, error: Exception) -> None:
    class Broken(EmulatedDevice):
        def run(self, kernel: InstructionKernel, images: Images) -> Any:
            if kernel.instruction.ptx == HMMA:
                raise error
            return super().run(kernel, images)

    with pytest.raises(type(error), match=str(error)):
        record(Broken("sm_90a"), jobs(), tmp_path)
    assert len(contents(tmp_path)) == 2


def test_the_device_must_be_the_jobs() -> None:
    with pytest.raises(OperandError, match=r"the device is mmabits .* \(sm_80\); it cannot record for sm_90a"):
        record(EmulatedDevice("sm_80"), jobs(), Path("never"))
    with pytest.raises(OperandError, match="tiles must be at least 1, got 0"):
        make_jobs(CHOSEN, arch="sm_90a", seed=1, tiles=0)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VectorFileError, match=r"file/below: cannot be made"):
        record(EmulatedDevice("sm_90a"), jobs(), tmp_path / "file" / "below")


def test_large_runs_go_in_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = []

    class Counting(EmulatedDevice):
        def run(self, kernel: InstructionKernel, images: Images) -> Any:
            sizes.append(len(images.a))
            return super().run(kernel, images)

    (job,) = make_jobs([CHOSEN[1]], arch="sm_90a", generators=("normal",), seed=5, tiles=7)
    record(EmulatedDevice("sm_90a"), [job], tmp_path / "whole")
    monkeypatch.setattr(session_module, "_BATCH_BYTES", 4000)
    record(Counting("sm_90a"), [job], tmp_path / "parts")
    assert sizes == [3, 1, 3, 3, 1]  # the four tiles of the layout check, then seven
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_file_names_are_unique_and_safe() -> None:
    for arch in TARGETS:
        names = [job.file_name for job in make_jobs(recordable(arch), arch=arch, seed=0)]
        assert len(set(names)) == len(names)
        assert all(len(name) < 200 and not set(name) & set('/\\:*?"<>| ') for name in names)


def test_usual_tiles() -> None:
    assert usual_tiles(parse(HMMA)) == 128
    assert usual_tiles(parse("wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e5m2")) == 2


@pytest.mark.parametrize("arch", TARGETS)
def test_the_layout_check_passes_for_every_row(arch: str) -> None:
    """On the emulator, whatever the datapath: so that on a GPU it can only fail for a layout's sake."""
    device = EmulatedDevice(arch)
    for row in {**dict.fromkeys(representatives(arch)), **dict.fromkeys(recordable(arch, only="m8n8") if arch == "sm_80" else ())}:
        if row.m * row.n <= 128 * 64:
            assert check_layout(device, InstructionKernel(instruction=row, arch=arch, chain=2)) == 4 * row.m * row.n


@pytest.mark.parametrize("modifier", ["negA", "negB", "scale_d::0"])
def test_exact_results_know_the_modifiers(modifier: str) -> None:
    row = parse(f"{WGMMA}.{modifier}")
    operands = exact_operands(row, "sm_90a", 2, 1)
    found = exact_result(row, operands)
    assert (emulate_tiles(row, "sm_90a", operands) == found).all()
    assert (found != exact_result(CHOSEN[0], operands)).any()


@pytest.mark.parametrize("name", GENERATORS)
def test_generators(name: str) -> None:
    generator = find_generator(name)
    for ptx, arch in (
        (WGMMA, "sm_90a"), ("tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n16k64.f32.e2m1.e2m1.ue4m3", "sm_100a"),
        ("mma.sync.aligned.m8n8k32.row.col.s32.s4.u4.s32", "sm_80"), ("mma.sync.aligned.m8n8k4.row.col.rn.f64.f64.f64.f64", "sm_90a"),
    ):  # fmt: skip
        row = parse(ptx)
        first, again, other = (generator(row, arch, 6, seed) for seed in (1, 1, 2))
        check_operands(row, first)
        assert all((left == right).all() for (_, left), (_, right) in zip(first.named(), again.named(), strict=True) if left is not None)
        assert (first.a != other.a).any() and (first.c != 0).mean() > 0.5


def test_special_values_are_there_and_leave_finite_results() -> None:
    row = parse(WGMMA)
    operands = find_generator("special")(row, "sm_90a", 4, 0)
    for name in ("a", "b", "c"):
        spec = format_spec({"a": "e4m3", "b": "e5m2", "c": "f32"}[name])
        there = np.isin(special_codes(spec), getattr(operands, name))
        assert there.mean() > 0.7, name
    d = emulate_tiles(row, "sm_90a", operands)
    assert 0.2 < (d & 0x7FFFFFFF < 0x7F800000).mean() < 1.0


def test_special_codes() -> None:
    assert set(special_codes(format_spec("e5m2")).tolist()) >= {0x00, 0x80, 0x01, 0x03, 0x04, 0x3C, 0x7B, 0xFB, 0x7C, 0xFC, 0x7F}
    assert set(special_codes(format_spec("ue8m0")).tolist()) >= {0x00, 0x7F, 0xFE, 0xFF}
    assert {0x7F, 0xFF, 0x80} <= set(special_codes(format_spec("ue4m3")).tolist())
    assert set(special_codes(format_spec("s4")).tolist()) == {0, 1, 7, 8, 15}
    assert all(code & 0x1FFF == 0 for code in special_codes(format_spec("tf32")) if code & 0x7FFFFFFF)


def own(instruction: Any, arch: str, tiles: int, seed: int) -> TileOperands:
    """A generator from elsewhere."""
    return exact_operands(instruction, arch, tiles + 1, seed)


def test_generators_from_elsewhere() -> None:
    assert find_generator("mmabits.conformance.record.tiles:exact_operands") is exact_operands
    for name, message in (("norml", "unknown generator 'norml'; did you mean normal"), ("nowhere.at:all", "no generator 'nowhere.at:all'"),
                          ("mmabits.conformance.record.tiles:_LARGEST_C", "tiles:_LARGEST_C' is no function")):  # fmt: skip
        with pytest.raises(OperandError, match=message):
            find_generator(name)


def test_a_generator_that_makes_another_number_of_tiles_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GENERATORS, "own", own)
    (outcome,) = record(EmulatedDevice("sm_90a"), make_jobs(CHOSEN[:1], arch="sm_90a", generators=("own",), seed=1, tiles=2), tmp_path)
    assert outcome.error == "generator own made 3 tiles; 2 were asked for"
