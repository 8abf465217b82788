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
    tensor: int
    """Address of the CTA's TensorMemory; 0 where the kernel has none."""


class TensorMemory(NamedTuple):
    """The tensor memory of a CTA."""

    cells: int
    """Address of its cells of 32 bits, lane after lane."""
    blocks: int
    """Address of a word for every 32 columns: 0, or one more than the first column of the allocation that they belong to."""
    closed: int
    """1 where the CTA gave up the right to allocate."""
    queue: int
    """Address of the queue of its asynchronous work, TensorTask, oldest first,"""
    queue_size: int
    """how many records it has room for,"""
    first: int
    """and which are in it: first .. last - 1."""
    last: int
    known: int
    """Address of what instruction descriptors mean: kind of product, descriptor, address of its Multiply,"""
    known_count: int
    """and how many there are."""
    resolve: int
    """Address of the function that finds one more: it takes the address of such three words."""
    room_a: int
    """Addresses of room for the operands of a product,"""
    room_b: int
    room_d: int
    room_scale_a: int
    room_scale_b: int
    call: int
    """and for a record of the engine."""


class TensorTask(NamedTuple):
    """A product or a copy of tcgen05 that waits."""

    is_copy: int
    context: int
    """Address of the context of the warp that asked for it."""
    lane: int
    instruction: int
    table: int
    """Address of a Multiply."""
    d: int
    """Address in tensor memory."""
    a: int
    """Descriptor in shared memory, or address in tensor memory."""
    a_is_cells: int
    b: int
    """Descriptor; of a copy its shape."""
    scale_a: int
    """Addresses in tensor memory."""
    scale_b: int
    bytes: int
    """First bytes of the scales of A, and of B two bits higher; of a copy the bits of packed elements, or 0."""
    adds: int
    """Whether D is read."""
    mask_0: int
    """Lanes of D that are not written."""
    mask_1: int
    mask_2: int
    mask_3: int


class Multiply(NamedTuple):
    """What an instruction of tcgen05.mma is."""

    m: int
    n: int
    k: int
    d_held: int
    """Bits of an accumulator."""
    blocks: int
    """Scales of a row; 0 without."""
    slot_bits: int
    """Bits that an element of A takes in tensor memory,"""
    slot_shift: int
    """and the first of its code in there."""
    a_bits: int
    """Of a code,"""
    a_elements: int
    """in 16 bytes of shared memory,"""
    a_held: int
    """and how the engine's arrays hold it (operands.put_code)."""
    a_mn_major: int
    b_bits: int
    b_elements: int
    b_held: int
    b_mn_major: int
    engine: int
    """Address of the engine's function,"""
    record: int
    """of its record,"""
    record_words: int
    """and the words of that."""
    number: int
    """Place of its counter."""
    chains: int
    """Whether instructions one after another along K may be one call."""


class Launch(NamedTuple):
    """What helpers.run takes."""

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
    first: int
    """CTAs first .. last - 1 are run, x fastest."""
    last: int
    grid_x: int
    grid_y: int
    grid_z: int
    contexts: int
    """Address of a Context for each warp."""
    shared: int
    shared_size: int
    barriers: int
    """Address of 16 barriers: threads that have come, threads expected."""
    stop: int
    """Address of a word: other than 0 ends the run between two segments."""
    result: int
    """0, or one of the outcomes below."""
    failed_cta: int
    failed_warp: int


READY, BLOCKED, DONE, DIVERGED = range(4)
"""States of a warp."""
ENDED, AT_BARRIER, PARTED, MET, FAILED = range(5)
"""What a warp's function returns: it ended, came to a barrier, its lanes parted or met again, it failed."""
FINE, ERROR, DEADLOCK, STOPPED = range(4)
"""Outcomes of a run."""
OUTSIDE, MISALIGNED, BAD_BARRIER, PARTIAL, TRAPPED = range(1, 6)
"""Errors."""
(
    TENSOR_COLUMNS, NOT_LEFT, NOT_ALLOCATED, TENSOR_ADDRESS, NOT_FREED, OUTSIDE_SHARED, BAD_DESCRIPTOR, SCALES_DIFFER, REFUSED,
) = range(101, 110)  # fmt: skip
"""Errors of tensor memory."""
RUN, MOVE, ASYNC, MATRIX, PRODUCT, SHUFFLE, ATOMIC = range(7)
TENSOR = 101
ALLOCATE, FREE, CLOSE, LOAD, STORE, MULTIPLY, COPY, COMMIT = range(8)
"""What TENSOR does."""
"""Operations of the helper."""

SHARED_TAG: Final = 1
LOCAL_TAG: Final = 2
CONSTANT_TAG: Final = 3
"""Top bytes of generic addresses; 0 is the program's own memory."""
TAG_SHIFT: Final = 56
CONTEXT_WORDS: Final = len(Context._fields)
TENSOR_CELLS: Final = 128 * 512
"""Of a CTA: 128 lanes of 512 columns."""
