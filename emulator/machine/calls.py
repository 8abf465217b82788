"""`mmabits.function`: one opcode of one lane on arrays, by the machine's vector code."""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.engine import memory
from mmabits.emulator.interop import to_numpy
from mmabits.emulator.machine.elementwise import NoEmitter, emitted
from mmabits.emulator.machine.vectors import LANES, Code
from mmabits.isa import (
    Evidence,
    InsufficientEvidence,
    OperandError,
    OperandTypeError,
    UnknownInstruction,
    UnsupportedInstruction,
    architecture,
    evidence_level,
)
from mmabits.isa.errors import nearest
from mmabits.isa.opcodes import REFUSED, Opcode, opcode_table, width

Array = npt.NDArray[Any]

FLOATS: Final[dict[str, np.dtype[Any]]] = {
    "f64": np.dtype(np.float64), "f32": np.dtype(np.float32), "tf32": np.dtype(np.float32), "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}  # fmt: skip
"""PTX types that a dtype of numbers holds; every other is held by integers of its width, predicates by bool."""
_SERIAL: Final = 1 << 13
"""Vectors of 32 up to which a second thread costs more than it saves."""
_SHARE: Final = 1 << 11
"""Vectors that a thread takes at once."""
_RUN: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def function(opcode: str | Opcode, *operands: Any, arch: str, require: str | Evidence = Evidence.INFERRED) -> Any:
    """What a PTX opcode makes of arrays, element by element: the special functions, and every other opcode of one lane.

    Args:
        opcode: PTX spelling with every modifier and type: `"ex2.approx.ftz.f32"`, `"div.full.f32"`, `"cvt.rn.bf16x2.f32"`.
        operands: an array for each operand, NumPy, torch or JAX; shapes broadcast. A float type takes its dtype (float64, float32,
            float16, bfloat16) or integers of its width, which are its codes. Integer types take integers of their width, packed
            types (`f16x2`, `e4m3x2`) words, predicates bool. Python numbers are rounded to the type; constants of an instruction,
            as the table of `lop3`, must be Python integers.
        arch: `"sm_90a"`, or a GPU of it. It decides whether there is such an opcode; rows are the same on all that have it.
        require: refuse rows whose evidence is below `"recorded"` or `"published"`.

    Returns:
        Results in the dtype of the opcode's result type, as the same kind of array as the first operand that is one. If every operand
        of a float type came as codes, so does the result; words are signed where the first operand is.

    Raises:
        UnknownInstruction: no row of that name.
        UnsupportedInstruction: two results, no public bits, or none on this architecture.
        InsufficientEvidence: the row's evidence is below `require`.
        UnknownArchitecture: `arch`.
        OperandTypeError, OperandError: number of operands, dtypes, shapes, values of constants.

    Source: each row's reference, evidence and bound are in mmabits.isa.opcodes; `mmabits.explain_function` shows one element.
    """
    row = checked_row(opcode, len(operands), arch, require)
    given = _Given(row, operands)
    if given.count == 0:
        return given.result(np.empty(0, _held(row.results[0])))
    memory.require(given.size, f"{row.name} of {given.count:,} elements")
    return given.result(_loop(row, given.constants)(given.arrays(), given.count))


def checked_row(opcode: str | Opcode, operands: int, arch: str, require: str | Evidence = Evidence.INFERRED) -> Opcode:
    """The row of an opcode with so many operands and one result.

    Raises:
        UnknownInstruction, UnsupportedInstruction, InsufficientEvidence, UnknownArchitecture, OperandError: as `function`.
    """
    target = architecture(arch)
    name = opcode.name if isinstance(opcode, Opcode) else opcode
    table = opcode_table()
    if not isinstance(name, str):
        raise UnknownInstruction(f"an opcode is given as text such as 'ex2.approx.ftz.f32', not as {type(name).__name__}")
    row = table.get(f"{name}#{operands}") or table.get(name)
    if row is None and name in REFUSED:
        raise UnsupportedInstruction(f"{name} is not emulated: {REFUSED[name]}")
    if row is None:
        alike = [each for each in table if each.partition(".")[0] == name.partition(".")[0]] or table
        raise UnknownInstruction(f"unknown opcode {name!r}{nearest(name, alike)}; mmabits.isa.opcodes.opcode_table() has {len(table):,}")
    if len(row.results) != 1 or row.reference is None:
        raise UnsupportedInstruction(f"{name} has {len(row.results)} results; mmabits.function takes opcodes with one")
    if len(row.sources) != operands:
        raise OperandError(f"{name} takes {len(row.sources)} operands ({', '.join(row.sources)}), got {operands}")
    if row.since and int(target.target.removeprefix("sm_").rstrip("af")) < row.since:
        raise UnsupportedInstruction(f"{name} needs sm_{row.since} or newer, {target} has no such opcode")
    level = evidence_level(require)
    if row.evidence < level:
        raise InsufficientEvidence(f"{name} rests on {row.evidence} evidence, but {level} is required: {row.note}")
    return row


def operand_bits(row: Opcode, operands: tuple[Any, ...]) -> tuple[int, ...] | None:
    """The bits of operands of one element, constants among them; None where there are more.

    Raises:
        OperandTypeError, OperandError: as `function`.
    """
    given = _Given(row, operands)
    if given.count != 1:
        return None
    bits = [int(each[0]) for each in given.arrays()]
    for place, number in given.constants:
        bits.insert(place, number)
    return tuple(bits)


def _held(kind: str) -> np.dtype[Any]:
    """Integers that a PTX type's bits are held in."""
    return np.dtype(f"u{max(8, width(kind)) // 8}")


class _Given:
    """What was passed, checked, as bits."""

    def __init__(self, row: Opcode, operands: tuple[Any, ...]) -> None:
        self.row = row
        self.constants: tuple[tuple[int, int], ...] = ()
        self._bits: list[Array] = []
        self._restore: Callable[[Array], Any] | None = None
        self._signed: bool | None = None
        as_codes = []
        for place, (operand, kind) in enumerate(zip(operands, row.sources, strict=True)):
            name = f"operand {place + 1} of {row.name}"
            if place in row.constants:
                self.constants += ((place, _constant(operand, name)),)
                continue
            bits, coded = self._taken(operand, kind, name)
            self._bits.append(bits)
            if kind in FLOATS and coded is not None:
                as_codes.append(coded)
        try:
            self.shape = np.broadcast_shapes(*(each.shape for each in self._bits))
        except ValueError:
            shapes = ", ".join(str(each.shape) for each in self._bits)
            raise OperandError(f"the operands' shapes do not broadcast: {shapes}") from None
        self.count = int(np.prod(self.shape, dtype=np.int64))
        self._codes = bool(as_codes) and all(as_codes)

    def _taken(self, operand: Any, kind: str, name: str) -> tuple[Array, bool | None]:
        """Bits, and whether they came as codes of a float type; None of Python numbers, which settle nothing."""
        if isinstance(operand, bool | int | float) and not isinstance(operand, np.generic):
            return _number(operand, kind, name), None
        if isinstance(operand, np.generic):
            operand = np.asarray(operand)
        given, restore = to_numpy(operand, name)
        self._restore = self._restore or restore
        self._signed = given.dtype.kind == "i" if self._signed is None else self._signed
        held, number = _held(kind), FLOATS.get(kind)
        if kind == "pred":
            if given.dtype != np.bool_:
                raise OperandTypeError(f"{name} is a predicate: it must be bool, got {given.dtype}")
            return given.view(np.uint8), False
        if given.dtype == number:
            return given.view(held), False
        if given.dtype in (held, np.dtype(f"i{held.itemsize}")):
            return given.view(held), True
        wanted = f"{number} or its codes, {held}" if number is not None else f"{held} or int{8 * held.itemsize}"
        raise OperandTypeError(f"{name} has type {kind}: it must be {wanted}, got {given.dtype}")

    def arrays(self) -> list[Array]:
        """One after another, each with every element."""
        return [np.ascontiguousarray(np.broadcast_to(each, self.shape)).reshape(-1) for each in self._bits]

    @property
    def size(self) -> int:
        """Bytes that the call makes."""
        return self.count * (_held(self.row.results[0]).itemsize + sum(e.itemsize for e in self._bits if e.shape != self.shape))

    def result(self, bits: Array) -> Any:
        """Bits in the caller's kind of array."""
        kind = self.row.results[0]
        if kind == "pred":
            found = bits.view(np.bool_)
        elif kind in FLOATS and not self._codes:
            found = bits.view(FLOATS[kind])
        else:
            signed = kind[0] == "s" or (kind[0] != "u" and bool(self._signed))
            found = bits.view(f"i{bits.itemsize}") if signed else bits
        found = found.reshape(self.shape)
        return found if self._restore is None else self._restore(found)


def _constant(operand: Any, name: str) -> int:
    if isinstance(operand, bool) or not isinstance(operand, int | np.integer):
        raise OperandTypeError(f"{name} is a constant of the instruction: it must be a Python integer, got {type(operand).__name__}")
    if not 0 <= int(operand) < 256:
        raise OperandError(f"{name} must be in 0 .. 255, got {operand}")
    return int(operand)


def _number(operand: Any, kind: str, name: str) -> Array:
    """A Python number as bits of a type."""
    held = _held(kind)
    if kind == "pred":
        if not isinstance(operand, bool):
            raise OperandTypeError(f"{name} is a predicate: it must be bool, got {type(operand).__name__}")
        return np.array(operand).view(np.uint8)
    if kind in FLOATS:
        with np.errstate(over="ignore"):
            return np.array(operand, np.float64).astype(FLOATS[kind]).view(held)
    if isinstance(operand, float):
        raise OperandTypeError(f"{name} has type {kind}: it must be an integer, got a float")
    bits = width(kind)
    if not -(1 << (bits - 1)) <= operand < 1 << bits:
        raise OperandError(f"{name} must fit in {bits} bits, got {operand}")
    return np.array(operand & (1 << bits) - 1, held)


# ------------------------------------------------------------------------------------------------------------------- compiled


@dataclass(eq=False)
class _Loop:
    """An opcode compiled to a loop over vectors; without an address, its reference is called for each element."""

    row: Opcode
    constants: tuple[tuple[int, int], ...]
    address: int
    owner: Any

    def __call__(self, arrays: list[Array], count: int) -> Array:
        """Results of `count` elements."""
        found = np.empty(count, _held(self.row.results[0]))
        if not self.address:
            return self._one_by_one(arrays, found)
        whole = count // LANES
        self._run([*arrays, found], whole)
        if count % LANES:
            rest = [np.zeros(LANES, each.dtype) for each in (*arrays, found)]
            for each, padded in zip(arrays, rest, strict=False):
                padded[: count % LANES] = each[whole * LANES :]
            self._run(rest, 1)
            found[whole * LANES :] = rest[-1][: count % LANES]
        return found

    def _run(self, arrays: list[Array], vectors: int) -> None:
        from mmabits.emulator.engine.products import threads_wanted
        from mmabits.emulator.engine.shares import SharedWork

        io = np.array([each.ctypes.data for each in arrays], np.uint64)
        call = _RUN(self.address)
        if vectors <= _SERIAL:
            call(io.ctypes.data, 0, vectors)
            return
        shares = [(first, min(first + _SHARE, vectors)) for first in range(0, vectors, _SHARE)]
        place = io.ctypes.data
        work = SharedWork(lambda first, last: call(place, first, last), shares, array("q", (0,)), kept=(io, arrays, self))
        work.run(threads_wanted())

    def _one_by_one(self, arrays: list[Array], found: Array) -> Array:
        assert self.row.reference is not None
        for place, given in enumerate(zip(*(each.tolist() for each in arrays), strict=True)):
            numbers = list(given)
            for at, number in self.constants:
                numbers.insert(at, number)
            found[place] = self.row.reference(*numbers)
        return found


@functools.lru_cache(maxsize=512)
def _loop(row: Opcode, constants: tuple[tuple[int, int], ...]) -> _Loop:
    """The loop of a row, compiled once.

    Raises:
        CompilerError: an LLVM that is too old.
    """
    from mmabits.emulator.machine.compiler import compiled

    code, fixed = Code(), dict(constants)
    io = 0

    def pointer(kind: str) -> str:
        nonlocal io
        base = code.named(f"load ptr, ptr {code.named(f'getelementptr ptr, ptr %io, i64 {io}')}")
        io += 1
        return code.named(f"getelementptr <{LANES} x i{8 * _held(kind).itemsize}>, ptr {base}, i64 %at")

    values = []
    for place, kind in enumerate(row.sources):
        if place in fixed:
            values.append(code.constant(fixed[place], width(kind)))
            continue
        bits = 8 * _held(kind).itemsize
        values.append(code.resize(code.value(f"i{bits}", f"load <{LANES} x i{bits}>, ptr {pointer(kind)}, align 1"), width(kind)))
    try:
        (value,) = emitted(code, row, values)
    except NoEmitter:
        return _Loop(row, constants, 0, None)
    result = code.resize(value, 8 * _held(row.results[0]).itemsize)
    code.line(f"store {result.typed}, ptr {pointer(row.results[0])}, align 1")
    text = "\n".join([
        *sorted(code.declared), *code.globals.values(), "define void @run(ptr %io, i64 %first, i64 %last) {", "entry:",
        "  %some = icmp slt i64 %first, %last", "  br i1 %some, label %loop, label %done", "loop:",
        "  %at = phi i64 [%first, %entry], [%next, %loop]", *code.lines, "  %next = add i64 %at, 1",
        "  %more = icmp slt i64 %next, %last", "  br i1 %more, label %loop, label %done", "done:", "  ret void", "}",
    ])  # fmt: skip
    made = compiled(text, "run", opt=2)
    return _Loop(row, constants, made.address, made.owner)
