"""An architecture of the caller's own inside emulate, and found again by identify."""

from __future__ import annotations

import numpy as np
import pytest

import mmabits
from mmabits.conformance.identify.devices import emulator_device

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
tl = triton.language

NAME = "hooks-f20"
CHANGE = {"wgmma.f8.f32": {"fraction_bits": 20, "result_fraction_bits": 20}}


@triton.jit
def product(a, b, c, K: tl.constexpr, SIZE: tl.constexpr):
    rows, columns, k = tl.arange(0, SIZE), tl.arange(0, SIZE), tl.arange(0, K)
    x = tl.load(a + rows[:, None] * K + k[None, :])
    y = tl.load(b + k[:, None] * SIZE + columns[None, :])
    tl.store(c + rows[:, None] * SIZE + columns[None, :], tl.dot(x, y))


def test_triton_and_torch_compute_with_it():
    mmabits.what_if(NAME, base="sm_90a", rows=CHANGE)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).to(torch.float8_e4m3fn) for shape in ((64, 128), (128, 64)))
    one = torch.ones(())
    results = {}
    for arch in ("sm_90a", NAME):
        c = torch.empty(64, 64)
        with mmabits.emulate(arch, frameworks=["torch", "triton"]) as session:
            product[(1,)](a, b, c, K=128, SIZE=64)
            d = torch._scaled_mm(a, b.t().contiguous().t(), one, one, out_dtype=torch.float32, use_fast_accum=True)
        expected = mmabits.gemm(a, b, instruction="wgmma", arch=arch)
        assert torch.equal(c, expected) and torch.equal(d, expected)
        results[arch] = (expected, {str(line.evidence) for line in session.report().emulated})
    assert (results["sm_90a"][0] != results[NAME][0]).any()
    assert results["sm_90a"][1] == {"published"} and results[NAME][1] == {"inferred"}


def test_identify_finds_it():
    mmabits.what_if(NAME, base="sm_90a", rows=CHANGE)
    device = emulator_device("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3", NAME)
    found = mmabits.identify(device, a_type="e4m3", b_type="e4m3", d_type="f32", k=32)
    assert found.survived
    assert (found.model.fraction_bits, found.model.result_fraction_bits) == (20, 20)
    assert found.names == ()
    assert np.all(found.probes > 0)
