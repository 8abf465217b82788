"""Operands without elements under `emulate`: M, N or a batch of 0 give an empty result, K = 0 gives zeros, or C."""

from __future__ import annotations

import numpy as np
import pytest

import mmabits

SIZES = {"M": (0, 16, 64), "N": (16, 0, 64), "K": (16, 32, 0), "all": (0, 0, 0)}
EVERY = pytest.mark.parametrize(("m", "n", "k"), SIZES.values(), ids=SIZES)


class TestTorch:
    @pytest.fixture(autouse=True)
    def torch(self):
        self.torch = pytest.importorskip("torch")

    def tensors(self, m, n, k, dtype):
        return (self.torch.full(shape, 3).to(dtype) for shape in ((m, k), (k, n), (m, n)))

    def check(self, found, shape, value=0):
        assert tuple(found.shape) == shape and (found.float() == value).all()

    @EVERY
    @pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
    def test_plain_products(self, m, n, k, name):
        torch, dtype = self.torch, getattr(self.torch, name)
        a, b, c = self.tensors(m, n, k, dtype)
        many_a, many_b, many_c = (x.expand(2, *x.shape) for x in (a, b, c))
        with mmabits.emulate("sm_90a", frameworks=["torch"]) as session:
            self.check(a @ b, (m, n))
            self.check(torch.mm(a, b, out=torch.ones(m, n, dtype=dtype)), (m, n))
            self.check(torch.addmm(c, a, b, beta=2), (m, n), 6)
            self.check(torch.addmm(c * float("nan"), a, b, beta=0), (m, n))
            self.check(torch.bmm(many_a, many_b), (2, m, n))
            self.check(torch.bmm(many_a[:0], many_b[:0]), (0, m, n))
            self.check(torch.baddbmm(many_c, many_a, many_b), (2, m, n), 3)
            self.check(torch.addbmm(c, many_a[:0], many_b[:0]), (m, n), 3)
            self.check(torch.nn.functional.linear(a, b.t(), torch.ones(n, dtype=dtype)), (m, n), 1)
        assert session.report().emulated == () == session.report().skipped

    @EVERY
    @pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
    def test_scaled_products(self, arch, m, n, k):
        torch = self.torch
        a, b = torch.ones(m, k).to(torch.float8_e4m3fn), torch.ones(n, k).to(torch.float8_e4m3fn).t()
        one, bias = torch.tensor(1.0), torch.ones(n).bfloat16()
        with mmabits.emulate(arch, frameworks=["torch"]) as session:
            self.check(torch._scaled_mm(a, b, one, one, bias=bias, out_dtype=torch.bfloat16), (m, n))  # PyTorch adds no bias to nothing
            self.check(torch._scaled_mm(a, b, torch.ones(m, 1), torch.ones(1, n), out_dtype=torch.bfloat16), (m, n))
            if hasattr(torch.nn.functional, "scaled_mm"):
                kind = torch.nn.functional.ScalingType.TensorWise
                self.check(torch.nn.functional.scaled_mm(a, b, one, kind, one, kind, output_dtype=torch.bfloat16), (m, n))
            if arch == "sm_100a":
                size = [-(-rows // 128) * 128 * (-(-(k // 32) // 4) * 4) for rows in (m, n)]
                scales = [torch.ones(count).to(torch.float8_e8m0fnu) for count in size]
                self.check(torch._scaled_mm(a, b, *scales, out_dtype=torch.bfloat16), (m, n))
        assert session.report().emulated == ()

    @EVERY
    def test_grouped_products(self, m, n, k):
        torch = self.torch
        a, b, _ = self.tensors(m, n, k, torch.bfloat16)
        many_a, many_b = a.expand(2, m, k), b.expand(2, k, n)

        def ends(last):
            return torch.tensor([0, last], dtype=torch.int32)

        with mmabits.emulate("sm_90a", frameworks=["torch"], undefined="poison") as session:
            self.check(torch._grouped_mm(a, many_b, offs=ends(m)), (m, n))
            self.check(torch._grouped_mm(many_a, b, offs=ends(n)), (m, n))
            self.check(torch._grouped_mm(a, b, offs=ends(k)), (2, m, n))
            self.check(torch._grouped_mm(many_a, many_b), (2, m, n))
            self.check(torch._grouped_mm(many_a[:0], many_b[:0]), (0, m, n))
        assert session.report().emulated == () == session.report().undefined

    @pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:.*torch.nested", "ignore:.*nested tensors")
    def test_operands_that_are_no_plain_tensors_run_as_pytorch_computes_them(self):
        torch = self.torch
        a = torch.eye(16).half()
        nested = torch.nested.nested_tensor([torch.ones(4, 8), torch.ones(4, 8)])
        turned = torch.nested.nested_tensor([torch.ones(8, 4), torch.ones(8, 4)])
        with mmabits.emulate("sm_90a", frameworks=["torch"]) as session:
            assert torch.equal((a.float().to_sparse() @ a.float()), a.float())
            assert torch.equal((a.float().to_sparse_csr() @ a.float()), a.float())
            assert (torch.bmm(nested, turned).to_padded_tensor(0) == 8).all()
            assert (a.to("meta") @ a.to("meta")).is_meta
        assert session.report().emulated == ()
        assert [line.reason.split(";")[0] for line in session.report().skipped] == [
            "an operand is a tensor of layout torch.sparse_coo", "an operand is a tensor of layout torch.sparse_csr",
            "f32 products run on CUDA cores unless torch.backends.cuda.matmul allows TF32",  # of the parts of nested tensors
        ]  # fmt: skip

    def test_negated_views(self):
        torch = self.torch
        values = torch.from_numpy(np.random.default_rng(2).standard_normal((16, 16)))
        negative = torch.view_as_complex(torch.stack([values, values], -1)).conj().imag
        assert negative.is_neg()
        with mmabits.emulate("sm_90a", frameworks=["torch"]) as session:
            assert torch.equal(negative @ values, (-values) @ values)
        assert sum(line.count for line in session.report().emulated) == 2


class TestJax:
    @pytest.fixture(autouse=True)
    def jax(self):
        self.jax = pytest.importorskip("jax")

    @EVERY
    @pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
    def test_dots(self, arch, m, n, k):
        jnp, lax = self.jax.numpy, self.jax.lax
        numbers = (((2,), (1,)), ((0,), (0,)))
        kinds = {jnp.bfloat16: None, jnp.float16: None, jnp.float32: None, jnp.float8_e4m3fn: jnp.float32, jnp.int8: jnp.int32}
        kinds[jnp.float4_e2m1fn] = jnp.float32
        with mmabits.emulate(arch, frameworks=["jax"]) as session:
            for dtype, out in kinds.items():
                for batch in (0, 2):
                    a, b = jnp.ones((batch, m, k), dtype), jnp.ones((batch, k, n), dtype)
                    if batch and m and n and k:
                        continue
                    for run in (lax.dot_general, self.jax.jit(lax.dot_general, static_argnums=2, static_argnames="preferred_element_type")):
                        d = run(a, b, numbers, preferred_element_type=out)
                        assert d.shape == (batch, m, n) and d.dtype == (out or dtype) and not np.asarray(d).any()
            gradient = self.jax.grad(lambda a, b: jnp.matmul(a, b).sum())(jnp.ones((m, k)), jnp.ones((k, n)))
            assert gradient.shape == (m, k)
        assert session.report().emulated == () == session.report().skipped

    @pytest.mark.parametrize("batch", [0, 1])
    @EVERY
    @pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
    def test_block_scaled_products(self, arch, m, n, k, batch):
        jax, jnp = self.jax, self.jax.numpy
        a, b = jnp.ones((batch, m, k), jnp.float8_e4m3fn), jnp.ones((batch, n, k), jnp.float8_e4m3fn)
        scales = [jnp.ones((batch, rows, k // 32), jnp.float8_e8m0fnu) for rows in (m, n)]
        with mmabits.emulate(arch, frameworks=["jax"]) as session:
            d = jax.nn.scaled_matmul(a, b, *scales)
            assert d.shape == (batch, m, n) and not d.any()
            if k:  # JAX itself divides by K
                d = jax.lax.scaled_dot(
                    a, b, lhs_scale=scales[0], rhs_scale=scales[1], dimension_numbers=(((2,), (2,)), ((0,), (0,)))
                )  # fmt: skip
                assert d.shape == (batch, m, n) and not d.any()
        assert session.report().emulated == ()

    @EVERY
    @pytest.mark.parametrize("groups", [0, 2])
    def test_ragged_dot(self, m, n, k, groups):
        jax, jnp = self.jax, self.jax.numpy
        with mmabits.emulate("sm_90a", frameworks=["jax"]):
            d = jax.lax.ragged_dot(
                jnp.ones((m, k), jnp.bfloat16), jnp.ones((groups, k, n), jnp.bfloat16), jnp.zeros((groups,), jnp.int32)
            )  # fmt: skip
        assert d.shape == (m, n) and not d.any()

    def test_a_product_too_large_is_refused_when_it_is_compiled(self, monkeypatch):
        from mmabits.emulator.engine import memory
        from mmabits.isa import NotEnoughMemory

        jnp = self.jax.numpy
        monkeypatch.setattr(memory, "available", lambda: 1 << 26)
        a, b = (self.jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((40_000, 16), (16, 40_000)))
        with mmabits.emulate("sm_90a", frameworks=["jax"]), pytest.raises(NotEnoughMemory, match=r"takes 6\.0 GiB of memory, and 64 MiB"):
            self.jax.jit(jnp.matmul).lower(a, b)
