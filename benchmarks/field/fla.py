"""Calls of fla-core's kernels: linear attention in chunks with gates and delta rules, and native sparse attention."""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812

from benchmarks.field.cases import FieldCase, Numbers, Tensors

B, T, H, SIZE = 1, 100, 2, 64
F16: Final = "f16 operands, states and weights within a chunk are rounded to f16; sums in f32"
TF32: Final = "as f16, and the inverse of a chunk's triangle is computed in tf32 or f16 products"


def _operands(*extra: str, normalized: bool = False) -> Any:
    def draw(numbers: Numbers) -> Tensors:
        found = {name: numbers.normal(B, T, H, SIZE, scale=0.5, most=1) for name in ("q", "k", "v", "grad")}
        if normalized:
            found["k"] = F.normalize(found["k"].float(), dim=-1).half()
        for name in extra:
            value = numbers.normal(B, T, H, dtype=torch.float32)
            found[name] = F.logsigmoid(value) / 4 if name == "g" else value.sigmoid()
        return found

    return draw


def _recurrent(each: Tensors, scale: float) -> Tensors:
    """State after state: decays by exp(g), forgets what the key brings up (delta rule), takes the value."""
    q, k, v = (each[name].transpose(1, 2) for name in "qkv")
    g, beta = (each[name].transpose(1, 2) if name in each else None for name in ("g", "beta"))
    state = torch.zeros(B, H, SIZE, SIZE, dtype=q.dtype)
    outs = []
    for t in range(T):
        if g is not None:
            state = state * g[:, :, t].exp()[..., None, None]
        value = v[:, :, t]
        if beta is not None:
            value = (value - torch.einsum("bhkv,bhk->bhv", state, k[:, :, t])) * beta[:, :, t, None]
        state = state + k[:, :, t, :, None] * value[:, :, None]
        outs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, :, t] * scale))
    return {"out": torch.stack(outs, 1)}


def _selected(numbers: Numbers) -> Tensors:
    """Sixteen query heads share a key's; each query sees the block it is in and one before, those of the first block that one twice."""
    tokens = 128
    own = torch.arange(tokens) // 32
    before = torch.from_numpy(numbers.rng.integers(0, 4, tokens)).minimum((own - 1).clamp(min=0))
    return {"q": numbers.normal(1, tokens, 16, SIZE), "k": numbers.normal(1, tokens, 1, SIZE), "v": numbers.normal(1, tokens, 1, SIZE),
            "grad": numbers.normal(1, tokens, 16, SIZE), "blocks": torch.stack([own, before], -1)[None, :, None],
            "gate": torch.ones(1, tokens, 16, dtype=torch.float16)}  # fmt: skip


def _selection(each: Tensors) -> Tensors:
    tokens = each["q"].shape[1]
    key = torch.arange(tokens)
    blocks = each["blocks"][0, :, 0]
    seen = (key[None, :, None] // 32 == blocks[:, None, :]).any(-1) & (key[None, :] <= key[:, None])
    q, k, v = (each[name].transpose(1, 2) for name in "qkv")
    k, v = k.expand(-1, 16, -1, -1), v.expand(-1, 16, -1, -1)
    return {"out": F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2)}


def _nsa(module: Any, t: Tensors) -> Tensors:
    options = {"g_slc": t["gate"], "block_indices": t["blocks"], "block_counts": 2, "block_size": 32}
    return {"out": module.parallel_nsa(t["q"], t["k"], t["v"], **options)}


CASES = (
    FieldCase(
        name="fla-linear-attention", package="fla-core", module="fla.ops.linear_attn", kernel="linear attention, forward and backward",
        draw=_operands(), call=lambda m, t: {"out": m.chunk_linear_attn(t["q"], t["k"], t["v"], scale=0.125, normalize=False)[0]},
        reference=lambda t: _recurrent(t, 0.125), bound=2**-8, why=F16, gradients=("q", "k", "v"), is_exact=True,
    ),
    FieldCase(
        name="fla-simple-gla", package="fla-core", module="fla.ops.simple_gla", kernel="gated linear attention, forward and backward",
        draw=_operands("g"), call=lambda m, t: {"out": m.chunk_simple_gla(t["q"], t["k"], t["v"], t["g"], scale=0.125)[0]},
        reference=lambda t: _recurrent(t, 0.125), bound=2**-8, why=F16, gradients=("q", "k", "v", "g"),
    ),
    FieldCase(
        name="fla-simple-gla-recurrent", package="fla-core", module="fla.ops.simple_gla", kernel="gated linear attention, token by token",
        draw=_operands("g"), call=lambda m, t: {"out": m.fused_recurrent_simple_gla(t["q"], t["k"], t["v"], t["g"], scale=0.125)[0]},
        reference=lambda t: _recurrent(t, 0.125), bound=2**-10, why="state in f32, results in f16",
    ),
    FieldCase(
        name="fla-gated-delta-rule", package="fla-core", module="fla.ops.gated_delta_rule", kernel="gated delta rule, forward and backward",
        draw=_operands("g", "beta", normalized=True),
        call=lambda m, t: {"out": m.chunk_gated_delta_rule(t["q"], t["k"], t["v"], t["g"], t["beta"], scale=0.125)[0]},
        reference=lambda t: _recurrent(t, 0.125), bound=2**-7, why=TF32, gradients=("q", "k", "v", "g", "beta"),
    ),
    FieldCase(
        name="fla-gated-delta-rule-recurrent", package="fla-core", module="fla.ops.gated_delta_rule",
        kernel="gated delta rule, token by token",
        draw=_operands("g", "beta", normalized=True),
        call=lambda m, t: {"out": m.fused_recurrent_gated_delta_rule(t["q"], t["k"], t["v"], g=t["g"], beta=t["beta"], scale=0.125)[0]},
        reference=lambda t: _recurrent(t, 0.125), bound=2**-10, why="state in f32, results in f16",
    ),
    FieldCase(
        name="fla-nsa", package="fla-core", module="fla.ops.nsa.parallel",
        kernel="native sparse attention of given blocks, forward and backward",
        draw=_selected,
        call=_nsa,
        reference=_selection, bound=2**-8, why=F16, gradients=("q", "k", "v"),
    ),
)  # fmt: skip
