"""The arithmetic of tensor cores in plain Python integers: the slow twin that the emulator is checked against.

It is written from `docs/numerics.md` (the sections cited below, abbreviated NUMERICS) and shares nothing with the package: own
format table, own table of units, standard library only. Numbers go in and out as codes (bit patterns held in ints). It is meant to
be read beside the page, so it does everything one element at a time and exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

# ---------------------------------------------------------------------------------------------------------------- formats


class Format(NamedTuple):
    """A floating-point format. `special` says what the top exponent means: "ieee", "nan only" or "none"."""

    code_bits: int
    exponent_bits: int
    fraction_bits: int
    bias: int
    special: str
    unread_low_bits: int = 0
    """Low bits of the container that the hardware does not read (tf32)."""


FORMATS = {
    "f64": Format(64, 11, 52, 1023, "ieee"),
    "f32": Format(32, 8, 23, 127, "ieee"),
    "tf32": Format(32, 8, 10, 127, "ieee", unread_low_bits=13),
    "f16": Format(16, 5, 10, 15, "ieee"),
    "bf16": Format(16, 8, 7, 127, "ieee"),
    "e4m3": Format(8, 4, 3, 7, "nan only"),
    "e5m2": Format(8, 5, 2, 15, "ieee"),
    "e3m2": Format(6, 3, 2, 3, "none"),
    "e2m3": Format(6, 2, 3, 1, "none"),
    "e2m1": Format(4, 2, 1, 1, "none"),
    "ue4m3": Format(8, 4, 3, 7, "nan only"),  # block scale: e4m3 whose sign bit is not read
    "ue8m0": Format(8, 8, 0, 127, "nan only"),  # block scale: no sign, no zero, no subnormals
}
INTEGERS = {"s8": (8, True), "u8": (8, False), "s4": (4, True), "u4": (4, False), "s32": (32, True)}
"""Integer formats: (bits, signed)."""

NAN = {"f16": 0x7FFF, "f32": 0x7FFFFFFF, "f64": 0x7FF8000000000000}
"""Canonical NaN codes (NUMERICS 5). That of f64 is a placeholder: the page does not give one, so compare f64 NaNs by `is_nan`."""
INFINITY = {"f16": 0x7C00, "bf16": 0x7F80, "f32": 0x7F800000, "f64": 0x7FF0000000000000}


class Number(NamedTuple):
    """A decoded code. Finite value = sign x significand x 2^lsb.

    `exponent` is that of NUMERICS 1: field - bias, or 1 - bias for subnormals and zero; significands are not renormalised, so
    `lsb` = exponent - fraction bits.
    """

    kind: str
    sign: int
    significand: int
    lsb: int
    exponent: int


def decode_float(name: str, code: int) -> Number:
    """Take a code apart (NUMERICS 1)."""
    form = FORMATS[name]
    code >>= form.unread_low_bits
    fraction = code & ((1 << form.fraction_bits) - 1)
    field = (code >> form.fraction_bits) & ((1 << form.exponent_bits) - 1)
    sign_bit = (code >> (form.fraction_bits + form.exponent_bits)) & 1
    sign = -1 if sign_bit and name not in ("ue8m0", "ue4m3") else 1
    top_field = (1 << form.exponent_bits) - 1
    if form.special == "ieee" and field == top_field:
        return Number("nan" if fraction else "infinity", sign, 0, 0, 0)
    if form.special == "nan only" and field == top_field and fraction == (1 << form.fraction_bits) - 1:
        return Number("nan", sign, 0, 0, 0)
    is_normal = field > 0 or name == "ue8m0"
    exponent = (field if is_normal else 1) - form.bias
    significand = fraction + (1 << form.fraction_bits if is_normal else 0)
    return Number("finite", sign, significand, exponent - form.fraction_bits, exponent)


@cache
def _decode_table(name: str) -> tuple[Number, ...]:
    return tuple(decode_float(name, code) for code in range(1 << FORMATS[name].code_bits))


def decode(name: str, code: int) -> Number:
    """`decode_float`, from a table where the format has 16 bits or fewer."""
    return _decode_table(name)[code] if FORMATS[name].code_bits <= 16 else decode_float(name, int(code))


def decode_integer(name: str, code: int) -> int:
    """The value of an integer code (two's complement where signed)."""
    bits, signed = INTEGERS[name]
    value = int(code) & ((1 << bits) - 1)
    return value - (1 << bits) if signed and value >> (bits - 1) else value


def is_nan(name: str, code: int) -> bool:
    """Whether a code of a floating-point format is a NaN."""
    return decode(name, code).kind == "nan"


def round_to_code(name: str, sign: int, magnitude: int, lsb: int, *, rounding: str, fraction_bits: int | None = None) -> int:
    """Round sign x magnitude x 2^lsb once, and encode it.

    Args:
        rounding: "rn", "rz", "rm" or "rp" of IEEE 754, or "tensor rz": toward zero, but an overflow is infinity (NUMERICS 2.4).
        fraction_bits: fewer than the format has (E8M13: 13), else the format's. Subnormals are kept, with as many fewer bits.
    """
    form = FORMATS[name]
    kept_bits = form.fraction_bits if fraction_bits is None else fraction_bits
    lowest = 1 - form.bias
    exponent = max(magnitude.bit_length() - 1 + lsb, lowest) if magnitude else lowest
    drop = exponent - kept_bits - lsb
    kept, rest = (magnitude >> drop, magnitude & ((1 << drop) - 1)) if drop > 0 else (magnitude << -drop, 0)
    if rest:
        half = 1 << (drop - 1)
        nearest = rest > half or (rest == half and kept & 1)
        kept += {"rn": nearest, "rz": False, "tensor rz": False, "rp": sign > 0, "rm": sign < 0}[rounding]
    # The hidden bit adds 1 to the exponent field of a normal number, none to a subnormal's; a carry moves up by itself.
    code = ((exponent - lowest) << form.fraction_bits) + (kept << (form.fraction_bits - kept_bits))
    if code >= INFINITY[name]:
        away = {"rn": True, "tensor rz": True, "rz": False, "rp": sign > 0, "rm": sign < 0}[rounding]
        code = INFINITY[name] if away else INFINITY[name] - 1
    return code | ((sign < 0) << (form.code_bits - 1))


# ------------------------------------------------------------------------------------------------------------------ units


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One row of NUMERICS 2 to 4."""

    F: int
    """Fraction bits kept below the largest exponent."""
    L: int
    """Products per step."""
    e_zero: int
    """Exponent of a zero term."""
    out: str
    """"f32 rz 23", "f32 rz 13" or "f16 rne"; no unit known has "f32 rne 23", but one could."""
    form: str = "fused"
    """"fused" (section 2), "hmma pair" (section 2, fp8 on sm_90 and sm_100), "scaled" (section 3) or "grouped" (section 4)."""

    @property
    def accumulator(self) -> str:
        """Format of c and d."""
        return self.out.split()[0]


_BYTES = {"f16": 2, "f16_k4": 2, "bf16": 2, "tf32": 4, "fp8": 1, "f8f6f4": 1}
_Key = tuple[str, str, str, str]


def _rows(
    archs: str, families: str, classes: str,
    *, F: int, step_bytes: int, e_zero: tuple[int, int], f32: str = "f32 rz 23",
) -> dict[_Key, Unit]:  # fmt: skip
    """Section 2's row for every arch, family, operand class and accumulator (bf16 and tf32 have no f16 accumulator)."""
    units = {}
    for arch in archs.split():
        for family in families.split():
            for kind in classes.split():
                step = step_bytes // _BYTES[kind]
                units[arch, family, kind, "f32"] = Unit(F=F, L=step, e_zero=e_zero[0], out=f32)
                if kind not in ("bf16", "tf32"):
                    units[arch, family, kind, "f16"] = Unit(F=F, L=step, e_zero=e_zero[1], out="f16 rne")
    return units


def _same(archs: str, family: str, kind: str, *units: Unit) -> dict[_Key, Unit]:
    return {(arch, family, kind, unit.accumulator): unit for arch in archs.split() for unit in units}


_HOPPER_PAIR = (
    Unit(F=25, L=16, e_zero=-133, out="f32 rz 23", form="hmma pair"),
    Unit(F=25, L=16, e_zero=-21, out="f16 rne", form="hmma pair"),
)
_MXF8F6F4 = Unit(F=25, L=32, e_zero=-133, out="f32 rz 23", form="scaled")
_MXF4 = Unit(F=35, L=64, e_zero=-139, out="f32 rz 23", form="grouped")

# sm_103a and sm_110a are taken to be like sm_100a, sm_121a like sm_120a: inferred, as NUMERICS marks it.
_SM_100 = "sm_100a sm_103a sm_110a"
_SM_120 = "sm_120a sm_121a"

UNITS: dict[_Key, Unit] = {
    **_rows("sm_70", "mma", "f16", F=23, step_bytes=8, e_zero=(-131, -19)),
    **_rows("sm_75", "mma", "f16", F=24, step_bytes=16, e_zero=(-132, -20)),
    **_rows("sm_75", "mma", "f16_k4", F=23, step_bytes=8, e_zero=(-131, -19)),
    **_rows("sm_80 sm_86 sm_89", "mma", "f16 bf16 tf32", F=24, step_bytes=16, e_zero=(-132, -20)),
    **_rows("sm_89", "mma", "fp8", F=13, step_bytes=16, e_zero=(-132, -20), f32="f32 rz 13"),
    **_rows("sm_90a", "mma wgmma", "f16 bf16 tf32", F=25, step_bytes=32, e_zero=(-133, -21)),
    **_rows("sm_90a", "wgmma", "fp8", F=13, step_bytes=32, e_zero=(-133, -21), f32="f32 rz 13"),
    **_rows(_SM_100, "mma tcgen05", "f16 bf16 tf32", F=25, step_bytes=32, e_zero=(-133, -21)),
    **_rows(_SM_100, "tcgen05", "fp8 f8f6f4", F=25, step_bytes=32, e_zero=(-133, -21)),
    **_rows(_SM_120, "mma", "f16 bf16 tf32 fp8 f8f6f4", F=25, step_bytes=32, e_zero=(-133, -21)),
    **_same(f"sm_90a {_SM_100}", "mma", "fp8", *_HOPPER_PAIR),
    **_same(_SM_100, "tcgen05", "mxf8f6f4", _MXF8F6F4),
    **_same(_SM_120, "mma", "mxf8f6f4", _MXF8F6F4),
    **_same(_SM_100, "tcgen05", "mxf4", _MXF4),
    **_same(_SM_120, "mma", "mxf4", _MXF4),
}
"""NUMERICS 2 to 4: (arch, family, operand class, accumulator) to unit. Families: mma, wgmma, tcgen05."""


def operand_class(a_type: str, b_type: str, *, k_instruction: int, scaled: bool) -> str:
    """The third part of a key of `UNITS`."""
    if scaled:
        return "mxf4" if k_instruction == 64 else "mxf8f6f4"
    if a_type == b_type and a_type in ("f16", "bf16", "tf32"):
        return a_type
    return "fp8" if {a_type, b_type} <= {"e4m3", "e5m2"} else "f8f6f4"


# --------------------------------------------------------------------------------------- one step: align, add, round once


class Term(NamedTuple):
    """One summand: value = significand x 2^lsb (significand signed); `exponent` is what enters the alignment."""

    significand: int
    lsb: int
    exponent: int


def fused_sum(terms: Sequence[Term], unit: Unit) -> int:
    """NUMERICS 2, steps 2 to 4: align by truncation, add exactly, round once; returns the code of d."""
    # Every step has an exponent of e_zero or more on the page (c is zero, or a normal or subnormal of the accumulator's format);
    # the floor is stated for tcgen05's scale-input-d alone, where c x 2^-s may lie lower (inferred).
    largest = max(unit.e_zero, max(term.exponent for term in terms))
    quantum = largest - unit.F
    total = 0
    for significand, lsb, _ in terms:
        shift = lsb - quantum
        if shift >= 0:
            total += significand << shift
        elif significand >= 0:
            total += significand >> -shift
        else:
            total -= -significand >> -shift
    return _round_out(total, quantum, unit)


def _round_out(total: int, quantum: int, unit: Unit) -> int:
    """NUMERICS 2.4 and 5: round to the accumulator; a zero result is +0 whatever its sign, also where rounding made it zero."""
    _, mode, *kept = unit.out.split()
    rounding = {"rz": "tensor rz", "rne": "rn"}[mode]
    fraction_bits = int(kept[0]) if kept else FORMATS[unit.accumulator].fraction_bits
    sign = -1 if total < 0 else 1
    code = round_to_code(unit.accumulator, sign, abs(total), quantum, rounding=rounding, fraction_bits=fraction_bits)
    is_zero = code in (0, 1 << (FORMATS[unit.accumulator].code_bits - 1))
    return 0 if is_zero else code


def special_result(a: Sequence[Number], b: Sequence[Number], c: Number, scales: Sequence[Number], accumulator: str) -> int | None:
    """NUMERICS 5: the code of d where a NaN or an infinity takes part, else None."""
    if all(number.kind == "finite" for numbers in (a, b, (c,), scales) for number in numbers):
        return None
    signs = {c.sign} if c.kind == "infinity" else set()
    has_nan = any(number.kind == "nan" for numbers in (a, b, (c,), scales) for number in numbers)
    for x, y in zip(a, b, strict=True):
        if "infinity" in (x.kind, y.kind):
            zero_times_infinity = any(number.kind == "finite" and number.significand == 0 for number in (x, y))
            has_nan = has_nan or zero_times_infinity
            signs.add(x.sign * y.sign)
    if has_nan or len(signs) == 2:
        return NAN[accumulator]
    return INFINITY[accumulator] | ((signs == {-1}) << (FORMATS[accumulator].code_bits - 1))


def _product_terms(a: Sequence[Number], b: Sequence[Number], e_zero: int, raised: int = 0) -> list[Term]:
    """NUMERICS 2.1; `raised` is section 3's sum of the scales' exponents, which a zero product does not take."""
    terms = []
    for x, y in zip(a, b, strict=True):
        significand = x.sign * y.sign * x.significand * y.significand
        terms.append(Term(significand, x.lsb + y.lsb + raised, x.exponent + y.exponent + raised if significand else e_zero))
    return terms


def _accumulator_term(c: Number, e_zero: int, scale_input_d: int = 0) -> Term:
    """C as a term; tcgen05's scale-input-d lowers its exponent and keeps its significand (inferred)."""
    exponent = c.exponent - scale_input_d if c.significand else e_zero
    return Term(c.sign * c.significand, c.lsb - scale_input_d, exponent)


# ------------------------------------------------------------------------------------------------------------ dot products


def fused_dot(
    a_codes: Sequence[int], b_codes: Sequence[int], c_code: int, *, a_format: str, b_format: str, unit: Unit, scale_input_d: int = 0
) -> int:
    """NUMERICS 2: a chain of steps of `unit.L` products, each taking the previous result as c; the last step may be shorter."""
    d_code, halvings = c_code, scale_input_d
    for start in range(0, len(a_codes), unit.L):
        a = [decode(a_format, code) for code in a_codes[start : start + unit.L]]
        b = [decode(b_format, code) for code in b_codes[start : start + unit.L]]
        c = decode(unit.accumulator, d_code)
        special = special_result(a, b, c, (), unit.accumulator)
        terms = [*_product_terms(a, b, unit.e_zero), _accumulator_term(c, unit.e_zero, halvings)]
        d_code = fused_sum(terms, unit) if special is None else special
        halvings = 0
    return d_code


def scaled_dot(
    a_codes: Sequence[int], b_codes: Sequence[int], c_code: int, scale_a: Sequence[int], scale_b: Sequence[int],
    *, a_format: str, b_format: str, scale_format: str = "ue8m0", unit: Unit = _MXF8F6F4,
) -> int:  # fmt: skip
    """NUMERICS 3: as section 2, every product raised by the two scales of its block of 32 (= one step)."""
    d_code = c_code
    for block, start in enumerate(range(0, len(a_codes), unit.L)):
        a = [decode(a_format, code) for code in a_codes[start : start + unit.L]]
        b = [decode(b_format, code) for code in b_codes[start : start + unit.L]]
        c = decode(unit.accumulator, d_code)
        scales = decode(scale_format, scale_a[block]), decode(scale_format, scale_b[block])
        special = special_result(a, b, c, scales, unit.accumulator)
        raised = scales[0].exponent + scales[1].exponent
        terms = [*_product_terms(a, b, unit.e_zero, raised), _accumulator_term(c, unit.e_zero)]
        d_code = fused_sum(terms, unit) if special is None else special
    return d_code


GROUP = 16
"""NUMERICS 4.1: elements per exactly added group."""


def _group_term(a: Sequence[Number], b: Sequence[Number], scale_a: Number, scale_b: Number, e_zero: int) -> Term:
    """NUMERICS 4.3: a group's exact sum times the scales' significands, at the scales' exponent."""
    products = [x.sign * y.sign * (x.significand * y.significand << (x.lsb + y.lsb + 2)) for x, y in zip(a, b, strict=True)]
    significand = sum(products) * scale_a.significand * scale_b.significand  # e2m1 products are multiples of 2^-2
    absent = not any(products) or scale_a.significand == 0 or scale_b.significand == 0
    return Term(significand, scale_a.lsb + scale_b.lsb - 2, e_zero if absent else scale_a.exponent + scale_b.exponent)


def grouped_dot(
    a_codes: Sequence[int], b_codes: Sequence[int], c_code: int, scale_a: Sequence[int], scale_b: Sequence[int],
    *, scale_format: str, block: int, unit: Unit = _MXF4,
) -> int:  # fmt: skip
    """NUMERICS 4: e2m1 operands, steps of four groups, a scale for every `block` (16 or 32) elements of each operand."""
    d_code = c_code
    for start in range(0, len(a_codes), unit.L):
        a = [decode("e2m1", code) for code in a_codes[start : start + unit.L]]
        b = [decode("e2m1", code) for code in b_codes[start : start + unit.L]]
        c = decode(unit.accumulator, d_code)
        terms, scales = [_accumulator_term(c, unit.e_zero)], []
        for group in range(0, len(a), GROUP):
            pair = [decode(scale_format, codes[(start + group) // block]) for codes in (scale_a, scale_b)]
            terms.append(_group_term(a[group : group + GROUP], b[group : group + GROUP], *pair, unit.e_zero))
            scales += pair
        special = special_result(a, b, c, scales, unit.accumulator)
        d_code = fused_sum(terms, unit) if special is None else special
    return d_code


def fp8_to_f16(name: str, code: int) -> int:
    """The f16 code of an fp8 code, exact (NUMERICS 2: the compiler unpacks fp8 before HMMA). e4m3 subnormals become normal."""
    number = decode(name, code)
    if number.kind != "finite":
        return (NAN if number.kind == "nan" else INFINITY)["f16"] | ((number.sign < 0) << 15)
    return round_to_code("f16", number.sign, number.significand, number.lsb, rounding="rz")


def hmma_pair_dot(a_codes: Sequence[int], b_codes: Sequence[int], c_code: int, *, a_format: str, b_format: str, unit: Unit) -> int:
    """NUMERICS 2, fp8 `mma.sync` on sm_90 and sm_100: one instruction (K = 32 or 16) is two HMMA from +0, then an IEEE add of c."""
    a = [fp8_to_f16(a_format, code) for code in a_codes]
    b = [fp8_to_f16(b_format, code) for code in b_codes]
    partial = 0
    for residues in ((0, 1), (2, 3)):
        a_half = [code for k, code in enumerate(a) if k % 4 in residues]
        b_half = [code for k, code in enumerate(b) if k % 4 in residues]
        partial = fused_dot(a_half, b_half, partial, a_format="f16", b_format="f16", unit=unit)
    return ieee_add(unit.accumulator, c_code, partial)


# ---------------------------------------------------------------------------------------------------- IEEE 754 operations


def _ieee_sum(name: str, x: Number, y: Number, rounding: str) -> int:
    """x + y rounded once, signed zeros as in IEEE 754 section 6.3; a NaN is canonical."""
    infinities = {number.sign for number in (x, y) if number.kind == "infinity"}
    if "nan" in (x.kind, y.kind) or len(infinities) == 2:
        return NAN[name]
    sign_bit = 1 << (FORMATS[name].code_bits - 1)
    if infinities:
        return INFINITY[name] | (sign_bit if infinities == {-1} else 0)
    lsb = min(x.lsb, y.lsb)
    total = sum(number.sign * number.significand << (number.lsb - lsb) for number in (x, y))
    if total == 0:
        sign = x.sign if x.sign == y.sign else (-1 if rounding == "rm" else 1)
        return sign_bit if sign < 0 else 0
    return round_to_code(name, -1 if total < 0 else 1, abs(total), lsb, rounding=rounding)


def ieee_add(name: str, x_code: int, y_code: int) -> int:
    """FADD or HADD2: round to nearest even, canonical NaN (NUMERICS 5)."""
    return _ieee_sum(name, decode(name, x_code), decode(name, y_code), "rn")


def ieee_fma(name: str, x_code: int, y_code: int, z_code: int, rounding: str = "rn") -> int:
    """x x y + z rounded once."""
    x, y, z = (decode(name, code) for code in (x_code, y_code, z_code))
    sign, kind = x.sign * y.sign, "finite"
    if "nan" in (x.kind, y.kind):
        kind = "nan"
    elif "infinity" in (x.kind, y.kind):
        kind = "nan" if any(number.kind == "finite" and number.significand == 0 for number in (x, y)) else "infinity"
    product = Number(kind, sign, x.significand * y.significand, x.lsb + y.lsb, x.exponent + y.exponent)
    return _ieee_sum(name, product, z, rounding)


def f64_dot(a_codes: Sequence[int], b_codes: Sequence[int], c_code: int, *, rounding: str = "rn") -> int:
    """NUMERICS 6: fused multiply-adds, k ascending."""
    for a_code, b_code in zip(a_codes, b_codes, strict=True):
        c_code = ieee_fma("f64", a_code, b_code, c_code, rounding)
    return c_code


def integer_dot(a_codes: Sequence[int], b_codes: Sequence[int], c_code: int, *, a_format: str, b_format: str, satfinite: bool) -> int:
    """NUMERICS 6: one integer MMA, as an s32 code.

    `.satfinite` clamps the final sum of the instruction (products and c added exactly first) to the s32 range, as PTX words it;
    without it that sum wraps. Nothing is clamped between products.
    """
    products = [decode_integer(a_format, x) * decode_integer(b_format, y) for x, y in zip(a_codes, b_codes, strict=True)]
    total = sum(products) + decode_integer("s32", c_code)
    if satfinite:
        total = max(-(1 << 31), min((1 << 31) - 1, total))
    return total & 0xFFFFFFFF


# ------------------------------------------------------------------------------------------------------- a whole K loop


@dataclass(frozen=True, kw_only=True)
class _Loop:
    """What one instruction of a K loop is: everything but its operands."""

    a_type: str
    b_type: str
    unit: Unit | None
    """None for f64 and integers."""
    scale_type: str | None
    block: int
    rounding: str
    satfinite: bool

    def instruction(self, a: list[int], b: list[int], c: int, scales: tuple[list[int], list[int]], scale_input_d: int) -> int:
        if self.unit is None:
            if self.a_type == "f64":
                return f64_dot(a, b, c, rounding=self.rounding)
            return integer_dot(a, b, c, a_format=self.a_type, b_format=self.b_type, satfinite=self.satfinite)
        types = {"a_format": self.a_type, "b_format": self.b_type}
        match self.unit.form:
            case "fused":
                return fused_dot(a, b, c, **types, unit=self.unit, scale_input_d=scale_input_d)
            case "hmma pair":
                return hmma_pair_dot(a, b, c, **types, unit=self.unit)
            case "scaled":
                return scaled_dot(a, b, c, *scales, **types, scale_format=str(self.scale_type), unit=self.unit)
            case "grouped":
                return grouped_dot(a, b, c, *scales, scale_format=str(self.scale_type), block=self.block, unit=self.unit)
        raise ValueError(f"unknown form {self.unit.form!r}")


def unit_for(arch: str, family: str, a_type: str, b_type: str, acc_type: str, *, k_instruction: int, scaled: bool) -> Unit | None:
    """The unit of an instruction; None for f64 and integers. KeyError where NUMERICS has no row."""
    if a_type == "f64" or a_type in INTEGERS:
        return None
    if a_type == "f16" and family == "mma" and (k_instruction == 4) != (arch == "sm_70"):  # m8n8k4 is Volta's, and Turing has it too
        return UNITS[arch, family, "f16_k4", acc_type]
    return UNITS[arch, family, operand_class(a_type, b_type, k_instruction=k_instruction, scaled=scaled), acc_type]


def dot(
    arch: str, family: str, a_type: str, b_type: str, acc_type: str, a_codes: Sequence[int], b_codes: Sequence[int], c_code: int,
    *, k_instruction: int, scale_a: Sequence[int] | None = None, scale_b: Sequence[int] | None = None, scale_type: str | None = None,
    block: int | None = None, promote_every: int | None = None, rounding: str = "rn", satfinite: bool = False, scale_input_d: int = 0,
) -> int:  # fmt: skip
    """A whole K loop of one output element (NUMERICS 6): instructions of `k_instruction` elements, each taking the last one's d as c.

    Args:
        arch: "sm_90a" and so on; with `family` ("mma", "wgmma", "tcgen05") and the types it picks the row of `UNITS`.
        a_codes, b_codes: codes of any length K; the last instruction may be shorter (its missing products are zero, which f64's
            chain adds too: they turn -0 to +0 unless it rounds down).
        c_code: code of c in `acc_type`.
        scale_a, scale_b: codes, one for every `block` elements of K; `block` defaults to 32.
        promote_every: a multiple of `k_instruction`: the tensor-core accumulator restarts from +0 there, and its result is added to
            an f32 accumulator, which starts as c, by an IEEE add; c and d are then f32, also where `acc_type` is f16.
        scale_input_d: tcgen05 kinds f16 and tf32: the accumulator enters each instruction as c x 2^-s, exactly.

    Returns:
        The code of d.
    """
    scaled, size = scale_type is not None, block or 32
    unit = unit_for(arch, family, a_type, b_type, acc_type, k_instruction=k_instruction, scaled=scaled)
    loop = _Loop(a_type=a_type, b_type=b_type, unit=unit, scale_type=scale_type, block=size, rounding=rounding, satfinite=satfinite)
    if promote_every and (unit is None or promote_every % k_instruction or scale_input_d):
        raise ValueError("promotion needs an f32 or f16 accumulator, whole instructions and no scale-input-d")
    if scale_input_d and not (family == "tcgen05" and a_type in ("f16", "bf16", "tf32")):
        raise ValueError("scale-input-d belongs to tcgen05 kinds f16 and tf32")
    a, b, main, d = [int(x) for x in a_codes], [int(x) for x in b_codes], int(c_code), 0 if promote_every else int(c_code)
    if a_type == "f64":
        a, b = (codes + [0] * (-len(codes) % k_instruction) for codes in (a, b))
    for start in range(0, len(a), k_instruction):
        stop = min(start + k_instruction, len(a))
        scales = _slice(scale_a, start, stop, size), _slice(scale_b, start, stop, size)
        d = loop.instruction(a[start:stop], b[start:stop], d, scales, scale_input_d)
        if promote_every and (stop % promote_every == 0 or stop == len(a)):
            main, d = _ieee_sum("f32", decode("f32", main), decode(acc_type, d), "rn"), 0
    return main if promote_every else d


def _slice(scales: Sequence[int] | None, start: int, stop: int, block: int) -> list[int]:
    """The scale codes of elements `start` to `stop`."""
    return [] if scales is None else [int(code) for code in scales[start // block : -(-stop // block)]]
