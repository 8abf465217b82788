"""Bulk copies: TMA's boxes of tensors, runs of bytes, their groups, and the tensor maps that kernels make.

All are put off until a wait wants them (pending.py).
"""

from __future__ import annotations

import re
from typing import Final

from mmabits.emulator.machine import context as words
from mmabits.emulator.machine.barriers import barrier_address
from mmabits.emulator.machine.memory import generic, together
from mmabits.emulator.machine.program import written
from mmabits.emulator.machine.ptx import Address, Immediate, Operand, PtxInstruction, Register, Vector
from mmabits.emulator.machine.tensormaps import COPY_MAP, ELEMENTS, FIELDS
from mmabits.emulator.machine.vectors import Value
from mmabits.emulator.machine.warp import Handler, WarpCode
from mmabits.isa.opcodes import width

_RECORD, _FIRST, _SECOND, _THIRD, _MORE, _MASKS = 0, 256, 512, 768, 1024, 2048
"""Places in the frame."""
_OPERATIONS: Final = {"add": 1, "min": 2, "max": 3, "and": 4, "or": 5, "xor": 6}
_REDUCED: Final = {
    "u32": 2, "s32": 3, "b32": 2, "u64": 4, "s64": 5, "b64": 4,
    **{row.name: code for code, row in ELEMENTS.items() if row.name in ("f16", "bf16", "f32", "f64")},
}  # fmt: skip
"""Codes of the types of reductions."""
_ALIGNED: Final = 0x3FF
_FIRST_OF_PAIR: Final = 0xFEFF_FFFF
"""What an address of shared memory is masked by to become one of the first CTA of a pair."""
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
    target, _ = _spaces(code, instruction, parts, (f"{dimensions}d", *_OPERATIONS, "cta_group::2"))
    loads = target != "global"
    place, source = instruction.operands[:2]
    shared, tensor = (place, source) if loads else (source, place)
    if not isinstance(tensor, Address) or len(tensor.coordinates) != dimensions or ("reduce" in parts) != bool(operation):
        raise code.refused(f"these operands of {instruction.opcode}")
    code.reserve(_MORE + 5 * 128)
    code.put_down(code.address(Address(tensor.base, tensor.offset)), _FIRST)
    code.put_down(generic(code, shared, "shared"), _SECOND)
    if loads:
        barrier_of = barrier_address(code, instruction.operands[2], ".shared.")
        code.put_down(_of_pair(code, instruction.operands[2], barrier_of) if "cta_group::2" in parts else barrier_of, _THIRD)
    masks = _masks(code, instruction, parts, 3)
    for number, each in enumerate(tensor.coordinates):
        code.put_down(code.operand(each, 32), _MORE + 128 * number)
    barrier = code.frame_number(_THIRD) if loads else 0
    places = (code.frame_number(_FIRST), code.frame_number(_SECOND), barrier, code.frame_number(_MORE))
    _ask(code, words.ASK_BOX, *places, dimensions, operation, masks)


def _of_pair(code: WarpCode, operand: Operand, barrier: Value) -> Value:
    """The address of a barrier of .cta_group::2, which may be that of the pair's first CTA.

    CUTLASS names that one by clearing a bit of the address (`& 0xFEFFFFFF`), which on a GPU has the CTA's rank there. Addresses of a CTA's
    own memory have none here, so it goes by the instruction that made the address. Inferred from CUTLASS.
    """
    base = operand.base if isinstance(operand, Address) else None
    instructions = code.program.entry.instructions
    made = [_clears_rank(each) for each in instructions if base in tuple(written(each))] if isinstance(base, Register) else []
    if not any(made):
        return barrier
    if not all(made):
        raise code.refused("an mbarrier that may be of either CTA of a pair")
    window = code.resize(code.masked(code.shift("lshr", barrier, words.WINDOW_SHIFT), 0xFF), 32)
    named = code.compare("ne", window, code.constant(0, 32))
    rank = code.select(named, code.binary("sub", window, code.constant(1, 32)), code.special("%cluster_ctarank"))
    window = code.binary("add", code.masked(rank, 0xFFFF_FFFE), code.constant(1, 32))
    place = code.masked(barrier, ~(0xFF << words.WINDOW_SHIFT) & (1 << 64) - 1)
    return code.either(place, code.shift("shl", code.resize(window, 64), words.WINDOW_SHIFT))


def _clears_rank(instruction: PtxInstruction) -> bool:
    """Bits that the compiler knows to be 0 by an address's alignment may be cleared as well."""
    numbers = [each.number & 0xFFFF_FFFF | _ALIGNED for each in instruction.operands if isinstance(each, Immediate)]
    return instruction.opcode == "and.b32" and numbers == [_FIRST_OF_PAIR]


def _bytes(code: WarpCode, instruction: PtxInstruction, parts: list[str]) -> None:
    element = operation = 0
    known: tuple[str, ...] = ()
    if "reduce" in parts:
        operation = next((_OPERATIONS[word] for word in parts if word in _OPERATIONS), 0)
        element = _REDUCED.get(parts[-1], 0)
        known = (*_OPERATIONS, "noftz", parts[-1])
        most = {"f32": 1, "f64": 1, "f16": 3, "bf16": 3}.get(parts[-1], len(_OPERATIONS))
        if not element or not 0 < operation <= most:
            raise code.refused(f"the opcode {instruction.opcode}")
    target, source = _spaces(code, instruction, parts, known)
    code.put_down(generic(code, instruction.operands[0], target), _FIRST)
    code.put_down(generic(code, instruction.operands[1], source), _SECOND)
    code.put_down(code.operand(instruction.operands[2], 32), _MORE)
    barrier: int | str = 0
    if target != "global":
        code.put_down(barrier_address(code, instruction.operands[3], ".shared."), _THIRD)
        barrier = code.frame_number(_THIRD)
    places = (code.frame_number(_FIRST), code.frame_number(_SECOND), barrier, code.frame_number(_MORE))
    _ask(code, words.ASK_BYTES, *places, element, operation, _masks(code, instruction, parts, 4))


def _masks(code: WarpCode, instruction: PtxInstruction, parts: list[str], place: int) -> int | str:
    """The CTAs that get a copy each."""
    if "multicast::cluster" not in parts:
        return 0
    code.put_down(code.resize(code.operand(instruction.operands[place], 16), 32), _MASKS)
    return code.frame_number(_MASKS)


def _store(code: WarpCode, instruction: PtxInstruction) -> None:
    """st.async: a store to shared memory of the cluster that an mbarrier counts."""
    parts = instruction.opcode.split(".")
    vector = next((word for word in parts if word in ("v2", "v4")), "")
    rest = [word for word in parts[2:-1] if word not in ("weak", "shared::cluster", "mbarrier::complete_tx::bytes", vector)]
    place, data, barrier = instruction.operands
    items = data.items if isinstance(data, Vector) else (data,)
    if rest or "mbarrier::complete_tx::bytes" not in parts or len(items) != int(vector[1:] or 1) or width(parts[-1]) < 32:
        raise code.refused(f"the opcode {instruction.opcode}")
    bits = width(parts[-1])
    code.reserve(_MORE + len(items) * 32 * bits // 8)
    code.put_down(generic(code, place, "shared"), _FIRST)
    code.put_down(barrier_address(code, barrier, ".shared."), _THIRD)
    for number, each in enumerate(items):
        code.put_down(code.operand(each, bits), _MORE + number * 32 * bits // 8)
    places = (code.frame_number(_FIRST), code.frame_number(_MORE), code.frame_number(_THIRD))
    _ask(code, words.ASK_STORE, *places, bits // 8, len(items))


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


HANDLERS: Final[dict[str, Handler]] = {"cp.async.bulk": _bulk, "cp.reduce.async.bulk": _bulk, "st.async": _store, "tensormap": _tensormap}
