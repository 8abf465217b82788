"""The documentation site: every code block runs, generated parts are current, every page is in the navigation.

`python tests/unit/test_site.py` rewrites the generated parts.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from packaging.requirements import Requirement

import mmabits
from mmabits.commands.main import main
from mmabits.commands.tables import formats_markdown

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
FORMATS_PAGE = ROOT / "docs" / "formats.md"
PICTURE = ROOT / "docs" / "why-448.svg"
GENERATED = re.compile(r"(?<=<!-- formats -->\n).*?(?=<!-- end formats -->)", re.DOTALL)
BLOCK = re.compile(r"(?:^<!-- needs: ([\w, .>=]+) -->\n)?^```(python|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
CONTAINS = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


def blocks(text: str) -> list[tuple[tuple[str, ...], str, str]]:
    """(packages needed, language, code) of each block that runs."""
    return [(tuple(filter(None, re.split(r"[, ]+", needs or ""))), language, code) for needs, language, code in BLOCK.findall(text)]


def is_here(requirement: str) -> bool:
    """A package, in a version where one is asked for."""
    asked = Requirement(requirement)
    return importlib.util.find_spec(asked.name) is not None and (not asked.specifier or version(asked.name) in asked.specifier)


def run_command(line: str) -> None:
    words = shlex.split(line)
    assert words[0] == "mmabits", f"only mmabits' own commands run here, not {line!r}"
    with pytest.raises(SystemExit) as ended:
        main(words[1:])
    assert ended.value.code == 0, line


@pytest.mark.parametrize("page", CONTAINS, ids=lambda page: page.name)
def test_every_block_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page, with the names of the blocks before."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": page.stem}
    for number, (needs, language, code) in enumerate(blocks(page.read_text(encoding="utf-8"))):
        if not all(map(is_here, needs)):
            continue
        if language == "python":
            file = tmp_path / f"block_{number}.py"  # a file of its own, since Triton reads the source of its kernels
            file.write_text(code, encoding="utf-8")
            exec(compile(code, str(file), "exec"), names)
        else:
            for line in code.splitlines():
                run_command(line)


def test_there_are_blocks_and_they_are_found() -> None:
    assert len(CONTAINS) >= 6
    text = "<!-- needs: torch -->\n```python\n1\n```\n\n```console\nmmabits list\n```\n```text\nno\n```\n"
    assert blocks(text) == [(("torch",), "python", "1\n"), ((), "console", "mmabits list\n")]


def test_the_formats_are_the_generated_ones() -> None:
    found = GENERATED.search(FORMATS_PAGE.read_text(encoding="utf-8"))
    assert found is not None and found[0] == f"{formats_markdown()}\n", "update them: python tests/unit/test_site.py"


def picture() -> str:
    """What docs/index.md shows."""
    a = np.array([[448.0] + [1 / 64] * 31], ml_dtypes.float8_e4m3fn)
    b = np.ones((32, 1), ml_dtypes.float8_e4m3fn)
    return mmabits.explain(a, b, instruction="wgmma", arch="sm_90a").svg(0)


def test_the_picture_on_the_first_page_is_the_generated_one() -> None:
    assert PICTURE.read_text(encoding="utf-8") == picture(), "update it: python tests/unit/test_site.py"


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert sorted(re.findall(r": ([\w-]+\.md)$", text, re.MULTILINE)) == [page.name for page in PAGES]


if __name__ == "__main__":
    old = FORMATS_PAGE.read_text(encoding="utf-8")
    FORMATS_PAGE.write_text(GENERATED.sub(lambda _: f"{formats_markdown()}\n", old), encoding="utf-8")
    PICTURE.write_text(picture(), encoding="utf-8")
