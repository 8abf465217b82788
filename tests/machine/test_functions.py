"""The special function unit's model against what was measured on GPUs and published."""

from __future__ import annotations

import math
from typing import Any

import function_arrays
import ml_dtypes
import numpy as np
import numpy.typing as npt
import operands
import pytest

import mmabits
from mmabits.isa.opcodes import REFUSED, ErrorMeasure, functions, opcode_table

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
    x = np.arange(127 << 23, 128 << 23, dtype=np.uint32)
    found = mmabits.function("div.full.f32", x.view(np.float32), x.view(np.float32), arch="rtx3090")
    assert int((found != 1).sum()) == 1_371_270
    assert float(mmabits.function("div.full.f32", 3163.328613, 3163.328613, arch="rtx3090")) == np.float32(0.99999994)


def errors(opcode: str, codes: npt.NDArray[np.uint32], exact: Any) -> tuple[dict[int, int], npt.NDArray[np.float64], Any]:
    """How often results lie so many codes from the correctly rounded one, the errors, and the exact values, in binary64."""
    x = codes.view(np.float32)
    found, wanted = mmabits.function(opcode, x, arch="a100"), exact(x.astype(np.float64))
    away = found.view(np.int32) - wanted.astype(np.float32).view(np.int32)
    return dict(zip(*(each.tolist() for each in np.unique(away, return_counts=True)), strict=True)), found - wanted, wanted


def test_reciprocals_that_are_not_the_nearest() -> None:
    """13.2 % on an A100 (NaciCankaya/hardware_rounding_error_predictor)."""
    away, _, _ = errors("rcp.approx.ftz.f32", np.arange(127 << 23, 128 << 23, dtype=np.uint32), lambda x: 1 / x)
    assert away == {-1: 374_723, 0: 7_280_086, 1: 733_799}


def test_reciprocal_roots_that_are_not_the_nearest() -> None:
    """0 or 1, rarely 2 on an A100: eight of 2^24. The PTX manual's 2^-22.9 holds."""
    away, error, exact = errors("rsqrt.approx.ftz.f32", np.arange(127 << 23, 129 << 23, dtype=np.uint32), lambda x: 1 / np.sqrt(x))
    assert away == {-2: 8, -1: 2_344_391, 0: 13_143_086, 1: 1_289_731}
    assert float(np.log2(np.max(np.abs(error) / exact))) == pytest.approx(-22.935, abs=1e-3)


def test_powers_and_logarithms_keep_their_bounds() -> None:
    """PTX manual, an older one: 2^-22.5 and 2^-22.6; of today: 2 ulp and 2^-22."""
    _, error, exact = errors("ex2.approx.ftz.f32", np.arange(127 << 23, 128 << 23, dtype=np.uint32), np.exp2)
    assert float(np.log2(np.max(np.abs(error) / exact))) == pytest.approx(-22.709, abs=1e-3)
    _, error, _ = errors("lg2.approx.ftz.f32", np.arange(127 << 23, 128 << 23, dtype=np.uint32), np.log2)
    assert float(np.log2(np.max(np.abs(error)))) == pytest.approx(-22.577, abs=1e-3)


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


# -------------------------------------------------------------------------------------------- three implementations of each one

EDGES = np.array([
    sign | field << 23 | fraction for sign in (0, 1 << 31) for field in range(256) for fraction in (0, 1, 0x2AAAAA, 0x400000, 0x7FFFFF)
], np.uint32)  # fmt: skip
BLOCK = 1 << 22


@pytest.mark.parametrize("name", function_arrays.FORMS)
def test_reference_vector_code_and_array_form_agree(name: str) -> None:
    """On every exponent, and on random codes."""
    rng = np.random.default_rng([operands.SEED, *name.encode()])
    near = rng.integers(100, 140, 500) << 23 | rng.integers(0, 1 << 23, 500) | rng.integers(0, 2, 500) << 31
    codes = np.concatenate([EDGES, rng.integers(0, 1 << 32, 500, dtype=np.uint32), near.astype(np.uint32)])
    reference = opcode_table()[name].reference
    assert reference is not None
    assert function_arrays.differences(name, codes, lambda x: np.array([reference(int(each)) for each in x], np.uint32)) == (0, "")
    assert function_arrays.differences(name, codes, lambda x: mmabits.function(name, x, arch="sm_90a")) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("name", function_arrays.FORMS)
def test_vector_code_is_the_array_form_on_every_code(name: str) -> None:
    """All 2^32: minutes each."""
    for start in range(0, 1 << 32, BLOCK):
        codes = np.arange(start, start + BLOCK, dtype=np.uint64).astype(np.uint32)
        assert function_arrays.differences(name, codes, lambda x: mmabits.function(name, x, arch="sm_90a")) == (0, "")


SMALL = {
    "ex2.approx.f16": ("ex2.approx.ftz.f32", np.float16), "tanh.approx.f16": ("tanh.approx.f32", np.float16),
    "ex2.approx.ftz.bf16": ("ex2.approx.ftz.f32", ml_dtypes.bfloat16), "tanh.approx.bf16": ("tanh.approx.f32", ml_dtypes.bfloat16),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_functions_of_16_bits_on_every_code(name: str) -> None:
    """The array form of f32, between conversions of NumPy and ml_dtypes."""
    wide, dtype = SMALL[name]
    codes = np.arange(1 << 16, dtype=np.uint16)
    numbers = codes.view(dtype)
    form, tables = function_arrays.FORMS[wide], function_arrays.all_tables()
    with np.errstate(all="ignore"):
        f32 = numbers.astype(np.float32).view(np.uint32)
        results = np.array([form(each, tables) for each in f32.tolist()], np.uint32).view(np.float32)
        wanted = np.where(np.isnan(results), np.uint16(0x7FFF), results.astype(dtype).view(np.uint16))
    found = mmabits.function(name, codes, arch="sm_90a")
    assert np.array_equal(found, wanted)
    reference = opcode_table()[name].reference
    assert reference is not None
    some = np.random.default_rng(operands.SEED).choice(codes, 1000)
    assert [reference(int(each)) for each in some] == found[some].tolist()


@pytest.mark.parametrize("name", SMALL)
def test_pairs_are_their_halves(name: str) -> None:
    words = np.random.default_rng(operands.SEED).integers(0, 1 << 32, 1000, dtype=np.uint32)
    found = mmabits.function(f"{name}x2", words, arch="sm_90a")
    assert np.array_equal(found.view(np.uint16), mmabits.function(name, words.view(np.uint16), arch="sm_90a"))


EXACT = {
    "ex2": np.exp2, "rcp": lambda x: 1 / x, "rsqrt": lambda x: 1 / np.sqrt(x), "lg2": np.log2, "sqrt": np.sqrt, "sin": np.sin,
    "cos": np.cos, "tanh": np.tanh,
}  # fmt: skip
BOUNDED = [name for name, row in opcode_table().items() if row.bounds and len(row.sources) == 1 and not name.endswith("x2")]


def codes_apart(found: npt.NDArray[np.float64], exact: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How many f32 codes lie between numbers of the same sign, the second ones rounded."""
    a, b = (each.astype(np.float32).view(np.int32).astype(np.int64) for each in (found, exact))
    return np.abs(a - b).astype(np.float64)


EXCEEDED = {("cos", 2.0**-20.5): 2.0**-20.43}
"""Where a model passes the manual's bound: beyond pi, where the product with 1 / (2 pi) alone, toward zero, makes most of the error."""


@pytest.mark.parametrize("name", BOUNDED)
def test_models_keep_the_bounds_of_the_manual(name: str) -> None:
    row = opcode_table()[name]
    rng = np.random.default_rng(operands.SEED)
    if row.sources[0] == "f32":
        near = rng.integers(100, 140, 200_000) << 23 | rng.integers(0, 1 << 23, 200_000) | rng.integers(0, 2, 200_000) << 31
        x = np.concatenate([rng.integers(0, 1 << 32, 200_000, dtype=np.uint32), near.astype(np.uint32)]).view(np.float32)
    else:
        x = np.arange(1 << 16, dtype=np.uint16).view(np.float16 if row.sources[0] == "f16" else ml_dtypes.bfloat16)
    with np.errstate(all="ignore"):
        found = mmabits.function(name, x, arch="sm_90a").astype(np.float64)
        exact = EXACT[row.base](x.astype(np.float64))
        magnitude = np.abs(x.astype(np.float64))
        least = 2.0 ** (-14 if row.sources[0] == "f16" else -126)
        flush = "ftz" in name
        counted = np.isfinite(exact) & np.isfinite(found) & (np.abs(exact) >= least) & ~(flush & (magnitude < least))
        for bound in row.bounds:
            low, high = bound.magnitudes
            here = counted & (magnitude >= low) & (magnitude <= high)
            error = np.abs(found - exact)
            if bound.measure is ErrorMeasure.RELATIVE:
                error /= np.abs(exact)
            elif bound.measure is ErrorMeasure.ULP:
                error = codes_apart(found, exact)
            assert here.any() and float(np.max(error[here])) <= EXCEEDED.get((row.base, bound.most), bound.most), str(bound)


def test_quotients_keep_the_bounds_of_the_manual() -> None:
    rng = np.random.default_rng(operands.SEED)
    a, b = (rng.integers(0, 1 << 32, 400_000, dtype=np.uint32).view(np.float32) for _ in range(2))
    with np.errstate(all="ignore"):
        exact = a.astype(np.float64) / b
        for name in ("div.full.f32", "div.approx.f32"):
            found = mmabits.function(name, a, b, arch="sm_90a").astype(np.float64)
            ulps = codes_apart(found, exact)
            (bound,) = opcode_table()[name].bounds
            low, high = bound.magnitudes
            here = np.isfinite(exact) & (np.abs(exact) < 2.0**127) & (exact != 0) & (np.abs(b) >= low) & (np.abs(b) <= high)
            assert here.any() and float(np.max(ulps[here])) <= bound.most


def test_tanh_stands_in_as_its_author_measured() -> None:
    """N. Juffa's figures of a GPU: at most 108.82848 ulp, a relative error of 9.3450e-6. They come of its ex2 and rcp."""
    x = np.arange(0x3B80_0000, 0x3D80_0000, dtype=np.uint32).view(np.float32)
    exact = np.tanh(x.astype(np.float64))
    error = np.abs(mmabits.function("tanh.approx.f32", x, arch="sm_75") - exact)
    ulps = error / 2.0 ** (np.floor(np.log2(exact)) - 23)
    assert f"{np.max(ulps):.5f}" == "108.82848"
    assert f"{np.max(error / exact):.4e}" == "9.3450e-06"


def test_functions_without_public_bits_say_why() -> None:
    for name, why in REFUSED.items():
        assert name not in opcode_table()
        with pytest.raises(mmabits.MmabitsError, match="MUFU") as raised:
            mmabits.function(name, 1.0, arch="sm_90a")
        assert why in str(raised.value)


def test_every_function_has_machine_code_and_bounds() -> None:
    names = {name for name, row in opcode_table().items() if {"approx", "full"} & set(row.parts)}
    assert set(functions.MACHINE_CODE) == names
    assert all(opcode_table()[name].bounds and not math.isnan(opcode_table()[name].bounds[0].most) for name in names)
