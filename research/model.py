"""A datapath with every number free: a row of isa/ as one instruction uses it, or one that stands in no table."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mmabits.isa import Arithmetic, FormatSpec, Lowering, Rounding
from mmabits.isa.errors import OperandError, UnsupportedInstruction


class Overflow(enum.Enum):
    """What becomes of a result past the largest finite number."""

    INFINITY = "infinity"
    IEEE = "infinity, or the largest finite number where the rounding points to it"
    SATURATES = "the largest finite number"


@dataclass(frozen=True, kw_only=True)
class Model:
    """What one instruction computes of one row of A, one column of B and one accumulator.

    Raises:
        OperandError: numbers that make no datapath; the message says which.
    """

    a_type: FormatSpec
    b_type: FormatSpec
    d_type: FormatSpec
    """Of the accumulator and of the result."""
    k: int
    scale_type: FormatSpec | None = None
    block: int | None = None
    """Elements of K that share a scale."""
    arithmetic: Arithmetic
    order: tuple[int, ...]
    """The K elements in the order in which they enter the steps."""
    step: int
    """Elements of K that one step takes."""
    fraction_bits: int | None
    """Fraction bits kept below the largest exponent; None: the sum is exact."""
    zero_exponent: int | None
    """Exponent of a term whose significand is zero; None: such a term has none."""
    floor: int | None = None
    """The least exponent to which terms are aligned; None: whatever the largest of theirs is."""
    group: int = 1
    """Products summed exactly before the alignment."""
    result_fraction_bits: int
    rounding: Rounding
    """Of the sum of a step."""
    alignment: Rounding = Rounding.TOWARD_ZERO
    """Of a term to the last place that is kept: toward zero cuts sign and magnitude, down cuts two's complement."""
    c_added: bool = False
    """The unit starts from +0, and C is added afterwards by one IEEE addition; else C is a term of the first step."""
    operand_format: FormatSpec | None = None
    """Format to which A and B are converted first, exactly; its exponent range decides which of them are subnormal."""
    flushes_operands: bool = False
    """Subnormals of A and B count as zero."""
    flushes_c: bool = False
    """Subnormals of the accumulator count as zero."""
    flushes_results: bool = False
    """A subnormal result becomes zero."""
    normalised_products: bool = False
    """A product in [2, 4) has one more in its exponent."""
    signed_zeros: bool = False
    """A zero result has the sign that IEEE 754 gives it; else it is +0."""
    overflow: Overflow = Overflow.INFINITY
    zero_times_infinity: bool = True
    """Zero times infinity is NaN; else it is infinity."""
    opposite_infinities: bool = True
    """Infinities of both signs are NaN; else the first in order wins, C before the products."""
    zero_scale_absent: bool = True
    """A term whose scale is zero has the exponent of a zero term; else that of its scales."""
    scale_rotation: int = 0
    """The scale that a block reads is that of the block so many further on."""
    negate_a: bool = False
    negate_b: bool = False
    c_halvings: int = 0
    """The accumulator enters the first step divided by two so many times."""
    nan: int
    """Code of the NaN that comes out."""
    name: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(self.k)):
            raise OperandError(f"the order of K must name each of 0 to {self.k - 1} once, got {self.order}")
        if self.step < 1 or self.group < 1 or (self.arithmetic is Arithmetic.GROUPED and self.step % self.group):
            raise OperandError(f"a step of {self.step} elements does not divide into groups of {self.group}")
        if not 0 <= self.result_fraction_bits <= self.d_type.fraction_bits:
            raise OperandError(f"{self.result_fraction_bits} result fraction bits in {self.d_type.name}")
        if self.fraction_bits is not None and self.fraction_bits < 0:
            raise OperandError(f"{self.fraction_bits} fraction bits kept; allowed: 0 or more")
        if (self.scale_type is None) != (self.block is None):
            raise OperandError(f"block scales need a type and a block size; got type {self.scale_type} and block {self.block}")
        if self.block is not None and self.k % self.block:
            raise OperandError(f"blocks of {self.block} elements do not divide K = {self.k}")

    @property
    def steps(self) -> tuple[tuple[int, ...], ...]:
        """The elements of K that each step takes, in order."""
        return tuple(self.order[start : start + self.step] for start in range(0, self.k, self.step))

    @property
    def blocks(self) -> int:
        """Scales of an operand; 0 without."""
        return self.k // self.block if self.block else 0

    @property
    def is_integer(self) -> bool:
        """Whether the sum is one of integers."""
        return self.arithmetic is Arithmetic.INTEGER


@lru_cache(maxsize=256)
def _reread(form: FormatSpec, fields: tuple[tuple[str, Any], ...]) -> FormatSpec:
    return dataclasses.replace(form, **dict(fields))


def reread(form: FormatSpec, **fields: Any) -> FormatSpec:
    """A format whose codes are read otherwise: the row with some fields changed, the same object every time."""
    return _reread(form, tuple(sorted(fields.items()))) if fields else form


def model_of(lowering: Lowering) -> Model:
    """The model of an instruction on an architecture, for probes.

    Raises:
        UnsupportedInstruction: a modifier that scales or negates operands: probes have none.
    """
    row = lowering.instruction
    if row.scale_input_d or row.negate_a or row.negate_b or not row.scale_d:
        raise UnsupportedInstruction(f"{row}: probes are for instructions without negA, negB, scale_d and scale_input_d")
    return _model_of(lowering)


def traced_model(lowering: Lowering) -> Model:
    """The model of an instruction on an architecture as the engine has it, its modifiers included.

    The engine aligns to e_zero at least. Of rows that shows only with scale_input_d: no other accumulator lies below it.
    """
    row, path = lowering.instruction, lowering.datapath
    return dataclasses.replace(
        _model_of(lowering), negate_a=row.negate_a, negate_b=row.negate_b, c_halvings=row.scale_input_d,
        floor=path.zero_exponent if path.is_aligned else None,
    )  # fmt: skip


def _model_of(lowering: Lowering) -> Model:
    row, path = lowering.instruction, lowering.datapath
    common: dict[str, Any] = {
        "a_type": row.a_type, "b_type": row.b_type, "d_type": row.d_type, "k": row.k, "scale_type": row.scale_type, "block": row.block,
        "order": lowering.k_order or tuple(range(row.k)), "name": path.name,
    }  # fmt: skip
    match path.arithmetic:
        case Arithmetic.INTEGER:
            return exact_integers(**common, saturates=row.satfinite)
        case Arithmetic.FMA_CHAIN:
            return fma_chain(**common, rounding=row.rounding_mode, nan=path.result_nan)
        case Arithmetic.FUSED | Arithmetic.GROUPED:
            return Model(
                **common, arithmetic=path.arithmetic, step=lowering.step, fraction_bits=path.fraction_bits,
                zero_exponent=path.zero_exponent, group=path.group, result_fraction_bits=path.result_fraction_bits,
                rounding=path.result_rounding.mode or row.rounding_mode, c_added=lowering.separate_add, operand_format=lowering.unpacked_to,
                nan=path.result_nan,
            )  # fmt: skip


def exact_integers(
    *, a_type: FormatSpec, b_type: FormatSpec, d_type: FormatSpec, k: int, order: tuple[int, ...], saturates: bool,
    scale_type: FormatSpec | None = None, block: int | None = None, name: str = "",
) -> Model:  # fmt: skip
    """An integer instruction: the sum is exact, and wraps or saturates once at the end."""
    return Model(
        a_type=a_type, b_type=b_type, d_type=d_type, k=k, scale_type=scale_type, block=block, order=order, name=name,
        arithmetic=Arithmetic.INTEGER, step=k, fraction_bits=None, zero_exponent=None, result_fraction_bits=d_type.fraction_bits,
        rounding=Rounding.TOWARD_ZERO, overflow=Overflow.SATURATES if saturates else Overflow.INFINITY, nan=0,
    )  # fmt: skip


def fma_chain(
    *, a_type: FormatSpec, b_type: FormatSpec, d_type: FormatSpec, k: int, order: tuple[int, ...], rounding: Rounding, nan: int,
    scale_type: FormatSpec | None = None, block: int | None = None, name: str = "",
) -> Model:  # fmt: skip
    """A chain of IEEE fused multiply-adds: steps of one element, exact sums, rounded as asked."""
    return Model(
        a_type=a_type, b_type=b_type, d_type=d_type, k=k, scale_type=scale_type, block=block, order=order, name=name,
        arithmetic=Arithmetic.FMA_CHAIN, step=1, fraction_bits=None, zero_exponent=None, result_fraction_bits=d_type.fraction_bits,
        rounding=rounding, signed_zeros=True, overflow=Overflow.IEEE, nan=nan,
    )  # fmt: skip
