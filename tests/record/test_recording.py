"""Files of tiles: written once, read whole, and damage is found."""

import errno
import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmabits.conformance.record.generators import random_bits
from mmabits.conformance.record.tiles import TileOperands, emulate_tiles, join_chain
from mmabits.conformance.recorded.files import data_sha256
from mmabits.conformance.recorded.tiles import (
    FORMAT,
    NotWritten,
    Recording,
    manifest_path,
    read_recording,
    write_manifest,
    write_recording,
)
from mmabits.isa import parse
from mmabits.isa.errors import OperandError, VectorFileError
from mmabits.reports.stored import format_of

SCALED = "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n16k32.f32.e4m3.e2m1.ue8m0"
PLAIN = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"


def made(ptx: str = PLAIN, arch: str = "sm_80", chain: int = 1, tiles: int = 2) -> Recording:
    instruction = parse(ptx)
    operands = join_chain(random_bits(instruction, arch, tiles * chain, 3), chain)
    return Recording(
        instruction=instruction, arch=arch, kind="emulator", gpu="none", chain=chain, operands=operands,
        d=emulate_tiles(instruction, arch, operands), manifest={"seed": 3, "generator": "random-bits"},
    )  # fmt: skip


@pytest.mark.parametrize(("ptx", "arch", "chain"), [(PLAIN, "sm_80", 1), (PLAIN, "sm_80", 3), (SCALED, "sm_100a", 1)])
def test_what_is_written_is_read(tmp_path: Path, ptx: str, arch: str, chain: int) -> None:
    recording, path = made(ptx, arch, chain), tmp_path / "one.safetensors"
    write_recording(path, recording)
    found = read_recording(path)
    assert found.tensors.keys() == recording.tensors.keys()
    assert all(
        (found.tensors[name] == codes).all() and found.tensors[name].dtype == codes.dtype for name, codes in recording.tensors.items()
    )
    assert (found.metadata, found.manifest) == (recording.metadata, recording.manifest)
    assert format_of(path) == FORMAT
    beside = json.loads(manifest_path(path).read_text())
    assert beside["file_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (beside["instruction"], beside["seed"], beside["k"]) == (ptx, 3, str(parse(ptx).k * chain))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.safetensors", "one.safetensors.json"]


def test_a_file_can_be_read_with_the_standard_library(tmp_path: Path) -> None:
    recording, path = made(), tmp_path / "one.safetensors"
    write_recording(path, recording)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    digest = hashlib.sha256()
    for name in sorted(key for key in header if key != "__metadata__"):
        begin, end = header[name]["data_offsets"]
        digest.update(name.encode() + b"\0" + data[8 + length + begin : 8 + length + end])
    assert header["__metadata__"]["data_sha256"] == digest.hexdigest()
    assert (header["a"]["dtype"], header["a"]["shape"], header["d"]["dtype"], header["d"]["shape"]) == (
        "U16",
        [2, 16, 16],
        "U32",
        [2, 16, 8],
    )


def test_a_finished_file_never_changes(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    write_recording(path, made())
    before = path.read_bytes(), manifest_path(path).read_bytes()
    with pytest.raises(VectorFileError, match=r"one\.safetensors: is there already; a finished recording never changes"):
        write_recording(path, made(tiles=3))
    with pytest.raises(VectorFileError, match=r"one\.safetensors\.json: is there already"):
        write_manifest(path, made())
    assert (path.read_bytes(), manifest_path(path).read_bytes()) == before


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_is_found_with_and_without_the_manifest(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    write_recording(path, made())
    flip(path, -5)
    with pytest.raises(VectorFileError, match=r"one\.safetensors: metadata key 'data_sha256' is .*, but the data say"):
        read_recording(path)
    manifest_path(path).unlink()
    with pytest.raises(VectorFileError, match="data_sha256"):
        read_recording(path)


def test_a_file_that_is_not_the_manifests_is_found(tmp_path: Path) -> None:
    path, other = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    write_recording(path, made())
    write_recording(other, made(tiles=3))
    path.write_bytes(other.read_bytes())
    with pytest.raises(VectorFileError, match=r"its sha256 is [0-9a-f]{64}, but its manifest one\.safetensors\.json says"):
        read_recording(path)
    manifest_path(path).write_text("{")
    with pytest.raises(VectorFileError, match=r"manifest one\.safetensors\.json is no JSON"):
        read_recording(path)


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_a_truncated_file_is_found(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "one.safetensors"
    write_recording(path, made())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(VectorFileError, match=r"one\.safetensors: no readable safetensors file \(.*\); it may be truncated"):
        read_recording(path)
    assert format_of(path) != FORMAT
    with pytest.raises(VectorFileError, match=r"missing\.safetensors: cannot be read|No such file"):
        read_recording(tmp_path / "missing.safetensors")


def altered(path: Path, **metadata: str | None) -> None:
    """Write a file with other metadata, its checksum right."""
    recording = made()
    known: dict[str, Any] = {**recording.metadata, **metadata}
    save_file(recording.tensors, path, {key: text for key, text in known.items() if text is not None})


@pytest.mark.parametrize(("change", "message"), [
    ({"format": "dot-vectors/1"}, "metadata key 'format' is 'dot-vectors/1'; allowed: 'tile-vectors/1'"),
    ({"gpu": None}, "metadata key 'gpu' missing; tile-vectors/1 needs format, kind"),
    ({"a_type": "bf16"}, "metadata key 'a_type' is 'bf16', but the data say 'f16'"),
    ({"chain": "2"}, r"tensor 'a' has shape \(2, 16, 16\); allowed is \(2, 16, 32\)"),
    ({"chain": "0"}, "metadata key 'chain' is '0'; allowed: a positive integer"),
    ({"kind": "guess"}, "kind is 'guess'; allowed: hardware, emulator"),
    ({"instruction": "mma.sync.nothing"}, "mma.sync.nothing"),
    ({"tiles": "3"}, "metadata key 'tiles' is '3', but the data say '2'"),
    ({"manifest": "{"}, "metadata key 'manifest' is no JSON"),
    ({"scale_type": "ue8m0", "block_size": "32"}, "tensors are a, b, c, d; allowed: exactly a, b, c, d, scale_a, scale_b"),
])  # fmt: skip
def test_contradictions_are_found(tmp_path: Path, change: dict[str, str | None], message: str) -> None:
    path = tmp_path / "one.safetensors"
    altered(path, **change)
    with pytest.raises(VectorFileError, match=rf"one\.safetensors: .*{message}"):
        read_recording(path)


def test_operands_that_do_not_fit_are_refused() -> None:
    recording = made(SCALED, "sm_100a")
    tensors = dict(recording.operands.named())
    for change, message in (
        ({"scale_a": None}, "scale_a is missing"),
        ({"b": tensors["b"] | 0x10}, "tensor 'b' holds 0x1.; e2m1 has codes up to 0xf"),
        ({"c": tensors["c"].astype(np.uint64)}, "tensor 'c' is uint64; f32 needs uint32"),
    ):
        with pytest.raises(OperandError, match=message):
            Recording(
                instruction=recording.instruction, arch="sm_100a", kind="emulator", gpu="", chain=1, d=recording.d,
                operands=TileOperands(**{**tensors, **change}),
            )  # fmt: skip


def test_a_full_disk_leaves_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.safetensors"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotWritten, match=r"one\.safetensors: cannot be written \(No space left on device\)"):
        write_recording(path, made())
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    path = tmp_path / "one.safetensors"
    write_recording(path, made())
    assert read_recording(path).d.shape == (2, 16, 8)
    before = path.read_bytes()
    with pytest.raises(VectorFileError, match="is there already"):
        write_recording(path, made(tiles=3))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    left = tmp_path / ".one.safetensors.0123456789abcdef.tmp"
    left.write_bytes(b"half")
    write_recording(path, made())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.safetensors", "one.safetensors.json"]


def test_the_checksum_depends_on_names_and_on_every_code() -> None:
    tensors = made().tensors
    known = data_sha256(tensors)
    swapped = {**tensors, "a": tensors["b"], "b": tensors["a"]}
    changed = {name: codes.copy() for name, codes in tensors.items()}
    changed["c"][1, 2, 3] ^= 1
    assert len({known, data_sha256(swapped), data_sha256(changed)}) == 3
    assert data_sha256({name: codes.astype(codes.dtype.newbyteorder(">")) for name, codes in tensors.items()}) == known


def test_load_file_sees_the_same(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    recording = made()
    write_recording(path, recording)
    assert all((codes == recording.tensors[name]).all() for name, codes in load_file(path).items())
