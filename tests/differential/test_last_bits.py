"""The last bits of results, of every line of the support table: NaN codes, signed zeros, infinities, sums of promoted chains.

What each way to a product gives is compared with the exact model, code for code: `gemm` with and without a batch, `mma`, `dot_rows`,
and the C functions of native.py, called with a record as a program without Python would. The products end in the middle of an
instruction; promoted ones in the middle of a promotion. The CUDA backend and JAX's handler have the same tests where theirs are.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import operands
import pytest
import special_values
from special_values import COLUMNS, ROWS, Codes, Product

import mmabits
from mmabits.emulator.api import dot_rows
from mmabits.emulator.codecs import as_codes, from_codes
from mmabits.emulator.engine.native import native_product
from mmabits.isa import Instruction, Lowering, format_spec

LINES = special_values.lines()
ITEMS, NARROW = 5, 8
"""Items of a batch and their columns: what the engine computes several of at once, the last few not full."""


def array(codes: Codes, name: str) -> Any:
    return from_codes(codes, format_spec(name))


def by_gemm(row: Instruction, arch: str, given: Product, promote: int | None) -> Codes:
    c_format = "f32" if promote else row.c_type.name
    scales: dict[str, Any] = {}
    if row.scale_type is not None and given.scale_a is not None and given.scale_b is not None:
        scales = {
            "scale_a": from_codes(given.scale_a, row.scale_type),
            "scale_b": from_codes(given.scale_b.swapaxes(-1, -2), row.scale_type),
        }
    d = mmabits.gemm(
        from_codes(given.a, row.a_type), from_codes(given.b.swapaxes(-1, -2), row.b_type), array(given.c, c_format), instruction=row,
        arch=arch, promote_every=promote, **scales,
    )  # fmt: skip
    return as_codes(d, format_spec("f32") if promote else row.d_type)


def engine_codes(codes: Codes, name: str, dtype: np.dtype[Any]) -> Codes:
    """Operands as native.NativeProduct.operand says; integers by their values."""
    if name not in operands.INTEGERS:
        return np.ascontiguousarray(codes).view(dtype)
    bits, signed = operands.INTEGERS[name]
    values = codes.astype(np.int16)
    return np.where(signed & (values >> (bits - 1) == 1), values - (1 << bits), values).astype(dtype)


def by_record(lowering: Lowering, given: Product, promote: int | None, *, side_by_side: bool = False) -> Codes:
    """A batch, (items, rows, K) by (items, columns, K), by one call of a C function."""
    row = lowering.instruction
    made = native_product(lowering, promote or 0, side_by_side=side_by_side)
    (batch, m, k), n = given.a.shape, given.b.shape[1]
    record = made.record(batch, m, n, k)
    d = np.ascontiguousarray(given.c if row.scale_d else np.zeros_like(given.c)).view(made.accumulator).copy()
    arrays = {
        "a": engine_codes(given.a, row.a_type.name, made.operand),
        "b": np.ascontiguousarray(engine_codes(given.b, row.b_type.name, made.operand).swapaxes(1, 2)), "d": d,
    }  # fmt: skip
    if given.scale_a is not None and given.scale_b is not None:
        arrays |= {"scale_a": given.scale_a, "scale_b": np.ascontiguousarray(given.scale_b.swapaxes(1, 2))}
    for name, each in arrays.items():
        record[name] = each.ctypes.data
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(made.address)(record.ctypes.data)
    assert record["failed"][0] == 0
    return d.view(f"u{d.dtype.itemsize}")


def stacked(given: Product, columns: int) -> Product:
    """A batch: ITEMS times the same rows, each time one further down, against the first few columns."""

    def turned(codes: Codes) -> Codes:
        return np.stack([np.roll(codes, item, axis=0) for item in range(ITEMS)])

    def repeated(codes: Codes) -> Codes:
        return np.ascontiguousarray(np.broadcast_to(codes[:columns], (ITEMS, columns, codes.shape[1])))

    scales = (None, None) if given.scale_a is None or given.scale_b is None else (turned(given.scale_a), repeated(given.scale_b))
    return Product(turned(given.a), repeated(given.b), turned(given.c[:, :columns]), *scales)


def differences(where: str, got: Codes, want: Codes) -> list[str]:
    """One line for each code that is another."""
    assert got.shape == want.shape
    return [
        f"{where} {tuple(int(i) for i in at)}: {int(got[tuple(at)]):#x}, exact {int(want[tuple(at)]):#x}"
        for at in np.argwhere(got.astype(np.uint64) != want)
    ]  # fmt: skip


@pytest.mark.parametrize(("arch", "text"), LINES, ids=[f"{arch}-{text}" for arch, text in LINES])
def test_every_way_to_a_product_gives_the_exact_models_codes(arch: str, text: str) -> None:
    lowering = special_values.lowered(arch, text)
    row, k = lowering.instruction, 3 * lowering.instruction.k - 3
    found: list[str] = []
    for promote in (None, 2 * row.k) if special_values.promotes(lowering) else (None,):
        given = special_values.product(row, k, c_format="f32" if promote else None)
        want = special_values.exact(row, arch, given, promote)
        found += differences(f"gemm {promote}", by_gemm(row, arch, given, promote), want)
        one = Product(*(None if codes is None else codes[None] for codes in given))
        found += differences(f"record {promote}", by_record(lowering, one, promote)[0], want)
        batch, wanted = stacked(given, NARROW), np.stack([np.roll(want[:, :NARROW], item, axis=0) for item in range(ITEMS)])
        found += differences(f"gemm of a batch {promote}", by_gemm(row, arch, batch, promote), wanted)
        for side_by_side in (False, True):
            got = by_record(lowering, batch, promote, side_by_side=side_by_side)
            found += differences(f"record of a batch {promote} {side_by_side}", got, wanted)
        if not promote:
            found += differences("dot_rows", by_dot_rows(row, arch, given), want)
    assert found == []


def by_dot_rows(row: Instruction, arch: str, given: Product) -> Codes:
    i, j = (index.ravel() for index in np.indices((ROWS, COLUMNS)))
    scales = {} if given.scale_a is None or given.scale_b is None else {"scale_a": given.scale_a[i], "scale_b": given.scale_b[j]}
    return dot_rows(row, arch, given.a[i], given.b[j], given.c[i, j], **scales).reshape(ROWS, COLUMNS)


@pytest.mark.parametrize(("arch", "text"), LINES, ids=[f"{arch}-{text}" for arch, text in LINES])
def test_one_instruction_gives_the_exact_models_codes(arch: str, text: str) -> None:
    """`mma`: the rows and columns over and over, up to a whole tile."""
    row = special_values.lowered(arch, text).instruction
    given = special_values.product(row, row.k)
    want = special_values.exact(row, arch, given)
    rows, columns = np.arange(row.m) % ROWS, np.arange(row.n) % COLUMNS
    scales: dict[str, Any] = {}
    if row.scale_type is not None and given.scale_a is not None and given.scale_b is not None:
        scales = {
            "scale_a": from_codes(given.scale_a[rows], row.scale_type),
            "scale_b": from_codes(given.scale_b[columns].T, row.scale_type),
        }
    d = mmabits.mma(
        row, from_codes(given.a[rows], row.a_type), from_codes(given.b[columns].T, row.b_type),
        from_codes(given.c[np.ix_(rows, columns)], row.c_type), arch=arch, **scales,
    )  # fmt: skip
    assert differences("mma", as_codes(d, row.d_type), want[np.ix_(rows, columns)]) == []


def codes_of(values: set[tuple[str, int]]) -> dict[str, set[int]]:
    return {name: {code for each, code in values if each == name} for name, _ in values}


def test_the_operands_bring_every_special_result() -> None:
    """NaN, both infinities, zeros (of f64 both) come out; else the tests above would show little."""
    found: set[tuple[str, int]] = set()
    for arch, text in LINES:
        lowering = special_values.lowered(arch, text)
        row = lowering.instruction
        if not any(line in text for line in ("f64.f64.f64", "m16n8k16.row.col.f16.f16", "e5m2.e5m2")):
            continue
        for promote in (None, 2 * row.k) if special_values.promotes(lowering) else (None,):
            given = special_values.product(row, 3 * row.k - 3, c_format="f32" if promote else None)
            name = "promoted" if promote else row.d_type.name
            found |= {(name, int(code)) for code in special_values.exact(row, arch, given, promote).ravel()}
    got = codes_of(found)
    assert {0, 0x7C00, 0xFC00, 0x7FFF} <= got["f16"]
    assert {0, 0x7F800000, 0xFF800000, 0x7FFFFFFF} <= got["f32"]
    assert {0, 0x7F800000, 0xFF800000, 0x7FFFFFFF} <= got["promoted"]
    assert {0, 1 << 63, 0x7FF << 52, 0xFFF << 52, 0x7FF8 << 48} <= got["f64"]


@pytest.mark.parametrize("columns", [256, 8, 3])
def test_every_f16_comes_through_an_f16_accumulator(columns: int) -> None:
    """Added to zeros, alone and several items at once: the code it was, but for -0 and NaN."""
    codes = np.arange(1 << 16, dtype=np.uint16)
    c = codes.view(np.float16)[: (1 << 16) // (32 * columns) * 32 * columns].reshape(-1, 32, columns)
    a, b = np.zeros((len(c), 32, 16), np.float16), np.zeros((len(c), 16, columns), np.float16)
    d = mmabits.gemm(a, b, c, instruction="mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16", arch="sm_80")
    want = c.view(np.uint16).copy()
    want[want == 0x8000] = 0
    want[(want & 0x7FFF) > 0x7C00] = 0x7FFF
    assert d.dtype == np.float16 and d.view(np.uint16).tolist() == want.tolist()
