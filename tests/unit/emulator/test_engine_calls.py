"""How a product reaches compiled code: in which threads, with which operands."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.emulator.engine import products

E4M3 = ml_dtypes.float8_e4m3fn
M16N8K32 = "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32"


def test_a_small_call_stays_in_its_thread_and_copies_no_operand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever number of threads there is; the engine gets the addresses of the caller's own arrays, read-only ones too."""
    monkeypatch.setattr(products, "SharedWork", lambda *_, **__: pytest.fail("handed work to another thread"))
    monkeypatch.setattr(products, "threads_wanted", lambda: 4)
    addresses: list[int] = []
    found = products._address
    monkeypatch.setattr(products, "_address", lambda operand: addresses.append(found(operand)) or addresses[-1])
    a = (np.arange(16 * 32) % 7 - 3).reshape(16, 32).astype(E4M3)
    b = (np.arange(32 * 8) % 5 - 2).reshape(32, 8).astype(E4M3)
    c = np.arange(16 * 8, dtype=np.float32).reshape(16, 8)
    b.flags.writeable = False
    d = mmabits.mma(M16N8K32, a, b, c, arch="sm_89")
    assert np.array_equal(d, a.astype(np.float32) @ b.astype(np.float32) + c)
    assert addresses[:2] == [a.ctypes.data, b.ctypes.data]
    assert addresses[2] not in (0, c.ctypes.data)


def test_threads_are_those_numba_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the environment while Numba is not imported, by Numba itself once it is; else as many as processors."""
    monkeypatch.delitem(sys.modules, "numba", raising=False)
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")
    assert products.threads_wanted() == 3
    for unusable in ("", "0", "many"):
        monkeypatch.setenv("NUMBA_NUM_THREADS", unusable)
        assert products.threads_wanted() == (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    monkeypatch.setitem(sys.modules, "numba", SimpleNamespace(get_num_threads=lambda: 5))
    assert products.threads_wanted() == 5


def test_operands_without_elements_have_an_address() -> None:
    assert products._address(None) == 0
    assert isinstance(products._address(np.zeros((1, 0, 4), np.uint8)), int)
