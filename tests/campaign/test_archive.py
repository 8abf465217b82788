"""The archive of a campaign: whole at any moment, never trusted."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmabits.conformance.campaign import archive as archives
from mmabits.conformance.campaign.archive import Archive, ArchiveFull, file_name, is_archive, read_archive, safe_name
from mmabits.isa import OperandError, VectorFileError


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def fresh() -> dict[str, Any]:
    return {"device": {"name": "none"}, "steps": []}


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    made = Archive.open(tmp_path / "new", fresh())
    made.save()
    assert read_archive(tmp_path / "new") == ({"format": "campaign/1", **fresh()}, {})
    one, two = ("a/one.bin", noise(700)), ("two", b"")
    for name, data in (one, two):
        made.manifest["steps"].append({"files": [made.add(name, data)]})
        made.save()
    manifest, members = read_archive(tmp_path / "new" / file_name(1))
    assert members == dict((one, two)) and len(manifest["steps"]) == 2
    again = Archive.open(tmp_path / "new", fresh())
    assert again.members == members and again.manifest == manifest
    again.manifest["steps"].append({"files": [again.add("three", b"3")]})
    again.save()
    assert list(read_archive(tmp_path / "new")[1]) == ["a/one.bin", "two", "three"]
    assert is_archive(tmp_path / "new") and not is_archive(tmp_path)
    with tarfile.open(tmp_path / "new" / file_name(1)) as tar:  # anybody's tar reads it
        assert tar.getnames() == ["a/one.bin", "two", "three", "manifest.json"]


def test_more_than_one_file_and_no_more_than_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_BYTES", 5000)
    monkeypatch.setattr(archives, "MOST_FILES", 3)
    made = Archive.open(tmp_path, fresh())
    for number in range(6):
        made.manifest["steps"].append({"files": [made.add(f"m{number}", noise(2000, number))]})
        made.save()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"campaign{part}.tar.gz" for part in ("-2", "-3", "")]
    assert {name: len(data) for name, data in read_archive(tmp_path)[1].items()} == {f"m{number}": 2000 for number in range(6)}
    assert not made.has_room("m6", noise(2000)) and made.has_room("m6", b"little")
    with pytest.raises(ArchiveFull, match="do not fit"):
        made.add("m6", noise(2000))
    with pytest.raises(ArchiveFull, match="do not fit"):
        Archive.open(tmp_path / "other", fresh()).add("m", noise(6000))
    (tmp_path / file_name(2)).unlink()
    with pytest.raises(VectorFileError, match="'m2' is missing"):
        read_archive(tmp_path)


def test_what_a_manifest_does_not_list_is_not_there(tmp_path: Path) -> None:
    """A process killed between two files of an archive leaves a member that no manifest knows."""
    made = Archive.open(tmp_path, fresh())
    made.add("unlisted", b"1")
    made.save()
    assert read_archive(tmp_path)[1] == {}


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../up", "a/b/c", "manifest.json", "a b", ".hidden", "a/", "x" * 300])
def test_names_of_members(name: str, tmp_path: Path) -> None:
    with pytest.raises(OperandError, match="no name for a member"):
        Archive.open(tmp_path, fresh()).add(name, b"")
    assert archives._NAME.fullmatch(safe_name(name))


def test_another_device_is_refused(tmp_path: Path) -> None:
    Archive.open(tmp_path, fresh()).save()
    with pytest.raises(VectorFileError, match=r"is there already, of another device \(name '[^']*', not 'other'\)$"):
        Archive.open(tmp_path, {"device": {"name": "other"}, "steps": []})


def test_damage_is_one_line(tmp_path: Path) -> None:
    made = Archive.open(tmp_path, fresh())
    made.manifest["steps"].append({"files": [made.add("m", noise(3000))]})
    made.save()
    path = tmp_path / file_name(1)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for cut in rng.integers(1, len(whole), 20):
        path.write_bytes(whole[:cut])
        with pytest.raises(VectorFileError, match=r"campaign\.tar\.gz: "):
            read_archive(tmp_path)
    for place in rng.integers(0, len(whole), 40):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            manifest, members = read_archive(tmp_path)
        except VectorFileError:
            continue
        assert members == made.members and manifest["steps"] == made.manifest["steps"]  # a bit that no reader looks at


def packed(*members: tarfile.TarInfo, data: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in members:
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data) if member.isreg() else None)
    return gzip.compress(buffer.getvalue())


def linked() -> tarfile.TarInfo:
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return link


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is damaged"),
        (b"no gzip", "damaged or cut off"),
        (gzip.compress(b"no tar" * 200), "it is damaged"),
        (packed(tarfile.TarInfo("../up")), "no plain file"),
        (packed(linked()), "no plain file"),
        (packed(tarfile.TarInfo("a"), tarfile.TarInfo("a")), "is there twice"),
        (packed(tarfile.TarInfo("manifest.json"), data=b"{"), "is no JSON"),
        (packed(tarfile.TarInfo("manifest.json"), data=b"[]"), "no archive of a campaign"),
        (packed(tarfile.TarInfo("manifest.json"), data=b'{"format": "campaign/1"}'), "no list of steps"),
        (packed(tarfile.TarInfo("manifest.json"), data=b'{"format": "campaign/1", "steps": [{"files": [1]}]}'), "without a name"),
    ],
)
def test_files_of_others(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / file_name(1)).write_bytes(data)
    with pytest.raises(VectorFileError, match=message):
        read_archive(tmp_path)
