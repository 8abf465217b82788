"""Calls of SageAttention's Triton kernels: INT8 scores with a scale a block, weights and values in f16 with f16 sums."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from benchmarks.field.cases import FieldCase, Numbers, Tensors

INT8 = "queries and keys are rounded to 8 bits a block: the paper's own tables have errors of a few percent; weights and sums in f16"


def _operands(length: int, size: int, dtype: Any = torch.float16) -> Any:
    def draw(numbers: Numbers) -> Tensors:
        return {"q": numbers.normal(1, 4, length, size, dtype=dtype), "k": numbers.normal(1, 2, length, size, dtype=dtype),
                "v": numbers.normal(1, 2, length, size, dtype=dtype)}  # fmt: skip

    return draw


def _padded(keys: Any, values: Any, block: int = 64) -> tuple[Any, Any]:
    """Keys less their mean, and values, with the zeros that the kernel without causal mask counts as keys up to a whole block."""
    keys = keys - keys.mean(-2, keepdim=True)
    return tuple(F.pad(each, (0, 0, 0, -each.shape[-2] % block)) for each in (keys, values))


def _attention(causal: bool) -> Any:
    def reference(each: Tensors) -> Tensors:
        k, v = (each[name].repeat_interleave(2, 1) for name in ("k", "v"))
        if not causal:
            k, v = _padded(k, v)
        return {"out": F.scaled_dot_product_attention(each["q"], k, v, is_causal=causal)}

    return reference


def _varlen(numbers: Numbers) -> Tensors:
    starts = torch.tensor([0, 100, 228], dtype=torch.int32)
    return {name: numbers.normal(228, 2, 64) for name in "qkv"} | {"starts": starts}


def _varlen_reference(each: Tensors) -> Tensors:
    parts = []
    k = each["k"] - each["k"].mean(0, keepdim=True)  # of all sequences
    for first, last in zip(each["starts"][:-1].tolist(), each["starts"][1:].tolist(), strict=True):
        q, keys, v = (part[first:last].transpose(0, 1) for part in (each["q"], k, each["v"]))
        keys, v = (F.pad(part, (0, 0, 0, -part.shape[-2] % 64)) for part in (keys, v))
        parts.append(F.scaled_dot_product_attention(q, keys, v).transpose(0, 1))
    return {"out": torch.cat(parts)}


def _case(name: str, kernel: str, length: int, size: int, *, causal: bool = False) -> FieldCase:
    return FieldCase(
        name=name, package="sageattention", module="sageattention", kernel=kernel, draw=_operands(length, size),
        call=lambda m, t: {"out": m.sageattn(t["q"], t["k"], t["v"], is_causal=causal)},
        reference=_attention(causal), bound=0.03, why=INT8,
    )  # fmt: skip


CASES = (
    _case("sage-attention", "INT8 attention, 4 x 192 x 64", 192, 64),
    _case("sage-attention-rest", "INT8 attention, 4 x 200 x 64", 200, 64),
    _case("sage-attention-causal", "causal INT8 attention, 4 x 256 x 64", 256, 64, causal=True),
    _case("sage-attention-96", "INT8 attention, 4 x 128 x 96", 128, 96),
    _case("sage-attention-128", "INT8 attention, 4 x 128 x 128", 128, 128, causal=True),
    FieldCase(
        name="sage-attention-varlen", package="sageattention", module="sageattention", kernel="INT8 attention of two sequences",
        draw=_varlen,
        call=lambda m, t: {"out": m.sageattn_varlen(t["q"], t["k"], t["v"], t["starts"], t["starts"], 128, 128)},
        reference=_varlen_reference, bound=0.03, why=INT8,
    ),
)  # fmt: skip
