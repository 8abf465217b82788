"""Rows of the schemes 6 to 9: INT4 and INT8 weights, quantized attention, mixtures of experts."""

from __future__ import annotations

from typing import Final

from mmabits.kernels.schemes.spec import SchemeSpec

_FP8: Final = ("sm_89", "sm_90a", "sm_100a", "sm_120a")

ROWS_6_9: Final = (
    SchemeSpec(
        number=6, name="W4A16 (AWQ)", operands="f16 or bf16 x INT4", scales="f16 scale and 4-bit zero point for 128 of K",
        product="f16 or bf16 into f32; weights dequantized in registers, one rounding",
        quantizers=("schemes.w4a16:quantize_int4", "schemes.awq:awq_quantize", "schemes.packing_awq_gptq:AwqTensors.pack"),
        composition="schemes.w4a16:w4a16_matmul", triton="triton.w4a16:awq_matmul", jax="jax.w4a16:awq_matmul",
        cuda="cuda.w4a16:w4a16_matmul",
        source="arXiv 2306.00978; AutoAWQ's gemm packing",
    ),
    SchemeSpec(
        number=6, name="W4A16 (GPTQ)", operands="f16 or bf16 x INT4", scales="f16 scale and 4-bit zero point for a group of K, g_idx",
        product="f16 or bf16 into f32; weights dequantized in registers, one rounding",
        quantizers=("schemes.gptq:gptq_quantize", "schemes.packing_awq_gptq:GptqTensors.pack"),
        composition="schemes.w4a16:w4a16_matmul", triton="triton.w4a16:gptq_matmul", source="arXiv 2210.17323; AutoGPTQ's packing",
    ),
    SchemeSpec(
        number=6, name="W8A16 (INT8)", operands="f16 or bf16 x INT8", scales="f16 per output channel or for a group of K",
        product="f16 or bf16 into f32; group scales on weights in registers, one rounding, channel scales on sums in f32",
        quantizers=("schemes.w8a16:quantize_w8",), composition="schemes.w8a16:w8a16_matmul", triton="triton.w8a16:w8a16_matmul",
        jax="jax.narrow_weights:w8a16_matmul", cuda="cuda.narrow_weights:w8a16_matmul",
        source="arXiv 2408.11743 and vLLM, gptq_marlin",
    ),
    SchemeSpec(
        number=6, name="W8A16 (FP8)", operands="f16 or bf16 x FP8 codes, unpacked by their bits",
        scales="f16 per output channel or for a group of K", product="as of INT8 weights",
        quantizers=("schemes.w8a16:quantize_w8",), composition="schemes.w8a16:w8a16_matmul", triton="triton.w8a16:w8a16_matmul",
        jax="jax.narrow_weights:w8a16_matmul", cuda="cuda.narrow_weights:w8a16_matmul",
        source="vLLM, marlin_utils_fp8",
    ),
    SchemeSpec(
        number=7, name="W8A8 (SmoothQuant)", operands="INT8 x INT8", scales="f32 per token and per output channel",
        product="s8 into s32; scaled in f32",
        quantizers=("schemes.w8a8:quantize_int8", "schemes.w8a8:smoothing_scales", "schemes.w8a8:smooth"),
        composition="schemes.w8a8:w8a8_matmul", triton="triton.w8a8:w8a8_matmul", jax="jax.w8a8:w8a8_matmul", source="arXiv 2211.10438",
    ),
    SchemeSpec(
        number=7, name="W8A8, asymmetric", operands="u8 or s8 x s8, with zero points", scales="f32 and a zero point per token and channel",
        product="u8 x s8 into s32, in Triton and JAX s8 x s8; corrected in s32, exactly; scaled in f32",
        quantizers=("schemes.asymmetric:quantize_affine", "triton.asymmetric:quantize_rows"),
        composition="schemes.asymmetric:asymmetric_matmul", triton="triton.asymmetric:asymmetric_matmul",
        jax="jax.w8a8:asymmetric_matmul", cuda="cuda.integers:asymmetric_matmul", source="arXiv 1712.05877; vLLM's azp kernels",
    ),
    SchemeSpec(
        number=7, name="LLM.int8()", operands="INT8 x INT8, outlier columns f16 x f16", scales="f32 per token and per output channel",
        product="s8 into s32 scaled in f32, plus f16 into f32",
        quantizers=("schemes.w8a8:split_outliers", "schemes.w8a8:quantize_int8"),
        composition="schemes.w8a8:llm_int8_matmul", triton="triton.w8a8:llm_int8_matmul", jax="jax.w8a8:llm_int8_matmul",
        source="arXiv 2208.07339",
    ),
    SchemeSpec(
        number=7, name="W4A8 (QQQ)", operands="INT8 x INT4", scales="f32 per token and per output channel; f16 for a group of K",
        product="s8 into s32, INT4 made INT8 in registers; scaled in f32",
        quantizers=("schemes.w8a8:quantize_int8", "schemes.w4a8:quantize_w4a8"),
        composition="schemes.w4a8:w4a8_matmul", triton="triton.w4a8:w4a8_matmul", jax="jax.w8a8:w4a8_matmul", source="arXiv 2406.09904",
    ),
    SchemeSpec(
        number=7, name="W4A8 (FP8)", operands="e4m3 x INT4", scales="f32 per token; f16 per output channel or for a group of K",
        product="e4m3 into f32, INT4 made e4m3 by its bits; groups added by f32 fused multiply-adds",
        quantizers=("schemes.fp8:quantize", "schemes.w4a8_fp8:quantize_w4a8_fp8"),
        composition="schemes.w4a8_fp8:w4a8_fp8_matmul", triton="triton.w4a8_fp8:w4a8_fp8_matmul", architectures=_FP8,
        jax="jax.narrow_weights:w4a8_fp8_matmul", cuda="cuda.narrow_weights:w4a8_fp8_matmul",
        source="vLLM, Marlin with FP8 activations",
    ),
    SchemeSpec(
        number=7, name="W4A4 (INT4)", operands="INT4 x INT4", scales="f32 per token and per output channel",
        product="s4 into s32 up to sm_89, s8 from Hopper on and in Triton; scaled in f32",
        quantizers=("schemes.w4a4:quantize_int4_symmetric",), composition="schemes.w4a4:w4a4_matmul", triton="triton.w4a4:w4a4_matmul",
        jax="jax.w8a8:w4a4_matmul", cuda="cuda.integers:w4a4_matmul", source="arXiv 2404.00456",
    ),
    SchemeSpec(
        number=8, name="SageAttention", operands="Q and smoothed K INT8, P and V f16", scales="f32 for a block of queries and of keys",
        product="s8 into s32; f16 into f16, blocks added in f32",
        quantizers=("schemes.attention:quantize_queries", "schemes.attention:quantize_keys"),
        composition="schemes.attention:sage_attention", triton="triton.attention:sage_attention", source="arXiv 2410.02367",
    ),
    SchemeSpec(
        number=8, name="SageAttention, FP8 successor", operands="Q and smoothed K INT8, P and V e4m3",
        scales="f32 for a block of queries and of keys, and for a column of V", product="s8 into s32; e4m3 into f32, blocks added in f32",
        quantizers=("schemes.attention:quantize_queries", "schemes.attention:quantize_keys", "schemes.attention:quantize_values"),
        composition="schemes.attention:sage2_attention", triton="triton.attention:sage2_attention", architectures=_FP8,
        cuda="cuda.sage2:sage2_attention",
        source="arXiv 2411.10958, with the INT8 scores of the first paper",
    ),
    SchemeSpec(
        number=8, name="FP8 attention, FP8 KV cache", operands="Q, K, P and V e4m3, K and V in pages", scales="f32 for each tensor",
        product="e4m3 into f32, one chain of blocks",
        quantizers=("schemes.attention:quantize_fp8_queries", "schemes.attention:PagedCache.write"),
        composition="schemes.attention:fp8_attention", triton="triton.attention:fp8_attention", architectures=_FP8,
        source="arXiv 2407.08608 for the offset of P; the cache is vLLM's",
    ),
    SchemeSpec(
        number=8, name="FP8 attention in blocks (FlashAttention-3)", operands="Q, K, P and V e4m3, Q and K after random signs and Hadamard",
        scales="f32 for a block of queries, of keys and of values", product="e4m3 into f32, blocks scaled and added in f32",
        quantizers=(
            "schemes.attention:quantize_fp8_blocks", "schemes.attention:incoherent", "triton.attention:quantize_fp8_blocks",
        ),
        composition="schemes.attention:fp8_block_attention", triton="triton.attention:fp8_block_attention", architectures=_FP8,
        source="arXiv 2407.08608, section 3.3",
    ),
    *(
        SchemeSpec(
            number=8, name=f"KV cache, {name}", operands=operands, scales=scales, product=product,
            quantizers=("schemes.kv_cache:quantize_tokens", "schemes.kv_cache:KvCache.append", "triton.kv_cache:quantize_tokens"),
            composition="schemes.attention_cached:cached_attention", triton="triton.attention_cached:cached_attention", source=source,
        )
        for name, operands, scales, product, source in (
            ("INT8", "Q and P f16 or bf16, K and V INT8 in pages", "f32 for each token and head",
             "codes as f16 or bf16 into f32; scores and p scaled in f32", "vLLM, int8_per_token_head"),
            ("FP8", "Q and P f16 or bf16, K and V e4m3 in pages", "f32 for each token and head",
             "codes as f16 or bf16 into f32; scores and p scaled in f32", "vLLM, fp8_per_token_head"),
            ("INT8 and INT4, asymmetric", "Q and P f16 or bf16, K and V INT8 or INT4 in pages",
             "f16 scale and least number: of K for a channel of 32 tokens, of V for 32 channels of a token",
             "dequantized in registers to f16 or bf16, into f32", "arXiv 2402.02750 (KIVI)"),
            ("MXFP8", "Q and P f16 or bf16, K and V e4m3 in pages", "ue8m0 for 32 channels of a token",
             "dequantized in registers to f16 or bf16, into f32", "OCP Microscaling Formats v1.0"),
            ("NVFP4", "Q and P f16 or bf16, K and V e2m1 in pages", "e4m3 for 16 channels of a token, and f32 for the whole",
             "dequantized in registers to f16 or bf16, into f32; scores and output scaled in f32", "NVIDIA TensorRT-LLM; arXiv 2509.25149"),
        )
    ),
    SchemeSpec(
        number=9, name="MoE, W4A16 experts", operands="f16 or bf16 x INT4, tokens sorted by expert",
        scales="f16 scale and 4-bit zero point for 128 of K; f32 routing weights", product="f16 or bf16 into f32; experts added in f32",
        quantizers=("schemes.moe:route", "schemes.moe:align", "schemes.moe:Int4Experts.pack"),
        composition="schemes.moe:moe_w4a16", triton="triton.moe:moe_w4a16", source="the fused MoE kernel of vLLM",
    ),
    SchemeSpec(
        number=9, name="MoE, MXFP4 experts", operands="bf16 x e2m1, tokens sorted by expert",
        scales="ue8m0 for 32 of K; f32 routing weights", product="bf16 into f32 on every architecture: the weights are converted, exactly",
        quantizers=("schemes.moe:route", "schemes.moe:align", "schemes.moe:quantize_mxfp4_experts"),
        composition="schemes.moe:moe_mxfp4", triton="triton.moe:moe_mxfp4", source="gpt-oss (arXiv 2508.10925)",
    ),
)  # fmt: skip
"""One row a scheme. What each computes to the bit stands with its composition."""
