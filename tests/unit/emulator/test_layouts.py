"""Packing of fp4 and the 128x4 scale layout."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmabits.emulator.layouts import pack_fp4, swizzle_scales, unpack_fp4, unswizzle_scales
from mmabits.isa.errors import OperandError, OperandTypeError

SEED = 20261121


def test_the_lower_index_is_in_the_low_nibble():
    assert np.array_equal(pack_fp4(np.array([0x1, 0x2, 0xA, 0xF], np.uint8)), [0x21, 0xFA])
    values = np.array([0.5, 6.0, -1.0, -0.0], ml_dtypes.float4_e2m1fn)
    assert np.array_equal(pack_fp4(values), [0x71, 0x8A])


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_unpack_undoes_pack_along_every_axis(axis):
    codes = np.random.default_rng(SEED).integers(0, 16, (4, 6, 2), dtype=np.uint8)
    packed = pack_fp4(codes, axis)
    assert packed.dtype == np.uint8 and packed.shape[axis] == codes.shape[axis] // 2
    assert np.array_equal(
        packed, np.take(codes, range(0, codes.shape[axis], 2), axis) + 16 * np.take(codes, range(1, codes.shape[axis], 2), axis)
    )
    unpacked = unpack_fp4(packed, axis)
    assert unpacked.dtype == ml_dtypes.float4_e2m1fn
    assert np.array_equal(unpacked.view(np.uint8), codes)


def test_every_byte_survives():
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(pack_fp4(unpack_fp4(every)), every)


def test_packing_refuses_what_it_cannot_pack():
    with pytest.raises(OperandError, match=r"pack_fp4 needs an even length along axis -1, got shape \(2, 3\)"):
        pack_fp4(np.zeros((2, 3), np.uint8))
    with pytest.raises(OperandError, match="axis 2 is outside an array of 1 dimensions"):
        pack_fp4(np.zeros(2, np.uint8), axis=2)
    with pytest.raises(OperandError, match="axis -1 is outside an array of 0 dimensions"):
        unpack_fp4(np.uint8(3))
    with pytest.raises(OperandError, match="code 0x10 is outside e2m1"):
        pack_fp4(np.array([0, 16], np.uint8))
    with pytest.raises(OperandTypeError, match="codes of e2m1 must be float4_e2m1fn or unsigned integers, got float32"):
        pack_fp4(np.zeros(2, np.float32))
    with pytest.raises(OperandTypeError, match="packed fp4 must be uint8, got int8"):
        unpack_fp4(np.zeros(2, np.int8))


def offset(row: int, column: int, columns: int) -> int:
    """Where a scale lies, as the layout is published."""
    block = (row // 128) * -(-columns // 4) + column // 4
    return block * 512 + (row % 32) * 16 + ((row // 32) % 4) * 4 + column % 4


@pytest.mark.parametrize("shape", [(1, 1), (128, 4), (129, 5), (300, 9), (64, 16), (257, 3)])
def test_every_scale_is_where_the_layout_says(shape):
    scales = np.random.default_rng(SEED).integers(1, 255, shape, dtype=np.uint8)
    flat = swizzle_scales(scales, pad=255)
    want = np.full(-(-shape[0] // 128) * -(-shape[1] // 4) * 512, 255, np.uint8)
    for row in range(shape[0]):
        for column in range(shape[1]):
            want[offset(row, column, shape[1])] = scales[row, column]
    assert np.array_equal(flat, want)
    assert np.array_equal(unswizzle_scales(flat, *shape), scales)


def test_the_padding_is_code_zero_unless_told():
    flat = swizzle_scales(np.full((1, 1), 0x7F, np.uint8))
    assert flat[0] == 0x7F and np.count_nonzero(flat) == 1


@given(rows=st.integers(0, 260), columns=st.integers(0, 11), batch=st.integers(0, 3))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_batches_are_swizzled_one_by_one(rows, columns, batch):
    scales = np.random.default_rng(SEED).integers(0, 256, (batch, 2, rows, columns), dtype=np.uint8)
    flat = swizzle_scales(scales)
    assert flat.shape == (batch, 2, -(-rows // 128) * -(-columns // 4) * 512)
    for index in range(batch):
        assert np.array_equal(flat[index, 1], swizzle_scales(scales[index, 1]))
    assert np.array_equal(unswizzle_scales(flat, rows, columns), scales)


@pytest.mark.parametrize("dtype", [np.uint8, ml_dtypes.float8_e8m0fnu, ml_dtypes.float8_e4m3fn])
def test_the_dtype_is_kept(dtype):
    scales = np.arange(40, dtype=np.uint8).reshape(10, 4).view(dtype)
    flat = swizzle_scales(scales)
    assert flat.dtype == dtype
    back = unswizzle_scales(flat, 10, 4)
    assert back.dtype == dtype and np.array_equal(back.view(np.uint8), scales.view(np.uint8))
    assert np.array_equal(swizzle_scales(scales[::2]).view(np.uint8), swizzle_scales(scales.view(np.uint8)[::2]))


def test_swizzling_refuses_what_is_no_scale_matrix():
    with pytest.raises(OperandTypeError, match="block scales must be uint8, float8_e8m0fnu, float8_e4m3fn, got float32"):
        swizzle_scales(np.ones((4, 4), np.float32))
    with pytest.raises(OperandError, match=r"scales must have shape \(..., rows, columns\), got \(4,\)"):
        swizzle_scales(np.ones(4, np.uint8))
    with pytest.raises(OperandError, match="pad must be a code from 0 to 255, got 256"):
        swizzle_scales(np.ones((4, 4), np.uint8), pad=256)
    with pytest.raises(OperandError, match=r"scales of 129 rows and 4 columns take 1024 bytes in the 128x4 layout, got shape \(512,\)"):
        unswizzle_scales(np.zeros(512, np.uint8), 129, 4)
    with pytest.raises(OperandError, match="must not be negative, got -1 and 4"):
        unswizzle_scales(np.zeros(512, np.uint8), -1, 4)
