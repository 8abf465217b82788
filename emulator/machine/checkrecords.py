"""The records of checked runs: 64-bit words in these orders, as in context.py, and the numbers that the compiled part writes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from mmabits.isa import OperandError
from mmabits.isa.errors import nearest

CHECKS: Final = ("memory", "init", "races", "sync")
"""Checks that there are, in the order of the documentation."""


class CheckState(NamedTuple):
    """What the checks of a run share."""

    helper: int
    """Address of the helper that carries out what was looked at."""
    checks: int
    """Which are asked for: bits INIT, RACES, SYNC."""
    groups: int
    """Address of a CheckGroup for each cluster that may run at the same time."""
    findings: int
    """Address of findings, FINDING_WORDS words each,"""
    found: int
    """how many there are,"""
    more: int
    """and how many there was no room for."""
    context: int
    """Address of the context whose warp was looked at last,"""
    running: int
    """and its lanes that met last,"""
    meets: int
    """and at which instruction."""
    strict_tensor: int
    """Whether the kernel has tcgen05.fence: without any, the order of threads is taken to be enough."""
    flags: int
    """Address of 32 bits for each instruction: RELEASES, ACQUIRES, STRONG."""
    ranges: int
    """Address of three words for each piece of global memory: first address, one past the last, its first granule,"""
    range_count: int
    """and how many."""
    global_words: int
    """Address of the records of global memory, GLOBAL_WORDS 32-bit words for each granule; 0 where it is not looked at."""
    global_granule: int
    """Bytes of a granule, a power of two."""
    released: int
    """Address of a word for each CTA of the grid: the moment at which its cluster last released something in global memory,"""
    acquired: int
    """and at which it acquired what another had released."""
    moment: int
    """Counts accesses to global memory."""
    scratch: int
    """Address of 16 bytes: a row that stmatrix writes."""


class CheckGroup(NamedTuple):
    """The clocks and shadows of a cluster."""

    number: int
    """Of its first CTA, -1 before the first."""
    ctas: int
    warps: int
    """Of a CTA."""
    threads: int
    """Of the cluster."""
    columns: int
    """Of a row."""
    layers: int
    """Of a row."""
    rows: int
    """Address of a row of 32-bit clocks for each thread: layer after layer."""
    barriers: int
    """Address of a row for each barrier of each CTA,"""
    arrivals: int
    """and of ARRIVAL_WORDS words: threads that have come, warps that wait, the first instruction, threads that are expected; behind them
    the phase of the cluster's barrier that was seen."""
    cluster_row: int
    """Address of two rows: what arrived at the cluster's barrier, and what left it."""
    clocks: int
    """Address of a 32-bit clock for each warp, then of its waits for tcgen05.ld, and of those for tcgen05.st;"""
    blocked: int
    """of the barrier that it waits at, one more than its number, or 0,"""
    fenced: int
    """of whether a thread has had a fence of memory (32 bits each),"""
    tensor_clocks: int
    """and of how much each thread has asked tcgen05 for."""
    base_0: int
    """First column of each kind of agent."""
    base_1: int
    base_2: int
    base_3: int
    base_4: int
    base_5: int
    base_6: int
    base_7: int
    mbarriers: int
    """Address of MBARRIER_WORDS words for each mbarrier,"""
    mbarrier_count: int
    """how many there are,"""
    mbarrier_rows: int
    """and of two rows for each: what arrived in this phase, and in those that ended."""
    waited: int
    """Address of the last phase, and one, that a thread waited for (32 bits): mbarrier after mbarrier."""
    shadow: int
    """Address of a CTA's write records: granules of shared memory, then cells of tensor memory, RECORD_WORDS 32-bit words each,"""
    heads: int
    """of the first node of the reads of each,"""
    granules: int
    """how many a CTA has of shared memory,"""
    places: int
    """and in all."""
    granule: int
    """Bytes of one, a power of two."""
    nodes: int
    """Address of nodes of reads, NODE_WORDS 32-bit words each,"""
    node_count: int
    next_node: int
    free_node: int
    local: int
    """Address of a byte for each byte of local memory: 1 where it was written."""
    local_size: int
    """Bytes of a thread."""
    defined: int
    """Address of lanes in which registers were written (32 bits): warp after warp,"""
    defined_count: int
    """and how many registers are followed."""
    tensor_known: int
    """Address of what each warp's lanes knew of threads when they last asked tcgen05 for something: warp after warp, layer after layer."""


RECORD_WORDS: Final = 4
"""Agent and one (0 of nothing), clock, lanes, instruction."""
NODE_WORDS: Final = 5
"""Next node, agent, clock, lanes, instruction."""
GLOBAL_WORDS: Final = 12
"""Of the last write, and then of one read: first CTA of the cluster and one (0 of none), thread, clock, instruction, moment, whether it
was atomic."""
ARRIVAL_WORDS: Final = 4
MBARRIER_WORDS: Final = 6
"""Place, parity, phases that ended, thread that initialised it and one (0 of none), its clock, instruction."""
MBARRIERS: Final = 96
"""That a cluster's checks tell apart; what comes after shares the last."""
FINDING_WORDS: Final = 16
"""Kind, space, address, CTA, warp, lane, instruction, agent, lane and instruction of the access before, what else, how often."""
FINDINGS: Final = 256
"""Different findings that are kept."""
AGENT_SHIFT: Final = 20
ATOMIC, WROTE, ANY_PROXY = 1 << 28, 1 << 29, 1 << 30
"""Marks of an agent: the access was atomic, and wrote; it needs no fence to the async proxy."""
THREAD, COPY, BULK_GROUP, TENSOR_CORE, TENSOR_LOAD, TENSOR_STORE, WARPGROUP, MBARRIER_AGENT = range(8)
"""Kinds of agents: lanes; cp.async, bulk groups and tcgen05 of lanes; tcgen05.ld, tcgen05.st and wgmma of warps; mbarriers."""
PLAIN, PROXY, BEFORE, AFTER = range(4)
"""Layers of a row: what happened before, the same with a fence to the async proxy on the way, with tcgen05.fence::before_thread_sync, and
with tcgen05.fence::after_thread_sync behind that."""
RELEASES, ACQUIRES, STRONG = 1, 2, 4
"""Flags of instructions: what others that see it may count on, what it may count on, that it takes part in no race with its like."""
INIT, RACES, SYNC = 1, 2, 4
"""Bits of the checks."""
CHECK: Final = 200
"""The operation of the helper that only checks,"""
(
    AT_BARRIER, WARP_BARRIER, PROXY_FENCE, FENCE, TENSOR_BEFORE, TENSOR_AFTER, WAIT_LOADS, WAIT_STORES, MEETS, READS, IN_FLIGHT, BEGINS,
    ENDS,
) = range(13)  # fmt: skip
"""and what it is told."""
(
    WRITE_WRITE, WRITE_READ, READ_WRITE, UNWRITTEN, UNWRITTEN_REGISTER, PART_OF_BLOCK, ABSENT_LANES, NOT_NAMED, ABSENT_SOURCE,
    MISSED_PHASE, NOT_INITIALISED, REGISTERS_IN_FLIGHT, NO_WGMMA_FENCE, NOT_WAITED_LOAD, FAILED,
) = range(15)  # fmt: skip
"""Kinds of findings."""
SHARED, TENSOR, LOCAL, GLOBAL, REGISTERS, NO_SPACE = range(6)
"""Spaces of findings."""


def check_names(checks: str | Iterable[str]) -> tuple[str, ...]:
    """Names of checks, in order, each once.

    Raises:
        OperandError: no such check.
    """
    given = (checks,) if isinstance(checks, str) else tuple(checks)
    for each in given:
        if each not in CHECKS:
            raise OperandError(f"no check is called {each!r}{nearest(str(each), CHECKS)}; there are: {', '.join(CHECKS)}")
    return tuple(each for each in CHECKS if each in given)
