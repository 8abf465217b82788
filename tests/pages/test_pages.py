"""Pages: one file each, nothing loaded from elsewhere, every number that of the result, every text escaped."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmabits.commands.main import main
from mmabits.commands.pages.record import kernels_page, size_text
from mmabits.commands.pages.replay import counts_page
from mmabits.commands.pages.vectors import score_page
from mmabits.conformance.diff.comparing import compare
from mmabits.conformance.diff.counting import Described, FileReport
from mmabits.conformance.probes.pack import FOLDER
from mmabits.conformance.probes.score import Score
from mmabits.conformance.record import session
from mmabits.conformance.record.device import EmulatedDevice
from mmabits.conformance.record.listing import KernelRow
from mmabits.conformance.record.nvrtc import CompilerRefused
from mmabits.conformance.recorded.dots import read_vectors, write_vectors
from mmabits.conformance.recorded.tiles import NotWritten
from mmabits.isa import ARCHITECTURES, Evidence, MmabitsError, OperandError, parse
from mmabits.reports.output import folded
from mmabits.reports.pages import charts, check_page, write
from mmabits.reports.pages.report import Cell, NoteBlock, Report, Section, TableBlock, TextBlock, plural, report_page

_EMPTY = {"meta", "rect", "line", "circle", "polyline", "path", "br", "input", "link", "img"}
_PACK = FOLDER / "sm_80-mma-f16-f16-f32-k16.safetensors"


class Page(HTMLParser):
    """A page's text, and what must be right about any of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        assert not {"script", "link", "iframe", "img"} & set(self.tags)
        assert "@import" not in text and "url(" not in text

    def handle_starttag(self, tag: str, attributes: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert all(name != "src" and (name != "href" or str(value).startswith("#")) for name, value in attributes)
        if tag not in _EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """(exit status, output, errors)."""
    status: Any = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as ended:
        status = ended.code
    told = capsys.readouterr()
    return int(status or 0), told.out, told.err


def page_at(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def damaged(path: Path, folder: Path, *, rows: slice) -> Path:
    """A file whose results have another last bit in some rows."""
    vectors = read_vectors(path)
    d = vectors.d.copy()
    d[rows] ^= 1
    target = folder / f"<b>&{path.name}"
    write_vectors(target, replace(vectors, d=d))
    return target


# Commands ----------------------------------------------------------------------------------------------------------------


def test_replay(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wrong = damaged(_PACK, tmp_path, rows=slice(2, 6, 2))
    (tmp_path / "broken.safetensors").write_bytes(b"12345")
    page = tmp_path / "page.html"
    status, out, _ = run(capsys, "replay", _PACK, wrong, tmp_path / "broken.safetensors", "--report", page)
    assert status == 2 and out.endswith(f"wrote {page}\n")
    found = page_at(page)
    rows = read_vectors(_PACK).rows
    assert f"2 of {2 * rows} rows differ, in 1 file; 1 file not replayed" in found.text
    assert f"computed ({2 * rows} rows)" in found.text and "All files hold results that a program computed" in found.text
    assert "<b>&sm_80-mma" in found.text and "too small" in found.text
    assert found.tags.count("details") == 2 and page.read_text().count("<details open>") == 1
    assert "value 2 The largest difference of two values is 1 ulp of f32." in found.text
    status, out, _ = run(capsys, "replay", _PACK, "--json", "--report", page)
    assert status == 0 and json.loads(out)["differing"] == 0
    assert f"{rows} rows, every bit equal" in page_at(page).text


def test_replay_says_how_far_apart(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Bits are flipped whose distances are known: two of 1 ulp, two of 16, one of 2^20."""
    vectors = read_vectors(_PACK)
    finite = np.flatnonzero(((vectors.d & 0x7FFFFFFF) > 0x200000) & ((vectors.d & 0x7FFFFFFF) < 0x7F000000))[:5]
    d = vectors.d.copy()
    d[finite] ^= np.array([1, 1, 16, 16, 1 << 20], np.uint32)
    write_vectors(tmp_path / "apart.safetensors", replace(vectors, d=d))
    page = tmp_path / "page.html"
    status, out, _ = run(capsys, "replay", tmp_path / "apart.safetensors", "--json", "--report", page)
    (found,) = json.loads(out)["files"]
    assert status == 1 and found["classes"] == {"value": 5} and found["largest_ulp"] == 1 << 20
    counts = {part["low"]: part["count"] for part in found["ulp"]}
    assert counts == {1: 2, 2: 0, 10: 2, 100: 0, 1000: 0, 10**4: 0, 10**5: 0, 10**6: 1}
    shown = page_at(page)
    assert "value 5 The largest difference of two values is 1,048,576 ulp of f32." in shown.text
    assert "1 ulp 2 2 to 9 ulp 0 10 to 99 ulp 2" in shown.text and shown.tags.count("details") == 3


def reported(number: int, **fields: Any) -> FileReport:
    """Of a file that was replayed."""
    given = {
        "path": f"folder/file-{number}.safetensors", "kind": "hardware", "gpu": "GPU", "arch": "sm_80", "instruction": "mma",
        "a_type": "f16", "b_type": "f16", "c_type": "f32", "d_type": "f32", "evidence": Evidence.RECORDED, "rows": 10,
    }  # fmt: skip
    return FileReport(**{**given, **fields})


def test_distances_of_files_add_up() -> None:
    recorded = np.array([[0x0000, 0x3C00, 0x7C00, 0x7E00, 0x7E00, 0x3C00]], np.uint16).view(np.float16)
    computed = np.array([[0x8000, 0x3C03, 0x7BFF, 0x7E01, 0x3C00, 0x3C21]], np.uint16).view(np.float16)
    parts = [compare(recorded[:, part], computed[:, part]) for part in (slice(2), slice(2, 6))]
    found = Page(counts_page([reported(i, d_type="f16", differing=one.differing, apart=one) for i, one in enumerate(parts)]))
    assert "value 2 zero sign 1 NaN payload 1 NaN against number 1 infinity against finite 1" in found.text
    assert "The largest difference of two values is 33 ulp of f16." in found.text and "2 to 9 ulp 1 10 to 99 ulp 1" in found.text


def test_long_lists_are_cut_and_say_so() -> None:
    found = Page(counts_page([reported(number, gpu=f"GPU {number % 50}") for number in range(1200)]))
    assert "12,000 rows, every bit equal" in found.text and found.text.count("file-") == 1000
    assert "1,000 rows; the table scrolls; 200 more of 1,200 are left out of this page." in found.text
    assert "of 50 GPUs or programs. 10 GPUs with fewer rows are left out here." in found.text and found.tags.count("tr") == 1001
    difference = Described(
        row=7, a=(0,), b=(0,), c=0, scale_a=None, scale_b=None, recorded=0, computed=1, steps=(), parts_by=0, separate_add=False
    )
    found = Page(counts_page([reported(number, differing=2, differences=(difference,) * 2) for number in range(50)]))
    assert found.tags.count("details") == 60 and "40 more of 100 described differences are left out here" in found.text
    assert {f"file-{number}, row 7" for number in range(50)} <= {word.partition(":")[0] for word in found.words}, "the first of each file"
    found = Page(counts_page([reported(0, differing=3)]))
    assert "Of 1 file that differs no row is described" in found.text


def test_nothing_but_errors() -> None:
    found = Page(counts_page([FileReport(path="a/<i>.safetensors", error="a/<i>.safetensors: damaged & <short>")]))
    assert "Nothing replayed: 1 file could not be" in found.text and "damaged & <short>" in found.text and "equal" not in found.text
    found = Page(score_page([Score(path="a.safetensors", error="damaged")]))
    assert "Nothing scored: 1 file could not be" in found.text and 'class="card result bad"' in score_page([Score(path="a", error="b")])
    for make in (counts_page, score_page):
        with pytest.raises(OperandError, match=r"one (report|score) or more, got none"):
            make([])


def test_identify_names_what_contradicts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    vectors = read_vectors(_PACK)
    finite = (vectors.d & 0x7FFFFFFF) < 0x7F000000
    d = np.where(finite, vectors.d ^ 0x80000000, vectors.d).astype(np.uint32)
    write_vectors(tmp_path / "wrong.safetensors", replace(vectors, d=d))
    page = tmp_path / "page.html"
    status, out, _ = run(capsys, "identify", tmp_path / "wrong.safetensors", "--report", page, "--json")
    wrong = json.loads(out)["contradictions"]
    found = page_at(page)
    assert status == 1 and f"Nothing that is modelled fits: {wrong} of {vectors.rows} answers" in found.text
    assert f"Rows of the file that the nearest row computes otherwise: {wrong} of {vectors.rows}." in found.text
    row = int(np.flatnonzero(finite)[0])
    assert f"0x{int(d[row]):08x}" in found.words and "Not to be told" in found.text


def test_identify(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "deep" / "page.html"
    status, out, _ = run(capsys, "identify", _PACK, "--report", page)
    assert status == 0 and out.endswith(f"wrote {page}\n")
    found = page_at(page)
    assert "mmabits.what_if(" in found.text and f"3 known datapaths give every answer to {read_vectors(_PACK).rows} dot" in found.text
    assert "A program answered, no GPU (kind computed)" in found.text and "F, fraction bits kept 24" in found.text
    assert "sm_86.hmma.f16.f32" in found.text and "nothing overflows" in found.text
    instruction = "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32"
    assert run(capsys, "identify", "--instruction", instruction, "--arch", "sm_70", "--report", page)[0] == 0
    assert "bits kept of c" in page_at(page).text and "svg" in page_at(page).tags


def test_score(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    status, out, _ = run(capsys, "vectors", "score", _PACK, "--report", page)
    assert status == 0 and out.endswith(f"wrote {page}\n")
    killed = re.search(r"(\d+) killed, 0 survive", out)
    found = page_at(page)
    assert killed is not None and f"{killed[1]} wrong models killed, none that operands can kill would pass" in found.text
    vectors = read_vectors(_PACK)
    few = {name: getattr(vectors, name)[:1] for name in ("a", "b", "c", "d")}
    write_vectors(tmp_path / "few.safetensors", replace(vectors, **few))
    status, out, _ = run(capsys, "vectors", "score", tmp_path / "few.safetensors", "--report", page, "--json")
    survivors = json.loads(out)[0]["survivors"]
    found = page_at(page)
    assert survivors and f"{len(survivors)} wrong models would pass" in found.text and all(name in found.text for name in survivors)


def test_record(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, folder = tmp_path / "page.html", tmp_path / "rec"
    words = ("record", "--emulated", "--arch", "sm_90a", "--tiles", 2, "--only", "m64n8k32.f32.e4m3", "--generator", "normal")
    status, out, _ = run(capsys, *words, "--out", folder, "--report", page)
    found = page_at(page)
    assert status == 0 and "1 recording: 1 recorded, 0 kept, 0 failed" in found.text and out.endswith(f"wrote {page}\n")
    assert "prove nothing about hardware" in found.text and f"{2 * 64 * 8:,}" in found.text
    assert run(capsys, *words, "--out", folder, "--report", page)[0] == 0 and "0 recorded, 1 kept" in page_at(page).text

    def refused(self: EmulatedDevice, kernel: Any) -> Any:
        raise CompilerRefused("NVRTC does not compile it: <error> & more")

    monkeypatch.setattr(EmulatedDevice, "prepare", refused)
    status, _, _ = run(capsys, *words, "--out", tmp_path / "other", "--report", page)
    found = page_at(page)
    assert status == 2 and "0 recorded, 0 kept, 1 failed" in found.text and "does not compile it: <error> & more" in found.text


def test_kernels(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    page = tmp_path / "page.html"
    status, _, _ = run(capsys, "record", "--list-kernels", "--arch", "sm_80", "--only", "f64", "--report", page)
    found = page_at(page)
    assert status == 0 and "1 kernel, 0 with problems" in found.text and "mma.sync.aligned.m8n8k4.row.col.rn.f64.f64.f64.f64" in found.text


def test_a_run_that_breaks_off_leaves_a_page(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, folder = tmp_path / "page.html", tmp_path / "rec"
    written, whole = [], session.write_recording

    def full(path: Path, recording: Any) -> None:
        if written:
            raise NotWritten(f"{path}: cannot be written (No space left on device)")
        written.append(path)
        whole(path, recording)

    monkeypatch.setattr(session, "write_recording", full)
    words = ("record", "--emulated", "--arch", "sm_90a", "--tiles", 2, "--only", "m64n8k32.f32.e4m3", "--out", folder, "--report", page)
    status, out, err = run(capsys, *words)
    found = page_at(page)
    assert status == 2 and err.splitlines()[-1].startswith("error: ") and "No space left" in err and out == f"wrote {page}\n"
    planned = int(re.findall(r"(\d+) recordings\n", err)[0])
    assert planned > 2 and f"{planned} recordings: 1 recorded, 0 kept, 0 failed, {planned - 1} not begun or not finished" in found.text
    assert "No space left on device" in found.text and written[0].name in found.text
    assert f"{hashlib.sha256(written[0].read_bytes()).hexdigest()}  {written[0].name}" in page.read_text()
    assert f"{written[0].stat().st_size / 1000:.3g} kB" in found.text


def test_kernels_with_problems() -> None:
    row = parse("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
    kernels = [
        KernelRow(instruction=row, arch="sm_80", cubin_bytes=1500, opcodes="HMMA.16816.F32 x2", problems=()),
        KernelRow(instruction=row, arch="sm_89", cubin_bytes=500, opcodes="IMMA", problems=("HMMA is missing", "<IMMA> is not expected")),
        KernelRow(instruction=row, arch="sm_90a", cubin_bytes=None, opcodes="", problems=("NVRTC says no",)),
        KernelRow(instruction=row, arch="sm_90a", cubin_bytes=1000, opcodes="", problems=()),
    ]
    found = Page(kernels_page(kernels, compiler="13.0"))
    assert "4 kernels, 2 with problems" in found.text and "HMMA is missing; <IMMA> is not expected" in found.text
    assert "kernels compiled 3 refused by the compiler 1 with other machine instructions 1 of machine code 3 kB" in found.text
    assert "No disassembler took 1 kernel" in found.text and "HMMA.16816.F32 1 IMMA 1" in found.text and "NVRTC 13.0" in found.text
    assert "0 kernels" in Page(kernels_page([], compiler="13.0")).text


def test_sizes_are_told_in_the_unit_that_fits() -> None:
    assert [size_text(size) for size in (0, 999, 1000, 1_500_000, 2_000_000_000)] == ["0 B", "999 B", "1 kB", "1.5 MB", "2 GB"]


def test_explain_and_study_look_first_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, err = run(capsys, "explain", "wgmma", "--arch", "sm_90a", "--save", tmp_path / "page.pdf")
    assert (status, out) == (2, "") and "a page is written as .html or .svg" in err
    (tmp_path / "file").write_text("")
    status, out, err = run(capsys, "study", "outliers", "--out", tmp_path / "file")
    assert (status, out) == (2, "") and "is no folder" in err


@pytest.mark.parametrize(
    "words",
    [
        ("replay", _PACK), ("identify", _PACK), ("vectors", "score", _PACK), ("record", "--list-kernels"),
        ("diff", "--emulated", "--arch", "sm_90a", "--case", "mm-f16-k256"),
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_wrong_place_is_refused_before_the_work(words: tuple[object, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, err = run(capsys, *words, "--report", tmp_path / "page.pdf")
    assert (status, out) == (2, "") and "a page is written as .html" in err and err.count("\n") == 1
    (tmp_path / "file").write_text("")
    status, out, err = run(capsys, *words, "--report", tmp_path / "file" / "page.html")
    assert (status, out) == (2, "") and "is no folder" in err


def test_where_a_page_may_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_page(None)
    check_page(tmp_path / "new" / "page.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(OperandError, match="is a folder; a page is a file"):
        check_page(tmp_path / "folder.html")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"], "checking leaves nothing behind"
    check_page(tmp_path / "picture.svg", suffixes=(".html", ".svg"))
    with pytest.raises(OperandError, match=r"written as \.html or \.svg, got"):
        check_page(tmp_path / "page.HTML", suffixes=(".html", ".svg"))

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(OperandError, match=r"takes no files \(Read-only file system\)"):
        check_page(tmp_path / "page.html")


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "page.html", "first")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(MmabitsError, match=r"page\.html cannot be written \(No space left on device\)"):
        write(tmp_path / "page.html", "second")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"] and (tmp_path / "page.html").read_text() == "first"


# Parts -------------------------------------------------------------------------------------------------------------------


def test_what_a_report_says_is_escaped_and_numbers_are_written_out() -> None:
    table = TableBlock(
        headings=("<i>", "n"), rows=((Cell(text="a<b>&", is_code=True, tone="bad"), 1234567), ("x", 0.1)), numeric=frozenset({1})
    )
    report = Report(
        title="<t>", lead="l & l", verdict="v < w", tone="good", facts=(("f", "<fact>"),),
        sections=(Section(title="s", blocks=(table, TextBlock(lines=("<pre>", "&"), title="more"), NoteBlock(text="n>m", tone="soft"))),),
    )  # fmt: skip
    found = Page(report_page(report))
    assert all(text in found.text for text in ("<t>", "l & l", "v < w", "<fact>", "<i>", "a<b>&", "1,234,567", "0.1", "<pre>", "n>m"))


def test_parts_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(OperandError, match="a table of 2 columns has a row of 1"):
        TableBlock(headings=("a", "b"), rows=(("x",),))
    with pytest.raises(OperandError, match=r"numeric columns are \[3\]"):
        TableBlock(headings=("a",), rows=(), numeric=frozenset({3}))
    with pytest.raises(OperandError, match="a tone is one of"):
        Cell(text="x", tone="loud")
    assert [plural(n, "file") for n in (0, 1, 1000)] == ["0 files", "1 file", "1,000 files"]


def numbers(svg: str, attribute: str) -> list[float]:
    return [float(value) for value in re.findall(rf' {attribute}="(-?[\d.]+)"', svg)]


def filled(svg: str) -> list[tuple[float, float]]:
    """Start and width, in percent, of every bar that is not a track."""
    bars = re.findall(r'<rect x="([\d.]+)%?" y="[\d.]+" width="([\d.]+)%" height="9" rx="2" fill="(?!var\(--line)', svg)
    return [(float(x), float(width)) for x, width in bars]


def test_bars_are_as_long_as_their_values() -> None:
    svg = charts.bars([charts.Bar(label="<x>", value=10), charts.Bar(label="y", value=5), charts.Bar(label="z", value=0)], label="l & m")
    assert filled(svg) == [(0.0, 100.0), (0.0, 50.0)], "nothing is drawn for 0"
    assert "&lt;x&gt;" in svg and "l &amp; m" in svg and Page(svg).tags.count("rect") == 3 + 2
    assert [float(height) for height in re.findall(r"height:(\d+)px", svg)] == [3 * 38]
    for wrong in ([], [charts.Bar(label="x", value=-1)], [charts.Bar(label="x", value=float("nan"))]):
        with pytest.raises(OperandError, match="bar chart"):
            charts.bars(wrong, label="l")


def test_parts_of_a_bar_follow_each_other() -> None:
    parts = [charts.Stack(label="a", values=(30, 10, 0)), charts.Stack(label="b", values=(0, 5, 15), text="told")]
    svg = charts.stacks(parts, names=("x", "y<", "z"), label="l")
    assert filled(svg) == [(0.0, 75.0), (75.0, 25.0), (0.0, 12.5), (12.5, 37.5)]
    found = Page(svg)
    assert "40" in found.words and "told" in found.words and "10 y<" in found.words and found.tags.count("line") == 3
    none = charts.stacks([charts.Stack(label="empty", values=(0, 0))], names=("x", "y"), label="l")
    assert filled(none) == []
    for wrong in ([], [charts.Stack(label="a", values=(1, -1, 1))], [charts.Stack(label="a", values=(1, 2))]):
        with pytest.raises(OperandError, match="stacked bars"):
            charts.stacks(wrong, names=("x", "y", "z"), label="l")


def test_labels_never_run_into_the_text_at_the_other_end() -> None:
    """The least width has room for both; a label longer than any screen loses its middle, not its end."""
    name = "sm_100a-" + "x" * 200 + "-end"
    svg = charts.bars([charts.Bar(label=name, value=1, text="1,234 of 5,678 killed")], label="l")
    (drawn,) = [word for word in Page(svg).words if word.endswith("-end") and word != name]
    assert len(drawn) == 48 and drawn.startswith("sm_100a-") and "\N{HORIZONTAL ELLIPSIS}" in drawn and name in Page(svg).words
    (least,) = map(int, re.findall(r"min-width:(\d+)px", svg))
    assert least >= 7 * (48 + 21)
    assert charts.shortened("a" * 48) == "a" * 48


def test_a_large_map_draws_only_what_differs() -> None:
    counts = [[0] * 100 for _ in range(100)]
    counts[99][0] = 1
    svg = charts.heat_map(counts, [[1] * 100] * 100, label="map")
    assert Page(svg).tags.count("rect") == 2 and "rows from 99, columns from 0: 1 of 1 differ" in svg


def test_a_map_is_as_strong_as_its_shares() -> None:
    svg = charts.heat_map([[0, 1], [2, 4]], [[4, 4], [4, 4]], tile=(2, 2), label="map")
    assert numbers(svg, "fill-opacity") == pytest.approx([0.55, 0.385, 0.59, 1.0])
    assert "rows from 2, columns from 2: 4 of 4 differ" in svg
    with pytest.raises(OperandError, match="same rows and columns"):
        charts.heat_map([[1]], [[1, 2]], label="map")


def test_lines_go_through_their_points() -> None:
    line = charts.Line(label="a", x=(0.0, 10.0, 20.0), y=(0.0, 1.0, -1.0))
    svg = charts.lines(
        [line, replace(line, label="b<", y=(0.0, 0.5, 1.0))], x_label="k", y_label="e", label="l", marks=[charts.Mark(x=10.0, label="m")]
    )
    first = [tuple(map(float, point.split(","))) for point in re.findall(r'points="([^"]+)"', svg)[0].split()]
    assert first[1][0] == pytest.approx((first[0][0] + first[2][0]) / 2)
    assert first[0][1] == pytest.approx((first[1][1] + first[2][1]) / 2) and first[1][1] < first[2][1]
    assert "b&lt;" in svg and Page(svg).tags.count("polyline") == 2
    many = charts.lines([replace(line, label=f"line number {number}") for number in range(9)], x_label="k", y_label="e", label="l")
    rights = [float(x) + 7 * len(text) for x, text in re.findall(r'<text x="(\d+)" y="\d+">(line number \d)', many)]
    assert len(rights) == 9 and max(rights) < charts.WIDTH, "a long legend goes on in the next row"
    for wrong in ([], [charts.Line(label="a", x=(1.0,), y=())], [charts.Line(label="a", x=(1.0,), y=(float("inf"),))]):
        with pytest.raises(OperandError, match="line chart"):
            charts.lines(wrong, x_label="k", y_label="e", label="l")


def test_an_architecture_has_one_colour() -> None:
    assert sorted(charts.ARCH_COLORS) == sorted(ARCHITECTURES) and len(set(charts.ARCH_COLORS.values())) == len(ARCHITECTURES)
    assert charts.arch_color("sm_90a, promoted every 128") == charts.arch_color("Hopper") == charts.ARCH_COLORS["sm_90a"]
    assert charts.arch_color("Blackwell, sm_120a") == charts.arch_color("float32") == ""
    names = ["sm_90a", "float32", "sm_90a, promoted"]
    palette = (charts.ARCH_COLORS["sm_90a"], "#010101")
    assert charts.series_colors(names, palette) == [palette[0], "#010101", palette[0]], "no other line has an architecture's colour"
    page = report_page(
        Report(title="t", lead="l", sections=(Section(title="s", blocks=(TableBlock(headings=("arch",), rows=(("sm_89",),)),)),))
    )
    assert charts.ARCH_COLORS["sm_89"] in page


def test_a_line_upon_another_is_told() -> None:
    line = charts.Line(label="one", x=(1, 2), y=(1, 2))
    other = charts.Line(label="other", x=(1, 2), y=(1.001, 2))
    apart = charts.Line(label="apart", x=(1, 2), y=(1, 1.5))
    svg = charts.lines([line, other, apart], x_label="x", y_label="y", label="l")
    assert ">other (upon one)<" in svg and ">apart<" in svg
    assert charts.coinciding([((1,), (1e-6,)), ((1,), (1.01e-6,)), ((1,), (1.0,))], is_log=True) == [None, 0, None]
    assert charts.coinciding([((1,), (1e-6,)), ((2,), (1e-6,))]) == [None, None]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("short", ["short"]),
        ("a sentence that is longer than thirty letters", ["a sentence that is longer than", "  thirty letters"]),
        ("steps    0-31, as asked by many dot products", ["steps    0-31, as asked by", "         many dot products"]),
        ("  - one of several things that are listed", ["  - one of several things that", "    are listed"]),
        ("x" * 40, ["x" * 40]),
        ('mmabits.what_if("device", base="sm_90a", rows={})', ['mmabits.what_if("device", base="sm_90a", rows={})']),
        ("a1      " + "b" * 40, ["a1", "        " + "b" * 40]),
    ],
)
def test_long_lines_fold_between_words_on_a_terminal(line: str, parts: list[str]) -> None:
    assert folded(line, 30).split("\n") == parts
    assert folded(line, 0) == line
