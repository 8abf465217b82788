"""`mmabits.explain_function`: one result of a function, from its operand to its last bit, beside the exact value."""

from __future__ import annotations

import decimal
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from mmabits.emulator.machine.calls import FLOATS, checked_row, operand_bits
from mmabits.isa import FORMATS, OperandError, architecture
from mmabits.isa.opcodes import Opcode, width
from mmabits.isa.opcodes.exact import Number, decode, encode
from mmabits.isa.opcodes.functions import MACHINE_CODE, Interpolated, Quadratic, interpolations

_DIGITS: Final = 160
"""Of exact values: an f32 of 2^127 has 39 before the point, and as many are lost where it is reduced by pi."""


@dataclass(frozen=True, kw_only=True)
class FunctionExplanation:
    """How a function came to a result."""

    row: Opcode
    arch: str
    operands: tuple[int, ...]
    """Codes."""
    result: int
    """The code of the result."""
    interpolations: tuple[Interpolated, ...]
    """Those of the special function unit, in order."""
    exact: Decimal | None
    """The function's exact value, to more than a hundred digits; None where it is no number, or the opcode no function of this kind."""

    @property
    def value(self) -> float | int:
        """The result as a number."""
        return _value(self.result, self.row.results[0])

    @property
    def nearest(self) -> int | None:
        """The code of the exact value, rounded to nearest."""
        return None if self.exact is None else _encoded(self.exact, self.row.results[0])

    @property
    def error(self) -> float | None:
        """Result less exact value, in units in the last place of the exact value."""
        found = decode(self.result, self.row.results[0]) if self.exact is not None else None
        if self.exact is None or found is None or found.special is not None:
            return None
        with decimal.localcontext(_CONTEXT):
            return float((_decimal(found) - self.exact) / _unit(self.exact, self.row.results[0]))

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The explanation as text."""
        row, kind = self.row, self.row.results[0]
        found = [f"{row.name} on {self.arch}: {row.evidence}" + (f" ({row.note})" if row.note else "")]
        for name, bits, of in zip("abcdef", self.operands, row.sources, strict=False):
            found.append(f"  {name:<14}{_shown(bits, of)}")
        if row.name in MACHINE_CODE:
            found.append(f"  {'machine code':<14}{MACHINE_CODE[row.name]}")
        for each in self.interpolations:
            found += _interpolation_lines(each)
        found.append(f"  {'result':<14}{_shown(self.result, kind)}")
        if self.exact is not None:
            found.append(f"  {'exact':<14}{self.exact:.25g}")
            error = self.error
            near = self.nearest
            if error is not None and near is not None:
                apart = abs(_place(near, kind) - _place(self.result, kind))
                rounded = "correctly rounded" if apart == 0 else f"{apart} from the correctly rounded {_shown(near, kind)}"
                found.append(f"  {'error':<14}{error:+.4f} ulp, {rounded}")
        found += [f"  {'allowed':<14}{bound} (PTX manual)" for bound in row.bounds]
        return found


def explain_function(opcode: str | Opcode, *operands: Any, arch: str) -> FunctionExplanation:
    """How one result of `mmabits.function` comes about: interval, row of the table, polynomial, rounding, and the error.

    Args:
        opcode: PTX spelling: `"ex2.approx.ftz.f32"`.
        operands: a number for each operand, as `mmabits.function` takes them, or arrays of one element.
        arch: `"sm_90a"`, or a GPU of it.

    Returns:
        An explanation; print it.

    Raises:
        OperandError: an array of more than one element.
        MmabitsError: as `mmabits.function`.
    """
    row = checked_row(opcode, len(operands), arch)
    bits = operand_bits(row, operands)
    if bits is None:
        raise OperandError("explain_function explains one element at a time; mmabits.function takes arrays")
    assert row.reference is not None
    with interpolations() as seen:
        result = int(row.reference(*bits))
    return FunctionExplanation(
        row=row, arch=architecture(arch).name, operands=bits, result=result, interpolations=tuple(seen), exact=exact_value(row, bits)
    )


def _interpolation_lines(each: Interpolated) -> list[str]:
    form, (a, b, c) = each.form, each.terms
    first, last = (row * 2.0 ** (form.low - 23) for row in (each.row, each.row + 1))
    return [
        f"  {'interval':<14}{first:g} to {last:g} of the fraction",
        f"  {form.table + ' table':<14}row {each.row}, r = {each.r} of 2^{form.low}: A = {a}, B = {b}, C = {c}",
        f"  {'polynomial':<14}{_formula(form)} = {each.total}, square {each.square}",
        f"  {'cut':<14}>> {form.cut} = {each.result}" if form.cut else f"  {'sum':<14}{each.result}",
    ]


def _formula(form: Quadratic) -> str:
    inner = f"{1 << form.s} r" if form.s else "r"
    last = f" + {form.constant:#x}" if form.constant else ""
    return f"A 2^{form.a} + B r + {f'{1 << form.c} ' if form.c else ''}C square({inner}){last}"


def _value(bits: int, kind: str) -> float | int:
    if kind not in FLOATS:
        return bits
    number = decode(bits, kind)
    if number.is_nan:
        return float("nan")
    if number.is_infinite:
        return float("-inf") if number.sign else float("inf")
    return float((-1) ** number.sign * number.significand * 2.0**number.exponent)


def _shown(bits: int, kind: str) -> str:
    digits = f"{bits:#0{2 + 2 * (width(kind) // 8)}x}" if kind in FLOATS else f"{bits:#x}"
    return f"{_value(bits, kind):.9g} ({digits})" if kind in FLOATS else digits


def _place(bits: int, kind: str) -> int:
    """A code's place in the order of numbers."""
    sign = FORMATS[kind].sign_mask
    return -(bits & ~sign) if bits & sign else bits


# --------------------------------------------------------------------------------------------------------------- exact values

_CONTEXT: Final = decimal.Context(prec=_DIGITS, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)


def exact_value(row: Opcode, operands: tuple[int, ...]) -> Decimal | None:
    """The exact value of a function at some codes; None where it is no number, or not one of the special functions.

    Args:
        row: of the function.
        operands: codes.
    """
    if row.name not in MACHINE_CODE or row.results[0] not in FLOATS:
        return None
    numbers = [decode(bits, kind, ftz="ftz" in row.parts) for bits, kind in zip(operands, row.sources, strict=True)]
    if any(each.special is not None for each in numbers):
        return None
    with decimal.localcontext(_CONTEXT):
        found: Decimal | None = _FUNCTIONS[row.base](*(_decimal(each) for each in numbers))
        return found


def _decimal(number: Number) -> Decimal:
    found = Decimal(number.significand) * Decimal(2) ** number.exponent
    return -found if number.sign else found


def _power(x: Decimal) -> Decimal | None:
    return Decimal(2) ** x if abs(x) < 5000 else None


def _reciprocal(x: Decimal) -> Decimal | None:
    return 1 / x if x else None


def _root(x: Decimal) -> Decimal | None:
    return x.sqrt() if x >= 0 else None


def _reciprocal_root(x: Decimal) -> Decimal | None:
    return 1 / x.sqrt() if x > 0 else None


def _logarithm(x: Decimal) -> Decimal | None:
    return x.ln() / Decimal(2).ln() if x > 0 else None


def _tanh(x: Decimal) -> Decimal:
    if abs(x) < Decimal(10) ** -30:
        return x - x**3 / 3
    square = (2 * min(abs(x), Decimal(1000))).exp()
    found = (square - 1) / (square + 1)
    return found if x > 0 else -found


def _arctangent_of_inverse(n: int) -> Decimal:
    total, term, k = Decimal(0), 1 / Decimal(n), 0
    while abs(term) > Decimal(10) ** -(_DIGITS + 5):
        total += term / (2 * k + 1)
        term /= -n * n
        k += 1
    return total


def _sine(x: Decimal, quarter: int = 0) -> Decimal:
    half = 2 * (4 * _arctangent_of_inverse(5) - _arctangent_of_inverse(239))  # pi / 2, by Machin's formula
    turns = (x / half).to_integral_value()
    quadrant, rest = (int(turns) + quarter) % 4, x - turns * half
    total, term, k = Decimal(0), Decimal(1) if quadrant & 1 else rest, int(not quadrant & 1)
    while abs(term) > Decimal(10) ** -(_DIGITS - 20):
        total += term
        term *= -rest * rest / ((k + 1) * (k + 2))
        k += 2
    return -total if quadrant & 2 else total


def _cosine(x: Decimal) -> Decimal:
    return _sine(x, 1)


def _quotient(x: Decimal, y: Decimal) -> Decimal | None:
    return x / y if y else None


_FUNCTIONS: Final[dict[str, Any]] = {
    "ex2": _power, "rcp": _reciprocal, "rsqrt": _reciprocal_root, "sqrt": _root, "lg2": _logarithm, "sin": _sine, "cos": _cosine,
    "tanh": _tanh, "div": _quotient,
}  # fmt: skip


def _unit(exact: Decimal, kind: str) -> Decimal:
    """One in the last place of a number."""
    spec = FORMATS[kind]
    exponent = spec.min_exponent
    if exact:
        estimate = int((abs(exact).ln() / Decimal(2).ln()).to_integral_value(decimal.ROUND_FLOOR))
        estimate += (Decimal(2) ** (estimate + 1) <= abs(exact)) - (Decimal(2) ** estimate > abs(exact))
        exponent = max(estimate, exponent)
    return Decimal(2) ** (exponent - spec.fraction_bits)


def _encoded(exact: Decimal, kind: str) -> int:
    """A number rounded to nearest."""
    with decimal.localcontext(_CONTEXT):
        unit = _unit(exact, kind)
        scaled = abs(exact) / unit * 2**60
        whole = int(scaled.to_integral_value(decimal.ROUND_FLOOR))
        more = scaled != whole
        exponent = int((unit.ln() / Decimal(2).ln()).to_integral_value()) - 60
    return encode(Number(int(exact < 0), whole, exponent), kind, sticky=more)
