"""Floating-point arithmetic, comparisons and selections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from mmabits.isa.evidence import Evidence
from mmabits.isa.opcodes.exact import NAN, Number, Special, add, compare, decode, divide, encode, multiply, square_root
from mmabits.isa.opcodes.integer import signed
from mmabits.isa.opcodes.spec import Opcode, width
from mmabits.isa.rounding import QUALIFIERS

Reference = Callable[..., Any]

ROUNDINGS: Final = QUALIFIERS
_NUMBERS = {"f64": 64, "f32": 32, "f16": 16, "bf16": 16}
_FTZ_AFTER = "subnormal results are told after rounding"
_SCALAR = "floating-point-instructions-"
_HALF = "half-precision-floating-point-instructions-"
_MIXED = "mixed-precision-floating-point-instructions-"


def _section(kind: str, name: str) -> str:
    return (_HALF if kind.startswith(("f16", "bf16")) else _SCALAR) + name


def _sat(code: int, form: str) -> int:
    """Clamped to [+0, 1], NaN to +0."""
    number = decode(code, form)
    one = encode(Number(0, 1, 0), form)
    if number.is_nan or number.sign:
        return 0
    above = compare(number, Number(0, 1, 0))
    return one if above is not None and above > 0 else code


def _finish(number: Number, form: str, mode: str, ftz: bool, sat: bool, relu: bool = False) -> int:
    code = encode(number, form, mode, ftz=ftz)
    if relu and (number.sign or number.is_zero) and not number.is_nan:
        code = 0
    return _sat(code, form) if sat else code


def _sum(form: str, mode: str, ftz: bool, sat: bool, sign: int) -> Reference:
    def reference(a: int, b: int) -> int:
        x, y = decode(a, form, ftz=ftz), decode(b, form, ftz=ftz)
        y = y._replace(sign=y.sign ^ sign)
        return _finish(add(x, y, mode), form, mode, ftz, sat)

    return reference


def _product(form: str, mode: str, ftz: bool, sat: bool) -> Reference:
    return lambda a, b: _finish(multiply(decode(a, form, ftz=ftz), decode(b, form, ftz=ftz)), form, mode, ftz, sat)


def _fused(form: str, mode: str, ftz: bool, sat: bool, relu: bool = False) -> Reference:
    def reference(a: int, b: int, c: int) -> int:
        x, y, z = (decode(each, form, ftz=ftz) for each in (a, b, c))
        return _finish(add(multiply(x, y), z, mode), form, mode, ftz, sat, relu)

    return reference


def _pairs(reference: Reference, bits: int) -> Reference:
    """For both halves of a word."""
    mask = (1 << bits) - 1

    def both(*operands: int) -> int:
        return int(reference(*(each & mask for each in operands))) | int(reference(*(each >> bits for each in operands))) << bits

    return both


def _words(*words: str) -> str:
    return ".".join(word for word in words if word)


def _arithmetic() -> Iterator[Opcode]:
    """add, sub, mul and fma of f32, f64, f16 and bf16, alone and in pairs."""
    for form in ("f32", "f64"):
        for mode in ("", *ROUNDINGS):
            for ftz in ("", "ftz") if form == "f32" else ("",):
                for sat in ("", "sat") if form == "f32" else ("",):
                    flags = (mode or "rn", bool(ftz), bool(sat))
                    note = _FTZ_AFTER if ftz else ""
                    evidence = Evidence.INFERRED if ftz else Evidence.PUBLISHED
                    for name, reference in (
                        ("add", _sum(form, *flags, 0)),
                        ("sub", _sum(form, *flags, 1)),
                        ("mul", _product(form, *flags)),
                    ):
                        yield Opcode(
                            name=_words(name, mode, ftz, sat, form), section=_section(form, name), sources=(form, form), results=(form,),
                            reference=reference, fusible=not mode, evidence=evidence, note=note,
                        )  # fmt: skip
                    if mode:
                        for name in ("fma", "mad"):
                            yield Opcode(
                                name=_words(name, mode, ftz, sat, form), section=_section(form, name), sources=(form,) * 3, results=(form,),
                                reference=_fused(form, *flags), evidence=evidence, note=note,
                            )  # fmt: skip
    for mode in ("", *ROUNDINGS):
        for ftz in ("", "ftz"):
            flags = (mode or "rn", bool(ftz), False)
            evidence = Evidence.INFERRED if ftz else Evidence.PUBLISHED
            for name, count, reference in (
                ("add", 2, _sum("f32", *flags, 0)), ("sub", 2, _sum("f32", *flags, 1)), ("mul", 2, _product("f32", *flags)),
                ("fma", 3, _fused("f32", *flags)),
            ):  # fmt: skip
                if name != "fma" or mode:
                    yield Opcode(
                        name=_words(name, mode, ftz, "f32x2"), section=_section("f32", name), sources=("b64",) * count, results=("b64",),
                        reference=_pairs(reference, 32), fusible=not mode, evidence=evidence, note=_FTZ_AFTER if ftz else "",
                    )  # fmt: skip
    for form, packed in (("f16", "f16x2"), ("bf16", "bf16x2")):
        for ftz in ("", "ftz") if form == "f16" else ("",):
            for sat in ("", "sat") if form == "f16" else ("",):
                for mode in ("", "rn"):
                    flags = ("rn", bool(ftz), bool(sat))
                    for name, count, reference in (
                        ("add", 2, _sum(form, *flags, 0)), ("sub", 2, _sum(form, *flags, 1)), ("mul", 2, _product(form, *flags)),
                        ("fma", 3, _fused(form, *flags)),
                    ):  # fmt: skip
                        if name == "fma" and not mode:
                            continue
                        for kind, act in ((form, reference), (packed, _pairs(reference, 16))):
                            yield Opcode(
                                name=_words(name, mode, ftz, sat, kind), section=_section(form, name), sources=(kind,) * count,
                                results=(kind,),
                                reference=act, fusible=not mode, evidence=Evidence.INFERRED if ftz else Evidence.PUBLISHED,
                                note=_FTZ_AFTER if ftz else "",
                            )  # fmt: skip
        for ftz in ("", "ftz") if form == "f16" else ("",):
            relu = _fused(form, "rn", bool(ftz), False, relu=True)
            for kind, act in ((form, relu), (packed, _pairs(relu, 16))):
                yield Opcode(
                    name=_words("fma.rn", ftz, "relu", kind), section=_section(form, "fma"), sources=(kind,) * 3, results=(kind,),
                    reference=act,
                    evidence=Evidence.INFERRED, note="a negative result, and -0, become +0; NaN stays",
                )  # fmt: skip


def _mixed() -> Iterator[Opcode]:
    """One operand of f16 or bf16 in f32 arithmetic."""
    for form in ("f16", "bf16"):
        for mode in ("", *ROUNDINGS):
            for name, sign in (("add", 0), ("sub", 1)):

                def sums(a: int, b: int, form: str = form, mode: str = mode or "rn", sign: int = sign) -> int:
                    y = decode(b, "f32")
                    return encode(add(decode(a, form), y._replace(sign=y.sign ^ sign), mode), "f32", mode)

                yield Opcode(
                    name=_words(name, mode, f"f32.{form}"), section=_MIXED + name, sources=(form, "f32"), results=("f32",), reference=sums,
                )  # fmt: skip
            if mode:

                def fused(a: int, b: int, c: int, form: str = form, mode: str = mode) -> int:
                    return encode(add(multiply(decode(a, form), decode(b, form)), decode(c, "f32"), mode), "f32", mode)

                yield Opcode(
                    name=_words("fma", mode, f"f32.{form}"), section=_MIXED + "fma", sources=(form, form, "f32"), results=("f32",),
                    reference=fused,
                )  # fmt: skip


def _division() -> Iterator[Opcode]:
    """What is correctly rounded; the approximations are functions of a unit of their own."""
    for form, bits in (("f32", 26), ("f64", 55)):
        for mode in ROUNDINGS:
            for ftz in ("", "ftz") if form == "f32" else ("",):

                def quotient(a: int, b: int, form: str = form, bits: int = bits, mode: str = mode, ftz: bool = bool(ftz)) -> int:
                    number, more = divide(decode(a, form, ftz=ftz), decode(b, form, ftz=ftz), bits)
                    return encode(number, form, mode, ftz=ftz, sticky=more)

                def root(a: int, form: str = form, bits: int = bits, mode: str = mode, ftz: bool = bool(ftz)) -> int:
                    number, more = square_root(decode(a, form, ftz=ftz), bits)
                    return encode(number, form, mode, ftz=ftz, sticky=more)

                one = encode(Number(0, 1, 0), form)
                evidence = Evidence.INFERRED if ftz else Evidence.PUBLISHED
                shared: dict[str, Any] = {"results": (form,), "evidence": evidence, "note": _FTZ_AFTER if ftz else ""}
                yield Opcode(
                    name=_words("div", mode, ftz, form), section=_SCALAR + "div", sources=(form, form), reference=quotient, **shared
                )
                yield Opcode(name=_words("sqrt", mode, ftz, form), section=_SCALAR + "sqrt", sources=(form,), reference=root, **shared)
                yield Opcode(
                    name=_words("rcp", mode, ftz, form), section=_SCALAR + "rcp", sources=(form,),
                    reference=lambda a, quotient=quotient, one=one: quotient(one, a), **shared,
                )  # fmt: skip


def _extreme(form: str, name: str, ftz: bool, nan: bool, xorsign: bool) -> Reference:
    bits = _NUMBERS[form]
    top = 1 << (bits - 1)

    def order(code: int) -> int:
        return -(code ^ top) - 1 if code & top else code

    def reference(*operands: int) -> int:
        sign = 0
        if xorsign:
            for each in operands:
                sign ^= each & top
            operands = tuple(each & ~top for each in operands)
        numbers = [decode(each, form, ftz=ftz) for each in operands]
        if nan and any(number.is_nan for number in numbers):
            return NAN[form]
        codes = [encode(number, form) for number in numbers if not number.is_nan]
        if not codes:
            return NAN[form]
        return (min if name == "min" else max)(codes, key=order) | sign

    return reference


def _signs() -> Iterator[Opcode]:
    """min, max, abs, neg, copysign and testp."""
    for form in ("f32", "f64", "f16", "bf16"):
        packed = {"f16": "f16x2", "bf16": "bf16x2"}.get(form)
        top = 1 << (_NUMBERS[form] - 1)
        for ftz in ("", "ftz") if form in ("f32", "f16") else ("",):
            for nan in ("", "NaN") if form != "f64" else ("",):
                for xorsign in ("", "xorsign.abs") if form != "f64" else ("",):
                    for name in ("min", "max"):
                        act = _extreme(form, name, bool(ftz), bool(nan), bool(xorsign))
                        yield Opcode(
                            name=_words(name, ftz, nan, xorsign, form), section=_section(form, name), sources=(form, form), results=(form,),
                            reference=act,
                        )  # fmt: skip
                        if form == "f32" and not xorsign:
                            yield Opcode(
                                name=_words(name, ftz, nan, form) + "#3", section=_section(form, name), sources=(form,) * 3,
                                results=(form,),
                                reference=act,
                            )  # fmt: skip
                        if packed:
                            yield Opcode(
                                name=_words(name, ftz, nan, xorsign, packed), section=_section(form, name), sources=(packed, packed),
                                results=(packed,), reference=_pairs(act, 16),
                            )  # fmt: skip

            def absolute(a: int, form: str = form, top: int = top, ftz: bool = bool(ftz)) -> int:
                return _flushed(a, form, ftz) & ~top

            def negative(a: int, form: str = form, top: int = top, ftz: bool = bool(ftz)) -> int:
                return _flushed(a, form, ftz) ^ top

            for name, act in (("abs", absolute), ("neg", negative)):
                note = "a NaN keeps its payload; the manual leaves it open"
                yield Opcode(
                    name=_words(name, ftz, form), section=_section(form, name), sources=(form,), results=(form,), reference=act, note=note
                )
                if packed:
                    yield Opcode(
                        name=_words(name, ftz, packed), section=_section(form, name), sources=(packed,), results=(packed,),
                        reference=_pairs(act, 16), note=note,
                    )  # fmt: skip
        if form in ("f32", "f64"):
            yield Opcode(
                name=f"copysign.{form}", section=_SCALAR + "copysign", sources=(form, form), results=(form,),
                reference=lambda a, b, top=top: b & ~top | a & top,
            )  # fmt: skip
            for test, function in _TESTS.items():

                def tested(a: int, form: str = form, function: Any = function) -> int:
                    return int(function(decode(a, form), form))

                yield Opcode(name=f"testp.{test}.{form}", section=_SCALAR + "testp", sources=(form,), results=("pred",), reference=tested)


def _is_subnormal(number: Number, form: str) -> bool:
    return number.special is None and 0 < number.significand < 1 << {"f32": 23, "f64": 52}[form]


_TESTS: dict[str, Callable[[Number, str], bool]] = {
    "finite": lambda x, form: x.special is None,
    "infinite": lambda x, form: x.is_infinite,
    "number": lambda x, form: not x.is_nan,
    "notanumber": lambda x, form: x.is_nan,
    "normal": lambda x, form: x.special is None and not x.is_zero and not _is_subnormal(x, form),
    "subnormal": _is_subnormal,
}


def _flushed(code: int, form: str, ftz: bool) -> int:
    number = decode(code, form, ftz=ftz)
    return code if not ftz or number.special else encode(number, form)


ORDERED: Final[dict[str, Callable[[int], bool]]] = {
    "eq": lambda c: c == 0, "ne": lambda c: c != 0, "lt": lambda c: c < 0, "le": lambda c: c <= 0, "gt": lambda c: c > 0,
    "ge": lambda c: c >= 0,
}  # fmt: skip
UNSIGNED: Final = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
"""Comparisons of unsigned integers under names of their own."""


def compared(name: str, kind: str, ftz: bool) -> Reference:
    """A comparison of two codes, 0 or 1."""
    if kind[0] in "bsu" and not kind.startswith("bf"):
        test, bits = ORDERED[UNSIGNED.get(name, name)], width(kind)

        def integers(a: int, b: int) -> int:
            x, y = (signed(a, bits), signed(b, bits)) if kind[0] == "s" else (a, b)
            return int(test((x > y) - (x < y)))

        return integers

    def floats(a: int, b: int) -> int:
        order = compare(decode(a, kind, ftz=ftz), decode(b, kind, ftz=ftz))
        if name in ("num", "nan"):
            return int((order is None) == (name == "nan"))
        if order is None:
            return int(name.endswith("u") and name in _UNORDERED)
        return int(ORDERED[name.removesuffix("u") if name in _UNORDERED else name](order))

    return floats


_UNORDERED: Final = ("equ", "neu", "ltu", "leu", "gtu", "geu")
_BOOLS: Final[dict[str, Callable[[int, int], int]]] = {"and": lambda t, c: t & c, "or": lambda t, c: t | c, "xor": lambda t, c: t ^ c}


def comparisons(kind: str) -> tuple[str, ...]:
    """The comparisons of a type."""
    if kind.startswith(("f", "bf")):
        return (*ORDERED, *_UNORDERED, "num", "nan")
    return tuple(ORDERED)[:2] if kind[0] == "b" else (*ORDERED, *UNSIGNED) if kind[0] == "u" else tuple(ORDERED)


def _comparing() -> Iterator[Opcode]:
    section = "comparison-and-selection-instructions-"
    kinds = [f"{sign}{bits}" for sign in "bsu" for bits in (16, 32, 64)] + ["f32", "f64", "f16", "bf16"]
    for kind in kinds:
        half = kind in ("f16", "bf16")
        where = ("half-precision-comparison-instructions-" if half else section) + "setp"
        for ftz in ("", "ftz") if kind in ("f32", "f16") else ("",):
            for name in comparisons(kind):
                test = compared(name, kind, bool(ftz))

                def plain(a: int, b: int, test: Any = test) -> tuple[int, int]:
                    truth = test(a, b)
                    return truth, 1 - truth

                yield Opcode(
                    name=_words("setp", name, ftz, kind), section=where, sources=(kind, kind), results=("pred", "pred"), reference=plain
                )
                for word, combine in _BOOLS.items():

                    def joined(a: int, b: int, c: int, test: Any = test, combine: Any = combine) -> tuple[int, int]:
                        truth = test(a, b)
                        return combine(truth, c), combine(1 - truth, c)

                    yield Opcode(
                        name=_words("setp", name, word, ftz, kind), section=where, sources=(kind, kind, "pred"), results=("pred", "pred"),
                        reference=joined,
                    )  # fmt: skip
                for result, one in (("u32", 0xFFFF_FFFF), ("s32", 0xFFFF_FFFF), ("f32", 0x3F80_0000)):

                    def chosen(a: int, b: int, test: Any = test, one: int = one) -> int:
                        return one if test(a, b) else 0

                    yield Opcode(
                        name=_words("set", name, ftz, result, kind), section=where.replace("setp", "set"), sources=(kind, kind),
                        results=(result,), reference=chosen,
                    )  # fmt: skip
    yield from _packed_comparisons()
    for bits in (16, 32, 64):
        for sign in "bsuf":
            of = f"{sign}{bits}"
            if of == "f16":
                continue
            yield Opcode(
                name=f"selp.{of}", section=section + "selp", sources=(of, of, "pred"), results=(of,),
                reference=lambda a, b, c: a if c else b,
            )  # fmt: skip
            yield Opcode(
                name=f"slct.{of}.s32", section=section + "slct", sources=(of, of, "s32"), results=(of,),
                reference=lambda a, b, c: a if c < 1 << 31 else b,
            )  # fmt: skip


def _packed_comparisons() -> Iterator[Opcode]:
    """Of pairs of f16 and bf16: two predicates, or a pair of 1.0 and 0.0, or a pair of masks."""
    where = "half-precision-comparison-instructions-"
    for form, packed, one in (("f16", "f16x2", 0x3C00), ("bf16", "bf16x2", 0x3F80)):
        for ftz in ("", "ftz") if form == "f16" else ("",):
            for name in comparisons(form):
                test = compared(name, form, bool(ftz))

                def both(a: int, b: int, test: Any = test) -> tuple[int, int]:
                    return test(a & 0xFFFF, b & 0xFFFF), test(a >> 16, b >> 16)

                yield Opcode(
                    name=_words("setp", name, ftz, packed), section=where + "setp", sources=(packed, packed), results=("pred", "pred"),
                    reference=both,
                )  # fmt: skip
                for result, value in ((packed, one), ("u32", 0xFFFF), ("s32", 0xFFFF)):

                    def pair(a: int, b: int, test: Any = test, value: int = value) -> Any:
                        return value * test(a & 0xFFFF, b & 0xFFFF) | value * test(a >> 16, b >> 16) << 16

                    yield Opcode(
                        name=_words("set", name, ftz, result, packed), section=where + "set", sources=(packed, packed), results=(result,),
                        reference=pair,
                    )  # fmt: skip


def rows() -> Iterator[Opcode]:
    """Every row of this file."""
    yield from _arithmetic()
    yield from _mixed()
    yield from _division()
    yield from _signs()
    yield from _comparing()


__all__ = ["ROUNDINGS", "Special", "compared", "comparisons", "rows"]
