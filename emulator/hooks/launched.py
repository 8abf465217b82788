"""What a session's report says of kernels that ran whole, and of what an autotuner was told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mmabits.isa import Evidence, Instruction

if TYPE_CHECKING:
    from mmabits.emulator.machine.sass import FusionCheck
    from mmabits.emulator.machine.summary import WeakPoint

NOT_ASKED: Final = "not asked"
"""Spills are known to ptxas alone: see `Session.report`."""


@dataclass(frozen=True, kw_only=True)
class Duration:
    """Time that something took, once."""

    seconds: float
    was_cached: bool

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s{' from a cache' if self.was_cached else ''}"


@dataclass(frozen=True, kw_only=True)
class LaunchedKernel:
    """A kernel as a compiler made it, and its launches in a session."""

    name: str
    compiler: str
    """`Triton 3.9.0`."""
    warps: int
    cluster: int
    """CTAs of a cluster."""
    shared: int
    """Bytes of dynamic shared memory."""
    opcodes: Mapping[str, int]
    """Instructions of the PTX text, by opcode."""
    families: Mapping[str, int]
    """The same by family (emulator/machine/summary.py)."""
    tensor: tuple[tuple[Instruction, Evidence], ...]
    """Tensor-core instructions, and how well their arithmetic is known."""
    weak: tuple[WeakPoint, ...]
    """Whatever else has bits that the PTX manual leaves open."""
    contracts: bool
    """Whether products and sums are fused."""
    fused: int
    """Sums that were fused by the rule that stands in for ptxas; what Triton fused stands in its PTX."""
    schedule: tuple[str, ...]
    """Orders of work that a GPU may choose otherwise."""
    translation: Duration | None
    """By the framework's compiler, to PTX; None: it was done before this process's first block."""
    compilation: Duration
    """To machine code of this processor."""
    ptx: str = field(repr=False)
    """The text."""
    fusion: FusionCheck | str = NOT_ASKED
    """What was fused, beside the machine code; or why that was not looked at."""
    spills: str = NOT_ASKED
    """Registers that ptxas keeps in memory."""
    launches: int = 0
    programs: int = 0
    """CTAs of all launches."""
    seconds: float = 0.0
    """Of all launches."""

    @property
    def evidence(self) -> Evidence | None:
        """The weakest of anything in it; None: the PTX manual defines every bit."""
        return min([*(level for _, level in self.tensor), *(each.evidence for each in self.weak)], default=None)

    @property
    def weakest(self) -> tuple[str, ...]:
        """What has that evidence."""
        names = [(str(row), level) for row, level in self.tensor] + [(each.what, each.evidence) for each in self.weak]
        return tuple(name for name, level in names if level == self.evidence)

    @property
    def lines(self) -> tuple[tuple[str, str], ...]:
        """The same in words, each under a heading."""
        mix = ", ".join(f"{family} {count}" for family, count in sorted(self.families.items(), key=lambda each: (-each[1], each[0])))
        tensor = ", ".join(f"{row.ptx} ({level})" for row, level in self.tensor)
        fused = f"on; {self.fused} sums by a rule that stands in for ptxas" if self.fused else "on; nothing is left to ptxas"
        fused = f"fusing is {fused}" if self.contracts else "fusing is off"
        if self.fusion != NOT_ASKED:
            fused += f"; {self.fusion}" if isinstance(self.fusion, str) else f"; fusion checked: {self.fusion}"
        translated = "done before" if self.translation is None else str(self.translation)
        return (
            ("launches", f"{self.launches}, of {self.programs} programs of {self.warps} warps in all; {self.seconds:.2f} s"),
            ("PTX", f"{sum(self.opcodes.values())} instructions: {mix}"),
            ("tensor cores", tensor or "none"),
            ("weakest evidence", f"{self.evidence}: {', '.join(self.weakest)}" if self.evidence else "the PTX manual defines every bit"),
            ("products and sums", fused),
            ("order", "; ".join(self.schedule)),
            ("spills", self.spills),
            ("compiled", f"by {self.compiler}: {translated}; to machine code: {self.compilation}"),
        )


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A configuration that an autotuner was given, which measures nothing here."""

    site: str
    configuration: str
    why: str
    count: int
    """Launches."""
