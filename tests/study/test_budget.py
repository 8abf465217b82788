"""Error budgets: the parts are what they say, computed here another way, and add up."""

from __future__ import annotations

from io import StringIO

import numpy as np
import pytest
from rich.console import Console

import mmabits
from mmabits.emulator.codecs import decode
from mmabits.isa import OperandError, OperandTypeError, UnsupportedInstruction
from mmabits.kernels.quantize import quantize_fp8
from mmabits.research.study import RECIPES, study


def _matrices(m=24, k=512, n=20, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((m, k)).astype(np.float32), (rng.standard_normal((k, n)) * 0.05).astype(np.float32)


def _size(error, exact):
    return np.sqrt((error**2).mean()) / np.sqrt((exact**2).mean())


def test_the_parts_are_what_they_say():
    a, b = _matrices()
    found = study(a, b, recipe="fp8", arch="sm_90a")
    quantized = quantize_fp8(a), quantize_fp8(b)
    x, y = (decode(one.elements, one.element) * float(one.tensor_scale) for one in quantized)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    d = mmabits.gemm(quantized[0].elements, quantized[1].elements, instruction="wgmma", arch="sm_90a").astype(np.float64)
    d *= float(quantized[0].tensor_scale) * float(quantized[1].tensor_scale)
    parts = {part.cause: part for part in found.parts}
    assert found.total.error == pytest.approx(_size(d - exact, exact), rel=1e-12)
    assert parts["quantization of A"].error == pytest.approx(_size((x - a) @ b.astype(np.float64), exact), rel=1e-12)
    assert parts["quantization of B"].error == pytest.approx(_size(a.astype(np.float64) @ (y - b), exact), rel=1e-12)
    hardware = np.sqrt(sum(parts[name].error ** 2 for name in ("accumulator's rounding", "alignment's truncation")))
    assert _size(d - x @ y, exact) < 2 * hardware
    assert found.total.low < found.total.error < found.total.high


def test_hopper_truncates_and_blackwell_hardly():
    a, b = _matrices(k=2048)
    hopper, blackwell = (study(a, b, recipe="fp8", arch=arch) for arch in ("sm_90a", "sm_100a"))
    truncation = [next(part.error for part in one.parts if part.cause.startswith("alignment")) for one in (hopper, blackwell)]
    assert truncation[0] > 1000 * truncation[1] > 0
    assert hopper.parts[0] == blackwell.parts[0], "quantization does not depend on the architecture"


def test_one_thing_is_switched_at_a_time():
    a, b = (np.abs(matrix) for matrix in _matrices(k=2048))  # sums that grow: what promotion is for
    plain, promoted = study(a, b), study(a, b, promote_every=128)
    assert [part.cause for part in plain.switched] == ["another order of K changes it by", "promotion every 128 changes it by"]
    assert [part.cause for part in promoted.switched][1] == "without promotion it changes by"
    assert plain.switched[1].error == pytest.approx(promoted.switched[1].error, rel=1e-12)
    assert promoted.total.error < plain.total.error


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_computed_by_some_architecture(name):
    a, b = _matrices(m=6, k=64, n=5)
    found = study(a, b, recipe=name, arch="sm_100a")
    assert 0 < found.total.error < 1.5
    assert len(found.rows()) == 1 + 5 + 2
    assert {row["kind"] for row in found.rows()} == {"total", "part", "switched"}


def test_it_prints_as_a_table():
    a, b = _matrices(m=6, k=64, n=5)
    out = StringIO()
    Console(width=200, file=out).print(study(a, b))
    text = out.getvalue()
    assert "quantization of A" in text and "all of it" in text and "fp8 on sm_90a, 6 x 5 x 64" in text


def test_wrong_use_is_refused():
    a, b = _matrices(m=6, k=64, n=5)
    with pytest.raises(OperandTypeError, match="a must be of float32, got float64"):
        study(a.astype(np.float64), b)
    with pytest.raises(OperandError, match=r"a has K = 64 .* and b has K = 32"):
        study(a, b[:32])
    with pytest.raises(OperandError, match="unknown recipe 'fp9'; did you mean fp8"):
        study(a, b, recipe="fp9")
    with pytest.raises(UnsupportedInstruction, match="sm_80 has no tensor-core instruction for e4m3 x e4m3"):
        study(a, b, recipe="fp8", arch="sm_80")
    mmabits.what_if("study-what-if", base="sm_90a", rows={})
    with pytest.raises(OperandError, match="study takes real architectures"):
        study(a, b, arch="study-what-if")
    for seed in (-1, 1.5, True):
        with pytest.raises(OperandError, match=f"seed must be an integer from 0 upward, got {seed}"):
            study(a, b, seed=seed)


def test_what_is_not_finite_has_no_budget():
    a, b = _matrices(4, 64, 4)
    bad = a.copy()
    bad[1, 2] = np.inf
    with pytest.raises(OperandError, match="a must be finite, got inf"):
        study(bad, b)
    with pytest.raises(OperandError, match="a has values that recipe f16 cannot store"):
        study(a * np.float32(1e6), b, recipe="f16", arch="sm_80")
    with pytest.raises(OperandError, match="the product overflows f16"):
        name = "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16"
        study(a * np.float32(1e4), b * np.float32(1e4), recipe="f16", arch="sm_80", instruction=name)
