"""mbarriers, the barrier of a cluster, and what only tells the hardware how to run.

A wait that fails gives up the warp's turn and comes back to its instruction (turns.py); asynchronous work that completes an mbarrier is
carried out when a wait wants it (pending.py).
"""

from __future__ import annotations

from typing import Final

from mmabits.emulator.machine import context as words
from mmabits.emulator.machine.memory import generic
from mmabits.emulator.machine.ptx import Address, Operand, PtxInstruction, Register, Sink
from mmabits.emulator.machine.vectors import LANES, Value
from mmabits.emulator.machine.warp import Handler, WarpCode

_RECORD, _ADDRESSES, _NUMBERS, _OTHERS, _RESULTS = 0, 256, 512, 768, 1024
_RESULT_WORD: Final = 8 * 10
"""Place of the record's word that says whether to wait."""
_STATE, _OPEN, _DROPS, _COUNTS = 1, 2, 4, 8
"""Flags of operations.MBARRIER."""
_SPACES: Final = ("shared::cluster", "shared::cta", "shared")


def space_of(opcode: str) -> str:
    """The state space that an opcode names, or none."""
    return next((word for word in opcode.split(".") if word in _SPACES), "")


def barrier_address(code: WarpCode, operand: Operand, opcode: str) -> Value:
    """The generic address of an mbarrier."""
    return generic(code, operand, space_of(opcode))


def _call(code: WarpCode, what: int, address: Operand, number: Value, other: Value | None = None, flags: int = 0) -> None:
    instruction = code.instruction
    code.put_down(barrier_address(code, address, instruction.opcode), _ADDRESSES)
    code.put_down(code.resize(number, 64), _NUMBERS)
    code.put_down(code.resize(other, 64) if other is not None else code.constant(1, 64), _OTHERS)
    code.call_helper([
        words.MBARRIER, what, code.lanes(code.guard(instruction)), "%context_number",
        *(code.frame_number(place) for place in (_ADDRESSES, _NUMBERS, _OTHERS, _RESULTS)), code.index, flags, 0,
    ], _RECORD)  # fmt: skip


def _mbarrier(code: WarpCode, instruction: PtxInstruction) -> None:
    parts, operands = instruction.opcode.split("."), instruction.operands
    what = parts[1]
    if what == "init":
        _call(code, words.INIT, operands[0], code.operand(operands[1], 32))
    elif what == "inval":
        _call(code, words.INVALIDATE, operands[0], code.constant(0, 64))
    elif what in ("expect_tx", "complete_tx"):
        _call(code, words.EXPECT if what == "expect_tx" else words.COMPLETE, operands[0], code.operand(operands[1], 32))
    elif what in ("arrive", "arrive_drop"):
        _arrive(code, instruction, parts)
    elif what in ("test_wait", "try_wait"):
        _wait(code, instruction, parts)
    elif what == "pending_count":
        state = code.operand(operands[1], 64)
        count = code.masked(code.shift("lshr", state, 1), (1 << 20) - 1)
        assert isinstance(operands[0], Register)
        code.put(operands[0], code.resize(count, operands[0].bits), code.guard(instruction))
    else:
        raise code.refused(f"the opcode {instruction.opcode}")


def _arrive(code: WarpCode, instruction: PtxInstruction, parts: list[str]) -> None:
    """The state is that before the arrival."""
    target: Operand = Sink()
    operands = list(instruction.operands)
    if not isinstance(operands[0], Address):
        target = operands.pop(0)
    flags = (_DROPS if parts[1] == "arrive_drop" else 0) | (_OPEN if "noComplete" in parts else 0)
    if "expect_tx" in parts:
        _call(code, words.ARRIVE_EXPECT, operands[0], code.operand(operands[1], 32), flags=flags)
    else:
        count = code.operand(operands[1], 32) if len(operands) > 1 else code.constant(1, 32)
        _call(code, words.ARRIVE, operands[0], count, flags=flags)
    if isinstance(target, Register):
        code.put(target, code.take_up("i64", _RESULTS), code.guard(instruction))


def _wait(code: WarpCode, instruction: PtxInstruction, parts: list[str]) -> None:
    """Of the phase that a state was given in, or, with .parity, of the one with that parity."""
    target, address, number, *_ = instruction.operands
    tries, guard = parts[1] == "try_wait", code.guard(instruction)
    flags = 0 if "parity" in parts else _STATE
    _call(code, words.TRY if tries else words.TEST, address, code.operand(number, 64 if flags else 32), flags=flags)
    code.stop_on_error()
    if tries:
        name = code.fresh("waited")[1:]
        waits = code.named(f"load i64, ptr {code.frame(_RECORD + _RESULT_WORD)}")
        code.line(f"br i1 {code.named(f'icmp ne i64 {waits}, 0')}, label %{name}.not, label %{name}")
        code.label(f"{name}.not")
        code.wait()
        code.label(name)
    if isinstance(target, Register):
        found = code.compare("ne", code.take_up("i64", _RESULTS), code.constant(0, 64))
        code.put(target, found, guard)


def _arrive_after_copies(code: WarpCode, instruction: PtxInstruction) -> None:
    """cp.async.mbarrier.arrive: when the copies that the thread asked for are done."""
    flags = 0 if ".noinc" in instruction.opcode else _COUNTS
    _call(code, words.ARRIVE_AFTER_COPIES, instruction.operands[0], code.constant(1, 64), flags=flags)


def _barrier(code: WarpCode, instruction: PtxInstruction) -> None:
    """barrier.cluster: the warp arrives, or waits until all threads of the cluster have."""
    parts = instruction.opcode.split(".")
    if parts[1] != "cluster" or instruction.guard is not None:
        raise code.refused(f"the opcode {instruction.opcode}")
    arrives = parts[2] == "arrive"
    lanes = code.context_word("alive") if code.active is None else code.lanes(None)
    code.call_helper([words.CLUSTER_BARRIER, int(not arrives), "%context_number", lanes, code.index, 0], _RECORD)
    if arrives:
        return
    name = code.fresh("cluster")[1:]
    waits = code.named(f"load i64, ptr {code.frame(_RECORD + 40)}")
    code.line(f"br i1 {code.named(f'icmp ne i64 {waits}, 0')}, label %{name}.not, label %{name}")
    code.label(f"{name}.not")
    code.wait()
    code.label(name)


def _map_to_rank(code: WarpCode, instruction: PtxInstruction) -> None:
    """mapa: the same place of shared memory in another CTA of the cluster."""
    target, source, rank = instruction.operands
    if not isinstance(target, Register):
        raise code.refused("a result that is no register")
    bits = target.bits
    place = code.masked(code.operand(source, bits), ~(0xFF << words.WINDOW_SHIFT))
    window = code.binary("add", code.resize(code.operand(rank, 32), bits), code.constant(1, bits))
    code.put(target, code.either(place, code.shift("shl", window, words.WINDOW_SHIFT)), code.guard(instruction))


def _rank_of(code: WarpCode, instruction: PtxInstruction) -> None:
    """getctarank: which CTA of the cluster an address of shared memory belongs to."""
    target, source = instruction.operands
    if isinstance(target, Register):
        bits = 64 if instruction.opcode.endswith("64") else 32
        window = code.resize(code.masked(code.shift("lshr", code.operand(source, bits), words.WINDOW_SHIFT), 0xFF), 32)
        own = code.compare("eq", window, code.constant(0, 32))
        rank = code.select(own, code.special("%cluster_ctarank"), code.binary("sub", window, code.constant(1, 32)))
        code.put(target, code.resize(rank, target.bits), code.guard(instruction))


def _warp_barrier(code: WarpCode, instruction: PtxInstruction) -> None:
    """bar.warp.sync: lanes of a parted warp wait for those that it names."""
    if code.active is None:
        return
    members = code.select(code.active, code.operand(instruction.operands[0], 32), code.constant(0, 32))
    code.declared.add(f"declare i32 @llvm.vector.reduce.or.v{LANES}i32(<{LANES} x i32>)")
    named = code.named(f"call i32 @llvm.vector.reduce.or.v{LANES}i32({members.typed})")
    pcs = Value(code.named(f"load <{LANES} x i32>, ptr %pcs, align 4"), "i32")
    alive = code.as_word(code.compare("ne", pcs, code.constant(-1, 32)))
    others = code.named(f"xor i32 {code.as_word(code.active)}, -1")
    missing = code.named(f"and i32 {code.named(f'and i32 {named}, {alive}')}, {others}")
    name = code.fresh("together")[1:]
    code.line(f"br i1 {code.named(f'icmp ne i32 {missing}, 0')}, label %{name}.not, label %{name}")
    code.label(f"{name}.not")
    code.wait()
    code.label(name)


HANDLERS: Final[dict[str, Handler]] = {
    "mbarrier": _mbarrier, "barrier": _barrier, "mapa": _map_to_rank, "getctarank": _rank_of, "bar": _warp_barrier,
    "cp.async.mbarrier.arrive": _arrive_after_copies,
}  # fmt: skip
