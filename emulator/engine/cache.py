"""Files that one process leaves for the next: the engine's machine code, and what Triton's compiler answered.

What lies in them is run, or believed. So a file counts only where nobody but the user and root can have written it: a regular
file of theirs, in a folder of theirs, below folders that nobody else can rename. Windows has no such owners: there the folders'
own permissions are all that protects them.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

HAS_OWNERS: Final = hasattr(os, "geteuid")
_ROOT: Final = 0
_UNMAPPED: Final = 65534
"""Owner of the host's folders inside a user namespace, as sandboxes and rootless containers have it."""
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_FLAGS: Final = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"))
_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _FLAGS
_UNFINISHED: Final = ".part"
"""Ending of a file that is being written, or that a killed process left."""


class CacheWarning(UserWarning):
    """A kept file was passed over, or nothing can be kept. At most one of each a process."""


class Distrusted(OSError):
    """A file or folder that somebody else may have written. Its text says why."""


def user_folder() -> Path | None:
    """The user's folder for our files; None where there is no home, as for a user id that the system does not know."""
    variable, below = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}.get(
        sys.platform, ("XDG_CACHE_HOME", ".cache")
    )
    try:
        base = Path(os.environ.get(variable) or Path.home() / below)
    except RuntimeError:
        return None
    return base / "mmabits" if base.is_absolute() else None  # a relative one would change with the working folder


def machine_code_folders() -> Iterator[Path]:
    """Where machine code may be kept, best first: where Numba was told, else beside this module, else in the user's folder."""
    told = os.environ.get("NUMBA_CACHE_DIR")
    if told:
        yield Path(told) / "mmabits"
        return
    yield Path(__file__).with_name("__pycache__")
    own = user_folder()
    if own is not None:
        yield own


def read(folder: Path, name: str) -> bytes:
    """A file's content.

    Raises:
        Distrusted: it is there, but no regular file, or somebody else can have written it or put it there.
        OSError: it is not there, or cannot be read.
    """
    path = folder / name
    _check_kind(path, path.lstat())  # first, so that nothing is opened that waits, or that opening changes
    handle = os.open(_checked(folder) / name, os.O_RDONLY | _FLAGS)
    with open(handle, "rb") as file:
        _check_file(path, handle)
        return file.read()


def write(folder: Path, name: str, content: bytes) -> None:
    """Keep a file in a folder, which is made, for the user alone, if missing. A process that reads meanwhile sees all or nothing.

    Raises:
        OSError: it cannot be written, or nobody should trust it there. Nothing is left behind.
    """
    place = _made(folder)
    handle, unfinished = tempfile.mkstemp(dir=place, prefix=name, suffix=_UNFINISHED)
    try:
        with open(handle, "wb") as file:
            file.write(content)
        os.replace(unfinished, place / name)
    except BaseException:
        with suppress(OSError):
            os.unlink(unfinished)
        raise


def append(folder: Path, name: str, content: bytes) -> None:
    """Add to a file, which is made, for the user alone, if missing; its folder too.

    Raises:
        OSError: it cannot be written, or nobody should trust it there.
    """
    path = _made(folder) / name
    with suppress(FileNotFoundError):
        _check_kind(path, path.lstat())
    handle = os.open(path, _APPEND, 0o600)
    with open(handle, "ab") as file:
        _check_file(path, handle)
        file.write(content)


def touch(folder: Path, name: str) -> None:
    """A file was used."""
    with suppress(OSError):
        os.utime(folder / name)


def prune(folder: Path, patterns: tuple[str, ...], most: int) -> None:
    """Remove files of some patterns until they have at most so many bytes, those used longest ago first."""
    found = []
    for pattern in patterns:
        for path in folder.glob(pattern):
            with suppress(OSError):
                status = path.lstat()
                found.append((status.st_mtime_ns, path, status.st_size))
    left = sum(size for _, _, size in found)
    for _, path, size in sorted(found):
        if left <= most:
            break
        with suppress(OSError):
            path.unlink()
            left -= size


def problem(folder: Path) -> str:
    """Why nothing is kept in a folder; empty where it is, or could be made."""
    try:
        nearest = _nearest(folder)
        _checked(nearest, holds_files=nearest == folder)
    except OSError as error:
        return text_of(error)
    return "" if os.access(nearest, os.W_OK | os.X_OK) else "it cannot be written"


def kept_files(folder: Path) -> list[Path]:
    """Our files in a folder, those that were never finished among them."""
    try:
        return sorted(path for pattern in ("mmabits_*", "triton-*.jsonl") for path in folder.glob(pattern))
    except OSError:
        return []


def text_of(error: OSError) -> str:
    """An error in words, with the path that it is about."""
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error.strerror or error)


def warn_passed_over(path: Path, reason: Distrusted) -> None:
    """Warn that a file is there and is not used; once a process."""
    _warn_once("passed over", f"{path} is passed over: {reason}. `mmabits cache` lists what is kept, `mmabits cache clear` removes it")


def warn_uncached(reasons: list[str]) -> None:
    """Warn that nothing can be kept; once a process."""
    why = "; ".join(reasons) or "there is no home folder"
    _warn_once(
        "uncached",
        f"machine code is not kept, so that every process compiles it anew, ten seconds a kind: {why}. NUMBA_CACHE_DIR may name a folder",
    )


# ------------------------------------------------------------------------------------------------------------------- trust


_warned: set[str] = set()


def _warn_once(kind: str, text: str) -> None:
    if kind not in _warned:
        _warned.add(kind)
        warnings.warn(f"mmabits: {text}", CacheWarning, stacklevel=3)


def _nearest(folder: Path) -> Path:
    """The folder itself, or the first above it that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def _made(folder: Path) -> Path:
    """The folder, resolved; made for the user alone if missing, but not where others could replace it."""
    nearest = _nearest(folder)
    _checked(nearest, holds_files=nearest == folder)
    for place in reversed((folder, *folder.parents)):
        if not place.exists():
            place.mkdir(mode=0o700, exist_ok=True)
    return _checked(folder)


def _checked(folder: Path, *, holds_files: bool = True) -> Path:
    """A folder, resolved, if nobody but the user and root can change what lies there.

    Every folder above counts, on the way by links as well: who may write it can rename what is in it, save where it is sticky.

    Raises:
        Distrusted: somebody else can.
        OSError: it is not there, or cannot be looked at.
    """
    found, given = Path(os.path.realpath(folder)), folder.absolute()
    if HAS_OWNERS:
        for place in dict.fromkeys((found, *found.parents, given, *given.parents)):
            status = place.lstat()
            _check_owner(place, status, may_be_unmapped=place != found)
            sticky = status.st_mode & stat.S_ISVTX and not (holds_files and place == found)
            if not stat.S_ISLNK(status.st_mode) and not sticky:
                _check_mode(place, status)
    return found


def _check_file(path: Path, handle: int) -> None:
    """Raise Distrusted for an open file that is no regular file, or that others own or may write."""
    status = os.fstat(handle)
    _check_kind(path, status)
    if HAS_OWNERS:
        _check_owner(path, status)
        _check_mode(path, status)


def _check_kind(path: Path, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise Distrusted(f"{path} is a symbolic link")
    if not stat.S_ISREG(status.st_mode):
        raise Distrusted(f"{path} is no regular file")


def _check_owner(path: Path, status: os.stat_result, *, may_be_unmapped: bool = False) -> None:
    allowed = {os.geteuid(), _ROOT} | ({_UNMAPPED} if may_be_unmapped else set())
    if status.st_uid not in allowed:
        raise Distrusted(f"{path} belongs to user {status.st_uid}, not to user {os.geteuid()} or root")


def _check_mode(path: Path, status: os.stat_result) -> None:
    if status.st_mode & stat.S_IWOTH or (status.st_mode & _OTHERS_WRITE and not _is_private_group(path, status)):
        raise Distrusted(f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):04o})")


def _is_private_group(path: Path, status: os.stat_result) -> bool:
    """Whether the group that may write is its owner alone, as where each user has a group of the same name (umask 002)."""
    import grp
    import pwd

    try:
        owner, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    alone = group.gr_name == owner.pw_name and group.gr_gid == owner.pw_gid and set(group.gr_mem) <= {owner.pw_name}
    return alone and not _has_access_list(path)


def _has_access_list(path: Path) -> bool:
    """Whether others than the group may be meant by the group's bits. Only Linux tells."""
    try:
        return any("acl" in name for name in os.listxattr(path))
    except (AttributeError, OSError):
        return False
