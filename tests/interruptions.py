"""Products interrupted at random moments, in a process of their own: what becomes of memory, and how soon control is back."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mmabits

SIDE = 1024
"""Rows and columns of every product."""
GUARDS = 6
CALM = 0.03
"""Seconds after each interruption in which nothing may be written or computed."""
KINDS = ("SIGINT", "SIGALRM", "SIGALRM of an Exception", "SIGINT twice", "SIGALRM, then SIGINT")


class TimedOut(BaseException):
    """As pytest-timeout raises."""


class TimedOutError(Exception):
    """As programs of users raise."""


Product = Callable[[], Any]


def interrupted_in_a_process(how: str, count: int, seed: int, *, timeout: float) -> dict[str, Any]:
    """`interrupted` in a new interpreter."""
    paths = [str(Path(__file__).parent), str(Path(mmabits.__file__).parents[1])]
    program = f"import sys; sys.path[:0] = {paths!r}; import interruptions; interruptions.tell({(how, count, seed)})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode != 0:
        pytest.fail(f"{how}: exit status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# ------------------------------------------------------------------------------------------------- in the other interpreter


@contextmanager
def by_gemm() -> Iterator[tuple[Product, Product]]:
    a, b = np.ones((SIDE, 1 << 16), ml_dtypes.float8_e4m3fn), np.ones((1 << 16, SIDE), ml_dtypes.float8_e4m3fn)
    yield (lambda: mmabits.gemm(a, b, instruction="tcgen05.mma", arch="sm_100a"),
           lambda: mmabits.gemm(a[:, :64], b[:64], instruction="tcgen05.mma", arch="sm_100a"))  # fmt: skip


@contextmanager
def by_integers() -> Iterator[tuple[Product, Product]]:
    a, b = np.ones((SIDE, 1 << 17), np.int8), np.ones((1 << 17, SIDE), np.int8)
    yield (lambda: mmabits.gemm(a, b, instruction="mma.sync", arch="sm_90a"),
           lambda: mmabits.gemm(a[:, :64], b[:64], instruction="mma.sync", arch="sm_90a"))  # fmt: skip


@contextmanager
def by_torch() -> Iterator[tuple[Product, Product]]:
    import torch

    a, b = torch.ones(SIDE, 1 << 14, dtype=torch.bfloat16), torch.ones(1 << 14, SIDE, dtype=torch.bfloat16)
    with mmabits.emulate("sm_90a", frameworks=["torch"]):
        yield lambda: a @ b, lambda: (a[:, :64] @ b[:64]).float()


@contextmanager
def by_jax() -> Iterator[tuple[Product, Product]]:
    import jax
    import jax.numpy as jnp

    a, b = np.ones((SIDE, 1 << 12), ml_dtypes.float8_e4m3fn), np.ones((1 << 12, SIDE), ml_dtypes.float8_e4m3fn)
    product = jax.jit(lambda a, b: jax.lax.dot(a, b, preferred_element_type=jnp.float32))
    with mmabits.emulate("sm_100a", frameworks=["jax"]):
        yield lambda: product(a, b).block_until_ready(), lambda: np.array(product(a[:, :64], b[:64]))


@contextmanager
def by_triton() -> Iterator[tuple[Product, Product]]:
    yield from tiled("interpreted", 256, 128)


@contextmanager
def by_compiled() -> Iterator[tuple[Product, Product]]:
    yield from tiled("compiled", 128, 64)


def tiled(way: str, size: int, depth: int) -> Iterator[tuple[Product, Product]]:
    """Triton's kernels, with tiles of size x size x depth."""
    import torch
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(a_ptr, b_ptr, c_ptr, K, SIDE: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        rows, columns = tl.program_id(0) * M + tl.arange(0, M), tl.program_id(1) * M + tl.arange(0, M)
        ks = tl.arange(0, BLOCK)
        total = tl.zeros((M, M), tl.float32)
        for k in range(0, K, BLOCK):
            a = tl.load(a_ptr + rows[:, None] * K + (k + ks)[None, :])
            b = tl.load(b_ptr + (k + ks)[:, None] * SIDE + columns[None, :])
            total = tl.dot(a, b, total)
        tl.store(c_ptr + rows[:, None] * SIDE + columns[None, :], total)

    a, b = torch.ones(SIDE, 1 << 12, dtype=torch.float16), torch.ones(1 << 12, SIDE, dtype=torch.float16)

    def product(k: int) -> Any:
        left, right, c = a[:, :k].contiguous(), b[:k].contiguous(), torch.zeros(SIDE, SIDE)
        kernel[SIDE // size, SIDE // size](left, right, c, k, SIDE=SIDE, M=size, BLOCK=depth)
        return c

    with mmabits.emulate("sm_90a", frameworks=["triton"], triton=way):
        yield lambda: product(1 << 12), lambda: product(128)


WAYS = {"gemm": by_gemm, "integers": by_integers, "torch": by_torch, "jax": by_jax, "triton": by_triton, "compiled": by_compiled}
GOES_ON = {"jax"}
"""Whose runtime ends what it has begun, in memory of its own."""


class Interrupter:
    """Signals that come at set moments of a call, and raise as long as it lasts."""

    def __init__(self) -> None:
        self.sent = 0.0
        """When the first one was."""
        self.burnt = 0.0
        """Processor time of this process by then."""
        self.error: type[BaseException] = KeyboardInterrupt
        self._begun = threading.Event()
        signal.signal(signal.SIGINT, self._raise)
        signal.signal(signal.SIGALRM, self._raise)

    def _raise(self, number: int, frame: Any) -> None:
        while frame is not None and frame.f_code is not Interrupter.call.__code__:
            frame = frame.f_back
        if frame is not None:
            raise KeyboardInterrupt if number == signal.SIGINT else self.error

    def call(self, product: Product) -> None:
        self._begun.set()
        product()

    def send(self, numbers: list[tuple[float, signal.Signals]]) -> None:
        self._begun.wait()
        self._begun.clear()
        for place, (moment, number) in enumerate(numbers):
            time.sleep(moment)
            if place == 0:
                self.sent, self.burnt = time.perf_counter(), time.process_time()
            os.kill(os.getpid(), number)


def interrupted(how: str, count: int, seed: int) -> dict[str, Any]:
    """Interrupt products `count` times.

    Returns:
        How many were interrupted; the longest time between signal and return; the processor time spent meanwhile, and in the
        calm after it, at most; changed bytes of arrays that have nothing to do with the products; products that are wrong afterwards.
    """
    moments = random.Random(seed)
    interrupter = Interrupter()
    found: dict[str, Any] = {"interrupted": 0, "seconds": 0.0, "burnt": 0.0, "after": 0.0, "changed": 0, "wrong": 0}
    with WAYS[how]() as (product, small):
        right = np.asarray(small()).copy()
        for _ in range(3):
            small()  # the C library learns to keep memory of this size, so that the next array of it lies where this one lay
        for trial in range(count):
            kind = KINDS[trial % len(KINDS)]
            interrupter.error = TimedOutError if kind.endswith("Exception") else TimedOut
            first, second = (signal.SIGINT if "SIGINT" in name else signal.SIGALRM for name in (kind.split(",")[0], "SIGINT"))
            signals = [(10 ** moments.uniform(-4, -0.5), first)]
            if kind in KINDS[3:]:
                signals.append((10 ** moments.uniform(-5, -2), second))
            guards = [np.zeros((SIDE, SIDE), np.float32) for _ in range(GUARDS)]
            del guards[::2]  # holes
            sender = threading.Thread(target=interrupter.send, args=(signals,))
            sender.start()
            try:
                interrupter.call(product)
            except BaseException as error:
                back, burnt = time.perf_counter(), time.process_time()
                if not is_ours(error):
                    raise
                del error
                found["interrupted"] += 1
                found["seconds"] = max(found["seconds"], back - interrupter.sent)
                found["burnt"] = max(found["burnt"], burnt - interrupter.burnt)
            guards += [np.zeros((SIDE, SIDE), np.float32) for _ in range(GUARDS)]
            for guard in guards:
                guard[:] = 0
            sender.join()
            began = time.process_time()
            time.sleep(CALM)
            if how not in GOES_ON:
                found["after"] = max(found["after"], time.process_time() - began)
            found["changed"] += sum(int(np.count_nonzero(guard.view(np.uint8))) for guard in guards)
            if trial % 10 == 9:
                found["wrong"] += np.asarray(small()).tobytes() != right.tobytes()
    return found


def tell(arguments: tuple[str, int, int]) -> None:
    """Print what `interrupted` finds."""
    print(json.dumps(interrupted(*arguments)))


def is_ours(error: BaseException | None) -> bool:
    """Whether an exception is one of the handlers', or was made of one: Triton's interpreter wraps those of a kernel."""
    while error is not None and not isinstance(error, (KeyboardInterrupt, TimedOut, TimedOutError)):
        error = error.__cause__ or error.__context__
    return error is not None
