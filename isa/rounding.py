"""The rounding modes of IEEE 754 that PTX has qualifiers for. Conversions have further ones (mmabits.emulator.codecs)."""

from __future__ import annotations

import enum


class Rounding(enum.Enum):
    """To where a number is rounded that lies between two."""

    NEAREST_EVEN = "rn"
    TOWARD_ZERO = "rz"
    DOWN = "rm"
    UP = "rp"


QUALIFIERS: tuple[str, ...] = tuple(mode.value for mode in Rounding)
"""As PTX writes them."""
