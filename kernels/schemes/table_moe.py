"""Rows of scheme 9: mixtures of experts beyond W4A16 and MXFP4."""

from __future__ import annotations

from typing import Final

from mmabits.kernels.schemes.spec import SchemeSpec

_FP8: Final = ("sm_89", "sm_90a", "sm_100a", "sm_120a")
_ROUTED: Final = ("schemes.moe:route", "schemes.moe:align", "schemes.moe_experts:quantize_experts")

ROWS_MOE: Final = (
    SchemeSpec(
        number=9, name="MoE, W8A8 experts", operands="INT8 x INT8, tokens sorted by expert",
        scales="f32 per token and per output channel; f32 routing weights", product="s8 into s32; scaled in f32; experts added in f32",
        quantizers=("schemes.w8a8:quantize_int8", *_ROUTED), composition="schemes.moe_experts:moe_matmul",
        triton="triton.moe_experts:moe_w8a8", source="the fused MoE kernel of vLLM, whose sums of 64 or 128 of K are added in f32",
    ),
    SchemeSpec(
        number=9, name="MoE, W8A16 experts", operands="f16 or bf16 x INT8 or FP8 codes, tokens sorted by expert",
        scales="f16 per output channel or for a group of K; f32 routing weights", product="as W8A16; experts added in f32",
        quantizers=("schemes.w8a16:quantize_w8", *_ROUTED), composition="schemes.moe_experts:moe_matmul",
        triton="triton.moe_experts:moe_w8a16", source="the fused MoE kernels of vLLM",
    ),
    SchemeSpec(
        number=9, name="MoE, FP8 experts in tiles (DeepSeek-V3)", operands="e4m3 x e4m3, tokens sorted by expert",
        scales="f32, or a power of two, for 1 x 128 of activations and 128 x 128 of weights; f32 routing weights",
        product="e4m3 into f32 for 128 of K, then one f32 fused multiply-add with both scales; experts added in f32",
        quantizers=("schemes.fp8_blockwise:quantize_activations", "triton.fp8_blockwise:quantize_activations", *_ROUTED),
        composition="schemes.moe_experts:moe_matmul", triton="triton.moe_experts:moe_fp8_tiles", architectures=_FP8,
        source="arXiv 2412.19437; DeepGEMM's grouped products",
    ),
    SchemeSpec(
        number=9, name="MoE, MXFP8 experts", operands="e4m3 x e4m3, tokens sorted by expert",
        scales="ue8m0 for 32 of K; f32 routing weights",
        product="block-scaled into f32; where there is no such unit, bf16; experts added in f32",
        quantizers=("schemes.mxfp8:quantize_rows", "triton.mxfp8:quantize_rows", *_ROUTED),
        composition="schemes.moe_experts:moe_matmul", triton="triton.moe_experts:moe_mxfp8", architectures=_FP8,
        source="OCP Microscaling Formats v1.0",
    ),
    SchemeSpec(
        number=9, name="MoE, NVFP4 experts", operands="e2m1 x e2m1, two to a byte, tokens sorted by expert",
        scales="e4m3 for 16 of K, f32 for all activations and for each expert; f32 routing weights",
        product="block-scaled into f32, scaled in f32; else bf16; experts added in f32",
        quantizers=("schemes.nvfp4:quantize_rows", "triton.nvfp4:quantize", *_ROUTED),
        composition="schemes.moe_experts:moe_matmul", triton="triton.moe_experts:moe_nvfp4", architectures=_FP8,
        source="arXiv 2509.25149 for the format",
    ),
    SchemeSpec(
        number=9, name="MoE, gated layer", operands="tokens in f16 or bf16, quantized before both products; experts as in the rows above",
        scales="of the scheme; f32 routing weights",
        product="of the scheme; silu(gate) x up in f32, rounded to f16 or bf16; experts added in f16 or bf16, or in f32 and rounded once",
        quantizers=("schemes.moe_layer:quantize_layer", "triton.moe_layer:quantize_int8_rows", "schemes.moe_layer:swiglu"),
        composition="schemes.moe_layer:moe_layer", triton="triton.moe_layer:moe_layer", architectures=_FP8,
        source="the fused experts of vLLM (fused_experts_impl)",
    ),
)  # fmt: skip
"""One row a scheme of experts."""
