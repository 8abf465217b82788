"""The command `mmabits identify`: what it prints, as text and JSON, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmabits.commands.main import main
from mmabits.conformance.probes.pack import FOLDER
from mmabits.conformance.recorded.dots import read_vectors, write_vectors

IMMA = "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32"
PACK = FOLDER / "sm_80-mma-f16-f16-f32-k16.safetensors"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit status, output, errors)."""
    with pytest.raises(SystemExit) as ended:
        main(["identify", *arguments])
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def test_json_holds_the_row_and_what_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "--instruction", IMMA, "--arch", "sm_80", "--json")
    found: dict[str, Any] = json.loads(out)
    assert (status, err) == (0, "")
    assert found["row"] == '_integer("device", "s8"),' and found["probes"] == 224 and found["contradictions"] == 0
    assert "sm_80.imma.int.s32" in found["matches"] and "sm_90a.wgmma.int.s32" not in found["matches"]
    assert found.keys() == {"row", "what_if", "probes", "contradictions", "matches", "findings", "undecided"}


def test_a_file_says_what_stays_open(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, str(PACK), "--json")
    found = json.loads(out)
    assert status == 0 and "sm_80.hmma.f16.f32" in found["matches"] and "sm_90a.hmma.f16.f32" not in found["matches"]
    assert found["findings"] == [], "a recording answers no questions"
    assert found["undecided"] and all(part["alternatives"] or part["reason"] for part in found["undecided"])
    status, text, _ = run(capsys, str(PACK))
    assert status == 0 and "sm_80.hmma.f16.f32" in text and found["what_if"] in text


def test_what_was_asked_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--instruction", "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32", "--arch", "sm_70", "--json")
    found = json.loads(out)
    assert status == 0 and "sm_70.hmma.f16.f32" in found["matches"]
    assert all(part["what"] and part["evidence"] and part["probes"] >= 0 for part in found["findings"])
    assert 0 < sum(part["probes"] for part in found["findings"]) <= found["probes"]


def test_a_file_that_nothing_fits_ends_with_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    vectors = read_vectors(PACK)
    finite = (vectors.d & 0x7FFFFFFF) < 0x7F000000
    wrong = replace(vectors, d=np.where(finite, vectors.d ^ 0x80000000, vectors.d).astype(np.uint32))
    write_vectors(tmp_path / "wrong.safetensors", wrong)
    status, out, _ = run(capsys, str(tmp_path / "wrong.safetensors"), "--json")
    assert status == 1 and json.loads(out)["contradictions"] > 0 and json.loads(out)["matches"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "identify takes a file, or --instruction with either --arch or --gpu"),
        ((str(PACK), "--arch", "sm_80"), "identify takes a file, or"),
        (("--instruction", IMMA), "identify takes a file, or"),
        (("--instruction", IMMA, "--arch", "sm_80", "--gpu", "0"), "identify takes a file, or"),
        (("--instruction", IMMA, "--arch", "sm_8"), "sm_8"),
        (("nowhere.safetensors",), "nowhere.safetensors"),
    ],
)
def test_what_cannot_be_asked_is_refused(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1
