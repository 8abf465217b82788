"""Whatever ends a product early: nobody writes into memory or reads it after that, and control is back at once."""

from __future__ import annotations

import ctypes
import dis
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import interruptions
import numpy as np
import pytest

import mmabits
from mmabits.emulator.engine import products, shares
from mmabits.emulator.engine.native import native_product
from mmabits.emulator.engine.record import CALLED, Call
from mmabits.emulator.engine.shares import SharedWork
from mmabits.emulator.machine.compiler import why_unusable
from mmabits.isa import lower, parse

# ------------------------------------------------------------------------------------------------------ the C functions

FUNCTIONS = {
    "fused": ("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32", "sm_89", 0x38, 1 << 17),
    "fused_side_by_side": ("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32", "sm_89", 0x38, 1 << 19),
    "grouped": ("tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n8k64.f32.e2m1.e2m1.ue4m3", "sm_100a", 2, 1 << 17),
    "grouped_side_by_side": (
        "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n8k64.f32.e2m1.e2m1.ue4m3", "sm_100a", 2, 1 << 18,
    ),
    "chain": ("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64", "sm_80", 1, 1 << 15),
    "integer": ("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", "sm_80", 1, 1 << 18),
}  # fmt: skip
"""Instructions, the code of 1, and a K with which one task takes a while."""


class OneTask:
    """A product of a single task, to be called as a program without Python would."""

    def __init__(self, kind: str) -> None:
        text, arch, one, k = FUNCTIONS[kind]
        side = kind.endswith("side_by_side")
        batch, m, n = (4, 16, 8) if side else (1, 128, 32)
        self.product = native_product(lower(parse(text), arch), side_by_side=side)
        self.record = self.product.record(batch, m, n, k)
        self.record["rows"], self.record["last"] = m, 1
        blocks = int(self.record["blocks"][0])
        self.arrays = {
            "a": np.full((batch, m, k), one, self.product.operand),
            "b": np.full((batch, k, n), one, self.product.operand),
            "d": np.full((batch, m, n), 7, self.product.accumulator),
            "scale_a": np.full((batch, m, blocks), 0x38, np.uint8),
            "scale_b": np.full((batch, blocks, n), 0x38, np.uint8),
            "stop": np.zeros(1, np.int64),
        }
        for name, array_ in self.arrays.items():
            self.record[name] = array_.ctypes.data

    def call(self) -> None:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.product.address)(self.record.ctypes.data)

    def result(self) -> bytes:
        return self.arrays["d"].tobytes()

    def reset(self) -> None:
        self.arrays["d"][:] = 7
        self.arrays["stop"][:] = 0


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_a_function_that_is_told_to_stop_stops_within_a_task(kind: str) -> None:
    """Told before, it does nothing; told meanwhile, by another thread, it leaves a task that takes long in the middle."""
    one = OneTask(kind)
    untouched = one.result()
    one.arrays["stop"][:] = 1
    one.call()
    assert one.result() == untouched and one.record["failed"][0] == 0
    one.record["stop"] = 0
    one.call()
    whole = one.result()
    assert whole != untouched
    one.record["stop"] = one.arrays["stop"].ctypes.data
    one.reset()
    one.call()
    assert one.result() == whole
    for _ in range(5):  # on a busy machine it may have ended before
        one.reset()
        running = threading.Thread(target=one.call)
        running.start()
        time.sleep(0.002)
        one.arrays["stop"][:] = 1
        running.join()
        if one.result() != whole:
            return
    pytest.fail("ran to the end of its task")


def test_a_record_stops_for_nobody_unless_told_whom() -> None:
    assert native_product(lower(parse(FUNCTIONS["fused"][0]), "sm_89")).record(1, 16, 8, 32)["stop"][0] == 0
    assert Call._fields.index("stop") < CALLED


# ----------------------------------------------------------------------------------------------------------- shared work


class Memory:
    """Stands for the arrays of a product."""


class Writes:
    """Work that notes when it is done, and whether its memory is there."""

    def __init__(self, *, seconds: float = 0.004, when_stopped: Callable[[], None] | None = None, error: type[BaseException] | None = None):
        memory = Memory()
        self.memory = weakref.ref(memory)
        self.stop = array("q", (0,))
        self.seconds, self.when_stopped, self.error = seconds, when_stopped, error
        self.inside, self.done, self.lost = 0, 0, 0
        self.work = SharedWork(self.do, [(share, share + 1) for share in range(4)], self.stop, kept=(memory,))

    def do(self, first: int, last: int) -> None:
        assert last == first + 1
        self.inside += 1
        end = time.perf_counter() + self.seconds
        try:
            while time.perf_counter() < end:
                if self.stop[0]:
                    if self.when_stopped is not None:
                        self.when_stopped()
                    return
                if self.error is not None and first == 1:
                    raise self.error("in a share")
                self.lost += self.memory() is None
                time.sleep(0.0002)
            self.done += 1
        finally:
            self.lost += self.memory() is None
            self.inside -= 1

    def check_nobody_is_at_work(self) -> None:
        done, inside = self.done, self.inside
        del self.work
        time.sleep(0.003)
        assert (inside, self.inside, self.lost) == (0, 0, 0)
        assert self.done == done
        end = time.perf_counter() + 2
        while self.memory() is not None and time.perf_counter() < end:  # a helper on a loaded machine has yet to let go of its frame
            time.sleep(0.01)
        assert self.memory() is None


LOOKS_FOR_SIGNALS = ("CALL", "PRECALL", "JUMP_BACKWARD", "POP_JUMP_BACKWARD", "RESUME")
"""Instructions after which CPython runs the handlers of signals that have come, beside the start of a function."""


def raising_at(place: int, error: BaseException, function: str = "") -> Callable[[Any, str, Any], Any]:
    """A trace function that raises at one of the places in shares.py, or one function of it, where a signal's handler may."""
    before: dict[int, str] = {}

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal place
        if frame.f_code.co_filename != shares.__file__ or function not in frame.f_code.co_name:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "call":
            before[id(frame)] = ""
        looks = event == "call" or (event == "opcode" and before[id(frame)].startswith(LOOKS_FOR_SIGNALS))
        if event == "opcode":
            before[id(frame)] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
        if looks:
            place -= 1
            if place < 0:
                raise error
        return trace

    return trace


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError, MemoryError], ids=lambda kind: kind.__name__)
def test_an_exception_at_every_place_where_a_handler_may_raise(kind: type[BaseException]) -> None:
    """From before the helpers start until after they have left: once the exception is here nobody is at work."""
    gc.collect()
    tracing = sys.gettrace()
    for place in range(1000):
        writes, error = Writes(seconds=0.002), kind("out of a handler")
        caught: BaseException | None = None
        sys.settrace(raising_at(place, error))
        try:
            writes.work.run(3)
        except kind as raised:
            caught = raised
        finally:
            sys.settrace(tracing)
        if caught is None:
            assert writes.done == 4
            break
        assert caught is error
        error.__traceback__ = None  # whose frames know the memory
        writes.check_nobody_is_at_work()
    assert 12 < place < 1000


def chain_of(error: BaseException | None) -> list[BaseException]:
    """An exception and those that it came upon; their frames, which know the memory, are let go."""
    found: list[BaseException] = []
    while error is not None:
        found.append(error)
        error.__traceback__ = None
        error = error.__context__
    return found


@pytest.fixture
def raising_in_run() -> Iterator[list[int]]:
    """Have SIGUSR1 raise where it comes while SharedWork.run is on the stack; the numbers of the exceptions so far."""
    raised: list[int] = []

    def raise_in_run(_: int, frame: Any) -> None:
        while frame is not None and frame.f_code is not SharedWork.run.__code__:
            frame = frame.f_back
        if frame is not None:
            raised.append(len(raised))
            raise KeyboardInterrupt(raised[-1])

    before = signal.signal(signal.SIGUSR1, raise_in_run)
    try:
        yield raised
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.slow  # goes by the time of a signal: on a loaded machine it comes elsewhere
def test_a_second_exception_at_every_place_of_the_wait_after_the_first(raising_in_run: list[int]) -> None:
    main, tracing = threading.get_ident(), sys.gettrace()

    def chain_at(place: int, second: ValueError) -> list[BaseException]:
        raising_in_run.clear()
        writes = Writes(seconds=5.0)
        sender = threading.Timer(0.003, signal.pthread_kill, (main, signal.SIGUSR1))
        sender.start()
        sys.settrace(raising_at(place, second, "_await"))
        try:
            with pytest.raises((KeyboardInterrupt, ValueError)) as caught:
                writes.work.run(2)
        finally:
            sys.settrace(tracing)
        sender.join()
        chain = chain_of(caught.value)
        del caught
        writes.check_nobody_is_at_work()
        return chain

    for place in range(1000):
        second = ValueError("second")
        for _ in range(5):  # on a loaded machine the first may come too late for a second one
            chain = chain_at(place, second)
            if second in chain:
                break
        else:
            break
        assert chain[0] is second and len(chain) == 2
    assert 4 < place < 1000


def test_more_exceptions_while_the_helpers_are_awaited(raising_in_run: list[int]) -> None:
    """Each helper that is told to stop sends the waiting thread two more signals before it leaves."""
    main = threading.get_ident()

    def insist() -> None:
        for _ in range(2):
            signal.pthread_kill(main, signal.SIGUSR1)
            time.sleep(0.001)

    writes = Writes(seconds=5.0, when_stopped=insist)
    first = threading.Timer(0.02, signal.pthread_kill, (main, signal.SIGUSR1))
    first.start()
    began = time.process_time()
    with pytest.raises(KeyboardInterrupt) as caught:
        writes.work.run(3)
    first.join()
    assert time.process_time() - began < 2
    assert len(raising_in_run) > 1
    assert sorted(each.args[0] for each in chain_of(caught.value)) == raising_in_run, "none is forgotten"
    del caught
    writes.check_nobody_is_at_work()


@pytest.mark.parametrize("error", [MemoryError, ValueError])
def test_a_share_that_fails_stops_the_others(error: type[Exception]) -> None:
    writes = Writes(seconds=5.0, error=error)
    began = time.process_time()
    with pytest.raises(error, match="in a share") as caught:
        writes.work.run(3)
    assert time.process_time() - began < 2
    caught.value.__traceback__ = None
    writes.check_nobody_is_at_work()
    assert writes.done == 0


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_fewer_threads_than_wanted_do_it_all(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system gives none at all, the caller itself. Threads whose stack would be larger than any memory cannot start."""
    start, size = shares.start_new_thread, threading.stack_size()
    refused = 1 << 47

    def start_the_last(*arguments: Any) -> int:
        nonlocal threads
        started = start(*arguments)
        threads -= 1
        if threads == 0:
            threading.stack_size(refused)
            monkeypatch.setattr(shares, "start_new_thread", start)
        return started

    if threads:
        monkeypatch.setattr(shares, "start_new_thread", start_the_last)
    else:
        threading.stack_size(refused)
    try:
        writes = Writes()
        writes.work.run(3)
        assert threads == 0 and threading.stack_size() == refused
    finally:
        threading.stack_size(size)
    assert writes.done == 4 and writes.memory() is None
    writes.check_nobody_is_at_work()


def test_without_threads_an_exception_still_ends_the_work() -> None:
    size = threading.stack_size(1 << 47)
    try:
        writes = Writes(error=ZeroDivisionError)
        with pytest.raises(ZeroDivisionError) as caught:
            writes.work.run(3)
    finally:
        threading.stack_size(size)
    caught.value.__traceback__ = None
    writes.check_nobody_is_at_work()
    assert writes.done == 1


# ------------------------------------------------------------------------------------------------------- whole products


def test_what_an_interrupted_product_leaves_is_left_alone() -> None:
    """The engine's own D, which a caller of gemm never sees: not a byte changes once the exception is here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it may be ignored
    main = threading.get_ident()
    lowering = lower(parse(FUNCTIONS["fused"][0]), "sm_89")
    a, b = np.ones((1, 1024, 1 << 15), np.uint8), np.ones((1, 1 << 15, 1024), np.uint8)
    d = np.zeros((1, 1024, 1024), np.float32)
    sender = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        products.run(lowering, a, b, d, None, None)
    left = d.copy()
    time.sleep(0.05)
    assert left.tobytes() == d.tobytes()
    sender.join()
    signal.signal(signal.SIGINT, before)


def in_a_process(program: str, *, seconds: float = 120) -> str:
    """What a program prints in a new interpreter that ends well."""
    path = os.pathsep.join([str(Path(mmabits.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    preamble = """
import os, signal, sys, threading, time
import ml_dtypes, numpy as np, mmabits
def ones(m, n): return np.ones((m, n), ml_dtypes.float8_e4m3fn)
def product(a, b): return mmabits.gemm(a, b, instruction="tcgen05.mma", arch="sm_100a")
"""
    done = subprocess.run(
        [sys.executable, "-c", preamble + program], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        timeout=seconds, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_interpreter_ends_while_a_daemon_thread_computes() -> None:
    """Without the product, which would take minutes, and without a word."""
    program = """
a, b = ones(2048, 1 << 15), ones(1 << 15, 2048)
product(a[:64, :64], b[:64, :64])
threading.Thread(target=product, args=(a, b), daemon=True).start()
import atexit
from mmabits.emulator.engine import shares
while not any(work.runs for work in shares.running()): time.sleep(0.01)
works = shares.running()
print(time.process_time())
def tell(): print(time.process_time(), [work.runs for work in works])
atexit.unregister(shares._end_all)
atexit.register(tell)
atexit.register(shares._end_all)
"""
    before, after = in_a_process(program).splitlines()
    seconds, runs = after.split(maxsplit=1)
    assert float(seconds) - float(before) < 2
    assert runs == "[False]"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_forked_out_of_a_handler_has_no_helpers_to_wait_for() -> None:
    """It gets an error; the one it came from gets its product."""
    program = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
children = []
def fork(*_):
    children.append(os.fork())
signal.signal(signal.SIGALRM, fork)
a, b = ones(1024, 1 << 12), ones(1 << 12, 1024)
product(a[:64, :64], b[:64, :64])
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    d = product(a, b)
except mmabits.MmabitsError as error:
    assert children == [0], children
    print(error, flush=True)
    os._exit(7)
assert len(children) == 1 and children[0] > 0, children
print((d == 1 << 12).all(), os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
"""
    assert in_a_process(program) == "the process was forked while it computed a product\nTrue 7\n"


def test_products_in_handlers_and_in_other_threads() -> None:
    """A handler that multiplies, a product of minutes that does not keep others waiting, several threads at once."""
    program = """
a, b = ones(512, 1 << 10), ones(1 << 10, 512)
large = ones(1024, 1 << 16), ones(1 << 16, 1024)
want = product(a, b).tobytes()
got = []
signal.signal(signal.SIGALRM, lambda *_: got.append(product(a, b).tobytes() == want))
signal.setitimer(signal.ITIMER_REAL, 0.02)
got.append(product(a, b).tobytes() == want)
while len(got) < 2: time.sleep(0.01)
threading.Thread(target=product, args=large, daemon=True).start()
threads = [threading.Thread(target=lambda: got.append(product(a, b).tobytes() == want)) for _ in range(3)]
for each in threads: each.start()
for each in threads: each.join()
print(got)
"""
    assert in_a_process(program) == f"{[True] * 5}\n"


def check(found: dict[str, Any], how: str, count: int) -> None:
    assert found["changed"] == 0 and found["wrong"] == 0, found
    assert found["interrupted"] > 0.7 * count, found
    if how not in interruptions.GOES_ON:  # processor time: however busy the machine is
        assert found["burnt"] < 1 and found["after"] < 0.01, found


@pytest.mark.parametrize("how", interruptions.WAYS)
def test_products_interrupted_at_random(how: str) -> None:
    skip_without(how)
    check(interruptions.interrupted_in_a_process(how, 10, seed=1, timeout=600), how, 10)


@pytest.mark.slow
@pytest.mark.parametrize("how", interruptions.WAYS)
def test_200_products_interrupted_at_random(how: str) -> None:
    skip_without(how)
    check(interruptions.interrupted_in_a_process(how, 200, seed=2, timeout=3600), how, 200)


def skip_without(how: str) -> None:
    if how in ("torch", "jax", "triton", "compiled"):
        pytest.importorskip("triton" if how == "compiled" else how)
    if how == "compiled" and why_unusable():
        pytest.skip(why_unusable())
