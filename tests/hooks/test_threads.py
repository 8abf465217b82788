"""`emulate(..., threads=True)`: threads that the program starts are inside the block."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import mmabits
from mmabits.emulator.hooks.session import NotEmulated
from mmabits.isa import OperandError

torch = pytest.importorskip("torch")


def operands(seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    wide = [rng.standard_normal(shape) * 2.0 ** rng.integers(-6, 7, shape) for shape in ((128, 512), (512, 128))]
    return tuple(torch.from_numpy(each.astype(np.float16)) for each in wide)


def counted(session: Any) -> int:
    return sum(line.count for line in session.report().emulated)


def in_thread(work: Any) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("cuda", [False, True])
def test_threads_and_pools_are_inside(cuda: bool) -> None:
    a, b = operands()
    with mmabits.emulate("sm_80", frameworks=["torch"], threads=True, cuda=cuda) as session:
        want = a @ b
        assert torch.equal(in_thread(lambda: a @ b), want)
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda _: a @ b, range(40)))
            assert all(torch.equal(each, want) for each in results)
            assert pool.submit(lambda: torch.zeros(1, device="cuda" if cuda else "cpu").is_cuda).result() == cuda
            later = pool.submit(in_thread, lambda: a @ b).result()  # a thread of a thread
        assert torch.equal(later, want)
    assert counted(session) == 43 and not session.report().skipped
    assert not torch.equal(want, a @ b)


def test_a_pool_from_before_and_after_the_block() -> None:
    a, b = operands()
    with ThreadPoolExecutor(1) as pool:
        stock = pool.submit(lambda: a @ b).result()
        with mmabits.emulate("sm_80", frameworks=["torch"], threads=True) as session:
            want = a @ b
            assert torch.equal(pool.submit(lambda: a @ b).result(), want)
        assert torch.equal(pool.submit(lambda: a @ b).result(), stock) and not torch.equal(stock, want)
    assert counted(session) == 2


def test_without_it_threads_are_named() -> None:
    a, b = operands()
    with mmabits.emulate("sm_80", frameworks=["torch"]) as session:
        in_thread(lambda: a @ b)
    (line,) = session.report().skipped
    assert "in_thread (test_threads.py:" in line.site and counted(session) == 0
    with pytest.raises(OperandError, match="threads must be True or False, got 1"):
        mmabits.emulate("sm_90a", threads=1)  # type: ignore[arg-type]


def test_backward_and_errors_in_threads() -> None:
    a, b = operands()
    weight = b.clone().requires_grad_()

    def train() -> Any:
        (a @ weight).sum().backward()
        return weight.grad

    with mmabits.emulate("sm_80", frameworks=["torch"], threads=True) as session, ThreadPoolExecutor(1) as pool:
        found = pool.submit(train).result()
        assert torch.equal(found, a.T @ torch.ones(128, 128, dtype=torch.float16))
        with pytest.raises(RuntimeError):
            pool.submit(lambda: a @ a).result()  # shapes
        assert torch.equal(pool.submit(lambda: a @ b).result(), a @ b)
    assert counted(session) == 5


def test_jax_in_threads() -> None:
    jax = pytest.importorskip("jax")
    a, b = (jax.numpy.asarray(each.numpy()) for each in operands())
    multiply = jax.jit(lambda a, b: a @ b)
    with mmabits.emulate("sm_80", frameworks=["jax"], threads=True) as session:
        want = np.asarray(multiply(a, b))
        assert np.array_equal(in_thread(lambda: np.asarray(multiply(a, b))), want)
    assert counted(session) == 2
    assert not np.array_equal(np.asarray(multiply(a, b)), want)


def test_compiled_triton_kernels_in_threads() -> None:
    pytest.importorskip("triton")
    llvmlite = pytest.importorskip("llvmlite")
    if not getattr(llvmlite, "opaque_pointers_enabled", True):
        pytest.skip("compiled kernels need llvmlite 0.45")
    from mmabits.kernels.triton.matmul import matmul

    a, b = operands()
    with mmabits.emulate("sm_80", frameworks=["triton"], threads=True):
        assert torch.equal(in_thread(lambda: matmul(a, b)), matmul(a, b))


def test_a_thread_that_outlives_the_block_is_said() -> None:
    a, b = operands()
    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with mmabits.emulate("sm_80", frameworks=["torch"], threads=True) as session:
            late = pool.submit(lambda: (ended.wait(), a @ b)[1])
        with pytest.warns(NotEmulated, match="had ended when a thread that it started still multiplied"):
            ended.set()
            assert torch.equal(late.result(), a @ b)
    assert counted(session) == 0 and len(session.report().skipped) == 1
