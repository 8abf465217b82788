"""The report of a block as a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmabits.emulator.hooks.session import Session, SessionReport
from mmabits.isa import OperandError
from mmabits.reports.session import place_of, session_page


def made() -> SessionReport:
    session = Session(arch="sm_90a")
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((8, 32)).astype(np.float16), rng.standard_normal((32, 16)).astype(np.float16)
    for length in (8, 7, 6, 5):
        session.dot("layers.0.q_proj: mm at model.py:3", a[:length], b)
    session.dot("layers.<1>: mm at model.py:3", a, b, instruction="mma.sync")
    session.skip("mm at other.py:9", "mm", "f32 products run on CUDA cores", multiply_adds=8 * 16 * 32)
    session.skip("op at other.py:10", "op", "nobody knows what it does")
    session.leave_open("layers.0: empty", "empty", "memory that nobody wrote")
    session.choose("kernel", "BLOCK=32", "the first")
    return session.report()


def test_shares_and_rows(tmp_path: Path) -> None:
    report = made()
    page = session_page(report)
    emulated, missed = (26 + 8) * 16 * 32, 8 * 16 * 32
    assert report.share == emulated / (emulated + missed)
    assert f"{100 * report.share:.4g}% of the multiply-adds that can be counted were emulated" in page
    assert f"{emulated:,}" in page and "1 line under Not emulated" in page
    assert "5..8 x 16 x 32" in page and "layers.&lt;1&gt;" in page and "layers.<1>" not in page
    for words in ("not known", "memory that nobody wrote", "BLOCK=32", "Multiply-adds by module", "wgmma"):
        assert words in page
    report.page(tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_text() == page
    with pytest.raises(OperandError, match=r"written as \.html"):
        report.page(tmp_path / "page.txt")


def test_nothing_multiplied() -> None:
    page = session_page(Session(arch="sm_80").report())
    assert "Nothing was multiplied" in page and "Arithmetic by evidence" not in page


def test_the_module_of_a_site() -> None:
    assert place_of("layers.0: mm at a.py:3") == "layers.0" and place_of("mm at a.py:3") == "mm at a.py:3"
