"""Every kernel of kernels/ has a case of `mmabits diff`, which gives the composition's bits under emulation."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mmabits.conformance.diff.frameworks import FRAMEWORKS
from mmabits.conformance.diff.kernel_cases import KERNEL_CASES, KernelCase, case_of_kernel
from mmabits.conformance.diff.kernels import Attribution, Composed, InstructionsUsed, compare_kernel, record_kernel
from mmabits.isa import OperandError
from mmabits.kernels.schemes.table import SCHEMES

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
SHARED = {
    "triton.mxfp8:quantize_mx",  # what quantize_rows, quantize_columns and those of MXFP4 call
    "triton.nvfp4:tensor_scale",  # two elementwise operations of PyTorch
    # Parts of the launchers of experts:
    *(f"triton.moe:{name}" for name in ("checked_routing", "tokens_of", "launch_rows", "added", "rows_w4a16", "rows_mxfp4")),
    *(f"triton.moe_experts:rows_{scheme}" for scheme in ("w8a8", "w8a16", "fp8_tiles", "mxfp8", "nvfp4")),
    "jax.w4a16:unpacked", "jax.w8a8:int8_sums", "jax.w8a8:scaled", "jax.w8a8:check_array",  # parts of the launchers beside them
    "jax.fused:fma",
    "triton.matmul:checked_shapes", "triton.operands:checked", "triton.operands:check_multiple", "triton.operands:float32_like",
    "triton.operands:check_indices", "triton.operands:group_size", "triton.operands:reads", "triton.operands:zeros_like",
    "cuda.w4a16:pack", "cuda.sources:source", "cuda.sources:module",
}  # fmt: skip
"""Public functions that are no launchers."""


def needs(case: KernelCase) -> None:
    for package in FRAMEWORKS[case.framework].packages:
        pytest.importorskip(package)


def public_functions() -> Iterator[str]:
    """Plain functions of kernels/triton, kernels/jax and kernels/cuda: what @triton.jit decorates is a kernel, not a launcher."""
    for framework in ("triton", "jax", "cuda"):
        for path in sorted((KERNELS / framework).glob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                is_body = isinstance(node, ast.FunctionDef) and any(argument.arg.endswith("_ref") for argument in node.args.args)
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not node.decorator_list and not is_body:
                    yield f"{framework}.{path.stem}:{node.name}"


def test_every_launcher_has_a_case() -> None:
    have = {case.kernel for case in KERNEL_CASES.values()}
    there = set(public_functions()) | {"jax.fp8:fp8_linear"}  # which jax.custom_vjp decorates
    assert there - SHARED == have
    assert {name for row in SCHEMES for name in (row.triton, row.jax) if name} <= have


@pytest.mark.parametrize("case", KERNEL_CASES.values(), ids=KERNEL_CASES)
def test_operands_are_what_the_launcher_takes(case: KernelCase) -> None:
    needs(case)
    parameters, drawn = inspect.signature(case.function).parameters, case.draw(3)
    given = {*case.arguments(drawn.inputs), *case.options, *(["arch"] if case.takes_arch else [])}
    assert given <= set(parameters)
    assert all(name in given for name, one in parameters.items() if one.default is one.empty)
    again, other = case.draw(3), case.draw(4)
    assert all(
        np.array_equal(array.view(np.uint8), again.inputs[name].view(np.uint8)) for name, array in drawn.inputs.items() if array.ndim
    )
    assert any(
        not np.array_equal(array.view(np.uint8), other.inputs[name].view(np.uint8)) for name, array in drawn.inputs.items() if array.ndim
    )


def comparisons() -> Iterator[object]:
    """On the newest data-centre GPU that is recorded most, and everywhere else in the slow part."""
    for case in KERNEL_CASES.values():
        quick = "sm_90a" if "sm_90a" in case.architectures else case.architectures[0]
        for arch in case.architectures:
            yield pytest.param(case, arch, marks=() if arch == quick else pytest.mark.slow, id=f"{case.name}-{arch}")


def casts_through_f16() -> bool:
    """Triton before 3.9 has no direct cast from f32 to e4m3 on Ada."""
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)


def is_too_old_for(case: KernelCase, arch: str) -> bool:
    """Triton before 3.8 cannot compile NVFP4 where there is no instruction for it."""
    if case.name not in ("triton-nvfp4", "triton-moe-nvfp4", "triton-moe-layer-nvfp4") or arch in ("sm_100a", "sm_120a"):
        return False
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8)


@pytest.mark.parametrize(("case", "arch"), list(comparisons()))
def test_a_stand_in_gives_the_bits_of_the_emulated_call_and_of_the_composition(case: KernelCase, arch: str) -> None:
    needs(case)
    if is_too_old_for(case, arch):
        pytest.skip("Triton before 3.8 cannot compile NVFP4 without an instruction for it")
    found = compare_kernel(record_kernel(case, stand_in=arch))
    assert found.is_equal and found.elements > 100 and not any(isinstance(one, Attribution) for one in found.details)
    composition, report = found.detail(Composed).found, found.detail(InstructionsUsed).report
    if composition is None:
        assert arch == "sm_89" and "triton-quantize" in case.name and casts_through_f16()
        return
    assert all(one.is_equal for one in composition.values()), found.verdict
    assert found.verdict == "every bit equal; emulated kernel and composition agree"
    assert bool(report.emulated) != any(part in case.name for part in ("quantize", "route", "moe-sum", "swiglu"))
    # By NumPy's exp2, as the composition and the stand-in have it.
    exponential = any(part in case.name for part in ("sage", "attention", "cached", "route", "layer", "swiglu"))
    assert {line.operation for line in report.skipped} == ({"exp2"} if exponential and "triton" in case.name else set())
    assert set(found.outputs) == set(case.outputs)


def test_cases_have_names_of_their_own_and_say_what_they_call() -> None:
    assert len({case.call + case.name for case in KERNEL_CASES.values()}) == len(KERNEL_CASES)
    assert KERNEL_CASES["triton-split-k-f16"].call == "mmabits.kernels.triton.split_k.split_k_matmul(parts=3, block=(64, 64, 32))"
    with pytest.raises(OperandError, match="unknown case 'triton-fp9'; did you mean triton-fp8"):
        case_of_kernel("triton-fp9")
    assert importlib.util.find_spec("mmabits.kernels.triton.fp8") is not None
