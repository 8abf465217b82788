"""What a row of the opcode table says."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from mmabits.isa.evidence import Evidence


class OpcodeKind(enum.Enum):
    """What an opcode acts on."""

    ELEMENTWISE = "registers of one lane"
    MEMORY = "memory, by loads, stores and atomic operations"
    CONTROL = "the order of execution"
    WARP = "the lanes of a warp"
    BARRIER = "the warps of a CTA"
    ASYNC = "memory, at some later time"
    TENSOR = "matrices"
    HINT = "nothing that a result shows"


class ErrorMeasure(enum.Enum):
    """What an error is counted in."""

    ULP = "units in the last place, from the correctly rounded result"
    RELATIVE = "of the exact result"
    ABSOLUTE = "of 1"


@dataclass(frozen=True, kw_only=True)
class Bound:
    """An error that the PTX manual promises not to exceed."""

    most: float
    measure: ErrorMeasure
    magnitudes: tuple[float, float] = (0.0, math.inf)
    """Of the last operand, for which it holds."""

    def __str__(self) -> str:
        power = math.log2(self.most)
        size = f"{self.most:g} ulp" if self.measure is ErrorMeasure.ULP else f"{self.measure.name.lower()} 2^{power:.5g}"
        low, high = self.magnitudes
        return size + (f" for magnitudes from {low:g} to {high:g}" if self.magnitudes != (0.0, math.inf) else "")


@dataclass(frozen=True, kw_only=True, eq=False)
class Opcode:
    """One PTX opcode with its modifiers and types.

    Attributes:
        name: PTX spelling, `add.rn.ftz.f32`.
        kind: what it acts on.
        section: anchor in the PTX manual.
        sources: PTX types of the operands read; empty where an opcode of its kind takes them apart itself.
        results: PTX types of what is written. A second result may be left out by the program.
        reference: the operands' bits to the results' bits of one lane, in plain Python; None where more than one lane takes part.
        evidence: how well the result's bits are known.
        note: what is assumed, where the evidence is inferred.
        fusible: whether ptxas may contract it with its neighbour: a product or sum without a rounding of its own.
        constants: operands, by their place, that are constants of the instruction.
        bounds: errors that the PTX manual allows, of functions that are not correctly rounded.
        since: the compute capability that the manual asks for, of those functions that it asks one for: 90 of sm_90.
    """

    name: str
    kind: OpcodeKind = OpcodeKind.ELEMENTWISE
    section: str
    sources: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    reference: Callable[..., Any] | None = None
    evidence: Evidence = Evidence.PUBLISHED
    note: str = ""
    fusible: bool = False
    constants: tuple[int, ...] = ()
    bounds: tuple[Bound, ...] = ()
    since: int = 0

    @property
    def base(self) -> str:
        """The first word: `add`."""
        return self.name.partition(".")[0]

    @property
    def is_defined(self) -> bool:
        """Whether the PTX manual defines every bit of the result: then there is nothing to measure."""
        return self.evidence > Evidence.INFERRED and not self.bounds

    @property
    def parts(self) -> tuple[str, ...]:
        """All words."""
        return tuple(self.name.split("."))

    def __repr__(self) -> str:
        return f"<opcode {self.name}>"


_WIDTH: Final = re.compile(r"[bsuf]f?(\d+)(?:x(\d+))?")
_PACKED_BYTES: Final = {"e4m3x2": 16, "e5m2x2": 16, "e2m3x2": 16, "e3m2x2": 16, "ue8m0x2": 16, "e2m1x2": 8, "e4m3x4": 32, "e5m2x4": 32,
                        "e2m3x4": 32, "e3m2x4": 32, "e2m1x4": 16, "tf32": 32, "pred": 1}  # fmt: skip


def width(type_name: str) -> int:
    """Bits of a PTX type: 32 of `f32`, `f16x2` and `b32`, 1 of `pred`."""
    if type_name in _PACKED_BYTES:
        return _PACKED_BYTES[type_name]
    found = _WIDTH.fullmatch(type_name)
    if found is None:
        raise ValueError(f"no PTX type is called {type_name}")
    return int(found[1]) * int(found[2] or 1)
