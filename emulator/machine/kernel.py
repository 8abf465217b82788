"""A kernel compiled for the processor, and its launches."""

from __future__ import annotations

import ctypes
import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.emulator.engine import products
from mmabits.emulator.engine.record import Variant
from mmabits.emulator.engine.shares import SharedWork
from mmabits.emulator.machine import barriers, bulk, exchange, host, memory, tcgen05, tensor, tensorrecords, warpgrouprecords, wgmma
from mmabits.emulator.machine import context as words
from mmabits.emulator.machine.arranging import arranged
from mmabits.emulator.machine.checkrecords import check_names
from mmabits.emulator.machine.checks import CheckRun, KernelFinding, bits_of, static_findings
from mmabits.emulator.machine.compiler import compiled
from mmabits.emulator.machine.context import CONTEXT_WORDS, CTA_WORDS, WORK_WORDS, Context, Cta, Launch
from mmabits.emulator.machine.flight import early_uses
from mmabits.emulator.machine.fusion import contracted, folded
from mmabits.emulator.machine.hostcalls import KernelError, WarpMemory, called
from mmabits.emulator.machine.inlining import expanded
from mmabits.emulator.machine.program import Program, base_of, looks, program
from mmabits.emulator.machine.ptx import Address, Entry, Module, PtxError, PtxInstruction, Symbol, Variable, read_ptx
from mmabits.emulator.machine.tcgen05 import TensorCores, TensorRun
from mmabits.emulator.machine.tells import CheckTells
from mmabits.emulator.machine.tensor import Products, Tables, tables_of
from mmabits.emulator.machine.trace import ROOM, Log
from mmabits.emulator.machine.warp import Handler, WarpCode
from mmabits.emulator.machine.wgmma import Warpgroups
from mmabits.emulator.machine.workorder import WorkSchedule
from mmabits.isa import MmabitsError, OperandError, architecture
from mmabits.isa.contraction import contraction
from mmabits.isa.instructions import Instruction as Matrix
from mmabits.isa.memories import CTA, TENSOR_MEMORY
from mmabits.isa.opcodes import width

HANDLERS: Final[dict[str, Handler]] = {
    **memory.HANDLERS, **host.HANDLERS,
    **exchange.HANDLERS, **barriers.HANDLERS, **bulk.HANDLERS, **tensor.HANDLERS, **wgmma.HANDLERS, **tcgen05.HANDLERS,
}  # fmt: skip
_QUEUE: Final = 32 * 512
"""Copies that a warp may have under way: more are carried out early, which the hardware may do at any time."""
_PENDING: Final = 4096
"""Pieces of other asynchronous work that a run may have under way, likewise."""
_ROOM: Final = 1024
"""CTAs that may run at the same time, where they wait for each other."""
_WARP_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)
_HELPER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
_PLACE: Final = {name: place for place, name in enumerate(Context._fields)}
_RUN_PLACE: Final = {name: place for place, name in enumerate(Launch._fields)}

_ERRORS: Final = {
    words.OUTSIDE: "an access at {address:#x}, outside the memory that the kernel was given",
    words.MISALIGNED: "a misaligned access at {address:#x}",
    words.BAD_BARRIER: "a barrier that lanes or warps come to in ways that do not fit",
    words.PARTIAL: "an instruction of the whole warp, to which only some of its lanes came",
    words.TRAPPED: "a trap",
    words.NO_MBARRIER: "no mbarrier was initialised at {address:#x}",
    words.MBARRIER_COUNT: "a count of arrivals that the mbarrier at {address:#x} cannot have",
    words.MBARRIER_BYTES: "more bytes than the mbarrier at {address:#x} can count",
    warpgrouprecords.TOO_MANY: f"more than {warpgrouprecords.QUEUE} products of wgmma under way",
    warpgrouprecords.BAD_DESCRIPTOR: "a matrix that reaches outside shared memory, or a descriptor that is not emulated: {address:#x}",
    warpgrouprecords.OTHER_PRODUCT: "a product that is another one, or has other descriptors, than that of the warps beside it",
    words.NO_MAP: "no tensor map at {address:#x}",
    words.BAD_REDUCTION: "a reduction in global memory of elements of type {address}, which is not emulated",
    words.NO_TARGET: "the index {address} of a branch, outside its table",
    words.BAD_MAP: "a tensor map at {address:#x} that cannot be, or that is not emulated (interleaved, element strides, f32.ftz, tf32)",
    words.TRACE_FULL: "more steps than can be noted: trace a smaller launch",
    words.MBARRIER_COMPLETES: "an operation that must not end the phase of the mbarrier at {address:#x}, and would",
    tensorrecords.TENSOR_COLUMNS: f"{{address}} columns of tensor memory; there may be {', '.join(map(str, TENSOR_MEMORY.allocations))}",
    tensorrecords.NOT_LEFT: "{address} columns of tensor memory, which are not left, or after the right to them was given up",
    tensorrecords.NOT_ALLOCATED: "columns of tensor memory that were not allocated, at {address:#x}",
    tensorrecords.TENSOR_ADDRESS: "the address {address:#x} of tensor memory: it must be the same in all lanes, and in the warp's quarter",
    tensorrecords.NOT_FREED: "tensor memory that is not given back at the end, from column {address}",
    tensorrecords.OUTSIDE_SHARED: "a matrix that reaches outside shared memory, by the descriptor {address:#x}",
    tensorrecords.BAD_DESCRIPTOR: "a matrix descriptor with what is not emulated, or a byte of scales that there is not: {address:#x}",
    tensorrecords.SCALES_DIFFER: "block scales at {address:#x} that are not the same in all four quarters of tensor memory",
    tensorrecords.NO_PAIR: "an instruction of two CTAs, one of which there is not",
    tensorrecords.REFUSED: "the instruction descriptor {address:#x}, refused",
}


class KernelCheckError(KernelError):
    """Checks of a kernel found something: all of it is in `findings`."""

    def __init__(self, name: str, findings: Sequence[KernelFinding], more: int = 0) -> None:
        lines = "".join(f"\n- {each}" for each in findings)
        beyond = f"\nand {more:,} more" if more else ""
        super().__init__(f"{name}: {len(findings)} finding{'s' if len(findings) != 1 else ''} of the checks{lines}{beyond}")
        self.findings = tuple(findings)


def _rounded(size: int, unit: int) -> int:
    return (size + unit - 1) // unit * unit


class ModuleMemory:
    """The variables of a module, global and constant: kernels of it that are given the same one see what the others write.

    Args:
        variables: those of every space; what is not global or constant is left out.

    Raises:
        PtxError: one begins with the address of something else.
    """

    def __init__(self, variables: Sequence[Variable]) -> None:
        self.variables = {each.name: each for each in variables if each.space in ("global", "const")}
        self.places: dict[str, int] = {}
        """Generic addresses."""
        size = 0
        for each in self.variables.values():
            size = _rounded(size, each.align)
            self.places[each.name] = size | words.CONSTANT_TAG << words.TAG_SHIFT
            size += each.size
        self.held = aligned(size)
        for each in self.variables.values():
            unit = max(1, width(each.kind) // 8)
            data = b"".join((self._number(one, each) & (1 << 8 * unit) - 1).to_bytes(unit, "little") for one in each.initial)
            self.bytes_of(each.name)[: len(data)] = np.frombuffer(data, np.uint8)

    def bytes_of(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of a variable, to read and write."""
        start = self.places[name] & (1 << words.TAG_SHIFT) - 1
        return self.held[start : start + self.variables[name].size]

    def _number(self, initial: int | Address, variable: Variable) -> int:
        if isinstance(initial, int):
            return initial
        assert isinstance(initial.base, Symbol)
        if initial.base.name not in self.places:
            raise PtxError(f"{variable.name} begins with the address of {initial.base.name}, which is no variable of the module")
        return self.places[initial.base.name] + initial.offset


class _Memory:
    """Where the variables and parameters of a kernel lie."""

    def __init__(self, module: Module, entry: Entry, dynamic: int, warps: int, shared: ModuleMemory | None) -> None:
        self.places: dict[str, int] = {}
        self.module = shared
        self.dynamic, self.warps = dynamic, warps
        self.cluster: tuple[int, ...] = (1, 1, 1)
        self.is_cluster = False
        self.parameter_bytes = self._place(entry.parameters, 0)
        variables = [*module.variables.values(), *entry.variables.values()]
        static = [each for each in variables if each.space == "shared" and each.size]
        self.shared_size = self._place(static, 0)
        opened = [each for each in variables if each.space == "shared" and not each.size]
        start = _rounded(self.shared_size, max([16, *(each.align for each in opened)]))
        for each in opened:
            self.places[each.name] = start
        self.shared_size = _rounded(start + dynamic if opened or dynamic else self.shared_size, 16)
        self.has_tensor_memory = any(each.opcode.startswith("tcgen05.") for each in entry.instructions)
        self.local_size = _rounded(self._place([each for each in variables if each.space == "local"], 0), 16)
        own = [each for each in entry.variables.values() if each.space in ("global", "const")]
        if shared is None:
            shared = ModuleMemory([*module.variables.values(), *own])
        elif own:
            raise PtxError(f"{entry.name}: a variable of the module that is declared inside a kernel is not emulated here: {own[0].name}")
        self.places |= shared.places
        self.constants = shared.held

    def _place(self, variables: Sequence[Variable], start: int) -> int:
        at = start
        for each in variables:
            at = _rounded(at, each.align)
            self.places[each.name] = at
            at += each.size
        return at

    def address_of(self, name: str) -> int:
        """The place of a variable in its space."""
        found = self.places.get(name)
        if found is None:
            raise OperandError(f"nothing in the PTX is called {name}")
        return found


_MEMORY_ERRORS: Final = (
    words.OUTSIDE, words.MISALIGNED, words.NO_MAP, words.BAD_MAP, warpgrouprecords.BAD_DESCRIPTOR, tensorrecords.NOT_ALLOCATED,
    tensorrecords.TENSOR_ADDRESS, tensorrecords.OUTSIDE_SHARED, tensorrecords.BAD_DESCRIPTOR, tensorrecords.NOT_LEFT,
    tensorrecords.TENSOR_COLUMNS,
)  # fmt: skip
"""Errors that belong to the check of memory: the others belong to that of synchronisation."""


def helper_address(kind: str = "machine") -> int:
    """The address of operations.helper, or, of `"checks"`, of checking.checked_helper, compiled or taken from the files of machine code."""
    from mmabits.emulator.engine.machine_code import function_address

    nothing = np.dtype(np.uint8)
    return function_address(Variant(kind, nothing, nothing, nothing))


@dataclass(eq=False)
class _WarpFunction:
    """A warp's function."""

    address: int
    owner: Any
    text: str
    register_bytes: int
    cleared_bytes: int
    products: Products


class Kernel:
    """One kernel of a PTX module.

    Args:
        module: PTX text, or what read_ptx made of it.
        name: of the kernel; the only one if None.
        arch: architecture of the tensor cores.
        shared: bytes of dynamic shared memory.
        threads: of a CTA, where the text does not say; three numbers for x, y, z.
        cluster: CTAs of a cluster along x, y, z, likewise.
        contracts: fuse products and sums as ptxas does by default; not so with `--fmad=false`.
        traces: whether launches can note what they do (trace.py); they are slower then.
        checks: what launches look for, out of checks.CHECKS; they are slower then.
        variables: the module's, where several kernels share them; of this kernel alone if None.

    Raises:
        PtxError: the text is not understood; UnknownOpcode: an instruction is not emulated.
        OperandError: no such kernel.
    """

    def __init__(
        self,
        module: Module | str,
        name: str | None = None,
        *,
        arch: str,
        shared: int = 0,
        threads: tuple[int, int, int] | None = None,
        cluster: tuple[int, ...] | None = None,
        contracts: bool = True,
        traces: bool = False,
        checks: Sequence[str] = (),
        variables: ModuleMemory | None = None,
    ) -> None:
        module = module if isinstance(module, Module) else read_ptx(module)
        names = module.kernels
        if name is None and len(names) != 1:
            raise OperandError(f"the PTX has {len(names)} kernels: {', '.join(names)}" if names else "the PTX has no kernel (.entry)")
        name = names[0] if name is None else name
        if name not in names:
            raise OperandError(f"no kernel is called {name!r}; there are: {', '.join(names)}")
        began = time.perf_counter()
        self.entry, self.arch = arranged(expanded(module, module.entries[name])), arch
        self.text_opcodes = Counter(each.opcode for each in self.entry.instructions)
        """Opcodes of the text, as it was given, with their numbers."""
        self.text_instructions = tuple(self.entry.instructions)
        """The same in order."""
        self.contracts, self.traces, self.checks = contracts, traces, check_names(checks)
        self.fused = 0
        """Sums that became fused multiply-adds."""
        rule = contraction(arch)
        try:
            self.entry = folded(self.entry, rule, contracts=contracts)
            if contracts:
                self.entry, self.fused = contracted(self.entry, rule)
        except (IndexError, ValueError) as error:
            raise PtxError(f"{name}: a product, sum or function with other operands than it takes") from error
        told = self.entry.attributes.get("reqntid")
        self.block = tuple([*(told or threads or (32, 1, 1)), 1, 1][:3])
        self.threads = int(np.prod(self.block))
        self.warps = -(-self.threads // 32)
        told = self.entry.attributes.get("reqnctapercluster")
        self.cluster = tuple([*(told or cluster or (1,)), 1, 1][:3])
        self.cluster_size = int(np.prod(self.cluster))
        if not 1 <= self.cluster_size <= CTA.cluster:
            raise OperandError(f"{name}: clusters of {self.cluster_size} CTAs; there are up to {CTA.cluster}")
        if not 1 <= self.threads <= CTA.threads:
            raise OperandError(f"{name}: {self.threads:,} threads of a CTA; there are up to {CTA.threads:,}")
        self.variables = variables
        """The memory of variables that kernels of a module share."""
        self.memory = _Memory(module, self.entry, shared, self.warps, variables)
        room = architecture(architecture(arch).target).shared_memory << 10
        if self.memory.shared_size > room:
            raise OperandError(f"{name}: {self.memory.shared_size:,} bytes of shared memory; a CTA of {arch} has {room:,}")
        self.memory.cluster, self.memory.is_cluster = self.cluster, told is not None or cluster is not None
        looks_closely = bits_of(self.checks) != 0
        self.program: Program = program(self.entry, gathers=looks_closely)
        self.tensor_cores = TensorCores(arch)
        self.early_uses = early_uses(self.program)
        if stops := self.early_uses | self.program.meetings:
            self.program = program(self.entry, stops, gathers=looks_closely)
        self.tells = CheckTells(self.program, bits_of(self.checks)) if looks_closely else None
        self.warpgroups = Warpgroups(arch)
        self._lock = threading.Lock()
        self.was_kept = True
        """Whether all machine code came from files."""
        self._uniform = self._compiled(diverged=False)
        self._diverged: _WarpFunction | None = None
        self._tables: list[Tables] = []
        self._table_words = np.zeros(0, np.int64)
        self._enlist(self._uniform)
        self.compile_seconds = time.perf_counter() - began
        """Time that it took to get the machine code; that of a warp whose lanes part is made when they do."""

    @property
    def name(self) -> str:
        """The kernel's name in the PTX."""
        return self.entry.name

    @property
    def has_atomics(self) -> bool:
        """Whether CTAs may see each other: they run in ascending order then."""
        return any(each.opcode.startswith(("atom", "red", "cp.reduce")) or looks(each.opcode) for each in self.entry.instructions)

    @property
    def calls_host(self) -> bool:
        """Whether it prints, or has assertions."""
        return any(base_of(each.opcode) == "call" for each in self.entry.instructions)

    @property
    def opcodes(self) -> tuple[str, ...]:
        """Opcodes in the text, each once."""
        return tuple(dict.fromkeys(each.opcode for each in self.entry.instructions))

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Tensor-core instructions in the text; of tcgen05.mma those whose descriptors are constants, or were seen in a launch."""
        of_groups = [each.matrix for each in self.warpgroups.tables] + [each.matrix for each in self.tensor_cores.tables.values()]
        return tuple(dict.fromkeys([*self._uniform.products.counts, *of_groups]))

    # ---------------------------------------------------------------------------------------------------------------- code

    def _compiled(self, *, diverged: bool) -> _WarpFunction:
        code = WarpCode(self.program, HANDLERS, self.memory, diverged=diverged)
        products = Products(self.arch)
        if diverged:
            products.kinds = list(self._uniform.products.kinds)
        code.products, code.tensor_cores = products, self.tensor_cores
        code.warpgroups, code.early_uses, code.traces, code.tells = self.warpgroups, self.early_uses, self.traces, self.tells
        function = code.text("warp")
        text = "\n".join([*sorted(code.globals.values()), *sorted(code.declared), function])
        made = compiled(text, "warp", what=f"the kernel {self.name}", beside={each.symbol: each.text for each in code.outlined.values()})
        self.was_kept = self.was_kept and made.was_kept
        return _WarpFunction(made.address, made.owner, text, code.register_bytes, code.cleared_bytes, products)

    def _enlist(self, code: _WarpFunction) -> None:
        self._tables += [tables_of(kind) for kind in code.products.kinds[len(self._tables) :]]
        self._table_words = np.array([word for each in self._tables for word in each.words] or [0], np.int64)

    def _part(self, run: _ThreadState) -> Any:
        """What stands in for the function of a parted warp until one parts: it is compiled then."""

        def parted(context: int) -> int:
            try:
                with self._lock:
                    if self._diverged is None:
                        self._diverged = self._compiled(diverged=True)
                        self._enlist(self._diverged)
                run.know(self)
                return int(_WARP_FUNCTION(self._diverged.address)(context))
            except BaseException as error:  # what leaves a callback of ctypes is lost, and the warp would have ended
                run.failure = error
                return words.FAILED

        return _WARP_FUNCTION(parted)

    # --------------------------------------------------------------------------------------------------------------- launch

    def launch(
        self, grid: Sequence[int], arguments: Sequence[Any], ranges: Sequence[tuple[int, int]],
        check: Callable[[Matrix], object] | None = None, trace: Callable[[Log], object] | None = None,
        findings: list[KernelFinding] | None = None, schedule: WorkSchedule | None = None,
    ) -> dict[Matrix, int]:  # fmt: skip
        """Run the kernel.

        Args:
            grid: CTAs along x, y and z.
            arguments: integers, or bytes, for each parameter.
            ranges: addresses, first and one past the last, of what the kernel may read and write.
            check: raises where an instruction is not wanted that the kernel puts together as it runs; `matrices` has the others.
            trace: is given the notes of each cluster when it has ended, of a kernel that traces; they hold until the next.
            findings: gets what the checks found, which then raises nothing, and neither does an error that ends the kernel.
            schedule: another order of asynchronous work, warps and CTAs that a GPU may take.

        Returns:
            How often each tensor-core instruction was carried out by a warp.

        Raises:
            KernelError: what a GPU would end the kernel for; memory stays as far as it was written.
            KernelCheckError: the same of a kernel with checks, or what these found, when it has run.
        """
        sizes = [*map(int, grid), 1, 1][:3]
        total = sizes[0] * sizes[1] * sizes[2]
        if total <= 0:  # as Triton's launcher has it
            return {}
        if any(not 0 <= size <= most for size, most in zip(sizes, CTA.grid, strict=True)):
            raise OperandError(f"{self.name}: a grid of {tuple(sizes)} CTAs; there are up to {CTA.grid}")
        if any(size % each for size, each in zip(sizes, self.cluster, strict=True)):
            raise OperandError(f"{self.name}: a grid of {tuple(sizes)} CTAs is not made of clusters of {self.cluster}")
        parameters = self._parameters(arguments)
        runs_alone = self.has_atomics or self.traces or self.calls_host or self.tells is not None or schedule is not None
        count = 1 if runs_alone else min(products.threads_wanted(), total)
        stop = array("q", (0,))
        runs = [_ThreadState(self, sizes, parameters, ranges, stop, check, schedule) for _ in range(count)]
        idle = deque(runs)

        def share(first: int, last: int) -> None:
            run = idle.pop()  # there are as many as threads
            try:
                run.go(first, last)
                if trace is not None:
                    trace(Log(self.entry.instructions, run.notes()))
            finally:
                idle.append(run)

        each = self.cluster_size
        clusters = [(0, total // each)] if self.program.spins else _shares(total // each, total // each if self.traces else count)
        shares = [(first * each, last * each) for first, last in clusters]
        failure = None
        try:
            SharedWork(share, shares, stop, kept=(parameters, runs)).run(count)
        except KernelError as error:
            if not self.checks:
                raise
            failure = error
        if self.checks:
            self._tell(runs, failure, findings)
        executed: dict[Matrix, int] = {}
        for run in runs:
            matrices = [(place, table.kind.matrix) for place, table in enumerate(self._tables)]
            matrices += [(table.counter, table.matrix) for table in self.tensor_cores.tables.values()]
            matrices += [(table.counter, table.form.matrix) for table in self.warpgroups.tables.values()]
            for place, matrix in matrices:
                if times := int(run.counts[place]):
                    executed[matrix] = executed.get(matrix, 0) + times
        return executed

    def _tell(self, runs: Sequence[_ThreadState], failure: KernelError | None, findings: list[KernelFinding] | None) -> None:
        """Hand on what the checks found, or raise it."""
        found = static_findings(self.name, self.entry, self.program, self.checks)
        found += [each for run in runs if run.checked is not None for each in run.checked.found()]
        if failure is not None:
            kind = "memory" if failure.code in _MEMORY_ERRORS else "sync"
            found.append(KernelFinding(check=kind, text=str(failure), instruction=failure.instruction))
        if findings is not None:
            findings += found
        elif found:
            raise KernelCheckError(self.name, found, sum(run.checked.more for run in runs if run.checked is not None)) from failure

    def _parameters(self, arguments: Sequence[Any]) -> npt.NDArray[np.uint8]:
        if len(arguments) != len(self.entry.parameters):
            raise OperandError(f"{self.name} takes {len(self.entry.parameters)} parameters, got {len(arguments)}")
        held = aligned(self.memory.parameter_bytes + 128)
        for variable, value in zip(self.entry.parameters, arguments, strict=True):
            at = self.memory.places[variable.name]
            data = value if isinstance(value, bytes) else (int(value) & (1 << 8 * variable.size) - 1).to_bytes(variable.size, "little")
            if len(data) != variable.size:
                raise OperandError(f"{variable.name} of {self.name} has {variable.size} bytes, got {len(data)}")
            held[at : at + variable.size] = np.frombuffer(data, np.uint8)
        return held

    def describe(self, error: int, context: npt.NDArray[np.int64]) -> str:
        """What went wrong, where."""
        place = {name: int(context[at]) for name, at in _PLACE.items()}
        words_of = _ERRORS.get(error, f"error {error}").format(address=place["error_address"])
        instruction = self.entry.instructions[place["error_instruction"]]
        cta = tuple(place[f"ctaid_{axis}"] for axis in "xyz")
        return f"{self.name}: {words_of}, in program {cta}, warp {place['warp']}, lane {place['error_lane']}, at {instruction}"


def _shares(total: int, threads: int) -> list[tuple[int, int]]:
    parts = min(total, threads * 8 if threads > 1 else max(1, total // 64))
    bounds = [total * part // parts for part in range(parts + 1)]
    return list(pairwise(bounds))


def aligned(size: int, unit: int = 1024) -> npt.NDArray[np.uint8]:
    """Zeroed bytes at a round address."""
    raw = np.zeros(size + unit, np.uint8)
    start = -raw.ctypes.data % unit
    return raw[start : start + size]


@dataclass(eq=False)
class _ThreadState:
    """What one thread works with: contexts and memories of a CTA's warps."""

    kernel: Kernel
    grid: list[int]
    parameters: npt.NDArray[np.uint8]
    ranges: Sequence[tuple[int, int]]
    stop: array[int]
    check: Callable[[Matrix], object] | None
    schedule: WorkSchedule | None
    record: npt.NDArray[np.int64] = field(init=False)
    kept: list[Any] = field(init=False, default_factory=list)
    counts: npt.NDArray[np.int64] = field(init=False)
    """Instructions carried out, by the kind of product."""
    failure: BaseException | None = field(init=False, default=None)
    """What went wrong while the function of a parted warp was made."""

    def __post_init__(self) -> None:
        kernel = self.kernel
        pairs = [*self.ranges, (self.parameters.ctypes.data, self.parameters.ctypes.data + self.parameters.size)]
        self.pairs = np.array(pairs, np.int64).reshape(-1)
        self.counts = np.zeros(2 * warpgrouprecords.FIRST_COUNTER, np.int64)
        self.tensor = TensorRun(kernel.tensor_cores, self.check) if kernel.memory.has_tensor_memory else None
        self.contexts: list[npt.NDArray[np.int64]] = []
        helper = helper_address()
        self.helper = _HELPER(helper)
        self.callback = kernel._part(self)
        self.host = _HOST_FUNCTION(self._host)
        parted = kernel._diverged.address if kernel._diverged is not None else int(ctypes.cast(self.callback, ctypes.c_void_p).value or 0)
        self.grows = bool(kernel.program.spins)
        room = max(1, _ROOM // kernel.cluster_size) if self.grows else 1
        self.ctas = np.zeros((room * kernel.cluster_size, CTA_WORDS), np.int64)
        self.checked = CheckRun(kernel, self.grid, self.ranges, helper, room) if kernel.tells is not None else None
        pending = np.zeros((_PENDING, WORK_WORDS), np.int64)
        self.kept = [pending, kernel._table_words]
        self.warpgroup_tables = kernel.warpgroups.addresses()
        self.work_room = aligned(warpgrouprecords.ROOM if kernel.warpgroups.tables else 0)
        self.log = np.empty(ROOM if kernel.traces else 0, np.uint8)
        self.log_words = np.array([self.log.ctypes.data, self.log.ctypes.data + self.log.size], np.int64)
        launch = {
            "operation": words.RUN, "uniform": kernel._uniform.address, "diverged": parted, "warps": kernel.warps,
            "threads": kernel.threads, "grid_x": self.grid[0], "grid_y": self.grid[1], "grid_z": self.grid[2],
            "ctas": self.ctas.ctypes.data, "cluster": kernel.cluster_size, "cluster_x": kernel.cluster[0],
            "cluster_y": kernel.cluster[1], "shared_size": _rounded(kernel.memory.shared_size, 8),
            "cleared": kernel._uniform.cleared_bytes, "grows": int(self.grows), "pending": pending.ctypes.data,
            "pending_size": _PENDING, "stop": self.stop.buffer_info()[0],
        }  # fmt: skip
        if self.schedule is not None:
            launch |= self.schedule.words(int(np.prod(self.grid)) // kernel.cluster_size)
        self.record = np.zeros(64, np.int64)
        for name, value in launch.items():
            self.record[_RUN_PLACE[name]] = value
        self._grow()

    def _grow(self) -> None:
        """Room for one more cluster that runs at the same time."""
        if self.checked is not None:
            self.checked.grow(int(self.record[_RUN_PLACE["room"]]) // self.kernel.cluster_size)
        for rank in range(self.kernel.cluster_size):
            self._grow_by_one(rank)

    def _grow_by_one(self, rank: int) -> None:
        kernel, layout, warps = self.kernel, self.kernel.memory, self.kernel.warps
        place = int(self.record[_RUN_PLACE["room"]])
        shared, local = aligned(max(16, layout.shared_size)), aligned(max(16, layout.local_size * 32 * warps))
        registers = aligned(max(64, kernel._uniform.register_bytes) * warps)
        has_copies = any(each.opcode.startswith(("cp.async.ca.", "cp.async.cg.")) for each in kernel.entry.instructions)
        queue_size = _QUEUE if has_copies else 1
        pcs, queues, barriers = (
            np.zeros(32 * warps, np.int32),
            np.zeros(4 * queue_size * warps, np.int64),
            np.zeros(3 * CTA.barriers, np.int64),
        )
        groups, contexts = np.zeros((warps, 32), np.int64), np.zeros((warps, CONTEXT_WORDS), np.int64)
        self.kept += [shared, registers, local, pcs, queues, barriers, groups]
        self.contexts.append(contexts)
        queues_of_products = np.zeros((-(-warps // 4), warpgrouprecords.QUEUE_WORDS if kernel.warpgroups.tables else 0), np.int64)
        self.kept.append(queues_of_products)
        cta = Cta(-1, contexts.ctypes.data, shared.ctypes.data, barriers.ctypes.data, 0, 0, 0, 0, 0)
        self.ctas[place] = cta
        tensor = self.tensor.memory() if self.tensor is not None else 0
        for warp in range(warps):
            fields = {
                "warp": warp, "registers": registers.ctypes.data + max(64, kernel._uniform.register_bytes) * warp,
                "parameters": self.parameters.ctypes.data, "shared": shared.ctypes.data, "shared_size": layout.shared_size,
                "local": local.ctypes.data + layout.local_size * 32 * warp, "local_size": layout.local_size,
                "constants": layout.constants.ctypes.data, "constants_size": layout.constants.size,
                "nctaid_x": self.grid[0], "nctaid_y": self.grid[1], "nctaid_z": self.grid[2],
                "ntid_x": kernel.block[0], "ntid_y": kernel.block[1], "ntid_z": kernel.block[2],
                "pcs": pcs.ctypes.data + 128 * warp, "queue": queues.ctypes.data + 32 * queue_size * warp,
                "queue_size": queue_size, "ranges": self.pairs.ctypes.data, "range_count": len(self.pairs) // 2,
                "helper": helper_address() if self.checked is None else helper_address("checks"),
                "checks": self.checked.state.ctypes.data if self.checked is not None else 0,
                "defined": self.checked.defined(rank * warps + warp) if self.checked is not None else 0,
                "tables": kernel._table_words.ctypes.data, "counts": self.counts.ctypes.data, "launch": self.record.ctypes.data,
                "cta": self.ctas[place].ctypes.data, "bulk_groups": groups[warp].ctypes.data, "own": contexts[warp].ctypes.data,
                "tensor": tensor, "trace": self.log_words.ctypes.data, "host": int(ctypes.cast(self.host, ctypes.c_void_p).value or 0),
            }  # fmt: skip
            if kernel.warpgroups.tables:
                fields |= {
                    "warpgroup": queues_of_products[warp // 4].ctypes.data, "work_room": self.work_room.ctypes.data,
                    "warpgroup_tables": self.warpgroup_tables.ctypes.data,
                }  # fmt: skip
            for name, value in fields.items():
                contexts[warp, _PLACE[name]] = value
        self.record[_RUN_PLACE["room"]] = place + 1

    def _host(self, address: int, lanes: int, index: int) -> None:
        """A call of a function of the host."""
        context = self._context_at(address)
        try:
            called(
                self.kernel.entry.instructions[index], self.kernel.memory.places, WarpMemory(context, self.pairs), lanes, self.kernel.name
            )
        except BaseException as error:  # as of a parted warp
            self.failure = error
            context[_PLACE["error"]], context[_PLACE["error_instruction"]] = words.TRAPPED, index

    def notes(self) -> npt.NDArray[np.uint8]:
        """What was noted since the last time."""
        size = int(self.log_words[0]) - self.log.ctypes.data
        self.log_words[0] = self.log.ctypes.data
        return self.log[:size]

    def know(self, kernel: Kernel) -> None:
        """The function of a parted warp is there now."""
        assert kernel._diverged is not None
        self.record[_RUN_PLACE["diverged"]] = kernel._diverged.address
        self.kept.append(kernel._table_words)
        for contexts in self.contexts:
            contexts[:, _PLACE["tables"]] = kernel._table_words.ctypes.data

    def go(self, first: int, last: int) -> None:
        """CTAs first .. last - 1."""
        self.record[_RUN_PLACE["next"]], self.record[_RUN_PLACE["last"]], self.record[_RUN_PLACE["idle"]] = first, last, 0
        while True:
            self.record[_RUN_PLACE["result"]] = words.FINE
            self.helper(self.record.ctypes.data)
            result = int(self.record[_RUN_PLACE["result"]])
            if result != words.STUCK:
                break
            if self.record[_RUN_PLACE["room"]] == len(self.ctas):
                self.record[_RUN_PLACE["grows"]] = 0
            else:
                self._grow()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if result == words.ERROR:
            context = self._context_at(int(self.record[_RUN_PLACE["failed"]]))
            described = self.kernel.describe(int(context[_PLACE["error"]]), context)
            refusal = self.tensor.refusal if self.tensor is not None else None
            if refusal is not None and not isinstance(refusal, MmabitsError):
                raise refusal
            failed = KernelError(f"{described}: {refusal}" if refusal is not None else described)
            failed.code = int(context[_PLACE["error"]])
            failed.instruction = self.kernel.entry.instructions[int(context[_PLACE["error_instruction"]])]
            raise failed from refusal
        if result == words.DEADLOCK:
            raise KernelError(self._deadlock())

    def _context_at(self, address: int) -> npt.NDArray[np.int64]:
        found: npt.NDArray[np.int64] = next(each for contexts in self.contexts for each in contexts if each[_PLACE["own"]] == address)
        return found

    def _deadlock(self) -> str:
        """Which warps wait for what, of the first CTA that does."""
        number = int(self.record[_RUN_PLACE["failed_cta"]])
        place = self.ctas[:, 0].tolist().index(number)
        waits = []
        for context in self.contexts[place]:
            state = int(context[_PLACE["state"]])
            if state == words.DONE:
                continue
            instruction = self.kernel.entry.instructions[int(context[_PLACE["error_instruction"]])]
            if state & 3 == words.BLOCKED:
                at = f" at barrier {int(context[_PLACE['barrier']])},"
            elif instruction.opcode.startswith("mbarrier"):
                at = f" for the mbarrier at {int(context[_PLACE['waited']]) & (1 << words.TAG_SHIFT) - 1:#x} of shared memory,"
            else:
                instruction, at = self._spinning(context), ""
            waits.append(f"warp {int(context[_PLACE['warp']])}{at} {instruction}")
        return f"{self.kernel.name}: a deadlock in program {number}: " + "; ".join(waits)

    def _spinning(self, context: npt.NDArray[np.int64]) -> PtxInstruction:
        """Where the loop begins that a warp is in, or the first of its lanes."""
        place = int(context[_PLACE["segment"]])
        if context[_PLACE["state"]] == words.DIVERGED:
            lanes = (ctypes.c_int32 * 32).from_address(int(context[_PLACE["pcs"]]))
            place = min(each for each in lanes if each >= 0)
        return self.kernel.entry.instructions[self.kernel.program.segments[place].first]
