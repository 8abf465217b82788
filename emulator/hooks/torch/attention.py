"""Fused attention, taken apart: `scaled_dot_product_attention` by its math path, forward and backward.

On a CPU attention arrives as one operator that holds both products. No kernel's order of summation is modelled; the math path's
two products are computed instead, in the type of the operands, with the scores and the weights rounded to it.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.overrides import enable_reentrant_dispatch

from mmabits.emulator.hooks.torch.calls import OperatorCall
from mmabits.emulator.hooks.torch.products import route

FORWARD: Final = "_scaled_dot_product_flash_attention_for_cpu"
BACKWARD: Final = "_scaled_dot_product_flash_attention_for_cpu_backward"
ATTENTION: Final = "scaled_dot_product_attention"


def _math(call: OperatorCall, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The math path, its products emulated."""
    values = call.values
    with call.mode.emulating(ATTENTION):
        output: torch.Tensor = torch.ops.aten._scaled_dot_product_attention_math(
            query, key, value, values.get("attn_mask"), values["dropout_p"], values["is_causal"], None,
            scale=values.get("scale"), enable_gqa=key.shape[1] != query.shape[1],
        )[0]  # fmt: skip
    return output


def _laid_out(call: OperatorCall, *results: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Results as they lie in memory after the fused operator: its backward, callers' views and compiled code count on it."""

    def shape_alone(value: Any) -> Any:
        return (
            torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta") if isinstance(value, torch.Tensor) else value
        )

    expected = call.func(*map(shape_alone, call.args), **{name: shape_alone(value) for name, value in call.kwargs.items()})
    return tuple(
        result if result.stride() == like.stride() else torch.empty_like(like, device=result.device).copy_(result)
        for result, like in zip(results, expected, strict=False)
    )


def forward(call: OperatorCall) -> Any:
    """(output, logsumexp); the backward pass here needs no logsumexp, and it is NaN."""
    query, key, value = (call.values[name] for name in ("query", "key", "value"))
    found = route(call.session.arch, query.dtype)
    if query.numel() == 0 or key.numel() == 0 or query.is_meta:
        return call.stock()
    if found.instruction is None:
        if found.is_refused:
            call.session.refuse(call.site, ATTENTION, found.reason)
        return call.skip(found.reason)
    output = _math(call, query, key, value)
    (output,) = _laid_out(call, output)
    batch, heads, length = query.shape[:3]
    return output, query.new_full((batch, length, heads), float("nan"), dtype=torch.float32).transpose(1, 2)


def backward(call: OperatorCall) -> Any:
    """Gradients of query, key and value: the math path once more, and autograd through it."""
    query, key, value, gradient = (call.values[name] for name in ("query", "key", "value", "grad_out"))
    found = route(call.session.arch, query.dtype)
    if query.is_meta or (found.instruction is None and not found.is_refused):
        return call.skip(found.reason) if found.reason else call.stock()
    with enable_reentrant_dispatch(), torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
        output = _math(call, *inputs)
        with call.mode.emulating(f"{ATTENTION}'s backward"):
            gradients = torch.autograd.grad(output, inputs, gradient)
    return _laid_out(call, *gradients)


def refuse(call: OperatorCall) -> Any:
    """Every other fused attention."""
    call.session.refuse(
        call.site, call.signature.name, "no fused kernel is modelled; call torch.nn.functional.scaled_dot_product_attention on CPU tensors"
    )
