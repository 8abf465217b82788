"""What `mmabits record` did, and the kernels that it compiled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mmabits.conformance.record.device import DeviceInfo
from mmabits.conformance.record.listing import KernelRow
from mmabits.conformance.record.session import Outcome
from mmabits.conformance.recorded.base import Provenance
from mmabits.conformance.recorded.tiles import manifest_path
from mmabits.isa import OperandError
from mmabits.reports.pages.charts import Bar, Stack, bars, stacks
from mmabits.reports.pages.report import (
    CHARTED,
    Block,
    Cell,
    ChartBlock,
    Count,
    Report,
    Section,
    TableBlock,
    folded,
    not_done,
    plural,
    report_page,
)
from mmabits.reports.stored import read_json_file

_TONES: Final = {"recorded": "good", "kept": "soft", "failed": "bad"}
"""States of a recording."""
_SUMS: Final = 2000
"""Checksums that are written out at most."""
_HASHES: Final = {"ptx_sha256": "PTX", "sass_sha256": "machine code", "file_sha256": "file"}
"""Of a manifest; the emulator compiles nothing."""
_DIGITS: Final = 12
"""Of a hash in a table."""
_UNKNOWN: Final = ("", "none", "None")
"""What manifests say of what there was not."""


@dataclass(frozen=True)
class _Read:
    """A job's end, and what the manifest beside its file says; nothing where there is none."""

    outcome: Outcome
    manifest: dict[str, Any]
    size: int

    def count(self, key: str) -> int:
        """A number of the manifest."""
        value = self.manifest.get(key, 0)
        return value if isinstance(value, int) else 0

    def text(self, key: str) -> str:
        """A text of the manifest, empty where it says none."""
        value = str(self.manifest.get(key, ""))
        return "" if value in _UNKNOWN else value


def record_page(info: DeviceInfo, outcomes: Sequence[Outcome], folder: Path, *, planned: int | None = None, broken: str = "") -> str:
    """The page: the device, every recording with its counts and hashes, and what failed, in full.

    Args:
        info: of the device.
        outcomes: as `record` gives them, or those so far of a run that broke off.
        folder: where the files lie.
        planned: how many recordings were to be made; None: as many as there are outcomes.
        broken: why the run broke off, if it did.
    """
    read = [_read(outcome) for outcome in outcomes]
    finished = [one for one in read if one.outcome.state != "failed"]
    failed = [one.outcome for one in read if one.outcome.state == "failed"]
    missing = (len(outcomes) if planned is None else planned) - len(outcomes)
    errors = [*([("the run", broken)] if broken else []), *((one.path.name, one.error.removeprefix(f"{one.path}: ")) for one in failed)]
    sections = [not_done("Failed", "recording", errors)] if errors else []
    if finished:
        sections += [
            Section(title="What was recorded", blocks=(_families(finished),)),
            Section(title="Recordings", blocks=(_files(finished), *_sums(finished))),
        ]
    return report_page(Report(
        title=f"Recorded on {info.name}" if info.kind != Provenance.EMULATOR else f"Recorded from the emulator, {info.arch}",
        lead=f"Operands and results of tensor-core instructions, kept in {folder} for everybody to replay.", notice=_notice(info),
        verdict=_verdict(outcomes, missing, broken), tone="bad" if errors or not finished else "good",
        counts=tuple(_counts(read, missing)), facts=tuple(_facts(info, finished)), sections=tuple(sections),
    ))  # fmt: skip


def _read(outcome: Outcome) -> _Read:
    if outcome.state == "failed":
        return _Read(outcome, {}, 0)
    try:
        manifest = read_json_file(manifest_path(outcome.path), "the manifest")
        size = outcome.path.stat().st_size
    except (OSError, OperandError):
        return _Read(outcome, {}, 0)
    return _Read(outcome, manifest if isinstance(manifest, dict) else {}, size)


def _notice(info: DeviceInfo) -> str:
    if info.kind != Provenance.EMULATOR:
        return ""
    return "The emulator stood in for a GPU: nothing ran on hardware. The files say so, and prove nothing about hardware."


def _verdict(outcomes: Sequence[Outcome], missing: int, broken: str) -> str:
    states = ", ".join(f"{sum(one.state == state for one in outcomes):,} {state}" for state in _TONES)
    text = f"{plural(len(outcomes) + missing, 'recording')}: {states}"
    if broken:
        return f"{text}, {missing:,} not begun or not finished: the run broke off"
    return text


def _counts(read: Sequence[_Read], missing: int) -> Iterator[Count]:
    for state, tone in _TONES.items():
        count = sum(one.outcome.state == state for one in read)
        if count or state == "recorded":
            yield Count(value=count, what=state, tone=tone if state == "failed" else "")
    if missing:
        yield Count(value=missing, what="missing", tone="bad")
    yield Count(value=sum(one.count("results") for one in read), what="results")
    yield Count(value=sum(one.count("layout_check_results") for one in read), what="sums agreed in layout checks")
    yield Count(value=size_text(sum(one.size for one in read)), what="in files")


def size_text(size: int) -> str:
    """Bytes in the unit that fits: `512 B`, `1.5 MB`."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def _facts(info: DeviceInfo, finished: Sequence[_Read]) -> Iterator[tuple[str, str]]:
    if info.kind == Provenance.EMULATOR:
        yield "computed by", f"the emulator, {info.name}, as {info.arch}"
    else:
        yield "GPU", f"{info.name}, {info.arch}, compute capability {info.compute_capability}"
        yield "driver", f"{info.driver}, up to CUDA {info.cuda}"
    names = (
        ("nvrtc", "NVRTC"), ("compiler_options", "compiler options"), ("version", "mmabits"), ("commit", "commit"), ("seed", "seed"),
        ("chain", "instructions of a chain"), ("recorded_at", "recorded at"), ("command", "command"),
    )  # fmt: skip
    for key, label in names:
        texts = list(dict.fromkeys(text for one in finished if (text := one.text(key)) not in ("", "[]")))
        if key == "recorded_at" and len(texts) > 1:
            yield label, f"{min(texts)} to {max(texts)}"
        elif texts:
            yield label, texts[0] if len(texts) == 1 else f"{texts[0]}, and {plural(len(texts) - 1, 'other')}"


def _families(finished: Sequence[_Read]) -> ChartBlock:
    """Results by operand types, recorded now and kept from before."""
    counts: dict[str, list[int]] = {}
    for one in finished:
        row = one.outcome.job.instruction
        scales = f", {row.scale_type.name} scales" if row.scale_type else ""
        name = f"{str(row.family).removesuffix('.mma_async')} {row.a_type.name} x {row.b_type.name} into {row.d_type.name}{scales}"
        counts.setdefault(name, [0, 0])[one.outcome.state == "kept"] += one.count("results")
    largest = sorted(counts.items(), key=lambda group: -sum(group[1]))
    parts = [Stack(label=name, values=tuple(values)) for name, values in largest[:CHARTED]]
    left = f" {len(counts) - CHARTED:,} more are left out here." if len(counts) > CHARTED else ""
    chart = stacks(parts, names=("recorded", "kept"), colors=("var(--accent)", "var(--cut)"), label="results by operands")
    return ChartBlock(svg=chart, caption=f"Elements of D in the files, by family and types.{left}")


def _files(finished: Sequence[_Read]) -> TableBlock:
    hashes = {key: name for key, name in _HASHES.items() if any(one.text(key) for one in finished)}
    rows = tuple(_row(one, tuple(hashes)) for one in finished)
    headings = ("instruction", "generator", "state", "tiles", "results", "layout check", "size", *hashes.values())
    caption = (
        "Layout check: sums of small integers that agreed exactly before anything was recorded. Hashes are the first "
        f"{_DIGITS} digits of SHA-256 sums; the manifest beside each file has them whole."
    )
    return TableBlock(headings=headings, rows=rows, numeric=frozenset({3, 4, 5, 6}), caption=caption)


def _row(one: _Read, hashes: Sequence[str]) -> tuple[Cell | str | int, ...]:
    job, state = one.outcome.job, one.outcome.state
    return (
        Cell(text=job.instruction.ptx, is_code=True), job.generator, Cell(text=state, tone=_TONES[state]), job.tiles, one.count("results"),
        one.count("layout_check_results"), size_text(one.size),
        *(Cell(text=one.text(key)[:_DIGITS] or "-", is_code=True) for key in hashes),
    )  # fmt: skip


def _sums(finished: Sequence[_Read]) -> Iterator[Block]:
    """As `sha256sum --check` reads them, in the folder."""
    lines = [f"{one.text('file_sha256')}  {one.outcome.path.name}" for one in finished if one.text("file_sha256")]
    if not lines:
        return
    left = f", the first {_SUMS:,} of {len(lines):,}" if len(lines) > _SUMS else ""
    yield folded(f"SHA-256 of the files, for sha256sum --check{left}", lines[:_SUMS])


# Kernels -------------------------------------------------------------------------------------------------------------


def kernels_page(rows: Sequence[KernelRow], *, compiler: str) -> str:
    """The page of `--list-kernels` and `--compile-only`: every kernel compiled, its size, and the machine instructions in it.

    Args:
        rows: as `kernel_rows` gives them.
        compiler: NVRTC's version.
    """
    wrong = [row for row in rows if row.problems]
    refused, silent = sum(row.cubin_bytes is None for row in rows), sum(row.cubin_bytes is not None and not row.opcodes for row in rows)
    sections = []
    if wrong:
        table = TableBlock(
            headings=("target", "instruction", "problem"),
            rows=tuple((row.arch, Cell(text=row.instruction.ptx, is_code=True), "; ".join(row.problems)) for row in wrong),
        )
        sections.append(Section(title="Problems", blocks=(table,)))
    if rows:
        sections += [
            Section(title="By target", blocks=(_targets(rows),)), Section(title="Machine instructions", blocks=tuple(_opcodes(rows))),
            Section(title="Kernels", blocks=(_kernels(rows),)),
        ]  # fmt: skip
    return report_page(Report(
        title="Kernels of mmabits record, compiled", lead="Compiled for their exact targets without a GPU; nothing here ran.",
        notice=f"No disassembler took {plural(silent, 'kernel')}: what machine instructions they hold was not looked at." if silent else "",
        verdict=f"{plural(len(rows), 'kernel')}, {len(wrong):,} with problems", tone="bad" if wrong or not rows else "good",
        counts=(
            Count(value=len(rows) - refused, what="kernels compiled"),
            Count(value=refused, what="refused by the compiler", tone="bad" if refused else "good"),
            Count(value=len(wrong) - refused, what="with other machine instructions", tone="bad" if len(wrong) > refused else "good"),
            Count(value=size_text(sum(row.cubin_bytes or 0 for row in rows)), what="of machine code"),
        ),
        facts=(("compiler", f"NVRTC {compiler}"), ("targets", ", ".join(dict.fromkeys(row.arch for row in rows)) or "none")),
        sections=tuple(sections),
    ))  # fmt: skip


def _targets(rows: Sequence[KernelRow]) -> ChartBlock:
    parts = []
    for arch in dict.fromkeys(row.arch for row in rows):
        good, bad = (sum(row.arch == arch and bool(row.problems) is has for row in rows) for has in (False, True))
        text = plural(good + bad, "kernel") + (f", {bad:,} with problems" if bad else "")
        parts.append(Stack(label=arch, values=(good, bad), text=text))
    chart = stacks(parts, names=("without problems", "with problems"), colors=("var(--accent)", "var(--bad)"), label="kernels by target")
    return ChartBlock(svg=chart, caption="Kernels compiled for each target.")


def _opcodes(rows: Sequence[KernelRow]) -> Iterator[Block]:
    """How many kernels hold each, whatever its count in them."""
    counts: dict[str, int] = {}
    for row in rows:
        for name in {part.split(" x")[0] for part in row.opcodes.split(", ") if part}:
            counts[name] = counts.get(name, 0) + 1
    if not counts:
        return
    largest = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    parts = [Bar(label=name, value=count) for name, count in largest[:CHARTED]]
    left = f" {len(counts) - CHARTED:,} rarer ones are left out here." if len(counts) > CHARTED else ""
    caption = f"Kernels with each instruction that multiplies matrices, as disassembled.{left}"
    yield ChartBlock(svg=bars(parts, label="kernels by machine instruction"), caption=caption)


def _kernels(rows: Sequence[KernelRow]) -> TableBlock:
    lines = tuple(
        (
            row.arch, Cell(text=row.instruction.ptx, is_code=True),
            Cell(text="refused", tone="bad") if row.cubin_bytes is None else row.cubin_bytes,
            Cell(text=row.opcodes or "-", is_code=True), _verdict_of(row),
        )
        for row in sorted(rows, key=lambda row: not row.problems)
    )  # fmt: skip
    headings = ("target", "instruction", "cubin, bytes", "machine instructions", "check")
    return TableBlock(headings=headings, rows=lines, numeric=frozenset({2}))


def _verdict_of(row: KernelRow) -> Cell:
    if row.problems:
        return Cell(text=plural(len(row.problems), "problem"), tone="bad")
    return Cell(text="as its row says", tone="good") if row.opcodes else Cell(text="not disassembled", tone="soft")


__all__ = ["kernels_page", "record_page", "size_text"]
