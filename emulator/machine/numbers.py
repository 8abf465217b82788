"""Roundings that processors have no instruction for, on vectors: exact pairs of f64, f32 rounded to odd, and every small format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mmabits.emulator.machine.vectors import LANES, Code, Value, scalar_type
from mmabits.isa import FORMATS, FormatSpec, NonFinite
from mmabits.isa.opcodes.exact import NAN

SIGN, EXPONENT, MAGNITUDE = 0x8000_0000, 0x7F80_0000, 0x7FFF_FFFF


def is_nan(code: Code, bits: Value) -> Value:
    """Whether f32 or f64 codes are NaN."""
    number = code.as_float(bits)
    return code.compare("uno", number, number)


def halves(code: Code, a: Value, bits: int = 16) -> tuple[Value, Value]:
    """The low and the high half of a word."""
    return code.resize(a, bits), code.resize(code.shift("lshr", a, bits), bits)


def joined(code: Code, low: Value, high: Value) -> Value:
    """A word of two halves."""
    wide = 2 * low.bits
    return code.either(code.resize(low, wide), code.shift("shl", code.resize(high, wide), low.bits))


def flushed(code: Code, bits: Value, spec: FormatSpec) -> Value:
    """Subnormals of a format made zeros of their sign."""
    small = code.compare("eq", code.masked(bits, spec.exponent_mask), code.constant(0, bits.bits))
    return code.select(small, code.masked(bits, spec.sign_mask), bits)


def one_nan(code: Code, number: Value, form: str) -> Value:
    """Codes of f32 or f64 numbers, every NaN the one of results."""
    return code.select(code.compare("uno", number, number), code.constant(NAN[form], number.bits), code.as_bits(number))


def two_sum(code: Code, a: Value, b: Value) -> tuple[Value, Value]:
    """The f64 sum of two f64 and its exact error."""
    total = code.binary("fadd", a, b)
    b_part = code.binary("fsub", total, a)
    a_part = code.binary("fsub", total, b_part)
    error = code.binary("fadd", code.binary("fsub", a, a_part), code.binary("fsub", b, b_part))
    finite = code.compare("ord", code.binary("fsub", total, total), error)  # infinite sums have errors that are no numbers
    return total, code.select(finite, error, code.number(0, 64))


def toward_zero(code: Code, total: Value, error: Value) -> tuple[Value, Value]:
    """f32 codes of total + error cut toward zero, and whether that was inexact."""
    nearest = code.convert("fptrunc", total, "float")
    back = code.convert("fpext", nearest, "double")
    gap = code.binary("fsub", back, total)  # exact: both lie within half a unit of f32
    nothing = code.number(0, 64)
    infinite = code.compare("uno", gap, nothing)
    gap = code.select(infinite, nothing, gap)
    # The sign of what the f32 number exceeds the exact one by: of the gap, or where there is none, of -error.
    none = code.compare("oeq", gap, nothing)
    excess = code.select(none, code.value("double", f"fneg {error.typed}"), gap)
    overflowed = code.both(
        code.compare("oeq", code.intrinsic("llvm.fabs", "float", [nearest]), code.number(EXPONENT, 32)),
        code.compare("one", code.intrinsic("llvm.fabs", "double", [total]), code.number(0x7FF << 52, 64)),
    )
    inexact = code.either(code.compare("one", excess, nothing), overflowed)
    bits = code.as_bits(nearest)
    is_negative = code.compare("slt", code.as_bits(total), code.constant(0, 64))
    above = code.compare("ogt", excess, nothing)
    below = code.compare("olt", excess, nothing)
    too_large = code.either(code.select(is_negative, below, above), overflowed)
    step = code.convert("sext", too_large, "i32")
    return code.binary("add", bits, step), inexact


_MODES: Final = {"rz": 0, "rp": 2, "rm": 3}
"""As llvm.set.rounding has them; 1 is to nearest."""


def directed(code: Code, operation: str, numbers: Sequence[Value], mode: str) -> Value:
    """An operation of LLVM on f64 (`fadd`, `fma`, `sqrt`, ...) by the processor in a directed rounding: a function of its own.

    LLVM takes rounding to nearest for granted everywhere but in what is `constrained`.
    """
    name, whole = f"@directed_{operation}_{mode}", scalar_type("double")
    intrinsic = f"@llvm.experimental.constrained.{operation}.v{LANES}f64"
    given = ", ".join(f"{whole} %given{place}" for place in range(len(numbers)))
    metadata = 'metadata !"round.dynamic", metadata !"fpexcept.strict"'
    code.declared.add(f"declare {whole} {intrinsic}({', '.join([whole] * len(numbers))}, metadata, metadata)")
    code.declared.add("declare void @llvm.set.rounding(i32)")
    code.globals[name] = f"""define internal {whole} {name}({given}) noinline strictfp {{
  call void @llvm.set.rounding(i32 {_MODES[mode]}) strictfp
  %found = call {whole} {intrinsic}({given}, {metadata}) strictfp
  call void @llvm.set.rounding(i32 1) strictfp
  ret {whole} %found
}}"""
    return code.value("double", f"call {whole} {name}({', '.join(each.typed for each in numbers)})")


def to_odd(code: Code, total: Value, error: Value) -> Value:
    """f32 codes of total + error whose last bit says whether something was cut off: rounded again, they round as the exact number."""
    bits, inexact = toward_zero(code, total, error)
    return code.either(bits, code.convert("zext", inexact, "i32"))


def rounded(code: Code, total: Value, error: Value, mode: str) -> Value:
    """f32 codes of total + error in a directed rounding: `rz`, `rm` or `rp`."""
    bits, inexact = toward_zero(code, total, error)
    if mode == "rz":
        return bits
    is_negative = code.compare("slt", bits, code.constant(0, 32))
    away = code.both(inexact, is_negative if mode == "rm" else code.opposite(is_negative))
    return code.binary("add", bits, code.convert("zext", away, "i32"))


def encoded(code: Code, bits: Value, spec: FormatSpec, mode: str, *, saturating: bool = False) -> Value:
    """f32 codes rounded to a smaller format, as codes in 32 bits.

    Args:
        code: where to write.
        bits: f32 codes; from to_odd where the number came from something wider.
        spec: the format.
        mode: `rn`, `rna`, `rz`, `rm` or `rp`.
        saturating: the largest finite number takes the place of what is beyond it.
    """
    fraction = spec.fraction_bits
    magnitude = code.masked(bits, MAGNITUDE)
    sign = code.masked(bits, SIGN)
    field = code.shift("lshr", magnitude, 23)
    is_small = code.compare("eq", field, code.constant(0, 32))
    one = code.constant(1, 32)
    exponent = code.select(is_small, one, field)
    significand = code.either(code.masked(magnitude, 0x7F_FFFF), code.select(is_small, code.constant(0, 32), code.constant(0x80_0000, 32)))
    lowest = spec.min_exponent + 127
    floor = code.intrinsic("llvm.smax", "i32", [exponent, code.constant(lowest, 32)])
    shift = code.binary("add", code.binary("sub", floor, exponent), code.constant(23 - fraction, 32))
    shift = code.intrinsic("llvm.umin", "i32", [shift, code.constant(31, 32)])
    whole = code.binary("lshr", significand, shift)
    rest = code.binary("sub", significand, code.binary("shl", whole, shift))
    half = code.binary("lshr", code.binary("shl", one, shift), one)
    up = _up(code, mode, sign, whole, rest, half)
    whole = code.binary("add", whole, code.convert("zext", up, "i32"))
    found = code.binary("add", whole, code.shift("shl", code.binary("sub", floor, code.constant(lowest, 32)), fraction))
    largest = spec.max_finite_magnitude >> spec.ignored_low_bits
    beyond = code.compare("ugt", found, code.constant(largest, 32))
    found = code.select(beyond, _beyond(code, spec, mode, sign, largest, saturating), found)
    is_infinite = code.compare("eq", magnitude, code.constant(EXPONENT, 32))
    top = largest if saturating or spec.non_finite is NonFinite.NONE else (spec.infinity or spec.nan or 0) >> spec.ignored_low_bits
    found = code.select(is_infinite, code.constant(top, 32), found)
    width = spec.exponent_bits + fraction
    found = code.either(found, code.shift("lshr", sign, 31 - width))
    if spec.ignored_low_bits:
        found = code.shift("shl", found, spec.ignored_low_bits)
    nan = NAN.get(spec.name, spec.magnitude_mask)
    return code.select(code.compare("ugt", magnitude, code.constant(EXPONENT, 32)), code.constant(nan, 32), found)


def _up(code: Code, mode: str, sign: Value, whole: Value, rest: Value, half: Value) -> Value:
    nothing = code.constant(0, 32)
    if mode == "rn":
        tie = code.both(code.compare("eq", rest, half), code.has_bits(whole, 1))
        return code.either(code.compare("ugt", rest, half), tie)
    if mode == "rna":
        return code.both(code.compare("uge", rest, half), code.compare("ne", rest, nothing))
    if mode == "rz":
        return code.constant(0, 1)
    toward = code.compare("ne" if mode == "rm" else "eq", sign, nothing)
    return code.both(code.compare("ne", rest, nothing), toward)


def _beyond(code: Code, spec: FormatSpec, mode: str, sign: Value, largest: int, saturating: bool) -> Value:
    if saturating or mode == "rz" or spec.non_finite is NonFinite.NONE:
        return code.constant(largest, 32)
    infinite = code.constant((spec.infinity or spec.nan or 0) >> spec.ignored_low_bits, 32)
    if mode in ("rn", "rna"):
        return infinite
    toward_zero_here = code.compare("eq" if mode == "rm" else "ne", sign, code.constant(0, 32))
    return code.select(toward_zero_here, code.constant(largest, 32), infinite)


def decoded(code: Code, bits: Value, form: str) -> Value:
    """Codes of f16, bf16 or a smaller format as f32 codes: exact; every NaN is the one of results."""
    spec = FORMATS[form]
    wide = code.resize(bits, 32)
    fraction = spec.fraction_bits
    width = spec.exponent_bits + fraction
    sign = code.shift("shl", code.masked(wide, 1 << width), 31 - width)
    magnitude = code.masked(wide, (1 << width) - 1)
    if form == "bf16":
        found = code.shift("shl", magnitude, 16)
    else:
        normal = code.binary("add", code.shift("shl", magnitude, 23 - fraction), code.constant((127 - spec.bias) << 23, 32))
        step = (spec.min_exponent - fraction + 127) << 23
        small = code.binary("fmul", code.convert("uitofp", magnitude, "float"), code.number(step, 32))
        is_small = code.compare("ult", magnitude, code.constant(1 << fraction, 32))
        found = code.select(is_small, code.as_bits(small), normal)
    if spec.non_finite is NonFinite.IEEE:
        infinite = code.constant(spec.exponent_mask, 32)
        if form != "bf16":
            found = code.select(code.compare("eq", magnitude, infinite), code.constant(EXPONENT, 32), found)
        found = code.select(code.compare("ugt", magnitude, infinite), code.constant(NAN["f32"], 32), found)
    elif spec.non_finite is NonFinite.NAN_ONLY:
        found = code.select(code.compare("eq", magnitude, code.constant(spec.magnitude_mask, 32)), code.constant(NAN["f32"], 32), found)
    found = code.either(found, sign)
    return code.select(is_nan(code, found), code.constant(NAN["f32"], 32), found)
