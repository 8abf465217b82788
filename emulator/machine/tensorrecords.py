"""The records of tensor memory and its asynchronous work: 64-bit words in this order, as in context.py."""

from __future__ import annotations

from typing import Final, NamedTuple

from mmabits.isa.memories import TENSOR_MEMORY

SIGNED: Final = 17
"""How an array holds elements: in 8, 16 or 32 bits as they are, or narrower ones widened with their sign to 8."""


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
    """Addresses in tensor memory; of a copy the CTAs that make it."""
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
    group: int
    """CTAs that work together: 1 or 2."""


(
    TENSOR_COLUMNS, NOT_LEFT, NOT_ALLOCATED, TENSOR_ADDRESS, NOT_FREED, OUTSIDE_SHARED, BAD_DESCRIPTOR, SCALES_DIFFER, REFUSED, NO_PAIR,
) = range(101, 111)  # fmt: skip
"""Errors."""
TENSOR: Final = 101
"""The operation of the helper,"""
ALLOCATE, FREE, CLOSE, LOAD, STORE, MULTIPLY, COPY, COMMIT = range(8)
"""and what it does."""
TENSOR_COMMIT: Final = 101
"""The kind of asynchronous work that tells an mbarrier that products are done."""
CELLS: Final = TENSOR_MEMORY.lanes * TENSOR_MEMORY.columns
"""Of a CTA."""
FIRST_COUNTER: Final = 256
"""Place of the counters of tcgen05's products: those of mma.sync come before."""
KNOWN: Final = 256
"""Instruction descriptors that a run remembers."""
