"""A campaign with the emulator in the GPU's place: cut off, resumed, planted faults, and what it teaches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmabits.commands.main import main
from mmabits.conformance.campaign import engines
from mmabits.conformance.campaign.archive import Archive, read_archive
from mmabits.conformance.campaign.bench import PLANTS, emulated_bench
from mmabits.conformance.campaign.learn import lessons, lines, patch_of, read_learned
from mmabits.conformance.campaign.plan import KINDS, CampaignStep
from mmabits.conformance.campaign.run import Campaign, Ended, open_campaign, run_campaign, seconds_of
from mmabits.conformance.campaign.steps import StepResult, run_step, with_toolkit
from mmabits.conformance.campaign.worker import BenchChoice, Worker, visible_alone
from mmabits.conformance.record.compared import HostMemory
from mmabits.conformance.record.nvrtc import compiler_version
from mmabits.isa import DeviceUnavailable, Evidence, OperandError, VectorFileError

ARCH = "sm_90a"
FEW = 1 << 14
"""Results of steps that have two million."""
FP8 = "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3"
F16 = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmabits.conformance.campaign.steps.MANY_RESULTS", FEW)
        yield


class Here:
    """Runs steps in this process; `cut` is asked before each."""

    def __init__(self, plant: str | None = None, cut: Callable[[], bool] = lambda: False) -> None:
        self.bench, self._cut = emulated_bench(ARCH, plant), cut
        self.steps: list[str] = []

    def run(self, step: CampaignStep, limit: float) -> StepResult:
        if self._cut():
            raise KeyboardInterrupt
        self.steps.append(step.key)
        return run_step(self.bench, step, limit=limit)

    def stop(self) -> None:
        """Nothing runs."""


def campaign(folder: Path, runner: Any, only: str, *, budget: float = 600, plant: str | None = None) -> tuple[Campaign, list[CampaignStep]]:
    found = open_campaign(folder, emulated_bench(ARCH, plant).device.info, only=only, plant=plant)
    return found, run_campaign(found, runner, budget=budget, began=time.monotonic())


def plain(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What two runs have to agree in: all but times."""
    rows = json.loads(json.dumps(steps))
    for row in rows:
        del row["seconds"], row["at"], row["cpu"]
        for each in row["recordings"]:
            each.pop("manifest", None)
    return sorted(rows, key=lambda row: str(row["key"]))


def told(found: Campaign) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in found.rows}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_fault_is_found_and_named(plant: str, tmp_path: Path) -> None:
    only = "rcp.approx.ftz" if plant == "function" else F16
    found, left = campaign(tmp_path, Here(plant), only, plant=plant)
    assert not left
    (first, *following) = found.rows
    assert first["differ"] and first["state"] == "done"
    words = "\n".join(first["said"])
    if plant == "function":
        assert first["differ"] == (1 << 16) + 4 or "65,536 of 8,388,608 differ, by codes 1 apart at most" in words
        assert not following
        return
    (identified,) = following
    assert identified["kind"] == "identify" and "no known datapath agrees" in identified["line"]
    if plant == "fraction-bits":
        assert identified["said"][0].startswith('_fused("device.f16.f32", 24, 16,')
    else:
        assert "NaN payload" in words and "value" not in words and "recorded 0x7fc00000, emulated 0x7fffffff" in words
        assert "7fc00000" in "\n".join(identified["said"])
    manifest, members = read_archive(tmp_path)
    assert manifest["device"]["plant"] == plant
    whole = [each["whole"] for each in first["recordings"] if each["differ"]]
    assert whole and set(whole) <= set(members)
    learned = read_learned(tmp_path)
    (lesson,) = lessons(learned)
    assert lesson.contradicted == (F16,) and patch_of(learned)[0] == ""
    assert any(report.differing for report in learned.reports) and not any(report.error for report in learned.reports)


def test_ten_cuts_and_ten_resumes_leave_the_same_archive(tmp_path: Path) -> None:
    only = "m16n8k8.row.col.f32"
    rng = np.random.default_rng(3)
    whole, _ = campaign(tmp_path / "whole", Here(), only)
    for _ in range(10):
        try:
            campaign(tmp_path / "cut", Here(cut=lambda: rng.random() < 0.5), only)
        except KeyboardInterrupt:
            read_archive(tmp_path / "cut")
    runner = Here()
    resumed, left = campaign(tmp_path / "cut", runner, only)
    assert not left and len(resumed.archive.manifest["runs"]) == 11
    assert told(resumed).keys() == told(whole).keys()

    assert plain(resumed.rows) == plain(whole.rows)
    again = Here()
    campaign(tmp_path / "cut", again, only)
    assert again.steps == []


def test_what_was_left_out_is_tried_again_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine's packages may be there then; within a run nothing that cannot run is tried twice."""

    def result(step: CampaignStep) -> StepResult:
        return StepResult(state="left out" if step.kind == "choices" else "done", line="no library")

    _, first, _ = faked(tmp_path, monkeypatch, lambda step: 0.01, 60, only="cuBLAS", result=result)
    assert [key for key, _ in first.steps] == ["choices cuBLASLt"]
    found, second, _ = faked(tmp_path, monkeypatch, lambda step: 0.01, 60, only="cuBLAS")
    assert [key for key, _ in second.steps] == ["choices cuBLASLt"]
    assert [(row["state"], row["tries"]) for row in found.rows] == [("done", 2)] and found.archive.manifest["open"] == []


class Fake:
    """Says that steps took so long, without running them."""

    def __init__(self, clock: list[float], took: Callable[[CampaignStep], float], result: Callable[[CampaignStep], StepResult]) -> None:
        self._clock, self._took, self._result = clock, took, result
        self.steps: list[tuple[str, float]] = []

    def run(self, step: CampaignStep, limit: float) -> StepResult:
        self.steps.append((step.key, limit))
        took = self._took(step)
        self._clock[0] += min(took, limit)
        return self._result(step) if took <= limit else StepResult(state="ended", line="took more")

    def stop(self) -> None:
        """Nothing runs."""


def faked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, took: Callable[[CampaignStep], float], budget: float, only: str | None = None,
    result: Callable[[CampaignStep], StepResult] = lambda step: StepResult(state="done", line="done"),
) -> tuple[Campaign, Fake, list[float]]:  # fmt: skip
    clock = [0.0]
    monkeypatch.setattr("mmabits.conformance.campaign.run.time.monotonic", lambda: clock[0])
    runner = Fake(clock, took, result)
    found = open_campaign(tmp_path, emulated_bench(ARCH).device.info, only=only)
    run_campaign(found, runner, budget=budget, began=0.0)
    return found, runner, clock


@pytest.mark.parametrize("budget", [10.0, 60.0, 480.0])
def test_the_budget_is_kept(budget: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _, clock = faked(tmp_path, monkeypatch, lambda step: KINDS[step.kind][0], budget)
    assert clock[0] <= budget and found.rows and found.archive.manifest["open"]
    assert all(KINDS[step.kind][0] > budget - 2.0 - clock[0] for step in found.left())  # what fitted was run
    assert len(found.rows) + len(found.archive.manifest["open"]) == len(found.steps)


def test_estimates_learn_from_what_steps_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _, _ = faked(tmp_path, monkeypatch, lambda step: 30.0 if step.kind == "instruction" else 0.1, 400)
    assert 20 < found.estimates()["instruction"] < 30 and found.estimates()["function"] < 1


def test_a_step_that_hangs_is_ended_and_tried_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = f"instruction {FP8}"
    found, runner, _ = faked(tmp_path, monkeypatch, lambda step: 1e9 if step.key == bad else 1.0, 2000, only="e4m3.e4m3")
    assert [limit for key, limit in runner.steps if key == bad] == [60.0, 60.0]
    row = told(found)[bad]
    assert (row["state"], row["tries"]) == ("failed", 2) and row not in found.rows[:-1] and bad not in found.archive.manifest["open"]


def test_the_first_step_of_a_framework_has_time_to_import_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, runner, _ = faked(tmp_path, monkeypatch, lambda step: 1.0, 2000, only="dot-general")
    assert [limit for _, limit in runner.steps] == [150.0, *[60.0] * 14]


def test_a_step_that_fails_is_tried_after_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def result(step: CampaignStep) -> StepResult:
        if step.key == f"instruction {FP8}":
            return StepResult(state="failed", line="broke", files={"logs/x.txt": b"1"})
        return StepResult(state="done", line="done")

    found, runner, _ = faked(tmp_path, monkeypatch, lambda step: 1.0, 2000, only="e4m3.e4m3", result=result)
    assert [key for key, _ in runner.steps][-1] == f"instruction {FP8}"
    assert [each["name"] for each in told(found)[f"instruction {FP8}"]["files"]] == ["logs/x.txt", "logs/x-try2.txt"]


def test_a_family_that_fails_does_not_take_the_time_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that no GPU has run may all fail for one reason."""

    def result(step: CampaignStep) -> StepResult:
        return StepResult(state="failed" if step.group == "instruction wgmma" else "done", line="")

    _, runner, _ = faked(tmp_path, monkeypatch, lambda step: 1.0, 5000, only="f16.f16", result=result)
    wrong = [place for place, (key, _) in enumerate(runner.steps) if key.startswith("instruction wgmma")]
    right = [place for place, (key, _) in enumerate(runner.steps) if not key.startswith("instruction wgmma")]
    assert len(wrong) == 2 * len(set(key for key, _ in runner.steps if key.startswith("instruction wgmma")))
    assert sum(place < right[-1] for place in wrong) == 3 < len(wrong) / 2


def test_a_row_that_is_wrong_does_not_fill_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def result(step: CampaignStep) -> StepResult:
        name = f"differing/{len(step.name)}-{hash(step.name) % 10**9}.safetensors"
        rows = [{"instruction": step.name, "differ": 1, "whole": name}] if step.kind == "instruction" else []
        return StepResult(state="done", line="", differ=len(rows), files={name: b"1"} if rows else {}, recordings=rows)

    found, runner, _ = faked(tmp_path, monkeypatch, lambda step: 0.01, 2000, only="wgmma", result=result)
    kept = [row["name"] for row in found.rows if row["files"]]
    assert sum("f32.e4m3" in name or "f32.e5m2" in name for name in kept) == 3
    assert any("is not kept: 3 other instructions of sm_90a.wgmma.f8.f32 are" in "".join(row["said"]) for row in found.rows)
    assert sum(key.startswith("identify") for key, _ in runner.steps) >= sum(key.startswith("instruction") for key, _ in runner.steps)


def test_what_cannot_run_is_left_out_and_named() -> None:
    result = run_step(emulated_bench(ARCH), CampaignStep(kind="tests", name="gpu"), limit=10)
    assert (result.state, result.line) == ("left out", "the tests marked gpu take a GPU")
    broken = run_step(emulated_bench(ARCH), CampaignStep(kind="instruction", name="mma.nonsense"), limit=10)
    assert broken.state == "failed" and "mma.nonsense" in broken.line


@pytest.mark.parametrize(("text", "seconds"), [("8m", 480.0), ("90s", 90.0), ("480", 480.0), ("0.5h", 1800.0)])
def test_budgets(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0m", "m", "8 minutes", "-3s", "1e9s"])
def test_no_budgets(text: str) -> None:
    with pytest.raises(OperandError, match="a budget is 8m, 90s or 1h"):
        seconds_of(text)


# What it teaches ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("campaign")
    for only in (FP8, "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16", "m8n8k4.row.col.rn", "ex2.approx.f16", "choices"):
        campaign(folder, Here(), only)
    return folder


def test_learning_raises_rows(archive: Path, tmp_path: Path) -> None:
    learned = read_learned(archive)
    assert not any(report.error or report.differing for report in learned.reports)
    found = {lesson.row.name: lesson for lesson in lessons(learned)}
    assert found["sm_90a.wgmma.f8.f32"].raises and found["sm_90a.wgmma.f8.f32"].raises_specials
    text = "\n".join(lines(learned))
    assert "row sm_90a.wgmma.f8.f32: finite operands published -> recorded, special values published -> recorded (1 instruction)" in text
    assert "question FP8 wgmma into f32 with C other than zero: 2 steps, 163,840 results, 0 differ" in text
    assert "proves nothing about hardware" in text


def test_the_patch_applies_and_raises_what_it_says(archive: Path, tmp_path: Path) -> None:
    import tomllib

    import mmabits.isa as isa

    text, left = patch_of(read_learned(archive))
    folder = Path(isa.__file__).resolve().parent
    (tmp_path / "isa").mkdir()
    for name in ("datapaths.py", "sources.toml"):
        (tmp_path / "isa" / name).write_text((folder / name).read_text(encoding="utf-8"), encoding="utf-8")
    subprocess.run(["patch", "-p1"], input=text, text=True, cwd=tmp_path, check=True, capture_output=True)
    names: dict[str, Any] = {"__name__": "patched"}
    sys.modules["patched"] = type(sys)("patched")
    try:
        exec(compile((tmp_path / "isa" / "datapaths.py").read_text(encoding="utf-8"), "datapaths.py", "exec"), names)
    finally:
        del sys.modules["patched"]
    row, before = names["DATAPATHS"]["sm_90a.wgmma.f8.f32"], names["DATAPATHS"]["sm_90a.wgmma.bf16.f32"]
    assert row.evidence is Evidence.RECORDED and before.evidence is Evidence.PUBLISHED
    cited = {source for proof in (*row.proofs, *row.special_proofs) for source in proof.sources}
    assert {"h100-wgmma-e4m3-f32", "mmabits-wgmma-e4m3-f32"} <= cited
    assert cited <= set(tomllib.loads((tmp_path / "isa" / "sources.toml").read_text(encoding="utf-8"))["recordings"])
    assert any("sm_90a.dmma.f64.f64" in line for line in left)


def test_the_commands(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "learned"
    with pytest.raises(SystemExit) as left:
        main(["learn", str(archive), "--patch", str(tmp_path / "isa.patch"), "--out", str(out)])
    assert left.value.code == 0 and "wrote" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["replay", str(archive)])
    first = capsys.readouterr().out.splitlines()[-1]
    assert left.value.code == 0 and first.endswith("rows, 0 differ")
    files = [path for path in out.iterdir() if path.name.startswith("sm_90a") and path.suffix == ".safetensors"]
    with pytest.raises(SystemExit) as left:
        main(["replay", *map(str, files)])
    assert left.value.code == 0 and len(files) == 15


def test_results_of_another_model_are_noticed(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmabits.conformance.campaign import learn

    monkeypatch.setattr(learn, "emulate_tiles", lambda *arguments: emulate_one_off(*arguments))
    errors = [report.error for report in read_learned(archive).reports if report.error]
    assert len(errors) == 21 and all("gives other results than were recorded" in str(error) for error in errors)


def emulate_one_off(*arguments: Any) -> Any:
    from mmabits.conformance.record.tiles import emulate_tiles

    return emulate_tiles(*arguments) ^ 1


def test_a_product_that_differs_is_kept_whole_and_its_schedule_looked_for(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    result = run_step(emulated_bench(ARCH, "fraction-bits"), CampaignStep(kind="product", name="mm-f16-k256"), limit=60)
    assert result.state == "done" and result.differ and "schedule" in result.said[0]
    found, _ = campaign(tmp_path / "archive", Here("fraction-bits"), "mm-f16-k256", plant="fraction-bits")
    assert [name for name, _ in read_learned(tmp_path / "archive").others] == ["differing/mm-f16-k256-seed0.safetensors"]
    assert told(found)["product mm-f16-k256"]["differ"] == result.differ


def test_the_instruction_of_a_kernel_that_differs_is_named() -> None:
    """The same PTX on both sides; no path of this machine is in what is kept."""
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    result = run_step(emulated_bench("sm_89", "fraction-bits"), CampaignStep(kind="kernel", name="triton-matmul-f16"), limit=60)
    words = "\n".join(result.said)
    assert result.state == "done" and result.differ and "differ from the compiled kernel emulated" in words
    assert "the first instruction that differs: `mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32" in words
    (launch,) = [data for name, data in result.files.items() if name.startswith("launches/")]
    assert str(Path(__file__).parents[2]).encode() not in launch and b".loc" not in launch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.pop("device"), "tells no device"),
        (lambda manifest: manifest["device"].update(arch=5), "tells no device"),
        (lambda manifest: manifest["steps"][0].pop("differ"), "has no differ as a campaign has"),
        (lambda manifest: manifest["steps"][0].update(said=[1]), "has no words and recordings"),
        (lambda manifest: manifest["steps"][0].update(name="mma.nonsense"), "is of no instruction"),
    ],
)
def test_manifests_of_others(change: Callable[[Any], Any], message: str, archive: Path, tmp_path: Path) -> None:
    made = Archive.open(tmp_path, {"device": {}, "steps": []})
    made.manifest = read_archive(archive)[0]
    for step in made.manifest["steps"]:
        step["files"] = []
    change(made.manifest)
    made.save()
    with pytest.raises(VectorFileError, match=message):
        read_learned(tmp_path)


def test_recordings_of_others(archive: Path, tmp_path: Path) -> None:
    """What one recording of a manifest says wrongly is told; the others are replayed."""
    made = Archive.open(tmp_path, {"device": {}, "steps": []})
    made.manifest = read_archive(archive)[0]
    for step in made.manifest["steps"]:
        step["files"] = []
    first, second, third, fourth, *_ = made.manifest["steps"][0]["recordings"]
    first["seed"], second["tiles"], third["generator"], fourth["whole"] = 1, 1 << 40, "os:system", "../../etc/passwd"
    made.save()
    errors = [str(report.error) for report in read_learned(tmp_path).reports if report.error]
    assert [words for words in ("draws other operands", "none that a campaign has", "none that a campaign has", "is not in the archive")
            if not any(words in error for error in errors)] == [] and len(errors) == 4  # fmt: skip


@pytest.mark.parametrize("ranges", [5, [5], ["x"], ["0x0+99999999999"]])
def test_ranges_of_others(ranges: Any, archive: Path, tmp_path: Path) -> None:
    made = Archive.open(tmp_path, {"device": {}, "steps": []})
    made.manifest = read_archive(archive)[0]
    step = made.manifest["steps"][0]
    made.manifest["steps"] = [step]
    step.update(files=[], recordings=[{"function": "rcp.approx.ftz.f32", "ranges": ranges, "sha256": ["0" * 64]}])
    made.save()
    (report,) = read_learned(tmp_path).reports
    assert report.error and "internal error" not in report.error


def test_of_many_results_the_tiles_that_differ_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmabits.conformance.campaign.steps.MOST_WHOLE", 1 << 10)
    first = "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32"  # of its datapath
    step = CampaignStep(kind="many", name=first)
    result = run_step(emulated_bench(ARCH, "nan"), step, limit=60)
    bits, normal = result.recordings
    assert result.results == 2 * FEW and result.differ and not normal["differ"] and "whole" not in normal
    assert 0 < bits["kept_tiles"] <= (1 << 10) // 128 < bits["tiles"]
    campaign(tmp_path, Here("nan"), first, plant="nan")
    reports = read_learned(tmp_path).reports
    assert bits["kept_tiles"] * 128 in [report.rows for report in reports if report.differing]
    assert not any(report.error for report in reports)


def test_products_and_kernels_are_made_again_from_their_seed(tmp_path: Path) -> None:
    pytest.importorskip("jax")
    for only in ("dot-general-e4m3-k256", "jax-quantize-fp8"):
        campaign(tmp_path, Here(), only)
    learned = read_learned(tmp_path)
    assert [(report.rows, report.differing, report.error) for report in learned.reports] == [(1 << 16, 0, None), (512, 0, None)]
    assert "2 of 2 products and kernels equal the emulator, 66,048 elements" in list(lines(learned))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_sha256": "0"}, "gives other results than were recorded; only their hash is kept"),
        ({"operands_sha256": "0"}, "draws other operands now"),
        ({"seed": -1}, "none that a campaign has"),
        ({"case": "os:system"}, "none that a campaign has"),
        ({"way": "guessed"}, "none that a campaign has"),
        ({"dtypes": ["f32"]}, "does not tell the type"),
        ({"differ": 3}, "3 elements differed, and the run was not kept whole"),
        ({"whole": "../../etc/passwd"}, "is not in the archive"),
    ],
)
def test_cases_of_others(change: dict[str, Any], message: str, case_archive: Path, tmp_path: Path) -> None:
    made = Archive.open(tmp_path, {"device": {}, "steps": []})
    made.manifest = read_archive(case_archive)[0]
    made.manifest["steps"][0]["recordings"][0].update(change)
    made.save()
    (report,) = read_learned(tmp_path).reports
    assert message in str(report.error)


@pytest.fixture(scope="module")
def case_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("jax")
    folder = tmp_path_factory.mktemp("cases")
    campaign(folder, Here(), "dot-general-f16-k256")
    return folder


def test_the_engine_of_gpus_in_the_simulator() -> None:
    pytest.importorskip("numba.cuda.simulator", reason="this Numba has no CUDA simulator")
    result = run_step(emulated_bench(ARCH), CampaignStep(kind="cuda", name="engine"), limit=200)
    assert (result.state, result.results, result.differ) == ("done", 8 * 16, 0), result.files
    assert "s8, 4^3: 0 of 16 differ" in "\n".join(result.said) and "f64: " in result.said[-1]


def test_products_of_the_library_are_run_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmabits.conformance.campaign.steps.CHOICE_SHAPES", ("16x64x128:bf16", "1x64x256:f16"))
    monkeypatch.setattr("mmabits.conformance.campaign.steps._memory_of", lambda bench: HostMemory())
    result = run_step(emulated_bench(ARCH), CampaignStep(kind="choices", name="cuBLASLt"), limit=60)
    assert result.line.endswith("2 of 2 shapes answered, 0 not as the rules say; 2 products run, 0 not as their schedule says")
    assert (result.state, result.results, result.differ) == ("done", 4, 0)


def test_the_toolkit_of_the_compiler_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmabits.conformance.campaign.steps._TOOLKIT", tmp_path / "none")
    for folder in ("bin", "nvvm"):
        (tmp_path / "cuda" / folder).mkdir(parents=True)
    compiler = tmp_path / "cuda" / "bin" / "nvcc"
    compiler.touch(mode=0o755)
    there = {"PATH": str(compiler.parent)}
    assert with_toolkit(there) == {**there, "CUDA_HOME": str(tmp_path / "cuda")}
    for named in ({"PATH": str(tmp_path)}, {**there, "CUDA_PATH": "/opt/cuda"}):
        assert with_toolkit(named) == named


def test_the_engine_of_gpus_without_a_gpu() -> None:
    program = [sys.executable, "-m", engines.__name__, "hardware"]
    rows = engines.read_lines(subprocess.run(program, capture_output=True, check=False).stdout + b'{"name": "cut')
    if any("results" in row for row in rows):
        pytest.skip("there is a GPU")
    (row,) = rows
    assert "finds no NVIDIA GPU" in row["missing"]


# The process -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x", "--arch", "sm_90a"], "--emulated and --arch go together"),
        (["--out", "x", "--emulated"], "--emulated and --arch go together"),
        (["--plan"], "--plan has no GPU to ask"),
        ([], "--out is missing"),
        (["--out", "x", "--compile"], "--compile goes with --emulated"),
        (["--out", "x", "--plant", "nan"], "--plant goes with --emulated"),
        (["--out", "x", "--emulated", "--arch", "sm_90a", "--plant", "nun"], "unknown fault 'nun'; did you mean nan"),
        (["--out", "x", "--budget", "soon"], "a budget is 8m"),
    ],
)
def test_wrong_options(arguments: list[str], message: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["campaign", *arguments])
    assert left.value.code == 2 and message in capsys.readouterr().err


def test_the_plan_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main_exits = pytest.raises(SystemExit)
    with main_exits as left:
        main(["campaign", "--plan", "--arch", "h100", "--budget", "1m"])
    out = capsys.readouterr().out
    assert left.value.code == 0 and "[FP8 wgmma into f32 with C other than zero" in out and "(beyond the budget)" in out


@pytest.mark.parametrize(
    ("index", "before", "seen"),
    [(0, None, "0"), (2, None, "2"), (0, "3,1", "3"), (1, "3, GPU-8f", "GPU-8f"), (2, "3,1", "")],
)
def test_a_process_sees_one_gpu_alone(index: int, before: str | None, seen: str) -> None:
    assert visible_alone(index, {} if before is None else {"CUDA_VISIBLE_DEVICES": before})["CUDA_VISIBLE_DEVICES"] == seen


def test_a_stand_in_whose_kernels_are_compiled() -> None:
    try:
        compiler_version()
    except DeviceUnavailable as error:
        pytest.skip(str(error))
    bench = emulated_bench(ARCH, compiles=True)
    for step in (CampaignStep(kind="instruction", name=FP8), CampaignStep(kind="function", name="ex2.approx.f16")):
        result = run_step(bench, step, limit=60)
        assert (result.state, result.differ) == ("done", 0)


@pytest.mark.slow
def test_a_worker_that_dies_is_followed_by_another() -> None:
    worker = Worker(place=BenchChoice(arch=ARCH))
    try:
        assert worker.start().arch == ARCH
        step = CampaignStep(kind="function", name="ex2.approx.f16")
        assert worker.run(step, 60).state == "done"
        assert worker._process is not None and worker._process.pid is not None
        os.kill(worker._process.pid, signal.SIGKILL)
        worker._process.join()
        assert worker.run(step, 60).state == "done" and worker.starts == 2
        ended = worker.run(CampaignStep(kind="function", name="tanh.approx.f32"), 0.05)
        assert ended.state == "ended" and worker.run(step, 60).state == "done"
    finally:
        worker.stop()


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed(tmp_path: Path) -> None:
    """The command itself, by SIGKILL."""
    command = [sys.executable, "-m", "mmabits.commands.main", "campaign", "--emulated", "--arch", ARCH, "--only", "m16n8k16",
               "--budget", "20m", "--out"]  # fmt: skip
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    rng = np.random.default_rng(5)
    ended = 0
    for _ in range(10):
        process = subprocess.Popen([*command, str(cut)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(float(rng.uniform(1, 8)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if (cut / "campaign.tar.gz").exists():
            found = len(read_archive(cut)[0]["steps"])
            assert found >= ended
            ended = found
    for folder in (cut, whole):
        done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    resumed, uncut = (read_archive(folder) for folder in (cut, whole))
    assert resumed[0]["open"] == [] and [path.name for path in cut.iterdir()] == ["campaign.tar.gz"]
    assert plain(resumed[0]["steps"]) == plain(uncut[0]["steps"]) and resumed[1].keys() == uncut[1].keys()
    assert not any(report.error or report.differing for report in read_learned(cut).reports)


def test_what_is_told(tmp_path: Path) -> None:
    heard: list[Ended] = []
    found = open_campaign(tmp_path, emulated_bench(ARCH).device.info, only="ex2.approx.f16")
    run_campaign(found, Here(), budget=60, began=time.monotonic(), tell=heard.append)
    assert [(each.step.key, each.result.line) for each in heard] == [("function ex2.approx.f16", "65,536 results, 0 differ")]


def test_results_of_a_function_that_would_fill_the_archive_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmabits.conformance.campaign.steps.MOST_FUNCTION_BYTES", 1 << 12)
    only = "rcp.approx.ftz"
    found, _ = campaign(tmp_path, Here("function"), only, plant="function")
    (row,) = found.rows
    kept = row["recordings"][0]["kept"]
    assert 0 < kept < 1 << 23 and sum(each["bytes"] for each in row["files"]) <= 1 << 12
    (report,) = [report for report in read_learned(tmp_path).reports if report.rows > 100]
    assert report.error is None and report.rows == kept + 4
