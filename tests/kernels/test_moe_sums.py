"""Sums over a token's experts: by loops, in every order; what atomic additions give by which order of programs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from arrays import tensor

import mmabits
from mmabits.isa import OperandError, OperandTypeError
from mmabits.kernels.schemes import moe
from mmabits.kernels.schemes.moe_sums import SUM_TYPES, add_rows, all_orders, places_by_expert, random_places

F32 = np.float32
TOKENS, TOP_K, N = 9, 3, 40


def rows(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = (rng.standard_normal((TOKENS, TOP_K, N)) * 2.0 ** rng.integers(-6, 6, (TOKENS, TOP_K, N))).astype(F32)
    found[0], found[1, 1], found[2, :, 3], found[3, :, :4] = 0, 1e-42, [3e38, 3e38, -3e38], -0.0
    return found


def routing() -> moe.Routing:
    return moe.route(np.random.default_rng(1).standard_normal((TOKENS, 5)).astype(F32), top_k=TOP_K)


@pytest.mark.parametrize("round_each", [True, False])
@pytest.mark.parametrize("dtype", SUM_TYPES)
def test_by_loops(dtype: str, round_each: bool) -> None:
    """Float64 holds every sum of two exactly, but for far apart ones in float32; each is rounded once to the type."""
    kind, order = SUM_TYPES[dtype], random_places(TOKENS, TOP_K, 4)
    got = add_rows(rows(), order=order, dtype=dtype, round_each=round_each)
    assert got.dtype == kind
    with np.errstate(all="ignore"):
        for token in range(TOKENS):
            for n in range(N):
                total = kind.type(0) if round_each else F32(0)
                for place in order[token]:
                    value = kind.type(rows()[token, place, n])
                    sums = np.float64 if round_each and dtype != "f32" else F32
                    total = sums(total) + sums(value)
                    total = kind.type(total) if round_each else total
                want, found = np.float64(kind.type(total)), np.float64(got[token, n])
                assert found == want or (np.isnan(found) and np.isnan(want))


def test_orders() -> None:
    assert len(all_orders(3)) == 6
    by_expert = places_by_expert(routing())
    assert (np.diff(np.take_along_axis(routing().experts, by_expert, axis=1), axis=1) > 0).all()
    plain, other = add_rows(rows()), add_rows(rows(), order=by_expert)
    assert not np.array_equal(plain, other)


def launched(dtype: str, reduction: str, way: str = "compiled", **options: Any) -> np.ndarray:
    from mmabits.kernels.triton import moe_sums as in_triton

    aligned = moe.align(routing(), block=16)
    with np.errstate(over="ignore", under="ignore"):
        given = tensor(rows().reshape(-1, N).astype(SUM_TYPES[dtype]))
    with mmabits.emulate("sm_90a", frameworks=["triton"], triton=way, **options):
        found = in_triton.add_rows(given, top_k=TOP_K, reduction=reduction, choices=tensor(aligned.choices), block_m=16)
    return np.asarray(found.float().numpy(), F32)


def is_same(got: np.ndarray, wanted: np.ndarray) -> bool:
    return np.array_equal(got, wanted.astype(F32), equal_nan=True)


@pytest.mark.parametrize("dtype", ["f32", pytest.param("bf16", marks=pytest.mark.slow), pytest.param("f16", marks=pytest.mark.slow)])
def test_atomic_additions_by_the_usual_order_are_the_sum_by_expert(dtype: str) -> None:
    """Blocks ascend by expert, and programs run in that order."""
    pytest.importorskip("triton")
    wanted = add_rows(rows(), order=places_by_expert(routing()), dtype=dtype)
    assert is_same(launched(dtype, "atomic"), wanted)
    assert is_same(launched(dtype, "atomic", "interpreted"), wanted)


def test_atomic_additions_by_other_orders_are_one_of_all() -> None:
    """Element by element; and they do differ, where the ordered sum never does."""
    pytest.importorskip("triton")
    every = [add_rows(rows(), order=np.tile(np.array(order), (TOKENS, 1))) for order in all_orders(TOP_K)]
    usual, seen = launched("f32", "atomic"), 0
    for schedule in ("latest", 1, 2):
        got = launched("f32", "atomic", schedule=schedule)
        assert np.any([(got == each) | (np.isnan(got) & np.isnan(each)) for each in every], axis=0).all()
        seen += int((got != usual).sum())
        assert is_same(launched("f32", "ordered", schedule=schedule), add_rows(rows()))
    assert seen


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: add_rows(rows()[0]), OperandError, "rows"),
        (lambda: add_rows(rows().astype(np.float64)), OperandTypeError, "float32"),
        (lambda: add_rows(rows(), dtype="e4m3"), OperandError, "f32, bf16, f16, got 'e4m3'"),
        (lambda: add_rows(rows(), order=np.zeros((TOKENS, TOP_K), np.int64)), OperandError, "an order's places"),
        (lambda: add_rows(rows(), order=np.zeros((TOKENS, 2), np.int64)), OperandError, "order must have shape"),
    ],
)  # fmt: skip
def test_wrong_sums(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


def test_the_launcher_refuses() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from mmabits.kernels.triton.moe_sums import add_rows as launcher

    given = torch.zeros(6, 8)
    for options, text in (
        ({"top_k": 4}, "multiple of top_k, got 6 and 4"), ({"top_k": 3, "reduction": "tree"}, "unknown reduction 'tree'"),
        ({"top_k": 3, "reduction": "atomic"}, "need the choices"),
        ({"top_k": 3, "reduction": "atomic", "choices": torch.zeros(7, dtype=torch.int32)}, "whole blocks of 64, got 7"),
        ({"top_k": 3, "reduction": "atomic", "choices": torch.full((64,), 7, dtype=torch.int32)}, "choices are 0 to 6, got 7"),
    ):  # fmt: skip
        with pytest.raises(OperandError, match=text):
            launcher(given, **options)
