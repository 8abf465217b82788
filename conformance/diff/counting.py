"""Many files of tiles and dot products through the emulator: how many results differ in each, and the first of them step by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.markup import escape
from rich.table import Table

from mmabits.conformance.diff.comparing import Difference, Kind, compare
from mmabits.conformance.recorded.base import Provenance, RecordedDots
from mmabits.conformance.recorded.dots import DotVectors, dots_of
from mmabits.conformance.recorded.reading import read_recorded_dots
from mmabits.emulator.codecs import decode, from_codes
from mmabits.isa import Evidence, FormatSpec, Lowering, format_spec, visible
from mmabits.reports.failures import of_file


@dataclass(frozen=True, kw_only=True)
class DescribedStep:
    """One fused step of the model: which elements of K it takes, and the accumulator after it."""

    elements: tuple[int, ...]
    accumulator: int
    largest: int
    """The element whose product, block scales included, is the largest."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """A result whose recorded bits are not the computed ones. Operands and results are codes."""

    row: int
    """Of a file of tiles: the element's place in D."""
    a: tuple[int, ...]
    b: tuple[int, ...]
    c: int
    scale_a: tuple[int, ...] | None
    scale_b: tuple[int, ...] | None
    recorded: int
    computed: int
    steps: tuple[DescribedStep, ...]
    parts_by: int
    """Number, from 1, of the step by which the results have parted: the last one that changed the accumulator."""
    separate_add: bool
    """The steps start from zero, and C is added after them."""

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values: codes as hexadecimal text."""

        def plain(code: int | tuple[int, ...] | None) -> Any:
            return [hex(one) for one in code] if isinstance(code, tuple) else None if code is None else hex(code)

        names = ("a", "b", "c", "scale_a", "scale_b", "recorded", "computed")
        return {
            "row": self.row, **{name: plain(getattr(self, name)) for name in names}, "parts_by_step": self.parts_by,
            "separate_add": self.separate_add,
            "steps": [
                {"elements": list(step.elements), "accumulator": hex(step.accumulator), "largest_term": step.largest} for step in self.steps
            ],
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """What came of one file."""

    path: str
    error: str | None = None
    """Why it could not be counted; then nothing below counts."""
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
    differences: tuple[Described, ...] = ()
    """The first of them."""
    apart: Difference | None = None
    """All that differ, in one row; None where none does."""

    @property
    def by(self) -> str:
        """The GPU, or what was in its place and that it was."""
        return self.gpu if self.kind == Provenance.HARDWARE else f"{self.gpu} ({self.kind})"

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        names = ("path", "error", "kind", "gpu", "arch", "instruction", "a_type", "b_type", "c_type", "d_type", "rows", "differing")
        found: dict[str, Any] = {"classes": {}, "ulp": [], "largest_ulp": 0} if self.apart is None else self.apart.as_json
        return {
            **{name: getattr(self, name) for name in names},
            "evidence": None if self.evidence is None else str(self.evidence),
            "classes": {name: count for name, count in found["classes"].items() if count}, "ulp": found["ulp"],
            "largest_ulp": found["largest_ulp"],
            "differences": [difference.as_json for difference in self.differences],
        }  # fmt: skip


def count_files(files: Sequence[Path], *, limit: int = 3) -> Iterator[FileReport]:
    """Count files one by one.

    Args:
        files: of tiles or dot products.
        limit: how many differing rows of each file to describe.

    Yields:
        A report for each file, in order; a file that cannot be read or emulated gives one with `error` set.
    """
    for path in files:
        try:
            yield count(read_recorded_dots(path), path=str(path), limit=limit)
        except Exception as error:  # of whatever kind: the other files are counted
            yield FileReport(path=str(path), error=of_file(path, error))


def count(recorded: RecordedDots, *, path: str = "", limit: int = 3) -> FileReport:
    """Run every result through the emulator and compare the codes.

    The first that differ are described step by step, as dot products; not those of chains, whose intermediate results are not recorded.

    Raises:
        UnsupportedInstruction: the architecture lacks the instruction.
    """
    lowering, results, computed = recorded.lowering(), recorded.results, recorded.emulated()
    places = np.argwhere(results != computed)
    apart = None
    if len(places):
        both = (codes[tuple(places.T)].reshape(1, -1) for codes in (results, computed))
        apart = compare(*(from_codes(np.ascontiguousarray(codes), recorded.row.d_type) for codes in both), tile=(1, len(places)))
    shown = places[:0] if recorded.chained > 1 else places[:limit]
    row = recorded.row
    return FileReport(
        path=path, kind=recorded.kind, gpu=recorded.gpu, arch=recorded.arch, instruction=row.ptx, a_type=row.a_type.name,
        b_type=row.b_type.name, c_type=row.c_type.name, d_type=row.d_type.name, evidence=lowering.evidence, rows=results.size,
        differing=len(places), apart=apart, differences=tuple(_described(recorded, lowering, shown, computed)),
    )  # fmt: skip


def _described(
    recorded: RecordedDots, lowering: Lowering, places: npt.NDArray[np.intp], computed: npt.NDArray[Any]
) -> Iterator[Described]:  # fmt: skip
    if not len(places):
        return
    dots = dots_of(recorded, places)
    for number, place in enumerate(places.tolist()):
        operands: dict[str, Any] = {}
        for name in ("a", "b", "scale_a", "scale_b"):
            codes = getattr(dots, name)
            operands[name] = None if codes is None else tuple(codes[number].tolist())
        steps, c = _steps(dots, number), int(dots.c[number])
        accumulators = [0 if lowering.separate_add else c, *(step.accumulator for step in steps)]
        changes = [at for at in range(1, len(accumulators)) if accumulators[at] != accumulators[at - 1]]
        yield Described(
            row=int(np.ravel_multi_index(place, computed.shape)), **operands, c=c, recorded=int(dots.d[number]),
            computed=int(computed[tuple(place)]), steps=steps, parts_by=changes[-1] if changes else len(steps),
            separate_add=lowering.separate_add,
        )  # fmt: skip


def _steps(dots: DotVectors, row: int) -> tuple[DescribedStep, ...]:
    """The steps of one row, exactly."""
    sizes = np.abs(products(dots, row))
    sizes = np.where(np.isnan(sizes), np.inf, sizes)
    taken = [(tuple(k for k in step.k if k < dots.k), step.result.code) for step in dots.traced(row, 0, dots.arch).steps]
    return tuple(
        DescribedStep(elements=elements, accumulator=accumulator, largest=max(elements, key=lambda k: float(sizes[k])))
        for elements, accumulator in taken
        if elements  # f64 chains are filled up
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


def described_lines(report: FileReport, difference: Described) -> list[str]:
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


def report_row(report: FileReport) -> dict[str, Any]:
    """What `mmabits replay --csv` prints of a file: numbers and names, every class of differences a column."""
    plain = report.as_json
    names = ("path", "error", "kind", "gpu", "arch", "instruction", "evidence", "rows", "differing", "largest_ulp")
    classes = {kind.value: plain["classes"].get(kind.value, 0) for kind in Kind if kind is not Kind.EQUAL}
    return {**{name: plain[name] for name in names}, **classes}


def reports_table(reports: Sequence[FileReport]) -> Table:
    """A line for each file."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("file", "GPU", "instruction", "arch", "evidence"):
        table.add_column(name, overflow="fold")
    for name in ("rows", "differ"):
        table.add_column(name, justify="right", no_wrap=True)
    for report in reports:
        differ = f"[red]{report.differing}[/]" if report.differing else "0"
        table.add_row(
            escape(visible(Path(report.path).stem)),
            escape(visible(report.by)),
            escape(report.instruction),
            report.arch,
            str(report.evidence),
            str(report.rows),
            differ,
        )
    return table
