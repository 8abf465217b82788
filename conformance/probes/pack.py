"""The pack: for each datapath and types, the few dot products that kill every mutant that operands can kill, with exact results.

The results are computed by the exact model; nothing in the pack is recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.conformance.probes.score import killing_rows
from mmabits.conformance.recorded.base import Provenance
from mmabits.conformance.recorded.dots import SUFFIX, DotVectors, write_vectors
from mmabits.isa import Instruction, VectorFileError, instructions, lower, parse
from mmabits.research.exact import Operands, evaluate, join
from mmabits.research.model import Model, model_of
from mmabits.research.probes.equivalent import reason_for
from mmabits.research.probes.generators import SEED, Probes, probes_for
from mmabits.research.probes.mutants import mutants

FOLDER: Final = Path(__file__).resolve().parent / "pack"
"""Where the pack that ships lies."""
TIMES: Final = 2
"""Dot products that kill each mutant, where there are so many."""
_AT_FIRST: Final = 100
"""Dot products of each recipe that are tried before all of them are."""
_MIXED: Final = (("e4m3", "e5m2"), ("e5m2", "e4m3"), ("e4m3", "e2m1"), ("e3m2", "e2m3"), ("s8", "u8"), ("u8", "s8"), ("s4", "u4"))
"""Pairs of two types that the pack covers; all pairs of one type are."""


@dataclass(frozen=True, kw_only=True)
class PackFile:
    """One file of the pack."""

    name: str
    instruction: Instruction
    arch: str
    model: Model
    datapaths: tuple[str, ...]
    """Rows of isa/ whose instructions of these types and K compute alike."""


def _spellings(text: str, roundings: tuple[str, ...], satfinite: bool) -> list[str]:
    found = [text.replace(".rn.", f".{rounding}.") for rounding in roundings] or [text]
    return [*found, *([_saturating(text)] if satfinite else [])]


def _saturating(text: str) -> str:
    """The spelling with `.satfinite`: before the types for mma.sync, at the end else."""
    return text.replace(".s32.", ".satfinite.s32.", 1) if text.startswith("mma.") else f"{text}.satfinite"


def _all() -> Iterator[tuple[Instruction, str]]:
    for line in instructions():
        example = line.example
        spec = example.on(line.arch) if example is not None and line.modelled else None
        if example is None or spec is None:
            continue
        types = f".{example.a_type.name}.{example.b_type.name}"
        for a, b in spec.pairs:
            if a == b or (a, b) in _MIXED:
                text = str(example).replace(types, f".{a}.{b}")
                for each in _spellings(text, spec.roundings, spec.satfinite):
                    yield parse(each), line.arch


def _name(instruction: Instruction, arch: str) -> str:
    family = str(instruction.family).split(".", maxsplit=1)[0]
    scale = f"-{instruction.scale_type.name}-{instruction.block}" if instruction.scale_type else ""
    more = "".join(f"-{word}" for word in (instruction.rounding, "satfinite" if instruction.satfinite else None) if word)
    types = f"{instruction.a_type.name}-{instruction.b_type.name}-{instruction.d_type.name}"
    return f"{arch}-{family}-{types}-k{instruction.k}{scale}{more}"


def entries() -> list[PackFile]:
    """What the pack covers: each different arithmetic once, under the first architecture that has it."""
    found: dict[Model, list[tuple[Instruction, str]]] = {}
    names: dict[Model, dict[str, None]] = {}
    for instruction, arch in _all():
        lowering = lower(instruction, arch)
        model = model_of(lowering)
        found.setdefault(model, []).append((instruction, arch))
        names.setdefault(model, {})[lowering.datapath.name] = None
    made = []
    for model, users in found.items():
        instruction, arch = users[0]
        made.append(PackFile(name=_name(instruction, arch), instruction=instruction, arch=arch, model=model, datapaths=tuple(names[model])))
    return sorted(made, key=lambda entry: entry.name)


def killing_probes(model: Model) -> tuple[Operands, list[Probes], npt.NDArray[np.int64]]:
    """The few dot products that kill every mutant of a model that operands can kill.

    Returns:
        The dot products, all the recipes they were chosen from, and the number of the recipe of each.
    """
    wrong = [mutant.model for mutant in mutants(model) if reason_for(model, mutant) is None]
    for most in (_AT_FIRST, None):
        probes = probes_for(model, most=most, random=30)
        pool = join([each.operands for each in probes])
        rows, kills = killing_rows(model, pool, wrong, times=TIMES, rng=np.random.default_rng(SEED))
        if kills.all():
            break
    return pool.take(rows), probes, np.repeat(np.arange(len(probes)), [len(each) for each in probes])[rows]


def vectors_of(entry: PackFile) -> DotVectors:
    """The dot products of one file: chosen from all recipes, exact results, the recipes in the metadata."""
    operands, probes, origin = killing_probes(entry.model)
    recipes: list[dict[str, Any]] = []
    for i in dict.fromkeys(origin.tolist()):
        here = np.flatnonzero(origin == i)
        recipes.append({"name": probes[i].name, "tells": probes[i].tells, "first": int(here[0]), "rows": len(here)})
    row = entry.instruction
    return DotVectors(
        instruction=row.ptx, arch=entry.arch, a_type=row.a_type, b_type=row.b_type, c_type=row.c_type, d_type=row.d_type, k=row.k,
        a=operands.a, b=operands.b, c=operands.c, d=evaluate(entry.model, operands), scale_type=row.scale_type, block=row.block,
        scale_a=operands.scale_a, scale_b=operands.scale_b, kind=Provenance.COMPUTED, gpu="none: exact model of mmabits",
        note="computed, not recorded: kills every mutant of the datapath that operands can kill", source="computed by the exact model",
        license="Apache-2.0", extra={"recipes": json.dumps(recipes), "datapaths": json.dumps(entry.datapaths)},
    )  # fmt: skip


def write_pack(folder: Path) -> list[Path]:
    """Write every file of the pack; the same version always writes the same bytes.

    Raises:
        VectorFileError: the folder or a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VectorFileError(f"{folder}: cannot be made ({error.strerror or error})") from error
    paths = []
    for entry in entries():
        path = folder / f"{entry.name}{SUFFIX}"
        write_vectors(path, vectors_of(entry))
        paths.append(path)
    return paths
