"""What a schedule is made of: the sum of a slice of K on tensor cores and on CUDA cores, and how slices are merged."""

from __future__ import annotations

import enum
import operator
from dataclasses import dataclass
from typing import Any

from mmabits.isa import MmabitsError, OperandError
from mmabits.isa.cublaslt import ATTRIBUTES


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
            check_count(name, getattr(self, name), optional=True)
        check_count("lead_block", self.lead_block, least=0)
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
class PartSums:
    """CUDA cores, as gemmSN: contiguous parts of K, in them blocks, each a chain of multiply-adds from +0; totals are added in order."""

    parts: int
    """Each of ceil(K / parts) elements, the last short."""
    block: int = 0
    """Elements of a chain; 0: the whole part."""

    def __post_init__(self) -> None:
        check_count("parts", self.parts)
        check_count("block", self.block, least=0)

    @property
    def words(self) -> str:
        """In words."""
        return f"CUDA cores, {self.parts} parts of K" + (f" in chains of {self.block}" if self.block else "")


@dataclass(frozen=True, kw_only=True)
class LaneSums:
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
        check_count("vector", self.vector)
        check_count("lanes", self.lanes)
        check_count("close_every", self.close_every, least=0)
        if self.halves and self.lanes & (self.lanes - 1):
            raise OperandError(f"lanes that are added by halves are a power of two, got {self.lanes}")

    @property
    def words(self) -> str:
        """In words."""
        closed = f", chains closed every {self.close_every} tiles" if self.close_every else ""
        return f"CUDA cores, {self.lanes} lanes of {self.vector} elements{closed}, added {'by halves' if self.halves else 'in order'}"


@dataclass(frozen=True, kw_only=True)
class RangeSums:
    """CUDA cores, another gemv: lane l takes the l-th of `lanes` contiguous ranges of ceil(K / lanes), in chains; all is added in order."""

    lanes: int
    close_every: int
    """Elements of a chain."""

    def __post_init__(self) -> None:
        check_count("lanes", self.lanes)
        check_count("close_every", self.close_every)

    @property
    def words(self) -> str:
        """In words."""
        return f"CUDA cores, {self.lanes} contiguous ranges of K in chains of {self.close_every}"


@dataclass(frozen=True, kw_only=True)
class BlockSums:
    """CUDA cores, as cuBLAS's dot: block b takes the tiles b, b + blocks, ... of threads vector elements.

    A thread has a chain for each of its `vector` elements; they are added in order, the threads by halves, and then the blocks: thread
    t of a second kernel adds those of t, t + threads, ... in order; halves from 64 and 32 are added, then every fourth of those left in
    order, and the last four from left to right.
    """

    blocks: int
    vector: int
    threads: int = 128

    def __post_init__(self) -> None:
        check_count("blocks", self.blocks)
        check_count("vector", self.vector)
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

    def check(self, sizes: tuple[int, int, int], types: tuple[str, str], target: str) -> None:
        """Refuse a product that it was not planned for.

        Args:
            sizes: M, N and K.
            types: of A and B.
            target: architecture.

        Raises:
            OperandError: it is another.
        """
        for what, given, wanted in (
            ("M, N and K", sizes, (self.m, self.n, self.k)), ("types", types, (self.a_type, self.b_type)),
            ("architecture", target, self.arch),
        ):  # fmt: skip
            if given != wanted:
                raise OperandError(
                    f"the schedule was planned for {what} {wanted}, got {given}; dataclasses.replace(schedule, planned=None) lets it be"
                )

    @property
    def words(self) -> str:
        """In words."""
        shown = ", ".join(f"{name} {value}" for name, value in zip(ATTRIBUTES, self.config, strict=True) if value is not None)
        return f"{self.library} on {self.arch}, {self.m} x {self.n} x {self.k}, {self.a_type} x {self.b_type}: {shown}"


def check_count(name: str, value: Any, *, least: int = 1, optional: bool = False) -> None:
    """Refuse what is no whole number from `least` on."""
    if value is None and optional:
        return
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise OperandError(f"{name} must be a whole number from {least} on, got {value!r}")
