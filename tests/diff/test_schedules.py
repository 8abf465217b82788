"""Results that other schedules gave: the schedule is found."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.conformance.diff import TriedSchedule, fitting_schedules, recompute
from mmabits.conformance.diff.schedules import Order, add_parts, assumed_schedule, panels
from mmabits.isa import OperandError, library_instruction

ARCH = "sm_90a"


def operands(dtype, k=1024, m=40, n=48):
    rng = np.random.default_rng(1)
    return rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)


def test_split_k_of_4_is_found():
    a, b = operands(np.float16)
    parts = [mmabits.gemm(a[:, k : k + 256], b[k : k + 256], instruction="wgmma", arch=ARCH) for k in range(0, 1024, 256)]
    result = ((parts[0] + parts[1]) + parts[2]) + parts[3]
    fits = fitting_schedules(a, b, result, arch=ARCH)
    assert fits[0].differing == 0 and fits[0].elements == 40 * 48
    assert (fits[0].schedule.split_k, fits[0].schedule.reverse, fits[0].schedule.promote_every) == (4, False, None)
    assert fits[0].schedule.instruction == library_instruction(ARCH, "f16", "f16")


def test_the_order_of_the_parts_is_found():
    a, b = operands(np.float16)
    parts = [mmabits.gemm(a[:, k : k + 256], b[k : k + 256], instruction="wgmma", arch=ARCH) for k in range(0, 1024, 256)]
    fits = fitting_schedules(a, b, ((parts[3] + parts[2]) + parts[1]) + parts[0], arch=ARCH)
    assert fits[0].differing == 0 and (fits[0].schedule.split_k, fits[0].schedule.reverse) == (4, True)
    assert all(fit.differing > 0 for fit in fits if fit.schedule.split_k == 4 and not fit.schedule.reverse)


def test_promotion_every_128_against_none():
    a, b = operands(ml_dtypes.float8_e4m3fn, k=3 * 128 + 64)
    promoted = mmabits.gemm(a, b, instruction="wgmma", arch=ARCH, promote_every=128)
    plain = mmabits.gemm(a, b, instruction="wgmma", arch=ARCH)
    assert (promoted != plain).any()
    found = [fit.schedule for fit in fitting_schedules(a, b, promoted, arch=ARCH) if fit.differing == 0]
    assert any(plan.promote_every == 128 and plan.split_k == 1 for plan in found)
    assert not any(plan.promote_every is None and plan.split_k == 1 for plan in found)
    best = fitting_schedules(a, b, plain, arch=ARCH)[0]
    assert best.differing == 0 and best.schedule == TriedSchedule(instruction=library_instruction(ARCH, "e4m3", "e4m3"))


def test_another_family_is_found():
    a, b = operands(np.float16, k=128)
    result = mmabits.gemm(a, b, instruction="wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16", arch=ARCH)
    best = fitting_schedules(a, b, result, arch=ARCH)[0]
    assert best.differing == 0 and best.schedule.instruction.d_type.name == "f16"


def test_factors_and_rounding_are_applied():
    a, b = operands(ml_dtypes.float8_e4m3fn)
    scale_a, scale_b = np.full((40, 1), 0.7, np.float32), np.linspace(0.5, 2, 48, dtype=np.float32)[None]
    plan = TriedSchedule(instruction=library_instruction(ARCH, "e4m3", "e4m3"), split_k=2)
    result = recompute(a, b, schedule=plan, arch=ARCH, scale_a=scale_a, scale_b=scale_b, dtype=ml_dtypes.bfloat16)
    halves = [mmabits.gemm(a[:, half], b[half], instruction="wgmma", arch=ARCH) for half in (slice(0, 512), slice(512, 1024))]
    assert (result == ((halves[0] + halves[1]) * scale_a * scale_b).astype(ml_dtypes.bfloat16)).all()
    best = fitting_schedules(a, b, result, arch=ARCH, scale_a=scale_a, scale_b=scale_b)[0]
    assert best.differing == 0


def test_block_scales_are_split_with_k():
    a, b = operands(ml_dtypes.float8_e4m3fn, k=160, m=8, n=8)
    rng = np.random.default_rng(2)
    scale_a, scale_b = (2.0 ** rng.integers(-3, 4, shape) for shape in ((8, 5), (5, 8)))
    scale_a, scale_b = scale_a.astype(ml_dtypes.float8_e8m0fnu), scale_b.astype(ml_dtypes.float8_e8m0fnu)
    plan = assumed_schedule(a, b, arch="sm_100a", scale_a=scale_a)
    whole = recompute(a, b, schedule=plan, arch="sm_100a", scale_a=scale_a, scale_b=scale_b)
    given = {"instruction": plan.instruction, "arch": "sm_100a"}
    assert (whole == mmabits.gemm(a, b, scale_a=scale_a, scale_b=scale_b, **given)).all()
    split = TriedSchedule(instruction=plan.instruction, split_k=2)
    first = mmabits.gemm(a[:, :96], b[:96], scale_a=scale_a[:, :3], scale_b=scale_b[:3], **given)
    second = mmabits.gemm(a[:, 96:], b[96:], scale_a=scale_a[:, 3:], scale_b=scale_b[3:], **given)
    got = recompute(a, b, schedule=split, arch="sm_100a", scale_a=scale_a, scale_b=scale_b)
    assert (got == first + second).all()


def four_parts(a, b):
    return [mmabits.gemm(a[:, k : k + 256], b[k : k + 256], instruction="wgmma", arch=ARCH) for k in range(0, 1024, 256)]


def planted_trees(parts):
    first, second, third, fourth = parts
    return {Order.NEIGHBOURS: (first + second) + (third + fourth), Order.HALVES: (first + third) + (second + fourth)}


@pytest.mark.parametrize("order", [Order.NEIGHBOURS, Order.HALVES])
def test_a_tree_is_found(order):
    a, b = operands(np.float16)
    fits = fitting_schedules(a, b, planted_trees(four_parts(a, b))[order], arch=ARCH)
    fitting = [fit.schedule for fit in fits if fit.differing == 0]
    # Two parts, each promoted half-way, are the same sums as a tree of four neighbours.
    same = {(2, Order.FORWARD, 256)} if order is Order.NEIGHBOURS else set()
    assert {(plan.split_k, plan.order, plan.promote_every) for plan in fitting} == {(4, order, None), *same}
    assert f"no promotion, K split by 4 and added {order.value}" in {plan.words for plan in fitting}
    assert fits[len(fitting) - 1].as_json["order"] == order.value


def test_parts_rounded_before_they_are_added_are_found():
    a, b = operands(ml_dtypes.bfloat16)
    first, second, third, fourth = (part.astype(ml_dtypes.bfloat16).astype(np.float32) for part in four_parts(a, b))
    result = (((first + second) + third) + fourth).astype(ml_dtypes.bfloat16)
    fits = fitting_schedules(a, b, result, arch=ARCH)
    best = fits[0].schedule
    assert fits[0].differing == 0
    assert (best.split_k, best.order, best.workspace, best.keeps_total) == (4, Order.FORWARD, "bf16", False)
    assert all(fit.differing for fit in fits if fit.schedule.workspace is None) and "parts rounded to bf16" in best.words


def test_a_total_kept_in_the_results_type_is_found():
    a, b = operands(np.float16)
    parts = four_parts(a, b)
    total = parts[0].astype(np.float16)
    for part in parts[1:]:
        total = (total.astype(np.float32) + part).astype(np.float16)
    fits = fitting_schedules(a, b, total, arch=ARCH)
    best = fits[0].schedule
    assert fits[0].differing == 0 and (best.split_k, best.order, best.workspace, best.keeps_total) == (4, Order.FORWARD, "f16", True)
    assert all(fit.differing for fit in fits if not fit.schedule.keeps_total) and "the total rounded to f16" in best.words


def test_workspaces_are_not_tried_where_the_result_is_f32():
    a, b = operands(np.float16, k=128)
    result = mmabits.gemm(a, b, instruction="wgmma", arch=ARCH) * np.float32(1.5)
    assert all(fit.schedule.workspace is None and fit.differing for fit in fitting_schedules(a, b, result, arch=ARCH))


def test_rarer_schedules_never_come_before_simpler_ones_that_fit():
    """Small integers are added exactly: everything fits, and the first is as it was before trees and workspaces were tried."""
    rng = np.random.default_rng(5)
    a, b = rng.integers(-2, 3, (40, 1024)).astype(np.float16), rng.integers(-2, 3, (1024, 48)).astype(np.float16)
    result = mmabits.gemm(a, b, instruction="wgmma", arch=ARCH).astype(np.float16)
    fits = fitting_schedules(a, b, result, arch=ARCH)
    assert all(fit.differing == 0 and fit.schedule.workspace is None and not fit.schedule.order.is_tree for fit in fits)
    assert fits[0].schedule == TriedSchedule(instruction=library_instruction(ARCH, "f16", "f16"))


@pytest.mark.parametrize(
    ("order", "count", "grouped"),
    [
        (Order.FORWARD, 5, "((((0+1)+2)+3)+4)"),
        (Order.REVERSE, 5, "((((4+3)+2)+1)+0)"),
        (Order.NEIGHBOURS, 5, "(((0+1)+(2+3))+4)"),
        (Order.HALVES, 5, "(((0+3)+2)+(1+4))"),
        (Order.HALVES, 3, "((0+2)+1)"),
        (Order.NEIGHBOURS, 4, "((0+1)+(2+3))"),
        (Order.HALVES, 4, "((0+2)+(1+3))"),
        (Order.HALVES, 8, "(((0+4)+(2+6))+((1+5)+(3+7)))"),
    ],
)
def test_orders_add_as_they_say(order, count, grouped):
    rng = np.random.default_rng(6)
    parts = [rng.standard_normal((16, 16), np.float32) for _ in range(count)]
    plan = TriedSchedule(instruction=library_instruction(ARCH, "f16", "f16"), split_k=count, order=order)
    spelled = "".join(f"parts[{letter}]" if letter.isdigit() else letter for letter in grouped)
    assert (add_parts(parts, plan) == eval(spelled, {"parts": parts})).all()


def test_parts_of_k_are_whole_instructions():
    row = library_instruction(ARCH, "f16", "f16")
    assert panels(100, row, 3) == [slice(0, 48), slice(48, 96), slice(96, 100)]
    assert panels(32, row, 5) == [slice(0, 16), slice(16, 32)]


def test_schedules_that_say_nothing_are_refused():
    row = library_instruction(ARCH, "f16", "f16")
    for wrong, said in (
        ({"split_k": 0}, "one part or more, got 0"),
        ({"workspace": "e4m3"}, "f16 or bf16, got 'e4m3'"),
        ({"keeps_total": True}, "kept in a workspace"),
        ({"keeps_total": True, "workspace": "f16", "order": Order.HALVES}, "in order or in reverse"),
    ):
        with pytest.raises(OperandError, match=said):
            TriedSchedule(instruction=row, **wrong)


def test_a_result_of_another_shape_is_refused():
    a, b = operands(np.float16, k=32)
    with pytest.raises(OperandError, match=r"\(40, 48\)"):
        fitting_schedules(a, b, np.zeros((40, 40), np.float32), arch=ARCH)


def test_promotion_is_assumed_where_libraries_have_it():
    a, b = operands(np.float16, k=32)
    fp8 = a.astype(ml_dtypes.float8_e4m3fn), b.astype(ml_dtypes.float8_e4m3fn)
    for arch, every in (("sm_89", 128), ("sm_90a", 128), ("sm_100a", None), ("sm_120a", None)):
        assert assumed_schedule(*fp8, arch=arch, fast_accum=False).promote_every == every
        assert assumed_schedule(*fp8, arch=arch, fast_accum=True).promote_every is None


@pytest.mark.parametrize(("name", "kind"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_fp8_operands_that_were_converted_first_are_found(name, kind):
    rng = np.random.default_rng(5)
    a = (rng.standard_normal((48, 512)) * 2.0 ** rng.integers(-6, 6, (48, 512))).astype(ml_dtypes.float8_e4m3fn)
    b = rng.standard_normal((512, 40)).astype(ml_dtypes.float8_e5m2)
    result = mmabits.gemm(a.astype(kind), b.astype(kind), instruction="wgmma", arch="sm_90a")
    best = fitting_schedules(a, b, result, arch="sm_90a")[0]
    assert best.differing == 0 and best.schedule.words.startswith("operands converted to ")
    assert best.as_json["converted"] == best.schedule.converted and best.schedule.instruction.a_type.name == best.schedule.converted
    direct = mmabits.gemm(a, b, instruction="wgmma", arch="sm_90a")
    assert (direct != result).any() and fitting_schedules(a, b, direct, arch="sm_90a")[0].schedule.converted is None
