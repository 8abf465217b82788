"""Bulk copies: TMA's boxes of tensors, runs of bytes, their groups, and the tensor maps that kernels make.

All are put off until a wait wants them (pending.py).
"""

from __future__ import annotations

import re
from typing import Final

from mmabits.emulator.machine import context as words
from mmabits.emulator.machine.barriers import barrier_address
from mmabits.emulator.machine.memory import generic, together
from mmabits.emulator.machine.ptx import Address, Immediate, PtxInstruction
from mmabits.emulator.machine.tensormaps import COPY_MAP, FIELDS
from mmabits.emulator.machine.warp import Handler, WarpCode

_RECORD, _FIRST, _SECOND, _THIRD, _MORE, _MASKS = 0, 256, 512, 768, 1024, 2048
"""Places in the frame."""
_OPERATIONS: Final = {"add": 1, "min": 2, "max": 3, "and": 4, "or": 5, "xor": 6}
_SPACES: Final = ("global", "shared", "shared::cta", "shared::cluster")
_IGNORED: Final = (
    "L2::cache_hint", "mbarrier::complete_tx::bytes", "bulk_group", "tile", "multicast::cluster", "cta_group::1",
)  # fmt: skip


def _bulk(code: WarpCode, instruction: PtxInstruction) -> None:
    """cp.async.bulk and cp.reduce.async.bulk, with everything behind it."""
    parts = instruction.opcode.split(".")
    if "prefetch" in parts:
        return
    if parts[-1] == "commit_group":
        _ask(code, words.CLOSE_GROUP)
    elif "wait_group" in parts:
        left = instruction.operands[0]
        if not isinstance(left, Immediate):
            raise code.refused("a number of groups that is no constant")
        _ask(code, words.WAIT_GROUP, left.number)
    elif "tensor" in parts:
        _box(code, instruction, parts)
    else:
        _bytes(code, instruction, parts)


def _ask(code: WarpCode, what: int, *more: int | str) -> None:
    lanes = code.lanes(code.guard(code.instruction))
    code.call_helper([words.BULK, what, lanes, "%context_number", code.index, *more], _RECORD)


def _spaces(code: WarpCode, instruction: PtxInstruction, parts: list[str], known: tuple[str, ...]) -> tuple[str, str]:
    """Where to and where from; an error of a word that is not understood."""
    rest = [word for word in parts if word not in (*known, *_IGNORED, *_SPACES, "cp", "async", "bulk", "reduce", "tensor")]
    spaces = [word for word in parts if word in _SPACES]
    if rest or len(spaces) != 2:
        raise code.refused(f"the opcode {instruction.opcode}")
    return spaces[0], spaces[1]


def _box(code: WarpCode, instruction: PtxInstruction, parts: list[str]) -> None:
    dimensions = next((int(word[0]) for word in parts if re.fullmatch("[1-5]d", word)), 0)
    operation = next((_OPERATIONS[word] for word in parts if word in _OPERATIONS), 0)
    target, _ = _spaces(code, instruction, parts, (f"{dimensions}d", *_OPERATIONS))
    loads = target != "global"
    place, source = instruction.operands[:2]
    shared, tensor = (place, source) if loads else (source, place)
    if not isinstance(tensor, Address) or len(tensor.coordinates) != dimensions or ("reduce" in parts) != bool(operation):
        raise code.refused(f"these operands of {instruction.opcode}")
    code.reserve(_MORE + 5 * 128)
    code.put_down(code.address(Address(tensor.base, tensor.offset)), _FIRST)
    code.put_down(generic(code, shared, "shared"), _SECOND)
    if loads:
        code.put_down(barrier_address(code, instruction.operands[2], ".shared."), _THIRD)
    masks = _masks(code, instruction, parts, 3)
    for number, each in enumerate(tensor.coordinates):
        code.put_down(code.operand(each, 32), _MORE + 128 * number)
    barrier = code.frame_number(_THIRD) if loads else 0
    places = (code.frame_number(_FIRST), code.frame_number(_SECOND), barrier, code.frame_number(_MORE))
    _ask(code, words.ASK_BOX, *places, dimensions, operation, masks)


def _bytes(code: WarpCode, instruction: PtxInstruction, parts: list[str]) -> None:
    target, source = _spaces(code, instruction, parts, ())
    if "reduce" in parts:
        raise code.refused(f"the opcode {instruction.opcode}")
    code.put_down(generic(code, instruction.operands[0], target), _FIRST)
    code.put_down(generic(code, instruction.operands[1], source), _SECOND)
    code.put_down(code.operand(instruction.operands[2], 32), _MORE)
    barrier: int | str = 0
    if target != "global":
        code.put_down(barrier_address(code, instruction.operands[3], ".shared."), _THIRD)
        barrier = code.frame_number(_THIRD)
    places = (code.frame_number(_FIRST), code.frame_number(_SECOND), barrier, code.frame_number(_MORE))
    _ask(code, words.ASK_BYTES, *places, 0, 0, _masks(code, instruction, parts, 4))


def _masks(code: WarpCode, instruction: PtxInstruction, parts: list[str], place: int) -> int | str:
    """The CTAs that get a copy each."""
    if "multicast::cluster" not in parts:
        return 0
    code.put_down(code.resize(code.operand(instruction.operands[place], 16), 32), _MASKS)
    return code.frame_number(_MASKS)


def _tensormap(code: WarpCode, instruction: PtxInstruction) -> None:
    """tensormap.replace and tensormap.cp_fenceproxy."""
    parts, operands = instruction.opcode.split("."), instruction.operands
    lanes = code.lanes(code.guard(instruction))
    if parts[1] == "cp_fenceproxy":
        if code.instruction.guard is None:
            together(code)
        code.put_down(generic(code, operands[0], "global"), _FIRST)
        code.put_down(generic(code, operands[1], "shared"), _SECOND)
        field, ordinal = COPY_MAP, 0
    else:
        name = next((word for word in parts if word in FIELDS), "")
        if parts[1] != "replace" or not name or name == "interleave_layout":
            raise code.refused(f"the opcode {instruction.opcode}")
        space = "shared" if any(word in ("shared", "shared::cta") for word in parts) else "global"
        field, ordinal, value = FIELDS.index(name), 0, operands[-1]
        if len(operands) == 3:
            if not isinstance(operands[1], Immediate):
                raise code.refused("an ordinal that is no constant")
            ordinal = operands[1].number
        code.put_down(generic(code, operands[0], space), _FIRST)
        code.put_down(code.operand(value, 64) if parts[-1] == "b64" else code.resize(code.operand(value, 32), 64), _SECOND)
    code.call_helper([
        words.MAP_FIELD, field, lanes, "%context_number", code.index, code.frame_number(_FIRST), ordinal, code.frame_number(_SECOND),
    ], _RECORD)  # fmt: skip


HANDLERS: Final[dict[str, Handler]] = {"cp.async.bulk": _bulk, "cp.reduce.async.bulk": _bulk, "tensormap": _tensormap}
