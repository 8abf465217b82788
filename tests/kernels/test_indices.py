"""Indices that name what is not there are refused before a kernel runs: experts, choices, pages, lengths, groups, columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mmabits import emulate
from mmabits.isa import OperandError
from mmabits.kernels.schemes import attention, moe, packing_awq_gptq, w4a16, w8a8

torch, triton = pytest.importorskip("torch"), pytest.importorskip("triton")

from mmabits.kernels.triton import attention as triton_attention  # noqa: E402
from mmabits.kernels.triton import moe as triton_moe  # noqa: E402
from mmabits.kernels.triton import nvfp4 as triton_nvfp4  # noqa: E402
from mmabits.kernels.triton import operands  # noqa: E402
from mmabits.kernels.triton import w4a16 as triton_w4a16  # noqa: E402
from mmabits.kernels.triton import w8a8 as triton_w8a8  # noqa: E402

F32 = np.float32
K, N, BLOCK = 64, 16, 16
T = torch.from_numpy
Change = Callable[[Any], None]


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal(shape).astype(F32)


def eight(*shape: int) -> Any:
    return T(attention._to_e4m3(values(*shape)).view(np.uint8)).view(torch.float8_e4m3fn)


def experts(kernel: str, change: Change, **options: Any) -> Any:
    """Three tokens with two of four experts each, in four blocks."""
    routing = moe.Routing(experts=np.array([[0, 1], [1, 3], [3, 0]], np.int32), weights=np.full((3, 2), 0.5, F32), count=4)
    aligned = moe.align(routing, block=BLOCK)
    tables = {"choices": T(aligned.choices.copy()), "experts": T(aligned.experts.copy())}
    change(tables)
    if kernel == "mxfp4":
        weights = moe.quantize_mxfp4_experts(values(4, K, N))
        x, parts = T(values(3, K)).bfloat16(), (T(weights.codes), T(weights.scales))
        return triton_moe.moe_mxfp4(x, *parts, T(routing.weights), tables["choices"], tables["experts"], block_m=BLOCK, **options)
    packed = moe.Int4Experts.pack([w4a16.quantize_int4(values(K, N), group=32)] * 4)
    parts = T(packed.qweight), T(packed.qzeros), T(packed.scales)
    x = T(values(3, K)).half()
    return triton_moe.moe_w4a16(x, *parts, T(routing.weights), tables["choices"], tables["experts"], block_m=BLOCK, **options)


def put(name: str, index: int, value: int) -> Change:
    def change(tables: Any) -> None:
        tables[name][index] = value

    return change


@pytest.mark.parametrize("kernel", ["mxfp4", "int4"])
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (put("experts", -1, -2), r"experts of blocks are -1 to 3, got -2 at index \(2,\)"),
        (put("experts", 0, 4), r"experts of blocks are -1 to 3, got 4 at index \(0,\)"),
        (put("experts", 0, 2**31 - 1), "experts of blocks are -1 to 3, got 2147483647"),
        (put("choices", 0, -1), "choices are 0 to 6, got -1"),
        (put("choices", 0, 7), "choices are 0 to 6, got 7"),
        (put("choices", 0, 6), "choices must hold each of 0 to 5 once, got 0 0 times"),
        (put("choices", 2, 1), "choices must hold each of 0 to 5 once, got 1 2 times"),
    ],
)
def test_experts_and_choices(kernel: str, change: Change, text: str) -> None:
    with emulate("sm_90a", frameworks=["triton"], triton="interpreted"):
        assert experts(kernel, lambda tables: None).shape == (3, N)
        with pytest.raises(OperandError, match=text):
            experts(kernel, change)


@pytest.mark.parametrize("wrong", [-1, 2, 1_000_000_000])
def test_groups_of_gptq(wrong: int) -> None:
    packed = packing_awq_gptq.GptqTensors.pack(w4a16.quantize_int4(values(K, N), group=32, symmetric=True))
    groups = T(packed.g_idx.copy())
    parts = T(values(2, K)).half(), T(packed.qweight), T(packed.qzeros), T(packed.scales), groups
    with emulate("sm_90a", frameworks=["triton"], triton="interpreted"):
        triton_w4a16.gptq_matmul(*parts)
        groups[5] = wrong
        with pytest.raises(OperandError, match=rf"groups of g_idx are 0 to 1, got {wrong} at index \(5,\)"):
            triton_w4a16.gptq_matmul(*parts)


@pytest.mark.parametrize(
    ("table", "lengths", "text"),
    [
        ([[0, 4]], [17], r"pages are 0 to 3, got 4 at index \(0, 1\)"),
        ([[-1, 0]], [2], r"pages are 0 to 3, got -1 at index \(0, 0\)"),
        ([[0, 1]], [33], "lengths are 2 to 32, got 33"),
        ([[0, 1]], [1], "lengths are 2 to 32, got 1"),
        ([[0, 1]], [-5], "lengths are 2 to 32, got -5"),
    ],
)
def test_pages_and_lengths(table: list[list[int]], lengths: list[int], text: str) -> None:
    queries, keys, values_ = eight(1, 1, 2, 32), eight(4, 16, 1, 32), eight(4, 16, 1, 32)
    one = torch.ones(1)
    with emulate("sm_90a", frameworks=["triton"], triton="interpreted"):
        for good in ([[0, 3]], [17]), ([[3, 2**31 - 1]], [16]):  # what no token needs may be anything
            triton_attention.fp8_attention(queries, keys, values_, T(np.array(good[0], np.int32)), T(np.array(good[1], np.int32)), one, one)
        with pytest.raises(OperandError, match=text):
            triton_attention.fp8_attention(queries, keys, values_, T(np.array(table, np.int32)), T(np.array(lengths, np.int32)), one, one)


@pytest.mark.parametrize("wrong", [-1, K])
def test_outlier_columns(wrong: int) -> None:
    from mmabits.kernels.jax import w8a8 as jax_w8a8

    jax = pytest.importorskip("jax")
    split = w8a8.split_outliers((4 * values(2, K)).astype(np.float16))
    w = w8a8.quantize_int8(values(K, N), axis=1)
    columns = split.columns.copy()
    parts = split.regular.codes, split.regular.scales, w.codes, w.scales, split.outliers, columns, values(K, N).astype(np.float16)
    with emulate("sm_90a", frameworks=["triton", "jax"], triton="interpreted"):
        triton_w8a8.llm_int8_matmul(*map(T, parts))
        jax_w8a8.llm_int8_matmul(*parts)
        columns[0] = wrong
        for use in (lambda: triton_w8a8.llm_int8_matmul(*map(T, parts)), lambda: jax_w8a8.llm_int8_matmul(*map(jax.numpy.asarray, parts))):
            with pytest.raises(OperandError, match=rf"columns are 0 to 63, got {wrong} at index \(0,\)"):
                use()
        jax.jit(jax_w8a8.llm_int8_matmul)(*parts)  # traced columns have no numbers to look at


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_to_divide_by(wrong: float) -> None:
    from mmabits.kernels.jax import fp8 as jax_fp8

    pytest.importorskip("jax")
    with emulate("sm_90a", frameworks=["triton", "jax"], triton="interpreted"):
        with pytest.raises(OperandError, match="scale must be positive and finite, got"):
            triton_nvfp4.quantize(T(values(2, 16)), scale=torch.full((1,), wrong))
        with pytest.raises(OperandError, match="scale must be positive and finite, got"):
            jax_fp8.quantize(values(2, 16), np.full((1, 1), wrong, F32))


def test_a_floor_under_magnitudes() -> None:
    from mmabits.kernels.triton import fp8_blockwise

    for use in (fp8_blockwise.quantize_activations, fp8_blockwise.quantize_weights):
        with pytest.raises(OperandError, match="least_amax must be positive and finite, got nan"):
            use(T(values(2, 128)), least_amax=float("nan"))


def test_on_a_gpu_one_looks_only_where_told() -> None:
    here, elsewhere = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32, device="meta")
    assert operands.reads(here, None) and operands.reads(elsewhere, True)
    assert not operands.reads(elsewhere, None) and not operands.reads(here, False)
    operands.check_indices(here + 7, "indices", 0, 1, False)
    operands.check_indices(elsewhere, "indices", 5, 6)
    with pytest.raises(OperandError, match=r"indices are 0 to 1, got 7 at index \(0,\)"):
        operands.check_indices(here + 7, "indices", 0, 1, True)


def test_compositions_refuse_them_too() -> None:
    with pytest.raises(OperandError, match=r"experts are 0 to 3, got -1 at index \(0, 0\)"):
        moe.Routing(experts=np.array([[-1]], np.int32), weights=np.ones((1, 1), F32), count=4)
    with pytest.raises(OperandError, match="every token needs an expert"):
        moe.Routing(experts=np.zeros((2, 0), np.int32), weights=np.ones((2, 0), F32), count=4)
    cache = attention.empty_cache(2, 16, 1, 32, key_scale=1.0, value_scale=1.0)
    queries = np.zeros((1, 1, 1, 32), ml_dtypes.float8_e4m3fn)
    for table, length, text in (
        ([[2]], 1, "pages are 0 to 1, got 2"),
        ([[0]], 17, "needs 2 pages of 16"),
        ([[0]], 0, "at least 1 tokens long"),
    ):
        with pytest.raises(OperandError, match=text):
            attention.fp8_attention(queries, cache, np.array(table, np.int32), np.array([length], np.int32), query_scale=1.0, arch="sm_90a")
