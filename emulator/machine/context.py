"""The records through which a launch, its warps and the helpers speak: 64-bit words in this order."""

from __future__ import annotations

from typing import Final, NamedTuple


class Context(NamedTuple):
    """What a warp works with."""

    segment: int
    """Where it goes on."""
    warp: int
    """Its number in the CTA."""
    registers: int
    """Address of the registers that live across segments."""
    parameters: int
    """Address of the kernel's parameters."""
    shared: int
    """Address of shared memory,"""
    shared_size: int
    """and its bytes."""
    local: int
    """Address of local memory, one lane after another,"""
    local_size: int
    """and the bytes of a lane."""
    constants: int
    """Address of the module's variables,"""
    constants_size: int
    """and their bytes."""
    ctaid_x: int
    ctaid_y: int
    ctaid_z: int
    nctaid_x: int
    nctaid_y: int
    nctaid_z: int
    ntid_x: int
    ntid_y: int
    ntid_z: int
    alive: int
    """Lanes that have not ended, a bit each."""
    state: int
    """One of the states below."""
    barrier: int
    """Which barrier it waits at,"""
    expected: int
    """and for how many threads: 0 for all."""
    pcs: int
    """Address of 32 segments, one for each lane, while the warp is diverged; -1 of a lane that has ended."""
    queue: int
    """Address of the queue of asynchronous copies,"""
    queue_size: int
    """and how many copies it holds at most,"""
    queued: int
    """and how many it holds,"""
    group: int
    """and how many groups were closed."""
    ranges: int
    """Address of pairs: beginning and end of what the kernel may read and write,"""
    range_count: int
    """and how many."""
    last_range: int
    """The one found last."""
    error: int
    """0, or one of the errors below,"""
    error_instruction: int
    """where,"""
    error_lane: int
    """of which lane,"""
    error_address: int
    """and at which address."""
    helper: int
    """Address of helpers.helper."""
    tables: int
    """Address of four words for each kind of product: addresses of its Shape, of the engine's record and function, words of the record."""
    counts: int
    """Address of a counter for each of them."""
    launch: int
    """Address of the Launch,"""
    cta: int
    """and of the Cta that the warp belongs to."""
    arrives: int
    """1 where it only arrives at the barrier and goes on."""
    held: int
    """Lanes of a parted warp that wait, or that had their turn; a bit each. Cleared at every turn."""
    parked: int
    """Those of them that wait for the others at a barrier."""
    waited: int
    """Address of the mbarrier that a failed wait looked at last, as the kernel names it."""
    hurry: int
    """Whether a wait that fails may say so, instead of giving up its turn: set where nothing else goes on."""
    events: int
    """Counts what other warps may wait for: changes of mbarriers, atomic operations that change something, waits that end."""
    bulk_groups: int
    """Address of 32 words: groups of bulk copies that each lane has closed."""
    cluster_phase: int
    """Phase of the cluster's barrier at which it arrived."""
    own: int
    """Address of this record."""
    tensor: int
    """Address of the CTA's TensorMemory (tensorrecords.py); 0 where the kernel has none."""
    warpgroup: int
    """Address of the queue of the warp's warpgroup (warpgroups.py); 0 where the kernel has no wgmma."""
    work_room: int
    """Address of room for its products to work in."""
    warpgroup_tables: int
    """Address of the addresses of their tables (warpgrouprecords.WarpgroupProduct)."""
    counted: int
    """Of the barrier that it arrives at: lanes that its reduction counts."""
    reduced: int
    """Lanes that were counted at the barrier that let it go."""
    returns: int
    """1 while it is at a barrier with a reduction, whose result it comes back for."""
    trace: int
    """Address of two words: where the next note goes, and where there is no more room (trace.py); 0 where nothing is noted."""
    checks: int
    """Address of the CheckState (checkrecords.py); 0 where nothing is checked."""
    defined: int
    """Address of lanes in which registers were written, where that is checked."""
    host: int
    """Address of the function that prints for the kernel and tells of assertions (host.py)."""
    clock: int
    """What the warp's clock shows: how often it was read, times TICKS."""


class Cta(NamedTuple):
    """A CTA that runs, or room for one."""

    number: int
    """Which of the grid; -1 of none."""
    contexts: int
    """Address of a Context for each of its warps."""
    shared: int
    """Address of its shared memory."""
    barriers: int
    """Address of 16 barriers: threads that have come, threads expected; then what the reductions of each counted."""
    cluster: int
    """Address of the first Cta of its cluster; they lie one after another."""
    rank: int
    """Its number in the cluster."""
    arrived: int
    """In the first Cta: threads that arrived at the cluster's barrier,"""
    phase: int
    """and how often that barrier was complete."""
    circles: int
    """How many more barriers may belong to a loop that looks at memory (turns.py)."""


class Launch(NamedTuple):
    """What turns.run takes."""

    operation: int
    """RUN."""
    uniform: int
    """Address of the warp's function."""
    diverged: int
    """Address of its function for a warp whose lanes went different ways."""
    warps: int
    """Of a CTA."""
    threads: int
    """Of a CTA."""
    next: int
    """CTAs next .. last - 1 have not begun, x fastest."""
    last: int
    grid_x: int
    grid_y: int
    grid_z: int
    ctas: int
    """Address of the records of CTAs that run at the same time, Cta,"""
    room: int
    """and how many there are: a multiple of the cluster."""
    cluster: int
    """CTAs of a cluster,"""
    cluster_x: int
    """and along x,"""
    cluster_y: int
    """and y."""
    shared_size: int
    """Bytes of a CTA's shared memory."""
    cleared: int
    """Bytes of a warp's registers that are zeros when it begins."""
    grows: int
    """Whether CTAs may wait for others, so that STUCK asks for more room."""
    pending: int
    """Address of the queue of asynchronous work that barriers and groups wait for: Work, oldest first,"""
    pending_size: int
    """how many records it has room for,"""
    pending_first: int
    """and which are in it: first .. last - 1."""
    pending_last: int
    stop: int
    """Address of a word: other than 0 ends the run between two segments."""
    idle: int
    """Rounds in which nothing happened but waiting."""
    result: int
    """0, or one of the outcomes below."""
    failed: int
    """Address of the context of the warp that failed first, or 0."""
    failed_cta: int
    order: int
    """In which order warps take turns: IN_ORDER, BACKWARDS or BY_CHANCE,"""
    hastens: int
    """when asynchronous work is carried out: as late as its waits allow, AT_ONCE or BY_CHANCE,"""
    chance: int
    """what the next chance hangs on,"""
    clusters: int
    """clusters of the grid where they run in another order than theirs, else 0: cluster n of it is"""
    multiplier: int
    """n times this"""
    offset: int
    """and so many on, modulo their number."""


class Work(NamedTuple):
    """A piece of asynchronous work. A record has WORK_WORDS words: what follows these is its own."""

    kind: int
    """One of the kinds below; 0 where it is done."""
    barrier: int
    """Address in this process of the mbarrier that it completes, or 0: then a group waits for it."""
    context: int
    """Of the warp that asked for it."""
    lane: int
    group: int
    """Of bulk copies of that lane."""
    instruction: int


READY, BLOCKED, DONE, DIVERGED = range(4)
"""States of a warp."""
ENDED, AT_BARRIER, PARTED, MET, FAILED, WAITING, TIRED = range(7)
"""What a warp's function returns: it ended, came to a barrier, its lanes parted or met again, it failed, it waits for what others do, it
ran for long."""
IN_ORDER, BACKWARDS, BY_CHANCE, AT_ONCE = range(4)
"""Orders of work."""
FINE, ERROR, DEADLOCK, STOPPED, STUCK = range(5)
"""Outcomes of a run; STUCK: all CTAs that run wait, and others have not begun."""
(
    OUTSIDE, MISALIGNED, BAD_BARRIER, PARTIAL, TRAPPED, NO_MBARRIER, MBARRIER_COUNT, MBARRIER_BYTES, MBARRIER_COMPLETES,
    NO_MAP, BAD_MAP, BAD_REDUCTION, NO_TARGET,
) = range(1, 14)  # fmt: skip
TRACE_FULL = 99
"""Errors."""
RUN, MOVE, ASYNC, MATRIX, PRODUCT, SHUFFLE, ATOMIC, MBARRIER, CLUSTER_BARRIER, BULK, MAP_FIELD = range(11)
"""Operations of the helper."""
NOTHING, COPIES_ARRIVE, BOX_TO_SHARED, BOX_TO_GLOBAL, BYTES_COPY, STORE = range(6)
"""Kinds of asynchronous work: cp.async.mbarrier.arrive, boxes of tensors, runs of bytes, st.async."""
ASK_BOX, ASK_BYTES, CLOSE_GROUP, WAIT_GROUP, ASK_STORE = range(5)
"""What BULK does."""
INIT, INVALIDATE, EXPECT, COMPLETE, ARRIVE, ARRIVE_EXPECT, TEST, TRY, ARRIVE_AFTER_COPIES = range(9)
"""What MBARRIER does."""

WINDOW_SHIFT: Final = 24
"""Of an address of shared memory in a cluster: above it stands the CTA's rank and one, or 0 for the CTA's own."""
SHARED_TAG: Final = 1
LOCAL_TAG: Final = 2
CONSTANT_TAG: Final = 3
"""Top bytes of generic addresses; 0 is the program's own memory."""
TAG_SHIFT: Final = 56
TICKS: Final = 64
"""By which a warp's clock goes on with each reading."""
CONTEXT_WORDS: Final = len(Context._fields)
CTA_WORDS: Final = len(Cta._fields)
WORK_WORDS: Final = 32
