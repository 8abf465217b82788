"""`mmabits cache`: where machine code is kept, filling and emptying it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from mmabits.commands import cache as command
from mmabits.commands.main import main
from mmabits.emulator.engine import cache, machine_code
from mmabits.emulator.engine.machine_code import _Object
from mmabits.isa import UnknownArchitecture, UnknownInstruction


class Run(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def run(*words: str) -> Run:
        with pytest.raises(SystemExit) as left:
            main(list(words))
        return Run(int(left.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, with one function of this installation and one of another; the user's folder has answers of Triton's compiler."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "told"))
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "0")
    monkeypatch.setattr(cache.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    machine_code._write("mmabits_one", _Object(bytes(1_000_000), ()))
    cache.write(tmp_path / "told" / "mmabits", "mmabits_two-0123.mmabits", b"")
    cache.append(tmp_path / "own" / "mmabits", "triton-3.9.0-0.jsonl", bytes(300_000))
    (tmp_path / "told" / "mmabits" / "not ours").write_bytes(b"")
    return tmp_path / "told" / "mmabits"


def test_it_shows_where_it_is_and_how_large(run, folder: Path, tmp_path: Path) -> None:
    status, out, err = run("cache")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        str(folder),
        "  2 functions, 1 of them for this installation and processor; 1.0 MB",
        str(tmp_path / "own" / "mmabits"),
        "  0 functions, 0 of them for this installation and processor; 0.3 MB",
        "  1 file of answers of Triton's compiler",
        f"new machine code is kept in {folder}",
    ]
    shown = json.loads(run("cache", "--json").out)
    assert shown["keeps_in"] == str(folder)
    assert [(row["functions"], row["current"], row["triton_answers"], row["machine_code"]) for row in shown["folders"]] == [
        (2, 1, 0, True), (0, 0, 1, False)
    ]  # fmt: skip


def test_it_says_why_a_folder_is_not_used(run, folder: Path) -> None:
    folder.chmod(0o777)
    out = run("cache").out
    assert f"  not used: {folder} can be written by others (mode 0777)" in out
    assert out.endswith("no folder can keep machine code: every process compiles it anew\n")
    assert json.loads(run("cache", "--json").out)["keeps_in"] is None


def test_clearing_leaves_what_is_not_ours(run, folder: Path, tmp_path: Path) -> None:
    (folder / "mmabits_three-0.mmabitsabcd.part").write_bytes(b"")
    (folder / "mmabits_link-0.mmabits").symlink_to(folder / "not ours")
    assert run("cache", "clear") == (0, "5 files removed, 1.3 MB\n", "")
    assert [path.name for path in folder.iterdir()] == ["not ours"]
    assert list((tmp_path / "own" / "mmabits").iterdir()) == []


def test_clearing_says_what_it_could_not_remove(run, folder: Path) -> None:
    (folder / "mmabits_folder").mkdir()
    status, out, err = run("cache", "clear")
    assert (status, out) == (2, "3 files removed, 1.3 MB\n")
    assert err.startswith(f"error: {folder / 'mmabits_folder'}: ") and err.count("\n") == 1


def test_warming_makes_what_is_not_kept(run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "entry", lambda variant: lambda pointer: None)
    status, out, err = run("cache", "warm", "f64", "s8", "--arch", "sm_90a")
    assert (status, err) == (0, "")
    first, second, last = out.splitlines()
    assert first.startswith("mmabits_chain_float64_float64: made in ") and second.startswith("mmabits_integer_uint8_int32: made in ")
    assert last == "2 functions made, 0 kept already"
    assert (folder / machine_code._file_name("mmabits_chain_float64_float64")).is_file()
    assert run("cache", "warm", "f64", "--arch", "sm_80").out.splitlines()[-1] == "0 functions made, 1 kept already"


def test_warming_a_cache_that_takes_nothing_fails(run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "entry", lambda variant: lambda pointer: None)
    folder.chmod(0o777)
    status, out, err = run("cache", "warm", "f64")
    assert (status, out) == (2, "")
    assert err == f"error: machine code cannot be kept: {folder} can be written by others (mode 0777)\n"


FULL = "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16"


@pytest.mark.parametrize(
    ("kinds", "arch", "symbols"),
    [
        (["wgmma"], "sm_90a", {"fused_uint8_float32", "fused_uint16_float64", "fused_uint32_float64", "integer_uint8_int32"}),
        (["kind::mxf4"], None, {"grouped_bytes_uint8_float64"}),
        (["mma.sync"], "sm_75", {"fused_uint16_float64", "integer_uint8_int32"}),
        (["f64"], None, {"chain_float64_float64"}),
        (["tcgen05.mma.kind::f8f6f4"], "sm_100a", {"fused_uint8_float64"}),
        ([FULL], None, {"fused_uint16_float64"}),
        ([FULL, "f64"], "sm_90a", {"fused_uint16_float64", "chain_float64_float64"}),
    ],
)
def test_names_of_instructions_and_their_parts(kinds: list[str], arch: str | None, symbols: set[str]) -> None:
    found = [variant.symbol.removeprefix("mmabits_") for variant in command.variants(kinds, arch)]
    assert len(set(found)) == len(found)
    assert {name for name in found if "side_by_side" not in name} == symbols
    assert {name.replace("_side_by_side", "") for name in found} == symbols


def test_without_names_it_is_all_of_them() -> None:
    assert len(command.variants([], None)) == 12
    assert len(command.variants([], "sm_75")) == 3


@pytest.mark.parametrize(
    ("kinds", "arch", "error", "text"),
    [
        (["wgmna"], None, UnknownInstruction, "no instruction is called 'wgmna' or has such parts; did you mean wgmma"),
        (["wgmma"], "sm_80", UnknownInstruction, "no instruction on sm_80 is called 'wgmma' or has such parts"),
        ([FULL], "sm_80", UnknownInstruction, "no instruction on sm_80 is called"),
        ([], "sm_1", UnknownArchitecture, "sm_1"),
    ],
)
def test_names_that_fit_nothing(kinds: list[str], arch: str | None, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        command.variants(kinds, arch)
