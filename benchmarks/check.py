"""The bits of a result against the exact model of tests/slow_reference.py, on a sample of its outputs."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import SEED, Array, Operands
from benchmarks.paths import BenchPath
from mmabits.emulator.codecs import as_codes
from mmabits.isa import Family, FormatSpec

SAMPLE = 64
_TESTS = Path(__file__).resolve().parents[1] / "tests"
_FAMILIES = {Family.MMA_SYNC: "mma", Family.WGMMA: "wgmma", Family.TCGEN05: "tcgen05"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """How many outputs were compared, how many of those were finite, how many differed, and the first that did."""

    compared: int
    finite: int
    different: int
    first: str = ""


def slow_reference() -> Any:
    """The exact model, from tests/."""
    if str(_TESTS) not in sys.path:
        sys.path.append(str(_TESTS))
    return importlib.import_module("slow_reference")


def sample_of(m: int, n: int, count: int) -> list[tuple[int, int]]:
    """`count` different outputs (all where there are fewer): the last corner, which edge handling would spoil, and random ones."""
    rng = np.random.default_rng([SEED, m, n])
    chosen = rng.choice(m * n, min(count, m * n), replace=False)
    chosen[0] = m * n - 1 if m * n - 1 not in chosen else chosen[0]
    return [(int(index) // n, int(index) % n) for index in chosen]


def check(path: BenchPath, operands: Operands, d: Array, count: int = SAMPLE) -> Check:
    """Compare `count` outputs of D (M, N) with the exact model, c being zero."""
    exact = slow_reference()
    row, result = path.instruction, path.instruction.d_type
    a, b = _codes(operands.a, row.a_type), _codes(operands.b, row.b_type)
    scale_a, scale_b = (None if part is None else as_codes(part, row.scale_type or "") for part in (operands.scale_a, operands.scale_b))
    got = _codes(d, result)
    finite, wrong = 0, []
    for i, j in sample_of(d.shape[0], d.shape[1], count):
        want = exact.dot(
            path.arch, _FAMILIES[row.family], row.a_type.name, row.b_type.name, row.d_type.name, a[i].tolist(), b[:, j].tolist(), 0,
            k_instruction=row.k, scale_a=None if scale_a is None else scale_a[i].tolist(),
            scale_b=None if scale_b is None else scale_b[:, j].tolist(), scale_type=row.scale_type.name if row.scale_type else None,
            block=row.block, promote_every=path.promote_every, rounding=row.rounding or "rn",
        )  # fmt: skip
        mine = int(got[i, j])
        finite += _is_finite(exact, result, want)
        if mine != want and not (result.name == "f64" and exact.is_nan("f64", mine) and exact.is_nan("f64", want)):
            wrong.append(f"[{i}, {j}]: got {mine:#x}, exact {want:#x}")
    return Check(compared=min(count, d.size), finite=finite, different=len(wrong), first=wrong[0] if wrong else "")


def _codes(array: Array, form: FormatSpec) -> Array:
    return array.view(f"uint{8 * array.dtype.itemsize}") if form.is_integer else as_codes(array, form)


def _is_finite(exact: Any, form: FormatSpec, code: int) -> bool:
    return form.is_integer or exact.decode(form.name, code).kind == "finite"
