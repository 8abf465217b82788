"""Where an `emulate` block holds, in each framework: tasks, generators, fixtures, blocks left in any order, threads, the end of a process.

In every test a product is computed in several places, and each must have the bits of the architecture whose block that place lies in.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import importlib.util
import inspect
import os
import subprocess
import sys
import threading
import types
import warnings

import llvmlite
import numpy as np
import pytest

import mmabits
from mmabits import gemm
from mmabits.emulator.hooks import scope
from mmabits.emulator.hooks.session import NotEmulated, current_session
from mmabits.isa import EmulationError

FRAMEWORKS = ("torch", "jax", "triton")
WAYS = (*FRAMEWORKS, "interpreted")
"""Triton's kernels are compiled, and interpreted."""
FAMILY = {"sm_80": "mma.sync", "sm_90a": "wgmma", "sm_100a": "tcgen05.mma"}
M, N, K = 64, 32, 64


def operands():
    rng = np.random.default_rng(7)
    wide = [(rng.standard_normal(shape) * 2.0 ** rng.integers(-6, 7, shape)).astype(np.float16) for shape in ((M, K), (K, N))]
    return wide[0], wide[1]


A, B = operands()
F16_SUMS = {arch: gemm(A, B, instruction=FAMILY[arch], arch=arch) for arch in FAMILY}


class Torch:
    """f16 products, rounded to f16 on the way out, then f32 for comparison."""

    def __init__(self):
        self.torch = pytest.importorskip("torch")
        self.a, self.b = self.torch.from_numpy(A), self.torch.from_numpy(B)

    def product(self):
        return (self.a @ self.b).numpy()

    def expected(self, arch):
        return F16_SUMS[arch].astype(np.float16)

    def state(self):
        """What must be the same before and after."""
        dispatch = self.torch.utils._python_dispatch
        return (
            self.torch._C._len_torch_dispatch_stack(), dispatch._is_in_torch_dispatch_mode, dispatch._is_in_non_infra_torch_dispatch_mode,
            self.torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed(), self.torch.backends.mha.get_fastpath_enabled(),
        )  # fmt: skip


class Jax:
    """f16 products kept in f32: jitted, compiled once for each kind of block."""

    def __init__(self):
        self.jax = pytest.importorskip("jax")
        if not hasattr(self.jax, "make_user_context"):
            pytest.skip("needs jax 0.10")
        self.function = self.jax.jit(functools.partial(self.jax.numpy.matmul, preferred_element_type=np.float32))
        from mmabits.emulator.hooks.jax import account, flag, rules

        rules._rules()  # imports modules of JAX's that have rules of their own
        self.account, self.flag = account, flag

    def product(self):
        return np.asarray(self.function(A, B))

    def expected(self, arch):
        return F16_SUMS[arch]

    def state(self):
        from jax._src import stages
        from jax._src.interpreters import mlir

        return (
            dict(mlir._platform_specific_lowerings["cpu"]), set(mlir._uncacheable_primitives), stages.Compiled.__call__,
            self.flag._VALUE.value, list(self.account._OPEN),
        )  # fmt: skip


class Triton:
    """f16 products kept in f32. Outside a block a launch has no GPU to go to."""

    def __init__(self):
        self.torch = pytest.importorskip("torch")
        pytest.importorskip("triton")
        from triton.runtime import driver, interpreter
        from triton.runtime.autotuner import Autotuner
        from triton.runtime.jit import JITFunction

        self.kernel, self.driver = _kernel(), driver
        self.patched = (Autotuner, JITFunction, interpreter.InterpretedFunction, interpreter.InterpreterBuilder, interpreter.TritonSemantic)
        self.builder = interpreter.interpreter_builder

    def product(self):
        c = self.torch.empty(M, N)
        try:
            self.kernel[(1,)](self.torch.from_numpy(A), self.torch.from_numpy(B), c, M, N, K)
        except RuntimeError as error:
            if isinstance(error, EmulationError):
                raise
            return np.zeros(0)
        return c.numpy()

    def expected(self, arch):
        return F16_SUMS[arch]

    def state(self):
        return [dict(vars(each)) for each in self.patched], self.builder.options, self.builder.codegen_fns, self.driver._active


@functools.cache
def _kernel():
    import triton
    import triton.language as tl

    @triton.jit
    def product(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
        i, j, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
        tl.store(c + i * N + j, tl.dot(tl.load(a + i * K + k[None, :]), tl.load(b + k[:, None] * N + j)))

    product.fn.__globals__["tl"] = tl
    return product


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """What was there before these tests is not looked through again by each `gc.collect`: after thousands of tests that takes seconds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def table(monkeypatch):
    """Triton's compiler is not asked: the table of instructions serves."""
    if importlib.util.find_spec("triton") and importlib.util.find_spec("torch"):
        from mmabits.emulator.hooks.triton.compiler import CannotAsk, Compiler

        def cannot(self, question):
            raise CannotAsk

        monkeypatch.setattr(Compiler, "ask", cannot)


class Probe:
    """Says in whose block its caller is, by the bits of a product."""

    def __init__(self, name):
        if name == "triton" and not getattr(llvmlite, "opaque_pointers_enabled", True):
            pytest.skip("compiled kernels need llvmlite 0.45")
        self.name = name
        self.framework = {"torch": Torch, "jax": Jax, "triton": Triton, "interpreted": Triton}[name]()
        known = {"plain": self.framework.product()} | {arch: self.framework.expected(arch) for arch in FAMILY}
        self.known = {arch: array.tobytes() for arch, array in known.items()}
        assert len(set(self.known.values())) == 4 - (known["sm_90a"].tobytes() == known["sm_100a"].tobytes())

    def __call__(self):
        got = self.framework.product().tobytes()
        return next((arch for arch, bits in self.known.items() if bits == got), "none of them")

    def emulate(self, arch="sm_90a"):
        if self.name == "interpreted":
            return mmabits.emulate(arch, frameworks=["triton"], triton="interpreted")
        return mmabits.emulate(arch, frameworks=[self.name])

    def counts(self, session):
        report = session.report()
        if report.kernels:  # one product by many instructions
            return {report.arch: sum(kernel.launches for kernel in report.kernels)}
        return {line.arch: line.count for line in report.emulated}


@pytest.fixture(params=WAYS)
def probe(request):
    """A framework; after the test no trace of a block is left in the process."""
    probe = Probe(request.param)
    before, threads = probe.framework.state(), (threading.Thread.start, concurrent.futures.ThreadPoolExecutor.submit)
    yield probe
    gc.collect()
    assert probe() == "plain"
    assert probe.framework.state() == before
    assert (threading.Thread.start, concurrent.futures.ThreadPoolExecutor.submit) == threads
    assert current_session() is None and scope._OPEN == []


# Tasks


def test_each_task_has_its_own_architecture(probe):
    """Three tasks take turns after each step: one on Ampere, one on Hopper, one in no block."""
    seen = {"sm_80": [], "sm_90a": [], "plain": []}
    sessions = {}

    async def serve(arch):
        with probe.emulate(arch) as sessions[arch]:
            for _ in range(3):
                await asyncio.sleep(0)
                seen[arch].append(probe())

    async def plain():
        for _ in range(5):
            await asyncio.sleep(0)
            seen["plain"].append(probe())

    async def main():
        await asyncio.gather(serve("sm_80"), plain(), serve("sm_90a"))
        seen["plain"].append(probe())

    asyncio.run(main())
    assert seen == {"sm_80": ["sm_80"] * 3, "sm_90a": ["sm_90a"] * 3, "plain": ["plain"] * 6}
    assert {arch: probe.counts(session) for arch, session in sessions.items()} == {"sm_80": {"sm_80": 3}, "sm_90a": {"sm_90a": 3}}
    assert not any(session.report().skipped for session in sessions.values())


def test_tasks_of_one_architecture_count_each_for_itself(probe):
    async def serve(products):
        with probe.emulate("sm_90a") as session:
            for _ in range(products):
                await asyncio.sleep(0)
                assert probe() == "sm_90a"
            await asyncio.sleep(0)
        return probe.counts(session)["sm_90a"]

    async def main():
        return await asyncio.gather(serve(1), serve(4), serve(2))

    assert asyncio.run(main()) == [1, 4, 2]


def test_tasks_started_inside_are_inside_until_the_block_ends(probe):
    seen = []

    async def child():
        seen.append(probe())
        await asyncio.sleep(0.01)
        seen.append(probe())

    async def main():
        with probe.emulate("sm_80"):
            await asyncio.gather(child(), child())
            late = asyncio.create_task(child())
            await asyncio.sleep(0)
            with probe.emulate("sm_90a"):
                seen.append(probe())
        await late

    asyncio.run(main())
    assert seen == ["sm_80"] * 4 + ["sm_80", "sm_90a", "plain"]


def test_a_coroutine_driven_by_hand_is_inside_only_while_it_runs(probe):
    @types.coroutine
    def pause():
        yield

    async def steps():
        with probe.emulate("sm_80"):
            seen.append(probe())
            await pause()
            seen.append(probe())

    seen = []
    coroutine = steps()
    coroutine.send(None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotEmulated)
        seen.append(probe())
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert seen == ["sm_80", "plain", "sm_80"]


def test_the_block_of_a_task_that_ended_is_nobodys_and_that_is_said():
    """A notebook's cell with `await` in it that enters a block by hand; the next cell is another task."""
    probe = Probe("torch")

    async def cell():
        entered.append(probe.emulate("sm_80"))
        entered[0].__enter__()
        await asyncio.sleep(0)
        return probe()

    entered = []
    assert asyncio.run(cell()) == "sm_80"
    with pytest.warns(NotEmulated, match=r"the emulate block entered by cell \(test_scope.py:\d+\) held for a task that has ended"):
        assert probe() == "plain"
    entered[0].__exit__(None, None, None)


# Order


def test_blocks_may_be_left_in_the_order_in_which_they_were_entered(probe):
    first, second, third = (probe.emulate(arch) for arch in ("sm_90a", "sm_80", "sm_90a"))
    sessions = [each.__enter__() for each in (first, second, third)]
    assert probe() == "sm_90a"
    first.__exit__(None, None, None)
    assert probe() == "sm_90a"
    third.__exit__(None, None, None)
    assert probe() == "sm_80"
    second.__exit__(None, None, None)
    assert probe() == "plain"
    assert [probe.counts(session) for session in sessions] == [{}, {"sm_80": 1}, {"sm_90a": 2}]


def test_a_block_may_be_entered_again_but_not_twice(probe):
    block = probe.emulate("sm_80")
    for _ in range(2):
        with block as session:
            assert probe() == "sm_80"
            with pytest.raises(EmulationError, match="this emulate block is entered already"), block:
                pass
            assert probe() == "sm_80"
        assert probe.counts(session) == {"sm_80": 2} and probe() == "plain"
    with pytest.raises(EmulationError, match="left without having been entered"):
        block.__exit__(None, None, None)


def test_an_inner_block_of_another_framework_changes_nothing(probe):
    with probe.emulate("sm_80"), mmabits.emulate("sm_90a", frameworks=()):
        assert probe() == "sm_80"


# Generators


def rows(probe, arch, count=2):
    with probe.emulate(arch):
        for _ in range(count):
            yield probe()


def test_who_iterates_over_a_generator_is_not_in_its_block(probe):
    """And is told so once, where a product is computed; the report of the generator's block has it too."""
    sessions = []

    def generator():
        with probe.emulate("sm_80") as session:
            sessions.append(session)
            for _ in range(3):
                yield probe()

    seen = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for inside in generator():
            seen.append((inside, probe()))
    assert seen == [("sm_80", "plain")] * 3
    if probe.name != "jax":  # what JAX compiled before, it runs without asking
        assert len(told) == 1 and told[0].category is NotEmulated
        assert "the emulate block entered by generator (test_scope.py" in str(told[0].message)
        assert [line.count for line in sessions[0].report().skipped] == [3]
    assert probe.counts(sessions[0]) == {"sm_80": 3}


def test_jax_tells_who_iterates_when_it_compiles():
    probe = Probe("jax")
    probe.framework.jax.clear_caches()
    generator = rows(probe, "sm_80")
    next(generator)
    with pytest.warns(NotEmulated, match="product .*: the emulate block entered by rows"):
        assert probe() == "plain"
    generator.close()


def test_who_iterates_has_its_own_block(probe):
    with probe.emulate("sm_90a") as session:
        assert [(inside, probe()) for inside in rows(probe, "sm_80")] == [("sm_80", "sm_90a")] * 2
    assert probe.counts(session) == {"sm_90a": 2}


def test_a_generator_keeps_its_block_in_the_block_of_who_resumes_it(probe):
    generator = rows(probe, "sm_80", 4)
    seen = [next(generator)]
    with probe.emulate("sm_90a"):
        seen += [probe(), next(generator), probe()]
        other = rows(probe, "sm_90a", 4)
        seen += [next(other), next(generator), probe()]
    seen += [next(other), next(generator)]
    assert list(other) == ["sm_90a"] * 2 and list(generator) == []
    assert seen == ["sm_80", "sm_90a", "sm_80", "sm_90a", "sm_90a", "sm_80", "sm_90a", "sm_90a", "sm_80"]


def test_blocks_inside_a_generator_nest(probe):
    def inner():
        with probe.emulate("sm_80"):
            return probe()

    def generator():
        with probe.emulate("sm_90a"):
            yield from (probe(), inner(), probe())
            yield from rows(probe, "sm_80", 1)
            yield probe()

    assert list(generator()) == ["sm_90a", "sm_80", "sm_90a", "sm_80", "sm_90a"]


def test_a_generator_that_is_not_exhausted_ends_its_block(probe):
    for _ in rows(probe, "sm_80", 5):
        break
    assert probe() == "plain" and scope._OPEN == []


def test_async_generators(probe):
    async def generator():
        with probe.emulate("sm_80"):
            for _ in range(2):
                await asyncio.sleep(0)
                yield probe()

    async def main():
        return [(inside, probe()) async for inside in generator()]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotEmulated)
        assert asyncio.run(main()) == [("sm_80", "plain")] * 2


# Context managers and fixtures


@contextlib.contextmanager
def device(probe, arch="sm_80"):
    with probe.emulate(arch) as session:
        yield session


class Device:
    """A context manager without a generator."""

    def __init__(self, probe):
        self.block = probe.emulate("sm_80")

    def __enter__(self):
        return self.block.__enter__()

    def __exit__(self, *error):
        return self.block.__exit__(*error)


def test_context_managers_pass_their_block_on(probe):
    with device(probe) as session:
        assert probe() == "sm_80"
    with Device(probe):
        assert probe() == "sm_80"
    with contextlib.ExitStack() as stack:
        stack.enter_context(device(probe))
        stack.enter_context(probe.emulate("sm_90a"))
        assert probe() == "sm_90a"
    assert probe.counts(session) == {"sm_80": 1}


@pytest.mark.parametrize("entered", [device, lambda probe: Device(probe), lambda probe: probe.emulate("sm_80")])
def test_a_context_manager_in_a_generator_is_the_generators(probe, entered):
    def generator():
        with contextlib.ExitStack() as stack:
            stack.enter_context(entered(probe))
            yield probe()
        with entered(probe):
            yield probe()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotEmulated)
        assert [(inside, probe()) for inside in generator()] == [("sm_80", "plain")] * 2


def test_async_context_managers_pass_their_block_on(probe):
    @contextlib.asynccontextmanager
    async def device():
        await asyncio.sleep(0)
        with probe.emulate("sm_80"):
            yield

    async def serve():
        async with device():
            await asyncio.sleep(0)
            return probe()

    async def main():
        return await asyncio.gather(serve(), other())

    async def other():
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return probe()

    assert asyncio.run(main()) == ["sm_80", "plain"]


def inner_device(probe):
    with probe.emulate("sm_80"):
        yield


@pytest.fixture
def ampere(probe):
    yield from inner_device(probe)


@pytest.fixture
def hopper(probe):
    with probe.emulate("sm_90a") as session:
        yield session


def test_a_fixture_passes_its_block_on(probe, hopper):
    assert probe() == "sm_90a" and probe.counts(hopper) == {"sm_90a": 1}

    async def main():
        await asyncio.sleep(0)
        return probe()

    assert asyncio.run(main()) == "sm_90a"


def test_a_fixture_that_delegates_passes_its_block_on(ampere, probe):
    assert probe() == "sm_80"
    with probe.emulate("sm_90a"):
        assert probe() == "sm_90a"


def test_fixtures_that_delegate_again_and_again_pass_their_block_on(probe):
    """Python rewrites `yield from` where it ran before."""

    def fixture():
        yield from inner_device(probe)

    names = {"fixture": fixture, "__name__": "_pytest.made_up"}
    exec("def set_up():\n    generator = fixture()\n    next(generator)\n    return generator", names)
    for _ in range(12):
        generator = names["set_up"]()
        assert probe() == "sm_80"
        generator.close()


def test_fixtures_of_pytest_are_left_in_reverse(ampere, hopper, probe):
    assert probe() == "sm_90a"


# Decorators


def test_decorated_functions(probe):
    @probe.emulate("sm_80")
    def function(deeper=1):
        return [*(function(deeper - 1) if deeper else []), probe()]

    @probe.emulate("sm_80")
    async def coroutine():
        await asyncio.sleep(0)
        return probe()

    @probe.emulate("sm_80")
    def generator():
        """Its own words."""
        received = yield probe()
        return received, probe()

    async def main():
        return await asyncio.gather(coroutine(), coroutine())

    assert function() == ["sm_80"] * 2
    assert inspect.iscoroutinefunction(coroutine) and asyncio.run(main()) == ["sm_80"] * 2
    assert inspect.isgeneratorfunction(generator) and generator.__doc__ == "Its own words."
    running = generator()
    assert next(running) == "sm_80"
    with pytest.raises(StopIteration) as ended, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotEmulated)
        assert probe() == "plain"
        running.send("sent")
    assert ended.value.value == ("sent", "sm_80")
    with contextlib.contextmanager(probe.emulate("sm_80")(lambda: (yield probe())))() as inside:
        assert (inside, probe()) == ("sm_80", "sm_80")


# Threads


def test_threads_are_outside_and_the_report_says_so():
    probe = Probe("torch")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        with probe.emulate("sm_80") as session:
            seen = [pool.submit(probe).result()]
            thread = threading.Thread(target=lambda: seen.append(probe()))
            thread.start()
            thread.join()
            seen.append(asyncio.run(asyncio.to_thread(probe)))
            assert probe() == "sm_80"
    assert seen == ["plain"] * 3
    lines = [line for line in session.report().skipped if "thread that entered it" in line.reason]
    name = test_threads_are_outside_and_the_report_says_so.__name__
    assert len(lines) == 3 and all(line.site.startswith(f"a thread for {name} (test_scope.py:") for line in lines)


def test_a_launch_of_triton_on_another_thread_is_refused():
    probe, errors = Probe("interpreted"), []

    def work():
        try:
            probe()
        except EmulationError as error:
            errors.append(str(error))

    with probe.emulate("sm_80"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert errors == ["product: launched from another thread than the one inside the emulate block"]


def test_a_block_may_be_left_by_another_thread(probe):
    block = probe.emulate("sm_80")
    block.__enter__()
    thread = threading.Thread(target=block.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    assert probe() == "plain"
    with probe.emulate("sm_90a"):  # which takes what the other thread could not reach off this one
        assert probe() == "sm_90a"


def test_the_block_of_a_thread_that_ended_is_left():
    probe, seen = Probe("jax"), []
    thread = threading.Thread(target=lambda: (probe.emulate("sm_80").__enter__(), seen.append(probe())))
    thread.start()
    thread.join()
    assert seen == ["sm_80"] and probe() == "plain"
    with probe.emulate("sm_90a"):
        assert probe() == "sm_90a"
    assert scope._OPEN == []


# PyTorch: the stack of modes


def test_a_mode_is_taken_off_from_under_others():
    """A block is left while a mode of the program's own, and PyTorch's fake tensors, are entered above its mode."""
    probe = Probe("torch")
    from torch._subclasses import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        entered = seen = 0

        def __enter__(self):
            self.entered += 1
            return super().__enter__()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += 1
            return func(*args, **kwargs or {})

    before = probe.framework.state()
    first, second, mode, fake = probe.emulate("sm_80"), probe.emulate("sm_90a"), Counting(), FakeTensorMode()
    first.__enter__()
    mode.__enter__()
    second.__enter__()
    switched = probe.framework.state()[3:]
    with fake:
        first.__exit__(None, None, None)
    assert probe() == "sm_90a" and mode.seen and probe.framework.state()[3:] == switched == (True, False)
    second.__exit__(None, None, None)
    seen = mode.seen
    assert probe() == "plain" and mode.seen > seen and mode.entered == 1
    assert probe.framework.torch._C._len_torch_dispatch_stack() == 1
    mode.__exit__(None, None, None)
    assert probe.framework.state() == before


def test_a_block_that_ends_while_its_mode_is_at_work_is_inert():
    probe = Probe("torch")
    torch = probe.framework.torch
    outer, inner = probe.emulate("sm_80"), probe.emulate("sm_90a")
    outer.__enter__()

    class Leaving(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            inner.__exit__(None, None, None)
            return torch.zeros(())

    inner.__enter__()
    torch.sin(torch.Tensor._make_subclass(Leaving, torch.zeros(())))
    assert probe() == "sm_80"
    outer.__exit__(None, None, None)
    assert probe() == "plain" and torch._C._len_torch_dispatch_stack() == 0


def test_threads_of_autograds_are_inside():
    """Backward passes inside backward passes, so deep that autograd goes on in threads of its own, which have no context."""
    probe = Probe("torch")
    torch = probe.framework.torch
    threads, seen = set(), []

    class Deep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, depth):
            ctx.depth = depth
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            threads.add(threading.get_ident())
            if ctx.depth:
                with torch.enable_grad():
                    Deep.apply(torch.ones((), requires_grad=True), ctx.depth - 1).backward()
            else:
                seen.append(probe())
            return gradient, None

    def run():
        threads.clear()
        Deep.apply(torch.ones((), requires_grad=True), 70).backward()
        assert len(threads) == 2
        return seen.pop()

    with probe.emulate("sm_80"):
        assert run() == "sm_80"
        with probe.emulate("sm_90a"):
            assert run() == "sm_90a"
        assert run() == "sm_80"
    assert run() == "plain"

    async def serve(arch):
        with probe.emulate(arch):
            await asyncio.sleep(0)
            with pytest.raises(EmulationError, match="several tasks are inside emulate blocks"):
                run()
            await asyncio.sleep(0)

    async def main():
        await asyncio.gather(serve("sm_80"), serve("sm_90a"))

    asyncio.run(main())


# JAX: caches


def test_a_block_inside_a_function_that_jax_compiles_is_refused():
    """What is traced inside it would be compiled after it."""
    probe = Probe("jax")
    jax = probe.framework.jax

    def function(a):
        with probe.emulate("sm_80"):
            return jax.numpy.matmul(a, B, preferred_element_type=np.float32)

    for transformed in (jax.jit(function), jax.jit(jax.vmap(lambda a: function(a[None])[0])), jax.make_jaxpr(function)):
        with pytest.raises(EmulationError, match="emulate inside a function that JAX compiles"):
            transformed(A)
    assert np.asarray(function(A)).tobytes() == probe.known["sm_80"]
    assert probe() == "plain" and scope._OPEN == []


def test_caches_of_jax_keep_programs_apart(tmp_path):
    """pmap, and compiled programs that are kept on disk."""
    probe = Probe("jax")
    jax = probe.framework.jax
    multiply = functools.partial(jax.numpy.matmul, preferred_element_type=np.float32)
    mapped = jax.pmap(multiply)

    def product():
        return np.asarray(mapped(A[None], B[None])[0]).tobytes()

    options = {"jax_compilation_cache_dir": str(tmp_path), "jax_persistent_cache_min_compile_time_secs": 0.0}
    options |= {"jax_persistent_cache_min_entry_size_bytes": -1}
    before = {name: getattr(jax.config, name) for name in options}
    from jax.experimental.compilation_cache import compilation_cache

    try:
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        for arch in ("plain", "sm_80", "sm_90a", "plain", "sm_80"):
            jax.clear_caches()
            probe.framework.function = jax.jit(multiply)
            with contextlib.nullcontext() if arch == "plain" else probe.emulate(arch):
                for _ in range(2):
                    assert product() == probe.known[arch] and probe() == arch
        assert any(tmp_path.iterdir())
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_a_program_that_still_runs_when_its_block_is_left():
    """Leaving waits for it. One that was dispatched before a block is not emulated though it multiplies inside."""
    probe = Probe("jax")
    jax = probe.framework.jax

    def slow(a, steps):
        wave = jax.lax.fori_loop(0, steps, lambda _, x: jax.numpy.sin(x), jax.numpy.float32(1))
        return jax.numpy.matmul(a + (wave > 2).astype(a.dtype), B, preferred_element_type=np.float32)

    def bits(result):
        return next(arch for arch, known in probe.known.items() if known == np.asarray(result).tobytes())

    function = jax.jit(slow)
    with probe.emulate("sm_80"):
        compiled = function.lower(A, 1).compile()
        assert bits(function(A, 1)) == "sm_80"
    assert bits(function(A, 1)) == "plain"
    a_second = 30_000_000
    outside = function(A, a_second)
    with probe.emulate("sm_80") as session:
        assert not outside.is_ready()
        inside = function(A, a_second)
        assert not inside.is_ready()
    assert inside.is_ready() and probe.counts(session) == {"sm_80": 1}
    assert (bits(outside), bits(inside)) == ("plain", "sm_80")

    with pytest.raises(ZeroDivisionError), probe.emulate("sm_80"):  # an exception waits for nothing, and spoils nothing that runs
        inside = function(A, a_second)
        raise ZeroDivisionError
    assert not inside.is_ready() and probe.framework.account._LINGERING
    assert bits(inside) == "sm_80"
    with probe.emulate("sm_90a"):
        pass
    assert not probe.framework.account._LINGERING
    with pytest.raises(Exception, match="a program compiled inside an emulate block is called after the block"):
        np.asarray(compiled(A, 1))


# The end of the process

NEVER_LEFT = {
    "by hand": "block = mmabits.emulate('sm_90a', frameworks=[NAME]); block.__enter__(); run()",
    "generator": "def rows():\n    with mmabits.emulate('sm_90a', frameworks=[NAME]):\n        yield run()\nheld = rows(); next(held)",
    "context manager": (
        "import contextlib\n@contextlib.contextmanager\ndef device():\n    with mmabits.emulate('sm_90a', frameworks=[NAME]):\n"
        "        yield run()\nheld = device(); held.__enter__()"
    ),
    "thread": (
        "import threading\nstarted, block = threading.Event(), mmabits.emulate('sm_90a', frameworks=[NAME])\n"
        "def work():\n    block.__enter__(); run(); started.set(); threading.Event().wait()\n"
        "threading.Thread(target=work, daemon=True).start(); started.wait()"
    ),
    "forked": (
        "import os\nblock = mmabits.emulate('sm_90a', frameworks=[NAME]); block.__enter__(); run()\n"
        "child = os.fork()\nif child:\n    assert os.waitpid(child, 0)[1] == 0"
    ),
}
RUN = {
    "torch": "import torch\nx = torch.ones(4, 4, dtype=torch.float16)\ndef run(): x @ x",
    "jax": "import jax.numpy as jnp\nx = jnp.ones((256, 256), jnp.float16)\ndef run():\n    global y\n    y = x @ x @ x",
    "triton": "import triton\ndef run(): pass",
}


@pytest.mark.parametrize("how", NEVER_LEFT)
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_block_that_is_never_left_lets_the_process_end(name, how):
    if name == "jax" and how == "forked":
        pytest.skip("JAX's own threads do not survive a fork")
    pytest.importorskip(name)
    program = f"import mmabits\nNAME = {name!r}\n{RUN[name]}\n{NEVER_LEFT[how]}\nprint('done', flush=True)\n"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False, env=os.environ)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split() == ["done"] * (1 + (how == "forked"))
