"""Calls of OpenAI's triton_kernels, which vllm has within its own package: products of experts and quantizers to MX formats."""

from __future__ import annotations

from typing import Any, Final

import torch

from benchmarks.field.cases import FROM_ADA, FieldCase, Numbers, Tensors

M, N, K, EXPERTS = 48, 160, 192, 4
F16: Final = "f16 operands, sums in f32, results rounded to f16 (2^-11)"


def _product(dtype: Any) -> Any:
    def draw(numbers: Numbers) -> Tensors:
        return {"x": numbers.normal(M, K, dtype=dtype), "w": numbers.normal(K, N, dtype=dtype, scale=0.2),
                "bias": numbers.normal(N, dtype=torch.float32)}  # fmt: skip

    return draw


def _experts(numbers: Numbers) -> Tensors:
    logits = torch.stack([torch.from_numpy(numbers.rng.permutation(EXPERTS).copy()) for _ in range(M)]).half()
    return {"x": numbers.normal(M, K), "w": numbers.normal(EXPERTS, K, N, scale=0.2),
    "bias": numbers.normal(EXPERTS, N, dtype=torch.float32),
            "logits": logits}  # fmt: skip


def _routed(module: Any, t: Tensors) -> Tensors:
    """Of two experts each, the sum, unweighted."""
    import importlib

    routing = importlib.import_module("triton_kernels.routing")
    data, gather, scatter = routing.routing(t["logits"], 2)
    return {"out": module.matmul_ogs(t["x"], t["w"], t["bias"], data, gather, scatter)}


def _routed_reference(t: Tensors) -> Tensors:
    chosen = t["logits"].topk(2, -1).indices
    return {"out": sum(torch.einsum("mk,mkn->mn", t["x"], t["w"][each]) + t["bias"][each] for each in chosen.unbind(-1))}


def _mx_weights(numbers: Numbers) -> Tensors:
    codes = numbers.integers(0, 256, N, K // 2, dtype=torch.uint8).T  # column-major
    return {"x": numbers.normal(M, K, dtype=torch.bfloat16, most=1), "w": codes, "bias": numbers.normal(N, dtype=torch.float32),
            "scales": numbers.integers(126, 129, N, K // 32, dtype=torch.uint8).T}  # fmt: skip


_E2M1: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _of_mx(codes: Any, scales: Any) -> Any:
    """Codes K / 2 x N, scales K / 32 x N to float64."""
    table = torch.tensor([*_E2M1, *(-each for each in _E2M1)], dtype=torch.float64)
    values = table[torch.stack([codes & 15, codes >> 4], 1).flatten(0, 1).long()]
    return values * torch.exp2(scales.double() - 127).repeat_interleave(32, 0)


def _mx_product(module: Any, t: Tensors) -> Tensors:
    precision = module.PrecisionConfig(weight_scale=t["scales"])
    return {"out": module.matmul_ogs(t["x"], t["w"], t["bias"], precision_config=precision)}


def _downcast(kind: str) -> Any:
    def call(module: Any, t: Tensors) -> Tensors:
        out, scales = module.downcast_to_mxfp(t["x"], torch.uint8 if kind == "fp4" else torch.float8_e4m3fn, 1)
        if kind == "fp4":
            return {"out": _of_mx(out.T.contiguous(), scales.T.contiguous()).T}
        return {"out": out.double() * torch.exp2(scales.double() - 127).repeat_interleave(32, 1)[:, : out.shape[1]]}

    return call


CASES = (
    FieldCase(
        name="matmul-ogs", package="vllm", module="triton_kernels.matmul_ogs",
        kernel="matmul_ogs, f16, with bias", draw=_product(torch.float16),
        call=lambda m, t: {"out": m.matmul_ogs(t["x"], t["w"], t["bias"])}, reference=lambda t: {"out": t["x"] @ t["w"] + t["bias"]},
        bound=2**-10, why=F16, is_exact=True,
    ),
    FieldCase(
        name="matmul-ogs-experts", package="vllm", module="triton_kernels.matmul_ogs", kernel="matmul_ogs with routing, gather and scatter",
        draw=_experts, call=_routed, reference=_routed_reference, bound=2**-9, why=F16 + ", an expert each, and their sum", is_exact=True,
    ),
    FieldCase(
        name="matmul-ogs-mxfp4", package="vllm", module="triton_kernels.matmul_ogs", kernel="matmul_ogs, bf16 by MXFP4", draw=_mx_weights,
        call=_mx_product, reference=lambda t: {"out": t["x"] @ _of_mx(t["w"], t["scales"]) + t["bias"]}, bound=2**-8,
        why="results rounded to bf16 (2^-9)", is_exact=True,
    ),
    FieldCase(
        name="downcast-mxfp8", package="vllm", module="triton_kernels.numerics_details.mxfp", kernel="downcast_to_mxfp, e4m3",
        draw=lambda n: {"x": n.normal(M, K)}, call=_downcast("fp8"), reference=lambda t: {"out": t["x"]}, bound=2**-4,
        why="half a step of e4m3's three fraction bits", architectures=FROM_ADA,
    ),
    FieldCase(
        name="downcast-mxfp4", package="vllm", module="triton_kernels.numerics_details.mxfp", kernel="downcast_to_mxfp, e2m1",
        draw=lambda n: {"x": n.normal(M, K)}, call=_downcast("fp4"), reference=lambda t: {"out": t["x"]}, bound=0.26,
        why="half a step between 4 and 6, in parts of the greatest element",
    ),
)  # fmt: skip
