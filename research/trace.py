"""One element of a product, step by step and exactly: what each unit sees, keeps and cuts off.

The arithmetic is that of `mmabits.research.exact`; here it becomes an account in Python integers and fractions, with what stands around
an instruction: the chain along K, promotions, a C that is added last. The trace ends in a result that must equal the engine's; `trace`
checks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from mmabits.emulator.api import dot_rows, gemm
from mmabits.emulator.codecs import as_codes, from_codes, numpy_dtype
from mmabits.isa import Arithmetic, DatapathSpec, FormatSpec, Instruction, Lowering, MmabitsError, OperandError, format_spec, lower
from mmabits.isa.whatif import zeros_cut
from mmabits.research import exact
from mmabits.research.exact import FINITE, INFINITE, NAN, NEVER, Numbers, Operands, decode, decode_operands, ieee_sum
from mmabits.research.model import traced_model


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

    def costliest(self, among: int | None = None) -> Step:
        """The step whose alignment cuts off most, or where none cuts whose rounding takes most; the first of equals.

        Args:
            among: look at so many steps from the first on; at all where left out.
        """
        return max(self.steps[:among], key=lambda step: (abs(step.lost_by_alignment), abs(step.lost_by_rounding or 0), -step.number))


_KINDS = {FINITE: "finite", INFINITE: "infinity", NAN: "nan"}
_F32 = format_spec("f32")


def _number(form: FormatSpec, code: int, found: Numbers) -> DecodedNumber:
    """One of decoded codes, the rest taken away already."""
    kind = _KINDS[int(found.kind)]
    finite = kind == "finite"
    return DecodedNumber(
        form=form, code=int(code), kind=kind, sign=-1 if found.negative else 1, significand=abs(int(found.significand)),
        exponent=int(found.exponent) if finite else 0, lsb=int(found.lsb) if finite else 0,
    )  # fmt: skip


def _numbers(form: FormatSpec, codes: npt.NDArray[Any], found: Numbers) -> tuple[DecodedNumber, ...]:
    return tuple(
        _number(form, code, Numbers(*row)) for code, *row in zip(codes.tolist(), *(field.tolist() for field in found), strict=True)
    )


def _codes(codes: Sequence[int] | npt.NDArray[Any], form: FormatSpec) -> npt.NDArray[Any]:
    """Codes in the format's container, unused bits cleared."""
    return (np.asarray(codes).astype(np.uint64) & np.uint64(form.codes - 1)).astype(f"u{form.container_bits // 8}")


def read(code: int, form: FormatSpec) -> DecodedNumber:
    """Take a code apart; unused bits are ignored."""
    return _numbers(form, np.array([code], np.uint64), decode(_codes([code], form), form))[0]


@dataclass(frozen=True, kw_only=True)
class _TracedChain:
    """The operands of a chain, filled up to whole instructions."""

    lowering: Lowering
    codes: Operands
    """(1, K) of A and B and (1, blocks) of scales; C is not looked at."""
    a: tuple[DecodedNumber, ...]
    b: tuple[DecodedNumber, ...]
    scale_a: tuple[DecodedNumber, ...]
    scale_b: tuple[DecodedNumber, ...]
    """Empty without block scales."""
    length: int
    """Elements of K that are told of."""

    def scales_at(self, k: int) -> tuple[DecodedNumber, ...]:
        """The block scales of an element of K."""
        block = self.lowering.instruction.block
        return (self.scale_a[k // block], self.scale_b[k // block]) if block else ()

    def instruction(self, first: int, c: DecodedNumber) -> Operands:
        """What the instruction that begins at an element of K takes."""
        row, x = self.lowering.instruction, self.codes
        k = slice(first, first + row.k)
        held = np.array([c.code], f"u{c.form.container_bits // 8}")
        if row.block is None or x.scale_a is None or x.scale_b is None:
            return Operands(x.a[:, k], x.b[:, k], held)
        blocks = slice(first // row.block, (first + row.k) // row.block)
        return Operands(x.a[:, k], x.b[:, k], held, x.scale_a[:, blocks], x.scale_b[:, blocks])

    def step(self, number: int, first: int, found: exact.StepArrays, held: DecodedNumber) -> Step | None:
        """A step of the instruction that begins at an element of K; None where all its elements lie past the end."""
        path = self.lowering.datapath
        places = [[first + at for at in found.elements[start : start + path.group]] for start in range(0, len(found.elements), path.group)]
        groups = [tuple(k for k in group if k < self.length) for group in places]
        there = [at for at, group in enumerate(groups) if group]
        if not there:
            return None
        last_place = int(found.last_place[0])
        terms = [self.term(groups[at], found, at, last_place) for at in there]
        terms.append(self.term((), found, len(groups), last_place, held))
        largest = last_place + path.fraction_bits
        if not path.is_aligned:
            largest = max((term.exponent for term in terms if term.significand), default=0)
        result = read(int(found.codes[0]), path.result)
        return Step(
            number=number, instruction=first // self.lowering.instruction.k, k=tuple(k for at in there for k in groups[at]),
            terms=tuple(terms), largest=largest, last_place=last_place, total=int(found.total[0]), result=result,
            special=_why_special(terms, held, result) if found.is_special[0] else "",
        )  # fmt: skip

    def term(self, k: tuple[int, ...], found: exact.StepArrays, at: int, last_place: int, held: DecodedNumber | None = None) -> Term:
        """One term of a step; `held` is the accumulator, where it is that."""
        significand, exponent = int(found.significand[0, at]), int(found.exponent[0, at])
        factors = tuple((self.a[each], self.b[each]) for each in k)
        if held is not None:
            kind, sign = "accumulator", held.sign
        elif self.lowering.datapath.arithmetic is Arithmetic.GROUPED:
            kind, sign = "group", -1 if significand < 0 else 1
        else:
            kind, sign = "product", factors[0][0].sign * factors[0][1].sign
        return Term(
            kind=kind, k=k, factors=factors, scales=self.scales_at(k[0]) if k else (), sign=sign, significand=significand,
            lsb=int(found.lsb[0, at]), exponent=0 if exponent == NEVER else exponent, kept=int(found.kept[0, at]), last_place=last_place,
        )  # fmt: skip


def _why_special(terms: Sequence[Term], held: DecodedNumber, result: DecodedNumber) -> str:
    """Why an infinity or NaN comes out of a step."""
    factors = [pair for term in terms for pair in term.factors]
    numbers = [*(number for pair in factors for number in pair), *(scale for term in terms for scale in term.scales), held]
    if any(number.kind == "nan" for number in numbers):
        return "a NaN among the operands"
    if result.kind != "nan":
        return "an infinity among the operands"
    for pair in factors:
        if {number.kind for number in pair} == {"finite", "infinity"} and any(number.value == 0 for number in pair):
            return "0 x infinity"
    return "infinities of both signs"


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
    promote_every = promote_every or lowering.own_promotion
    if len(a) != len(b) or len(a) == 0:
        raise OperandError(f"a and b must have the same number of elements along K, at least one; got {len(a)} and {len(b)}")
    chain = _chain(lowering, a, b, scale_a, scale_b)
    start = read(int(c) if instruction.scale_d else 0, _F32 if promote_every else lowering.datapath.result)
    events = tuple(_events(chain, start, promote_every))
    found = Trace(
        instruction=instruction, arch=arch, lowering=lowering, promote_every=promote_every, a=chain.a[: chain.length],
        b=chain.b[: chain.length], c=start, events=events, result=events[-1].result, exact=_exact(chain, start),
    )  # fmt: skip
    _check_engine(found, a, b, int(c), scale_a, scale_b)
    return found


def _chain(lowering: Lowering, a: npt.NDArray[Any], b: npt.NDArray[Any], scale_a: Any, scale_b: Any) -> _TracedChain:
    row, model = lowering.instruction, traced_model(lowering)
    whole = -(-len(a) // row.k) * row.k
    left, right = (_codes(np.pad(codes, (0, whole - len(a))), form) for codes, form in ((a, row.a_type), (b, row.b_type)))
    numbers = [
        _numbers(form, codes, found)
        for form, codes, found in zip((row.a_type, row.b_type), (left, right), decode_operands(model, left, right), strict=True)
    ]
    scales: list[npt.NDArray[Any]] = []
    form, block = row.scale_type, row.block
    if form is not None and block is not None:
        if scale_a is None or scale_b is None:
            raise OperandError(f"{row} is block-scaled: it needs scale_a and scale_b, got none")
        one = form.bias << form.fraction_bits
        blocks = whole // block
        scales = [_codes(np.pad(codes, (0, blocks - len(codes)), constant_values=one), form) for codes in (scale_a, scale_b)]
    told = [_numbers(form, codes, decode(codes, form)) for codes in scales if form is not None]
    counts = lowering.datapath.arithmetic is Arithmetic.FMA_CHAIN or zeros_cut(lowering.datapath)
    operands = Operands(left[None], right[None], left[:1], *(codes[None] for codes in scales))
    return _TracedChain(
        lowering=lowering, codes=operands, a=numbers[0], b=numbers[1], scale_a=told[0] if told else (), scale_b=told[1] if told else (),
        length=whole if counts else len(a),
    )  # fmt: skip


def _events(chain: _TracedChain, start: DecodedNumber, promote_every: int) -> Iterator[Step | Addition]:
    lowering, row, model = chain.lowering, chain.lowering.instruction, traced_model(chain.lowering)
    zero = read(0, lowering.datapath.result)
    total, number = start, 0
    held = zero if promote_every or lowering.separate_add else start
    outer = zero if promote_every else start
    """Where an instruction that adds C by itself adds it."""
    for first in range(0, chain.length, row.k):
        if lowering.separate_add:
            held = zero
        for found in exact.steps(model, chain.instruction(first, held)):
            step = chain.step(number, first, found, held)
            if step is None:  # zeros alone, which change nothing here
                continue
            yield step
            number, held = number + 1, step.result
        if lowering.separate_add:
            added = _add("the instruction adds C last", outer, held)
            yield added
            outer = held = added.result
        stop = min(first + row.k, chain.length)
        if promote_every and (stop % promote_every == 0 or stop == chain.length):
            added = _add(f"promotion after {promote_every} elements of K", total, held)
            yield added
            total, held, outer = added.result, zero, zero


def _add(why: str, total: DecodedNumber, chain: DecodedNumber) -> Addition:
    """One IEEE addition in the format of the total, which is the wider of the two, to nearest even."""
    form = total.form
    codes = [
        as_codes(from_codes(_codes([number.code], number.form), number.form).astype(numpy_dtype(form)), form) for number in (total, chain)
    ]
    return Addition(why=why, total=total, chain=chain, result=read(int(ieee_sum(codes[0], codes[1], form, form.magnitude_mask)[0]), form))


def _exact(chain: _TracedChain, c: DecodedNumber) -> Fraction | None:
    row = chain.lowering.instruction
    if any(number.value is None for number in (*chain.a, *chain.b, c, *chain.scale_a, *chain.scale_b)):
        return None
    if row.scale_input_d:
        return None  # the accumulator is scaled down at every instruction: there is no one exact sum
    total = c.value or Fraction(0)
    for k, (x, y) in enumerate(zip(chain.a, chain.b, strict=True)):
        product = (x.value or Fraction(0)) * (y.value or Fraction(0))
        for scale in chain.scales_at(k):
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
    row = found.instruction
    left, right = from_codes(np.asarray(a)[None, :], row.a_type), from_codes(np.asarray(b)[:, None], row.b_type)
    held = from_codes(np.array([[c]], np.uint32), _F32)
    scales: dict[str, Any] = {}
    if row.scale_type is not None and scale_a is not None and scale_b is not None:
        scales = {
            "scale_a": from_codes(np.asarray(scale_a)[None, :], row.scale_type),
            "scale_b": from_codes(np.asarray(scale_b)[:, None], row.scale_type),
        }
    promote = found.promote_every or None
    d = gemm(left, right, held, instruction=row, arch=found.arch, promote_every=promote, **scales)
    return int(as_codes(d, _F32).reshape(-1)[0])


__all__ = ["Addition", "DecodedNumber", "Step", "Term", "Trace", "TraceMismatch", "read", "trace"]
