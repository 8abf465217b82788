"""Triton kernels as Triton's compiler makes them, on the CPU: what `emulate` does with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mmabits
from mmabits.conformance.diff.kernel_cases import KERNEL_CASES, KernelCase
from mmabits.isa import EmulationError, InsufficientEvidence, OperandError
from mmabits.kernels.schemes.dots import Dots

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

QUICK = ("triton-matmul-f16", "triton-w8a8", "triton-quantize-mxfp4-rows")
COMPARED = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_120a", "sm_121a")
"""Architectures."""
QUICK_ON = {
    "sm_80": QUICK,
    "sm_100a": ("triton-matmul-tf32", "triton-nvfp4", "triton-moe-mxfp4"),
    "sm_90a": ("triton-matmul-bf16", "triton-fp8-accurate", "triton-persistent-f16"),
}
NOT_COMPOSED = ("sage", "attention", "cached", "quantize", "route", "layer", "swiglu")
"""Kernels with divisions, exponentials or sums that their compositions compute otherwise."""


def emulate(arch: str, **options: Any) -> Any:
    return mmabits.emulate(arch, frameworks=["triton"], triton="compiled", **options)


@triton.jit
def softmax(x, y, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    v = tl.load(x + i)
    e = tl.exp(v - tl.max(v, 0))
    tl.store(y + i, e / tl.sum(e, 0))


@triton.jit
def scaled(x, y, factor, n, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    inside = i < n
    tl.store(y + i, tl.load(x + i, mask=inside, other=0.0) * factor, mask=inside)


@triton.jit
def dotted(a, b, c, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(a + i[:, None] * N + i[None, :])
    y = tl.load(b + i[:, None] * N + i[None, :])
    tl.store(c + i[:, None] * N + i[None, :], tl.dot(x, y))


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a"])
def test_arithmetic_masks_and_float_arguments(arch: str) -> None:
    x, y = torch.arange(300.0), torch.full((512,), -1.0)
    with emulate(arch):
        scaled[(4,)](x, y, 0.1, 300, N=128)
    assert np.array_equal(y.numpy()[:300], np.arange(300, dtype=np.float32) * np.float32(0.1)) and (y[300:] == -1).all()


class Held:
    def __init__(self, data: Any) -> None:
        self.data = data


class Wrapped:
    """No tensor, and passed like one."""

    def __init__(self, tensor: Any) -> None:
        self.storage, self.dtype = Held(tensor), torch.float32

    def data_ptr(self) -> int:
        return 16 if self.storage.data is None else int(self.storage.data.data_ptr())


def test_arguments_that_wrap_a_tensor() -> None:
    x, y, z = torch.arange(128.0), torch.empty(128), torch.empty(128)
    with emulate("sm_86"):
        scaled[(1,)](Wrapped(x), Wrapped(y), 0.5, 128, N=128)
        scaled[(1,)](triton.reinterpret(x, tl.float32), z, 0.5, 128, N=128)
        with pytest.raises(EmulationError, match="type Wrapped points to memory of unknown extent"):
            scaled[(1,)](Wrapped(None), y, 0.5, 128, N=128)
    assert torch.equal(y, x * 0.5) and torch.equal(z, y)


def test_softmax_is_near_and_says_what_it_rests_on() -> None:
    x, y = torch.randn(8, 256), torch.empty(8, 256)
    with emulate("sm_80") as session:
        softmax[(8,)](x, y, N=256)
    assert torch.allclose(y, torch.softmax(x.double(), 1).float(), rtol=1e-5, atol=0)
    told = {line.operation for line in session.report().skipped}
    assert "ex2.approx.ftz.f32" in told or "ex2.approx.f32" in told
    assert "div.full.f32" in told


def test_contraction_is_told_and_refused_where_evidence_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Triton's own compiler fuses stands in the PTX; what is left for ptxas is by a rule of ours."""
    from mmabits.emulator.hooks.triton import compiled
    from mmabits.emulator.machine.summary import weak_points

    x, y = torch.arange(128.0), torch.zeros(128)
    for kept in ("_KERNELS", "_LAUNCHERS"):
        monkeypatch.setattr(compiled, kept, {})
    with emulate("sm_80") as session:
        scaled[(1,)](x, y, 0.25, 128, N=128)
        assert "fused multiply-adds" not in {line.operation for line in session.report().skipped}
        (kernel,) = compiled._KERNELS.values()
        kernel.fused = 1
        launcher = next(iter(session._kernels)).__self__  # type: ignore[attr-defined]
        launcher.weak = weak_points(kernel)
        scaled[(1,)](x, y, 0.25, 128, N=128)
        assert "fused multiply-adds" in {line.operation for line in session.report().skipped}
    y.zero_()
    with pytest.raises(InsufficientEvidence, match="scaled: fused multiply-adds rests on inferred"), emulate("sm_80", require="published"):
        scaled[(1,)](x, y, 0.25, 128, N=128)
    assert not y.any()


@pytest.mark.parametrize(("arch", "most"), [("sm_80", 166912), ("sm_89", 101376), ("sm_90a", 232448), ("sm_120a", 101376)])
def test_shared_memory_is_that_of_the_architecture(arch: str, most: int) -> None:
    """Triton refuses what is beyond it, as on the GPU."""
    with emulate(arch):
        assert triton.runtime.driver.active.utils.get_device_properties(0)["max_shared_mem"] == most


def test_weak_evidence_is_refused_before_the_launch() -> None:
    x, y = torch.randn(1, 256), torch.zeros(1, 256)
    with pytest.raises((EmulationError, InsufficientEvidence), match="inferred"), emulate("sm_80", require="published"):
        softmax[(1,)](x, y, N=256)
    assert not y.any()


def test_architectures_one_after_another_and_nested_have_their_own_bits() -> None:
    rng = np.random.default_rng(0)
    a, b = ((rng.standard_normal((32, 32)) * 2.0 ** rng.integers(-6, 7, (32, 32))).astype(np.float16) for _ in range(2))
    wanted = {arch: mmabits.gemm(a, b, instruction="mma.sync", arch=arch) for arch in ("sm_80", "sm_120a")}
    assert not np.array_equal(*wanted.values())
    ta, tb, c = torch.from_numpy(a), torch.from_numpy(b), torch.empty(32, 32)
    for _ in range(2):
        for arch, want in wanted.items():
            with emulate(arch) as session:
                dotted[(1,)](ta, tb, c, N=32)
            assert np.array_equal(c.numpy(), want)
            assert sum(line.count for line in session.report().emulated) == 16
    with emulate("sm_80"), emulate("sm_120a"):
        dotted[(1,)](ta, tb, c, N=32)
        assert np.array_equal(c.numpy(), wanted["sm_120a"])


def test_the_interpreter_still_runs_beside_it() -> None:
    x, y, z = torch.arange(128.0), torch.empty(128), torch.empty(128)
    with emulate("sm_80"):
        scaled[(1,)](x, y, 0.5, 128, N=128)
        with mmabits.emulate("sm_80", frameworks=["triton"], triton="interpreted"):
            scaled[(1,)](x, z, 0.5, 128, N=128)
    assert torch.equal(y, z)


def test_options_are_checked() -> None:
    with pytest.raises(OperandError, match="triton must be 'compiled', 'interpreted', 'fallback' or None, got 'fast'"):
        mmabits.emulate("sm_80", triton="fast")


def compared() -> list[object]:
    found = []
    for arch in COMPARED:
        for case in KERNEL_CASES.values():
            if case.framework == "triton" and arch in case.architectures and not any(word in case.name for word in NOT_COMPOSED):
                quick = case.name in QUICK_ON.get(arch, ())
                found.append(pytest.param(arch, case, marks=() if quick else pytest.mark.slow, id=f"{arch}-{case.name}"))
    return found


@pytest.mark.parametrize(("arch", "case"), compared())
def test_kernels_have_the_bits_of_their_compositions(arch: str, case: KernelCase) -> None:
    from mmabits.conformance.diff.kernels import _called

    drawn = case.draw(0)
    if drawn.composition is None:
        pytest.skip(f"{case.name} has no composition")
    with emulate(arch):
        found = _called(case, drawn.inputs, torch.device("cpu"))
    wanted = drawn.composition(arch, lambda **fields: Dots(arch=arch, **fields))
    for name, want in wanted.items():
        assert np.ascontiguousarray(found[name]).tobytes() == np.ascontiguousarray(want).tobytes(), name


@triton.jit
def telling(x, limit, N: tl.constexpr):
    v = tl.load(x + tl.arange(0, N))
    tl.device_print("v", v)
    tl.device_assert(v < limit, "too large")


def test_device_print_and_device_assert(capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.arange(32)
    with emulate("sm_90a"):
        telling[(2,)](x, 7, N=32, num_warps=1)
        lines = capsys.readouterr().out.splitlines()
        assert lines == [f"pid ({pid}, 0, 0) idx ({i:2}) v: {i}" for pid in range(2) for i in range(32)]
        with pytest.raises(EmulationError, match=r"a trap, the assertion `too large` failed .*thread \(7, 0, 0\)"):
            telling[(1,)](x, 7, N=32, num_warps=1, debug=True)
