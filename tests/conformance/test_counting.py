"""Rows are counted, differences are found and described. Expected results are sums that every unit forms exactly."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmabits.conformance.diff.counting import (
    count,
    count_files,
    describe_code,
    described_lines,
    exit_status,
    fields,
    reports_json,
    summary,
)
from mmabits.conformance.recorded.dots import DotVectors, write_vectors
from mmabits.conformance.recorded.reading import FOLDER_VARIABLE, find_files, recordings_folder
from mmabits.isa import Evidence, UnsupportedInstruction, VectorFileError, format_spec

ONE_F16, ONE_E4M3, ONE_E2M1 = 0x3C00, 0x38, 0x2
F32 = {1.0: 0x3F800000, 7.0: 0x40E00000, 8.0: 0x41000000, 16.0: 0x41800000, 17.0: 0x41880000, 64.0: 0x42800000, 128.0: 0x43000000}


def wgmma() -> DotVectors:
    """Rows 1 * 1 + 2 * 2 + 0.5 * 2 + 1, in four copies."""
    return DotVectors(
        instruction="wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3", arch="sm_90a",
        a_type=format_spec("e4m3"), b_type=format_spec("e4m3"), c_type=format_spec("f32"), d_type=format_spec("f32"), k=3,
        a=np.array([[0x38, 0x40, 0x30]] * 4, dtype=np.uint8), b=np.array([[0x38, 0x40, 0x40]] * 4, dtype=np.uint8),
        c=np.full(4, F32[1.0], dtype=np.uint32), d=np.full(4, F32[7.0], dtype=np.uint32), gpu="NVIDIA H100",
    )  # fmt: skip


def hmma() -> DotVectors:
    """Sixteen ones and C = 1 on sm_80: two steps of eight."""
    ones = np.full((2, 16), ONE_F16, dtype=np.uint16)
    return DotVectors(
        instruction="mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", arch="sm_80",
        a_type=format_spec("f16"), b_type=format_spec("f16"), c_type=format_spec("f32"), d_type=format_spec("f32"), k=16,
        a=ones, b=ones, c=np.full(2, F32[1.0], dtype=np.uint32), d=np.full(2, F32[17.0], dtype=np.uint32), kind="peer", gpu="a model",
    )  # fmt: skip


def split() -> DotVectors:
    """Thirty-two ones and C = 1 where the compiler makes two HMMA and an add: 33 in f16."""
    ones = np.full((1, 32), ONE_E4M3, dtype=np.uint8)
    return DotVectors(
        instruction="mma.sync.aligned.m16n8k32.row.col.f16.e4m3.e4m3.f16", arch="sm_90a",
        a_type=format_spec("e4m3"), b_type=format_spec("e4m3"), c_type=format_spec("f16"), d_type=format_spec("f16"), k=32,
        a=ones, b=ones, c=np.array([ONE_F16], dtype=np.uint16), d=np.array([0x5020], dtype=np.uint16),
    )  # fmt: skip


def scaled() -> DotVectors:
    """Sixty-four ones, scales 2 (of A) and 1 (of B): 128."""
    ones = np.full((1, 64), ONE_E2M1, dtype=np.uint8)
    return DotVectors(
        instruction="mma.sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0", arch="sm_120a",
        a_type=format_spec("e2m1"), b_type=format_spec("e2m1"), c_type=format_spec("f32"), d_type=format_spec("f32"), k=64,
        scale_type=format_spec("ue8m0"), block=32, a=ones, b=ones, c=np.zeros(1, dtype=np.uint32),
        d=np.array([F32[128.0]], dtype=np.uint32), scale_a=np.full((1, 2), 128, dtype=np.uint8),
        scale_b=np.full((1, 2), 127, dtype=np.uint8),
    )  # fmt: skip


def changed(vectors: DotVectors, *rows: int, flip: int = 1) -> DotVectors:
    """With a bit of some results flipped."""
    results = vectors.d.copy()
    results[list(rows)] ^= results.dtype.type(flip)
    return replace(vectors, d=results)


@pytest.mark.parametrize("make", [wgmma, hmma, split, scaled])
def test_rows_that_agree(make) -> None:
    report = count(make(), path="x")
    assert (report.rows, report.differing, report.differences) == (len(make().a), 0, ())
    assert (report.error, report.gpu, report.arch) == (None, make().gpu, make().arch)


def test_evidence_is_that_of_the_lowering() -> None:
    assert count(hmma()).evidence is Evidence.RECORDED
    assert count(wgmma()).evidence is Evidence.PUBLISHED


def test_differing_rows_are_counted_and_the_first_described() -> None:
    report = count(changed(wgmma(), 1, 2, 3), limit=2)
    assert report.differing == 3
    assert [difference.row for difference in report.differences] == [1, 2]
    first = report.differences[0]
    assert (first.recorded, first.computed, first.c) == (F32[7.0] ^ 1, F32[7.0], F32[1.0])
    assert (first.a, first.b) == ((0x38, 0x40, 0x30), (0x38, 0x40, 0x40))
    assert (first.scale_a, first.scale_b) == (None, None)
    assert count(changed(wgmma(), 1), limit=0).differences == ()


def test_the_sign_of_zero_and_the_payload_of_nan_count() -> None:
    zero = replace(wgmma(), a=np.zeros((4, 3), dtype=np.uint8), c=np.zeros(4, dtype=np.uint32), d=np.full(4, 0x80000000, dtype=np.uint32))
    assert count(zero).differing == 4
    nan = replace(wgmma(), a=np.full((4, 3), 0x7F, dtype=np.uint8), d=np.full(4, 0x7FC00000, dtype=np.uint32))
    assert count(nan).differing == 4
    assert count(replace(nan, d=np.full(4, 0x7FFFFFFF, dtype=np.uint32))).differing == 0


def test_accumulator_after_each_step() -> None:
    (difference,) = count(changed(hmma(), 1)).differences
    assert [step.elements for step in difference.steps] == [tuple(range(8)), tuple(range(8, 16))]
    assert [step.accumulator for step in difference.steps] == [0x41100000, F32[17.0]]  # 9 and 17
    assert (difference.parts_by, difference.separate_add) == (2, False)


def test_steps_of_a_split_instruction_start_from_zero_and_take_pairs() -> None:
    (difference,) = count(changed(split(), 0)).differences
    assert difference.steps[0].elements == tuple(k for k in range(32) if k % 4 < 2)
    assert difference.steps[1].elements == tuple(k for k in range(32) if k % 4 >= 2)
    assert [step.accumulator for step in difference.steps] == [0x4C00, 0x5000]  # 16 and 32
    assert difference.separate_add


def test_steps_name_the_largest_term_and_stop_mattering_where_the_accumulator_stays() -> None:
    vectors = hmma()
    a = vectors.a.copy()
    a[0, 3], a[0, 8:] = 0xC400, 0  # -4, and a second step of zeros
    d = np.array([0x40800000, F32[17.0]], dtype=np.uint32)  # 1 + 7 - 4 = 4
    assert count(replace(vectors, a=a, d=d)).differing == 0
    (difference,) = count(changed(replace(vectors, a=a, d=d), 0)).differences
    assert difference.steps[0].largest == 3
    assert difference.parts_by == 1


def test_tracing_blanks_both_operands() -> None:
    """A zero in A against an infinity in B, left in a later step, would make the earlier accumulators NaN."""
    vectors = hmma()
    b = vectors.b.copy()
    b[0, 12] = 0x7C00
    (difference,) = count(replace(vectors, b=b), limit=1).differences
    assert [step.accumulator for step in difference.steps] == [0x41100000, 0x7F800000]
    assert difference.steps[1].largest == 12


def test_fewer_elements_than_the_instruction_has() -> None:
    vectors = hmma()
    short = replace(vectors, k=7, a=vectors.a[:, :7], b=vectors.b[:, :7], d=np.full(2, F32[8.0], dtype=np.uint32))
    assert count(short).differing == 0
    (difference, _) = count(changed(short, 0, 1)).differences
    assert [step.elements for step in difference.steps] == [tuple(range(7))]


def test_many_rows_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmabits.conformance.recorded.dots._BATCH", 3)
    report = count(changed(wgmma(), 1, 3))
    assert (report.rows, report.differing) == (4, 2)
    assert [difference.row for difference in report.differences] == [1, 3]


# Text ------------------------------------------------------------------------------------------------------------------


def test_a_difference_in_words() -> None:
    report = count(changed(wgmma(), 2, flip=0x80000001), path="some.safetensors")
    assert described_lines(report, report.differences[0]) == [
        "some.safetensors row 2: wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 on sm_90a",
        "  a         e4m3  38 40 30",
        "  b         e4m3  38 40 40",
        "  c         0x3f800000  0|01111111|00000000000000000000000  1.0",
        "  recorded  0xc0e00001  1|10000001|11000000000000000000001  -7.000000476837158",
        "  computed  0x40e00000  0|10000001|11000000000000000000000  7.0",
        "  differ                ^                                ^",
        "  step 1    0x40e00000  0|10000001|11000000000000000000000  7.0  after k 0-2",
        "            largest term k=1: 0x40 * 0x40 = 2.0 * 2.0",
        "  they have parted by step 1 of 1; a recording shows only the end",
    ]


def test_words_for_scales_and_separate_adds() -> None:
    report = count(changed(scaled(), 0))
    assert "  scale_a   80 80" in described_lines(report, report.differences[0])
    report = count(changed(split(), 0))
    lines = described_lines(report, report.differences[0])
    assert "  then C is added by an IEEE addition" in lines
    assert any(line.endswith("after k 0-1,4-5,8-9,12-13,16-17,20-21,24-25,28-29") for line in lines)


@pytest.mark.parametrize(
    ("code", "name", "text"),
    [
        (0x3C01, "f16", "0|01111|0000000001"),
        (0x80000001, "s32", "1" + "0" * 30 + "1"),
        (0x7F, "ue8m0", "01111111"),
        (0xB8, "ue4m3", "1|0111|000"),
        (0x5, "e2m1", "0|10|1"),
    ],
)
def test_fields(code: int, name: str, text: str) -> None:
    assert fields(code, format_spec(name)) == text


def test_values() -> None:
    assert describe_code(0x7FFF, format_spec("f16")) == "0x7fff  0|11111|1111111111  nan"
    assert describe_code(0xFFFFFFFE, format_spec("s32")) == f"0xfffffffe  {'1' * 31}0  -2.0"


# Files -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good files, one of them in a folder below."""
    (tmp_path / "below").mkdir()
    write_vectors(tmp_path / "a.safetensors", hmma())
    write_vectors(tmp_path / "below" / "b.safetensors", wgmma())
    return tmp_path


def test_files_of_a_folder_are_found_once_and_in_order(folder: Path) -> None:
    (folder / "notes.txt").write_text("no vectors")
    a, b = folder / "a.safetensors", folder / "below" / "b.safetensors"
    assert find_files([folder]) == [a, b]
    assert find_files([b, folder, a]) == [b, a]


def test_paths_without_files_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(VectorFileError, match=r"empty: no file \*\.safetensors in this folder or below it"):
        find_files([folder, tmp_path / "empty"])
    with pytest.raises(VectorFileError, match="nowhere: no such file or folder"):
        find_files([folder / "nowhere"])


def test_a_damaged_file_does_not_stop_the_others(folder: Path) -> None:
    (folder / "aa.safetensors").write_bytes(b"broken")
    write_vectors(folder / "z.safetensors", changed(wgmma(), 0, 1))
    reports = list(count_files(find_files([folder])))
    assert [report.error is None for report in reports] == [True, False, True, True]
    assert reports[1].error is not None
    assert reports[1].error.startswith(f"{folder / 'aa.safetensors'}: no readable safetensors file")
    assert summary(reports) == "10 rows, 2 differ"
    assert exit_status(reports) == 2


def test_an_instruction_that_the_architecture_lacks_is_an_error_of_its_file(folder: Path) -> None:
    lacking = replace(wgmma(), arch="sm_100a")
    with pytest.raises(UnsupportedInstruction):
        count(lacking)
    write_vectors(folder / "c.safetensors", lacking)
    reports = list(count_files(find_files([folder])))
    assert [report.error is None for report in reports] == [True, True, False]
    assert f"{folder / 'c.safetensors'}: sm_100a has no wgmma" in str(reports[2].error)
    assert summary(reports) == "6 rows, 0 differ"
    assert exit_status(reports) == 2


def test_exit_status() -> None:
    good, bad = count(wgmma()), count(changed(wgmma(), 0))
    assert exit_status([good, good]) == 0
    assert exit_status([good, bad]) == 1
    assert exit_status([]) == 2
    assert summary([]) == "0 rows, 0 differ"


def test_json(folder: Path) -> None:
    write_vectors(folder / "a.safetensors", changed(split(), 0))
    found = reports_json(list(count_files(find_files([folder]))))
    assert {key: found[key] for key in ("rows", "differing", "errors")} == {"rows": 5, "differing": 1, "errors": 0}
    first = found["files"][0]
    assert (first["rows"], first["differing"], first["evidence"], first["error"]) == (1, 1, "recorded", None)
    difference = first["differences"][0]
    assert (difference["recorded"], difference["computed"], difference["c"]) == ("0x5021", "0x5020", "0x3c00")
    assert difference["a"] == ["0x38"] * 32
    assert difference["scale_a"] is None
    assert [step["accumulator"] for step in difference["steps"]] == ["0x4c00", "0x5000"]


def test_the_folder_of_recordings_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert recordings_folder() == tmp_path
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(VectorFileError, match=f"{FOLDER_VARIABLE} is .*none', which is no folder"):
        recordings_folder()
