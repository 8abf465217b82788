"""Files broken on purpose, through every command that reads them: status 2, one line, no traceback, nothing that steers a terminal."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import typer
from hostile_files import ESCAPES, File, Pairs, hostile, signed, taken_apart
from hypothesis import HealthCheck, Phase, given, settings

from mmabits.commands import main
from mmabits.conformance.diff import counting
from mmabits.conformance.record.generators import random_bits
from mmabits.conformance.record.tiles import emulate_tiles
from mmabits.conformance.recorded.base import RecordedDots
from mmabits.conformance.recorded.calls import Run, write_run
from mmabits.conformance.recorded.dots import DotVectors, read_vectors, write_vectors
from mmabits.conformance.recorded.reading import read_dots
from mmabits.conformance.recorded.tiles import Recording, read_recording, write_recording
from mmabits.emulator.api import dot_rows, gemm
from mmabits.isa import VectorFileError, parse
from mmabits.reports.stored import open_tensors

COMMANDS = (("replay",), ("identify",), ("diff", "--against"), ("vectors", "score"))
NOTHING = {"replay": "0 rows, 0 differ\n"}
"""What a command still prints where no file could be read."""
LONGEST_S = 30.0
"""For one file: all are small, and nothing in them may make work. Generous, as machines are shared."""
STEERS = re.compile(r"[^\n -~\u00a0-\U0010ffff]|[\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
"""What no output may hold: control characters, and marks that turn or hide text."""

E4M3 = "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3"
NVFP4 = "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n16k64.f32.e2m1.e2m1.ue4m3"
F16 = "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16"
MXFP8 = "mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.block_scale.scale_vec::1X.f32.e4m3.e2m1.f32.ue8m0"


class Result(NamedTuple):
    status: int
    out: str
    err: str


def run(*arguments: object) -> Result:
    """Call the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
        main.main([str(argument) for argument in arguments])
    return Result(int(left.value.code or 0), out.getvalue(), err.getvalue())


def dots(ptx: str, arch: str) -> DotVectors:
    """Three dot products, right ones."""
    row, rng = parse(ptx), np.random.default_rng(1)

    def codes(spec, *shape: int):
        return rng.integers(0, min(spec.codes, 0x40), shape, dtype=np.uint64).astype(f"uint{spec.container_bits}")

    a, b, c = codes(row.a_type, 3, row.k), codes(row.b_type, 3, row.k), codes(row.c_type, 3)
    scales = {name: codes(row.scale_type, 3, row.k // row.block) for name in ("scale_a", "scale_b")} if row.scale_type else {}
    return DotVectors(
        instruction=ptx, arch=arch, a_type=row.a_type, b_type=row.b_type, c_type=row.c_type, d_type=row.d_type, k=row.k, a=a, b=b, c=c,
        d=dot_rows(row, arch, a, b, c, **scales), scale_type=row.scale_type, block=row.block, kind="computed", gpu="none", note="a note",
        source="here", license="none", **scales,
    )  # fmt: skip


def tiles(ptx: str, arch: str) -> Recording:
    """Two tiles."""
    row = parse(ptx)
    operands = random_bits(row, arch, 2, 3)
    return Recording(
        instruction=row, arch=arch, kind="emulator", gpu="none", chain=1, operands=operands, d=emulate_tiles(row, arch, operands),
        manifest={"seed": 3, "generator": "random-bits"},
    )  # fmt: skip


def product() -> Run:
    """A run of `mmabits diff`."""
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((8, 32)).astype(np.float16), rng.standard_normal((32, 8)).astype(np.float16)
    result = gemm(a, b, instruction="mma.sync", arch="sm_80")
    return Run(case="own", arch="sm_80", call="a @ b", kind="emulator", gpu="none", a=a, b=b, result=result, versions={"numpy": "2"})


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, File]:
    """One file of each kind, taken apart; each is valid as it is."""
    folder = tmp_path_factory.mktemp("valid")
    for name, ptx, arch in (("dots", E4M3, "sm_90a"), ("scaled-dots", NVFP4, "sm_100a")):
        write_vectors(folder / f"{name}.safetensors", dots(ptx, arch))
    for name, ptx, arch in (("tiles", F16, "sm_80"), ("scaled-tiles", MXFP8, "sm_120a")):
        write_recording(folder / f"{name}.safetensors", tiles(ptx, arch))
    write_run(folder / "run.safetensors", product())
    return {path.stem: taken_apart(path) for path in folder.glob("*.safetensors")}


COMMAND = typer.main.get_command(main.app)
"""The command line, built once: that takes longer than most files do."""


@pytest.fixture(autouse=True)
def mistakes_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMABITS_TRACEBACK", "1")
    monkeypatch.setattr(main, "app", COMMAND)


def check_output(result: Result) -> None:
    for text in (result.out, result.err):
        assert not STEERS.search(text), ascii(text)
        assert "Traceback" not in text
        assert all(len(line) < 4000 for line in text.split("\n"))


def check_refused(command: str, result: Result) -> None:
    assert result.status == 2 and result.out in ("", NOTHING.get(command)), result
    assert re.fullmatch(r"error: [^\n]*\n", result.err), result


def tried(file: File, folder: Path, counts: Counter[str]) -> None:
    """Every command on one file; where one takes it, it is asked for a page and for JSON too."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / "file.safetensors"
    file.put(path)
    is_valid = False
    for command in COMMANDS:
        start = time.monotonic()
        result = run(*command, path)
        took = time.monotonic() - start
        check_output(result)
        assert took < LONGEST_S, (command, took)
        if result.status == 2:
            check_refused(command[0], result)
            continue
        is_valid = True
        for option in ("--json", "--report"):
            again = run(*command, path, option, *([folder / "page.html"] if option == "--report" else []))
            check_output(again)
            assert again.status == result.status
        assert not STEERS.search((folder / "page.html").read_text(encoding="utf-8").replace("\t", ""))
        break  # the other commands read it the same way, and have work to do
    counts["valid" if is_valid else "refused"] += 1
    counts.update(f"{name} ({'valid' if is_valid else 'refused'})" for name in file.story)


def refused(valid: dict[str, File], folder: Path, examples: int) -> Counter[str]:
    """Try so many files; the same ones each time."""
    counts: Counter[str] = Counter()

    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )  # fmt: skip
    @given(hostile(tuple(valid.values())))
    def each(file: File) -> None:
        tried(file, folder, counts)

    each()
    return counts


def test_the_files_are_valid_before_they_are_broken(valid: dict[str, File], tmp_path: Path) -> None:
    """Else everything below would be refused, whatever it is."""
    for name, file in valid.items():
        file.put(tmp_path / f"{name}.safetensors")
        signed_again = signed(file) if name == "run" else file
        assert signed_again.contents == (tmp_path / f"{name}.safetensors").read_bytes()
    for name in ("dots", "scaled-dots", "tiles", "scaled-tiles"):
        assert run("replay", tmp_path / f"{name}.safetensors").status == 0, name
    assert run("diff", "--against", tmp_path / "run.safetensors").status == 0
    for command in COMMANDS:
        assert run(*command, tmp_path / "dots.safetensors").status == 0, command


def test_hostile_files(valid: dict[str, File], tmp_path: Path) -> None:
    counts = refused(valid, tmp_path / "hostile", 120)
    assert counts["refused"] >= 90, counts


@pytest.mark.slow
def test_a_thousand_hostile_files(valid: dict[str, File], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = refused(valid, tmp_path / "hostile", 1300)
    with capsys.disabled():
        print(
            f"\n{counts['refused']} hostile files refused by every command; {counts['valid']} stayed valid. {dict(sorted(counts.items()))}"
        )
    assert counts["refused"] >= 1000, counts


# The kinds by hand --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manifest", [b"9" * 5000, b"[" * 100_000, b'{"a":' * 100_000, b"NaN", b"\xff", b'{"a": 1, "a": 2}'], ids=ascii)
def test_one_bad_manifest_does_not_end_the_replay_of_a_folder(valid: dict[str, File], tmp_path: Path, manifest: bytes) -> None:
    """More digits than Python reads, brackets beyond its stack, and other JSON that is none; inside the file and beside it."""
    inside = replace(valid["tiles"], damage=bytes).said("manifest", manifest.decode("utf-8", "replace"))
    for name, file in (("a", inside), ("b", replace(valid["tiles"], manifest=manifest)), ("c", valid["tiles"]), ("d", valid["dots"])):
        file.put(tmp_path / f"{name}.safetensors")
    result = run("replay", tmp_path)
    check_output(result)
    assert result.status == 2
    assert result.out.splitlines()[-1] == f"{2 * 16 * 8 + 3} rows, 0 differ"
    lines = result.err.splitlines()
    assert len(lines) == 2 and re.search(r"a\.safetensors: metadata key 'manifest' is no JSON", lines[0])
    assert re.search(r"b\.safetensors: its manifest b\.safetensors\.json is no JSON", lines[1])


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        (lambda file: replace(file, header=Pairs([*file.header, file.header[0]])), "no readable safetensors file"),
        (lambda file: replace(file, header=Pairs([*file.header, file.header[1]])), "its header is no JSON .a key stands there twice"),
        (lambda file: file.of_tensor("a", "dtype", "F8_E4M3"), "tensor 'a' is F8_E4M3; allowed: U8, U16, U32, U64"),
        (lambda file: file.of_tensor("a", "dtype", "BOOL"), "tensor 'a' is BOOL; allowed"),
        (lambda file: file.of_tensor("c", "shape", [0, 2**60]).of_tensor("c", "data_offsets", [0, 0]), "no readable|no array has"),
        (lambda file: file.of_tensor("c", "shape", [*[1] * 100, 3]), "tensor 'c' has shape .*, which no array has"),
        (lambda file: file.of_tensor("c", "shape", [2**60]), "no readable safetensors file"),
        (lambda file: file.of_tensor("c", "shape", [2**32, 2**32]), "no readable safetensors file"),
        (lambda file: replace(file, length=2**60), "no readable safetensors file"),
    ],
    ids=["metadata twice", "tensor twice", "F8", "BOOL", "zero by 2^60", "101 axes", "2^60", "2^64", "2^60 of header"],
)  # fmt: skip
def test_headers_that_say_too_much(valid: dict[str, File], tmp_path: Path, broken: Callable[[File], File], match: str) -> None:
    broken(valid["dots"]).put(tmp_path / "x.safetensors")
    for command in COMMANDS:
        result = run(*command, tmp_path / "x.safetensors")
        check_refused(command[0], result)
        assert re.search(match, result.err), result.err


def test_a_tensor_of_nothing_by_far_too_much(tmp_path: Path) -> None:
    """safetensors takes it; NumPy has no such array."""
    header = b'{"a":{"dtype":"U8","shape":[0,1152921504606846976],"data_offsets":[0,0]}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with (
        pytest.raises(VectorFileError, match=r"tensor 'a' has shape \(0, 1152921504606846976\), which no array has"),
        open_tensors(path) as file,
    ):
        file.tensor("a")


@pytest.mark.parametrize("place", ["folder", "pipe", "broken link", "loop", "device"])
def test_what_is_no_file_is_refused_and_never_waited_for(valid: dict[str, File], tmp_path: Path, place: str) -> None:
    path = tmp_path / "x.safetensors"
    replace(valid["dots"], place=place).put(path)
    for command in COMMANDS:
        result = run(*command, path)
        check_output(result)
        check_refused(command[0], result)
    valid["dots"].put(tmp_path / "y.safetensors")
    result = run("replay", tmp_path)  # in a folder only another folder is passed over
    assert result.status == (0 if place == "folder" else 2)
    assert result.out.splitlines()[-1] == "3 rows, 0 differ"


def test_a_manifest_that_is_a_pipe_is_not_waited_for(valid: dict[str, File], tmp_path: Path) -> None:
    valid["tiles"].put(tmp_path / "x.safetensors")
    os.mkfifo(tmp_path / "x.safetensors.json")
    result = run("replay", tmp_path / "x.safetensors")
    assert (result.status, result.err) == (2, f"error: {tmp_path}/x.safetensors: is no regular file\n")


def test_a_file_larger_than_memory_is_refused_before_it_is_read(valid: dict[str, File], tmp_path: Path) -> None:
    """1 EiB that takes no room on the disk, where the file system has such; and a header that only claims it."""
    path = tmp_path / "x.safetensors"
    valid["dots"].put(path)
    try:
        os.truncate(path, 1 << 43)
    except OSError:
        pytest.skip("this file system has no files of 8 TiB")
    result = run("replay", path)
    assert result.status == 2
    assert re.fullmatch(r"error: .*x\.safetensors: reading it takes 8,192.0 GiB of memory, and .* can be had\n", result.err), result.err


@pytest.mark.parametrize("text", ESCAPES, ids=ascii)
def test_texts_of_a_valid_file_are_shown_with_what_steers_spelled_out(text: str, tmp_path: Path) -> None:
    """In tables, lines, pages and JSON, with a difference to explain."""
    right = dots(E4M3, "sm_90a")
    wrong = replace(right, d=right.d ^ np.uint32(1), gpu=f"H100{text}!", note=text, source=f"<b>{text}", license=text, extra={text: text})
    path = tmp_path / f"name{text.replace('/', '').replace(chr(0), '')}.safetensors"
    write_vectors(path, wrong)
    assert read_vectors(path).gpu == wrong.gpu, "the data keep what is only shown otherwise"
    page = tmp_path / "page.html"
    for command in COMMANDS:
        for options in ((), ("--json",), ("--report", page)):
            result = run(*command, path, *options)
            check_output(result)
            assert result.status in (0, 1), result
            if command[0] in ("replay", "diff") and not options:
                shown = text.encode("unicode_escape").decode()
                assert f"H100{shown}!" in result.out, result.out
        assert not STEERS.search(page.read_text(encoding="utf-8").replace("\t", ""))


def test_a_file_of_bytes_that_are_no_text_is_named(valid: dict[str, File], tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.safetensors"))
    valid["dots"].put(path)
    result = run("replay", path)
    check_output(result)
    assert result.status == 0 and r"\udcff" in result.out
    assert json.loads(run("replay", path, "--json").out)["files"][0]["path"] == os.fspath(path)


def test_a_mistake_in_one_file_does_not_end_the_replay(valid: dict[str, File], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw is told as what it is; with MMABITS_TRACEBACK it is raised."""
    for name in ("a", "b"):
        valid["dots"].put(tmp_path / f"{name}.safetensors")
    real = counting.read_recorded_dots

    def broken(path: Path) -> RecordedDots:
        return 1 // 0 if path.stem == "a" else real(path)  # type: ignore[return-value]

    monkeypatch.setattr(counting, "read_recorded_dots", broken)
    with pytest.raises(ZeroDivisionError):
        main.main(["replay", str(tmp_path)])
    monkeypatch.delenv("MMABITS_TRACEBACK")
    result = run("replay", tmp_path)
    assert result.status == 2 and result.out.splitlines()[-1] == "3 rows, 0 differ"
    assert re.fullmatch(r"error: .*a\.safetensors: internal error, ZeroDivisionError: .*MMABITS_TRACEBACK=1 shows where\)\n", result.err)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", -1, "'seed' is -1; allowed: an integer from 0 on"),
        ("seed", True, "'seed' is True; allowed"),
        ("versions", ["x"], r"'versions' is \['x'\]; allowed: texts by name"),
        ("versions", {"numpy": 2}, "'versions' is .*; allowed"),
        ("instruction", ["x"], "'instruction' is .*; allowed: a text or null"),
        ("fast_accum", "yes", "'fast_accum' is 'yes'; allowed: true, false or null"),
        ("gpu", 3, "the manifest has no text 'gpu'"),
    ],
)
def test_a_run_with_another_kind_of_value_is_refused(valid: dict[str, File], tmp_path: Path, key: str, value: object, message: str) -> None:
    manifest = json.loads(dict(valid["run"].metadata)["manifest"]) | {key: value}
    signed(valid["run"].said("manifest", json.dumps(manifest))).put(tmp_path / "x.safetensors")
    result = run("diff", "--against", tmp_path / "x.safetensors")
    check_refused("diff", result)
    assert re.search(message, result.err), result.err


# Spellings ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "ptx", "arch", "short"),
    [
        ("dots", "tcgen05.mma.cta_group::1.kind::f8f6f4.m128n256k32.f32.e4m3.e5m2", "sm_100a", "tcgen05.mma.cta_group::1.kind::f8f6f4"),
        ("dots", NVFP4.replace("n16", "n256"), "sm_100a", "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.scale_vec::4X"),
        ("tiles", NVFP4, "sm_100a", "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.scale_vec::4X"),
        ("tiles", "tcgen05.mma.cta_group::1.kind::f16.m64n8k16.f32.f16.f16", "sm_103a", "tcgen05.mma.cta_group::1.kind::f16"),
    ],
)
def test_a_recording_may_spell_its_instruction_as_ptx_does(tmp_path: Path, kind: str, ptx: str, arch: str, short: str) -> None:
    path = tmp_path / "x.safetensors"
    if kind == "dots":
        write_vectors(path, dots(ptx, arch))
    else:
        write_recording(path, tiles(ptx, arch))
        path.with_name("x.safetensors.json").unlink()
    file = taken_apart(path)
    gpu = {"sm_100a": "NVIDIA B200", "sm_103a": "b300"}[arch]
    file.said("instruction", short).said("arch", gpu).put(path)
    read = read_vectors(path).instruction if kind == "dots" else str(read_recording(path).instruction)
    assert read == ptx
    assert read_dots(path).arch == arch
    assert run("replay", path).status == 0
    file.said("instruction", short).said("a_type", "s4").put(path)
    check_refused("replay", run("replay", path))


def test_types_may_be_named_as_dtypes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_vectors(path, dots(NVFP4, "sm_100a"))
    file = taken_apart(path).said("a_type", "float4_e2m1fn").said("c_type", "float32").said("scale_type", "float8_e4m3fn")
    file.put(path)
    found = read_vectors(path)
    assert (found.a_type.name, found.c_type.name, found.scale_type and found.scale_type.name) == ("e2m1", "f32", "ue4m3")
    assert found.metadata["scale_type"] == "ue4m3"


def test_a_name_that_no_line_can_show_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dots.safetensors"
    write_vectors(path, replace(dots(E4M3, "sm_90a"), gpu="H" * 1000))
    assert run("replay", path).status == 0
    write_vectors(tmp_path / "long.safetensors", replace(dots(E4M3, "sm_90a"), gpu="H" * 1001))
    for command in (("replay",), ("identify",), ("diff", "--against")):
        check_refused(command[0], run(*command, tmp_path / "long.safetensors"))
