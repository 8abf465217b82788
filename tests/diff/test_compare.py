"""Planted differences are classed, counted by ulp and located."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from mmabits.conformance.diff import Kind, compare
from mmabits.isa import OperandError, OperandTypeError

FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)


def matrix(dtype, shape=(70, 100)):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def bits(array):
    return array.view(f"uint{8 * array.dtype.itemsize}")


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_class_is_told_apart(dtype):
    left = matrix(dtype)
    left[:6, 3] = [0.0, 1.0, np.nan, np.nan, np.inf, np.inf]
    right = left.copy()
    right[0, 3] = -0.0
    bits(right)[1, 3] += 7
    bits(right)[2, 3] ^= 1
    right[3, 3] = 2
    right[4, 3] = 5
    right[5, 3] = -np.inf
    found = compare(left, right)
    expected = [Kind.ZERO_SIGN, Kind.VALUE, Kind.NAN_PAYLOAD, Kind.NAN, Kind.INFINITY, Kind.VALUE]
    assert [(one.row, one.column, one.kind) for one in found.first] == [(row, 3, kind) for row, kind in enumerate(expected)]
    assert found.differing == 6 and found.elements == 7000
    assert found.counts == {
        Kind.EQUAL: 6994,
        Kind.VALUE: 2,
        **dict.fromkeys((Kind.ZERO_SIGN, Kind.NAN_PAYLOAD, Kind.NAN, Kind.INFINITY), 1),
    }
    assert found.first[1].ulp == 7 and found.first[0].ulp is None
    infinity = int(bits(np.array([np.inf], dtype))[0])
    assert found.largest_ulp == 2 * infinity
    assert sum(part.count for part in found.ulps) == 2


def test_ulp_are_counted_through_zero_and_binned_by_powers_of_ten():
    left = np.zeros((1, 5), np.float32)
    right = left.copy()
    bits(left)[0] = [1, 0x3F800000, 0x3F800000, 0x3F800000, 0x40000000]
    bits(right)[0] = [0x80000001, 0x3F800001, 0x3F800009, 0x3F80000A, 0x40000000 - 1000]
    found = compare(left, right)
    assert [one.ulp for one in found.first] == [2, 1, 9, 10, 1000]
    assert [(part.low, part.high, part.count) for part in found.ulps] == [(1, 1, 1), (2, 9, 2), (10, 99, 1), (100, 999, 0), (1000, 9999, 1)]


def test_integers():
    left = np.array([[0, 5, -(2**31)]], np.int32)
    found = compare(left, np.array([[0, -5, 2**31 - 1]], np.int32))
    assert [(one.kind, one.ulp) for one in found.first] == [(Kind.VALUE, 10), (Kind.VALUE, 2**32 - 1)]
    assert found.first[0].emulated == "0xfffffffb" and found.first[0].emulated_value == "-5"


def test_a_corrupted_tile_is_located():
    left = matrix(np.float32, (130, 200))
    right = left.copy()
    bits(right)[64:128, 128:192] ^= 1
    found = compare(left, right)
    assert found.tiles == ((0, 0, 0, 0), (0, 0, 64 * 64, 0), (0, 0, 0, 0))
    assert found.differing == 64 * 64 and found.counts[Kind.VALUE] == 64 * 64
    assert len(found.first) == 16 and (found.first[0].row, found.first[0].column) == (64, 128)
    assert compare(left, right, tile=(130, 100)).tiles == ((0, 4096),)


def test_equal_results():
    left = matrix(np.float16)
    left[0, 0] = np.nan
    found = compare(left, left.copy())
    assert found.is_equal and found.ulps == () and found.first == () and found.largest_ulp == 0


def test_refusals():
    left = matrix(np.float32)
    with pytest.raises(OperandTypeError, match="float32 and float16"):
        compare(left, left.astype(np.float16))
    with pytest.raises(OperandTypeError, match="complex64"):
        compare(left.astype(np.complex64), left.astype(np.complex64))
    with pytest.raises(OperandError, match="one shape"):
        compare(left, left[:5])
    with pytest.raises(OperandError, match="tile"):
        compare(left, left, tile=(0, 64))
