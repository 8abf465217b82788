"""What ptxas makes of products and sums without a rounding of their own, and of constants: rows by assembler and architecture.

Every entry was read out of machine code that the named ptxas made of small PTX texts (tests/machine/test_fusion_check.py makes it
again, from random texts too). None of it is documented.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mmabits.isa.architectures import architecture
from mmabits.isa.evidence import Evidence


@dataclass(frozen=True, kw_only=True)
class ContractionSpec:
    """How one ptxas contracts for some architectures.

    A sum takes a product of its basic block if every use of that product is such a sum, with the same flushing. Of two products the
    first operand's goes, products with one use before those with several; a sum of a product with itself keeps it.
    """

    assembler: str
    """Whose machine code was read."""
    capabilities: tuple[int, ...]
    """Compute capabilities of the architectures: 90 of sm_90a."""
    products: tuple[str, ...]
    """Opcodes that end in a product that may be fused, after their base and first modifiers."""
    copies: tuple[str, ...]
    """Opcodes between product and sum that do not hinder; the sign of `neg` goes into the product."""
    splits_pairs: bool
    """Whether arithmetic of f32x2 is that of two f32, each fused by itself."""
    folded: tuple[str, ...]
    """Functions that are computed, correctly rounded, where the operand is a constant: a divisor becomes a factor."""
    evidence: Evidence
    source: str
    """Key into sources.toml."""


_PRODUCTS: Final = ("mul", "div.full", "div.approx", "rcp.approx.f32")
_COPIES: Final = ("mov", "neg")
_FOLDED: Final = ("div.full", "div.approx", "rcp.approx", "ex2.approx", "rsqrt.approx", "sqrt.approx", "lg2.approx", "sin.approx",
                  "cos.approx")  # fmt: skip


def _row(assembler: str, capabilities: tuple[int, ...], *, splits_pairs: bool = False) -> ContractionSpec:
    return ContractionSpec(
        assembler=assembler, capabilities=capabilities, products=_PRODUCTS, copies=_COPIES, splits_pairs=splits_pairs, folded=_FOLDED,
        evidence=Evidence.INFERRED, source="machine-code",
    )  # fmt: skip


CONTRACTIONS: Final = (
    _row("ptxas 12.9.86", (75, 80, 86, 87, 88, 89)),
    _row("ptxas 13.4.59", (90, 100, 103, 110)),
    _row("ptxas 13.4.59", (120, 121), splits_pairs=True),
)
"""sm_80, sm_89, sm_90a, sm_100a and sm_120a were read, each with the ptxas that Triton 3.9 takes, sm_90a with 12.9.86 too, which does the
same; the others are taken to be as their neighbours."""


def contraction(arch: str) -> ContractionSpec:
    """The row of an architecture; the nearest older one where there is none."""
    number = architecture(arch).capability_number
    found = [row for row in CONTRACTIONS if number in row.capabilities]
    return found[0] if found else max((row for row in CONTRACTIONS if row.capabilities[0] <= number), default=CONTRACTIONS[0],
                                      key=lambda row: row.capabilities[0])  # fmt: skip
