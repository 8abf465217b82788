"""One rule for every scheme and kernel: M, N or a batch of 0 gives an empty result, K of 0 gives zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from arrays import tensor

from mmabits.emulator.layouts import swizzle_scales
from mmabits.isa import OperandError
from mmabits.kernels import quantize
from mmabits.kernels.schemes import (
    attention,
    awq,
    fp8,
    fp8_blockwise,
    gptq,
    moe,
    moe_experts,
    mxfp6_mxfp4,
    mxfp8,
    nvfp4,
    packing_awq_gptq,
    w4a8,
    w4a16,
    w8a8,
)
from mmabits.kernels.schemes.dots import Dots

F32, F16 = np.float32, np.float16
SIZES = [(0, 16, 128), (8, 0, 128), (8, 16, 0), (0, 0, 0)]
Results = Iterator[tuple[str, Any]]


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(F32)


# Products: what each yields must be zeros (M, N) ------------------------------------------------------------------------


def fp8_rows(m: int, n: int, k: int, arch: str) -> Results:
    x, w = fp8.quantize(values(m, k), per="row"), fp8.quantize(values(k, n), per="column", recipe="reciprocal")
    yield "composition", fp8.fp8_matmul(x, w, arch=arch)
    yield "promoted", fp8.fp8_matmul(x, w, arch=Dots(arch=arch, promote_every=128))
    delayed, _ = fp8.DelayedScaling().step(values(m, k))
    yield "delayed", fp8.fp8_matmul(delayed, w, arch=arch)
    from mmabits.kernels.jax import fp8 as in_jax
    from mmabits.kernels.triton import fp8 as in_triton

    rows, scales = in_triton.quantize_rows(tensor(values(m, k)))
    assert tuple(rows.shape) == (m, k) and (scales.numpy() == (x.scales[:, 0] if k else 1)).all()
    yield "triton", in_triton.fp8_matmul(rows, scales, tensor(w.elements.T), tensor(w.scales[0]))
    yield "jax", in_jax.fp8_matmul(x.elements, x.scales, w.elements, w.scales)
    one = np.ones((1, 1), F32)
    yield "jax linear", in_jax.fp8_linear(values(m, k), values(k, n), one, one, one)


def fp8_tiles(m: int, n: int, k: int, arch: str) -> Results:
    x, w = fp8_blockwise.quantize_activations(values(m, k)), fp8_blockwise.quantize_weights(values(k, n))
    for fused in (True, False):
        yield "composition", fp8_blockwise.fp8_blockwise_matmul(x, w, arch=arch, fused=fused)
    from mmabits.kernels.triton import fp8_blockwise as in_triton

    left, right = in_triton.quantize_activations(tensor(values(m, k))), in_triton.quantize_weights(tensor(values(n, k)))
    yield "triton", in_triton.fp8_blockwise_matmul(*left, *right)


def mxfp8_blocks(m: int, n: int, k: int, arch: str) -> Results:
    x, w = mxfp8.quantize_rows(values(m, k)), mxfp8.quantize_columns(values(k, n))
    for way in (None, "bf16") if arch == "sm_90a" else (None, "block-scaled"):
        yield "composition", mxfp8.mxfp8_matmul(x, w, arch=arch, through=way)
    from mmabits.kernels.jax import block_scaled as in_jax
    from mmabits.kernels.triton import mxfp8 as in_triton

    a, a_scales = in_triton.quantize_rows(tensor(values(m, k)))
    b, b_scales = in_triton.quantize_columns(tensor(values(k, n)))
    yield "triton", in_triton.mxfp8_matmul(a, a_scales, b, b_scales)
    swizzled = [tensor(swizzle_scales(scales.numpy())) for scales in (a_scales, b_scales)]
    yield "triton swizzled", in_triton.mxfp8_matmul(a, swizzled[0], b, swizzled[1], swizzled=True)
    yield "jax", in_jax.mxfp8_matmul(x.elements, x.block_scales, w.T.elements, w.T.block_scales)
    from mmabits.kernels.triton.scaled import scaled_matmul

    yield "triton scaled", scaled_matmul(a, a_scales, "e4m3", tensor(w.elements), b_scales, "e4m3")


def mxfp4_and_6(m: int, n: int, k: int, arch: str) -> Results:
    from mmabits.kernels.triton import mxfp6_mxfp4 as in_triton

    for form in mxfp6_mxfp4.FORMATS:
        x, w = mxfp6_mxfp4.quantize_rows(values(m, k), format=form), mxfp6_mxfp4.quantize_columns(values(k, n), format=form)
        yield form, mxfp6_mxfp4.mx_matmul(x, w, arch=arch)
        if form == "e2m1":
            a, b = in_triton.quantize_mxfp4_rows(tensor(values(m, k))), in_triton.quantize_mxfp4_columns(tensor(values(k, n)))
            yield "triton", in_triton.mxfp4_matmul(*a, *b)
            continue
        packed = [mxfp6_mxfp4.pack_fp6(each, form) for each in (x.elements, w.T.elements)]
        assert mxfp6_mxfp4.unpack_fp6(packed[0], form).shape == (m, k)
        parts = tensor(packed[0]), tensor(x.scales), form, tensor(packed[1]), tensor(w.T.scales), form
        yield f"triton {form}", in_triton.mxfp6_matmul(*parts)


def nvfp4_blocks(m: int, n: int, k: int, arch: str) -> Results:
    x, w = nvfp4.quantize_rows(values(m, k)), nvfp4.quantize_columns(values(k, n), square=True)
    yield "composition", nvfp4.nvfp4_matmul(x, w, arch=arch)
    from mmabits.kernels.jax import block_scaled as in_jax
    from mmabits.kernels.triton import nvfp4 as in_triton

    a, b = in_triton.quantize(tensor(values(m, k))), in_triton.quantize(tensor(values(k, n)), columns=True, square=True)
    assert a[2].item() == x.tensor_scale
    yield "triton", in_triton.nvfp4_matmul(*a, *b)
    yield "jax", in_jax.nvfp4_matmul(x.elements, x.block_scales, x.tensor_scale, w.T.elements, w.T.block_scales, w.tensor_scale)


def int4_weights(m: int, n: int, k: int, arch: str) -> Results:
    x, w = values(m, k).astype(F16), w4a16.quantize_int4(values(k, n), group=32)
    yield "composition", w4a16.w4a16_matmul(x, w, arch=arch)
    from mmabits.kernels.jax import w4a16 as in_jax
    from mmabits.kernels.triton import w4a16 as in_triton

    a, g = packing_awq_gptq.AwqTensors.pack(w), packing_awq_gptq.GptqTensors.pack(w, zeros_minus_one=False)
    assert a.unpack().shape == g.unpack().shape == (k, n)
    assert packing_awq_gptq.quantization_config(g)["group_size"] == (32 if k else 128)
    yield "awq", in_triton.awq_matmul(tensor(x), tensor(a.qweight), tensor(a.qzeros), tensor(a.scales))
    yield "gptq", in_triton.gptq_matmul(tensor(x), tensor(g.qweight), tensor(g.qzeros), tensor(g.scales), tensor(g.g_idx))
    yield "jax", in_jax.awq_matmul(x, a.qweight, a.qzeros, a.scales, block_m=8, block_n=16, block_k=64)
    searched = awq.awq_quantize(values(k, n), values(3, k), group=32)
    yield "searched", w4a16.w4a16_matmul(x, searched.weights, arch=arch)
    made_up = gptq.gptq_quantize(values(k, n), gptq.hessian(values(200, k)), group=32, act_order=True)
    yield "made up", w4a16.w4a16_matmul(x, made_up, arch=arch)


def int8_weights(m: int, n: int, k: int, arch: str) -> Results:
    x, w = w8a8.quantize_int8(values(m, k), axis=0), w8a8.quantize_int8(values(k, n), axis=1)
    yield "composition", w8a8.w8a8_matmul(x, w, arch=arch)
    split = w8a8.split_outliers((40 * values(m, k)).astype(F16))
    w16 = values(k, n).astype(F16)
    yield "outliers", w8a8.llm_int8_matmul(split, w16, w, arch=arch)
    smoothed = w8a8.smooth(values(m, k), values(k, n), w8a8.smoothing_scales(np.ones(k, F32), values(k, n)))
    assert (smoothed[0].shape, smoothed[1].shape) == ((m, k), (k, n))
    from mmabits.kernels.jax import w8a8 as in_jax
    from mmabits.kernels.triton import w8a8 as in_triton

    parts = x.codes, x.scales, w.codes, w.scales
    mixed = split.regular.codes, split.regular.scales, w.codes, w.scales, split.outliers, split.columns, w16
    yield "triton", in_triton.w8a8_matmul(*map(tensor, parts))
    yield "triton outliers", in_triton.llm_int8_matmul(*map(tensor, mixed))
    yield "jax", in_jax.w8a8_matmul(*parts)
    yield "jax outliers", in_jax.llm_int8_matmul(*mixed)


def int4_times_int8(m: int, n: int, k: int, arch: str) -> Results:
    from mmabits.kernels.jax import w8a8 as in_jax
    from mmabits.kernels.triton import w4a8 as in_triton

    x = w8a8.quantize_int8(values(m, k), axis=0)
    for group in (0, 32):
        w = w4a8.quantize_w4a8(values(k, n), group=group)
        yield f"composition {group}", w4a8.w4a8_matmul(x, w, arch=arch)
        parts = x.codes, x.scales, w.pack(), w.output_scales, *(() if w.group_scales is None else (w.group_scales,))
        yield f"triton {group}", in_triton.w4a8_matmul(*map(tensor, parts))
        yield f"jax {group}", in_jax.w4a8_matmul(*parts)


def experts(m: int, n: int, k: int, arch: str) -> Results:
    from mmabits.kernels.triton import moe as in_triton

    routing = moe.route(values(m, 3), top_k=2)
    aligned = moe.align(routing)
    tables = tensor(routing.weights), tensor(aligned.choices), tensor(aligned.experts)
    packed = moe.Int4Experts.pack([w4a16.quantize_int4(values(k, n), group=32)] * 3)
    x = values(m, k).astype(ml_dtypes.bfloat16)
    yield "int4", moe.moe_w4a16(x, packed, routing, arch=arch)
    yield "triton int4", in_triton.moe_w4a16(tensor(x), tensor(packed.qweight), tensor(packed.qzeros), tensor(packed.scales), *tables)
    blocks = moe.quantize_mxfp4_experts(values(3, k, n))
    yield "mxfp4", moe.moe_mxfp4(x, blocks, routing, arch=arch)
    yield "triton mxfp4", in_triton.moe_mxfp4(tensor(x), tensor(blocks.codes), tensor(blocks.scales), *tables)


def experts_of_schemes(m: int, n: int, k: int, arch: str) -> Results:
    from mmabits.kernels.triton import moe_experts as in_triton

    routing, launchers = moe.route(values(m, 3), top_k=2), {"w8a8": "w8a8", "w8a16-int8": "w8a16", "mxfp8": "mxfp8", "nvfp4": "nvfp4"}
    if k % 128 == 0:
        launchers["fp8-tiles"] = "fp8_tiles"
    for name, launcher in launchers.items():
        scheme = moe_experts.EXPERTS[name]
        weights, x = moe_experts.quantize_experts(values(3, k, n), scheme), scheme.activations(values(m, k))
        yield name, moe_experts.moe_matmul(x, weights, routing, arch=arch)
        aligned = moe.align(routing, block=128 if name in ("mxfp8", "nvfp4") else 64)
        tables = routing.weights, aligned.choices, aligned.experts
        given = [tensor(array) for array in (*scheme.stored(x).values(), *weights.pack().values(), *tables)]
        yield f"triton {name}", getattr(in_triton, f"moe_{launcher}")(*given)


def plain(m: int, n: int, k: int, arch: str) -> Results:
    from mmabits.kernels.triton.matmul import matmul
    from mmabits.kernels.triton.persistent import persistent_matmul
    from mmabits.kernels.triton.split_k import split_k_matmul

    a, b = tensor(values(m, k).astype(F16)), tensor(values(k, n).astype(F16))
    yield "matmul", matmul(a, b, activation="relu")
    yield "persistent", persistent_matmul(a, b, programs=3)
    for reduction in ("ordered", "atomic"):
        yield reduction, split_k_matmul(a, b, parts=2, reduction=reduction)


PRODUCTS: list[Callable[[int, int, int, str], Results]] = [
    fp8_rows, fp8_tiles, mxfp8_blocks, mxfp4_and_6, nvfp4_blocks, int4_weights, int8_weights, int4_times_int8, experts, experts_of_schemes,
    plain,
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("product", PRODUCTS, ids=lambda product: product.__name__)
@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_products_of_nothing_are_zeros_of_their_shape(
    product: Callable[[int, int, int, str], Results], size: tuple[int, int, int], arch: str
) -> None:
    pytest.importorskip("triton")
    pytest.importorskip("jax")
    from mmabits import emulate

    m, n, k = size
    with emulate(arch, frameworks=["triton", "jax"], triton="interpreted"):
        for name, found in product(m, n, k, arch):
            result = np.asarray(found)
            assert (result.shape, result.dtype) == ((m, n), np.dtype(F32)), name
            assert not result.view(np.uint32).any(), name


def test_k_of_nothing_is_still_checked() -> None:
    for a, b in (((0, 4), (5, 0)), ((2, 0), (1, 2))):
        with pytest.raises(OperandError, match="they must agree"):
            Dots(arch="sm_90a")(np.zeros(a, F16), np.zeros(b, F16))


def test_without_k_the_accumulator_stays_as_it_is() -> None:
    c = np.array([[-0.0, np.nan], [np.inf, 1.5]], F32)
    found = Dots(arch="sm_90a")(np.zeros((2, 0), F16), np.zeros((0, 2), F16), c)
    assert np.array_equal(found.view(np.uint32), c.view(np.uint32))
    assert Dots(arch="sm_90a")(np.zeros((2, 0), F16), np.zeros((0, 2), F16), accumulator="f16").dtype == F16


# Attention: no keys give zeros, no heads, queries or D an empty result ----------------------------------------------------


@pytest.mark.parametrize(("heads", "queries", "keys", "width"), [(0, 4, 4, 64), (2, 0, 4, 64), (2, 4, 0, 64), (2, 4, 4, 0), (0, 0, 0, 0)])
def test_attention_over_nothing(heads: int, queries: int, keys: int, width: int) -> None:
    pytest.importorskip("triton")
    from mmabits import emulate
    from mmabits.kernels.triton import attention as in_triton

    key_heads = heads // 2
    q, k = attention.quantize_queries(values(heads, queries, width)), attention.quantize_keys(values(key_heads, keys, width))
    v16, v8 = values(key_heads, keys, width).astype(F16), attention.quantize_values(values(key_heads, keys, width))
    found = [attention.sage_attention(q, k, v16, arch="sm_90a"), attention.sage2_attention(q, k, v8, arch="sm_90a")]
    parts = [tensor(each) for each in (q.codes, q.scales, k.codes, k.scales)]
    with emulate("sm_90a", frameworks=["triton"], triton="interpreted"):
        found.append(in_triton.sage_attention(*parts, tensor(v16)).numpy())
        found.append(in_triton.sage2_attention(*parts, tensor(v8.codes), tensor(attention.sage2_output_scales(v8))).numpy())
    for result in found:
        assert (result.shape, result.dtype) == ((heads, queries, width), np.dtype(F32))
        assert not result.view(np.uint32).any()


@pytest.mark.parametrize(("sequences", "heads", "new", "length"), [(0, 2, 1, 1), (3, 0, 1, 1), (3, 2, 0, 0), (3, 2, 0, 5)])
def test_cached_attention_of_nothing(sequences: int, heads: int, new: int, length: int) -> None:
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("triton")
    from mmabits import emulate
    from mmabits.kernels.triton import attention as in_triton

    zeros = np.zeros((2, 16, heads, 64), ml_dtypes.float8_e4m3fn)
    cache = attention.PagedCache(keys=zeros, values=zeros, key_scale=F32(1), value_scale=F32(1))
    cache.write(np.zeros(0, np.int64), values(0, heads, 64), values(0, heads, 64))
    queries = np.zeros((sequences, heads, new, 64), ml_dtypes.float8_e4m3fn)
    tables, lengths = np.zeros((sequences, 1), np.int32), np.full(sequences, length, np.int32)
    wanted = attention.fp8_attention(queries, cache, tables, lengths, query_scale=1.0, arch="sm_90a")
    with emulate("sm_90a", frameworks=["triton"], triton="interpreted"):
        got = in_triton.fp8_attention(
            tensor(queries), tensor(zeros), tensor(zeros), tensor(tables), tensor(lengths), torch.ones(1), torch.ones(1)
        )  # fmt: skip
    assert wanted.shape == tuple(got.shape) == (sequences, heads, new, 64)


# Quantizers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 128), (128, 0), (0, 0)])
def test_quantizers_of_nothing_keep_the_shape(shape: tuple[int, int]) -> None:
    x = values(*shape)
    assert quantize.quantize_fp8(x).elements.shape == shape
    assert quantize.quantize_fp8(x).tensor_scale == 1
    for axis in (0, 1):
        for recipe in quantize.MX_RECIPES:
            assert quantize.quantize_mx(x, axis=axis, recipe=recipe).dequantize().shape == shape
        for square in (False, True):
            assert quantize.quantize_nvfp4(x, axis=axis, square=square).dequantize().shape == shape
        assert nvfp4.hadamard(x, nvfp4.random_signs(3), axis=axis).shape == shape
    for per in fp8.GRANULARITIES:
        assert fp8.quantize(x, per=per).dequantize().shape == shape
        assert fp8.quantize(x, per=per, scale=F32(2)).dequantize().shape == shape
    for tile in fp8_blockwise.TILES:
        assert fp8_blockwise.quantize(x, tile=tile).dequantize().shape == shape
    assert w4a16.quantize_int4(x, group=64, symmetric=True).dequantize().shape == shape
    assert packing_awq_gptq.unpack_words(packing_awq_gptq.pack_words(np.zeros(shape, np.uint8), axis=0), axis=0).shape == shape
    assert moe.quantize_mxfp4_experts(values(0, *shape)).codes.shape == (0, shape[1], shape[0] // 2)
