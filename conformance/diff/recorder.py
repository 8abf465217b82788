"""All cases of `mmabits diff` in one list: recorded into files, kept where they are there already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from mmabits.conformance.diff.cases import CASES, Case, record_case
from mmabits.conformance.diff.frameworks import framework_named
from mmabits.conformance.diff.kernel_cases import KERNEL_CASES, KernelCase
from mmabits.conformance.diff.kernels import record_kernel
from mmabits.conformance.recorded.calls import KERNEL_FORMAT, PRODUCT_FORMAT, RecordedCall, write_run
from mmabits.conformance.recorded.reading import read_recorded
from mmabits.emulator.api import operand_type
from mmabits.isa import DeviceUnavailable, OperandError, UnsupportedInstruction, VectorFileError, architecture, library_instruction, nearest
from mmabits.isa.architectures import ARCHITECTURES
from mmabits.reports.stored import SUFFIX, format_of

AnyCase = Case | KernelCase

ALL_CASES: Final[dict[str, AnyCase]] = {**CASES, **KERNEL_CASES}
"""Products of the frameworks, then the kernels of kernels/."""


@dataclass(frozen=True, kw_only=True)
class ChosenCases:
    """What is to be run."""

    cases: tuple[AnyCase, ...]
    left_out: Mapping[str, str]
    """Frameworks that cannot run theirs, and why."""


def choose(names: Sequence[str], *, stand_in: str | None) -> ChosenCases:
    """Cases by name; without names all that the architecture can compute.

    Args:
        names: of cases.
        stand_in: the architecture that `emulate` stands in for; None: the GPU at hand.

    Raises:
        OperandError: there is no case of a name.
        DeviceUnavailable: nothing can be run, since no framework finds a GPU.
    """
    unknown = [name for name in names if name not in ALL_CASES]
    if unknown:
        raise OperandError(f"unknown case {unknown[0]!r}{nearest(unknown[0], ALL_CASES)}; `mmabits diff --list` lists them")
    wanted = [ALL_CASES[name] for name in names] or list(ALL_CASES.values())
    arch_of: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name in dict.fromkeys(case.framework for case in wanted):
        try:
            arch_of[name] = stand_in or framework_named(name, f"{name}'s part of mmabits diff").gpu().arch
        except DeviceUnavailable as error:
            left_out[name] = str(error)
    if not arch_of:
        reasons = "; ".join(dict.fromkeys(left_out.values()))
        raise DeviceUnavailable(f"{reasons}. Without a GPU, mmabits diff takes --against FILE, or --emulated --arch ARCH")
    able = [case for case in wanted if case.framework in arch_of]
    return ChosenCases(cases=tuple(case for case in able if names or is_possible(case, arch_of[case.framework])), left_out=left_out)


def is_possible(case: AnyCase, arch: str) -> bool:
    """Whether an architecture has what a case multiplies."""
    target = architecture(arch).target
    if isinstance(case, KernelCase):
        return target in case.architectures
    kinds = [operand_type(np.zeros(0, dtype), "a") for dtype in (case.dtype, case.b_dtype or case.dtype)]
    try:
        library_instruction(target, *kinds)
    except UnsupportedInstruction:
        return False
    return True


def record_any(case: AnyCase, *, seed: int, stand_in: str | None) -> RecordedCall:
    """Run a case on the GPU at hand, or under `emulate` in its place.

    Raises:
        DeviceUnavailable: the framework or a GPU is missing.
        MmabitsError: the architecture lacks the product.
    """
    if isinstance(case, KernelCase):
        return record_kernel(case, seed=seed, stand_in=stand_in)
    return record_case(case, seed=seed, stand_in=stand_in)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What became of a file."""

    path: Path
    state: str
    """`wrote` or `kept`."""


def record_into(case: AnyCase, folder: Path, *, seed: int, stand_in: str | None) -> Kept:
    """Run a case and write the run into a folder; where it was finished before, nothing runs.

    Raises:
        DeviceUnavailable: the framework or a GPU is missing.
        VectorFileError: another run is there, the file is damaged, or it cannot be written.
        MmabitsError: the architecture lacks the product.
    """
    path = folder / f"{case.name}-seed{seed}{SUFFIX}"
    if path.exists():
        return _kept(path, framework_named(case.framework, case.name).told(case, seed, stand_in)[0])
    return keep(record_any(case, seed=seed, stand_in=stand_in), folder)


def keep(run: RecordedCall, folder: Path) -> Kept:
    """Write a run into a folder, unless the same run is there already.

    Raises:
        VectorFileError: another run is there, the file is damaged, or it cannot be written.
    """
    path = folder / f"{run.case}-seed{run.seed}{SUFFIX}"
    if path.exists():
        return _kept(path, run.manifest)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VectorFileError(f"{folder}: cannot be made ({error.strerror or error})") from error
    write_run(path, run)
    return Kept(path=path, state="wrote")


def _kept(path: Path, wanted: Mapping[str, Any]) -> Kept:
    """A finished file, if it is what would be written now."""
    there = read_recorded(path) if format_of(path) in (PRODUCT_FORMAT, KERNEL_FORMAT) else None
    if not isinstance(there, RecordedCall):
        raise VectorFileError(f"{path}: is there already, and is no run")
    name = next((name for name, value in wanted.items() if there.manifest.get(name) != value), None)
    if name is not None:
        raise VectorFileError(f"{path}: is there already, with {name} {there.manifest.get(name)!r} (now: {wanted[name]!r})")
    return Kept(path=path, state="kept")


def case_row(case: AnyCase) -> dict[str, Any]:
    """A case as plain values, for lists."""
    row: dict[str, Any] = {"name": case.name, "framework": case.framework, "call": case.call}
    if isinstance(case, KernelCase):
        return {**row, "architectures": list(case.architectures), "note": case.note}
    return {**row, "architectures": [name for name in ARCHITECTURES if is_possible(case, name)], "note": ""}


__all__ = [
    "ALL_CASES", "AnyCase", "ChosenCases", "Kept", "case_row", "choose", "is_possible", "keep",
    "record_any", "record_into",
]  # fmt: skip
