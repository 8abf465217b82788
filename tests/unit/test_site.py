"""The documentation site: every code block runs, generated parts are current, every page is in the navigation.

`python tests/unit/test_site.py` rewrites the generated parts.
"""

from __future__ import annotations

import importlib.util
import io
import re
import shlex
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from mmabits.commands.examples import EXAMPLES
from mmabits.commands.main import app, main
from mmabits.commands.reference import every_command, reference_markdown
from mmabits.commands.tables import formats_markdown
from mmabits.research.study.recipes import RECIPES
from mmabits.research.study.shipped import STUDIES

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
FORMATS_PAGE = ROOT / "docs" / "formats.md"
COMMANDS_PAGE = ROOT / "docs" / "commands.md"
GENERATED = re.compile(r"(?<=<!-- formats -->\n).*?(?=<!-- end formats -->)", re.DOTALL)
COMMANDS = re.compile(r"(?<=<!-- commands -->\n).*?(?=<!-- end commands -->)", re.DOTALL)
BLOCK = re.compile(r"(?:^<!-- needs: ([\w, .>=]+) -->\n)?^```(python|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHOWN = re.compile(r"^```(?:python|console)\n(.*?)^```\n\n```text\n(.*?)^```", re.DOTALL | re.MULTILINE)
WITH_OUTPUT = ("index.md", "questions.md")
"""Pages on which a text directly below a block is lines of what that block prints."""
CONTAINS = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


def blocks(text: str) -> list[tuple[tuple[str, ...], str, str]]:
    """(packages needed, language, code) of each block that runs."""
    return [(tuple(filter(None, re.split(r"[, ]+", needs or ""))), language, code) for needs, language, code in BLOCK.findall(text)]


def is_here(requirement: str) -> bool:
    """A package, in a version where one is asked for."""
    asked = Requirement(requirement)
    return importlib.util.find_spec(asked.name) is not None and (not asked.specifier or version(asked.name) in asked.specifier)


def run_command(line: str, statuses: tuple[int, ...] = (0,)) -> None:
    words = shlex.split(line)
    assert words[0] == "mmabits", f"only mmabits' own commands run here, not {line!r}"
    with pytest.raises(SystemExit) as ended:
        main(words[1:])
    assert ended.value.code in statuses, line


def lines_missing(wanted: str, printed: str) -> list[str]:
    """Lines that were not printed, in the order in which they stand."""
    rest = iter([line.rstrip() for line in printed.splitlines()])
    return [line for line in wanted.splitlines() if line.rstrip() not in rest]


@pytest.mark.parametrize("page", CONTAINS, ids=lambda page: page.name)
def test_every_block_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page, with the names of the blocks before."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": page.stem}
    text = page.read_text(encoding="utf-8")
    shown = dict(SHOWN.findall(text)) if page.name in WITH_OUTPUT else {}
    for number, (needs, language, code) in enumerate(blocks(text)):
        if not all(map(is_here, needs)):
            continue
        if code in shown:
            with redirect_stdout(io.StringIO()) as printed:
                exec(code, names) if language == "python" else run_command(code.strip(), (0, 1))
            assert lines_missing(shown[code], printed.getvalue()) == [], code
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


def site_pages() -> Any:
    """docs/pages.py, which MkDocs loads."""
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_on_the_first_page_is_the_generated_one() -> None:
    pages = site_pages()
    assert pages.PICTURE.read_text(encoding="utf-8") == pages.four_rows(), "update it: python docs/pages.py"


def test_kept_pages_look_as_the_templates_make_them() -> None:
    """They are runs that take too long here; what the templates say of style and script is in them to the letter."""
    style = re.search(r"<style>\n(:root.*?)\{% block", (ROOT / "reports" / "pages" / "base.html.j2").read_text(encoding="utf-8"), re.DOTALL)
    assert style is not None
    kept = {path.name: path.read_text(encoding="utf-8") for path in site_pages().KEPT.iterdir()}
    assert sorted(kept) == ["diff.html", "study.html"]
    for name, page in kept.items():
        assert style[1] in page, f"update {name}: python docs/pages.py"


def test_the_page_of_the_explanation_and_the_changelog_are_made() -> None:
    pages = site_pages()
    assert "Why D[0, 0] is 448" in pages.explanation()
    assert "## [Unreleased]" in pages.changelog() and "](docs/" not in pages.changelog()


def test_every_study_is_in_the_docs() -> None:
    calls, page = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("calls.md", "study.md"))
    assert all(f"`mmabits study {name}`" in page for name in STUDIES)
    words = ("eight", "nine", "ten", "eleven", "twelve")
    assert f"{words[len(STUDIES) - 8]} studies, each with a page" in calls


def test_the_commands_are_the_generated_ones() -> None:
    found = COMMANDS.search(COMMANDS_PAGE.read_text(encoding="utf-8"))
    assert found is not None and found[0] == f"{reference_markdown()}\n", "update them: python tests/unit/test_site.py"


def test_every_command_has_examples_that_it_takes() -> None:
    """Their words are read as the command line reads them; nothing runs."""
    commands = dict(every_command())
    assert set(commands) == set(EXAMPLES)
    for name, examples in EXAMPLES.items():
        for example in examples:
            assert all(len(line) <= 74 for line in example.splitlines()), example
            words = shlex.split(example.replace("\\\n", " "))
            if "--install-completion" in words:
                continue
            found = max((each for each in commands if words[: len(each.split())] == each.split()), key=len)
            commands[found].make_context(found, words[len(found.split()) :])
            assert found.startswith(name)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mmabits explain wgmma --arch sm_90", ["sm_90a"]),
        ("mmabits compare a.npy b.npy --arch H100", ["H100"]),
        ("mmabits compare a.npy b.npy --format nvfp4", ["nvfp4", *(name for name in RECIPES if name.startswith("nvfp4-"))]),
        ("mmabits gemm a.npy b.npy --format-b e4", ["e4m3"]),
        ("mmabits study calib", ["calibration"]),
        ("mmabits study calibration --size q", ["quick"]),
        ("mmabits evaluate small --arch h100 --quantize mxfp8-e5m2-r", ["mxfp8-e5m2-rceil"] if is_here("torch") else []),
    ],
)
def test_a_shell_completes_what_options_take(line: str, expected: list[str]) -> None:
    asked = {"_MMABITS_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    assert CliRunner().invoke(app, [], env=asked, prog_name="mmabits").output.split() == expected


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert sorted(re.findall(r": ([\w-]+\.md)$", text, re.MULTILINE)) == [page.name for page in PAGES]


if __name__ == "__main__":
    old = FORMATS_PAGE.read_text(encoding="utf-8")
    FORMATS_PAGE.write_text(GENERATED.sub(lambda _: f"{formats_markdown()}\n", old), encoding="utf-8")
    old = COMMANDS_PAGE.read_text(encoding="utf-8")
    COMMANDS_PAGE.write_text(COMMANDS.sub(lambda _: f"{reference_markdown()}\n", old), encoding="utf-8")
