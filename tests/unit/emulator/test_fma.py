"""Fused multiply-add against exact fractions."""

from fractions import Fraction
from itertools import product

import numpy as np
import operands
import slow_reference

from mmabits.emulator.engine.fma import canonical, fma


def nearest(exact: Fraction) -> np.float32:
    """The nearest float32, ties to even, by way of its neighbours."""
    guess = np.float32(float(exact))
    around = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return min((x for x in around if np.isfinite(x)), key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(np.uint32)) & 1))


def hard_operands(count: int) -> tuple[np.ndarray, ...]:
    """Sums near ties: z is about a product's last places away from it."""
    rng = np.random.default_rng(20260201)
    x, y = (rng.integers(1 << 23, 1 << 24, count).astype(np.float32) for _ in range(2))
    z = (-(x.astype(np.float64) * y) * rng.choice([1.0, 0.0, 2.0**-24, 2.0**-25, 2.0**24, 2.0**-48], count)).astype(np.float32)
    shift = rng.integers(-70, 30, count)
    return x * np.float32(2.0) ** shift.astype(np.float32), y, z * np.float32(2.0) ** shift.astype(np.float32)


def test_fma_is_the_nearest_float32_to_the_exact_value() -> None:
    x, y, z = hard_operands(3000)
    got = fma(x, y, z)
    for one, two, three, result in zip(x, y, z, got, strict=True):
        wanted = nearest(Fraction(float(one)) * Fraction(float(two)) + Fraction(float(three)))
        assert result == wanted, (one, two, three)
    twice = x * y + z
    assert (got != twice).sum() > 300  # the operands do tell one rounding from two


def test_fma_rounds_subnormals_once() -> None:
    x = np.array([1.5 * 2.0**-100, 2.0**-75, -(2.0**-75)], np.float32)
    y = np.array([2.0**-49, 2.0**-75, 2.0**-75], np.float32)
    z = np.array([2.0**-149, 2.0**-149, -0.0], np.float32)
    # In units of 2^-149: 1.5 + 1 is a tie and goes to 2; half of one added to 1 goes to 2; half of one goes to zero.
    assert fma(x, y, z).view(np.uint32).tolist() == [2, 2, 0x80000000]


def test_fma_special_values() -> None:
    inf = np.float32(np.inf)
    got = fma(
        np.array([inf, inf, 1.0, np.nan, 3e38], np.float32),
        np.array([0, 1, 1, 1, 10], np.float32),
        np.array([1, -inf, inf, 0, 0], np.float32),
    )
    assert got.view(np.uint32).tolist() == [0x7FFFFFFF, 0x7FFFFFFF, 0x7F800000, 0x7FFFFFFF, 0x7F800000]


def test_fma_of_every_three_edges() -> None:
    """Zeros, infinities and NaN of both signs, subnormals, the largest numbers: code for code."""
    codes = np.array([*product(operands.edge_codes("f32").values(), repeat=3)], np.uint32)
    got = fma(*codes.T.copy().view(np.float32)).view(np.uint32)
    for (x, y, z), found in zip(codes.tolist(), got.tolist(), strict=True):
        assert found == slow_reference.ieee_fma("f32", x, y, z), (hex(x), hex(y), hex(z))
    assert {0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FFFFFFF} <= set(got.tolist())


def test_fma_of_any_bits() -> None:
    rng = operands.generator("fma")
    x, y, z = rng.integers(0, 1 << 32, (3, 4000), dtype=np.uint32)
    with np.errstate(all="ignore"):
        near = (-(x.view(np.float32).astype(np.float64) * y.view(np.float32))).astype(np.float32).view(np.uint32)
    z[::2] = near[::2] + rng.integers(-2, 3, 2000).astype(np.uint32)
    got = fma(*(codes.view(np.float32) for codes in (x, y, z))).view(np.uint32).tolist()
    assert got == [slow_reference.ieee_fma("f32", *three) for three in zip(x.tolist(), y.tolist(), z.tolist(), strict=True)]


def test_canonical_leaves_all_but_nan() -> None:
    codes = np.array([0x7F800001, 0xFFC00000, 0x7FFFFFFF, 0xFF800000, 0x80000000, 0x7F7FFFFF, 0], np.uint32)
    assert canonical(codes.view(np.float32)).view(np.uint32).tolist() == [0x7FFFFFFF] * 3 + [0xFF800000, 0x80000000, 0x7F7FFFFF, 0]


def test_fma_broadcasts() -> None:
    got = fma(np.ones((2, 1), np.float32), np.arange(3, dtype=np.float32), np.float32(1) * np.ones((2, 3), np.float32))
    assert got.tolist() == [[1, 2, 3], [1, 2, 3]] and got.dtype == np.float32
