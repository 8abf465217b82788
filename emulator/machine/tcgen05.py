"""tcgen05: products of tensor memory, put off until a wait wants them."""

from __future__ import annotations

from typing import Final

from mmabits.emulator.machine import tensormemory
from mmabits.emulator.machine.ptx import Instruction
from mmabits.emulator.machine.warp import Handler, WarpCode

_FORMS: Final[dict[str, Handler]] = {**tensormemory.FORMS}


def _tcgen05(code: WarpCode, instruction: Instruction) -> None:
    handler = _FORMS.get(instruction.opcode.split(".")[1])
    if handler is None or not code.layout.has_tensor_memory:
        raise code.refused(f"the opcode {instruction.opcode}")
    handler(code, instruction)


HANDLERS: Final[dict[str, Handler]] = {"tcgen05": _tcgen05}
