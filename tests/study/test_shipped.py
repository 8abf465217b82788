"""The studies that ship: rows that can be checked otherwise, pages that stand alone, and the whole of them in the slow part."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import numpy as np
import pytest

import mmabits
from mmabits.commands.main import main
from mmabits.isa import OperandError
from mmabits.research.study.report import page, run
from mmabits.research.study.shipped import STUDIES

pytest.importorskip("matplotlib")


def test_the_bits_that_survive_are_those_of_the_rows():
    at = STUDIES["accumulation"].at
    kept = {arch: next(iter(at(kind="bits", arch=arch))) for arch in ("sm_89", "sm_90a", "sm_100a")}
    assert {arch: row["kept"] for arch, row in kept.items()} == {"sm_89": 13, "sm_90a": 13, "sm_100a": 25}
    assert {arch: row["zero_low_bits"] for arch, row in kept.items()} == {"sm_89": 10, "sm_90a": 10, "sm_100a": 0}


def test_a_row_of_the_attention_study_is_the_product_it_names():
    (row,) = STUDIES["attention"].at(arch="sm_80", way="f16", values="around 1", keys=256)
    rng = np.random.default_rng(256)
    scores = rng.standard_normal((64, 256))
    p = np.exp(scores - scores.max(axis=1, keepdims=True)).astype(np.float16)
    v = (rng.standard_normal((256, 64)) + 1).astype(np.float16)
    exact = p.astype(np.float64) @ v.astype(np.float64)
    d = mmabits.gemm(p, v, np.zeros((64, 64), np.float16), instruction="mma.sync", arch="sm_80").astype(np.float64)
    assert row["rms"] == pytest.approx(np.sqrt(((d - exact) ** 2).mean()) / np.sqrt((exact**2).mean()), rel=1e-12)
    assert row["overflowed"] == 0.0


def test_a_row_of_the_kv_caches_study_is_the_attention_it_names():
    """Keys and values are quantized independently, so that their parts add up by squares; a scale for each channel minds no channel."""
    at = STUDIES["kv-caches"].at
    parts = {row["part"]: row["error"] for row in at(data="normal", cache="int8")}
    assert parts["all"] ** 2 == pytest.approx(parts["keys"] ** 2 + parts["values"] ** 2, rel=0.1)
    assert parts["arithmetic"] < 1e-3 < parts["keys"] < 0.01
    (split,) = at(data="2048 tokens", cache="int8", splits=8)
    assert split["changed"] > 0.9 and split["moved"] < 1e-3 and split["error"] < 1e-3
    keys = {data: next(row["error"] for row in at(data=data, cache="int8-kivi")) for data in ("normal", "key channels")}
    assert keys["key channels"] == pytest.approx(keys["normal"], rel=1e-6), "powers of two in whole channels are what their scales take"


def test_outliers_leave_the_exact_product_as_it_is():
    rows = [next(iter(STUDIES["outliers"].at(data="normal", recipe="mxfp8", factor=factor))) for factor in (1, 4096)]
    assert rows[1]["error"] == pytest.approx(rows[0]["error"], rel=0.15), "powers of two in whole channels are what block scales take"


def _small(name):
    """A study with few of its points."""
    study = STUDIES[name]
    points = study.points("quick")
    if name == "accumulation":
        points = [point for point in points if point.get("k", 0) <= 4096]
    if name == "training":
        pytest.importorskip("torch")
        points = points[:1]
    return replace(study, points=lambda size: points)


@pytest.mark.parametrize("name", ["accumulation", "scales", "zero-points", "training"])
def test_a_study_writes_table_and_page_and_goes_on_where_it_was(name, tmp_path):
    study = _small(name)
    table = run(study, out=tmp_path, size="quick", progress=False)
    text = html.unescape((tmp_path / "index.html").read_text())
    assert text.count("<svg") == len(study.charts)
    assert study.title in text and all(finding in text for finding in study.findings(table.rows))
    assert (tmp_path / "table.csv").read_text().count("\n") == 1 + len(table.rows)
    assert not re.search(r'(src|href)="http', text), "a page must not need the network"

    def never(**point):
        raise AssertionError("a finished point was computed again")

    never.__module__, never.__qualname__ = study.at.__module__, study.at.__qualname__
    again = run(replace(study, at=never), out=tmp_path, size="quick", progress=False)
    assert again == table
    assert study.claims(table.rows) == study.claims(again.rows)


def test_published_numbers_stand_beside_what_was_measured():
    study = STUDIES["accumulation"]
    rows = [row for point in study.points("quick") if point["kind"] in ("bits", "signed") for row in study.at(**point)]
    claims = study.claims(rows)
    assert [claim.published for claim in claims] == ["13", "25", "10", "nearly 2 %"]
    assert all(claim.agrees for claim in claims)
    doctored = [{**row, "kept": 14} if row.get("arch") == "sm_90a" and row["kind"] == "bits" else row for row in rows]
    assert [claim.agrees for claim in study.claims(doctored)] == [False, True, True, True]


def test_the_command_lists_runs_and_refuses(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["study"])
    assert ended.value.code == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == list(STUDIES)
    with pytest.raises(SystemExit) as ended:
        main(["study", "outlier"])
    assert ended.value.code == 2
    assert "unknown study 'outlier'; did you mean outliers" in capsys.readouterr().err
    with pytest.raises(OperandError, match="a study's size is one of quick, full, got 'tiny'"):
        run(STUDIES["scales"], out=tmp_path, size="tiny")


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_runs_whole(name, tmp_path):
    whole = STUDIES[name]
    study = replace(whole, points=lambda size: whole.points(size)[:2]) if name == "training" else whole  # the whole of it takes ten minutes
    table = run(study, out=tmp_path, progress=False)
    assert len(table.rows) >= len(study.points("full"))
    assert page(study, table.rows, "full", 1.0).startswith("<!doctype html>")


def test_the_encoder_in_numpy_is_the_one_in_torch():
    torch = pytest.importorskip("torch")
    minilm = pytest.importorskip("mmabits.research.minilm")
    if minilm.model_folder() is None:
        pytest.skip("the model is not installed")
    from mmabits.commands.encoder import SentenceEncoder, load_weights

    encoder, tensors = SentenceEncoder(load_weights(minilm.model_folder())), minilm.load()
    for tokens in minilm.SENTENCES[:2]:
        with torch.no_grad():
            wanted = encoder(torch.tensor(tokens)).numpy()
        assert np.abs(minilm.embed(tensors, tokens) - wanted).max() < 2e-6


@pytest.mark.slow
def test_a_row_of_the_calibration_study_is_the_model_it_names():
    from mmabits.research import minilm

    if minilm.model_folder() is None:
        pytest.skip("the model is not installed")
    (row,) = STUDIES["calibration"].at(target="int8", method="min-max")
    assert 0.15 < row["error"] < 0.2 and row["cosine"] == pytest.approx(0.98376, abs=1e-3) and 0 < row["clipped"] < 1e-3
