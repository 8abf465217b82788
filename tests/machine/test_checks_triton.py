"""Checks of Triton's kernels: none of the library's is reported, what they compute stays the same, and a race between programs is found."""

from __future__ import annotations

import json
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


def test_findings_are_in_the_report() -> None:
    x = torch.zeros(512, dtype=torch.int32)
    with emulate("sm_90a", check="races") as session:
        overlapping[(2,)](x, STEP=128)
    assert session.report().findings == () and "nothing" in str(session.report())
    for findings in ("raise", "collect"):
        with emulate("sm_90a", check="races", findings=findings) as session:
            if findings == "raise":
                with pytest.raises(KernelCheckError):
                    overlapping[(2,)](x, STEP=64)
            else:
                overlapping[(2,)](x, STEP=64)
        (found,) = session.report().findings
        assert found.check == "races" and found.times > 1 and "Found by the checks (races)" in str(session.report())
        assert json.loads(session.report().json())["findings"][0]["space"] == "global memory"
    with emulate("sm_90a") as session:
        overlapping[(2,)](x, STEP=128)
    assert not session.report().checks and "Found by the checks" not in str(session.report())


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(OperandError, match="no check is called 'rases'"):
        emulate("sm_90a", check="rases")
    with pytest.raises(OperandError, match="findings must be 'raise' or 'collect'"):
        emulate("sm_90a", check="races", findings="print")
    with pytest.raises(OperandError, match="checks and schedules are those of compiled kernels"):
        emulate("sm_90a", check="races", triton="interpreted")
    with (
        pytest.raises(OperandError, match="Triton is not among the frameworks"),
        mmabits.emulate("sm_90a", frameworks=["torch"], check="races"),
    ):
        pass


# ------------------------------------------------------------------------------------------------------------------ other orders


@triton.jit
def last_wins(x, N: tl.constexpr):
    tl.store(x + tl.arange(0, N), tl.program_id(0) + tl.arange(0, N))


@triton.jit
def multiply(a, b, c, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    i, j, k = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN), tl.arange(0, BK)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, K, BK):
        x = tl.load(a + i[:, None] * K + (start + k)[None, :])
        total = tl.dot(x, tl.load(b + j[None, :] * K + (start + k)[:, None]), total)
    tl.store(c + i[:, None] * 128 + j[None, :], total)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a"])
def test_a_product_is_the_same_by_every_order(arch: str) -> None:
    a, b, c = torch.randn(128, 256).half(), torch.randn(128, 256).half(), torch.zeros(128, 128)
    found = mmabits.compare_schedules(lambda: multiply[(2, 2)](a, b, c, 256, BM=64, BN=64, BK=64, num_stages=3), c, arch=arch)
    assert found.same and found.schedules == ("latest", "earliest", 0, 1, 2, 3), str(found)
    assert torch.allclose(c, a.float() @ b.float().T, atol=0.1)


def test_what_hangs_on_the_order_of_programs_is_shown() -> None:
    x = torch.zeros(128, dtype=torch.int32)
    found = mmabits.compare_schedules(lambda: last_wins[(4,)](x, N=128), [x], arch="sm_90a", schedules=("latest", "earliest"))
    (difference,) = found.differences
    assert (difference.schedule, difference.elements, difference.first) == ("latest", 128, (0,))
    assert (int(difference.usual), int(difference.found)) == (3, 0) and int(x[0]) == 3
    assert str(found) == "schedule 'latest': 128 elements of tensor 0, first (0,): 3 became 0"


def test_orders_that_there_are_not() -> None:
    x = torch.zeros(128, dtype=torch.int32)
    with pytest.raises(OperandError, match="schedule must be 'usual', 'latest', 'earliest', a number from 0 on or None, got 'soon'"):
        emulate("sm_90a", schedule="soon")
    with pytest.raises(OperandError, match="schedule None is the usual order"):
        mmabits.compare_schedules(lambda: None, x, arch="sm_90a", schedules=(None,))
    with pytest.raises(OperandError, match="tensor 0 must be a contiguous PyTorch tensor"):
        mmabits.compare_schedules(lambda: None, [1], arch="sm_90a")
