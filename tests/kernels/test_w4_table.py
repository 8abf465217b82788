"""The rows of schemes 6 to 9: what they name is there."""

import importlib
import importlib.util
from functools import reduce

import pytest

from mmabits.isa import architecture
from mmabits.kernels.schemes.table_w4 import ROWS_6_9

NAMED = [
    pytest.param(name, id=f"{row.name}: {name}")
    for row in ROWS_6_9
    for name in (*row.quantizers, row.composition, row.triton, row.jax, row.cuda)
    if name
]


@pytest.mark.parametrize("name", NAMED)
def test_functions_that_rows_name_exist(name: str) -> None:
    module, _, function = name.partition(":")
    framework = module.split(".")[0]
    if framework in ("triton", "jax"):
        pytest.importorskip(framework)
    found = reduce(getattr, function.split("."), importlib.import_module(f"mmabits.kernels.{module}"))
    assert callable(found) and found.__doc__


def test_rows_are_the_schemes() -> None:
    assert [row.number for row in ROWS_6_9] == [6] * 4 + [7] * 6 + [8] * 9 + [9] * 2
    assert len({row.name for row in ROWS_6_9}) == len(ROWS_6_9)
    for row in ROWS_6_9:
        assert all(architecture(arch).name == arch for arch in row.architectures)
        assert row.operands and row.scales and row.product and row.source


def test_a_row_says_where_its_kernel_was_compared() -> None:
    """e4m3 takes Ada or newer, but in caches, whose codes become f16 by their bits."""
    for row in ROWS_6_9:
        assert ("sm_80" in row.architectures) is ("e4m3" not in row.operands or row.name.startswith("KV cache"))
