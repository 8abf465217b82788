"""The records of wgmma: a product's table, a warpgroup's queue, and the numbers that the machine and its helper agree on.

64-bit words in this order, as in context.py.
"""

from __future__ import annotations

from typing import NamedTuple

WGMMA_OPERATION = 32
"""Operation of the helper."""
ISSUE, COMMIT, AWAIT = range(3)
"""What it does."""
TOO_MANY, BAD_DESCRIPTOR, OTHER_PRODUCT = range(48, 51)
"""Errors."""
FIRST_COUNTER = 512
"""Place of the counters of these products."""
QUEUE = 128
"""Products of a warpgroup that may be under way."""
GROUPS = 64
MOST_STEPS = 16
"""Products along K that become one call."""
FRAGMENT = 4 * 32 * 4
"""Bytes of A in a warp's registers."""
ROOM = (256 + 512 + 128) << 10
"""Bytes to work in: A at 0, B, and D."""
ROOM_B, ROOM_D, ROOM_CALL = 256 << 10, 768 << 10, 880 << 10


class WarpgroupProduct(NamedTuple):
    """What a product is: words of a table."""

    n: int
    k: int
    a_bits: int
    b_bits: int
    a_held: int
    """How the engine holds codes of A (operands.put_code),"""
    b_held: int
    """and of B."""
    d_bits: int
    a_in_registers: int
    a_mn_major: int
    b_mn_major: int
    engine: int
    records: int
    """Address of the engine's records for 1, 2, ... products along K,"""
    record_words: int
    """and words of each."""
    counter: int
    registers: int
    """Accumulators of a lane,"""
    slots: int
    """and the address of their places in the warp's registers."""


class Queue(NamedTuple):
    """The beginning of a warpgroup's queue; then come groups and products."""

    issued: int
    """By each of the four warps."""
    issued_1: int
    issued_2: int
    issued_3: int
    committed: int
    """Groups that each has closed."""
    committed_1: int
    committed_2: int
    committed_3: int
    done: int
    """Products done."""


HEAD = len(Queue._fields)
ENTRIES = HEAD + 4 * GROUPS
ENTRY = 4
"""Words of a product: the number of its table, the descriptors of A and B, whether C counts."""
FRAGMENTS = ENTRIES + ENTRY * QUEUE
QUEUE_WORDS = FRAGMENTS + QUEUE * 4 * FRAGMENT // 8
"""Words of a warpgroup's queue."""
