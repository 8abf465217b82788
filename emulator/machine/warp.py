"""A warp as one LLVM function: registers are vectors of 32 lanes, segments are blocks, and where it must wait it returns.

There are two such functions of a kernel. In the first all lanes go the same way. Where a branch parts them it returns PARTED, and the
second takes over, which runs the lanes that are furthest behind under a mask until all have met again.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from mmabits.emulator.machine import context as words
from mmabits.emulator.machine.context import Context
from mmabits.emulator.machine.elementwise import NoEmitter, emitted
from mmabits.emulator.machine.outlined import Outlined, outlined
from mmabits.emulator.machine.program import CARRY, Program, base_of
from mmabits.emulator.machine.ptx import (
    Address,
    Immediate,
    Negative,
    Operand,
    Pair,
    PtxError,
    PtxInstruction,
    Register,
    Sink,
    SpecialRegister,
    Symbol,
    Vector,
    shown,
)  # fmt: skip
from mmabits.emulator.machine.trace import accumulators, noted
from mmabits.emulator.machine.vectors import LANES, Code, Value
from mmabits.isa.opcodes import REFUSED, Opcode, form_of, opcode_table, width

_PLACE: Final = {name: 8 * place for place, name in enumerate(Context._fields)}
ALL: Final = (1 << LANES) - 1


class UnknownOpcode(PtxError):
    """An opcode that has no row, or that the machine has no code for."""


_UNEXPECTED: Final = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError)
_STEPS: Final = 1 << 16
"""Branches back after which a warp gives up its turn, so that a run can be ended."""
_SIGNS: Final = {"f32": 1 << 31, "f64": 1 << 63, "f16": 1 << 15, "bf16": 1 << 15, "f32x2": 1 << 63 | 1 << 31, "f16x2": 1 << 31 | 1 << 15,
                 "bf16x2": 1 << 31 | 1 << 15}  # fmt: skip
"""Sign bits of the types of products."""
_MASK_LAST: Final = ("shfl", "vote", "match", "redux", "elect")
"""Opcodes whose last operand names the lanes that take part."""

Handler = Callable[["WarpCode", PtxInstruction], None]


class WarpCode(Code):
    """The text of a warp's function.

    Args:
        program: the kernel.
        handlers: what writes opcodes that are not of one lane, by the base.
        layout: what the launch knows of memory: places of parameters and variables, and threads.
        diverged: write the function for a warp whose lanes went different ways.
    """

    def __init__(self, program: Program, handlers: dict[str, Handler], layout: Any, *, diverged: bool) -> None:
        super().__init__()
        self.program, self.handlers, self.layout, self.diverged = program, handlers, layout, diverged
        self.slots: dict[Register, int] = {}
        self.cleared_bytes = 0
        """Of the registers, from the first: zeros at the start of a CTA."""
        at = 0
        for register in program.kept:
            self.slots[register] = at
            at += LANES * max(8, register.bits) // 8
            if register in program.cleared:
                self.cleared_bytes = at
        self.register_bytes = (at + 63) // 64 * 64
        self.values: dict[Register, Value] = {}
        self.dirty: set[Register] = set()
        self.active: Value | None = None
        """Lanes that run, None for all."""
        self.segment = 0
        self.index = 0
        """Of the instruction."""
        self.room = 4096
        """Bytes of the frame: records and what helpers work on."""
        self.later: list[str] = []
        """Blocks of a segment that stand behind it."""
        self.outlined: dict[str, Outlined] = {}
        """Functions of opcodes that it calls, by their symbols."""
        self.warpgroups: Any = None
        """Products of warpgroups (wgmma.py)."""
        self.early_uses: frozenset[int] = frozenset()
        """Instructions before which those must be done."""
        self.products: Any = None
        """Products put off (tensor.py)."""
        self.traces = False
        """Whether everything is written down (trace.py)."""
        self.late = accumulators(program.entry.instructions)
        self.tensor_cores: Any = None
        """Products of tensor memory (tcgen05.py)."""
        self.tells: Any = None
        """What is told to the checks (tells.py)."""

    # ------------------------------------------------------------------------------------------------------------------ frame

    def reserve(self, size: int) -> None:
        """Have at least so many bytes in the frame."""
        self.room = max(self.room, size)

    def frame(self, offset: int) -> str:
        """A place in the frame."""
        return self.named(f"getelementptr i8, ptr %frame, i64 {offset}")

    def frame_number(self, offset: int) -> str:
        """Its address as a number."""
        return self.named(f"add i64 %frame_number, {offset}")

    def context_place(self, name: str) -> str:
        """The place of a word of the context."""
        return self.named(f"getelementptr i8, ptr %context, i64 {_PLACE[name]}")

    def context_word(self, name: str) -> str:
        """A word of the context."""
        return self.named(f"load i64, ptr {self.context_place(name)}")

    def set_context(self, name: str, value: int | str) -> None:
        """Write a word of the context."""
        self.line(f"store i64 {value}, ptr {self.context_place(name)}")

    def waits_here(self) -> None:
        """Say at which instruction the warp waits, unless one before has failed, which is then told of."""
        place = self.context_place("error_instruction")
        was = self.named(f"load i64, ptr {place}")
        error = self.context_word("error")
        failed = self.named(f"icmp ne i64 {error}, 0")
        self.line(f"store i64 {self.named(f'select i1 {failed}, i64 {was}, i64 {self.index}')}, ptr {place}")

    def call_helper(self, record: list[int | str], at: int = 0) -> None:
        """Call the helper with a record, which is written to the frame."""
        for place, word in enumerate(record):
            self.line(f"store i64 {word}, ptr {self.frame(at + 8 * place)}")
        self.line(f"call void %helper(ptr {self.frame(at)})")

    def stop_on_error(self) -> None:
        """End where the helper found an error: what follows would work with what is not there."""
        number = self.fresh("fine")[1:]
        error = self.context_word("error")
        self.line(f"br i1 {self.named(f'icmp eq i64 {error}, 0')}, label %{number}, label %{number}.not")
        self.label(f"{number}.not")
        self.line(f"ret i32 {words.FAILED}")
        self.label(number)

    def put_down(self, value: Value, offset: int) -> None:
        """Store a vector in the frame."""
        if value.element == "i1":
            value = self.convert("zext", value, "i8")
        self.line(f"store {value.typed}, ptr {self.frame(offset)}, align 8")

    def take_up(self, element: str, offset: int) -> Value:
        """Load a vector from the frame."""
        return self.value(element, f"load <{LANES} x {element}>, ptr {self.frame(offset)}, align 8")

    # -------------------------------------------------------------------------------------------------------------- registers

    def get(self, register: Register) -> Value:
        """What a register holds."""
        negated, register = register.negated, register._replace(negated=False)
        self.settle(register)
        found = self.values.get(register)
        if found is None:
            slot = self.slots.get(register)
            if slot is None:  # read before it was ever written: undefined; zeros here
                found = self.constant(0, register.bits)
            else:
                place = self.named(f"getelementptr i8, ptr %registers, i64 {slot}")
                held = max(8, register.bits)
                found = self.value(f"i{held}", f"load <{LANES} x i{held}>, ptr {place}, align 8")
                if register.bits == 1:
                    found = self.convert("trunc", found, "i1")
            self.values[register] = found
        return self.opposite(found) if negated else found

    def kept(self, register: Register) -> Value:
        """What lies in a register's place, which products may still write."""
        place = self.named(f"getelementptr i8, ptr %registers, i64 {self.slots[register]}")
        return self.value(f"i{register.bits}", f"load <{LANES} x i{register.bits}>, ptr {place}, align 8")

    def put(self, register: Register, value: Value, guard: Value | None = None) -> None:
        """Write a register where lanes run and the guard holds."""
        self.settle(register)
        mask = self.running(guard)
        if mask is not None:
            value = self.select(mask, value, self.get(register))
        self.values[register] = value
        self.dirty.add(register)

    def settle(self, register: Register) -> None:
        """Carry out the products that were put off, if one of them writes this register."""
        if self.products is not None and self.products.writes(register):
            self.flush()

    def flush(self) -> None:
        """Carry out the products that were put off."""
        if self.products is not None:
            self.products.carry_out(self)

    def running(self, guard: Value | None) -> Value | None:
        """Lanes that run and whose guard holds; None for all."""
        if guard is None:
            return self.active
        return guard if self.active is None else self.both(guard, self.active)

    def lanes(self, guard: Value | None) -> str:
        """The same as a number, a bit for each lane."""
        mask = self.running(guard)
        return str(ALL) if mask is None else self.named(f"zext i32 {self.as_word(mask)} to i64")

    def as_word(self, mask: Value) -> str:
        """A bit for each lane, as an i32."""
        return self.named(f"bitcast {mask.typed} to i{LANES}")

    def guard(self, instruction: PtxInstruction) -> Value | None:
        """The guard of an instruction."""
        return None if instruction.guard is None else self.get(instruction.guard)

    def spill(self) -> None:
        """Store what later segments read."""
        live = self.program.live_out[self.segment]
        for register in sorted(self.dirty & live, key=lambda each: each.name):
            self.store(register)

    def store(self, register: Register) -> None:
        """Put a register where later segments find it."""
        value = self.values[register]
        if register.bits == 1:
            value = self.convert("zext", value, "i8")
        place = self.named(f"getelementptr i8, ptr %registers, i64 {self.slots[register]}")
        self.line(f"store {value.typed}, ptr {place}, align 8")

    # --------------------------------------------------------------------------------------------------------------- operands

    def operand(self, operand: Operand, bits: int, *, signed: bool = False) -> Value:
        """An operand as a vector of so many bits: registers of other widths are cut, or widened by zeros."""
        if isinstance(operand, Register):
            return self.resize(self.get(operand), bits, signed=signed)
        if isinstance(operand, Immediate):
            return self.constant(_number(operand, bits), bits)
        if isinstance(operand, SpecialRegister):
            return self.resize(self.special(operand.name), bits)
        if isinstance(operand, Symbol):
            return self.constant(self.layout.address_of(operand.name), bits)
        if isinstance(operand, Address) and isinstance(operand.base, Symbol):
            return self.constant(self.layout.address_of(operand.base.name) + operand.offset, bits)
        if isinstance(operand, Vector):
            return self.packed(operand, bits)
        raise self.refused(f"an operand of this kind: {operand}")

    def source(self, operand: Operand, kind: str) -> Value:
        """An operand of a type."""
        if isinstance(operand, Negative):
            signs = _SIGNS[self.instruction.opcode.rpartition(".")[2]]
            return self.binary("xor", self.source(operand.operand, kind), self.constant(signs, width(kind)))
        if isinstance(operand, Immediate) and not _may_be(operand, kind):
            raise PtxError(f"{self.program.entry.name}: {self.instruction}: ptxas takes {_constants(kind)} as an operand of type {kind}")
        return self.operand(operand, width(kind))

    def packed(self, operand: Vector, bits: int) -> Value:
        """The parts of a vector operand in one word, the first in the low bits."""
        part = bits // len(operand.items)
        total = self.constant(0, bits)
        for place, each in enumerate(operand.items):
            total = self.either(total, self.shift("shl", self.resize(self.operand(each, part), bits), part * place))
        return total

    def address(self, operand: Operand) -> Value:
        """An address, 64 bits, without the state space's tag."""
        if not isinstance(operand, Address):
            raise self.refused(f"no address: {operand}")
        base: Value
        if isinstance(operand.base, Register):
            base = self.resize(self.get(operand.base), 64)
        elif isinstance(operand.base, Immediate):
            base = self.constant(operand.base.number, 64)
        else:
            base = self.constant(self.layout.address_of(operand.base.name), 64)
        return self.binary("add", base, self.constant(operand.offset, 64)) if operand.offset else base

    def special(self, name: str) -> Value:
        """A special register, 32 bits (64 of a clock)."""
        kind, _, axis = name[1:].partition(".")
        lane = self.constants(range(LANES), 32)
        if kind == "laneid":
            return lane
        if kind.startswith("lanemask_"):
            which = kind.removeprefix("lanemask_")
            masks = [_lane_mask(which, each) for each in range(LANES)]
            return self.constants(masks, 32)
        if kind == "warpid":
            return self.uniform("warp")
        if kind in ("ctaid", "nctaid", "ntid"):
            return self.uniform(f"{kind}_{axis}")
        if kind == "tid":
            return self.thread(axis)
        if kind == "nwarpid":
            return self.constant(self.layout.warps, 32)
        if "cluster" in kind:
            return self.cluster(kind, axis)
        if kind in ("smid", "gridid"):
            return self.constant(0, 32)
        if kind.startswith(("clock", "globaltimer")):
            return self.clock(kind)
        if kind == "nsmid":
            return self.constant(1, 32)
        if kind == "dynamic_smem_size":
            return self.constant(self.layout.dynamic, 32)
        if kind == "total_smem_size":
            return self.constant(self.layout.shared_size, 32)
        raise self.refused(f"the special register {name}")

    def clock(self, kind: str) -> Value:
        """A count that goes on with each reading: no time passes here."""
        now = self.named(f"add i64 {self.context_word('clock')}, {words.TICKS}")
        self.set_context("clock", now)
        value = self.splat(now, "i64")
        if kind.endswith("_hi"):
            value = self.shift("lshr", value, 32)
        return value if kind in ("clock64", "globaltimer") else self.resize(value, 32)

    def cluster(self, kind: str, axis: str) -> Value:
        """A special register of the cluster."""
        sizes = dict(zip("xyz", self.layout.cluster, strict=True))
        if kind == "is_explicit_cluster":
            return self.constant(int(self.layout.is_cluster), 32)
        if kind == "cluster_nctaid":
            return self.constant(sizes[axis], 32)
        if kind == "cluster_nctarank":
            return self.constant(sizes["x"] * sizes["y"] * sizes["z"], 32)
        if kind == "cluster_ctarank":
            rank = self.cluster("cluster_ctaid", "z")
            for each in "yx":
                rank = self.binary("add", self.binary("mul", rank, self.constant(sizes[each], 32)), self.cluster("cluster_ctaid", each))
            return rank
        of = self.uniform(f"nctaid_{axis}" if kind == "nclusterid" else f"ctaid_{axis}")
        return self.binary("urem" if kind == "cluster_ctaid" else "udiv", of, self.constant(sizes[axis], 32))

    def uniform(self, name: str) -> Value:
        """A word of the context in every lane."""
        return self.splat(self.named(f"trunc i64 {self.context_word(name)} to i32"), "i32")

    def thread(self, axis: str) -> Value:
        """%tid: the linear number of a thread taken apart."""
        start = self.shift("shl", self.uniform("warp"), 5)
        linear = self.binary("add", start, self.constants(range(LANES), 32))
        x, y = (self.uniform(f"ntid_{each}") for each in "xy")
        if axis == "x":
            return self.binary("urem", linear, x)
        rest = self.binary("udiv", linear, x)
        return self.binary("urem", rest, y) if axis == "y" else self.binary("udiv", rest, y)

    # ----------------------------------------------------------------------------------------------------------- instructions

    def refused(self, what: str) -> UnknownOpcode:
        """The error for what the machine cannot do."""
        why = REFUSED.get(self.instruction.opcode, "")
        return UnknownOpcode(f"{self.program.entry.name}: {shown(what, 240)} is not emulated{why and f' ({why})'}, in {self.instruction}")

    @property
    def instruction(self) -> PtxInstruction:
        """The one that is being written."""
        return self.program.entry.instructions[self.index]

    def write(self, instruction: PtxInstruction) -> None:
        """One instruction that does not end a segment."""
        handler = self.handler(instruction.opcode)
        row = opcode_table().get(_row_name(instruction))
        if row is not None and not _takes_apart(instruction):
            self.elementwise(instruction, row)
        elif handler is not None and (row is not None or form_of(instruction.opcode) is not None):
            handler(self, instruction)
        else:
            raise self.refused(f"the opcode {instruction.opcode}")

    def handler(self, opcode: str) -> Handler | None:
        """What writes an opcode: by the longest beginning that has a handler."""
        parts = opcode.split(".")[:4]
        found = (self.handlers.get(".".join(parts[:count])) for count in range(len(parts), 0, -1))
        return next((each for each in found if each is not None), None)

    def elementwise(self, instruction: PtxInstruction, row: Opcode) -> None:
        """An opcode of one lane."""
        if not instruction.operands:
            raise PtxError(f"{self.program.entry.name}: {row.name} without operands, in {instruction}")
        target, *given = instruction.operands
        sources = list(row.sources)
        operands = [self.source(each, kind) for each, kind in zip(given, sources, strict=False)]
        if len(sources) == len(given) + 1 and sources[-1] == "pred":
            operands.append(self.get(CARRY))
        elif len(sources) != len(given):
            raise PtxError(f"{self.program.entry.name}: {row.name} takes {len(sources)} operands, in {instruction}")
        try:
            function = outlined(row.name)
            results = emitted(self, row, operands) if function is None else (self.called(function, operands),)
        except NoEmitter:
            raise self.refused(f"the opcode {row.name}") from None
        guard = self.guard(instruction)
        targets: tuple[Operand, ...] = (target.first, target.second) if isinstance(target, Pair) else (target,)
        if row.base in ("add", "addc", "sub", "subc", "mad", "madc") and len(results) == 2:
            targets = (target, CARRY)
        for place, kind, value in zip(targets, row.results, results, strict=False):
            if isinstance(place, Register):
                self.put(place, self.resize(value, place.bits, signed=kind[0] == "s"), guard)
            elif not isinstance(place, Sink):
                raise PtxError(f"no register to write in {instruction}")

    def called(self, function: Outlined, operands: Sequence[Value]) -> Value:
        """What a function of an opcode makes of operands."""
        self.declared.add(function.declaration)
        self.outlined[function.symbol] = function
        given = ", ".join(each.typed for each in operands)
        return self.value(function.result, f"call <{LANES} x {function.result}> @{function.symbol}({given})")

    # --------------------------------------------------------------------------------------------------------------- segments

    def text(self, name: str) -> str:
        """The whole function."""
        body: list[str] = []
        for place, segment in enumerate(self.program.segments):
            self.segment, self.values, self.dirty, self.lines = place, {}, set(), []
            self.label(f"segment{place}")
            if self.diverged:
                self.active = self.value("i1", f"bitcast i32 {self.named('load i32, ptr %active')} to <{LANES} x i1>")
            ended = False
            if self.tells is not None and place == 0:
                self.tells.begins(self)
            for index in range(segment.first, segment.last):
                self.index = index
                ended = self.safe_step(self.program.entry.instructions[index], place)
            if not ended:
                self.leave(place)
                if place + 1 < len(self.program.segments):
                    self.go(place + 1, place)
                else:
                    self.end(None, place)
            body.extend(self.lines + self.later)
            self.later = []
        self.lines = []
        self.begin()
        return f"define i32 @{name}(ptr %context) {{\nentry:\n" + "\n".join(self.lines + body) + "\n}\n"

    def begin(self) -> None:
        """What stands before the segments."""
        self.line(f"%frame = alloca i8, i64 {self.room}, align 64")
        self.line(f"%helper = inttoptr i64 {self.context_word('helper')} to ptr")
        self.line("%context_number = ptrtoint ptr %context to i64")
        self.line("%frame_number = ptrtoint ptr %frame to i64")
        self.line("%steps = alloca i32")
        self.line(f"store i32 {_STEPS}, ptr %steps")
        self.line(f"%registers = inttoptr i64 {self.context_word('registers')} to ptr")
        cases = " ".join(f"i64 {place}, label %segment{place}" for place in range(len(self.program.segments)))
        if not self.diverged:
            self.line(f"switch i64 {self.context_word('segment')}, label %nowhere [ {cases} ]")
        else:
            self.line("%active = alloca i32")
            self.line(f"%pcs = inttoptr i64 {self.context_word('pcs')} to ptr")
            self.line("br label %choose")
            self.choose(cases)
        self.label("nowhere")
        self.line(f"ret i32 {words.FAILED}")

    def choose(self, cases: str) -> None:
        """Of a parted warp: the lanes that are furthest behind go on, of those that are not held."""
        self.label("choose")
        pcs = Value(self.named(f"load <{LANES} x i32>, ptr %pcs, align 4"), "i32")
        alive_word = self.as_word(self.compare("ne", pcs, self.constant(-1, 32)))
        self.line(f"br i1 {self.named(f'icmp eq i32 {alive_word}, 0')}, label %all_ended, label %some")
        self.label("all_ended")
        self.line(f"ret i32 {words.ENDED}")
        self.label("some")
        self.declared.add("declare i32 @llvm.vector.reduce.umin.v32i32(<32 x i32>)")
        held = self.named(f"trunc i64 {self.context_word('held')} to i32")
        free = self.select(self.lanes_of(held), self.constant(-1, 32), pcs)
        least = self.named(f"call i32 @llvm.vector.reduce.umin.v32i32({free.typed})")
        self.line(f"br i1 {self.named(f'icmp eq i32 {least}, -1')}, label %all_held, label %found")
        self.label("all_held")
        self.line(f"ret i32 {words.WAITING}")
        self.label("found")
        here = self.as_word(self.compare("eq", pcs, self.splat(least, "i32")))
        wide = self.named(f"zext i32 {least} to i64")
        not_held = self.named(f"xor i32 {held}, -1")
        self.line(f"store i32 {self.named(f'and i32 {here}, {not_held}')}, ptr %active")
        self.line(f"br i1 {self.named(f'icmp eq i32 {here}, -1')}, label %met, label %go")
        self.label("met")
        self.set_context("segment", wide)
        self.line(f"ret i32 {words.MET}")
        self.label("go")
        left = self.named(f"sub i32 {self.named('load i32, ptr %steps')}, 1")
        self.line(f"store i32 {left}, ptr %steps")
        self.line(f"br i1 {self.named(f'icmp eq i32 {left}, 0')}, label %tired, label %onward")
        self.label("tired")
        self.line(f"ret i32 {words.TIRED}")
        self.label("onward")
        self.line(f"switch i64 {wide}, label %nowhere [ {cases} ]")

    def lanes_of(self, word: str) -> Value:
        """A bit for each lane, as a mask."""
        return self.value("i1", f"bitcast i32 {word} to <{LANES} x i1>")

    def wait(self) -> None:
        """Give up the turn, to come back to the instruction, which is the first of its segment."""
        if not self.diverged:
            self.set_context("segment", self.segment)
            self.line(f"ret i32 {words.WAITING}")
            return
        assert self.active is not None
        self.hold(self.active)
        self.line("br label %choose")

    def hold(self, lanes: Value, name: str = "held") -> None:
        """These lanes do not go on in this turn."""
        more = self.named(f"zext i32 {self.as_word(lanes)} to i64")
        self.set_context(name, self.named(f"or i64 {self.context_word(name)}, {more}"))

    def safe_step(self, instruction: PtxInstruction, place: int) -> bool:
        """The same; what the code for an opcode does not expect of operands is an error that names the instruction."""
        try:
            return self.step(instruction, place)
        except _UNEXPECTED as error:
            told = f"{type(error).__name__}: {error}".rstrip(": ")
            raise PtxError(f"{self.program.entry.name}: operands that do not fit, in {instruction} ({shown(told)})") from error

    def step(self, instruction: PtxInstruction, place: int) -> bool:
        """One instruction; whether it ended the segment."""
        if self.index in self.early_uses:
            if self.tells is not None:
                self.tells.in_flight(self)
            self.warpgroups.finish(self)
        if self.tells is not None:
            self.tells.reads(self, instruction)
        base = base_of(instruction.opcode)
        if base == "bra":
            self.branch(instruction, place)
        elif base == "brx":
            self.indirect(instruction, place)
        elif base in ("ret", "exit"):
            self.leave(place)
            if self.tells is not None:
                self.tells.ends(self)
            self.end(self.guard(instruction), place)
        elif base == "trap":
            running = self.running(self.guard(instruction))
            self.leave(place)
            word = None if running is None else self.as_word(running)
            name = self.fresh("untrapped")[1:]
            if word is not None and instruction.guard is not None:
                self.line(f"br i1 {self.named(f'icmp eq i32 {word}, 0')}, label %{name}, label %{name}.not")
                self.label(f"{name}.not")
            if word is not None:
                self.first_lane_fails(word)
            self.fail(words.TRAPPED)
            if instruction.guard is None:
                return True
            self.label(name)
            return False
        elif base in ("bar", "barrier") and ".cluster." not in instruction.opcode and ".warp." not in instruction.opcode:
            self.barrier(instruction, place)
        else:
            if self.diverged and self.index in self.program.meetings:
                self.members_come(instruction)
            lanes = self.lanes(self.guard(instruction)) if self.traces else ""
            if self.tells is not None:
                self.tells.before(self, instruction)
            self.write(instruction)
            if self.tells is not None:
                self.tells.after(self, instruction)
            if self.traces:
                self.note(instruction, lanes)
            return False
        return True

    def note(self, instruction: PtxInstruction, lanes: str) -> None:
        """Write down what an instruction did (trace.py)."""
        registers, size = noted(instruction, self.late)
        late = instruction.opcode.startswith("wgmma.")
        values = [self.kept(each.register) if late else self.get(each.register) for each in registers]
        log = self.named(f"inttoptr i64 {self.context_word('trace')} to ptr")
        start = self.named(f"load i64, ptr {log}")
        end = self.named(f"add i64 {start}, {size}")
        most = self.named(f"load i64, ptr {self.named(f'getelementptr i8, ptr {log}, i64 8')}")
        name = self.fresh("noted")[1:]
        self.line(f"br i1 {self.named(f'icmp ule i64 {end}, {most}')}, label %{name}, label %{name}.full")
        self.label(f"{name}.full")
        self.fail(words.TRACE_FULL)
        self.label(name)
        place = self.named(f"inttoptr i64 {start} to ptr")
        owner = self.context_word("cta")
        cta = self.named(f"load i64, ptr {self.named(f'inttoptr i64 {owner} to ptr')}")
        for number, word in enumerate((str(self.index), "%context_number", lanes, cta)):
            self.line(f"store i64 {word}, ptr {self.named(f'getelementptr i8, ptr {place}, i64 {8 * number}')}")
        for each, value in zip(registers, values, strict=True):
            held = self.convert("zext", value, "i8") if value.element == "i1" else value
            self.line(f"store {held.typed}, ptr {self.named(f'getelementptr i8, ptr {place}, i64 {each.offset}')}, align 8")
        self.line(f"store i64 {end}, ptr {log}")

    def members_come(self, instruction: PtxInstruction) -> None:
        """Of a parted warp: wait until the lanes that the instruction names have come, as far as they have not ended."""
        assert self.active is not None
        active = self.as_word(self.active)
        mask = member_mask(instruction)
        if mask is None:
            members = "-1"
        else:
            named = self.both(self.operand(mask, 32), self.select(self.active, self.constant(-1, 32), self.constant(0, 32)))
            self.declared.add("declare i32 @llvm.vector.reduce.or.v32i32(<32 x i32>)")
            members = self.named(f"call i32 @llvm.vector.reduce.or.v32i32({named.typed})")
        pcs = Value(self.named(f"load <{LANES} x i32>, ptr %pcs, align 4"), "i32")
        alive = self.as_word(self.compare("ne", pcs, self.constant(-1, 32)))
        away = self.named(f"and i32 {self.named(f'and i32 {alive}, {members}')}, {self.named(f'xor i32 {active}, -1')}")
        name = self.fresh("members")[1:]
        self.line(f"br i1 {self.named(f'icmp eq i32 {away}, 0')}, label %{name}, label %{name}.away")
        self.label(f"{name}.away")
        self.waits_here()
        self.wait()
        self.label(name)

    def leave(self, place: int) -> None:
        """Before a segment is left."""
        self.flush()
        self.spill()

    def fail(self, kind: int) -> None:
        """End with an error at this instruction."""
        self.set_context("error", kind)
        self.set_context("error_instruction", self.index)
        self.line(f"ret i32 {words.FAILED}")

    def back(self, target: int, place: int) -> str:
        """The block that a branch to a segment goes to: one that goes back may end the turn first."""
        if target > place:
            return f"%segment{target}"
        block = self.fresh("back")
        self.later.append(f"{block[1:]}:")
        spins = place in self.program.spins
        if not spins:
            left, some = self.fresh(), self.fresh()
            self.later += [
                f"  {left}.had = load i32, ptr %steps", f"  {left} = sub i32 {left}.had, 1", f"  store i32 {left}, ptr %steps",
                f"  {some} = icmp eq i32 {left}, 0", f"  br i1 {some}, label {block}.tired, label %segment{target}", f"{block[1:]}.tired:",
            ]  # fmt: skip
        at = self.fresh()
        self.later += [
            f"  {at} = getelementptr i8, ptr %context, i64 {_PLACE['segment']}", f"  store i64 {target}, ptr {at}",
            f"  ret i32 {words.WAITING if spins else words.TIRED}",
        ]  # fmt: skip
        return block

    def go(self, target: int, place: int) -> None:
        """All lanes that run go on at a segment."""
        if not self.diverged:
            self.line(f"br label {self.back(target, place)}")
            return
        if target <= place and place in self.program.spins:
            assert self.active is not None
            self.hold(self.active)
        self.move_lanes(self.constant(target, 32))
        self.line("br label %choose")

    def move_lanes(self, targets: Value) -> None:
        """Where each lane that runs goes on."""
        assert self.active is not None
        before = Value(self.named(f"load <{LANES} x i32>, ptr %pcs, align 4"), "i32")
        self.line(f"store {self.select(self.active, targets, before).typed}, ptr %pcs, align 4")

    def branch(self, instruction: PtxInstruction, place: int) -> None:
        """Bra: the warp goes on where all lanes go, or parts."""
        label = instruction.operands[0]
        assert isinstance(label, Symbol)
        target = self.program.segment_of(label.name)
        guard = self.guard(instruction)
        self.leave(place)
        if guard is None:
            self.go(target, place)
            return
        targets = self.select(guard, self.constant(target, 32), self.constant(place + 1, 32))
        if self.diverged:
            if target <= place and place in self.program.spins:
                assert self.active is not None
                self.hold(self.both(guard, self.active))
            self.move_lanes(targets)
            self.line("br label %choose")
            return
        word = self.as_word(guard)
        there = self.back(target, place)
        self.line(f"switch i32 {word}, label %parted{place} [ i32 -1, label {there} i32 0, label %segment{place + 1} ]")
        self.part(place, targets)

    def part(self, place: int, targets: Value) -> None:
        """Lanes go different ways."""
        self.label(f"parted{place}")
        self.line(f"store {targets.typed}, ptr {self.pcs_place()}, align 4")
        self.line(f"ret i32 {words.PARTED}")

    def pcs_place(self) -> str:
        """Where the lanes' segments stand."""
        return self.named(f"inttoptr i64 {self.context_word('pcs')} to ptr")

    def indirect(self, instruction: PtxInstruction, place: int) -> None:
        """brx.idx: a table of targets."""
        if len(instruction.operands) != 2 or not isinstance(table := instruction.operands[1], Symbol):
            raise PtxError(f"{self.program.entry.name}: brx.idx takes an index and a table, in {instruction}")
        index = instruction.operands[0]
        value = self.operand(index, 32)
        guard = self.guard(instruction)
        self.leave(place)
        labels = self.program.entry.tables[table.name]
        self.within(value, len(labels), guard)
        targets = self.constant(place + 1 if guard is not None else self.program.segment_of(labels[0]), 32)
        for number, label in enumerate(labels):
            chosen = self.compare("eq", value, self.constant(number, 32))
            chosen = chosen if guard is None else self.both(chosen, guard)
            targets = self.select(chosen, self.constant(self.program.segment_of(label), 32), targets)
        if self.diverged:
            self.move_lanes(targets)
            self.line("br label %choose")
            return
        first = self.lane(targets)
        same = self.as_word(self.compare("eq", targets, self.splat(first, "i32")))
        self.line(f"br i1 {self.named(f'icmp eq i32 {same}, -1')}, label %together{place}, label %parted{place}")
        self.label(f"together{place}")
        ways = " ".join(f"i32 {each}, label {self.back(each, place)}" for each in sorted(set(self.program.segments[place].targets)))
        self.line(f"switch i32 {first}, label %nowhere [ {ways} ]")
        self.part(place, targets)

    def within(self, value: Value, count: int, guard: Value | None) -> None:
        """An error where an index lies outside a table of so many targets."""
        outside, running = self.compare("uge", value, self.constant(count, 32)), self.running(guard)
        word = self.as_word(outside if running is None else self.both(outside, running))
        name = self.fresh("inside")[1:]
        self.line(f"br i1 {self.named(f'icmp eq i32 {word}, 0')}, label %{name}, label %{name}.not")
        self.label(f"{name}.not")
        lane = self.first_lane_fails(word)
        self.set_context("error_address", self.named(f"zext i32 {self.lane(value, lane)} to i64"))
        self.fail(words.NO_TARGET)
        self.label(name)

    def first_lane_fails(self, word: str) -> str:
        """An error is that of the first lane of a word; the lane."""
        self.declared.add("declare i32 @llvm.cttz.i32(i32, i1)")
        lane = self.named(f"call i32 @llvm.cttz.i32(i32 {word}, i1 false)")
        self.set_context("error_lane", self.named(f"zext i32 {lane} to i64"))
        return lane

    def end(self, guard: Value | None, place: int) -> None:
        """Ret: lanes end."""
        if self.diverged:
            targets = self.constant(-1, 32)
            if guard is not None:
                targets = self.select(guard, targets, self.constant(place + 1, 32))
            self.move_lanes(targets)
            self.line("br label %choose")
            return
        if guard is None:
            self.line(f"ret i32 {words.ENDED}")
            return
        word = self.as_word(guard)
        targets = self.select(guard, self.constant(-1, 32), self.constant(place + 1, 32))
        self.line(f"switch i32 {word}, label %parted{place} [ i32 -1, label %ended{place} i32 0, label %segment{place + 1} ]")
        self.label(f"ended{place}")
        self.line(f"ret i32 {words.ENDED}")
        self.part(place, targets)

    def barrier(self, instruction: PtxInstruction, place: int) -> None:
        """bar.sync: the warp returns, and goes on when as many threads have come as it says; bar.arrive: it is counted, and goes on."""
        arrives = ".arrive" in instruction.opcode
        reduces = ".red" in instruction.opcode
        if instruction.guard is not None or not (arrives or reduces or ".sync" in instruction.opcode):
            raise self.refused(f"the opcode {instruction.opcode}" + (" under a guard" if instruction.guard else ""))
        given = list(instruction.operands)
        target = given.pop(0) if reduces else None
        truth = self.operand(given.pop(), 1) if reduces else None
        number = self.operand(given[0], 32)
        expected = self.operand(given[1], 32) if len(given) > 1 else self.constant(0, 32)
        counted = self.counted(instruction, truth) if truth is not None else "0"
        name = self.fresh("reduced")[1:]
        if reduces:
            returns = self.named(f"icmp ne i64 {self.context_word('returns')}, 0")
            self.line(f"br i1 {returns}, label %{name}, label %{name}.not")
            self.label(f"{name}.not")
        if self.diverged:
            self.others_come(place, aligned=instruction.opcode.startswith("bar.") or ".aligned" in instruction.opcode)
        self.leave(place)
        self.set_context("arrives", int(arrives))
        self.set_context("barrier", self.named(f"zext i32 {self.lane(number)} to i64"))
        self.set_context("expected", self.named(f"zext i32 {self.lane(expected)} to i64"))
        self.waits_here()
        if self.tells is not None:
            self.tells.at_barrier(self, int(arrives))
        self.set_context("counted", counted)
        if reduces:
            self.set_context("returns", 1)
        elif self.diverged:
            self.move_lanes(self.constant(place + 1, 32))
        if not self.diverged:
            self.set_context("segment", place if reduces else place + 1)
        self.line(f"ret i32 {words.AT_BARRIER}")
        if target is not None:
            self.label(name)
            self.set_context("returns", 0)
            self.reduced(instruction, target)
            if self.tells is not None:
                self.tells.after(self, instruction)
            self.leave(place)
            self.go(place + 1, place)

    def counted(self, instruction: PtxInstruction, truth: Value) -> str:
        """How many lanes the reduction of a barrier counts: those that are true; of `and` those that are not."""
        lanes = self.opposite(truth) if ".and." in instruction.opcode else truth
        alive = self.lanes_of(self.named(f"trunc i64 {self.context_word('alive')} to i32"))
        lanes = self.both(lanes, alive if self.active is None else self.active)
        self.declared.add("declare i32 @llvm.ctpop.i32(i32)")
        return self.named(f"zext i32 {self.named(f'call i32 @llvm.ctpop.i32(i32 {self.as_word(lanes)})')} to i64")

    def reduced(self, instruction: PtxInstruction, target: Operand) -> None:
        """The result of the reduction of a barrier, which let the warp go."""
        if not isinstance(target, Register):
            raise self.refused("a result that is no register")
        found = self.uniform("reduced")
        if ".popc." not in instruction.opcode:
            found = self.compare("eq" if ".and." in instruction.opcode else "ne", found, self.constant(0, 32))
        self.put(target, self.resize(found, target.bits))

    def others_come(self, place: int, *, aligned: bool) -> None:
        """Some lanes come to a barrier: they wait for the others, as far as those have not ended."""
        assert self.active is not None
        pcs = Value(self.named(f"load <{LANES} x i32>, ptr %pcs, align 4"), "i32")
        alive = self.as_word(self.compare("ne", pcs, self.constant(-1, 32)))
        active = self.as_word(self.active)
        self.line(f"br i1 {self.named(f'icmp eq i32 {active}, {alive}')}, label %alone{place}, label %apart{place}")
        self.label(f"apart{place}")
        self.hold(self.active, "parked")
        parked = self.named(f"trunc i64 {self.context_word('parked')} to i32")
        here = self.as_word(self.compare("eq", pcs, self.constant(self.segment, 32)))
        # All are at barriers, and not at the same one; or, of an aligned barrier, others are beyond it.
        apart = self.named(f"and i1 {self.named(f'icmp eq i32 {parked}, {alive}')}, {self.named(f'icmp ne i32 {here}, {alive}')}")
        if aligned:
            held = self.named(f"trunc i64 {self.context_word('held')} to i32")
            waiting = self.named(f"or i32 {self.named(f'or i32 {parked}, {held}')}, {here}")
            for segment in self.program.doomed:  # lanes that can only come to a trap are told of there
                lost = self.as_word(self.compare("eq", pcs, self.constant(segment, 32)))
                waiting = self.named(f"or i32 {waiting}, {lost}")
            beyond = self.named(f"and i32 {alive}, {self.named(f'xor i32 {waiting}, -1')}")
            apart = self.named(f"or i1 {apart}, {self.named(f'icmp ne i32 {beyond}, 0')}")
        self.line(f"br i1 {apart}, label %misfit{place}, label %held{place}")
        self.label(f"misfit{place}")
        self.fail(words.BAD_BARRIER)
        self.label(f"held{place}")
        self.wait()
        self.label(f"alone{place}")


def member_mask(instruction: PtxInstruction) -> Operand | None:
    """The operand that names the lanes which take part; None: all."""
    base = base_of(instruction.opcode)
    if base in _MASK_LAST:
        return instruction.operands[-1]
    return instruction.operands[0] if base == "bar" else None


def _lane_mask(which: str, lane: int) -> int:
    """%lanemask_lt and its like, of one lane."""
    below, up_to = (1 << lane) - 1, (2 << lane) - 1
    return {"eq": 1 << lane, "lt": below, "le": up_to, "gt": ALL & ~up_to, "ge": ALL & ~below}[which]


def _number(operand: Immediate, bits: int) -> int:
    """An immediate as an instruction of so many bits reads it."""
    if operand.form == "f64" and bits == 32:
        return int.from_bytes(struct.pack("<f", struct.unpack("<d", operand.number.to_bytes(8, "little"))[0]), "little")
    if operand.form == "f32" and bits == 64:
        return int.from_bytes(struct.pack("<d", struct.unpack("<f", operand.number.to_bytes(4, "little"))[0]), "little")
    return operand.number


def _may_be(operand: Immediate, kind: str) -> bool:
    """Whether ptxas takes a constant for an operand of a type: of halves, pairs and narrow floats it takes none."""
    if kind in ("f32", "f64"):
        return bool(operand.form)
    if kind[0] in "us" and kind[1:].isdigit():
        return not operand.form
    return kind == "pred" or (kind[0] == "b" and kind[1:].isdigit())


def _constants(kind: str) -> str:
    """What constants ptxas takes there."""
    if kind in ("f32", "f64"):
        return "no integer, only constants of floating point,"
    return "no constant of floating point" if kind[0] in "us" and kind[1:].isdigit() else "no constant"


def _row_name(instruction: PtxInstruction) -> str:
    """The name of an instruction's row: three operands of min and max are another row than two."""
    base = base_of(instruction.opcode)
    if base in ("min", "max") and len(instruction.operands) == 4:
        return f"{instruction.opcode}#3"
    return instruction.opcode


def _takes_apart(instruction: PtxInstruction) -> bool:
    """A mov into several registers."""
    return base_of(instruction.opcode) == "mov" and isinstance(instruction.operands[0], Vector)
