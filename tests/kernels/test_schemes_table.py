"""The table of schemes: what the rows of schemes 1 to 5 name is there."""

import importlib
import re
from functools import reduce
from pathlib import Path

import pytest

from mmabits.isa import architecture
from mmabits.kernels.schemes.table import ROWS_1_5, SCHEMES, schemes_table

NAMED = [
    pytest.param(name, id=f"{row.name}: {name}")
    for row in ROWS_1_5
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


def test_every_scheme_has_rows() -> None:
    assert sorted({row.number for row in SCHEMES}) == list(range(1, 10))
    assert [row.number for row in ROWS_1_5] == [1, 1, 2, 3, 4, 4, 4, 5]
    assert len({row.name for row in SCHEMES}) == len(SCHEMES)
    assert all(architecture(arch).name == arch for row in SCHEMES for arch in row.architectures)


def test_markdown_has_a_line_for_each() -> None:
    lines = schemes_table().splitlines()
    assert len(lines) == 2 + len(SCHEMES)
    assert len({line.count("|") for line in lines}) == 1
    line = lines[2 + len(ROWS_1_5) - 1]
    assert "| 5 NVFP4 |" in line and "`triton.nvfp4`, `jax.block_scaled`, `cuda.block_scaled`" in line


def test_the_table_of_the_readme_is_the_generated_one() -> None:
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- schemes -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert found is not None and found[1] == schemes_table()
