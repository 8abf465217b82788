"""emulate without any framework: the block, the account it keeps, and what it refuses."""

from __future__ import annotations

import sys
import threading
import types
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.emulator import session as session_module
from mmabits.emulator.session import NotEmulated, current_session
from mmabits.isa import EmulationError, InsufficientEvidence, OperandError, UnknownArchitecture, UnsupportedInstruction, library_instruction

_FP8 = ml_dtypes.float8_e4m3fn


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
    with pytest.warns(NotEmulated, match="made_up was imported inside the block"), mmabits.emulate("sm_80") as session:
        monkeypatch.setitem(sys.modules, "made_up", module)
    assert framework == []
    assert [line.operation for line in session.report().skipped] == ["made_up"]


def test_wrong_use_is_refused_before_anything_is_patched(framework):
    with pytest.raises(UnknownArchitecture, match="did you mean"), mmabits.emulate("sm_91a"):
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
