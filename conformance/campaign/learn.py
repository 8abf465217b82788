"""What an archive teaches: its recordings replayed, the rows whose evidence it raises, the questions it settles, and a patch."""

from __future__ import annotations

import difflib
import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any, Final

import numpy as np

from mmabits.conformance.campaign.archive import read_archive, safe_name
from mmabits.conformance.campaign.cases import remade
from mmabits.conformance.campaign.plan import OF_INSTRUCTIONS, questions_of
from mmabits.conformance.campaign.run import answers
from mmabits.conformance.campaign.steps import CHAIN, GENERATORS, compare_table
from mmabits.conformance.diff.against import compare_file
from mmabits.conformance.diff.counting import FileReport, count
from mmabits.conformance.diff.recorder import ALL_CASES
from mmabits.conformance.record.functions import computed
from mmabits.conformance.record.generators import find_generator
from mmabits.conformance.record.tiles import emulate_tiles, join_chain
from mmabits.conformance.recorded.base import Provenance
from mmabits.conformance.recorded.files import data_sha256
from mmabits.conformance.recorded.functions import read_function, read_range
from mmabits.conformance.recorded.tiles import Recording, read_recording
from mmabits.isa import Evidence, MmabitsError, OperandError, VectorFileError, lower, parse
from mmabits.isa.datapaths import DATAPATHS, DatapathSpec
from mmabits.isa.evidence import weakest
from mmabits.isa.opcodes import opcode_table
from mmabits.reports.failures import told

_TILES: Final = 1 << 16
_NEEDED: Final = ("instruction", "arch", "kind", "gpu", "generator", "seed", "tiles", "chain", "results", "operands_sha256", "data_sha256")


@dataclass(frozen=True, kw_only=True, eq=False)
class Learned:
    """An archive, replayed."""

    path: Path
    manifest: Mapping[str, Any]
    reports: tuple[FileReport, ...]
    """Of each recording and each function's table."""
    recordings: tuple[tuple[str, Recording], ...]
    """Made again or kept, by name."""
    others: tuple[tuple[str, bytes], ...]
    """Files that are kept as they are: runs, choices, logs."""

    @property
    def device(self) -> dict[str, str]:
        """What the manifest says of it."""
        return {key: str(value) for key, value in self.manifest["device"].items()}

    @property
    def is_hardware(self) -> bool:
        """Whether a GPU made it."""
        return self.device["kind"] == Provenance.HARDWARE


def read_learned(path: Path, *, most_blocks: int | None = 4) -> Learned:
    """Read an archive and replay what is in it with the emulator as it is now.

    Args:
        path: of the archive or its folder.
        most_blocks: of each function, blocks of 2^20 operands to compare; all if None, which takes minutes each.

    Raises:
        VectorFileError: it is damaged, or no archive.
    """
    manifest, members = read_archive(path)
    device = manifest.get("device")
    if not isinstance(device, dict) or not all(isinstance(device.get(each), str) for each in ("kind", "name", "arch")):
        raise VectorFileError(f"{path}: its manifest tells no device")
    _check_steps(path, manifest["steps"])
    reports, recordings = [], []
    for row in manifest["steps"]:
        for each in row["recordings"]:
            if "instruction" not in each:
                continue
            name = f"{path}: {each.get('instruction')} {each.get('generator')} x{each.get('chain')}"
            try:
                recording = _recording(each, members)
                reports.append(_report_of(recording, name, each))
                if row["kind"] != "many" or each.get("whole"):
                    recordings.append((_name_of(recording), recording))
            except Exception as error:  # of whatever kind: the other recordings are replayed
                reports.append(FileReport(path=name, error=f"{name}: {told(error)}"))
        reports += [_range(each, device, path) for each in row["recordings"] if "function" in each and not each.get("differ")]
        reports += [_case(each, device, path, members) for each in row["recordings"] if "case" in each]
    reports += [_function(name, data, path, most_blocks) for name, data in members.items() if name.startswith("functions/")]
    whole = {each.get("whole") for row in manifest["steps"] for each in row["recordings"] if "instruction" in each}
    others = tuple((name, data) for name, data in members.items() if name not in whole)
    return Learned(path=path, manifest=manifest, reports=tuple(reports), recordings=tuple(recordings), others=others)


_STEP_KEYS: Final = {
    "key": str, "kind": str, "name": str, "state": str, "line": str, "results": int, "differ": int, "said": list, "recordings": list,
}  # fmt: skip


def _check_steps(path: Path, steps: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a manifest whose steps are not those of a campaign: it may come from anywhere.

    Raises:
        VectorFileError: they are not.
    """
    for step in steps:
        wrong = [key for key, kind in _STEP_KEYS.items() if not isinstance(step.get(key), kind)]
        if wrong or not all(isinstance(line, str) for line in step["said"]) or not all(isinstance(row, dict) for row in step["recordings"]):
            raise VectorFileError(f"{path}: a step of its manifest has no {', '.join(wrong) or 'words and recordings'} as a campaign has")
        if step["kind"] in OF_INSTRUCTIONS:
            try:
                parse(step["name"])
            except MmabitsError as error:
                raise VectorFileError(f"{path}: a step of its manifest is of no instruction: {error}") from error


def _recording(row: Mapping[str, Any], members: Mapping[str, bytes]) -> Recording:
    """A recording that is kept whole, or made again from its seed and held against its hash."""
    missing = [key for key in _NEEDED if key not in row]
    if missing:
        raise OperandError(f"the manifest does not tell its {', '.join(missing)}")
    if row.get("whole"):
        if row["whole"] not in members:
            raise OperandError(f"{row['whole']!r:.80} is not in the archive")
        with _file(members[row["whole"]]) as path:
            return read_recording(path)
    if row.get("differ"):
        raise OperandError(f"{row['differ']:,} of {row['results']:,} results differed, and the recording was not kept whole")
    numbers = [row[key] for key in ("seed", "tiles", "chain")]
    if not all(isinstance(each, int) and 0 <= each <= _TILES for each in numbers) or row["generator"] not in GENERATORS:
        raise OperandError("seed, tiles, chain or generator are none that a campaign has")
    seed, tiles, chain = numbers
    instruction, arch = parse(str(row["instruction"])), str(row["arch"])
    operands = join_chain(find_generator(row["generator"])(instruction, arch, tiles * chain, seed), chain)
    if data_sha256({name: codes for name, codes in operands.named() if codes is not None}) != row["operands_sha256"]:
        raise OperandError(f"generator {row['generator']} draws other operands now than at the archive's commit; replay it there")
    recording = Recording(
        instruction=instruction, arch=arch, kind=str(row["kind"]), gpu=str(row["gpu"]), chain=chain, operands=operands,
        d=emulate_tiles(instruction, arch, operands), manifest=row.get("manifest", {}),
    )  # fmt: skip
    if recording.data_sha256 != row["data_sha256"]:
        raise OperandError(
            "the emulator gives other results than were recorded; only their hash is kept, and the archive's commit gave them"
        )
    return recording


@contextmanager
def _file(data: bytes) -> Iterator[Path]:
    """Bytes as a file, for readers that want one."""
    with tempfile.TemporaryDirectory(prefix="mmabits-") as folder:
        path = Path(folder) / "member.safetensors"
        path.write_bytes(data)
        yield path


def _report_of(recording: Recording, name: str, row: Mapping[str, Any]) -> FileReport:
    if row.get("whole"):
        return count(recording, path=name)
    spec = recording.instruction  # its results are the emulator's: the hash says so
    return FileReport(
        path=name, kind=recording.kind, gpu=recording.gpu, arch=recording.arch, instruction=spec.ptx, a_type=spec.a_type.name,
        b_type=spec.b_type.name, c_type=spec.c_type.name, d_type=spec.d_type.name, evidence=lower(spec, recording.arch).evidence,
        rows=int(recording.d.size),
    )  # fmt: skip


def _name_of(recording: Recording) -> str:
    chain = f".x{recording.chain}" if recording.chain > 1 else ""
    chain += f".seed{recording.manifest.get('seed')}" if recording.manifest.get("seed") else ""
    return safe_name(f"{recording.arch}.{recording.instruction.ptx.replace('::', '-')}.{recording.manifest.get('generator')}{chain}")


def _function(name: str, data: bytes, path: Path, most_blocks: int | None) -> FileReport:
    try:
        with _file(data) as file:
            table = read_function(file)
        compared, differ, _ = compare_table(table, most_blocks=most_blocks)
        row = opcode_table().get(table.opcode)
        return FileReport(
            path=f"{path}: {name}", kind=table.kind, gpu=table.gpu, arch=table.arch, instruction=table.opcode,
            evidence=None if row is None else row.evidence, rows=compared, differing=differ,
        )  # fmt: skip
    except Exception as error:  # of whatever kind: the other members are replayed
        return FileReport(path=f"{path}: {name}", error=f"{path}: {name}: {told(error)}")


def _range(row: Mapping[str, Any], device: Mapping[str, Any], path: Path) -> FileReport:
    """Results of a function that were the emulator's, by their hash."""
    name = f"{path}: {row['function']} over its reduced range"
    try:
        compared = 0
        if not all(isinstance(row.get(key), list) and all(isinstance(each, str) for each in row[key]) for key in ("ranges", "sha256")):
            raise OperandError("the manifest tells no ranges with their hashes")
        for text, wanted in zip(row["ranges"], row["sha256"], strict=True):
            first, count_of = read_range(text)
            codes = np.arange(first, first + count_of, dtype=np.uint32)
            if hashlib.sha256(computed(row["function"], codes, device["arch"]).astype("<u4").tobytes()).hexdigest() != wanted:
                raise OperandError(f"the emulator gives other results than were recorded from {first:#x} on; only their hash is kept")
            compared += count_of
        known = opcode_table().get(row["function"])
        return FileReport(
            path=name, kind=device["kind"], gpu=device["name"], arch=device["arch"], instruction=row["function"],
            evidence=None if known is None else known.evidence, rows=compared,
        )  # fmt: skip
    except Exception as error:  # of whatever kind: the other members are replayed
        return FileReport(path=name, error=f"{name}: {told(error)}")


def _case(row: Mapping[str, Any], device: Mapping[str, Any], path: Path, members: Mapping[str, bytes]) -> FileReport:
    """A product or a kernel: what is kept whole compared, the others made again from their seed and held against their hash."""
    name = f"{path}: {row['case']}"
    about: dict[str, Any] = {
        "path": name,
        "kind": device["kind"],
        "gpu": device["name"],
        "arch": device["arch"],
        "instruction": row["case"],
    }
    try:
        if row.get("whole"):
            if row["whole"] not in members:
                raise OperandError(f"{row['whole']!r:.80} is not in the archive")
            with _file(members[row["whole"]]) as file:
                compared = compare_file(file, arch=device["arch"])
            return FileReport(**about, rows=compared.elements, differing=compared.differing)
        if row.get("differ"):
            raise OperandError(f"{row['differ']:,} elements differed, and the run was not kept whole")
        return FileReport(**about, rows=remade(row, device["arch"]))
    except Exception as error:  # of whatever kind: the other recordings are replayed
        return FileReport(path=name, error=f"{name}: {told(error)}")


# What it proves ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Lesson:
    """What an archive says of a datapath."""

    row: DatapathSpec
    instructions: tuple[str, ...]
    """All of whose recordings are there, and none differs."""
    contradicted: tuple[str, ...]
    """Of which a recording differs, or cannot be replayed."""

    @property
    def raises(self) -> bool:
        """Whether the evidence of finite operands rises."""
        return not self.contradicted and bool(self.instructions) and self.row.evidence < Evidence.RECORDED

    @property
    def raises_specials(self) -> bool:
        """Whether that of infinities, NaN and signed zeros does."""
        return not self.contradicted and bool(self.instructions) and weakest(self.row.special_proofs) < Evidence.RECORDED

    def __str__(self) -> str:
        if self.contradicted:
            return f"{self.row.name}: contradicted by {', '.join(self.contradicted[:3])}{' ...' if len(self.contradicted) > 3 else ''}"
        parts = [f"finite operands {self.row.evidence} -> recorded"] if self.raises else []
        parts += [f"special values {weakest(self.row.special_proofs)} -> recorded"] if self.raises_specials else []
        unchanged = "recorded already" if self.instructions else "no instruction of it alone is whole"
        return f"{self.row.name}: {', '.join(parts) or unchanged} ({_counted_words(len(self.instructions), 'instruction')})"


def lessons(found: Learned) -> list[Lesson]:
    """Of every datapath that the archive has recordings of; an instruction counts with all its generators and its chain."""
    bad = {report.instruction for report in found.reports if report.differing}
    there: dict[str, set[tuple[str, int]]] = {}
    for _, recording in found.recordings:
        there.setdefault(recording.instruction.ptx, set()).add((str(recording.manifest.get("generator")), recording.chain))
    whole = {*((generator, 1) for generator in GENERATORS), ("normal", CHAIN)}
    rows: dict[str, tuple[list[str], list[str]]] = {}
    arch = found.device["arch"]
    for step in found.manifest["steps"]:
        if step["kind"] != "instruction" or not step["recordings"]:
            continue
        good, contradicted = rows.setdefault(lower(parse(step["name"]), arch).datapath.name, ([], []))
        if step["name"] in bad or step["differ"]:
            contradicted.append(step["name"])
        elif there.get(step["name"], set()) >= whole and _is_plain(step["name"], arch):
            good.append(step["name"])
    return [Lesson(row=DATAPATHS[name], instructions=tuple(good), contradicted=tuple(bad_ones)) for name, (good, bad_ones) in rows.items()]


def _is_plain(instruction: str, arch: str) -> bool:
    """Whether an instruction is its datapath and nothing besides: no addition of its own, no operands made wider."""
    found = lower(parse(instruction), arch)
    return not found.separate_add and found.unpacked_to is None


def claims(found: Learned) -> dict[str, list[str]]:
    """What is claimed of instructions beyond their datapath and was below recorded: those of which no result differs."""
    arch, there = found.device["arch"], {recording.instruction.ptx for _, recording in found.recordings}
    bad = {report.instruction for report in found.reports if report.differing}
    shown: dict[str, list[str]] = {}
    for step in found.manifest["steps"]:
        if step["kind"] == "instruction" and step["state"] == "done" and step["name"] in there - bad:
            for proof in lower(parse(step["name"]), arch).proofs:
                if proof.level < Evidence.RECORDED:
                    shown.setdefault(f"{proof.covers} ({proof.level})", []).append(step["name"])
    return shown


def _claims_left(found: Learned) -> Iterator[str]:
    for words, instructions in claims(found).items():
        yield f"{words}: shown by {_counted_words(len(instructions), 'instruction')}; a claim of isa/lowering.py"


def _counted_words(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def lines(found: Learned) -> Iterator[str]:
    """For people to read."""
    device = found.device
    yield f"{device['name']} ({device['arch']}), driver {device.get('driver')}, commit {found.manifest.get('commit')}"
    if not found.is_hardware:
        yield "the emulator stood in for a GPU: what follows is a rehearsal, and proves nothing about hardware"
    for lesson in lessons(found):
        yield f"row {lesson}"
    for words, instructions in claims(found).items():
        yield f"claim {words} -> recorded ({_counted_words(len(instructions), 'instruction')})"
    for step in found.manifest["steps"]:
        if step["kind"] == "identify" and step["state"] == "done" and step["said"]:
            asked = "; ".join(each.words for each in questions_of("identify", step["name"], device["arch"]))
            yield f"identified {step['name']}{f' ({asked})' if asked else ''}: {step['said'][0]}"
    functions: dict[str, list[FileReport]] = {}
    for report in found.reports:
        if report.error is None and not report.a_type and report.instruction not in ALL_CASES:
            functions.setdefault(report.instruction, []).append(report)
    for opcode, reports in functions.items():
        results, differ = sum(report.rows for report in reports), sum(report.differing for report in reports)
        yield f"function {opcode} ({reports[0].evidence}): {results:,} results or sums of blocks, {differ:,} differ"
    calls = [report for report in found.reports if report.instruction in ALL_CASES]
    if calls:
        results, equal = sum(report.rows for report in calls), sum(not report.differing for report in calls)
        yield f"{equal} of {len(calls)} products and kernels equal the emulator, {results:,} elements"
    for step in found.manifest["steps"]:
        if step["kind"] in ("product", "kernel", "choices", "cuda") and step["state"] == "done" and step["differ"]:
            yield f"{step['key']}: {step['line']}"
    yield from (f"question {each}" for each in answers(found.manifest["steps"], device["arch"]))


# The patch ---------------------------------------------------------------------------------------------------------------

_PROOF: Final = re.compile(r"_(?:published|recorded|inferred)\([^)]*\)|_FP8_CHAIN")
_CITED: Final = re.compile(r"^(\S+)\s+= \{ gpu.*\n", re.MULTILINE)
"""A recording in sources.toml."""
_WIDTH: Final = 138
_INDENT: Final = " " * 11
_SPACE: Final = "\u00a0"
_SPECIALS: Final = "infinities, NaN, signed zeros"


def _recording_names(found: Learned, lesson: Lesson, taken: Sequence[str]) -> dict[str, str]:
    """A name for the recordings of each type pair, and an instruction of it: `h200-wgmma-e4m3-f32-campaign`."""
    gpu = safe_name(found.device["name"].casefold().removeprefix("nvidia").strip()).split("-")[0] or "gpu"
    names: dict[str, str] = {}
    for ptx in lesson.instructions:
        row = parse(ptx)
        family = row.family.value.split(".")[0].split("_")[0]
        pair = row.a_type.name if row.a_type is row.b_type else f"{row.a_type.name}-{row.b_type.name}"
        name = f"{gpu}-{family}-{pair}-{row.d_type.name}"
        names.setdefault(f"{name}-campaign" if name in taken else name, ptx)
    return names


def patch_of(found: Learned) -> tuple[str, list[str]]:
    """A change to isa/ for review, as a unified diff, and what it leaves to people.

    It cites recordings by name; `mmabits learn --out` writes them.
    """
    import mmabits.isa as isa

    folder = Path(isa.__file__).resolve().parent
    rows, sources = ((folder / name).read_text(encoding="utf-8") for name in ("datapaths.py", "sources.toml"))
    changed, cited, left = rows, "", list(_claims_left(found))
    for lesson in lessons(found):
        if not lesson.raises and not lesson.raises_specials:
            continue
        names = _recording_names(found, lesson, _CITED.findall(sources))
        cited_now = [name for proof in lesson.row.proofs if proof.level is Evidence.RECORDED for name in proof.sources]
        edited = _edited(changed, lesson, [*cited_now, *(name for name in names if name not in cited_now)], list(names))
        if edited is None:
            left.append(f"{lesson}: its row is made from others, which is for people to change")
            continue
        changed = edited
        for name, ptx in names.items():
            cited += f'{name} = {{ gpu = "{found.device["name"]}", arch = "{lesson.row.arch}", instruction = "{ptx}" }}\n'
    end = max((match.end() for match in _CITED.finditer(sources)), default=len(sources))
    texts = (("isa/datapaths.py", rows, changed), ("isa/sources.toml", sources, sources[:end] + cited + sources[end:]))
    parts = [
        "".join(difflib.unified_diff(old.splitlines(keepends=True), new.splitlines(keepends=True), f"a/{name}", f"b/{name}"))
        for name, old, new in texts
        if old != new
    ]
    return "".join(parts), left


def _cites(names: Sequence[str], covers: str = "") -> str:
    """`_recorded("...", ...)` in lines as long as those of isa/datapaths.py."""
    words = ", ".join([*(f'"{name}"' for name in names), *([f'covers="{covers.replace(" ", _SPACE)}"'] if covers else [])])
    lines = wrap(words, _WIDTH - len(_INDENT) - len("special=_recorded()"), break_long_words=False, break_on_hyphens=False)
    return f"_recorded({f'{chr(10)}{_INDENT}          '.join(lines)})".replace(_SPACE, " ")


def _edited(text: str, lesson: Lesson, proofs: Sequence[str], specials: Sequence[str]) -> str | None:
    """The rows with one changed; None where it has no line of its own."""
    start = re.search(rf'_(?:fused|grouped)\("{re.escape(lesson.row.name)}",', text)
    match = None if start is None else _PROOF.search(text, start.end())
    following = None if start is None else re.search(r"\n    _(?:fused|grouped)\(|\n\)", text[start.end() :])
    if start is None or match is None or following is None or match.start() > start.end() + following.start():
        return None
    kept = match[0]
    before = text[: match.start()]
    if lesson.raises:
        kept = _cites(proofs)
        if len(before) - before.rindex("\n") + len(kept.split("\n")[0]) > _WIDTH:
            before, kept = before.rstrip(), f"\n{_INDENT}{kept}"
    row = text[match.end() : start.end() + following.start()]
    if lesson.raises_specials:
        special = f",\n{_INDENT}special={_cites(specials, _SPECIALS)}"
        close = row.rindex(")")
        row = row[:close] + special + row[close:]
    return before + kept + row + text[start.end() + following.start() :]


__all__ = ["Learned", "Lesson", "lessons", "lines", "patch_of", "read_learned"]
