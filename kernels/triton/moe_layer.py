"""A gated layer of a mixture of experts: quantization, grouped product, SwiGLU, quantization, grouped product, sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import triton
import triton.language as tl

from mmabits.isa import OperandError
from mmabits.kernels.schemes.checks import row_named
from mmabits.kernels.triton import fp8_blockwise, moe, moe_experts, mxfp8, nvfp4
from mmabits.kernels.triton.asymmetric import rounded
from mmabits.kernels.triton.moe_sums import add_rows
from mmabits.kernels.triton.operands import checked, float32_like
from mmabits.kernels.triton.routing import exponential

if TYPE_CHECKING:
    import torch

TOKENS: Final = ("bfloat16", "float16")


@triton.jit
def int8_rows_kernel(x_ptr, out_ptr, scale_ptr, K, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row in INT8 with a scale of its own."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        largest = tl.maximum(largest, tl.abs(tl.load(x_ptr + row * K + k, mask=k < K, other=0.0)))
    wanted = tl.div_rn(tl.max(largest, axis=0), 127.0)
    scale = tl.where(wanted > 0.0, wanted, 1.0)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + row * K + k, mask=k < K, other=0.0)
        codes = rounded(tl.div_rn(x, scale), -127.0, 127.0).to(tl.int32).to(tl.int8)
        tl.store(out_ptr + row * K + k, codes, mask=k < K)
    tl.store(scale_ptr + row, scale)


@triton.jit
def swiglu_kernel(rows_ptr, out_ptr, COUNT, WIDTH, KIND: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """silu(gate) * up of one row, the gate first; each step rounded to KIND, stored in float32."""
    row = tl.program_id(0).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    gate = tl.load(rows_ptr + row * 2 * WIDTH + n, mask=n < WIDTH, other=0.0).to(KIND).to(tl.float32)
    up = tl.load(rows_ptr + row * 2 * WIDTH + WIDTH + n, mask=n < WIDTH, other=0.0).to(KIND).to(tl.float32)
    activated = tl.div_rn(gate, 1.0 + exponential(-gate)).to(KIND).to(tl.float32)
    tl.store(out_ptr + row * WIDTH + n, (activated * up).to(KIND).to(tl.float32), mask=n < WIDTH)


def quantize_int8_rows(values: torch.Tensor, *, block_k: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """INT8 with a scale for each row: the bits of `schemes.w8a8.quantize_int8(axis=0)`.

    Args:
        values: (M, K) float32, contiguous, finite: not looked at.
        block_k: elements a step.

    Returns:
        Codes (M, K) int8 and scales (M,) float32.

    Raises:
        OperandTypeError, OperandError: another tensor.
    """
    import torch

    m, k = checked(values, "values", ("float32",), (None, None)).shape
    out, scales = torch.empty_like(values, dtype=torch.int8), torch.ones(m, dtype=torch.float32, device=values.device)
    if m and k:
        int8_rows_kernel[(m,)](values, out, scales, k, BLOCK_K=block_k, enable_fp_fusion=False)
    return out, scales


def swiglu(rows: torch.Tensor, dtype: str, *, block_n: int = 128) -> torch.Tensor:
    """`silu(gate) * up`: the bits of `schemes.moe_layer.swiglu`, with the GPU's exponential where the kernel is compiled.

    Args:
        rows: (M, 2 * width) float32, the gate first.
        dtype: `"bfloat16"` or `"float16"`, to which rows, silu and product are rounded.
        block_n: columns of a program.

    Returns:
        (M, width) float32.

    Raises:
        OperandTypeError, OperandError: another tensor or type.
    """
    kinds = {"bfloat16": tl.bfloat16, "float16": tl.float16}
    if dtype not in kinds:
        raise OperandError(f"rows are rounded to {' or '.join(TOKENS)}, got {dtype!r}")
    m, both = checked(rows, "rows", ("float32",), (None, None)).shape
    if both % 2:
        raise OperandError(f"rows must have a gate and as many others, got {both} columns")
    out = float32_like(rows, m, both // 2)
    if out.numel():
        swiglu_kernel[(m, triton.cdiv(both // 2, block_n))](
            rows, out, m, both // 2, KIND=kinds[dtype], BLOCK_N=block_n, enable_fp_fusion=False
        )
    return out


@dataclass(frozen=True, kw_only=True)
class _SchemeKernels:
    """The kernels of a scheme."""

    quantize: Callable[[torch.Tensor, torch.dtype], tuple[torch.Tensor, ...]]
    """Float32 activations, and the type of the tokens, to what the product takes of them."""
    rows: Callable[..., torch.Tensor]
    weights: tuple[str, ...] = ("w", "w_scales")
    """What it takes of the weights."""
    options: Mapping[str, Any] = field(default_factory=dict)
    block_m: int = 64


def _wide(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return (values.to(dtype),)


_WORDS: Final = ("words", "scales")
SCHEMES: Final = {
    "w8a8": _SchemeKernels(quantize=lambda values, dtype: quantize_int8_rows(values), rows=moe_experts.rows_w8a8),
    **{
        f"w8a16-{kind}{'-groups' if grouped else ''}": _SchemeKernels(
            quantize=_wide, rows=moe_experts.rows_w8a16, weights=_WORDS, options={"kind": kind, "grouped": grouped}
        )
        for kind in ("int8", "e4m3")
        for grouped in (False, True)
    },
    "fp8-tiles": _SchemeKernels(quantize=lambda values, dtype: fp8_blockwise.quantize_activations(values), rows=moe_experts.rows_fp8_tiles),
    "fp8-tiles-in-turn": _SchemeKernels(
        quantize=lambda values, dtype: fp8_blockwise.quantize_activations(values), rows=moe_experts.rows_fp8_tiles,
        options={"in_turn": True},
    ),
    "fp8-tiles-power-of-two": _SchemeKernels(
        quantize=lambda values, dtype: fp8_blockwise.quantize_activations(values, recipe="power-of-two"), rows=moe_experts.rows_fp8_tiles
    ),
    "mxfp8": _SchemeKernels(quantize=lambda values, dtype: mxfp8.quantize_rows(values), rows=moe_experts.rows_mxfp8, block_m=128),
    "nvfp4": _SchemeKernels(
        quantize=lambda values, dtype: nvfp4.quantize(values), rows=moe_experts.rows_nvfp4, weights=("w", "w_scales", "w_tensor_scales"),
        block_m=128,
    ),
    "w4a16": _SchemeKernels(quantize=_wide, rows=moe.rows_w4a16, weights=("qweight", "qzeros", "scales")),
    "mxfp4": _SchemeKernels(quantize=_wide, rows=moe.rows_mxfp4, weights=("codes", "scales")),
}  # fmt: skip
"""Those of `schemes.moe_experts.EXPERTS`. MXFP4 takes bfloat16 tokens alone."""


def moe_layer(
    x: torch.Tensor, gate_up: Mapping[str, torch.Tensor], down: Mapping[str, torch.Tensor], weights: torch.Tensor, choices: torch.Tensor,
    block_experts: torch.Tensor, *, scheme: str, round_each: bool = True, check: bool | None = None, block_m: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """The layer; the bits of `schemes.moe_layer.moe_layer`, with the GPU's exponential where kernels are compiled.

    Args:
        x: (tokens, hidden) bfloat16 or float16, contiguous.
        gate_up: `Experts.pack()` of the first product, (hidden, 2 * inner) each.
        down: of the second, (inner, hidden) each.
        weights: (tokens, top_k) float32 routing weights.
        choices: (blocks * block_m,) int32, of `align`.
        block_experts: (blocks,) int32, of `align`.
        scheme: one of `SCHEMES`.
        round_each: as for `moe_sums.add_rows`.
        check: whether to look at the tables first; None: if they are on the CPU, since for a GPU the host would have to wait.
        block_m: rows of a block of `align`; None: the scheme's, 128 for block scales, else 64.

    Returns:
        (tokens, hidden) of the type of x.

    Raises:
        OperandTypeError, OperandError: tensors that do not fit, an unknown scheme.
    """
    import torch

    parts, (tokens, hidden) = row_named(SCHEMES, scheme, "scheme of experts"), checked(x, "x", TOKENS, (None, None)).shape
    for given, name in ((gate_up, "gate_up"), (down, "down")):
        if set(given) != set(parts.weights):
            raise OperandError(f"{name} in {scheme} has {', '.join(parts.weights)}, got {', '.join(given) or 'nothing'}")
    top_k = checked(weights, "weights", ("float32",), (tokens, None)).shape[1]
    options = {**parts.options, "check": check, "block_m": parts.block_m if block_m is None else block_m}
    ones = torch.ones_like(weights)
    first = parts.rows(
        *parts.quantize(x.float(), x.dtype), *(gate_up[name] for name in parts.weights), ones, choices, block_experts, **options
    )
    inner = swiglu(first, str(x.dtype).removeprefix("torch."))
    second = parts.rows(
        *parts.quantize(inner, x.dtype), *(down[name] for name in parts.weights), weights, choices, block_experts, by_choice=True, **options
    )
    if second.shape[1] != hidden:
        raise OperandError(f"down must give {hidden} columns, as x has them, got {second.shape[1]}")
    return add_rows(second.to(x.dtype), top_k=top_k, round_each=round_each)
