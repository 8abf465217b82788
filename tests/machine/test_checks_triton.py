"""Checks of Triton's kernels: none of the library's is reported, what they compute stays the same, and a race between programs is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_calls import SEED, launched

import mmabits
from mmabits.conformance.diff.kernel_cases import KERNEL_CASES
from mmabits.emulator.machine.kernel import KernelCheckError
from mmabits.isa import OperandError

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
ALL = ("memory", "init", "races", "sync")
NAMES = [name for name in KERNEL_CASES if name.startswith("triton")]
QUICK = ("triton-matmul-f16", "triton-mxfp4", "triton-fp8-attention", "triton-quantize-mxfp8-columns")


def emulate(arch: str, **options: Any) -> Any:
    return mmabits.emulate(arch, frameworks=["triton"], **options)


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a", "sm_120a"])
@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES])
def test_no_kernel_of_the_library_is_reported(name: str, arch: str) -> None:
    case = KERNEL_CASES[name]
    with emulate(arch, check=ALL):
        launched(case, case.draw(SEED))


@pytest.mark.parametrize("name", ["triton-matmul-f16", "triton-fp8-attention"])
def test_checks_change_no_bits(name: str) -> None:
    case = KERNEL_CASES[name]
    with emulate("sm_90a"):
        plain = launched(case, case.draw(SEED))
    with emulate("sm_90a", check=ALL):
        checked = launched(case, case.draw(SEED))
    assert np.array_equal(plain.view(torch.uint8).numpy(), checked.view(torch.uint8).numpy())


@triton.jit
def overlapping(x, STEP: tl.constexpr):
    i = tl.program_id(0) * STEP + tl.arange(0, 128)
    tl.store(x + i, i + tl.program_id(0))


def test_programs_that_write_the_same_elements_are_found() -> None:
    x = torch.zeros(512, dtype=torch.int32)
    with emulate("sm_90a", check="races"):
        with pytest.raises(KernelCheckError, match=r"overlapping: .*test_checks_triton.py:\d+\) in program \(1, 0, 0\)"):
            overlapping[(2,)](x, STEP=64)
        overlapping[(2,)](x, STEP=128)


def test_findings_are_collected_where_that_is_asked_for() -> None:
    x = torch.zeros(512, dtype=torch.int32)
    with emulate("sm_90a", check=("races",), findings="collect") as session:
        overlapping[(2,)](x, STEP=64)
        overlapping[(2,)](x, STEP=128)
    assert [each.check for each in session.findings] == ["races"] and "global memory" in session.findings[0].text


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(OperandError, match="no check is called 'rases'"):
        emulate("sm_90a", check="rases")
    with pytest.raises(OperandError, match="findings must be 'raise' or 'collect'"):
        emulate("sm_90a", check="races", findings="print")
    with pytest.raises(OperandError, match="checks are made of compiled kernels"):
        emulate("sm_90a", check="races", triton="interpreted")
