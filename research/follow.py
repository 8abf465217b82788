"""`mmabits.explain_result`: a number that a compiled kernel wrote, followed back to what it was made of.

The launch is run once more by kernels that note every step (emulator/machine/trace.py). From the last store to the element's place the
notes are read backwards: through registers, shuffles, shared memory and copies, to the elements of tensors, and to products, whose rows and
columns are gathered and computed again by the engine.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mmabits.emulator.api import gemm
from mmabits.emulator.codecs import as_codes, decode, from_codes
from mmabits.emulator.cuda.modules import WATCH
from mmabits.emulator.machine import context as words
from mmabits.emulator.machine.context import CONTEXT_WORDS
from mmabits.emulator.machine.descriptors import wgmma_descriptor
from mmabits.emulator.machine.kernel import Kernel
from mmabits.emulator.machine.program import base_of, results_of
from mmabits.emulator.machine.ptx import (
    Address,
    Immediate,
    Negative,
    Operand,
    Pair,
    PtxInstruction,
    Register,
    Symbol,
    Vector,
    registers_of,
)  # fmt: skip
from mmabits.emulator.machine.tensormaps import BYTES, ELEMENTS, MAGIC, SWIZZLES, TensorMap
from mmabits.emulator.machine.trace import Log
from mmabits.emulator.machine.vectors import LANES
from mmabits.isa import EmulationError, OperandError, architecture, parse
from mmabits.isa.fragments import accumulator_layout, chunk_elements, operand_layout, register_bits
from mmabits.isa.instructions import Instruction
from mmabits.isa.opcodes import opcode_table, width

_MOST_STEPS: Final = 2000
"""Steps that are followed: sums of long rows have more, which are left out and counted."""
_TAG: Final = words.TAG_SHIFT
_SHARED: Final = ("shared", "shared::cta", "shared::cluster")
_FORMS: Final = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64", "int8": "s8", "uint8": "u8", "int32": "s32"}
_NUMBERS: Final = ("f16", "bf16", "f32", "f64")


class Tensor(NamedTuple):
    """An argument of a launch."""

    name: str
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""
    size: int
    """Bytes of an element."""
    form: str
    """Its format, as far as there is one: `f16`."""

    def place(self, address: int) -> str | None:
        """The element at an address, by its name."""
        if address < self.address:
            return None
        index, rest = indices((address - self.address) // self.size, self.strides)
        if rest or any(not 0 <= at < most for at, most in zip(index, self.shape, strict=True)):
            return None
        return f"{self.name}[{', '.join(map(str, index))}]"


def indices(number: int, strides: Sequence[int]) -> tuple[list[int], int]:
    """The indices of the element that lies a number of elements behind a tensor's first, and what is left over."""
    index = [0] * len(strides)
    for axis in sorted(range(len(strides)), key=lambda each: -strides[each]):
        if strides[axis] > 0:
            index[axis], number = divmod(number, strides[axis])
    return index, number


@dataclass(frozen=True, kw_only=True, eq=False)
class ResultStep:
    """A value, and how it came about."""

    text: str
    code: int
    """The bits."""
    form: str
    """PTX type."""
    where: str = ""
    """Line of the source, or of the PTX."""
    children: tuple[ResultStep, ...] = ()
    is_element: bool = False
    """An element of a tensor."""
    is_copy: bool = False
    """The bits of its only child, moved."""

    @property
    def number(self) -> str:
        """The value as a number, or its bits."""
        if self.form in _NUMBERS:
            return _real(self.code, self.form)
        if self.form.startswith("s") and self.form[1:].isdigit():
            bits = int(self.form[1:])
            return str((self.code ^ 1 << bits - 1) - (1 << bits - 1))
        return f"{self.code:#x}"

    @property
    def origin(self) -> ResultStep:
        """What was moved here."""
        step = self
        while step.is_copy and step.children:
            step = step.children[0]
        return step


@dataclass(frozen=True, kw_only=True, eq=False)
class ProductStep(ResultStep):
    """A dot product that tensor cores computed, of one element of D and all instructions that added to it."""

    instruction: Instruction
    arch: str
    a: npt.NDArray[Any]
    """The row of A, (K,)."""
    b: npt.NDArray[Any]
    """The column of B, (K,)."""
    c: npt.NDArray[Any]
    """What it began with, ()."""
    count: int
    """Instructions."""

    computed: int
    """The engine's result, as a code."""

    def explain(self) -> Any:
        """The product step by step, as `mmabits.explain` has it."""
        from mmabits.research.explain import explain

        return explain(self.a, self.b, self.c, instruction=self.instruction, arch=self.arch)


@dataclass(frozen=True, kw_only=True, eq=False)
class ResultExplanation:
    """Where a result came from: str() is a tree, `products` are its dot products."""

    kernel: str
    arch: str
    element: str
    program: int
    value: ResultStep
    """The result itself."""
    root: ResultStep
    left_out: int
    """Steps that were not followed, since there were too many."""
    stored: ResultStep | None = None
    """What was stored, with what moved it there; None: `root`."""

    def html(self) -> str:
        """A page of its own: every instruction back to the arguments, with lines of PTX or source, and the products drawn."""
        from mmabits.research.explain.history import history_page

        return history_page(self)

    def save(self, path: str | Path) -> Path:
        """Write the page (`.html`) or the tree as text (`.txt`).

        Raises:
            OperandError: another ending.
        """
        from mmabits.reports.pages import check_page, write

        check_page(path, suffixes=(".html", ".txt"))
        return write(path, self.html() if Path(path).suffix == ".html" else f"{self}\n")

    def steps(self) -> Iterator[ResultStep]:
        """All steps, each once, from the result back."""
        seen: set[int] = set()
        waiting = [self.root]
        while waiting:
            step = waiting.pop(0)
            if id(step) not in seen:
                seen.add(id(step))
                yield step
                waiting += step.children

    @property
    def products(self) -> tuple[ProductStep, ...]:
        """Dot products."""
        return tuple(each for each in self.steps() if isinstance(each, ProductStep))

    @property
    def elements(self) -> tuple[str, ...]:
        """Elements of tensors that were read one by one."""
        return tuple(each.text for each in self.steps() if each.is_element)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self, depth: int = 12) -> list[str]:
        """The tree as text; a step that was shown before is a number in brackets.

        Args:
            depth: levels that are shown.
        """
        found = [f"{self.element} = {self.value.number}, written by program {self.program} of {self.kernel} on {self.arch}"]
        numbers: dict[int, int] = {}

        def show(step: ResultStep, level: int) -> None:
            step = step.origin
            again = numbers.get(id(step))
            if again is not None:
                found.append(f"{'  ' * level}[{again}]")
                return
            numbers[id(step)] = len(numbers) + 1
            where = f"   {step.where}" if step.where else ""
            found.append(f"{'  ' * level}[{numbers[id(step)]}] {step.number} = {step.text}{where}")
            if step.children and level >= depth:
                found.append(f"{'  ' * (level + 1)}...")
                return
            for child in step.children:
                show(child, level + 1)

        show(self.root, 1)
        if self.left_out:
            found.append(f"  {self.left_out} steps were not followed: more than {_MOST_STEPS}")
        return found


class Watch:
    """Looks for the last store to a place in memory, in all launches of a block."""

    def __init__(self, address: int, size: int, arch: str) -> None:
        self.address, self.size, self.arch = address, size, arch
        self.found: Hit | None = None
        self._traced: dict[tuple[Any, ...], Kernel] = {}

    def begin(self, kernel: Kernel, text: str, arguments: Sequence[tuple[str, Any]]) -> tuple[Kernel, Callable[[Log], None]]:
        """A kernel that traces, in the place of another, and what its launch gives the notes to."""
        key = (text, kernel.name, kernel.arch, kernel.contracts, kernel.block, kernel.cluster, kernel.memory.dynamic, id(kernel.variables))
        tensors = [_tensor(name, each) for name, each in arguments if isinstance(each, np.ndarray) or hasattr(each, "data_ptr")]
        traced = self._traced.get(key)
        if traced is None:
            cluster = kernel.cluster if kernel.memory.is_cluster else None
            traced = self._traced[key] = Kernel(
                text, kernel.name, arch=kernel.arch, shared=kernel.memory.dynamic,
                threads=(kernel.block[0], kernel.block[1], kernel.block[2]), cluster=cluster,
                contracts=kernel.contracts, variables=kernel.variables, traces=True,
            )  # fmt: skip
        return traced, lambda log: self._see(traced, log, tensors)

    def _see(self, kernel: Kernel, log: Log, tensors: Sequence[Tensor]) -> None:
        follower = _Follower(kernel, log, tensors, {})
        for event in log.backwards(len(log)):
            if follower.is_store(event) and follower.store(event, self.address, shared=None) is not None:
                kept = Log(log.instructions, log.notes.copy())
                self.found = Hit(_Follower(kernel, kept, tensors, follower.maps_in_use()), event)
                return


class Hit(NamedTuple):
    """The store that was looked for."""

    follower: _Follower
    event: int


class _Place(NamedTuple):
    """Where a stored byte came from: a register of a lane, or an address."""

    register: Operand | None
    lane: int
    shift: int
    """Bits of the register below it."""
    address: int | None = None
    shared: bool = False


@dataclass(eq=False)
class _Follower:
    """Reads the notes of a launch backwards."""

    kernel: Kernel
    log: Log
    tensors: Sequence[Tensor]
    maps: dict[int, TensorMap]
    left_out: int = 0
    _known: dict[tuple[int, Register, int], ResultStep] = field(default_factory=dict)
    _addresses: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)
    """Those that stores write to."""
    _first_warps: dict[int, int] = field(default_factory=dict)

    # -------------------------------------------------------------------------------------------------------------- registers

    def lane_value(self, event: int, operand: Operand, lane: int) -> int:
        """An operand as an event reads it."""
        if isinstance(operand, Immediate):
            return operand.number
        if isinstance(operand, Symbol):
            return self.kernel.memory.address_of(operand.name)
        if isinstance(operand, Address):
            return self.lane_value(event, operand.base, lane) + operand.offset
        if isinstance(operand, Register):
            made = self.log.writer(self.log.events[event].warp, operand, lane, event)
            return 0 if made is None else int(self.log.value(made, operand._replace(negated=False))[lane])
        return 0

    def addresses(self, event: int, operand: Operand) -> npt.NDArray[np.int64]:
        """Of all lanes; -1 of those that do not run."""
        found = self._addresses.get(event)
        if found is None:
            lanes = self.log.events[event].lanes
            numbers = [self.lane_value(event, operand, lane) if lanes >> lane & 1 else -1 for lane in range(LANES)]
            found = self._addresses[event] = np.array(numbers, np.int64)
        return found

    # ----------------------------------------------------------------------------------------------------------------- stores

    def is_store(self, event: int) -> bool:
        """Whether an event writes memory."""
        opcode = self.log.instruction(event).opcode
        return opcode.startswith(("st.", "stmatrix.", "cp.async.ca", "cp.async.cg", "cp.async.bulk.tensor", "atom.", "red."))

    @cached_property
    def _stores(self) -> list[int]:
        return [event for event in range(len(self.log)) if self.is_store(event)]

    @cached_property
    def _boxes(self) -> list[int]:
        return [event for event in self._stores if self.log.instruction(event).opcode.startswith("cp.async.bulk.tensor")]

    @cached_property
    def _cells(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Of every lane of every store but boxes: the first byte, one past the last, and the event; in order of the events."""
        low, high, events = [], [], []
        for event in self._stores:
            instruction = self.log.instruction(event)
            opcode = instruction.opcode
            if opcode.startswith("cp.async.bulk.tensor"):
                continue
            first = instruction.operands[1 if opcode.startswith("atom.") else 0]
            if opcode.startswith("cp.async."):
                size = getattr(instruction.operands[2], "number", 0)
            elif opcode.startswith("stmatrix."):
                size = 16
            else:
                data = instruction.operands[1]
                size = max(8, width(opcode.rpartition(".")[2])) // 8 * (len(data.items) if isinstance(data, Vector) else 1)
            places = self.addresses(event, first)
            places = np.where(places >> _TAG == words.SHARED_TAG, places & 0xFFFFFFFF, places)
            low.append(places)
            high.append(np.where(places < 0, -1, places + size))
            events.append(np.full(LANES, event))
        nothing = np.zeros(0, np.int64)
        return (np.concatenate(low), np.concatenate(high), np.concatenate(events)) if low else (nothing, nothing, nothing)

    def writers(self, address: int, before: int) -> Iterator[int]:
        """Stores that may have written an address, the last before an event first."""
        low, high, events = self._cells
        count = np.searchsorted(events, before)
        found = events[:count][(low[:count] <= address) & (address < high[:count])].tolist()
        boxes = self._boxes[: np.searchsorted(self._boxes, before)]
        return iter(sorted({*found, *boxes}, reverse=True))

    def store(self, event: int, address: int, *, shared: int | None) -> _Place | None:
        """Where the byte at an address came from, if an event wrote it.

        Args:
            event: one that writes.
            address: in global memory, or in shared memory.
            shared: the CTA whose shared memory is meant; None: global memory.
        """
        instruction = self.log.instruction(event)
        opcode, found = instruction.opcode, self.log.events[event]
        if shared is not None and found.cta != shared:
            return None
        parts = opcode.split(".")
        to_shared = any(word in _SHARED for word in parts)
        if opcode.startswith("cp.async.bulk.tensor"):
            return self._box(event, address, shared=shared)
        if opcode.startswith("cp.async."):
            return self._copy(event, address) if shared is not None else None
        if opcode.startswith("stmatrix."):
            return self._matrix(event, address) if shared is not None else None
        if ("global" in parts and shared is not None) or (to_shared and shared is None) or "local" in parts:
            return None
        places = self.addresses(event, instruction.operands[0 if opcode.startswith(("st.", "red.")) else 1])
        if not to_shared and "global" not in parts:
            tagged = (places >> _TAG) == words.SHARED_TAG
            if shared is not None and not tagged.any():
                return None
            places = np.where(tagged, places & 0xFFFFFFFF, -1) if shared is not None else np.where(tagged, -1, places)
        if not opcode.startswith("st."):
            unit = width(parts[-1]) // 8
            inside = np.flatnonzero((places <= address) & (address < places + unit) & (places >= 0))
            return _Place(None, int(inside[-1]), 0) if inside.size else None
        unit = max(8, width(parts[-1])) // 8
        data = instruction.operands[1]
        items = data.items if isinstance(data, Vector) else (data,)
        inside = np.flatnonzero((places >= 0) & (places <= address) & (address < places + unit * len(items)))
        if not inside.size:
            return None
        lane = int(inside[-1])
        item, byte = divmod(address - int(places[lane]), unit)
        return _Place(items[item], lane, 8 * byte)

    def _copy(self, event: int, address: int) -> _Place | None:
        target, source, size, *_ = self.log.instruction(event).operands
        places, count = self.addresses(event, target) & 0xFFFFFFFF, getattr(size, "number", 0)
        ran = np.array([self.log.events[event].lanes >> lane & 1 for lane in range(LANES)], bool)
        inside = np.flatnonzero(ran & (places <= address) & (address < places + count))
        if not inside.size:
            return None
        lane = int(inside[-1])
        return _Place(None, lane, 0, address=self.lane_value(event, source, lane) + address - int(places[lane]))

    def _matrix(self, event: int, address: int) -> _Place | None:
        """stmatrix: the byte of a row of 16 bytes."""
        instruction = self.log.instruction(event)
        place, data = instruction.operands
        items = data.items if isinstance(data, Vector) else (data,)
        rows = self.addresses(event, place)[: 8 * len(items)] & 0xFFFFFFFF
        inside = np.flatnonzero((rows <= address) & (address < rows + 16))
        if not inside.size:
            return None
        (matrix, row), column = divmod(int(inside[-1]), 8), (address - int(rows[inside[-1]])) // 2
        byte = (address - int(rows[inside[-1]])) % 2
        if "trans" in instruction.opcode.split("."):
            row, column = column, row
        return _Place(items[matrix], 4 * row + column // 2, 16 * (column % 2) + 8 * byte)

    # ---- boxes of TMA

    def _map(self, event: int) -> TensorMap | None:
        """The tensor map of a copy."""
        instruction = self.log.instruction(event)
        loads = ".global.shared" not in instruction.opcode
        tensor = instruction.operands[1 if loads else 0]
        if not isinstance(tensor, Address):
            return None
        at = self.lane_value(event, Address(tensor.base, tensor.offset), self._lane(event))
        if at not in self.maps:
            read = TensorMap(*np.frombuffer(ctypes.string_at(at, BYTES), np.int64).tolist())
            self.maps[at] = read
        return self.maps[at] if self.maps[at].magic == MAGIC else None

    def maps_in_use(self) -> dict[int, TensorMap]:
        """Tensor maps of all copies, as they are now."""
        for event in self._stores:
            if self.log.instruction(event).opcode.startswith("cp.async.bulk.tensor") and self.log.events[event].lanes:
                self._map(event)
        return self.maps

    def _lane(self, event: int) -> int:
        """The first lane that ran."""
        lanes = self.log.events[event].lanes
        return (lanes & -lanes).bit_length() - 1

    def _box(self, event: int, address: int, *, shared: int | None) -> _Place | None:
        """A box: the address in shared memory of one in global memory, or the other way."""
        instruction = self.log.instruction(event)
        loads = ".global.shared" not in instruction.opcode
        if loads != (shared is not None) or not self.log.events[event].lanes:
            return None
        form, lane = self._map(event), self._lane(event)
        if form is None or ELEMENTS[form.element].unit != 1:
            return None
        place, tensor = instruction.operands[:2] if loads else instruction.operands[1::-1]
        assert isinstance(tensor, Address)
        start = self.lane_value(event, place, lane) & 0xFFFFFFFF
        corner = [self.lane_value(event, each, lane) for each in tensor.coordinates]
        corner = [(each & 0xFFFFFFFF ^ 1 << 31) - (1 << 31) for each in corner]
        size = ELEMENTS[form.element].wide
        box = [form.box >> 12 * each & 0xFFF for each in range(form.rank)]
        strides = [size, form.stride_1, form.stride_2, form.stride_3, form.stride_4][: form.rank]
        mask = SWIZZLES[form.swizzle] // 16 - 1
        if loads:
            offset = (address ^ (address >> 7 & mask) * 16) - start
            at, byte = divmod(offset, size)
            if not 0 <= at < int(np.prod(box)):
                return None
            found = form.address + byte
            for length, first, stride in zip(box, corner, strides, strict=True):
                at, within = divmod(at, length)
                found += (first + within) * stride
            return _Place(None, lane, 0, address=found)
        rest, index = address - form.address, [0] * form.rank
        for axis in sorted(range(form.rank), key=lambda each: -strides[each]):
            index[axis], rest = divmod(rest, strides[axis])
        inside = [at - first for at, first in zip(index, corner, strict=True)]
        if any(not 0 <= at < length for at, length in zip(inside, box, strict=True)):
            return None
        linear = 0
        for at, length in zip(reversed(inside), reversed(box), strict=True):
            linear = linear * length + at
        found = start + linear * size + rest
        return _Place(None, lane, 0, address=found ^ (found >> 7 & mask) * 16, shared=True)

    # ----------------------------------------------------------------------------------------------------------------- memory

    def memory(self, before: int, address: int, code: int, form: str, *, shared: int | None) -> ResultStep:
        """What wrote a value that lies in memory."""
        for event in self.writers(address, before):
            place = self.store(event, address, shared=shared)
            if place is not None:
                return self.stored(event, place, code, form)
        if shared is not None:
            return ResultStep(text="shared memory that was never written", code=code, form=form)
        return self.element(address, code, form)

    def stored(self, event: int, place: _Place, code: int, form: str) -> ResultStep:
        """What an event wrote."""
        instruction = self.log.instruction(event)
        where = _where(instruction)
        if place.address is not None:
            if place.shared:
                moved = self.memory(event, place.address, code, form, shared=self.log.events[event].cta)
            else:
                moved = self.element(place.address, code, form)
            return ResultStep(text=instruction.opcode, code=code, form=form, where=where, children=(moved,), is_copy=True)
        if isinstance(place.register, Register):
            source = _part(self.register(event, place.register, place.lane), place.shift, width(form))
            if source.code != code:  # a part of it, or several beside each other
                return ResultStep(text=f"bits from {place.shift} of", code=code, form=form, where=where, children=(source,))
            return ResultStep(text=instruction.opcode, code=code, form=form, where=where, children=(source,), is_copy=True)
        return ResultStep(text=f"{instruction.opcode}, not followed further", code=code, form=form, where=where)

    def element(self, address: int, code: int, form: str) -> ResultStep:
        """An element of a tensor, or memory that no tensor has."""
        for tensor in self.tensors:
            name = tensor.place(address)
            if name is not None:
                kept = tensor.form if tensor.form and width(tensor.form) == width(form) else form
                return ResultStep(text=name, code=code, form=kept, is_element=True)
        return ResultStep(text=f"memory at {address:#x}", code=code, form=form)

    def number(self, event: int) -> int:
        """The number of an event's warp in its CTA."""
        if not self._first_warps:
            for each in self.log.events:
                self._first_warps[each.cta] = min(self._first_warps.get(each.cta, each.warp), each.warp)
        found = self.log.events[event]
        return (found.warp - self._first_warps[found.cta]) // (8 * CONTEXT_WORDS)

    def thread_behind(self, before: int, address: int, cta: int) -> Thread | None:
        """The thread that wrote a byte of shared memory."""
        for event in self.writers(address, before):
            place = self.store(event, address, shared=cta)
            if place is not None and place.address is None:
                return Thread(cta, self.number(event) * LANES + place.lane)
            if place is not None:
                return None
        return None

    def thread_before(self, event: int, instruction: PtxInstruction, lane: int, item: int) -> Thread | None:
        """The thread that a load or a shuffle brought a value from."""
        cta, base = self.log.events[event].cta, base_of(instruction.opcode)
        if base == "shfl":
            return Thread(cta, self.number(event) * LANES + self.taken(event, lane))
        if base == "ldmatrix":
            row, column = lane // 4, 2 * (lane % 4)
            if "trans" in instruction.opcode.split("."):
                row, column = column, row
            address = (self.lane_value(event, instruction.operands[1], 8 * item + row) & 0xFFFFFFFF) + 2 * column
            return self.thread_behind(event, address, cta)
        if base != "ld":
            return None
        parts = instruction.opcode.split(".")
        unit = max(8, width(parts[-1])) // 8
        address = self.lane_value(event, instruction.operands[1], lane) + item * unit
        if any(word in _SHARED for word in parts) or ("global" not in parts and address >> _TAG == words.SHARED_TAG):
            return self.thread_behind(event, address & 0xFFFFFFFF, cta)
        for number in self.writers(address, event):
            place = self.store(number, address, shared=None)
            if place is not None:
                return Thread(self.log.events[number].cta, self.number(number) * LANES + place.lane)
        return None

    # ------------------------------------------------------------------------------------------------------------------ steps

    def register(self, before: int, register: Register, lane: int) -> ResultStep:
        """What a lane's register holds when an event reads it."""
        made = self.log.writer(self.log.events[before].warp, register, lane, before)
        register = register._replace(negated=False)
        if made is None:
            return ResultStep(text=f"{register.name}, never written", code=0, form=f"b{max(8, register.bits)}")
        key = (made, register, lane)
        if key not in self._known:
            if len(self._known) >= _MOST_STEPS:
                self.left_out += 1
                return ResultStep(text="...", code=int(self.log.value(made, register)[lane]), form=f"b{max(8, register.bits)}")
            self._known[key] = ResultStep(text="", code=0, form="b32")  # a place, so that the count is right
            self._known[key] = self._made(made, register, lane)
        return self._known[key]

    def _made(self, event: int, register: Register, lane: int) -> ResultStep:
        instruction = self.log.instruction(event)
        code = int(self.log.value(event, register)[lane])
        base = base_of(instruction.opcode)
        form = _form(instruction, register)
        where = _where(instruction)
        if base == "ld":
            return self._loaded(event, instruction, register, lane, code, form)
        if base == "ldmatrix":
            return self._from_matrix(event, register, lane, code)
        if base == "mma":
            return self._product(event, register, lane, code)
        if instruction.opcode.startswith("wgmma."):
            return self._warpgroup_product(event, register, lane, code)
        if base == "shfl":
            return self._shuffled(event, lane, code, form)
        if base in ("tcgen05", "atom", "redux", "vote", "match"):
            return ResultStep(text=f"{instruction.opcode}, not followed further", code=code, form=form, where=where)
        operands = instruction.operands[len(results_of(instruction)) :]
        if base == "selp":
            taken = operands[0 if self.lane_value(event, operands[2], lane) & 1 else 1]
            children = self._operands(event, (taken,), lane)
            return ResultStep(text=instruction.opcode, code=code, form=form, where=where, children=children, is_copy=len(children) == 1)
        children = self._operands(event, operands, lane)
        halves = "bf16" if ".bf16x2" in instruction.opcode else "f16"
        if base == "cvt" and instruction.opcode.endswith("x2.f32") and register.bits == 32 and len(children) == 2:
            high, low = (
                ResultStep(text=instruction.opcode, code=code >> shift & 0xFFFF, form=halves, where=where, children=(child,))
                for shift, child in ((16, children[0]), (0, children[1]))
            )
            return ResultStep(text="beside each other", code=code, form=form, children=(low, high))
        if base == "mov" and isinstance(instruction.operands[0], Vector) and len(children) == 1:
            part = [*registers_of(instruction.operands[0])].index(register)
            source = _part(children[0], part * register.bits, register.bits)
            if source.code == code:
                return ResultStep(text=instruction.opcode, code=code, form=form, where=where, children=(source,), is_copy=True)
        is_copy = base == "mov" and len(children) == 1 and children[0].code == code
        return ResultStep(text=_spelled(instruction), code=code, form=form, where=where, children=children, is_copy=is_copy)

    def _operands(self, event: int, operands: Sequence[Operand], lane: int) -> tuple[ResultStep, ...]:
        return tuple(self.register(event, each, lane) for operand in operands for each in _registers(operand))

    def _loaded(self, event: int, instruction: PtxInstruction, register: Register, lane: int, code: int, form: str) -> ResultStep:
        parts, place = instruction.opcode.split("."), instruction.operands[1]
        if "param" in parts:
            name = place.base.name if isinstance(place, Address) and isinstance(place.base, Symbol) else "?"
            return ResultStep(text=f"argument {name}", code=code, form=form)
        data = instruction.operands[0]
        items = data.items if isinstance(data, Vector) else (data,)
        unit = max(8, width(parts[-1])) // 8
        address = self.lane_value(event, place, lane) + items.index(register) * unit
        in_shared = any(word in _SHARED for word in parts) or ("global" not in parts and address >> _TAG == words.SHARED_TAG)
        cta = self.log.events[event].cta if in_shared else None
        moved = self.memory(event, address & 0xFFFFFFFF if in_shared else address, code, form, shared=cta)
        return ResultStep(text=instruction.opcode, code=code, form=form, where=_where(instruction), children=(moved,), is_copy=True)

    def _from_matrix(self, event: int, register: Register, lane: int, code: int) -> ResultStep:
        """ldmatrix: two elements of 16 bits."""
        instruction = self.log.instruction(event)
        data, place = instruction.operands[:2]
        items = data.items if isinstance(data, Vector) else (data,)
        matrix, cta = items.index(register), self.log.events[event].cta
        children = []
        for half in range(2):
            row, column = divmod(lane, 4)[0], 2 * (lane % 4) + half
            if "trans" in instruction.opcode.split("."):
                row, column = column, row
            address = (self.lane_value(event, place, 8 * matrix + row) & 0xFFFFFFFF) + 2 * column
            children.append(self.memory(event, address, code >> 16 * half & 0xFFFF, "b16", shared=cta))
        return ResultStep(text=instruction.opcode, code=code, form="b32", where=_where(instruction), children=tuple(children))

    def taken(self, event: int, lane: int) -> int:
        """The lane whose register a shuffle gives."""
        instruction = self.log.instruction(event)
        by, clamp = instruction.operands[2:4]
        shift, bounds = self.lane_value(event, by, lane), self.lane_value(event, clamp, lane)
        low = lane & bounds >> 8 & 31
        high = low | bounds & ~(bounds >> 8) & 31
        mode = instruction.opcode.split(".")[2]
        shift &= 31
        other = {"up": lane - shift, "down": lane + shift, "bfly": lane ^ shift, "idx": low | shift & ~(bounds >> 8) & 31}[mode]
        inside = other >= low if mode == "up" else other <= high
        return other if inside else lane

    def _shuffled(self, event: int, lane: int, code: int, form: str) -> ResultStep:
        instruction = self.log.instruction(event)
        source, taken = instruction.operands[1], self.taken(event, lane)
        if not isinstance(source, Register):
            return ResultStep(text=instruction.opcode, code=code, form=form, where=_where(instruction))
        child = self.register(event, source, taken)
        return ResultStep(text=f"{instruction.opcode} from lane {taken}", code=code, form=child.form, children=(child,), is_copy=True)

    # --------------------------------------------------------------------------------------------------------------- products

    def _product(self, event: int, register: Register, lane: int, code: int) -> ResultStep:
        """mma.sync: the chain of instructions behind an accumulator."""
        instruction = self.log.instruction(event)
        if "block_scale" in instruction.opcode or "sp" in instruction.opcode.split("."):
            return ResultStep(text=f"{instruction.opcode}, not followed further", code=code, form="b32", where=_where(instruction))
        matrix = parse(instruction.opcode)
        place = list(registers_of(instruction.operands[0])).index(register)
        found = [self._element_of(matrix, each, place, lane) for each in range(register.bits // matrix.d_type.container_bits or 1)]
        steps = [self._dot(event, matrix, row, column, shift, register, lane, code) for row, column, shift in found]
        if len(steps) == 1:
            return steps[0]
        return ResultStep(text="beside each other", code=code, form="b32", where=_where(instruction), children=tuple(steps))

    def _element_of(self, matrix: Instruction, part: int, place: int, thread: int) -> tuple[int, int, int]:
        """Row and column of an accumulator, and where it lies in its register."""
        layout, bits = accumulator_layout(matrix), register_bits(matrix.d_type)
        per = LANES if matrix.ptx.startswith("mma.") else 4 * LANES
        start = (place * per + thread) * bits + part * matrix.d_type.container_bits
        (where,) = np.flatnonzero(layout.starts[0] == start)
        row, column = divmod(int(where), matrix.n)
        return row, column, start % bits

    def _dot(
        self, event: int, matrix: Instruction, row: int, column: int, shift: int, register: Register, lane: int, code: int
    ) -> ProductStep:
        bits = matrix.d_type.container_bits
        a: list[int] = []
        b: list[int] = []
        at: int | None = event
        count, start, children = 0, 0, []
        place = list(registers_of(self.log.instruction(event).operands[0])).index(register)
        first = last = event
        while at is not None:
            instruction = self.log.instruction(at)
            first = at
            a = [*self._fragment(at, matrix, "a", row, instruction.operands[1]), *a]
            b = [*self._fragment(at, matrix, "b", column, instruction.operands[2]), *b]
            count += 1
            items = instruction.operands[3].items if isinstance(instruction.operands[3], Vector) else (instruction.operands[3],)
            c = items[place]
            start = self.lane_value(at, c, lane) >> shift & (1 << bits) - 1
            made = self.log.writer(self.log.events[at].warp, c, lane, at) if isinstance(c, Register) else None
            at = None
            if made is not None and isinstance(c, Register):
                before = self.log.instruction(made)
                if before.opcode == instruction.opcode and list(registers_of(before.operands[0])).index(c) == place:
                    at = made
                elif start:
                    children.append(self.register(first, c, lane))
        for side, name in ((1, "A"), (2, "B")):
            for where, kept in ((first, "first"), (last, "last")):
                children += self._end(where, matrix, row if side == 1 else column, side, f"{kept} of {name}", kept == "last")
        return self._made_product(
            matrix, a, b, start, code >> shift & (1 << bits) - 1, count, children, _where(self.log.instruction(event))
        )

    def _made_product(
        self, matrix: Instruction, a: list[int], b: list[int], start: int, code: int, count: int, children: Sequence[ResultStep], where: str
    ) -> ProductStep:
        left, right = _codes(a, matrix.a_type.name), _codes(b, matrix.b_type.name)
        started = _codes([start], matrix.d_type.name)[0]
        again = gemm(left[None], right[:, None], np.asarray(started).reshape(1, 1), instruction=matrix, arch=self.kernel.arch)
        computed = int(as_codes(again, matrix.d_type)[0, 0])
        same = "equal" if computed == code else f"{computed:#x}, not {code:#x}"
        name = matrix.ptx if len(matrix.ptx) < 60 else f"{matrix.ptx[:57]}..."
        return ProductStep(
            text=f"{count} x {name}, K = {len(a)}, from {started}; computed again: {same}", code=code, form=matrix.d_type.name, where=where,
            children=tuple(children), instruction=matrix, arch=self.kernel.arch, a=left, b=right, c=np.asarray(started), count=count,
            computed=computed,
        )  # fmt: skip

    def _fragment(self, event: int, matrix: Instruction, side: str, at: int, operand: Operand) -> list[int]:
        """A row of A or a column of B, as codes."""
        return [
            self.lane_value(event, register, lane) >> shift & (1 << spec.code_bits) - 1
            for spec, register, lane, shift in self._places(matrix, side, at, operand)
        ]

    def _places(self, matrix: Instruction, side: str, at: int, operand: Operand) -> Iterator[tuple[Any, Operand, int, int]]:
        layout = operand_layout(matrix, side=side)
        spec = matrix.a_type if side == "a" else matrix.b_type
        items, bits = operand.items if isinstance(operand, Vector) else (operand,), register_bits(spec)
        for k in range(matrix.k):
            start = int(layout.starts[0][at * matrix.k + k if side == "a" else k * matrix.n + at])
            word, shift = divmod(start, bits)
            register, lane = divmod(word, LANES)
            yield spec, items[register], lane, shift

    def _end(self, event: int, matrix: Instruction, at: int, side: int, text: str, last: bool) -> list[ResultStep]:
        """Where the first or last element of a row or column came from."""
        places = list(self._places(matrix, "ab"[side - 1], at, self.log.instruction(event).operands[side]))
        spec, register, lane, shift = places[-1 if last else 0]
        if not isinstance(register, Register):
            return []
        code = self.lane_value(event, register, lane) >> shift & (1 << spec.code_bits) - 1
        child = self.register(event, register, lane)
        source = _part(child, shift, spec.container_bits)
        return [
            ResultStep(
                text=f"{text}: {source.origin.text}",
                code=code,
                form=_ptx_form(spec),
                children=() if source.origin.is_element else (source,),
            )
        ]

    # ---- wgmma

    def _warpgroup_product(self, event: int, register: Register, lane: int, code: int) -> ResultStep:
        """The chain behind an accumulator of wgmma, which a wait left in its register."""
        warp, numbers = self.log.events[event].warp, []
        start = self._began(warp, register, lane, event)
        for at in self.log.backwards(event):
            instruction = self.log.instruction(at)
            if at <= start:
                break
            if self.log.events[at].warp != warp or not instruction.opcode.startswith("wgmma.mma_async"):
                continue
            if register not in registers_of(instruction.operands[0]):
                continue
            numbers.append(at)
            if not self.lane_value(at, instruction.operands[3], lane) & 1:
                break
        if not numbers:
            return ResultStep(text="an accumulator of wgmma, not followed further", code=code, form="b32")
        last = self.log.instruction(numbers[0])
        matrix = parse(last.opcode)
        number = self.number(event)
        place = list(registers_of(last.operands[0])).index(register)
        thread = number % 4 * LANES + lane
        row, column, shift = self._element_of(matrix, 0, place, thread)
        a: list[int] = []
        b: list[int] = []
        ends: list[ResultStep] = []
        for at in reversed(numbers):
            for side, line, codes, text in ((1, row, a, "A"), (2, column, b, "B")):
                found = self._warpgroup_operand(at, matrix, side, line, lane, number)
                if found is None:
                    return ResultStep(text=f"{last.opcode}, {text} not followed further", code=code, form="b32", where=_where(last))
                codes += [each.code for each in found]
                ends += (
                    [ResultStep(text=f"first of {text}: {found[0].origin.text}", code=found[0].code, form=found[0].form)]
                    if at == numbers[-1]
                    else []
                )
        started = 0
        first = self.log.instruction(numbers[-1])
        if self.lane_value(numbers[-1], first.operands[3], lane) & 1:
            started = self.lane_value(numbers[-1], register, lane)
            ends.append(self.register(numbers[-1], register, lane))
        bits = matrix.d_type.container_bits
        return self._made_product(
            matrix, a, b, started >> shift & (1 << bits) - 1, code >> shift & (1 << bits) - 1, len(numbers), ends, _where(last)
        )

    def _began(self, warp: int, register: Register, lane: int, before: int) -> int:
        """The last event that wrote an accumulator otherwise than by wgmma; -1 of none."""
        made: int | None = before
        while made is not None and self.log.instruction(made).opcode.startswith("wgmma."):
            made = self.log.writer(warp, register, lane, made)
        return -1 if made is None else made

    def _warpgroup_operand(self, event: int, matrix: Instruction, side: int, line: int, lane: int, number: int) -> list[ResultStep] | None:
        """A row of A or a column of B of a wgmma; None: it is not known what wrote it."""
        instruction = self.log.instruction(event)
        operand = instruction.operands[side]
        spec = matrix.a_type if side == 1 else matrix.b_type
        if isinstance(operand, Vector):
            return self._warpgroup_fragment(event, matrix, operand, line)
        descriptor = wgmma_descriptor(self.lane_value(event, operand, lane))
        numbers = [each.number for each in instruction.operands[4:] if isinstance(each, Immediate)]
        majors = numbers[0 if spec.is_integer else 2 :]
        mn_major = bool(majors) and bool(majors[0 if side == 1 and len(majors) == 2 else -1])
        cta, found = self.log.events[event].cta, []
        for k in range(matrix.k):
            bit = descriptor.element(line, k, bits=spec.container_bits, elements=chunk_elements(matrix, spec), mn_major=mn_major)
            step = self._shared_code(event, bit // 8, spec.container_bits, _ptx_form(spec), cta)
            if step is None:
                return None
            found.append(step)
        return found

    def _warpgroup_fragment(self, event: int, matrix: Instruction, operand: Vector, line: int) -> list[ResultStep]:
        """A row of A in the registers of the warp that has the row of D: as mma.sync has it, 16 rows a warp."""
        spec, found = matrix.a_type, []
        per = 32 // spec.container_bits
        for k in range(matrix.k):
            group, within = divmod(k, 4 * per)
            thread, element = divmod(within, per)
            register = operand.items[2 * group + line % 16 // 8]
            lane, shift = 4 * (line % 8) + thread, element * spec.container_bits
            code = self.lane_value(event, register, lane) >> shift & (1 << spec.container_bits) - 1
            if k == 0 and isinstance(register, Register):
                source = _part(self.register(event, register, lane), shift, spec.container_bits)
                found.append(
                    source if source.code == code else ResultStep(text=source.text, code=code, form=_ptx_form(spec), children=(source,))
                )
            else:
                found.append(ResultStep(text="a register", code=code, form=_ptx_form(spec)))
        return found

    def _shared_code(self, before: int, address: int, bits: int, form: str, cta: int) -> ResultStep | None:
        """An element of shared memory, whose code is that of where it came from."""
        for event in self.writers(address, before):
            place = self.store(event, address, shared=cta)
            if place is None:
                continue
            if place.address is not None:
                code = int.from_bytes(ctypes.string_at(place.address, bits // 8), "little") if self._is_known(place.address) else 0
                return self.stored(event, place, code, form)
            if isinstance(place.register, Register):
                code = self.lane_value(event, place.register, place.lane) >> place.shift & (1 << bits) - 1
                return self.stored(event, place, code, form)
            return None
        return None

    def _is_known(self, address: int) -> bool:
        return any(tensor.place(address) is not None for tensor in self.tensors)


class Thread(NamedTuple):
    """A thread of a launch."""

    cta: int
    thread: int
    """Its number in the CTA."""


def writer_of(kernel: Kernel, log: Log, address: int) -> Thread | None:
    """The thread that stored the byte at an address of global memory last; None: none of these CTAs did."""
    follower = _Follower(kernel, log, (), {})
    for event in follower.writers(address, len(log)):
        place = follower.store(event, address, shared=None)
        if place is None:
            continue
        if place.shared and place.address is not None:  # a box of TMA: who wrote it into shared memory
            found = follower.thread_behind(event, place.address, log.events[event].cta)
            if found is not None:
                return found
        return Thread(log.events[event].cta, follower.number(event) * LANES + place.lane)
    return None


def source_of(kernel: Kernel, log: Log, cta: int, thread: int, values: Callable[[PtxInstruction], int], place: int) -> Thread | None:
    """The thread that a value came from, which a load or a shuffle brought.

    Args:
        kernel: one that traces.
        log: its notes.
        cta: the program.
        thread: of the CTA.
        values: how many values of an instruction are counted.
        place: which value of the thread is meant, in order.

    Returns:
        None: it was there before the launch, or the CTA is not in these notes.
    """
    follower, lane, left = _Follower(kernel, log, (), {}), thread % LANES, place
    for event, found in enumerate(log.events):
        if found.cta != cta or follower.number(event) != thread // LANES or not found.lanes >> lane & 1:
            continue
        instruction = log.instruction(event)
        count = values(instruction)
        if left >= count:
            left -= count
            continue
        return follower.thread_before(event, instruction, lane, left)
    return None


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, np.ndarray):
        size = value.dtype.itemsize
        strides = tuple(step // size for step in value.strides)
        return Tensor(name, value.ctypes.data, value.shape, strides, size, form_of_dtype(value.dtype))
    return Tensor(name, value.data_ptr(), tuple(value.shape), tuple(value.stride()), value.element_size(), form_of_dtype(value.dtype))


def form_of_dtype(dtype: Any) -> str:
    """The PTX type of a dtype of PyTorch or NumPy, `f16`; empty where there is none."""
    return _FORMS.get(str(dtype).removeprefix("torch."), "")


def _codes(codes: Sequence[int], form: str) -> npt.NDArray[Any]:
    bits = width(_ptx_form_name(form))
    return from_codes(np.array(codes, f"u{max(8, bits) // 8}"), form)


def _ptx_form_name(form: str) -> str:
    return {"tf32": "b32"}.get(form, form if form in (*_NUMBERS, "s8", "u8", "s32", "u32") else "b8")


def _ptx_form(spec: Any) -> str:
    return spec.name if spec.name in _NUMBERS else f"b{spec.container_bits}"


def _real(code: int, form: str) -> str:
    bits = width(form)
    return f"{float(decode(np.array([code & (1 << bits) - 1], f'u{bits // 8}'), form)[0]):.9g}"


def _part(step: ResultStep, shift: int, bits: int) -> ResultStep:
    """Of values beside each other in a word the one that is meant, as far as they are told apart."""
    while True:
        step = step.origin
        size = width(step.form)
        if len(step.children) < 2 or size <= bits or any(width(each.form) * len(step.children) != size for each in step.children):
            return step
        place, shift = divmod(shift, size // len(step.children))
        step = step.children[place]


def _registers(operand: Operand) -> Iterator[Register]:
    if isinstance(operand, Negative):
        yield from _registers(operand.operand)
    elif isinstance(operand, (Vector, Pair, Register)):
        yield from registers_of(operand)


def _spelled(instruction: PtxInstruction) -> str:
    constants = [each for each in instruction.operands if isinstance(each, Immediate)]
    return instruction.opcode + (f" with {', '.join(_immediate(each) for each in constants)}" if constants else "")


def _immediate(operand: Immediate) -> str:
    if operand.form in _NUMBERS:
        return _real(operand.number, operand.form)
    return str(operand.number)


def _form(instruction: PtxInstruction, register: Register) -> str:
    row = opcode_table().get(instruction.opcode)
    kind = row.results[0] if row is not None and row.results else instruction.opcode.rpartition(".")[2]
    try:
        fits = width(kind) == register.bits
    except ValueError:
        fits = False
    return kind if fits else f"b{max(8, register.bits)}"


def _where(instruction: PtxInstruction) -> str:
    return str(instruction.location) if instruction.location is not None else f"line {instruction.line} of the PTX"


def explain_result(launch: Callable[[], object], tensor: Any, index: int | tuple[int, ...], *, arch: str) -> ResultExplanation:
    """Where a number that a compiled Triton kernel, or one of CUDA C++ or PTX, wrote came from.

    Args:
        launch: a function without arguments that launches the kernels. It is run once more here, tracing: what it writes is written again.
        tensor: the PyTorch tensor on the CPU, or NumPy array, that was written.
        index: the element.
        arch: architecture, or GPU: `sm_80`, `h100`; of modules of CUDA C++ and PTX their own.

    Returns:
        The steps behind it: print it; `products` has the dot products, each computed again by the engine.

    Raises:
        OperandError: no such element, or a module is for another architecture.
        EmulationError: nothing wrote it, or PyTorch is missing.
    """
    from mmabits.emulator.hooks.session import emulate

    if not callable(launch):
        raise OperandError(f"launch must be a function without arguments, not {type(launch).__name__}")
    if not isinstance(tensor, np.ndarray) and not all(hasattr(tensor, each) for each in ("shape", "data_ptr", "stride")):
        raise OperandError(f"the result must be a PyTorch tensor or a NumPy array, not {type(tensor).__name__}")
    index = tuple(index) if isinstance(index, (tuple, list)) else (index,)
    if not all(isinstance(at, (int, np.integer)) for at in index):
        raise OperandError(f"an element is named by whole numbers, not by {index}")
    shape = tuple(tensor.shape)
    if len(index) != len(shape) or any(not -size <= at < size for at, size in zip(index, shape, strict=True)):
        raise OperandError(f"no element {index} in a tensor of shape {shape}")
    index = tuple(at % size for at, size in zip(index, shape, strict=True))
    asked = _tensor("", tensor)
    size = asked.size
    address = asked.address + size * sum(at * step for at, step in zip(index, asked.strides, strict=True))
    watch = Watch(address, size, architecture(arch).name)
    has_torch, has_triton = (importlib.util.find_spec(name) is not None for name in ("torch", "triton"))  # other kernels need neither
    frameworks = [name for name, is_there in (("torch", has_torch), ("triton", has_torch and has_triton)) if is_there]
    with emulate(arch, frameworks=frameworks, triton="compiled" if "triton" in frameworks else None, cuda=has_torch) as session:
        session.watch = watch
        token = WATCH.set(watch)
        try:
            launch()
        finally:
            WATCH.reset(token)
    if watch.found is None:
        raise EmulationError(f"no compiled kernel wrote element {index}")
    follower, event = watch.found
    place = follower.store(event, address, shared=None)
    assert place is not None
    code = int.from_bytes(ctypes.string_at(address, size), "little")
    form = next((each.form for each in follower.tensors if each.place(address) is not None and each.form), f"b{8 * size}")
    root = follower.stored(event, place, code, form)
    name = next((found for each in follower.tensors if (found := each.place(address)) is not None), f"element {index}")
    return ResultExplanation(
        kernel=follower.kernel.name, arch=session.arch, element=name, program=follower.log.events[event].cta,
        value=ResultStep(text=name, code=code, form=form), root=root.origin,
        stored=root,
        left_out=follower.left_out,
    )  # fmt: skip
