"""mbarriers, compiled by Numba: phases that end when as many have arrived as were expected, and all bytes that were announced have come.

The 64-bit word of an mbarrier is opaque to kernels. Here: bit 0 the phase, bits 1 to 20 arrivals that are still to come, bits 21 to 40
those of every phase, bits 41 to 62 bytes still to come (with a sign), bit 63 set while the word is an mbarrier. The state that an
arrival gives is the word as it was before.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmabits.emulator.engine.jit import array_at, jit
from mmabits.emulator.machine.context import MBARRIER_BYTES, MBARRIER_COMPLETES, MBARRIER_COUNT, NO_MBARRIER

MOST = (1 << 20) - 1
"""Greatest count of arrivals, and of bytes."""
_VALID = np.int64(-(1 << 63))
_BYTES_SHIFT = 41
_BYTES_MASK = (1 << 22) - 1


@jit
def is_mbarrier(word: Any) -> Any:
    """Whether a word is an mbarrier's."""
    return word < 0


@jit
def phase_of(word: Any) -> Any:
    """The parity of its phase, or of a state."""
    return word & 1


@jit
def left_of(word: Any) -> Any:
    """Arrivals still to come."""
    return word >> 1 & MOST


@jit
def bytes_of(word: Any) -> Any:
    """Bytes still to come; negative where they came before they were announced."""
    held = word >> _BYTES_SHIFT & _BYTES_MASK
    return held - (_BYTES_MASK + 1) if held > _BYTES_MASK >> 1 else held


@jit
def _word(phase: Any, left: Any, expected: Any, size: Any) -> Any:
    return _VALID | phase | left << 1 | expected << 21 | (size & _BYTES_MASK) << _BYTES_SHIFT


@jit
def begin(count: int) -> Any:
    """The word of mbarrier.init, or 0 of a count that is none."""
    return _word(0, count, count, 0) if 0 < count <= MOST else np.int64(0)


@jit
def change(place: int, arrivals: int, size: int, dropped: int, completes: bool) -> int:
    """Arrivals at the mbarrier at an address, `size` bytes more to come, `dropped` arrivals fewer in later phases; 0, or an error.

    Where `completes` is false the phase must not end.
    """
    cell = array_at(place, 1, np.int64)
    word = cell[0]
    if not is_mbarrier(word):
        return NO_MBARRIER
    left, expected, bytes_left = left_of(word) - arrivals, (word >> 21 & MOST) - dropped, bytes_of(word) + size
    if left < 0 or expected < 0:
        return MBARRIER_COUNT
    if bytes_left > MOST or bytes_left < -MOST:
        return MBARRIER_BYTES
    phase = phase_of(word)
    if left == 0 and bytes_left == 0:
        if not completes:
            return MBARRIER_COMPLETES
        phase, left = phase ^ 1, expected
    cell[0] = _word(phase, left, expected, bytes_left)
    return 0
