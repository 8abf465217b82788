"""What ptxas fuses in whole kernels and in random texts, beside what is fused here."""

from __future__ import annotations

from typing import Any

import pytest
import random_sums

import mmabits
from mmabits.conformance.diff.kernel_cases import KERNEL_CASES, KernelCase
from mmabits.emulator.machine.sass import FusionCheck, kinds_of, tool

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
    pytest.mark.skipif(tool("nvdisasm") is None or tool("ptxas") is None, reason="no ptxas and nvdisasm"),
]

FIVE = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a")
QUICK = ("triton-matmul-f16", "triton-attention-sage")
MOST_PARTED = 0.005
"""Of random texts, whose products and sums hang together as no kernel's do."""


@triton.jit
def layer_norm(x, w, y, n, eps, N: tl.constexpr):
    i = tl.arange(0, N)
    row = tl.program_id(0) * N
    v = tl.load(x + row + i)
    mean = tl.sum(v, 0) / n
    centred = v - mean
    variance = tl.sum(centred * centred, 0) / n
    tl.store(y + row + i, centred * (1 / tl.sqrt(variance + eps)) * tl.load(w + i) + mean)


def checked(arch: str, launch: Any) -> list[FusionCheck]:
    with mmabits.emulate(arch, frameworks=["triton"], triton="compiled") as session:
        launch()
    report = session.report(fusion=True)
    assert "fusion checked: " in str(report)
    found = [each.fusion for each in report.kernels]
    assert all(isinstance(each, FusionCheck) for each in found), found
    return found


@pytest.mark.parametrize("arch", FIVE)
@pytest.mark.parametrize("fuses", [True, False])
def test_a_kernel_with_sums_of_quotients(arch: str, fuses: bool) -> None:
    """The product inside a division by n is fused with the sum of eps, unless fusion is off."""
    x, w, y = torch.randn(2, 256), torch.randn(256), torch.empty(2, 256)
    (found,) = checked(arch, lambda: layer_norm[(2,)](x, w, y, 256, 1e-5, N=256, enable_fp_fusion=fuses))
    assert found.agrees and found.compared > 20, str(found)
    assert bool(found.here["fused"]) == fuses


def kernels() -> list[Any]:
    found = []
    for arch in FIVE:
        for case in KERNEL_CASES.values():
            if case.framework == "triton" and arch in case.architectures:
                marks = () if case.name in QUICK and arch in ("sm_80", "sm_100a") else pytest.mark.slow
                found.append(pytest.param(arch, case, marks=marks, id=f"{arch}-{case.name}"))
    return found


@pytest.mark.parametrize(("arch", "case"), kernels())
def test_every_kernel_of_the_package(arch: str, case: KernelCase) -> None:
    from mmabits.conformance.diff.kernels import _called

    for found in checked(arch, lambda: _called(case, case.draw(0).inputs, torch.device("cpu"))):
        assert found.agrees, str(found)


@pytest.mark.parametrize(("arch", "kind"), [
    ("sm_80", "SINGLE"), ("sm_89", "SINGLE"), ("sm_90a", "SINGLE"), ("sm_100a", "SINGLE"), ("sm_120a", "SINGLE"), ("sm_90a", "HALVES"),
    ("sm_100a", "PAIRS"), ("sm_120a", "PAIRS"),
])  # fmt: skip
@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(100, 150), marks=pytest.mark.slow)], ids=["few", "many"])
def test_random_texts(arch: str, kind: str, seeds: range) -> None:
    checks = [mmabits.check_fusion(random_sums.text(seed, arch, weights=getattr(random_sums, kind)), arch=arch) for seed in seeds]
    compared, parted = sum(each.compared for each in checks), sum(len(each.parted) for each in checks)
    wanted = MOST_PARTED * (3 if kind != "SINGLE" else 1)
    assert compared > 80 * len(seeds) and parted <= max(2, wanted * compared), "\n".join(map(str, checks))


@pytest.mark.parametrize(("code", "kinds"), [
    ("FFMA R4, R4, R131.reuse, -R134.reuse", "fused"), ("FADD.FTZ R0, R1, R2", "sum"), ("UFMUL UR9, UR9, 1.44", "product"),
    ("HFMA2.MMA R3, -RZ, RZ, 0, 2.38e-07", ""), ("HFMA2 R16, R16, R67, -RZ", "product fused"),
    ("HFMA2.MMA R13, R0, 1, 1, -R14", "sum fused"),
    ("HADD2.F32 R0, -RZ, R1.H0_H0", ""), ("HADD2 R17, R14, R14", "sum"), ("FHADD R4, R5, -R10", "sum"),
    ("IMAD.MOV.U32 R1, RZ, RZ, R2", ""),
])  # fmt: skip
def test_kinds_of_machine_instructions(code: str, kinds: str) -> None:
    assert kinds_of(code) == tuple(kinds.split())
