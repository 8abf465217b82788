"""Results that other schedules gave: the schedule is found."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.conformance.diff import Schedule, fitting_schedules, recompute
from mmabits.conformance.diff.schedules import ASSUMED_PROMOTION, assumed_schedule
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
    assert best.differing == 0 and best.schedule == Schedule(instruction=library_instruction(ARCH, "e4m3", "e4m3"))


def test_another_family_is_found():
    a, b = operands(np.float16, k=128)
    result = mmabits.gemm(a, b, instruction="wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16", arch=ARCH)
    best = fitting_schedules(a, b, result, arch=ARCH)[0]
    assert best.differing == 0 and best.schedule.instruction.d_type.name == "f16"


def test_factors_and_rounding_are_applied():
    a, b = operands(ml_dtypes.float8_e4m3fn)
    scale_a, scale_b = np.full((40, 1), 0.7, np.float32), np.linspace(0.5, 2, 48, dtype=np.float32)[None]
    plan = Schedule(instruction=library_instruction(ARCH, "e4m3", "e4m3"), split_k=2)
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
    split = Schedule(instruction=plan.instruction, split_k=2)
    first = mmabits.gemm(a[:, :96], b[:96], scale_a=scale_a[:, :3], scale_b=scale_b[:3], **given)
    second = mmabits.gemm(a[:, 96:], b[96:], scale_a=scale_a[:, 3:], scale_b=scale_b[3:], **given)
    got = recompute(a, b, schedule=split, arch="sm_100a", scale_a=scale_a, scale_b=scale_b)
    assert (got == first + second).all()


def test_a_result_of_another_shape_is_refused():
    a, b = operands(np.float16, k=32)
    with pytest.raises(OperandError, match=r"\(40, 48\)"):
        fitting_schedules(a, b, np.zeros((40, 40), np.float32), arch=ARCH)


def test_the_assumed_promotion_is_that_of_the_torch_hook():
    pytest.importorskip("torch")
    from mmabits.emulator.hooks.torch.scaled import PROMOTED

    assert ASSUMED_PROMOTION == PROMOTED
