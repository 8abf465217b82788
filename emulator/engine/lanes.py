"""Vectors of lanes for the engine's innermost loops: LLVM values with Python's operators.

Code written with them runs while Numba compiles and leaves straight vector instructions behind, whose values stay in
registers: no index checks, no aliasing to prove, nothing left to a vectoriser's judgement. LLVM splits or joins the
lanes to fit the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from mmabits.emulator.engine.width import byte_products

F32, F64 = ir.FloatType(), ir.DoubleType()
I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FLOATS = {F32: "f32", F64: "f64"}


class Lanes:
    """One vector value. Operators need operands of one type; a Python number stands for itself in every lane."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder = builder
        self.value = value

    @property
    def count(self) -> int:
        """Number of lanes."""
        return int(self.value.type.count)

    @property
    def element(self) -> ir.Type:
        """Type of a lane."""
        return self.value.type.element

    @property
    def is_float(self) -> bool:
        """Whether the lanes are floating-point."""
        return self.element in _FLOATS

    def _like(self, other: Lanes | float) -> ir.Value:
        if isinstance(other, Lanes):
            return other.value
        return ir.Constant(self.value.type, [other] * self.count)

    def _new(self, value: ir.Value) -> Lanes:
        return Lanes(self.builder, value)

    def __add__(self, other: Lanes | float) -> Lanes:
        add = self.builder.fadd if self.is_float else self.builder.add
        return self._new(add(self.value, self._like(other)))

    def __sub__(self, other: Lanes | float) -> Lanes:
        subtract = self.builder.fsub if self.is_float else self.builder.sub
        return self._new(subtract(self.value, self._like(other)))

    def __mul__(self, other: Lanes | float) -> Lanes:
        multiply = self.builder.fmul if self.is_float else self.builder.mul
        return self._new(multiply(self.value, self._like(other)))

    def __neg__(self) -> Lanes:
        return self._new(self.builder.fneg(self.value)) if self.is_float else self._new(self.builder.neg(self.value))

    def __and__(self, other: Lanes | int) -> Lanes:
        return self._new(self.builder.and_(self.value, self._like(other)))

    def __or__(self, other: Lanes | int) -> Lanes:
        return self._new(self.builder.or_(self.value, self._like(other)))

    def __xor__(self, other: Lanes | int) -> Lanes:
        return self._new(self.builder.xor(self.value, self._like(other)))

    def __lshift__(self, places: Lanes | int) -> Lanes:
        return self._new(self.builder.shl(self.value, self._like(places)))

    def __rshift__(self, places: Lanes | int) -> Lanes:
        return self._new(self.builder.lshr(self.value, self._like(places)))

    def arithmetic_shift(self, places: int) -> Lanes:
        """Integer lanes to the right, the sign above."""
        return self._new(self.builder.ashr(self.value, self._like(places)))

    def _compare(self, operator: str, other: Lanes | float) -> Lanes:
        compare = self.builder.fcmp_ordered if self.is_float else self.builder.icmp_signed
        return self._new(compare(operator, self.value, self._like(other)))

    def __lt__(self, other: Lanes | float) -> Lanes:
        return self._compare("<", other)

    def __gt__(self, other: Lanes | float) -> Lanes:
        return self._compare(">", other)

    def __ge__(self, other: Lanes | float) -> Lanes:
        return self._compare(">=", other)

    def equals(self, other: Lanes | float) -> Lanes:
        """Lane by lane, a mask."""
        return self._compare("==", other)

    def complement(self) -> Lanes:
        """Of a mask: where it is not set."""
        return self._new(self.builder.not_(self.value))

    def unordered(self, other: Lanes) -> Lanes:
        """Of floating-point lanes, a mask: where either is NaN."""
        return self._new(self.builder.fcmp_unordered("uno", self.value, other.value))

    def choose(self, yes: Lanes | float, no: Lanes) -> Lanes:
        """Of a mask: `yes` where it is set, else `no`."""
        return self._new(self.builder.select(self.value, no._like(yes), no.value))

    def maximum(self, other: Lanes | float) -> Lanes:
        """The larger of each pair (floating-point: `other` where either is NaN)."""
        if self.is_float:
            return (self > other).choose(self, self._new(self._like(other)))
        return self._new(self._intrinsic(f"llvm.smax.v{self.count}i{self.element.width}", 2)([self.value, self._like(other)]))

    def minimum(self, other: Lanes | int) -> Lanes:
        """The smaller of each pair of integers."""
        return self._new(self._intrinsic(f"llvm.smin.v{self.count}i{self.element.width}", 2)([self.value, self._like(other)]))

    def fma(self, factor: Lanes, addend: Lanes) -> Lanes:
        """This vector * factor + addend, rounded once."""
        call = self._intrinsic(f"llvm.fma.v{self.count}{_FLOATS[self.element]}", 3)
        return self._new(call([self.value, factor.value, addend.value]))

    def add_saturating(self, other: Lanes) -> Lanes:
        """The sum of signed integers; too large or too small is the nearest there is."""
        return self._new(self._intrinsic(f"llvm.sadd.sat.v{self.count}i{self.element.width}", 2)([self.value, other.value]))

    def add_products_of_bytes(self, unsigned: Lanes, signed: Lanes) -> Lanes:
        """32-bit lanes plus the four products of each lane's bytes, of which the first have no sign; modulo 2^32."""
        how = byte_products()
        if how == "vnni":
            bits = 32 * self.count
            name = f"llvm.x86.avx512.vpdpbusd.{bits}"
            kind = ir.FunctionType(self.value.type, [self.value.type] * 3)
            function = cgutils.get_or_insert_function(self.builder.module, kind, name)
            return self._new(self.builder.call(function, [self.value, unsigned.as_words().value, signed.as_words().value]))
        left, right = unsigned.as_words(), signed.as_words()
        if how == "pairs":
            return (
                self
                + left.halves(0, False).pair_products(right.halves(0, True))
                + left.halves(1, False).pair_products(right.halves(1, True))
            )
        total = self
        for place in range(4):
            one = (left >> (8 * place)) & 0xFF
            total = total + one * (right << (24 - 8 * place)).arithmetic_shift(24)
        return total

    def halves(self, place: int, signed: bool) -> Lanes:
        """Of 32-bit lanes seen as 16-bit ones the lower or the higher byte."""
        half = self._new(self.builder.bitcast(self.value, ir.VectorType(I16, 2 * self.count)))
        if place == 1:
            return half.arithmetic_shift(8) if signed else half >> 8
        return (half << 8).arithmetic_shift(8) if signed else half & 0xFF

    def pair_products(self, other: Lanes) -> Lanes:
        """Of 16-bit lanes the sums of two neighbours' products, in 32-bit lanes."""
        name = {16: "llvm.x86.sse2.pmadd.wd", 32: "llvm.x86.avx2.pmadd.wd", 64: "llvm.x86.avx512.pmaddw.d.512"}[2 * self.count]
        kind = ir.FunctionType(ir.VectorType(I32, self.count // 2), [self.value.type] * 2)
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self._new(self.builder.call(function, [self.value, other.value]))

    def _intrinsic(self, name: str, operands: int) -> Callable[[list[ir.Value]], ir.Value]:
        kind = ir.FunctionType(self.value.type, [self.value.type] * operands)
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return lambda values: self.builder.call(function, values)

    def bits(self) -> Lanes:
        """Floating-point lanes seen as integers of their width."""
        return self._new(self.builder.bitcast(self.value, ir.VectorType({F32: I32, F64: I64}[self.element], self.count)))

    def floats(self) -> Lanes:
        """Integer lanes seen as floating-point of their width."""
        return self._new(self.builder.bitcast(self.value, ir.VectorType({32: F32, 64: F64}[self.element.width], self.count)))

    def magnitude(self) -> Lanes:
        """Floating-point lanes without their sign."""
        bits = self.bits()
        width = int(bits.element.width)
        return (bits & ((1 << (width - 1)) - 1)).floats()

    def with_sign_of(self, other: Lanes) -> Lanes:
        """Nonnegative floating-point lanes with another vector's signs."""
        bits = self.bits()
        width = int(bits.element.width)
        return (bits | (other.bits() & -(1 << (width - 1)))).floats()

    def widen(self, element: ir.Type) -> Lanes:
        """To wider lanes: floats exactly, integers with their sign."""
        kind = ir.VectorType(element, self.count)
        return self._new(self.builder.fpext(self.value, kind) if self.is_float else self.builder.sext(self.value, kind))

    def unsigned(self, element: ir.Type) -> Lanes:
        """Integer lanes to at least as wide ones, zeros above."""
        kind = ir.VectorType(element, self.count)
        return self if element == self.element else self._new(self.builder.zext(self.value, kind))

    def narrow(self, element: ir.Type) -> Lanes:
        """Integer lanes to narrower ones, low bits kept."""
        return self._new(self.builder.trunc(self.value, ir.VectorType(element, self.count)))

    def high_halves(self) -> Lanes:
        """Of float32 lanes the upper 16 bits."""
        return self._picked(I16, range(1, 2 * self.count, 2))

    def _picked(self, element: ir.Type, lanes: Iterable[int]) -> Lanes:
        """Some of the lanes that the bits are, seen as integers of a width."""
        kind = ir.VectorType(element, self.count * _bytes(self.element) // _bytes(element))
        seen, places = self.builder.bitcast(self.value, kind), list(lanes)
        pick = ir.Constant(ir.VectorType(I32, len(places)), places)
        return self._new(self.builder.shuffle_vector(seen, ir.Constant(kind, ir.Undefined), pick))

    def interleaved(self, other: Lanes) -> Lanes:
        """Each lane of 16 bits and the other vector's behind it, as one of 32."""
        places = [lane + which for lane in range(self.count) for which in (0, self.count)]
        pick = ir.Constant(ir.VectorType(I32, len(places)), places)
        pairs = self.builder.shuffle_vector(self.value, other.value, pick)
        return self._new(self.builder.bitcast(pairs, ir.VectorType(I32, self.count)))

    def trailing_zeros(self) -> Lanes:
        """Zeros below the lowest bit that is set, of integer lanes; of 0 anything."""
        kind = ir.FunctionType(self.value.type, [self.value.type, ir.IntType(1)])
        name = f"llvm.cttz.v{self.count}i{self.element.width}"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self._new(self.builder.call(function, [self.value, ir.Constant(ir.IntType(1), 1)]))

    def reduced(self, how: str) -> ir.Value:
        """One integer of all lanes: `smax`, `smin`."""
        kind = ir.FunctionType(self.element, [self.value.type])
        name = f"llvm.vector.reduce.{how}.v{self.count}i{self.element.width}"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [self.value])

    def as_bytes(self) -> Lanes:
        """32-bit lanes seen as four bytes each, the lowest first."""
        return self._new(self.builder.bitcast(self.value, ir.VectorType(I8, 4 * self.count)))

    def as_words(self) -> Lanes:
        """Bytes seen as 32-bit lanes, four in each."""
        return self._new(self.builder.bitcast(self.value, ir.VectorType(I32, self.count // 4)))

    def spread_lowest(self) -> Lanes:
        """Bytes, the first of every four in all four."""
        pick = ir.Constant(ir.VectorType(I32, self.count), [lane // 4 * 4 for lane in range(self.count)])
        return self._new(self.builder.shuffle_vector(self.value, ir.Constant(self.value.type, ir.Undefined), pick))

    def whole(self) -> Lanes:
        """Float32 lanes that are whole numbers, as 32-bit integers."""
        return self._new(self.builder.fptosi(self.value, ir.VectorType(I32, self.count)))

    def to_float64(self) -> Lanes:
        """32-bit integer lanes to float64, exactly."""
        return self._new(self.builder.sitofp(self.value, ir.VectorType(F64, self.count)))

    def to_float32(self) -> Lanes:
        """Float64 lanes to float32, in the thread's rounding mode."""
        return self._new(self.builder.fptrunc(self.value, ir.VectorType(F32, self.count)))

    def any(self) -> ir.Value:
        """Of a mask: whether a lane is set, an i1."""
        mask = self.builder.bitcast(self.value, ir.IntType(self.count))
        return self.builder.icmp_unsigned("!=", mask, ir.Constant(mask.type, 0))

    def all(self) -> ir.Value:
        """Of a mask: whether every lane is set, an i1."""
        mask = self.builder.bitcast(self.value, ir.IntType(self.count))
        return self.builder.icmp_unsigned("==", mask, ir.Constant(mask.type, (1 << self.count) - 1))

    def as_bits(self) -> ir.Value:
        """Of a mask of at most 32 lanes: an i32 with a bit for each lane. (A bitcast would take the lanes out one by one.)"""
        kind = ir.VectorType(I32, self.count)
        places = ir.Constant(kind, [1 << lane if lane < 31 else -(1 << 31) for lane in range(self.count)])
        bits = self.builder.select(self.value, places, ir.Constant(kind, [0] * self.count))
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(I32, [kind]), f"llvm.vector.reduce.or.v{self.count}i32"
        )
        return self.builder.call(function, [bits])


class Emitter:
    """What an intrinsic's code generator writes with: addresses, loads, stores, broadcasts, loops."""

    def __init__(self, context: Any, builder: ir.IRBuilder) -> None:
        self.context = context
        self.builder = builder

    def data(self, array_type: Any, array: ir.Value) -> ir.Value:
        """Address of an array's first element."""
        return self.context.make_array(array_type)(self.context, self.builder, array).data

    def fields(self, kind: Any, value: ir.Value) -> SimpleNamespace:
        """A named tuple's fields by name: addresses for arrays, values for numbers."""
        found = {}
        for i, (name, field) in enumerate(zip(kind.fields, kind, strict=True)):
            part = self.builder.extract_value(value, i)
            found[name] = self.data(field, part) if isinstance(field, types.Array) else part
        return SimpleNamespace(**found)

    def index(self, number: int) -> ir.Value:
        """A constant index."""
        return ir.Constant(I64, number)

    def load(self, pointer: ir.Value, at: ir.Value, count: int) -> Lanes:
        """`count` elements from pointer[at]."""
        element = pointer.type.pointee
        address = self.builder.bitcast(self.builder.gep(pointer, [at]), ir.VectorType(element, count).as_pointer())
        value = self.builder.load(address)
        value.align = _bytes(element)
        return Lanes(self.builder, value)

    def store(self, lanes: Lanes, pointer: ir.Value, at: ir.Value) -> None:
        """All lanes to pointer[at]."""
        address = self.builder.bitcast(self.builder.gep(pointer, [at]), lanes.value.type.as_pointer())
        self.builder.store(lanes.value, address).align = _bytes(lanes.element)

    def scalar(self, pointer: ir.Value, at: ir.Value) -> ir.Value:
        """The element pointer[at]."""
        return self.builder.load(self.builder.gep(pointer, [at]))

    def four_bytes(self, pointer: ir.Value, at: ir.Value, count: int) -> Lanes:
        """The four bytes from pointer[at] on in every one of `count` 32-bit lanes, seen as bytes."""
        word = self.builder.load(self.builder.bitcast(self.builder.gep(pointer, [at]), I32.as_pointer()))
        word.align = 1
        return self.splat(word, count).as_bytes()

    def splat(self, scalar: ir.Value, count: int) -> Lanes:
        """One value in every lane."""
        kind = ir.VectorType(scalar.type, count)
        undefined = ir.Constant(kind, ir.Undefined)
        single = self.builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, count), [0] * count)
        return Lanes(self.builder, self.builder.shuffle_vector(single, undefined, zeros))

    def constant(self, element: ir.Type, number: float, count: int) -> Lanes:
        """One number in every lane."""
        return Lanes(self.builder, ir.Constant(ir.VectorType(element, count), [number] * count))

    def narrow_index(self, number: ir.Value) -> ir.Value:
        """An index as 32-bit integer."""
        return self.builder.trunc(number, I32)

    def cells(self, starts: list[Lanes]) -> list[LoopVariable]:
        """Variables that a loop changes."""
        return [LoopVariable(self.builder, start) for start in starts]

    @contextmanager
    def loop(self, count: ir.Value) -> Iterator[ir.Value]:
        """A loop over 0 .. count - 1."""
        with cgutils.for_range(self.builder, count) as loop:
            yield loop.index


class LoopVariable:
    """A variable that holds lanes across a loop; LLVM turns it into registers."""

    def __init__(self, builder: ir.IRBuilder, start: Lanes) -> None:
        self.builder = builder
        self._place = cgutils.alloca_once(builder, start.value.type)
        self.set(start)

    def get(self) -> Lanes:
        """The value now."""
        return Lanes(self.builder, self.builder.load(self._place))

    def set(self, lanes: Lanes) -> None:
        """A new value."""
        self.builder.store(lanes.value, self._place)


def _bytes(element: ir.Type) -> int:
    return {F32: 4, F64: 8}.get(element) or element.width // 8
