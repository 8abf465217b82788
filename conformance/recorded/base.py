"""What files hold, whatever their format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from mmabits.conformance.recorded.provenance import Provenance, check_provenance
from mmabits.isa import Instruction, Lowering, lower
from mmabits.research.trace import Trace, trace

if TYPE_CHECKING:
    from mmabits.conformance.recorded.dots import DotVectors

Codes = npt.NDArray[Any]
Places = Sequence[Sequence[int]] | npt.NDArray[np.intp]
"""(row, column) in the matrix of results."""


class Recorded(ABC):
    """Operands and results of a GPU, or of a program in its place, and where they come from."""

    FORMAT: ClassVar[str]
    """Of its files."""
    KINDS: ClassVar[tuple[Provenance, ...]] = (Provenance.HARDWARE, Provenance.EMULATOR)
    """Who can have computed it."""
    kind: str
    """Who did."""
    gpu: str
    arch: str

    def check_kind(self) -> None:
        """Refuse another kind than the format knows; it is kept as plain text.

        Raises:
            OperandError: it is one.
        """
        check_provenance(self.kind, self.KINDS)
        object.__setattr__(self, "kind", str(self.kind))

    @property
    def is_hardware(self) -> bool:
        """Whether it says anything of hardware."""
        return self.kind == Provenance.HARDWARE

    @property
    def by(self) -> str:
        """The GPU, or what was in its place and that it was."""
        return self.gpu if self.is_hardware else f"{self.gpu} ({self.kind})"


class RecordedDots(Recorded):
    """Results of one instruction, or of chains of it, as codes: one matrix, tile below tile, or a row for each dot product."""

    @property
    @abstractmethod
    def row(self) -> Instruction:
        """The instruction."""

    @property
    @abstractmethod
    def tile(self) -> tuple[int, int]:
        """Rows and columns of the matrix that came of operands of their own."""

    @property
    @abstractmethod
    def tiles(self) -> int:
        """How many there are; 0 of dot products."""

    @property
    @abstractmethod
    def k_of_result(self) -> int:
        """Products in a result."""

    @property
    def chained(self) -> int:
        """Instructions along K of each result."""
        return max(1, self.k_of_result // self.row.k)

    @property
    @abstractmethod
    def results(self) -> Codes:
        """The matrix."""

    @abstractmethod
    def batches(self, arch: str) -> Iterator[Codes]:
        """What the emulator makes of the operands, some rows of the matrix at a time."""

    @abstractmethod
    def dots(self, places: Places) -> DotVectors:
        """Some results, not of chains, as dot products."""

    @abstractmethod
    def operands_at(self, row: int, column: int) -> tuple[Codes, Codes, int, Codes | None, Codes | None]:
        """Of one result: a and b (k,), c, and block scales."""

    def lowering(self, arch: str | None = None) -> Lowering:
        """How an architecture computes the instruction; the recorded one if None.

        Raises:
            UnsupportedInstruction: it lacks the instruction.
        """
        return lower(self.row, arch or self.arch)

    def emulated(self, arch: str | None = None) -> Codes:
        """The matrix as the emulator computes it.

        Raises:
            UnsupportedInstruction: the architecture lacks the instruction.
        """
        return np.concatenate(list(self.batches(arch or self.arch)))

    def traced(self, row: int, column: int, arch: str) -> Trace:
        """One result, step by step."""
        a, b, c, scale_a, scale_b = self.operands_at(row, column)
        scales: dict[str, Any] = {} if scale_a is None or scale_b is None else {"scale_a": scale_a, "scale_b": scale_b}
        return trace(self.row, arch, a, b, c, **scales)


__all__ = ["Codes", "Places", "Recorded", "RecordedDots"]
