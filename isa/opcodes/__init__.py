"""PTX opcodes as rows: what each does to the bits of one lane, in plain Python, and how well that is known."""

from __future__ import annotations

from functools import lru_cache
from itertools import chain

from mmabits.isa.opcodes import conversions, floating, functions, integer
from mmabits.isa.opcodes.forms import Form, family_of, form_of, opcode_forms
from mmabits.isa.opcodes.functions import REFUSED
from mmabits.isa.opcodes.spec import Bound, ErrorMeasure, Opcode, OpcodeKind, width

__all__ = [
    "REFUSED", "Bound", "ErrorMeasure", "Form", "Opcode", "OpcodeKind", "family_of", "form_of", "opcode_forms", "opcode_table", "width",
]  # fmt: skip


@lru_cache(maxsize=1)
def opcode_table() -> dict[str, Opcode]:
    """Every opcode by its PTX spelling; `#3` behind a name tells a form by its count of operands."""
    table: dict[str, Opcode] = {}
    for row in chain(integer.rows(), floating.rows(), conversions.rows(), functions.rows()):
        if row.name in table:
            raise ValueError(f"two rows are called {row.name}")
        table[row.name] = row
    return table
