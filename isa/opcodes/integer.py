"""Integer, logic and shift opcodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mmabits.isa.opcodes.spec import Opcode, width

Reference = Callable[..., Any]


def unsigned(value: int, bits: int) -> int:
    """The low bits of an integer."""
    return value & (1 << bits) - 1


def signed(bits_of: int, bits: int) -> int:
    """Two's complement read as an integer."""
    return bits_of - (1 << bits) if bits_of >> (bits - 1) & 1 else bits_of


def _value(bits_of: int, kind: str) -> int:
    return signed(bits_of, width(kind)) if kind[0] == "s" else bits_of


def _typed(kind: str, function: Callable[..., int], *, result: str | None = None) -> Reference:
    """A function of integers as one of codes."""
    out = width(result or kind)

    def reference(*operands: int) -> int:
        return unsigned(function(*(_value(each, kind) for each in operands)), out)

    return reference


def _halves(kind: str, function: Callable[..., int]) -> Reference:
    """A function of 16-bit integers, for both halves of a word."""
    one = _typed(kind, function)

    def reference(*operands: int) -> Any:
        return one(*(each & 0xFFFF for each in operands)) | one(*(each >> 16 for each in operands)) << 16

    return reference


def _row(name: str, section: str, sources: tuple[str, ...], result: str, reference: Reference, **more: Any) -> Opcode:
    return Opcode(name=name, section=section, sources=sources, results=(result,), reference=reference, **more)


def _quotient(a: int, b: int) -> int:
    return -(-a // b) if (a < 0) != (b < 0) else a // b


def _clamp(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)


def _saturated(function: Callable[..., int]) -> Callable[..., int]:
    return lambda *operands: _clamp(function(*operands), -(1 << 31), (1 << 31) - 1)


def _divide(kind: str) -> Reference:
    bits = width(kind)

    def reference(a: int, b: int) -> int:
        if b == 0:  # undefined by the manual: what the sequence of ptxas gives
            return unsigned(-1, bits)
        return unsigned(_quotient(_value(a, kind), _value(b, kind)), bits)

    return reference


def _remainder(kind: str) -> Reference:
    bits = width(kind)

    def reference(a: int, b: int) -> int:
        if b == 0:
            return a
        x, y = _value(a, kind), _value(b, kind)
        return unsigned(x - y * _quotient(x, y), bits)

    return reference


def _arithmetic() -> Iterator[Opcode]:
    section = "integer-arithmetic-instructions-"
    for kind in ("s16", "u16", "s32", "u32", "s64", "u64"):
        bits, three, two = width(kind), (kind,) * 3, (kind,) * 2
        yield _row(f"add.{kind}", section + "add", two, kind, _typed(kind, lambda a, b: a + b))
        yield _row(f"sub.{kind}", section + "sub", two, kind, _typed(kind, lambda a, b: a - b))
        yield _row(f"min.{kind}", section + "min", two, kind, _typed(kind, min))
        yield _row(f"max.{kind}", section + "max", two, kind, _typed(kind, max))
        yield _row(f"mul.lo.{kind}", section + "mul", two, kind, _typed(kind, lambda a, b: a * b))
        yield _row(f"mul.hi.{kind}", section + "mul", two, kind, _typed(kind, lambda a, b, bits=bits: a * b >> bits))
        yield _row(f"mad.lo.{kind}", section + "mad", three, kind, _typed(kind, lambda a, b, c: a * b + c))
        yield _row(f"mad.hi.{kind}", section + "mad", three, kind, _typed(kind, lambda a, b, c, bits=bits: (a * b >> bits) + c))
        undefined = "division by zero is undefined in PTX; here the bits that NVIDIA's own sequence leaves"
        yield _row(f"div.{kind}", section + "div", two, kind, _divide(kind), note=undefined)
        yield _row(f"rem.{kind}", section + "rem", two, kind, _remainder(kind), note=undefined)
        if bits < 64:
            wide = f"{kind[0]}{2 * bits}"
            yield _row(f"mul.wide.{kind}", section + "mul", two, wide, _typed(kind, lambda a, b: a * b, result=wide))

            def mad_wide(a: int, b: int, c: int, kind: str = kind, bits: int = bits) -> int:
                return unsigned(_value(a, kind) * _value(b, kind) + c, 2 * bits)

            yield _row(f"mad.wide.{kind}", section + "mad", (kind, kind, wide), wide, mad_wide)
        if kind[0] == "s":
            yield _row(f"abs.{kind}", section + "abs", (kind,), kind, _typed(kind, abs))
            yield _row(f"neg.{kind}", section + "neg", (kind,), kind, _typed(kind, lambda a: -a))
    for name, function in (("add", lambda a, b: a + b), ("sub", lambda a, b: a - b)):
        yield _row(f"{name}.sat.s32", section + name, ("s32", "s32"), "s32", _typed("s32", _saturated(function)))
    for kind in ("s16x2", "u16x2"):
        one = kind[:3]
        yield _row(f"add.{kind}", section + "add", (kind, kind), kind, _halves(one, lambda a, b: a + b))
        yield _row(f"min.{kind}", section + "min", (kind, kind), kind, _halves(one, min))
        yield _row(f"max.{kind}", section + "max", (kind, kind), kind, _halves(one, max))
    for kind in ("u32", "s32"):
        three = (kind,) * 3
        yield _row(f"mul24.lo.{kind}", section + "mul24", (kind, kind), kind, _mul24(kind, 0))
        yield _row(f"mul24.hi.{kind}", section + "mul24", (kind, kind), kind, _mul24(kind, 16))
        yield _row(f"sad.{kind}", section + "sad", three, kind, _sad(kind))
    yield _row("sad.u16", section + "sad", ("u16",) * 3, "u16", _sad("u16"))
    yield _row("mad.hi.sat.s32", section + "mad", ("s32",) * 3, "s32", _typed("s32", _saturated(lambda a, b, c: (a * b >> 32) + c)))
    for a in ("u32", "s32"):
        for b in ("u32", "s32"):
            out = "s32" if "s32" in (a, b) else "u32"
            yield _row(f"dp4a.{a}.{b}", section + "dp4a", ("b32", "b32", out), out, _dot_bytes(a[0], b[0]))
            for half in ("lo", "hi"):
                yield _row(f"dp2a.{half}.{a}.{b}", section + "dp2a", ("b32", "b32", out), out, _dot_halves(a[0], b[0], 16 * (half == "hi")))


def _mul24(kind: str, shift: int) -> Reference:
    def reference(a: int, b: int) -> int:
        x, y = a & 0xFFFFFF, b & 0xFFFFFF
        if kind[0] == "s":
            x, y = signed(x, 24), signed(y, 24)
        return unsigned(x * y >> shift, 32)

    return reference


def _sad(kind: str) -> Reference:
    return lambda a, b, c: unsigned(c + abs(_value(a, kind) - _value(b, kind)), width(kind))


def _dot_bytes(a_sign: str, b_sign: str) -> Reference:
    def reference(a: int, b: int, c: int) -> int:
        total = c
        for byte in range(4):
            total += _value(a >> 8 * byte & 0xFF, f"{a_sign}8") * _value(b >> 8 * byte & 0xFF, f"{b_sign}8")
        return unsigned(total, 32)

    return reference


def _dot_halves(a_sign: str, b_sign: str, shift: int) -> Reference:
    def reference(a: int, b: int, c: int) -> int:
        total = c
        for place in range(2):
            total += _value(a >> 16 * place & 0xFFFF, f"{a_sign}16") * _value(b >> shift >> 8 * place & 0xFF, f"{b_sign}8")
        return unsigned(total, 32)

    return reference


def _find(kind: str, *, shift_amount: bool = False) -> Reference:
    bits = width(kind)

    def reference(a: int) -> int:
        if kind[0] == "s" and a >> (bits - 1):
            a = unsigned(~a, bits)
        place = a.bit_length() - 1
        if place < 0:
            return 0xFFFF_FFFF
        return bits - 1 - place if shift_amount else place

    return reference


def _extract(kind: str) -> Reference:
    bits = width(kind)

    def reference(a: int, position: int, length: int) -> int:
        position, length = position & 0xFF, length & 0xFF
        top = min(position + length - 1, bits - 1)
        fill = a >> top & 1 if kind[0] == "s" and length else 0
        field = a >> position & (1 << length) - 1 if position < bits else (1 << min(length, bits)) - 1 if fill else 0
        have = max(0, min(length, bits - position))
        if fill:
            field = field & (1 << have) - 1 | unsigned(-1, bits) << have
        return unsigned(field, bits)

    return reference


def _insert(bits: int) -> Reference:
    def reference(a: int, b: int, position: int, length: int) -> int:
        position, length = position & 0xFF, length & 0xFF
        field = unsigned(((1 << length) - 1) << position, bits)
        return b & ~field & (1 << bits) - 1 | unsigned(a << position, bits) & field

    return reference


def _bits() -> Iterator[Opcode]:
    section = "integer-arithmetic-instructions-"
    for bits in (32, 64):
        kind = f"b{bits}"
        yield _row(f"popc.{kind}", section + "popc", (kind,), "u32", lambda a: a.bit_count())
        yield _row(f"clz.{kind}", section + "clz", (kind,), "u32", lambda a, bits=bits: bits - a.bit_length())
        yield _row(f"brev.{kind}", section + "brev", (kind,), kind, lambda a, bits=bits: int(f"{a:0{bits}b}"[::-1], 2))
        yield _row(f"bfi.{kind}", section + "bfi", (kind, kind, "u32", "u32"), kind, _insert(bits))
        for sign in "us":
            of = f"{sign}{bits}"
            yield _row(f"bfind.{of}", section + "bfind", (of,), "u32", _find(of))
            yield _row(f"bfind.shiftamt.{of}", section + "bfind", (of,), "u32", _find(of, shift_amount=True))
            yield _row(f"bfe.{of}", section + "bfe", (of, "u32", "u32"), of, _extract(of))
    for mode in ("clamp", "wrap"):
        yield _row(f"bmsk.{mode}.b32", section + "bmsk", ("u32", "u32"), "b32", _mask_of(mode))
        for kind in ("u32", "s32"):
            yield _row(f"szext.{mode}.{kind}", section + "szext", (kind, "u32"), kind, _extend(mode, kind))


def _mask_of(mode: str) -> Reference:
    def reference(a: int, b: int) -> int:
        if mode == "wrap":
            a, b = a & 31, b & 31
        return unsigned(((1 << min(b, 64)) - 1) << min(a, 64), 32)

    return reference


def _extend(mode: str, kind: str) -> Reference:
    def reference(a: int, size: int) -> int:
        size = size & 31 if mode == "wrap" else min(size, 32)
        low = unsigned(a, size) if size else 0
        return unsigned(signed(low, size), 32) if kind == "s32" and size else low

    return reference


def _logic() -> Iterator[Opcode]:
    section = "logic-and-shift-instructions-"
    for kind in ("pred", "b16", "b32", "b64"):
        bits = width(kind)
        yield _row(f"and.{kind}", section + "and", (kind, kind), kind, lambda a, b: a & b)
        yield _row(f"or.{kind}", section + "or", (kind, kind), kind, lambda a, b: a | b)
        yield _row(f"xor.{kind}", section + "xor", (kind, kind), kind, lambda a, b: a ^ b)
        yield _row(f"not.{kind}", section + "not", (kind,), kind, lambda a, bits=bits: unsigned(~a, bits))
        if kind != "pred":
            yield _row(f"cnot.{kind}", section + "cnot", (kind,), kind, lambda a: int(a == 0))
    for kind in ("b16", "b32", "b64"):
        bits = width(kind)
        yield _row(f"shl.{kind}", section + "shl", (kind, "u32"), kind, lambda a, n, bits=bits: unsigned(a << n, bits) if n < bits else 0)
        for sign in "bus":
            of = f"{sign}{bits}"
            yield _row(f"shr.{of}", section + "shr", (of, "u32"), of, _typed_shift(of))
    yield _row("lop3.b32", section + "lop3", ("b32", "b32", "b32", "u32"), "b32", _lop3, constants=(3,))
    for side in "lr":
        for mode in ("wrap", "clamp"):
            yield _row(f"shf.{side}.{mode}.b32", section + "shf", ("b32", "b32", "u32"), "b32", _funnel(side, mode))


def _typed_shift(kind: str) -> Reference:
    bits = width(kind)
    return lambda a, n: unsigned(_value(a, kind) >> min(n, bits), bits)


def _lop3(a: int, b: int, c: int, table: int) -> int:
    found = 0
    for place in range(8):
        if table >> place & 1:
            x = a if place & 4 else ~a
            y = b if place & 2 else ~b
            z = c if place & 1 else ~c
            found |= x & y & z
    return unsigned(found, 32)


def _funnel(side: str, mode: str) -> Reference:
    def reference(low: int, high: int, n: int) -> int:
        n = n & 31 if mode == "wrap" else min(n, 32)
        both = high << 32 | low
        return unsigned(both << n >> 32 if side == "l" else both >> n, 32)

    return reference


def _permute(a: int, b: int, selector: int) -> int:
    both, found = b << 32 | a, 0
    for place in range(4):
        nibble = selector >> 4 * place & 15
        byte = both >> 8 * (nibble & 7) & 0xFF
        found |= (0xFF * (byte >> 7) if nibble & 8 else byte) << 8 * place
    return found


_SELECTORS = {
    "f4e": lambda n: [n, n + 1, n + 2, n + 3],
    "b4e": lambda n: [n, (n - 1) & 7, (n - 2) & 7, (n - 3) & 7],
    "rc8": lambda n: [n] * 4,
    "ecl": lambda n: [max(n, place) for place in range(4)],
    "ecr": lambda n: [min(n, place) for place in range(4)],
    "rc16": lambda n: [2 * (n & 1), 2 * (n & 1) + 1] * 2,
}


def _moves() -> Iterator[Opcode]:
    section = "data-movement-and-conversion-instructions-"
    yield _row("prmt.b32", section + "prmt", ("b32", "b32", "b32"), "b32", _permute)
    for mode, places in _SELECTORS.items():

        def reference(a: int, b: int, selector: int, places: Any = places) -> int:
            both = b << 32 | a
            return sum((both >> 8 * (at & 7) & 0xFF) << 8 * place for place, at in enumerate(places(selector & 3)))

        yield _row(f"prmt.b32.{mode}", section + "prmt", ("b32", "b32", "b32"), "b32", reference)
    for bits in (16, 32, 64):
        for sign in "busf":
            of = f"{sign}{bits}"
            if of != "f16":
                yield _row(f"mov.{of}", section + "mov", (of,), of, lambda a: a)
    yield _row("mov.pred", section + "mov", ("pred",), "pred", lambda a: a)


def _carries() -> Iterator[Opcode]:
    """Extended precision: the carry is an operand of its own here, the last one, and the second result."""
    section = "extended-precision-arithmetic-instructions-"
    for bits in (32, 64):
        for sign in "us":
            of = f"{sign}{bits}"
            two, three = (of, of), (of, of, of)
            for name, function, in_, out in (
                ("add.cc", lambda a, b: a + b, 0, 1), ("addc", lambda a, b, c: a + b + c, 1, 0),
                ("addc.cc", lambda a, b, c: a + b + c, 1, 1),
                ("sub.cc", lambda a, b: a - b, 0, 1), ("subc", lambda a, b, c: a - b - c, 1, 0),
                ("subc.cc", lambda a, b, c: a - b - c, 1, 1),
            ):  # fmt: skip
                sources = (*two, "pred") if in_ else two
                yield Opcode(
                    name=f"{name}.{of}", section=section + name.replace(".", "-"), sources=sources,
                    results=(of, "pred") if out else (of,), reference=_with_carry(function, bits, out),
                )  # fmt: skip
            for part in ("lo", "hi"):
                for name, in_, out in ((f"mad.{part}.cc", 0, 1), (f"madc.{part}", 1, 0), (f"madc.{part}.cc", 1, 1)):
                    yield Opcode(
                        name=f"{name}.{of}", section=section + name.split(".")[0] + ("-cc" if out else ""),
                        sources=(*three, "pred") if in_ else three, results=(of, "pred") if out else (of,),
                        reference=_mad_carry(of, part, out),
                    )  # fmt: skip


def _with_carry(function: Callable[..., int], bits: int, out: int) -> Reference:
    def reference(*operands: int) -> Any:
        total = function(*operands)
        return (unsigned(total, bits), int(total >> bits != 0)) if out else unsigned(total, bits)

    return reference


def _mad_carry(kind: str, part: str, out: int) -> Reference:
    bits = width(kind)

    def reference(a: int, b: int, c: int, carry: int = 0) -> Any:
        product = _value(a, kind) * _value(b, kind)
        term = unsigned(product if part == "lo" else product >> bits, bits)
        total = term + c + carry
        return (unsigned(total, bits), total >> bits) if out else unsigned(total, bits)

    return reference


def rows() -> Iterator[Opcode]:
    """Every row of this file."""
    yield from _arithmetic()
    yield from _bits()
    yield from _logic()
    yield from _moves()
    yield from _carries()
