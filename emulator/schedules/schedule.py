"""A schedule as data: which sums a product consists of, in which order, and where they are rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mmabits.emulator.schedules.cublaslt import planned_fields
from mmabits.emulator.schedules.sums import BlockSums, Chains, LaneSums, Merge, PartSums, Planned, RangeSums, check_count
from mmabits.isa import Evidence, OperandError

ROUNDED_TO: Final = ("f16", "bf16")
"""Types narrower than f32 that sums and results are rounded to."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a product is summed: `mmabits.gemm(..., schedule=...)` follows it.

    K is cut into slices, each is summed as `sums` says, and the slices' sums are merged. `Schedule.cublaslt` plans one for a
    configuration of the library; any other can be written down.

    Raises:
        OperandError: numbers and types that make no schedule.
    """

    sums: Chains | PartSums | LaneSums | RangeSums | BlockSums
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
        if not isinstance(self.sums, (Chains, PartSums, LaneSums, RangeSums, BlockSums)):
            raise OperandError(f"sums must be Chains, PartSums, LaneSums, RangeSums or BlockSums, got {type(self.sums).__name__}")
        check_count("slices", self.slices)
        check_count("slice_k", self.slice_k, optional=True)
        check_count("lost_tail", self.lost_tail, least=0)
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
        return Schedule(**planned_fields(config, m, n, k, types, arch=arch, version=version))

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
