"""Orders of work that a GPU may take, other than the machine's own: of asynchronous work, of warps and of CTAs."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

from mmabits.emulator.machine.context import AT_ONCE, BACKWARDS, BY_CHANCE, IN_ORDER
from mmabits.isa import OperandError

NAMED = ("usual", "latest", "earliest")


class WorkSchedule(NamedTuple):
    """`"usual"`: asynchronous work as late as its waits allow, warps and CTAs in order, by one thread of the processor; `"latest"`:
    likewise, warps and CTAs backwards; `"earliest"`: work at once, warps and CTAs in order; a number: all by chance.
    """

    name: str | int

    @classmethod
    def of(cls, said: str | int | None) -> WorkSchedule | None:
        """What a user says; None: the usual one, with CTAs shared out to as many threads of the processor as there are.

        Raises:
            OperandError: no such order.
        """
        is_seed = isinstance(said, int) and not isinstance(said, bool) and said >= 0
        if said is not None and not is_seed and said not in NAMED:
            raise OperandError(f"schedule must be {', '.join(map(repr, NAMED))}, a number from 0 on or None, got {said!r}")
        return None if said is None else cls(said)

    def words(self, clusters: int) -> dict[str, int]:
        """Words of context.Launch for a grid of so many clusters."""
        if self.name == "usual":
            return {"order": IN_ORDER}
        if self.name == "earliest":
            return {"order": IN_ORDER, "hastens": AT_ONCE}
        if self.name == "latest":
            return {"order": BACKWARDS, "clusters": clusters, "multiplier": clusters - 1, "offset": clusters - 1}
        draw = random.Random(self.name)
        multiplier = next(each for each in iter(lambda: draw.randrange(1, clusters + 1), None) if math.gcd(each, clusters) == 1)
        return {
            "order": BY_CHANCE, "hastens": BY_CHANCE, "chance": draw.getrandbits(62), "clusters": clusters, "multiplier": multiplier,
            "offset": draw.randrange(clusters),
        }  # fmt: skip
