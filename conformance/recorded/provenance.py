"""Who computed the results that a file holds."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from mmabits.isa.errors import OperandError


class Provenance(enum.StrEnum):
    """Only the first says anything of hardware."""

    HARDWARE = "hardware"
    EMULATOR = "emulator"
    """The emulator in a GPU's place."""
    PEER = "peer"
    """Another emulator."""
    COMPUTED = "computed"
    """The exact model."""


def check_provenance(kind: str, allowed: Sequence[Provenance]) -> None:
    """Refuse a kind that a format does not know.

    Raises:
        OperandError: it is another.
    """
    if kind not in allowed:
        raise OperandError(f"kind is {kind!r}; allowed: {', '.join(allowed)}")


__all__ = ["Provenance", "check_provenance"]
