"""The command `mmabits function`."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import typer

from mmabits.commands.completion import architectures
from mmabits.isa.errors import OperandError


def function(
    opcode: Annotated[str, typer.Argument(help="PTX spelling with every modifier and type: ex2.approx.ftz.f32.")],
    values: Annotated[list[str], typer.Argument(help="A number for each operand, or its code: 0.3, 0x3e99999a.")],
    arch: Annotated[str, typer.Option(autocompletion=architectures, help="Architecture, or GPU: sm_90a, h100.")],
) -> None:
    """Explain one result of a PTX function: interval, row of the table, polynomial, rounding, and the error."""
    from mmabits.emulator.machine.calls import checked_row
    from mmabits.isa.opcodes import width
    from mmabits.reports.output import say
    from mmabits.research.functions import explain_function

    row = checked_row(opcode, len(values), arch)
    operands: list[Any] = []
    for place, (text, kind) in enumerate(zip(values, row.sources, strict=True)):
        if place in row.constants:
            operands.append(_whole(text))
        elif text.lower().startswith("0x") or (kind[0] in "sub" and not kind.startswith("bf")):
            bits = max(8, width(kind))
            code = _whole(text)
            if not -(1 << (bits - 1)) <= code < 1 << bits:
                raise OperandError(f"{text} does not fit in the {bits} bits of {kind}")
            operands.append(np.array(code & (1 << bits) - 1, f"u{bits // 8}"))
        else:
            operands.append(_real(text))
    say(*explain_function(opcode, *operands, arch=arch).lines())


def _whole(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise OperandError(f"{text!r} is no whole number") from None


def _real(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise OperandError(f"{text!r} is no number; codes begin with 0x") from None
