"""Every row of the opcode table: the vector code of the machine against the reference in plain integers, lane by lane."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import operands
import pytest
from llvmlite import binding as llvm

from mmabits.emulator.machine.elementwise import emitted
from mmabits.emulator.machine.vectors import LANES, Code
from mmabits.isa import FORMATS
from mmabits.isa.opcodes import Opcode, opcode_table, width

BATCH = 150
TABLES = (0xE8, 0x96, 0x00, 0xFF, 0x1B)
"""Constants of lop3."""
EDGES = {
    "f32": (0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0x00800000, 0x007FFFFF, 0x80000001, 0x7F7FFFFF,
            0x3F000000, 0x47800000, 0x33800000, 0x4F000000, 0x5F000000, 0xCF000000, 0x3F800001),
    "f64": (0x3FF << 52, 0xBFF << 52, 0x7FF << 52, 0xFFF << 52, 0x7FF8 << 48, 1 << 52, (1 << 52) - 1, 0x7FEFFFFFFFFFFFFF, 0x43E << 52,
            0xC3E << 52, 0x43F << 52, 0x380 << 52, 0x36A << 52, 0x47EFFFFFE0000000, 0x47EFFFFFF0000000),
    "f16": (0x3C00, 0xBC00, 0x7C00, 0xFC00, 0x7E00, 0x400, 0x3FF, 0x8001, 0x7BFF, 0x3800),
    "bf16": (0x3F80, 0xBF80, 0x7F80, 0xFF80, 0x7FC0, 0x80, 0x7F, 0x8001, 0x7F7F),
}  # fmt: skip


def held(kind: str) -> int:
    """Bits of an array's elements."""
    return 8 if kind == "pred" else max(8, width(kind))


def drawn(rng: np.random.Generator, kind: str, count: int) -> npt.NDArray[np.uint64]:
    bits = width(kind)
    found = rng.integers(0, 1 << bits, count, dtype=np.uint64) if bits < 64 else rng.integers(0, 1 << 63, count, dtype=np.uint64) * 2 + 1
    common = (0, 1, 2, -1, 1 << (bits - 1), (1 << (bits - 1)) - 1, (1 << (bits - 1)) + 1, 31, 32, 33, 63, 64, 127, 128, 255)
    edges = np.array([edge & (1 << bits) - 1 for edge in (*common, *EDGES.get(kind, ()))], np.uint64)
    at_edge = rng.random(count) < 0.3
    found[at_edge] = rng.choice(edges, count)[at_edge]
    if kind in EDGES:
        spec = FORMATS[kind]
        plain = (rng.random(count) < 0.4) & ~at_edge
        field = (rng.integers(-8, 9, count) + spec.bias).astype(np.uint64) << np.uint64(spec.fraction_bits)
        sign = rng.integers(0, 2, count).astype(np.uint64) << np.uint64(bits - 1)
        found[plain] = (sign | field | rng.integers(0, 1 << spec.fraction_bits, count, dtype=np.uint64))[plain]
    small = rng.random(count) < 0.1
    found[small] &= np.uint64(63)
    return found


class Compiled:
    """Some rows as functions of arrays."""

    def __init__(self, rows: list[Opcode]) -> None:
        self.constants: dict[str, dict[int, int]] = {}
        declared: set[str] = set()
        texts = []
        for number, row in enumerate(rows):
            code = Code()
            values = []
            for place, kind in enumerate(row.sources):
                if place in row.constants:
                    self.constants.setdefault(row.name, {})[place] = TABLES[number % len(TABLES)]
                    values.append(code.constant(TABLES[number % len(TABLES)], width(kind)))
                    continue
                pointer = code.named(f"load ptr, ptr {code.named(f'getelementptr ptr, ptr %io, i32 {place}')}")
                value = code.value(f"i{held(kind)}", f"load <{LANES} x i{held(kind)}>, ptr {pointer}, align 1")
                values.append(code.resize(value, width(kind)))
            for place, (value, kind) in enumerate(zip(emitted(code, row, values), row.results, strict=True)):
                assert value.bits == width(kind)
                pointer = code.named(f"load ptr, ptr {code.named(f'getelementptr ptr, ptr %io, i32 {8 + place}')}")
                code.line(f"store {code.resize(value, held(kind)).typed}, ptr {pointer}, align 1")
            declared |= code.declared | set(code.globals.values())
            texts.append(f"define void @row{number}(ptr %io) {{\n" + "\n".join(code.lines) + "\n  ret void\n}")
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=0, jit=True
        )
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly("\n".join([*sorted(declared), *texts])), machine)
        self.engine.finalize_object()
        self.addresses = {row.name: self.engine.get_function_address(f"row{number}") for number, row in enumerate(rows)}

    def __call__(self, row: Opcode, given: list[npt.NDArray[np.uint64]]) -> list[npt.NDArray[Any]]:
        inputs = [np.ascontiguousarray(each.astype(f"u{held(kind) // 8}")) for each, kind in zip(given, row.sources, strict=True)]
        outputs = [np.zeros(LANES, f"u{held(kind) // 8}") for kind in row.results]
        places = (ctypes.c_void_p * 16)()
        for place, each in enumerate(inputs):
            places[place] = each.ctypes.data
        for place, each in enumerate(outputs):
            places[8 + place] = each.ctypes.data
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.addresses[row.name])(ctypes.addressof(places))
        return outputs


def differences(rows: list[Opcode], vectors: int, seed: int) -> Iterator[str]:
    compiled = Compiled(rows)
    for row in rows:
        rng = np.random.default_rng([seed, *row.name.encode()])
        assert row.reference is not None
        for _ in range(vectors):
            given = [drawn(rng, kind, LANES) for kind in row.sources]
            for place, number in compiled.constants.get(row.name, {}).items():
                given[place][:] = number
            if len(given) > 1 and rng.random() < 0.3 and width(row.sources[0]) == width(row.sources[1]):
                given[1][:16] = given[0][:16]  # equal operands
            found = compiled(row, given)
            for lane in range(LANES):
                numbers = [int(each[lane]) for each in given]
                wanted = row.reference(*numbers)
                wanted = wanted if isinstance(wanted, tuple) else (wanted,)
                got = tuple(int(each[lane]) for each in found)
                if got != wanted:
                    yield f"{row.name} of {[hex(number) for number in numbers]}: {[hex(g) for g in got]}, not {[hex(w) for w in wanted]}"


def batches() -> list[list[Opcode]]:
    rows = list(opcode_table().values())
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]


@pytest.mark.parametrize("batch", range(len(batches())))
def test_vector_code_is_the_reference(batch: int) -> None:
    assert list(differences(batches()[batch], 1, operands.SEED)) == []


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(len(batches())))
def test_vector_code_is_the_reference_on_ten_thousand_lanes(batch: int) -> None:
    assert list(differences(batches()[batch], 320, operands.SEED + 1)) == []


def test_every_row_has_code() -> None:
    for row in opcode_table().values():
        code = Code()
        assert emitted(code, row, [code.constant(1, width(kind)) for kind in row.sources])


def test_directed_sums_of_f64_leave_the_rounding_as_it_was() -> None:
    """To nearest, also behind one in the same function."""
    rows = [opcode_table()[name] for name in ("fma.rp.f64", "add.rn.f64")]
    compiled = Compiled(rows)
    one, tiny = np.full(LANES, 0x3FF0 << 48, np.uint64), np.full(LANES, 0x3C80 << 48, np.uint64)  # 1 and 2^-55
    assert set(compiled(rows[0], [one, one, tiny])[0].tolist()) == {(0x3FF0 << 48) + 1}
    assert set(compiled(rows[1], [one, tiny])[0].tolist()) == {0x3FF0 << 48}


def test_rows_are_whole() -> None:
    for name, row in opcode_table().items():
        assert row.name == name and row.sources and row.results and row.section
        assert all(width(kind) for kind in (*row.sources, *row.results))
