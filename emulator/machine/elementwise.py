"""What each opcode of one lane is in LLVM's instructions on vectors: one emitter a base opcode, told apart by the row's words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from mmabits.emulator.machine.functions import approximated
from mmabits.emulator.machine.numbers import (
    decoded,
    directed,
    encoded,
    flushed,
    halves,
    is_nan,
    joined,
    one_nan,
    rounded,
    to_odd,
    two_sum,
)
from mmabits.emulator.machine.vectors import Code, Value
from mmabits.isa import FORMATS
from mmabits.isa.opcodes import Opcode, width
from mmabits.isa.opcodes.conversions import bounds
from mmabits.isa.opcodes.exact import NAN
from mmabits.isa.opcodes.floating import ROUNDINGS, UNSIGNED

Operands = Sequence[Value]
Emitter = Callable[[Code, Opcode, Operands], "Value | tuple[Value, ...] | None"]


class NoEmitter(Exception):
    """There is a row, and no vector code for it."""


def emitted(code: Code, row: Opcode, operands: Operands) -> tuple[Value, ...]:
    """The results of an opcode: vectors of integers as wide as the row's result types.

    Raises:
        NoEmitter: the machine has no code for this row.
    """
    emitter = approximated if "approx" in row.parts or "full" in row.parts else _EMITTERS.get(row.base)
    found = emitter(code, row, operands) if emitter is not None else None
    if found is None:
        raise NoEmitter(row.name)
    return (found,) if isinstance(found, Value) else found


# ------------------------------------------------------------------------------------------------------------------- integers


def _kind(row: Opcode) -> str:
    return row.name.partition("#")[0].rpartition(".")[2]


def _is_signed(kind: str) -> bool:
    return kind[0] == "s"


def _is_integer(kind: str) -> bool:
    return kind[0] in "su" or (kind[0] == "b" and not kind.startswith("bf"))


def _pairwise(code: Code, row: Opcode, operands: Operands, bits: int, one: Callable[[Operands], Value]) -> Value:
    split = [halves(code, each, bits) for each in operands]
    return joined(code, one([low for low, _ in split]), one([high for _, high in split]))


def _integer_sum(code: Code, row: Opcode, operands: Operands) -> Value | None:
    kind, name = _kind(row), row.base
    if kind.endswith("x2"):
        return _pairwise(code, row, operands, 16, lambda each: code.binary(name, *each))
    if "sat" in row.parts:
        return code.intrinsic(f"llvm.s{name}.sat", "i32", operands)
    return code.binary(name, *operands)


def _limit(code: Code, row: Opcode, operands: Operands) -> Value | None:
    kind = _kind(row)
    if not _is_integer(kind):
        return _float_limit(code, row, operands)
    name = f"llvm.{'s' if _is_signed(kind) else 'u'}{row.base}"
    if kind.endswith("x2"):
        return _pairwise(code, row, operands, 16, lambda each: code.intrinsic(name, "i16", each))
    return code.intrinsic(name, f"i{width(kind)}", operands)


def _wide_product(code: Code, kind: str, a: Value, b: Value) -> Value:
    bits, signed = 2 * width(kind), _is_signed(kind)
    return code.binary("mul", code.resize(a, bits, signed=signed), code.resize(b, bits, signed=signed))


def _high(code: Code, kind: str, a: Value, b: Value) -> Value:
    bits = width(kind)
    return code.resize(code.shift("lshr", _wide_product(code, kind, a, b), bits), bits)


def _product(code: Code, row: Opcode, operands: Operands) -> Value | None:
    kind, words = _kind(row), row.parts
    if not _is_integer(kind):
        return _float_arithmetic(code, row, operands)
    a, b = operands[:2]
    if "wide" in words:
        found = _wide_product(code, kind, a, b)
    elif "hi" in words:
        found = _high(code, kind, a, b)
    else:
        found = code.binary("mul", a, b)
    if len(operands) == 2:
        return found
    if "sat" in words:
        return code.intrinsic("llvm.sadd.sat", "i32", [found, operands[2]])
    return code.binary("add", found, operands[2])


def _mad(code: Code, row: Opcode, operands: Operands) -> Value | tuple[Value, ...] | None:
    if row.parts[-2] == "cc" or row.base == "madc":
        return _mad_carry(code, row, operands)
    return _product(code, row, operands)


def _mul24(code: Code, row: Opcode, operands: Operands) -> Value:
    signed = _is_signed(_kind(row))
    wide = [code.shift("ashr" if signed else "lshr", code.shift("shl", code.resize(each, 64), 40), 40) for each in operands]
    return code.resize(code.shift("lshr", code.binary("mul", *wide), 16 if "hi" in row.parts else 0), 32)


def _sad(code: Code, row: Opcode, operands: Operands) -> Value:
    prefix = "s" if _is_signed(_kind(row)) else "u"
    element = f"i{width(_kind(row))}"
    a, b, c = operands
    high, low = (code.intrinsic(f"llvm.{prefix}{name}", element, [a, b]) for name in ("max", "min"))
    return code.binary("add", c, code.binary("sub", high, low))


def _dot(code: Code, row: Opcode, operands: Operands) -> Value:
    a, b, total = operands
    a_signed, b_signed = (_is_signed(kind) for kind in row.parts[-2:])
    bytes_of_a = row.base == "dp4a"
    first = 0 if bytes_of_a or "lo" in row.parts else 16
    for place in range(4 if bytes_of_a else 2):
        x = _field(code, a, 8 * place if bytes_of_a else 16 * place, 8 if bytes_of_a else 16, a_signed)
        y = _field(code, b, first + 8 * place, 8, b_signed)
        total = code.binary("add", total, code.binary("mul", x, y))
    return total


def _field(code: Code, a: Value, start: int, bits: int, signed: bool) -> Value:
    return code.shift("ashr" if signed else "lshr", code.shift("shl", a, a.bits - bits - start), a.bits - bits)


def _quotient(code: Code, row: Opcode, operands: Operands) -> Value | None:
    kind = _kind(row)
    if not _is_integer(kind):
        return _float_division(code, row, operands)
    a, b = operands
    bits, signed = width(kind), _is_signed(kind)
    nothing, one, minus = (code.constant(number, bits) for number in (0, 1, -1))
    by_zero = code.compare("eq", b, nothing)
    divisor = code.select(by_zero, one, b)
    prefix = "s" if signed else "u"
    if signed:  # the least number by -1 has no quotient that fits, and stops the processor
        negated = code.compare("eq", b, minus)
        divisor = code.select(negated, one, divisor)
        quotient = code.binary("sdiv", a, divisor)
        quotient = code.select(negated, code.binary("sub", nothing, a), quotient)
        rest = code.select(negated, nothing, code.binary("srem", a, divisor))
    else:
        quotient, rest = code.binary(f"{prefix}div", a, divisor), code.binary(f"{prefix}rem", a, divisor)
    return code.select(by_zero, minus, quotient) if row.base == "div" else code.select(by_zero, a, rest)


def _absolute(code: Code, row: Opcode, operands: Operands) -> Value | None:
    kind, (a,) = _kind(row), operands
    if _is_integer(kind):
        negative = code.binary("sub", code.constant(0, a.bits), a)
        return negative if row.base == "neg" else code.select(code.compare("slt", a, code.constant(0, a.bits)), negative, a)
    if kind.endswith("x2"):
        return _pairwise(code, row, operands, 16, lambda each: _signless(code, row, kind[:-2], each[0]))
    return _signless(code, row, kind, a)


def _signless(code: Code, row: Opcode, form: str, a: Value) -> Value:
    spec = FORMATS[form]
    if "ftz" in row.parts:
        a = flushed(code, a, spec)
    return code.masked(a, ~spec.sign_mask) if row.base == "abs" else code.binary("xor", a, code.constant(spec.sign_mask, a.bits))


def _count(code: Code, row: Opcode, operands: Operands) -> Value:
    (a,) = operands
    name = {"popc": "llvm.ctpop", "clz": "llvm.ctlz", "brev": "llvm.bitreverse"}[row.base]
    found = code.intrinsic(name, a.element, [a], flags="i1 false" if row.base == "clz" else "")
    return found if row.base == "brev" else code.resize(found, 32)


def _find(code: Code, row: Opcode, operands: Operands) -> Value:
    (a,), bits = operands, width(_kind(row))
    if _is_signed(_kind(row)):
        a = code.binary("xor", a, code.shift("ashr", a, bits - 1))
    zeros = code.intrinsic("llvm.ctlz", a.element, [a], flags="i1 false")
    found = zeros if "shiftamt" in row.parts else code.binary("sub", code.constant(bits - 1, bits), zeros)
    return code.resize(code.select(code.compare("eq", a, code.constant(0, bits)), code.constant(-1, bits), found), 32)


def _low_mask(code: Code, length: Value, bits: int) -> Value:
    """Ones in as many low bits, all where there are as many as bits or more."""
    whole = code.compare("uge", length, code.constant(bits, bits))
    count = code.select(whole, code.constant(0, bits), length)
    mask = code.binary("sub", code.binary("shl", code.constant(1, bits), count), code.constant(1, bits))
    return code.select(whole, code.constant(-1, bits), mask)


def _shifted(code: Code, operation: str, a: Value, count: Value) -> Value:
    """A shift by any count, of the width of `a`: past the width everything is shifted out."""
    bits = a.bits
    past = code.compare("uge", count, code.constant(bits, bits))
    if operation == "ashr":
        return code.binary("ashr", a, code.select(past, code.constant(bits - 1, bits), count))
    inside = code.select(past, code.constant(0, bits), count)
    return code.select(past, code.constant(0, bits), code.binary(operation, a, inside))


def _extract(code: Code, row: Opcode, operands: Operands) -> Value:
    kind = _kind(row)
    bits = width(kind)
    a = operands[0]
    position, length = (code.resize(code.masked(each, 0xFF), bits) for each in operands[1:])
    signed = _is_signed(kind)
    mask = _low_mask(code, length, bits)
    field = code.both(_shifted(code, "ashr" if signed else "lshr", a, position), mask)
    if not signed:
        return field
    last = code.binary("sub", code.binary("add", position, length), code.constant(1, bits))
    last = code.intrinsic("llvm.umin", f"i{bits}", [last, code.constant(bits - 1, bits)])
    sign = code.both(_shifted(code, "lshr", a, last), code.constant(1, bits))
    is_negative = code.both(code.compare("ne", sign, code.constant(0, bits)), code.compare("ne", length, code.constant(0, bits)))
    return code.select(
        is_negative,
        code.either(field, code.opposite(mask)),
        code.select(code.compare("eq", length, code.constant(0, bits)), code.constant(0, bits), field),
    )


def _insert(code: Code, row: Opcode, operands: Operands) -> Value:
    a, b = operands[:2]
    bits = a.bits
    position, length = (code.resize(code.masked(each, 0xFF), bits) for each in operands[2:])
    field = _shifted(code, "shl", _low_mask(code, length, bits), position)
    return code.either(code.both(b, code.opposite(field)), code.both(_shifted(code, "shl", a, position), field))


def _bit_mask(code: Code, row: Opcode, operands: Operands) -> Value:
    a, b = operands
    if "wrap" in row.parts:
        a, b = code.masked(a, 31), code.masked(b, 31)
    return _shifted(code, "shl", _low_mask(code, b, 32), a)


def _extend(code: Code, row: Opcode, operands: Operands) -> Value:
    a, size = operands
    size = code.masked(size, 31) if "wrap" in row.parts else code.intrinsic("llvm.umin", "i32", [size, code.constant(32, 32)])
    gap = code.binary("sub", code.constant(32, 32), size)
    signed = _is_signed(_kind(row))
    found = _shifted(code, "ashr" if signed else "lshr", _shifted(code, "shl", a, gap), gap)
    nothing = code.constant(0, 32)
    return code.select(code.compare("eq", size, nothing), nothing, found)


def _logic(code: Code, row: Opcode, operands: Operands) -> Value:
    if row.base == "not":
        return code.opposite(operands[0])
    if row.base == "cnot":
        zero = code.compare("eq", operands[0], code.constant(0, operands[0].bits))
        return code.resize(zero, operands[0].bits)
    return code.binary(row.base, *operands)


def _shift(code: Code, row: Opcode, operands: Operands) -> Value:
    a, count = operands
    operation = "shl" if row.base == "shl" else "ashr" if _is_signed(_kind(row)) else "lshr"
    count = code.intrinsic("llvm.umin", "i32", [count, code.constant(255, 32)])
    return _shifted(code, operation, a, code.resize(count, a.bits))


def _lop3(code: Code, row: Opcode, operands: Operands) -> Value | None:
    *words, table = operands
    number = int(table.name.partition("i32 ")[2].partition(",")[0] or 0) if table.name != "zeroinitializer" else 0
    total = code.constant(0, 32)
    for place in range(8):
        if number >> place & 1:
            term = None
            for at, word in enumerate(words):
                part = word if place >> (2 - at) & 1 else code.opposite(word)
                term = part if term is None else code.both(term, part)
            if term is not None:
                total = code.either(total, term)
    return total


def _funnel(code: Code, row: Opcode, operands: Operands) -> Value:
    low, high, count = operands
    count = code.masked(count, 31) if "wrap" in row.parts else code.intrinsic("llvm.umin", "i32", [count, code.constant(32, 32)])
    both, wide = joined(code, low, high), code.resize(count, 64)
    if row.parts[1] == "l":
        return code.resize(code.shift("lshr", code.binary("shl", both, wide), 32), 32)
    return code.resize(code.binary("lshr", both, wide), 32)


def _permute(code: Code, row: Opcode, operands: Operands) -> Value:
    a, b, selector = operands
    both, mode = joined(code, a, b), row.parts[2] if len(row.parts) > 2 else ""
    total = code.constant(0, 32)
    for place in range(4):
        chosen = _selected(code, selector, place, mode)
        count = code.resize(code.shift("shl", code.masked(chosen, 7), 3), 64)
        byte = code.masked(code.resize(code.binary("lshr", both, count), 32), 0xFF)
        if not mode:
            spread = code.masked(code.shift("ashr", code.shift("shl", byte, 24), 31), 0xFF)
            byte = code.select(code.has_bits(chosen, 8), spread, byte)
        total = code.either(total, code.shift("shl", byte, 8 * place))
    return total


def _selected(code: Code, selector: Value, place: int, mode: str) -> Value:
    if not mode:
        return code.masked(code.shift("lshr", selector, 4 * place), 15)
    n, at = code.masked(selector, 3), code.constant(place, 32)
    if mode == "f4e":
        return code.binary("add", n, at)
    if mode == "b4e":
        return code.binary("sub", n, at)
    if mode in ("ecl", "ecr"):
        return code.intrinsic("llvm.umax" if mode == "ecl" else "llvm.umin", "i32", [n, at])
    if mode == "rc16":
        return code.binary("add", code.shift("shl", code.masked(n, 1), 1), code.constant(place & 1, 32))
    return n


def _move(code: Code, row: Opcode, operands: Operands) -> Value:
    return operands[0]


# ------------------------------------------------------------------------------------------------------------------- carries


def _sum_carry(code: Code, row: Opcode, operands: Operands) -> Value | tuple[Value, ...]:
    a, b = operands[:2]
    bits, is_sum = a.bits, row.base.startswith("add")
    total = code.binary("add" if is_sum else "sub", a, b)
    carry = code.compare("ult", total, a) if is_sum else code.compare("ult", a, b)
    if len(operands) > 2:
        more = code.resize(operands[2], bits)
        again = code.binary("add" if is_sum else "sub", total, more)
        carry = code.either(carry, code.compare("ult", again, total) if is_sum else code.compare("ult", total, more))
        total = again
    return (total, carry) if len(row.results) == 2 else total


def _mad_carry(code: Code, row: Opcode, operands: Operands) -> Value | tuple[Value, ...]:
    kind = _kind(row)
    term = code.binary("mul", *operands[:2]) if "lo" in row.parts else _high(code, kind, *operands[:2])
    total = code.binary("add", term, operands[2])
    carry = code.compare("ult", total, term)
    if len(operands) > 3:
        again = code.binary("add", total, code.resize(operands[3], term.bits))
        carry = code.either(carry, code.compare("ult", again, total))
        total = again
    return (total, carry) if len(row.results) == 2 else total


# --------------------------------------------------------------------------------------------------- floating-point arithmetic

_FLOAT_OPERATION: Final = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}


def _mode(row: Opcode) -> str:
    return next((word for word in row.parts if word in ROUNDINGS), "rn")


def _sum(code: Code, row: Opcode, operands: Operands) -> Value | tuple[Value, ...] | None:
    if row.base in ("addc", "subc") or row.parts[1] == "cc":
        return _sum_carry(code, row, operands)
    return _integer_sum(code, row, operands) if _is_integer(_kind(row)) else _float_arithmetic(code, row, operands)


def _float_arithmetic(code: Code, row: Opcode, operands: Operands) -> Value | None:
    """add, sub, mul, fma and mad of every floating-point type."""
    kind = _kind(row)
    if row.parts[-2:-1] == ("f32",) and kind in ("f16", "bf16"):
        wide = [each if each.bits == 32 else decoded(code, each, kind) for each in operands]
        return _in_f32(code, row, wide)
    if kind == "f32x2":
        return _pairwise(code, row, operands, 32, lambda each: _in_f32(code, row, each))
    if kind in ("f16x2", "bf16x2"):
        return _pairwise(code, row, operands, 16, lambda each: _in_half(code, row, kind[:-2], each))
    if kind in ("f16", "bf16"):
        return _in_half(code, row, kind, operands)
    if kind == "f32":
        return _in_f32(code, row, operands)
    numbers = [code.as_float(each) for each in operands]
    if _mode(row) != "rn":
        operation = "fma" if row.base in ("fma", "mad") else _FLOAT_OPERATION[row.base]
        return one_nan(code, directed(code, operation, numbers, _mode(row)), "f64")
    return one_nan(code, _native(code, row.base, numbers), "f64")


def _native(code: Code, base: str, numbers: Operands) -> Value:
    if base in ("fma", "mad"):
        return code.intrinsic("llvm.fma", numbers[0].element, numbers)
    return code.binary(_FLOAT_OPERATION[base], *numbers)


def _in_f32(code: Code, row: Opcode, operands: Operands) -> Value:
    mode, ftz = _mode(row), "ftz" in row.parts
    spec = FORMATS["f32"]
    if ftz:
        operands = [flushed(code, each, spec) for each in operands]
    numbers = [code.as_float(each) for each in operands]
    if mode == "rn":
        found = one_nan(code, _native(code, row.base, numbers), "f32")
    else:
        total, error = _exact(code, row.base, [code.convert("fpext", each, "double") for each in numbers], mode)
        bits = rounded(code, total, error, mode)
        found = code.select(code.compare("uno", total, total), code.constant(NAN["f32"], 32), bits)
    if ftz:
        found = flushed(code, found, spec)
    return _clamped(code, found) if "sat" in row.parts else found


def _exact(code: Code, base: str, numbers: Operands, mode: str) -> tuple[Value, Value]:
    """An operation on f64 numbers that hold f32 or less, as an exact pair; the sign of a zero is that of the rounding."""
    if base == "mul":
        return code.binary("fmul", *numbers), code.number(0, 64)
    if base in ("fma", "mad"):
        a, b = code.binary("fmul", *numbers[:2]), numbers[2]
    else:
        a, b = numbers
    if base == "sub":
        b = code.value("double", f"fneg {b.typed}")
    total, error = two_sum(code, a, b)
    if mode == "rm":  # what cancels is -0 unless both are +0
        is_zero = code.compare("oeq", total, code.number(0, 64))
        signs = code.masked(code.either(code.as_bits(a), code.as_bits(b)), 1 << 63)
        total = code.select(is_zero, code.as_float(signs), total)
    return total, error


def _in_half(code: Code, row: Opcode, form: str, operands: Operands) -> Value:
    spec = FORMATS[form]
    if "ftz" in row.parts:
        operands = [flushed(code, each, spec) for each in operands]
    wide = [code.convert("fpext", code.as_float(decoded(code, each, form)), "double") for each in operands]
    total, error = _exact(code, row.base, wide, "rn")
    odd = to_odd(code, total, error)
    odd = code.select(code.compare("uno", total, total), code.constant(NAN["f32"], 32), odd)
    found = code.resize(encoded(code, odd, spec, "rn"), 16)
    if "ftz" in row.parts:
        found = flushed(code, found, spec)
    if "relu" in row.parts:
        negative = code.both(
            code.has_bits(found, 0x8000),
            code.opposite(code.compare("ugt", code.masked(found, 0x7FFF), code.constant(spec.exponent_mask, 16))),
        )
        found = code.select(negative, code.constant(0, 16), found)
    if "sat" in row.parts:
        found = _clamped_code(code, found, form)
    return found


def _clamped(code: Code, bits: Value) -> Value:
    """f32 codes clamped to [+0, 1], NaN to +0."""
    return _clamped_code(code, bits, "f32")


_ONE: Final = {"f32": 0x3F80_0000, "f16": 0x3C00, "f64": 0x3FF0 << 48, "bf16": 0x3F80}


def _clamped_code(code: Code, bits: Value, form: str) -> Value:
    spec, width_ = FORMATS[form], bits.bits
    negative = code.compare("slt", bits, code.constant(0, width_))
    nan = code.compare("ugt", code.masked(bits, ~spec.sign_mask), code.constant(spec.exponent_mask, width_))
    found = code.intrinsic("llvm.umin", f"i{width_}", [bits, code.constant(_ONE[form], width_)])
    return code.select(code.either(negative, nan), code.constant(0, width_), found)


def _float_division(code: Code, row: Opcode, operands: Operands) -> Value | None:
    """div, rcp and sqrt as IEEE 754 has them."""
    form, mode = _kind(row), _mode(row)
    if mode == "rn" and "rn" not in row.parts:
        return None
    spec, ftz = FORMATS[form], "ftz" in row.parts
    if ftz:
        operands = [flushed(code, each, spec) for each in operands]
    numbers = [code.as_float(each) for each in operands]
    if row.base == "rcp":
        numbers = [code.number(_ONE[form], width(form)), *numbers]
    if mode == "rn":
        found = code.intrinsic("llvm.sqrt", numbers[0].element, numbers) if row.base == "sqrt" else code.binary("fdiv", *numbers)
        bits = one_nan(code, found, form)
        return flushed(code, bits, spec) if ftz else bits
    if form == "f64":
        return one_nan(code, directed(code, "sqrt" if row.base == "sqrt" else "fdiv", numbers, mode), form)
    wide = [code.convert("fpext", each, "double") for each in numbers]
    if row.base == "sqrt":
        total = code.intrinsic("llvm.sqrt", "double", wide)
        error = code.intrinsic("llvm.fma", "double", [code.value("double", f"fneg {total.typed}"), total, wide[0]])
    else:
        total = code.binary("fdiv", *wide)
        rest = code.intrinsic("llvm.fma", "double", [code.value("double", f"fneg {total.typed}"), wide[1], wide[0]])
        error = code.binary("fmul", rest, code.intrinsic("llvm.copysign", "double", [code.number(_ONE["f64"], 64), wide[1]]))
    # Only the error's sign counts; that of what is no finite number is nothing.
    plain = code.compare("ord", code.binary("fsub", total, total), error)
    error = code.select(plain, error, code.number(0, 64))
    bits = rounded(code, total, error, mode)
    bits = code.select(code.compare("uno", total, total), code.constant(NAN["f32"], 32), bits)
    return flushed(code, bits, spec) if ftz else bits


def _float_limit(code: Code, row: Opcode, operands: Operands) -> Value:
    kind = _kind(row)
    if kind.endswith("x2"):
        return _pairwise(code, row, operands, 16, lambda each: _limit_of(code, row, kind[:-2], each))
    return _limit_of(code, row, kind, operands)


def _limit_of(code: Code, row: Opcode, form: str, operands: Operands) -> Value:
    spec = FORMATS[form]
    bits, top = width(form), spec.sign_mask
    sign = None
    if "xorsign" in row.parts:
        sign = code.masked(code.binary("xor", *operands), top)
        operands = [code.masked(each, ~top) for each in operands]
    if "ftz" in row.parts:
        operands = [flushed(code, each, spec) for each in operands]
    name = f"llvm.s{row.base}"

    def ordered(a: Value) -> Value:  # a key whose order as a signed integer is that of the numbers
        return code.binary("xor", a, code.shift("lshr", code.shift("ashr", a, bits - 1), 1))

    def nan(a: Value) -> Value:
        return code.compare("ugt", code.masked(a, ~top), code.constant(spec.exponent_mask, bits))

    found, found_nan = operands[0], nan(operands[0])
    for each in operands[1:]:
        each_nan = nan(each)
        least = ordered(code.intrinsic(name, f"i{bits}", [ordered(found), ordered(each)]))
        found = code.select(found_nan, each, code.select(each_nan, found, least))
        found_nan = (code.either if "NaN" in row.parts else code.both)(found_nan, each_nan)
        found = code.select(found_nan, code.constant(NAN[form], bits), found)
    if sign is not None:
        signed = code.either(found, sign)
        found = code.select(found_nan, found, signed)
    return found


def _copysign(code: Code, row: Opcode, operands: Operands) -> Value:
    a, b = operands
    top = FORMATS[_kind(row)].sign_mask
    return code.either(code.masked(b, ~top), code.masked(a, top))


def _test(code: Code, row: Opcode, operands: Operands) -> Value:
    spec, (a,) = FORMATS[_kind(row)], operands
    magnitude, top = code.masked(a, ~spec.sign_mask), code.constant(spec.exponent_mask, a.bits)
    normal = code.constant(1 << spec.fraction_bits, a.bits)
    test = row.parts[1]
    if test in ("finite", "infinite", "number", "notanumber"):
        return code.compare({"finite": "ult", "infinite": "eq", "number": "ule", "notanumber": "ugt"}[test], magnitude, top)
    if test == "normal":
        return code.both(code.compare("uge", magnitude, normal), code.compare("ult", magnitude, top))
    return code.both(code.compare("ult", magnitude, normal), code.compare("ne", magnitude, code.constant(0, a.bits)))


# ----------------------------------------------------------------------------------------------------- comparisons, selections

_FLOAT_CONDITION: Final = {
    "eq": "oeq", "ne": "one", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge", "equ": "ueq", "neu": "une", "ltu": "ult", "leu": "ule",
    "gtu": "ugt", "geu": "uge", "num": "ord", "nan": "uno",
}  # fmt: skip


def _truth(code: Code, name: str, kind: str, ftz: bool, operands: Operands) -> Value:
    if _is_integer(kind):
        name = UNSIGNED.get(name, name)
        prefix = "" if name in ("eq", "ne") else "s" if _is_signed(kind) else "u"
        return code.compare(prefix + name, *operands)
    if ftz:
        operands = [flushed(code, each, FORMATS[kind]) for each in operands]
    if kind in ("f16", "bf16"):
        operands = [decoded(code, each, kind) for each in operands]
    return code.compare(_FLOAT_CONDITION[name], *(code.as_float(each) for each in operands))


def _set_predicate(code: Code, row: Opcode, operands: Operands) -> tuple[Value, ...]:
    words, kind = row.parts, _kind(row)
    ftz = "ftz" in words
    if kind.endswith("x2"):
        split = [halves(code, each) for each in operands]
        return tuple(_truth(code, words[1], kind[:-2], ftz, [pair[place] for pair in split]) for place in range(2))
    truth = _truth(code, words[1], kind, ftz, operands[:2])
    inverse = code.opposite(truth)
    if len(operands) == 3:
        return code.binary(words[2], truth, operands[2]), code.binary(words[2], inverse, operands[2])
    return truth, inverse


def _set(code: Code, row: Opcode, operands: Operands) -> Value:
    words, kind = row.parts, _kind(row)
    result, ftz = words[-2], "ftz" in words
    if kind.endswith("x2"):
        one = {"f16x2": 0x3C00, "bf16x2": 0x3F80}.get(result, 0xFFFF)

        def half(each: Operands) -> Value:
            return code.select(_truth(code, words[1], kind[:-2], ftz, each), code.constant(one, 16), code.constant(0, 16))

        return _pairwise(code, row, operands, 16, half)
    one = 0x3F80_0000 if result == "f32" else 0xFFFF_FFFF
    return code.select(_truth(code, words[1], kind, ftz, operands), code.constant(one, 32), code.constant(0, 32))


def _select(code: Code, row: Opcode, operands: Operands) -> Value:
    a, b, c = operands
    if row.base == "slct":
        c = code.compare("sge", c, code.constant(0, 32))
    return code.select(c, a, b)


# ---------------------------------------------------------------------------------------------------------------- conversions

_WHOLE: Final = {"rni": "llvm.roundeven", "rzi": "llvm.trunc", "rmi": "llvm.floor", "rpi": "llvm.ceil"}
_SMALL: Final = {"e4m3x2": 8, "e5m2x2": 8, "e2m3x2": 8, "e3m2x2": 8, "e2m1x2": 4}


def _convert(code: Code, row: Opcode, operands: Operands) -> Value | None:
    words = row.parts
    to, of = words[-2:]
    if to in _SMALL:
        return _to_small(code, row, operands)
    if of in _SMALL:
        return _from_small(code, row, operands[0])
    if "ue8m0x2" in (to, of):
        return _scales(code, row, operands)
    if to in ("f16x2", "bf16x2"):
        pair = [_between(code, row, to[:-2], "f32", each) for each in operands]
        return joined(code, pair[1], pair[0])
    (a,) = operands
    to_integer, of_integer = (_is_integer(kind) for kind in (to, of))
    if to_integer and of_integer:
        return _resized(code, to, of, a, "sat" in words)
    if to_integer:
        return _to_integer(code, row, to, of, a)
    if of_integer:
        return _from_integer(code, row, to, of, a)
    if to == of and (any(word in _WHOLE for word in words)):
        return _whole(code, row, to, a)
    return _between(code, row, to, of, a)


def _resized(code: Code, to: str, of: str, a: Value, sat: bool) -> Value:
    if sat:
        low, high = bounds(to)
        of_low, of_high = bounds(of)
        prefix = "s" if _is_signed(of) else "u"
        if of_low < low:
            a = code.intrinsic("llvm.smax", a.element, [a, code.constant(low, a.bits)])
        if of_high > high:
            a = code.intrinsic(f"llvm.{prefix}min", a.element, [a, code.constant(high, a.bits)])
    return code.resize(a, width(to), signed=_is_signed(of))


def _as_double(code: Code, form: str, a: Value, ftz: bool) -> Value:
    if form == "f64":
        return code.as_float(a)
    if form in ("f16", "bf16"):
        a = decoded(code, a, form)
    elif ftz:
        a = flushed(code, a, FORMATS["f32"])
    return code.convert("fpext", code.as_float(a), "double")


def _power(code: Code, exponent: int, *, negative: bool = False) -> Value:
    return code.number((exponent + 1023) << 52 | int(negative) << 63, 64)


def _to_integer(code: Code, row: Opcode, to: str, of: str, a: Value) -> Value:
    number = _as_double(code, of, a, "ftz" in row.parts)
    rounding = next(_WHOLE[word] for word in row.parts if word in _WHOLE)
    whole = code.intrinsic(rounding, "double", [number])
    bits, signed = width(to), _is_signed(to)
    low, high = bounds(to)
    nan = code.compare("uno", number, number)
    top = _power(code, bits - 1 if signed else bits)
    above = code.compare("oge", whole, top)
    below = code.compare("olt", whole, _power(code, bits - 1, negative=True)) if signed else code.compare("olt", whole, code.number(0, 64))
    safe = code.select(code.either(nan, code.either(above, below)), code.number(0, 64), whole)
    found = code.convert("fptosi" if signed else "fptoui", safe, f"i{bits}")
    found = code.select(above, code.constant(high, bits), code.select(below, code.constant(low, bits), found))
    return code.select(nan, code.constant(1 << 63 if bits == 64 else 0, bits), found)


def _from_integer(code: Code, row: Opcode, to: str, of: str, a: Value) -> Value | None:
    mode, signed, operation = _mode(row), _is_signed(of), "sitofp" if _is_signed(of) else "uitofp"
    form = FORMATS[to]
    if to == "f64":
        if mode != "rn" and a.bits == 64:
            number = directed(code, "fadd", _integer_halves(code, a, signed), mode)
        else:
            number = code.convert(operation, a, "double")
        bits = code.as_bits(number)
    elif to == "f32" and mode == "rn":
        bits = code.as_bits(code.convert(operation, a, "float"))
    else:
        total, error = _integer_pair(code, a, signed)
        bits = rounded(code, total, error, mode) if to == "f32" else code.resize(encoded(code, to_odd(code, total, error), form, mode), 16)
    return _clamped_code(code, bits, to) if "sat" in row.parts else bits


def _integer_pair(code: Code, a: Value, signed: bool) -> tuple[Value, Value]:
    """An integer as an exact pair of f64."""
    operation = "sitofp" if signed else "uitofp"
    if a.bits < 64:
        return code.convert(operation, a, "double"), code.number(0, 64)
    return two_sum(code, *_integer_halves(code, a, signed))


def _integer_halves(code: Code, a: Value, signed: bool) -> tuple[Value, Value]:
    """Two f64 whose sum is an integer of 64 bits."""
    high = code.convert("sitofp" if signed else "uitofp", code.shift("ashr" if signed else "lshr", a, 32), "double")
    low = code.convert("uitofp", code.masked(a, 0xFFFF_FFFF), "double")
    return code.binary("fmul", high, _power(code, 32)), low


def _whole(code: Code, row: Opcode, form: str, a: Value) -> Value:
    number = _as_double(code, form, a, "ftz" in row.parts)
    rounding = next(_WHOLE[word] for word in row.parts if word in _WHOLE)
    whole = code.intrinsic(rounding, "double", [number])
    if form == "f64":
        bits = one_nan(code, whole, "f64")
    else:
        narrow = one_nan(code, code.convert("fptrunc", whole, "float"), "f32")
        bits = narrow if form == "f32" else code.resize(encoded(code, narrow, FORMATS[form], "rn"), 16)
    return _clamped_code(code, bits, form) if "sat" in row.parts else bits


def _between(code: Code, row: Opcode, to: str, of: str, a: Value) -> Value:
    """From one floating-point format to another."""
    words, spec = row.parts, FORMATS[to]
    if row.name == "cvt.bf16.bf16":
        return a
    mode = "rna" if "rna" in words else _mode(row)
    ftz, finite = "ftz" in words, "satfinite" in words
    if ftz and of == "f32":
        a = flushed(code, a, FORMATS["f32"])
    if of == "f64":
        if to == "f64":
            bits = one_nan(code, code.as_float(a), "f64")
        else:
            number = code.as_float(a)
            nothing = code.number(0, 64)
            if to == "f32" and mode == "rn":
                bits = code.as_bits(code.convert("fptrunc", number, "float"))
            elif to == "f32":
                bits = rounded(code, number, nothing, mode)
            else:
                bits = to_odd(code, number, nothing)
            bits = code.select(code.compare("uno", number, number), code.constant(NAN["f32"], 32), bits)
            if to != "f32":
                bits = code.resize(encoded(code, bits, spec, mode), 16)
    else:
        wide = decoded(code, a, of) if of in ("f16", "bf16") else a
        if to == "f64":
            bits = one_nan(code, code.convert("fpext", code.as_float(wide), "double"), "f64")
        elif to == "f32":
            bits = code.select(is_nan(code, wide), code.constant(NAN["f32"], 32), wide)
        else:
            bits = encoded(code, wide, spec, mode, saturating=finite)
            bits = bits if to == "tf32" else code.resize(bits, 16)
    if ftz and to == "f32":
        bits = flushed(code, bits, spec)
    if "relu" in words:
        magnitude_nan = code.compare("ugt", code.masked(a, ~FORMATS[of].sign_mask), code.constant(FORMATS[of].exponent_mask, a.bits))
        negative = code.both(code.compare("slt", a, code.constant(0, a.bits)), code.opposite(magnitude_nan))
        bits = code.select(negative, code.constant(0, bits.bits), bits)
    return _clamped_code(code, bits, to) if "sat" in words else bits


def _small_code(code: Code, row: Opcode, form: str, bits: Value) -> Value:
    found = encoded(code, bits, FORMATS[form], "rn", saturating=True)
    nan = is_nan(code, bits)
    if form in ("e5m2", "e2m3", "e3m2", "e2m1"):
        found = code.select(nan, code.constant({"e5m2": 0x7F, "e2m3": 0x1F, "e3m2": 0x1F, "e2m1": 0x7}[form], 32), found)
    if "relu" in row.parts:
        negative = code.both(code.compare("slt", bits, code.constant(0, 32)), code.opposite(nan))
        found = code.select(negative, code.constant(0, 32), found)
    return found


def _to_small(code: Code, row: Opcode, operands: Operands) -> Value:
    packed, of = row.parts[-2:]
    form, bits = packed[:-2], _SMALL[packed]
    if of == "f32":
        high, low = operands
    else:
        low, high = (decoded(code, each, of[:-2]) for each in halves(code, operands[0]))
    both = code.either(code.shift("shl", _small_code(code, row, form, high), bits), _small_code(code, row, form, low))
    return code.resize(both, 2 * bits)


def _from_small(code: Code, row: Opcode, a: Value) -> Value:
    wide, packed = row.parts[-2:]
    form, bits, half = packed[:-2], _SMALL[packed], wide[:-2]
    found = []
    for place in range(2):
        one = decoded(code, code.masked(code.shift("lshr", code.resize(a, 32), bits * place), (1 << bits) - 1), form)
        if "relu" in row.parts:
            negative = code.both(code.compare("slt", one, code.constant(0, 32)), code.opposite(is_nan(code, one)))
            one = code.select(negative, code.constant(0, 32), one)
        found.append(code.resize(encoded(code, one, FORMATS[half], "rn"), 16))
    return joined(code, *found)


def _scales(code: Code, row: Opcode, operands: Operands) -> Value:
    of = row.parts[-1]
    if of == "ue8m0x2":
        pair = []
        for place in range(2):
            byte = code.masked(code.shift("lshr", code.resize(operands[0], 32), 8 * place), 0xFF)
            half = code.select(code.compare("eq", byte, code.constant(0, 32)), code.constant(0x40, 32), code.shift("shl", byte, 7))
            half = code.select(code.compare("eq", byte, code.constant(0xFF, 32)), code.constant(0x7FFF, 32), half)
            pair.append(code.resize(half, 16))
        return joined(code, *pair)
    mode, finite = _mode(row), "satfinite" in row.parts
    if of == "bf16x2":
        low, high = (code.shift("shl", code.resize(each, 32), 16) for each in halves(code, operands[0]))
    else:
        high, low = operands
    bytes_ = [code.resize(_scale(code, each, mode, finite), 8) for each in (low, high)]
    return joined(code, *bytes_)


def _scale(code: Code, bits: Value, mode: str, finite: bool) -> Value:
    magnitude = code.masked(bits, 0x7FFF_FFFF)
    # A subnormal's own exponent lies below -127, which is the least; above 2^-127 it is -126 where rounded up.
    field = code.shift("lshr", magnitude, 23)
    if mode == "rp":
        more = code.either(
            code.both(code.has_bits(magnitude, 0x7F_FFFF), code.compare("ne", field, code.constant(0, 32))),
            code.compare(
                "ugt",
                code.select(code.compare("eq", field, code.constant(0, 32)), magnitude, code.constant(0, 32)),
                code.constant(0x40_0000, 32),
            ),
        )
        field = code.binary("add", field, code.convert("zext", more, "i32"))
    top = 0xFE if finite or mode == "rz" else 0xFF
    found = code.select(code.compare("uge", field, code.constant(255, 32)), code.constant(top, 32), field)
    return code.select(code.compare("ugt", magnitude, code.constant(0x7F80_0000, 32)), code.constant(0xFF, 32), found)


_EMITTERS: Final[dict[str, Emitter]] = {
    "add": _sum, "sub": _sum, "addc": _sum, "subc": _sum, "mul": _product, "mad": _mad, "madc": _mad, "fma": _float_arithmetic,
    "mul24": _mul24, "sad": _sad, "dp4a": _dot, "dp2a": _dot, "div": _quotient, "rem": _quotient, "rcp": _float_division,
    "sqrt": _float_division, "min": _limit, "max": _limit, "abs": _absolute, "neg": _absolute, "popc": _count, "clz": _count,
    "brev": _count,
    "bfind": _find, "bfe": _extract, "bfi": _insert, "bmsk": _bit_mask, "szext": _extend, "and": _logic, "or": _logic, "xor": _logic,
    "not": _logic, "cnot": _logic, "shl": _shift, "shr": _shift, "lop3": _lop3, "shf": _funnel, "prmt": _permute, "mov": _move,
    "copysign": _copysign, "testp": _test, "setp": _set_predicate, "set": _set, "selp": _select, "slct": _select, "cvt": _convert,
}  # fmt: skip
"""By base opcode."""
