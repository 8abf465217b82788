"""The special function unit's model against what was measured on GPUs and published."""

from __future__ import annotations

import numpy as np
import pytest

from mmabits.isa.opcodes import functions, opcode_table

GB200 = {
    "-10.221991": 0x3A5B7D5C, "-12.691620": 0x391E8128, "-12.472450": 0x39388261, "-5.655628": 0x3CA2822F, "-18.084177": 0x36717D95,
    "-5.785695": 0x3C947FA3, "-4.114324": 0x3D6C7F28, "-7.132768": 0x3BE97E0E, "-8.411281": 0x3B408029, "-1.776008": 0x3E957FBE,
}  # fmt: skip
"""ex2.approx on a GB200, printed with six decimals (Dao-AILab/flash-attention, issue 2263)."""


def neighbours(printed: str) -> list[int]:
    """f32 codes that print so."""
    nearest = np.float32(printed)
    found = [np.nextafter(nearest, np.float32(-100)), nearest, np.nextafter(nearest, np.float32(100))]
    return [int(each.view(np.uint32)) for each in found if f"{each:.6f}" == printed]


@pytest.mark.parametrize("printed", GB200)
def test_ex2_is_what_a_gb200_gave(printed: str) -> None:
    assert GB200[printed] in [functions.exponential(code) for code in neighbours(printed)]


def test_quotients_of_a_number_by_itself() -> None:
    """2,742,540 of 2^24 significands on an RTX 3090 (openxla/xla, PR 46400): of each 2^23 the same half."""
    rows = np.array(functions.tables()["rcp"], np.int64)
    fraction = np.arange(1 << 23, dtype=np.int64)
    a, b, c = rows[fraction >> 16].T
    r = fraction & 0xFFFF
    doubled, squared = 2 * r, np.zeros_like(r)
    for place in range(17):
        squared += np.where(doubled >> place & 1, doubled >> (18 - place), 0)
    m = (a * 2**13 + b * r + c * (squared >> 1) + 0x47E7) >> 15
    code = np.where(m >> 24, 127 << 23, 126 << 23 | m & 0x7FFFFF).astype(np.uint32)
    x = (127 << 23 | fraction).astype(np.uint32)
    assert int((code.view(np.float32) * x.view(np.float32) != 1).sum()) == 1_371_270
    for each in np.random.default_rng(0).integers(0, 1 << 23, 500).tolist():  # the scalar model is the same
        assert functions.reciprocal(0x3F800000 | each) == int(code[each])
    div = opcode_table()["div.full.f32"].reference
    assert div is not None
    code_of = int(np.float32(3163.328613).view(np.uint32))
    assert div(code_of, code_of) == 0x3F7FFFFF


def test_worst_reciprocal_root() -> None:
    """1.51 ulp (NVIDIA/cccl, PR 5375)."""
    found = np.uint32(functions.reciprocal_root(0x3F820399)).view(np.float32)
    exact = 1 / np.sqrt(np.float64(np.uint32(0x3F820399).view(np.float32)))
    assert abs(float(found) - exact) / 2.0**-24 == pytest.approx(1.514, abs=1e-3)


@pytest.mark.parametrize(("name", "code", "wanted"), [
    ("ex2.approx.ftz.f32", 0x00000000, 0x3F800000), ("ex2.approx.ftz.f32", 0xFF800000, 0), ("ex2.approx.ftz.f32", 0x43000000, 0x7F800000),
    ("rcp.approx.ftz.f32", 0x80000000, 0xFF800000), ("rcp.approx.ftz.f32", 0x7F800000, 0), ("rcp.approx.ftz.f32", 0x3F800000, 0x3F800000),
    ("rsqrt.approx.ftz.f32", 0x3F800000, 0x3F800000), ("rsqrt.approx.ftz.f32", 0xBF800000, 0x7FFFFFFF),
    ("lg2.approx.ftz.f32", 0x3F800000, 0), ("lg2.approx.ftz.f32", 0x41000000, 0x40400000), ("lg2.approx.ftz.f32", 0x3E800000, 0xC0000000),
    ("lg2.approx.f32", 1, 0xC3150000), ("sqrt.approx.ftz.f32", 0x40800000, 0x40000000),
])  # fmt: skip
def test_values_that_follow(name: str, code: int, wanted: int) -> None:
    reference = opcode_table()[name].reference
    assert reference is not None
    assert hex(reference(code)) == hex(wanted)
