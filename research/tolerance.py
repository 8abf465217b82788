"""How far a result may lie from the exact one: bounds that follow from the datapath and the operands.

The derivation is in docs/tolerance.md; the names of this module are those of that page. Everything is float64, and every bound is
enlarged by more than its own rounding, so that it stays a bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.emulator.api import Array, prepare
from mmabits.emulator.codecs import decode
from mmabits.emulator.engine.memory import require
from mmabits.emulator.interop import as_doubles
from mmabits.isa import Arithmetic, FormatSpec, Instruction, Lowering, OperandError, Rounding, format_spec
from mmabits.isa.whatif import zeros_cut

Doubles = npt.NDArray[np.float64]
Exponents = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]

_NONE: Final = -(1 << 20)
"""Exponent of a term that is zero: below all others."""
_SLACK: Final = 1 + 2.0**-40
"""More than all roundings of a bound's own computation."""
_DOUBLE: Final = 2.0**-53
_ARRAYS: Final = 28
"""As many arrays of M x N doubles as the account of a step holds at once."""
_TINY: Final = 2.0**-1074
_NOTHING: Final = -1.0
"""The bound on finite results where none is allowed: no distance is that small."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tolerance:
    """What a result may be."""

    bound: Doubles
    """(..., M, N): the distance to `reference` that the datapath's arithmetic cannot exceed, or not with the given probability;
    infinite where a result may overflow, and where the exact result is an infinity or NaN. See `violations` for what is allowed there."""
    reference: Doubles
    """(..., M, N): the exact result, as near as float64 holds it (what it misses is inside `bound`): NaN where an operand is, for
    0 x infinity and for infinities of both signs; otherwise an infinity where an operand is one."""
    instruction: Instruction
    arch: str
    probability: float | None
    """Of exceeding the bound, for each element; None: none at all."""
    finite: Doubles
    """(..., M, N): as `bound`, of a result that is finite although it might have overflowed; -1 where a finite result is wrong."""
    may_be_nan: Flags
    """(..., M, N): where the exact result is NaN, or infinities of both signs may meet by overflow."""
    may_be_above: Flags
    """(..., M, N): where the exact result is +infinity, or the largest possible sum overflows."""
    may_be_below: Flags
    """(..., M, N): likewise of -infinity."""

    def violations(self, d: Any) -> Flags:
        """Where a result lies outside, (..., M, N).

        Where the exact result is NaN or an infinity, it alone is inside; but for +infinity also NaN, if another part of the sum can
        overflow to -infinity, and the reverse. Where the exact result is finite, a finite result is inside within the bound, an
        infinity only if the sum can overflow that way, and NaN only if it can overflow both ways.

        Args:
            d: (..., M, N) result of a kernel, any real dtype; NumPy, torch or JAX.

        Raises:
            OperandTypeError: not real numbers.
            OperandError: another shape.
        """
        given = as_doubles(d, "d")
        if given.shape != self.bound.shape:
            raise OperandError(f"the result has shape {given.shape}, the product {self.bound.shape}")
        with np.errstate(invalid="ignore"):
            is_near = np.isfinite(given) & ((np.abs(given - self.reference) <= self.finite) | np.isinf(self.finite))
        inside = is_near | (self.may_be_nan & np.isnan(given))
        inside |= (self.may_be_above & (given == np.inf)) | (self.may_be_below & (given == -np.inf))
        return np.asarray(~inside)


def tolerance(
    a: Any,
    b: Any,
    c: Any = None,
    *,
    instruction: str | Instruction,
    arch: str,
    scale_a: Any = None,
    scale_b: Any = None,
    promote_every: int | None = None,
    probability: float | None = None,
) -> Tolerance:
    """How far each element of a product may lie from the exact result, with the arithmetic of an architecture.

    Args:
        a: (..., M, K), as for `mmabits.gemm`.
        b: (..., K, N).
        c: (..., M, N) accumulator of the first instruction; zeros if None.
        instruction: as for `mmabits.gemm`.
        arch: as for `mmabits.gemm`.
        scale_a: (..., M, ceil(K / block)) block scales.
        scale_b: (..., ceil(K / block), N).
        promote_every: as for `mmabits.gemm`.
        probability: None for the worst case. Between 0 and 1: the smaller bound that an element exceeds with at most that
            probability if what each truncation cuts off is independent of the others and uniform (docs/tolerance.md).

    Returns:
        Bound and exact result. K is walked upward in whole instructions, as `gemm` does; another order of the steps, such as
        split-K, has a bound of its own.

    Raises:
        MmabitsError: as `mmabits.gemm`; OperandError for a probability outside (0, 1); NotEnoughMemory.
    """
    _check_probability(probability)
    call = prepare(a, b, c, instruction=instruction, arch=arch, scale_a=scale_a, scale_b=scale_b, promote_every=promote_every)
    row = call.instruction
    if row.scale_input_d:
        raise OperandError(f"{row} scales its accumulator at every instruction: there is no one exact result to be near to")
    shape = (*call.batch, call.m, call.n)
    require(
        (3 * 8 + 3) * math.prod(shape) + 8 * (_ARRAYS * call.m * call.n + 3 * call.k * (call.m + call.n)),
        f"a tolerance for {call.m} x {call.n} x {call.k}",
    )
    doubles: dict[str, Any] = {name: np.empty(shape) for name in ("bound", "reference", "finite")}
    flags: dict[str, Any] = {name: np.empty(shape, np.bool_) for name in ("may_be_nan", "may_be_above", "may_be_below")}
    for index in np.ndindex(*call.batch):
        with np.errstate(all="ignore"):
            found = _bounds(_ProductValues.of(call, index), call.lowering, call.promote, probability)
        for name, array in (doubles | flags).items():
            array[index] = found[name]
    return Tolerance(**doubles, **flags, instruction=row, arch=call.lowering.arch, probability=probability)


def _bounds(part: _ProductValues, lowering: Lowering, promote: int, probability: float | None) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a `Tolerance` for one product."""
    is_nan, above, below = part.specials()
    special = is_nan | above | below
    account = _chain(part.without_specials(), lowering, promote, probability)
    exact = np.where(special, np.where(is_nan, np.nan, np.where(above, np.inf, -np.inf)), account.prefix)
    # Finite operands whose exact sum float64 cannot hold: f64 instructions alone, and nothing is known of the result.
    unknown = ~special & ~np.isfinite(exact)
    finite = np.where(special, _NOTHING, np.where(unknown, np.inf, account.finite(probability) * _SLACK))
    mixed = np.where(special, (above & account.below) | (below & account.above), account.both)
    return {
        "bound": np.where(special | unknown, np.inf, account.bound(probability) * _SLACK), "reference": exact, "finite": finite,
        "may_be_nan": is_nan | mixed | unknown, "may_be_above": above | unknown | (~special & account.above),
        "may_be_below": below | unknown | (~special & account.below),
    }  # fmt: skip


def tolerance_of_shape(
    k: int,
    *,
    amax_a: float,
    amax_b: float,
    amax_c: float = 0.0,
    instruction: str | Instruction,
    arch: str,
    promote_every: int | None = None,
    a_type: str = "e4m3",
    b_type: str = "e4m3",
) -> float:
    """The looser bound that needs no operands: for every product of `k` elements whose factors are no larger than said.

    Args:
        k: elements of K.
        amax_a: largest magnitude in A, block scales applied.
        amax_b: likewise in B.
        amax_c: likewise in C.
        instruction: as for `mmabits.gemm`; without block scales, or with all of them 1.
        arch: as for `mmabits.gemm`.
        promote_every: as for `mmabits.gemm`.
        a_type: type of A's elements, for a short spelling.
        b_type: type of B's.

    Returns:
        The bound; infinite where the largest results overflow.

    Raises:
        MmabitsError: no such instruction there; OperandError for sizes that are none.
    """
    from mmabits.emulator.api import resolved
    from mmabits.isa import lower

    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise OperandError(f"k must be a positive number of elements, got {k!r}")
    for name, value in (("amax_a", amax_a), ("amax_b", amax_b), ("amax_c", amax_c)):
        if not _is_magnitude(value):
            raise OperandError(f"{name} must be a finite magnitude, got {value!r}")
    row = instruction if isinstance(instruction, Instruction) else resolved(instruction, arch, a_type, b_type, None, None)
    lowering = lower(row, arch)
    promote = _promotion_of_shape(lowering, promote_every)
    part = _ProductValues(
        a=np.full((1, k), float(amax_a)), b=np.full((k, 1), float(amax_b)), c=np.full((1, 1), float(amax_c)),
        exponent_a=np.full((1, k), _exponent_of(amax_a, row.a_type)), exponent_b=np.full((k, 1), _exponent_of(amax_b, row.b_type)),
        scales=None, lsb=_NONE, exact=False, row=row,
    )  # fmt: skip
    account = _chain(part, lowering, promote, None)
    return float(account.bound(None)[0, 0]) * _SLACK


def _is_magnitude(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return False
    try:
        return 0 <= float(value) < math.inf
    except OverflowError:
        return False


def _promotion_of_shape(lowering: Lowering, promote_every: int | None) -> int:
    """Elements of K between promotions, the caller's or else the architecture's own; 0: none. As for `gemm`."""
    path, k = lowering.datapath, lowering.instruction.k
    if promote_every is None:
        own = lowering.own_promotion
    elif isinstance(promote_every, bool) or not isinstance(promote_every, int) or promote_every < 1:
        raise OperandError(f"promote_every must be a positive number of elements of K, got {promote_every!r}")
    else:
        own = promote_every
    if own and not path.is_aligned:
        raise OperandError(f"promote_every is for f32 and f16 accumulators, {lowering.instruction} has {path.result.name}")
    if own % k:
        raise OperandError(f"promote_every must be a multiple of the instruction's K = {k}, got {own}")
    return own


def _check_probability(probability: float | None) -> None:
    if probability is not None and not (isinstance(probability, (int, float)) and 0 < probability < 1):
        raise OperandError(f"probability must lie between 0 and 1, got {probability!r}")


def _exponent_of(magnitude: float, form: FormatSpec) -> int:
    return max(math.frexp(magnitude)[1] - 1, form.min_exponent) if magnitude else _NONE


@dataclass(frozen=True, kw_only=True, eq=False)
class _ProductValues:
    """One product: values, and exponents as the unit sees them."""

    a: Doubles
    """(M, K), block scales applied: exact in float64."""
    b: Doubles
    c: Doubles
    exponent_a: Exponents
    """(M, K): of elements with block scales; _NONE for zeros."""
    exponent_b: Exponents
    scales: tuple[Exponents, Exponents] | None
    """(M, groups) and (groups, N): exponents of the scales, where groups are scaled as wholes."""
    lsb: int
    """exponent_a + exponent_b less this is the last place of a product; _NONE: unknown."""
    exact: bool
    """Whether these are the operands, and not bounds on their magnitudes."""
    row: Instruction

    @staticmethod
    def of(call: Any, index: tuple[int, ...]) -> _ProductValues:
        row, lowering = call.instruction, call.lowering
        unpacked = lowering.unpacked_to

        def matrix(array: Array) -> Array:
            wide = np.broadcast_to(array, (*call.batch, *array.shape[-2:]))
            return np.ascontiguousarray(wide[index])

        values = decode(matrix(call.a), row.a_type), decode(matrix(call.b), row.b_type)
        exponents = tuple(_exponents(value, form, unpacked) for value, form in zip(values, (row.a_type, row.b_type), strict=True))
        left, right = -values[0] if row.negate_a else values[0], -values[1] if row.negate_b else values[1]
        scales = None
        if row.block is not None:
            across = decode(matrix(call.scale_a), row.scale_type), decode(matrix(call.scale_b), row.scale_type)
            wide = np.repeat(across[0], row.block, 1)[:, : call.k], np.repeat(across[1], row.block, 0)[: call.k]
            powers = tuple(_exponents(scale, row.scale_type, None) for scale in across)
            left, right = left * wide[0], right * wide[1]
            if lowering.datapath.arithmetic is Arithmetic.GROUPED:
                scales = (powers[0], powers[1])
            else:
                raised = np.repeat(powers[0], row.block, 1)[:, : call.k], np.repeat(powers[1], row.block, 0)[: call.k]
                exponents = tuple(
                    np.where(element == _NONE, _NONE, element + scale) for element, scale in zip(exponents, raised, strict=True)
                )
        c = np.zeros((call.m, call.n)) if call.c is None or not row.scale_d else matrix(call.c).astype(np.float64)
        bits = row.a_type.fraction_bits + row.b_type.fraction_bits
        if unpacked is not None:
            bits = _NONE  # normalised anew: how low a product reaches depends on its factors
        return _ProductValues(
            a=left, b=right, c=c, exponent_a=exponents[0], exponent_b=exponents[1], scales=scales, lsb=bits, exact=True, row=row,
        )  # fmt: skip

    def specials(self) -> tuple[Flags, Flags, Flags]:
        """Where, (M, N), the exact result is NaN, +infinity and -infinity (section 5 of docs/numerics.md)."""
        is_nan, above, below = np.isnan(self.c), self.c == np.inf, self.c == -np.inf
        if np.isfinite(self.a).all() and np.isfinite(self.b).all():
            return is_nan, above, below
        a, b = _Parts.of(self.a), _Parts.of(self.b)
        is_nan |= a.nan.any(axis=1, keepdims=True) | b.nan.any(axis=0, keepdims=True)
        is_nan |= _meet(a.infinite, b.zero) | _meet(a.zero, b.infinite)
        for sign in (1, -1):
            # One factor is infinite, the other anything with a sign; zeros and NaN, whose sign is 0 here, are done with.
            above |= _meet(a.infinite & (a.sign == sign), b.sign == sign) | _meet(a.sign == sign, b.infinite & (b.sign == sign))
            below |= _meet(a.infinite & (a.sign == sign), b.sign == -sign) | _meet(a.sign == sign, b.infinite & (b.sign == -sign))
        is_nan |= above & below
        return is_nan, above & ~is_nan, below & ~is_nan

    def without_specials(self) -> _ProductValues:
        """The same with zeros for infinities and NaN: the part of the sum that is finite."""
        a, b, c = (np.where(np.isfinite(array), array, 0.0) for array in (self.a, self.b, self.c))
        return replace(self, a=a, b=b, c=c)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Parts:
    """An operand by kind."""

    nan: Flags
    infinite: Flags
    zero: Flags
    sign: Doubles
    """0 of zeros and NaN."""

    @staticmethod
    def of(values: Doubles) -> _Parts:
        return _Parts(nan=np.isnan(values), infinite=np.isinf(values), zero=values == 0, sign=np.nan_to_num(np.sign(values), nan=0.0))


def _meet(a: Flags, b: Flags) -> Flags:
    """Where, (M, N), some k has both."""
    return np.asarray(a.astype(np.float32) @ b.astype(np.float32) > 0)


def _exponents(values: Doubles, form: FormatSpec, unpacked: FormatSpec | None) -> Exponents:
    """Unnormalised exponents: that of the smallest normal for subnormals; _NONE for zero."""
    lowest = (unpacked or form).min_exponent
    found = np.maximum(np.frexp(values)[1] - 1, lowest).astype(np.int32)
    return np.where((values == 0) | ~np.isfinite(values), _NONE, found).astype(np.int32)


class _RunningSum:
    """The running exact sum and what may have been lost of it."""

    def __init__(self, start: Doubles) -> None:
        self.prefix = start.copy()
        """Exact sum so far, but for float64."""
        self.worst = np.zeros_like(start)
        """Bound on the distance between accumulator and exact sum."""
        self.double = np.zeros_like(start)
        """Bound on what float64 misses of the exact sum."""
        self.mean = np.zeros_like(start)
        """Expected loss under the probabilistic model."""
        self.squares = np.zeros_like(start)
        """Sum of the squared ranges of the losses."""
        self.above = np.zeros(start.shape, np.bool_)
        """Whether the accumulator may have overflowed to +infinity. `worst` is of an accumulator that has not overflowed."""
        self.below = np.zeros(start.shape, np.bool_)
        """Likewise to -infinity."""
        self.both = np.zeros(start.shape, np.bool_)
        """Whether infinities of both signs may have been added."""
        self.cut = False
        """Whether the accumulator has been through a step, and so has no more fraction bits than the unit's results."""

    def lose(self, low: Doubles, high: Doubles, squares: Doubles) -> None:
        """A loss somewhere between `low` and `high`, of parts whose squared ranges sum to `squares`."""
        self.worst += np.maximum(np.abs(low), np.abs(high))
        self.mean += (low + high) / 2
        self.squares += squares

    def magnitude(self) -> Doubles:
        """The largest the accumulator can be."""
        return np.asarray((np.abs(self.prefix) + self.worst + self.double) * _SLACK)

    def least(self) -> Doubles:
        """The smallest magnitude the accumulator can have; 0 where its sign is open."""
        return np.asarray(np.maximum(np.abs(self.prefix) - (self.worst + self.double) * _SLACK, 0))

    def bound(self, probability: float | None) -> Doubles:
        """What the distance does not exceed: infinite where the accumulator may have overflowed."""
        return np.where(self.above | self.below, np.inf, self.finite(probability))

    def finite(self, probability: float | None) -> Doubles:
        """What the distance does not exceed if the accumulator has not overflowed."""
        if probability is None:
            return self.worst + self.double
        likely = np.abs(self.mean) + np.sqrt(self.squares * (math.log(2 / probability) / 2))
        return np.where(np.isinf(self.worst), np.inf, np.minimum(self.worst, likely)) + self.double


def _chain(part: _ProductValues, lowering: Lowering, promote: int, probability: float | None) -> _RunningSum:
    row, path = lowering.instruction, lowering.datapath
    k = part.a.shape[1]
    outside = promote or (row.k if lowering.separate_add else 0)
    total = _RunningSum(part.c)
    if not outside:
        for steps in _steps(lowering, 0, k):
            _step(total, part, lowering, steps)
        return total
    form = path.result if lowering.separate_add and not promote else format_spec("f32")
    for start in range(0, k, outside):
        chain = _RunningSum(np.zeros_like(part.c))
        for first in range(start, min(start + outside, k), row.k):
            if lowering.separate_add and promote:
                _nested(chain, part, lowering, first, min(first + row.k, start + outside, k))
                continue
            for steps in _steps(lowering, first, min(first + row.k, k)):
                _step(chain, part, lowering, steps)
        _add(total, chain, form)
    return total


def _nested(chain: _RunningSum, part: _ProductValues, lowering: Lowering, first: int, stop: int) -> None:
    """One instruction that adds its accumulator by itself, inside a promoted chain."""
    inner = _RunningSum(np.zeros_like(part.c))
    for steps in _steps(lowering, first, stop):
        _step(inner, part, lowering, steps)
    _add(chain, inner, lowering.datapath.result)


def _steps(lowering: Lowering, first: int, stop: int) -> Iterator[npt.NDArray[np.int64]]:
    """The elements of K of each step."""
    row = lowering.instruction
    order = np.array(lowering.k_order or range(row.k))
    size = 1 if lowering.datapath.arithmetic is Arithmetic.FMA_CHAIN else lowering.step
    padded = zeros_cut(lowering.datapath)
    for start in range(first, stop, row.k):
        for position in range(0, row.k, size):
            at = start + order[position : position + size]
            at = at[at < stop]
            if at.size or padded:
                yield at


def _add(total: _RunningSum, chain: _RunningSum, form: FormatSpec) -> None:
    """An IEEE addition to nearest even."""
    total.prefix += chain.prefix
    total.worst += chain.worst
    total.double += chain.double + _DOUBLE * np.abs(total.prefix)
    total.mean += chain.mean
    total.squares += chain.squares
    total.both |= chain.both | (total.above & chain.below) | (total.below & chain.above)
    total.above |= chain.above
    total.below |= chain.below
    half = _last_place(total.magnitude(), form, form.fraction_bits) / 2
    total.lose(-half, half, (2 * half) ** 2)
    _overflow(total, form)


def _last_place(magnitude: Doubles, form: FormatSpec, fraction_bits: int) -> Doubles:
    """The unit in the last place of results up to a magnitude."""
    exponent = np.maximum(np.frexp(magnitude)[1] - 1, form.min_exponent)
    return np.asarray(np.ldexp(1.0, exponent - fraction_bits))


def _overflow(account: _RunningSum, form: FormatSpec) -> None:
    reach = (account.worst + account.double) * _SLACK + np.abs(account.prefix) * (_SLACK - 1)
    account.above |= account.prefix + reach > form.max_finite
    account.below |= reach - account.prefix > form.max_finite


def _step(account: _RunningSum, part: _ProductValues, lowering: Lowering, at: npt.NDArray[np.int64]) -> None:
    """One step: what alignment and rounding may take."""
    path, row = lowering.datapath, lowering.instruction
    a, b = part.a[:, at], part.b[at]
    if path.arithmetic is Arithmetic.INTEGER:
        account.prefix += a @ b
        account.worst[np.abs(account.prefix) >= 2.0**31] = np.inf
        return
    in_double = (np.abs(a) @ np.abs(b)) * (at.size * _DOUBLE) + np.abs(account.prefix) * _DOUBLE
    if path.arithmetic is Arithmetic.FMA_CHAIN:
        account.prefix += a @ b
        account.double += in_double * 2 + (np.abs(a) @ (b != 0) > 0) * _TINY  # a product below the smallest double is rounded to one
        _round(account, path.result, path.result.fraction_bits, row.rounding_mode, None)
        return
    alignment = (_align_groups if path.arithmetic is Arithmetic.GROUPED else _align_products)(account, part, at, lowering)
    unit = np.ldexp(1.0, alignment.largest - path.fraction_bits)
    account.prefix += a @ b
    account.double += in_double * 2
    low, high = alignment.negative * unit, alignment.positive * unit
    account.lose(-low, high, (alignment.positive + alignment.negative) * unit**2)
    finest = None if alignment.smallest is None else np.ldexp(1.0, alignment.smallest - path.fraction_bits)
    _round(account, path.result, path.result_fraction_bits, path.result_rounding.mode or row.rounding_mode, finest)
    account.cut = True


def _round(account: _RunningSum, form: FormatSpec, fraction_bits: int, rounding: Rounding, finest: Doubles | None) -> None:
    """The rounding of a sum that is a multiple of `finest`, if that is known."""
    place = _last_place(account.magnitude(), form, fraction_bits)
    lost = place if finest is None else np.maximum(place - finest, 0.0)
    match rounding:
        case Rounding.NEAREST_EVEN:
            half = np.where(lost > 0, place / 2, 0.0)
            account.lose(-half, half, (2 * half) ** 2)
        case Rounding.TOWARD_ZERO:
            sure = account.least() > 0
            low = np.where(sure & (account.prefix > 0), 0.0, lost)
            high = np.where(sure & (account.prefix < 0), 0.0, lost)
            account.lose(-low, high, (low + high) ** 2)
        case Rounding.DOWN | Rounding.UP:
            account.lose(-lost, lost, (2 * lost) ** 2)
    _overflow(account, form)


@dataclass(frozen=True, kw_only=True, eq=False)
class _AlignmentBounds:
    """What is known of one alignment before it happens."""

    largest: Exponents
    """The largest exponent is no larger than this."""
    smallest: Exponents | None
    """And no smaller; None: unknown."""
    positive: Doubles
    """Positive terms that may reach below the last place."""
    negative: Doubles


def _align_products(account: _RunningSum, part: _ProductValues, at: npt.NDArray[np.int64], lowering: Lowering) -> _AlignmentBounds:
    path = lowering.datapath
    left, right = part.exponent_a[:, at], part.exponent_b[at]
    products = np.full(account.prefix.shape, path.zero_exponent, np.int32)
    for j in range(at.size):
        np.maximum(products, left[:, j, None] + right[None, j], out=products)
    largest = np.maximum(products, _exponent_above(account, path.result.min_exponent))
    known = part.lsb != _NONE
    cut = largest - path.fraction_bits + part.lsb
    positive, negative = np.zeros(largest.shape), np.zeros(largest.shape)
    for j in range(at.size):
        exponent = left[:, j, None] + right[None, j]
        low = exponent > _NONE // 2
        if known:
            low &= exponent < cut
        minus = np.signbit(part.a[:, at[j], None]) ^ np.signbit(part.b[None, at[j]])
        positive += low & ~minus
        negative += low & minus
    return _with_accumulator(account, part, lowering, products, largest, positive, negative)


def _align_groups(account: _RunningSum, part: _ProductValues, at: npt.NDArray[np.int64], lowering: Lowering) -> _AlignmentBounds:
    """As for products; a group's exponent is that of its scales, and its sum may have either sign."""
    path, row = lowering.datapath, lowering.instruction
    products = np.full(account.prefix.shape, path.zero_exponent, np.int32)
    sums = []
    for start in range(0, at.size, path.group):
        k = at[start : start + path.group]
        exponent = np.zeros(account.prefix.shape, np.int32)
        if part.scales is not None and row.block is not None:
            exponent = part.scales[0][:, k[0] // row.block, None] + part.scales[1][None, k[0] // row.block]
        there = np.abs(part.a[:, k]) @ np.abs(part.b[k]) > 0
        exponent = np.where(there, exponent, _NONE).astype(np.int32)
        np.maximum(products, exponent, out=products)
        sums.append((part.a[:, k] @ part.b[k], exponent))
    largest = np.maximum(products, _exponent_above(account, path.result.min_exponent))
    scale_bits = 2 * row.scale_type.fraction_bits if row.scale_type else 0
    lowest = sum(form.min_exponent - form.fraction_bits for form in (row.a_type, row.b_type)) - scale_bits
    positive, negative = np.zeros(largest.shape), np.zeros(largest.shape)
    for group, exponent in sums:
        low = (exponent > _NONE // 2) & (exponent + lowest < largest - path.fraction_bits)
        positive += low & (group > 0)
        negative += low & (group < 0)
    return _with_accumulator(account, part, lowering, products, largest, positive, negative)


def _exponent_above(account: _RunningSum, lowest: int) -> Exponents:
    """The accumulator's exponent, of subnormals that of the smallest normal, is no larger than this; _NONE where it is zero."""
    magnitude = account.magnitude()
    return np.where(magnitude == 0, _NONE, np.maximum(np.frexp(magnitude)[1] - 1, lowest)).astype(np.int32)


def _with_accumulator(
    account: _RunningSum, part: _ProductValues, lowering: Lowering, products: Exponents, largest: Exponents,
    positive: Doubles, negative: Doubles,
) -> _AlignmentBounds:  # fmt: skip
    """The accumulator among the terms: its exponent and sign are known as far as the account goes."""
    path, least = lowering.datapath, account.least()
    if part.lsb == _NONE and not part.exact:
        return _AlignmentBounds(largest=largest, smallest=None, positive=positive + 1, negative=negative + 1)
    above_zero = least > 0
    below = np.where(above_zero, np.maximum(np.frexp(least)[1] - 1, path.result.min_exponent), _NONE).astype(np.int32)
    bits = path.result_fraction_bits if account.cut else path.result.fraction_bits
    may_lose = (account.magnitude() > 0) & ~(above_zero & (below - bits >= largest - path.fraction_bits))
    positive = positive + (may_lose & ~(above_zero & (account.prefix < 0)))
    negative = negative + (may_lose & ~(above_zero & (account.prefix > 0)))
    return _AlignmentBounds(largest=largest, smallest=np.maximum(products, below), positive=positive, negative=negative)
