"""tcgen05: allocation of tensor memory, and what moves between it and registers (cells.py does it)."""

from __future__ import annotations

from typing import Final

from mmabits.emulator.machine import tensorrecords as words
from mmabits.emulator.machine.memory import generic
from mmabits.emulator.machine.ptx import Immediate, Operand, PtxInstruction, Register, Vector
from mmabits.emulator.machine.vectors import LANES, Value
from mmabits.emulator.machine.warp import Handler, WarpCode
from mmabits.isa.fragments import TRANSFER_SHAPES

_RECORD, _ADDRESSES, _DATA = 0, 256, 512
"""Places in the frame."""
SHAPES: Final = ("32x32b", "16x64b", "16x128b", "16x256b", "16x32bx2")
"""As cells.transfer_place numbers them."""


def group_of(code: WarpCode) -> int:
    """How many CTAs carry out an instruction together: two only where clusters are made of pairs."""
    group = 2 if ".cta_group::2" in code.instruction.opcode else 1
    size = 1
    for each in code.layout.cluster:
        size *= each
    if size % group:
        raise code.refused(f"{code.instruction.opcode} in clusters of {size} CTAs")
    return group


def first_lane(code: WarpCode, value: Value) -> str:
    """The number that the first lane has, 64 bits."""
    lane = code.lane(value)
    return lane if value.bits == 64 else code.named(f"zext i{value.bits} {lane} to i64")


def _call(code: WarpCode, what: int, guard: Value | None, *more: int | str) -> None:
    code.call_helper([words.TENSOR, what, "%context_number", code.index, code.lanes(guard), *more], _RECORD)
    code.stop_on_error()


def _allocate(code: WarpCode, instruction: PtxInstruction) -> None:
    group_of(code)
    target, columns = instruction.operands
    place = code.lane(generic(code, target, "shared"))
    _call(code, words.ALLOCATE, code.guard(instruction), first_lane(code, code.operand(columns, 32)), place)


def _free(code: WarpCode, instruction: PtxInstruction) -> None:
    group_of(code)
    address, columns = (first_lane(code, code.operand(each, 32)) for each in instruction.operands)
    _call(code, words.FREE, code.guard(instruction), address, columns)


def _close(code: WarpCode, instruction: PtxInstruction) -> None:
    group_of(code)
    _call(code, words.CLOSE, code.guard(instruction))


def _transfer(code: WarpCode, instruction: PtxInstruction, *, store: bool) -> None:
    """tcgen05.ld, tcgen05.st."""
    parts = instruction.opcode.split(".")
    shape = next((word for word in parts if word in TRANSFER_SHAPES), None)
    number = next((word for word in parts if word[0] == "x" and word[1:].isdigit()), None)
    if shape is None or number is None or "red" in parts or int(number[1:]) > TRANSFER_SHAPES[shape].most:
        raise code.refused(f"the opcode {instruction.opcode}")
    operands = list(instruction.operands)
    address: Operand = operands.pop(0 if store else 1)
    data = operands.pop(1 if store and shape == "16x32bx2" else 0)
    split = 0
    if shape == "16x32bx2":
        offset = operands.pop()
        if not isinstance(offset, Immediate):
            raise code.refused("an offset that is no constant")
        split = offset.number
    registers = data.items if isinstance(data, Vector) else (data,)
    if len(registers) != TRANSFER_SHAPES[shape].registers * int(number[1:]):
        raise code.refused(f"{len(registers)} registers for {shape}.{number}")
    guard, size = code.guard(instruction), 4 * LANES
    code.reserve(_DATA + size * len(registers))
    code.put_down(code.resize(code.address(address), 32), _ADDRESSES)
    if store:
        for place, each in enumerate(registers):
            code.put_down(code.operand(each, 32), _DATA + size * place)
    packed = int("pack::16b" in parts or "unpack::16b" in parts)
    _call(
        code, words.STORE if store else words.LOAD, guard, code.frame_number(_ADDRESSES), code.frame_number(_DATA), SHAPES.index(shape),
        len(registers), split, packed,
    )  # fmt: skip
    if not store:
        for place, each in enumerate(registers):
            if isinstance(each, Register):
                code.put(each, code.take_up("i32", _DATA + size * place), guard)


def _load(code: WarpCode, instruction: PtxInstruction) -> None:
    _transfer(code, instruction, store=False)


def _store(code: WarpCode, instruction: PtxInstruction) -> None:
    _transfer(code, instruction, store=True)


def _nothing(code: WarpCode, instruction: PtxInstruction) -> None:
    """Loads and stores are done where they stand; fences order what is in order."""


FORMS: Final[dict[str, Handler]] = {
    "alloc": _allocate, "dealloc": _free, "relinquish_alloc_permit": _close, "ld": _load, "st": _store, "wait::ld": _nothing,
    "wait::st": _nothing, "fence::before_thread_sync": _nothing, "fence::after_thread_sync": _nothing,
}  # fmt: skip
"""By the second word of the opcode."""
