"""Routers of mixtures of experts: a lane a token, experts one after the other, so that the order of every sum is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from mmabits.isa import OperandError
from mmabits.kernels.schemes.routing import Router
from mmabits.kernels.triton.operands import checked, float32_like, reads

if TYPE_CHECKING:
    import torch

BLOCK_TOKENS = 128


@triton.jit
def exponential(x):  # type: ignore[no-untyped-def]
    """2^(x log2 e), that product rounded."""
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def scores_kernel(logits_ptr, scores_ptr, TOKENS, EXPERTS, SOFTMAX: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The scores of all experts of some tokens."""
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = token < TOKENS
    logits, scores = logits_ptr + token * EXPERTS, scores_ptr + token * EXPERTS
    if SOFTMAX:
        largest = tl.full((BLOCK,), float("-inf"), tl.float32)
        for expert in range(0, EXPERTS):
            largest = tl.maximum(largest, tl.load(logits + expert, mask=there, other=0.0))
        total = exponential(tl.load(logits, mask=there, other=0.0) - largest)
        for expert in range(1, EXPERTS):
            total = total + exponential(tl.load(logits + expert, mask=there, other=0.0) - largest)
        for expert in range(0, EXPERTS):
            power = exponential(tl.load(logits + expert, mask=there, other=0.0) - largest)
            tl.store(scores + expert, tl.div_rn(power, total), mask=there)
    else:
        one = tl.full((BLOCK,), 1.0, tl.float32)
        for expert in range(0, EXPERTS):
            power = exponential(-tl.load(logits + expert, mask=there, other=0.0))
            tl.store(scores + expert, tl.div_rn(one, one + power), mask=there)


@triton.jit
def groups_kernel(  # type: ignore[no-untyped-def]
    scores_ptr, bias_ptr, groups_ptr, TOKENS, EXPERTS, SIZE, BIASED: tl.constexpr, TWO: tl.constexpr, BLOCK: tl.constexpr
):
    """What a group of experts is chosen by: its largest score, or the sum of its two largest."""
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(1)
    there = token < TOKENS
    first = tl.full((BLOCK,), float("-inf"), tl.float32)
    second = tl.full((BLOCK,), float("-inf"), tl.float32)
    for place in range(0, SIZE):
        expert = group * SIZE + place
        score = tl.load(scores_ptr + token * EXPERTS + expert, mask=there, other=0.0)
        if BIASED:
            score = score + tl.load(bias_ptr + expert)
        second = tl.maximum(second, tl.minimum(first, score))
        first = tl.maximum(first, score)
    if TWO:
        first = first + second
    tl.store(groups_ptr + token * (EXPERTS // SIZE) + group, first, mask=there)


@triton.jit
def next_largest(values, there, COUNT, before, place, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The largest of COUNT values that comes after one in descending order, of equal ones the lowest place; and its place."""
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    best_place = tl.full((BLOCK,), -1, tl.int32)
    for each in range(0, COUNT):
        value = tl.load(values + each, mask=there, other=0.0)
        is_after = (value < before) | ((value == before) & (each > place))
        is_better = is_after & ((value > best) | (best_place < 0))
        best = tl.where(is_better, value, best)
        best_place = tl.where(is_better, each, best_place)
    return best, best_place


@triton.jit
def choices_kernel(  # type: ignore[no-untyped-def]
    scores_ptr, bias_ptr, groups_ptr, experts_ptr, chosen_ptr, TOKENS, EXPERTS, GROUPS, KEPT, TOP_K: tl.constexpr,
    BIASED: tl.constexpr, GROUPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The experts of some tokens, and their scores without bias."""
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = token < TOKENS
    last, last_group = tl.full((BLOCK,), float("inf"), tl.float32), tl.full((BLOCK,), -1, tl.int32)
    groups = groups_ptr + token * GROUPS
    if GROUPED:
        for _ in range(0, KEPT):
            last, last_group = next_largest(groups, there, GROUPS, last, last_group, BLOCK)
    before, place = tl.full((BLOCK,), float("inf"), tl.float32), tl.full((BLOCK,), -1, tl.int32)
    for choice in tl.static_range(TOP_K):
        best = tl.full((BLOCK,), float("-inf"), tl.float32)
        best_place = tl.full((BLOCK,), -1, tl.int32)
        for each in range(0, EXPERTS):
            value = tl.load(scores_ptr + token * EXPERTS + each, mask=there, other=0.0)
            if BIASED:
                value = value + tl.load(bias_ptr + each)
            is_after = (value < before) | ((value == before) & (each > place))
            if GROUPED:
                group = each // (EXPERTS // GROUPS)
                of_group = tl.load(groups + group, mask=there, other=0.0)
                is_after = is_after & ((of_group > last) | ((of_group == last) & (group <= last_group)))
            is_better = is_after & ((value > best) | (best_place < 0))
            best = tl.where(is_better, value, best)
            best_place = tl.where(is_better, each, best_place)
        before, place = best, best_place
        tl.store(experts_ptr + token * TOP_K + choice, place, mask=there)
        tl.store(chosen_ptr + token * TOP_K + choice, tl.load(scores_ptr + token * EXPERTS + place, mask=there, other=0.0), mask=there)


@triton.jit
def score_of(logit, largest, total, SCORED: tl.constexpr, SOFTMAX: tl.constexpr):  # type: ignore[no-untyped-def]
    """A score of one of the chosen."""
    if SCORED:
        return logit
    power = exponential(logit - largest if SOFTMAX else -logit)
    return tl.div_rn(power, total) if SOFTMAX else tl.div_rn(total, total + power)


@triton.jit
def weights_kernel(  # type: ignore[no-untyped-def]
    chosen_ptr, weights_ptr, factor, TOKENS, TOP_K, SCORED: tl.constexpr, SOFTMAX: tl.constexpr, RENORMALIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Weights of the chosen: scores of their logits unless they are SCORED, over their sum, times a factor."""
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = token < TOKENS
    chosen = chosen_ptr + token * TOP_K
    largest = tl.load(chosen, mask=there, other=0.0)
    total = tl.full((BLOCK,), 1.0, tl.float32)
    if SOFTMAX and not SCORED:
        for place in range(1, TOP_K):
            largest = tl.maximum(largest, tl.load(chosen + place, mask=there, other=0.0))
        total = exponential(tl.load(chosen, mask=there, other=0.0) - largest)
        for place in range(1, TOP_K):
            total = total + exponential(tl.load(chosen + place, mask=there, other=0.0) - largest)
    divisor = total
    if RENORMALIZE:
        divisor = score_of(tl.load(chosen, mask=there, other=0.0), largest, total, SCORED, SOFTMAX)
        for place in range(1, TOP_K):
            divisor = divisor + score_of(tl.load(chosen + place, mask=there, other=0.0), largest, total, SCORED, SOFTMAX)
    for place in range(0, TOP_K):
        weight = score_of(tl.load(chosen + place, mask=there, other=0.0), largest, total, SCORED, SOFTMAX)
        if RENORMALIZE:
            weight = tl.div_rn(weight, divisor)
        tl.store(weights_ptr + token * TOP_K + place, weight * factor, mask=there)


def route(
    logits: torch.Tensor, *, top_k: int, scoring: str = "softmax", chosen_alone: bool = False, bias: torch.Tensor | None = None,
    groups: int = 1, kept_groups: int = 1, group_score: str = "largest", renormalize: bool = False, factor: float = 1.0,
    check: bool | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Choose experts; the bits of `schemes.routing.routed`, with the GPU's exponential where the kernel is compiled.

    Args:
        logits: (tokens, experts) float32, finite, contiguous.
        top_k: experts of a token.
        scoring: `"softmax"` or `"sigmoid"`.
        chosen_alone: logits choose, and the scores are those of the chosen ones alone.
        bias: (experts,) float32, added to scores for choosing.
        groups: of experts.
        kept_groups: how many can be chosen from.
        group_score: what groups are chosen by, the `"largest"` score in them or the sum of the `"two-largest"`.
        renormalize: whether weights are divided by their sum.
        factor: what weights are multiplied by.
        check: whether to look for logits that are not finite; None: if they are on the CPU, since for a GPU the host would have to wait.

    Returns:
        Experts (tokens, top_k) int32 and weights (tokens, top_k) float32.

    Raises:
        OperandTypeError, OperandError: tensors and numbers that do not fit.
    """
    import torch

    tokens, experts = checked(logits, "logits", ("float32",), (None, None)).shape
    router = Router(
        top_k=top_k, scoring=scoring, chosen_alone=chosen_alone, groups=groups, kept_groups=kept_groups, group_score=group_score,
        renormalize=renormalize, factor=factor,
    )  # fmt: skip
    router.check_experts(experts)
    if bias is not None:
        checked(bias, "bias", ("float32",), (experts,))
    for tensor, name in ((logits, "logits"), (bias, "bias")):
        if tensor is not None and reads(tensor, check) and not bool(tensor.isfinite().all()):
            raise OperandError(f"{name} must be finite")
    found = torch.empty((tokens, top_k), dtype=torch.int32, device=logits.device)
    weights = float32_like(logits, tokens, top_k)
    if tokens == 0:
        return found, weights
    grid, softmax, grouped = (triton.cdiv(tokens, BLOCK_TOKENS),), scoring == "softmax", kept_groups < groups
    plain: dict[str, Any] = {"BLOCK": BLOCK_TOKENS, "enable_fp_fusion": False}
    scores = logits if chosen_alone else torch.empty_like(logits)
    if not chosen_alone:
        scores_kernel[grid](logits, scores, tokens, experts, SOFTMAX=softmax, **plain)
    biases, best = scores if bias is None else bias, float32_like(logits, tokens, groups)
    if grouped:
        groups_kernel[(*grid, groups)](
            scores, biases, best, tokens, experts, experts // groups, BIASED=bias is not None, TWO=group_score == "two-largest", **plain
        )
    chosen = float32_like(logits, tokens, top_k)
    choices_kernel[grid](
        scores, biases, best, found, chosen, tokens, experts, groups, kept_groups, TOP_K=top_k, BIASED=bias is not None, GROUPED=grouped,
        **plain,
    )  # fmt: skip
    weights_kernel[grid](
        chosen, weights, float(factor), tokens, top_k, SCORED=not chosen_alone, SOFTMAX=softmax, RENORMALIZE=renormalize, **plain
    )  # fmt: skip
    return found, weights
