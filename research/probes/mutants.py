"""Wrong models: a model with one number, rounding or order changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from mmabits.isa import FORMATS, Arithmetic, FormatSpec, NonFinite, Rounding
from mmabits.isa.errors import OperandError
from mmabits.research.model import Model, Overflow, reread


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A wrong model."""

    number: str
    """What of the model is changed."""
    change: str
    model: Model

    @property
    def name(self) -> str:
        """`F +1`."""
        return f"{self.number} {self.change}"


def _with(model: Model, number: str, change: str, **fields: Any) -> Iterator[Mutant]:
    """The mutant, if it is a datapath at all and another one."""
    try:
        changed = dataclasses.replace(model, **fields)
    except OperandError:
        return
    if changed != model:
        yield Mutant(number=number, change=change, model=changed)


def _widths(model: Model) -> Iterator[Mutant]:
    """F, L, e_zero, group and fraction bits of the result: up and down by one, and by halves."""
    if model.fraction_bits is not None:
        for by in (-1, 1):
            yield from _with(model, "F", f"{by:+d}", fraction_bits=model.fraction_bits + by)
        yield from _with(model, "F", "exact", fraction_bits=None)
    aligned = model.arithmetic.is_aligned
    if aligned:
        for change, step in (("-1", model.step - 1), ("+1", model.step + 1), ("/2", model.step // 2), ("x2", model.step * 2)):
            yield from _with(model, "L", change, step=step)
    else:
        yield from _with(model, "L", "all of K", step=model.k)
        yield from _with(model, "L", "2", step=2)
    if model.zero_exponent is not None:
        for by in (-1, 1):
            yield from _with(model, "e_zero", f"{by:+d}", zero_exponent=model.zero_exponent + by)
        yield from _with(model, "e_zero", "none", zero_exponent=None)
    for by in (-1, 1):
        yield from _with(model, "result bits", f"{by:+d}", result_fraction_bits=model.result_fraction_bits + by)


def _groups(model: Model) -> Iterator[Mutant]:
    if model.arithmetic is Arithmetic.GROUPED:
        yield from _with(model, "group", "/2", group=model.group // 2)
        yield from _with(model, "group", "x2", group=model.group * 2)
        yield from _with(model, "group", "none, products aligned one by one", arithmetic=Arithmetic.FUSED, group=1)
    elif model.scale_type is not None:
        for group in (1, 4, 16):
            yield from _with(model, "group", str(group), arithmetic=Arithmetic.GROUPED, group=group)


def _roundings(model: Model) -> Iterator[Mutant]:
    for rounding in Rounding:
        yield from _with(model, "rounding", rounding.value, rounding=rounding)
    if model.fraction_bits is not None:
        for rounding in (Rounding.DOWN, Rounding.NEAREST_EVEN):
            yield from _with(model, "alignment", rounding.value, alignment=rounding)
    if model.arithmetic is Arithmetic.FUSED:
        yield from _with(model, "products", "normalised", normalised_products=not model.normalised_products)


def orders(k: int) -> dict[str, tuple[int, ...]]:
    """Orders of K that a unit may have."""
    ascending = tuple(range(k))
    return {
        "ascending": ascending,
        "descending": ascending[::-1],
        "low pairs first": tuple(sorted(ascending, key=lambda at: (at % 4 >= 2, at))),
        "even first": (*ascending[::2], *ascending[1::2]),
        "halves interleaved": tuple(at for pair in zip(ascending[: k // 2], ascending[k // 2 :], strict=False) for at in pair)
        if k % 2 == 0
        else ascending,
        "rotated by one": (*ascending[1:], 0),
    }


def _orders(model: Model) -> Iterator[Mutant]:
    for name, order in orders(model.k).items():
        yield from _with(model, "order", name, order=order)


def _accumulator(model: Model) -> Iterator[Mutant]:
    change = "a term of the first step" if model.c_added else "added afterwards"
    yield from _with(model, "c", change, c_added=not model.c_added)
    yield from _with(model, "c", "subnormals flushed", flushes_c=True)
    yield from _with(model, "result", "subnormals flushed", flushes_results=True)
    for overflow in Overflow:
        yield from _with(model, "overflow", overflow.name.lower(), overflow=overflow)
    yield from _with(model, "zero", "signed" if not model.signed_zeros else "always +0", signed_zeros=not model.signed_zeros)


def _operands(model: Model) -> Iterator[Mutant]:
    yield from _with(model, "operands", "subnormals flushed", flushes_operands=True)
    converted = model.operand_format is not None
    if converted or model.arithmetic is Arithmetic.FUSED:
        other = None if converted else FORMATS["f64"]
        yield from _with(model, "operands", "not converted first" if converted else "subnormals normalised first", operand_format=other)
    for name in ("a_type", "b_type"):
        yield from _formats(model, name)


def _formats(model: Model, name: str) -> Iterator[Mutant]:
    """An operand format read otherwise: its top codes, or bits that are not read."""
    form: FormatSpec = getattr(model, name)
    letter = name[0]
    if form.non_finite is NonFinite.NAN_ONLY:
        yield from _with(model, letter, "NaN read as a number", **{name: reread(form, non_finite=NonFinite.NONE)})
    if form.non_finite is NonFinite.IEEE and form.exponent_bits < 8:
        yield from _with(model, letter, "infinity read as a number", **{name: reread(form, non_finite=NonFinite.NAN_ONLY)})
    if form.ignored_low_bits:
        whole = reread(form, fraction_bits=form.fraction_bits + form.ignored_low_bits, ignored_low_bits=0)
        yield from _with(model, letter, "low bits read", **{name: whole})


def _special(model: Model) -> Iterator[Mutant]:
    form = model.d_type
    quiet = form.exponent_mask | 1 << (form.fraction_bits - 1)
    for change, nan in (("-1", model.nan - 1), ("quiet", quiet), ("negative", model.nan | form.sign_mask)):
        yield from _with(model, "NaN", change, nan=nan)
    yield from _with(model, "NaN", "not from 0 x infinity", zero_times_infinity=False)
    yield from _with(model, "NaN", "not from infinities of both signs", opposite_infinities=False)


_SCALE_READINGS: Final = {
    "ue8m0": (
        ("0x00 is zero", {"has_subnormals": True}), ("0xFF is a number", {"non_finite": NonFinite.NONE}),
        ("bias +1", {"bias": 128}),
    ),
    "ue4m3": (
        ("sign bit read", {"sign_bits": 1, "ignored_sign": False}), ("0x7F is a number", {"non_finite": NonFinite.NONE}),
        ("no subnormals", {"has_subnormals": False}), ("bias +1", {"bias": 8}),
    ),
}  # fmt: skip


def _scales(model: Model) -> Iterator[Mutant]:
    if model.scale_type is None:
        return
    for change, fields in _SCALE_READINGS[model.scale_type.name]:
        yield from _with(model, "scale", change, scale_type=reread(model.scale_type, **fields))
    if model.blocks > 1:
        yield from _with(model, "scale", "of the next block", scale_rotation=1)
    if model.arithmetic is Arithmetic.GROUPED and model.scale_type.has_subnormals:
        yield from _with(model, "scale", "zero keeps an exponent", zero_scale_absent=False)


def _integers(model: Model) -> Iterator[Mutant]:
    saturates = model.overflow is Overflow.SATURATES
    yield from _with(model, "overflow", "wraps" if saturates else "saturates",
                     overflow=Overflow.INFINITY if saturates else Overflow.SATURATES)  # fmt: skip
    if saturates:
        yield from _with(model, "overflow", "saturates at every product", step=1)
    for name in ("a_type", "b_type"):
        form: FormatSpec = getattr(model, name)
        other = FORMATS[{"s8": "u8", "u8": "s8", "s4": "u4", "u4": "s4"}[form.name]]
        yield from _with(model, name[0], f"read as {other.name}", **{name: other})


_KINDS: Final = (_widths, _groups, _roundings, _orders, _accumulator, _operands, _special, _scales)


def mutants(model: Model) -> list[Mutant]:
    """Every wrong model one change away: each number up and down by one, each rounding, order and rule changed.

    Changes that a model refuses (a step of 7 in groups of 16) are no models and are left out.
    """
    kinds: Iterable[Any] = (_integers,) if model.is_integer else _KINDS
    return [mutant for kind in kinds for mutant in kind(model)]
