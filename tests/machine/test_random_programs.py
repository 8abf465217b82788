"""Random kernels on the machine and on `ptx_interpreter`: all memory that they write, bit for bit.

A program is a tree of ifs, loops and jumps through tables, of opcodes of every row, loads, stores and atomic operations, exchanges
between lanes and through shared memory, and asynchronous copies. What PTX leaves open does not occur: lanes write what no other
reads before a barrier, or combine by operations whose order does not matter.
`python tests/machine/test_random_programs.py SEED` prints a program.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import operands
import ptx_interpreter
import pytest

from mmabits.emulator.machine.elementwise import NoEmitter, emitted
from mmabits.emulator.machine.kernel import Kernel
from mmabits.emulator.machine.trace import Log
from mmabits.emulator.machine.vectors import Code
from mmabits.isa.opcodes import Opcode, opcode_table, width

POOLS: Final = {1: ("p", 5), 8: ("h", 6), 16: ("h", 6), 32: ("r", 10), 64: ("d", 6)}
"""Registers by their width; bytes are in registers of 16 bits."""
IN, OUT, DUMP, SLOT = 128, 256, 128, 64
"""Bytes of a thread: of input, of output, where the registers are written at the end, of shared memory."""
EDGES: Final = (
    0, 1, 0xFFFFFFFF, 0x80000000, 0x7FFFFFFF, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0x00800000,
    0x007FFFFF, 0x80000001, 0x7F7FFFFF, 0x3C003C00, 0x7C007E01, 0x3F803F80, 31, 32, 33, 255,
)  # fmt: skip
BLOCKS: Final = ((32, 1, 1),) * 6 + ((64, 1, 1), (48, 1, 1), (20, 1, 1), (8, 4, 1), (4, 3, 3))
SPECIALS: Final = (
    "laneid",
    "lanemask_lt",
    "lanemask_le",
    "lanemask_gt",
    "lanemask_ge",
    "lanemask_eq",
    "tid.x",
    "tid.y",
    "ctaid.y",
    "ntid.x",
)
SHARED_CELLS: Final = ("add.u32", "min.s32", "max.u32", "and.b32", "or.b32", "xor.b32", "max.s32", "min.u32")
GLOBAL_CELLS: Final = ("add.u64", "add.u32", "max.s64", "min.u64", "xor.b32", "or.b64")
"""Of each cell the one operation that is done on it."""
PRIVATE: Final = (
    *(f"{name}.{kind}" for name in ("add", "min", "max") for kind in ("u32", "s32", "u64")), "min.s64", "max.s64", "inc.u32", "dec.u32",
    *(f"{name}.b{bits}" for name in ("and", "or", "xor", "exch", "cas") for bits in (32, 64)), "add.f32", "add.f64",
)  # fmt: skip


@lru_cache(maxsize=1)
def rows() -> dict[str, list[tuple[Opcode, int]]]:
    """Rows by their base that the machine has code for, and lines of that code."""
    found = defaultdict(list)
    for row in opcode_table().values():
        code = Code()
        try:
            emitted(code, row, [code.constant(1, width(kind)) for kind in row.sources])
        except NoEmitter:
            continue
        if row.base != "mov":
            found[row.base].append((row, len(code.lines)))
    return found


@lru_cache(maxsize=1)
def products() -> list[str]:
    """What stands behind `mul.` and `add.` of rows that may be fused."""
    return [row.name.partition(".")[2] for row, _ in rows()["mul"] if row.fusible]


FUNCTIONS: Final = ("rcp", "ex2", "rsqrt", "sqrt", "lg2", "sin", "cos", "div")
"""Opcodes that are folded where their last operand is a constant."""


class Writer:
    """One program."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.block = self.random.choice(BLOCKS)
        self.threads = self.block[0] * self.block[1] * self.block[2]
        self.grid = self.random.choice(((1,), (1,), (2,), (1, 2)))
        self.lines: list[str] = []
        self.labels = self.temporaries = 0
        self.whole = self.threads % 32 == 0
        """No warp lacks lanes."""
        self.left = self.random.choice((8, 12, 20, 40))
        """Statements still to be written."""

    # ------------------------------------------------------------------------------------------------------------- pieces

    def line(self, text: str) -> None:
        self.lines.append("\t" + text + ";")

    def label(self) -> str:
        self.labels += 1
        return f"$L{self.labels}"

    def temporary(self, bits: int) -> str:
        self.temporaries += 1
        self.line(f".reg .b{bits} %t{bits}_{self.temporaries}" if bits > 1 else f".reg .pred %t1_{self.temporaries}")
        return f"%t{bits}_{self.temporaries}"

    def register(self, bits: int) -> str:
        name, count = POOLS[bits]
        return f"%{name}{self.random.randrange(count)}"

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def operand(self, kind: str) -> str:
        bits = width(kind)
        if bits >= 16 and self.chance(0.12):
            if kind in ("f32", "f64"):
                number = self.random.choice(EDGES) << (bits - 32) if self.chance(0.5) else self.random.getrandbits(bits)
                return f"0{'f' if bits == 32 else 'd'}{number:0{bits // 4}X}"
            if kind[0] in "sub" and not kind.startswith("bf") and "x" not in kind:
                number = self.random.choice((0, 1, 2, 3, 5, 31, 32, 63, 255, self.random.getrandbits(bits - 1)))
                return str(-number if kind[0] == "s" and self.chance(0.3) else number)
        return self.register(bits)

    def guard(self) -> str:
        return f"@{'!' if self.chance(0.4) else ''}{self.register(1)} " if self.chance(0.2) else ""

    # --------------------------------------------------------------------------------------------------------- statements

    def opcode(self) -> None:
        """Any row, seldom one of much code: `test_opcodes.py` has them all, and LLVM takes its time."""
        bases = rows()
        row, lines = self.random.choice(bases[self.random.choice(list(bases))])
        while lines > 20 and self.chance(0.9):
            row, lines = self.random.choice(bases[self.random.choice(list(bases))])
        given = [
            str(self.random.getrandbits(8)) if place in row.constants else self.operand(kind) for place, kind in enumerate(row.sources)
        ]
        if row.base in FUNCTIONS and given[-1].startswith("0"):  # of a constant ptxas computes them itself: see test_contraction.py
            given[-1] = self.register(width(row.sources[-1]))
        if row.base in ("addc", "subc", "madc"):
            given.pop()
        if row.base == "setp":
            first, second = self.random.sample(range(POOLS[1][1]), 2)
            target = self.random.choice((f"%p{first}", f"%p{first}|%p{second}", f"%p{first}|_"))
            if len(given) == 3 and self.chance(0.3):
                given[2] = "!" + given[2]
        else:
            bits = width(row.results[0])
            target = self.register(32 if bits in (8, 16) and row.base == "cvt" and row.results[0][0] in "su" and self.chance(0.4) else bits)
        self.line(f"{self.guard()}{row.name.partition('#')[0]} {target}, {', '.join(given)}")

    def carries(self) -> None:
        """Numbers of several words, sometimes with other things in between."""
        bits = self.random.choice((32, 64))
        kind = f"{self.random.choice('us')}{bits}"
        base = self.random.choice(("add", "sub", "mad.lo", "mad.hi"))
        first, _, part = base.partition(".")
        dot = f".{part}" if part else ""
        for step, middle in enumerate((f"{first}{dot}.cc", f"{first}c{dot}.cc", f"{first}c{dot}")):
            given = ", ".join(self.register(bits) for _ in range(3 if part else 2))
            self.line(f"{self.guard()}{middle}.{kind} {self.register(bits)}, {given}")
            if self.chance(0.2) and step < 2:
                self.statement(deep=3, together=False)

    def fusible(self) -> None:
        """A product and what may take it in."""
        rest = self.random.choice(products())
        kind = rest.rpartition(".")[2]
        bits = width(kind)
        made, factors = self.temporary(bits), [self.temporary(bits) for _ in range(2)]
        for each in factors:
            self.line(f"mov.b{bits} {each}, {self.register(bits)}")
        self.line(f"mul.{rest} {made}, {factors[0]}, {factors[1]}")
        pair = [made, self.register(bits)]
        if self.chance(0.2):
            other = self.temporary(bits)
            self.line(f"mul.{rest} {other}, {factors[1]}, {factors[1]}")
            pair[1] = other
        if self.chance(0.5):
            pair.reverse()
        for _ in range(self.random.choice((1, 1, 2))):
            self.line(f"{self.random.choice(('add', 'sub'))}.{rest} {self.register(bits)}, {pair[0]}, {pair[1]}")
        if self.chance(0.2):
            self.line(f"xor.b{bits} {self.register(bits)}, {made}, {self.register(bits)}")

    def moves(self) -> None:
        """Registers taken apart, put together and copied; special registers."""
        bits, part = self.random.choice(((64, 32), (64, 16), (32, 16)))
        pieces = [self.register(part) for _ in range(bits // part)]
        choice = self.random.randrange(4)
        if choice == 0:
            self.line(f"{self.guard()}mov.b{bits} {self.register(bits)}, {{{', '.join(pieces)}}}")
        elif choice == 1:
            names = [*dict.fromkeys(pieces)]
            if len(names) == len(pieces):
                names[self.random.randrange(len(names))] = self.random.choice((names[0], "_"))
            if len({*names}) == bits // part:
                self.line(f"{self.guard()}mov.b{bits} {{{', '.join(names)}}}, {self.register(bits)}")
        elif choice == 2:
            kind = self.random.choice(("b16", "u32", "f32", "s64", "b64", "pred"))
            self.line(f"{self.guard()}mov.{kind} {self.register(width(kind))}, {self.register(width(kind))}")
        else:
            self.line(f"{self.guard()}mov.u32 {self.register(32)}, %{self.random.choice(SPECIALS)}")

    def place(self, size: int) -> tuple[str, str]:
        """A state space and an address of a thread's own memory there, aligned."""
        space, base, room = self.random.choice(
            (("global", "%out", DUMP), ("shared", "%slot", SLOT), ("local", "stack", 64), ("", "%generic", SLOT))
        )
        at = self.random.randrange(room // size) * size
        if self.chance(0.3) and base not in ("stack",):  # a place that depends on what a register holds
            bits = 64 if base in ("%out", "%generic") else 32
            index, sum_ = self.temporary(32), self.temporary(bits)
            self.line(f"and.b32 {index}, {self.register(32)}, {room - 1 & -size}")
            if bits == 64:
                wide = self.temporary(64)
                self.line(f"cvt.u64.u32 {wide}, {index}")
                index = wide
            self.line(f"add.u{bits} {sum_}, {base}, {index}")
            return space, f"[{sum_}]"
        return space, f"[{base}+{at}]"

    def memory(self) -> None:
        """A load or a store of any size."""
        bits = self.random.choice((8, 16, 32, 32, 64))
        count = self.random.choice((1, 1, 2, 4)) if bits < 64 else self.random.choice((1, 2))
        space, address = self.place(bits // 8 * count)
        dot, vector = f".{space}" if space else "", f".v{count}" if count > 1 else ""
        if self.chance(0.5):
            held = [self.register(32 if bits in (8, 16) and self.chance(0.3) else bits) for _ in range(count)]
            data = held[0] if count == 1 else "{" + ", ".join(held) + "}"
            self.line(f"{self.guard()}st{dot}{vector}.b{bits} {address}, {data}")
            return
        sign = self.random.choice("busf") if bits >= 32 else self.random.choice("bus")
        pool, size = POOLS[bits]
        names = [f"%{pool}{each}" for each in self.random.sample(range(size), count)]
        if count == 1 and bits < 32 and self.chance(0.4):
            names = [self.register(32)]
        data = names[0] if count == 1 else "{" + ", ".join(names) + "}"
        self.line(f"{self.guard()}ld{dot}{vector}.{sign}{bits} {data}, {address}")

    def table(self) -> None:
        """Of constants or a variable of the module."""
        index, wide = self.temporary(32), self.temporary(64)
        self.line(f"and.b32 {index}, {self.register(32)}, 28")
        self.line(f"cvt.u64.u32 {wide}, {index}")
        base = self.temporary(64)
        self.line(f"mov.b64 {base}, {self.random.choice(('constants', 'numbers'))}")
        self.line(f"add.u64 {base}, {base}, {wide}")
        self.line(f"ld{self.random.choice(('.global', ''))}.b32 {self.register(32)}, [{base}]")

    def atomic(self) -> None:
        """On a thread's own word, or on a cell of all threads."""
        choice = self.random.randrange(3)
        if choice == 0:
            cell = self.random.randrange(len(SHARED_CELLS))
            self.line(f"{self.guard()}red.shared.{SHARED_CELLS[cell]} [%cells+{4 * cell}], {self.register(32)}")
        elif choice == 1:
            cell = self.random.randrange(len(GLOBAL_CELLS))
            name = GLOBAL_CELLS[cell]
            self.line(f"{self.guard()}red.global.{name} [%all+{8 * cell}], {self.register(int(name[-2:]))}")
        else:
            name = self.random.choice(PRIVATE)
            bits = int(name[-2:])
            space, base = self.random.choice((("global", "%out"), ("shared", "%slot")))
            at = self.random.randrange(64 // (bits // 8)) * (bits // 8)
            given = ", ".join(self.register(bits) for _ in range(2 if "cas" in name else 1))
            if self.chance(0.3) and name[:4] not in ("exch", "cas."):
                self.line(f"{self.guard()}red.{space}.{name} [{base}+{at}], {given}")
            else:
                self.line(f"{self.guard()}atom.{space}.{name} {self.register(bits)}, [{base}+{at}], {given}")

    def copies(self) -> None:
        """cp.async into a thread's own shared memory, awaited group by group."""
        groups = self.random.randint(1, 3)
        for group in range(groups):
            size = self.random.choice((4, 8, 16))
            source = self.random.randrange(IN // size) * size
            more = f", {self.register(32)}" if self.chance(0.3) else ""
            if more:
                have = self.temporary(32)
                self.line(f"and.b32 {have}, {more[2:]}, {size // 2}")
                more = f", {have}"
            self.line(f"cp.async.ca.shared.global [%slot+{16 * group}], [%in+{source}], {size}{more}")
            self.line("cp.async.commit_group")
        for group in range(groups):
            self.line(f"cp.async.wait_group {groups - 1 - group}" if self.chance(0.8) else "cp.async.wait_all")
            self.line(f"ld.shared.b32 {self.register(32)}, [%slot+{16 * group}]")

    def between(self) -> None:
        """shfl, vote, redux, elect and matrices, where all lanes of a warp come together."""
        choice = (
            self.random.choice(("shfl", "shfl", "vote", "redux", "elect", "matrix"))
            if self.whole
            else self.random.choice(("vote", "redux"))
        )
        if choice == "shfl":
            mode = self.random.choice(("up", "down", "bfly", "idx"))
            target = self.random.choice((self.register(32), f"{self.register(32)}|{self.register(1)}"))
            by = self.register(32) if self.chance(0.5) else str(self.random.randrange(32))
            segment = self.random.choice((0, 0, 16, 24, 28, 30))
            clamp = segment << 8 | (0 if mode == "up" else self.random.choice((31, 31, 31, 15, 7)))
            self.line(f"shfl.sync.{mode}.b32 {target}, {self.register(32)}, {by}, {clamp if self.chance(0.8) else self.register(32)}, -1")
        elif choice == "elect":
            self.line(f"elect.sync {self.register(32)}|{self.register(1)}, -1")
        elif choice == "matrix":
            self.matrix()
        else:
            self.voted(choice, "-1")

    def voted(self, choice: str, mask: str) -> None:
        if choice == "redux":
            name = self.random.choice(("add.u32", "add.s32", "min.u32", "max.u32", "min.s32", "max.s32", "and.b32", "or.b32", "xor.b32"))
            self.line(f"redux.sync.{name} {self.register(32)}, {self.register(32)}, {mask}")
        else:
            name = self.random.choice(("ballot.b32", "all.pred", "any.pred", "uni.pred"))
            target = self.register(32 if name[0] == "b" else 1)
            self.line(f"vote.sync.{name} {target}, {'!' if self.chance(0.2) else ''}{self.register(1)}, {mask}")

    def matrix(self) -> None:
        """ldmatrix or stmatrix of the warp's own shared memory, rows in any order."""
        self.line("bar.sync 0")
        count, trans = self.random.choice((1, 2, 4)), self.random.choice(("", ".trans"))
        row, base, rotation = self.temporary(32), self.temporary(32), self.random.randrange(32)
        self.line(f"add.u32 {row}, %lane, {rotation}")
        self.line(f"and.b32 {row}, {row}, 31")
        self.line(f"mad.lo.u32 {base}, {row}, {SLOT}, %warp_slots")
        pool, size = POOLS[32]
        data = "{" + ", ".join(f"%{pool}{each}" for each in self.random.sample(range(size), count)) + "}"
        if self.chance(0.6):
            self.line(f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {data}, [{base}]")
        else:
            self.line(f"stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [{base}], {data}")
        self.line("bar.sync 0")

    def exchanged(self) -> None:
        """Through shared memory, between two barriers."""
        other, at = self.temporary(32), self.random.randrange(SLOT // 4) * 4
        name = self.random.choice(("bar.sync 0", f"bar.sync 1, {self.threads}", "bar.sync 3")) if self.whole else "bar.sync 0"
        self.line(f"st.shared.b32 [%slot+{at}], {self.register(32)}")
        self.line(name)
        self.line(f"add.u32 {other}, %thread, {self.random.randrange(1, self.threads)}")
        self.line(f"rem.u32 {other}, {other}, {self.threads}")
        self.line(f"mad.lo.u32 {other}, {other}, {SLOT}, %slots")
        self.line(f"ld.shared.b32 {self.register(32)}, [{other}+{at}]")
        self.line(name)

    # ------------------------------------------------------------------------------------------------------------ control

    def condition(self) -> str:
        self.opcode_of("setp")
        return self.register(1)

    def opcode_of(self, base: str) -> None:
        row = self.random.choice([each for each, lines in rows()[base] if len(each.sources) == 2 and lines < 10])
        self.line(f"{row.name} {self.register(1)}, {self.operand(row.sources[0])}, {self.operand(row.sources[1])}")

    def choice(self, deep: int, together: bool) -> None:
        """If, with or without else."""
        uniform = self.chance(0.2)
        if uniform:
            condition = self.temporary(1)
            self.line(f"setp.eq.u32 {condition}, %ctaid.x, {self.random.randrange(2)}")
        else:
            condition = self.condition()
        sign = self.random.choice(("", "!"))
        other, end = self.label(), self.label()
        mask = ""
        if together and not uniform and self.chance(0.4):
            mask = self.temporary(32)
            self.line(f"vote.sync.ballot.b32 {mask}, {'' if sign else '!'}{condition}, -1")
        has_else = self.chance(0.5)
        self.line(f"@{sign}{condition} bra {other if has_else else end}")
        if mask:
            self.voted(self.random.choice(("vote", "redux")), mask)
        self.several(deep + 1, together and uniform)
        if has_else:
            self.line(f"bra{self.random.choice(('', '.uni'))} {end}")
            self.lines.append(f"{other}:")
            self.several(deep + 1, together and uniform)
        self.lines.append(f"{end}:")

    def loop(self, deep: int, together: bool) -> None:
        """A bounded loop, of as many rounds in all lanes or not, with or without a way out of its midst."""
        counter, more, start, end = self.temporary(32), self.temporary(1), self.label(), self.label()
        uniform, leaves = self.chance(0.5), self.chance(0.3)
        bound = str(self.random.randint(1, 3))
        if not uniform:
            bound = self.temporary(32)
            self.line(f"and.b32 {bound}, {self.register(32)}, 3")
        self.line(f"mov.u32 {counter}, 0")
        self.lines.append(f"{start}:")
        inside = together and uniform and not leaves
        self.several(deep + 1, inside)
        if leaves:
            self.line(f"@{self.condition()} bra {end}")
            self.several(deep + 1, inside)
        self.line(f"add.u32 {counter}, {counter}, 1")
        self.line(f"setp.lt.u32 {more}, {counter}, {bound}")
        self.line(f"@{more} bra {start}")
        self.lines.append(f"{end}:")

    def jump(self, deep: int, together: bool) -> None:
        """Through a table of targets."""
        count = self.random.choice((2, 4))
        index, table, end = self.temporary(32), self.label(), self.label()
        ways = [self.label() for _ in range(count)]
        self.line(f"and.b32 {index}, {self.register(32)}, {count - 1}")
        self.lines.append(f"{table}:\t.branchtargets {', '.join(ways)};")
        self.line(f"brx.idx {index}, {table}")
        for way in ways:
            self.lines.append(f"{way}:")
            self.several(deep + 1, False)
            self.line(f"bra {end}")
        self.lines.append(f"{end}:")

    def several(self, deep: int, together: bool) -> None:
        for _ in range(self.random.randint(1, 4)):
            self.statement(deep, together)

    def statement(self, deep: int, together: bool) -> None:
        """Anything; `together` where all lanes of the CTA come."""
        self.left -= 1
        plain: list[tuple[Callable[[], None], int]] = [
            (self.opcode, 40), (self.carries, 3), (self.fusible, 4), (self.moves, 6), (self.memory, 14), (self.table, 2), (self.atomic, 5),
            (self.copies, 1),
        ]  # fmt: skip
        if together:
            plain += [(self.between, 8), (self.exchanged, 3)]
        if deep < 3 and self.left > 0:
            control: list[tuple[Callable[[int, bool], None], int]] = [(self.choice, 9), (self.loop, 6), (self.jump, 1)]
            if self.chance(0.18):
                chosen = self.random.choices([each for each, _ in control], [weight for _, weight in control])[0]
                chosen(deep, together)
                return
        self.random.choices([each for each, _ in plain], [weight for _, weight in plain])[0]()

    # -------------------------------------------------------------------------------------------------------------- whole

    @staticmethod
    def all_registers() -> Iterator[tuple[str, str, int]]:
        """Every register of the pools but predicates, as vectors with their place: the way they are loaded and stored."""
        for bits, at in ((64, 0), (32, 48), (16, 88)):
            name, count = POOLS[bits]
            for first in range(0, count, 2):
                yield f"v2.b{bits}", f"%{name}{first}, %{name}{first + 1}", at + first * bits // 8

    def text(self) -> str:
        """The program."""
        registers = [
            f"\t.reg .{'pred' if bits == 1 else f'b{bits}'} %{name}<{count}>;" for bits, (name, count) in POOLS.items() if bits != 8
        ]
        head = f"""
	.reg .b64 %in, %out, %all, %generic, %wide;
	.reg .b32 %thread, %linear, %lane, %slot, %slots, %warp_slots, %cells, %tmp;
	ld.param.b64 %in, [k_0];
	ld.param.b64 %out, [k_1];
	ld.param.b64 %all, [k_2];
	mov.u32 %lane, %laneid;
	mov.u32 %thread, %tid.z;
	mov.u32 %tmp, %ntid.y;
	mad.lo.u32 %thread, %thread, %tmp, %tid.y;
	mov.u32 %tmp, %ntid.x;
	mad.lo.u32 %thread, %thread, %tmp, %tid.x;
	mov.u32 %linear, %ctaid.y;
	mad.lo.u32 %linear, %linear, %nctaid.x, %ctaid.x;
	mad.lo.u32 %linear, %linear, {self.threads}, %thread;
	mad.wide.u32 %in, %linear, {IN}, %in;
	mad.wide.u32 %out, %linear, {OUT}, %out;
	mov.b32 %slots, room;
	mov.b32 %cells, cells;
	mad.lo.u32 %slot, %thread, {SLOT}, %slots;
	shr.u32 %warp_slots, %thread, 5;
	mad.lo.u32 %warp_slots, %warp_slots, {32 * SLOT}, %slots;
	cvt.u64.u32 %wide, %slot;
	cvta.shared.u64 %generic, %wide;"""
        head += "".join(f"\n\tld.global.{kind} {{{names}}}, [%in+{at}];" for kind, names, at in self.all_registers())
        head += "".join(f"\n\tsetp.lt.s32 %p{place}, %r{place}, %r{place + 5};" for place in range(POOLS[1][1]))
        head += "\n\tadd.cc.u32 %r0, %r0, %r1;"
        head += "".join(f"\n\tst.local.v2.b64 [stack+{at}], {{%d0, %d1}};" for at in range(0, 64, 16))
        while self.left > 0:
            if self.chance(0.01):
                self.line(f"@{self.condition()} {self.random.choice(('ret', 'exit'))}")
                self.whole = False
            self.statement(0, True)
        tail = ["\tbar.sync 0;", f"\tld.shared.b32 %r9, [%cells+{4 * self.random.randrange(8)}];"]
        tail += [f"\tselp.b32 %tmp, 1, 0, %p{place};\n\tbfi.b32 %r0, %tmp, %r0, {3 * place}, 1;" for place in range(POOLS[1][1])]
        tail.append("\taddc.u32 %r1, %r1, 0;")
        tail += [f"\tst.global.{kind} [%out+{DUMP + at}], {{{names}}};" for kind, names, at in self.all_registers()]
        numbers = ", ".join(str(self.random.getrandbits(32)) for _ in range(8))
        variables = (
            f".const .align 4 .b32 constants[8] = {{{numbers}}};\n.global .align 4 .b32 numbers[8] = {{{numbers[:20].rpartition(',')[0]}}};"
        )
        return "\n".join([
            ".version 8.8", ".target sm_90a", ".address_size 64", variables,
            f".visible .entry k(.param .u64 k_0, .param .u64 k_1, .param .u64 k_2) .reqntid {', '.join(map(str, self.block))} {{",
            f"\t.shared .align 16 .b8 room[{self.threads * SLOT}];", "\t.shared .align 16 .b8 cells[32];",
            "\t.local .align 16 .b8 stack[64];",
            *registers, head, *self.lines, *tail, "\tret;", "}",
        ])  # fmt: skip


def arrays_of(seed: int, count: int) -> list[npt.NDArray[Any]]:
    """Input, output and the cells of all threads."""
    rng = operands.generator("programs", seed)
    words = rng.integers(0, 1 << 32, count * IN // 4, dtype=np.uint32)
    kind = rng.random(words.size)
    words[kind < 0.2] = rng.choice(np.array(EDGES, np.uint32), words.size)[kind < 0.2]
    small = (kind > 0.4) & (kind < 0.6)
    words[small] = rng.integers(0, 64, words.size, dtype=np.uint32)[small]
    floats = (rng.standard_normal(words.size) * 4).astype(np.float32).view(np.uint32)
    words[kind > 0.75] = floats[kind > 0.75]
    return [words, rng.integers(0, 1 << 32, count * OUT // 4, dtype=np.uint32), rng.integers(0, 1 << 32, 16, dtype=np.uint32)]


def difference(seed: int, trace: Callable[[Log], None] | None = None) -> str:
    """Where the machine and the interpreter differ on a program; nothing where they agree."""
    written = Writer(seed)
    text, contracts = written.text(), seed % 2 == 0
    arrays = arrays_of(seed, written.threads * int(np.prod(written.grid)))
    wanted = ptx_interpreter.run(text, written.grid, arrays, contracts=contracts)
    made = Kernel(text, arch="sm_90a", contracts=contracts, traces=trace is not None)
    ranges = [(each.ctypes.data, each.ctypes.data + each.nbytes) for each in arrays]
    made.launch(written.grid, [each.ctypes.data for each in arrays], ranges, trace=trace)
    for name, found, bits in zip(("input", "output", "cells"), arrays, wanted, strict=True):
        wrong = np.flatnonzero(found != np.frombuffer(bits, np.uint32))
        if wrong.size:
            at = int(wrong[0])
            thread, word = divmod(at, OUT // 4)
            want = int(np.frombuffer(bits, np.uint32)[at])
            return f"program {seed}: {name}, thread {thread}, byte {4 * word}: {int(found[at]):#x}, not {want:#x}; {wrong.size} words"
    return ""


@pytest.mark.parametrize("seed", range(30))
def test_random_program(seed: int) -> None:
    assert difference(seed) == ""


@pytest.mark.parametrize("seed", range(30, 36))
def test_random_program_traced(seed: int) -> None:
    """A kernel that notes its steps computes the same."""
    logs: list[int] = []
    assert difference(seed, trace=lambda log: logs.append(len(log))) == ""
    assert sum(logs) > 50


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(100))
def test_ten_thousand_random_programs(hundred: int) -> None:
    assert [found for seed in range(1000 + 100 * hundred, 1100 + 100 * hundred) if (found := difference(seed))] == []


if __name__ == "__main__":
    for word in sys.argv[1:]:
        print(Writer(int(word)).text())
        print(difference(int(word)))
