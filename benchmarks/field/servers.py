"""Calls of the Triton kernels inside vllm and sglang: mixtures of experts, blockwise FP8, AWQ, INT8, attention over paged caches."""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812

from benchmarks.field.cases import FROM_ADA, FieldCase, Numbers, Tensors

F16: Final = "f16 operands, sums in f32, results rounded to f16 (2^-11); weights of softmax are rounded to f16"
BF16: Final = "results are rounded to bf16 (2^-9)"
QUANT: Final = "operands are given quantized; sums in f32, results rounded to f16 (2^-11)"
E4M3: Final = torch.float8_e4m3fn
M, N, K = 40, 160, 256
BLOCK: Final = 16
"""Rows of a tile of tokens."""
TILES: Final = {"BLOCK_SIZE_M": BLOCK, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 4, "num_warps": 4, "num_stages": 3}


def _reverse_awq(packed: Any) -> Any:
    """The eight nibbles of each int32 in the order of columns."""
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7], dtype=torch.int32) * 4
    return ((packed[..., None] >> order) & 15).flatten(-2)


def _words(numbers: Numbers, *shape: int) -> Any:
    return numbers.integers(-(2**31), 2**31, *shape, dtype=torch.int64).to(torch.int32)


# Mixtures of experts -----------------------------------------------------------------------------------------------------

EXPERTS, TOP = 4, 2


def _routed(numbers: Numbers) -> Tensors:
    """Which experts each token goes to, and the order in which the kernels want the pairs: by expert, filled up to whole blocks."""
    tokens = M
    chosen = torch.stack([torch.from_numpy(numbers.rng.permutation(EXPERTS)[:TOP].copy()) for _ in range(tokens)]).to(torch.int32)
    flat, ids, experts = chosen.flatten(), [], []
    for expert in range(EXPERTS):
        mine = torch.nonzero(flat == expert).flatten().tolist()
        mine += [tokens * TOP] * (-len(mine) % BLOCK)
        ids += mine
        experts += [expert] * (len(mine) // BLOCK)
    return {"chosen": chosen, "ids": torch.tensor(ids, dtype=torch.int32), "experts": torch.tensor(experts, dtype=torch.int32),
            "count": torch.tensor([len(ids)], dtype=torch.int32), "weights": numbers.scales(tokens, TOP, most=1.0)}  # fmt: skip


def _experts(dtype: Any) -> Any:
    def draw(numbers: Numbers) -> Tensors:
        return {"a": numbers.normal(M, K, dtype=dtype, scale=0.3), "b": numbers.normal(EXPERTS, N, K, dtype=dtype, scale=0.3),
                **_routed(numbers)}  # fmt: skip

    return draw


def _experts_fp8(numbers: Numbers) -> Tensors:
    return {"a": numbers.normal(M, K, dtype=E4M3), "b": numbers.normal(EXPERTS, N, K, dtype=E4M3),
            "sa": numbers.scales(M, K // 128), "sb": numbers.scales(EXPERTS, -(-N // 128), K // 128), **_routed(numbers)}  # fmt: skip


def _experts_int4(numbers: Numbers) -> Tensors:
    return {"a": numbers.normal(M, K, scale=0.3), "b": numbers.integers(0, 256, EXPERTS, N, K // 2, dtype=torch.uint8),
            "sb": numbers.scales(EXPERTS, N, K // 64, dtype=torch.float16),
            "zeros": numbers.integers(0, 256, EXPERTS, N // 2, K // 64, dtype=torch.uint8), **_routed(numbers)}  # fmt: skip


def _wide_experts(each: Tensors) -> Any:
    """B of the experts in float64, EXPERTS x N x K."""
    b = each["b"]
    if "zeros" in each:
        codes = torch.stack([b & 15, b >> 4], -1).flatten(-2).double()
        zeros = torch.stack([each["zeros"] & 15, each["zeros"] >> 4], 2).flatten(1, 2).double()
        return (codes - zeros.repeat_interleave(64, -1)) * each["sb"].repeat_interleave(64, -1)
    if "sb" in each:
        return b * each["sb"].repeat_interleave(128, 1)[:, :N].repeat_interleave(128, 2)
    return b


def _mixture(each: Tensors) -> Tensors:
    a = each["a"] * each["sa"].repeat_interleave(128, 1) if "sa" in each else each["a"]
    b = _wide_experts(each)[each["chosen"].long()]
    return {"out": torch.einsum("mk,mtnk->mtn", a, b) * each["weights"][..., None]}


def _vllm_mixture(kind: str) -> Any:
    def call(module: Any, t: Tensors) -> Tensors:
        import triton.language as tl

        out = torch.zeros(M, TOP, N, dtype=torch.bfloat16 if t["a"].dtype == torch.bfloat16 else torch.float16, device="cuda")
        compute = tl.bfloat16 if out.dtype == torch.bfloat16 else tl.float16
        common = (True, TOP, dict(TILES), compute)
        routed = (t["weights"].reshape(M, TOP), t["ids"], t["experts"], t["count"])
        if kind == "int4":
            module.invoke_fused_moe_wna16_triton_kernel(
                t["a"],
                t["b"],
                out,
                t["sb"],
                t["zeros"],
                *routed,
                True,
                TOP,
                TILES | {"SPLIT_K": 1},
                compute,
                use_int8_w8a16=False,
                use_int4_w4a16=True,
                block_shape=[0, 64],
            )
        else:
            module.invoke_fused_moe_triton_kernel(
                t["a"], t["b"], out, t.get("sa"), t.get("sb"), *routed, *common, use_fp8_w8a8=kind == "fp8", use_int8_w8a8=False,
                use_int8_w8a16=False, use_int4_w4a16=False, per_channel_quant=False, block_shape=[128, 128] if kind == "fp8" else None,
            )  # fmt: skip
        return {"out": out}

    return call


def _sglang_mixture(module: Any, t: Tensors) -> Tensors:
    import triton.language as tl

    out = torch.zeros(M, TOP, N, dtype=torch.float16, device="cuda")
    module.invoke_fused_moe_kernel(
        t["a"], t["b"], None, out, None, None, None, t["weights"], t["chosen"], t["ids"], t["experts"], t["count"], True, TOP,
        dict(TILES), tl.float16, use_fp8_w8a8=False, use_int8_w8a8=False, use_int8_w8a16=False, use_int4_w4a16=False,
        per_channel_quant=False,
    )  # fmt: skip
    return {"out": out}


# Products ----------------------------------------------------------------------------------------------------------------


def _blockwise(numbers: Numbers) -> Tensors:
    return {"a": numbers.normal(M, K, dtype=E4M3), "b": numbers.normal(N, K, dtype=E4M3), "sa": numbers.scales(M, K // 128),
            "sb": numbers.scales(-(-N // 128), K // 128)}  # fmt: skip


def _blockwise_reference(t: Tensors) -> Tensors:
    a = t["a"] * t["sa"].repeat_interleave(128, 1)
    b = t["b"] * t["sb"].repeat_interleave(128, 0)[:N].repeat_interleave(128, 1)
    return {"out": a @ b.T}


def _awq(numbers: Numbers) -> Tensors:
    return {"a": numbers.normal(M, K, scale=0.3, most=1), "b": _words(numbers, K, N // 8), "zeros": _words(numbers, K // 64, N // 8),
            "scales": numbers.scales(K // 64, N, dtype=torch.float16)}  # fmt: skip


def _awq_weights(t: Tensors) -> Any:
    codes, zeros = _reverse_awq(t["b"]).double(), _reverse_awq(t["zeros"]).double().repeat_interleave(64, 0)
    return (codes - zeros) * t["scales"].repeat_interleave(64, 0)


def _scaled(dtype: Any) -> Any:
    def draw(numbers: Numbers) -> Tensors:
        def made(*shape: int) -> Any:
            return numbers.integers(-127, 128, *shape, dtype=dtype) if dtype == torch.int8 else numbers.normal(*shape, dtype=dtype)

        return {"a": made(M, K), "b": made(N, K).T, "sa": numbers.scales(M, 1), "sb": numbers.scales(N, 1), "bias": numbers.normal(N)}

    return draw


def _scaled_reference(t: Tensors) -> Tensors:
    return {"out": t["sa"] * (t["a"].double() @ t["b"].double()) * t["sb"].T + t["bias"]}


def _row_quantized(numbers: Numbers) -> Tensors:
    return {"x": numbers.normal(M, 200)}


def _row_quantized_reference(t: Tensors) -> Tensors:
    scale = t["x"].abs().amax(-1, keepdim=True) / 127
    return {"out": t["x"], "scale": scale}


# Attention ---------------------------------------------------------------------------------------------------------------

HEADS, KV, SIZE, PAGE = 4, 2, 64, 16


def _ragged(numbers: Numbers) -> Tensors:
    lengths = [70, 129]
    total = sum(lengths)
    return {"q": numbers.normal(total, HEADS, SIZE), "k": numbers.normal(total, KV, SIZE), "v": numbers.normal(total, KV, SIZE),
            "starts": torch.tensor([0, lengths[0]], dtype=torch.int32), "lengths": torch.tensor(lengths, dtype=torch.int32)}  # fmt: skip


def _attended(q: Any, k: Any, v: Any, *, causal: bool) -> Any:
    """Queries x heads x size; the last query sees every key."""
    q, k, v = (each.transpose(0, 1) for each in (q, k, v))
    k, v = (each.repeat_interleave(q.shape[0] // each.shape[0], 0) for each in (k, v))
    mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - q.shape[1]) if causal else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1)


def _ragged_reference(t: Tensors) -> Tensors:
    parts = []
    for first, length in zip(t["starts"].tolist(), t["lengths"].tolist(), strict=True):
        parts.append(_attended(*(t[name][first : first + length] for name in "qkv"), causal=True))
    return {"out": torch.cat(parts)}


def _prefill(module: Any, t: Tensors) -> Tensors:
    out = torch.empty_like(t["q"])
    module.context_attention_fwd(t["q"], t["k"], t["v"], out, t["starts"], t["lengths"], 129, is_causal=True)
    return {"out": out}


def _cache(numbers: Numbers) -> Tensors:
    """Two sequences whose keys and values lie in pages that are anywhere; the table is longer than they are, as kernels read beyond."""
    lengths = [75, 130]
    pages = torch.from_numpy(numbers.rng.permutation(24).copy()).to(torch.int32).reshape(2, 12)
    return {"q": numbers.normal(2, HEADS, SIZE), "k": numbers.normal(24, PAGE, KV, SIZE), "v": numbers.normal(24, PAGE, KV, SIZE),
            "pages": pages, "lengths": torch.tensor(lengths, dtype=torch.int32)}  # fmt: skip


def _of_pages(t: Tensors, sequence: int) -> tuple[Any, Any]:
    where = t["pages"][sequence].long()
    return tuple(t[name][where].flatten(0, 1)[: int(t["lengths"][sequence])] for name in "kv")  # type: ignore[return-value]


def _decode_reference(t: Tensors) -> Tensors:
    return {"out": torch.cat([_attended(t["q"][s : s + 1], *_of_pages(t, s), causal=False) for s in range(2)])}


def _vllm_decode(module: Any, t: Tensors) -> Tensors:
    out, lse = torch.empty(2, HEADS, SIZE, dtype=torch.float16), torch.empty(2, HEADS)
    module.decode_attention_fwd(
        t["q"], t["k"], t["v"], out, lse, t["pages"], t["lengths"], torch.empty(2, HEADS, 4, SIZE + 1), 4, SIZE**-0.5, PAGE
    )  # fmt: skip
    return {"out": out}


def _unified(numbers: Numbers) -> Tensors:
    """The last 5 and the last 40 queries of two sequences."""
    return _cache(numbers) | {"q": numbers.normal(45, HEADS, SIZE), "starts": torch.tensor([0, 5, 45], dtype=torch.int32)}


def _unified_reference(t: Tensors) -> Tensors:
    first, last = t["starts"][:-1].tolist(), t["starts"][1:].tolist()
    return {"out": torch.cat([_attended(t["q"][first[s] : last[s]], *_of_pages(t, s), causal=True) for s in range(2)])}


def _vllm_unified(module: Any, t: Tensors) -> Tensors:
    out = torch.empty_like(t["q"])
    module.unified_attention(
        t["q"], t["k"], t["v"], out, t["starts"], 40, t["lengths"], 130, SIZE**-0.5, True, (-1, -1), t["pages"], 0.0, None, None, None
    )  # fmt: skip
    return {"out": out}


def _tokens(numbers: Numbers) -> Tensors:
    """Two sequences of which each token's key and value lies anywhere."""
    starts = torch.tensor([0, 75, 205], dtype=torch.int32)
    return {"q": numbers.normal(2, HEADS, SIZE), "k": numbers.normal(300, KV, SIZE), "v": numbers.normal(300, KV, SIZE),
            "starts": starts, "where": torch.from_numpy(numbers.rng.permutation(300)[:205].copy())}  # fmt: skip


def _of_tokens(t: Tensors, sequence: int) -> tuple[Any, Any]:
    where = t["where"][t["starts"][sequence] : t["starts"][sequence + 1]]
    return t["k"][where], t["v"][where]


def _tokens_reference(t: Tensors) -> Tensors:
    return {"out": torch.cat([_attended(t["q"][s : s + 1], *_of_tokens(t, s), causal=False) for s in range(2)])}


def _sglang_decode(module: Any, t: Tensors) -> Tensors:
    out = torch.empty(2, HEADS, SIZE, dtype=torch.float16)
    splits = torch.full((2,), 4, dtype=torch.int32)
    module.decode_attention_fwd(
        t["q"], t["k"], t["v"], out, t["starts"], t["where"], torch.empty(2, HEADS, 4, SIZE), torch.empty(2, HEADS, 4), splits, 4,
        SIZE**-0.5, 1.0, 1.0,
    )  # fmt: skip
    return {"out": out}


def _extended(numbers: Numbers) -> Tensors:
    new = torch.tensor([0, 20, 70], dtype=torch.int32)
    return _tokens(numbers) | {"q": numbers.normal(70, HEADS, SIZE), "new": new, "knew": numbers.normal(70, KV, SIZE),
                               "vnew": numbers.normal(70, KV, SIZE)}  # fmt: skip


def _extended_reference(t: Tensors) -> Tensors:
    parts = []
    for s in range(2):
        k, v = _of_tokens(t, s)
        part = slice(int(t["new"][s]), int(t["new"][s + 1]))
        parts.append(_attended(t["q"][part], torch.cat([k, t["knew"][part]]), torch.cat([v, t["vnew"][part]]), causal=True))
    return {"out": torch.cat(parts)}


def _sglang_extend(module: Any, t: Tensors) -> Tensors:
    out = torch.empty_like(t["q"])
    module.extend_attention_fwd(
        t["q"], t["knew"], t["vnew"], out, t["k"], t["v"], t["new"], t["starts"], t["where"], None, True, None, 50, 1.0, 1.0
    )  # fmt: skip
    return {"out": out}


def _sum_reduced(module: Any, t: Tensors) -> Tensors:
    out = torch.empty(M, 200, dtype=torch.float16)
    module.moe_sum_reduce_triton(t["x"], out, 0.5)
    return {"out": out}


_VLLM = "vllm.model_executor.layers."
_SGLANG = "sglang.kernels.ops."

CASES = (
    FieldCase(
        name="vllm-fused-moe", package="vllm", module=_VLLM + "fused_moe.fused_moe",
        kernel="experts' products, f16", draw=_experts(torch.float16),
        call=_vllm_mixture("f16"), reference=_mixture, bound=2**-10, why=F16, is_exact=True,
    ),
    FieldCase(
        name="vllm-fused-moe-bf16", package="vllm", module=_VLLM + "fused_moe.fused_moe", kernel="experts' products, bf16",
        draw=_experts(torch.bfloat16), call=_vllm_mixture("bf16"), reference=_mixture, bound=2**-7, why=BF16, is_exact=True,
    ),
    FieldCase(
        name="vllm-fused-moe-fp8", package="vllm", module=_VLLM + "fused_moe.fused_moe",
        kernel="experts' products, blockwise FP8", draw=_experts_fp8,
        call=_vllm_mixture("fp8"), reference=_mixture, bound=2**-9, is_exact=True, architectures=FROM_ADA,
        why=QUANT + "; sums of FP8 products keep 13 bits on sm_90a",
    ),
    FieldCase(
        name="vllm-fused-moe-int4", package="vllm", module=_VLLM + "fused_moe.fused_moe", kernel="experts' products, 4-bit weights",
        draw=_experts_int4, call=_vllm_mixture("int4"),
        reference=_mixture, bound=2**-9, why=QUANT + "; weights are rounded to f16", is_exact=True,
    ),
    FieldCase(
        name="vllm-blockwise-fp8", package="vllm", module=_VLLM + "quantization.utils.fp8_utils",
        kernel="blockwise FP8 product", draw=_blockwise,
        call=lambda m, t: {"out": m.w8a8_triton_block_scaled_mm(t["a"], t["b"], t["sa"], t["sb"], [128, 128], torch.float16)},
        reference=_blockwise_reference, bound=2**-9, is_exact=True, architectures=FROM_ADA,
        why=QUANT + "; sums of FP8 products keep 13 bits on sm_90a",
    ),
    FieldCase(
        name="vllm-awq-gemm", package="vllm", module=_VLLM + "quantization.awq_triton", kernel="AWQ product, split over K", draw=_awq,
        call=lambda m, t: {"out": m.awq_gemm_triton(t["a"], t["b"], t["scales"], t["zeros"], 2)},
        reference=lambda t: {"out": t["a"] @ _awq_weights(t)}, bound=2**-7, is_exact=True,
        why="weights and every sum are f16 (2^-11 each, 8 steps and the two halves)",
    ),
    FieldCase(
        name="vllm-awq-dequantize", package="vllm", module=_VLLM + "quantization.awq_triton", kernel="AWQ weights to f16", draw=_awq,
        call=lambda m, t: {"out": m.awq_dequantize_triton(t["b"], t["scales"], t["zeros"])},
        reference=lambda t: {"out": _awq_weights(t)}, bound=2**-11, why="one rounding to f16", is_exact=True,
    ),
    FieldCase(
        name="vllm-scaled-mm-int8", package="vllm", module=_VLLM + "quantization.compressed_tensors.triton_scaled_mm",
        kernel="INT8 product with scales",
        draw=_scaled(torch.int8), call=lambda m, t: {"out": m.triton_scaled_mm(t["a"], t["b"], t["sa"], t["sb"], torch.float32, t["bias"])},
        reference=_scaled_reference, bound=1e-6, why="exact sums; scales in f32", is_exact=True,
    ),
    FieldCase(
        name="vllm-scaled-mm-fp8", package="vllm", module=_VLLM + "quantization.compressed_tensors.triton_scaled_mm",
        kernel="FP8 product with scales",
        draw=_scaled(E4M3), call=lambda m, t: {"out": m.triton_scaled_mm(t["a"], t["b"], t["sa"], t["sb"], torch.float16, t["bias"])},
        reference=_scaled_reference, bound=2**-9, is_exact=True, architectures=FROM_ADA,
        why=QUANT + "; sums of FP8 products keep 13 bits on sm_90a",
    ),
    FieldCase(
        name="vllm-int8-rows", package="vllm", module=_VLLM + "quantization.utils.int8_utils", kernel="rows to INT8", draw=_row_quantized,
        call=lambda m, t: dict(zip(("out", "scale"), (lambda q, s: (q.double() * s, s))(*m.per_token_quant_int8(t["x"])), strict=True)),
        reference=_row_quantized_reference, bound=1 / 250, why="half a step of the 254 between the greatest and its negative",
    ),
    FieldCase(
        name="vllm-prefill-attention", package="vllm", module="vllm.v1.attention.ops.triton_prefill_attention",
        kernel="causal attention of two sequences",
        draw=_ragged, call=_prefill, reference=_ragged_reference, bound=2**-9, why=F16,
    ),
    FieldCase(
        name="vllm-decode-attention", package="vllm", module="vllm.v1.attention.ops.triton_decode_attention",
        kernel="decoding over a paged cache, split",
        draw=_cache, call=_vllm_decode, reference=_decode_reference, bound=2**-9, why=F16,
    ),
    FieldCase(
        name="vllm-unified-attention", package="vllm", module="vllm.v1.attention.ops.triton_unified_attention",
        kernel="attention over a paged cache",
        draw=_unified, call=_vllm_unified, reference=_unified_reference, bound=2**-9, why=F16,
    ),
    FieldCase(
        name="sglang-fused-moe", package="sglang", module=_SGLANG + "moe.fused_moe_triton_kernels",
        kernel="experts' products, f16", draw=_experts(torch.float16),
        call=_sglang_mixture, reference=_mixture, bound=2**-10, why=F16, is_exact=True,
    ),
    FieldCase(
        name="sglang-moe-sum", package="sglang", module=_SGLANG + "moe.fused_moe_triton_kernels", kernel="sum over a token's experts",
        draw=lambda n: {"x": n.normal(M, 4, 200)}, call=_sum_reduced, reference=lambda t: {"out": 0.5 * t["x"].sum(1)}, bound=2**-11,
        why="one rounding to f16", is_exact=True,
    ),
    FieldCase(
        name="sglang-blockwise-fp8", package="sglang", module=_SGLANG + "gemm.fp8_kernel", kernel="blockwise FP8 product", draw=_blockwise,
        call=lambda m, t: {"out": m.w8a8_block_fp8_matmul_triton(t["a"], t["b"], t["sa"], t["sb"], [128, 128], torch.float16)},
        reference=_blockwise_reference, bound=2**-9, is_exact=True, architectures=FROM_ADA,
        why=QUANT + "; sums of FP8 products keep 13 bits on sm_90a",
    ),
    FieldCase(
        name="sglang-awq-dequantize", package="sglang", module=_SGLANG + "quantization.awq_triton", kernel="AWQ weights to f16", draw=_awq,
        call=lambda m, t: {"out": m.awq_dequantize_triton(t["b"], t["scales"], t["zeros"])},
        reference=lambda t: {"out": _awq_weights(t)}, bound=2**-11, why="one rounding to f16", is_exact=True,
    ),
    FieldCase(
        name="sglang-prefill-attention", package="sglang", module=_SGLANG + "attention.prefill_attention",
        kernel="causal attention of two sequences",
        draw=_ragged, call=_prefill, reference=_ragged_reference, bound=2**-9, why=F16,
    ),
    FieldCase(
        name="sglang-decode-attention", package="sglang", module=_SGLANG + "attention.decode_attention",
        kernel="decoding over scattered tokens, split",
        draw=_tokens, call=_sglang_decode, reference=_tokens_reference, bound=2**-9, why=F16,
    ),
    FieldCase(
        name="sglang-extend-attention", package="sglang", module=_SGLANG + "attention.extend_attention",
        kernel="attention of new tokens over old ones",
        draw=_extended, call=_sglang_extend, reference=_extended_reference, bound=2**-9, why=F16,
    ),
)  # fmt: skip
