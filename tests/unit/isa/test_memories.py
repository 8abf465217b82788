"""What a CTA may have."""

import llvmlite
import pytest

from mmabits.emulator.machine.kernel import Kernel
from mmabits.isa import OperandError
from mmabits.isa.memories import CTA, TENSOR_MEMORY


def test_allocations_of_tensor_memory() -> None:
    assert TENSOR_MEMORY.allocations == (32, 64, 128, 256, 512)


@pytest.mark.parametrize(("head", "options", "why"), [
    (f".reqntid {CTA.threads + 1}", {}, "1,025 threads of a CTA; there are up to 1,024"),
    (".reqntid 32", {"cluster": (CTA.cluster + 1,)}, "clusters of 17 CTAs; there are up to 16"),
    (".reqntid 32", {"shared": 163 * 1024 + 1}, "166,928 bytes of shared memory; a CTA of sm_80 has 166,912"),
])  # fmt: skip
def test_a_kernel_asks_for_more(head: str, options: dict[str, object], why: str) -> None:
    with pytest.raises(OperandError, match=why):
        Kernel(f".version 8.8\n.target sm_80\n.visible .entry k() {head} {{ ret; }}", arch="sm_80", **options)  # type: ignore[arg-type]


@pytest.mark.skipif(not getattr(llvmlite, "opaque_pointers_enabled", True), reason="compiled kernels need llvmlite 0.45")
@pytest.mark.parametrize("grid", [(1 << 31,), (1, 65536), (1, 1, 65536), (-1, -1)])
def test_a_launch_asks_for_more(grid: tuple[int, ...]) -> None:
    made = Kernel(".version 8.8\n.target sm_80\n.visible .entry k() { ret; }", arch="sm_80")
    with pytest.raises(OperandError, match=r"k: a grid of \(.*\) CTAs; there are up to \(2147483647, 65535, 65535\)"):
        made.launch(grid, [], [])
    assert made.launch((-1,), [], []) == {}
