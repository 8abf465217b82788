"""Opcodes whose vector code is long: functions of their own, compiled once with all care, which warps call.

A kernel's text names such a function and does not have it. Its machine code is kept like a kernel's, by its text, and loaded with each
kernel that calls it.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from typing import Final, NamedTuple

from mmabits.emulator.machine.elementwise import emitted
from mmabits.emulator.machine.vectors import Code, Value, scalar_type
from mmabits.isa.opcodes import Opcode, opcode_table, width

LONG: Final = 24
"""Lines of an opcode's code from which on it is a function."""


class Outlined(NamedTuple):
    """A function of an opcode."""

    symbol: str
    """Its name, by the opcode and the text."""
    text: str
    """An LLVM module that has it alone."""
    result: str
    """Type of an element of what it returns,"""
    declaration: str
    """and its declaration."""


@cache
def outlined(name: str) -> Outlined | None:
    """The function of an opcode; None of one that is written where it stands: few lines, several results, constants of the instruction.

    Args:
        name: of the row.

    Raises:
        NoEmitter: the machine has no code for it.
    """
    row: Opcode = opcode_table()[name]
    if row.constants or len(row.results) != 1:
        return None
    code = Code()
    given = [Value(f"%given{place}", f"i{width(kind)}") for place, kind in enumerate(row.sources)]
    (found,) = emitted(code, row, given)
    if len(code.lines) < LONG:
        return None
    whole = scalar_type(found.element)
    parameters = ", ".join(each.typed for each in given)
    body = "\n".join([f"({parameters}) {{", *code.lines, f"  ret {found.typed}", "}"])
    beside = "\n".join([*sorted(code.globals.values()), *sorted(code.declared)])
    digest = hashlib.sha256(f"{beside}\n{body}".encode()).hexdigest()[:16]
    symbol = f"mmabits_opcode_{re.sub('[^a-z0-9]+', '_', row.name)}_{digest}"
    declaration = f"declare {whole} @{symbol}({', '.join(scalar_type(each.element) for each in given)})"
    return Outlined(symbol, f"{beside}\ndefine {whole} @{symbol}{body}\n", found.element, declaration)
