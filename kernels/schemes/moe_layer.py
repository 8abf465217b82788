"""A gated (SwiGLU) layer of a mixture of experts: two grouped products with quantization before each, as vLLM's fused layer has it.

rows = x' W13          x' the quantized tokens, a row for each choice, float32, stored in bf16 (or f16)
h = silu(gate) * up    in float32, rounded to bf16 after silu and after the product
y = (h' W2) * weight   h' quantized anew; float32, stored in bf16
out = sum over a token's choices, in order
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.engine.fma import canonical
from mmabits.isa import OperandError, OperandTypeError
from mmabits.kernels.schemes.checks import Array, checked
from mmabits.kernels.schemes.dots import Dots
from mmabits.kernels.schemes.moe import Routing
from mmabits.kernels.schemes.moe_experts import Experts, ExpertScheme, moe_rows, quantize_experts, weighted_rows
from mmabits.kernels.schemes.moe_sums import Places, add_rows
from mmabits.kernels.schemes.routing import LOG2_E

Floats = npt.NDArray[np.float32]

TOKENS: Final = {np.dtype(ml_dtypes.bfloat16): "bf16", np.dtype(np.float16): "f16"}
"""Types of tokens, and of what is stored between the products."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GatedExperts:
    """The weights of a layer.

    Raises:
        OperandTypeError, OperandError: two schemes or numbers of experts, shapes that do not fit.
    """

    gate_up: Experts
    """(hidden, 2 * inner) each: the columns of the gate first."""
    down: Experts
    """(inner, hidden) each."""

    def __post_init__(self) -> None:
        """Check."""
        for each in (self.gate_up, self.down):
            if not isinstance(each, Experts):
                raise OperandTypeError(f"a layer's weights are Experts, got {type(each).__name__}")
        names = [each.scheme.name for each in (self.gate_up, self.down)]
        if names[0] != names[1]:
            raise OperandError(f"both products must be of one scheme, got {names[0]} and {names[1]}")
        counts, ((k, n), (inner, out)) = [len(each.matrices) for each in (self.gate_up, self.down)], (self.gate_up.shape, self.down.shape)
        if counts[0] != counts[1] or n != 2 * inner or out != k:
            raise OperandError(
                f"gate_up must be experts of (hidden, 2 * inner) and down as many of (inner, hidden), got {counts[0]} of {(k, n)} and "
                f"{counts[1]} of {(inner, out)}"
            )

    @property
    def scheme(self) -> ExpertScheme:
        """Of both products."""
        return self.gate_up.scheme


def quantize_layer(gate_up: Array, down: Array, scheme: str | ExpertScheme) -> GatedExperts:
    """The weights of a layer by a scheme.

    Args:
        gate_up: (experts, hidden, 2 * inner) float32.
        down: (experts, inner, hidden) float32.
        scheme: one of `EXPERTS`.

    Raises:
        OperandTypeError, OperandError: something else; as the scheme's own quantizer.
    """
    return GatedExperts(gate_up=quantize_experts(gate_up, scheme), down=quantize_experts(down, scheme))


def swiglu(rows: Floats, dtype: np.dtype[np.generic], exp2: Callable[[Floats], Floats] = np.exp2) -> Floats:
    """`silu(gate) * up` of rows whose first half is the gate: rows, silu and product are each rounded to a type, 16 bits wide.

    silu(x) = x / (1 + 2^(-x log2 e)), each operation float32.
    """
    with np.errstate(all="ignore"):
        stored = rows.astype(dtype).astype(np.float32)
        gate, up = np.split(stored, 2, axis=1)
        activated = (gate / (np.float32(1) + exp2(-gate * LOG2_E))).astype(dtype).astype(np.float32)
        return canonical(np.asarray((activated * up).astype(dtype), np.float32))


def moe_layer(
    x: Array, experts: GatedExperts, routing: Routing, *, arch: str | Dots, exp2: Callable[[Floats], Floats] = np.exp2,
    order: Places | None = None, round_each: bool = True,
) -> Array:  # fmt: skip
    """The layer: the bits of `mmabits.kernels.triton.moe_layer`.

    Args:
        x: (tokens, hidden) bfloat16 or float16.
        experts: weights.
        routing: as many experts.
        arch: architecture, or its dots.
        exp2: 2^x of float32; `routing.gpu_exp2(arch)` is the one of GPUs.
        order: (tokens, top_k) places, in which rows are added; None: ascending.
        round_each: as for `moe_sums.add_rows`.

    Returns:
        (tokens, hidden) of the type of x.

    Raises:
        MmabitsError: operands that do not fit; as `mmabits.gemm`.
    """
    given, scheme = checked(x, "x", tuple(TOKENS), 2), experts.scheme
    kind = given.dtype

    def quantized(values: Floats) -> object:
        # Activations that a scheme leaves wide have the type of the tokens.
        return values.astype(kind) if scheme.kinds[0] is np.ndarray else scheme.activations(values)

    first = moe_rows(quantized(given.astype(np.float32)), experts.gate_up, routing, arch=arch)
    hidden = swiglu(first.reshape(-1, first.shape[2]), kind, exp2)
    second = weighted_rows(moe_rows(quantized(hidden), experts.down, routing, arch=arch, by_choice=True), routing)
    return add_rows(second, order=order, dtype=TOKENS[kind], round_each=round_each)


__all__ = ["GatedExperts", "moe_layer", "quantize_layer", "swiglu"]
