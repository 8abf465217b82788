"""What `mmabits record` did, as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmabits.conformance.pages.charts import Bar, bars
from mmabits.conformance.pages.report import Cell, ChartBlock, NoteBlock, Report, Section, TableBlock, plural, report_page
from mmabits.conformance.record.device import EMULATOR, DeviceInfo
from mmabits.conformance.record.listing import KernelRow
from mmabits.conformance.record.recording import read_recording
from mmabits.conformance.record.session import Outcome
from mmabits.isa import MmabitsError

_TONES = {"recorded": "good", "kept": "soft", "failed": "bad"}


def record_page(info: DeviceInfo, outcomes: Sequence[Outcome], folder: Path) -> str:
    """The page: the device, every recording with its counts and hashes, and what failed, in full.

    Args:
        info: of the device.
        outcomes: as `record` gives them.
        folder: where the files lie.
    """
    counts = {state: sum(outcome.state == state for outcome in outcomes) for state in _TONES}
    read = [(outcome, _manifest(outcome)) for outcome in outcomes]
    sections = []
    if counts["failed"]:
        rows = tuple((Cell(text=one.path.name, is_code=True), one.error) for one in outcomes if one.state == "failed")
        sections.append(Section(title="Failed", blocks=(TableBlock(headings=("recording", "why"), rows=rows),)))
    if any(manifest for _, manifest in read):
        sections += [Section(title="Results by family", blocks=(_families(read),)), Section(title="Recordings", blocks=(_files(read),))]
    results = sum(manifest.get("results", 0) for _, manifest in read)
    checked = sum(manifest.get("layout_check_results", 0) for _, manifest in read)
    lead = f"Operands and results of tensor-core instructions, kept in {folder} for everybody to replay."
    note = "The emulator stood in for the GPU: these files say so, and prove nothing about hardware."
    return report_page(Report(
        title=f"Recorded on {info.name}", lead=f"{lead} {note}" if info.kind == EMULATOR else lead,
        verdict=f"{plural(len(outcomes), 'recording')}: " + ", ".join(f"{count:,} {state}" for state, count in counts.items()),
        tone="bad" if counts["failed"] else "good",
        facts=(
            ("device", f"{info.name}, {info.arch}, compute capability {info.compute_capability}"),
            ("kind", "the emulator, standing in for a GPU" if info.kind == EMULATOR else "hardware"),
            *([] if info.kind == EMULATOR else [("driver", f"{info.driver}, up to CUDA {info.cuda}")]), ("results", f"{results:,}"),
            ("layout check", f"{checked:,} small sums agreed exactly, before anything was recorded"),
            *_common(read),
        ),
        sections=tuple(sections) or (Section(title="Nothing", blocks=(NoteBlock(text="Nothing was recorded.", tone="soft"),)),),
    ))  # fmt: skip


def _manifest(outcome: Outcome) -> dict[str, Any]:
    """Of a finished file; empty where there is none."""
    if outcome.state == "failed":
        return {}
    try:
        found = read_recording(outcome.path)
    except MmabitsError:
        return {}
    return {**found.manifest, "data_sha256": found.data_sha256}


def _common(read: Sequence[tuple[Outcome, dict[str, Any]]]) -> tuple[tuple[str, str], ...]:
    """What the manifests say of where the files come from, each text once."""
    names = (("nvrtc", "NVRTC"), ("commit", "commit"), ("command", "command"))
    found = []
    for key, label in names:
        texts = list(dict.fromkeys(str(manifest[key]) for _, manifest in read if manifest.get(key, "none") != "none"))
        if texts:
            found.append((label, texts[0] if len(texts) == 1 else f"{texts[0]} and {len(texts) - 1} more"))
    return tuple(found)


def _families(read: Sequence[tuple[Outcome, dict[str, Any]]]) -> ChartBlock:
    counts: dict[str, int] = {}
    for outcome, manifest in read:
        row = outcome.job.instruction
        name = f"{str(row.family).removesuffix('.mma_async')} {row.a_type.name} x {row.b_type.name} to {row.d_type.name}"
        counts[name] = counts.get(name, 0) + manifest.get("results", 0)
    drawn = [Bar(label=name, value=count) for name, count in counts.items() if count]
    return ChartBlock(svg=bars(drawn, label="results by operands"), caption="Elements of D in the files, by family and operand types.")


def _files(read: Sequence[tuple[Outcome, dict[str, Any]]]) -> TableBlock:
    rows = tuple(
        (
            Cell(text=outcome.job.instruction.ptx, is_code=True), outcome.job.generator, outcome.job.seed, outcome.job.tiles,
            manifest.get("results", 0), Cell(text=outcome.state, tone=_TONES[outcome.state]),
            *(Cell(text=str(manifest.get(key, "-"))[:12], is_code=True) for key in ("sass_sha256", "data_sha256")),
        )
        for outcome, manifest in read
        if outcome.state != "failed"
    )  # fmt: skip
    headings = ("instruction", "generator", "seed", "tiles", "results", "state", "machine code", "data")
    caption = "Hashes are the first digits of a SHA-256; the whole ones are in the manifests."
    return TableBlock(headings=headings, rows=rows, numeric=frozenset({2, 3, 4}), caption=caption)


def kernels_page(rows: Sequence[KernelRow], *, compiler: str) -> str:
    """The page of `--list-kernels`: every kernel compiled, its size, and the machine instructions in it.

    Args:
        rows: as `kernel_rows` gives them.
        compiler: NVRTC's version.
    """
    wrong = [row for row in rows if row.problems]
    sizes: dict[str, list[int]] = {}
    for row in rows:
        sizes.setdefault(row.arch, []).append(row.cubin_bytes or 0)
    drawn = [
        Bar(label=arch, value=len(found), text=f"{plural(len(found), 'kernel')}, up to {max(found):,} bytes")
        for arch, found in sizes.items()
    ]
    lines = tuple(
        (
            row.arch, Cell(text=row.instruction.ptx, is_code=True),
            Cell(text="refused", tone="bad") if row.cubin_bytes is None else row.cubin_bytes,
            Cell(text=row.opcodes or "not disassembled", is_code=True),
            Cell(text="; ".join(row.problems) or "as the row says", tone="bad" if row.problems else "good"),
        )
        for row in sorted(rows, key=lambda row: not row.problems)
    )  # fmt: skip
    sections = [
        Section(
            title="By architecture", blocks=(ChartBlock(svg=bars(drawn, label="kernels by architecture"), caption="Kernels compiled."),)
        )
    ]
    table = TableBlock(
        headings=("target", "instruction", "cubin, bytes", "machine instructions", "check"), rows=lines, numeric=frozenset({2})
    )
    return report_page(Report(
        title="Kernels of mmabits record, compiled", lead="Compiled for their exact targets without a GPU; nothing here ran.",
        verdict=f"{plural(len(rows), 'kernel')}, {len(wrong):,} with problems", tone="bad" if wrong else "good",
        facts=(("compiler", f"NVRTC {compiler}"), ("targets", ", ".join(sizes))),
        sections=(*(sections if drawn else []), Section(title="Kernels", blocks=(table,))),
    ))  # fmt: skip


__all__ = ["kernels_page", "record_page"]
