"""Scaled products of PyTorch under `emulate`: every recipe against a composition through `mmabits.gemm`."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional
if not hasattr(F, "scaled_mm"):
    pytest.skip("this PyTorch has no torch.nn.functional.scaled_mm", allow_module_level=True)

from mmabits import gemm, layouts  # noqa: E402
from mmabits.emulator.engine.fma import fma  # noqa: E402
from mmabits.emulator.hooks.session import emulate  # noqa: E402
from mmabits.emulator.hooks.torch import scaled  # noqa: E402
from mmabits.isa import EmulationError, OperandError, OperandTypeError  # noqa: E402
from mmabits.kernels.quantize import quantize_mx, quantize_nvfp4  # noqa: E402

TYPE, SWIZZLE = F.ScalingType, F.SwizzleType
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16, E4M3: torch.uint8, E5M2: torch.uint8}
WGMMA, TCGEN05 = {"instruction": "wgmma", "arch": "sm_90a"}, {"instruction": "tcgen05.mma.kind::f8f6f4", "arch": "sm_100a"}
M, N, K = 24, 32, 320


def emulated(arch="sm_90a"):
    return emulate(arch, frameworks=["torch"])


def values(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-4, 5, shape)).astype(np.float32)


def fp8(*shape, seed=0, dtype=ml_dtypes.float8_e4m3fn):
    return np.clip(values(*shape, seed=seed), -400, 400).astype(dtype)


def torch_of(array):
    """A NumPy array of an ml_dtypes type as the torch tensor of the same bits."""
    kinds = {"float8_e4m3fn": E4M3, "float8_e5m2": E5M2, "float8_e8m0fnu": torch.float8_e8m0fnu}
    kind = kinds.get(array.dtype.name)
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array) if kind is None else torch.from_numpy(array.view(np.uint8)).view(kind)


def pair(a_type=ml_dtypes.float8_e4m3fn, b_type=ml_dtypes.float8_e4m3fn):
    """A (M x K) and B (K x N) in NumPy, and as torch tensors in the layout that GPUs want."""
    a, b = fp8(M, K, dtype=a_type), fp8(N, K, seed=1, dtype=b_type)
    return a, b.T, torch_of(a), torch_of(b).t()


def assert_same(got, want):
    want = torch.from_numpy(np.ascontiguousarray(want)) if isinstance(want, np.ndarray) else want
    assert got.dtype == want.dtype and got.shape == want.shape
    assert torch.equal(got.contiguous().view(BITS[got.dtype]), want.contiguous().view(BITS[want.dtype]))


def scale(*shape, seed=7):
    return (np.random.default_rng(seed).random(shape) + 0.1).astype(np.float32)


# f32 scales


@pytest.mark.parametrize(
    "options, fast, promote", [(WGMMA, True, None), (WGMMA, False, 128), (TCGEN05, False, None), (TCGEN05, True, None)]
)
def test_tensorwise(options, fast, promote):
    a, b, ta, tb = pair()
    sa, sb = torch.tensor(0.37), torch.tensor(1.9)
    want = gemm(a, b, promote_every=promote, **options) * np.float32(np.float32(0.37) * np.float32(1.9))
    with emulated(options["arch"]) as session:
        first = torch._scaled_mm(ta, tb, sa, sb, out_dtype=torch.float32, use_fast_accum=fast)
        second = F.scaled_mm(ta, tb, sa, TYPE.TensorWise, sb, TYPE.TensorWise, output_dtype=torch.float32, use_fast_accum=fast)
    assert_same(first, want)
    assert_same(second, want)
    notes = {line.note for line in session.report().emulated}
    assert all(("promoted every 128" in note) == (promote is not None) for note in notes)
    assert all("schedule inferred" in note for note in notes if promote)  # D in f32 was not measured


def test_fast_accumulation_matters_on_hopper_alone():
    _, _, ta, tb = pair()
    one = torch.tensor(1.0)
    for arch, differ in (("sm_90a", True), ("sm_100a", False)):
        with emulated(arch):
            fast, slow = (torch._scaled_mm(ta, tb, one, one, out_dtype=torch.float32, use_fast_accum=fast) for fast in (True, False))
        assert torch.equal(fast, slow) != differ


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rowwise(out_dtype):
    a, b, ta, tb = pair(b_type=ml_dtypes.float8_e5m2)
    sa, sb = scale(M, 1), scale(1, N, seed=8)
    want = torch.from_numpy(gemm(a, b, promote_every=128, **WGMMA) * sa * sb).to(out_dtype)
    with emulated():
        first = torch._scaled_mm(ta, tb, torch_of(sa), torch_of(sb), out_dtype=out_dtype)
        second = F.scaled_mm(ta, tb, torch_of(sa), TYPE.RowWise, torch_of(sb), TYPE.RowWise, output_dtype=out_dtype)
    assert_same(first, want)
    assert_same(second, want)


def by_rows(sa, sb, *, second=False, out_dtype=torch.bfloat16, b_type=ml_dtypes.float8_e4m3fn, bias=None):
    """A rowwise product by `_scaled_mm`, or by `F.scaled_mm`."""
    _, _, ta, tb = pair(b_type=b_type)
    if second:
        return F.scaled_mm(ta, tb, sa, TYPE.RowWise, sb, TYPE.RowWise, bias=bias, output_dtype=out_dtype)
    return torch._scaled_mm(ta, tb, sa, sb, bias=bias, out_dtype=out_dtype)


def every_second(scales):
    """The same scales with gaps between them."""
    gapped = torch.zeros(2 * scales.numel())[::2].reshape(scales.shape)
    return gapped.copy_(scales)


@pytest.mark.parametrize("second", [False, True])
def test_rowwise_scales_are_a_column_and_a_row_without_gaps(second):
    """What ScaledBlas.cpp takes: scale_a (M, 1), scale_b (1, N), or (N, 1) where the recipe is named and cuBLASLt multiplies."""
    sa, sb = torch_of(scale(M, 1)), torch_of(scale(1, N, seed=8))
    refused = "must have shape .* contiguous" if second else "fit no recipe"
    with emulated():
        want = by_rows(sa, sb, second=second)
        for a, b in (
            (sa.t(), sb),
            (sa[:, 0], sb),
            (sa, sb[0]),
            (sa, sb.t()),
            (every_second(sa), sb),
            (sa, every_second(sb)),
            (sa[:-1], sb),
        ):
            with pytest.raises(OperandError, match=refused):
                by_rows(a, b, second=second)
        if second:
            assert_same(by_rows(sa, sb.reshape(N, 1), second=True), want)
    with emulated("sm_100a"), pytest.raises(OperandError, match=refused):
        by_rows(sa, sb.reshape(N, 1), second=second)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("arch", ["sm_89", "sm_100a", "sm_120a"])
def test_rowwise_results_are_of_the_types_that_pytorchs_kernel_has(arch, second, monkeypatch):
    sa, sb, bias = torch_of(scale(M, 1)), torch_of(scale(1, N, seed=8)), torch.zeros(N, dtype=torch.float16)
    for version, taken in (
        ((2, 9), [torch.bfloat16]),
        ((2, 13), [torch.bfloat16]),
        ((2, 14), [torch.bfloat16, torch.float16, torch.float32]),
    ):
        monkeypatch.setattr(scaled, "VERSION", version)
        for out_dtype in (torch.bfloat16, torch.float16, torch.float32, E4M3, E5M2):
            with emulated(arch):
                if out_dtype in taken:
                    assert by_rows(sa, sb, second=second, out_dtype=out_dtype).dtype == out_dtype
                    continue
                error = EmulationError if (version, out_dtype) == ((2, 13), torch.float16) else OperandTypeError
                with pytest.raises(error, match="writes bfloat16 bits on CUDA" if error is EmulationError else "out_dtype of a rowwise"):
                    by_rows(sa, sb, second=second, out_dtype=out_dtype)
    monkeypatch.setattr(scaled, "VERSION", (2, 13))
    with emulated(arch):
        assert by_rows(sa, sb, second=second, out_dtype=torch.float16, bias=bias).dtype == torch.float16
        with pytest.raises(OperandTypeError, match=r"B of a rowwise product on .* must be torch\.float8_e4m3fn"):
            by_rows(sa, sb, second=second, b_type=ml_dtypes.float8_e5m2)


def test_bias_is_added_in_f32():
    a, b, ta, tb = pair()
    sa, sb, bias = scale(M, 1), scale(1, N, seed=8), torch.from_numpy(scale(N, seed=9)).bfloat16()
    product = torch.from_numpy(gemm(a, b, **TCGEN05) * sa * sb)
    with emulated("sm_100a"):
        got = torch._scaled_mm(ta, tb, torch_of(sa), torch_of(sb), bias=bias, out_dtype=torch.bfloat16)
    assert_same(got, (product + bias.float()).bfloat16())
    assert not torch.equal(got, product.bfloat16() + bias)


@pytest.mark.parametrize("out_dtype, form", [(E4M3, ml_dtypes.float8_e4m3fn), (E5M2, ml_dtypes.float8_e5m2)])
def test_fp8_results_are_scaled_and_saturate(monkeypatch, out_dtype, form):
    monkeypatch.setattr(scaled, "VERSION", (2, 14))  # the CUDA backend of 2.10 to 2.13 leaves scale_result out
    a, b, ta, tb = pair()
    one, result_scale = torch.tensor(1.0), torch.tensor(0.5)
    with emulated("sm_100a"):
        got = torch._scaled_mm(ta, tb, one, one, scale_result=result_scale, out_dtype=out_dtype)
    largest = float(ml_dtypes.finfo(form).max)
    exact = gemm(a, b, **TCGEN05) * np.float32(0.5)
    assert_same(got, torch_of(np.clip(exact, -largest, largest).astype(form)))
    if out_dtype == E4M3:
        assert (np.abs(exact) > largest).any()


@pytest.mark.parametrize("kind_a, kind_b", [("1x128", "1x128"), ("1x128", "128x128"), ("128x128", "1x128")])
def test_deepseeks_blocks(kind_a, kind_b):
    m, n, k = 136, 144, 320
    a, b = fp8(m, k), fp8(n, k, seed=1)
    blocks, padded = 3, 4
    rows = {"1x128": 1, "128x128": 128}
    sa, sb = scale(-(-m // rows[kind_a]), blocks), scale(-(-n // rows[kind_b]), blocks, seed=8)
    full_a, full_b = np.repeat(sa, rows[kind_a], 0)[:m], np.repeat(sb, rows[kind_b], 0)[:n]
    total = np.zeros((m, n), np.float32)
    for block in range(blocks):
        panel = slice(128 * block, 128 * block + 128)
        part = gemm(a[:, panel], b[:, panel].T, **WGMMA)
        total = fma(part, full_a[:, block, None] * full_b[None, :, block], total)

    def first_form(scales, kind):  # the outer dimension or K in neighbouring places
        return torch_of(scales.T).t() if kind == "1x128" else torch_of(scales)

    def second_form(scales, kind):  # F.scaled_mm wants 128x128 scales K first, K padded to a multiple of four
        if kind == "1x128":
            return torch_of(scales.T).t()
        return torch_of(np.pad(scales, ((0, 0), (0, padded - blocks)))).t()

    ta, tb = torch_of(a), torch_of(b).t()
    types = {"1x128": TYPE.BlockWise1x128, "128x128": TYPE.BlockWise128x128}
    with emulated() as session:
        first = torch._scaled_mm(ta, tb, first_form(sa, kind_a), first_form(sb, kind_b).t(), out_dtype=torch.float32)
        second = F.scaled_mm(
            ta, tb, second_form(sa, kind_a), types[kind_a], second_form(sb, kind_b), types[kind_b], output_dtype=torch.float32
        )
    assert_same(first, total)
    assert_same(second, total)
    assert [(line.m, line.n, line.k, line.count) for line in session.report().emulated] == [(m, n, k, 1)] * 2
    with emulated("sm_100a"), pytest.raises(EmulationError, match=r"DeepSeek style .* is for compute capability 9\.x"):
        torch._scaled_mm(ta, tb, first_form(sa, kind_a), first_form(sb, kind_b).t(), out_dtype=torch.float32)
    inner = {"1x128": torch_of, "128x128": lambda scales: torch_of(scales.T).t()}
    with emulated(), pytest.raises(OperandError, match="fit no recipe"):
        torch._scaled_mm(ta, tb, inner[kind_a](sa), first_form(sb, kind_b).t(), out_dtype=torch.float32)
    with emulated(), pytest.raises(OperandError, match=r"scale_b must have strides \(1, "):
        torch_scale = second_form(sb, kind_b).contiguous()
        F.scaled_mm(ta, tb, second_form(sa, kind_a), types[kind_a], torch_scale, types[kind_b], output_dtype=torch.float32)
    with emulated(), pytest.raises(OperandTypeError, match=r"B of .*128 must be torch\.float8_e4m3fn, got torch\.float8_e5m2"):
        F.scaled_mm(ta, tb.view(torch.uint8).view(E5M2), second_form(sa, kind_a), types[kind_a], second_form(sb, kind_b), types[kind_b])


# Block scales


def swizzled(scales):
    return torch_of(layouts.swizzle_scales(scales))


def packed(elements, axis):
    bytes_ = torch.from_numpy(layouts.pack_fp4(np.moveaxis(elements, axis, -1))).view(torch.float4_e2m1fn_x2)
    return bytes_ if axis == 1 else bytes_.t()


@pytest.mark.parametrize("arch", ["sm_100a", "sm_120a"])
@pytest.mark.parametrize("form", ["e4m3", "e5m2"])
def test_mxfp8(arch, form):
    a, b = quantize_mx(values(M, K), axis=1), quantize_mx(values(K, N, seed=1), format=form, axis=0)
    instruction = {"sm_100a": "tcgen05.mma.kind::mxf8f6f4.block_scale", "sm_120a": "mma.sync.kind::mxf8f6f4.block_scale"}[arch]
    want = gemm(a.elements, b.elements, instruction=instruction, arch=arch, scale_a=a.scales, scale_b=b.scales)
    ta, tb, sa, sb = torch_of(a.elements), torch_of(b.elements.T).t(), swizzled(a.scales), swizzled(b.scales.T)
    mx, swizzle = TYPE.BlockWise1x32, SWIZZLE.SWIZZLE_32_4_4
    with emulated(arch) as session:
        first = torch._scaled_mm(ta, tb, sa, sb, out_dtype=torch.float32)
        if form == "e4m3":
            assert_same(F.scaled_mm(ta, tb, sa, mx, sb, mx, swizzle, swizzle, output_dtype=torch.float32), want)
        else:
            with pytest.raises(OperandTypeError, match=r"B of MXFP8 must be torch\.float8_e4m3fn, got torch\.float8_e5m2"):
                F.scaled_mm(ta, tb, sa, mx, sb, mx, swizzle, swizzle, output_dtype=torch.float32)
    assert_same(first, want)
    assert session.report().emulated[0].instruction.scale_type.name == "ue8m0"


def test_mxfp4():
    a, b = quantize_mx(values(M, K), format="e2m1", axis=1), quantize_mx(values(K, N, seed=1), format="e2m1", axis=0)
    want = gemm(
        a.elements, b.elements, instruction="tcgen05.mma.kind::mxf4.block_scale", arch="sm_100a", scale_a=a.scales, scale_b=b.scales
    )
    arguments = (
        packed(a.elements, 1),
        packed(b.elements, 0),
        swizzled(a.scales),
        TYPE.BlockWise1x32,
        swizzled(b.scales.T),
        TYPE.BlockWise1x32,
    )
    swizzles = SWIZZLE.SWIZZLE_32_4_4, SWIZZLE.SWIZZLE_32_4_4
    with emulated("sm_100a") as session:
        got = F.scaled_mm(*arguments, *swizzles)
    assert_same(got, torch.from_numpy(want).bfloat16())
    assert session.report().emulated[0].k == K
    with emulated("sm_120a"), pytest.raises(EmulationError, match=r"MXFP4 scaling is for compute capability 10\.x"):
        F.scaled_mm(*arguments, *swizzles)
    with emulated("sm_100a"), pytest.raises(EmulationError, match="leaves the bias out"):
        F.scaled_mm(*arguments, *swizzles, bias=torch.zeros(N, dtype=torch.bfloat16))


@pytest.mark.parametrize("arch", ["sm_100a", "sm_120a"])
def test_nvfp4_with_and_without_global_scales(arch):
    a, b = quantize_nvfp4(values(M, K), axis=1), quantize_nvfp4(values(K, N, seed=1), axis=0)
    row = {"sm_100a": "tcgen05.mma.kind::mxf4nvf4.block_scale.block16", "sm_120a": "mma.sync.kind::mxf4nvf4.block_scale.scale_vec::4X"}[
        arch
    ]
    product = gemm(a.elements, b.elements, instruction=row, arch=arch, scale_a=a.scales, scale_b=b.scales)
    ta, tb, sa, sb = packed(a.elements, 1), packed(b.elements, 0), swizzled(a.scales), swizzled(b.scales.T)
    block, whole, swizzle = TYPE.BlockWise1x16, TYPE.TensorWise, [SWIZZLE.SWIZZLE_32_4_4, SWIZZLE.NO_SWIZZLE]
    globals_ = [torch.tensor([float(q.tensor_scale)]) for q in (a, b)]
    bias = torch.from_numpy(scale(N, seed=9)).bfloat16()
    with emulated(arch) as session:
        single = F.scaled_mm(ta, tb, sa, block, sb, block, swizzle[0], swizzle[0], output_dtype=torch.float32)
        legacy = torch._scaled_mm(ta, tb, sa, sb, out_dtype=torch.float32)
        double = F.scaled_mm(
            ta, tb, [sa, globals_[0]], [block, whole], [sb, globals_[1]], [block, whole], swizzle, swizzle, bias=bias
        )  # fmt: skip
    assert_same(single, product)
    assert_same(legacy, product)
    assert_same(double, (torch.from_numpy(product * np.float32(a.tensor_scale * b.tensor_scale)) + bias.float()).bfloat16())
    assert session.report().emulated[0].instruction.scale_type.name == "ue4m3"


# Refusals


@pytest.mark.parametrize("arch", ["sm_75", "sm_80"])
def test_gpus_before_ada_have_no_fp8(arch):
    _, _, ta, tb = pair()
    with emulated(arch), pytest.raises(EmulationError, match=r"_scaled_mm at test_torch_scaled.py:\d+.*compute capability 8\.9"):
        torch._scaled_mm(ta, tb, torch.tensor(1.0), torch.tensor(1.0), out_dtype=torch.float32)


def test_hopper_has_no_block_scales():
    a = quantize_mx(values(M, K), axis=1)
    ta, sa = torch_of(a.elements), swizzled(a.scales)
    with emulated(), pytest.raises(EmulationError, match="MXFP8"):
        torch._scaled_mm(ta, torch_of(fp8(N, K)).t(), sa, sa, out_dtype=torch.float32)


def test_wrong_use_is_refused():
    _, _, ta, tb = pair()
    one, rows = torch.tensor(1.0), torch.ones(M, 1)
    mx, nv, swizzle = TYPE.BlockWise1x32, TYPE.BlockWise1x16, SWIZZLE.SWIZZLE_32_4_4
    e8m0 = torch.full((128 * 12,), 127, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    half, bf16, f32 = rows.half(), {"out_dtype": torch.bfloat16}, {"out_dtype": torch.float32}
    wrong = [
        (OperandError, "fit no recipe", lambda: torch._scaled_mm(ta, tb, rows, one, out_dtype=torch.float32)),
        (OperandError, "cannot be multiplied", lambda: torch._scaled_mm(ta, ta, one, one)),
        (OperandError, "multiples of 16", lambda: torch._scaled_mm(ta[:, :40], tb[:40], one, one)),
        (OperandTypeError, "no bias where out_dtype is torch.float32", lambda: torch._scaled_mm(ta, tb, one, one, bias=rows, **f32)),
        (OperandTypeError, "bias must be torch.bfloat16", lambda: torch._scaled_mm(ta, tb, one, one, bias=half, **bf16)),
        (OperandError, "bias must have 32 elements", lambda: torch._scaled_mm(ta, tb, one, one, bias=rows.bfloat16(), **bf16)),
        (OperandTypeError, "scale_a must be torch.float32", lambda: F.scaled_mm(ta, tb, one.half(), TYPE.TensorWise, one, TYPE.TensorWise)),
        (OperandError, "no recipe has scaling types", lambda: F.scaled_mm(ta, tb, one, TYPE.TensorWise, rows, TYPE.RowWise)),
        (OperandError, "must be SWIZZLE_32_4_4", lambda: F.scaled_mm(ta, tb, e8m0, mx, e8m0, mx)),
        (OperandError, "1536 elements", lambda: F.scaled_mm(ta, tb, e8m0[:512], mx, e8m0, mx, swizzle, swizzle)),
        (OperandTypeError, "NVFP4 must be torch.float4_e2m1fn_x2", lambda: F.scaled_mm(ta, tb, e8m0, nv, e8m0, nv, swizzle, swizzle)),
    ]  # fmt: skip
    for error, message, call in wrong:
        with emulated("sm_100a"), pytest.raises(error, match=message):
            call()


def test_two_e5m2_matrices_are_refused():
    _, _, ta, tb = pair(ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2)
    with emulated(), pytest.raises(EmulationError, match="float8_e5m2"):
        torch._scaled_mm(ta, tb, torch.tensor(1.0), torch.tensor(1.0), out_dtype=torch.float32)


# Groups


ENDS = torch.tensor([16, 16, 40], dtype=torch.int32)
SPANS = [(0, 16), (16, 16), (16, 40)]


def test_grouped_rows():
    x, w = torch.from_numpy(values(48, 64)).half(), torch.from_numpy(values(3, 64, 32, seed=1)).half()
    with emulated() as session:
        got = torch._grouped_mm(x, w, offs=ENDS)
    want = torch.zeros(48, 32, dtype=torch.float16)
    for group, (start, end) in enumerate(SPANS):
        if end > start:
            want[start:end] = torch.from_numpy(gemm(x[start:end].numpy(), w[group].numpy(), **WGMMA)).half()
    assert_same(got, want)
    assert [(line.m, line.n, line.k) for line in session.report().emulated] == [(16, 32, 64), (24, 32, 64)]


def test_grouped_columns_and_k_and_batches_and_gradients():
    x, w = torch.from_numpy(values(3, 16, 64)).half(), torch.from_numpy(values(64, 48, seed=1)).half()
    left, right = torch.from_numpy(values(16, 48)).half(), torch.from_numpy(values(48, 32, seed=1)).half()
    with emulated():
        columns = torch._grouped_mm(x, w, offs=ENDS)
        by_k = torch._grouped_mm(left, right, offs=ENDS)
        batch = torch._grouped_mm(x, torch.stack([w, w, w]))
    for group, (start, end) in enumerate(SPANS):
        if end > start:
            assert_same(columns[:, start:end], torch.from_numpy(gemm(x[group].numpy(), w[:, start:end].numpy(), **WGMMA)).half())
            assert_same(by_k[group], torch.from_numpy(gemm(left[:, start:end].numpy(), right[start:end].numpy(), **WGMMA)).half())
        assert_same(batch[group], torch.from_numpy(gemm(x[group].numpy(), w.numpy(), **WGMMA)).half())
    assert not by_k[1].any()
    rows, experts = left.bfloat16().t().contiguous().requires_grad_(), torch.randn(3, 16, 32, dtype=torch.bfloat16).requires_grad_()
    with emulated() as session:
        torch._grouped_mm(rows, experts, offs=ENDS).sum().backward()
    assert any("in backward" in line.site for line in session.report().emulated)


@pytest.mark.parametrize("fast", [False, True])
def test_scaled_grouped_rowwise(fast):
    a, b = fp8(48, K), np.stack([fp8(32, K, seed=seed) for seed in (1, 2, 3)])
    sa, sb = scale(48), scale(3, 32, seed=8)
    tb = torch_of(b).transpose(1, 2)
    with emulated():
        first = torch._scaled_grouped_mm(torch_of(a), tb, torch_of(sa), torch_of(sb), offs=ENDS, use_fast_accum=fast)
        second = F.scaled_grouped_mm(
            torch_of(a), tb, torch_of(sa), TYPE.RowWise, torch_of(sb), TYPE.RowWise, offs=ENDS, use_fast_accum=fast
        )
    want = torch.zeros(48, 32, dtype=torch.bfloat16)
    for group, (start, end) in enumerate(SPANS):
        if end > start:
            product = gemm(a[start:end], b[group].T, promote_every=None if fast else 128, **WGMMA)
            want[start:end] = torch.from_numpy(product * sa[start:end, None] * sb[group]).bfloat16()
    assert_same(first, want)
    assert_same(second, want)
    with emulated("sm_120a"), pytest.raises(EmulationError, match=r"9\.x and 10\.x"):
        torch._scaled_grouped_mm(torch_of(a), tb, torch_of(sa), torch_of(sb), offs=ENDS)
    with emulated(), pytest.raises(OperandTypeError, match=r"rowwise groups must be torch\.float8_e4m3fn"):
        torch._scaled_grouped_mm(torch_of(a), tb.view(torch.uint8).view(E5M2), torch_of(sa), torch_of(sb), offs=ENDS)
    for bad_a, bad_b in ((torch_of(sa).repeat_interleave(2)[::2], torch_of(sb)), (torch_of(sa), torch_of(sb).t().contiguous().t())):
        with emulated(), pytest.raises(OperandError, match="must be contiguous along its last dimension"):
            torch._scaled_grouped_mm(torch_of(a), tb, bad_a, bad_b, offs=ENDS)


def test_scaled_grouped_by_k():
    ends, spans = torch.tensor([64, 320], dtype=torch.int32), [(0, 64), (64, 320)]
    a, b = fp8(M, K), fp8(N, K, seed=1)
    sa, sb = scale(2 * M), scale(2 * N, seed=8)
    with emulated():
        got = torch._scaled_grouped_mm(torch_of(a), torch_of(b).t(), torch_of(sa), torch_of(sb), offs=ends, use_fast_accum=True)
    for group, (start, end) in enumerate(spans):
        product = gemm(a[:, start:end], b[:, start:end].T, **WGMMA)
        rows, columns = sa[group * M : group * M + M, None], sb[group * N : group * N + N]
        assert_same(got[group], torch.from_numpy(product * rows * columns).bfloat16())


def test_scaled_grouped_mxfp8_rows_and_k():
    mxf8 = {"instruction": "tcgen05.mma.kind::mxf8f6f4.block_scale", "arch": "sm_100a"}
    x, w = values(48, K), values(3, 32, K, seed=1)
    rows = [quantize_mx(x[start:end]) if end > start else None for start, end in SPANS]
    experts = [quantize_mx(np.ascontiguousarray(w[group])) for group in range(3)]
    a = torch.cat([torch_of(part.elements) for part in rows if part] + [torch.zeros(8, K).to(E4M3)])
    b = torch.stack([torch_of(part.elements).view(torch.uint8) for part in experts]).view(E4M3).transpose(1, 2)
    sa = torch.cat([swizzled(part.scales).view(torch.uint8) for part in rows if part]).view(torch.float8_e8m0fnu).reshape(-1, 12)
    sb = torch.stack([swizzled(part.scales).view(torch.uint8) for part in experts]).view(torch.float8_e8m0fnu)
    with emulated("sm_100a"):
        got = torch._scaled_grouped_mm(a, b, sa, sb, offs=ENDS)
    for group, (start, end) in enumerate(SPANS):
        if end > start:
            left, right = rows[group], experts[group]
            want = gemm(left.elements, right.elements.T, scale_a=left.scales, scale_b=right.scales.T, **mxf8)
            assert_same(got[start:end], torch.from_numpy(want).bfloat16())
    ends, spans = torch.tensor([64, 320], dtype=torch.int32), [(0, 64), (64, 320)]
    lefts, rights = ([quantize_mx(np.ascontiguousarray(full[:, s:e])) for s, e in spans] for full in (x, w[0]))
    a, b = (torch.cat([torch_of(part.elements).view(torch.uint8) for part in parts], 1).view(E4M3) for parts in (lefts, rights))
    sa, sb = (
        torch.cat([swizzled(part.scales).view(torch.uint8) for part in parts]).view(torch.float8_e8m0fnu).reshape(128, -1)
        for parts in (lefts, rights)
    )
    with emulated("sm_100a"):
        got = torch._scaled_grouped_mm(a, b.t(), sa, sb, offs=ends)
    for group, (left, right) in enumerate(zip(lefts, rights, strict=True)):
        want = gemm(left.elements, right.elements.T, scale_a=left.scales, scale_b=right.scales.T, **mxf8)
        assert_same(got[group], torch.from_numpy(want).bfloat16())


def test_scaled_grouped_nvfp4():
    x, w = values(32, 64), values(2, 32, 64, seed=1)
    ends, spans = torch.tensor([16, 32], dtype=torch.int32), [(0, 16), (16, 32)]
    rows, experts = [quantize_nvfp4(x[s:e]) for s, e in spans], [quantize_nvfp4(np.ascontiguousarray(w[g])) for g in range(2)]
    a = torch.cat([packed(part.elements, 1).view(torch.uint8) for part in rows]).view(torch.float4_e2m1fn_x2)
    b = torch.stack([packed(part.elements, 1).view(torch.uint8) for part in experts]).view(torch.float4_e2m1fn_x2).transpose(1, 2)
    sa = torch.cat([swizzled(part.scales).view(torch.uint8) for part in rows]).view(E4M3).reshape(-1, 4)
    sb = torch.stack([swizzled(part.scales).view(torch.uint8) for part in experts]).view(E4M3)
    ga, gb = (torch.tensor([float(part.tensor_scale) for part in parts]) for parts in (rows, experts))
    types, swizzles = [TYPE.BlockWise1x16, TYPE.TensorWise], [SWIZZLE.SWIZZLE_32_4_4, SWIZZLE.NO_SWIZZLE]
    with emulated("sm_100a"):
        got = F.scaled_grouped_mm(a, b, [sa, ga], types, [sb, gb], types, swizzles, swizzles, offs=ends)
    for group, (start, end) in enumerate(spans):
        left, right = rows[group], experts[group]
        want = gemm(
            left.elements, right.elements.T, scale_a=left.scales, scale_b=right.scales.T,
            instruction="tcgen05.mma.kind::mxf4nvf4.block_scale.block16", arch="sm_100a",
        )  # fmt: skip
        assert_same(got[start:end], torch.from_numpy(want * np.float32(left.tensor_scale * right.tensor_scale)).bfloat16())


def test_wrong_groups_are_refused():
    x, w = torch.zeros(48, 64, dtype=torch.float16), torch.zeros(3, 64, 32, dtype=torch.float16)
    for message, offs in (("offs is needed", None), ("must rise", ENDS.flip(0)), ("ends in offs", ENDS[:2]), ("torch.int32", ENDS.long())):
        with emulated(), pytest.raises(OperandError, match=message):
            torch._grouped_mm(x, w, offs=offs)
