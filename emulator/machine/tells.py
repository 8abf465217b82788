"""What a checked kernel tells of itself: calls of the helper that carry nothing out (checkrecords.CHECK), beside those of any kernel."""

from __future__ import annotations

from typing import Final

from mmabits.emulator.machine import checkrecords as check
from mmabits.emulator.machine.inflight import waits_behind
from mmabits.emulator.machine.program import Program, base_of, meets, results_of, written
from mmabits.emulator.machine.ptx import PtxInstruction, Register, registers_of
from mmabits.emulator.machine.warp import ALL, WarpCode, member_mask

_RECORD, _MASKS = 0, 256
"""Places in the frame."""
_FENCES: Final = {
    "fence.proxy.async": check.PROXY_FENCE,
    "membar": check.FENCE,
    "fence": check.FENCE,
    "tcgen05.fence::before_thread_sync": check.TENSOR_BEFORE,
    "tcgen05.fence::after_thread_sync": check.TENSOR_AFTER,
    "tcgen05.wait::ld": check.WAIT_LOADS,
    "tcgen05.wait::st": check.WAIT_STORES,
}
"""What is told of opcodes, by how they begin; the first that fits."""
_PACKS: Final = ("mov", "prmt")
"""Opcodes that may move what nobody wrote."""


def told(opcode: str) -> int | None:
    """What is told of an opcode, if anything."""
    return next((what for beginning, what in _FENCES.items() if opcode.startswith(beginning)), None)


def packs(opcode: str) -> bool:
    """Whether an opcode puts together what may have undefined parts."""
    return base_of(opcode) in _PACKS or (base_of(opcode) == "cvt" and "x2." in opcode)


def followed(program: Program) -> tuple[Register, ...]:
    """Registers that may be read where they were never written, but accumulators of wgmma, which says itself whether it reads them."""
    accumulators = {each for found in program.entry.instructions if found.opcode.startswith("wgmma.mma") for each in written(found)}
    live = program.live_in[0] if program.live_in else frozenset()
    return tuple(sorted((each for each in live if each.name != "%cc" and each not in accumulators), key=lambda each: each.name))


def really_read(instruction: PtxInstruction) -> set[Register]:
    """Registers whose value an instruction takes."""
    operands = instruction.operands[len(results_of(instruction)) :]
    return {each._replace(negated=False) for operand in operands for each in registers_of(operand)}


class CheckTells:
    """What writes the code.

    Args:
        program: the kernel.
        checks: bits of checkrecords.
    """

    def __init__(self, program: Program, checks: int) -> None:
        self.registers = {each: place for place, each in enumerate(followed(program))} if checks & check.INIT else {}
        self._lanes = ""
        """Lanes whose guard holds, of an instruction with a guard."""

    def _tell(self, code: WarpCode, what: int, lanes: int | str, *more: int | str) -> None:
        code.call_helper([check.CHECK, what, "%context_number", lanes, code.index, *more], _RECORD)

    def begins(self, code: WarpCode) -> None:
        """The first segment."""
        self._tell(code, check.BEGINS, ALL)

    def ends(self, code: WarpCode) -> None:
        """A ret."""
        self._tell(code, check.ENDS, ALL)

    def in_flight(self, code: WarpCode) -> None:
        """An instruction before which products of wgmma must be done, although no wait says so."""
        if not waits_behind(code.program, code.index, "wgmma.wait_group"):
            self._tell(code, check.IN_FLIGHT, ALL)

    def at_barrier(self, code: WarpCode, arrives: int) -> None:
        """A barrier, whose number and threads stand in the context."""
        lanes = code.context_word("alive") if code.active is None else code.lanes(None)
        self._tell(code, check.AT_BARRIER, lanes, code.context_word("barrier"), code.context_word("expected"), arrives)

    def reads(self, code: WarpCode, instruction: PtxInstruction) -> None:
        """Registers that were not written yet."""
        if not self.registers:
            return
        guards = {instruction.guard._replace(negated=False)} if instruction.guard is not None else set()
        taken = guards if packs(instruction.opcode) else guards | really_read(instruction)
        for register in sorted(taken & self.registers.keys(), key=lambda each: each.name):
            guard = None if instruction.guard is None or register == instruction.guard._replace(negated=False) else code.guard(instruction)
            lanes = code.lanes(guard)
            has = code.named(f"zext i32 {self._word(code, register)} to i64")
            missing = code.named(f"and i64 {lanes}, {code.named(f'xor i64 {has}, {ALL}')}")
            name = code.fresh("written")[1:]
            code.line(f"br i1 {code.named(f'icmp eq i64 {missing}, 0')}, label %{name}, label %{name}.not")
            code.label(f"{name}.not")
            self._tell(code, check.READS, missing, self.registers[register])
            code.line(f"br label %{name}")
            code.label(name)

    def _place(self, code: WarpCode, register: Register) -> str:
        base = code.named(f"inttoptr i64 {code.context_word('defined')} to ptr")
        return code.named(f"getelementptr i8, ptr {base}, i64 {4 * self.registers[register]}")

    def _word(self, code: WarpCode, register: Register) -> str:
        return code.named(f"load i32, ptr {self._place(code, register)}")

    def before(self, code: WarpCode, instruction: PtxInstruction) -> None:
        """Lanes that do something together."""
        self._lanes = code.lanes(code.guard(instruction)) if instruction.guard is not None else ""
        if not meets(instruction.opcode) or instruction.opcode.startswith("bar.warp"):
            return
        mask = member_mask(instruction)
        if mask is not None:
            code.put_down(code.operand(mask, 32), _MASKS)
        lanes = self._lanes or (code.context_word("alive") if code.active is None else code.lanes(None))
        self._tell(code, check.MEETS, lanes, code.frame_number(_MASKS) if mask is not None else 0)

    def after(self, code: WarpCode, instruction: PtxInstruction) -> None:
        """Fences and waits that were passed, and registers that were written."""
        what = told(instruction.opcode)
        if instruction.opcode.startswith("bar.warp.sync"):
            code.put_down(code.operand(instruction.operands[0], 32), _MASKS)
            self._tell(code, check.WARP_BARRIER, self._lanes or code.lanes(None), code.frame_number(_MASKS))
        elif what is not None:
            self._tell(code, what, self._lanes or code.lanes(None))
        for register in sorted({*written(instruction)} & self.registers.keys(), key=lambda each: each.name):
            lanes = code.named(f"trunc i64 {self._lanes or code.lanes(None)} to i32")
            code.line(f"store i32 {code.named(f'or i32 {self._word(code, register)}, {lanes}')}, ptr {self._place(code, register)}")
