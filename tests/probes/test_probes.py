"""The exact model, the mutants, the pack and its scores."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import operands as drawn_operands
import pytest
import slow_reference
from typer.testing import CliRunner

from mmabits.conformance.diff.counting import count_files
from mmabits.conformance.probes.pack import FOLDER, entries, vectors_of
from mmabits.conformance.probes.score import kills, score_files, score_vectors
from mmabits.conformance.recorded.dots import read_vectors, write_vectors
from mmabits.conformance.recorded.reading import recordings_folder
from mmabits.isa import FORMATS, Instruction, lower, parse
from mmabits.research.exact import Operands, evaluate
from mmabits.research.model import model_of
from mmabits.research.probes.equivalent import reason_for
from mmabits.research.probes.generators import all_operands, probes_for
from mmabits.research.probes.mutants import mutants

FAMILIES = {"mma.sync": "mma", "wgmma.mma_async": "wgmma", "tcgen05.mma": "tcgen05"}
ENTRIES = {entry.name: entry for entry in entries()}
CASES = [
    ("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e5m2", "sm_90a"),
    ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "sm_80"),
    ("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16", "sm_80"),
    ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", "sm_80"),
    ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "sm_90a"),
    ("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e5m2.f32", "sm_90a"),
    ("mma.sync.aligned.m16n8k32.row.col.f16.e4m3.e4m3.f16", "sm_100a"),
    ("tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n8k32.f32.e4m3.e2m1.ue8m0", "sm_100a"),
    ("tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n8k64.f32.e2m1.e2m1.ue4m3", "sm_100a"),
    ("tcgen05.mma.cta_group::1.kind::mxf4.block_scale.block32.m128n8k64.f32.e2m1.e2m1.ue8m0", "sm_100a"),
    ("mma.sync.aligned.m8n8k4.row.col.rz.f64.f64.f64.f64", "sm_80"),
    ("mma.sync.aligned.m8n8k4.row.col.rm.f64.f64.f64.f64", "sm_80"),
    ("mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.u8.s32", "sm_80"),
]


def reference(row: Instruction, arch: str, x: Operands) -> np.ndarray[Any, Any]:
    results = []
    for i in range(len(x.c)):
        scales: dict[str, Any] = {}
        if row.scale_type is not None and x.scale_a is not None and x.scale_b is not None:
            scales = {"scale_a": x.scale_a[i], "scale_b": x.scale_b[i], "scale_type": row.scale_type.name, "block": row.block}
        types = (row.a_type.name, row.b_type.name, row.d_type.name)
        results.append(
            slow_reference.dot(
                arch, FAMILIES[row.family.value], *types, x.a[i].tolist(), x.b[i].tolist(), int(x.c[i]), k_instruction=row.k,
                rounding=row.rounding or "rn", satfinite=row.satfinite, **scales,
            )
        )  # fmt: skip
    return np.array(results, np.uint64)


@pytest.mark.parametrize(("text", "arch"), CASES)
def test_the_exact_model_agrees_with_the_slow_reference(text: str, arch: str) -> None:
    """On the shared distributions and on the probes, which reach the corners."""
    row = parse(text)
    model = model_of(lower(row, arch))
    rng = drawn_operands.generator("probes", text)
    parts = [probe.operands.take(slice(0, 12)) for probe in probes_for(model, random=12)]
    types = (row.a_type.name, row.b_type.name)
    for kind in ("edge", "raw", "cancelling"):
        if row.scale_type is not None and row.block is not None:
            drawn = drawn_operands.draw_scaled(kind, *types, 30, row.k, rng, scale_format=row.scale_type.name, block=row.block)
        else:
            drawn = drawn_operands.draw_pair(kind, *types, 30, row.k, rng, c_format=row.c_type.name)
        parts.append(Operands(*drawn))
    for part in parts:
        got, want = evaluate(model, part).astype(np.uint64), reference(row, arch, part)
        if row.d_type.name == "f64":  # the reference's NaN of f64 is a placeholder
            nan = np.array([slow_reference.is_nan("f64", int(code)) for code in want])
            got, want = got[~nan], want[~nan]
        assert np.array_equal(got, want)


def test_groups_are_the_same_sums_whatever_operands_are_converted_to() -> None:
    row = parse("tcgen05.mma.cta_group::1.kind::mxf4.block_scale.block32.m128n8k64.f32.e2m1.e2m1.ue8m0")
    model = model_of(lower(row, "sm_100a"))
    pool = all_operands(probes_for(model, random=12))
    converted = dataclasses.replace(model, operand_format=FORMATS["f16"])
    assert np.array_equal(evaluate(converted, pool), evaluate(model, pool))


def test_the_pack_is_small_and_says_that_it_is_computed() -> None:
    files = sorted(FOLDER.glob("*.safetensors"))
    assert sorted(file.stem for file in files) == sorted(ENTRIES)
    assert sum(file.stat().st_size for file in files) < 1_000_000
    for file in files:
        vectors = read_vectors(file)
        assert vectors.kind == "computed" and vectors.source.startswith("computed") and "recorded" not in vectors.source
        recipes = json.loads(vectors.extra["recipes"])
        assert sum(recipe["rows"] for recipe in recipes) == vectors.rows and all(recipe["tells"] for recipe in recipes)


SOME = sorted(ENTRIES)[::9]


@pytest.mark.parametrize("name", SOME)
def test_the_pack_is_what_the_generators_make(name: str, tmp_path: Path) -> None:
    write_vectors(tmp_path / "again.safetensors", vectors_of(ENTRIES[name]))
    assert (tmp_path / "again.safetensors").read_bytes() == (FOLDER / f"{name}.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_all_of_the_pack_is_what_the_generators_make(name: str, tmp_path: Path) -> None:
    write_vectors(tmp_path / "again.safetensors", vectors_of(ENTRIES[name]))
    assert (tmp_path / "again.safetensors").read_bytes() == (FOLDER / f"{name}.safetensors").read_bytes()


def test_the_pack_leaves_no_mutant_that_operands_can_kill() -> None:
    scores = list(score_files(sorted(FOLDER.glob("*.safetensors"))))
    assert [score.error for score in scores if score.error] == []
    assert [(score.path, survivor) for score in scores for survivor in score.open] == []
    assert sum(score.differing for score in scores) == 0
    assert sum(len(score.killed) for score in scores) > 3000


@pytest.mark.slow
def test_the_engine_computes_the_pack() -> None:
    """Independent of the exact model: the compiled engine gives every result of the pack."""
    reports = list(count_files(sorted(FOLDER.glob("*.safetensors"))))
    assert [(report.path, report.error, report.differing) for report in reports if report.error or report.differing] == []


def test_the_engine_computes_a_file_of_the_pack() -> None:
    (report,) = count_files([FOLDER / "sm_90a-wgmma-e4m3-e4m3-f32-k32.safetensors"])
    assert (report.error, report.differing) == (None, 0) and report.rows > 10


@pytest.mark.parametrize("name", sorted(ENTRIES)[::17])
def test_mutants_called_equivalent_survive_every_probe(name: str) -> None:
    """The arguments name nothing that a search of another seed kills."""
    model = ENTRIES[name].model
    pool = all_operands(probes_for(model, seed=5, random=60))
    results = evaluate(model, pool)
    equivalent = [mutant for mutant in mutants(model) if reason_for(model, mutant) is not None]
    assert [mutant.name for mutant in equivalent if kills(mutant.model, pool, results)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_all_mutants_called_equivalent_survive_every_probe(name: str) -> None:
    model = ENTRIES[name].model
    for seed in (5, 6, 7):
        pool = all_operands(probes_for(model, seed=seed, random=300))
        results = evaluate(model, pool)
        equivalent = [mutant for mutant in mutants(model) if reason_for(model, mutant) is not None]
        assert [mutant.name for mutant in equivalent if kills(mutant.model, pool, results)] == []


def test_a_wrong_result_is_counted() -> None:
    vectors = read_vectors(FOLDER / "sm_70-mma-f16-f16-f32-k4.safetensors")
    vectors.d[3] ^= 1
    assert score_vectors(vectors).differing == 1


def test_scores_of_recordings_name_their_survivors() -> None:
    """e_zero and NaN cannot be killed by recordings of ordinary numbers; F of the A100 is."""
    folder = recordings_folder()
    if folder is None:
        pytest.skip("no recordings here")
    (score,) = score_files([folder / "a100-mma-bf16-f32.safetensors"])
    assert score.differing == 0 and {"F -1", "F +1", "rounding rn"} <= set(score.killed)
    assert {"NaN -1", "e_zero +1"} <= {f"{survivor.number} {survivor.change}" for survivor in score.open}


def test_the_command_prints_scores() -> None:
    import typer

    from mmabits.commands.vectors import vectors_score

    app = typer.Typer()
    app.command()(vectors_score)
    result = CliRunner().invoke(app, [str(FOLDER / "sm_70-mma-f16-f16-f32-k4.safetensors"), "--strict"])
    assert result.exit_code == 0 and "sm_70.hmma.f16.f32" in result.stdout and " 0 survive" in result.stdout
    missing = CliRunner().invoke(app, [str(FOLDER / "sm_70-mma-f16-f16-f32-k4.safetensors"), "--json"])
    assert json.loads(missing.stdout)[0]["survivors"] == []
