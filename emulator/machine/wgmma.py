"""wgmma: products of a warpgroup, put off until a wait wants them (warpgroups.py).

Accumulators stay where the warp's registers lie in memory while products are under way. What names them earlier than a wait does makes
the warp wait for all of them (flight.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mmabits.emulator.engine.native import native_product
from mmabits.emulator.engine.record import Call
from mmabits.emulator.machine import warpgrouprecords
from mmabits.emulator.machine.flight import accumulators
from mmabits.emulator.machine.memory import together
from mmabits.emulator.machine.ptx import Immediate, Operand, PtxInstruction, Vector
from mmabits.emulator.machine.vectors import LANES
from mmabits.emulator.machine.warp import Handler, WarpCode
from mmabits.isa import MmabitsError, lower, parse
from mmabits.isa.fragments import accumulator_registers
from mmabits.isa.instructions import Instruction as Matrix

_RECORD, _FRAGMENT = 0, 256
"""Places in the frame."""
_WAIT_WORD: Final = 40


class WarpgroupForm(NamedTuple):
    """What an instruction of the text says of its product."""

    matrix: Matrix
    a_in_registers: bool
    a_mn_major: bool
    b_mn_major: bool
    slots: tuple[int, ...]
    """Places of the accumulators."""


@dataclass(eq=False)
class ProductTable:
    """A warpgrouprecords.WarpgroupProduct and what it points to."""

    form: WarpgroupForm
    words: npt.NDArray[np.int64]
    kept: list[object]

    @property
    def counter(self) -> int:
        """Its place among the counters: its number behind FIRST_COUNTER."""
        return int(self.words[warpgrouprecords.WarpgroupProduct._fields.index("counter")])


class Warpgroups:
    """The products of a kernel."""

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self.tables: dict[WarpgroupForm, ProductTable] = {}

    def table(self, form: WarpgroupForm) -> ProductTable:
        """What the helper needs for a product.

        Raises:
            MmabitsError: the architecture has no such product.
        """
        found = self.tables.get(form)
        if found is None:
            found = self.tables[form] = self._made(form)
        return found

    def addresses(self) -> npt.NDArray[np.int64]:
        """Of the tables, by their numbers."""
        return np.array([each.words.ctypes.data for each in self.tables.values()] or [0], np.int64)

    @staticmethod
    def finish(code: WarpCode) -> None:
        """All products must be done before the instruction, which is the first of its segment."""
        await_products(code, -1)

    def _made(self, form: WarpgroupForm) -> ProductTable:
        matrix = form.matrix
        product = native_product(lower(matrix, self.arch))
        steps = range(1, warpgrouprecords.MOST_STEPS + 1)
        records = np.concatenate([product.record(1, matrix.m, matrix.n, matrix.k * each).reshape(-1) for each in steps])
        slots = np.array(form.slots, np.int32)
        row = warpgrouprecords.WarpgroupProduct(
            matrix.n, matrix.k, *(2 * (matrix.a_type.container_bits, matrix.b_type.container_bits)),
            matrix.d_type.container_bits, int(form.a_in_registers), int(form.a_mn_major), int(form.b_mn_major), product.address,
            records.ctypes.data, len(Call._fields), warpgrouprecords.FIRST_COUNTER + len(self.tables), len(slots), slots.ctypes.data,
        )  # fmt: skip
        return ProductTable(form, np.array(row, np.int64), [product, records, slots])


def _number(code: WarpCode, operand: Operand) -> int:
    if not isinstance(operand, Immediate):
        raise code.refused(f"an operand of {code.instruction.opcode} that is no constant")
    return operand.number


def _call(code: WarpCode, what: int, *more: int | str) -> None:
    code.call_helper([warpgrouprecords.WGMMA_OPERATION, what, "%context_number", code.index, *more], _RECORD)


def _wgmma(code: WarpCode, instruction: PtxInstruction) -> None:
    what = instruction.opcode.split(".")[1]
    together(code)
    if code.layout.warps < 4:
        raise code.refused(f"{instruction.opcode} in a CTA of {code.layout.warps} warps")
    has_products = any(each.opcode.startswith("wgmma.mma_async") for each in code.program.entry.instructions)
    if what == "mma_async":
        _multiply(code, instruction)
    elif what in ("commit_group", "wait_group") and not has_products:
        return  # there is nothing to wait for
    elif what == "commit_group":
        _call(code, warpgrouprecords.COMMIT)
    elif what == "wait_group":
        await_products(code, _number(code, instruction.operands[0]))
    elif what != "fence":
        raise code.refused(f"the opcode {instruction.opcode}")


def await_products(code: WarpCode, left: int) -> None:
    """Wait until all but the last groups are done; of -1 until all products are. It is the first of its segment."""
    _call(code, warpgrouprecords.AWAIT, left, 0)
    name = code.fresh("products")[1:]
    waits = code.named(f"load i64, ptr {code.frame(_RECORD + _WAIT_WORD)}")
    code.line(f"br i1 {code.named(f'icmp ne i64 {waits}, 0')}, label %{name}.not, label %{name}")
    code.label(f"{name}.not")
    code.wait()
    code.label(name)


def _multiply(code: WarpCode, instruction: PtxInstruction) -> None:
    _, a, b, scale_d, *more = instruction.operands
    numbers = [_number(code, each) for each in more]
    try:
        matrix = parse(instruction.opcode)
    except MmabitsError as error:
        raise code.refused(f"{instruction.opcode} ({error})") from None
    in_registers = isinstance(a, Vector)
    signs = 0 if matrix.a_type.is_integer else 2
    majors = numbers[signs:]
    if (
        len(numbers) < signs
        or len(majors) not in ((0, 1) if in_registers else (0, 2))
        or any(each not in (1, -1) for each in numbers[:signs])
    ):
        raise code.refused(f"these operands of {instruction.opcode}")
    negations = "".join(word for word, sign in zip((".negA", ".negB"), numbers[:signs], strict=False) if sign == -1)
    registers = accumulators(instruction)
    try:
        matrix = parse(instruction.opcode + negations)
        if len(registers) != accumulator_registers(matrix) or len(set(registers)) != len(registers):
            raise code.refused(f"accumulators of {instruction.opcode}: {len(registers)} registers")
        slots = tuple(code.slots[each] for each in registers)
        form = WarpgroupForm(
            matrix, in_registers, bool(majors[0]) if len(majors) == 2 else False, bool(majors[-1]) if majors else False, slots
        )
        table = code.warpgroups.table(form)
    except MmabitsError as error:
        raise code.refused(f"{instruction.opcode} ({error})") from None
    for register in registers:  # where the products find them, and leave them
        code.settle(register)
        if register in code.dirty:
            code.store(register)
            code.dirty.discard(register)
        code.values.pop(register, None)
    fragment: int | str = 0
    first = "0"
    if isinstance(a, Vector):
        if len(a.items) != 4:
            raise code.refused(f"{len(a.items)} registers of A")
        for place, each in enumerate(a.items):
            code.put_down(code.operand(each, 32), _FRAGMENT + 4 * LANES * place)
        fragment = code.frame_number(_FRAGMENT)
    else:
        first = code.lane(code.operand(a, 64))
    second = code.lane(code.operand(b, 64))
    adds = code.named(f"zext i1 {code.lane(code.operand(scale_d, 1))} to i64")
    _call(code, warpgrouprecords.ISSUE, table.counter - warpgrouprecords.FIRST_COUNTER, first, second, adds, fragment)


HANDLERS: Final[dict[str, Handler]] = {"wgmma": _wgmma}
