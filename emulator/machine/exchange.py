"""Opcodes between the lanes of a warp, and moves that take registers apart."""

from __future__ import annotations

from typing import Final

from mmabits.emulator.machine import context as words
from mmabits.emulator.machine.ptx import Pair, PtxInstruction, Register, Vector
from mmabits.emulator.machine.vectors import LANES, Value
from mmabits.emulator.machine.warp import ALL, Handler, WarpCode
from mmabits.isa.opcodes import width

_MODES: Final = {"up": 0, "down": 1, "bfly": 2, "idx": 3}
_AT: Final = 512
"""Place of the vectors in the frame."""


def _shuffle(code: WarpCode, instruction: PtxInstruction) -> None:
    """shfl.sync of one word."""
    parts = instruction.opcode.split(".")
    target, source, by, clamp = instruction.operands[:4]
    guard = code.guard(instruction)
    size = 4 * LANES
    for number, each in enumerate((source, by, clamp)):
        code.put_down(code.operand(each, 32), _AT + number * size)
    mode = next(_MODES[word] for word in parts if word in _MODES)
    code.call_helper([words.SHUFFLE, mode, ALL, *(code.frame_number(_AT + number * size) for number in range(5)), "%context_number"])
    result = target.first if isinstance(target, Pair) else target
    if isinstance(result, Register):
        code.put(result, code.take_up("i32", _AT + 3 * size), guard)
    if isinstance(target, Pair) and isinstance(target.second, Register):
        inside = code.take_up("i32", _AT + 4 * size)
        code.put(target.second, code.compare("ne", inside, code.constant(0, 32)), guard)


def _members(code: WarpCode, operand_mask: Value, guard: Value | None) -> Value:
    """Lanes that run and that the member mask names."""
    bit = code.constants([1 << lane for lane in range(LANES)], 32)
    named = code.compare("ne", code.both(operand_mask, bit), code.constant(0, 32))
    running = code.running(guard)
    return named if running is None else code.both(named, running)


def _vote(code: WarpCode, instruction: PtxInstruction) -> None:
    """vote.sync: all, any, uni, ballot."""
    parts = instruction.opcode.split(".")
    target, source, *mask = instruction.operands
    guard = code.guard(instruction)
    members = _members(code, code.operand(mask[0], 32) if mask else code.constant(ALL, 32), guard)
    truth = code.both(code.operand(source, 1), members)
    yes, all_ = code.as_word(truth), code.as_word(members)
    if not isinstance(target, Register):
        return
    if "ballot" in parts:
        code.put(target, code.splat(yes, "i32"), guard)
        return
    none = code.named(f"icmp eq i32 {yes}, 0")
    every = code.named(f"icmp eq i32 {yes}, {all_}")
    if "all" in parts:
        found = every
    elif "any" in parts:
        found = code.named(f"xor i1 {none}, true")
    else:
        found = code.named(f"or i1 {none}, {every}")
    code.put(target, code.splat(found, "i1"), guard)


def _active(code: WarpCode, instruction: PtxInstruction) -> None:
    target = instruction.operands[0]
    if isinstance(target, Register):
        running = code.running(code.guard(instruction))
        word = str(ALL - (1 << LANES)) if running is None else code.as_word(running)
        code.put(target, code.splat(word, "i32"), code.guard(instruction))


def _elect(code: WarpCode, instruction: PtxInstruction) -> None:
    """elect.sync: the lowest of the lanes that the mask names."""
    target, mask = instruction.operands
    guard = code.guard(instruction)
    members = code.as_word(_members(code, code.operand(mask, 32), guard))
    code.declared.add("declare i32 @llvm.cttz.i32(i32, i1)")
    lane = code.splat(code.named(f"call i32 @llvm.cttz.i32(i32 {members}, i1 false)"), "i32")
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    if isinstance(first, Register):
        code.put(first, lane, guard)
    if isinstance(second, Register):
        code.put(second, code.compare("eq", lane, code.constants(range(LANES), 32)), guard)


_NEUTRAL: Final = {
    ("add", "u"): 0, ("add", "s"): 0, ("and", "b"): ALL, ("or", "b"): 0, ("xor", "b"): 0, ("min", "u"): ALL, ("max", "u"): 0,
    ("min", "s"): 0x7FFF_FFFF, ("max", "s"): 0x8000_0000,
}  # fmt: skip


def _reduce(code: WarpCode, instruction: PtxInstruction) -> None:
    """redux.sync of integers; of f32 the least and the greatest."""
    parts = instruction.opcode.split(".")
    name, kind = parts[2], parts[-1]
    target, source, mask = instruction.operands
    guard = code.guard(instruction)
    members = _members(code, code.operand(mask, 32), guard)
    value = code.operand(source, 32)
    if kind == "f32":
        _reduce_floats(code, instruction, name, members, value, guard)
        return
    neutral = _NEUTRAL.get((name, kind[0]))
    if neutral is None:
        raise code.refused(f"the opcode {instruction.opcode}")
    prefix = kind[0] if name in ("min", "max") else ""
    value = code.select(members, value, code.constant(neutral, 32))
    if isinstance(target, Register):
        code.put(target, code.splat(_reduced(code, prefix + name, value), "i32"), guard)


def _reduced(code: WarpCode, name: str, value: Value) -> str:
    function = f"llvm.vector.reduce.{name}.v{LANES}i32"
    code.declared.add(f"declare i32 @{function}(<{LANES} x i32>)")
    return code.named(f"call i32 @{function}({value.typed})")


def _reduce_floats(code: WarpCode, instruction: PtxInstruction, name: str, members: Value, value: Value, guard: Value | None) -> None:
    parts, target = instruction.opcode.split("."), instruction.operands[0]
    if "abs" in parts:
        value = code.masked(value, 0x7FFF_FFFF)
    number = code.as_float(value)
    nan = code.compare("uno", number, number)
    key = code.binary("xor", value, code.shift("lshr", code.shift("ashr", value, 31), 1))
    neutral = 0x7FFF_FFFF if name == "min" else 0x8000_0000
    counted = code.both(members, code.opposite(nan))
    least = _reduced(code, "s" + name, code.select(counted, key, code.constant(neutral, 32)))
    found = code.splat(least, "i32")
    found = code.binary("xor", found, code.shift("lshr", code.shift("ashr", found, 31), 1))
    wanted = "NaN" in parts
    lost = code.both(members, nan) if wanted else counted
    test = code.named(f"icmp {'ne' if wanted else 'eq'} i32 {code.as_word(lost)}, 0")
    found = code.select(code.splat(test, "i1"), code.constant(0x7FFF_FFFF, 32), found)
    if isinstance(target, Register):
        code.put(target, found, guard)


def _take_apart(code: WarpCode, instruction: PtxInstruction) -> None:
    """mov.b64 {a, b}, c: the low bits first."""
    target, source = instruction.operands
    if not isinstance(target, Vector):
        raise code.refused(f"the opcode {instruction.opcode}")
    bits = width(instruction.opcode.rpartition(".")[2])
    part = bits // len(target.items)
    value, guard = code.operand(source, bits), code.guard(instruction)
    for place, each in enumerate(target.items):
        if isinstance(each, Register):
            code.put(each, code.resize(code.resize(code.shift("lshr", value, part * place), part), each.bits), guard)


HANDLERS: Final[dict[str, Handler]] = {
    "shfl": _shuffle, "vote": _vote, "activemask": _active, "elect": _elect, "redux": _reduce, "mov": _take_apart,
}  # fmt: skip
