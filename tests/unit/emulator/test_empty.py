"""Products without elements, by one rule: M, N or a batch of 0 give an empty D, K = 0 gives C."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mmabits
from mmabits.emulator.api import dot_rows
from mmabits.emulator.codecs import from_codes
from mmabits.emulator.hooks.session import Session
from mmabits.isa import OperandError, parse
from mmabits.research.testing import assert_within_tolerance

Array = np.ndarray[Any, Any]
INSTRUCTIONS = {
    "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3": "sm_90a",
    "wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16": "sm_90a",
    "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32": "sm_90a",  # two HMMA and an addition
    "mma.sync.aligned.m16n8k32.row.col.f16.e4m3.e4m3.f16": "sm_90a",
    "mma.sync.aligned.m8n8k4.row.col.rn.f64.f64.f64.f64": "sm_80",
    "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32": "sm_80",
    "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n8k32.f32.e5m2.e4m3.ue8m0": "sm_100a",
    "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n8k64.f32.e2m1.e2m1.ue4m3": "sm_100a",
}
SHAPES = {
    "M": ((), 0, 8, 64), "N": ((), 8, 0, 64), "K": ((), 4, 8, 0), "M and K": ((), 0, 8, 0), "all": ((0,), 0, 0, 0),
    "batch": ((0,), 4, 8, 64), "one of two batches": ((3, 0), 4, 8, 64), "K of a batch": ((2, 3), 4, 8, 0),
}  # fmt: skip
C_CODES = {"f32": 0x7FA0_0001, "f16": 0x7D01, "f64": 0x7FF4_0000_0000_0001, "s32": 0x8000_0000}
"""Signalling NaN and the lowest integer: bits that any arithmetic would change."""


def operands_of(text: str, batch: tuple[int, ...], m: int, n: int, k: int) -> dict[str, Array]:
    row = parse(text)
    given = {"a": from_codes(np.zeros((*batch, m, k), f"u{row.a_type.container_bits // 8}"), row.a_type)}
    given["b"] = from_codes(np.zeros((*batch, k, n), f"u{row.b_type.container_bits // 8}"), row.b_type)
    if row.scale_type is not None and row.block is not None:
        blocks = -(-k // row.block)
        given["scale_a"] = from_codes(np.full((*batch, m, blocks), 0x38, np.uint8), row.scale_type)
        given["scale_b"] = from_codes(np.full((*batch, blocks, n), 0x38, np.uint8), row.scale_type)
    return given


def accumulators(text: str, shape: tuple[int, ...]) -> Array:
    form = parse(text).c_type
    codes = np.full(shape, C_CODES[form.name], f"u{form.container_bits // 8}")
    if codes.size:
        codes.reshape(-1)[-1] = 1 << (form.container_bits - 1)  # -0
    return from_codes(codes, form)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("text", INSTRUCTIONS)
def test_gemm(text: str, shape: tuple[tuple[int, ...], int, int, int]) -> None:
    given, arch = operands_of(text, *shape), INSTRUCTIONS[text]
    batch, m, n, _ = shape
    c = accumulators(text, (*batch, m, n))
    d = mmabits.gemm(**given, c=c, instruction=text, arch=arch)
    assert (d.shape, d.dtype) == (c.shape, c.dtype) and d.tobytes() == c.tobytes() and not np.shares_memory(c, d)
    zeros = mmabits.gemm(**given, instruction=text, arch=arch)
    assert (zeros.shape, zeros.dtype) == (c.shape, c.dtype) and not any(zeros.tobytes())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("text", INSTRUCTIONS)
def test_tolerance_is_exact(text: str, shape: tuple[tuple[int, ...], int, int, int]) -> None:
    given, arch = operands_of(text, *shape), INSTRUCTIONS[text]
    batch, m, n, _ = shape
    c = np.full((*batch, m, n), 3, accumulators(text, ()).dtype)
    allowed = assert_within_tolerance(mmabits.gemm(**given, c=c, instruction=text, arch=arch), **given, c=c, instruction=text, arch=arch)
    assert allowed.bound.shape == c.shape and not allowed.bound.any() and (allowed.reference == 3).all()
    assert allowed.violations(np.zeros_like(c)).all()


def test_promotion_and_instructions_that_read_no_c() -> None:
    text = "wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16"
    given = operands_of(text, (), 4, 8, 0)
    c = np.full((4, 8), -0.0, np.float32)
    d = mmabits.gemm(**given, c=c, promote_every=64, instruction=text, arch="sm_90a")
    assert d.dtype == np.float32 and d.tobytes() == c.tobytes()
    unread = mmabits.gemm(**given, c=np.ones((4, 8), np.float16), instruction=f"{text}.scale_d::0", arch="sm_90a")
    assert unread.dtype == np.float16 and not any(unread.tobytes())


@pytest.mark.parametrize("text", INSTRUCTIONS)
def test_one_instruction_takes_an_empty_batch(text: str) -> None:
    row = parse(text)
    given = operands_of(text, (2, 0), row.m, row.n, row.k)
    d = mmabits.mma(text, **given, arch=INSTRUCTIONS[text])
    assert d.shape == (2, 0, row.m, row.n) and d.dtype == accumulators(text, ()).dtype


def test_dot_rows() -> None:
    text = "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3"
    c = np.array([0x7FA0_0001, 0x8000_0000], np.uint32)
    none, nothing = np.zeros((0, 32), np.uint8), np.zeros((2, 0), np.uint8)
    assert dot_rows(text, "sm_90a", none, none, c[:0]).shape == (0,)
    np.testing.assert_array_equal(dot_rows(text, "sm_90a", nothing, nothing, c), c)


def test_shapes_are_checked_all_the_same() -> None:
    text = "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3"
    given = operands_of(text, (), 0, 8, 64)
    with pytest.raises(OperandError, match=r"c of wgmma\S+ must have shape \(0, 8\), got \(1, 8\)"):
        mmabits.gemm(**given, c=np.zeros((1, 8), np.float32), instruction=text, arch="sm_90a")
    with pytest.raises(OperandError, match="a has K = 0"):
        mmabits.gemm(given["a"][:, :0], given["b"], instruction=text, arch="sm_90a")


def test_an_empty_product_has_no_element_to_explain() -> None:
    a, b = np.zeros((0, 32), np.float16), np.zeros((32, 8), np.float16)
    with pytest.raises(OperandError, match="a product of 0 x 8 has no element to explain"):
        mmabits.explain(a, b, instruction="wgmma", arch="sm_90a")
    with pytest.raises(OperandError, match="a product of 8 x 0 has no element to explain"):
        mmabits.explain(b.T, a.T, instruction="wgmma", arch="sm_90a")


def test_sessions_count_products_that_run() -> None:
    session = Session(arch="sm_90a")
    for m, n, k in ((0, 8, 32), (8, 0, 32), (8, 8, 0)):
        assert session.dot("here", np.zeros((m, k), np.float16), np.zeros((k, n), np.float16)).shape == (m, n)
    assert session.report().emulated == ()
