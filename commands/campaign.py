"""The command `mmabits campaign`; commands/main.py registers it: `app.command(name="campaign")(campaign)`."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mmabits.commands.completion import architectures
from mmabits.isa.errors import OperandError
from mmabits.reports.output import complain, flush, note, say

if TYPE_CHECKING:
    from mmabits.conformance.campaign.run import Campaign, Ended
    from mmabits.conformance.campaign.worker import BenchChoice

EXIT_DIFFER: Final = 1
EXIT_FAILED: Final = 2
_SAID: Final = 4
_WARMS: Final = """
import contextlib
for name in ("torch", "triton", "jax"):  # their files are in memory then
    with contextlib.suppress(Exception):
        __import__(name)
from mmabits.emulator.machine.kernel import helper_address
helper_address()  # of compiled kernels; half a minute of a new machine
"""


def campaign(
    out: Annotated[Path | None, typer.Option(help="Folder for the archive; made if missing.")] = None,
    budget: Annotated[str, typer.Option(help="Time for all of it: 8m, 90s.")] = "8m",
    arch: Annotated[
        str | None, typer.Option(autocompletion=architectures, help="With --emulated or --plan: architecture, or GPU: sm_90a, h100.")
    ] = None,
    device: Annotated[int, typer.Option(min=0, help="Which GPU.")] = 0,
    only: Annotated[str | None, typer.Option(help="Only steps of this kind, or with this in their name.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the steps and their estimates; nothing runs.")] = False,
    emulated: Annotated[bool, typer.Option("--emulated", help="The emulator of --arch instead of a GPU; the archive says so.")] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="With --emulated: compile each kernel as for the GPU, which takes NVRTC.")
    ] = False,
    plant: Annotated[
        str | None, typer.Option(help="With --emulated: a fault of the stand-in, to see it found: fraction-bits, nan, function.")
    ] = None,
) -> None:
    """Record what is most worth knowing of a GPU. Interrupted, the same call goes on. Exit status: 1 differences, 2 failures."""
    from mmabits.conformance.campaign.run import seconds_of
    from mmabits.conformance.campaign.worker import BenchChoice

    began = time.monotonic()
    seconds = seconds_of(budget)
    if plan:
        if arch is None:
            raise OperandError("--plan has no GPU to ask for its architecture: name it with --arch")
        _print_plan(arch, only, seconds)
        return
    if out is None:
        raise OperandError("--out is missing: the folder for the archive")
    if emulated != (arch is not None):
        raise OperandError("--emulated and --arch go together: a GPU is of its own architecture, and the emulator has none to ask")
    if plant is not None and not emulated:
        raise OperandError("--plant goes with --emulated: a GPU's faults are its own")
    if compiled and not emulated:
        raise OperandError("--compile goes with --emulated: for a GPU every kernel is compiled")
    command = shlex.join(["mmabits", *sys.argv[1:]])
    place = BenchChoice(arch=arch, plant=plant, compiles=compiled, index=device, command=command)
    raise typer.Exit(_run(out, seconds, began, place, only))


def _print_plan(arch: str, only: str | None, budget: float) -> None:
    from mmabits.conformance.campaign.plan import plan_for, questions_of
    from mmabits.isa import architecture

    at, target = 0.0, architecture(arch).target
    for step in plan_for(arch, only=only):
        at += step.estimate
        asked = "; ".join(each.words for each in questions_of(step.kind, step.name, target))
        say(f"{at:7.0f} s  {step.key}{f'  [{asked}]' if asked else ''}{'  (beyond the budget)' if at > budget else ''}")
    say(f"{at / 60:.0f} minutes by estimates that no GPU has tested")


def _run(out: Path, budget: float, began: float, place: BenchChoice, only: str | None) -> int:
    """Run, print, and give the exit status."""
    from mmabits.conformance.campaign.bench import plant_named
    from mmabits.conformance.campaign.run import open_campaign, run_campaign
    from mmabits.conformance.campaign.worker import Worker
    from mmabits.conformance.record.nvrtc import compiler_version
    from mmabits.reports.pages import check_folder

    check_folder(out)
    if place.plant is not None:
        plant_named(place.plant)
    if place.compiles:
        compiler_version()
    worker = Worker(place=place)
    warming = _warming() if place.arch is None else None
    before = signal.signal(signal.SIGTERM, _interrupted)  # as `timeout` ends a command
    try:
        info = worker.start()
        found = open_campaign(out, info, only=only, plant=place.plant, index=place.index)
        kept = len(found.rows)
        note(f"{info.name}, {info.arch}: {len(found.steps)} steps, {kept} there already, {budget:.0f} s")
        said: set[str] = set()
        left = run_campaign(found, worker, budget=budget, began=began, command=place.command, tell=lambda ended: _tell(ended, said))
    finally:
        worker.stop()
        if warming is not None:
            warming.kill()
            warming.wait()
        signal.signal(signal.SIGTERM, before)
    return _ended(found, len(left), out)


def _warming() -> subprocess.Popen[bytes]:
    """A process beside the first steps, which makes ready what later ones wait for."""
    quiet = subprocess.DEVNULL
    return subprocess.Popen([sys.executable, "-c", _WARMS], stdin=quiet, stdout=quiet, stderr=quiet)


def _interrupted(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _tell(ended: Ended, said: set[str]) -> None:
    """A line for a step; why steps are left out is said once for each reason."""
    result = ended.result
    if result.state == "left out":
        reason = result.line.replace(ended.step.name, "it", 1)
        if reason in said:
            return
        said.add(reason)
    line = f"[{ended.at:5.0f} s] {ended.step.key}: {result.line}"
    if result.state == "failed":
        complain(line)
    else:
        say(f"{line} (left out)" if result.state == "left out" else line)
    if result.differ or ended.step.kind in ("identify", "cuda"):
        say(*(f"          {each}" for each in result.said[:_SAID]))
    flush()


def _ended(found: Campaign, left: int, out: Path) -> int:
    from mmabits.conformance.campaign.run import answers

    rows, device = found.rows, found.archive.manifest["device"]
    say("", *answers(rows, device["arch"]))
    states = {state: sum(row["state"] == state for row in rows) for state in ("done", "failed", "left out")}
    differing = [row["key"] for row in rows if row["differ"]]
    size = sum(path.stat().st_size for path in out.glob("campaign*.tar.gz"))
    say(f"{', '.join(f'{count} {state}' for state, count in states.items())}, {left} not reached; {len(differing)} steps with differences",
        f"{size:,} bytes in {out}")  # fmt: skip
    if device["kind"] != "hardware":
        say("the emulator stood in for a GPU: this proves nothing about hardware")
    return EXIT_FAILED if states["failed"] else EXIT_DIFFER if differing else 0
