"""cvt: from every type to every other, in every rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from mmabits.isa.evidence import Evidence
from mmabits.isa.opcodes.exact import NAN, Number, compare, decode, encode, round_integer
from mmabits.isa.opcodes.integer import signed, unsigned
from mmabits.isa.opcodes.spec import Opcode, width

Reference = Callable[..., Any]

SECTION: Final = "data-movement-and-conversion-instructions-cvt"
_INTEGERS: Final = tuple(f"{sign}{bits}" for bits in (8, 16, 32, 64) for sign in "us")
_FLOATS: Final = ("f16", "f32", "f64")
_TO_INTEGER: Final = {"rni": "rn", "rzi": "rz", "rmi": "rm", "rpi": "rp"}


def bounds(kind: str) -> tuple[int, int]:
    """The least and the greatest of an integer type."""
    bits = width(kind)
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)


def _integer(kind_to: str, kind_from: str, sat: bool) -> Reference:
    low, high = bounds(kind_to)

    def reference(a: int) -> int:
        value = signed(a, width(kind_from)) if kind_from[0] == "s" else a
        return unsigned(min(max(value, low), high) if sat else value, width(kind_to))

    return reference


def _to_integer(kind: str, form: str, mode: str, ftz: bool) -> Reference:
    """Out of range clamps; NaN gives 0, and the top bit for 64 bits from f64 and f32."""
    low, high = bounds(kind)

    def reference(a: int) -> int:
        number = decode(a, form, ftz=ftz)
        if number.is_nan:
            return 1 << 63 if width(kind) == 64 else 0
        if number.is_infinite:
            value = low if number.sign else high
        else:
            magnitude = round_integer(number.sign, number.significand, number.exponent, mode)
            value = min(max(-magnitude if number.sign else magnitude, low), high)
        return unsigned(value, width(kind))

    return reference


def _from_integer(form: str, kind: str, mode: str, sat: bool) -> Reference:
    def reference(a: int) -> int:
        value = signed(a, width(kind)) if kind[0] == "s" else a
        code = encode(Number(int(value < 0), abs(value), 0), form, mode)
        return _unit(code, form) if sat else code

    return reference


def _unit(code: int, form: str) -> int:
    number = decode(code, form)
    if number.is_nan or number.sign:
        return 0
    order = compare(number, Number(0, 1, 0))
    return encode(Number(0, 1, 0), form) if order is not None and order > 0 else code


def _between(to: str, form: str, mode: str, *, ftz: bool = False, sat: bool = False, relu: bool = False, finite: bool = False) -> Reference:
    def reference(a: int) -> int:
        number = decode(a, form, ftz=ftz and form == "f32")
        if relu and not number.is_nan and number.sign:
            return 0
        code = encode(number, to, mode, ftz=ftz and to == "f32", saturating=finite)
        return _unit(code, to) if sat else code

    return reference


def _whole(form: str, mode: str, ftz: bool, sat: bool) -> Reference:
    """A float rounded to a whole number, in its own format."""

    def reference(a: int) -> int:
        number = decode(a, form, ftz=ftz)
        if number.special is None:
            magnitude = round_integer(number.sign, number.significand, number.exponent, mode)
            number = Number(number.sign, magnitude, 0)
        code = encode(number, form)
        return _unit(code, form) if sat else code

    return reference


def _words(*words: str) -> str:
    return ".".join(word for word in words if word)


def _row(name: str, source: str, result: str, reference: Reference, **more: Any) -> Opcode:
    return Opcode(name=name, section=SECTION, sources=(source,), results=(result,), reference=reference, **more)


def _integers() -> Iterator[Opcode]:
    for to in _INTEGERS:
        for of in _INTEGERS:
            for sat in ("", "sat"):
                yield _row(_words("cvt", sat, to, of), of, to, _integer(to, of, bool(sat)))
        for form in (*_FLOATS, "bf16"):
            for word, mode in _TO_INTEGER.items():
                for ftz in ("", "ftz") if form == "f32" else ("",):
                    note = "NaN gives 0 in up to 32 bits and the top bit alone in 64"
                    for sat in ("", "sat"):
                        yield _row(
                            _words("cvt", word, ftz, sat, to, form), form, to, _to_integer(to, form, mode, bool(ftz)), note=note,
                            evidence=Evidence.INFERRED if width(to) == 8 else Evidence.PUBLISHED,
                        )  # fmt: skip
        for form in (*_FLOATS, "bf16"):
            for mode in ("rn", "rz", "rm", "rp"):
                for sat in ("", "sat") if form != "bf16" else ("",):
                    yield _row(_words("cvt", mode, sat, form, to), to, form, _from_integer(form, to, mode, bool(sat)))


def _floats() -> Iterator[Opcode]:
    for form in _FLOATS:
        for word, mode in _TO_INTEGER.items():
            for ftz in ("", "ftz") if form == "f32" else ("",):
                for sat in ("", "sat"):
                    yield _row(_words("cvt", word, ftz, sat, form, form), form, form, _whole(form, mode, bool(ftz), bool(sat)))
        for ftz in ("", "ftz") if form == "f32" else ("",):
            for sat in ("", "sat"):
                yield _row(_words("cvt", ftz, sat, form, form), form, form, _between(form, form, "rn", ftz=bool(ftz), sat=bool(sat)))
    for to, of in (("f32", "f16"), ("f64", "f16"), ("f64", "f32"), ("f32", "bf16"), ("f64", "bf16")):
        for ftz in ("", "ftz") if "f32" in (to, of) and "bf16" not in (to, of) else ("",):
            for sat in ("", "sat") if of != "bf16" else ("",):
                yield _row(_words("cvt", ftz, sat, to, of), of, to, _between(to, of, "rn", ftz=bool(ftz), sat=bool(sat)))
    for to, of in (("f16", "f32"), ("f16", "f64"), ("f32", "f64"), ("bf16", "f64")):
        for mode in ("rn", "rz", "rm", "rp"):
            for ftz in ("", "ftz") if "f32" in (to, of) else ("",):
                for sat in ("", "sat"):
                    yield _row(_words("cvt", mode, ftz, sat, to, of), of, to, _between(to, of, mode, ftz=bool(ftz), sat=bool(sat)))
    for mode in ("rn", "rz"):
        for finite in ("", "satfinite"):
            for relu in ("", "relu"):
                for to in ("f16", "bf16"):
                    act = _between(to, "f32", mode, relu=bool(relu), finite=bool(finite))
                    for name in {_words("cvt", mode, relu, finite, f"{to}.f32"), _words("cvt", mode, finite, relu, f"{to}.f32")}:
                        if name not in (f"cvt.{mode}.f16.f32",):
                            yield _row(name, "f32", to, act)
                    for name in {_words("cvt", mode, relu, finite, f"{to}x2.f32"), _words("cvt", mode, finite, relu, f"{to}x2.f32")}:
                        yield Opcode(
                            name=name, section=SECTION, sources=("f32", "f32"), results=(f"{to}x2",),
                            reference=lambda a, b, act=act: act(a) << 16 | act(b),
                        )  # fmt: skip
    for name in ("rna", "rna.satfinite", "rn", "rn.relu", "rn.satfinite", "rz", "rz.relu", "rz.satfinite"):
        mode, _, more = name.partition(".")
        yield _row(f"cvt.{name}.tf32.f32", "f32", "tf32", _between("tf32", "f32", mode, relu=more == "relu", finite=more == "satfinite"))
    for to, of in (("bf16", "f16"), ("f16", "bf16")):
        for mode in ("", "rn", "rz", "rm", "rp"):
            yield _row(_words("cvt", mode, to, of), of, to, _between(to, of, mode or "rn"), evidence=Evidence.INFERRED)
    yield _row("cvt.bf16.bf16", "bf16", "bf16", lambda a: a)


_SMALL: Final = {"e4m3x2": ("e4m3", 8), "e5m2x2": ("e5m2", 8), "e2m3x2": ("e2m3", 8), "e3m2x2": ("e3m2", 8), "e2m1x2": ("e2m1", 4)}


def _small_code(number: Number, form: str, relu: bool, mode: str = "rn") -> int:
    """A code of 8, 6 or 4 bits, saturated; NaN is NaN where there is one, else the greatest number."""
    if relu and not number.is_nan and number.sign:
        return 0
    if number.is_nan:
        return {"e4m3": 0x7F, "e5m2": 0x7F, "e2m3": 0x1F, "e3m2": 0x1F, "e2m1": 0x7}[form]
    return encode(number, form, mode, saturating=True)


def _small() -> Iterator[Opcode]:
    """Pairs of FP8, FP6 and FP4, from and to pairs of wider formats."""
    for packed, (form, bits) in _SMALL.items():
        for relu in ("", "relu"):
            flag = bool(relu)

            def from_f32(a: int, b: int, form: str = form, bits: int = bits, flag: bool = flag) -> int:
                return _small_code(decode(a, "f32"), form, flag) << bits | _small_code(decode(b, "f32"), form, flag)

            yield Opcode(
                name=_words("cvt.rn.satfinite", relu, f"{packed}.f32"), section=SECTION, sources=("f32", "f32"), results=(packed,),
                reference=from_f32,
            )  # fmt: skip
            for wide, half in (("f16x2", "f16"), ("bf16x2", "bf16")):

                def from_half(a: int, form: str = form, bits: int = bits, flag: bool = flag, half: str = half) -> int:
                    return _small_code(decode(a >> 16, half), form, flag) << bits | _small_code(decode(a & 0xFFFF, half), form, flag)

                yield _row(_words("cvt.rn.satfinite", relu, f"{packed}.{wide}"), wide, packed, from_half)
            for wide, half in (("f16x2", "f16"), ("bf16x2", "bf16")):
                note = "" if half == "f16" else "as the conversion to f16x2, exactly"

                def to_half(a: int, form: str = form, bits: int = bits, half: str = half, flag: bool = flag) -> int:
                    found = 0
                    for place in range(2):
                        number = decode(a >> bits * place & (1 << bits) - 1, form)
                        code = NAN[half] if number.is_nan else 0 if flag and number.sign else encode(number, half)
                        found |= code << 16 * place
                    return found

                yield _row(
                    _words("cvt.rn", relu, f"{wide}.{packed}"), packed, wide, to_half, note=note,
                    evidence=Evidence.PUBLISHED if half == "f16" else Evidence.INFERRED,
                )  # fmt: skip
    for mode in ("rz", "rp"):
        for finite in ("", "satfinite"):

            def scales(a: int, b: int, mode: str = mode, finite: bool = bool(finite)) -> int:
                return _scale(a, mode, finite) << 8 | _scale(b, mode, finite)

            yield Opcode(
                name=_words("cvt", mode, finite, "ue8m0x2.f32"), section=SECTION, sources=("f32", "f32"), results=("ue8m0x2",),
                reference=scales,
                evidence=Evidence.INFERRED, note="the sign is dropped, as NVIDIA's header does",
            )  # fmt: skip
            yield _row(
                _words("cvt", mode, finite, "ue8m0x2.bf16x2"), "bf16x2", "ue8m0x2",
                lambda a, scales=scales: scales(a >> 16 << 16, (a & 0xFFFF) << 16), evidence=Evidence.INFERRED,
                note="the sign is dropped, as NVIDIA's header does",
            )  # fmt: skip

    def to_bf16(a: int) -> int:
        return sum((0x7FFF if byte == 0xFF else 0x40 if byte == 0 else byte << 7) << 16 * place
                   for place, byte in enumerate((a & 0xFF, a >> 8)))  # fmt: skip

    yield _row("cvt.rn.bf16x2.ue8m0x2", "ue8m0x2", "bf16x2", to_bf16)


def _scale(bits: int, mode: str, finite: bool) -> int:
    """The power of two below (rz) or above (rp) a magnitude, as an exponent byte."""
    number = decode(bits & 0x7FFF_FFFF, "f32")
    if number.is_nan:
        return 0xFF
    if number.is_infinite:
        return 0xFE if finite or mode == "rz" else 0xFF
    if number.is_zero:
        return 0
    exponent = number.significand.bit_length() - 1 + number.exponent
    if mode == "rp" and number.significand & (number.significand - 1):
        exponent += 1
    if exponent > 127:
        return 0xFE if finite or mode == "rz" else 0xFF
    return max(exponent, -127) + 127


def rows() -> Iterator[Opcode]:
    """Every row of this file."""
    seen = set()
    for source in (_integers(), _floats(), _small()):
        for row in source:
            if row.name not in seen:
                seen.add(row.name)
                yield row
