"""Files of recorded dot products, run through the engine and compared bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rich.markup import escape
from rich.table import Table

from mmabits.conformance.distances import Distances, distances
from mmabits.conformance.vectors import SUFFIX, DotVectors, read_vectors
from mmabits.emulator.api import dot_rows
from mmabits.emulator.codecs import decode
from mmabits.isa import Evidence, FormatSpec, Lowering, format_spec, lower, parse, visible
from mmabits.isa.errors import VectorFileError
from mmabits.reports.failures import of_file
from mmabits.research.trace import trace

Codes = npt.NDArray[Any]

FOLDER_VARIABLE: Final = "MMABITS_RECORDINGS"
_CHUNK: Final = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Step:
    """One fused step of the model: which elements of K it takes, and the accumulator after it."""

    elements: tuple[int, ...]
    accumulator: int
    largest: int
    """The element whose product, block scales included, is the largest."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A row whose recorded result is not the computed one. Operands and results are codes."""

    row: int
    a: tuple[int, ...]
    b: tuple[int, ...]
    c: int
    scale_a: tuple[int, ...] | None
    scale_b: tuple[int, ...] | None
    recorded: int
    computed: int
    steps: tuple[Step, ...]
    parts_by: int
    """Number, from 1, of the step by which the results have parted: the last one that changed the accumulator."""
    separate_add: bool
    """The steps start from zero, and C is added after them."""

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values: codes as hexadecimal text."""
        return {
            "row": self.row,
            "a": _hex_all(self.a),
            "b": _hex_all(self.b),
            "c": hex(self.c),
            "scale_a": _hex_all(self.scale_a),
            "scale_b": _hex_all(self.scale_b),
            "recorded": hex(self.recorded),
            "computed": hex(self.computed),
            "parts_by_step": self.parts_by,
            "separate_add": self.separate_add,
            "steps": [
                {"elements": list(step.elements), "accumulator": hex(step.accumulator), "largest_term": step.largest} for step in self.steps
            ],
        }


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """What came of one file."""

    path: str
    error: str | None = None
    """Why it could not be replayed; then nothing below counts."""
    kind: str = ""
    gpu: str = ""
    arch: str = ""
    instruction: str = ""
    a_type: str = ""
    b_type: str = ""
    c_type: str = ""
    d_type: str = ""
    evidence: Evidence | None = None
    """Of the instruction's rows."""
    rows: int = 0
    differing: int = 0
    differences: tuple[Difference, ...] = ()
    """The first of them."""
    distances: Distances = field(default_factory=Distances)
    """How far apart all of them are."""

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        names = ("path", "error", "kind", "gpu", "arch", "instruction", "a_type", "b_type", "c_type", "d_type", "rows", "differing")
        return {
            **{name: getattr(self, name) for name in names},
            "evidence": None if self.evidence is None else str(self.evidence),
            **self.distances.as_json,
            "differences": [difference.as_json for difference in self.differences],
        }


def _hex_all(codes: tuple[int, ...] | None) -> list[str] | None:
    return None if codes is None else [hex(code) for code in codes]


# Finding files -------------------------------------------------------------------------------------------------------


def recordings_folder() -> Path | None:
    """Where recordings are looked for without being told: `$MMABITS_RECORDINGS`, else ../shared/hardware beside a checkout.

    Raises:
        VectorFileError: the variable names no folder.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        if not Path(named).is_dir():
            raise VectorFileError(f"{FOLDER_VARIABLE} is {named!r}, which is no folder")
        return Path(named)
    beside = Path(__file__).resolve().parents[2] / "shared" / "hardware"
    return beside if beside.is_dir() else None


def find_files(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The vector files that files and folders (with all below them) name, each once, those of a folder in order.

    Raises:
        VectorFileError: a path that is not there, or a folder without any such file.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob(f"*{SUFFIX}") if not file.is_dir())
            if not inside:
                raise VectorFileError(f"{path}: no file *{SUFFIX} in this folder or below it")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise VectorFileError(f"{path}: no such file or folder")
    return list(dict.fromkeys(found))


# Replaying -----------------------------------------------------------------------------------------------------------


def replay_files(files: Sequence[Path], *, limit: int = 3) -> Iterator[FileReport]:
    """Replay files one by one.

    Args:
        files: vector files.
        limit: how many differing rows of each file to describe.

    Yields:
        A report for each file, in order; a file that cannot be read or replayed gives one with `error` set.
    """
    for path in files:
        try:
            yield _replay_file(path, limit)
        except Exception as error:  # of whatever kind: the other files are replayed
            yield FileReport(path=str(path), error=of_file(path, error))


def _replay_file(path: Path, limit: int) -> FileReport:
    """A file of either format: dot products, or the tiles that `mmabits record` writes."""
    from mmabits.conformance.record.recording import is_recording
    from mmabits.conformance.record.replaying import replay_recording

    if is_recording(path):
        return replay_recording(path, limit=limit)
    return replay(read_vectors(path), path=str(path), limit=limit)


def replay(vectors: DotVectors, *, path: str = "", limit: int = 3) -> FileReport:
    """Run every row through the engine and compare the result codes.

    Raises:
        UnsupportedInstruction: the architecture lacks the instruction.
    """
    lowering = lower(parse(vectors.instruction), vectors.arch)
    differing, apart = 0, Distances()
    differences: list[Difference] = []
    for start in range(0, vectors.rows, _CHUNK):
        part = slice(start, min(start + _CHUNK, vectors.rows))
        computed = _run(vectors, lowering, part)
        apart += distances(vectors.d[part], computed, vectors.d_type)
        for row in np.flatnonzero(computed != vectors.d[part]):
            differing += 1
            if len(differences) < limit:
                differences.append(_difference(vectors, lowering, start + int(row), int(computed[row])))
    return FileReport(
        path=path, kind=vectors.kind, gpu=vectors.gpu, arch=vectors.arch, instruction=vectors.instruction,
        a_type=vectors.a_type.name, b_type=vectors.b_type.name, c_type=vectors.c_type.name, d_type=vectors.d_type.name,
        evidence=lowering.evidence, rows=vectors.rows, differing=differing, differences=tuple(differences), distances=apart,
    )  # fmt: skip


def _rows_of(codes: Codes | None, part: slice) -> Codes | None:
    return None if codes is None else codes[part]


def _run(vectors: DotVectors, lowering: Lowering, part: slice) -> Codes:
    result: Codes = dot_rows(
        lowering.instruction, lowering.arch, vectors.a[part], vectors.b[part], vectors.c[part],
        scale_a=_rows_of(vectors.scale_a, part), scale_b=_rows_of(vectors.scale_b, part),
    )  # fmt: skip
    return result


def _difference(vectors: DotVectors, lowering: Lowering, row: int, computed: int) -> Difference:
    steps = _trace(vectors, lowering, row)
    accumulators = [0 if lowering.separate_add else int(vectors.c[row]), *(step.accumulator for step in steps)]
    changes = [number for number in range(1, len(accumulators)) if accumulators[number] != accumulators[number - 1]]
    return Difference(
        row=row, a=_codes(vectors.a, row), b=_codes(vectors.b, row), c=int(vectors.c[row]),
        scale_a=None if vectors.scale_a is None else _codes(vectors.scale_a, row),
        scale_b=None if vectors.scale_b is None else _codes(vectors.scale_b, row),
        recorded=int(vectors.d[row]), computed=computed, steps=steps, parts_by=changes[-1] if changes else len(steps),
        separate_add=lowering.separate_add,
    )  # fmt: skip


def _codes(codes: Codes, row: int) -> tuple[int, ...]:
    return tuple(int(code) for code in np.atleast_1d(codes[row]))


def _trace(vectors: DotVectors, lowering: Lowering, row: int) -> tuple[Step, ...]:
    """The steps of one row, exactly."""
    scales = (
        {} if vectors.scale_a is None or vectors.scale_b is None else {"scale_a": vectors.scale_a[row], "scale_b": vectors.scale_b[row]}
    )
    found = trace(lowering.instruction, lowering.arch, vectors.a[row], vectors.b[row], int(vectors.c[row]), **scales)
    sizes = np.abs(products(vectors, row))
    sizes = np.where(np.isnan(sizes), np.inf, sizes)
    taken = [(tuple(k for k in step.k if k < vectors.k), step.result.code) for step in found.steps]  # f64 chains are filled up
    return tuple(
        Step(elements=elements, accumulator=accumulator, largest=max(elements, key=lambda k: float(sizes[k])))
        for elements, accumulator in taken
        if elements
    )


def products(vectors: DotVectors, row: int) -> npt.NDArray[np.float64]:
    """The products of one row, block scales included, as float64 of shape (k,)."""
    with np.errstate(all="ignore"):
        values = decode(vectors.a[row], vectors.a_type) * decode(vectors.b[row], vectors.b_type)
        for scale in (vectors.scale_a, vectors.scale_b):
            if scale is not None and vectors.scale_type is not None and vectors.block is not None:
                values = values * np.repeat(decode(scale[row], vectors.scale_type), vectors.block)
    return values


# Text ----------------------------------------------------------------------------------------------------------------


def fields(code: int, spec: FormatSpec) -> str:
    """`sign|exponent|significand` in binary; an integer in binary alone."""
    bits = f"{code:0{spec.code_bits}b}"
    if spec.is_integer:
        return bits
    sign = spec.sign_bits + spec.ignored_sign
    return "|".join(part for part in (bits[:sign], bits[sign : sign + spec.exponent_bits], bits[sign + spec.exponent_bits :]) if part)


def describe_code(code: int, spec: FormatSpec) -> str:
    """Hexadecimal, fields and value of a code."""
    value = float(decode(np.array(code, dtype=f"uint{spec.container_bits}"), spec))
    return f"0x{code:0{spec.container_bits // 4}x}  {fields(code, spec)}  {value!r}"


def difference_lines(report: FileReport, difference: Difference) -> list[str]:
    """One difference of a report, for people to read."""
    accumulator, a_type, b_type = format_spec(report.d_type), format_spec(report.a_type), format_spec(report.b_type)
    lines = [
        f"{report.path} row {difference.row}: {report.instruction} on {report.arch}",
        f"  a         {_operands(difference.a, a_type)}",
        f"  b         {_operands(difference.b, b_type)}",
    ]
    for name, codes in (("scale_a", difference.scale_a), ("scale_b", difference.scale_b)):
        lines += [] if codes is None else [f"  {name}   {' '.join(f'{code:02x}' for code in codes)}"]
    recorded, computed = describe_code(difference.recorded, accumulator), describe_code(difference.computed, accumulator)
    both = zip(fields(difference.recorded, accumulator), fields(difference.computed, accumulator), strict=True)
    lines += [
        f"  c         {describe_code(difference.c, format_spec(report.c_type))}",
        f"  recorded  {recorded}",
        f"  computed  {computed}",
        f"  differ    {' ' * recorded.index('  ')}  {''.join('^' if left != right else ' ' for left, right in both)}".rstrip(),
    ]
    for number, step in enumerate(difference.steps, start=1):
        k = step.largest
        a, b = (
            float(decode(np.array(c, dtype=f"uint{s.container_bits}"), s))
            for c, s in ((difference.a[k], a_type), (difference.b[k], b_type))
        )
        lines.append(f"  step {number:<3}  {describe_code(step.accumulator, accumulator)}  after k {_ranges(step.elements)}")
        lines.append(f"            largest term k={k}: 0x{difference.a[k]:x} * 0x{difference.b[k]:x} = {a!r} * {b!r}")
    if difference.separate_add:
        lines.append("  then C is added by an IEEE addition")
    lines.append(f"  they have parted by step {difference.parts_by} of {len(difference.steps)}; a recording shows only the end")
    return lines


def _operands(codes: Sequence[int], spec: FormatSpec) -> str:
    digits = spec.container_bits // 4
    return f"{spec.name}  {' '.join(f'{code:0{digits}x}' for code in codes)}"


def _ranges(elements: Sequence[int]) -> str:
    """`0-15`, `0-1,4-5`."""
    runs: list[list[int]] = []
    for k in sorted(elements):
        if runs and runs[-1][1] == k - 1:
            runs[-1][1] = k
        else:
            runs.append([k, k])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def summary(reports: Sequence[FileReport]) -> str:
    """`N rows, M differ`."""
    return f"{sum(report.rows for report in reports)} rows, {sum(report.differing for report in reports)} differ"


def exit_status(reports: Sequence[FileReport]) -> int:
    """0: every row of every file is reproduced; 1: some row differs; 2: some file was not replayed, or there was none."""
    if not reports or any(report.error is not None for report in reports):
        return 2
    return 1 if any(report.differing for report in reports) else 0


def reports_json(reports: Sequence[FileReport]) -> dict[str, Any]:
    """What `mmabits replay --json` prints."""
    return {
        "files": [report.as_json for report in reports],
        "rows": sum(report.rows for report in reports),
        "differing": sum(report.differing for report in reports),
        "errors": sum(report.error is not None for report in reports),
    }


def reports_table(reports: Sequence[FileReport]) -> Table:
    """A line for each file."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("file", "GPU", "instruction", "arch", "evidence"):
        table.add_column(name, overflow="fold")
    for name in ("rows", "differ"):
        table.add_column(name, justify="right", no_wrap=True)
    for report in reports:
        gpu = report.gpu if report.kind == "hardware" else f"{report.gpu} ({report.kind})"
        differ = f"[red]{report.differing}[/]" if report.differing else "0"
        table.add_row(
            escape(visible(Path(report.path).stem)),
            escape(visible(gpu)),
            escape(report.instruction),
            report.arch,
            str(report.evidence),
            str(report.rows),
            differ,
        )
    return table
