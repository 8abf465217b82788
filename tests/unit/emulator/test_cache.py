"""Which kept files are believed: those that nobody but the user and root can have written."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmabits
from mmabits.emulator.engine import cache, machine_code
from mmabits.emulator.engine.machine_code import _Object

NAME = "mmabits_nothing-0.mmabits"
OTHER_USER, THIRD_USER = 54321, 54322
needs_owners = pytest.mark.skipif(not cache.HAS_OWNERS, reason="files have no owners here")
needs_root = pytest.mark.skipif(not cache.HAS_OWNERS or os.geteuid() != 0, reason="only root can act as another user")


@pytest.fixture(autouse=True)
def nothing_warned_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_warned", set())


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A file in a folder, both as we make them."""
    folder = tmp_path / "cache" / "mmabits"
    cache.write(folder, NAME, b"content")
    return folder / NAME


def test_what_is_written_is_private_and_read(kept: Path) -> None:
    assert cache.read(kept.parent, NAME) == b"content"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (kept, kept.parent, kept.parent.parent)] == [0o600, 0o700, 0o700]
    assert list(kept.parent.iterdir()) == [kept]
    assert cache.problem(kept.parent) == "" == cache.problem(kept.parent / "not" / "there" / "yet")


def test_what_is_added_is_private_and_read(tmp_path: Path) -> None:
    for line in (b"one\n", b"two\n"):
        cache.append(tmp_path / "new", "triton-1.jsonl", line)
    assert cache.read(tmp_path / "new", "triton-1.jsonl") == b"one\ntwo\n"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new", tmp_path / "new" / "triton-1.jsonl")] == [0o700, 0o600]


def test_a_missing_file_is_missing_and_not_distrusted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cache.read(tmp_path, NAME)
    with pytest.raises(FileNotFoundError):
        cache.read(tmp_path / "nowhere", NAME)


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def listening(path: Path) -> None:
    path.unlink()
    before = Path.cwd()
    os.chdir(path.parent)  # a socket's path may have no more than a hundred characters
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(before)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@needs_owners
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(linked, "is a symbolic link", id="link"),
        pytest.param(piped, "is no regular file", id="pipe"),
        pytest.param(listening, "is no regular file", id="socket"),
        pytest.param(a_folder, "is no regular file", id="folder"),
        pytest.param(lambda path: path.chmod(0o602), r"can be written by others \(mode 0602\)", id="file for all"),
        pytest.param(lambda path: path.parent.chmod(0o707), r"mmabits can be written by others \(mode 0707\)", id="folder for all"),
        pytest.param(lambda path: path.parent.chmod(0o1777), "mmabits can be written by others", id="sticky folder"),
        pytest.param(lambda path: path.parent.parent.chmod(0o777), "cache can be written by others", id="folder above"),
    ],
)
def test_what_others_may_have_put_there_is_passed_over(kept: Path, change: Callable[[Path], None], reason: str) -> None:
    change(kept)
    with pytest.raises(cache.Distrusted, match=reason):
        cache.read(kept.parent, NAME)
    with pytest.raises(OSError, match=r".") as refused:
        cache.append(kept.parent, NAME, b"more")
    assert isinstance(refused.value, cache.Distrusted)


@needs_root
@pytest.mark.parametrize("above", [0, 1, 2], ids=["file", "folder", "folder above"])
def test_what_belongs_to_another_user_is_passed_over(kept: Path, above: int) -> None:
    path = (kept, *kept.parents)[above]
    os.chown(path, OTHER_USER, -1)
    with pytest.raises(cache.Distrusted, match=f"{path.name} belongs to user {OTHER_USER}, not to user 0 or root"):
        cache.read(kept.parent, NAME)


@needs_root
def test_a_link_of_another_user_leads_nowhere(kept: Path) -> None:
    link = kept.parent.with_name("link")
    link.symlink_to(kept.parent)
    assert cache.read(link, NAME) == b"content"  # one's own may lead to another disk
    os.chown(link, OTHER_USER, -1, follow_symlinks=False)
    with pytest.raises(cache.Distrusted, match=f"link belongs to user {OTHER_USER}"):
        cache.read(link, NAME)


@needs_owners
def test_a_sticky_folder_above_protects(kept: Path) -> None:
    kept.parent.parent.chmod(0o1777)
    assert cache.read(kept.parent, NAME) == b"content"


@needs_root
def test_a_group_may_write_if_it_is_the_owner_alone(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every user has a group, umask is often 002."""
    import grp

    kept.parent.chmod(0o770)
    assert cache.read(kept.parent, NAME) == b"content"  # root's group is root
    monkeypatch.setattr(cache, "_has_access_list", lambda path: path == kept.parent)
    with pytest.raises(cache.Distrusted, match=r"mode 0770"):
        cache.read(kept.parent, NAME)
    monkeypatch.setattr(cache, "_has_access_list", lambda path: False)
    monkeypatch.setattr(grp, "getgrgid", lambda number: grp.struct_group(("root", "x", number, ["root", "another"])))
    with pytest.raises(cache.Distrusted, match=r"mode 0770"):
        cache.read(kept.parent, NAME)
    monkeypatch.undo()
    os.chown(kept.parent, -1, 1)
    with pytest.raises(cache.Distrusted, match=r"mode 0770"):
        cache.read(kept.parent, NAME)


@needs_owners
@pytest.mark.parametrize("change", [linked, piped], ids=["link", "pipe"])
def test_what_is_passed_over_is_replaced(kept: Path, change: Callable[[Path], None]) -> None:
    change(kept)
    cache.write(kept.parent, NAME, b"new")
    assert kept.is_file() and not kept.is_symlink()
    assert cache.read(kept.parent, NAME) == b"new"


@needs_owners
def test_nothing_is_made_where_others_could_replace_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(cache.Distrusted, match="can be written by others"):
        cache.write(tmp_path / "new" / "mmabits", NAME, b"")
    assert list(tmp_path.iterdir()) == []
    assert "can be written by others" in cache.problem(tmp_path / "new")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tempfile.mkstemp

    def on_a_full_disk(**options: Any) -> tuple[int, str]:
        handle, name = made(**options)
        os.close(handle)
        return os.open("/dev/full", os.O_WRONLY), name

    monkeypatch.setattr(tempfile, "mkstemp", on_a_full_disk)
    with pytest.raises(OSError, match="No space left"):
        cache.write(tmp_path, NAME, b"content")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupted)
        cache.write(tmp_path, NAME, b"content")
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys
from pathlib import Path
from mmabits.emulator.engine import cache
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
folder = Path(sys.argv[1])
try:
    cache.write(folder, "a file", bytes(100_000))
except OSError as error:
    print(error.strerror, sorted(folder.iterdir()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of a file's size")
def test_a_file_cut_short_is_removed(tmp_path: Path) -> None:
    assert in_a_process(LIMITED, str(tmp_path)).stdout == "File too large []\n"


# ----------------------------------------------------------------------------------------------- what machine code makes of it


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    return tmp_path / "mmabits"


def test_one_warning_says_what_was_passed_over_and_why(told: Path) -> None:
    made = _Object(b"code", ())
    for symbol in ("mmabits_one", "mmabits_two"):
        assert machine_code._write(symbol, made) is None
        path = told / machine_code._file_name(symbol)
        path.rename(told / symbol)
        path.symlink_to(symbol)
    with pytest.warns(cache.CacheWarning) as warned:
        assert [machine_code._read(symbol) for symbol in ("mmabits_one", "mmabits_two", "mmabits_one")] == [None] * 3
    (text,) = (str(each.message) for each in warned)
    assert f"{told / machine_code._file_name('mmabits_one')} is a symbolic link" in text and "mmabits cache" in text


def test_the_next_folder_is_taken_where_the_first_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, made = tmp_path / "first", tmp_path / "second", _Object(b"code", ())
    first.mkdir()
    first.chmod(0o777)
    monkeypatch.setattr(cache, "machine_code_folders", lambda: iter([first, second]))
    assert machine_code._write("mmabits_one", made) is None
    assert machine_code._read("mmabits_one") == made  # without a warning: nothing in the first was passed over
    assert list(first.iterdir()) == []


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_a_user_without_a_home_has_no_folder(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "NUMBA_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cache.sys, "platform", platform)
    monkeypatch.setattr(Path, "home", no_home)
    assert cache.user_folder() is None
    assert list(cache.machine_code_folders()) == [Path(cache.__file__).with_name("__pycache__")]


def test_a_relative_folder_of_the_user_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be another one in every folder that a program runs in, as in an unpacked archive with a planted file."""
    monkeypatch.setattr(cache.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert cache.user_folder() is None


# --------------------------------------------------------------------------------------------------------- two users, for real


def in_a_process(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a new interpreter."""
    path = os.pathsep.join([str(Path(mmabits.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.fail(f"exit status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


BECOME = """
import grp, os, pwd, sys
import numpy as np
import mmabits
from mmabits.emulator.engine import cache, jit, machine_code, native, products
from mmabits.isa import lower, parse
ROW = "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32"
(variant, *_) = native.variants(lower(parse(ROW), "sm_90a"))
machine_code.entry(variant)
jit.compiled_object(lambda pointer: None, "nothing")  # all imports are made while this is root
def become(user):
    os.setgroups([]); os.setgid(user); os.setuid(user)
"""

PLANT = (
    BECOME
    + """
from pathlib import Path
from llvmlite import binding
become(int(sys.argv[1]))
machine = binding.Target.from_triple(binding.get_process_triple()).create_target_machine(jit=True)
does_nothing = binding.parse_assembly(f"define void @{variant.symbol}(i64 %record) {{ ret void }}")
cache.write(Path(sys.argv[2]), machine_code._file_name(variant.symbol), machine_code._packed(
    variant.symbol, machine_code._Object(machine.emit_object(does_nothing), ())))
"""
)

PRODUCT = (
    BECOME
    + """
import json, warnings
become(int(sys.argv[1]))
a, b = np.arange(512, dtype=np.int8).reshape(16, 32) % 5, np.arange(256, dtype=np.int8).reshape(32, 8) % 3
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    got = [mmabits.gemm(a, b, instruction="mma.sync", arch="sm_90a") for _ in range(2)]
right = a.astype(np.int32) @ b.astype(np.int32)
print(json.dumps([all((each == right).all() for each in got), [str(each.message) for each in warned]]))
"""
)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user may use, as the system's temporary one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o1777)
        yield folder


@needs_root
@pytest.mark.parametrize(
    ("planter", "victim", "runs"),
    [
        pytest.param(0, OTHER_USER, True, id="root's file runs, so planting works"),
        pytest.param(OTHER_USER, 0, False, id="another user's for root"),
        pytest.param(THIRD_USER, OTHER_USER, False, id="another user's for a user"),
    ],
)
def test_a_planted_file_never_runs(shared: Path, planter: int, victim: int, runs: bool) -> None:
    """The planted code, in a file that is right in every other way, does nothing: a product is then C, all zeros."""
    environment = {"NUMBA_CACHE_DIR": str(shared), "NUMBA_DISABLE_JIT": "0"}
    in_a_process(PLANT, str(planter), str(shared / "mmabits"), **environment)
    (shared / "mmabits").chmod(0o755)
    for path in (shared / "mmabits").iterdir():
        assert path.stat().st_uid == planter
        path.chmod(0o644)
    right, warned = json.loads(in_a_process(PRODUCT, str(victim), **environment).stdout)
    assert right is not runs
    if runs:
        assert warned == []
    else:
        passed_over, uncached = warned
        assert "is passed over: " in passed_over and f"mmabits belongs to user {planter}" in passed_over
        assert "machine code is not kept" in uncached and f"belongs to user {planter}" in uncached


@needs_root
def test_an_unknown_user_without_a_home_computes_and_is_told_once(shared: Path) -> None:
    """As in a container with a random user id and a read-only installation."""
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")}
    program = "import mmabits.emulator.engine.cache as c, pathlib\n" + PRODUCT.replace(
        "import json, warnings", "import json, warnings\nc.__file__ = '/proc/nowhere/cache.py'"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(OTHER_USER)], env={**environment, "PYTHONPATH": str(Path(mmabits.__file__).parents[1])},
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    right, warned = json.loads(done.stdout)
    assert right
    (text,) = warned
    assert text.startswith("mmabits: machine code is not kept, so that every process compiles it anew, ten seconds a kind: /proc")


def test_all_warnings_are_shown_once_even_if_filters_say_otherwise(told: Path) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(2):
            cache.warn_uncached(["no place"])
    assert [str(each.message) for each in warned] == [
        "mmabits: machine code is not kept, so that every process compiles it anew, ten seconds a kind: no place. "
        "NUMBA_CACHE_DIR may name a folder"
    ]
