"""For tests of kernels: a result is held against what the hardware's arithmetic allows, and a failure explains itself."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.emulator.api import prepare
from mmabits.emulator.codecs import as_codes
from mmabits.emulator.interop import as_doubles
from mmabits.isa import Instruction
from mmabits.research.tolerance import Tolerance, tolerance
from mmabits.research.trace import Addition, Trace, trace

_STEPS_SHOWN: Final = 4


class ToleranceExceeded(AssertionError):
    """A kernel's result lies farther from the exact one than the arithmetic allows."""


def assert_within_tolerance(
    d: Any,
    a: Any,
    b: Any,
    c: Any = None,
    *,
    instruction: str | Instruction,
    arch: str,
    scale_a: Any = None,
    scale_b: Any = None,
    promote_every: int | None = None,
    probability: float | None = None,
) -> Tolerance:
    """Fail where a result lies outside what `mmabits.tolerance` allows, and explain the worst element.

    NaN must be where the exact result is NaN, and infinities where it is infinite or can overflow, of that sign: `Tolerance.violations`.

    Args:
        d: (..., M, N) result of the kernel under test, any real dtype; NumPy, torch or JAX.
        a: (..., M, K), as for `mmabits.tolerance`, and so on for the rest.
        b: (..., K, N).
        c: (..., M, N) or None.
        instruction: see `mmabits.tolerance`.
        arch: likewise.
        scale_a: likewise.
        scale_b: likewise.
        promote_every: likewise.
        probability: likewise.

    Returns:
        The tolerance, for further looks.

    Raises:
        ToleranceExceeded: a subclass of AssertionError; its text has the worst element's account, step by step.
        MmabitsError: as `mmabits.tolerance`.
    """
    settings = {"instruction": instruction, "arch": arch, "scale_a": scale_a, "scale_b": scale_b, "promote_every": promote_every}
    allowed = tolerance(a, b, c, probability=probability, **settings)
    outside = allowed.violations(d)
    if not outside.any():
        return allowed
    given = as_doubles(d, "d")
    with np.errstate(all="ignore"):
        excess = np.where(outside, np.abs(given - allowed.reference) / allowed.finite, -1.0)
        excess[outside & ~(np.isfinite(given) & np.isfinite(allowed.reference))] = np.inf
    worst = tuple(int(i) for i in np.unravel_index(int(np.argmax(np.nan_to_num(excess, nan=np.inf, posinf=np.inf))), excess.shape))
    raise ToleranceExceeded(_message(given, allowed, outside, worst, _element(worst, a, b, c, **settings)))


def _element(worst: tuple[int, ...], a: Any, b: Any, c: Any, **settings: Any) -> Trace:
    call = prepare(a, b, c, **settings)
    *batch, row, column = worst

    def matrix(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(np.broadcast_to(array, (*call.batch, *array.shape[-2:]))[tuple(batch)])

    instruction = call.instruction
    codes_a = as_codes(matrix(call.a)[row], instruction.a_type)
    codes_b = as_codes(np.ascontiguousarray(matrix(call.b)[:, column]), instruction.b_type)
    start = 0 if call.c is None else int(matrix(call.c).view(f"uint{8 * call.c.dtype.itemsize}")[row, column])
    scales: dict[str, Any] = {}
    if call.scale_a is not None and call.scale_b is not None:
        scales["scale_a"] = matrix(call.scale_a).view(np.uint8)[row]
        scales["scale_b"] = np.ascontiguousarray(matrix(call.scale_b).view(np.uint8)[:, column])
    return trace(instruction, call.lowering.arch, codes_a, codes_b, start, promote_every=call.promote, **scales)


def _message(given: npt.NDArray[Any], allowed: Tolerance, outside: npt.NDArray[Any], worst: tuple[int, ...], found: Trace) -> str:
    value, exact = given[worst], allowed.reference[worst]
    lines = [
        f"{int(outside.sum())} of {outside.size} elements lie farther from the exact result than {allowed.instruction} on "
        f"{allowed.arch} allows; the worst is {list(worst)}:",
        f"  result  {value:.9g}",
        f"  exact   {exact:.9g}",
        f"  allowed {_allowed(value, allowed, worst)}",
        f"  the instruction itself gives {found.result}; how, in {len(found.steps)} steps:",
    ]
    for event in found.events[:_STEPS_SHOWN]:
        if isinstance(event, Addition):
            lines.append(f"    {event.why}: {event.total} + {event.chain} = {event.result}")
        else:
            lost = float(event.lost_by_alignment)
            lines.append(
                f"    step {event.number}: k = {event.k[0]}..{event.k[-1]}, largest exponent {event.largest}, "
                f"last place 2^{event.last_place}, alignment cuts {lost:.3g}, accumulator {event.result}"
            )
    if len(found.events) > _STEPS_SHOWN:
        lines.append(f"    ... and {len(found.events) - _STEPS_SHOWN} more")
    return "\n".join(lines)


def _allowed(value: float, allowed: Tolerance, worst: tuple[int, ...]) -> str:
    """What one element may be, and how far the result is from that where a distance says something."""
    bound, exact = allowed.finite[worst], allowed.reference[worst]
    special = {"NaN": allowed.may_be_nan, "+infinity": allowed.may_be_above, "-infinity": allowed.may_be_below}
    named = [name for name, flags in special.items() if flags[worst]]
    if bound < 0:
        return f"{' or '.join(named)} alone"
    others = f", or {' or '.join(named)}" if named else ""
    if not np.isfinite(value):
        return f"{bound:.3g} away{others}"
    times = abs(value - exact) / bound if bound else np.inf
    return f"{bound:.3g} away{others}, found {abs(value - exact):.3g} away ({times:.3g} times that)"


__all__ = ["ToleranceExceeded", "assert_within_tolerance"]
