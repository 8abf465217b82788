"""What does not fit into memory is refused before anything is made."""

from __future__ import annotations

import resource
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.emulator.engine import memory
from mmabits.isa import MmabitsError, NotEnoughMemory

MIB = 1 << 20
MEMINFO = "MemTotal:  9000 kB\nMemFree:  100 kB\nMemAvailable:  4096 kB\nSwapFree:  1024 kB\nHugePages_Total:       0\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


GROUP = "sys/fs/cgroup"
TREES: dict[str, tuple[dict[str, str], int | None]] = {
    "nothing says": ({}, None),
    "the machine": ({"proc/meminfo": MEMINFO}, 5 * MIB),
    "version 2": (
        {
            "proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/user/job\n", f"{GROUP}/user/job/memory.max": "max\n",
            f"{GROUP}/user/job/memory.current": "100\n", f"{GROUP}/user/memory.max": f"{3 * MIB}\n",
            f"{GROUP}/user/memory.current": f"{2 * MIB}\n", f"{GROUP}/user/memory.stat": f"anon 5\ninactive_file {MIB // 2}\n",
        },
        MIB + MIB // 2,
    ),
    "version 2, seen from inside": (
        {"proc/self/cgroup": "0::/\n", f"{GROUP}/memory.max": "1000\n", f"{GROUP}/memory.current": "400\n"}, 600,
    ),
    "version 2, the path of the host": (
        {"proc/self/cgroup": "0::/host/only\n", f"{GROUP}/memory.max": "1000\n", f"{GROUP}/memory.current": "400\n"}, 600,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/\n",
            f"{GROUP}/memory/docker/x/memory.limit_in_bytes": "2000\n", f"{GROUP}/memory/docker/x/memory.usage_in_bytes": "1500\n",
            f"{GROUP}/memory/docker/x/memory.stat": "total_inactive_file 250\n",
            f"{GROUP}/memory/memory.limit_in_bytes": "9223372036854771712\n", f"{GROUP}/memory/memory.usage_in_bytes": "5\n",
        },
        750,
    ),
    "more used than allowed": (
        {"proc/self/cgroup": "0::/\n", f"{GROUP}/memory.max": "1000\n", f"{GROUP}/memory.current": "4000\n"}, 0,
    ),
    "damaged": (
        {"proc/meminfo": "MemAvailable\nMemAvailable: many kB\n", "proc/self/cgroup": "0::/\n", f"{GROUP}/memory.max": "?\n"}, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "expected"), TREES.values(), ids=TREES)
def test_the_least_that_is_left_counts(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    assert memory.available(write(tmp_path, files)) == expected


def test_the_process_own_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = resource.getpagesize()
    root = write(tmp_path, {"proc/self/statm": "3 2 1 0 0 0 0\n"})
    monkeypatch.setattr(resource, "getrlimit", lambda which: (10 * page, resource.RLIM_INFINITY))
    assert memory.available(root) == 7 * page


def test_this_machine_says_something() -> None:
    found = memory.available()
    assert found is None or 0 < found < 1 << 50


FREE = 256 * MIB


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: FREE)


def zeros(*shape: int, dtype: type = ml_dtypes.float8_e4m3fn) -> np.ndarray:
    """As large as one likes, and no memory."""
    return np.broadcast_to(np.zeros(1, dtype), shape)


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize(
    ("a", "b", "options", "size"),
    [
        (zeros(20_000, 32), zeros(32, 20_000), {}, "1.5 GiB"),  # D alone
        (zeros(10**9, 32), zeros(32, 10**9), {}, "3,725,290,35"),  # not even the number of bytes fits into 64 bits
        (zeros(64, 5_000_000), zeros(5_000_000, 8), {}, "343 MiB"),  # copies of the operands
        (zeros(300, 1000, 32), zeros(32, 1000), {}, "1.1 GiB"),  # a batch
        (zeros(100, 1, 32), np.zeros((1, 32, 100_000), ml_dtypes.float8_e4m3fn), {}, "343 MiB"),  # B for each of the batch
        (zeros(9000, 16, dtype=np.float16), zeros(16, 18_000, dtype=np.float16), {"accumulator": "f16"}, "310 MiB"),  # D in f16
    ],
    ids=["D", "beyond counting", "operands", "batch", "repeated", "f16"],
)
def test_a_product_too_large_is_refused_with_its_size(a, b, options, size) -> None:
    instruction = "wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16" if options else "wgmma"
    with pytest.raises(NotEnoughMemory, match=rf"^the product of .* and .* takes {size}.* of memory, and 256 MiB can be had$") as caught:
        mmabits.gemm(a, b, instruction=instruction, arch="sm_90a")
    assert isinstance(caught.value, MmabitsError) and isinstance(caught.value, MemoryError)


@pytest.mark.usefixtures("little")
def test_a_tolerance_too_large_is_refused_with_its_size() -> None:
    with pytest.raises(NotEnoughMemory, match=r"^a tolerance for 3000 x 3000 x 32 takes 2.1 GiB of memory"):
        mmabits.tolerance(zeros(3000, 32), zeros(32, 3000), instruction="wgmma", arch="sm_90a")


def test_small_products_do_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: pytest.fail("asked"))
    a = np.ones((64, 64), np.float16)
    mmabits.gemm(a, a, instruction="wgmma", arch="sm_90a")


def test_where_nothing_says_everything_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: None)
    memory.require(1 << 60, "a product")


def test_the_bound_on_a_tolerances_arrays_holds() -> None:
    """What it counts with is no less than what numpy takes."""
    import tracemalloc

    from mmabits.research.tolerance import _ARRAYS

    a, b = np.ones((512, 32), ml_dtypes.float8_e4m3fn), np.ones((32, 512), ml_dtypes.float8_e4m3fn)
    tracemalloc.start()
    try:
        mmabits.tolerance(a, b, instruction="wgmma", arch="sm_90a")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 512 * 512 * (3 * 8 + 3 + 8 * _ARRAYS)
