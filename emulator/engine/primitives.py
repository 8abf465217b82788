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

I8, I16, I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)
ENTER_ROUNDING: Final = "mmabits.enter_rounding"
"""`i32 (i32 mode)`: sets the mode, by LLVM's numbers, subnormals kept; returns what LEAVE_ROUNDING takes."""
LEAVE_ROUNDING: Final = "mmabits.leave_rounding"
_BYTES: Final = "mmabits.add_products_of_bytes."
_X86_DEFAULT: Final = 0x1F80
"""MXCSR with every exception masked and nothing flushed: programs that flush subnormals must not change bits here."""
_X86_MODES: Final = 0b01_10_00_11
"""Two bits of MXCSR for each mode, in LLVM's order of modes."""


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


def _on_x86() -> bool:
    return platform.machine() in ("x86_64", "AMD64")


def _entering(builder: Any, arguments: Any) -> ir.Value:
    if not _on_x86():
        before = builder.call(declared(builder.module, "llvm.get.rounding", ir.FunctionType(I32, [])), [])
        _leaving(builder, arguments)
        return before
    place = builder.alloca(I32)
    _move(builder, "stmxcsr", place)
    before = builder.load(place)
    bits = builder.lshr(I32(_X86_MODES), builder.shl(arguments[0], I32(1)))
    bits = builder.shl(builder.and_(bits, I32(3)), I32(13))
    builder.store(builder.or_(bits, I32(_X86_DEFAULT)), place)
    _move(builder, "ldmxcsr", place)
    return before


def _leaving(builder: Any, arguments: Any) -> None:
    if not _on_x86():
        kind = ir.FunctionType(ir.VoidType(), [I32])
        builder.call(declared(builder.module, "llvm.set.rounding", kind), [arguments[0]])
        return
    place = builder.alloca(I32)
    builder.store(arguments[0], place)
    _move(builder, "ldmxcsr", place)


def _move(builder: Any, name: str, place: ir.Value) -> None:
    """Store MXCSR to a place (`stmxcsr`), or load it from there (`ldmxcsr`)."""
    address = builder.bitcast(place, I8.as_pointer())
    builder.call(declared(builder.module, f"llvm.x86.sse.{name}", ir.FunctionType(ir.VoidType(), [address.type])), [address])


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
