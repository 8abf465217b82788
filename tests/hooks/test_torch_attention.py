"""Attention of PyTorch under `emulate`: taken apart into products, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mmabits import gemm  # noqa: E402
from mmabits.emulator.hooks.session import emulate  # noqa: E402
from mmabits.isa import EmulationError  # noqa: E402

F = torch.nn.functional
HALF = torch.float16


def emulated(arch="sm_90a"):
    return emulate(arch, frameworks=["torch"])


def random(*shape, seed=0, dtype=HALF):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(dtype)


def product(a, b):
    result = gemm(a.detach().numpy(), b.detach().numpy(), instruction="wgmma", arch="sm_90a")
    return torch.from_numpy(result.astype(np.float16))


def composition(query, key, value, mask=None):
    """PyTorch's math path: query and key each times the root of the scale, everything rounded to f16."""
    root = query.shape[-1] ** -0.25
    scores = product(query * root, (key * root).transpose(-2, -1))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return product(torch.softmax(scores, -1), value)


def assert_same(got, want):
    assert torch.equal(got.contiguous().view(torch.int16), want.contiguous().view(torch.int16))


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_is_its_two_products(is_causal):
    query, key, value = (random(2, 3, 16, 32, seed=seed) for seed in range(3))
    with emulated() as session:
        got = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
    assert_same(got, composition(query, key, value, torch.ones(16, 16, dtype=torch.bool).tril() if is_causal else None))
    report = session.report()
    assert [(line.m, line.n, line.k, line.count) for line in report.emulated] == [(16, 16, 32, 6), (16, 32, 16, 6)]
    assert report.skipped == ()
    assert report.emulated[0].site.startswith("bmm of scaled_dot_product_attention at test_torch_attention.py:")
    assert got.shape == query.shape and got.is_contiguous()


def test_masks_and_inference_mode():
    query, key, value = (random(1, 2, 8, 16, seed=seed) for seed in range(3))
    mask = torch.ones(8, 8, dtype=torch.bool).triu()
    want = composition(query, key, value, mask)
    with emulated() as session:
        assert_same(F.scaled_dot_product_attention(query, key, value, attn_mask=mask), want)
        with torch.inference_mode():
            assert_same(F.scaled_dot_product_attention(query, key, value, attn_mask=mask), want)
    assert sum(line.count for line in session.report().emulated) == 8


def test_backward_is_emulated():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    upstream, gradients = random(1, 2, 8, 16, seed=9), []
    for backends in ([SDPBackend.FLASH_ATTENTION], [SDPBackend.MATH]):
        inputs = [random(1, 2, 8, 16, seed=seed).requires_grad_() for seed in range(3)]
        with emulated() as session, sdpa_kernel(backends):
            F.scaled_dot_product_attention(*inputs).backward(upstream)
        gradients.append([tensor.grad for tensor in inputs])
        backward = [line for line in session.report().emulated if "in backward" in line.site]
        assert sum(line.count for line in backward) >= 8  # four products of two heads
        assert session.report().skipped == ()
    for fused, math in zip(*gradients, strict=True):
        assert_same(fused, math)
    value = [random(1, 2, 8, 16, seed=seed) for seed in range(3)]
    root = 16**-0.25
    weights = torch.softmax(product(value[0] * root, (value[1] * root).transpose(-2, -1)), -1)
    assert_same(gradients[0][2], product(weights.transpose(-2, -1), upstream))


def test_dropout_takes_the_math_path_in_half_precision():
    query = random(1, 2, 16, 32)
    with emulated() as session:
        F.scaled_dot_product_attention(query, query, query, dropout_p=0.5)
    assert sum(line.count for line in session.report().emulated) == 4
    assert session.report().skipped == ()


def test_f32_attention_stays_whole_and_is_reported():
    query = random(1, 2, 8, 16, dtype=torch.float32)
    stock = F.scaled_dot_product_attention(query, query, query)
    with emulated() as session:
        assert torch.equal(F.scaled_dot_product_attention(query, query, query), stock)
    assert [line.operation for line in session.report().skipped] == ["_scaled_dot_product_flash_attention_for_cpu"]


def test_transformer_layers_do_not_take_their_fused_path():
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dtype=HALF, batch_first=True).eval()
    with emulated() as session, torch.no_grad():
        layer(random(2, 8, 16))
    assert sum(line.count for line in session.report().emulated) == 4 + 2 * 4  # four projections, two products of four heads
    assert session.report().skipped == ()


def test_other_fused_kernels_are_refused():
    query = random(1, 2, 8, 16)
    with emulated(), pytest.raises(EmulationError, match="no fused kernel is modelled"):
        torch.ops.aten._scaled_dot_product_efficient_attention(query, query, query, None, False)


def test_compiled_attention_is_emulated():
    torch._dynamo.reset()
    query, key, value = (random(1, 2, 8, 16, seed=seed) for seed in range(3))
    compiled = torch.compile(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), backend="aot_eager")
    compiled(query, key, value)
    with emulated() as session:
        assert_same(compiled(query, key, value), composition(query, key, value))
    assert sum(line.count for line in session.report().emulated) == 4
