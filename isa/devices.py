"""GPUs as host code sees them: one of each architecture, with the numbers that programs ask for to size their launches.

No number here takes part in any arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mmabits.isa.architectures import architecture
from mmabits.isa.errors import UnknownArchitecture
from mmabits.isa.evidence import Evidence


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """What a GPU tells of itself. Memory is rounded: how much of it is told depends on the driver."""

    arch: str
    name: str
    """As the driver prints it."""
    processors: int
    """Streaming multiprocessors."""
    memory: int
    """MiB of global memory."""
    cache: int
    """KiB of level 2 cache."""
    shared_memory: int
    """KiB of shared memory of a processor."""
    threads: int
    """That a processor holds."""
    source: str = ""
    """A device query in public."""

    @property
    def evidence(self) -> Evidence:
        """Inferred, as such GPUs are commonly described, where no source was looked up."""
        return Evidence.PUBLISHED if self.source else Evidence.INFERRED

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability, major and minor."""
        return architecture(self.arch).capability


def _row(arch: str, name: str, processors: int, memory: int, cache: int, shared: int, threads: int, source: str = "") -> DeviceSpec:
    return DeviceSpec(
        arch=arch, name=name, processors=processors, memory=memory, cache=cache, shared_memory=shared, threads=threads, source=source
    )  # fmt: skip


# fmt: off
_ROWS: Final = (
    _row("sm_70",   "Tesla V100-SXM2-16GB",     80,  16160,  6144,   96,  2048),
    _row("sm_75",   "Tesla T4",                 40,  15102,  4096,   64,  1024),
    _row("sm_80",   "NVIDIA A100-SXM4-80GB",    108, 81251,  40960,  164, 2048),
    _row("sm_86",   "NVIDIA GeForce RTX 3090",  82,  24260,  6144,   100, 1536),
    _row("sm_89",   "NVIDIA GeForce RTX 4090",  128, 24210,  73728,  100, 1536),
    _row("sm_90a",  "NVIDIA H100 80GB HBM3",    132, 81090,  51200,  228, 2048),
    _row("sm_100a", "NVIDIA B200",              148, 182630, 129536, 228, 2048, "https://github.com/pytorch/ao/pull/4002"),
    _row("sm_103a", "NVIDIA B300 SXM6 AC",      148, 281600, 129536, 228, 2048),
    _row("sm_110a", "NVIDIA Thor",              20,  125770, 32768,  228, 1536),
    _row("sm_120a", "NVIDIA GeForce RTX 5090",  170, 32110,  98304,  100, 1536),
    _row("sm_121a", "NVIDIA GB10",              48,  124610, 24576,  100, 1536),
)
# fmt: on

DEVICES: dict[str, DeviceSpec] = {row.arch: row for row in _ROWS}
"""By architecture."""


def device_of(arch: str) -> DeviceSpec:
    """The GPU that stands for an architecture, or for the one that a what-if departs from.

    Raises:
        UnknownArchitecture: no such architecture, or none whose GPU is known.
    """
    target = architecture(arch).target
    if target not in DEVICES:
        raise UnknownArchitecture(f"no GPU is known for {target}; known: {', '.join(DEVICES)}")
    return DEVICES[target]
