"""Conversions to and from small formats, and packed arithmetic, against ml_dtypes, NumPy and fractions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import operands
import pytest

import mmabits
from mmabits.isa.opcodes import opcode_table

ARCH = "sm_120a"
SMALL = {
    "e4m3x2": (ml_dtypes.float8_e4m3fn, 8, 0x7F), "e5m2x2": (ml_dtypes.float8_e5m2, 8, 0x7F), "e2m3x2": (ml_dtypes.float6_e2m3fn, 8, 0x1F),
    "e3m2x2": (ml_dtypes.float6_e3m2fn, 8, 0x1F), "e2m1x2": (ml_dtypes.float4_e2m1fn, 4, 0x7),
}  # fmt: skip
"""The dtype, bits of an element of the pair, and what NaN becomes: the largest number where there is no NaN."""
HALVES = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def numbers(count: int = 20_000) -> npt.NDArray[np.float32]:
    """f32 of every size, many near small formats' numbers, ties among them."""
    rng = np.random.default_rng(operands.SEED)
    any_code = rng.integers(0, 1 << 32, count, dtype=np.uint32).view(np.float32)
    grid = rng.integers(-1 << 12, 1 << 12, count).astype(np.float32) * 2.0 ** rng.integers(-20, 8, count).astype(np.float32)
    special = np.array(
        [0.0, -0.0, np.inf, -np.inf, np.nan, 448, 464, 465, 57344, 61440, 28, 7.5, 6, 5, 65504, 65519.996, 65520], np.float32
    )
    return np.concatenate([any_code, grid, np.repeat(special, 8)])


def pairs(x: npt.NDArray[Any]) -> tuple[Any, Any]:
    half = x.size // 2
    return x[:half], x[half : 2 * half]


def small_codes(x: npt.NDArray[np.float32], kind: str, *, relu: bool = False) -> npt.NDArray[np.uint8]:
    """Rounded to nearest by ml_dtypes, saturated before."""
    dtype, _, nan = SMALL[kind]
    largest = float(ml_dtypes.finfo(dtype).max)
    with np.errstate(invalid="ignore"):
        codes = np.clip(x, -largest, largest).astype(dtype).view(np.uint8)
    if relu:
        codes = np.where(np.signbit(x) & ~np.isnan(x), np.uint8(0), codes)
    return np.where(np.isnan(x), np.uint8(nan), codes)


@pytest.mark.parametrize("relu", ["", ".relu"])
@pytest.mark.parametrize("kind", SMALL)
def test_to_a_small_format_from_f32(kind: str, relu: str) -> None:
    high, low = pairs(numbers())
    bits = SMALL[kind][1]
    found = mmabits.function(f"cvt.rn.satfinite{relu}.{kind}.f32", high, low, arch=ARCH)
    wanted = small_codes(high, kind, relu=bool(relu)).astype(np.uint16) << bits | small_codes(low, kind, relu=bool(relu))
    assert np.array_equal(found, wanted)


FROM_HALVES = [name for name in opcode_table() if name.startswith("cvt.rn.satfinite.") and name.split(".")[-1] in ("f16x2", "bf16x2")]


@pytest.mark.parametrize("name", [name for name in FROM_HALVES if name.split(".")[-2] in SMALL])
def test_to_a_small_format_from_every_half(name: str) -> None:
    kind, of = name.split(".")[-2:]
    codes = np.arange(1 << 16, dtype=np.uint32)
    with np.errstate(invalid="ignore"):
        wide = codes.astype(np.uint16).view(HALVES[of[:-2]]).astype(np.float32)
    found = mmabits.function(name, codes | codes[::-1] << 16, arch=ARCH)
    wanted = small_codes(wide, kind, relu="relu" in name.split(".")).astype(np.uint16)
    wanted = wanted[::-1] << SMALL[kind][1] | wanted
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("name", [name for name in opcode_table() if name.startswith("cvt.rn.") and name.split(".")[-1] in SMALL])
def test_from_a_small_format(name: str) -> None:
    words = name.split(".")
    to, kind = words[-2:]
    dtype, bits, _ = SMALL[kind]
    count = 1 << bits if bits == 4 or "8" in np.dtype(dtype).name else 64
    low, high = (each.reshape(-1) for each in np.meshgrid(np.arange(count), np.arange(count)))
    found = mmabits.function(name, (low | high << bits).astype(np.uint8 if bits == 4 else np.uint16), arch=ARCH)

    def half(codes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with np.errstate(invalid="ignore"):
            wide = codes.astype(np.uint8).view(dtype).astype(np.float32)
        if "relu" in words:
            wide = np.where(np.signbit(wide) & ~np.isnan(wide), np.float32(0), wide)
        bits_of = wide.astype(HALVES[to[:-2]]).view(np.uint16)
        return np.where(np.isnan(wide), np.uint16(0x7FFF), bits_of).astype(np.uint32)

    assert np.array_equal(found, half(low) | half(high) << 16)


@pytest.mark.parametrize("name", [name for name in opcode_table() if ".ue8m0x2.f32" in name])
def test_to_scales(name: str) -> None:
    """A power of two: toward zero or up, the magnitude's; NaN stays one."""
    x = numbers()
    with np.errstate(all="ignore"):
        mantissa, exponent = np.frexp(np.abs(x).astype(np.float64))
        power = exponent - 1 + ((mantissa != 0.5) & ("rp" in name.split(".")))
    wanted = np.where(x == 0, 0, np.clip(power + 127, 0, 255))
    top = 0xFE if "satfinite" in name or "rz" in name.split(".") else 0xFF
    wanted = np.where(wanted == 255, top, wanted)
    wanted = np.where(np.isinf(x), top, np.where(np.isnan(x), 0xFF, wanted))
    high, low = pairs(wanted)
    found = mmabits.function(name, *pairs(x), arch=ARCH)
    assert np.array_equal(found, high << 8 | low)


def directed(x: npt.NDArray[Any], dtype: np.dtype[Any], mode: str) -> npt.NDArray[np.uint16]:
    """Rounded by NumPy or ml_dtypes to nearest, and a code further where that went the wrong way."""
    with np.errstate(all="ignore"):
        near = x.astype(dtype)
        codes = near.view(np.uint16).astype(np.int32)
        back, wide = near.astype(np.float64), x.astype(np.float64)
    if mode in ("rz", "rm", "rp"):
        too_large = (np.abs(back) > np.abs(wide)) & ((mode == "rz") | (np.signbit(wide) == (mode == "rp")))
        too_small = (np.abs(back) < np.abs(wide)) & (mode != "rz") & (np.signbit(wide) == (mode == "rm"))
        codes = codes - too_large + too_small
    return np.where(np.isnan(x), 0x7FFF, codes).astype(np.uint16)


@pytest.mark.parametrize("form", HALVES)
@pytest.mark.parametrize("mode", ["rn", "rz"])
def test_to_pairs_of_halves(form: str, mode: str) -> None:
    high, low = pairs(numbers())
    found = mmabits.function(f"cvt.{mode}.{form}x2.f32", high, low, arch=ARCH)
    assert np.array_equal(found, directed(high, HALVES[form], mode).astype(np.uint32) << 16 | directed(low, HALVES[form], mode))


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_to_f16_in_every_rounding(mode: str) -> None:
    x = numbers()
    assert np.array_equal(mmabits.function(f"cvt.{mode}.f16.f32", x, arch=ARCH).view(np.uint16), directed(x, HALVES["f16"], mode))


@pytest.mark.parametrize("form", HALVES)
def test_fused_products_of_pairs(form: str) -> None:
    """The exact number, from fractions, rounded once."""
    rng, dtype = np.random.default_rng(operands.SEED), HALVES[form]
    bias, fraction = (15, 10) if form == "f16" else (127, 7)
    codes = [
        (rng.integers(0, 2, 1000) << 15 | rng.integers(bias - 8, bias + 7, 1000) << fraction | rng.integers(0, 1 << fraction, 1000)).astype(
            np.uint16
        )
        for _ in range(3)
    ]
    values = [[Fraction(float(each)) for each in one.view(dtype)] for one in codes]
    wanted = []
    for a, b, c in zip(*values, strict=True):
        exact = a * b + c
        guess = int(np.asarray(float(exact)).astype(dtype).view(np.uint16)) if exact else 0
        near = [code for code in (guess - 1, guess, guess + 1) if 0 <= code < 1 << 16]
        distance = {code: abs(Fraction(float(np.asarray(code, np.uint16).view(dtype))) - exact) for code in near}
        wanted.append(min(near, key=lambda code: (distance[code], code & 1)))
    packed = [one[:500].astype(np.uint32) | one[500:].astype(np.uint32) << 16 for one in codes]
    found = mmabits.function(f"fma.rn.{form}x2", *packed, arch=ARCH)
    assert (found & 0xFFFF).tolist() + (found >> 16).tolist() == wanted


EDGES = {
    "f16": (0, 0x8000, 1, 0x8001, 0x3C00, 0xBC00, 0x7BFF, 0x7C00, 0xFC00, 0x7E00, 0xFE01, 0x7C01),
    "bf16": (0, 0x8000, 1, 0x8001, 0x3F80, 0xBF80, 0x7F7F, 0x7F80, 0xFF80, 0x7FC0, 0xFFC1, 0x7F81),
    "f32": (0, 1 << 31, 1, 0x80000001, 0x3F800000, 0xBF800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x7F800001),
}  # fmt: skip


@pytest.mark.parametrize("nan", ["", ".NaN"])
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "f16x2", "bf16x2"])
@pytest.mark.parametrize("base", ["min", "max"])
def test_limits_of_nan_and_signed_zeros(base: str, kind: str, nan: str) -> None:
    """-0 is less than +0; NaN gives way to a number, or with .NaN to nothing; every NaN is the one of results."""
    form = kind.removesuffix("x2")
    dtype = np.dtype(np.float32) if form == "f32" else HALVES[form]
    code = np.array(EDGES[form], f"u{dtype.itemsize}")
    a, b = (each.reshape(-1) for each in np.meshgrid(code, code))
    with np.errstate(invalid="ignore"):
        x, y = (each.view(dtype).astype(np.float64) for each in (a, b))
    first_less = (x < y) | ((x == y) & np.signbit(x))
    least = np.where(first_less == (base == "min"), a, b)
    one = np.isnan(x) | np.isnan(y)
    both = np.isnan(x) & np.isnan(y)
    result_nan = 0x7FFFFFFF if form == "f32" else 0x7FFF
    wanted = np.where(both | (one & bool(nan)), result_nan, np.where(np.isnan(x), b, np.where(np.isnan(y), a, least)))
    if kind.endswith("x2"):
        a, b, wanted = (each.astype(np.uint32) | each[::-1].astype(np.uint32) << 16 for each in (a, b, wanted))
    assert np.array_equal(mmabits.function(f"{base}{nan}.{kind}", a, b, arch=ARCH), wanted)
