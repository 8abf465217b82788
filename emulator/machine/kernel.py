"""A kernel compiled for the processor, and its launches."""

from __future__ import annotations

import ctypes
import threading
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.emulator.engine import products
from mmabits.emulator.engine.record import Variant
from mmabits.emulator.engine.shares import SharedWork
from mmabits.emulator.machine import context as words
from mmabits.emulator.machine import exchange, memory, tensor
from mmabits.emulator.machine.compiler import compiled
from mmabits.emulator.machine.context import CONTEXT_WORDS, Context, Launch
from mmabits.emulator.machine.fusion import contracted
from mmabits.emulator.machine.program import Program, base_of, program
from mmabits.emulator.machine.ptx import Entry, Module, Variable, read_ptx
from mmabits.emulator.machine.tensor import Products, Tables, tables_of
from mmabits.emulator.machine.warp import Handler, WarpCode
from mmabits.isa import EmulationError, OperandError
from mmabits.isa.instructions import Instruction as Matrix

HANDLERS: Final[dict[str, Handler]] = {**memory.HANDLERS, **exchange.HANDLERS, **tensor.HANDLERS}
_QUEUE: Final = 32 * 512
"""Copies that a warp may have under way: more are carried out early, which the hardware may do at any time."""
_WARP_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)
_HELPER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_PLACE: Final = {name: place for place, name in enumerate(Context._fields)}
_RUN_PLACE: Final = {name: place for place, name in enumerate(Launch._fields)}

_ERRORS: Final = {
    words.OUTSIDE: "an access at {address:#x}, outside the memory that the kernel was given",
    words.MISALIGNED: "a misaligned access at {address:#x}",
    words.BAD_BARRIER: "a barrier that lanes or warps come to in ways that do not fit",
    words.PARTIAL: "an instruction of the whole warp, to which only some of its lanes came",
    words.TRAPPED: "a trap",
}


class KernelError(EmulationError):
    """A kernel did what a GPU ends it for, or leaves undefined."""


def _rounded(size: int, unit: int) -> int:
    return (size + unit - 1) // unit * unit


class _Memory:
    """Where the variables and parameters of a kernel lie."""

    def __init__(self, module: Module, entry: Entry, dynamic: int, warps: int) -> None:
        self.places: dict[str, int] = {}
        self.dynamic, self.warps = dynamic, warps
        self.parameter_bytes = self._place(entry.parameters, 0)
        variables = [*module.variables.values(), *entry.variables.values()]
        static = [each for each in variables if each.space == "shared" and each.size]
        self.shared_size = self._place(static, 0)
        opened = [each for each in variables if each.space == "shared" and not each.size]
        start = _rounded(self.shared_size, max([16, *(each.align for each in opened)]))
        for each in opened:
            self.places[each.name] = start
        self.shared_size = _rounded(start + dynamic if opened or dynamic else self.shared_size, 16)
        self.local_size = _rounded(self._place([each for each in variables if each.space == "local"], 0), 16)
        self.constants = self._constants([each for each in variables if each.space in ("global", "const")])

    def _place(self, variables: Sequence[Variable], start: int) -> int:
        at = start
        for each in variables:
            at = _rounded(at, each.align)
            self.places[each.name] = at
            at += each.size
        return at

    def _constants(self, variables: list[Variable]) -> npt.NDArray[np.uint8]:
        size = self._place(variables, 0)
        held = np.zeros(_rounded(size, 16) + 16, np.uint8)
        for each in variables:
            at = self.places[each.name]
            unit = max(1, int(each.kind.strip("bsuf")) // 8)
            for number in each.initial:
                held[at : at + unit] = np.frombuffer((number & (1 << 8 * unit) - 1).to_bytes(unit, "little"), np.uint8)
                at += unit
            self.places[each.name] |= words.CONSTANT_TAG << words.TAG_SHIFT
        return held

    def address_of(self, name: str) -> int:
        """The place of a variable in its space."""
        found = self.places.get(name)
        if found is None:
            raise OperandError(f"nothing in the PTX is called {name}")
        return found


def helper_address() -> int:
    """The address of helpers.helper, compiled or taken from the files of machine code."""
    from mmabits.emulator.engine.machine_code import function_address

    nothing = np.dtype(np.uint8)
    return function_address(Variant("machine", nothing, nothing, nothing))


@dataclass(eq=False)
class _Code:
    """A warp's function."""

    address: int
    owner: Any
    text: str
    register_bytes: int
    products: Products


class Kernel:
    """One kernel of a PTX module.

    Args:
        module: PTX text, or what read_ptx made of it.
        name: of the kernel; the only one if None.
        arch: architecture of the tensor cores.
        shared: bytes of dynamic shared memory.
        threads: of a CTA, where the text does not say; three numbers for x, y, z.
        contracts: fuse products and sums as ptxas does by default; not so with `--fmad=false`.

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
        contracts: bool = True,
    ) -> None:
        module = read_ptx(module) if isinstance(module, str) else module
        names = module.kernels
        if name is None and len(names) != 1:
            raise OperandError(f"the PTX has {len(names)} kernels: {', '.join(names)}")
        name = names[0] if name is None else name
        if name not in names:
            raise OperandError(f"no kernel is called {name!r}; there are: {', '.join(names)}")
        self.entry, self.arch = module.entries[name], arch
        self.contracts = contracts
        self.fused = 0
        """Sums that became fused multiply-adds."""
        if contracts:
            self.entry, self.fused = contracted(self.entry)
        told = self.entry.attributes.get("reqntid")
        self.block = tuple([*(told or threads or (32, 1, 1)), 1, 1][:3])
        self.threads = int(np.prod(self.block))
        self.warps = -(-self.threads // 32)
        self.memory = _Memory(module, self.entry, shared, self.warps)
        self.program: Program = program(self.entry)
        self._lock = threading.Lock()
        self._uniform = self._compiled(diverged=False)
        self._diverged: _Code | None = None
        self._tables: list[Tables] = []
        self._table_words = np.zeros(0, np.int64)
        self._enlist(self._uniform)

    @property
    def name(self) -> str:
        """The kernel's name in the PTX."""
        return self.entry.name

    @property
    def has_atomics(self) -> bool:
        """Whether CTAs may see each other: they run one after another then."""
        return any(base_of(each.opcode) in ("atom", "red") for each in self.entry.instructions)

    @property
    def opcodes(self) -> tuple[str, ...]:
        """Opcodes in the text, each once."""
        return tuple(dict.fromkeys(each.opcode for each in self.entry.instructions))

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Tensor-core instructions in the text."""
        return tuple(self._uniform.products.counts)

    # ---------------------------------------------------------------------------------------------------------------- code

    def _compiled(self, *, diverged: bool) -> _Code:
        code = WarpCode(self.program, HANDLERS, self.memory, diverged=diverged)
        products = Products(self.arch)
        if diverged:
            products.kinds = list(self._uniform.products.kinds)
        code.products = products
        function = code.text("warp")
        text = "\n".join([*sorted(code.globals.values()), *sorted(code.declared), function])
        address, owner = compiled(text, "warp")
        return _Code(address, owner, text, code.register_bytes, products)

    def _enlist(self, code: _Code) -> None:
        self._tables += [tables_of(kind) for kind in code.products.kinds[len(self._tables) :]]
        self._table_words = np.array([word for each in self._tables for word in each.words] or [0], np.int64)

    def _part(self, run: _Run) -> Any:
        """What stands in for the function of a parted warp until one parts: it is compiled then."""

        def parted(context: int) -> int:
            with self._lock:
                if self._diverged is None:
                    self._diverged = self._compiled(diverged=True)
                    self._enlist(self._diverged)
            run.know(self)
            return int(_WARP_FUNCTION(self._diverged.address)(context))

        return _WARP_FUNCTION(parted)

    # --------------------------------------------------------------------------------------------------------------- launch

    def launch(self, grid: Sequence[int], arguments: Sequence[Any], ranges: Sequence[tuple[int, int]]) -> dict[Matrix, int]:
        """Run the kernel.

        Args:
            grid: CTAs along x, y and z.
            arguments: integers, or bytes, for each parameter.
            ranges: addresses, first and one past the last, of what the kernel may read and write.

        Returns:
            How often each tensor-core instruction was carried out by a warp.

        Raises:
            KernelError: what a GPU would end the kernel for; memory stays as far as it was written.
        """
        sizes = [*map(int, grid), 1, 1][:3]
        total = sizes[0] * sizes[1] * sizes[2]
        if total == 0:
            return {}
        parameters = self._parameters(arguments)
        count = 1 if self.has_atomics else min(products.threads_wanted(), total)
        stop = array("q", (0,))
        runs = [_Run(self, sizes, parameters, ranges, stop) for _ in range(count)]
        idle = deque(runs)

        def share(first: int, last: int) -> None:
            run = idle.pop()  # there are as many as threads
            try:
                run.go(first, last)
            finally:
                idle.append(run)

        SharedWork(share, _shares(total, count), stop, kept=(parameters, runs)).run(count)
        executed: dict[Matrix, int] = {}
        for run in runs:
            for table, count in zip(self._tables, run.counts.tolist(), strict=False):
                if count:
                    executed[table.kind.matrix] = executed.get(table.kind.matrix, 0) + count
        return executed

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
class _Run:
    """What one thread works with: contexts and memories of a CTA's warps."""

    kernel: Kernel
    grid: list[int]
    parameters: npt.NDArray[np.uint8]
    ranges: Sequence[tuple[int, int]]
    stop: array[int]
    contexts: npt.NDArray[np.int64] = field(init=False)
    record: npt.NDArray[np.int64] = field(init=False)
    kept: list[Any] = field(init=False, default_factory=list)
    counts: npt.NDArray[np.int64] = field(init=False)
    """Instructions carried out, by the kind of product."""

    def __post_init__(self) -> None:
        kernel, layout = self.kernel, self.kernel.memory
        warps = kernel.warps
        pairs = [*self.ranges, (self.parameters.ctypes.data, self.parameters.ctypes.data + self.parameters.size)]
        ranges = np.array(pairs, np.int64).reshape(-1)
        shared = aligned(max(16, layout.shared_size))
        registers = aligned(max(64, kernel._uniform.register_bytes) * warps)
        local = aligned(max(16, layout.local_size * 32 * warps))
        pcs, queues, barriers = np.zeros(32 * warps, np.int32), np.zeros(4 * _QUEUE * warps, np.int64), np.zeros(32, np.int64)
        has_copies = any(each.opcode.startswith("cp.async") for each in kernel.entry.instructions)
        if not has_copies:
            queues = np.zeros(4 * warps, np.int64)
        self.contexts = np.zeros((warps, CONTEXT_WORDS), np.int64)
        self.kept = [ranges, shared, registers, local, pcs, queues, barriers]
        self.counts = np.zeros(256, np.int64)
        helper = helper_address()
        self.helper = _HELPER(helper)
        for warp in range(warps):
            fields = {
                "warp": warp, "registers": registers.ctypes.data + max(64, kernel._uniform.register_bytes) * warp,
                "parameters": self.parameters.ctypes.data, "shared": shared.ctypes.data, "shared_size": layout.shared_size,
                "local": local.ctypes.data + layout.local_size * 32 * warp, "local_size": layout.local_size,
                "constants": layout.constants.ctypes.data, "constants_size": layout.constants.size,
                "nctaid_x": self.grid[0], "nctaid_y": self.grid[1], "nctaid_z": self.grid[2],
                "ntid_x": kernel.block[0], "ntid_y": kernel.block[1], "ntid_z": kernel.block[2],
                "pcs": pcs.ctypes.data + 128 * warp, "queue": queues.ctypes.data + (32 * _QUEUE if has_copies else 32) * warp,
                "queue_size": _QUEUE if has_copies else 1, "ranges": ranges.ctypes.data, "range_count": len(pairs), "helper": helper,
                "tables": kernel._table_words.ctypes.data, "counts": self.counts.ctypes.data,
            }  # fmt: skip
            for name, value in fields.items():
                self.contexts[warp, _PLACE[name]] = value
        self.kept.append(kernel._table_words)
        self.callback = kernel._part(self)
        parted = kernel._diverged.address if kernel._diverged is not None else int(ctypes.cast(self.callback, ctypes.c_void_p).value or 0)
        launch = {
            "operation": words.RUN, "uniform": kernel._uniform.address, "diverged": parted, "warps": warps, "threads": kernel.threads,
            "grid_x": self.grid[0], "grid_y": self.grid[1], "grid_z": self.grid[2], "contexts": self.contexts.ctypes.data,
            "shared": shared.ctypes.data, "shared_size": _rounded(layout.shared_size, 8), "barriers": barriers.ctypes.data,
            "stop": self.stop.buffer_info()[0],
        }  # fmt: skip
        self.record = np.zeros(64, np.int64)
        for name, value in launch.items():
            self.record[_RUN_PLACE[name]] = value

    def know(self, kernel: Kernel) -> None:
        """The function of a parted warp is there now."""
        assert kernel._diverged is not None
        self.record[_RUN_PLACE["diverged"]] = kernel._diverged.address
        self.kept.append(kernel._table_words)
        self.contexts[:, _PLACE["tables"]] = kernel._table_words.ctypes.data

    def go(self, first: int, last: int) -> None:
        """CTAs first .. last - 1."""
        self.record[_RUN_PLACE["first"]], self.record[_RUN_PLACE["last"]], self.record[_RUN_PLACE["result"]] = first, last, words.FINE
        self.helper(self.record.ctypes.data)
        result = int(self.record[_RUN_PLACE["result"]])
        if result == words.ERROR:
            context = self.contexts[self.record[_RUN_PLACE["failed_warp"]]]
            raise KernelError(self.kernel.describe(int(context[_PLACE["error"]]), context))
        if result == words.DEADLOCK:
            raise KernelError(self._deadlock())

    def _deadlock(self) -> str:
        cta = int(self.record[_RUN_PLACE["failed_cta"]])
        waits = []
        for context in self.contexts:
            state = int(context[_PLACE["state"]])
            if state != words.DONE:
                number = int(context[_PLACE["barrier"]])
                instruction = self.kernel.entry.instructions[int(context[_PLACE["error_instruction"]])]
                waits.append(f"warp {int(context[_PLACE['warp']])} at barrier {number}, {instruction}")
        return f"{self.kernel.name}: a deadlock in program {cta}: " + "; ".join(waits)
