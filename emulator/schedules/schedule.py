"""A schedule as data: which sums a product consists of, in which order, and where they are rounded."""

from __future__ import annotations

import enum
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mmabits.isa import Evidence, MmabitsError, OperandError

ROUNDED_TO: Final = ("f16", "bf16")
"""Types narrower than f32 that sums and results are rounded to."""


class NoSchedule(MmabitsError, ValueError):
    """No schedule is known for that configuration; the text says why."""


class LibraryBug(UserWarning):
    """A result is what the library should give; what it does give is known to differ."""


class Merge(enum.StrEnum):
    """How the sums of slices of K become one. They are added in the order of the slices, beginning with the first and not with +0."""

    F32 = "f32"
    """In f32."""
    PARTS = "parts"
    """Each is rounded to the type of the merge, then they are added in f32."""
    TOTAL = "total"
    """The total is rounded to the type of the merge after every slice, the first included."""


@dataclass(frozen=True, kw_only=True)
class Chains:
    """Tensor cores: in a slice of K one chain of instructions, K upward, from 0. The end of K is filled with zeros.

    Raises:
        OperandError: numbers that are none.
    """

    instruction: str | None = None
    """A short name as `mmabits.gemm` takes it (`"mma.sync.m16n8k8"`); None: the newest of the architecture."""
    group: int | None = None
    """Elements of K that an instruction gets; those that it has beside are zeros. None: as many as it takes."""
    lead_block: int = 0
    """What is left of a slice by this many elements comes first, in groups of its own, the last of them short; 0: it comes last."""
    promote_every: int | None = None
    """Elements of a slice after which the chain is added to an f32 total and begins again."""

    def __post_init__(self) -> None:
        for name in ("group", "promote_every"):
            _count(name, getattr(self, name), optional=True)
        _count("lead_block", self.lead_block, least=0)
        if self.lead_block and self.promote_every is not None:
            raise OperandError("a remainder that comes first and promotion do not go together: nobody has seen where the totals would end")

    @property
    def words(self) -> str:
        """In words."""
        found = ["tensor cores, K upward"]
        if self.group is not None:
            found.append(f"{self.group} of K an instruction")
        if self.lead_block:
            found.append(f"K mod {self.lead_block} first")
        if self.promote_every is not None:
            found.append(f"promoted every {self.promote_every}")
        return ", ".join(found)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """CUDA cores, as gemmSN: contiguous parts of K, in them blocks, each a chain of multiply-adds from +0; totals are added in order."""

    parts: int
    """Each of ceil(K / parts) elements, the last short."""
    block: int = 0
    """Elements of a chain; 0: the whole part."""

    def __post_init__(self) -> None:
        _count("parts", self.parts)
        _count("block", self.block, least=0)

    @property
    def words(self) -> str:
        """In words."""
        return f"CUDA cores, {self.parts} parts of K" + (f" in chains of {self.block}" if self.block else "")


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """CUDA cores, as gemv: lane l takes `vector` elements at tile + l vector of every tile of vector lanes elements.

    A lane adds its elements in a chain from +0.
    """

    vector: int
    lanes: int
    close_every: int = 0
    """Tiles after which a lane's chain is closed; closed ones are added in order. 0: never."""
    halves: bool = False
    """Lanes are added by halves: x[i] += x[i + lanes / 2] and so on. Else from left to right."""

    def __post_init__(self) -> None:
        _count("vector", self.vector)
        _count("lanes", self.lanes)
        _count("close_every", self.close_every, least=0)
        if self.halves and self.lanes & (self.lanes - 1):
            raise OperandError(f"lanes that are added by halves are a power of two, got {self.lanes}")

    @property
    def words(self) -> str:
        """In words."""
        closed = f", chains closed every {self.close_every} tiles" if self.close_every else ""
        return f"CUDA cores, {self.lanes} lanes of {self.vector} elements{closed}, added {'by halves' if self.halves else 'in order'}"


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """CUDA cores, another gemv: lane l takes the l-th of `lanes` contiguous ranges of ceil(K / lanes), in chains; all is added in order."""

    lanes: int
    close_every: int
    """Elements of a chain."""

    def __post_init__(self) -> None:
        _count("lanes", self.lanes)
        _count("close_every", self.close_every)

    @property
    def words(self) -> str:
        """In words."""
        return f"CUDA cores, {self.lanes} contiguous ranges of K in chains of {self.close_every}"


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """CUDA cores, as cuBLAS's dot: block b takes the tiles b, b + blocks, ... of threads vector elements.

    A thread has a chain for each of its `vector` elements; they are added in order, the threads by halves, and then the blocks: thread
    t of a second kernel adds those of t, t + threads, ... in order; halves from 64 and 32 are added, then every fourth of those left in
    order, and the last four from left to right.
    """

    blocks: int
    vector: int
    threads: int = 128

    def __post_init__(self) -> None:
        _count("blocks", self.blocks)
        _count("vector", self.vector)
        if self.threads != 128:
            raise OperandError(f"the sums of a dot are known for 128 threads, got {self.threads}")

    @property
    def words(self) -> str:
        """In words."""
        return f"CUDA cores, {self.blocks} blocks of {self.threads} threads with {self.vector} elements each"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What a schedule was planned for. It runs on nothing else."""

    m: int
    n: int
    k: int
    a_type: str
    b_type: str
    arch: str
    library: str
    config: tuple[int | None, ...]
    """The nine attributes."""

    @property
    def words(self) -> str:
        """In words."""
        from mmabits.isa.cublaslt import ATTRIBUTES

        shown = ", ".join(f"{name} {value}" for name, value in zip(ATTRIBUTES, self.config, strict=True) if value is not None)
        return f"{self.library} on {self.arch}, {self.m} x {self.n} x {self.k}, {self.a_type} x {self.b_type}: {shown}"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a product is summed: `mmabits.gemm(..., schedule=...)` follows it.

    K is cut into slices, each is summed as `sums` says, and the slices' sums are merged. `Schedule.cublaslt` plans one for a
    configuration of the library; any other can be written down.

    Raises:
        OperandError: numbers and types that make no schedule.
    """

    sums: Chains | Parts | Lanes | Ranges | Blocks
    slices: int = 1
    """Slices that were asked for; there may be fewer."""
    slice_k: int | None = None
    """Elements of a slice, the last short; None: K is not cut."""
    merge: Merge = Merge.F32
    merge_type: str | None = None
    """`f16` or `bf16`, for merges that round."""
    output: str | None = None
    """What the result is rounded to, once and to nearest: `f16` or `bf16`. None: it stays f32."""
    lost_tail: int = 0
    """Elements at the end of K that the library leaves out by a bug; with `bugs=True` gemm does so too."""
    planned: Planned | None = None
    evidence: Evidence = Evidence.INFERRED
    """Of the schedule alone; the arithmetic has its own."""

    def __post_init__(self) -> None:
        if not isinstance(self.sums, (Chains, Parts, Lanes, Ranges, Blocks)):
            raise OperandError(f"sums must be Chains, Parts, Lanes, Ranges or Blocks, got {type(self.sums).__name__}")
        _count("slices", self.slices)
        _count("slice_k", self.slice_k, optional=True)
        _count("lost_tail", self.lost_tail, least=0)
        if not isinstance(self.merge, Merge):
            raise OperandError(f"merge must be one of {', '.join(map(str, Merge))} as a Merge, got {self.merge!r}")
        for name in ("merge_type", "output"):
            if getattr(self, name) not in (None, *ROUNDED_TO):
                raise OperandError(f"{name} must be {' or '.join(ROUNDED_TO)} or None, got {getattr(self, name)!r}")
        if (self.merge is Merge.F32) != (self.merge_type is None):
            raise OperandError(f"merges that round have a merge_type and no other, got {self.merge} with {self.merge_type}")
        if self.slices > 1 and self.slice_k is None:
            raise OperandError(f"{self.slices} slices need slice_k, the elements of each")

    @staticmethod
    def cublaslt(
        config: Sequence[int | None] | Mapping[str, int | None], m: int, n: int, k: int, types: str | Sequence[str], *, arch: str,
        version: str = "13.1",
    ) -> Schedule:  # fmt: skip
        """What cuBLASLt sums for a configuration of its algorithm, as others measured it; published.

        Args:
            config: the nine attributes of cublasLtMatmulAlgo_t by their numbers, or a mapping by name (`{"ALGO_ID": 66, ...}`).
                TILE_ID, CTA_SWIZZLING, INNER_SHAPE_ID and CLUSTER_SHAPE_ID may be None: they change no bit.
            m: rows of D.
            n: columns of D.
            k: elements of K.
            types: `"f16"`, `"bf16"` or `"e4m3"` for both operands, or (A, B) or (A, B, D). D of two FP8 is f16 where not said.
            arch: `"sm_90a"`, `"sm_100a"` or `"sm_103a"`.
            version: of cuBLASLt.

        Raises:
            NoSchedule: the configuration, architecture, version or types were not measured, or have no plan.
            OperandError: no configuration at all.
        """
        from mmabits.emulator.schedules.cublaslt import plan

        return plan(config, m, n, k, types, arch=arch, version=version)

    @property
    def on_tensor_cores(self) -> bool:
        """Whether instructions of tensor cores compute it."""
        return isinstance(self.sums, Chains)

    def panels(self, k: int, *, bugs: bool = False) -> list[slice]:
        """The slices of K.

        Args:
            k: elements of K.
            bugs: whether the lost tail is lost.
        """
        size = k if self.slice_k is None else self.slice_k
        if bugs and self.lost_tail:
            k -= self.lost_tail
            size = k // self.slices
        return [slice(start, min(start + size, k)) for start in range(0, k, max(size, 1))]

    @property
    def words(self) -> str:
        """In words."""
        found = self.sums.words
        if self.slice_k is not None:
            found += f"; slices of {self.slice_k} of K, merged "
            found += {
                Merge.F32: "in f32", Merge.PARTS: f"in f32 after rounding to {self.merge_type}",
                Merge.TOTAL: f"with the total rounded to {self.merge_type} each time",
            }[self.merge]  # fmt: skip
        if self.lost_tail:
            found += f"; {self.bug}"
        return found

    @property
    def bug(self) -> str:
        """What the library gets wrong here; empty: nothing known."""
        return f"the library does not sum the last {self.lost_tail} of K (its bug)" if self.lost_tail else ""


def _count(name: str, value: Any, *, least: int = 1, optional: bool = False) -> None:
    if value is None and optional:
        return
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise OperandError(f"{name} must be a whole number from {least} on, got {value!r}")
