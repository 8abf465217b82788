"""Plain operands for recordings. Anything with the signature of `Generator` can take their place."""

from __future__ import annotations

import importlib
import inspect
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.conformance.record.tiles import Generator, TileOperands, diagonal_tiles, encoded, operand_formats
from mmabits.isa import lower
from mmabits.isa.errors import OperandError, nearest
from mmabits.isa.formats import FormatSpec
from mmabits.isa.instructions import Instruction
from mmabits.reports.failures import one_line

if TYPE_CHECKING:
    from mmabits.research.exact import Operands
    from mmabits.research.model import Model

Codes = npt.NDArray[Any]
_Draw = Callable[[str, FormatSpec, tuple[int, ...], np.random.Generator], Codes]

PROBES: Final = "probes"
_PARAMETERS: Final = 4
_SPECIAL_SHARE: Final = 0.15
_NORMAL_SCALE_SPREAD: Final = 3
_RANDOM_PROBES: Final = 40
_MOST_SEEDS: Final = 8
"""Seeds whose probes are taken before probes are taken twice."""


def _rng(name: str, instruction: Instruction, arch: str, seed: int) -> np.random.Generator:
    """Depends on what is asked and on nothing else."""
    return np.random.default_rng([seed, *(zlib.crc32(text.encode()) for text in (name, instruction.ptx, arch))])


def _drawn(name: str, draw: _Draw, instruction: Instruction, arch: str, tiles: int, seed: int) -> TileOperands:
    rng = _rng(name, instruction, arch, seed)
    return TileOperands(**{operand: draw(operand, spec, (tiles, *shape), rng) for operand, spec, shape in operand_formats(instruction)})


def _bits(operand: str, spec: FormatSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Codes:
    return rng.integers(0, spec.codes - 1, shape, dtype=np.uint64, endpoint=True).astype(f"uint{spec.container_bits}")


def _normal(operand: str, spec: FormatSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Codes:
    if spec.is_integer:
        return _bits(operand, spec, shape, rng)
    if spec.scale_only:
        return encoded(2.0 ** rng.integers(-_NORMAL_SCALE_SPREAD, _NORMAL_SCALE_SPREAD + 1, shape), spec)
    return encoded(rng.standard_normal(shape), spec)


def special_codes(spec: FormatSpec) -> Codes:
    """The codes at the edges of a format: zeros, ones, the ends of the subnormals and of the normals, infinities, NaN."""
    if spec.is_integer:
        top = (1 << spec.fraction_bits) - 1
        codes = {0, 1, top, *((spec.sign_mask, spec.codes - 1) if spec.sign_bits else ())}
    else:
        low = 1 << spec.ignored_low_bits
        smallest_normal = 1 << (spec.fraction_bits + spec.ignored_low_bits)
        magnitudes = {0, low, smallest_normal - low, smallest_normal, spec.max_finite_magnitude, spec.bias * smallest_normal}
        magnitudes |= {code for code in (spec.infinity, spec.nan) if code is not None}
        sign = spec.sign_mask or (1 << (spec.code_bits - 1) if spec.ignored_sign else 0)
        codes = magnitudes | {code | sign for code in magnitudes}
    return np.array(sorted(codes), dtype=f"uint{spec.container_bits}")


def _special(operand: str, spec: FormatSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Codes:
    """Special codes among normal values: few enough that not every sum is NaN."""
    codes, share = special_codes(spec), _SPECIAL_SHARE
    not_finite = np.isin(codes, [code for code in (spec.infinity, spec.nan) if code is not None])
    signs_aside = codes & codes.dtype.type(spec.magnitude_mask)
    weights = np.where(not_finite | (signs_aside >= (spec.exponent_mask or spec.codes)), 0.02, 1.0)
    chosen = rng.choice(codes, shape, p=weights / weights.sum())
    return np.where(rng.random(shape) < share, chosen, _normal(operand, spec, shape, rng))


def random_bits(instruction: Instruction, arch: str, tiles: int, seed: int) -> TileOperands:
    """Uniform codes, special values as they come; C and the scales likewise."""
    return _drawn("random-bits", _bits, instruction, arch, tiles, seed)


def normal_values(instruction: Instruction, arch: str, tiles: int, seed: int) -> TileOperands:
    """Standard normal values rounded to the formats, C among them; scales 1/8 to 8; integers uniform."""
    return _drawn("normal", _normal, instruction, arch, tiles, seed)


def special_values(instruction: Instruction, arch: str, tiles: int, seed: int) -> TileOperands:
    """Normal values with the edges of the formats among them: zeros of both signs, subnormals, the largest, infinities and NaN."""
    return _drawn("special", _special, instruction, arch, tiles, seed)


def probes(instruction: Instruction, arch: str, tiles: int, seed: int) -> TileOperands:
    """Dot products that tell the modelled datapath from its neighbours (docs/probes.md), on the diagonals of the tiles.

    First the few that kill every mutant of the datapath, then of every recipe about as many; where all recipes together have too few,
    those of further seeds follow.
    """
    from mmabits.research.exact import join
    from mmabits.research.model import model_of
    from mmabits.research.probes.generators import probes_for, unique

    plain = replace(instruction, negate_a=False, negate_b=False, scale_d=True, scale_input_d=0)
    model = model_of(lower(plain, arch))
    wanted = tiles * min(instruction.m, instruction.n)
    found = _killing(model)
    for number in range(_MOST_SEEDS):
        recipes = [recipe.operands for recipe in probes_for(model, random=_RANDOM_PROBES, seed=seed + number)]
        found = unique(join([found, join(recipes).take(_in_turn([len(recipe.c) for recipe in recipes]))]))
        if len(found.c) >= wanted:
            break
    return diagonal_tiles(instruction, TileOperands(**found._asdict()), tiles)


@lru_cache(maxsize=128)
def _killing(model: Model) -> Operands:
    from mmabits.conformance.probes.pack import killing_probes

    return killing_probes(model)[0]


def _in_turn(sizes: Sequence[int]) -> npt.NDArray[np.int64]:
    """Rows of parts that lie one below the other, one of each part at a time: the first of each, then the second of each."""
    starts = np.cumsum([0, *sizes[:-1]])
    rows = [(place, part, start + place) for part, (start, size) in enumerate(zip(starts, sizes, strict=True)) for place in range(size)]
    return np.array([row for _, _, row in sorted(rows)], np.int64)


GENERATORS: Final[dict[str, Generator]] = {"normal": normal_values, "random-bits": random_bits, "special": special_values, PROBES: probes}
"""The generators by their names in files and on the command line."""


def find_generator(name: str) -> Generator:
    """A generator by name.

    Args:
        name: one of `GENERATORS`, or `package.module:function`.

    Raises:
        OperandError: no such generator, or something that is none: a module of Python itself, a function of other parameters.
    """
    if name in GENERATORS:
        return GENERATORS[name]
    module, colon, function = name.partition(":")
    if not colon:
        known = f"{', '.join(GENERATORS)}, package.module:function"
        raise OperandError(f"unknown generator {name!r}{nearest(name, GENERATORS)}; known: {known}")
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise OperandError(f"no generator {name!r}: {module} is a module of Python itself")
    try:
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # a module may do anything when it is imported
        raise OperandError(f"no generator {name!r}: {type(error).__name__}: {one_line(error)}") from error
    if not callable(found):
        raise OperandError(f"{name!r} is no function")
    if not _has_the_parameters(found):
        raise OperandError(f"{name!r} is no generator: one takes instruction, arch, tiles and seed, and nothing else that is needed")
    generator: Generator = found
    return generator


def _has_the_parameters(function: Callable[..., Any]) -> bool:
    """Whether a function needs the four that a generator is called with: what is something else must not be called."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of C, and does not tell
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [each for each in parameters if each.default is each.empty and each.kind is not each.VAR_KEYWORD]
    return not isinstance(function, type) and len(needed) == _PARAMETERS and all(each.kind in kinds for each in needed)
