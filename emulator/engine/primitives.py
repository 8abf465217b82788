"""What the engine's code takes from the processor by name: the thread's rounding mode, and sums of products of bytes.

What Numba makes calls these names. Their bodies come to it when LLVM makes machine code (objects.py), so that all else is the same for
every processor with so many lanes. Nothing here needs Numba.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from typing import Any, Final

from llvmlite import ir

from mmabits.emulator.engine.width import byte_products
from mmabits.isa import CompilerError

I8, I16, I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)
ENTER_ROUNDING: Final = "mmabits.enter_rounding"
"""`i32 (i32 mode)`: sets the mode, by LLVM's numbers, subnormals kept; returns what LEAVE_ROUNDING takes."""
LEAVE_ROUNDING: Final = "mmabits.leave_rounding"
_BYTES: Final = "mmabits.add_products_of_bytes."
_X86_DEFAULT: Final = 0x1F80
"""MXCSR with every exception masked and nothing flushed: programs that flush subnormals must not change bits here."""
_X86_MODES: Final = 0b01_10_00_11
"""Two bits of MXCSR for each mode, in LLVM's order of modes."""
_ARM_MODES: Final = 0b10_01_00_11
"""Two bits of FPCR for each mode, in LLVM's order of modes. All its other bits are 0: nothing flushed, no trap, NaN as they are."""


def declared(module: ir.Module, name: str, kind: ir.FunctionType) -> ir.Function:
    """A function that a module knows by name, or gets to know."""
    found = module.globals.get(name)
    return ir.Function(module, kind, name) if found is None else found


def enter_rounding(module: ir.Module) -> ir.Function:
    """ENTER_ROUNDING, declared."""
    return declared(module, ENTER_ROUNDING, ir.FunctionType(I32, [I32]))


def leave_rounding(module: ir.Module) -> ir.Function:
    """LEAVE_ROUNDING, declared."""
    return declared(module, LEAVE_ROUNDING, ir.FunctionType(ir.VoidType(), [I32]))


def add_products_of_bytes(module: ir.Module, count: int) -> ir.Function:
    """32-bit lanes plus the four products of each lane's bytes, of which the first have no sign; modulo 2^32. Declared."""
    words, parts = ir.VectorType(I32, count), ir.VectorType(I8, 4 * count)
    return declared(module, f"{_BYTES}{count}", ir.FunctionType(words, [words, parts, parts]))


def bodies(names: Iterable[str]) -> str:
    """LLVM IR that defines those of the names which are ours, for this processor and what the settings of width.py say."""
    module = ir.Module("primitives")
    for name in names:
        if name == ENTER_ROUNDING:
            _write(enter_rounding(module), _entering)
        elif name == LEAVE_ROUNDING:
            _write(leave_rounding(module), _leaving)
        elif name.startswith(_BYTES):
            _write(add_products_of_bytes(module, int(name.removeprefix(_BYTES))), _WAYS[byte_products()])
    return str(module)


def _write(function: ir.Function, body: Callable[[Any, Any], ir.Value | None]) -> None:
    function.attributes.add("alwaysinline")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    result = body(builder, function.args)
    if result is None:
        builder.ret_void()
    else:
        builder.ret(result)


# ----------------------------------------------------------------------------------------------------------- rounding mode


class _X86:
    """MXCSR, read and written by LLVM's intrinsics, which count as access to memory."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self.place = builder.alloca(I32)

    def _move(self, name: str) -> None:
        address = self.builder.bitcast(self.place, I8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [address.type])
        self.builder.call(declared(self.builder.module, f"llvm.x86.sse.{name}", kind), [address])

    def state(self) -> ir.Value:
        """What the register holds."""
        self._move("stmxcsr")
        return self.builder.load(self.place)

    def set(self, state: ir.Value) -> None:
        """Write the register."""
        self.builder.store(state, self.place)
        self._move("ldmxcsr")

    def of_mode(self, mode: ir.Value) -> ir.Value:
        """The register's content in a mode."""
        return _field(self.builder, _X86_MODES, mode, 13, _X86_DEFAULT)


class _Arm:
    """FPCR, likewise; llvm.set.rounding would leave what flushes, and loads would pass it."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def _register(self, name: str, result: ir.Type, operands: list[ir.Value]) -> ir.Value:
        kind = ir.FunctionType(result, [each.type for each in operands])
        return self.builder.call(declared(self.builder.module, f"llvm.aarch64.{name}.fpcr", kind), operands)

    def state(self) -> ir.Value:
        """What the register holds; its upper half is 0."""
        return self.builder.trunc(self._register("get", ir.IntType(64), []), I32)

    def set(self, state: ir.Value) -> None:
        """Write the register."""
        self._register("set", ir.VoidType(), [self.builder.zext(state, ir.IntType(64))])

    def of_mode(self, mode: ir.Value) -> ir.Value:
        """The register's content in a mode."""
        return _field(self.builder, _ARM_MODES, mode, 22, 0)


def _field(builder: Any, modes: int, mode: ir.Value, place: int, others: int) -> ir.Value:
    """A mode's two bits of `modes`, put at a place among other bits."""
    bits = builder.lshr(I32(modes), builder.shl(mode, I32(1)))
    bits = builder.shl(builder.and_(bits, I32(3)), I32(place))
    return builder.or_(bits, I32(others))


_UNITS: Final[dict[str, Callable[[Any], Any]]] = {"x86_64": _X86, "AMD64": _X86, "aarch64": _Arm, "arm64": _Arm, "ARM64": _Arm}
"""What knows the rounding mode, by the machine's names on Linux, macOS and Windows."""


def unit(builder: Any) -> Any:
    """The floating-point unit of this machine.

    Raises:
        CompilerError: a processor whose rounding mode is not known here.
    """
    machine = platform.machine()
    if machine not in _UNITS:
        raise CompilerError(f"the engine runs on x86-64 and AArch64, this is {machine!r}: its rounding mode is not known")
    return _UNITS[machine](builder)


def _entering(builder: Any, arguments: Any) -> ir.Value:
    found = unit(builder)
    before = found.state()
    found.set(found.of_mode(arguments[0]))
    return before


def _leaving(builder: Any, arguments: Any) -> None:
    unit(builder).set(arguments[0])


# ------------------------------------------------------------------------------------------------------- products of bytes


def _by_one_instruction(builder: Any, arguments: Any) -> ir.Value:
    total, unsigned, signed = arguments
    words = total.type
    function = declared(builder.module, f"llvm.x86.avx512.vpdpbusd.{32 * words.count}", ir.FunctionType(words, [words] * 3))
    return builder.call(function, [total, builder.bitcast(unsigned, words), builder.bitcast(signed, words)])


def _by_pairs(builder: Any, arguments: Any) -> ir.Value:
    total, unsigned, signed = arguments
    halves = ir.VectorType(I16, 2 * total.type.count)
    name = {8: "llvm.x86.sse2.pmadd.wd", 16: "llvm.x86.avx2.pmadd.wd", 32: "llvm.x86.avx512.pmaddw.d.512"}[halves.count]
    multiply = declared(builder.module, name, ir.FunctionType(total.type, [halves] * 2))
    left, right = builder.bitcast(unsigned, halves), builder.bitcast(signed, halves)
    eight = _everywhere(halves, 8)
    low = builder.and_(left, _everywhere(halves, 0xFF)), builder.ashr(builder.shl(right, eight), eight)
    high = builder.lshr(left, eight), builder.ashr(right, eight)
    for pair in (low, high):
        total = builder.add(total, builder.call(multiply, pair))
    return total


def _plainly(builder: Any, arguments: Any) -> ir.Value:
    total, unsigned, signed = arguments
    words = total.type
    left, right = builder.bitcast(unsigned, words), builder.bitcast(signed, words)
    for place in range(4):
        one = builder.and_(builder.lshr(left, _everywhere(words, 8 * place)), _everywhere(words, 0xFF))
        other = builder.ashr(builder.shl(right, _everywhere(words, 24 - 8 * place)), _everywhere(words, 24))
        total = builder.add(total, builder.mul(one, other))
    return total


_WAYS: Final = {"vnni": _by_one_instruction, "pairs": _by_pairs, "plain": _plainly}


def _everywhere(kind: ir.VectorType, number: int) -> ir.Constant:
    return ir.Constant(kind, [number] * kind.count)
