"""What a block takes a matrix library to do: `emulate(..., library=...)`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from mmabits.emulator.api import Array, by_schedule
from mmabits.emulator.schedules.choices import LIBRARIES, Choice, changed_at, choice, read_choices
from mmabits.emulator.schedules.schedule import Schedule
from mmabits.emulator.schedules.sums import Chains, Merge
from mmabits.isa import Evidence, Instruction, Lowering, OperandError, architecture, lower
from mmabits.isa.ptx import resolve

if TYPE_CHECKING:
    from mmabits.emulator.hooks.session import Session

SAMPLE: Final = (16, 64)
"""Rows and columns of a product on which candidates are compared."""
TYPES: Final = ("f16", "bf16", "e4m3", "e5m2")
"""Operands that libraries were measured for."""
RESULTS: Final = ("f16", "bf16", "f32")
"""Results of products whose sums a library's schedule says."""
CHAIN: Final = "chain"
"""What `library=` says for no library: the instruction by itself, K upward."""
ASSUMED: Final = "the library's choice of instruction is assumed, and that it does not split K"
ASKED: Final = "one chain, K upward, as library='chain' asks; the choice of instruction is assumed"
COMPARED: Final = 32
"""Products of a session whose candidates are compared for the report."""
ON_CORES: Final = "on CUDA cores, not by this instruction"


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
    left, right = _part(a, b, rows, columns)
    results = [_bits(by_schedule(left, right, replace(each.schedule, planned=None), arch=arch or found.arch)) for each in found.candidates]
    return CandidateDifference(results=results[0].size, by_candidate=tuple(int(np.count_nonzero(each != results[0])) for each in results))


def _part(a: Array, b: Array, rows: int, columns: int) -> tuple[Array, Array]:
    """Rows of A and columns of B, evenly spread, as matrices of their own."""
    picked = [
        np.unique(np.linspace(0, size - 1, min(size, most)).astype(int)) for size, most in ((a.shape[0], rows), (b.shape[1], columns))
    ]
    return np.ascontiguousarray(a[picked[0]]), np.ascontiguousarray(b[:, picked[1]])


def _bits(array: Array) -> Array:
    return array.view({2: np.uint16, 4: np.uint32}[array.dtype.itemsize])


@dataclass(frozen=True, kw_only=True, eq=False)
class ChoiceSample:
    """A part of a product whose candidates can be compared when somebody wants to know."""

    found: Choice
    arch: str
    a: Array
    b: Array

    @classmethod
    def of(cls, found: Choice, a: Array, b: Array, arch: str) -> ChoiceSample:
        """Some rows and columns of the first item of a batch, copied."""
        left, right = _part(a.reshape(-1, *a.shape[-2:])[0], b.reshape(-1, *b.shape[-2:])[0], *SAMPLE)
        return cls(found=found, arch=arch, a=left, b=right)

    @cached_property
    def words(self) -> str:
        """In how many results the candidates differ; computed when first asked for."""
        return differing(self.found, self.a, self.b, arch=self.arch).words


PLANS: Final = 4096
"""Plans that a library keeps."""


class _Settled(NamedTuple):
    """What is the same in all products of a kind."""

    asked: Instruction
    """The instruction that was asked for, which lives as long as its `id` is remembered."""
    plan: PlannedProduct | None
    promote_every: int | None
    schedule: Schedule | None
    """None: it is one chain."""
    note: str
    order: Evidence
    lowering: Lowering


@dataclass(frozen=True, kw_only=True)
class PlannedProduct:
    """In which order a library is taken to sum a product, and how well that is known."""

    schedule: Schedule
    words: str
    evidence: Evidence
    """The weaker of the choice's and the schedule's."""
    found: Choice | None = None
    """None: the schedule was given."""

    def chain(self, k: int, row: Instruction) -> Chains | None:
        """Where it is nothing but one chain of whole instructions, K upward: that."""
        schedule, sums = self.schedule, self.schedule.sums
        if not isinstance(sums, Chains) or schedule.slice_k is not None or schedule.merge is not Merge.F32:
            return None
        lead = k % sums.lead_block if sums.lead_block else 0
        return sums if (sums.group or row.k) == row.k and lead % row.k == 0 else None

    def instruction(self, usual: Instruction, arch: str) -> Instruction:
        """What computes it: the schedule's, or the usual one."""
        sums = self.schedule.sums
        if not isinstance(sums, Chains) or sums.instruction is None:
            return usual
        return resolve(sums.instruction, arch=arch, a_type=usual.a_type, b_type=usual.b_type)


@dataclass(frozen=True, kw_only=True, eq=False)
class Library:
    """What `library=` names: the rules of a version, a file of choices, one schedule for every product, or none: one chain."""

    name: str = LIBRARIES[0]
    file: Path | None = None
    schedule: Schedule | None = None
    bugs: bool = False
    """Whether what the library is known to leave out is left out."""
    is_named: bool = False
    """Whether the program has said so."""
    _settled: dict[tuple[Any, ...], _Settled] = field(default_factory=dict, repr=False)
    """Of kinds of products met so far, by the `id` of their instructions."""

    @classmethod
    def of(cls, given: Any, *, bugs: bool) -> Library:
        """What a caller has named; None: nothing, and the best known is taken.

        Raises:
            OperandError: no such library, or no file of choices.
        """
        if not isinstance(bugs, bool):
            raise OperandError(f"bugs must be True or False, got {bugs!r}")
        if given is None or (isinstance(given, str) and given == CHAIN):
            if bugs:
                raise OperandError("bugs are those of a library: name it in library=")
            return cls() if given is None else cls(name=CHAIN, is_named=True)
        if isinstance(given, Schedule):
            return cls(schedule=given, bugs=bugs, is_named=True)
        if isinstance(given, str) and given in LIBRARIES:
            return cls(name=given, bugs=bugs, is_named=True)
        if isinstance(given, os.PathLike) or (isinstance(given, str) and given.endswith(".json")):
            path = Path(given)
            name = read_choices(path)["library"]
            if name not in LIBRARIES:
                raise OperandError(f"{path} is of {name!r}; known: {', '.join(LIBRARIES)}")
            return cls(name=name, file=path, bugs=bugs, is_named=True)
        known = ", ".join((*LIBRARIES, CHAIN))
        raise OperandError(f"library must be {known}, a file of choices (.json) or a mmabits.Schedule, got {given!r}")

    @property
    def identity(self) -> str:
        """Equal for those that sum every product alike."""
        changed = "" if self.file is None else f"{self.file.absolute()} {changed_at(self.file)}"
        return f"{self.name} {changed} {self.schedule!r} {self.bugs} {self.is_named}"

    def unknown(self, instruction: Instruction) -> tuple[str, Evidence]:
        """What is to be said of products whose schedule is not known, and how well their one chain is: as well as was asked for."""
        if instruction.d_type.is_integer:
            return "the library's choice of instruction is assumed; integer sums have no order", Evidence.RECORDED
        if self.name == CHAIN:
            return ASKED, Evidence.RECORDED
        followed = "library= is not followed here, " if self.is_named else ""
        return f"{ASSUMED}: {followed}no schedule is known of such products", Evidence.INFERRED

    def plan(
        self, m: int, n: int, k: int, *, instruction: Instruction, output: str, arch: str, fast_accum: bool = False
    ) -> PlannedProduct | None:
        """In which order a product is summed; None: nothing is known of such products, or one chain was asked for.

        Args:
            m: rows of the result.
            n: its columns.
            k: elements of K.
            instruction: what computes it where no schedule says otherwise.
            output: type of the result: `"f16"`, `"bf16"`, `"f32"`; others are not known.
            arch: architecture.
            fast_accum: whether FP8 is accumulated fast.

        Raises:
            OperandError: the schedule was planned for another product.
        """
        types = instruction.a_type.name, instruction.b_type.name
        is_known = set(types) <= set(TYPES) and output in RESULTS and instruction.d_type.name == "f32" and not instruction.block
        if self.name == CHAIN or not is_known or 0 in (m, n, k):
            return None
        if self.schedule is not None:
            if self.schedule.planned is not None:
                self.schedule.planned.check((m, n, k), types, architecture(arch).target)
            words = f"plan given: {self.schedule.words}; schedule {self.schedule.evidence}"
            return PlannedProduct(schedule=self.schedule, words=self._with_bug(words, self.schedule), evidence=self.schedule.evidence)
        found = choice(m, n, k, (*types, output), arch=arch, library=self.name, file=self.file, fast_accum=fast_accum)
        schedule = found.best
        return PlannedProduct(
            schedule=schedule, words=self._with_bug(f"{found.words}; schedule {schedule.evidence}", schedule),
            evidence=min(found.evidence, schedule.evidence), found=found,
        )  # fmt: skip

    def _with_bug(self, words: str, schedule: Schedule) -> str:
        words = words if schedule.on_tensor_cores else f"{ON_CORES}; {words}"
        return words + (("; left out here too" if self.bugs else "; summed here: bugs=True leaves it out") if schedule.lost_tail else "")

    def product(
        self, session: Session, site: str, a: Array, b: Array, *, instruction: Instruction, output: str, fast_accum: bool = False,
        promote_every: int | None = None, doubt: str = "", note: str = "", chain_note: str = "",
    ) -> Array:  # fmt: skip
        """A B in the accumulator's type, before it is scaled and rounded, as the library sums it; entered into the report.

        Args:
            session: whose.
            site: where in the program.
            a: (..., M, K).
            b: (..., K, N).
            instruction: what computes where no schedule says otherwise.
            output: type of the result, empty where no library's schedule is for it.
            fast_accum: whether FP8 is accumulated fast.
            promote_every: as for `mmabits.gemm`, where no schedule says so.
            doubt: why an answer of the library for this shape may not be that for this product; it is inferred then.
            note: for the report.
            chain_note: for the report, where no schedule is followed.

        Raises:
            OperandError: the schedule was planned for another product.
            InsufficientEvidence: the instruction or the order of the sums is known less well than the session requires.
        """
        m, k, n = *a.shape[-2:], b.shape[-1]
        key = m, n, k, id(instruction), output, session.arch, fast_accum, promote_every, doubt, note, chain_note
        settled = self._settled.get(key)
        if settled is None:
            settled = self._settle(m, n, k, instruction, output, session.arch, fast_accum, promote_every, doubt, note, chain_note)
            if self.file is None:  # a file of choices may change meanwhile, and is asked again
                if len(self._settled) >= PLANS:
                    self._settled.clear()
                self._settled[key] = settled
        ready = session.agree(site, settled.lowering, promote_every=settled.promote_every, note=settled.note, order=settled.order)
        if settled.schedule is None:
            result = ready.multiply(a, b)
        else:
            result = by_schedule(a, b, settled.schedule, arch=session.arch, bugs=self.bugs)
        if result.size and k:
            ready.count(m, n, k, count=result.size // (m * n))
            found = None if settled.plan is None else settled.plan.found
            if found is not None and len(found.candidates) > 1:
                ready.compare(m, n, k, lambda: ChoiceSample.of(found, a, b, session.arch))
        return result

    def _settle(
        self, m: int, n: int, k: int, instruction: Instruction, output: str, arch: str, fast_accum: bool, promote_every: int | None,
        doubt: str, note: str, chain_note: str,
    ) -> _Settled:  # fmt: skip
        """How products of a kind are computed, and what the report says of them."""
        plan = self.plan(m, n, k, instruction=instruction, output=output, arch=arch, fast_accum=fast_accum)
        if plan is None:
            words, level = self.unknown(instruction)
            told = _joined(words, chain_note, note)
            return _Settled(instruction, None, promote_every, None, told, level, lower(instruction, arch))
        if doubt and plan.found is not None and plan.found.evidence > Evidence.INFERRED:
            plan = replace(plan, words=f"{plan.words}; inferred here: {doubt}", evidence=Evidence.INFERRED)
        row = plan.instruction(instruction, arch)
        chain = plan.chain(k, row)
        return _Settled(
            asked=instruction, plan=plan, promote_every=None if chain is None else chain.promote_every,
            schedule=replace(plan.schedule, output=None) if chain is None else None, note=_joined(plan.words, note), order=plan.evidence,
            lowering=lower(row, arch),
        )  # fmt: skip


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))
