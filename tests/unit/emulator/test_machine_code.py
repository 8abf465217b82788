"""Which files of machine code are used, and where they are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mmabits.emulator import machine_code
from mmabits.emulator.machine_code import _MAGIC, _Object

MADE = _Object(b"\x7fELF and so on", ("malloc", "free"))
SYMBOL = "mmabits_nothing"


def signed(content: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(content).digest() + content


def with_header(**changes: object) -> bytes:
    line = json.dumps({**machine_code._header(SYMBOL, MADE.expected), **changes})
    return signed(line.encode() + b"\n" + MADE.code)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    return tmp_path / "mmabits"


def test_what_is_written_is_read(folder: Path) -> None:
    assert machine_code._read(SYMBOL) is None
    machine_code._write(SYMBOL, MADE)
    assert machine_code._read(SYMBOL) == MADE
    assert [path.name for path in folder.iterdir()] == [machine_code._file_name(SYMBOL)]
    assert machine_code._read("mmabits_something_else") is None


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda whole: b"", id="empty"),
        pytest.param(lambda whole: whole[: len(whole) // 2], id="cut off"),
        pytest.param(lambda whole: whole[:-1] + b"?", id="a byte changed"),
        pytest.param(lambda whole: b"not ours" + whole, id="another file"),
        pytest.param(lambda whole: with_header(made_for="another processor"), id="made for something else"),
        pytest.param(lambda whole: with_header(symbol="mmabits_fused"), id="another function"),
        pytest.param(lambda whole: with_header(expected=["malloc", "no_process_has_this"]), id="expects what is not there"),
        pytest.param(lambda whole: with_header(extra=1), id="another header"),
        pytest.param(lambda whole: signed(b"[]\n"), id="no header"),
        pytest.param(lambda whole: signed(b"{]\n"), id="no json"),
    ],
)
def test_other_files_are_ignored_and_replaced(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    machine_code._write(SYMBOL, MADE)
    file = folder / machine_code._file_name(SYMBOL)
    file.write_bytes(damage(file.read_bytes()))
    assert machine_code._read(SYMBOL) is None
    machine_code._write(SYMBOL, MADE)
    assert machine_code._read(SYMBOL) == MADE


def test_a_header_that_is_right_is_taken() -> None:
    """So the refusals above are for what was changed."""
    assert machine_code._unpacked(with_header(), SYMBOL) == MADE


def test_where_nothing_can_be_kept_nothing_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(blocked))
    machine_code._write(SYMBOL, MADE)
    assert machine_code._read(SYMBOL) is None
    assert list(tmp_path.iterdir()) == [blocked]


def test_without_a_setting_it_is_kept_beside_the_module_or_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(machine_code.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert list(machine_code._folders()) == [Path(machine_code.__file__).with_name("__pycache__"), tmp_path / "mmabits"]
