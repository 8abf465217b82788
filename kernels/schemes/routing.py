"""Routers of mixtures of experts: scores by softmax or sigmoid, biases, groups of experts, renormalised weights, capacity.

All is float32, each operation rounded once, sums in ascending order of experts, or in the order of choices. What a GPU does otherwise is
its exponential, which is an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from mmabits.emulator.engine.fma import canonical
from mmabits.isa import OperandError, nearest
from mmabits.kernels.schemes.checks import Array, check_finite, check_multiple, check_shape, check_whole, checked
from mmabits.kernels.schemes.moe import Routing

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

SCORINGS: Final = ("softmax", "sigmoid")
GROUP_SCORES: Final = ("largest", "two-largest")
LOG2_E: Final = np.float32(1.4426950408889634)


@dataclass(frozen=True, kw_only=True, eq=False)
class Router:
    """How experts are chosen and weighed.

    Raises:
        OperandTypeError, OperandError: numbers and names that do not fit each other.
    """

    top_k: int
    """Experts of a token."""
    scoring: str = "softmax"
    """`"softmax"` or `"sigmoid"`."""
    chosen_alone: bool = False
    """Logits choose, and the scores are those of the chosen ones: a softmax over them alone."""
    bias: Floats | None = None
    """(experts,) what is added to scores for choosing, not for the weights."""
    groups: int = 1
    """Groups of experts, of which only some can be chosen from."""
    kept_groups: int = 1
    group_score: str = "largest"
    """What groups are chosen by: the `"largest"` score in them, or the sum of the `"two-largest"`."""
    renormalize: bool = False
    """Whether weights are divided by their sum."""
    factor: float = 1.0
    """What weights are multiplied by in the end (`routed_scaling_factor`)."""

    def __post_init__(self) -> None:
        """Check what does not take the number of experts."""
        for name, given, known in (("scoring", self.scoring, SCORINGS), ("group_score", self.group_score, GROUP_SCORES)):
            if not isinstance(given, str) or given not in known:
                raise OperandError(f"unknown {name} {given!r}{nearest(str(given), known)}; known: {', '.join(known)}")
        for name, count in (("top_k", self.top_k), ("groups", self.groups), ("kept_groups", self.kept_groups)):
            check_whole(count, name)
        if self.kept_groups > self.groups:
            raise OperandError(f"kept_groups must be 1 to {self.groups}, got {self.kept_groups}")
        if isinstance(self.factor, bool) or not isinstance(self.factor, (int, float, np.integer, np.floating)):
            raise OperandError(f"factor must be a number, got {self.factor!r}")
        if not abs(self.factor) <= float(np.finfo(np.float32).max):
            raise OperandError(f"factor must be finite, got {self.factor}")
        if self.bias is not None:
            check_finite(checked(self.bias, "bias", (np.float32,), 1), "bias")

    def check_experts(self, count: int) -> None:
        """Refuse a number of experts that does not fit.

        Raises:
            OperandError: it does not.
        """
        check_multiple(count, self.groups, "the number of experts", "the number of groups,")
        size = count // self.groups
        least = 2 if self.group_score == "two-largest" and self.kept_groups < self.groups else 1
        if size < least:
            raise OperandError(f"groups of {size} experts do not have the {least} that their score takes")
        if self.top_k > size * self.kept_groups:
            raise OperandError(f"top_k must be 1 to {size * self.kept_groups}, got {self.top_k}")
        if self.bias is not None:
            check_shape(self.bias, "bias", (count,))


def mixtral(top_k: int = 2) -> Router:
    """Softmax over all, the largest, renormalised; Qwen3 alike."""
    return Router(top_k=top_k, renormalize=True)


def gpt_oss(top_k: int = 4) -> Router:
    """The largest logits, softmax over these alone."""
    return Router(top_k=top_k, chosen_alone=True)


def deepseek_v2(top_k: int = 6, *, groups: int = 8, kept_groups: int = 3, factor: float = 16.0) -> Router:
    """Softmax over all; groups by their largest; not renormalised."""
    return Router(top_k=top_k, groups=groups, kept_groups=kept_groups, factor=factor)


def deepseek_v3(bias: Floats, top_k: int = 8, *, groups: int = 8, kept_groups: int = 4, factor: float = 2.5) -> Router:
    """Sigmoid; chosen with a bias, groups by the sum of their two largest; renormalised and multiplied by 2.5."""
    return Router(
        top_k=top_k, scoring="sigmoid", bias=bias, groups=groups, kept_groups=kept_groups, group_score="two-largest", renormalize=True,
        factor=factor,
    )  # fmt: skip


# Choosing -------------------------------------------------------------------------------------------------------------


def gpu_exp2(arch: str) -> Callable[[Floats], Floats]:
    """2^x as Triton's kernels compute it on a GPU: `ex2.approx`, for `routed`."""

    def exp2(power: Floats) -> Floats:
        from mmabits.emulator.machine.calls import function

        return np.asarray(function("ex2.approx.f32", power, arch=arch), np.float32)

    return exp2


def _softmax(logits: Floats, exp2: Callable[[Floats], Floats]) -> Floats:
    """Over the last axis, summed from its first element on."""
    powers = exp2((logits - logits.max(axis=1, keepdims=True)) * LOG2_E)
    total = powers[:, :1]
    for place in range(1, logits.shape[1]):
        total = total + powers[:, place : place + 1]
    return np.asarray(powers / total)


def _sigmoid(logits: Floats, exp2: Callable[[Floats], Floats]) -> Floats:
    with np.errstate(over="ignore"):
        return np.asarray(np.float32(1) / (np.float32(1) + exp2(logits * -LOG2_E)))


def _largest(scores: Floats, count: int) -> Indices:
    """The places of the largest, in descending order; of equal ones the lowest place first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def _in_kept_groups(scores: Floats, router: Router) -> Floats:
    """Scores with those of other groups below all."""
    tokens, count = scores.shape
    grouped = scores.reshape(tokens, router.groups, count // router.groups)
    if router.group_score == "largest":
        each = grouped.max(axis=2)
    else:
        two = np.sort(grouped, axis=2)[:, :, :-3:-1]
        each = two[:, :, 0] + two[:, :, 1]
    kept = np.zeros((tokens, router.groups), bool)
    np.put_along_axis(kept, _largest(each, router.kept_groups), True, axis=1)
    return np.where(kept[:, :, None], grouped, np.float32(-np.inf)).reshape(tokens, count)


def routed(logits: Array, router: Router, *, exp2: Callable[[Floats], Floats] = np.exp2) -> Routing:
    """Choose experts: the bits of `mmabits.kernels.triton.routing`.

    Of equal scores the lower expert comes first, of equal groups the lower group. Choices are in descending order of what they were
    chosen by. exp(x) is 2^(x log2 e), that product rounded.

    Args:
        logits: (tokens, experts) float32, finite.
        router: how.
        exp2: 2^x of float32; `gpu_exp2(arch)` is the one of GPUs.

    Raises:
        OperandTypeError, OperandError: something else; a router for another number of experts.
    """
    given = checked(logits, "logits", (np.float32,), 2)
    check_finite(given, "logits")
    tokens, count = given.shape
    router.check_experts(count)
    if tokens == 0:
        return Routing(experts=np.zeros((0, router.top_k), np.int32), weights=np.zeros((0, router.top_k), np.float32), count=count)
    score = _softmax if router.scoring == "softmax" else _sigmoid
    with np.errstate(under="ignore", invalid="ignore", divide="ignore", over="ignore"):
        scores = given if router.chosen_alone else score(given, exp2)
        by = scores if router.bias is None else scores + router.bias
        places = _largest(_in_kept_groups(by, router) if router.kept_groups < router.groups else by, router.top_k)
        weights = np.take_along_axis(scores, places, axis=1)
        if router.chosen_alone:
            weights = score(weights, exp2)
        if router.renormalize:
            total = weights[:, :1]
            for place in range(1, router.top_k):
                total = total + weights[:, place : place + 1]
            weights = weights / total
        weights = canonical(np.array(weights * np.float32(router.factor), np.float32))
    return Routing(experts=places.astype(np.int32), weights=weights, count=count)


def within_capacity(routing: Routing, capacity: int, *, by: str = "place") -> Routing:
    """Drop what an expert has beyond its capacity.

    Args:
        routing: choices.
        capacity: of each expert: how many choices it takes.
        by: which come first. `"place"`: all first choices before all second ones, tokens in order (GShard); `"token"`: a token's choices
            together; `"weight"`: the largest weights, of equal ones the lower token and place.

    Raises:
        OperandError: a capacity below zero, another order.
    """
    if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 0:
        raise OperandError(f"capacity must be a number of choices, got {capacity!r}")
    tokens, top_k = routing.experts.shape
    choices = np.arange(tokens * top_k)
    ranks: dict[str, Indices] = {
        "place": np.lexsort((choices // top_k, choices % top_k)), "token": choices,
        "weight": np.argsort(-routing.weights.reshape(-1), kind="stable"),
    }  # fmt: skip
    if not isinstance(by, str) or by not in ranks:
        raise OperandError(f"choices are dropped by {', '.join(ranks)}, got {by!r}")
    kept, order = np.zeros(tokens * top_k, bool), ranks[by]
    rank = np.empty_like(order)
    rank[order] = choices
    for expert in range(routing.count):
        own = routing.choices_of(expert)
        kept[own[np.argsort(rank[own])][:capacity]] = True
    return replace(routing, kept=kept.reshape(tokens, top_k))


def by_expert(routing: Routing) -> Routing:
    """The same choices with each token's in ascending order of experts: sums by place are then sums by expert."""
    order = np.argsort(routing.experts, axis=1, kind="stable")
    return Routing(
        experts=np.take_along_axis(routing.experts, order, axis=1), weights=np.take_along_axis(routing.weights, order, axis=1),
        count=routing.count, kept=None if routing.kept is None else np.take_along_axis(routing.kept, order, axis=1),
    )  # fmt: skip


__all__ = [
    "GROUP_SCORES",
    "LOG2_E",
    "SCORINGS",
    "Router",
    "by_expert",
    "deepseek_v2",
    "deepseek_v3",
    "gpt_oss",
    "gpu_exp2",
    "mixtral",
    "routed",
    "within_capacity",
]
