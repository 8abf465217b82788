"""What-if architectures: a real one with some datapaths changed, used wherever the name of an architecture goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from typing import Any, Final

from mmabits.isa.architectures import WHAT_IF_ARCHITECTURES, ArchitectureSpec, architecture, real_architecture
from mmabits.isa.datapaths import DATAPATHS, Arithmetic, DatapathSpec, ResultRounding
from mmabits.isa.errors import OperandError, nearest
from mmabits.isa.evidence import Evidence, Proof
from mmabits.isa.lowering import WHAT_IF_DATAPATHS

CHANGEABLE: Final = ("step", "fraction_bits", "zero_exponent", "group", "result_fraction_bits", "result_rounding")
"""Fields of a DatapathSpec that a what-if row may change."""
_RANGES: Final = {
    Arithmetic.FUSED: {"fraction_bits": (0, 1000), "zero_exponent": (-150, 100)},
    Arithmetic.GROUPED: {"fraction_bits": (0, 1000), "zero_exponent": (-150, -126)},
}
"""What these may be at all; the engine itself refuses widths that it has no carrier for. In groups a zero must not outweigh an f32."""


def what_if(name: str, *, base: str, rows: Mapping[str, Mapping[str, Any]], promote_every: int | None = None) -> ArchitectureSpec:
    """An architecture of the caller's own: a real one, with numbers of its datapaths changed.

    Its name then goes wherever an architecture's does: gemm, mma, emulate, explain, identify. It lasts as long as the process.

    Args:
        name: the new name, such as `"hopper-f20"`.
        base: the real architecture it departs from; its instructions are those of the new one.
        rows: for each datapath of the base, named without the architecture (`"wgmma.f8.f32"`; `*` and `?` match several, of which those
            of exact or IEEE arithmetic are left alone), the fields that differ: `fraction_bits` (F), `step` (L), `zero_exponent`,
            `group`, `result_fraction_bits`, `result_rounding` (a ResultRounding, or `"rz"` or `"rn"`).
        promote_every: elements of K after which gemm adds the chain to an f32 total and starts anew, where the caller of gemm
            does not say; None: never.

    Returns:
        The architecture. The same definition twice gives the same one.

    Raises:
        UnknownArchitecture: no such base.
        OperandError: a name that is taken, no such datapath or field, or a value that no unit can have.

    Examples:
        >>> import mmabits
        >>> mmabits.what_if("hopper-f20", base="sm_90a", rows={"wgmma.f8.f32": {"fraction_bits": 20, "result_fraction_bits": 20}}).name
        'hopper-f20'
    """
    parent = architecture(base)
    if parent.base:
        raise OperandError(f"what_if departs from a real architecture; {base!r} is itself made by what_if, from {parent.base!r}")
    if not isinstance(name, str) or not name.strip() or real_architecture(name) is not None:
        raise OperandError(f"an architecture made by what_if needs a name of its own, got {name!r}")
    if promote_every is not None and (isinstance(promote_every, bool) or not isinstance(promote_every, int) or promote_every < 1):
        raise OperandError(f"promote_every must be a positive number of elements of K, got {promote_every!r}")
    changed = _changed_rows(name, parent.name, rows)
    known = WHAT_IF_ARCHITECTURES.get(name)
    made = ArchitectureSpec(name=name, family=f"what if: {parent.family}", gpus=(), base=parent.name, promote_every=promote_every or 0)
    if known is not None and (known != made or not _same(WHAT_IF_DATAPATHS[name], changed)):
        raise OperandError(f"an architecture {name!r} with other numbers was made before; results computed with it would change meaning")
    if known is None:
        WHAT_IF_DATAPATHS[name] = changed
        WHAT_IF_ARCHITECTURES[name] = made
    return WHAT_IF_ARCHITECTURES[name]


def _changed_rows(name: str, base: str, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, DatapathSpec]:
    there = {row.part: row for row in DATAPATHS.values() if row.arch == base}
    changed: dict[str, DatapathSpec] = {}
    if not isinstance(rows, Mapping) or not all(isinstance(row, str) and isinstance(change, Mapping) for row, change in rows.items()):
        raise OperandError(f"rows must map names of datapaths to mappings of the fields that differ, got {rows!r}")
    for pattern, change in rows.items():
        found = [row for row in there if fnmatchcase(row, pattern)]
        if not found:
            raise OperandError(f"{base} has no datapath {pattern!r}{nearest(pattern, there)}; it has {', '.join(there)}")
        if pattern not in there:  # a pattern is for the rows that have such numbers, a name says which row is meant
            found = [row for row in found if there[row].arithmetic in _RANGES] or found
        for row in found:
            old = changed.get(there[row].name, there[row])
            changed[there[row].name] = _changed(old, name, change)
    return changed


def _changed(old: DatapathSpec, name: str, change: Mapping[str, Any]) -> DatapathSpec:
    if old.arithmetic not in _RANGES:
        raise OperandError(f"{old.name} is exact or IEEE arithmetic ({old.arithmetic.value}); it has no numbers to change")
    values = dict(change)
    for field, value in values.items():
        if field not in CHANGEABLE:
            raise OperandError(f"a what-if row cannot change {field!r}{nearest(field, CHANGEABLE)}; it can change {', '.join(CHANGEABLE)}")
        if field == "result_rounding":
            values[field] = _rounding(value)
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise OperandError(f"{field} must be an integer, got {value!r}")
        low, high = _RANGES[old.arithmetic].get(field, (value, value))
        if not low <= value <= high:
            raise OperandError(f"{field} of {old.name} must lie between {low} and {high}, got {value}")
        if field == "group" and old.arithmetic is not Arithmetic.GROUPED:
            raise OperandError(f"{old.name} aligns every product by itself: it has no group to change")
    proof = Proof(level=Evidence.INFERRED, covers=f"a what-if row, after {old.name}: no hardware", sources=("what-if",))
    try:
        return replace(old, arch=name, proofs=(proof,), special_proofs=(proof,), note="what-if", **values)
    except ValueError as error:
        raise OperandError(str(error)) from None


def zeros_cut(path: DatapathSpec) -> bool:
    """Whether a step of zeros, as pads the end of K, can change the accumulator: it can where it keeps more bits than an alignment."""
    if not path.is_aligned:
        return False
    low = path.zero_exponent - path.fraction_bits > path.result.min_exponent - path.result_fraction_bits
    return low or path.fraction_bits < path.result_fraction_bits


def _rounding(value: Any) -> ResultRounding:
    allowed = {mode.value: mode for mode in (ResultRounding.TOWARD_ZERO, ResultRounding.NEAREST_EVEN)}
    if isinstance(value, ResultRounding) and value in allowed.values():
        return value
    if value not in allowed:
        raise OperandError(f"result_rounding must be one of {', '.join(allowed)}, got {value!r}")
    return allowed[value]


def _same(old: Mapping[str, DatapathSpec], new: Mapping[str, DatapathSpec]) -> bool:
    def numbers(rows: Mapping[str, DatapathSpec]) -> dict[str, tuple[Any, ...]]:
        return {name: tuple(getattr(row, field.name) for field in fields(row)) for name, row in rows.items()}

    return numbers(old) == numbers(new)


__all__ = ["CHANGEABLE", "what_if", "zeros_cut"]
