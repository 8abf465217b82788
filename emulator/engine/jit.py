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

from mmabits.emulator.engine import primitives
from mmabits.emulator.engine.objects import object_code

__all__ = [
    "CACHE_LINE", "address_of", "allocate", "array_at", "call_at", "carve", "compiled_object", "enter_rounding", "fields_at", "inlined",
    "intermediate_code", "intrinsic", "jit", "leave_rounding", "release", "shared_word",
]  # fmt: skip

CACHE_LINE = 64
"""Bytes: scratch arrays begin at multiples."""
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
def intermediate_code(function: Callable[[Any], None], symbol: str) -> bytes:
    """LLVM bitcode of `void symbol(void *)`, a function of one address, with all that it calls; what primitives.py names is left open.

    LLVM optimizes it as a whole, once: Numba would do so for each function, and make machine code of each.
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
    library.add_ir_module(module)
    whole = library._final_module
    for each in _needed(compiled.library, {}):
        is_part = isinstance(each, _Callee) and not each._finalized
        whole.link_in(each._final_module if is_part else each._get_module_for_linking(), preserve=True)
    return bytes(whole.as_bitcode())


def compiled_object(function: Callable[[Any], None], symbol: str) -> tuple[bytes, tuple[str, ...]]:
    """Compile a function of one address to the object code of `void symbol(void *)`.

    Returns:
        The object code, for this machine, and the names that it expects of the process (`malloc` and the like).
    """
    return object_code(intermediate_code(function, symbol), symbol)


@intrinsic
def address_of(_context: Any, pointer: Any) -> Any:
    """An address as an integer."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(arguments[0], ir.IntType(64))

    return types.int64(pointer), codegen


@intrinsic
def array_at(_context: Any, address: Any, shape: Any, dtype: Any) -> Any:
    """The array of a shape (a number, or a tuple of them) and dtype that lies at an address, row by row."""
    found = _array_of(shape, dtype)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return _array(context, builder, found, arguments[0], _sizes(builder, shape, arguments[1]))[0]

    return found(types.int64, shape, dtype), codegen


@intrinsic
def carve(_context: Any, base: Any, shape: Any, dtype: Any) -> Any:
    """An array in scratch, at the first cache line from address `base` on, and the address after it."""
    found = _array_of(shape, dtype)
    pair = types.Tuple((found, types.int64))

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        start = builder.and_(builder.add(arguments[0], word(CACHE_LINE - 1)), word(-CACHE_LINE))
        array, size = _array(context, builder, found, start, _sizes(builder, shape, arguments[1]))
        return context.make_tuple(builder, pair, [array, builder.add(start, size)])

    return pair(types.int64, shape, dtype), codegen


def _array_of(shape: Any, dtype: Any) -> Any:
    return types.Array(dtype.dtype, len(shape) if isinstance(shape, types.BaseTuple) else 1, "C")


def _sizes(builder: Any, shape: Any, value: Any) -> list[Any]:
    return cgutils.unpack_tuple(builder, value) if isinstance(shape, types.BaseTuple) else [value]


def _array(context: Any, builder: Any, kind: Any, address: Any, sizes: list[Any]) -> tuple[Any, Any]:
    """The array at an address, and its bytes."""
    item = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    steps = [item]
    for size in reversed(sizes):
        steps.append(builder.mul(steps[-1], size))
    made = context.make_array(kind)(context, builder)
    data = builder.inttoptr(address, made.data.type)
    populate_array(made, data=data, shape=sizes, strides=steps[-2::-1], itemsize=item, meminfo=None)
    return made._getvalue(), steps[-1]


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


@intrinsic
def enter_rounding(_context: Any, mode: types.Integer) -> Any:
    """Set this thread's rounding mode, subnormals kept; returns what leave_rounding needs to put back what was."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wanted = context.cast(builder, arguments[0], signature.args[0], types.int32)
        return builder.call(primitives.enter_rounding(builder.module), [wanted])

    return types.int32(mode), codegen


@intrinsic
def leave_rounding(_context: Any, before: types.Integer) -> Any:
    """Put back what enter_rounding found."""

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        builder.call(primitives.leave_rounding(builder.module), [arguments[0]])
        return context.get_dummy_value()

    return types.none(types.int32), codegen
