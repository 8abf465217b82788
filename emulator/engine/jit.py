"""The one place that imports Numba's decorators, and the policy: no Python objects, no allocation, never fast-math.

Also what the compiled code needs beside Numba's language: addresses seen as arrays and tuples, memory, and the rounding mode
of the running thread, which the whole engine works with.

An assumption is under that mode: plain LLVM additions round in the mode that the thread has where they stand. LLVM promises it for
its `constrained` intrinsics alone, which it hardly optimizes; for plain ones it takes rounding to nearest for granted where it
computes constants. It holds here since what changes the mode counts as a write to memory, which no load passes, and since every
sum has an operand that was loaded. What is made of constants alone must be exact: it is folded, to nearest.
tests/unit/emulator/test_rounding_mode.py holds the machine code of every function to it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_type_hints

import numba
from llvmlite import ir
from numba import _dynfunc, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import intrinsic as numba_intrinsic
from numba.np.arrayobj import populate_array

from mmabits.isa import CompilerError

__all__ = [
    "address_of", "allocate", "array_at", "call_at", "compiled_object", "enter_rounding", "fields_at", "inlined", "intrinsic", "jit",
    "leave_rounding", "release", "shared_word",
]  # fmt: skip

_njit: Any = numba.njit
_POLICY = {"error_model": "numpy", "no_cfunc_wrapper": True, "no_cpython_wrapper": True, "_nrt": False}
"""Nopython, division by IEEE rules, called by compiled code alone, without Numba's runtime: machine code that needs no Numba."""


def jit(function: Callable[..., Any]) -> Any:
    """Compile a function that compiled code calls."""
    return _njit(**_POLICY)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """`jit` for what inner loops call: its code goes where it is called, since handing on tuples of arrays costs more than the work."""
    return _njit(**_POLICY, forceinline=True)(function)


def intrinsic(function: Callable[..., Any]) -> Any:
    """A function that compiled code calls and that writes its own LLVM instructions."""
    return numba_intrinsic(function)


class _Callee(JITCodeLibrary):
    """A function on its way into one that is compiled as a whole: neither optimized nor made executable by itself.

    Once no such compilation runs it is like any other: Numba's own functions, among them, may be called by others later.
    """

    waits = False
    """Whether a compilation as a whole runs. Changed under Numba's lock."""
    environment: tuple[str, Any] | None = None

    def _ensure_finalized(self) -> None:
        if not _Callee.waits:
            super()._ensure_finalized()

    def _finalize_specific(self) -> None:
        super()._finalize_specific()
        if self.environment is not None:
            codegen: Any = self._codegen
            codegen.set_env(*self.environment)


@contextmanager
def _parts(context: Any) -> Iterator[None]:
    """Have Numba make parts of all that it compiles."""

    def get_executable(library: Any, description: Any, environment: Any) -> Any:
        if not isinstance(library, _Callee):
            return type(context).get_executable(context, library, description, environment)
        library.environment = context.get_env_name(description), environment
        return _dynfunc.make_function(
            description.lookup_module(), description.qualname.rpartition(".")[2], "a part", 0, environment, (library,)
        )

    codegen = context.codegen()
    _Callee.waits, codegen._library_class, context.get_executable = True, _Callee, get_executable
    try:
        yield
    finally:
        _Callee.waits = False
        del codegen._library_class, context.get_executable


def _needed(library: Any, found: dict[Any, None]) -> dict[Any, None]:
    """A library and those that it calls, each once."""
    if library not in found:
        found[library] = None
        for each in library._linking_libraries if isinstance(library, _Callee) and not library._finalized else ():
            _needed(each, found)
    return found


@global_compiler_lock
def compiled_object(function: Callable[[Any], None], symbol: str) -> tuple[bytes, tuple[str, ...]]:
    """Compile a function of one address to the object code of `void symbol(void *)`.

    All that it calls is optimized with it, once: Numba would do so for each function, and make machine code of each.

    Returns:
        The object code, for this machine, and the names that it expects of the process (`malloc` and the like).
    """
    dispatcher = jit(function)
    context = cpu_target.target_context
    with _parts(context):
        dispatcher.compile((types.voidptr,))
        (compiled,) = dispatcher.overloads.values()
        module = context.create_module(f"{symbol}.wrapper")
        callee = ir.Function(
            module, context.call_conv.get_function_type(compiled.fndesc.restype, compiled.fndesc.argtypes), compiled.fndesc.llvm_func_name
        )
        wrapper = ir.Function(module, ir.FunctionType(ir.VoidType(), [context.get_value_type(types.voidptr)]), symbol)
        builder = ir.IRBuilder(wrapper.append_basic_block("entry"))
        context.call_conv.call_function(builder, callee, compiled.fndesc.restype, compiled.fndesc.argtypes, wrapper.args)
        builder.ret_void()
    library = context.codegen().create_library(symbol)
    library.enable_object_caching()
    library.add_ir_module(module)
    for each in _needed(compiled.library, {}):
        if isinstance(each, _Callee) and not each._finalized:
            library._final_module.link_in(each._final_module, preserve=True)
        else:
            library.add_linking_library(each)
    for each in library._final_module.functions:
        if not each.is_declaration and each.name != symbol:
            each.linkage = "internal"  # it goes where it is called
    library.finalize()
    expected = [each.name for each in library._final_module.functions if each.is_declaration and not each.name.startswith("llvm.")]
    expected += [each.name for each in library._final_module.global_variables if each.is_declaration]
    return library._get_compiled_object(), tuple(expected)


@intrinsic
def address_of(_context: Any, pointer: Any) -> Any:
    """An address as an integer."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(arguments[0], ir.IntType(64))

    return types.int64(pointer), codegen


@intrinsic
def array_at(_context: Any, address: Any, shape: Any, dtype: Any) -> Any:
    """The array of a shape (a number, or a tuple of them) and dtype that lies at an address, row by row."""
    dimensions = len(shape) if isinstance(shape, types.BaseTuple) else 1
    found = types.Array(dtype.dtype, dimensions, "C")

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        sizes = cgutils.unpack_tuple(builder, arguments[1]) if isinstance(shape, types.BaseTuple) else [arguments[1]]
        item = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(found.dtype)))
        steps = [item]
        for size in reversed(sizes[1:]):
            steps.append(builder.mul(steps[-1], size))
        made = context.make_array(found)(context, builder)
        data = builder.inttoptr(arguments[0], made.data.type)
        populate_array(made, data=data, shape=sizes, strides=steps[::-1], itemsize=item, meminfo=None)
        return made._getvalue()

    return found(types.int64, shape, dtype), codegen


@intrinsic
def fields_at(_context: Any, address: Any, kind: Any) -> Any:
    """The named tuple `kind` that lies at an address as 64-bit words: integers, or floats where its fields say so."""
    row = kind.instance_class
    element = types.float64 if set(get_type_hints(row).values()) == {float} else types.int64
    found = types.NamedUniTuple(element, len(row._fields), row)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], context.get_value_type(found).as_pointer()))

    return found(types.int64, kind), codegen


@intrinsic
def shared_word(_context: Any, address: Any) -> Any:
    """The 64-bit integer at an address as it is now: another thread may change it."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()), ordering="monotonic", align=8)

    return types.int64(types.int64), codegen


@intrinsic
def call_at(_context: Any, function: Any, argument: Any) -> Any:
    """Call the function `int32 (void *)` that lies at an address."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        word, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        callee = builder.inttoptr(arguments[0], ir.FunctionType(word, [pointer]).as_pointer())
        return builder.call(callee, [builder.inttoptr(arguments[1], pointer)])

    return types.int32(types.int64, types.int64), codegen


@intrinsic
def allocate(_context: Any, size: Any) -> Any:
    """Address of `size` bytes, as of C's malloc: 0 where there is no memory."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(8).as_pointer(), [ir.IntType(64)])
        found = builder.call(cgutils.get_or_insert_function(builder.module, kind, "malloc"), arguments)
        return builder.ptrtoint(found, ir.IntType(64))

    return types.int64(types.int64), codegen


@intrinsic
def release(_context: Any, address: Any) -> Any:
    """Give back what allocate gave."""

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "free"), [pointer])
        return context.get_dummy_value()

    return types.none(types.int64), codegen


_X86_DEFAULT = 0x1F80
"""MXCSR with every exception masked and nothing flushed: programs that flush subnormals must not change bits here."""
_X86_MODES = 0b01_10_00_11
"""Two bits of MXCSR for each mode, in LLVM's order of modes."""
_ARM_MODES = 0b10_01_00_11
"""Two bits of FPCR for each mode, in LLVM's order of modes. All its other bits are 0: nothing flushed, no trap, NaN as they are."""


class _X86:
    """MXCSR, read and written by LLVM's intrinsics, which count as access to memory."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self.place = cgutils.alloca_once(builder, ir.IntType(32))

    def _move(self, name: str) -> None:
        address = self.builder.bitcast(self.place, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [address.type])
        self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.x86.sse.{name}"), [address])

    def state(self) -> Any:
        """What the register holds."""
        self._move("stmxcsr")
        return self.builder.load(self.place)

    def set(self, state: Any) -> None:
        """Write the register."""
        self.builder.store(state, self.place)
        self._move("ldmxcsr")

    def of_mode(self, mode: Any) -> Any:
        """The register's content in a mode."""
        return _field(self.builder, _X86_MODES, mode, 13, _X86_DEFAULT)


class _Arm:
    """FPCR, likewise; llvm.set.rounding would leave what flushes, and loads would pass it."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def _register(self, name: str, result: Any, operands: list[Any]) -> Any:
        kind = ir.FunctionType(result, [each.type for each in operands])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.aarch64.{name}.fpcr"), operands)

    def state(self) -> Any:
        """What the register holds; its upper half is 0."""
        return self.builder.trunc(self._register("get", ir.IntType(64), []), ir.IntType(32))

    def set(self, state: Any) -> None:
        """Write the register."""
        self._register("set", ir.VoidType(), [self.builder.zext(state, ir.IntType(64))])

    def of_mode(self, mode: Any) -> Any:
        """The register's content in a mode."""
        return _field(self.builder, _ARM_MODES, mode, 22, 0)


def _field(builder: Any, modes: int, mode: Any, place: int, others: int) -> Any:
    """A mode's two bits of `modes`, put at a place among other bits."""
    word = ir.IntType(32)
    bits = builder.lshr(ir.Constant(word, modes), builder.shl(mode, ir.Constant(word, 1)))
    bits = builder.shl(builder.and_(bits, ir.Constant(word, 3)), ir.Constant(word, place))
    return builder.or_(bits, ir.Constant(word, others))


_UNITS: dict[str, Callable[[Any], Any]] = {"x86_64": _X86, "AMD64": _X86, "aarch64": _Arm, "arm64": _Arm, "ARM64": _Arm}
"""What knows the rounding mode, by the machine's names on Linux, macOS and Windows."""


def _unit(builder: Any) -> Any:
    """The floating-point unit of this machine.

    Raises:
        CompilerError: a processor whose rounding mode is not known here.
    """
    machine = platform.machine()
    if machine not in _UNITS:
        raise CompilerError(f"the engine runs on x86-64 and AArch64, this is {machine!r}: its rounding mode is not known")
    return _UNITS[machine](builder)


@intrinsic
def enter_rounding(_context: Any, mode: types.Integer) -> Any:
    """Set this thread's rounding mode, subnormals kept; returns what leave_rounding needs to put back what was."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        unit = _unit(builder)
        before = unit.state()
        unit.set(unit.of_mode(context.cast(builder, arguments[0], signature.args[0], types.int32)))
        return before

    return types.int32(mode), codegen


@intrinsic
def leave_rounding(_context: Any, before: types.Integer) -> Any:
    """Put back what enter_rounding found."""

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        _unit(builder).set(arguments[0])
        return context.get_dummy_value()

    return types.none(types.int32), codegen
