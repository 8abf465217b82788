"""A process that runs the steps, so that one that hangs or breaks the GPU's context takes no other with it."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final

from mmabits.conformance.campaign.plan import CampaignStep
from mmabits.conformance.campaign.steps import StepResult
from mmabits.conformance.record.device import DeviceInfo
from mmabits.isa import DeviceUnavailable
from mmabits.reports.failures import told

_START_S: Final = 120.0
_STOP_S: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class BenchChoice:
    """Which bench a process makes."""

    arch: str | None = None
    """The emulator of this architecture; None: a GPU."""
    plant: str | None = None
    compiles: bool = False
    """Whether the emulator's kernels are compiled as for the GPU."""
    index: int = 0
    command: str = ""


def visible_alone(index: int, environment: Mapping[str, str]) -> dict[str, str]:
    """What lets a process see one GPU alone, so that the frameworks take the same as the driver.

    Args:
        index: counted as nvidia-smi does, or among those that CUDA_VISIBLE_DEVICES names.
        environment: of the process.
    """
    named = environment.get("CUDA_VISIBLE_DEVICES")
    devices = named.split(",") if named else None
    if devices is None:
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(index)}
    return {"CUDA_VISIBLE_DEVICES": devices[index].strip() if index < len(devices) else ""}


def _cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def _serve(pipe: Connection, place: BenchChoice) -> None:
    """The process: tells what the device is, then runs steps until the pipe closes."""
    from mmabits.conformance.campaign.bench import cuda_bench, emulated_bench
    from mmabits.conformance.campaign.steps import run_step

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch and our kernels share the GPU with JAX
    try:
        if place.arch is None:
            os.environ.update(visible_alone(place.index, os.environ))
            bench = cuda_bench()
        else:
            bench = emulated_bench(place.arch, place.plant, compiles=place.compiles)
        pipe.send(bench.device.info)
        while True:
            step, limit = pipe.recv()
            before = _cpu_seconds()
            result = run_step(bench, step, limit=limit, command=place.command)
            result.cpu = round(_cpu_seconds() - before, 3)
            pipe.send(result)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except Exception as error:  # said by the process that asked
        pipe.send(told(error))


@dataclass(eq=False)
class Worker:
    """Runs steps in a process of its own, and another where that one hangs or dies."""

    place: BenchChoice
    _process: BaseProcess | None = None
    _pipe: Any = None
    starts: int = field(default=0)

    def start(self, limit: float = _START_S) -> DeviceInfo:
        """Start the process.

        Raises:
            DeviceUnavailable: there is no device, or it does not answer.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.place), daemon=True)
        self._process.start()
        theirs.close()
        self.starts += 1
        found = self._answer(limit)
        if isinstance(found, DeviceInfo):
            return found
        self.stop()
        raise DeviceUnavailable(found if isinstance(found, str) else f"the device does not answer within {limit:.0f} s")

    def _answer(self, limit: float) -> Any:
        """What the process sends; None where it takes too long or dies."""
        try:
            return self._pipe.recv() if self._pipe.poll(max(limit, 0.0)) else None
        except (EOFError, OSError):
            return None

    def run(self, step: CampaignStep, limit: float) -> StepResult:
        """Run a step, for so many seconds at most."""
        began = time.monotonic()
        try:
            if self._process is None or not self._process.is_alive():
                self.start(limit)
            self._pipe.send((step, limit))
        except (DeviceUnavailable, OSError) as error:
            return StepResult(state="failed", line=str(error))
        found = self._answer(limit - (time.monotonic() - began))
        if isinstance(found, StepResult):
            if found.spoils:
                self.stop()
            return found
        alive = self._process is not None and self._process.is_alive()
        self.stop()
        why = f"took more than {limit:.0f} s and was ended" if alive else "the process that ran it died"
        return StepResult(
            state="ended" if alive and not isinstance(found, str) else "failed", line=found if isinstance(found, str) else why
        )

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join(_STOP_S)
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None


__all__ = ["BenchChoice", "Worker", "visible_alone"]
