"""A product by a library's schedule, as JAX operations around the engine's calls: slices of K, groups of instructions, merges.

XLA's programs for the CPU read and write subnormal f32 numbers as zeros, so sums of slices are added here by way of larger ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from jax import lax
from jax import numpy as jnp

from mmabits.emulator.schedules import Chains, Merge, Schedule
from mmabits.isa import OperandError

Places = npt.NDArray[np.int64]
Multiply = Callable[[Any, Any], Any]
"""(batch, M, K) and (batch, K, N) of codes to (batch, M, N)."""

_UP: Final = 100
_SMALL: Final = np.float32(2.0**-20)
"""Below it both are moved up by 2^100 before they are added; what is subnormal changes no sum of a larger number."""
_LEAST_EXPONENT: Final = -149
_SIGN, _MAGNITUDE, _FRACTION = np.uint32(0x80000000), np.uint32(0x7FFFFFFF), np.uint32(0x007FFFFF)
_LEAST_NORMAL: Final = np.uint32(0x00800000)
_NAN: Final = np.uint32(0x7FFFFFFF)


@dataclass(frozen=True, kw_only=True, eq=False)
class FollowedSchedule:
    """A schedule of tensor cores for one K: which elements each of the engine's products gets."""

    schedule: Schedule
    places: tuple[Places, ...]
    """For each slice, which element of K each element of the instructions is; -1: zero."""

    @classmethod
    def of(cls, schedule: Schedule, k: int, group_of: int, *, bugs: bool) -> FollowedSchedule:
        """A schedule for a product.

        Args:
            schedule: of tensor cores. One that was planned for a larger K than the operands' takes zeros at the end.
            k: elements of K of the operands.
            group_of: elements of K that the instruction takes.
            bugs: whether K's lost tail is lost.

        Raises:
            OperandError: groups longer than the instruction.
        """
        whole = k if schedule.planned is None else schedule.planned.k
        panels = schedule.panels(whole, bugs=bugs)
        found = [_places(schedule, panel.start, panel.stop, group_of) for panel in panels]
        return cls(schedule=schedule, places=tuple(np.where(places < k, places, -1) for places in found))

    @property
    def sizes(self) -> list[int]:
        """Elements of K of each of the engine's products, zeros included."""
        return [len(places) for places in self.places]

    def product(self, multiply: Sequence[Multiply], left: Any, right: Any) -> Any:
        """A B in f32, as `mmabits.emulator.schedules.run.sums` has it.

        Args:
            multiply: the engine's product for each slice.
            left: (batch, M, K) codes.
            right: (batch, K, N) codes.
        """
        merge, form = self.schedule.merge, self.schedule.merge_type
        total: Any = None
        for places, product in zip(self.places, multiply, strict=True):
            part = product(_taken(left, places, 2), _taken(right, places, 1))
            if merge is Merge.PARTS:
                part = _narrowed(part, form)
            total = part if total is None else added(total, part)
            if merge is Merge.TOTAL:
                total = _narrowed(total, form)
        bits = lax.bitcast_convert_type(total, jnp.uint32)
        return lax.bitcast_convert_type(lax.select(lax.ne(total, total), lax.full_like(bits, _NAN), bits), jnp.float32)


def _places(schedule: Schedule, start: int, stop: int, group_of: int) -> Places:
    """Those of one slice."""
    sums = schedule.sums
    assert isinstance(sums, Chains)
    group = sums.group or group_of
    if group > group_of:
        raise OperandError(f"the schedule gives an instruction {group} elements of K, and this one takes {group_of}")
    lead = (stop - start) % sums.lead_block if sums.lead_block else 0
    if group == group_of and lead % group == 0:
        return np.arange(start, stop)
    found: list[int] = []
    for first, last in ((start, start + lead), (start + lead, stop)):
        for at in range(first, last, group):
            members = list(range(at, min(at + group, last)))
            found += members + [-1] * (group_of - len(members))
    return np.array(found)


def _taken(codes: Any, places: Places, axis: int) -> Any:
    if len(places) == codes.shape[axis] and (places == np.arange(len(places))).all():
        return codes
    edges = [(0, 0)] * codes.ndim
    edges[axis] = (0, 1)
    return jnp.take(jnp.pad(codes, edges), np.where(places < 0, codes.shape[axis], places), axis=axis)


def added(x: Any, y: Any) -> Any:
    """The sum of two f32, rounded to nearest, subnormal numbers included."""
    is_small = jnp.logical_and(lax.abs(x) < _SMALL, lax.abs(y) < _SMALL)
    return lax.select(is_small, _lowered(_raised(x) + _raised(y)), x + y)


def _raised(x: Any) -> Any:
    """A number times 2^100, exactly; for what is below `_SMALL`."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    subnormal = (bits & _FRACTION).astype(jnp.int32).astype(jnp.float32) * np.float32(2.0 ** (_LEAST_EXPONENT + _UP))
    subnormal = lax.select((bits & _SIGN) != 0, -subnormal, subnormal)
    return lax.select((bits & _MAGNITUDE) < _LEAST_NORMAL, subnormal, x * np.float32(2.0**_UP))


def _lowered(x: Any) -> Any:
    """A number times 2^-100; exactly, since sums of f32 numbers that are subnormal are exact."""
    units = (lax.abs(x) * np.float32(2.0 ** (-_LEAST_EXPONENT - _UP))).astype(jnp.int32).astype(jnp.uint32)
    sign = lax.bitcast_convert_type(x, jnp.uint32) & _SIGN
    subnormal = lax.bitcast_convert_type(sign | units, jnp.float32)
    return lax.select(lax.abs(x) < np.float32(2.0 ** (-126 + _UP)), subnormal, x * np.float32(2.0**-_UP))


def _narrowed(x: Any, form: str | None) -> Any:
    """A number rounded to f16 or bf16; XLA takes two conversions in a row for none, so that neither may see the other."""
    if form == "f16":
        return lax.optimization_barrier(x.astype(jnp.float16)).astype(jnp.float32)
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return lax.bitcast_convert_type(lax.select(lax.ne(x, x), bits, rounded), jnp.float32)
