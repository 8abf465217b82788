"""FP8 numbers that a program widens before it multiplies: XLA for GPUs makes an FP8 product of such a pattern.

After XLA's `GemmRewriter` (`MatchFp8Param`, `CreateF8CustomCall` in xla/service/gpu/transforms/gemm_rewriter.cc): from capability 8.9, both
operands a conversion of FP8, by choice times or divided by one number, then rearranged; one of them e4m3.
"""

from __future__ import annotations

from typing import Any, Final

from mmabits.isa import architecture

REWRITTEN: Final = (
    "both operands are FP8 numbers widened before the product: XLA makes an FP8 product of cuBLASLt of that, which is not followed here; "
    "multiply the FP8 numbers themselves"
)
FROM: Final = (8, 9)
"""The first capability for which XLA does so."""
_REARRANGES: Final = frozenset(
    f"stablehlo.{name}" for name in ("transpose", "reshape", "broadcast_in_dim", "slice", "dynamic_slice", "pad")
)
_SCALES: Final = frozenset(("stablehlo.multiply", "stablehlo.divide"))
_FP8: Final = {"f8E4M3FN": "e4m3", "f8E5M2": "e5m2"}


def is_rewritten(a: Any, b: Any, arch: str) -> bool:
    """Whether XLA would make an FP8 product of one of two MLIR values, as far as the function shows that holds the product."""
    if architecture(arch).capability < FROM:
        return False
    forms = _widened(a), _widened(b)
    return None not in forms and "e4m3" in forms


def _operation(value: Any, *names: str) -> Any:
    """What made a value, where it is one of these operations; None: something else, or an argument."""
    owner = getattr(value, "owner", None)
    return owner if getattr(owner, "name", None) in names else None


def _widened(value: Any) -> str | None:
    """The FP8 format that a value was converted from."""
    while (made := _operation(value, *_REARRANGES)) is not None:
        value = made.operands[0]
    scaled = _operation(value, *_SCALES)
    parts = [value] if scaled is None else list(scaled.operands)[: 1 if scaled.name.endswith("divide") else 2]
    if scaled is not None and not any(_is_one_number(each) for each in scaled.operands):
        return None
    for part in parts:
        converted = _operation(part, "stablehlo.convert")
        if converted is not None:
            element = str(converted.operands[0].type.element_type)
            if element in _FP8:
                return _FP8[element]
    return None


def _is_one_number(value: Any) -> bool:
    spread = _operation(value, "stablehlo.broadcast_in_dim")
    return spread is not None and not list(spread.operands[0].type.shape)
