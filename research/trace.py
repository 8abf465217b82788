"""One element of a product, step by step and exactly: what each unit sees, keeps and cuts off.

Everything is Python integers and fractions, read from the rows of mmabits.isa and nothing else, one element at a time. The trace ends
in a result that must equal the engine's; `trace` checks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from mmabits.emulator.api import dot_rows
from mmabits.emulator.codecs import as_codes
from mmabits.isa import (
    Arithmetic,
    DatapathSpec,
    FormatSpec,
    Instruction,
    Lowering,
    MmabitsError,
    OperandError,
    ResultRounding,
    architecture,
    format_spec,
    lower,
)
from mmabits.isa.whatif import zeros_cut


class TraceMismatch(MmabitsError, AssertionError):
    """The exact trace and the engine gave different bits: a defect of mmabits, to be reported."""


@dataclass(frozen=True, kw_only=True)
class DecodedNumber:
    """A decoded code: sign x significand x 2^lsb."""

    form: FormatSpec
    code: int
    kind: str
    """`"finite"`, `"infinity"` or `"nan"`."""
    sign: int
    """1 or -1."""
    significand: int
    exponent: int
    """As the unit sees it: the field less the bias; that of the smallest normal for subnormals and zero."""
    lsb: int

    @property
    def value(self) -> Fraction | None:
        """Exact value; None for infinities and NaN."""
        return self.sign * self.significand * Fraction(2) ** self.lsb if self.kind == "finite" else None

    def __str__(self) -> str:
        if self.value is not None:
            return ("-0" if self.sign < 0 else "0") if self.significand == 0 else f"{float(self.value):.9g}"
        return "nan" if self.kind == "nan" else ("-inf" if self.sign < 0 else "inf")


@dataclass(frozen=True, kw_only=True)
class Term:
    """One summand of a step: a product, a scaled group of products, or the accumulator."""

    kind: str
    """`"product"`, `"group"` or `"accumulator"`."""
    k: tuple[int, ...]
    """Where its elements stand along K; empty for the accumulator."""
    factors: tuple[tuple[DecodedNumber, DecodedNumber], ...]
    """The operands (a, b) multiplied; empty for the accumulator."""
    scales: tuple[DecodedNumber, ...]
    """The block scales of A and B; empty where there are none."""
    sign: int
    """1 or -1, also of a zero."""
    significand: int
    """Signed; value = significand x 2^lsb."""
    lsb: int
    exponent: int
    """What takes part in the search for the largest exponent."""
    kept: int = 0
    """What is left after alignment, in units of the step's last place."""
    last_place: int = 0
    """Exponent of that last place."""

    @property
    def value(self) -> Fraction:
        """Exact value."""
        return self.significand * Fraction(2) ** self.lsb

    @property
    def lost(self) -> Fraction:
        """What the alignment cuts off: value less what is kept."""
        return self.value - self.kept * Fraction(2) ** self.last_place


@dataclass(frozen=True, kw_only=True)
class Step:
    """One fused step."""

    number: int
    """0 for the first of the chain."""
    instruction: int
    """Which instruction of the chain it belongs to."""
    k: tuple[int, ...]
    terms: tuple[Term, ...]
    """Products or groups, the accumulator last."""
    largest: int
    """The largest exponent."""
    last_place: int
    """Exponent of the last place kept: `largest` less F."""
    total: int
    """The sum, exact, in units of the last place."""
    result: DecodedNumber
    """The accumulator handed on."""
    special: str = ""
    """Why the result is an infinity or NaN without any sum; empty otherwise."""

    @property
    def exact(self) -> Fraction:
        """Sum of the terms before anything is cut."""
        return sum((term.value for term in self.terms), Fraction(0))

    @property
    def lost_by_alignment(self) -> Fraction:
        """What truncation of the terms takes from the exact sum."""
        return sum((term.lost for term in self.terms), Fraction(0))

    @property
    def lost_by_rounding(self) -> Fraction | None:
        """What rounding to the accumulator takes; None where that is not finite."""
        value = self.result.value
        return None if value is None else self.total * Fraction(2) ** self.last_place - value


@dataclass(frozen=True, kw_only=True)
class Addition:
    """An IEEE addition, to nearest even, outside the unit: of a promoted chain, or of C by an instruction that adds it last."""

    why: str
    total: DecodedNumber
    chain: DecodedNumber
    result: DecodedNumber

    @property
    def lost(self) -> Fraction | None:
        """What its rounding takes; None where something is not finite."""
        parts = (self.total.value, self.chain.value, self.result.value)
        return None if any(part is None for part in parts) else parts[0] + parts[1] - parts[2]  # type: ignore[operator]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A dot product and everything on the way to its result."""

    instruction: Instruction
    arch: str
    lowering: Lowering
    promote_every: int
    a: tuple[DecodedNumber, ...]
    b: tuple[DecodedNumber, ...]
    c: DecodedNumber
    events: tuple[Step | Addition, ...]
    result: DecodedNumber
    exact: Fraction | None
    """The exact dot product plus C; None where something is not finite."""

    @property
    def datapath(self) -> DatapathSpec:
        """The row whose arithmetic this is."""
        return self.lowering.datapath

    @property
    def error(self) -> Fraction | None:
        """Result less exact; None where either is not finite."""
        value = self.result.value
        return None if value is None or self.exact is None else value - self.exact

    @property
    def steps(self) -> tuple[Step, ...]:
        """The fused steps alone."""
        return tuple(event for event in self.events if isinstance(event, Step))


def read(code: int, form: FormatSpec, *, min_exponent: int | None = None, negate: bool = False) -> DecodedNumber:
    """Take a code apart.

    Args:
        code: bits, unused ones ignored.
        form: its format.
        min_exponent: exponent below which a significand is not normalised, where a unit converts to another format first.
        negate: flip the sign.
    """
    if form.is_integer:
        bits = code & ((1 << form.code_bits) - 1)
        value = bits - (1 << form.code_bits) if form.sign_bits and bits >> (form.code_bits - 1) else bits
        value = -value if negate else value
        return DecodedNumber(form=form, code=code, kind="finite", sign=-1 if value < 0 else 1, significand=abs(value), exponent=0, lsb=0)
    word = (int(code) & ((1 << form.code_bits) - 1)) >> form.ignored_low_bits
    fraction = word & ((1 << form.fraction_bits) - 1)
    field = (word >> form.fraction_bits) & ((1 << form.exponent_bits) - 1)
    negative = bool(form.sign_bits) and bool(int(code) >> (form.code_bits - 1) & 1)
    sign = -1 if negative != negate else 1
    kind = _kind(form, field, fraction)
    if kind != "finite":
        return DecodedNumber(form=form, code=int(code), kind=kind, sign=sign, significand=0, exponent=0, lsb=0)
    normal = field > 0 or not form.has_subnormals
    exponent = (field if normal else 1) - form.bias
    significand = fraction + (1 << form.fraction_bits if normal else 0)
    lsb = exponent - form.fraction_bits
    if significand and min_exponent is not None:  # normalised as far as the other format's range goes
        exponent = max(significand.bit_length() - 1 + lsb, min_exponent)
    return DecodedNumber(form=form, code=int(code), kind="finite", sign=sign, significand=significand, exponent=exponent, lsb=lsb)


def _kind(form: FormatSpec, field: int, fraction: int) -> str:
    top = (1 << form.exponent_bits) - 1
    if form.has_infinity and field == top:
        return "nan" if fraction else "infinity"
    if form.has_nan and field == top and fraction == (1 << form.fraction_bits) - 1:
        return "nan"
    return "finite"


def round_exact(form: FormatSpec, significand: int, lsb: int, *, rounding: str, fraction_bits: int | None = None) -> int:
    """The code of significand x 2^lsb rounded once.

    Args:
        form: a format with infinities.
        significand: signed.
        lsb: its unit is 2^lsb.
        rounding: `"rn"`, `"rz"`, `"rp"`, `"rm"`, or `"tensor rz"`: toward zero, overflow to infinity.
        fraction_bits: fewer than the format has, where the unit keeps fewer.
    """
    kept_bits = form.fraction_bits if fraction_bits is None else fraction_bits
    magnitude, negative = abs(significand), significand < 0
    exponent = max(magnitude.bit_length() - 1 + lsb, form.min_exponent) if magnitude else form.min_exponent
    drop = exponent - kept_bits - lsb
    kept = magnitude >> drop if drop > 0 else magnitude << -drop
    rest = magnitude - (kept << drop) if drop > 0 else 0
    up = {"rz": False, "tensor rz": False, "rp": not negative, "rm": negative}
    if rest:
        half = 1 << (drop - 1)
        kept += rest > half or (rest == half and kept % 2 == 1) if rounding == "rn" else up[rounding]
    code = ((exponent - form.min_exponent) << form.fraction_bits) + (kept << (form.fraction_bits - kept_bits))
    infinity = form.exponent_mask
    if code >= infinity:
        code = infinity if rounding in ("rn", "tensor rz") or up[rounding] else infinity - 1
    return code | (int(negative) << (form.code_bits - 1))


class _Unit:
    """One lowering, element by element."""

    def __init__(self, lowering: Lowering) -> None:
        self.lowering, self.row, self.path = lowering, lowering.instruction, lowering.datapath
        self.result = self.path.result
        unpacked = lowering.unpacked_to
        self.min_exponent = unpacked.min_exponent if unpacked else None

    def operand(self, code: int, which: str) -> DecodedNumber:
        """A code of A or B as the unit reads it."""
        form = self.row.a_type if which == "a" else self.row.b_type
        negate = self.row.negate_a if which == "a" else self.row.negate_b
        return read(code, form, min_exponent=self.min_exponent, negate=negate)

    def accumulator(self, code: int) -> DecodedNumber:
        """An accumulator's code."""
        return read(code, self.result)

    def special(self, terms: Sequence[Term], held: DecodedNumber) -> tuple[int, str] | None:
        """The code of an infinity or NaN where one of the operands is not finite, and why."""
        numbers = [number for term in terms for pair in term.factors for number in pair] + [held]
        numbers += [scale for term in terms for scale in term.scales]
        if all(number.kind == "finite" for number in numbers):
            return None
        if any(number.kind == "nan" for number in numbers):
            return self.path.result_nan, "a NaN among the operands"
        signs = {held.sign} if held.kind == "infinity" else set()
        for a, b in (pair for term in terms for pair in term.factors):
            if "infinity" in (a.kind, b.kind):
                if any(number.kind == "finite" and number.significand == 0 for number in (a, b)):
                    return self.path.result_nan, "0 x infinity"
                signs.add(a.sign * b.sign)
        if len(signs) == 2:
            return self.path.result_nan, "infinities of both signs"
        sign_bit = 1 << (self.result.code_bits - 1) if signs == {-1} else 0
        return self.result.exponent_mask | sign_bit, "an infinity among the operands"

    def products(self, k: Sequence[int], a: Sequence[DecodedNumber], b: Sequence[DecodedNumber], scales: _Scales) -> Iterator[Term]:
        """The terms of a step other than the accumulator."""
        if self.path.arithmetic is Arithmetic.GROUPED:
            for start in range(0, len(k), self.path.group):
                yield self._group(k[start : start + self.path.group], a, b, scales)
            return
        for at in k:
            x, y = a[at], b[at]
            pair = scales.at(at)
            raised = sum(scale.exponent for scale in pair)
            significand = x.sign * y.sign * x.significand * y.significand
            lsb = x.lsb + y.lsb + raised
            exponent = x.exponent + y.exponent + raised if significand else self.path.zero_exponent
            yield Term(
                kind="product", k=(at,), factors=((x, y),), scales=pair, sign=x.sign * y.sign, significand=significand, lsb=lsb,
                exponent=exponent,
            )  # fmt: skip

    def _group(self, k: Sequence[int], a: Sequence[DecodedNumber], b: Sequence[DecodedNumber], scales: _Scales) -> Term:
        pairs = tuple((a[at], b[at]) for at in k)
        lsb = min(x.lsb + y.lsb for x, y in pairs)
        parts = [x.sign * y.sign * x.significand * y.significand << (x.lsb + y.lsb - lsb) for x, y in pairs]
        scale = scales.at(k[0])
        significand = sum(parts)
        for one in scale:
            significand *= one.significand
        absent = not any(parts) or any(one.significand == 0 for one in scale)
        return Term(
            kind="group", k=tuple(k), factors=pairs, scales=scale, sign=-1 if significand < 0 else 1, significand=significand,
            lsb=lsb + sum(one.lsb for one in scale),
            exponent=self.path.zero_exponent if absent else sum(one.exponent for one in scale),
        )  # fmt: skip

    def held(self, c: DecodedNumber, halvings: int) -> Term:
        """The accumulator as a term."""
        exponent = c.exponent - halvings if c.significand else self.path.zero_exponent
        return Term(
            kind="accumulator", k=(), factors=(), scales=(), sign=c.sign, significand=c.sign * c.significand, lsb=c.lsb - halvings,
            exponent=exponent,
        )  # fmt: skip

    def step(self, number: int, instruction: int, k: Sequence[int], terms: Sequence[Term], c: DecodedNumber) -> Step:
        """Align, sum, round."""
        match self.path.arithmetic:
            case Arithmetic.FUSED | Arithmetic.GROUPED:
                largest = max(self.path.zero_exponent, *(term.exponent for term in terms))
                last_place = largest - self.path.fraction_bits
            case _:
                there = [term for term in terms if term.significand]
                largest = max((term.exponent for term in there), default=0)
                last_place = min((term.lsb for term in there), default=0)
        aligned = tuple(_aligned(term, last_place) for term in terms)
        total = sum(term.kept for term in aligned)
        special = self.special(terms, c)
        code, why = special if special is not None else (self.round(total, last_place, terms), "")
        return Step(
            number=number, instruction=instruction, k=tuple(k), terms=aligned, largest=largest, last_place=last_place, total=total,
            result=self.accumulator(code), special=why,
        )  # fmt: skip

    def round(self, total: int, last_place: int, terms: Sequence[Term]) -> int:
        """The accumulator's code of a step's sum."""
        match self.path.arithmetic:
            case Arithmetic.INTEGER:
                if self.row.satfinite:
                    total = max(-(1 << 31), min((1 << 31) - 1, total))
                return total & 0xFFFFFFFF
            case Arithmetic.FMA_CHAIN:
                return self._fma(total, last_place, terms)
        rounding = "rn" if self.path.result_rounding is ResultRounding.NEAREST_EVEN else "tensor rz"
        code = round_exact(self.result, total, last_place, rounding=rounding, fraction_bits=self.path.result_fraction_bits)
        return 0 if code & self.result.magnitude_mask == 0 else code

    def _fma(self, total: int, last_place: int, terms: Sequence[Term]) -> int:
        rounding = self.row.rounding or "rn"
        if total:
            return round_exact(self.result, total, last_place, rounding=rounding)
        product, held = terms
        minus = product.sign + held.sign == -2 or (product.sign != held.sign and rounding == "rm")
        return int(minus) << (self.result.code_bits - 1)


def _aligned(term: Term, last_place: int) -> Term:
    shift = term.lsb - last_place
    magnitude = abs(term.significand)
    kept = magnitude << shift if shift >= 0 else magnitude >> -shift
    return replace(term, kept=-kept if term.significand < 0 else kept, last_place=last_place)


@dataclass(frozen=True, kw_only=True)
class _Scales:
    a: tuple[DecodedNumber, ...]
    b: tuple[DecodedNumber, ...]
    block: int

    def at(self, k: int) -> tuple[DecodedNumber, ...]:
        return (self.a[k // self.block], self.b[k // self.block]) if self.block else ()


def trace(
    instruction: Instruction,
    arch: str,
    a: npt.NDArray[Any],
    b: npt.NDArray[Any],
    c: int = 0,
    *,
    scale_a: npt.NDArray[Any] | None = None,
    scale_b: npt.NDArray[Any] | None = None,
    promote_every: int = 0,
) -> Trace:
    """One dot product, every step of it.

    Args:
        instruction: which.
        arch: architecture, or a name that `what_if` was given.
        a: (K,) codes of A, unsigned integers; any K, walked upward in instructions.
        b: (K,) codes of B.
        c: code of the accumulator.
        scale_a: (blocks,) scale codes.
        scale_b: (blocks,) scale codes.
        promote_every: elements of K after which the chain is added to an f32 total; 0: never.

    Returns:
        The trace, whose result is the engine's.

    Raises:
        MmabitsError: as `mmabits.gemm`.
        TraceMismatch: the engine gave other bits; a defect.
    """
    lowering = lower(instruction, arch)
    promote_every = promote_every or _own_promotion(lowering, arch)
    unit = _Unit(lowering)
    if len(a) != len(b) or len(a) == 0:
        raise OperandError(f"a and b must have the same number of elements along K, at least one; got {len(a)} and {len(b)}")
    counts = lowering.datapath.arithmetic is Arithmetic.FMA_CHAIN or zeros_cut(lowering.datapath)
    padding = -len(a) % instruction.k if counts else 0  # elsewhere zeros change nothing
    left = tuple(unit.operand(int(code), "a") for code in (*a, *[0] * padding))
    right = tuple(unit.operand(int(code), "b") for code in (*b, *[0] * padding))
    scales = _scales(instruction, scale_a, scale_b, len(left))
    start = unit.accumulator(int(c) if instruction.scale_d else 0)
    if promote_every:
        start = read(int(c) if instruction.scale_d else 0, format_spec("f32"))
    events = tuple(_events(unit, left, right, start, scales, promote_every))
    result = events[-1].result
    found = Trace(
        instruction=instruction, arch=arch, lowering=lowering, promote_every=promote_every, a=left, b=right, c=start, events=events,
        result=result, exact=_exact(left, right, start, scales, instruction, unit),
    )  # fmt: skip
    _check_engine(found, a, b, int(c), scale_a, scale_b)
    return found


def _own_promotion(lowering: Lowering, arch: str) -> int:
    fused = lowering.datapath.arithmetic in (Arithmetic.FUSED, Arithmetic.GROUPED)
    return architecture(arch).promote_every if fused and lowering.datapath.result.name == "f32" else 0


def _scales(instruction: Instruction, scale_a: Any, scale_b: Any, k: int) -> _Scales:
    form, block = instruction.scale_type, instruction.block
    if form is None or block is None:
        return _Scales(a=(), b=(), block=0)
    if scale_a is None or scale_b is None:
        raise OperandError(f"{instruction} is block-scaled: it needs scale_a and scale_b, got none")
    one = form.bias << form.fraction_bits
    pairs = [tuple(read(int(code), form) for code in (*codes, *[one] * (-(-k // block) - len(codes)))) for codes in (scale_a, scale_b)]
    return _Scales(a=pairs[0], b=pairs[1], block=block)


def _events(
    unit: _Unit, a: Sequence[DecodedNumber], b: Sequence[DecodedNumber], start: DecodedNumber, scales: _Scales, promote_every: int
) -> Iterator[Step | Addition]:
    lowering, row = unit.lowering, unit.row
    total, number = start, 0
    chain = unit.accumulator(0) if promote_every or lowering.separate_add else start
    outer = unit.accumulator(0) if promote_every else start
    """Where an instruction that adds C by itself adds it."""
    for instruction, first in enumerate(range(0, len(a), row.k)):
        order = lowering.k_order or tuple(range(row.k))
        if lowering.separate_add:
            chain = unit.accumulator(0)
        for position in range(0, row.k, lowering.step):
            k = [first + at for at in order[position : position + lowering.step] if first + at < len(a)]
            if not k:
                continue
            halvings = row.scale_input_d if position == 0 else 0
            for part in [k] if unit.path.arithmetic is not Arithmetic.FMA_CHAIN else [[at] for at in k]:
                terms = (*unit.products(part, a, b, scales), unit.held(chain, halvings))
                found = unit.step(number, instruction, part, terms, chain)
                yield found
                number, chain = number + 1, found.result
        if lowering.separate_add:
            added = _add("the instruction adds C last", outer, chain)
            yield added
            outer = chain = added.result
        stop = min(first + row.k, len(a))
        if promote_every and (stop % promote_every == 0 or stop == len(a)):
            added = _add(f"promotion after {promote_every} elements of K", total, chain)
            yield added
            total, chain, outer = added.result, unit.accumulator(0), unit.accumulator(0)


def _add(why: str, total: DecodedNumber, chain: DecodedNumber) -> Addition:
    """One IEEE addition in the wider of the two formats, to nearest even."""
    form = total.form
    nan = {"f32": 0x7FFFFFFF, "f16": 0x7FFF}[form.name]
    infinities = {number.sign for number in (total, chain) if number.kind == "infinity"}
    if "nan" in (total.kind, chain.kind) or len(infinities) == 2:
        code = nan
    elif infinities:
        code = form.exponent_mask | (1 << (form.code_bits - 1) if infinities == {-1} else 0)
    else:
        lsb = min(total.lsb, chain.lsb)
        exact = sum(number.sign * number.significand << (number.lsb - lsb) for number in (total, chain))
        both_minus = total.sign < 0 and chain.sign < 0
        code = round_exact(form, exact, lsb, rounding="rn") if exact else int(both_minus) << (form.code_bits - 1)
    return Addition(why=why, total=total, chain=chain, result=read(code, form))


def _exact(
    a: Sequence[DecodedNumber], b: Sequence[DecodedNumber], c: DecodedNumber, scales: _Scales, instruction: Instruction, unit: _Unit
) -> Fraction | None:
    everything = (*a, *b, c, *scales.a, *scales.b)
    if any(number.value is None for number in everything):
        return None
    if instruction.scale_input_d:
        return None  # the accumulator is scaled down at every instruction: there is no one exact sum
    total = c.value or Fraction(0)
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        product = (x.value or Fraction(0)) * (y.value or Fraction(0))
        for scale in scales.at(k):
            product *= scale.value or Fraction(0)
        total += product
    return total


def _check_engine(found: Trace, a: Any, b: Any, c: int, scale_a: Any, scale_b: Any) -> None:
    row = found.instruction
    if found.promote_every or (row.d_type.name != row.c_type.name):
        got = _promoted(found, a, b, c, scale_a, scale_b)
    else:
        one = np.newaxis
        codes = [np.asarray(part)[one] for part in (a, b)]
        accumulator = np.array([c], dtype=f"uint{row.c_type.container_bits}")
        scales = {} if scale_a is None else {"scale_a": np.asarray(scale_a)[one], "scale_b": np.asarray(scale_b)[one]}
        got = int(dot_rows(row, found.arch, codes[0], codes[1], accumulator, **scales)[0])
    if got != found.result.code:
        raise TraceMismatch(
            f"{row} on {found.arch}: the exact trace ends in {found.result.code:#x}, the engine in {got:#x}; please report this"
        )


def _promoted(found: Trace, a: Any, b: Any, c: int, scale_a: Any, scale_b: Any) -> int:
    from mmabits.emulator.api import gemm
    from mmabits.emulator.codecs import from_codes

    row = found.instruction
    left, right = from_codes(np.asarray(a)[None, :], row.a_type), from_codes(np.asarray(b)[:, None], row.b_type)
    held = from_codes(np.array([[c]], np.uint32), format_spec("f32"))
    scales: dict[str, Any] = {}
    if row.scale_type is not None and scale_a is not None and scale_b is not None:
        scales = {
            "scale_a": from_codes(np.asarray(scale_a)[None, :], row.scale_type),
            "scale_b": from_codes(np.asarray(scale_b)[:, None], row.scale_type),
        }
    promote = found.promote_every or None
    d = gemm(left, right, held, instruction=row, arch=found.arch, promote_every=promote, **scales)
    return int(as_codes(d, format_spec("f32")).reshape(-1)[0])


__all__ = ["Addition", "DecodedNumber", "Step", "Term", "Trace", "TraceMismatch", "read", "round_exact", "trace"]
