"""Opcodes that move data: loads, stores, atomic operations, matrices of shared memory, asynchronous copies, addresses."""

from __future__ import annotations

from typing import Final

from mmabits.emulator.machine import context as words
from mmabits.emulator.machine.ptx import Address, Operand, PtxInstruction, Register, Sink, Symbol, Vector
from mmabits.emulator.machine.vectors import LANES, Value
from mmabits.emulator.machine.warp import Handler, WarpCode
from mmabits.isa.opcodes import width

TAGS: Final = {"shared": words.SHARED_TAG, "shared::cta": words.SHARED_TAG, "shared::cluster": words.SHARED_TAG, "local": words.LOCAL_TAG}
"""State spaces with a tag in their generic addresses."""
_SPACES: Final = ("global", "shared", "shared::cta", "local", "param", "const", "shared::cluster")
_RECORD, _ADDRESSES, _MORE, _DATA = 0, 256, 1024, 2048
"""Places in the frame."""


def _space(instruction: PtxInstruction) -> str:
    return next((word for word in instruction.opcode.split(".") if word in _SPACES), "")


def _kind(instruction: PtxInstruction) -> str:
    return instruction.opcode.rpartition(".")[2]


def _count(instruction: PtxInstruction) -> int:
    parts = instruction.opcode.split(".")
    return next((int(word[1:]) for word in parts if word in ("v2", "v4", "v8")), 1)


def generic(code: WarpCode, operand: Operand, space: str) -> Value:
    """An address with the tag of its space."""
    address = code.address(operand)
    tag = TAGS.get(space)
    if tag is None:
        return address
    low = code.masked(address, 0xFFFF_FFFF)
    return code.either(low, code.constant(tag << words.TAG_SHIFT, 64))


def _items(operand: Operand) -> tuple[Operand, ...]:
    return operand.items if isinstance(operand, Vector) else (operand,)


def _move(code: WarpCode, instruction: PtxInstruction, *, store: bool) -> None:
    space, kind, count = _space(instruction), _kind(instruction), _count(instruction)
    place, data = (instruction.operands[0], instruction.operands[1]) if store else (instruction.operands[1], instruction.operands[0])
    if space == "param" and isinstance(place, Address) and isinstance(place.base, Symbol):
        _parameter(code, instruction, place, data)
        return
    if space == "param" and store:
        raise code.refused("a store to a parameter")
    if "async" in instruction.opcode.split("."):
        raise code.refused(f"the opcode {instruction.opcode}")
    bits = width(kind)
    held = max(8, bits)
    guard = code.guard(instruction)
    code.reserve(_DATA + count * LANES * held // 8)
    address = generic(code, place, space)
    if space == "param":
        address = code.binary("add", address, code.splat(code.context_word("parameters"), "i64"))
    code.put_down(address, _ADDRESSES)
    items = _items(data)
    if len(items) != count:
        raise code.refused(f"{len(items)} values for {count} of memory")
    if store:
        for number, each in enumerate(items):
            code.put_down(code.operand(each, bits), _DATA + number * LANES * held // 8)
    code.call_helper([
        words.MOVE, code.lanes(guard), "%context_number", code.frame_number(_ADDRESSES), code.frame_number(_DATA),
        count * bits // 8, bits // 8,
        held // 8, int(store), code.index,
    ], _RECORD)  # fmt: skip
    if not store:
        for number, each in enumerate(items):
            if isinstance(each, Register):
                value = code.take_up(f"i{held}", _DATA + number * LANES * held // 8)
                code.put(each, code.resize(value, each.bits, signed=kind[0] == "s"), guard)


def _parameter(code: WarpCode, instruction: PtxInstruction, place: Operand, data: Operand) -> None:
    """ld.param: the same for all lanes."""
    assert isinstance(place, Address) and isinstance(place.base, Symbol)
    if instruction.opcode.startswith("st"):
        raise code.refused("a store to a parameter")
    bits, kind = width(_kind(instruction)), _kind(instruction)
    guard = code.guard(instruction)
    start = code.layout.address_of(place.base.name) + place.offset
    base = code.named(f"inttoptr i64 {code.context_word('parameters')} to ptr")
    for number, each in enumerate(_items(data)):
        at = code.named(f"getelementptr i8, ptr {base}, i64 {start + number * bits // 8}")
        value = code.splat(code.named(f"load i{bits}, ptr {at}, align 1"), f"i{bits}")
        if isinstance(each, Register):
            code.put(each, code.resize(value, each.bits, signed=kind[0] == "s"), guard)


def _load(code: WarpCode, instruction: PtxInstruction) -> None:
    _move(code, instruction, store=False)


def _store(code: WarpCode, instruction: PtxInstruction) -> None:
    _move(code, instruction, store=True)


_OPERATIONS: Final = {"add": 0, "min": 1, "max": 2, "and": 3, "or": 4, "xor": 5, "exch": 6, "cas": 7, "inc": 8, "dec": 9}


def _atomic(code: WarpCode, instruction: PtxInstruction) -> None:
    """Atom and red."""
    parts = instruction.opcode.split(".")
    kind, name = _kind(instruction), next((word for word in parts if word in _OPERATIONS), "")
    bits = width(kind)
    halves = kind.removesuffix("x2") in ("f16", "bf16")
    if not name or "async" in parts or (kind.lstrip("b")[0] == "f" and name != "add") or (bits == 16 and not halves and name != "cas"):
        raise code.refused(f"the opcode {instruction.opcode}")
    if bits not in (16, 32, 64):
        raise code.refused(f"the opcode {instruction.opcode}")
    is_red = parts[0] == "red"
    place, *values = instruction.operands if is_red else instruction.operands[1:]
    result = None if is_red else instruction.operands[0]
    guard, count = code.guard(instruction), _count(instruction)
    form = (3 if kind[0] == "f" else 4) if halves else 2 if kind[0] == "f" else int(kind[0] == "s")
    code.reserve(_DATA + 4 * 256)
    address = generic(code, place, _space(instruction))
    targets = _items(result) if result is not None else (Sink(),) * count
    for number, (target, value) in enumerate(zip(targets, _items(values[0]), strict=True)):
        part, found = 16 if halves else bits, []
        for first in range(0, bits, part):  # a pair of halves is two sums
            offset = (number * bits + first) // 8
            code.put_down(code.binary("add", address, code.constant(offset, 64)) if offset else address, _ADDRESSES)
            code.put_down(code.resize(code.shift("lshr", code.operand(value, bits), first), part), _DATA)
            code.put_down(code.operand(values[1], bits) if name == "cas" else code.constant(0, part), _DATA + 256)
            code.call_helper([
                words.ATOMIC, code.lanes(guard), "%context_number", code.frame_number(_ADDRESSES), code.frame_number(_DATA),
                code.frame_number(_DATA + 256), code.frame_number(_DATA + 512), part, _OPERATIONS[name], form, code.index,
            ], _RECORD)  # fmt: skip
            found.append(code.shift("shl", code.resize(code.take_up(f"i{part}", _DATA + 512), bits), first))
        if isinstance(target, Register):
            before = found[0] if len(found) == 1 else code.either(found[0], found[1])
            code.put(target, code.resize(before, target.bits), guard)


def _matrix(code: WarpCode, instruction: PtxInstruction) -> None:
    """Ldmatrix and stmatrix of 8 x 8 elements of 16 bits."""
    parts = instruction.opcode.split(".")
    if "m8n8" not in parts or "b16" not in parts:
        raise code.refused(f"the opcode {instruction.opcode}")
    store = parts[0] == "stmatrix"
    count = next(int(word[1:]) for word in parts if word in ("x1", "x2", "x4"))
    place, data = (instruction.operands[0], instruction.operands[1]) if store else (instruction.operands[1], instruction.operands[0])
    together(code)
    code.reserve(_DATA + count * 4 * LANES)
    code.put_down(generic(code, place, _space(instruction) or "shared"), _ADDRESSES)
    if store:
        for number, each in enumerate(_items(data)):
            code.put_down(code.operand(each, 32), _DATA + 4 * LANES * number)
    code.call_helper([
        words.MATRIX, int(store), "%context_number", code.frame_number(_ADDRESSES), code.frame_number(_DATA), count, int("trans" in parts),
        code.index,
    ], _RECORD)  # fmt: skip
    if not store:
        for number, each in enumerate(_items(data)):
            if isinstance(each, Register):
                code.put(each, code.take_up("i32", _DATA + 4 * LANES * number))


def together(code: WarpCode) -> None:
    """What the whole warp does at once: an error where lanes are missing, or where a guard stands before it."""
    if code.instruction.guard is not None:
        raise code.refused(f"{code.instruction.opcode} under a guard")
    if code.active is None:
        return
    number = code.fresh("whole")[1:]
    whole = code.named(f"icmp eq i32 {code.as_word(code.active)}, -1")
    code.line(f"br i1 {whole}, label %{number}, label %{number}.not")
    code.label(f"{number}.not")
    code.fail(words.PARTIAL)
    code.label(number)


def _asynchronous(code: WarpCode, instruction: PtxInstruction) -> None:
    """cp.async and its groups."""
    opcode = instruction.opcode
    guard = code.guard(instruction)
    if opcode == "cp.async.commit_group":
        code.call_helper([words.ASYNC, 1, 0, "%context_number"], _RECORD)
    elif opcode in ("cp.async.wait_group", "cp.async.wait_all"):
        left = 0
        if instruction.operands:
            number = instruction.operands[0]
            left = getattr(number, "number", 0)
        if opcode.endswith("all"):  # what was not committed yet, too
            code.call_helper([words.ASYNC, 1, 0, "%context_number"], _RECORD)
        code.call_helper([words.ASYNC, 2, 0, "%context_number", 0, 0, 0, 0, code.index, left], _RECORD)
    elif opcode.startswith(("cp.async.ca.", "cp.async.cg.")):
        target, source, size, *more = instruction.operands
        count = getattr(size, "number", 0)
        has_size = (bool(more) and not opcode.endswith(".L2::cache_hint")) or len(more) == 2
        taken = code.operand(more[0], 32) if has_size else code.constant(count, 32)
        code.put_down(generic(code, target, "shared"), _ADDRESSES)
        code.put_down(generic(code, source, "global"), _ADDRESSES + 256)
        code.put_down(taken, _MORE)
        code.call_helper([
            words.ASYNC, 0, code.lanes(guard), "%context_number", code.frame_number(_ADDRESSES), code.frame_number(_ADDRESSES + 256), count,
            code.frame_number(_MORE), code.index,
        ], _RECORD)  # fmt: skip
    else:
        raise code.refused(f"the opcode {opcode}")


def _convert_address(code: WarpCode, instruction: PtxInstruction) -> None:
    """Cvta: between the addresses of a space and generic ones."""
    target, source = instruction.operands
    assert isinstance(target, Register)
    space, guard = _space(instruction), code.guard(instruction)
    value = code.operand(source, 64)
    tag = TAGS.get(space)
    if ".to." in instruction.opcode:
        if tag is not None:
            value = code.masked(value, 0xFFFF_FFFF)
        elif space == "param":
            value = code.binary("sub", value, code.splat(code.context_word("parameters"), "i64"))
    elif tag is not None:
        value = code.either(code.masked(value, 0xFFFF_FFFF), code.constant(tag << words.TAG_SHIFT, 64))
    elif space == "param":
        value = code.binary("add", value, code.splat(code.context_word("parameters"), "i64"))
    code.put(target, code.resize(value, target.bits), guard)


def _is_space(code: WarpCode, instruction: PtxInstruction) -> None:
    target, source = instruction.operands
    assert isinstance(target, Register)
    space = _space(instruction)
    top = code.shift("lshr", code.operand(source, 64), words.TAG_SHIFT)
    found = code.compare("eq", top, code.constant(TAGS.get(space, words.CONSTANT_TAG if space == "const" else 0), 64))
    if space == "global":  # the module's variables lie in it, too
        found = code.either(found, code.compare("eq", top, code.constant(words.CONSTANT_TAG, 64)))
    code.put(target, found, code.guard(instruction))


def _nothing(code: WarpCode, instruction: PtxInstruction) -> None:
    """What no result shows, in a machine that does things in order."""


def _policy(code: WarpCode, instruction: PtxInstruction) -> None:
    target = instruction.operands[0]
    if isinstance(target, Register):
        code.put(target, code.constant(0, target.bits), code.guard(instruction))


HANDLERS: Final[dict[str, Handler]] = {
    "ld": _load, "ldu": _load, "st": _store, "atom": _atomic, "red": _atomic, "ldmatrix": _matrix, "stmatrix": _matrix, "cp": _asynchronous,
    "cvta": _convert_address, "isspacep": _is_space, "membar": _nothing, "fence": _nothing, "prefetch": _nothing, "prefetchu": _nothing,
    "discard": _nothing, "createpolicy": _policy, "setmaxnreg": _nothing, "nanosleep": _nothing, "griddepcontrol": _nothing,
    "pmevent": _nothing,
}  # fmt: skip
