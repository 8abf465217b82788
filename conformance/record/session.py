"""A run of `mmabits record`: which instructions, with which operands, and what becomes of each."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from mmabits.conformance.record.device import Device, DeviceInfo, Images, pack
from mmabits.conformance.record.generators import GENERATORS, PROBES, find_generator
from mmabits.conformance.record.kernels import InstructionKernel
from mmabits.conformance.record.nvrtc import CompiledProgram, CompilerRefused
from mmabits.conformance.record.tiles import (
    Generator,
    TileOperands,
    check_operands,
    exact_operands,
    exact_result,
    join_chain,
    operand_formats,
)
from mmabits.conformance.recorded.tiles import (
    SUFFIX,
    NotWritten,
    Recording,
    manifest_path,
    read_recording,
    write_manifest,
    write_recording,
)
from mmabits.emulator.codecs import decode
from mmabits.emulator.engine import memory
from mmabits.isa.architectures import architecture
from mmabits.isa.errors import MmabitsError, NotEnoughMemory, OperandError, UnsupportedInstruction, VectorFileError
from mmabits.isa.fragments import Words
from mmabits.isa.instructions import INSTRUCTION_SPECS, Instruction, InstructionSpec, Query, ScaleMode, Tile, make_instruction
from mmabits.isa.lowering import is_modelled
from mmabits.reports.failures import one_line

TARGETS: Final = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_120a")
"""Architectures for which every instruction is compiled in the tests."""
DEFAULT_RESULTS: Final = 1 << 14
"""Results of one recording where the number of tiles is left open."""
DEFAULT_PROBES: Final = 1 << 10
"""Likewise, dot products that are probes."""
_USUAL_N: Final = 64
_CHECK_TILES: Final = 4
_BATCH_BYTES: Final = 1 << 28
_GIT_TIMEOUT_S: Final = 10
_VALUE_BYTES: Final = 24
_NONE: Final = "none"


# Which instructions --------------------------------------------------------------------------------------------------


def _usual_n(tile: Tile) -> int:
    return min(tile.n, key=lambda n: abs(n - _USUAL_N))


def _made(spec: InstructionSpec, tile: Tile, pair: tuple[str, str], d: str, scale: ScaleMode | None, m: int, n: int) -> Instruction:
    rounding = spec.roundings[0] if spec.roundings else None
    query = Query(family=spec.family, kind=spec.kind or "", a=pair[0], b=pair[1], d=d, c=spec.c_type or d, rounding=rounding)
    return make_instruction(query, tile, m, n, scale)


def _choices(spec: InstructionSpec) -> Iterator[tuple[Tile, str, ScaleMode | None]]:
    for tile in spec.tiles:
        for d in spec.accumulators:
            for scale in spec.scales or (None,):
                yield tile, d, scale


def _specs_on(arch: str) -> Iterator[InstructionSpec]:
    name = architecture(arch).name
    return (spec for spec in INSTRUCTION_SPECS if is_modelled(spec, name))


def representatives(arch: str) -> list[Instruction]:
    """One instruction for every row, tile shape, accumulator and scale mode that is modelled on an architecture."""
    return [
        _made(spec, tile, spec.pairs[0], d, scale, tile.m[-1], _usual_n(tile))
        for spec in _specs_on(arch)
        for tile, d, scale in _choices(spec)
    ]


def _variants(spec: InstructionSpec, tile: Tile, d: str, scale: ScaleMode | None, *, every_n: bool) -> Iterator[Instruction]:
    """Every M and operand pair at the usual N; other N, roundings and saturation with the first pair."""
    usual = _usual_n(tile)
    others = tile.n if every_n else dict.fromkeys((tile.n[0], tile.n[-1]))
    for m in tile.m:
        for pair in spec.pairs:
            yield _made(spec, tile, pair, d, scale, m, usual)
        first = _made(spec, tile, spec.pairs[0], d, scale, m, usual)
        yield from (replace(first, n=n) for n in others if n != usual)
        yield from (replace(first, rounding=rounding) for rounding in spec.roundings[1:])
        if spec.satfinite:
            yield replace(first, satfinite=True)


def recordable(arch: str, *, only: str | None = None, every_n: bool = False) -> list[Instruction]:
    """The instructions of an architecture that `mmabits record` records.

    Args:
        arch: architecture.
        only: a family (`mma.sync`, `wgmma`, `tcgen05`) or any part of the spelling (`e4m3`, `kind::mxf4`).
        every_n: all N of wgmma and tcgen05.mma, not three of them.

    Raises:
        OperandError: nothing is left.
        UnknownArchitecture: no such architecture.
    """
    every = [
        instruction for spec in _specs_on(arch) for tile, d, scale in _choices(spec)
        for instruction in _variants(spec, tile, d, scale, every_n=every_n)
    ]  # fmt: skip
    chosen = [instruction for instruction in dict.fromkeys(every) if only is None or only in instruction.ptx]
    if not chosen:
        families = ", ".join(dict.fromkeys(str(instruction.family) for instruction in every))
        raise OperandError(f"no instruction of {arch} has {only!r} in its spelling; families there: {families}")
    return chosen


@dataclass(frozen=True, kw_only=True)
class Job:
    """One file to be."""

    instruction: Instruction
    arch: str
    generator: str
    seed: int
    tiles: int
    chain: int = 1

    @property
    def file_name(self) -> str:
        """Says what is in it; safe on every file system."""
        chain = f".x{self.chain}" if self.chain > 1 else ""
        generator = self.generator.replace(":", "-")
        return f"{self.arch}.{self.instruction.ptx.replace('::', '-')}.{generator}{chain}{SUFFIX}"


def usual_tiles(instruction: Instruction, generator: str = "") -> int:
    """Tiles that give about `DEFAULT_RESULTS` results, or of the generator `probes` `DEFAULT_PROBES` dot products on their diagonals."""
    if generator == PROBES:
        return -(-DEFAULT_PROBES // min(instruction.m, instruction.n))
    return max(2, -(-DEFAULT_RESULTS // (instruction.m * instruction.n)))


def make_jobs(
    instructions: Iterable[Instruction], *, arch: str, generators: Sequence[str] = tuple(GENERATORS), seed: int, tiles: int | None = None,
    chain: int = 1,
) -> list[Job]:  # fmt: skip
    """A job for each instruction and generator.

    Raises:
        OperandError: no such generator, or a number below 1.
    """
    for name, value in (("tiles", tiles), ("chain", chain)):
        if value is not None and value < 1:
            raise OperandError(f"{name} must be at least 1, got {value}")
    for generator in generators:
        find_generator(generator)
    return [
        Job(
            instruction=instruction, arch=architecture(arch).name, generator=generator, seed=seed, chain=chain,
            tiles=usual_tiles(instruction, generator) if tiles is None else tiles,
        )
        for instruction in instructions for generator in generators
    ]  # fmt: skip


# Running -------------------------------------------------------------------------------------------------------------


class LayoutCheckFailed(MmabitsError, RuntimeError):
    """A kernel did not multiply the matrices it was given: its layout, a descriptor or the instruction is not what is thought."""


def _batches(kernel: InstructionKernel, operands: TileOperands) -> Iterator[TileOperands]:
    layouts = (kernel.a, kernel.b, kernel.accumulator, kernel.accumulator, *(kernel.scales or ()))
    most = max(1, _BATCH_BYTES // sum(layout.words * 4 for layout in layouts))
    return (operands.part(start, start + most) for start in range(0, operands.tiles, most))


def run_tiles(device: Device, kernel: InstructionKernel, operands: TileOperands) -> Any:
    """Run a kernel over tiles, in batches.

    Returns:
        (tiles, M, N) codes of D.
    """
    parts = []
    for part in _batches(kernel, operands):
        images: Images = pack(kernel, part)
        words: Words = device.run(kernel, images)
        parts.append(kernel.accumulator.unpack(words))
    return np.concatenate(parts)


def check_layout(device: Device, kernel: InstructionKernel, *, seed: int = 0) -> int:
    """Run a kernel on small integers, where every datapath must give the exact result.

    Returns:
        How many results agreed.

    Raises:
        LayoutCheckFailed: one did not.
    """
    operands = join_chain(exact_operands(kernel.instruction, kernel.arch, _CHECK_TILES * kernel.chain, seed), kernel.chain)
    found, wanted = run_tiles(device, kernel, operands), exact_result(kernel.instruction, operands)
    # By value: a datapath may give either zero.
    wrong = np.argwhere(decode(found, kernel.instruction.d_type) != decode(wanted, kernel.instruction.d_type))
    if len(wrong):
        tile, row, column = (int(place) for place in wrong[0])
        first = f"tile {tile}, row {row}, column {column}: {int(found[tile, row, column]):#x}, not {int(wanted[tile, row, column]):#x}"
        raise LayoutCheckFailed(
            f"{kernel.instruction} on {kernel.arch}: {len(wrong)} of {found.size} exact small sums are wrong ({first}); nothing is recorded"
        )
    return int(found.size)


@lru_cache(maxsize=1)
def source_version() -> str:
    """The commit this code is from, with `-dirty` where files differ from it; the version where there is no repository."""
    from mmabits import __version__

    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return f"mmabits {__version__}"
    try:
        commit, changed = (
            subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True).stdout
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return f"mmabits {__version__}"
    return commit.strip() + ("-dirty" if changed.strip() else "")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _manifest(
    job: Job, info: DeviceInfo, program: CompiledProgram, kernel: InstructionKernel, checked: int, command: str
) -> dict[str, Any]:
    from mmabits import __version__

    return {
        "compute_capability": info.compute_capability, "driver": info.driver, "cuda": info.cuda, "nvrtc": program.compiler,
        "compiler_options": list(program.options), "ptx_sha256": program.ptx_sha256 if program.ptx else _NONE,
        "sass_sha256": program.cubin_sha256 if program.cubin else _NONE, "instruction_descriptor": kernel.idesc,
        "version": __version__, "commit": source_version(), "command": command, "generator": job.generator, "seed": job.seed,
        "tiles": job.tiles, "results": job.tiles * job.instruction.m * job.instruction.n, "layout_check_results": checked,
        "recorded_at": _now(),
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a job."""

    job: Job
    path: Path
    state: str
    """`recorded`, `kept` (it was finished before) or `failed`."""
    error: str = ""


def _needed_bytes(job: Job) -> int:
    """Memory that a job takes, about: the values of the largest operand as float64 a few times over, and every code twice."""
    sizes = [(math.prod(shape), spec.container_bits // 8) for _, spec, shape in operand_formats(job.instruction, chain=job.chain)]
    results = job.instruction.m * job.instruction.n * job.instruction.d_type.container_bits // 8
    return job.tiles * (_VALUE_BYTES * max(size for size, _ in sizes) + 2 * (sum(size * width for size, width in sizes) + results))


def _generated(job: Job, generator: Generator) -> TileOperands:
    memory.require(_needed_bytes(job), f"a recording of {job.tiles:,} tiles")
    try:
        made = generator(job.instruction, job.arch, job.tiles * job.chain, job.seed)
    except (MmabitsError, MemoryError):
        raise
    except Exception as error:
        if job.generator in GENERATORS:
            raise
        raise OperandError(f"generator {job.generator} fails: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(made, TileOperands):
        raise OperandError(f"generator {job.generator} makes {type(made).__name__}, not TileOperands")
    operands = join_chain(made, job.chain)
    check_operands(job.instruction, operands, chain=job.chain)
    if operands.tiles != job.tiles:
        raise OperandError(f"generator {job.generator} made {operands.tiles} tiles; {job.tiles} were asked for")
    return operands


def _keep(path: Path, job: Job, info: DeviceInfo) -> None:
    """A finished file stays as it is, if it is what was asked for; a missing manifest is made up for."""
    found = read_recording(path)
    asked = {
        "instruction": job.instruction.ptx, "gpu": info.name, "kind": str(info.kind), "generator": job.generator, "seed": job.seed,
        "tiles": job.tiles, "chain": job.chain,
    }  # fmt: skip
    there = {**found.manifest, "instruction": found.instruction.ptx, "gpu": found.gpu, "kind": found.kind, "chain": found.chain}
    other = [f"{name} {there.get(name)!r} (asked: {value!r})" for name, value in asked.items() if there.get(name) != value]
    if other:
        raise VectorFileError(f"{path}: is there already, with {', '.join(other)}; a finished recording never changes")
    if not manifest_path(path).exists():
        write_manifest(path, found)


def record_job(device: Device, job: Job, folder: Path, *, command: str = "") -> Outcome:
    """Record one file, or keep it where it is finished.

    Raises:
        MmabitsError: it could not be recorded; nothing half-made is left.
    """
    path = folder / job.file_name
    if path.exists():
        _keep(path, job, device.info)
        return Outcome(job=job, path=path, state="kept")
    kernel = InstructionKernel(instruction=job.instruction, arch=job.arch, chain=job.chain)
    operands = _generated(job, find_generator(job.generator))
    program = device.prepare(kernel)
    checked = check_layout(device, kernel, seed=job.seed)
    d = run_tiles(device, kernel, operands)
    recording = Recording(
        instruction=job.instruction, arch=job.arch, kind=device.info.kind, gpu=device.info.name, chain=job.chain, operands=operands, d=d,
        manifest=_manifest(job, device.info, program, kernel, checked, command),
    )  # fmt: skip
    write_recording(path, recording)
    return Outcome(job=job, path=path, state="recorded")


_SPOILS_ONE: Final = (CompilerRefused, LayoutCheckFailed, UnsupportedInstruction, OperandError, NotEnoughMemory, VectorFileError)
"""What spoils one file only. A device that fails, a missing compiler or a full disk ends the run."""


def record(
    device: Device, jobs: Sequence[Job], folder: Path, *, command: str = "", advance: Callable[[Outcome], None] = lambda _: None
) -> list[Outcome]:
    """Record files one after another. An interrupted run is resumed by the same call.

    Args:
        device: what runs the kernels; its architecture must be that of the jobs.
        jobs: see `make_jobs`.
        folder: where the files go; made if missing.
        command: the command line, for the manifests.
        advance: called after each.

    Returns:
        What became of each job, in order. A job that fails leaves its error there, and the next ones go on.

    Raises:
        OperandError: jobs for another architecture.
        VectorFileError: the folder or a file cannot be written.
        DeviceFailed, DeviceUnavailable: the GPU broke off, or the compiler is missing; finished files stay.
    """
    others = {job.arch for job in jobs} - {device.info.arch}
    if others:
        raise OperandError(f"the device is {device.info.name} ({device.info.arch}); it cannot record for {', '.join(sorted(others))}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VectorFileError(f"{folder}: cannot be made ({error.strerror})") from error
    outcomes = []
    for job in jobs:
        try:
            outcome = record_job(device, job, folder, command=command)
        except NotWritten:
            raise
        except _SPOILS_ONE as error:
            outcome = Outcome(job=job, path=folder / job.file_name, state="failed", error=str(error))
        outcomes.append(outcome)
        advance(outcome)
    return outcomes
