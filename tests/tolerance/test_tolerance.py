"""Bounds are never exceeded by the engine, are exceeded by kernels with a bug, and are small enough to be of use."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import operands
import pytest

import mmabits
from mmabits.emulator.codecs import from_codes
from mmabits.isa import OperandError, instructions
from mmabits.research.testing import ToleranceExceeded, assert_within_tolerance
from mmabits.research.tolerance import tolerance_of_shape

_FP8 = ml_dtypes.float8_e4m3fn
_LINES = [line for line in instructions() if line.modelled and line.example is not None]
_UNITS = list({(line.datapath, line.machine, line.scale): line for line in _LINES}.values())
_KINDS = ("plain", "wide", "cancelling", "sparse", "edge", "raw_finite", "raw")


def _product(line, kind, shape, rng):
    """Operands of one distribution as arrays, and the arguments that go with them."""
    row, (m, n, k) = line.example, shape
    drawn = operands.draw_pair(kind, row.a_type.name, row.b_type.name, max(m, n), k, rng, c_format=row.c_type.name)
    a, b = drawn.a[:m], drawn.b[:n].T
    c = operands.draw("plain" if kind != "wide" else "wide", row.c_type.name, (m, n), rng)
    given = {"instruction": row, "arch": line.arch}
    if row.scale_type is not None:
        blocks = -(-k // row.block)
        scales = [operands.draw_scales(kind, row.scale_type.name, (size, blocks), rng) for size in (m, n)]
        given["scale_a"] = from_codes(scales[0], row.scale_type)
        given["scale_b"] = np.ascontiguousarray(from_codes(scales[1], row.scale_type).T)
    arrays = from_codes(a, row.a_type), np.ascontiguousarray(from_codes(b, row.b_type)), from_codes(c, row.c_type)
    return arrays, given


def _count_violations(line, kind, shape, rng, **more):
    arrays, given = _product(line, kind, shape, rng)
    d = mmabits.gemm(*arrays, **given, **more)
    allowed = mmabits.tolerance(*arrays, **given, **more)
    return int(allowed.violations(d).sum()), int(np.isfinite(allowed.bound).sum())


@pytest.mark.parametrize("line", _UNITS, ids=lambda line: f"{line.arch}-{line.example.ptx}")
def test_the_engine_stays_inside_on_every_unit(line):
    rng = operands.generator("tolerance", line.arch, line.example.ptx)
    k = line.example.k
    bounded = 0
    for kind in _KINDS:
        violations, finite = _count_violations(line, kind, (12, 9, 3 * k + 1), rng)
        assert violations == 0, kind
        bounded += finite
    assert bounded > 2 * 12 * 9, "most bounds are infinite and say nothing"


def test_the_engine_stays_inside_with_promotion():
    rng = operands.generator("tolerance promotion")
    for line in _UNITS:
        if line.example.d_type.name == "f32" and line.arch in ("sm_89", "sm_90a", "sm_100a"):
            for kind in ("plain", "wide", "cancelling", "edge", "raw"):
                assert _count_violations(line, kind, (8, 8, 4 * line.example.k), rng, promote_every=2 * line.example.k)[0] == 0


@pytest.mark.slow
def test_ten_million_results_of_the_engine_stay_inside():
    """Ten million with a finite bound: where a result may overflow, the bound is infinite and says nothing."""
    rng = operands.generator("tolerance ten million")
    seen, number = 0, 0
    while seen < 10_000_000:
        line, kind = _UNITS[number % len(_UNITS)], _KINDS[number // len(_UNITS) % len(_KINDS)]
        violations, bounded = _count_violations(line, kind, (192, 192, int(rng.integers(1, 5)) * line.example.k), rng)
        assert violations == 0, (line.example.ptx, line.arch, kind)
        seen, number = seen + bounded, number + 1


@pytest.mark.parametrize("probability", [1e-6, 1e-3])
def test_the_probable_bound_is_exceeded_no_oftener_than_it_says(probability):
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((96, 2048)).astype(_FP8), rng.standard_normal((2048, 96)).astype(_FP8)
    given = {"instruction": "wgmma", "arch": "sm_90a"}
    likely = mmabits.tolerance(a, b, probability=probability, **given)
    worst = mmabits.tolerance(a, b, **given)
    assert likely.violations(mmabits.gemm(a, b, **given)).mean() <= probability
    assert (likely.bound <= worst.bound).all()
    assert np.median(likely.bound) < np.median(worst.bound) / 3


def test_bounds_are_of_use():
    """On ordinary data, K = 128: within a factor of what was seen, and small beside the result."""
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((64, 128)), rng.standard_normal((128, 64))
    for arch, name, dtype, relative in (
        ("sm_90a", "wgmma", _FP8, 1e-3),
        ("sm_100a", "tcgen05.mma", _FP8, 1e-6),
        ("sm_80", "mma.sync", np.float16, 3e-6),
    ):
        left, right = a.astype(dtype), b.astype(dtype)
        allowed = mmabits.tolerance(left, right, instruction=name, arch=arch)
        assert np.median(allowed.bound) < relative * np.sqrt((allowed.reference**2).mean())
        exact = left.astype(np.float64) @ right.astype(np.float64)
        np.testing.assert_array_equal(allowed.reference, exact)


def test_the_bound_from_shape_and_magnitudes_covers_every_product_of_that_shape():
    rng = np.random.default_rng(5)
    for arch, name in (("sm_90a", "wgmma"), ("sm_100a", "tcgen05.mma"), ("sm_89", "mma.sync")):
        loose = tolerance_of_shape(512, amax_a=4.0, amax_b=2.0, amax_c=3.0, instruction=name, arch=arch)
        assert np.isfinite(loose)
        for sign in (1, -1):
            a = np.clip(rng.standard_normal((16, 512)) * 2, -4 if sign < 0 else 0, 4).astype(_FP8)
            b = np.clip(rng.standard_normal((512, 16)), -2 if sign < 0 else 0, 2).astype(_FP8)
            c = np.clip(rng.standard_normal((16, 16)), -3, 3).astype(np.float32)
            allowed = mmabits.tolerance(a, b, c, instruction=name, arch=arch)
            d = mmabits.gemm(a, b, c, instruction=name, arch=arch)
            assert (allowed.bound <= loose).all()
            assert (np.abs(d - allowed.reference) <= loose).all()


@pytest.mark.parametrize("amax", ["x", None, True, [1.0], -1.0, float("inf"), float("nan"), 10**400])
def test_a_magnitude_is_a_finite_number(amax):
    given = {"amax_a": 1.0, "amax_b": 1, "amax_c": np.float32(2), "instruction": "wgmma", "arch": "sm_90a"}
    assert tolerance_of_shape(32, **given) > 0
    for name in ("amax_a", "amax_b", "amax_c"):
        with pytest.raises(mmabits.MmabitsError, match=f"{name} must be a finite magnitude, got"):
            tolerance_of_shape(32, **given | {name: amax})


# Planted bugs ------------------------------------------------------------------------------------------------------------

_GIVEN = {"instruction": "wgmma", "arch": "sm_90a"}


def _inputs():
    rng = np.random.default_rng(6)
    a, b = np.abs(rng.standard_normal((64, 1024))).astype(_FP8), np.abs(rng.standard_normal((1024, 64))).astype(_FP8)
    c = rng.standard_normal((64, 64)).astype(np.float32)
    return a, b, c


def _last_element_dropped(a, b, c):
    return mmabits.gemm(a[:, :-1].copy(), b[:-1].copy(), c, **_GIVEN)


def _a_tile_of_k_twice(a, b, c):
    return mmabits.gemm(np.hstack([a, a[:, :32]]), np.vstack([b, b[:32]]), c, **_GIVEN)


def _c_added_twice(a, b, c):
    return mmabits.gemm(a, b, 2 * c, **_GIVEN)


def _c_forgotten(a, b, c):
    return mmabits.gemm(a, b, **_GIVEN)


def _f16_accumulator(a, b, c):
    return mmabits.gemm(a, b, c.astype(np.float16), instruction="wgmma", arch="sm_90a").astype(np.float32)


def _chain_of_hopper_where_promotion_was_promised(a, b, c):
    return mmabits.gemm(a, b, c, **_GIVEN)


def _two_rows_exchanged(a, b, c):
    d = mmabits.gemm(a, b, c, **_GIVEN)
    return d[[1, 0, *range(2, len(d))]]


def _two_elements_of_k_exchanged_in_b(a, b, c):
    return mmabits.gemm(a, b[[1, 0, *range(2, len(b))]], c, **_GIVEN)


def _e5m2_read_as_e4m3(a, b, c):
    return mmabits.gemm(a.view(np.uint8).view(ml_dtypes.float8_e5m2), b, c, **_GIVEN)


def _result_rounded_to_bf16(a, b, c):
    return mmabits.gemm(a, b, c, **_GIVEN, promote_every=128).astype(ml_dtypes.bfloat16).astype(np.float32)


def _one_nan(a, b, c):
    d = mmabits.gemm(a, b, c, **_GIVEN)
    d[3, 5] = np.nan
    return d


_BUGS = [
    _last_element_dropped, _a_tile_of_k_twice, _c_added_twice, _c_forgotten, _f16_accumulator,
    _chain_of_hopper_where_promotion_was_promised, _two_rows_exchanged, _two_elements_of_k_exchanged_in_b, _e5m2_read_as_e4m3,
    _result_rounded_to_bf16, _one_nan,
]  # fmt: skip


def test_a_kernel_without_a_bug_passes():
    a, b, c = _inputs()
    assert_within_tolerance(mmabits.gemm(a, b, c, **_GIVEN, promote_every=128), a, b, c, **_GIVEN, promote_every=128)


@pytest.mark.parametrize("bug", _BUGS, ids=lambda bug: bug.__name__.strip("_"))
def test_each_planted_bug_is_found_and_explained(bug):
    """The kernel promises promotion every 128 elements, and has a bug."""
    a, b, c = _inputs()
    with pytest.raises(ToleranceExceeded) as caught:
        assert_within_tolerance(bug(a, b, c), a, b, c, **_GIVEN, promote_every=128)
    text = str(caught.value)
    assert "of 4096 elements lie farther from the exact result than wgmma" in text
    assert "step 0: k = 0..31, largest exponent" in text


# Infinities and NaN ------------------------------------------------------------------------------------------------------

_OTHERS = (np.nan, np.inf, -np.inf, 0.0, 123.0, np.finfo(np.float32).max)


def _allowed(tolerance, reference=None):
    """Which of `_OTHERS` and the exact result are inside, of a product of one element."""
    tried = _OTHERS if reference is None else (*_OTHERS, reference)
    return [value for value in tried if not tolerance.violations(np.full(tolerance.bound.shape, value)).any()]


def _is_exactly(found, wanted):
    return str(found) == str(wanted)  # nan is not equal to itself


@pytest.mark.parametrize(
    ("a", "b", "c", "wanted"),
    [
        ([np.nan, 1], [0, 1], 0, np.nan), ([1, 1], [1, np.nan], 0, np.nan), ([1, 1], [1, 1], np.nan, np.nan),
        ([np.inf, 1], [0, 1], 0, np.nan), ([0, 1], [-np.inf, 1], 0, np.nan), ([np.inf, np.inf], [1, -1], 0, np.nan),
        ([-np.inf, 1], [2, 1], np.inf, np.nan), ([np.inf, 1], [2, 1], 0, np.inf), ([-np.inf, 1], [-np.inf, 1], 0, np.inf),
        ([1, np.inf], [1, -3], 0, -np.inf), ([2, 1], [-np.inf, 1], -np.inf, -np.inf), ([1, 1], [1, 1], -np.inf, -np.inf),
    ],
)  # fmt: skip
def test_where_the_exact_result_is_not_finite_it_alone_is_inside(a, b, c, wanted):
    """The classes of IEEE 754: NaN of a NaN, of 0 x infinity and of infinities of both signs."""
    given = np.array([a]), np.array([b]).T, np.array([[c]])
    for dtype, more in (
        (ml_dtypes.float8_e5m2, {}),
        (np.float16, {}),
        (ml_dtypes.bfloat16, {}),
        (ml_dtypes.float8_e5m2, {"promote_every": 32}),
    ):
        allowed = mmabits.tolerance(given[0].astype(dtype), given[1].astype(dtype), given[2].astype(np.float32), **_GIVEN, **more)
        assert _is_exactly(_allowed(allowed), [wanted])
        assert _is_exactly(allowed.reference[0, 0], np.float64(wanted))
        assert allowed.bound[0, 0] == np.inf


def test_a_lost_nan_and_a_wrong_infinity_are_found_and_explained():
    a, b, _ = _inputs()
    a = a.astype(ml_dtypes.float8_e5m2)
    a[2, 3], a[7, 0] = np.nan, np.inf
    d = mmabits.gemm(a, b, **_GIVEN)
    assert_within_tolerance(d, a, b, **_GIVEN)
    for row, wrong, text in ((2, 123.0, "allowed NaN alone"), (2, np.inf, "allowed NaN alone"), (7, -d[7], "allowed +infinity alone"),
                             (7, np.nan, "allowed +infinity alone"), (8, np.inf, "away\n")):  # fmt: skip
        bad = d.copy()
        bad[row] = wrong
        with pytest.raises(ToleranceExceeded) as caught:
            assert_within_tolerance(bad, a, b, **_GIVEN)
        assert "64 of 4096 elements lie farther from the exact result than wgmma" in str(caught.value)
        assert text in str(caught.value)


def _f16(*values):
    return np.array([values], np.float16), np.ones((len(values), 1), np.float16)


@pytest.mark.parametrize("sign", [1, -1])
def test_an_accumulator_that_may_overflow_may_be_finite_near_the_exact_result_or_that_infinity(sign):
    """65504 is the largest f16: from 65520 on a sum is rounded to infinity."""
    a, b = _f16(*[sign * 60000.0, sign * 5024.0])
    c = np.zeros((1, 1), np.float16)
    given = {"instruction": "wgmma", "arch": "sm_90a"}
    assert mmabits.gemm(a, b, c, **given)[0, 0] == sign * 65024.0
    a[0, 1] = sign * 5504.0
    assert _allowed(mmabits.tolerance(a, b, c, **given), sign * 65504.0) == [sign * np.inf, sign * 65504.0]
    assert mmabits.gemm(a, b, c, **given)[0, 0] == sign * 65504.0
    a[0, 1] = sign * 6000.0
    allowed = mmabits.tolerance(a, b, c, **given)
    assert mmabits.gemm(a, b, c, **given)[0, 0] == sign * np.inf
    assert _allowed(allowed) == [sign * np.inf]
    assert allowed.bound[0, 0] == np.inf


def test_infinities_of_both_signs_by_overflow_may_meet_where_chains_are_added():
    """Each chain of 32 overflows its way; one chain through all of K cannot come back from its infinity."""
    a, b = np.full((1, 64), 3e38, ml_dtypes.bfloat16), np.full((64, 1), 2, ml_dtypes.bfloat16)
    a[0, 32:] *= -1
    promoted, chained = (mmabits.tolerance(a, b, **_GIVEN, promote_every=every) for every in (32, None))
    assert np.isnan(mmabits.gemm(a, b, **_GIVEN, promote_every=32)[0, 0])
    assert not promoted.violations(np.full((1, 1), np.nan)).any()
    assert mmabits.gemm(a, b, **_GIVEN)[0, 0] == np.inf
    assert chained.violations(np.full((1, 1), np.nan)).all()
    assert not chained.violations(np.full((1, 1), np.inf)).any()
    # An infinity among the operands meets one by overflow.
    a[0, 0] = np.inf
    assert np.isnan(mmabits.gemm(a, b, **_GIVEN, promote_every=32)[0, 0])
    assert _is_exactly(_allowed(mmabits.tolerance(a, b, **_GIVEN, promote_every=32)), [np.nan, np.inf])


def test_integers_are_never_nan_nor_infinite():
    a, b = np.full((1, 32), 127, np.int8), np.full((32, 1), 127, np.int8)
    for c, near in ((0, 32 * 127**2), (2**31 - 1, -1.0)):
        allowed = mmabits.tolerance(a, b, np.full((1, 1), c, np.int32), **_GIVEN)
        assert allowed.violations(np.full((1, 1), np.nan)).all()
        assert allowed.violations(np.full((1, 1), np.inf)).all()
        assert not allowed.violations(np.full((1, 1), near)).any()


def test_what_is_not_finite_has_no_bound():
    a, b, _ = _inputs()
    a = a.copy()
    a[2, 3] = np.nan
    allowed = mmabits.tolerance(a, b, **_GIVEN)
    assert np.isinf(allowed.bound[2]).all()
    assert np.isfinite(allowed.bound[3]).all()


@pytest.mark.parametrize("probability", [0, 1, -0.5, 2, "half"])
def test_a_probability_lies_between_0_and_1(probability):
    a, b, _ = _inputs()
    with pytest.raises(OperandError, match="probability must lie between 0 and 1"):
        mmabits.tolerance(a, b, **_GIVEN, probability=probability)


def test_a_result_of_another_shape_is_refused():
    a, b, _ = _inputs()
    with pytest.raises(OperandError, match=r"the result has shape \(3,\), the product \(64, 64\)"):
        mmabits.tolerance(a, b, **_GIVEN).violations(np.zeros(3))


def test_batches_are_products_of_their_own():
    rng = np.random.default_rng(8)
    a, b = rng.standard_normal((3, 4, 64)).astype(_FP8), rng.standard_normal((64, 5)).astype(_FP8)
    together = mmabits.tolerance(a, b, **_GIVEN)
    for i in range(3):
        np.testing.assert_array_equal(together.bound[i], mmabits.tolerance(a[i], b, **_GIVEN).bound)


def _stays_inside(a, b, c, **given):
    allowed = mmabits.tolerance(a, b, c, **given)
    assert np.isfinite(allowed.bound).all()
    d = mmabits.gemm(a, b, c, **given)
    assert not allowed.violations(d).any()
    return d, allowed


def test_a_subnormal_accumulator_has_the_exponent_of_the_smallest_normal():
    """Its own exponent would promise finer alignment than there is: every product here is cut to nothing."""
    small = np.full((1, 32), 2.0**-14).astype(ml_dtypes.float8_e5m2)
    d, allowed = _stays_inside(small, small.T.copy(), np.full((1, 1), 2.0**-24, np.float16), instruction="wgmma", arch="sm_90a")
    assert d[0, 0] == 2.0**-24
    assert allowed.reference[0, 0] == 2.0**-24 + 32 * 2.0**-28
    a, b = np.full((1, 16), 1.9 * 2.0**-75).astype(ml_dtypes.bfloat16), np.full((16, 1), 1.9 * 2.0**-76).astype(ml_dtypes.bfloat16)
    d, _ = _stays_inside(a, b, np.full((1, 1), 2.0**-149, np.float32), instruction="wgmma", arch="sm_90a")
    assert d[0, 0] < allowed.reference[0, 0]


@pytest.mark.parametrize(("modifier", "sign"), [("negA", -1), ("negB", -1), ("negA.negB", 1)])
def test_operands_that_the_instruction_negates_are_negated_in_the_exact_result(modifier, sign):
    a, b = np.full((4, 16), 1.5, np.float16), np.ones((16, 4), np.float16)
    name = f"wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16.{modifier}"
    d, allowed = _stays_inside(a, b, None, instruction=name, arch="sm_90a")
    assert (allowed.reference == sign * 24).all()
    assert (d == sign * 24).all()


def test_a_double_below_the_smallest_is_rounded_once_by_the_unit_and_twice_by_the_exact_result():
    a, b, c = (np.array([[value]]) for value in (2.0**-537, 2.0**-538, 2.0**-1074))
    d, allowed = _stays_inside(a, b, c, instruction="mma.sync.aligned.m16n8k8.row.col.rn.f64.f64.f64.f64", arch="sm_90a")
    assert d[0, 0] == 2 * 2.0**-1074
    assert allowed.reference[0, 0] == 2.0**-1074


def test_padding_that_cuts_the_accumulator_of_a_what_if_row_is_counted():
    """2464 at exponent 10 becomes 2304, whose own exponent is 11: the next step, all zeros, makes it 2048."""
    mmabits.what_if("tolerance-f2", base="sm_90a", rows={"wgmma.f8.f32": {"fraction_bits": 2, "step": 16}})
    a, b = np.array([[57344.0]]).astype(ml_dtypes.float8_e5m2), np.array([[0.04296875]]).astype(_FP8)
    d, allowed = _stays_inside(a, b, None, instruction="wgmma", arch="tolerance-f2")
    assert d[0, 0] == 2048
    assert allowed.reference[0, 0] == 2464


def test_results_may_be_torch_tensors_of_any_real_dtype():
    torch = pytest.importorskip("torch")
    a, b, _ = _inputs()
    allowed = mmabits.tolerance(a, b, **_GIVEN)
    d = torch.from_numpy(mmabits.gemm(a, b, **_GIVEN))
    assert not allowed.violations(d.requires_grad_()).any()
    np.testing.assert_array_equal(allowed.violations(d.to(torch.bfloat16)), allowed.violations(d.to(torch.bfloat16).float()))
    with pytest.raises(ToleranceExceeded, match="4096 of 4096 elements"):
        assert_within_tolerance(d.detach().to(torch.bfloat16) * 2, a, b, **_GIVEN)


def test_the_bound_from_a_shape_promotes_as_gemm_does():
    given = {"amax_a": 4.0, "amax_b": 4.0, "instruction": "wgmma"}
    mmabits.what_if("tolerance-promotes", base="sm_90a", rows={}, promote_every=64)
    promoted = tolerance_of_shape(512, arch="sm_90a", promote_every=64, **given)
    assert tolerance_of_shape(512, arch="tolerance-promotes", **given) == promoted
    assert promoted < tolerance_of_shape(512, arch="sm_90a", **given) / 5
    for wrong, message in ((7, "must be a multiple of the instruction's K = 32, got 7"), (-32, "must be a positive number")):
        with pytest.raises(OperandError, match=message):
            tolerance_of_shape(512, arch="sm_90a", promote_every=wrong, **given)
