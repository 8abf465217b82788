"""`mmabits record --functions`: every function of the special function unit over all its operands.

Kept are the results of the range that argument reduction leaves, and the sums of all blocks (recorded/functions.py). A GPU does the 2^32
operands of one function in a second or less; the emulator in its place takes minutes, so that a rehearsal names fewer blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from mmabits.conformance.record.device import DeviceInfo, EmulatedDevice
from mmabits.conformance.record.nvrtc import compile_source
from mmabits.conformance.recorded.functions import (
    BLOCK,
    BLOCK_BITS,
    SUFFIX,
    Codes,
    FunctionTable,
    Sums,
    block_sum,
    read_function,
    write_function,
)
from mmabits.isa import OperandError, VectorFileError, architecture, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmabits.conformance.record.driver import CudaDevice

ALL_BLOCKS: Final = 1 << 32 - BLOCK_BITS
_ONE, _TWO, _MINUS_ONE, _QUARTER = 0x3F80_0000, 0x4000_0000, 0xBF80_0000, 0x3E80_0000
_OCTAVE: Final = 1 << 23


@dataclass(frozen=True, kw_only=True)
class FunctionPlan:
    """What is kept of a function."""

    opcode: str
    ranges: tuple[tuple[int, int], ...] = ()
    """First code and number of operands whose results are kept; none where the sums are to be those of another function's."""
    bits: int = 32
    """Of an operand."""
    since: int = 0
    """The compute capability that it needs."""

    @property
    def file_name(self) -> str:
        """Of its recording, without the folder."""
        return f"{self.opcode}{SUFFIX}"

    @property
    def blocks(self) -> int:
        """Of operands."""
        return ALL_BLOCKS if self.bits == 32 else 0


def _octaves(*places: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    return tuple((first, count * _OCTAVE) for first, count in places)


_HALF: Final = ((0, 1 << 16),)
PLANS: Final = (
    FunctionPlan(opcode="rcp.approx.ftz.f32", ranges=_octaves((_ONE, 1))),
    FunctionPlan(opcode="rsqrt.approx.ftz.f32", ranges=_octaves((_ONE, 2))),
    FunctionPlan(opcode="sqrt.approx.ftz.f32", ranges=_octaves((_ONE, 2))),
    FunctionPlan(opcode="ex2.approx.ftz.f32", ranges=_octaves((_ONE, 1), (_MINUS_ONE, 1))),
    FunctionPlan(opcode="lg2.approx.ftz.f32", ranges=_octaves((_ONE, 2))),
    FunctionPlan(opcode="sin.approx.ftz.f32", ranges=_octaves((_ONE, 2))),
    FunctionPlan(opcode="cos.approx.ftz.f32", ranges=_octaves((_ONE, 2))),
    FunctionPlan(opcode="tanh.approx.f32", ranges=_octaves((_QUARTER, 4)), since=75),
    FunctionPlan(opcode="rcp.approx.f32"),
    FunctionPlan(opcode="rsqrt.approx.f32"),
    FunctionPlan(opcode="sqrt.approx.f32"),
    FunctionPlan(opcode="ex2.approx.f32"),
    FunctionPlan(opcode="lg2.approx.f32"),
    FunctionPlan(opcode="ex2.approx.f16", ranges=_HALF, bits=16),
    FunctionPlan(opcode="tanh.approx.f16", ranges=_HALF, bits=16, since=75),
    FunctionPlan(opcode="ex2.approx.ftz.bf16", ranges=_HALF, bits=16, since=90),
    FunctionPlan(opcode="tanh.approx.bf16", ranges=_HALF, bits=16, since=90),
)
"""Most valuable first: a run that breaks off has those."""


def plans_for(arch: str, only: Sequence[str] = ()) -> list[FunctionPlan]:
    """What there is to record on an architecture.

    Raises:
        OperandError: no such function, or none of that architecture.
    """
    number = architecture(arch).capability_number
    known = {plan.opcode: plan for plan in PLANS}
    for name in only:
        if name not in known:
            raise OperandError(f"no function {name!r} is recorded{nearest(name, known)}; there are {', '.join(known)}")
    found = [plan for plan in PLANS if plan.since <= number and (not only or plan.opcode in only)]
    if not found:
        raise OperandError(f"{arch} has none of {', '.join(only)}")
    return found


class FunctionDevice(Protocol):
    """Something that computes functions."""

    @property
    def info(self) -> DeviceInfo:
        """What it is."""

    def results(self, plan: FunctionPlan, first: int, count: int) -> Codes:
        """Results for operands that follow one another."""

    def sums(self, plan: FunctionPlan, blocks: Sequence[int]) -> Sums:
        """Sums of blocks of operands."""


# The emulator ------------------------------------------------------------------------------------------------------------


class EmulatedFunctions:
    """The emulator behind the interface of a GPU.

    Args:
        arch: which.
        model: what computes instead of `mmabits.function`, for tests: (opcode, codes) to codes.
    """

    def __init__(self, arch: str, model: Callable[[str, Codes], Codes] | None = None) -> None:
        self._device = EmulatedDevice(arch)
        self._model = model

    @property
    def info(self) -> DeviceInfo:
        """What it is."""
        return self._device.info

    def results(self, plan: FunctionPlan, first: int, count: int) -> Codes:
        """Results for operands that follow one another."""
        codes = np.arange(first, first + count, dtype=np.uint32)
        if self._model is not None:
            return self._model(plan.opcode, codes)
        return computed(plan.opcode, codes, self.info.arch)

    def sums(self, plan: FunctionPlan, blocks: Sequence[int]) -> Sums:
        """Sums of blocks of operands."""
        found = [block_sum(each << BLOCK_BITS, self.results(plan, each << BLOCK_BITS, BLOCK)) for each in blocks]
        return np.array(found, np.uint64)


def computed(opcode: str, codes: Codes, arch: str) -> Codes:
    """What the emulator gives for codes."""
    from mmabits.emulator.machine.calls import function

    narrow = codes.astype(np.uint16) if opcode.endswith("16") else codes
    return np.asarray(function(opcode, narrow, arch=arch)).astype(np.uint32)


# A GPU -------------------------------------------------------------------------------------------------------------------

ENTRY: Final = b"tile"
_SOURCE: Final = """// {opcode}
typedef unsigned u32; typedef unsigned long long u64;
__device__ __forceinline__ u32 f(u32 code) {{ {body} }}
extern "C" __global__ void tile(u32* results, u64* sums, const u64* numbers, u64 first, u64 count) {{
  if (results) {{
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) results[i] = f((u32)(first + i));
    return;
  }}
  __shared__ u64 parts[256];
  for (u64 b = blockIdx.x; b < count; b += gridDim.x) {{
    u64 start = numbers[b] << {bits}, total = 0;
    for (u64 i = threadIdx.x; i < 1ull << {bits}; i += blockDim.x) {{
      u64 code = start + i, mixed = (u64)f((u32)code) + code * 0x9E3779B97F4A7C15ull;
      mixed ^= mixed >> 29; mixed *= 0xBF58476D1CE4E5B9ull; mixed ^= mixed >> 32; total += mixed;
    }}
    parts[threadIdx.x] = total;
    __syncthreads();
    for (int half = 128; half; half >>= 1) {{
      if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
      __syncthreads();
    }}
    if (threadIdx.x == 0) sums[b] = parts[0];
    __syncthreads();
  }}
}}
"""
_WIDE: Final = 'u32 y; asm volatile("{opcode} %0, %1;" : "=r"(y) : "r"(code)); return y;'
_NARROW: Final = 'unsigned short x = (unsigned short)code, y; asm volatile("{opcode} %0, %1;" : "=h"(y) : "h"(x)); return y;'
_THREADS, _GRID = 256, 4096


def source_of(plan: FunctionPlan) -> str:
    """The kernel of a function, CUDA C."""
    body = (_WIDE if plan.bits == 32 else _NARROW).format(opcode=plan.opcode)
    return _SOURCE.format(opcode=plan.opcode, body=body, bits=BLOCK_BITS)


class CudaFunctions:
    """A GPU of this machine."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._functions: dict[str, Any] = {}

    @property
    def info(self) -> DeviceInfo:
        """What it is."""
        return self._device.info

    def results(self, plan: FunctionPlan, first: int, count: int) -> Codes:
        """Results for operands that follow one another."""
        found = np.empty(count, np.uint32)
        self._launch(plan, found, None, first, count)
        return found

    def sums(self, plan: FunctionPlan, blocks: Sequence[int]) -> Sums:
        """Sums of blocks of operands."""
        found = np.empty(len(blocks), np.uint64)
        self._launch(plan, found, np.array(blocks, np.uint64), 0, len(blocks))
        return found

    def _launch(self, plan: FunctionPlan, found: Any, numbers: Sums | None, first: int, count: int) -> None:
        """Run a kernel that fills an array, and wait for it."""
        call = self._device.call
        if plan.opcode not in self._functions:
            module = call("cuModuleLoadData", compile_source(source_of(plan), self.info.arch).cubin)
            self._functions[plan.opcode] = call("cuModuleGetFunction", module, ENTRY)
        with self._memory(found.nbytes) as out, self._memory(0 if numbers is None else numbers.nbytes) as given:
            if numbers is not None:
                call("cuMemcpyHtoD", given, numbers.ctypes.data, numbers.nbytes)
            values = np.array([out if numbers is None else 0, 0 if numbers is None else out, given, first, count], np.uint64)
            addresses = values.ctypes.data + 8 * np.arange(len(values), dtype=np.uint64)
            call("cuLaunchKernel", self._functions[plan.opcode], _GRID, 1, 1, _THREADS, 1, 1, 0, 0, addresses.ctypes.data, 0)
            call("cuCtxSynchronize")
            call("cuMemcpyDtoH", found.ctypes.data, out, found.nbytes)

    @contextmanager
    def _memory(self, size: int) -> Iterator[int]:
        """Memory of the device; none for no bytes."""
        pointer = int(self._device.call("cuMemAlloc", size)) if size else 0
        try:
            yield pointer
        finally:
            if pointer:
                self._device.free(pointer)


# A run -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FunctionOutcome:
    """What became of one function."""

    plan: FunctionPlan
    path: Path
    state: str
    """`recorded`, `kept` from an earlier run, or `failed`."""
    error: str = ""


def record_functions(
    device: FunctionDevice, plans: Sequence[FunctionPlan], folder: Path, *, blocks: int | None = None, command: str = "",
    advance: Callable[[FunctionOutcome], None] = lambda _: None,
) -> list[FunctionOutcome]:  # fmt: skip
    """Record functions one after another. An interrupted run is resumed by the same call.

    Args:
        device: a GPU, or the emulator.
        plans: see `plans_for`.
        folder: for a file each.
        blocks: of 2^20 operands to sum, evenly spread; all 4,096 if None.
        command: the command line, for the manifests.
        advance: called after each.

    Raises:
        VectorFileError: the folder cannot be made.
        DeviceFailed, DeviceUnavailable: the GPU broke off; finished files stay.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VectorFileError(f"{folder}: cannot be made ({error.strerror})") from error
    outcomes = []
    for plan in plans:
        path = folder / plan.file_name
        try:
            state = _record_one(device, plan, path, blocks, command)
            outcome = FunctionOutcome(plan=plan, path=path, state=state)
        except (OperandError, VectorFileError) as error:
            outcome = FunctionOutcome(plan=plan, path=path, state="failed", error=str(error))
        outcomes.append(outcome)
        advance(outcome)
    return outcomes


def _record_one(device: FunctionDevice, plan: FunctionPlan, path: Path, blocks: int | None, command: str) -> str:
    info = device.info
    chosen = _spread(plan.blocks, blocks)
    if path.exists():
        there = read_function(path)
        if (there.arch, there.gpu, there.kind, len(there.blocks)) != (info.arch, info.name, info.kind, len(chosen)):
            raise OperandError(f"{path} is of {there.gpu} ({there.arch}) with {len(there.blocks)} blocks; it is never replaced")
        return "kept"
    results = tuple(device.results(plan, first, count) for first, count in plan.ranges)
    sums = device.sums(plan, chosen) if chosen else np.empty(0, np.uint64)
    write_function(path, FunctionTable(
        opcode=plan.opcode, arch=info.arch, gpu=info.name, kind=info.kind, ranges=plan.ranges, results=results,
        blocks=np.array(chosen, np.int64), sums=sums, recorded=datetime.now(UTC).isoformat(timespec="seconds"), command=command,
        driver=info.driver,
    ))  # fmt: skip
    return "recorded"


def _spread(there: int, wanted: int | None) -> list[int]:
    """So many numbers below another, evenly spread, away from the ends."""
    if wanted is None or wanted >= there:
        return list(range(there))
    return [(2 * each + 1) * there // (2 * wanted) for each in range(wanted)]
