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
from mmabits.kernels.schemes import asymmetric, fp8, fp8_blockwise, mxfp6_mxfp4, mxfp8, w4a4, w4a8, w4a8_fp8, w4a16, w8a8, w8a16
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
    a, b = _matrices(m=6, k=max(64, 2 * RECIPES[name].block), n=5)
    found = study(a, b, recipe=name, arch="sm_100a")
    assert 0 < found.total.error < 1.5
    has_promotion = "s32" not in found.instruction and name not in ("fp8-tiles", "fp8-tiles-power-of-two", "w4a8-fp8")
    assert len(found.rows()) == 1 + 5 + 1 + has_promotion
    assert {row["kind"] for row in found.rows()} == {"total", "part", "switched"}


COMPOSED = {
    "fp8-rowwise": lambda a, b, arch: fp8.fp8_matmul(fp8.quantize(a, per="row"), fp8.quantize(b, per="column"), arch=arch),
    "fp8-tiles": lambda a, b, arch: fp8_blockwise.fp8_blockwise_matmul(
        fp8_blockwise.quantize_activations(a), fp8_blockwise.quantize_weights(b), arch=arch
    ),
    "int8": lambda a, b, arch: w8a8.w8a8_matmul(w8a8.quantize_int8(a, axis=0), w8a8.quantize_int8(b, axis=1), arch=arch),
    "int8-asymmetric": lambda a, b, arch: asymmetric.asymmetric_matmul(
        asymmetric.quantize_affine(a, axis=0), asymmetric.quantize_affine(b, axis=1, dtype=np.int8), arch=arch
    ),
    "w4a4": lambda a, b, arch: w4a4.w4a4_matmul(
        w4a4.quantize_int4_symmetric(a, axis=0), w4a4.quantize_int4_symmetric(b, axis=1), arch=arch
    ),
    "w4a16": lambda a, b, arch: w4a16.w4a16_matmul(a.astype(np.float16), w4a16.quantize_int4(b), arch=arch),
    "w8a16-e4m3": lambda a, b, arch: w8a16.w8a16_matmul(a.astype(np.float16), w8a16.quantize_w8(b, kind="e4m3"), arch=arch),
    "w4a8": lambda a, b, arch: w4a8.w4a8_matmul(w8a8.quantize_int8(a, axis=0), w4a8.quantize_w4a8(b), arch=arch),
    "w4a8-fp8": lambda a, b, arch: w4a8_fp8.w4a8_fp8_matmul(fp8.quantize(a, per="row"), w4a8_fp8.quantize_w4a8_fp8(b), arch=arch),
    "mxfp8-mxfp4": lambda a, b, arch: mxfp6_mxfp4.mx_matmul(mxfp8.quantize_rows(a), mxfp6_mxfp4.quantize_columns(b), arch=arch),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSED)
def test_a_recipe_is_the_product_of_its_scheme(name):
    """But for the roundings of float32 scaling, which a budget leaves out."""
    a, b = _matrices(m=6, k=256, n=5)
    b += np.float32(0.05)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    found = COMPOSED[name](a, b, "sm_100a")
    assert study(a, b, recipe=name, arch="sm_100a").total.error == pytest.approx(_size(found - exact, exact), rel=1e-4)


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
