"""Matrix descriptors of shared memory: the readable form, the compiled one, and layouts that are known from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import operands as drawn
import pytest

from mmabits.emulator.machine import descriptors, operands
from mmabits.emulator.machine.descriptors import MatrixDescriptor, Swizzle
from mmabits.isa import OperandError, parse
from mmabits.isa.fragments import LEADING_BYTES, STRIDE_BYTES, operand_layout

SIZE = 1 << 16
WIDTHS = {"f16": (16, 8, 16), "tf32": (32, 4, 32), "e4m3": (8, 16, 8), "s8": (8, 16, operands.SIGNED), "e2m1": (4, 16, 8),
          "e3m2": (6, 16, 8), "e2m1 packed": (4, 32, 8)}  # fmt: skip
"""Bits of an element, elements in a chunk, how they are held."""
DTYPES = {8: np.uint8, 16: np.uint16, 32: np.uint32, operands.SIGNED: np.int8}
KINDS: dict[str, tuple[int, Callable[[MatrixDescriptor], int], Callable[[int], MatrixDescriptor], dict[int, Swizzle]]] = {
    "wgmma": (operands.WGMMA, descriptors.encode_wgmma, descriptors.wgmma_descriptor, descriptors.WGMMA_SWIZZLES),
    "tcgen05": (operands.TCGEN05, descriptors.encode_tcgen05, descriptors.tcgen05_descriptor, descriptors.TCGEN05_SWIZZLES),
}


@numba.njit
def _read(arguments: npt.NDArray[np.int64]) -> int:
    a = arguments
    return operands.read_matrix(a[0], a[1], a[2], a[3], a[4] != 0, a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13])


def read(memory: npt.NDArray[np.uint8], code: int, kind: str, mn_major: bool, rows: int, ks: int, width: tuple[int, int, int],
         out: npt.NDArray[Any], skipped: int = 0) -> int:  # fmt: skip
    bits, elements, held = width
    steps = [step // out.itemsize for step in out.strides]
    code -= (code >> 63) << 64
    return int(_read(np.array([memory.ctypes.data, memory.size, code, KINDS[kind][0], mn_major, rows, ks, bits, elements,
                               out.ctypes.data, *steps, held, skipped], np.int64)))  # fmt: skip


def wanted(memory: npt.NDArray[np.uint8], matrix: MatrixDescriptor, mn_major: bool, rows: int, ks: int, width: tuple[int, int, int],
           skipped: int = 0) -> npt.NDArray[Any]:  # fmt: skip
    bits, elements, held = width
    found = np.zeros((rows, ks), DTYPES[held])
    for row in range(rows):
        for k in range(ks):
            at = matrix.element(row + skipped, k, bits=bits, elements=elements, mn_major=mn_major)
            code = int.from_bytes(memory[at // 8 : at // 8 + 8].tobytes(), "little") >> at % 8 & (1 << bits) - 1
            found[row, k] = code - (code >> 7 << 8) if held == operands.SIGNED else code
    return found


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("mn_major", [False, True], ids=["k-major", "mn-major"])
@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, row in KINDS.items() for mode in row[3]])
def test_the_compiled_form_reads_what_the_readable_one_says(kind: str, mode: int, mn_major: bool, width: str) -> None:
    rng = drawn.generator("descriptors", kind, mode, mn_major, width)
    _, encode, decode, swizzles = KINDS[kind]
    memory = rng.integers(0, 256, SIZE).astype(np.uint8)
    matrix = MatrixDescriptor(start=2048 + 64, leading=7 * 1024 + 16, stride=1024 * 3, swizzle=swizzles[mode])
    code = encode(matrix)
    assert decode(code) == matrix
    rows, ks = 40, 2 * WIDTHS[width][1] if not mn_major else 32
    if swizzles[mode].span == 16 or mn_major:
        ks = 4 * WIDTHS[width][1] if not mn_major else 32
    out = np.zeros((rows, ks), DTYPES[WIDTHS[width][2]])
    assert read(memory, code, kind, mn_major, rows, ks, WIDTHS[width], out) == operands.READ
    assert np.array_equal(out, wanted(memory, matrix, mn_major, rows, ks, WIDTHS[width]))
    turned = np.zeros((ks, rows), out.dtype).T
    assert read(memory, code, kind, mn_major, rows, ks, WIDTHS[width], turned) == operands.READ
    assert np.array_equal(out, turned)
    later = np.zeros((8, ks), out.dtype)
    skipped = 32
    assert read(memory, code, kind, mn_major, 8, ks, WIDTHS[width], later, skipped) == operands.READ
    assert np.array_equal(later, out[32:40])


@pytest.mark.parametrize(
    ("span", "swizzle"), [(each.span, each) for each in (descriptors.SPAN_32, descriptors.SPAN_64, descriptors.SPAN_128)]
)
def test_a_swizzled_tile_is_what_tma_writes(span: int, swizzle: Swizzle) -> None:
    """A tile of rows one span long: chunk c of row r lies where the pattern of tensor maps puts it."""
    chunks = span // 16
    per_line = 128 // span
    matrix = MatrixDescriptor(start=0, leading=0, stride=8 * span, swizzle=swizzle)
    for row in range(16):
        for chunk in range(chunks):
            line = row // per_line
            at = row * span + (chunk ^ line % chunks) * 16
            assert matrix.element(row, 8 * chunk, bits=16, elements=8, mn_major=False) == 8 * at


@pytest.mark.parametrize(
    "name", ["kind::f16.m64n24k16.f32.f16.f16", "kind::f8f6f4.m128n16k32.f32.e2m1.e3m2", "kind::tf32.m64n8k8.f32.tf32.tf32"]
)
def test_without_a_swizzle_it_is_the_layout_of_the_recorder(name: str) -> None:
    instruction = parse(f"tcgen05.mma.cta_group::1.{name}")
    matrix = MatrixDescriptor(start=0, leading=LEADING_BYTES, stride=STRIDE_BYTES, swizzle=descriptors.NONE)
    elements = 16 if instruction.kind == "f8f6f4" else 128 // instruction.a_type.code_bits
    for side, rows, spec in (("a", instruction.m, instruction.a_type), ("b", instruction.n, instruction.b_type)):
        layout = operand_layout(instruction, side=side)
        starts = layout.starts.reshape(layout.shape)
        starts = starts if side == "a" else starts.T
        for row in range(rows):
            for k in range(instruction.k):
                assert matrix.element(row, k, bits=spec.code_bits, elements=elements, mn_major=False) == starts[row, k]


def test_what_is_not_modelled_is_refused() -> None:
    memory, out = np.zeros(4096, np.uint8), np.zeros((8, 16), np.uint16)
    fine = descriptors.encode_tcgen05(MatrixDescriptor(0, 128, 256, descriptors.NONE))
    width = WIDTHS["f16"]
    assert read(memory, fine, "tcgen05", False, 8, 16, width, out) == operands.READ
    assert read(memory, fine | 5 << 49, "tcgen05", False, 8, 16, width, out) == operands.READ
    descriptors.tcgen05_descriptor(fine | 5 << 49).check()
    fine |= 6 << 61
    for bit in (49, 51, 52):
        assert read(memory, fine | 1 << bit, "tcgen05", False, 8, 16, width, out) == operands.UNKNOWN_DESCRIPTOR
        with pytest.raises(OperandError, match="not emulated"):
            descriptors.tcgen05_descriptor(fine | 1 << bit).check()
    fine &= ~(7 << 61)
    assert read(memory, fine | 3 << 61, "tcgen05", False, 8, 16, width, out) == operands.UNKNOWN_DESCRIPTOR
    with pytest.raises(OperandError, match="swizzle mode 3"):
        descriptors.tcgen05_descriptor(fine | 3 << 61)
    far = descriptors.encode_tcgen05(MatrixDescriptor(4096, 128, 256, descriptors.NONE))
    assert read(memory, far, "tcgen05", False, 8, 16, width, out) == operands.OUTSIDE_SHARED
    wide = MatrixDescriptor(0, 0, 256, descriptors.SPAN_32)
    assert read(memory, descriptors.encode_tcgen05(wide), "tcgen05", False, 8, 24, width, out) == operands.UNKNOWN_DESCRIPTOR
    with pytest.raises(OperandError, match="beyond the swizzle span"):
        wide.element(0, 16, bits=16, elements=8, mn_major=False)
    with pytest.raises(OperandError, match="do not fit"):
        descriptors.encode_wgmma(MatrixDescriptor(8, 0, 0, descriptors.NONE))
    with pytest.raises(OperandError, match=r"no swizzle 128B, atoms of 32B"):
        descriptors.encode_wgmma(MatrixDescriptor(0, 0, 0, descriptors.SPAN_128_UNIT_32))
