"""What a CTA may have: threads, barriers, CTAs of a cluster, tensor memory. Shared memory stands with its architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class CtaSpec:
    """The same of every architecture."""

    threads: int
    barriers: int
    """Of `bar` and `barrier`."""
    cluster: int
    """CTAs of a cluster: more than eight only where the launch allows it."""
    clusters_from: tuple[int, int]
    """The compute capability from which on there are clusters."""
    grid: tuple[int, int, int]
    """CTAs of a grid along x, y and z."""
    source: str


@dataclass(frozen=True, kw_only=True)
class TensorMemorySpec:
    """Tensor memory of an architecture with tcgen05."""

    lanes: int
    columns: int
    """Of 32 bits."""
    block: int
    """Columns that are allocated at once, or a power of two as many."""
    source: str

    @property
    def allocations(self) -> tuple[int, ...]:
        """Columns that an allocation may have."""
        return tuple(self.block << power for power in range((self.columns // self.block).bit_length()))


CTA: Final = CtaSpec(threads=1024, barriers=16, cluster=16, clusters_from=(9, 0), grid=((1 << 31) - 1, 65535, 65535), source="ptx")
TENSOR_MEMORY: Final = TensorMemorySpec(lanes=128, columns=512, block=32, source="ptx")
