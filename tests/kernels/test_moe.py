"""Routing, grouping and grouped products of a mixture of experts against plain loops."""

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.isa.errors import OperandError, OperandTypeError
from mmabits.kernels.schemes.moe import (
    Int4Experts,
    Mxfp4Experts,
    Routing,
    align,
    moe_mxfp4,
    moe_w4a16,
    quantize_mxfp4_experts,
    route,
)
from mmabits.kernels.schemes.w4a16 import quantize_int4

SEED = 20260117
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def normal(*shape: int, seed: int = SEED) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_routing_is_topk_and_softmax_over_the_chosen() -> None:
    torch = pytest.importorskip("torch")
    logits = normal(50, 8)
    got = route(logits, top_k=3)
    values, experts = torch.from_numpy(logits).double().topk(3, dim=1)
    assert np.array_equal(got.experts, experts.numpy())
    assert np.array_equal(got.weights, values.softmax(1).float().numpy())


def test_equal_logits_go_to_the_lower_expert() -> None:
    assert route(np.zeros((1, 4), np.float32), top_k=2).experts.tolist() == [[0, 1]]


@pytest.mark.parametrize("block", [1, 4, 16])
def test_every_choice_stands_once_in_a_block_of_its_expert(block: int) -> None:
    routing = route(normal(37, 5), top_k=2)
    got = align(routing, block=block)
    rows = got.choices.reshape(-1, block)
    assert len(rows) == len(got.experts)
    assert sorted(got.choices[got.choices < 74].tolist()) == list(range(74))
    for row, expert in zip(rows, got.experts, strict=True):
        own = row[row < 74]
        assert own.size and (routing.experts.reshape(-1)[own] == expert).all()
        assert (row[own.size :] == 74).all()
    assert got.experts.tolist() == sorted(got.experts.tolist())


def test_an_expert_that_nobody_chose_has_no_block() -> None:
    routing = Routing(experts=np.array([[2], [0]], np.int32), weights=np.ones((2, 1), np.float32), count=4)
    got = align(routing, block=2)
    assert got.experts.tolist() == [0, 2] and got.choices.tolist() == [1, 2, 0, 2]


def test_w4a16_experts_against_a_loop_over_tokens() -> None:
    experts = [quantize_int4(normal(64, 16, seed=e), group=32) for e in range(4)]
    x, routing = normal(9, 64).astype(np.float16), route(normal(9, 4, seed=9), top_k=2)
    packed = Int4Experts.pack(experts)
    got = moe_w4a16(x, packed, routing, arch="sm_90a")
    for token in range(9):
        total = None
        for place in range(2):
            weights = experts[routing.experts[token, place]].dequantize()
            row = mmabits.gemm(x[token : token + 1], weights, instruction="wgmma", arch="sm_90a")[0] * routing.weights[token, place]
            total = row if total is None else total + row
        assert np.array_equal(got[token], total)
    assert all(np.array_equal(a.codes, b.codes) for a, b in zip(packed.unpack(), experts, strict=True))


def test_mxfp4_codes_and_values() -> None:
    weights = normal(2, 64, 8)
    got = quantize_mxfp4_experts(weights)
    assert got.codes.shape == (2, 8, 32) and got.scales.shape == (2, 8, 2)
    for expert in range(2):
        values = got.dequantize(expert).astype(np.float32)
        for n in range(8):
            for k in range(64):
                byte = int(got.codes[expert, n, k // 2])
                code = byte >> 4 if k % 2 else byte & 15
                scale = 2.0 ** (int(got.scales[expert, n, k // 32]) - 127)
                assert values[k, n] == (-1 if code & 8 else 1) * E2M1[code & 7] * scale
    blocks, scales = got.to_checkpoint()
    assert blocks.shape == (2, 8, 2, 16)
    assert np.array_equal(Mxfp4Experts.from_checkpoint(blocks, scales).codes, got.codes)


def test_mxfp4_experts_are_multiplied_as_bf16() -> None:
    experts = quantize_mxfp4_experts(normal(3, 64, 8))
    x, routing = normal(7, 64).astype(ml_dtypes.bfloat16), route(normal(7, 3, seed=1), top_k=1)
    got = moe_mxfp4(x, experts, routing, arch="sm_100a")
    for token in range(7):
        weights = experts.dequantize(int(routing.experts[token, 0]))
        row = mmabits.gemm(x[token : token + 1], weights, instruction="tcgen05.mma", arch="sm_100a")[0]
        assert np.array_equal(got[token], row * routing.weights[token, 0])


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: route(normal(3, 4), top_k=5), OperandError, "1 to 4, got 5"),
        (lambda: route(normal(3, 4).astype(np.float64), top_k=1), OperandTypeError, "float32"),
        (lambda: Routing(experts=np.array([[4]], np.int32), weights=np.ones((1, 1), np.float32), count=4), OperandError, "0 to 3"),
        (lambda: align(route(normal(3, 4), top_k=1), block=0), OperandError, "positive, got 0"),
        (lambda: Int4Experts.pack([]), OperandError, "one shape"),
        (lambda: quantize_mxfp4_experts(normal(1, 48, 4)), OperandError, "block size 32, got 48"),
        (lambda: Mxfp4Experts(codes=np.zeros((1, 2, 16), np.uint8), scales=np.zeros((1, 2, 2), np.uint8)), OperandError, r"\(1, 2, 1\)"),
        (lambda: moe_mxfp4(normal(2, 64).astype(np.float16), quantize_mxfp4_experts(normal(2, 64, 8)), route(normal(2, 2), top_k=1),
                           arch="sm_80"), OperandTypeError, "bfloat16, got dtype float16"),
        (lambda: moe_mxfp4(normal(2, 64).astype(ml_dtypes.bfloat16), quantize_mxfp4_experts(normal(2, 64, 8)), route(normal(3, 2), top_k=1),
                           arch="sm_80"), OperandError, "2 activations and routing for 3 tokens"),
        (lambda: moe_mxfp4(normal(2, 64).astype(ml_dtypes.bfloat16), quantize_mxfp4_experts(normal(2, 64, 8)), route(normal(2, 4), top_k=1),
                           arch="sm_80"), OperandError, "among 4 experts, weights of 2"),
    ],
)  # fmt: skip
def test_wrong_operands(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()
