"""A campaign on what says that it is a GPU: the driver's stand-in, whose kernels are those that would run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from mmabits.conformance.campaign import run as campaign_run
from mmabits.conformance.campaign.archive import read_archive
from mmabits.conformance.campaign.bench import Bench
from mmabits.conformance.campaign.learn import lessons, lines, read_learned
from mmabits.conformance.campaign.plan import CampaignStep
from mmabits.conformance.campaign.run import open_campaign, run_campaign
from mmabits.conformance.campaign.steps import StepResult, run_step
from mmabits.conformance.record.driver import CudaDevice
from mmabits.conformance.record.functions import EmulatedFunctions

FP8 = "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3"


class Here:
    def __init__(self, driver: Any) -> None:
        self.device = CudaDevice(driver=driver)
        self.bench = Bench(device=self.device, functions=EmulatedFunctions("sm_90a"), stand_in=None)
        self.results: list[StepResult] = []

    def run(self, step: CampaignStep, limit: float) -> StepResult:
        self.results.append(run_step(self.bench, step, limit=limit, command="mmabits campaign"))
        return self.results[-1]

    def stop(self) -> None:
        """Nothing runs."""


def ran(folder: Path, runner: Here) -> dict[str, Any]:
    found = open_campaign(folder, runner.device.info, only=FP8)
    run_campaign(found, runner, budget=600, began=time.monotonic())
    return read_archive(folder)[0]


def test_a_gpus_archive_says_so_and_teaches(fake_driver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_driver()
    monkeypatch.setattr(campaign_run, "_smi", lambda index: "a state")
    manifest = ran(tmp_path, Here(fake))
    assert (manifest["device"]["kind"], manifest["device"]["name"], manifest["state"]) == ("hardware", "Fake GPU", "a state")
    step, many = sorted(manifest["steps"], key=lambda each: each["kind"])
    assert step["state"] == "done" and step["line"] == "131,072 results with C, 0 differ" and not step["files"]
    assert many["state"] == "done" and many["line"].endswith("0 differ") and not many["files"]
    for each in (*step["recordings"], *many["recordings"]):
        assert each["kind"] == "hardware" and each["manifest"]["layout_check_results"] > 0 and each["manifest"]["command"]
    learned = read_learned(tmp_path)
    (lesson,) = lessons(learned)
    assert lesson.raises and lesson.raises_specials and learned.is_hardware
    assert "proves nothing" not in "\n".join(lines(learned))


def test_a_gpu_that_breaks_is_not_used_again_by_the_same_process(fake_driver: Any, tmp_path: Path) -> None:
    fake = fake_driver()
    runner = Here(fake)
    fake.fail = {"cuCtxSynchronize": fake.CUresult.CUDA_ERROR_LAUNCH_FAILED}
    manifest = ran(tmp_path, runner)
    assert [each.spoils for each in runner.results] == [True] * 4  # of two steps, each tried once more
    for step in manifest["steps"]:
        assert (step["state"], step["tries"]) == ("failed", 2) and "CUDA_ERROR_LAUNCH_FAILED" in step["line"]


def test_a_wrong_result_of_a_gpu_is_kept_whole(fake_driver: Any, tmp_path: Path) -> None:
    """One bit of every result above the small sums of the layout check."""
    fake = fake_driver()
    runner = Here(fake)
    launches = iter(range(1000))

    def spoil(words: Any) -> Any:
        return words ^ 1 if next(launches) == 1 else words  # the first is the layout check

    fake.spoil = spoil
    first = run_step(runner.bench, CampaignStep(kind="instruction", name=FP8), limit=60)
    (kept,) = first.files
    assert first.state == "done" and "special" in kept and first.differ == 16384
    assert [bool(each["differ"]) for each in first.recordings] == [True, False, False, False, False]
