"""Kernel runs: kept as they are launched, run again from their PTX, compared, and the first instruction found that differs.

To find it both sides run a kernel that writes down what one thread computes, instruction by instruction: after each of them a store that
only this thread carries out. Products that ptxas fuses with a sum are not stored, so that they stay fused.
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from mmabits.conformance.recorded.runs import Bytes, Parameter, PtxRun, RunTensor, read_run, write_run
from mmabits.emulator.machine.fusion import contracted
from mmabits.emulator.machine.kernel import Kernel, aligned
from mmabits.emulator.machine.program import base_of, results_of
from mmabits.emulator.machine.ptx import Address, Entry, PtxInstruction, Register, Symbol, read_ptx, registers_of, split_commas
from mmabits.emulator.machine.tensormaps import BYTES, MAGIC, TensorMap
from mmabits.emulator.machine.trace import Log
from mmabits.isa import EmulationError, OperandError, architecture
from mmabits.research.follow import form_of_dtype, indices, source_of, writer_of

Execute = Callable[[PtxRun], list[Bytes]]
"""Runs a kernel on fresh copies of its buffers, and gives what is in them then."""

_ADDRESS: Final = TensorMap._fields.index("address")
_ENTRY_BYTES: Final = 16
_MOST_NOTED: Final = 1 << 20
"""Values of a thread that are compared."""
_MOST_THREADS: Final = 16
"""Threads that are looked at, where a value came from another one."""
_SILENT: Final = ("wgmma", "tcgen05", "bra", "brx", "ret", "exit", "call", "mbarrier", "setmaxnreg", "elect")


# ---------------------------------------------------------------------------------------------------------------------- keeping


class Keeper:
    """Keeps the launches of an `emulate` block as files: `session.keeper`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: list[Path] = []

    def begin(
        self, kernel: Kernel, text: str, grid: tuple[int, int, int], values: Sequence[Any], ranges: Sequence[tuple[int, int]],
        tensors: Sequence[tuple[str, Any]],
    ) -> Callable[[], None]:  # fmt: skip
        """Look at the memory before a launch; what is returned looks at it afterwards, and writes the file."""
        from mmabits import __version__

        places = sorted(set(ranges))
        before = tuple(_copy(*each) for each in places)
        parameters = [_parameter(value, variable.size, places) for value, variable in zip(values, kernel.entry.parameters, strict=True)]
        named = []
        for name, value in tensors:
            buffer, offset = _place(int(value.data_ptr()), places)
            named.append(
                RunTensor(name, buffer, offset, tuple(value.shape), tuple(value.stride()), value.element_size(), form_of_dtype(value.dtype))
            )

        def finish() -> None:
            run = PtxRun(
                ptx=text, kernel=kernel.name, arch=kernel.arch, grid=grid, block=(kernel.block[0], kernel.block[1], kernel.block[2]),
                cluster=(kernel.cluster[0], kernel.cluster[1], kernel.cluster[2]), shared=kernel.memory.dynamic,
                contracts=kernel.contracts, parameters=tuple(parameters), before=before, after=tuple(_copy(*each) for each in places),
                tensors=tuple(named), gpu=f"emulated by mmabits {__version__}",
            )  # fmt: skip
            path = self.folder / f"{len(self.paths):03d}-{re.sub('[^A-Za-z0-9_]', '_', kernel.name)[:60]}-{kernel.arch}.safetensors"
            write_run(path, run)
            self.paths.append(path)

        return finish


def _copy(first: int, last: int) -> Bytes:
    return np.frombuffer(ctypes.string_at(first, last - first), np.uint8)


def _place(address: int, places: Sequence[tuple[int, int]]) -> tuple[int, int]:
    for number, (first, last) in enumerate(places):
        if first <= address <= last:
            return number, address - first
    return -1, 0


def _parameter(value: Any, size: int, places: Sequence[tuple[int, int]]) -> Parameter:
    if isinstance(value, bytes) and len(value) == BYTES and int.from_bytes(value[:8], "little") == MAGIC:
        record = np.frombuffer(value, np.int64).copy()
        buffer, offset = _place(int(record[_ADDRESS]), places)
        record[_ADDRESS] = offset
        return Parameter(record.tobytes().hex(), buffer, offset, True)
    if isinstance(value, bytes):
        return Parameter(value.hex())
    buffer, offset = _place(int(value), places) if size == 8 and value else (-1, 0)
    if buffer != -1:
        return Parameter("", buffer, offset)
    return Parameter((int(value) & (1 << 8 * size) - 1).to_bytes(size, "little").hex())


# ---------------------------------------------------------------------------------------------------------------------- running


def _kernel(run: PtxRun, arch: str | None, *, traces: bool = False) -> Kernel:
    target = run.arch if arch is None else architecture(arch).name
    cluster = run.cluster if run.cluster != (1, 1, 1) else None
    return Kernel(
        run.ptx, run.kernel, arch=target, shared=run.shared, threads=run.block, cluster=cluster, contracts=run.contracts, traces=traces
    )


def emulated(run: PtxRun, arch: str | None = None, *, look: Callable[[Kernel, Log, list[Bytes]], object] | None = None) -> list[Bytes]:
    """Run a kernel on the CPU.

    Args:
        run: what to launch, from `before`.
        arch: as another architecture's tensor cores; its own if None.
        look: is given the kernel, the notes of each cluster and the buffers; the kernel traces then.

    Raises:
        KernelError, PtxError, OperandError: as `Kernel`.
    """
    made = _kernel(run, arch, traces=look is not None)
    buffers = [aligned(max(1, len(each)))[: len(each)] for each in run.before]
    for held, before in zip(buffers, run.before, strict=True):
        held[:] = before
    ranges = [(each.ctypes.data, each.ctypes.data + each.size) for each in buffers]
    arguments = run.arguments([each.ctypes.data for each in buffers])
    made.launch(run.grid, arguments, ranges, trace=None if look is None else lambda log: look(made, log, buffers))
    return buffers


# -------------------------------------------------------------------------------------------------------------------- comparing


@dataclass(frozen=True, kw_only=True)
class RunDifference:
    """Where the results of two sides part in a tensor, or in a buffer that no tensor has."""

    what: str
    """`y[3, 17]`, the first of them."""
    buffer: int
    offset: int
    found: int
    """The bits of that element on the one side,"""
    wanted: int
    """and on the other."""
    count: int
    """Elements that differ."""
    size: int
    """Bytes of an element."""

    def __str__(self) -> str:
        return f"{self.count} elements differ, first {self.what}: {self.found:#x}, recorded {self.wanted:#x}"


def differences(run: PtxRun, found: Sequence[Bytes], wanted: Sequence[Bytes]) -> list[RunDifference]:
    """By tensor, as far as tensors are known; each byte once."""
    told = []
    for buffer, (one, other) in enumerate(zip(found, wanted, strict=True)):
        wrong = np.flatnonzero(one != other)
        for tensor in [each for each in run.tensors if each.buffer == buffer]:
            mine = wrong[wrong >= tensor.offset]
            if not mine.size:
                continue
            elements = np.unique((mine - tensor.offset) // tensor.size)
            at = tensor.offset + int(elements[0]) * tensor.size
            told.append(_difference(_element(tensor, int(elements[0])), buffer, at, one, other, len(elements), tensor.size))
            wrong = wrong[wrong < tensor.offset]
        if wrong.size:
            told.append(_difference(f"byte {int(wrong[0])} of buffer {buffer}", buffer, int(wrong[0]), one, other, len(wrong), 1))
    return told


def _difference(what: str, buffer: int, at: int, one: Bytes, other: Bytes, count: int, size: int) -> RunDifference:
    codes = [int.from_bytes(each[at : at + size].tobytes(), "little") for each in (one, other)]
    return RunDifference(what=what, buffer=buffer, offset=at, found=codes[0], wanted=codes[1], count=count, size=size)


def _element(tensor: RunTensor, number: int) -> str:
    return f"{tensor.name}[{', '.join(map(str, indices(number, tensor.strides)[0]))}]"


@dataclass(frozen=True, kw_only=True, eq=False)
class RunComparison:
    """A kernel run by the emulator, beside what a file holds or another side gives."""

    run: PtxRun
    arch: str
    beside: str
    """The other side, in words."""
    differences: tuple[RunDifference, ...]
    parting: DifferingInstruction | None = None
    untold: str = ""
    """Why the first instruction is not known, where results differ."""

    @property
    def elements(self) -> int:
        """Elements of tensors that were compared."""
        return sum(int(np.prod(each.shape)) for each in self.run.tensors)

    def lines(self) -> list[str]:
        """In words."""
        found = [
            f"{self.run.name}, emulated as {self.arch}, beside {self.beside}: {self.elements:,} elements of {len(self.run.tensors)} tensors"
        ]
        if not self.differences:
            return [f"{found[0]}, 0 differ"]
        found += [f"  {each}" for each in self.differences]
        if self.parting is not None:
            found.append(f"  {self.parting}")
        elif self.untold:
            found.append(f"  the first instruction is not known: {self.untold}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kernel": self.run.kernel, "ptx_sha256": self.run.hash, "arch": self.arch, "beside": self.beside, "elements": self.elements,
            "differences": [
                {"what": each.what, "count": each.count, "emulated": each.found, "other": each.wanted} for each in self.differences
            ],
            "first_instruction": None if self.parting is None else str(self.parting.instruction),
        }  # fmt: skip


def compare_run(file: Path | PtxRun, *, arch: str | None = None, other: Execute | None = None) -> RunComparison:
    """Run a kernel here, and compare with what the file holds, or with another side.

    Args:
        file: a kernel run, or its file.
        arch: the architecture to emulate; the run's own if None.
        other: a GPU, or what stands in for it; where results differ, the first instruction is looked for.

    Raises:
        VectorFileError: a damaged file; KernelError, PtxError: the kernel cannot be run.
    """
    run = file if isinstance(file, PtxRun) else read_run(file)
    target = run.arch if arch is None else architecture(arch).name
    found = emulated(run, target)
    wanted = list(run.after) if other is None else other(run)
    told = tuple(differences(run, found, wanted))
    parting, untold = None, ""
    if told and other is not None and target == run.arch:
        try:
            parting = first_difference(run, other, told[0])
        except EmulationError as error:
            untold = str(error)
    beside = f"{'a recording of ' if run.kind == 'hardware' else ''}{run.gpu}" if other is None else "the GPU"
    return RunComparison(run=run, arch=target, beside=beside, differences=told, parting=parting, untold=untold)


# ---------------------------------------------------------------------------------------------------------- the first instruction


@dataclass(frozen=True, kw_only=True)
class DifferingInstruction:
    """The first instruction whose result differs."""

    instruction: PtxInstruction
    found: int
    """What the emulator has,"""
    wanted: int
    """and the other side."""
    register: str
    cta: tuple[int, int, int]
    thread: tuple[int, int, int]
    place: int
    """How many results of the thread came before it, all of them equal."""
    threads: int
    """Threads that were looked at: values may come from others."""

    def __str__(self) -> str:
        return (
            f"the first instruction that differs: {self.instruction}; {self.register} is {self.found:#x}, "
            f"on the other side {self.wanted:#x}; "
            f"program {self.cta}, thread {self.thread}, after {self.place} results that agree"
        )


def first_difference(run: PtxRun, other: Execute, difference: RunDifference) -> DifferingInstruction:
    """The first instruction that has another result on the other side.

    Args:
        run: the launch.
        other: runs kernels on the other side: a GPU.
        difference: of the results.

    Raises:
        EmulationError: it cannot be told: nothing of what is noted differs (products of wgmma and tcgen05 are not), or there are calls.
    """
    thread = _writer(run, difference)
    seen: list[Where] = []
    for _ in range(_MOST_THREADS):
        seen.append(thread)
        noted = instrumented(run, *thread)
        ours, theirs = (_notes(noted, each) for each in (emulated, other))
        place = next((at for at, (one, two) in enumerate(zip(ours, theirs, strict=False)) if one != two), None)
        if place is None:
            raise EmulationError(
                f"{run.name}: nothing that thread {thread[1]} of program {thread[0]} noted differs; {len(ours)} results agree"
            )
        number, code = ours[place]
        instruction, register = noted.noted[number]
        moved = base_of(instruction.opcode) in ("ld", "ldmatrix", "shfl")
        source = _source(run, thread, noted, place) if moved else None
        if source is None or source in seen:
            return DifferingInstruction(
                instruction=instruction, found=code, wanted=theirs[place][1], register=register, cta=thread[0], thread=thread[1],
                place=place, threads=len(seen),
            )  # fmt: skip
        thread = source
    raise EmulationError(f"{run.name}: the difference came through more than {_MOST_THREADS} threads")


Where = tuple[tuple[int, int, int], tuple[int, int, int]]
"""A CTA and a thread of it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NotedRun(PtxRun):
    """A run whose kernel writes down what a thread computes, into its last buffer."""

    noted: tuple[tuple[PtxInstruction, str], ...]
    """What the numbers of the notes mean: an instruction, and the register that it wrote."""


def _writer(run: PtxRun, difference: RunDifference) -> Where:
    """The thread that stored an element."""
    found: list[Where] = []

    def look(made: Kernel, log: Log, buffers: list[Bytes]) -> None:
        where = writer_of(made, log, buffers[difference.buffer].ctypes.data + difference.offset)
        if where is not None:
            found.append((_cta(where.cta, run.grid), _thread(where.thread, run.block)))

    emulated(run, look=look)
    if not found:
        raise EmulationError(f"{run.name}: no thread of the emulator wrote {difference.what}")
    return found[-1]


def _source(run: PtxRun, thread: Where, noted: NotedRun, place: int) -> Where | None:
    """The other thread that a noted value came from; None: it was made, or read from what was there before."""
    counts = Counter(each.end for each, _ in noted.noted)
    found: list[Where] = []

    def look(made: Kernel, log: Log, _: list[Bytes]) -> None:
        number = thread[0][0] + run.grid[0] * (thread[0][1] + run.grid[1] * thread[0][2])
        lane = thread[1][0] + run.block[0] * (thread[1][1] + run.block[1] * thread[1][2])
        where = source_of(made, log, number, lane, lambda each: counts[each.end], place)
        if where is not None:
            found.append((_cta(where.cta, run.grid), _thread(where.thread, run.block)))

    emulated(run, look=look)
    return found[-1] if found else None


def _cta(number: int, grid: tuple[int, int, int]) -> tuple[int, int, int]:
    return number % grid[0], number // grid[0] % grid[1], number // grid[0] // grid[1]


def _thread(number: int, block: tuple[int, int, int]) -> tuple[int, int, int]:
    return number % block[0], number // block[0] % block[1], number // block[0] // block[1]


def _notes(run: NotedRun, execute: Execute) -> list[tuple[int, int]]:
    """Number of the note and value, in order."""
    words = execute(run)[-1].view(np.uint64).reshape(-1, 2)
    count = int(np.flatnonzero(words[:, 0])[-1]) + 1 if words[:, 0].any() else 0
    return [(int(number) - 1, int(value)) for number, value in words[:count]]


def instrumented(run: PtxRun, cta: tuple[int, int, int], thread: tuple[int, int, int]) -> NotedRun:
    """A run whose kernel writes down what one thread computes.

    Raises:
        EmulationError: a kernel with calls.
        OperandError: the text is none that stores can be put into.
    """
    module = read_ptx(run.ptx)
    entry = module.entries[run.kernel]
    if any(base_of(each.opcode) == "call" for each in entry.instructions):
        raise EmulationError(f"{run.name}: a kernel with calls is not noted")
    dropped = _fused_products(run) if run.contracts else set()
    addresses = _addresses(entry)
    noted: list[tuple[PtxInstruction, str]] = []
    pieces, at = [], 0
    for each in entry.instructions:
        if base_of(each.opcode) in _SILENT or each.end in dropped:
            continue
        lines = []
        for register, name in _written(each):
            if register.bits not in (16, 32, 64) or register in addresses:
                continue
            noted.append((each, name))
            guard, sure = "%mmabits_is", ""
            if each.guard is not None:
                guard, held = "%mmabits_one", each.text.split()[0].strip("@!")
                turned = f"not.pred %mmabits_one, {held};" if each.guard.negated else f"mov.pred %mmabits_one, {held};"
                sure = f"{turned} and.pred %mmabits_one, %mmabits_one, %mmabits_is; "
            lines.append(
                f"\n{sure}@{guard} st.global.b32 [%mmabits_at], {len(noted)}; @{guard} st.global.b{register.bits} [%mmabits_at+8], {name}; "
                f"@{guard} add.s64 %mmabits_at, %mmabits_at, 16;"
            )
        if lines:
            pieces += [run.ptx[at : each.end], "".join(lines)]
            at = each.end
    text = "".join([*pieces, run.ptx[at:]])
    text = _with_prologue(text, run.kernel, cta, thread)
    count = _events(replace(run, ptx=text, parameters=(*run.parameters, Parameter("", len(run.before), 0))), run)
    room = np.zeros(count * _ENTRY_BYTES, np.uint8)
    fields = {name: getattr(run, name) for name in PtxRun.__dataclass_fields__}
    fields |= {
        "ptx": text, "parameters": (*run.parameters, Parameter("", len(run.before), 0)), "before": (*run.before, room),
        "after": (*run.after, room),
    }  # fmt: skip
    return NotedRun(**fields, noted=tuple(noted))


def _events(run: PtxRun, original: PtxRun) -> int:
    """Notes that the thread makes, found by running it here with much room."""
    room = np.zeros(_MOST_NOTED * _ENTRY_BYTES, np.uint8)
    found = emulated(replace(run, before=(*original.before, room), after=(*original.after, room)))[-1]
    numbers = found.view(np.uint64)[::2]
    filled = np.flatnonzero(numbers)
    return int(filled[-1]) + 64 if filled.size else 64


def _fused_products(run: PtxRun) -> set[int]:
    """Ends of the instructions that contraction takes away."""
    entry = read_ptx(run.ptx).entries[run.kernel]
    left = {each.end for each in contracted(entry)[0].instructions}
    return {each.end for each in entry.instructions} - left


def _addresses(entry: Entry) -> set[Register]:
    """Registers that may hold addresses, which no two machines share: what is made of a pointer or of a variable's place."""
    pointers = {each.name for each in entry.parameters if each.size == 8}
    found: set[Register] = set()
    before = -1
    while len(found) != before:
        before = len(found)
        for each in entry.instructions:
            sources = each.operands[len(results_of(each)) :]
            base = base_of(each.opcode)
            if base == "ld":
                place = sources[0] if sources else None
                name = place.base if isinstance(place, Address) else None
                is_address = ".param" in each.opcode and isinstance(name, Symbol) and name.name in pointers and each.opcode.endswith("64")
            elif base in ("setp", "ldmatrix", "atom"):
                is_address = False
            else:
                is_address = any(isinstance(one, Symbol) or not found.isdisjoint(registers_of(one)) for one in sources)
            if is_address:
                found.update(register._replace(negated=False) for one in results_of(each) for register in registers_of(one))
    return found


def _written(instruction: PtxInstruction) -> list[tuple[Register, str]]:
    """Registers that are written, with their names in the text."""
    operands = instruction.text.partition(instruction.opcode)[2].strip()
    pieces = split_commas(operands)
    found: list[tuple[Register, str]] = []
    for place, operand in enumerate(results_of(instruction)):
        names = [each for each in re.split(r"[{},|\s]+", pieces[place]) if each and each != "_"]
        registers = list(registers_of(operand))
        if len(names) == len(registers):
            found += zip(registers, names, strict=True)
    return found


def _with_prologue(text: str, name: str, cta: tuple[int, int, int], thread: tuple[int, int, int]) -> str:
    """One more parameter, and registers that say where this thread's next note goes."""
    head = re.search(rf"\.entry\s+{re.escape(name)}\s*\(", text)
    if head is None:
        raise OperandError(f"no parameters of {name} in the PTX")
    close = text.index(")", head.end())
    comma = "," if text[head.end() : close].strip() else ""
    brace = text.index("{", close)
    tests = []
    for axis, (program, lane) in zip("xyz", zip(cta, thread, strict=True), strict=True):
        for special, wanted in ((f"%ctaid.{axis}", program), (f"%tid.{axis}", lane)):
            tests.append(f"mov.u32 %mmabits_x, {special}; setp.eq.u32 %mmabits_one, %mmabits_x, {wanted};")
            tests.append("and.pred %mmabits_is, %mmabits_is, %mmabits_one;")
    prologue = (
        "\n.reg .pred %mmabits_is, %mmabits_one; .reg .b32 %mmabits_x; .reg .b64 %mmabits_at;\n"
        "ld.param.u64 %mmabits_at, [mmabits_notes];\nmov.u32 %mmabits_x, 0; setp.eq.u32 %mmabits_is, %mmabits_x, 0;\n"
        + "\n".join(tests)
        + "\n"
    )
    return f"{text[:close]}{comma} .param .u64 mmabits_notes{text[close : brace + 1]}{prologue}{text[brace + 1 :]}"
