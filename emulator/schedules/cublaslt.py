"""The planner: a configuration of cuBLASLt becomes a schedule, or a reason why there is none."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from mmabits.emulator.schedules.sums import BlockSums, Chains, LaneSums, Merge, NoSchedule, PartSums, Planned, RangeSums
from mmabits.isa import Evidence, OperandError, architecture, format_spec
from mmabits.isa.cublaslt import ATTRIBUTES, CublasLt, Platform, cublaslt

FP8: Final = ("e4m3", "e5m2")
OUTPUTS: Final = ("f16", "bf16", "f32")


@dataclass(frozen=True, kw_only=True)
class _PlanRequest:
    """A configuration and what it is for."""

    rows: CublasLt
    platform: Platform
    config: dict[str, int]
    m: int
    n: int
    k: int
    types: tuple[str, str, str]

    @property
    def splits(self) -> int:
        return self.config["SPLITK_NUM"]

    @property
    def option(self) -> int:
        return self.config["CUSTOM_OPTION"]

    @property
    def is_fp8(self) -> bool:
        return self.types[0] in FP8

    @property
    def is_vector(self) -> bool:
        return 1 in (self.m, self.n)

    @property
    def output(self) -> str | None:
        return None if self.types[2] == "f32" else self.types[2]

    def refuse(self, reason: str) -> NoReturn:
        raise NoSchedule(f"cuBLASLt's ALGO_ID {self.config['ALGO_ID']} on {self.platform.arch}: {reason}")


def planned_fields(
    config: Sequence[int | None] | Mapping[str, int | None] | None, m: int, n: int, k: int, types: str | Sequence[str], *, arch: str,
    version: str,
) -> dict[str, Any]:  # fmt: skip
    """The fields of the schedule: see `Schedule.cublaslt`."""
    rows = cublaslt()
    numbers = _attributes(config)
    sizes = tuple(_size(name, size) for name, size in (("m", m), ("n", n), ("k", k)))
    forms = operand_types(types)
    target = architecture(arch).target
    platform = rows.platform(target)
    if platform is None:
        known = ", ".join(row.arch for row in rows.platforms)
        raise NoSchedule(f"cuBLASLt's plans were not measured on {target}; they were on {known}")
    if version not in platform.versions:
        raise NoSchedule(f"cuBLASLt {version} was not measured on {target}; {', '.join(platform.versions)} was")
    if forms[:2] not in {row[:2] for row in rows.types}:
        measured = ", ".join(f"{a} x {b}" for a, b, _ in rows.types)
        raise NoSchedule(f"cuBLASLt's plans were not measured for {forms[0]} x {forms[1]}; they were for {measured}")
    given = {name: 0 if value is None else value for name, value in zip(ATTRIBUTES, numbers, strict=True)}
    asked = _PlanRequest(rows=rows, platform=platform, config=given, m=sizes[0], n=sizes[1], k=sizes[2], types=forms)
    family = rows.family.get(given["ALGO_ID"])
    if family is None:
        asked.refuse(f"no plan is known for it; known are {', '.join(map(str, sorted(rows.family)))}")
    if asked.splits < 1:
        asked.refuse(f"SPLITK_NUM {asked.splits} is not modelled")
    found = _FAMILIES[family](asked)
    planned = Planned(
        m=asked.m, n=asked.n, k=asked.k, a_type=forms[0], b_type=forms[1], arch=target, library=f"cublaslt-{version}", config=numbers
    )
    level = Evidence.PUBLISHED if forms in rows.types else Evidence.INFERRED
    return {"output": asked.output, "planned": planned, "evidence": level, **found}


def operand_types(types: str | Sequence[str]) -> tuple[str, str, str]:
    """Types of A, B and D, of one name, two or three.

    Raises:
        OperandError: other than that.
        UnknownFormat: no such type.
    """
    names = (types,) if isinstance(types, str) else tuple(types)
    if len(names) not in (1, 2, 3) or not all(isinstance(name, str) for name in names):
        raise OperandError(f"types are one name for A and B, or those of (A, B) or (A, B, D), got {types!r}")
    a, b = (format_spec(name).name for name in (names[0], names[1] if len(names) > 1 else names[0]))
    d = names[2] if len(names) == 3 else "f16" if a in FP8 else a
    if d not in OUTPUTS:
        raise OperandError(f"D must be one of {', '.join(OUTPUTS)}, got {d!r}")
    return a, b, d


def _attributes(config: Any) -> tuple[int | None, ...]:
    if config is None:
        raise NoSchedule("cuBLASLt gave no algorithm: there is no plan without a configuration")
    if isinstance(config, Mapping):
        unknown = [name for name in config if name not in ATTRIBUTES]
        if unknown:
            raise OperandError(f"unknown attribute {unknown[0]!r}; a configuration has {', '.join(ATTRIBUTES)}")
        values: tuple[Any, ...] = tuple(config.get(name) for name in ATTRIBUTES)
    else:
        if isinstance(config, str) or not isinstance(config, Sequence):
            raise OperandError(f"a configuration is a sequence of nine attributes or a mapping, got {type(config).__name__}")
        values = tuple(config)
    if len(values) != len(ATTRIBUTES):
        raise OperandError(f"a configuration has {len(ATTRIBUTES)} attributes, got {len(values)}")
    numbers = tuple(None if value is None else _integer(name, value) for name, value in zip(ATTRIBUTES, values, strict=True))
    for name in ("ALGO_ID", "SPLITK_NUM"):
        if numbers[ATTRIBUTES.index(name)] is None:
            raise OperandError(f"a configuration needs {name}, got None")
    return numbers


def _integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise OperandError(f"{name} must be a whole number, got {value!r}") from None


def _size(name: str, value: Any) -> int:
    number = _integer(name, value)
    if number < 1:
        raise OperandError(f"{name} must be 1 or more, got {number}")
    return number


def chunk(k: int, slices: int, grain: int) -> int:
    """Elements of a slice: whole grains, as even as they divide."""
    grains = -(-k // grain)
    return grain * -(-grains // slices)


def _nvjet(asked: _PlanRequest) -> dict[str, Any]:
    stages = asked.config["STAGES_ID"]
    row = asked.rows.nvjet.get(stages)
    if row is None:
        asked.refuse(f"STAGES_ID {stages} of nvjet is not known; known are {', '.join(map(str, asked.rows.nvjet))}")
    promote = row.block if asked.platform.arch in row.own_chain else None
    if asked.splits == 1:
        return {"sums": Chains(promote_every=promote)}
    size = chunk(asked.k, asked.splits, row.block)
    if not row.block <= size < asked.k:
        asked.refuse(f"slices of {size} of K = {asked.k} for SPLITK_NUM {asked.splits}: not measured outside [{row.block}, K)")
    bug = asked.rows.lost_tail
    lost = bug.of(asked.k, asked.splits) if asked.types[0] in bug.types and asked.config["ALGO_ID"] == bug.algorithm else 0
    return {"sums": Chains(promote_every=promote), "slices": asked.splits, "slice_k": size, "lost_tail": lost}


def _cutlass(asked: _PlanRequest) -> dict[str, Any]:
    if asked.is_fp8:
        asked.refuse("no CUTLASS kernel with FP8 operands was seen")
    stages = asked.config["STAGES_ID"]
    row = asked.rows.cutlass.get(stages)
    if row is None:
        asked.refuse(f"STAGES_ID {stages} of CUTLASS is not known; known are {', '.join(map(str, asked.rows.cutlass))}")
    sums = Chains(instruction=f"mma.sync.m16n8k{row.group}", group=row.group, lead_block=row.block)
    if asked.splits == 1:
        return {"sums": sums}
    whole, rest = asked.rows.cutlass_grains
    size = chunk(asked.k, asked.splits, rest if asked.k % whole else whole)
    if size > asked.k:
        asked.refuse(f"slices of {size} of K = {asked.k} for SPLITK_NUM {asked.splits}: not measured beyond K")
    scheme = asked.config["REDUCTION_SCHEME"]
    if scheme not in asked.rows.merges:
        asked.refuse(f"REDUCTION_SCHEME {scheme} is not known; known are {', '.join(map(str, asked.rows.merges))}")
    merge = Merge(asked.rows.merges[scheme])
    if asked.output is None:
        merge = Merge.F32  # a result in f32 leaves nothing to round to
    return {
        "sums": sums, "slices": asked.splits, "slice_k": size, "merge": merge, "merge_type": None if merge is Merge.F32 else asked.output,
    }  # fmt: skip


def _gemmsn(asked: _PlanRequest) -> dict[str, Any]:
    _check_cores(asked)
    if asked.splits != 1:
        asked.refuse(f"SPLITK_NUM {asked.splits}: it is known unsplit")
    row = asked.rows.gemmsn.get((asked.config["ALGO_ID"], asked.option))
    if row is None:
        asked.refuse(f"CUSTOM_OPTION {asked.option} is not known")
    return {"sums": PartSums(parts=row.parts, block=row.block)}


def _gemv(asked: _PlanRequest) -> dict[str, Any]:
    _check_cores(asked)
    _check_vector(asked)
    if asked.option == asked.rows.ranges_option:
        if asked.splits != 1 or asked.m != 1:
            asked.refuse(f"CUSTOM_OPTION {asked.option} is known unsplit and for M = 1, got SPLITK_NUM {asked.splits} and M = {asked.m}")
        lanes, close_every = asked.rows.ranges
        return {"sums": RangeSums(lanes=lanes, close_every=close_every)}
    row = asked.rows.gemv_row(asked.option, asked.platform.arch)
    if row is None:
        asked.refuse(f"CUSTOM_OPTION {asked.option} is not known")
    limit = row.outputs_per_multiprocessor * asked.platform.multiprocessors
    if limit and asked.m * asked.n > limit:
        asked.refuse(f"CUSTOM_OPTION {asked.option} was measured up to {limit:,} elements of the result, got {asked.m * asked.n:,}")
    size = -(-asked.k // asked.splits)
    sums = LaneSums(vector=row.vector_of(size), lanes=row.lanes, close_every=row.close_every, halves=row.halves)
    return {"sums": sums} if asked.splits == 1 else {"sums": sums, "slices": asked.splits, "slice_k": size}


def _dot(asked: _PlanRequest) -> dict[str, Any]:
    _check_cores(asked)
    _check_vector(asked)
    narrow, wide = asked.rows.dot_vectors
    return {"sums": BlockSums(blocks=asked.splits, vector=narrow if asked.n == 1 else wide, threads=asked.rows.dot_threads)}


def _check_cores(asked: _PlanRequest) -> None:
    if asked.is_fp8:
        asked.refuse("no kernel of CUDA cores with FP8 operands was seen")


def _check_vector(asked: _PlanRequest) -> None:
    if not asked.is_vector:
        asked.refuse(f"it is for M = 1 or N = 1, got M = {asked.m} and N = {asked.n}")


_FAMILIES: Final[dict[str, Callable[[_PlanRequest], dict[str, Any]]]] = {
    "nvjet": _nvjet, "cutlass": _cutlass, "gemmsn": _gemmsn, "gemv": _gemv, "dot": _dot,
}  # fmt: skip
