"""Which wrong models a set of dot products kills, and the few dot products that kill them all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.conformance.recorded.dots import DotVectors
from mmabits.conformance.recorded.reading import read_dots
from mmabits.isa import lower, parse
from mmabits.reports.failures import of_file
from mmabits.research.exact import Operands, evaluate
from mmabits.research.model import Model, model_of
from mmabits.research.probes.equivalent import reason_for
from mmabits.research.probes.mutants import Mutant, mutants

_FIRST: Final = 400
"""Rows tried first: most wrong models are killed by few."""


@dataclass(frozen=True, kw_only=True)
class Survivor:
    """A mutant that gives the same results on every dot product of a file."""

    number: str
    change: str
    reason: str | None
    """Why no operands can kill it; None where some can."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a file kills."""

    path: str
    error: str | None = None
    """Why it could not be scored; then nothing below counts."""
    kind: str = ""
    instruction: str = ""
    arch: str = ""
    datapath: str = ""
    rows: int = 0
    differing: int = 0
    """Rows that the model itself does not reproduce; mutants are then scored against the file all the same."""
    killed: tuple[str, ...] = ()
    survivors: tuple[Survivor, ...] = ()

    @property
    def open(self) -> tuple[Survivor, ...]:
        """Survivors that other operands would kill."""
        return tuple(survivor for survivor in self.survivors if survivor.reason is None)

    @property
    def equivalent(self) -> tuple[Survivor, ...]:
        """Survivors that no operands can kill."""
        return tuple(survivor for survivor in self.survivors if survivor.reason is not None)

    @property
    def mutants(self) -> int:
        """All of them."""
        return len(self.killed) + len(self.survivors)

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        names = ("path", "error", "kind", "instruction", "arch", "datapath", "rows", "differing")
        return {
            **{name: getattr(self, name) for name in names},
            "killed": list(self.killed),
            "survivors": [f"{s.number} {s.change}" for s in self.open],
            "equivalent": {f"{s.number} {s.change}": s.reason for s in self.equivalent},
        }


def operands_of(vectors: DotVectors, k: int) -> Operands:
    """The operands of a file, filled up with zeros to the instruction's K; scales of what is filled up are 1 (their code in the format)."""
    fill = k - vectors.k
    a, b = (np.pad(codes, ((0, 0), (0, fill))) for codes in (vectors.a, vectors.b))
    if vectors.scale_type is None or vectors.block is None or vectors.scale_a is None or vectors.scale_b is None:
        return Operands(a, b, vectors.c)
    one = vectors.scale_type.bias << vectors.scale_type.fraction_bits
    blocks = fill // vectors.block
    scales = [np.pad(codes, ((0, 0), (0, blocks)), constant_values=one) for codes in (vectors.scale_a, vectors.scale_b)]
    return Operands(a, b, vectors.c, *scales)


def kills(mutant: Model, operands: Operands, results: npt.NDArray[Any]) -> bool:
    """Whether a wrong model differs from the results anywhere."""
    first = slice(0, _FIRST)
    if not np.array_equal(evaluate(mutant, operands.take(first)), results[first]):
        return True
    rest = slice(_FIRST, None)
    return len(results) > _FIRST and not np.array_equal(evaluate(mutant, operands.take(rest)), results[rest])


def score(model: Model, operands: Operands, results: npt.NDArray[Any]) -> tuple[list[Mutant], list[Mutant]]:
    """The mutants of a model that some result kills, and those that survive.

    Args:
        model: what the results should be of.
        operands: n dot products.
        results: (n,) codes.
    """
    killed: list[Mutant] = []
    surviving: list[Mutant] = []
    for mutant in mutants(model):
        (killed if kills(mutant.model, operands, results) else surviving).append(mutant)
    return killed, surviving


def score_vectors(vectors: DotVectors, *, path: str = "") -> Score:
    """Score a file's dot products against the mutants of its instruction's datapath.

    Raises:
        UnsupportedInstruction: the architecture lacks the instruction, or it has modifiers that probes are not made for.
    """
    instruction = parse(vectors.instruction)
    model = model_of(lower(instruction, vectors.arch))
    operands = operands_of(vectors, instruction.k)
    killed, surviving = score(model, operands, vectors.d)
    return Score(
        path=path, kind=vectors.kind, instruction=vectors.instruction, arch=vectors.arch, datapath=model.name, rows=vectors.rows,
        differing=int((evaluate(model, operands) != vectors.d).sum()), killed=tuple(mutant.name for mutant in killed),
        survivors=tuple(Survivor(number=m.number, change=m.change, reason=reason_for(model, m)) for m in surviving),
    )  # fmt: skip


def score_files(files: Sequence[str | os.PathLike[str]]) -> Iterator[Score]:
    """Score files one by one; one that cannot be read or scored gives a score with `error` set."""
    for path in map(Path, files):
        try:
            yield score_vectors(read_dots(path), path=str(path))
        except Exception as error:  # of whatever kind: the other files are scored
            yield Score(path=str(path), error=of_file(path, error))


# Choosing --------------------------------------------------------------------------------------------------------------------


def killing_rows(
    model: Model, pool: Operands, wrong: Sequence[Model], *, times: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Few rows of a pool that kill each wrong model several times.

    Args:
        model: the right one.
        pool: n dot products.
        wrong: what to kill.
        times: kills wanted of each, as far as the pool has them.
        rng: breaks ties between rows that kill as many.

    Returns:
        The rows chosen, ascending, and which of the wrong models they kill.
    """
    results = evaluate(model, pool)
    table = np.array([evaluate(each, pool) != results for each in wrong], dtype=np.bool_).reshape(len(wrong), len(results))
    missing = np.minimum(table.sum(axis=1), times)
    chosen: list[int] = []
    free = np.ones(len(results), np.bool_)
    while missing.any():
        worth = (table[missing > 0].sum(axis=0) * free) + 0.5 * rng.random(len(results))
        row = int(np.argmax(worth))
        chosen.append(row)
        free[row] = False
        missing = np.maximum(missing - table[:, row], 0)
    return np.array(sorted(chosen), np.int64), np.asarray(table.any(axis=1), np.bool_)
