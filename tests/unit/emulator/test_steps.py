"""The engine's ways through a step give the same bits: the general one, the fast ones, every width of vectors, every product of bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import engine_batches
import ml_dtypes
import numpy as np
import operands
import pytest
import slow_reference
from engine_batches import SHAPES, SPELLINGS, drawn

import mmabits
from mmabits.emulator.engine import native, plan, width
from mmabits.isa import OperandError, lower, parse

ROOT = Path(__file__).resolve().parents[3]
FAST = [name for name in SPELLINGS if name not in ("f64", "s8", "s8 u8", "u8 s8", "u8", "s4 u4")]
"""Kinds of steps that have a general and a fast path."""


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FAST)
def test_the_fast_path_has_the_bits_of_the_general_one(name: str, shape: tuple[float, ...]) -> None:
    for kind in operands.KINDS:
        lowering, batch, promote = drawn(name, kind, shape)
        fast, general = (native.native_product(lowering, promote, general=each) for each in (False, True))
        numbers = [plan.step_numbers(lowering, promote, each) for each in (False, True)]
        assert fast.address != general.address or [each.floors for each in numbers] == [1, 0]  # so that two ways are compared
        got, want = (batch.run(lowering, promote, general=each) for each in (False, True))
        assert got.tobytes() == want.tobytes(), kind


@pytest.mark.parametrize("name", [name for name in SPELLINGS if name not in FAST])
def test_other_steps_have_one_path(name: str) -> None:
    lowering = lower(parse(SPELLINGS[name][0]), SPELLINGS[name][1])
    assert native.native_product(lowering, general=True).address == native.native_product(lowering, general=False).address


def elsewhere(names: list[str], **settings: str) -> dict[str, str]:
    """Digests of the same products in a process with other settings."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "engine_batches.py", *names], env={**os.environ, **settings}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    found: dict[str, str] = json.loads(done.stdout)
    return found


def widths() -> Iterator[dict[str, str]]:
    """Every width of vectors, every product of bytes, and the general path."""
    for lanes, products in (("4", "plain"), ("8", "pairs"), ("8", "vnni"), ("16", "plain"), ("16", "pairs"), ("16", "vnni")):
        yield {width.SETTING: lanes, width.BYTES_SETTING: products}
    yield {native.SETTING: "general"}


def can(settings: dict[str, str]) -> bool:
    """Whether this processor has such instructions."""
    wide = {"16": ("avx512f", "avx512bw", "avx512vl", "avx512dq"), "8": ("avx2",)}.get(settings.get(width.SETTING, ""), ())
    bytes_ = {"vnni": ("avx512vnni", "avx512vl"), "pairs": ("sse2",)}.get(settings.get(width.BYTES_SETTING, ""), ())
    return width.has(*wide, *bytes_)


def test_narrower_vectors_have_the_same_bits() -> None:
    """One setting, and the steps that compile soonest; the slow test takes all."""
    names = ["s8", "s8 u8", "u8 s8", "u8", "s4 u4"]
    assert elsewhere(names, **{width.SETTING: "4", width.BYTES_SETTING: "plain"}) == engine_batches.digests(names)


@pytest.mark.slow
@pytest.mark.parametrize("settings", list(widths()), ids=lambda settings: "-".join(settings.values()))
def test_every_width_has_the_same_bits(settings: dict[str, str]) -> None:
    if not can(settings):
        pytest.skip("this processor has no such instructions")
    assert elsewhere(list(SPELLINGS), **settings) == engine_batches.digests(list(SPELLINGS))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        (width.SETTING, "5", "MMABITS_LANES must be one of 4, 8, 16, got '5'"),
        (width.BYTES_SETTING, "fast", "MMABITS_BYTES must be one of .*plain on this processor, got 'fast'"),
        (native.SETTING, "quick", "MMABITS_STEPS must be 'general' or nothing, got 'quick'"),
    ],
)
def test_other_settings_are_refused(setting: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(setting, value)
    for function in (width.lanes, width.byte_products):
        function.cache_clear()
    try:
        with pytest.raises(OperandError, match=message):
            {width.SETTING: width.lanes, width.BYTES_SETTING: width.byte_products, native.SETTING: native._general}[setting]()
    finally:
        monkeypatch.undo()
        for function in (width.lanes, width.byte_products):
            function.cache_clear()


# --------------------------------------------------------------------------------------------------------------- directed cases
# One row against 32 columns, exactly at the bounds that the proof names (docs/how-the-engine-works.md).


def exact(arch: str, text: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> list[int]:
    row = parse(text)
    codes = {1: np.uint8, 2: np.uint16, 4: np.uint32}
    left, right = (each.view(codes[each.dtype.itemsize]) for each in (a, b))
    family = {"mma.sync": "mma", "wgmma.mma_async": "wgmma", "tcgen05.mma": "tcgen05"}[row.family.value]
    return [
        slow_reference.dot(
            arch, family, row.a_type.name, row.b_type.name, "f32", left[0].tolist(), right[:, j].tolist(), int(c.view(np.uint32)[0, j]),
            k_instruction=row.k,
        )
        for j in range(b.shape[1])
    ]  # fmt: skip


def same_bits(arch: str, text: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    got = mmabits.gemm(a, b, c, instruction=text, arch=arch)
    assert got.view(np.uint32)[0].tolist() == exact(arch, text, a, b, c)


HOPPER = ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3")
BLACKWELL = ("sm_100a", "tcgen05.mma.cta_group::1.kind::f8f6f4.m128n8k32.f32.e4m3.e4m3")
BF16 = ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16")


@pytest.mark.parametrize(("arch", "text"), [HOPPER, BLACKWELL], ids=["float32", "float64"])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_every_negative_product_that_is_cut_is_counted(arch: str, text: str, sign: float) -> None:
    """31 products with bits below the window, just on its last place, or both, in every number; c sets the window."""
    a, b = np.zeros((1, 32)), np.zeros((32, 32))
    for j in range(32):
        b[:, j] = np.where(np.arange(32) < j, 2.0**-9, 2.0**-6 * 1.125) * sign
    a[0] = np.where(np.arange(32) % 3 == 0, 2.0**-6 * 1.875, 2.0**-9)
    for exponent in range(-4, 12):
        c = np.full((1, 32), 1.5 * 2.0**exponent, np.float32) * np.where(np.arange(32) % 2, 1, -1).astype(np.float32)
        same_bits(arch, text, a.astype(ml_dtypes.float8_e4m3fn), b.astype(ml_dtypes.float8_e4m3fn), c)


@pytest.mark.parametrize("spread", [30, 31, 32, 33, 60])
@pytest.mark.parametrize("of", ["a", "b", "both"])
def test_exponents_at_the_end_of_the_range(spread: int, of: str) -> None:
    """A row or column whose exponents lie 31 apart is taken by the fast path, the next by the general one."""
    rng = operands.generator("spread", spread, of)
    for _ in range(8):
        a, b = (rng.integers(-8, 9, shape) / 8.0 for shape in ((1, 16), (16, 32)))
        if of in ("a", "both"):
            a[0, rng.integers(16)] *= 2.0 ** -(spread - 3)
        if of in ("b", "both"):
            b[rng.integers(16)] *= 2.0 ** -(spread - 3)
        c = (rng.standard_normal((1, 32)) * 2.0 ** rng.integers(-40, 4, (1, 32))).astype(np.float32)
        same_bits(*BF16, a.astype(ml_dtypes.bfloat16), b.astype(ml_dtypes.bfloat16), c)


def test_an_accumulator_as_large_as_a_float32() -> None:
    """Beyond CARRIER_LIMIT a float32 carrier would overflow; float64 goes on, up to infinity."""
    rng = operands.generator("large accumulators")
    for (arch, text), form in ((HOPPER, ml_dtypes.float8_e4m3fn), (BLACKWELL, ml_dtypes.float8_e4m3fn), (BF16, ml_dtypes.bfloat16)):
        k = parse(text).k
        for exponent in (99, 100, 101, 118, 127):
            c = (rng.uniform(1, 2, (1, 32)) * 2.0**exponent * rng.choice([-1, 1], (1, 32))).astype(np.float32)
            same_bits(arch, text, rng.standard_normal((1, k)).astype(form), rng.standard_normal((k, 32)).astype(form), c)
    largest = np.full((1, 32), np.finfo(np.float32).max, np.float32)
    big = np.full((1, 16), 2.0**100).astype(ml_dtypes.bfloat16)
    same_bits(*BF16, big, np.full((16, 32), 2.0**27).astype(ml_dtypes.bfloat16), largest)


def test_rows_that_do_not_fill_a_group_and_rows_with_specials() -> None:
    """Rows are taken several at a time: every number of them, with infinities and NaN in some."""
    lowering, batch, _ = drawn("fp8", "plain", (1, 11, 40, 6, 0))
    full = batch.run(lowering, 0, general=True)
    for rows in range(1, 12):
        part = engine_batches.Batch.__new__(engine_batches.Batch)
        part.a, part.b, part.c, part.scales = batch.a[:, :rows].copy(), batch.b, batch.c[:, :rows].copy(), batch.scales
        assert part.run(lowering, 0).tobytes() == full[:, :rows].copy().tobytes()
    rng = operands.generator("rows with specials")
    for _ in range(20):
        batch.a[0, rng.integers(11, size=2), rng.integers(192, size=2)] = rng.choice([0x7F, 0xFF])  # NaN of e4m3
        batch.b[0, rng.integers(192), rng.integers(40)] = rng.choice([0x7C, 0xFC, 0x7E])  # infinities and NaN of e5m2
        assert batch.run(lowering, 0).tobytes() == batch.run(lowering, 0, general=True).tobytes()
