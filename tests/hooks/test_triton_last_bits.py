"""Triton's dots as their plans say, and the sessions' products: the last bits of `gemm` for every line of the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import special_values

import mmabits
from mmabits.emulator.codecs import from_codes
from mmabits.emulator.hooks.session import Session
from mmabits.isa import Evidence, Instruction, format_spec

triton = pytest.importorskip("triton")

from mmabits.emulator.hooks.triton.plans import DotScheme, Plan  # noqa: E402
from mmabits.emulator.hooks.triton.products import product, scaled_product  # noqa: E402

LINES = special_values.lines()


def operands_of(row: Instruction, given: special_values.Product, c_format: str) -> tuple[Any, ...]:
    scales: tuple[Any, Any] = (None, None)
    if row.scale_type is not None and given.scale_a is not None and given.scale_b is not None:
        scales = from_codes(given.scale_a, row.scale_type), from_codes(given.scale_b.T, row.scale_type)
    a, b = from_codes(given.a, row.a_type), from_codes(given.b.T, row.b_type)
    return (a, b, from_codes(given.c, format_spec(c_format)), *scales)


@pytest.mark.parametrize(("arch", "text"), LINES, ids=[f"{arch}-{text}" for arch, text in LINES])
def test_dots_and_products_of_sessions_have_the_bits_of_gemm(arch: str, text: str) -> None:
    lowering = special_values.lowered(arch, text)
    row, k = lowering.instruction, 3 * lowering.instruction.k - 3
    session = Session(arch=arch, require=Evidence.INFERRED, frameworks=())
    for promote in (0, 2 * row.k) if special_values.promotes(lowering) else (0,):
        c_format = "f32" if promote else row.c_type.name
        a, b, c, scale_a, scale_b = operands_of(row, special_values.product(row, k, c_format=c_format), c_format)
        options: dict[str, Any] = {"instruction": row, "promote_every": promote or None, "scale_a": scale_a, "scale_b": scale_b}
        want = mmabits.gemm(a, b, c, arch=arch, **options)
        plan = Plan(scheme=DotScheme.PLAIN, instruction=row, promote_every=promote)
        given = [session.dot("here", a, b, c, **options)]
        if scale_a is None:
            given.append(product(session, plan, a, b, c, site="here"))
        elif not promote:
            given.append(scaled_product(session, plan, a, b, c, scale_a, scale_b, site="here"))
        for got in given:
            assert got.dtype == want.dtype and np.asarray(got).tobytes() == want.tobytes(), promote
