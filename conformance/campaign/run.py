"""A run of `mmabits campaign`: steps in order of their value for what is left of the time, each written to the archive as it ends."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

from mmabits.conformance.campaign.archive import Archive
from mmabits.conformance.campaign.plan import KINDS, QUESTIONS, CampaignStep, plan_for
from mmabits.conformance.campaign.steps import SEED, StepResult, result_row
from mmabits.conformance.campaign.worker import visible_alone
from mmabits.conformance.record.device import DeviceInfo
from mmabits.conformance.record.session import source_version
from mmabits.isa import OperandError, lower, parse

PACKAGES: Final = (
    "mmabits", "numpy", "ml_dtypes", "numba", "llvmlite", "safetensors", "torch", "triton", "jax", "cuda-bindings", "nvidia-cuda-nvrtc",
    "nvidia-cublas", "nvidia-cublas-cu12", "numba-cuda",
)  # fmt: skip
"""Whose versions the manifest tells."""
_TRIES: Final = {"failed": 2, "left out": 1}
"""How often a run tries a step that ends so."""
_RECORDED_KINDS: Final = ("instruction", "many")
_FAILURES: Final = 3
"""After so many, and none done, steps of a group come after those of others."""
_LEAST_LIMIT_S: Final = 60.0
_FIRST_LIMIT_S: Final = {"product": 150.0, "kernel": 150.0}
"""Of the first step of a kind, which imports a framework from a disk that may be cold."""
_PATIENCE: Final = 6.0
"""A step is ended after so many times its estimate."""
_RESERVE_S: Final = 2.0
"""For writing the archive."""
_DIFFERS_WORTH: Final = 20.0
_WHOLE_OF_A_ROW: Final = 3
"""Instructions of one datapath whose differing recordings are kept whole."""
_BUDGET: Final = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(s|m|h|)")
_UNITS: Final = {"s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_ASKED: Final = "name,driver_version,vbios_version,compute_cap,memory.total,ecc.mode.current,mig.mode.current,clocks.sm,clocks.max.sm"


def seconds_of(text: str) -> float:
    """`8m`, `90s`, `0.5h`, `480`.

    Raises:
        OperandError: none of these, or no time at all.
    """
    found = _BUDGET.fullmatch(text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if seconds <= 0:
        raise OperandError(f"a budget is 8m, 90s or 1h, got {text!r}")
    return seconds


class StepRunner(Protocol):
    """Runs steps: a `Worker`, or in a test the process itself."""

    def run(self, step: CampaignStep, limit: float) -> StepResult:
        """Run a step, for so many seconds at most."""

    def stop(self) -> None:
        """End what runs."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A step that has ended, to be told."""

    step: CampaignStep
    result: StepResult
    seconds: float
    at: float
    """Seconds after the start."""


@dataclass(kw_only=True)
class Campaign:
    """An archive, and the steps that are to fill it.

    Args:
        archive: of this device.
        steps: of `plan_for`.
    """

    archive: Archive
    steps: Sequence[CampaignStep]
    _before: dict[str, int] = field(init=False)
    """How often steps had been tried before this run."""

    def __post_init__(self) -> None:
        self._before = {row["key"]: row["tries"] for row in self.rows}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What the manifest says of the steps that have ended."""
        rows: list[dict[str, Any]] = self.archive.manifest["steps"]
        return rows

    def _row(self, step: CampaignStep) -> dict[str, Any] | None:
        return next((row for row in self.rows if row["key"] == step.key), None)

    def left(self) -> list[CampaignStep]:
        """The steps that are still to be run, those that differences ask for among them."""
        following = [_follow_up(row["name"]) for row in self.rows if row["kind"] in _RECORDED_KINDS and row["differ"]]
        planned = {step.key: step for step in (*self.steps, *following)}
        rows = {row["key"]: row for row in self.rows}
        return [step for key, step in planned.items() if key not in rows or self._may_be_tried(rows[key])]

    def _may_be_tried(self, row: Mapping[str, Any]) -> bool:
        """A run tries twice what fails, and once more what an earlier run left out: another machine's packages may be there now."""
        return bool(row["tries"] - self._before.get(row["key"], 0) < _TRIES.get(row["state"], 0))

    def estimates(self) -> dict[str, float]:
        """Seconds for a step of each kind: as the table says, corrected by what steps took here."""
        found = {}
        for kind, (guess, _) in KINDS.items():
            took = [row["seconds"] for row in self.rows if row["kind"] == kind and row["state"] == "done"]
            found[kind] = (guess + sum(took)) / (1 + len(took))
        return found

    def _failing(self) -> set[str]:
        """Groups of steps of which several failed and none was done: what is wrong with them is not to take the time of the others."""
        planned = {step.key: step.group for step in self.steps}
        ended = [(planned[row["key"]], row["state"]) for row in self.rows if row["key"] in planned]
        failed = Counter(group for group, state in ended if state == "failed")
        done = {group for group, state in ended if state == "done"}
        return {group for group, count in failed.items() if count >= _FAILURES and group not in done}

    def limit(self, kind: str) -> float:
        """Seconds after which a step is ended."""
        is_first = not any(row["kind"] == kind and row["state"] == "done" for row in self.rows)
        return max(_FIRST_LIMIT_S.get(kind, 0.0) if is_first else 0.0, _LEAST_LIMIT_S, _PATIENCE * self.estimates()[kind])

    def next(self, seconds: float) -> CampaignStep | None:
        """The step with the most value for its time, of those that fit.

        What fits is told by corrected estimates; the order by those of the table, so that a first step that compiles much does not
        send all of its kind to the end.
        """
        estimates = self.estimates()
        planned = {step.key: step for step in self.steps}
        done = [planned[row["key"]] for row in self.rows if row["state"] == "done" and row["key"] in planned]
        shown = {fact for step in done for fact, _ in step.facts}
        fitting = [step for step in self.left() if estimates[step.kind] <= seconds]

        failing, there = self._failing(), {row["key"] for row in self.rows}

        def rate(step: CampaignStep) -> tuple[bool, bool, float]:
            return step.key not in there, step.group not in failing, step.worth(shown) / step.estimate

        return max(fitting, key=rate, default=None)

    def take(self, step: CampaignStep, result: StepResult, seconds: float) -> None:
        """Put what came of a step into the archive, and write it.

        Raises:
            VectorFileError: it cannot be written.
        """
        before = self._row(step)
        tries = (before["tries"] if before else 0) + 1
        row = {"key": step.key, "kind": step.kind, "name": step.name, "seconds": round(seconds, 3), "estimate": step.estimate,
               "tries": tries, "at": datetime.now(UTC).isoformat(timespec="seconds"), **result_row(result), "files": []}  # fmt: skip
        for name, data in result.files.items():
            kept = name if name not in self.archive.members else _renamed(name, tries)
            why = "no room" if not self.archive.has_room(kept, data) else self._why_not(step)
            if kept in self.archive.members or why:
                row["said"].append(f"{name} ({len(data):,} bytes) is not kept: {why or 'its name is taken'}")
                kept = ""
            else:
                row["files"].append(self.archive.add(kept, data))
            for each in row["recordings"]:
                if each.get("whole") == name:
                    each["whole"] = kept
        if before is not None:
            row["files"] = [*before["files"], *row["files"]]
            self.rows.remove(before)
        self.rows.append(row)
        self.archive.manifest["open"] = [left.key for left in self.left()]
        self.archive.save()

    def _why_not(self, step: CampaignStep) -> str:
        """Why what differs is not kept whole: a datapath that is wrong would fill the archive by itself."""
        if step.kind not in _RECORDED_KINDS:
            return ""
        arch = self.archive.manifest["device"]["arch"]
        row = lower(parse(step.name), arch).datapath.name
        there = [each["name"] for each in self.rows if each["kind"] in _RECORDED_KINDS and each["files"] and each["name"] != step.name]
        alike = sum(lower(parse(each), arch).datapath.name == row for each in there)
        return f"{alike} other instructions of {row} are" if alike >= _WHOLE_OF_A_ROW else ""


def _follow_up(instruction: str) -> CampaignStep:
    return CampaignStep(kind="identify", name=instruction, facts=((f"what {instruction} computes", _DIFFERS_WORTH),))


def _renamed(name: str, tries: int) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(f"{path.stem}-try{tries}{path.suffix}"))


# The device ----------------------------------------------------------------------------------------------------------------


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def sources_sha256() -> str:
    """Of the package's own Python files, by name: it tells which code ran where no repository does."""
    from mmabits import __file__ as package

    root, digest = Path(package).parent, hashlib.sha256()
    for path in sorted(each for folder in root.iterdir() if folder.is_dir() for each in folder.resolve().rglob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _smi(index: int) -> str:
    """State of the GPU in the words of nvidia-smi, without what tells one GPU of a kind from another; empty where it says nothing."""
    device = visible_alone(index, os.environ)["CUDA_VISIBLE_DEVICES"]
    command = ["nvidia-smi", f"--id={device}", f"--query-gpu={_ASKED}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def fresh_manifest(info: DeviceInfo, *, plant: str | None, index: int = 0) -> dict[str, Any]:
    """The manifest of a new archive."""
    device = {**{name: str(value) for name, value in asdict(info).items()}, "plant": plant or ""}
    state = _smi(index) if info.kind == "hardware" else ""
    return {
        "device": device, "state": state, "versions": _versions(), "commit": source_version(), "seed": SEED,
        "runs": [], "steps": [], "open": [],
    }  # fmt: skip


def open_campaign(folder: Path, info: DeviceInfo, *, only: str | None = None, plant: str | None = None, index: int = 0) -> Campaign:
    """The campaign of a folder, new or to be gone on with.

    Raises:
        VectorFileError: the archive there is damaged, or of another device.
        OperandError: `only` leaves nothing.
    """
    steps = plan_for(info.arch, only=only)
    if not steps:
        raise OperandError(f"no step has {only!r} in its name; kinds: {', '.join(KINDS)}")
    return Campaign(archive=Archive.open(folder, fresh_manifest(info, plant=plant, index=index)), steps=steps)


def run_campaign(
    campaign: Campaign,
    runner: StepRunner,
    *,
    budget: float,
    began: float,
    command: str = "",
    tell: Callable[[Ended], None] = lambda _: None,
) -> list[CampaignStep]:
    """Run steps until the time is up.

    Args:
        campaign: what is to be run, and what is there.
        runner: what runs it.
        budget: seconds.
        began: when they began to count, by `time.monotonic`.
        command: the command line.
        tell: called after each step.

    Returns:
        The steps that are left.

    Raises:
        VectorFileError: the archive cannot be written.
    """
    manifest = campaign.archive.manifest
    this = {"began": datetime.now(UTC).isoformat(timespec="seconds"), "budget": budget, "command": command, "commit": source_version(),
            "sources_sha256": sources_sha256(), "seconds": 0.0}  # fmt: skip
    manifest["runs"].append(this)
    manifest["open"] = [step.key for step in campaign.left()]
    campaign.archive.save()
    try:
        while True:
            at = time.monotonic()
            remaining = budget - (at - began) - _RESERVE_S
            step = campaign.next(remaining)
            if step is None:
                break
            limit = min(remaining, campaign.limit(step.kind))
            result = runner.run(step, limit)
            if result.state == "ended":
                if limit == remaining:  # cut off by the end of the time: it is still to be run
                    break
                result = replace(result, state="failed")
            seconds = time.monotonic() - at
            this["seconds"] = round(time.monotonic() - began, 3)
            campaign.take(step, result, seconds)
            tell(Ended(step=step, result=result, seconds=seconds, at=time.monotonic() - began))
    finally:
        runner.stop()
    return campaign.left()


# What it shows -------------------------------------------------------------------------------------------------------------


def answers(rows: Iterable[Mapping[str, Any]], arch: str) -> Iterator[str]:
    """Of each question of QUESTIONS that steps speak of, what they say."""
    ended = [row for row in rows if row["state"] == "done"]
    for question in QUESTIONS:
        found = [row for row in ended if question.is_settled_by(row["kind"], row["name"], arch)]
        if found:
            results, differ = (sum(row[name] for row in found) for name in ("results", "differ"))
            yield f"{question.words}: {len(found)} {'step' if len(found) == 1 else 'steps'}, {results:,} results, {differ:,} differ"


__all__ = ["PACKAGES", "Campaign", "Ended", "StepRunner", "answers", "fresh_manifest", "open_campaign", "run_campaign", "seconds_of"]
