"""Vector files: what is written is read back, and every kind of damage is one line that says what is wrong."""

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mmabits.conformance.vectors import REQUIRED_KEYS, DotVectors, read_vectors, write_vectors
from mmabits.isa import OperandError, VectorFileError, format_spec

SCALED = "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3"


def plain_vectors() -> DotVectors:
    return DotVectors(
        instruction="wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e5m2", arch="sm_90a",
        a_type=format_spec("e4m3"), b_type=format_spec("e5m2"), c_type=format_spec("f32"), d_type=format_spec("f32"), k=4,
        a=np.arange(12, dtype=np.uint8).reshape(3, 4), b=np.arange(100, 112, dtype=np.uint8).reshape(3, 4),
        c=np.array([0, 0x80000000, 0x3F800000], dtype=np.uint32), d=np.array([1, 2, 0xFFFFFFFF], dtype=np.uint32),
        gpu="NVIDIA H100", note="a note", source="somewhere", license="BSD-2-Clause", extra={"driver": "550.54 \u00b5"},
    )  # fmt: skip


def scaled_vectors() -> DotVectors:
    rng = np.random.default_rng(16)
    return DotVectors(
        instruction=SCALED, arch="sm_120a", a_type=format_spec("e2m1"), b_type=format_spec("e2m1"), c_type=format_spec("f32"),
        d_type=format_spec("f32"), k=64, scale_type=format_spec("ue4m3"), block=16, kind="peer",
        a=rng.integers(0, 16, (5, 64), dtype=np.uint8), b=rng.integers(0, 16, (5, 64), dtype=np.uint8),
        c=np.zeros(5, dtype=np.uint32), d=np.arange(5, dtype=np.uint32),
        scale_a=rng.integers(0, 256, (5, 4), dtype=np.uint8), scale_b=rng.integers(0, 256, (5, 4), dtype=np.uint8),
    )  # fmt: skip


@pytest.mark.parametrize("make", [plain_vectors, scaled_vectors])
def test_what_is_written_is_read_back(make, tmp_path: Path) -> None:
    vectors = make()
    path = tmp_path / "x.safetensors"
    write_vectors(path, vectors)
    back = read_vectors(path)
    assert back.metadata == vectors.metadata
    assert set(back.tensors) == set(vectors.tensors)
    for name, codes in vectors.tensors.items():
        assert back.tensors[name].dtype == codes.dtype
        np.testing.assert_array_equal(back.tensors[name], codes)
    assert back.rows == len(vectors.a)
    assert (back.scale_type, back.block) == (vectors.scale_type, vectors.block)


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    vectors = plain_vectors()
    path = tmp_path / "x.safetensors"
    write_vectors(path, vectors)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == vectors.metadata
        assert file.metadata()["driver"] == "550.54 \u00b5"
        assert file.metadata()["k"] == "4"
    for name, codes in load_file(path).items():
        np.testing.assert_array_equal(codes, vectors.tensors[name])


def test_the_same_vectors_give_the_same_bytes_and_the_data_are_aligned(tmp_path: Path) -> None:
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    write_vectors(first, plain_vectors())
    write_vectors(second, replace(plain_vectors(), a=np.asfortranarray(plain_vectors().a)))
    assert first.read_bytes() == second.read_bytes()
    length = int.from_bytes(first.read_bytes()[:8], "little")
    assert length % 8 == 0
    header = json.loads(first.read_bytes()[8 : 8 + length])
    assert [header[name]["data_offsets"][0] for name in ("c", "d", "a", "b")] == [0, 12, 24, 36]
    assert first.read_bytes()[8 + length : 12 + length] == b"\0\0\0\0"


def test_writing_leaves_no_other_file_and_obeys_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    old = os.umask(0o022)
    try:
        write_vectors(path, plain_vectors())
    finally:
        os.umask(old)
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert read_vectors(path).rows == 3


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(VectorFileError, match=r"x\.safetensors: cannot be written \(No space left on device\)"):
        write_vectors(path, plain_vectors())
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(VectorFileError, match="cannot be written"):
        write_vectors(tmp_path / "none" / "x.safetensors", plain_vectors())


# Damage ----------------------------------------------------------------------------------------------------------------


def check_refused(path: Path, match: str) -> None:
    with pytest.raises(VectorFileError, match=match) as caught:
        read_vectors(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def saved(tmp_path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> Path:
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize("kept", [0, 4, 8, 40, -1])
def test_truncated(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_vectors(path, plain_vectors())
    path.write_bytes(path.read_bytes()[:kept])
    check_refused(path, "no readable safetensors file .*may be truncated")


@pytest.mark.parametrize("content", [b"\x93NUMPY\x01\x00" * 20, b"PK\x03\x04" * 40, b"\xff" * 200, b"{}" * 100])
def test_not_safetensors(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    check_refused(path, "no readable safetensors file")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    check_refused(tmp_path / "none.safetensors", r"cannot be read \(No such file")
    check_refused(tmp_path, "is a folder, not a file")


@pytest.mark.parametrize("key", REQUIRED_KEYS)
def test_missing_metadata(key: str, tmp_path: Path) -> None:
    metadata = plain_vectors().metadata
    del metadata[key]
    check_refused(saved(tmp_path, plain_vectors().tensors, metadata), f"metadata key '{key}' .*missing")


def test_no_metadata(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(plain_vectors().tensors, path)
    check_refused(path, r"metadata key 'format' is missing; allowed: 'dot-vectors/1'")


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("format", "dot-vectors/2", "'format' is 'dot-vectors/2'; allowed: 'dot-vectors/1'"),
        ("kind", "guess", "kind is 'guess'; allowed: hardware, peer, computed"),
        ("arch", "sm_90", "write 'sm_90a'"),
        ("instruction", "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3", "x.safetensors: wgmma"),
        ("instruction", "fma.rn.f32", "x.safetensors: .*fma"),
        ("a_type", "e4m4", "unknown format 'e4m4'; did you mean e4m3"),
        ("a_type", "e5m2", "a_type is e5m2, but wgmma.* has e4m3"),
        ("b_type", "e4m3", "b_type is e4m3, but wgmma.* has e5m2"),
        ("c_type", "f16", "c_type is f16, but wgmma.* has f32"),
        ("d_type", "f16", "d_type is f16, but wgmma.* has f32"),
        ("k", "four", "'k' is 'four'; allowed: a positive integer"),
        ("k", "-4", "'k' is '-4'; allowed: a positive integer"),
        ("k", "0", "metadata key 'k' is '0'; allowed: a positive integer"),
        ("k", "33", "k is 33; allowed with wgmma.*: 1 to 32"),
        ("k", "8", r"tensor 'a' has shape \(3, 4\); allowed is \(3, 8\)"),
    ],
)
def test_metadata_that_is_wrong(key: str, value: str, match: str, tmp_path: Path) -> None:
    check_refused(saved(tmp_path, plain_vectors().tensors, {**plain_vectors().metadata, key: value}), match)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("scale_type", "ue8m0", "scale_type is ue8m0, but mma.sync.* has ue4m3"),
        ("block_size", "32", "block is 32, but mma.sync.* has 16"),
        ("block_size", "x", "'block_size' is 'x'"),
        ("scale_type", None, "'scale_type' missing"),
        ("block_size", None, "'block_size' missing"),
        ("k", "63", "k is 63; allowed with block scales: multiples of 16"),
    ],
)
def test_scale_metadata_that_is_wrong(key: str, value: str | None, match: str, tmp_path: Path) -> None:
    changed = {**scaled_vectors().metadata, key: value}
    check_refused(saved(tmp_path, scaled_vectors().tensors, {k: v for k, v in changed.items() if v is not None}), match)


def test_scaled_instruction_without_scales(tmp_path: Path) -> None:
    metadata = {key: value for key, value in scaled_vectors().metadata.items() if key not in ("scale_type", "block_size")}
    tensors = {name: codes for name, codes in scaled_vectors().tensors.items() if len(name) == 1}
    check_refused(saved(tmp_path, tensors, metadata), "scale_type is none, but mma.sync.* has ue4m3")


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
def test_missing_tensor(name: str, tmp_path: Path) -> None:
    tensors = plain_vectors().tensors
    del tensors[name]
    check_refused(saved(tmp_path, tensors, plain_vectors().metadata), "tensors are [abcd, ]+; allowed: exactly a, b, c, d$")


def test_tensor_too_many(tmp_path: Path) -> None:
    tensors = {**plain_vectors().tensors, "scale_a": np.zeros((3, 1), dtype=np.uint8)}
    check_refused(saved(tmp_path, tensors, plain_vectors().metadata), "tensors are a, b, c, d, scale_a; allowed: exactly a, b, c, d")


@pytest.mark.parametrize(
    ("name", "codes", "match"),
    [
        ("a", np.zeros((3, 4), dtype=np.float32), "tensor 'a' is F32; allowed: U8"),
        ("a", np.zeros((3, 4), dtype=np.int8), "tensor 'a' is I8; allowed: U8"),
        ("a", np.zeros((3, 4), dtype=np.uint16), "tensor 'a' is uint16; e4m3 needs uint8"),
        ("d", np.zeros(3, dtype=np.uint16), "tensor 'd' is uint16; f32 needs uint32"),
        ("b", np.zeros((3, 5), dtype=np.uint8), r"tensor 'b' has shape \(3, 5\); allowed is \(3, 4\)"),
        ("b", np.zeros((2, 4), dtype=np.uint8), r"tensor 'b' has shape \(2, 4\); allowed is \(3, 4\)"),
        ("c", np.zeros(4, dtype=np.uint32), r"tensor 'c' has shape \(4,\); allowed is \(3,\)"),
        ("d", np.zeros((3, 1), dtype=np.uint32), r"tensor 'd' has shape \(3, 1\); allowed is \(3,\)"),
        ("a", np.zeros(12, dtype=np.uint8), r"tensor 'a' has shape \(12,\); allowed is \(12, 4\)"),
        ("a", np.array(1, dtype=np.uint8), r"tensor 'a' has shape \(\)"),
    ],
)
def test_tensor_that_is_wrong(name: str, codes: np.ndarray, match: str, tmp_path: Path) -> None:
    check_refused(saved(tmp_path, {**plain_vectors().tensors, name: codes}, plain_vectors().metadata), match)


def test_code_outside_its_format(tmp_path: Path) -> None:
    tensors = scaled_vectors().tensors
    tensors["b"] = tensors["b"].copy()
    tensors["b"][4, 7] = 0x10
    check_refused(saved(tmp_path, tensors, scaled_vectors().metadata), "tensor 'b' holds 0x10; e2m1 has codes up to 0xf")


def test_no_rows(tmp_path: Path) -> None:
    empty = {name: codes[:0] for name, codes in plain_vectors().tensors.items()}
    check_refused(saved(tmp_path, empty, plain_vectors().metadata), "at least one row")


def test_sparse_instruction_is_refused(tmp_path: Path) -> None:
    sparse = "mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32"
    check_refused(saved(tmp_path, plain_vectors().tensors, {**plain_vectors().metadata, "instruction": sparse}), "not modelled|sparse")


def test_vectors_made_in_memory_are_checked_too() -> None:
    with pytest.raises(OperandError, match="tensor 'a' is int64; e4m3 needs uint8"):
        replace(plain_vectors(), a=np.zeros((3, 4), dtype=np.int64))
    with pytest.raises(OperandError, match="scales are there, but"):
        replace(plain_vectors(), scale_a=np.zeros((3, 1), dtype=np.uint8))
    with pytest.raises(OperandError, match="tensor 'scale_b' is missing"):
        replace(scaled_vectors(), scale_b=None)
