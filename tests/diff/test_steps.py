"""Along K: sums after every step, where schedules part, and what a result tells of it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.commands.pages.diff import differences_page
from mmabits.conformance.diff import Run, fitting_schedules, recompute
from mmabits.conformance.diff.products import compare_product
from mmabits.conformance.diff.schedules import Fit, Order, TriedSchedule, assumed_schedule
from mmabits.conformance.diff.steps import (
    SAMPLED,
    AlongK,
    along_k,
    binned,
    bounds,
    course,
    error_chart,
    latest_step,
    parting,
    parting_chart,
    traced_course,
    ulp_at,
)
from mmabits.isa import OperandError, format_spec
from mmabits.research.explain import explain

ARCH = "sm_90a"
E4M3 = ml_dtypes.float8_e4m3fn


def operands(dtype, k=512, m=12, n=10):
    rng = np.random.default_rng(7)
    return rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)


def followed(a, b, schedule, row=0, column=0, arch=ARCH):
    return course(a, b, schedule=schedule, arch=arch, row=row, column=column)


def exact_sum(a, b, row, column, stop):
    return sum((Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a[row, :stop], b[:stop, column], strict=True)), Fraction(0))


def test_every_state_of_a_chain_is_the_product_of_as_much_of_k():
    a, b = operands(np.float16, k=128)
    found = followed(a, b, assumed_schedule(a, b, arch=ARCH), row=3, column=4)
    assert [point.k for point in found.points] == list(range(16, 129, 16)) and found.steps == 8 and found.stops is None
    for point in found.points:
        so_far = mmabits.gemm(a[3:4, : point.k], b[: point.k, 4:5], instruction="wgmma", arch=ARCH)[0, 0]
        assert point.value == Fraction(float(so_far)) and point.exact == exact_sum(a, b, 3, 4, point.k)
        assert point.step == point.k // 16 - 1
    assert found.end == found.points[-1].value and found.exact == found.points[-1].exact


@pytest.mark.parametrize(
    ("arch", "family", "dtype", "step", "every"), [(ARCH, "wgmma", E4M3, 32, 128), ("sm_70", "mma", np.float16, 4, 16)]
)
def test_a_promotion_adds_what_the_chain_holds_to_the_total(arch, family, dtype, step, every):
    """Also where an instruction adds C last, as Volta's does: then two additions follow each other."""
    a, b = operands(dtype, k=4 * every)
    plan = replace(assumed_schedule(a, b, arch=arch), promote_every=every)
    found = followed(a, b, plan, row=1, column=2, arch=arch)
    states = {point.k: point.value for point in found.points}
    assert sorted(states) == list(range(step, 4 * every + 1, step))
    total = np.float32(0)
    for start in range(0, 4 * every, every):
        for stop in range(start + step, start + every + 1, step):
            chain = mmabits.gemm(a[1:2, start:stop], b[start:stop, 2:3], instruction=family, arch=arch)[0, 0]
            if stop < start + every:
                assert states[stop] == Fraction(float(total)) + Fraction(float(chain))
        total = np.float32(total + chain)
        assert states[stop] == Fraction(float(total))
    assert found.end == Fraction(float(mmabits.gemm(a, b, instruction=family, arch=arch, promote_every=every)[1, 2]))


def test_a_traced_chain_counts_its_c():
    """Volta adds C behind each instruction, Ampere within its first step: at the end of an instruction both have it."""
    a, b = operands(np.float16, k=16)
    c = np.float32(0.75)
    for arch, every in (("sm_70", 4), ("sm_80", 8)):
        plan = assumed_schedule(a, b, arch=arch)
        chain = explain(a, b, c, instruction=plan.instruction, arch=arch, row=2, column=3).trace
        found = traced_course(chain, k=16)
        for point in found.points:
            so_far = mmabits.gemm(a[2:3, : point.k], b[: point.k, 3:4], np.full((1, 1), c), instruction=plan.instruction, arch=arch)
            assert point.k % every or point.value == Fraction(float(so_far[0, 0]))
            assert point.exact == exact_sum(a, b, 2, 3, point.k) + Fraction(3, 4)
        assert len(found.points) == 16 // every and found.end == found.points[-1].value


@pytest.mark.parametrize("order", Order)
def test_the_end_is_what_the_schedule_gives(order):
    a, b = operands(np.float16)
    plan = TriedSchedule(instruction=assumed_schedule(a, b, arch=ARCH).instruction, split_k=4, order=order, workspace="bf16")
    whole = recompute(a, b, schedule=plan, arch=ARCH)
    for row, column in ((0, 0), (11, 9)):
        assert followed(a, b, plan, row, column).end == Fraction(float(whole[row, column]))


def test_block_scales_are_followed():
    a, b = operands(E4M3, k=160, m=3, n=3)
    rng = np.random.default_rng(2)
    scale_a, scale_b = ((2.0 ** rng.integers(-3, 4, shape)).astype(ml_dtypes.float8_e8m0fnu) for shape in ((3, 5), (5, 3)))
    plan = replace(assumed_schedule(a, b, arch="sm_100a", scale_a=scale_a), split_k=2)
    given = {"schedule": plan, "arch": "sm_100a", "scale_a": scale_a, "scale_b": scale_b}
    assert course(a, b, row=2, column=1, **given).end == Fraction(float(recompute(a, b, **given)[2, 1]))


def test_a_split_parts_behind_its_first_part_at_the_earliest():
    """Until K = 256 both are one chain from zero."""
    a, b = operands(np.float16)
    whole = assumed_schedule(a, b, arch=ARCH)
    for row in range(4):
        at = parting(followed(a, b, whole, row), followed(a, b, replace(whole, split_k=2), row))
        assert at is not None and at.k[0] >= 256 and at.step == at.k[1] // 16 - 1 and at.first != at.second
        halves = [
            mmabits.gemm(a[row : row + 1, part], b[part, :1], instruction="wgmma", arch=ARCH) for part in (slice(256), slice(256, at.k[1]))
        ]
        assert at.second == sum(Fraction(float(half[0, 0])) for half in halves)
        assert at.first == Fraction(
            float(mmabits.gemm(a[row : row + 1, : at.k[1]], b[: at.k[1], :1], instruction="wgmma", arch=ARCH)[0, 0])
        )


def test_orders_of_one_split_part_in_the_sum_of_the_parts():
    a, b = operands(np.float16)
    split = replace(assumed_schedule(a, b, arch=ARCH), split_k=8)
    back = replace(split, order=Order.REVERSE)
    wrong = np.argwhere(recompute(a, b, schedule=split, arch=ARCH) != recompute(a, b, schedule=back, arch=ARCH))
    row, column = wrong[0]
    at = parting(followed(a, b, split, row, column), followed(a, b, back, row, column))
    assert at is not None and at.is_after_k and at.k == (512, 512) and "parts of K are added" in str(at)
    assert parting(followed(a, b, split), followed(a, b, split)) is None


def test_planted_split_3_promoted_every_256_is_located():
    """Until K = 256 both are one chain; then the one goes on, the other promotes, and at K = 352 begins its second part."""
    a, b = operands(E4M3, k=1024, m=40, n=40)
    base = assumed_schedule(a, b, arch=ARCH)
    planted = replace(base, split_k=3, promote_every=256)
    result = recompute(a, b, schedule=planted, arch=ARCH)
    fits = fitting_schedules(a, b, result, arch=ARCH)
    found = along_k(a, b, result, schedule=base, arch=ARCH, fits=fits)
    assert found is not None and found.fitting == planted and len(found.followed) == SAMPLED
    assert all(one.parting is not None and one.parting.k[0] >= 256 and one.parting.k[1] % 32 == 0 for one in found.followed)
    places = [one.parting.k[1] - 1 for one in found.followed]
    histogram = dict(found.histogram)
    assert found.histogram[0] == ("k = 0 to 255", 0) and sum(histogram.values()) == SAMPLED
    assert histogram["k = 256 to 319"] == sum(256 <= place < 320 for place in places) > SAMPLED // 2
    assert f"{SAMPLED} of {found.differing:,} differing elements" in found.words[0] and planted.words in found.words[0]
    assert found.as_json["along_k"]["followed"][0]["parts_by_k"] == found.split.k[1]
    assert f"they part by K = {found.split.k[1]}" in error_chart(found) and parting_chart(found).startswith("<svg")


def test_another_order_is_counted_behind_k():
    a, b = operands(np.float16, m=6)
    base = replace(assumed_schedule(a, b, arch=ARCH), split_k=8)
    tree = replace(base, order=Order.NEIGHBOURS)
    found = along_k(
        a, b, recompute(a, b, schedule=tree, arch=ARCH), schedule=base, arch=ARCH, fits=[Fit(schedule=tree, differing=0, elements=60)]
    )
    assert found is not None
    assert found.histogram == (("k = 0 to 511", 0), ("sum of the parts", len(found.followed)))
    assert "they part in the sum of the parts" in error_chart(found)


def test_an_equal_result_has_nothing_to_tell():
    a, b = operands(np.float16, k=32)
    plan = assumed_schedule(a, b, arch=ARCH)
    assert along_k(a, b, recompute(a, b, schedule=plan, arch=ARCH), schedule=plan, arch=ARCH) is None


def test_without_a_fit_nothing_is_claimed_and_large_differences_are_bounded():
    a, b = operands(np.float16, k=128)
    plan = assumed_schedule(a, b, arch=ARCH)
    result = recompute(a, b, schedule=plan, arch=ARCH)
    result[2, 3] = np.nextafter(result[2, 3], np.float32(np.inf))
    result[5, 6] *= 2
    result[7, 8] = np.inf
    found = along_k(a, b, result, schedule=plan, arch=ARCH, fits=[Fit(schedule=plan, differing=3, elements=120)])
    assert found is not None and found.fitting is None and found.histogram == () and found.split is None and parting_chart(found) == ""
    assert [(one.row, one.column, one.latest) for one in found.followed] == [(2, 3, 7), (5, 6, -1), (7, 8, None)]
    text = " ".join(found.words)
    assert "does not tell which step" in text and "last step alone could make it: 1." in text and "more than all steps together" in text
    assert "not finite: 1." in text and "recorded" in error_chart(found)


def test_a_narrower_result_is_not_bounded():
    a, b = operands(np.float16, k=128)
    plan = assumed_schedule(a, b, arch=ARCH)
    result = recompute(a, b, schedule=plan, arch=ARCH, dtype=np.float16)
    result[0, 0] *= 2
    found = along_k(a, b, result, schedule=plan, arch=ARCH)
    assert found is not None and found.recorded is None and found.followed[0].latest is None
    assert "the result is not the accumulator itself" in " ".join(found.words)


@pytest.mark.parametrize("switch", [64, 128, 240])
def test_a_sum_that_goes_on_more_exactly_is_never_bounded_before_it_parts(switch):
    """A what-if keeps 16 bits; from one step on the "hardware" keeps as many as a real one, so it loses less in each."""
    mmabits.what_if("steps-f16", base=ARCH, rows={"wgmma.f16.f32": {"fraction_bits": 16, "result_fraction_bits": 16}})
    a, b = operands(np.float16, k=256)
    plan = assumed_schedule(a, b, arch=ARCH)
    held = mmabits.gemm(a[:, :switch], b[:switch], instruction="wgmma", arch="steps-f16")
    result = mmabits.gemm(a[:, switch:], b[switch:], held, instruction="wgmma", arch=ARCH)
    emulated = mmabits.gemm(a, b, instruction="wgmma", arch="steps-f16")
    assert np.count_nonzero(result != emulated) > 100
    for row in range(12):
        chain = followed(a, b, plan, row, arch="steps-f16").traces[0]
        assert latest_step(chain, Fraction(float(result[row, 0]))) >= switch // 16


def test_the_larger_the_difference_the_earlier_the_step():
    a, b = operands(np.float16, k=256)
    chain = followed(a, b, assumed_schedule(a, b, arch=ARCH), 5, 5).traces[0]
    end = chain.result.value
    steps = [latest_step(chain, end + sign * Fraction(2) ** exponent) for sign in (1, -1) for exponent in range(-40, 0)]
    assert steps[:40] == steps[40:] == sorted(steps[:40], reverse=True)
    assert steps[0] == 15 and steps[39] == -1 and len(set(steps)) >= 4
    assert latest_step(chain, end) == 15


def test_infinities_stop_a_course_and_part_it():
    a, b = operands(np.float16, k=64)
    plan = assumed_schedule(a, b, arch=ARCH)
    b[40, 0] = np.inf
    found = followed(a, b, plan)
    assert [point.k for point in found.points] == [16, 32] and found.stops == 48 and found.end is None and found.exact is None
    clean = b.copy()
    clean[40, 0] = 1
    at, back = parting(found, followed(a, clean, plan)), parting(followed(a, clean, plan), found)
    assert (at.k, at.step, at.first) == ((32, 48), 2, None) and (back.k, back.step, back.second) == ((32, 48), 2, None)
    assert at.second == back.first == followed(a, clean, plan).points[2].value
    assert "not finite" in str(at)


def test_an_element_without_a_finite_step_has_an_empty_course():
    a, b = np.ones((2, 64), np.float16), np.ones((64, 2), np.float16)
    a[0, 0] = np.nan
    found = course(a, b, schedule=assumed_schedule(a, b, arch="sm_90a"), arch="sm_90a", row=0, column=1)
    assert [point.value for point in found.points if point.k] == [] and found.end is None


def test_courses_of_different_elements_are_refused():
    a, b = operands(np.float16, k=32)
    plan = assumed_schedule(a, b, arch=ARCH)
    with pytest.raises(OperandError, match=r"different elements: \[0, 0\] and \[1, 0\]"):
        parting(followed(a, b, plan), followed(a, b, plan, 1))
    with pytest.raises(OperandError, match=r"element \[12, 0\] of a product of 12 x 10"):
        followed(a, b, plan, 12)
    with pytest.raises(OperandError, match=r"got a result \(3, 3\)"):
        along_k(a, b, np.zeros((3, 3), np.float32), schedule=plan, arch=ARCH)


def test_bins_hold_every_place_once():
    assert list(binned([0, 5, 31], size=64, unit=1)) == [
        ("k = 0 to 3", 1), ("k = 4 to 7", 1), ("k = 8 to 27", 0), ("k = 28 to 31", 1), ("k = 32 to 63", 0),
    ]  # fmt: skip
    assert list(binned([2], size=3, unit=1, name="step ")) == [("step 0 to 1", 0), ("step 2", 1)]
    assert list(binned([70], size=100, unit=32)) == [("k = 0 to 63", 0), ("k = 64 to 95", 1), ("k = 96 to 99", 0)]


def test_bounds_in_words():
    said = list(bounds([7, 7, 3, 5, -1, None], 8))
    assert said[0].endswith(": 2.") and ": 2, the first of them in step 3 of 0 to 7" in said[1] and said[2].endswith(": 1.")
    assert len(said) == 4 and list(bounds([0], 1)) == ["So small a difference that the last step alone could make it: 1."]


@pytest.mark.parametrize("value", [1.0, 1.5, 3.999, 2.0**-130, 2.0**-149, 6.1e-5])
def test_an_ulp_is_numpys(value):
    assert ulp_at(Fraction(float(np.float32(value))), format_spec("f32")) == Fraction(float(np.spacing(np.float32(value))))


def test_the_page_has_the_section_where_something_is_told():
    a, b = operands(np.float16, m=70)
    base = assumed_schedule(a, b, arch=ARCH)
    result = recompute(a, b, schedule=replace(base, split_k=4), arch=ARCH)
    run = Run(case="planted", arch=ARCH, call="a test", kind="emulator", gpu="none", a=a, b=b, result=result)
    found = compare_product(run)
    along = found.detail(AlongK)
    left_out = replace(found, details=tuple(one for one in found.details if not isinstance(one, AlongK)))
    without, page = differences_page([left_out]), differences_page([found])
    assert "Along K" not in without and "error against K" not in without
    assert page.count("<svg") == without.count("<svg") + 2 and "error against K" in page
    assert all(text in page for text in along.words) and f"they part by K = {along.split.k[1]}" in page
    assert f"{sum(map(sum, found.found.tiles)):,} of 700 elements differ" in page
