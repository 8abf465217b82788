"""The special function unit on vectors: isa.opcodes.functions again, in 64-bit integers of 32 lanes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from mmabits.emulator.machine.numbers import decoded, encoded, flushed, halves, joined, one_nan, rounded
from mmabits.emulator.machine.vectors import LANES, Code, Value
from mmabits.isa import FORMATS
from mmabits.isa.opcodes import Opcode
from mmabits.isa.opcodes.functions import INFINITY, NAN, ONE, QUADRATICS, SIGN, TANH_PASSED, TANH_SLOPE, TURN, tables

_F32: Final = FORMATS["f32"]
_MAGNITUDE: Final = 0x7FFF_FFFF


def _looked_up(code: Code, name: str, index: Value) -> list[Value]:
    """A row of a table, by a vector of 64-bit indices."""
    rows, found = tables()[name], []
    for column in range(3):
        table = f"@sfu_{name}_{column}"
        numbers = ", ".join(f"i64 {row[column]}" for row in rows)
        code.globals[table] = f"{table} = private constant [{len(rows)} x i64] [{numbers}]"
        places = code.named(f"getelementptr i64, ptr {table}, {index.typed}")
        function = f"@llvm.masked.gather.v{LANES}i64.v{LANES}p0"
        code.declared.add(f"declare <{LANES} x i64> {function}(<{LANES} x ptr>, i32, <{LANES} x i1>, <{LANES} x i64>)")
        every = code.constant(1, 1)
        found.append(
            code.value(
                "i64", f"call <{LANES} x i64> {function}(<{LANES} x ptr> {places}, i32 8, {every.typed}, <{LANES} x i64> zeroinitializer)"
            )
        )
    return found


def _square(code: Code, x: Value) -> Value:
    """The truncated square of numbers of 17 bits, 64 bits wide."""
    narrow = code.resize(x, 32)
    total = code.constant(0, 32)
    for place in range(17):
        taken = code.shift("ashr", code.shift("shl", narrow, 31 - place), 31)
        total = code.binary("add", total, code.both(taken, code.shift("lshr", narrow, 18 - place)))
    return code.resize(code.shift("lshr", total, 1), 64)


def _interpolated(code: Code, name: str, place: Value) -> Value:
    """isa.opcodes.functions.Quadratic, 64 bits wide."""
    form = QUADRATICS[name]
    a, b, c = _looked_up(code, form.table, code.shift("lshr", place, form.low))
    r = code.masked(place, (1 << form.low) - 1)
    squared = code.shift("shl", code.binary("mul", c, _square(code, code.shift("shl", r, form.s))), form.c)
    total = code.binary("add", code.shift("shl", a, form.a), code.binary("mul", b, r))
    total = code.binary("add", total, squared)
    if form.constant:
        total = code.binary("add", total, code.constant(form.constant, 64))
    return code.shift("ashr", total, form.cut)


def _parts(code: Code, bits: Value) -> tuple[Value, Value, Value, Value]:
    """Sign in place, exponent field, fraction (64 bits each but the sign), and whether it is NaN."""
    wide = code.resize(bits, 64)
    field = code.masked(code.shift("lshr", wide, 23), 0xFF)
    nan = code.compare("ugt", code.masked(bits, _MAGNITUDE), code.constant(INFINITY, 32))
    return code.masked(bits, SIGN), field, code.masked(wide, 0x7F_FFFF), nan


def _built(code: Code, exponent: Value, m: Value) -> Value:
    """The f32 code of m 2^-23 at an exponent field, m of 2^24 being the next power; 0 below the normal numbers. 32 bits."""
    carry = code.shift("ashr", m, 24)
    exponent = code.binary("add", exponent, carry)
    low = code.select(code.compare("ne", carry, code.constant(0, 64)), code.constant(0, 64), code.masked(m, 0x7F_FFFF))
    found = code.either(code.shift("shl", exponent, 23), low)
    found = code.select(code.compare("sgt", exponent, code.constant(0, 64)), found, code.constant(0, 64))
    found = code.select(code.compare("sge", exponent, code.constant(255, 64)), code.constant(INFINITY, 64), found)
    return code.resize(found, 32)


def _normal(code: Code, number: Value, fraction: int) -> Value:
    """The f32 code of a positive number with as many fraction bits, the rest cut off. 32 bits."""
    zeros = code.intrinsic("llvm.ctlz", "i64", [number], flags="i1 false")
    cut = code.shift("lshr", code.binary("shl", number, code.masked(zeros, 63)), 40)
    exponent = code.shift("shl", code.binary("sub", code.constant(63 + 127 - fraction, 64), zeros), 23)
    return code.resize(code.binary("add", exponent, code.binary("sub", cut, code.constant(1 << 23, 64))), 32)


def _chosen(code: Code, condition: Value, number: int | Value, otherwise: Value) -> Value:
    return code.select(condition, number if isinstance(number, Value) else code.constant(number, 32), otherwise)


def _equal(code: Code, a: Value, number: int) -> Value:
    return code.compare("eq", a, code.constant(number, a.bits))


def reciprocal(code: Code, bits: Value) -> Value:
    """MUFU.RCP."""
    sign, field, fraction, nan = _parts(code, bits)
    m = _interpolated(code, "rcp", fraction)
    found = code.either(_built(code, code.binary("sub", code.constant(253, 64), field), m), sign)
    found = _chosen(code, _equal(code, field, 0xFF), sign, found)
    found = _chosen(code, _equal(code, field, 0), code.either(sign, code.constant(INFINITY, 32)), found)
    return _chosen(code, nan, NAN, found)


def reciprocal_root(code: Code, bits: Value) -> Value:
    """MUFU.RSQ."""
    sign, field, fraction, nan = _parts(code, bits)
    u = code.binary("sub", field, code.constant(127, 64))
    g = code.either(fraction, code.shift("shl", code.masked(u, 1), 23))
    half = code.shift("ashr", u, 1)
    m = _interpolated(code, "rsqrt", g)
    exponent = code.shift("shl", code.binary("sub", code.constant(126, 64), half), 23)
    found = code.binary("add", exponent, code.binary("sub", m, code.constant(1 << 23, 64)))
    exact = code.shift("shl", code.binary("sub", code.constant(127, 64), half), 23)
    found = code.resize(code.select(_equal(code, g, 0), exact, found), 32)
    found = _chosen(code, _equal(code, field, 0xFF), 0, found)
    found = _chosen(code, code.compare("ne", sign, code.constant(0, 32)), NAN, found)
    found = _chosen(code, _equal(code, field, 0), code.either(sign, code.constant(INFINITY, 32)), found)
    return _chosen(code, nan, NAN, found)


def exponential(code: Code, bits: Value) -> Value:
    """MUFU.EX2."""
    sign, field, fraction, nan = _parts(code, bits)
    is_negative = code.compare("ne", sign, code.constant(0, 32))
    zero = _equal(code, field, 0)
    significand = code.select(zero, code.constant(0, 64), code.either(fraction, code.constant(1 << 23, 64)))
    right = code.intrinsic("llvm.smin", "i64", [code.binary("sub", code.constant(127, 64), field), code.constant(63, 64)])
    right = code.intrinsic("llvm.smax", "i64", [right, code.constant(0, 64)])
    left = code.intrinsic("llvm.smax", "i64", [code.binary("sub", field, code.constant(127, 64)), code.constant(0, 64)])
    left = code.intrinsic("llvm.smin", "i64", [left, code.constant(8, 64)])
    fixed = code.binary("lshr", code.binary("shl", significand, left), right)
    whole, rest = code.shift("lshr", fixed, 23), code.masked(fixed, 0x7F_FFFF)
    none = _equal(code, rest, 0)
    minus = code.binary("sub", code.constant(0, 64), whole)
    minus = code.select(none, minus, code.binary("sub", minus, code.constant(1, 64)))
    complement = code.select(none, rest, code.binary("sub", code.constant(0x7F_FFFF, 64), rest))
    whole, rest = code.select(is_negative, minus, whole), code.select(is_negative, complement, rest)
    m = _interpolated(code, "ex2", rest)
    found = _built(code, code.binary("add", whole, code.constant(127, 64)), m)
    far = code.compare("uge", field, code.constant(134, 64))
    found = _chosen(code, far, _chosen(code, is_negative, 0, code.constant(INFINITY, 32)), found)
    return _chosen(code, nan, NAN, found)


def logarithm(code: Code, bits: Value) -> Value:
    """MUFU.LG2."""
    sign, field, fraction, nan = _parts(code, bits)
    s = _interpolated(code, "lg2", fraction)
    none = _equal(code, fraction, 0)
    s = code.select(none, code.constant(0, 64), s)
    total = code.binary("add", s, code.shift("shl", code.binary("sub", field, code.constant(127, 64)), 36))
    is_negative = code.compare("slt", total, code.constant(0, 64))
    magnitude = code.select(is_negative, code.opposite(total), total)
    negated = code.binary("sub", code.constant(0, 64), total)
    magnitude = code.select(none, code.select(is_negative, negated, total), magnitude)
    found = _normal(code, magnitude, 36)
    found = code.either(found, code.shift("shl", code.convert("zext", is_negative, "i32"), 31))
    found = _chosen(code, _equal(code, magnitude, 0), 0, found)
    found = _chosen(code, _equal(code, field, 0xFF), INFINITY, found)
    found = _chosen(code, code.compare("ne", sign, code.constant(0, 32)), NAN, found)
    found = _chosen(code, _equal(code, field, 0), SIGN | INFINITY, found)
    return _chosen(code, nan, NAN, found)


def _turned(code: Code, bits: Value, quarter: int) -> Value:
    """MUFU.SIN or MUFU.COS of turns."""
    sign, field, fraction, _ = _parts(code, bits)
    significand = code.select(_equal(code, field, 0), code.constant(0, 64), code.either(fraction, code.constant(1 << 23, 64)))
    nothing, shift = code.constant(0, 64), code.binary("sub", field, code.constant(125, 64))
    left = code.intrinsic("llvm.smin", "i64", [code.intrinsic("llvm.smax", "i64", [shift, nothing]), code.constant(25, 64)])
    right = code.intrinsic("llvm.smax", "i64", [code.binary("sub", nothing, shift), nothing])
    right = code.intrinsic("llvm.smin", "i64", [right, code.constant(63, 64)])
    fixed = code.masked(code.binary("lshr", code.binary("shl", significand, left), right), 0x1FF_FFFF)
    quadrant = code.binary("add", code.shift("lshr", fixed, 23), code.constant(quarter, 64))
    odd = code.has_bits(quadrant, 1)
    rest = code.masked(fixed, 0x7F_FFFF)
    rest = code.select(odd, code.binary("sub", code.constant(0x7F_FFFF, 64), rest), rest)
    minus = code.masked(code.shift("shl", code.resize(quadrant, 32), 30), SIGN)
    if not quarter:
        minus = code.binary("xor", minus, sign)
    total = _interpolated(code, "sin", rest)
    found = code.select(_equal(code, total, 0), code.constant(0, 32), _normal(code, total, 37))
    return _chosen(code, _equal(code, field, 0xFF), NAN, code.either(found, minus))


# ------------------------------------------------------------------------------------------------------------ around the unit


def _times(code: Code, a: Value, b: Value, *, ftz: bool = False) -> Value:
    if ftz:
        a, b = flushed(code, a, _F32), flushed(code, b, _F32)
    found = one_nan(code, code.binary("fmul", code.as_float(a), code.as_float(b)), "f32")
    return flushed(code, found, _F32) if ftz else found


def _scaled(code: Code, condition: Value, a: Value, factor: int, *, ftz: bool = False) -> Value:
    return code.select(condition, _times(code, a, code.constant(factor, 32), ftz=ftz), a)


def _is_small(code: Code, a: Value) -> Value:
    return code.compare("ult", code.masked(a, _MAGNITUDE), code.constant(0x0080_0000, 32))


def _is_large(code: Code, a: Value) -> Value:
    magnitude = code.masked(a, _MAGNITUDE)
    return code.both(
        code.compare("ugt", magnitude, code.constant(0x7E80_0000, 32)), code.compare("ule", magnitude, code.constant(INFINITY, 32))
    )


def _exponential(code: Code, a: Value) -> Value:
    low = code.compare("olt", code.as_float(a), code.number(0xC2FC_0000, 32))
    found = exponential(code, _scaled(code, low, a, 0x3F00_0000))
    return code.select(low, _times(code, found, found), found)


def _reciprocal(code: Code, a: Value) -> Value:
    factor = _chosen(code, _is_small(code, a), 0x4B80_0000, code.constant(0x3F80_0000, 32))
    factor = _chosen(code, _is_large(code, a), 0x3E80_0000, factor)
    return _times(code, factor, reciprocal(code, _times(code, factor, a)))


def _root(code: Code, a: Value) -> Value:
    small = _is_small(code, a)
    return _scaled(code, small, reciprocal_root(code, _scaled(code, small, a, 0x4B80_0000)), 0x4580_0000)


def _logarithm(code: Code, a: Value) -> Value:
    small = _is_small(code, a)
    found = logarithm(code, _scaled(code, small, a, 0x4B80_0000))
    less = one_nan(code, code.binary("fadd", code.as_float(found), code.number(0xC1C0_0000, 32)), "f32")
    return code.select(small, less, found)


def _quotient(code: Code, a: Value, b: Value, *, full: bool, ftz: bool) -> Value:
    if full:
        large = _is_large(code, b)
        a, b = _scaled(code, large, a, 0x3E80_0000, ftz=ftz), _scaled(code, large, b, 0x3E80_0000, ftz=ftz)
    if not ftz:
        small = _is_small(code, b)
        a, b = _scaled(code, small, a, 0x4B80_0000), _scaled(code, small, b, 0x4B80_0000)
    return _times(code, reciprocal(code, b), a, ftz=ftz)


def _root_near(code: Code, a: Value) -> Value:
    return one_nan(code, code.intrinsic("llvm.sqrt", "float", [code.as_float(a)]), "f32")


def _in_turns(code: Code, a: Value) -> Value:
    """Radians times 1 / (2 pi), toward zero."""
    product = code.binary("fmul", code.convert("fpext", code.as_float(a), "double"), code.convert("fpext", code.number(TURN, 32), "double"))
    bits = rounded(code, product, code.number(0, 64), "rz")
    return code.select(code.compare("uno", product, product), code.constant(NAN, 32), bits)


def _sine(code: Code, a: Value) -> Value:
    return _turned(code, _in_turns(code, a), 0)


def _cosine(code: Code, a: Value) -> Value:
    return _turned(code, _in_turns(code, a), 1)


def hyperbolic_tangent(code: Code, a: Value) -> Value:
    """What stands in for MUFU.TANH."""
    magnitude = code.masked(a, _MAGNITUDE)
    e = exponential(code, _times(code, magnitude, code.constant(TANH_SLOPE, 32)))
    total = one_nan(code, code.binary("fadd", code.as_float(e), code.number(ONE, 32)), "f32")
    r = reciprocal(code, total)
    less = code.as_float(code.either(r, code.constant(SIGN, 32)))
    found = code.as_bits(code.intrinsic("llvm.fma", "float", [code.as_float(e), less, code.as_float(r)]))
    found = code.either(found, code.masked(a, SIGN))
    found = code.select(code.compare("ult", magnitude, code.constant(TANH_PASSED, 32)), a, found)
    return _chosen(code, code.compare("ugt", magnitude, code.constant(INFINITY, 32)), NAN, found)


def _narrowed(code: Code, a: Value, function: Function, form: str, *, ftz: bool) -> Value:
    """A function of f32 on 16 bits."""
    spec = FORMATS[form]
    found = function(code, decoded(code, flushed(code, a, spec) if ftz else a, form))
    found = code.resize(encoded(code, found, spec, "rn"), 16)
    return flushed(code, found, spec) if ftz else found


Function = Callable[[Code, Value], Value]
_UNIT: Final[dict[str, Function]] = {
    "ex2": exponential, "rcp": reciprocal, "rsqrt": reciprocal_root, "lg2": logarithm, "sin": _sine, "cos": _cosine,
    "tanh": hyperbolic_tangent,
}  # fmt: skip
_AROUND: Final[dict[str, Function]] = {
    **_UNIT, "ex2": _exponential, "rcp": _reciprocal, "rsqrt": _root, "lg2": _logarithm, "sqrt": _root_near,
}  # fmt: skip


def approximated(code: Code, row: Opcode, operands: Sequence[Value]) -> Value | None:
    """An opcode with `.approx` or `.full`; None for what is not modelled."""
    kind, ftz = row.parts[-1], "ftz" in row.parts
    if row.base == "div":
        return _quotient(code, *operands, full="full" in row.parts, ftz=ftz)
    if row.base == "sqrt" and ftz:
        return _root_near(code, flushed(code, operands[0], _F32))
    form = kind.removesuffix("x2")
    function = (_UNIT if ftz or form != "f32" else _AROUND).get(row.base)
    if function is None or form not in ("f32", "f16", "bf16"):
        return None
    if form == "f32":
        return function(code, operands[0])
    if kind == form:
        return _narrowed(code, operands[0], function, form, ftz=ftz)
    return joined(code, *(_narrowed(code, each, function, form, ftz=ftz) for each in halves(code, operands[0])))
