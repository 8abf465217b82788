"""What a block takes a matrix library to do: `emulate(..., library=...)`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mmabits.emulator.api import Array, by_schedule, operand_type
from mmabits.emulator.schedules.choices import LIBRARIES, Choice, choice, read_choices
from mmabits.emulator.schedules.schedule import Schedule
from mmabits.isa import Evidence, Instruction, OperandError

if TYPE_CHECKING:
    from mmabits.emulator.hooks.session import Session

SAMPLE: Final = (16, 64)
"""Rows and columns of a product on which candidates are compared."""
TYPES: Final = ("f16", "bf16", "e4m3", "e5m2")
"""Operands that libraries were measured for."""
ON_CORES: Final = "on CUDA cores, not by this instruction"


def not_followed(library: Library | None) -> str:
    """What the report says of a product that is not summed as the block's library does; empty where none is named."""
    return "library= is not followed here: nothing is known of such products" if library is not None else ""


@dataclass(frozen=True, kw_only=True)
class CandidateDifference:
    """How the candidates of a choice differ on a sample."""

    results: int
    """Elements of the sample."""
    by_candidate: tuple[int, ...]
    """Those that differ in a bit from the first candidate's."""

    @property
    def words(self) -> str:
        """In words."""
        differing = [count for count in self.by_candidate[1:] if count]
        if not differing:
            return f"the {len(self.by_candidate)} candidates agree on a sample of {self.results:,} results"
        return (
            f"{len(differing)} of {len(self.by_candidate) - 1} other candidates give other bits, "
            f"in up to {max(differing):,} of {self.results:,} results of a sample"
        )


def differing(
    found: Choice, a: Array, b: Array, *, arch: str | None = None, rows: int = SAMPLE[0], columns: int = SAMPLE[1]
) -> CandidateDifference:
    """Compute a sample of a product by every candidate of a choice.

    Args:
        found: the choice.
        a: (M, K).
        b: (K, N).
        arch: whose arithmetic; None: that of the choice.
        rows: of the sample, at most.
        columns: of the sample, at most.
    """
    picked = [
        np.unique(np.linspace(0, size - 1, min(size, most)).astype(int)) for size, most in ((a.shape[0], rows), (b.shape[1], columns))
    ]
    left, right = np.ascontiguousarray(a[picked[0]]), np.ascontiguousarray(b[:, picked[1]])
    results = [_bits(by_schedule(left, right, replace(each.schedule, planned=None), arch=arch or found.arch)) for each in found.candidates]
    return CandidateDifference(results=results[0].size, by_candidate=tuple(int(np.count_nonzero(each != results[0])) for each in results))


def _bits(array: Array) -> Array:
    return array.view({2: np.uint16, 4: np.uint32}[array.dtype.itemsize])


@dataclass(frozen=True, kw_only=True, eq=False)
class Library:
    """What `library=` names: the rules of a version, a file of choices, or one schedule for every product."""

    name: str = ""
    file: Path | None = None
    schedule: Schedule | None = None
    bugs: bool = False
    """Whether what the library is known to leave out is left out."""
    _notes: dict[tuple[Any, ...], str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, given: Any, *, bugs: bool) -> Library | None:
        """What a caller has named; None: nothing.

        Raises:
            OperandError: no such library, or no file of choices.
        """
        if not isinstance(bugs, bool):
            raise OperandError(f"bugs must be True or False, got {bugs!r}")
        if given is None:
            if bugs:
                raise OperandError("bugs are those of a library: name it in library=")
            return None
        if isinstance(given, Schedule):
            return cls(schedule=given, bugs=bugs)
        if isinstance(given, str) and given in LIBRARIES:
            return cls(name=given, bugs=bugs)
        if isinstance(given, os.PathLike) or (isinstance(given, str) and given.endswith(".json")):
            path = Path(given)
            name = read_choices(path)["library"]
            if name not in LIBRARIES:
                raise OperandError(f"{path} is of {name!r}; known: {', '.join(LIBRARIES)}")
            return cls(name=name, file=path, bugs=bugs)
        raise OperandError(f"library must be {', '.join(LIBRARIES)}, a file of choices (.json) or a mmabits.Schedule, got {given!r}")

    def product(
        self, session: Session, site: str, a: Array, b: Array, *, instruction: Instruction, output: str, fast_accum: bool = False,
        note: str = "",
    ) -> Array | None:  # fmt: skip
        """A B in f32 as the library sums it, entered into the report; None: nothing is known of such products.

        Args:
            session: whose.
            site: where in the program.
            a: (..., M, K).
            b: (..., K, N).
            instruction: what computes where no schedule says otherwise.
            output: type of the result: `"f16"`, `"bf16"`, `"f32"`.
            fast_accum: whether FP8 is accumulated fast.
            note: for the report.

        Raises:
            OperandError: the schedule was planned for another product.
        """
        types = operand_type(a, "a"), operand_type(b, "b")
        if not set(types) <= set(TYPES) or instruction.d_type.name != "f32" or instruction.block:
            return None
        m, k, n = *a.shape[-2:], b.shape[-1]
        schedule, told = self.schedule, f"plan given: {self.schedule.words}" if self.schedule is not None else ""
        if schedule is None:
            found = choice(
                m, n, k, (*types, output), arch=session.arch, library=self.name, file=self.file, fast_accum=fast_accum
            )  # fmt: skip
            schedule = found.best
            told = self._told(site, found, a, b, session.arch)
        evidence = min(schedule.evidence, Evidence.PUBLISHED)
        if not schedule.on_tensor_cores:
            told = f"{ON_CORES}; {told}"
        if schedule.lost_tail:
            told += "; left out here too" if self.bugs else "; summed here: bugs=True leaves it out"
        ready = session.ready(site, instruction, note=f"{told}; schedule {evidence}" + (f"; {note}" if note else ""))
        result = by_schedule(a, b, replace(schedule, output=None), arch=session.arch, bugs=self.bugs)
        if result.size and k:
            ready.count(m, n, k, count=result.size // (m * n))
        return result

    def _told(self, site: str, found: Choice, a: Array, b: Array, arch: str) -> str:
        """The plan for the report; candidates are compared at the first product of a shape at a place."""
        key = (site, arch, found.m, found.n, found.k, found.types, found.best)
        if key not in self._notes:
            words = found.words
            if len(found.candidates) > 1 and a.size and b.size:
                words += f"; {differing(found, a.reshape(-1, *a.shape[-2:])[0], b.reshape(-1, *b.shape[-2:])[0], arch=arch).words}"
            self._notes[key] = words
        return self._notes[key]
