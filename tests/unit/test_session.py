"""emulate without any framework: the block, the account it keeps, and what it refuses."""

from __future__ import annotations

import asyncio
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.emulator.engine import machine_code, record
from mmabits.emulator.engine.native import native_product
from mmabits.emulator.hooks import scope
from mmabits.emulator.hooks import session as session_module
from mmabits.emulator.hooks.session import NotEmulated, current_session
from mmabits.isa import (
    EmulationError,
    Evidence,
    InsufficientEvidence,
    OperandError,
    UnknownArchitecture,
    UnsupportedInstruction,
    library_instruction,
    parse,
)

_FP8 = ml_dtypes.float8_e4m3fn


@pytest.fixture(autouse=True)
def nothing_stays():
    """After each test no block is open, and none holds."""
    yield
    left = list(scope._OPEN)
    for block in left:
        scope.leave(block)
    assert not left and current_session() is None


def _operands(dtype=_FP8):
    rng = np.random.default_rng(1)
    return rng.standard_normal((5, 96)).astype(dtype), rng.standard_normal((96, 7)).astype(dtype)


@pytest.mark.parametrize(
    ("arch", "types", "expected"),
    [
        ("sm_80", ("f16", "f16"), "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"),
        ("sm_89", ("e4m3", "e5m2"), "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e5m2.f32"),
        ("sm_90a", ("e4m3", "e4m3"), "wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3"),
        ("sm_90a", ("f64", "f64"), "mma.sync.aligned.m16n8k16.row.col.rn.f64.f64.f64.f64"),
        ("sm_100a", ("e2m1", "e4m3"), "tcgen05.mma.cta_group::1.kind::f8f6f4.m128n256k32.f32.e2m1.e4m3"),
        ("sm_103a", ("s8", "s8"), "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32"),
        ("sm_120a", ("bf16", "bf16"), "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"),
    ],
)
def test_a_library_takes_the_newest_family_that_fits(arch, types, expected):
    assert library_instruction(arch, *types).ptx == expected


def test_what_no_tensor_core_takes_is_refused_with_the_reason():
    with pytest.raises(
        UnsupportedInstruction, match=r"^sm_80 has no tensor-core instruction for e4m3 x e4m3; targets that have one: sm_89, sm_90a"
    ):
        library_instruction("sm_80", "e4m3", "e4m3")
    with pytest.raises(UnsupportedInstruction, match=r"e2m1 x e2m1 with ue4m3 block scales; targets that have one: sm_100a, .*sm_120a"):
        library_instruction("sm_90a", "e2m1", "e2m1", scale_type="ue4m3")


def test_a_session_computes_what_gemm_computes_and_reports_it():
    a, b = _operands()
    with mmabits.emulate("sm_90a", frameworks=()) as session:
        got = session.dot("layer 1", a, b)
        session.dot("layer 1", a, b)
        session.dot("layer 2", np.stack([a, a, a]), b)
        session.skip("layer 3", "conv2d", "convolutions are not emulated")
    np.testing.assert_array_equal(got, mmabits.gemm(a, b, instruction="wgmma", arch="sm_90a"))
    report = session.report()
    assert [(line.site, line.shape, line.count, str(line.evidence)) for line in report.emulated] == [
        ("layer 1", "5 x 7 x 96", 2, "published"), ("layer 2", "5 x 7 x 96", 3, "published"),
    ]  # fmt: skip
    assert [(line.site, line.operation, line.count) for line in report.skipped] == [("layer 3", "conv2d", 1)]
    text = str(report)
    assert "wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3" in text
    assert "convolutions are not emulated" in text


def test_block_scales_choose_the_scaled_instruction():
    a, b = _operands()
    scale_a, scale_b = np.full((5, 3), 2, ml_dtypes.float8_e8m0fnu), np.full((3, 7), 0.5, ml_dtypes.float8_e8m0fnu)
    with mmabits.emulate("sm_100a", frameworks=()) as session:
        got = session.dot("scaled", a, b, scale_a=scale_a, scale_b=scale_b)
    np.testing.assert_array_equal(got, mmabits.gemm(a, b, instruction="tcgen05.mma", arch="sm_100a", scale_a=scale_a, scale_b=scale_b))
    assert "mxf8f6f4" in session.report().emulated[0].instruction.ptx


def test_evidence_below_what_is_required_is_refused():
    a, b = _operands(np.float16)
    with mmabits.emulate("sm_80", require="recorded", frameworks=()) as session:
        session.dot("recorded", a, b)
    assert session.report().emulated[0].evidence == session.require
    with mmabits.emulate("sm_90a", require="recorded", frameworks=()) as session, pytest.raises(InsufficientEvidence):
        session.dot("published", a, b)
    assert session.report().emulated == ()


def test_blocks_nest_and_the_innermost_counts():
    assert current_session() is None
    with mmabits.emulate("sm_80", frameworks=()) as outer:
        with mmabits.emulate("sm_90a", frameworks=()) as inner:
            assert current_session() is inner
        assert current_session() is outer
    assert current_session() is None


def test_a_second_thread_is_told_no():
    answers = []

    def enter():
        try:
            with mmabits.emulate("sm_90a", frameworks=()):
                answers.append("entered")
        except EmulationError as error:
            answers.append(str(error))

    with mmabits.emulate("sm_80", frameworks=()):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert current_session() is not None
    enter()
    assert answers == ["another thread is inside an emulate block; one thread at a time may be", "entered"]


def test_a_block_can_be_used_again_but_not_entered_twice():
    block = mmabits.emulate("sm_80", frameworks=())
    with block as first:
        assert current_session() is first
        with pytest.raises(EmulationError, match=r"^this emulate block is entered already; call mmabits\.emulate again"), block:
            pass
        assert current_session() is first
    with block as second:
        assert current_session() is second is not first
    assert current_session() is None
    for never_entered in (block, mmabits.emulate("sm_80")):
        with pytest.raises(EmulationError, match="left without having been entered"):
            never_entered.__exit__(None, None, None)


def test_blocks_may_be_left_in_any_order():
    blocks = [mmabits.emulate(arch, frameworks=()) for arch in ("sm_80", "sm_89", "sm_90a")]
    sessions = [block.__enter__() for block in blocks]
    blocks[1].__exit__(None, None, None)
    assert current_session() is sessions[2]
    blocks[2].__exit__(None, None, None)
    assert current_session() is sessions[0]
    blocks[0].__exit__(None, None, None)
    assert current_session() is None


def test_a_chain_of_blocks_left_in_order_of_entry_does_not_grow():
    block = mmabits.emulate("sm_80", frameworks=())
    block.__enter__()
    for _ in range(50):
        following = mmabits.emulate("sm_80", frameworks=())
        following.__enter__()
        block.__exit__(None, None, None)
        block = following
    assert len(list(scope._chain())) == 2
    block.__exit__(None, None, None)
    with mmabits.emulate("sm_80", frameworks=()):
        assert len(list(scope._chain())) == 1
    assert list(scope._chain()) == []


def test_a_function_that_enters_a_block_and_returns():
    """For its caller; where that is a generator, for as long as it runs. What runs by a coroutine driven by hand is a notebook."""

    def helper():
        block = mmabits.emulate("sm_80", frameworks=())
        block.__enter__()
        return block

    def generator():
        block = helper()
        yield current_session()
        block.__exit__(None, None, None)

    async def cell():
        return helper()

    block = helper()
    assert current_session() is not None
    block.__exit__(None, None, None)
    (seen,) = [(inside.arch, current_session()) for inside in generator()]
    assert seen == ("sm_80", None)
    with pytest.raises(StopIteration) as ended:
        cell().send(None)
    assert current_session() is not None
    ended.value.value.__exit__(None, None, None)


def test_sessions_lie_in_one_another_only_where_their_code_does():
    """`within` says whose programs may be shared: not those of a generator, of another task, or beside a generator that waits."""

    def generator():
        with mmabits.emulate("sm_80", frameworks=()) as session:
            yield session
            with mmabits.emulate("sm_80", frameworks=()) as inner:
                yield inner

    async def child():
        with mmabits.emulate("sm_80", frameworks=()) as session:
            return session

    async def main():
        with mmabits.emulate("sm_80", frameworks=()) as outer:
            return outer, await asyncio.create_task(child()), await child()

    outer, of_another_task, of_the_same = asyncio.run(main())
    assert (outer.within, of_another_task.within, of_the_same.within) == ((), (), (outer,))
    with mmabits.emulate("sm_80", frameworks=()) as outer, mmabits.emulate("sm_80", frameworks=()) as inner:
        assert inner.within == (outer,)
        held = generator()
        waiting = next(held)
        with mmabits.emulate("sm_80", frameworks=()) as innermost:
            assert waiting.within == () and innermost.within == (inner, outer) and next(held).within == ()
        held.close()


def test_a_session_that_asks_for_a_framework_gets_the_innermost_block_with_it(monkeypatch, framework):
    with mmabits.emulate("sm_80") as outer, mmabits.emulate("sm_90a", frameworks=()) as inner:
        assert (current_session(), current_session("made_up"), current_session("other")) == (inner, outer, None)


@pytest.mark.parametrize("place", ["with", "contextmanager", "ExitStack", "class"])
@pytest.mark.parametrize("consumer", ["generator", "context manager", "fixture", "pluggy"])
def test_who_resumes_a_generator_says_whether_it_passes_its_block_on(place, consumer):
    """The four ways to enter a block, in a generator that is iterated over, and in those that are set-up and tear-down."""

    @contextmanager
    def device():
        with mmabits.emulate("sm_80", frameworks=()):
            yield

    class Device:
        def __enter__(self):
            self.block = mmabits.emulate("sm_80", frameworks=())
            return self.block.__enter__()

        def __exit__(self, *error):
            return self.block.__exit__(*error)

    def entering(stack):
        if place == "ExitStack":
            stack.enter_context(mmabits.emulate("sm_80", frameworks=()))
        return {"with": lambda: mmabits.emulate("sm_80", frameworks=()), "contextmanager": device, "class": Device}.get(place, ExitStack)()

    def generator():
        with ExitStack() as stack, entering(stack):
            yield current_session()

    runner = {"fixture": "_pytest.fixtures", "pluggy": "pluggy._callers"}.get(consumer)
    if consumer == "generator":
        (seen,) = [(inside.arch, current_session()) for inside in generator()]
        assert seen == ("sm_80", None)
    elif consumer == "context manager":
        with contextmanager(generator)() as inside:
            assert current_session() is inside is not None
    else:
        namespace = {"__name__": runner}
        exec("def run(generator): return next(generator)", namespace)
        held = generator()
        assert namespace["run"](held) is current_session() is not None
        held.close()
    assert current_session() is None


def test_decorated_functions_have_a_block_for_each_call():
    emulated = mmabits.emulate("sm_80", frameworks=())

    @emulated
    def function(depth):
        """Its own words."""
        return [current_session(), *(function(depth - 1) if depth else [])]

    assert len({id(session) for session in function(2)}) == 3
    assert function.__doc__ == "Its own words." and function.__name__ == "function"

    @emulated
    async def coroutine():
        await asyncio.sleep(0)
        return current_session().arch

    class Callable:
        async def __call__(self):
            return current_session().arch

    @emulated
    def generator():
        yield current_session().arch

    assert asyncio.run(coroutine()) == asyncio.run(emulated(Callable())()) == "sm_80"
    assert [(inside, current_session()) for inside in generator()] == [("sm_80", None)]
    with contextmanager(generator)() as inside:
        assert inside == current_session().arch == "sm_80"
    assert current_session() is None


def test_what_runs_after_the_block_cannot_be_decorated():
    emulated = mmabits.emulate("sm_80", frameworks=())

    async def async_generator():
        yield 1

    async def coroutine():
        pass

    with pytest.raises(EmulationError, match="does not decorate async generators; open the block inside"):
        emulated(async_generator)
    for made, kind in ((coroutine, "coroutine"), (async_generator, "async generator"), (lambda: (each for each in ()), "generator")):
        with pytest.raises(EmulationError, match=f"returned a {kind}, which runs after the block; decorate what makes it"):
            emulated(lambda made=made: made())()
    assert current_session() is None


def test_a_hook_that_fails_leaves_no_block(framework, monkeypatch):
    def broken(session):
        raise EmulationError("a version that it was not made for")

    monkeypatch.setattr(session_module, "FRAMEWORKS", ("made_up", "broken"))
    monkeypatch.setitem(sys.modules, "broken", types.ModuleType("broken"))
    monkeypatch.setitem(sys.modules, "mmabits.emulator.hooks.broken", types.SimpleNamespace(hook=broken))
    with pytest.raises(EmulationError, match="a version"), mmabits.emulate("sm_80"):
        pass
    assert framework == ["enter sm_80", "leave sm_80"] and current_session() is None and scope._OPEN == []


def test_a_hook_that_fails_at_the_end_ends_the_block(framework, monkeypatch):
    @contextmanager
    def interrupted(session):
        yield
        raise KeyboardInterrupt

    monkeypatch.setattr(session_module, "FRAMEWORKS", ("made_up", "interrupted"))
    monkeypatch.setitem(sys.modules, "interrupted", types.ModuleType("interrupted"))
    monkeypatch.setitem(sys.modules, "mmabits.emulator.hooks.interrupted", types.SimpleNamespace(hook=interrupted))
    with pytest.raises(KeyboardInterrupt), mmabits.emulate("sm_80"):
        pass
    assert framework == ["enter sm_80", "leave sm_80"] and current_session() is None and scope._OPEN == []


def test_threads_and_pools_are_watched_while_a_block_is_open(framework, monkeypatch):
    places = (threading.Thread, "start"), (ThreadPoolExecutor, "submit")
    stock = [getattr(*place) for place in places]

    def handed_over():
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()

    with mmabits.emulate("sm_80") as session:
        handed_over()
        with mmabits.emulate("sm_90a", frameworks=()):
            handed_over()  # the innermost emulates no framework: nothing that could be missed
        with ThreadPoolExecutor(1) as pool:
            assert list(pool.map(abs, [-1, 2])) == [1, 2]
    assert [getattr(*place) for place in places] == stock
    assert [(line.site.partition(" (")[0], line.count) for line in session.report().skipped] == [
        ("a thread for handed_over", 1), ("a thread for test_threads_and_pools_are_watched_while_a_block_is_open", 2),
    ]  # fmt: skip

    with mmabits.emulate("sm_80"):
        ours = threading.Thread.start
        monkeypatch.setattr(threading.Thread, "start", lambda self: ours(self))  # a tracer that wraps it, and stays
    handed_over()
    with mmabits.emulate("sm_80") as session:
        handed_over()
    assert [line.count for line in session.report().skipped] == [1]
    monkeypatch.undo()
    scope._leave_threads_alone()
    assert [getattr(*place) for place in places] == stock


def test_the_thread_in_which_the_engine_compiles_is_not_told(framework, monkeypatch):
    variant, made = record.Variant("made up", *[np.dtype(np.uint8)] * 3), object()
    monkeypatch.setattr(machine_code, "_compiled", lambda _: made)
    monkeypatch.setattr(machine_code, "_write", lambda *_: None)
    monkeypatch.setattr(machine_code, "notify", lambda *_: None)
    with mmabits.emulate("sm_80") as session:
        assert machine_code._make(variant) is made
    assert session.report().skipped == ()


def test_the_report_is_text_in_a_notebook_too(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    session = session_module.Session(arch="sm_90a")
    session.skip("here", "something", "a reason")
    assert "a reason" in str(session.report())


@pytest.fixture
def framework(monkeypatch):
    """A framework that can be imported, and a hook for it that notes what happens."""
    events = []

    @contextmanager
    def hook(session):
        events.append(f"enter {session.arch}")
        try:
            yield
        finally:
            events.append(f"leave {session.arch}")

    monkeypatch.setattr(session_module, "FRAMEWORKS", ("made_up",))
    monkeypatch.setitem(sys.modules, "made_up", types.ModuleType("made_up"))
    monkeypatch.setitem(sys.modules, "mmabits.emulator.hooks.made_up", types.SimpleNamespace(hook=hook))
    return events


def test_hooks_of_imported_frameworks_are_entered_and_left_in_order_also_after_an_error(framework):
    with pytest.raises(ZeroDivisionError), mmabits.emulate("sm_80"), mmabits.emulate("sm_89"):
        _ = 1 // 0
    assert framework == ["enter sm_80", "enter sm_89", "leave sm_89", "leave sm_80"]
    assert current_session() is None


def test_a_framework_imported_inside_the_block_is_told_of(framework, monkeypatch):
    module = sys.modules.pop("made_up")
    with pytest.warns(NotEmulated, match="made_up was imported inside the block") as told, mmabits.emulate("sm_80") as session:
        monkeypatch.setitem(sys.modules, "made_up", module)
    assert told[0].filename == __file__
    assert framework == []
    assert [line.operation for line in session.report().skipped] == ["made_up"]


def test_wrong_use_is_refused_before_anything_is_patched(framework):
    with pytest.raises(UnknownArchitecture, match="known: sm_70"), mmabits.emulate("sm_91a"):
        pass
    with (
        pytest.raises(OperandError, match="unknown framework 'made_upp'; did you mean made_up"),
        mmabits.emulate("sm_80", frameworks=["made_upp"]),
    ):
        pass
    with pytest.raises(OperandError, match="must be a sequence of names"), mmabits.emulate("sm_80", frameworks="made_up"):
        pass
    with pytest.raises(OperandError, match="unknown evidence level"), mmabits.emulate("sm_80", require="proven"):
        pass
    assert framework == []
    assert current_session() is None


def test_a_what_if_architecture_can_be_emulated():
    mmabits.what_if("session-f20", base="sm_90a", rows={"wgmma.f8.f32": {"fraction_bits": 20, "result_fraction_bits": 20}})
    a, b = _operands()
    with mmabits.emulate("session-f20", frameworks=()) as session:
        got = session.dot("what if", a, b)
    assert session.target == "sm_90a"
    np.testing.assert_array_equal(got, mmabits.gemm(a, b, instruction="wgmma", arch="session-f20"))
    assert str(session.report().emulated[0].evidence) == "inferred"


def test_a_product_with_an_instruction_in_short_spelling_is_in_the_report():
    session = session_module.Session(arch="sm_90a")
    ones = np.ones((2, 4, 32), ml_dtypes.float8_e4m3fn)
    session.dot("here", ones, ones[0].T.copy(), instruction="wgmma")
    (line,) = session.report().emulated
    assert (line.site, line.shape, line.count) == ("here", "4 x 4 x 32", 2)
    assert line.instruction.ptx.startswith("wgmma.mma_async")


def test_brackets_in_names_and_reasons_are_printed_as_they_are():
    session = session_module.Session(arch="sm_90a")
    session.skip("kernel[grid]", "op[/x]", "a [red] reason")
    text = str(session.report())
    assert all(words in text for words in ("kernel[grid]", "op[/x]", "a [red] reason"))


def test_frameworks_may_come_from_a_generator():
    pytest.importorskip("torch")
    with mmabits.emulate("sm_90a", frameworks=(name for name in ["torch"])) as session:
        assert session.frameworks == ("torch",)


class TestReadyProducts:
    """What every hook calls before products are multiplied, by whomever."""

    WGMMA = parse("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3")

    def test_promotion_is_the_callers_or_else_the_architectures_own(self):
        mmabits.what_if("ready-64", base="sm_90a", rows={}, promote_every=64)
        for arch, asked, every in (("sm_90a", None, 0), ("sm_90a", 128, 128), ("ready-64", None, 64), ("ready-64", 128, 128)):
            found = session_module.Session(arch=arch).ready("here", self.WGMMA, promote_every=asked)
            assert found.promote_every == every and found.lowering.arch == arch
            a, b = _operands()
            want = mmabits.gemm(a, b, instruction=self.WGMMA, arch=arch, promote_every=asked)
            assert found.multiply(a, b).tobytes() == want.tobytes()

    def test_evidence_is_asked_for_before_anything_is_counted(self):
        session = session_module.Session(arch="sm_90a", require=Evidence.RECORDED)
        with pytest.raises(InsufficientEvidence, match="rests on published evidence, but recorded is required"):
            session.ready("here", self.WGMMA)
        assert session.report().emulated == ()

    def test_the_function_is_that_of_the_schedule(self):
        found = session_module.Session(arch="sm_90a").ready("here", self.WGMMA, promote_every=128, note="why")
        native = found.native(1, 5, 7, what="a product")
        assert native is native_product(found.lowering, 128, side_by_side=False)
        found.count(5, 7, 96, count=3)
        (line,) = found.session.report().emulated
        assert (line.site, line.instruction, line.shape, line.count, line.note) == ("here", self.WGMMA, "5 x 7 x 96", 3, "why")
