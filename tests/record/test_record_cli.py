"""`mmabits record` as it is typed."""

import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from mmabits.commands import record
from mmabits.conformance.record import driver
from mmabits.conformance.recorded.tiles import read_recording
from mmabits.isa.errors import DeviceUnavailable, OperandError

WGMMA = "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e5m2"

app = typer.Typer(pretty_exceptions_enable=False)
app.command(name="record")(record.record)


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words), catch_exceptions=False, standalone_mode=False)


def exit_code(*words: str) -> int:
    """standalone_mode=False turns typer.Exit into the return value."""
    found: int = run(*words).return_value
    return found


def test_one_call_records_and_a_second_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ("--emulated", "--arch", "sm_90a", "--out", str(tmp_path), "--tiles", "2")
    words = (*place, "--seed", "4", "--only", "m64n8k32.f32", "--generator", "normal")
    first = run(*words)
    assert first.return_value == 0
    assert first.stdout == f"1 recordings in {tmp_path}: 1 recorded, 0 kept, 0 failed\n"
    (path,) = tmp_path.glob("*.safetensors")
    found = read_recording(path)
    assert (found.kind, found.manifest["seed"], found.operands.tiles) == ("emulator", 4, 2)
    assert found.manifest["command"].startswith("mmabits ")
    assert run(*words).stdout == f"1 recordings in {tmp_path}: 0 recorded, 1 kept, 0 failed\n"
    other = run(*place, "--seed", "5", "--only", "m64n8k32.f32", "--generator", "normal")
    assert other.return_value == 2
    assert other.stderr.count(str(path)) == 1 and "seed 4 (asked: 5)" in other.stderr


def test_auto_takes_the_gpus_architecture(tmp_path: Path, fake_driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_bindings", lambda: fake_driver((9, 0)))
    assert exit_code("--out", str(tmp_path), "--instruction", WGMMA, "--tiles", "2") == 0
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == [f"sm_90a.{WGMMA}.{generator}.safetensors" for generator in ("normal", "probes", "random-bits", "special")]
    with pytest.raises(OperandError, match="--arch sm_80 asks for another architecture than that of Fake GPU, sm_90a"):
        run("--out", str(tmp_path), "--arch", "sm_80")


def test_without_a_gpu_there_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(driver.importlib, "import_module", missing)
    with pytest.raises(DeviceUnavailable, match=r"pip install 'mmabits\[gpu\]'"):
        run("--out", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_options_that_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(OperandError, match="--out is missing"):
        run("--emulated", "--arch", "sm_90a")
    with pytest.raises(OperandError, match="--instruction and --only exclude each other"):
        run("--emulated", "--arch", "sm_90a", "--out", str(tmp_path), "--only", "wgmma", "--instruction", WGMMA)
    with pytest.raises(OperandError, match="name it with --arch"):
        run("--emulated", "--out", str(tmp_path))


def test_the_list_of_kernels(needs_nvrtc: None) -> None:
    found = run("--list-kernels", "--arch", "sm_90a", "--only", "64k32.f32.e4m3")
    assert found.return_value == 0
    rows = [line for line in found.stdout.splitlines() if line.startswith("| sm_90a")]
    assert any(WGMMA.replace("m64n8k32", "m64n64k32").replace("e5m2", "e4m3") in row for row in rows)
    assert found.stdout.endswith(f"{len(rows)} kernels, 0 with problems\n")
    compiled = run("--compile-only", "--arch", "sm_90a", "--instruction", WGMMA)
    assert compiled.return_value == 0 and WGMMA in compiled.stdout


def test_a_problem_is_told_by_the_exit_status(needs_nvrtc: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmabits.conformance.record import listing

    monkeypatch.setattr(listing, "disassembler", lambda: Path(sys.executable))
    monkeypatch.setattr(listing, "_opcodes", lambda cubin: listing.Disassembled({"HMMA.16816.F32": 1}))
    found = run("--compile-only", "--arch", "sm_90a", "--instruction", WGMMA)
    assert found.return_value == 2
    assert "**QGMMA.64x8x32.F32.E4M3.E5M2 is missing** **HMMA.16816.F32 is not expected**" in found.stdout
