"""Files of every format: one reader that goes by what the file says, one way of writing, one kind of comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from mmabits.conformance.diff.against import compare_file
from mmabits.conformance.diff.comparison import Comparison
from mmabits.conformance.record.generators import normal_values
from mmabits.conformance.record.tiles import emulate_tiles
from mmabits.conformance.recorded.base import Provenance, Recorded
from mmabits.conformance.recorded.calls import KernelRun, Run, write_run
from mmabits.conformance.recorded.dots import DotVectors, dots_of, write_vectors
from mmabits.conformance.recorded.files import NotWritten, write_new
from mmabits.conformance.recorded.reading import read_dots, read_recorded, read_recorded_dots
from mmabits.conformance.recorded.tiles import Recording, write_recording
from mmabits.isa import OperandError, VectorFileError, parse
from mmabits.reports.pages.report import Report, report_page
from mmabits.reports.written import tensor_bytes, written_whole

PTX = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"


def tiles() -> Recording:
    row = parse(PTX)
    operands = normal_values(row, "sm_80", 2, 3)
    return Recording(
        instruction=row, arch="sm_80", kind="emulator", gpu="G", chain=1, operands=operands, d=emulate_tiles(row, "sm_80", operands)
    )  # fmt: skip


def product() -> Run:
    a, b = np.eye(16, dtype=np.float16), np.ones((16, 8), np.float16)
    return Run(case="p", arch="sm_80", call="a test", kind="hardware", gpu="G", a=a, b=b, result=np.ones((16, 8), np.float32))


def kernel() -> KernelRun:
    out = {"out": np.zeros((40, 72), np.float32)}
    return KernelRun(case="triton-matmul-f16", arch="sm_80", call="c", kind="hardware", gpu="G", inputs={}, outputs=out)


def written(folder: Path) -> dict[str, Path]:
    """A file of each format by its name."""
    paths = {name: folder / f"{name.replace('/', '-')}.safetensors" for name in ("dot-vectors/1", "tile-vectors/1", "gemm-run/1")}
    write_vectors(paths["dot-vectors/1"], dots_of(tiles(), [[0, 1], [17, 3]]))
    write_recording(paths["tile-vectors/1"], tiles())
    write_run(paths["gemm-run/1"], product())
    return paths


def test_each_format_is_read_by_what_the_file_says(tmp_path: Path) -> None:
    for name, path in written(tmp_path).items():
        found = read_recorded(path)
        assert isinstance(found, Recorded) and name == found.FORMAT and found.arch == "sm_80" and found.gpu == "G"
        assert found.is_hardware == (name == "gemm-run/1")


def test_a_kernels_call_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "kernel.safetensors"
    write_run(path, kernel())
    found = read_recorded(path)
    assert isinstance(found, KernelRun) and found.manifest == kernel().manifest and set(found.arrays) == {"out.out"}


def test_where_dot_products_are_wanted_a_run_is_none(tmp_path: Path) -> None:
    paths = written(tmp_path)
    with pytest.raises(VectorFileError, match=r"gemm-run-1\.safetensors: metadata key 'format' is 'gemm-run/1'; allowed: 'dot-vectors/1'"):
        read_recorded_dots(paths["gemm-run/1"])
    assert isinstance(read_recorded_dots(paths["tile-vectors/1"]), Recording)
    assert read_dots(paths["tile-vectors/1"]).rows == 2 * 16 * 8


def test_a_file_of_no_format_is_told_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(tensor_bytes({"a": np.zeros(1, np.uint8)}, {}))
    for read in (read_recorded, read_recorded_dots, read_dots):
        with pytest.raises(VectorFileError, match=r"x\.safetensors: metadata key 'format' is missing; allowed: 'dot-vectors/1'"):
            read(path)


@pytest.mark.parametrize(("make", "kind"), [(tiles, "peer"), (product, "computed"), (kernel, "peer")])
def test_each_format_has_its_kinds(make: Callable[[], Recorded], kind: str) -> None:
    from dataclasses import replace

    with pytest.raises(OperandError, match=f"kind is '{kind}'; allowed: hardware, emulator"):
        replace(make(), kind=kind)  # type: ignore[type-var]
    with pytest.raises(OperandError, match="kind is 'emulator'; allowed: hardware, peer, computed"):
        replace(dots_of(tiles(), [[0, 0]]), kind="emulator")


def test_a_kind_is_kept_as_text() -> None:
    found = dots_of(tiles(), [[0, 0]])
    assert isinstance(found, DotVectors) and found.kind == Provenance.PEER and repr(found.kind) == "'peer'"


def test_every_comparison_is_told_in_three_ways(tmp_path: Path) -> None:
    for path in written(tmp_path).values():
        found = compare_file(path)
        assert isinstance(found, Comparison) and found.is_equal and found.verdict == "every bit equal"
        assert any("0 differ" in line for line in found.lines())
        assert json.loads(json.dumps(found.as_json, allow_nan=False))["differing"] == 0
        assert "every bit equal" in report_page(
            Report(title="x", lead=found.told.lead, verdict=found.verdict, sections=tuple(found.sections()))
        )  # fmt: skip


# Writing -------------------------------------------------------------------------------------------------------------------


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError), written_whole(path) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with written_whole(path) as unfinished:
        unfinished.write_text("after")
        assert path.read_text() == "before" and unfinished.parent == tmp_path
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


def test_a_name_that_is_taken_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(FileExistsError), written_whole(path, replaces=False) as unfinished:
        unfinished.write_text("after")
    with pytest.raises(VectorFileError, match="is there already; a finished recording never changes"):
        write_new(path, b"after")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_run_left_goes(tmp_path: Path) -> None:
    (tmp_path / ".a.bin.0123.tmp").write_bytes(b"half")
    write_new(tmp_path / "a.bin", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    with pytest.raises(NotWritten, match="cannot be written"):
        write_new(tmp_path / "none" / "a.bin", b"whole")


def test_the_bytes_are_those_that_the_library_reads() -> None:
    columns = np.asfortranarray(np.eye(3, dtype=np.uint64))
    arrays = {"b": np.arange(6, dtype=np.uint16).reshape(2, 3), "a": np.arange(3, dtype=np.uint8), "c": columns}
    data = tensor_bytes(arrays, {"z": "1", "a": "\u00e9"})
    assert data == tensor_bytes(dict(reversed(arrays.items())), {"a": "\u00e9", "z": "1"})
    found = load(data)
    assert set(found) == set(arrays) and all(np.array_equal(found[name], array) for name, array in arrays.items())
