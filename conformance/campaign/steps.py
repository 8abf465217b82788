"""Running one step of a campaign: what it recorded, how much of that differs from the emulator, and what is worth keeping whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from mmabits.conformance.campaign import engines
from mmabits.conformance.campaign.archive import safe_name
from mmabits.conformance.campaign.bench import Bench
from mmabits.conformance.campaign.cases import WAYS, described_case
from mmabits.conformance.campaign.plan import CHOICE_SHAPES, CampaignStep
from mmabits.conformance.diff.kernel_cases import KernelCase
from mmabits.conformance.record.compared import ProductMemory
from mmabits.conformance.record.functions import computed, plans_for, record_functions
from mmabits.conformance.record.session import Job, make_jobs, record
from mmabits.conformance.record.tiles import TileOperands
from mmabits.conformance.recorded.calls import KernelRun
from mmabits.conformance.recorded.files import data_sha256
from mmabits.conformance.recorded.functions import BLOCK, FunctionTable, read_function, write_function
from mmabits.conformance.recorded.tiles import Recording, read_recording, write_recording
from mmabits.isa import EmulationError, MmabitsError, OperandError, parse
from mmabits.reports.failures import told

SEED: Final = 0
GENERATORS: Final = ("special", "probes", "normal", "random-bits")
CHAIN: Final = 4
MANY_RESULTS: Final = 1 << 21
MOST_WHOLE: Final = 1 << 18
"""Results of a recording that is kept whole where some differ; of a longer one, so many of the tiles that differ."""
MOST_FUNCTION_BYTES: Final = 6 << 20
_SOME_BLOCKS: Final = 4
"""Blocks of operands that are summed where the emulator stands in for a GPU, and that are compared in either case."""
_TOOLKIT: Final = Path("/usr/local/cuda")
_LOG_BYTES: Final = 1 << 18
_SHOWN: Final = 6
_LINES: Final = 40
_TESTS: Final = ("tests/unit/emulator/test_cuda.py", "tests/record/test_gpu.py")
"""Beside them only tests/diff/test_gpu.py is of a GPU, whose cases are steps here."""
_FAILED_TESTS: Final = re.compile(r"(\d+) (?:failed|errors?)\b")


@dataclass(kw_only=True)
class StepResult:
    """What became of a step."""

    state: str
    """`done`; `failed`, which is tried once more; `left out`: it cannot run here at all; `ended`: it took too long."""
    line: str
    results: int = 0
    differ: int = 0
    said: list[str] = field(default_factory=list)
    """What was found besides."""
    files: dict[str, bytes] = field(default_factory=dict)
    """To keep, by name."""
    recordings: list[dict[str, Any]] = field(default_factory=list)
    """Of each recording what it takes to make it again."""
    cpu: float = 0.0
    """Seconds of the processor, which other programs do not change as they do those of the clock."""
    spoils: bool = False
    """Whether the device is not to be trusted with another step until the process is a new one."""


class LeftOut(MmabitsError):
    """A step that this machine cannot run."""


def run_step(bench: Bench, step: CampaignStep, *, limit: float, command: str = "") -> StepResult:
    """Run a step; whatever goes wrong is its result.

    Args:
        bench: where.
        step: of `plan_for`.
        limit: seconds that it has; only steps that start programs keep to it, the others are ended from outside.
        command: the command line, for manifests.
    """
    from mmabits.conformance.record.driver import DeviceFailed

    try:
        with tempfile.TemporaryDirectory(prefix="mmabits-campaign-") as folder:
            return _RUNNERS[step.kind](bench, step, Path(folder), limit, command)
    except LeftOut as error:
        return StepResult(state="left out", line=str(error))
    except Exception as error:  # of whatever kind: the other steps are run
        return StepResult(state="failed", line=told(error), spoils=isinstance(error, DeviceFailed))


# Instructions --------------------------------------------------------------------------------------------------------------


def jobs_of(step: CampaignStep, arch: str) -> list[Job]:
    """The recordings of an instruction: each generator, and a chain; none of those that scale C, whose small sums are not exact."""
    instruction = parse(step.name)
    alone = make_jobs([instruction], arch=arch, generators=GENERATORS, seed=SEED)
    if instruction.scale_input_d:
        return alone
    return [
        *alone,
        *make_jobs([instruction], arch=arch, generators=("normal",), seed=SEED, chain=CHAIN),
    ]


def many_jobs_of(step: CampaignStep, arch: str) -> list[Job]:
    """Many results of an instruction, of operands that its other recordings have not."""
    instruction = parse(step.name)
    tiles = MANY_RESULTS // (instruction.m * instruction.n)
    return make_jobs([instruction], arch=arch, generators=("random-bits", "normal"), seed=SEED + 1, tiles=tiles)


def _instruction(bench: Bench, step: CampaignStep, folder: Path, _limit: float, command: str) -> StepResult:
    return _recorded(bench, jobs_of(step, bench.device.info.arch), folder, command)


def _many(bench: Bench, step: CampaignStep, folder: Path, _limit: float, command: str) -> StepResult:
    return _recorded(bench, many_jobs_of(step, bench.device.info.arch), folder, command)


def _recorded(bench: Bench, jobs: Sequence[Job], folder: Path, command: str) -> StepResult:
    """Record, compare, and keep what differs."""
    from mmabits.conformance.diff.counting import count

    found = StepResult(state="done", line="")
    for outcome in record(bench.device, jobs, folder, command=command):
        what = outcome.job.generator + (f", chains of {outcome.job.chain}" if outcome.job.chain > 1 else "")
        if outcome.error:
            found.state = "failed"
            found.said.append(f"{what}: {outcome.error}")
            continue
        recording = read_recording(outcome.path)
        report = count(recording, limit=1)
        found.results += report.rows
        found.differ += report.differing
        row = described(recording, report.differing)
        found.recordings.append(row)
        if report.differing:
            seed = f".seed{recording.manifest['seed']}" if recording.manifest["seed"] else ""
            row["whole"] = f"differing/{safe_name(outcome.path.stem + seed)}.safetensors"
            found.files[row["whole"]], row["kept_tiles"] = _kept(recording, outcome.path)
            classes = report.as_json["classes"]
            kinds = ", ".join(f"{name} {number}" for name, number in classes.items())
            found.said.append(
                f"{what}: {report.differing:,} of {report.rows:,} differ ({kinds}; at most {report.as_json['largest_ulp']:,} ulp)"
            )
            found.said += [
                f"{what}, row {each.row}: recorded {each.recorded:#x}, emulated {each.computed:#x}, c {each.c:#x}"
                for each in report.differences
            ]
    if found.state == "failed" and not found.recordings:
        found.line = found.said[0]
    else:
        found.line = f"{found.results:,} results with C, {found.differ:,} differ"
    return found


def _kept(recording: Recording, path: Path) -> tuple[bytes, int]:
    """A recording's file and its tiles: all, or of many the first that differ."""
    tiles = recording.tiles
    if recording.d.size <= MOST_WHOLE:
        return path.read_bytes(), tiles
    wrong = np.flatnonzero((recording.results != recording.emulated()).reshape(tiles, -1).any(axis=1))
    wrong = wrong[: max(1, MOST_WHOLE // (recording.d.size // tiles))]
    there: dict[str, Any] = {name: None if codes is None else codes[wrong] for name, codes in recording.operands.named()}
    operands = TileOperands(**there)
    part = replace(recording, operands=operands, d=recording.d[wrong], manifest={**recording.manifest, "tiles_of_all": wrong.tolist()})
    short = path.with_name("part" + path.suffix)
    write_recording(short, part)
    return short.read_bytes(), len(wrong)


def described(recording: Recording, differ: int) -> dict[str, Any]:
    """What it takes to make a recording again, and to know that it is the same."""
    manifest = recording.manifest
    operands = {name: codes for name, codes in recording.operands.named() if codes is not None}
    return {
        "instruction": recording.instruction.ptx, "arch": recording.arch, "kind": str(recording.kind), "gpu": recording.gpu,
        "generator": manifest["generator"], "seed": manifest["seed"], "tiles": manifest["tiles"], "chain": recording.chain,
        "results": int(recording.d.size), "differ": differ, "operands_sha256": data_sha256(operands),
        "data_sha256": recording.data_sha256, "manifest": dict(manifest),
    }  # fmt: skip


# Functions -----------------------------------------------------------------------------------------------------------------


def _function(bench: Bench, step: CampaignStep, folder: Path, _limit: float, command: str) -> StepResult:
    plans = plans_for(bench.functions.info.arch, [step.name])
    blocks = None if bench.is_hardware else _SOME_BLOCKS
    (outcome,) = record_functions(bench.functions, plans, folder, blocks=blocks, command=command)
    if outcome.error:
        raise OperandError(outcome.error)
    table = read_function(outcome.path)
    compared, differ, words = compare_table(table, most_blocks=_SOME_BLOCKS)
    found = StepResult(state="done", line=f"{compared:,} results, {differ:,} differ", results=compared, differ=differ, said=words)
    if len(table.blocks):
        found.line += f"; {len(table.blocks):,} blocks of 2^20 operands summed"
    name = f"functions/{safe_name(outcome.path.stem)}.safetensors"
    if differ:
        found.files[name], kept = _cut_to_fit(table, outcome.path)
        found.recordings.append({"function": step.name, "ranges": [], "sha256": [], "differ": differ, "kept": kept})
        return found
    ranges = [f"{first:#010x}+{count}" for first, count in table.ranges]
    digests = [hashlib.sha256(results.astype("<u4").tobytes()).hexdigest() for results in table.results]
    found.recordings.append({"function": step.name, "ranges": ranges, "sha256": digests})
    short = folder / "sums.safetensors"  # the results are the emulator's: their sums tell as much
    write_function(short, replace(table, ranges=(), results=()))
    found.files[name] = short.read_bytes()
    return found


def _cut_to_fit(table: FunctionTable, path: Path) -> tuple[bytes, int]:
    """A function's file and its results: all, or as many of each range's first as leave room for other functions; the sums stay."""
    data, cut = path.read_bytes(), table
    while len(data) > MOST_FUNCTION_BYTES:
        results = tuple(each[: len(each) // 2] for each in cut.results)
        ranges = tuple((first, len(each)) for (first, _), each in zip(cut.ranges, results, strict=True))
        cut = replace(cut, ranges=ranges, results=results)
        short = path.with_name(f"cut{sum(map(len, results))}{path.suffix}")
        write_function(short, cut)
        data = short.read_bytes()
    return data, sum(map(len, cut.results))


def compare_table(table: FunctionTable, *, most_blocks: int | None) -> tuple[int, int, list[str]]:
    """How many results of a function the emulator does not give, and words about them.

    Args:
        table: the recording.
        most_blocks: sums to compare, evenly spread; all if None.

    Returns:
        How many results were compared, how many differ or stand in blocks whose sum does, and words.
    """
    compared = differ = largest = 0
    first_words: list[str] = []
    for (first, count), results in zip(table.ranges, table.results, strict=True):
        for start in range(0, count, BLOCK):
            part = results[start : start + BLOCK]
            codes = np.arange(first + start, first + start + len(part), dtype=np.uint32)
            emulated = computed(table.opcode, codes, table.arch)
            places = np.flatnonzero(emulated != part)
            compared, differ = compared + len(part), differ + len(places)
            if len(places):
                apart = np.abs(part[places].astype(np.int64) - emulated[places].astype(np.int64))
                largest = max(largest, int(apart.max()))
                first_words += [
                    f"at {int(codes[place]):#010x}: recorded {int(part[place]):#010x}, emulated {int(emulated[place]):#010x}"
                    for place in places[: _SHOWN - len(first_words)]
                ]
    wrong = table.wrong_blocks(
        lambda first, count: computed(table.opcode, np.arange(first, first + count, dtype=np.uint32), table.arch), most=most_blocks
    )
    looked = len(table.blocks) if most_blocks is None else min(most_blocks, len(table.blocks))
    words = [f"{differ:,} of {compared:,} differ, by codes {largest} apart at most", *first_words] if differ else []
    words += [f"the sum of block {each:#x} differs" for each in wrong]
    return compared + looked, differ + len(wrong), words


# What the frameworks and libraries do ------------------------------------------------------------------------------------


def _case(bench: Bench, step: CampaignStep, folder: Path, _limit: float, _command: str) -> StepResult:
    from mmabits.conformance.diff.against import compare_recorded
    from mmabits.conformance.diff.recorder import ALL_CASES, keep, record_any
    from mmabits.isa import DeviceUnavailable

    case = ALL_CASES[step.name]
    kept: dict[str, bytes] = {}
    with _triton_cache(folder / "triton") as ptx:
        try:
            run = record_any(case, seed=SEED, stand_in=bench.stand_in)
        except DeviceUnavailable as error:
            raise LeftOut(str(error)) from error
        except EmulationError as error:  # the stand-in's: this version of Triton does not compile it
            raise LeftOut(f"{error}{f' ({case.note})' if isinstance(case, KernelCase) and case.note else ''}") from error
        compared = compare_recorded(run, arch=bench.device.info.arch)
        kept |= {f"ptx/{safe_name(f'{step.name}-{name}')}": data for name, data in ptx() if bench.is_hardware}
        found = StepResult(state="done", line=f"{compared.elements:,} elements, {compared.differing:,} differ", results=compared.elements,
                           differ=compared.differing, files=kept)  # fmt: skip
        way = WAYS[0]
        if compared.differing and isinstance(case, KernelCase) and isinstance(run, KernelRun) and case.framework == "triton":
            differ, words = _as_compiled(case, run, bench.device.info.arch)
            found.said.append(words)
            if differ == 0:
                way, found.differ, found.line = WAYS[1], 0, f"{compared.elements:,} elements, 0 differ from the compiled kernel's"
            elif differ is not None:
                words_of_launch, launches = _first_instruction(bench, case, run, folder / "launches")
                found.said += words_of_launch
                found.files |= launches
        elif compared.differing and isinstance(case, KernelCase) and isinstance(run, KernelRun) and case.framework == "cuda":
            words_of_launch, launches = _first_instruction(bench, case, run, folder / "launches")
            found.said += words_of_launch
            found.files |= launches
    path = keep(run, folder).path
    data = path.read_bytes()
    found.recordings.append({**described_case(run, way), "differ": found.differ, "versions": run.versions, "verdict": compared.verdict})
    if found.differ:
        found.recordings[-1]["whole"] = f"differing/{safe_name(path.stem)}.safetensors"
        found.files[f"differing/{safe_name(path.stem)}.safetensors"] = data
        told_lines = list(compared.lines())
        schedules = [line.strip() for line in told_lines if "schedule" in line]  # which one explains it comes first
        found.said += [*schedules[:_SHOWN], *told_lines[:_LINES]]
    return found


def _as_compiled(case: KernelCase, run: KernelRun, arch: str) -> tuple[int | None, str]:
    """How many elements differ from the kernel's PTX emulated, which fuses and divides as the GPU does; None: it cannot be."""
    from mmabits.conformance.diff.kernels import emulated

    try:
        outputs, _ = emulated(case, run.inputs, arch, way=WAYS[1])
    except MmabitsError as error:
        return None, f"the compiled kernel is not emulated: {error}"
    codes = [[np.ascontiguousarray(each[name]).view(np.uint8) for each in (outputs, run.outputs)] for name in run.outputs]
    differ = sum(
        int((one.reshape(-1, each.dtype.itemsize) != two.reshape(-1, each.dtype.itemsize)).any(axis=1).sum())
        for (one, two), each in zip(codes, run.outputs.values(), strict=True)
    )
    return differ, f"{differ:,} differ from the compiled kernel emulated; those above from Triton's interpreter"


def _first_instruction(bench: Bench, case: KernelCase, run: KernelRun, folder: Path) -> tuple[list[str], dict[str, bytes]]:
    """The same PTX launched by the driver: the first instruction whose result differs, and the launch that it is of."""
    from mmabits.conformance.diff.kernels import emulated
    from mmabits.conformance.diff.runs import Keeper, compare_run
    from mmabits.conformance.diff.runs import emulated as launched
    from mmabits.conformance.record.driver import CudaDevice
    from mmabits.conformance.record.runs import RunDevice

    folder.mkdir()
    keeper = Keeper(folder)
    emulated(case, run.inputs, bench.device.info.arch, way=WAYS[1], keeper=keeper)
    other = RunDevice(bench.device) if isinstance(bench.device, CudaDevice) else lambda each: launched(each, bench.stand_in)
    words: list[str] = []
    for path in keeper.paths:
        try:
            compared = compare_run(path, other=other)
        except MmabitsError as error:
            words.append(f"launch {path.stem}: {error}")
            continue
        if compared.differences:
            words.append(f"launch {path.stem}: {compared.differences[0]}")
            words.append(str(compared.parting) if compared.parting is not None else compared.untold)
            return words, {f"launches/{safe_name(f'{case.name}-{path.stem}')}.safetensors": path.read_bytes()}
    return [*words, f"none of {len(keeper.paths)} launches of the same PTX by the driver differs"], {}


@contextmanager
def _triton_cache(folder: Path) -> Iterator[Callable[[], Iterator[tuple[str, bytes]]]]:
    """What Triton compiles in the block, in a folder of its own, and without the paths of this machine's sources."""
    wanted = {"TRITON_CACHE_DIR": str(folder), "TRITON_DISABLE_LINE_INFO": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield lambda: ((f"{number}-{path.name}", path.read_bytes()) for number, path in enumerate(sorted(folder.rglob("*.ptx")), start=1))
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _memory_of(bench: Bench) -> ProductMemory | None:
    """Where products of cuBLASLt are run; None where the emulator stands in, which would compute them for minutes."""
    from mmabits.conformance.record.compared import GpuMemory
    from mmabits.conformance.record.driver import CudaDevice

    return GpuMemory(bench.device) if isinstance(bench.device, CudaDevice) else None


def _choices(bench: Bench, _step: CampaignStep, folder: Path, _limit: float, command: str) -> StepResult:
    from mmabits.conformance.record.choices import CublasLtLibrary, RulesLibrary, questions, record_choices
    from mmabits.isa import DeviceUnavailable

    arch = bench.device.info.arch
    asked = questions(CHOICE_SHAPES)
    try:
        library = CublasLtLibrary() if bench.is_hardware else RulesLibrary(arch)
        out = folder / "choices.json"
        answers = record_choices(library, bench.device.info, asked, out, command=command, memory=_memory_of(bench))
    except DeviceUnavailable as error:
        raise LeftOut(str(error)) from error
    rules = RulesLibrary(arch)
    others = [answer for answer in answers if answer.config is not None and answer.config != rules.ask(answer.question).config]
    given = sum(answer.config is not None for answer in answers)
    compared = [(answer.question, answer.compared) for answer in answers if answer.compared is not None]
    parted = [(asked_of, found) for asked_of, found in compared if not found.is_equal]
    told_of = [f"{row.m}x{row.n}x{row.k} {' x '.join(row.types[:2])}: {found.words}" for row, found in parted]
    also = f"; {len(compared)} products run, {len(parted)} not as their schedule says" if compared else ""
    return StepResult(
        state="done", results=given + len(compared), differ=len(others) + len(parted), said=told_of,
        line=f"cuBLASLt {library.version_words}: {given} of {len(asked)} shapes answered, {len(others)} not as the rules say{also}",
        files={"choices/choices.json": out.read_bytes()},
    )  # fmt: skip


def _identify(bench: Bench, step: CampaignStep, _folder: Path, _limit: float, _command: str) -> StepResult:
    from mmabits.conformance.identify import identify
    from mmabits.conformance.record.asking import AskedInstruction

    row = parse(step.name)
    found = identify(
        AskedInstruction(bench.device, row), a_type=row.a_type.name, b_type=row.b_type.name, d_type=row.d_type.name, k=row.k,
        scale_type=row.scale_type.name if row.scale_type else None, block_size=row.block,
    )  # fmt: skip
    names = ", ".join(found.names) or "no known datapath agrees"
    evidence = {
        "row": found.row, "probes": found.probes, "contradictions": found.contradictions, "matches": list(found.names),
        "undecided": [{"what": each.what, "alternatives": list(each.alternatives)} for each in found.undecided],
    }  # fmt: skip
    return StepResult(
        state="done", line=f"{found.probes:,} probes, {found.contradictions} contradict what was found; {names}", results=found.probes,
        said=[" ".join(found.row.split()), *found.lines()], recordings=[{"identified": step.name, **evidence}],
    )  # fmt: skip


def with_toolkit(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which numba-cuda finds the NVVM of a toolkit: it looks beside an installed NVRTC, where NVVM may not be."""
    compiler = shutil.which("nvcc", path=environment.get("PATH"))
    folders = [*([Path(compiler).resolve().parents[1]] if compiler else []), _TOOLKIT]
    folder = next((each for each in folders if (each / "nvvm").is_dir()), None)
    if folder is None or environment.get("CUDA_HOME") or environment.get("CUDA_PATH"):
        return dict(environment)
    return {**environment, "CUDA_HOME": str(folder)}


def _cuda(bench: Bench, _step: CampaignStep, folder: Path, limit: float, _command: str) -> StepResult:
    """In a process of its own: what Numba compiles and allocates there harms no other step."""
    environment = with_toolkit(os.environ) if bench.is_hardware else {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    out, log = folder / "out", folder / "log"
    command = [sys.executable, "-m", engines.__name__, "hardware" if bench.is_hardware else "simulator"]
    with open(out, "wb") as lines, open(log, "wb") as errors:
        try:
            status = subprocess.run(
                command, env=environment, stdout=lines, stderr=errors, timeout=max(limit - 5, 1), check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = -1
    rows = engines.read_lines(out.read_bytes())
    missing = next((row["missing"] for row in rows if "missing" in row), None)
    if missing is not None:
        raise LeftOut(missing)
    products = [row for row in rows if "results" in row]
    results, differ = (sum(row[name] for row in products) for name in ("results", "differ"))
    line = f"{len(products)} products, {results:,} elements of device='cuda' against the CPU's, {differ:,} differ"
    state = "done"
    if status:
        state, line = "failed", f"{line}; {f'ended after {limit:.0f} s' if status == -1 else f'exit status {status}'}"
    files = {"logs/cuda.txt": log.read_bytes()[-_LOG_BYTES:]} if status else {}
    return StepResult(state=state, line=line, results=results, differ=differ, said=[engines.words_of(row) for row in rows], files=files,
                      recordings=[{"engine": row.get("name"), **row} for row in rows])  # fmt: skip


def _tests(bench: Bench, _step: CampaignStep, folder: Path, limit: float, _command: str) -> StepResult:
    if not bench.is_hardware:
        raise LeftOut("the tests marked gpu take a GPU")
    root = Path(__file__).resolve().parents[2]
    there = [name for name in _TESTS if (root / name).exists()]
    if not there:
        raise LeftOut("the tests lie beside the code in a checkout only")
    log = folder / "log"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short", *there]
    ended = ""
    with open(log, "wb") as file:
        try:
            status = subprocess.run(
                command,
                cwd=root,
                env=with_toolkit(os.environ),
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=max(limit - 5, 1),
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status, ended = -1, f"ended after {limit:.0f} s"
    text = log.read_bytes()[-_LOG_BYTES:]
    last = (text.decode(errors="replace").strip().splitlines() or ["nothing was printed"])[-1]
    if "No module named pytest" in last:
        raise LeftOut("the tests need pytest, which is not installed")
    differ = sum(map(int, _FAILED_TESTS.findall(last)))
    state = "done" if not status or (differ and not ended) else "failed"  # a test that fails is a finding
    return StepResult(state=state, line=ended or last.strip("= "), differ=differ, files={"logs/tests.txt": text})


_RUNNERS: Final[Mapping[str, Callable[[Bench, CampaignStep, Path, float, str], StepResult]]] = {
    "instruction": _instruction, "many": _many, "identify": _identify, "function": _function, "choices": _choices, "product": _case,
    "kernel": _case, "cuda": _cuda, "tests": _tests,
}  # fmt: skip


def result_row(result: StepResult) -> dict[str, Any]:
    """A result for the manifest, without its files."""
    row = {"state": result.state, "line": result.line, "results": result.results, "differ": result.differ, "said": result.said,
           "recordings": result.recordings, "cpu": result.cpu}  # fmt: skip
    return dict(json.loads(json.dumps(row)))


__all__ = ["GENERATORS", "LeftOut", "StepResult", "compare_table", "described", "jobs_of", "result_row", "run_step"]
