"""Pages: one file each, nothing loaded from elsewhere, every number that of the result, every text escaped."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmabits.conformance.cli import main
from mmabits.conformance.pages import charts, check_page, write
from mmabits.conformance.pages.report import Cell, NoteBlock, Report, Section, TableBlock, TextBlock, plural, report_page
from mmabits.conformance.probes.pack import FOLDER
from mmabits.conformance.record.device import EmulatedDevice
from mmabits.conformance.record.nvrtc import CompilerRefused
from mmabits.conformance.vectors import read_vectors, write_vectors
from mmabits.isa import OperandError

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
        assert not {"src", "href"} & {name for name, _ in attributes}
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
    assert f"2 of {2 * rows} rows differ; 1 file not replayed" in found.text
    assert (
        f"computed ({2 * rows} rows)" in found.text and "proves nothing" not in found.text and "prove nothing about hardware" in found.text
    )
    assert "<b>&sm_80-mma" in found.text and "too small" in found.text
    assert found.tags.count("details") == 2 and page.read_text().count("<details open>") == 1
    status, out, _ = run(capsys, "replay", _PACK, "--json", "--report", page)
    assert status == 0 and json.loads(out)["differing"] == 0
    assert f"{rows} rows, every bit equal" in page_at(page).text


def test_identify(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "deep" / "page.html"
    status, out, _ = run(capsys, "identify", _PACK, "--report", page)
    assert status == 0 and out.endswith(f"wrote {page}\n")
    found = page_at(page)
    assert '_fused("device.f16.f32", 24, 8, -132, _recorded(...)),' in found.text and "3 rows of isa/ agree" in found.text
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


def test_where_a_page_may_go(tmp_path: Path) -> None:
    check_page(None)
    check_page(tmp_path / "new" / "page.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(OperandError, match="is a folder; a page is a file"):
        check_page(tmp_path / "folder.html")
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(OperandError, match="is read-only"):
            check_page(tmp_path / "page.html")


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "page.html", "first")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError):
        write(tmp_path / "page.html", "second")
    monkeypatch.undo()
    assert (tmp_path / "page.html").read_text() == "first"


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


def test_bars_are_as_long_as_their_values() -> None:
    svg = charts.bars([charts.Bar(label="<x>", value=10), charts.Bar(label="y", value=5), charts.Bar(label="z", value=0)], label="l & m")
    widths = numbers(svg, "width")[1:]
    assert widths[1] == pytest.approx(widths[0] / 2, abs=0.1) and widths[2] == 0
    assert "&lt;x&gt;" in svg and "l &amp; m" in svg and Page(svg).tags.count("rect") == 3
    assert max(np.add(numbers(svg, "x")[1:2], widths[:1])) < charts.WIDTH
    for wrong in ([], [charts.Bar(label="x", value=-1)], [charts.Bar(label="x", value=float("nan"))]):
        with pytest.raises(OperandError, match="bar chart"):
            charts.bars(wrong, label="l")


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
    for wrong in ([], [charts.Line(label="a", x=(1.0,), y=())], [charts.Line(label="a", x=(1.0,), y=(float("inf"),))]):
        with pytest.raises(OperandError, match="line chart"):
            charts.lines(wrong, x_label="k", y_label="e", label="l")
