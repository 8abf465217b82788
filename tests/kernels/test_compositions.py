"""Every product of kernels/triton under emulation, bit for bit against its composition: the rows of `mmabits diff`, and harder ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from kernel_calls import UNIT, composed, emulated  # noqa: E402

from mmabits.conformance.diff import kernel_cases  # noqa: E402
from mmabits.conformance.diff.kernel_cases import BLACKWELL, KERNEL_CASES, Drawn, KernelCase, MakeDots  # noqa: E402
from mmabits.emulator.layouts import swizzle_scales  # noqa: E402
from mmabits.isa import EmulationError, UnsupportedInstruction  # noqa: E402
from mmabits.kernels.schemes import attention, fp8, fp8_blockwise, gptq, mxfp6_mxfp4, mxfp8, nvfp4, w4a16  # noqa: E402
from mmabits.kernels.schemes.dots import Dots  # noqa: E402
from mmabits.kernels.schemes.packing_awq_gptq import GptqTensors  # noqa: E402

M, N, K = kernel_cases.M, kernel_cases.N, kernel_cases.K
VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
ARCHES = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a")


def wide(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A and B of many magnitudes."""
    rng = np.random.default_rng(seed)
    return kernel_cases._wide(rng, M, K), kernel_cases._wide(rng, K, N)


def hard(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The same, with blocks of A that are zero, tiny, and no number."""
    a, b = wide(seed)
    a[1, :32], a[2, 32:64], a[3, 70] = 0, a[2, 32:64] * np.float32(2.0**-122), np.nan
    return a, b


# Rows beside those of `mmabits diff` -------------------------------------------------------------------------------------


def mx8(a_format: str, b_format: str, values: Callable[[int], tuple[np.ndarray, np.ndarray]], seed: int) -> Drawn:
    a, b = values(seed)
    x, w = mxfp8.quantize_rows(a, format=a_format), mxfp8.quantize_columns(b, format=b_format)
    return Drawn(
        inputs={"a": x.elements, "a_scales": x.block_scales, "b": w.elements.T, "b_scales": w.block_scales.T},
        composition=lambda arch, dots: {"out": mxfp8.mxfp8_matmul(x, w, arch=dots(k_order=kernel_cases._order(arch, 4)))},
    )


def mx6_hard(seed: int) -> Drawn:
    a, b = hard(seed)
    x, w = mxfp6_mxfp4.quantize_rows(a, format="e2m3"), mxfp6_mxfp4.quantize_columns(b, format="e3m2")

    def composition(arch: str, dots: MakeDots) -> dict[str, np.ndarray]:
        through = "e4m3" if arch in BLACKWELL else "bf16"
        return {"out": mxfp6_mxfp4.mx_matmul(x, w, arch=dots(k_order=kernel_cases._order(arch, 4)), through=through)}

    packed = mxfp6_mxfp4.pack_fp6(x.elements, "e2m3"), mxfp6_mxfp4.pack_fp6(w.elements.T, "e3m2")
    return Drawn(inputs={"a": packed[0], "a_scales": x.block_scales, "b": packed[1], "b_scales": w.block_scales.T}, composition=composition)


def mx4_hard(seed: int) -> Drawn:
    a, b = hard(seed)
    x, w = mxfp6_mxfp4.quantize_rows(a), mxfp6_mxfp4.quantize_columns(b)
    return Drawn(
        inputs={"a": x.elements, "a_scales": x.block_scales, "b": w.elements.T, "b_scales": w.block_scales.T},
        composition=lambda arch, dots: {"out": mxfp6_mxfp4.mx_matmul(x, w, arch=dots(k_order=kernel_cases._order(arch, 8)))},
    )


def nv4_swizzled(seed: int) -> Drawn:
    a, b = wide(seed)
    x, w = nvfp4.quantize_rows(a), nvfp4.quantize_columns(b)
    scales = [np.asarray(swizzle_scales(np.ascontiguousarray(each))) for each in (x.block_scales, w.block_scales.T)]
    wholes = [np.full(1, each.tensor_scale) for each in (x, w)]
    return Drawn(
        inputs={
            "a": x.elements,
            "a_scales": scales[0],
            "a_scale": wholes[0],
            "b": w.elements.T,
            "b_scales": scales[1],
            "b_scale": wholes[1],
        },
        composition=lambda arch, dots: {"out": nvfp4.nvfp4_matmul(x, w, arch=dots(k_order=kernel_cases._order(arch, 8)))},
    )


def gptq_minus_one(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((M, 256), (256, N)))
    weights = gptq.gptq_quantize(w, gptq.hessian(x), group=64, act_order=True, symmetric=True)
    packed, half = GptqTensors.pack(weights, zeros_minus_one=True), x.astype(ml_dtypes.bfloat16)
    return Drawn(
        inputs={"x": half, "qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales, "g_idx": packed.g_idx},
        composition=lambda arch, dots: {"out": w4a16.w4a16_matmul(half, weights, arch=dots())},
    )


def sage_causal(seed: int) -> Drawn:
    queries, keys, values = kernel_cases._heads(seed)
    q, k, v = attention.quantize_queries(queries), attention.quantize_keys(keys), values.astype(np.float16)
    return Drawn(
        inputs=KERNEL_CASES["triton-sage"].draw(seed).inputs,
        composition=lambda arch, dots: {"out": attention.sage_attention(q, k, v, arch=dots(), causal=True)},
    )


def sage2_causal(seed: int) -> Drawn:
    queries, keys, values = kernel_cases._heads(seed)
    q, k, v = attention.quantize_queries(queries), attention.quantize_keys(keys), attention.quantize_values(values)

    def composition(arch: str, dots: MakeDots) -> dict[str, np.ndarray]:
        through = kernel_cases._triton_casts_through_f16(arch)
        return {"out": attention.sage2_attention(q, k, v, arch=dots(), causal=True, through_f16=through)}

    return Drawn(inputs=KERNEL_CASES["triton-sage2"].draw(seed).inputs, composition=composition)


def beside(name: str, end: str, draw: Callable[[int], Drawn], **options: Any) -> KernelCase:
    """A row like another one of the same kernel."""
    like = KERNEL_CASES[f"triton-{name}"]
    return replace(like, name=f"{like.name}-{end}", draw=draw, options={**like.options, **options})


ROWS = [row for row in KERNEL_CASES.values() if row.framework == "triton" and row.outputs == ("out",)]
HARDER = [
    beside("mxfp8", "hard", lambda seed: mx8("e4m3", "e4m3", hard, seed)),
    beside("mxfp8", "mixed", lambda seed: mx8("e5m2", "e4m3", wide, seed)),
    beside("mxfp6", "hard", mx6_hard), beside("mxfp4", "hard", mx4_hard),
    beside("nvfp4", "swizzled", nv4_swizzled, swizzled=True),
    beside("w4a16-gptq-f16", "minus-one-bf16", gptq_minus_one, zeros_minus_one=True),
    beside("sage", "causal", sage_causal, causal=True), beside("sage2", "causal", sage2_causal, causal=True),
]  # fmt: skip
QUICK_ARCHES = ("sm_90a", "sm_100a")
QUICK_ON_ADA = ("triton-w4a16-gptq-f16", "triton-w4a8-channel", "triton-sage2-causal", "triton-fp8-attention", "triton-moe-mxfp4")
"""What Ada computes otherwise."""
SCHEMES = ("fp8", "mxfp8", "mxfp6", "mxfp4", "nvfp4")


def is_attention(row: KernelCase) -> bool:
    return row.kernel.startswith("triton.attention")


def comparisons() -> Iterator[Any]:
    for arch in ARCHES:
        for row in (*ROWS, *HARDER):
            if arch in row.architectures:
                quick = arch in QUICK_ARCHES or (arch == "sm_89" and row.name in QUICK_ON_ADA)
                marks = () if quick else pytest.mark.slow
                yield pytest.param(row, arch, marks=marks, id=f"{row.name}-{arch}")


def test_rows_have_names_of_their_own() -> None:
    names = {row.name for row in (*ROWS, *HARDER)}
    assert len(names) == len(ROWS) + len(HARDER) and set(QUICK_ON_ADA) < names


@pytest.mark.parametrize(("row", "arch"), list(comparisons()))
def test_kernel_is_the_composition(row: KernelCase, arch: str) -> None:
    if row.name.startswith(("triton-nvfp4", "triton-moe-nvfp4")) and VERSION < (3, 8) and arch in ("sm_80", "sm_89", "sm_90a"):
        pytest.skip("Triton before 3.8 cannot compile NVFP4 without an instruction for it")
    got, report = emulated(row, arch)
    wanted = composed(row, arch)
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    if row.name != "triton-matmul-e4m3":  # numbers beyond 448 are NaN there
        assert np.isfinite(got[4:] if row.name.endswith("hard") else got).all()
    assert np.count_nonzero(got) > 0.9 * got.size
    different = np.argwhere(got.view(np.uint32) != wanted.view(np.uint32))
    assert not len(different), f"{len(different)} differ, first at {different[0]}: {got[tuple(different[0])]} {wanted[tuple(different[0])]}"
    assert {line.operation for line in report.skipped} == ({"exp2"} if is_attention(row) else set())
    used = {line.instruction.ptx for line in report.emulated}
    scheme = row.name.split("-")[1]
    part = UNIT.get((scheme, arch), "bf16.bf16") if scheme in SCHEMES and not is_attention(row) else ""
    assert used and all(part in each for each in used), used


def test_comparisons_can_fail() -> None:
    """The data tell promotion, fusion of scaling and sum, and the order of K apart."""
    a, b = wide(1)
    x, w = fp8.quantize(a), fp8.quantize(b)
    once, often = (fp8.fp8_matmul(x, w, arch=Dots(arch="sm_90a", promote_every=every)) for every in (None, 128))
    assert not np.array_equal(once, often)
    left, right = fp8_blockwise.quantize_activations(a[:, :256].copy()), fp8_blockwise.quantize_weights(b[:256])
    fused, apart = (fp8_blockwise.fp8_blockwise_matmul(left, right, arch="sm_90a", fused=each) for each in (True, False))
    assert not np.array_equal(fused, apart)
    rows, columns = mxfp8.quantize_rows(a), mxfp8.quantize_columns(b)
    permuted = Dots(arch="sm_89", k_order=kernel_cases._order("sm_89", 4))
    assert not np.array_equal(*(mxfp8.mxfp8_matmul(rows, columns, arch=each) for each in ("sm_89", permuted)))


@pytest.mark.parametrize("name", ["fp8", "sage2", "fp8-attention"])
def test_ampere_has_no_e4m3(name: str) -> None:
    """Triton's compiler says so of the kernel, the tables of the composition."""
    row = KERNEL_CASES[f"triton-{name}"]
    with pytest.raises(EmulationError, match="fp8e4nv"):
        emulated(row, "sm_80")
    with pytest.raises(UnsupportedInstruction):
        composed(row, "sm_80")
