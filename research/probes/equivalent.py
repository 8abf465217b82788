"""Why some wrong models are right: mutants that no operands can tell from the model, each with its argument as arithmetic.

A predicate here says yes only where the argument holds for every operand of the model's formats, never from a search. The tests search
as well: the arguments stand for nothing that the recipes can kill.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mmabits.isa import Arithmetic, FormatSpec, Rounding
from mmabits.research.model import Model, Overflow
from mmabits.research.probes.mutants import Mutant
from mmabits.research.probes.sketch import smallest_exponent


@dataclass(frozen=True, kw_only=True)
class Reason:
    """An argument, and the mutants it covers."""

    text: str
    holds: Callable[[Model, Mutant], bool]


def _partition(model: Model) -> list[frozenset[frozenset[int]]]:
    """What each step takes: a set of groups, each a set of elements."""
    size = model.group if model.arithmetic is Arithmetic.GROUPED else 1
    return [frozenset(frozenset(step[i : i + size]) for i in range(0, len(step), size)) for step in model.steps]


def same_steps(model: Model, mutant: Mutant) -> bool:
    """The steps take the same elements, and the sums within them are exact."""
    if mutant.number not in ("L", "order") or model.arithmetic is Arithmetic.INTEGER:
        return False
    return _partition(model) == _partition(mutant.model)


def _unit_exponents(form: FormatSpec, model: Model) -> tuple[int, int]:
    """Least and largest exponent of a nonzero number as the alignment sees it."""
    lowest = min((model.operand_format or form).min_exponent, form.min_exponent)
    return max(lowest, smallest_exponent(form)), form.max_exponent


def _term_exponents(model: Model) -> tuple[int, int]:
    """Of all terms but c, zero ones left out."""
    low = high = 0
    if model.arithmetic is Arithmetic.FUSED:
        for form in (model.a_type, model.b_type):
            least, most = _unit_exponents(form, model)
            low, high = low + least, high + most
    if model.scale_type is not None:
        low, high = low + 2 * model.scale_type.min_exponent, high + 2 * model.scale_type.max_exponent
    return low, high


def _last_place(model: Model) -> int:
    """The exponent below which no product, scaled or not, has a bit."""
    forms = [model.a_type, model.b_type] + ([model.scale_type] * 2 if model.scale_type is not None else [])
    return sum(map(smallest_exponent, forms))


def above_every_zero(model: Model, mutant: Mutant) -> bool:
    """e_zero lies below the exponent of every nonzero product and of every nonzero c."""
    if mutant.number != "e_zero" or model.zero_exponent is None:
        return False
    floor = max(model.zero_exponent, mutant.model.zero_exponent if mutant.model.zero_exponent is not None else model.zero_exponent)
    return min(_term_exponents(model)[0], model.d_type.min_exponent) >= floor


def nothing_below_the_floor(model: Model, mutant: Mutant) -> bool:
    """Products and c are multiples of 2^(e_zero - F), so that a zero term cuts nothing."""
    if mutant.number != "e_zero" or model.zero_exponent is None or model.fraction_bits is None:
        return False
    floor = max(model.zero_exponent, mutant.model.zero_exponent if mutant.model.zero_exponent is not None else model.zero_exponent)
    return min(_last_place(model), smallest_exponent(model.d_type)) >= floor - model.fraction_bits


def no_infinity(model: Model, mutant: Mutant) -> bool:
    """Neither A nor B has an infinity: none meets a zero, and none another but c's."""
    return mutant.number == "NaN" and mutant.change.startswith("not from") and not (model.a_type.has_infinity or model.b_type.has_infinity)


def nearest_goes_to_infinity(model: Model, mutant: Mutant) -> bool:
    """Rounded to nearest, IEEE 754 gives infinity at every overflow."""
    return (
        mutant.number == "overflow" and model.rounding is Rounding.NEAREST_EVEN
        and {model.overflow, mutant.model.overflow} == {Overflow.INFINITY, Overflow.IEEE}
    )  # fmt: skip


def toward_zero_stays_finite(model: Model, mutant: Mutant) -> bool:
    """Rounded toward zero, IEEE 754 gives the largest finite number at every overflow."""
    return (
        mutant.number == "overflow" and model.rounding is Rounding.TOWARD_ZERO
        and {model.overflow, mutant.model.overflow} == {Overflow.SATURATES, Overflow.IEEE}
    )  # fmt: skip


def products_not_negative(model: Model, mutant: Mutant) -> bool:
    """Unsigned products only add: a sum that is clamped on the way is clamped at the end, and to the same number."""
    return mutant.change == "saturates at every product" and not (model.a_type.sign_bits or model.b_type.sign_bits)


def never_overflows(model: Model, mutant: Mutant) -> bool:
    """All products together are less than the last place of the largest number; the sum is cut toward zero, or c is added outside."""
    if mutant.number != "overflow" or not model.arithmetic.is_aligned:
        return False
    scales = 1 if model.scale_type is None else int(model.scale_type.max_finite) ** 2
    products = model.k * int(model.a_type.max_finite) * int(model.b_type.max_finite) * scales
    inside = model.rounding is Rounding.TOWARD_ZERO or model.c_added
    return inside and model.overflow is Overflow.INFINITY and products < 1 << (model.d_type.max_exponent - model.result_fraction_bits)


def starts_at_plus_zero(model: Model, mutant: Mutant) -> bool:
    """The products are added to +0 and do not underflow, so their sum is never -0; c is added as IEEE 754 says either way."""
    return mutant.number == "zero" and model.c_added and _last_place(model) >= smallest_exponent(model.d_type)


def _subnormal_tops(model: Model) -> int:
    """The largest exponent that a product with a subnormal factor is aligned at."""
    a, b = model.a_type, model.b_type
    return max(a.min_exponent + b.max_exponent, b.min_exponent + a.max_exponent)


def same_subnormals(model: Model, mutant: Mutant) -> bool:
    """The format converted to has the operands' exponents: what is subnormal stays so."""
    if mutant.number != "operands" or model.operand_format is None or mutant.model.operand_format is not None:
        return False
    return all(model.operand_format.min_exponent >= form.min_exponent for form in (model.a_type, model.b_type))


def subnormals_cut_nothing(model: Model, mutant: Mutant) -> bool:
    """A product with a subnormal factor lies so low that, however it is aligned, no product is cut, and c is added outside."""
    if mutant.number != "operands" or mutant.change == "subnormals flushed" or model.fraction_bits is None or not model.c_added:
        return False
    return model.scale_type is None and _last_place(model) >= _subnormal_tops(model) - model.fraction_bits


REASONS: Final = (
    Reason(text="every step takes the same elements, and sums within a step are exact", holds=same_steps),
    Reason(text="every nonzero product and accumulator has a larger exponent than a zero", holds=above_every_zero),
    Reason(
        text="every product and accumulator is a multiple of 2^(e_zero - F): beside zeros nothing is cut", holds=nothing_below_the_floor
    ),
    Reason(text="A and B have no infinities", holds=no_infinity),
    Reason(text="rounding to nearest gives infinity at every overflow under IEEE 754 too", holds=nearest_goes_to_infinity),
    Reason(
        text="rounding toward zero gives the largest finite number at every overflow under IEEE 754 too", holds=toward_zero_stays_finite
    ),
    Reason(text="products of unsigned integers only add", holds=products_not_negative),
    Reason(text="all products together are less than the last place of the largest number: nothing overflows", holds=never_overflows),
    Reason(text="the products are added to +0 and cannot underflow, so their sum is never -0", holds=starts_at_plus_zero),
    Reason(text="the format converted to has the operands' smallest exponent", holds=same_subnormals),
    Reason(text="products with a subnormal factor are aligned too low to cut anything", holds=subnormals_cut_nothing),
)


def reason_for(model: Model, mutant: Mutant) -> str | None:
    """Why no operands tell the mutant from the model, None where some may."""
    return next((reason.text for reason in REASONS if reason.holds(model, mutant)), None)
