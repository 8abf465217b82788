"""Datapaths as rows: what one step of a tensor-core unit computes, and with which evidence.

A row is named `architecture.unit.operands.accumulator`, and written so below. Sections are those of the arithmetic in docs/numerics.md.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from mmabits.isa.architectures import ARCHITECTURES, since
from mmabits.isa.evidence import Evidence, Proof, weakest
from mmabits.isa.formats import FormatSpec, format_spec
from mmabits.isa.rounding import Rounding


class Arithmetic(enum.Enum):
    """Which of the four kinds of arithmetic a unit has."""

    FUSED = "products aligned to the largest exponent, truncated, summed exactly, rounded once"
    GROUPED = "products summed exactly in groups; groups scaled, aligned, truncated, summed, rounded once"
    FMA_CHAIN = "a chain of fused multiply-adds, k ascending"
    INTEGER = "exact integer sum, 32 bits kept"

    @property
    def is_aligned(self) -> bool:
        """Whether terms are cut to places below the largest exponent; else sums are exact or IEEE's."""
        return self in (Arithmetic.FUSED, Arithmetic.GROUPED)


class ResultRounding(enum.Enum):
    """How the exact sum of a step becomes the accumulator."""

    TOWARD_ZERO = Rounding.TOWARD_ZERO.value
    NEAREST_EVEN = Rounding.NEAREST_EVEN.value
    FROM_INSTRUCTION = "the instruction's own qualifier"
    EXACT = "no rounding"

    @property
    def mode(self) -> Rounding | None:
        """The mode of a unit that has one of its own."""
        return next((mode for mode in Rounding if mode.value == self.value), None)


@dataclass(frozen=True, kw_only=True, eq=False)
class DatapathSpec:
    """One unit's arithmetic for one operand class and accumulator type."""

    arch: str
    """Name of the architecture that has it."""
    unit: str
    """The tensor core's, as the machine instructions call it; empty where that is not known."""
    operands: str
    """Class of operands: a format, or a set of them that are computed alike."""
    arithmetic: Arithmetic
    step: int
    """Elements of K that one fused step takes (L)."""
    fraction_bits: int = 0
    """Fraction bits kept below the largest exponent (F)."""
    zero_exponent: int = 0
    """Exponent of a term whose significand is zero (e_zero)."""
    group: int = 1
    """Products summed exactly before the alignment."""
    result: FormatSpec
    """Format of accumulator and result."""
    result_fraction_bits: int
    """Fraction bits of the rounded result; fewer than the format's where the low ones are always zero."""
    result_rounding: ResultRounding
    result_nan: int = 0
    """Code of the one NaN that comes out."""
    proofs: tuple[Proof, ...]
    """Of finite operands."""
    special_proofs: tuple[Proof, ...] = ()
    """Of infinities, NaN and signed zeros."""
    note: str = ""

    def __post_init__(self) -> None:
        if self.step < 1 or self.group < 1 or self.step % self.group:
            raise ValueError(f"datapath {self.name}: a step of {self.step} elements does not divide into groups of {self.group}")
        if not 0 <= self.result_fraction_bits <= self.result.fraction_bits:
            raise ValueError(f"datapath {self.name}: {self.result_fraction_bits} result fraction bits in {self.result.name}")
        if self.result_rounding is ResultRounding.TOWARD_ZERO and self.result.name != "f32":
            raise ValueError(f"datapath {self.name}: rounding toward zero is for f32 results, not {self.result.name}")
        if not self.proofs:
            raise ValueError(f"datapath {self.name}: no proof")

    @property
    def part(self) -> str:
        """The name without the architecture: `wgmma.f8.f32`."""
        return ".".join(word for word in (self.unit, self.operands, self.result.name) if word)

    @property
    def name(self) -> str:
        """`sm_90a.wgmma.f8.f32`."""
        return f"{self.arch}.{self.part}"

    @property
    def evidence(self) -> Evidence:
        """What the proofs allow to claim of the row: the weakest of them."""
        return weakest(self.proofs)

    @property
    def is_aligned(self) -> bool:
        """As of its arithmetic."""
        return self.arithmetic.is_aligned

    @property
    def terms(self) -> int:
        """Terms of one alignment: groups of products, and the accumulator."""
        return self.step // self.group + 1

    def __repr__(self) -> str:
        return f"<datapath {self.name}>"


_NAN = {"f32": 0x7FFFFFFF, "f16": 0x7FFF}
_SPECIAL = (Proof(level=Evidence.PUBLISHED, covers="infinities, NaN, signed zeros", sources=("mmasim", "khattak-mikaitis")),)
_SPECIAL_INFERRED = (Proof(level=Evidence.INFERRED, covers="infinities, NaN, signed zeros", sources=("numerics",)),)


def _recorded(*recordings: str, covers: str = "finite operands, any c") -> tuple[Proof, ...]:
    return (Proof(level=Evidence.RECORDED, covers=covers, sources=recordings),)


def _published(*sources: str, covers: str = "finite operands, any c") -> tuple[Proof, ...]:
    return (Proof(level=Evidence.PUBLISHED, covers=covers, sources=sources or ("mmasim", "khattak-mikaitis")),)


def _inferred(neighbour: str) -> tuple[Proof, ...]:
    return (Proof(level=Evidence.INFERRED, covers=f"carried over from {neighbour}", sources=("numerics",)),)


def _fused(
    name: str,
    fraction_bits: int,
    step: int,
    zero_exponent: int,
    proofs: tuple[Proof, ...],
    *,
    special: tuple[Proof, ...] = (),
    result_fraction_bits: int | None = None,
    note: str = "",
) -> DatapathSpec:
    """Sections 2 and 3: f32 rounds toward zero, f16 to nearest even."""
    arch, unit, operands, accumulator = name.split(".")
    result = format_spec(accumulator)
    kept = result.fraction_bits if result_fraction_bits is None else result_fraction_bits
    rounding = ResultRounding.NEAREST_EVEN if result.name == "f16" else ResultRounding.TOWARD_ZERO
    inferred = weakest(proofs) is Evidence.INFERRED
    return DatapathSpec(
        arch=arch, unit=unit, operands=operands, arithmetic=Arithmetic.FUSED, fraction_bits=fraction_bits, step=step,
        zero_exponent=zero_exponent, result=result, result_fraction_bits=kept, result_rounding=rounding, result_nan=_NAN[accumulator],
        proofs=proofs, special_proofs=special or (_SPECIAL_INFERRED if inferred else _SPECIAL), note=note,
    )  # fmt: skip


def _grouped(name: str, proofs: tuple[Proof, ...], note: str, *, special: tuple[Proof, ...] = ()) -> DatapathSpec:
    """Section 4: 64 products in groups of 16."""
    arch, unit, operands, accumulator = name.split(".")
    inferred = weakest(proofs) is Evidence.INFERRED
    return DatapathSpec(
        arch=arch, unit=unit, operands=operands, arithmetic=Arithmetic.GROUPED, fraction_bits=35, step=64, group=16, zero_exponent=-139,
        result=format_spec(accumulator), result_fraction_bits=23, result_rounding=ResultRounding.TOWARD_ZERO,
        result_nan=_NAN[accumulator], proofs=proofs, special_proofs=special or (_SPECIAL_INFERRED if inferred else _SPECIAL), note=note,
    )  # fmt: skip


def _fma_chain(arch: str) -> DatapathSpec:
    """Section 6. A step is one element: each fused multiply-add rounds as the instruction says."""
    sources = ("ptx",) if ARCHITECTURES[arch].like else ("mmasim", "ptx")
    return DatapathSpec(
        arch=arch, unit="dmma", operands="f64", arithmetic=Arithmetic.FMA_CHAIN, step=1, result=format_spec("f64"), result_fraction_bits=52,
        result_rounding=ResultRounding.FROM_INSTRUCTION, result_nan=0x7FF8_0000_0000_0000, proofs=_published(*sources),
        special_proofs=_SPECIAL_INFERRED,
    )  # fmt: skip


def _integer(arch: str, unit: str) -> DatapathSpec:
    """Section 6: exact, so a step is as good as any; wraps or saturates as the instruction says."""
    return DatapathSpec(
        arch=arch, unit=unit, operands="int", arithmetic=Arithmetic.INTEGER, step=1, result=format_spec("s32"), result_fraction_bits=31,
        result_rounding=ResultRounding.EXACT, proofs=_published("ptx", covers="all operands"),
    )  # fmt: skip


_AS_VOLTA = "m8n8k4 computes as on sm_70"
_DISPUTED_ZERO = "one source has e_zero -133 for the f16 accumulator; open on hardware"
_DISPUTED_WIDTH = "width of the alignment disputed: 35 fraction bits in MMA-Sim, 34 to 37 in a user's probes of a B200"
_DISPUTED_WIDTH_120 = "width of the alignment disputed: 35 fraction bits in MMA-Sim, about 25 in a simulator written beside an RTX 5090"
_FP8_CHAIN = (
    *_recorded("h100-wgmma-e4m3-f32", "h100-wgmma-e5m2-f32", "h200-wgmma-e4m3-f32", "h200-wgmma-e5m2-f32", covers="finite operands, c = 0"),
    *_published("mmasim", "mmaemu", covers="finite operands, c != 0"),
)

# fmt: off
_ROWS = (
    #       name                          F   L  e_zero  evidence
    _fused("sm_70.hmma.f16.f32",         23,  4,  -131, _recorded("v100-mma-f16-f32")),
    _fused("sm_70.hmma.f16.f16",         23,  4,   -19, _recorded("v100-mma-f16-f16")),

    _fused("sm_75.hmma884.f16.f32",      23,  4,  -131, _published("mmasim"), note=_AS_VOLTA),
    _fused("sm_75.hmma884.f16.f16",      23,  4,   -19, _published("mmasim"), note=_AS_VOLTA),
    _fused("sm_75.hmma.f16.f32",         24,  8,  -132, _published()),
    _fused("sm_75.hmma.f16.f16",         24,  8,   -20, _published()),

    _fused("sm_80.hmma.f16.f32",         24,  8,  -132, _recorded("a100-mma-f16-f32")),
    _fused("sm_80.hmma.f16.f16",         24,  8,   -20, _recorded("a100-mma-f16-f16")),
    _fused("sm_80.hmma.bf16.f32",        24,  8,  -132, _recorded("a100-mma-bf16-f32")),
    _fused("sm_80.hmma.tf32.f32",        24,  4,  -132, _recorded("a100-mma-tf32-f32")),

    _fused("sm_86.hmma.f16.f32",         24,  8,  -132, _recorded("a2-mma-f16-f32")),
    _fused("sm_86.hmma.f16.f16",         24,  8,   -20, _recorded("a2-mma-f16-f16")),
    _fused("sm_86.hmma.bf16.f32",        24,  8,  -132, _recorded("a2-mma-bf16-f32")),
    _fused("sm_86.hmma.tf32.f32",        24,  4,  -132, _recorded("a2-mma-tf32-f32")),

    _fused("sm_89.hmma.f16.f32",         24,  8,  -132, _recorded("ada-mma-f16-f32", "l40s-mma-f16-f32")),
    _fused("sm_89.hmma.f16.f16",         24,  8,   -20, _recorded("ada-mma-f16-f16", "l40s-mma-f16-f16")),
    _fused("sm_89.hmma.bf16.f32",        24,  8,  -132, _recorded("ada-mma-bf16-f32", "l40s-mma-bf16-f32")),
    _fused("sm_89.hmma.tf32.f32",        24,  4,  -132, _recorded("ada-mma-tf32-f32", "l40s-mma-tf32-f32")),
    _fused("sm_89.qmma.f8.f32",          13, 16,  -132,
           _recorded("ada-mma-e4m3-f32", "ada-mma-e5m2-f32", "l40s-mma-e4m3-f32", "l40s-mma-e5m2-f32"), result_fraction_bits=13),
    _fused("sm_89.qmma.f8.f16",          13, 16,   -20, _recorded("ada-mma-e4m3-f16", "ada-mma-e5m2-f16")),

    _fused("sm_90a.hmma.f16.f32",        25, 16,  -133, _recorded("h100-mma-f16-f32", "h200-mma-f16-f32")),
    _fused("sm_90a.hmma.f16.f16",        25, 16,   -21, _recorded("h100-mma-f16-f16", "h200-mma-f16-f16")),
    _fused("sm_90a.hmma.bf16.f32",       25, 16,  -133, _recorded("h100-mma-bf16-f32", "h200-mma-bf16-f32")),
    _fused("sm_90a.hmma.tf32.f32",       25,  8,  -133, _recorded("h100-mma-tf32-f32", "h200-mma-tf32-f32")),
    _fused("sm_90a.wgmma.f16.f32",       25, 16,  -133, _published()),
    _fused("sm_90a.wgmma.f16.f16",       25, 16,   -21, _published(), note=_DISPUTED_ZERO),
    _fused("sm_90a.wgmma.bf16.f32",      25, 16,  -133, _published()),
    _fused("sm_90a.wgmma.tf32.f32",      25,  8,  -133, _published()),
    _fused("sm_90a.wgmma.f8.f32",        13, 32,  -133, _FP8_CHAIN, result_fraction_bits=13),
    _fused("sm_90a.wgmma.f8.f16",        13, 32,   -21, _published("mmasim"), note=_DISPUTED_ZERO),

    _fused("sm_100a.hmma.f16.f32",       25, 16,  -133, _recorded("b200-mma-f16-f32")),
    _fused("sm_100a.hmma.f16.f16",       25, 16,   -21, _recorded("b200-mma-f16-f16")),
    _fused("sm_100a.hmma.bf16.f32",      25, 16,  -133, _recorded("b200-mma-bf16-f32")),
    _fused("sm_100a.hmma.tf32.f32",      25,  8,  -133, _recorded("b200-mma-tf32-f32")),
    _fused("sm_100a.tcgen05.f16.f32",    25, 16,  -133, _published()),
    _fused("sm_100a.tcgen05.f16.f16",    25, 16,   -21, _published()),
    _fused("sm_100a.tcgen05.bf16.f32",   25, 16,  -133, _published()),
    _fused("sm_100a.tcgen05.tf32.f32",   25,  8,  -133, _published()),
    _fused("sm_100a.tcgen05.f8f6f4.f32", 25, 32,  -133, _published()),
    _fused("sm_100a.tcgen05.f8f6f4.f16", 25, 32,   -21, _published()),
    _fused("sm_100a.tcgen05.mxf8f6f4.f32", 25, 32, -133, _published("mmasim")),
    _grouped("sm_100a.tcgen05.mxf4.f32", _published("mmasim"), _DISPUTED_WIDTH),

    _fused("sm_120a.hmma.f16.f32",       25, 16,  -133, _published()),
    _fused("sm_120a.hmma.f16.f16",       25, 16,   -21, _published()),
    _fused("sm_120a.hmma.bf16.f32",      25, 16,  -133, _published()),
    _fused("sm_120a.hmma.tf32.f32",      25,  8,  -133, _published()),
    _fused("sm_120a.qmma.f8f6f4.f32",    25, 32,  -133, _published()),
    _fused("sm_120a.qmma.f8f6f4.f16",    25, 32,   -21, _published()),
    _fused("sm_120a.qmma.mxf8f6f4.f32",  25, 32,  -133, _published("mmasim")),
    _grouped("sm_120a.omma.mxf4.f32",    _published("mmasim"), _DISPUTED_WIDTH_120),
)
# fmt: on


def _all_rows() -> tuple[DatapathSpec, ...]:
    carried = (
        replace(row, arch=arch.name, proofs=_inferred(row.name), special_proofs=_SPECIAL_INFERRED)
        for arch in ARCHITECTURES.values()
        for row in _ROWS
        if row.arch == arch.like
    )
    chains = (_fma_chain(arch) for arch in since("sm_80"))
    integers = (_integer(arch, "imma") for arch in since("sm_75"))
    others = (_integer("sm_90a", "wgmma"), _integer("sm_100a", "tcgen05"), _integer("sm_110a", "tcgen05"))
    return (*_ROWS, *carried, *chains, *integers, *others)


DATAPATHS: dict[str, DatapathSpec] = {row.name: row for row in _all_rows()}
"""Every datapath by its name."""
