"""What files hold, whatever their format."""

from __future__ import annotations

import enum
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from mmabits.isa import Instruction, Lowering, OperandError, architecture, lower
from mmabits.reports.stored import TensorFile, open_tensors
from mmabits.research.trace import Trace, trace

Codes = npt.NDArray[Any]
Places = Sequence[Sequence[int]] | npt.NDArray[np.intp]
"""(row, column) in the matrix of results."""


class Provenance(enum.StrEnum):
    """Who computed results. Only the first says anything of hardware."""

    HARDWARE = "hardware"
    EMULATOR = "emulator"
    """The emulator in a GPU's place."""
    PEER = "peer"
    """Another emulator."""
    COMPUTED = "computed"
    """The exact model."""


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

    @classmethod
    @abstractmethod
    def of_file(cls, file: TensorFile, path: Path) -> Self:
        """What an open file holds, checked.

        Raises:
            MmabitsError: it is damaged, incomplete, of another format, or contradicts itself.
        """

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read and check one file, against its own checksum and its manifest where it has them.

        A spelling without types and shape, as PTX's own of tcgen05.mma, is completed by the rest of the metadata.

        Raises:
            VectorFileError: the file is missing, damaged, incomplete, of another format or contradicts itself; one line that names it.
        """
        with open_tensors(path) as file:
            return cls.of_file(file, Path(path))

    def hold(self, **values: Any) -> None:
        """Set what follows from the rest, once everything is there, and check the kind.

        Raises:
            OperandError: a kind that the format does not know.
        """
        if self.kind not in self.KINDS:
            raise OperandError(f"kind is {self.kind!r}; allowed: {', '.join(self.KINDS)}")
        for name, value in {**values, "kind": str(self.kind)}.items():
            object.__setattr__(self, name, value)

    @property
    def is_hardware(self) -> bool:
        """Whether it says anything of hardware."""
        return self.kind == Provenance.HARDWARE


class RecordedDots(Recorded):
    """Results of one instruction, or of chains of it, as codes: one matrix, tile below tile, or a row for each dot product."""

    row: Instruction
    """Which one."""
    k_of_result: int
    """Products in a result."""
    results: Codes
    """The matrix."""
    tile: tuple[int, int]
    """Rows and columns of it that came of operands of their own."""
    tiles: int
    """How many there are; 0 of dot products."""

    def hold(self, **values: Any) -> None:
        """As every recording; the architecture gets its own name."""
        super().hold(**values, arch=architecture(self.arch).name)

    @property
    def chained(self) -> int:
        """Instructions along K of each result."""
        return max(1, self.k_of_result // self.row.k)

    @abstractmethod
    def batches(self, arch: str) -> Iterator[Codes]:
        """What the emulator makes of the operands, some rows of the matrix at a time."""

    @abstractmethod
    def gathered(self, places: Places) -> dict[str, Any]:
        """Some results and their operands by name: a and b (n, k), c and d (n,), block scales (n, blocks) or None."""

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
        one = {name: None if codes is None else codes[0] for name, codes in self.gathered([[row, column]]).items()}
        a, b, c = (np.asarray(one[name]) for name in "abc")
        return trace(self.row, arch, a, b, int(c), scale_a=one["scale_a"], scale_b=one["scale_b"])


__all__ = ["Codes", "Places", "Provenance", "Recorded", "RecordedDots"]
