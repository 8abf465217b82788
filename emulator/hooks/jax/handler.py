"""The engine as a handler of XLA's foreign function interface: machine code that XLA calls on its own threads, without Python.

A call carries the address of its `Site`: which function of the engine, and the record it takes but for the operands' addresses.
Large products are offered to XLA's other threads. LLVM makes the handler in a few milliseconds, without Numba.
"""

from __future__ import annotations

import atexit
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import numpy as np
import numpy.typing as npt
from llvmlite import binding as llvm
from llvmlite import ir

from mmabits.emulator.engine.native import NativeProduct
from mmabits.emulator.engine.products import SERIAL_PRODUCTS, threads_wanted
from mmabits.emulator.engine.record import Call
from mmabits.isa import EmulationError

TARGET: Final = "mmabits"
"""The handler's name for XLA."""
API: Final = (0, 3)
"""The version of XLA's interface that the handler speaks; XLA takes older ones than its own, and refuses what it no longer takes."""

STAMP: Final = secrets.randbits(62)
"""Of this process. Compiled programs can be kept on disk and loaded elsewhere, where a site's address would mean nothing."""


# ------------------------------------------------------------------------------------------------------------------- sites

_FUNCTION, _CALLS, _BYTES, _HELPERS, _GATE, _RECORD = range(6)
_WORDS: Final = len(Call._fields)
_LAST = Call._fields.index("last")
_RECORD_AT = {name: 8 * place for place, name in enumerate(Call._fields)}


@dataclass(eq=False)
class Site:
    """A place in a compiled program, in memory that the handler reads and counts in. It lives as long as the process.

    Attributes:
        words: address of the engine's function (0: none), how often it was called, bytes of the result, how many threads may help,
            address of a word that is 0 where it may not be called, and a record.CALL.
        product: what the record's constants belong to.
        gate: that word.
    """

    words: npt.NDArray[np.int64]
    product: NativeProduct | None
    gate: npt.NDArray[np.int64]
    seen: int = field(default=0)

    @property
    def address(self) -> int:
        """What a call carries."""
        return int(self.words.ctypes.data)

    def new_calls(self) -> int:
        """How many calls there were since this was last asked."""
        calls = int(self.words[_CALLS])
        new, self.seen = calls - self.seen, calls
        return new


_SITES: list[Site] = []
_STOP = np.zeros(1, np.int64)
"""The word that makes products stop. XLA runs a program to its end whatever becomes of the caller, and owns what it works on: only
the interpreter's end, which waits for programs, cuts products short."""


@atexit.register
def _stop_products() -> None:
    _STOP[0] = 1


_ALWAYS: Final = np.ones(1, np.int64)


def product_site(product: NativeProduct, batch: int, m: int, n: int, k: int, gate: npt.NDArray[np.int64] = _ALWAYS) -> Site:
    """A site that multiplies (batch, M, K) by (batch, K, N) into zeros, while the word `gate` is not 0."""
    size = batch * m * n * product.accumulator.itemsize
    threads = 1 if batch * m * n * k <= SERIAL_PRODUCTS else threads_wanted()
    record = product.record(batch, m, n, k, threads=threads).view(np.int64)
    record[Call._fields.index("stop")] = _STOP.ctypes.data
    helpers = min(threads, int(record[_LAST])) - 1
    words = np.array([product.address, 0, size, helpers, gate.ctypes.data], np.int64)
    return _kept(Site(np.concatenate([words, record]), product, gate))


def counting_site(gate: npt.NDArray[np.int64] = _ALWAYS) -> Site:
    """A site that only counts."""
    words = np.zeros(_RECORD + _WORDS, np.int64)
    words[_GATE] = gate.ctypes.data
    return _kept(Site(words, None, gate))


def _kept(site: Site) -> Site:
    _SITES.append(site)
    return site


# --------------------------------------------------------------------------------------- XLA's structures (xla/ffi/api/c_api.h)


class _Frame(NamedTuple):
    """Byte offsets in XLA_FFI_CallFrame."""

    extension: int = 8
    api: int = 16
    context: int = 24
    stage: int = 32
    arguments: int = 72
    results: int = 112
    attributes: int = 160


_FRAME: Final = _Frame()
_FRAME_SIZE: Final = 168
_EXECUTE: Final = 3
"""XLA_FFI_ExecutionStage_EXECUTE."""
_METADATA: Final = 1
"""XLA_FFI_Extension_Metadata: XLA asks which version the handler speaks."""
_BUFFER_DATA: Final = 24
"""Of XLA_FFI_Buffer."""
_SCALAR_VALUE: Final = 8
"""Of XLA_FFI_Scalar."""
_ERROR_CREATE, _ERROR_DESTROY, _THREADPOOL_SCHEDULE = 48, 64, 136
"""Of XLA_FFI_Api."""
_INTERNAL: Final = 13
"""XLA_FFI_Error_Code_INTERNAL."""


def header_version(folder: str) -> tuple[int, int]:
    """The version of the interface that XLA's header in a folder of `include` files states.

    Raises:
        EmulationError: there is no such header, or it states none.
    """
    header = Path(folder) / "xla" / "ffi" / "api" / "c_api.h"
    try:
        text = header.read_text(encoding="utf-8")
    except OSError:
        raise EmulationError(f"jaxlib's header of XLA's foreign function interface is missing: {header}") from None
    found = [re.search(rf"#define XLA_FFI_API_{part}\s+(\d+)", text) for part in ("MAJOR", "MINOR")]
    if found[0] is None or found[1] is None:
        raise EmulationError(f"jaxlib's header states no version of XLA's foreign function interface: {header}")
    return int(found[0].group(1)), int(found[1].group(1))


def check_version(version: tuple[int, int]) -> None:
    """Refuse a version whose structures are not those that the handler reads.

    Raises:
        EmulationError: another major version, or an older minor one.
    """
    if version[0] != API[0] or version[1] < API[1]:
        theirs, ours = (".".join(map(str, each)) for each in (version, API))
        raise EmulationError(
            f"jax {jax.__version__} has version {theirs} of XLA's foreign function interface; emulate speaks {ours} (jax 0.10 and 0.11)"
        )


# ----------------------------------------------------------------------------------------------------------------- the handler

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_ADDRESS = _I8.as_pointer()

_NEXT, _DONE, _HOLDERS, _FAILED, _TOTAL, _SHARED_FUNCTION, _SHARED_RECORD = range(7)
"""Words of a product that threads share: the next task, tasks done, threads that know of it, whether one failed, and what to do."""


class _FunctionWriter:
    """A C function of one address, being written. Addresses are 64-bit integers, places are offsets of bytes."""

    def __init__(self, module: ir.Module, name: str, result: Any) -> None:
        self.module = module
        self.function = ir.Function(module, ir.FunctionType(result, [_I64]), name)
        self.argument = self.function.args[0]
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))

    def number(self, value: int, kind: Any = _I64) -> Any:
        return ir.Constant(kind, value)

    def pointer(self, address: Any, offset: int = 0, kind: Any = _I64) -> Any:
        return self.builder.inttoptr(self.builder.add(address, self.number(offset)), kind.as_pointer())

    def load(self, address: Any, offset: int = 0, kind: Any = _I64) -> Any:
        return self.builder.load(self.pointer(address, offset, kind))

    def store(self, value: Any, address: Any, offset: int = 0) -> None:
        self.builder.store(value, self.pointer(address, offset, value.type))

    def change(self, operation: str, address: Any, word: int, value: int) -> Any:
        """Change a word that threads share; what it was."""
        return self.builder.atomic_rmw(operation, self.pointer(address, 8 * word), self.number(value), "seq_cst")

    def space(self, words: int) -> Any:
        """Address of memory of this call's own. The stack pointer moves once: places are made in the entry block."""
        with self.builder.goto_entry_block():
            return self.builder.ptrtoint(self.builder.alloca(_I64, words), _I64)

    def words(self, values: list[Any]) -> Any:
        """Address of a structure of 64-bit words."""
        place = self.space(len(values))
        for each, value in enumerate(values):
            self.store(self.number(value) if isinstance(value, int) else value, place, 8 * each)
        return place

    def text(self, name: str, words: str) -> Any:
        """Address of a constant text."""
        content = bytearray(words.encode() + b"\0")
        held = ir.GlobalVariable(self.module, ir.ArrayType(_I8, len(content)), name)
        held.global_constant, held.linkage = True, "internal"
        held.initializer = ir.Constant(held.value_type, content)
        return self.builder.ptrtoint(held, _I64)

    def call(self, address: Any, argument: Any, result: Any = _I64) -> Any:
        """Call the C function of one address that lies at an address."""
        return self.builder.call(self.builder.inttoptr(address, ir.FunctionType(result, [_I64]).as_pointer()), [argument])

    def library(self, name: str, result: Any, arguments: list[Any]) -> Any:
        """Call a function of the C library."""
        kind = ir.FunctionType(result, [each.type for each in arguments])
        function = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        return self.builder.call(function, arguments)

    def fill_with_zeros(self, address: Any, size: Any) -> None:
        self.library("memset", _ADDRESS, [self.pointer(address, kind=_I8), self.number(0, _I32), size])

    def copy(self, to: Any, source: Any, size: Any) -> None:
        self.library("memmove", _ADDRESS, [self.pointer(to, kind=_I8), self.pointer(source, kind=_I8), size])

    def unless(self, holds: Any) -> Any:
        """A `with` block of what is done otherwise."""
        return self.builder.if_then(self.builder.not_(holds))

    def is_zero(self, value: Any) -> Any:
        return self.builder.icmp_unsigned("==", value, self.number(0))


class _Handler(_FunctionWriter):
    """XLA_FFI_Error *handler(XLA_FFI_CallFrame *)."""

    def __init__(self, module: ir.Module, worker: ir.Function) -> None:
        super().__init__(module, f"{TARGET}_handler", _I64)
        self.worker = worker
        builder, frame = self.builder, self.argument
        self.answer_metadata()
        with self.unless(builder.icmp_unsigned("==", self.load(frame, _FRAME.stage, _I32), self.number(_EXECUTE, _I32))):
            builder.ret(self.number(0))
        with self.unless(builder.icmp_unsigned(">=", self.load(frame), self.number(_FRAME_SIZE))):
            self.return_error("older", "mmabits: this XLA hands over a smaller call frame than its header states")
        attributes = self.load(frame, _FRAME.attributes)  # sorted by name: process, site
        process, site = (self.load(self.load(self.load(attributes, 8 * place), _SCALAR_VALUE)) for place in range(2))
        with self.unless(builder.icmp_unsigned("==", process, self.number(STAMP))):
            self.return_error("elsewhere", "mmabits: a program compiled inside emulate belongs to the process that compiled it")
        with self.builder.if_then(self.is_zero(self.load(self.load(site, 8 * _GATE)))):
            self.return_error("outside", "mmabits: a program compiled inside an emulate block is called after the block; lower it anew")
        self.change("add", site, _CALLS, 1)
        self.execute(site)

    def answer_metadata(self) -> None:
        """Where XLA asks, say which version of the interface the handler speaks, and nothing else."""
        builder = self.builder
        extension = self.load(self.argument, _FRAME.extension)
        with self.unless(self.is_zero(extension)):
            asked = builder.icmp_unsigned("==", self.load(extension, 8, _I32), self.number(_METADATA, _I32))
            with builder.if_then(asked):
                metadata = self.load(extension, 24)
                for offset, value in ((24, API[0]), (28, API[1]), (32, 0)):  # api_version.major and .minor, traits
                    self.store(self.number(value, _I32), metadata, offset)
                builder.ret(self.number(0))

    def execute(self, site: Any) -> None:
        """Multiply, alone or with helpers, if there is anything to multiply."""
        builder = self.builder
        function = self.load(site, 8 * _FUNCTION)
        with builder.if_then(self.is_zero(function)):
            builder.ret(self.number(0))
        arguments, results = self.load(self.argument, _FRAME.arguments), self.load(self.argument, _FRAME.results)
        result = self.load(self.load(results), _BUFFER_DATA)
        record = self.space(_WORDS)
        self.copy(record, builder.add(site, self.number(8 * _RECORD)), self.number(8 * _WORDS))
        for place, name in enumerate(("a", "b", "scale_a", "scale_b")):  # without block scales: A and B once more, not looked at
            self.store(self.load(self.load(arguments, 8 * place), _BUFFER_DATA), record, _RECORD_AT[name])
        self.store(result, record, _RECORD_AT["d"])
        self.fill_with_zeros(result, self.load(site, 8 * _BYTES))
        helpers = self.load(site, 8 * _HELPERS)
        with builder.if_else(self.is_zero(helpers)) as (alone, together):
            with alone:
                self.call(function, record, ir.VoidType())
            with together:
                self.share(function, record, helpers)
        with self.unless(self.is_zero(self.load(record, _RECORD_AT["failed"]))):
            self.return_error("memory", "mmabits: no memory for the tiles of a product")
        with self.unless(self.is_zero(self.load(self.load(record, _RECORD_AT["stop"])))):
            self.return_error("stopped", "mmabits: the interpreter ends; a product was left unfinished")
        builder.ret(self.number(0))

    def share(self, function: Any, record: Any, helpers: Any) -> None:
        """Offer the tasks to XLA's threads, do those that nobody has taken, wait for those that somebody has."""
        builder = self.builder
        size = self.number(8 * (_SHARED_RECORD + _WORDS))
        shared = builder.ptrtoint(self.library("malloc", _ADDRESS, [size]), _I64)
        with builder.if_else(self.is_zero(shared)) as (poor, rich):
            with poor:
                self.store(self.number(1), record, _RECORD_AT["failed"])
            with rich:
                holders = builder.add(helpers, self.number(2))  # this call twice: as one that does tasks, and as the one that waits
                for word, value in ((_NEXT, 0), (_DONE, 0), (_FAILED, 0)):
                    self.store(self.number(value), shared, 8 * word)
                self.store(holders, shared, 8 * _HOLDERS)
                self.store(self.load(record, _RECORD_AT["last"]), shared, 8 * _TOTAL)
                self.store(function, shared, 8 * _SHARED_FUNCTION)
                self.copy(builder.add(shared, self.number(8 * _SHARED_RECORD)), record, self.number(8 * _WORDS))
                self.offer(shared, helpers)
                builder.call(self.worker, [shared])
                self.await_tasks(shared)
                self.store(self.load(shared, 8 * _FAILED), record, _RECORD_AT["failed"])
                _let_go(self, shared)

    def offer(self, shared: Any, helpers: Any) -> None:
        """Schedule the worker on as many of XLA's threads as may help; those that XLA does not take let go at once."""
        builder = self.builder
        api, context = self.load(self.argument, _FRAME.api), self.load(self.argument, _FRAME.context)
        worker = builder.ptrtoint(self.worker, _I64)
        left = self.space(1)
        self.store(helpers, left)
        test, body, after = (builder.append_basic_block(name) for name in ("offer_test", "offer", "offered"))
        builder.branch(test)
        builder.position_at_end(test)
        builder.cbranch(self.is_zero(self.load(left)), after, body)
        builder.position_at_end(body)
        self.store(builder.sub(self.load(left), self.number(1)), left)
        error = self.call(self.load(api, _THREADPOOL_SCHEDULE), self.words([40, 0, context, worker, shared]))
        with self.unless(self.is_zero(error)):
            self.call(self.load(api, _ERROR_DESTROY), self.words([24, 0, error]), ir.VoidType())
            _let_go(self, shared)
        builder.branch(test)
        builder.position_at_end(after)

    def await_tasks(self, shared: Any) -> None:
        """Wait until every task is done: others are at work on the last ones."""
        builder = self.builder
        test, body, after = (builder.append_basic_block(name) for name in ("wait_test", "wait", "waited"))
        builder.branch(test)
        builder.position_at_end(test)
        done = self.change("add", shared, _DONE, 0)
        builder.cbranch(builder.icmp_unsigned("==", done, self.load(shared, 8 * _TOTAL)), after, body)
        builder.position_at_end(body)
        self.library("sched_yield", _I32, [])
        builder.branch(test)
        builder.position_at_end(after)

    def return_error(self, name: str, words: str) -> None:
        """Hand XLA an error of its own making."""
        create = self.load(self.load(self.argument, _FRAME.api), _ERROR_CREATE)
        self.builder.ret(self.call(create, self.words([32, 0, self.text(name, words), _INTERNAL])))


def _let_go(code: _FunctionWriter, shared: Any) -> None:
    """One thread fewer knows of a shared product; the last one gives its memory back."""
    builder = code.builder
    last = builder.icmp_unsigned("==", code.change("sub", shared, _HOLDERS, 1), code.number(1))
    with builder.if_then(last):
        code.library("free", ir.VoidType(), [code.pointer(shared, kind=_I8)])


def _worker(module: ir.Module) -> ir.Function:
    """Void worker(void *shared): do tasks as long as there are any, each with a record of its own."""
    code = _FunctionWriter(module, f"{TARGET}_worker", ir.VoidType())
    builder, shared = code.builder, code.argument
    record = code.space(_WORDS)
    test, body, after = (builder.append_basic_block(name) for name in ("test", "task", "no_more"))
    builder.branch(test)
    builder.position_at_end(test)
    task = code.change("add", shared, _NEXT, 1)
    builder.cbranch(builder.icmp_unsigned("<", task, code.load(shared, 8 * _TOTAL)), body, after)
    builder.position_at_end(body)
    code.copy(record, builder.add(shared, code.number(8 * _SHARED_RECORD)), code.number(8 * _WORDS))
    code.store(task, record, _RECORD_AT["first"])
    code.store(builder.add(task, code.number(1)), record, _RECORD_AT["last"])
    code.call(code.load(shared, 8 * _SHARED_FUNCTION), record, ir.VoidType())
    with code.unless(code.is_zero(code.load(record, _RECORD_AT["failed"]))):
        code.change("or", shared, _FAILED, 1)
    code.change("add", shared, _DONE, 1)
    builder.branch(test)
    builder.position_at_end(after)
    _let_go(code, shared)
    builder.ret_void()
    return code.function


def _written() -> ir.Module:
    """The handler, and what it gives XLA's threads to do."""
    module = ir.Module(TARGET)
    _Handler(module, _worker(module))
    return module


class _Loaded(NamedTuple):
    """The handler's machine code, and what owns it."""

    address: int
    owner: Any


@lru_cache(maxsize=1)
def load() -> _Loaded:
    """The handler, made once in a process and registered with XLA.

    Raises:
        EmulationError: this jax has another version of XLA's interface.
    """
    check_version(header_version(jax.ffi.include_dir()))
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(opt=2, jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    written = _written()
    missing = [each.name for each in written.functions if each.is_declaration and not llvm.address_of_symbol(each.name)]
    if missing:  # LLVM would end the process
        raise EmulationError(f"emulate needs functions of the C library that this system does not have: {', '.join(missing)}")
    module = llvm.parse_assembly(str(written))
    module.verify()
    engine.add_module(module)
    engine.finalize_object()
    loaded = _Loaded(int(engine.get_function_address(f"{TARGET}_handler")), engine)
    try:
        jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(loaded.address), platform="cpu")
    except Exception as error:  # of several classes, by version
        raise EmulationError(f"jax {jax.__version__} does not take a handler of XLA's interface {API}: {error}") from error
    return loaded


def call(site: Site, operands: list[Any], shape: tuple[int, ...], dtype: Any) -> Any:
    """A site's product, traced.

    Args:
        site: which.
        operands: A, B and, of a block-scaled instruction, their scales, as the site's product takes them.
        shape: of the result.
        dtype: of the result.
    """
    if len(operands) == 2:
        operands = [*operands, *operands]
    target: Callable[..., Any] = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct(shape, dtype))
    return target(*operands, process=np.int64(STAMP), site=np.int64(site.address))


def count(site: Site) -> Any:
    """A call that only counts, traced: it stands by itself, and changes nothing of the program around it."""
    target: Callable[..., Any] = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct((), np.uint8), has_side_effect=True)
    return target(process=np.int64(STAMP), site=np.int64(site.address))
