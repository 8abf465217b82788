"""The table of quantization schemes."""

from __future__ import annotations

from typing import Final

from mmabits.kernels.schemes.spec import SchemeSpec
from mmabits.kernels.schemes.table_moe import ROWS_MOE
from mmabits.kernels.schemes.table_w4 import ROWS_6_9

_FP8: Final = ("sm_89", "sm_90a", "sm_100a", "sm_120a")

ROWS_1_5: Final = (
    SchemeSpec(
        number=1, name="FP8, dynamic and static scaling", operands="e4m3 x e4m3 forward, e5m2 x e4m3 and e4m3 x e5m2 backward",
        scales="f32 per tensor, per token or per channel", product="e4m3 or e5m2 into f32; scaled in f32",
        quantizers=("schemes.fp8:quantize", "quantize:quantize_fp8", "triton.fp8:quantize_rows"),
        composition="schemes.fp8:fp8_matmul", triton="triton.fp8:fp8_matmul", jax="jax.fp8:fp8_linear", architectures=_FP8,
        source="arXiv 2209.05433; vLLM and DeepGEMM for the forms of the scale",
    ),
    SchemeSpec(
        number=1, name="FP8, delayed scaling", operands="e4m3 and e5m2 as above", scales="f32 per tensor, from a history of amax",
        product="e4m3 or e5m2 into f32; scaled in f32", quantizers=("schemes.fp8:DelayedScaling",),
        composition="schemes.fp8:fp8_matmul", triton="triton.fp8:fp8_matmul", jax="jax.fp8:fp8_linear", architectures=_FP8,
        source="NVIDIA Transformer Engine, DelayedScaling",
    ),
    SchemeSpec(
        number=2, name="FP8 in tiles (DeepSeek-V3)", operands="e4m3 x e4m3",
        scales="f32, or a power of two, for 1 x 128 of activations and 128 x 128 of weights",
        product="e4m3 into f32 for 128 of K, then one f32 fused multiply-add with both scales",
        quantizers=(
            "schemes.fp8_blockwise:quantize_activations", "schemes.fp8_blockwise:quantize_weights",
            "triton.fp8_blockwise:quantize_activations", "triton.fp8_blockwise:quantize_weights",
        ),
        composition="schemes.fp8_blockwise:fp8_blockwise_matmul", triton="triton.fp8_blockwise:fp8_blockwise_matmul",
        jax="jax.fp8_blockwise:fp8_blockwise_matmul", cuda="cuda.fp8_blockwise:fp8_blockwise_matmul",
        architectures=_FP8, source="arXiv 2412.19437; DeepGEMM",
    ),
    SchemeSpec(
        number=3, name="MXFP8", operands="e4m3 or e5m2, rows and columns quantized from the same source",
        scales="ue8m0 for 32 of K: floor, ceil, even, rceil", product="block-scaled into f32; where there is no such unit, bf16",
        quantizers=(
            "schemes.mxfp8:quantize_both", "schemes.mxfp8:quantize_rows", "schemes.mxfp8:quantize_columns",
            "triton.mxfp8:quantize_rows", "triton.mxfp8:quantize_columns",
        ),
        composition="schemes.mxfp8:mxfp8_matmul", triton="triton.mxfp8:mxfp8_matmul", jax="jax.block_scaled:mxfp8_matmul",
        cuda="cuda.block_scaled:block_scaled_matmul",
        architectures=_FP8, source="OCP Microscaling Formats v1.0; arXiv 2506.08027 for rceil in training",
    ),
    SchemeSpec(
        number=4, name="MXFP6", operands="e3m2 or e2m3, four to three bytes", scales="ue8m0 for 32 of K: floor, ceil, even, rceil",
        product="block-scaled into f32; the Triton kernel unpacks to e4m3",
        quantizers=("schemes.mxfp6_mxfp4:quantize_rows", "schemes.mxfp6_mxfp4:quantize_columns", "schemes.mxfp6_mxfp4:pack_fp6"),
        composition="schemes.mxfp6_mxfp4:mx_matmul", triton="triton.mxfp6_mxfp4:mxfp6_matmul", architectures=_FP8,
        source="OCP Microscaling Formats v1.0",
    ),
    SchemeSpec(
        number=4, name="MXFP4", operands="e2m1, two to a byte", scales="ue8m0 for 32 of K: floor, ceil, even, rceil",
        product="block-scaled into f32; where there is no such unit, bf16",
        quantizers=(
            "schemes.mxfp6_mxfp4:quantize_rows", "schemes.mxfp6_mxfp4:quantize_columns",
            "triton.mxfp6_mxfp4:quantize_mxfp4_rows", "triton.mxfp6_mxfp4:quantize_mxfp4_columns",
        ),
        composition="schemes.mxfp6_mxfp4:mx_matmul", triton="triton.mxfp6_mxfp4:mxfp4_matmul",
        source="OCP Microscaling Formats v1.0",
    ),
    SchemeSpec(
        number=4, name="MXFP8 x MXFP4", operands="e4m3 x e2m1, two to a byte", scales="ue8m0 for 32 of K: floor, ceil, even, rceil",
        product="block-scaled into f32; where there is no such unit, bf16, in Triton on sm_120a, too",
        quantizers=("schemes.mxfp8:quantize_rows", "schemes.mxfp6_mxfp4:quantize_columns", "triton.mxfp8:quantize_rows",
                    "triton.mxfp6_mxfp4:quantize_mxfp4_columns"),
        composition="schemes.mxfp6_mxfp4:mx_matmul", triton="triton.block_scaled:block_scaled_matmul", architectures=_FP8,
        source="OCP Microscaling Formats v1.0; PTX, kind::mxf8f6f4",
    ),
    SchemeSpec(
        number=5, name="NVFP4", operands="e2m1, two to a byte; to nearest or stochastic; random Hadamard transforms",
        scales="e4m3 for 16 of K or 16 x 16, and f32 per tensor: amax / 6", product="block-scaled into f32, scaled in f32; else bf16",
        quantizers=(
            "schemes.nvfp4:quantize_rows", "schemes.nvfp4:quantize_columns", "schemes.nvfp4:quantize_both", "schemes.nvfp4:hadamard",
            "triton.nvfp4:quantize", "triton.training:hadamard", "triton.training:quantize_nvfp4_stochastic",
        ),
        composition="schemes.nvfp4:nvfp4_matmul", triton="triton.nvfp4:nvfp4_matmul", jax="jax.block_scaled:nvfp4_matmul",
        cuda="cuda.block_scaled:block_scaled_matmul",
        architectures=_FP8, source="arXiv 2509.25149",
    ),
)  # fmt: skip
"""FP8 and the block-scaled formats."""

SCHEMES: Final = ROWS_1_5 + ROWS_6_9 + ROWS_MOE
"""One row a scheme."""


def schemes_table() -> str:
    """The schemes as a Markdown table."""
    lines = ["| Scheme | Operands | Scales | Product | Kernels | Compared on |", "|---|---|---|---|---|---|"]
    for row in SCHEMES:
        kernels = ", ".join(f"`{name.partition(':')[0]}`" for name in (row.triton, row.jax, row.cuda) if name)
        cells = (f"{row.number} {row.name}", row.operands, row.scales, row.product, kernels, ", ".join(row.architectures))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
