"""Routers of mixtures of experts: against plain loops, PyTorch and vLLM's definition; ties; the kernel, interpreted and compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from arrays import tensor

from mmabits import emulate
from mmabits.isa import OperandError, OperandTypeError
from mmabits.kernels.schemes import moe
from mmabits.kernels.schemes.routing import (
    LOG2_E,
    Router,
    by_expert,
    deepseek_v2,
    deepseek_v3,
    gpt_oss,
    gpu_exp2,
    mixtral,
    routed,
    within_capacity,
)

F32 = np.float32
BIAS = (np.random.default_rng(8).standard_normal(32) * 0.1).astype(F32)
ROUTERS = {
    "mixtral": mixtral(), "gpt-oss": gpt_oss(), "deepseek-v2": deepseek_v2(), "deepseek-v3": deepseek_v3(BIAS),
    "sigmoid of the chosen": Router(top_k=1, scoring="sigmoid", chosen_alone=True),
    "biased logits": Router(top_k=3, chosen_alone=True, bias=BIAS),
}  # fmt: skip


def logits(seed: int = 0) -> np.ndarray:
    """With equal ones, some far apart."""
    found = np.random.default_rng(seed).standard_normal((40, 32)).astype(F32)
    found[1], found[2, ::2], found[3, 7], found[4], found[5] = 0, found[2, 1::2], 80, -60, np.round(found[5])
    return found


def by_loops(values: np.ndarray, router: Router) -> tuple[list[list[int]], list[list[np.float32]]]:
    """One token after the other, one operation after the other."""

    def scored(row: list[np.float32]) -> list[np.float32]:
        if router.scoring == "sigmoid":
            return [F32(1) / (F32(1) + np.exp2(-each * LOG2_E)) for each in row]
        powers = [np.exp2((each - max(row)) * LOG2_E) for each in row]
        total = powers[0]
        for power in powers[1:]:
            total = total + power
        return [power / total for power in powers]

    def descending(row: list[np.float32]) -> list[int]:
        return sorted(range(len(row)), key=lambda place: (-row[place], place))

    experts, weights = [], []
    for row in values:
        scores = list(row) if router.chosen_alone else scored(list(row))
        by = scores if router.bias is None else [score + bias for score, bias in zip(scores, router.bias, strict=True)]
        size = len(row) // router.groups
        parts = [sorted(by[start : start + size], reverse=True) for start in range(0, len(row), size)]
        groups = [part[0] + part[1] if router.group_score == "two-largest" else part[0] for part in parts]
        kept = descending(groups)[: router.kept_groups]
        chosen = [expert for expert in descending(by) if expert // size in kept][: router.top_k]
        own = [scores[expert] for expert in chosen]
        own = scored(own) if router.chosen_alone else own
        if router.renormalize:
            total = own[0]
            for weight in own[1:]:
                total = total + weight
            own = [weight / total for weight in own]
        experts.append(chosen)
        weights.append([weight * F32(router.factor) for weight in own])
    return experts, weights


@pytest.mark.parametrize("name", ROUTERS)
def test_choices_and_weights_by_loops(name: str) -> None:
    got, (experts, weights) = routed(logits(), ROUTERS[name]), by_loops(logits(), ROUTERS[name])
    assert got.experts.tolist() == experts
    assert np.array_equal(got.weights.view(np.uint32), np.array(weights, F32).view(np.uint32))


def test_deepseek_as_vllm_defines_it() -> None:
    """Its `grouped_topk` in PyTorch: the same experts, weights within rounding; without ties, whose order it leaves open."""
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(1).standard_normal((64, 32)).astype(F32)
    for router in (ROUTERS["deepseek-v3"], ROUTERS["deepseek-v2"]):
        given = torch.from_numpy(values)
        scores = given.sigmoid() if router.scoring == "sigmoid" else given.softmax(-1)
        by = scores if router.bias is None else scores + torch.from_numpy(router.bias)
        parts = by.view(64, router.groups, -1)
        groups = parts.topk(2, dim=-1)[0].sum(-1) if router.bias is not None else parts.max(-1).values
        mask = torch.zeros_like(groups).scatter_(1, groups.topk(router.kept_groups, dim=-1)[1], 1)
        mask = mask.unsqueeze(-1).expand(64, router.groups, 32 // router.groups).reshape(64, -1)
        experts = by.masked_fill(~mask.bool(), float("-inf")).topk(router.top_k, dim=-1)[1]
        weights = scores.gather(1, experts)
        weights = weights / weights.sum(-1, keepdim=True) if router.renormalize else weights
        got = routed(values, router)
        assert np.array_equal(got.experts, experts.numpy())
        np.testing.assert_allclose(got.weights, (weights * router.factor).numpy(), rtol=1e-6)


def test_softmax_before_and_after_choosing_differ_in_the_last_bits_only() -> None:
    first, after = routed(logits(), mixtral(4)), routed(logits(), gpt_oss(4))
    same = [row for row in range(40) if row != 3]  # a score that rounds to zero is a tie
    assert np.array_equal(first.experts[same], after.experts[same])
    assert not np.array_equal(first.weights, after.weights)
    np.testing.assert_allclose(first.weights[same], after.weights[same], rtol=1e-5)


def test_places_in_the_order_of_experts() -> None:
    routing = routed(logits(), mixtral(4))
    got = by_expert(routing)
    assert (np.diff(got.experts, axis=1) > 0).all()
    for row in range(40):
        assert dict(zip(got.experts[row], got.weights[row], strict=True)) == dict(
            zip(routing.experts[row], routing.weights[row], strict=True)
        )


@pytest.mark.parametrize("order", ["stable", "reversed", 3])
def test_orders_within_an_expert(order: Any) -> None:
    routing = routed(logits(), mixtral(2))
    got, stable = moe.align(routing, block=4, order=order), moe.align(routing, block=4)
    assert np.array_equal(got.experts, stable.experts)
    for expert in np.unique(got.experts):
        own, usual = (each.choices.reshape(-1, 4)[each.experts == expert].ravel() for each in (got, stable))
        assert sorted(own.tolist()) == usual.tolist()
        if order == "reversed":
            assert own[own < 80].tolist() == usual[usual < 80][::-1].tolist()
    assert np.array_equal(got.choices, stable.choices) is (order == "stable")


def test_capacity_by_hand() -> None:
    """Expert 0 is chosen by all three tokens, by the third first."""
    routing = moe.Routing(
        experts=np.array([[1, 0], [2, 0], [0, 1]], np.int32), weights=np.array([[0.6, 0.4], [0.5, 0.5], [0.9, 0.1]], F32), count=3
    )
    for by, dropped in (("place", [1, 3]), ("token", [3, 4]), ("weight", [1, 3])):
        got = within_capacity(routing, 1, by=by)
        second = {"place": [5], "token": [5], "weight": [5]}[by]  # of expert 1, whose other choice comes first in every order
        assert got.dropped.tolist() == sorted(dropped + second)
        aligned = moe.align(got, block=2)
        assert aligned.experts.tolist() == [0, 1, 2, -1, -1]
        assert aligned.choices[6:].tolist() == [*got.dropped.tolist(), 6]
    assert within_capacity(routing, 3).dropped.size == 0 and within_capacity(routing, 0).kept.sum() == 0
    assert by_expert(within_capacity(routing, 1)).kept.sum() == 3


def launched(name: str, way: str, arch: str = "sm_90a") -> tuple[np.ndarray, np.ndarray]:
    from mmabits.kernels.triton.routing import route

    router = ROUTERS[name]
    with emulate(arch, frameworks=["triton"], triton=way):
        experts, weights = route(
            tensor(logits()), top_k=router.top_k, scoring=router.scoring, chosen_alone=router.chosen_alone,
            bias=None if router.bias is None else tensor(router.bias), groups=router.groups, kept_groups=router.kept_groups,
            group_score=router.group_score, renormalize=router.renormalize, factor=router.factor,
        )  # fmt: skip
    return experts.numpy(), weights.numpy()


@pytest.mark.parametrize("name", [each if each == "deepseek-v3" else pytest.param(each, marks=pytest.mark.slow) for each in ROUTERS])
def test_the_kernel_interpreted(name: str) -> None:
    pytest.importorskip("triton")
    got, wanted = launched(name, "interpreted"), routed(logits(), ROUTERS[name])
    assert np.array_equal(got[0], wanted.experts)
    assert np.array_equal(got[1].view(np.uint32), wanted.weights.view(np.uint32))


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("deepseek-v3", "sm_90a"), ("gpt-oss", "sm_100a"),
        *(pytest.param(name, arch, marks=pytest.mark.slow) for name in ROUTERS for arch in ("sm_80", "sm_90a", "sm_100a")),
    ],
)  # fmt: skip
def test_the_kernel_compiled_has_the_exponential_of_the_gpu(name: str, arch: str) -> None:
    pytest.importorskip("triton")
    got, wanted = launched(name, "compiled", arch), routed(logits(), ROUTERS[name], exp2=gpu_exp2(arch))
    assert np.array_equal(got[0], wanted.experts)
    assert np.array_equal(got[1].view(np.uint32), wanted.weights.view(np.uint32))


def test_the_exponential_changes_bits() -> None:
    plain, gpu = routed(logits(), mixtral()), routed(logits(), mixtral(), exp2=gpu_exp2("sm_90a"))
    assert np.array_equal(plain.experts, gpu.experts) and not np.array_equal(plain.weights, gpu.weights)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Router(top_k=1, scoring="softplus"), OperandError, "unknown scoring 'softplus'"),
        (lambda: Router(top_k=1, group_score="mean"), OperandError, "unknown group_score 'mean'; known: largest, two-largest"),
        (lambda: Router(top_k=0), OperandError, "top_k must be a whole number from 1 on, got 0"),
        (lambda: mixtral(2.5), OperandError, "top_k must be a whole number from 1 on, got 2.5"),  # type: ignore[arg-type]
        (lambda: Router(top_k=1, groups="4"), OperandError, "groups must be a whole number"),  # type: ignore[arg-type]
        (lambda: Router(top_k=1, factor="a"), OperandError, "factor must be a number, got 'a'"),  # type: ignore[arg-type]
        (lambda: Router(top_k=1, factor=1e39), OperandError, "factor must be finite"),
        (lambda: Router(top_k=1, groups=4, kept_groups=5), OperandError, "kept_groups must be 1 to 4, got 5"),
        (lambda: Router(top_k=1, factor=np.inf), OperandError, "factor must be finite"),
        (lambda: Router(top_k=1, bias=np.array([np.nan], F32)), OperandError, "bias must be finite"),
        (lambda: routed(logits(), mixtral(33)), OperandError, "top_k must be 1 to 32, got 33"),
        (lambda: routed(logits(), Router(top_k=9, groups=4, kept_groups=1)), OperandError, "top_k must be 1 to 8, got 9"),
        (lambda: routed(logits(), Router(top_k=1, groups=5, kept_groups=1)), OperandError, "number of groups, 5, got 32"),
        (
            lambda: routed(logits(), Router(top_k=1, groups=32, kept_groups=1, group_score="two-largest")), OperandError,
            "groups of 1 experts do not have the 2",
        ),
        (lambda: routed(logits(), deepseek_v3(BIAS[:16])), OperandError, r"bias must have shape \(32,\), got \(16,\)"),
        (lambda: routed(logits().astype(np.float64), mixtral()), OperandTypeError, "float32"),
        (lambda: routed(np.full((2, 4), np.inf, F32), mixtral()), OperandError, "logits must be finite"),
        (lambda: within_capacity(routed(logits(), mixtral()), -1), OperandError, "capacity must be a number of choices, got -1"),
        (lambda: within_capacity(routed(logits(), mixtral()), 1, by="chance"), OperandError, "place, token, weight, got 'chance'"),
        (lambda: moe.Routing(experts=np.zeros((2, 1), np.int32), weights=np.ones((2, 1), F32), count=1, kept=np.ones((1, 1), bool)),
         OperandError, r"kept must have shape \(2, 1\)"),
        (lambda: moe.align(routed(logits(), mixtral()), order="sorted"), OperandError, "order"),
    ],
)  # fmt: skip
def test_wrong_routers(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


def test_no_tokens() -> None:
    got = routed(np.zeros((0, 8), F32), mixtral())
    assert got.experts.shape == got.weights.shape == (0, 2)
