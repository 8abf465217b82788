"""A PTX kernel run one lane at a time, in plain Python integers: the slow and readable other half of `emulator/machine`.

It takes the text apart with the machine's reader, and takes what each opcode does from the references of the opcode table. All else
is here again: a lane runs alone until it must wait for others, at a barrier or where lanes exchange something, and goes on when all
that it waits for have come. There are no masks, no segments and no vectors.
"""

from __future__ import annotations

import itertools
import struct
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mmabits.emulator.machine.ptx import (
    Address,
    Entry,
    Immediate,
    Module,
    Operand,
    Pair,
    PtxInstruction,
    Register,
    Sink,
    SpecialRegister,
    Symbol,
    Vector,
    read_ptx,
)  # fmt: skip
from mmabits.isa.opcodes import Opcode, OpcodeKind, opcode_table, width

WORD = 0xFFFF_FFFF
SHARED, LOCAL, MODULE = 1 << 56, 2 << 56, 3 << 56
"""Where the windows of shared and local memory and the module's variables begin, among generic addresses."""


class InterpreterError(Exception):
    """A kernel did what has no result, or needs what is not here."""


class Wait(NamedTuple):
    """What a lane waits for: lanes of its warp at the same instruction, or the warps of its CTA."""

    place: int
    """Index of the instruction,"""
    mask: int
    """the lanes of the warp that must come,"""
    given: tuple[int, ...]
    """and what this one brings."""
    barrier: tuple[int, int] | None = None
    """Number of a barrier and the threads that it waits for, 0 for all."""


Lane = Generator[Wait, dict[int, tuple[int, ...]], None]


# --------------------------------------------------------------------------------------------------------------------- memory


class Memory:
    """Pieces of memory by their addresses."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, bytearray]] = []

    def add(self, start: int, size: int) -> bytearray:
        """A new piece of zeros."""
        piece = bytearray(size)
        self.pieces.append((start, piece))
        return piece

    def at(self, address: int, size: int) -> tuple[bytearray, int]:
        """The piece and the place in it."""
        if size & (size - 1) == 0 and address % size:
            raise InterpreterError(f"misaligned: {address:#x}")
        for start, piece in self.pieces:
            if start <= address and address + size <= start + len(piece):
                return piece, address - start
        raise InterpreterError(f"outside: {address:#x}")

    def load(self, address: int, size: int) -> int:
        """An unsigned integer of so many bytes."""
        piece, place = self.at(address, size)
        return int.from_bytes(piece[place : place + size], "little")

    def store(self, address: int, size: int, value: int) -> None:
        """Write one."""
        piece, place = self.at(address, size)
        piece[place : place + size] = value.to_bytes(size, "little")


def _extended(value: int, bits: int, kind: str, to: int) -> int:
    """A value of a type in a register: by its sign where the type has one and the register is wider."""
    if kind[0] == "s" and bits < to and value >> (bits - 1):
        value -= 1 << bits
    return value & (1 << to) - 1


# ---------------------------------------------------------------------------------------------------------------- contraction


class Fused(NamedTuple):
    """A sum that takes a product with it: the row of the fused opcode, where the product stands, and what is added."""

    row: Opcode
    product: int
    other: Operand
    turned: tuple[bool, bool]
    """Signs of the product and of what is added."""


class Value(NamedTuple):
    """What a register holds: who wrote it, and whether copies on the way turned its sign."""

    place: int
    turned: bool = False


_TOP = {"f32": 1 << 31, "f64": 1 << 63, "f16": 1 << 15, "bf16": 1 << 15, "f32x2": 1 << 63 | 1 << 31, "f16x2": 1 << 31 | 1 << 15,
        "bf16x2": 1 << 31 | 1 << 15}  # fmt: skip
_KEEPING = ("mov", "neg")


def _blocks(entry: Entry) -> list[range]:
    """Basic blocks: they begin where something branches to, and after what branches."""
    ends = ("bra", "brx", "ret", "exit", "trap")
    starts = {0, *(place + 1 for place, each in enumerate(entry.instructions) if each.opcode.split(".")[0] in ends)}
    for each in entry.instructions:
        for operand in each.operands if each.opcode.startswith("br") else ():
            if isinstance(operand, Symbol):
                starts |= {entry.labels[name] for name in entry.tables.get(operand.name, (operand.name,))}
    cuts = [*sorted(start for start in starts if start < len(entry.instructions)), len(entry.instructions)]
    return [range(a, b) for a, b in itertools.pairwise(cuts)]


def _read(each: PtxInstruction) -> list[tuple[int, str]]:
    """Names that an instruction reads, by operand; -1 for what its guard and its old results are."""
    first = 0 if _only_reads(each) else 1
    found = [(at, name) for at, operand in enumerate(each.operands) if at >= first for name in _registers(operand)]
    if each.opcode.split(".")[0] in ("addc", "subc", "madc"):
        found.append((-1, "carry"))
    if each.guard is not None:
        found += [(-1, each.guard.name), *((-1, name) for name in _written(each))]
    return found


def _written(each: PtxInstruction) -> list[str]:
    names = _registers(each.operands[0]) if each.operands and not _only_reads(each) else []
    return [*names, "carry"] if ".cc" in each.opcode else names


def fused_sums(entry: Entry) -> dict[int, Fused]:
    """Sums that ptxas fuses with a product of their basic block, every use of which is a sum of its type; copies and turned signs on the
    way do not count. Products with one use go first, and of two in one sum the left one."""
    blocks, table = _blocks(entry), opcode_table()
    ends: dict[str, list[int]] = defaultdict(list)  # where blocks write a name last
    came: list[dict[str, int]] = []  # where in its block an instruction's names were written
    for block in blocks:
        held: dict[str, int] = {}
        for place in block:
            each = entry.instructions[place]
            came.append({name: held[name] for _, name in _read(each) if name in held})
            held |= dict.fromkeys(_written(each), place)
        for name, place in held.items():
            ends[name].append(place)
    alive = {place for place, each in enumerate(entry.instructions) if _acts(each)}
    outside: set[str] = set()
    while True:  # what something rests on
        names = [(place, name) for place in alive for _, name in _read(entry.instructions[place])]
        outside = {name for place, name in names if name not in came[place]}
        more = {came[place][name] for place, name in names if name in came[place]} | {at for name in outside for at in ends[name]}
        if more <= alive:
            break
        alive |= more

    def value(place: int, name: str) -> Value | None:
        at = came[place].get(name)
        return None if at is None else source(at)

    def source(at: int) -> Value:
        each = entry.instructions[at]
        words = each.opcode.split(".")
        if words[0] in _KEEPING and each.guard is None and len(each.operands) == 2:
            to, of = each.operands
            if isinstance(to, Register) and isinstance(of, Register) and to.bits == of.bits and not of.negated:
                before = value(at, of.name)
                if before is not None:
                    return Value(before.place, before.turned != (words[0] == "neg"))
        return Value(at)

    uses: dict[int, list[int]] = defaultdict(list)
    for place in alive:
        each = entry.instructions[place]
        plain = each.opcode.split(".")[0] in _KEEPING and each.guard is None and isinstance(each.operands[1], Register)
        if plain and isinstance(each.operands[0], Register) and each.operands[0].bits == each.operands[1].bits:
            continue
        for _, name in _read(each):
            held_by = value(place, name)
            if held_by is not None:
                uses[held_by.place].append(place)
    for name in outside:
        for at in ends[name]:
            if at in alive:
                uses[source(at).place].append(-1)

    def free(place: int, *bases: str) -> bool:
        row = table.get(entry.instructions[place].opcode)
        return row is not None and row.fusible and row.base in bases and ".f32." not in entry.instructions[place].opcode

    def kind(place: int) -> list[str]:
        return [word for word in entry.instructions[place].opcode.split(".")[1:] if word != "sat"]

    found: dict[int, Fused] = {}
    offers: dict[int, list[tuple[int, Value]]] = {}
    for place, each in enumerate(entry.instructions):
        if free(place, "add", "sub"):
            both = [(at, value(place, each.operands[at].name)) for at in (1, 2) if isinstance(each.operands[at], Register)]
            fit = [(at, held_by) for at, held_by in both if held_by is not None and free(held_by.place, "mul")
                   and entry.instructions[held_by.place].guard is None and "sat" not in entry.instructions[held_by.place].opcode
                   and kind(held_by.place) == kind(place)]  # fmt: skip
            factors = [(entry.instructions[each.place].opcode, {*entry.instructions[each.place].operands[1:]}) for _, each in fit]
            if fit and not (len(fit) == 2 and factors[0] == factors[1]):
                offers[place] = fit
    for at_once in (True, False):
        for place, fit in offers.items():
            for at, held_by in fit:
                made = held_by.place
                others = [found[use].product for use in uses[made] if use in found]
                if place in found or (at_once and len(uses[made]) > 1) or any(other != made for other in others):
                    continue
                if all(made in [each.place for _, each in offers.get(use, ())] for use in uses[made]):
                    each = entry.instructions[place]
                    minus = each.opcode.startswith("sub")
                    signs = (held_by.turned != (minus and at == 2), minus and at == 1)
                    found[place] = Fused(table[f"fma.rn.{each.opcode.split('.', 1)[1]}"], made, each.operands[3 - at], signs)
    return found


def _acts(each: PtxInstruction) -> bool:
    """Whether an instruction does more than to compute its results."""
    row = opcode_table().get(each.opcode)
    return row is None or row.kind is not OpcodeKind.ELEMENTWISE


def _only_reads(each: PtxInstruction) -> bool:
    return each.opcode.split(".")[0] in ("st", "red", "bra", "brx", "bar", "ret", "exit", "cp", "stmatrix")


def _registers(operand: Operand) -> list[str]:
    if isinstance(operand, Register):
        return [operand.name]
    if isinstance(operand, Address):
        return _registers(operand.base)
    if isinstance(operand, Vector):
        return [name for each in operand.items for name in _registers(each)]
    if isinstance(operand, Pair):
        return _registers(operand.first) + _registers(operand.second)
    return []


# ------------------------------------------------------------------------------------------------------------- between lanes


def shuffled(mode: str, lane: int, by: int, clamp: int) -> tuple[int, bool]:
    """The lane that shfl takes a value from, and whether it lies in range (PTX, shfl.sync)."""
    by, segment = by & 31, clamp >> 8 & 31
    most = lane & segment | clamp & 31 & ~segment
    other = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": lane & segment | by & ~segment & 31}[mode]
    inside = other >= most if mode == "up" else other <= most
    return (other if inside else lane), inside


def _signed(value: int, kind: str) -> int:
    bits = width(kind)
    return value - (1 << bits) if kind[0] == "s" and value >> (bits - 1) else value


ATOMIC: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda old, a, b: old + a, "min": lambda old, a, b: min(old, a), "max": lambda old, a, b: max(old, a),
    "and": lambda old, a, b: old & a, "or": lambda old, a, b: old | a, "xor": lambda old, a, b: old ^ a, "exch": lambda old, a, b: a,
    "cas": lambda old, a, b: b if old == a else old, "inc": lambda old, a, b: 0 if old >= a else old + 1,
    "dec": lambda old, a, b: a if old == 0 or old > a else old - 1,
}  # fmt: skip


def _atomic_sum(old: int, value: int, kind: str, *, flush: bool) -> int:
    """add.f32, which in global memory flushes subnormal numbers, and add.f64."""
    reference = opcode_table()[f"add.rn.{'ftz.' if flush and kind == 'f32' else ''}{kind}"].reference
    assert reference is not None
    return int(reference(old, value))


# ------------------------------------------------------------------------------------------------------------------ the kernel


@dataclass
class Cta:
    """What the lanes of a CTA share."""

    place: tuple[int, int, int]
    shared: Memory
    lanes: list[Lane] = field(default_factory=list)


class Interpreter:
    """One kernel of a PTX module.

    Args:
        module: PTX text, or what read_ptx made of it.
        threads: of a CTA, where the text does not say.
        shared: bytes of dynamic shared memory.
        contracts: fuse products and sums as ptxas does.
    """

    def __init__(
        self, module: Module | str, *, threads: tuple[int, ...] = (32, 1, 1), shared: int = 0, contracts: bool = True
    ) -> None:  # fmt: skip
        module = read_ptx(module) if isinstance(module, str) else module
        (name,) = module.kernels
        self.entry = module.entries[name]
        self.block = tuple([*(self.entry.attributes.get("reqntid") or threads), 1, 1][:3])
        self.fused = fused_sums(self.entry) if contracts else {}
        self.products = {each.product for each in self.fused.values()}
        self.module_memory, self.places = Memory(), dict[str, int]()
        self.sizes = {"shared": shared, "local": 0, "param": 0}
        for each in self.entry.parameters:
            self._place(each.name, "param", each.align, each.size)
        for each in (*module.variables.values(), *self.entry.variables.values()):
            if each.space in ("global", "const"):
                start = MODULE + sum(len(piece) + 64 & ~63 for _, piece in self.module_memory.pieces)
                piece, unit = self.module_memory.add(start, each.size), width(each.kind) // 8
                for at, number in enumerate(each.initial):
                    piece[at * unit : (at + 1) * unit] = (number & (1 << 8 * unit) - 1).to_bytes(unit, "little")
                self.places[each.name] = start
            else:
                self._place(each.name, each.space, each.align, each.size)

    def _place(self, name: str, space: str, align: int, size: int) -> None:
        self.places[name] = -(-self.sizes[space] // align) * align
        self.sizes[space] = self.places[name] + size

    def launch(self, grid: Sequence[int], arguments: Sequence[int], memory: Memory) -> None:
        """Run every CTA, one after another."""
        sizes = [*grid, 1, 1][:3]
        parameters = bytearray(self.sizes["param"])
        for each, value in zip(self.entry.parameters, arguments, strict=True):
            at = self.places[each.name]
            parameters[at : at + each.size] = value.to_bytes(each.size, "little")
        memory.pieces += self.module_memory.pieces
        for z in range(sizes[2]):
            for y in range(sizes[1]):
                for x in range(sizes[0]):
                    self._cta(Cta((x, y, z), Memory()), tuple(sizes), memory, parameters)

    def _cta(self, cta: Cta, grid: tuple[int, ...], memory: Memory, parameters: bytearray) -> None:
        """Each lane runs until it must wait; whoever has all that it waits for goes on."""
        cta.shared.add(0, self.sizes["shared"])
        count = self.block[0] * self.block[1] * self.block[2]
        cta.lanes = [_Lane(self, cta, grid, memory, parameters, number).run() for number in range(count)]
        waits: dict[int, Wait] = {}
        for number in range(count):
            self._go(cta, number, None, waits)
        while waits:
            ready = self._warp_that_is_whole(waits, count) or self._barrier_that_is_full(waits)
            if not ready:
                raise InterpreterError(f"a deadlock: {waits}")
            brought = {number % 32: waits[number].given for number in ready}
            for number in ready:
                waits.pop(number)
            for number in ready:
                self._go(cta, number, brought, waits)

    @staticmethod
    def _go(cta: Cta, number: int, brought: dict[int, tuple[int, ...]] | None, waits: dict[int, Wait]) -> None:
        try:
            waits[number] = next(cta.lanes[number]) if brought is None else cta.lanes[number].send(brought)
        except StopIteration:
            waits.pop(number, None)

    @staticmethod
    def _warp_that_is_whole(waits: dict[int, Wait], count: int) -> list[int]:
        """Lanes that exchange something, if every lane of their mask that has not ended waits for the same."""
        for number, wait in waits.items():
            if wait.barrier is None:
                first = number // 32 * 32
                members = [each for each in range(first, min(first + 32, count)) if wait.mask >> each % 32 & 1 and each in waits]
                if all(waits[each][:2] == wait[:2] for each in members):
                    return members
        return []

    @staticmethod
    def _barrier_that_is_full(waits: dict[int, Wait]) -> list[int]:
        """Lanes at a barrier to which as many have come as it says; all that have not ended, where it does not say. Whole warps count."""
        for barrier in {wait.barrier for wait in waits.values() if wait.barrier is not None}:
            come = [number for number, wait in waits.items() if wait.barrier == barrier]
            warps = {number // 32 for number in come}
            if any(number // 32 in warps and number not in come for number in waits):
                continue
            if (32 * len(warps) >= barrier[1]) if barrier[1] else len(come) == len(waits):
                return come
        return []


class _Lane:
    """One thread."""

    def __init__(self, kernel: Interpreter, cta: Cta, grid: tuple[int, ...], memory: Memory, parameters: bytearray, number: int) -> None:
        self.kernel, self.cta, self.grid, self.number = kernel, cta, grid, number
        self.spaces = {"global": memory, "const": memory, "shared": cta.shared, "local": Memory(), "param": Memory()}
        self.spaces["local"].add(0, kernel.sizes["local"])
        self.spaces["param"].pieces.append((0, parameters))
        self.registers: dict[str, int] = {}
        self.factors: dict[int, list[int]] = {}
        self.copies: list[list[tuple[int, int, int, int]]] = [[]]
        """Asynchronous copies by their groups, the open one last: target, source, bytes, bytes read."""

    # ---------------------------------------------------------------------------------------------------------- operands

    def special(self, name: str) -> int:
        kind, _, axis = name[1:].partition(".")
        at, lane = "xyz".find(axis), self.number % 32
        x, y, _ = self.kernel.block
        tid = (self.number % x, self.number // x % y, self.number // x // y)
        found = {
            "tid": tid[at], "ntid": self.kernel.block[at], "ctaid": self.cta.place[at], "nctaid": self.grid[at], "laneid": lane,
            "warpid": self.number // 32, "lanemask_eq": 1 << lane, "lanemask_lt": (1 << lane) - 1, "lanemask_le": (2 << lane) - 1,
            "lanemask_gt": WORD & -(2 << lane), "lanemask_ge": WORD & -(1 << lane),
        }  # fmt: skip
        return found[kind]

    def read(self, operand: Operand, bits: int) -> int:
        """The low bits of an operand."""
        mask = (1 << bits) - 1
        if isinstance(operand, Register):
            if operand.name not in self.registers:
                raise InterpreterError(f"{operand.name} is read before it is written")
            return self.registers[operand.name] & mask ^ int(operand.negated)
        if isinstance(operand, Immediate):
            if operand.form == "f32" and bits == 64:
                (number,) = struct.unpack("<f", operand.number.to_bytes(4, "little"))
                return int.from_bytes(struct.pack("<d", number), "little")
            if operand.form == "f64" and bits == 32:
                (number,) = struct.unpack("<d", operand.number.to_bytes(8, "little"))
                return int.from_bytes(struct.pack("<f", number), "little")
            return operand.number & mask
        if isinstance(operand, SpecialRegister):
            return self.special(operand.name) & mask
        if isinstance(operand, Symbol):
            return self.kernel.places[operand.name] & mask
        if isinstance(operand, Vector):
            part = bits // len(operand.items)
            return sum(self.read(each, part) << part * place for place, each in enumerate(operand.items))
        raise InterpreterError(f"no value: {operand}")

    def write(self, operand: Operand, value: int, kind: str) -> None:
        """A result of a type."""
        if isinstance(operand, Register):
            self.registers[operand.name] = _extended(value, width(kind), kind, operand.bits)
        elif not isinstance(operand, Sink):
            raise InterpreterError(f"nothing to write to: {operand}")

    def address(self, operand: Operand, space: str) -> tuple[Memory, int]:
        """The memory that an address of a state space means, and the place there."""
        if not isinstance(operand, Address):
            raise InterpreterError(f"no address: {operand}")
        narrow = space in ("shared", "local")
        bits = 32 if narrow and isinstance(operand.base, Register) and operand.base.bits == 32 else 64
        at = self.read(operand.base, bits) + operand.offset & (WORD if narrow else (1 << 64) - 1)
        if space:
            return self.spaces[space], at
        windows = {SHARED >> 56: "shared", LOCAL >> 56: "local"}
        return self.spaces[windows.get(at >> 56, "global")], at & (1 << 56) - 1 if at >> 56 in windows else at

    # -------------------------------------------------------------------------------------------------------------- running

    def run(self) -> Lane:
        """From the first instruction to the end; yields where it waits."""
        entry, place = self.kernel.entry, 0
        while place < len(entry.instructions):
            each = entry.instructions[place]
            here, place = place, place + 1
            if each.guard is not None and not self.read(each.guard, 1):
                continue
            parts = each.opcode.split(".")
            if parts[0] in ("ret", "exit"):
                return
            if parts[0] == "bra":
                assert isinstance(each.operands[0], Symbol)
                place = entry.labels[each.operands[0].name]
            elif parts[0] == "brx":
                assert isinstance(each.operands[1], Symbol)
                place = entry.labels[entry.tables[each.operands[1].name][self.read(each.operands[0], 32)]]
            elif parts[0] == "bar":
                number, expected, *_ = [*(self.read(operand, 32) for operand in each.operands), 0]
                yield Wait(here, WORD, (), (number, expected))
            elif parts[0] in ("shfl", "vote", "redux", "ldmatrix", "stmatrix", "elect"):
                yield from getattr(self, parts[0])(here, each, parts)
            elif here in self.kernel.fused:
                self.sum(each, self.kernel.fused[here])
            elif here in self.kernel.products:
                self.factors[here] = [self.read(operand, width(parts[-1])) for operand in each.operands[1:]]
                self.row(each, parts)
            elif parts[0] == "mov" and isinstance(each.operands[0], Vector):
                bits = width(parts[-1])
                items, value = each.operands[0].items, self.read(each.operands[1], bits)
                part = bits // len(items)
                for at, item in enumerate(items):
                    self.write(item, value >> part * at & (1 << part) - 1, f"b{part}")
            elif parts[0] in ("ld", "st", "atom", "red", "cp", "cvta"):
                getattr(self, parts[0])(each, parts)
            else:
                self.row(each, parts)

    def row(self, each: PtxInstruction, parts: list[str]) -> None:
        """An opcode of one lane: its reference."""
        third = "#3" if parts[0] in ("min", "max") and len(each.operands) == 4 else ""
        row = opcode_table().get(each.opcode + third)
        if row is None or row.reference is None:
            raise InterpreterError(f"no row: {each}")
        target, *given = each.operands
        sources = [self.read(operand, width(kind)) for operand, kind in zip(given, row.sources, strict=False)]
        if len(sources) < len(row.sources):
            sources.append(self.registers["carry"])
        found = row.reference(*sources)
        results = found if isinstance(found, tuple) else (found,)
        targets = [target.first, target.second] if isinstance(target, Pair) else [target]
        if "cc" in parts:
            targets.append(Register("carry", 1))
        for place, kind, value in zip(targets, row.results, results, strict=False):
            self.write(place, value, kind)

    def sum(self, each: PtxInstruction, fused: Fused) -> None:
        kind = fused.row.name.rpartition(".")[2]
        (a, b), c = self.factors[fused.product], self.read(fused.other, width(kind))
        top = _TOP[kind]
        assert fused.row.reference is not None
        found = fused.row.reference(a ^ top * fused.turned[0], b, c ^ top * fused.turned[1])
        self.write(each.operands[0], found, kind)

    # --------------------------------------------------------------------------------------------------------------- memory

    @staticmethod
    def space(parts: list[str]) -> str:
        return next((word.split("::")[0] for word in parts if word.split("::")[0] in ("global", "shared", "local", "param", "const")), "")

    @staticmethod
    def items(operand: Operand) -> tuple[Operand, ...]:
        return operand.items if isinstance(operand, Vector) else (operand,)

    def ld(self, each: PtxInstruction, parts: list[str]) -> None:
        memory, at = self.address(each.operands[1], self.space(parts))
        kind, items = parts[-1], self.items(each.operands[0])
        size = width(kind) // 8
        memory.at(at, size * len(items))
        values = [memory.load(at + place * size, size) for place in range(len(items))]
        for item, value in zip(items, values, strict=True):
            self.write(item, value, kind)

    def st(self, each: PtxInstruction, parts: list[str]) -> None:
        memory, at = self.address(each.operands[0], self.space(parts))
        kind, items = parts[-1], self.items(each.operands[1])
        size = width(kind) // 8
        memory.at(at, size * len(items))
        for place, item in enumerate(items):
            memory.store(at + place * size, size, self.read(item, 8 * size))

    def atom(self, each: PtxInstruction, parts: list[str]) -> None:
        old = self.changed(each.operands[1:], parts)
        self.write(each.operands[0], old, "b" + parts[-1].lstrip("busf"))

    def red(self, each: PtxInstruction, parts: list[str]) -> None:
        self.changed(each.operands, parts)

    def changed(self, operands: Sequence[Operand], parts: list[str]) -> int:
        """Carry out an atomic operation; what was there before."""
        kind, name = parts[-1], next(word for word in parts[1:] if word in ATOMIC)
        space, size = self.space(parts), width(parts[-1]) // 8
        memory, at = self.address(operands[0], space)
        old = memory.load(at, size)
        value, other, *_ = [*(self.read(operand, 8 * size) for operand in operands[1:]), 0]
        if kind[0] == "f":
            found = _atomic_sum(old, value, kind, flush=memory is self.spaces["global"])
        else:
            found = ATOMIC[name](_signed(old, kind), _signed(value, kind), _signed(other, kind))
        memory.store(at, size, found & (1 << 8 * size) - 1)
        return old

    def cp(self, each: PtxInstruction, parts: list[str]) -> None:
        """cp.async: copies are carried out, in order, when a wait wants their group."""
        if parts[2] == "commit_group":
            self.copies.append([])
        elif parts[2] in ("wait_group", "wait_all"):
            left = 0
            if parts[2] == "wait_group":
                assert isinstance(each.operands[0], Immediate)
                left = 1 + each.operands[0].number
            while len(self.copies) > left:
                for target, source, size, have in self.copies.pop(0):
                    for byte in range(size):
                        value = self.spaces["global"].load(source + byte, 1) if byte < have else 0
                        self.spaces["shared"].store(target + byte, 1, value)
            self.copies = self.copies or [[]]
        else:
            _, target = self.address(each.operands[0], "shared")
            _, source = self.address(each.operands[1], "global")
            size = self.read(each.operands[2], 32)
            have = self.read(each.operands[3], 32) if len(each.operands) > 3 else size
            self.copies[-1].append((target, source, size, min(have, size)))

    def cvta(self, each: PtxInstruction, parts: list[str]) -> None:
        window = {"shared": SHARED, "local": LOCAL}.get(self.space(parts), 0)
        value = self.read(each.operands[1], 64)
        if window:
            value = value & WORD if "to" in parts else value & WORD | window
        self.write(each.operands[0], value, "b64")

    # -------------------------------------------------------------------------------------------------------- between lanes

    def shfl(self, here: int, each: PtxInstruction, parts: list[str]) -> Lane:
        target, source, by, clamp, mask = each.operands
        brought = yield Wait(here, self.read(mask, 32), (self.read(source, 32),))
        mode = next(word for word in parts if word in ("up", "down", "bfly", "idx"))
        other, inside = shuffled(mode, self.number % 32, self.read(by, 32), self.read(clamp, 32))
        if other not in brought:
            raise InterpreterError(f"lane {other} does not take part in {each}")
        self.write(target.first if isinstance(target, Pair) else target, brought[other][0], "b32")
        if isinstance(target, Pair):
            self.write(target.second, int(inside), "pred")

    def vote(self, here: int, each: PtxInstruction, parts: list[str]) -> Lane:
        target, source, mask = each.operands
        brought = yield Wait(here, self.read(mask, 32), (self.read(source, 1),))
        votes = [given[0] for given in brought.values()]
        if "ballot" in parts:
            self.write(target, sum(given[0] << lane for lane, given in brought.items()), "b32")
        else:
            found = {"all": all(votes), "any": any(votes), "uni": len(set(votes)) == 1}
            self.write(target, int(found[parts[2]]), "pred")

    def redux(self, here: int, each: PtxInstruction, parts: list[str]) -> Lane:
        target, source, mask = each.operands
        name, kind = parts[2], parts[-1]
        brought = yield Wait(here, self.read(mask, 32), (self.read(source, 32),))
        values = [_signed(given[0], kind) for given in brought.values()]
        total = values[0]
        for value in values[1:]:
            total = ATOMIC[name](total, value, 0)
        self.write(target, total & WORD, "b32")

    def elect(self, here: int, each: PtxInstruction, parts: list[str]) -> Lane:
        target, mask = each.operands
        brought = yield Wait(here, self.read(mask, 32), ())
        leader = min(brought)
        first, second = (target.first, target.second) if isinstance(target, Pair) else (target, Sink())
        self.write(first, leader, "b32")
        self.write(second, int(leader == self.number % 32), "pred")

    def ldmatrix(self, here: int, each: PtxInstruction, parts: list[str]) -> Lane:
        """Of 8 x 8 elements of 16 bits: lane 8 i + r names row r of matrix i; lane 4 r + c gets columns 2 c and 2 c + 1 of row r."""
        memory, at = self.address(each.operands[1], self.space(parts))
        brought = yield Wait(here, WORD, (at,))
        lane, values = self.number % 32, []
        for matrix in range(len(self.items(each.operands[0]))):
            cells = [self._cell(lane, half, "trans" in parts) for half in range(2)]
            low, high = (memory.load(brought[8 * matrix + row][0] + 2 * column, 2) for row, column in cells)
            values.append(high << 16 | low)
        for item, value in zip(self.items(each.operands[0]), values, strict=True):
            self.write(item, value, "b32")

    def stmatrix(self, here: int, each: PtxInstruction, parts: list[str]) -> Lane:
        memory, at = self.address(each.operands[0], self.space(parts))
        brought = yield Wait(here, WORD, (at,))
        for matrix, item in enumerate(self.items(each.operands[1])):
            value = self.read(item, 32)
            for half in range(2):
                row, column = self._cell(self.number % 32, half, "trans" in parts)
                memory.store(brought[8 * matrix + row][0] + 2 * column, 2, value >> 16 * half & 0xFFFF)

    @staticmethod
    def _cell(lane: int, half: int, transposed: bool) -> tuple[int, int]:
        """Row and column of a half of a lane's register."""
        row, column = lane // 4, 2 * (lane % 4) + half
        return (column, row) if transposed else (row, column)


def run(module: Module | str, grid: Sequence[int], arrays: Sequence[Any], **options: Any) -> list[bytes]:
    """A kernel whose parameters are the addresses of arrays, on copies of them.

    Args:
        module: PTX.
        grid: CTAs along x, y and z.
        arrays: NumPy arrays; the kernel gets their addresses.
        options: as Interpreter takes them.

    Returns:
        What the copies hold afterwards.
    """
    memory = Memory()
    for each in arrays:
        piece = memory.add(each.ctypes.data, each.nbytes)
        piece[:] = each.tobytes()
    copies = [piece for _, piece in memory.pieces]
    Interpreter(module, **options).launch(grid, [each.ctypes.data for each in arrays], memory)
    return [bytes(piece) for piece in copies]
