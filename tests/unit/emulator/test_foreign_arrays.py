"""NumPy arrays that are not plain ones: right, or refused with the reason."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.isa import OperandTypeError
from mmabits.research.testing import assert_within_tolerance

TF32 = {"instruction": "mma.sync", "arch": "sm_80"}
A = np.random.default_rng(5).standard_normal((16, 16)).astype(np.float32)
WANT = mmabits.gemm(A, A, A, **TF32)


@pytest.mark.parametrize(
    "same",
    [
        np.matrix, np.asfortranarray, lambda a: a.copy()[::-1, ::-1][::-1, ::-1], lambda a: np.repeat(a, 2, 0)[::2],
        lambda a: np.frombuffer(b"?" + a.tobytes(), np.uint8)[1:].view(np.float32).reshape(a.shape),
    ],
    ids=["matrix", "fortran", "negative strides", "strided", "not aligned"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_layouts_and_subclasses_of_the_same_numbers(same) -> None:
    given = same(A)
    np.testing.assert_array_equal(mmabits.gemm(given, given, given, **TF32), WANT)
    np.testing.assert_array_equal(mmabits.encode(given, "f32").view(np.float32), A)
    np.testing.assert_array_equal(mmabits.decode(given, "f32"), A.astype(np.float64))


def test_a_mask_is_not_lost_in_silence() -> None:
    masked = np.ma.masked_array(A, mask=A > 0)
    for name, call in {
        "a": lambda: mmabits.gemm(masked, A, **TF32), "c": lambda: mmabits.gemm(A, A, masked, **TF32),
        "values": lambda: mmabits.encode(masked, "e4m3"), "codes": lambda: mmabits.decode(masked, "f32"),
        "block scales": lambda: mmabits.layouts.swizzle_scales(masked), "b": lambda: mmabits.tolerance(A, masked, **TF32),
        "d": lambda: assert_within_tolerance(masked, A, A, A, **TF32),
    }.items():  # fmt: skip
        with pytest.raises(
            OperandTypeError, match=rf"^{name} must be a plain array, got numpy.ma.MaskedArray, whose mask .* filled\(value\)"
        ):
            call()


def test_swapped_bytes_are_refused_or_read_as_the_numbers_they_are() -> None:
    swapped = A.astype(">f4")
    np.testing.assert_array_equal(mmabits.encode(swapped, "e4m3"), mmabits.encode(A, "e4m3"))
    np.testing.assert_array_equal(mmabits.decode(np.array([0x3F80, 0x4000], ">u2"), "bf16"), [1.0, 2.0])
    assert not mmabits.tolerance(A, A, A, **TF32).violations(WANT.astype(">f4")).any()
    with pytest.raises(OperandTypeError, match=r"b has dtype >f4; .*its bytes are swapped: pass b.astype\('<f4'\)"):
        mmabits.tolerance(A, swapped, **TF32)
    with pytest.raises(OperandTypeError, match="codes of f32 must be float32 or unsigned integers, got >f4"):
        mmabits.decode(swapped, "f32")


@pytest.mark.parametrize("dtype", [np.complex64, object, "M8[s]", [("x", np.float32)], np.dtype("U3")], ids=str)
def test_results_that_are_no_real_numbers_have_no_distance(dtype) -> None:
    """A complex one would lose its imaginary part on the way to float64."""
    given = np.zeros((16, 16), dtype)
    allowed = mmabits.tolerance(A, A, **TF32)
    for call in (lambda: allowed.violations(given), lambda: assert_within_tolerance(given, A, A, **TF32)):
        with pytest.raises(OperandTypeError, match=r"^d must be of real numbers, got dtype"):
            call()


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.longdouble, np.int32, np.bool_, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_results_of_any_real_type_have_one(dtype) -> None:
    zeros = np.zeros((4, 8), np.float32)
    allowed = mmabits.tolerance(zeros, zeros.T.copy(), **TF32)
    assert allowed.violations(np.ones((4, 4), dtype)).all() and not allowed.violations(np.zeros((4, 4), dtype)).any()


@pytest.mark.parametrize("nested", [[[1], [1, 2]], [["a"], [1, [2]]]], ids=["ragged", "deep"])
def test_what_numpy_makes_no_array_of(nested) -> None:
    with pytest.raises(OperandTypeError, match="codes must be an array of numbers: "):
        mmabits.decode(nested, "e4m3")
