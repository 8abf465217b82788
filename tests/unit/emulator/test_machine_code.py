"""Which files of machine code are used, and where they are kept."""

from __future__ import annotations

import builtins
import hashlib
import json
import logging
import os
import signal
import sys
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from mmabits.emulator.engine import cache, machine_code, shipped
from mmabits.emulator.engine.machine_code import _MAGIC, _Object
from mmabits.emulator.engine.native import variants
from mmabits.emulator.engine.record import Variant
from mmabits.isa import CompilerError, lower, parse

ROOT = Path(__file__).resolve().parents[3]
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
    assert machine_code._write(SYMBOL, MADE) == [f"{blocked}/mmabits: Not a directory"]
    assert machine_code._read(SYMBOL) is None
    assert list(tmp_path.iterdir()) == [blocked]


def test_without_a_setting_it_is_kept_beside_the_module_or_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(cache.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert list(cache.machine_code_folders()) == [Path(machine_code.__file__).with_name("__pycache__"), tmp_path / "mmabits"]


def test_a_module_without_its_source_is_not_kept_but_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an archive, or where only compiled modules are installed: nothing tells one version from another."""
    machine_code._made_for.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(machine_code, "_COMPILED", ("no_such_module",))
        assert machine_code._read(SYMBOL) is None
        (reason,) = machine_code._write(SYMBOL, MADE) or []
    assert "no_such_module.py" in reason
    assert not folder.exists() or list(folder.iterdir()) == []


# --------------------------------------------------------------------------------------------------------------- compiling


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Variant:
    """A variant that compiles at once, to a function that does nothing."""
    monkeypatch.setattr(machine_code, "entry", lambda variant: lambda pointer: None)
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "0")
    (variant,) = variants(lower(parse("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64"), "sm_80"))
    return variant


def test_what_is_warm_is_not_made_again(folder: Path, small: Variant) -> None:
    assert machine_code.warm(small)
    (file,) = folder.iterdir()
    assert machine_code.is_current(file.name) and not machine_code.is_current(file.name.replace("-", "-0"))
    assert not machine_code.warm(small)


def test_warming_says_where_nothing_can_be_kept(tmp_path: Path, small: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(OSError, match="Not a directory"):
        machine_code.warm(small)


def test_compiling_is_noted_in_the_log_or_on_a_terminal(
    folder: Path, small: Variant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    machine_code._make(small)
    assert (caplog.messages, capsys.readouterr().err) == ([], "")  # a pipe, and no log that takes it
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    machine_code._make(small)
    assert (caplog.messages, capsys.readouterr().err) == ([], f"{machine_code.NOTICE}\n")
    with caplog.at_level(logging.INFO, logger="mmabits"):
        machine_code._make(small)
    assert (caplog.messages, capsys.readouterr().err) == ([machine_code.NOTICE], "")
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    machine_code._make(small)


def test_nothing_kept_is_said_once(tmp_path: Path, small: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(cache, "_warned", set())
    with pytest.warns(cache.CacheWarning, match="machine code is not kept.*Not a directory") as warned:
        for _ in range(2):
            assert machine_code._make(small).code
    assert len(warned) == 1


# ------------------------------------------------------------------------------------------------------- what a wheel brings


@pytest.fixture
def brought(tmp_path: Path) -> Path:
    (tmp_path / shipped.file_name(SYMBOL)).write_bytes(shipped.packed(SYMBOL, "of these sources", b"BC and so on"))
    return tmp_path


def test_what_was_shipped_is_read(brought: Path) -> None:
    assert shipped.bitcode(SYMBOL, "of these sources", brought) == b"BC and so on"
    assert shipped.bitcode(SYMBOL, "of other sources", brought) is None
    assert shipped.bitcode("mmabits_another", "of these sources", brought) is None


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda whole: b"", id="empty"),
        pytest.param(lambda whole: whole[: len(whole) // 2], id="cut off in the header"),
        pytest.param(lambda whole: whole[:-4], id="cut off"),
        pytest.param(lambda whole: whole[1:], id="another file"),
        pytest.param(lambda whole: whole.replace(b'"llvm": ', b'"llvm": 9'), id="a newer LLVM"),
        pytest.param(lambda whole: whole.replace(b'"llvm": ', b'"llvm": "?", "more": '), id="no LLVM"),
        pytest.param(lambda whole: whole.replace(b'"lanes": ', b'"lanes": 9'), id="other lanes"),
        pytest.param(lambda whole: whole.replace(b"{", b"[{").replace(b"}", b"}]"), id="another header"),
    ],
)
def test_what_does_not_fit_counts_as_not_shipped(brought: Path, damage: Callable[[bytes], bytes]) -> None:
    file = brought / shipped.file_name(SYMBOL)
    file.write_bytes(damage(file.read_bytes()))
    assert shipped.bitcode(SYMBOL, "of these sources", brought) is None


def test_what_was_shipped_is_compiled_without_numba(
    small: Variant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numba's settings have Numba compile."""
    from mmabits.emulator.engine import jit

    for name in [name for name in os.environ if name.startswith("NUMBA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    code = jit.intermediate_code(lambda pointer: None, small.symbol)
    monkeypatch.setattr(shipped, "bitcode", lambda symbol, sources: code)
    monkeypatch.setattr(jit, "intermediate_code", lambda *_: pytest.fail("Numba's way was taken"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert machine_code._make(small).code.startswith(b"\x7fELF") or sys.platform != "linux"
    assert capsys.readouterr().err == f"{machine_code.QUICK_NOTICE}\n"
    assert machine_code._shipped(small) == code
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    assert machine_code._shipped(small) is None


# ------------------------------------------------------------------------------------------------ Numba, and its private parts


def without_a_method(patch: pytest.MonkeyPatch) -> None:
    from numba.core.codegen import CPUCodeLibrary

    owner = next(kind for kind in CPUCodeLibrary.__mro__ if "_optimize_functions" in vars(kind))
    patch.delattr(owner, "_optimize_functions")


def another_option(patch: pytest.MonkeyPatch) -> None:
    from mmabits.emulator.engine import jit

    patch.setitem(jit._POLICY, "_no_such_option", False)


def not_importable(patch: pytest.MonkeyPatch) -> None:
    ordinary = builtins.__import__

    def imported(name: str, *rest: object, **more: object) -> object:
        if name == "mmabits.emulator.engine.jit":
            raise ImportError("cannot import name 'cpu_target' from 'numba.core.registry'")
        return ordinary(name, *rest, **more)  # type: ignore[arg-type]

    patch.setattr(builtins, "__import__", imported)


def cannot_be_typed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(machine_code, "entry", lambda variant: lambda pointer: pointer.no_such_attribute)


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        pytest.param(without_a_method, "AttributeError: .*_optimize_functions", id="a method"),
        pytest.param(another_option, "_no_such_option", id="an option"),
        pytest.param(not_importable, "ImportError: cannot import name 'cpu_target'", id="a module"),
        pytest.param(cannot_be_typed, "TypingError: .*no_such_attribute", id="its language"),
    ],
)
def test_another_numba_is_named_with_what_it_lacks(
    small: Variant, change: Callable[[pytest.MonkeyPatch], None], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numba

    with monkeypatch.context() as patch:
        change(patch)
        with pytest.raises(CompilerError, match=rf"^numba {numba.__version__} cannot compile .* numba 0.61 to 0.68: .*{missing}"):
            machine_code._compiled(small)
    assert machine_code._compiled(small).code


@pytest.mark.parametrize("error", [TimeoutError("out of a signal's handler"), MemoryError(), KeyboardInterrupt()])
def test_what_is_not_numbas_fault_is_handed_on(small: Variant, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> object:
        raise error

    monkeypatch.setattr("mmabits.emulator.engine.jit.compiled_object", interrupted)
    with pytest.raises(type(error)) as raised:
        machine_code._compiled(small)
    assert raised.value is error


def test_code_that_needs_what_is_not_there_is_not_loaded(small: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLVM would end the process."""
    monkeypatch.setattr("mmabits.emulator.engine.jit.compiled_object", lambda function, symbol: (b"", ("malloc", "NRT_incref")))
    with pytest.raises(CompilerError, match="needs NRT_incref, which nothing here has"):
        machine_code._compiled(small)


def test_a_numba_that_compiles_nothing_is_told_from_one_that_cannot(small: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    with pytest.raises(CompilerError, match="NUMBA_DISABLE_JIT is set"):
        machine_code._compiled(small)


def test_the_versions_of_numba_are_those_that_are_installed_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    first, last = (tuple(map(int, version.split("."))) for version in machine_code.NUMBA)
    (numba,) = (each for each in project["dependencies"] if each.startswith("numba>"))
    assert numba == f"numba>={first[0]}.{first[1]},<{last[0]}.{last[1] + 1}"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_who_is_interrupted_leaves_and_the_next_call_gets_what_was_compiled(small: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Exception):
        pass

    def handler(*_: object) -> None:
        raise Interrupted

    made = machine_code._compiled(small)
    go_on, calls = threading.Event(), []

    def compiled(variant: Variant) -> machine_code._Object:
        calls.append(threading.current_thread())
        go_on.wait()
        return made

    monkeypatch.setattr(machine_code, "_compiled", compiled)
    monkeypatch.setattr(machine_code, "_read", lambda symbol: None)
    monkeypatch.setattr(machine_code, "_write", lambda symbol, made: None)
    monkeypatch.setattr(machine_code, "_functions", {})
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Interrupted):
            machine_code.function_address(small)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert calls and not go_on.is_set(), "it waited for the compiler"
    go_on.set()
    assert machine_code.function_address(small)
    assert len(calls) == 1 and calls[0] is not threading.current_thread()
    assert not machine_code._compilations
