"""PTX of other compilers that need no GPU: Numba's and CuTe DSL's, where they are installed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import mmabits
from mmabits.emulator.cuda.modules import arch_of
from mmabits.emulator.cuda.names import short_names
from mmabits.isa import UnknownArchitecture


def test_numba(tmp_path: Path) -> None:
    pytest.importorskip("numba_cuda")
    from numba import cuda, types

    def axpy(y, x, a):  # type: ignore[no-untyped-def]
        i = cuda.grid(1)
        if i < x.size:
            y[i] += a * x[i]

    array = types.float32[::1]
    try:
        ptx, _ = cuda.compile(axpy, (array, array, types.float32), cc=(9, 0), device=False, abi="numba")
    except Exception as error:  # without NVVM
        pytest.skip(f"Numba compiles nothing here: {error!s:.80}")
    kernel = mmabits.load_ptx(ptx)["axpy"]
    x, y = np.arange(100, dtype=np.float32), np.ones(100, np.float32)
    given = [(None, None, each.size, each.itemsize, each, *each.shape, *each.strides) for each in (y, x)]
    kernel(4, 32, *given[0], *given[1], 2.0)
    assert np.array_equal(y, 2 * x + 1)


def test_cute_dsl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTE_DSL_ARCH", "sm_90a")
    monkeypatch.setenv("CUTE_DSL_KEEP_PTX", "1")
    monkeypatch.setenv("CUTE_DSL_DUMP_DIR", str(tmp_path))
    cutlass = pytest.importorskip("cutlass")
    if not hasattr(cutlass, "cute"):
        pytest.skip("this cutlass is not the one of nvidia-cutlass-dsl")
    from cute_kernel import compiled_axpy

    compiled_axpy()
    (path,) = [each for each in os.listdir(tmp_path) if each.endswith(".ptx")]
    module = mmabits.load_ptx(tmp_path / path)
    x, y = np.arange(100, dtype=np.float32), np.ones(100, np.float32)
    module[next(iter(module))](4, 32, x, y, 100, 2.0)
    assert np.array_equal(y, 2 * x + 1)


def test_names_and_targets_of_other_compilers() -> None:
    assert short_names("__main__::axpy[abi:v1][abi:cw5](Array<float, 1, C>, float)") == ("__main__::axpy", "axpy")
    assert (arch_of("sm_90"), arch_of("sm_80"), arch_of("sm_100a")) == ("sm_90a", "sm_80", "sm_100a")
    with pytest.raises(UnknownArchitecture):
        arch_of("sm_35")
