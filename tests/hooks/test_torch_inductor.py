"""torch.compile's default backend under `emulate`: products that it makes code of its own of, and what the report says of the others."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from mmabits.emulator.hooks.session import emulate  # noqa: E402

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="inductor needs a C++ compiler"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

BF16 = torch.bfloat16


def random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


def small(c: Any, row: Any, column: Any, a: Any, b: Any) -> Any:
    """Products of one row, one column, both, one element of K, and a small one with an addend."""
    return (
        torch.bmm(row, b), torch.bmm(a, column), torch.bmm(row, column), torch.mm(row[0], column[0]),
        torch.mm(column[0], row[0]), torch.bmm(column, row), torch.addmm(c, row[0, :, :16], b[0, :16, :8]),
        torch.baddbmm(row[:, :, :8], row, b),
    )  # fmt: skip


OPERANDS = random(8), random(4, 1, 32, seed=1), random(4, 32, 1, seed=2), random(4, 5, 32, seed=3), random(4, 32, 8, seed=4)
PRODUCTS = 5 * 4 + 3
"""Those of `small`."""


def emulated(**options: Any) -> Any:
    return emulate("sm_90a", frameworks=["torch"], **options)


def test_small_products_are_left_to_operators() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(small)
    with emulated() as session:
        got = compiled(*OPERANDS)
    assert sum(line.count for line in session.report().emulated) == PRODUCTS and not session.report().skipped
    with emulated():
        expected = small(*OPERANDS)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.slow
def test_code_from_before_the_block_is_said_and_compiled_anew_inside() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(small, options={"cpp_wrapper": True})
    lowerings, decompositions = dict(torch._inductor.lowering.lowerings), dict(torch._inductor.decomposition.decompositions)
    outside = compiled(*OPERANDS)
    with emulated() as session:
        expected = small(*OPERANDS)
    assert sum(line.count for line in session.report().emulated) == PRODUCTS
    with emulated() as session:
        compiled(*OPERANDS)
    assert "compiled before the block" in " ".join(line.reason for line in session.report().skipped)
    torch._dynamo.reset()
    with emulated() as session:
        got = compiled(*OPERANDS)
    assert sum(line.count for line in session.report().emulated) == PRODUCTS and not session.report().skipped
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    assert torch._inductor.lowering.lowerings == lowerings and torch._inductor.decomposition.decompositions == decompositions
    torch._dynamo.reset()
    again = compiled(*OPERANDS)  # as before the block, not what a cache holds of it
    assert all(torch.equal(one, other) for one, other in zip(again, outside, strict=True))


@pytest.mark.slow
def test_compiled_flex_attention_is_a_line_of_the_report() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()
    query = random(1, 2, 128, 64)
    with emulated() as session:
        torch.compile(lambda query: flex_attention(query, query, query))(query)
    (line,) = session.report().skipped
    assert line.operation == "flex_attention" and "uncompiled" in line.reason
