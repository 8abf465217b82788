"""What is known of the algorithm that a library takes for a shape: a recorded answer, a rule, or several candidates."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from mmabits.emulator.schedules.cublaslt import FP8, operand_types
from mmabits.emulator.schedules.schedule import Schedule
from mmabits.emulator.schedules.sums import Chains, NoSchedule
from mmabits.isa import Evidence, OperandError, architecture
from mmabits.isa.choices import library_promotion
from mmabits.isa.cublaslt import ATTRIBUTES, ChoiceRules, cublaslt

LIBRARIES: Final = ("cublaslt-13.1", "cublaslt-12.8")
FILE_FORMAT: Final = "mmabits-choices-1"
WORKSPACE: Final = 32 << 20
"""Bytes that the comparisons with the library gave it."""
NARROW: Final = ("f16", "bf16")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A schedule that a shape may get."""

    schedule: Schedule
    why: str

    @property
    def words(self) -> str:
        """In words."""
        return f"{self.schedule.words} ({self.why})"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is known of a library's choice for one shape. The first candidate is the best known."""

    m: int
    n: int
    k: int
    types: tuple[str, str, str]
    arch: str
    library: str
    candidates: tuple[Candidate, ...]
    evidence: Evidence
    """Recorded: the library was asked on a GPU. Inferred: everything else."""
    rule: str
    """Where it comes from, and how often that is right where it is known."""

    @property
    def best(self) -> Schedule:
        """The best known."""
        return self.candidates[0].schedule

    @property
    def words(self) -> str:
        """In words."""
        others = len(self.candidates) - 1
        more = f"; {others} other candidate{'s' if others > 1 else ''}" if others else ""
        return f"{self.library}: {self.best.words}; choice {self.evidence}: {self.rule}{more}"


def choice(
    m: int, n: int, k: int, types: str | Sequence[str], *, arch: str, library: str = "cublaslt-13.1", file: str | Path | None = None,
    workspace: int = WORKSPACE, fast_accum: bool = False,
) -> Choice:  # fmt: skip
    """What is known of the algorithm that cuBLASLt takes for a product: one schedule, or candidates that give other bits.

    Args:
        m: rows of D.
        n: columns of D.
        k: elements of K.
        types: `"f16"`, `"bf16"`, `"e4m3"`, ..., or (A, B) or (A, B, D).
        arch: `"sm_90a"` and so on.
        library: `"cublaslt-13.1"` or `"cublaslt-12.8"`.
        file: answers that were recorded on a GPU (`mmabits record --choices`); they come first.
        workspace: bytes that the library may use.
        fast_accum: for FP8: whether the descriptor asks for fast accumulation.

    Returns:
        The choice; candidates that cannot differ in a bit are one.

    Raises:
        OperandError: sizes below 1, an unknown library, a file of another kind.
        MmabitsError: unknown types or architecture.
    """
    if library not in LIBRARIES:
        raise OperandError(f"unknown library {library!r}; known: {', '.join(LIBRARIES)}")
    for name, size in (("m", m), ("n", n), ("k", k)):
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise OperandError(f"{name} must be a whole number from 1 on, got {size!r}")
    asked = _ChoiceRequest(m, n, k, operand_types(types), architecture(arch).target, library, workspace, fast_accum)
    if file is None:
        return _known(asked)
    path = Path(file)
    return _chosen(asked, path, changed_at(path))


@dataclass(frozen=True)
class _ChoiceRequest:
    m: int
    n: int
    k: int
    types: tuple[str, str, str]
    arch: str
    library: str
    workspace: int
    fast_accum: bool

    @property
    def is_fp8(self) -> bool:
        return self.types[0] in FP8 or self.types[1] in FP8

    def plan(self, algorithm: int, *, split: int = 1, scheme: int = 0, option: int = 0, stages: int = 0) -> Schedule:
        config = {
            "ALGO_ID": algorithm, "SPLITK_NUM": split, "REDUCTION_SCHEME": scheme, "CUSTOM_OPTION": option, "STAGES_ID": stages,
        }  # fmt: skip
        return self.planned(config)

    def planned(self, config: Mapping[str, int | None] | Sequence[int | None]) -> Schedule:
        """The plan of 13.1's rows; those of 12.8 are the same wherever both were measured."""
        found = Schedule.cublaslt(config, self.m, self.n, self.k, self.types, arch=self.arch)
        if found.planned is not None:
            found = replace(found, planned=replace(found.planned, library=self.library))
        if self.is_fp8 and self.fast_accum and isinstance(found.sums, Chains):
            found = replace(found, sums=replace(found.sums, promote_every=None), evidence=Evidence.INFERRED)
        return found

    def choice(self, candidates: Sequence[Candidate], evidence: Evidence, rule: str) -> Choice:
        return Choice(
            m=self.m, n=self.n, k=self.k, types=self.types, arch=self.arch, library=self.library, candidates=tuple(candidates),
            evidence=evidence, rule=rule,
        )  # fmt: skip


# Recorded answers ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _file(path: Path, changed: int) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OperandError(f"{path} cannot be read as a file of choices: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FILE_FORMAT:
        raise OperandError(f"{path} is no file of choices: its format is not {FILE_FORMAT!r}")
    missing = [name for name in ("arch", "library", "gpu", "workspace", "answers") if name not in data]
    if missing or not isinstance(data["answers"], list):
        raise OperandError(f"{path} is no file of choices: {', '.join(missing) or 'answers'} missing")
    answers = {}
    for row in data["answers"]:
        try:
            key = (int(row["m"]), int(row["n"]), int(row["k"]), operand_types(row["types"]), bool(row.get("fast_accum", False)))
            answers[key] = row["config"], row.get("compared")
            if answers[key][1] is not None:
                int(answers[key][1]["results"]), int(answers[key][1]["differ"] or 0)
        except (KeyError, TypeError, ValueError) as error:
            raise OperandError(f"{path}: an answer is damaged: {error}") from None
    return {**data, "answers": answers}


def read_choices(path: str | Path) -> dict[str, Any]:
    """A file of choices, its answers (configuration, and how its product compared, if it did) by (M, N, K, types, fast accumulation).

    Raises:
        OperandError: it is none.
    """
    path = Path(path)
    return _file(path, changed_at(path))


def changed_at(path: Path) -> int:
    """When a file of choices was written last, in nanoseconds.

    Raises:
        OperandError: there is none.
    """
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise OperandError(f"{path} cannot be read as a file of choices: {error}") from None


@lru_cache(maxsize=4096)
def _chosen(asked: _ChoiceRequest, path: Path, changed: int) -> Choice:
    """With a file; what it has no answer for is known as without one."""
    data = _file(path, changed)
    if architecture(data["arch"]).target != asked.arch:
        raise OperandError(f"{path} was recorded on {data['arch']}, and {asked.arch} is asked for")
    if data["library"] != asked.library:
        raise OperandError(f"{path} was recorded from {data['library']}, and {asked.library} is asked for")
    config, compared = data["answers"].get((asked.m, asked.n, asked.k, asked.types, asked.fast_accum), (None, None))
    if config is None:
        return _known(asked)
    level = Evidence.INFERRED if data.get("kind") == "emulator" else Evidence.RECORDED
    asked_where = f"asked on {data['gpu']}, workspace {data['workspace']:,} bytes"
    try:
        one = Candidate(schedule=asked.planned(config), why="the library's answer")
    except NoSchedule as reason:
        known = _known(asked)
        return replace(known, rule=f"no plan for the library's answer ({asked_where}): {reason}; then {known.rule}")
    if compared is None:
        return asked.choice([one], level, asked_where)
    results, differ = compared["results"], compared["differ"]
    if differ:  # the answer's plan is wrong: those that gave the library's bits come first
        fits = set(compared.get("fits", ()))
        tried = _distinct([one, *_known(asked).candidates], asked.k)
        ranked = sorted(tried, key=lambda each: each.why not in fits)
        rule = f"{asked_where}; but {differ:,} of {results:,} results of the product differed from the answer's schedule"
        return asked.choice(ranked, Evidence.INFERRED, rule)
    seen = replace(one, schedule=replace(one.schedule, evidence=level), why="the library's answer, and its product's bits")
    return asked.choice([seen], level, f"{asked_where}; {results:,} results of its product had the schedule's bits")


def _mmaemu(asked: _ChoiceRequest) -> int | None:
    """The slices of K by the table of the package mmaemu, where it is installed and has the shape."""
    profile = {0: "hopper-ws0", 1 << 20: "hopper", 32 << 20: "hopper-te"}.get(asked.workspace)
    out = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}[asked.types[2]]
    if profile is None or asked.arch != "sm_90a" or asked.library != "cublaslt-12.8":
        return None
    try:
        from mmaemu.platform.splitk_table import lookup  # Apache-2.0; 1,767,416 answers of an H100 PCIe
    except ImportError:
        return None
    a, b = (f"float8_{name}fn" if name == "e4m3" else f"float8_{name}" for name in asked.types[:2])
    row = lookup(
        asked.m, asked.n, asked.k, a_dtype=a, b_dtype=b, out_dtype=out, use_fast_accum=asked.fast_accum, profile=profile
    )  # fmt: skip
    return None if row is None else int(row["splitK"])


# Rules --------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _known(asked: _ChoiceRequest) -> Choice:
    rules = cublaslt()
    if rules.platform(asked.arch) is None or asked.types[:2] not in {row[:2] for row in rules.types}:
        interval = library_promotion(asked.arch) if asked.is_fp8 and not asked.fast_accum else 0
        sums = Chains(promote_every=interval or None)
        assumed = Schedule(sums=sums, output=None if asked.types[2] == "f32" else asked.types[2])
        return asked.choice(
            [Candidate(schedule=assumed, why="one chain, K upward")], Evidence.INFERRED,
            f"cuBLASLt was not measured for {asked.types[0]} x {asked.types[1]} on {asked.arch}",
        )  # fmt: skip
    return _fp8(asked, rules.choices) if asked.is_fp8 else _narrow(asked, rules.choices)


def _fp8(asked: _ChoiceRequest, rules: ChoiceRules) -> Choice:
    recorded = _mmaemu(asked)
    if recorded is not None:
        one = Candidate(schedule=asked.plan(66, split=recorded, stages=36), why="the library's answer")
        return asked.choice([one], Evidence.RECORDED, "asked on an H100 PCIe (mmaemu 0.1.0)")
    found = [Candidate(schedule=asked.plan(66, stages=36), why="nvjet, not split")]
    row = min(rules.workspaces, key=lambda row: abs(row.bytes - asked.workspace))
    inside = asked.k >= rules.least_split_k and asked.m * asked.n <= row.most_outputs and asked.workspace > 0
    if inside:
        found += _splits(asked, 36, rules.splits)
        rule = f"FP8 of such sizes was not split in {row.unsplit_inside:.0%} of the answers of an H100 PCIe, cuBLASLt 12.8.3.14"
    else:
        rule = "no FP8 product of such sizes was split by an H100 PCIe, cuBLASLt 12.8.3.14"
    if asked.arch == "sm_103a" and asked.k % 32:
        sums = Chains(group=32, lead_block=32)
        found.append(Candidate(schedule=replace(found[0].schedule, sums=sums, evidence=Evidence.INFERRED), why="ALGO_ID 74"))
    return asked.choice(_distinct(found, asked.k), Evidence.INFERRED, rule)


def _splits(asked: _ChoiceRequest, stages: int, splits: Sequence[int]) -> Iterator[Candidate]:
    for split in splits:
        try:
            yield Candidate(schedule=asked.plan(66, split=split, stages=stages), why=f"nvjet, SPLITK_NUM {split}")
        except NoSchedule:
            continue


def _narrow(asked: _ChoiceRequest, rules: ChoiceRules) -> Choice:
    found: list[Candidate] = []
    is_aligned = asked.n % rules.contiguous_multiple == 0 and asked.k % rules.contiguous_multiple == 0
    if is_aligned:
        found.append(Candidate(schedule=asked.plan(66, stages=35), why="nvjet, not split"))
        if asked.workspace and asked.k >= rules.least_split_k and asked.m * asked.n <= rules.workspaces[-1].most_outputs:
            found += _splits(asked, 35, range(2, rules.most_slices + 1))
        rule = (
            f"nvjet where N and K are multiples of {rules.contiguous_multiple}, not split where FP8 is not "
            f"(K below {rules.least_split_k:,} or more than {rules.workspaces[-1].most_outputs:,} results)"
        )
    else:
        rows = cublaslt().cutlass
        for stages in sorted(
            {row.stages[0] for row in rows.values()}, key=lambda stages: (-rows[stages].group, abs(rows[stages].block - 64))
        ):
            found.append(Candidate(schedule=asked.plan(21, stages=stages), why=f"CUTLASS, STAGES_ID {stages}"))
        rule = (
            f"CUTLASS where N or K is no multiple of {rules.contiguous_multiple}; "
            "which of its kernels is not known, nor whether it splits K"
        )
    found += _cores(asked, rules)
    return asked.choice(_distinct(found, asked.k), Evidence.INFERRED, f"{rule}; a rule in prose, without a count")


def _cores(asked: _ChoiceRequest, rules: ChoiceRules) -> Iterator[Candidate]:
    rows = cublaslt()
    if rules.gemmsn_rows[0] <= asked.m <= rules.gemmsn_rows[1] and asked.k <= rules.gemmsn_k:
        for algorithm, option in rows.gemmsn:
            if algorithm == 16 and not (rules.sgemm_rows[0] <= asked.m <= rules.sgemm_rows[1] and 2 <= asked.k <= rules.sgemm_k):
                continue
            yield Candidate(schedule=asked.plan(algorithm, option=option), why=f"ALGO_ID {algorithm}, CUSTOM_OPTION {option}")
    if 1 not in (asked.m, asked.n):
        return
    for option in (*(row.options[0] for row in rows.gemv if not row.archs or asked.arch in row.archs), rows.ranges_option):
        try:
            yield Candidate(schedule=asked.plan(13, option=option), why=f"ALGO_ID 13, CUSTOM_OPTION {option}")
        except NoSchedule:
            continue
    yield Candidate(schedule=asked.plan(14), why="ALGO_ID 14")


def _distinct(found: Sequence[Candidate], k: int) -> list[Candidate]:
    """Without those that add the same numbers in the same order as one before them."""
    kept: dict[Any, Candidate] = {}
    for candidate in found:
        kept.setdefault(signature(candidate.schedule, k), candidate)
    return list(kept.values())


def signature(schedule: Schedule, k: int) -> tuple[Any, ...]:
    """Equal for schedules that form the same sums of K elements; unequal ones may still agree."""
    sums: Any = schedule.sums
    cuts = tuple((part.start, part.stop) for part in schedule.panels(k)) if schedule.slice_k is not None else ((0, k),)
    if isinstance(sums, Chains):
        group = sums.group or 0
        leads = tuple((stop - start) % sums.lead_block if sums.lead_block else 0 for start, stop in cuts)
        usual = group in (0, 16, 32) and not any(lead % group if group else lead for lead in leads)
        sums = ("chains", sums.promote_every, None if usual else (group, leads))
    merge = (schedule.merge, schedule.merge_type) if len(cuts) > 1 or schedule.merge is not schedule.merge.F32 else None
    return (sums, cuts, merge, schedule.output)


def config_words(config: Sequence[int | None]) -> str:
    """Attributes by name."""
    return ", ".join(f"{name} {value}" for name, value in zip(ATTRIBUTES, config, strict=True) if value is not None)
