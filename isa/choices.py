"""Which instruction a matrix product becomes, where a library picks it and not the program.

cuBLAS, cuDNN and XLA document neither their kernels nor how they choose them. What is known: they use the tensor core that the
architecture was given last, and the accumulator that the call names.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from mmabits.isa.architectures import ARCHITECTURES, architecture
from mmabits.isa.errors import UnknownInstruction, UnsupportedInstruction
from mmabits.isa.formats import FormatSpec, format_spec
from mmabits.isa.instructions import Family, Instruction
from mmabits.isa.lowering import lower
from mmabits.isa.ptx import resolve

NEWEST_FIRST = (Family.TCGEN05, Family.WGMMA, Family.MMA_SYNC)
"""The order in which a library is taken to prefer the families; an architecture has at most two of them."""


_PROMOTED: Final = {"sm_89": 128, "sm_90a": 128}
"""Targets on which libraries promote FP8 products that are not to be accumulated fast, and every how many elements of K.
On Hopper that is cuBLASLt's interval, measured with mmaemu (12.8) and cublas_match (13.1), which saw none on Blackwell; on
Ada CUTLASS's."""


def library_promotion(arch: str) -> int:
    """Elements of K after which a matrix library is taken to promote FP8 products without fast accumulation; 0: that changes nothing there.

    Raises:
        UnknownArchitecture: no such architecture.
    """
    return _PROMOTED.get(architecture(arch).target, 0)


@lru_cache(maxsize=4096)
def library_instruction(
    arch: str, a_type: str | FormatSpec, b_type: str | FormatSpec, *, c_type: str | None = None, scale_type: str | None = None
) -> Instruction:
    """The instruction that a matrix library is taken to use on an architecture for operands of these types.

    Args:
        arch: `"sm_90a"` and so on.
        a_type: type of A's elements.
        b_type: type of B's elements.
        c_type: type of the accumulator; by default f32, or s32 or f64 where the operands ask for it.
        scale_type: type of the block scales; None: none.

    Raises:
        UnknownArchitecture, UnknownFormat: no such names.
        UnsupportedInstruction: no tensor-core instruction of that architecture takes these operands.
    """
    a, b = format_spec(a_type), format_spec(b_type)
    found = _newest(architecture(arch).name, a, b, c_type, scale_type)
    if found is None:
        accumulator = f" into {c_type}" if c_type else ""
        scaled = f" with {scale_type} block scales" if scale_type else ""
        others = [name for name in ARCHITECTURES if _newest(name, a, b, c_type, scale_type)]
        there = f"targets that have one: {', '.join(others)}" if others else "nor does any other target's"
        raise UnsupportedInstruction(f"{arch} has no tensor-core instruction for {a.name} x {b.name}{accumulator}{scaled}; {there}")
    return found


def _newest(arch: str, a: FormatSpec, b: FormatSpec, c_type: str | None, scale_type: str | None) -> Instruction | None:
    for family in NEWEST_FIRST:
        try:
            row = resolve(str(family), arch=arch, a_type=a, b_type=b, c_type=c_type, scale_type=scale_type)
            lower(row, arch)
        except (UnsupportedInstruction, UnknownInstruction):
            continue
        return row
    return None
