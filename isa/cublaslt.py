"""What is known of cuBLASLt's algorithms: the rows of isa/tables/cublaslt.toml, read and checked.

Which sums a configuration stands for, not which configuration a shape gets: that must be asked of the library.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

ATTRIBUTES: Final = (
    "ALGO_ID", "TILE_ID", "SPLITK_NUM", "REDUCTION_SCHEME", "CTA_SWIZZLING", "CUSTOM_OPTION", "STAGES_ID", "INNER_SHAPE_ID",
    "CLUSTER_SHAPE_ID",
)  # fmt: skip
"""The attributes of a configuration, in the order of their numbers."""
PLAIN_VECTOR: Final = -64
"""Stands for min(64, ceil(slice / lanes)) in a gemv's row."""


@dataclass(frozen=True, kw_only=True)
class Platform:
    """Where plans were compared with the library."""

    arch: str
    gpu: str
    versions: tuple[str, ...]
    """Of cuBLASLt."""
    multiprocessors: int
    measured: str


@dataclass(frozen=True, kw_only=True)
class NvjetStages:
    """A STAGES_ID of nvjet."""

    stages: int
    block: int
    own_chain: tuple[str, ...]
    """Architectures on which each block is a chain of its own."""


@dataclass(frozen=True, kw_only=True)
class CutlassStages:
    """STAGES_IDs of CUTLASS 2."""

    stages: tuple[int, ...]
    block: int
    group: int
    """Elements of K of one instruction."""


@dataclass(frozen=True, kw_only=True)
class PartsRow:
    """One of gemmSN and sgemm."""

    algorithm: int
    option: int
    parts: int
    block: int


@dataclass(frozen=True, kw_only=True)
class GemvRow:
    """CUSTOM_OPTIONs of gemv."""

    options: tuple[int, ...]
    vector: int
    lanes: int
    close_every: int = 0
    halves: bool = False
    archs: tuple[str, ...] = ()
    """Empty: every platform."""
    outputs_per_multiprocessor: int = 0
    """Elements of the result that a multiprocessor may have; 0: any number."""

    def vector_of(self, slice_k: int) -> int:
        """Elements that a lane takes at a time, of a slice of that length."""
        return min(-PLAIN_VECTOR, -(-slice_k // self.lanes)) if self.vector == PLAIN_VECTOR else self.vector


@dataclass(frozen=True, kw_only=True)
class LostTail:
    """The bug of splits that leave out the end of K."""

    algorithm: int
    types: tuple[str, ...]
    block: int
    measured: str

    def of(self, k: int, slices: int) -> int:
        """Elements of K that are not summed."""
        whole, tail = divmod(k, self.block)
        return tail if slices > 1 and tail and whole and whole % slices == 0 and slices > tail else 0


@dataclass(frozen=True, kw_only=True)
class WorkspaceRule:
    """When FP8 products are split at all, by the bytes of the workspace."""

    bytes: int
    most_outputs: int
    """Elements of the result above which none was."""
    unsplit: float
    """The part of all answers that were unsplit."""
    unsplit_inside: float
    """The part of those inside the bounds."""


@dataclass(frozen=True, kw_only=True)
class ChoiceRules:
    """Which configurations a shape may get."""

    contiguous_multiple: int
    gemmsn_rows: tuple[int, int]
    gemmsn_k: int
    sgemm_rows: tuple[int, int]
    sgemm_k: int
    most_slices: int
    least_split_k: int
    splits: tuple[int, ...]
    workspaces: tuple[WorkspaceRule, ...]


@dataclass(frozen=True, kw_only=True)
class CublasLt:
    """All rows."""

    source: str
    platforms: tuple[Platform, ...]
    types: tuple[tuple[str, str, str], ...]
    """A, B and D that were compared."""
    family: dict[int, str]
    """Of an ALGO_ID."""
    nvjet: dict[int, NvjetStages]
    cutlass: dict[int, CutlassStages]
    cutlass_grains: tuple[int, int]
    merges: dict[int, str]
    gemmsn: dict[tuple[int, int], PartsRow]
    gemv: tuple[GemvRow, ...]
    ranges_option: int
    ranges: tuple[int, int]
    """(lanes, elements of a chain)"""
    dot_threads: int
    dot_vectors: tuple[int, int]
    """(where N = 1, else)"""
    lost_tail: LostTail
    choices: ChoiceRules

    def platform(self, arch: str) -> Platform | None:
        """Where an architecture's plans were compared."""
        return next((row for row in self.platforms if row.arch == arch), None)

    def gemv_row(self, option: int, arch: str) -> GemvRow | None:
        """The row of a CUSTOM_OPTION."""
        return next((row for row in self.gemv if option in row.options and (not row.archs or arch in row.archs)), None)


@lru_cache(maxsize=1)
def cublaslt() -> CublasLt:
    """The rows, read once."""
    data = tomllib.loads((Path(__file__).parent / "tables" / "cublaslt.toml").read_text(encoding="utf-8"))
    cutlass = [_row(CutlassStages, row) for row in data["cutlass"]]
    dot = data["dot"]
    return CublasLt(
        source=data["source"],
        platforms=tuple(_row(Platform, row) for row in data["platforms"]),
        types=tuple((row["a"], row["b"], row["d"]) for row in data["types"]),
        family={number: name for name, numbers in data["algorithms"].items() for number in numbers},
        nvjet={row["stages"]: _row(NvjetStages, row) for row in data["nvjet"]},
        cutlass={stages: row for row in cutlass for stages in row.stages},
        cutlass_grains=(data["cutlass_grains"]["whole"], data["cutlass_grains"]["rest"]),
        merges={int(scheme): name for scheme, name in data["merges"].items()},
        gemmsn={(row["algorithm"], row["option"]): PartsRow(**row) for row in data["gemmsn"]},
        gemv=tuple(_row(GemvRow, row) for row in data["gemv"]),
        ranges_option=data["gemv_ranges"]["option"],
        ranges=(data["gemv_ranges"]["lanes"], data["gemv_ranges"]["close_every"]),
        dot_threads=dot["threads"],
        dot_vectors=(dot["vector_if_n_is_1"], dot["vector"]),
        lost_tail=_row(LostTail, data["lost_tail"]),
        choices=_choices(data["choices"]),
    )


def _choices(data: dict[str, Any]) -> ChoiceRules:
    fp8 = data["fp8"]
    rules: ChoiceRules = _row(
        ChoiceRules,
        {name: value for name, value in data.items() if name != "fp8"}
        | {"least_split_k": fp8["least_split_k"], "splits": fp8["splits"]}
        | {"workspaces": [_row(WorkspaceRule, row) for row in fp8["workspaces"]]},
    )
    return rules


def _row(kind: Any, fields: dict[str, Any]) -> Any:
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
