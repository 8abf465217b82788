"""The engine as C functions, called with a record and nothing else."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from mmabits.emulator.engine import products
from mmabits.emulator.engine.native import NativeProduct, native_product
from mmabits.emulator.engine.record import CALL, Call
from mmabits.isa import Lowering, lower, parse

FUSED = ("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32", "sm_89", np.uint8, np.float32)
WIDE = ("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16", "sm_80", np.uint16, np.float16)
TF32 = ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", "sm_80", np.uint32, np.float32)
SCALED = ("tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.m128n8k32.f32.e4m3.e5m2.ue8m0", "sm_100a", np.uint8, np.float32)
GROUPED = ("tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n8k64.f32.e2m1.e2m1.ue4m3", "sm_100a", np.uint8, np.float32)
CHAIN = ("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64", "sm_80", np.float64, np.float64)
INTEGER = ("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", "sm_80", np.uint8, np.int32)
KINDS = [FUSED, WIDE, TF32, SCALED, GROUPED, CHAIN, INTEGER]


def lowered(kind: tuple[str, str, type, type]) -> Lowering:
    return lower(parse(kind[0]), kind[1])


def call(product: NativeProduct, record: np.ndarray, operands: dict[str, np.ndarray]) -> None:
    """As a program without Python would."""
    for name, array in operands.items():
        record[name] = array.ctypes.data
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(product.address)(record.ctypes.data)


def draw(product: NativeProduct, kind: tuple[str, str, type, type], batch: int, m: int, n: int, k: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(20)
    blocks = -(-k // product.block) if product.block else 0
    shapes = {"a": (batch, m, k), "b": (batch, k, n)}
    highest = {np.uint16: 0x7BFF, np.uint32: 0x4FFFFFFF}.get(kind[2], 0x77)
    given = {name: rng.integers(0, highest, shape).astype(kind[2]) for name, shape in shapes.items()}
    given["d"] = rng.integers(-9, 9, (batch, m, n)).astype(kind[3])
    given["scale_a"] = rng.integers(100, 126, (batch, m, blocks)).astype(np.uint8)
    given["scale_b"] = rng.integers(100, 126, (batch, blocks, n)).astype(np.uint8)
    return given


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0].split(".row")[0])
def test_a_record_is_all_a_call_needs(kind: tuple[str, str, type, type]) -> None:
    """The whole product by one call, and by two calls that share the tasks, against the engine; dtypes as published."""
    product = native_product(lowered(kind))
    assert (product.operand, product.accumulator) == (np.dtype(kind[2]), np.dtype(kind[3]))
    batch, m, n, k = 2, 150, 70, 96
    given = draw(product, kind, batch, m, n, k)
    want = given["d"].copy()
    products.run(lowered(kind), given["a"], given["b"], want, *((given["scale_a"], given["scale_b"]) if product.block else (None, None)))
    assert not np.array_equal(want, given["d"])

    whole = product.record(batch, m, n, k)
    assert whole.shape == (1,) and whole.dtype == CALL and whole["last"][0] > 1
    assert whole["blocks"][0] == (given["scale_a"].shape[2] if product.block else 0)
    once = {**given, "d": given["d"].copy()}
    call(product, whole, once)
    assert once["d"].tobytes() == want.tobytes()

    upper, lower_ = whole.copy(), whole.copy()
    upper["last"] = lower_["first"] = whole["last"][0] // 2
    parts = {**given, "d": given["d"].copy()}
    call(product, lower_, parts)
    assert parts["d"].tobytes() != want.tobytes()
    call(product, upper, parts)
    assert parts["d"].tobytes() == want.tobytes()


@pytest.mark.parametrize("side_by_side", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0].split(".row")[0])
def test_sizes_of_zero(kind: tuple[str, str, type, type], side_by_side: bool) -> None:
    """Nothing is written without rows, columns or items; without elements of K the accumulators stay as they are."""
    product = native_product(lowered(kind), side_by_side=side_by_side)
    for batch, m, n, k in ((1, 0, 8, 64), (1, 8, 0, 64), (0, 8, 8, 64), (0, 0, 0, 0), (1, 4, 8, 0), (3, 4, 8, 0)):
        given = draw(product, kind, batch, m, n, k)
        if given["d"].dtype.kind == "f" and given["d"].size:
            given["d"].view(f"u{given['d'].itemsize}")[:] = np.uint64(0x7FF4_0000_7FA0_0001).astype(f"u{given['d'].itemsize}")
        before = given["d"].copy()
        record = product.record(batch, m, n, k, threads=3)
        call(product, record, given)
        assert given["d"].tobytes() == before.tobytes() and record["failed"][0] == 0
        assert (np.ones(4) + 1.5 * 2.0**-53 > 1).all(), "this thread's rounding mode"


def test_more_threads_have_more_tasks() -> None:
    product = native_product(lowered(FUSED))
    assert product.record(1, 128, 256, 32)["last"][0] == 2
    assert product.record(1, 128, 256, 32, threads=4)["last"][0] == 8


def test_every_word_of_a_record_is_eight_bytes() -> None:
    assert CALL.itemsize == 8 * len(CALL.names or ())
    assert CALL.names == Call._fields


def test_a_product_is_made_once() -> None:
    assert native_product(lowered(FUSED)) is native_product(lowered(FUSED))
    assert native_product(lowered(FUSED), 128).constants != native_product(lowered(FUSED)).constants
    assert native_product(lowered(FUSED), 128).address == native_product(lowered(FUSED)).address


def test_no_memory_for_scratch_is_reported() -> None:
    """Tiles beyond any memory: nothing is computed, the record says so, and the engine raises."""
    product = native_product(lowered(FUSED))
    given = draw(product, FUSED, 1, 16, 8, 32)
    before = given["d"].copy()
    record = product.record(1, 16, 8, 32)
    record["rows"] = 1 << 40
    call(product, record, given)
    assert record["failed"][0] == 1
    assert given["d"].tobytes() == before.tobytes()
