"""Calls of gemlite's kernels: products with weights of 8, 4 and 2 bits, as GEMM, GEMM split over K, and products with a vector."""

from __future__ import annotations

from typing import Any, Final

import torch

from benchmarks.field.cases import FieldCase, Numbers, Tensors

N, K, GROUP = 128, 256, 64
WHY: Final = "weights and results are rounded to f16 (2^-11 each); sums in f32, and halves added by atomics in f16 or f32"


def _operands(rows: int, bits: int) -> Any:
    def draw(numbers: Numbers) -> Tensors:
        most = 4 if numbers.exact else 2**bits  # halves of a sum are exact in f16
        return {"x": numbers.normal(rows, K, most=1), "w": numbers.integers(0, most, N, K, dtype=torch.uint8),
                "scales": numbers.scales(N * K // GROUP, 1, dtype=torch.float16),
                "zeros": numbers.integers(0, most, N * K // GROUP, 1, dtype=torch.float16)}  # fmt: skip

    return draw


def _reference(t: Tensors) -> Tensors:
    w = (t["w"].double().reshape(-1, GROUP) - t["zeros"]) * t["scales"]
    return {"out": t["x"] @ w.reshape(N, K).T}


def _call(bits: int, kind: str) -> Any:
    def call(module: Any, t: Tensors) -> Tensors:
        layer = module.A16Wn(device="cuda:0", dtype=torch.float16).from_weights(t["w"], t["scales"], t["zeros"], bits, GROUP)
        return {"out": layer.forward_manual(t["x"], matmul_type=kind)}

    return call


def _case(kind: str, rows: int, bits: int) -> FieldCase:
    return FieldCase(
        name=f"gemlite-{kind.lower().replace('_', '-')}-{bits}", package="gemlite", module="gemlite.helper",
        kernel=f"{kind}, {bits}-bit weights",
        draw=_operands(rows, bits), call=_call(bits, kind), reference=_reference, bound=2**-8, why=WHY,
        is_exact=True,
    )  # fmt: skip


CASES = (
    _case("GEMM", 40, 4),
    _case("GEMM", 40, 2),
    _case("GEMM_SPLITK", 16, 4),
    _case("GEMV", 1, 4),
    _case("GEMV_REVSPLITK", 1, 4),
    _case("GEMV_SPLITK", 1, 8),
)
