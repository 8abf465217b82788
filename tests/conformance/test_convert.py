"""Vector files made of arrays: .npz, .csv and raw files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from typer.testing import CliRunner

import mmabits
from mmabits.commands.main import app
from mmabits.conformance.recorded.converted import convert
from mmabits.conformance.recorded.dots import DotVectors, read_vectors
from mmabits.conformance.recorded.tiles import Recording
from mmabits.isa import VectorFileError

RNG = np.random.default_rng(3)
PTX = "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32"
HEAD = f'instruction = "{PTX}"\narch = "l40s"\nkind = "hardware"\ngpu = "NVIDIA L40S"\nsource = "ours"\n'
A, B = (RNG.standard_normal((4, 32)).astype(ml_dtypes.float8_e4m3fn) for _ in range(2))
C = RNG.standard_normal(4).astype(np.float32)
D = np.array(
    [mmabits.gemm(a[None], b[:, None], c[None, None], instruction=PTX, arch="sm_89")[0, 0] for a, b, c in zip(A, B, C, strict=True)]
)


def described(folder: Path, text: str) -> Path:
    (folder / "run.toml").write_text(text)
    return folder / "run.toml"


def check(found: DotVectors | Recording) -> None:
    assert isinstance(found, DotVectors)
    assert (found.arch, found.gpu, found.source) == ("sm_89", "NVIDIA L40S", "ours")
    assert np.array_equal(found.a, A.view(np.uint8))
    assert np.array_equal(found.d, D.view(np.uint32))
    assert all((codes[:, 0] == found.d).all() for codes in found.batches("sm_89"))


def test_npz_raw_and_csv_give_the_same(tmp_path: Path) -> None:
    np.savez(tmp_path / "run.npz", a=A.view(np.uint8), b=B.view(np.uint8), c=C, other=D)
    check(convert(described(tmp_path, HEAD + 'data = "run.npz"\n[tensors]\nd = "other"\n')))
    np.savez(tmp_path / "typed.npz", a=A, b=B, c=C, d=D)  # NumPy writes raw bytes for the types of ml_dtypes
    check(convert(described(tmp_path, HEAD + 'data = "typed.npz"\n')))
    for name, array in (("a", A), ("b", B)):
        (tmp_path / f"{name}.bin").write_bytes(array.tobytes())
    (tmp_path / "cd.bin").write_bytes(C.astype(">f4").tobytes() + D.astype(">f4").tobytes())
    raw = "".join(f'{name} = {{ file = "{name}.bin", dtype = "float8_e4m3fn", shape = [4, 32] }}\n' for name in "ab")
    raw += 'c = { file = "cd.bin", dtype = ">u4", shape = [4], offset = 0 }\n'
    raw += 'd = { file = "cd.bin", dtype = ">f4", shape = [4], offset = 16 }\n'
    with pytest.raises(VectorFileError, match="32 bytes"):  # without an offset a file holds one tensor
        convert(described(tmp_path, HEAD + "[tensors]\n" + raw))
    (tmp_path / "c.bin").write_bytes(C.astype(">f4").tobytes())
    check(convert(described(tmp_path, HEAD + "[tensors]\n" + raw.replace('c = { file = "cd.bin"', 'c = { file = "c.bin"'))))
    headings = ",".join([*(f"a{i}" for i in range(32)), *(f"b{i}" for i in range(32)), "c", "d"])
    codes = [[*a.view(np.uint8), *b.view(np.uint8), c.view(np.uint32), d.view(np.uint32)] for a, b, c, d in zip(A, B, C, D, strict=True)]
    (tmp_path / "codes.csv").write_text("\n".join([headings, *(",".join(hex(int(cell)) for cell in row) for row in codes)]))
    check(convert(described(tmp_path, HEAD + 'data = "codes.csv"\n')))
    values = [[*map(float, (*a, *b)), float(c), float(d)] for a, b, c, d in zip(A, B, C, D, strict=True)]
    (tmp_path / "values.csv").write_text("\n".join([headings, *(",".join(map(repr, row)) for row in values)]) + "\n\n")
    check(convert(described(tmp_path, HEAD + 'data = "values.csv"\nvalues = true\n')))


def test_tiles_and_missing_accumulators(tmp_path: Path) -> None:
    row = mmabits.instruction(PTX)
    a = RNG.standard_normal((3, row.m, 2 * row.k)).astype(ml_dtypes.float8_e4m3fn)
    b = RNG.standard_normal((3, 2 * row.k, row.n)).astype(ml_dtypes.float8_e4m3fn)
    d = mmabits.gemm(a, b, instruction=row, arch="sm_89")
    np.savez(tmp_path / "run.npz", a=a, b=b, d=d)
    found = convert(described(tmp_path, HEAD + 'data = "run.npz"\nchain = 2\n'))
    assert isinstance(found, Recording)
    assert all(np.array_equal(codes.reshape(d.shape), d.view(np.uint32)) for codes in found.batches("sm_89"))
    np.savez(tmp_path / "dots.npz", a=A, b=B, d=D)
    zeros = convert(described(tmp_path, HEAD + 'data = "dots.npz"\n'))
    assert isinstance(zeros, DotVectors)
    assert not zeros.c.any()


def test_the_command_writes_what_replay_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "run.npz", a=A, b=B, c=C, d=D)
    described(tmp_path, HEAD + 'data = "run.npz"\n')
    done = CliRunner().invoke(app, ["vectors", "convert", "run.toml", "-o", "run.safetensors"])
    assert done.exit_code == 0, done.output
    assert "4 dot products" in done.output
    check(read_vectors("run.safetensors"))
    replayed = CliRunner().invoke(app, ["replay", "run.safetensors"])
    assert replayed.exit_code == 0
    assert "4" in replayed.output


SCALED = "mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.block_scale.scale_vec::1X.f32.e4m3.e4m3.f32.ue8m0"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD.replace("arch", "arc"), "unknown key 'arc'"),
        (HEAD.replace('gpu = "NVIDIA L40S"', ""), "key 'gpu' is missing"),
        (HEAD.replace("e4m3.e4m3.f32", "e4m9.e4m3.f32"), "e4m9"),
        (HEAD + "chain = 0\n", "chain must be"),
        (HEAD + "values = 1\n", "values must be"),
        (HEAD + 'data = "none.npz"\n', "none.npz"),
        (HEAD + 'data = "run.npz"\n[tensors]\ne = "e"\n', "no tensor 'e'"),
        (HEAD + 'data = "run.npz"\n[tensors]\nd = "x"\n', "no such tensor"),
        (HEAD + 'data = "run.npz"\nchain = 2\n', "a chain is recorded as tiles"),
        (HEAD + 'data = "half.npz"\n', "float16"),
        (HEAD + 'data = "run.csv"\n', "heading 'x'"),
        (HEAD + 'data = "run.npz"\nvalues = true\n[tensors]\nc = "third"\n', "is no f32"),
        (HEAD.replace(PTX, SCALED).replace("l40s", "sm_120a") + 'data = "run.npz"\n', "no such tensor|missing"),
        (HEAD + '[tensors]\na = { file = "a.bin", dtype = "u9", shape = [4, 32] }\n', "dtype of tensor 'a'"),
        (HEAD + '[tensors]\na = { file = "a.bin", dtype = "u1" }\n', "takes file, dtype and shape"),
        ("= 3", "as TOML"),
    ],
)
def test_what_does_not_fit_is_one_error(tmp_path: Path, text: str, said: str) -> None:
    np.savez(tmp_path / "run.npz", a=A, b=B, c=C, d=D, third=np.full(4, 1 / 3))
    np.savez(tmp_path / "half.npz", a=A.astype(np.float16), b=B, d=D)
    (tmp_path / "run.csv").write_text("x,d\n1,2\n")
    (tmp_path / "a.bin").write_bytes(bytes(128))
    with pytest.raises(VectorFileError, match=said) as told:
        convert(described(tmp_path, text))
    assert "\n" not in str(told.value)


def test_replay_without_recordings_shows_the_pack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mmabits.conformance.recorded import reading

    monkeypatch.setattr(reading, "recordings_folder", lambda: None)
    monkeypatch.setattr("mmabits.conformance.probes.pack.FOLDER", tmp_path)
    pack = Path(mmabits.__file__).parent / "conformance" / "probes" / "pack"
    first: Any = sorted(pack.glob("sm_90a*wgmma*"))[0]
    (tmp_path / first.name).write_bytes(first.read_bytes())
    done = CliRunner().invoke(app, ["replay"])
    assert done.exit_code == 0
    assert "proves nothing about hardware" in done.output
    assert ", 0 differ" in done.output
