"""Machine code of kernels: compiled once, kept in files, and made anew where a file cannot be trusted."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmabits.emulator.engine import machine_code
from mmabits.emulator.machine import compiler

SMALL = "define i32 @answer() {\n  ret i32 42\n}\n"
LARGE = SMALL + ";" + "-" * compiler.KEPT_FROM + "\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    stock = compiler._object_code

    def object_code(text: str, opt: int) -> bytes:
        made.append(len(text))
        return stock(text, opt)

    monkeypatch.setattr(compiler, "_object_code", object_code)
    return made


def answer(text: str, opt: int = 0) -> int:
    address, _owner, _was_kept = compiler.compiled(text, "answer", opt=opt)
    return int(ctypes.CFUNCTYPE(ctypes.c_int32)(address)())


def symbol(text: str, opt: int = 0) -> str:
    return compiler.symbol_of(text, opt)


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob("mmabits_kernel_*.mmabits"))


def test_a_long_text_is_compiled_once(folder: Path, compilations: list[int]) -> None:
    assert [answer(LARGE), answer(LARGE)] == [42, 42]
    assert len(compilations) == 1 and len(kept(folder)) == 1
    assert machine_code.is_current(kept(folder)[0].name)


def test_another_text_or_level_is_another_file(folder: Path, compilations: list[int]) -> None:
    assert [answer(LARGE), answer(LARGE.replace("42", "43")), answer(LARGE, opt=1)] == [42, 43, 42]
    assert len(compilations) == 3 and len(kept(folder)) == 3


def test_a_short_text_is_not_kept(folder: Path, compilations: list[int]) -> None:
    assert [answer(SMALL), answer(SMALL)] == [42, 42]
    assert len(compilations) == 2 and kept(folder) == []


def test_what_a_text_calls_beside_it_is_kept_by_its_own_name(folder: Path, compilations: list[int]) -> None:
    calls = "declare i32 @mmabits_opcode_test()\ndefine i32 @answer() {\n  %found = call i32 @mmabits_opcode_test()\n  ret i32 %found\n}\n"
    beside = {"mmabits_opcode_test": SMALL.replace("@answer", "@mmabits_opcode_test")}
    for _ in range(2):
        compiler._part.cache_clear()
        made = compiler.compiled(calls, "answer", beside=beside)
        assert ctypes.CFUNCTYPE(ctypes.c_int32)(made.address)() == 42
    assert len(compilations) == 3  # the short text twice
    assert len(sorted(folder.rglob("mmabits_opcode_*.mmabits"))) == 1


def test_the_oldest_go_where_there_is_more_than_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [LARGE.replace("42", str(number)) for number in range(43, 48)]
    answer(texts[0])
    monkeypatch.setattr(machine_code, "KEPT_BYTES", 3 * kept(folder)[0].stat().st_size + 10)
    first = kept(folder)[0]
    os.utime(first, (1, 1))
    for place, text in enumerate(texts[1:4]):
        answer(text)
        for each in kept(folder):
            if each != first and each.stat().st_mtime > 1000:
                os.utime(each, (100 + place, 100 + place))
    assert len(kept(folder)) == 3 and first not in kept(folder)
    answer(texts[1])  # used again: the next oldest goes
    answer(texts[4])
    assert len(kept(folder)) == 3
    assert machine_code.kept_code(symbol(texts[1])) is not None and machine_code.kept_code(symbol(texts[2])) is None
    other = folder / "mmabits" / "mmabits_fused_uint8_float32-0123.mmabits"
    other.write_bytes(bytes(100000))
    answer(texts[2])
    assert other.exists()


@pytest.mark.parametrize("damage", [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:50], lambda data: b""])
def test_a_damaged_file_is_made_anew(folder: Path, compilations: list[int], damage) -> None:
    assert answer(LARGE) == 42
    (file,) = kept(folder)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert answer(LARGE) == 42 and len(compilations) == 2
    assert file.read_bytes() == whole


def test_a_long_one_is_announced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(machine_code, "notify", told.append)
    monkeypatch.setattr(compiler, "_LONG", 1)
    compiler.compiled(LARGE, "answer", what="the kernel k")
    compiler.compiled(LARGE, "answer", what="the kernel k")
    assert told == ["mmabits: compiling the kernel k, once on this machine"]


def test_the_machine_needs_numba_for_its_helper_alone() -> None:
    """Where that is in a file, compiled kernels run without Numba."""
    program = "import sys, mmabits.emulator.machine.kernel; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
