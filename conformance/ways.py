"""Own matrices, multiplied in several ways and compared: `mmabits.compare`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.conformance.diff.comparing import Difference, Kind, distances
from mmabits.conformance.diff.comparing import compare as compare_bits
from mmabits.emulator.api import gemm, operand_type, scale_type
from mmabits.emulator.codecs import CVT_ROUNDINGS, decode, encode, from_codes
from mmabits.emulator.engine import memory
from mmabits.emulator.interop import to_numpy
from mmabits.isa import (
    Instruction,
    OperandError,
    OperandTypeError,
    evidence_level,
    format_spec,
    library_instruction,
    lower,
    nearest,
    resolve,
)  # fmt: skip
from mmabits.isa.errors import InsufficientEvidence, UnknownFormat
from mmabits.research.explain import Explanation, explain
from mmabits.research.products import rounded_product
from mmabits.research.study.recipes import RECIPES, Stored

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

EXACT: Final = "exact"
FLOAT32: Final = "float32"
GIVEN: Final = "given"
REFERENCES: Final = (EXACT, FLOAT32)
WORST: Final = 5


WHOLE: Final = tuple(name for name, row in RECIPES.items() if row.whole)
"""Recipes whose product is one instruction's, times one number."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Way:
    """One way to multiply, with what came out."""

    name: str
    """`sm_90a wgmma`, or that of a reference."""
    arch: str | None
    """None: a reference."""
    instruction: Instruction | None
    evidence: str
    result: Array
    difference: Difference | None
    """From the base; None: it is the base."""
    largest: float
    """The largest difference from the base among finite elements."""
    relative: float
    """The largest difference from the base in proportion to the base's element, among those that are finite and not zero there."""
    error: float
    """Root of the mean square of what lies between the result and the product of the matrices as they were given, relative to that."""

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        found = None if self.difference is None else {k: v for k, v in self.difference.as_json.items() if k not in ("tile", "tiles")}
        return {
            "way": self.name, "arch": self.arch, "instruction": None if self.instruction is None else self.instruction.ptx,
            "evidence": self.evidence, "error": _plain(self.error), "largest": _plain(self.largest), "relative": _plain(self.relative),
            "difference": found,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Worst:
    """An element on which the ways disagree most."""

    row: int
    column: int
    ulp: int | None
    """Between the base and the way that is farthest from it; None where they are no two numbers."""
    way: str
    values: tuple[str, ...]
    """Of each way, in their order."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredPair:
    """What was multiplied."""

    a: Array
    b: Array
    scale_a: Array | None
    scale_b: Array | None
    factor: float
    """What the recipe multiplies the product by afterwards: the float32 next to the product of both matrices' scales."""
    notes: tuple[str, ...]
    """What the quantization did to the matrices."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WaysCompared:
    """One product in several ways: print it (rich), ask it, or take its rows."""

    shape: tuple[int, int, int]
    """M, N, K."""
    format: str
    operands: StoredPair
    ways: tuple[Way, ...]
    """The base first."""
    worst: tuple[Worst, ...]
    promote_every: int | None

    @property
    def base(self) -> Way:
        """What the others are compared with."""
        return self.ways[0]

    @property
    def is_equal(self) -> bool:
        """Whether all ways give the same bits."""
        return all(way.difference is None or way.difference.is_equal for way in self.ways)

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        m, n, k = self.shape
        return {
            "m": m, "n": n, "k": k, "format": self.format, "promote_every": self.promote_every, "factor": _plain(self.operands.factor),
            "notes": list(self.operands.notes), "base": self.base.name, "equal": self.is_equal,
            "ways": [way.as_json for way in self.ways],
            "worst": [
                {"row": one.row, "column": one.column, "ulp": one.ulp, "way": one.way, "values": list(one.values)} for one in self.worst
            ],
        }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """A row for each way, for a CSV file or a data frame."""
        found = []
        for way in self.ways:
            apart = way.difference
            kinds = {} if apart is None else {kind.value: apart.counts[kind] for kind in Kind if kind is not Kind.EQUAL}
            found.append({
                "way": way.name, "arch": way.arch or "", "instruction": "" if way.instruction is None else way.instruction.ptx,
                "evidence": way.evidence, "elements": way.result.size, "differ": "" if apart is None else apart.differing,
                "largest ulp": "" if apart is None else apart.largest_ulp,
                **{kind.value: kinds.get(kind.value, "") for kind in Kind if kind is not Kind.EQUAL}, "largest difference": way.largest,
                "largest relative": way.relative, "error": way.error,
            })  # fmt: skip
        return found

    def explain(self, place: Worst | tuple[int, int]) -> tuple[Explanation, ...]:
        """Why an element is what it is, for each way with an instruction.

        Args:
            place: one of `worst`, or (row, column).

        Raises:
            OperandError: no such element.
        """
        row, column = (place.row, place.column) if isinstance(place, Worst) else place
        scales: dict[str, Any] = {"scale_a": self.operands.scale_a, "scale_b": self.operands.scale_b}
        return tuple(
            explain(
                self.operands.a, self.operands.b, instruction=way.instruction, arch=way.arch, promote_every=self.promote_every, row=row,
                column=column, **scales,
            )
            for way in self.ways
            if way.instruction is not None and way.arch is not None
        )  # fmt: skip

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from mmabits.conformance.ways_shown import shown

        return shown(self)


def compare(
    a: Any, b: Any, *, arch: str | Sequence[str], instruction: str | Instruction | Sequence[str | Instruction] | None = None,
    format: str | None = None, format_b: str | None = None, reference: Any = None, promote_every: int | None = None,
    worst: int = WORST, require: str = "inferred",
) -> WaysCompared:  # fmt: skip
    """Multiply two matrices in several ways and say what differs.

    Args:
        a: (..., K) activations; leading dimensions become rows.
        b: (K, N) weights.
        arch: one or more architectures, or GPUs: `("sm_90a", "sm_100a")`.
        instruction: one or more, as for `mmabits.gemm`, each on every architecture that has it; None: what the matrix libraries of each
            architecture are taken to use.
        format: what both are brought to first: a format (`"e4m3"`: each value rounded, out of range to the largest number, no scale), or
            a recipe of `WHOLE` (`"fp8"`, `"mxfp8"`, `"nvfp4"`, ...). None: they are taken as they are.
        format_b: another one for b.
        reference: what all ways are compared with: `"exact"` (the sum of what is stored, rounded once), `"float32"` (NumPy's product of
            the matrices as given, in float32), or an array (M, N) of the result's type, such as a GPU's own. None: the first way.
        promote_every: as for `mmabits.gemm`.
        worst: how many of the elements that differ most to keep.
        require: refuse rows whose evidence is below this level.

    Returns:
        The comparison. Where a recipe has scales of the whole matrices, every result is multiplied by them in float32 at the end.

    Raises:
        OperandTypeError, OperandError: matrices that do not fit each other, the format or the reference; fewer than two ways.
        UnsupportedInstruction: an architecture has none of the instructions, or none for these operands.
        InsufficientEvidence: a row is known less well than `require` asks.
    """
    level = evidence_level(require)
    left, right = _matrix(a, "a"), _matrix(b, "b")
    if left.shape[1] != right.shape[0]:
        raise OperandError(f"a has K = {left.shape[1]} (shape {left.shape}) and b has K = {right.shape[0]} (shape {right.shape})")
    if isinstance(worst, bool) or not isinstance(worst, int) or worst < 0:
        raise OperandError(f"worst must be an integer from 0 upward, got {worst!r}")
    operands = quantized(left, right, format, format_b)
    found = _instructions(operands, (arch,) if isinstance(arch, str) else tuple(arch), instruction)
    if not found or (len(found) < 2 and reference is None):
        raise OperandError("one way alone has nothing to be compared with: name another arch or instruction, or a reference")
    for name, row in found:
        if (known := lower(row, name).evidence) < level:
            raise InsufficientEvidence(f"{row} on {name} rests on {known} evidence, but {level} is required")
    kinds = {row.d_type.name for _, row in found}
    if len(kinds) > 1:
        raise OperandError(f"results of one type are compared; these instructions give {', '.join(sorted(kinds))}")
    memory.require(8 * left.shape[0] * right.shape[1] * (len(found) + 4), "comparing these products")
    exact = _doubles(left) @ _doubles(right)
    results: list[tuple[str, str | None, Instruction | None, str, Array]] = []
    if reference is not None:
        results.append((*_reference(reference, left, right, operands, found[0][1]),))
    several = len({row for _, row in found}) > len({name for name, _ in found}) or instruction is not None
    for name, row in found:
        d = gemm(
            operands.a, operands.b, instruction=row, arch=name, promote_every=promote_every, scale_a=operands.scale_a,
            scale_b=operands.scale_b,
        )  # fmt: skip
        label = f"{name} {_short(row)}" if several else name
        results.append((label, name, row, str(lower(row, name).evidence), scaled(d, operands)))
    base = results[0][-1]
    ways = tuple(
        Way(
            name=label, arch=name, instruction=row, evidence=known, result=d,
            difference=compare_bits(base, d) if number else None,
            largest=far[0], relative=far[1], error=_error(d, exact),
        )
        for number, (label, name, row, known, d) in enumerate(results)
        for far in (_farthest(base, d),)
    )  # fmt: skip
    named = (format or "as given") if format_b in (None, format) else f"{format or 'as given'} x {format_b}"
    m, n, k = left.shape[0], right.shape[1], left.shape[1]
    return WaysCompared(
        shape=(m, n, k), format=named, operands=operands, ways=ways, worst=_worst(ways, worst), promote_every=promote_every
    )  # fmt: skip


def quantized(a: Array, b: Array, format: str | None, format_b: str | None = None) -> StoredPair:
    """Two matrices in a format, or by a recipe.

    Args:
        a: (M, K).
        b: (K, N).
        format: as for `compare`.
        format_b: as for `compare`.

    Raises:
        OperandError: no matrix, or one without elements; no such format or recipe, or a K that its blocks do not divide.
        OperandTypeError: as given, a type that no instruction takes.
    """
    for name, matrix in (("a", a), ("b", b)):
        if matrix.ndim < 2 or not matrix.size:
            raise OperandError(f"{name} must be a matrix with elements, got shape {matrix.shape}")
    notes: list[str] = []
    left, right = _stored(a, -1, format, "a", notes), _stored(b, 0, format_b or format, "b", notes)
    if (left.scales is None) != (right.scales is None):
        raise OperandError(f"{format or 'as given'} and {format_b} do not go together: block scales are those of both matrices or of none")
    return StoredPair(
        a=left.elements, b=right.elements, scale_a=left.scales, scale_b=right.scales, factor=float(np.float32(left.factor * right.factor)),
        notes=tuple(notes),
    )  # fmt: skip


def _stored(matrix: Array, axis: int, how: str | None, name: str, notes: list[str]) -> Stored:
    if how is None:
        operand_type(matrix, name)
        return Stored(elements=matrix, scales=None, factor=1.0, values=_doubles(matrix))
    if how in RECIPES:
        if not RECIPES[how].whole:
            raise OperandError(
                f"{how} scales rows, columns or partial sums, which is no one product of an instruction: mmabits.study and "
                f"mmabits evaluate take it; here: {', '.join(WHOLE)}, and formats"
            )
        with np.errstate(over="ignore"):
            values = matrix.astype(np.float32) if matrix.dtype != np.float32 else matrix
        found = RECIPES[how].quantize(values, axis)
    else:
        found = _cast(matrix, how, name)
    wanted = found.values
    given = _doubles(matrix)
    lost = int(((wanted == 0) & (given != 0)).sum())
    with np.errstate(invalid="ignore", over="ignore"):
        apart = float(np.sqrt(np.mean((wanted - given) ** 2)) / (np.sqrt(np.mean(given**2)) or 1.0))
    parts = [f"relative error {apart:.2e}" if apart else "exact"]
    parts += [f"{lost:,} become zero"] if lost else []
    beyond = 0 if how in RECIPES else int((np.abs(given) > format_spec(how).max_finite).sum())
    parts += [f"{beyond:,} are beyond its largest number"] if beyond else []
    notes.append(f"{name} to {how}: {', '.join(parts)}")
    return found


def _cast(matrix: Array, how: str, name: str) -> Stored:
    try:
        form = format_spec(how)
    except UnknownFormat:
        names = tuple(dict.fromkeys((*WHOLE, *CVT_ROUNDINGS)))
        raise OperandError(f"unknown format or recipe {how!r}{nearest(how, names)}; known: {', '.join(names)}") from None
    rounding = CVT_ROUNDINGS[form.name][0] if form.name in CVT_ROUNDINGS else "rn"
    elements = from_codes(encode(matrix, form, rounding=rounding, satfinite=True), form)
    operand_type(elements, name)
    return Stored(elements=elements, scales=None, factor=1.0, values=_doubles(elements))


def _plain(number: float) -> float | str:
    """A number as JSON has it; `nan` and `inf` are texts."""
    return number if math.isfinite(number) else str(number)


def _doubles(matrix: Array) -> Doubles:
    return matrix.astype(np.float64)


def _matrix(operand: Any, name: str) -> Array:
    array = to_numpy(operand, name, packed_along=-1 if name == "a" else -2)[0]
    if array.dtype.kind not in "iufV" or array.dtype.type is np.void:
        raise OperandTypeError(f"{name} must be a matrix of numbers, got {array.dtype}")
    if name == "a" and array.ndim > 2:
        array = array.reshape(-1, array.shape[-1])
    if array.ndim != 2 or not array.size:
        raise OperandError(f"{name} must be a matrix with elements, got shape {array.shape}")
    return array


def _instructions(operands: StoredPair, archs: tuple[str, ...], asked: Any) -> list[tuple[str, Instruction]]:
    """Every architecture with every instruction that was asked for and that it has."""
    from mmabits.isa import UnsupportedInstruction, architecture

    names = tuple(dict.fromkeys(architecture(name).name for name in archs))
    types = operand_type(operands.a, "a"), operand_type(operands.b, "b")
    scale = None if operands.scale_a is None else scale_type(operands.scale_a)
    if asked is None:
        return [(name, library_instruction(name, *types, scale_type=scale)) for name in names]
    spelled = (asked,) if isinstance(asked, str | Instruction) else tuple(asked)
    found, refused = [], []
    for one in dict.fromkeys(spelled):
        for name in names:
            try:
                row = resolve(one, arch=name, a_type=types[0], b_type=types[1], scale_type=scale)
                lower(row, name)
            except UnsupportedInstruction as error:
                refused.append(error)
                continue
            found.append((name, row))
    if refused and (len(spelled) == 1 or not found):
        raise refused[0]
    return found


def _short(row: Instruction) -> str:
    """Family and shape: enough to tell instructions of one product apart."""
    return f"{row.family} {'.'.join(part for part in row.ptx.split('.') if part.startswith(('m16', 'm8', 'm64', 'kind')))}".strip()


def _reference(
    asked: Any, left: Array, right: Array, operands: StoredPair, row: Instruction
) -> tuple[str, None, None, str, Array]:  # fmt: skip
    kind = row.d_type
    if isinstance(asked, str):
        if asked not in REFERENCES:
            raise OperandError(f"unknown reference {asked!r}{nearest(asked, REFERENCES)}; known: {', '.join(REFERENCES)}, or an array")
        if asked == EXACT:
            return EXACT, None, None, "definition", scaled(exact_product(operands, kind.name), operands)
        if kind.name != "f32":
            raise OperandError(f"the product in float32 is no reference for results of {kind.name}")
        with np.errstate(over="ignore", invalid="ignore"):
            plain = left.astype(np.float32) @ right.astype(np.float32)
        return FLOAT32, None, None, "NumPy on this machine", plain
    array = to_numpy(asked, "reference")[0]
    shape = (left.shape[0], right.shape[1])
    if array.ndim > 2:
        array = array.reshape(-1, array.shape[-1])
    if array.shape != shape or array.dtype != np.dtype(kind.numpy_name):
        raise OperandError(f"the reference must be {shape} of {kind.numpy_name}, got {array.shape} of {array.dtype}")
    return GIVEN, None, None, "as given", np.ascontiguousarray(array)


def scaled(d: Array, operands: StoredPair) -> Array:
    """A product times the scales of the whole matrices, in float32."""
    if operands.factor == 1.0:
        return d
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(d * np.float32(operands.factor))


def exact_product(operands: StoredPair, form: str) -> Array:
    """The sum of the products of what is stored, rounded once to nearest; the factor is left out.

    Raises:
        OperandError: operands of f64, whose exact products no float64 holds.
    """
    if operand_type(operands.a, "a") == "f64":
        raise OperandError("no exact reference for operands of f64")
    return rounded_product(_decoded(operands.a, operands.scale_a, -1), _decoded(operands.b, operands.scale_b, 0), form)


def _decoded(elements: Array, scales: Array | None, axis: int) -> Doubles:
    values = decode(elements, operand_type(elements, "a"))
    if scales is None:
        return values
    count = elements.shape[axis] // scales.shape[axis]
    return np.asarray(values * np.repeat(decode(scales, scale_type(scales)), count, axis=axis))


def _error(d: Array, exact: Doubles) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        size = float(np.sqrt(np.mean(exact**2)))
        return float(np.sqrt(np.mean((d.astype(np.float64) - exact) ** 2))) / (size or 1.0)


def _farthest(base: Array, other: Array) -> tuple[float, float]:
    """The largest difference, absolute and relative."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        apart = np.abs(other.astype(np.float64) - base.astype(np.float64))
        relative = apart / np.abs(base.astype(np.float64))
    absolute, proportion = (float(np.max(part, initial=0.0, where=np.isfinite(part))) for part in (apart, relative))
    return absolute, proportion


def _worst(ways: tuple[Way, ...], count: int) -> tuple[Worst, ...]:
    """The elements farthest from the base in any way: what is no number first, then by ulp."""
    base = ways[0].result
    places: dict[tuple[int, int], tuple[float, int | None, str]] = {}
    for way in ways[1:]:
        rank, ulp = _ranked(base, way.result)
        flat = np.argsort(-rank, axis=None, kind="stable")[:count]
        for row, column in zip(*np.unravel_index(flat, base.shape), strict=True):
            size = float(rank[row, column])
            if size > 0 and size > places.get((int(row), int(column)), (0.0, None, ""))[0]:
                places[int(row), int(column)] = (size, int(ulp[row, column]) if np.isfinite(size) else None, way.name)
    ordered = sorted(places.items(), key=lambda item: (-item[1][0], item[0]))[:count]
    return tuple(
        Worst(
            row=row, column=column, ulp=ulp, way=name, values=tuple(_text(way.result[row, column]) for way in ways)
        )
        for (row, column), (_, ulp, name) in ordered
    )  # fmt: skip


def _ranked(base: Array, other: Array) -> tuple[Doubles, npt.NDArray[np.uint64]]:
    """How far apart elements are, for sorting (infinite where they are no two numbers), and in ulp."""
    differs, are_numbers, ulp = distances(base, other)
    rank = ulp.astype(np.float64)
    rank[differs & ~are_numbers] = np.inf
    return rank, ulp


def _text(element: Any) -> str:
    return str(int(element)) if isinstance(element, np.integer) else f"{float(element):.9g}"


__all__ = [
    "EXACT", "FLOAT32", "REFERENCES", "StoredPair", "Way", "WaysCompared", "Worst", "compare", "exact_product", "quantized", "scaled",
]  # fmt: skip
