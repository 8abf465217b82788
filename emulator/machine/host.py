"""Calls of functions of the host, as code: the warp calls back into Python, which does what hostcalls.py says."""

from __future__ import annotations

from typing import Final

from mmabits.emulator.machine.ptx import PtxInstruction
from mmabits.emulator.machine.warp import Handler, WarpCode


def _call(code: WarpCode, instruction: PtxInstruction) -> None:
    """Parameters and results are variables of local memory."""
    lanes = code.lanes(code.guard(instruction))
    function = code.named(f"inttoptr i64 {code.context_word('host')} to ptr")
    code.line(f"call void {function}(i64 %context_number, i64 {lanes}, i64 {code.index})")
    code.stop_on_error()


HANDLERS: Final[dict[str, Handler]] = {"call": _call}
