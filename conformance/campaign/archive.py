"""The archive of a campaign, "campaign/1": gzipped tar files of at most 16 MiB, the first with the manifest at its end.

Every member is compressed by itself, so that a file grows by what is new. A file is replaced whole: whoever kills the process finds the
archive as it was after the last step. Nothing is ever unpacked by name; a reader takes what the manifest lists, with its sha256.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mmabits.isa import OperandError, VectorFileError
from mmabits.reports.failures import one_line
from mmabits.reports.stored import check_file, read_json
from mmabits.reports.written import remove_unfinished, written_whole

FORMAT: Final = "campaign/1"
MANIFEST: Final = "manifest.json"
ENDING: Final = ".tar.gz"
MOST_FILES: Final = 4
"""60 MiB together: what lent machines let out is 64 MiB in 8 files of 16 MiB."""
MOST_BYTES: Final = 15 << 20
"""Of the data of one file; the manifest comes on top."""
_MOST_MEMBER: Final = 1 << 28
_MOST_READ: Final = 1 << 31
_BLOCK: Final = 512
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}(/[A-Za-z0-9][A-Za-z0-9._-]{0,199})?")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")


class ArchiveFull(VectorFileError):
    """No room is left for a member."""


def safe_name(text: str) -> str:
    """A file name of letters, digits, `.`, `_` and `-`."""
    return _UNSAFE.sub("-", text)[:180].strip(".-") or "unnamed"


def file_name(number: int) -> str:
    """Of the archive's files, counted from 1."""
    return f"campaign{'' if number == 1 else f'-{number}'}{ENDING}"


def _member(name: str, data: bytes) -> bytes:
    """A member as a gzip stream of its own: gzip streams that follow one another are one file."""
    head = tarfile.TarInfo(name)
    head.size, head.mode = len(data), 0o644
    return gzip.compress(head.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % _BLOCK), 6, mtime=0)


_END: Final = gzip.compress(bytes(2 * _BLOCK), 6, mtime=0)


@dataclass(eq=False)
class Archive:
    """An archive that grows."""

    folder: Path
    manifest: dict[str, Any]
    members: dict[str, bytes] = field(default_factory=dict)
    """What each holds, by name."""
    _parts: list[bytearray] = field(default_factory=list)
    """The members of each file, compressed."""

    @classmethod
    def open(cls, folder: Path, fresh: Mapping[str, Any]) -> Archive:
        """The archive of a folder, or a new one.

        Args:
            folder: made if missing.
            fresh: the manifest of a new archive; `device` in it must be what an old one says.

        Raises:
            VectorFileError: the folder cannot be made, or what is there is damaged, or of another device.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VectorFileError(f"{folder}: cannot be made ({error.strerror})") from error
        for number in range(1, MOST_FILES + 1):
            remove_unfinished(folder / file_name(number))
        if not (folder / file_name(1)).exists():
            return cls(folder=folder, manifest={"format": FORMAT, **fresh})
        manifest, members = read_archive(folder)
        if manifest.get("device") != fresh["device"]:
            raise VectorFileError(f"{folder}: is there already, of another device ({_parted(manifest.get('device'), fresh['device'])})")
        made = cls(folder=folder, manifest=manifest)
        for name, data in members.items():
            made._place(name, data)
        return made

    def has_room(self, name: str, data: bytes) -> bool:
        """Whether a member still fits."""
        size = len(_member(name, data))
        return size <= MOST_BYTES and (len(self._parts) < MOST_FILES or len(self._parts[-1]) + size <= MOST_BYTES)

    def add(self, name: str, data: bytes) -> dict[str, Any]:
        """Take a member in; `save` writes.

        Returns:
            What the manifest is to say of it.

        Raises:
            ArchiveFull: no room is left.
            OperandError: a name that a member may not have, or has.
        """
        if not _NAME.fullmatch(name) or name == MANIFEST or name in self.members:
            raise OperandError(f"{name!r} is no name for a member of an archive, or is taken")
        self._place(name, data)
        return {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def _place(self, name: str, data: bytes) -> None:
        packed = _member(name, data)
        if not self._parts or len(self._parts[-1]) + len(packed) > MOST_BYTES:
            if len(self._parts) == MOST_FILES or len(packed) > MOST_BYTES:
                raise ArchiveFull(f"{name}: {len(data):,} bytes do not fit into the archive any more")
            self._parts.append(bytearray())
        self._parts[-1] += packed
        self.members[name] = data

    def save(self) -> None:
        """Write what is new: the last file first, then the first with the manifest.

        Raises:
            VectorFileError: it cannot be written; what was there before still is.
        """
        manifest = _member(MANIFEST, json.dumps(self.manifest, sort_keys=True).encode())
        parts = self._parts or [bytearray()]
        try:
            for number in dict.fromkeys((len(parts), 1)):
                tail = manifest if number == 1 else b""
                with written_whole(self.folder / file_name(number)) as temporary:
                    temporary.write_bytes(bytes(parts[number - 1]) + tail + _END)
        except OSError as error:
            raise VectorFileError(f"{self.folder}: cannot be written ({error.strerror or one_line(error)})") from error


def _parted(old: Any, new: Mapping[str, Any]) -> str:
    """What two devices do not have in common."""
    if not isinstance(old, dict):
        return "its manifest tells none"
    names = [each for each in new if old.get(each) != new[each]] or [each for each in old if each not in new]
    return ", ".join(f"{each} {old.get(each, 'none')!r}, not {new.get(each, 'none')!r}" for each in names)


# Reading -----------------------------------------------------------------------------------------------------------------


def is_archive(path: Path) -> bool:
    """Whether a path is an archive's first file, or a folder with one in it."""
    return (path.name.endswith(ENDING) and not path.is_dir()) or (path / file_name(1)).is_file()


def read_archive(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest, and the members that it lists.

    Args:
        path: the folder, or its first file; further files lie beside it.

    Raises:
        VectorFileError: damaged, incomplete or no archive; one line that names it.
    """
    first = path / file_name(1) if path.is_dir() else path
    stem = first.name.removesuffix(ENDING)
    found: dict[str, bytes] = {}
    try:
        for number in range(1, MOST_FILES + 1):
            file = first if number == 1 else first.with_name(f"{stem}-{number}{ENDING}")
            if number > 1 and not file.is_file():
                break
            for name, data in _members(file):
                if name in found:
                    raise OperandError(f"{name!r:.80} is there twice")
                found[name] = data
        manifest = read_json(found.pop(MANIFEST, b"null"), MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise OperandError(f"no archive of a campaign: its manifest says no {FORMAT!r}")
        return manifest, {name: _checked(found, name, sha) for name, sha in _listed(manifest)}
    except OperandError as error:
        raise VectorFileError(f"{first}: {error}") from error
    except OSError as error:
        raise VectorFileError(f"{first}: cannot be read ({error.strerror or one_line(error)})") from error


def _listed(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    steps = manifest.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) and isinstance(step.get("files", []), list) for step in steps):
        raise OperandError("its manifest has no list of steps")
    for step in steps:
        for each in step.get("files", []):
            if not isinstance(each, dict) or not isinstance(each.get("name"), str):
                raise OperandError("its manifest lists a file without a name")
            yield each["name"], each.get("sha256")


def _checked(found: Mapping[str, bytes], name: str, sha256: Any) -> bytes:
    if name not in found:
        raise OperandError(f"{name!r:.80} is missing; a file of the archive may be")
    if hashlib.sha256(found[name]).hexdigest() != sha256:
        raise OperandError(f"{name!r:.80} is not what its sha256 says")
    return found[name]


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Every member of a file; a file that was cut off is an error."""
    check_file(path)
    try:
        with tarfile.open(fileobj=io.BytesIO(_unpacked(path.read_bytes())), mode="r:") as tar:
            for member in tar:
                if not member.isreg() or not _NAME.fullmatch(member.name) or member.size > _MOST_MEMBER:
                    raise OperandError(f"{member.name!r:.80} is no plain file of an archive")
                stream = tar.extractfile(member)
                data = b"" if stream is None else stream.read()
                if len(data) != member.size:
                    raise OperandError("it is cut off")
                yield member.name, data
    except tarfile.TarError as error:
        raise OperandError(f"it is damaged ({one_line(error)})") from error


def _unpacked(data: bytes) -> bytes:
    """Gzip streams that follow one another."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            whole = stream.read(_MOST_READ + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise OperandError(f"it is damaged or cut off ({one_line(error)})") from error
    if len(whole) > _MOST_READ:
        raise OperandError("it unpacks to more than 2 GiB")
    return whole


__all__ = ["ENDING", "FORMAT", "MOST_BYTES", "MOST_FILES", "Archive", "ArchiveFull", "file_name", "is_archive", "read_archive", "safe_name"]
