"""tcgen05.mma, tcgen05.cp and tcgen05.commit: asynchronous work on tensor memory, put off until a wait wants it (tensorwork.py)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mmabits.emulator.engine.native import NativeProduct, native_product
from mmabits.emulator.engine.record import Call
from mmabits.emulator.machine import tensormemory
from mmabits.emulator.machine import tensorrecords as words
from mmabits.emulator.machine.descriptors import PRODUCT_KINDS, SCALE_IDS, elements_of_chunk, instruction_descriptor
from mmabits.emulator.machine.memory import generic
from mmabits.emulator.machine.ptx import Address, Immediate, Operand, PtxInstruction, Vector
from mmabits.emulator.machine.tensorrecords import CELLS, FIRST_COUNTER, KNOWN, Multiply, TensorMemory, TensorTask
from mmabits.emulator.machine.vectors import LANES, Value
from mmabits.emulator.machine.warp import Handler, WarpCode
from mmabits.isa import MmabitsError, lower, parse
from mmabits.isa.instructions import Instruction as Matrix
from mmabits.isa.memories import TENSOR_MEMORY

_SIZE: Final = 8 * LANES
"""Of a vector in the frame."""
_RECORD: Final = 0
_PLACES: Final = tuple(_SIZE * (place + 1) for place in range(11))
"""Of the vectors: D, A, B, descriptors, scales of A and B, whether it adds, four masks."""


_COUNTER: Final = Multiply._fields.index("number")


class TensorForm(NamedTuple):
    """What an opcode and its operands say of a product, beside the instruction descriptor."""

    kind: str
    block: int
    shift: int
    group: int


@dataclass(eq=False)
class MultiplyTable:
    """A Multiply and what it points to."""

    matrix: Matrix
    product: NativeProduct
    record: npt.NDArray[np.void]
    words: npt.NDArray[np.int64]

    @property
    def counter(self) -> int:
        """Place of its counter."""
        return int(self.words[_COUNTER])


class TensorCores:
    """The products of a kernel: forms that its opcodes have, and what instruction descriptors mean in them."""

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self.forms: list[TensorForm] = []
        self.tables: dict[tuple[int, int], MultiplyTable] = {}

    def number(self, form: TensorForm) -> int:
        """The number of a form."""
        if form not in self.forms:
            self.forms.append(form)
        return self.forms.index(form)

    def table(self, number: int, code: int) -> MultiplyTable:
        """What an instruction descriptor means.

        Raises:
            MmabitsError: nothing that is emulated.
        """
        form = self.forms[number]
        code &= ~SCALE_IDS if PRODUCT_KINDS[form.kind].scaled else -1
        found = self.tables.get((number, code))
        if found is None:
            found = self.tables[number, code] = self._made(form, code)
        return found

    def _made(self, form: TensorForm, code: int) -> MultiplyTable:
        said = instruction_descriptor(code, form.kind, block=form.block, group=form.group, shift=form.shift)
        matrix = parse(said.ptx)
        product = native_product(lower(matrix, self.arch))
        record = product.record(1, matrix.m, matrix.n, matrix.k)
        a, b = matrix.a_type, matrix.b_type
        is_narrow = said.kind.slot_bits == 8 and a.code_bits == 4
        row = Multiply(
            matrix.m, matrix.n, matrix.k, matrix.d_type.container_bits, matrix.k // matrix.block if matrix.block else 0,
            said.kind.slot_bits, 2 if is_narrow else 0, a.code_bits, elements_of_chunk(said.kind, a.code_bits), a.container_bits,
            int(said.a_mn_major), b.code_bits, elements_of_chunk(said.kind, b.code_bits), b.container_bits, int(said.b_mn_major),
            product.address, record.ctypes.data, len(Call._fields), FIRST_COUNTER + len(self.tables), int(form.shift == 0),
            form.group,
        )  # fmt: skip
        return MultiplyTable(matrix, product, record, np.array(row, np.int64))


_ROOMS: Final = (1 << 18, 1 << 18, 1 << 18, 1 << 14, 1 << 14, 8 * len(Call._fields))
"""Bytes that the codes of A and B take in the longest chain, those of D, their scales, and a record of the engine."""
_TASKS: Final = 1024
"""Products and copies of a CTA that may be under way: more are carried out early, which the hardware may do at any time."""
_FUNCTION: Final = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)


class TensorRun:
    """What the tensor memory of the CTAs of one thread's run shares, and what asks here when a descriptor is new.

    Args:
        cores: the kernel's products.
        check: raises where an instruction is not wanted.
    """

    def __init__(self, cores: TensorCores, check: Callable[[Matrix], object] | None) -> None:
        self.cores, self.check = cores, check
        self.refusal: BaseException | None = None
        """Why a descriptor was refused."""
        self._rooms = [np.zeros(size // 8, np.int64) for size in _ROOMS]
        self._known = np.zeros(3 * KNOWN, np.int64)
        self._resolve = _FUNCTION(self._found)
        self._kept: list[npt.NDArray[np.int64]] = []

    def memory(self) -> int:
        """The address of a TensorMemory for one more CTA."""
        cells, blocks, queue = (
            np.zeros(CELLS // 2, np.int64),
            np.zeros(TENSOR_MEMORY.columns // TENSOR_MEMORY.block, np.int64),
            np.zeros(_TASKS * len(TensorTask._fields), np.int64),
        )
        record = TensorMemory(
            cells.ctypes.data, blocks.ctypes.data, 0, queue.ctypes.data, _TASKS, 0, 0, self._known.ctypes.data, 0,
            int(ctypes.cast(self._resolve, ctypes.c_void_p).value or 0), *(each.ctypes.data for each in self._rooms),
        )  # fmt: skip
        words_of = np.array(record, np.int64)
        self._kept += [cells, blocks, queue, words_of]
        return int(words_of.ctypes.data)

    def _found(self, place: int) -> int:
        """Write down what an instruction descriptor means: form, descriptor, then the address of its Multiply or 0."""
        said = (ctypes.c_int64 * 3).from_address(place)
        try:
            table = self.cores.table(said[0], said[1])
            if self.check is not None:
                self.check(table.matrix)
            said[2] = table.words.ctypes.data
        except BaseException as error:  # no exception passes through compiled code
            self.refusal = error
        return 0


def _block_of(parts: list[str]) -> int:
    """Elements of K for each scale; those that an opcode need not say are the only ones there are."""
    by_word = {"block16": 16, "block32": 32, "scale_vec::1X": 32, "scale_vec::2X": 32, "scale_vec::4X": 16}
    return next((by_word[word] for word in parts if word in by_word), 32)


def _down(code: WarpCode, operand: Operand, place: int) -> int | str:
    """A vector of 64 bits in the frame, and its address."""
    value = code.address(operand) if isinstance(operand, Address) else code.operand(operand, 64)
    code.put_down(value, _PLACES[place])
    return code.frame_number(_PLACES[place])


_PLAIN_WORDS: Final = ("tcgen05", "mma", "cta_group::1", "cta_group::2", "block_scale")


def _known(code: WarpCode, operand: Operand) -> int | None:
    """An operand that is a constant."""
    return operand.number if isinstance(operand, Immediate) else code.program.constants.get(operand)


def _multiply(code: WarpCode, instruction: PtxInstruction) -> None:
    """tcgen05.mma: [d], a or [a], b, descriptor, the addresses of scales, lanes that are not written, whether it adds, a shift of D."""
    parts, group = instruction.opcode.split("."), tensormemory.group_of(code)
    kind = next((word.removeprefix("kind::") for word in parts if word.startswith("kind::")), "")
    unknown = [
        word for word in parts
        if word not in _PLAIN_WORDS and not word.startswith(("kind::", "collector::", "scale_vec::", "block"))
        and word not in ("fill", "use", "lastuse", "discard", "a", "b")
    ]  # fmt: skip
    row = PRODUCT_KINDS.get(kind)
    if row is None or unknown or row.scaled != ("block_scale" in parts):
        raise code.refused(f"the opcode {instruction.opcode}")
    d, a, b, descriptor, *rest = instruction.operands
    scales = [rest.pop(0), rest.pop(0)] if row.scaled else []
    masks = rest[0].items if rest and isinstance(rest[0], Vector) else ()
    rest = rest[1:] if masks else rest
    adds = rest.pop(0)
    shift = rest.pop(0) if rest else Immediate(0)
    if rest or not isinstance(shift, Immediate) or len(masks) not in (0, 4 * group):
        raise code.refused(f"these operands of {instruction.opcode}")
    if group == 2 and masks:
        if any(_known(code, each) != 0 for each in masks):
            raise code.refused("a product of a pair of CTAs that leaves out lanes of D")
        masks = ()  # none is left out
    number = code.tensor_cores.number(TensorForm(kind, _block_of(parts) if row.scaled else 0, shift.number, group))
    known = _known(code, descriptor)
    if known is not None:
        try:
            code.tensor_cores.table(number, known & 0xFFFFFFFF)
        except MmabitsError as error:
            raise code.refused(f"{instruction.opcode} ({error})") from None
    places: list[int | str] = [_down(code, each, place) for place, each in enumerate((d, a, b))]
    places.append(_down(code, descriptor, 3))
    places += [_down(code, each, 4 + place) for place, each in enumerate(scales)] or [0, 0]
    code.put_down(code.resize(code.operand(adds, 1), 64), _PLACES[6])
    places.append(code.frame_number(_PLACES[6]))
    for place, each in enumerate(masks):
        code.put_down(code.operand(each, 64), _PLACES[7 + place])
    places.append(code.frame_number(_PLACES[7]) if masks else 0)
    _ask(code, words.MULTIPLY, code.guard(instruction), *places, int(isinstance(a, Address)), number)


def _ask(code: WarpCode, what: int, guard: Value | None, *more: int | str) -> None:
    code.call_helper([words.TENSOR, what, "%context_number", code.index, code.lanes(guard), *more], _RECORD)
    code.stop_on_error()


_COPIES: Final = {
    ("128x256b", ""): 0, ("128x128b", ""): 1, ("4x256b", ""): 2, ("64x128b", "warpx2::02_13"): 3, ("64x128b", "warpx2::01_23"): 4,
    ("32x128b", "warpx4"): 5,
}  # fmt: skip
"""Shapes of tcgen05.cp, and which warps get it, as tensorwork numbers them."""


def _copy(code: WarpCode, instruction: PtxInstruction) -> None:
    """tcgen05.cp: [address], descriptor."""
    group = tensormemory.group_of(code)
    parts = [word for word in instruction.opcode.split(".")[2:] if not word.startswith("cta_group::")]
    packed = 0
    for word, bits in (("b6x16_p32", 6), ("b4x16_p64", 4)):
        if word in parts:
            packed = bits
            parts = [each for each in parts if each not in (word, "b8x16")]
    shape = next((number for (size, warps), number in _COPIES.items() if sorted(parts) == sorted(filter(None, (size, warps)))), None)
    if shape is None:
        raise code.refused(f"the opcode {instruction.opcode}")
    target, source = (_down(code, each, place) for place, each in enumerate(instruction.operands))
    _ask(code, words.COPY, code.guard(instruction), target, source, shape, group, 0, 0, 0, 0, 0, packed)


def _commit(code: WarpCode, instruction: PtxInstruction) -> None:
    """tcgen05.commit: the mbarrier is told when what the thread asked for is done, or that of every CTA of a mask."""
    tensormemory.group_of(code)
    parts = instruction.opcode.split(".")
    if "mbarrier::arrive::one" not in parts or ("multicast::cluster" in parts) != (len(instruction.operands) == 2):
        raise code.refused(f"the opcode {instruction.opcode}")
    space = "shared" if any(word.startswith("shared::") for word in parts) else ""
    code.put_down(generic(code, instruction.operands[0], space), _PLACES[0])
    several: int | str = 0
    if "multicast::cluster" in parts:
        several = _down(code, instruction.operands[1], 1)
    _ask(code, words.COMMIT, code.guard(instruction), code.frame_number(_PLACES[0]), several)


_FORMS: Final[dict[str, Handler]] = {**tensormemory.FORMS, "mma": _multiply, "cp": _copy, "commit": _commit}
"""By the second word of the opcode."""


def _tcgen05(code: WarpCode, instruction: PtxInstruction) -> None:
    handler = _FORMS.get(instruction.opcode.split(".")[1])
    if handler is None:
        raise code.refused(f"the opcode {instruction.opcode}")
    handler(code, instruction)


HANDLERS: Final[dict[str, Handler]] = {"tcgen05": _tcgen05}
