"""LLVM instructions on vectors of 32 lanes, written as text: what a warp's registers hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

LANES: Final = 32
"""Lanes of a warp."""


class Value(NamedTuple):
    """A vector of a warp: its name in LLVM's text, and the type of its elements (`i1`, `i32`, `float`, ...)."""

    name: str
    element: str

    @property
    def bits(self) -> int:
        """Of an element."""
        return _BITS.get(self.element) or int(self.element[1:])

    @property
    def typed(self) -> str:
        """Type and name."""
        return f"<{LANES} x {self.element}> {self.name}"


_BITS: Final = {"float": 32, "double": 64, "half": 16, "bfloat": 16}
_FLOAT: Final = {32: "float", 64: "double"}


def scalar_type(element: str) -> str:
    """The type of all lanes."""
    return f"<{LANES} x {element}>"


class Code:
    """The text of one function's body, line by line."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.declared: set[str] = set()
        """Declarations of intrinsics that the module needs."""
        self.globals: dict[str, str] = {}
        """Tables of the module, by name."""
        self._count = 0

    # ---------------------------------------------------------------------------------------------------------- names, text

    def line(self, text: str) -> None:
        """A line as it is."""
        self.lines.append("  " + text)

    def label(self, name: str) -> None:
        """The beginning of a block."""
        self.lines.append(f"{name}:")

    def fresh(self, prefix: str = "v") -> str:
        """A name that nothing has."""
        self._count += 1
        return f"%{prefix}{self._count}"

    def named(self, text: str) -> str:
        """The name of what an instruction gives."""
        name = self.fresh()
        self.lines.append(f"  {name} = {text}")
        return name

    # ------------------------------------------------------------------------------------------------------------- vectors

    def value(self, element: str, text: str) -> Value:
        """What an instruction gives, as a vector."""
        return Value(self.named(text), element)

    @staticmethod
    def constant(number: int, bits: int) -> Value:
        """The same integer in every lane."""
        number &= (1 << bits) - 1
        if number == 0:
            return Value("zeroinitializer", f"i{bits}")
        word = "true" if bits == 1 else str(number)
        return Value("<" + ", ".join([f"i{bits} {word}"] * LANES) + ">", f"i{bits}")

    @staticmethod
    def constants(numbers: Sequence[int], bits: int) -> Value:
        """An integer for each lane."""
        return Value("<" + ", ".join(f"i{bits} {number & (1 << bits) - 1}" for number in numbers) + ">", f"i{bits}")

    def number(self, bits_of: int, bits: int) -> Value:
        """The same float in every lane, from its code."""
        return self.as_float(self.constant(bits_of, bits))

    def splat(self, scalar: str, element: str) -> Value:
        """A scalar in every lane."""
        one = self.named(f"insertelement {scalar_type(element)} poison, {element} {scalar}, i64 0")
        whole = scalar_type(element)
        return self.value(element, f"shufflevector {whole} {one}, {whole} poison, <{LANES} x i32> zeroinitializer")

    def lane(self, value: Value, lane: str = "0") -> str:
        """One lane of a vector, as a scalar."""
        return self.named(f"extractelement {value.typed}, i32 {lane}")

    def binary(self, operation: str, a: Value, b: Value) -> Value:
        """`add`, `xor`, `fmul`, ... of two vectors."""
        return self.value(a.element, f"{operation} {a.typed}, {b.name}")

    def compare(self, condition: str, a: Value, b: Value) -> Value:
        """Of integers by `eq`, `slt`, ..., of floats by `oeq`, `uno`, ..."""
        kind = "fcmp" if a.element in _BITS else "icmp"
        return self.value("i1", f"{kind} {condition} {a.typed}, {b.name}")

    def select(self, condition: Value, a: Value, b: Value) -> Value:
        """`a` where the condition holds, else `b`."""
        return self.value(a.element, f"select {condition.typed}, {a.typed}, {b.typed}")

    def convert(self, operation: str, a: Value, element: str) -> Value:
        """`zext`, `trunc`, `sitofp`, `bitcast`, ..."""
        return self.value(element, f"{operation} {a.typed} to {scalar_type(element)}")

    def resize(self, a: Value, bits: int, *, signed: bool = False) -> Value:
        """An integer in another width."""
        if a.bits == bits:
            return a
        operation = "trunc" if a.bits > bits else "sext" if signed else "zext"
        return self.convert(operation, a, f"i{bits}")

    def as_float(self, a: Value) -> Value:
        """Codes of f32 or f64 as numbers."""
        return self.convert("bitcast", a, _FLOAT[a.bits])

    def as_bits(self, a: Value) -> Value:
        """Numbers as codes."""
        return self.convert("bitcast", a, f"i{a.bits}")

    def intrinsic(self, name: str, result: str, arguments: Iterable[Value], *, flags: str = "") -> Value:
        """A function of LLVM's on vectors: `llvm.fma`, `llvm.umin`, `llvm.ctpop`, ...; `flags` are its last scalar arguments."""
        arguments = list(arguments)
        whole = scalar_type(result)
        full = f"{name}.v{LANES}{result.replace('float', 'f32').replace('double', 'f64')}"
        parameters = ", ".join([scalar_type(each.element) for each in arguments] + (["i1"] if flags else []))
        self.declared.add(f"declare {whole} @{full}({parameters})")
        given = ", ".join([each.typed for each in arguments] + ([flags] if flags else []))
        return self.value(result, f"call {whole} @{full}({given})")

    # ----------------------------------------------------------------------------------------------------- common arithmetic

    def both(self, a: Value, b: Value) -> Value:
        """Bitwise and."""
        return self.binary("and", a, b)

    def either(self, a: Value, b: Value) -> Value:
        """Bitwise or."""
        return self.binary("or", a, b)

    def opposite(self, a: Value) -> Value:
        """Bitwise not."""
        return self.binary("xor", a, self.constant(-1, a.bits))

    def masked(self, a: Value, mask: int) -> Value:
        """The bits of a mask."""
        return self.both(a, self.constant(mask, a.bits))

    def shift(self, operation: str, a: Value, count: int) -> Value:
        """`shl`, `lshr` or `ashr` by a number below the width."""
        return self.binary(operation, a, self.constant(count, a.bits)) if count else a

    def has_bits(self, a: Value, mask: int) -> Value:
        """Whether any bit of a mask is set."""
        return self.compare("ne", self.masked(a, mask), self.constant(0, a.bits))
