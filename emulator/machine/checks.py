"""Checks of compiled kernels that no GPU makes: what they find, and the memory that they work with.

A checked launch runs other machine code than a plain one, on one thread: what plain launches cost does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.emulator.machine import checkrecords as record
from mmabits.emulator.machine.checkrecords import CheckGroup, CheckState
from mmabits.emulator.machine.inflight import missing_fences, unawaited_loads
from mmabits.emulator.machine.program import Program, base_of
from mmabits.emulator.machine.ptx import Entry, Immediate, PtxInstruction, Register
from mmabits.isa import OperandError
from mmabits.isa.memories import CTA, TENSOR_MEMORY
from mmabits.isa.opcodes import width

_BITS: Final = {"memory": 0, "init": record.INIT, "races": record.RACES, "sync": record.SYNC}
_MOST_GRANULES: Final = 1 << 26
_MOST_THREADS: Final = 4096
_NODES: Final = 1 << 16
"""Reads that a cluster's checks keep at least."""
_CHECK_OF: Final = {
    record.WRITE_WRITE: "races", record.WRITE_READ: "races", record.READ_WRITE: "races", record.UNWRITTEN: "init",
    record.UNWRITTEN_REGISTER: "init", record.PART_OF_BLOCK: "sync", record.ABSENT_LANES: "sync", record.NOT_NAMED: "sync",
    record.ABSENT_SOURCE: "sync", record.MISSED_PHASE: "sync", record.NOT_INITIALISED: "races", record.REGISTERS_IN_FLIGHT: "races",
    record.NO_WGMMA_FENCE: "races", record.NOT_WAITED_LOAD: "races",
}  # fmt: skip
_SPACE: Final = ("shared memory", "tensor memory", "local memory", "global memory", "registers", "")
_AGENTS: Final = {
    record.COPY: "cp.async of warp {warp}, lane {lane}", record.BULK_GROUP: "a bulk copy of warp {warp}, lane {lane}",
    record.TENSOR_CORE: "tcgen05 for warp {warp}, lane {lane}", record.TENSOR_LOAD: "warp {warp}", record.TENSOR_STORE: "warp {warp}",
    record.WARPGROUP: "wgmma for warp {warp}", record.MBARRIER_AGENT: "a copy that completes an mbarrier",
    record.THREAD: "warp {warp}, lane {lane}",
}  # fmt: skip
_WAITS: Final = {
    record.COPY: "cp.async.wait_group of the lane that copied, and a barrier behind it",
    record.BULK_GROUP: "cp.async.bulk.wait_group of the thread that copied, and a barrier behind it",
    record.TENSOR_CORE: "tcgen05.commit and a wait for its mbarrier", record.TENSOR_LOAD: "tcgen05.wait::ld, and a barrier behind it",
    record.TENSOR_STORE: "tcgen05.wait::st, and a barrier behind it",
    record.WARPGROUP: "wgmma.wait_group of that warp, and a barrier behind it",
    record.MBARRIER_AGENT: "a wait for the phase of the mbarrier that the copy completes",
}  # fmt: skip


def bits_of(checks: Sequence[str]) -> int:
    """The same as bits of checkrecords."""
    return sum(_BITS[each] for each in checks)


@dataclass(frozen=True, kw_only=True)
class KernelFinding:
    """Something that a check found."""

    check: str
    """One of CHECKS."""
    text: str
    """What it is, with both accesses and what is missing."""
    instruction: PtxInstruction | None
    """The later access; its `line` is that of the PTX, its `location` that of the source."""
    before: PtxInstruction | None = None
    """The earlier access."""
    program: tuple[int, int, int] | None = None
    """CTA of the later access; None where the text alone says it."""
    warp: int = 0
    lane: int = 0
    space: str = ""
    address: int = 0
    missing: str = ""
    """What would have kept the accesses apart."""
    times: int = 1
    """How often it came: others between the same two instructions are counted only."""

    def __str__(self) -> str:
        again = f" ({self.times:,} times)" if self.times > 1 else ""
        return f"{self.check}: {self.text}{again}"


def flags_of(instruction: PtxInstruction) -> int:
    """What an access to memory says of its order."""
    words = instruction.opcode.split(".")
    flags = 0
    if base_of(instruction.opcode) in ("atom", "red") or {"volatile", "relaxed", "acquire", "release", "mmio"} & set(words):
        flags |= record.STRONG
    if {"release", "acq_rel"} & set(words):
        flags |= record.RELEASES
    if {"acquire", "acq_rel"} & set(words):
        flags |= record.ACQUIRES
    return flags


def _size_of(instruction: PtxInstruction) -> int:
    """Bytes of an access of a lane."""
    words = instruction.opcode.split(".")
    base = words[0]
    if base in ("ld", "st", "atom", "red", "ldu"):
        count = next((int(word[1:]) for word in words if word in ("v2", "v4", "v8")), 1)
        return max(1, width(words[-1]) * (count if base in ("ld", "st") else 1) // 8)
    if instruction.opcode.startswith(("cp.async.ca.", "cp.async.cg.")):
        size = instruction.operands[2]
        return size.number if isinstance(size, Immediate) else 4
    if instruction.opcode.startswith("mbarrier."):
        return 8
    return 4 if instruction.opcode.startswith(("tcgen05.alloc", "st.async")) else 16


def granule_of(entry: Entry, space: str) -> int:
    """The smallest access to a space: accesses are aligned, so none parts what is so large."""
    others = {
        "shared": ("global", "local", "param", "const"),
        "global": ("shared", "shared::cta", "shared::cluster", "local", "param", "const"),
    }
    sizes = [16]
    for each in entry.instructions:
        words = each.opcode.split(".")
        touches = words[0] in ("ld", "st", "ldu", "atom", "red") or (
            each.opcode.startswith(("cp.async.ca.", "cp.async.cg.")) or (space == "shared" and words[0] in ("mbarrier", "tcgen05", "st"))
        )
        if touches and not any(word in others[space] for word in words[: 1 + len(words)] if words[0] != "cp"):
            sizes.append(_size_of(each))
    return 1 << (min(sizes).bit_length() - 1)


class CheckRun:
    """The memory of the checks of one launch, and what they found.

    Args:
        kernel: what runs: machine.kernel.Kernel.
        grid: CTAs along x, y, z.
        ranges: addresses that the kernel may read and write.
        helper: address of the plain helper.
        room: clusters that may run at the same time.
    """

    def __init__(self, kernel: Any, grid: Sequence[int], ranges: Sequence[tuple[int, int]], helper: int, room: int) -> None:
        self.kernel, self.grid = kernel, tuple(grid)
        self._kept: list[npt.NDArray[Any]] = []
        self._cells: list[list[npt.NDArray[Any]]] = []
        opcodes = kernel.opcodes
        self.bits = bits_of(kernel.checks)
        self.groups = self._zeros(room * len(CheckGroup._fields), np.int64)
        self.findings = self._zeros(record.FINDINGS * record.FINDING_WORDS, np.int64)
        flags = np.array([flags_of(each) for each in kernel.entry.instructions], np.int32)
        self._kept.append(flags)
        total = int(np.prod(self.grid))
        pieces, words, granule = self._global(ranges)
        moments = self._zeros(2 * total, np.int64)
        strict = any(each.startswith("tcgen05.fence") for each in opcodes)
        self.state = np.array(CheckState(
            helper, self.bits, self.groups.ctypes.data, self.findings.ctypes.data, 0, 0, 0, 0, 0, int(strict), flags.ctypes.data,
            pieces.ctypes.data, len(pieces) // 3, words.ctypes.data if words.size else 0, granule, moments.ctypes.data,
            moments.ctypes.data + 8 * total, 0, self._zeros(2, np.int64).ctypes.data,
        ), np.int64)  # fmt: skip

    def _zeros(self, count: int, dtype: Any) -> npt.NDArray[Any]:
        made = np.zeros(max(1, count), dtype)
        self._kept.append(made)
        return made

    def _global(self, ranges: Sequence[tuple[int, int]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], int]:
        """Pieces of global memory, their records, and the bytes of a granule."""
        granule = granule_of(self.kernel.entry, "global")
        merged: list[list[int]] = []
        for first, last in sorted(ranges):
            if merged and first <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], last)
            elif last > first:
                merged.append([first, last])
        rows, at = [], 0
        for first, last in merged:
            rows += [first, last, at]
            at += last // granule - first // granule + 1
        if not self.bits & record.RACES:
            at = 0
        if at > _MOST_GRANULES:
            raise OperandError(
                f"{self.kernel.name}: {at:,} places of global memory to check for races, of {_MOST_GRANULES:,} that there may be: "
                "check a smaller launch"
            )
        pieces = np.array(rows or [0, 0, 0], np.int64)
        self._kept.append(pieces)
        return pieces, self._zeros(at * record.GLOBAL_WORDS, np.int32) if at else np.zeros(0, np.int32), granule

    def grow(self, number: int) -> None:
        """Room for one more cluster."""
        kernel = self.kernel
        ctas, warps = kernel.cluster_size, kernel.warps
        lanes, all_warps = 32 * warps * ctas, warps * ctas
        if lanes > _MOST_THREADS:
            raise OperandError(f"{kernel.name}: checks of clusters of {lanes:,} threads; there may be {_MOST_THREADS:,}")
        opcodes = kernel.opcodes
        has_tensor = kernel.memory.has_tensor_memory
        used = {
            record.THREAD: lanes,
            record.COPY: lanes if any(each.startswith("cp.async") for each in opcodes) else 0,
            record.BULK_GROUP: lanes if any(each.startswith(("cp.async.bulk", "cp.reduce.async")) for each in opcodes) else 0,
            record.TENSOR_CORE: lanes if has_tensor else 0, record.TENSOR_LOAD: all_warps if has_tensor else 0,
            record.TENSOR_STORE: all_warps if has_tensor else 0,
            record.WARPGROUP: all_warps if any(each.startswith("wgmma") for each in opcodes) else 0,
            record.MBARRIER_AGENT: record.MBARRIERS,
        }  # fmt: skip
        bases, columns = [], 0
        for kind in range(len(used)):
            bases.append(columns)
            columns += used[kind]
        layers = 4 if has_tensor else 2
        row = layers * columns
        granule = granule_of(kernel.entry, "shared")
        granules = -(-kernel.memory.shared_size // granule)
        places = granules + (TENSOR_MEMORY.lanes * TENSOR_MEMORY.columns if has_tensor else 0)
        nodes = max(_NODES, 4 * places * ctas)
        registers = len(kernel.tells.registers) if kernel.tells is not None else 0
        sizes = [
            (row * lanes, np.int32), (row * ctas * CTA.barriers, np.int32), (record.ARRIVAL_WORDS * ctas * CTA.barriers + 1, np.int64),
            (2 * row, np.int32), (3 * all_warps, np.int32), (all_warps, np.int32), (lanes, np.int32), (lanes, np.int32),
        ]  # fmt: skip
        arrays = [self._zeros(count, dtype).ctypes.data for count, dtype in sizes]
        mbarriers = self._zeros(record.MBARRIERS * record.MBARRIER_WORDS, np.int64).ctypes.data
        mbarrier_rows = self._zeros(2 * row * record.MBARRIERS, np.int32).ctypes.data
        waited = self._zeros(lanes * record.MBARRIERS, np.int32).ctypes.data
        shadow = self._zeros(places * ctas * record.RECORD_WORDS, np.int32).ctypes.data
        heads = self._zeros(places * ctas, np.int32).ctypes.data
        node_words = self._zeros(nodes * record.NODE_WORDS, np.int32).ctypes.data
        local = self._zeros(lanes * kernel.memory.local_size, np.uint8).ctypes.data
        defined = self._zeros(all_warps * registers, np.int32).ctypes.data
        tensor_known = self._zeros(all_warps * layers * lanes, np.int32).ctypes.data if has_tensor else 0
        made = [
            -1, ctas, warps, lanes, columns, layers, *arrays, *bases, mbarriers, 0, mbarrier_rows, waited, shadow, heads, granules, places,
            granule, node_words, nodes, 1, 0, local, kernel.memory.local_size, defined, registers, tensor_known,
        ]  # fmt: skip
        size = len(CheckGroup._fields)
        self.groups[size * number : size * (number + 1)] = made
        self._defined = defined, registers

    def defined(self, warp: int) -> int:
        """Where the written registers of a warp stand, of the cluster that was made last."""
        start, registers = self._defined
        return start + 4 * registers * warp

    # ------------------------------------------------------------------------------------------------------------- findings

    def found(self) -> list[KernelFinding]:
        """What was found, the first first."""
        rows = self.findings.reshape(-1, record.FINDING_WORDS)[: int(self.state[CheckState._fields.index("found")])]
        return [self._finding([int(word) for word in each]) for each in rows]

    @property
    def more(self) -> int:
        """Findings beyond those that are kept."""
        return int(self.state[CheckState._fields.index("more")])

    def _rank(self, cta: int) -> int:
        """The number of a CTA in its cluster."""
        wide, high, deep = (int(each) for each in self.kernel.cluster)
        x, y, z = self._program(cta)
        return (z % deep * high + y % high) * wide + x % wide

    def _program(self, cta: int) -> tuple[int, int, int]:
        x, y, _ = self.grid
        return cta % x, cta // x % y, cta // x // y

    def _finding(self, words: list[int]) -> KernelFinding:
        kind, space, address, cta, warp, lane, index, agent, lane_before, index_before, other, times = words[:12]
        instructions = self.kernel.entry.instructions
        instruction = instructions[index]
        before = instructions[index_before] if index_before >= 0 else None
        program = self._program(cta)
        where = f"program {program}, warp {warp}, lane {lane}"
        text, missing = self._words(kind, space, address, cta, warp, lane, instruction, agent, lane_before, before, other, where)
        return KernelFinding(
            check=_CHECK_OF[kind], text=f"{self.kernel.name}: {text}", instruction=instruction, before=before, program=program, warp=warp,
            lane=lane, space=_SPACE[space], address=address, missing=missing, times=times,
        )  # fmt: skip

    def _words(
        self, kind: int, space: int, address: int, cta: int, warp: int, lane: int, instruction: PtxInstruction, agent: int,
        lane_before: int, before: PtxInstruction | None, other: int, where: str,
    ) -> tuple[str, str]:  # fmt: skip
        """What to say of a finding, and what is missing."""
        place = f"{address:#x} of {_SPACE[space]}"
        if kind in (record.WRITE_WRITE, record.WRITE_READ, record.READ_WRITE):
            earlier, later = {
                record.WRITE_WRITE: ("wrote", "writes"), record.WRITE_READ: ("wrote", "reads"), record.READ_WRITE: ("reads", "writes"),
            }[kind]  # fmt: skip
            who, missing = self._before(space, cta, warp, agent, lane_before, other)
            text = f"{instruction} in {where} {later} {place}, which {before} of {who} {earlier}"
            return f"{text}; between them is missing: {missing}", missing
        if kind == record.UNWRITTEN:
            return f"{instruction} in {where} reads {place}, which nothing has written", "a write"
        if kind == record.UNWRITTEN_REGISTER:
            name = next(each.name for each, number in self.kernel.tells.registers.items() if number == address)
            return f"{instruction} in {where} reads the register {name}, which was not written", "a write"
        if kind == record.NOT_INITIALISED:
            who, missing = self._before(space, cta, warp, agent, lane_before, 0)
            text = f"{instruction} in {where} uses the mbarrier at {place}, which {before} of {who} initialised"
            return f"{text}; between them is missing: {missing}", missing
        if kind == record.PART_OF_BLOCK:
            absent = f"{other >> 32} warps of the block did not come" if other >> 32 else f"lanes {_lanes(other)} did not come"
            text = f"{instruction} in {where}: the barrier {address} was reached by part of the block: {absent}"
            return text, "the barrier for all threads"
        if kind == record.ABSENT_LANES:
            return f"{instruction} in {where} names lanes that are not there: {_lanes(other)}", "those lanes"
        if kind == record.NOT_NAMED:
            return f"{instruction} in {where}: the lane runs it, and its mask {address:#x} does not name it", "the lane in the mask"
        if kind == record.ABSENT_SOURCE:
            return f"{instruction} in {where} reads from lane {address}, which does not run it", "that lane"
        if kind == record.MISSED_PHASE:
            text = f"{instruction} in {where}: {other} phases of the mbarrier at {place} ended since the thread last waited for one"
            return text, "waits for those phases"
        return f"{instruction} in {where} names registers of wgmma that is under way", "wgmma.wait_group"

    def _before(self, space: int, cta: int, warp: int, agent: int, lane: int, other: int) -> tuple[str, str]:
        """Who made the earlier access, and what is missing between."""
        agent &= record.ATOMIC - 1
        kind, number = agent >> record.AGENT_SHIFT, agent & (1 << record.AGENT_SHIFT) - 1
        warps = self.kernel.warps
        own = self._rank(cta)
        rank, warp_before = (0, number) if kind == record.MBARRIER_AGENT else divmod(number, warps)
        who = _AGENTS[kind].format(warp=warp_before, lane=lane)
        if space == record.GLOBAL:
            there = (other >> 32) - 1 + rank
            if there != cta:
                return f"{who} of program {self._program(there)}", "an atomic or strong store that releases, and one that acquires"
        if other & 1 and space != record.GLOBAL:
            after = " and ::after_thread_sync" if other & 2 else ""
            return who, "fence.proxy.async" if space == record.SHARED else f"tcgen05.fence::before_thread_sync{after}"
        if kind in _WAITS:
            return who, _WAITS[kind]
        if self.kernel.cluster_size > 1 and rank != own:
            return f"{who} of CTA {rank} of the cluster", "barrier.cluster, or an mbarrier"
        return who, "bar.warp.sync or a barrier" if warp_before == warp else "a barrier (bar.sync, or an mbarrier)"


def _lanes(mask: int) -> str:
    return ", ".join(str(each) for each in range(32) if mask >> each & 1)


def static_findings(name: str, entry: Entry, program: Program, checks: Sequence[str]) -> list[KernelFinding]:
    """What the text alone shows: wgmma without a fence, results of tcgen05.ld that are read before a wait."""
    if "races" not in checks:
        return []
    found: list[KernelFinding] = []
    for index, writer, register in missing_fences(program):
        found.append(_static(name, entry, index, writer, register, "wgmma.fence", "takes", "wrote"))
    for index, writer, register in unawaited_loads(program):
        found.append(_static(name, entry, index, writer, register, "tcgen05.wait::ld", "names", "loads"))
    return found


def _static(
    name: str, entry: Entry, index: int, writer: int, register: Register | None, missing: str, verb: str, did: str
) -> KernelFinding:
    instruction = entry.instructions[index]
    before = entry.instructions[writer] if writer >= 0 else None
    if register is None or before is None:
        text = f"{name}: {instruction} may be reached without {missing}"
    else:
        text = f"{name}: {instruction} {verb} {register.name}, which {before} {did}; between them is missing: {missing}"
    return KernelFinding(check="races", text=text, instruction=instruction, before=before, space="registers", missing=missing)
